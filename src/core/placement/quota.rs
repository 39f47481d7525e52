//! A pool's shares, quotas and L from its layout.

use super::layout::{Disks, Layout, NONE};
use super::model::DiskState;
use super::share::{Rounding, Vessel, least_moves, quotas, water_fill};

/// Rounds of fitting shares into the space; each round caps the disks that the one before would have overfilled.
const ROUNDS_MAX: usize = 8;
/// A disk planned this little past its limit by mean sizes is left to the exact check of each move.
const OVER_RATIO: f64 = 1.001;

/// A disk's distance from its share, summed over the pools, that is left alone.
pub(super) const SUM_DEVIATION_MAX: f64 = 2.0;

/// Where it costs nothing, a disk's sum is brought this near: so that later changes rarely lead past the maximum.
const FREE_DEVIATION_MAX: f64 = 1.0;
/// Disks looked at for trades that cost nothing, in all: each trade looks at all others, in each pool.
const FREE_STEPS_MAX: usize = 20_000_000;

/// Sets shares, quotas and L of every pool, each pool minding what the ones before it got, so that their roundings
/// don't add up on one disk.
pub(super) fn set_quotas(pools: &mut [Layout<'_>], disks: &Disks, reject: &mut dyn FnMut(String, String)) {
    let even = vec![0.0; disks.len()];
    for _ in 0..ROUNDS_MAX {
        for pool in &mut *pools {
            share_and_quota(pool, disks, &even, &mut |_, _| ());
        }
        if !cap_by_space(pools, disks) {
            break;
        }
    }
    let mut excess = even;
    for pool in &mut *pools {
        let wanted = pool.spec.replicas as usize;
        pool.replicas = wanted;
        share_and_quota(pool, disks, &excess, reject);
        for (e, (q, s)) in excess.iter_mut().zip(pool.quota.iter().zip(&pool.share)) {
            *e += f64::from(*q) - s;
        }
    }
    level_sums(pools, disks, &mut excess);
}

/// Trades roundings within a pool until no disk's sum over the pools is too far from its share: as near as it costs
/// nothing, nearer than [`SUM_DEVIATION_MAX`] even at the cost of a move.
fn level_sums(pools: &mut [Layout<'_>], disks: &Disks, excess: &mut [f64]) {
    if pools.len() < 2 {
        return;
    }
    let trades_max = FREE_STEPS_MAX / (disks.len() * pools.len()).max(1);
    let mut budget: Vec<u64> = pools.iter().map(|p| p.least_moves / 50 + 2).collect();
    for (limit, free) in [(FREE_DEVIATION_MAX, true), (SUM_DEVIATION_MAX, false)] {
        let mut far: Vec<u32> = (0..disks.len() as u32).filter(|&d| excess[d as usize].abs() > limit).collect();
        far.sort_by(|&a, &b| excess[b as usize].abs().total_cmp(&excess[a as usize].abs()).then(a.cmp(&b)));
        for d in far.into_iter().take(if free { trades_max } else { usize::MAX }) {
            while excess[d as usize].abs() > limit {
                let over = excess[d as usize] > 0.0;
                let Some((costs, i, other)) = best_trade(pools, disks, excess, &budget, d, over, limit) else {
                    break;
                };
                if costs && free {
                    break;
                }
                budget[i] = budget[i].saturating_sub(u64::from(costs));
                let (down, up) = if over { (d, other) } else { (other, d) };
                pools[i].quota[down as usize] -= 1;
                pools[i].quota[up as usize] += 1;
                excess[down as usize] -= 1.0;
                excess[up as usize] += 1.0;
            }
        }
    }
}

/// Whether a trade costs a move, how few the pool has to spare, how far off the other disk ends.
type Rank = (bool, u64, f64);

/// The pool and the disk with which `d` trades one replica of quota: the one that costs least, then gains most.
fn best_trade(
    pools: &[Layout<'_>],
    disks: &Disks,
    excess: &[f64],
    budget: &[u64],
    d: u32,
    over: bool,
    limit: f64,
) -> Option<(bool, usize, u32)> {
    let free = |pool: &Layout<'_>, x: u32| pool.domain[x as usize] != NONE && disks.state[x as usize].takes();
    // It may be rounded the other way.
    let gives = |pool: &Layout<'_>, x: u32| free(pool, x) && f64::from(pool.quota[x as usize]) > pool.share[x as usize];
    let takes = |pool: &Layout<'_>, x: u32| free(pool, x) && f64::from(pool.quota[x as usize]) < pool.share[x as usize];
    let mut best: Option<(Rank, (usize, u32))> = None;
    for (i, pool) in pools.iter().enumerate() {
        if !(if over { gives(pool, d) } else { takes(pool, d) }) {
            continue;
        }
        let mut used = vec![0u32; pool.domains];
        (0..disks.len())
            .filter(|&x| pool.domain[x] != NONE)
            .for_each(|x| used[pool.domain[x] as usize] += pool.quota[x]);
        for x in (0..disks.len() as u32).filter(|&x| x != d) {
            let (down, up) = if over { (d, x) } else { (x, d) };
            if !gives(pool, down) || !takes(pool, up) {
                continue;
            }
            let (from, to) = (pool.domain[down as usize], pool.domain[up as usize]);
            if from != to && used[to as usize] >= pool.living() {
                continue;
            }
            let after = excess[x as usize] + if over { 1.0 } else { -1.0 };
            if after.abs() > limit {
                continue;
            }
            let costs = pool.count(up) <= pool.quota[up as usize] && pool.count(down) >= pool.quota[down as usize];
            // A pool that has moves to spare pays before one that has not.
            let spare = if costs { u64::MAX - budget[i] } else { 0 };
            let rank = (costs, spare, after.abs());
            let better =
                best.is_none_or(|(b, _)| rank.0.cmp(&b.0).then(rank.1.cmp(&b.1)).then(rank.2.total_cmp(&b.2)).is_lt());
            if better {
                best = Some((rank, (i, x)));
            }
        }
    }
    best.map(|(rank, (i, x))| (rank.0, i, x))
}

/// Splits the room of disks that the shares would overfill among the pools; false if there is none.
fn cap_by_space(pools: &mut [Layout<'_>], disks: &Disks) -> bool {
    let mean: Vec<f64> =
        pools.iter().map(|p| p.bytes.iter().map(|b| *b as f64).sum::<f64>() / f64::from(p.pg_count().max(1))).collect();
    let mut capped = false;
    for d in 0..disks.len() {
        let planned: f64 = pools.iter().zip(&mean).map(|(p, m)| p.share[d] * m).sum();
        let room = disks.limit[d].saturating_sub(disks.base[d]) as f64;
        if planned <= room * OVER_RATIO || planned == 0.0 {
            continue;
        }
        for pool in &mut *pools {
            // What a disk holds already need not leave it for want of space.
            let cap = (pool.share[d] * room / planned).max(f64::from(pool.count(d as u32)));
            if cap < pool.share[d] {
                pool.room[d] = cap;
                capped = true;
            }
        }
    }
    capped
}

/// Sets `share`, `quota`, `replicas` and `least_moves`.
fn share_and_quota(pool: &mut Layout<'_>, disks: &Disks, excess: &[f64], reject: &mut dyn FnMut(String, String)) {
    let pgs = pool.living();
    let usable: Vec<u32> = (0..disks.len() as u32).filter(|&d| pool.domain[d as usize] != NONE).collect();
    let takes = |d: u32| disks.state[d as usize].takes() && disks.weight[d as usize] > 0.0;
    let reach = (0..pool.domains).filter(|&k| pool.members[k].iter().any(|&d| takes(d) || pool.count(d) > 0)).count();
    if reach < pool.replicas {
        let kind = format!("{:?}", pool.spec.failure_domain).to_lowercase();
        reject(
            format!("pool {}", pool.spec.name),
            format!(
                "{} replicas need {} failure domains ({kind}); {reach} can take them, so each PG gets at most {reach}",
                pool.spec.replicas, pool.spec.replicas
            ),
        );
        pool.replicas = reach;
    }
    // As if disks that are away took part, so that a short absence moves nothing; if their counts are too far off
    // for that, what they hold is fixed and the others share the rest.
    let relaxed = |d: u32| match disks.state[d as usize] {
        DiskState::Up => Vessel {
            domain: 0,
            weight: disks.weight[d as usize],
            min: 0.0,
            max: pool.room[d as usize].min(f64::from(pgs)),
        },
        DiskState::Draining | DiskState::Failed | DiskState::Lost => {
            Vessel { domain: 0, weight: 0.0, min: 0.0, max: 0.0 }
        }
        _ => Vessel { domain: 0, weight: disks.weight[d as usize], min: 0.0, max: f64::from(pgs) },
    };
    let strict = |d: u32| {
        let count = f64::from(pool.count(d));
        match disks.state[d as usize] {
            DiskState::Down | DiskState::Maintenance => Vessel { min: count, max: count, ..relaxed(d) },
            DiskState::Full => Vessel { max: count, ..relaxed(d) },
            _ => relaxed(d),
        }
    };
    let (share, quota) = [&relaxed as &dyn Fn(u32) -> Vessel, &strict]
        .iter()
        .find_map(|vessel| attempt(pool, disks, &usable, excess, *vessel, false))
        .or_else(|| attempt(pool, disks, &usable, excess, &strict, true))
        .unwrap_or_else(|| (vec![0.0; disks.len()], (0..disks.len() as u32).map(|d| pool.count(d)).collect()));
    pool.share = share;
    pool.quota = quota;
    let count: Vec<u32> = (0..disks.len() as u32).map(|d| pool.count(d)).collect();
    let has_data = pool.fresh.iter().any(|f| !f);
    pool.least_moves = if has_data { least_moves(&pool.share, &count, pool.forbidden, pool.free) } else { 0 };
}

/// Shares and quotas for one reading of the disks' bounds; `partial` takes as much of the total as fits.
fn attempt(
    pool: &Layout<'_>,
    disks: &Disks,
    usable: &[u32],
    excess: &[f64],
    vessel: &dyn Fn(u32) -> Vessel,
    partial: bool,
) -> Option<(Vec<f64>, Vec<u32>)> {
    let pgs = pool.living();
    let vessels: Vec<Vessel> =
        usable.iter().map(|&d| Vessel { domain: pool.domain[d as usize], ..vessel(d) }).collect();
    let mut total = u64::from(pgs) * pool.replicas as u64;
    let some = water_fill(&vessels, pool.domains, f64::from(pgs), total as f64);
    let rounding: Vec<Rounding> = usable
        .iter()
        .zip(&some)
        .map(|(&d, &s)| {
            let count = pool.count(d);
            let (low, high) = match disks.state[d as usize] {
                DiskState::Down | DiskState::Maintenance => (count, count),
                DiskState::Full if f64::from(count) <= s => (count, count),
                _ => (s.floor() as u32, s.ceil() as u32),
            };
            Rounding {
                domain: pool.domain[d as usize],
                low,
                high,
                count,
                excess: excess[d as usize] + f64::from(high) - s,
            }
        })
        .collect();
    let mut few = quotas(&rounding, pool.domains, pgs, total);
    if partial && few.is_none() {
        // All that the bounds hold, then.
        let mut sums = vec![0u64; pool.domains];
        rounding.iter().for_each(|r| sums[r.domain as usize] += u64::from(r.high));
        total = total.min(sums.iter().map(|s| (*s).min(u64::from(pgs))).sum());
        few = quotas(&rounding, pool.domains, pgs, total).or_else(|| Some(rounding.iter().map(|r| r.low).collect()));
    }
    let few = few?;
    let mut share = vec![0.0; disks.len()];
    let mut quota = vec![0; disks.len()];
    for ((&d, s), q) in usable.iter().zip(some).zip(few) {
        share[d as usize] = s;
        quota[d as usize] = q;
    }
    Some((share, quota))
}
