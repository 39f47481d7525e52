//! JSON bodies of `/v1/volumes`; see [`super::types`].

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::types::{Knob, PgCounts};
use crate::core::cluster::{SHARE, Stripe};
use crate::core::ids::{DiskId, VolumeId};
use crate::core::placement::Span;

/// Of a coordinator that knows of no shares.
fn usual_share() -> u32 {
    SHARE
}

/// `volume list|show`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct VolumeInfo {
    /// Id.
    pub id: VolumeId,
    /// Name.
    pub name: String,
    /// Pool's name.
    pub pool: String,
    /// Size.
    pub size_bytes: u64,
    /// The gateway that has it; `null`: none.
    pub attached_to: Option<String>,
    /// Attach incarnation.
    pub incarnation: u64,
    /// Priority.
    pub priority: i32,
    /// Operations per second that its guest may do; `null`: no limit.
    #[serde(default)]
    pub iops_limit: Option<u64>,
    /// Operations that its guest may save up and do at once; `null`: one second's worth.
    #[serde(default)]
    pub iops_burst: Option<u64>,
    /// Bytes per second that its guest may read or write; `null`: no limit.
    #[serde(default)]
    pub bandwidth_limit_bytes_per_sec: Option<u64>,
    /// Bytes that its guest may save up and move at once; `null`: one second's worth.
    #[serde(default)]
    pub bandwidth_burst_bytes: Option<u64>,
    /// Its weight against other volumes on a disk that several want at once; 100 is usual.
    #[serde(default = "usual_share")]
    pub share: u32,
    /// `ok`, `degraded`, `unavailable`, `deleting`.
    pub state: String,
    /// Layout.
    pub stripes: Vec<Stripe>,
    /// What its guest does; `null`: no gateway has it, or it hasn't said yet.
    #[serde(default)]
    pub guest: Option<GuestStatus>,
    /// Its PGs by state.
    pub pgs: PgCounts,
    /// Disks that hold its copies.
    pub disks: Vec<DiskId>,
    /// How safe its chunks are; of one volume alone, not in lists.
    #[serde(default)]
    pub redundancy: Option<VolumeRedundancy>,
}

/// What a guest does, as its gateway sees it: with all that it waits for, its limits and a failover too. Over the last second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GuestStatus {
    /// Reads per second.
    pub read_iops: u64,
    /// Writes, discards and zeroes per second.
    pub write_iops: u64,
    /// Bytes per second.
    pub read_bytes_per_sec: u64,
    /// Bytes per second; discards and zeroes write none.
    pub write_bytes_per_sec: u64,
    /// Median latency, microseconds; 0: nothing was done.
    pub p50_us: u64,
    /// Microseconds; 0: nothing was done.
    pub p99_us: u64,
}

/// How safe a volume's chunks are. A chunk stands as its PG does; what was never written counts too.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct VolumeRedundancy {
    /// All chunks.
    pub chunks: ChunkCounts,
    /// The same in bytes of the volume.
    pub bytes: ChunkCounts,
    /// Its PGs.
    pub pgs: Vec<VolumePg>,
    /// Until every chunk has all its copies where they belong; `null`: it is so, or nobody works at it.
    pub eta_seconds: Option<Span>,
    /// Why nobody does, in words; empty: all is well, or under way.
    pub waits_for: String,
}

/// clean + degraded + unavailable = total.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ChunkCounts {
    /// All.
    pub total: u64,
    /// With all their copies.
    pub clean: u64,
    /// Served, with fewer.
    pub degraded: u64,
    /// Not served now.
    pub unavailable: u64,
    /// Clean, but about to move.
    pub misplaced: u64,
}

impl ChunkCounts {
    /// Counts `n` more in a state, as [`PgInfo::state`](super::types::PgInfo) has it.
    pub fn add(&mut self, state: &str, misplaced: bool, n: u64) {
        self.total += n;
        match state {
            "clean" => self.clean += n,
            "degraded" => self.degraded += n,
            _ => self.unavailable += n,
        }
        self.misplaced += if misplaced { n } else { 0 };
    }
}

/// A PG of a volume.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct VolumePg {
    /// Id.
    pub pg: String,
    /// As in [`PgInfo`](super::types::PgInfo).
    pub state: String,
    /// Clean, but the plan wants it elsewhere.
    pub misplaced: bool,
    /// Chunks of this volume in it.
    pub chunks: u64,
    /// Bytes of this volume in it.
    pub bytes: u64,
    /// Disks with a copy that counts, the primary first.
    pub disks: Vec<DiskId>,
    /// Of them, those that don't answer.
    pub missing: Vec<DiskId>,
    /// Disks that copies are on their way to, and how much of each is there, from 0 to 1.
    pub copying: Vec<(DiskId, f64)>,
}

/// Creates a volume.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct VolumeCreate {
    /// Name: letters, digits, `-`, `_`, `.`; at most 128 bytes.
    pub name: String,
    /// A multiple of 512.
    pub size_bytes: u64,
    /// Default: the pool named `default`.
    pub pool: Option<String>,
    /// Resync priority; default 0.
    #[serde(default)]
    pub priority: Option<i32>,
    /// What its guest may do; default: no limits, the usual share.
    #[serde(flatten)]
    pub qos: VolumeQosSet,
}

/// Changes what a volume's guest may do, and its share; what is absent stays.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct VolumeQosSet {
    /// Operations per second that its guest may do; `none`: no limit, and no burst.
    #[serde(default)]
    pub iops_limit: Option<Knob>,
    /// Operations that it may save up below its limit and do at once; `none`: one second's worth.
    #[serde(default)]
    pub iops_burst: Option<Knob>,
    /// Bytes per second that its guest may read or write, as a number with a unit; `none`: no limit, and no burst.
    #[serde(default)]
    pub bandwidth_limit: Option<String>,
    /// Bytes that it may save up below its limit and move at once, as a number with a unit; `none`: one second's worth.
    #[serde(default)]
    pub bandwidth_burst: Option<String>,
    /// Its weight against other volumes on a disk that several want at once, 1 to 1000.
    #[serde(default)]
    pub share: Option<u32>,
}

/// Changes a volume; what is absent stays.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct VolumeSet {
    /// Grow or shrink. Shrinking needs `allow_shrink`.
    pub size_bytes: Option<u64>,
    /// The caller knows that shrinking drops data.
    #[serde(default)]
    pub allow_shrink: bool,
    /// Priority.
    pub priority: Option<i32>,
    /// What its guest may do.
    #[serde(flatten)]
    pub qos: VolumeQosSet,
    /// Only look whether it would be accepted: the answer is as before.
    #[serde(default)]
    pub dry_run: bool,
}
