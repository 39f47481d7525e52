//! When it is worth telling that guests have a worse latency than their target, and when that is over.
//!
//! A second over the target is the loop at work. What lasts is news: resync is at its floor, or the guests themselves want more
//! than the disk can do. Call order: [`Missed::look`] once a second with every disk that copies use. Pure; seconds are looks.

use std::collections::BTreeMap;

use crate::core::ids::DiskId;

/// Looks on end over the target after which it is told.
pub const TOLD_AFTER: u32 = 5;
/// Looks on end within the target, or without copies, after which it counts as over.
pub const OVER_AFTER: u32 = 10;

/// What one disk's guests have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Recent p99, microseconds.
    pub p99_us: u64,
    /// The target, microseconds.
    pub target_us: u64,
}

/// What there is to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// The target has been missed for [`TOLD_AFTER`] looks.
    Missed(DiskId, Seen),
    /// It no longer is.
    Met(DiskId),
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    over: u32,
    within: u32,
    told: bool,
}

/// What was seen of each disk. Bounded by the disks that copies used within the last [`OVER_AFTER`] looks.
#[derive(Debug, Default)]
pub struct Missed {
    disks: BTreeMap<DiskId, State>,
}

impl Missed {
    /// Takes one look; `seen` has the disks that copies use and whose guests' latency is known.
    pub fn look(&mut self, seen: &BTreeMap<DiskId, Seen>) -> Vec<News> {
        for disk in seen.keys() {
            self.disks.entry(*disk).or_default();
        }
        let mut news = Vec::new();
        self.disks.retain(|disk, state| {
            match seen.get(disk).filter(|s| s.p99_us > s.target_us) {
                Some(now) => {
                    (state.over, state.within) = (state.over + 1, 0);
                    if state.over >= TOLD_AFTER && !state.told {
                        state.told = true;
                        news.push(News::Missed(*disk, *now));
                    }
                }
                None => (state.over, state.within) = (0, state.within + 1),
            }
            let over = state.within >= OVER_AFTER;
            if over && state.told {
                news.push(News::Met(*disk));
            }
            !over
        });
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK: DiskId = DiskId(3);
    const BAD: Seen = Seen { p99_us: 9_000, target_us: 4_000 };
    const GOOD: Seen = Seen { p99_us: 4_000, target_us: 4_000 };

    #[test]
    fn what_lasts_is_told_once_and_its_end_once() {
        let mut missed = Missed::default();
        let (bad, good) = (BTreeMap::from([(DISK, BAD)]), BTreeMap::from([(DISK, GOOD)]));
        let looks = |missed: &mut Missed, seen, n: u32| (0..n).flat_map(|_| missed.look(seen)).collect::<Vec<_>>();
        assert_eq!(looks(&mut missed, &bad, TOLD_AFTER - 1), []);
        assert_eq!(looks(&mut missed, &good, 1), [], "a few seconds are the loop at work");
        assert_eq!(looks(&mut missed, &bad, TOLD_AFTER), [News::Missed(DISK, BAD)]);
        assert_eq!(looks(&mut missed, &bad, 60), []);
        assert_eq!(looks(&mut missed, &good, OVER_AFTER - 1), []);
        assert_eq!(looks(&mut missed, &bad, TOLD_AFTER), [], "it was never over");
        // The copies end: so does their effect.
        assert_eq!(looks(&mut missed, &BTreeMap::new(), OVER_AFTER), [News::Met(DISK)]);
        assert!(missed.disks.is_empty(), "nothing is remembered for ever");
    }

    #[test]
    fn what_was_never_told_has_no_end() {
        let mut missed = Missed::default();
        assert!((0..100).all(|_| missed.look(&BTreeMap::from([(DISK, GOOD)])).is_empty()));
    }
}
