//! The planner against brute force on tiny clusters, and against its figures on large ones.

use std::collections::BTreeMap;

use evenkeel::core::ids::{DiskId, NodeId, PoolId};
use evenkeel::core::placement::{
    DiskInfo, DiskState, FailureDomain, Input, PoolSpec, Topology, check, lower_bound, plan,
};
use proptest::prelude::*;

use super::topologies::{hosts_of_ten, pool};

fn placed(disks: u32, mixed: bool) -> Input {
    // Twelve disks are too few for hosts of ten: each disk is its own domain there.
    let failure_domain = if disks < 30 { FailureDomain::Disk } else { FailureDomain::Node };
    let pools = vec![pool(failure_domain, (disks * 100 / 3).next_power_of_two() / 2)];
    let mut input = Input { topology: hosts_of_ten(disks, mixed), pools, ..Input::default() };
    input.current = plan(&input).target;
    input.current.iter_mut().for_each(|r| r.bytes = (8 + u64::from(r.pg.index % 5)) << 30);
    input
}

fn holds_its_figures(name: &str, input: &Input) {
    let p = plan(input);
    assert_eq!(check(input, &p), Ok(()), "{name}");
    let (moves, least) = (p.totals.moves as f64, p.totals.lower_bound_moves as f64);
    assert!(moves <= 1.02 * least + 2.0, "{name}: {moves} moves, L = {least}");
    assert!(p.balance.after.max_deviation_pgs <= 1.0 + 1e-6, "{name}: {:?}", p.balance.after);
}

#[test]
fn figures_hold_from_12_to_1000_disks() {
    for disks in [12, 100, 1000] {
        for mixed in [false, true] {
            let base = placed(disks, mixed);
            let name = |what: &str| format!("{disks} disks, mixed {mixed}, {what}");
            let mut one = base.clone();
            one.topology = hosts_of_ten(disks + 1, mixed);
            holds_its_figures(&name("a disk joins"), &one);
            let mut host = base.clone();
            host.topology = hosts_of_ten(disks + 10, mixed);
            holds_its_figures(&name("a host joins"), &host);
            if disks >= 100 {
                for state in [DiskState::Lost, DiskState::Draining] {
                    let mut gone = base.clone();
                    gone.topology.disks.iter_mut().filter(|d| d.node == NodeId(3)).for_each(|d| d.state = state);
                    holds_its_figures(&name("a host leaves"), &gone);
                }
            }
        }
    }
}

/// The least moves over all targets that are valid and as even as can be, by trying every one.
struct BruteForce<'a> {
    node: &'a [u32],
    pgs: &'a [Vec<usize>],
    replicas: usize,
    low: Vec<u32>,
    high: Vec<u32>,
    best: Option<usize>,
}

impl BruteForce<'_> {
    fn run(&mut self, pg: usize, count: &mut [u32], moves: usize) {
        if self.best.is_some_and(|b| moves >= b) {
            return;
        }
        if pg == self.pgs.len() {
            if count.iter().zip(&self.low).all(|(c, l)| c >= l) {
                self.best = Some(moves);
            }
            return;
        }
        let n = self.node.len();
        for set in 0u32..1 << n {
            if set.count_ones() as usize != self.replicas {
                continue;
            }
            let chosen: Vec<usize> = (0..n).filter(|d| set >> d & 1 == 1).collect();
            let clash =
                chosen.iter().enumerate().any(|(i, &a)| chosen[..i].iter().any(|&b| self.node[a] == self.node[b]));
            if clash || chosen.iter().any(|&d| count[d] >= self.high[d]) {
                continue;
            }
            let new = chosen.iter().filter(|d| !self.pgs[pg].contains(d)).count();
            chosen.iter().for_each(|&d| count[d] += 1);
            self.run(pg + 1, count, moves + new);
            chosen.iter().for_each(|&d| count[d] -= 1);
        }
    }
}

proptest! {
    #![proptest_config(crate::config(1000))]

    #[test]
    fn no_search_finds_fewer_moves(
        nodes in prop::collection::vec(0..3u32, 4..6),
        replicas in 2..4u32,
        pgs in 2..5u32,
        sizes in prop::collection::vec(1..3u64, 6),
        rows in prop::collection::vec(any::<[u8; 4]>(), 5),
        lost in prop::option::of(0..5usize),
    ) {
        let disks: Vec<DiskInfo> = nodes.iter().enumerate().map(|(i, n)| DiskInfo {
            id: DiskId(i as u32 + 1),
            node: NodeId(n + 1),
            capacity_bytes: sizes[i] << 40,
            state: if lost == Some(i) { DiskState::Lost } else { DiskState::Up },
            ..DiskInfo::default()
        }).collect();
        let spec = PoolSpec { id: PoolId(1), name: "p".into(), replicas, min_replicas: 1,
            failure_domain: FailureDomain::Node, class: None, pg_count: pgs };
        let mut input = Input { topology: Topology { disks }, pools: vec![spec], ..Input::default() };
        // A random valid start, not an even one.
        let mut current = plan(&Input { topology: input.topology.clone(), ..input.clone() }).target;
        for (row, pick) in current.iter_mut().zip(&rows) {
            row.bytes = 1;
            row.disks.clear();
            for &x in pick {
                let d = &input.topology.disks[x as usize % input.topology.disks.len()];
                let node_of = |id: &DiskId| input.topology.disks[id.0 as usize - 1].node;
                if row.disks.len() < replicas as usize && row.disks.iter().all(|o| node_of(o) != d.node) {
                    row.disks.push(d.id);
                }
            }
        }
        input.current = current;
        let p = plan(&input);
        prop_assert_eq!(check(&input, &p), Ok(()));
        let up: Vec<usize> = (0..input.topology.disks.len()).filter(|&i| input.topology.disks[i].state == DiskState::Up).collect();
        let full = p.target.iter().all(|r| r.disks.len() == replicas as usize);
        // A PG without a live copy stays as it is, which brute force doesn't know.
        let dead = p.rejected.iter().any(|r| r.reason.contains("no copy"));
        if full && !dead {
            let node: Vec<u32> = up.iter().map(|&i| input.topology.disks[i].node.0).collect();
            let index: BTreeMap<DiskId, usize> = up.iter().enumerate().map(|(n, &i)| (input.topology.disks[i].id, n)).collect();
            let today: Vec<Vec<usize>> = input.current.iter().map(|r| r.disks.iter().filter_map(|d| index.get(d).copied()).collect()).collect();
            let bound = &lower_bound(&input)[0];
            let share: BTreeMap<DiskId, f64> = bound.shares.iter().copied().collect();
            let of = |f: fn(f64) -> f64| up.iter().map(|&i| f(share[&input.topology.disks[i].id]) as u32).collect::<Vec<u32>>();
            let mut oracle = BruteForce { node: &node, pgs: &today, replicas: replicas as usize, low: of(f64::floor), high: of(f64::ceil), best: None };
            oracle.run(0, &mut vec![0; up.len()], 0);
            let best = oracle.best.expect("rounded shares can be met");
            prop_assert!(p.totals.moves as usize <= best + 1, "{} moves, {} are enough; {:?}", p.totals.moves, best, p.target);
            prop_assert!(best as u64 + 1 > bound.least_moves || best as u64 >= bound.least_moves);
            prop_assert!(p.balance.after.max_deviation_pgs < 1.0 + 1e-6);
        }
    }
}
