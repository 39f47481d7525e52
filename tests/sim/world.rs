//! A whole cluster in one thread: its parts, its clock, and what is about to happen.
//!
//! The other files add what the parts do: [`crate::replicas`], [`crate::network`], [`crate::leases`],
//! [`crate::control`], [`crate::clients`], [`crate::faults`], [`crate::finish`].

use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;
use std::time::Duration;

use evenkeel::core::cluster::{ClusterMap, PgConfig, Replica as Member, ResyncClass};
use evenkeel::core::ids::{BootId, DiskId, Generation, PgId};
use evenkeel::core::manager::Proposed;
use evenkeel::core::manager::runtime::Limits;
use evenkeel::core::replica::{Action, ClientReply, ClientRequest, DiskOp, Env, Input, PeerMessage, Replica, Token};
use evenkeel::core::units::Instant;

use crate::canary::Canary;
use crate::clients::{Asker, ClientLink, Reader};
use crate::coord::{Coordinator, Down, Peer, Setup, Up};
use crate::disk::{Covered, Disk};
use crate::gateway::Gateway;
use crate::leases::{Grant, Hold};
use crate::model::Model;
use crate::network::{Conn, SessionKey, Stream};
use crate::rng::Rng;

pub const MS: u64 = 1_000_000;
pub const COORDINATOR: u32 = 1_000;
pub const GATEWAY: u32 = 2_000;

/// A node tells so often that it has accepted a configuration.
const ACCEPTED_TOLD: u32 = 3;

pub enum Event {
    Peer {
        conn: Conn,
        epoch: u64,
        from: DiskId,
        to: DiskId,
        pg: PgId,
        message: PeerMessage,
    },
    ConnUp {
        conn: Conn,
        epoch: u64,
    },
    SessionUp {
        key: SessionKey,
        epoch: u64,
    },
    SessionEnd {
        key: SessionKey,
        epoch: u64,
        to: DiskId,
    },
    Disk {
        node: DiskId,
        life: u64,
        pg: PgId,
        token: Token,
        op: Option<DiskOp>,
        covered: Covered,
    },
    Tick,
    Housekeeping {
        node: DiskId,
        life: u64,
    },
    Stats {
        node: DiskId,
        life: u64,
    },
    LeaseAsk {
        from: DiskId,
        to: DiskId,
        life: u64,
        entries: Vec<(PgId, Generation)>,
        asked: u64,
    },
    LeaseAnswer {
        from: DiskId,
        to: DiskId,
        life: u64,
        entries: Vec<(PgId, Generation)>,
        asked: u64,
    },
    CoordinatorTick,
    Dial {
        peer: Peer,
        life: u64,
    },
    Beat {
        peer: Peer,
        conn: u64,
    },
    Up {
        peer: Peer,
        conn: u64,
        message: Up,
    },
    Down {
        peer: Peer,
        conn: u64,
        message: Down,
    },
    /// The coordinator sees the end of a link.
    Closed {
        conn: u64,
        by_process: bool,
    },
    /// A peer sees it.
    ControlDown {
        peer: Peer,
        conn: u64,
    },
    ClientUp {
        link: ClientLink,
        epoch: u64,
    },
    /// A gateway's link has ended, or has been silent for too long.
    ClientDown {
        link: ClientLink,
        epoch: u64,
    },
    Client {
        to: DiskId,
        pg: PgId,
        /// The gateway's link and its epoch; `None`: the reader.
        over: Option<(ClientLink, u64)>,
        request: ClientRequest,
    },
    ClientGone {
        to: DiskId,
        incarnation: u64,
        connection: u64,
    },
    Reply {
        asker: Asker,
        reply: ClientReply,
    },
    Fault,
    Start {
        node: DiskId,
        clean: bool,
    },
    Unblock {
        from: u32,
        to: u32,
    },
    Thaw {
        node: DiskId,
    },
    NotFull {
        node: DiskId,
    },
    CoordinatorUp,
    PowerLoss,
    Undrain {
        node: DiskId,
    },
}

struct Scheduled {
    at: u64,
    order: u64,
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}
impl Eq for Scheduled {}
impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}

pub struct Node {
    pub disk: Disk,
    pub up: bool,
    pub replicas: BTreeMap<PgId, Replica>,
    /// Rises with each start and stop: what was under way in an earlier life is void.
    pub life: u64,
    pub frozen: bool,
    /// Its disk answers nothing before this.
    pub hangs_until: u64,
    pub hangs_since: u64,
    pub drift_ppm: i64,
    pub started: u64,
    pub grants: BTreeMap<PgId, Grant>,
    pub holds: BTreeMap<PgId, Hold>,
    pub heard: BTreeMap<DiskId, u64>,
    pub reachable: BTreeMap<DiskId, bool>,
    pub map: Arc<ClusterMap>,
    /// What peers said of PGs that the disk doesn't know, before there was a map.
    pub early: Vec<(Conn, u64, DiskId, PgId, PeerMessage)>,
    /// Proposals without an answer.
    pub proposals: BTreeMap<u64, Proposed>,
    /// The coordinator doesn't know yet what is served here now.
    pub serving_changed: bool,
    /// PGs whose configuration was just accepted, and how often the coordinator is still told.
    pub accepted: BTreeMap<PgId, u32>,
    /// What the flush before this one covered, for a canary.
    pub covered_before: Covered,
}

impl Node {
    pub fn new(disk: Disk, drift_ppm: i64) -> Self {
        Node {
            disk,
            up: false,
            replicas: BTreeMap::new(),
            life: 0,
            frozen: false,
            hangs_until: 0,
            hangs_since: 0,
            drift_ppm,
            started: 0,
            grants: BTreeMap::new(),
            holds: BTreeMap::new(),
            heard: BTreeMap::new(),
            reachable: BTreeMap::new(),
            map: Arc::default(),
            early: Vec::new(),
            proposals: BTreeMap::new(),
            serving_changed: false,
            accepted: BTreeMap::new(),
            covered_before: Covered::new(),
        }
    }

    /// This host's monotonic clock.
    pub fn local(&self, now: u64) -> u64 {
        local(now, self.drift_ppm)
    }

    /// It runs and is not stopped.
    pub fn is_awake(&self) -> bool {
        self.up && !self.frozen
    }
}

/// A host's monotonic clock.
pub fn local(now: u64, drift_ppm: i64) -> u64 {
    (now + 1_000_000 * MS).wrapping_add_signed(now as i64 / 1_000_000 * drift_ppm)
}

struct SimEnv<'a> {
    hold: Option<&'a Hold>,
    rng: &'a mut Rng,
    lease_ignored: bool,
    starved: bool,
}

impl Env for SimEnv<'_> {
    fn lease_until(&self, config: &PgConfig, me: DiskId) -> Instant {
        if self.lease_ignored {
            return Instant(u64::MAX);
        }
        let Some((_, until)) = self.hold.filter(|(generation, _)| *generation == config.generation) else {
            return Instant(0);
        };
        let others = config.members.iter().map(|m| m.disk).filter(|d| *d != me);
        Instant(others.map(|d| until.get(&d).copied().unwrap_or(0)).min().unwrap_or(u64::MAX))
    }

    fn take_resync_tokens(&mut self, _: ResyncClass, _: u64) -> bool {
        !self.starved || self.rng.chance(300)
    }

    fn random(&mut self) -> u64 {
        self.rng.next() | 1
    }
}

/// What happened in a run.
#[derive(Default, Clone)]
pub struct Coverage(pub BTreeMap<&'static str, u64>);

impl Coverage {
    pub fn add(&mut self, what: &'static str, n: u64) {
        *self.0.entry(what).or_default() += n;
    }
}

pub struct Options {
    pub seed: u64,
    pub canary: Option<Canary>,
    pub trace: bool,
}

pub struct World {
    pub now: u64,
    pub order: u64,
    queue: BinaryHeap<Scheduled>,
    pub rng: Rng,
    pub nodes: BTreeMap<DiskId, Node>,
    /// The volume's PGs, over which its chunks cycle.
    pub layout: Vec<PgId>,
    pub replicas: usize,
    pub min_replicas: usize,
    pub conns: BTreeMap<Conn, Stream>,
    pub sessions: BTreeMap<SessionKey, Stream>,
    pub clients: BTreeMap<ClientLink, Stream>,
    pub controls: BTreeMap<Peer, Stream>,
    pub blocked: BTreeSet<(u32, u32)>,
    /// Links that stay cut to the end (R8).
    pub cut_for_good: Option<(u32, u32)>,
    /// What came for frozen nodes.
    backlog: BTreeMap<DiskId, Vec<Event>>,
    pub coordinator: Coordinator,
    pub coordinator_drift_ppm: i64,
    /// What came for a coordinator that stands still, and since when it does.
    pub coordinator_frozen: Option<(u64, Vec<Event>)>,
    /// As the coordinator recorded them last.
    pub configs: BTreeMap<PgId, PgConfig>,
    pub gateways: Vec<Gateway>,
    /// Who waits for each request that a node has.
    pub requests: BTreeMap<u64, Asker>,
    pub next_request: u64,
    pub model: Model,
    canary: Option<Canary>,
    pub trace: bool,
    pub faults_until: u64,
    pub slow: bool,
    pub lossy_parts: u64,
    pub rots: u64,
    /// A disk has lost what it knew of a PG: once a run is enough.
    pub records_damaged: bool,
    /// Nodes that have not joined yet.
    pub spare_nodes: u32,
    pub coverage: Coverage,
    pub failure: Option<String>,
    pub reader: Reader,
}

impl World {
    pub fn new(options: &Options) -> Self {
        let mut rng = Rng::new(options.seed);
        let replicas = if rng.chance(250) { 2 } else { 3 };
        let count = replicas + rng.below(3);
        let min_replicas = if replicas == 3 && rng.chance(700) { 2 } else { 1 };
        let pgs = [1, 1, 2, 2, 3][rng.below(5) as usize];
        let mut limits = Limits::default();
        if rng.chance(400) {
            // Less than a lease: safety must not depend on it.
            limits.down_after = Duration::from_millis(rng.range(300, 600));
            // Above the interval of heartbeats, else everybody is suspected all the time.
            limits.suspect_after = Duration::from_millis(220);
        }
        if rng.chance(500) {
            limits.settle = Duration::from_millis(rng.range(300, 1_500));
        }
        let setup = Setup {
            nodes: count as u32,
            pgs,
            replicas: replicas as u32,
            min_replicas: min_replicas as u32,
            grace_seconds: rng.range(5, 40) as f64 / 10.0,
            debounce_seconds: rng.range(2, 15) as f64 / 10.0,
            limits,
            canary: options.canary,
        };
        let boots: BTreeMap<DiskId, BootId> = (1..=count as u32).map(|i| (DiskId(i), BootId(rng.next() | 1))).collect();
        // It has run for a while: nobody waits for it to settle.
        let coordinator_drift_ppm = rng.range(0, 10_000) as i64 - 5_000;
        let since = local(0, coordinator_drift_ppm) - limits.settle.as_nanos() as u64 + 200 * MS;
        let member = |disk| Member { disk, boot: boots[&disk] };
        let coordinator = Coordinator::new(&setup, member, Instant(since)).expect("the first map");
        let layout = coordinator.layout();
        let mut nodes = BTreeMap::new();
        for (id, boot) in &boots {
            let drift = rng.range(0, 10_000) as i64 - 5_000;
            nodes.insert(*id, Node::new(Disk::new(*boot, layout.clone()), drift));
        }
        let faults_until = rng.range(4, 14) * 1_000 * MS;
        let (slow, lossy_parts) = (rng.chance(300), if rng.chance(300) { 3 } else { 0 });
        let configs = coordinator.map().pgs.clone();
        let mut world = World {
            now: 0,
            order: 0,
            queue: BinaryHeap::new(),
            spare_nodes: u32::from(rng.chance(300)),
            rng,
            nodes,
            layout,
            replicas: replicas as usize,
            min_replicas: min_replicas as usize,
            conns: BTreeMap::new(),
            sessions: BTreeMap::new(),
            clients: BTreeMap::new(),
            controls: BTreeMap::new(),
            blocked: BTreeSet::new(),
            cut_for_good: None,
            backlog: BTreeMap::new(),
            coordinator,
            coordinator_drift_ppm,
            coordinator_frozen: None,
            configs,
            gateways: Vec::new(),
            requests: BTreeMap::new(),
            next_request: 0,
            model: Model::default(),
            canary: options.canary,
            trace: options.trace,
            faults_until,
            slow,
            lossy_parts,
            rots: 0,
            records_damaged: false,
            coverage: Coverage::default(),
            failure: None,
            reader: Reader::default(),
        };
        let ids: Vec<DiskId> = world.nodes.keys().copied().collect();
        for id in &ids {
            world.start(*id, true);
        }
        world.new_gateway("g0".into(), false);
        world.at(5 * MS, Event::Tick);
        world.at(50 * MS, Event::CoordinatorTick);
        let first = world.rng.range(300, 1_500) * MS;
        world.at(first, Event::Fault);
        world
    }

    pub fn is(&self, canary: Canary) -> bool {
        self.canary == Some(canary)
    }

    pub fn canary(&self) -> Option<Canary> {
        self.canary
    }

    pub fn pg_of(&self, chunk: u32) -> PgId {
        self.layout[chunk as usize % self.layout.len()]
    }

    pub fn at(&mut self, at: u64, event: Event) {
        self.order += 1;
        self.queue.push(Scheduled { at: at.max(self.now), order: self.order, event });
    }

    pub fn after(&mut self, delay: u64, event: Event) {
        self.at(self.now + delay, event);
    }

    pub fn log(&self, text: impl FnOnce() -> String) {
        if self.trace {
            println!("{:>10.3} ms  {}", self.now as f64 / MS as f64, text());
        }
    }

    pub fn fail(&mut self, text: String) {
        if self.failure.is_none() {
            self.log(|| format!("FAILURE {text}"));
            self.failure = Some(text);
        }
    }

    pub fn delay(&mut self) -> u64 {
        match self.rng.below(100) {
            0..90 => self.rng.range(50_000, 400_000),
            90..99 => self.rng.range(400_000, 5 * MS),
            _ if self.slow => self.rng.range(5 * MS, 300 * MS),
            _ => self.rng.range(MS, 20 * MS),
        }
    }

    pub fn ids(&self) -> Vec<DiskId> {
        self.nodes.keys().copied().collect()
    }

    /// Takes events out of the queue.
    pub fn take_events(&mut self, mut wanted: impl FnMut(&Event) -> bool) -> Vec<Event> {
        let (mut taken, mut rest) = (Vec::new(), Vec::new());
        for next in std::mem::take(&mut self.queue).into_sorted_vec().into_iter().rev() {
            if wanted(&next.event) {
                taken.push(next.event);
            } else {
                rest.push(next);
            }
        }
        self.queue = rest.into();
        taken
    }

    pub fn step(&mut self) {
        let Some(next) = self.queue.pop() else { return };
        self.now = self.now.max(next.at);
        if let Some(node) = self.frozen_target(&next.event) {
            // A stopped process finds it all, in order, when it goes on.
            return self.backlog.entry(node).or_default().push(next.event);
        }
        let to_coordinator = matches!(next.event, Event::Up { .. } | Event::Closed { .. });
        if to_coordinator && let Some((_, backlog)) = &mut self.coordinator_frozen {
            return backlog.push(next.event);
        }
        self.event(next.event);
    }

    pub fn thaw(&mut self, node: DiskId) {
        if let Some(n) = self.nodes.get_mut(&node) {
            n.frozen = false;
        }
        for event in self.backlog.remove(&node).unwrap_or_default() {
            self.at(self.now, event);
        }
    }

    fn frozen_target(&self, event: &Event) -> Option<DiskId> {
        let node = match event {
            Event::Peer { to, .. } | Event::LeaseAsk { to, .. } | Event::LeaseAnswer { to, .. } => *to,
            Event::Disk { node, .. } | Event::Housekeeping { node, .. } | Event::Stats { node, .. } => *node,
            Event::Dial { peer: Peer::Node(node), .. }
            | Event::Beat { peer: Peer::Node(node), .. }
            | Event::Down { peer: Peer::Node(node), .. }
            | Event::ControlDown { peer: Peer::Node(node), .. } => *node,
            Event::Client { to, .. } | Event::ClientGone { to, .. } => *to,
            Event::ConnUp { conn, .. } => conn.0,
            Event::SessionUp { key, .. } => key.1.0,
            Event::SessionEnd { to, .. } => *to,
            _ => return None,
        };
        self.nodes.get(&node).is_some_and(|n| n.frozen).then_some(node)
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Peer { conn, epoch, from, to, pg, message } => self.deliver(conn, epoch, from, to, pg, message),
            Event::ConnUp { conn, epoch } => self.conn_up(conn, epoch),
            Event::SessionUp { key, epoch } => self.session_up(key, epoch),
            Event::SessionEnd { key, epoch, to } => self.session_end(key, epoch, to),
            Event::Disk { node, life, pg, token, op, covered } => self.disk_done(node, life, pg, token, op, covered),
            Event::Tick => self.tick(),
            Event::Housekeeping { node, life } => self.housekeeping(node, life),
            Event::Stats { node, life } => self.stats(node, life),
            Event::LeaseAsk { from, to, life, entries, asked } => self.lease_ask(from, to, life, &entries, asked),
            Event::LeaseAnswer { from, to, life, entries, asked } => {
                self.lease_answer(from, to, life, &entries, asked);
            }
            Event::CoordinatorTick => self.coordinator_tick(),
            Event::Dial { peer, life } => self.dial_coordinator(peer, life),
            Event::Beat { peer, conn } => self.beat(peer, conn),
            Event::Up { peer, conn, message } => self.up(peer, conn, message),
            Event::Down { peer, conn, message } => self.down(peer, conn, message),
            Event::Closed { conn, by_process } => self.control_closed(conn, by_process),
            Event::ControlDown { peer, conn } => self.control_down(peer, conn),
            Event::ClientUp { link, epoch } => self.client_up(link, epoch),
            Event::ClientDown { link, epoch } => self.client_down(link, epoch),
            Event::Client { to, pg, over, request } => self.client(to, pg, over, request),
            Event::ClientGone { to, incarnation, connection } => self.client_gone(to, incarnation, connection),
            Event::Reply { asker, reply } => self.answer(asker, reply),
            Event::Fault => self.fault(),
            Event::Start { node, clean } => self.start(node, clean),
            Event::Unblock { from, to } => self.unblock(from, to),
            Event::Thaw { node } => {
                self.thaw(node);
                self.log(|| format!("{node} goes on"));
            }
            Event::NotFull { node } => {
                if let Some(n) = self.nodes.get_mut(&node) {
                    n.disk.full = false;
                }
            }
            Event::CoordinatorUp => self.coordinator_goes_on(),
            Event::Undrain { node } => self.undrain(node),
            Event::PowerLoss => self.power_loss(),
        }
    }

    /// Gives an input to a replica and carries out what it wants.
    pub fn feed(&mut self, id: DiskId, pg: PgId, input: Input) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let now = Instant(node.local(self.now));
        let Some(replica) = node.replicas.get_mut(&pg) else { return };
        if self.trace && !matches!(input, Input::Tick) {
            println!("{:>10.3} ms  {id}/{} <- {}", self.now as f64 / MS as f64, pg.index, crate::show::input(&input));
        }
        let mut env = SimEnv {
            hold: node.holds.get(&pg),
            rng: &mut self.rng,
            lease_ignored: self.canary == Some(Canary::LeaseIgnored),
            starved: self.slow,
        };
        let served = replica.is_serving();
        let before = (replica.is_outside(), replica.config().generation);
        let actions = replica.handle(input, now, &mut env);
        let serves = replica.is_serving();
        node.serving_changed |= serves != served;
        if !replica.is_outside() && before != (false, replica.config().generation) {
            node.accepted.insert(pg, ACCEPTED_TOLD);
            node.serving_changed = true;
        }
        if serves && !served {
            let (complete, config) = (replica.state().complete, replica.config().clone());
            self.log(|| format!("{id} serves {}", crate::show::config(&config)));
            self.coverage.add("activations", 1);
            if !complete {
                self.fail(format!("{id} serves although it is incomplete (I5)"));
            }
        }
        for action in actions {
            self.act(id, pg, action);
        }
    }

    fn act(&mut self, id: DiskId, pg: PgId, action: Action) {
        match action {
            Action::Reply { request, reply } => self.reply(id, request, reply),
            Action::Send { to, message } => {
                self.log(|| format!("{id}/{} -> {to}: {}", pg.index, crate::show::clip(&format!("{message:?}"))));
                self.send(id, to, pg, message);
            }
            Action::Disk { token, op } => self.disk_op(id, pg, token, op),
            Action::Propose { proposal, base, change } => self.propose(id, pg, proposal, base, &change),
            Action::AcceptGeneration { config } => {
                let at = self.accept(id, &config);
                self.feed(id, pg, Input::GrantsEnd { generation: config.generation, at: Instant(at) });
            }
            Action::OpenSession { learner } => self.open_session((pg, (id, learner.disk))),
            Action::CloseSession { learner } => self.close_session(pg, id, learner),
            Action::VolumeDropped(_) => {}
        }
    }

    fn tick(&mut self) {
        self.after(5 * MS, Event::Tick);
        for id in self.ids() {
            let clean = self.rng.chance(4);
            let Some(n) = self.nodes.get_mut(&id) else { continue };
            if clean {
                n.disk.clean();
            }
            let needs = |n: &Node| n.replicas.iter().filter(|(_, r)| r.needs_ticks()).map(|(pg, _)| *pg).collect();
            let ready: Vec<PgId> = if n.is_awake() { needs(n) } else { Vec::new() };
            ready.into_iter().for_each(|pg| self.feed(id, pg, Input::Tick));
        }
        self.read();
        for i in 0..self.gateways.len() {
            self.gateways[i].tick(self.now, &mut self.model, &mut self.rng);
            if self.gateways[i].take_release(self.now, &mut self.model) {
                self.release(i);
            }
            self.take_over_at_last(i);
            self.dispatch(i);
        }
    }
}
