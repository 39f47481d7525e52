//! The chunk store of one disk: a directory with one sparse file, or a block device.
//!
//! Purpose: keep chunks, their leaves and what the disk knows of its PGs, so that what was flushed is there after any
//! crash, and what is damaged is known to be. [`Disk`] is a blocking API with `&self` for a pool of threads.
//!
//! Invariants, by the rules of PROTOCOL.md:
//! - A header write is stable before the next one of that slot, in alternating copies (R22).
//! - Before a chunk's first write its dirty mark is stable; a header without the mark has a root that holds (R23, R25).
//! - A slot is reused only after it was wiped and its free header is stable, so old leaves never vouch for another
//!   chunk's data (R22).
//! - After a failed write or fsync nothing is written any more, in this start or a later one (R15).
//! - A read gives only blocks that match their leaves (I4).
//!
//! What callers owe: no two changes of one block at a time; a read that meets a change of its block may fail and is
//! retried under the block's lock (R24); `sequence` rises with each change of a chunk.
//!
//! Units: blocks of 4 KiB counted within a chunk; everything else in bytes. Non-goals: replication, repair (the
//! caller fetches good blocks and writes them), salvage, throttling.
//!
//! Parts: [`layout`] bytes on disk · [`backend`] raw IO · `commit` group commit · `scan` index from headers · `chunk`
//! one chunk in memory · `data` read, write, zero · `leaves` their cache · `marks` dirty marks and cleaning · `free`
//! slots · `recover` after an unclean stop · `pgs` PG table, flush marks, flush · `format` making a disk.

mod backend;
mod chunk;
mod commit;
mod data;
mod error;
mod format;
mod free;
pub mod layout;
mod leaves;
mod marks;
mod pgs;
mod recover;
mod scan;

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod sim;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, RwLock};

use self::backend::{Backend, Io};
use self::chunk::{Chunk, HotSet, Index, Slots};
use self::commit::GroupCommit;
pub use self::error::{DiskFault, FlushDisk, FormatDisk, OpenDisk, PutPg, ReadChunk, WriteChunk};
pub use self::format::{CAPACITY_BYTES_MIN, FormatOptions, clear_failed, format, inspect};
use self::layout::{SLOT_BYTES, SUPERBLOCK_OFFSETS, Superblock};
use self::marks::HeaderUpdate;
pub use self::pgs::PgRecord;
use self::pgs::{MarkTable, PgTable};
use crate::core::hashtree::Hash;
use crate::core::ids::{BootId, ChunkId, ClusterId, Generation, PgId};
use crate::core::units::CHUNK_BYTES;

/// How a disk is opened.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// Refuse a disk of another cluster; `None` takes any.
    pub cluster: Option<ClusterId>,
    /// The superblock's version when the disk was last opened here, 0 if it never was. A lower one is that of an old copy
    /// put back: it says that it was stopped cleanly, but lacks what was written since, so it gets a new boot id (R1).
    pub version_min: u64,
    /// Chunks that may be marked dirty at once: what is rehashed after an unclean stop (1,024: 4 GiB, some seconds
    /// of an SSD). More means fewer header writes under scattered load.
    pub hot_chunks_max: usize,
    /// Chunks whose leaves are kept in memory, 32 KiB each (2,048: 64 MiB, the leaves of 8 GiB).
    pub cached_leaves_max: usize,
}

impl Default for OpenOptions {
    fn default() -> Self {
        OpenOptions { cluster: None, version_min: 0, hot_chunks_max: 1024, cached_leaves_max: 2048 }
    }
}

/// One write of whole blocks. The caller has verified the leaves.
#[derive(Clone, Copy, Debug)]
pub struct WriteOp<'a> {
    /// The chunk's PG.
    pub pg: PgId,
    /// The chunk.
    pub chunk: ChunkId,
    /// The generation that the write was ordered in.
    pub generation: Generation,
    /// Its place in the chunk's order (R9).
    pub sequence: u64,
    /// The first block, counted within the chunk.
    pub first_block: usize,
    /// One leaf a block; [`crate::core::hashtree::HOLE`] for a block of zeros.
    pub leaves: &'a [Hash],
    /// The blocks' data.
    pub data: &'a [u8],
    /// Part of a copy: the chunk is less likely to be written again soon than one that a guest writes.
    pub copy: bool,
}

/// A chunk as catch-up compares it (R16).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChunkEntry {
    /// The chunk.
    pub chunk: ChunkId,
    /// Its PG.
    pub pg: PgId,
    /// Of its last operation.
    pub generation: Generation,
    /// Of its last operation.
    pub sequence: u64,
    /// Its hash, while clean.
    pub root: Option<Hash>,
    /// Written since its last clean header.
    pub dirty: bool,
    /// Dirty since before this start, and not yet recovered: its generation and sequence may be too low.
    pub unrecovered: bool,
    /// Trimmed whole.
    pub trimmed: bool,
}

/// How full a disk is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Space {
    /// Data bytes that all slots hold.
    pub capacity_bytes: u64,
    /// All slots.
    pub slots_total: u64,
    /// Slots with a chunk, waiting to be wiped, or quarantined.
    pub slots_used: u64,
    /// Slots ready for a chunk; no more than the file system below has room for.
    pub slots_free: u64,
}

/// What happened since the disk was opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Blocks that didn't match their leaf.
    pub hash_mismatches: u64,
    /// Blocks whose content was taken as it was (R23).
    pub adopted_blocks: u64,
    /// Damaged header copies and PG records found at opening.
    pub corrupt_headers: u64,
    /// Slots out of use because of damaged headers.
    pub quarantined_slots: u64,
    /// fdatasyncs.
    pub fsyncs: u64,
    /// Their time in all.
    pub fsync_time: Duration,
    /// Stable header writes.
    pub header_writes: u64,
    /// Bytes read, leaves and headers included.
    pub read_bytes: u64,
    /// Bytes written, leaves and headers included.
    pub written_bytes: u64,
}

/// An open, locked disk.
pub struct Disk {
    path: PathBuf,
    options: OpenOptions,
    io: Io,
    superblock: Mutex<Superblock>,
    /// A copy of what never changes.
    identity: Superblock,
    failed: AtomicBool,
    cause: Mutex<String>,
    closed: AtomicBool,
    index: RwLock<Index>,
    slots: Mutex<Slots>,
    /// Held while slots are wiped, so that two threads don't wipe the same ones.
    freeing: Mutex<()>,
    /// Callers who need a slot, or a chunk's deletion to be over, and can't go on before slots are wiped.
    slot_waiters: AtomicUsize,
    /// Held while the leaves of a slot are judged.
    vouching: Mutex<()>,
    hot: Mutex<HotSet>,
    hot_changed: Condvar,
    /// Chunks in the order in which their leaves came into memory (second chance).
    leaf_cache: Mutex<VecDeque<Arc<Chunk>>>,
    headers: GroupCommit<HeaderUpdate, DiskFault>,
    flushes: GroupCommit<(PgId, u64), DiskFault>,
    syncs_started: AtomicU64,
    syncs_completed: AtomicU64,
    write_clock: AtomicU64,
    clean_rounds: AtomicU64,
    pgs: Mutex<PgTable>,
    pg_written: Condvar,
    marks: Mutex<MarkTable>,
}

impl Disk {
    /// Locks a disk and rebuilds its index. Unless the last stop was clean, the disk gets a new boot id (R1), and
    /// chunks with a dirty mark wait to be recovered. A failed disk opens for reading alone.
    ///
    /// # Errors
    /// There is no usable disk, another process has it, or it belongs to another cluster.
    pub fn open(path: &Path, options: OpenOptions) -> Result<Self, OpenDisk> {
        Self::open_backend(path, Box::new(format::open_locked(path)?), options)
    }

    fn open_backend(path: &Path, backend: Box<dyn Backend>, options: OpenOptions) -> Result<Self, OpenDisk> {
        let io_error = |action| move |source| OpenDisk::Io { path: path.to_owned(), action, source };
        let io = Io::new(backend);
        let (mut superblock, both_sound) = format::read_superblock(path, io.backend())?;
        let (found, found_bytes) = (superblock.cluster, io.len().map_err(io_error("find its size"))?);
        if let Some(expected) = options.cluster.filter(|c| *c != found) {
            return Err(OpenDisk::OtherCluster { path: path.to_owned(), found, expected });
        }
        let expected_bytes = superblock.geometry.capacity_bytes;
        if found_bytes < expected_bytes {
            return Err(OpenDisk::Truncated { path: path.to_owned(), expected_bytes, found_bytes });
        }
        let old_copy = superblock.version < options.version_min;
        if old_copy {
            tracing::warn!(path = %path.display(), "the disk is an older copy of itself: it counts as incomplete until it has caught up");
        }
        let mut pgs = PgTable::load(&io, &superblock);
        // A damaged copy may have been the newer one and said "not clean". And where a PG's record is gone, nobody may
        // take this disk for a member that has never had it.
        if !superblock.clean || !both_sound || superblock.failed || old_copy || pgs.lost > 0 {
            superblock.boot = format::new_boot_id();
        }
        superblock.clean = false;
        let scan = scan::scan(&io, &superblock);
        let marks = MarkTable::load(&io, &superblock);
        if !scan.slots.quarantined.is_empty() {
            // A chunk is lost, and nobody knows of which PG (R21).
            pgs.mark_all_incomplete();
        }
        io.counters.corrupt_headers.store(scan.corrupt_headers + pgs.corrupt, Ordering::Relaxed);
        let disk = Disk {
            path: path.to_owned(),
            options,
            failed: superblock.failed.into(),
            cause: Mutex::new("it failed before this start".to_owned()),
            closed: false.into(),
            identity: superblock.clone(),
            superblock: Mutex::new(superblock),
            index: RwLock::new(scan.index),
            slots: Mutex::new(scan.slots),
            freeing: Mutex::new(()),
            slot_waiters: AtomicUsize::new(0),
            vouching: Mutex::new(()),
            hot: Mutex::default(),
            hot_changed: Condvar::new(),
            leaf_cache: Mutex::default(),
            headers: GroupCommit::new(),
            flushes: GroupCommit::new(),
            syncs_started: 0.into(),
            syncs_completed: 0.into(),
            write_clock: 1.into(),
            clean_rounds: 0.into(),
            pgs: Mutex::new(pgs),
            pg_written: Condvar::new(),
            marks: Mutex::new(marks),
            io,
        };
        if !disk.is_failed() {
            disk.write_superblock(|_| ()).map_err(io_error("write its superblock"))?;
        }
        Ok(disk)
    }

    /// Flushes, cleans what is dirty, and marks the stop as clean, so that the boot id may be kept (R1). No change is
    /// taken from the start of this call on; those under way are waited for.
    ///
    /// # Errors
    /// The disk has failed, now or before: then the stop is not clean.
    pub fn close_clean(&self) -> Result<(), FlushDisk> {
        self.check()?;
        self.closed.store(true, Ordering::SeqCst);
        self.wait_for_writers();
        self.wipe_deleted()?;
        self.sync(Vec::new())?;
        loop {
            let hot = self.hot.lock().coldest(CLOSE_BATCH);
            if hot.is_empty() || self.clean(hot)? == 0 {
                break;
            }
        }
        self.sync(Vec::new())?;
        self.write_superblock(|s| s.clean = true).map_err(|e| self.fault("write its superblock", &e))?;
        Ok(())
    }

    /// The directory or device.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The disk's superblock as of now: cluster, id, class, boot id, marks.
    pub fn superblock(&self) -> Superblock {
        self.superblock.lock().clone()
    }

    /// This start's boot id (R1).
    pub fn boot_id(&self) -> BootId {
        self.superblock.lock().boot
    }

    /// True once a write or an fsync has failed, in this start or an earlier one (R15).
    pub fn is_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// What the disk knows of a chunk.
    pub fn chunk_meta(&self, chunk: ChunkId) -> Option<ChunkEntry> {
        self.find(chunk).map(|c| entry(&c))
    }

    /// All chunks of a PG, in order (R16).
    pub fn chunk_table(&self, pg: PgId) -> Vec<ChunkEntry> {
        let index = self.index.read();
        let Some(set) = index.pgs.get(&pg) else { return Vec::new() };
        let chunks: Vec<_> = set.iter().filter_map(|c| index.chunks.get(c).cloned()).collect();
        drop(index);
        chunks.iter().map(|c| entry(c)).collect()
    }

    /// The PGs that have chunks here, whether or not they have a record.
    pub fn chunk_pgs(&self) -> Vec<PgId> {
        self.index.read().pgs.keys().copied().collect()
    }

    /// How full the disk is.
    pub fn space(&self) -> Space {
        let slots_total = u64::from(self.identity.geometry.slots);
        let unused = self.slots.lock().free_count();
        let room = self.io.backend().free_bytes().map_or(u64::MAX, |b| b / SLOT_BYTES);
        Space {
            capacity_bytes: slots_total * CHUNK_BYTES,
            slots_total,
            slots_used: slots_total - unused,
            slots_free: unused.min(room),
        }
    }

    /// What happened since the disk was opened.
    pub fn counters(&self) -> Counters {
        let c = &self.io.counters;
        let get = |v: &AtomicU64| v.load(Ordering::Relaxed);
        Counters {
            hash_mismatches: get(&c.hash_mismatches),
            adopted_blocks: get(&c.adopted_blocks),
            corrupt_headers: get(&c.corrupt_headers),
            quarantined_slots: self.slots.lock().quarantined.len() as u64,
            fsyncs: get(&c.fsyncs),
            fsync_time: Duration::from_nanos(get(&c.fsync_nanos)),
            header_writes: get(&c.header_writes),
            read_bytes: get(&c.read_bytes),
            written_bytes: get(&c.written_bytes),
        }
    }

    /// Since when the disk has owed an answer for too long (R7): a call that it hasn't answered for [`HANGS_AFTER`], or an
    /// fdatasync for [`SYNC_HANGS_AFTER`].
    pub fn hangs_since(&self) -> Option<Instant> {
        let (call, sync) = self.io.oldest_inflight();
        let late = |at: Option<Instant>, limit| at.filter(|at| at.elapsed() >= limit);
        [late(call, HANGS_AFTER), late(sync, SYNC_HANGS_AFTER)].into_iter().flatten().min()
    }

    /// True while any IO call is under way.
    pub fn is_busy(&self) -> bool {
        self.io.oldest_inflight() != (None, None)
    }

    fn find(&self, chunk: ChunkId) -> Option<Arc<Chunk>> {
        self.index.read().chunks.get(&chunk).cloned()
    }

    /// Refuses changes on a failed or closed disk.
    fn check(&self) -> Result<(), DiskFault> {
        if self.is_failed() {
            return Err(self.failed_fault());
        }
        if self.closed.load(Ordering::SeqCst) {
            return Err(DiskFault::Closed { path: self.path.clone() });
        }
        Ok(())
    }

    fn check_failed(&self) -> Result<(), DiskFault> {
        if self.is_failed() { Err(self.failed_fault()) } else { Ok(()) }
    }

    fn failed_fault(&self) -> DiskFault {
        DiskFault::Failed { path: self.path.clone(), cause: self.cause.lock().clone() }
    }

    fn no_space(&self) -> DiskFault {
        DiskFault::NoSpace { path: self.path.clone() }
    }

    /// What an error of a write means: a full file system is the request's problem, anything else the disk's end.
    fn fault(&self, action: &str, e: &io::Error) -> DiskFault {
        if backend::no_space(e) {
            return self.no_space();
        }
        self.fail(action, e)
    }

    /// Takes the disk out of use, in memory and on disk (R15).
    fn fail(&self, action: &str, e: &io::Error) -> DiskFault {
        self.take_out(&format!("can't {action}: {e}"));
        self.failed_fault()
    }

    /// Takes the disk out of use for good, for a reason that it may not know itself (R15).
    pub fn take_out(&self, why: &str) {
        {
            let mut cause = self.cause.lock();
            if !self.failed.swap(true, Ordering::SeqCst) {
                why.clone_into(&mut cause);
            }
        }
        let mut newly = false;
        // Both copies, so that one damaged copy can't hide the mark. If even this can't be written, memory and the
        // coordinator know.
        for _ in 0..2 {
            let _unwritable = self.write_superblock(|s| {
                newly |= !s.failed;
                s.failed = true;
            });
            if !newly {
                break;
            }
        }
        self.hot_changed.notify_all();
    }

    /// Changes the superblock in memory and then on disk, in its older copy.
    fn write_superblock(&self, change: impl FnOnce(&mut Superblock)) -> io::Result<()> {
        let mut superblock = self.superblock.lock();
        change(&mut superblock);
        superblock.version += 1;
        self.io.write_sync(&superblock.encode(), SUPERBLOCK_OFFSETS[superblock.copy()])
    }

    /// Waits until no change is under way. Changes are only under way on dirty chunks.
    fn wait_for_writers(&self) {
        let chunks: Vec<_> = self.index.read().chunks.values().cloned().collect();
        for chunk in chunks {
            let mut state = chunk.state.lock();
            while state.writers > 0 || state.header_busy {
                chunk.changed.wait(&mut state);
            }
        }
    }
}

/// A read or write that takes so long has met a disk that hangs: a disk's own retries of one sector end within that.
pub const HANGS_AFTER: Duration = Duration::from_secs(5);
/// The same for an fdatasync, which may have a page cache full of writes to bring out.
pub const SYNC_HANGS_AFTER: Duration = Duration::from_secs(15);
/// Chunks cleaned at a time on closing: bounds the leaves in memory.
const CLOSE_BATCH: usize = 256;

fn entry(chunk: &Chunk) -> ChunkEntry {
    let state = chunk.state.lock();
    let dirty = state.dirty || state.header_busy;
    ChunkEntry {
        chunk: chunk.id,
        pg: chunk.pg,
        generation: state.generation,
        sequence: state.sequence,
        root: (!dirty).then_some(state.root),
        dirty,
        unrecovered: state.is_unrecovered(),
        trimmed: state.trimmed,
    }
}
