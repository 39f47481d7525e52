//! Whole volumes first: which placement groups come before which within a class.
//!
//! A VM is safe again when all of its volume's placement groups are, so the moves of one volume go together: those of the
//! highest priority first, then those of the volume that has least left to copy, as it is the next one that can be whole
//! (shortest remaining time first has the least mean time to wait). A PG that several volumes share goes with the first.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use crate::core::cluster::Volume;
use crate::core::ids::PgId;

/// Each moving PG's place in the order; `left` has the bytes that its moves copy. PGs that no volume uses are left out:
/// they come last, with [`NO_VOLUME`].
pub fn ranks<'a>(volumes: impl Iterator<Item = &'a Volume>, left: &BTreeMap<PgId, u64>) -> BTreeMap<PgId, u32> {
    let mut order = Vec::new();
    for volume in volumes {
        let pgs: BTreeSet<PgId> = volume.pgs().filter(|pg| left.contains_key(pg)).collect();
        if !pgs.is_empty() {
            let bytes = pgs.iter().fold(0u64, |sum, pg| sum.saturating_add(left[pg]));
            order.push((Reverse(volume.priority), bytes, volume.id, pgs));
        }
    }
    order.sort_unstable_by_key(|(priority, bytes, id, _)| (*priority, *bytes, *id));
    let mut ranks = BTreeMap::new();
    for (at, (.., pgs)) in order.into_iter().enumerate() {
        for pg in pgs {
            ranks.entry(pg).or_insert(u32::try_from(at).unwrap_or(NO_VOLUME));
        }
    }
    ranks
}

/// The rank of a PG that no volume uses.
pub const NO_VOLUME: u32 = u32::MAX;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::cluster::Stripe;
    use crate::core::ids::{PoolId, VolumeId};

    fn pg(index: u32) -> PgId {
        PgId { pool: PoolId(1), index }
    }

    fn volume(id: u64, priority: i32, pgs: &[u32]) -> Volume {
        Volume {
            id: VolumeId(id),
            name: format!("v{id}"),
            pool: PoolId(1),
            size_bytes: 1 << 30,
            stripes: vec![Stripe { first_chunk: 0, pgs: pgs.to_vec() }],
            incarnation: 0,
            attached_to: String::new(),
            durability: 0,
            priority,
            deleting: false,
            qos: Default::default(),
        }
    }

    #[test]
    fn the_urgent_volume_goes_first_then_the_one_that_is_whole_soonest() {
        let volumes = [volume(1, 0, &[1, 2, 3]), volume(2, 0, &[3, 4]), volume(3, 5, &[5, 6]), volume(4, 9, &[9])];
        let left = [1, 2, 3, 4, 5, 7].map(|i| (pg(i), 100)).into_iter().collect();
        let ranks = ranks(volumes.iter(), &left);
        let at = |i| ranks.get(&pg(i)).copied().unwrap_or(NO_VOLUME);
        assert_eq!(at(5), 0, "the only PG of volume 3 that moves; nothing of volume 4 does");
        assert_eq!([at(3), at(4)], [1, 1], "volume 2 has 200 bytes left, volume 1 has 300");
        assert_eq!([at(1), at(2)], [2, 2]);
        assert_eq!(at(7), NO_VOLUME);
    }
}
