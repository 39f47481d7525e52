//! What is seen of a run: rows of the timeline, plans, and what was told against what happened.

use super::engine::Run;
use super::report::{Actual, Bytes, Ended, JobLog, Pgs, Report, Row, Told};
use crate::core::ids::{DiskId, NodeId};
use crate::core::placement::{Plan, eta_of};

/// A row at each of so many equal parts of a plan's bytes.
const LOOKS: u64 = 20;
/// An ETA is held against what follows when this part of the bytes is there.
const TOLD_AT: f64 = 0.10;
/// The stragglers: the last part of the bytes.
const LAST: f64 = 0.02;

/// The plan that runs.
#[derive(Default)]
struct Open {
    log: JobLog,
    bytes: f64,
    repair_bytes: f64,
    looks: u64,
    last_begins: Option<f64>,
    repaired_at: Option<f64>,
}

/// Takes notes.
#[derive(Default)]
pub(super) struct Observer {
    rows: Vec<Row>,
    jobs: Vec<JobLog>,
    open: Option<Open>,
    /// A plan that is noted once its first moves run.
    announce: Option<String>,
    /// Bytes copied under closed plans.
    copied: f64,
    /// Moments at which copies began to lack (false) and at which none did (true).
    redundant: Vec<(f64, bool)>,
    /// Moments at which nothing was left to do.
    balanced: Vec<f64>,
}

fn copied(run: &Run, repairs_only: bool) -> f64 {
    let counted = run.copies.iter().filter(|c| !repairs_only || c.class.is_repair());
    counted.map(|c| c.bytes as f64 - c.left).sum()
}

impl Observer {
    /// A row for an event.
    pub fn note(&mut self, run: &Run, event: &str) {
        self.watch(run);
        let same = self.rows.pop_if(|r| r.at_seconds == run.now);
        let mut events = same.map_or_else(Vec::new, |r| r.events);
        events.push(event.to_owned());
        let row = self.row(run, events);
        self.rows.push(row);
    }

    fn watch(&mut self, run: &Run) {
        let now = run.state.short == 0;
        if self.redundant.last().is_none_or(|(_, was)| *was != now) {
            self.redundant.push((run.now, now));
        }
    }

    /// The plan's copies are about to be replaced by those of another one.
    pub fn carry(&mut self, run: &Run) {
        self.close_job(run, false);
        self.copied += copied(run, false);
    }

    /// A new plan.
    pub fn open_job(&mut self, run: &Run, plan: &Plan) {
        let already = copied(run, false);
        self.copied -= already;
        if plan.moves.is_empty() {
            return;
        }
        let log = JobLog {
            id: self.jobs.len() as u64 + 1,
            at_seconds: run.now,
            moves: plan.totals.moves,
            bytes: plan.totals.bytes,
            lower_bound_moves: plan.totals.lower_bound_moves,
            ..JobLog::default()
        };
        let sum = |repairs_only: bool| {
            let counted = run.copies.iter().filter(|c| !repairs_only || c.class.is_repair());
            counted.map(|c| c.bytes as f64).sum::<f64>()
        };
        let (bytes, repairs) = (sum(false), sum(true));
        let looks = (already / bytes.max(1.0) * LOOKS as f64) as u64;
        self.open = Some(Open { log, bytes, repair_bytes: repairs, looks, ..Open::default() });
        self.announce = Some(format!("plan {}: {} moves", self.jobs.len() + 1, plan.totals.moves));
    }

    /// The plan is done, or another one takes over.
    pub fn close_job(&mut self, run: &Run, done: bool) {
        let Some(mut open) = self.open.take() else { return };
        if done && run.state.short == 0 {
            self.balanced.push(run.now);
        }
        let log = &mut open.log;
        if done {
            log.done_at_seconds = Some(run.now);
            log.last_2_percent_seconds = open.last_begins.map(|at| run.now - at);
            log.told_balanced.iter_mut().for_each(|t| t.actual = Some(run.now - t.at_seconds));
        }
        if let Some(at) = open.repaired_at {
            log.told_redundant.iter_mut().for_each(|t| t.actual = Some(at - t.at_seconds));
        }
        let id = log.id;
        self.jobs.push(open.log);
        if done {
            self.note(run, &format!("plan {id} is done"));
        }
    }

    /// Looks at the run after each step.
    pub fn look(&mut self, run: &Run) {
        self.watch(run);
        if let Some(text) = self.announce.take() {
            self.note(run, &text);
        }
        let Some(open) = &mut self.open else { return };
        let (done, repaired) = (copied(run, false), copied(run, true));
        let eta = |at: f64| (eta_of(&run.copies_left(), &|d| node_of(run, d), &run.state.rates), at);
        if open.log.told_balanced.is_none() && done >= TOLD_AT * open.bytes && done < open.bytes {
            let (eta, at_seconds) = eta(run.now);
            open.log.told_balanced = Some(Told { at_seconds, likely: eta.balanced.likely, actual: None });
        }
        if open.log.told_redundant.is_none() && repaired >= TOLD_AT * open.repair_bytes && repaired < open.repair_bytes
        {
            let (eta, at_seconds) = eta(run.now);
            open.log.told_redundant = Some(Told { at_seconds, likely: eta.redundant.likely, actual: None });
        }
        if open.repaired_at.is_none() && open.repair_bytes > 0.0 && repaired >= open.repair_bytes {
            open.repaired_at = Some(run.now);
        }
        if open.last_begins.is_none() && done >= (1.0 - LAST) * open.bytes {
            open.last_begins = Some(run.now);
        }
        let looks = (done / open.bytes.max(1.0) * LOOKS as f64 + 1e-9) as u64;
        if looks > open.looks && done < open.bytes {
            open.looks = looks;
            if self.rows.last().is_none_or(|r| r.at_seconds < run.now) {
                let row = self.row(run, Vec::new());
                self.rows.push(row);
            }
        }
    }

    /// When the next look is due: at the next part of the bytes, or the last ones.
    pub fn next_look(&self, run: &Run) -> Option<f64> {
        let open = self.open.as_ref()?;
        let (done, rate) = (copied(run, false), run.rate());
        let mut parts = vec![(open.looks + 1) as f64 / LOOKS as f64];
        if open.last_begins.is_none() {
            parts.push(1.0 - LAST);
        }
        let next = parts.into_iter().map(|p| p * open.bytes).filter(|b| *b > done).fold(f64::INFINITY, f64::min);
        // A byte more, so that the part is reached in spite of rounding.
        (next.is_finite() && next < open.bytes && rate > 0.0).then(|| run.now + (next - done + 1.0) / rate)
    }

    fn row(&self, run: &Run, events: Vec<String>) -> Row {
        let state = &run.state;
        let mut pgs = Pgs::default();
        let mut bytes = Bytes::default();
        let mut moving = std::collections::HashSet::new();
        for &i in run.running.iter().chain(&run.waiting) {
            let c = &run.copies[i];
            bytes.left += c.left as u64;
            if !c.class.is_repair() {
                bytes.misplaced += c.left as u64;
                moving.insert(c.row);
            }
        }
        for row in 0..state.wanted.len() {
            let (live, (wanted, least)) = (state.live(row), state.wanted[row]);
            let size = state.row(row).bytes;
            if live < wanted {
                *(if live < least { &mut pgs.unavailable } else { &mut pgs.degraded }) += 1;
                bytes.degraded = bytes.degraded.saturating_add(size.saturating_mul((wanted - live) as u64));
                if live == 1 && wanted > 1 {
                    pgs.at_risk += 1;
                    bytes.at_risk = bytes.at_risk.saturating_add(size);
                }
            } else {
                pgs.clean += 1;
                pgs.misplaced += u64::from(moving.contains(&row));
            }
        }
        bytes.done = (self.copied + copied(run, false)).max(0.0) as u64;
        let eta = self.open.as_ref().map(|_| eta_of(&run.copies_left(), &|d| node_of(run, d), &state.rates));
        Row {
            at_seconds: run.now,
            events,
            pgs,
            bytes,
            running: run.running.len() as u64,
            waiting: run.waiting.len() as u64,
            rate_bytes_per_sec: run.rate() as u64,
            eta_seconds: eta,
            actual_seconds: Actual::default(),
        }
    }

    /// The report.
    pub fn finish(mut self, run: &Run, ended: Ended, plan: &Plan, wasted: f64) -> Report {
        if self.rows.last().is_none_or(|r| r.at_seconds < run.now) {
            let row = self.row(run, vec!["end".to_owned()]);
            self.rows.push(row);
        }
        let is_balanced = ended == Ended::Balanced;
        if is_balanced && self.balanced.is_empty() {
            self.balanced.push(0.0);
        }
        let last_balanced = self.balanced.last().copied().filter(|_| is_balanced);
        let last_redundant = self.redundant.last().filter(|(_, now)| *now).map(|(at, _)| *at);
        for row in &mut self.rows {
            let from = row.at_seconds;
            let was = self.redundant.iter().rev().find(|(at, _)| *at <= from);
            let then = self.redundant.iter().find(|(at, now)| *at > from && *now).map(|(at, _)| at - from);
            row.actual_seconds = Actual {
                redundant: if was.is_some_and(|(_, now)| *now) { Some(0.0) } else { then },
                balanced: self.balanced.iter().find(|at| **at >= from).map(|at| at - from),
            };
        }
        let lost = |row: &usize| run.state.live(*row) == 0 && run.state.wanted[*row].0 > 0;
        Report {
            ended,
            ended_at_seconds: run.now,
            redundant_at_seconds: last_redundant,
            balanced_at_seconds: last_balanced,
            bytes_copied: self.rows.last().map_or(0, |r| r.bytes.done),
            bytes_wasted: wasted as u64,
            pgs_lost: (0..run.state.wanted.len()).filter(lost).count() as u64,
            missing_capacity_bytes: plan.missing_capacity_bytes,
            missing_capacity: plan.missing_capacity.iter().map(|m| run.state.map.missing(m)).collect(),
            rejected: plan.rejected.clone(),
            timeline: self.rows,
            jobs: self.jobs,
        }
    }
}

fn node_of(run: &Run, disk: DiskId) -> Option<NodeId> {
    run.state.disk_at.get(&disk).map(|&d| NodeId(run.state.node_of[d] as u32))
}
