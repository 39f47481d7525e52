//! Messages of the lease endpoints (R7), which have a socket of their own, so that no queue of IO or resync delays them.

use prost::Message;

/// A lease renewal: the sender is primary of these PGs at these generations, and the receiver's disk a member (R7).
#[derive(Clone, PartialEq, Message)]
pub struct LeaseRequest {
    /// Counts up; echoed.
    #[prost(uint64, tag = "1")]
    pub n: u64,
    /// What the leases are for.
    #[prost(message, repeated, tag = "2")]
    pub entries: Vec<LeaseEntry>,
}

/// One PG in a [`LeaseRequest`] or [`LeaseGrant`].
#[derive(Clone, Copy, PartialEq, Message)]
pub struct LeaseEntry {
    /// PgId.
    #[prost(uint64, tag = "1")]
    pub pg: u64,
    /// Generation.
    #[prost(uint32, tag = "2")]
    pub epoch: u32,
    /// Generation.
    #[prost(uint64, tag = "3")]
    pub n: u64,
    /// The granting member's DiskId.
    #[prost(uint32, tag = "4")]
    pub member: u32,
    /// The primary's DiskId.
    #[prost(uint32, tag = "5")]
    pub primary: u32,
}

/// What of a [`LeaseRequest`] is granted, for the lease time from the moment at which it was sent.
#[derive(Clone, PartialEq, Message)]
pub struct LeaseGrant {
    /// Echo.
    #[prost(uint64, tag = "1")]
    pub n: u64,
    /// Granted.
    #[prost(message, repeated, tag = "2")]
    pub entries: Vec<LeaseEntry>,
}

/// Frame kinds on Lease links.
pub mod lease_kind {
    /// [`super::LeaseRequest`]
    pub const REQUEST: u16 = 0x0401;
    /// [`super::LeaseGrant`]
    pub const GRANT: u16 = 0x0402;
}
