//! Header writes, dirty marks, and their lazy clearing (R23).
//!
//! The life of a chunk's mark:
//! ```text
//! clean ──first write: dirty header stable──▶ dirty ──cold, fdatasync, root computed, clean header stable──▶ clean
//! ```
//! While a clean header is being made, the chunk counts as unmarked: a write that comes meanwhile waits for the header
//! and then marks anew.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Disk;
use super::backend::IoCounters;
use super::chunk::Chunk;
use super::error::{DiskFault, FlushDisk, WriteChunk};
use super::layout::{HEADER_BYTES, Header, PAGE_BYTES};
use crate::core::hashtree::{self, HOLE};
use crate::core::ids::{ChunkId, Generation};

/// One slot's next header.
pub(super) struct HeaderUpdate {
    pub slot: u32,
    pub header: Header,
}

/// `clean_some` brings to the disk what was written so many calls ago: a guest's flush then has little to do.
pub(super) const IDLE_ROUNDS: u64 = 2;
/// And leaves a chunk alone that a guest wrote since this many calls. A mark costs a stable write that the guest waits for;
/// keeping one costs reading the chunk again after an unclean stop, and the set is bounded.
pub(super) const HOT_ROUNDS: u64 = 60;
/// Chunks that a writer cleans when the hot set is full: enough to pay for the fdatasync, few enough to be quick.
const CLEAN_BATCH: usize = 64;
/// Waits of 10 ms for a place in the hot set: longer than a batch takes to be cleaned on a slow disk.
const HOT_WAITS_MAX: u32 = 50;
/// Pages between two changed ones that are rewritten as they are, to make one write of two.
const JOIN_PAGES: u64 = 8;

impl Disk {
    /// Clears the dirty marks of up to `max` chunks that have been idle for some calls. For a background caller, once a
    /// second or so. Returns how many were cleared.
    ///
    /// # Errors
    /// The disk has failed.
    pub fn clean_some(&self, max: usize) -> Result<usize, FlushDisk> {
        self.check()?;
        let round = self.clean_rounds.fetch_add(1, Ordering::Relaxed) + 1;
        let (chunks, crowded) = {
            let hot = self.hot.lock();
            (hot.coldest(usize::MAX), hot.chunks.len().saturating_sub(self.options.hot_chunks_max * 3 / 4))
        };
        let idle = |c: &Arc<Chunk>| c.last_write_round.load(Ordering::Relaxed) + IDLE_ROUNDS <= round;
        if chunks.iter().any(|c| idle(c) && !self.is_synced(c)) {
            self.sync(Vec::new())?;
        }
        // When the set is nearly full, the coldest go even if they aren't cold: else a writer would have to clean them.
        let mut must_go = crowded;
        let cold = |c: &Arc<Chunk>| {
            let crowded_out = must_go > 0;
            must_go = must_go.saturating_sub(1);
            crowded_out || c.hot_until_round.load(Ordering::Relaxed) <= round
        };
        Ok(self.clean(chunks.into_iter().take(max).filter(cold).collect())?)
    }

    /// Sets the generation and sequence of a chunk, as catch-up does when the content is equal already. Durable at
    /// once if the chunk is clean.
    ///
    /// # Errors
    /// The disk has failed, or the chunk isn't here.
    pub fn set_chunk_version(&self, id: ChunkId, generation: Generation, sequence: u64) -> Result<(), WriteChunk> {
        self.check()?;
        let chunk = self.find(id).ok_or(WriteChunk::Absent { chunk: id })?;
        let mut state = chunk.claim_header();
        if state.deleted {
            chunk.release_header(state);
            return Err(WriteChunk::Absent { chunk: id });
        }
        (state.generation, state.sequence) = (generation, sequence);
        if state.dirty {
            chunk.release_header(state);
            return Ok(());
        }
        let header = state.next_header(&chunk, false, state.root);
        drop(state);
        let result = self.commit_headers(vec![HeaderUpdate { slot: chunk.slot, header }]);
        let mut state = chunk.state.lock();
        if result.is_ok() {
            state.version = header.version;
        }
        chunk.release_header(state);
        Ok(result?)
    }

    /// Makes a chunk's dirty mark stable.
    pub(super) fn mark_dirty(&self, chunk: &Arc<Chunk>) -> Result<(), DiskFault> {
        self.reserve_hot()?;
        let state = chunk.claim_header();
        if state.dirty || state.deleted {
            chunk.release_header(state);
            self.unreserve_hot(None);
            return Ok(());
        }
        let header = state.next_header(chunk, true, [0; 32]);
        drop(state);
        let result = self.commit_headers(vec![HeaderUpdate { slot: chunk.slot, header }]);
        let mut state = chunk.state.lock();
        if result.is_ok() {
            state.version = header.version;
            state.dirty = true;
        }
        self.touch(chunk, IDLE_ROUNDS);
        chunk.release_header(state);
        self.unreserve_hot(result.is_ok().then_some(chunk));
        result
    }

    /// Cleans those of `chunks` that have no writer; returns how many.
    pub(super) fn clean(&self, chunks: Vec<Arc<Chunk>>) -> Result<usize, DiskFault> {
        if chunks.is_empty() {
            return Ok(0);
        }
        if !chunks.iter().all(|c| self.is_synced(c)) {
            self.sync(Vec::new())?;
        }
        let mut claimed = Vec::new();
        for chunk in chunks {
            let mut state = chunk.state.lock();
            let stable = self.syncs_completed.load(Ordering::SeqCst) > state.written_at_sync;
            let idle = state.writers == 0 && !state.header_busy && !state.is_unrecovered();
            if state.deleted {
                drop(state);
                self.forget_hot(&chunk);
            } else if stable && idle && state.dirty {
                state.header_busy = true;
                // From here on a write waits for the header, and marks the chunk anew.
                state.dirty = false;
                drop(state);
                claimed.push(chunk);
            }
        }
        let mut updates = Vec::new();
        let mut done = Vec::new();
        for chunk in claimed {
            // Unreadable leaves: the chunk stays dirty, and reads of it fail until it is repaired.
            let Ok(leaves) = self.all_leaves(&chunk) else {
                self.end_clean(&chunk, None);
                continue;
            };
            let root = hashtree::root(&leaves);
            let mut state = chunk.state.lock();
            if state.deleted {
                // Its leaves may have been given as holes: this root must not reach the disk.
                drop(state);
                self.end_clean(&chunk, None);
                continue;
            }
            state.trimmed = leaves.iter().all(|l| *l == HOLE);
            let header = state.next_header(&chunk, false, root);
            drop(state);
            updates.push(HeaderUpdate { slot: chunk.slot, header });
            done.push((chunk, header));
        }
        let result = if updates.is_empty() { Ok(()) } else { self.commit_headers(updates) };
        for (chunk, header) in &done {
            self.end_clean(chunk, result.is_ok().then_some(header));
        }
        result.map(|()| done.len())
    }

    /// True if an fdatasync has covered the chunk's last write.
    fn is_synced(&self, chunk: &Chunk) -> bool {
        let state = chunk.state.lock();
        self.syncs_completed.load(Ordering::SeqCst) > state.written_at_sync
    }

    fn end_clean(&self, chunk: &Chunk, written: Option<&Header>) {
        if written.is_some() {
            self.forget_hot(chunk);
        }
        let mut state = chunk.state.lock();
        match written {
            Some(header) => {
                state.version = header.version;
                state.root = header.root;
            }
            None => state.dirty = true,
        }
        chunk.release_header(state);
        self.hot_changed.notify_all();
    }

    /// Adds a chunk whose mark is stable already: one recovered after an unclean stop.
    pub(super) fn add_hot(&self, id: ChunkId) {
        if let Some(chunk) = self.find(id) {
            self.touch(&chunk, IDLE_ROUNDS);
            self.hot.lock().chunks.insert(id, chunk);
        }
    }

    /// Takes this chunk, but not a later one of the same id, out of the hot set.
    fn forget_hot(&self, chunk: &Chunk) {
        let mut hot = self.hot.lock();
        if hot.chunks.get(&chunk.id).is_some_and(|c| std::ptr::eq(&**c, chunk)) {
            hot.chunks.remove(&chunk.id);
        }
    }

    /// Takes a place in the hot set; if it is full, cleans the coldest chunks first. Where none can be
    /// cleaned for a while, as their leaves can't be read, the set grows: more is rehashed after an unclean stop, but no
    /// write waits for ever.
    pub(super) fn reserve_hot(&self) -> Result<(), DiskFault> {
        let mut waits = 0;
        loop {
            let mut oldest = {
                let mut hot = self.hot.lock();
                let free = hot.chunks.len() + hot.reserved < self.options.hot_chunks_max.max(1);
                if free || waits >= HOT_WAITS_MAX {
                    hot.reserved += 1;
                    return Ok(());
                }
                hot.coldest(CLEAN_BATCH)
            };
            // Those that the guests' own flushes cover need no fdatasync here.
            if oldest.iter().any(|c| self.is_synced(c)) {
                oldest.retain(|c| self.is_synced(c));
            }
            if self.clean(oldest)? == 0 {
                // All of them are being written or cleaned by others: wait for one.
                let mut hot = self.hot.lock();
                self.hot_changed.wait_for(&mut hot, Duration::from_millis(10));
                waits += 1;
                drop(hot);
                self.check_failed()?;
            }
        }
    }

    /// Gives the place back, or fills it.
    pub(super) fn unreserve_hot(&self, marked: Option<&Arc<Chunk>>) {
        let mut hot = self.hot.lock();
        hot.reserved -= 1;
        if let Some(chunk) = marked {
            hot.chunks.insert(chunk.id, chunk.clone());
        }
        drop(hot);
        self.hot_changed.notify_all();
    }

    /// A chunk is written, and likely to be written again in the next `rounds` calls of `clean_some`.
    pub(super) fn touch(&self, chunk: &Chunk, rounds: u64) {
        let round = self.clean_rounds.load(Ordering::Relaxed);
        chunk.last_write.store(self.write_clock.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
        chunk.last_write_round.store(round, Ordering::Relaxed);
        chunk.hot_until_round.fetch_max(round + rounds, Ordering::Relaxed);
    }

    /// Makes headers stable, together with those of other callers.
    pub(super) fn commit_headers(&self, updates: Vec<HeaderUpdate>) -> Result<(), DiskFault> {
        self.headers.commit(updates, |updates| self.write_headers(updates))
    }

    /// Writes whole pages of the tables with RWF_DSYNC: it makes these pages stable and nothing else, where an
    /// fdatasync would force out all dirty data of the file. One thread at a time is in here, so that the pages can be
    /// read, changed and written without a copy of the tables in memory.
    fn write_headers(&self, updates: Vec<HeaderUpdate>) -> Result<(), DiskFault> {
        self.check_failed()?;
        let g = &self.identity.geometry;
        let mut bytes = BTreeMap::new();
        for u in &updates {
            let offset = g.headers(u.header.table()) + u64::from(u.slot) * HEADER_BYTES as u64;
            bytes.insert(offset, u.header.encode(u.slot, &self.identity.cluster));
        }
        let mut group: Vec<(u64, [u8; HEADER_BYTES])> = Vec::new();
        for (offset, header) in bytes {
            let far = |last: &(u64, _)| offset / PAGE_BYTES > last.0 / PAGE_BYTES + JOIN_PAGES;
            if group.last().is_some_and(far) {
                self.write_header_pages(&group)?;
                group.clear();
            }
            group.push((offset, header));
        }
        self.write_header_pages(&group)
    }

    fn write_header_pages(&self, group: &[(u64, [u8; HEADER_BYTES])]) -> Result<(), DiskFault> {
        let (Some(first), Some(last)) = (group.first(), group.last()) else { return Ok(()) };
        let start = first.0 / PAGE_BYTES * PAGE_BYTES;
        let end = (last.0 / PAGE_BYTES + 1) * PAGE_BYTES;
        let mut pages = vec![0; (end - start) as usize];
        self.io.read(&mut pages, start).map_err(|e| self.fail("read slot headers", &e))?;
        for (offset, header) in group {
            let at = (offset - start) as usize;
            pages[at..at + HEADER_BYTES].copy_from_slice(header);
        }
        IoCounters::add(&self.io.counters.header_writes, 1);
        self.io.write_sync(&pages, start).map_err(|e| self.fault("write slot headers", &e))
    }
}
