//! Gateways' links to nodes, and a reader without an attachment.

use std::collections::BTreeMap;

use evenkeel::core::ids::{DiskId, NodeId, PgId};
use evenkeel::core::replica::{ClientOp, ClientReply, ClientRequest, Input};
use evenkeel::core::router::Action as RouterAction;

use crate::canary::Canary;
use crate::coord::{Peer, Up};
use crate::gateway::{Gateway, VOLUME};
use crate::network::Stream;
use crate::world::{Event, GATEWAY, MS, World};

/// A gateway's link to a node.
pub type ClientLink = (usize, DiskId);

/// A gateway's link that has been silent for so long has ended, within.
pub const CLIENT_IDLE_NS: [u64; 2] = [300 * MS, 3_000 * MS];

/// A node that has been dialed in vain for so long is named to the coordinator.
const UNREACHABLE_NS: u64 = 400 * MS;

/// A gateway stands by for so long, then the operator has it take over.
const STANDBY_NS: u64 = 4_000 * MS;

/// Who waits for a node's answer.
#[derive(Clone, Copy)]
pub enum Asker {
    /// `open`: the PG that is to let it in.
    Gateway {
        link: ClientLink,
        epoch: u64,
        id: u64,
        open: Option<PgId>,
    },
    Reader {
        id: u64,
    },
}

/// Reads without attaching, and stays with its primary until that one refuses: it would see a primary that doesn't know
/// that it was replaced.
#[derive(Default)]
pub struct Reader {
    targets: BTreeMap<PgId, DiskId>,
    pub request: Option<(u64, u64, PgId)>,
    next: u64,
}

/// Marks the reader's reads in the model.
const READER: u64 = 0xffff << 40;

impl World {
    pub fn new_gateway(&mut self, name: String, take_over: bool) {
        let i = self.gateways.len();
        let mut gateway = Gateway::new(i as u32, name, take_over, self.layout.clone(), self.now);
        gateway.rotten = self.rots > 0;
        self.gateways.push(gateway);
        self.coverage.add("gateways after the first", u64::from(i > 0));
        self.after(MS, Event::Dial { peer: Peer::Gateway(i), life: 0 });
    }

    /// It knows that another one has the volume.
    pub fn gateway_lost(&mut self, i: usize) {
        self.gateway_fenced(i);
        if std::mem::take(&mut self.gateways[i].alive) {
            self.log(|| format!("gateway {i} ends: it has lost the volume"));
            self.gateways[i].router.fence();
            drop(self.gateways[i].router.take_actions());
            self.drop_links(i);
        }
    }

    /// Nothing of it is acked from now on.
    pub fn gateway_fenced(&mut self, i: usize) {
        if self.gateways[i].fenced_at.is_none() {
            self.gateways[i].fenced_at = Some(self.now);
            self.gateways[i].lose(&mut self.model);
        }
    }

    /// Its process is gone.
    pub fn gateway_dies(&mut self, i: usize) {
        self.gateway_fenced(i);
        if std::mem::take(&mut self.gateways[i].alive) {
            self.drop_links(i);
        }
    }

    fn drop_links(&mut self, i: usize) {
        let links: Vec<ClientLink> = self.clients.keys().copied().filter(|l| l.0 == i).collect();
        links.into_iter().for_each(|link| self.break_client(link));
        self.end_control(Peer::Gateway(i), false);
    }

    /// It has flushed all, gives the volume back and ends. If its word is lost, whoever waits must take over.
    pub fn release(&mut self, i: usize) {
        self.log(|| format!("gateway {i} releases the volume"));
        self.coverage.add("gateway hand-overs", 1);
        let (incarnation, untold) = (self.gateways[i].incarnation, self.gateways[i].is_loss_untold());
        self.send_up(Peer::Gateway(i), Up::Release(incarnation, untold));
        self.gateway_fenced(i);
        self.gateways[i].alive = false;
        let links: Vec<ClientLink> = self.clients.keys().copied().filter(|l| l.0 == i).collect();
        links.into_iter().for_each(|link| self.break_client(link));
        self.end_control(Peer::Gateway(i), true);
    }

    /// The operator's patience with a gateway that stands by.
    pub fn take_over_at_last(&mut self, i: usize) {
        let g = &mut self.gateways[i];
        if g.alive && !g.attached && !g.take_over && self.now > g.since + STANDBY_NS {
            g.take_over = true;
            self.log(|| format!("gateway {i} takes over"));
            self.end_control(Peer::Gateway(i), true);
        }
    }

    pub fn client_gone(&mut self, to: DiskId, incarnation: u64, connection: u64) {
        for pg in self.layout.clone() {
            self.feed(to, pg, Input::ClientGone { volume: VOLUME, incarnation, connection });
        }
    }

    pub fn read(&mut self) {
        if let Some((id, since, _)) = self.reader.request {
            if self.now > since + 1_000 * MS {
                self.model.read_dropped(id);
                self.reader = Reader { next: self.reader.next, ..Reader::default() };
            }
            return;
        }
        if self.now >= self.faults_until {
            return;
        }
        let (chunk, at, op) = crate::gateway::some_read(&mut self.rng);
        let pg = self.pg_of(chunk);
        let primary = self.coordinator.config(pg).primary().map(|p| p.disk);
        let Some(to) = self.reader.targets.get(&pg).copied().or(primary) else { return };
        self.reader.targets.insert(pg, to);
        self.reader.next += 1;
        let id = READER | self.reader.next;
        self.reader.request = Some((id, self.now, pg));
        self.model.read_starts(id, at, true);
        let delay = self.delay();
        let request = ClientRequest { id, volume: VOLUME, incarnation: 0, connection: 1, op };
        self.after(delay, Event::Client { to, pg, over: None, request });
    }

    fn read_answered(&mut self, id: u64, reply: &ClientReply) {
        let Some((_, _, pg)) = self.reader.request.take_if(|(mine, ..)| *mine == id) else { return };
        match reply {
            ClientReply::Data(data) => {
                let words = data.chunks(512).map(|s| u64::from_le_bytes(s.as_chunks::<8>().0[0])).collect::<Vec<_>>();
                self.coverage.add("reads without attach", 1);
                if let Err(text) = self.model.read_ends(id, &words) {
                    self.fail(text);
                }
            }
            _ => {
                self.model.read_dropped(id);
                self.reader.targets.remove(&pg);
            }
        }
    }

    /// Carries out what a gateway's router wants done.
    pub fn dispatch(&mut self, i: usize) {
        for action in self.gateways[i].router.take_actions() {
            match action {
                RouterAction::Dial(node) => {
                    self.log(|| format!("gateway {i} dials {node}"));
                    self.dial((i, DiskId(node.0)));
                }
                RouterAction::Send { node, connection, pg, request, .. } => {
                    self.send_client((i, DiskId(node.0)), connection, pg, request);
                }
                RouterAction::Answer { token, reply } => {
                    self.log(|| format!("gateway {i}: request {token} is done: {}", crate::show::reply(&reply)));
                    if let Err(text) = self.gateways[i].answered(token, reply, &mut self.model) {
                        self.fail(text);
                    }
                }
                RouterAction::Replaying { writes, .. } => {
                    self.log(|| format!("gateway {i} sends {writes} writes again"));
                    self.gateways[i].replays += 1;
                }
                RouterAction::Fenced => self.gateway_lost(i),
                RouterAction::LossTold => {
                    self.coverage.add("losses told (R13)", 1);
                    self.gateways[i].losses_told += 1;
                    self.gateways[i].loss_seen = true;
                }
            }
        }
    }

    fn dial(&mut self, link: ClientLink) {
        let stream = self.clients.entry(link).or_default();
        stream.epoch += 1;
        (stream.heard, stream.dialing) = (self.now, true);
        let epoch = stream.epoch;
        let delay = self.rng.range(1, 20) * MS;
        self.after(delay, Event::ClientUp { link, epoch });
    }

    /// Nodes that it has dialed in vain for a while.
    pub fn gateway_unreachable(&self, i: usize) -> Vec<NodeId> {
        let vain = |s: &Stream| s.dialing && self.now > s.heard + UNREACHABLE_NS;
        let mine = self.clients.iter().filter(|(l, s)| l.0 == i && vain(s));
        mine.map(|(l, _)| NodeId(l.1.0)).collect()
    }

    pub fn client_up(&mut self, link: ClientLink, epoch: u64) {
        let (i, node) = link;
        let name = GATEWAY + i as u32;
        if self.clients.get(&link).is_none_or(|s| s.epoch != epoch || s.up) || !self.gateways[i].alive {
            return;
        }
        if !self.gateways[i].router.wants(NodeId(node.0)) {
            self.clients.entry(link).or_default().dialing = false;
            self.gateways[i].router.handle_dial_ended(NodeId(node.0));
            return self.dispatch(i);
        }
        let alive = self.nodes.get(&node).is_some_and(|n| n.is_awake());
        if !alive || self.is_blocked(name, node.0) || self.is_blocked(node.0, name) {
            return self.after(50 * MS, Event::ClientUp { link, epoch });
        }
        let connection = self.gateways[i].router.handle_link_up(NodeId(node.0));
        let now = self.now;
        if let Some(stream) = self.clients.get_mut(&link) {
            (stream.up, stream.last, stream.connection) = (true, [now; 2], connection);
            stream.dialing = false;
        }
        self.dispatch(i);
    }

    fn send_client(&mut self, link: ClientLink, connection: u64, pg: PgId, request: ClientRequest) {
        let (i, to) = link;
        let (blocked, now) = (self.is_blocked(GATEWAY + i as u32, to.0), self.now);
        let mut delay = self.delay();
        if self.slow && self.rng.chance(3) {
            delay += 1_200 * MS;
        }
        let Some(stream) = self.clients.get_mut(&link).filter(|s| s.up && s.connection == connection) else { return };
        if let Some(at) = stream.arrival(0, now + delay, blocked) {
            let epoch = stream.epoch;
            self.at(at, Event::Client { to, pg, over: Some((link, epoch)), request });
        }
    }

    /// A request reaches a node.
    pub fn client(&mut self, to: DiskId, pg: PgId, over: Option<(ClientLink, u64)>, mut request: ClientRequest) {
        let asker = match over {
            None => Asker::Reader { id: request.id },
            Some((link, epoch)) => {
                // What was read from a link before it broke may come to the replica after what a newer link brought (R6).
                let current = self.clients.get(&link).is_some_and(|s| s.up && s.epoch == epoch);
                if !current && !self.rng.chance(300) {
                    return;
                }
                self.coverage.add("late requests of broken links", u64::from(!current));
                let open = matches!(request.op, ClientOp::Open);
                Asker::Gateway { link, epoch, id: request.id, open: open.then_some(pg) }
            }
        };
        let Some(node) = self.nodes.get(&to).filter(|n| n.up) else {
            if let Asker::Reader { .. } = asker {
                self.at(self.now + MS, Event::Reply { asker, reply: ClientReply::NotPrimary });
            }
            return;
        };
        let Some(replica) = node.replicas.get(&pg) else {
            self.next_request += 1;
            self.requests.insert(self.next_request, asker);
            return self.reply(to, self.next_request, ClientReply::NotPrimary);
        };
        if self.is(Canary::UncommittedRead)
            && replica.is_serving()
            && let ClientOp::Read { chunk, offset, len } = &request.op
        {
            let data = node.disk.peek(*chunk, *offset, *len);
            self.next_request += 1;
            self.requests.insert(self.next_request, asker);
            return self.reply(to, self.next_request, ClientReply::Data(data));
        }
        self.next_request += 1;
        request.id = self.next_request;
        self.requests.insert(request.id, asker);
        if self.is(Canary::FenceIgnored) && request.incarnation > 0 {
            request.incarnation = 1;
        }
        if self.is(Canary::ConnectionIgnored) && request.incarnation > 0 {
            request.connection = 1;
        }
        self.feed(to, pg, Input::Client(request));
    }

    pub fn reply(&mut self, from: DiskId, request: u64, reply: ClientReply) {
        let Some(asker) = self.requests.remove(&request) else { return };
        let (delay, now) = (self.delay(), self.now);
        let Asker::Gateway { link, epoch, .. } = asker else {
            return self.after(delay, Event::Reply { asker, reply });
        };
        let blocked = self.is_blocked(from.0, GATEWAY + link.0 as u32);
        let Some(stream) = self.clients.get_mut(&link).filter(|s| s.up && s.epoch == epoch) else { return };
        if let Some(at) = stream.arrival(1, now + delay, blocked) {
            self.at(at, Event::Reply { asker, reply });
        }
    }

    /// The gateway sees the end of a link; so does the node, some time.
    pub fn client_down(&mut self, link: ClientLink, epoch: u64) {
        let Some(stream) = self.clients.get_mut(&link).filter(|s| s.epoch == epoch && s.up) else { return };
        stream.up = false;
        let connection = stream.connection;
        self.coverage.add("gateway links broken", 1);
        let delay = self.delay() + self.rng.below(2) * self.rng.below(2_000) * MS;
        let incarnation = self.gateways[link.0].incarnation;
        self.after(delay, Event::ClientGone { to: link.1, incarnation, connection });
        self.gateways[link.0].router.handle_link_down(NodeId(link.1.0), connection);
        self.dispatch(link.0);
    }

    pub fn break_client(&mut self, link: ClientLink) {
        let Some(epoch) = self.clients.get(&link).filter(|s| s.up).map(|s| s.epoch) else { return };
        let delay = self.delay();
        self.after(delay, Event::ClientDown { link, epoch });
    }

    pub fn answer(&mut self, asker: Asker, reply: ClientReply) {
        let (link, epoch, id, open) = match asker {
            Asker::Reader { id } => return self.read_answered(id, &reply),
            Asker::Gateway { link, epoch, id, open } => (link, epoch, id, open),
        };
        let i = link.0;
        if !self.gateways[i].alive || self.clients.get(&link).is_none_or(|s| !s.up || s.epoch != epoch) {
            return;
        }
        let forgets = self.is(Canary::ReplayForgotten);
        let reply = match reply {
            ClientReply::Done { .. } if forgets => ClientReply::Done { durability_epoch: 1 },
            other => other,
        };
        if let (Some(pg), ClientReply::Done { durability_epoch }) = (open, &reply) {
            self.gateways[i].let_in(pg, *durability_epoch);
            // Whoever had the volume before is fenced for good once every PG has let this one in.
            for j in 0..if self.gateways[i].is_in() { i } else { 0 } {
                self.gateway_fenced(j);
            }
        }
        self.gateways[i].router.handle_reply(id, reply);
        self.dispatch(i);
    }
}
