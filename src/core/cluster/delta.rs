//! What changed since a version: how followers of the map keep up.
//!
//! Each record remembers the version that changed it last, and removals are kept in order. A follower older than the
//! oldest removal kept (or than this process) gets the whole map.

use std::collections::{BTreeMap, VecDeque};

use super::command::RecordKey;
use super::state::ClusterState;
use super::{Disk, Node, PgConfig, Pool, Settings, Volume};
use crate::core::ids::{PoolId, VolumeId};

/// Removals kept: a follower misses more only when it was away for long, and then the whole map is cheap.
const REMOVALS_MAX: usize = 10_000;

/// Versions of the records.
#[derive(Clone, Debug, Default)]
pub(super) struct Versions {
    /// Deltas start here or later.
    floor: u64,
    by_record: BTreeMap<RecordKey, u64>,
    /// The same, by version, so that a delta costs what changed and not what exists.
    by_version: std::collections::BTreeSet<(u64, RecordKey)>,
    removed: VecDeque<(u64, RecordKey)>,
}

impl Versions {
    pub(super) fn starting_at(version: u64) -> Self {
        Versions { floor: version, ..Versions::default() }
    }

    pub(super) fn touch(&mut self, key: RecordKey, version: u64, removed: bool) {
        if let Some(old) = self.by_record.remove(&key) {
            self.by_version.remove(&(old, key));
        }
        if !removed {
            self.by_record.insert(key, version);
            self.by_version.insert((version, key));
            return;
        }
        // A pool's PGs go with the pool.
        if !matches!(key, RecordKey::Pg(_)) {
            self.removed.push_back((version, key));
            if self.removed.len() > REMOVALS_MAX
                && let Some((gone, _)) = self.removed.pop_front()
            {
                self.floor = self.floor.max(gone);
            }
        }
    }
}

/// Changes to the map since a version: records that changed, whole.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Delta {
    /// The receiver must be at this version; 0: start from nothing.
    pub from_version: u64,
    /// After applying.
    pub to_version: u64,
    /// Changed or new.
    pub nodes: Vec<Node>,
    /// Changed or new.
    pub disks: Vec<Disk>,
    /// Changed or new.
    pub pools: Vec<Pool>,
    /// Changed or new.
    pub volumes: Vec<Volume>,
    /// Changed or new.
    pub pgs: Vec<PgConfig>,
    /// If changed.
    pub settings: Option<Settings>,
    /// Gone.
    pub removed_volumes: Vec<VolumeId>,
    /// Gone, with their PGs.
    pub removed_pools: Vec<PoolId>,
}

impl ClusterState {
    /// What a follower at `version` lacks; the whole map if it is too old or from elsewhere.
    pub fn delta_since(&self, version: u64) -> Delta {
        let map = &self.map;
        if version == 0 || version < self.versions.floor || version > map.version {
            return Delta {
                from_version: 0,
                to_version: map.version,
                nodes: map.nodes.values().cloned().collect(),
                disks: map.disks.values().cloned().collect(),
                pools: map.pools.values().cloned().collect(),
                volumes: map.volumes.values().cloned().collect(),
                pgs: map.pgs.values().cloned().collect(),
                settings: Some(map.settings.clone()),
                removed_volumes: Vec::new(),
                removed_pools: Vec::new(),
            };
        }
        let mut delta = Delta { from_version: version, to_version: map.version, ..Delta::default() };
        let first = (version + 1, RecordKey::Node(crate::core::ids::NodeId(0)));
        for (_, key) in self.versions.by_version.range(first..) {
            match key {
                RecordKey::Node(id) => delta.nodes.extend(map.nodes.get(id).cloned()),
                RecordKey::Disk(id) => delta.disks.extend(map.disks.get(id).cloned()),
                RecordKey::Pool(id) => delta.pools.extend(map.pools.get(id).cloned()),
                RecordKey::Volume(id) => delta.volumes.extend(map.volumes.get(id).cloned()),
                RecordKey::Pg(id) => delta.pgs.extend(map.pgs.get(id).cloned()),
                RecordKey::Settings => delta.settings = Some(map.settings.clone()),
                RecordKey::Job(_) => {}
            }
        }
        for (_, key) in self.versions.removed.iter().filter(|(v, _)| *v > version) {
            match key {
                RecordKey::Volume(id) => delta.removed_volumes.push(*id),
                RecordKey::Pool(id) => delta.removed_pools.push(*id),
                _ => {}
            }
        }
        delta
    }
}
