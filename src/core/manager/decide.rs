//! What the coordinator does for a PG by itself: promote, recover after restarts (R2), take returning disks back.
//!
//! Pure: the map and the observations in, commands out. It never adds a member; only a serving primary's proposal does
//! (exception: R2). It is called for every PG after each change of the map or of liveness; what it returns must be
//! applied before it is called again.

use std::collections::{BTreeMap, BTreeSet};

use super::force;
use super::runtime::Runtime;
use crate::core::cluster::command::{Command, Liveness};
use crate::core::cluster::state::domain_of;
use crate::core::cluster::{ClusterMap, DiskAdminState, Learner, NodeAdminState, PgConfig, Pool, Replica, ResyncClass};
use crate::core::ids::{DiskId, PgId};

/// Catch-ups of returning disks that may read from one disk, and write to one, at once: most find little to copy, so
/// more than a plan's slots; few enough that their tables fit memory.
const CATCH_UPS_PER_DISK: usize = 16;

/// Figures over all PGs that decisions for one need.
#[derive(Debug, Default)]
pub struct Counts {
    /// Primaries on a disk.
    pub primaries: BTreeMap<DiskId, usize>,
    /// Of them, of PGs that lack a copy: what the disk will read for repairs.
    short: BTreeMap<DiskId, usize>,
    /// Learners that read from a disk.
    sources: BTreeMap<DiskId, usize>,
    /// Learners on a disk.
    targets: BTreeMap<DiskId, usize>,
}

impl Counts {
    /// Over the whole map.
    pub fn of(map: &ClusterMap) -> Self {
        let mut counts = Counts::default();
        for config in map.pgs.values() {
            let Some(primary) = config.primary() else { continue };
            *counts.primaries.entry(primary.disk).or_default() += 1;
            for learner in &config.learners {
                counts.learner(primary.disk, learner.replica.disk);
            }
        }
        counts
    }

    /// Counts the PGs that lack a copy too.
    pub fn with_short(mut self, map: &ClusterMap, runtime: &Runtime) -> Self {
        for config in map.pgs.values() {
            let is_short = config.members.iter().any(|m| !runtime.is_live(*m));
            if let Some(primary) = config.primary().filter(|_| is_short) {
                *self.short.entry(primary.disk).or_default() += 1;
            }
        }
        self
    }

    fn learner(&mut self, source: DiskId, target: DiskId) {
        *self.sources.entry(source).or_default() += 1;
        *self.targets.entry(target).or_default() += 1;
    }

    fn has_room(&self, source: DiskId, target: DiskId) -> bool {
        let below = |n: Option<&usize>| n.is_none_or(|n| *n < CATCH_UPS_PER_DISK);
        below(self.sources.get(&source)) && below(self.targets.get(&target))
    }
}

/// Decides for one PG. At most one change of the configuration at a time; learners may go with it.
pub fn decide(map: &ClusterMap, runtime: &Runtime, config: &PgConfig, counts: &mut Counts) -> Vec<Command> {
    let Some(pool) = map.pools.get(&config.pg.pool) else { return Vec::new() };
    // A live copy that its disk found damaged (R21) can tell as little as one that restarted.
    if !config.members.iter().any(|m| runtime.is_live(*m) && runtime.has_whole_copy(config, *m)) {
        return recover(map, runtime, config).into_iter().collect();
    }
    if let Some(promote) = promote(runtime, config, pool, counts) {
        return vec![promote];
    }
    let mut commands = stale_learners(map, runtime, config, pool);
    if commands.is_empty() {
        commands.extend(take_back(map, runtime, config, pool, counts));
    }
    commands
}

/// A primary that doesn't answer, lost its copy, or can't be reached by a gateway that others have no trouble with (R8)
/// is followed by the live member that leads the fewest PGs with a copy missing, then the fewest at all: it has least to read
/// for repairs, which are as fast as the disk that reads most.
fn promote(runtime: &Runtime, config: &PgConfig, pool: &Pool, counts: &mut Counts) -> Option<Command> {
    let primary = config.primary()?;
    let live = runtime.is_live(primary);
    let cut_off = |r: Replica| runtime.disks.get(&r.disk).is_some_and(|d| runtime.is_cut_off(config.pg, d.node));
    if !runtime.is_settled() || (runtime.may_serve(config, primary) && !cut_off(primary)) {
        return None;
    }
    let count = |of: &BTreeMap<DiskId, usize>, r: &Replica| of.get(&r.disk).copied().unwrap_or(0);
    let fewest = |r: &Replica| (count(&counts.short, r), count(&counts.primaries, r), r.disk);
    let fit = |r: &Replica| *r != primary && runtime.may_serve(config, *r) && !cut_off(*r);
    let next = config.members.iter().copied().filter(fit).min_by_key(fewest)?;
    let mut members = vec![next];
    members.extend(config.members.iter().copied().filter(|m| *m != next && *m != primary));
    if live || members.len() < pool.min_replicas as usize {
        // Alive, it stays a member. Dead, it stays where the count needs it (R5): IO waits until a learner takes its place.
        members.push(primary);
    }
    *counts.primaries.entry(next.disk).or_default() += 1;
    *counts.short.entry(next.disk).or_default() += usize::from(!live);
    Some(Command::Promote { pg: config.pg, base: config.generation, members })
}

/// No member lives at its recorded boot with a whole copy (R2).
fn recover(map: &ClusterMap, runtime: &Runtime, config: &PgConfig) -> Option<Command> {
    let mut returned = Vec::new();
    for member in &config.members {
        match runtime.live_replica(member.disk) {
            Some(replica) => returned.push(replica),
            None if is_given_up(map, member.disk) => {}
            None => return None, // It may hold what the others lost.
        }
    }
    let mark = |r: &Replica| {
        let copy = runtime.disks.get(&r.disk)?.copies.get(&config.pg).copied();
        match copy {
            // An operator's decision holds until it is carried out: the disk restarted before it had accepted it.
            Some(copy) if copy.complete || config.forced => Some((copy.generation, copy.flush_mark)),
            Some(_) => None,
            None => (config.generation.n == 1).then(Default::default),
        }
    };
    // Of equal ones the primary, and the one that would be next: so primaries stay as even as they were.
    let ranked = returned.iter().enumerate().filter_map(|(i, r)| Some((mark(r)?, std::cmp::Reverse(i), *r)));
    let truth = ranked.max()?.2;
    if config.learners.iter().any(|l| l.replica == truth) {
        // What is known of it may be from before it began to learn, when it marked itself incomplete (R19): it says anew what
        // it has once it doesn't learn any more.
        return Some(Command::DropLearner { pg: config.pg, replica: truth });
    }
    let learners = returned.into_iter().filter(|r| *r != truth).map(|replica| Learner {
        replica,
        replaces: None,
        class: ResyncClass::RepairCritical,
        paused: false,
    });
    Some(Command::SetMembers { pg: config.pg, base: config.generation, truth, learners: learners.collect() })
}

/// True for a disk that was declared failed or removed: nothing of it is waited for.
pub fn is_given_up(map: &ClusterMap, disk: DiskId) -> bool {
    map.disks.get(&disk).is_none_or(|d| {
        matches!(d.admin_state, DiskAdminState::Failed | DiskAdminState::Removed)
            || map.nodes.get(&d.node).is_none_or(|n| n.admin_state == NodeAdminState::Removed)
    })
}

/// Learners that can't go on, or that nobody needs.
fn stale_learners(map: &ClusterMap, runtime: &Runtime, config: &PgConfig, pool: &Pool) -> Vec<Command> {
    let live = config.members.iter().filter(|m| runtime.is_live(**m)).count();
    let mut out = Vec::new();
    for learner in &config.learners {
        let replica = learner.replica;
        let elsewhere = runtime.live_boot(replica.disk).is_some_and(|boot| boot != replica.boot);
        let dead = runtime.is_settled() && !runtime.is_live(replica);
        let unneeded = learner.replaces.is_none() && live >= pool.replicas as usize;
        // One on a disk that hangs would hold up acks in its last phase (R18).
        let hung = runtime.is_hung(replica.disk);
        if elsewhere || dead || unneeded || hung || is_given_up(map, replica.disk) {
            out.push(Command::DropLearner { pg: config.pg, replica });
        }
    }
    out
}

/// Disks that have an old copy come back as learners: a member that restarted first, then any other.
fn take_back(map: &ClusterMap, runtime: &Runtime, config: &PgConfig, pool: &Pool, counts: &mut Counts) -> Vec<Command> {
    let Some(primary) = config.primary().filter(|p| runtime.is_live(*p)) else { return Vec::new() };
    let live: Vec<Replica> = config.members.iter().copied().filter(|m| runtime.is_live(*m)).collect();
    let class = if live.len() <= 1 { ResyncClass::RepairCritical } else { ResyncClass::Repair };
    let mut out = Vec::new();
    let mut learning: BTreeSet<DiskId> = config.learners.iter().map(|l| l.replica.disk).collect();
    let mut replaced: BTreeSet<DiskId> = config.learners.iter().filter_map(|l| l.replaces).collect();
    let mut add = |replica: Replica, replaces: Option<DiskId>, learning: &mut BTreeSet<DiskId>| {
        if counts.has_room(primary.disk, replica.disk) && !runtime.is_hung(replica.disk) {
            counts.learner(primary.disk, replica.disk);
            learning.insert(replica.disk);
            out.push(Command::AddLearner {
                pg: config.pg,
                learner: Learner { replica, replaces, class, paused: false },
            });
        }
    };
    for member in &config.members {
        let returned = runtime.live_replica(member.disk).filter(|r| r != member);
        if let Some(replica) = returned.filter(|r| !learning.contains(&r.disk)) {
            replaced.insert(member.disk);
            add(replica, Some(member.disk), &mut learning);
        }
    }
    // Copies that are or will be there without moving a live one.
    let coming = config
        .learners
        .iter()
        .filter(|l| l.replaces.is_none_or(|d| config.members.iter().any(|m| m.disk == d && !runtime.is_live(*m))));
    let mut have = live.len() + coming.count() + (learning.len() - config.learners.len());
    if have >= pool.replicas as usize {
        return out;
    }
    let domain = |disk: DiskId| domain_of(map, pool.failure_domain, disk);
    let mut taken: BTreeSet<Option<String>> =
        live.iter().map(|r| r.disk).chain(learning.iter().copied()).map(domain).collect();
    let is_member = |disk: DiskId| config.members.iter().any(|m| m.disk == disk);
    let mut candidates: Vec<(bool, crate::core::ids::Generation, Replica)> = runtime
        .disks
        .iter()
        .filter(|(id, _)| !is_member(**id) && Runtime::is_active(map, **id) && !runtime.is_hung(**id))
        .filter(|(id, _)| !runtime.is_flapping(config.pg, **id))
        .filter_map(|(id, view)| {
            let copy = view.copies.get(&config.pg)?;
            Some((copy.complete, copy.generation, runtime.live_replica(*id)?))
        })
        .collect();
    candidates.sort_unstable();
    for (_, _, replica) in candidates.into_iter().rev() {
        if have >= pool.replicas as usize {
            break;
        }
        if learning.contains(&replica.disk) || taken.contains(&domain(replica.disk)) {
            continue;
        }
        let dead = config.members.iter().find(|m| !runtime.is_live(**m) && !replaced.contains(&m.disk));
        let replaces = dead.map(|m| m.disk);
        replaced.extend(replaces);
        taken.insert(domain(replica.disk));
        have += 1;
        add(replica, replaces, &mut learning);
    }
    out
}

/// How a PG stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PgState {
    /// All replicas there.
    Clean,
    /// Served, with fewer.
    Degraded,
    /// Not served now, and what would bring it back.
    Unavailable(String),
}

/// What a PG's state rests on: what is observed, or a faster form of it.
pub trait Observed {
    /// The disk answers, at this boot.
    fn answers(&self, replica: Replica) -> bool;
    /// Its disk doesn't answer, though its node does.
    fn hangs(&self, disk: DiskId) -> bool;
    /// The disk's node says that it serves the PG.
    fn is_served(&self, pg: PgId, disk: DiskId) -> bool;
}

impl Observed for Runtime {
    fn answers(&self, replica: Replica) -> bool {
        self.is_live(replica)
    }
    fn hangs(&self, disk: DiskId) -> bool {
        self.is_hung(disk)
    }
    fn is_served(&self, pg: PgId, disk: DiskId) -> bool {
        self.serves(pg, disk)
    }
}

/// Judges a PG.
pub fn state_of(map: &ClusterMap, runtime: &Runtime, config: &PgConfig) -> PgState {
    judge(map, runtime, runtime, config)
}

/// The same by another form of what is observed; `runtime` says what would bring a PG back.
pub fn judge(map: &ClusterMap, runtime: &Runtime, seen: &impl Observed, config: &PgConfig) -> PgState {
    let Some(pool) = map.pools.get(&config.pg.pool) else {
        return PgState::Unavailable("its pool is unknown".to_owned());
    };
    let live = config.members.iter().filter(|m| seen.answers(**m)).count();
    let primary = config.primary().is_some_and(|p| seen.answers(p));
    if live == 0 {
        return PgState::Unavailable(format!("no member answers: {}", force::way_back(map, runtime, config)));
    }
    let enough = live >= pool.min_replicas as usize || (config.forced && live == config.members.len());
    if !enough {
        let wanted = pool.min_replicas;
        return PgState::Unavailable(format!(
            "{live} of at least {wanted} copies answer: {}",
            force::way_back(map, runtime, config)
        ));
    }
    if !primary {
        return PgState::Unavailable("its primary does not answer; another member is about to take over".to_owned());
    }
    if let Some(primary) = config.primary().filter(|p| seen.hangs(p.disk)) {
        let name = force::disk_on_node(map, primary.disk);
        return PgState::Unavailable(format!("its primary {name} hangs; another member takes over if one is fit to"));
    }
    if let Some(primary) = config.primary().filter(|p| !seen.is_served(config.pg, p.disk)) {
        return PgState::Unavailable(format!("its primary {} gets ready to serve", primary.disk));
    }
    let hung = config.members.iter().any(|m| seen.hangs(m.disk));
    if live >= pool.replicas as usize && live == config.members.len() && !hung {
        PgState::Clean
    } else {
        PgState::Degraded
    }
}

/// A disk that is fuller than this gives up old copies before their PGs are clean (R20).
const NEAR_FULL_PERCENT: u64 = 85;

/// Copies that nobody needs any more: the PG is clean at full count without them, or its pool was deleted. On a disk that
/// is near full also the oldest one of a PG that has min_replicas other copies (R20), one at a time. Gives (PG, disk, up to
/// which generation).
pub fn purgeable(
    map: &ClusterMap,
    runtime: &Runtime,
    next_pool: u32,
    wanted: &BTreeSet<(PgId, DiskId)>,
) -> Vec<(PgId, DiskId, crate::core::ids::Generation)> {
    let mut out = Vec::new();
    for (disk, view) in &runtime.disks {
        if runtime.live_boot(*disk).is_none() {
            continue;
        }
        let is_near_full = view.used_bytes * 100 >= view.capacity_bytes * NEAR_FULL_PERCENT && view.capacity_bytes > 0;
        let (before, mut oldest) = (out.len(), None);
        for (pg, copy) in &view.copies {
            let Some(config) = map.pgs.get(pg) else {
                // Only a pool that this map knows to have deleted: an older map simply lacks newer ones (R4).
                if !map.pools.contains_key(&pg.pool) && pg.pool.0 < next_pool {
                    let all = crate::core::ids::Generation { epoch: map.epoch, n: u64::MAX };
                    out.push((*pg, *disk, all));
                }
                continue;
            };
            let there = config.members.iter().any(|m| m.disk == *disk)
                || config.learners.iter().any(|l| l.replica.disk == *disk);
            let older = copy.generation <= config.generation;
            if there || !older || wanted.contains(&(*pg, *disk)) {
                continue;
            }
            let live = config.members.iter().filter(|m| runtime.is_live(**m)).count();
            let has_enough = |pool: &Pool| live >= pool.min_replicas as usize;
            match state_of(map, runtime, config) {
                PgState::Clean => out.push((*pg, *disk, config.generation)),
                PgState::Degraded if is_near_full && map.pools.get(&pg.pool).is_some_and(has_enough) => {
                    let this = (copy.generation, *pg, config.generation);
                    oldest = Some(oldest.map_or(this, |o| this.min(o)));
                }
                PgState::Degraded | PgState::Unavailable(_) => {}
            }
        }
        if let Some((_, pg, generation)) = oldest.filter(|_| out.len() == before) {
            out.push((pg, *disk, generation));
        }
    }
    out
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
