//! What guests have in ordinary moments: when resync leaves them alone, the baseline that a target is a multiple of; and beside
//! resync, by the same measure, what corrects it.
//!
//! The p99 of one long histogram is no good baseline: a device that pauses 20 ms each few seconds, or a machine with noisy
//! neighbours, has a p99 that depends on how many of those moments fell into the memory. So operations are cut into windows
//! of a fifth of a second (longer where there are few), and the baseline is the p99 that three in four of the windows keep
//! ([`ORDINARY`]): what guests have in an ordinary moment, and on a busy machine about what their p99 over minutes is; a
//! target of twice the median would be less than guests have without resync. What the other moments cost is kept too, as the
//! part of operations over a latency: the loop allows resync to add to it, instead of paying for it. By kind of operation.
//! Units: microseconds.

use std::collections::VecDeque;
use std::time::Duration;

use super::histogram::Histogram;
use super::latencies::{KINDS, Kind, Latencies};

/// A window's least operations: fewer have no p99.
const WINDOW_OPERATIONS_MIN: f64 = 100.0;
/// A window's least length: what a probe shows of a fast disk is one.
const WINDOW_MIN: Duration = Duration::from_millis(200);
/// The part of windows that are ordinary: pauses that spoil a tenth of them, or a fifth, stay out.
const ORDINARY: f64 = 0.75;
/// Windows remembered: a quarter of a minute of guests alone, or more.
const WINDOWS_MAX: usize = 64;
/// Windows that make a kind well known: in fewer it may be luck.
const WELL_KNOWN: usize = 8;
/// Least operations for a baseline before the first window is full.
const OPERATIONS_MIN: f64 = 20.0;

/// What one disk's guests have.
#[derive(Clone, Debug, Default)]
pub(super) struct Baseline {
    /// All, with a fading memory.
    all: Latencies,
    window: [(Histogram, Duration); KINDS],
    p99s: [VecDeque<f32>; KINDS],
    /// Windows since the start, forgotten ones too.
    seen: [usize; KINDS],
}

impl Baseline {
    /// A tick's operations; about `operations_max` are remembered.
    pub fn learn(&mut self, latencies: &Latencies, elapsed: Duration, operations_max: f64) {
        self.all.learn(latencies, operations_max);
        for kind in Kind::ALL {
            let (window, length) = &mut self.window[kind as usize];
            window.merge(latencies.of(kind));
            *length = length.saturating_add(elapsed);
            if window.total() >= WINDOW_OPERATIONS_MIN
                && *length >= WINDOW_MIN
                && let Some(p99) = window.quantile_us(0.99)
            {
                let p99s = &mut self.p99s[kind as usize];
                if p99s.len() >= WINDOWS_MAX {
                    p99s.pop_front();
                }
                p99s.push_back(p99 as f32);
                self.seen[kind as usize] += 1;
                (*window, *length) = (Histogram::default(), Duration::ZERO);
            }
        }
    }

    /// The p99 of an ordinary moment.
    pub fn p99_us(&self, kind: Kind) -> Option<f64> {
        let mut p99s: Vec<f32> = self.p99s[kind as usize].iter().copied().collect();
        if p99s.is_empty() {
            let all = self.all.of(kind);
            return if all.total() < OPERATIONS_MIN { None } else { all.quantile_us(0.99) };
        }
        p99s.sort_by(f32::total_cmp);
        Some(f64::from(p99s[((p99s.len() - 1) as f64 * ORDINARY) as usize]))
    }

    /// The part of operations that took longer than this without resync too.
    pub fn part_over(&self, kind: Kind, us: f64) -> f64 {
        let all = self.all.of(kind);
        if all.total() < WINDOW_OPERATIONS_MIN { 0.0 } else { all.above_us(us) / all.total() }
    }

    /// Some kind is known.
    pub fn is_known(&self) -> bool {
        Kind::ALL.into_iter().any(|kind| self.p99_us(kind).is_some())
    }

    /// Operations remembered, by weight.
    pub fn operations(&self) -> f64 {
        self.all.total()
    }

    /// Operations of one kind remembered, by weight.
    pub fn operations_of(&self, kind: Kind) -> f64 {
        self.all.of(kind).total()
    }

    /// What is known counts less from now on.
    pub fn fade(&mut self, keep: f64) {
        self.all.decay(keep);
    }

    /// The load is another one: what was known stays only until something is known of this one.
    pub fn forget(&mut self, keep: f64) {
        self.all.decay(keep);
        self.window = Default::default();
        self.p99s.iter_mut().for_each(VecDeque::clear);
    }

    /// The kind was once seen for long enough; a change of load doesn't make its disk an unknown one.
    pub fn is_well_known(&self, kind: Kind) -> bool {
        self.seen[kind as usize] >= WELL_KNOWN
    }

    /// Whole windows remembered of a kind.
    pub fn windows(&self, kind: Kind) -> usize {
        self.p99s[kind as usize].len()
    }

    /// What guests had beside resync is better than what is known: it takes its place.
    pub fn correct(&mut self, kind: Kind, beside: &Baseline) {
        self.all.replace(kind, beside.all.of(kind).clone());
        self.window[kind as usize] = Default::default();
        self.p99s[kind as usize] = beside.p99s[kind as usize].clone();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: Duration = Duration::from_millis(100);

    /// A tick with so many reads, of which some were slow.
    fn tick(baseline: &mut Baseline, fast: u32, slow: u32) {
        let mut latencies = Latencies::default();
        latencies.add_bucket(Kind::SmallRead, Histogram::bucket(500), fast);
        latencies.add_bucket(Kind::SmallRead, Histogram::bucket(20_000), slow);
        baseline.learn(&latencies, TICK, 100_000.0);
    }

    #[test]
    fn pauses_are_no_part_of_the_baseline_but_are_known() {
        let mut baseline = Baseline::default();
        assert_eq!(baseline.p99_us(Kind::SmallRead), None);
        // A second in five has a pause that spoils a tenth of it.
        for second in 0..60 {
            (0..10).for_each(|_| tick(&mut baseline, 90, if second % 5 == 0 { 10 } else { 0 }));
        }
        let p99 = baseline.p99_us(Kind::SmallRead).unwrap();
        assert!((450.0..600.0).contains(&p99), "{p99}");
        let over = baseline.part_over(Kind::SmallRead, 2.0 * p99);
        assert!((0.015..0.027).contains(&over), "{over}");
        assert_eq!(baseline.p99_us(Kind::LargeWrite), None, "another kind says nothing of it");
    }

    #[test]
    fn what_is_forgotten_serves_until_something_is_known() {
        let mut baseline = Baseline::default();
        (0..100).for_each(|_| tick(&mut baseline, 100, 100));
        let before = baseline.p99_us(Kind::SmallRead);
        baseline.forget(0.1);
        assert!(baseline.p99_us(Kind::SmallRead).is_some() && before.is_some_and(|us| us > 10_000.0));
        (0..10).for_each(|_| tick(&mut baseline, 100, 0));
        assert!(baseline.p99_us(Kind::SmallRead).is_some_and(|us| us < 1_000.0));
    }

    #[test]
    fn few_operations_make_a_longer_window() {
        let mut baseline = Baseline::default();
        (0..24).for_each(|_| tick(&mut baseline, 4, 0));
        assert!(baseline.p99s[0].is_empty());
        assert!(baseline.p99_us(Kind::SmallRead).is_some(), "known well enough meanwhile");
        tick(&mut baseline, 4, 0);
        assert_eq!(baseline.p99s[0].len(), 1);
    }
}
