//! Slots: taking one for a chunk, wiping it after the chunk was deleted.
//!
//! ```text
//! chunk ──"freeing" header stable──▶ freeing ──data and leaves wiped, fdatasync, "free" header stable──▶ free
//! ```
//! Two headers, so that a crash leaves either the chunk, or a slot that will be wiped: never a header that vouches for
//! wiped data, never a free slot with leaves of old (R22). Both copies say then that no chunk is here.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::Disk;
use super::backend::no_space;
use super::chunk::{Chunk, FreeSlot, Leaves};
use super::error::{DiskFault, FlushDisk, WriteChunk};
use super::layout::{HEADER_BYTES, Header, LEAVES_BYTES, SLOT_BYTES, SlotUse};
use super::marks::{HeaderUpdate, IDLE_ROUNDS};
use crate::core::hashtree::HOLE;
use crate::core::ids::{ChunkId, Generation, PgId};
use crate::core::units::{BLOCKS_PER_CHUNK, CHUNK_BYTES};

const _: () = assert!(SLOT_BYTES == CHUNK_BYTES + LEAVES_BYTES && HEADER_BYTES > 0);

/// Slots wiped between two header commits: bounds what one call holds up.
const WIPE_BATCH: usize = 256;

/// A pause after a slot was wiped, in times that it took: of a disk that is a file a wipe holds the lock, and on some file
/// systems it waits for a discard, so that one after the other would keep guests' writes out.
const WIPE_PAUSE: u32 = 9;

/// No pause is longer, however slow the disk is.
const WIPE_PAUSE_MAX: Duration = Duration::from_millis(200);

/// Fresh slots whose space is reserved at once: 64 MiB, little beside any disk.
const RESERVE_SLOTS: u32 = 16;

impl Disk {
    /// Takes a chunk off the disk. Its slot is wiped later, by [`Disk::free_some`] or when a slot is needed; a crash
    /// before may bring the chunk back. True if it was here.
    ///
    /// # Errors
    /// The disk has failed or is closed.
    pub fn delete_chunk(&self, id: ChunkId) -> Result<bool, WriteChunk> {
        self.check()?;
        let mut index = self.index.write();
        let Some(chunk) = index.remove(id) else { return Ok(false) };
        // In the list before anyone can find the chunk missing: a new chunk of this id waits for the wipe.
        self.slots.lock().deleted.insert(id, chunk.clone());
        {
            let mut state = chunk.state.lock();
            state.deleted = true;
            state.leaves = Leaves::Absent;
        }
        drop(index);
        self.hot.lock().chunks.remove(&id);
        self.hot_changed.notify_all();
        Ok(true)
    }

    /// Wipes the slots of deleted chunks and makes them free, and so makes the deletions durable. Returns how many. After
    /// each slot it calls `pause` with how long guests' writes should have the disk for themselves, unless somebody waits
    /// for a slot.
    ///
    /// # Errors
    /// The disk has failed or is closed.
    pub fn free_some(&self, pause: impl Fn(Duration)) -> Result<usize, FlushDisk> {
        self.check()?;
        Ok(self.wipe_all(&|took| {
            if self.slot_waiters.load(Ordering::Relaxed) == 0 {
                pause((took * WIPE_PAUSE).min(WIPE_PAUSE_MAX));
            }
        })?)
    }

    /// Nothing is wiped while this is held.
    #[cfg(test)]
    pub(crate) fn hold_wiping(&self) -> parking_lot::MutexGuard<'_, ()> {
        self.freeing.lock()
    }

    /// Wipes and frees the slots with damaged headers. Only when each PG of this disk has been compared with its other
    /// replicas since the disk was opened: until then the damage is the only sign that a chunk is missing.
    ///
    /// # Errors
    /// The disk has failed or is closed.
    pub fn free_quarantined(&self) -> Result<usize, FlushDisk> {
        self.check()?;
        let mut slots = self.slots.lock();
        let quarantined = std::mem::take(&mut slots.quarantined);
        drop(slots);
        let updates = quarantined
            .iter()
            .map(|(slot, version)| HeaderUpdate { slot: *slot, header: Header::empty(SlotUse::Freeing, version + 1) })
            .collect();
        if let Err(fault) = self.commit_headers(updates) {
            self.slots.lock().quarantined.extend(quarantined);
            return Err(fault.into());
        }
        self.slots.lock().half_freed.extend(quarantined.iter().map(|(slot, version)| (*slot, version + 1)));
        self.wipe_deleted()?;
        Ok(quarantined.len())
    }

    /// Takes a slot for a new chunk, which gets into the index, dirty, with its mark stable and its space reserved.
    pub(super) fn create(&self, pg: PgId, id: ChunkId, generation: Generation) -> Result<Arc<Chunk>, WriteChunk> {
        if self.slots.lock().deleted.contains_key(&id) {
            // Two slots must not claim one chunk after a crash.
            self.wipe_deleted()?;
        }
        self.reserve_hot()?;
        let result = self.create_reserved(pg, id, generation);
        match &result {
            Ok((chunk, true)) => self.unreserve_hot(Some(chunk)),
            _ => self.unreserve_hot(None),
        }
        Ok(result?.0)
    }

    /// The chunk, and whether this call made it.
    fn create_reserved(&self, pg: PgId, id: ChunkId, generation: Generation) -> Result<(Arc<Chunk>, bool), DiskFault> {
        let free = self.take_slot()?;
        let g = &self.identity.geometry;
        let mut prepared = self.reserve_slot(free);
        if prepared.is_ok() && free.fresh && !self.io.new_reads_zero() {
            // A device's old bytes could be a valid pair of leaf and data.
            let holes = [HOLE; BLOCKS_PER_CHUNK];
            prepared = self.io.write_sync(holes.as_flattened(), g.leaf(free.slot, 0));
        }
        if let Err(e) = prepared {
            self.slots.lock().give_back(free);
            return Err(self.fault("reserve a slot", &e));
        }
        let header =
            Header { dirty: true, chunk: id, pg, generation, ..Header::empty(SlotUse::Chunk, free.version + 1) };
        let chunk = Arc::new(Chunk::new(free.slot, &header));
        {
            let mut state = chunk.state.lock();
            // Not marked until the header is stable; writers that find the chunk wait for it.
            state.dirty = false;
            state.header_busy = true;
            state.reserved = true;
            self.install_holes(&chunk, &mut state);
        }
        {
            let mut index = self.index.write();
            let existing = index.chunks.get(&id).cloned();
            let being_deleted = self.slots.lock().deleted.contains_key(&id);
            if existing.is_some() || being_deleted {
                drop(index);
                self.slots.lock().give_back(free);
                // The caller looks again, or waits for the wipe.
                return Ok((existing.unwrap_or_else(|| gone(&chunk)), false));
            }
            index.insert(chunk.clone());
        }
        let result = self.commit_headers(vec![HeaderUpdate { slot: free.slot, header }]);
        if result.is_err() {
            self.index.write().remove(id);
            self.slots.lock().give_back(free);
        }
        self.touch(&chunk, IDLE_ROUNDS);
        let mut state = chunk.state.lock();
        state.dirty = result.is_ok();
        state.deleted |= result.is_err();
        chunk.release_header(state);
        result?;
        self.remember_leaves(chunk.clone());
        Ok((chunk, true))
    }

    /// Reserves a slot's space, and that of the next fresh ones with it: a stable write after a change of the file's
    /// extents costs a commit of the file system's journal.
    fn reserve_slot(&self, free: FreeSlot) -> io::Result<()> {
        let g = &self.identity.geometry;
        if !free.fresh {
            return self.io.allocate(g.slot(free.slot), SLOT_BYTES);
        }
        if self.slots.lock().reserved.contains(&free.slot) {
            return Ok(());
        }
        let end = g.slots.min(free.slot.saturating_add(RESERVE_SLOTS));
        match self.io.allocate(g.slot(free.slot), u64::from(end - free.slot) * SLOT_BYTES) {
            Ok(()) => {
                self.slots.lock().reserved = free.slot..end;
                Ok(())
            }
            Err(e) if no_space(&e) => self.io.allocate(g.slot(free.slot), SLOT_BYTES),
            Err(e) => Err(e),
        }
    }

    fn take_slot(&self) -> Result<FreeSlot, DiskFault> {
        loop {
            if let Some(free) = self.slots.lock().take() {
                return Ok(free);
            }
            // Whoever wiped while this one waited for its turn may have left nothing to wipe, but free slots.
            if self.wipe_deleted()? == 0 {
                return self.slots.lock().take().ok_or_else(|| self.no_space());
            }
        }
    }

    /// Wipes all deleted chunks that nobody uses any more, without a pause; returns how many.
    pub(super) fn wipe_deleted(&self) -> Result<usize, DiskFault> {
        self.slot_waiters.fetch_add(1, Ordering::Relaxed);
        let wiped = self.wipe_all(&|_| ());
        self.slot_waiters.fetch_sub(1, Ordering::Relaxed);
        wiped
    }

    /// The same; calls `after_each` slot with how long it took.
    fn wipe_all(&self, after_each: &dyn Fn(Duration)) -> Result<usize, DiskFault> {
        let _one_at_a_time = self.freeing.lock();
        let mut freed = 0;
        loop {
            let mut batch = {
                let mut slots = self.slots.lock();
                let n = slots.half_freed.len().min(WIPE_BATCH);
                slots.half_freed.drain(..n).collect::<Vec<_>>()
            };
            if batch.is_empty() {
                batch = self.begin_freeing()?;
            }
            if batch.is_empty() {
                return Ok(freed);
            }
            if let Err(fault) = self.wipe(&batch, after_each) {
                self.slots.lock().half_freed.extend(batch);
                return Err(fault);
            }
            freed += batch.len();
            let mut slots = self.slots.lock();
            slots.freed.extend(batch.into_iter().map(|(slot, version)| (slot, version + 1)));
        }
    }

    /// Makes "freeing" headers stable for deleted chunks without readers, writers or a header under way.
    fn begin_freeing(&self) -> Result<Vec<(u32, u64)>, DiskFault> {
        let chunks: Vec<_> = self.slots.lock().deleted.values().take(WIPE_BATCH).cloned().collect();
        let mut batch = Vec::new();
        for chunk in &chunks {
            let mut state = chunk.state.lock();
            // The chunk can't be found any more, so these end soon.
            while state.readers > 0 || state.writers > 0 || state.header_busy {
                chunk.changed.wait(&mut state);
            }
            batch.push((chunk.slot, state.version + 1));
        }
        let updates = batch
            .iter()
            .map(|(slot, version)| HeaderUpdate { slot: *slot, header: Header::empty(SlotUse::Freeing, *version) })
            .collect();
        if !batch.is_empty() {
            self.commit_headers(updates)?;
        }
        let mut slots = self.slots.lock();
        for chunk in &chunks {
            slots.deleted.remove(&chunk.id);
        }
        Ok(batch)
    }

    fn wipe(&self, batch: &[(u32, u64)], after_each: &dyn Fn(Duration)) -> Result<(), DiskFault> {
        let g = &self.identity.geometry;
        for (slot, _) in batch {
            let begun = Instant::now();
            let wiped = match self.io.punch(g.slot(*slot), SLOT_BYTES) {
                // Without leaves no data is valid, so the leaves alone do.
                Ok(false) => self.io.zero(g.leaf(*slot, 0), LEAVES_BYTES),
                other => other.map(|_| ()),
            };
            wiped.map_err(|e| self.fault("wipe a slot", &e))?;
            after_each(begun.elapsed());
        }
        self.sync(Vec::new())?;
        let updates = batch
            .iter()
            .map(|(slot, version)| HeaderUpdate { slot: *slot, header: Header::empty(SlotUse::Free, version + 1) })
            .collect();
        self.commit_headers(updates)
    }
}

/// A stand-in that makes its finder look again.
fn gone(chunk: &Arc<Chunk>) -> Arc<Chunk> {
    let mut state = chunk.state.lock();
    state.deleted = true;
    state.header_busy = false;
    drop(state);
    chunk.clone()
}
