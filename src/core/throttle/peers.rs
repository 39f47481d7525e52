//! What is usual in a class of disks: what guests have without resync, and how fast copies may go beside them. Pure.
//!
//! A volume is spread over all disks of its class, so its guests have the latency of all of them, and a p99 that was learnt in a few
//! seconds is easily off by half. The disk with the lowest one would be held to that alone, copy at its floor, and hold up the
//! moves from and to it while the others leave unused what they may. So no disk is held to less than the median, within bounds; and
//! one that joins has the median until it knows its own.
//!
//! In the same way a disk that has never copied beside guests begins with half of the rate that is usual in its class: a plan's
//! moves start disk after disk, and each would search for seconds, from its floor, what others have found.

use std::collections::BTreeMap;

use super::latencies::KINDS;

/// Fewer disks have no median that one of them doesn't make alone.
const DISKS_MIN: usize = 3;
/// Fewer disks have no usual rate.
const RATES_MIN: usize = 2;
/// A disk begins with this part of it: its search makes up for half in a second.
const BEGINS_WITH: f64 = 0.5;
/// Ticks of copies beside guests after which a disk's rate is one that it has found.
const FOUND_TICKS: u32 = 10;
/// The median raises a disk's own baseline by this at most: one that is much faster than its class stays what it is.
const RAISED_MOST: f64 = 1.5;

/// By kind of operation, in microseconds; 0: not known.
pub type Baselines = [u64; KINDS];

/// From a message: what is missing isn't known, what is too much is left out.
pub fn from_list(p99s_us: &[u64]) -> Baselines {
    std::array::from_fn(|kind| p99s_us.get(kind).copied().unwrap_or(0))
}

/// What a disk has found, or what is usual on the disks of a class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Guests' p99 without resync.
    pub quiet_p99_us: Baselines,
    /// What copies may do beside guests, bytes per second; 0: not known.
    pub rate_bytes_per_sec: u64,
}

/// What is usual in each class: the median of each finding, over the disks that have it. Of an even number of rates the lower
/// one in the middle counts, of p99s the higher one.
pub fn usual<'a>(disks: impl IntoIterator<Item = (&'a str, Findings)>) -> BTreeMap<String, Findings> {
    let mut classes: BTreeMap<&str, Vec<Findings>> = BTreeMap::new();
    disks.into_iter().for_each(|(class, found)| classes.entry(class).or_default().push(found));
    let of_class = |all: &[Findings]| Findings {
        quiet_p99_us: std::array::from_fn(|kind| {
            let known = sorted(all.iter().map(|found| found.quiet_p99_us[kind]));
            if known.len() < DISKS_MIN { 0 } else { known[known.len() / 2] }
        }),
        rate_bytes_per_sec: {
            let known = sorted(all.iter().map(|found| found.rate_bytes_per_sec));
            if known.len() < RATES_MIN { 0 } else { known[(known.len() - 1) / 2] }
        },
    };
    classes.into_iter().map(|(class, all)| (class.to_owned(), of_class(&all))).collect()
}

/// Those that are known.
fn sorted(findings: impl Iterator<Item = u64>) -> Vec<u64> {
    let mut known: Vec<u64> = findings.filter(|found| *found > 0).collect();
    known.sort_unstable();
    known
}

/// Whether a disk has found a rate of its own, and what its copies begin with until then.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct FirstRate {
    /// In which copies ran beside guests, up to [`FOUND_TICKS`].
    ticks: u32,
    begun: bool,
}

impl FirstRate {
    /// A tick in which copies ran beside guests at `rate`: the rate to go on with, if `usual` bytes per second are usual. That may
    /// become known some ticks after the first.
    pub fn copied(&mut self, rate: f64, usual: u64) -> f64 {
        let begins = !self.begun && !self.is_found() && usual > 0;
        self.begun |= begins;
        self.ticks = (self.ticks + 1).min(FOUND_TICKS);
        if begins { rate.max(usual as f64 * BEGINS_WITH) } else { rate }
    }

    /// A limit was met.
    pub fn found(&mut self) {
        self.ticks = FOUND_TICKS;
    }

    pub fn is_found(&self) -> bool {
        self.ticks >= FOUND_TICKS
    }
}

/// What counts for a disk: its own baseline, raised towards its class's, which stands in for what isn't known at all. One that is
/// not well known yet is raised without a bound; none is lowered.
pub(super) fn in_force_us(own_us: Option<f64>, is_well_known: bool, class_us: u64) -> Option<f64> {
    let class = class_us as f64;
    match own_us {
        Some(own) if is_well_known => Some(own.max(class.min(own * RAISED_MOST))),
        Some(own) => Some(own.max(class)),
        None => (class_us > 0).then_some(class),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_has_the_median_of_its_disks() {
        let p99s = |class, quiet_p99_us| (class, Findings { quiet_p99_us, ..Findings::default() });
        let disks =
            [p99s("ssd", [900, 0, 0, 0, 7]), p99s("ssd", [1_700, 0, 0, 0, 9]), p99s("ssd", [2_700, 5, 0, 0, 0])];
        let usual = usual(disks.into_iter().chain([p99s("hdd", [20_000; KINDS])]));
        assert_eq!(usual["ssd"].quiet_p99_us, [1_700, 0, 0, 0, 0], "two disks have none");
        assert_eq!(usual["hdd"].quiet_p99_us, [0; KINDS], "nor has one");
    }

    #[test]
    fn a_class_has_the_usual_rate_of_its_disks() {
        let of = |rates: &[u64]| {
            let found = |rate: &u64| ("ssd", Findings { rate_bytes_per_sec: *rate, ..Findings::default() });
            usual(rates.iter().map(found))["ssd"].rate_bytes_per_sec
        };
        assert_eq!(of(&[90, 50, 0]), 50);
        assert_eq!(of(&[90, 50, 60]), 60);
        assert_eq!(of(&[90, 0]), 0, "one is not usual");
    }

    #[test]
    fn only_a_low_baseline_is_raised_and_not_by_much() {
        let known = |own, class| in_force_us(Some(own), true, class).unwrap();
        assert_eq!(known(1_700.0, 2_100), 2_100.0);
        assert_eq!(known(2_700.0, 2_100), 2_700.0);
        assert_eq!(known(200.0, 2_100), 300.0);
        assert_eq!(known(1_700.0, 0), 1_700.0);
        assert_eq!(known(1_700.0, u64::MAX), 2_550.0);
    }

    #[test]
    fn the_class_stands_in_for_what_a_disk_does_not_know() {
        assert_eq!(in_force_us(None, false, 2_100), Some(2_100.0));
        assert_eq!(in_force_us(None, false, 0), None);
        assert_eq!(in_force_us(Some(200.0), false, 2_100), Some(2_100.0), "a lucky moment");
        assert_eq!(in_force_us(Some(20_000.0), false, 2_100), Some(20_000.0), "a slow disk, or another load");
    }
}
