//! What can go wrong, in one sentence each, with the path and the way out.

use std::io;
use std::path::PathBuf;

use crate::core::ids::{ChunkId, ClusterId, PgId};
use crate::core::units::HumanBytes;

/// Why a disk takes no change.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum DiskFault {
    /// No slot is free, or the file system below is full. The disk itself is well.
    #[error("disk {} is full: add a disk or free volumes", path.display())]
    NoSpace {
        /// The disk.
        path: PathBuf,
    },
    /// A write or an fsync failed: final (R15).
    #[error("disk {} has failed ({cause}): replace it; its other replicas are being copied", path.display())]
    Failed {
        /// The disk.
        path: PathBuf,
        /// What failed first.
        cause: String,
    },
    /// Stopped.
    #[error("disk {} is closed: open it again first", path.display())]
    Closed {
        /// The disk.
        path: PathBuf,
    },
}

/// A change of a chunk that wasn't made.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum WriteChunk {
    /// The disk takes none.
    #[error(transparent)]
    Disk(#[from] DiskFault),
    /// The blocks lie outside the chunk, or data and leaves differ in length.
    #[error("chunk {chunk}: blocks {first_block}+{count} are not a range of whole blocks within a chunk")]
    BadRange {
        /// The chunk.
        chunk: ChunkId,
        /// The first block asked for.
        first_block: usize,
        /// How many.
        count: usize,
    },
    /// The chunk is stored under another PG; a chunk never changes its PG (R26).
    #[error("chunk {chunk} belongs to PG {stored}, not {given}")]
    OtherPg {
        /// The chunk.
        chunk: ChunkId,
        /// Its PG on this disk.
        stored: PgId,
        /// The PG of the request.
        given: PgId,
    },
    /// The chunk isn't on this disk.
    #[error("chunk {chunk} is not on this disk")]
    Absent {
        /// The chunk.
        chunk: ChunkId,
    },
    /// Its leaves couldn't be read.
    #[error(transparent)]
    Read(#[from] ReadChunk),
}

impl WriteChunk {
    /// True if the request failed for want of space alone.
    pub fn is_no_space(&self) -> bool {
        matches!(self, WriteChunk::Disk(DiskFault::NoSpace { .. }))
    }
}

/// A read that gave nothing.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum ReadChunk {
    /// These blocks couldn't be read or don't match their leaves. Nothing of the buffer may be used.
    #[error("chunk {chunk}: {} of the blocks read are bad (the first is block {}): read them from another replica", blocks.len(), blocks.first().unwrap_or(&0))]
    BadBlocks {
        /// The chunk.
        chunk: ChunkId,
        /// Which ones, ascending, counted within the chunk.
        blocks: Vec<usize>,
    },
    /// The chunk's leaves couldn't be read.
    #[error("chunk {chunk}: its leaves can't be read: read it from another replica")]
    BadLeaves {
        /// The chunk.
        chunk: ChunkId,
    },
    /// The blocks lie outside the chunk, or the buffer has another length.
    #[error("chunk {chunk}: blocks {first_block}+{count} are not a range of whole blocks within a chunk")]
    BadRange {
        /// The chunk.
        chunk: ChunkId,
        /// The first block asked for.
        first_block: usize,
        /// How many.
        count: usize,
    },
}

/// A flush that didn't happen.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum FlushDisk {
    /// The disk takes none.
    #[error(transparent)]
    Disk(#[from] DiskFault),
    /// More PGs than the disk has marks for.
    #[error("disk {}: its table of {entries} flush marks is full: move PGs to other disks", path.display())]
    MarksFull {
        /// The disk.
        path: PathBuf,
        /// How many it has.
        entries: u32,
    },
}

/// A PG record that wasn't stored.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum PutPg {
    /// The disk takes none.
    #[error(transparent)]
    Disk(#[from] DiskFault),
    /// The body is too long.
    #[error("the record of PG {pg} has {len} bytes, a disk stores at most {max}: give the PG fewer volumes")]
    TooLong {
        /// The PG.
        pg: PgId,
        /// The body's length.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// More PGs than the disk has entries for.
    #[error("disk {}: its table of {entries} PGs is full: move PGs to other disks", path.display())]
    TableFull {
        /// The disk.
        path: PathBuf,
        /// How many it has.
        entries: u32,
    },
}

/// A disk that wasn't opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenDisk {
    /// Nothing there.
    #[error("{} holds no Evenkeel disk: format it with `evenkeel disk add`, or mount it first", path.display())]
    NotADisk {
        /// The path.
        path: PathBuf,
    },
    /// Another process has it.
    #[error("disk {} is in use by {}: stop that process first", path.display(), match pid { Some(p) => format!("process {p}"), None => "another process".to_owned() })]
    InUse {
        /// The path.
        path: PathBuf,
        /// The process, if the kernel says.
        pid: Option<u32>,
    },
    /// Formatted for another cluster.
    #[error("disk {} belongs to cluster {found}, not {expected}: give it back, or read it with `evenkeel salvage`", path.display())]
    OtherCluster {
        /// The path.
        path: PathBuf,
        /// The disk's cluster.
        found: ClusterId,
        /// The opener's cluster.
        expected: ClusterId,
    },
    /// Neither superblock copy checks.
    #[error("disk {}: both copies of its superblock are damaged: read what it has with `evenkeel salvage`, then replace it", path.display())]
    SuperblockCorrupt {
        /// The path.
        path: PathBuf,
    },
    /// Written by a newer binary.
    #[error("disk {} has format {found}, this binary reads up to {known}: upgrade this node", path.display())]
    Newer {
        /// The path.
        path: PathBuf,
        /// The disk's format.
        found: u32,
        /// This binary's.
        known: u32,
    },
    /// The file or device has shrunk.
    #[error("disk {} should have {} but has {}: restore the file or device at its full size, or read it with `evenkeel salvage`", path.display(), HumanBytes(*expected_bytes), HumanBytes(*found_bytes))]
    Truncated {
        /// The path.
        path: PathBuf,
        /// By the superblock.
        expected_bytes: u64,
        /// What there is.
        found_bytes: u64,
    },
    /// The operating system refused.
    #[error("disk {}: can't {action} ({source}): check the device and its permissions", path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: io::Error,
    },
}

/// A disk that wasn't formatted.
#[derive(Debug, thiserror::Error)]
pub enum FormatDisk {
    /// There is one already.
    #[error("{} already holds disk {disk} of cluster {cluster}: remove it there first, then delete or wipe it by hand", path.display())]
    AlreadyADisk {
        /// The path.
        path: PathBuf,
        /// What it says of itself.
        disk: String,
        /// Its cluster.
        cluster: ClusterId,
    },
    /// Something else is there.
    #[error("{} holds other data ({what}): give an empty directory, or a device whose first MiB was overwritten with zeros", path.display())]
    OtherData {
        /// The path.
        path: PathBuf,
        /// What was found.
        what: String,
    },
    /// Not enough room for the tables and a few chunks.
    #[error("{} would have {}, a disk needs at least {}: give it more", path.display(), HumanBytes(*capacity_bytes), HumanBytes(*minimum_bytes))]
    TooSmall {
        /// The path.
        path: PathBuf,
        /// What was asked for.
        capacity_bytes: u64,
        /// The least.
        minimum_bytes: u64,
    },
    /// The class name doesn't fit.
    #[error("disk class {class:?} is empty or longer than {max} bytes: choose a short name such as ssd")]
    BadClass {
        /// The name.
        class: String,
        /// The limit.
        max: usize,
    },
    /// Another process has it.
    #[error(transparent)]
    Open(#[from] OpenDisk),
    /// The operating system refused.
    #[error("{}: can't {action} ({source}): check the path, its space and its permissions", path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: io::Error,
    },
}
