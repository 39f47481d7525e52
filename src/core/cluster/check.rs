//! The map's invariants, tested independently of the code that keeps them.

use std::collections::BTreeSet;

use super::state::{NextIds, REPLICAS_MAX};
use super::{ClusterMap, NodeAdminState};

/// The first invariant that doesn't hold.
///
/// # Errors
/// One sentence that names the record.
pub fn check(map: &ClusterMap, next: NextIds) -> Result<(), String> {
    let ensure = |ok: bool, what: &dyn Fn() -> String| if ok { Ok(()) } else { Err(what()) };
    let mut names = BTreeSet::new();
    for node in map.nodes.values() {
        ensure(node.id.0 != 0 && node.id.0 < next.node, &|| format!("node {} has an id not given yet", node.id))?;
        let fresh = node.admin_state == NodeAdminState::Removed || names.insert(&node.name);
        ensure(fresh, &|| format!("two nodes are named {}", node.name))?;
    }
    for disk in map.disks.values() {
        ensure(disk.id.0 != 0 && disk.id.0 < next.disk, &|| format!("disk {} has an id not given yet", disk.id))?;
        ensure(map.nodes.contains_key(&disk.node), &|| format!("disk {} is in no node", disk.id))?;
    }
    let mut names = BTreeSet::new();
    for pool in map.pools.values() {
        ensure(pool.id.0 != 0 && pool.id.0 < next.pool, &|| format!("pool {} has an id not given yet", pool.id))?;
        ensure(names.insert(&pool.name), &|| format!("two pools are named {}", pool.name))?;
        let pgs = map.pgs.range(super::state::pgs_of(pool.id)).count();
        ensure(pgs == pool.pg_count as usize, &|| format!("pool {} has {pgs} PGs, not {}", pool.name, pool.pg_count))?;
        let ok = pool.min_replicas >= 1 && pool.min_replicas <= pool.replicas && pool.replicas <= REPLICAS_MAX;
        ensure(ok, &|| format!("pool {} has impossible replica counts", pool.name))?;
    }
    for config in map.pgs.values() {
        let pg = config.pg;
        ensure(map.pools.contains_key(&pg.pool), &|| format!("PG {pg} is in no pool"))?;
        ensure(!config.members.is_empty(), &|| format!("PG {pg} has no member"))?;
        ensure(config.generation.n >= 1 && config.generation.epoch <= map.epoch, &|| {
            format!("PG {pg} has the impossible generation {}", config.generation)
        })?;
        let members: BTreeSet<_> = config.members.iter().map(|m| m.disk).collect();
        ensure(members.len() == config.members.len(), &|| format!("PG {pg} has a disk twice"))?;
        let learners: BTreeSet<_> = config.learners.iter().map(|l| l.replica.disk).collect();
        ensure(learners.len() == config.learners.len(), &|| format!("PG {pg} has a learner twice"))?;
        for learner in &config.learners {
            let disk = learner.replica.disk;
            ensure(!config.is_member(learner.replica), &|| format!("PG {pg} has {disk} as member and learner"))?;
            let own = !members.contains(&disk) || learner.replaces == Some(disk);
            ensure(own, &|| format!("PG {pg} has {disk} as member and learner of another"))?;
            let there = learner.replaces.is_none_or(|d| members.contains(&d));
            ensure(there, &|| format!("PG {pg}'s learner {disk} replaces no member"))?;
        }
        for disk in members.iter().chain(&learners) {
            ensure(map.disks.contains_key(disk), &|| format!("PG {pg} names the unknown disk {disk}"))?;
        }
    }
    let mut names = BTreeSet::new();
    for volume in map.volumes.values() {
        let name = &volume.name;
        ensure(volume.id.0 != 0 && volume.id.0 < next.volume, &|| format!("volume {name} has an id not given yet"))?;
        ensure(names.insert(name), &|| format!("two volumes are named {name}"))?;
        let pool = map.pools.get(&volume.pool).ok_or_else(|| format!("volume {name} is in no pool"))?;
        let rising = volume.stripes.windows(2).all(|w| w[0].first_chunk < w[1].first_chunk);
        let starts = volume.stripes.first().is_some_and(|s| s.first_chunk == 0);
        let full = volume.stripes.iter().all(|s| !s.pgs.is_empty() && s.pgs.iter().all(|pg| *pg < pool.pg_count));
        ensure(rising && starts && full, &|| format!("volume {name} has a broken layout"))?;
    }
    for (id, job) in &map.jobs {
        ensure(*id == job.id && job.id != 0, &|| format!("job {id} is kept as {}", job.id))?;
        let last = map.jobs.last_key_value().is_some_and(|(last, _)| last == id);
        ensure(last || !job.state.is_open(), &|| format!("job {id} has not ended, though another came after it"))?;
    }
    ensure(map.jobs.len() <= super::job::JOBS_MAX, &|| format!("{} jobs are kept", map.jobs.len()))?;
    Ok(())
}
