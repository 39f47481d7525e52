//! May these nodes be stopped together? Yes if every placement group still serves without them. Pure.

use std::collections::BTreeSet;

use crate::api::types::{OkToStop, StopBlocked};
use crate::core::cluster::{ClusterMap, Replica};
use crate::core::ids::NodeId;

/// PGs that an answer names; the rest are counted.
const BLOCKED_SHOWN: usize = 100;

/// What stopping `nodes` would leave below its minimum; `is_live` says who answers now.
pub fn ok_to_stop(map: &ClusterMap, is_live: &dyn Fn(Replica) -> bool, nodes: &BTreeSet<NodeId>) -> OkToStop {
    let stops = |r: &Replica| map.disks.get(&r.disk).is_some_and(|d| nodes.contains(&d.node));
    let mut answer = OkToStop { ok: true, ..OkToStop::default() };
    for config in map.pgs.values().filter(|c| c.members.iter().any(stops)) {
        answer.pgs_touched += 1;
        let left = config.members.iter().filter(|r| is_live(**r) && !stops(r)).count() as u64;
        let least = map.pools.get(&config.pg.pool).map_or(1, |p| u64::from(p.min_replicas));
        if left < least {
            answer.ok = false;
            answer.pgs_blocked += 1;
            if answer.blocked.len() < BLOCKED_SHOWN {
                let pg = config.pg.to_string();
                answer.blocked.push(StopBlocked { pg, live_after: left, min_replicas: least });
            }
        }
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::cluster::{Disk, DiskAdminState, FailureDomain, PgConfig, Pool};
    use crate::core::ids::{BootId, DiskId, Generation, PgId, PoolId};

    fn map() -> ClusterMap {
        let mut map = ClusterMap::default();
        for n in 1..=4 {
            let (id, node, class) = (DiskId(n), NodeId(n), String::new());
            let disk = Disk { id, node, class, capacity_bytes: 1, admin_state: DiskAdminState::Active };
            map.disks.insert(id, disk);
        }
        let pool = Pool {
            id: PoolId(1),
            name: "p".to_owned(),
            replicas: 3,
            min_replicas: 2,
            failure_domain: FailureDomain::Node,
            class: String::new(),
            pg_count: 4,
            durable_writes: false,
        };
        map.pools.insert(pool.id, pool);
        for index in 0..4 {
            let pg = PgId { pool: PoolId(1), index };
            let member = |i: u32| Replica { disk: DiskId((index + i) % 4 + 1), boot: BootId::default() };
            let config = PgConfig {
                pg,
                generation: Generation { epoch: 1, n: 1 },
                durability_epoch: 1,
                members: (0..3).map(member).collect(),
                learners: Vec::new(),
                last_proposal: 0,
                forced: false,
                members_min: 0,
            };
            map.pgs.insert(pg, config);
        }
        map
    }

    #[test]
    fn a_node_may_stop_while_enough_copies_are_left() {
        let map = map();
        let ask = |nodes: &[u32], down: u32| {
            let nodes = nodes.iter().map(|n| NodeId(*n)).collect();
            ok_to_stop(&map, &|r| r.disk.0 != down, &nodes)
        };
        let one = ask(&[1], 0);
        assert_eq!((one.ok, one.pgs_touched, one.pgs_blocked), (true, 3, 0));
        let two = ask(&[1, 2], 0);
        assert_eq!((two.ok, two.pgs_touched, two.pgs_blocked), (false, 4, 2));
        assert_eq!(two.blocked[0].live_after, 1);
        // One that is down already counts as stopped.
        assert_eq!(ask(&[1], 2).pgs_blocked, 2);
        assert!(ask(&[], 2).ok);
    }
}
