//! Operator settings of resync: what was said ([`ResyncConfig`]), and what is in effect ([`ResyncSettings`]).
//!
//! Nodes follow what is in effect and need no clock, no calendar and no knowledge of where a value came from. The
//! coordinator makes it from what was said, each second, and writes it to the map when it changes; while no coordinator
//! runs, the last one stays. Units: bytes per second and disk, reads and writes counted apart; microseconds; unix seconds.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ResyncClass;
use crate::core::ids::{NodeId, PoolId, VolumeId};

/// Minutes of a day, as windows count them.
pub const DAY_MINUTES: u16 = 1440;

/// What operators said: each value is absent until it is given.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ResyncConfig {
    /// Floor and target in one word; `None`: balanced.
    pub profile: Option<Profile>,
    /// Over all classes; they override the profile, a window's too.
    pub limits: Limits,
    /// Classes with something of their own.
    pub classes: BTreeMap<ResyncClass, ClassSettings>,
    /// Nodes with something of their own.
    pub nodes: BTreeMap<NodeId, NodeOverrides>,
    /// Pools with a latency target of their own.
    pub pools: BTreeMap<PoolId, Target>,
    /// Volumes with a latency target of their own.
    pub volumes: BTreeMap<VolumeId, Target>,
    /// No two overlap.
    pub windows: Vec<Window>,
    /// IANA name of the time zone that windows and clock times are in; empty: UTC.
    pub time_zone: String,
    /// All copies that are missing are to be there at this unix time.
    pub deadline_unix_seconds: Option<u64>,
    /// What yields if deadline and latency target can't both hold.
    pub deadline_wins: DeadlineWins,
    /// Everything waits.
    pub paused: bool,
    /// PGs of these pools wait.
    pub paused_pools: BTreeSet<PoolId>,
}

/// Single values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Limits {
    /// Never more than this.
    pub cap_bytes_per_sec: Option<u64>,
    /// However busy the foreground is.
    pub floor_bytes_per_sec: Option<u64>,
    /// Foreground latency to aim at.
    pub target: Target,
}

/// A foreground latency target. An explicit p99 goes before a multiple.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Target {
    /// As a multiple of the quiet p99.
    pub inflation: Option<f64>,
    /// p99 in microseconds.
    pub p99_us: Option<u64>,
}

impl Target {
    /// Nothing is said.
    pub fn is_empty(&self) -> bool {
        *self == Target::default()
    }
}

/// What one node has of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct NodeOverrides {
    /// Goes before all that holds for the cluster, a window's profile too.
    pub profile: Option<Profile>,
    /// For each of its disks.
    pub limits: Limits,
    /// Its disks neither give nor take copies.
    pub paused: bool,
}

/// A time of the week in which a profile holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Window {
    /// The days on which it begins: bit 0 is Monday, bit 6 Sunday.
    pub days: u8,
    /// Minute of the day, 0 to 1439.
    pub from_minute: u16,
    /// Minute of the day, 1 to 1440, that is no more in it; not after `from_minute`: of the next day.
    pub to_minute: u16,
    /// What holds.
    pub profile: Profile,
}

/// What goes first if deadline and latency target can't both hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DeadlineWins {
    /// The floor rises to what the deadline needs, whatever guests see of it; the cap still holds.
    #[default]
    Deadline,
    /// Nothing rises; it is told whether the deadline holds.
    Latency,
}

/// What is in effect.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ResyncSettings {
    /// Over all classes; `None`: no cap.
    pub cap_bytes_per_sec: Option<u64>,
    /// Over all classes: what resync gets however busy the foreground is.
    pub floor_bytes_per_sec: u64,
    /// Foreground p99 that the throttle aims at, as a multiple of the quiet baseline.
    pub target_inflation: f64,
    /// Explicit foreground p99 target; overrides the inflation.
    pub target_p99_us: Option<u64>,
    /// Everything waits but nothing is lost.
    pub paused: bool,
    /// The profile that holds now, a window's too.
    #[serde(default)]
    pub profile: Profile,
    /// What single classes have of their own; a class that isn't here has nothing.
    #[serde(default)]
    pub classes: BTreeMap<ResyncClass, ClassSettings>,
    /// Nodes for which other values hold.
    #[serde(default)]
    pub nodes: BTreeMap<NodeId, NodeSettings>,
    /// Disks with a PG of such a pool keep its target where it is stricter than theirs.
    #[serde(default)]
    pub pools: BTreeMap<PoolId, Target>,
    /// The same with a PG that such a volume lies on.
    #[serde(default)]
    pub volumes: BTreeMap<VolumeId, Target>,
    /// PGs of these pools wait.
    #[serde(default)]
    pub paused_pools: BTreeSet<PoolId>,
}

/// What holds for the disks of one node, instead of what holds for all.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NodeSettings {
    /// As in [`ResyncSettings`].
    pub cap_bytes_per_sec: Option<u64>,
    /// As in [`ResyncSettings`].
    pub floor_bytes_per_sec: u64,
    /// As in [`ResyncSettings`].
    pub target_inflation: f64,
    /// As in [`ResyncSettings`].
    pub target_p99_us: Option<u64>,
    /// Its disks neither give nor take copies.
    pub paused: bool,
}

/// A class's own limits, within those over all classes. Bytes per second, per disk, reads and writes counted apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ClassSettings {
    /// Never more than this.
    pub cap_bytes_per_sec: Option<u64>,
    /// What it gets before any other class gets more than its own floor.
    pub floor_bytes_per_sec: Option<u64>,
    /// Its part of what is left above the floors, against other classes' weights; 1 to 1000.
    pub weight: Option<u32>,
    /// None of it runs.
    #[serde(default)]
    pub paused: bool,
}

/// Floor and target in one word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Profile {
    /// Guests first: p99 of 1.5 × the quiet one, below which a baseline's own noise would be taken for resync's effect;
    /// resync keeps a floor that moves 7 GB an hour and disk.
    Foreground,
    /// Twice the quiet p99, and a floor of 30 GB an hour and disk.
    #[default]
    Balanced,
    /// Redundancy first: five times the quiet p99, and a floor of 240 GB an hour and disk, which an SSD has to spare.
    Recovery,
}

impl Profile {
    /// All, the gentlest first.
    pub const ALL: [Profile; 3] = [Profile::Foreground, Profile::Balanced, Profile::Recovery];

    /// As operators write it.
    pub fn name(self) -> &'static str {
        match self {
            Profile::Foreground => "foreground",
            Profile::Balanced => "balanced",
            Profile::Recovery => "recovery",
        }
    }

    /// The target as a multiple of the quiet p99.
    pub fn target_inflation(self) -> f64 {
        match self {
            Profile::Foreground => 1.5,
            Profile::Balanced => 2.0,
            Profile::Recovery => 5.0,
        }
    }

    /// The floor over all classes, in bytes per second.
    pub fn floor_bytes_per_sec(self) -> u64 {
        match self {
            Profile::Foreground => 2 << 20,
            Profile::Balanced => 8 << 20,
            Profile::Recovery => 64 << 20,
        }
    }
}

impl ResyncSettings {
    /// Nothing of this class may run now.
    pub fn is_paused(&self, class: ResyncClass) -> bool {
        self.paused || self.classes.get(&class).is_some_and(|c| c.paused)
    }

    /// No disk of this node may give or take a copy now.
    pub fn is_node_paused(&self, node: NodeId) -> bool {
        self.paused || self.nodes.get(&node).is_some_and(|n| n.paused)
    }

    /// A copy of a class, in a pool, from one node to another, may not run now.
    pub fn holds_back(&self, class: ResyncClass, pool: PoolId, nodes: [NodeId; 2]) -> bool {
        self.is_paused(class)
            || self.paused_pools.contains(&pool)
            || nodes.into_iter().any(|node| self.is_node_paused(node))
    }
}

impl Default for ResyncSettings {
    fn default() -> Self {
        let profile = Profile::default();
        ResyncSettings {
            cap_bytes_per_sec: None,
            floor_bytes_per_sec: profile.floor_bytes_per_sec(),
            target_inflation: profile.target_inflation(),
            target_p99_us: None,
            paused: false,
            profile,
            classes: BTreeMap::new(),
            nodes: BTreeMap::new(),
            pools: BTreeMap::new(),
            volumes: BTreeMap::new(),
            paused_pools: BTreeSet::new(),
        }
    }
}

impl From<&ResyncSettings> for ResyncConfig {
    /// What a release that knew only what is in effect was told: whatever its profile doesn't say is an override.
    fn from(r: &ResyncSettings) -> Self {
        let floor = r.profile.floor_bytes_per_sec().min(r.cap_bytes_per_sec.unwrap_or(u64::MAX));
        let inflation = r.profile.target_inflation();
        ResyncConfig {
            profile: (r.profile != Profile::default()).then_some(r.profile),
            limits: Limits {
                cap_bytes_per_sec: r.cap_bytes_per_sec,
                floor_bytes_per_sec: (r.floor_bytes_per_sec != floor).then_some(r.floor_bytes_per_sec),
                target: Target {
                    inflation: (r.target_inflation != inflation).then_some(r.target_inflation),
                    p99_us: r.target_p99_us,
                },
            },
            classes: r.classes.clone(),
            paused: r.paused,
            ..ResyncConfig::default()
        }
    }
}
