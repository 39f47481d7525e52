//! What a correct store may answer, sector by sector.
//!
//! A gateway has at most one write under way on a sector, so each sector is a register with one writer: a read may
//! return the last acked value, the one being written, or one whose fate isn't known (its gateway was lost).

use std::collections::{BTreeMap, BTreeSet};

/// (chunk index, sector in the chunk).
pub type At = (u32, u32);

#[derive(Default, Clone)]
pub struct Cell {
    committed: u64,
    pending: Option<u64>,
    /// May have taken effect, may not.
    maybe: BTreeSet<u64>,
    flushed: u64,
    /// What may have been there at that flush instead, from a gateway that was lost.
    also_flushed: BTreeSet<u64>,
    unflushed: Vec<(u64, u64)>,
    /// What it may be after a loss of everything unflushed, until the gateway has replayed.
    lossy: BTreeSet<u64>,
    changes: u64,
}

/// A read under way.
pub struct Read {
    at: Vec<At>,
    allowed: Vec<BTreeSet<u64>>,
    changes: Vec<u64>,
    /// By a reader that isn't attached: it may see what a power loss left before the gateway has replayed (R13).
    outside: bool,
}

#[derive(Default)]
pub struct Model {
    cells: BTreeMap<At, Cell>,
    reads: BTreeMap<u64, Read>,
    pub order: u64,
}

impl Model {
    pub fn read_starts(&mut self, id: u64, at: Vec<At>, outside: bool) {
        let mut allowed = Vec::new();
        let mut changes = Vec::new();
        for a in &at {
            let cell = self.cells.entry(*a).or_default();
            let mut set = cell.maybe.clone();
            set.insert(cell.committed);
            set.extend(cell.pending);
            if outside {
                set.extend(&cell.lossy);
            }
            allowed.push(set);
            changes.push(cell.changes);
        }
        self.reads.insert(id, Read { at, allowed, changes, outside });
    }

    pub fn read_dropped(&mut self, id: u64) {
        self.reads.remove(&id);
    }

    pub fn read_ends(&mut self, id: u64, values: &[u64]) -> Result<(), String> {
        let Some(read) = self.reads.remove(&id) else { return Ok(()) };
        self.order += 1;
        for (i, value) in values.iter().enumerate() {
            let at = read.at[i];
            if !read.allowed[i].contains(value) {
                return Err(format!(
                    "a read of chunk {} sector {} returned {value:x}, allowed were {:x?}",
                    at.0, at.1, read.allowed[i]
                ));
            }
            if read.outside {
                continue;
            }
            let order = self.order;
            let cell = self.cells.entry(at).or_default();
            let mut settled = false;
            // Zeros tell nobody's writes apart: a read that began before this one may have found older ones.
            let telling = *value != 0 || cell.changes == read.changes[i];
            if cell.pending == Some(*value) && telling {
                settled = cell.committed != *value;
            } else if cell.changes == read.changes[i] && cell.pending.is_none() {
                cell.maybe.clear();
                settled = cell.committed != *value;
            }
            if settled {
                // Seen once, it stays.
                cell.committed = *value;
                cell.unflushed.push((order, *value));
                for other in self.reads.values_mut() {
                    if let Some(j) = other.at.iter().position(|a| *a == at) {
                        other.allowed[j].insert(*value);
                    }
                }
            }
        }
        Ok(())
    }

    pub fn write_starts(&mut self, writes: &[(At, u64)]) {
        for (at, value) in writes {
            let cell = self.cells.entry(*at).or_default();
            cell.pending = Some(*value);
            cell.changes += 1;
            for read in self.reads.values_mut() {
                if let Some(j) = read.at.iter().position(|a| a == at) {
                    read.allowed[j].insert(*value);
                }
            }
        }
    }

    pub fn write_ends(&mut self, writes: &[(At, u64)], durable: bool) {
        self.order += 1;
        for (at, value) in writes {
            let cell = self.cells.entry(*at).or_default();
            cell.pending = None;
            cell.committed = *value;
            cell.changes += 1;
            cell.maybe.clear();
            cell.unflushed.push((self.order, *value));
            if durable {
                cell.flushed = *value;
                cell.also_flushed.clear();
                cell.unflushed.clear();
                cell.lossy.clear();
            }
        }
    }

    /// Its gateway is gone: it happened or it didn't.
    pub fn write_lost(&mut self, writes: &[(At, u64)]) {
        for (at, value) in writes {
            let cell = self.cells.entry(*at).or_default();
            if cell.pending == Some(*value) {
                cell.pending = None;
            }
            cell.maybe.insert(*value);
            cell.changes += 1;
        }
    }

    pub fn flushed(&mut self, up_to: u64) {
        for cell in self.cells.values_mut() {
            while let Some((order, value)) = cell.unflushed.first().copied() {
                if order > up_to {
                    break;
                }
                cell.flushed = value;
                cell.also_flushed.clear();
                cell.unflushed.remove(0);
            }
            cell.also_flushed.extend(&cell.maybe);
        }
    }

    /// Every member of the PG that holds `of` restarted.
    pub fn power_lost(&mut self, of: impl Fn(&At) -> bool) {
        for (at, cell) in self.cells.iter_mut().filter(|(at, _)| of(at)) {
            if !cell.unflushed.is_empty() {
                cell.lossy.insert(cell.flushed);
                cell.lossy.extend(&cell.also_flushed);
                cell.lossy.extend(cell.unflushed.iter().map(|(_, v)| *v));
            }
            for read in self.reads.values_mut().filter(|r| r.outside) {
                if let Some(j) = read.at.iter().position(|a| a == at) {
                    read.allowed[j].extend(&cell.lossy);
                }
            }
        }
    }

    /// A gateway has replayed all that it kept of the PG that holds `of`; the sectors of `kept` are as acked again.
    pub fn replayed(&mut self, kept: &BTreeSet<At>, of: impl Fn(&At) -> bool) {
        for (at, cell) in self.cells.iter_mut().filter(|(at, _)| of(at)) {
            let lossy = std::mem::take(&mut cell.lossy);
            if !kept.contains(at) && !lossy.is_empty() {
                cell.maybe.extend(lossy);
                cell.changes += 1;
                for read in self.reads.values_mut() {
                    if let Some(j) = read.at.iter().position(|a| a == at) {
                        read.allowed[j].extend(cell.maybe.iter().copied());
                    }
                }
            }
        }
    }
}
