//! The demo's guest: 4 KiB random reads and writes over NBD at a fixed rate, every read verified.
//!
//! Operation i is due at `start + i / rate`, whatever happened to those before it; one that had to wait because all
//! workers were stuck counts from when it was due, so that a stall is not hidden by the load stopping with it
//! (coordinated omission). The time that a timer oversleeps is the generator's own and isn't counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::core::units::BLOCK_BYTES;
use crate::gateway::nbd::client::Client;

use super::content::Model;

/// In flight at most: a VM's virtio queue is of this order.
const WORKERS: usize = 32;
/// Of 100 operations, how many read.
const READS_PERCENT: u32 = 70;
/// Latencies are recorded up to here; a longer one is shown as this.
const LATENCY_US_MAX: u64 = 600_000_000;

/// What the figures are kept apart by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Before,
    Joining,
    Repairing,
    After,
    /// Not shown.
    Between,
}

const PHASES: usize = 5;

/// A phase's figures.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Figures {
    pub operations: u64,
    pub seconds: f64,
    pub p50_us: u64,
    pub p99_us: u64,
    pub longest_stall: Duration,
}

impl Figures {
    /// Operations per second.
    pub fn iops(&self) -> u64 {
        if self.seconds > 0.0 { (self.operations as f64 / self.seconds).round() as u64 } else { 0 }
    }
}

/// A running load.
pub struct Load {
    shared: Arc<Shared>,
    workers: Vec<tokio::task::JoinHandle<()>>,
}

struct Shared {
    model: Arc<Model>,
    client: Client,
    stop: AtomicBool,
    phase: AtomicUsize,
    record: Mutex<Record>,
    reads_verified: AtomicU64,
    next: AtomicU64,
    start: Instant,
    /// `None`: as fast as it goes.
    interval: Option<Duration>,
    failure: Mutex<Option<String>>,
}

struct Record {
    phases: [PhaseRecord; PHASES],
    phase_since: Instant,
    last_done: Instant,
}

struct PhaseRecord {
    latency_us: Histogram<u64>,
    time: Duration,
    longest_stall: Duration,
}

impl Load {
    /// Starts the load on the current runtime; `rate` in operations per second, `None` for as fast as it goes.
    pub fn start(client: Client, model: Arc<Model>, rate: Option<f64>, seed: u64) -> Load {
        let now = Instant::now();
        let shared = Arc::new(Shared {
            model,
            client,
            stop: AtomicBool::new(false),
            phase: AtomicUsize::new(Phase::Before as usize),
            record: Mutex::new(Record {
                phases: std::array::from_fn(|_| PhaseRecord {
                    latency_us: latency_histogram(),
                    time: Duration::ZERO,
                    longest_stall: Duration::ZERO,
                }),
                phase_since: now,
                last_done: now,
            }),
            reads_verified: AtomicU64::new(0),
            next: AtomicU64::new(0),
            start: now,
            interval: rate.map(|rate| Duration::from_secs_f64(1.0 / rate.max(1.0))),
            failure: Mutex::new(None),
        });
        let worker = |i: usize| {
            let shared = Arc::clone(&shared);
            let rng = StdRng::seed_from_u64(seed.wrapping_add(i as u64));
            tokio::spawn(async move {
                if let Err(reason) = work(&shared, rng).await {
                    shared.failure.lock().get_or_insert(reason);
                    shared.stop.store(true, Ordering::Release);
                }
            })
        };
        let workers = (0..WORKERS).map(worker).collect();
        Load { shared, workers }
    }

    /// From now on operations count for this phase.
    pub fn enter(&self, phase: Phase) {
        let mut record = self.shared.record.lock();
        self.shared.close_phase(&mut record);
        self.shared.phase.store(phase as usize, Ordering::Release);
    }

    /// Why it failed, if it did.
    pub fn failure(&self) -> Option<String> {
        self.shared.failure.lock().clone()
    }

    /// A phase's figures so far.
    pub fn figures(&self, phase: Phase) -> Figures {
        let mut record = self.shared.record.lock();
        self.shared.close_phase(&mut record);
        let PhaseRecord { latency_us, time, longest_stall } = &record.phases[phase as usize];
        Figures {
            operations: latency_us.len(),
            seconds: time.as_secs_f64(),
            p50_us: latency_us.value_at_quantile(0.5),
            p99_us: latency_us.value_at_quantile(0.99),
            longest_stall: *longest_stall,
        }
    }

    /// Stops, and returns when the operations in flight have ended.
    ///
    /// # Errors
    /// A read was wrong, or an operation failed.
    pub async fn stop(self) -> Result<Ended, String> {
        self.shared.stop.store(true, Ordering::Release);
        for worker in self.workers {
            if let Err(e) = worker.await {
                self.shared.failure.lock().get_or_insert(format!("a load worker ended: {e}"));
            }
        }
        let ended = Ended { shared: Arc::clone(&self.shared) };
        match self.shared.failure.lock().take() {
            Some(reason) => Err(reason),
            None => Ok(ended),
        }
    }
}

/// A load that has ended well; its figures remain.
pub struct Ended {
    shared: Arc<Shared>,
}

impl Ended {
    /// Reads that gave the right bytes.
    pub fn reads_verified(&self) -> u64 {
        self.shared.reads_verified.load(Ordering::Relaxed)
    }
}

impl Shared {
    /// Accounts the time since the last change to the current phase; a stall that goes on counts, too.
    fn close_phase(&self, record: &mut Record) {
        let now = Instant::now();
        let at = self.phase.load(Ordering::Acquire);
        let stall = now.saturating_duration_since(record.last_done.max(record.phase_since));
        let phase = &mut record.phases[at];
        phase.time += now.saturating_duration_since(record.phase_since);
        phase.longest_stall = phase.longest_stall.max(stall);
        record.phase_since = now;
    }

    fn done(&self, latency: Duration) {
        let now = Instant::now();
        let mut record = self.record.lock();
        // A gap that began in the phase before still is this phase's if it ends here.
        let gap = now.saturating_duration_since(record.last_done);
        record.last_done = now;
        let phase = &mut record.phases[self.phase.load(Ordering::Acquire)];
        phase.latency_us.saturating_record((latency.as_micros() as u64).clamp(1, LATENCY_US_MAX));
        phase.longest_stall = phase.longest_stall.max(gap);
    }

    /// Waits until the next operation is due; from when its latency counts.
    async fn pace(&self) -> Instant {
        let Some(interval) = self.interval else { return Instant::now() };
        let i = self.next.fetch_add(1, Ordering::Relaxed);
        let due = self.start + interval.mul_f64(i as f64);
        if due <= Instant::now() {
            return due;
        }
        tokio::time::sleep_until(due.into()).await;
        Instant::now()
    }
}

fn latency_histogram() -> Histogram<u64> {
    // 600 s at two digits is a few tens of KiB; the bounds are constants that are right.
    Histogram::new_with_bounds(1, LATENCY_US_MAX, 2).unwrap_or_else(|_| unreachable!("constant bounds"))
}

async fn work(shared: &Shared, mut rng: StdRng) -> Result<(), String> {
    while !shared.stop.load(Ordering::Acquire) {
        let mut taken = loop {
            let block = rng.random_range(0..shared.model.blocks());
            // Another worker has it: with 32 of many thousand blocks taken, the next throw finds a free one.
            if let Some(taken) = shared.model.take(block) {
                break (block, taken);
            }
        };
        let (block, taken) = (taken.0, &mut taken.1);
        let offset = block * BLOCK_BYTES;
        let counts_from = shared.pace().await;
        if shared.stop.load(Ordering::Acquire) {
            break;
        }
        if rng.random_range(0..100) < READS_PERCENT {
            let read = shared.client.read(offset, BLOCK_BYTES as u32).await;
            shared.done(counts_from.elapsed());
            let read = read.map_err(|e| format!("a read of block {block} failed: {e}"))?;
            taken.check(&read)?;
            shared.reads_verified.fetch_add(1, Ordering::Relaxed);
        } else {
            let data = taken.next_version();
            let written = shared.client.write(offset, data.into(), false).await;
            shared.done(counts_from.elapsed());
            written.map_err(|e| format!("a write of block {block} failed: {e}"))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_no_time_are_zero() {
        assert_eq!(Figures::default().iops(), 0);
        assert_eq!(Figures { operations: 250, seconds: 2.0, ..Figures::default() }.iops(), 125);
    }
}
