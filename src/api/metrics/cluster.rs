//! The coordinator's picture of the cluster: gauges that are filled anew for each scrape.
//!
//! Rows are set by row and label values; what isn't set after [`ClusterGauges::begin`] is gone, so that a removed disk or
//! volume leaves nothing behind. As nothing of it outlives a scrape, it is kept as the lines that a scrape prints: over 10,000
//! disks handles in a registry took three times as long as all the rest.
//!
//! Format: Prometheus' text exposition format, version 0.0.4.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use parking_lot::Mutex;

use super::*;

/// Rows that are filled anew.
pub(super) const ROWS: [Row; 29] = [
    FEATURE_LEVEL,
    PGS_AT_RISK,
    NODE_UP,
    NODE_INFO,
    DISK_INFO,
    DISK_PG_REPLICAS,
    DISK_PRIMARIES,
    DISK_LAGGING,
    DISK_USED,
    DISK_CAPACITY,
    PROVISIONED,
    MAP_OUTDATED,
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

/// Values by labels, as they are printed, for each of [`ROWS`].
type Lines = [BTreeMap<String, f64>; ROWS.len()];

/// Gauges of the cluster, by row.
#[derive(Clone)]
pub struct ClusterGauges {
    lines: Arc<Mutex<Lines>>,
}

impl ClusterGauges {
    pub(super) fn new() -> Self {
        ClusterGauges { lines: Arc::new(Mutex::new(std::array::from_fn(|_| BTreeMap::new()))) }
    }

    /// Forgets what was shown before.
    pub fn begin(&self) {
        self.lines.lock().iter_mut().for_each(BTreeMap::clear);
    }

    /// The value of a row, for these values of its labels.
    pub(crate) fn set(&self, row: Row, labels: &[&str], value: f64) {
        debug_assert_eq!(row.labels.len(), labels.len(), "{}", row.name);
        if let Some(at) = ROWS.iter().position(|r| r.name == row.name) {
            self.lines.lock()[at].insert(label_text(row.labels, labels), value);
        }
    }

    /// Appends all rows that have a value.
    pub(super) fn print(&self, out: &mut String) {
        for (row, values) in ROWS.iter().zip(self.lines.lock().iter()).filter(|(_, values)| !values.is_empty()) {
            // A `String` takes every write.
            let _ = writeln!(out, "# HELP {0} {1}\n# TYPE {0} gauge", row.name, row.help);
            for (labels, value) in values {
                let _ = writeln!(out, "{}{labels} {value}", row.name);
            }
        }
    }
}

/// `{name="value",…}`; nothing for a row without labels.
fn label_text(names: &[&str], values: &[&str]) -> String {
    if names.is_empty() {
        return String::new();
    }
    let mut text = String::with_capacity(names.iter().chain(values).map(|s| s.len() + 3).sum::<usize>() + 2);
    let mut before = '{';
    for (name, value) in names.iter().zip(values) {
        text.push(before);
        text.push_str(name);
        text.push_str("=\"");
        for c in value.chars() {
            match c {
                '\\' => text.push_str("\\\\"),
                '"' => text.push_str("\\\""),
                '\n' => text.push_str("\\n"),
                c => text.push(c),
            }
        }
        text.push('"');
        before = ',';
    }
    text.push('}');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_set_last_is_printed_once_and_any_label_is_quoted() {
        let gauges = ClusterGauges::new();
        gauges.set(NODE_UP, &["n1"], 0.0);
        gauges.set(NODE_UP, &["n1"], 1.0);
        gauges.set(NODE_UP, &["a\"b\\c\nd"], 1.0);
        gauges.set(FEATURE_LEVEL, &[], 2.5);
        let mut text = String::new();
        gauges.print(&mut text);
        let lines: Vec<&str> = text.lines().filter(|l| !l.starts_with('#')).collect();
        let [level, quoted, plain] = lines[..] else { panic!("{text}") };
        assert_eq!(level, "evenkeel_feature_level 2.5");
        assert_eq!(quoted, r#"evenkeel_node_up{node="a\"b\\c\nd"} 1"#);
        assert_eq!(plain, r#"evenkeel_node_up{node="n1"} 1"#);
        assert_eq!(text.matches("# TYPE evenkeel_node_up gauge").count(), 1);
        gauges.begin();
        let mut text = String::new();
        gauges.print(&mut text);
        assert!(text.is_empty(), "{text}");
    }
}
