//! How fast copies are made, and when they will be done.
//!
//! The ETA is that of the busiest disk: what it has left to read or to write, over what a disk that works does.
//! Negative: diverging, as guests add more than is copied. Units: bytes, seconds. Pure.
//!
//! *Measured* is the rate of the last seconds, from what each node reports between two of its own reports, and only since
//! copies run: seconds in which there was nothing to do say nothing. While the throttle opens (it starts at its floor, and
//! takes about [`OPENING`] to find what the guests leave) that is too low to last, so it is not taken as lasting:
//! *expected* is what disks did in the steady part of earlier jobs of this coordinator, or, before there was one, what
//! the planner's forecast assumes; never above the cap. Whether disks share what bounds them (a host, a link, a core) or not is not
//! known: so where another number of them works than before, what is expected is halfway in ratio between the same for
//! all together and the same for each. Guests, and what disks share, make the rate of a few seconds swing by
//! more than a factor of two, so the likely rate lies between both, in ratio: it begins at what is expected and goes to what is
//! measured, half of the way in [`HALF_LEARNT`] or, where only the forecast is known, [`HALF_FORECAST`]. `low` takes the faster of
//! the two, `high` the slower, and at least a quarter more time than likely.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use crate::core::ids::{DiskId, NodeId};
use crate::core::placement::Span;
use crate::core::units::Instant;

/// A rate is the mean over this: three reports, so that a pause of one disk doesn't swing it.
const WINDOW: Duration = Duration::from_millis(3500);
/// Reports closer together say nothing of a rate.
const SECONDS_MIN: f64 = 0.5;
/// A node that is silent for this long copies nothing that is known.
const SILENT: Duration = Duration::from_secs(3);
/// How long the throttle takes to find its rate: it grows by a quarter each 100 ms, after a probe of up to 1.5 s.
const OPENING: Duration = Duration::from_millis(2000);
/// After so long what is measured counts as much as what earlier jobs did.
const HALF_LEARNT: Duration = Duration::from_secs(5);
/// The same where only the forecast is known, which says little of this machine.
const HALF_FORECAST: Duration = Duration::from_secs(2);
/// What is left must grow for so long before it is called diverging.
const DIVERGING_SECONDS_MIN: f64 = 4.0;
/// Samples kept for that.
const GROWTH_WINDOW: Duration = Duration::from_secs(5);
/// The pessimistic end of the range, at least.
const HIGH_SLACK: f64 = 1.25;
/// The pessimistic end is not above this many times the likely one.
const HIGH_MOST: f64 = 4.0;
/// How much one second of steady work changes what is expected of the next job.
const LEARN: f64 = 0.2;

/// What is left to copy.
#[derive(Clone, Debug, Default)]
pub struct Left {
    bytes: u64,
    reads: BTreeMap<DiskId, u64>,
    writes: BTreeMap<DiskId, u64>,
    readers: BTreeSet<DiskId>,
    writers: BTreeSet<DiskId>,
}

impl Left {
    /// A copy that runs or waits.
    pub fn add(&mut self, source: Option<DiskId>, target: DiskId, bytes: u64, runs: bool) {
        self.bytes = self.bytes.saturating_add(bytes);
        let ends = [(source, &mut self.reads, &mut self.readers), (Some(target), &mut self.writes, &mut self.writers)];
        for (disk, of, active) in ends {
            let Some(disk) = disk else { continue };
            let sum = of.entry(disk).or_default();
            *sum = sum.saturating_add(bytes);
            if runs {
                active.insert(disk);
            }
        }
    }

    /// All of it.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What each disk has to read, and what it has to write; a disk may come twice.
    pub fn by_disk(&self) -> impl Iterator<Item = (DiskId, u64)> + '_ {
        self.reads.iter().chain(&self.writes).map(|(disk, bytes)| (*disk, *bytes))
    }
}

#[derive(Debug)]
struct Sample {
    at: Instant,
    left: u64,
    job: u64,
    readers: usize,
    writers: usize,
}

/// What a node's process has written so far, as its reports say.
#[derive(Debug, Default)]
struct Written {
    process: u64,
    points: VecDeque<(Instant, u64)>,
}

/// Samples over the last seconds, and what was learnt from earlier ones.
#[derive(Debug, Default)]
pub struct Progress {
    samples: VecDeque<Sample>,
    nodes: BTreeMap<NodeId, Written>,
    /// Since when copies run without a break.
    since: Option<Instant>,
    /// What disks that take copies did together while they lasted, bytes per second, and how many they were.
    steady: Option<(f64, f64)>,
    /// The planner's forecast for a disk, and the cap.
    forecast: f64,
    cap: Option<u64>,
}

impl Progress {
    /// A node's report: what its process has written as a target of copies since it started.
    pub fn handle_report(&mut self, node: NodeId, process: u64, written: u64, now: Instant) {
        let entry = self.nodes.entry(node).or_default();
        if entry.process != process {
            *entry = Written { process, points: VecDeque::new() };
        }
        entry.points.push_back((now, written));
        // One before the window, where the first difference begins.
        while entry.points.len() > 2 && entry.points.get(1).is_some_and(|(at, _)| now.since(*at) > WINDOW) {
            entry.points.pop_front();
        }
    }

    /// One sample a second or so. `job` names the plan; `forecast` is what the planner expects a disk to do, per second.
    pub fn sample(&mut self, now: Instant, left: &Left, job: u64, forecast: f64, cap: Option<u64>) {
        (self.forecast, self.cap) = (forecast, cap);
        let (readers, writers) = (left.readers.len(), left.writers.len());
        if writers == 0 {
            self.since = None;
        } else {
            self.since.get_or_insert(now);
        }
        self.samples.push_back(Sample { at: now, left: left.bytes, job, readers, writers });
        while self.samples.len() > 2 && self.samples.front().is_some_and(|s| now.since(s.at) > GROWTH_WINDOW) {
            self.samples.pop_front();
        }
        self.nodes.retain(|_, w| w.points.back().is_some_and(|(at, _)| now.since(*at) < SILENT));
        self.learn(now);
    }

    /// Only what lasts, under no cap, says what the next job can expect.
    fn learn(&mut self, now: Instant) {
        let (all, writers) = (self.measured(now), self.mean(|s| s.writers));
        let lasts = self.since.is_some_and(|since| now.since(since) > OPENING + WINDOW);
        if !lasts || all <= 0.0 || self.cap.is_some() {
            return;
        }
        let old = self.steady.unwrap_or((all, writers));
        self.steady = Some((old.0 + (all - old.0) * LEARN, old.1 + (writers - old.1) * LEARN));
    }

    /// Bytes per second over the last reports since copies run.
    fn measured(&self, now: Instant) -> f64 {
        let Some(mut since) = self.since else { return 0.0 };
        if now.since(since) >= OPENING {
            since = since + OPENING / 2; // The lowest rates of the opening.
        }
        let rate = |w: &Written| {
            let (last_at, last) = *w.points.back()?;
            // The point before copies began is where they began.
            let from = w.points.iter().rposition(|(at, _)| *at <= since).unwrap_or(0);
            let (at, first) = *w.points.get(from)?;
            let seconds = last_at.since(at.max(since)).as_secs_f64();
            (seconds >= SECONDS_MIN && now.since(last_at) < SILENT).then(|| last.saturating_sub(first) as f64 / seconds)
        };
        self.nodes.values().filter_map(rate).sum()
    }

    /// The mean over the samples in which there were any.
    fn mean(&self, of: fn(&Sample) -> usize) -> f64 {
        let busy: Vec<usize> = self.samples.iter().map(of).filter(|n| *n > 0).collect();
        busy.iter().sum::<usize>().max(1) as f64 / busy.len().max(1) as f64
    }

    /// Bytes per second.
    pub fn per_sec(&self, now: Instant) -> u64 {
        self.measured(now) as u64
    }

    /// What all disks that work may be expected to do together, per second.
    fn expected(&self, writers: f64) -> f64 {
        let cap = self.cap.map_or(f64::INFINITY, |cap| cap as f64 * writers);
        let learnt = self.steady.map(|(together, disks)| together * (writers / disks).sqrt());
        learnt.unwrap_or(self.forecast * writers).min(cap)
    }

    /// Seconds until `left` is done; none while nothing runs.
    pub fn eta(&self, left: &Left, now: Instant) -> Option<Span> {
        let since = self.since.filter(|_| left.bytes > 0)?;
        if let Some(growth) = self.growth_per_sec() {
            let never = -(left.bytes as f64) / growth;
            return Some(Span { low: never, likely: never, high: never });
        }
        let (measured, writers, readers) = (self.measured(now), self.mean(|s| s.writers), self.mean(|s| s.readers));
        let expected = self.expected(writers);
        let age = now.since(since).as_secs_f64();
        let half = if self.steady.is_some() { HALF_LEARNT } else { HALF_FORECAST }.as_secs_f64();
        // While the throttle opens, a low rate says nothing.
        let opening = age < OPENING.as_secs_f64() && measured < expected;
        let weight = if opening || measured <= 0.0 { 0.0 } else { age * age / (age * age + half * half) };
        let rate = if expected > 0.0 { expected * (measured / expected).powf(weight) } else { measured };
        let busiest = |of: &BTreeMap<DiskId, u64>| of.values().copied().max().unwrap_or(0) as f64;
        let work = (left.bytes as f64).max(busiest(&left.reads) * readers).max(busiest(&left.writes) * writers);
        if rate <= 0.0 {
            return None;
        }
        let likely = work / rate;
        let high = if measured > 0.0 { work / measured.min(expected) } else { f64::INFINITY };
        let high = high.clamp(likely * HIGH_SLACK, likely * HIGH_MOST);
        let fast = rate.max(measured).max(expected);
        Some(Span { low: (left.bytes as f64 / fast).min(likely), likely, high })
    }

    /// Bytes per second by which what is left grows, if it does.
    fn growth_per_sec(&self) -> Option<f64> {
        let last = self.samples.back()?;
        // What begins is no growth.
        let first = self.samples.iter().find(|s| s.job == last.job && Some(s.at) >= self.since)?;
        let seconds = last.at.since(first.at).as_secs_f64();
        (seconds >= DIVERGING_SECONDS_MIN && last.left > first.left && last.writers > 0)
            .then(|| (last.left - first.left) as f64 / seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        Instant((1_000_000 + ms) * 1_000_000)
    }

    fn left(copies: &[(u32, u32, u64)]) -> Left {
        let mut left = Left::default();
        copies.iter().for_each(|(s, t, bytes)| left.add(Some(DiskId(*s)), DiskId(*t), *bytes, true));
        left
    }

    /// Idle for `idle` seconds, then one node writes at these rates, a second each; ends at the last report.
    fn run(p: &mut Progress, begin_ms: u64, idle: u64, rates: &[u64], total: u64, job: u64) -> (Left, Instant) {
        let mut written = begin_ms; // Anything: it never falls.
        let mut ms = begin_ms;
        for _ in 0..idle {
            p.handle_report(NodeId(4), 1, written, at(ms));
            p.sample(at(ms), &Left::default(), job, 100.0, None);
            ms += 1000;
        }
        p.handle_report(NodeId(4), 1, written, at(ms));
        p.sample(at(ms), &left(&[(1, 4, total)]), job, 100.0, None);
        let (mut done, mut now) = (0, left(&[(1, 4, total)]));
        for rate in rates {
            (ms, done, written) = (ms + 1000, done + rate, written + rate);
            p.handle_report(NodeId(4), 1, written, at(ms));
            now = left(&[(1, 4, total - done)]);
            p.sample(at(ms), &now, job, 100.0, None);
        }
        (now, at(ms))
    }

    #[test]
    fn the_busiest_disk_decides() {
        // Two targets work at 10 each; one has 300 left, the other 100.
        let mut p = Progress::default();
        let now = left(&[(1, 3, 300), (2, 4, 100)]);
        for s in 0..8 {
            p.handle_report(NodeId(3), 1, s * 10, at(s * 1000));
            p.handle_report(NodeId(4), 1, s * 10, at(s * 1000 + 300));
            p.sample(at(s * 1000 + 500), &now, 1, 10.0, None);
        }
        assert_eq!(p.per_sec(at(7500)), 20);
        let span = p.eta(&now, at(7500)).unwrap();
        assert!((span.low - 20.0).abs() < 0.1 && (span.likely - 30.0).abs() < 0.1, "{span:?}");
        assert!(span.high > span.likely);
        assert_eq!(p.eta(&Left::default(), at(7500)), None);
        assert_eq!(p.per_sec(at(60_000)), 0, "nobody says anything any more");
    }

    #[test]
    fn seconds_before_the_copies_say_nothing_of_their_rate() {
        let mut p = Progress::default();
        let (left, now) = run(&mut p, 0, 10, &[100], 1000, 1);
        assert_eq!(p.per_sec(now), 100);
        let span = p.eta(&left, now).unwrap();
        assert!((8.0..=10.0).contains(&span.likely), "{span:?}");
    }

    #[test]
    fn the_first_low_rate_is_not_taken_as_lasting() {
        // The throttle opens within two seconds: a tenth is there after the second one.
        let mut p = Progress::default();
        let (now_left, now) = run(&mut p, 0, 5, &[10, 70], 1000, 1);
        let follows = 9.2;
        let span = p.eta(&now_left, now).unwrap();
        assert!((span.likely / follows - 1.0).abs() < 0.25, "{span:?}");
        assert!(span.low <= follows && follows <= span.high, "{span:?}");
        // Where it does last, that is told a few seconds later.
        let mut slow = Progress::default();
        let (left, now) = run(&mut slow, 0, 5, &[10; 8], 1000, 1);
        let told = slow.eta(&left, now).unwrap();
        assert!((92.0 * 0.75..=92.0).contains(&told.likely) && told.high >= 92.0, "{told:?}");
    }

    #[test]
    fn what_earlier_jobs_did_is_expected_of_the_next() {
        let mut p = Progress::default();
        run(&mut p, 0, 2, &[20, 300, 400, 400, 400, 400, 400, 400, 400, 400, 400, 400], 10_000, 1);
        let (now_left, now) = run(&mut p, 20_000, 3, &[40], 4000, 2);
        let span = p.eta(&now_left, now).unwrap();
        let follows = 3960.0 / 400.0;
        assert!((span.likely / follows - 1.0).abs() < 0.25, "{span:?}");
        // Four disks may do four times as much, or no more than the one.
        let four = left(&[(1, 5, 1000), (1, 6, 1000), (2, 7, 1000), (2, 8, 1000)]);
        let mut other = Progress::default();
        run(&mut other, 0, 2, &[20, 300, 400, 400, 400, 400, 400, 400, 400, 400, 400, 400], 10_000, 1);
        other.sample(at(30_000), &Left::default(), 2, 100.0, None);
        (31..33).for_each(|s| other.sample(at(s * 1000), &four, 2, 100.0, None));
        let span = other.eta(&four, at(32_000)).unwrap();
        assert!((span.likely / (4000.0 / 800.0) - 1.0).abs() < 0.1, "{span:?}");
        // A cap bounds what is expected.
        p.sample(now, &now_left, 2, 100.0, Some(50));
        assert!(p.eta(&now_left, now).unwrap().likely >= 3960.0 / 50.0);
    }

    #[test]
    fn what_grows_diverges() {
        let mut p = Progress::default();
        p.sample(at(0), &left(&[(1, 3, 100)]), 1, 10.0, None);
        p.sample(at(5000), &left(&[(1, 3, 200)]), 1, 10.0, None);
        let span = p.eta(&left(&[(1, 3, 200)]), at(5000)).unwrap();
        assert!(span.is_diverging());
        assert_eq!(span.likely, -10.0);
    }
}
