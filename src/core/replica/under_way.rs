//! What a replica has under way: operations and their repairs, reservations, flushes, acceptances, and what each answer of its disk
//! stands for. Data alone; [`super::Replica`] and its parts move it on.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::locks::Ticket;
use super::types::*;
use crate::core::cluster::PgConfig;
use crate::core::hashtree::Hash;
use crate::core::ids::{ChunkId, DiskId, Generation, VolumeId};
use crate::core::units::Instant;

/// A gateway's incarnation and its connection number, which counts within the incarnation: two gateways may use the same
/// number. Incarnation 0 reads only.
pub(super) type Connection = (u64, u64);

/// An operation that no gateway asked for.
pub(super) const NO_CONNECTION: Connection = (0, 0);

/// What an operation in the table is about to do when its lock or its disk answers.
#[derive(Debug)]
pub(super) enum Step {
    /// A client's read of a byte range.
    Read { request: RequestId, offset: u32, len: u32 },
    /// A client's write; `merged` once it is whole blocks.
    Write { request: RequestId, offset: u32, leaves: Vec<Hash>, data: Bytes, durable: bool },
    /// A client's zeroing.
    Zero { request: RequestId, durable: bool },
    /// A client's question about allocation.
    Status { request: RequestId },
    /// A client's question about a root.
    Root { request: RequestId, len: u32 },
    /// A chunk of a deleted volume.
    Drop,
    /// A new primary's content of a range that may be on some members only.
    Reconcile,
    /// Resync source: the chunk's leaves, with all unforwarded writes drained.
    Snapshot { learner: DiskId },
    /// Resync source: one window's blocks.
    Window { learner: DiskId, window: u32, blocks: u64 },
    /// Resync target: a message of the session, in order.
    Session { message: Box<SessionMessage> },
    /// Ordered and on its way to the members.
    Ordered,
}

/// A repair of unreadable blocks that runs within an operation (R24).
#[derive(Debug)]
pub(super) struct Repair {
    pub(super) bad: Vec<u32>,
    /// Members still to be asked.
    pub(super) sources: Vec<DiskId>,
    /// The lock is exclusive and the blocks have been read again under it.
    pub(super) locked: bool,
    pub(super) fetch_id: u64,
}

#[derive(Debug)]
pub(super) struct Op {
    pub(super) volume: VolumeId,
    pub(super) connection: Connection,
    pub(super) chunk: ChunkId,
    pub(super) range: std::ops::Range<u32>,
    pub(super) step: Step,
    pub(super) repair: Option<Repair>,
}

/// An ordered operation that isn't committed.
#[derive(Debug)]
pub(super) struct InFlight {
    pub(super) ticket: Option<Ticket>,
    pub(super) request: Option<RequestId>,
    pub(super) op: Operation,
    pub(super) durable: bool,
    /// When it was ordered.
    pub(super) since: Instant,
    pub(super) local_done: bool,
    pub(super) awaiting: BTreeSet<DiskId>,
}

#[derive(Debug)]
pub(super) struct PendingFlush {
    pub(super) request: RequestId,
    pub(super) mark: u64,
    /// When it was asked for.
    pub(super) since: Instant,
    pub(super) local_done: bool,
    pub(super) awaiting: BTreeSet<DiskId>,
}

#[derive(Debug, Default)]
pub(super) struct Preparing {
    /// When those that it awaits were asked.
    pub(super) since: Instant,
    pub(super) awaiting: BTreeSet<DiskId>,
    pub(super) full: BTreeSet<DiskId>,
    pub(super) waiters: Vec<Ticket>,
    pub(super) retry_at: Option<Instant>,
}

#[derive(Debug)]
pub(super) struct PendingOpen {
    pub(super) request: RequestId,
    pub(super) volume: VolumeId,
    pub(super) connection: Connection,
    /// The fence's sequence, until it is committed.
    pub(super) fence: Option<u64>,
}

#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub(super) enum Phase {
    Collecting,
    Reconciling,
    Serving,
}

#[derive(Debug)]
pub(super) enum Role {
    /// Not a member: nothing, an old copy, or a learner.
    Outside,
    Secondary,
    Primary(Phase),
    /// The disk failed (R15), or can't keep this PG (R11): silent for good.
    Failed,
}

/// What a disk token stands for.
#[derive(Debug)]
pub(super) enum Waiting {
    /// The operation with this ticket.
    Op(Ticket),
    /// The local apply of an ordered operation at the primary.
    Local(u64),
    /// The apply of a replicated operation at a secondary.
    Apply {
        from: DiskId,
        sequence: u64,
        durable: bool,
    },
    /// The PG's record, and who waits for it.
    Record(Vec<Waiting>),
    /// The accepted configuration's record.
    Persist(Generation),
    /// What a promoted learner has, made stable before it accepts this generation.
    AcceptFlush(Generation),
    /// A fence's record at a member.
    PersistFence {
        from: Option<DiskId>,
        sequence: u64,
    },
    /// A local flush for a client.
    Flush(u64),
    /// A flush for the primary.
    MemberFlush {
        from: DiskId,
        id: u64,
    },
    /// The local reservation of a chunk.
    Prepare(ChunkId),
    /// A member's reservation.
    MemberPrepare {
        from: DiskId,
        chunk: ChunkId,
    },
    /// A member's answer to a fetch.
    Fetch {
        from: DiskId,
        id: u64,
    },
    /// The primary's own table, for a session.
    SourceTable(DiskId),
    /// The chunks of a volume that is to be deleted.
    DeleteTable(VolumeId),
    /// The chunks of an incomplete copy that the operator made lead under this generation; the version of one; all
    /// versions made stable.
    ForcedTable(Generation),
    ForcedVersion(Generation),
    ForcedFlush(Generation),
    /// The record, the table and the last flush of the learner's session with this number: a later one must not take
    /// them for its own.
    TargetOpen(u64),
    TargetTable(u64),
    TargetFinish(u64),
}

/// Collecting acceptances of a configuration.
#[derive(Debug, Default)]
pub(super) struct Activation {
    pub(super) began: Instant,
    /// This replica led the generation before and has its operations in flight.
    pub(super) continuing: bool,
    pub(super) persisted: bool,
    pub(super) waiting: BTreeSet<DiskId>,
    /// Promoted learners whose forwarded operations are not all applied: told afterwards.
    pub(super) held_back: BTreeSet<DiskId>,
    /// Promoted learners that have not been told where sequences begin for them: after this one. They have all up to
    /// here by copies and forwards.
    pub(super) newcomers: BTreeMap<DiskId, u64>,
    /// Where sequences begin for those that have been told. The word may be lost with a link: then they hear it again.
    pub(super) bases: BTreeMap<DiskId, u64>,
    pub(super) max_sequence: u64,
    pub(super) uncommitted: BTreeSet<(ChunkId, u32, u32)>,
    pub(super) grants_end: Option<Instant>,
    /// Who led the configuration that this replica knew before: it alone can say that nobody serves any more.
    pub(super) predecessor: Option<DiskId>,
    /// The first of the configurations without a gap which this replica has led since: a word of any of them counts.
    pub(super) led_since: Generation,
    pub(super) reconciling: BTreeSet<Ticket>,
    /// Repairs look again once all members can answer.
    pub(super) repairs_due: bool,
    /// Chunks of an incomplete copy that the operator made lead, whose versions are still being set.
    pub(super) restamping: usize,
}

/// A secondary's acceptance that waits for what it admitted before (R6).
#[derive(Debug)]
pub(super) struct Accepting {
    pub(super) from: DiskId,
    pub(super) config: PgConfig,
    pub(super) persisting: bool,
    pub(super) flush: AcceptFlush,
}

/// A promoted learner makes stable what was forwarded to it.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub(super) enum AcceptFlush {
    Due,
    Running,
    Done,
}
