//! What each disk's throttle knows and decides, on its node.

use prometheus::{GaugeVec, IntGaugeVec};

use super::{Registrar, THROTTLE_BASELINE, THROTTLE_LIMITED_BY, THROTTLE_P99, THROTTLE_RATE, THROTTLE_TARGET, int};
use crate::core::ids::DiskId;
use crate::core::throttle::{Decision, LimitedBy};

/// By disk.
#[derive(Clone)]
pub struct ThrottleMetrics {
    rate: IntGaugeVec,
    target: GaugeVec,
    baseline: GaugeVec,
    p99: GaugeVec,
    limited_by: IntGaugeVec,
}

impl ThrottleMetrics {
    pub(super) fn new(r: &Registrar) -> Self {
        ThrottleMetrics {
            rate: r.gauges(THROTTLE_RATE),
            target: r.float_gauges(THROTTLE_TARGET),
            baseline: r.float_gauges(THROTTLE_BASELINE),
            p99: r.float_gauges(THROTTLE_P99),
            limited_by: r.gauges(THROTTLE_LIMITED_BY),
        }
    }

    /// A disk's figures now; `rate_bytes_per_sec` is what its gates enforce.
    pub fn set(&self, disk: DiskId, rate_bytes_per_sec: u64, decision: &Decision) {
        let disk = disk.to_string();
        let seconds = |us: Option<u64>| us.unwrap_or(0) as f64 / 1e6;
        self.rate.with_label_values(&[&disk]).set(int(rate_bytes_per_sec));
        self.target.with_label_values(&[&disk]).set(seconds(decision.target_p99_us));
        self.baseline.with_label_values(&[&disk]).set(seconds(decision.baseline_p99_us));
        self.p99.with_label_values(&[&disk]).set(seconds(decision.p99_us));
        for reason in LimitedBy::ALL {
            let holds = i64::from(reason == decision.limited_by);
            self.limited_by.with_label_values(&[disk.as_str(), reason.name()]).set(holds);
        }
    }
}
