//! A status reply over 1,000 nodes, 10,000 disks and 2^20 PG replicas, a scrape of the metrics, and the console: `cargo bench --bench
//! status`. The figures to reach are 100 ms, 200 ms and 5 MiB, and 200 KiB.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant as Clock;

use evenkeel::coordinator::Probe;
use evenkeel::core::cluster::state::{ClusterState, NextIds, PG_COUNT_MAX};
use evenkeel::core::cluster::{
    ClusterMap, Disk, DiskAdminState, FailureDomain, Node, NodeAdminState, PgConfig, Pool, Replica,
};
use evenkeel::core::ids::{BootId, DiskId, Generation, NodeId, PgId, PoolId};
use evenkeel::core::manager::runtime::ConnId;
use evenkeel::core::manager::{RegisteredDisk, Registration, Report};
use evenkeel::core::units::Instant;

const NODES: u32 = 1000;
const DISKS_PER_NODE: u32 = 10;
const REPLICAS: u32 = 3;
const PGS: u32 = (1 << 20) / REPLICAS;
const RUNS: usize = 20;

fn node_of(disk: u32) -> u32 {
    (disk - 1) / DISKS_PER_NODE + 1
}

fn replica(disk: u32) -> Replica {
    Replica { disk: DiskId(disk), boot: BootId(u64::from(disk)) }
}

fn map() -> ClusterMap {
    let mut map = ClusterMap { epoch: 1, version: 1, feature_level: 1, ..ClusterMap::default() };
    for n in 1..=NODES {
        let node = Node {
            id: NodeId(n),
            name: format!("n{n}"),
            addr: std::net::SocketAddr::from(([127, 0, 0, 1], 1)),
            admin_url: String::new(),
            zone: format!("z{}", n % 3),
            rack: format!("r{}", n % 100),
            release: "1".to_owned(),
            admin_state: NodeAdminState::Active,
        };
        map.nodes.insert(node.id, node);
    }
    let disks = NODES * DISKS_PER_NODE;
    for d in 1..=disks {
        let (id, node, class) = (DiskId(d), NodeId(node_of(d)), "ssd".to_owned());
        map.disks.insert(id, Disk { id, node, class, capacity_bytes: 4 << 40, admin_state: DiskAdminState::Active });
    }
    let mut left = PGS;
    while left > 0 {
        let (id, pg_count) = (PoolId(map.pools.len() as u32 + 1), left.min(PG_COUNT_MAX));
        let pool = Pool {
            id,
            name: format!("p{}", id.0),
            replicas: REPLICAS,
            min_replicas: 2,
            failure_domain: FailureDomain::Node,
            class: String::new(),
            pg_count,
            durable_writes: false,
        };
        map.pools.insert(id, pool);
        for index in 0..pg_count {
            let first = left - pg_count + index;
            // A third of all disks apart: never on one node.
            let disk = |i: u32| replica((first + i * (disks / REPLICAS)) % disks + 1);
            let config = PgConfig {
                pg: PgId { pool: id, index },
                generation: Generation { epoch: 1, n: 1 },
                durability_epoch: 1,
                members: (0..REPLICAS).map(disk).collect(),
                learners: Vec::new(),
                last_proposal: 0,
                forced: false,
                members_min: 0,
            };
            map.pgs.insert(config.pg, config);
        }
        left -= pg_count;
    }
    map
}

fn main() {
    let start = Instant(1 << 50);
    let (map, next) = (map(), NextIds { node: NODES + 1, disk: NODES * DISKS_PER_NODE + 1, pool: 100, volume: 1 });
    let mut led: BTreeMap<u32, BTreeSet<PgId>> = BTreeMap::new();
    for config in map.pgs.values() {
        led.entry(node_of(config.members[0].disk.0)).or_default().insert(config.pg);
    }
    let replicas: usize = map.pgs.values().map(|c| c.members.len()).sum();
    let dir = tempfile::tempdir().expect("a directory");
    let state = ClusterState::restore(map, next, BTreeSet::new());
    let mut probe = Probe::new(dir.path(), state, start).expect("a store");
    let manager = probe.manager();
    manager.begin(start);
    for n in 1..=NODES {
        let disks = (1..=DISKS_PER_NODE).map(|i| (n - 1) * DISKS_PER_NODE + i);
        let disk = |d: u32| RegisteredDisk {
            disk: DiskId(d),
            boot: BootId(u64::from(d)),
            capacity_bytes: 4 << 40,
            used_bytes: 1 << 40,
            ..RegisteredDisk::default()
        };
        let registration =
            Registration { node: NodeId(n), process: 1, disks: disks.map(disk).collect(), ..Registration::default() };
        manager.runtime.handle_registered(ConnId(u64::from(n)), &registration, start);
        let serving = led.remove(&n).unwrap_or_default();
        manager.handle_report(NodeId(n), Report { serving, ..Report::default() });
    }
    manager.judge();
    let measured = |what: &str, answer: &dyn Fn() -> usize| {
        let mut bytes = 0;
        let mut took: Vec<f64> = Vec::new();
        for _ in 0..RUNS {
            let begun = Clock::now();
            bytes = answer();
            took.push(begun.elapsed().as_secs_f64() * 1000.0);
        }
        took.sort_by(f64::total_cmp);
        println!(
            "{what} over {} disks, {replicas} PG replicas: median {:.1} ms, slowest {:.1} ms of {RUNS}, {} KiB",
            NODES * DISKS_PER_NODE,
            took[RUNS / 2],
            took[RUNS - 1],
            bytes / 1024
        );
    };
    measured("status", &|| probe.status().len());
    measured("metrics", &|| probe.metrics().len());
    measured("console", &|| probe.console().sections.iter().map(|s| s.html.len()).sum());
    let status: serde_json::Value = serde_json::from_slice(&probe.status()).expect("JSON");
    assert_eq!(status["pgs"]["clean"], u64::from(PGS), "all are served: {}", status["pgs"]);
    let up = probe.metrics().lines().filter(|l| l.starts_with("evenkeel_node_up{") && l.ends_with(" 1")).count();
    assert_eq!(up, NODES as usize, "all are shown");
}
