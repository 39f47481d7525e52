//! A resync session that makes no progress says at which chunk, and why.
//!
//! Progress is a part of a table, an answer to a comparison, a window copied, a chunk done, or, in the last phase, all
//! forwarded writes applied. Writes that are forwarded meanwhile are none: a guest that writes elsewhere would hide a chunk
//! that is stuck. A session that gets no tokens isn't stalled: the throttle says what bounds it.

use super::*;

/// Without progress for so long, a session is stalled: a window takes milliseconds, a table of a full disk a second.
pub const STALLED_AFTER: Duration = Duration::from_secs(10);

/// What a stalled session waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StallReason {
    /// Its stream can't be made.
    StreamDown,
    /// The learner's answer.
    Learner,
    /// A write that is under way on the chunk.
    Locked,
    /// Blocks that no replica has right.
    NoGoodCopy,
    /// A damaged block that another replica was asked for.
    Repair,
    /// The primary's disk.
    Disk,
    /// Space on the learner's disk.
    LearnerFull,
    /// The coordinator's answer.
    Promotion,
}

/// (number on the wire, reason, what is wrong, what to do).
const REASONS: [(u32, StallReason, &str, &str); 8] = [
    (1, StallReason::StreamDown, "its stream is not up", "look at the network between the two nodes"),
    (2, StallReason::Learner, "the learner does not answer", "look at the learner's disk and at its node's log"),
    (
        3,
        StallReason::Locked,
        "it waits for a write that is under way on the chunk",
        "a member is slow or away: `evenkeel health` names it",
    ),
    (
        4,
        StallReason::NoGoodCopy,
        "no replica has a good copy of the chunk's blocks",
        "write these blocks anew from a backup, or trim them",
    ),
    (
        5,
        StallReason::Repair,
        "it waits for another replica's copy of a damaged block",
        "a member is slow or away: `evenkeel health` names it",
    ),
    (6, StallReason::Disk, "it waits for the primary's disk", "look at that disk and at its host's log"),
    (7, StallReason::LearnerFull, "the learner's disk is full", "delete data or add a disk"),
    (
        8,
        StallReason::Promotion,
        "it waits for the coordinator's answer to its promotion",
        "look at the coordinator, and at the connection to it",
    ),
];

impl StallReason {
    fn row(self) -> &'static (u32, StallReason, &'static str, &'static str) {
        REASONS.iter().find(|r| r.1 == self).unwrap_or(&REASONS[1])
    }

    /// Its number in messages.
    pub fn code(self) -> u32 {
        self.row().0
    }

    /// The reason with this number; `None`: this release doesn't know it.
    pub fn from_code(code: u32) -> Option<Self> {
        REASONS.iter().find(|r| r.0 == code).map(|r| r.1)
    }

    /// What is wrong, as a clause.
    pub fn text(self) -> &'static str {
        self.row().2
    }

    /// What to do about it, as a clause.
    pub fn advice(self) -> &'static str {
        self.row().3
    }
}

/// A session without progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stalled {
    /// When it last got on.
    pub since: Instant,
    /// Where it is stuck, if that is one chunk.
    pub chunk: Option<ChunkId>,
    /// Why.
    pub reason: StallReason,
}

impl Replica {
    /// If the session to this learner makes no progress: since when, at which chunk, and why.
    pub fn stalled(&self, learner: DiskId, now: Instant) -> Option<Stalled> {
        let session = self.sessions.get(&learner)?;
        let since = session.progress_at();
        if now.since(since) < STALLED_AFTER || session.waits_for_tokens() {
            return None;
        }
        let (chunk, reason) = match session.stuck_at() {
            source::StuckAt::Stream => (None, StallReason::StreamDown),
            source::StuckAt::Learner(chunk) => (chunk, StallReason::Learner),
            source::StuckAt::Table => (None, StallReason::Disk),
            source::StuckAt::Promotion => (None, StallReason::Promotion),
            source::StuckAt::Unreadable(chunk) => (Some(chunk), StallReason::NoGoodCopy),
            source::StuckAt::Reading(chunk) => (Some(chunk), self.why_unread(learner, chunk)),
        };
        Some(Stalled { since, chunk, reason })
    }

    /// Why a read of the chunk for the learner hasn't ended.
    fn why_unread(&self, learner: DiskId, chunk: ChunkId) -> StallReason {
        let for_learner = |op: &Op| match &op.step {
            Step::Snapshot { learner: l } | Step::Window { learner: l, .. } => *l == learner && op.chunk == chunk,
            _ => false,
        };
        let Some((ticket, op)) = self.ops.iter().find(|(_, op)| for_learner(op)) else { return StallReason::Disk };
        let on_disk = self.disk_waits.values().any(|w| matches!(w, Waiting::Op(t) if t == ticket));
        match &op.repair {
            _ if on_disk => StallReason::Disk,
            Some(repair) if repair.locked => StallReason::Repair,
            _ => StallReason::Locked,
        }
    }
}
