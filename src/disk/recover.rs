//! After an unclean stop: which blocks of the chunks with a dirty mark are not what their leaves say (R23).

use std::sync::Arc;

use super::Disk;
use super::backend::IoCounters;
use super::chunk::Chunk;
use super::data::end_read;
use super::error::{ReadChunk, WriteChunk};
use crate::core::hashtree::{self, HOLE};
use crate::core::ids::ChunkId;
use crate::core::units::{BLOCK_BYTES, BLOCKS_PER_CHUNK, BLOCKS_PER_WINDOW, WINDOW_BYTES};

impl Disk {
    /// The chunks that wait to be recovered, in order.
    pub fn unrecovered_chunks(&self) -> Vec<ChunkId> {
        let index = self.index.read();
        index.chunks.values().filter(|c| c.state.lock().is_unrecovered()).map(|c| c.id).collect()
    }

    /// Reads a whole chunk and returns the blocks that don't match their leaves: to be written with the content of a
    /// replica where they match, or adopted. Once none is left the chunk is as any other dirty one, and is cleaned in
    /// its time. May be called for any chunk: it is how scrub looks at one.
    ///
    /// # Errors
    /// The chunk's leaves can't be read: write all of it anew.
    pub fn recover_dirty(&self, id: ChunkId) -> Result<Vec<usize>, ReadChunk> {
        let Some(chunk) = self.begin_read(id) else { return Ok(Vec::new()) };
        let result = self.find_bad(&chunk);
        let mut recovered = false;
        if let Ok(bad) = &result {
            let mut state = chunk.state.lock();
            if state.is_unrecovered() {
                state.unrecovered = Some(Some(bad.iter().copied().collect()));
                recovered = state.end_recovery();
            }
        }
        end_read(&chunk);
        if recovered {
            self.add_hot(id);
        }
        result
    }

    fn find_bad(&self, chunk: &Arc<Chunk>) -> Result<Vec<usize>, ReadChunk> {
        let mut buf = vec![0; WINDOW_BYTES as usize];
        let mut bad = Vec::new();
        for first in (0..BLOCKS_PER_CHUNK).step_by(BLOCKS_PER_WINDOW) {
            bad.extend(self.read_unverified(chunk.id, first, BLOCKS_PER_WINDOW, &mut buf)?.1);
        }
        Ok(bad)
    }

    /// Takes a block's data as it is: its leaf becomes that of the data. Only where no replica has a match (R23). A
    /// block that can't be read becomes zeros.
    ///
    /// # Errors
    /// The disk has failed, or the chunk isn't here.
    pub fn adopt(&self, id: ChunkId, block: usize) -> Result<(), WriteChunk> {
        if block >= BLOCKS_PER_CHUNK {
            return Err(WriteChunk::BadRange { chunk: id, first_block: block, count: 1 });
        }
        let found = self.find(id).ok_or(WriteChunk::Absent { chunk: id })?;
        let (generation, sequence) = {
            let state = found.state.lock();
            (state.generation, state.sequence)
        };
        let mut data = vec![0; BLOCK_BYTES as usize];
        let read = self.io.read(&mut data, self.identity.geometry.block(found.slot, block)).is_ok();
        let leaves = if read { hashtree::leaves_of(block, &data) } else { vec![HOLE] };
        IoCounters::add(&self.io.counters.adopted_blocks, 1);
        // Written again with its leaf: that also marks a chunk that wasn't dirty.
        self.write(&super::WriteOp {
            pg: found.pg,
            chunk: id,
            generation,
            sequence,
            first_block: block,
            leaves: &leaves,
            data: &data,
            copy: false,
        })
    }
}
