//! Whether guests complete less than they do alone, although their latency target is met.
//!
//! A guest that keeps so many requests under way (a scan, a restore, a benchmark) completes fewer as their mean latency
//! grows, long before the p99 is twice the quiet one. One that asks at a pace of its own completes as many as ever. Little's law
//! tells them apart, and from guests that have come to ask for less: the mean number of requests under way is their
//! throughput times their mean latency. Where as many are under way as without resync, and fewer complete, resync takes the
//! difference.
//!
//! Units: operations, seconds. Pure.

use super::histogram::Histogram;

/// What is known of the present covers so many seconds.
const NOW_SECONDS: f64 = 0.5;
/// Or so many operations, where that is longer: fewer give no throughput.
const NOW_OPERATIONS: f64 = 500.0;
/// What is known of quiet moments covers so many seconds of them.
const QUIET_SECONDS: f64 = 5.0;
/// A probe shows fractions of a second: what was known before counts as so many, so that a few probes replace it where
/// the machine itself has become slower, and copies don't pay for that for long.
const PROBE_KEEPS_SECONDS: f64 = 0.3;
/// Less says nothing yet.
const SECONDS_MIN: f64 = 0.25;
/// The part of the requests under way in quiet moments that must be under way now: below it guests ask for less.
const ASKING_MIN: f64 = 0.9;
/// The bound is aimed at from so much above, so that the loop's own noise stays within.
const AIM: f64 = 0.06;
/// With so much to spare there is no bound.
pub(super) const SPARE_FULL: f64 = 0.1;

/// A mean that fades.
#[derive(Clone, Copy, Debug, Default)]
struct Mean {
    operations_per_sec: f64,
    under_way: f64,
    seconds: f64,
}

impl Mean {
    fn enter(&mut self, guests: &Histogram, seconds: f64, weight: f64) {
        // While little is known, each moment counts the same.
        let weight = weight.max(seconds / (self.seconds + seconds)).min(1.0);
        self.operations_per_sec += (guests.total() / seconds - self.operations_per_sec) * weight;
        self.under_way += (guests.sum_us() / 1e6 / seconds - self.under_way) * weight;
        self.seconds += seconds;
    }
}

/// Guests' throughput in quiet moments and beside resync.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Throughput {
    quiet: Mean,
    now: Mean,
}

impl Throughput {
    /// A moment without resync.
    pub fn learn_quiet(&mut self, guests: &Histogram, seconds: f64) {
        self.quiet.enter(guests, seconds, seconds / QUIET_SECONDS);
    }

    /// A moment beside resync.
    pub fn see(&mut self, guests: &Histogram, seconds: f64) {
        self.now.enter(guests, seconds, (seconds / NOW_SECONDS).min(guests.total() / NOW_OPERATIONS));
    }

    /// Guests have paused.
    pub fn forget_now(&mut self) {
        self.now = Mean::default();
    }

    /// Guests have changed: what is learnt next counts most.
    pub fn forget_quiet(&mut self) {
        self.quiet.seconds = 0.0;
    }

    /// A probe begins: what it shows counts about as much as what is known.
    pub fn fade_quiet(&mut self) {
        let keeps = PROBE_KEEPS_SECONDS.max(NOW_OPERATIONS / self.quiet.operations_per_sec.max(1.0));
        self.quiet.seconds = self.quiet.seconds.min(keeps);
    }

    /// By how much guests complete more than `least`, a part of what they complete alone; negative: they lack it. No more than
    /// [`SPARE_FULL`], and that where nothing is known against it.
    pub fn spare(&self, least: f64) -> f64 {
        self.kept().map_or(SPARE_FULL, |kept| (kept - least - AIM).min(SPARE_FULL))
    }

    /// What guests complete, as a part of what they complete alone; none while they ask for less than then, or it isn't known.
    fn kept(&self) -> Option<f64> {
        let known = self.quiet.seconds >= SECONDS_MIN && self.now.seconds >= SECONDS_MIN;
        let asking = self.now.under_way >= ASKING_MIN * self.quiet.under_way;
        (known && asking && self.quiet.operations_per_sec > 0.0)
            .then(|| self.now.operations_per_sec / self.quiet.operations_per_sec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tenth of a second in which so many operations completed, of this latency.
    fn tick(operations: u32, latency_us: u64) -> Histogram {
        let mut guests = Histogram::default();
        guests.add_bucket(Histogram::bucket(latency_us), operations);
        guests
    }

    fn after(quiet: (u32, u64), now: (u32, u64)) -> Option<f64> {
        let mut throughput = Throughput::default();
        (0..30).for_each(|_| throughput.learn_quiet(&tick(quiet.0, quiet.1), 0.1));
        assert_eq!(throughput.kept(), None);
        (0..30).for_each(|_| throughput.see(&tick(now.0, now.1), 0.1));
        throughput.kept()
    }

    #[test]
    fn a_guest_with_a_fixed_queue_loses_what_it_does_not_complete() {
        let kept = after((400, 2_000), (300, 2_670)).expect("as many are under way");
        assert!((0.73..0.77).contains(&kept), "{kept}");
    }

    #[test]
    fn a_guest_with_its_own_pace_loses_nothing() {
        assert!(after((100, 1_000), (100, 1_900)).is_some_and(|kept| (kept - 1.0).abs() < 0.01));
    }

    #[test]
    fn a_guest_that_asks_for_less_says_nothing() {
        assert_eq!(after((400, 2_000), (200, 2_000)), None);
        assert_eq!(after((400, 2_000), (0, 1)), None);
    }

    #[test]
    fn a_machine_that_gets_slower_is_believed_after_a_few_probes() {
        let mut throughput = Throughput::default();
        (0..60).for_each(|_| throughput.learn_quiet(&tick(400, 2_000), 0.1));
        for _ in 0..4 {
            (0..97).for_each(|_| throughput.see(&tick(300, 2_670), 0.1));
            throughput.fade_quiet();
            (0..3).for_each(|_| throughput.learn_quiet(&tick(300, 2_670), 0.1));
        }
        let kept = throughput.kept().expect("as many are under way");
        assert!(kept > 0.95, "{kept}");
        assert!(throughput.spare(0.8) >= SPARE_FULL);
        // Of a disk with few operations a probe shows too little to forget so fast.
        let mut slow = Throughput::default();
        (0..600).for_each(|_| slow.learn_quiet(&tick(10, 20_000), 0.1));
        slow.fade_quiet();
        (0..3).for_each(|_| slow.learn_quiet(&tick(5, 40_000), 0.1));
        (0..60).for_each(|_| slow.see(&tick(10, 20_000), 0.1));
        assert!(slow.kept().is_some_and(|kept| kept < 1.1), "{:?}", slow.kept());
    }

    #[test]
    fn nothing_is_said_of_what_is_not_known() {
        let mut throughput = Throughput::default();
        throughput.see(&tick(10, 100), 0.1);
        throughput.see(&tick(10, 100), 10.0);
        assert_eq!(throughput.kept(), None);
        throughput.learn_quiet(&tick(0, 1), 10.0);
        assert_eq!(throughput.kept(), None);
    }
}
