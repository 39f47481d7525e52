//! A job's record as it is stored.

use prost::Message;

use crate::core::cluster::{Job, JobState};

/// See [`Job`].
#[derive(Clone, PartialEq, Message)]
pub struct JobRecord {
    /// Id.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// What made it necessary.
    #[prost(string, tag = "2")]
    pub reason: String,
    /// Who did that.
    #[prost(string, tag = "3")]
    pub actor: String,
    /// Unix time, milliseconds.
    #[prost(uint64, tag = "4")]
    pub started_unix_ms: u64,
    /// Unix time, milliseconds; 0: it hasn't ended.
    #[prost(uint64, tag = "5")]
    pub ended_unix_ms: u64,
    /// Moves planned.
    #[prost(uint64, tag = "6")]
    pub moves_total: u64,
    /// Moves made.
    #[prost(uint64, tag = "7")]
    pub moves_done: u64,
    /// Moves that can't be made.
    #[prost(uint64, tag = "8")]
    pub moves_failed: u64,
    /// Moves given up.
    #[prost(uint64, tag = "9")]
    pub moves_cancelled: u64,
    /// Bytes planned.
    #[prost(uint64, tag = "10")]
    pub bytes_total: u64,
    /// Bytes of moves made.
    #[prost(uint64, tag = "11")]
    pub bytes_done: u64,
    /// 0 running, 1 paused, 2 done, 3 cancelled, 4 superseded.
    #[prost(uint32, tag = "12")]
    pub state: u32,
    /// Names the topology.
    #[prost(fixed64, tag = "13")]
    pub topology: u64,
    /// Drains and rebalances are held back.
    #[prost(bool, tag = "14")]
    pub holds_back: bool,
}

/// A job in a state that this release doesn't know.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("job {id} has the unknown state {state}")]
pub struct JobStateUnknown {
    /// Which job.
    pub id: u64,
    /// Its number.
    pub state: u32,
}

impl From<&Job> for JobRecord {
    fn from(j: &Job) -> Self {
        JobRecord {
            id: j.id,
            reason: j.reason.clone(),
            actor: j.actor.clone(),
            started_unix_ms: j.started_unix_ms,
            ended_unix_ms: j.ended_unix_ms,
            moves_total: j.moves_total,
            moves_done: j.moves_done,
            moves_failed: j.moves_failed,
            moves_cancelled: j.moves_cancelled,
            bytes_total: j.bytes_total,
            bytes_done: j.bytes_done,
            state: JobState::ALL.iter().position(|s| *s == j.state).map_or(0, |i| i as u32),
            topology: j.topology,
            holds_back: j.holds_back,
        }
    }
}

impl TryFrom<JobRecord> for Job {
    type Error = JobStateUnknown;
    fn try_from(j: JobRecord) -> Result<Self, JobStateUnknown> {
        let unknown = JobStateUnknown { id: j.id, state: j.state };
        Ok(Job {
            id: j.id,
            reason: j.reason,
            actor: j.actor,
            started_unix_ms: j.started_unix_ms,
            ended_unix_ms: j.ended_unix_ms,
            moves_total: j.moves_total,
            moves_done: j.moves_done,
            moves_failed: j.moves_failed,
            moves_cancelled: j.moves_cancelled,
            bytes_total: j.bytes_total,
            bytes_done: j.bytes_done,
            state: *JobState::ALL.get(j.state as usize).ok_or(unknown)?,
            topology: j.topology,
            holds_back: j.holds_back,
        })
    }
}
