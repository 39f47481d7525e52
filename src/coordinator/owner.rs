//! The one owner of the cluster's state: "only one thing is happening at a time".
//!
//! A turn takes all messages that have arrived, applies them to memory, lets the coordinator make its own decisions, makes
//! everything that changed durable in one commit, and only then lets effects out: replies, messages, deltas. If the commit
//! fails the daemon stops; nobody has seen what was lost.
//!
//! Bounds: the mailbox ([`MAILBOX_MAX`]) pushes back on peers; a turn takes at most a mailbox full.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use tokio::sync::{mpsc, oneshot};

use super::decide::{self, Counts};
use super::events::EventLog;
use super::plan::{self, Planning};
use super::runtime::{ConnId, Judgement, Life, Runtime};
use super::totals::Totals;
use super::wiring;
use crate::api::calls::{AdminMessage, Answer};
use crate::api::metrics::CoordinatorMetrics;
use crate::core::cluster::PgConfig;
use crate::core::cluster::command::{Applied, Command, Context, RecordKey, Refusal};
use crate::core::cluster::state::ClusterState;
use crate::core::ids::{DiskId, NodeId, PgId, VolumeId};
use crate::core::placement as place;
use crate::core::units::Instant;
use crate::meta::{Batch, MetaError, MetaStore, records};
use crate::net::ca::ClusterCa;
use crate::net::channel::Sender;
use crate::net::identity::PeerIdentity;
use crate::net::quic::Link;
use crate::wire::control::{Refused, kind};
use crate::wire::frame::Frame;

/// Messages that wait for a turn: a thousand nodes' heartbeats of a few hundred milliseconds.
pub const MAILBOX_MAX: usize = 4096;
/// How often the owner looks at the clock.
const TICK: Duration = Duration::from_millis(50);
/// Deltas within this time go out together.
const DELTA_INTERVAL: Duration = Duration::from_millis(10);
/// How often a purge is asked for again until it is done. In between the disk gets no new copy of that PG.
const PURGE_INTERVAL: Duration = Duration::from_secs(5);
/// Purges in flight per turn: a purge frees slots one by one on the disk.
const PURGES_PER_TURN: usize = 64;
/// How often the sums of resync bytes are stored while they rise.
const TOTALS_INTERVAL: Duration = Duration::from_millis(500);
/// A disk that was given an id and never came holds up `wait clean` no longer than this.
const FRESH_DISK_KEPT: Duration = Duration::from_secs(30);
/// A plan that could not place everything is tried again after this.
const REPLAN_INTERVAL: Duration = Duration::from_secs(30);

/// What the owner is told.
#[derive(Debug)]
pub enum Input {
    /// A peer opened its control channel.
    Opened(ConnId, Conn),
    /// A peer sent a frame, which arrived at this time.
    Frame(ConnId, Frame, Instant),
    /// A channel ended; true if the peer's process ended it or restarted.
    Closed(ConnId, bool),
    /// A request of the admin API.
    Admin(AdminMessage),
    /// The planner is done.
    Planned(Box<place::Plan>),
    /// This process was stopped for so long.
    Frozen(Duration),
}

/// A control connection.
pub struct Conn {
    /// Who, by certificate.
    pub peer: PeerIdentity,
    /// Frames to it.
    pub sender: Sender,
    /// To close it.
    pub link: Link,
    /// What it presented itself as.
    pub role: PeerRole,
    /// It follows the map and has it up to here.
    pub has_version: Option<u64>,
}

impl std::fmt::Debug for Conn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Conn({}, {:?})", self.peer, self.role)
    }
}

/// What a connection presented itself as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerRole {
    /// Nothing yet.
    New,
    /// A registered node.
    Node(NodeId),
    /// A gateway, by name.
    Gateway(String),
    /// A follower of the map.
    Observer,
}

/// What goes out once the turn is durable.
pub(super) enum Effect {
    /// A frame.
    Send(ConnId, Frame),
    /// The whole map, and deltas from now on.
    Follow(ConnId),
    /// One sentence, then the end.
    Refuse(ConnId, String),
    /// An answer of the admin API.
    Answer(oneshot::Sender<Answer>, Answer),
}

/// A gateway that waits for a volume.
pub(super) struct Waiter {
    pub(super) conn: ConnId,
    pub(super) gateway: String,
}

/// Fixed facts of the daemon.
pub struct Facts {
    /// Signs certificates.
    pub ca: ClusterCa,
    /// Where nodes find this coordinator.
    pub coordinator_addr: std::net::SocketAddr,
    /// Figures.
    pub metrics: CoordinatorMetrics,
    /// For sessions: the map's version.
    pub map_version: Arc<AtomicU64>,
}

/// The owner.
pub struct Owner {
    pub(super) state: ClusterState,
    pub(super) runtime: Runtime,
    pub(super) planning: Planning,
    pub(super) totals: Totals,
    pub(super) events: EventLog,
    pub(super) facts: Facts,
    pub(super) conns: BTreeMap<ConnId, Conn>,
    pub(super) standby: BTreeMap<VolumeId, VecDeque<Waiter>>,
    pub(super) pg_bytes: BTreeMap<PgId, u64>,
    pub(super) fresh_disks: BTreeMap<DiskId, Instant>,
    pub(super) progress: super::progress::Progress,
    pub(super) effects: Vec<Effect>,
    pub(super) batch: Batch,
    pub(super) now: Instant,
    pub(super) store: Arc<dyn MetaStore>,
    changed: BTreeSet<RecordKey>,
    head: Option<Vec<u8>>,
    pgs_dirty: bool,
    purges: BTreeMap<(PgId, DiskId), Instant>,
    planned_as_lost: BTreeSet<NodeId>,
    passed_at: Instant,
    pass_cost: Duration,
    purged_at: Instant,
    totals_at: Instant,
    planned_at: Instant,
    sent_at: Instant,
    inbox: mpsc::WeakSender<Input>,
}

impl Owner {
    /// With what is stored.
    ///
    /// # Errors
    /// The store is damaged.
    pub fn new(
        store: Arc<dyn MetaStore>,
        facts: Facts,
        inbox: mpsc::WeakSender<Input>,
        now: Instant,
    ) -> Result<Self, MetaError> {
        let state = records::load(store.as_ref())?;
        let events = EventLog::load(store.as_ref())?;
        let totals = super::events::load_totals(store.as_ref())?;
        facts.map_version.store(state.map().version, Ordering::Relaxed);
        let head = store.get(records::HEAD_KEY)?;
        Ok(Owner {
            state,
            runtime: Runtime::new(now),
            planning: Planning::default(),
            totals,
            events,
            facts,
            conns: BTreeMap::new(),
            standby: BTreeMap::new(),
            pg_bytes: BTreeMap::new(),
            fresh_disks: BTreeMap::new(),
            progress: super::progress::Progress::default(),
            effects: Vec::new(),
            batch: Batch::default(),
            now,
            store,
            changed: BTreeSet::new(),
            head,
            pgs_dirty: true,
            purges: BTreeMap::new(),
            planned_as_lost: BTreeSet::new(),
            passed_at: now,
            pass_cost: Duration::ZERO,
            purged_at: now,
            totals_at: now,
            planned_at: now,
            sent_at: now,
            inbox,
        })
    }

    /// Settings given at the start replace the stored ones.
    ///
    /// # Errors
    /// They are out of range.
    pub fn set_times(&mut self, debounce: Option<f64>, grace: Option<f64>) -> Result<(), Refusal> {
        let mut settings = self.state.map().settings.clone();
        settings.debounce_seconds = debounce.unwrap_or(settings.debounce_seconds);
        settings.grace_seconds = grace.unwrap_or(settings.grace_seconds);
        self.apply("coordinator", Command::SetSettings { settings }).map(|_| ())
    }

    /// Runs until `shutdown` is done or the store fails.
    ///
    /// # Errors
    /// The store failed; what is stable is what everybody has seen.
    pub async fn run(
        mut self,
        mut inputs: mpsc::Receiver<Input>,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), MetaError> {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut shutdown = std::pin::pin!(shutdown);
        let mut taken = Vec::new();
        loop {
            tokio::select! {
                () = &mut shutdown => break,
                n = inputs.recv_many(&mut taken, MAILBOX_MAX) => if n == 0 { break },
                _ = tick.tick() => {
                    while let Ok(input) = inputs.try_recv() {
                        taken.push(input);
                        if taken.len() >= MAILBOX_MAX { break }
                    }
                }
                () = tokio::time::sleep(DELTA_INTERVAL), if self.has_followers_behind() => {}
            }
            self.turn(&mut taken).await?;
        }
        self.totals_at = Instant(0);
        self.turn(&mut taken).await?;
        for conn in self.conns.values() {
            conn.link.close("the coordinator is stopping");
        }
        Ok(())
    }

    async fn turn(&mut self, inputs: &mut Vec<Input>) -> Result<(), MetaError> {
        self.now = wiring::now();
        for input in inputs.drain(..) {
            self.handle(input);
        }
        self.judge();
        self.decide();
        self.plan();
        self.housekeep();
        self.commit().await?;
        self.release();
        Ok(())
    }

    fn handle(&mut self, input: Input) {
        match input {
            Input::Opened(id, conn) => drop(self.conns.insert(id, conn)),
            Input::Frame(id, frame, at) => self.handle_frame(id, frame, at),
            Input::Closed(id, by_process) => self.handle_closed(id, by_process),
            Input::Admin(message) => self.handle_admin(message),
            Input::Planned(plan) => {
                let (moves, bytes) = (plan.totals.moves, plan.totals.bytes);
                let id = self.planning.job.id + 1;
                if moves > 0 {
                    self.tell("plan", "coordinator", format!("Plan {id} has {moves} moves of {bytes} bytes."));
                }
                for drop in self.planning.handle_planned(self.state.map(), *plan) {
                    self.apply_quietly(drop);
                }
            }
            Input::Frozen(gap) => {
                tracing::warn!(gap_ms = gap.as_millis(), "this process stood still; nobody is judged for a while");
                self.runtime.handle_frozen(gap, self.now);
            }
        }
    }

    fn handle_closed(&mut self, id: ConnId, by_process: bool) {
        self.conns.remove(&id);
        for queue in self.standby.values_mut() {
            queue.retain(|w| w.conn != id);
        }
        if let Some(node) = self.runtime.handle_closed(id, by_process, self.now) {
            self.note(Judgement::Down(node));
        }
    }

    /// Applies a command; its changes become durable at the turn's end.
    pub(super) fn apply(&mut self, actor: &str, command: Command) -> Result<Applied, Refusal> {
        let applied = self.state.apply(command, &Context { liveness: &self.runtime })?;
        for key in &applied.changed {
            match key {
                RecordKey::Disk(id) => self.runtime.follow_disk(self.state.map(), *id),
                RecordKey::Pg(_) => {}
                _ => {}
            }
        }
        self.pgs_dirty |= !applied.changed.is_empty();
        self.changed.extend(&applied.changed);
        for happening in &applied.happenings {
            self.tell(happening.kind, actor, happening.text.clone());
        }
        Ok(applied)
    }

    /// Applies a decision of the coordinator's own; one that doesn't fit any more is made again from the new state.
    pub(super) fn apply_quietly(&mut self, command: Command) {
        if let Command::AddLearner { pg, learner } = &command
            && let Some(config) = self.state.map().pgs.get(pg)
        {
            let asked = self.purges.get(&(*pg, learner.replica.disk));
            if asked.is_some_and(|at| self.now.since(*at) < PURGE_INTERVAL) {
                return; // The disk may be removing this very copy; in the end it keeps what its map lists.
            }
            let config = config.clone();
            self.runtime.note_copy(learner.replica, &config, false);
        }
        if let Err(refusal) = self.apply("coordinator", command) {
            tracing::debug!(%refusal, "a decision was overtaken");
        }
    }

    /// Adds an event.
    pub(super) fn tell(&mut self, kind: &str, actor: &str, text: String) {
        tracing::info!(kind, actor, "{text}");
        self.events.add(kind, actor, text, wiring::unix_ms(), &mut self.batch);
    }

    fn judge(&mut self) {
        for judgement in self.runtime.judge(self.state.map(), self.now) {
            self.note(judgement);
        }
    }

    fn note(&mut self, judgement: Judgement) {
        let name = |n: &NodeId| self.state.map().nodes.get(n).map_or_else(|| n.to_string(), |r| r.name.clone());
        match judgement {
            Judgement::Up(n) => {
                self.planned_as_lost.remove(&n);
                self.planning.touch(self.now);
                self.tell("node-up", "coordinator", format!("Node {} answers again.", name(&n)));
            }
            Judgement::Suspect(n) => tracing::info!(node = name(&n), "missed heartbeats"),
            Judgement::Down(n) => self.tell("node-down", "coordinator", format!("Node {} does not answer.", name(&n))),
        }
        self.pgs_dirty = true;
        self.passed_at = Instant(0);
    }

    /// A node registered: it counts as found, and what it was asked before is forgotten by both.
    pub(super) fn note_registered(&mut self, node: NodeId) {
        let disks = &self.runtime.disks;
        self.purges.retain(|(_, disk), _| disks.get(disk).is_some_and(|d| d.node != node));
        self.planned_as_lost.remove(&node);
        self.planning.touch(self.now);
        self.pgs_dirty = true;
    }

    /// Something that is not in the map changed for PGs.
    pub(super) fn touch_pgs(&mut self) {
        self.pgs_dirty = true;
    }

    /// One pass over all PGs, when something changed. A pass takes at most a quarter of the time.
    fn decide(&mut self) {
        let pause = DELTA_INTERVAL.max(self.pass_cost * 4);
        if !self.pgs_dirty || self.now.since(self.passed_at) < pause {
            return;
        }
        let began = std::time::Instant::now();
        self.runtime.weigh_gateways(self.state.map());
        self.pgs_dirty = false;
        self.passed_at = self.now;
        let map = self.state.map();
        let mut counts = Counts::of(map).with_short(map, &self.runtime);
        let mut commands = Vec::new();
        for config in map.pgs.values() {
            let wanted = map.pools.get(&config.pg.pool).map_or(0, |p| p.replicas as usize);
            let live = config.members.iter().filter(|m| self.runtime.live_boot(m.disk) == Some(m.boot)).count();
            if live < wanted {
                self.runtime.short_since.entry(config.pg).or_insert(self.now);
            } else {
                self.runtime.short_since.remove(&config.pg);
                self.runtime.no_grace.remove(&config.pg);
            }
            commands.extend(decide::decide(map, &self.runtime, config, &mut counts));
        }
        for command in commands {
            self.apply_quietly(command);
        }
        let steps = self.planning.step(self.state.map(), &self.runtime, &self.pg_bytes, self.now);
        steps.into_iter().for_each(|c| self.apply_quietly(c));
        let reorders = self.planning.reorder(self.state.map(), &self.runtime, self.now);
        reorders.into_iter().for_each(|c| self.apply_quietly(c));
        self.forget_volumes();
        self.pass_cost = began.elapsed();
    }

    fn forget_volumes(&mut self) {
        let map = self.state.map();
        let deleting = map.volumes.values().filter(|v| v.deleting);
        let gone: Vec<VolumeId> = deleting
            .filter(|v| self.runtime.dropped.get(&v.id).is_some_and(|done| v.pgs().all(|pg| done.contains(&pg))))
            .map(|v| v.id)
            .collect();
        for volume in gone {
            self.runtime.dropped.remove(&volume);
            self.apply_quietly(Command::ForgetVolume { volume });
        }
    }

    fn plan(&mut self) {
        let settings = &self.state.map().settings;
        let grace = Duration::from_secs_f64(settings.grace_seconds);
        let debounce = Duration::from_secs_f64(settings.debounce_seconds);
        let now = self.now;
        let lost = self.runtime.nodes.iter().filter(|(_, v)| v.life == Life::Down);
        let lost: Vec<NodeId> = lost
            .filter(|(_, v)| v.lost_at.is_some_and(|at| now.since(at) >= grace))
            .map(|(n, _)| *n)
            .filter(|n| self.planned_as_lost.insert(*n))
            .collect();
        let unplaced = self.planning.job.moves.is_empty()
            && now.since(self.planned_at) >= REPLAN_INTERVAL
            && self.runtime.short_since.values().any(|at| now.since(*at) >= grace);
        if !lost.is_empty() || unplaced {
            self.planning.touch(now);
        }
        self.fresh_disks.retain(|_, at| now.since(*at) < FRESH_DISK_KEPT);
        if self.planning.take_due(&self.runtime, debounce, now) {
            self.planned_at = now;
            let input = plan::input(self.state.map(), &self.runtime, &self.pg_bytes, now);
            let inbox = self.inbox.clone();
            tokio::task::spawn_blocking(move || {
                let plan = wiring::checked_plan(&input);
                if let Some(inbox) = inbox.upgrade() {
                    // The owner may be gone: then nobody needs the plan.
                    let _ = inbox.blocking_send(Input::Planned(Box::new(plan)));
                }
            });
        }
    }

    fn housekeep(&mut self) {
        if self.now.since(self.purged_at) >= Duration::from_secs(1) {
            self.purged_at = self.now;
            self.purges.retain(|_, at| self.now.since(*at) < PURGE_INTERVAL);
            self.purge();
            self.pgs_dirty = true; // Time itself changes what may start: the grace, reorders, a gateway's word.
            let left = self.left();
            self.progress.sample(self.now, self.totals.bytes_done(), &left, self.planning.job.id);
            self.show_metrics();
        }
    }

    fn purge(&mut self) {
        if self.planning.is_pending() || !self.runtime.is_settled() {
            return; // A plan may want the copy where it is.
        }
        let next_pool = self.state.next_ids().pool;
        let due = decide::purgeable(self.state.map(), &self.runtime, next_pool, &self.planning.targets());
        let due = due.into_iter().filter(|(pg, disk, _)| !self.purges.contains_key(&(*pg, *disk)));
        for (pg, disk, up_to) in due.take(PURGES_PER_TURN).collect::<Vec<_>>() {
            let node = self.runtime.disks.get(&disk).and_then(|d| self.runtime.nodes.get(&d.node));
            // Only a node that has been told that the copy is out may drop it.
            let told = |c: &ConnId| self.conns.get(c).is_some_and(|c| c.has_version == Some(self.state.map().version));
            if let Some(conn) = node.and_then(|n| n.conn).filter(told) {
                self.purges.insert((pg, disk), self.now);
                self.effects.push(Effect::Send(conn, wiring::purge(pg, disk, up_to)));
            }
        }
    }

    /// The disk no longer has the copy.
    pub(super) fn handle_purged(&mut self, pg: PgId, disk: DiskId) {
        self.purges.remove(&(pg, disk));
        let learns = |c: &PgConfig| c.learners.iter().any(|l| l.replica.disk == disk);
        if self.state.map().pgs.get(&pg).is_some_and(learns) {
            return; // It has begun anew since.
        }
        if let Some(view) = self.runtime.disks.get_mut(&disk) {
            view.copies.remove(&pg);
        }
    }

    /// Everything of this turn becomes durable.
    async fn commit(&mut self) -> Result<(), MetaError> {
        let mut totals = None;
        if !self.changed.is_empty() || self.now.since(self.totals_at) >= TOTALS_INTERVAL {
            totals = self.totals.to_store();
            self.totals_at = self.now;
        }
        let mut batch = std::mem::take(&mut self.batch);
        if let Some(record) = &totals {
            super::events::put_totals(record, &mut batch);
        }
        let mut head = None;
        if !self.changed.is_empty() {
            // Whoever else may have written the map meanwhile, this binary must not write over it.
            batch.expect.push((records::HEAD_KEY.to_owned(), self.head.clone()));
            records::put_changes(&self.state, &self.changed, &mut batch);
            head = batch.writes.last().and_then(|(_, value)| value.clone());
            self.changed.clear();
        }
        if batch.is_empty() {
            return Ok(());
        }
        let (store, began) = (self.store.clone(), std::time::Instant::now());
        let done = tokio::task::spawn_blocking(move || store.commit(&batch)).await;
        match done {
            Ok(result) => result?,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
        self.facts.metrics.fsyncs.done(began.elapsed());
        self.head = head.or_else(|| self.head.take());
        if let Some(record) = totals {
            self.totals.handle_stored(record);
        }
        self.facts.map_version.store(self.state.map().version, Ordering::Relaxed);
        Ok(())
    }

    /// Lets out what the turn has decided.
    fn release(&mut self) {
        for effect in std::mem::take(&mut self.effects) {
            match effect {
                Effect::Send(id, frame) => self.send(id, frame),
                Effect::Follow(id) => {
                    let version = self.state.map().version;
                    if let Some(conn) = self.conns.get_mut(&id) {
                        conn.has_version = Some(version);
                    }
                    for frame in wiring::delta_frames(&self.state, 0) {
                        self.send(id, frame);
                    }
                }
                Effect::Refuse(id, reason) => self.refuse_now(id, reason),
                // The client may have hung up.
                Effect::Answer(reply, answer) => drop(reply.send(answer)),
            }
        }
        if self.now.since(self.sent_at) >= DELTA_INTERVAL {
            self.send_deltas();
        }
    }

    fn has_followers_behind(&self) -> bool {
        let version = self.state.map().version;
        self.conns.values().any(|c| c.has_version.is_some_and(|v| v < version))
    }

    fn send_deltas(&mut self) {
        self.sent_at = self.now;
        let version = self.state.map().version;
        let behind = self.conns.iter().filter_map(|(id, c)| c.has_version.filter(|v| *v < version).map(|v| (*id, v)));
        let behind: Vec<(ConnId, u64)> = behind.collect();
        let mut made: BTreeMap<u64, Vec<Frame>> = BTreeMap::new();
        for (id, from) in behind {
            let frames = made.entry(from).or_insert_with(|| wiring::delta_frames(&self.state, from)).clone();
            if let Some(conn) = self.conns.get_mut(&id) {
                conn.has_version = Some(version);
            }
            for frame in frames {
                self.send(id, frame);
            }
        }
    }

    /// A peer that doesn't take its frames is cut off: it comes back and gets the whole map.
    fn send(&mut self, id: ConnId, frame: Frame) {
        let Some(conn) = self.conns.get(&id) else { return };
        if let Err(error) = conn.sender.send(frame) {
            tracing::warn!(peer = %conn.peer, %error, "a peer doesn't take its messages");
            conn.link.close("it does not take its messages");
        }
    }

    fn refuse_now(&mut self, id: ConnId, reason: String) {
        let Some(conn) = self.conns.remove(&id) else { return };
        tracing::warn!(peer = %conn.peer, "refused: {reason}");
        let frame = Frame::new(kind::REFUSED, Bytes::from(Refused { reason }.encode_to_vec()));
        // If it can't be told, the end of the link must do.
        let _ = conn.sender.send(frame);
        conn.sender.finish();
        tokio::spawn(async move {
            let _ = tokio::time::timeout(Duration::from_secs(1), conn.link.closed()).await;
            conn.link.close("refused");
        });
    }
}
