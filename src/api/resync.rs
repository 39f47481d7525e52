//! JSON bodies of `/v1/resync`; see [`super::types`].

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::types::{ResyncStatus, SessionInfo};
use crate::core::cluster::{ClassSettings, DeadlineWins, Profile, ResyncClass};

/// A number, or a word that stands for one: `default` and `none` take it away.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Knob {
    /// The value.
    Number(f64),
    /// The value as text, or a word.
    Text(String),
}

/// Changes the throttle; what is absent stays. All of it holds, or nothing does. Everywhere `default` and `none` take away
/// what was set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ResyncSet {
    /// Bytes per second and disk, as a number with a unit.
    pub cap: Option<String>,
    /// Bytes per second and disk.
    pub floor: Option<String>,
    /// Multiple of the quiet baseline, at least 1.
    pub target_inflation: Option<Knob>,
    /// Microseconds; 0 removes the explicit target.
    pub target_p99_us: Option<u64>,
    /// Pause or resume.
    pub paused: Option<bool>,
    /// `foreground`, `balanced` or `recovery`: sets floor and target, before what else is given.
    pub profile: Option<String>,
    /// Cap, floor, weight and pause are this class's own.
    pub class: Option<String>,
    /// The class's weight, 1 to 1000.
    pub weight: Option<Knob>,
    /// Profile, cap, floor, target and pause are this node's own.
    pub node: Option<String>,
    /// Target and pause are this pool's own.
    pub pool: Option<String>,
    /// The target is this volume's own.
    pub volume: Option<String>,
    /// All windows there are to be, as `Mon-Fri 02:00-06:00 recovery`; none, or the word `none`: no window.
    pub windows: Option<Vec<String>>,
    /// IANA name of the zone of windows and of the deadline's clock time.
    pub time_zone: Option<String>,
    /// `18:00`, `2027-01-31 18:00` or `20h`.
    pub deadline: Option<String>,
    /// `deadline` or `latency`.
    pub deadline_wins: Option<String>,
    /// Change nothing: the answer is what would be in effect.
    pub dry_run: bool,
}

/// The throttle as it is in effect, where each value comes from, and the copies that run.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct ResyncInfo {
    /// As in [`Status`](super::types::Status).
    pub status: ResyncStatus,
    /// Effective; `null`: none.
    pub cap_bytes_per_sec: Option<u64>,
    /// Effective.
    pub floor_bytes_per_sec: u64,
    /// Effective.
    pub target_inflation: f64,
    /// Effective.
    pub target_p99_us: Option<u64>,
    /// Effective.
    pub paused: bool,
    /// The profile that holds now.
    #[serde(default)]
    pub profile: Profile,
    /// Where `profile`, `cap`, `floor` and `target` come from: `default`, `profile`, `window`, `deadline`, `override`.
    #[serde(default)]
    pub origins: BTreeMap<String, String>,
    /// Classes with something of their own; each value that isn't `null` is an override.
    #[serde(default)]
    pub classes: BTreeMap<ResyncClass, ClassSettings>,
    /// Nodes with something of their own, by name.
    #[serde(default)]
    pub nodes: BTreeMap<String, NodeLimits>,
    /// Pools with a target of their own, by name.
    #[serde(default)]
    pub pools: BTreeMap<String, OwnTarget>,
    /// Volumes with a target of their own, by name.
    #[serde(default)]
    pub volumes: BTreeMap<String, OwnTarget>,
    /// Pools that wait, by name.
    #[serde(default)]
    pub paused_pools: Vec<String>,
    /// Times of the week with a profile of their own.
    #[serde(default)]
    pub windows: Vec<WindowInfo>,
    /// Their zone.
    #[serde(default)]
    pub time_zone: String,
    /// If one is set.
    #[serde(default)]
    pub deadline: Option<DeadlineInfo>,
    /// Guests' p99, microseconds, on the disk that is furthest from its target; `null`: no guest, or not known yet.
    #[serde(default)]
    pub foreground_p99_us: Option<u64>,
    /// That disk's target, microseconds.
    #[serde(default)]
    pub foreground_target_us: Option<u64>,
    /// What each class that has work does.
    #[serde(default)]
    pub progress: Vec<ClassProgress>,
    /// Verified bytes written, by class.
    pub bytes_by_class: BTreeMap<String, u64>,
    /// Copies that run.
    pub sessions: Vec<SessionInfo>,
    /// Nodes that haven't taken the settings yet (they don't answer).
    pub pending_nodes: Vec<String>,
}

/// What holds on a node that has something of its own.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct NodeLimits {
    /// Effective; `null`: none.
    pub cap_bytes_per_sec: Option<u64>,
    /// Effective.
    pub floor_bytes_per_sec: u64,
    /// Effective.
    pub target_inflation: f64,
    /// Effective.
    pub target_p99_us: Option<u64>,
    /// Its disks neither give nor take copies.
    pub paused: bool,
    /// As in [`ResyncInfo`].
    pub origins: BTreeMap<String, String>,
}

/// A latency target of a pool or a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct OwnTarget {
    /// As a multiple of the quiet p99.
    pub target_inflation: Option<f64>,
    /// p99 in microseconds.
    pub target_p99_us: Option<u64>,
}

/// A window.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WindowInfo {
    /// As operators write it.
    pub window: String,
    /// Now.
    pub holds: bool,
}

/// A deadline and how it stands.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct DeadlineInfo {
    /// Unix time.
    pub unix_seconds: u64,
    /// The same for people, in its zone.
    pub at: String,
    /// What yields if latency target and deadline can't both hold: the other.
    pub wins: DeadlineWins,
    /// What each disk needs; `null`: nothing is to be copied.
    pub needed_bytes_per_sec: Option<u64>,
    /// False: it can't hold, or was missed.
    pub holds: bool,
    /// In words.
    pub verdict: String,
}

/// What a class does.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ClassProgress {
    /// Class.
    pub class: ResyncClass,
    /// Copies that run.
    pub moves_active: u64,
    /// Copies that wait for their turn.
    pub moves_waiting: u64,
    /// Bytes that both have left.
    pub bytes_left: u64,
    /// Verified bytes written, over the last seconds.
    pub rate_bytes_per_sec: u64,
    /// At that rate; `null`: nothing moves.
    pub eta_seconds: Option<f64>,
    /// What bounds most of its copies.
    pub limited_by: String,
}
