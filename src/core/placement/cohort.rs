//! Version cohorts: a full copy survives the loss of all nodes of one release.
//!
//! Best effort within a movement budget, and reported: a PG whose replicas are all on one release trades a replica
//! with a PG that has one on another, or moves it where the balance allows. Counts per disk stay within their shares.
//! What the budget leaves is told, and the next plan goes on.

use std::collections::{BTreeMap, HashMap};

use super::layout::{Disks, Layout, NONE};
use super::model::{FailureDomain, Input};

/// What reasons of this kind begin with.
pub(super) const COHORT_REASON: &str = "version cohort";
/// Disks of other releases that are looked at for one PG, and PGs on each: partners are plenty in a mixed cluster.
const DISKS_TRIED_MAX: usize = 128;
const PGS_TRIED_MAX: usize = 64;

/// Spreads the pool's PGs over releases if it, or the input, asks for it.
pub(super) fn spread(input: &Input, pool: &mut Layout<'_>, disks: &mut Disks, reject: &mut dyn FnMut(String, String)) {
    let wanted = match (input.cohort, pool.spec.failure_domain) {
        (Some(c), _) => c,
        (None, FailureDomain::Release) => super::model::Cohort::default(),
        _ => return,
    };
    let mut names: HashMap<&str, u32> = HashMap::new();
    let release: Vec<u32> = disks
        .source
        .iter()
        .map(|&i| {
            let next = names.len() as u32;
            *names.entry(input.topology.disks[i].release.as_str()).or_insert(next)
        })
        .collect();
    let mut by_release: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for d in (0..disks.len() as u32).filter(|&d| pool.domain[d as usize] != NONE && disks.state[d as usize].takes()) {
        by_release.entry(release[d as usize]).or_default().push(d);
    }
    if by_release.len() < 2 {
        return;
    }
    let replicas: usize = pool.rows.iter().map(Vec::len).sum();
    let mut budget = (replicas as f64 * wanted.budget_ratio.clamp(0.0, 1.0)) as i64;
    let mut left = 0u64;
    for pg in 0..pool.pg_count() {
        if !is_alone(&pool.rows[pg as usize], &release) {
            continue;
        }
        match best_step(pool, disks, &by_release, &release, pg) {
            Some(step) if step.cost <= budget || step.cost <= 0 => {
                budget -= step.cost.max(0);
                step.make(pool, disks);
            }
            _ => left += 1,
        }
    }
    if left > 0 {
        reject(
            format!("pool {}", pool.spec.name),
            format!(
                "version cohort: {left} PGs have all replicas on one release: balance, domains or the movement budget allow no more for now"
            ),
        );
    }
}

/// All of several replicas are on nodes of one release.
fn is_alone(row: &[u32], release: &[u32]) -> bool {
    row.len() > 1 && row.iter().all(|&d| release[d as usize] == release[row[0] as usize])
}

/// `pg` goes from `x` to `y`; in a trade `partner` goes the other way.
struct Step {
    cost: i64,
    pg: u32,
    x: u32,
    y: u32,
    partner: Option<u32>,
}

impl Step {
    fn make(&self, pool: &mut Layout<'_>, disks: &mut Disks) {
        pool.shift(disks, self.pg, self.x, self.y);
        if let Some(q) = self.partner {
            pool.shift(disks, q, self.y, self.x);
        }
    }
}

/// Moves that taking `pg` from one disk to the other adds; none for a PG without data.
fn cost(pool: &Layout<'_>, pg: u32, from: u32, to: u32) -> i64 {
    if pool.fresh[pg as usize] {
        return 0;
    }
    i64::from(pool.is_original(pg, from)) - i64::from(pool.is_original(pg, to))
}

fn best_step(
    pool: &Layout<'_>,
    disks: &Disks,
    by_release: &BTreeMap<u32, Vec<u32>>,
    release: &[u32],
    pg: u32,
) -> Option<Step> {
    let own = release[pool.rows[pg as usize][0] as usize];
    let others: Vec<u32> = by_release.iter().filter(|(r, _)| **r != own).flat_map(|(_, d)| d.iter().copied()).collect();
    let bytes = pool.bytes[pg as usize];
    let mut best: Option<Step> = None;
    let mut offer = |step: Step| {
        if best.as_ref().is_none_or(|b| step.cost < b.cost) {
            best = Some(step);
        }
    };
    for &x in pool.rows[pg as usize].iter().filter(|&&x| !disks.state[x as usize].keeps()) {
        // Each PG starts elsewhere, so that not all trade with the same disks.
        let start = pg as usize % others.len();
        for i in 0..others.len().min(DISKS_TRIED_MAX) {
            let y = others[(start + i) % others.len()];
            if !pool.admits(pg, pool.domain[y as usize], x) || pool.must_leave(pg, y) {
                continue;
            }
            let own_cost = cost(pool, pg, x, y);
            let slack =
                f64::from(pool.count(x)) > pool.share[x as usize] && f64::from(pool.count(y)) < pool.share[y as usize];
            if slack && disks.fits(y, bytes) {
                offer(Step { cost: own_cost, pg, x, y, partner: None });
                continue;
            }
            if !disks.state[x as usize].takes() {
                continue;
            }
            for &q in pool.held[y as usize].iter().take(PGS_TRIED_MAX) {
                let allowed = pool.admits(q, pool.domain[x as usize], y) && !pool.must_leave(q, x);
                if !allowed || pool.rows[q as usize].contains(&x) || pool.rows[pg as usize].contains(&y) {
                    continue;
                }
                // The partner must not end alone.
                let stays = pool.rows[q as usize].iter().any(|&d| d != y && release[d as usize] != own);
                let room = |d: u32, gets: u64, gives: u64| {
                    gets <= gives || disks.load[d as usize].saturating_add(gets - gives) <= disks.limit[d as usize]
                };
                let other = pool.bytes[q as usize];
                if stays && room(y, bytes, other) && room(x, other, bytes) {
                    offer(Step { cost: own_cost + cost(pool, q, y, x), pg, x, y, partner: Some(q) });
                    break;
                }
            }
        }
    }
    best
}
