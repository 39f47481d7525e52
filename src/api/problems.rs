//! Kinds of what health complains of: how bad each is, and what an operator does about it.
//!
//! Purpose: health's sentences say what is the case; a kind says what that means and which commands help, so that nobody has to
//! know it at 3 a.m. Invariants: kinds stand in the order in which health tells them, causes before what follows from them; every
//! kind has a page in `deploy/runbooks`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What isn't well. The order is that of health: errors first, and a cause before its consequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ProblemKind {
    /// The coordinator doesn't answer: what the command line says where the coordinator can't.
    CoordinatorDown,
    /// The coordinator was started on a copy of its map that is older than what nodes have seen.
    MapOutdated,
    /// Placement groups aren't served.
    Unavailable,
    /// A disk has failed for good.
    DiskFailed,
    /// A disk doesn't answer.
    DiskHangs,
    /// A disk is full.
    DiskFull,
    /// Guests' writes wait for space.
    WritesWaitForSpace,
    /// A node doesn't answer.
    NodeDown,
    /// A node misses heartbeats.
    NodeSuspect,
    /// A disk delays writes.
    DiskSlow,
    /// A disk is nearly full.
    DiskNearFull,
    /// Copies find no room.
    MissingCapacity,
    /// An operator made a last copy serve.
    ForcePromoted,
    /// A copy makes no progress.
    ResyncStalled,
    /// A disk takes copies much slower than others.
    CopiesSlow,
    /// Placement groups have too few copies.
    Degraded,
    /// Placement groups change their primary.
    TakesOver,
    /// The planner can't place something.
    CannotBePlaced,
    /// A job was paused or cancelled.
    JobHeld,
    /// Resync was paused.
    ResyncPaused,
    /// A deadline can't be met.
    DeadlineMissed,
    /// A node is in maintenance.
    NodeInMaintenance,
    /// A kind that this release doesn't know, or a sentence of a coordinator that names no kinds.
    #[serde(other)]
    Unknown,
}

/// What a kind means and what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Advice {
    /// What it means for guests and their data.
    pub meaning: &'static str,
    /// What to do.
    pub action: &'static str,
    /// Commands that look or help, ready to be typed; capitals stand for names.
    pub commands: &'static [&'static str],
    /// Name of the page in `deploy/runbooks`, which is that of an alert too; none for what this release doesn't know.
    pub runbook: Option<&'static str>,
}

impl ProblemKind {
    /// All that this release knows, in health's order.
    pub const ALL: [ProblemKind; 22] = [
        ProblemKind::CoordinatorDown,
        ProblemKind::MapOutdated,
        ProblemKind::Unavailable,
        ProblemKind::DiskFailed,
        ProblemKind::DiskHangs,
        ProblemKind::DiskFull,
        ProblemKind::WritesWaitForSpace,
        ProblemKind::NodeDown,
        ProblemKind::NodeSuspect,
        ProblemKind::DiskSlow,
        ProblemKind::DiskNearFull,
        ProblemKind::MissingCapacity,
        ProblemKind::ForcePromoted,
        ProblemKind::ResyncStalled,
        ProblemKind::CopiesSlow,
        ProblemKind::Degraded,
        ProblemKind::TakesOver,
        ProblemKind::CannotBePlaced,
        ProblemKind::JobHeld,
        ProblemKind::ResyncPaused,
        ProblemKind::DeadlineMissed,
        ProblemKind::NodeInMaintenance,
    ];

    /// Guests wait, or data is gone from a disk; everything else warns.
    pub fn is_error(self) -> bool {
        self <= ProblemKind::WritesWaitForSpace
    }

    /// What to do about it.
    pub fn advice(self) -> Advice {
        let advice = |meaning, action, commands, runbook| Advice { meaning, action, commands, runbook: Some(runbook) };
        match self {
            ProblemKind::CoordinatorDown => advice(
                "Guests' IO goes on without it; changes of any kind, and repairs, wait for it.",
                "Start it again on its host, or look at the address and the token that this command was given.",
                &["evenkeel health", "evenkeel status"],
                "EvenkeelCoordinatorDown",
            ),
            ProblemKind::MapOutdated => advice(
                "Nodes refuse the old map and go on serving by the one that they know; nothing is repaired, moved or changed.",
                "Stop the coordinator, put back the newest copy of its directory, start it. The old copy belongs to no cluster.",
                &["evenkeel health", "evenkeel events"],
                "EvenkeelMapOutdated",
            ),
            ProblemKind::Unavailable => advice(
                "Guests' IO on these placement groups waits; nothing is lost as long as the disks with their copies exist.",
                "Bring back the nodes that the sentence names. Force a copy only when those disks are gone for good.",
                &["evenkeel pg list --state unavailable", "evenkeel pg show PG", "evenkeel node list"],
                "EvenkeelUnavailable",
            ),
            ProblemKind::DiskFailed => advice(
                "The disk gave an error and is out for good; its copies are made elsewhere.",
                "Replace it and give its node the new one; the old one leaves with its node, or when its node joins anew.",
                &["evenkeel disk show DISK", "evenkeel disk list"],
                "EvenkeelDegraded",
            ),
            ProblemKind::DiskHangs => advice(
                "The disk takes requests and doesn't answer; others serve in its place where enough copies are left.",
                "Look at the kernel's log and the disk's health on its host; stop its node if it doesn't recover.",
                &["evenkeel disk show DISK", "evenkeel node ok-to-stop NODE"],
                "EvenkeelDiskSlow",
            ),
            ProblemKind::DiskFull => advice(
                "Guests' writes to it wait until there is space; nothing is lost.",
                "Delete or discard data, or add a node or a disk: data moves away by itself.",
                &["evenkeel disk list", "evenkeel volume list", "evenkeel plan --add-node name=NODE,disks=2x4TiB"],
                "EvenkeelDiskFull",
            ),
            ProblemKind::WritesWaitForSpace => advice(
                "A guest's write waits for space on this disk; it goes on as soon as there is some.",
                "Delete or discard data, or add a node or a disk.",
                &["evenkeel disk list", "evenkeel volume list"],
                "EvenkeelDiskFull",
            ),
            ProblemKind::NodeDown => advice(
                "Its copies are missing. They are made elsewhere when the grace is over.",
                "Start it again. If it is gone for good, drain it, so that its copies are made elsewhere at once, and remove it then.",
                &["evenkeel node show NODE", "evenkeel node drain NODE", "evenkeel node remove NODE"],
                "EvenkeelNodeDown",
            ),
            ProblemKind::NodeSuspect => advice(
                "Heartbeats come late; a node that stays silent counts as down.",
                "Look at its load, its clock and its network.",
                &["evenkeel node show NODE", "evenkeel events"],
                "EvenkeelNodeFlapping",
            ),
            ProblemKind::DiskSlow => advice(
                "Guests' writes wait for this disk. If it stays so, others take its place.",
                "Look at what else uses the disk, and at its health.",
                &["evenkeel disk show DISK", "evenkeel resync status"],
                "EvenkeelDiskSlow",
            ),
            ProblemKind::DiskNearFull => advice(
                "When it is full, guests' writes to it wait.",
                "Add capacity in time, or delete data.",
                &["evenkeel disk list", "evenkeel plan --add-node name=NODE,disks=2x4TiB"],
                "EvenkeelDiskNearFull",
            ),
            ProblemKind::MissingCapacity => advice(
                "Some copies can't be made: all data gets two copies before any gets three.",
                "Add disks of that class in that failure domain; the plan shows how many it takes.",
                &["evenkeel plan", "evenkeel plan --add-node name=NODE,disks=2x4TiB"],
                "EvenkeelMissingCapacity",
            ),
            ProblemKind::ForcePromoted => advice(
                "The placement group serves with fewer copies than its pool's minimum: the next loss stops or loses it.",
                "Give it disks to be copied to, and look after its copies first.",
                &["evenkeel pg show PG", "evenkeel resync status"],
                "EvenkeelOneCopyLeft",
            ),
            ProblemKind::ResyncStalled => advice(
                "A copy has stood still for a while.",
                "The sentence says what it waits for. Events and the target's disk say why.",
                &["evenkeel resync status", "evenkeel events"],
                "EvenkeelResyncStalled",
            ),
            ProblemKind::CopiesSlow => advice(
                "It gets one copy at a time, so that the others aren't held up.",
                "Look at the disk, its network and its guests.",
                &["evenkeel disk show DISK", "evenkeel resync status"],
                "EvenkeelDiskSlow",
            ),
            ProblemKind::Degraded => advice(
                "Another loss before these are repaired may stop their guests.",
                "Wait for the repair, or speed it up at the guests' cost.",
                &["evenkeel resync status", "evenkeel resync set --profile recovery"],
                "EvenkeelDegraded",
            ),
            ProblemKind::TakesOver => advice(
                "Another member takes over; guests' IO to them waits until it serves, well below a second as a rule.",
                "Nothing, as long as it is over in seconds; what isn't is told as an error.",
                &["evenkeel pg list --state unavailable", "evenkeel events"],
                "EvenkeelUnavailable",
            ),
            ProblemKind::CannotBePlaced => advice(
                "The rules and the disks that there are contradict each other; what is placed stays where it is.",
                "Change the pool's rules, or add what is missing.",
                &["evenkeel plan", "evenkeel pool list"],
                "EvenkeelMissingCapacity",
            ),
            ProblemKind::JobHeld => advice(
                "An operator stopped this job: data stays where it is.",
                "Resume it when it may go on.",
                &["evenkeel resync jobs", "evenkeel resync resume --job JOB"],
                "EvenkeelResyncPaused",
            ),
            ProblemKind::ResyncPaused => advice(
                "Nothing is repaired or moved while it lasts.",
                "Resume it as soon as the reason for it has gone.",
                &["evenkeel resync status", "evenkeel resync resume"],
                "EvenkeelResyncPaused",
            ),
            ProblemKind::DeadlineMissed => advice(
                "Resync won't be done in time, or only at a cost to the guests.",
                "Choose a later time, or let resync take more.",
                &["evenkeel resync status", "evenkeel resync set --profile recovery"],
                "EvenkeelResyncDiverging",
            ),
            ProblemKind::NodeInMaintenance => advice(
                "Its copies aren't made elsewhere for a set time.",
                "End the maintenance when it is done.",
                &["evenkeel node show NODE", "evenkeel node undrain NODE"],
                "EvenkeelDegraded",
            ),
            ProblemKind::Unknown => Advice {
                meaning: "The coordinator is of another release than this command, which doesn't know what this is.",
                action: "Use its release of this command.",
                commands: &["evenkeel health"],
                runbook: None,
            },
        }
    }
}

/// One thing that isn't well.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Problem {
    /// What it is.
    pub kind: ProblemKind,
    /// What is the case, in one sentence.
    pub says: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_stand_in_order_and_have_pages() {
        assert!(ProblemKind::ALL.is_sorted(), "health's order is that of the kinds");
        // The schema is made from the type: all kinds but the unknown one are in the list.
        let schema = schemars::schema_for!(ProblemKind).to_value();
        assert_eq!(schema["oneOf"].as_array().map(Vec::len), Some(ProblemKind::ALL.len() + 1), "{schema}");
        for kind in ProblemKind::ALL {
            let page = kind.advice().runbook.unwrap_or_else(|| panic!("{kind:?} has no page"));
            let path = format!("{}/deploy/runbooks/{page}.md", env!("CARGO_MANIFEST_DIR"));
            assert!(std::path::Path::new(&path).exists(), "{kind:?}: {page}");
        }
        let newer: Problem = serde_json::from_str(r#"{"kind": "sun-burnt-out", "says": "It is dark."}"#).unwrap();
        assert_eq!(newer.kind, ProblemKind::Unknown);
    }
}
