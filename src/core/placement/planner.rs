//! The planner's course: build, quotas, fill by urgency, even, primaries, then the moves as the difference.

use std::collections::HashSet;

use super::cancel::cancel;
use super::check::check;
use super::cohort::{COHORT_REASON, spread};
use super::even::even;
use super::fill::fill;
use super::layout::{Disks, Layout, NONE, build, index_disks};
use super::missing::Missing;
use super::model::{
    Balance, DiskState, Evenness, Input, MissingCapacity, Move, MoveClass, PgPlacement, Plan, Rejected, Removal, Totals,
};
use super::primary;
use super::quota::set_quotas;
use super::trim::trim;
use crate::core::ids::{DiskId, PgId};

/// Turns towards a target from which planning again moves nothing; the first is nearly always enough.
const SETTLE_TURNS_MAX: usize = 4;

/// Above this many PGs what is out of reach is left to the next plan: turns would take seconds.
const SETTLE_PGS_MAX: usize = 100_000;

/// A pool's lower bound of movement and what it rests on.
#[derive(Clone, PartialEq, Debug)]
pub struct PoolBound {
    /// The pool.
    pub pool: crate::core::ids::PoolId,
    /// L: no plan that brings every disk to within one of its share has fewer moves.
    pub least_moves: u64,
    /// Each disk's feasible share, in PG replicas; disks that the pool may not use are left out.
    pub shares: Vec<(DiskId, f64)>,
}

/// Makes a plan. Pure: the same input gives the same plan. Planning again on the target gives no move.
pub fn plan(input: &Input) -> Plan {
    let mut plan = attempt(input, false, true);
    // Short of space: again, all PGs to two copies before any to three.
    let by_level = plan.missing_capacity_bytes > 0;
    if by_level {
        plan = attempt(input, true, true);
    }
    // Where something is out of reach, the choice of what stays could differ from the target on: go there at once.
    for _ in 0..SETTLE_TURNS_MAX {
        if plan.rejected.is_empty() || plan.target.len() > SETTLE_PGS_MAX {
            break;
        }
        let from = Input { current: plan.target.clone(), pending: Vec::new(), ..input.clone() };
        // Without cohorts: their budget is for one plan.
        let mut next = attempt(&from, by_level, false);
        if next.moves.is_empty() {
            break;
        }
        next.rejected.extend(plan.rejected.iter().filter(|r| r.reason.starts_with(COHORT_REASON)).cloned());
        let settled = retarget(input, next);
        // Space that is free at the target on the way need not be free on the direct one.
        if check(input, &settled).is_err() {
            break;
        }
        plan = settled;
    }
    plan
}

/// `next`, made for a target on the way, as a plan for `input`.
fn retarget(input: &Input, next: Plan) -> Plan {
    let mut disks = index_disks(input, &mut |_, _| ());
    let mut pools = build(input, &mut disks, &mut |_, _| ());
    set_quotas(&mut pools, &disks, &mut |_, _| ());
    for pool in &mut pools {
        pool.rows.iter_mut().for_each(Vec::clear);
        pool.held.iter_mut().for_each(Vec::clear);
        let mine = next.target.iter().filter(|r| r.pg.pool == pool.spec.id);
        for row in mine {
            let known: Vec<u32> = row.disks.iter().filter_map(|d| disks.index.get(d).copied()).collect();
            known.into_iter().for_each(|d| pool.place(&mut disks, row.pg.index, d));
        }
    }
    finish(&pools, &disks, next.missing_capacity, next.rejected)
}

/// Each pool's feasible shares and L.
pub fn lower_bound(input: &Input) -> Vec<PoolBound> {
    let mut disks = index_disks(input, &mut |_, _| ());
    let mut pools = build(input, &mut disks, &mut |_, _| ());
    set_quotas(&mut pools, &disks, &mut |_, _| ());
    pools
        .iter()
        .map(|p| PoolBound {
            pool: p.spec.id,
            least_moves: p.least_moves,
            shares: (0..disks.len()).filter(|&d| p.domain[d] != NONE).map(|d| (disks.ids[d], p.share[d])).collect(),
        })
        .collect()
}

fn attempt(input: &Input, by_level: bool, cohorts: bool) -> Plan {
    let mut rejected = Vec::new();
    let mut reject = |what: String, reason: String| rejected.push(Rejected { what, reason });
    let mut disks = index_disks(input, &mut reject);
    let mut pools = build(input, &mut disks, &mut reject);
    set_quotas(&mut pools, &disks, &mut |_, _| ());
    let least: Vec<u64> = pools.iter().map(|p| p.least_moves).collect();
    for pool in &mut pools {
        trim(pool, &mut disks);
    }
    // Again, for what is left; the bound is that of the whole way.
    set_quotas(&mut pools, &disks, &mut reject);
    pools.iter_mut().zip(least).for_each(|(p, l)| p.least_moves = l);
    keep_pending(input, &mut pools, &mut disks);
    let most = pools.iter().map(|p| p.replicas).max().unwrap_or(0);
    let levels: Vec<usize> = if by_level { (1..=most).collect() } else { vec![most] };
    for level in levels {
        for pool in &mut pools {
            fill(pool, &mut disks, level, input.seed);
        }
    }
    for pool in &mut pools {
        let settled: Vec<u32> = pool.pinned.iter().copied().filter(|&pg| !needs_evicted(pool, &disks, pg)).collect();
        settled.into_iter().for_each(|pg| pool.unpin(&mut disks, pg));
    }
    // Where replicas can't leave a place that they should, the pool is not evened until they can: what stays could be
    // either of two, and evening by one and then the other would never end.
    let can_be_evened = |p: &Layout<'_>| p.pinned.is_empty();
    for pool in pools.iter_mut().filter(|p| can_be_evened(p)) {
        even(pool, &mut disks, input.seed);
    }
    // What was moved away may have left room for a copy that found none.
    for pool in &mut pools {
        fill(pool, &mut disks, most, input.seed);
    }
    let mut deviation = vec![0.0; disks.len()];
    for pool in &pools {
        for (d, off) in deviation.iter_mut().enumerate() {
            *off += f64::from(pool.count(d as u32)) - pool.share[d];
        }
    }
    for pool in pools.iter_mut().filter(|p| can_be_evened(p)) {
        cancel(pool, &mut disks, &mut deviation);
    }
    for pool in pools.iter_mut().filter(|p| cohorts && can_be_evened(p)) {
        spread(input, pool, &mut disks, &mut reject);
    }
    let mut missing = Vec::new();
    for pool in &mut pools {
        missing.extend(settle_holes(pool, &mut disks, input, &mut reject));
    }
    revert_overfilled(&mut pools, &mut disks, &mut reject);
    for pool in &mut pools {
        let today: Vec<u32> = first_today(pool);
        primary::choose(pool, &disks, &today);
    }
    for pool in &pools {
        explain_balance(pool, &disks, &mut reject);
    }
    finish(&pools, &disks, missing, rejected)
}

/// The plan whose target is in the pools' rows.
fn finish(pools: &[Layout<'_>], disks: &Disks, missing: Vec<MissingCapacity>, rejected: Vec<Rejected>) -> Plan {
    let mut plan = Plan {
        missing_capacity_bytes: missing.iter().fold(0, |sum, m| sum.saturating_add(m.bytes)),
        missing_capacity: missing,
        ..Plan::default()
    };
    for pool in pools {
        emit(pool, disks, &mut plan);
    }
    plan.target.sort_by_key(|r| r.pg);
    plan.moves.sort_by_key(|m| (m.class, m.pg, m.to));
    plan.removals.sort_by_key(|r| (r.pg, r.disk));
    plan.totals = Totals {
        moves: plan.moves.len() as u64,
        bytes: plan.moves.iter().fold(0, |s: u64, m| s.saturating_add(m.bytes)),
        lower_bound_moves: pools.iter().map(|p| p.least_moves).sum(),
        removals: plan.removals.len() as u64,
        freed_bytes: plan.removals.iter().fold(0, |s: u64, r| s.saturating_add(r.bytes)),
    };
    plan.balance = Balance { before: evenness(pools, disks, false), after: evenness(pools, disks, true) };
    plan.rejected = rejected;
    plan
}

/// Today's primaries, [`NONE`] where gone.
fn first_today(pool: &Layout<'_>) -> Vec<u32> {
    pool.today.iter().map(|t| t.first().copied().unwrap_or(NONE)).collect()
}

/// Takes over moves that have begun, if they still bring a disk nearer to its quota.
fn keep_pending(input: &Input, pools: &mut [Layout<'_>], disks: &mut Disks) {
    for m in &input.pending {
        let Some(pool) = pools.iter_mut().find(|p| p.spec.id == m.pg.pool) else { continue };
        let (Some(&to), pg) = (disks.index.get(&m.to), m.pg.index) else { continue };
        if pg >= pool.pg_count() || !disks.state[to as usize].takes() || pool.lacking(to) == 0 {
            continue;
        }
        if !pool.fits(disks, pg, to) || pool.today[pg as usize].is_empty() {
            continue;
        }
        let from = m.from.and_then(|f| disks.index.get(&f).copied()).filter(|f| pool.rows[pg as usize].contains(f));
        match from {
            Some(f) if pool.surplus(f) > 0 && pool.admits(pg, pool.domain[to as usize], f) => {
                pool.shift(disks, pg, f, to)
            }
            None if pool.holes(pg) > 0 && pool.admits(pg, pool.domain[to as usize], NONE) => pool.place(disks, pg, to),
            _ => (),
        }
    }
}

/// What found no place stays where it is, if it still exists; returns where room lacks.
fn settle_holes(
    pool: &mut Layout<'_>,
    disks: &mut Disks,
    input: &Input,
    reject: &mut dyn FnMut(String, String),
) -> Vec<MissingCapacity> {
    let dead = std::mem::take(&mut pool.dead);
    for &pg in &dead {
        reject(
            format!("pg {}", PgId { pool: pool.spec.id, index: pg }),
            "no copy of it is left: bring a disk back or restore it by salvage".to_owned(),
        );
    }
    let is_dead: HashSet<u32> = dead.iter().copied().collect();
    // The few disks, if space is short, that could take anything at all.
    let smallest = (0..pool.pg_count()).filter(|&pg| pool.holes(pg) > 0).map(|pg| pool.bytes[pg as usize]).min();
    let roomy: Vec<u32> = (0..disks.len() as u32)
        .filter(|&d| pool.domain[d as usize] != NONE && disks.state[d as usize].takes())
        .filter(|&d| smallest.is_some_and(|b| disks.fits(d, b)))
        .collect();
    let (mut pgs, mut kept, mut waiting) = (0u64, 0u64, 0u64);
    let mut missing = Missing::default();
    for pg in 0..pool.pg_count() {
        let lacking = pool.holes(pg);
        if is_dead.contains(&pg) || (lacking == 0 && !needs_evicted(pool, disks, pg)) {
            continue;
        }
        let room = lacking == 0
            || roomy.iter().any(|&d| pool.admits(pg, pool.domain[d as usize], NONE) && pool.fits(disks, pg, d));
        if !room {
            missing.add(pool, disks, pg, lacking);
        }
        kept += keep_evicted(pool, disks, pg);
        if !room {
            pgs += 1;
        } else if lacking > 0 {
            waiting += 1;
        }
    }
    pool.dead = dead;
    if kept > 0 {
        reject(
            format!("pool {}", pool.spec.name),
            format!("{kept} replicas stay on disks that they should leave: no other disk may take them"),
        );
    }
    if waiting > 0 {
        reject(
            format!("pool {}", pool.spec.name),
            format!("{waiting} PGs wait for a copy: the room for it comes free only with this plan's other moves"),
        );
    }
    let missing = missing.of(pool, disks);
    if pgs > 0 {
        let class = pool.spec.class.as_deref().map_or("of any class".to_owned(), |c| format!("of class {c}"));
        let bytes = missing.iter().fold(0u64, |sum, m| sum.saturating_add(m.bytes));
        reject(
            format!("pool {}", pool.spec.name),
            format!(
                "{pgs} PGs lack room for a replica: {bytes} bytes {class} are missing below the backfill limit of {:.0} % in a further failure domain ({:?})",
                input.limits.backfill_limit_ratio * 100.0,
                pool.spec.failure_domain
            ),
        );
    }
    missing
}

/// What was kept for want of another place may leave too little room for what was planned onto the same disk: those
/// PGs stay as they are today.
fn revert_overfilled(pools: &mut [Layout<'_>], disks: &mut Disks, reject: &mut dyn FnMut(String, String)) {
    let mut reverted = vec![0u64; pools.len()];
    // Each turn reverts at least one PG for good, which may overfill another taker.
    loop {
        let mut again = false;
        for d in 0..disks.len() as u32 {
            for (pool, n) in pools.iter_mut().zip(&mut reverted) {
                while disks.load[d as usize] > disks.limit[d as usize] {
                    let held = &pool.held[d as usize];
                    let new =
                        held.iter().copied().filter(|&pg| pool.bytes[pg as usize] > 0 && !pool.is_original(pg, d));
                    let Some(pg) = new.max_by_key(|&pg| (pool.bytes[pg as usize], pg)) else { break };
                    for x in pool.rows[pg as usize].clone() {
                        pool.remove(disks, pg, x);
                    }
                    let mut row = pool.today[pg as usize].clone();
                    row.sort_by_key(|&x| !disks.state[x as usize].is_live());
                    row.truncate(pool.spec.replicas as usize);
                    row.into_iter().for_each(|x| pool.place(disks, pg, x));
                    *n += 1;
                    again = true;
                }
            }
        }
        if !again {
            break;
        }
    }
    for (pool, n) in pools.iter().zip(reverted).filter(|(_, n)| *n > 0) {
        reject(
            format!("pool {}", pool.spec.name),
            format!("{n} PGs stay as they are: there is no room for their moves below the backfill limit"),
        );
    }
}

/// A replica that should leave adds a copy where it is: the PG lacks one, or would lose one.
fn needs_evicted(pool: &Layout<'_>, disks: &Disks, pg: u32) -> bool {
    let row = &pool.rows[pg as usize];
    let Some(evicted) = pool.evicted.get(&pg) else { return false };
    disks.live(row) < live_wanted(pool, disks, pg)
        || (!pool.is_whole(pg) && evicted.iter().any(|&d| row.iter().all(|&x| pool.apart(x, d))))
}

/// Live copies that the plan must end with.
fn live_wanted(pool: &Layout<'_>, disks: &Disks, pg: u32) -> usize {
    disks.live(&pool.today[pg as usize]).min(pool.spec.replicas as usize)
}

/// Puts replicas that should leave back where a copy would be lost for want of another place; returns how many.
fn keep_evicted(pool: &mut Layout<'_>, disks: &mut Disks, pg: u32) -> u64 {
    let reserved = pool.pinned.contains(&pg);
    pool.unpin(disks, pg);
    let Some(evicted) = pool.evicted.get(&pg).cloned() else { return 0 };
    let mut list = evicted.clone();
    // The replica that stayed may since have been planned onto the very disk of one that was to leave.
    let others: Vec<u32> = pool.today[pg as usize].iter().copied().filter(|d| !list.contains(d)).collect();
    list.extend(others);
    let mut kept = 0;
    // Where it stands alone in its domain it adds to safety; else only if a copy would be lost.
    for alone in [true, false] {
        for &d in &list {
            let row = &pool.rows[pg as usize];
            let lone = row.iter().all(|&x| pool.apart(x, d));
            let lost = disks.live(row) < live_wanted(pool, disks, pg) && disks.state[d as usize].is_live();
            let room = reserved || disks.fits(d, pool.bytes[pg as usize]);
            let spare = lone && !pool.is_whole(pg) && evicted.contains(&d) && room;
            if row.contains(&d) || lone != alone || !(lost || spare) {
                continue;
            }
            if pool.is_whole(pg) {
                // A copy that can be read is worth more than one that can't.
                let away = row.iter().copied().find(|&x| !disks.state[x as usize].is_live());
                let Some(away) = away else { continue };
                pool.remove(disks, pg, away);
            }
            pool.place(disks, pg, d);
            kept += 1;
        }
    }
    kept
}

/// Says where the balance is out of reach.
fn explain_balance(pool: &Layout<'_>, disks: &Disks, reject: &mut dyn FnMut(String, String)) {
    let bound = pool.room.iter().zip(&pool.share).filter(|(room, s)| **s + 1e-6 >= **room).count();
    if bound > 0 {
        reject(
            format!("pool {}", pool.spec.name),
            format!("balance: {bound} disks have no room for their share by capacity; the others take the rest"),
        );
    }
    let off = |d: u32| (f64::from(pool.count(d)) - pool.share[d as usize]).abs();
    let far: Vec<u32> =
        (0..disks.len() as u32).filter(|&d| pool.domain[d as usize] != NONE && off(d) >= 1.0 + 1e-6).collect();
    let Some(&worst) = far.iter().max_by(|&&a, &&b| off(a).total_cmp(&off(b)).then(b.cmp(&a))) else { return };
    let why = match disks.state[worst as usize] {
        DiskState::Down => "it is down and keeps what it has",
        DiskState::Maintenance => "it is in maintenance and keeps what it has",
        DiskState::Full => "it is full and takes nothing",
        DiskState::Draining => "its replicas have no other place",
        _ => "space or failure domains allow no better",
    };
    reject(
        format!("pool {}", pool.spec.name),
        format!(
            "balance: {} disks stay more than one PG from their share; {} holds {} of {:.2}: {why}",
            far.len(),
            disks.ids[worst as usize],
            pool.count(worst),
            pool.share[worst as usize]
        ),
    );
}

/// Writes the pool's rows and the moves that lead to them.
fn emit(pool: &Layout<'_>, disks: &Disks, plan: &mut Plan) {
    let dead: HashSet<u32> = pool.dead.iter().copied().collect();
    for pg in 0..pool.pg_count() {
        let id = PgId { pool: pool.spec.id, index: pg };
        let (row, today) = (&pool.rows[pg as usize], &pool.today[pg as usize]);
        let mut names: Vec<DiskId> = row.iter().map(|&d| disks.ids[d as usize]).collect();
        if dead.contains(&pg) {
            names = pool.gone.get(&pg).cloned().unwrap_or_default();
        }
        if !pool.fresh[pg as usize] && !dead.contains(&pg) {
            let begun = plan.moves.len();
            moves_of(pool, disks, id, plan);
            removals_of(pool, disks, id, begun, plan);
            let first = today.first().map(|&d| disks.ids[d as usize]);
            if let Some(&p) =
                names.first().filter(|p| Some(**p) != first || pool.gone.get(&pg).is_some_and(|g| g.contains(p)))
            {
                plan.primary_changes.push((id, p));
            }
        }
        plan.target.push(PgPlacement { pg: id, bytes: pool.bytes[pg as usize], disks: names });
    }
}

fn moves_of(pool: &Layout<'_>, disks: &Disks, id: PgId, plan: &mut Plan) {
    let (row, today) = (&pool.rows[id.index as usize], &pool.today[id.index as usize]);
    let mut added: Vec<u32> = row.iter().copied().filter(|d| !today.contains(d)).collect();
    if added.is_empty() {
        return;
    }
    let mut removed: Vec<u32> = today.iter().copied().filter(|d| !row.contains(d)).collect();
    // Where a PG has several moves, each replaces a replica of its own domain if it can, so that no step of the way
    // has two in one.
    let mut pairs: Vec<(Option<u32>, u32)> = Vec::with_capacity(added.len());
    added.retain(|&a| {
        let same = removed.iter().position(|&r| pool.domain[r as usize] == pool.domain[a as usize]);
        if let Some(i) = same {
            pairs.push((Some(removed.remove(i)), a));
        }
        same.is_none()
    });
    let mut gone = pool.gone.get(&id.index).cloned().unwrap_or_default();
    let live = disks.live(today);
    let class = if live <= 1 && pool.replicas > 1 { MoveClass::RepairCritical } else { MoveClass::Repair };
    let bytes = pool.bytes[id.index as usize];
    let mut push = |from: Option<DiskId>, to: u32, class: MoveClass, reason: String| {
        plan.moves.push(Move { pg: id, from, to: disks.ids[to as usize], bytes, class, reason });
    };
    // What must leave is replaced before a copy counts as missing.
    removed.sort_by_key(|&d| !must_leave(pool, disks, d));
    for a in added {
        // A live replica that leaves has its successor even where a lost one finds none.
        if !removed.is_empty() {
            pairs.push((Some(removed.remove(0)), a));
        } else if !gone.is_empty() {
            let lost = gone.remove(0);
            push(Some(lost), a, class, format!("{lost} is lost; {live} live copies"));
        } else {
            push(None, a, class, format!("{} of {} copies exist", today.len(), pool.spec.replicas));
        }
    }
    for (from, to) in pairs {
        let Some(f) = from else { continue };
        let name = disks.ids[f as usize];
        let evicted = pool.evicted.get(&id.index).is_some_and(|e| e.contains(&f));
        if disks.state[f as usize] == DiskState::Draining {
            push(Some(name), to, MoveClass::Drain, format!("{name} is draining"));
        } else if pool.domain[f as usize] == NONE {
            push(Some(name), to, MoveClass::Drain, format!("{name} is not of the pool's class"));
        } else if evicted {
            push(Some(name), to, MoveClass::Drain, format!("{name} shares a failure domain with another replica"));
        } else {
            push(Some(name), to, MoveClass::Rebalance, format!("{name} is above its share"));
        }
    }
}

/// What a PG that has all its copies no longer needs, beside what its moves (from `begun` on) take away.
fn removals_of(pool: &Layout<'_>, disks: &Disks, id: PgId, begun: usize, plan: &mut Plan) {
    let (row, today) = (&pool.rows[id.index as usize], &pool.today[id.index as usize]);
    if !pool.is_whole(id.index) {
        return;
    }
    let moved: Vec<DiskId> = plan.moves[begun..].iter().filter_map(|m| m.from).collect();
    for &d in today.iter().filter(|d| !row.contains(d)) {
        let disk = disks.ids[d as usize];
        if moved.contains(&disk) {
            continue;
        }
        let (wanted, have) = (pool.spec.replicas, today.len());
        let why = if today.first() == Some(&d) { "; the balance needs that it is the primary's" } else { "" };
        let reason = format!("the pool keeps {wanted} of {have} copies{why}");
        plan.removals.push(Removal { pg: id, disk, bytes: pool.bytes[id.index as usize], reason });
    }
}

fn must_leave(pool: &Layout<'_>, disks: &Disks, d: u32) -> bool {
    disks.state[d as usize] == DiskState::Draining || pool.domain[d as usize] == NONE
}

fn evenness(pools: &[Layout<'_>], disks: &Disks, after: bool) -> Evenness {
    let mut total = vec![0u64; disks.len()];
    let (mut squares, mut n, mut worst) = (0.0, 0u64, 0.0f64);
    for pool in pools {
        let mut count = vec![0u32; disks.len()];
        for row in if after { &pool.rows } else { &pool.today } {
            row.iter().for_each(|&d| count[d as usize] += 1);
        }
        for d in 0..disks.len() {
            total[d] += u64::from(count[d]);
            if pool.domain[d] == NONE || disks.state[d].is_gone() {
                continue;
            }
            let off = (f64::from(count[d]) - pool.share[d]).abs();
            squares += off * off;
            n += 1;
            worst = worst.max(off);
        }
    }
    let (mut replicas, mut weight, mut max) = (0.0, 0.0, 0.0f64);
    for d in (0..disks.len()).filter(|&d| disks.weight[d] > 0.0 && !disks.state[d].is_gone()) {
        replicas += total[d] as f64;
        weight += disks.weight[d];
        max = max.max(total[d] as f64 / disks.weight[d]);
    }
    Evenness {
        max_over_mean: if replicas > 0.0 { max / (replicas / weight) } else { 0.0 },
        stddev: if n > 0 { (squares / n as f64).sqrt() } else { 0.0 },
        max_deviation_pgs: worst,
    }
}
