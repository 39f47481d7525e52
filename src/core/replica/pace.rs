//! How much of a copy may be under way: as much as the path carries in a tenth of a second.
//!
//! The learner confirms a window when it has applied it *and* paid for it at its disk's throttle. What is under way beyond
//! that arrives there in one burst, whatever the throttle says, and guests of that disk wait behind it; too little leaves a
//! fast path idle. So the limit follows the time that a window takes, as TCP Vegas does: quick answers raise it, slow ones
//! lower it. Invariants: [`MIN_BYTES`] ≤ limit ≤ [`MAX_BYTES`]; a window may pass the limit once, never more.

use std::collections::HashMap;
use std::time::Duration;

use crate::core::ids::ChunkId;
use crate::core::units::Instant;

/// One window.
pub(super) const MIN_BYTES: u64 = 256 << 10;
/// 1 GB/s with 4 ms there and back.
pub(super) const MAX_BYTES: u64 = 4 << 20;
/// Where a session starts: a floor of 8 MiB/s pays for it in about the time below.
const START_BYTES: u64 = 1 << 20;
/// A window that took longer waited for the throttle, or in a queue.
const SLOW: Duration = Duration::from_millis(100);
/// Nothing was queued.
const QUICK: Duration = Duration::from_millis(25);

/// What one session has under way.
#[derive(Debug)]
pub(super) struct Pace {
    limit_bytes: u64,
    under_way_bytes: u64,
    /// Windows under way: since when, and their bytes. Bounded by the limit.
    windows: HashMap<(ChunkId, u32), (Instant, u64)>,
}

impl Pace {
    pub(super) fn new() -> Self {
        Pace { limit_bytes: START_BYTES, under_way_bytes: 0, windows: HashMap::new() }
    }

    /// Bytes under way.
    pub(super) fn under_way_bytes(&self) -> u64 {
        self.under_way_bytes
    }

    /// Another window may begin.
    pub(super) fn has_room(&self) -> bool {
        self.under_way_bytes < self.limit_bytes
    }

    /// A window begins to be read.
    pub(super) fn begin(&mut self, chunk: ChunkId, window: u32, bytes: u64, now: Instant) {
        self.under_way_bytes += bytes;
        self.windows.insert((chunk, window), (now, bytes));
    }

    /// It will never be sent: others take its room.
    pub(super) fn give_up(&mut self, chunk: ChunkId, window: u32) {
        if let Some((_, bytes)) = self.windows.remove(&(chunk, window)) {
            self.under_way_bytes = self.under_way_bytes.saturating_sub(bytes);
        }
    }

    /// The learner has it.
    pub(super) fn end(&mut self, chunk: ChunkId, window: u32, now: Instant) {
        let Some((since, bytes)) = self.windows.remove(&(chunk, window)) else { return };
        let was_full = !self.has_room();
        self.under_way_bytes = self.under_way_bytes.saturating_sub(bytes);
        let took = now.since(since);
        // By what has come: so the limit doubles, or falls to nothing, in the time of one round.
        if took > SLOW {
            self.limit_bytes = self.limit_bytes.saturating_sub(bytes).max(MIN_BYTES);
        } else if took < QUICK && was_full {
            self.limit_bytes = (self.limit_bytes + bytes).min(MAX_BYTES);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::ids::VolumeId;

    const WINDOW: u64 = 256 << 10;

    fn at(ms: u64) -> Instant {
        Instant(1_000_000_000 + ms * 1_000_000)
    }

    /// Keeps the path full for `rounds` of windows that each take `ms`; gives what is under way then.
    fn run(pace: &mut Pace, rounds: u32, ms: u64) -> u64 {
        let chunk = ChunkId { volume: VolumeId(1), index: 0 };
        let mut now = 0;
        let mut next = 0;
        let mut most = 0;
        for _ in 0..rounds {
            let first = next;
            while pace.has_room() {
                pace.begin(chunk, next, WINDOW, at(now));
                next += 1;
            }
            most = pace.under_way_bytes();
            now += ms;
            (first..next).for_each(|window| pace.end(chunk, window, at(now)));
            assert_eq!(pace.under_way_bytes(), 0);
        }
        most
    }

    #[test]
    fn a_quick_path_is_filled_and_a_slow_one_gets_one_window() {
        let mut pace = Pace::new();
        assert_eq!(run(&mut pace, 1, 50), START_BYTES);
        assert_eq!(run(&mut pace, 200, 5), MAX_BYTES, "quick answers");
        assert_eq!(run(&mut pace, 20, 50), MAX_BYTES, "neither quick nor slow");
        assert_eq!(run(&mut pace, 20, 500), MIN_BYTES, "a throttle that is low");
        assert!(run(&mut pace, 200, 5) > MIN_BYTES, "and back");
    }

    /// A chunk that nobody can read must not hold up all others for ever.
    #[test]
    fn what_is_given_up_leaves_its_room() {
        let mut pace = Pace::new();
        run(&mut pace, 20, 500);
        let bad = ChunkId { volume: VolumeId(1), index: 9 };
        pace.begin(bad, 0, WINDOW, at(0));
        assert!(!pace.has_room());
        pace.give_up(bad, 0);
        assert!(pace.has_room());
        assert_eq!(pace.under_way_bytes(), 0);
    }

    #[test]
    fn an_answer_to_nothing_changes_nothing() {
        let mut pace = Pace::new();
        pace.end(ChunkId { volume: VolumeId(1), index: 7 }, 3, at(5));
        assert_eq!(pace.under_way_bytes(), 0);
        assert!(pace.has_room());
    }
}
