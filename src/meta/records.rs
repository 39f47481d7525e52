//! The coordinator's records: keys, types, and the cluster map to and from them.
//!
//! Keys: `map/node/<id>` and so on (ids as fixed-width hex, so that they sort), `map/head` (version, epoch, next ids),
//! `map/job/<id>`, `event/<id>`, `token/<id>`, `stat/resync`, `meta/schema`. A record of another type is kept and ignored.

use std::collections::BTreeSet;

use prost::Message;

use super::jobs::JobRecord;
use super::{Batch, MetaError, MetaStore, envelope};
use crate::core::cluster::command::RecordKey;
use crate::core::cluster::state::{ClusterState, NextIds};
use crate::core::cluster::{self as core, ClusterMap};
use crate::core::ids::ClusterId;
use crate::wire::map;

/// Types of records. Numbers are never reused.
pub mod kind {
    /// [`super::super::migrate::Schema`].
    pub const SCHEMA: u32 = 1;
    /// [`super::Head`].
    pub const HEAD: u32 = 2;
    /// A node.
    pub const NODE: u32 = 3;
    /// A disk.
    pub const DISK: u32 = 4;
    /// A pool.
    pub const POOL: u32 = 5;
    /// A volume.
    pub const VOLUME: u32 = 6;
    /// A configuration.
    pub const PG: u32 = 7;
    /// The settings.
    pub const SETTINGS: u32 = 8;
    /// [`super::EventRecord`].
    pub const EVENT: u32 = 9;
    /// [`super::JsonRecord`]: a join token without its secret.
    pub const TOKEN: u32 = 10;
    /// [`super::ResyncTotals`].
    pub const RESYNC_TOTALS: u32 = 11;
    /// [`super::JobRecord`].
    pub const JOB: u32 = 12;
}

/// Steps that ran.
pub const SCHEMA_KEY: &str = "meta/schema";
/// Version and next ids.
pub const HEAD_KEY: &str = "map/head";
/// Resync counters.
pub const RESYNC_TOTALS_KEY: &str = "stat/resync";

/// The map's own fields.
#[derive(Clone, PartialEq, Message)]
pub struct Head {
    /// 16 bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub cluster: Vec<u8>,
    /// Epoch.
    #[prost(uint32, tag = "2")]
    pub epoch: u32,
    /// Version.
    #[prost(uint64, tag = "3")]
    pub version: u64,
    /// Feature level.
    #[prost(uint32, tag = "4")]
    pub feature_level: u32,
    /// Next NodeId.
    #[prost(uint32, tag = "5")]
    pub next_node: u32,
    /// Next DiskId.
    #[prost(uint32, tag = "6")]
    pub next_disk: u32,
    /// Next PoolId.
    #[prost(uint32, tag = "7")]
    pub next_pool: u32,
    /// Next VolumeId.
    #[prost(uint64, tag = "8")]
    pub next_volume: u64,
}

/// Something that happened.
#[derive(Clone, PartialEq, Message)]
pub struct EventRecord {
    /// Counts up.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// Unix time, milliseconds.
    #[prost(uint64, tag = "2")]
    pub unix_ms: u64,
    /// Short kind.
    #[prost(string, tag = "3")]
    pub kind: String,
    /// Who or what asked for it.
    #[prost(string, tag = "4")]
    pub actor: String,
    /// One sentence.
    #[prost(string, tag = "5")]
    pub text: String,
}

/// A record whose owner has its own text form.
#[derive(Clone, PartialEq, Message)]
pub struct JsonRecord {
    /// JSON.
    #[prost(string, tag = "1")]
    pub json: String,
}

/// Resync bytes over the cluster's life, and how far each process has been counted.
#[derive(Clone, PartialEq, Message)]
pub struct ResyncTotals {
    /// By class, in the order of `ResyncClass::ALL`.
    #[prost(uint64, repeated, tag = "1")]
    pub bytes: Vec<u64>,
    /// Per node: only its current process counts on.
    #[prost(message, repeated, tag = "2")]
    pub nodes: Vec<CountedNode>,
}

/// A node in [`ResyncTotals`].
#[derive(Clone, PartialEq, Message)]
pub struct CountedNode {
    /// NodeId.
    #[prost(uint32, tag = "1")]
    pub node: u32,
    /// Its process (see `Register.process`).
    #[prost(uint64, tag = "2")]
    pub process: u64,
    /// Its counters when they were last added, by class.
    #[prost(uint64, repeated, tag = "3")]
    pub counted: Vec<u64>,
}

/// Where a record is kept.
pub fn key_of(key: RecordKey) -> String {
    match key {
        RecordKey::Node(id) => format!("map/node/{:08x}", id.0),
        RecordKey::Disk(id) => format!("map/disk/{:08x}", id.0),
        RecordKey::Pool(id) => format!("map/pool/{:08x}", id.0),
        RecordKey::Volume(id) => format!("map/volume/{:016x}", id.0),
        RecordKey::Pg(id) => format!("map/pg/{:016x}", id.to_u64()),
        RecordKey::Settings => "map/settings".to_owned(),
        RecordKey::Job(id) => format!("map/job/{id:016x}"),
    }
}

/// Adds the changed records, and the head, to a batch.
pub fn put_changes(state: &ClusterState, changed: &BTreeSet<RecordKey>, batch: &mut Batch) {
    for key in changed {
        let name = key_of(*key);
        match value_of(state.map(), *key, &name) {
            Some(value) => batch.put(name, value),
            None => batch.delete(name),
        }
    }
    let (map, next) = (state.map(), state.next_ids());
    let head = Head {
        cluster: map.cluster.0.to_vec(),
        epoch: map.epoch,
        version: map.version,
        feature_level: map.feature_level,
        next_node: next.node,
        next_disk: next.disk,
        next_pool: next.pool,
        next_volume: next.volume,
    };
    batch.put(HEAD_KEY, envelope::seal(HEAD_KEY, kind::HEAD, 1, &head));
}

fn value_of(state: &ClusterMap, key: RecordKey, name: &str) -> Option<Vec<u8>> {
    Some(match key {
        RecordKey::Node(id) => envelope::seal(name, kind::NODE, 1, &map::Node::from(state.nodes.get(&id)?)),
        RecordKey::Disk(id) => envelope::seal(name, kind::DISK, 1, &map::Disk::from(state.disks.get(&id)?)),
        RecordKey::Pool(id) => envelope::seal(name, kind::POOL, 1, &map::Pool::from(state.pools.get(&id)?)),
        RecordKey::Volume(id) => envelope::seal(name, kind::VOLUME, 1, &map::Volume::from(state.volumes.get(&id)?)),
        RecordKey::Pg(id) => envelope::seal(name, kind::PG, 1, &map::PgConfig::from(state.pgs.get(&id)?)),
        RecordKey::Settings => envelope::seal(name, kind::SETTINGS, 1, &map::Settings::from(&state.settings)),
        RecordKey::Job(id) => envelope::seal(name, kind::JOB, 1, &JobRecord::from(state.jobs.get(&id)?)),
    })
}

/// Reads the map.
///
/// # Errors
/// A record is damaged, can't be understood, or the map breaks its invariants.
pub fn load(store: &dyn MetaStore) -> Result<ClusterState, MetaError> {
    let mut map = ClusterMap::default();
    let mut next = NextIds::default();
    let mut read_only = BTreeSet::new();
    for (key, bytes) in store.scan("map/")? {
        let sealed = envelope::open(&key, &bytes)?;
        let body = sealed.body.as_slice();
        let bad = |e: &dyn std::fmt::Display| MetaError::Record { key: key.clone(), problem: e.to_string() };
        let (record, whole) = match sealed.kind {
            kind::HEAD => {
                let (head, _) = envelope::decode::<Head>(&key, body)?;
                let cluster = head.cluster.as_slice().try_into().map_err(|_| bad(&"the cluster id is not 16 bytes"))?;
                map.cluster = ClusterId(cluster);
                (map.epoch, map.version, map.feature_level) = (head.epoch, head.version, head.feature_level);
                next = NextIds {
                    node: head.next_node,
                    disk: head.next_disk,
                    pool: head.next_pool,
                    volume: head.next_volume,
                };
                continue;
            }
            kind::NODE => {
                let (m, whole) = envelope::decode::<map::Node>(&key, body)?;
                let node = core::Node::try_from(m).map_err(|e| bad(&e))?;
                let id = node.id;
                map.nodes.insert(id, node);
                (RecordKey::Node(id), whole)
            }
            kind::DISK => {
                let (m, whole) = envelope::decode::<map::Disk>(&key, body)?;
                let disk = core::Disk::try_from(m).map_err(|e| bad(&e))?;
                let id = disk.id;
                map.disks.insert(id, disk);
                (RecordKey::Disk(id), whole)
            }
            kind::POOL => {
                let (m, whole) = envelope::decode::<map::Pool>(&key, body)?;
                let pool = core::Pool::try_from(m).map_err(|e| bad(&e))?;
                let id = pool.id;
                map.pools.insert(id, pool);
                (RecordKey::Pool(id), whole)
            }
            kind::VOLUME => {
                let (m, whole) = envelope::decode::<map::Volume>(&key, body)?;
                let volume = core::Volume::try_from(m).map_err(|e| bad(&e))?;
                let id = volume.id;
                map.volumes.insert(id, volume);
                (RecordKey::Volume(id), whole)
            }
            kind::PG => {
                let (m, whole) = envelope::decode::<map::PgConfig>(&key, body)?;
                let config = core::PgConfig::try_from(m).map_err(|e| bad(&e))?;
                let id = config.pg;
                map.pgs.insert(id, config);
                (RecordKey::Pg(id), whole)
            }
            kind::SETTINGS => {
                let (m, whole) = envelope::decode::<map::Settings>(&key, body)?;
                map.settings = core::Settings::try_from(m).map_err(|e| bad(&e))?;
                (RecordKey::Settings, whole)
            }
            kind::JOB => {
                let (m, whole) = envelope::decode::<JobRecord>(&key, body)?;
                let job = core::Job::try_from(m).map_err(|e| bad(&e))?;
                let id = job.id;
                map.jobs.insert(id, job);
                (RecordKey::Job(id), whole)
            }
            other => {
                tracing::warn!(key, kind = other, "a metadata record of an unknown type is kept and ignored");
                continue;
            }
        };
        if !whole {
            tracing::warn!(%record, "the record holds fields that this release doesn't know; it can't be changed here");
            read_only.insert(record);
        }
    }
    if map.version == 0 {
        return Err(MetaError::Record { key: HEAD_KEY.to_owned(), problem: "it is missing".to_owned() });
    }
    let state = ClusterState::restore(map, next, read_only);
    state.check().map_err(|problem| MetaError::Record { key: HEAD_KEY.to_owned(), problem })?;
    Ok(state)
}

#[cfg(test)]
#[path = "records_tests.rs"]
mod tests;
