//! What daemons measure and tell the coordinator each second, and what it answers: the messages of the kinds `STATS` and
//! `CLASS_BASELINES` in [`control`](super::control), with its conventions.

use prost::Message;

use super::control::PgReport;

/// What a daemon measured; counters are since its process start and never decrease.
#[derive(Clone, PartialEq, Message)]
pub struct Stats {
    /// Per disk.
    #[prost(message, repeated, tag = "1")]
    pub disks: Vec<DiskStats>,
    /// Resync sessions that this node drives as primary.
    #[prost(message, repeated, tag = "2")]
    pub sessions: Vec<SessionStats>,
    /// Verified bytes that this node has written as a resync target, by class (order of `ResyncClass::ALL`).
    #[prost(uint64, repeated, tag = "3")]
    pub resync_written_bytes: Vec<u64>,
    /// Blocks that didn't match their leaf.
    #[prost(uint64, tag = "4")]
    pub hash_mismatches: u64,
    /// Foreground operations done (as primary, or as gateway).
    #[prost(uint64, tag = "5")]
    pub foreground_reads: u64,
    /// See `foreground_reads`.
    #[prost(uint64, tag = "6")]
    pub foreground_writes: u64,
    /// Foreground bytes.
    #[prost(uint64, tag = "7")]
    pub foreground_read_bytes: u64,
    /// Foreground bytes.
    #[prost(uint64, tag = "8")]
    pub foreground_write_bytes: u64,
    /// Foreground latency over the last second.
    #[prost(uint64, tag = "9")]
    pub foreground_p50_us: u64,
    /// Foreground latency over the last second.
    #[prost(uint64, tag = "10")]
    pub foreground_p99_us: u64,
    /// PGs for which this node is the serving primary.
    #[prost(uint64, repeated, tag = "11")]
    pub serving_pgs: Vec<u64>,
    /// PGs where IO waits for space, with the disk (pairs in order).
    #[prost(uint64, repeated, tag = "12")]
    pub full_pgs: Vec<u64>,
    /// Disks (DiskId) that `full_pgs` wait for.
    #[prost(uint32, repeated, tag = "13")]
    pub full_disks: Vec<u32>,
    /// Used bytes per PG on this node's disks as primary: (PgId, bytes) pairs in order.
    #[prost(message, repeated, tag = "14")]
    pub pg_bytes: Vec<PgBytes>,
    /// The process that counts (see `Register.process`).
    #[prost(uint64, tag = "15")]
    pub process: u64,
    /// Copies on this node's disks that are no members (learners, and old ones), and members that have just accepted a
    /// configuration. What each disk knows of its PG.
    #[prost(message, repeated, tag = "16")]
    pub copies: Vec<CopyStats>,
    /// Members for which this node's primaries have waited too long.
    #[prost(message, repeated, tag = "17")]
    pub lagging: Vec<LaggingStats>,
}

/// A member whose oldest unacked operation is old.
#[derive(Clone, PartialEq, Message)]
pub struct LaggingStats {
    /// DiskId.
    #[prost(uint32, tag = "1")]
    pub disk: u32,
    /// PGs that wait.
    #[prost(uint32, tag = "2")]
    pub pgs: u32,
    /// Age of the oldest wait.
    #[prost(uint64, tag = "3")]
    pub oldest_ms: u64,
}

/// A copy that is no member.
#[derive(Clone, PartialEq, Message)]
pub struct CopyStats {
    /// DiskId.
    #[prost(uint32, tag = "1")]
    pub disk: u32,
    /// What it knows.
    #[prost(message, optional, tag = "2")]
    pub report: Option<PgReport>,
}

/// Bytes that a PG's primary holds.
#[derive(Clone, PartialEq, Message)]
pub struct PgBytes {
    /// PgId.
    #[prost(uint64, tag = "1")]
    pub pg: u64,
    /// Bytes in used slots.
    #[prost(uint64, tag = "2")]
    pub bytes: u64,
}

/// A disk's figures.
#[derive(Clone, PartialEq, Message)]
pub struct DiskStats {
    /// DiskId.
    #[prost(uint32, tag = "1")]
    pub disk: u32,
    /// Bytes in used slots.
    #[prost(uint64, tag = "2")]
    pub used_bytes: u64,
    /// Capacity.
    #[prost(uint64, tag = "3")]
    pub capacity_bytes: u64,
    /// It failed since the registration.
    #[prost(bool, tag = "4")]
    pub failed: bool,
    /// Rate that the throttle allows resync now, bytes per second; 0: unlimited.
    #[prost(uint64, tag = "5")]
    pub resync_rate_bytes_per_sec: u64,
    /// For how long it has not answered an operation; 0: it works (R7).
    #[prost(uint64, tag = "6")]
    pub hung_ms: u64,
    /// Guests' recent p99 as the throttle sees it; 0: no guest, or not known yet.
    #[prost(uint64, tag = "7")]
    pub foreground_p99_us: u64,
    /// What the throttle aims at; 0: not known yet.
    #[prost(uint64, tag = "8")]
    pub target_p99_us: u64,
    /// What holds back writes for copies to it; empty: nothing.
    #[prost(string, tag = "9")]
    pub target_limited_by: String,
    /// Guests' p99 without resync as learnt on this disk, in the order of `throttle::Kind::ALL`; 0: not known.
    #[prost(uint64, repeated, tag = "10")]
    pub quiet_p99_us: Vec<u64>,
    /// What copies may do beside guests, as found on this disk; 0: not found yet.
    #[prost(uint64, tag = "11")]
    pub found_rate_bytes_per_sec: u64,
}

/// What is usual on disks of a class, for the receiver's disks.
#[derive(Clone, PartialEq, Message)]
pub struct ClassBaselines {
    /// Its disks, of classes that have a median.
    #[prost(message, repeated, tag = "1")]
    pub disks: Vec<ClassBaseline>,
    /// Copies run somewhere in the cluster: what guests have meanwhile isn't what they have alone.
    #[prost(bool, tag = "2")]
    pub copies_run: bool,
}

/// One disk of [`ClassBaselines`].
#[derive(Clone, PartialEq, Message)]
pub struct ClassBaseline {
    /// DiskId.
    #[prost(uint32, tag = "1")]
    pub disk: u32,
    /// The median of its class; as in [`DiskStats::quiet_p99_us`].
    #[prost(uint64, repeated, tag = "2")]
    pub quiet_p99_us: Vec<u64>,
    /// The usual rate of its class, of what its disks have found; 0: not known.
    #[prost(uint64, tag = "3")]
    pub usual_rate_bytes_per_sec: u64,
}

/// A resync session's progress, as its primary sees it.
#[derive(Clone, PartialEq, Message)]
pub struct SessionStats {
    /// PgId.
    #[prost(uint64, tag = "1")]
    pub pg: u64,
    /// The learner's DiskId.
    #[prost(uint32, tag = "2")]
    pub learner: u32,
    /// Class: index into `ResyncClass::ALL`.
    #[prost(uint32, tag = "3")]
    pub class: u32,
    /// Chunks to compare or copy.
    #[prost(uint64, tag = "4")]
    pub chunks_total: u64,
    /// Chunks done.
    #[prost(uint64, tag = "5")]
    pub chunks_done: u64,
    /// Bytes that had to be looked at (chunks × 4 MiB).
    #[prost(uint64, tag = "6")]
    pub bytes_total: u64,
    /// Of `bytes_total`, compared equal or copied.
    #[prost(uint64, tag = "7")]
    pub bytes_done: u64,
    /// Bytes that travelled.
    #[prost(uint64, tag = "8")]
    pub bytes_sent: u64,
    /// What bounds it now: `nothing`, `cap`, `foreground latency`, `paused`, `network`, `slots`, …
    #[prost(string, tag = "9")]
    pub limited_by: String,
    /// For how long it has made no progress; 0: it gets on.
    #[prost(uint64, tag = "10")]
    pub stalled_ms: u64,
    /// Why: [`StallReason::code`](crate::core::replica::StallReason::code).
    #[prost(uint32, tag = "11")]
    pub stall_reason: u32,
    /// Where it is stuck: VolumeId; 0: at no chunk in particular.
    #[prost(uint64, tag = "12")]
    pub stalled_volume: u64,
    /// See `stalled_volume`: index of the chunk.
    #[prost(uint32, tag = "13")]
    pub stalled_chunk: u32,
}
