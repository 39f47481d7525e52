//! How fast copies are made, and when they will be done: from samples over the last seconds.
//!
//! The ETA is that of the busiest disk: what it has left to read or to write, over the mean of what the disks that work do.
//! Negative: diverging, as guests add more than is copied. Units: bytes, seconds. Pure.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use crate::core::ids::DiskId;
use crate::core::placement::Span;
use crate::core::units::Instant;

/// A rate is the mean over this.
const WINDOW: Duration = Duration::from_secs(5);
/// Shorter samples say nothing of a rate.
const SECONDS_MIN: f64 = 0.5;
/// What is left must grow for so long before it is called diverging.
const DIVERGING_SECONDS_MIN: f64 = 4.0;
/// The pessimistic end of the range.
const HIGH_SLACK: f64 = 1.25;

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
}

#[derive(Debug)]
struct Sample {
    at: Instant,
    done: u64,
    left: u64,
    job: u64,
    readers: usize,
    writers: usize,
}

/// Samples over the last seconds.
#[derive(Debug, Default)]
pub struct Progress {
    samples: VecDeque<Sample>,
}

impl Progress {
    /// One sample a second or so: `done` never falls, `job` names the plan.
    pub fn sample(&mut self, now: Instant, done: u64, left: &Left, job: u64) {
        let (readers, writers) = (left.readers.len(), left.writers.len());
        self.samples.push_back(Sample { at: now, done, left: left.bytes, job, readers, writers });
        while self.samples.len() > 2 && self.samples.front().is_some_and(|s| now.since(s.at) > WINDOW) {
            self.samples.pop_front();
        }
    }

    /// Bytes per second.
    pub fn per_sec(&self) -> u64 {
        let (Some(first), Some(last)) = (self.samples.front(), self.samples.back()) else { return 0 };
        let seconds = last.at.since(first.at).as_secs_f64();
        if seconds < SECONDS_MIN { 0 } else { (last.done.saturating_sub(first.done) as f64 / seconds) as u64 }
    }

    /// Seconds until `left` is done; none while nothing is known.
    pub fn eta(&self, left: &Left) -> Option<Span> {
        if left.bytes == 0 {
            return None;
        }
        if let Some(growth) = self.growth_per_sec() {
            let never = -(left.bytes as f64) / growth;
            return Some(Span { low: never, likely: never, high: never });
        }
        let rate = self.per_sec() as f64;
        if rate <= 0.0 {
            return None;
        }
        let mean = |of: fn(&Sample) -> usize| {
            let busy: Vec<usize> = self.samples.iter().map(of).filter(|n| *n > 0).collect();
            busy.iter().sum::<usize>().max(1) as f64 / busy.len().max(1) as f64
        };
        let busiest = |of: &BTreeMap<DiskId, u64>| of.values().copied().max().unwrap_or(0) as f64;
        let low = left.bytes as f64 / rate;
        let reads = busiest(&left.reads) * mean(|s| s.readers) / rate;
        let writes = busiest(&left.writes) * mean(|s| s.writers) / rate;
        let likely = low.max(reads).max(writes);
        Some(Span { low, likely, high: likely * HIGH_SLACK })
    }

    /// Bytes per second by which what is left grows, if it does.
    fn growth_per_sec(&self) -> Option<f64> {
        let last = self.samples.back()?;
        let first = self.samples.iter().find(|s| s.job == last.job)?;
        let seconds = last.at.since(first.at).as_secs_f64();
        (seconds >= DIVERGING_SECONDS_MIN && last.left > first.left && last.writers > 0)
            .then(|| (last.left - first.left) as f64 / seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(copies: &[(u32, u32, u64)]) -> Left {
        let mut left = Left::default();
        copies.iter().for_each(|(s, t, bytes)| left.add(Some(DiskId(*s)), DiskId(*t), *bytes, true));
        left
    }

    fn sampled(rows: &[(u64, u64, Left)]) -> Progress {
        let mut progress = Progress::default();
        rows.iter().for_each(|(s, done, left)| progress.sample(Instant(s * 1_000_000_000), *done, left, 1));
        progress
    }

    #[test]
    fn the_busiest_disk_decides() {
        // Two targets work at 10 each; one has 300 left, the other 100.
        let now = left(&[(1, 3, 300), (2, 4, 100)]);
        let p = sampled(&[(0, 0, now.clone()), (2, 40, now.clone())]);
        assert_eq!(p.per_sec(), 20);
        let span = p.eta(&now).unwrap();
        assert_eq!((span.low, span.likely), (20.0, 30.0));
        assert!(span.high > span.likely);
        assert_eq!(p.eta(&Left::default()), None);
        assert_eq!(sampled(&[(0, 0, now.clone())]).eta(&now), None, "no rate is known yet");
    }

    #[test]
    fn what_grows_diverges() {
        let p = sampled(&[(0, 0, left(&[(1, 3, 100)])), (5, 50, left(&[(1, 3, 200)]))]);
        let span = p.eta(&left(&[(1, 3, 200)])).unwrap();
        assert!(span.is_diverging());
        assert_eq!(span.likely, -10.0);
    }
}
