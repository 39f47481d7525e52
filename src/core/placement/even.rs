//! Moves replicas from disks above their quota to disks below it, one move for each wherever domains allow it.
//!
//! Among the PGs that may move, the one is taken whose size brings both disks nearest to their share of bytes, so
//! that counts and bytes become even together.

use std::collections::BTreeSet;

use super::augment::{Augment, Start};
use super::layout::{Disks, Layout, NONE};
use super::rng::mix;

/// Domains that are tried for a direct move before a chain is searched: only a row's own domains refuse it.
const DOMAINS_TRIED_MAX: usize = 32;
/// Searches for a chain that fail in a row before the rest are given up: each has seen all that can be reached.
const FAILURES_MAX: usize = 64;

/// Disks' shares of the bytes, by weight among those that take part.
fn byte_share(disks: &Disks) -> f64 {
    let (mut load, mut weight) = (0.0, 0.0);
    for d in 0..disks.len() {
        if disks.state[d].is_live() && disks.weight[d] > 0.0 {
            load += disks.load[d] as f64;
            weight += disks.weight[d];
        }
    }
    if weight > 0.0 { load / weight } else { 0.0 }
}

/// Brings the pool's counts to the quotas.
pub(super) fn even(pool: &mut Layout<'_>, disks: &mut Disks, seed: u64) {
    let per_weight = byte_share(disks);
    let mut short: Vec<Vec<u32>> = vec![Vec::new(); pool.domains];
    let mut need = vec![0u64; pool.domains];
    for d in 0..disks.len() as u32 {
        let k = pool.domain[d as usize];
        if k != NONE && pool.lacking(d) > 0 && disks.state[d as usize].takes() {
            short[k as usize].push(d);
            need[k as usize] += u64::from(pool.lacking(d));
        }
    }
    let mut by_need: BTreeSet<(u64, u32)> =
        need.iter().enumerate().filter(|(_, n)| **n > 0).map(|(k, n)| (*n, k as u32)).collect();
    let gives: Vec<u32> = (0..disks.len() as u32)
        .filter(|&d| pool.domain[d as usize] != NONE && pool.surplus(d) > 0 && !disks.state[d as usize].keeps())
        .collect();
    // A move within a domain is always allowed, so those come first and leave the choice to the others.
    for within in [true, false] {
        // In turns, so that each giver has its share of the PGs with many bytes: one that gave all that it has to give
        // at once would take them all, and another, full one would be left with empty PGs to give.
        let mut open = gives.clone();
        while !open.is_empty() {
            open.retain(|&d| {
                if pool.surplus(d) == 0 {
                    return false;
                }
                let own = pool.domain[d as usize];
                let found = if within {
                    (need[own as usize] > 0).then(|| direct(pool, disks, d, own, &short, per_weight, seed)).flatten()
                } else {
                    let next = by_need.iter().rev().take(DOMAINS_TRIED_MAX);
                    next.copied().find_map(|(_, k)| direct(pool, disks, d, k, &short, per_weight, seed))
                };
                let Some((pg, u)) = found else { return false };
                pool.shift(disks, pg, d, u);
                let k = pool.domain[u as usize];
                by_need.remove(&(need[k as usize], k));
                need[k as usize] -= 1;
                if need[k as usize] > 0 {
                    by_need.insert((need[k as usize], k));
                }
                if pool.lacking(u) == 0 {
                    short[k as usize].retain(|x| *x != u);
                }
                true
            });
        }
    }
    let stuck: Vec<u32> = gives.iter().copied().filter(|&d| pool.surplus(d) > 0).collect();
    let mut search = Augment::new(disks.len());
    let mut failures = 0;
    for d in stuck {
        while pool.surplus(d) > 0 && failures < FAILURES_MAX {
            if search.run(pool, disks, Start::Surplus(d)) {
                failures = 0;
            } else {
                failures += 1;
                break;
            }
        }
    }
}

/// The best PG to go from `d` to the neediest disk of domain `k`.
fn direct(
    pool: &Layout<'_>,
    disks: &Disks,
    d: u32,
    k: u32,
    short: &[Vec<u32>],
    per_weight: f64,
    seed: u64,
) -> Option<(u32, u32)> {
    let room = |u: u32| disks.limit[u as usize].saturating_sub(disks.load[u as usize]);
    let u = short[k as usize].iter().copied().max_by_key(|&u| (pool.lacking(u), room(u), std::cmp::Reverse(u)))?;
    let over = |x: u32| disks.load[x as usize] as f64 - per_weight * disks.weight[x as usize];
    let from_giver = over(d) / f64::from(pool.surplus(d).max(1));
    let to_taker = -over(u) / f64::from(pool.lacking(u).max(1));
    let ideal = 0.5 * (from_giver + to_taker);
    let off = |pg: u32| (pool.bytes[pg as usize] as f64 - ideal).abs();
    pool.held[d as usize]
        .iter()
        .copied()
        .filter(|&pg| pool.admits(pg, k, d) && pool.fits(disks, pg, u))
        .min_by(|&a, &b| {
            let tie = |pg: u32| mix(seed ^ u64::from(pg));
            off(a).total_cmp(&off(b)).then(tie(a).cmp(&tie(b))).then(a.cmp(&b))
        })
        .map(|pg| (pg, u))
}
