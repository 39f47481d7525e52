//! A job: one frozen plan and what became of it. Its moves are planned anew after a restart; what is kept here is who
//! asked for it and why, how far it is, and what the operator wants of it.
//!
//! ```text
//!              pause                    every move done, or none wanted any more
//!   running ◀─────────▶ paused      running, paused ────────────────────────────▶ done
//!              resume               running, paused ── the operator ────────────▶ cancelled
//!                                   running, paused ── another topology's plan ─▶ superseded
//! ```
//!
//! Units: bytes, milliseconds of Unix time. Non-goals: the moves themselves (`core/manager/plan`).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::command::{Outcome, RecordKey, Refusal};
use super::state::{Record, Tx};

/// Jobs kept: what people look back on; some 200 bytes each.
pub const JOBS_MAX: usize = 100;

/// How a job stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// Its moves run or wait for slots.
    #[default]
    Running,
    /// Its moves wait for the operator.
    Paused,
    /// Every move was made.
    Done,
    /// The operator ended it.
    Cancelled,
    /// The topology changed: another job took what was still useful.
    Superseded,
}

impl JobState {
    /// All of them.
    pub const ALL: [JobState; 5] =
        [JobState::Running, JobState::Paused, JobState::Done, JobState::Cancelled, JobState::Superseded];

    /// Not ended.
    pub fn is_open(self) -> bool {
        matches!(self, JobState::Running | JobState::Paused)
    }

    /// The table of the diagram above; a state may stay.
    pub fn may_become(self, next: JobState) -> bool {
        self == next || self.is_open()
    }

    /// The name on the command line and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            JobState::Running => "running",
            JobState::Paused => "paused",
            JobState::Done => "done",
            JobState::Cancelled => "cancelled",
            JobState::Superseded => "superseded",
        }
    }
}

/// A job's record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Job {
    /// Counts up over the cluster's life, from 1.
    pub id: u64,
    /// What made it necessary.
    pub reason: String,
    /// Who did that, as the event says it: an operator and from where, a node, or `coordinator` where nobody did.
    pub actor: String,
    /// When it was planned.
    pub started_unix_ms: u64,
    /// When it ended; 0: it hasn't.
    pub ended_unix_ms: u64,
    /// Moves planned, over all plans of the job; copies given up without a successor count too.
    pub moves_total: u64,
    /// Copies that took their place.
    pub moves_done: u64,
    /// Moves that can't be made any more: the target was lost, or another copy came first.
    pub moves_failed: u64,
    /// Moves that the operator gave up.
    pub moves_cancelled: u64,
    /// Bytes of the planned copies.
    pub bytes_total: u64,
    /// Bytes of those done.
    pub bytes_done: u64,
    /// See [`JobState`].
    pub state: JobState,
    /// Names the topology that it was planned for: the same one gives no other job.
    pub topology: u64,
    /// The operator cancelled drains and rebalances: none is planned for this topology until it is asked for again.
    pub holds_back: bool,
}

impl Job {
    /// Moves that are neither made nor given up.
    pub fn moves_left(&self) -> u64 {
        self.moves_total.saturating_sub(self.moves_done + self.moves_failed + self.moves_cancelled)
    }
}

impl Tx<'_> {
    pub(super) fn put_job(&mut self, job: Job) -> Result<Outcome, Refusal> {
        let jobs = &self.map.jobs;
        match jobs.get(&job.id) {
            Some(old) if *old == job => return Ok(Outcome::Done),
            Some(old) if old.state.may_become(job.state) => {}
            Some(old) => return Err(Refusal::JobOver { id: job.id, state: old.state }),
            None => {
                let last = jobs.last_key_value().map_or(0, |(id, _)| *id);
                if job.id != last + 1 {
                    return Err(Refusal::JobOutOfOrder { id: job.id, last });
                }
                if let Some(open) = jobs.get(&last).filter(|j| j.state.is_open()) {
                    let now = job.started_unix_ms;
                    let state = if open.moves_left() == 0 { JobState::Done } else { JobState::Superseded };
                    self.write(Record::Job(Job { state, ended_unix_ms: now, ..open.clone() }));
                }
                let beyond = (jobs.len() + 1).saturating_sub(JOBS_MAX);
                let gone: Vec<u64> = jobs.keys().take(beyond).copied().collect();
                gone.into_iter().for_each(|id| self.remove(RecordKey::Job(id)));
            }
        }
        self.write(Record::Job(job));
        Ok(Outcome::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_that_has_ended_stays_so() {
        for from in JobState::ALL {
            for to in JobState::ALL {
                assert_eq!(from.may_become(to), from.is_open() || from == to, "{from:?} to {to:?}");
                let json = serde_json::to_string(&to).unwrap();
                assert_eq!(json, format!("{:?}", to.name()));
            }
        }
    }
}
