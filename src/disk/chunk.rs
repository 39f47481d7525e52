//! One chunk in memory, and the index of all of them.
//!
//! Lock order: index, hot set, leaf cache, then one chunk's state. No lock is held across IO; a header in the making
//! is guarded by `header_busy` instead.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::layout::{Header, SlotUse};
use crate::core::hashtree::{HOLE, Hash};
use crate::core::ids::{ChunkId, Generation, PgId};
use crate::core::units::BLOCKS_PER_CHUNK;

/// Leaf updates remembered while a chunk's leaves are being read. More: the reader's copy isn't kept.
const LOADING_UPDATES_MAX: usize = 4096;

pub(super) struct Chunk {
    pub id: ChunkId,
    pub pg: PgId,
    pub slot: u32,
    /// The disk's write clock at the last write: the order in which hot chunks are cleaned.
    pub last_write: AtomicU64,
    /// Which `clean_some` call came before the last write.
    pub last_write_round: AtomicU64,
    /// The `clean_some` call up to which it is likely to be written again.
    pub hot_until_round: AtomicU64,
    pub state: Mutex<State>,
    pub changed: Condvar,
}

pub(super) struct State {
    pub generation: Generation,
    pub sequence: u64,
    /// Valid while not dirty (R25).
    pub root: Hash,
    /// Of the newest header written.
    pub version: u64,
    /// The dirty mark is stable: writes may go ahead.
    pub dirty: bool,
    /// Dirty since before this start, with these blocks known to be bad; `None` inside: not looked at yet.
    pub unrecovered: Option<Option<BTreeSet<usize>>>,
    pub trimmed: bool,
    /// The slot's space is reserved in the file system below.
    pub reserved: bool,
    /// Gone from the index.
    pub deleted: bool,
    /// A header write is under way; the next one waits for it (R22).
    pub header_busy: bool,
    pub writers: u32,
    pub readers: u32,
    /// Counts finished changes of content.
    pub changes: u64,
    /// How many fdatasyncs had started when the last write ended: a later one covers it.
    pub written_at_sync: u64,
    pub leaves: Leaves,
    /// Used since the cache last looked (second chance).
    pub referenced: bool,
    /// Counts readers of all leaves: one that was overtaken must not install what it read.
    pub loads: u64,
    /// Read once without being cached.
    pub missed: bool,
    /// The leaves on disk are those of the header's root: it was looked at, or they were written since this start. Until
    /// then they may be another chunk's, whose data they match (a misdirected write, a slot copied over).
    pub vouched: bool,
}

/// The leaves in memory.
pub(super) enum Leaves {
    Absent,
    /// Being read, by the reader of this number; updates made meanwhile, to be laid over what it read.
    Loading(u64, Vec<(usize, Hash)>),
    Present(Arc<Vec<Hash>>),
}

impl Chunk {
    pub fn new(slot: u32, header: &Header) -> Self {
        Chunk {
            id: header.chunk,
            pg: header.pg,
            slot,
            last_write: AtomicU64::new(0),
            last_write_round: AtomicU64::new(0),
            hot_until_round: AtomicU64::new(0),
            state: Mutex::new(State {
                generation: header.generation,
                sequence: header.sequence,
                root: header.root,
                version: header.version,
                dirty: header.dirty,
                unrecovered: None,
                trimmed: header.trimmed,
                reserved: false,
                deleted: false,
                header_busy: false,
                writers: 0,
                readers: 0,
                changes: 0,
                written_at_sync: 0,
                leaves: Leaves::Absent,
                referenced: false,
                loads: 0,
                missed: false,
                // A dirty chunk has no root; it is rehashed.
                vouched: header.dirty,
            }),
            changed: Condvar::new(),
        }
    }

    /// Waits for the header write under way, then claims the next one.
    pub fn claim_header(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock();
        while state.header_busy {
            self.changed.wait(&mut state);
        }
        state.header_busy = true;
        state
    }

    /// Ends a claim.
    pub fn release_header(&self, mut state: MutexGuard<'_, State>) {
        state.header_busy = false;
        drop(state);
        self.changed.notify_all();
    }
}

impl State {
    /// The chunk's next header.
    pub fn next_header(&self, chunk: &Chunk, dirty: bool, root: Hash) -> Header {
        Header {
            slot_use: SlotUse::Chunk,
            dirty,
            trimmed: self.trimmed,
            chunk: chunk.id,
            pg: chunk.pg,
            generation: self.generation,
            sequence: self.sequence,
            root,
            version: self.version + 1,
        }
    }

    /// Records that blocks from `first` on now have these leaves.
    pub fn update_leaves(&mut self, first: usize, new: &[Hash]) {
        self.changes += 1;
        match &mut self.leaves {
            Leaves::Absent => {}
            Leaves::Present(leaves) => Arc::make_mut(leaves)[first..first + new.len()].copy_from_slice(new),
            Leaves::Loading(_, updates) => {
                if updates.len() + new.len() > LOADING_UPDATES_MAX {
                    self.leaves = Leaves::Absent;
                } else {
                    updates.extend(new.iter().enumerate().map(|(i, l)| (first + i, *l)));
                }
            }
        }
        if let Some(Some(bad)) = &mut self.unrecovered {
            for block in first..first + new.len() {
                bad.remove(&block);
            }
        }
    }

    /// Dirty since before this start, and not all of its blocks are known to be good.
    pub fn is_unrecovered(&self) -> bool {
        self.unrecovered.is_some()
    }

    /// Ends recovery once no bad block is left. True if it ended now.
    pub fn end_recovery(&mut self) -> bool {
        let ended = matches!(&self.unrecovered, Some(Some(bad)) if bad.is_empty());
        if ended {
            self.unrecovered = None;
        }
        ended
    }
}

/// All leaves of a chunk that holds nothing.
pub(super) fn hole_leaves() -> Vec<Hash> {
    vec![HOLE; BLOCKS_PER_CHUNK]
}

/// Every chunk on the disk, and those of each PG. A cache of the header tables.
#[derive(Default)]
pub(super) struct Index {
    pub chunks: BTreeMap<ChunkId, Arc<Chunk>>,
    pub pgs: BTreeMap<PgId, BTreeSet<ChunkId>>,
}

impl Index {
    pub fn insert(&mut self, chunk: Arc<Chunk>) {
        self.pgs.entry(chunk.pg).or_default().insert(chunk.id);
        self.chunks.insert(chunk.id, chunk);
    }

    pub fn remove(&mut self, id: ChunkId) -> Option<Arc<Chunk>> {
        let chunk = self.chunks.remove(&id)?;
        if let Some(set) = self.pgs.get_mut(&chunk.pg) {
            set.remove(&id);
            if set.is_empty() {
                self.pgs.remove(&chunk.pg);
            }
        }
        Some(chunk)
    }
}

/// Which slots hold nothing.
#[derive(Default)]
pub(super) struct Slots {
    /// Used before and wiped: with the version of their header.
    pub freed: BTreeMap<u32, u64>,
    /// Ranges never used, ascending; `end` excluded.
    pub fresh: VecDeque<(u32, u32)>,
    /// Fresh slots whose space in the file system below is reserved already.
    pub reserved: Range<u32>,
    /// Deleted chunks whose slots aren't wiped yet (R22).
    pub deleted: BTreeMap<ChunkId, Arc<Chunk>>,
    /// Slots found half freed at opening, with their version.
    pub half_freed: Vec<(u32, u64)>,
    /// Slots whose headers are damaged, with the highest version known.
    pub quarantined: Vec<(u32, u64)>,
}

/// A slot to be used: its number, its header's version, whether it was never used.
#[derive(Clone, Copy)]
pub(super) struct FreeSlot {
    pub slot: u32,
    pub version: u64,
    pub fresh: bool,
}

impl Slots {
    /// The lowest freed slot, else the lowest fresh one: low numbers keep headers on few pages.
    pub fn take(&mut self) -> Option<FreeSlot> {
        if let Some((slot, version)) = self.freed.pop_first() {
            return Some(FreeSlot { slot, version, fresh: false });
        }
        let (start, end) = self.fresh.front_mut()?;
        let slot = *start;
        *start += 1;
        if *start == *end {
            self.fresh.pop_front();
        }
        Some(FreeSlot { slot, version: 0, fresh: true })
    }

    /// Takes back a slot that wasn't used after all.
    pub fn give_back(&mut self, free: FreeSlot) {
        if free.fresh {
            self.fresh.push_front((free.slot, free.slot + 1));
        } else {
            self.freed.insert(free.slot, free.version);
        }
    }

    /// Notes a never used slot; called in ascending order.
    pub fn add_fresh(&mut self, slot: u32) {
        match self.fresh.back_mut() {
            Some((_, end)) if *end == slot => *end += 1,
            _ => self.fresh.push_back((slot, slot + 1)),
        }
    }

    pub fn free_count(&self) -> u64 {
        self.freed.len() as u64 + self.fresh.iter().map(|(s, e)| u64::from(e - s)).sum::<u64>()
    }
}

/// The chunks whose dirty mark this start has set, bounded (R23).
#[derive(Default)]
pub(super) struct HotSet {
    pub chunks: HashMap<ChunkId, Arc<Chunk>>,
    /// Places taken by marks on their way to the disk.
    pub reserved: usize,
}

impl HotSet {
    /// Up to `max` chunks, those first that are the least likely to be written again, and of these the longest unwritten.
    pub fn coldest(&self, max: usize) -> Vec<Arc<Chunk>> {
        let key = |c: &Chunk| (c.hot_until_round.load(Ordering::Relaxed), c.last_write.load(Ordering::Relaxed));
        let mut all: Vec<_> = self.chunks.values().map(|c| (key(c), c)).collect();
        all.sort_unstable_by_key(|(key, _)| *key);
        all.truncate(max);
        all.into_iter().map(|(_, c)| c.clone()).collect()
    }
}
