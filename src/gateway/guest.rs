//! What the guest does and sees, told to the coordinator every second: people look there, not at each gateway.

use parking_lot::Mutex;

use super::nbd::{OpDone, OpKind};
use crate::core::throttle::Histogram;
use crate::wire::control::Stats;

/// Counts completed operations; latencies since the last report.
#[derive(Debug)]
pub struct Guest {
    seen: Mutex<(Stats, Histogram)>,
}

impl Guest {
    /// Nothing was done yet. The number tells this process's counters from those of another.
    pub fn new() -> Self {
        let process = rand::random_range(1..=u64::MAX);
        Guest { seen: Mutex::new((Stats { process, ..Stats::default() }, Histogram::default())) }
    }

    /// An operation that succeeded. Discards and zeroes count as writes, without bytes; flushes aren't counted, as their time
    /// is that of the writes before.
    pub fn done(&self, op: &OpDone) {
        let (stats, latencies) = &mut *self.seen.lock();
        match op.kind {
            OpKind::Read => {
                stats.foreground_reads += 1;
                stats.foreground_read_bytes += u64::from(op.len);
            }
            OpKind::Write => {
                stats.foreground_writes += 1;
                stats.foreground_write_bytes += u64::from(op.len);
            }
            OpKind::Trim | OpKind::WriteZeroes => stats.foreground_writes += 1,
            _ => return,
        }
        latencies.record_us(u64::try_from(op.duration.as_micros()).unwrap_or(u64::MAX));
    }

    /// Counters so far, and the percentiles since the last call.
    pub fn report(&self) -> Stats {
        let (stats, latencies) = &mut *self.seen.lock();
        let us = |q| latencies.quantile_us(q).unwrap_or(0.0) as u64;
        (stats.foreground_p50_us, stats.foreground_p99_us) = (us(0.5), us(0.99));
        latencies.clear();
        stats.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn counters_rise_and_percentiles_are_of_the_last_second() {
        let guest = Guest::new();
        let done = |kind, len, us| {
            guest.done(&OpDone { kind, len, duration: Duration::from_micros(us), error: None });
        };
        done(OpKind::Read, 4096, 400);
        done(OpKind::Write, 8192, 9000);
        done(OpKind::Trim, 1 << 20, 500);
        done(OpKind::Flush, 0, 1_000_000);
        let first = guest.report();
        assert_eq!((first.foreground_reads, first.foreground_writes), (1, 2));
        assert_eq!((first.foreground_read_bytes, first.foreground_write_bytes), (4096, 8192));
        assert!((8000..10_500).contains(&first.foreground_p99_us), "{first:?}");
        let second = guest.report();
        assert_eq!((second.foreground_writes, second.foreground_p99_us), (2, 0));
        assert_ne!(second.process, 0);
    }
}
