//! The coordinator's picture of the cluster: gauges that are filled anew for each scrape.
//!
//! Rows are set by row and label values; what isn't set after [`ClusterGauges::begin`] is gone, so that a removed disk or
//! volume leaves nothing behind.

use prometheus::GaugeVec;

use super::*;

/// Rows that are filled anew.
pub(super) const ROWS: [Row; 26] = [
    FEATURE_LEVEL,
    PGS_AT_RISK,
    NODE_UP,
    NODE_INFO,
    DISK_INFO,
    DISK_PG_REPLICAS,
    DISK_PRIMARIES,
    DISK_LAGGING,
    PROVISIONED,
    MISSING_CAPACITY,
    VOLUMES,
    VOLUME_SIZE,
    VOLUME_PGS,
    VOLUME_ATTACHED,
    RESYNC_RATE,
    RESYNC_LEFT,
    RESYNC_DONE,
    RESYNC_MOVES,
    RESYNC_ETA,
    RESYNC_LIMITED_BY,
    RESYNC_STALLED,
    RESYNC_PAUSED,
    RESYNC_CAP,
    RESYNC_FLOOR,
    RESYNC_INFLATION,
    RESYNC_TARGET,
];

/// Gauges of the cluster, by row.
#[derive(Clone)]
pub struct ClusterGauges {
    gauges: Vec<(&'static str, GaugeVec)>,
}

impl ClusterGauges {
    pub(super) fn new(r: &Registrar) -> Self {
        ClusterGauges { gauges: ROWS.iter().map(|row| (row.name, r.float_gauges(*row))).collect() }
    }

    /// Forgets what was shown before.
    pub fn begin(&self) {
        self.gauges.iter().for_each(|(_, gauge)| gauge.reset());
    }

    /// The value of a row, for these values of its labels.
    pub(crate) fn set(&self, row: Row, labels: &[&str], value: f64) {
        debug_assert_eq!(row.labels.len(), labels.len(), "{}", row.name);
        let found = self.gauges.iter().find(|(name, _)| *name == row.name);
        if let Some(gauge) = found.and_then(|(_, gauge)| gauge.get_metric_with_label_values(labels).ok()) {
            gauge.set(value);
        }
    }
}
