//! Whether guests complete less than they do alone, although their latency target is met.
//!
//! A guest that keeps so many requests under way (a scan, a restore, a benchmark) completes fewer as their mean latency
//! grows, long before the p99 is twice the quiet one: of a number that is fixed, throughput is as 1/latency (Little's law). One
//! that asks at a pace of its own completes as many as ever. Which of them guests are shows where copies pause or go on again:
//! there throughput changes with latency, or doesn't. From then on latency alone says what they keep. Their number of
//! operations itself would not: it changes with what guests ask for, and with each placement group that the disk comes to lead.
//!
//! Units: operations, seconds. Pure.

use super::histogram::Histogram;

/// What is known of the present covers so many seconds.
const NOW_SECONDS: f64 = 0.5;
/// Or so many operations, where that is longer: fewer give no mean.
const NOW_OPERATIONS: f64 = 500.0;
/// What is known of quiet moments covers so many seconds of them.
const QUIET_SECONDS: f64 = 5.0;
/// A probe shows fractions of a second: what was known before counts as so many, so that a few probes replace it where
/// the machine itself has become slower, and copies don't pay for that for long.
const PROBE_KEEPS_SECONDS: f64 = 0.3;
/// Less says nothing yet.
const SECONDS_MIN: f64 = 0.19;
/// After a quiet moment so much is compared with it: later guests may be others.
const COMPARED_FROM: f64 = 0.5;
const COMPARED_TO: f64 = 3.0;
/// What a comparison leaves of earlier ones, if it rests on so many operations; one on fewer counts for less, and one on
/// fewer than the least is luck.
const COMPARED_KEEPS: f64 = 0.7;
const COMPARED_OPERATIONS: f64 = 100.0;
const COMPARED_OPERATIONS_MIN: f64 = 30.0;
/// Sum of the squares of latencies' changes (natural logarithms) from which on guests are known: one of a sixth, or some
/// smaller ones.
const KNOWN_FROM: f64 = 0.02;
/// Up to this exponent guests have a pace of their own, from the other on a fixed number under way: what is beyond is noise.
const OWN_PACE: f64 = 0.3;
const FIXED_NUMBER: f64 = 0.7;
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

    /// About as many as it rests on.
    fn operations(&self) -> f64 {
        self.operations_per_sec * self.seconds.min(NOW_SECONDS)
    }

    /// Mean seconds of an operation.
    fn latency(&self) -> Option<f64> {
        let known = self.seconds >= SECONDS_MIN && self.operations_per_sec > 0.0 && self.under_way > 0.0;
        known.then(|| self.under_way / self.operations_per_sec)
    }
}

/// Guests' latency in quiet moments and beside resync, and how their throughput follows it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Throughput {
    quiet: Mean,
    now: Mean,
    /// The last quiet moment alone, and what was before it.
    moment: Mean,
    before: Mean,
    /// Seconds beside resync since then.
    beside_seconds: f64,
    compared: bool,
    /// Regression of throughput's changes over latency's, both as logarithms.
    changes: f64,
    squares: f64,
}

impl Throughput {
    /// A moment without resync.
    pub fn learn_quiet(&mut self, guests: &Histogram, seconds: f64) {
        if self.beside_seconds > 0.0 {
            (self.before, self.moment) = (self.now, Mean::default());
            (self.beside_seconds, self.compared) = (0.0, false);
        }
        self.moment.enter(guests, seconds, seconds / NOW_SECONDS);
        self.quiet.enter(guests, seconds, seconds / QUIET_SECONDS);
    }

    /// A moment beside resync.
    pub fn see(&mut self, guests: &Histogram, seconds: f64) {
        if self.beside_seconds == 0.0 {
            self.compare(self.before);
            self.now = Mean::default();
        }
        self.beside_seconds += seconds;
        self.now.enter(guests, seconds, (seconds / NOW_SECONDS).min(guests.total() / NOW_OPERATIONS));
        if !self.compared && (COMPARED_FROM..COMPARED_TO).contains(&self.beside_seconds) {
            self.compared = self.compare(self.now);
        }
    }

    /// Guests have paused.
    pub fn forget_now(&mut self) {
        (self.now, self.before) = Default::default();
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

    /// Enters how throughput changed with latency between the last quiet moment and what was beside it; true if it says much.
    fn compare(&mut self, beside: Mean) -> bool {
        let (Some(slow), Some(quick)) = (beside.latency(), self.moment.latency()) else { return false };
        let slower = (slow / quick).ln();
        let fewer = (self.moment.operations_per_sec / beside.operations_per_sec).ln();
        let operations = self.moment.operations().min(beside.operations());
        if operations < COMPARED_OPERATIONS_MIN {
            return false;
        }
        let weight = (operations / COMPARED_OPERATIONS).min(1.0).powi(2);
        let keeps = 1.0 - (1.0 - COMPARED_KEEPS) * weight;
        self.changes = self.changes * keeps + slower * fewer * weight;
        self.squares = self.squares * keeps + slower * slower * weight;
        slower * slower >= KNOWN_FROM
    }

    /// The exponent of latency in guests' throughput: 0 for a pace of their own, 1 for a fixed number under way.
    fn exponent(&self) -> f64 {
        if self.squares < KNOWN_FROM {
            return 0.0;
        }
        ((self.changes / self.squares - OWN_PACE) / (FIXED_NUMBER - OWN_PACE)).clamp(0.0, 1.0)
    }

    /// What guests complete, as a part of what they complete alone, if both are known.
    fn kept(&self) -> Option<f64> {
        Some((self.quiet.latency()? / self.now.latency()?).powf(self.exponent()))
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

    /// Alone, then beside copies: each as operations of a tick, and their latency.
    fn after(quiet: (u32, u64), now: (u32, u64)) -> Throughput {
        let mut throughput = Throughput::default();
        (0..30).for_each(|_| throughput.learn_quiet(&tick(quiet.0, quiet.1), 0.1));
        assert_eq!(throughput.kept(), None);
        (0..30).for_each(|_| throughput.see(&tick(now.0, now.1), 0.1));
        throughput
    }

    fn kept(throughput: &Throughput) -> f64 {
        throughput.kept().expect("it is known")
    }

    #[test]
    fn a_guest_with_a_fixed_queue_loses_what_it_does_not_complete() {
        let kept = kept(&after((400, 2_000), (300, 2_670)));
        assert!((0.70..0.80).contains(&kept), "{kept}");
    }

    #[test]
    fn a_guest_with_its_own_pace_loses_nothing() {
        assert_eq!(kept(&after((100, 1_000), (100, 1_900))), 1.0);
    }

    #[test]
    fn a_disk_that_comes_to_lead_less_costs_guests_nothing() {
        let mut own_pace = after((400, 1_000), (400, 1_900));
        (0..50).for_each(|_| own_pace.see(&tick(200, 1_900), 0.1));
        assert_eq!(kept(&own_pace), 1.0);
        // With a fixed queue as little more than before.
        let mut fixed = after((400, 2_000), (300, 2_670));
        (0..50).for_each(|_| fixed.see(&tick(150, 2_670), 0.1));
        assert!((0.70..0.80).contains(&kept(&fixed)), "{}", kept(&fixed));
    }

    #[test]
    fn a_guest_that_asks_for_less_lacks_nothing() {
        let mut throughput = after((400, 2_000), (300, 2_670));
        (0..50).for_each(|_| throughput.see(&tick(100, 1_900), 0.1));
        assert!(kept(&throughput) >= 1.0);
        (0..50).for_each(|_| throughput.see(&tick(0, 1), 0.1));
        assert!(throughput.spare(0.8) >= 0.0);
    }

    #[test]
    fn another_guest_is_known_for_what_it_is_after_some_probes() {
        let mut throughput = after((400, 2_000), (300, 2_670));
        for _ in 0..4 {
            throughput.fade_quiet();
            (0..3).for_each(|_| throughput.learn_quiet(&tick(100, 2_000), 0.1));
            (0..97).for_each(|_| throughput.see(&tick(100, 2_670), 0.1));
        }
        assert_eq!(kept(&throughput), 1.0);
    }

    #[test]
    fn a_machine_that_gets_slower_is_believed_after_a_few_probes() {
        let mut throughput = after((400, 2_000), (300, 2_670));
        for _ in 0..4 {
            (0..97).for_each(|_| throughput.see(&tick(280, 2_850), 0.1));
            throughput.fade_quiet();
            (0..3).for_each(|_| throughput.learn_quiet(&tick(300, 2_670), 0.1));
        }
        (0..10).for_each(|_| throughput.see(&tick(280, 2_850), 0.1));
        assert!(kept(&throughput) > 0.85, "{}", kept(&throughput));
    }

    #[test]
    fn nothing_is_said_of_what_is_not_known() {
        let mut throughput = Throughput::default();
        throughput.see(&tick(10, 100), 0.1);
        throughput.see(&tick(10, 100), 10.0);
        assert_eq!(throughput.kept(), None);
        throughput.learn_quiet(&tick(0, 1), 10.0);
        assert_eq!(throughput.kept(), None);
        assert_eq!(throughput.spare(0.8), SPARE_FULL);
    }
}
