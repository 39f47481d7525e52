//! Where a volume's chunks go: stripes over the PGs with the fewest provisioned bytes.
//!
//! A volume touches `min(pg_count, max(8, size / 32 GiB))` PGs, so that a VM depends on few nodes. The choice is a
//! function of the map and the volume's id, without randomness.

use std::collections::BTreeMap;

use super::{ClusterMap, Pool, Stripe, Volume};
use crate::core::ids::{PoolId, VolumeId};
use crate::core::units::CHUNK_BYTES;

/// Fewest PGs of a volume: enough to use several disks at once.
pub const SPREAD_MIN: u32 = 8;
/// One more PG for each of these.
pub const SPREAD_BYTES: u64 = 32 << 30;
/// A stripe costs memory in every map; growth beyond this goes on in the last stripe.
pub const STRIPES_MAX: usize = 1024;
/// Chunk indexes are 32 bits, and the last one stays free.
pub const VOLUME_BYTES_MAX: u64 = (u32::MAX as u64) * CHUNK_BYTES;

/// PGs that a run of `bytes` cycles over.
pub fn spread(pg_count: u32, bytes: u64) -> u32 {
    let wanted = u32::try_from(bytes / SPREAD_BYTES).unwrap_or(u32::MAX).max(SPREAD_MIN);
    wanted.min(pg_count)
}

/// Provisioned bytes of each PG of the pool, by index: what its volumes could grow to.
pub fn provisioned_bytes(map: &ClusterMap, pool: PoolId) -> BTreeMap<u32, u64> {
    let mut sums = BTreeMap::new();
    for volume in map.volumes.values().filter(|v| v.pool == pool) {
        let end = volume.chunk_count();
        for (i, stripe) in volume.stripes.iter().enumerate() {
            let next = volume.stripes.get(i + 1).map_or(end, |s| s.first_chunk.min(end));
            let chunks = u64::from(next.saturating_sub(stripe.first_chunk));
            let len = stripe.pgs.len() as u64;
            for (at, pg) in stripe.pgs.iter().enumerate() {
                let share = chunks / len + u64::from((at as u64) < chunks % len);
                *sums.entry(*pg).or_insert(0) += share * CHUNK_BYTES;
            }
        }
    }
    sums
}

/// The stripe for a run of `bytes` that starts at `first_chunk`.
pub fn choose_stripe(map: &ClusterMap, pool: &Pool, volume: VolumeId, first_chunk: u32, bytes: u64) -> Stripe {
    let sums = provisioned_bytes(map, pool.id);
    let mut order: Vec<(u64, u64, u32)> = (0..pool.pg_count)
        .map(|pg| {
            (sums.get(&pg).copied().unwrap_or(0), mix(volume.0, u64::from(first_chunk) << 32 | u64::from(pg)), pg)
        })
        .collect();
    order.sort_unstable();
    order.truncate(spread(pool.pg_count, bytes) as usize);
    Stripe { first_chunk, pgs: order.into_iter().map(|(_, _, pg)| pg).collect() }
}

/// The stripe that growing to `size_bytes` appends, if any: small growth, and growth within a run that was once
/// longer, goes on in the last stripe.
pub fn growth_stripe(map: &ClusterMap, pool: &Pool, volume: &Volume, size_bytes: u64) -> Option<Stripe> {
    let first_chunk = volume.chunk_count();
    let added = size_bytes.div_ceil(CHUNK_BYTES).saturating_sub(u64::from(first_chunk));
    let last = volume.stripes.last()?.first_chunk;
    let worth = added >= u64::from(SPREAD_MIN) && volume.stripes.len() < STRIPES_MAX && first_chunk > last;
    worth.then(|| choose_stripe(map, pool, volume.id, first_chunk, added * CHUNK_BYTES))
}

/// SplitMix64's finaliser over both words: spreads equal PGs evenly, the same way each time.
fn mix(a: u64, b: u64) -> u64 {
    let mut z = a.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(b);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_spreads_by_its_size() {
        assert_eq!(spread(256, 1 << 30), 8);
        assert_eq!(spread(4, 1 << 30), 4);
        assert_eq!(spread(256, 1 << 40), 32);
        assert_eq!(spread(256, 1 << 50), 256);
    }
}
