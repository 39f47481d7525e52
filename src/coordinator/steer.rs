//! Brings what operators said about resync into effect as time passes, and shows both.
//!
//! Each second, and after each change, [`effective`] is asked what holds now; the map changes only when that does, and an
//! event says why. So nodes need no clock and no calendar, and while no coordinator runs, what held last stays.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::admin::OPERATOR;
use super::owner::Owner;
use super::progress::Left;
use super::resync;
use crate::api::calls::Answer;
use crate::api::types::{
    ClassProgress, DeadlineInfo, NodeLimits, OwnTarget, ResyncInfo, ResyncSet, SessionInfo, WindowInfo,
};
use crate::core::cluster::command::Command;
use crate::core::cluster::{
    JobState, NodeAdminState, ResyncClass, ResyncConfig, ResyncSettings, Settings, Target, Window,
};
use crate::core::ids::{DiskId, NodeId, PgId, PoolId};
use crate::core::manager::decide::{PgState, state_of};
use crate::core::manager::plan::JobMove;
use crate::core::manager::runtime::Life;
use crate::core::throttle::CLASSES;
use crate::core::throttle::deadline::{self, Outlook, Verdict};
use crate::core::throttle::missed::{Missed, News, Seen, TOLD_AFTER};
use crate::core::throttle::schedule::show_time;
use crate::core::throttle::settings::{Origin, Origins, ScopeOrigins, effective};
use crate::core::units::{HumanBytes, Instant};

/// A class's rate is the mean over so many looks, a second apart.
const LOOKS: usize = 4;

/// What the steering remembers from one look to the next.
#[derive(Debug, Default)]
pub(super) struct Steering {
    /// What the deadline needs on each disk.
    needed: Option<u64>,
    /// The window that held at the last look; outer `None`: this coordinator hasn't looked yet.
    window: Option<Option<Window>>,
    /// The deadline that was judged last, and how.
    judged: Option<(u64, Verdict)>,
    /// When an operator set the deadline here, or what wins over it.
    deadline_set: Option<Instant>,
    /// PGs that lacked a copy at the last look, with nothing planned for it.
    lacking: BTreeSet<PgId>,
    /// Bytes written so far, by class.
    written: VecDeque<(Instant, [u64; CLASSES])>,
    /// Why settings could not be changed, so that it is logged once.
    refused: String,
    /// Disks whose guests are over their target.
    missed: Missed,
}

impl Owner {
    /// `PATCH /v1/resync`.
    pub(super) fn set_resync(&mut self, request: &ResyncSet) -> Answer {
        let now = self.unix_seconds();
        let mut settings = self.manager.state.map().settings.clone();
        let said = resync::change(&mut settings.config, self.manager.state.map(), request, now)?;
        if request.dry_run {
            settings.resync = effective(&settings.config, now, self.steering.needed).0;
            self.probe(Command::SetSettings { settings: Box::new(settings.clone()) })?;
            return super::admin::json(&self.resync_info_with(&settings));
        }
        if request.deadline.is_some() || request.deadline_wins.is_some() {
            self.steering.deadline_set = Some(self.manager.now);
        }
        if settings.config.deadline_unix_seconds.is_none() {
            self.steering.needed = None;
        } else {
            self.look_at_deadline(&settings.config);
        }
        settings.resync = effective(&settings.config, now, self.steering.needed).0;
        let applied = self.apply(OPERATOR, Command::SetSettings { settings: Box::new(settings) })?;
        if !applied.changed.is_empty() {
            self.tell("resync-set", OPERATOR, said);
        }
        self.steer_resync();
        super::admin::json(&self.resync_info())
    }

    /// Once a second.
    pub(super) fn steer_resync(&mut self) {
        let now = self.unix_seconds();
        let old = self.manager.state.map().settings.clone();
        let mut settings = old.clone();
        self.forget_what_is_gone(&mut settings.config);
        if self.steering.window.is_none() && old.config.deadline_unix_seconds.is_some() {
            // A predecessor found that needed; until the nodes have reported nothing better is known.
            self.steering.needed = Some(old.resync.floor_bytes_per_sec);
        }
        let outlook = self.look_at_deadline(&settings.config);
        let (new, origins) = effective(&settings.config, now, self.steering.needed);
        settings.resync = new;
        if settings != old && !self.write_settings(settings.clone()) {
            return;
        }
        self.tell_of_window(&old, &settings, &origins);
        self.tell_of_deadline(&old, &settings, origins.all.floor, outlook);
    }

    fn write_settings(&mut self, settings: Settings) -> bool {
        match self.apply("coordinator", Command::SetSettings { settings: Box::new(settings) }) {
            Ok(_) => {
                self.steering.refused.clear();
                true
            }
            Err(error) => {
                let text = error.to_string();
                if self.steering.refused != text {
                    tracing::warn!("resync's settings stay as they are: {text}");
                    self.steering.refused = text;
                }
                false
            }
        }
    }

    fn unix_seconds(&self) -> u64 {
        self.manager.unix_ms / 1000
    }

    /// Ids are never reused: what was said of a thing that is gone means nothing any more.
    fn forget_what_is_gone(&self, config: &mut ResyncConfig) {
        let map = self.manager.state.map();
        config.volumes.retain(|id, _| map.volumes.contains_key(id));
        config.pools.retain(|id, _| map.pools.contains_key(id));
        config.paused_pools.retain(|id| map.pools.contains_key(id));
        config.nodes.retain(|id, _| map.nodes.get(id).is_some_and(|n| n.admin_state != NodeAdminState::Removed));
    }

    fn tell_of_window(&mut self, old: &Settings, new: &Settings, origins: &Origins) {
        let before = self.steering.window.replace(origins.window);
        let profile = new.resync.profile.name();
        match (before, origins.window) {
            (Some(before), now) if before == now => {}
            (None, _) if old.resync.profile == new.resync.profile => {}
            (_, Some(window)) => {
                self.tell("resync-window", "coordinator", format!("Window {window} begins: profile {profile}."));
            }
            (Some(Some(window)), None) => {
                self.tell("resync-window", "coordinator", format!("Window {window} ends: profile {profile}."));
            }
            (_, None) => {
                self.tell("resync-window", "coordinator", format!("No window holds any more: profile {profile}."));
            }
        }
    }

    fn tell_of_deadline(&mut self, old: &Settings, new: &Settings, floor: Origin, outlook: Option<Outlook>) {
        let Some(deadline) = new.config.deadline_unix_seconds else {
            self.steering.judged = None;
            return;
        };
        let at = show_time(deadline, &new.config.time_zone);
        let (before, now) = (old.resync.floor_bytes_per_sec, new.resync.floor_bytes_per_sec);
        if before != now && floor == Origin::Deadline {
            let text = format!(
                "The deadline {at} needs a floor of {}/s a disk; it was {}/s.",
                HumanBytes(now),
                HumanBytes(before)
            );
            self.tell("resync-deadline", "coordinator", text);
        }
        let Some(outlook) = outlook else { return };
        let verdict = deadline::judge(&outlook);
        let over = outlook.seconds_left == 0;
        let last = self.steering.judged.filter(|(of, _)| *of == deadline).map(|(_, verdict)| verdict);
        // What became of a deadline is settled when it passes.
        if matches!(last, Some(Verdict::Missed { .. })) || over && last == Some(Verdict::Met) {
            return;
        }
        let turned = last.is_none_or(|last| {
            last.is_bad() != verdict.is_bad() || (last == Verdict::Met) != (verdict == Verdict::Met)
        });
        if turned && (last.is_some() || verdict.is_bad()) {
            self.tell("resync-deadline", "coordinator", format!("The deadline {at} {verdict}."));
        }
        self.steering.judged = Some((deadline, verdict));
    }

    /// Looks at what the deadline needs; none if there is none, or if too little is known yet.
    fn look_at_deadline(&mut self, config: &ResyncConfig) -> Option<Outlook> {
        let deadline = config.deadline_unix_seconds?;
        if !self.manager.runtime.is_settled() || self.manager.planning.is_pending() {
            return None;
        }
        let seconds_left = deadline.saturating_sub(self.unix_seconds());
        let sessions = self.sessions();
        let waiting = self.waiting(&sessions);
        let repairs: Vec<&SessionInfo> = sessions.iter().filter(|s| s.class.is_repair()).collect();
        let waiting: Vec<&JobMove> = waiting.into_iter().filter(|m| m.class.is_repair()).collect();
        let any = !repairs.is_empty() || !waiting.is_empty();
        let left = self.left_of(&sessions, &waiting);
        let left_bytes = repairs.iter().map(|s| s.bytes_total.saturating_sub(s.bytes_done)).sum::<u64>()
            + waiting.iter().map(|m| m.bytes).sum::<u64>();
        let busiest = if any { left.busiest() } else { 0 };
        let needed = deadline::needed_floor(self.steering.needed, busiest, seconds_left);
        let map = self.manager.state.map();
        let r = &map.settings.resync;
        let node_of = |disk: DiskId| map.disks.get(&disk).map_or(NodeId(0), |d| d.node);
        let disks: BTreeSet<DiskId> = left.disks().collect();
        let caps = disks.iter().map(|d| r.nodes.get(&node_of(*d)).map_or(r.cap_bytes_per_sec, |n| n.cap_bytes_per_sec));
        let class_cap = r.classes.get(&ResyncClass::Repair).and_then(|c| c.cap_bytes_per_sec);
        let held = |s: &&&SessionInfo| {
            s.pg.parse().is_ok_and(|pg: PgId| r.holds_back(s.class, pg.pool, [node_of(s.from), node_of(s.to)]))
        };
        let source = |m: &JobMove| map.pgs.get(&m.pg).and_then(|c| c.primary()).map_or(NodeId(0), |p| node_of(p.disk));
        let waits = |m: &&&JobMove| r.holds_back(m.class, m.pg.pool, [source(m), node_of(m.to)]);
        let job_paused = self.current_job().is_some_and(|j| j.state == JobState::Paused);
        let paused =
            any && (r.paused || job_paused || repairs.iter().any(|s| held(&s)) || waiting.iter().any(|m| waits(&m)));
        let planned: BTreeSet<_> = waiting.iter().map(|m| m.pg).collect();
        let lacks = map.pgs.values().filter(|c| {
            c.learners.is_empty()
                && !planned.contains(&c.pg)
                && !matches!(state_of(map, &self.manager.runtime, c), PgState::Clean)
        });
        let lacking: BTreeSet<PgId> = lacks.map(|c| c.pg).collect();
        let over = self.guests(|d| disks.contains(&d)).filter(|(p99, target)| p99 > target);
        let outlook = Outlook {
            seconds_left,
            left_bytes: if any { left_bytes.max(1) } else { 0 },
            lacking_pgs: lacking.len() as u64,
            unplanned_pgs: lacking.intersection(&self.steering.lacking).count() as u64,
            needed_bytes_per_sec: needed,
            cap_bytes_per_sec: caps.flatten().chain(class_cap).min(),
            paused,
            set_seconds_ago: self.steering.deadline_set.map_or(u64::MAX, |at| self.manager.now.since(at).as_secs()),
            eta_seconds: self.progress.eta(&left, self.manager.now).map(|e| e.likely),
            over_target_us: over,
            wins: config.deadline_wins,
        };
        self.steering.needed = needed;
        self.steering.lacking = lacking;
        Some(outlook)
    }

    /// Guests' p99 and target, microseconds, on the disk that is furthest from its own.
    fn guests(&self, counts: impl Fn(DiskId) -> bool) -> Option<(u64, u64)> {
        let disks = self.live_figures().flat_map(|f| &f.last.1.disks).filter(|d| counts(DiskId(d.disk)));
        let known =
            disks.map(|d| (d.foreground_p99_us, d.target_p99_us)).filter(|(p99, target)| *p99 > 0 && *target > 0);
        known.max_by(|a, b| (a.0 as f64 / a.1 as f64).total_cmp(&(b.0 as f64 / b.1 as f64)))
    }

    /// Notes what was written so far, once a second.
    pub(super) fn note_written(&mut self) {
        let by_class = self.totals.by_class();
        let now = std::array::from_fn(|i| by_class.get(i).copied().unwrap_or(0));
        self.steering.written.push_back((self.manager.now, now));
        while self.steering.written.len() > LOOKS {
            self.steering.written.pop_front();
        }
    }

    /// Tells, once a second, where guests have gone over their target for a while beside copies.
    pub(super) fn tell_of_targets(&mut self, sessions: &[SessionInfo]) {
        let used: BTreeSet<DiskId> = sessions.iter().flat_map(|s| [s.from, s.to]).collect();
        let disks = self.live_figures().flat_map(|f| &f.last.1.disks).filter(|d| used.contains(&DiskId(d.disk)));
        let seen = disks.filter(|d| d.foreground_p99_us > 0 && d.target_p99_us > 0);
        let seen =
            seen.map(|d| (DiskId(d.disk), Seen { p99_us: d.foreground_p99_us, target_us: d.target_p99_us })).collect();
        for news in self.steering.missed.look(&seen) {
            let node = |disk: DiskId| {
                self.manager.state.map().disks.get(&disk).map_or_else(String::new, |d| self.node_name(d.node))
            };
            let ms = |us: u64| us as f64 / 1000.0;
            match news {
                News::Missed(disk, seen) => {
                    let text = format!(
                        "Guests of disk {disk} of {} have a p99 of {:.1} ms, over the target of {:.1} ms, for {TOLD_AFTER} s: copies \
                         there are slowed down to their floor (`evenkeel resync status` says how far).",
                        node(disk),
                        ms(seen.p99_us),
                        ms(seen.target_us)
                    );
                    self.tell("resync-target-missed", "coordinator", text);
                }
                News::Met(disk) => {
                    let text = format!("Guests of disk {disk} of {} are within their target again.", node(disk));
                    self.tell("resync-target-met", "coordinator", text);
                }
            }
        }
    }

    fn rate_of(&self, class: ResyncClass) -> u64 {
        let (Some((from, first)), Some((to, last))) = (self.steering.written.front(), self.steering.written.back())
        else {
            return 0;
        };
        let seconds = to.since(*from).as_secs_f64();
        let bytes = last[class as usize].saturating_sub(first[class as usize]);
        if seconds > 0.5 { (bytes as f64 / seconds) as u64 } else { 0 }
    }

    fn class_progress(&self, sessions: &[SessionInfo]) -> Vec<ClassProgress> {
        let waiting = self.waiting(sessions);
        let mut all = Vec::new();
        for class in ResyncClass::ALL {
            let running: Vec<&SessionInfo> = sessions.iter().filter(|s| s.class == class).collect();
            let waiting: Vec<&JobMove> = waiting.iter().copied().filter(|m| m.class == class).collect();
            if running.is_empty() && waiting.is_empty() {
                continue;
            }
            let left: u64 = running.iter().map(|s| s.bytes_total.saturating_sub(s.bytes_done)).sum();
            let bytes_left = left.saturating_add(waiting.iter().map(|m| m.bytes).sum());
            let all_wait_paused = self.manager.planning.job.paused || waiting.iter().all(|m| self.holds_move(m));
            let rate = self.rate_of(class);
            let mut limits: BTreeMap<&str, usize> = BTreeMap::new();
            running.iter().for_each(|s| *limits.entry(&s.limited_by).or_default() += 1);
            let most = limits.into_iter().max_by_key(|(_, n)| *n).map(|(l, _)| l);
            all.push(ClassProgress {
                class,
                moves_active: running.len() as u64,
                moves_waiting: waiting.len() as u64,
                bytes_left,
                rate_bytes_per_sec: rate,
                eta_seconds: (rate > 0).then(|| bytes_left as f64 / rate as f64),
                limited_by: most.unwrap_or(if all_wait_paused { "paused" } else { "slots" }).to_owned(),
            });
        }
        all
    }

    /// This move waits until an operator resumes its class, its pool or one of its nodes.
    pub(super) fn holds_move(&self, m: &JobMove) -> bool {
        let map = self.manager.state.map();
        let node_of = |disk: DiskId| map.disks.get(&disk).map_or(NodeId(0), |d| d.node);
        let source = map.pgs.get(&m.pg).and_then(|c| c.primary()).map_or(NodeId(0), |p| node_of(p.disk));
        map.settings.resync.holds_back(m.class, m.pg.pool, [source, node_of(m.to)])
    }

    /// `GET /v1/resync`.
    pub(super) fn resync_info(&self) -> ResyncInfo {
        self.resync_info_with(&self.manager.state.map().settings)
    }

    /// The same with these settings in effect.
    fn resync_info_with(&self, settings: &Settings) -> ResyncInfo {
        let map = self.manager.state.map();
        let (r, config) = (&settings.resync, &settings.config);
        let (_, origins) = effective(config, self.unix_seconds(), self.steering.needed);
        let by_class = self.totals.by_class();
        let name = |(i, c): (usize, &ResyncClass)| (c.name().to_owned(), by_class.get(i).copied().unwrap_or(0));
        let pending = map.nodes.values().filter(|n| {
            let view = self.manager.runtime.nodes.get(&n.id);
            n.admin_state != NodeAdminState::Removed && view.is_none_or(|v| v.life != Life::Up || v.conn.is_none())
        });
        let pool = |id: &PoolId| map.pools.get(id).map_or_else(|| id.to_string(), |p| p.name.clone());
        let volume = |id| map.volumes.get(id).map(|v| v.name.clone());
        let own = |t: &Target| OwnTarget { target_inflation: t.inflation, target_p99_us: t.p99_us };
        let sessions = self.sessions();
        let guests = self.guests(|_| true);
        ResyncInfo {
            status: self.resync_status(&sessions),
            cap_bytes_per_sec: r.cap_bytes_per_sec,
            floor_bytes_per_sec: r.floor_bytes_per_sec,
            target_inflation: r.target_inflation,
            target_p99_us: r.target_p99_us,
            paused: r.paused,
            profile: r.profile,
            origins: named(origins.all),
            classes: r.classes.clone(),
            nodes: r.nodes.keys().map(|id| (self.node_name(*id), node_limits(r, *id, &origins))).collect(),
            pools: r.pools.iter().map(|(id, t)| (pool(id), own(t))).collect(),
            volumes: r.volumes.iter().filter_map(|(id, t)| Some((volume(id)?, own(t)))).collect(),
            paused_pools: r.paused_pools.iter().map(pool).collect(),
            windows: config
                .windows
                .iter()
                .map(|w| WindowInfo { window: w.to_string(), holds: origins.window == Some(*w) })
                .collect(),
            time_zone: if config.time_zone.is_empty() { "UTC".to_owned() } else { config.time_zone.clone() },
            deadline: self.deadline_info(config),
            foreground_p99_us: guests.map(|(p99, _)| p99),
            foreground_target_us: guests.map(|(_, target)| target),
            progress: self.class_progress(&sessions),
            bytes_by_class: ResyncClass::ALL.iter().enumerate().map(name).collect(),
            sessions,
            pending_nodes: pending.map(|n| n.name.clone()).collect(),
        }
    }

    fn deadline_info(&self, config: &ResyncConfig) -> Option<DeadlineInfo> {
        let deadline = config.deadline_unix_seconds?;
        let judged = self.steering.judged.filter(|(of, _)| *of == deadline).map(|(_, verdict)| verdict);
        Some(DeadlineInfo {
            unix_seconds: deadline,
            at: show_time(deadline, &config.time_zone),
            wins: config.deadline_wins,
            needed_bytes_per_sec: self.steering.needed,
            holds: judged.is_none_or(|verdict| !verdict.is_bad()),
            verdict: judged.unwrap_or(Verdict::Unknown).to_string(),
        })
    }

    /// For health: a deadline that can't hold.
    pub(super) fn deadline_warning(&self) -> Option<String> {
        let config = &self.manager.state.map().settings.config;
        let info = self.deadline_info(config).filter(|info| !info.holds)?;
        Some(format!("The deadline {} {}.", info.at, info.verdict))
    }

    /// For health: what an operator has paused besides everything.
    pub(super) fn pause_warning(&self) -> Option<String> {
        let map = self.manager.state.map();
        let r = &map.settings.resync;
        let classes =
            r.classes.iter().filter(|(_, own)| own.paused).map(|(class, _)| format!("class {}", class.name()));
        let nodes = r.nodes.iter().filter(|(_, own)| own.paused).map(|(id, _)| format!("node {}", self.node_name(*id)));
        let pools = r.paused_pools.iter().filter_map(|id| map.pools.get(id)).map(|p| format!("pool {}", p.name));
        let all: Vec<String> = classes.chain(nodes).chain(pools).collect();
        (!all.is_empty()).then(|| {
            format!("Resync of {} is paused: `evenkeel resync resume` with its name lets it go on.", all.join(", "))
        })
    }
}

fn named(origins: ScopeOrigins) -> BTreeMap<String, String> {
    let all =
        [("profile", origins.profile), ("cap", origins.cap), ("floor", origins.floor), ("target", origins.target)];
    all.into_iter().map(|(what, origin)| (what.to_owned(), origin.to_string())).collect()
}

fn node_limits(r: &ResyncSettings, node: NodeId, origins: &Origins) -> NodeLimits {
    let Some(own) = r.nodes.get(&node) else { return NodeLimits::default() };
    NodeLimits {
        cap_bytes_per_sec: own.cap_bytes_per_sec,
        floor_bytes_per_sec: own.floor_bytes_per_sec,
        target_inflation: own.target_inflation,
        target_p99_us: own.target_p99_us,
        paused: own.paused,
        origins: named(origins.nodes.get(&node).copied().unwrap_or_default()),
    }
}

impl Left {
    /// What the busiest disk has to read, or to write, in bytes.
    pub(super) fn busiest(&self) -> u64 {
        self.by_disk().map(|(_, bytes)| bytes).max().unwrap_or(0)
    }

    /// Disks that have something to read or to write.
    pub(super) fn disks(&self) -> impl Iterator<Item = DiskId> + '_ {
        self.by_disk().map(|(disk, _)| disk)
    }
}
