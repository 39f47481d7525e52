//! Feasible shares by water-filling, integer quotas, and the lower bound of movement.
//!
//! A disk's share of a pool follows its capacity, but a failure domain holds at most one replica of a PG: what a
//! large domain can't take flows to the others, as water does between vessels. Quotas are the share rounded up
//! or down so that they sum to the pool's replicas, keep every domain within its limit, and stay at today's
//! counts wherever they may. Units: PG replicas.

/// Distance below which a share counts as whole: far above float noise, far below one replica.
const WHOLE_EPS: f64 = 1e-6;

/// One disk as the share calculation sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Vessel {
    /// Its failure domain.
    pub domain: u32,
    /// Its weight; zero takes nothing beyond `min`.
    pub weight: f64,
    /// It holds at least this.
    pub min: f64,
    /// It holds at most this.
    pub max: f64,
}

impl Vessel {
    fn level(&self, lambda: f64) -> f64 {
        (lambda * self.weight).clamp(self.min, self.max.max(self.min))
    }
}

/// Shares that sum to `total` (or to all that fits, if less), in proportion to weight within every bound, with at
/// most `domain_max` in a domain.
pub(super) fn water_fill(vessels: &[Vessel], domains: usize, domain_max: f64, total: f64) -> Vec<f64> {
    let mut sums = vec![0.0; domains];
    let mut fill = |lambda: f64| -> f64 {
        sums.iter_mut().for_each(|s| *s = 0.0);
        for v in vessels {
            sums[v.domain as usize] += v.level(lambda);
        }
        sums.iter().map(|s| s.min(domain_max)).sum()
    };
    let heaviest = vessels.iter().map(|v| v.weight).fold(0.0, f64::max);
    let lightest = vessels.iter().map(|v| v.weight).filter(|w| *w > 0.0).fold(f64::INFINITY, f64::min);
    if heaviest == 0.0 {
        return vessels.iter().map(|v| v.min).collect();
    }
    // At `high` every vessel with weight holds its maximum.
    let (mut low, mut high) = (0.0, (domain_max + total + 1.0) / lightest);
    for _ in 0..200 {
        let mid = 0.5 * (low + high);
        if mid <= low || mid >= high {
            break;
        }
        if fill(mid) < total {
            low = mid;
        } else {
            high = mid;
        }
    }
    fill(high);
    let mut members = vec![Vec::new(); domains];
    for (i, v) in vessels.iter().enumerate() {
        members[v.domain as usize].push(i as u32);
    }
    let mut shares: Vec<f64> = vessels.iter().map(|v| v.level(high)).collect();
    let mut free = Vec::new();
    let mut rest = total;
    for (k, of_domain) in members.iter().enumerate() {
        if sums[k] > domain_max + WHOLE_EPS {
            fill_one(vessels, of_domain, domain_max, &mut shares);
            rest -= domain_max;
        } else {
            free.extend_from_slice(of_domain);
        }
    }
    refine(vessels, &free, rest, high, &mut shares);
    for s in &mut shares {
        if (*s - s.round()).abs() < WHOLE_EPS * s.max(1.0) {
            *s = s.round();
        }
    }
    shares
}

/// Shares within one domain that is full.
fn fill_one(vessels: &[Vessel], members: &[u32], total: f64, shares: &mut [f64]) {
    let of = |lambda: f64| members.iter().map(|&i| vessels[i as usize].level(lambda)).sum::<f64>();
    let lightest =
        members.iter().map(|&i| vessels[i as usize].weight).filter(|w| *w > 0.0).fold(f64::INFINITY, f64::min);
    let (mut low, mut high) = (0.0, if lightest.is_finite() { (total + 1.0) / lightest } else { 1.0 });
    for _ in 0..200 {
        let mid = 0.5 * (low + high);
        if mid <= low || mid >= high {
            break;
        }
        if of(mid) < total {
            low = mid;
        } else {
            high = mid;
        }
    }
    for &i in members {
        shares[i as usize] = vessels[i as usize].level(high);
    }
    refine(vessels, members, total, high, shares);
}

/// Replaces the bisected level by the exact one for those that no bound holds.
fn refine(vessels: &[Vessel], members: &[u32], total: f64, lambda: f64, shares: &mut [f64]) {
    let free = |v: &Vessel| v.weight > 0.0 && lambda * v.weight > v.min && lambda * v.weight < v.max;
    let (mut held, mut weight) = (0.0, 0.0);
    for &i in members {
        let v = &vessels[i as usize];
        if free(v) {
            weight += v.weight;
        } else {
            held += shares[i as usize];
        }
    }
    if weight == 0.0 {
        return;
    }
    let exact = (total - held) / weight;
    // Where not all fits, the level stands at its ceiling and is no solution of the equation.
    if (exact - lambda).abs() > 1e-6 * lambda {
        return;
    }
    for &i in members {
        let v = &vessels[i as usize];
        if free(v) {
            shares[i as usize] = exact * v.weight;
        }
    }
}

/// One disk as the rounding sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rounding {
    /// Its failure domain.
    pub domain: u32,
    /// Least quota.
    pub low: u32,
    /// Greatest quota; at most one more than `low`.
    pub high: u32,
    /// Replicas that it holds today.
    pub count: u32,
    /// How far above its share it would be with `high`, over the pools so far; least is served first.
    pub excess: f64,
}

/// Quotas within the bounds that sum to `total`, with at most `domain_max` in a domain, that change today's counts
/// least. None if the bounds don't allow it.
pub(super) fn quotas(disks: &[Rounding], domains: usize, domain_max: u32, total: u64) -> Option<Vec<u32>> {
    let mut used = vec![0u64; domains];
    let mut quota: Vec<u32> = Vec::with_capacity(disks.len());
    for d in disks {
        used[d.domain as usize] += u64::from(d.low);
        quota.push(d.low);
    }
    let sum: u64 = used.iter().sum();
    if sum > total || used.iter().any(|u| *u > u64::from(domain_max)) {
        return None;
    }
    let mut rest = total - sum;
    // The domain limits form a laminar matroid, so taking the cheapest first is optimal.
    let mut order: Vec<u32> =
        (0..disks.len() as u32).filter(|&i| disks[i as usize].high > disks[i as usize].low).collect();
    order.sort_by(|&a, &b| {
        let (x, y) = (&disks[a as usize], &disks[b as usize]);
        (x.count < x.high).cmp(&(y.count < y.high)).then(x.excess.total_cmp(&y.excess)).then(a.cmp(&b))
    });
    for i in order {
        if rest == 0 {
            break;
        }
        let d = &disks[i as usize];
        if used[d.domain as usize] < u64::from(domain_max) {
            used[d.domain as usize] += 1;
            quota[i as usize] += 1;
            rest -= 1;
        }
    }
    (rest == 0).then_some(quota)
}

/// The lower bound L: no way to bring `count` to within the shares takes fewer moves. `forbidden` replicas must leave too;
/// `free` ones, beyond the pool's count, leave without a move.
pub(super) fn least_moves(shares: &[f64], count: &[u32], forbidden: u64, free: u64) -> u64 {
    let (mut lacking, mut surplus) = (0u64, forbidden);
    for (s, &c) in shares.iter().zip(count) {
        lacking += (s.floor() as u64).saturating_sub(u64::from(c));
        surplus += u64::from(c).saturating_sub(s.ceil() as u64);
    }
    lacking.max(surplus.saturating_sub(free))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vessels(spec: &[(u32, f64)], max: f64) -> Vec<Vessel> {
        spec.iter().map(|&(domain, weight)| Vessel { domain, weight, min: 0.0, max }).collect()
    }

    #[test]
    fn shares_follow_weight_until_a_domain_is_full() {
        // Proportional where nothing binds.
        let s = water_fill(&vessels(&[(0, 1.0), (1, 1.0), (2, 2.0), (3, 2.0)], 100.0), 4, 100.0, 120.0);
        assert_eq!(s, [20.0, 20.0, 40.0, 40.0]);
        // Three domains, three replicas: each is full, however large; disks within it by weight.
        let s = water_fill(&vessels(&[(0, 1.0), (0, 3.0), (1, 5.0), (2, 1.0)], 100.0), 3, 100.0, 300.0);
        assert_eq!(s, [25.0, 75.0, 100.0, 100.0]);
        // What the large domain can't hold flows to the others.
        let s = water_fill(&vessels(&[(0, 10.0), (1, 1.0), (2, 1.0), (3, 2.0)], 100.0), 4, 100.0, 200.0);
        assert_eq!(s, [100.0, 25.0, 25.0, 50.0]);
        // More than fits: everything is full.
        let s = water_fill(&vessels(&[(0, 1.0), (1, 2.0)], 10.0), 2, 10.0, 30.0);
        assert_eq!(s, [10.0, 10.0]);
        assert_eq!(water_fill(&[], 0, 10.0, 30.0), Vec::<f64>::new());
    }

    #[test]
    fn disk_bounds_hold() {
        let mut v = vessels(&[(0, 1.0), (1, 1.0), (2, 1.0)], 100.0);
        v[0].max = 5.0;
        v[1].min = 30.0;
        v[1].max = 30.0;
        assert_eq!(water_fill(&v, 3, 100.0, 60.0), [5.0, 30.0, 25.0]);
    }

    #[test]
    fn quotas_stay_at_todays_counts() {
        let r = |domain, low, high, count| Rounding { domain, low, high, count, excess: 0.0 };
        let q = quotas(&[r(0, 3, 4, 3), r(1, 3, 4, 4), r(2, 3, 4, 3)], 3, 10, 10);
        assert_eq!(q, Some(vec![3, 4, 3]));
        // A full domain gets no more, whatever its disks hold today.
        let q = quotas(&[r(0, 5, 6, 6), r(0, 4, 5, 5), r(1, 9, 10, 0)], 2, 10, 20);
        assert_eq!(q, Some(vec![6, 4, 10]));
        assert_eq!(quotas(&[r(0, 5, 5, 5)], 1, 10, 6), None);
    }

    #[test]
    fn the_lower_bound_counts_the_larger_side() {
        assert_eq!(least_moves(&[10.0, 10.0, 10.0], &[15, 15, 0], 0, 0), 10);
        assert_eq!(least_moves(&[10.5, 10.5], &[10, 11], 0, 0), 0);
        assert_eq!(least_moves(&[15.0, 15.0, 0.0], &[10, 10, 0], 10, 0), 10);
        // Three copies of ten PGs become two: ten go without a move.
        assert_eq!(least_moves(&[7.0, 7.0, 6.0], &[10, 10, 10], 0, 10), 0);
        assert_eq!(least_moves(&[5.0, 5.0, 5.0, 5.0], &[10, 10, 10, 0], 0, 10), 5);
    }
}
