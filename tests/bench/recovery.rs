//! Recovery in simulation: `cargo bench --bench recovery`.
//!
//! A node of one disk with 10 TB is lost from clusters of 10 to 1,000 nodes. What a node holds and what a disk gives stay the
//! same, so the time should fall as 1/nodes: the ideal is that all others read and write the same. It can't fall below that of the
//! disk with most to read or to write, as PGs are whole: `bound` is that one's bytes at its rate. So several sizes of PGs are
//! shown, and what reading from any member would give. Each run's time over both; the bound over the ideal.

use std::time::Instant;

use evenkeel::core::ids::{DiskId, NodeId, PoolId};
use evenkeel::core::placement::{ClusterMap, DiskInfo, FailureDomain, Input, PoolSpec, Topology, plan};
use evenkeel::core::simulate::{Event, Options, Sources, Until, run};

const NODE_BYTES: u64 = 10_000_000_000_000;

/// `nodes` nodes of one disk, with as many PG replicas that each of the others gets `per_other` of a lost node's.
fn cluster(nodes: u32, per_other: u32) -> ClusterMap {
    let disk = |n: u32| DiskInfo {
        id: DiskId(n + 1),
        node: NodeId(n + 1),
        capacity_bytes: NODE_BYTES * 2,
        class: "ssd".to_owned(),
        ..DiskInfo::default()
    };
    let pool = PoolSpec {
        id: PoolId(1),
        name: "default".to_owned(),
        replicas: 3,
        min_replicas: 2,
        failure_domain: FailureDomain::Node,
        class: None,
        pg_count: nodes * (nodes - 1) * per_other / 3,
    };
    let topology = Topology { disks: (0..nodes).map(disk).collect() };
    let mut input = Input { topology, pools: vec![pool], ..Input::default() };
    input.current = plan(&input).target;
    let bytes = NODE_BYTES / u64::from((nodes - 1) * per_other);
    input.current.iter_mut().for_each(|r| r.bytes = bytes);
    let names = (1..=nodes).map(|n| (NodeId(n), format!("n{n}"))).collect();
    ClusterMap::new(input, names, std::collections::BTreeSet::new())
}

fn main() {
    println!(
        " nodes  PGs a disk  read from    moves  redundant after   ideal s   bound s  / ideal  / bound  bound/ideal  run in s"
    );
    let event = Event::new(0.0, "lose-node:n3").expect("it is an event");
    for (sources, many) in
        [(Sources::Primary, 1), (Sources::Primary, 10), (Sources::AnyMember, 1), (Sources::AnyMember, 10)]
    {
        for (nodes, per_other) in [(10u32, 111u32), (30, 34), (100, 10), (300, 3), (1000, 1)] {
            let begun = Instant::now();
            let options = Options { debounce_seconds: 0.0, until: Until::Redundant, sources, ..Options::default() };
            let rate = options.rates.of_disk(DiskId(1));
            let map = cluster(nodes, per_other * many);
            let (report, _) = run(map, std::slice::from_ref(&event), options).expect("the run has a result");
            let seconds = report.redundant_at_seconds.unwrap_or(f64::NAN);
            let ideal = NODE_BYTES as f64 / rate / f64::from(nodes - 1);
            // The ETA's low end, told when the repair is planned, is that of the busiest disk.
            let told = report.timeline.iter().find_map(|r| Some(r.at_seconds + r.eta_seconds?.redundant.low));
            let bound = told.unwrap_or(f64::NAN);
            println!(
                "{nodes:>6}  {:>10}  {:<9}  {:>7}  {seconds:>13.0} s  {ideal:>8.0}  {bound:>8.0}  {:>7.2}  {:>7.2}  {:>11.2}  {:>8.1}",
                (nodes - 1) * per_other * many,
                if sources == Sources::Primary { "primary" } else { "members" },
                report.jobs.iter().map(|j| j.moves).sum::<u64>(),
                seconds / ideal,
                seconds / bound,
                bound / ideal,
                begun.elapsed().as_secs_f64(),
            );
        }
    }
}
