//! What goes into a replica and what comes out of it.

use std::sync::Arc;

use bytes::Bytes;

use super::disk_ops::{DiskOp, DiskResult};
use crate::core::cluster::{PgConfig, Replica as Member};
use crate::core::hashtree::Hash;
use crate::core::ids::{ChunkId, DiskId, Generation, VolumeId};
use crate::core::units::Instant;

/// A client request's handle, unique on its node; the driver knows whom to answer.
pub type RequestId = u64;

/// A disk operation's handle, unique within the replica.
pub type Token = u64;

/// One ordered operation: what every member applies under the PG's sequence.
#[derive(Clone, Debug, PartialEq)]
pub enum Operation {
    /// Whole blocks with their leaves (verified by whoever took them off the network).
    Write {
        /// Chunk.
        chunk: ChunkId,
        /// First block in the chunk.
        first_block: u32,
        /// One for each block.
        leaves: Arc<Vec<Hash>>,
        /// Their content.
        data: Bytes,
    },
    /// Blocks that read as zeros from now on.
    Zero {
        /// Chunk.
        chunk: ChunkId,
        /// First block in the chunk.
        first_block: u32,
        /// Number of blocks.
        count: u32,
    },
    /// Gateways of `volume` below `incarnation` may do nothing more (R14).
    Fence {
        /// Volume.
        volume: VolumeId,
        /// The lowest incarnation that may go on.
        incarnation: u64,
    },
    /// The chunk is gone (its volume is being deleted).
    Drop {
        /// Chunk.
        chunk: ChunkId,
    },
}

impl Operation {
    /// The chunk that it touches, with its block range.
    pub fn extent(&self) -> Option<(ChunkId, std::ops::Range<u32>)> {
        match self {
            Operation::Write { chunk, first_block, leaves, .. } => {
                Some((*chunk, *first_block..first_block + leaves.len() as u32))
            }
            Operation::Zero { chunk, first_block, count } => Some((*chunk, *first_block..first_block + count)),
            Operation::Drop { chunk } => Some((*chunk, 0..crate::core::units::BLOCKS_PER_CHUNK as u32)),
            Operation::Fence { .. } => None,
        }
    }
}

/// What a gateway asks of a primary. Offsets and lengths are bytes within one chunk.
#[derive(Clone, Debug)]
pub enum ClientOp {
    /// First request of a gateway's connection for this PG: fence, drain, then IO may come (R6, R14).
    Open,
    /// Read.
    Read {
        /// Chunk.
        chunk: ChunkId,
        /// Byte offset in it.
        offset: u32,
        /// Bytes.
        len: u32,
    },
    /// Write. `leaves` covers whole blocks; it is empty if the range isn't block aligned.
    Write {
        /// Chunk.
        chunk: ChunkId,
        /// Byte offset in it.
        offset: u32,
        /// One for each block, or empty.
        leaves: Vec<Hash>,
        /// Content.
        data: Bytes,
        /// Stable before the answer.
        fua: bool,
    },
    /// Whole blocks become zeros.
    Zero {
        /// Chunk.
        chunk: ChunkId,
        /// First block.
        first_block: u32,
        /// Blocks.
        count: u32,
        /// Stable before the answer.
        fua: bool,
    },
    /// All that was acked on this PG becomes stable (R12).
    Flush,
    /// Which blocks hold data?
    Status {
        /// Chunk.
        chunk: ChunkId,
        /// First block.
        first_block: u32,
        /// Blocks.
        count: u32,
    },
    /// The BLAKE3 root of the chunk's first `len` bytes.
    Root {
        /// Chunk.
        chunk: ChunkId,
        /// True length: less than a chunk for a volume's last one.
        len: u32,
    },
}

/// A request with its sender's credentials.
#[derive(Clone, Debug)]
pub struct ClientRequest {
    /// Handle.
    pub id: RequestId,
    /// Volume.
    pub volume: VolumeId,
    /// The gateway's attach incarnation; 0: read-only (no fence, no writes).
    pub incarnation: u64,
    /// The gateway's connection number: rises with each reconnect (R6).
    pub connection: u64,
    /// What.
    pub op: ClientOp,
}

/// What a client gets.
#[derive(Clone, Debug, PartialEq)]
pub enum ClientReply {
    /// Done. With the PG's durability epoch (R13).
    Done {
        /// See [`PgConfig::durability_epoch`].
        durability_epoch: u64,
    },
    /// Content.
    Data(Bytes),
    /// One bit a block, least significant first: set where there is data.
    Allocated(Vec<u8>),
    /// Root.
    Root(Hash),
    /// Ask the primary of a newer configuration; nothing was or will be done.
    NotPrimary,
    /// This gateway has been fenced (R14), for good.
    Fenced,
    /// `Open` comes first on a new connection.
    NotOpen,
    /// No replica has a good copy of this range.
    IoError,
}

/// A chunk in a replica's table (R16).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableEntry {
    /// Chunk.
    pub chunk: ChunkId,
    /// Generation of the last operation on it.
    pub generation: Generation,
    /// PG sequence of the last operation on it.
    pub sequence: u64,
    /// Root, if the chunk is clean.
    pub root: Option<Hash>,
    /// The version can't be trusted: compare by content.
    pub unsure: bool,
}

/// Messages between replicas of one PG.
#[derive(Clone, Debug, PartialEq)]
pub enum PeerMessage {
    /// Primary → member: accept this configuration.
    NewConfig {
        /// The configuration, without learners.
        config: PgConfig,
    },
    /// Member → primary: accepted and stable; all earlier operations are in or out.
    ConfigAccepted {
        /// Accepted.
        generation: Generation,
        /// Highest sequence received.
        last_sequence: u64,
        /// Ranges that may be on some members only.
        uncommitted: Vec<(ChunkId, u32, u32)>,
        /// Highest fences, by volume.
        fences: Vec<(VolumeId, u64)>,
    },
    /// Member → primary: it can't be a member (incomplete, or it doesn't know the PG).
    ConfigRefused {
        /// Refused.
        generation: Generation,
    },
    /// New primary → members: sequences go on from here.
    Activate {
        /// Generation.
        generation: Generation,
        /// The next operation has this plus one.
        base_sequence: u64,
    },
    /// Old primary → new one: nothing is served under the old generation any more.
    Yield {
        /// The new generation.
        generation: Generation,
    },
    /// Primary → member: the chunk is about to be written; reserve its space (R9).
    Prepare {
        /// Generation.
        generation: Generation,
        /// Chunk.
        chunk: ChunkId,
    },
    /// Member → primary.
    Prepared {
        /// Generation.
        generation: Generation,
        /// Chunk.
        chunk: ChunkId,
        /// False: the disk is full.
        ok: bool,
    },
    /// Primary → member: apply (R9).
    Replicate {
        /// Generation.
        generation: Generation,
        /// Sequence within the PG: one more than the last.
        sequence: u64,
        /// All up to here is committed.
        committed: u64,
        /// Stable before the ack.
        durable: bool,
        /// What.
        op: Operation,
    },
    /// Member → primary: applied.
    Applied {
        /// Generation.
        generation: Generation,
        /// Sequence.
        sequence: u64,
    },
    /// Member → primary: the generation is old, or a sequence is missing; `generation` is the member's.
    Rejected {
        /// Highest accepted.
        generation: Generation,
        /// True: same generation, but a gap.
        gap: bool,
    },
    /// Primary → member: make all up to `mark` stable.
    Flush {
        /// Generation.
        generation: Generation,
        /// Handle of the primary.
        id: u64,
        /// Highest sequence covered.
        mark: u64,
    },
    /// Member → primary.
    Flushed {
        /// Generation.
        generation: Generation,
        /// Echo.
        id: u64,
    },
    /// Primary → member: send these blocks (a repair of the primary's copy, R24).
    Fetch {
        /// Generation.
        generation: Generation,
        /// Handle.
        id: u64,
        /// Chunk.
        chunk: ChunkId,
        /// First block.
        first_block: u32,
        /// Blocks.
        count: u32,
    },
    /// Member → primary. Empty data: this member has no good copy.
    Fetched {
        /// Generation.
        generation: Generation,
        /// Handle.
        id: u64,
        /// One for each block.
        leaves: Arc<Vec<Hash>>,
        /// Content.
        data: Bytes,
    },
    /// Resync: on the session's own stream, strictly in order both ways.
    Session(SessionMessage),
}

/// Messages of a resync session between a primary and a learner. One FIFO stream carries copies and forwarded
/// writes, so that their order on the learner is the primary's.
#[derive(Clone, Debug, PartialEq)]
pub enum SessionMessage {
    /// P → L: begin. The learner marks itself incomplete, durably, and answers with its table.
    Open {
        /// Configuration that lists the learner.
        config: PgConfig,
    },
    /// L → P: a part of the table.
    Table {
        /// Entries.
        entries: Vec<TableEntry>,
        /// No more parts follow.
        last: bool,
    },
    /// P → L: the chunk doesn't exist at the primary.
    Drop {
        /// Chunk.
        chunk: ChunkId,
    },
    /// P → L: subtree hashes of the chunk's 16 windows.
    Compare {
        /// Chunk.
        chunk: ChunkId,
        /// One a window.
        windows: Vec<Hash>,
    },
    /// L → P: bit set: that window differs.
    Differs {
        /// Chunk.
        chunk: ChunkId,
        /// Windows.
        windows: u16,
    },
    /// P → L: one window's hashes, a level deeper.
    CompareWindow {
        /// Chunk.
        chunk: ChunkId,
        /// Window.
        window: u32,
        /// Subtree hashes of its sixteen groups of four blocks.
        groups: Vec<Hash>,
    },
    /// L → P: bit set: that group of four blocks differs.
    WindowDiffers {
        /// Chunk.
        chunk: ChunkId,
        /// Window.
        window: u32,
        /// Groups.
        groups: u16,
    },
    /// P → L: the leaves of the groups whose bit is set.
    CompareBlocks {
        /// Chunk.
        chunk: ChunkId,
        /// Window.
        window: u32,
        /// Groups.
        groups: u16,
        /// Four a group.
        leaves: Vec<Hash>,
    },
    /// L → P: bit set: that block of the window differs.
    BlocksDiffer {
        /// Chunk.
        chunk: ChunkId,
        /// Window.
        window: u32,
        /// Blocks.
        blocks: u64,
    },
    /// P → L: blocks of one window (bit set in `blocks`), their leaves and, for those that aren't holes, content.
    Copy {
        /// Chunk.
        chunk: ChunkId,
        /// Window.
        window: u32,
        /// Blocks in the window.
        blocks: u64,
        /// One for each bit set.
        leaves: Vec<Hash>,
        /// Content of the blocks that aren't holes, in order.
        data: Bytes,
    },
    /// L → P: applied, and paid for at the target's throttle.
    Copied {
        /// Chunk.
        chunk: ChunkId,
        /// Window.
        window: u32,
        /// Bytes written.
        bytes: u32,
    },
    /// P → L: all windows of the chunk have been sent; it has this version.
    ChunkDone {
        /// Chunk.
        chunk: ChunkId,
        /// Generation of its last operation.
        generation: Generation,
        /// Sequence of its last operation.
        sequence: u64,
    },
    /// P → L: an ordered operation on a chunk that is not todo (R17).
    Forward {
        /// Generation.
        generation: Generation,
        /// Sequence.
        sequence: u64,
        /// As in [`PeerMessage::Replicate`]: up to here every member has everything.
        committed: u64,
        /// Stable before the ack.
        durable: bool,
        /// What.
        op: Operation,
    },
    /// L → P: applied.
    Forwarded {
        /// Sequence.
        sequence: u64,
    },
    /// P → L: everything has been sent; make it stable.
    Finish {
        /// The primary's highest sequence.
        sequence: u64,
        /// Ranges whose content here may be on some members only: a primary that has not reconciled yet copies them
        /// too, and should the learner lead next, it must reconcile them.
        uncommitted: Vec<(ChunkId, u32, u32)>,
    },
    /// L → P: everything is stable.
    Finished,
}

/// What a replica wants done.
#[derive(Clone, Debug)]
pub enum Action {
    /// Answer a client.
    Reply {
        /// Whom.
        request: RequestId,
        /// What.
        reply: ClientReply,
    },
    /// Send to another replica of the PG.
    Send {
        /// Its disk.
        to: DiskId,
        /// What.
        message: PeerMessage,
    },
    /// Have the disk do something.
    Disk {
        /// Handle.
        token: Token,
        /// What.
        op: DiskOp,
    },
    /// Ask the coordinator (R3).
    Propose {
        /// Outcome is read by it.
        proposal: u64,
        /// The generation that it builds on.
        base: Generation,
        /// What.
        change: Change,
    },
    /// From now on grant no lease under a lower generation; the answer comes as `Input::GrantsEnd`.
    AcceptGeneration {
        /// The configuration.
        config: PgConfig,
    },
    /// Open a resync stream to a learner.
    OpenSession {
        /// Learner.
        learner: Member,
    },
    /// Close it.
    CloseSession {
        /// Learner's disk.
        learner: DiskId,
    },
    /// All chunks of a deleted volume are gone from this PG.
    VolumeDropped(VolumeId),
}

/// A change of membership that a primary proposes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// These members don't answer.
    Remove(Vec<Member>),
    /// This learner is complete.
    Promote(Member),
}

/// What happens to a replica.
#[derive(Clone, Debug)]
pub enum Input {
    /// The map has a configuration for the PG.
    Config(PgConfig),
    /// A gateway asks.
    Client(ClientRequest),
    /// A gateway's connection is gone: what of it hasn't been ordered is dropped.
    ClientGone {
        /// Volume.
        volume: VolumeId,
        /// The gateway's attach incarnation: two gateways may use the same connection number.
        incarnation: u64,
        /// Connection number.
        connection: u64,
    },
    /// Another replica says.
    Peer {
        /// Its disk.
        from: DiskId,
        /// What.
        message: PeerMessage,
    },
    /// The disk answers.
    Disk {
        /// Handle.
        token: Token,
        /// What.
        result: DiskResult,
    },
    /// The grants that this replica's node gave for the PG under lower generations end at this moment.
    GrantsEnd {
        /// The generation that was accepted.
        generation: Generation,
        /// Until when the old primary may believe in a lease.
        at: Instant,
    },
    /// A member's node doesn't answer (or answers again).
    Reachable {
        /// Disk.
        disk: DiskId,
        /// Does it?
        yes: bool,
    },
    /// The stream to a peer's node was made anew: what isn't acked must be sent again.
    LinkReset {
        /// Disk.
        disk: DiskId,
    },
    /// The coordinator answered a proposal.
    Outcome {
        /// Handle.
        proposal: u64,
        /// Taken?
        accepted: bool,
        /// The configuration now.
        config: Option<PgConfig>,
    },
    /// The resync stream to a learner is up.
    SessionUp {
        /// Learner's disk.
        learner: DiskId,
    },
    /// The resync stream to a learner, or (for a learner) from the primary, is gone.
    SessionDown {
        /// The other side's disk.
        peer: DiskId,
    },
    /// The volume is to be deleted.
    DeleteVolume(VolumeId),
    /// Time passes; sent every few milliseconds.
    Tick,
}
