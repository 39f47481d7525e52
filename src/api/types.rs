//! JSON bodies of `/v1`. Field names are stable: scripts and dashboards depend on them.
//!
//! Which path takes and answers which of them: [`super::operations`]. Doc comments of types and fields are the descriptions in
//! the OpenAPI document and in `evenkeel schema`: they say units and meanings.
//!
//! Errors are [`ApiError`] with a 4xx or 5xx status. Every other request carries `Authorization: Bearer TOKEN`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use super::copies::{JobChanged, JobInfo, SessionInfo, StallInfo};
use super::problems::Problem;
pub use super::resync::{ClassProgress, DeadlineInfo, Knob, NodeLimits, OwnTarget, ResyncInfo, ResyncSet, WindowInfo};
pub use super::volumes::{
    ChunkCounts, GuestStatus, VolumeCreate, VolumeInfo, VolumePg, VolumeQosSet, VolumeRedundancy, VolumeSet,
};
use crate::core::cluster::{FailureDomain, Replica};
use crate::core::ids::{DiskId, Generation, NodeId, PoolId};
pub use crate::core::placement::NamedMissing;
use crate::core::placement::Span;
pub use crate::core::placement::{Question as PlanRequest, WhatIf as PlanReply};

/// What `evenkeel status -o json` prints.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Status {
    /// The cluster's id.
    pub cluster: String,
    /// `ok`, `warn` or `error`.
    pub health: String,
    /// One sentence for each thing that isn't well, worst first.
    pub health_reasons: Vec<String>,
    /// The same with the kind of each, for advice.
    #[serde(default)]
    pub problems: Vec<Problem>,
    /// What every member can decode.
    pub feature_level: u32,
    /// Version of the map.
    pub map_version: u64,
    /// PG counts by state; `misplaced` is a subset of `clean`.
    pub pgs: PgCounts,
    /// Background copies.
    pub resync: ResyncStatus,
    /// Foreground, summed over primaries.
    pub foreground: ForegroundStatus,
    /// Nodes.
    pub nodes: Vec<NodeStatus>,
    /// Disks.
    pub disks: Vec<DiskStatus>,
    /// Bytes that volumes could grow to.
    pub provisioned_bytes: u64,
    /// Bytes in used slots, over all copies.
    pub used_bytes: u64,
    /// Bytes of all usable disks.
    pub capacity_bytes: u64,
    /// A plan waits for its debounce.
    pub plan_pending: bool,
    /// Bytes of copies for which there is no room.
    #[serde(default)]
    pub missing_capacity_bytes: u64,
    /// The same by pool and failure domain.
    #[serde(default)]
    pub missing_capacity: Vec<NamedMissing>,
}

/// PG states: clean + degraded + unavailable = total.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PgCounts {
    /// All.
    pub total: u64,
    /// All replicas there.
    pub clean: u64,
    /// Served, with fewer replicas than wanted.
    pub degraded: u64,
    /// Not served now.
    pub unavailable: u64,
    /// Clean, but not where the plan wants them.
    pub misplaced: u64,
}

/// Progress of all background copies.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct ResyncStatus {
    /// Sessions that copy now.
    pub active_moves: u64,
    /// Moves that the plan still wants, active ones included.
    pub pending_moves: u64,
    /// Bytes of the current job: done and to do. Zero when nothing runs.
    pub bytes_total: u64,
    /// Verified bytes written to targets over the cluster's life; never decreases.
    pub bytes_done: u64,
    /// Bytes that are left to look at or copy.
    pub bytes_left: u64,
    /// Over the last seconds.
    pub rate_bytes_per_sec: u64,
    /// Of the busiest disk, as it goes now; negative: diverging; `null` when nothing runs or the rate isn't known yet.
    pub eta_seconds: Option<f64>,
    /// The same as a range.
    #[serde(default)]
    pub eta_range_seconds: Option<Span>,
    /// What bounds it: see `SessionStats.limited_by`.
    pub limited_by: String,
    /// The effective cap.
    pub cap_bytes_per_sec: Option<u64>,
    /// Paused by the operator.
    pub paused: bool,
    /// The job that runs or is paused.
    #[serde(default)]
    pub job: Option<u64>,
    /// That one is paused.
    #[serde(default)]
    pub job_paused: bool,
}

/// Foreground load as primaries see it.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct ForegroundStatus {
    /// Per second, over the last second.
    pub read_iops: u64,
    /// Per second, over the last second.
    pub write_iops: u64,
    /// Worst over the nodes.
    pub p50_us: u64,
    /// Worst over the nodes.
    pub p99_us: u64,
}

/// A node in [`Status`].
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct NodeStatus {
    /// Id.
    pub id: NodeId,
    /// Name.
    pub name: String,
    /// `up`, `suspect`, `down`, `draining`, `maintenance`, `removed`.
    pub state: String,
}

/// A disk in [`Status`].
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct DiskStatus {
    /// Id.
    pub id: DiskId,
    /// The node's name.
    pub node: String,
    /// `up`, `down`, `draining`, `failed`, `full`, `hung`, `removed`.
    pub state: String,
    /// Bytes that slots can hold.
    pub capacity_bytes: u64,
    /// Bytes in used slots.
    pub used_bytes: u64,
    /// Members of configurations on it.
    pub pg_replicas: u64,
    /// Of which primaries.
    pub primaries: u64,
    /// Age of the oldest operation that waits for it, if that is more than half a second; 0: nothing waits.
    #[serde(default)]
    pub lagging_ms: u64,
}

/// `node list|show`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct NodeInfo {
    /// Id.
    pub id: NodeId,
    /// Name.
    pub name: String,
    /// As in [`NodeStatus`].
    pub state: String,
    /// QUIC address.
    pub addr: String,
    /// Admin URL.
    pub admin_url: String,
    /// Operating system process id as reported.
    pub pid: u32,
    /// Zone.
    pub zone: String,
    /// Rack.
    pub rack: String,
    /// Release.
    pub release: String,
    /// What it does for guests, as the primary of its placement groups.
    #[serde(default)]
    pub foreground: ForegroundStatus,
    /// Its disks.
    pub disks: Vec<DiskInfo>,
}

/// `disk list|show`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct DiskInfo {
    /// Id.
    pub id: DiskId,
    /// The node's name.
    pub node: String,
    /// As in [`DiskStatus`].
    pub state: String,
    /// Class.
    pub class: String,
    /// Where it is on its host.
    pub path: String,
    /// Capacity.
    pub capacity_bytes: u64,
    /// Used.
    pub used_bytes: u64,
    /// Members on it.
    pub pg_replicas: u64,
    /// Primaries on it.
    pub primaries: u64,
    /// Guests' recent p99 on it, microseconds, as the throttle sees it; `null`: no guest, or not known yet.
    #[serde(default)]
    pub foreground_p99_us: Option<u64>,
    /// What the throttle aims at, microseconds; `null`: not known yet.
    #[serde(default)]
    pub target_p99_us: Option<u64>,
    /// What the throttle lets copies take of it now, bytes per second; `null`: no limit.
    #[serde(default)]
    pub resync_limit_bytes_per_sec: Option<u64>,
}

/// `pool list|show`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct PoolInfo {
    /// Id.
    pub id: PoolId,
    /// Name.
    pub name: String,
    /// Copies.
    pub replicas: u32,
    /// Copies without which IO waits.
    pub min_replicas: u32,
    /// Where two copies may not meet.
    pub failure_domain: FailureDomain,
    /// Class; empty: any.
    pub class: String,
    /// PGs.
    pub pg_count: u32,
    /// `flush` or `write`.
    pub durability: String,
    /// Volumes in it.
    pub volumes: u64,
}

/// Creates a pool.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct PoolCreate {
    /// Name.
    pub name: String,
    /// Default 3.
    pub replicas: Option<u32>,
    /// Default: replicas − 1, at least 1.
    pub min_replicas: Option<u32>,
    /// Default node.
    pub failure_domain: Option<FailureDomain>,
    /// Default any.
    pub class: Option<String>,
    /// Default: 100 replicas a disk, next power of two.
    pub pg_count: Option<u32>,
    /// `flush` (default) or `write`.
    pub durability: Option<String>,
}

/// Changes a pool; what is absent stays.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct PoolSet {
    /// Copies.
    pub replicas: Option<u32>,
    /// Copies without which IO waits.
    pub min_replicas: Option<u32>,
    /// Where two copies may not meet.
    pub failure_domain: Option<FailureDomain>,
    /// Disks of this class only; `any`: of any.
    #[serde(default)]
    pub class: Option<String>,
    /// `flush` or `write`.
    pub durability: Option<String>,
    /// Only look whether it would be accepted: the answer is as before.
    #[serde(default)]
    pub dry_run: bool,
}

/// Sets what the operator wants of a node.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct NodeStateSet {
    /// `active`, `draining`, `maintenance`, `removed`.
    pub state: crate::core::cluster::NodeAdminState,
    /// Only look whether it would be accepted: the answer is as before.
    #[serde(default)]
    pub dry_run: bool,
}

/// `pg list|show`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct PgInfo {
    /// Id, as POOL.INDEX.
    pub id: String,
    /// Pool's name.
    pub pool: String,
    /// `clean`, `degraded`, `unavailable`.
    pub state: String,
    /// Clean, but the plan wants it elsewhere.
    pub misplaced: bool,
    /// Configuration.
    pub generation: Generation,
    /// Primary first.
    pub members: Vec<Replica>,
    /// Members that don't answer.
    pub missing: Vec<DiskId>,
    /// Learners.
    pub learners: Vec<DiskId>,
    /// Bytes that the primary holds.
    pub bytes: u64,
    /// For an unavailable PG: what would bring it back.
    pub reason: String,
}

/// The operator's last resort for an unavailable PG: one copy leads, below min_replicas.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ForcePromoteRequest {
    /// The disk whose copy leads; none: the best complete one.
    #[serde(default)]
    pub disk: Option<DiskId>,
    /// False: only say what would happen and what would be lost.
    #[serde(default)]
    pub accept_data_loss: bool,
}

/// What force-promote did, or would do.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct ForcePromoteReply {
    /// PG, as POOL.INDEX.
    pub pg: String,
    /// True: it was done. False: nothing has changed.
    pub done: bool,
    /// The disk whose copy leads.
    pub disk: DiskId,
    /// Its node's name.
    pub node: String,
    /// No acked write is missing on it.
    pub lossless: bool,
    /// What is or may be lost, in words.
    pub loss: String,
    /// Configuration before.
    pub generation_before: Generation,
    /// Configuration after; as before if nothing was done.
    pub generation: Generation,
    /// Disks that converge to it.
    pub learners: Vec<DiskId>,
    /// Members that leave, and what that means, one sentence each.
    pub warnings: Vec<String>,
    /// Every copy that answers, best first.
    pub candidates: Vec<ForceCandidate>,
}

/// A copy that could lead.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct ForceCandidate {
    /// Its disk.
    pub disk: DiskId,
    /// Its node's name.
    pub node: String,
    /// The highest generation that it has.
    pub generation: Generation,
    /// It has all of that.
    pub complete: bool,
    /// The PG's sequence that its last flush covered.
    pub flush_mark: u64,
    /// What would be lost with it.
    pub loss: String,
}

/// Something that happened.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Event {
    /// Counts up.
    pub id: u64,
    /// Unix time, milliseconds.
    pub unix_ms: u64,
    /// `node-joined`, `node-down`, `plan`, `resync-set`, …
    pub kind: String,
    /// Who or what asked for it: the operator's token or certificate and the address, `coordinator`, a node's or a gateway's
    /// name.
    pub actor: String,
    /// One sentence.
    pub text: String,
}

/// A daemon's admin address, as Prometheus' HTTP service discovery takes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ScrapeTarget {
    /// One `host:port`.
    pub targets: Vec<String>,
    /// `__scheme__`, `cluster`, `role`, and `node` or `gateway`.
    pub labels: std::collections::BTreeMap<String, String>,
}

/// Makes a join token.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct TokenCreate {
    /// `node`, `gateway`, `operator`, `viewer`.
    pub role: String,
    /// Seconds until it expires; default 3600.
    pub ttl_seconds: Option<u64>,
}

/// A join token; it is shown once.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct TokenCreated {
    /// Text form.
    pub token: String,
    /// Unix seconds.
    pub expires_unix_seconds: u64,
}

/// A process trades a join token for a certificate.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct JoinRequest {
    /// Text form.
    pub token: String,
    /// Node name wanted, or the gateway's name.
    pub name: String,
    /// Certificate signing request, PEM; the key never travels.
    pub csr_pem: String,
    /// Node: QUIC address.
    pub addr: Option<String>,
    /// Zone.
    #[serde(default)]
    pub zone: String,
    /// Rack.
    #[serde(default)]
    pub rack: String,
}

/// A gateway or CLI trades its bearer token for a short-lived certificate.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct CertificateRequest {
    /// `gateway`, `operator` or `viewer`.
    pub role: String,
    /// Name in the certificate.
    pub name: String,
    /// Certificate signing request, PEM.
    pub csr_pem: String,
}

/// What a joiner needs.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct JoinReply {
    /// Cluster id, hex.
    pub cluster: String,
    /// For a node: its id.
    pub node: Option<NodeId>,
    /// Certificate, PEM.
    pub certificate_pem: String,
    /// Cluster CA, PEM.
    pub ca_pem: String,
    /// The coordinator's QUIC address.
    pub coordinator_addr: String,
}

/// The map in short, for tools.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct MapSummary {
    /// Epoch.
    pub epoch: u32,
    /// Version.
    pub version: u64,
    /// Pools.
    pub pools: Vec<PoolInfo>,
    /// Nodes.
    pub nodes: Vec<NodeInfo>,
    /// Volumes.
    pub volumes: Vec<VolumeInfo>,
    /// PGs.
    pub pgs: Vec<PgInfo>,
}

/// Nodes that are to be stopped together.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct OkToStopRequest {
    /// By name.
    pub nodes: Vec<String>,
}

/// Whether nodes may be stopped together.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct OkToStop {
    /// Every PG serves on.
    pub ok: bool,
    /// PGs with a copy on these nodes.
    pub pgs_touched: u64,
    /// Of them, PGs that would have fewer live copies than their pool's minimum.
    pub pgs_blocked: u64,
    /// The first of those.
    pub blocked: Vec<StopBlocked>,
}

/// A PG that would stop serving.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct StopBlocked {
    /// Its id.
    pub pg: String,
    /// Copies that would be left.
    pub live_after: u64,
    /// Copies without which IO waits.
    pub min_replicas: u64,
}

/// Success without more to say than what changed.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Done {
    /// One sentence.
    pub message: String,
}

/// Failure.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ApiError {
    /// One sentence that names the thing and the way out.
    pub error: String,
}

/// `D/cluster.json`, written by `evenkeel dev` and read by every command.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ClusterFile {
    /// Admin API base URL.
    pub api: String,
    /// File that holds the bearer token.
    pub token_file: String,
    /// The coordinator.
    pub coordinator: ClusterFileDaemon,
    /// Nodes.
    pub nodes: Vec<ClusterFileNode>,
}

/// A daemon in [`ClusterFile`].
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ClusterFileDaemon {
    /// Process id.
    pub pid: u32,
    /// QUIC address.
    pub addr: String,
    /// Admin URL.
    pub admin_url: String,
}

/// A node in [`ClusterFile`].
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ClusterFileNode {
    /// Id.
    pub id: NodeId,
    /// Name.
    pub name: String,
    /// Process id.
    pub pid: u32,
    /// QUIC address.
    pub addr: String,
    /// Admin URL.
    pub admin_url: String,
    /// Its directory.
    pub dir: String,
    /// Its disks.
    pub disks: Vec<ClusterFileDisk>,
}

/// A disk in [`ClusterFileNode`].
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ClusterFileDisk {
    /// Id.
    pub id: DiskId,
    /// Directory or device.
    pub path: String,
}
