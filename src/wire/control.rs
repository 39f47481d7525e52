//! Coordinator ↔ node and coordinator ↔ gateway, over the Control link's one channel.
//!
//! Integers that are ids use the plain number; `pg` is [`PgId::to_u64`](crate::core::ids::PgId::to_u64).
//! Ids of zero mean "missing".

use prost::Message;

/// Frame kinds of this module: 0x01xx.
pub mod kind {
    /// Node → coordinator, first message.
    pub const REGISTER: u16 = 0x0101;
    /// Coordinator → node: [`super::Registered`].
    pub const REGISTERED: u16 = 0x0102;
    /// Node → coordinator: [`super::AllocDisk`].
    pub const ALLOC_DISK: u16 = 0x0103;
    /// Coordinator → node: [`super::DiskAllocated`].
    pub const DISK_ALLOCATED: u16 = 0x0104;
    /// Either way, every 150 ms from nodes and gateways: [`super::Heartbeat`].
    pub const HEARTBEAT: u16 = 0x0105;
    /// Coordinator's answer: [`super::HeartbeatAck`].
    pub const HEARTBEAT_ACK: u16 = 0x0106;
    /// Coordinator → all: [`crate::wire::control::MapDelta`].
    pub const MAP_DELTA: u16 = 0x0107;
    /// Primary → coordinator: [`super::Propose`].
    pub const PROPOSE: u16 = 0x0108;
    /// Coordinator → primary: [`super::ProposeReply`].
    pub const PROPOSE_REPLY: u16 = 0x0109;
    /// Coordinator → node: [`super::Purge`].
    pub const PURGE: u16 = 0x010a;
    /// Node → coordinator: [`super::Purge`], echoed when it is done and stable.
    pub const PURGED: u16 = 0x010b;
    /// Gateway → coordinator, first message: [`super::GatewayHello`].
    pub const GATEWAY_HELLO: u16 = 0x0110;
    /// Gateway → coordinator: [`super::Attach`].
    pub const ATTACH: u16 = 0x0111;
    /// Coordinator → gateway: [`super::AttachReply`].
    pub const ATTACH_REPLY: u16 = 0x0112;
    /// Gateway → coordinator: [`super::Release`].
    pub const RELEASE: u16 = 0x0113;
    /// Coordinator → gateway: [`super::Release`]: it lost the volume.
    pub const FENCED: u16 = 0x0114;
    /// Node → coordinator: [`super::VolumeDropped`].
    pub const VOLUME_DROPPED: u16 = 0x0115;
    /// Coordinator → peer: [`super::Refused`]; the channel then closes.
    pub const REFUSED: u16 = 0x0116;
    /// Node or gateway → coordinator, every second: [`crate::wire::stats::Stats`].
    pub const STATS: u16 = 0x0117;
    /// A follower of the map that attaches nothing (the CLI): first message, empty.
    pub const OBSERVE: u16 = 0x0118;
    /// Gateway → coordinator: [`super::Settled`].
    pub const SETTLED: u16 = 0x0119;
    /// Coordinator → node, after [`STATS`] with baselines: [`crate::wire::stats::ClassBaselines`].
    pub const CLASS_BASELINES: u16 = 0x011a;
}

/// A node presents itself with all that its disks know.
#[derive(Clone, PartialEq, Message)]
pub struct Register {
    /// NodeId.
    #[prost(uint32, tag = "1")]
    pub node: u32,
    /// Release string of the binary.
    #[prost(string, tag = "2")]
    pub release: String,
    /// Feature levels that the binary can run.
    #[prost(uint32, tag = "3")]
    pub feature_min: u32,
    /// See `feature_min`.
    #[prost(uint32, tag = "4")]
    pub feature_max: u32,
    /// QUIC address, as text.
    #[prost(string, tag = "5")]
    pub addr: String,
    /// Admin HTTP base URL.
    #[prost(string, tag = "6")]
    pub admin_url: String,
    /// Highest map (epoch, version) that it has seen (R4).
    #[prost(uint32, tag = "7")]
    pub map_epoch: u32,
    /// See `map_epoch`.
    #[prost(uint64, tag = "8")]
    pub map_version: u64,
    /// Its disks.
    #[prost(message, repeated, tag = "9")]
    pub disks: Vec<DiskReport>,
    /// Operating system process id, for `dev`.
    #[prost(uint32, tag = "10")]
    pub pid: u32,
    /// A random number for each start of the process.
    #[prost(uint64, tag = "11")]
    pub process: u64,
}

/// A disk in [`Register`].
#[derive(Clone, PartialEq, Message)]
pub struct DiskReport {
    /// DiskId.
    #[prost(uint32, tag = "1")]
    pub disk: u32,
    /// BootId: new after each unclean stop (R1).
    #[prost(fixed64, tag = "2")]
    pub boot: u64,
    /// Bytes that slots can hold.
    #[prost(uint64, tag = "3")]
    pub capacity_bytes: u64,
    /// Bytes in slots that are used.
    #[prost(uint64, tag = "4")]
    pub used_bytes: u64,
    /// Class.
    #[prost(string, tag = "5")]
    pub class: String,
    /// Recorded as failed (R15).
    #[prost(bool, tag = "6")]
    pub failed: bool,
    /// The PGs that it holds anything of.
    #[prost(message, repeated, tag = "7")]
    pub pgs: Vec<PgReport>,
    /// Where it is, for people.
    #[prost(string, tag = "8")]
    pub path: String,
}

/// What a disk knows of a PG (R2, R4).
#[derive(Clone, PartialEq, Message)]
pub struct PgReport {
    /// PgId.
    #[prost(uint64, tag = "1")]
    pub pg: u64,
    /// Highest generation accepted: epoch.
    #[prost(uint32, tag = "2")]
    pub generation_epoch: u32,
    /// Highest generation accepted: count.
    #[prost(uint64, tag = "3")]
    pub generation_n: u64,
    /// False: never a source, never counted.
    #[prost(bool, tag = "4")]
    pub complete: bool,
    /// Highest stable flush mark: the PG's sequence that a FLUSH covered.
    #[prost(uint64, tag = "5")]
    pub flush_mark: u64,
    /// Durability epoch of the configuration that it last accepted.
    #[prost(uint64, tag = "6")]
    pub durability_epoch: u64,
}

/// The coordinator took the registration.
#[derive(Clone, PartialEq, Message)]
pub struct Registered {
    /// The cluster's feature level.
    #[prost(uint32, tag = "1")]
    pub feature_level: u32,
}

/// The coordinator or peer doesn't take the message, for good.
#[derive(Clone, PartialEq, Message)]
pub struct Refused {
    /// One sentence with the way out.
    #[prost(string, tag = "1")]
    pub reason: String,
    /// The node was removed from the cluster: nothing that it has is wanted, and it may end.
    #[prost(bool, tag = "2")]
    pub removed: bool,
}

/// A node asks for an id for a disk that it is about to format.
#[derive(Clone, PartialEq, Message)]
pub struct AllocDisk {
    /// Class.
    #[prost(string, tag = "1")]
    pub class: String,
    /// Capacity.
    #[prost(uint64, tag = "2")]
    pub capacity_bytes: u64,
    /// Which node asks.
    #[prost(uint32, tag = "3")]
    pub node: u32,
}

/// Answer to [`AllocDisk`].
#[derive(Clone, PartialEq, Message)]
pub struct DiskAllocated {
    /// DiskId.
    #[prost(uint32, tag = "1")]
    pub disk: u32,
}

/// A sign of life and a list of those who give none.
#[derive(Clone, PartialEq, Message)]
pub struct Heartbeat {
    /// Counts up.
    #[prost(uint64, tag = "1")]
    pub n: u64,
    /// Nodes (NodeId) that don't answer this sender's leases or requests (R8).
    #[prost(uint32, repeated, tag = "2")]
    pub unreachable: Vec<u32>,
}

/// The coordinator heard the heartbeat.
#[derive(Clone, PartialEq, Message)]
pub struct HeartbeatAck {
    /// Echo.
    #[prost(uint64, tag = "1")]
    pub n: u64,
    /// The coordinator's map version, so that a follower notices a lost delta.
    #[prost(uint64, tag = "2")]
    pub map_version: u64,
}

/// Changes to the map since a version that the receiver has; records that changed, whole.
#[derive(Clone, PartialEq, Message)]
pub struct MapDelta {
    /// The receiver must be at this version (0: start from nothing).
    #[prost(uint64, tag = "1")]
    pub from_version: u64,
    /// After applying.
    #[prost(uint64, tag = "2")]
    pub to_version: u64,
    /// Epoch (R4).
    #[prost(uint32, tag = "3")]
    pub epoch: u32,
    /// 16 bytes.
    #[prost(bytes = "vec", tag = "4")]
    pub cluster: Vec<u8>,
    /// Feature level.
    #[prost(uint32, tag = "5")]
    pub feature_level: u32,
    /// Changed or new records.
    #[prost(message, repeated, tag = "6")]
    pub nodes: Vec<super::map::Node>,
    /// Changed or new records.
    #[prost(message, repeated, tag = "7")]
    pub disks: Vec<super::map::Disk>,
    /// Changed or new records.
    #[prost(message, repeated, tag = "8")]
    pub pools: Vec<super::map::Pool>,
    /// Changed or new records.
    #[prost(message, repeated, tag = "9")]
    pub volumes: Vec<super::map::Volume>,
    /// Changed or new records.
    #[prost(message, repeated, tag = "10")]
    pub pgs: Vec<super::map::PgConfig>,
    /// If changed.
    #[prost(message, optional, tag = "11")]
    pub settings: Option<super::map::Settings>,
    /// Volumes that no longer exist (their ids are never reused).
    #[prost(uint64, repeated, tag = "12")]
    pub removed_volumes: Vec<u64>,
    /// Pools that no longer exist, with their PGs.
    #[prost(uint32, repeated, tag = "13")]
    pub removed_pools: Vec<u32>,
}

/// A primary asks for a change of its PG's configuration (R3).
#[derive(Clone, PartialEq, Message)]
pub struct Propose {
    /// Random, nonzero; the outcome is read by it.
    #[prost(fixed64, tag = "1")]
    pub proposal: u64,
    /// PgId.
    #[prost(uint64, tag = "2")]
    pub pg: u64,
    /// The generation that the proposer serves.
    #[prost(uint32, tag = "3")]
    pub base_epoch: u32,
    /// See `base_epoch`.
    #[prost(uint64, tag = "4")]
    pub base_n: u64,
    /// What.
    #[prost(enumeration = "ProposeKind", tag = "5")]
    pub kind: i32,
    /// Whom: disk and boot. For several removals, several entries.
    #[prost(message, repeated, tag = "6")]
    pub replicas: Vec<super::map::Replica>,
    /// Why, for the event log.
    #[prost(string, tag = "7")]
    pub reason: String,
}

/// Kinds of [`Propose`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum ProposeKind {
    /// Never sent.
    Unknown = 0,
    /// Members that don't answer leave; refused below min_replicas (R5).
    RemoveMembers = 1,
    /// A complete learner becomes a member, in place of the one that it replaces if any.
    PromoteLearner = 2,
    /// A learner that can't go on (failed disk, new boot) leaves.
    DropLearner = 3,
}

/// Outcome of a [`Propose`].
#[derive(Clone, PartialEq, Message)]
pub struct ProposeReply {
    /// Echo.
    #[prost(fixed64, tag = "1")]
    pub proposal: u64,
    /// PgId.
    #[prost(uint64, tag = "2")]
    pub pg: u64,
    /// True: `config` holds the change.
    #[prost(bool, tag = "3")]
    pub accepted: bool,
    /// Why not.
    #[prost(string, tag = "4")]
    pub reason: String,
    /// The configuration now.
    #[prost(message, optional, tag = "5")]
    pub config: Option<super::map::PgConfig>,
}

/// A copy that is no longer needed: the PG is clean at full count without it (R4).
#[derive(Clone, PartialEq, Message)]
pub struct Purge {
    /// PgId.
    #[prost(uint64, tag = "1")]
    pub pg: u64,
    /// DiskId.
    #[prost(uint32, tag = "2")]
    pub disk: u32,
    /// Only if the disk's record of the PG is not above this.
    #[prost(uint32, tag = "3")]
    pub up_to_epoch: u32,
    /// See `up_to_epoch`.
    #[prost(uint64, tag = "4")]
    pub up_to_n: u64,
}

/// A gateway presents itself.
#[derive(Clone, PartialEq, Message)]
pub struct GatewayHello {
    /// Unique for each gateway process.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Release.
    #[prost(string, tag = "2")]
    pub release: String,
    /// Admin HTTP base URL; empty: none.
    #[prost(string, tag = "3")]
    pub admin_url: String,
    /// Feature levels that the binary can run.
    #[prost(uint32, tag = "4")]
    pub feature_min: u32,
    /// See `feature_min`.
    #[prost(uint32, tag = "5")]
    pub feature_max: u32,
    /// The map (epoch, version) that it follows; 0: none yet (R4).
    #[prost(uint32, tag = "6")]
    pub map_epoch: u32,
    /// See `map_epoch`.
    #[prost(uint64, tag = "7")]
    pub map_version: u64,
}

/// A gateway wants a volume read-write.
#[derive(Clone, PartialEq, Message)]
pub struct Attach {
    /// Volume name.
    #[prost(string, tag = "1")]
    pub volume: String,
    /// Fence the gateway that has it.
    #[prost(bool, tag = "2")]
    pub take_over: bool,
    /// The incarnation that this gateway had before its connection broke; 0: none. If it is still the recorded
    /// one the volume is granted again without a new incarnation.
    #[prost(uint64, tag = "3")]
    pub had_incarnation: u64,
}

/// Answer to [`Attach`]; a second one follows when a standby's turn comes.
#[derive(Clone, PartialEq, Message)]
pub struct AttachReply {
    /// Echo of the name.
    #[prost(string, tag = "1")]
    pub volume: String,
    /// VolumeId.
    #[prost(uint64, tag = "2")]
    pub id: u64,
    /// What happened.
    #[prost(enumeration = "AttachOutcome", tag = "3")]
    pub outcome: i32,
    /// The granted incarnation.
    #[prost(uint64, tag = "4")]
    pub incarnation: u64,
    /// For standby and refused: who has it, or what is wrong.
    #[prost(string, tag = "5")]
    pub reason: String,
    /// Acked writes of the gateway before may be lost: the next FLUSH fails once (R13).
    #[prost(bool, tag = "6")]
    pub lost: bool,
}

/// A gateway has sent again all that its volume's PGs may have lost (R13).
#[derive(Clone, PartialEq, Message)]
pub struct Settled {
    /// VolumeId.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// The gateway's.
    #[prost(uint64, tag = "2")]
    pub incarnation: u64,
    /// The sum of the durability epochs up to which that is so.
    #[prost(uint64, tag = "3")]
    pub durability: u64,
}

/// Outcomes of [`Attach`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum AttachOutcome {
    /// Never sent.
    Unknown = 0,
    /// The gateway must now open the volume at each of its PGs with this incarnation (R14).
    Granted = 1,
    /// Another gateway has it; wait.
    Standby = 2,
    /// Never.
    Refused = 3,
}

/// A gateway gives a volume back, or has lost it.
#[derive(Clone, PartialEq, Message)]
pub struct Release {
    /// VolumeId.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// The incarnation that ends.
    #[prost(uint64, tag = "2")]
    pub incarnation: u64,
    /// One sentence, for `FENCED`.
    #[prost(string, tag = "3")]
    pub reason: String,
    /// From the gateway: a loss has not been told to its guest.
    #[prost(bool, tag = "4")]
    pub untold: bool,
}

/// A primary has dropped all chunks of a volume that is being deleted from a PG.
#[derive(Clone, PartialEq, Message)]
pub struct VolumeDropped {
    /// VolumeId.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// PgId.
    #[prost(uint64, tag = "2")]
    pub pg: u64,
}
