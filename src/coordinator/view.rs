//! What people and scripts see: status and lists, computed from the map and the observations.

use std::collections::{BTreeMap, BTreeSet};

use super::owner::{Figures, Owner};
use super::survey::Survey;
use crate::api::types::*;
use crate::core::cluster::command::Liveness;
use crate::core::cluster::{Disk, DiskAdminState, JobState, Node, NodeAdminState, PgConfig, Pool, ResyncClass, Volume};
use crate::core::ids::{DiskId, NodeId, PgId, VolumeId};
use crate::core::manager::decide::{PgState, state_of};
use crate::core::manager::plan::{self, FULL_RATIO};
use crate::core::manager::runtime::Life;
use crate::core::placement as place;
use crate::core::replica::StallReason;
use crate::core::throttle::LimitedBy;
use crate::wire::stats::{DiskStats, SessionStats};

/// Below this cap a learner may wait for its throttle longer than a session without progress counts as stalled: what is on
/// the way of one (4 MiB) takes more than 4 s.
const SLOW_CAP_BYTES_PER_SEC: u64 = 1 << 20;

/// What a node's figures say of guests.
fn foreground_of(figures: &Figures) -> ForegroundStatus {
    let stats = &figures.last.1;
    ForegroundStatus {
        read_iops: figures.per_sec(|s| s.foreground_reads).unwrap_or(0),
        write_iops: figures.per_sec(|s| s.foreground_writes).unwrap_or(0),
        p50_us: stats.foreground_p50_us,
        p99_us: stats.foreground_p99_us,
    }
}

/// What a gateway's figures say of its guest.
fn guest_of(figures: &Figures) -> Option<GuestStatus> {
    let stats = &figures.last.1;
    Some(GuestStatus {
        read_iops: figures.per_sec(|s| s.foreground_reads)?,
        write_iops: figures.per_sec(|s| s.foreground_writes)?,
        read_bytes_per_sec: figures.per_sec(|s| s.foreground_read_bytes)?,
        write_bytes_per_sec: figures.per_sec(|s| s.foreground_write_bytes)?,
        p50_us: stats.foreground_p50_us,
        p99_us: stats.foreground_p99_us,
    })
}

impl Owner {
    pub(super) fn node_state(&self, node: &Node) -> &'static str {
        match (node.admin_state, self.manager.runtime.nodes.get(&node.id).map(|v| v.life)) {
            (NodeAdminState::Removed, _) => "removed",
            (NodeAdminState::Maintenance, _) => "maintenance",
            (_, None | Some(Life::Down)) => "down",
            (_, Some(Life::Suspect)) => "suspect",
            (NodeAdminState::Draining, _) => "draining",
            (NodeAdminState::Active, _) => "up",
        }
    }

    pub(super) fn disk_state(&self, disk: &Disk) -> &'static str {
        let node = self.manager.state.map().nodes.get(&disk.node).map(|n| n.admin_state);
        match disk.admin_state {
            DiskAdminState::Removed => "removed",
            DiskAdminState::Failed => "failed",
            _ if self.manager.runtime.live_boot(disk.id).is_none() => "down",
            _ if self.manager.runtime.is_hung(disk.id) => "hung",
            _ if self.fill_of(disk.id) >= FULL_RATIO => "full",
            DiskAdminState::Draining => "draining",
            DiskAdminState::Active if node == Some(NodeAdminState::Draining) => "draining",
            DiskAdminState::Active => "up",
        }
    }

    pub(super) fn fill_of(&self, disk: DiskId) -> f64 {
        self.manager.runtime.disks.get(&disk).map_or(0.0, |d| d.used_bytes as f64 / (d.capacity_bytes.max(1)) as f64)
    }

    pub(super) fn node_name(&self, node: NodeId) -> String {
        self.manager.state.map().nodes.get(&node).map_or_else(|| node.to_string(), |n| n.name.clone())
    }

    /// For what the plan found no room, and where.
    pub(super) fn missing_capacity(&self) -> Vec<NamedMissing> {
        let missing = &self.manager.planning.job.missing_capacity;
        if missing.is_empty() {
            return Vec::new();
        }
        let (map, runtime) = (self.manager.state.map(), &self.manager.runtime);
        let topology = plan::topology(map, runtime, self.manager.now);
        let pools = map.pools.values().map(plan::pool_spec).collect();
        let map = super::whatif::named(place::Input { topology, pools, ..place::Input::default() }, map);
        missing.iter().map(|m| map.missing(m)).collect()
    }

    /// Counts of states over PGs.
    pub(super) fn pg_counts<'a>(&self, pgs: impl Iterator<Item = &'a PgConfig>) -> PgCounts {
        let moving = self.manager.planning.misplaced();
        let mut counts = PgCounts::default();
        for config in pgs {
            counts.total += 1;
            match state_of(self.manager.state.map(), &self.manager.runtime, config) {
                PgState::Clean => {
                    counts.clean += 1;
                    counts.misplaced += u64::from(moving.contains(&config.pg));
                }
                PgState::Degraded => counts.degraded += 1,
                PgState::Unavailable(_) => counts.unavailable += 1,
            }
        }
        counts
    }

    /// `GET /v1/status`.
    pub(super) fn status(&self) -> Status {
        self.status_of(&self.survey())
    }

    /// The same from a survey.
    pub(super) fn status_of(&self, survey: &Survey) -> Status {
        let map = self.manager.state.map();
        let sessions = self.sessions_of(&survey.learning);
        let (health, problems) = self.health(survey, &sessions);
        let nodes = map.nodes.values().map(|n| NodeStatus {
            id: n.id,
            name: n.name.clone(),
            state: self.node_state(n).to_owned(),
        });
        let lagging = self.manager.runtime.lagging();
        let missing_capacity = self.missing_capacity();
        let disks = map.disks.values().map(|d| {
            let load = survey.load(d.id);
            DiskStatus {
                id: d.id,
                node: self.node_name(d.node),
                state: self.disk_state(d).to_owned(),
                capacity_bytes: d.capacity_bytes,
                used_bytes: self.manager.runtime.disks.get(&d.id).map_or(0, |v| v.used_bytes),
                pg_replicas: load.0,
                primaries: load.1,
                lagging_ms: lagging.get(&d.id).map_or(0, |l| l.1),
            }
        });
        let disks: Vec<DiskStatus> = disks.collect();
        let usable = |d: &&DiskStatus| !matches!(d.state.as_str(), "removed" | "failed");
        Status {
            cluster: map.cluster.to_string(),
            health,
            health_reasons: problems.iter().map(|problem| problem.says.clone()).collect(),
            problems,
            feature_level: map.feature_level,
            map_version: map.version,
            pgs: survey.counts.clone(),
            resync: self.resync_status(&sessions),
            foreground: self.foreground(),
            nodes: nodes.collect(),
            provisioned_bytes: map.volumes.values().map(|v| v.size_bytes).sum(),
            used_bytes: disks.iter().filter(usable).map(|d| d.used_bytes).sum(),
            capacity_bytes: disks.iter().filter(usable).map(|d| d.capacity_bytes).sum(),
            disks,
            missing_capacity_bytes: missing_capacity.iter().map(|m| m.bytes).sum(),
            missing_capacity,
            plan_pending: self.manager.planning.is_pending()
                || !self.manager.fresh_disks.is_empty()
                || !self.manager.runtime.is_settled(),
        }
    }

    /// Figures of nodes that are heard.
    pub(super) fn live_figures(&self) -> impl Iterator<Item = &Figures> {
        self.live_figures_by_node().map(|(_, f)| f)
    }

    fn live_figures_by_node(&self) -> impl Iterator<Item = (NodeId, &Figures)> {
        let heard = |n: &NodeId| self.manager.runtime.nodes.get(n).is_some_and(|v| v.life != Life::Down);
        self.figures.iter().filter(move |(n, _)| heard(n)).map(|(n, f)| (*n, f))
    }

    pub(super) fn sessions(&self) -> Vec<SessionInfo> {
        let pgs = self.manager.state.map().pgs.values();
        let learning: Vec<PgId> = pgs.filter(|c| !c.learners.is_empty()).map(|c| c.pg).collect();
        self.sessions_of(&learning)
    }

    /// Those of these PGs.
    pub(super) fn sessions_of(&self, learning: &[PgId]) -> Vec<SessionInfo> {
        if learning.is_empty() {
            return Vec::new();
        }
        let map = self.manager.state.map();
        let mut reported = BTreeMap::new();
        for s in self.live_figures().flat_map(|f| &f.last.1.sessions) {
            reported.insert((PgId::from_u64(s.pg), DiskId(s.learner)), s);
        }
        // A source doesn't know what its target waits for.
        let disks = self.live_figures().flat_map(|f| &f.last.1.disks).filter(|d| !d.target_limited_by.is_empty());
        let at_target: BTreeMap<DiskId, &str> = disks.map(|d| (DiskId(d.disk), d.target_limited_by.as_str())).collect();
        let nothing = LimitedBy::Nothing.name();
        let mut out = Vec::new();
        for config in learning.iter().filter_map(|pg| map.pgs.get(pg)) {
            for learner in &config.learners {
                let disk = learner.replica.disk;
                let s = reported.get(&(config.pg, disk));
                let bytes = self.manager.pg_bytes.get(&config.pg).copied().unwrap_or(0);
                let at_source = s.map(|s| s.limited_by.as_str()).filter(|by| *by != nothing);
                let limited_by = at_source.or_else(|| at_target.get(&disk).copied()).unwrap_or(nothing);
                out.push(SessionInfo {
                    pg: config.pg.to_string(),
                    from: config.primary().unwrap_or_default().disk,
                    to: disk,
                    class: learner.class,
                    bytes_total: s.map_or(bytes, |s| s.bytes_total),
                    bytes_done: s.map_or(0, |s| s.bytes_done.min(s.bytes_total)),
                    bytes_sent: s.map_or(0, |s| s.bytes_sent),
                    limited_by: limited_by.chars().take(64).collect(),
                    stalled: s.and_then(|s| self.stall_info(s)),
                });
            }
        }
        out
    }

    /// `None` also while the operator himself holds resync back: then the learner waits for its own throttle.
    fn stall_info(&self, s: &SessionStats) -> Option<StallInfo> {
        let map = self.manager.state.map();
        let resync = &map.settings.resync;
        let (class, pg) = (ResyncClass::ALL.get(s.class as usize).copied().unwrap_or_default(), PgId::from_u64(s.pg));
        let node_of = |disk: DiskId| map.disks.get(&disk).map_or(NodeId(0), |d| d.node);
        let source = map.pgs.get(&pg).and_then(PgConfig::primary).map_or(NodeId(0), |p| node_of(p.disk));
        let nodes = [source, node_of(DiskId(s.learner))];
        let own_caps = nodes.iter().filter_map(|n| resync.nodes.get(n)?.cap_bytes_per_sec);
        let class_cap = resync.classes.get(&class).and_then(|c| c.cap_bytes_per_sec);
        let cap = own_caps.chain(resync.cap_bytes_per_sec).chain(class_cap).min();
        let held_back = resync.holds_back(class, pg.pool, nodes) || cap.is_some_and(|cap| cap < SLOW_CAP_BYTES_PER_SEC);
        if s.stalled_ms == 0 || held_back {
            return None;
        }
        let full = |figures: &Figures| {
            let mut pairs = figures.last.1.full_pgs.iter().zip(&figures.last.1.full_disks);
            pairs.any(|(pg, disk)| *pg == s.pg && *disk == s.learner)
        };
        let known = StallReason::from_code(s.stall_reason);
        // The learner's own node knows why the learner doesn't answer.
        let reason = match known {
            Some(StallReason::Learner) if self.figures.values().any(full) => Some(StallReason::LearnerFull),
            other => other,
        };
        let volume = VolumeId(s.stalled_volume);
        let name = || map.volumes.get(&volume).map_or_else(|| volume.to_string(), |v| v.name.clone());
        let at_chunk = volume != VolumeId(0);
        Some(StallInfo {
            seconds: s.stalled_ms as f64 / 1000.0,
            volume: at_chunk.then(name),
            chunk: at_chunk.then_some(s.stalled_chunk),
            reason: reason.map_or("a reason that this release does not know", StallReason::text).to_owned(),
            advice: reason.map_or("look at the primary's log", StallReason::advice).to_owned(),
        })
    }

    pub(super) fn resync_status(&self, sessions: &[SessionInfo]) -> ResyncStatus {
        let map = self.manager.state.map();
        let waiting = self.waiting(sessions);
        let to_do = self.left_of(sessions, &waiting);
        let left = to_do.bytes();
        let done: u64 = sessions.iter().map(|s| s.bytes_done).sum::<u64>() + self.job_bytes_done();
        let idle = sessions.is_empty() && waiting.is_empty();
        let rate = self.progress.per_sec(self.manager.now);
        // All of it waits for an operator, wherever the pause was set.
        let held = sessions.iter().all(|s| s.limited_by == LimitedBy::Paused.name())
            && waiting.iter().all(|m| self.holds_move(m))
            || self.is_held_back();
        let eta = self.progress.eta(&to_do, self.manager.now).filter(|_| !idle && !held);
        let mut limits: BTreeMap<&str, usize> = BTreeMap::new();
        for s in sessions {
            *limits.entry(s.limited_by.as_str()).or_default() += 1;
        }
        let most = limits.into_iter().max_by_key(|(_, n)| *n).map(|(l, _)| l);
        let limited_by = match most {
            _ if map.settings.resync.paused => "paused",
            Some(l) => l,
            None if waiting.is_empty() => "nothing",
            None if waiting.iter().all(|m| self.holds_move(m)) || self.manager.planning.job.paused => "paused",
            None => "slots",
        };
        ResyncStatus {
            active_moves: sessions.len() as u64,
            pending_moves: (sessions.len() + waiting.len()) as u64,
            bytes_total: if idle { 0 } else { done + left },
            bytes_done: self.totals.bytes_done(),
            bytes_left: left,
            rate_bytes_per_sec: rate,
            eta_seconds: eta.map(|e| e.likely),
            eta_range_seconds: eta,
            limited_by: limited_by.to_owned(),
            cap_bytes_per_sec: map.settings.resync.cap_bytes_per_sec,
            paused: map.settings.resync.paused,
            job: self.current_job().map(|j| j.id),
            job_paused: self.current_job().is_some_and(|j| j.state == JobState::Paused),
        }
    }

    pub(super) fn foreground(&self) -> ForegroundStatus {
        let mut sum = ForegroundStatus::default();
        for node in self.live_figures().map(foreground_of) {
            sum.p50_us = sum.p50_us.max(node.p50_us);
            sum.p99_us = sum.p99_us.max(node.p99_us);
            sum.read_iops += node.read_iops;
            sum.write_iops += node.write_iops;
        }
        sum
    }

    /// What nodes that are heard say of their disks.
    fn disk_stats(&self) -> BTreeMap<DiskId, &DiskStats> {
        self.live_figures().flat_map(|f| &f.last.1.disks).map(|d| (DiskId(d.disk), d)).collect()
    }

    fn disk_info(&self, disk: &Disk, survey: &Survey, stats: &BTreeMap<DiskId, &DiskStats>) -> DiskInfo {
        let load = survey.load(disk.id);
        let view = self.manager.runtime.disks.get(&disk.id);
        let known = |figure: fn(&DiskStats) -> u64| stats.get(&disk.id).map(|s| figure(s)).filter(|v| *v > 0);
        DiskInfo {
            id: disk.id,
            node: self.node_name(disk.node),
            state: self.disk_state(disk).to_owned(),
            class: disk.class.clone(),
            path: view.map_or_else(String::new, |v| v.path.clone()),
            capacity_bytes: disk.capacity_bytes,
            used_bytes: view.map_or(0, |v| v.used_bytes),
            pg_replicas: load.0,
            primaries: load.1,
            foreground_p99_us: known(|s| s.foreground_p99_us),
            target_p99_us: known(|s| s.target_p99_us),
            resync_limit_bytes_per_sec: known(|s| s.resync_rate_bytes_per_sec),
        }
    }

    /// All disks.
    pub(super) fn disk_infos(&self) -> Vec<DiskInfo> {
        let (survey, stats) = (self.survey(), self.disk_stats());
        self.manager.state.map().disks.values().map(|d| self.disk_info(d, &survey, &stats)).collect()
    }

    /// All nodes.
    pub(super) fn node_infos(&self) -> Vec<NodeInfo> {
        self.node_infos_of(&self.survey())
    }

    /// The same from a survey.
    pub(super) fn node_infos_of(&self, survey: &Survey) -> Vec<NodeInfo> {
        let (map, stats) = (self.manager.state.map(), self.disk_stats());
        let mut disks: BTreeMap<NodeId, Vec<DiskInfo>> = BTreeMap::new();
        for disk in map.disks.values() {
            disks.entry(disk.node).or_default().push(self.disk_info(disk, survey, &stats));
        }
        let heard: BTreeMap<NodeId, ForegroundStatus> =
            self.live_figures_by_node().map(|(n, f)| (n, foreground_of(f))).collect();
        let mut info = |n: &Node| NodeInfo {
            id: n.id,
            name: n.name.clone(),
            state: self.node_state(n).to_owned(),
            addr: n.addr.to_string(),
            admin_url: n.admin_url.clone(),
            pid: self.manager.runtime.nodes.get(&n.id).map_or(0, |v| v.pid),
            zone: n.zone.clone(),
            rack: n.rack.clone(),
            release: n.release.clone(),
            foreground: heard.get(&n.id).cloned().unwrap_or_default(),
            disks: disks.remove(&n.id).unwrap_or_default(),
        };
        map.nodes.values().map(&mut info).collect()
    }

    /// One pool.
    pub(super) fn pool_info(&self, pool: &Pool) -> PoolInfo {
        PoolInfo {
            id: pool.id,
            name: pool.name.clone(),
            replicas: pool.replicas,
            min_replicas: pool.min_replicas,
            failure_domain: pool.failure_domain,
            class: pool.class.clone(),
            pg_count: pool.pg_count,
            durability: if pool.durable_writes { "write" } else { "flush" }.to_owned(),
            volumes: self.manager.state.map().volumes.values().filter(|v| v.pool == pool.id).count() as u64,
        }
    }

    /// One volume.
    pub(super) fn volume_info(&self, volume: &Volume) -> VolumeInfo {
        let map = self.manager.state.map();
        let configs: Vec<&PgConfig> = volume.pgs().filter_map(|pg| map.pgs.get(&pg)).collect();
        let pgs = self.pg_counts(configs.iter().copied());
        let state = match &pgs {
            _ if volume.deleting => "deleting",
            c if c.unavailable > 0 => "unavailable",
            c if c.degraded > 0 => "degraded",
            _ => "ok",
        };
        let disks: BTreeSet<DiskId> = configs.iter().flat_map(|c| c.members.iter().map(|m| m.disk)).collect();
        VolumeInfo {
            id: volume.id,
            name: volume.name.clone(),
            pool: map.pools.get(&volume.pool).map_or_else(String::new, |p| p.name.clone()),
            size_bytes: volume.size_bytes,
            attached_to: (!volume.attached_to.is_empty()).then(|| volume.attached_to.clone()),
            incarnation: volume.incarnation,
            priority: volume.priority,
            iops_limit: volume.qos.iops,
            iops_burst: volume.qos.iops_burst,
            bandwidth_limit_bytes_per_sec: volume.qos.bytes_per_sec,
            bandwidth_burst_bytes: volume.qos.bytes_burst,
            share: volume.qos.share,
            state: state.to_owned(),
            stripes: volume.stripes.clone(),
            guest: self.guest_status(volume),
            pgs,
            disks: disks.into_iter().collect(),
            redundancy: None,
        }
    }

    /// What its gateway says of its guest.
    pub(super) fn guest_status(&self, volume: &Volume) -> Option<GuestStatus> {
        let (_, figures) = self.gateway_figures.get(&volume.attached_to)?;
        guest_of(figures)
    }

    /// One PG. `moving` are those that the plan moves.
    pub(super) fn pg_info(&self, config: &PgConfig, moving: &BTreeSet<PgId>) -> PgInfo {
        let map = self.manager.state.map();
        let (state, reason) = match state_of(map, &self.manager.runtime, config) {
            PgState::Clean => ("clean", String::new()),
            PgState::Degraded => ("degraded", String::new()),
            PgState::Unavailable(why) => ("unavailable", why),
        };
        let missing = config.members.iter().filter(|m| !self.manager.runtime.is_live(**m));
        PgInfo {
            id: config.pg.to_string(),
            pool: map.pools.get(&config.pg.pool).map_or_else(String::new, |p| p.name.clone()),
            state: state.to_owned(),
            misplaced: state == "clean" && moving.contains(&config.pg),
            generation: config.generation,
            members: config.members.clone(),
            missing: missing.map(|m| m.disk).collect(),
            learners: config.learners.iter().map(|l| l.replica.disk).collect(),
            bytes: self.manager.pg_bytes.get(&config.pg).copied().unwrap_or(0),
            reason,
        }
    }

    /// All PGs.
    pub(super) fn pg_infos(&self) -> Vec<PgInfo> {
        let moving = self.manager.planning.misplaced();
        self.manager.state.map().pgs.values().map(|c| self.pg_info(c, &moving)).collect()
    }
}
