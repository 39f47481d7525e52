//! One pass over all PGs for what people ask most: a status over a million replicas must not take the owner's time from
//! heartbeats. Ids are dense, so what is looked up for every replica stands in arrays.

use std::collections::BTreeMap;

use super::owner::Owner;
use crate::api::types::PgCounts;
use crate::core::cluster::{PgConfig, Replica};
use crate::core::ids::{BootId, DiskId, NodeId, PgId};
use crate::core::manager::Manager;
use crate::core::manager::decide::{Observed, PgState, judge};

/// What one pass found.
#[derive(Debug, Default)]
pub(super) struct Survey {
    /// PGs by state.
    pub counts: PgCounts,
    /// Of those that aren't served, how many have just got a primary that is about to serve: a moment in each change of it.
    pub taking_over: u64,
    /// The first of the others, and what would bring it back.
    pub unavailable: Option<(PgId, String)>,
    /// PGs with one member by an operator's word, below their pool's minimum.
    pub forced: Vec<PgId>,
    /// PGs of several copies of which at most one answers.
    pub at_risk: u64,
    /// PGs with learners.
    pub learning: Vec<PgId>,
    /// Members and primaries, by disk number.
    loads: Vec<(u64, u64)>,
}

impl Survey {
    /// Members on a disk, and primaries.
    pub fn load(&self, disk: DiskId) -> (u64, u64) {
        self.loads.get(disk.0 as usize).copied().unwrap_or_default()
    }
}

/// What is observed, in arrays.
struct Dense {
    /// By disk number: the boot at which it answers, whether it hangs, and its node.
    disks: Vec<(Option<BootId>, bool, NodeId)>,
    /// By pool, then PG: the node that says it serves it.
    serving: BTreeMap<u32, Vec<NodeId>>,
}

impl Dense {
    fn of(manager: &Manager) -> Dense {
        let (map, runtime) = (manager.state.map(), &manager.runtime);
        let highest = runtime.disks.last_key_value().map_or(0, |(id, _)| id.0 as usize + 1);
        let mut disks = vec![(None, false, NodeId(0)); highest];
        for (id, view) in &runtime.disks {
            disks[id.0 as usize] = (runtime.live_boot(*id), runtime.is_hung(*id), view.node);
        }
        let mut serving: BTreeMap<u32, Vec<NodeId>> =
            map.pools.values().map(|p| (p.id.0, vec![NodeId(0); p.pg_count as usize])).collect();
        for (node, view) in &runtime.nodes {
            for pg in &view.serving {
                // Two may say so for a moment; the one whose word is asked for is looked up then.
                if let Some(at) = serving.get_mut(&pg.pool.0).and_then(|pgs| pgs.get_mut(pg.index as usize)) {
                    *at = if *at == NodeId(0) { *node } else { BOTH };
                }
            }
        }
        Dense { disks, serving }
    }
}

/// More than one node says that it serves a PG.
const BOTH: NodeId = NodeId(u32::MAX);

/// [`Dense`], and where to look for what it doesn't have.
struct Seen<'a> {
    dense: Dense,
    manager: &'a Manager,
}

impl Observed for Seen<'_> {
    fn answers(&self, replica: Replica) -> bool {
        self.dense.disks.get(replica.disk.0 as usize).is_some_and(|d| d.0 == Some(replica.boot))
    }
    fn hangs(&self, disk: DiskId) -> bool {
        self.dense.disks.get(disk.0 as usize).is_some_and(|d| d.1)
    }
    fn is_served(&self, pg: PgId, disk: DiskId) -> bool {
        let node = self.dense.disks.get(disk.0 as usize).map(|d| d.2);
        match self.dense.serving.get(&pg.pool.0).and_then(|pgs| pgs.get(pg.index as usize)) {
            Some(said) if *said == BOTH => self.manager.runtime.serves(pg, disk),
            Some(said) => node == Some(*said) && *said != NodeId(0),
            None => false,
        }
    }
}

impl Owner {
    /// Looks at every PG once.
    pub(super) fn survey(&self) -> Survey {
        let map = self.manager.state.map();
        let moving = self.manager.planning.misplaced();
        let seen = Seen { dense: Dense::of(&self.manager), manager: &self.manager };
        let highest = map.disks.last_key_value().map_or(0, |(id, _)| id.0 as usize + 1);
        let mut survey = Survey { loads: vec![(0, 0); highest], ..Survey::default() };
        let below = |c: &PgConfig| map.pools.get(&c.pg.pool).is_some_and(|p| c.members.len() < p.min_replicas as usize);
        for config in map.pgs.values() {
            for (at, member) in config.members.iter().enumerate() {
                if let Some(load) = survey.loads.get_mut(member.disk.0 as usize) {
                    *load = (load.0 + 1, load.1 + u64::from(at == 0));
                }
            }
            let wanted = map.pools.get(&config.pg.pool).map_or(0, |p| p.replicas);
            let answer = config.members.iter().filter(|m| seen.answers(**m)).count();
            survey.at_risk += u64::from(wanted > 1 && answer <= 1);
            survey.counts.total += 1;
            match judge(map, &self.manager.runtime, &seen, config) {
                PgState::Clean => {
                    survey.counts.clean += 1;
                    survey.counts.misplaced += u64::from(moving.contains(&config.pg));
                }
                PgState::Degraded => survey.counts.degraded += 1,
                PgState::Unavailable(why) => {
                    survey.counts.unavailable += 1;
                    if self.manager.takes_over(&seen, config) {
                        survey.taking_over += 1;
                    } else {
                        survey.unavailable.get_or_insert((config.pg, why));
                    }
                }
            }
            if config.forced && below(config) {
                survey.forced.push(config.pg);
            }
            if !config.learners.is_empty() {
                survey.learning.push(config.pg);
            }
        }
        survey
    }
}
