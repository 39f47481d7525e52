//! One PG's whole cluster in one thread: nodes, network, leases, coordinator, gateways, faults.

use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use evenkeel::core::cluster::{
    ClusterMap, Disk as DiskRecord, DiskAdminState, Node as NodeRecord, NodeAdminState, PgConfig, Replica as Member,
    ResyncClass, Stripe, Volume,
};
use evenkeel::core::hashtree::HOLE;
use evenkeel::core::ids::{BootId, DiskId, Generation, NodeId, PgId, PoolId};
use evenkeel::core::replica::{
    Action, Change, ClientOp, ClientReply, ClientRequest, DiskOp, DiskResult, Env, Input, Operation, PeerMessage,
    Replica, SessionMessage, Token,
};
use evenkeel::core::router::Action as RouterAction;
use evenkeel::core::units::{BLOCK_BYTES, Instant};

use crate::coord::{Coordinator, Heard};
use crate::disk::{Block, Disk};
use crate::gateway::{Gateway, VOLUME};
use crate::model::Model;
use crate::rng::Rng;

pub const MS: u64 = 1_000_000;
const LEASE_NS: u64 = 600 * MS;
const RENEWAL_NS: u64 = 150 * MS;
/// Clocks drift by up to 0.5 % each, so 1 % against each other.
const DRIFT_MARGIN_NS: u64 = 6 * MS;
const UNREACHABLE_NS: u64 = 500 * MS;
const COORDINATOR: u32 = 1_000;
const GATEWAY: u32 = 2_000;
pub const PG: PgId = PgId { pool: PoolId(1), index: 0 };

/// A rule that the simulator breaks, so that the checkers can be seen to catch it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Canary {
    AckBeforeSecondaryHasIt,
    PromoteBeforeComplete,
    FlushOnPrimaryAlone,
    LeaseIgnored,
    GrantNotWaitedFor,
    FenceIgnored,
    ForwardDropped,
    ConfigNotPersisted,
    ReconcileSkipped,
    BootIdKept,
    ReplayForgotten,
    MinimumIgnored,
    ConnectionIgnored,
    FenceNotForwarded,
    FailedFsyncIgnored,
    WindowOffByOne,
    LeavesNotVerified,
}

impl Canary {
    /// The harm needs a coincidence that an ordinary run seldom meets: a failover within a lease, under a reader that
    /// stays behind; a range that the old primary and one member alone have; a learner that leads before any other member
    /// told it of a fence, as all do when it collects.
    pub fn is_rare(self) -> bool {
        matches!(self, Canary::GrantNotWaitedFor | Canary::ReconcileSkipped | Canary::FenceNotForwarded)
    }

    pub const ALL: [(Canary, &'static str); 17] = [
        (Canary::AckBeforeSecondaryHasIt, "R9 ack before a secondary has it"),
        (Canary::PromoteBeforeComplete, "R16 promote before complete"),
        (Canary::FlushOnPrimaryAlone, "R12 flush on the primary alone"),
        (Canary::LeaseIgnored, "R7 lease ignored"),
        (Canary::GrantNotWaitedFor, "R7 a new primary doesn't wait out its grant"),
        (Canary::FenceIgnored, "R14 fence ignored"),
        (Canary::ForwardDropped, "R17 forwarded write dropped"),
        (Canary::ConfigNotPersisted, "R3 configuration accepted without being persisted"),
        (Canary::ReconcileSkipped, "uncommitted ranges not reconciled"),
        (Canary::BootIdKept, "R1 boot id kept over a crash"),
        (Canary::ReplayForgotten, "R13 durability epoch ignored"),
        (Canary::MinimumIgnored, "R5 a configuration below min_replicas"),
        (Canary::ConnectionIgnored, "R6 connection numbers ignored"),
        (Canary::FenceNotForwarded, "R14 learners don't receive fences"),
        (Canary::FailedFsyncIgnored, "R15 a failed fsync counts as done"),
        (Canary::WindowOffByOne, "R17 a window's last block isn't copied"),
        (Canary::LeavesNotVerified, "R24 a block is served without being verified"),
    ];
}

type Conn = (DiskId, DiskId);

/// A gateway's link to a node.
type ClientLink = (usize, DiskId);

/// Who waits for a node's answer.
#[derive(Clone, Copy)]
enum Asker {
    Gateway { link: ClientLink, epoch: u64, id: u64, open: bool },
    Reader { id: u64 },
}

enum Event {
    Peer {
        conn: Conn,
        epoch: u64,
        from: DiskId,
        to: DiskId,
        message: PeerMessage,
    },
    ConnUp {
        conn: Conn,
        epoch: u64,
    },
    SessionUp {
        conn: Conn,
        epoch: u64,
    },
    SessionEnd {
        conn: Conn,
        epoch: u64,
        to: DiskId,
    },
    Disk {
        node: DiskId,
        life: u64,
        token: Token,
        op: Option<DiskOp>,
        covered: BTreeMap<evenkeel::core::ids::ChunkId, BTreeMap<u32, Block>>,
    },
    Tick,
    Lease {
        node: DiskId,
        life: u64,
    },
    LeaseAsk {
        from: DiskId,
        to: DiskId,
        life: u64,
        generation: Generation,
        asked: u64,
    },
    LeaseAnswer {
        from: DiskId,
        to: DiskId,
        life: u64,
        generation: Generation,
        asked: u64,
        granted: bool,
    },
    CoordinatorTick,
    Heartbeat {
        node: DiskId,
        life: u64,
    },
    Heard {
        node: DiskId,
        heard: Heard,
    },
    Map {
        node: DiskId,
        config: PgConfig,
    },
    GatewayMap {
        gateway: usize,
        config: PgConfig,
    },
    Propose {
        from: DiskId,
        life: u64,
        proposal: u64,
        base: Generation,
        change: Change,
    },
    Outcome {
        to: DiskId,
        life: u64,
        proposal: u64,
        accepted: bool,
        config: PgConfig,
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

#[derive(Clone, Copy)]
struct Grant {
    generation: Generation,
    primary: Option<DiskId>,
    until: u64,
}

struct Node {
    disk: Disk,
    replica: Option<Replica>,
    /// Rises with each start and stop: what was under way in an earlier life is void.
    life: u64,
    frozen: bool,
    drift_ppm: i64,
    started: u64,
    grant: Option<Grant>,
    hold: (Generation, BTreeMap<DiskId, u64>),
    heard: BTreeMap<DiskId, u64>,
    reachable: BTreeMap<DiskId, bool>,
    map: PgConfig,
}

impl Node {
    /// This host's monotonic clock.
    fn local(&self, now: u64) -> u64 {
        (now + 1_000_000 * MS).wrapping_add_signed(now as i64 / 1_000_000 * self.drift_ppm)
    }
}

/// Nothing arrives any more on this stream.
const STUCK: u64 = u64::MAX / 2;
/// A gateway's link that has been silent for so long has ended, within.
const CLIENT_IDLE_NS: [u64; 2] = [300 * MS, 3_000 * MS];

#[derive(Clone, Copy, Default)]
struct Stream {
    epoch: u64,
    up: bool,
    /// When the last message of each direction arrives: streams are FIFO.
    last: [u64; 2],
    /// A gateway's number of it.
    connection: u64,
}

struct SimEnv<'a> {
    hold: &'a (Generation, BTreeMap<DiskId, u64>),
    rng: &'a mut Rng,
    lease_ignored: bool,
    starved: bool,
}

impl Env for SimEnv<'_> {
    fn lease_until(&self, config: &PgConfig, me: DiskId) -> Instant {
        if self.lease_ignored {
            return Instant(u64::MAX);
        }
        if self.hold.0 != config.generation {
            return Instant(0);
        }
        let others = config.members.iter().map(|m| m.disk).filter(|d| *d != me);
        Instant(others.map(|d| self.hold.1.get(&d).copied().unwrap_or(0)).min().unwrap_or(u64::MAX))
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
    now: u64,
    order: u64,
    queue: BinaryHeap<Scheduled>,
    rng: Rng,
    nodes: BTreeMap<DiskId, Node>,
    conns: BTreeMap<Conn, Stream>,
    sessions: BTreeMap<Conn, Stream>,
    clients: BTreeMap<ClientLink, Stream>,
    blocked: BTreeSet<(u32, u32)>,
    /// What came for frozen nodes.
    backlog: BTreeMap<DiskId, Vec<Event>>,
    coordinator: Coordinator,
    gateways: Vec<Gateway>,
    /// Who waits for each request that a node has.
    requests: BTreeMap<u64, Asker>,
    next_request: u64,
    model: Model,
    canary: Option<Canary>,
    trace: bool,
    faults_until: u64,
    slow: bool,
    lossy_parts: u64,
    rots: u64,
    pub coverage: Coverage,
    failure: Option<String>,
    durability_epoch: u64,
    members_before: usize,
    recoveries_before: u64,
    reader: Reader,
}

/// Reads without attaching, and stays with its primary until that one refuses: it would see a primary that doesn't know
/// that it was replaced.
#[derive(Default)]
struct Reader {
    target: Option<DiskId>,
    request: Option<(u64, u64)>,
    next: u64,
}

/// Marks the reader's reads in the model.
const READER: u64 = 0xffff << 40;

/// The map as a gateway sees it: one node a disk, one volume on the one PG.
fn map_of(config: &PgConfig, disks: impl Iterator<Item = DiskId>) -> ClusterMap {
    let mut map = ClusterMap { epoch: 1, version: config.generation.n, ..ClusterMap::default() };
    for disk in disks {
        let id = NodeId(disk.0);
        let node = NodeRecord {
            id,
            name: format!("n{}", disk.0),
            addr: std::net::SocketAddr::from(([127, 0, 0, 1], 1)),
            admin_url: String::new(),
            zone: String::new(),
            rack: String::new(),
            release: String::new(),
            admin_state: NodeAdminState::Active,
        };
        map.nodes.insert(id, node);
        let (class, admin_state) = (String::new(), DiskAdminState::Active);
        map.disks.insert(disk, DiskRecord { id: disk, node: id, class, capacity_bytes: 1 << 40, admin_state });
    }
    let volume = Volume {
        id: VOLUME,
        name: "v".into(),
        pool: PG.pool,
        size_bytes: 1 << 30,
        stripes: vec![Stripe { first_chunk: 0, pgs: vec![PG.index] }],
        incarnation: 1,
        attached_to: String::new(),
        durability: 0,
        priority: 0,
        deleting: false,
    };
    map.volumes.insert(VOLUME, volume);
    map.pgs.insert(PG, config.clone());
    map
}

impl World {
    pub fn new(options: &Options) -> Self {
        let mut rng = Rng::new(options.seed);
        let replicas = if rng.chance(250) { 2 } else { 3 };
        let count = replicas + rng.below(3);
        let min_replicas = if replicas == 3 && rng.chance(700) { 2 } else { 1 };
        let mut nodes = BTreeMap::new();
        for i in 1..=count as u32 {
            let id = DiskId(i);
            let node = Node {
                disk: Disk::new(BootId(rng.next() | 1)),
                replica: None,
                life: 0,
                frozen: false,
                drift_ppm: rng.range(0, 10_000) as i64 - 5_000,
                started: 0,
                grant: None,
                hold: Default::default(),
                heard: BTreeMap::new(),
                reachable: BTreeMap::new(),
                map: PgConfig {
                    pg: PG,
                    generation: Generation::default(),
                    durability_epoch: 0,
                    members: Vec::new(),
                    learners: Vec::new(),
                    last_proposal: 0,
                    forced: false,
                    members_min: 0,
                },
            };
            nodes.insert(id, node);
        }
        let member = |i: u64| Member { disk: DiskId(i as u32), boot: nodes[&DiskId(i as u32)].disk.boot };
        let members: Vec<Member> = (1..=replicas).map(member).collect();
        let coordinator = Coordinator::new(PG, members, replicas as usize, min_replicas);
        let faults_until = rng.range(4, 14) * 1_000 * MS;
        let (slow, lossy_parts) = (rng.chance(300), if rng.chance(300) { 3 } else { 0 });
        let mut coordinator = coordinator;
        coordinator.no_minimum = options.canary == Some(Canary::MinimumIgnored);
        if rng.chance(400) {
            coordinator.dead_ns = rng.range(300, 600) * MS;
        }
        let mut world = World {
            now: 0,
            order: 0,
            queue: BinaryHeap::new(),
            rng,
            nodes,
            conns: BTreeMap::new(),
            sessions: BTreeMap::new(),
            clients: BTreeMap::new(),
            blocked: BTreeSet::new(),
            backlog: BTreeMap::new(),
            coordinator,
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
            coverage: Coverage::default(),
            failure: None,
            durability_epoch: 1,
            members_before: replicas as usize,
            recoveries_before: 0,
            reader: Reader::default(),
        };
        let ids: Vec<DiskId> = world.nodes.keys().copied().collect();
        for id in &ids {
            world.start(*id, true);
        }
        world.new_gateway();
        world.at(5 * MS, Event::Tick);
        world.at(100 * MS, Event::CoordinatorTick);
        let first = world.rng.range(300, 1_500) * MS;
        world.at(first, Event::Fault);
        world
    }

    fn is(&self, canary: Canary) -> bool {
        self.canary == Some(canary)
    }

    fn at(&mut self, at: u64, event: Event) {
        self.order += 1;
        self.queue.push(Scheduled { at: at.max(self.now), order: self.order, event });
    }

    fn after(&mut self, delay: u64, event: Event) {
        self.at(self.now + delay, event);
    }

    fn log(&self, text: impl FnOnce() -> String) {
        if self.trace {
            println!("{:>10.3} ms  {}", self.now as f64 / MS as f64, text());
        }
    }

    fn fail(&mut self, text: String) {
        if self.failure.is_none() {
            self.log(|| format!("FAILURE {text}"));
            self.failure = Some(text);
        }
    }

    fn delay(&mut self) -> u64 {
        match self.rng.below(100) {
            0..90 => self.rng.range(50_000, 400_000),
            90..99 => self.rng.range(400_000, 5 * MS),
            _ if self.slow => self.rng.range(5 * MS, 300 * MS),
            _ => self.rng.range(MS, 20 * MS),
        }
    }

    fn is_blocked(&self, from: u32, to: u32) -> bool {
        self.blocked.contains(&(from, to))
    }

    /// Runs to the end; `Err` says what went wrong.
    pub fn run(&mut self) -> Result<(), String> {
        while self.failure.is_none() && self.now < self.faults_until {
            self.step();
        }
        self.calm();
        let mut deadline = self.now + 60_000 * MS;
        while self.failure.is_none() && self.now < deadline {
            self.step();
            if self.order.is_multiple_of(64) && self.is_calm() {
                deadline = 0;
            }
        }
        // The only good copy of a block was lost to bit rot: nothing can make that whole.
        let lost = self.nodes.values().filter_map(|n| n.replica.as_ref()).any(|r| r.block_repairs().1 > 0);
        if self.failure.is_none() && deadline != 0 && (lost || self.rots > 0) {
            self.coverage.add("not whole after bit rot", 1);
            return Ok(());
        }
        // The same if the disk of every member failed.
        let config = &self.coordinator.config;
        let dead = |m: &Member| self.nodes.get(&m.disk).is_some_and(|n| n.disk.failed);
        if self.failure.is_none() && deadline != 0 && config.members.iter().all(dead) {
            self.coverage.add("all members' disks failed", 1);
            return Ok(());
        }
        // With one copy as the minimum, a member that died before it had accepted its first configuration may have been
        // the last: an operator must say which older copy is to be taken (force-promote).
        let incomplete =
            |m: &Member| self.nodes.get(&m.disk).and_then(|n| n.replica.as_ref()).is_some_and(|r| !r.state().complete);
        let single = self.coordinator.min_replicas == 1;
        if self.failure.is_none() && deadline != 0 && single && config.members.iter().all(incomplete) {
            self.coverage.add("operator must choose a copy", 1);
            return Ok(());
        }
        if self.failure.is_none() && deadline != 0 {
            let why = self.describe();
            self.fail(format!("no convergence within 60 s after the last fault (I7): {why}"));
        }
        if self.failure.is_none() {
            self.compare();
        }
        let c = &self.coordinator;
        let (failovers, removals, promotions, recoveries, moves) =
            (c.failovers, c.removals, c.promotions, c.recoveries, c.moves);
        self.coverage.add("failovers", failovers);
        self.coverage.add("removals", removals);
        self.coverage.add("promotions", promotions);
        self.coverage.add("whole-PG recoveries (R2)", recoveries);
        self.coverage.add("moves", moves);
        for g in &self.gateways {
            self.coverage.add("reads", g.reads);
            self.coverage.add("writes", g.writes);
            self.coverage.add("flushes", g.flushes);
            self.coverage.add("replays (R13)", g.replays);
            self.coverage.add("io errors", g.io_errors);
        }
        for n in self.nodes.values() {
            if let Some(r) = &n.replica {
                self.coverage.add("blocks repaired", r.block_repairs().0);
            }
        }
        self.failure.take().map_or(Ok(()), Err)
    }

    fn step(&mut self) {
        let Some(next) = self.queue.pop() else { return };
        self.now = self.now.max(next.at);
        if let Some(node) = self.frozen_target(&next.event) {
            // A stopped process finds it all, in order, when it goes on.
            return self.backlog.entry(node).or_default().push(next.event);
        }
        self.event(next.event);
    }

    fn thaw(&mut self, node: DiskId) {
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
            Event::Disk { node, .. } | Event::Lease { node, .. } | Event::Heartbeat { node, .. } => *node,
            Event::Map { node, .. } => *node,
            Event::Outcome { to, .. } | Event::Client { to, .. } | Event::ClientGone { to, .. } => *to,
            Event::ConnUp { conn, .. } | Event::SessionUp { conn, .. } => conn.0,
            Event::SessionEnd { to, .. } => *to,
            _ => return None,
        };
        self.nodes.get(&node).is_some_and(|n| n.frozen).then_some(node)
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Peer { conn, epoch, from, to, message } => self.deliver(conn, epoch, from, to, message),
            Event::ConnUp { conn, epoch } => self.conn_up(conn, epoch),
            Event::SessionUp { conn, epoch } => self.session_up(conn, epoch),
            Event::SessionEnd { conn, epoch, to } => self.session_end(conn, epoch, to),
            Event::Disk { node, life, token, op, covered } => self.disk_done(node, life, token, op, covered),
            Event::Tick => self.tick(),
            Event::Lease { node, life } => self.renew(node, life),
            Event::LeaseAsk { from, to, life, generation, asked } => self.lease_ask(from, to, life, generation, asked),
            Event::LeaseAnswer { from, to, life, generation, asked, granted } => {
                self.lease_answer(from, to, life, generation, asked, granted)
            }
            Event::CoordinatorTick => self.coordinator_tick(),
            Event::Heartbeat { node, life } => self.heartbeat(node, life),
            Event::Heard { node, heard } => {
                if self.coordinator.up {
                    self.coordinator.hear(node, heard);
                    self.tell(node);
                }
            }
            Event::Map { node, config } => {
                if let Some(n) = self.nodes.get_mut(&node)
                    && n.replica.is_some()
                    && (n.map.generation, n.map.durability_epoch) <= (config.generation, config.durability_epoch)
                {
                    n.map = config.clone();
                    self.feed(node, Input::Config(config));
                }
            }
            Event::GatewayMap { gateway, config } => {
                let map = map_of(&config, self.nodes.keys().copied());
                if let Some(g) = self.gateways.get_mut(gateway).filter(|g| g.map_seen <= config.generation) {
                    g.map_seen = config.generation;
                    g.router.handle_map(&map);
                }
                self.dispatch(gateway);
            }
            Event::Propose { from, life, proposal, base, change } => {
                if self.nodes.get(&from).is_none_or(|n| n.life != life) {
                    return;
                }
                if !self.coordinator.up || self.is_blocked(from.0, COORDINATOR) {
                    return self.after(300 * MS, Event::Propose { from, life, proposal, base, change });
                }
                let (accepted, config) = self.coordinator.propose(from, proposal, base, &change, self.now);
                self.log(|| {
                    format!("coordinator: {from} proposes {change:?} on {base}: {accepted}, now {}", show(&config))
                });
                if accepted {
                    self.check_config();
                    self.publish();
                }
                let delay = self.delay();
                if self.is_blocked(COORDINATOR, from.0) || self.rng.chance(20) {
                    // The answer is lost: it asks again.
                    return self.after(300 * MS, Event::Propose { from, life, proposal, base, change });
                }
                self.after(delay, Event::Outcome { to: from, life, proposal, accepted, config });
            }
            Event::Outcome { to, life, proposal, accepted, config } => {
                if self.nodes.get(&to).is_some_and(|n| n.life == life) {
                    self.feed(to, Input::Outcome { proposal, accepted, config: Some(config) });
                }
            }
            Event::ClientUp { link, epoch } => self.client_up(link, epoch),
            Event::ClientDown { link, epoch } => self.client_down(link, epoch),
            Event::Client { to, over, request } => self.client(to, over, request),
            Event::ClientGone { to, incarnation, connection } => {
                self.feed(to, Input::ClientGone { volume: VOLUME, incarnation, connection });
            }
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
            Event::CoordinatorUp => self.coordinator.up = true,
        }
    }

    // ---- replicas ----

    fn feed(&mut self, id: DiskId, input: Input) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let now = Instant(node.local(self.now));
        let Some(replica) = node.replica.as_mut() else { return };
        if self.trace && !matches!(input, Input::Tick) {
            println!("{:>10.3} ms  {id} <- {}", self.now as f64 / MS as f64, show_input(&input));
        }
        let mut env = SimEnv {
            hold: &node.hold,
            rng: &mut self.rng,
            lease_ignored: self.canary == Some(Canary::LeaseIgnored),
            starved: self.slow,
        };
        let serving = replica.is_serving();
        let actions = replica.handle(input, now, &mut env);
        let serves = replica.is_serving();
        if serves && !serving {
            let (complete, config) = (replica.state().complete, replica.config().clone());
            self.log(|| format!("{id} serves {}", show(&config)));
            self.coverage.add("activations", 1);
            if !complete {
                self.fail(format!("{id} serves although it is incomplete (I5)"));
            }
        }
        for action in actions {
            self.act(id, action);
        }
    }

    fn act(&mut self, id: DiskId, action: Action) {
        match action {
            Action::Reply { request, reply } => self.reply(id, request, reply),
            Action::Send { to, message } => self.send(id, to, message),
            Action::Disk { token, op } => self.disk_op(id, token, op),
            Action::Propose { proposal, base, change } => {
                let life = self.nodes.get(&id).map_or(0, |n| n.life);
                let delay = self.delay();
                self.after(delay, Event::Propose { from: id, life, proposal, base, change });
            }
            Action::AcceptGeneration { config } => {
                let at = self.accept(id, &config);
                self.feed(id, Input::GrantsEnd { generation: config.generation, at: Instant(at) });
            }
            Action::OpenSession { learner } => self.open_session((id, learner.disk)),
            Action::CloseSession { learner } => self.close_session(id, learner),
            Action::VolumeDropped(_) => {}
        }
    }

    /// From now on this node grants under this configuration alone; when its earlier grants end.
    fn accept(&mut self, id: DiskId, config: &PgConfig) -> u64 {
        let ignore = self.is(Canary::GrantNotWaitedFor);
        let Some(node) = self.nodes.get_mut(&id) else { return 0 };
        let local = node.local(self.now);
        let primary = config.primary().map(|p| p.disk).filter(|p| *p != id);
        let member = config.members.iter().any(|m| m.disk == id);
        let first = node.started + LEASE_NS;
        let ends = node.grant.map_or(first, |g| g.until.max(first));
        if node.grant.is_none_or(|g| g.generation <= config.generation) {
            node.grant =
                Some(Grant { generation: config.generation, primary: primary.filter(|_| member), until: ends });
        }
        if ignore { local } else { ends }
    }

    fn disk_op(&mut self, id: DiskId, token: Token, op: DiskOp) {
        let slow = self.slow;
        let delay = match self.rng.below(1_000) {
            0..900 => self.rng.range(20_000, 300_000),
            900..995 => self.rng.range(300_000, 4 * MS),
            _ if slow => self.rng.range(4 * MS, 900 * MS),
            _ => self.rng.range(4 * MS, 30 * MS),
        };
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let flush = matches!(op, DiskOp::Flush { .. });
        let covered = if flush { node.disk.snapshot_unsynced() } else { BTreeMap::new() };
        let life = node.life;
        self.after(delay, Event::Disk { node: id, life, token, op: Some(op), covered });
    }

    fn disk_done(
        &mut self,
        id: DiskId,
        life: u64,
        token: Token,
        op: Option<DiskOp>,
        covered: BTreeMap<evenkeel::core::ids::ChunkId, BTreeMap<u32, Block>>,
    ) {
        let now = self.now;
        let Some(node) = self.nodes.get_mut(&id) else { return };
        if node.life != life {
            return;
        }
        if node.disk.failed {
            return self.feed(id, Input::Disk { token, result: DiskResult::Failed("failed".into()) });
        }
        let Some(op) = op else {
            // The fdatasync behind a durable write.
            node.disk.synced(covered, 0);
            return self.feed(id, Input::Disk { token, result: DiskResult::Done });
        };
        if let DiskOp::Flush { mark } = op {
            node.disk.synced(covered, mark);
            return self.feed(id, Input::Disk { token, result: DiskResult::Done });
        }
        let durable = matches!(op, DiskOp::Apply { durable: true, .. });
        let result = node.disk.run(op);
        if durable && matches!(result, DiskResult::Done) {
            let covered = node.disk.snapshot_unsynced();
            let delay = self.rng.range(50_000, 2 * MS);
            return self.at(now + delay, Event::Disk { node: id, life, token, op: None, covered });
        }
        self.feed(id, Input::Disk { token, result });
    }

    // ---- network ----

    fn send(&mut self, from: DiskId, to: DiskId, message: PeerMessage) {
        if let PeerMessage::Session(inner) = &message {
            let conn = if self.sessions.get(&(from, to)).is_some_and(|s| s.up) { (from, to) } else { (to, from) };
            if self.is(Canary::ForwardDropped)
                && let SessionMessage::Forward { sequence, op, .. } = inner
                && !matches!(op, Operation::Fence { .. })
                && self.rng.chance(300)
            {
                let forged = PeerMessage::Session(SessionMessage::Forwarded { sequence: *sequence });
                return self.transmit(conn, true, to, from, forged);
            }
            if self.is(Canary::FenceNotForwarded)
                && let SessionMessage::Forward { sequence, op: Operation::Fence { .. }, .. } = inner
            {
                let forged = PeerMessage::Session(SessionMessage::Forwarded { sequence: *sequence });
                return self.transmit(conn, true, to, from, forged);
            }
            let message = match inner {
                SessionMessage::Copy { chunk, window, blocks, leaves, data } if self.is(Canary::WindowOffByOne) => {
                    let (mut leaves, mut data) = (leaves.clone(), data.clone());
                    if leaves.pop().is_some_and(|leaf| leaf != HOLE) {
                        data.truncate(data.len().saturating_sub(BLOCK_BYTES as usize));
                    }
                    let blocks = blocks & !(1u64.checked_shl(63 - blocks.leading_zeros()).unwrap_or(0));
                    let (chunk, window) = (*chunk, *window);
                    PeerMessage::Session(SessionMessage::Copy { chunk, window, blocks, leaves, data })
                }
                SessionMessage::Table { .. } if self.is(Canary::PromoteBeforeComplete) => {
                    // The learner claims to have what the primary has.
                    match self.nodes.get_mut(&to).map(|n| n.disk.run(DiskOp::Table)) {
                        Some(DiskResult::Table(entries)) => {
                            let entries = entries
                                .into_iter()
                                .map(|mut e| {
                                    e.unsure = false;
                                    e
                                })
                                .collect();
                            PeerMessage::Session(SessionMessage::Table { entries, last: true })
                        }
                        _ => message,
                    }
                }
                _ => message,
            };
            return self.transmit(conn, true, from, to, message);
        }
        let answer = matches!(
            message,
            PeerMessage::ConfigAccepted { .. }
                | PeerMessage::ConfigRefused { .. }
                | PeerMessage::Prepared { .. }
                | PeerMessage::Applied { .. }
                | PeerMessage::Rejected { .. }
                | PeerMessage::Flushed { .. }
                | PeerMessage::Fetched { .. }
        );
        let conn = if answer { (to, from) } else { (from, to) };
        match &message {
            PeerMessage::Replicate { generation, sequence, .. } if self.is(Canary::AckBeforeSecondaryHasIt) => {
                let forged = PeerMessage::Applied { generation: *generation, sequence: *sequence };
                self.transmit(conn, false, to, from, forged);
            }
            PeerMessage::Flush { generation, id, .. } if self.is(Canary::FlushOnPrimaryAlone) => {
                let forged = PeerMessage::Flushed { generation: *generation, id: *id };
                return self.transmit(conn, false, to, from, forged);
            }
            _ => {}
        }
        let message = match message {
            PeerMessage::ConfigAccepted { generation, last_sequence, fences, .. }
                if self.is(Canary::ReconcileSkipped) =>
            {
                PeerMessage::ConfigAccepted { generation, last_sequence, uncommitted: Vec::new(), fences }
            }
            other => other,
        };
        self.transmit(conn, false, from, to, message);
    }

    fn transmit(&mut self, conn: Conn, session: bool, from: DiskId, to: DiskId, message: PeerMessage) {
        let delay = self.delay();
        let blocked = self.is_blocked(from.0, to.0);
        let now = self.now;
        let table = if session { &mut self.sessions } else { &mut self.conns };
        let Some(stream) = table.get_mut(&conn).filter(|s| s.up) else { return };
        let direction = usize::from(from != conn.0);
        if blocked {
            // It never arrives; nor does anything behind it before the stream is made anew.
            stream.last[direction] = STUCK;
        }
        let at = (now + delay).max(stream.last[direction] + 1);
        if at >= STUCK {
            return;
        }
        stream.last[direction] = at;
        let epoch = stream.epoch;
        self.at(at, Event::Peer { conn, epoch, from, to, message });
    }

    fn deliver(&mut self, conn: Conn, epoch: u64, from: DiskId, to: DiskId, message: PeerMessage) {
        let session = matches!(message, PeerMessage::Session(_));
        let table = if session { &self.sessions } else { &self.conns };
        if !table.get(&conn).is_some_and(|s| s.up && s.epoch == epoch) {
            return;
        }
        if self.lossy_parts > 0 && self.rng.below(10_000) < self.lossy_parts {
            self.coverage.add("stream resets", 1);
            return if session { self.break_session(conn) } else { self.reset_conn(conn) };
        }
        if let Some(n) = self.nodes.get(&to) {
            // A node that hears of a PG for the first time makes a replica for it.
            if n.replica.is_none() {
                return;
            }
        }
        self.feed(to, Input::Peer { from, message });
    }

    fn reset_conn(&mut self, conn: Conn) {
        let stream = self.conns.entry(conn).or_default();
        stream.epoch += 1;
        stream.up = false;
        let epoch = stream.epoch;
        let delay = self.rng.range(1, 60) * MS;
        self.after(delay, Event::ConnUp { conn, epoch });
    }

    fn conn_up(&mut self, conn: Conn, epoch: u64) {
        let alive = |d: DiskId| self.nodes.get(&d).is_some_and(|n| n.replica.is_some() && !n.frozen);
        if self.conns.get(&conn).is_none_or(|s| s.epoch != epoch || s.up) {
            return;
        }
        let possible = alive(conn.0)
            && alive(conn.1)
            && !self.is_blocked(conn.0.0, conn.1.0)
            && !self.is_blocked(conn.1.0, conn.0.0);
        if !possible {
            return self.after(100 * MS, Event::ConnUp { conn, epoch });
        }
        if let Some(stream) = self.conns.get_mut(&conn) {
            stream.up = true;
            stream.last = [self.now; 2];
        }
        let to_other = self.nodes.get(&conn.0).and_then(|n| n.replica.as_ref()).map(Replica::others);
        if to_other.is_some_and(|o| o.contains(&conn.1)) {
            self.feed(conn.0, Input::LinkReset { disk: conn.1 });
        }
    }

    fn open_session(&mut self, conn: Conn) {
        let stream = self.sessions.entry(conn).or_default();
        stream.epoch += 1;
        stream.up = false;
        let epoch = stream.epoch;
        let delay = self.rng.range(1, 30) * MS;
        self.after(delay, Event::SessionUp { conn, epoch });
    }

    fn session_up(&mut self, conn: Conn, epoch: u64) {
        if self.sessions.get(&conn).is_none_or(|s| s.epoch != epoch || s.up) {
            return;
        }
        let alive = |d: DiskId| self.nodes.get(&d).is_some_and(|n| n.replica.is_some() && !n.frozen);
        if !alive(conn.0) {
            return;
        }
        let possible = alive(conn.1) && !self.is_blocked(conn.0.0, conn.1.0) && !self.is_blocked(conn.1.0, conn.0.0);
        if !possible {
            return self.after(100 * MS, Event::SessionUp { conn, epoch });
        }
        if let Some(stream) = self.sessions.get_mut(&conn) {
            stream.up = true;
            stream.last = [self.now; 2];
        }
        // What the learner still knows of an earlier stream ends first.
        self.feed(conn.1, Input::SessionDown { peer: conn.0 });
        self.coverage.add("sessions", 1);
        self.feed(conn.0, Input::SessionUp { learner: conn.1 });
    }

    /// Closed by one side: the other hears of it, perhaps after what is under way.
    fn close_session(&mut self, by: DiskId, peer: DiskId) {
        let up = |c: Conn| self.sessions.get(&c).is_some_and(|s| s.up);
        let conn = if up((peer, by)) { (peer, by) } else { (by, peer) };
        let Some(stream) = self.sessions.get_mut(&conn) else { return };
        let was_up = stream.up;
        stream.epoch += 1;
        stream.up = false;
        let epoch = stream.epoch;
        if was_up {
            let delay = self.delay();
            self.after(delay, Event::SessionEnd { conn, epoch, to: peer });
        }
    }

    fn session_end(&mut self, conn: Conn, epoch: u64, to: DiskId) {
        if self.sessions.get(&conn).is_some_and(|s| s.epoch == epoch) {
            let peer = if to == conn.0 { conn.1 } else { conn.0 };
            self.feed(to, Input::SessionDown { peer });
        }
    }

    fn break_session(&mut self, conn: Conn) {
        let Some(stream) = self.sessions.get_mut(&conn) else { return };
        if !stream.up {
            return;
        }
        stream.epoch += 1;
        stream.up = false;
        let epoch = stream.epoch;
        for to in [conn.0, conn.1] {
            let delay = self.delay();
            self.after(delay, Event::SessionEnd { conn, epoch, to });
        }
    }

    /// Every stream of a node ends.
    fn cut(&mut self, id: DiskId) {
        let conns: Vec<Conn> = self.conns.keys().copied().filter(|c| c.0 == id || c.1 == id).collect();
        for conn in conns {
            self.reset_conn(conn);
        }
        let sessions: Vec<Conn> = self.sessions.keys().copied().filter(|c| c.0 == id || c.1 == id).collect();
        for conn in sessions {
            self.break_session(conn);
        }
        let clients: Vec<ClientLink> = self.clients.keys().copied().filter(|l| l.1 == id).collect();
        clients.into_iter().for_each(|link| self.break_client(link));
    }

    // ---- leases ----

    fn renew(&mut self, id: DiskId, life: u64) {
        let Some(node) = self.nodes.get(&id) else { return };
        if node.life != life || node.replica.is_none() {
            return;
        }
        self.after(RENEWAL_NS, Event::Lease { node: id, life });
        let asked = self.nodes[&id].local(self.now);
        let replica = self.nodes[&id].replica.as_ref();
        let generation = replica.filter(|r| r.is_primary()).map(|r| r.config().generation).unwrap_or_default();
        let others: Vec<DiskId> = self.nodes.keys().copied().filter(|d| *d != id).collect();
        for to in others {
            if !self.is_blocked(id.0, to.0) && !self.rng.chance(10) {
                let delay = self.delay();
                self.after(delay, Event::LeaseAsk { from: id, to, life, generation, asked });
            }
        }
        // Who answers?
        let now = self.now;
        let peers: Vec<DiskId> = self.nodes.keys().copied().filter(|d| *d != id).collect();
        for peer in peers {
            let Some(node) = self.nodes.get_mut(&id) else { return };
            let heard = node.heard.get(&peer).copied().unwrap_or(now);
            node.heard.entry(peer).or_insert(now);
            let yes = now < heard + UNREACHABLE_NS;
            if node.reachable.insert(peer, yes).unwrap_or(true) != yes {
                self.feed(id, Input::Reachable { disk: peer, yes });
            }
        }
    }

    fn lease_ask(&mut self, from: DiskId, to: DiskId, life: u64, generation: Generation, asked: u64) {
        let now = self.now;
        let Some(node) = self.nodes.get_mut(&to) else { return };
        if node.replica.is_none() || node.disk.failed {
            return;
        }
        let until = node.local(now) + LEASE_NS;
        let granted = match &mut node.grant {
            Some(g) if g.generation == generation && g.primary == Some(from) => {
                g.until = g.until.max(until);
                true
            }
            _ => false,
        };
        if !self.is_blocked(to.0, from.0) && !self.rng.chance(10) {
            let delay = self.delay();
            self.after(delay, Event::LeaseAnswer { from: to, to: from, life, generation, asked, granted });
        }
    }

    fn lease_answer(&mut self, from: DiskId, to: DiskId, life: u64, generation: Generation, asked: u64, granted: bool) {
        let now = self.now;
        let Some(node) = self.nodes.get_mut(&to) else { return };
        if node.life != life {
            return;
        }
        node.heard.insert(from, now);
        if granted {
            if node.hold.0 < generation {
                node.hold = (generation, BTreeMap::new());
            }
            if node.hold.0 == generation {
                let until = node.hold.1.entry(from).or_default();
                *until = (*until).max(asked + LEASE_NS - DRIFT_MARGIN_NS);
            }
        }
    }

    // ---- the coordinator ----

    fn heartbeat(&mut self, id: DiskId, life: u64) {
        let Some(node) = self.nodes.get(&id) else { return };
        if node.life != life {
            return;
        }
        let Some(replica) = &node.replica else { return };
        let state = replica.state();
        let heard = Heard {
            boot: node.disk.boot,
            at: self.now,
            // As the disk says (R21): a learner that has everything in memory alone is no source after a restart.
            complete: node.disk.state.as_ref().is_some_and(|s| s.complete),
            generation: state.config.generation,
            mark: node.disk.mark,
            failed: node.disk.failed,
        };
        self.after(200 * MS, Event::Heartbeat { node: id, life });
        if !self.is_blocked(id.0, COORDINATOR) {
            let delay = self.delay();
            self.after(delay, Event::Heard { node: id, heard });
        }
    }

    fn tell(&mut self, node: DiskId) {
        if !self.is_blocked(COORDINATOR, node.0) {
            let config = self.coordinator.config.clone();
            let behind = self.nodes.get(&node).is_some_and(|n| n.map != config);
            if behind {
                let delay = self.delay();
                self.after(delay, Event::Map { node, config });
            }
        }
    }

    fn publish(&mut self) {
        let ids: Vec<DiskId> = self.nodes.keys().copied().collect();
        for id in ids {
            self.tell(id);
        }
        let config = self.coordinator.config.clone();
        for gateway in 0..self.gateways.len() {
            let behind = self.gateways[gateway].map_seen != config.generation;
            if behind && !self.is_blocked(COORDINATOR, GATEWAY + gateway as u32) {
                let delay = self.delay();
                self.after(delay, Event::GatewayMap { gateway, config: config.clone() });
            }
        }
    }

    fn coordinator_tick(&mut self) {
        self.after(100 * MS, Event::CoordinatorTick);
        if !self.coordinator.up {
            return;
        }
        let moves = self.now < self.faults_until && self.rng.chance(60);
        let changed = self.coordinator.tick(self.now, moves, &mut self.rng);
        if changed {
            self.log(|| format!("coordinator: {}", show(&self.coordinator.config)));
            self.check_config();
        }
        if self.coordinator.config.durability_epoch != self.durability_epoch {
            self.durability_epoch = self.coordinator.config.durability_epoch;
            self.model.power_lost();
        }
        self.publish();
    }

    /// What any recorded configuration must satisfy.
    fn check_config(&mut self) {
        let config = &self.coordinator.config;
        let disks: BTreeSet<DiskId> = config.members.iter().map(|m| m.disk).collect();
        if config.members.is_empty() || disks.len() != config.members.len() {
            let text = format!("the coordinator recorded {}", show(config));
            return self.fail(text);
        }
        // Only after a restart of all members is one enough (R2, R5).
        let fewer = config.members.len() < self.coordinator.min_replicas && config.members.len() < self.members_before;
        let recovered = self.coordinator.recoveries != self.recoveries_before;
        (self.members_before, self.recoveries_before) = (config.members.len(), self.coordinator.recoveries);
        if fewer && !recovered {
            let text = format!("{} is below min_replicas (R5)", show(&self.coordinator.config));
            self.fail(text);
        }
    }

    // ---- gateways ----

    fn new_gateway(&mut self) {
        self.coordinator.incarnation += 1;
        let map = map_of(&self.coordinator.config, self.nodes.keys().copied());
        let mut gateway = Gateway::new(self.gateways.len() as u32, self.coordinator.incarnation, &map);
        gateway.rotten = self.rots > 0;
        self.gateways.push(gateway);
        if self.gateways.len() > 1 {
            self.coverage.add("gateway take-overs", 1);
        }
    }

    fn tick(&mut self) {
        self.after(5 * MS, Event::Tick);
        let ids: Vec<DiskId> = self.nodes.keys().copied().collect();
        for id in ids {
            let (ready, clean) = match self.nodes.get(&id) {
                Some(n) => (n.replica.as_ref().is_some_and(Replica::needs_ticks) && !n.frozen, self.rng.chance(4)),
                None => (false, false),
            };
            if clean && let Some(n) = self.nodes.get_mut(&id) {
                n.disk.clean();
            }
            if ready {
                self.feed(id, Input::Tick);
            }
        }
        self.read();
        for i in 0..self.gateways.len() {
            self.gateways[i].tick(self.now, &mut self.model, &mut self.rng);
            self.dispatch(i);
        }
    }

    fn read(&mut self) {
        if let Some((id, since)) = self.reader.request {
            if self.now > since + 1_000 * MS {
                self.model.read_dropped(id);
                self.reader = Reader { next: self.reader.next, ..Reader::default() };
            }
            return;
        }
        let primary = self.coordinator.config.primary().map(|p| p.disk);
        let Some(to) = self.reader.target.or(primary).filter(|_| self.now < self.faults_until) else { return };
        self.reader.target = Some(to);
        self.reader.next += 1;
        let id = READER | self.reader.next;
        self.reader.request = Some((id, self.now));
        let (kind, op) = crate::gateway::some_read(&mut self.rng);
        self.model.read_starts(id, kind, true);
        let delay = self.delay();
        let request = ClientRequest { id, volume: VOLUME, incarnation: 0, connection: 1, op };
        self.after(delay, Event::Client { to, over: None, request });
    }

    fn read_answered(&mut self, id: u64, reply: &ClientReply) {
        if self.reader.request.take_if(|(mine, _)| *mine == id).is_none() {
            return;
        }
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
                self.reader.target = None;
            }
        }
    }

    /// Carries out what a gateway's router wants done.
    fn dispatch(&mut self, i: usize) {
        for action in self.gateways[i].router.take_actions() {
            match action {
                RouterAction::Dial(node) => self.dial((i, DiskId(node.0))),
                RouterAction::Send { node, connection, request, .. } => {
                    self.send_client((i, DiskId(node.0)), connection, request);
                }
                RouterAction::Answer { token, reply } => {
                    self.log(|| format!("gateway {i}: request {token} is done: {}", show_reply(&reply)));
                    if let Err(text) = self.gateways[i].answered(token, reply, &mut self.model) {
                        self.fail(text);
                    }
                }
                RouterAction::Replaying { writes, .. } => {
                    self.log(|| format!("gateway {i} sends {writes} writes again"));
                    self.gateways[i].replays += 1;
                }
                RouterAction::Fenced => self.gateways[i].alive = false,
                RouterAction::LossTold => {}
            }
        }
    }

    fn dial(&mut self, link: ClientLink) {
        let stream = self.clients.entry(link).or_default();
        stream.epoch += 1;
        let epoch = stream.epoch;
        let delay = self.rng.range(1, 20) * MS;
        self.after(delay, Event::ClientUp { link, epoch });
    }

    fn client_up(&mut self, link: ClientLink, epoch: u64) {
        let (i, node) = link;
        let name = GATEWAY + i as u32;
        if self.clients.get(&link).is_none_or(|s| s.epoch != epoch || s.up) || !self.gateways[i].alive {
            return;
        }
        if !self.gateways[i].router.wants(NodeId(node.0)) {
            self.gateways[i].router.handle_dial_ended(NodeId(node.0));
            return self.dispatch(i);
        }
        let alive = self.nodes.get(&node).is_some_and(|n| n.replica.is_some() && !n.frozen);
        if !alive || self.is_blocked(name, node.0) || self.is_blocked(node.0, name) {
            return self.after(50 * MS, Event::ClientUp { link, epoch });
        }
        let connection = self.gateways[i].router.handle_link_up(NodeId(node.0));
        let now = self.now;
        if let Some(stream) = self.clients.get_mut(&link) {
            (stream.up, stream.last, stream.connection) = (true, [now; 2], connection);
        }
        self.dispatch(i);
    }

    fn send_client(&mut self, link: ClientLink, connection: u64, request: ClientRequest) {
        let (i, to) = link;
        let (blocked, now) = (self.is_blocked(GATEWAY + i as u32, to.0), self.now);
        let mut delay = self.delay();
        if self.slow && self.rng.chance(3) {
            delay += 1_200 * MS;
        }
        let Some(stream) = self.clients.get_mut(&link).filter(|s| s.up && s.connection == connection) else { return };
        if blocked {
            stream.last[0] = STUCK;
        }
        let at = (now + delay).max(stream.last[0] + 1);
        if at < STUCK {
            stream.last[0] = at;
            let epoch = stream.epoch;
            self.at(at, Event::Client { to, over: Some((link, epoch)), request });
        }
    }

    /// A request reaches a node.
    fn client(&mut self, to: DiskId, over: Option<(ClientLink, u64)>, mut request: ClientRequest) {
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
                Asker::Gateway { link, epoch, id: request.id, open }
            }
        };
        if self.nodes.get(&to).is_none_or(|n| n.replica.is_none()) {
            if let Asker::Reader { .. } = asker {
                self.at(self.now + MS, Event::Reply { asker, reply: ClientReply::NotPrimary });
            }
            return;
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
        self.feed(to, Input::Client(request));
    }

    fn reply(&mut self, from: DiskId, request: u64, reply: ClientReply) {
        let Some(asker) = self.requests.remove(&request) else { return };
        let (delay, now) = (self.delay(), self.now);
        let Asker::Gateway { link, epoch, .. } = asker else {
            return self.after(delay, Event::Reply { asker, reply });
        };
        let blocked = self.is_blocked(from.0, GATEWAY + link.0 as u32);
        let Some(stream) = self.clients.get_mut(&link).filter(|s| s.up && s.epoch == epoch) else { return };
        if blocked {
            stream.last[1] = STUCK;
        }
        let at = (now + delay).max(stream.last[1] + 1);
        if at < STUCK {
            stream.last[1] = at;
            self.at(at, Event::Reply { asker, reply });
        }
    }

    /// The gateway sees the end of a link; so does the node, some time.
    fn client_down(&mut self, link: ClientLink, epoch: u64) {
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

    fn break_client(&mut self, link: ClientLink) {
        let Some(epoch) = self.clients.get(&link).filter(|s| s.up).map(|s| s.epoch) else { return };
        let delay = self.delay();
        self.after(delay, Event::ClientDown { link, epoch });
    }

    fn answer(&mut self, asker: Asker, reply: ClientReply) {
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
        if let (true, ClientReply::Done { durability_epoch }) = (open, &reply) {
            self.gateways[i].let_in(*durability_epoch);
            // Whoever had the volume before is fenced for good now.
            for j in 0..i {
                if self.gateways[j].fenced_at.is_none() {
                    self.gateways[j].fenced_at = Some(self.now);
                    self.gateways[j].lose(&mut self.model);
                }
            }
        }
        self.gateways[i].router.handle_reply(id, reply);
        self.dispatch(i);
    }

    // ---- faults ----

    fn start(&mut self, id: DiskId, clean: bool) {
        let boot = BootId(self.rng.next() | 1);
        let keep_boot = self.is(Canary::BootIdKept);
        let forget = self.is(Canary::ConfigNotPersisted);
        let unverified = self.is(Canary::LeavesNotVerified);
        let now = self.now;
        let Some(node) = self.nodes.get_mut(&id) else { return };
        if node.replica.is_some() {
            return;
        }
        if !clean {
            let boot = if keep_boot { node.disk.boot } else { boot };
            let torn = node.disk.crash(boot, &mut self.rng);
            self.coverage.add("torn blocks", torn);
        }
        node.disk.forget_records = forget;
        node.disk.unverified = unverified;
        node.life += 1;
        node.started = node.local(now);
        node.grant = None;
        node.hold = Default::default();
        node.heard.clear();
        node.reachable.clear();
        node.frozen = false;
        node.map.generation = Generation::default();
        node.map.durability_epoch = 0;
        let me = Member { disk: id, boot: node.disk.boot };
        node.replica = Some(Replica::new(PG, me, node.disk.state.clone()));
        let life = node.life;
        self.log(|| format!("{id} starts, {}, boot {}", if clean { "clean" } else { "after a crash" }, me.boot));
        let ids: Vec<DiskId> = self.nodes.keys().copied().filter(|d| *d != id).collect();
        for other in ids {
            for conn in [(id, other), (other, id)] {
                self.reset_conn(conn);
            }
        }
        self.after(MS, Event::Heartbeat { node: id, life });
        self.after(2 * MS, Event::Lease { node: id, life });
    }

    /// The process dies; unless `process_only`, the host's cache is lost too.
    fn crash(&mut self, id: DiskId, down_ns: u64) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        if node.replica.take().is_none() {
            return;
        }
        node.life += 1;
        self.thaw(id);
        self.log(|| format!("{id} crashes"));
        self.coverage.add("crashes", 1);
        self.cut(id);
        self.after(down_ns, Event::Start { node: id, clean: false });
    }

    fn stop_clean(&mut self, id: DiskId, down_ns: u64) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        if node.frozen || node.disk.failed {
            return;
        }
        let Some(replica) = node.replica.take() else { return };
        // What the disk has in its queue is done first, as its driver does.
        let mut rest = Vec::new();
        for next in std::mem::take(&mut self.queue).into_sorted_vec().into_iter().rev() {
            match next.event {
                Event::Disk { node: at, life, op: Some(op), .. } if at == id && life == node.life => {
                    drop(node.disk.run(op));
                }
                event => rest.push(Scheduled { event, ..next }),
            }
        }
        self.queue = rest.into();
        node.life += 1;
        let clean = node.disk.stop(replica.state());
        self.log(|| format!("{id} stops cleanly"));
        self.coverage.add("clean restarts", 1);
        self.cut(id);
        self.after(down_ns, Event::Start { node: id, clean });
    }

    fn block(&mut self, from: u32, to: u32, for_ns: u64) {
        if from == to {
            return;
        }
        self.blocked.insert((from, to));
        self.after(for_ns, Event::Unblock { from, to });
        // Streams notice after a while.
        let pair = |c: &Conn| (c.0.0 == from && c.1.0 == to) || (c.0.0 == to && c.1.0 == from);
        let conns: Vec<Conn> = self.conns.keys().copied().filter(pair).collect();
        for conn in conns {
            if let Some(s) = self.conns.get_mut(&conn) {
                s.last[usize::from(conn.0.0 != from)] = STUCK;
            }
        }
        let sessions: Vec<Conn> = self.sessions.keys().copied().filter(pair).collect();
        for conn in sessions {
            if let Some(s) = self.sessions.get_mut(&conn) {
                s.last[usize::from(conn.0.0 != from)] = STUCK;
            }
        }
        let mut silent = Vec::new();
        for (link, s) in self.clients.iter_mut().filter(|(_, s)| s.up) {
            let gateway = GATEWAY + link.0 as u32;
            if (gateway, link.1.0) == (from, to) || (link.1.0, gateway) == (from, to) {
                s.last[usize::from(gateway != from)] = STUCK;
                silent.push((*link, s.epoch));
            }
        }
        for (link, epoch) in silent {
            let idle = self.rng.range(CLIENT_IDLE_NS[0], CLIENT_IDLE_NS[1]);
            self.after(idle, Event::ClientDown { link, epoch });
        }
    }

    fn unblock(&mut self, from: u32, to: u32) {
        self.blocked.remove(&(from, to));
        let pair = |c: &Conn| (c.0.0 == from && c.1.0 == to) || (c.0.0 == to && c.1.0 == from);
        let conns: Vec<Conn> = self.conns.keys().copied().filter(pair).collect();
        for conn in conns {
            self.reset_conn(conn);
        }
        let sessions: Vec<Conn> = self.sessions.keys().copied().filter(pair).collect();
        for conn in sessions {
            self.break_session(conn);
        }
        let gateway = |l: &ClientLink| GATEWAY + l.0 as u32;
        let clients = self.clients.keys().copied();
        let clients: Vec<ClientLink> =
            clients.filter(|l| (gateway(l), l.1.0) == (from, to) || (l.1.0, gateway(l)) == (from, to)).collect();
        clients.into_iter().for_each(|link| self.break_client(link));
    }

    fn fault(&mut self) {
        if self.now >= self.faults_until {
            return;
        }
        let next = match self.rng.below(10) {
            0..3 => self.rng.range(1, 60),
            3..7 => self.rng.range(100, 800),
            _ => self.rng.range(800, 3_000),
        };
        self.after(next * MS, Event::Fault);
        let ids: Vec<DiskId> = self.nodes.keys().copied().collect();
        let mut target = self.rng.pick(&ids).copied().unwrap_or_default();
        if self.rng.chance(400)
            && let Some(primary) = self.coordinator.config.primary()
        {
            target = primary.disk;
        }
        let down = if self.rng.chance(500) { self.rng.range(5, 300) } else { self.rng.range(300, 4_000) } * MS;
        let other = self.rng.pick(&ids).copied().unwrap_or_default();
        match self.rng.below(100) {
            0..22 => self.crash(target, down),
            22..30 => self.stop_clean(target, down),
            30..35 => {
                self.coverage.add("power losses of all", 1);
                for id in ids {
                    let down = self.rng.range(5, 1_500) * MS;
                    self.crash(id, down);
                }
            }
            35..50 => {
                self.log(|| format!("links of {target} and {other} are reset"));
                for conn in [(target, other), (other, target)] {
                    if conn.0 != conn.1 && self.rng.chance(700) {
                        self.coverage.add("stream resets", 1);
                        self.reset_conn(conn);
                    }
                }
            }
            50..54 => {
                let up: Vec<ClientLink> = self.clients.iter().filter(|(_, s)| s.up).map(|(l, _)| *l).collect();
                if let Some(link) = self.rng.pick(&up).copied() {
                    self.log(|| format!("the link of gateway {} to {} breaks", link.0, link.1));
                    self.break_client(link);
                }
            }
            54..58 => {
                let up: Vec<Conn> = self.sessions.iter().filter(|(_, s)| s.up).map(|(c, _)| *c).collect();
                if let Some(conn) = self.rng.pick(&up).copied() {
                    self.log(|| format!("the session {} to {} breaks", conn.0, conn.1));
                    self.coverage.add("session breaks", 1);
                    self.break_session(conn);
                }
            }
            58..68 => {
                self.log(|| format!("{target} and {other} are cut off from each other"));
                self.coverage.add("partitions", 1);
                let one_way = self.rng.chance(400);
                self.block(target.0, other.0, down);
                if !one_way {
                    self.block(other.0, target.0, down);
                }
            }
            68..76 => {
                self.log(|| format!("{target} is cut off"));
                self.coverage.add("partitions", 1);
                let (coordinator, gateways) = (self.rng.chance(700), self.rng.chance(500));
                for id in ids {
                    self.block(target.0, id.0, down);
                    self.block(id.0, target.0, down);
                }
                if coordinator {
                    self.block(target.0, COORDINATOR, down);
                    self.block(COORDINATOR, target.0, down);
                }
                if gateways {
                    for g in 0..self.gateways.len() as u32 {
                        self.block(target.0, GATEWAY + g, down);
                        self.block(GATEWAY + g, target.0, down);
                    }
                }
            }
            76..82 => {
                if let Some(n) = self.nodes.get_mut(&target)
                    && n.replica.is_some()
                    && !n.frozen
                {
                    n.frozen = true;
                    self.log(|| format!("{target} freezes"));
                    self.coverage.add("freezes", 1);
                    self.after(down, Event::Thaw { node: target });
                }
            }
            82..88 => {
                if let Some(g) = self.gateways.last_mut() {
                    // The old one lives on, or not.
                    let dead = self.rng.chance(500);
                    if dead {
                        g.alive = false;
                        g.lose(&mut self.model);
                        g.fenced_at = Some(self.now);
                    }
                    let i = self.gateways.len() - 1;
                    let links: Vec<ClientLink> = self.clients.keys().copied().filter(|l| l.0 == i && dead).collect();
                    links.into_iter().for_each(|link| self.break_client(link));
                    self.log(|| {
                        format!("a gateway takes over, the old one {}", if dead { "is dead" } else { "lives" })
                    });
                    self.new_gateway();
                }
            }
            88..92 => {
                self.coordinator.up = false;
                self.coverage.add("coordinator down", 1);
                self.after(down, Event::CoordinatorUp);
            }
            92..95 => {
                if let Some(n) = self.nodes.get_mut(&target) {
                    n.disk.full = true;
                    self.coverage.add("disk full", 1);
                    self.after(down, Event::NotFull { node: target });
                }
            }
            95..98 => {
                // At most one copy of a block may be bad, else there is nothing to repair from.
                if self.rots == 0
                    && let Some(n) = self.nodes.get_mut(&target)
                    && n.disk.rot(&mut self.rng)
                {
                    self.rots += 1;
                    self.gateways.iter_mut().for_each(|g| g.rotten = true);
                    self.coverage.add("bit rot", 1);
                }
            }
            _ => {
                // A disk that fails stays out; as many as the placement needs must remain.
                let failed = self.nodes.values().filter(|n| n.disk.failed).count();
                let config = &self.coordinator.config;
                let ignored = self.is(Canary::FailedFsyncIgnored);
                let safe = config.members.len() >= self.coordinator.replicas
                    && self.nodes.len() - failed > self.coordinator.replicas
                    && config.learners.is_empty();
                if safe
                    && self.coordinator.replicas == 3
                    && let Some(n) = self.nodes.get_mut(&target)
                {
                    // The canary goes on as if the fsync could be tried again: the kernel has dropped what it did not write.
                    n.disk.loses_flushes = ignored;
                    n.disk.failed = !ignored;
                    self.log(|| format!("the disk of {target} fails"));
                    self.coverage.add("failed fsyncs", 1);
                }
            }
        }
    }

    /// Faults end: everything comes back.
    fn calm(&mut self) {
        if let Some((id, _)) = self.reader.request.take() {
            self.model.read_dropped(id);
        }
        self.log(|| "no more faults".into());
        self.lossy_parts = 0;
        self.slow = false;
        self.coordinator.up = true;
        for (from, to) in self.blocked.clone() {
            self.unblock(from, to);
        }
        let ids: Vec<DiskId> = self.nodes.keys().copied().collect();
        for id in ids {
            self.thaw(id);
            if let Some(node) = self.nodes.get_mut(&id) {
                node.disk.full = false;
            }
            if self.nodes.get(&id).is_some_and(|n| n.replica.is_none()) {
                self.start(id, false);
            }
        }
        for g in &mut self.gateways {
            g.busy = false;
        }
    }

    fn is_calm(&self) -> bool {
        let config = &self.coordinator.config;
        let failed = self.nodes.values().filter(|n| n.disk.failed).count();
        let wanted = self.coordinator.replicas.min(self.nodes.len() - failed);
        let Some(primary) = config.primary() else { return false };
        let serving = self.nodes.get(&primary.disk).and_then(|n| n.replica.as_ref()).is_some_and(|r| {
            r.is_serving() && r.config().generation == config.generation && r.sessions().next().is_none()
        });
        serving
            && config.learners.is_empty()
            && config.members.len() >= wanted
            && config.members.iter().all(|m| self.coordinator.is_live(*m, self.now))
            && self.gateways.last().is_some_and(|g| g.is_quiet() || !g.alive)
    }

    fn describe(&self) -> String {
        let mut text = show(&self.coordinator.config);
        for (id, n) in &self.nodes {
            if let Some(r) = &n.replica {
                let state = r.state();
                let serving = if r.is_serving() {
                    "serves"
                } else if r.is_primary() {
                    "leads"
                } else {
                    "follows"
                };
                text += &format!(
                    "; {id} {serving} {} {} seq {}",
                    show(r.config()),
                    if state.complete { "complete" } else { "incomplete" },
                    state.last_sequence
                );
                for s in r.sessions() {
                    text += &format!(" session to {} {}/{} ", s.learner, s.chunks_done, s.chunks_total);
                }
            }
        }
        text += &format!("; gateway {}", self.gateways.last().map_or(String::new(), Gateway::describe));
        text
    }

    /// All replicas are identical, and what clients read is what they wrote.
    fn compare(&mut self) {
        let i = self.gateways.len() - 1;
        for round in 0..2 {
            match round {
                0 => self.gateways[i].read_all(self.now, &mut self.model),
                _ => self.gateways[i].flush_all(self.now, &mut self.model),
            }
            self.dispatch(i);
            let deadline = self.now + 10_000 * MS;
            while self.failure.is_none() && self.now < deadline && !self.gateways[i].is_quiet() {
                self.step();
            }
            if self.failure.is_none() && !self.gateways[i].is_quiet() && self.gateways[i].alive {
                let why = self.describe();
                self.fail(format!("IO hangs although nothing is wrong any more (I8): {why}"));
            }
        }
        let until = self.now + 300 * MS;
        while self.failure.is_none() && self.now < until {
            self.step();
        }
        let members: Vec<DiskId> = self.coordinator.config.members.iter().map(|m| m.disk).collect();
        let Some(first) = members.first().copied() else { return };
        let view = |id: &DiskId| {
            self.nodes[id]
                .disk
                .chunks
                .iter()
                .filter(|(_, c)| !c.is_empty())
                .map(|(id, c)| (*id, c.leaves()))
                .collect::<BTreeMap<_, _>>()
        };
        let truth = view(&first);
        for id in &members[1..] {
            let other = view(id);
            if other != truth {
                let mut text = format!("{first} and {id} differ:");
                for (chunk, leaves) in &truth {
                    let theirs = other.get(chunk);
                    let blocks: Vec<usize> =
                        (0..leaves.len()).filter(|b| theirs.is_none_or(|t| t[*b] != leaves[*b])).collect();
                    if !blocks.is_empty() {
                        text += &format!(" {chunk:?} blocks {blocks:?}");
                    }
                }
                return self.fail(text);
            }
        }
    }
}

fn show(config: &PgConfig) -> String {
    let members: Vec<String> = config.members.iter().map(|m| format!("{}@{:x}", m.disk, m.boot.0 & 0xfff)).collect();
    let learners: Vec<String> =
        config.learners.iter().map(|l| format!("{}@{:x}", l.replica.disk, l.replica.boot.0 & 0xfff)).collect();
    format!("{}[{}|{}]", config.generation, members.join(" "), learners.join(" "))
}

fn show_reply(reply: &ClientReply) -> String {
    match reply {
        ClientReply::Data(data) => format!("data {}", data.len()),
        other => format!("{other:?}"),
    }
}

fn show_op(op: &Operation) -> String {
    match op {
        Operation::Write { chunk, first_block, leaves, .. } => {
            format!("write {}:{first_block}+{}", chunk.index, leaves.len())
        }
        other => format!("{other:?}"),
    }
}

fn show_input(input: &Input) -> String {
    match input {
        Input::Config(c) => format!("map {}", show(c)),
        Input::Client(r) => format!("client {:x} conn {} {}", r.id, r.connection, clip(&format!("{:?}", r.op))),
        Input::Peer { from, message } => match message {
            PeerMessage::Replicate { generation, sequence, committed, op, .. } => {
                format!("{from}: replicate {generation} {sequence} committed {committed} {}", show_op(op))
            }
            PeerMessage::NewConfig { config } => format!("{from}: new config {}", show(config)),
            PeerMessage::Session(SessionMessage::Forward { sequence, op, .. }) => {
                format!("{from}: forward {sequence} {}", show_op(op))
            }
            other => format!("{from}: {}", clip(&format!("{other:?}"))),
        },
        Input::Disk { token, result } => format!("disk {token} {}", clip(&format!("{result:?}"))),
        other => clip(&format!("{other:?}")),
    }
}

fn clip(text: &str) -> String {
    text.chars().take(160).collect()
}
