//! The leaves in memory: 32 KiB a chunk, bounded, dropped by second chance.

use std::collections::VecDeque;
use std::sync::Arc;

use super::Disk;
use super::backend::IoCounters;
use super::chunk::{Chunk, Leaves, State};
use super::error::{ReadChunk, WriteChunk};
use super::layout::LEAVES_BYTES;
use crate::core::hashtree::{self, HOLE, Hash};
use crate::core::ids::ChunkId;
use crate::core::units::BLOCKS_PER_CHUNK;

/// A leaf that no block has.
const NO_BLOCK: Hash = [0xff; 32];

impl Disk {
    /// A chunk's 1,024 leaves as of now; `None` if it isn't here.
    ///
    /// # Errors
    /// They can't be read.
    pub fn leaves(&self, chunk: ChunkId) -> Result<Option<Arc<Vec<Hash>>>, ReadChunk> {
        let Some(chunk) = self.find(chunk) else { return Ok(None) };
        self.all_leaves(&chunk).map(Some)
    }

    /// A chunk's hash: its header's while clean, else computed from its leaves (R25). `None` if it isn't here.
    ///
    /// # Errors
    /// Its leaves can't be read.
    pub fn root(&self, chunk: ChunkId) -> Result<Option<Hash>, ReadChunk> {
        let Some(chunk) = self.find(chunk) else { return Ok(None) };
        {
            let state = chunk.state.lock();
            if !state.dirty && !state.header_busy {
                return Ok(Some(state.root));
            }
        }
        Ok(Some(hashtree::root(&self.all_leaves(&chunk)?)))
    }

    /// The leaves of one range. A chunk read for the first time isn't cached: a scattered read then costs one leaf
    /// page, not eight.
    pub(super) fn some_leaves(&self, chunk: &Arc<Chunk>, first: usize, out: &mut [Hash]) -> Result<(), ReadChunk> {
        {
            let mut state = chunk.state.lock();
            state.referenced = true;
            match &state.leaves {
                Leaves::Present(leaves) => {
                    out.copy_from_slice(&leaves[first..first + out.len()]);
                    return Ok(());
                }
                _ if state.missed || !state.vouched => {}
                _ => {
                    state.missed = true;
                    drop(state);
                    return self.read_leaves(chunk, first, out);
                }
            }
        }
        out.copy_from_slice(&self.all_leaves(chunk)?[first..first + out.len()]);
        Ok(())
    }

    /// Makes sure that the leaves on disk belong to this chunk: once a start, before anything relies on them. Others are
    /// replaced by leaves that match nothing, so that each block counts as bad until it is repaired or written.
    pub(super) fn vouch(&self, chunk: &Chunk) -> Result<(), WriteChunk> {
        if chunk.state.lock().vouched {
            return Ok(());
        }
        let mut leaves = super::chunk::hole_leaves();
        self.read_leaves(chunk, 0, &mut leaves)?;
        let root = hashtree::root(&leaves);
        // One at a time: what is written in place of foreign leaves must not land on what comes after.
        let _alone = self.vouching.lock();
        {
            let mut state = chunk.state.lock();
            // Nothing is written before somebody has vouched, so what was read is what there was.
            if state.vouched || state.deleted {
                return Ok(());
            }
            if root == state.root {
                state.vouched = true;
                return Ok(());
            }
        }
        tracing::warn!(chunk = %chunk.id, slot = chunk.slot, "a slot holds other leaves than its header says: all of its blocks count as bad");
        let nothing = [NO_BLOCK; BLOCKS_PER_CHUNK];
        let at = self.identity.geometry.leaf(chunk.slot, 0);
        // Stable before the chunk may be marked dirty: after that its root doesn't tell.
        self.io.write_sync(nothing.as_flattened(), at).map_err(|e| self.fail("write leaves", &e))?;
        IoCounters::add(&self.io.counters.hash_mismatches, 1);
        let mut state = chunk.state.lock();
        state.changes += 1;
        state.leaves = Leaves::Absent;
        state.vouched = true;
        Ok(())
    }

    /// All leaves of a chunk, cached from now on. Whoever calls has the chunk pinned, or bears that it may be deleted.
    pub(super) fn all_leaves(&self, chunk: &Arc<Chunk>) -> Result<Arc<Vec<Hash>>, ReadChunk> {
        self.vouch(chunk).map_err(|_| ReadChunk::BadLeaves { chunk: chunk.id })?;
        let mut load = None;
        {
            let mut state = chunk.state.lock();
            state.referenced = true;
            match &state.leaves {
                Leaves::Present(leaves) => return Ok(leaves.clone()),
                // Another thread is at it: read for this call alone.
                Leaves::Loading(..) => {}
                Leaves::Absent => {
                    state.loads += 1;
                    load = Some(state.loads);
                    state.leaves = Leaves::Loading(state.loads, Vec::new());
                }
            }
            if state.deleted {
                state.leaves = Leaves::Absent;
                return Ok(Arc::new(super::chunk::hole_leaves()));
            }
            state.readers += 1;
        }
        let mut leaves = super::chunk::hole_leaves();
        let read = self.read_leaves(chunk, 0, &mut leaves);
        let mut installed = false;
        let leaves = {
            let mut state = chunk.state.lock();
            state.readers -= 1;
            // Overtaken by a failed write, or by too many updates, it is good for this call alone.
            let mine = matches!(&state.leaves, Leaves::Loading(number, _) if Some(*number) == load);
            if mine && let Leaves::Loading(_, updates) = std::mem::replace(&mut state.leaves, Leaves::Absent) {
                // A change that ended before the read is in the file, one that ended during it is in the list.
                for (block, leaf) in updates {
                    leaves[block] = leaf;
                }
                let leaves = Arc::new(leaves);
                if read.is_ok() && !state.deleted {
                    state.leaves = Leaves::Present(leaves.clone());
                    installed = true;
                }
                leaves
            } else {
                Arc::new(leaves)
            }
        };
        chunk.changed.notify_all();
        if installed {
            self.remember_leaves(chunk.clone());
        }
        read.map(|()| leaves)
    }

    /// Puts the leaves of a chunk that holds nothing into its state.
    pub(super) fn install_holes(&self, chunk: &Arc<Chunk>, state: &mut State) {
        debug_assert!(chunk.state.is_locked());
        state.leaves = Leaves::Present(Arc::new(super::chunk::hole_leaves()));
        state.referenced = true;
    }

    /// Notes that a chunk's leaves are in memory now, and drops others beyond the bound.
    pub(super) fn remember_leaves(&self, chunk: Arc<Chunk>) {
        let mut cache = self.leaf_cache.lock();
        cache.push_back(chunk);
        while cache.len() > self.options.cached_leaves_max.max(1) {
            evict_one(&mut cache);
        }
    }

    fn read_leaves(&self, chunk: &Chunk, first: usize, out: &mut [Hash]) -> Result<(), ReadChunk> {
        let offset = self.identity.geometry.leaf(chunk.slot, first);
        debug_assert!(first + out.len() <= BLOCKS_PER_CHUNK && out.len() as u64 * 32 <= LEAVES_BYTES);
        self.io.read(out.as_flattened_mut(), offset).map_err(|_| {
            out.fill(HOLE);
            ReadChunk::BadLeaves { chunk: chunk.id }
        })
    }
}

/// Drops the first chunk's leaves that weren't used since the last look. Ends: each pass clears the marks.
fn evict_one(cache: &mut VecDeque<Arc<Chunk>>) {
    while let Some(chunk) = cache.pop_front() {
        let mut state = chunk.state.lock();
        if state.referenced && !state.deleted {
            state.referenced = false;
            drop(state);
            cache.push_back(chunk);
            continue;
        }
        if let Leaves::Present(_) = state.leaves {
            state.leaves = Leaves::Absent;
        }
        return;
    }
}
