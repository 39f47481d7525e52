//! What the console shows, as its daemons know it.

use std::collections::VecDeque;
use std::time::Duration;

use crate::api::types::{ChunkCounts, Event, GuestStatus, JobInfo, NodeInfo, ResyncInfo, Status};
use crate::core::ids::DiskId;

/// Between two points of the lines.
pub const HISTORY_INTERVAL: Duration = Duration::from_secs(2);
/// Points kept: five minutes.
const POINTS_MAX: usize = 150;

/// A point of the lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Guests' reads per second.
    pub read_iops: u64,
    /// Guests' writes per second.
    pub write_iops: u64,
    /// Guests' latency.
    pub p50_us: u64,
    /// Guests' latency.
    pub p99_us: u64,
    /// Verified bytes that resync writes per second.
    pub resync_bytes_per_sec: u64,
}

/// The last minutes, oldest first.
#[derive(Clone, Debug, Default)]
pub struct History {
    points: VecDeque<Sample>,
}

impl History {
    /// Adds a point; the oldest goes.
    pub fn add(&mut self, sample: Sample) {
        if self.points.len() == POINTS_MAX {
            self.points.pop_front();
        }
        self.points.push_back(sample);
    }

    /// Oldest first.
    pub fn points(&self) -> Vec<Sample> {
        self.points.iter().copied().collect()
    }

    /// As long as a full one.
    pub fn len_max() -> usize {
        POINTS_MAX
    }
}

/// What a coordinator knows.
#[derive(Clone, Debug, Default)]
pub struct ClusterFacts {
    /// When, Unix milliseconds.
    pub unix_ms: u64,
    /// Of the coordinator.
    pub release: String,
    /// As `evenkeel status` has it.
    pub status: Status,
    /// Settings of the throttle, and copies that run.
    pub resync: ResyncInfo,
    /// Newest first, the last few.
    pub jobs: Vec<JobInfo>,
    /// All nodes with their disks.
    pub nodes: Vec<NodeInfo>,
    /// Volumes.
    pub volumes: Volumes,
    /// Newest first, the last few.
    pub events: Vec<Event>,
    /// Oldest first.
    pub history: Vec<Sample>,
}

/// Volumes, of which some are shown.
#[derive(Clone, Debug, Default)]
pub struct Volumes {
    /// All.
    pub total: usize,
    /// Those that are not whole.
    pub unwell: usize,
    /// The worst first, then by name.
    pub shown: Vec<VolumeLine>,
}

/// A volume.
#[derive(Clone, Debug, Default)]
pub struct VolumeLine {
    /// Name.
    pub name: String,
    /// Pool's name.
    pub pool: String,
    /// Copies that the pool wants.
    pub replicas: u32,
    /// Size.
    pub size_bytes: u64,
    /// The gateway that has it; empty: none.
    pub attached_to: String,
    /// Resync priority.
    pub priority: i32,
    /// `ok`, `degraded`, `unavailable`, `deleting`.
    pub state: &'static str,
    /// Its chunks by redundancy.
    pub chunks: ChunkCounts,
    /// What its guest does, if a gateway has said it.
    pub guest: Option<GuestStatus>,
}

/// What a node knows by itself.
#[derive(Clone, Debug, Default)]
pub struct NodeFacts {
    /// When, Unix milliseconds.
    pub unix_ms: u64,
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: String,
    /// The cluster's id.
    pub cluster: String,
    /// Of this process.
    pub release: String,
    /// Failure domain.
    pub zone: String,
    /// Failure domain.
    pub rack: String,
    /// Where peers reach it.
    pub addr: String,
    /// When this process began.
    pub started_unix_ms: u64,
    /// The link to the coordinator is up.
    pub coordinator_connected: bool,
    /// When the coordinator was last heard; 0: not since the start.
    pub coordinator_heard_unix_ms: u64,
    /// Where its console may be; empty: not known.
    pub coordinator_url: String,
    /// Version of the map; 0: none yet.
    pub map_version: u64,
    /// Its epoch.
    pub map_epoch: u32,
    /// Disks.
    pub disks: Vec<NodeDisk>,
    /// Copies that run from here, or to here.
    pub copies: Vec<CopyFacts>,
    /// The other nodes, as the map has them.
    pub peers: Vec<NodeLink>,
    /// Blocks that didn't match their hash, since the start.
    pub hash_mismatches: u64,
    /// Oldest first.
    pub history: Vec<Sample>,
}

/// A disk of the node.
#[derive(Clone, Debug, Default)]
pub struct NodeDisk {
    /// Id.
    pub id: DiskId,
    /// Class.
    pub class: String,
    /// Directory or device.
    pub path: String,
    /// `up`, `failed`, `hung`, `full`.
    pub state: &'static str,
    /// Capacity.
    pub capacity_bytes: u64,
    /// Used.
    pub used_bytes: u64,
    /// PGs that it leads.
    pub primaries: u64,
    /// PGs that it follows.
    pub secondaries: u64,
    /// PGs that it learns.
    pub learners: u64,
    /// Old copies that wait to be given up.
    pub old_copies: u64,
    /// What resync may do; `None`: no limit.
    pub rate_bytes_per_sec: Option<u64>,
    /// Target of guests' p99, once known.
    pub target_us: Option<u64>,
    /// Quiet p99, once known.
    pub baseline_us: Option<u64>,
    /// Recent p99.
    pub p99_us: Option<u64>,
    /// What bounds resync.
    pub limited_by: &'static str,
}

/// A running copy.
#[derive(Clone, Debug, Default)]
pub struct CopyFacts {
    /// PG.
    pub pg: String,
    /// Source; `None`: another node's.
    pub from: Option<DiskId>,
    /// Target.
    pub to: DiskId,
    /// Why; empty: the source knows.
    pub class: &'static str,
    /// Bytes to look at; 0: the source knows.
    pub bytes_total: u64,
    /// Of them, done.
    pub bytes_done: u64,
    /// What bounds it; empty: the source knows.
    pub limited_by: String,
}

/// Another node.
#[derive(Clone, Debug, Default)]
pub struct NodeLink {
    /// Name.
    pub name: String,
    /// Its admin URL.
    pub url: String,
    /// Zone and rack.
    pub place: String,
    /// It can be reached from here; `None`: nothing is exchanged with it.
    pub reached: Option<bool>,
}
