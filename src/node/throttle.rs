//! Enforcement of the throttle: what `core::throttle` decides, as tokens that resync takes before it reads or writes.
//!
//! Purpose: per disk, two gates (resync reads and resync writes, counted apart), each with one limiter over all
//! classes and one per class where classes compete; a histogram of foreground latencies that costs a few atomic adds an
//! operation; and the controller, run by [`Throttle::tick`] each 100 ms.
//!
//! Invariants: over any time, bytes granted ≤ rate × time + 100 ms of rate + one request. A request of any size is
//! granted whole, on credit: the gate stays shut until the limiter has given its bytes, so nothing is too large for a
//! burst. A paused gate grants nothing. No rate, size or latency panics.
//! Units: bytes, bytes per second, microseconds. Non-goals: what the rate should be; order between sessions.
//!
//! governor's quotas are fixed at creation and count cells in whole nanoseconds. So a cell is 4 KiB (one of a byte would
//! be rounded to nothing at 1 GB/s), the period is rounded up (never above the cap), and a changed rate means a new
//! limiter: it starts empty, and what its predecessor had already earned is kept as the gate's balance, at most one
//! burst. So changes of rate neither give bytes away nor lose them.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use governor::clock::DefaultClock;
use governor::middleware::StateInformationMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;

use crate::core::cluster::{ResyncClass, ResyncSettings};
use crate::core::ids::DiskId;
use crate::core::throttle::peers::Findings;
use crate::core::throttle::{
    BUCKETS, CLASSES, Controller, Decision, Histogram, KINDS, Kind, Latencies, LimitedBy, Policy, Sample, class_index,
    divide, moment,
};

/// Bytes of one governor cell.
const CELL_BYTES: u64 = 4096;
/// A gate lets at most this much of its rate through at once: a guest's operation waits no longer behind it.
const BURST: Duration = Duration::from_millis(100);
/// Above this no disk can go, and a cell's period in whole nanoseconds becomes coarse (60 ns): not limited.
const LIMITED_BYTES_PER_SEC_MAX: u64 = 64 << 30;
/// A waiter looks again after this long at the latest.
const WAIT_MAX: Duration = Duration::from_millis(50);
/// Timers are no finer.
const WAIT_MIN: Duration = Duration::from_millis(1);
/// Percentiles for display cover this many ticks: one second.
const RECENT_TICKS: usize = 10;
/// A second call of `tick` within this time is the same tick.
const TICK_MIN: Duration = Duration::from_millis(20);
/// A rate that changed by less keeps its limiter; a cap is always exact.
const RATE_CHANGE_MIN: f64 = 0.02;

type Limiter = RateLimiter<NotKeyed, InMemoryState, DefaultClock, StateInformationMiddleware>;

/// How much a gate lets through.
enum Flow {
    Unlimited,
    Stopped,
    Limited { limiter: Box<Limiter>, rate: u64, burst_bytes: i64 },
}

/// One rate, enforced on credit: a grant may take the balance below zero, and the next waits until it is paid.
struct Gate {
    flow: Flow,
    balance_bytes: i64,
}

impl Gate {
    fn new() -> Self {
        Gate { flow: Flow::Unlimited, balance_bytes: 0 }
    }

    /// Sets the rate; `None` is unlimited, 0 stopped.
    fn set_rate(&mut self, rate: Option<u64>) {
        self.collect();
        match rate {
            None => (self.flow, self.balance_bytes) = (Flow::Unlimited, 0),
            Some(rate) if rate > LIMITED_BYTES_PER_SEC_MAX => {
                (self.flow, self.balance_bytes) = (Flow::Unlimited, 0);
            }
            Some(0) => (self.flow, self.balance_bytes) = (Flow::Stopped, self.balance_bytes.min(0)),
            Some(rate) => {
                if matches!(&self.flow, Flow::Limited { rate: now, .. } if *now == rate) {
                    return;
                }
                let (limiter, burst_bytes) = limiter(rate);
                self.balance_bytes = self.balance_bytes.min(burst_bytes);
                self.flow = Flow::Limited { limiter: Box::new(limiter), rate, burst_bytes };
            }
        }
    }

    /// Moves what the limiter has earned into the balance, which never holds more than one burst.
    fn collect(&mut self) {
        let Flow::Limited { limiter, burst_bytes, .. } = &self.flow else { return };
        while let Ok(state) = limiter.check() {
            self.balance_bytes = self.balance_bytes.saturating_add(CELL_BYTES as i64);
            let Some(rest) = NonZeroU32::new(state.remaining_burst_capacity()) else { break };
            if let Ok(Ok(_)) = limiter.check_n(rest) {
                self.balance_bytes = self.balance_bytes.saturating_add(i64::from(rest.get()) * CELL_BYTES as i64);
            }
        }
        self.balance_bytes = self.balance_bytes.min(*burst_bytes);
    }

    /// Zero if a request may go now; else how long to wait before it is worth asking again.
    fn wait(&mut self) -> Duration {
        self.collect();
        match &self.flow {
            Flow::Unlimited => Duration::ZERO,
            Flow::Stopped => WAIT_MAX,
            Flow::Limited { .. } if self.balance_bytes > 0 => Duration::ZERO,
            Flow::Limited { rate, .. } => {
                let missing = self.balance_bytes.unsigned_abs().max(1);
                Duration::from_secs_f64(missing as f64 / *rate as f64).clamp(WAIT_MIN, WAIT_MAX)
            }
        }
    }

    fn charge(&mut self, bytes: u64) {
        if matches!(self.flow, Flow::Limited { .. }) {
            self.balance_bytes = self.balance_bytes.saturating_sub(i64::try_from(bytes).unwrap_or(i64::MAX));
        }
    }
}

/// A limiter that starts empty, and its burst in bytes.
fn limiter(rate: u64) -> (Limiter, i64) {
    let rate = rate.max(1);
    let period_ns = (u128::from(CELL_BYTES) * 1_000_000_000).div_ceil(u128::from(rate)).max(1);
    let cells = (BURST.as_nanos() / period_ns).clamp(1, u128::from(u32::MAX)) as u32;
    let burst = NonZeroU32::new(cells).unwrap_or(NonZeroU32::MIN);
    let quota = Quota::with_period(Duration::from_nanos(period_ns as u64))
        .unwrap_or_else(|| Quota::per_second(NonZeroU32::MIN))
        .allow_burst(burst);
    let limiter = RateLimiter::direct(quota).with_middleware::<StateInformationMiddleware>();
    // Empty: whatever the first try of a whole burst leaves is a race with the clock of a cell at most.
    let emptied = limiter.check_n(burst);
    debug_assert!(emptied.is_ok(), "a burst fits its own limiter");
    (limiter, i64::from(cells).saturating_mul(CELL_BYTES as i64))
}

/// Reads or writes of resync on one disk.
struct Direction {
    gates: Mutex<Gates>,
    /// Waiters of a class go in order.
    turns: [tokio::sync::Mutex<()>; CLASSES],
}

struct Gates {
    total: Gate,
    classes: [Gate; CLASSES],
    granted_bytes: [u64; CLASSES],
    refused: [bool; CLASSES],
}

impl Direction {
    fn new() -> Self {
        Direction {
            gates: Mutex::new(Gates {
                total: Gate::new(),
                classes: std::array::from_fn(|_| Gate::new()),
                granted_bytes: [0; CLASSES],
                refused: [false; CLASSES],
            }),
            turns: std::array::from_fn(|_| tokio::sync::Mutex::new(())),
        }
    }

    /// Takes the bytes, or says how long to wait before asking again.
    fn take(&self, class: usize, bytes: u64) -> Result<(), Duration> {
        let gates = &mut *self.gates.lock();
        let wait = gates.total.wait().max(gates.classes[class].wait());
        if !wait.is_zero() {
            gates.refused[class] = true;
            return Err(wait);
        }
        gates.total.charge(bytes);
        gates.classes[class].charge(bytes);
        gates.granted_bytes[class] = gates.granted_bytes[class].saturating_add(bytes);
        Ok(())
    }

    /// Sets the rate over all classes and, from what each class took since the last time, its share.
    fn set_rate(&self, rate: Option<u64>, policy: &Policy, usage: &Usage, seconds: f64) {
        let gates = &mut *self.gates.lock();
        gates.total.set_rate(rate);
        let competing = (0..CLASSES).filter(|&i| usage.wanted(i)).count() > 1;
        let demand: [u64; CLASSES] = std::array::from_fn(|i| match (usage.refused[i], usage.granted_bytes[i]) {
            (true, _) => u64::MAX,
            (false, 0) => 0,
            // Room to grow by half until the next tick.
            (false, granted) => (granted as f64 / seconds * 1.5) as u64,
        });
        let shares = rate.filter(|_| competing).map(|rate| divide(rate, &policy.classes, &demand));
        for (i, gate) in gates.classes.iter_mut().enumerate() {
            let share = shares.filter(|_| usage.wanted(i)).map(|s| s[i].max(1));
            let cap = policy.classes[i].cap_bytes_per_sec;
            gate.set_rate(match (share, cap) {
                (Some(share), Some(cap)) => Some(share.min(cap)),
                (share, cap) => share.or(cap),
            });
        }
    }

    fn usage(&self) -> Usage {
        let gates = &mut *self.gates.lock();
        Usage { granted_bytes: std::mem::take(&mut gates.granted_bytes), refused: std::mem::take(&mut gates.refused) }
    }
}

/// What the classes took and wanted since the last tick.
#[derive(Default)]
struct Usage {
    granted_bytes: [u64; CLASSES],
    refused: [bool; CLASSES],
}

impl Usage {
    fn wanted(&self, class: usize) -> bool {
        self.refused[class] || self.granted_bytes[class] > 0
    }
    fn bytes(&self) -> u64 {
        self.granted_bytes.iter().fold(0, |sum, b| sum.saturating_add(*b))
    }
}

/// Foreground operations since the last tick.
struct Foreground {
    counts: [[AtomicU32; BUCKETS]; KINDS],
    write_bytes: AtomicU64,
    seen: AtomicBool,
    queue_depth: AtomicU32,
    backlog_bytes: AtomicU64,
}

impl Foreground {
    fn take(&self) -> (Latencies, u64) {
        let mut latencies = Latencies::default();
        if self.seen.swap(false, Ordering::AcqRel) {
            for kind in Kind::ALL {
                for (bucket, count) in self.counts[kind as usize].iter().enumerate() {
                    if count.load(Ordering::Relaxed) > 0 {
                        latencies.add_bucket(kind, bucket, count.swap(0, Ordering::Relaxed));
                    }
                }
            }
        }
        (latencies, self.write_bytes.swap(0, Ordering::Relaxed))
    }
}

/// What all disks of a tick have in common.
struct Around {
    elapsed: Duration,
    since_moment: Option<Duration>,
    copies_run: bool,
}

struct Disk {
    foreground: Foreground,
    source: Direction,
    target: Direction,
    control: Mutex<Control>,
}

struct Control {
    controller: Controller,
    decision: Decision,
    /// What the gates have now.
    rate: Option<u64>,
    usages: (Usage, Usage),
}

impl Disk {
    fn new(policy: Policy) -> Self {
        let mut controller = Controller::new(policy);
        let decision = controller.set_policy(policy);
        let disk = Disk {
            foreground: Foreground {
                counts: std::array::from_fn(|_| std::array::from_fn(|_| AtomicU32::new(0))),
                write_bytes: AtomicU64::new(0),
                seen: AtomicBool::new(false),
                queue_depth: AtomicU32::new(0),
                backlog_bytes: AtomicU64::new(0),
            },
            source: Direction::new(),
            target: Direction::new(),
            control: Mutex::new(Control { controller, decision, rate: None, usages: Default::default() }),
        };
        disk.enforce(&mut disk.control.lock(), &policy, 0.1);
        disk
    }

    fn tick(&self, id: DiskId, policy: &Policy, around: &Around) -> Histogram {
        let (latencies, foreground_write_bytes) = self.foreground.take();
        let (source, target) = (self.source.usage(), self.target.usage());
        let control = &mut *self.control.lock();
        let sample = Sample {
            elapsed: around.elapsed,
            latencies,
            queue_depth: self.foreground.queue_depth.load(Ordering::Relaxed),
            resync_bytes: source.bytes().max(target.bytes()),
            resync_held_back: source.refused.iter().chain(&target.refused).any(|r| *r),
            wanted: std::array::from_fn(|i| source.wanted(i) || target.wanted(i)),
            backlog_bytes: self.foreground.backlog_bytes.load(Ordering::Relaxed),
            foreground_write_bytes,
            since_moment: around.since_moment,
            copies_run: around.copies_run,
        };
        control.decision = control.controller.handle_sample(&sample);
        if sample.latencies.total() > 0.0 || sample.resync_bytes > 0 {
            tracing::debug!(
                disk = %id,
                operations = sample.latencies.total(),
                queue_depth = sample.queue_depth,
                resync_bytes = sample.resync_bytes,
                held_back = sample.resync_held_back,
                decision = ?control.decision,
                footing = ?control.controller.footing(),
                "throttle"
            );
        }
        control.usages = (source, target);
        self.enforce(control, policy, around.elapsed.as_secs_f64());
        sample.latencies.guests()
    }

    fn enforce(&self, control: &mut Control, policy: &Policy, seconds: f64) {
        let decided = control.decision.rate_bytes_per_sec;
        let exact = control.decision.limited_by != LimitedBy::ForegroundLatency;
        control.rate = match (control.rate, decided) {
            (Some(now), Some(new)) if !exact && (new as f64 / now.max(1) as f64 - 1.0).abs() < RATE_CHANGE_MIN => {
                Some(now)
            }
            _ => decided,
        };
        let seconds = seconds.max(0.001);
        self.source.set_rate(control.rate, policy, &control.usages.0, seconds);
        self.target.set_rate(control.rate, policy, &control.usages.1, seconds);
    }
}

/// All disks' throttles of one node.
pub struct Throttle {
    disks: RwLock<HashMap<DiskId, Arc<Disk>>>,
    policy: Mutex<Policies>,
    recent: Mutex<Recent>,
    /// Copies run somewhere in the cluster, as the coordinator says.
    copies_run: AtomicBool,
    changed: Notify,
}

#[derive(Default, PartialEq)]
struct Policies {
    all: Policy,
    /// Disks for which another one holds.
    own: BTreeMap<DiskId, Policy>,
}

impl Policies {
    fn of(&self, disk: DiskId) -> Policy {
        self.own.get(&disk).copied().unwrap_or(self.all)
    }
}

struct Recent {
    ticked: Instant,
    /// Foreground over all disks, newest last; at most [`RECENT_TICKS`].
    ticks: VecDeque<(Duration, Histogram)>,
}

impl Default for Throttle {
    fn default() -> Self {
        Self::new()
    }
}

impl Throttle {
    /// With default settings and no disks: a disk appears when it is first named.
    pub fn new() -> Self {
        Throttle {
            disks: RwLock::default(),
            policy: Mutex::default(),
            recent: Mutex::new(Recent { ticked: Instant::now(), ticks: VecDeque::new() }),
            copies_run: AtomicBool::new(false),
            changed: Notify::new(),
        }
    }

    /// Takes the operator's settings for all disks; they act at once, also on who waits. The same settings again change
    /// nothing.
    pub fn apply(&self, settings: &ResyncSettings) {
        self.apply_each(settings, BTreeMap::new());
    }

    /// The same, with policies of single disks.
    pub fn apply_each(&self, settings: &ResyncSettings, own: BTreeMap<DiskId, Policy>) {
        let new = Policies { all: Policy::from(settings), own };
        {
            let mut now = self.policy.lock();
            if *now == new {
                return;
            }
            *now = new;
            // Under the policies' lock, so that of two calls the later wins on every disk.
            for (id, disk) in self.disks.read().iter() {
                let policy = now.of(*id);
                let control = &mut *disk.control.lock();
                control.decision = control.controller.set_policy(policy);
                disk.enforce(control, &policy, 0.1);
            }
        }
        self.changed.notify_waiters();
    }

    /// Counts a foreground operation that completed on this disk's PGs.
    pub fn observe_foreground(&self, disk: DiskId, kind: Kind, latency: Duration) {
        self.with(disk, |disk| {
            let us = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
            disk.foreground.counts[kind as usize][Histogram::bucket(us)].fetch_add(1, Ordering::Relaxed);
            disk.foreground.seen.store(true, Ordering::Release);
        });
    }

    /// Counts what guests wrote to this disk's PGs.
    pub fn observe_written(&self, disk: DiskId, bytes: u64) {
        self.with(disk, |disk| disk.foreground.write_bytes.fetch_add(bytes, Ordering::Relaxed));
    }

    /// Foreground operations under way on this disk now, where the caller knows: a disk that is so busy that nothing
    /// completes is then not taken for an idle one.
    pub fn set_queue_depth(&self, disk: DiskId, operations: u32) {
        self.with(disk, |disk| disk.foreground.queue_depth.store(operations, Ordering::Relaxed));
    }

    /// Bytes that copies from this disk still have to look at.
    pub fn set_backlog(&self, disk: DiskId, bytes: u64) {
        self.with(disk, |disk| disk.foreground.backlog_bytes.store(bytes, Ordering::Relaxed));
    }

    /// Takes budget to read `bytes` for a copy; false: not now. Ask again each 50 ms or sooner: what isn't asked for
    /// within 100 ms is lost.
    pub fn try_take_source(&self, disk: DiskId, class: ResyncClass, bytes: u64) -> bool {
        self.with(disk, |disk| disk.source.take(class_index(class), bytes).is_ok())
    }

    /// Waits for budget to write `bytes` of a copy. Callers of one class go in order. Cancelling takes nothing.
    pub async fn take_target(&self, disk: DiskId, class: ResyncClass, bytes: u64) {
        let disk = self.with(disk, Arc::clone);
        let class = class_index(class);
        let _turn = disk.target.turns[class].lock().await;
        loop {
            // Registered before the look, so that no change is missed.
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let Err(wait) = disk.target.take(class, bytes) else { return };
            let slept = tokio::time::timeout(wait, changed).await;
            drop(slept);
        }
    }

    /// Runs the controllers; the node calls it each 100 ms.
    pub fn tick(&self) {
        let elapsed = {
            let mut recent = self.recent.lock();
            let elapsed = recent.ticked.elapsed();
            if elapsed < TICK_MIN {
                return;
            }
            recent.ticked = Instant::now();
            elapsed
        };
        let mut all = Histogram::default();
        let around = Around {
            elapsed,
            // With a clock before 1970 each disk pauses at times of its own.
            since_moment: SystemTime::now().duration_since(UNIX_EPOCH).ok().map(moment::since),
            copies_run: self.copies_run.load(Ordering::Relaxed),
        };
        {
            let policies = self.policy.lock();
            let disks: Vec<(DiskId, Arc<Disk>)> = self.disks.read().iter().map(|(id, d)| (*id, d.clone())).collect();
            for (id, disk) in disks {
                all.merge(&disk.tick(id, &policies.of(id), &around));
            }
        }
        let mut recent = self.recent.lock();
        if recent.ticks.len() >= RECENT_TICKS {
            recent.ticks.pop_front();
        }
        recent.ticks.push_back((elapsed, all));
        self.changed.notify_waiters();
    }

    /// Bytes per second that resync may read, and write, on this disk now; `None`: unlimited.
    pub fn rate(&self, disk: DiskId) -> Option<u64> {
        self.with(disk, |disk| disk.control.lock().rate)
    }

    /// What holds back writes for copies to this disk now; none if nothing had to wait since the last tick.
    pub fn target_limited_by(&self, disk: DiskId) -> Option<&'static str> {
        let waits = self.with(disk, |disk| disk.control.lock().usages.1.refused.iter().position(|refused| *refused))?;
        Some(self.limited_by(disk, ResyncClass::ALL[waits])).filter(|name| *name != LimitedBy::Nothing.name())
    }

    /// What bounds a class of resync on this disk now.
    pub fn limited_by(&self, disk: DiskId, class: ResyncClass) -> &'static str {
        let own = self.policy.lock().of(disk).classes[class_index(class)];
        if own.is_paused() {
            return LimitedBy::Paused.name();
        }
        self.with(disk, |disk| {
            let control = disk.control.lock();
            // Its own cap is the lower one.
            if own.cap_bytes_per_sec.is_some_and(|cap| control.rate.is_none_or(|rate| cap <= rate)) {
                return LimitedBy::Cap.name();
            }
            control.decision.limited_by.name()
        })
    }

    /// The last decision on this disk, with target, baseline and measured p99.
    pub fn decision(&self, disk: DiskId) -> Decision {
        self.with(disk, |disk| disk.control.lock().decision)
    }

    /// What guests have on this disk without resync and copies beside them, as found on it alone.
    pub fn findings(&self, disk: DiskId) -> Findings {
        self.with(disk, |disk| disk.control.lock().controller.findings())
    }

    /// What is usual on disks of its class; of a disk that isn't known here (any more), nothing is kept.
    pub fn set_usual(&self, disk: DiskId, usual: Findings) {
        if let Some(disk) = self.disks.read().get(&disk) {
            disk.control.lock().controller.set_usual(usual);
        }
    }

    /// Copies run somewhere in the cluster, or none do.
    pub fn set_copies_run(&self, run: bool) {
        self.copies_run.store(run, Ordering::Relaxed);
    }

    /// Copies make less than their floor on some disk, and no gate holds them back.
    pub fn is_below_floor(&self) -> bool {
        self.disks.read().values().any(|disk| disk.control.lock().decision.below_floor)
    }

    /// Foreground over all disks in the last second: p50 and p99 in microseconds, and operations per second.
    pub fn foreground_percentiles(&self) -> (u64, u64, f64) {
        let recent = self.recent.lock();
        let mut sum = Histogram::default();
        let mut seconds = 0.0;
        for (elapsed, histogram) in &recent.ticks {
            sum.merge(histogram);
            seconds += elapsed.as_secs_f64();
        }
        let us = |q| sum.quantile_us(q).unwrap_or(0.0) as u64;
        (us(0.5), us(0.99), if seconds > 0.0 { sum.total() / seconds } else { 0.0 })
    }

    /// Forgets a disk that has left the node. Who waits on it goes on at its last rate.
    pub fn forget(&self, disk: DiskId) {
        self.disks.write().remove(&disk);
    }

    fn with<T>(&self, id: DiskId, f: impl FnOnce(&Arc<Disk>) -> T) -> T {
        if let Some(disk) = self.disks.read().get(&id) {
            return f(disk);
        }
        let disk = {
            let policies = self.policy.lock();
            self.disks.write().entry(id).or_insert_with(|| Arc::new(Disk::new(policies.of(id)))).clone()
        };
        f(&disk)
    }
}
