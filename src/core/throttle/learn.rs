//! What guests have without resync: when it is learnt, and the probes for it.
//!
//! Where no resync runs it is learnt all the time; else while copies pause: at a wake-up of which nothing is known, and then in
//! [`moment`]s. A disk whose operators set a latency has nothing to learn and copies on.

use std::time::Duration;

use super::baseline::Baseline;
use super::latencies::Kind;
use super::types::Sample;
use super::{Controller, Phase, START_BYTES_PER_SEC, moment};

/// A probe's least length: what was under way has drained after the first of them.
pub(super) const PROBE_TICKS_MIN: u32 = 2;
/// A probe ends after this time, however few operations it saw: the price is bounded.
const PROBE_TICKS_MAX: u32 = 15;
/// Most ticks that what was queued when resync stopped may take to drain.
const DRAIN_TICKS_MAX: u32 = 8;
/// Operations after which a probe may end: enough for a p99.
const PROBE_OPERATIONS: f64 = 100.0;
/// Time between probes: a probe of 0.3 to 0.5 s costs 3 to 5 % of the rate.
pub(super) const PROBE_EVERY: Duration = moment::EVERY;
/// Least time between probes that a change of load asks for.
const PROBE_EVERY_MIN: Duration = Duration::from_secs(5);
/// The baseline covers so much time of guests alone: older operations fade as new ones come.
const QUIET_SECONDS: f64 = 60.0;
/// And at least so many operations, where that is more.
const QUIET_OPERATIONS_MAX: f64 = 4_000.0;
/// What a probe leaves of the weight of what was known before, so that after five the older part is a quarter.
const PROBE_KEEPS: f64 = 0.75;
/// Windows beside resync that may correct a baseline, some seconds of guests at least: fewer are luck, on a machine whose
/// quiet moments differ by a factor of four.
const BESIDE_WINDOWS_MIN: usize = 32;
/// Least operations for a baseline.
const QUIET_OPERATIONS_MIN: f64 = 20.0;

impl Controller {
    /// Operations that ran without resync beside them teach the baseline.
    pub(super) fn learn_quiet(&mut self, sample: &Sample, seconds: f64) {
        let trace = self.floor().min(START_BYTES_PER_SEC) / 8.0 * 1.5 * seconds + 1.0;
        let probing = matches!(self.phase, Phase::Probe { .. });
        if (sample.resync_bytes as f64) <= trace
            || probing && sample.resync_bytes as f64 <= self.probe_rate() * 3.0 * seconds
        {
            self.resync_off_ticks = self.resync_off_ticks.saturating_add(1);
        } else {
            self.resync_off_ticks = 0;
        }
        // Operations that waited behind what was queued when resync stopped complete in the first ticks: twice the
        // longest latency of those has drained it.
        if self.resync_off_ticks <= 1 {
            self.drain_ticks = PROBE_TICKS_MIN;
        }
        if self.resync_off_ticks <= PROBE_TICKS_MIN {
            let longest = sample.latencies.longest_us() / (seconds * 1e6);
            self.drain_ticks = self.drain_ticks.max((2.0 * longest) as u32 + 2).min(DRAIN_TICKS_MAX);
        }
        if sample.latencies.total() == 0.0 {
            return;
        }
        let memory = (self.operations_per_sec * QUIET_SECONDS).max(QUIET_OPERATIONS_MAX);
        let all_pause = sample.since_moment.is_some_and(|since| moment::is_quiet(since, sample.elapsed));
        if self.resync_off_ticks < self.drain_ticks || sample.copies_run && !probing && !all_pause {
            self.beside.learn(&sample.latencies, sample.elapsed, memory);
            if self.phase == Phase::Follow {
                self.throughput.see(&sample.latencies.guests(), seconds);
            }
            return;
        }
        self.throughput.learn_quiet(&sample.latencies.guests(), seconds);
        self.quiet.learn(&sample.latencies, sample.elapsed, memory);
        self.baseline_operations_per_sec = self.operations_per_sec;
        if self.quiet.operations() >= PROBE_OPERATIONS {
            self.since_probe = Duration::ZERO;
        }
    }

    /// A tick of a probe.
    pub(super) fn probe(&mut self, ticks: u32, sample: &Sample, seconds: f64) {
        self.floor_debt_bytes += (self.floor() - self.probe_rate()).max(0.0) * seconds;
        let others_learn = sample.since_moment.is_some_and(|since| since < moment::QUIET_TO);
        let enough =
            self.resync_off_ticks > self.drain_ticks && self.quiet.operations() >= PROBE_OPERATIONS && !others_learn;
        if (ticks >= PROBE_TICKS_MIN && enough) || ticks >= PROBE_TICKS_MAX {
            self.since_probe = Duration::ZERO;
            self.recent.clear();
            self.phase = Phase::Follow;
        } else {
            self.phase = Phase::Probe { ticks };
        }
    }

    /// Resync never makes guests faster: a baseline far above what they have had beside it is wrong, or of another load.
    pub(super) fn correct_baseline(&mut self) {
        for kind in Kind::ALL {
            if self.beside.windows(kind) >= BESIDE_WINDOWS_MIN
                && let (Some(baseline), Some(p99)) = (self.quiet.p99_us(kind), self.beside.p99_us(kind))
                && p99 < 0.8 * baseline
            {
                self.quiet.correct(kind, &self.beside);
            }
        }
    }

    /// The load is another one than the baseline was learnt under.
    fn load_has_changed(&self) -> bool {
        let (now, then) = (self.operations_per_sec, self.baseline_operations_per_sec);
        now > then * 1.5 || now < then * 0.5
    }

    /// The baseline is old, or was learnt under another load, and its time has come.
    pub(super) fn probe_is_due(&self, sample: &Sample) -> bool {
        if self.policy.target_p99_us.is_some() || sample.resync_bytes == 0 {
            return false;
        }
        match sample.since_moment {
            // However lately something was learnt: others learn now.
            Some(since) => moment::begins(since, sample.elapsed),
            None => {
                let lacking = self.load_has_changed() || self.quiet.operations() < PROBE_OPERATIONS;
                self.since_probe >= PROBE_EVERY || lacking && self.since_probe >= PROBE_EVERY_MIN
            }
        }
    }

    /// Copies drop to almost nothing from the next tick on.
    pub(super) fn begin_probe(&mut self) {
        // Another load makes the old baseline worthless; else it fades, but not below what a p99 needs.
        let least = |operations: f64| (2.0 * operations / self.quiet.operations().max(1.0)).min(1.0);
        if self.load_has_changed() {
            self.quiet.forget(least(QUIET_OPERATIONS_MIN).max(0.1));
            self.beside = Baseline::default();
            self.throughput.forget_quiet();
        } else {
            self.quiet.fade(least(PROBE_OPERATIONS).max(PROBE_KEEPS));
            self.beside.fade(PROBE_KEEPS);
            self.throughput.fade_quiet();
        }
        self.resync_off_ticks = 0;
        self.phase = Phase::Probe { ticks: 0 };
    }

    /// What copies may do meanwhile.
    pub(super) fn probe_rate(&self) -> f64 {
        self.floor() / 8.0
    }
}
