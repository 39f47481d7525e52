//! PacificA's configuration manager: what the coordinator knows and decides, without its links, store and clock.
//!
//! Purpose: reports of nodes and gateways go in, changes of the cluster map come out. The daemon (`coordinator/owner`)
//! and the simulator drive the same code.
//!
//! Call order, one turn after the other: [`Manager::begin`] with the time; the `handle_*` of what arrived;
//! [`Manager::judge`]; [`Manager::decide`]; [`Manager::take_plan_input`], whose plan comes back to
//! [`Manager::handle_planned`] in a later turn; [`Manager::purges_due`]; then the caller makes
//! [`Manager::take_changed`] durable before it shows any effect to anyone.
//!
//! Invariants: only [`Manager::state`] is stored. The rest is observed or planned anew after a restart: a manager that
//! has just started judges nobody until all had time to be heard.
//!
//! Non-goals: who may say what (the daemon checks certificates), what people see (`coordinator/view`).

mod attach;
pub mod decide;
pub mod force;
pub mod jobs;
pub mod pace;
pub mod plan;
mod reports;
pub mod runtime;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

pub use self::attach::{Attachment, Waiter};
use self::decide::{Counts, Observed};
use self::plan::Planning;
pub use self::reports::{Copy, Copying, Proposed, RegisteredDisk, Registration, Report, ReportedDisk};
use self::runtime::{ConnId, Judgement, Life, Limits, Runtime};
use super::cluster::command::{Applied, Change, Command, Context, Proposal, RecordKey, Refusal, SeenMap};
use super::cluster::state::ClusterState;
use super::cluster::{PgConfig, Replica};
use super::ids::{DiskId, Generation, NodeId, PgId, VolumeId};
use super::placement as place;
use super::units::Instant;

/// A new primary that hasn't begun to serve after this time is no mere change of it: leases last 0.6 s, reports come each second.
const TAKES_OVER: Duration = Duration::from_secs(3);
/// Who changes things without being asked.
const COORDINATOR: &str = "coordinator";
/// How often a purge is asked for again until it is done. In between the disk gets no new copy of that PG.
const PURGE_INTERVAL: Duration = Duration::from_secs(5);
/// Purges in flight per turn: a purge frees slots one by one on the disk.
const PURGES_PER_TURN: usize = 64;
/// How often is looked for what time alone changes: the grace, reorders, a gateway's word, purges.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// A disk that was given an id and never came holds up `wait clean` no longer than this.
const FRESH_DISK_KEPT: Duration = Duration::from_secs(30);
/// A plan that could not place everything is tried again after this.
const REPLAN_INTERVAL: Duration = Duration::from_secs(30);

/// Something for the event log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Short kind, as `node-up`.
    pub kind: &'static str,
    /// Who.
    pub actor: String,
    /// One sentence.
    pub text: String,
}

/// A copy that nobody needs any more, and whom to ask to give it up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Purge {
    /// The node's control connection.
    pub conn: ConnId,
    /// The PG.
    pub pg: PgId,
    /// The disk.
    pub disk: DiskId,
    /// A newer copy stays.
    pub up_to: Generation,
}

/// The configuration manager.
#[derive(Debug)]
pub struct Manager {
    /// The map: all that is stored.
    pub state: ClusterState,
    /// What is observed.
    pub runtime: Runtime,
    /// The job that runs, and when to plan.
    pub planning: Planning,
    /// Bytes of a PG, as its primary says.
    pub pg_bytes: BTreeMap<PgId, u64>,
    /// Disks that were given an id and have not come yet.
    pub fresh_disks: BTreeMap<DiskId, Instant>,
    /// As of this turn.
    pub now: Instant,
    /// The wall clock as of this turn, for people: when jobs began and ended.
    pub unix_ms: u64,
    outdated: Option<Refusal>,
    told: Vec<Told>,
    changed: BTreeSet<RecordKey>,
    standby: BTreeMap<VolumeId, VecDeque<Waiter>>,
    pgs_dirty: bool,
    purges: BTreeMap<(PgId, DiskId), Instant>,
    planned_as_lost: BTreeSet<NodeId>,
    passed_at: Instant,
    looked_at: Instant,
    planned_at: Instant,
}

impl Manager {
    /// With the map as it was stored, and nothing observed yet.
    pub fn new(state: ClusterState, now: Instant, limits: Limits) -> Self {
        Manager {
            state,
            runtime: Runtime::new(now, limits),
            planning: Planning::default(),
            pg_bytes: BTreeMap::new(),
            fresh_disks: BTreeMap::new(),
            now,
            unix_ms: 0,
            outdated: None,
            told: Vec::new(),
            changed: BTreeSet::new(),
            standby: BTreeMap::new(),
            pgs_dirty: true,
            purges: BTreeMap::new(),
            planned_as_lost: BTreeSet::new(),
            passed_at: now,
            looked_at: now,
            planned_at: now,
        }
    }

    /// A turn begins.
    pub fn begin(&mut self, now: Instant) {
        self.now = now;
    }

    /// Records that changed since it was asked last: they must be stored before anybody sees an effect.
    pub fn take_changed(&mut self) -> BTreeSet<RecordKey> {
        std::mem::take(&mut self.changed)
    }

    /// True if something must be stored.
    pub fn has_changed(&self) -> bool {
        !self.changed.is_empty()
    }

    /// What happened, for the event log.
    pub fn take_told(&mut self) -> Vec<Told> {
        std::mem::take(&mut self.told)
    }

    /// Adds an event.
    pub fn tell(&mut self, kind: &'static str, actor: &str, text: String) {
        self.told.push(Told { kind, actor: actor.to_owned(), text });
    }

    /// Applies a command.
    ///
    /// # Errors
    /// It doesn't fit the map.
    pub fn apply(&mut self, actor: &str, command: Command) -> Result<Applied, Refusal> {
        self.check_not_outdated()?;
        let applied = self.state.apply(command, &Context { liveness: &self.runtime })?;
        for key in &applied.changed {
            match key {
                RecordKey::Disk(id) => self.runtime.follow_disk(self.state.map(), *id),
                RecordKey::Pg(id) => drop(self.runtime.changed_at.insert(*id, self.now)),
                _ => {}
            }
        }
        self.pgs_dirty |= !applied.changed.is_empty();
        self.changed.extend(&applied.changed);
        for happening in &applied.happenings {
            self.tell(happening.kind, actor, happening.text.clone());
        }
        Ok(applied)
    }

    /// What [`Manager::apply`] would answer; changes nothing.
    ///
    /// # Errors
    /// It doesn't fit the map.
    pub fn probe(&self, command: Command) -> Result<(), Refusal> {
        self.check_not_outdated()?;
        self.state.probe(command, &Context { liveness: &self.runtime }).map(drop)
    }

    /// A node or gateway that comes has seen this version of the map. If the map here is an older one, it was restored from a
    /// copy that is not the cluster's map any more: from now on nothing in it changes, and nobody is taken. Else its versions
    /// would catch up with those that nodes have seen, and they would take the one for the other (R4).
    ///
    /// # Errors
    /// Somebody has seen a newer map.
    pub fn handle_seen(&mut self, who: &str, seen: SeenMap) -> Result<(), Refusal> {
        let map = self.state.map();
        let have = SeenMap { epoch: map.epoch, version: map.version };
        if seen > have && self.outdated.is_none() {
            self.outdated = Some(Refusal::MapOutdated { who: who.to_owned(), seen, have });
            let says = format!("The map here is version {have}, {who} has seen {seen}: nothing is changed any more.");
            self.tell("map-outdated", COORDINATOR, says);
        }
        self.check_not_outdated()
    }

    /// Why nothing can be changed, if a node has seen a newer map than this one.
    pub fn outdated(&self) -> Option<&Refusal> {
        self.outdated.as_ref()
    }

    fn check_not_outdated(&self) -> Result<(), Refusal> {
        self.outdated.clone().map_or(Ok(()), Err)
    }

    /// Applies a decision of the coordinator's own; one that doesn't fit any more is made again from the new state.
    fn apply_quietly(&mut self, command: Command) {
        if let Command::AddLearner { pg, learner } = &command
            && let Some(config) = self.state.map().pgs.get(pg)
        {
            let asked = self.purges.get(&(*pg, learner.replica.disk));
            if asked.is_some_and(|at| self.now.since(*at) < PURGE_INTERVAL) {
                return; // The disk may be removing this very copy; in the end it keeps what its map lists.
            }
            let config = config.clone();
            self.runtime.note_learner(learner.replica, &config);
        }
        let dropped = match &command {
            Command::DropLearner { pg, replica } => Some((*pg, *replica)),
            _ => None,
        };
        // A refusal: overtaken by a change of this turn.
        let done = self.apply(COORDINATOR, command).is_ok();
        if let Some((pg, replica)) = dropped.filter(|_| done)
            && let Some(config) = self.state.map().pgs.get(&pg)
        {
            self.runtime.note_learner(replica, config);
        }
    }

    /// Something that is not in the map changed for PGs.
    pub fn touch_pgs(&mut self) {
        self.pgs_dirty = true;
    }

    // ---- reports ----

    /// A node registered, on this connection; its node and disks are in the map. Gives the connection that it replaces.
    pub fn handle_registered(&mut self, conn: ConnId, name: &str, registration: &Registration) -> Option<ConnId> {
        let old = self.runtime.handle_registered(conn, registration, self.now);
        for disk in &registration.disks {
            self.fresh_disks.remove(&disk.disk);
            if disk.failed {
                self.fail_disk(name, disk.disk);
            }
            self.runtime.follow_disk(self.state.map(), disk.disk);
        }
        self.note_first_copies(registration.node);
        self.tell("node-registered", name, format!("Node {name} registered with {} disks.", registration.disks.len()));
        // It counts as found, and what it was asked before is forgotten by both.
        let disks = &self.runtime.disks;
        self.purges.retain(|(_, disk), _| disks.get(disk).is_some_and(|d| d.node != registration.node));
        self.planned_as_lost.remove(&registration.node);
        self.planning.touch(self.now);
        self.pgs_dirty = true;
        old
    }

    /// The first configuration acks nothing before every member has persisted it (R3): a member whose disk has no record
    /// yet misses nothing. It is noted while that can be seen, for the configurations that follow.
    fn note_first_copies(&mut self, node: NodeId) {
        let map = self.state.map();
        for (disk, view) in self.runtime.disks.iter_mut().filter(|(_, v)| v.node == node) {
            let member = Replica { disk: *disk, boot: view.boot };
            for config in map.pgs.values().filter(|c| c.generation.n == 1 && c.is_member(member)) {
                let first = Copy { generation: Generation::default(), complete: true, flush_mark: 0 };
                view.copies.entry(config.pg).or_insert(first);
            }
        }
    }

    /// A connection ended; `by_process` if the process ended it or has restarted, rather than fell silent.
    pub fn handle_closed(&mut self, conn: ConnId, by_process: bool) {
        for queue in self.standby.values_mut() {
            queue.retain(|w| w.conn != conn);
        }
        if let Some(node) = self.runtime.handle_closed(conn, by_process, self.now) {
            self.note(Judgement::Down(node));
        }
    }

    /// R15: the disk is out, and its PGs are repaired without grace.
    fn fail_disk(&mut self, actor: &str, disk: DiskId) {
        let touched = self.state.map().pgs.values().filter(|c| c.members.iter().any(|m| m.disk == disk));
        let touched: Vec<PgId> = touched.map(|c| c.pg).collect();
        let applied = self.apply(actor, Command::DiskFailed { disk });
        if applied.is_ok_and(|a| !a.changed.is_empty()) {
            self.runtime.no_grace.extend(touched);
            let what = format!("disk {} failed", force::disk_on_node(self.state.map(), disk));
            self.planning.touch_for(self.now, COORDINATOR, what);
        }
    }

    /// A primary proposes a change. Gives whether it was carried out, or why not, and the configuration now.
    pub fn handle_proposal(&mut self, from: NodeId, p: Proposed) -> (Result<(), String>, Option<PgConfig>) {
        let Proposed { id, pg, base, change, reason } = p;
        if let Some(Change::RemoveMembers(replicas)) = &change {
            let serves = self.state.map().pgs.get(&pg).is_some_and(|c| c.generation == base);
            if serves && replicas.len() <= super::cluster::state::REPLICAS_MAX as usize {
                self.runtime.handle_accusation(pg, replicas, self.now);
            }
        }
        let removed: Vec<Replica> = match &change {
            Some(Change::RemoveMembers(replicas)) => replicas.clone(),
            _ => Vec::new(),
        };
        let promoted = match &change {
            Some(Change::PromoteLearner(replica)) => Some(*replica),
            _ => None,
        };
        let actor = self.state.map().nodes.get(&from).map_or_else(|| from.to_string(), |n| n.name.clone());
        let outcome = match change {
            Some(change) => {
                let proposal = Proposal { id, pg, base, from, change, reason };
                self.apply(&actor, Command::Propose(proposal)).map(|a| !a.changed.is_empty()).map_err(|e| e.to_string())
            }
            None => Err("the proposal names no change that this release knows, or nobody".to_owned()),
        };
        // An outcome that is only read again uses up no word.
        if outcome == Ok(true) {
            removed.iter().for_each(|r| self.runtime.handle_removed(pg, *r, self.now));
        }
        let config = self.state.map().pgs.get(&pg).cloned();
        if let (Ok(_), Some(replica), Some(config)) = (&outcome, promoted, &config) {
            self.runtime.note_copy(replica, config, true);
            // One that was away when its copy's successor was made comes back to where no copy is wanted.
            if outcome == Ok(true) && !Runtime::is_active(self.state.map(), replica.disk) {
                let what = format!("a copy came back to {}, which is to be empty", replica.disk);
                self.planning.touch_for(self.now, COORDINATOR, what);
            }
        }
        (outcome.map(drop), config)
    }

    /// A node's figures.
    pub fn handle_report(&mut self, node: NodeId, report: Report) {
        for reported in &report.disks {
            let disk = reported.disk;
            let Some(view) = self.runtime.disks.get_mut(&disk).filter(|d| d.node == node) else { continue };
            (view.used_bytes, view.capacity_bytes) = (reported.used_bytes, reported.capacity_bytes);
            let was_hung = std::mem::replace(&mut view.hung_ms, reported.hung_ms) > 0;
            let fails = reported.failed && !view.failed;
            if was_hung != (reported.hung_ms > 0) {
                self.note_hung(disk, reported.hung_ms);
            }
            if fails {
                self.fail_disk(&node.to_string(), disk);
                self.touch_pgs();
            }
        }
        for (pg, bytes) in &report.pg_bytes {
            if self.state.map().pgs.contains_key(pg) {
                self.pg_bytes.insert(*pg, *bytes);
            }
        }
        // Copies of pools that are gone are purged by what the disk said first.
        let map = self.state.map();
        let known: Vec<_> = report.copies.iter().filter(|(_, pg, _)| map.pgs.contains_key(pg)).copied().collect();
        self.runtime.handle_copies(node, &known);
        self.runtime.pace.handle_report(node, &report.copying, self.now);
        if let Some(view) = self.runtime.nodes.get_mut(&node) {
            view.serving = report.serving;
            view.lagging = (self.now, report.lagging);
        }
    }

    fn note_hung(&mut self, disk: DiskId, hung_ms: u64) {
        let name = force::disk_on_node(self.state.map(), disk);
        if hung_ms > 0 {
            let seconds = hung_ms as f64 / 1000.0;
            self.tell("disk-hung", COORDINATOR, format!("Disk {name} has not answered for {seconds:.1} s."));
        } else {
            self.tell("disk-answers", COORDINATOR, format!("Disk {name} answers again."));
            // A plan that was made meanwhile had to leave it as it was.
            self.planning.touch(self.now);
        }
        self.touch_pgs();
    }

    /// The node's disk no longer has the copy.
    pub fn handle_purged(&mut self, node: NodeId, pg: PgId, disk: DiskId) {
        if self.runtime.disks.get(&disk).is_none_or(|d| d.node != node) {
            return;
        }
        self.purges.remove(&(pg, disk));
        let learns = |c: &PgConfig| c.learners.iter().any(|l| l.replica.disk == disk);
        if self.state.map().pgs.get(&pg).is_some_and(learns) {
            return; // It has begun anew since.
        }
        if let Some(view) = self.runtime.disks.get_mut(&disk) {
            view.copies.remove(&pg);
        }
    }

    /// A PG has dropped a volume that is being deleted, its node says.
    pub fn handle_volume_dropped(&mut self, node: NodeId, volume: VolumeId, pg: PgId) {
        let map = self.state.map();
        let primary = map.pgs.get(&pg).and_then(|c| c.primary());
        let by_primary = primary.and_then(|p| map.disks.get(&p.disk)).is_some_and(|d| d.node == node);
        if by_primary && map.volumes.get(&volume).is_some_and(|v| v.deleting) {
            self.runtime.dropped.entry(volume).or_default().insert(pg);
            self.touch_pgs();
        }
    }

    // ---- decisions ----

    /// Compares silence with the limits. Call it after all that arrived was handled.
    pub fn judge(&mut self) {
        for judgement in self.runtime.judge(self.state.map(), self.now) {
            self.note(judgement);
        }
    }

    fn note(&mut self, judgement: Judgement) {
        let name = |n: &NodeId| self.state.map().nodes.get(n).map_or_else(|| n.to_string(), |r| r.name.clone());
        match judgement {
            Judgement::Up(n) => {
                self.planned_as_lost.remove(&n);
                let what = format!("node {} answers again", name(&n));
                self.planning.touch_for(self.now, COORDINATOR, what);
                self.tell("node-up", COORDINATOR, format!("Node {} answers again.", name(&n)));
            }
            Judgement::Suspect(_) => {}
            Judgement::Down(n) => self.tell("node-down", COORDINATOR, format!("Node {} does not answer.", name(&n))),
        }
        self.pgs_dirty = true;
        self.passed_at = Instant(0);
    }

    /// One pass over all PGs, when something changed and the last one is `pause` ago. False: none was made.
    pub fn decide(&mut self, pause: Duration) -> bool {
        if self.outdated.is_some() || !self.pgs_dirty || self.now.since(self.passed_at) < pause {
            return false;
        }
        self.runtime.weigh_gateways(self.state.map());
        self.pgs_dirty = false;
        self.passed_at = self.now;
        let map = self.state.map();
        let mut counts = Counts::of(map).with_short(map, &self.runtime);
        let mut commands = Vec::new();
        for config in map.pgs.values() {
            let wanted = map.pools.get(&config.pg.pool).map_or(0, |p| p.replicas as usize);
            let live = config.members.iter().filter(|m| self.runtime.live_boot(m.disk) == Some(m.boot)).count();
            if live < wanted {
                self.runtime.short_since.entry(config.pg).or_insert(self.now);
            } else {
                self.runtime.short_since.remove(&config.pg);
                self.runtime.no_grace.remove(&config.pg);
            }
            commands.extend(decide::decide(map, &self.runtime, config, &mut counts));
        }
        for command in commands {
            self.apply_quietly(command);
        }
        let steps = self.planning.step(self.state.map(), &self.runtime, &self.pg_bytes, self.now);
        steps.into_iter().for_each(|c| self.apply_quietly(c));
        self.follow_job();
        let reorders = self.planning.reorder(self.state.map(), &self.runtime, self.now);
        reorders.into_iter().for_each(|c| self.apply_quietly(c));
        self.forget_volumes();
        true
    }

    fn forget_volumes(&mut self) {
        let map = self.state.map();
        let deleting = map.volumes.values().filter(|v| v.deleting);
        let gone: Vec<VolumeId> = deleting
            .filter(|v| self.runtime.dropped.get(&v.id).is_some_and(|done| v.pgs().all(|pg| done.contains(&pg))))
            .map(|v| v.id)
            .collect();
        for volume in gone {
            self.runtime.dropped.remove(&volume);
            self.apply_quietly(Command::ForgetVolume { volume });
        }
    }

    /// What a plan is to be made from, if one is due.
    pub fn take_plan_input(&mut self) -> Option<place::Input> {
        if self.outdated.is_some() {
            return None;
        }
        let settings = &self.state.map().settings;
        let grace = Duration::from_secs_f64(settings.grace_seconds);
        let debounce = Duration::from_secs_f64(settings.debounce_seconds);
        let now = self.now;
        let lost = self.runtime.nodes.iter().filter(|(_, v)| v.life == Life::Down);
        let lost: Vec<NodeId> = lost
            .filter(|(_, v)| v.lost_at.is_some_and(|at| now.since(at) >= grace))
            .map(|(n, _)| *n)
            .filter(|n| self.planned_as_lost.insert(*n))
            .collect();
        let unplaced = self.planning.job.is_empty()
            && now.since(self.planned_at) >= REPLAN_INTERVAL
            && self.runtime.short_since.values().any(|at| now.since(*at) >= grace);
        for node in &lost {
            let name = self.state.map().nodes.get(node).map_or_else(|| node.to_string(), |n| n.name.clone());
            self.planning.touch_for(now, COORDINATOR, format!("node {name} is lost"));
        }
        if unplaced {
            self.planning.touch_for(now, COORDINATOR, "placement groups still lack copies".to_owned());
        }
        self.fresh_disks.retain(|_, at| now.since(*at) < FRESH_DISK_KEPT);
        if !self.planning.take_due(&self.runtime, debounce, now) {
            return None;
        }
        self.planned_at = now;
        let input = self.plan_input();
        self.planning.topology = jobs::topology_of(&input);
        Some(input)
    }

    /// Everything that a plan depends on.
    pub fn plan_input(&self) -> place::Input {
        plan::input(self.state.map(), &self.runtime, &self.pg_bytes, self.now)
    }

    /// True once in a while: then call [`Manager::purges_due`].
    pub fn look(&mut self) -> bool {
        if self.now.since(self.looked_at) < LOOK_INTERVAL {
            return false;
        }
        self.looked_at = self.now;
        self.purges.retain(|_, at| self.now.since(*at) < PURGE_INTERVAL);
        self.runtime.changed_at.retain(|_, at| self.now.since(*at) < TAKES_OVER);
        self.pgs_dirty = true; // Time itself changes what may start.
        true
    }

    /// True for a PG that isn't served, but was given a primary a moment ago that is fit to: part of every change of it.
    pub fn takes_over(&self, seen: &impl Observed, config: &PgConfig) -> bool {
        let min_replicas = self.state.map().pools.get(&config.pg.pool).map_or(1, |p| p.min_replicas as usize);
        self.runtime.changed_at.get(&config.pg).is_some_and(|at| self.now.since(*at) < TAKES_OVER)
            && config.members.iter().filter(|m| seen.answers(**m)).count() >= min_replicas
            && config.primary().is_some_and(|p| seen.answers(p) && !seen.hangs(p.disk))
    }

    /// Copies that are to go now. `is_told`: the connection's node has been told the map as it is.
    pub fn purges_due(&mut self, is_told: impl Fn(ConnId) -> bool) -> Vec<Purge> {
        if self.outdated.is_some() || self.planning.is_pending() || !self.runtime.is_settled() {
            return Vec::new(); // A plan may want the copy where it is.
        }
        let next_pool = self.state.next_ids().pool;
        let due = decide::purgeable(self.state.map(), &self.runtime, next_pool, &self.planning.targets());
        let due = due.into_iter().filter(|(pg, disk, _)| !self.purges.contains_key(&(*pg, *disk)));
        let mut out = Vec::new();
        for (pg, disk, up_to) in due.take(PURGES_PER_TURN).collect::<Vec<_>>() {
            let node = self.runtime.disks.get(&disk).and_then(|d| self.runtime.nodes.get(&d.node));
            // Only a node that has been told that the copy is out may drop it.
            if let Some(conn) = node.and_then(|n| n.conn).filter(|c| is_told(*c)) {
                self.purges.insert((pg, disk), self.now);
                out.push(Purge { conn, pg, disk, up_to });
            }
        }
        out
    }
}

#[cfg(test)]
mod tests;
