//! From the map to a plan and from a plan to moves that run: the adapter around `core::placement` and `core::moves`.
//!
//! A [`Job`] is a frozen plan. A change of the topology makes a new plan after the debounce, which replaces the job; copies
//! that have begun and are still useful stay. Repairs of copies that merely don't answer wait for the grace.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::decide::{PgState, is_given_up, state_of};
use super::runtime::Runtime;
use crate::core::cluster::command::{Command, Liveness};
use crate::core::cluster::{
    ClusterMap, DiskAdminState, FailureDomain, Learner, NodeAdminState, PgConfig, Pool, Replica, ResyncClass,
};
use crate::core::ids::{DiskId, NodeId, PgId};
use crate::core::moves::{self, Room, Running, Slots, Wanted, order};
use crate::core::placement as place;
use crate::core::units::Instant;

/// A disk past this part of its capacity is full.
pub const FULL_RATIO: f64 = 0.95;
/// A disk past this part is near full.
pub const NEAR_FULL_RATIO: f64 = 0.85;
/// No move fills a disk past this part.
pub const BACKFILL_RATIO: f64 = 0.90;
/// The default pool aims at so many replicas a disk.
pub const PG_REPLICAS_PER_DISK: u32 = 100;
/// Changes of primaries in flight: each pauses its PG for a lease, so few at once.
const REORDERS_MAX: usize = 3;
/// A reorder that nobody reports as served is taken as done.
const REORDER_GIVEN_UP: Duration = Duration::from_secs(5);
/// Copies given up in one pass: each pauses its PG until the other members have the new configuration.
const REMOVALS_PER_PASS: usize = 8;
/// Changes that a job's reason names.
const TRIGGERS_MAX: usize = 4;
/// A change that keeps coming delays a plan by at most so many debounces.
const DEBOUNCES_MAX: u32 = 5;

/// A move of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobMove {
    /// The PG.
    pub pg: PgId,
    /// The disk that it leaves.
    pub from: Option<DiskId>,
    /// The disk that it comes to.
    pub to: DiskId,
    /// Bytes of the copy when the plan was made.
    pub bytes: u64,
    /// Why.
    pub class: ResyncClass,
}

/// A copy that a job gives up without a successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JobRemoval {
    /// The PG.
    pub pg: PgId,
    /// The disk.
    pub disk: DiskId,
}

/// A frozen plan and its progress. Its record is in the map (`core/cluster/job`).
#[derive(Clone, Debug, Default)]
pub struct Job {
    /// The record's; 0: no plan has needed one yet.
    pub id: u64,
    /// Nothing of it starts, and what runs is held back.
    pub paused: bool,
    /// What is still wanted, running moves included.
    pub moves: Vec<JobMove>,
    /// Copies beyond their pool's count that are still there.
    pub removals: Vec<JobRemoval>,
    /// Who should be primary where.
    pub primaries: BTreeMap<PgId, DiskId>,
    /// What the moves came to that the record doesn't count yet.
    pub ended: Ended,
    /// What the plan could not do.
    pub rejected: Vec<place::Rejected>,
    /// For what there is no room, and where.
    pub missing_capacity: Vec<place::MissingCapacity>,
}

impl Job {
    /// Nothing of it is left.
    pub fn is_empty(&self) -> bool {
        self.moves.is_empty() && self.removals.is_empty()
    }
}

/// Moves that ended, and copies that were given up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// The copy took its place, or is gone as it should.
    pub done: u64,
    /// Bytes of those.
    pub bytes: u64,
    /// It can't be made any more.
    pub failed: u64,
}

/// When to plan, the job, and changes of primaries in flight.
#[derive(Debug, Default)]
pub struct Planning {
    /// The job that runs.
    pub job: Job,
    /// First and last change that no plan has seen.
    dirty: Option<(Instant, Instant)>,
    /// What these changes were: who, and in a few words.
    pub(super) triggers: Vec<(String, String)>,
    /// What the plan that is being made is for: see [`jobs::topology_of`](super::jobs::topology_of).
    pub(super) topology: u64,
    /// A plan was made since this coordinator started: the job's moves are known.
    pub(super) is_known: bool,
    /// A planner runs.
    pub running: bool,
    reorders: Vec<Reorder>,
}

#[derive(Debug)]
struct Reorder {
    pg: PgId,
    nodes: (NodeId, NodeId),
    to: NodeId,
    since: Instant,
}

impl Planning {
    /// The topology changed.
    pub fn touch(&mut self, now: Instant) {
        self.dirty = Some((self.dirty.map_or(now, |d| d.0), now));
    }

    /// The topology changed, and this is how.
    pub fn touch_for(&mut self, now: Instant, actor: &str, what: String) {
        self.touch(now);
        if self.triggers.len() < TRIGGERS_MAX && self.triggers.iter().all(|(_, t)| *t != what) {
            self.triggers.push((actor.to_owned(), what));
        }
    }

    /// A plan waits for its debounce, or is being made.
    pub fn is_pending(&self) -> bool {
        self.dirty.is_some() || self.running
    }

    /// True if a plan is to be made now; the caller makes it and calls [`Planning::handle_planned`].
    pub fn take_due(&mut self, runtime: &Runtime, debounce: Duration, now: Instant) -> bool {
        let Some((first, last)) = self.dirty.filter(|_| !self.running && runtime.is_settled()) else { return false };
        let due = now.since(last) >= debounce || now.since(first) >= debounce * DEBOUNCES_MAX;
        if due {
            self.dirty = None;
            self.running = true;
        }
        due
    }

    /// The planner is done. Gives the learners that the job doesn't want any more.
    pub fn handle_planned(&mut self, map: &ClusterMap, plan: place::Plan, id: u64, paused: bool) -> Vec<Command> {
        (self.running, self.is_known) = (false, true);
        let moves: Vec<JobMove> = plan.moves.iter().map(job_move).collect();
        let wanted: BTreeSet<(PgId, DiskId)> = moves.iter().map(|m| (m.pg, m.to)).collect();
        let mut drops = Vec::new();
        for config in map.pgs.values() {
            for learner in &config.learners {
                let by_plan = !learner.class.is_repair();
                if by_plan && !wanted.contains(&(config.pg, learner.replica.disk)) {
                    drops.push(Command::DropLearner { pg: config.pg, replica: learner.replica });
                }
            }
        }
        self.job = Job {
            id,
            paused,
            ended: Ended::default(),
            primaries: plan.target.iter().filter_map(|r| Some((r.pg, *r.disks.first()?))).collect(),
            moves,
            removals: plan.removals.iter().map(|r| JobRemoval { pg: r.pg, disk: r.disk }).collect(),
            rejected: plan.rejected,
            missing_capacity: plan.missing_capacity,
        };
        drops
    }

    /// Where the job wants copies.
    pub fn targets(&self) -> BTreeSet<(PgId, DiskId)> {
        self.job.moves.iter().map(|m| (m.pg, m.to)).collect()
    }

    /// Bytes that each PG's moves copy.
    pub fn bytes_left(&self, bytes: &BTreeMap<PgId, u64>) -> BTreeMap<PgId, u64> {
        let mut left: BTreeMap<PgId, u64> = BTreeMap::new();
        for m in &self.job.moves {
            let size = bytes.get(&m.pg).copied().unwrap_or(m.bytes);
            let sum = left.entry(m.pg).or_default();
            *sum = sum.saturating_add(size);
        }
        left
    }

    /// PGs that the job moves for another reason than repair, or that have a copy too many.
    pub fn misplaced(&self) -> BTreeSet<PgId> {
        let moves = self.job.moves.iter().filter(|m| !m.class.is_repair()).map(|m| m.pg);
        moves.chain(self.job.removals.iter().map(|r| r.pg)).collect()
    }

    /// Forgets what is done, and decides which moves start and which are given back.
    pub fn step(
        &mut self,
        map: &ClusterMap,
        runtime: &Runtime,
        bytes: &BTreeMap<PgId, u64>,
        now: Instant,
    ) -> Vec<Command> {
        let mut ended = self.job.ended;
        let mut overtaken = false;
        self.job.moves.retain(|m| {
            let Some(config) = map.pgs.get(&m.pg) else {
                ended.failed += 1;
                return false;
            };
            let done = config.members.iter().any(|r| r.disk == m.to);
            let moot = !done && fills_no_gap(map, runtime, m, config);
            // A copy that was under way to this disk for another reason took another member's place.
            let stayed = done && m.from.is_some_and(|d| d != m.to && config.members.iter().any(|r| r.disk == d));
            overtaken |= moot || stayed;
            let wanted = !done && !moot && !is_given_up(map, m.to);
            ended.done += u64::from(done);
            ended.bytes += if done { m.bytes } else { 0 };
            ended.failed += u64::from(!done && !wanted);
            wanted
        });
        self.job.removals.retain(|r| {
            let config = map.pgs.get(&r.pg);
            let there = config.is_some_and(|c| c.members.iter().any(|m| m.disk == r.disk));
            let wanted = map.pools.get(&r.pg.pool).map_or(0, |p| p.replicas as usize);
            // Another one left first: this one is needed now. Or a move took its place: one more has to go.
            let needed = there && config.is_some_and(|c| c.members.len() <= wanted);
            let replaced = !there && config.is_some_and(|c| c.members.len() > wanted);
            overtaken |= needed || replaced;
            ended.done += u64::from(!there);
            ended.failed += u64::from(needed);
            there && !needed
        });
        self.job.ended = ended;
        if overtaken {
            // It would never be made, or is not what was planned; nothing else of the job says where this PG belongs now.
            self.touch_for(now, super::COORDINATOR, "a move was overtaken by another copy".to_owned());
        }
        if map.settings.resync.paused || self.job.paused || self.job.is_empty() || !runtime.is_settled() {
            return Vec::new();
        }
        let mut commands = self.give_up(map, runtime);
        commands.extend(self.start_and_stop(map, runtime, bytes, now));
        commands
    }

    /// Copies that go now: of PGs that are clean and would stay so, and wait for no other change.
    fn give_up(&self, map: &ClusterMap, runtime: &Runtime) -> Vec<Command> {
        let due = self.job.removals.iter().filter_map(|r| {
            let config = map.pgs.get(&r.pg).filter(|c| c.learners.is_empty())?;
            let pool = map.pools.get(&r.pg.pool).filter(|p| config.members.len() > p.replicas as usize)?;
            let replica = config.members.iter().copied().find(|m| m.disk == r.disk)?;
            // The plan's reorder takes the lead from it first.
            let leads = config.primary() == Some(replica);
            let whole = |m: &Replica| *m == replica || runtime.may_serve(config, *m);
            let fit = !leads && config.members.iter().all(whole) && pool.min_replicas <= pool.replicas;
            let clean = fit && state_of(map, runtime, config) == PgState::Clean;
            clean.then_some(Command::RemoveSurplus { pg: r.pg, base: config.generation, replica })
        });
        due.take(REMOVALS_PER_PASS).collect()
    }

    /// Which moves start and which are given back.
    fn start_and_stop(
        &self,
        map: &ClusterMap,
        runtime: &Runtime,
        bytes: &BTreeMap<PgId, u64>,
        now: Instant,
    ) -> Vec<Command> {
        if self.job.moves.is_empty() {
            return Vec::new();
        }
        let planned = self.targets();
        let node_of = |disk: DiskId| map.disks.get(&disk).map_or(NodeId(0), |d| d.node);
        let running: Vec<(PgId, Learner, Running)> = map
            .pgs
            .values()
            .flat_map(|c| c.learners.iter().map(move |l| (c, l)))
            .map(|(c, l)| {
                let source = c.primary().unwrap_or_default().disk;
                let wanted = Wanted {
                    pg: c.pg,
                    source,
                    source_node: node_of(source),
                    target: l.replica.disk,
                    target_node: node_of(l.replica.disk),
                    bytes: bytes.get(&c.pg).copied().unwrap_or(0),
                    class: l.class,
                    rank: 0, // It runs.
                };
                (c.pg, *l, Running { wanted, planned: planned.contains(&(c.pg, l.replica.disk)) })
            })
            .collect();
        let grace = Duration::from_secs_f64(map.settings.grace_seconds);
        let ranks = order::ranks(map.volumes.values(), &self.bytes_left(bytes));
        let mut wanted = Vec::new();
        let mut learners = Vec::new();
        for m in &self.job.moves {
            let Some((learner, source)) = startable(map, runtime, m, grace, now) else { continue };
            let (source_node, target_node) = (node_of(source), node_of(m.to));
            if map.settings.resync.holds_back(learner.class, m.pg.pool, [source_node, target_node]) {
                continue;
            }
            let size = bytes.get(&m.pg).copied().unwrap_or(m.bytes);
            wanted.push(Wanted {
                pg: m.pg,
                source,
                source_node,
                target: m.to,
                target_node,
                bytes: size,
                class: learner.class,
                rank: ranks.get(&m.pg).copied().unwrap_or(order::NO_VOLUME),
            });
            learners.push(learner);
        }
        let busy: Vec<Running> = running.iter().map(|r| r.2).collect();
        let decision = moves::schedule(&wanted, &busy, &room(map, runtime), Slots::default());
        let stop =
            decision.stop.iter().map(|i| Command::DropLearner { pg: running[*i].0, replica: running[*i].1.replica });
        let start = decision.start.iter().map(|i| Command::AddLearner { pg: wanted[*i].pg, learner: learners[*i] });
        stop.chain(start).collect()
    }

    /// Changes of primaries that the plan wants, a few at a time, where nothing else goes on.
    pub fn reorder(&mut self, map: &ClusterMap, runtime: &Runtime, now: Instant) -> Vec<Command> {
        self.reorders.retain(|r| {
            let served = runtime.nodes.get(&r.to).is_some_and(|n| n.serving.contains(&r.pg));
            !served && now.since(r.since) < REORDER_GIVEN_UP
        });
        let mut out = Vec::new();
        let primaries = std::mem::take(&mut self.job.primaries);
        for (pg, disk) in &primaries {
            if self.reorders.len() >= REORDERS_MAX {
                break;
            }
            let Some(config) = map.pgs.get(pg).filter(|c| c.learners.is_empty()) else { continue };
            let Some(old) = config.primary().filter(|p| p.disk != *disk) else { continue };
            let Some(new) = config.members.iter().copied().find(|m| m.disk == *disk) else { continue };
            if state_of(map, runtime, config) != PgState::Clean || !runtime.may_serve(config, new) {
                continue;
            }
            let node = |d: DiskId| map.disks.get(&d).map(|d| d.node);
            let (Some(a), Some(b)) = (node(old.disk), node(new.disk)) else { continue };
            if runtime.was_cut_off(*pg, b) {
                continue;
            }
            let nodes = (a.min(b), a.max(b));
            if self.reorders.iter().any(|r| r.nodes == nodes || r.pg == *pg) {
                continue;
            }
            let mut members = vec![new];
            members.extend(config.members.iter().copied().filter(|m| *m != new));
            self.reorders.push(Reorder { pg: *pg, nodes, to: b, since: now });
            out.push(Command::Promote { pg: *pg, base: config.generation, members });
        }
        self.job.primaries = primaries;
        out
    }
}

fn job_move(m: &place::Move) -> JobMove {
    JobMove { pg: m.pg, from: m.from, to: m.to, bytes: m.bytes, class: m.class.into() }
}

/// True for a repair of a PG that is whole: a copy that began under the plan before, or a catch-up, came first.
fn fills_no_gap(map: &ClusterMap, runtime: &Runtime, m: &JobMove, config: &PgConfig) -> bool {
    let is_live = |disk: DiskId| config.members.iter().any(|r| r.disk == disk && runtime.is_live(*r));
    let live = config.members.iter().filter(|r| runtime.is_live(**r)).count();
    let wanted = map.pools.get(&m.pg.pool).map_or(0, |pool| pool.replicas as usize);
    live >= wanted && !m.from.is_some_and(is_live)
}

/// The learner of a move, and the disk that is read, if the move may start now.
fn startable(
    map: &ClusterMap,
    runtime: &Runtime,
    m: &JobMove,
    grace: Duration,
    now: Instant,
) -> Option<(Learner, DiskId)> {
    let config = map.pgs.get(&m.pg)?;
    let pool = map.pools.get(&m.pg.pool)?;
    let replica = runtime.live_replica(m.to).filter(|r| Runtime::is_active(map, m.to) && !runtime.is_hung(r.disk))?;
    let source = config.primary().filter(|p| runtime.is_live(*p))?.disk;
    if config.learners.iter().any(|l| l.replica.disk == m.to) {
        return None;
    }
    let live = config.members.iter().filter(|r| runtime.is_live(**r)).count();
    let short = live < pool.replicas as usize;
    let leaves = m.from.and_then(|d| config.members.iter().find(|r| r.disk == d)).copied();
    let dead = || config.members.iter().find(|r| !runtime.is_live(**r)).map(|r| r.disk);
    match leaves {
        // A live copy moves: not while another is missing.
        Some(old) if runtime.is_live(old) => {
            let class = if short { return None } else { m.class };
            Some((Learner { replica, replaces: Some(old.disk), class, paused: false }, source))
        }
        _ if !short => None,
        leaves => {
            let given_up = m.from.is_some_and(|d| is_given_up(map, d)) || runtime.no_grace.contains(&m.pg);
            let waited = runtime.short_since.get(&m.pg).is_some_and(|since| now.since(*since) >= grace);
            if !given_up && !waited {
                return None;
            }
            let class = if live <= 1 { ResyncClass::RepairCritical } else { ResyncClass::Repair };
            Some((Learner { replica, replaces: leaves.map(|r| r.disk).or_else(dead), class, paused: false }, source))
        }
    }
}

fn room(map: &ClusterMap, runtime: &Runtime) -> BTreeMap<DiskId, Room> {
    let lagging = runtime.lagging();
    let one = |(id, view): (&DiskId, &super::runtime::DiskView)| {
        let limit = (view.capacity_bytes as f64 * BACKFILL_RATIO) as u64;
        let is_slow = lagging.contains_key(id) || runtime.pace.is_slow(*id);
        let room = Room { free_bytes: limit.saturating_sub(view.used_bytes), is_slow };
        Some((*id, room)).filter(|_| map.disks.contains_key(id))
    };
    runtime.disks.iter().filter_map(one).collect()
}

/// The disks, as a plan sees them.
pub fn topology(map: &ClusterMap, runtime: &Runtime, now: Instant) -> place::Topology {
    let grace = Duration::from_secs_f64(map.settings.grace_seconds);
    let disks = map.disks.values().filter_map(|d| {
        let node = map.nodes.get(&d.node)?;
        Some(place::DiskInfo {
            id: d.id,
            node: d.node,
            rack: node.rack.clone(),
            zone: node.zone.clone(),
            release: node.release.clone(),
            class: d.class.clone(),
            capacity_bytes: d.capacity_bytes,
            state: disk_state(map, runtime, d.id, grace, now),
            used_bytes: runtime.disks.get(&d.id).map_or(0, |v| v.used_bytes),
            reserved_bytes: 0,
        })
    });
    place::Topology { disks: disks.collect() }
}

/// Everything that a plan depends on.
pub fn input(map: &ClusterMap, runtime: &Runtime, bytes: &BTreeMap<PgId, u64>, now: Instant) -> place::Input {
    let pending = map
        .pgs
        .values()
        .flat_map(|c| c.learners.iter().map(|l| place::PendingMove { pg: c.pg, from: l.replaces, to: l.replica.disk }));
    place::Input {
        topology: topology(map, runtime, now),
        pools: map.pools.values().map(pool_spec).collect(),
        current: map.pgs.values().map(|c| row(c, bytes)).collect(),
        limits: place::Limits { backfill_limit_ratio: BACKFILL_RATIO },
        // A disk that catches up with itself doesn't move.
        pending: pending.filter(|p| p.from != Some(p.to)).collect(),
        cohort: None,
        seed: u64::from(map.epoch),
    }
}

/// A pool's rule for the planner.
pub fn pool_spec(pool: &Pool) -> place::PoolSpec {
    place::PoolSpec {
        id: pool.id,
        name: pool.name.clone(),
        replicas: pool.replicas,
        min_replicas: pool.min_replicas,
        failure_domain: match pool.failure_domain {
            FailureDomain::Disk => place::FailureDomain::Disk,
            FailureDomain::Node => place::FailureDomain::Node,
            FailureDomain::Rack => place::FailureDomain::Rack,
            FailureDomain::Zone => place::FailureDomain::Zone,
            FailureDomain::Release => place::FailureDomain::Release,
        },
        class: (!pool.class.is_empty()).then(|| pool.class.clone()),
        pg_count: pool.pg_count,
    }
}

fn row(config: &PgConfig, bytes: &BTreeMap<PgId, u64>) -> place::PgPlacement {
    place::PgPlacement {
        pg: config.pg,
        bytes: bytes.get(&config.pg).copied().unwrap_or(0),
        disks: config.members.iter().map(|m| m.disk).collect(),
    }
}

fn disk_state(map: &ClusterMap, runtime: &Runtime, disk: DiskId, grace: Duration, now: Instant) -> place::DiskState {
    use place::DiskState as S;
    let Some(record) = map.disks.get(&disk) else { return S::Lost };
    let Some(node) = map.nodes.get(&record.node) else { return S::Lost };
    if node.admin_state == NodeAdminState::Removed || record.admin_state == DiskAdminState::Removed {
        return S::Lost;
    }
    if record.admin_state == DiskAdminState::Failed {
        return S::Failed;
    }
    if node.admin_state == NodeAdminState::Maintenance {
        return S::Maintenance;
    }
    if runtime.live_boot(disk).is_none() {
        // A node that never came (a disk not yet registered) is away, not lost, until the grace has passed.
        let lost = runtime.lost_since(record.node).is_some_and(|since| now.since(since) >= grace);
        return if lost { S::Lost } else { S::Down };
    }
    if runtime.is_hung(disk) {
        return S::Down;
    }
    if node.admin_state == NodeAdminState::Draining || record.admin_state == DiskAdminState::Draining {
        return S::Draining;
    }
    let view = runtime.disks.get(&disk);
    let full = view.is_some_and(|v| v.used_bytes as f64 >= v.capacity_bytes as f64 * FULL_RATIO);
    if full { S::Full } else { S::Up }
}

/// The default number of PGs for a pool: 100 replicas a disk, next power of two.
pub fn default_pg_count(map: &ClusterMap, replicas: u32, class: &str) -> u32 {
    let fits =
        |d: &&crate::core::cluster::Disk| (class.is_empty() || d.class == class) && Runtime::is_active(map, d.id);
    let disks = u32::try_from(map.disks.values().filter(fits).count()).unwrap_or(u32::MAX);
    let wanted = u64::from(disks.max(1)) * u64::from(PG_REPLICAS_PER_DISK) / u64::from(replicas.max(1));
    let power = wanted.max(1).next_power_of_two();
    u32::try_from(power).unwrap_or(u32::MAX).min(crate::core::cluster::state::PG_COUNT_MAX)
}
