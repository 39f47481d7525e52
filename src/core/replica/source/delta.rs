//! What of one chunk travels to a learner.
//!
//! Equal version or root: nothing travels. Else 16 window hashes (512 B), for each that differs 16 group
//! hashes (512 B), for each of those 4 leaves (128 B), then the blocks: 640 B for one changed block of a window
//! beyond the first 512 B of the chunk.

use super::*;

/// Blocks in a group: the last level of comparison before single leaves.
const GROUP_BLOCKS: usize = 4;
const GROUPS_PER_WINDOW: usize = BLOCKS_PER_WINDOW / GROUP_BLOCKS;
const _: () = assert!(GROUPS_PER_WINDOW == 16 && WINDOWS_PER_CHUNK == 16, "masks are u16");
const _: () = assert!(BLOCKS_PER_WINDOW == 64, "masks are u64");

/// A chunk that is compared or copied.
#[derive(Debug, Default)]
pub(super) struct ActiveChunk {
    pub(super) leaves: Option<Arc<Vec<Hash>>>,
    pub(super) version: (Generation, u64),
    /// The learner has something of it: compare before copying.
    pub(super) compare: bool,
    /// Answers that are due.
    pub(super) outstanding: usize,
    /// Windows to read and send: (window, blocks).
    pub(super) windows: VecDeque<(u32, u64)>,
    /// Windows being read.
    pub(super) reading: usize,
    /// Copies that the learner has not applied.
    pub(super) copying: usize,
    /// No replica has some of its blocks right.
    pub(super) unreadable: bool,
    pub(super) done_sent: bool,
}

impl Replica {
    /// The chunk's leaves, with everything that was not forwarded in them.
    pub(in crate::core::replica) fn snapshot_taken(
        &mut self,
        learner: DiskId,
        chunk: ChunkId,
        found: Option<ChunkLeaves>,
    ) {
        let generation = self.generation();
        let Some(session) = self.sessions.get_mut(&learner) else { return };
        let Some(active) = session.active.get_mut(&chunk) else { return };
        let Some(found) = found else {
            // Dropped at the primary meanwhile: the forwarded drop tells the learner.
            session.active.remove(&chunk);
            session.chunks_done += 1;
            let compared = session.table.contains_key(&chunk);
            if compared {
                self.tell_learner(learner, SessionMessage::Drop { chunk });
            }
            return;
        };
        active.version = (found.generation, found.sequence);
        if session.unsure.contains(&chunk) && found.generation < generation {
            // A power loss took the version back, not all of the content: under the old version the learner would later be
            // taken, by a primary of an earlier release, for equal to a replica that really has that one. It begins here.
            active.version = (generation, 0);
        }
        let leaves = found.leaves;
        active.leaves = Some(leaves.clone());
        if active.compare {
            active.outstanding = 1;
            let windows: Vec<Hash> = (0..WINDOWS_PER_CHUNK)
                .map(|w| hashtree::subtree(w * BLOCKS_PER_WINDOW, window_leaves(&leaves, w as u32)))
                .collect();
            session.bytes_sent += windows.len() as u64 * 32;
            self.tell_learner(learner, SessionMessage::Compare { chunk, windows });
        } else {
            for w in 0..WINDOWS_PER_CHUNK as u32 {
                let blocks = data_mask(window_leaves(&leaves, w));
                if blocks != 0 {
                    active.windows.push_back((w, blocks));
                }
            }
            self.chunk_maybe_done(learner, chunk);
        }
    }

    /// A window's blocks have been read under its lock: queue them behind everything forwarded so far.
    pub(in crate::core::replica) fn window_read(
        &mut self,
        learner: DiskId,
        chunk: ChunkId,
        window: u32,
        blocks: u64,
        leaves: &[Hash],
        data: &Bytes,
    ) {
        let Some(session) = self.sessions.get_mut(&learner) else { return };
        let Some(active) = session.active.get_mut(&chunk) else { return };
        active.reading = active.reading.saturating_sub(1);
        active.copying += 1;
        let mut sent_leaves = Vec::with_capacity(blocks.count_ones() as usize);
        let mut wanted = 0u64;
        for i in (0..BLOCKS_PER_WINDOW).filter(|i| blocks >> i & 1 == 1) {
            sent_leaves.push(leaves[i]);
            wanted |= u64::from(leaves[i] != HOLE) << i;
        }
        let content = blocks_of(data, wanted);
        session.bytes_sent += content.len() as u64 + sent_leaves.len() as u64 * 32;
        let message = SessionMessage::Copy { chunk, window, blocks, leaves: sent_leaves, data: content };
        self.tell_learner(learner, message);
        self.chunk_maybe_done(learner, chunk);
    }

    /// No replica has this window's blocks right: the learner can't have them either. It stays a learner, so that
    /// the damage is seen and no copy claims to be whole.
    pub(in crate::core::replica) fn window_unreadable(&mut self, learner: DiskId, chunk: ChunkId, window: u32) {
        let Some(session) = self.sessions.get_mut(&learner) else { return };
        session.pace.give_up(chunk, window);
        let Some(active) = session.active.get_mut(&chunk) else { return };
        active.reading = active.reading.saturating_sub(1);
        // Once, however many windows: it stands for the answer that never comes.
        active.outstanding += usize::from(!active.unreadable);
        active.unreadable = true;
    }

    /// The learner's windows of this mask differ: their groups are compared.
    pub(super) fn chunk_differs(&mut self, from: DiskId, chunk: ChunkId, windows: u16) {
        let Some(session) = self.sessions.get_mut(&from) else { return };
        let Some(active) = session.active.get_mut(&chunk) else { return };
        active.outstanding = active.outstanding.saturating_sub(1);
        let Some(leaves) = active.leaves.clone() else { return };
        let mut messages = Vec::new();
        for window in (0..WINDOWS_PER_CHUNK as u32).filter(|w| windows >> w & 1 == 1) {
            let first = window as usize * BLOCKS_PER_WINDOW;
            let groups: Vec<Hash> = window_leaves(&leaves, window)
                .chunks(GROUP_BLOCKS)
                .enumerate()
                .map(|(g, l)| hashtree::subtree(first + g * GROUP_BLOCKS, l))
                .collect();
            active.outstanding += 1;
            session.bytes_sent += groups.len() as u64 * 32;
            messages.push(SessionMessage::CompareWindow { chunk, window, groups });
        }
        for message in messages {
            self.tell_learner(from, message);
        }
        self.chunk_maybe_done(from, chunk);
    }

    /// The learner's groups of a window differ: their leaves are compared.
    pub(super) fn window_differs(&mut self, from: DiskId, chunk: ChunkId, window: u32, groups: u16) {
        let Some(session) = self.sessions.get_mut(&from) else { return };
        let Some(active) = session.active.get_mut(&chunk) else { return };
        let Some(leaves) = active.leaves.clone() else { return };
        if groups == 0 || window as usize >= WINDOWS_PER_CHUNK {
            active.outstanding = active.outstanding.saturating_sub(1);
            return self.chunk_maybe_done(from, chunk);
        }
        let list: Vec<Hash> = window_leaves(&leaves, window)
            .chunks(GROUP_BLOCKS)
            .enumerate()
            .filter(|(g, _)| groups >> g & 1 == 1)
            .flat_map(|(_, l)| l.iter().copied())
            .collect();
        session.bytes_sent += list.len() as u64 * 32;
        self.tell_learner(from, SessionMessage::CompareBlocks { chunk, window, groups, leaves: list });
    }

    /// These blocks of a window are to be copied.
    pub(super) fn blocks_differ(&mut self, from: DiskId, chunk: ChunkId, window: u32, blocks: u64) {
        let Some(session) = self.sessions.get_mut(&from) else { return };
        let Some(active) = session.active.get_mut(&chunk) else { return };
        active.outstanding = active.outstanding.saturating_sub(1);
        if blocks != 0 && (window as usize) < WINDOWS_PER_CHUNK {
            active.windows.push_back((window, blocks));
        }
        self.chunk_maybe_done(from, chunk);
    }

    /// Tells the learner when nothing of a chunk is left to send, and counts it when all has been applied.
    pub(super) fn chunk_maybe_done(&mut self, learner: DiskId, chunk: ChunkId) {
        let Some(session) = self.sessions.get_mut(&learner) else { return };
        let Some(active) = session.active.get_mut(&chunk) else { return };
        if active.leaves.is_none() || active.outstanding > 0 || active.reading > 0 || !active.windows.is_empty() {
            return;
        }
        if !active.done_sent {
            active.done_sent = true;
            let (generation, sequence) = active.version;
            self.tell_learner(learner, SessionMessage::ChunkDone { chunk, generation, sequence });
        }
        let Some(session) = self.sessions.get_mut(&learner) else { return };
        if session.active.get(&chunk).is_some_and(|a| a.copying == 0) {
            session.active.remove(&chunk);
            session.chunks_done += 1;
            session.progress_at = self.now;
        }
    }
}

/// A window's blocks of a mask, one behind the other. Where they are neighbours, which is nearly always, they aren't copied:
/// this runs where guests' requests do.
fn blocks_of(window: &Bytes, mask: u64) -> Bytes {
    let (first, count) = (mask.trailing_zeros() as usize, mask.count_ones() as usize);
    let block = BLOCK_BYTES as usize;
    if first + count == BLOCKS_PER_WINDOW - mask.leading_zeros() as usize {
        return window.slice(first * block..(first + count) * block);
    }
    let wanted = (0..BLOCKS_PER_WINDOW).filter(|i| mask >> i & 1 == 1);
    wanted.map(|i| &window[i * block..(i + 1) * block]).collect::<Vec<_>>().concat().into()
}

fn window_leaves(leaves: &[Hash], window: u32) -> &[Hash] {
    let first = window as usize * BLOCKS_PER_WINDOW;
    &leaves[first..first + BLOCKS_PER_WINDOW]
}

fn data_mask(leaves: &[Hash]) -> u64 {
    leaves.iter().enumerate().filter(|(_, l)| **l != HOLE).fold(0, |mask, (i, _)| mask | 1 << i)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_masks_blocks_come_in_order_and_neighbours_are_not_copied() {
        let block = BLOCK_BYTES as usize;
        let window: Bytes = (0..BLOCKS_PER_WINDOW).flat_map(|i| vec![i as u8; block]).collect::<Vec<_>>().into();
        for mask in [0, 1, 1 << 63, u64::MAX, 0b0110, 0b0101, 3 << 62, 1 << 63 | 1] {
            let found: Vec<u8> = blocks_of(&window, mask).chunks(block).map(|b| b[0]).collect();
            let wanted: Vec<u8> = (0..64).filter(|i| mask >> i & 1 == 1).collect();
            assert_eq!(found, wanted, "{mask:b}");
        }
        assert_eq!(blocks_of(&window, 0b0110).as_ptr(), window[block..].as_ptr());
    }
}
