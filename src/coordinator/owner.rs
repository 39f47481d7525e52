//! The one owner of the cluster's state: "only one thing is happening at a time".
//!
//! A turn takes all messages that have arrived, applies them to memory, lets the coordinator make its own decisions, makes
//! everything that changed durable in one commit, and only then lets effects out: replies, messages, deltas. If the commit
//! fails the daemon stops; nobody has seen what was lost.
//!
//! Bounds: the mailbox ([`MAILBOX_MAX`]) pushes back on peers; a turn takes at most a mailbox full.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use tokio::sync::{mpsc, oneshot};

use super::admin::OPERATOR;
use super::baselines::ClassMedians;
use super::events::{self, EventLog};
use super::totals::Totals;
use super::wiring;
use crate::api::calls::{AdminMessage, Answer};
use crate::api::console::{ClusterFacts, History};
use crate::api::metrics::CoordinatorMetrics;
use crate::core::cluster::NodeAdminState;
use crate::core::cluster::command::{Applied, Command, Refusal};
use crate::core::ids::NodeId;
use crate::core::manager::Manager;
use crate::core::manager::runtime::{ConnId, Limits};
use crate::core::placement as place;
use crate::core::units::Instant;
use crate::meta::{Batch, MetaError, MetaStore, records};
use crate::net::ca::ClusterCa;
use crate::net::channel::Sender;
use crate::net::identity::{PeerIdentity, Role};
use crate::net::quic::Link;
use crate::wire::control::{Refused, kind};
use crate::wire::frame::Frame;
use crate::wire::stats::Stats;

/// Messages that wait for a turn: a thousand nodes' heartbeats of a few hundred milliseconds.
pub const MAILBOX_MAX: usize = 4096;
/// How often the owner looks at the clock.
const TICK: Duration = Duration::from_millis(50);
/// Deltas within this time go out together.
const DELTA_INTERVAL: Duration = Duration::from_millis(10);
/// How often the sums of resync bytes are stored while they rise.
const TOTALS_INTERVAL: Duration = Duration::from_millis(500);

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
    /// Somebody looks at the console.
    Console(oneshot::Sender<Box<ClusterFacts>>),
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
    /// A gateway's admin URL; empty: it has none.
    pub admin_url: String,
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

/// The last figures of a node or a gateway, and those before, for rates.
#[derive(Debug)]
pub(super) struct Figures {
    pub(super) last: (Instant, Stats),
    pub(super) before: Option<(Instant, Stats)>,
}

impl Figures {
    /// What follows `earlier`.
    pub(super) fn next(earlier: Option<Figures>, now: Instant, stats: Stats) -> Figures {
        Figures { last: (now, stats), before: earlier.map(|f| f.last) }
    }

    /// A counter's rise per second; `None` when only one value of this process is known.
    pub(super) fn per_sec(&self, counter: impl Fn(&Stats) -> u64) -> Option<u64> {
        let ((at, last), (before_at, before)) = (&self.last, self.before.as_ref()?);
        let seconds = at.since(*before_at).as_secs_f64();
        let rose = counter(last).saturating_sub(counter(before));
        (before.process == last.process && seconds > 0.1).then(|| (rose as f64 / seconds) as u64)
    }
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
    pub(super) manager: Manager,
    pub(super) figures: BTreeMap<NodeId, Figures>,
    /// Of gateways that are connected, by name.
    pub(super) gateway_figures: BTreeMap<String, (ConnId, Figures)>,
    pub(super) class_medians: ClassMedians,
    pub(super) totals: Totals,
    pub(super) events: EventLog,
    pub(super) facts: Facts,
    pub(super) conns: BTreeMap<ConnId, Conn>,
    pub(super) progress: super::progress::Progress,
    pub(super) steering: super::steer::Steering,
    pub(super) effects: Vec<Effect>,
    pub(super) batch: Batch,
    pub(super) store: Arc<dyn MetaStore>,
    /// The lines of the console, and when the last point was added.
    pub(super) history: History,
    pub(super) history_at: Instant,
    /// This daemon's admin URL.
    pub(super) admin_url: String,
    /// Who asks for what the API does now.
    pub(super) asker: String,
    head: Option<Vec<u8>>,
    pass_cost: Duration,
    totals_at: Instant,
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
        facts.metrics.show_events(events::KINDS);
        let totals = super::events::load_totals(store.as_ref())?;
        facts.map_version.store(state.map().version, Ordering::Relaxed);
        let head = store.get(records::HEAD_KEY)?;
        Ok(Owner {
            manager: Manager::new(state, now, Limits::default()),
            figures: BTreeMap::new(),
            gateway_figures: BTreeMap::new(),
            class_medians: ClassMedians::default(),
            totals,
            events,
            facts,
            conns: BTreeMap::new(),
            progress: super::progress::Progress::default(),
            steering: super::steer::Steering::default(),
            effects: Vec::new(),
            batch: Batch::default(),
            store,
            history: History::default(),
            history_at: now,
            admin_url: String::new(),
            asker: String::new(),
            head,
            pass_cost: Duration::ZERO,
            totals_at: now,
            sent_at: now,
            inbox,
        })
    }

    /// Settings given at the start replace the stored ones.
    ///
    /// # Errors
    /// They are out of range.
    pub fn set_times(&mut self, debounce: Option<f64>, grace: Option<f64>) -> Result<(), Refusal> {
        let mut settings = self.manager.state.map().settings.clone();
        settings.debounce_seconds = debounce.unwrap_or(settings.debounce_seconds);
        settings.grace_seconds = grace.unwrap_or(settings.grace_seconds);
        self.apply("coordinator", Command::SetSettings { settings: Box::new(settings) }).map(|_| ())
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
        self.manager.begin(wiring::now());
        self.manager.unix_ms = wiring::unix_ms();
        for input in inputs.drain(..) {
            self.handle(input);
        }
        self.manager.judge();
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
            // The viewer may have gone.
            Input::Console(answer) => drop(answer.send(Box::new(self.console_facts()))),
            Input::Planned(plan) => self.manager.handle_planned(*plan),
            Input::Frozen(gap) => {
                tracing::warn!(gap_ms = gap.as_millis(), "this process stood still; nobody is judged for a while");
                self.manager.runtime.handle_frozen(gap, self.manager.now);
            }
        }
    }

    fn handle_closed(&mut self, id: ConnId, by_process: bool) {
        self.conns.remove(&id);
        self.gateway_figures.retain(|_, (conn, _)| *conn != id);
        self.manager.handle_closed(id, by_process);
    }

    /// Applies a command; its changes become durable at the turn's end.
    pub(super) fn apply(&mut self, actor: &str, command: Command) -> Result<Applied, Refusal> {
        let actor = if actor == OPERATOR { self.asker.as_str() } else { actor };
        self.manager.apply(actor, command)
    }

    /// What `apply` would answer to an operator; changes nothing.
    pub(super) fn probe(&self, command: Command) -> Result<(), Refusal> {
        self.manager.probe(command)
    }

    /// Adds an event.
    pub(super) fn tell(&mut self, kind: &'static str, actor: &str, text: String) {
        let actor = if actor == OPERATOR { self.asker.as_str() } else { actor };
        self.manager.tell(kind, actor, text);
    }

    /// The operator changed what a plan rests on: the job that follows names who it was, as the event does.
    pub(super) fn plan_for_operator(&mut self, what: String) {
        self.manager.planning.touch_for(self.manager.now, &self.asker, what);
    }

    /// One pass over all PGs, when something changed. A pass takes at most a quarter of the time.
    fn decide(&mut self) {
        let began = std::time::Instant::now();
        if self.manager.decide(DELTA_INTERVAL.max(self.pass_cost * 4)) {
            self.pass_cost = began.elapsed();
        }
    }

    fn plan(&mut self) {
        let Some(input) = self.manager.take_plan_input() else { return };
        let inbox = self.inbox.clone();
        tokio::task::spawn_blocking(move || {
            let plan = wiring::checked_plan(&input);
            if let Some(inbox) = inbox.upgrade() {
                // The owner may be gone: then nobody needs the plan.
                let _ = inbox.blocking_send(Input::Planned(Box::new(plan)));
            }
        });
    }

    fn housekeep(&mut self) {
        if !self.manager.look() {
            return;
        }
        let version = self.manager.state.map().version;
        let conns = &self.conns;
        let due = self.manager.purges_due(|c| conns.get(&c).is_some_and(|c| c.has_version == Some(version)));
        for purge in due {
            self.effects.push(Effect::Send(purge.conn, wiring::purge(purge.pg, purge.disk, purge.up_to)));
        }
        self.sample_history();
        let sessions = self.sessions();
        let left = self.left_of(&sessions, &self.waiting(&sessions));
        let job = self.manager.planning.job.id;
        let (map, rates) = (self.manager.state.map(), super::whatif::rates(self.manager.state.map()));
        let forecast = rates.of_disk(crate::core::ids::DiskId(0));
        self.progress.sample(self.manager.now, &left, job, forecast, map.settings.resync.cap_bytes_per_sec);
        self.note_written();
        self.steer_resync();
        self.tell_of_targets(&sessions);
    }

    /// Everything of this turn becomes durable.
    async fn commit(&mut self) -> Result<(), MetaError> {
        for told in self.manager.take_told() {
            tracing::info!(kind = told.kind, actor = told.actor, "{}", told.text);
            self.facts.metrics.count_event(told.kind);
            self.events.add(told.kind, &told.actor, told.text, wiring::unix_ms(), &mut self.batch);
        }
        let mut totals = None;
        if self.manager.has_changed() || self.manager.now.since(self.totals_at) >= TOTALS_INTERVAL {
            totals = self.totals.to_store();
            self.totals_at = self.manager.now;
        }
        let mut batch = std::mem::take(&mut self.batch);
        if let Some(record) = &totals {
            super::events::put_totals(record, &mut batch);
        }
        let mut head = None;
        if self.manager.has_changed() {
            // Whoever else may have written the map meanwhile, this binary must not write over it.
            batch.expect.push((records::HEAD_KEY.to_owned(), self.head.clone()));
            let changed = self.manager.take_changed();
            records::put_changes(&self.manager.state, &changed, &mut batch);
            head = batch.writes.last().and_then(|(_, value)| value.clone());
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
        self.facts.map_version.store(self.manager.state.map().version, Ordering::Relaxed);
        Ok(())
    }

    /// Lets out what the turn has decided.
    fn release(&mut self) {
        for effect in std::mem::take(&mut self.effects) {
            match effect {
                Effect::Send(id, frame) => self.send(id, frame),
                Effect::Follow(id) => {
                    let version = self.manager.state.map().version;
                    if let Some(conn) = self.conns.get_mut(&id) {
                        conn.has_version = Some(version);
                    }
                    for frame in wiring::delta_frames(&self.manager.state, 0) {
                        self.send(id, frame);
                    }
                }
                Effect::Refuse(id, reason) => self.refuse_now(id, reason),
                // The client may have hung up.
                Effect::Answer(reply, answer) => drop(reply.send(answer)),
            }
        }
        if self.manager.now.since(self.sent_at) >= DELTA_INTERVAL {
            self.send_deltas();
        }
    }

    fn has_followers_behind(&self) -> bool {
        let version = self.manager.state.map().version;
        self.conns.values().any(|c| c.has_version.is_some_and(|v| v < version))
    }

    fn send_deltas(&mut self) {
        self.sent_at = self.manager.now;
        let version = self.manager.state.map().version;
        let behind = self.conns.iter().filter_map(|(id, c)| c.has_version.filter(|v| *v < version).map(|v| (*id, v)));
        let behind: Vec<(ConnId, u64)> = behind.collect();
        let mut made: BTreeMap<u64, Vec<Frame>> = BTreeMap::new();
        for (id, from) in behind {
            let frames = made.entry(from).or_insert_with(|| wiring::delta_frames(&self.manager.state, from)).clone();
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
        let removed = match &conn.peer.role {
            Role::Node(node) if self.manager.outdated().is_none() => {
                let record = self.manager.state.map().nodes.get(node);
                record.is_some_and(|n| n.admin_state == NodeAdminState::Removed)
            }
            _ => false,
        };
        let frame = Frame::new(kind::REFUSED, Bytes::from(Refused { reason, removed }.encode_to_vec()));
        // If it can't be told, the end of the link must do.
        let _ = conn.sender.send(frame);
        conn.sender.finish();
        tokio::spawn(async move {
            let _ = tokio::time::timeout(Duration::from_secs(1), conn.link.closed()).await;
            conn.link.close("refused");
        });
    }
}
