//! Reading, writing and zeroing blocks.
//!
//! A write is two `pwrite`s to the page cache, data then leaves, under no lock. Until the next fdatasync either may
//! reach the disk without the other: that is what the dirty mark is for (R23).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::backend::IoCounters;
use super::chunk::{Chunk, Leaves};
use super::error::{DiskFault, ReadChunk, WriteChunk};
use super::layout::LEAVES_BYTES;
use super::marks::{HOT_ROUNDS, IDLE_ROUNDS};
use super::{Disk, WriteOp};
use crate::core::hashtree::{self, HOLE, Hash};
use crate::core::ids::{ChunkId, Generation, PgId};
use crate::core::units::{BLOCK_BYTES, BLOCKS_PER_CHUNK, CHUNK_BYTES};

const BLOCK: usize = BLOCK_BYTES as usize;

/// A copy writes so much at once. On a disk that is a file a write holds that file's lock, for which guests' writes wait: this
/// is some ten microseconds of it.
const COPY_PIECE_BYTES: usize = 64 << 10;
/// Zeroing fewer blocks than these leaves the data where it is: the leaf alone says hole. A punched hole costs the
/// file system a metadata change of its own.
const PUNCH_BLOCKS_MIN: usize = 64;

impl Disk {
    /// Writes whole blocks to the page cache; a chunk that isn't here is prepared first. Calls for different blocks
    /// run in parallel.
    ///
    /// # Errors
    /// The disk is full, failed or closed, or the request makes no sense. A write that fails for want of space leaves
    /// each block as it was or as it was to be.
    pub fn write(&self, op: &WriteOp<'_>) -> Result<(), WriteChunk> {
        let count = op.leaves.len();
        if op.data.len() != count * BLOCK {
            return Err(WriteChunk::BadRange { chunk: op.chunk, first_block: op.first_block, count });
        }
        check_range(op.chunk, op.first_block, count)?;
        let chunk =
            self.begin_change(op.pg, op.chunk, op.generation, true, if op.copy { IDLE_ROUNDS } else { HOT_ROUNDS })?;
        let result = self.write_blocks(&chunk, op);
        self.end_change(&chunk, (op.generation, op.sequence), |state| match result {
            Ok(()) => {
                state.trimmed = false;
                state.update_leaves(op.first_block, op.leaves);
            }
            Err(_) => {
                state.changes += 1;
                state.leaves = Leaves::Absent;
            }
        });
        result.map_err(WriteChunk::Disk)
    }

    fn write_blocks(&self, chunk: &Chunk, op: &WriteOp<'_>) -> Result<(), DiskFault> {
        let g = &self.identity.geometry;
        let (at, leaves_at) = (g.block(chunk.slot, op.first_block), g.leaf(chunk.slot, op.first_block));
        // A write of holes alone writes no data: it reads as zeros by its leaf.
        let result = if op.leaves.iter().all(|l| *l == HOLE) {
            Ok(())
        } else if op.copy {
            let mut pieces = (at..).step_by(COPY_PIECE_BYTES).zip(op.data.chunks(COPY_PIECE_BYTES));
            pieces.try_for_each(|(at, piece)| self.io.write(piece, at))
        } else {
            self.io.write(op.data, at)
        };
        match result.and_then(|()| self.io.write(op.leaves.as_flattened(), leaves_at)) {
            Ok(()) => Ok(()),
            Err(e) => {
                let fault = self.fault("write data", &e);
                if let DiskFault::NoSpace { .. } = fault {
                    self.settle_short_write(chunk, op)?;
                }
                Err(fault)
            }
        }
    }

    /// Begins to bring a chunk's range to the disk, and out of the page cache. For copies: they write as fast as they are let, and
    /// all that lies in the page cache when a guest's flush or a change of configuration comes would have to be waited for. Nor
    /// should what nobody reads soon take pages from what guests read.
    pub fn begin_writeback(&self, chunk: ChunkId, first_block: usize, count: usize) {
        let Some(chunk) = self.find(chunk) else { return };
        let len = count.min(BLOCKS_PER_CHUNK - first_block.min(BLOCKS_PER_CHUNK)) as u64 * BLOCK_BYTES;
        if len > 0 {
            self.io.begin_writeback(self.identity.geometry.block(chunk.slot, first_block), len);
        }
    }

    /// After a write that found no space half-way: gives each block the leaf of what it holds now.
    fn settle_short_write(&self, chunk: &Chunk, op: &WriteOp<'_>) -> Result<(), DiskFault> {
        let g = &self.identity.geometry;
        let mut block = vec![0; BLOCK];
        for i in 0..op.leaves.len() {
            let at = op.first_block + i;
            let mut old = [HOLE];
            let read = self
                .io
                .read(old.as_flattened_mut(), g.leaf(chunk.slot, at))
                .and_then(|()| self.io.read(&mut block, g.block(chunk.slot, at)));
            // A hole needs no settling, it hides its data; an unreadable block is bad whatever its leaf says.
            if read.is_err() || old[0] == HOLE || hashtree::verify(at, &block, &old[0]) {
                continue;
            }
            // An old leaf that isn't a hole lies on a page that has its space already.
            let new = hashtree::leaves_of(at, &block);
            self.io.write(new.as_flattened(), g.leaf(chunk.slot, at)).map_err(|e| self.fail("write leaves", &e))?;
        }
        Ok(())
    }

    /// Makes blocks read as zeros. Zeroing a whole chunk keeps its header (R16). A chunk that isn't here reads as zeros
    /// already: nothing is recorded; `prepare` it first if its sequence must be kept.
    ///
    /// # Errors
    /// As [`Disk::write`].
    pub fn zero(
        &self,
        pg: PgId,
        chunk: ChunkId,
        generation: Generation,
        sequence: u64,
        first_block: usize,
        count: usize,
    ) -> Result<(), WriteChunk> {
        check_range(chunk, first_block, count)?;
        self.check()?;
        if self.find(chunk).is_none() {
            return Ok(());
        }
        // No space is reserved: trimming must work on a full file system.
        let chunk = self.begin_change(pg, chunk, generation, false, HOT_ROUNDS)?;
        let g = &self.identity.geometry;
        let whole = count == BLOCKS_PER_CHUNK;
        let holes = [HOLE; BLOCKS_PER_CHUNK];
        let mut punched = false;
        // Leaves first: data punched under a leaf that still vouches for it would be a bad block to a reader.
        let mut result = self.io.write(holes[..count].as_flattened(), g.leaf(chunk.slot, first_block));
        if result.is_ok() && count >= PUNCH_BLOCKS_MIN {
            result = self.io.punch(g.block(chunk.slot, first_block), count as u64 * BLOCK_BYTES).map(|p| punched = p);
        }
        let result = result.map_err(|e| self.fault("zero blocks", &e));
        self.end_change(&chunk, (generation, sequence), |state| {
            if punched {
                state.reserved = false;
            }
            match result {
                Ok(()) => {
                    state.trimmed |= whole;
                    state.update_leaves(first_block, &holes[..count]);
                }
                Err(_) => {
                    state.changes += 1;
                    state.leaves = Leaves::Absent;
                }
            }
        });
        result.map_err(WriteChunk::Disk)
    }

    /// Reserves all that writes to a chunk will need: its slot, its space, its dirty mark (R9, R23). Writes to it that
    /// follow soon need no stable write and no space.
    ///
    /// # Errors
    /// The disk is full, failed or closed.
    pub fn prepare(&self, pg: PgId, chunk: ChunkId, generation: Generation) -> Result<(), WriteChunk> {
        let chunk = self.begin_change(pg, chunk, generation, true, HOT_ROUNDS)?;
        self.end_writer(&chunk, |_| ());
        Ok(())
    }

    /// Fills `buf` with `count` blocks from `first_block` on and returns their leaves. A chunk that isn't here reads
    /// as zeros.
    ///
    /// # Errors
    /// [`ReadChunk::BadBlocks`] names the blocks that can't be read or don't match; `buf` is not to be used then. A
    /// change of the same block under way may cause it too (R24).
    pub fn read(
        &self,
        chunk: ChunkId,
        first_block: usize,
        count: usize,
        buf: &mut [u8],
    ) -> Result<Vec<Hash>, ReadChunk> {
        let (leaves, bad) = self.read_checked(chunk, first_block, count, buf)?;
        if bad.is_empty() { Ok(leaves) } else { Err(ReadChunk::BadBlocks { chunk, blocks: bad }) }
    }

    /// As [`Disk::read`], but gives what there is, and which blocks of it are bad. For recovery and diagnosis alone.
    ///
    /// # Errors
    /// The range is wrong or the leaves can't be read.
    pub fn read_unverified(
        &self,
        chunk: ChunkId,
        first_block: usize,
        count: usize,
        buf: &mut [u8],
    ) -> Result<(Vec<Hash>, Vec<usize>), ReadChunk> {
        self.read_checked(chunk, first_block, count, buf)
    }

    fn read_checked(
        &self,
        id: ChunkId,
        first_block: usize,
        count: usize,
        buf: &mut [u8],
    ) -> Result<(Vec<Hash>, Vec<usize>), ReadChunk> {
        let in_range = first_block.checked_add(count).is_some_and(|end| end <= BLOCKS_PER_CHUNK);
        if !in_range || buf.len() != count * BLOCK {
            return Err(ReadChunk::BadRange { chunk: id, first_block, count });
        }
        let mut leaves = vec![HOLE; count];
        let Some(chunk) = self.begin_read(id) else {
            buf.fill(0);
            return Ok((leaves, Vec::new()));
        };
        let result = self.read_pinned(&chunk, first_block, &mut leaves, buf);
        end_read(&chunk);
        Ok((leaves, result?))
    }

    fn read_pinned(
        &self,
        chunk: &Arc<Chunk>,
        first: usize,
        leaves: &mut [Hash],
        buf: &mut [u8],
    ) -> Result<Vec<usize>, ReadChunk> {
        // A change of a neighbouring block counts as a race too, so a few rounds; then the answer stands.
        for round in 0.. {
            let changes = chunk.state.lock().changes;
            self.some_leaves(chunk, first, leaves)?;
            let bad = self.read_data(chunk, first, leaves, buf);
            if bad.is_empty() {
                return Ok(bad);
            }
            let state = chunk.state.lock();
            let raced = state.changes != changes || state.writers > 0;
            if raced && round < 3 {
                continue;
            }
            if !raced && !state.is_unrecovered() {
                IoCounters::add(&self.io.counters.hash_mismatches, bad.len() as u64);
            }
            return Ok(bad);
        }
        Ok(Vec::new())
    }

    /// Reads and verifies; returns the bad blocks.
    fn read_data(&self, chunk: &Chunk, first: usize, leaves: &[Hash], buf: &mut [u8]) -> Vec<usize> {
        let mut bad = Vec::new();
        if leaves.iter().all(|l| *l == HOLE) {
            buf.fill(0);
            return bad;
        }
        let at = self.identity.geometry.block(chunk.slot, first);
        let whole = self.io.read(buf, at).is_ok();
        for (i, (leaf, block)) in leaves.iter().zip(buf.chunks_exact_mut(BLOCK)).enumerate() {
            if *leaf == HOLE {
                block.fill(0);
                continue;
            }
            let read = whole || self.io.read(block, at + (i * BLOCK) as u64).is_ok();
            if !read {
                block.fill(0);
            }
            if !read || !hashtree::verify(first + i, block, leaf) {
                bad.push(first + i);
            }
        }
        bad
    }

    /// Finds or makes the chunk, makes its dirty mark stable, reserves its space and counts a change under way. The mark
    /// stays for `hot_rounds` calls of `clean_some` or more.
    pub(super) fn begin_change(
        &self,
        pg: PgId,
        id: ChunkId,
        generation: Generation,
        reserve: bool,
        hot_rounds: u64,
    ) -> Result<Arc<Chunk>, WriteChunk> {
        loop {
            self.check()?;
            let chunk = match self.find(id) {
                Some(chunk) => chunk,
                None => self.create(pg, id, generation)?,
            };
            if chunk.pg != pg {
                return Err(WriteChunk::OtherPg { chunk: id, stored: chunk.pg, given: pg });
            }
            let mut state = chunk.state.lock();
            if state.deleted {
                continue;
            }
            if !state.dirty {
                drop(state);
                // The root doesn't stand any more once the chunk is marked.
                match self.vouch(&chunk) {
                    // Leaves that can't be read vouch for nothing; those of this change will be written.
                    Ok(()) | Err(WriteChunk::Read(_)) => {}
                    Err(error) => return Err(error),
                }
                self.mark_dirty(&chunk)?;
                continue;
            }
            if reserve && !state.reserved {
                state.writers += 1;
                drop(state);
                let result = self.io.allocate(self.identity.geometry.slot(chunk.slot), CHUNK_BYTES + LEAVES_BYTES);
                let result = result.map_err(|e| self.fault("reserve space", &e));
                self.end_writer(&chunk, |state| state.reserved |= result.is_ok());
                result?;
                continue;
            }
            state.writers += 1;
            drop(state);
            self.touch(&chunk, hot_rounds);
            // `close_clean` first closes and then waits for writers: either it sees this one or this one sees it.
            if let Err(fault) = self.check() {
                self.end_writer(&chunk, |_| ());
                return Err(fault.into());
            }
            return Ok(chunk);
        }
    }

    fn end_change(&self, chunk: &Chunk, version: (Generation, u64), change: impl FnOnce(&mut super::chunk::State)) {
        self.end_writer(chunk, |state| {
            change(state);
            // Writes of different blocks may end out of order.
            if (state.generation, state.sequence) < version {
                (state.generation, state.sequence) = version;
            }
        });
    }

    fn end_writer(&self, chunk: &Chunk, change: impl FnOnce(&mut super::chunk::State)) {
        let mut state = chunk.state.lock();
        change(&mut state);
        // Read after the bytes are in the page cache: an fdatasync that starts from here on covers them.
        state.written_at_sync = self.syncs_started.load(Ordering::SeqCst);
        state.writers -= 1;
        let recovered = state.end_recovery();
        drop(state);
        chunk.changed.notify_all();
        if recovered {
            self.add_hot(chunk.id);
        }
    }

    pub(super) fn begin_read(&self, id: ChunkId) -> Option<Arc<Chunk>> {
        let chunk = self.find(id)?;
        let mut state = chunk.state.lock();
        if state.deleted {
            return None;
        }
        state.readers += 1;
        drop(state);
        Some(chunk)
    }
}

pub(super) fn end_read(chunk: &Chunk) {
    let mut state = chunk.state.lock();
    state.readers -= 1;
    let waited_for = state.deleted;
    drop(state);
    if waited_for {
        chunk.changed.notify_all();
    }
}

fn check_range(chunk: ChunkId, first_block: usize, count: usize) -> Result<(), WriteChunk> {
    let end = first_block.checked_add(count);
    if count == 0 || end.is_none_or(|e| e > BLOCKS_PER_CHUNK) {
        return Err(WriteChunk::BadRange { chunk, first_block, count });
    }
    Ok(())
}
