//! Clusters as the planner's figures are stated for, for the properties and the bench.

use evenkeel::core::ids::{DiskId, NodeId, PoolId};
use evenkeel::core::placement::{DiskInfo, FailureDomain, PoolSpec, Topology};

/// Hosts of ten disks, racks of ten hosts; every second disk is twice as large if `mixed`.
pub fn hosts_of_ten(disks: u32, mixed: bool) -> Topology {
    let disk = |i: u32| {
        let host = i / 10;
        DiskInfo {
            id: DiskId(i + 1),
            node: NodeId(host + 1),
            rack: format!("r{}", host / 10),
            zone: "z".to_owned(),
            class: "ssd".to_owned(),
            capacity_bytes: (4 << 40) << u32::from(mixed && i % 2 == 1),
            ..DiskInfo::default()
        }
    };
    Topology { disks: (0..disks).map(disk).collect() }
}

/// The one pool of a cluster.
pub fn pool(failure_domain: FailureDomain, pg_count: u32) -> PoolSpec {
    PoolSpec {
        id: PoolId(1),
        name: "default".to_owned(),
        replicas: 3,
        min_replicas: 2,
        failure_domain,
        class: None,
        pg_count,
    }
}
