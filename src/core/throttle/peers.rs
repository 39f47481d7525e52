//! What guests have without resync on an ordinary disk of a class: the median of the disks' own baselines. Pure.
//!
//! A volume is spread over all disks of its class, so its guests have the latency of all of them, and a p99 that was learnt in a few
//! seconds is easily off by half. The disk with the lowest one would be held to that alone, copy at its floor, and hold up the
//! moves from and to it while the others leave unused what they may. So no disk is held to less than the median, within bounds.

use std::collections::BTreeMap;

use super::latencies::KINDS;

/// Fewer disks have no median that one of them doesn't make alone.
const DISKS_MIN: usize = 3;
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

/// A disk's own baseline, raised towards its class's.
pub(super) fn raised_us(own_us: f64, class_us: u64) -> f64 {
    own_us.max((class_us as f64).min(own_us * RAISED_MOST))
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
    fn only_a_low_baseline_is_raised_and_not_by_much() {
        assert_eq!(raised_us(1_700.0, 2_100), 2_100.0);
        assert_eq!(raised_us(2_700.0, 2_100), 2_700.0);
        assert_eq!(raised_us(200.0, 2_100), 300.0);
        assert_eq!(raised_us(1_700.0, 0), 1_700.0);
        assert_eq!(raised_us(1_700.0, u64::MAX), 2_550.0);
    }
}
