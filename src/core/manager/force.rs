//! Which copies could lead an unavailable PG, and what would be lost with each: for `pg force-promote` (R5), and for the
//! sentence that says what brings a PG back.
//!
//! Pure: the map and the observations in. Non-goals: choosing without an operator; only R2 does that (`decide`).

use std::collections::BTreeSet;

use super::runtime::Runtime;
use crate::core::cluster::command::{ForcePromote, Liveness};
use crate::core::cluster::state::domain_of;
use crate::core::cluster::{ClusterMap, Learner, PgConfig, Replica, ResyncClass};
use crate::core::ids::{DiskId, Generation};

/// How a copy stands to the recorded configuration. The order is the order of preference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// Left the configuration, or learns.
    Old,
    /// Its disk is a member, but restarted uncleanly since (R1).
    Restarted,
    /// A member at its recorded boot.
    Member,
}

/// A copy on a disk that answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The disk at its present boot.
    pub replica: Replica,
    /// The highest generation that it has accepted.
    pub generation: Generation,
    /// It has all that its generation had.
    pub complete: bool,
    /// Highest stable flush mark.
    pub flush_mark: u64,
    /// See [`Standing`].
    pub standing: Standing,
}

impl Candidate {
    /// Nothing acked is missing here.
    pub fn is_lossless(&self) -> bool {
        self.complete && self.standing == Standing::Member
    }
}

/// All copies of the PG on disks that answer and work, best first: complete ones, then by generation and flush mark.
/// Copies that are newer than the map are left out: they belong to another map (R4).
pub fn candidates(map: &ClusterMap, runtime: &Runtime, config: &PgConfig) -> Vec<Candidate> {
    let mut found: Vec<Candidate> = Vec::new();
    for (disk, view) in &runtime.disks {
        let Some(replica) = runtime.live_replica(*disk).filter(|_| map.disks.contains_key(disk)) else { continue };
        if runtime.is_hung(*disk) {
            continue;
        }
        let copy = view.copies.get(&config.pg).copied();
        let candidate = if config.is_member(replica) {
            // What its disk said when it registered is older than what it has acked since.
            Candidate {
                replica,
                generation: config.generation,
                complete: runtime.has_whole_copy(config, replica),
                flush_mark: copy.map_or(0, |c| c.flush_mark),
                standing: Standing::Member,
            }
        } else {
            let Some(copy) = copy.filter(|c| c.generation <= config.generation) else { continue };
            let own = config.members.iter().any(|m| m.disk == *disk);
            let standing = if own { Standing::Restarted } else { Standing::Old };
            Candidate {
                replica,
                generation: copy.generation,
                complete: copy.complete,
                flush_mark: copy.flush_mark,
                standing,
            }
        };
        found.push(candidate);
    }
    found.sort_by_key(|c| {
        let rank = (c.complete, c.standing == Standing::Member, c.generation, c.standing, c.flush_mark);
        (std::cmp::Reverse(rank), c.replica.disk)
    });
    found
}

/// What is or may be lost if this copy leads, in one clause that begins with the disk's name.
pub fn loss(config: &PgConfig, c: &Candidate) -> String {
    let (disk, has, newest) = (c.replica.disk, c.generation, config.generation);
    match c.standing {
        _ if !c.complete => format!(
            "{disk} has an incomplete copy of generation {has} of {newest}: what was not copied to it reads as older \
             content or as zeros"
        ),
        Standing::Member => {
            format!("{disk} holds every acked write; only the number of copies falls below min_replicas")
        }
        Standing::Restarted if has == newest => {
            format!("{disk} restarted uncleanly: acked writes that were not flushed may be lost")
        }
        Standing::Old if has == newest => format!(
            "{disk} had a complete copy of generation {has} but was no member: writes acked after its copy ended are lost"
        ),
        Standing::Restarted | Standing::Old => {
            format!("{disk} has generation {has} of {newest} and is complete; writes acked after it left are lost")
        }
    }
}

/// The command that makes the chosen copy lead, with the other live copies as learners: one a failure domain, as many as
/// the pool wants.
pub fn command(map: &ClusterMap, config: &PgConfig, chosen: &Candidate, all: &[Candidate]) -> ForcePromote {
    let pool = map.pools.get(&config.pg.pool);
    let wanted = pool.map_or(1, |p| p.replicas as usize);
    let domain = |disk| pool.and_then(|p| domain_of(map, p.failure_domain, disk));
    let mut taken: BTreeSet<Option<String>> = BTreeSet::from([domain(chosen.replica.disk)]);
    let mut learners = Vec::new();
    for other in all {
        if learners.len() + 1 < wanted && taken.insert(domain(other.replica.disk)) {
            learners.push(Learner {
                replica: other.replica,
                replaces: None,
                class: ResyncClass::RepairCritical,
                paused: false,
            });
        }
    }
    ForcePromote {
        pg: config.pg,
        base: config.generation,
        chosen: chosen.replica,
        learners,
        lossless: chosen.is_lossless(),
        loss: loss(config, chosen),
    }
}

/// A disk with its node's name, as people look for it.
pub fn disk_on_node(map: &ClusterMap, disk: DiskId) -> String {
    match map.disks.get(&disk).and_then(|d| map.nodes.get(&d.node)) {
        Some(node) => format!("{disk} of node {}", node.name),
        None => format!("{disk} of an unknown node"),
    }
}

/// `a`, `a and b`, `a, b and c`.
pub fn listing(names: &[String]) -> String {
    match names {
        [] => String::new(),
        [one] => one.clone(),
        [init @ .., last] => format!("{} and {last}", init.join(", ")),
    }
}

/// What would bring an unavailable PG back: its members' disks, and complete copies elsewhere.
pub fn way_back(map: &ClusterMap, runtime: &Runtime, config: &PgConfig) -> String {
    let given_up = |m: &&Replica| super::decide::is_given_up(map, m.disk);
    let named = |m: &Replica| disk_on_node(map, m.disk);
    let absent = config.members.iter().filter(|m| runtime.live_boot(m.disk).is_none() && !given_up(m));
    let absent: Vec<String> = absent.map(named).collect();
    let restarted = config.members.iter().filter(|m| runtime.live_boot(m.disk).is_some_and(|boot| boot != m.boot));
    let restarted: Vec<String> = restarted.map(named).collect();
    let mut parts = Vec::new();
    if !restarted.is_empty() {
        let verb = if restarted.len() == 1 { "has" } else { "have" };
        parts.push(format!("{} {verb} restarted uncleanly and can't lead alone", listing(&restarted)));
    }
    if !absent.is_empty() {
        parts.push(format!("start {}", listing(&absent)));
    }
    let all = candidates(map, runtime, config);
    let newest = config.generation;
    for old in all.iter().filter(|c| c.standing == Standing::Old && c.complete).take(3) {
        let name = disk_on_node(map, old.replica.disk);
        parts.push(format!("{name} has a complete copy of generation {} of {newest}", old.generation));
    }
    if parts.is_empty() {
        parts.push("none of its disks is left".to_owned());
    }
    if !all.is_empty() {
        parts.push(format!(
            "the last resort is `evenkeel pg force-promote {}`, which says what would be lost",
            config.pg
        ));
    }
    parts.join("; ")
}
