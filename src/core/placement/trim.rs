//! Which copies a PG gives up when its pool keeps fewer: those of which their disks have too many, so that nothing has to
//! move afterwards.
//!
//! A copy that can't be read goes first, a primary's last: only where the balance can't be reached without it. The first
//! choice is greedy, the largest PGs first; augmenting paths then bring every disk to within its share. The graph's nodes
//! are disks; an edge x → y is a PG that keeps its copy on x and gave up the one on y: it may as well be the other way round.
//! Giving up another copy costs no move, so a path is worth any length. Linear in the replicas for each search.

use std::collections::HashMap;

use super::layout::{Disks, Layout, NONE};
use super::paths::Paths;

/// Steps of all searches, over a pool: one that succeeds takes few.
const STEPS_MAX: u64 = 50_000_000;

/// Takes away replicas beyond the pool's count.
pub(super) fn trim(pool: &mut Layout<'_>, disks: &mut Disks) {
    let wanted = pool.spec.replicas as usize;
    let mut pgs: Vec<u32> = (0..pool.pg_count()).filter(|&pg| pool.rows[pg as usize].len() > wanted).collect();
    if pgs.is_empty() {
        return;
    }
    pgs.sort_by_key(|&pg| (std::cmp::Reverse(pool.bytes[pg as usize]), pg));
    let mut given_up: HashMap<u32, Vec<u32>> = HashMap::new();
    for pg in pgs {
        while pool.rows[pg as usize].len() > wanted {
            let rank = |d: u32| {
                let surplus = i64::from(pool.count(d)) - i64::from(pool.quota[d as usize]);
                (!disks.state[d as usize].is_live(), !leads(pool, disks, pg, d), surplus)
            };
            let worse = |a: u32, b: u32| {
                let by_fullness = disks.fullness(a).total_cmp(&disks.fullness(b));
                rank(a).cmp(&rank(b)).then(by_fullness).then(b.cmp(&a))
            };
            let Some(d) = pool.rows[pg as usize].iter().copied().max_by(|&a, &b| worse(a, b)) else { break };
            pool.remove(disks, pg, d);
            given_up.entry(pg).or_default().push(d);
        }
    }
    let mut search = Search::new(disks.len(), given_up);
    for with_primaries in [false, true] {
        search.even(pool, disks, with_primaries);
    }
}

/// The PG is led from there, and could go on to be.
fn leads(pool: &Layout<'_>, disks: &Disks, pg: u32, d: u32) -> bool {
    pool.today[pg as usize].first() == Some(&d) && disks.state[d as usize].is_live()
}

struct Search {
    given_up: HashMap<u32, Vec<u32>>,
    /// PGs that gave up their copy on a disk.
    gave: Vec<Vec<u32>>,
    paths: Paths,
    steps_left: u64,
}

impl Search {
    fn new(disks: usize, given_up: HashMap<u32, Vec<u32>>) -> Self {
        let mut gave = vec![Vec::new(); disks];
        let mut all: Vec<(u32, u32)> =
            given_up.iter().flat_map(|(pg, from)| from.iter().map(move |d| (*pg, *d))).collect();
        all.sort_unstable();
        all.into_iter().for_each(|(pg, d)| gave[d as usize].push(pg));
        Search { given_up, gave, paths: Paths::new(disks), steps_left: STEPS_MAX }
    }

    /// Brings the disks to within the whole numbers next to their shares, as far as it goes.
    fn even(&mut self, pool: &mut Layout<'_>, disks: &mut Disks, with_primaries: bool) {
        let used: Vec<u32> = (0..disks.len() as u32).filter(|&d| pool.domain[d as usize] != NONE).collect();
        let (low, high) = (|p: &Layout<'_>, d: u32| p.share[d as usize].floor() as u32, ceil);
        for &d in &used {
            while pool.count(d) > high(pool, d)
                && self.push(pool, disks, d, with_primaries, |p, y| p.count(y) < high(p, y))
            {}
        }
        for &d in &used {
            while pool.count(d) < low(pool, d)
                && self.pull(pool, disks, d, with_primaries, |p, x| p.count(x) > low(p, x))
            {}
        }
    }

    /// The PG's copy on `x` goes instead of the one on `y`.
    fn swap(&mut self, pool: &mut Layout<'_>, disks: &mut Disks, pg: u32, x: u32, y: u32) {
        pool.shift(disks, pg, x, y);
        if let Some(of) = self.given_up.get_mut(&pg) {
            of.retain(|d| *d != y);
            of.push(x);
        }
        self.gave[y as usize].retain(|p| *p != pg);
        self.gave[x as usize].push(pg);
    }

    fn may_swap(pool: &Layout<'_>, disks: &Disks, pg: u32, x: u32, y: u32, with_primaries: bool) -> bool {
        let keeps = !disks.state[x as usize].is_live() || disks.state[y as usize].is_live();
        keeps && (with_primaries || !leads(pool, disks, pg, x)) && pool.admits(pg, pool.domain[y as usize], x)
    }

    /// Takes one copy from `start`; one that was given up elsewhere stays instead, at the end of the path on a disk that
    /// `takes`.
    fn push(
        &mut self,
        pool: &mut Layout<'_>,
        disks: &mut Disks,
        start: u32,
        with_primaries: bool,
        takes: impl Fn(&Layout<'_>, u32) -> bool,
    ) -> bool {
        let mut queue = self.paths.begin(start);
        while let Some(x) = queue.pop_front().filter(|_| self.steps_left > 0) {
            for i in 0..pool.held[x as usize].len() {
                let pg = pool.held[x as usize][i];
                self.steps_left = self.steps_left.saturating_sub(1);
                let others = self.given_up.get(&pg).cloned().unwrap_or_default();
                for y in others {
                    if self.paths.is_reached(y) || !Self::may_swap(pool, disks, pg, x, y, with_primaries) {
                        continue;
                    }
                    self.paths.reach(y, x, pg);
                    if takes(pool, y) {
                        // Swapped from its end: (PG, keeps, gave up).
                        let path: Vec<_> = self.paths.back(start, y).into_iter().map(|(y, x, pg)| (pg, x, y)).collect();
                        return self.swap_all(pool, disks, &path);
                    }
                    queue.push_back(y);
                }
            }
        }
        false
    }

    /// Makes the swaps of a path in this order; none of them if a PG is in it twice.
    fn swap_all(&mut self, pool: &mut Layout<'_>, disks: &mut Disks, path: &[(u32, u32, u32)]) -> bool {
        let fits = |pool: &Layout<'_>, &(pg, x, y): &(u32, u32, u32)| {
            pool.rows[pg as usize].contains(&x)
                && !pool.rows[pg as usize].contains(&y)
                && pool.admits(pg, pool.domain[y as usize], x)
        };
        for (done, step) in path.iter().enumerate() {
            if !fits(pool, step) {
                path[..done].iter().rev().for_each(|&(pg, x, y)| self.swap(pool, disks, pg, y, x));
                return false;
            }
            self.swap(pool, disks, step.0, step.1, step.2);
        }
        true
    }

    /// Leaves `start` one copy that it was to give up; another is given up instead, at the end of the path on a disk that
    /// `gives`.
    fn pull(
        &mut self,
        pool: &mut Layout<'_>,
        disks: &mut Disks,
        start: u32,
        with_primaries: bool,
        gives: impl Fn(&Layout<'_>, u32) -> bool,
    ) -> bool {
        let mut queue = self.paths.begin(start);
        while let Some(y) = queue.pop_front().filter(|_| self.steps_left > 0) {
            for i in 0..self.gave[y as usize].len() {
                let pg = self.gave[y as usize][i];
                self.steps_left = self.steps_left.saturating_sub(1);
                for x in pool.rows[pg as usize].clone() {
                    if self.paths.is_reached(x) || !Self::may_swap(pool, disks, pg, x, y, with_primaries) {
                        continue;
                    }
                    self.paths.reach(x, y, pg);
                    if gives(pool, x) {
                        let path: Vec<_> = self.paths.back(start, x).into_iter().map(|(x, y, pg)| (pg, x, y)).collect();
                        return self.swap_all(pool, disks, &path);
                    }
                    queue.push_back(x);
                }
            }
        }
        false
    }
}

fn ceil(pool: &Layout<'_>, d: u32) -> u32 {
    pool.share[d as usize].ceil() as u32
}
