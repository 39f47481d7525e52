//! Stored and sent forms of the cluster map's records.

use std::net::SocketAddr;

use prost::Message;

use crate::core::cluster as core;
use crate::core::ids::{BootId, DiskId, Generation, NodeId, PgId, PoolId, VolumeId};

pub use super::settings::Settings;

/// A record that this binary can't take: a field is missing or out of range.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the map's {record} record has a bad {field}: {value}")]
pub struct DecodeRecord {
    /// Kind of record.
    pub record: &'static str,
    /// Field.
    pub field: &'static str,
    /// What stood there.
    pub value: String,
}

pub(super) fn bad(record: &'static str, field: &'static str, value: impl ToString) -> DecodeRecord {
    DecodeRecord { record, field, value: value.to_string() }
}

/// See [`core::Node`].
#[derive(Clone, PartialEq, Message)]
pub struct Node {
    /// NodeId.
    #[prost(uint32, tag = "1")]
    pub id: u32,
    /// Name.
    #[prost(string, tag = "2")]
    pub name: String,
    /// QUIC address.
    #[prost(string, tag = "3")]
    pub addr: String,
    /// Admin URL.
    #[prost(string, tag = "4")]
    pub admin_url: String,
    /// Zone.
    #[prost(string, tag = "5")]
    pub zone: String,
    /// Rack.
    #[prost(string, tag = "6")]
    pub rack: String,
    /// Release.
    #[prost(string, tag = "7")]
    pub release: String,
    /// 0 active, 1 draining, 2 maintenance, 3 removed.
    #[prost(uint32, tag = "8")]
    pub admin_state: u32,
}

/// See [`core::Disk`].
#[derive(Clone, PartialEq, Message)]
pub struct Disk {
    /// DiskId.
    #[prost(uint32, tag = "1")]
    pub id: u32,
    /// NodeId.
    #[prost(uint32, tag = "2")]
    pub node: u32,
    /// Class.
    #[prost(string, tag = "3")]
    pub class: String,
    /// Capacity.
    #[prost(uint64, tag = "4")]
    pub capacity_bytes: u64,
    /// 0 active, 1 draining, 2 failed, 3 removed.
    #[prost(uint32, tag = "5")]
    pub admin_state: u32,
}

/// See [`core::Pool`].
#[derive(Clone, PartialEq, Message)]
pub struct Pool {
    /// PoolId.
    #[prost(uint32, tag = "1")]
    pub id: u32,
    /// Name.
    #[prost(string, tag = "2")]
    pub name: String,
    /// Copies.
    #[prost(uint32, tag = "3")]
    pub replicas: u32,
    /// Copies without which IO waits.
    #[prost(uint32, tag = "4")]
    pub min_replicas: u32,
    /// 0 disk, 1 node, 2 rack, 3 zone, 4 release.
    #[prost(uint32, tag = "5")]
    pub failure_domain: u32,
    /// Class.
    #[prost(string, tag = "6")]
    pub class: String,
    /// PGs.
    #[prost(uint32, tag = "7")]
    pub pg_count: u32,
    /// `durability = "write"`.
    #[prost(bool, tag = "8")]
    pub durable_writes: bool,
}

/// See [`core::Stripe`].
#[derive(Clone, PartialEq, Message)]
pub struct Stripe {
    /// First chunk.
    #[prost(uint32, tag = "1")]
    pub first_chunk: u32,
    /// PG indexes.
    #[prost(uint32, repeated, tag = "2")]
    pub pgs: Vec<u32>,
}

/// See [`core::Volume`].
#[derive(Clone, PartialEq, Message)]
pub struct Volume {
    /// VolumeId.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// Name.
    #[prost(string, tag = "2")]
    pub name: String,
    /// PoolId.
    #[prost(uint32, tag = "3")]
    pub pool: u32,
    /// Size.
    #[prost(uint64, tag = "4")]
    pub size_bytes: u64,
    /// Layout.
    #[prost(message, repeated, tag = "5")]
    pub stripes: Vec<Stripe>,
    /// Attach incarnation.
    #[prost(uint64, tag = "6")]
    pub incarnation: u64,
    /// Gateway.
    #[prost(string, tag = "7")]
    pub attached_to: String,
    /// Priority.
    #[prost(sint32, tag = "8")]
    pub priority: i32,
    /// Being deleted.
    #[prost(bool, tag = "9")]
    pub deleting: bool,
    /// See [`core::Volume::durability`].
    #[prost(uint64, tag = "10")]
    pub durability: u64,
    /// Operations per second that its guest may do.
    #[prost(uint64, optional, tag = "11")]
    pub iops_limit: Option<u64>,
    /// Bytes per second that its guest may read or write.
    #[prost(uint64, optional, tag = "12")]
    pub bytes_per_sec_limit: Option<u64>,
    /// Operations that it may save up.
    #[prost(uint64, optional, tag = "13")]
    pub iops_burst: Option<u64>,
    /// Bytes that it may save up.
    #[prost(uint64, optional, tag = "14")]
    pub bytes_burst: Option<u64>,
    /// Weight against other volumes; absent: the usual one.
    #[prost(uint32, optional, tag = "15")]
    pub share: Option<u32>,
}

/// See [`core::Replica`].
#[derive(Clone, Copy, PartialEq, Message)]
pub struct Replica {
    /// DiskId.
    #[prost(uint32, tag = "1")]
    pub disk: u32,
    /// BootId.
    #[prost(fixed64, tag = "2")]
    pub boot: u64,
}

/// See [`core::Learner`].
#[derive(Clone, PartialEq, Message)]
pub struct Learner {
    /// Who.
    #[prost(message, optional, tag = "1")]
    pub replica: Option<Replica>,
    /// DiskId, 0: none.
    #[prost(uint32, tag = "2")]
    pub replaces: u32,
    /// Index into `ResyncClass::ALL`.
    #[prost(uint32, tag = "3")]
    pub class: u32,
    /// Held back.
    #[prost(bool, tag = "4")]
    pub paused: bool,
}

/// See [`core::PgConfig`].
#[derive(Clone, PartialEq, Message)]
pub struct PgConfig {
    /// PgId.
    #[prost(uint64, tag = "1")]
    pub pg: u64,
    /// Generation.
    #[prost(uint32, tag = "2")]
    pub generation_epoch: u32,
    /// Generation.
    #[prost(uint64, tag = "3")]
    pub generation_n: u64,
    /// Durability epoch.
    #[prost(uint64, tag = "4")]
    pub durability_epoch: u64,
    /// Primary first.
    #[prost(message, repeated, tag = "5")]
    pub members: Vec<Replica>,
    /// Learners.
    #[prost(message, repeated, tag = "6")]
    pub learners: Vec<Learner>,
    /// Last proposal carried out.
    #[prost(fixed64, tag = "7")]
    pub last_proposal: u64,
    /// An operator made its one member lead (R5).
    #[prost(bool, tag = "8")]
    pub forced: bool,
    /// Members without which nothing is served (R2, R5).
    #[prost(uint32, tag = "9")]
    pub members_min: u32,
}

impl From<&core::Node> for Node {
    fn from(n: &core::Node) -> Self {
        Node {
            id: n.id.0,
            name: n.name.clone(),
            addr: n.addr.to_string(),
            admin_url: n.admin_url.clone(),
            zone: n.zone.clone(),
            rack: n.rack.clone(),
            release: n.release.clone(),
            admin_state: match n.admin_state {
                core::NodeAdminState::Active => 0,
                core::NodeAdminState::Draining => 1,
                core::NodeAdminState::Maintenance => 2,
                core::NodeAdminState::Removed => 3,
            },
        }
    }
}

impl TryFrom<Node> for core::Node {
    type Error = DecodeRecord;
    fn try_from(n: Node) -> Result<Self, DecodeRecord> {
        let addr: SocketAddr = n.addr.parse().map_err(|_| bad("node", "addr", &n.addr))?;
        Ok(core::Node {
            id: NodeId(n.id),
            name: n.name,
            addr,
            admin_url: n.admin_url,
            zone: n.zone,
            rack: n.rack,
            release: n.release,
            admin_state: match n.admin_state {
                0 => core::NodeAdminState::Active,
                1 => core::NodeAdminState::Draining,
                2 => core::NodeAdminState::Maintenance,
                3 => core::NodeAdminState::Removed,
                other => return Err(bad("node", "admin_state", other)),
            },
        })
    }
}

impl From<&core::Disk> for Disk {
    fn from(d: &core::Disk) -> Self {
        Disk {
            id: d.id.0,
            node: d.node.0,
            class: d.class.clone(),
            capacity_bytes: d.capacity_bytes,
            admin_state: match d.admin_state {
                core::DiskAdminState::Active => 0,
                core::DiskAdminState::Draining => 1,
                core::DiskAdminState::Failed => 2,
                core::DiskAdminState::Removed => 3,
            },
        }
    }
}

impl TryFrom<Disk> for core::Disk {
    type Error = DecodeRecord;
    fn try_from(d: Disk) -> Result<Self, DecodeRecord> {
        Ok(core::Disk {
            id: DiskId(d.id),
            node: NodeId(d.node),
            class: d.class,
            capacity_bytes: d.capacity_bytes,
            admin_state: match d.admin_state {
                0 => core::DiskAdminState::Active,
                1 => core::DiskAdminState::Draining,
                2 => core::DiskAdminState::Failed,
                3 => core::DiskAdminState::Removed,
                other => return Err(bad("disk", "admin_state", other)),
            },
        })
    }
}

impl From<&core::Pool> for Pool {
    fn from(p: &core::Pool) -> Self {
        Pool {
            id: p.id.0,
            name: p.name.clone(),
            replicas: p.replicas,
            min_replicas: p.min_replicas,
            failure_domain: match p.failure_domain {
                core::FailureDomain::Disk => 0,
                core::FailureDomain::Node => 1,
                core::FailureDomain::Rack => 2,
                core::FailureDomain::Zone => 3,
                core::FailureDomain::Release => 4,
            },
            class: p.class.clone(),
            pg_count: p.pg_count,
            durable_writes: p.durable_writes,
        }
    }
}

impl TryFrom<Pool> for core::Pool {
    type Error = DecodeRecord;
    fn try_from(p: Pool) -> Result<Self, DecodeRecord> {
        Ok(core::Pool {
            id: PoolId(p.id),
            name: p.name,
            replicas: p.replicas,
            min_replicas: p.min_replicas,
            failure_domain: match p.failure_domain {
                0 => core::FailureDomain::Disk,
                1 => core::FailureDomain::Node,
                2 => core::FailureDomain::Rack,
                3 => core::FailureDomain::Zone,
                4 => core::FailureDomain::Release,
                other => return Err(bad("pool", "failure_domain", other)),
            },
            class: p.class,
            pg_count: p.pg_count,
            durable_writes: p.durable_writes,
        })
    }
}

impl From<&core::Volume> for Volume {
    fn from(v: &core::Volume) -> Self {
        Volume {
            id: v.id.0,
            name: v.name.clone(),
            pool: v.pool.0,
            size_bytes: v.size_bytes,
            stripes: v.stripes.iter().map(|s| Stripe { first_chunk: s.first_chunk, pgs: s.pgs.clone() }).collect(),
            incarnation: v.incarnation,
            attached_to: v.attached_to.clone(),
            durability: v.durability,
            priority: v.priority,
            deleting: v.deleting,
            iops_limit: v.qos.iops,
            bytes_per_sec_limit: v.qos.bytes_per_sec,
            iops_burst: v.qos.iops_burst,
            bytes_burst: v.qos.bytes_burst,
            // The usual one stays unsaid, as in records of before there were shares.
            share: Some(v.qos.share).filter(|share| *share != core::SHARE),
        }
    }
}

impl TryFrom<Volume> for core::Volume {
    type Error = DecodeRecord;
    fn try_from(v: Volume) -> Result<Self, DecodeRecord> {
        let rising = v.stripes.windows(2).all(|w| w[0].first_chunk < w[1].first_chunk);
        let starts = v.stripes.first().is_some_and(|s| s.first_chunk == 0);
        if !rising || !starts || v.stripes.iter().any(|s| s.pgs.is_empty()) {
            return Err(bad("volume", "stripes", format!("{:?}", v.stripes)));
        }
        Ok(core::Volume {
            id: VolumeId(v.id),
            name: v.name,
            pool: PoolId(v.pool),
            size_bytes: v.size_bytes,
            stripes: v.stripes.into_iter().map(|s| core::Stripe { first_chunk: s.first_chunk, pgs: s.pgs }).collect(),
            incarnation: v.incarnation,
            attached_to: v.attached_to,
            durability: v.durability,
            priority: v.priority,
            deleting: v.deleting,
            qos: core::VolumeQos {
                iops: v.iops_limit,
                iops_burst: v.iops_burst,
                bytes_per_sec: v.bytes_per_sec_limit,
                bytes_burst: v.bytes_burst,
                share: v.share.unwrap_or(core::SHARE).clamp(1, core::SHARE_MAX),
            },
        })
    }
}

impl From<core::Replica> for Replica {
    fn from(r: core::Replica) -> Self {
        Replica { disk: r.disk.0, boot: r.boot.0 }
    }
}

impl From<Replica> for core::Replica {
    fn from(r: Replica) -> Self {
        core::Replica { disk: DiskId(r.disk), boot: BootId(r.boot) }
    }
}

impl From<&core::PgConfig> for PgConfig {
    fn from(c: &core::PgConfig) -> Self {
        PgConfig {
            pg: c.pg.to_u64(),
            generation_epoch: c.generation.epoch,
            generation_n: c.generation.n,
            durability_epoch: c.durability_epoch,
            members: c.members.iter().map(|m| (*m).into()).collect(),
            learners: c
                .learners
                .iter()
                .map(|l| Learner {
                    replica: Some(l.replica.into()),
                    replaces: l.replaces.map_or(0, |d| d.0),
                    class: class_index(l.class),
                    paused: l.paused,
                })
                .collect(),
            last_proposal: c.last_proposal,
            forced: c.forced,
            members_min: c.members_min,
        }
    }
}

/// A class's number in messages: its index in `ResyncClass::ALL`.
pub fn class_index(class: core::ResyncClass) -> u32 {
    core::ResyncClass::ALL.iter().position(|c| *c == class).map_or(0, |i| i as u32)
}

impl TryFrom<PgConfig> for core::PgConfig {
    type Error = DecodeRecord;
    fn try_from(c: PgConfig) -> Result<Self, DecodeRecord> {
        let learners = c
            .learners
            .into_iter()
            .map(|l| {
                Ok(core::Learner {
                    replica: l.replica.ok_or_else(|| bad("PG", "learner", "no replica"))?.into(),
                    replaces: (l.replaces != 0).then_some(DiskId(l.replaces)),
                    class: *core::ResyncClass::ALL
                        .get(l.class as usize)
                        .ok_or_else(|| bad("PG", "learner class", l.class))?,
                    paused: l.paused,
                })
            })
            .collect::<Result<_, DecodeRecord>>()?;
        Ok(core::PgConfig {
            pg: PgId::from_u64(c.pg),
            generation: Generation { epoch: c.generation_epoch, n: c.generation_n },
            durability_epoch: c.durability_epoch,
            members: c.members.into_iter().map(Into::into).collect(),
            learners,
            last_proposal: c.last_proposal,
            forced: c.forced,
            members_min: c.members_min,
        })
    }
}

/// A delta that doesn't fit the receiver's map.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ApplyDelta {
    /// The receiver lacks what lies between.
    #[error("the delta starts at version {from}, the map is at {have}: ask for the whole map")]
    Gap {
        /// The delta's start.
        from: u64,
        /// The map's version.
        have: u64,
    },
    /// A lower epoch or version than seen (R4).
    #[error("the map (epoch {epoch}, version {version}) is older than one already seen")]
    Older {
        /// The delta's epoch.
        epoch: u32,
        /// The delta's version.
        version: u64,
    },
    /// A record can't be taken.
    #[error(transparent)]
    Record(#[from] DecodeRecord),
}

/// Brings `map` to the delta's version.
///
/// # Errors
/// The delta doesn't start where the map is, is older than the map, or holds a record that can't be decoded; the map
/// is then unchanged.
pub fn apply_delta(map: &mut core::ClusterMap, delta: super::control::MapDelta) -> Result<(), ApplyDelta> {
    if delta.epoch < map.epoch || (delta.epoch == map.epoch && delta.to_version < map.version) {
        return Err(ApplyDelta::Older { epoch: delta.epoch, version: delta.to_version });
    }
    if delta.from_version != 0 && (delta.from_version > map.version || delta.epoch != map.epoch) {
        return Err(ApplyDelta::Gap { from: delta.from_version, have: map.version });
    }
    let nodes = delta.nodes.into_iter().map(core::Node::try_from).collect::<Result<Vec<_>, _>>()?;
    let disks = delta.disks.into_iter().map(core::Disk::try_from).collect::<Result<Vec<_>, _>>()?;
    let pools = delta.pools.into_iter().map(core::Pool::try_from).collect::<Result<Vec<_>, _>>()?;
    let volumes = delta.volumes.into_iter().map(core::Volume::try_from).collect::<Result<Vec<_>, _>>()?;
    let pgs = delta.pgs.into_iter().map(core::PgConfig::try_from).collect::<Result<Vec<_>, _>>()?;
    let settings = delta.settings.map(core::Settings::try_from).transpose()?;
    let cluster = delta.cluster.as_slice().try_into().map_err(|_| bad("map", "cluster", delta.cluster.len()))?;
    if delta.from_version == 0 {
        *map = core::ClusterMap::default();
    }
    map.cluster = crate::core::ids::ClusterId(cluster);
    map.epoch = delta.epoch;
    map.version = delta.to_version;
    map.feature_level = delta.feature_level;
    map.nodes.extend(nodes.into_iter().map(|n| (n.id, n)));
    map.disks.extend(disks.into_iter().map(|d| (d.id, d)));
    map.pools.extend(pools.into_iter().map(|p| (p.id, p)));
    map.volumes.extend(volumes.into_iter().map(|v| (v.id, v)));
    map.pgs.extend(pgs.into_iter().map(|p| (p.pg, p)));
    if let Some(settings) = settings {
        map.settings = settings;
    }
    for id in delta.removed_volumes {
        map.volumes.remove(&VolumeId(id));
    }
    for id in delta.removed_pools {
        map.pools.remove(&PoolId(id));
        map.pgs.retain(|pg, _| pg.pool != PoolId(id));
    }
    Ok(())
}
