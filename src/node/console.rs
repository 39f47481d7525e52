//! A node's console: what it knows by itself, read-only, also while no coordinator answers.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use super::admin::Observed;
use super::engine::local::Local;
use crate::api::console::{
    CopyFacts, HISTORY_INTERVAL, History, Hub, NodeDisk, NodeFacts, NodeLink, Sample, render_node,
};
use crate::api::metrics::IntGauge;
use crate::core::cluster::{NodeAdminState, ResyncClass};
use crate::core::ids::{DiskId, NodeId, PgId};
use crate::core::manager::plan::FULL_RATIO;

/// What doesn't change while the node runs.
#[derive(Clone, Debug, Default)]
pub(super) struct Fixed {
    pub node: NodeId,
    pub cluster: String,
    pub name: String,
    pub zone: String,
    pub rack: String,
    pub addr: String,
    pub coordinator_url: String,
    /// Id, class, path.
    pub disks: Vec<(DiskId, String, PathBuf)>,
}

/// The console's view of the node.
pub(super) struct Console {
    fixed: Fixed,
    observed: Observed,
    connected: IntGauge,
    /// When the coordinator was last heard, Unix milliseconds.
    heard: Arc<AtomicU64>,
    history: Mutex<History>,
    started_unix_ms: u64,
}

/// Now.
pub(super) fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

impl Console {
    pub fn new(fixed: Fixed, observed: Observed, heard: Arc<AtomicU64>) -> Arc<Console> {
        let connected = observed.metrics.coordinator.clone();
        Arc::new(Console { fixed, observed, connected, heard, history: Mutex::default(), started_unix_ms: unix_ms() })
    }

    pub fn hub(self: Arc<Self>) -> Hub {
        let source = move || {
            let page = render_node(&self.facts());
            Box::pin(async move { Some(page) }) as std::pin::Pin<Box<dyn Future<Output = _> + Send>>
        };
        Hub::new(Arc::new(source), false)
    }

    /// Adds points to the lines for as long as the node runs.
    pub async fn watch(self: Arc<Self>) {
        let mut tick = tokio::time::interval(HISTORY_INTERVAL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let totals = || {
            let c = &self.observed.counters;
            let written: u64 = c.resync_written.iter().map(|v| v.load(Ordering::Relaxed)).sum();
            (c.reads.load(Ordering::Relaxed), c.writes.load(Ordering::Relaxed), written)
        };
        let mut before = (Instant::now(), totals());
        loop {
            tick.tick().await;
            let now = (Instant::now(), totals());
            let passed = (now.0 - before.0).as_secs_f64();
            if passed < 0.1 {
                continue;
            }
            let rate = |now: u64, then: u64| (now.saturating_sub(then) as f64 / passed) as u64;
            let (p50_us, p99_us, _) = self.observed.throttle.foreground_percentiles();
            self.history.lock().add(Sample {
                read_iops: rate(now.1.0, before.1.0),
                write_iops: rate(now.1.1, before.1.1),
                p50_us,
                p99_us,
                resync_bytes_per_sec: rate(now.1.2, before.1.2),
            });
            before = now;
        }
    }

    fn facts(&self) -> NodeFacts {
        let local = self.observed.counters.local.lock().clone();
        let stats = self.observed.stats.lock().clone();
        let fixed = &self.fixed;
        NodeFacts {
            unix_ms: unix_ms(),
            name: fixed.name.clone(),
            id: fixed.node.to_string(),
            cluster: fixed.cluster.clone(),
            release: env!("CARGO_PKG_VERSION").to_owned(),
            zone: fixed.zone.clone(),
            rack: fixed.rack.clone(),
            addr: fixed.addr.clone(),
            started_unix_ms: self.started_unix_ms,
            coordinator_connected: self.connected.get() == 1,
            coordinator_heard_unix_ms: self.heard.load(Ordering::Relaxed),
            coordinator_url: fixed.coordinator_url.clone(),
            map_version: local.map.version,
            map_epoch: local.map.epoch,
            disks: fixed.disks.iter().map(|(id, class, path)| self.disk(*id, class, path, &local, &stats)).collect(),
            copies: copies(&local, &stats),
            peers: peers(fixed.node, &local),
            hash_mismatches: stats.hash_mismatches,
            history: self.history.lock().points(),
        }
    }

    fn disk(
        &self,
        id: DiskId,
        class: &str,
        path: &std::path::Path,
        local: &Local,
        stats: &crate::wire::stats::Stats,
    ) -> NodeDisk {
        let reported = stats.disks.iter().find(|d| d.disk == id.0).cloned().unwrap_or_default();
        let roles = local.roles.get(&id).copied().unwrap_or_default();
        let decision = self.observed.throttle.decision(id);
        let fill = reported.used_bytes as f64 / reported.capacity_bytes.max(1) as f64;
        NodeDisk {
            id,
            class: class.to_owned(),
            path: path.display().to_string(),
            state: match &reported {
                d if d.failed => "failed",
                d if d.hung_ms > 0 => "hung",
                _ if fill >= FULL_RATIO => "full",
                _ => "up",
            },
            capacity_bytes: reported.capacity_bytes,
            used_bytes: reported.used_bytes,
            primaries: roles.primaries,
            secondaries: roles.secondaries,
            learners: roles.learners,
            old_copies: roles.old_copies,
            rate_bytes_per_sec: self.observed.throttle.rate(id),
            target_us: decision.target_p99_us,
            baseline_us: decision.baseline_p99_us,
            p99_us: decision.p99_us,
            limited_by: decision.limited_by.name(),
        }
    }
}

/// Those that are read here, then those that are written here.
fn copies(local: &Local, stats: &crate::wire::stats::Stats) -> Vec<CopyFacts> {
    let from = stats.sessions.iter().map(|s| {
        let pg = PgId::from_u64(s.pg);
        CopyFacts {
            pg: pg.to_string(),
            from: local.map.pgs.get(&pg).and_then(|c| c.primary()).map(|p| p.disk),
            to: DiskId(s.learner),
            class: ResyncClass::ALL.get(s.class as usize).map_or("", |c| c.name()),
            bytes_total: s.bytes_total,
            bytes_done: s.bytes_done,
            limited_by: s.limited_by.clone(),
        }
    });
    let to = local.learning.iter().map(|(pg, disk)| CopyFacts {
        pg: pg.to_string(),
        from: local.map.pgs.get(pg).and_then(|c| c.primary()).map(|p| p.disk),
        to: *disk,
        ..CopyFacts::default()
    });
    from.chain(to).collect()
}

fn peers(me: NodeId, local: &Local) -> Vec<NodeLink> {
    let others = local.map.nodes.values().filter(|n| n.id != me && n.admin_state != NodeAdminState::Removed);
    let link = |n: &crate::core::cluster::Node| NodeLink {
        name: n.name.clone(),
        url: n.admin_url.clone(),
        place: [n.zone.as_str(), n.rack.as_str()].into_iter().filter(|s| !s.is_empty()).collect::<Vec<_>>().join(" / "),
        reached: local.links.get(&n.id).copied(),
    };
    others.map(link).collect()
}
