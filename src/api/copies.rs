//! Copies that run and jobs that want them, as JSON; see [`super::types`].

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::core::cluster::{JobState, ResyncClass};
use crate::core::ids::DiskId;

/// One running copy.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct SessionInfo {
    /// PG.
    pub pg: String,
    /// Source: the primary's disk.
    pub from: DiskId,
    /// Target.
    pub to: DiskId,
    /// Why.
    pub class: ResyncClass,
    /// Bytes to look at.
    pub bytes_total: u64,
    /// Compared or copied.
    pub bytes_done: u64,
    /// Travelled.
    pub bytes_sent: u64,
    /// What bounds it.
    pub limited_by: String,
    /// Set if it makes no progress although nothing holds it back.
    #[serde(default)]
    pub stalled: Option<StallInfo>,
}

/// A plan and what became of it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct JobInfo {
    /// Counts up over the cluster's life.
    pub id: u64,
    /// `running`, `paused`, `done`, `cancelled`, `superseded`.
    pub state: JobState,
    /// What made it necessary.
    pub reason: String,
    /// Who did that: `operator`, `coordinator`, a node's name.
    pub actor: String,
    /// Unix time, milliseconds.
    pub started_unix_ms: u64,
    /// Unix time, milliseconds; `null`: it hasn't ended.
    pub ended_unix_ms: Option<u64>,
    /// Moves planned.
    pub moves_total: u64,
    /// Copies that took their place.
    pub moves_done: u64,
    /// Moves that can't be made any more: the target was lost, or another copy came first.
    pub moves_failed: u64,
    /// Moves that the operator gave up.
    pub moves_cancelled: u64,
    /// Copies that run now.
    pub moves_active: u64,
    /// Bytes of the planned copies.
    pub bytes_total: u64,
    /// Of them, done: whole copies, and what the running ones have.
    pub bytes_done: u64,
    /// Drains and rebalances are held back until the topology changes or the job is resumed.
    pub holds_back: bool,
}

/// What a change of a job did.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct JobChanged {
    /// One sentence.
    pub message: String,
    /// As it is now.
    pub job: JobInfo,
}

/// A copy without progress.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct StallInfo {
    /// For how long.
    pub seconds: f64,
    /// The volume and the index of the chunk at which it is stuck, if it is one chunk.
    pub volume: Option<String>,
    /// See `volume`.
    pub chunk: Option<u32>,
    /// Why, as a clause.
    pub reason: String,
    /// What to do about it, as a clause.
    pub advice: String,
}

impl SessionInfo {
    /// One sentence for a copy that makes no progress.
    pub fn stall_sentence(&self) -> Option<String> {
        let s = self.stalled.as_ref()?;
        let at = match (&s.volume, s.chunk) {
            (Some(volume), Some(chunk)) => format!("chunk {chunk} of volume {volume}: "),
            _ => String::new(),
        };
        Some(format!(
            "The copy of PG {} to {} makes no progress since {:.0} s: {at}{}. What to do: {}.",
            self.pg, self.to, s.seconds, s.reason, s.advice
        ))
    }
}
