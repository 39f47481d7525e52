//! How fast each running copy is: every disk and link divides what it has by class, as the throttle does, and a copy is
//! as fast as the slowest of the four that it uses.
//!
//! Invariant: no disk or link gives more than it has. What a copy can't use goes to the others.

use crate::core::throttle::{CLASSES, DEFAULT_CLASSES, divide};

/// Rounds of handing on what copies can't use: each settles those whose slowest part is known; few are left after six, and
/// those take what they were offered last.
const ROUNDS: usize = 6;

/// A copy under way.
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    /// Disk that is read, by index.
    pub source: usize,
    /// Its node.
    pub source_node: usize,
    /// Disk that is written.
    pub target: usize,
    /// Its node.
    pub target_node: usize,
    /// Class, as an index into the throttle's.
    pub class: usize,
}

/// Bytes per second of each flow. `disks` is what each disk reads, and writes; `link` what each node sends, and receives.
pub fn rates(flows: &[Flow], disks: &[f64], nodes: usize, link: f64) -> Vec<f64> {
    // Reads of disks, writes of disks, sending nodes, receiving nodes, one after the other.
    let d = disks.len();
    let parts = |f: &Flow| [f.source, d + f.target, 2 * d + f.source_node, 2 * d + nodes + f.target_node];
    let mut left: Vec<f64> = disks.iter().chain(disks).copied().chain(std::iter::repeat_n(link, 2 * nodes)).collect();
    let mut open: Vec<[u32; CLASSES]> = vec![[0; CLASSES]; left.len()];
    for f in flows {
        parts(f).into_iter().for_each(|r| open[r][f.class] += 1);
    }
    let mut rate = vec![0.0; flows.len()];
    let mut unsettled: Vec<usize> = (0..flows.len()).collect();
    let mut offer = vec![[0.0; CLASSES]; left.len()];
    for round in 0..ROUNDS {
        if unsettled.is_empty() {
            break;
        }
        let mut seen = vec![false; left.len()];
        // What a disk or link can't give because its copies are slower elsewhere.
        let mut is_slowest = vec![true; left.len()];
        for &i in &unsettled {
            for r in parts(&flows[i]) {
                if !std::mem::replace(&mut seen[r], true) {
                    offer[r] = offers(left[r], &open[r]);
                }
            }
        }
        let of = |i: usize, r: usize| offer[r][flows[i].class];
        let least = |i: usize| parts(&flows[i]).into_iter().map(|r| of(i, r)).fold(f64::INFINITY, f64::min);
        for &i in &unsettled {
            let rate = least(i);
            for r in parts(&flows[i]) {
                is_slowest[r] &= of(i, r) <= rate * (1.0 + 1e-9);
            }
        }
        let settles = |i: &usize| round + 1 == ROUNDS || parts(&flows[*i]).into_iter().any(|r| is_slowest[r]);
        let (mut now, later): (Vec<usize>, Vec<usize>) = unsettled.iter().partition(|i| settles(i));
        unsettled = later;
        if now.is_empty() {
            std::mem::swap(&mut now, &mut unsettled);
        }
        for i in now {
            rate[i] = least(i);
            for r in parts(&flows[i]) {
                left[r] = (left[r] - rate[i]).max(0.0);
                open[r][flows[i].class] -= 1;
            }
        }
    }
    rate
}

/// What a disk or link offers each copy of a class.
fn offers(has: f64, open: &[u32; CLASSES]) -> [f64; CLASSES] {
    let demand = open.map(|n| if n > 0 { u64::MAX } else { 0 });
    let shares = divide(has as u64, &DEFAULT_CLASSES, &demand);
    std::array::from_fn(|c| if open[c] > 0 { shares[c] as f64 / f64::from(open[c]) } else { f64::INFINITY })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(source: usize, target: usize, class: usize) -> Flow {
        Flow { source, source_node: source, target, target_node: target, class }
    }

    #[test]
    fn the_slowest_part_decides_and_the_rest_goes_to_the_others() {
        let disks = [100.0, 100.0, 100.0, 20.0];
        assert_eq!(rates(&[flow(0, 1, 1)], &disks, 4, 1000.0), [100.0]);
        assert_eq!(rates(&[flow(0, 1, 1)], &disks, 4, 30.0), [30.0]);
        // Disk 3 takes 20 from disk 0; the other target gets what is left.
        assert_eq!(rates(&[flow(0, 3, 1), flow(0, 1, 1)], &disks, 4, 1000.0), [20.0, 80.0]);
        assert!(rates(&[], &disks, 4, 1.0).is_empty());
        // Repair against rebalance on one disk: 8 to 2.
        assert_eq!(rates(&[flow(0, 1, 1), flow(0, 2, 3)], &disks, 4, 1000.0), [80.0, 20.0]);
        assert_eq!(rates(&[flow(0, 1, 1)], &[0.0; 2], 4, 1000.0), [0.0]);
    }

    #[test]
    fn nothing_gives_more_than_it_has() {
        let disks: Vec<f64> = (0..12).map(|d| 50.0 + d as f64 * 7.0).collect();
        let flows: Vec<Flow> = (0..60)
            .map(|i| Flow {
                source: i % 12,
                source_node: i % 4,
                target: (i * 7 + 3) % 12,
                target_node: (i * 5) % 4,
                class: i % 4,
            })
            .collect();
        let r = rates(&flows, &disks, 4, 220.0);
        let sum = |of: &dyn Fn(&Flow) -> bool| flows.iter().zip(&r).filter(|(f, _)| of(f)).map(|(_, r)| r).sum::<f64>();
        for (d, has) in disks.iter().enumerate() {
            assert!(sum(&|f| f.source == d) <= has + 1e-6 && sum(&|f| f.target == d) <= has + 1e-6);
        }
        for n in 0..4 {
            assert!(sum(&|f| f.source_node == n) <= 220.0 + 1e-6 && sum(&|f| f.target_node == n) <= 220.0 + 1e-6);
        }
        assert!(r.iter().all(|r| *r > 0.0));
    }
}
