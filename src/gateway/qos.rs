//! A volume's limits, enforced where its guest's requests come in.
//!
//! Purpose: reads, writes and discards wait until both limits have room for them; flushes don't wait, they make nothing
//! but what is there already stable. Invariants: over any time, operations ≤ limit × time + the burst (one
//! second's worth if none is set), and the same for bytes; requests go in the order in which they came; a change holds at
//! once, also for who waits; a new limit starts with nothing saved up, so that changes give nothing away. Units:
//! operations, bytes, seconds.
//! Non-goals: sharing between volumes (`core::throttle::fair`).
//!
//! governor counts cells: for bytes a cell is a sector, which every request is a multiple of. Its period in whole nanoseconds
//! is rounded up, so that a limit is never exceeded.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::middleware::NoOpMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::core::cluster::VolumeQos;
use crate::core::units::SECTOR_BYTES;

/// A waiter looks again after this long at the latest.
const WAIT_MAX: Duration = Duration::from_millis(50);
/// Timers are no finer.
const WAIT_MIN: Duration = Duration::from_millis(1);

/// One limit.
struct Meter<C: Clock = DefaultClock> {
    limiter: RateLimiter<NotKeyed, InMemoryState, C, NoOpMiddleware<C::Instant>>,
    clock: C,
    burst: NonZeroU32,
}

impl Meter {
    fn new(cells: u64, burst: Option<u64>) -> Self {
        Meter::with_clock(cells, burst, DefaultClock::default())
    }
}

impl<C: Clock + Clone> Meter<C> {
    /// `cells` a second, and `burst` at once; by default as many.
    fn with_clock(cells: u64, burst: Option<u64>, clock: C) -> Self {
        let at_least_one =
            |cells: u64| NonZeroU32::new(u32::try_from(cells).unwrap_or(u32::MAX)).unwrap_or(NonZeroU32::MIN);
        let cells = at_least_one(cells);
        let burst = burst.map_or(cells, at_least_one);
        let period = Duration::from_nanos(1_000_000_000_u64.div_ceil(u64::from(cells.get())).max(1));
        let quota = Quota::with_period(period).unwrap_or_else(|| Quota::per_second(NonZeroU32::MIN));
        let limiter = RateLimiter::direct_with_clock(quota.allow_burst(burst), clock.clone());
        let emptied = limiter.check_n(burst);
        debug_assert!(matches!(emptied, Ok(Ok(()))), "a burst fits its own limiter");
        Meter { limiter, clock, burst }
    }

    /// Takes as many of the cells as fit a burst; gives what is left, or how long to wait.
    fn take(&self, cells: u64) -> Result<u64, Duration> {
        let part = u32::try_from(cells).unwrap_or(u32::MAX).min(self.burst.get());
        let Some(part) = NonZeroU32::new(part) else { return Ok(0) };
        match self.limiter.check_n(part) {
            Ok(Ok(())) => Ok(cells - u64::from(part.get())),
            Ok(Err(not_until)) => Err(not_until.wait_time_from(self.clock.now())),
            // More than a burst: `part` never is.
            Err(_) => Ok(0),
        }
    }
}

#[derive(Default)]
struct Meters {
    qos: VolumeQos,
    operations: Option<Meter>,
    bytes: Option<Meter>,
}

/// The limits of the volume that a gateway serves.
#[derive(Default)]
pub struct Qos {
    meters: Mutex<Meters>,
    /// There is a limit: without one no request pays for a lock.
    limited: AtomicBool,
    /// Requests go in order.
    turn: tokio::sync::Mutex<()>,
    changed: Notify,
}

impl Qos {
    /// These limits hold from now on; the same again change nothing.
    pub fn set(&self, qos: VolumeQos) {
        {
            let meters = &mut *self.meters.lock();
            let old = std::mem::replace(&mut meters.qos, qos);
            if (old.iops, old.iops_burst) != (qos.iops, qos.iops_burst) {
                meters.operations = qos.iops.map(|limit| Meter::new(limit, qos.iops_burst));
            }
            if (old.bytes_per_sec, old.bytes_burst) != (qos.bytes_per_sec, qos.bytes_burst) {
                let burst = qos.bytes_burst.map(|bytes| bytes / SECTOR_BYTES);
                meters.bytes = qos.bytes_per_sec.map(|rate| Meter::new(rate / SECTOR_BYTES, burst));
            }
            self.limited.store(meters.operations.is_some() || meters.bytes.is_some(), Ordering::Release);
        }
        self.changed.notify_waiters();
    }

    /// Waits until one operation of so many bytes may go.
    pub async fn take(&self, bytes: u64) {
        if !self.limited.load(Ordering::Acquire) {
            return;
        }
        let _turn = self.turn.lock().await;
        let (mut operations, mut cells) = (1, bytes.div_ceil(SECTOR_BYTES));
        loop {
            // Registered before the look, so that no change is missed.
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let Some(wait) = self.try_take(&mut operations, &mut cells) else { return };
            // Either is a reason to look again.
            let _ = tokio::time::timeout(wait.clamp(WAIT_MIN, WAIT_MAX), changed).await;
        }
    }

    /// Takes what there is; gives how long to wait for the rest.
    fn try_take(&self, operations: &mut u64, cells: &mut u64) -> Option<Duration> {
        let meters = self.meters.lock();
        for (meter, left) in [(&meters.operations, operations), (&meters.bytes, cells)] {
            while *left > 0 {
                match meter.as_ref().map_or(Ok(0), |meter| meter.take(*left)) {
                    Ok(rest) => *left = rest,
                    Err(wait) => return Some(wait),
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Instant;

    use governor::clock::FakeRelativeClock;

    use super::*;

    const KIB: u64 = 1 << 10;

    /// Requests of so many bytes, four at a time, until `until` of them are done; gives their number and the time.
    async fn run(qos: &Arc<Qos>, bytes: u64, until: usize) -> f64 {
        let begin = Instant::now();
        let tasks: Vec<_> = (0..4)
            .map(|_| {
                let qos = qos.clone();
                tokio::spawn(async move {
                    for _ in 0..until / 4 {
                        qos.take(bytes).await;
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        begin.elapsed().as_secs_f64()
    }

    #[tokio::test]
    async fn counts_never_exceed_limit_times_time_and_a_burst() {
        let qos = Arc::new(Qos::default());
        qos.set(VolumeQos { iops: Some(200), ..VolumeQos::default() });
        let seconds = run(&qos, 4 * KIB, 100).await;
        // A new limit starts empty.
        assert!(100.0 <= 200.0 * seconds + 1.0, "100 operations in {seconds} s");
        qos.set(VolumeQos { bytes_per_sec: Some(1024 * KIB), ..VolumeQos::default() });
        let seconds = run(&qos, 64 * KIB, 8).await;
        assert!(512.0 <= 1024.0 * seconds + 1.0, "512 KiB in {seconds} s");
        // Larger than a burst: in parts, still within the limit.
        let seconds = run(&qos, 512 * KIB, 4).await;
        assert!(2048.0 <= 1024.0 * seconds + 1024.0, "2 MiB in {seconds} s");
    }

    #[tokio::test]
    async fn both_limits_hold_at_once_and_flushes_of_nothing_cost_an_operation_alone() {
        let qos = Arc::new(Qos::default());
        qos.set(VolumeQos { iops: Some(1000), bytes_per_sec: Some(64 * KIB), ..VolumeQos::default() });
        let seconds = run(&qos, 4 * KIB, 8).await;
        assert!(32.0 <= 64.0 * seconds + 1.0, "32 KiB in {seconds} s");
        let seconds = run(&qos, 0, 100).await;
        assert!(100.0 <= 1000.0 * seconds + 1000.0, "100 discards in {seconds} s");
    }

    #[test]
    fn a_burst_is_what_was_saved_up_and_no_more() {
        let clock = FakeRelativeClock::default();
        let meter = Meter::with_clock(100, Some(1000), clock.clone());
        assert!(meter.take(1).is_err(), "nothing is saved up yet");
        clock.advance(Duration::from_secs(4));
        let taken = |meter: &Meter<FakeRelativeClock>| std::iter::from_fn(|| meter.take(1).ok()).count();
        assert_eq!(taken(&meter), 400);
        clock.advance(Duration::from_secs(3600));
        assert_eq!(taken(&meter), 1000);
        clock.advance(Duration::from_secs(1));
        assert_eq!(taken(&meter), 100);
    }

    #[tokio::test]
    async fn a_change_wakes_who_waits() {
        let qos = Arc::new(Qos::default());
        qos.set(VolumeQos { iops: Some(1), bytes_per_sec: Some(64 * KIB), ..VolumeQos::default() });
        let waiting = {
            let qos = qos.clone();
            // More than eight minutes at this limit.
            tokio::spawn(async move { qos.take(32 * KIB * KIB).await })
        };
        tokio::task::yield_now().await;
        qos.set(VolumeQos::default());
        waiting.await.unwrap();
        qos.take(u64::MAX).await;
    }
}
