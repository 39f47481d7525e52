//! Health: what isn't well, in sentences that say what to do.

use std::collections::BTreeSet;

use super::owner::Owner;
use super::survey::Survey;
use crate::api::problems::{Problem, ProblemKind};
use crate::api::types::SessionInfo;
use crate::core::ids::DiskId;
use crate::core::manager::force::disk_on_node;
use crate::core::manager::plan::NEAR_FULL_RATIO;
use crate::core::units::HumanBytes;

/// Failure domains without room that health names.
const MISSING_SHOWN: usize = 5;
/// Stalled copies that health names.
const STALLS_SHOWN: usize = 5;

impl Owner {
    /// `ok`, `warn` or `error`, and why: worst first, causes before what follows from them.
    pub(super) fn health(&self, survey: &Survey, sessions: &[SessionInfo]) -> (String, Vec<Problem>) {
        let (map, pgs) = (self.manager.state.map(), &survey.counts);
        let mut problems = Vec::new();
        let mut add = |kind: ProblemKind, says: String| problems.push(Problem { kind, says });
        if let Some(refusal) = self.manager.outdated() {
            add(ProblemKind::MapOutdated, format!("No change is taken: {refusal}."));
        }
        let unavailable = pgs.unavailable - survey.taking_over;
        if unavailable > 0 {
            let example = survey.unavailable.as_ref().map_or_else(String::new, |(pg, why)| format!(" PG {pg}: {why}."));
            add(ProblemKind::Unavailable, format!("{unavailable} placement groups are not served.{example}"));
        }
        for disk in map.disks.values() {
            let (id, node) = (disk.id, self.node_name(disk.node));
            let percent = (self.fill_of(disk.id) * 100.0) as u32;
            match self.disk_state(disk) {
                "failed" => add(
                    ProblemKind::DiskFailed,
                    format!("Disk {id} of node {node} has failed: replace it, then remove its node or add a new disk."),
                ),
                "full" => add(
                    ProblemKind::DiskFull,
                    format!(
                        "Disk {id} of node {node} is full ({percent} %): writes to it wait until you delete data or add a node."
                    ),
                ),
                "removed" => {}
                _ if self.fill_of(disk.id) >= NEAR_FULL_RATIO => add(
                    ProblemKind::DiskNearFull,
                    format!("Disk {id} of node {node} is {percent} % full: add capacity or delete data."),
                ),
                _ => {}
            }
        }
        self.slow_disks(&mut add);
        for (node, figures) in &self.figures {
            let full: BTreeSet<DiskId> = figures.last.1.full_disks.iter().map(|d| DiskId(*d)).collect();
            for disk in full {
                add(
                    ProblemKind::WritesWaitForSpace,
                    format!(
                        "Writes wait for space on disk {disk} (as node {} says): delete data or add a node.",
                        self.node_name(*node)
                    ),
                );
            }
        }
        let missing = self.missing_capacity();
        if !missing.is_empty() {
            let all: Vec<String> = missing.iter().take(MISSING_SHOWN).map(ToString::to_string).collect();
            let more = missing.len().saturating_sub(MISSING_SHOWN);
            let more = if more > 0 { format!(", and in {more} more places") } else { String::new() };
            add(
                ProblemKind::MissingCapacity,
                format!(
                    "There is no room for copies: {}{more} are missing below the backfill limit. Add disks there.",
                    all.join(", ")
                ),
            );
        }
        for node in map.nodes.values() {
            let name = &node.name;
            match self.node_state(node) {
                "down" => {
                    add(ProblemKind::NodeDown, format!("Node {name} does not answer: start it, or remove it for good."))
                }
                "suspect" => add(
                    ProblemKind::NodeSuspect,
                    format!("Node {name} misses heartbeats: look at its load and network."),
                ),
                "maintenance" => add(
                    ProblemKind::NodeInMaintenance,
                    format!("Node {name} is in maintenance: end it when it is done."),
                ),
                _ => {}
            }
        }
        let forced: Vec<String> = survey.forced.iter().map(ToString::to_string).collect();
        if !forced.is_empty() {
            add(
                ProblemKind::ForcePromoted,
                format!(
                    "PG {} was force-promoted and has fewer copies than its pool's minimum: give it disks to be copied to.",
                    forced[..forced.len().min(8)].join(", ")
                ),
            );
        }
        let stalls = sessions.iter().filter_map(SessionInfo::stall_sentence);
        stalls.take(STALLS_SHOWN).for_each(|says| add(ProblemKind::ResyncStalled, says));
        if pgs.degraded > 0 {
            add(
                ProblemKind::Degraded,
                format!(
                    "{} placement groups have fewer copies than wanted: they are repaired when their nodes return, or elsewhere after the grace.",
                    pgs.degraded
                ),
            );
        }
        if survey.taking_over > 0 {
            add(
                ProblemKind::TakesOver,
                format!("{} placement groups change their primary: IO to them waits for a moment.", survey.taking_over),
            );
        }
        for (disk, pace, median) in self.manager.runtime.pace.slow() {
            add(
                ProblemKind::CopiesSlow,
                format!(
                    "Disk {} takes copies at {}/s, others at {}/s: it gets one at a time; look at the disk, its network and its guests.",
                    disk_on_node(map, disk),
                    HumanBytes(pace),
                    HumanBytes(median)
                ),
            );
        }
        for rejected in self.manager.planning.job.rejected.iter().take(5) {
            add(
                ProblemKind::CannotBePlaced,
                format!("{} can't be placed: {}.", rejected.what, rejected.reason.trim_end_matches('.')),
            );
        }
        if map.settings.resync.paused {
            add(ProblemKind::ResyncPaused, "Resync is paused: `evenkeel resync resume` lets it go on.".to_owned());
        }
        let held = [
            (ProblemKind::JobHeld, self.job_warning()),
            (ProblemKind::ResyncPaused, self.pause_warning()),
            (ProblemKind::DeadlineMissed, self.deadline_warning()),
        ];
        held.into_iter().filter_map(|(kind, says)| Some((kind, says?))).for_each(|(kind, says)| add(kind, says));
        problems.sort_by_key(|problem| problem.kind);
        let health = match problems.first() {
            Some(worst) if worst.kind.is_error() => "error",
            Some(_) => "warn",
            None => "ok",
        };
        (health.to_owned(), problems)
    }

    /// Disks that hang (errors) or are slow (warnings), by name.
    fn slow_disks(&self, add: &mut impl FnMut(ProblemKind, String)) {
        let map = self.manager.state.map();
        for (id, view) in self.manager.runtime.disks.iter().filter(|(id, _)| self.manager.runtime.is_hung(**id)) {
            add(
                ProblemKind::DiskHangs,
                format!(
                    "Disk {} hangs: it has not answered for {:.1} s. Others take its place where enough copies are left; look at \
                 the disk and at its host's log.",
                    disk_on_node(map, *id),
                    view.hung_ms as f64 / 1000.0
                ),
            );
        }
        for (id, (pgs, oldest_ms)) in self.manager.runtime.lagging() {
            if !self.manager.runtime.is_hung(id) {
                add(
                    ProblemKind::DiskSlow,
                    format!(
                        "Disk {} is slow: writes of {pgs} placement groups wait for it since {:.1} s.",
                        disk_on_node(map, id),
                        oldest_ms as f64 / 1000.0
                    ),
                );
            }
        }
    }
}
