//! Chooses each PG's primary so that every disk has within one of its even number, changing as few as it can.
//!
//! A primary change moves no data. New PGs are led so that what a lost domain held is led by all others evenly: the copies
//! are read from the primaries, and a repair is as fast as the disk that has most to read. A disk's even number is its share of
//! replicas over the replica count, among disks that may serve. The search is for augmenting paths over disks: an edge x → y is
//! a PG with primary x and a replica on y. Of the leads that have to change hands anyway those go that even the bytes which
//! disks lead: a disk that leads most of a volume does most of its work, and is the source of most of its copies.

use std::collections::HashMap;

use super::layout::{Disks, Layout, NONE};
use super::model::DiskState;
use super::paths::Paths;

/// A PG more that a disk leads of one domain, against a PG more that it leads at all.
const PAIR_WEIGHT: f64 = 2.0;

/// Reorders each row so that its primary is first. `today` is the primary before the plan, by PG.
pub(super) fn choose(pool: &mut Layout<'_>, disks: &Disks, today: &[u32]) {
    let serves = |d: u32| serves(disks, d);
    let pgs = pool.pg_count();
    let mut primary = vec![NONE; pgs as usize];
    let mut count = vec![0u32; disks.len()];
    let mut choices = vec![0.0f64; disks.len()];
    let mut bytes = Bytes::new(disks.len());
    let mut floating = Vec::new();
    for pg in 0..pgs {
        let row = &pool.rows[pg as usize];
        let able = row.iter().filter(|&&d| serves(d)).count();
        if able == 0 {
            continue;
        }
        for &d in row.iter().filter(|&&d| serves(d)) {
            choices[d as usize] += 1.0 / able as f64;
            bytes.even[d as usize] += pool.bytes[pg as usize] as f64 / able as f64;
        }
        let now = today[pg as usize];
        if now != NONE && serves(now) && row.contains(&now) {
            primary[pg as usize] = now;
            count[now as usize] += 1;
            bytes.led[now as usize] += pool.bytes[pg as usize] as f64;
        } else {
            floating.push(pg);
        }
    }
    // How many PGs of a domain each disk leads, for new PGs.
    let mut leads_of: HashMap<(u32, u32), u32> = HashMap::new();
    for &pg in &floating {
        let row = &pool.rows[pg as usize];
        let others = |d: u32| row.iter().filter(move |&&x| x != d).map(|&x| pool.site[x as usize]);
        let is_new = pool.fresh[pg as usize];
        let score = |d: u32| {
            let lead = f64::from(count[d as usize]) - choices[d as usize];
            let same: u32 = others(d).filter_map(|site| leads_of.get(&(site, d))).sum();
            if is_new { lead + PAIR_WEIGHT * f64::from(same) } else { lead }
        };
        let over = |d: u32| bytes.over_in(d, pool.bytes[pg as usize]);
        let before =
            |a: &u32, b: &u32| over(*a).total_cmp(&over(*b)).then(score(*a).total_cmp(&score(*b))).then(a.cmp(b));
        if let Some(d) = row.iter().copied().filter(|&d| serves(d)).min_by(before) {
            if is_new {
                others(d).for_each(|site| *leads_of.entry((site, d)).or_default() += 1);
            }
            primary[pg as usize] = d;
            count[d as usize] += 1;
            bytes.led[d as usize] += pool.bytes[pg as usize] as f64;
        }
    }
    let mut seats = Seats::new(&choices, count, bytes, primary, disks);
    for d in 0..disks.len() as u32 {
        while seats.count[d as usize] < seats.low[d as usize] && seats.pull(pool, d) {}
    }
    for d in 0..disks.len() as u32 {
        while seats.count[d as usize] > seats.high[d as usize] && seats.push(pool, disks, d) {}
    }
    let primary = seats.primary;
    for pg in 0..pgs {
        if let Some(at) = pool.rows[pg as usize].iter().position(|&d| d == primary[pg as usize]) {
            pool.rows[pg as usize][..=at].rotate_right(1);
        }
    }
}

/// What each disk leads, in bytes, and what it should.
struct Bytes {
    even: Vec<f64>,
    led: Vec<f64>,
}

impl Bytes {
    fn new(disks: usize) -> Self {
        Bytes { even: vec![0.0; disks], led: vec![0.0; disks] }
    }

    fn over(&self, d: u32) -> f64 {
        self.led[d as usize] - self.even[d as usize]
    }

    /// By how many PGs of this size a disk leads too much: whole ones, as the even number of PGs decides between equals.
    fn over_in(&self, d: u32, pg_bytes: u64) -> f64 {
        if pg_bytes == 0 { 0.0 } else { (self.over(d) / pg_bytes as f64).round() }
    }
}

/// Who leads what, and how many each disk should lead: the whole numbers next to its even number. As the even
/// numbers themselves are a way to split every PG's lead among its replicas, a way within these bounds exists and
/// the searches find it.
struct Seats {
    low: Vec<u32>,
    high: Vec<u32>,
    count: Vec<u32>,
    bytes: Bytes,
    primary: Vec<u32>,
    led: Vec<Vec<u32>>,
    paths: Paths,
}

impl Seats {
    fn new(even: &[f64], count: Vec<u32>, bytes: Bytes, primary: Vec<u32>, disks: &Disks) -> Self {
        /// Float noise of a sum of fractions.
        const EPS: f64 = 1e-6;
        let mut led: Vec<Vec<u32>> = vec![Vec::new(); disks.len()];
        for (pg, &d) in primary.iter().enumerate().filter(|(_, d)| **d != NONE) {
            led[d as usize].push(pg as u32);
        }
        Seats {
            low: even.iter().map(|e| (e + EPS).floor() as u32).collect(),
            high: even.iter().map(|e| (e - EPS).ceil().max(0.0) as u32).collect(),
            count,
            bytes,
            primary,
            led,
            paths: Paths::new(disks.len()),
        }
    }

    fn hand(&mut self, pool: &Layout<'_>, pg: u32, from: u32, to: u32) {
        self.primary[pg as usize] = to;
        self.bytes.led[from as usize] -= pool.bytes[pg as usize] as f64;
        self.bytes.led[to as usize] += pool.bytes[pg as usize] as f64;
        let led = &mut self.led[from as usize];
        if let Some(i) = led.iter().position(|p| *p == pg) {
            led.swap_remove(i);
        }
        self.led[to as usize].push(pg);
        self.count[from as usize] -= 1;
        self.count[to as usize] += 1;
    }

    /// How far the bytes of a lead are from what brings both disks nearest to their even bytes, if as many more leads go
    /// from `x` and come to `y` as their numbers ask for.
    fn off(&self, pool: &Layout<'_>, pg: u32, x: u32, y: u32) -> f64 {
        let from = self.bytes.over(x) / f64::from(self.count[x as usize].saturating_sub(self.low[x as usize]).max(1));
        let to = -self.bytes.over(y) / f64::from(self.high[y as usize].saturating_sub(self.count[y as usize]).max(1));
        (pool.bytes[pg as usize] as f64 - 0.5 * (from + to)).abs()
    }

    /// The lead that comes to `to` at once from a disk that can spare one; from one with too many, if there is any.
    fn pulled(&self, pool: &Layout<'_>, to: u32) -> Option<(u32, u32)> {
        let led = pool.held[to as usize].iter().map(|&pg| (pg, self.primary[pg as usize]));
        let spared = led.filter(|&(_, x)| x != NONE && x != to && self.count[x as usize] > self.low[x as usize]);
        spared.min_by(|&(p, x), &(q, y)| {
            let keeps = |x: u32| self.count[x as usize] <= self.high[x as usize];
            let off = self.off(pool, p, x, to).total_cmp(&self.off(pool, q, y, to));
            keeps(x).cmp(&keeps(y)).then(off).then(p.cmp(&q))
        })
    }

    /// The lead that goes from `from` at once to a disk that has room for one; to one with too few, if there is any.
    fn pushed(&self, pool: &Layout<'_>, disks: &Disks, from: u32) -> Option<(u32, u32)> {
        let others = |pg: u32| pool.rows[pg as usize].iter().map(move |&y| (pg, y));
        let leads = self.led[from as usize].iter().flat_map(|&pg| others(pg));
        let room = leads.filter(|&(_, y)| serves(disks, y) && self.count[y as usize] < self.high[y as usize]);
        room.min_by(|&(p, x), &(q, y)| {
            let enough = |y: u32| self.count[y as usize] >= self.low[y as usize];
            let off = self.off(pool, p, from, x).total_cmp(&self.off(pool, q, from, y));
            enough(x).cmp(&enough(y)).then(off).then(p.cmp(&q)).then(x.cmp(&y))
        })
    }

    /// Brings one more lead to `start`, from a disk that can spare one.
    fn pull(&mut self, pool: &Layout<'_>, start: u32) -> bool {
        if let Some((pg, from)) = self.pulled(pool, start) {
            self.hand(pool, pg, from, start);
            return true;
        }
        let mut queue = self.paths.begin(start);
        while let Some(y) = queue.pop_front() {
            for &pg in &pool.held[y as usize] {
                let x = self.primary[pg as usize];
                if x == NONE || self.paths.is_reached(x) {
                    continue;
                }
                self.paths.reach(x, y, pg);
                if self.count[x as usize] > self.low[x as usize] {
                    for (x, y, pg) in self.paths.back(start, x) {
                        self.hand(pool, pg, x, y);
                    }
                    return true;
                }
                queue.push_back(x);
            }
        }
        false
    }

    /// Takes one lead from `start`, to a disk that has room for one.
    fn push(&mut self, pool: &Layout<'_>, disks: &Disks, start: u32) -> bool {
        if let Some((pg, to)) = self.pushed(pool, disks, start) {
            self.hand(pool, pg, start, to);
            return true;
        }
        let mut queue = self.paths.begin(start);
        while let Some(x) = queue.pop_front() {
            for pg in self.led[x as usize].clone() {
                for &y in pool.rows[pg as usize].iter().filter(|&&y| serves(disks, y)) {
                    if self.paths.is_reached(y) {
                        continue;
                    }
                    self.paths.reach(y, x, pg);
                    if self.count[y as usize] < self.high[y as usize] {
                        for (y, x, pg) in self.paths.back(start, y) {
                            self.hand(pool, pg, x, y);
                        }
                        return true;
                    }
                    queue.push_back(y);
                }
            }
        }
        false
    }
}

/// A primary may stand there.
fn serves(disks: &Disks, d: u32) -> bool {
    matches!(disks.state[d as usize], DiskState::Up | DiskState::Full)
}
