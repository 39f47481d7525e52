//! Jobs: what becomes of plans, and what the operator wants of them.
//!
//! A plan that moves something is a job with a record in the map. The same topology planned again is the same job going
//! on: after a restart of the coordinator, which plans anew, or when a move was overtaken. Another topology makes another
//! job; copies that have begun and are still useful stay.
//!
//! *Pause* holds everything of the job back: nothing starts, and its learners copy nothing, though writes reach them. *Cancel*
//! gives up its drains and rebalances: half-made copies are dropped, and purged as old copies are. Until the topology changes,
//! or the operator asks, none is planned again; that stands in the record, so that a restart keeps it. Missing copies
//! are no matter of choice: a job's repairs go on, and one that only repairs can't be cancelled. To plan the same repair
//! again at once would merely throw away what was copied; to leave it would give data up without saying so.
//!
//! A copy beyond its pool's count that is given up counts as a move without bytes; *cancel* leaves it where it is.
//!
//! Invariants: at most one job is open, the last; every change of a record is durable before anybody sees an effect.

use super::plan::JobMove;
use super::{COORDINATOR, Manager};
use crate::core::cluster::command::{Command, Refusal};
use crate::core::cluster::{Job, JobState, Replica};
use crate::core::ids::PgId;
use crate::core::placement as place;
use crate::core::units::HumanBytes;

impl Manager {
    /// The planner is done.
    pub fn handle_planned(&mut self, mut plan: place::Plan) {
        let topology = self.planning.topology;
        let triggers = std::mem::take(&mut self.planning.triggers);
        let last = self.state.map().jobs.last_key_value().map(|(_, j)| j.clone()).unwrap_or_default();
        let same = last.id != 0 && last.topology == topology;
        let holds_back = same && last.holds_back;
        if holds_back {
            plan.moves.retain(|m| m.class.is_repair());
            plan.removals.clear();
        }
        let removals = plan.removals.len();
        let (moves, bytes) = ((plan.moves.len() + removals) as u64, plan.moves.iter().map(|m| m.bytes).sum::<u64>());
        let mut job = last;
        // Another topology: what was held back is decided anew, also if the old one comes back.
        job.holds_back &= same;
        if same && job.state.is_open() {
            // What the old moves came to is counted already.
            job.moves_total = job.moves_total - job.moves_left() + moves;
            job.bytes_total = job.bytes_done + bytes;
        } else if moves > 0 {
            let actors = triggers.iter().map(|(actor, _)| actor.as_str());
            job = Job {
                id: job.id + 1,
                reason: reason_of(&triggers),
                actor: actors.max_by_key(|a| *a != COORDINATOR).unwrap_or(COORDINATOR).to_owned(),
                started_unix_ms: self.unix_ms,
                moves_total: moves,
                bytes_total: bytes,
                topology,
                holds_back,
                ..Job::default()
            };
            let surplus = if removals > 0 { format!(", {removals} of them copies given up") } else { String::new() };
            let text = format!("Job {} ({}) has {moves} moves of {}{surplus}.", job.id, job.reason, HumanBytes(bytes));
            self.tell("plan", COORDINATOR, text);
        } else if job.id != 0 && job.state.is_open() {
            let state = if job.moves_left() == 0 { JobState::Done } else { JobState::Superseded };
            self.end(&mut job, state);
        }
        let (id, paused) = (job.id, job.state == JobState::Paused);
        if id != 0 {
            self.apply_quietly(Command::PutJob(Box::new(job)));
        }
        for drop in self.planning.handle_planned(self.state.map(), plan, id, paused) {
            self.apply_quietly(drop);
        }
        self.pgs_dirty = true;
        self.follow_job();
    }

    /// Brings the record up to date with the moves that ended, and the learners with what the operator wants.
    pub(super) fn follow_job(&mut self) {
        if !self.planning.is_known {
            return; // What is paused stays so until the moves are known again.
        }
        let ended = std::mem::take(&mut self.planning.job.ended);
        let record = self.state.map().jobs.get(&self.planning.job.id).filter(|j| j.state.is_open()).cloned();
        if let Some(mut job) = record {
            let before = job.clone();
            job.moves_done += ended.done;
            job.moves_failed += ended.failed;
            job.bytes_done += ended.bytes;
            if self.planning.job.is_empty() && !self.planning.is_pending() {
                let state = if job.moves_cancelled > 0 { JobState::Cancelled } else { JobState::Done };
                self.end(&mut job, state);
                self.planning.job.paused = false;
            }
            if job != before {
                self.apply_quietly(Command::PutJob(Box::new(job)));
            }
        }
        self.pause_learners();
    }

    fn end(&mut self, job: &mut Job, state: JobState) {
        (job.state, job.ended_unix_ms) = (state, self.unix_ms);
        let text = format!(
            "Job {} is {}: {} of {} moves were made, {} failed.",
            job.id,
            state.name(),
            job.moves_done,
            job.moves_total,
            job.moves_failed
        );
        self.tell("job-ended", COORDINATOR, text);
    }

    fn pause_learners(&mut self) {
        let job = &self.planning.job;
        let targets = if job.paused { self.planning.targets() } else { Default::default() };
        let mut commands = Vec::new();
        for config in self.state.map().pgs.values() {
            for learner in &config.learners {
                let (pg, replica) = (config.pg, learner.replica);
                let paused = targets.contains(&(pg, replica.disk));
                if learner.paused != paused {
                    commands.push(Command::PauseLearner { pg, replica, paused });
                }
            }
        }
        commands.into_iter().for_each(|c| self.apply_quietly(c));
    }

    /// The open job of that number.
    fn open_job(&self, id: u64) -> Result<Job, Refusal> {
        let job = self.state.map().jobs.get(&id).ok_or(Refusal::JobUnknown(id))?;
        if job.state.is_open() { Ok(job.clone()) } else { Err(Refusal::JobOver { id, state: job.state }) }
    }

    /// True if that changed anything.
    fn put_job(&mut self, actor: &str, job: Job) -> Result<bool, Refusal> {
        Ok(!self.apply(actor, Command::PutJob(Box::new(job)))?.changed.is_empty())
    }

    /// Holds a job back, or lets it go on. A cancelled one that holds plans back is asked for again: a new job follows.
    ///
    /// # Errors
    /// There is no such job, or it is over.
    pub fn pause_job(&mut self, id: u64, paused: bool, actor: &str) -> Result<(), Refusal> {
        let known = self.state.map().jobs.get(&id).ok_or(Refusal::JobUnknown(id))?.clone();
        if !paused && known.holds_back {
            let last = self.state.map().jobs.last_key_value().map(|(_, j)| j.clone()).unwrap_or_default();
            if !last.holds_back || last.topology != known.topology {
                return Err(Refusal::JobNotHeld { id });
            }
            self.planning.touch_for(self.now, actor, format!("job {id} was asked for again"));
            if self.put_job(actor, Job { holds_back: false, ..last })? {
                let text = format!("Job {id} is asked for again: what it held back is planned anew.");
                self.tell("job-resumed", actor, text);
            }
            return Ok(());
        }
        let job = self.open_job(id)?;
        let state = if paused { JobState::Paused } else { JobState::Running };
        if self.put_job(actor, Job { state, ..job })? {
            if paused {
                self.tell("job-paused", actor, format!("Job {id} is paused."));
            } else {
                self.tell("job-resumed", actor, format!("Job {id} goes on."));
            }
        }
        if self.planning.is_known && self.planning.job.id == id {
            self.planning.job.paused = paused;
            self.pause_learners();
        }
        self.pgs_dirty = true;
        Ok(())
    }

    /// Gives up a job's drains and rebalances; gives how many moves that were, and how many repairs go on.
    ///
    /// # Errors
    /// There is no such job, it is over, it only repairs, or its moves are not known yet.
    pub fn cancel_job(&mut self, id: u64, actor: &str) -> Result<(usize, usize), Refusal> {
        let mut job = self.open_job(id)?;
        if !self.planning.is_known || self.planning.job.id != id {
            return Err(Refusal::JobUnplanned { id });
        }
        let (repairs, others): (Vec<JobMove>, Vec<JobMove>) =
            self.planning.job.moves.iter().cloned().partition(|m| m.class.is_repair());
        let removals = self.planning.job.removals.len();
        if others.is_empty() && removals == 0 {
            return Err(if repairs.is_empty() {
                Refusal::JobUnplanned { id }
            } else {
                Refusal::JobRepairs { id, moves: repairs.len() }
            });
        }
        let counts = (others.len() + removals, repairs.len());
        let rest = if counts.1 > 0 { format!("; {} repairs go on", counts.1) } else { String::new() };
        let text = format!("Job {id} is cancelled: {} moves are given up{rest}.", counts.0);
        job.moves_cancelled += counts.0 as u64;
        job.holds_back = true;
        if repairs.is_empty() {
            (job.state, job.ended_unix_ms) = (JobState::Cancelled, self.unix_ms);
        }
        if self.put_job(actor, job)? {
            self.tell("job-cancelled", actor, text);
        }
        self.planning.job.moves = repairs;
        self.planning.job.removals.clear();
        let mut drops: Vec<(PgId, Replica)> = Vec::new();
        for config in self.state.map().pgs.values() {
            let by_plan = config.learners.iter().filter(|l| !l.class.is_repair());
            drops.extend(by_plan.map(|l| (config.pg, l.replica)));
        }
        drops.into_iter().for_each(|(pg, replica)| self.apply_quietly(Command::DropLearner { pg, replica }));
        self.pgs_dirty = true;
        Ok(counts)
    }
}

fn reason_of(triggers: &[(String, String)]) -> String {
    let all: Vec<&str> = triggers.iter().map(|(_, what)| what.as_str()).collect();
    if all.is_empty() { "nodes have registered".to_owned() } else { all.join("; ") }
}

/// Names what a plan's target depends on beside today's placement: two inputs of the same name give the same job. A disk
/// that merely doesn't answer, or is full, is there all the same.
pub fn topology_of(input: &place::Input) -> u64 {
    use place::DiskState as S;
    let by_release =
        input.cohort.is_some() || input.pools.iter().any(|p| p.failure_domain == place::FailureDomain::Release);
    let mut disks: Vec<&place::DiskInfo> = input.topology.disks.iter().collect();
    disks.sort_by_key(|d| d.id);
    let mut hasher = blake3::Hasher::new();
    // Every text with its length, so that none runs into the next.
    let mut add = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    for d in disks {
        let standing: u8 = match d.state {
            S::Up | S::Down | S::Full => 0,
            S::Draining => 1,
            S::Maintenance => 2,
            S::Failed | S::Lost => 3,
        };
        add(&d.id.0.to_le_bytes());
        add(&d.node.0.to_le_bytes());
        add(&d.capacity_bytes.to_le_bytes());
        add(&[standing]);
        [&d.zone, &d.rack, &d.class].into_iter().for_each(|text| add(text.as_bytes()));
        if by_release {
            add(d.release.as_bytes());
        }
    }
    let mut pools: Vec<&place::PoolSpec> = input.pools.iter().collect();
    pools.sort_by_key(|p| p.id);
    for p in pools {
        [p.id.0, p.replicas, p.pg_count].into_iter().for_each(|n| add(&n.to_le_bytes()));
        add(p.class.as_deref().unwrap_or_default().as_bytes());
        add(&[p.failure_domain as u8]);
    }
    let hash = hasher.finalize();
    u64::from_le_bytes(hash.as_bytes()[..8].try_into().unwrap_or_default())
}

#[cfg(test)]
#[path = "jobs_tests.rs"]
mod tests;
