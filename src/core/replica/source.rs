//! Resync at the primary: one session per learner.
//!
//! Each chunk is todo, copying or done for a learner (R17); there is no cursor. What isn't todo is forwarded on the
//! session's own FIFO stream, so a copy that was read before a write is applied before it, and a window's lock is
//! held only while its blocks are read and queued. The order that makes this right: a chunk leaves `todo` first
//! (from then on writes are forwarded), then its leaves are read under a lock on the whole chunk (so that every
//! write that was not forwarded has drained), then windows are compared and copied ([`delta`]).

mod delta;

use delta::ActiveChunk;

use super::pace::Pace;
use super::*;
use crate::core::cluster::Learner;
use crate::core::hashtree::{self, HOLE};
use crate::core::units::{
    BLOCK_BYTES, BLOCKS_PER_CHUNK, BLOCKS_PER_WINDOW, CHUNK_BYTES, WINDOW_BYTES, WINDOWS_PER_CHUNK,
};

/// Chunks that one session compares or copies at once: enough to hide a round trip, few enough that a break
/// costs little.
const ACTIVE_CHUNKS_MAX: usize = 16;

/// How far a session is.
#[derive(Clone, Debug)]
pub struct SessionProgress {
    /// The learner's disk.
    pub learner: DiskId,
    /// Why it copies.
    pub class: ResyncClass,
    /// Chunks to look at.
    pub chunks_total: u64,
    /// Compared equal or copied.
    pub chunks_done: u64,
    /// Bytes that travelled.
    pub bytes_sent: u64,
    /// The source's throttle gave no tokens at the last try.
    pub throttled: bool,
    /// Nothing is left to copy.
    pub copied: bool,
    /// Its job is paused.
    pub paused: bool,
}

#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum State {
    /// The stream is not up, or the learner's table has not come whole.
    Opening,
    /// The primary's own table is being read.
    Comparing,
    Copying,
    /// Acks wait for the learner from now on (R18); it makes everything stable.
    Finishing,
    /// The coordinator has been, or is about to be, asked.
    Ready,
}

/// Where a session stands that doesn't get on.
pub(super) enum StuckAt {
    Stream,
    Learner(Option<ChunkId>),
    Table,
    Reading(ChunkId),
    Unreadable(ChunkId),
    Promotion,
}

/// A learner's session.
#[derive(Debug)]
pub(super) struct Session {
    learner: Member,
    class: ResyncClass,
    paused: bool,
    state: State,
    up: bool,
    table: BTreeMap<ChunkId, TableEntry>,
    /// Chunks written while the tables were being read: their versions can't be compared.
    touched: BTreeSet<ChunkId>,
    /// Chunks whose version here can't be trusted since an unclean stop.
    unsure: BTreeSet<ChunkId>,
    todo: BTreeSet<ChunkId>,
    active: BTreeMap<ChunkId, ActiveChunk>,
    forwards: BTreeSet<u64>,
    pace: Pace,
    chunks_total: u64,
    chunks_done: u64,
    bytes_sent: u64,
    throttled: bool,
    /// When it last got on.
    progress_at: Instant,
}

impl Session {
    fn new(learner: Learner, now: Instant) -> Self {
        Session {
            learner: learner.replica,
            class: learner.class,
            paused: learner.paused,
            state: State::Opening,
            up: false,
            table: BTreeMap::new(),
            touched: BTreeSet::new(),
            unsure: BTreeSet::new(),
            todo: BTreeSet::new(),
            active: BTreeMap::new(),
            forwards: BTreeSet::new(),
            pace: Pace::new(),
            chunks_total: 0,
            chunks_done: 0,
            bytes_sent: 0,
            throttled: false,
            progress_at: now,
        }
    }

    pub(super) fn describe(&self) -> String {
        format!(
            "to {:?}, {:?}, up {}, {} todo, active {:?}, {} forwards unanswered, {} B under way",
            self.learner,
            self.state,
            self.up,
            self.todo.len(),
            self.active.keys().take(4).collect::<Vec<_>>(),
            self.forwards.len(),
            self.pace.under_way_bytes()
        )
    }

    pub(super) fn progress_at(&self) -> Instant {
        self.progress_at
    }

    /// The throttle gave nothing at the last try, or its job is paused, and something is left to copy.
    pub(super) fn waits_for_tokens(&self) -> bool {
        (self.throttled || self.paused) && self.state == State::Copying
    }

    /// What it waits for. Of several chunks, one that nobody can read comes last: the others may be what is wrong.
    pub(super) fn stuck_at(&self) -> StuckAt {
        match self.state {
            _ if !self.up => StuckAt::Stream,
            State::Opening => StuckAt::Learner(None),
            State::Comparing => StuckAt::Table,
            State::Finishing => StuckAt::Learner(None),
            State::Ready => StuckAt::Promotion,
            State::Copying => {
                let waits = |a: &ActiveChunk| a.outstanding > usize::from(a.unreadable) || a.copying > 0;
                let reading = self.active.iter().find(|(_, a)| a.leaves.is_none() || a.reading > 0);
                let asked = self.active.iter().find(|(_, a)| waits(a));
                let unreadable = self.active.iter().find(|(_, a)| a.unreadable);
                match (reading, asked, unreadable) {
                    (Some((chunk, _)), _, _) => StuckAt::Reading(*chunk),
                    (None, Some((chunk, _)), _) => StuckAt::Learner(Some(*chunk)),
                    (None, None, Some((chunk, _))) => StuckAt::Unreadable(*chunk),
                    (None, None, None) => StuckAt::Learner(None),
                }
            }
        }
    }

    pub(super) fn progress(&self) -> SessionProgress {
        SessionProgress {
            learner: self.learner.disk,
            class: self.class,
            chunks_total: self.chunks_total,
            chunks_done: self.chunks_done,
            bytes_sent: self.bytes_sent,
            throttled: self.throttled,
            copied: matches!(self.state, State::Finishing | State::Ready),
            paused: self.paused,
        }
    }

    /// Everything is on the learner and stable, and its stream is up.
    pub(super) fn is_ready(&self) -> bool {
        self.state == State::Ready && self.up
    }

    pub(super) fn is_to(&self, replica: Member) -> bool {
        self.learner == replica
    }

    pub(super) fn has_unacked_forwards(&self) -> bool {
        !self.forwards.is_empty()
    }

    /// Its last phase, and it hasn't applied this operation: no ack before it has.
    pub(super) fn owes(&self, sequence: u64) -> bool {
        self.is_final() && self.forwards.contains(&sequence)
    }

    fn is_final(&self) -> bool {
        matches!(self.state, State::Finishing | State::Ready)
    }

    /// True if an operation on the chunk must go to the learner now.
    fn forwards(&mut self, chunk: Option<ChunkId>) -> bool {
        match (self.state, chunk) {
            (State::Opening, _) => false,
            (State::Comparing, Some(chunk)) => {
                self.touched.insert(chunk);
                false
            }
            (State::Comparing, None) => false,
            (_, Some(chunk)) => !self.todo.contains(&chunk),
            (_, None) => true,
        }
    }
}

impl Replica {
    /// Makes the sessions match the configuration's learners.
    pub(super) fn sync_sessions(&mut self) {
        let wanted: BTreeMap<DiskId, Learner> = self.learners.iter().map(|l| (l.replica.disk, *l)).collect();
        let stale: Vec<DiskId> = self
            .sessions
            .iter()
            .filter(|(d, s)| wanted.get(d).map(|l| l.replica) != Some(s.learner))
            .map(|(d, _)| *d)
            .collect();
        for learner in stale {
            // A promoted learner's forwards may still be on the way; its session ends when they are applied.
            let promoted = self.sessions.get(&learner).is_some_and(|s| self.state.config.is_member(s.learner));
            let unfinished = self.sessions.get(&learner).is_some_and(Session::has_unacked_forwards);
            let restarted = wanted.contains_key(&learner);
            if restarted && self.activation.held_back.remove(&learner) {
                self.faulty.insert(learner);
            }
            if promoted && !restarted && (unfinished || self.activation.held_back.contains(&learner)) {
                continue;
            }
            self.sessions.remove(&learner);
            self.actions.push(Action::CloseSession { learner });
            // A learner that was dropped holds up no ack, unless it may be a member (R3).
            if self.proposed_member() != Some(learner) && !self.others().contains(&learner) {
                for entry in self.inflight.values_mut() {
                    entry.awaiting.remove(&learner);
                }
            }
        }
        let proposed = self.proposed_member();
        for (disk, learner) in wanted {
            match self.sessions.get_mut(&disk) {
                Some(session) => (session.class, session.paused) = (learner.class, learner.paused),
                // Its session broke while its promotion is proposed: the outcome comes first.
                None if proposed == Some(disk) => {}
                None => self.new_session(learner),
            }
        }
    }

    pub(super) fn new_session(&mut self, learner: Learner) {
        let disk = learner.replica.disk;
        // Reads for an earlier session to this learner must not be taken for this one's.
        for op in self.ops.values_mut() {
            if let Step::Snapshot { learner } | Step::Window { learner, .. } = op.step
                && learner == disk
            {
                op.step = Step::Read { request: 0, offset: 0, len: 0 };
            }
        }
        self.sessions.insert(disk, Session::new(learner, self.now));
        self.actions.push(Action::OpenSession { learner: learner.replica });
    }

    fn tell_learner(&mut self, learner: DiskId, message: SessionMessage) {
        self.send(learner, PeerMessage::Session(message));
    }

    pub(super) fn session_up(&mut self, learner: DiskId) {
        let mut config = PgConfig { learners: self.learners.clone(), ..self.state.config.clone() };
        if let Some(session) = self.sessions.get_mut(&learner) {
            session.up = true;
            let replica = session.learner;
            if config.is_member(replica) {
                // Until it has accepted, it is a learner (see `teach_again`).
                config.members.retain(|m| *m != replica);
                config.learners.push(Learner { replica, replaces: None, class: session.class, paused: session.paused });
            }
            session.progress_at = self.now;
            self.tell_learner(learner, SessionMessage::Open { config });
        }
    }

    /// The stream broke: the session starts over; what is already equal costs a table.
    pub(super) fn session_down(&mut self, peer: DiskId, env: &mut dyn Env) {
        if self.target.as_ref().is_some_and(|t| t.primary() == peer) {
            self.target_session_down();
        }
        let Some(old) = self.sessions.remove(&peer) else { return };
        let promoted = self.state.config.is_member(old.learner);
        if self.activation.held_back.contains(&peer) {
            // It was promoted, but may lack forwarded writes: it must not count before it has them.
            self.teach_again(peer);
        } else if promoted {
            // It had everything when it was told of the configuration.
        } else if let Some(learner) = self.learners.iter().copied().find(|l| l.replica == old.learner) {
            // While its promotion is proposed, acks need it (R3), and no new session may make it incomplete: it may be
            // a member already. The outcome ends both.
            if self.proposed_member() == Some(peer) {
                return;
            }
            for entry in self.inflight.values_mut() {
                entry.awaiting.remove(&peer);
            }
            self.new_session(learner);
            self.commit_all(env);
        }
    }

    /// The coordinator didn't take the learner: its session starts over.
    pub(super) fn promotion_refused(&mut self, learner: DiskId, env: &mut dyn Env) {
        for entry in self.inflight.values_mut() {
            entry.awaiting.remove(&learner);
        }
        if self.sessions.remove(&learner).is_some() {
            self.actions.push(Action::CloseSession { learner });
        }
        self.sync_sessions();
        self.commit_all(env);
    }

    /// Forwards an ordered operation to every learner for which its chunk is not todo.
    pub(super) fn forward(
        &mut self,
        generation: Generation,
        sequence: u64,
        durable: bool,
        op: &Operation,
        awaiting: &mut BTreeSet<DiskId>,
    ) {
        let chunk = op.extent().map(|(c, _)| c);
        let committed = self.committed_for_members();
        let mut sends = Vec::new();
        for (disk, session) in &mut self.sessions {
            if session.forwards(chunk) {
                session.forwards.insert(sequence);
                if session.is_final() {
                    awaiting.insert(*disk);
                }
                sends.push(*disk);
            }
        }
        for disk in sends {
            self.tell_learner(
                disk,
                SessionMessage::Forward { generation, sequence, committed, durable, op: op.clone() },
            );
        }
    }

    /// Both tables are there: decide what there is to do (R16).
    pub(super) fn source_table(&mut self, learner: DiskId, result: DiskResult) {
        let Some(session) = self.sessions.get_mut(&learner) else { return };
        let DiskResult::Table(mine) = result else { return };
        if session.state != State::Comparing {
            return;
        }
        session.unsure = mine.iter().filter(|e| e.unsure).map(|e| e.chunk).collect();
        let mut drops = Vec::new();
        let known: BTreeSet<ChunkId> = mine.iter().map(|e| e.chunk).collect();
        for entry in &mine {
            // By content alone. A disk may apply writes of one chunk out of order, so its version, the highest sequence, says nothing
            // of a lower one that was still on its way when the power went.
            let equal = session.table.get(&entry.chunk).is_some_and(|theirs| {
                theirs.root.is_some() && theirs.root == entry.root && !session.touched.contains(&entry.chunk)
            });
            if !equal {
                session.todo.insert(entry.chunk);
            }
        }
        // Chunks that appeared since the table was asked for.
        session.todo.extend(std::mem::take(&mut session.touched).into_iter().filter(|c| !known.contains(c)));
        for chunk in session.table.keys() {
            if !known.contains(chunk) && !session.todo.contains(chunk) {
                drops.push(*chunk);
            }
        }
        session.chunks_total = session.todo.len() as u64;
        session.state = State::Copying;
        session.progress_at = self.now;
        for chunk in drops {
            self.tell_learner(learner, SessionMessage::Drop { chunk });
        }
    }

    /// Starts what tokens and limits allow.
    pub(super) fn pump_sessions(&mut self, env: &mut dyn Env) {
        if self.sessions.is_empty() || !self.is_primary() {
            return;
        }
        // A resync source needs no clients: it also runs while IO waits for members (R5).
        let learners: Vec<DiskId> = self.sessions.keys().copied().collect();
        for learner in learners {
            self.pump_session(learner, env);
        }
        self.start_granted(env);
    }

    fn pump_session(&mut self, learner: DiskId, env: &mut dyn Env) {
        loop {
            let Some(session) = self.sessions.get_mut(&learner) else { return };
            if session.state != State::Copying {
                return;
            }
            if session.todo.is_empty() && session.active.is_empty() {
                session.state = State::Finishing;
                session.progress_at = self.now;
                // Fences that are older than the session (R14).
                let generation = self.generation();
                for (volume, incarnation) in self.fences.clone() {
                    let op = Operation::Fence { volume, incarnation };
                    let fence = SessionMessage::Forward { generation, sequence: 0, committed: 0, durable: false, op };
                    self.tell_learner(learner, fence);
                }
                let (sequence, uncommitted) = (self.last_sequence, self.unreconciled());
                return self.tell_learner(learner, SessionMessage::Finish { sequence, uncommitted });
            }
            if session.paused {
                return;
            }
            // Windows of chunks under way come first, then new chunks.
            let ready = session.active.iter().find(|(_, a)| !a.windows.is_empty()).map(|(c, _)| *c);
            if let Some(chunk) = ready {
                if !session.pace.has_room() {
                    return;
                }
                let Some(active) = session.active.get_mut(&chunk) else { return };
                let Some(&(window, blocks)) = active.windows.front() else { return };
                let bytes = u64::from(blocks.count_ones()) * BLOCK_BYTES;
                // Tokens come before the window opens (R18).
                if !env.take_resync_tokens(session.class, bytes) {
                    session.throttled = true;
                    return;
                }
                session.throttled = false;
                active.windows.pop_front();
                active.reading += 1;
                session.pace.begin(chunk, window, bytes, self.now);
                let first = window * BLOCKS_PER_WINDOW as u32;
                let range = first..first + BLOCKS_PER_WINDOW as u32;
                self.start_op(
                    VolumeId(0),
                    NO_CONNECTION,
                    chunk,
                    range,
                    Mode::Resync,
                    Step::Window { learner, window, blocks },
                    env,
                );
            } else if session.active.len() < ACTIVE_CHUNKS_MAX
                && let Some(chunk) = next_chunk(&session.todo, env)
            {
                session.todo.remove(&chunk);
                let compare = session.table.contains_key(&chunk);
                session.active.insert(chunk, ActiveChunk { compare, ..ActiveChunk::default() });
                // No windows: copying begins. Until ChunkDone the learner's version of the chunk means nothing,
                // whatever is forwarded.
                self.tell_learner(learner, SessionMessage::Compare { chunk, windows: Vec::new() });
                self.forward_in_flight(learner, chunk);
                let all = 0..BLOCKS_PER_CHUNK as u32;
                self.start_op(VolumeId(0), NO_CONNECTION, chunk, all, Mode::Resync, Step::Snapshot { learner }, env);
            } else {
                return;
            }
        }
    }

    /// Ranges that an earlier primary may have left on some members only, this one among them.
    fn unreconciled(&self) -> Vec<(ChunkId, u32, u32)> {
        let earlier = self.uncommitted.values().chain(&self.activation.uncommitted).copied();
        let again = self.activation.reconciling.iter().filter_map(|t| self.ops.get(t));
        let again = again.map(|op| (op.chunk, op.range.start, op.range.end - op.range.start));
        let all: BTreeSet<(ChunkId, u32, u32)> = earlier.chain(again).collect();
        all.into_iter().collect()
    }

    /// The learner hears also of what was ordered on the chunk before: the copies contain it, but it may still be
    /// uncommitted, and after a failover the learner must be able to say so.
    fn forward_in_flight(&mut self, learner: DiskId, chunk: ChunkId) {
        let (generation, committed) = (self.generation(), self.committed_for_members());
        let on_chunk = |e: &InFlight| e.op.extent().is_some_and(|(c, _)| c == chunk);
        let list: Vec<(u64, bool, Operation)> =
            self.inflight.iter().filter(|(_, e)| on_chunk(e)).map(|(s, e)| (*s, e.durable, e.op.clone())).collect();
        for (sequence, durable, op) in list {
            if let Some(session) = self.sessions.get_mut(&learner) {
                session.forwards.insert(sequence);
            }
            self.tell_learner(learner, SessionMessage::Forward { generation, sequence, committed, durable, op });
        }
    }

    pub(super) fn on_session_reply(&mut self, from: DiskId, message: SessionMessage, env: &mut dyn Env) {
        let now = self.now;
        let Some(session) = self.sessions.get_mut(&from) else { return };
        if !matches!(message, SessionMessage::Forwarded { .. }) {
            session.progress_at = now;
        }
        match message {
            SessionMessage::Table { entries, last } => {
                if session.state != State::Opening {
                    return;
                }
                session.table.extend(entries.into_iter().map(|e| (e.chunk, e)));
                if last {
                    session.state = State::Comparing;
                    // Writes in flight now are not forwarded and may not be in the table yet.
                    session.touched.extend(self.inflight.values().filter_map(|e| e.op.extent()).map(|(c, _)| c));
                    self.disk(DiskOp::Table, Waiting::SourceTable(from));
                }
            }
            SessionMessage::Differs { chunk, windows } => self.chunk_differs(from, chunk, windows),
            SessionMessage::WindowDiffers { chunk, window, groups } => {
                self.window_differs(from, chunk, window, groups);
            }
            SessionMessage::BlocksDiffer { chunk, window, blocks } => self.blocks_differ(from, chunk, window, blocks),
            SessionMessage::Copied { chunk, window, .. } => {
                session.pace.end(chunk, window, now);
                if let Some(active) = session.active.get_mut(&chunk) {
                    active.copying = active.copying.saturating_sub(1);
                }
                self.chunk_maybe_done(from, chunk);
            }
            SessionMessage::Forwarded { sequence } => {
                session.forwards.remove(&sequence);
                let drained = session.forwards.is_empty();
                if drained && session.is_final() {
                    session.progress_at = now;
                }
                // A restarted member's learner may not ack in that member's place (R1).
                let stands_in = {
                    let learner = session.learner;
                    self.state.config.members.iter().any(|m| m.disk == from && *m != learner)
                };
                if !stands_in && let Some(entry) = self.inflight.get_mut(&sequence) {
                    entry.awaiting.remove(&from);
                }
                self.try_commit(sequence, env);
                if drained {
                    self.release_held_back(from);
                    if self.state.config.members.iter().any(|m| m.disk == from) {
                        self.sync_sessions();
                    }
                }
            }
            SessionMessage::Finished => {
                if session.state == State::Finishing {
                    session.state = State::Ready;
                }
                self.release_held_back(from);
                self.sync_sessions();
                self.propose_promotions(env);
            }
            _ => {}
        }
        self.propose_promotions(env);
    }

    /// A complete learner is proposed as a member, one at a time.
    pub(super) fn propose_promotions(&mut self, env: &mut dyn Env) {
        // Also one that waits for a member to accept: that member may be dead, and the learner its replacement (R5). But
        // not before the leases of earlier primaries have run out: the new member, which granted none of them, may be
        // the next primary and would not know how long to wait (R7).
        let outlived = self.activation.grants_end.is_some_and(|at| at <= self.now);
        if self.proposal.is_some() || !self.is_primary() || !outlived {
            return;
        }
        let ready = self.sessions.values().find(|s| s.is_ready()).map(|s| s.learner);
        if let Some(learner) = ready
            && self.learners.iter().any(|l| l.replica == learner)
        {
            self.propose(Change::Promote(learner), env);
        }
    }
}

/// The first chunk of the volume with the highest priority: its guests are the first that are safe again.
fn next_chunk(todo: &BTreeSet<ChunkId>, env: &dyn Env) -> Option<ChunkId> {
    let mut first = *todo.first()?;
    let mut best = (env.volume_priority(first.volume), first);
    // From volume to volume, not from chunk to chunk.
    while let Some(next) =
        first.volume.0.checked_add(1).and_then(|v| todo.range(ChunkId { volume: VolumeId(v), index: 0 }..).next())
    {
        first = *next;
        let priority = env.volume_priority(first.volume);
        if priority > best.0 {
            best = (priority, first);
        }
    }
    Some(best.1)
}

const _: () = assert!(WINDOW_BYTES * WINDOWS_PER_CHUNK as u64 == CHUNK_BYTES);
