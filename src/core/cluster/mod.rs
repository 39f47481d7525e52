//! The cluster map: what the coordinator decides and everyone else follows.
//!
//! Purpose: one versioned value that says who the members of each placement group are. Size: O(nodes + disks +
//! volumes + PGs); nothing per chunk. Liveness (who answers heartbeats) is not in the map; it is the
//! coordinator's observation.
//!
//! Invariants: `version` rises with each change; a PG's configuration changes only by compare-and-swap on its
//! generation; ids are never reused (R4); a volume's stripes never change, growing appends one (R26).

pub mod check;
pub mod command;
pub mod delta;
pub mod job;
pub mod layout;
mod pgs;
mod pools;
mod qos;
mod resync;
pub mod state;

use std::collections::BTreeMap;
use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use job::{Job, JobState};
pub use qos::{BANDWIDTH_MAX, BANDWIDTH_MIN, IOPS_MAX, SHARE, SHARE_MAX, VolumeQos};
pub use resync::{
    ClassSettings, DAY_MINUTES, DeadlineWins, Limits, NodeOverrides, NodeSettings, Profile, ResyncConfig,
    ResyncSettings, Target, Window,
};

use super::ids::{BootId, ChunkId, ClusterId, DiskId, Generation, NodeId, PgId, PoolId, VolumeId};
use super::units::CHUNK_BYTES;

/// Feature levels that this binary can run, lowest and highest.
pub const FEATURE_LEVELS: (u32, u32) = (1, 1);

/// The whole map.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClusterMap {
    /// Whose map it is.
    pub cluster: ClusterId,
    /// Rises at each import, restore or rebuild (R4).
    pub epoch: u32,
    /// Rises with each change.
    pub version: u64,
    /// What every member of the cluster can decode.
    pub feature_level: u32,
    /// Hosts.
    pub nodes: BTreeMap<NodeId, Node>,
    /// Disks.
    pub disks: BTreeMap<DiskId, Disk>,
    /// Pools.
    pub pools: BTreeMap<PoolId, Pool>,
    /// Volumes.
    pub volumes: BTreeMap<VolumeId, Volume>,
    /// Configurations.
    pub pgs: BTreeMap<PgId, PgConfig>,
    /// Operator settings.
    pub settings: Settings,
    /// The last plans and what became of them. Followers of the map don't get them.
    pub jobs: BTreeMap<u64, Job>,
}

/// A host that runs one `evenkeel node` process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Identity.
    pub id: NodeId,
    /// The operator's name for it, unique.
    pub name: String,
    /// Where its QUIC endpoint listens.
    pub addr: SocketAddr,
    /// Where its admin HTTP listens.
    pub admin_url: String,
    /// Failure domains above the node; empty when unknown.
    pub zone: String,
    /// See `zone`.
    pub rack: String,
    /// The release that it runs: its version cohort.
    pub release: String,
    /// What the operator wants of it.
    pub admin_state: NodeAdminState,
}

/// What the operator wants of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum NodeAdminState {
    /// Takes replicas.
    #[default]
    Active,
    /// Its replicas move away.
    Draining,
    /// Down on purpose: nothing is re-replicated until it ends.
    Maintenance,
    /// Gone for good; its id is kept.
    Removed,
}

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Identity.
    pub id: DiskId,
    /// The node that it is in.
    pub node: NodeId,
    /// For instance `ssd` or `hdd`.
    pub class: String,
    /// Bytes that slots can hold.
    pub capacity_bytes: u64,
    /// What the operator and the disk's own errors say of it.
    pub admin_state: DiskAdminState,
}

/// A disk's lasting state; whether it answers now is the coordinator's observation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DiskAdminState {
    /// In use.
    #[default]
    Active,
    /// Its replicas move away.
    Draining,
    /// It failed an fsync (R15) or was declared lost; only an operator clears it.
    Failed,
    /// Gone for good; its id is kept.
    Removed,
}

/// The level of the topology at which two replicas may not share a place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum FailureDomain {
    /// Two replicas may share a node, not a disk.
    Disk,
    /// The default.
    #[default]
    Node,
    /// Racks.
    Rack,
    /// Zones.
    Zone,
    /// Nodes on one release are one domain.
    Release,
}

/// A pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Identity.
    pub id: PoolId,
    /// Unique name.
    pub name: String,
    /// Copies aimed at.
    pub replicas: u32,
    /// Copies without which IO waits.
    pub min_replicas: u32,
    /// Where two copies may not meet.
    pub failure_domain: FailureDomain,
    /// Restricts the pool to disks of a class; empty: any.
    pub class: String,
    /// Placement groups, fixed at creation.
    pub pg_count: u32,
    /// True: each acked write is on stable storage on every member (`durability = "write"`).
    pub durable_writes: bool,
}

/// A run of a volume's chunks and the PGs that they cycle over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Stripe {
    /// The first chunk of the run.
    pub first_chunk: u32,
    /// PG indexes within the volume's pool.
    pub pgs: Vec<u32>,
}

/// A VM's disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Identity.
    pub id: VolumeId,
    /// Unique name: the NBD export's name.
    pub name: String,
    /// Its pool.
    pub pool: PoolId,
    /// Size, a multiple of 512.
    pub size_bytes: u64,
    /// Layout, by first chunk, rising.
    pub stripes: Vec<Stripe>,
    /// Rises with each attach; replicas refuse lower ones (R14).
    pub incarnation: u64,
    /// The gateway that has it read-write, by name; empty: none.
    pub attached_to: String,
    /// The sum of its PGs' durability epochs up to which no acked write of that gateway is lost: it has sent them again
    /// (R13). 0: none was left unflushed.
    pub durability: u64,
    /// Higher is resynced first; 0 is usual.
    pub priority: i32,
    /// Being deleted: its chunks are dropped, then the record becomes a tombstone.
    pub deleting: bool,
    /// What its guest may do, and its share.
    pub qos: VolumeQos,
}

impl Volume {
    /// The PG that holds a chunk.
    ///
    /// `None` if the chunk lies before the first stripe, which no valid volume has.
    pub fn pg_of(&self, chunk: u32) -> Option<PgId> {
        let stripe = self.stripes.iter().rev().find(|s| s.first_chunk <= chunk)?;
        let at = (chunk - stripe.first_chunk) as usize % stripe.pgs.len();
        Some(PgId { pool: self.pool, index: stripe.pgs[at] })
    }

    /// Chunks in the volume; the last may be partial.
    pub fn chunk_count(&self) -> u32 {
        self.size_bytes.div_ceil(CHUNK_BYTES) as u32
    }

    /// How many of its chunks lie in each of its PGs.
    pub fn chunks_by_pg(&self) -> BTreeMap<PgId, u64> {
        let mut chunks = BTreeMap::new();
        for (i, stripe) in self.stripes.iter().enumerate() {
            let end = self.stripes.get(i + 1).map_or(self.chunk_count(), |s| s.first_chunk).min(self.chunk_count());
            let (count, pgs) = (u64::from(end.saturating_sub(stripe.first_chunk)), stripe.pgs.len() as u64);
            for (at, index) in stripe.pgs.iter().enumerate() {
                let these = count / pgs + u64::from((at as u64) < count % pgs);
                *chunks.entry(PgId { pool: self.pool, index: *index }).or_default() += these;
            }
        }
        chunks
    }

    /// Every PG that the volume touches, once.
    pub fn pgs(&self) -> impl Iterator<Item = PgId> + '_ {
        let set: std::collections::BTreeSet<u32> = self.stripes.iter().flat_map(|s| s.pgs.iter().copied()).collect();
        set.into_iter().map(|index| PgId { pool: self.pool, index })
    }

    /// The sum of its PGs' durability epochs in this map.
    pub fn durability_in(&self, map: &ClusterMap) -> u64 {
        self.pgs().filter_map(|pg| map.pgs.get(&pg)).map(|c| c.durability_epoch).sum()
    }

    /// The id of its chunk at `index`.
    pub fn chunk(&self, index: u32) -> ChunkId {
        ChunkId { volume: self.id, index }
    }
}

/// A member or learner: a disk as it was at one boot (R1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize, JsonSchema)]
pub struct Replica {
    /// The disk.
    pub disk: DiskId,
    /// The disk's boot id when it entered the configuration.
    pub boot: BootId,
}

/// Why a learner copies; the order is the order of urgency.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ResyncClass {
    /// One copy left.
    RepairCritical,
    /// Fewer copies than the pool wants.
    #[default]
    Repair,
    /// Empties a disk or node.
    Drain,
    /// Evens load.
    Rebalance,
    /// Verifies.
    Scrub,
}

impl ResyncClass {
    /// All classes, most urgent first.
    pub const ALL: [ResyncClass; 5] = [
        ResyncClass::RepairCritical,
        ResyncClass::Repair,
        ResyncClass::Drain,
        ResyncClass::Rebalance,
        ResyncClass::Scrub,
    ];

    /// It restores a copy that is missing; others move or verify what is there.
    pub fn is_repair(self) -> bool {
        self <= ResyncClass::Repair
    }

    /// The name on the command line, in metrics and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            ResyncClass::RepairCritical => "repair-critical",
            ResyncClass::Repair => "repair",
            ResyncClass::Drain => "drain",
            ResyncClass::Rebalance => "rebalance",
            ResyncClass::Scrub => "scrub",
        }
    }
}

/// A replica on its way in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Learner {
    /// The disk, at its boot.
    pub replica: Replica,
    /// The member that it replaces when complete; `None` adds a copy.
    pub replaces: Option<DiskId>,
    /// Why.
    pub class: ResyncClass,
    /// Nothing is copied to it until its job goes on; writes are forwarded all the same.
    pub paused: bool,
}

/// A PG's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PgConfig {
    /// Which PG.
    pub pg: PgId,
    /// Compare-and-swap key.
    pub generation: Generation,
    /// Rises when acked, unflushed writes may have been lost (R2, R13).
    pub durability_epoch: u64,
    /// The primary first. Never empty once the pool exists.
    pub members: Vec<Replica>,
    /// Replicas on their way in.
    pub learners: Vec<Learner>,
    /// The last proposal that was carried out, so that a primary can read its outcome (R3).
    pub last_proposal: u64,
    /// An operator made this configuration below min_replicas (R5): its one member leads with what it has, complete or
    /// not. Ends when the members are enough again.
    pub forced: bool,
    /// Members without which nothing is served: after all restarted one is the truth, and acks nothing alone (R2, R5).
    /// 0: any recorded configuration has enough.
    pub members_min: u32,
}

impl PgConfig {
    /// The primary, if there is any member.
    pub fn primary(&self) -> Option<Replica> {
        self.members.first().copied()
    }

    /// True if the disk is a member at this boot.
    pub fn is_member(&self, replica: Replica) -> bool {
        self.members.contains(&replica)
    }

    /// True if it may serve: what it acks is on min_replicas disks, or an operator wants it so.
    pub fn has_enough(&self) -> bool {
        self.members.len() >= self.members_min as usize
    }

    /// True if the operator made this replica the only member, whatever it lacks (R5).
    pub fn is_forced_on(&self, replica: Replica) -> bool {
        self.forced && self.members == [replica]
    }
}

/// Operator settings that daemons follow live.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Settings {
    /// Throttle of resync: what is in effect, and all that nodes need.
    pub resync: ResyncSettings,
    /// What operators said of it; [`crate::core::throttle::settings::effective`] makes `resync` from it and the time.
    #[serde(default)]
    pub config: ResyncConfig,
    /// Time between a node's loss and its re-replication elsewhere.
    pub grace_seconds: f64,
    /// Joins within this time make one plan.
    pub debounce_seconds: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            resync: ResyncSettings::default(),
            config: ResyncConfig::default(),
            grace_seconds: 600.0,
            debounce_seconds: 10.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grown_volume_keeps_its_first_stripe() {
        let stripes = vec![Stripe { first_chunk: 0, pgs: vec![5, 9] }, Stripe { first_chunk: 10, pgs: vec![1, 2, 3] }];
        let volume = Volume {
            id: VolumeId(1),
            name: "v".into(),
            pool: PoolId(1),
            size_bytes: 15 * CHUNK_BYTES - 512,
            stripes,
            incarnation: 0,
            attached_to: String::new(),
            durability: 0,
            priority: 0,
            deleting: false,
            qos: VolumeQos::default(),
        };
        let at = |c| volume.pg_of(c).unwrap().index;
        assert_eq!([at(0), at(1), at(9), at(10), at(12), at(13)], [5, 9, 9, 1, 3, 1]);
        assert_eq!(volume.chunk_count(), 15);
        assert_eq!(volume.pgs().count(), 5);
        let mut counted = BTreeMap::new();
        (0..15).for_each(|c| *counted.entry(volume.pg_of(c).unwrap()).or_insert(0) += 1);
        assert_eq!(volume.chunks_by_pg(), counted);
    }
}
