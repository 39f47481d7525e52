//! An independent judge of plans: it shares only the model with the planner.
//!
//! It is kept naive on purpose. It proves what a wrong plan could destroy: copies, domains, space; that the moves are
//! the difference between today and the target; and, where nothing is rejected, the balance.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::model::{DiskInfo, DiskState, FailureDomain, Input, PgPlacement, Plan, PoolSpec};
use crate::core::ids::{DiskId, PgId, PoolId};

/// What is wrong with a plan.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Violation {
    /// The target leaves a PG out or has it twice.
    #[error("pg {pg} is in the target {times} times, not once")]
    PgTimes {
        /// The PG.
        pg: PgId,
        /// How often.
        times: usize,
    },
    /// The target's row is longer than the pool's replica count.
    #[error("pg {pg} has {replicas} replicas, more than its pool's {wanted}")]
    TooManyReplicas {
        /// The PG.
        pg: PgId,
        /// In the target.
        replicas: usize,
        /// In the pool.
        wanted: u32,
    },
    /// A row is short, and nothing says why.
    #[error("pg {pg} has {replicas} of {wanted} replicas and no reason is given")]
    TooFewReplicas {
        /// The PG.
        pg: PgId,
        /// In the target.
        replicas: usize,
        /// In the pool.
        wanted: u32,
    },
    /// Two replicas share a failure domain.
    #[error("pg {pg}: {a} and {b} are in one failure domain")]
    SharedDomain {
        /// The PG.
        pg: PgId,
        /// One disk.
        a: DiskId,
        /// The other.
        b: DiskId,
    },
    /// A replica is planned onto a disk that may not have it.
    #[error("pg {pg}: {disk} may not hold it: {why}")]
    ForbiddenDisk {
        /// The PG.
        pg: PgId,
        /// The disk.
        disk: DiskId,
        /// Why.
        why: &'static str,
    },
    /// A replica leaves a disk that is away and keeps what it has.
    #[error("pg {pg} leaves {disk}, which keeps its replicas while it is away")]
    TakenFromKeeper {
        /// The PG.
        pg: PgId,
        /// The disk.
        disk: DiskId,
    },
    /// The plan ends with fewer live copies than there are.
    #[error("pg {pg} ends with {after} live copies of {before}")]
    LosesCopies {
        /// The PG.
        pg: PgId,
        /// Live copies today, at most the pool's count.
        before: usize,
        /// In the target.
        after: usize,
    },
    /// A disk that takes replicas ends past its backfill limit.
    #[error("{disk} ends with {bytes} bytes, past its limit of {limit}")]
    Overfilled {
        /// The disk.
        disk: DiskId,
        /// What it would hold.
        bytes: u64,
        /// What it may hold.
        limit: u64,
    },
    /// The moves don't lead from today to the target.
    #[error("pg {pg}: its moves don't lead to its target")]
    MovesDontMatch {
        /// The PG.
        pg: PgId,
    },
    /// The copies that are given up are not those that today has beyond the target and its moves.
    #[error("pg {pg}: the copies that it gives up are not those that it has beyond its pool's count")]
    RemovalsDontMatch {
        /// The PG.
        pg: PgId,
    },
    /// Totals don't add up.
    #[error("totals say {told} {what}, the moves sum to {found}")]
    Totals {
        /// Which total.
        what: &'static str,
        /// As told.
        told: u64,
        /// As found.
        found: u64,
    },
    /// A primary change names a disk that isn't the target's primary.
    #[error("pg {pg}: the primary change to {to} isn't what the target says")]
    PrimaryChange {
        /// The PG.
        pg: PgId,
        /// As told.
        to: DiskId,
    },
    /// A disk is further than one PG from its share, and nothing says why.
    #[error("pool {pool}: {disk} holds {count}, its share is {share:.3}, and no reason is given")]
    OutOfBalance {
        /// The pool.
        pool: PoolId,
        /// The disk.
        disk: DiskId,
        /// Replicas in the target.
        count: u32,
        /// Its share.
        share: f64,
    },
}

/// Judges `plan` as an answer to `input`.
///
/// # Errors
/// Everything that is wrong, in the order of the target.
pub fn check(input: &Input, plan: &Plan) -> Result<(), Vec<Violation>> {
    let mut bad = Vec::new();
    let mut disks: HashMap<DiskId, &DiskInfo> = HashMap::new();
    for d in &input.topology.disks {
        disks.entry(d.id).or_insert(d);
    }
    let mut pools: BTreeMap<PoolId, &PoolSpec> = BTreeMap::new();
    for p in &input.pools {
        pools.entry(p.id).or_insert(p);
    }
    let mut today: HashMap<PgId, &PgPlacement> = HashMap::new();
    for row in &input.current {
        today.entry(row.pg).or_insert(row);
    }
    let mut times: HashMap<PgId, usize> = HashMap::new();
    plan.target.iter().for_each(|r| *times.entry(r.pg).or_default() += 1);
    for p in pools.values() {
        for index in 0..p.pg_count {
            let pg = PgId { pool: p.id, index };
            let n = times.remove(&pg).unwrap_or(0);
            if n != 1 {
                bad.push(Violation::PgTimes { pg, times: n });
            }
        }
    }
    bad.extend(times.into_iter().map(|(pg, times)| Violation::PgTimes { pg, times }));
    let mut moved: HashMap<PgId, (BTreeSet<DiskId>, BTreeSet<DiskId>, usize)> = HashMap::new();
    for m in &plan.moves {
        let e = moved.entry(m.pg).or_default();
        e.0.extend(m.from);
        e.1.insert(m.to);
        e.2 += 1;
    }
    for row in &plan.target {
        let Some(pool) = pools.get(&row.pg.pool) else { continue };
        check_row(pool, row, today.get(&row.pg).copied(), &disks, plan, &mut bad);
        check_moves(row, today.get(&row.pg).copied(), moved.get(&row.pg), &disks, pool, &mut bad);
    }
    check_removals(plan, &pools, &today, &disks, &mut bad);
    check_space(input, plan, &disks, &mut bad);
    check_totals(plan, &today, &mut bad);
    for pool in pools.values() {
        check_balance(input, plan, pool, &mut bad);
    }
    if bad.is_empty() { Ok(()) } else { Err(bad) }
}

fn same_domain(level: FailureDomain, a: &DiskInfo, b: &DiskInfo) -> bool {
    match level {
        FailureDomain::Disk => a.id == b.id,
        FailureDomain::Node | FailureDomain::Release => a.node == b.node,
        FailureDomain::Rack => a.zone == b.zone && a.rack == b.rack,
        FailureDomain::Zone => a.zone == b.zone,
    }
}

fn explained(plan: &Plan, pool: &PoolSpec) -> bool {
    let name = format!("pool {}", pool.name);
    plan.rejected.iter().any(|r| r.what == name)
}

fn live(id: &DiskId, disks: &HashMap<DiskId, &DiskInfo>) -> bool {
    disks.get(id).is_some_and(|d| {
        matches!(d.state, DiskState::Up | DiskState::Draining | DiskState::Maintenance | DiskState::Full)
    })
}

fn check_row(
    pool: &PoolSpec,
    row: &PgPlacement,
    before: Option<&PgPlacement>,
    disks: &HashMap<DiskId, &DiskInfo>,
    plan: &Plan,
    bad: &mut Vec<Violation>,
) {
    let pg = row.pg;
    let had: &[DiskId] = before.map_or(&[], |r| &r.disks);
    let exists = |id: &DiskId| disks.get(id).is_some_and(|d| !matches!(d.state, DiskState::Failed | DiskState::Lost));
    if !had.is_empty() && !had.iter().any(exists) {
        // No copy is left: the row must stay as it is.
        if row.disks != had {
            bad.push(Violation::LosesCopies { pg, before: 0, after: 0 });
        }
        return;
    }
    if row.disks.len() > pool.replicas as usize {
        bad.push(Violation::TooManyReplicas { pg, replicas: row.disks.len(), wanted: pool.replicas });
    }
    if row.disks.len() < pool.replicas as usize && !explained(plan, pool) {
        bad.push(Violation::TooFewReplicas { pg, replicas: row.disks.len(), wanted: pool.replicas });
    }
    let clashes = |list: &[DiskId]| {
        let known: Vec<&&DiskInfo> = list.iter().filter_map(|id| disks.get(id)).collect();
        let of =
            |(i, a): (usize, &&&DiskInfo)| known[..i].iter().filter(|b| same_domain(pool.failure_domain, a, b)).count();
        known.iter().enumerate().map(of).sum::<usize>()
    };
    // Replicas that share a domain today, under a rule that has changed, may have no other place.
    let no_worse = explained(plan, pool) && clashes(&row.disks) <= clashes(had);
    for (i, id) in row.disks.iter().enumerate() {
        let Some(d) = disks.get(id) else {
            bad.push(Violation::ForbiddenDisk { pg, disk: *id, why: "it is not in the topology" });
            continue;
        };
        let is_new = !had.contains(id);
        let wrong_class = pool.class.as_ref().is_some_and(|c| *c != d.class);
        let why = match d.state {
            DiskState::Failed | DiskState::Lost => Some("it is lost"),
            DiskState::Draining if is_new || !explained(plan, pool) => Some("it is draining"),
            DiskState::Down if is_new => Some("it is down"),
            DiskState::Maintenance if is_new => Some("it is in maintenance"),
            DiskState::Full if is_new => Some("it is full"),
            _ if wrong_class && (is_new || !explained(plan, pool)) => Some("its class is not the pool's"),
            _ => None,
        };
        bad.extend(why.map(|why| Violation::ForbiddenDisk { pg, disk: *id, why }));
        for other in &row.disks[..i] {
            let Some(o) = disks.get(other) else { continue };
            if id == other || (same_domain(pool.failure_domain, d, o) && !no_worse) {
                bad.push(Violation::SharedDomain { pg, a: *other, b: *id });
            }
        }
    }
    for id in had.iter().filter(|id| !row.disks.contains(id)) {
        let Some(d) = disks.get(id) else { continue };
        let fits_rule = pool.class.as_ref().is_none_or(|c| *c == d.class);
        let alone =
            !had.iter().any(|o| o != id && disks.get(o).is_some_and(|o| same_domain(pool.failure_domain, d, o)));
        let needed = had.len() <= pool.replicas as usize;
        if matches!(d.state, DiskState::Down | DiskState::Maintenance) && fits_rule && alone && needed {
            bad.push(Violation::TakenFromKeeper { pg, disk: *id });
        }
    }
    let unique: BTreeSet<&DiskId> = had.iter().filter(|id| live(id, disks)).collect();
    let before_live = unique.len().min(pool.replicas as usize);
    let after_live = row.disks.iter().filter(|id| live(id, disks)).count();
    if after_live < before_live {
        bad.push(Violation::LosesCopies { pg, before: before_live, after: after_live });
    }
}

fn check_moves(
    row: &PgPlacement,
    before: Option<&PgPlacement>,
    moved: Option<&(BTreeSet<DiskId>, BTreeSet<DiskId>, usize)>,
    disks: &HashMap<DiskId, &DiskInfo>,
    pool: &PoolSpec,
    bad: &mut Vec<Violation>,
) {
    let had: BTreeSet<DiskId> = before.map(|r| r.disks.iter().copied().collect()).unwrap_or_default();
    let has: BTreeSet<DiskId> = row.disks.iter().copied().collect();
    let none = (BTreeSet::new(), BTreeSet::new(), 0);
    let (from, to, n) = moved.unwrap_or(&none);
    let expected: BTreeSet<DiskId> =
        if had.is_empty() { BTreeSet::new() } else { has.difference(&had).copied().collect() };
    let sources_leave = from.iter().all(|f| had.contains(f) && !has.contains(f));
    if *to != expected || *n != expected.len() || !sources_leave {
        bad.push(Violation::MovesDontMatch { pg: row.pg });
        return;
    }
    // A live replica that leaves without a successor must be one too many, or one of two in a domain.
    let crowded = |d: &DiskId| {
        let of = |id: &DiskId| disks.get(id);
        has.iter().any(|o| of(o).zip(of(d)).is_some_and(|(a, b)| same_domain(pool.failure_domain, a, b)))
    };
    let dropped = had.difference(&has).filter(|d| !from.contains(d) && live(d, disks) && !crowded(d)).count();
    if dropped > 0 && has.len() < pool.replicas as usize && !had.is_empty() {
        bad.push(Violation::MovesDontMatch { pg: row.pg });
    }
}

/// What is given up is what no move and no target needs, and only where the target has all copies that the pool asks for.
fn check_removals(
    plan: &Plan,
    pools: &BTreeMap<PoolId, &PoolSpec>,
    today: &HashMap<PgId, &PgPlacement>,
    disks: &HashMap<DiskId, &DiskInfo>,
    bad: &mut Vec<Violation>,
) {
    let mut told: BTreeMap<PgId, Vec<DiskId>> = BTreeMap::new();
    plan.removals.iter().for_each(|r| told.entry(r.pg).or_default().push(r.disk));
    let mut moved: BTreeSet<(PgId, DiskId)> = BTreeSet::new();
    moved.extend(plan.moves.iter().filter_map(|m| Some((m.pg, m.from?))));
    let there = |id: &DiskId| disks.get(id).is_some_and(|d| !matches!(d.state, DiskState::Failed | DiskState::Lost));
    for row in &plan.target {
        let had = today.get(&row.pg).map_or(&[][..], |r| &r.disks);
        let wanted = pools.get(&row.pg.pool).map_or(usize::MAX, |p| p.replicas as usize);
        let is_whole = row.disks.len() >= wanted && row.disks.iter().any(there);
        let beyond = |id: &&DiskId| there(id) && !row.disks.contains(id) && !moved.contains(&(row.pg, **id));
        let expected: BTreeSet<DiskId> = had.iter().filter(|_| is_whole).filter(beyond).copied().collect();
        let mine = told.remove(&row.pg).unwrap_or_default();
        if mine.len() != expected.len() || mine.into_iter().collect::<BTreeSet<_>>() != expected {
            bad.push(Violation::RemovalsDontMatch { pg: row.pg });
        }
    }
    bad.extend(told.into_keys().map(|pg| Violation::RemovalsDontMatch { pg }));
}

fn check_space(input: &Input, plan: &Plan, disks: &HashMap<DiskId, &DiskInfo>, bad: &mut Vec<Violation>) {
    let sum = |rows: &[PgPlacement]| {
        let mut held: BTreeMap<DiskId, u128> = BTreeMap::new();
        for row in rows {
            row.disks
                .iter()
                .collect::<BTreeSet<_>>()
                .into_iter()
                .for_each(|d| *held.entry(*d).or_default() += u128::from(row.bytes));
        }
        held
    };
    let (before, after) = (sum(&input.current), sum(&plan.target));
    let takers: BTreeSet<DiskId> = plan.moves.iter().filter(|m| m.bytes > 0).map(|m| m.to).collect();
    for id in takers {
        let Some(d) = disks.get(&id) else { continue };
        let own = before.get(&id).copied().unwrap_or(0);
        let other = u128::from(d.used_bytes).saturating_sub(own) + u128::from(d.reserved_bytes);
        let bytes = other + after.get(&id).copied().unwrap_or(0);
        let limit = (d.capacity_bytes as f64 * input.limits.backfill_limit_ratio) as u64;
        if bytes > u128::from(limit) {
            bad.push(Violation::Overfilled { disk: id, bytes: bytes.min(u128::from(u64::MAX)) as u64, limit });
        }
    }
}

fn check_totals(plan: &Plan, today: &HashMap<PgId, &PgPlacement>, bad: &mut Vec<Violation>) {
    let bytes = plan.moves.iter().fold(0u64, |s, m| s.saturating_add(m.bytes));
    if plan.totals.bytes != bytes {
        bad.push(Violation::Totals { what: "bytes", told: plan.totals.bytes, found: bytes });
    }
    if plan.totals.moves != plan.moves.len() as u64 {
        bad.push(Violation::Totals { what: "moves", told: plan.totals.moves, found: plan.moves.len() as u64 });
    }
    let freed = plan.removals.iter().fold(0, |s: u64, r| s.saturating_add(r.bytes));
    if plan.totals.removals != plan.removals.len() as u64 {
        bad.push(Violation::Totals { what: "removals", told: plan.totals.removals, found: plan.removals.len() as u64 });
    }
    if plan.totals.freed_bytes != freed {
        bad.push(Violation::Totals { what: "bytes freed", told: plan.totals.freed_bytes, found: freed });
    }
    let primaries: HashMap<PgId, Option<&DiskId>> = plan.target.iter().map(|r| (r.pg, r.disks.first())).collect();
    for (pg, to) in &plan.primary_changes {
        let same = today.get(pg).and_then(|r| r.disks.first()) == Some(to);
        if same || primaries.get(pg).copied().flatten() != Some(to) {
            bad.push(Violation::PrimaryChange { pg: *pg, to: *to });
        }
    }
}

/// The plain case only: every disk of the pool is up or on its way out. There the share is found by giving each
/// domain in turn what it can hold.
fn check_balance(input: &Input, plan: &Plan, pool: &PoolSpec, bad: &mut Vec<Violation>) {
    let of_class: Vec<&DiskInfo> =
        input.topology.disks.iter().filter(|d| pool.class.as_ref().is_none_or(|c| *c == d.class)).collect();
    let plain = |s: DiskState| !matches!(s, DiskState::Down | DiskState::Maintenance | DiskState::Full);
    if explained(plan, pool) || of_class.iter().any(|d| !plain(d.state)) {
        return;
    }
    let up: Vec<&DiskInfo> = of_class.into_iter().filter(|d| d.state == DiskState::Up).collect();
    let mut count: HashMap<DiskId, u32> = HashMap::new();
    let rows = plan.target.iter().filter(|r| r.pg.pool == pool.id);
    rows.flat_map(|r| &r.disks).for_each(|d| *count.entry(*d).or_default() += 1);
    // PGs without a copy have no place.
    let existing: BTreeSet<DiskId> = input
        .topology
        .disks
        .iter()
        .filter(|d| !matches!(d.state, DiskState::Failed | DiskState::Lost))
        .map(|d| d.id)
        .collect();
    let mine = input.current.iter().filter(|r| r.pg.pool == pool.id && !r.disks.is_empty());
    let dead = mine.filter(|r| !r.disks.iter().any(|d| existing.contains(d))).count();
    let pgs = f64::from(pool.pg_count) - dead as f64;
    // Domains by capacity, largest first; one whose proportional part exceeds a replica of each PG gets just that.
    let key = |d: &DiskInfo| match pool.failure_domain {
        FailureDomain::Disk => (String::new(), String::new(), d.id.0),
        FailureDomain::Node | FailureDomain::Release => (String::new(), String::new(), d.node.0),
        FailureDomain::Rack => (d.zone.clone(), d.rack.clone(), 0),
        FailureDomain::Zone => (d.zone.clone(), String::new(), 0),
    };
    let mut capacity: BTreeMap<(String, String, u32), f64> = BTreeMap::new();
    up.iter().for_each(|d| *capacity.entry(key(d)).or_default() += d.capacity_bytes as f64);
    let mut order: Vec<f64> = capacity.values().copied().collect();
    order.sort_by(|a, b| b.total_cmp(a));
    let (mut rest, mut weight) = (pgs * f64::from(pool.replicas), order.iter().sum::<f64>());
    for w in order {
        if weight <= 0.0 || rest * w / weight <= pgs {
            break;
        }
        rest -= pgs;
        weight -= w;
    }
    if weight <= 0.0 {
        weight = 1.0;
    }
    for d in up {
        let whole = capacity.get(&key(d)).copied().unwrap_or(0.0);
        let domain_share = (rest * whole / weight).min(pgs);
        let share = if whole > 0.0 { domain_share * d.capacity_bytes as f64 / whole } else { 0.0 };
        let n = count.get(&d.id).copied().unwrap_or(0);
        if (f64::from(n) - share).abs() > 1.0 + 1e-3 {
            bad.push(Violation::OutOfBalance { pool: pool.id, disk: d.id, count: n, share });
        }
    }
}
