//! Newtypes for everything that has an identity.
//!
//! Invariants: ids are never reused (R4); zero is never a valid id, so that a forgotten protobuf field is
//! noticed at once.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

macro_rules! numeric_id {
    ($(#[$doc:meta])* $name:ident, $inner:ty, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize, JsonSchema)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = ParseId;
            /// Takes the number with or without its prefix.
            fn from_str(s: &str) -> Result<Self, ParseId> {
                let digits = s.strip_prefix($prefix).unwrap_or(s);
                digits.parse().map($name).map_err(|_| ParseId { what: stringify!($name), text: s.to_owned() })
            }
        }
    };
}

numeric_id!(
    /// One `evenkeel node` process on one host.
    NodeId, u32, "n");
numeric_id!(
    /// One disk: the unit of placement.
    DiskId, u32, "d");
numeric_id!(
    /// A pool of placement groups with one replication rule.
    PoolId, u32, "p");
numeric_id!(
    /// A VM's disk.
    VolumeId, u64, "v");

/// A text that is not an id.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{text:?} is not a valid {what}")]
pub struct ParseId {
    /// The type that was asked for.
    pub what: &'static str,
    /// The text as given.
    pub text: String,
}

/// A cluster's identity, made at `init`; 16 random bytes, shown as 32 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ClusterId(pub [u8; 16]);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ClusterId {
    type Err = ParseId;
    fn from_str(s: &str) -> Result<Self, ParseId> {
        let mut bytes = [0; 16];
        hex::decode_to_slice(s, &mut bytes).map_err(|_| ParseId { what: "ClusterId", text: s.to_owned() })?;
        Ok(ClusterId(bytes))
    }
}

impl Serialize for ClusterId {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ClusterId {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A placement group: the unit of replication and of movement.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct PgId {
    /// The pool that it belongs to.
    pub pool: PoolId,
    /// Its index within the pool, from 0.
    pub index: u32,
}

impl PgId {
    /// One integer, for wire and disk: pool in the high half.
    pub fn to_u64(self) -> u64 {
        u64::from(self.pool.0) << 32 | u64::from(self.index)
    }
    /// The inverse of [`PgId::to_u64`].
    pub fn from_u64(v: u64) -> Self {
        PgId { pool: PoolId((v >> 32) as u32), index: v as u32 }
    }
}

impl fmt::Display for PgId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.pool.0, self.index)
    }
}

impl FromStr for PgId {
    type Err = ParseId;
    fn from_str(s: &str) -> Result<Self, ParseId> {
        let err = || ParseId { what: "PgId (POOL.INDEX, as in 1.17)", text: s.to_owned() };
        let (pool, index) = s.split_once('.').ok_or_else(err)?;
        Ok(PgId { pool: PoolId(pool.parse().map_err(|_| err())?), index: index.parse().map_err(|_| err())? })
    }
}

/// A chunk of a volume: `index` counts 4 MiB pieces from the volume's start.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct ChunkId {
    /// The volume.
    pub volume: VolumeId,
    /// The chunk's position in it, in units of [`crate::core::units::CHUNK_BYTES`].
    pub index: u32,
}

impl fmt::Display for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.volume, self.index)
    }
}

/// A configuration's generation: (map epoch, n), compared in that order (R4).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Generation {
    /// The epoch of the cluster map: it rises at each import, restore or rebuild.
    pub epoch: u32,
    /// Counts the PG's configurations within the epoch.
    pub n: u64,
}

impl Generation {
    /// The next configuration in the same epoch.
    pub fn next(self) -> Self {
        Generation { epoch: self.epoch, n: self.n + 1 }
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.epoch, self.n)
    }
}

/// A random number that a process keeps from one unclean start to the next (R1). A clean stop may keep it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct BootId(pub u64);

impl fmt::Display for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_round_trip_through_text() {
        assert_eq!("n7".parse(), Ok(NodeId(7)));
        assert_eq!("7".parse(), Ok(NodeId(7)));
        assert!("x7".parse::<NodeId>().is_err());
        assert_eq!("1.17".parse(), Ok(PgId { pool: PoolId(1), index: 17 }));
        let pg = PgId { pool: PoolId(3), index: u32::MAX };
        assert_eq!(PgId::from_u64(pg.to_u64()), pg);
        let id = ClusterId([0xab; 16]);
        assert_eq!(id.to_string().parse(), Ok(id));
    }

    #[test]
    fn a_higher_epoch_beats_any_count() {
        assert!(Generation { epoch: 2, n: 0 } > Generation { epoch: 1, n: u64::MAX });
    }
}
