//! A simulated disk: what is in its cache, what is on its platters, and what a crash makes of the difference.
//!
//! Semantics are those of the node's disk driver: records and dirty marks are durable when done, data and leaves only
//! after a flush that started later; versions only rise, except where they are unsure; a copy leaves the version alone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use evenkeel::core::hashtree::{self, HOLE, Hash};
use evenkeel::core::ids::{BootId, ChunkId, Generation, PgId};
use evenkeel::core::replica::{ChunkLeaves, DiskOp, DiskResult, Operation, PgState, TableEntry};
use evenkeel::core::units::{BLOCK_BYTES, BLOCKS_PER_CHUNK, CHUNK_BYTES};

use crate::canary::Canary;
use crate::rng::Rng;

const BLOCK: usize = BLOCK_BYTES as usize;
const SECTOR: usize = 512;

/// A block's content and its leaf, as written together.
#[derive(Clone)]
pub struct Block {
    pub leaf: Hash,
    pub data: Arc<Vec<u8>>,
    /// Counts the block's writes.
    stamp: u64,
}

impl Block {
    fn hole() -> Self {
        Block { leaf: HOLE, data: Arc::new(vec![0; BLOCK]), stamp: 0 }
    }
}

#[derive(Clone)]
pub struct Chunk {
    pub version: (Generation, u64),
    /// In the header on the platters.
    stable_version: (Generation, u64),
    dirty: bool,
    /// As of when it was clean last.
    clean_root: Option<Hash>,
    clock: u64,
    /// Blocks that were ever written, as the cache has them.
    pub blocks: BTreeMap<u32, Block>,
    /// The same on the platters, where it differs from the cache.
    unsynced: BTreeMap<u32, Block>,
}

impl Chunk {
    fn block(&self, index: u32) -> Block {
        self.blocks.get(&index).cloned().unwrap_or_else(Block::hole)
    }

    fn put(&mut self, index: u32, new: Block) {
        let old = self.block(index);
        self.clock += 1;
        let new = Block { stamp: self.clock, ..new };
        self.unsynced.entry(index).or_insert(old);
        // Holes are kept too, for their stamp.
        self.blocks.insert(index, new);
    }

    /// It reads as zeros.
    pub fn is_empty(&self) -> bool {
        self.blocks.values().all(|b| b.leaf == HOLE)
    }

    pub fn leaves(&self) -> Vec<Hash> {
        let mut leaves = vec![HOLE; BLOCKS_PER_CHUNK];
        for (i, b) in &self.blocks {
            leaves[*i as usize] = b.leaf;
        }
        leaves
    }
}

/// What a flush covers, by chunk and block.
pub type Covered = BTreeMap<ChunkId, BTreeMap<u32, Block>>;

pub struct Disk {
    pub boot: BootId,
    pub chunks: BTreeMap<ChunkId, Chunk>,
    unsure: BTreeSet<ChunkId>,
    /// The PG table (R21).
    pub states: BTreeMap<PgId, PgState>,
    /// The other copies of the records: what each was before its last change.
    pub older_states: BTreeMap<PgId, PgState>,
    /// The stable flush marks (R2).
    pub marks: BTreeMap<PgId, u64>,
    /// The volume's PGs, over which its chunks cycle.
    layout: Vec<PgId>,
    pub failed: bool,
    pub full: bool,
    pub canary: Option<Canary>,
    /// Canary: an fsync failed, and those after it succeed without anything being made stable.
    pub loses_flushes: bool,
}

impl Disk {
    pub fn new(boot: BootId, layout: Vec<PgId>) -> Self {
        Disk {
            boot,
            chunks: BTreeMap::new(),
            unsure: BTreeSet::new(),
            states: BTreeMap::new(),
            older_states: BTreeMap::new(),
            marks: BTreeMap::new(),
            layout,
            failed: false,
            full: false,
            canary: None,
            loses_flushes: false,
        }
    }

    pub fn pg_of(&self, chunk: ChunkId) -> PgId {
        self.layout[chunk.index as usize % self.layout.len()]
    }

    /// Bytes that the PG's chunks take.
    pub fn bytes_of(&self, pg: PgId) -> u64 {
        self.chunks.keys().filter(|c| self.pg_of(**c) == pg).count() as u64 * CHUNK_BYTES
    }

    /// Bytes as they are in the cache, whoever waits for them.
    pub fn peek(&self, chunk: ChunkId, offset: u32, len: u32) -> Bytes {
        let (first, offset) = (offset / BLOCK as u32, offset as usize % BLOCK);
        let last = first + (offset as u32 + len).div_ceil(BLOCK as u32);
        let chunk = self.chunks.get(&chunk);
        let block = |i| chunk.map_or_else(Block::hole, |c| c.block(i)).data;
        let data: Vec<u8> = (first..last).flat_map(|i| block(i).to_vec()).collect();
        Bytes::from(data).slice(offset..offset + len as usize)
    }

    /// Nothing of the PG is left.
    pub fn purge(&mut self, pg: PgId) {
        let gone: Vec<ChunkId> = self.chunks.keys().copied().filter(|c| self.pg_of(*c) == pg).collect();
        for chunk in gone {
            self.chunks.remove(&chunk);
            self.unsure.remove(&chunk);
        }
        self.states.remove(&pg);
        self.older_states.remove(&pg);
        self.marks.remove(&pg);
    }

    /// What a flush that starts now will cover.
    pub fn snapshot_unsynced(&self) -> Covered {
        let blocks = |c: &Chunk| c.unsynced.keys().map(|i| (*i, c.block(*i))).collect();
        self.chunks.iter().map(|(id, c)| (*id, blocks(c))).collect()
    }

    /// Such a flush is done.
    pub fn synced(&mut self, covered: Covered, mark: Option<(PgId, u64)>) {
        if self.loses_flushes {
            return;
        }
        for (id, blocks) in covered {
            let Some(chunk) = self.chunks.get_mut(&id) else { continue };
            for (i, block) in blocks {
                let Some(platters) = chunk.unsynced.get(&i) else { continue };
                if chunk.block(i).stamp == block.stamp {
                    chunk.unsynced.remove(&i);
                } else if platters.stamp < block.stamp {
                    // Written again since: the platters have what was there when the flush began.
                    chunk.unsynced.insert(i, block);
                }
            }
        }
        if let Some((pg, mark)) = mark {
            let stable = self.marks.entry(pg).or_default();
            *stable = (*stable).max(mark);
        }
    }

    /// The background cleaner: idle chunks lose their dirty mark.
    pub fn clean(&mut self) {
        for (id, chunk) in &mut self.chunks {
            if chunk.unsynced.is_empty() && !self.unsure.contains(id) {
                chunk.dirty = false;
                chunk.stable_version = chunk.version;
                chunk.clean_root = Some(hashtree::root(&chunk.leaves()));
            }
        }
    }

    /// Power is lost; then the disk starts under a new boot id. What was not flushed is there or not, sector by sector.
    pub fn crash(&mut self, boot: BootId, rng: &mut Rng) -> u64 {
        self.boot = boot;
        let mut torn = 0;
        for (id, chunk) in &mut self.chunks {
            for (i, old) in std::mem::take(&mut chunk.unsynced) {
                let new = chunk.block(i);
                let mut data = Vec::clone(&new.data);
                // Rot that a newer write covers stays covered: a disk that tears and rots at once is two faults.
                let mode = if hashtree::verify(i as usize, &old.data, &old.leaf) { rng.below(4) } else { 3 };
                for s in 0..BLOCK / SECTOR {
                    let keep_old = mode == 0 || mode == 1 && rng.chance(500);
                    if keep_old {
                        let range = s * SECTOR..(s + 1) * SECTOR;
                        data[range.clone()].copy_from_slice(&old.data[range]);
                    }
                }
                let leaf = if mode == 0 || mode == 2 { old.leaf } else { new.leaf };
                // A hole hides whatever lies below it.
                let data = if leaf == HOLE { vec![0; BLOCK] } else { data };
                if hashtree::verify(i as usize, &data, &leaf) {
                    set(chunk, i, Block { leaf, data: Arc::new(data), stamp: 0 });
                } else {
                    torn += 1;
                    // R23: its content is taken as it is.
                    let leaf = hashtree::leaves_of(i as usize, &data)[0];
                    set(chunk, i, Block { leaf, data: Arc::new(data), stamp: 0 });
                }
            }
            if chunk.dirty {
                if self.canary == Some(Canary::DirtyMarksLost) {
                    // Its header is the one of when it was clean last, root and all.
                    chunk.dirty = false;
                } else {
                    self.unsure.insert(*id);
                }
                chunk.version = if rng.chance(500) { chunk.stable_version } else { chunk.version };
            }
        }
        torn
    }

    /// A clean stop: all is flushed, the boot id stays. False: chunks are unsure, the stop must count as unclean.
    pub fn stop(&mut self, states: BTreeMap<PgId, PgState>) -> bool {
        let covered = self.snapshot_unsynced();
        self.synced(covered, None);
        self.older_states = std::mem::replace(&mut self.states, states);
        if self.unsure.is_empty() {
            for chunk in self.chunks.values_mut() {
                chunk.dirty = false;
                chunk.stable_version = chunk.version;
            }
            return true;
        }
        false
    }

    /// Flips bits below the leaf of some block.
    pub fn rot(&mut self, rng: &mut Rng) -> bool {
        // Only what is on the platters: rot of what a crash may tear would be two faults at once.
        let stable = |c: &Chunk, i: &u32, b: &Block| b.leaf != HOLE && !c.unsynced.contains_key(i);
        let data = |c: &Chunk| c.blocks.iter().filter(|(i, b)| stable(c, i, b)).map(|(i, _)| *i).collect::<Vec<_>>();
        let all: Vec<(ChunkId, u32)> =
            self.chunks.iter().flat_map(|(id, c)| data(c).into_iter().map(|i| (*id, i))).collect();
        let Some((id, index)) = rng.pick(&all).copied() else { return false };
        let at = rng.below(BLOCK as u64) as usize;
        if let Some(block) = self.chunks.get_mut(&id).and_then(|c| c.blocks.get_mut(&index)) {
            Arc::make_mut(&mut block.data)[at] ^= 0x40;
        }
        true
    }

    pub fn run(&mut self, pg: PgId, op: DiskOp) -> DiskResult {
        match op {
            DiskOp::Prepare { chunk, generation } => match self.prepare(chunk, generation) {
                true => DiskResult::Done,
                false => DiskResult::NoSpace,
            },
            DiskOp::Apply { generation, sequence, op, .. } => self.apply(generation, sequence, op),
            DiskOp::Copy { chunk, blocks, data, .. } => {
                if !self.prepare(chunk, Generation::default()) {
                    return DiskResult::NoSpace;
                }
                let Some(c) = self.chunks.get_mut(&chunk) else { return DiskResult::Done };
                let mut rest = data.as_ref();
                for (i, leaf) in blocks {
                    let mut content = vec![0; BLOCK];
                    if leaf != HOLE {
                        let (block, after) = rest.split_at(BLOCK);
                        content.copy_from_slice(block);
                        rest = after;
                    }
                    c.put(i, Block { leaf, data: Arc::new(content), stamp: 0 });
                }
                DiskResult::Done
            }
            DiskOp::Read { chunk, first_block, count, .. } => self.read(chunk, first_block, count),
            DiskOp::Flush { .. } => DiskResult::Done,
            DiskOp::Persist(mut state) => {
                if self.canary == Some(Canary::IncompleteMarkForgotten) {
                    state.complete |= self.states.get(&pg).is_some_and(|old| old.complete);
                }
                if self.canary != Some(Canary::ConfigNotPersisted)
                    && let Some(older) = self.states.insert(pg, state)
                {
                    self.older_states.insert(pg, older);
                }
                DiskResult::Done
            }
            DiskOp::Table => DiskResult::Table(
                self.chunks
                    .iter()
                    .filter(|(id, _)| self.pg_of(**id) == pg)
                    .map(|(id, c)| TableEntry {
                        chunk: *id,
                        generation: c.version.0,
                        sequence: c.version.1,
                        root: match c.clean_root {
                            // Canary: the root that it had when it was clean last.
                            Some(stale) if self.canary == Some(Canary::StaleRoot) => Some(stale),
                            Some(stale) if self.canary == Some(Canary::DirtyMarksLost) && !c.dirty => Some(stale),
                            _ => (!c.dirty).then(|| hashtree::root(&c.leaves())),
                        },
                        unsure: self.unsure.contains(id),
                    })
                    .collect(),
            ),
            DiskOp::Leaves { chunk } => DiskResult::Leaves(self.chunks.get(&chunk).map(|c| ChunkLeaves {
                leaves: Arc::new(c.leaves()),
                generation: c.version.0,
                sequence: c.version.1,
            })),
            DiskOp::SetVersion { chunk, generation, sequence } => {
                let Some(c) = self.chunks.get_mut(&chunk) else { return DiskResult::Done };
                if self.unsure.remove(&chunk) || c.version < (generation, sequence) {
                    c.version = (generation, sequence);
                    if !c.dirty {
                        c.stable_version = c.version;
                    }
                }
                DiskResult::Done
            }
        }
    }

    fn prepare(&mut self, chunk: ChunkId, generation: Generation) -> bool {
        let absent = !self.chunks.contains_key(&chunk);
        if absent && self.full {
            return false;
        }
        let c = self.chunks.entry(chunk).or_insert_with(|| Chunk {
            version: (generation, 0),
            stable_version: (generation, 0),
            dirty: true,
            clean_root: None,
            clock: 0,
            blocks: BTreeMap::new(),
            unsynced: BTreeMap::new(),
        });
        c.dirty = true;
        true
    }

    fn apply(&mut self, generation: Generation, sequence: u64, op: Operation) -> DiskResult {
        let (chunk, blocks) = match op {
            Operation::Write { chunk, first_block, leaves, data } => {
                if !self.prepare(chunk, generation) {
                    return DiskResult::NoSpace;
                }
                let block = |(i, (leaf, content)): (usize, (&Hash, &[u8]))| {
                    (first_block + i as u32, Block { leaf: *leaf, data: Arc::new(content.to_vec()), stamp: 0 })
                };
                (chunk, leaves.iter().zip(data.chunks_exact(BLOCK)).enumerate().map(block).collect::<Vec<_>>())
            }
            Operation::Zero { chunk, first_block, count } => {
                (chunk, (first_block..first_block + count).map(|i| (i, Block::hole())).collect())
            }
            Operation::Drop { chunk } => {
                self.unsure.remove(&chunk);
                self.chunks.remove(&chunk);
                return DiskResult::Done;
            }
            Operation::Fence { .. } => return DiskResult::Done,
        };
        if let Some(c) = self.chunks.get_mut(&chunk) {
            c.dirty = true;
            for (i, block) in blocks {
                c.put(i, block);
            }
            c.version = c.version.max((generation, sequence));
        }
        DiskResult::Done
    }

    fn read(&self, chunk: ChunkId, first_block: u32, count: u32) -> DiskResult {
        let mut leaves = Vec::new();
        let mut data = Vec::with_capacity(count as usize * BLOCK);
        let mut bad = Vec::new();
        for i in first_block..first_block + count {
            let block = self.chunks.get(&chunk).and_then(|c| c.blocks.get(&i));
            match block {
                Some(b) => {
                    if self.canary != Some(Canary::LeavesNotVerified) && !hashtree::verify(i as usize, &b.data, &b.leaf)
                    {
                        bad.push(i);
                    }
                    leaves.push(b.leaf);
                    data.extend_from_slice(&b.data);
                }
                None => {
                    leaves.push(HOLE);
                    data.resize(data.len() + BLOCK, 0);
                }
            }
        }
        if bad.is_empty() {
            DiskResult::Data { leaves, data: Bytes::from(data) }
        } else {
            DiskResult::Bad { blocks: bad }
        }
    }
}

fn set(chunk: &mut Chunk, index: u32, block: Block) {
    chunk.blocks.insert(index, block);
}
