//! Takes needless moves out of a finished layout: cancels cycles of negative cost.
//!
//! The direct moves and chains before it are greedy, and where domains bind tightly an early choice can cost a move
//! later. A flow is of least cost when its residual graph has no negative cycle. The graph's nodes are disks; an
//! edge x → y is a PG on x that may stand on y, at the moves that it adds; one more node stands for the freedom
//! between a share's floor and ceiling. Quadratic in the disks, so only for clusters small enough; in larger ones
//! the greedy choice meets L.

use super::layout::{Disks, Layout, NONE};
use super::quota::SUM_DEVIATION_MAX;

/// Above this many disks the greedy choice stands.
const DISKS_MAX: usize = 256;
/// Edge visits per pool before the search is given up: a fraction of a second.
const WORK_MAX: u64 = 100_000_000;
#[derive(Clone, Copy)]
struct Edge {
    cost: i32,
    pg: u32,
}

const NO_EDGE: Edge = Edge { cost: i32::MAX, pg: NONE };

/// Moves that the layout costs.
fn cost(pool: &Layout<'_>) -> u64 {
    let new = |pg: u32| pool.rows[pg as usize].iter().filter(|&&d| !pool.is_original(pg, d)).count() as u64;
    (0..pool.pg_count()).filter(|&pg| !pool.fresh[pg as usize]).map(new).sum()
}

/// Cancels while there is something to gain. `deviation` is each disk's distance from its share over all pools.
pub(super) fn cancel(pool: &mut Layout<'_>, disks: &mut Disks, deviation: &mut [f64]) {
    let usable: Vec<u32> = (0..disks.len() as u32).filter(|&d| pool.domain[d as usize] != NONE).collect();
    let n = usable.len();
    if n > DISKS_MAX {
        return;
    }
    let replicas: u64 = pool.rows.iter().map(|r| r.len() as u64).sum();
    let (mut work, mut turn) = (0u64, 0u32);
    while cost(pool) > pool.least_moves && work < WORK_MAX {
        let edges = graph(pool, disks, &usable, deviation, turn);
        work += replicas * n as u64;
        let Some(cycle) = negative_cycle(&edges, n + 1, &mut work) else { return };
        if !apply(pool, disks, &usable, &edges, &cycle, deviation) {
            // The cycle used one PG twice: take other PGs for its edges.
            turn += 1;
            if turn > 8 {
                return;
            }
        }
    }
}

/// All edges, row by row; node `usable.len()` is the slack.
fn graph(pool: &Layout<'_>, disks: &Disks, usable: &[u32], deviation: &[f64], turn: u32) -> Vec<Edge> {
    let n = usable.len();
    let mut edges = vec![NO_EDGE; (n + 1) * (n + 1)];
    for (i, &x) in usable.iter().enumerate() {
        if disks.state[x as usize].keeps() {
            continue;
        }
        let held = &pool.held[x as usize];
        for at in 0..held.len() {
            let pg = held[(at + turn as usize * 7) % held.len()];
            let from = i32::from(!pool.is_original(pg, x));
            for (j, &y) in usable.iter().enumerate() {
                if x == y || !disks.state[y as usize].takes() || pool.must_leave(pg, y) {
                    continue;
                }
                if !pool.admits(pg, pool.domain[y as usize], x) {
                    continue;
                }
                let cost = i32::from(!pool.is_original(pg, y)) - from;
                let edge = &mut edges[i * (n + 1) + j];
                if cost < edge.cost {
                    *edge = Edge { cost, pg };
                }
            }
        }
        let (count, share) = (f64::from(pool.count(x)), pool.share[x as usize]);
        let off = deviation[x as usize];
        if count - 1.0 >= share.floor() && off - 1.0 > -SUM_DEVIATION_MAX {
            edges[n * (n + 1) + i] = Edge { cost: 0, pg: NONE };
        }
        if count + 1.0 <= share.ceil() && off + 1.0 < SUM_DEVIATION_MAX && disks.state[x as usize].takes() {
            edges[i * (n + 1) + n] = Edge { cost: 0, pg: NONE };
        }
    }
    edges
}

/// Bellman-Ford from everywhere at once; the nodes of one negative cycle in order.
fn negative_cycle(edges: &[Edge], n: usize, work: &mut u64) -> Option<Vec<usize>> {
    let mut dist = vec![0i32; n];
    let mut came = vec![usize::MAX; n];
    let mut last = usize::MAX;
    for _ in 0..=n {
        last = usize::MAX;
        *work += (n * n) as u64;
        for x in 0..n {
            for y in 0..n {
                let e = edges[x * n + y];
                if e.cost != i32::MAX && dist[x] + e.cost < dist[y] {
                    dist[y] = dist[x] + e.cost;
                    came[y] = x;
                    last = y;
                }
            }
        }
        if last == usize::MAX {
            return None;
        }
    }
    // Back far enough to stand on the cycle.
    let mut x = last;
    for _ in 0..n {
        x = came[x];
    }
    let mut cycle = vec![x];
    let mut y = came[x];
    while y != x {
        cycle.push(y);
        y = came[y];
    }
    cycle.reverse();
    Some(cycle)
}

/// Makes the cycle's shifts, or none of them.
fn apply(
    pool: &mut Layout<'_>,
    disks: &mut Disks,
    usable: &[u32],
    edges: &[Edge],
    cycle: &[usize],
    deviation: &mut [f64],
) -> bool {
    let n = usable.len();
    let mut shifts = Vec::with_capacity(cycle.len());
    for (i, &a) in cycle.iter().enumerate() {
        let b = cycle[(i + 1) % cycle.len()];
        if a < n && b < n {
            shifts.push((edges[a * (n + 1) + b].pg, usable[a], usable[b]));
        }
    }
    let mut done = 0;
    for &(pg, x, y) in &shifts {
        if !pool.admits(pg, pool.domain[y as usize], x) || !pool.rows[pg as usize].contains(&x) {
            break;
        }
        pool.shift(disks, pg, x, y);
        done += 1;
    }
    let fits =
        shifts.iter().all(|s| pool.bytes[s.0 as usize] == 0 || disks.load[s.2 as usize] <= disks.limit[s.2 as usize]);
    if done < shifts.len() || !fits {
        for &(pg, x, y) in shifts[..done].iter().rev() {
            pool.shift(disks, pg, y, x);
        }
        return false;
    }
    for &(_, x, y) in &shifts {
        deviation[x as usize] -= 1.0;
        deviation[y as usize] += 1.0;
    }
    true
}
