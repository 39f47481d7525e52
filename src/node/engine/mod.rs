//! The engine: one thread that owns every replica of the node, so that for each PG only one thing happens at a time.
//!
//! It takes events (messages, disk results, map changes, time), feeds them to the replicas of `core::replica`, and
//! carries out their actions. Nothing here blocks on IO.

mod foreground;
pub mod local;
mod map;
mod peers;
mod reports;
mod turns;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crossbeam_channel::Sender;
use tokio::sync::mpsc::UnboundedSender;

use super::control::ToCoordinator;
use super::disks::{DiskHandle, Job, JobDone};
use super::leases::{Leases, now};
use super::links::Links;
use super::queue::Queue;
use super::throttle::Throttle;
use super::watch::Watch;
use crate::api::metrics::{ForegroundMetrics, Operation};
use crate::core::cluster::{ClusterMap, DiskAdminState, PgConfig, Replica as Member, ResyncClass};
use crate::core::ids::{DiskId, Generation, NodeId, PgId, VolumeId};
use crate::core::replica::{
    Action, Change, ClientOp, ClientReply, ClientRequest, Env, Input, PeerMessage, PgState, Replica, SessionMessage,
};
use crate::core::units::{CHUNK_BYTES, Instant};
use crate::net::outbox::Outbox;
use crate::wire::client::{Received, encode_reply};
use crate::wire::control as msg;
use crate::wire::leases::LeaseEntry;
use crate::wire::replica::{Address, encode};
use crate::wire::stats;
use turns::Turns;

/// Replicas that wait for time are ticked this often.
const TICK: Duration = Duration::from_millis(5);
/// Events taken in one turn, before the lease table and statistics are looked at again.
const TURN_EVENTS: usize = 512;
/// Disks that may speak before the map names them: a cluster's worth, so that no peer makes the table grow for ever.
const SPEAKERS_MAX: usize = 65_536;
/// Messages kept until there is a map: a few of each PG that a large node could be in.
const EARLY_MAX: usize = 65_536;
/// A member that has accepted a configuration says so in so many reports: one may be lost with its link, and a registration
/// that was made before knows nothing of it.
const ACCEPTED_TOLD: u32 = 3;
/// Housekeeping: reachability, deleted volumes.
const HOUSEKEEPING: Duration = Duration::from_millis(100);

/// How events come to the engine.
pub type Events = Arc<Queue<Event>>;

/// Lets go of all events when it is dropped.
struct Abandon<'a>(&'a Events);

impl Drop for Abandon<'_> {
    fn drop(&mut self) {
        self.0.abandon();
    }
}

/// What happens to a node.
pub enum Event {
    /// A replica's message, on a link of this node or on a session's stream.
    Peer { node: NodeId, session: Option<u64>, address: Address, message: PeerMessage },
    /// Somebody asks what this node's replicas of a PG do.
    Describe { pg: PgId, answer: tokio::sync::oneshot::Sender<String> },
    /// A dialed link is up.
    PeerUp { node: NodeId, id: u64, outbox: Outbox, lease_addr: SocketAddr, process: u64 },
    /// It is gone.
    PeerDown { node: NodeId, id: u64 },
    /// An accepted link is up.
    InboundUp { node: NodeId, id: u64, outbox: Outbox, process: u64 },
    /// It is gone.
    InboundDown { node: NodeId, id: u64 },
    /// A gateway's channel is up.
    ClientUp { id: u64, outbox: Outbox },
    /// A gateway asks.
    Client { conn: u64, received: Received },
    /// Its channel is gone.
    ClientDown { id: u64 },
    /// This node's session to a learner is up.
    SessionOpened { pg: PgId, me: DiskId, learner: DiskId, id: u64, outbox: Outbox },
    /// A primary opened a session to a learner here.
    /// `opened`: the primary's process and its number for the session.
    SessionAccepted {
        pg: PgId,
        learner: DiskId,
        primary: DiskId,
        class: u32,
        id: u64,
        opened: (u64, u64),
        outbox: Outbox,
    },
    /// Either kind is gone.
    SessionEnded { pg: PgId, me: DiskId, peer: DiskId, id: u64 },
    /// A disk has done something.
    Disk(Vec<JobDone>),
    /// The map changed; `changed` lists the configurations that did.
    Map { map: Arc<ClusterMap>, changed: Vec<PgConfig> },
    /// The coordinator answered a proposal.
    Outcome { pg: PgId, proposal: u64, accepted: bool, config: Option<PgConfig> },
    /// The coordinator has no use for a copy any more.
    Purge { pg: PgId, disk: DiskId, up_to: Generation },
    /// A block arrived that doesn't match its hash.
    Mismatch,
    /// Stop cleanly; the engine answers when its disks are closed.
    Stop(Sender<()>),
}

type Key = (DiskId, PgId);

struct Pending {
    conn: u64,
    id: u64,
    started: Instant,
    bytes: u64,
    write: bool,
    measured: bool,
    disk: DiskId,
    volume: VolumeId,
    /// It counts in its disk's [`turns`]; `None`: it waits for its turn, or counts for nothing.
    under_way_since: Option<Instant>,
}

/// A gateway's channel.
struct Client {
    outbox: Outbox,
    /// It says how long its operations took: the throttle follows that.
    tells_latencies: bool,
}

struct Session {
    /// Of its stream.
    id: u64,
    /// At the learner: see [`Event::SessionAccepted`].
    opened: Option<(u64, u64)>,
    outbox: Option<Outbox>,
    task: Option<tokio::task::JoinHandle<()>>,
    class: ResyncClass,
}

/// Counters that the statistics and metrics read.
#[derive(Default)]
pub struct Counters {
    /// Foreground reads done.
    pub reads: AtomicU64,
    /// Foreground writes done.
    pub writes: AtomicU64,
    /// Foreground bytes.
    pub read_bytes: AtomicU64,
    /// Foreground bytes.
    pub write_bytes: AtomicU64,
    /// Verified bytes written as a resync target, by class.
    pub resync_written: [AtomicU64; 5],
    /// Bytes of resync put on the wire, by class.
    pub resync_sent: [AtomicU64; 5],
    /// Fsyncs of all disks, and their nanoseconds.
    pub fsyncs: AtomicU64,
    /// See `fsyncs`.
    pub fsync_nanos: AtomicU64,
    /// Of the map here.
    pub map_version: AtomicU64,
    /// Blocks that arrived with another content than their hash.
    pub wire_mismatches: AtomicU64,
    /// Blocks repaired from another replica.
    pub repaired_blocks: AtomicU64,
    /// Blocks that no replica had right.
    pub lost_blocks: AtomicU64,
    /// For the node's console.
    pub local: parking_lot::Mutex<local::Local>,
}

/// What the engine is made of.
pub struct Parts {
    /// Disks.
    pub disks: BTreeMap<DiskId, DiskHandle>,
    /// Links.
    pub links: Arc<Links>,
    /// Leases.
    pub leases: Arc<Leases>,
    /// Throttle.
    pub throttle: Arc<Throttle>,
    /// To the coordinator.
    pub control: UnboundedSender<ToCoordinator>,
    /// Shared counters.
    pub counters: Arc<Counters>,
    /// The latest statistics, for the coordinator and for metrics.
    pub stats: Arc<parking_lot::Mutex<stats::Stats>>,
    /// Where tasks run.
    pub runtime: tokio::runtime::Handle,
    /// For latencies.
    pub metrics: ForegroundMetrics,
}

struct EngineEnv<'a> {
    leases: &'a Leases,
    throttle: &'a Throttle,
    map: &'a ClusterMap,
    disk: DiskId,
    pg: PgId,
}

impl Env for EngineEnv<'_> {
    fn lease_until(&self, config: &PgConfig, me: DiskId) -> Instant {
        self.leases.held_until(config, me)
    }
    fn take_resync_tokens(&mut self, class: ResyncClass, bytes: u64) -> bool {
        let paused = self.map.settings.resync.paused_pools.contains(&self.pg.pool);
        !paused && self.throttle.try_take_source(self.disk, class, bytes)
    }
    fn random(&mut self) -> u64 {
        rand::random::<u64>() | 1
    }
    fn volume_priority(&self, volume: VolumeId) -> i32 {
        self.map.volumes.get(&volume).map_or(0, |v| v.priority)
    }
}

/// The engine's state.
pub struct Engine {
    parts: Parts,
    map: Arc<ClusterMap>,
    replicas: HashMap<Key, Replica>,
    ticking: BTreeSet<Key>,
    requests: HashMap<u64, Pending>,
    turns: Turns,
    /// Parts of replicated writes under way here, since when; see [`foreground`].
    applying: HashMap<(Key, u64), Instant>,
    next_request: u64,
    clients: HashMap<u64, Client>,
    /// (volume, incarnation, connection number) by channel, to cancel what a lost gateway asked for.
    client_sessions: HashMap<u64, HashSet<(VolumeId, u64, u64, Key)>>,
    outbound: HashMap<NodeId, (u64, Outbox)>,
    inbound: HashMap<NodeId, (u64, Outbox)>,
    /// Which start of a peer's process the link goes to.
    processes: HashMap<NodeId, u64>,
    keepers: HashMap<NodeId, (SocketAddr, tokio::task::JoinHandle<()>)>,
    /// Nodes of disks that the map doesn't hold yet: a peer that has it already may ask first, and waits for the answer.
    speakers: HashMap<DiskId, NodeId>,
    sessions: HashMap<(Key, DiskId), Session>,
    unreachable: BTreeSet<NodeId>,
    dropped: HashSet<(VolumeId, PgId)>,
    failed: BTreeSet<DiskId>,
    watch: Watch,
    wanted_stale: bool,
    /// The coordinator doesn't know yet what is served here now.
    serving_changed: bool,
    /// What peers said of PGs that no disk here knows, before there was a map.
    early: Vec<(NodeId, Option<u64>, Address, PeerMessage)>,
    /// Members that have just accepted a configuration, and how often the coordinator is still told.
    accepted: BTreeMap<Key, u32>,
}

impl Engine {
    /// An engine with what its disks know.
    pub fn new(parts: Parts) -> Self {
        let mut replicas = HashMap::new();
        for (id, disk) in &parts.disks {
            for (pg, state) in disk.states() {
                let me = Member { disk: *id, boot: disk.boot() };
                replicas.insert((*id, pg), Replica::new(pg, me, state));
            }
        }
        Engine {
            parts,
            map: Arc::default(),
            replicas,
            ticking: BTreeSet::new(),
            requests: HashMap::new(),
            turns: Turns::default(),
            applying: HashMap::new(),
            next_request: 1,
            clients: HashMap::new(),
            client_sessions: HashMap::new(),
            outbound: HashMap::new(),
            inbound: HashMap::new(),
            processes: HashMap::new(),
            keepers: HashMap::new(),
            speakers: HashMap::new(),
            sessions: HashMap::new(),
            unreachable: BTreeSet::new(),
            dropped: HashSet::new(),
            failed: BTreeSet::new(),
            watch: Watch::default(),
            wanted_stale: false,
            serving_changed: false,
            early: Vec::new(),
            accepted: BTreeMap::new(),
        }
    }

    /// Runs until `Stop`.
    pub fn run(mut self, events: &Events) {
        // However this ends: who waits for an answer then hears that there is none.
        let _closed = Abandon(events);
        let mut next_tick = std::time::Instant::now();
        let mut next_housekeeping = next_tick;
        let mut next_stats = next_tick;
        loop {
            let wait = if self.ticking.is_empty() { HOUSEKEEPING } else { TICK };
            let Some(batch) = events.take(TURN_EVENTS, wait) else { return };
            for event in batch {
                if let Event::Stop(done) = event {
                    self.stop();
                    let _ = done.send(());
                    return;
                }
                self.handle(event);
                self.start_next();
            }
            let t = std::time::Instant::now();
            if t >= next_tick {
                next_tick = t + TICK;
                for key in self.ticking.clone() {
                    self.feed(key, Input::Tick);
                }
            }
            if t >= next_housekeeping {
                next_housekeeping = t + HOUSEKEEPING;
                self.housekeeping();
                if std::mem::take(&mut self.serving_changed) {
                    next_stats = t;
                }
            }
            if t >= next_stats {
                next_stats = t + Duration::from_secs(1);
                self.publish_stats();
            }
            if std::mem::take(&mut self.wanted_stale) {
                self.renew_wanted();
            }
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Peer { node, session, address, message } => self.peer(node, session, address, message),
            Event::PeerUp { node, id, outbox, lease_addr, process } => {
                self.outbound.insert(node, (id, outbox));
                self.processes.insert(node, process);
                self.parts.leases.set_peer(node, lease_addr);
                for key in self.keys() {
                    for disk in self.replicas.get(&key).map(Replica::others).unwrap_or_default() {
                        if self.node_of(disk) == Some(node) {
                            self.feed(key, Input::LinkReset { disk });
                        }
                    }
                }
            }
            Event::PeerDown { node, id } => {
                if self.outbound.get(&node).is_some_and(|(i, _)| *i == id) {
                    self.outbound.remove(&node);
                }
            }
            Event::InboundUp { node, id, outbox, process } => {
                self.inbound.insert(node, (id, outbox));
                if self.processes.get(&node).is_some_and(|known| *known != process) {
                    // It was restarted: the link to what it was before is dead, though nothing has said so yet.
                    self.processes.remove(&node);
                    self.outbound.remove(&node);
                    if let Some((addr, _)) = self.keepers.get(&node) {
                        self.keep(node, *addr);
                    }
                }
            }
            Event::InboundDown { node, id } => {
                if self.inbound.get(&node).is_some_and(|(i, _)| *i == id) {
                    self.inbound.remove(&node);
                }
            }
            Event::ClientUp { id, outbox } => {
                self.clients.insert(id, Client { outbox, tells_latencies: false });
            }
            Event::Client { conn, received } => self.client(conn, received),
            Event::ClientDown { id } => {
                self.clients.remove(&id);
                self.withdraw(id);
                for (volume, incarnation, connection, key) in self.client_sessions.remove(&id).unwrap_or_default() {
                    self.feed(key, Input::ClientGone { volume, incarnation, connection });
                }
            }
            Event::SessionOpened { pg, me, learner, id, outbox } => {
                match self.sessions.get_mut(&((me, pg), learner)) {
                    Some(session) if session.id == id => {
                        session.outbox = Some(outbox);
                        self.feed((me, pg), Input::SessionUp { learner });
                    }
                    // Closed meanwhile, and perhaps opened again.
                    _ => outbox.finish(),
                }
            }
            Event::SessionAccepted { pg, learner, primary, class, id, opened, outbox } => {
                let key = (learner, pg);
                let known = self.sessions.get(&(key, primary)).and_then(|s| s.opened);
                // Streams may overtake each other: one that the primary has replaced is not taken for the last one.
                let late = known.is_some_and(|(process, number)| process == opened.0 && number > opened.1);
                if late || !self.ensure(key) {
                    return outbox.finish();
                }
                if self.close_session(key, primary) {
                    self.feed(key, Input::SessionDown { peer: primary });
                    // A replica that leads, as far as it knows, has opened one of its own again.
                    self.close_session(key, primary);
                }
                let class = ResyncClass::ALL.get(class as usize).copied().unwrap_or_default();
                let session = Session { id, opened: Some(opened), outbox: Some(outbox), task: None, class };
                self.sessions.insert((key, primary), session);
            }
            Event::SessionEnded { pg, me, peer, id } => {
                let key = ((me, pg), peer);
                if self.sessions.get(&key).is_some_and(|s| s.id == id) {
                    self.sessions.remove(&key);
                    self.feed((me, pg), Input::SessionDown { peer });
                }
            }
            Event::Disk(batch) => {
                for done in batch {
                    if let crate::core::replica::DiskResult::Failed(_) = done.result {
                        self.failed.insert(done.disk);
                    }
                    self.feed((done.disk, done.pg), Input::Disk { token: done.token, result: done.result });
                }
            }
            Event::Map { map, changed } => self.map_changed(map, changed),
            Event::Outcome { pg, proposal, accepted, config } => {
                for key in self.keys().into_iter().filter(|k| k.1 == pg) {
                    self.feed(key, Input::Outcome { proposal, accepted, config: config.clone() });
                }
            }
            Event::Describe { pg, answer } => {
                let mine = self.replicas.iter().filter(|(key, _)| key.1 == pg);
                let text: String = mine.map(|(key, r)| format!("{}: {}", key.0, r.describe())).collect();
                // Who asked may have gone.
                let _ = answer.send(text);
            }
            Event::Purge { pg, disk, up_to } => self.purge(pg, disk, up_to),
            Event::Mismatch => {
                self.parts.counters.wire_mismatches.fetch_add(1, Ordering::Relaxed);
            }
            Event::Stop(_) => {}
        }
    }

    fn keys(&self) -> Vec<Key> {
        self.replicas.keys().copied().collect()
    }

    fn node_of(&self, disk: DiskId) -> Option<NodeId> {
        self.map.disks.get(&disk).map(|d| d.node).or_else(|| self.speakers.get(&disk).copied())
    }

    /// Makes a replica for a PG that the disk knows nothing of; false: the disk isn't here.
    fn ensure(&mut self, key: Key) -> bool {
        let Some(disk) = self.parts.disks.get(&key.0) else { return false };
        if self.replicas.contains_key(&key) {
            return true;
        }
        let me = Member { disk: key.0, boot: disk.boot() };
        self.replicas.insert(key, Replica::new(key.1, me, None));
        // The disk may have had a copy and given it up: the map says up to where (R3).
        let without = self.map.pgs.get(&key.1).filter(|c| !c.members.iter().any(|m| m.disk == key.0)).cloned();
        if let Some(config) = without {
            self.feed(key, Input::Config(config));
        }
        true
    }

    fn feed(&mut self, key: Key, input: Input) {
        let Some(replica) = self.replicas.get_mut(&key) else { return };
        let (leases, throttle) = (&self.parts.leases, &self.parts.throttle);
        let mut env = EngineEnv { leases, throttle, map: &self.map, disk: key.0, pg: key.1 };
        let before = (replica.is_serving(), replica.is_outside(), replica.config().generation);
        let actions = replica.handle(input, now(), &mut env);
        let after = (replica.is_serving(), replica.is_outside(), replica.config().generation);
        if before != after {
            self.serving_changed |= before.0 != after.0;
            if !after.1 && (before.1, before.2) != (after.1, after.2) {
                self.accepted.insert(key, ACCEPTED_TOLD);
                self.serving_changed = true;
            }
        }
        if replica.needs_ticks() {
            self.ticking.insert(key);
        } else {
            self.ticking.remove(&key);
        }
        for action in actions {
            self.act(key, action);
        }
    }

    fn act(&mut self, key: Key, action: Action) {
        match action {
            Action::Reply { request, reply } => self.reply(key, request, reply),
            Action::Send { to, message } => self.send(key, to, message),
            Action::Disk { token, op } => {
                if let Some(disk) = self.parts.disks.get(&key.0) {
                    disk.submit(Job { pg: key.1, token, op });
                }
            }
            Action::Propose { proposal, base, change } => {
                let (kind, replicas, reason) = match change {
                    Change::Remove(members) => {
                        (msg::ProposeKind::RemoveMembers, members, "they don't answer, or apply nothing")
                    }
                    Change::Promote(learner) => (msg::ProposeKind::PromoteLearner, vec![learner], "it is complete"),
                };
                let propose = msg::Propose {
                    proposal,
                    pg: key.1.to_u64(),
                    base_epoch: base.epoch,
                    base_n: base.n,
                    kind: kind.into(),
                    replicas: replicas.into_iter().map(Into::into).collect(),
                    reason: reason.into(),
                };
                drop(self.parts.control.send(ToCoordinator::Propose(propose)));
            }
            Action::AcceptGeneration { config } => {
                let at = self.parts.leases.accept(&config, key.0);
                self.wanted_stale = true;
                self.feed(key, Input::GrantsEnd { generation: config.generation, at });
            }
            Action::OpenSession { learner } => self.open_session(key, learner.disk),
            Action::CloseSession { learner } => drop(self.close_session(key, learner)),
            Action::VolumeDropped(volume) => {
                self.dropped.insert((volume, key.1));
                let dropped = msg::VolumeDropped { id: volume.0, pg: key.1.to_u64() };
                drop(self.parts.control.send(ToCoordinator::VolumeDropped(dropped)));
            }
        }
    }

    // ---- time ----

    fn housekeeping(&mut self) {
        let gone: BTreeSet<NodeId> = self.parts.leases.unreachable().into_iter().collect();
        let changes: Vec<(NodeId, bool)> = gone
            .difference(&self.unreachable)
            .map(|n| (*n, false))
            .chain(self.unreachable.difference(&gone).map(|n| (*n, true)))
            .collect();
        self.unreachable = gone;
        for (node, yes) in changes {
            if yes {
                tracing::info!(%node, "a peer answers again");
            } else {
                tracing::warn!(%node, "a peer doesn't answer");
            }
            // Every replica hears of it, also one whose configuration the disk has left: it may come back to it.
            let disks: Vec<DiskId> = self.map.disks.values().filter(|d| d.node == node).map(|d| d.id).collect();
            for key in self.keys() {
                for disk in &disks {
                    self.feed(key, Input::Reachable { disk: *disk, yes });
                }
            }
        }
        // Configurations that are newer than what was fed when the node was already unreachable.
        for node in self.unreachable.clone() {
            for key in self.keys() {
                let Some(replica) = self.replicas.get(&key).filter(|r| r.is_primary()) else { continue };
                for disk in replica.others() {
                    if self.node_of(disk) == Some(node) {
                        self.feed(key, Input::Reachable { disk, yes: false });
                    }
                }
            }
        }
        drop(self.parts.control.send(ToCoordinator::Unreachable(self.unreachable.iter().copied().collect())));
        self.free_turns();
        self.tick_throttle();
        self.watch_disks();
    }

    /// Lets disks finish what they have, stores each replica's last state, and closes the disks cleanly.
    fn stop(&mut self) {
        for (_, task) in self.keepers.drain().map(|(_, k)| k) {
            task.abort();
        }
        let mut states: HashMap<DiskId, Vec<(PgId, PgState)>> = HashMap::new();
        for ((disk, pg), replica) in &self.replicas {
            states.entry(*disk).or_default().push((*pg, replica.state()));
        }
        for (id, handle) in std::mem::take(&mut self.parts.disks) {
            handle.stop(states.remove(&id).unwrap_or_default());
        }
    }
}
