//! What may be asked of the cluster map, and why it may be refused.

use std::net::SocketAddr;

use super::{
    DiskAdminState, FailureDomain, Job, JobState, Learner, NodeAdminState, PgConfig, Replica, Settings, Volume,
    VolumeQos,
};
use crate::core::ids::{ClusterId, DiskId, Generation, NodeId, PgId, PoolId, VolumeId};
use crate::core::throttle::settings::BadSetting;

/// A change of the map. People name things by name, daemons by id.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Makes the first map of a cluster.
    Init {
        /// Its identity.
        cluster: ClusterId,
        /// What its first member can decode.
        feature_level: u32,
    },
    /// A node joined with a valid token.
    AddNode {
        /// Unique name.
        name: String,
        /// Where it will listen; unspecified until it registers.
        addr: SocketAddr,
        /// Failure domains above it.
        zone: String,
        /// See `zone`.
        rack: String,
    },
    /// A node registered: what it says of itself.
    UpdateNode {
        /// Which.
        node: NodeId,
        /// QUIC address.
        addr: SocketAddr,
        /// Admin HTTP base URL.
        admin_url: String,
        /// Release of its binary.
        release: String,
    },
    /// What the operator wants of a node.
    SetNodeState {
        /// Name.
        node: String,
        /// Wanted.
        state: NodeAdminState,
    },
    /// A node is about to format a disk.
    AllocDisk {
        /// Which node.
        node: NodeId,
        /// Class.
        class: String,
        /// Bytes that slots can hold.
        capacity_bytes: u64,
    },
    /// A disk's size or class as it is now.
    UpdateDisk {
        /// Which.
        disk: DiskId,
        /// Class.
        class: String,
        /// Bytes that slots can hold.
        capacity_bytes: u64,
    },
    /// A disk failed an fsync, or its node says that it is broken (R15).
    DiskFailed {
        /// Which.
        disk: DiskId,
    },
    /// Makes a pool with its first configurations.
    CreatePool {
        /// What it is; the id is given by the map.
        spec: PoolSpec,
        /// Members of each PG, primary first.
        members: Vec<Vec<Replica>>,
    },
    /// Changes a pool.
    SetPool(PoolChange),
    /// Removes an empty pool.
    DeletePool {
        /// Name.
        pool: String,
    },
    /// Makes a volume.
    CreateVolume {
        /// Unique name.
        name: String,
        /// Pool's name.
        pool: String,
        /// A multiple of 512.
        size_bytes: u64,
    },
    /// Grows a volume.
    ResizeVolume {
        /// Name.
        volume: String,
        /// A multiple of 512, not less than now.
        size_bytes: u64,
    },
    /// Changes a volume's resync priority.
    SetVolume {
        /// Name.
        volume: String,
        /// Higher is resynced first.
        priority: i32,
    },
    /// Changes what a volume's guest may do, and its share.
    SetVolumeQos {
        /// Name.
        volume: String,
        /// All of it.
        qos: VolumeQos,
    },
    /// Marks a volume for deletion.
    DeleteVolume {
        /// Name.
        volume: String,
    },
    /// Every PG has dropped the volume's chunks: only its id stays taken.
    ForgetVolume {
        /// Which.
        volume: VolumeId,
    },
    /// Replaces the operator settings.
    SetSettings {
        /// All of them.
        settings: Box<Settings>,
    },
    /// A gateway wants a volume read-write (R14).
    Attach {
        /// Volume's name.
        volume: String,
        /// The gateway.
        gateway: String,
        /// Fence the gateway that has it.
        take_over: bool,
        /// The incarnation that this gateway had before its link broke; 0: none.
        had_incarnation: u64,
    },
    /// A gateway gives a volume back.
    Release {
        /// Which.
        volume: VolumeId,
        /// The incarnation that ends.
        incarnation: u64,
        /// A loss has not been told to the guest: the next gateway does (R13).
        untold: bool,
    },
    /// A gateway has sent again what its volume's PGs may have lost, and told its guest of what it couldn't (R13).
    Settle {
        /// Which.
        volume: VolumeId,
        /// The gateway's incarnation.
        incarnation: u64,
        /// See [`Volume::durability`].
        durability: u64,
    },
    /// A serving primary asks for a change of its PG's configuration (R3).
    Propose(Proposal),
    /// The coordinator reorders or promotes members of the recorded configuration (R3). Dead members may be left out.
    Promote {
        /// Which PG.
        pg: PgId,
        /// The generation that the decision was made on.
        base: Generation,
        /// New order; a subset of the members.
        members: Vec<Replica>,
    },
    /// The coordinator takes a copy away that its pool doesn't ask for any more. All others must be there, and enough.
    RemoveSurplus {
        /// Which PG.
        pg: PgId,
        /// The generation that the decision was made on.
        base: Generation,
        /// Whom; not the primary.
        replica: Replica,
    },
    /// The coordinator adds a learner. The generation stays: nothing that acks changes.
    AddLearner {
        /// Which PG.
        pg: PgId,
        /// Whom.
        learner: Learner,
    },
    /// The coordinator holds a learner back, or lets it go on. The generation stays.
    PauseLearner {
        /// Which PG.
        pg: PgId,
        /// Whom.
        replica: Replica,
        /// Held back.
        paused: bool,
    },
    /// The coordinator drops a learner.
    DropLearner {
        /// Which PG.
        pg: PgId,
        /// Whom.
        replica: Replica,
    },
    /// All members restarted: one of them is taken as the truth (R2).
    SetMembers {
        /// Which PG.
        pg: PgId,
        /// The generation that the decision was made on.
        base: Generation,
        /// The one that is taken, at its new boot.
        truth: Replica,
        /// Those that converge to it.
        learners: Vec<Learner>,
    },
    /// The operator's last resort: one copy leads an unavailable PG, below min_replicas (R5).
    ForcePromote(ForcePromote),
    /// A job is new, or gets on. The oldest go beyond [`JOBS_MAX`](super::job::JOBS_MAX).
    PutJob(Box<Job>),
}

/// What the operator decided for an unavailable PG.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForcePromote {
    /// Which PG.
    pub pg: PgId,
    /// The generation that the decision was made on.
    pub base: Generation,
    /// The only member from now on, at its present boot.
    pub chosen: Replica,
    /// Those that converge to it.
    pub learners: Vec<Learner>,
    /// It holds every acked write: a live, complete member. Else gateways send again what they have (R13).
    pub lossless: bool,
    /// What is or may be lost, for the event log.
    pub loss: String,
}

/// What a pool is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolSpec {
    /// Unique name.
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
    /// Each ack is stable.
    pub durable_writes: bool,
}

/// What changes about a pool; what is `None` stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolChange {
    /// Name.
    pub pool: String,
    /// Copies.
    pub replicas: Option<u32>,
    /// Copies without which IO waits.
    pub min_replicas: Option<u32>,
    /// Where two copies may not meet.
    pub failure_domain: Option<FailureDomain>,
    /// Class; empty: any.
    pub class: Option<String>,
    /// Each ack is stable.
    pub durable_writes: Option<bool>,
}

/// A primary's proposal (R3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// Random, nonzero: the outcome is read by it.
    pub id: u64,
    /// Which PG.
    pub pg: PgId,
    /// The generation that the proposer serves.
    pub base: Generation,
    /// The node that sent it.
    pub from: NodeId,
    /// What.
    pub change: Change,
    /// Why, for the event log.
    pub reason: String,
}

/// What a primary may propose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Members that don't answer leave.
    RemoveMembers(Vec<Replica>),
    /// A complete learner becomes a member.
    PromoteLearner(Replica),
    /// A learner that can't go on leaves.
    DropLearner(Replica),
}

/// What the coordinator observes and the map doesn't hold.
pub trait Liveness {
    /// The disk answers, at this boot.
    fn is_live(&self, replica: Replica) -> bool;
    /// The PG's primary has accused this member for long enough that its word counts against the heartbeats (R8).
    fn accusation_stands(&self, pg: PgId, accused: Replica) -> bool;
    /// The member has all that the configuration had, as far as its disk says; false: its disk found the PG's record
    /// damaged (R21), so that it can tell as little as one that restarted.
    fn has_whole_copy(&self, config: &PgConfig, replica: Replica) -> bool;
}

/// Nothing answers: before anything runs.
pub struct Nobody;

impl Liveness for Nobody {
    fn is_live(&self, _: Replica) -> bool {
        false
    }
    fn accusation_stands(&self, _: PgId, _: Replica) -> bool {
        false
    }
    fn has_whole_copy(&self, _: &PgConfig, _: Replica) -> bool {
        true
    }
}

/// What stands around a command.
pub struct Context<'a> {
    /// What answers now.
    pub liveness: &'a dyn Liveness,
}

/// Names one record of the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RecordKey {
    /// A node.
    Node(NodeId),
    /// A disk.
    Disk(DiskId),
    /// A pool.
    Pool(PoolId),
    /// A volume.
    Volume(VolumeId),
    /// A configuration.
    Pg(PgId),
    /// The settings.
    Settings,
    /// A job.
    Job(u64),
}

impl std::fmt::Display for RecordKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            RecordKey::Node(id) => write!(f, "node {id}"),
            RecordKey::Disk(id) => write!(f, "disk {id}"),
            RecordKey::Pool(id) => write!(f, "pool {id}"),
            RecordKey::Volume(id) => write!(f, "volume {id}"),
            RecordKey::Pg(id) => write!(f, "PG {id}"),
            RecordKey::Settings => f.write_str("settings"),
            RecordKey::Job(id) => write!(f, "job {id}"),
        }
    }
}

/// Something worth telling people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Happening {
    /// Short kind, as `node-joined`.
    pub kind: &'static str,
    /// One sentence.
    pub text: String,
}

/// What a command did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Applied {
    /// Records that are new, changed or gone; empty: nothing changed.
    pub changed: Vec<RecordKey>,
    /// For the event log.
    pub happenings: Vec<Happening>,
    /// What the caller wants to know.
    pub outcome: Outcome,
}

/// Answers of commands.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Outcome {
    /// Nothing beyond success.
    #[default]
    Done,
    /// The new node.
    Node(NodeId),
    /// The new disk.
    Disk(DiskId),
    /// The new pool.
    Pool(PoolId),
    /// The volume as it is now.
    Volume(Box<Volume>),
    /// Attached: the volume, and who lost it.
    Attached {
        /// As it is now, with the incarnation granted.
        volume: Box<Volume>,
        /// The gateway that is fenced by this, with its incarnation.
        fenced: Option<(String, u64)>,
        /// The gateway before it is gone together with what the copies had not made stable: acked writes may be lost, and
        /// the next FLUSH must say so once (R13).
        lost: bool,
    },
    /// Another gateway has the volume.
    Standby {
        /// Which volume.
        volume: VolumeId,
        /// Who has it.
        holder: String,
    },
}

/// A version of the map: the epoch, then the version in it (R4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct SeenMap {
    /// Rises at each import, restore or rebuild.
    pub epoch: u32,
    /// Rises at each change.
    pub version: u64,
}

impl std::fmt::Display for SeenMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of epoch {}", self.version, self.epoch)
    }
}

/// Which kind of refusal, for HTTP statuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalKind {
    /// The thing doesn't exist.
    NotFound,
    /// The request itself is wrong.
    Invalid,
    /// It can't be now.
    Conflict,
}

/// Why a command was not carried out: one sentence, with the way out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("this cluster has a map already: use another directory for a new cluster")]
    MapExists,
    #[error("the cluster has no map yet: run `evenkeel init` first")]
    NoMap,
    #[error(
        "{what} {name:?} is not valid: use 1 to 128 letters, digits, '-', '_' or '.', and start with a letter or digit"
    )]
    NameInvalid { what: &'static str, name: String },
    #[error("a {what} named {name:?} exists already: choose another name")]
    NameTaken { what: &'static str, name: String },
    #[error("there is no {what} {name:?}: `evenkeel {what} list` shows those that exist")]
    Unknown { what: &'static str, name: String },
    #[error("node {0} was removed from the cluster: join it again with a new token and empty disks")]
    NodeRemoved(NodeId),
    #[error("node {0:?} was removed and its id stays retired: join it again with a new token and empty disks")]
    NodeStateFinal(String),
    #[error(
        "node {node:?} still holds {replicas} replicas: drain it and wait for `evenkeel wait clean` before removing it"
    )]
    NodeInUse { node: String, replicas: usize },
    #[error("a disk of {capacity_bytes} bytes is too small: give it at least 64 MiB")]
    DiskTooSmall { capacity_bytes: u64 },
    #[error(
        "a pool can't have {replicas} replicas with a minimum of {min_replicas}: replicas must lie between 1 and 16, the minimum between 1 and the replicas"
    )]
    ReplicasInvalid { replicas: u32, min_replicas: u32 },
    #[error(
        "pool {pool:?} can't keep {replicas} replicas while IO waits for at least {min_replicas}: lower the minimum with it (--min-replicas {replicas} or less)"
    )]
    ReplicasBelowMinimum { pool: String, replicas: u32, min_replicas: u32 },
    #[error("PG {pg} can't give up its copy on {disk}: {why}")]
    NotSurplus { pg: PgId, disk: DiskId, why: &'static str },
    #[error("a pool can't have {0} placement groups: choose 1 to 65536")]
    PgCountInvalid(u32),
    #[error(
        "pool {pool:?} wants {replicas} replicas in separate failure domains, but only {found} could be placed: add nodes, or create it with fewer replicas"
    )]
    TooFewDomains { pool: String, replicas: u32, found: usize },
    #[error(
        "pool {pool:?} wants {replicas} replicas in separate failure domains, but disks of class {class:?} are in only {found}: add disks of that class first (classes that there are: {known})"
    )]
    ClassTooSmall { pool: String, class: String, replicas: u32, found: usize, known: String },
    #[error("pool {pool:?} still has {volumes} volumes: delete them first")]
    PoolInUse { pool: String, volumes: usize },
    #[error("a size of {0} bytes is not a positive multiple of 512: round it up")]
    SizeUnaligned(u64),
    #[error("a size of {0} bytes is too large: the limit is 16 PiB less 4 MiB")]
    SizeTooLarge(u64),
    #[error(
        "volume {volume:?} has {have} bytes and can't shrink to {wanted}: create a smaller volume and copy the data"
    )]
    ShrinkUnsupported { volume: String, have: u64, wanted: u64 },
    #[error("volume {volume:?} is attached to gateway {gateway:?}: stop that gateway first")]
    VolumeAttached { volume: String, gateway: String },
    #[error("volume {0:?} is being deleted: wait until it is gone")]
    VolumeDeleting(String),
    #[error(
        "volume {volume} is not attached with incarnation {incarnation}: another gateway took it over, or it was released"
    )]
    NotAttached { volume: VolumeId, incarnation: u64 },
    #[error("the setting {name} can't be {value}: {way_out}")]
    SettingInvalid { name: &'static str, value: String, way_out: &'static str },
    #[error(transparent)]
    ResyncInvalid(#[from] BadSetting),
    #[error(
        "PG {pg} is at generation {have}, the change was made for {base}: read the new configuration and decide again"
    )]
    GenerationMoved { pg: PgId, have: Generation, base: Generation },
    #[error("a proposal needs a number other than 0: choose one at random")]
    ProposalZero,
    #[error("node {from} is not the primary of PG {pg}: only the serving primary proposes")]
    NotPrimary { pg: PgId, from: NodeId },
    #[error("disk {disk} is not a member of PG {pg} at boot {boot}: read the new configuration and decide again", disk = .replica.disk, boot = .replica.boot)]
    NotMember { pg: PgId, replica: Replica },
    #[error("disk {disk} is no learner of PG {pg} at boot {boot}: read the new configuration and decide again", disk = .replica.disk, boot = .replica.boot)]
    NotLearner { pg: PgId, replica: Replica },
    #[error("disk {disk} is a member or learner of PG {pg} already", disk = .replica.disk)]
    AlreadyThere { pg: PgId, replica: Replica },
    #[error(
        "PG {pg} would keep {rest} replicas, its pool wants at least {min_replicas}: writes wait until a member returns or a copy is complete"
    )]
    BelowMinimum { pg: PgId, rest: usize, min_replicas: u32 },
    #[error("disk {disk} of PG {pg} answers others: they reach it; repeat the proposal if you still don't after 2 s", disk = .replica.disk)]
    OthersReachIt { pg: PgId, replica: Replica },
    #[error("disk {disk} does not answer at boot {boot}: wait until it does, or drop it", disk = .replica.disk, boot = .replica.boot)]
    NotLive { replica: Replica },
    #[error("PG {pg} has {replicas} live replicas already: drop the learner")]
    NotNeeded { pg: PgId, replicas: usize },
    #[error("disk {disk} of PG {pg} still answers at its recorded boot: no other copy may be taken as the truth; stop its node first if it is to be left out", disk = .replica.disk)]
    MemberAlive { pg: PgId, replica: Replica },
    #[error(
        "PG {pg} is not unavailable: {live} of its members answer, at least {min_replicas} are wanted, so it serves or is about to"
    )]
    StillServed { pg: PgId, live: usize, min_replicas: u32 },
    #[error("PG {pg} was force-promoted already and its member {disk} answers: it serves or is about to")]
    ForcedAlready { pg: PgId, disk: DiskId },
    #[error("PG {pg} has {have} learners, the limit is {max}: wait until one is complete")]
    TooManyLearners { pg: PgId, have: usize, max: usize },
    #[error("the record of {0} holds what this release doesn't know: upgrade the coordinator before changing it")]
    ReadOnly(RecordKey),
    #[error("there is no job {0}: `evenkeel resync jobs` lists those that are kept")]
    JobUnknown(u64),
    #[error("job {id} is {state} already: `evenkeel resync jobs` shows what runs now", state = .state.name())]
    JobOver { id: u64, state: JobState },
    #[error("job {id} holds nothing back any more: the topology has changed since, and it was planned anew")]
    JobNotHeld { id: u64 },
    #[error(
        "job {id} only makes copies that are missing ({moves} moves): without them placement groups stay with fewer copies than their pool wants; `evenkeel resync pause --job {id}` holds them back for a while, `evenkeel pool set` asks for fewer copies"
    )]
    JobRepairs { id: u64, moves: usize },
    #[error("job {id} is being planned anew: ask again in a few seconds")]
    JobUnplanned { id: u64 },
    #[error("job {id} can't follow job {last}: jobs count up by one")]
    JobOutOfOrder { id: u64, last: u64 },
    #[error("the cluster has used up all ids for a {0}")]
    IdsExhausted(&'static str),
    #[error(
        "the coordinator runs on an old copy of its map (version {have}; {who} has seen {seen}): nothing is changed; stop it, put back its newest directory, start it"
    )]
    MapOutdated { who: String, seen: SeenMap, have: SeenMap },
}

impl Refusal {
    /// For HTTP statuses.
    pub fn kind(&self) -> RefusalKind {
        match self {
            Refusal::Unknown { .. } | Refusal::JobUnknown(_) => RefusalKind::NotFound,
            Refusal::NameInvalid { .. }
            | Refusal::DiskTooSmall { .. }
            | Refusal::ReplicasInvalid { .. }
            | Refusal::ReplicasBelowMinimum { .. }
            | Refusal::PgCountInvalid(_)
            | Refusal::SizeUnaligned(_)
            | Refusal::SizeTooLarge(_)
            | Refusal::SettingInvalid { .. }
            | Refusal::ResyncInvalid(_)
            | Refusal::ProposalZero => RefusalKind::Invalid,
            _ => RefusalKind::Conflict,
        }
    }
}

/// True for a disk that may hold replicas as far as the operator and the disk's own errors say.
pub fn is_usable(state: DiskAdminState) -> bool {
    matches!(state, DiskAdminState::Active | DiskAdminState::Draining)
}
