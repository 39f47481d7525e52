//! Augmenting paths: where no direct move helps, a chain of them does.
//!
//! The graph's nodes are disks; an edge x → y is a PG on x that may stand on y instead. It costs a move if the PG
//! stood on x before the plan; bringing a PG back to a disk that it left costs none. The search goes from a hole or an
//! over-full disk, by rising cost, to one that lacks replicas. Each disk is reached once and a PG reaches all domains
//! but its own few, so that one search is linear in the disks.

use std::collections::VecDeque;

use super::layout::{Disks, Layout, NONE};

/// Where a chain begins.
#[derive(Clone, Copy, Debug)]
pub(super) enum Start {
    /// A replica of this PG is missing.
    Hole(u32),
    /// This disk holds too many.
    Surplus(u32),
}

/// Steps of all searches of one scratch: a search that succeeds takes about one for each disk; where space or domains
/// are exhausted each would look at every replica in vain.
const STEPS_MAX: u64 = 10_000_000;

/// Scratch for searches over one set of disks.
pub(super) struct Augment {
    /// (previous disk or [`NONE`], the PG that comes from it).
    came: Vec<(u32, u32)>,
    visited: Vec<bool>,
    /// Disks not yet seen, by domain.
    unseen: Vec<Vec<u32>>,
    /// Domains that have some.
    open: Vec<u32>,
    queue: VecDeque<u32>,
    steps_left: u64,
}

impl Augment {
    pub fn new(disks: usize) -> Self {
        Augment {
            came: vec![(NONE, NONE); disks],
            visited: vec![false; disks],
            unseen: Vec::new(),
            open: Vec::new(),
            queue: VecDeque::new(),
            steps_left: STEPS_MAX,
        }
    }

    /// Finds a chain and makes its shifts. False, and nothing changed, if there is none.
    pub fn run(&mut self, pool: &mut Layout<'_>, disks: &mut Disks, start: Start) -> bool {
        if self.steps_left == 0 {
            return false;
        }
        self.visited.fill(false);
        self.came.fill((NONE, NONE));
        self.unseen.clone_from(&pool.members);
        self.open = (0..pool.domains as u32).collect();
        self.queue.clear();
        match start {
            Start::Hole(pg) => {
                if self.reach(pool, disks, pg, NONE) {
                    return true;
                }
            }
            Start::Surplus(d) => {
                self.visited[d as usize] = true;
                self.queue.push_back(d);
            }
        }
        // All disks that this many further moves reach; then those that one more does.
        let mut level: Vec<u32> = Vec::new();
        loop {
            while let Some(x) = self.queue.pop_front().filter(|_| self.steps_left > 0) {
                if disks.state[x as usize].keeps() {
                    continue;
                }
                level.push(x);
                for pg in pool.held[x as usize].clone() {
                    if self.go_back(pool, disks, pg, x) {
                        return true;
                    }
                    if !pool.is_original(pg, x) && self.reach(pool, disks, pg, x) {
                        return true;
                    }
                }
            }
            if level.is_empty() {
                return false;
            }
            for x in std::mem::take(&mut level) {
                for pg in pool.held[x as usize].clone() {
                    if pool.is_original(pg, x) && self.reach(pool, disks, pg, x) {
                        return true;
                    }
                }
            }
        }
    }

    /// Visits the disks that `pg` has left in this plan.
    fn go_back(&mut self, pool: &mut Layout<'_>, disks: &mut Disks, pg: u32, from: u32) -> bool {
        for i in 0..pool.today[pg as usize].len() {
            let y = pool.today[pg as usize][i];
            let open =
                !self.visited[y as usize] && disks.state[y as usize].takes() && !pool.rows[pg as usize].contains(&y);
            if open && pool.admits(pg, pool.domain[y as usize], from) && self.visit(pool, disks, pg, from, y) {
                return true;
            }
        }
        false
    }

    /// Notes that `pg` can go from `from` to `y`; true if a chain ends there and was made.
    fn visit(&mut self, pool: &mut Layout<'_>, disks: &mut Disks, pg: u32, from: u32, y: u32) -> bool {
        self.visited[y as usize] = true;
        self.came[y as usize] = (from, pg);
        if pool.lacking(y) > 0 {
            return self.make(pool, disks, y);
        }
        self.queue.push_back(y);
        false
    }

    /// Visits every disk that `pg` can go to from `from`; true once a chain was found and made.
    fn reach(&mut self, pool: &mut Layout<'_>, disks: &mut Disks, pg: u32, from: u32) -> bool {
        let mut i = 0;
        while i < self.open.len() {
            let k = self.open[i];
            if self.steps_left == 0 {
                return false;
            }
            self.steps_left -= 1;
            if self.unseen[k as usize].is_empty() {
                self.open.swap_remove(i);
                continue;
            }
            i += 1;
            if !pool.admits(pg, k, from) {
                continue;
            }
            let mut later = Vec::new();
            let mut made = false;
            for y in std::mem::take(&mut self.unseen[k as usize]) {
                self.steps_left = self.steps_left.saturating_sub(1);
                if made || self.visited[y as usize] || !disks.state[y as usize].takes() {
                    continue;
                }
                if pool.lacking(y) > 0 && !pool.fits(disks, pg, y) {
                    // Another PG may be small enough.
                    later.push(y);
                    continue;
                }
                made = self.visit(pool, disks, pg, from, y);
            }
            if made {
                return true;
            }
            self.unseen[k as usize] = later;
        }
        false
    }

    /// Makes the chain that ends at `last`, from its end, so that each disk gives before it takes. Undoes all if one
    /// shift turns out not to be allowed (a PG that the chain moves twice).
    fn make(&self, pool: &mut Layout<'_>, disks: &mut Disks, last: u32) -> bool {
        let mut done: Vec<(u32, u32, u32)> = Vec::new();
        let mut to = last;
        loop {
            let (from, pg) = self.came[to as usize];
            let allowed = pool.admits(pg, pool.domain[to as usize], from) && pool.fits(disks, pg, to);
            if !allowed {
                for &(pg, from, to) in done.iter().rev() {
                    pool.shift(disks, pg, to, from);
                }
                return false;
            }
            if from == NONE {
                pool.place(disks, pg, to);
                return true;
            }
            pool.shift(disks, pg, from, to);
            done.push((pg, from, to));
            // A surplus start has no predecessor.
            if self.came[from as usize] == (NONE, NONE) {
                return true;
            }
            to = from;
        }
    }
}
