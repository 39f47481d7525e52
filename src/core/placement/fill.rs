//! Finds a disk for every missing replica.
//!
//! Domains are drawn at random in proportion to what they lack, so that the PGs of one disk are spread over many
//! others and a recovery has many sources; a domain that needs a replica of every PG still to come is taken first,
//! without which the last ones would not fit. Within a domain the emptiest disk by bytes is taken, largest PGs first.

use std::collections::BTreeSet;

use super::augment::{Augment, Start};
use super::layout::{Disks, Layout, NONE};
use super::rng::{Rng, mix};

/// Domains drawn before all are searched: enough that a row's own few domains rarely spoil them all.
const DRAWS_MAX: usize = 8;
/// Domains searched when no draw helped: only those of the row itself and those without room refuse.
const DOMAINS_TRIED_MAX: usize = 64;
/// Disks of a domain that are tried for room: those after it are fuller by bytes.
const DISKS_TRIED_MAX: usize = 16;
/// Searches for a detour that fail in a row before the rest are given up: each has seen all that can be reached.
const FAILURES_MAX: usize = 64;

/// Weighted drawing over domains (a Fenwick tree).
struct Lottery {
    tree: Vec<u64>,
}

impl Lottery {
    fn new(weights: &[u64]) -> Self {
        let mut l = Lottery { tree: vec![0; weights.len() + 1] };
        weights.iter().enumerate().for_each(|(i, w)| l.add(i, *w as i64));
        l
    }
    fn add(&mut self, at: usize, delta: i64) {
        let mut i = at + 1;
        while i < self.tree.len() {
            self.tree[i] = self.tree[i].wrapping_add_signed(delta);
            i += i & i.wrapping_neg();
        }
    }
    /// The first index whose prefix sum exceeds `x`, which is below the sum of all.
    fn find(&self, mut x: u64) -> usize {
        let mut at = 0;
        let mut step = (self.tree.len()).next_power_of_two();
        while step > 0 {
            if at + step < self.tree.len() && self.tree[at + step] <= x {
                at += step;
                x -= self.tree[at];
            }
            step /= 2;
        }
        at
    }
}

/// What the domains and disks lack.
struct Needs {
    domain: Vec<u64>,
    by_need: BTreeSet<(u64, u32)>,
    lottery: Lottery,
    total: u64,
    /// Per domain its disks that lack replicas, emptiest first.
    disks: Vec<BTreeSet<(u64, u32)>>,
    key: Vec<u64>,
}

impl Needs {
    fn new(pool: &Layout<'_>, disks: &Disks) -> Self {
        let mut n = Needs {
            domain: vec![0; pool.domains],
            by_need: BTreeSet::new(),
            lottery: Lottery::new(&[]),
            total: 0,
            disks: vec![BTreeSet::new(); pool.domains],
            key: vec![0; disks.len()],
        };
        for d in 0..disks.len() as u32 {
            let lacking = u64::from(pool.lacking(d));
            if pool.domain[d as usize] != NONE && lacking > 0 && disks.state[d as usize].takes() {
                let k = pool.domain[d as usize] as usize;
                n.domain[k] += lacking;
                n.total += lacking;
                n.key[d as usize] = key(pool, disks, d);
                n.disks[k].insert((n.key[d as usize], d));
            }
        }
        n.lottery = Lottery::new(&n.domain);
        n.by_need = n.domain.iter().enumerate().filter(|(_, w)| **w > 0).map(|(k, w)| (*w, k as u32)).collect();
        n
    }

    /// `d` was given a replica.
    fn took(&mut self, pool: &Layout<'_>, disks: &Disks, d: u32) {
        let k = pool.domain[d as usize];
        let need = &mut self.domain[k as usize];
        self.by_need.remove(&(*need, k));
        *need -= 1;
        if *need > 0 {
            self.by_need.insert((*need, k));
        }
        self.total -= 1;
        self.lottery.add(k as usize, -1);
        self.disks[k as usize].remove(&(self.key[d as usize], d));
        if pool.lacking(d) > 0 {
            self.key[d as usize] = key(pool, disks, d);
            self.disks[k as usize].insert((self.key[d as usize], d));
        }
    }

    fn disk_in(&self, pool: &Layout<'_>, disks: &Disks, domain: u32, pg: u32) -> Option<u32> {
        self.disks[domain as usize].iter().take(DISKS_TRIED_MAX).map(|x| x.1).find(|&d| pool.fits(disks, pg, d))
    }

    fn choose(&self, pool: &Layout<'_>, disks: &Disks, pg: u32, remaining: u64, rng: &mut Rng) -> Option<u32> {
        let try_domain = |k: u32| {
            if pool.admits(pg, k, NONE) { self.disk_in(pool, disks, k, pg) } else { None }
        };
        let urgent = self.by_need.iter().rev().take_while(|(need, _)| *need >= remaining);
        if let Some(d) = urgent.take(pool.replicas + 1).find_map(|&(_, k)| try_domain(k)) {
            return Some(d);
        }
        if self.total == 0 {
            return None;
        }
        let drawn = (0..DRAWS_MAX).filter_map(|_| try_domain(self.lottery.find(rng.below(self.total)) as u32));
        // Of two draws the emptier one: keeps bytes even where PGs differ in size.
        let best = drawn.take(2).min_by(|&a, &b| disks.fullness(a).total_cmp(&disks.fullness(b)));
        best.or_else(|| self.by_need.iter().rev().take(DOMAINS_TRIED_MAX).find_map(|&(_, k)| try_domain(k)))
    }
}

/// Orders a domain's disks: emptiest by bytes, then by count for its quota.
fn key(pool: &Layout<'_>, disks: &Disks, d: u32) -> u64 {
    let bytes = (disks.fullness(d) / 1_048_576.0) as u64;
    let count = (f64::from(pool.count(d)) / pool.share[d as usize].max(1e-9) * 1024.0).min(65_535.0) as u64;
    bytes << 16 | count
}

/// Brings every PG that has fewer to `level` copies, as far as there is a place. Holes that stay are left as they are.
pub(super) fn fill(pool: &mut Layout<'_>, disks: &mut Disks, level: usize, seed: u64) {
    let level = level.min(pool.replicas);
    let mut rng = Rng::new(mix(seed) ^ u64::from(pool.spec.id.0));
    let mut todo: Vec<u32> = (0..pool.pg_count()).filter(|&pg| pool.rows[pg as usize].len() < level).collect();
    let dead: std::collections::HashSet<u32> = pool.dead.iter().copied().collect();
    todo.retain(|pg| !dead.contains(pg));
    todo.sort_by_key(|&pg| {
        (pool.rows[pg as usize].len(), u64::MAX - pool.bytes[pg as usize], mix(seed ^ u64::from(pg)), pg)
    });
    let mut needs = Needs::new(pool, disks);
    let mut stuck = Vec::new();
    for (n, &pg) in todo.iter().enumerate() {
        while pool.rows[pg as usize].len() < level {
            match needs.choose(pool, disks, pg, (todo.len() - n) as u64, &mut rng) {
                Some(d) => {
                    pool.place(disks, pg, d);
                    needs.took(pool, disks, d);
                }
                None => {
                    stuck.push(pg);
                    break;
                }
            }
        }
    }
    detour(pool, disks, level, &stuck);
    squeeze(pool, disks, level, &stuck);
}

/// Fills holes by shifting other replicas out of the way.
fn detour(pool: &mut Layout<'_>, disks: &mut Disks, level: usize, stuck: &[u32]) {
    let mut search = Augment::new(disks.len());
    let mut failures = 0;
    for &pg in stuck {
        while pool.rows[pg as usize].len() < level && failures < FAILURES_MAX {
            if search.run(pool, disks, Start::Hole(pg)) {
                failures = 0;
            } else {
                failures += 1;
                break;
            }
        }
    }
}

/// Fills holes past the quotas: a copy out of balance is better than none.
fn squeeze(pool: &mut Layout<'_>, disks: &mut Disks, level: usize, stuck: &[u32]) {
    if stuck.iter().all(|&pg| pool.rows[pg as usize].len() >= level) {
        return;
    }
    let free = |disks: &Disks, d: u32| disks.limit[d as usize].saturating_sub(disks.load[d as usize]);
    let may =
        |d: u32| pool.domain[d as usize] != NONE && disks.state[d as usize].takes() && disks.weight[d as usize] > 0.0;
    let mut roomiest: BTreeSet<(u64, u32)> =
        (0..disks.len() as u32).filter(|&d| may(d)).map(|d| (free(disks, d), d)).collect();
    for &pg in stuck {
        let bytes = pool.bytes[pg as usize];
        while pool.rows[pg as usize].len() < level {
            let found = roomiest
                .iter()
                .rev()
                .take_while(|x| bytes == 0 || x.0 >= bytes)
                .find(|x| pool.admits(pg, pool.domain[x.1 as usize], NONE) && !pool.must_leave(pg, x.1))
                .copied();
            let Some((room, d)) = found else { break };
            roomiest.remove(&(room, d));
            pool.place(disks, pg, d);
            roomiest.insert((free(disks, d), d));
        }
    }
}
