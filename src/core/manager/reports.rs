//! What nodes say to the coordinator, as the core sees it; `coordinator/control.rs` makes it from messages.

use std::collections::BTreeSet;

use crate::core::cluster::command::Change;
use crate::core::ids::{BootId, DiskId, Generation, NodeId, PgId};

/// A disk's copy of a PG.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copy {
    /// Highest generation that it has accepted, as far as known.
    pub generation: Generation,
    /// May be a source.
    pub complete: bool,
    /// For R2.
    pub flush_mark: u64,
}

/// A node presents itself, with what its disks know.
#[derive(Clone, Debug, Default)]
pub struct Registration {
    /// Who.
    pub node: NodeId,
    /// Random number of the process.
    pub process: u64,
    /// Operating system's number of it.
    pub pid: u32,
    /// Its disks.
    pub disks: Vec<RegisteredDisk>,
}

/// A disk in a [`Registration`].
#[derive(Clone, Debug, Default)]
pub struct RegisteredDisk {
    /// Which.
    pub disk: DiskId,
    /// R1.
    pub boot: BootId,
    /// Recorded as failed (R15).
    pub failed: bool,
    /// Bytes in used slots.
    pub used_bytes: u64,
    /// Bytes that slots can hold.
    pub capacity_bytes: u64,
    /// Class.
    pub class: String,
    /// For people.
    pub path: String,
    /// What it holds, as its PG table says (R21).
    pub copies: Vec<(PgId, Copy)>,
}

/// A node's figures of each second, and at once when it starts or ends to serve a PG.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Its disks.
    pub disks: Vec<ReportedDisk>,
    /// Bytes of the PGs that it leads.
    pub pg_bytes: Vec<(PgId, u64)>,
    /// Copies that are no members: learners, and old ones; and members that have just accepted a configuration.
    pub copies: Vec<(DiskId, PgId, Copy)>,
    /// PGs that it serves as primary.
    pub serving: BTreeSet<PgId>,
    /// Disks that its primaries wait for: PGs, and milliseconds of the longest wait.
    pub lagging: Vec<(DiskId, u32, u64)>,
    /// Copies that it makes as primary.
    pub copying: Vec<Copying>,
}

/// A copy that is being made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copying {
    /// The PG.
    pub pg: PgId,
    /// The disk that it comes to.
    pub to: DiskId,
    /// Bytes compared or copied so far.
    pub bytes_done: u64,
    /// All of them.
    pub bytes_total: u64,
    /// The operator holds it back.
    pub paused: bool,
}

/// A disk in a [`Report`].
#[derive(Clone, Copy, Debug, Default)]
pub struct ReportedDisk {
    /// Which.
    pub disk: DiskId,
    /// Bytes in used slots.
    pub used_bytes: u64,
    /// Bytes that slots can hold.
    pub capacity_bytes: u64,
    /// Not to be used (R15).
    pub failed: bool,
    /// For how long it has not answered an operation; 0: it works (R7).
    pub hung_ms: u64,
}

/// A primary's proposal as it came; the change is `None` if this release doesn't know it.
#[derive(Clone, Debug)]
pub struct Proposed {
    /// Random, nonzero: the outcome is read by it.
    pub id: u64,
    /// Which PG.
    pub pg: PgId,
    /// The generation that the proposer serves.
    pub base: Generation,
    /// What.
    pub change: Option<Change>,
    /// Why, for the event log.
    pub reason: String,
}
