//! What Prometheus sees: the coordinator's gauges, filled anew for each scrape from the same views that people get, and where
//! to find every daemon's metrics.
//!
//! Bounds: rows by node, disk, state, class and reason; volumes one by one up to [`VOLUMES_SHOWN`]. Nothing by PG or chunk.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use super::owner::{Owner, PeerRole};
use super::survey::Survey;
use crate::api::metrics as rows;
use crate::api::types::{ResyncStatus, ScrapeTarget, SessionInfo};
use crate::core::cluster::{NodeAdminState, ResyncClass, Volume};
use crate::core::manager::decide::{PgState, state_of};
use crate::core::manager::runtime::Life;

/// Volumes shown one by one: five rows each, so some 2 MiB of text at most.
const VOLUMES_SHOWN: usize = 4096;
/// What can bound a copy; what else a node says counts as `other`.
const LIMITS: [&str; 10] = [
    "nothing",
    "foreground latency",
    "cap",
    "floor-bound",
    "paused",
    "slots",
    "network",
    "source disk",
    "target disk",
    "other",
];

impl Owner {
    /// Brings `/metrics` up to date.
    pub(super) fn show_metrics(&self) {
        let map = self.manager.state.map();
        let m = &self.facts.metrics;
        m.cluster.begin();
        let survey = self.survey();
        let sessions = self.sessions_of(&survey.learning);
        let pgs = &survey.counts;
        let states = [
            ("clean", pgs.clean),
            ("degraded", pgs.degraded),
            ("unavailable", pgs.unavailable),
            ("misplaced", pgs.misplaced),
        ];
        states.iter().for_each(|(state, count)| m.set_pgs(state, *count));
        m.cluster.set(rows::PGS_AT_RISK, &[], survey.at_risk as f64);
        for (class, bytes) in ResyncClass::ALL.iter().zip(self.totals.by_class()) {
            m.resync_bytes.raise_to(*class, *bytes);
        }
        m.pending_moves.set(
            i64::try_from(self.manager.planning.job.moves.len() + self.manager.planning.job.removals.len())
                .unwrap_or(i64::MAX),
        );
        m.map_version.set(i64::try_from(map.version).unwrap_or(i64::MAX));
        m.health.set(match self.health(&survey, &sessions).0.as_str() {
            "ok" => 0,
            "warn" => 1,
            _ => 2,
        });
        m.cluster.set(rows::MAP_OUTDATED, &[], f64::from(u8::from(self.manager.outdated().is_some())));
        m.cluster.set(rows::FEATURE_LEVEL, &[], f64::from(map.feature_level));
        let missing: u64 = self.missing_capacity().iter().map(|m| m.bytes).sum();
        m.cluster.set(rows::MISSING_CAPACITY, &[], missing as f64);
        self.show_nodes();
        self.show_disks(&survey);
        self.show_volumes();
        self.show_resync(&sessions);
    }

    fn show_nodes(&self) {
        let m = &self.facts.metrics;
        let mut counts: BTreeMap<String, u64> = BTreeMap::new();
        for node in self.manager.state.map().nodes.values() {
            let state = self.node_state(node);
            *counts.entry(state.to_owned()).or_default() += 1;
            if node.admin_state == NodeAdminState::Removed {
                continue;
            }
            let heard = self.manager.runtime.nodes.get(&node.id).is_some_and(|v| v.life != Life::Down);
            m.cluster.set(rows::NODE_UP, &[&node.name], f64::from(u8::from(heard)));
            m.cluster.set(rows::NODE_INFO, &[&node.name, state, &node.zone, &node.rack, &node.release], 1.0);
        }
        m.set_nodes(&counts);
    }

    fn show_disks(&self, survey: &Survey) {
        let (m, lagging) = (&self.facts.metrics, self.manager.runtime.lagging());
        for disk in self.manager.state.map().disks.values() {
            let state = self.disk_state(disk);
            if state == "removed" {
                continue;
            }
            let id = disk.id.to_string();
            let (replicas, primaries) = survey.load(disk.id);
            if let Some(space) = self.manager.runtime.disks.get(&disk.id) {
                m.cluster.set(rows::DISK_USED, &[&id], space.used_bytes as f64);
                m.cluster.set(rows::DISK_CAPACITY, &[&id], space.capacity_bytes as f64);
            }
            let waits_ms = lagging.get(&disk.id).map_or(0, |(_, oldest_ms)| *oldest_ms);
            m.cluster.set(rows::DISK_INFO, &[&id, &self.node_name(disk.node), &disk.class, state], 1.0);
            m.cluster.set(rows::DISK_PG_REPLICAS, &[&id], replicas as f64);
            m.cluster.set(rows::DISK_PRIMARIES, &[&id], primaries as f64);
            m.cluster.set(rows::DISK_LAGGING, &[&id], waits_ms as f64 / 1000.0);
        }
    }

    fn show_volumes(&self) {
        let (map, m) = (self.manager.state.map(), &self.facts.metrics);
        let provisioned: u64 = map.volumes.values().map(|v| v.size_bytes).sum();
        m.cluster.set(rows::PROVISIONED, &[], provisioned as f64);
        let mut counts = BTreeMap::from([("ok", 0u64), ("degraded", 0), ("unavailable", 0), ("deleting", 0)]);
        let mut volumes: Vec<(&Volume, &str, [u64; 3])> =
            map.volumes.values().map(|v| self.state_of_volume(v)).collect();
        for (_, state, _) in &volumes {
            if let Some(count) = counts.get_mut(state) {
                *count += 1;
            }
        }
        counts.iter().for_each(|(state, count)| m.cluster.set(rows::VOLUMES, &[state], *count as f64));
        if volumes.len() > VOLUMES_SHOWN {
            // Stable: the oldest of each kind stay shown.
            volumes.sort_by_key(|(_, state, _)| *state == "ok");
        }
        for (volume, _, pgs) in volumes.iter().take(VOLUMES_SHOWN) {
            let name = volume.name.as_str();
            let pool = map.pools.get(&volume.pool).map_or("", |p| p.name.as_str());
            m.cluster.set(rows::VOLUME_SIZE, &[name, pool], volume.size_bytes as f64);
            m.cluster.set(rows::VOLUME_ATTACHED, &[name], f64::from(u8::from(!volume.attached_to.is_empty())));
            for (state, count) in ["clean", "degraded", "unavailable"].iter().zip(pgs) {
                m.cluster.set(rows::VOLUME_PGS, &[name, state], *count as f64);
            }
        }
    }

    /// A volume's state, and its PGs that are clean, degraded, unavailable.
    fn state_of_volume<'a>(&self, volume: &'a Volume) -> (&'a Volume, &'static str, [u64; 3]) {
        let map = self.manager.state.map();
        let mut pgs = [0; 3];
        for config in volume.pgs().filter_map(|pg| map.pgs.get(&pg)) {
            pgs[match state_of(map, &self.manager.runtime, config) {
                PgState::Clean => 0,
                PgState::Degraded => 1,
                PgState::Unavailable(_) => 2,
            }] += 1;
        }
        let state = match pgs {
            _ if volume.deleting => "deleting",
            [_, _, n] if n > 0 => "unavailable",
            [_, n, _] if n > 0 => "degraded",
            _ => "ok",
        };
        (volume, state, pgs)
    }

    fn show_resync(&self, sessions: &[SessionInfo]) {
        let (m, status) = (&self.facts.metrics, self.resync_status(sessions));
        m.active_moves.set(i64::try_from(sessions.len()).unwrap_or(i64::MAX));
        let set = |row, value: f64| m.cluster.set(row, &[], value);
        set(rows::RESYNC_RATE, status.rate_bytes_per_sec as f64);
        set(rows::RESYNC_DONE, status.bytes_total.saturating_sub(status.bytes_left) as f64);
        set(rows::RESYNC_STALLED, sessions.iter().filter(|s| s.stalled.is_some()).count() as f64);
        set(rows::RESYNC_PAUSED, f64::from(u8::from(status.paused)));
        let settings = &self.manager.state.map().settings.resync;
        set(rows::RESYNC_CAP, settings.cap_bytes_per_sec.unwrap_or(0) as f64);
        set(rows::RESYNC_FLOOR, settings.floor_bytes_per_sec as f64);
        set(rows::RESYNC_INFLATION, settings.target_inflation);
        set(rows::RESYNC_TARGET, settings.target_p99_us.unwrap_or(0) as f64 / 1e6);
        for (bound, seconds) in eta(&status) {
            m.cluster.set(rows::RESYNC_ETA, &[bound], seconds);
        }
        let waiting = self.waiting(sessions);
        for class in ResyncClass::ALL {
            let active = sessions.iter().filter(|s| s.class == class);
            let waiting = waiting.iter().filter(|m| m.class == class);
            let left: u64 = active.clone().map(|s| s.bytes_total.saturating_sub(s.bytes_done)).sum();
            let left = left.saturating_add(waiting.clone().map(|m| m.bytes).sum());
            m.cluster.set(rows::RESYNC_MOVES, &[class.name(), "active"], active.count() as f64);
            m.cluster.set(rows::RESYNC_MOVES, &[class.name(), "waiting"], waiting.count() as f64);
            m.cluster.set(rows::RESYNC_LEFT, &[class.name()], left as f64);
        }
        let limit = |s: &SessionInfo| LIMITS.iter().position(|l| *l == s.limited_by).unwrap_or(LIMITS.len() - 1);
        let mut limits = [0u32; LIMITS.len()];
        sessions.iter().for_each(|s| limits[limit(s)] += 1);
        for (reason, count) in LIMITS.iter().zip(limits) {
            m.cluster.set(rows::RESYNC_LIMITED_BY, &[reason], f64::from(count));
        }
    }

    /// Every daemon that serves metrics, for Prometheus' HTTP service discovery.
    pub(super) fn scrape_targets(&self) -> Vec<ScrapeTarget> {
        let map = self.manager.state.map();
        let cluster = map.cluster.to_string();
        let target = |url: &str, reached_at: IpAddr, labels: &[(&str, &str)]| {
            let (scheme, addr) = address_of(url, reached_at)?;
            let common = [("__scheme__", scheme), ("cluster", cluster.as_str())];
            let labels = labels.iter().chain(&common);
            let labels = labels.map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            Some(ScrapeTarget { targets: vec![addr.to_string()], labels })
        };
        let own = target(&self.admin_url, self.facts.coordinator_addr.ip(), &[("role", "coordinator")]);
        let nodes = map.nodes.values().filter(|n| n.admin_state != NodeAdminState::Removed);
        let nodes =
            nodes.filter_map(|n| target(&n.admin_url, n.addr.ip(), &[("role", "node"), ("node", n.name.as_str())]));
        let gateways = self.conns.values().filter_map(|c| match &c.role {
            PeerRole::Gateway(name) => {
                target(&c.admin_url, c.link.remote_addr().ip(), &[("role", "gateway"), ("gateway", name)])
            }
            _ => None,
        });
        own.into_iter().chain(nodes).chain(gateways).collect()
    }
}

/// An admin URL as scheme and address. One that listens everywhere is found where its daemon is reached otherwise.
fn address_of(url: &str, reached_at: IpAddr) -> Option<(&'static str, SocketAddr)> {
    let (scheme, rest) = match (url.strip_prefix("http://"), url.strip_prefix("https://")) {
        (Some(rest), _) => ("http", rest),
        (_, Some(rest)) => ("https", rest),
        _ => return None,
    };
    let addr: SocketAddr = rest.trim_end_matches('/').parse().ok()?;
    let ip = if addr.ip().is_unspecified() { reached_at } else { addr.ip() };
    Some((scheme, SocketAddr::new(ip, addr.port())))
}

/// The ETA by its bounds: 0 when nothing is to do, NaN while nothing is known.
fn eta(status: &ResyncStatus) -> [(&'static str, f64); 3] {
    let idle = status.pending_moves == 0 && status.bytes_left == 0;
    let (low, likely, high) = match status.eta_range_seconds {
        Some(span) => (span.low, span.likely, span.high),
        None if idle => (0.0, 0.0, 0.0),
        None => (f64::NAN, f64::NAN, f64::NAN),
    };
    [("low", low), ("likely", likely), ("high", high)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_one_that_others_can_reach() {
        let at: IpAddr = "10.0.0.7".parse().unwrap();
        let found = |url| address_of(url, at).map(|(scheme, addr)| format!("{scheme} {addr}"));
        assert_eq!(found("http://127.0.0.1:7400").as_deref(), Some("http 127.0.0.1:7400"));
        assert_eq!(found("https://0.0.0.0:7410/").as_deref(), Some("https 10.0.0.7:7410"));
        assert_eq!(found("https://[::]:7410").as_deref(), Some("https 10.0.0.7:7410"));
        assert_eq!(found(""), None);
        assert_eq!(found("https://host:7410"), None);
    }

    #[test]
    fn an_idle_cluster_is_done_and_an_unknown_rate_is_not() {
        let mut status = ResyncStatus::default();
        assert_eq!(eta(&status)[1], ("likely", 0.0));
        status.pending_moves = 1;
        assert!(eta(&status)[1].1.is_nan());
    }
}
