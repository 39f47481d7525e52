//! Jobs as the admin API shows and changes them; what they are is in `core/manager/jobs`.

use super::admin::json;
use super::owner::Owner;
use crate::api::calls::{Answer, CallFailed, JobChange};
use crate::api::types::{JobChanged, JobInfo, SessionInfo};
use crate::core::cluster::command::Refusal;
use crate::core::cluster::{Job, JobState};

impl Owner {
    /// The job that runs or is paused.
    pub(super) fn current_job(&self) -> Option<&Job> {
        self.manager.state.map().jobs.last_key_value().map(|(_, j)| j).filter(|j| j.state.is_open())
    }

    /// Bytes of the current job's copies that took their place.
    pub(super) fn job_bytes_done(&self) -> u64 {
        self.current_job().map_or(0, |j| j.bytes_done)
    }

    /// Says what an operator holds back.
    pub(super) fn job_warning(&self) -> Option<String> {
        let (id, job) = self.manager.state.map().jobs.last_key_value()?;
        if job.state == JobState::Paused {
            return Some(format!("Job {id} is paused: `evenkeel resync resume --job {id}` lets it go on."));
        }
        job.holds_back.then(|| {
            format!(
                "Job {id} was cancelled: what it would have moved stays where it is until the topology changes or \
                 `evenkeel resync resume --job {id}` asks for it again."
            )
        })
    }

    fn job_info(&self, job: &Job, sessions: &[SessionInfo]) -> JobInfo {
        let is_current = self.current_job().is_some_and(|j| j.id == job.id);
        let targets = if is_current { self.manager.planning.targets() } else { Default::default() };
        let is_its = |s: &&SessionInfo| s.pg.parse().is_ok_and(|pg| targets.contains(&(pg, s.to)));
        let running = || sessions.iter().filter(is_its);
        let last = self.manager.state.map().jobs.last_key_value().map(|(_, j)| j);
        let holds_back = job.holds_back && last.is_some_and(|l| l.holds_back && l.topology == job.topology);
        let bytes_done = job.bytes_done + running().map(|s| s.bytes_done).sum::<u64>();
        JobInfo {
            id: job.id,
            state: job.state,
            reason: job.reason.clone(),
            actor: job.actor.clone(),
            started_unix_ms: job.started_unix_ms,
            ended_unix_ms: (!job.state.is_open()).then_some(job.ended_unix_ms),
            moves_total: job.moves_total,
            moves_done: job.moves_done,
            moves_failed: job.moves_failed,
            moves_cancelled: job.moves_cancelled,
            moves_active: running().count() as u64,
            bytes_total: job.bytes_total.max(bytes_done),
            bytes_done,
            holds_back,
        }
    }

    /// `GET /v1/jobs`, newest first.
    pub(super) fn job_infos(&self) -> Vec<JobInfo> {
        let sessions = self.sessions();
        self.manager.state.map().jobs.values().rev().map(|j| self.job_info(j, &sessions)).collect()
    }

    /// `GET /v1/jobs/{id}`.
    pub(super) fn job(&self, id: &str) -> Answer {
        json(&self.job_info_of(job_id(id)?)?)
    }

    fn job_info_of(&self, id: u64) -> Result<JobInfo, CallFailed> {
        let job = self.manager.state.map().jobs.get(&id).ok_or(Refusal::JobUnknown(id))?;
        Ok(self.job_info(job, &self.sessions()))
    }

    /// `POST /v1/jobs/{id}/…`.
    pub(super) fn change_job(&mut self, id: &str, change: JobChange) -> Answer {
        let id = job_id(id)?;
        let message = match change {
            JobChange::Pause => {
                self.manager.pause_job(id, true, &self.asker)?;
                format!("job {id} is paused: nothing of it starts, and what runs is held back")
            }
            JobChange::Resume => {
                self.manager.pause_job(id, false, &self.asker)?;
                match self.manager.planning.is_pending() {
                    true => format!("job {id}: what was held back is planned anew"),
                    false => format!("job {id} goes on"),
                }
            }
            JobChange::Cancel => {
                let (moves, repairs) = self.manager.cancel_job(id, &self.asker)?;
                let rest = match repairs {
                    0 => String::new(),
                    n => format!("; {n} repairs go on, as copies are missing without them"),
                };
                format!(
                    "job {id} is cancelled: {moves} moves are given up, half-made copies are removed{rest}; none of \
                     them is planned again until the topology changes or the job is resumed"
                )
            }
        };
        json(&JobChanged { message, job: self.job_info_of(id)? })
    }
}

fn job_id(text: &str) -> Result<u64, CallFailed> {
    let wrong =
        || CallFailed::new(400, format!("{text:?} is no job: write its number, as `evenkeel resync jobs` shows it"));
    text.parse().map_err(|_| wrong())
}
