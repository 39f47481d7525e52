//! What the planner reads and what it returns.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::core::cluster::ResyncClass;
use crate::core::ids::{DiskId, NodeId, PgId, PoolId};

/// What a disk may do for placement.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DiskState {
    /// Serves, gives and takes replicas.
    #[default]
    Up,
    /// Away, within its grace: keeps its replicas, takes none, is no source.
    Down,
    /// To be emptied: gives its replicas, takes none, and stays a source until they have left.
    Draining,
    /// Under planned work: keeps its replicas, takes none, holds no primary.
    Maintenance,
    /// Too full to take anything; may give.
    Full,
    /// Broken: its replicas are gone and are replaced.
    Failed,
    /// Declared lost: its replicas are gone and are replaced.
    Lost,
}

impl DiskState {
    /// New replicas may be planned onto it.
    pub fn takes(self) -> bool {
        self == DiskState::Up
    }
    /// Its replicas stay where they are, whatever the balance says.
    pub fn keeps(self) -> bool {
        matches!(self, DiskState::Down | DiskState::Maintenance)
    }
    /// Its replicas no longer exist.
    pub fn is_gone(self) -> bool {
        matches!(self, DiskState::Failed | DiskState::Lost)
    }
    /// It can be read: a replica on it counts as a live copy.
    pub fn is_live(self) -> bool {
        matches!(self, DiskState::Up | DiskState::Draining | DiskState::Maintenance | DiskState::Full)
    }
}

/// One disk, where it stands, and what it can take.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct DiskInfo {
    /// The disk.
    pub id: DiskId,
    /// The node that it is in.
    pub node: NodeId,
    /// The node's rack; names are unique within a zone.
    pub rack: String,
    /// The node's zone.
    pub zone: String,
    /// The release that the node runs.
    pub release: String,
    /// The disk's class, such as `ssd`.
    pub class: String,
    /// Its size; shares follow it.
    pub capacity_bytes: u64,
    /// What it may do.
    pub state: DiskState,
    /// Bytes in use. What exceeds the PGs of [`Input::current`] (old copies, other data) is taken as fixed.
    pub used_bytes: u64,
    /// Bytes promised to something other than the PGs of [`Input::current`].
    pub reserved_bytes: u64,
}

/// The cluster's disks.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Topology {
    /// In any order; ids are unique.
    pub disks: Vec<DiskInfo>,
}

/// What must not hold two replicas of one PG.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FailureDomain {
    /// One disk.
    Disk,
    /// One node.
    #[default]
    Node,
    /// One rack.
    Rack,
    /// One zone.
    Zone,
    /// One node, and as far as the movement budget goes not all replicas on nodes of one release.
    Release,
}

impl FailureDomain {
    /// By its name on the command line and in maps.
    pub fn parse(text: &str) -> Option<Self> {
        use serde::de::IntoDeserializer;
        let text: serde::de::value::StrDeserializer<'_, serde::de::value::Error> = text.into_deserializer();
        FailureDomain::deserialize(text).ok()
    }
}

/// A pool's rule.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct PoolSpec {
    /// The pool.
    pub id: PoolId,
    /// Its name, for messages.
    pub name: String,
    /// Replicas of each PG.
    pub replicas: u32,
    /// Below this many a PG stops serving.
    pub min_replicas: u32,
    /// What must not hold two replicas of one PG.
    pub failure_domain: FailureDomain,
    /// Only disks of this class, if given.
    pub class: Option<String>,
    /// Number of PGs, indexes from 0.
    pub pg_count: u32,
}

/// One PG's disks.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct PgPlacement {
    /// The PG.
    pub pg: PgId,
    /// Bytes of one replica.
    pub bytes: u64,
    /// The primary first. Today's may name lost disks.
    pub disks: Vec<DiskId>,
}

/// What no plan may exceed.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Limits {
    /// No plan fills a disk past this part of its capacity.
    pub backfill_limit_ratio: f64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { backfill_limit_ratio: 0.90 }
    }
}

/// A move of an earlier plan that has begun. It is kept if it is still useful.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct PendingMove {
    /// The PG.
    pub pg: PgId,
    /// The disk that it leaves, if it replaces a replica.
    pub from: Option<DiskId>,
    /// The disk that it goes to.
    pub to: DiskId,
}

/// How far the planner goes to spread each PG over releases, for pools that don't ask for it by
/// [`FailureDomain::Release`] (those use the default).
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Cohort {
    /// Extra moves allowed, as a part of the pool's replicas.
    pub budget_ratio: f64,
}

impl Default for Cohort {
    fn default() -> Self {
        Cohort { budget_ratio: 0.05 }
    }
}

/// All that a plan depends on.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Input {
    /// The disks.
    pub topology: Topology,
    /// The pools.
    pub pools: Vec<PoolSpec>,
    /// Today's placement, in any order. A PG without a row has no data yet.
    pub current: Vec<PgPlacement>,
    /// What the plan may not exceed.
    pub limits: Limits,
    /// Moves that have begun.
    pub pending: Vec<PendingMove>,
    /// Spread all pools' PGs over releases, best effort.
    pub cohort: Option<Cohort>,
    /// Varies the choice among equals.
    pub seed: u64,
}

/// Why a replica moves; in order of urgency.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum MoveClass {
    /// One live copy is left, or none.
    RepairCritical,
    /// A copy is missing.
    Repair,
    /// The disk is to be emptied, or the replica is where its pool's rule forbids it.
    Drain,
    /// For balance.
    Rebalance,
}

impl MoveClass {
    /// The name on the command line and in JSON.
    pub fn name(self) -> &'static str {
        ResyncClass::from(self).name()
    }
    /// It restores a copy.
    pub fn is_repair(self) -> bool {
        ResyncClass::from(self).is_repair()
    }
}

impl From<MoveClass> for ResyncClass {
    fn from(class: MoveClass) -> ResyncClass {
        match class {
            MoveClass::RepairCritical => ResyncClass::RepairCritical,
            MoveClass::Repair => ResyncClass::Repair,
            MoveClass::Drain => ResyncClass::Drain,
            MoveClass::Rebalance => ResyncClass::Rebalance,
        }
    }
}

/// One PG replica's change of disk.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Move {
    /// The PG.
    pub pg: PgId,
    /// The disk that gives the replica up, which may be a lost one; none where a copy is added.
    pub from: Option<DiskId>,
    /// The disk that gets it.
    pub to: DiskId,
    /// Bytes to copy.
    pub bytes: u64,
    /// How urgent it is.
    pub class: MoveClass,
    /// Why, in a few words.
    pub reason: String,
}

/// A copy beyond its pool's count, which goes without a successor once the PG is clean.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Removal {
    /// The PG.
    pub pg: PgId,
    /// The disk that gives the copy up.
    pub disk: DiskId,
    /// Bytes that come free there.
    pub bytes: u64,
    /// Why, in a few words.
    pub reason: String,
}

/// Sums over a plan.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Totals {
    /// Number of moves.
    pub moves: u64,
    /// Bytes to copy.
    pub bytes: u64,
    /// No plan with this balance has fewer moves (the sum of the pools' L).
    pub lower_bound_moves: u64,
    /// Copies given up without a successor.
    #[serde(default)]
    pub removals: u64,
    /// Bytes that those leave free.
    #[serde(default)]
    pub freed_bytes: u64,
}

/// How even a placement is.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Evenness {
    /// Fullest disk's PG replicas per byte of capacity over the mean.
    pub max_over_mean: f64,
    /// Standard deviation of PG replicas from the share, over disks and pools.
    pub stddev: f64,
    /// The greatest distance of a disk from its share within one pool, in PG replicas.
    pub max_deviation_pgs: f64,
}

/// Evenness before and after.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Balance {
    /// Today's.
    pub before: Evenness,
    /// The target's.
    pub after: Evenness,
}

/// What the plan could not do.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Rejected {
    /// The item: a PG, a pool, a disk, a row of the input.
    pub what: String,
    /// Why not.
    pub reason: String,
}

/// Space that lacks for a pool's replicas in one place.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct MissingCapacity {
    /// The pool.
    pub pool: PoolId,
    /// Disks of this class would do; none: of any.
    pub class: Option<String>,
    /// The pool's failure domains.
    pub level: FailureDomain,
    /// A disk of the domain in which space would do. None: every domain has a replica already, only a further one would do.
    pub domain_of: Option<DiskId>,
    /// How much, below the backfill limit.
    pub bytes: u64,
}

/// A target and the way to it.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Plan {
    /// Every PG of every pool, by id; primaries first. A row is shorter than `replicas` where `rejected` says why.
    pub target: Vec<PgPlacement>,
    /// By urgency, then PG.
    pub moves: Vec<Move>,
    /// Copies beyond their pool's count, by PG.
    #[serde(default)]
    pub removals: Vec<Removal>,
    /// PGs whose primary changes, and the disk it goes to; no data moves for it.
    pub primary_changes: Vec<(PgId, DiskId)>,
    /// Sums.
    pub totals: Totals,
    /// Evenness.
    pub balance: Balance,
    /// Bytes that lack room: what the replicas that found no place would take.
    pub missing_capacity_bytes: u64,
    /// The same by pool and failure domain.
    pub missing_capacity: Vec<MissingCapacity>,
    /// What could not be done, and why.
    pub rejected: Vec<Rejected>,
}
