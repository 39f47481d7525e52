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
/// The median raises a disk's own baseline by this at most: one that is much faster than its class stays what it is.
const RAISED_MOST: f64 = 1.5;

/// By kind of operation, in microseconds; 0: not known.
pub type Baselines = [u64; KINDS];

/// From a message: what is missing isn't known, what is too much is left out.
pub fn from_list(p99s_us: &[u64]) -> Baselines {
    std::array::from_fn(|kind| p99s_us.get(kind).copied().unwrap_or(0))
}

/// The median of each class by kind, over the disks that know one.
pub fn medians<'a>(disks: impl IntoIterator<Item = (&'a str, Baselines)>) -> BTreeMap<String, Baselines> {
    let mut classes: BTreeMap<&str, [Vec<u64>; KINDS]> = BTreeMap::new();
    for (class, baselines) in disks {
        let known = classes.entry(class).or_default();
        known.iter_mut().zip(baselines).filter(|(_, us)| *us > 0).for_each(|(known, us)| known.push(us));
    }
    let median = |mut known: Vec<u64>| {
        known.sort_unstable();
        if known.len() < DISKS_MIN { 0 } else { known[known.len() / 2] }
    };
    classes.into_iter().map(|(class, known)| (class.to_owned(), known.map(median))).collect()
}

/// What copies may usually do beside guests on disks of each class, of the rates in bytes per second that disks have found; 0: none
/// found yet. Of an even number, the lower of the two in the middle.
pub fn usual_rates<'a>(disks: impl IntoIterator<Item = (&'a str, u64)>) -> BTreeMap<String, u64> {
    let mut classes: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    disks
        .into_iter()
        .filter(|(_, rate)| *rate > 0)
        .for_each(|(class, rate)| classes.entry(class).or_default().push(rate));
    classes.retain(|_, rates| rates.len() >= RATES_MIN);
    let middle = |mut rates: Vec<u64>| {
        rates.sort_unstable();
        rates[(rates.len() - 1) / 2]
    };
    classes.into_iter().map(|(class, rates)| (class.to_owned(), middle(rates))).collect()
}

/// What a disk that has found no rate of its own begins with, in bytes per second.
pub(super) fn first_rate(usual: u64) -> f64 {
    usual as f64 * BEGINS_WITH
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
        let disks = [("ssd", [900, 0, 0, 0, 7]), ("ssd", [1_700, 0, 0, 0, 9]), ("ssd", [2_700, 5, 0, 0, 0])];
        let all = disks.into_iter().chain([("hdd", [20_000; KINDS])]);
        let medians = medians(all);
        assert_eq!(medians["ssd"], [1_700, 0, 0, 0, 0], "two disks have none");
        assert_eq!(medians["hdd"], [0; KINDS], "nor has one");
    }

    #[test]
    fn a_class_has_the_usual_rate_of_its_disks() {
        let found = |rates: &[u64]| usual_rates(rates.iter().map(|rate| ("ssd", *rate))).get("ssd").copied();
        assert_eq!(found(&[90, 50, 0]), Some(50));
        assert_eq!(found(&[90, 50, 60]), Some(60));
        assert_eq!(found(&[90, 0]), None, "one is not usual");
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
