//! A gateway's side of replication: carries a volume's requests to the primaries of its PGs, through failovers.
//!
//! Call order: feed [`Router::handle_map`], [`Router::submit`], [`Router::flush`], [`Router::handle_link_up`],
//! [`Router::handle_link_down`], [`Router::handle_reply`] and, every few tens of milliseconds, [`Router::handle_tick`];
//! after each of them carry out what [`Router::take_actions`] gives, in that order. A link is a FIFO stream: what is
//! sent on it first arrives first.
//!
//! Invariants:
//! - A request waits until its PG has a primary that answers; it is sent again whenever the link breaks, the primary
//!   changes or says that it isn't one. It never fails for want of a replica (I8).
//! - Each link has a connection number above all earlier ones, and a PG is opened on it before IO goes there (R6, R14),
//!   so that what an earlier attempt left behind can't overwrite what came later.
//! - A FLUSH goes to every PG with an acked write that no finished FLUSH covers; the first ones to all PGs, as an
//!   earlier gateway may have left something (R12).
//! - Acked writes are kept until a FLUSH covers them, and their newest values sent again, before anything else, when a
//!   PG's durability epoch shows that it may have lost them (R13).
//! - What is kept is bounded: past [`UNFLUSHED_BYTES_MAX`] a FLUSH is made in the background, past twice as much new
//!   writes wait for it.
//!
//! ```text
//!            something waits, its link is up      let in           the epoch is as before
//!    Closed ────────────────────────────▶ Opening ──────▶ ──┬──────────────────────────────▶ Open
//!      ▲                                                    └── another epoch ──▶ Replaying ──┘ all replayed
//!      └── link down · not the primary · another primary ──────────────────────────────────────┘
//! ```

mod flush;
mod replay;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::cluster::ClusterMap;
use super::ids::{DiskId, NodeId, PgId, VolumeId};
use super::replica::{ClientOp, ClientReply, ClientRequest};
use flush::Flush;

/// Acked writes kept until a FLUSH covers them; past it a FLUSH is made in the background.
pub const UNFLUSHED_BYTES_MAX: usize = 64 << 20;
/// Past this new writes wait until a FLUSH has made room.
const UNFLUSHED_BYTES_HARD: usize = 2 * UNFLUSHED_BYTES_MAX;
/// A small write is copied out of its receive buffer, so that it doesn't keep the whole of it.
const COPY_BELOW_BYTES: usize = 64 << 10;
/// What an operation costs besides its data.
const OVERHEAD_BYTES: usize = 128;

/// The caller's handle of a request.
pub type Token = u64;

/// What the driver is to do.
#[derive(Debug)]
pub enum Action {
    /// Make a link to this node, trying for as long as [`Router::wants`] it.
    Dial(NodeId),
    /// Send on the link of this number; if it is gone, drop it: `handle_link_down` puts it back.
    Send {
        /// The link's node.
        node: NodeId,
        /// The link's number.
        connection: u64,
        /// The request's PG.
        pg: PgId,
        /// The disk that leads it.
        disk: DiskId,
        /// What.
        request: ClientRequest,
    },
    /// The request is done.
    Answer {
        /// Which.
        token: Token,
        /// How.
        reply: ClientReply,
    },
    /// A PG restarted whole: these many acked writes are sent again.
    Replaying {
        /// Which.
        pg: PgId,
        /// Writes.
        writes: usize,
    },
    /// A higher incarnation has the volume: nothing more is sent.
    Fenced,
    /// A FLUSH has failed because an acked write could not be sent again (R13).
    LossTold,
}

/// On whose behalf an operation is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    Client(Token),
    /// A part of this FLUSH.
    Flush(u64),
    /// An acked write, again.
    Replay,
    Open,
}

#[derive(Debug)]
struct Waiting {
    order: u64,
    op: ClientOp,
    origin: Origin,
}

#[derive(Debug)]
struct InFlight {
    pg: PgId,
    node: NodeId,
    waiting: Waiting,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Closed,
    Opening,
    Replaying,
    Open,
}

#[derive(Debug)]
struct Route {
    disk: DiskId,
    node: NodeId,
    phase: Phase,
    /// The link on which it was opened.
    connection: u64,
    /// As of the last time it was open, with everything replayed.
    durability_epoch: Option<u64>,
    /// The epoch that the replay will have brought it to.
    replaying_to: u64,
    replays: usize,
    waiting: VecDeque<Waiting>,
    /// Acked and not covered by a FLUSH, in the order of the acks.
    unflushed: VecDeque<(u64, ClientOp)>,
    /// Order of the last acked write that is stable only by a FLUSH (R12).
    written: Option<u64>,
}

/// Routes one volume's requests.
#[derive(Debug)]
pub struct Router {
    volume: VolumeId,
    incarnation: u64,
    fenced: bool,
    next_id: u64,
    next_order: u64,
    next_connection: u64,
    links: BTreeMap<NodeId, u64>,
    dialing: BTreeSet<NodeId>,
    routes: BTreeMap<PgId, Route>,
    inflight: BTreeMap<u64, InFlight>,
    flushes: BTreeMap<u64, Flush>,
    unflushed_bytes: usize,
    /// Writes that wait for room.
    held: VecDeque<(Token, PgId, ClientOp)>,
    flushed_all: bool,
    background: bool,
    tell_loss: bool,
    actions: Vec<Action>,
}

impl Router {
    /// A router for a volume that has been granted at `incarnation` (0: for reading alone).
    pub fn new(volume: VolumeId, incarnation: u64) -> Self {
        Router {
            volume,
            incarnation,
            fenced: false,
            next_id: 1,
            next_order: 1,
            next_connection: 1,
            links: BTreeMap::new(),
            dialing: BTreeSet::new(),
            routes: BTreeMap::new(),
            inflight: BTreeMap::new(),
            flushes: BTreeMap::new(),
            unflushed_bytes: 0,
            held: VecDeque::new(),
            flushed_all: false,
            background: false,
            tell_loss: false,
            actions: Vec::new(),
        }
    }

    /// What is to be done since the last call.
    pub fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// True once a higher incarnation has the volume.
    pub fn is_fenced(&self) -> bool {
        self.fenced
    }

    /// True if a link to this node is of use.
    pub fn wants(&self, node: NodeId) -> bool {
        !self.fenced && self.routes.values().any(|r| r.node == node)
    }

    /// The request of this id, as it was sent, still waits for its answer.
    pub fn is_in_flight(&self, id: u64) -> bool {
        self.inflight.contains_key(&id)
    }

    /// Nothing waits and nothing is under way.
    pub fn is_idle(&self) -> bool {
        self.inflight.is_empty() && self.held.is_empty() && self.routes.values().all(|r| r.waiting.is_empty())
    }

    /// What an earlier gateway acked may be lost, with that gateway and all copies: the next FLUSH fails once (R13).
    pub fn tell_loss(&mut self) {
        self.tell_loss = true;
    }

    /// The sum of the volume's durability epochs in this map, if nothing that was acked is lost up to them: no PG that may
    /// have lost something is still to get it again, and no loss is still to be told.
    pub fn settled(&self, map: &ClusterMap) -> Option<u64> {
        let volume = map.volumes.get(&self.volume)?;
        let settled = |pg: PgId| {
            let epoch = map.pgs.get(&pg).map(|c| c.durability_epoch);
            self.routes
                .get(&pg)
                .is_none_or(|r| r.unflushed.is_empty() || (r.durability_epoch == epoch && r.phase == Phase::Open))
        };
        (!self.tell_loss && volume.pgs().all(settled)).then(|| volume.durability_in(map))
    }

    /// Follows the map: requests go to the primaries that it names.
    pub fn handle_map(&mut self, map: &ClusterMap) {
        let pgs: Vec<PgId> = map.volumes.get(&self.volume).map(|v| v.pgs().collect()).unwrap_or_default();
        for pg in pgs {
            let Some(primary) = map.pgs.get(&pg).and_then(|c| c.primary()) else { continue };
            let Some(node) = map.disks.get(&primary.disk).map(|d| d.node) else { continue };
            let route = self.routes.entry(pg).or_insert_with(|| Route {
                disk: primary.disk,
                node,
                phase: Phase::Closed,
                connection: 0,
                durability_epoch: None,
                replaying_to: 0,
                replays: 0,
                waiting: VecDeque::new(),
                unflushed: VecDeque::new(),
                written: None,
            });
            if route.disk != primary.disk {
                (route.disk, route.node, route.phase) = (primary.disk, node, Phase::Closed);
                self.requeue(|f| f.pg == pg);
            }
        }
        self.pump_all();
    }

    /// Takes one operation on a PG; its answer comes when it is done, however long that takes. For FLUSH see
    /// [`Router::flush`].
    pub fn submit(&mut self, token: Token, pg: PgId, op: ClientOp) {
        if self.fenced {
            return self.actions.push(Action::Answer { token, reply: ClientReply::Fenced });
        }
        if !self.routes.contains_key(&pg) {
            return self.actions.push(Action::Answer { token, reply: ClientReply::IoError });
        }
        let changes = matches!(op, ClientOp::Write { .. } | ClientOp::Zero { .. });
        if changes && (self.unflushed_bytes >= UNFLUSHED_BYTES_HARD || !self.held.is_empty()) {
            return self.held.push_back((token, pg, op));
        }
        self.enqueue(pg, op, Origin::Client(token));
    }

    /// A link to the node is up; gives its number, with which its end is told.
    pub fn handle_link_up(&mut self, node: NodeId) -> u64 {
        let connection = self.next_connection;
        self.next_connection += 1;
        self.dialing.remove(&node);
        self.links.insert(node, connection);
        self.reset_node(node);
        self.pump_all();
        connection
    }

    /// The link ended: what was on it waits again.
    pub fn handle_link_down(&mut self, node: NodeId, connection: u64) {
        if self.links.get(&node) == Some(&connection) {
            self.links.remove(&node);
            self.reset_node(node);
        }
        self.pump_all();
    }

    /// The driver no longer dials the node, as nothing wanted it.
    pub fn handle_dial_ended(&mut self, node: NodeId) {
        self.dialing.remove(&node);
        self.pump_all();
    }

    /// Another gateway has the volume: everything that waits is refused.
    pub fn fence(&mut self) {
        if std::mem::replace(&mut self.fenced, true) {
            return;
        }
        let mut tokens: Vec<Token> = self.held.drain(..).map(|h| h.0).collect();
        let waiting = self.routes.values_mut().flat_map(|r| r.waiting.drain(..));
        let inflight = std::mem::take(&mut self.inflight).into_values().map(|f| f.waiting);
        tokens.extend(waiting.chain(inflight).filter_map(|w| match w.origin {
            Origin::Client(token) => Some(token),
            _ => None,
        }));
        tokens.extend(std::mem::take(&mut self.flushes).into_values().filter_map(|f| f.token));
        for token in tokens {
            self.actions.push(Action::Answer { token, reply: ClientReply::Fenced });
        }
        self.actions.push(Action::Fenced);
    }

    /// Time passes: PGs whose primary refused are tried again.
    pub fn handle_tick(&mut self) {
        self.pump_all();
    }

    /// A primary's answer.
    pub fn handle_reply(&mut self, id: u64, reply: ClientReply) {
        let Some(InFlight { pg, waiting, .. }) = self.inflight.remove(&id) else { return };
        let Some(route) = self.routes.get_mut(&pg) else { return };
        if waiting.origin == Origin::Open {
            return self.opened(pg, &reply);
        }
        if waiting.origin == Origin::Replay {
            match reply {
                ClientReply::Fenced => return self.fence(),
                ClientReply::Done { durability_epoch } if durability_epoch == route.replaying_to => self.replayed(pg),
                // Part of a block that no replica has right: it can't be written again, which the next FLUSH says.
                ClientReply::IoError => {
                    self.tell_loss = true;
                    self.replayed(pg);
                }
                // The epoch stays unknown, so the next time that it is let in all is sent again.
                _ => route.phase = Phase::Closed,
            }
            return;
        }
        match reply {
            ClientReply::NotPrimary | ClientReply::NotOpen => {
                if route.phase != Phase::Opening {
                    route.phase = Phase::Closed;
                }
                insert_in_order(&mut route.waiting, waiting);
            }
            ClientReply::Done { durability_epoch } if route.durability_epoch != Some(durability_epoch) => {
                // The PG lost its memory under an open link: replay first, then all that was under way again.
                route.phase = Phase::Closed;
                insert_in_order(&mut route.waiting, waiting);
                self.requeue(|f| f.pg == pg);
                self.pump(pg);
            }
            ClientReply::Fenced => {
                if let Origin::Client(token) = waiting.origin {
                    self.actions.push(Action::Answer { token, reply });
                }
                self.fence();
            }
            reply => self.done(pg, waiting, reply),
        }
    }

    /// One replayed write less to wait for.
    fn replayed(&mut self, pg: PgId) {
        let Some(route) = self.routes.get_mut(&pg) else { return };
        route.replays = route.replays.saturating_sub(1);
        if route.replays == 0 && route.phase == Phase::Replaying {
            route.phase = Phase::Open;
            route.durability_epoch = Some(route.replaying_to);
            self.pump(pg);
        }
    }

    fn done(&mut self, pg: PgId, waiting: Waiting, reply: ClientReply) {
        match waiting.origin {
            Origin::Client(token) => {
                if matches!(reply, ClientReply::Done { .. }) {
                    self.remember(pg, &waiting.op);
                }
                self.actions.push(Action::Answer { token, reply });
                self.flush_in_background();
            }
            Origin::Flush(flush) if matches!(reply, ClientReply::Done { .. }) => self.flushed(pg, flush),
            Origin::Flush(flush) => {
                // What it should have covered is still to be covered by the next.
                let failed = self.flushes.remove(&flush);
                self.background &= failed.as_ref().is_none_or(|f| f.token.is_some());
                if let Some(token) = failed.and_then(|f| f.token) {
                    self.actions.push(Action::Answer { token, reply });
                }
            }
            Origin::Replay | Origin::Open => {}
        }
    }

    // ---- routes ----

    fn enqueue(&mut self, pg: PgId, op: ClientOp, origin: Origin) {
        let order = self.next_order;
        self.next_order += 1;
        if let Some(route) = self.routes.get_mut(&pg) {
            route.waiting.push_back(Waiting { order, op, origin });
            self.pump(pg);
        }
    }

    fn pump_all(&mut self) {
        let pgs: Vec<PgId> = self.routes.iter().filter(|(_, r)| r.is_due()).map(|(pg, _)| *pg).collect();
        for pg in pgs {
            self.pump(pg);
        }
    }

    /// Sends what can be sent for a PG; dials or opens first if need be.
    fn pump(&mut self, pg: PgId) {
        if self.fenced {
            return;
        }
        let Some(route) = self.routes.get_mut(&pg) else { return };
        let node = route.node;
        let Some(connection) = self.links.get(&node).copied() else {
            if route.is_due() && self.dialing.insert(node) {
                self.actions.push(Action::Dial(node));
            }
            return;
        };
        match route.phase {
            Phase::Closed if route.is_due() => {
                route.phase = Phase::Opening;
                route.connection = connection;
                self.send(pg, Waiting { order: 0, op: ClientOp::Open, origin: Origin::Open });
            }
            Phase::Open => {
                for waiting in std::mem::take(&mut route.waiting) {
                    self.send(pg, waiting);
                }
            }
            Phase::Closed | Phase::Opening | Phase::Replaying => {}
        }
    }

    fn opened(&mut self, pg: PgId, reply: &ClientReply) {
        let Some(route) = self.routes.get_mut(&pg) else { return };
        match reply {
            ClientReply::Done { durability_epoch } => {
                let lost = route.durability_epoch != Some(*durability_epoch) && !route.unflushed.is_empty();
                if !lost {
                    route.durability_epoch = Some(*durability_epoch);
                    route.phase = Phase::Open;
                    return self.pump(pg);
                }
                route.phase = Phase::Replaying;
                route.durability_epoch = None;
                route.replaying_to = *durability_epoch;
                let replays = replay::newest(route.unflushed.iter().map(|(_, op)| op));
                route.replays = replays.len();
                self.actions.push(Action::Replaying { pg, writes: replays.len() });
                for op in replays {
                    self.send(pg, Waiting { order: 0, op, origin: Origin::Replay });
                }
            }
            ClientReply::Fenced => self.fence(),
            // Not the primary (yet): the next tick or map looks again.
            _ => route.phase = Phase::Closed,
        }
    }

    /// Everything that went to the node by an earlier link waits again.
    fn reset_node(&mut self, node: NodeId) {
        for route in self.routes.values_mut().filter(|r| r.node == node) {
            route.phase = Phase::Closed;
        }
        self.requeue(|f| f.node == node);
    }

    /// Puts what is in flight back to wait, in its order. Opens and replays begin anew with the next link.
    fn requeue(&mut self, which: impl Fn(&InFlight) -> bool) {
        let ids: Vec<u64> = self.inflight.iter().filter(|(_, f)| which(f)).map(|(id, _)| *id).collect();
        for id in ids {
            let Some(InFlight { pg, waiting, .. }) = self.inflight.remove(&id) else { continue };
            if matches!(waiting.origin, Origin::Client(_) | Origin::Flush(_))
                && let Some(route) = self.routes.get_mut(&pg)
            {
                insert_in_order(&mut route.waiting, waiting);
            }
        }
    }

    fn send(&mut self, pg: PgId, waiting: Waiting) {
        let Some(route) = self.routes.get(&pg) else { return };
        let (disk, node, connection) = (route.disk, route.node, route.connection);
        let id = self.next_id;
        self.next_id += 1;
        let request = ClientRequest {
            id,
            volume: self.volume,
            incarnation: self.incarnation,
            connection,
            op: waiting.op.clone(),
        };
        self.inflight.insert(id, InFlight { pg, node, waiting });
        self.actions.push(Action::Send { node, connection, pg, disk, request });
    }
}

impl Route {
    /// It has something to send, or to send again.
    fn is_due(&self) -> bool {
        !self.waiting.is_empty() || (self.durability_epoch.is_none() && !self.unflushed.is_empty())
    }
}

fn size(op: &ClientOp) -> usize {
    match op {
        ClientOp::Write { data, leaves, .. } => data.len() + leaves.len() * 32 + OVERHEAD_BYTES,
        _ => OVERHEAD_BYTES,
    }
}

fn insert_in_order(queue: &mut VecDeque<Waiting>, waiting: Waiting) {
    let at = queue.partition_point(|w| w.order < waiting.order);
    queue.insert(at, waiting);
}
