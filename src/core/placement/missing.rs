//! Where space lacks: for each replica that found no place, the failure domain in which it would have found one.
//!
//! A replica may go to any domain that has none of its PG's; each is put down where least is missing so far, so that the
//! answer asks for the smallest disks, spread over the domains that are there. Where no domain is left, only a further one
//! helps. Units: bytes.

use std::collections::BTreeMap;

use super::layout::{Disks, Layout, NONE};
use super::model::{DiskState, MissingCapacity};

/// What lacks for one pool.
#[derive(Default)]
pub(super) struct Missing {
    /// Domains that a pool could use, each with one of its disks; found when the first replica lacks.
    domains: Option<BTreeMap<u32, u32>>,
    /// By domain; none: a further one.
    bytes: BTreeMap<Option<u32>, u64>,
}

impl Missing {
    /// A PG lacks so many replicas.
    pub fn add(&mut self, pool: &Layout<'_>, disks: &Disks, pg: u32, lacking: usize) {
        let domains = self.domains.get_or_insert_with(|| {
            // A domain that is being emptied is no place to add disks to.
            let may = |d: &u32| matches!(disks.state[*d as usize], DiskState::Up | DiskState::Full | DiskState::Down);
            let usable = (0..disks.len() as u32).filter(|d| pool.domain[*d as usize] != NONE && may(d));
            usable.map(|d| (pool.domain[d as usize], d)).collect()
        });
        let size = pool.bytes[pg as usize];
        let mut open: Vec<u32> = domains.keys().copied().filter(|d| pool.admits(pg, *d, NONE)).collect();
        for _ in 0..lacking {
            let least = open.iter().copied().min_by_key(|d| (self.bytes.get(&Some(*d)).copied().unwrap_or(0), *d));
            open.retain(|d| Some(*d) != least);
            let sum = self.bytes.entry(least).or_default();
            *sum = sum.saturating_add(size);
        }
    }

    /// The sums.
    pub fn of(self, pool: &Layout<'_>, disks: &Disks) -> Vec<MissingCapacity> {
        let domains = self.domains.unwrap_or_default();
        let one = |(domain, bytes): (Option<u32>, u64)| MissingCapacity {
            pool: pool.spec.id,
            class: pool.spec.class.clone(),
            level: pool.spec.failure_domain,
            domain_of: domain.and_then(|d| domains.get(&d)).map(|d| disks.ids[*d as usize]),
            bytes,
        };
        self.bytes.into_iter().filter(|(_, bytes)| *bytes > 0).map(one).collect()
    }
}
