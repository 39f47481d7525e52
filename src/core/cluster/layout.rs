//! Where a volume's chunks go: stripes over the PGs with the fewest provisioned bytes.
//!
//! A volume touches `min(pg_count, max(8, size / 32 GiB))` PGs, so that a VM depends on few nodes. Of PGs with as many bytes
//! those are taken that are led by the disks which lead the fewest bytes: a disk that leads half of a volume does half of
//! its work, and is the source of half of its copies. The choice is a function of the map and the volume's id, without
//! randomness.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{ClusterMap, Pool, Stripe, Volume};
use crate::core::ids::{DiskId, PgId, PoolId, VolumeId};
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

/// Provisioned bytes of each PG: what its volumes could grow to.
fn provisioned_bytes(map: &ClusterMap) -> BTreeMap<PgId, u64> {
    let mut sums = BTreeMap::new();
    for volume in map.volumes.values() {
        let end = volume.chunk_count();
        for (i, stripe) in volume.stripes.iter().enumerate() {
            let next = volume.stripes.get(i + 1).map_or(end, |s| s.first_chunk.min(end));
            let chunks = u64::from(next.saturating_sub(stripe.first_chunk));
            let len = stripe.pgs.len() as u64;
            for (at, pg) in stripe.pgs.iter().enumerate() {
                let share = chunks / len + u64::from((at as u64) < chunks % len);
                *sums.entry(PgId { pool: volume.pool, index: *pg }).or_insert(0) += share * CHUNK_BYTES;
            }
        }
    }
    sums
}

/// The stripe for a run of `bytes` that starts at `first_chunk`.
pub fn choose_stripe(map: &ClusterMap, pool: &Pool, volume: VolumeId, first_chunk: u32, bytes: u64) -> Stripe {
    let sums = provisioned_bytes(map);
    let id = |index: u32| PgId { pool: pool.id, index };
    let sum = |pg: u32| sums.get(&id(pg)).copied().unwrap_or(0);
    let hash = |pg: u32| mix(volume.0, u64::from(first_chunk) << 32 | u64::from(pg));
    let mut order: Vec<(u64, u64, u32)> = (0..pool.pg_count).map(|pg| (sum(pg), hash(pg), pg)).collect();
    order.sort_unstable();
    let spread = spread(pool.pg_count, bytes) as usize;
    // Those with fewer bytes are in anyway; of those with as many as the last one there is a choice.
    let last = order[..spread].last().map_or(0, |o| o.0);
    let fewer = order.partition_point(|o| o.0 < last);
    let as_many = order.partition_point(|o| o.0 <= last);
    let mut disks = Disks::new(map, &sums);
    let share = bytes / spread.max(1) as u64;
    let mut pgs: Vec<u32> = order[..fewer].iter().map(|o| o.2).collect();
    pgs.iter().for_each(|pg| disks.add(id(*pg), share));
    let mut choice = Choice::new(&disks, pool.id, order[fewer..as_many].iter().map(|o| o.2));
    while pgs.len() < spread
        && let Some(pg) = choice.next(&mut disks, share)
    {
        pgs.push(pg);
    }
    Stripe { first_chunk, pgs }
}

/// What each disk leads and holds, in provisioned bytes.
struct Disks<'a> {
    map: &'a ClusterMap,
    led: BTreeMap<DiskId, u64>,
    held: BTreeMap<DiskId, u64>,
}

impl<'a> Disks<'a> {
    fn new(map: &'a ClusterMap, provisioned: &BTreeMap<PgId, u64>) -> Self {
        let mut disks = Disks { map, led: BTreeMap::new(), held: BTreeMap::new() };
        provisioned.iter().for_each(|(pg, bytes)| disks.add(*pg, *bytes));
        disks
    }

    fn add(&mut self, pg: PgId, bytes: u64) {
        let Some(config) = self.map.pgs.get(&pg) else { return };
        let add = |sums: &mut BTreeMap<DiskId, u64>, disk: DiskId| {
            let sum = sums.entry(disk).or_insert(0);
            *sum = sum.saturating_add(bytes);
        };
        config.primary().into_iter().for_each(|p| add(&mut self.led, p.disk));
        config.members.iter().for_each(|m| add(&mut self.held, m.disk));
    }

    /// So many bytes for a disk of this size: comparable between disks.
    fn weight(&self, disk: DiskId, sums: &BTreeMap<DiskId, u64>) -> u128 {
        let capacity = self.map.disks.get(&disk).map_or(1, |d| d.capacity_bytes.max(1));
        (u128::from(sums.get(&disk).copied().unwrap_or(0)) << 40) / u128::from(capacity)
    }

    /// A PG's members, the fullest first.
    fn fullness(&self, pg: PgId) -> Vec<u128> {
        let members = self.map.pgs.get(&pg).into_iter().flat_map(|c| &c.members);
        let mut fullness: Vec<u128> = members.map(|m| self.weight(m.disk, &self.held)).collect();
        fullness.sort_unstable_by_key(|weight| std::cmp::Reverse(*weight));
        fullness
    }
}

/// PGs to choose from, by the disk that leads them.
struct Choice {
    pool: PoolId,
    by_disk: BTreeMap<DiskId, VecDeque<u32>>,
    /// The disk with the least to lead first.
    order: BTreeSet<(u128, DiskId)>,
}

impl Choice {
    /// Of the PGs that one disk leads so many are compared: enough to pass by disks that hold much already.
    const COMPARED: usize = 16;

    fn new(disks: &Disks<'_>, pool: PoolId, pgs: impl Iterator<Item = u32>) -> Self {
        let mut by_disk: BTreeMap<DiskId, VecDeque<u32>> = BTreeMap::new();
        for index in pgs {
            let primary = disks.map.pgs.get(&PgId { pool, index }).and_then(|c| c.primary());
            by_disk.entry(primary.unwrap_or_default().disk).or_default().push_back(index);
        }
        let order = by_disk.keys().map(|disk| (disks.weight(*disk, &disks.led), *disk)).collect();
        Choice { pool, by_disk, order }
    }

    fn next(&mut self, disks: &mut Disks<'_>, bytes: u64) -> Option<u32> {
        let (_, disk) = self.order.pop_first()?;
        let pgs = self.by_disk.get_mut(&disk)?;
        let id = |index: u32| PgId { pool: self.pool, index };
        let compared = pgs.iter().take(Self::COMPARED).enumerate();
        let (at, _) = compared.min_by_key(|(_, pg)| disks.fullness(id(**pg)))?;
        let pg = pgs.remove(at)?;
        disks.add(id(pg), bytes);
        if !pgs.is_empty() {
            self.order.insert((disks.weight(disk, &disks.led), disk));
        }
        Some(pg)
    }
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
    use crate::core::cluster::command::{Command, Context, Nobody, PoolSpec};
    use crate::core::cluster::state::ClusterState;
    use crate::core::cluster::{FailureDomain, Replica};
    use crate::core::ids::{BootId, ClusterId, NodeId};

    #[test]
    fn a_volume_spreads_by_its_size() {
        assert_eq!(spread(256, 1 << 30), 8);
        assert_eq!(spread(4, 1 << 30), 4);
        assert_eq!(spread(256, 1 << 40), 32);
        assert_eq!(spread(256, 1 << 50), 256);
    }

    const POOL: PoolId = PoolId(1);

    /// Four nodes of a disk each, and a pool of 64 PGs that they lead in turns, with all sets of others.
    fn cluster() -> ClusterState {
        let mut state = ClusterState::empty();
        let mut ok = |command: Command| {
            state.apply(command, &Context { liveness: &Nobody }).expect("it is done");
        };
        ok(Command::Init { cluster: ClusterId([1; 16]), feature_level: 1 });
        for n in 1..=4 {
            let addr = "127.0.0.1:1".parse().expect("an address");
            ok(Command::AddNode { name: format!("n{n}"), addr, zone: String::new(), rack: String::new() });
            ok(Command::AllocDisk { node: NodeId(n), class: "ssd".into(), capacity_bytes: 1 << 40 });
        }
        let spec = PoolSpec {
            name: "p".into(),
            replicas: 3,
            min_replicas: 2,
            failure_domain: FailureDomain::Node,
            class: String::new(),
            pg_count: 64,
            durable_writes: false,
        };
        let row = |pg: u32| {
            let others = (0..4).filter(|i| *i != pg % 4 && *i != (pg % 4 + 1 + pg / 4 % 3) % 4);
            let disks = std::iter::once(pg % 4).chain(others);
            disks.map(|i| Replica { disk: DiskId(i + 1), boot: BootId(1) }).collect()
        };
        ok(Command::CreatePool { spec, members: (0..64).map(row).collect() });
        state
    }

    /// Makes a volume; its PGs.
    fn provision(state: &mut ClusterState, name: &str, size_bytes: u64) -> Vec<u32> {
        let command = Command::CreateVolume { name: name.into(), pool: "p".into(), size_bytes };
        state.apply(command, &Context { liveness: &Nobody }).expect("it is made");
        let volume = state.map.volumes.values().find(|v| v.name == name).expect("it is there");
        volume.stripes[0].pgs.clone()
    }

    /// How many of these PGs a disk leads, and how many it holds.
    fn of_disk(state: &ClusterState, pgs: &[u32], disk: u32) -> (usize, usize) {
        let members = |pg: &u32| state.map.pgs[&PgId { pool: POOL, index: *pg }].members.clone();
        let leads = pgs.iter().filter(|pg| members(pg)[0].disk == DiskId(disk)).count();
        (leads, pgs.iter().filter(|pg| members(pg).iter().any(|m| m.disk == DiskId(disk))).count())
    }

    #[test]
    fn a_volume_is_led_and_held_by_all_disks_alike() {
        let mut state = cluster();
        for id in 1..=8 {
            let pgs = provision(&mut state, &format!("v{id}"), 1 << 30);
            assert_eq!(pgs.iter().collect::<BTreeSet<_>>().len(), 8, "each once");
            for disk in 1..=4 {
                let (leads, holds) = of_disk(&state, &pgs, disk);
                assert_eq!(leads, 2, "volume {id}, disk {disk}");
                assert!((5..=7).contains(&holds), "volume {id}, disk {disk}: {holds}");
            }
        }
        // Fewest bytes come first: eight volumes of eight PGs fill each of 64 once.
        let sums = provisioned_bytes(&state.map);
        assert!(sums.len() == 64 && sums.values().all(|bytes| *bytes == 1 << 27), "{sums:?}");
    }

    #[test]
    fn a_disk_that_leads_much_leads_nothing_more() {
        let mut state = cluster();
        provision(&mut state, "a", 8 << 30);
        let id = *state.map.volumes.keys().next().expect("a volume");
        let volume = state.map.volumes.get_mut(&id).expect("it is there");
        volume.stripes[0].pgs = (0..32).step_by(4).collect();
        let pgs = provision(&mut state, "b", 8 << 30);
        assert_eq!(of_disk(&state, &pgs, 1).0, 0, "{pgs:?}");
    }
}
