//! The record of a PG in a disk's table (R21): what a replica must know of itself after any restart.
//!
//! Fields are never renumbered: disks outlive releases.

use prost::Message;

use super::map;
use super::replica::{Fence, Range};
use crate::core::ids::VolumeId;
use crate::core::replica::PgState;

/// Stored in a disk's PG table (R21).
#[derive(Clone, PartialEq, Message)]
pub struct StoredPg {
    /// Configuration.
    #[prost(message, optional, tag = "1")]
    pub config: Option<map::PgConfig>,
    #[prost(message, repeated, tag = "2")]
    fences: Vec<Fence>,
    /// See [`PgState::last_sequence`].
    #[prost(uint64, tag = "3")]
    pub last_sequence: u64,
    #[prost(message, repeated, tag = "4")]
    uncommitted: Vec<Range>,
    /// Records of the volumes that use the PG, so that the map can be rebuilt.
    #[prost(message, repeated, tag = "5")]
    pub volumes: Vec<map::Volume>,
    /// See [`PgState::unsure_all`].
    #[prost(bool, tag = "6")]
    pub unsure_all: bool,
}

impl StoredPg {
    /// The stored form of a replica's state.
    pub fn new(state: &PgState) -> Self {
        StoredPg {
            config: Some((&state.config).into()),
            fences: state.fences.iter().map(|(v, i)| Fence { volume: v.0, incarnation: *i }).collect(),
            last_sequence: state.last_sequence,
            uncommitted: state.uncommitted.iter().map(Range::of).collect(),
            volumes: Vec::new(),
            unsure_all: state.unsure_all,
        }
    }

    /// The replica's state; `None` if the record has no configuration that can be taken.
    pub fn into_state(self, complete: bool) -> Option<PgState> {
        Some(PgState {
            config: self.config?.try_into().ok()?,
            complete,
            fences: self.fences.iter().map(|f| (VolumeId(f.volume), f.incarnation)).collect(),
            last_sequence: self.last_sequence,
            uncommitted: self.uncommitted.iter().filter_map(Range::checked).collect(),
            unsure_all: self.unsure_all,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::cluster::{PgConfig, Replica};
    use crate::core::ids::{BootId, ChunkId, DiskId, Generation, PgId, PoolId};

    /// A record that a disk can't store would cost the PG its replica there.
    #[test]
    fn the_longest_record_has_room_on_a_disk() {
        use crate::core::replica::RECORD_RANGES_MAX;
        let chunk = |i: usize| ChunkId { volume: VolumeId(1 << 34), index: u32::MAX - i as u32 };
        let state = PgState {
            config: PgConfig {
                pg: PgId { pool: PoolId(1), index: 2 },
                generation: Generation { epoch: 1, n: 9 },
                durability_epoch: 2,
                members: vec![Replica { disk: DiskId(4), boot: BootId(1) }],
                learners: vec![],
                last_proposal: 0,
                forced: true,
                members_min: 0,
            },
            complete: true,
            fences: (0..200).map(|v| (VolumeId((1 << 34) + v), 1 << 34)).collect(),
            last_sequence: u64::MAX,
            uncommitted: (0..RECORD_RANGES_MAX).map(|i| (chunk(i), 700, 300)).collect(),
            unsure_all: true,
        };
        let record = StoredPg::new(&state);
        let bytes = record.encode_to_vec();
        assert!(bytes.len() <= 30 << 10, "{} bytes", bytes.len());
        let read = StoredPg::decode(bytes.as_slice()).unwrap().into_state(true).unwrap();
        assert_eq!(read, state);
    }
}
