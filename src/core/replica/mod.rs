//! One replica of a placement group: PacificA (Lin et al., MSR-TR-2008-25) with what a block store needs more.
//!
//! Purpose: order writes at the primary, apply them at every member, serve reads under leases, change the
//! configuration without losing an acked byte, and feed learners. PROTOCOL.md's rules are named where they act.
//!
//! Call order: feed [`Input`]s to [`Replica::handle`] with the time and an [`Env`]; take the [`Action`]s that it
//! returns and carry them out in that order. Nothing here waits, reads a clock or touches a file.
//!
//! ```text
//!            Config: I'm primary            all members accepted      reconciled, old grant run out
//! Outside ───────────────────────▶ Collecting ────────────────▶ Reconciling ────────────────▶ Serving
//!    ▲  ▲                              ▲   │ a newer configuration that I lead: Collecting again   │
//!    │  └─────── Secondary ◀───────────┼───┴─── a newer configuration that another leads ◀─────────┘
//!    └── not in the configuration ─────┘
//! ```
//!
//! Non-goals: choosing members (the coordinator), storing data (`disk`), talking (`net`).

mod activation;
mod client;
mod describe;
mod detect;
pub mod disk_ops;
mod dispatch;
#[cfg(test)]
mod handover_tests;
pub mod locks;
mod member;
mod pace;
mod primary;
#[cfg(test)]
mod record_tests;
mod source;
mod target;
#[cfg(test)]
mod test_bed;
#[cfg(test)]
mod tests;
pub mod types;
mod under_way;
mod watchdog;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::cluster::{PgConfig, Replica as Member, ResyncClass};
use super::hashtree::Hash;
use super::ids::{ChunkId, DiskId, Generation, PgId, VolumeId};
use super::units::{BLOCKS_PER_CHUNK, Instant};
pub use detect::LAGGING_AFTER;
pub use disk_ops::*;
use locks::{Locks, Mode, Ticket};
pub use source::SessionProgress;
pub use types::*;
use under_way::*;
pub use watchdog::{STALLED_AFTER, StallReason, Stalled};

/// What a replica asks of its surroundings while it decides.
pub trait Env {
    /// Until when every other member of the configuration has granted this replica a lease (R7).
    fn lease_until(&self, config: &PgConfig, me: DiskId) -> Instant;
    /// Takes `bytes` of resync budget at the source; false: not now. What bounds it is the driver's to report.
    fn take_resync_tokens(&mut self, class: ResyncClass, bytes: u64) -> bool;
    /// A random, nonzero number.
    fn random(&mut self) -> u64;
    /// Chunks of the volume with the highest one are copied first; 0 is usual.
    fn volume_priority(&self, _: VolumeId) -> i32 {
        0
    }
}

/// A full disk is asked again after this long.
const SPACE_RETRY: Duration = Duration::from_millis(300);
/// A refused proposal is made again after this long.
const PROPOSAL_RETRY: Duration = Duration::from_millis(200);
/// Operations of gateways that a primary has ordered and not committed; more wait for these. Every member's record, of
/// bounded size on disk, names their ranges.
const IN_FLIGHT_MAX: usize = 512;
/// Half-copied chunks that a learner's record names one by one.
const UNSURE_MAX: usize = 256;
/// Ranges that a record names at most: what a new primary reconciles, what it orders meanwhile, and half-copied chunks.
pub const RECORD_RANGES_MAX: usize = 2 * IN_FLIGHT_MAX + UNSURE_MAX;
/// Client requests that may wait while a primary activates. A gateway has at most a few hundred under way.
const WAITING_REQUESTS_MAX: usize = 16_384;

/// Ranges of blocks, sorted, those joined that touch or overlap.
fn joined(mut ranges: Vec<(ChunkId, u32, u32)>) -> Vec<(ChunkId, u32, u32)> {
    ranges.sort_unstable();
    let mut joined: Vec<(ChunkId, u32, u32)> = Vec::with_capacity(ranges.len());
    for (chunk, first, count) in ranges {
        match joined.last_mut() {
            Some((last, start, length)) if *last == chunk && first <= *start + *length => {
                *length = (*length).max(first + count - *start);
            }
            _ => joined.push((chunk, first, count)),
        }
    }
    joined
}

/// One disk's replica of one PG.
pub struct Replica {
    me: Member,
    /// As of the input that is being handled.
    now: Instant,
    state: PgState,
    role: Role,
    /// Learners of the current configuration, from the map.
    learners: Vec<super::cluster::Learner>,
    ops: BTreeMap<Ticket, Op>,
    locks: Locks,
    next_ticket: Ticket,
    disk_waits: BTreeMap<Token, Waiting>,
    /// A record is being written; these wait for the next one.
    persisting: bool,
    persist_waiting: Vec<Waiting>,
    next_token: Token,
    /// Highest ordered (primary) or received (secondary).
    last_sequence: u64,
    committed: u64,
    /// Secondary: received, not known to be committed.
    uncommitted: BTreeMap<(u64, u32), (ChunkId, u32, u32)>,
    /// Secondary: received, not yet applied.
    applying: BTreeSet<u64>,
    accepting: Option<Accepting>,
    /// The newest configuration that the map had without this replica.
    left_at: Generation,
    /// The map has it neither as member nor as learner, as far as is known since its session began.
    dropped: bool,
    fences: BTreeMap<VolumeId, u64>,
    /// Primary.
    activation: Activation,
    /// A primary that yielded to a configuration which this replica hasn't heard of yet.
    yielded: Option<(DiskId, Generation)>,
    /// It served, serves no more, and who leads now has not been told.
    unsaid: bool,
    /// Members to which the link was made anew and which have not said yet what they have: what is ordered
    /// meanwhile goes to them afterwards, so that it makes no gap.
    relinking: BTreeSet<DiskId>,
    inflight: BTreeMap<u64, InFlight>,
    /// Tickets with all that they need, for which there is no room in `inflight`.
    crowded: VecDeque<Ticket>,
    waiting_requests: VecDeque<ClientRequest>,
    /// By volume: what was let in last.
    open: BTreeMap<VolumeId, Connection>,
    pending_opens: Vec<PendingOpen>,
    flushes: BTreeMap<u64, PendingFlush>,
    prepared: BTreeSet<ChunkId>,
    preparing: BTreeMap<ChunkId, Preparing>,
    unreachable: BTreeSet<DiskId>,
    /// Members that ack nothing although operations wait for them.
    stuck: BTreeSet<DiskId>,
    acked: BTreeMap<DiskId, detect::Acked>,
    look_after: Instant,
    /// Members that said that they can't go on.
    faulty: BTreeSet<DiskId>,
    /// Tickets whose locks or reservations came through in passing; run at the end of the input.
    granted_later: Vec<Ticket>,
    proposal: Option<(u64, Change)>,
    propose_after: Instant,
    /// Removals that were refused in a row.
    removals_refused: usize,
    /// A primary that can't keep this PG asks that another lead it.
    leaving: bool,
    lease_waiters: Vec<(RequestId, ClientReply)>,
    dropping: BTreeMap<VolumeId, BTreeSet<Ticket>>,
    sessions: BTreeMap<DiskId, source::Session>,
    /// Ordered here, but the disk had no space for it after all: tried again on each tick.
    stalled: Vec<u64>,
    /// Learner.
    target: Option<target::Target>,
    caught_up_with: Option<DiskId>,
    /// Chunks whose version here can't be compared with the primary's.
    unsure_chunks: BTreeSet<ChunkId>,
    /// They are too many to name.
    unsure_all: bool,
    /// Chunks that the session copies now, with the newest version forwarded to them.
    copying: BTreeMap<ChunkId, (Generation, u64)>,
    actions: Vec<Action>,
    /// Blocks that no replica had right, and blocks repaired from another one.
    lost_blocks: u64,
    repaired_blocks: u64,
}

impl Replica {
    /// A replica as its disk's PG table knows it, or (`None`) of which the disk knows nothing.
    pub fn new(pg: PgId, me: Member, known: Option<PgState>) -> Self {
        let state = known.unwrap_or_else(|| PgState {
            config: PgConfig {
                pg,
                generation: Generation::default(),
                durability_epoch: 0,
                members: Vec::new(),
                learners: Vec::new(),
                last_proposal: 0,
                forced: false,
                members_min: 0,
            },
            complete: false,
            fences: Vec::new(),
            last_sequence: 0,
            uncommitted: Vec::new(),
            unsure_all: false,
        });
        // Which of the last sequences the restored ranges had isn't known: they stay until the very last is committed.
        let uncommitted = state.uncommitted.iter().zip(0..).map(|(r, i)| ((state.last_sequence, i), *r)).collect();
        Replica {
            me,
            now: Instant(0),
            fences: state.fences.iter().copied().collect(),
            role: Role::Outside,
            learners: Vec::new(),
            ops: BTreeMap::new(),
            locks: Locks::default(),
            next_ticket: 1,
            disk_waits: BTreeMap::new(),
            persisting: false,
            persist_waiting: Vec::new(),
            next_token: 1,
            last_sequence: state.last_sequence,
            committed: 0,
            uncommitted,
            applying: BTreeSet::new(),
            accepting: None,
            left_at: Generation::default(),
            dropped: false,
            activation: Activation::default(),
            yielded: None,
            unsaid: false,
            relinking: BTreeSet::new(),
            inflight: BTreeMap::new(),
            crowded: VecDeque::new(),
            waiting_requests: VecDeque::new(),
            open: BTreeMap::new(),
            pending_opens: Vec::new(),
            flushes: BTreeMap::new(),
            prepared: BTreeSet::new(),
            preparing: BTreeMap::new(),
            unreachable: BTreeSet::new(),
            stuck: BTreeSet::new(),
            acked: BTreeMap::new(),
            look_after: Instant(0),
            faulty: BTreeSet::new(),
            granted_later: Vec::new(),
            proposal: None,
            propose_after: Instant(0),
            removals_refused: 0,
            leaving: false,
            lease_waiters: Vec::new(),
            dropping: BTreeMap::new(),
            sessions: BTreeMap::new(),
            stalled: Vec::new(),
            target: None,
            caught_up_with: None,
            unsure_chunks: BTreeSet::new(),
            unsure_all: state.unsure_all,
            copying: BTreeMap::new(),
            state,
            actions: Vec::new(),
            lost_blocks: 0,
            repaired_blocks: 0,
        }
    }

    /// Takes one input at time `now`; returns what is to be done, in order.
    pub fn handle(&mut self, input: Input, now: Instant, env: &mut dyn Env) -> Vec<Action> {
        self.now = now;
        if matches!(self.role, Role::Failed) {
            match input {
                Input::Client(request) => self.reply(request.id, ClientReply::NotPrimary),
                Input::Peer { from, message } => self.refuse(from, message),
                Input::Config(config) if config.generation > self.generation() => self.leaving = false,
                Input::Tick if self.leaving && now >= self.propose_after => self.propose_leaving(env),
                _ => {}
            }
            return std::mem::take(&mut self.actions);
        }
        match input {
            Input::Config(config) => self.handle_config(config, now, env),
            Input::Client(request) => self.handle_client(request, env),
            Input::ClientGone { volume, incarnation, connection } => {
                self.cancel_unordered(volume, |c| c == (incarnation, connection));
            }
            Input::Peer { from, message } => self.handle_peer(from, message, now, env),
            Input::Disk { token, result } => self.handle_disk(token, result, now, env),
            Input::GrantsEnd { generation, at } => {
                if generation == self.state.config.generation && self.activation.grants_end.is_none() {
                    self.activation.grants_end = Some(at);
                    self.advance_activation(now, env);
                }
            }
            Input::Reachable { disk, yes } => {
                if yes {
                    self.unreachable.remove(&disk);
                } else {
                    self.unreachable.insert(disk);
                }
                self.propose_removals(now, env);
            }
            Input::LinkReset { disk } => self.resend_to(disk),
            Input::Outcome { proposal, accepted, config } => self.handle_outcome(proposal, accepted, config, now, env),
            Input::SessionUp { learner } => self.session_up(learner),
            Input::SessionDown { peer } => self.session_down(peer, env),
            Input::DeleteVolume(volume) => self.delete_volume(volume),
            Input::Tick => self.tick(now, env),
        }
        self.start_granted(env);
        self.pump_sessions(env);
        std::mem::take(&mut self.actions)
    }

    /// True if this replica serves clients now.
    pub fn is_serving(&self) -> bool {
        matches!(self.role, Role::Primary(Phase::Serving))
    }

    /// True if this replica leads its configuration, serving or not yet.
    pub fn is_primary(&self) -> bool {
        matches!(self.role, Role::Primary(_))
    }

    /// True if it is no member of its configuration, as far as it knows: a learner, or an old copy.
    pub fn is_outside(&self) -> bool {
        matches!(self.role, Role::Outside)
    }

    /// True if it takes part in a resync as its learner, or waits to be promoted after one.
    pub fn is_learning(&self) -> bool {
        self.target.is_some() || (self.caught_up_with.is_some() && !self.dropped)
    }

    /// True if it has all that its configuration had.
    pub fn is_complete(&self) -> bool {
        self.state.complete || self.caught_up_with.is_some()
    }

    /// The accepted configuration.
    pub fn config(&self) -> &PgConfig {
        &self.state.config
    }

    /// What the disk's PG table should say: on each `Persist`, and last of all at a clean stop.
    pub fn state(&self) -> PgState {
        let in_flight =
            self.inflight.values().filter_map(|e| e.op.extent()).map(|(c, r)| (c, r.start, r.end - r.start));
        // A learner that stops in the middle of a chunk must know so afterwards.
        let half = self.unsure_chunks.iter().map(|c| (*c, 0, BLOCKS_PER_CHUNK as u32));
        let ranges = self.uncommitted.values().copied().chain(in_flight).chain(half).collect();
        PgState {
            config: self.state.config.clone(),
            // A learner that has everything may have been promoted while it stops cleanly; what was acked since, it
            // was asked for. A new session takes this back first.
            complete: self.is_complete(),
            fences: self.fences.iter().map(|(v, i)| (*v, *i)).collect(),
            last_sequence: self.last_sequence,
            uncommitted: joined(ranges),
            unsure_all: self.unsure_all,
        }
    }

    /// This replica's disk at its boot.
    pub fn me(&self) -> Member {
        self.me
    }

    /// Disks of other members of the configuration.
    pub fn others(&self) -> Vec<DiskId> {
        self.state.config.members.iter().map(|m| m.disk).filter(|d| *d != self.me.disk).collect()
    }

    /// Disks that are full and make writes of this PG wait.
    pub fn full_disks(&self) -> BTreeSet<DiskId> {
        self.preparing.values().flat_map(|p| p.full.iter().copied()).collect()
    }

    /// Progress of the resync sessions that this primary drives.
    pub fn sessions(&self) -> impl Iterator<Item = SessionProgress> + '_ {
        self.sessions.values().map(source::Session::progress)
    }

    /// (blocks repaired from another replica, blocks that no replica had right), since the start.
    pub fn block_repairs(&self) -> (u64, u64) {
        (self.repaired_blocks, self.lost_blocks)
    }

    /// True while its disk owes an answer: what is queued there would come after a purge, and bring a record back.
    pub fn has_disk_work(&self) -> bool {
        !self.disk_waits.is_empty()
    }

    /// True if something here waits for time to pass: the driver then ticks often.
    pub fn needs_ticks(&self) -> bool {
        !self.sessions.is_empty()
            || !self.lease_waiters.is_empty()
            || self.preparing.values().any(|p| p.retry_at.is_some())
            || matches!(self.role, Role::Primary(Phase::Collecting | Phase::Reconciling))
            || self.target.is_some()
            || !self.stalled.is_empty()
            || !self.unreachable.is_empty()
            || !self.faulty.is_empty()
            || !self.stuck.is_empty()
            || self.leaving
    }

    fn tick(&mut self, now: Instant, env: &mut dyn Env) {
        self.answer_lease_waiters(now, env);
        self.retry_space(now);
        self.retry_stalled();
        self.retry_target(now);
        if now >= self.propose_after {
            // A learner may have become ready while another proposal was under way. It comes before removals, which
            // may be refused for ever for want of that learner (R5).
            self.propose_promotions(env);
        }
        self.look_for_stuck();
        self.propose_removals(now, env);
        self.advance_activation(now, env);
    }

    fn reply(&mut self, request: RequestId, reply: ClientReply) {
        self.actions.push(Action::Reply { request, reply });
    }

    fn send(&mut self, to: DiskId, message: PeerMessage) {
        self.actions.push(Action::Send { to, message });
    }

    fn disk(&mut self, op: DiskOp, waiting: Waiting) {
        let token = self.next_token;
        self.next_token += 1;
        self.disk_waits.insert(token, waiting);
        self.actions.push(Action::Disk { token, op });
    }

    fn generation(&self) -> Generation {
        self.state.config.generation
    }
}
