//! Small cases with known answers.

use std::collections::BTreeMap;

use super::*;
use crate::core::ids::{DiskId, NodeId, PgId, PoolId};

const TB: u64 = 1 << 40;

/// `nodes` nodes of `per_node` disks, two nodes a rack, two racks a zone.
fn topology(nodes: u32, per_node: u32) -> Topology {
    let disk = |n: u32, i: u32| DiskInfo {
        id: DiskId(n * 100 + i + 1),
        node: NodeId(n + 1),
        rack: format!("r{}", n / 2),
        zone: format!("z{}", n / 4),
        release: "1.0".to_owned(),
        class: "ssd".to_owned(),
        capacity_bytes: 4 * TB,
        ..DiskInfo::default()
    };
    Topology { disks: (0..nodes).flat_map(|n| (0..per_node).map(move |i| disk(n, i))).collect() }
}

fn pool(id: u32, replicas: u32, pg_count: u32, failure_domain: FailureDomain) -> PoolSpec {
    PoolSpec {
        id: PoolId(id),
        name: format!("pool{id}"),
        replicas,
        min_replicas: replicas.div_ceil(2),
        failure_domain,
        class: None,
        pg_count,
    }
}

fn placed(topology: Topology, pools: Vec<PoolSpec>) -> Input {
    let mut input = Input { topology, pools, ..Input::default() };
    let first = sound(&input);
    assert!(first.moves.is_empty(), "a first placement has nothing to copy");
    input.current = first.target;
    for (i, row) in input.current.iter_mut().enumerate() {
        row.bytes = (10 + i as u64 % 7) << 30;
    }
    input
}

/// Plans, and holds the plan to what always must be true of it.
fn sound(input: &Input) -> Plan {
    let p = plan(input);
    assert_eq!(check(input, &p), Ok(()));
    assert_eq!(plan(input), p, "the same input gives the same plan");
    let again = plan(&Input { current: p.target.clone(), pending: Vec::new(), ..input.clone() });
    assert_eq!(again.moves, Vec::new(), "planning again on the target moves something");
    assert_eq!(again.primary_changes, Vec::new());
    p
}

/// Holds it to the movement and balance figures too.
fn tight(input: &Input) -> Plan {
    let p = sound(input);
    let bound = p.totals.lower_bound_moves as f64 * 1.02 + 2.0 * input.pools.len() as f64;
    assert!(p.totals.moves as f64 <= bound, "{} moves, L = {}", p.totals.moves, p.totals.lower_bound_moves);
    assert!(p.balance.after.max_deviation_pgs <= 1.0 + 1e-6, "{:?}; {:?}", p.balance, p.rejected);
    p
}

fn set_state(input: &mut Input, which: impl Fn(&DiskInfo) -> bool, state: DiskState) {
    input.topology.disks.iter_mut().filter(|d| which(d)).for_each(|d| d.state = state);
}

#[test]
fn the_first_placement_is_even() {
    let input =
        Input { topology: topology(6, 2), pools: vec![pool(1, 3, 128, FailureDomain::Node)], ..Input::default() };
    let p = tight(&input);
    assert_eq!(p.target.len(), 128);
    assert!(p.target.iter().all(|r| r.disks.len() == 3));
    assert_eq!(initial(&input, &input.pools[0]), p.target);
}

#[test]
fn a_join_takes_only_what_the_new_disks_get() {
    for domain in [FailureDomain::Disk, FailureDomain::Node, FailureDomain::Rack] {
        let mut input = placed(topology(6, 2), vec![pool(1, 3, 128, domain)]);
        input.topology = topology(7, 2);
        let p = tight(&input);
        assert!(p.moves.iter().all(|m| m.class == MoveClass::Rebalance && m.bytes > 0));
        assert!(p.moves.iter().all(|m| m.to.0 > 600), "{domain:?}: {:?}", p.moves);
    }
}

#[test]
fn a_lost_node_is_repaired() {
    let mut input =
        placed(topology(6, 2), vec![pool(1, 3, 128, FailureDomain::Node), pool(2, 2, 64, FailureDomain::Disk)]);
    set_state(&mut input, |d| d.node == NodeId(2), DiskState::Lost);
    let p = tight(&input);
    let lost = |id: DiskId| id.0 / 100 == 1;
    assert!(p.moves.iter().filter(|m| m.class <= MoveClass::Repair).all(|m| m.from.is_some_and(lost)));
    // Pool 2 has two replicas: one live copy is left of what was lost.
    assert!(p.moves.iter().any(|m| m.class == MoveClass::RepairCritical && m.pg.pool == PoolId(2)));
    assert!(p.moves.is_sorted_by_key(|m| m.class));
}

#[test]
fn a_drained_node_ends_empty() {
    let mut input = placed(topology(6, 2), vec![pool(1, 3, 128, FailureDomain::Node)]);
    set_state(&mut input, |d| d.node == NodeId(2), DiskState::Draining);
    let p = tight(&input);
    assert!(p.target.iter().all(|r| r.disks.iter().all(|d| d.0 / 100 != 1)));
    assert!(p.moves.iter().any(|m| m.class == MoveClass::Drain));
    assert!(p.moves.iter().all(|m| m.class >= MoveClass::Drain));
}

#[test]
fn disks_that_are_away_keep_their_replicas() {
    for state in [DiskState::Down, DiskState::Maintenance] {
        let mut input = placed(topology(6, 2), vec![pool(1, 3, 128, FailureDomain::Node)]);
        set_state(&mut input, |d| d.node == NodeId(2), state);
        let p = tight(&input);
        assert_eq!(p.moves, Vec::new(), "{state:?}");
        assert!(p.target.iter().all(|r| r.disks[0].0 / 100 != 1), "{state:?}: no primary there");
        assert!(!p.primary_changes.is_empty());
        // A join meanwhile takes nothing from them and gives nothing to them.
        input.topology.disks.extend(topology(7, 2).disks.into_iter().filter(|d| d.node == NodeId(7)));
        sound(&input);
    }
}

#[test]
fn replica_count_and_domain_change_online() {
    let mut input = placed(topology(8, 2), vec![pool(1, 2, 128, FailureDomain::Node)]);
    input.pools[0].replicas = 3;
    let p = tight(&input);
    assert_eq!(p.moves.len(), 128);
    assert!(p.moves.iter().all(|m| m.from.is_none() && m.class == MoveClass::Repair));
    input.current = p.target;
    input.pools[0].failure_domain = FailureDomain::Rack;
    let p = tight(&input);
    assert!(p.moves.iter().any(|m| m.class == MoveClass::Drain));
    input.current = p.target;
    input.pools[0].replicas = 2;
    tight(&input);
}

#[test]
fn a_weight_change_moves_the_difference() {
    let mut input = placed(topology(6, 2), vec![pool(1, 3, 256, FailureDomain::Node)]);
    input.topology.disks[3].capacity_bytes *= 2;
    tight(&input);
    input.topology.disks[3].capacity_bytes /= 8;
    tight(&input);
}

#[test]
fn a_pool_that_the_topology_cannot_hold_gets_what_it_can() {
    let input =
        Input { topology: topology(2, 3), pools: vec![pool(1, 3, 32, FailureDomain::Node)], ..Input::default() };
    let p = sound(&input);
    assert!(p.target.iter().all(|r| r.disks.len() == 2));
    assert!(p.rejected.iter().any(|r| r.what == "pool pool1" && r.reason.contains("need 3 failure domains")));
    let none = Input { pools: vec![PoolSpec { class: Some("nvme".to_owned()), ..input.pools[0].clone() }], ..input };
    assert!(sound(&none).target.iter().all(|r| r.disks.is_empty()));
}

#[test]
fn short_of_space_all_reach_two_copies_before_any_three() {
    let mut input =
        placed(topology(4, 1), vec![pool(1, 3, 64, FailureDomain::Node), pool(2, 3, 64, FailureDomain::Node)]);
    input.current.iter_mut().for_each(|r| r.bytes = 10 << 30);
    // 128 PGs of 10 GiB: two copies take 2,560 GiB. Each of three disks may hold 900 GiB.
    input.topology.disks.iter_mut().for_each(|d| d.capacity_bytes = 1000 << 30);
    for row in &mut input.current {
        row.disks.truncate(1);
        row.disks[0] = DiskId(1 + 100 * (row.pg.index % 3));
    }
    set_state(&mut input, |d| d.node == NodeId(4), DiskState::Lost);
    let p = sound(&input);
    assert!(p.target.iter().all(|r| r.disks.len() >= 2), "{:?}", p.rejected);
    let three = p.target.iter().filter(|r| r.disks.len() == 3).count();
    assert_eq!(three, 14, "2,700 GiB hold 270 replicas");
    assert_eq!(p.missing_capacity_bytes, (128 - 14) * (10 << 30));
    assert!(p.rejected.iter().any(|r| r.reason.contains("lack room")));
    // Each PG has a copy on two of the three nodes: what lacks, lacks on the third.
    let mut by_node: BTreeMap<(PoolId, Option<DiskId>), u64> = BTreeMap::new();
    for row in p.target.iter().filter(|r| r.disks.len() == 2) {
        let third = [1, 101, 201].map(DiskId).into_iter().find(|d| !row.disks.contains(d));
        *by_node.entry((row.pg.pool, third)).or_default() += row.bytes;
    }
    let told: BTreeMap<_, _> = p.missing_capacity.iter().map(|m| ((m.pool, m.domain_of), m.bytes)).collect();
    assert_eq!(told, by_node);
}

#[test]
fn what_lacks_is_asked_for_where_it_would_do() {
    // Two racks of two nodes, two copies in different racks; the second rack has room for half.
    let mut input = placed(topology(4, 1), vec![pool(1, 2, 32, FailureDomain::Rack)]);
    input.topology.disks.iter_mut().for_each(|d| d.rack = format!("r{}", 1 + d.node.0 % 2));
    input.current.iter_mut().for_each(|r| r.bytes = 1 << 30);
    for row in &mut input.current {
        row.disks = vec![DiskId(if row.pg.index % 2 == 0 { 1 } else { 201 })];
    }
    input.topology.disks.iter_mut().filter(|d| d.rack == "r1").for_each(|d| d.capacity_bytes = 9 << 30);
    let p = sound(&input);
    let lacks = &p.missing_capacity;
    assert!(lacks.len() == 1 && lacks[0].bytes == p.missing_capacity_bytes && lacks[0].bytes > 0, "{lacks:?}");
    let rack = |d: DiskId| input.topology.disks.iter().find(|x| x.id == d).map(|x| x.rack.clone());
    assert_eq!(lacks[0].domain_of.and_then(rack).as_deref(), Some("r1"));
}

#[test]
fn a_pg_without_a_copy_is_left_alone_and_told() {
    let mut input = placed(topology(4, 1), vec![pool(1, 1, 32, FailureDomain::Node)]);
    set_state(&mut input, |d| d.node == NodeId(1), DiskState::Failed);
    let p = sound(&input);
    assert!(p.rejected.iter().any(|r| r.what.starts_with("pg 1.") && r.reason.contains("no copy")));
    assert!(p.moves.iter().all(|m| m.from != Some(DiskId(1))));
}

#[test]
fn moves_that_have_begun_are_kept() {
    let mut input = placed(topology(6, 2), vec![pool(1, 3, 128, FailureDomain::Node)]);
    input.topology = topology(7, 2);
    let first = tight(&input);
    // Another seed would choose others; those that run are taken over.
    input.seed = 77;
    let begun: Vec<Move> = first.moves.iter().take(5).cloned().collect();
    input.pending = begun.iter().map(|m| PendingMove { pg: m.pg, from: m.from, to: m.to }).collect();
    let p = tight(&input);
    for m in begun {
        assert!(p.moves.iter().any(|x| (x.pg, x.from, x.to) == (m.pg, m.from, m.to)), "{m:?}");
    }
}

#[test]
fn bytes_are_evened_with_the_counts() {
    let mut input = placed(topology(6, 2), vec![pool(1, 3, 128, FailureDomain::Node)]);
    // Half of the PGs are empty.
    input.current.iter_mut().for_each(|r| r.bytes = if r.pg.index % 2 == 0 { 0 } else { 64 << 30 });
    input.topology = topology(7, 2);
    let p = tight(&input);
    let total: u64 = p.target.iter().map(|r| r.bytes * 3).sum();
    let on_new: u64 = p.moves.iter().map(|m| m.bytes).sum();
    let share = total / 7;
    assert!(on_new.abs_diff(share) <= share / 10, "{on_new} bytes go to the new node, its share is {share}");
}

#[test]
fn leads_that_change_hands_even_the_bytes() {
    let mut input = placed(topology(4, 1), vec![pool(1, 3, 256, FailureDomain::Node)]);
    // One volume has data: on two PGs of each disk.
    let mut leads = BTreeMap::new();
    for row in &mut input.current {
        let led = leads.entry(row.disks[0]).or_insert(0);
        row.bytes = if *led < 2 { 512 << 20 } else { 0 };
        *led += 1;
    }
    let loaded = |p: &Plan| {
        let mut leads = BTreeMap::new();
        p.target.iter().filter(|r| r.bytes > 0).for_each(|r| *leads.entry(r.disks[0]).or_insert(0) += 1);
        let mut leads: Vec<i32> = leads.into_values().collect();
        leads.sort_unstable();
        leads
    };
    set_state(&mut input, |d| d.node == NodeId(4), DiskState::Draining);
    let drained = tight(&input);
    assert_eq!(loaded(&drained), [2, 3, 3]);
    input.current = drained.target;
    set_state(&mut input, |d| d.node == NodeId(4), DiskState::Up);
    assert_eq!(loaded(&tight(&input)), [2, 2, 2, 2]);
}

#[test]
fn a_full_copy_survives_the_loss_of_one_release() {
    let mut input =
        Input { topology: topology(8, 2), pools: vec![pool(1, 2, 128, FailureDomain::Release)], ..Input::default() };
    input.topology.disks.iter_mut().filter(|d| d.node.0 <= 4).for_each(|d| d.release = "1.1".to_owned());
    let alone = |input: &Input, p: &Plan| {
        let of = |d: &DiskId| input.topology.disks.iter().find(|x| x.id == *d).map(|x| x.release.clone());
        p.target.iter().filter(|r| r.disks.iter().all(|d| of(d) == of(&r.disks[0]))).count()
    };
    assert_eq!(alone(&input, &tight(&input)), 0, "a first placement costs no move");
    // A placement that knew nothing of releases gets there within the budget of several plans.
    input.pools[0].failure_domain = FailureDomain::Node;
    input.current = plan(&input).target;
    input.current.iter_mut().for_each(|r| r.bytes = 1 << 30);
    input.pools[0].failure_domain = FailureDomain::Release;
    let mut turns = 0;
    loop {
        let p = plan(&input);
        assert_eq!(check(&input, &p), Ok(()));
        assert!(p.moves.len() <= 13, "5 % of 256 replicas: {}", p.moves.len());
        assert!(p.balance.after.max_deviation_pgs <= 1.0 + 1e-6);
        let left = alone(&input, &p);
        assert_eq!(left > 0, p.rejected.iter().any(|r| r.reason.contains("version cohort")), "{:?}", p.rejected);
        if p.moves.is_empty() {
            break;
        }
        input.current = p.target;
        turns += 1;
        assert!(turns < 30, "it doesn't come to an end");
    }
    assert!(turns > 1);
    assert_eq!(alone(&input, &plan(&input)), 0);
}

#[test]
fn bad_rows_are_told_and_left_out() {
    let mut input = placed(topology(4, 1), vec![pool(1, 3, 8, FailureDomain::Node)]);
    let row = |pool, index| PgPlacement { pg: PgId { pool: PoolId(pool), index }, bytes: 1, disks: vec![DiskId(1)] };
    input.current.extend([row(9, 0), row(1, 99), row(1, 0)]);
    input.topology.disks.push(input.topology.disks[0].clone());
    let p = plan(&input);
    for what in ["pg 9.0", "pg 1.99", "pg 1.0", "d1"] {
        assert!(p.rejected.iter().any(|r| r.what == what), "{what}: {:?}", p.rejected);
    }
    assert_eq!(p.target.len(), 8);
}

/// Copies that a plan gives up, and how many of them were a primary's.
fn given_up(input: &Input, p: &Plan) -> (usize, usize) {
    let leads = |r: &&Removal| input.current.iter().any(|row| row.pg == r.pg && row.disks.first() == Some(&r.disk));
    (p.removals.len(), p.removals.iter().filter(leads).count())
}

#[test]
fn fewer_copies_cost_no_move() {
    for (nodes, per_node) in [(3, 1), (4, 3), (10, 2)] {
        for mixed in [false, true] {
            let mut t = topology(nodes, per_node);
            t.disks.iter_mut().filter(|d| mixed && d.id.0 % 2 == 0).for_each(|d| d.capacity_bytes *= 2);
            let mut input = placed(t, vec![pool(1, 3, 256, FailureDomain::Node)]);
            for replicas in [2, 1] {
                let before = input.pools[0].replicas;
                input.pools[0].replicas = replicas;
                let p = tight(&input);
                let name = format!("{nodes} nodes of {per_node}, mixed {mixed}, {replicas} copies");
                assert_eq!(p.moves, Vec::new(), "{name}");
                assert_eq!(given_up(&input, &p), (256 * (before - replicas) as usize, 0), "{name}");
                let freed: u64 = input.current.iter().map(|r| r.bytes).sum::<u64>() * u64::from(before - replicas);
                assert_eq!(p.totals.freed_bytes, freed, "{name}");
                let (bytes, target) = (input.current.clone(), p.target);
                input.current = target;
                input.current.iter_mut().zip(bytes).for_each(|(row, had)| row.bytes = had.bytes);
            }
        }
    }
}

#[test]
fn a_copy_that_must_leave_goes_first_when_there_are_fewer() {
    let mut input = placed(topology(4, 2), vec![pool(1, 3, 128, FailureDomain::Node)]);
    let on_first = |d: &DiskId| d.0 < 100;
    let held = input.current.iter().flat_map(|r| &r.disks).filter(|d| on_first(d)).count();
    input.topology.disks.iter_mut().filter(|d| d.node == NodeId(1)).for_each(|d| d.state = DiskState::Draining);
    input.pools[0].replicas = 2;
    let p = sound(&input);
    assert!(p.moves.iter().all(|m| m.class != MoveClass::Drain), "they go without a successor: {:?}", p.moves);
    assert_eq!(p.removals.iter().filter(|r| on_first(&r.disk)).count(), held);
    assert_eq!(p.removals.len(), 128);
    // Still three: nothing is given up, what must leave moves.
    input.pools[0].replicas = 3;
    let p = sound(&input);
    assert_eq!((p.removals.len(), p.moves.len()), (0, held));
}

#[test]
fn fewer_copies_and_a_new_node_are_one_plan() {
    let mut input = placed(topology(4, 1), vec![pool(1, 3, 120, FailureDomain::Node)]);
    input.topology = topology(5, 1);
    input.pools[0].replicas = 2;
    let p = tight(&input);
    // 90 each become 48: the new one's 48 are all that must be copied.
    assert_eq!((p.moves.len(), p.totals.lower_bound_moves), (48, 48));
    assert_eq!(given_up(&input, &p), (120, 0));
}

#[test]
fn the_judge_sees_broken_plans() {
    let mut input = placed(topology(6, 2), vec![pool(1, 3, 64, FailureDomain::Node)]);
    input.topology = topology(7, 2);
    let good = tight(&input);
    let broken = |f: &dyn Fn(&mut Plan)| {
        let mut p = good.clone();
        f(&mut p);
        check(&input, &p).unwrap_err()
    };
    let has = |v: Vec<Violation>, f: fn(&Violation) -> bool| assert!(v.iter().any(f), "{v:?}");
    has(broken(&|p| drop(p.target.pop())), |v| matches!(v, Violation::PgTimes { times: 0, .. }));
    has(broken(&|p| drop(p.moves.pop())), |v| matches!(v, Violation::MovesDontMatch { .. }));
    has(broken(&|p| p.target[0].disks.truncate(2)), |v| matches!(v, Violation::LosesCopies { .. }));
    has(broken(&|p| p.target[0].disks[1] = p.target[0].disks[0]), |v| matches!(v, Violation::SharedDomain { .. }));
    has(broken(&|p| p.target[0].disks[0] = DiskId(9999)), |v| matches!(v, Violation::ForbiddenDisk { .. }));
    has(broken(&|p| p.totals.bytes += 1), |v| matches!(v, Violation::Totals { .. }));
    has(
        broken(&|p| {
            p.removals.push(Removal { pg: p.target[0].pg, disk: p.target[0].disks[2], bytes: 0, reason: String::new() })
        }),
        |v| matches!(v, Violation::RemovalsDontMatch { .. }),
    );
    has(broken(&|p| p.totals.freed_bytes += 1), |v| matches!(v, Violation::Totals { .. }));
    let stays = Plan { target: input.current.clone(), totals: Totals::default(), ..Plan::default() };
    has(check(&input, &stays).unwrap_err(), |v| matches!(v, Violation::OutOfBalance { .. }));
    let mut fewer = input.clone();
    fewer.pools[0].replicas = 2;
    let mut kept = tight(&fewer);
    let (last, totals) = (kept.removals.pop().unwrap(), kept.totals);
    (kept.totals.removals, kept.totals.freed_bytes) = (totals.removals - 1, totals.freed_bytes - last.bytes);
    assert_eq!(check(&fewer, &kept), Err(vec![Violation::RemovalsDontMatch { pg: last.pg }]));
    input.topology.disks.iter_mut().for_each(|d| d.capacity_bytes = 1 << 30);
    has(check(&input, &good).unwrap_err(), |v| matches!(v, Violation::Overfilled { .. }));
}
