//! What a replica asks of its disk, and what the disk answers.

use std::sync::Arc;

use bytes::Bytes;

use super::types::{Operation, TableEntry};
use crate::core::cluster::PgConfig;
use crate::core::hashtree::Hash;
use crate::core::ids::{ChunkId, Generation, VolumeId};

/// What a disk does for a replica.
#[derive(Clone, Debug, PartialEq)]
pub enum DiskOp {
    /// Reserve a slot and mark it dirty, durably.
    Prepare {
        /// Chunk.
        chunk: ChunkId,
        /// Generation.
        generation: Generation,
    },
    /// Apply an operation that touches a chunk.
    Apply {
        /// Generation.
        generation: Generation,
        /// Sequence.
        sequence: u64,
        /// What; never a `Fence`.
        op: Operation,
        /// fdatasync before it is done.
        durable: bool,
    },
    /// Write blocks of a window, listed by index in the chunk.
    Copy {
        /// Chunk.
        chunk: ChunkId,
        /// Generation for a new header.
        generation: Generation,
        /// (block, leaf) rising.
        blocks: Vec<(u32, Hash)>,
        /// Content of those that aren't holes, in order.
        data: Bytes,
    },
    /// Read and verify blocks.
    Read {
        /// Chunk.
        chunk: ChunkId,
        /// First block.
        first_block: u32,
        /// Blocks.
        count: u32,
        /// For a copy: no guest waits for it.
        resync: bool,
    },
    /// fdatasync, with the PG's flush mark.
    Flush {
        /// Mark.
        mark: u64,
    },
    /// Make the PG's record stable.
    Persist(PgState),
    /// The PG's chunk table.
    Table,
    /// A chunk's leaves and version.
    Leaves {
        /// Chunk.
        chunk: ChunkId,
    },
    /// Set a chunk's version without touching its data.
    SetVersion {
        /// Chunk.
        chunk: ChunkId,
        /// Generation.
        generation: Generation,
        /// Sequence.
        sequence: u64,
    },
}

/// What a disk answers.
#[derive(Clone, Debug)]
pub enum DiskResult {
    /// Done.
    Done,
    /// No slot is free, or the file system is full.
    NoSpace,
    /// The disk has failed, for good (R15).
    Failed(String),
    /// The disk is well, but can't do this for this PG: the replica leaves it and the disk keeps its other PGs (R11).
    Refused(String),
    /// Answer to `Read`.
    Data {
        /// One for each block.
        leaves: Vec<Hash>,
        /// All blocks, holes as zeros.
        data: Bytes,
    },
    /// Answer to `Read`: these blocks (indexes in the chunk) don't match their leaves.
    Bad {
        /// Blocks.
        blocks: Vec<u32>,
    },
    /// Answer to `Table`.
    Table(Vec<TableEntry>),
    /// Answer to `Leaves`; `None`: the chunk doesn't exist.
    Leaves(Option<ChunkLeaves>),
}

/// A chunk's leaves and version.
#[derive(Clone, Debug)]
pub struct ChunkLeaves {
    /// 1,024 leaves.
    pub leaves: Arc<Vec<Hash>>,
    /// Generation of the last operation.
    pub generation: Generation,
    /// Sequence of the last operation.
    pub sequence: u64,
}

/// What a disk's PG table keeps (R21).
#[derive(Clone, Debug, PartialEq)]
pub struct PgState {
    /// The highest configuration accepted; learners are not kept.
    pub config: PgConfig,
    /// False: never a source, never counted, never promoted.
    pub complete: bool,
    /// Fences by volume.
    pub fences: Vec<(VolumeId, u64)>,
    /// Highest sequence received; right after a clean stop (after any other the boot id is new, R1).
    pub last_sequence: u64,
    /// Ranges (chunk, first block, blocks) that may not be on all members; right after a clean stop. Bounded: see
    /// `IN_FLIGHT_MAX`.
    pub uncommitted: Vec<(ChunkId, u32, u32)>,
    /// A learner that can't say which of its chunks are half copied: no version on it can be compared.
    pub unsure_all: bool,
}
