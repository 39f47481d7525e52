//! What the guest does and sees, told to the coordinator every second: people look there, not at each gateway.

use std::time::Duration;

use parking_lot::Mutex;

use crate::api::metrics::{ForegroundMetrics, Operation};
use crate::core::throttle::Histogram;
use crate::wire::stats::Stats;

/// The metrics' counters, and the latencies since the last report.
pub struct Guest {
    foreground: ForegroundMetrics,
    recent: Mutex<Histogram>,
    /// Tells this process's counters from those of another.
    process: u64,
}

impl Guest {
    /// Of the operations that these metrics count.
    pub fn new(foreground: ForegroundMetrics) -> Self {
        Guest { foreground, recent: Mutex::default(), process: rand::random_range(1..=u64::MAX) }
    }

    /// An operation that succeeded. A flush is left out: its time is that of the writes before.
    pub fn done(&self, kind: Operation, latency: Duration) {
        if kind != Operation::Flush {
            self.recent.lock().record_us(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
        }
    }

    /// Counters so far, and the percentiles since the last call. Discards and zeroes count as writes, without bytes.
    pub fn report(&self) -> Stats {
        let recent = std::mem::take(&mut *self.recent.lock());
        let us = |q| recent.quantile_us(q).unwrap_or(0.0) as u64;
        let writes = [Operation::Write, Operation::Trim, Operation::Zero].map(|kind| self.foreground.operations(kind));
        Stats {
            process: self.process,
            foreground_reads: self.foreground.operations(Operation::Read),
            foreground_writes: writes.iter().sum(),
            foreground_read_bytes: self.foreground.bytes(Operation::Read),
            foreground_write_bytes: self.foreground.bytes(Operation::Write),
            foreground_p50_us: us(0.5),
            foreground_p99_us: us(0.99),
            ..Stats::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::metrics::Metrics;

    #[test]
    fn counters_rise_and_percentiles_are_of_the_last_second() {
        let foreground = Metrics::gateway("v").foreground;
        let guest = Guest::new(foreground.clone());
        let done = |kind, len, us| {
            foreground.done(kind, len, Duration::from_micros(us));
            guest.done(kind, Duration::from_micros(us));
        };
        done(Operation::Read, 4096, 400);
        done(Operation::Write, 8192, 9000);
        done(Operation::Trim, 1 << 20, 500);
        done(Operation::Flush, 0, 1_000_000);
        let first = guest.report();
        assert_eq!((first.foreground_reads, first.foreground_writes), (1, 2));
        assert_eq!((first.foreground_read_bytes, first.foreground_write_bytes), (4096, 8192));
        assert!((8000..10_500).contains(&first.foreground_p99_us), "{first:?}");
        let second = guest.report();
        assert_eq!((second.foreground_writes, second.foreground_p99_us), (2, 0));
        assert_ne!(second.process, 0);
    }
}
