//! How resync fares, judged each second: against what guests write, and against its floor. Pure.

use super::types::Sample;

/// Ticks over which it is judged: one second.
pub(super) const GROUND_TICKS: u32 = 10;
/// Below this part of its floor resync doesn't make it.
const FLOOR_MADE: f64 = 0.9;

/// What was found in the last second.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Found {
    /// Guests write faster than resync copies.
    pub losing: bool,
    /// Resync made less than its floor, and no gate of this disk held it back.
    pub below_floor: bool,
}

/// The second that is under way, and what was found in the one before.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ground {
    ticks: u32,
    backlog_before: u64,
    resync_bytes: u64,
    write_bytes: u64,
    /// What the floor promised.
    floor_bytes: f64,
    held_back: bool,
    found: Found,
}

impl Ground {
    /// A tick of `seconds`, under this floor.
    pub fn enter(&mut self, sample: &Sample, floor_bytes_per_sec: f64, seconds: f64) {
        // Resync that gets nothing done asks for no tokens either.
        if sample.wanted.contains(&true) || sample.backlog_bytes > 0 {
            self.floor_bytes += floor_bytes_per_sec * seconds;
        }
        self.held_back |= sample.resync_held_back;
        self.resync_bytes = self.resync_bytes.saturating_add(sample.resync_bytes);
        self.write_bytes = self.write_bytes.saturating_add(sample.foreground_write_bytes);
        self.ticks += 1;
        if self.ticks >= GROUND_TICKS {
            let grew = sample.backlog_bytes > self.backlog_before && self.backlog_before > 0;
            let found = Found {
                losing: grew && self.write_bytes > self.resync_bytes,
                below_floor: !self.held_back && (self.resync_bytes as f64) < FLOOR_MADE * self.floor_bytes,
            };
            *self = Ground { backlog_before: sample.backlog_bytes, found, ..Ground::default() };
        }
    }

    /// In the last whole second.
    pub fn found(&self) -> Found {
        self.found
    }
}
