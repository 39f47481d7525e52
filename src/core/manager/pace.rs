//! How fast each disk takes copies, so that one that is far slower than the others is seen, and gets less at once.
//!
//! A disk works while a copy to it is under way; its pace is the bytes of those copies over that time, as the primaries
//! report them, over the last [`WINDOW`] of work. It is slow if it has worked for [`JUDGED_AFTER`] and its pace is less than a
//! quarter of the median of all that have: a disk or link that fails, or one under a heavier load of guests. Where all are
//! slow none is. It stays slow until its pace is half of the median, or it has taken no copy for [`KEPT`]: between two moves, and
//! while paces waver about a quarter, it would get its second slot back. Units: bytes per second. Non-goals: the rates that the
//! throttle allows.

use std::collections::BTreeMap;
use std::time::Duration;

use super::reports::Copying;
use crate::core::ids::{DiskId, NodeId, PgId};
use crate::core::units::Instant;

/// Work that counts: older paces fade.
const WINDOW: Duration = Duration::from_secs(20);
/// Work before a disk is judged: the throttle has opened by then.
pub const JUDGED_AFTER: Duration = Duration::from_secs(10);
/// A pace below this part of the median is slow.
const SLOW_PART: f64 = 0.25;
/// A slow disk's pace above this part of the median is slow no more.
const RECOVERED_PART: f64 = 0.5;
/// A disk that took a copy within this is at work: only then is it named.
const WORKS: Duration = Duration::from_secs(5);
/// A disk that takes no copy is forgotten after this.
const KEPT: Duration = Duration::from_secs(120);

/// Bytes done of each copy.
type Done = BTreeMap<(PgId, DiskId), u64>;

#[derive(Clone, Copy, Debug)]
struct Disk {
    bytes: f64,
    worked: Duration,
    at: Instant,
}

/// The paces of all disks that take copies.
#[derive(Debug, Default)]
pub struct Pace {
    /// What each node said last of its copies, and when.
    said: BTreeMap<NodeId, (Instant, Done)>,
    disks: BTreeMap<DiskId, Disk>,
    slow: BTreeMap<DiskId, Slow>,
}

/// A slow disk's pace and the median of all, and whether it is at work.
#[derive(Clone, Copy, Debug)]
struct Slow {
    pace: u64,
    median: u64,
    works: bool,
}

impl Pace {
    /// A node says how far the copies are that it makes.
    pub fn handle_report(&mut self, node: NodeId, copies: &[Copying], now: Instant) {
        let under_way = copies.iter().filter(|c| !c.paused && c.bytes_done < c.bytes_total);
        let these: Done = under_way.map(|c| ((c.pg, c.to), c.bytes_done)).collect();
        let before = self.said.insert(node, (now, these.clone()));
        if let Some((then, before)) = before {
            let elapsed = now.since(then).min(WINDOW);
            let mut progress: BTreeMap<DiskId, u64> = BTreeMap::new();
            for (key, done) in &these {
                if let Some(old) = before.get(key) {
                    *progress.entry(key.1).or_default() += done.saturating_sub(*old);
                }
            }
            for (disk, bytes) in progress {
                self.add(disk, bytes as f64, elapsed, now);
            }
        }
        if these.is_empty() {
            self.said.remove(&node);
        }
        self.disks.retain(|_, d| now.since(d.at) < KEPT);
        self.judge(now);
    }

    fn add(&mut self, disk: DiskId, bytes: f64, elapsed: Duration, now: Instant) {
        let entry = self.disks.entry(disk).or_insert(Disk { bytes: 0.0, worked: Duration::ZERO, at: now });
        // Several primaries copy to it in the same second: that is one second of work.
        let fresh = now.since(entry.at).min(elapsed);
        entry.worked += if entry.worked.is_zero() { elapsed } else { fresh };
        (entry.bytes, entry.at) = (entry.bytes + bytes, now);
        if entry.worked > WINDOW {
            let part = WINDOW.as_secs_f64() / entry.worked.as_secs_f64();
            (entry.bytes, entry.worked) = (entry.bytes * part, WINDOW);
        }
    }

    fn judge(&mut self, now: Instant) {
        let judged = self.disks.iter().filter(|(_, d)| d.worked >= JUDGED_AFTER);
        let paces: Vec<(DiskId, f64)> = judged.map(|(id, d)| (*id, d.bytes / d.worked.as_secs_f64())).collect();
        let mut sorted: Vec<f64> = paces.iter().map(|(_, pace)| *pace).collect();
        sorted.sort_by(f64::total_cmp);
        let median = sorted.get(sorted.len() / 2).copied().unwrap_or(0.0);
        let works = |disk: &DiskId| self.disks.get(disk).is_some_and(|d| now.since(d.at) < WORKS);
        let is_slow = |(disk, pace): &(DiskId, f64)| {
            let known = self.slow.contains_key(disk);
            let part = if known { RECOVERED_PART } else { SLOW_PART };
            *pace < median * part && (known || works(disk))
        };
        let slow = paces
            .iter()
            .filter(|p| is_slow(p))
            .map(|(disk, pace)| (*disk, Slow { pace: *pace as u64, median: median as u64, works: works(disk) }));
        self.slow = slow.collect();
    }

    /// It takes copies far slower than the others.
    pub fn is_slow(&self, disk: DiskId) -> bool {
        self.slow.contains_key(&disk)
    }

    /// Those that are slow and at work: their pace and the median of all, bytes per second.
    pub fn slow(&self) -> impl Iterator<Item = (DiskId, u64, u64)> + '_ {
        self.slow.iter().filter(|(_, s)| s.works).map(|(disk, s)| (*disk, s.pace, s.median))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::ids::PoolId;

    const MIB: u64 = 1 << 20;

    fn at(s: u64) -> Instant {
        Instant(1_000_000_000 * (s + 100))
    }

    /// One primary copies to disks 1 to 3 at these rates.
    fn run(rates: [u64; 3], seconds: u64, paused: bool) -> Pace {
        let mut pace = Pace::default();
        for s in 0..=seconds {
            let copy = |(i, rate): (usize, &u64)| Copying {
                pg: PgId { pool: PoolId(1), index: i as u32 },
                to: DiskId(i as u32 + 1),
                bytes_done: rate * s,
                bytes_total: u64::MAX,
                paused,
            };
            let copies: Vec<Copying> = rates.iter().enumerate().map(copy).collect();
            pace.handle_report(NodeId(1), &copies, at(s));
        }
        pace
    }

    #[test]
    fn one_that_is_far_behind_the_others_is_slow() {
        let pace = run([50 * MIB, 5 * MIB, 60 * MIB], 15, false);
        let slow: Vec<_> = pace.slow().collect();
        assert_eq!(slow, [(DiskId(2), 5 * MIB, 50 * MIB)]);
        assert!(pace.is_slow(DiskId(2)) && !pace.is_slow(DiskId(1)));
        assert_eq!(run([50 * MIB, 5 * MIB, 60 * MIB], 5, false).slow().count(), 0, "too early to say");
        let mut over = pace;
        over.handle_report(NodeId(2), &[], at(25));
        assert_eq!(over.slow().count(), 0, "it takes none now");
        assert!(over.is_slow(DiskId(2)), "the next one that it takes is no faster");
        over.handle_report(NodeId(2), &[], at(200));
        assert!(!over.is_slow(DiskId(2)), "forgotten");
        assert_eq!(run([50 * MIB, 20 * MIB, 60 * MIB], 60, false).slow().count(), 0, "not that much slower");
        assert_eq!(run([MIB, MIB, MIB], 60, false).slow().count(), 0, "all alike");
        assert_eq!(run([50 * MIB, 0, 60 * MIB], 60, true).slow().count(), 0, "held back by the operator");
    }

    #[test]
    fn one_that_wavers_about_the_limit_stays_slow() {
        // A little under a quarter, then a little above it for long: one move at a time still.
        let mut pace = run([50 * MIB, 12 * MIB, 60 * MIB], 15, false);
        assert!(pace.is_slow(DiskId(2)));
        for s in 16..80 {
            let rates = [(1, 50, 0), (2, 15, 45), (3, 60, 0)];
            let copy = |(to, rate, behind): (u32, u64, u64)| Copying {
                pg: PgId { pool: PoolId(1), index: to - 1 },
                to: DiskId(to),
                bytes_done: (rate * s - behind) * MIB,
                bytes_total: u64::MAX,
                paused: false,
            };
            pace.handle_report(NodeId(1), &rates.map(copy), at(s));
            assert!(pace.is_slow(DiskId(2)), "after {s} s");
        }
    }

    #[test]
    fn one_that_recovers_is_slow_no_more() {
        let mut pace = run([50 * MIB, 5 * MIB, 60 * MIB], 15, false);
        for s in 16..60 {
            let copy = |to: u32, rate: u64| Copying {
                pg: PgId { pool: PoolId(1), index: to - 1 },
                to: DiskId(to),
                bytes_done: 1000 * MIB + rate * s,
                bytes_total: u64::MAX,
                paused: false,
            };
            pace.handle_report(NodeId(1), &[copy(1, 50 * MIB), copy(2, 50 * MIB), copy(3, 50 * MIB)], at(s));
        }
        assert_eq!(pace.slow().count(), 0);
        pace.handle_report(NodeId(1), &[], at(1000));
        assert!(pace.disks.is_empty(), "forgotten");
    }
}
