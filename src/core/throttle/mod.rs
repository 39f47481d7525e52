//! The throttle: how fast resync may go on one disk, so that guests keep their latency and resync takes the rest.
//!
//! Purpose: a closed loop per disk. Each 100 ms a [`Sample`] goes in and a [`Decision`] comes out. No model of the
//! device is needed and no speed is configured: what the disk can do shows in the latency of its guests.
//! Invariants: never above the cap; never below the floor, except in a probe, which is paid back; paused is zero;
//! any input, however absurd, gives a decision. Units: bytes per second, microseconds.
//! Non-goals: enforcement (the node's limiters), and which move goes first (`moves`).
//!
//! # Signals
//! Completed foreground operations and their latencies, the foreground queue, resync bytes, resync backlog and the
//! foreground write rate. Latencies are kept apart by kind ([`Kind`]: reads, writes, a member's part of a write; small and
//! large), each against a baseline of its own. Those of the last ticks are kept in histograms that decay: quickly where
//! there are many operations, slowly where there are few, so that a slow disk's percentile too rests on tens of operations.
//!
//! # The law
//! - *Idle* (no operation and no queue for a while): as fast as the cap allows. The while is [`IDLE_TICKS`], longer if
//!   the disk is so slow that a busy one could complete nothing for that long.
//! - *Wake-up*: back at once to what was right when the guests last ran; the first time to the floor. A disk's first copies beside
//!   guests begin with half of what is usual in its class ([`peers`]).
//! - *Probe*: the baseline is the p99 with (almost) no resync, on this disk and on those that its guests share with it. It is
//!   learnt for nothing whenever there is no resync; else resync drops to an eighth of its floor for [`PROBE_TICKS_MIN`] or
//!   more ticks, at first and then at moments that all disks have in common ([`moment`]); where the driver tells no time, each
//!   [`PROBE_EVERY`], or when the foreground's rate has changed by more than half. What the floor missed is paid back.
//!   It is the p99 of an ordinary moment (which three in four of many keep), so that neither a device's own pauses nor a lucky
//!   moment on a noisy machine is taken for what guests have. Resync never makes guests faster: where they have been much
//!   faster beside it for some seconds than the baseline says, that is the baseline. One below the median of the disk's class is
//!   raised towards it ([`peers`]); a disk that joins has that median until it knows its own, and needs no probe.
//! - *Follow*: "p99 ≤ X" is "at most one operation in a hundred is slower than X". So each tick compares the number `k`
//!   of operations over the target with its allowance, a hundredth of `n` and what is over without resync too ([`NOISE_MAX`]
//!   at most): the rate moves by [`FINE_GAIN`] × (allowance − k) / (n/100), so by +0.5 % at most, and cut off at −7.5 %. This
//!   is Robbins and Monro's stochastic approximation of a quantile: it comes to rest where exactly one in a hundred is
//!   slower, however few operations there are, and a single pause of the device costs one bounded step.
//! - Where the window's p99 is far below the target, the increase is larger: up to 25 % a tick until the first overload
//!   of a busy period (the search), later up to 12 %, in proportion to the headroom, and always a small constant, so that a
//!   rate of zero can rise; back to near the rate of the last overload by a fixed part of the way; near it up to 6 %, and
//!   only as far as the allowance of the last ten seconds is left ([`climb`], [`Account`]). What happens at the floor, where
//!   nothing can fall, says nothing of a limit.
//! - *Throughput*: guests with a fixed number of requests under way lose operations per second long before their p99 is
//!   over its target. Where they complete less than [`Controller::least_kept`] of what they do alone ([`throughput`]), the
//!   rate falls by [`LACKING_GAIN`] of what is missing; near that it rises the slower.
//! - *Overload*, more than one in twenty over the target for [`OVERLOAD_TICKS`] ticks on × 0.7 each tick until it is
//!   over, then a rest of [`SETTLE_TICKS`], so that what is queued can drain before it counts again.
//! - A rate that resync doesn't use isn't raised: an unused allowance would be spent at once when work comes.
//! - Resync that loses ground (guests write faster than it copies while its backlog grows) is not decreased further.
//!
//! # Stability
//! Latency never falls as the resync rate rises, so the expected step is zero at one rate, positive below it and negative
//! above. Near it a step is at most +0.5 % and −7.5 % a tick and a change shows within two, so the overshoot is bounded by
//! about 1 %. Far below, the increase shrinks with the headroom; the search can overshoot by at most 1.25^3 in the
//! three ticks that it takes to be sure of an overload, and two ticks at 0.7 undo that; it happens once a busy period, and
//! where guests were hardly ever over their target in ten seconds. The way back after an overload ends below its rate.
//! The window is forgotten after an overload, so that one bad moment is answered once.

mod account;
mod baseline;
mod class;
mod climb;
pub mod deadline;
pub mod fair;
mod ground;
mod histogram;
mod latencies;
mod learn;
pub mod missed;
pub mod moment;
pub mod peers;
pub mod schedule;
pub mod settings;
mod throughput;
mod types;

use std::time::Duration;

pub use class::{CLASSES, ClassPolicy, DEFAULT_CLASSES, divide, index as class_index};
pub use histogram::{BUCKETS, Histogram};
pub use latencies::{KINDS, Kind, Latencies};
pub use types::{Decision, Footing, LimitedBy, Policy, Sample};

use account::Account;
use baseline::Baseline;
use climb::{Climb, Room};
use ground::Ground;
use learn::{PROBE_EVERY, PROBE_TICKS_MIN};
use peers::{Findings, FirstRate};
use throughput::{SPARE_FULL, Throughput};

/// Ticks without foreground after which the disk is idle: half a second, so that a guest's pause for thought between
/// two requests isn't filled at full speed, and full speed is reached well within two seconds.
const IDLE_TICKS: u32 = 5;
/// The most that a slow disk may delay that.
const IDLE_TICKS_MAX: u32 = 15;
/// The most of a device's own slow moments, as a part of operations, that isn't held against resync.
const NOISE_MAX: f64 = 0.02;
/// Step of the fine loop for one allowance: small against the swing of 25 % that is tolerated.
const FINE_GAIN: f64 = 0.005;
/// The fine loop aims a little below the target, so that its own noise stays within.
const AIM: f64 = 0.9;
/// A tick with fewer operations counts for less: their hundredth part is the least allowance.
const FINE_OPERATIONS: f64 = 12.0;
/// Most allowances that one tick may overdraw: a device's own pause must not read as overload.
const FINE_OVERDRAWN_MAX: f64 = 15.0;
/// The same for the account; where a tick has fewer, each may be the one that counts.
const ACCOUNT_OPERATIONS: f64 = 50.0;
/// The part over the target that makes a tick bad: five times what the target allows.
const BAD_PART: f64 = 0.05;
/// Bad ticks on end that are an overload: a garbage collection or a flush spoils one or two.
const OVERLOAD_TICKS: u32 = 3;
/// What an overload leaves of the rate, each tick: half a second divides it by six.
const OVERLOAD_FACTOR: f64 = 0.7;
/// Ticks after a wake-up in which what full speed has queued drains.
const WAKE_TICKS: u32 = 5;
/// Operations that the window's percentile should rest on; the decay is chosen for it.
const WINDOW_OPERATIONS: f64 = 200.0;
/// The part of guests' throughput that is missing, times this, is what a tick takes from the rate: a tenth missing halves it in
/// 3 s, several times the half second over which throughput is measured.
const LACKING_GAIN: f64 = 0.2;
/// Ticks after an overload in which there is no change.
const SETTLE_TICKS: u32 = 3;
/// Up to this multiple of the floor a rate is the floor's.
const FLOOR_NEAR: f64 = 1.05;
/// A window with fewer operations says nothing of headroom.
const HEADROOM_OPERATIONS_MIN: f64 = 10.0;
/// Below this no latency target makes sense: timers and scheduling are as large.
const TARGET_US_MIN: f64 = 100.0;
/// A member's part of a write is held to no less than this where no target was set: guests wait for the whole write, which
/// its primary measures and holds to their target; a part that grows from 100 to 300 µs is nothing to them, and would stop a
/// copy to a new disk, whose every write is such a part. It catches a disk whose intake holds up writes of primaries that
/// copy nothing themselves.
const APPLY_TARGET_US_MIN: f64 = 10_000.0;
/// An inflation below this would take the baseline's own noise for resync's effect.
const INFLATION_MIN: f64 = 1.05;
/// What a search starts from when the floor is lower: eight windows a second.
const START_BYTES_PER_SEC: f64 = 2_097_152.0;
/// Faster than any disk: where the floating-point state stops.
const RATE_MAX: f64 = 1.0e12;
/// With one copy left, the floor counts this many times: the risk is data, no longer latency.
const CRITICAL_FLOOR_FACTOR: u64 = 4;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    /// No foreground.
    Idle,
    /// Learns the baseline at a low rate.
    Probe { ticks: u32 },
    /// Follows the target.
    Follow,
}

/// The loop of one disk.
#[derive(Clone, Debug)]
pub struct Controller {
    policy: Policy,
    phase: Phase,
    /// The rate that the target allows, before cap and floor.
    rate: f64,
    climb: Climb,
    account: Account,
    throughput: Throughput,
    settle_ticks: u32,
    /// Ticks on end with many operations over the target.
    bad_ticks: u32,
    quiet_ticks: u32,
    recent: Latencies,
    quiet: Baseline,
    /// What is usual in the disk's own class, such as ssd.
    usual: Findings,
    first_rate: FirstRate,
    /// Beside resync, with as long a memory as `quiet`.
    beside: Baseline,
    /// Ticks since resync last moved more than a trace.
    resync_off_ticks: u32,
    /// Ticks without resync after which latencies count as quiet.
    drain_ticks: u32,
    since_probe: Duration,
    /// Foreground operations per second: now, and when the baseline was learnt.
    operations_per_sec: f64,
    baseline_operations_per_sec: f64,
    /// What probes took from the floor and isn't paid back.
    floor_debt_bytes: f64,
    critical: bool,
    /// Classes that have work.
    wanted: [bool; CLASSES],
    /// The foreground's target wasn't met when it was measured last.
    missed: bool,
    ground: Ground,
    limited_by: LimitedBy,
}

impl Controller {
    /// A disk of which nothing is known: idle, so unlimited until guests come.
    pub fn new(policy: Policy) -> Self {
        Controller {
            policy,
            phase: Phase::Idle,
            rate: 0.0,
            climb: Climb::new(),
            account: Account::default(),
            throughput: Throughput::default(),
            settle_ticks: 0,
            bad_ticks: 0,
            quiet_ticks: IDLE_TICKS,
            recent: Latencies::default(),
            quiet: Baseline::default(),
            usual: Findings::default(),
            first_rate: FirstRate::default(),
            beside: Baseline::default(),
            resync_off_ticks: 0,
            drain_ticks: PROBE_TICKS_MIN,
            since_probe: PROBE_EVERY,
            operations_per_sec: 0.0,
            baseline_operations_per_sec: 0.0,
            floor_debt_bytes: 0.0,
            critical: false,
            wanted: [false; CLASSES],
            missed: false,
            ground: Ground::default(),
            limited_by: LimitedBy::Nothing,
        }
    }

    /// Takes new settings; they hold from the decision that this returns.
    pub fn set_policy(&mut self, policy: Policy) -> Decision {
        if policy.target_p99_us != self.policy.target_p99_us || policy.target_inflation != self.policy.target_inflation
        {
            self.climb.forget();
        }
        self.policy = policy;
        self.decision()
    }

    /// Takes what is usual in the disk's class, from [`peers::usual`]; it holds until there is something else.
    pub fn set_usual(&mut self, usual: Findings) {
        self.usual = usual;
    }

    /// What was found on this disk alone; the rate is that before cap and floor.
    pub fn findings(&self) -> Findings {
        Findings {
            quiet_p99_us: Kind::ALL.map(|kind| self.quiet.p99_us(kind).map_or(0, |us| us as u64)),
            rate_bytes_per_sec: if self.first_rate.is_found() { self.rate as u64 } else { 0 },
        }
    }

    /// What the next step rests on, for the log.
    pub fn footing(&self) -> Footing {
        Footing {
            knee_bytes_per_sec: self.climb.knee().map(|rate| rate as u64),
            searching: self.climb.is_searching(),
            bad_ticks: self.bad_ticks,
            allowance_left: self.account.left(),
            spare_throughput: self.least_kept().map_or(SPARE_FULL, |least| self.throughput.spare(least)),
        }
    }

    /// The baseline in force: see [`peers::in_force_us`].
    fn baseline_us(&self, kind: Kind) -> Option<f64> {
        let class = self.usual.quiet_p99_us[kind as usize];
        peers::in_force_us(self.quiet.p99_us(kind), self.quiet.is_well_known(kind), class)
    }

    /// There is something to hold latencies against.
    fn has_target(&self) -> bool {
        self.policy.target_p99_us.is_some() || Kind::ALL.into_iter().any(|kind| self.baseline_us(kind).is_some())
    }

    /// Takes a sample and decides.
    pub fn handle_sample(&mut self, sample: &Sample) -> Decision {
        let seconds = sample.elapsed.as_secs_f64().clamp(0.001, 10.0);
        let operations = sample.latencies.total();
        self.critical = sample.wanted[0];
        self.wanted = sample.wanted;
        self.since_probe = self.since_probe.saturating_add(sample.elapsed);
        if operations > 0.0 || self.phase != Phase::Idle {
            let now = operations / seconds;
            let weight = if self.operations_per_sec > 0.0 { 0.05 } else { 1.0 };
            self.operations_per_sec += (now - self.operations_per_sec) * weight;
        }
        let floor = self.floor();
        self.ground.enter(sample, floor, seconds);
        self.learn_quiet(sample, seconds);

        if operations == 0.0 && sample.queue_depth == 0 {
            self.quiet_ticks = self.quiet_ticks.saturating_add(1);
            if self.quiet_ticks >= self.idle_ticks() {
                self.phase = Phase::Idle;
                self.recent.clear();
            }
            // A short silence is no news of the latency: hold.
            return self.decision();
        }
        self.quiet_ticks = 0;
        let decay = (1.0 - operations / WINDOW_OPERATIONS).clamp(0.6, 0.9);
        self.recent.decay(decay);
        self.recent.merge(&sample.latencies);

        match self.phase {
            Phase::Idle => self.wake(sample.resync_bytes as f64 / seconds),
            Phase::Probe { ticks } => self.probe(ticks + 1, sample, seconds),
            Phase::Follow => self.follow(sample, seconds),
        }
        self.rate = if self.rate.is_finite() { self.rate.clamp(0.0, RATE_MAX) } else { 0.0 };
        self.decision()
    }

    /// How long silence must last to mean that the guests have gone.
    fn idle_ticks(&self) -> u32 {
        let slow = self.recent.guests().quantile_us(0.99).unwrap_or(0.0) * 2.0 / 100_000.0;
        (slow as u32).clamp(IDLE_TICKS, IDLE_TICKS_MAX)
    }

    /// Guests are back: the rate that was right for them before, or the floor. `used` is what resync takes now, in bytes per second.
    fn wake(&mut self, used: f64) {
        self.climb.wake();
        self.settle_ticks = 0;
        let least = self.floor().max(START_BYTES_PER_SEC);
        if !self.has_target() {
            self.rate = least;
            self.phase = Phase::Probe { ticks: 0 };
            return;
        }
        self.rate = if self.rate > 0.0 {
            // A little below what was right: the backlog of full speed must drain too.
            self.rate * 0.8
        } else if self.policy.target_p99_us.is_some() || self.quiet.is_known() {
            least
        } else {
            // A disk that joins: guests come with the first PGs that it has taken over, and the other ends of its copies are bound by
            // what guests have there.
            least.max(used / 2.0)
        };
        self.recent.clear();
        self.throughput.forget_now();
        self.phase = Phase::Follow;
        self.settle_ticks = WAKE_TICKS;
        self.bad_ticks = 0;
    }

    fn follow(&mut self, sample: &Sample, seconds: f64) {
        let used = sample.resync_bytes as f64 / seconds;
        self.floor_debt_bytes = (self.floor_debt_bytes - (used - self.floor()).max(0.0) * seconds).max(0.0);
        self.correct_baseline();
        if self.probe_is_due(sample) {
            return self.begin_probe();
        }
        if !self.has_target() {
            // Operations are so rare that no baseline has come together: nobody is hurt who could be measured.
            return;
        }
        let (mut operations, mut over, mut anyway) = (0.0, 0.0, 0.0);
        for kind in Kind::ALL {
            let latencies = sample.latencies.of(kind);
            if let Some(target) = self.target_us(kind).filter(|_| latencies.total() > 0.0) {
                operations += latencies.total();
                over += latencies.above_us(target * AIM);
                anyway += latencies.total() * self.quiet.part_over(kind, target * AIM).min(NOISE_MAX);
            }
        }
        // A pause of the device's own is no more of a lasting overdraft than of a step.
        let most = FINE_OVERDRAWN_MAX * operations.max(ACCOUNT_OPERATIONS) / 100.0 + anyway;
        self.account.enter(operations / 100.0 + anyway, over.min(most));
        if sample.resync_bytes > 0 || sample.resync_held_back {
            self.rate = self.first_rate.copied(self.rate, self.usual.rate_bytes_per_sec);
        }
        if self.settle_ticks > 0 {
            self.settle_ticks -= 1;
            return;
        }
        self.bad_ticks = if over > BAD_PART * operations + anyway { self.bad_ticks + 1 } else { 0 };
        let allowances = (operations / 100.0 + anyway - over) / (operations.max(FINE_OPERATIONS) / 100.0);
        let step = FINE_GAIN * allowances.clamp(-FINE_OVERDRAWN_MAX, 1.0);
        let spare = self.least_kept().map_or(SPARE_FULL, |least| self.throughput.spare(least));
        let step = if spare < 0.0 { step.min(LACKING_GAIN * spare) } else { step };
        // From what cap and floor let through, lest the state wind up beyond them.
        let effective = self.rate.clamp(self.floor(), self.cap());
        if spare < 0.0 && !self.is_near_floor(effective) {
            self.climb.end_search();
        }
        let wants_more = sample.resync_held_back || used >= 0.8 * effective;
        if step < 0.0 {
            if self.ground.found().losing || !(wants_more || used > self.floor()) {
                return;
            }
            if self.bad_ticks >= OVERLOAD_TICKS {
                self.overload(effective);
            } else {
                self.rate = effective * (1.0 + step);
            }
        } else if wants_more && self.bad_ticks == 0 {
            let increase = self.increased(effective, step) - effective;
            self.rate = effective + increase * (spare / SPARE_FULL);
        }
    }

    fn is_near_floor(&self, rate: f64) -> bool {
        rate <= FLOOR_NEAR * self.floor()
    }

    /// What guests must complete at least, as a part of what they do alone: 0.8 at the ordinary target of twice their latency.
    /// Who sets a latency says what guests may lose.
    fn least_kept(&self) -> Option<f64> {
        self.policy.target_p99_us.is_none().then(|| (1.0 - self.policy.target_inflation / 10.0).clamp(0.3, 0.95))
    }

    fn overload(&mut self, effective: f64) {
        self.first_rate.found();
        if !self.is_near_floor(effective) {
            if self.bad_ticks == OVERLOAD_TICKS {
                self.climb.met(effective, self.known());
            }
            self.climb.end_search();
        }
        self.rate = effective * OVERLOAD_FACTOR;
        self.recent.clear();
        if self.bad_ticks > OVERLOAD_TICKS {
            self.settle_ticks = SETTLE_TICKS;
            // If the next tick is bad too, the overload goes on.
            self.bad_ticks = OVERLOAD_TICKS;
        }
    }

    /// The kind that is furthest from meeting its target, and its p99 as a part of that target.
    fn worst(&self) -> Option<(Kind, f64)> {
        let measured = |kind: &Kind| self.recent.of(*kind).total() >= HEADROOM_OPERATIONS_MIN;
        let part = |kind: Kind| Some((kind, self.recent.of(kind).quantile_us(0.99)? / self.target_us(kind)?));
        Kind::ALL.into_iter().filter(measured).filter_map(part).max_by(|a, b| a.1.total_cmp(&b.1))
    }

    /// How well the present is known: what few operations show is no ground for large steps. Those of all kinds count that have a
    /// target, as none of them is nearer to it than the worst.
    fn known(&self) -> f64 {
        let held = Kind::ALL.into_iter().filter(|kind| self.target_us(*kind).is_some());
        let operations: f64 = held.map(|kind| self.recent.of(kind).total()).sum();
        (operations / WINDOW_OPERATIONS).min(1.0).powi(2)
    }

    fn increased(&mut self, effective: f64, step: f64) -> f64 {
        let fine = effective * (1.0 + step);
        let Some((_, part)) = self.worst() else { return fine };
        let headroom = (0.9 - part) / 0.9;
        if headroom <= 0.0 {
            return fine;
        }
        let room = Room { headroom, known: self.known(), left: self.account.left() };
        self.climb.increased(effective, fine, room)
    }

    fn cap(&self) -> f64 {
        self.policy.cap_bytes_per_sec.map_or(RATE_MAX, |cap| cap as f64).min(RATE_MAX)
    }

    /// The floor in force: it rises when one copy is left. The cap wins over it.
    fn floor(&self) -> f64 {
        // Of classes that have work: a floor that nobody uses would only be lent to others.
        let wanting = self.policy.classes.iter().zip(self.wanted).filter(|(c, wants)| *wants && !c.is_paused());
        let classes = wanting.map(|(c, _)| c.floor_bytes_per_sec).fold(0u64, u64::saturating_add);
        let factor = if self.critical { CRITICAL_FLOOR_FACTOR } else { 1 };
        let floor = self.policy.floor_bytes_per_sec.saturating_mul(factor).max(classes);
        (floor as f64).min(self.cap())
    }

    fn target_us(&self, kind: Kind) -> Option<f64> {
        let inflation = self.policy.target_inflation;
        let inflation = if inflation.is_finite() { inflation.max(INFLATION_MIN) } else { 2.0 };
        let least = if kind == Kind::Apply { APPLY_TARGET_US_MIN } else { TARGET_US_MIN };
        Some(match self.policy.target_p99_us {
            Some(us) => (us as f64).max(TARGET_US_MIN),
            None => (self.baseline_us(kind)? * inflation).max(least),
        })
    }

    fn decision(&mut self) -> Decision {
        let worst = self.worst();
        if let Some((_, part)) = worst {
            self.missed = part > 1.0;
        }
        let (rate, limited_by) = self.bound();
        self.limited_by = limited_by;
        // Before anything is measured: the kind that is best known, and of several the first.
        let known = || {
            Kind::ALL
                .into_iter()
                .rev()
                .max_by(|a, b| self.quiet.operations_of(*a).total_cmp(&self.quiet.operations_of(*b)))
        };
        let kind = worst.map(|w| w.0).or_else(known).unwrap_or(Kind::SmallRead);
        Decision {
            rate_bytes_per_sec: rate,
            limited_by,
            target_p99_us: self.target_us(kind).map(|us| us as u64),
            baseline_p99_us: self.baseline_us(kind).map(|us| us as u64),
            p99_us: self.recent.of(kind).quantile_us(0.99).map(|us| us as u64),
            losing_ground: self.ground.found().losing,
            below_floor: self.ground.found().below_floor,
            probing: matches!(self.phase, Phase::Probe { .. }),
        }
    }

    /// The rate in force and why.
    fn bound(&self) -> (Option<u64>, LimitedBy) {
        if self.policy.paused {
            return (Some(0), LimitedBy::Paused);
        }
        let cap = self.policy.cap_bytes_per_sec;
        match self.phase {
            Phase::Idle => (cap, if cap.is_some() { LimitedBy::Cap } else { LimitedBy::Nothing }),
            Phase::Probe { .. } => (Some(self.probe_rate() as u64), LimitedBy::ForegroundLatency),
            Phase::Follow => {
                let floor = self.floor();
                // What a probe took from the floor is paid back at an eighth more.
                let floor = if self.floor_debt_bytes > 0.0 { (floor * 1.125).min(self.cap()) } else { floor };
                if self.rate >= self.cap() {
                    (cap, LimitedBy::Cap)
                } else if self.rate <= floor {
                    (Some(floor as u64), if self.missed { LimitedBy::Floor } else { LimitedBy::ForegroundLatency })
                } else {
                    (Some(self.rate as u64), LimitedBy::ForegroundLatency)
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
