//! What goes into a disk's controller and what comes out of it.

use std::time::Duration;

use super::class::{CLASSES, ClassPolicy, DEFAULT_CLASSES};
use super::latencies::Latencies;
use crate::core::cluster::{ResyncClass, ResyncSettings};

/// What an operator may set, for one disk.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Policy {
    /// Over all classes; `None`: no cap.
    pub cap_bytes_per_sec: Option<u64>,
    /// Over all classes.
    pub floor_bytes_per_sec: u64,
    /// Target as a multiple of the quiet baseline.
    pub target_inflation: f64,
    /// Explicit target, which overrides the multiple.
    pub target_p99_us: Option<u64>,
    /// No resync at all.
    pub paused: bool,
    /// Per class, in the order of `ResyncClass::ALL`.
    pub classes: [ClassPolicy; CLASSES],
}

impl From<&ResyncSettings> for Policy {
    fn from(settings: &ResyncSettings) -> Self {
        Policy {
            cap_bytes_per_sec: settings.cap_bytes_per_sec,
            floor_bytes_per_sec: settings.floor_bytes_per_sec,
            target_inflation: settings.target_inflation,
            target_p99_us: settings.target_p99_us,
            paused: settings.paused,
            classes: std::array::from_fn(|i| DEFAULT_CLASSES[i].with(settings.classes.get(&ResyncClass::ALL[i]))),
        }
    }
}

impl Default for Policy {
    fn default() -> Self {
        Policy::from(&ResyncSettings::default())
    }
}

/// What happened on a disk since the last sample.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// Time since the last sample.
    pub elapsed: Duration,
    /// Latencies of the foreground operations that completed.
    pub latencies: Latencies,
    /// Foreground operations under way now; 0 if the driver doesn't know.
    pub queue_depth: u32,
    /// Bytes that resync moved: the larger of its reads and its writes.
    pub resync_bytes: u64,
    /// Resync wanted more than it was allowed.
    pub resync_held_back: bool,
    /// Work that wants this class now.
    pub wanted: [bool; CLASSES],
    /// What is left to copy; 0 if the driver doesn't know.
    pub backlog_bytes: u64,
    /// Bytes that guests wrote.
    pub foreground_write_bytes: u64,
    /// Time since the last moment at which all disks pause their copies ([`moment::since`](super::moment::since)), at the
    /// sample's end; `None`: the driver has no time, and this disk pauses when it likes.
    pub since_moment: Option<Duration>,
    /// Copies run somewhere in the cluster, beside disks that its guests may share with them.
    pub copies_run: bool,
}

/// What bounds resync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitedBy {
    /// It may go as fast as it can, or uses less than it may.
    Nothing,
    /// The guests' latency target, or the part of their throughput that they keep.
    ForegroundLatency,
    /// The operator's cap.
    Cap,
    /// The guests' target is missed; resync gets its floor nevertheless.
    Floor,
    /// The operator's pause.
    Paused,
}

impl LimitedBy {
    /// All.
    pub const ALL: [LimitedBy; 5] =
        [LimitedBy::Nothing, LimitedBy::ForegroundLatency, LimitedBy::Cap, LimitedBy::Floor, LimitedBy::Paused];

    /// As shown to operators.
    pub fn name(self) -> &'static str {
        match self {
            LimitedBy::Nothing => "nothing",
            LimitedBy::ForegroundLatency => "foreground latency",
            LimitedBy::Cap => "cap",
            LimitedBy::Floor => "floor-bound",
            LimitedBy::Paused => "paused",
        }
    }
}

/// What holds until the next sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Decision {
    /// Bytes per second over all classes, for reads and for writes each; `None`: unlimited.
    pub rate_bytes_per_sec: Option<u64>,
    /// Why.
    pub limited_by: LimitedBy,
    /// The target in force, once it is known: of the kind of operation that is furthest from meeting its own.
    pub target_p99_us: Option<u64>,
    /// The quiet baseline in force of that kind, once it is known: what was learnt on this disk, raised towards its class's.
    pub baseline_p99_us: Option<u64>,
    /// Recent p99 of that kind.
    pub p99_us: Option<u64>,
    /// Guests write faster than resync copies.
    pub losing_ground: bool,
    /// Resync made less than its floor in the last second although nothing here held it back: it may lack a processor.
    pub below_floor: bool,
    /// The baseline is being learnt: a short dip of the rate.
    pub probing: bool,
}

/// What the controller's next step rests on: for logs.
#[derive(Clone, Copy, Debug)]
pub struct Footing {
    /// The rate at the last overload, if that limit still holds.
    pub knee_bytes_per_sec: Option<u64>,
    /// No limit was met yet in this busy period.
    pub searching: bool,
    /// Ticks on end with many operations over the target.
    pub bad_ticks: u32,
    /// The part that is left of what guests were allowed over their target in the last ten seconds.
    pub allowance_left: f64,
    /// How far guests' throughput is above what they must keep, as a part of what they have alone.
    pub spare_throughput: f64,
}
