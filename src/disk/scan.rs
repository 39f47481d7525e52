//! Rebuilding the index from the header tables: one sequential read of each.

use std::sync::Arc;

use super::backend::Io;
use super::chunk::{Chunk, Index, Slots};
use super::layout::{Copy, HEADER_BYTES, Header, PAGE_BYTES, SlotUse, Superblock};

/// What the tables say.
#[derive(Default)]
pub(super) struct Scan {
    pub index: Index,
    pub slots: Slots,
    /// Header copies that don't check.
    pub corrupt_headers: u64,
}

/// Read in pieces: 8,192 headers.
const PIECE_BYTES: u64 = 1 << 20;

/// Reads both tables.
pub(super) fn scan(io: &Io, superblock: &Superblock) -> Scan {
    let g = &superblock.geometry;
    let mut out = Scan::default();
    let total = g.headers_bytes();
    let mut tables = [vec![0; PIECE_BYTES as usize], vec![0; PIECE_BYTES as usize]];
    let mut at = 0;
    while at < total {
        let n = (total - at).min(PIECE_BYTES);
        for (table, buf) in tables.iter_mut().enumerate() {
            read_piece(io, &mut buf[..n as usize], g.headers(table) + at);
        }
        let first = at / HEADER_BYTES as u64;
        let count = (n / HEADER_BYTES as u64).min(u64::from(g.slots).saturating_sub(first));
        for i in 0..count {
            let slot = (first + i) as u32;
            let range = i as usize * HEADER_BYTES..(i as usize + 1) * HEADER_BYTES;
            let [a, b] = [0, 1].map(|t: usize| Header::decode(&tables[t][range.clone()], slot, &superblock.cluster));
            out.take(slot, a, b);
        }
        at += n;
    }
    out
}

/// Reads a piece of a table; what can't be read counts as damaged, it doesn't lose the whole disk.
fn read_piece(io: &Io, buf: &mut [u8], offset: u64) {
    if io.read(buf, offset).is_ok() {
        return;
    }
    for (i, page) in buf.chunks_mut(PAGE_BYTES as usize).enumerate() {
        if io.read(page, offset + i as u64 * PAGE_BYTES).is_err() {
            page.fill(0xff);
        }
    }
}

impl Scan {
    fn take(&mut self, slot: u32, a: Copy<Header>, b: Copy<Header>) {
        let corrupt = u64::from(a == Copy::Corrupt) + u64::from(b == Copy::Corrupt);
        self.corrupt_headers += corrupt;
        let newest = match (a, b) {
            (Copy::Empty, Copy::Empty) => return self.slots.add_fresh(slot),
            (Copy::Valid(a), Copy::Valid(b)) => {
                if a.version > b.version {
                    a
                } else {
                    b
                }
            }
            (Copy::Valid(h), _) | (_, Copy::Valid(h)) => h,
            _ => return self.slots.quarantined.push((slot, 0)),
        };
        match newest.slot_use {
            // The damaged copy may have been newer, and that of a chunk.
            SlotUse::Free | SlotUse::Freeing if corrupt > 0 => self.slots.quarantined.push((slot, newest.version)),
            SlotUse::Free => {
                self.slots.freed.insert(slot, newest.version);
            }
            SlotUse::Freeing => self.slots.half_freed.push((slot, newest.version)),
            SlotUse::Chunk => self.take_chunk(slot, newest, corrupt > 0),
        }
    }

    fn take_chunk(&mut self, slot: u32, header: Header, damaged: bool) {
        let chunk = Chunk::new(slot, &header);
        {
            let mut state = chunk.state.lock();
            if damaged || header.dirty {
                state.dirty = true;
                state.unrecovered = Some(None);
            }
        }
        // Two slots with one chunk come only of damage. The sound one wins, else the later.
        if let Some(other) = self.index.chunks.get(&header.chunk).cloned() {
            let rank = |c: &Chunk| {
                let s = c.state.lock();
                (!s.dirty, s.generation, s.sequence)
            };
            if rank(&other) >= rank(&chunk) {
                return self.slots.quarantined.push((slot, header.version));
            }
            let version = other.state.lock().version;
            self.slots.quarantined.push((other.slot, version));
            self.index.remove(header.chunk);
        }
        self.index.insert(Arc::new(chunk));
    }
}
