//! The planner's figures: `cargo bench --bench placement`.
//!
//! Hosts of 10 disks, racks of 10 hosts, 3 replicas, about 100 PG replicas a disk; equal, and 1:2 mixed capacities.

mod ceph;
#[path = "../props/flow.rs"]
mod flow;
#[path = "../props/topologies.rs"]
mod topologies;

use std::time::Instant;

use evenkeel::core::ids::{NodeId, PoolId};
use evenkeel::core::placement::{DiskState, FailureDomain, Input, PoolSpec, check, lower_bound, plan};

use topologies::{hosts_of_ten, pool};

/// The process's greatest resident memory so far, in MiB.
fn peak_rss_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|v| v.parse::<u64>().ok()).unwrap_or(0) / 1024
}

fn row(disks: u32, mixed: bool, what: &str, input: &Input) {
    let begun = Instant::now();
    let p = plan(input);
    let seconds = begun.elapsed().as_secs_f64();
    let sound = if check(input, &p).is_ok() { "yes" } else { "NO" };
    let least = p.totals.lower_bound_moves;
    println!(
        "{disks:>6}  {:<5}  {what:<13}  {:>7}  {least:>7}  {:>6.3}  {:>7.3}  {:>6.3}  {seconds:>7.3}  {:>5}  {sound}",
        if mixed { "1:2" } else { "equal" },
        p.totals.moves,
        p.totals.moves as f64 / least.max(1) as f64,
        p.balance.after.max_deviation_pgs,
        p.balance.after.stddev,
        peak_rss_mib(),
    );
}

/// Domains few and unequal, several pools.
fn bound(disks: u32) -> Input {
    let mut topology = hosts_of_ten(disks, true);
    topology.disks.iter_mut().for_each(|d| d.zone = format!("z{}", [0, 0, 1, 2, 3][d.node.0 as usize % 5]));
    let pool = |id: u32, replicas: u32, failure_domain| PoolSpec {
        id: PoolId(id),
        name: format!("pool{id}"),
        replicas,
        min_replicas: 1,
        failure_domain,
        class: None,
        pg_count: disks * 10,
    };
    let pools = vec![
        pool(1, 3, FailureDomain::Zone),
        pool(2, 3, FailureDomain::Node),
        pool(3, 2, FailureDomain::Rack),
        pool(4, 2, FailureDomain::Zone),
    ];
    Input { topology, pools, ..Input::default() }
}

/// Clusters where the rules bind, and with too little space.
fn tight(disks: u32) {
    let mut input = bound(disks);
    row(disks, true, "4 pools first", &input);
    input.current = plan(&input).target;
    input.current.iter_mut().for_each(|r| r.bytes = (8 + u64::from(r.pg.index % 5)) << 30);
    let mut joined = input.clone();
    let mut more = hosts_of_ten(disks + 10, true).disks.split_off(disks as usize);
    more.iter_mut().for_each(|d| d.zone = "z1".to_owned());
    joined.topology.disks.extend(more);
    row(disks, true, "host joins", &joined);
    let mut lost = input.clone();
    lost.topology.disks.iter_mut().filter(|d| d.node == NodeId(3)).for_each(|d| d.state = DiskState::Lost);
    row(disks, true, "host lost", &lost);
    // A zone is lost and what is left is too small for all copies.
    let room: u64 = input.topology.disks.iter().map(|d| d.capacity_bytes).sum();
    let mean = room / (u64::from(disks) * 100) * 9 / 10;
    input.current.iter_mut().for_each(|r| r.bytes = mean / 2 + mean * u64::from(r.pg.index % 11) / 11);
    input.topology.disks.iter_mut().filter(|d| d.zone == "z2").for_each(|d| d.state = DiskState::Lost);
    row(disks, true, "zone, no room", &input);
}

/// L counts what disks have too many or too few; where domains bind, no plan may reach it. How few moves could do, by an exact
/// minimum-cost flow for each pool on its own: slow, so of a small cluster.
fn exact(disks: u32) {
    println!("host lost where rules bind, {disks} disks: pool by pool, against the exact least");
    println!("  pool  domain   moves      L  exact  moves/exact  exact/L");
    let mut input = bound(disks);
    input.current = plan(&input).target;
    input.current.iter_mut().for_each(|r| r.bytes = 1 << 30);
    input.topology.disks.iter_mut().filter(|d| d.node == NodeId(3)).for_each(|d| d.state = DiskState::Lost);
    let p = plan(&input);
    for b in lower_bound(&input) {
        let moves = p.moves.iter().filter(|m| m.pg.pool == b.pool).count() as f64;
        let least = flow::exact_least(&input, &b);
        let domain = input.pools.iter().find(|p| p.id == b.pool).map(|p| format!("{:?}", p.failure_domain));
        println!(
            "  {:>4}  {:<6}  {moves:>6}  {:>5}  {least:>5}  {:>11.3}  {:>7.3}",
            b.pool.0,
            domain.unwrap_or_default(),
            b.least_moves,
            moves / least as f64,
            least as f64 / b.least_moves.max(1) as f64,
        );
    }
}

fn main() {
    if std::env::args().any(|a| a == "ceph") {
        return ceph::run(&[100, 1000]);
    }
    if std::env::args().any(|a| a == "exact") {
        return exact(100);
    }
    if std::env::args().any(|a| a == "tight") {
        return [200, 1000, 10_000].into_iter().for_each(tight);
    }
    println!(" disks  sizes  change           moves        L  moves/L  max dev  stddev  seconds  MiB  sound");
    for disks in [12u32, 100, 1000, 10_000] {
        for mixed in [false, true] {
            let failure_domain = if disks < 30 { FailureDomain::Disk } else { FailureDomain::Node };
            let pg_count = if disks == 10_000 { (1 << 20) / 3 } else { (disks * 100 / 3).next_power_of_two() };
            let pools = vec![pool(failure_domain, pg_count)];
            let mut input = Input { topology: hosts_of_ten(disks, mixed), pools, ..Input::default() };
            row(disks, mixed, "first", &input);
            input.current = plan(&input).target;
            input.current.iter_mut().for_each(|r| r.bytes = (8 + u64::from(r.pg.index % 5)) << 30);
            row(disks, mixed, "none", &input);
            input.topology = hosts_of_ten(disks + 1, mixed);
            row(disks, mixed, "disk joins", &input);
            input.topology = hosts_of_ten(disks + 10, mixed);
            row(disks, mixed, "host joins", &input);
            if disks >= 100 {
                input.topology = hosts_of_ten(disks, mixed);
                for (state, what) in [(DiskState::Lost, "host lost"), (DiskState::Draining, "host drains")] {
                    input.topology.disks.iter_mut().filter(|d| d.node == NodeId(3)).for_each(|d| d.state = state);
                    row(disks, mixed, what, &input);
                }
            }
        }
    }
    println!("rules that bind:");
    [200, 1000, 10_000].into_iter().for_each(tight);
    exact(100);
    ceph::run(&[100]);
}
