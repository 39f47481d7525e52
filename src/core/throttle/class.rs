//! Classes of resync: what each is promised, and how a disk's rate is divided among those that want it.
//!
//! Invariants: shares never sum to more than the rate; no class gets more than its cap; floors are served first, by
//! urgency when they don't all fit; what one class doesn't want, the others get. Units: bytes per second.

use crate::core::cluster::{ClassSettings, ResyncClass};

/// Number of classes.
pub const CLASSES: usize = ResyncClass::ALL.len();

/// What a class is promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClassPolicy {
    /// Bytes per second that it gets before any other class gets more than its own floor.
    pub floor_bytes_per_sec: u64,
    /// Its part of what is left above the floors, against the other classes' weights.
    pub weight: u32,
    /// Never more than this; `None`: no cap of its own; 0: paused.
    pub cap_bytes_per_sec: Option<u64>,
}

impl ClassPolicy {
    /// With what an operator has set for the class.
    pub fn with(self, own: Option<&ClassSettings>) -> ClassPolicy {
        let Some(own) = own else { return self };
        ClassPolicy {
            floor_bytes_per_sec: own.floor_bytes_per_sec.unwrap_or(self.floor_bytes_per_sec),
            weight: own.weight.unwrap_or(self.weight),
            cap_bytes_per_sec: if own.paused { Some(0) } else { own.cap_bytes_per_sec.or(self.cap_bytes_per_sec) },
        }
    }

    /// Nothing of the class may run.
    pub fn is_paused(&self) -> bool {
        self.cap_bytes_per_sec == Some(0)
    }
}

/// Policies in the order of [`ResyncClass::ALL`].
///
/// Each default weight is half of the one before: the more urgent class gets two thirds or more of what two share,
/// yet no class starves.
pub const DEFAULT_CLASSES: [ClassPolicy; CLASSES] = [weight(16), weight(8), weight(4), weight(2), weight(1)];

const fn weight(weight: u32) -> ClassPolicy {
    ClassPolicy { floor_bytes_per_sec: 0, weight, cap_bytes_per_sec: None }
}

/// The place of a class in arrays that follow [`ResyncClass::ALL`].
pub fn index(class: ResyncClass) -> usize {
    class as usize
}

/// Divides `rate` among the classes; `demand` is what each would take (`u64::MAX`: all it can get, 0: nothing).
pub fn divide(rate: u64, policies: &[ClassPolicy; CLASSES], demand: &[u64; CLASSES]) -> [u64; CLASSES] {
    let mut want = [0u64; CLASSES];
    for i in 0..CLASSES {
        want[i] = demand[i].min(policies[i].cap_bytes_per_sec.unwrap_or(u64::MAX));
    }
    let mut share = [0u64; CLASSES];
    let mut left = rate;
    for i in 0..CLASSES {
        share[i] = policies[i].floor_bytes_per_sec.min(want[i]).min(left);
        left -= share[i];
    }
    // Water filling: each round either satisfies a class or gives everything away, so it takes CLASSES rounds at most.
    for _ in 0..CLASSES {
        let hungry = |share: &[u64; CLASSES], i: usize| share[i] < want[i];
        let weights: u128 =
            (0..CLASSES).filter(|&i| hungry(&share, i)).map(|i| u128::from(policies[i].weight.max(1))).sum();
        if weights == 0 || left == 0 {
            break;
        }
        let round = left;
        for i in 0..CLASSES {
            if hungry(&share, i) {
                let part = (u128::from(round) * u128::from(policies[i].weight.max(1)) / weights) as u64;
                let part = part.min(want[i] - share[i]);
                share[i] += part;
                left -= part;
            }
        }
    }
    share
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u64 = u64::MAX;

    #[test]
    fn classes_are_indexed_in_order() {
        for (i, class) in ResyncClass::ALL.iter().enumerate() {
            assert_eq!(index(*class), i);
        }
    }

    #[test]
    fn one_class_gets_everything_and_two_share_by_weight() {
        assert_eq!(divide(900, &DEFAULT_CLASSES, &[0, 0, ALL, 0, 0]), [0, 0, 900, 0, 0]);
        assert_eq!(divide(900, &DEFAULT_CLASSES, &[0, 0, ALL, ALL, 0]), [0, 0, 600, 300, 0]);
        assert_eq!(divide(900, &DEFAULT_CLASSES, &[0, 0, 30, ALL, 0]), [0, 0, 30, 870, 0]);
        assert_eq!(divide(0, &DEFAULT_CLASSES, &[ALL; 5]), [0; 5]);
        assert_eq!(divide(900, &DEFAULT_CLASSES, &[0; 5]), [0; 5]);
        assert!(divide(u64::MAX, &DEFAULT_CLASSES, &[ALL; 5]).iter().all(|s| *s > 0));
    }

    #[test]
    fn floors_come_first_and_caps_hold() {
        let mut policies = DEFAULT_CLASSES;
        policies[4].floor_bytes_per_sec = 200;
        policies[0].cap_bytes_per_sec = Some(300);
        assert_eq!(divide(1000, &policies, &[ALL, 0, 0, 0, ALL]), [300, 0, 0, 0, 700]);
        assert_eq!(divide(250, &policies, &[ALL, 0, 0, 0, ALL])[4], 202);
        policies[0].floor_bytes_per_sec = 240;
        assert_eq!(divide(250, &policies, &[ALL, 0, 0, 0, ALL]), [240, 0, 0, 0, 10]);
    }
}
