//! What the node knows of itself and of whom it reaches, for its own console.

use super::*;

/// Refreshed each second.
#[derive(Clone, Default)]
pub struct Local {
    /// The last map that was heard.
    pub map: Arc<ClusterMap>,
    /// What each disk is to its PGs.
    pub roles: BTreeMap<DiskId, Roles>,
    /// Copies that are made here: PG and disk.
    pub learning: Vec<(PgId, DiskId)>,
    /// Nodes that something is exchanged with, and whether they answer.
    pub links: BTreeMap<NodeId, bool>,
}

/// Counts of PGs.
#[derive(Clone, Copy, Default)]
pub struct Roles {
    /// Led.
    pub primaries: u64,
    /// Followed.
    pub secondaries: u64,
    /// Learnt.
    pub learners: u64,
    /// Old copies.
    pub old_copies: u64,
}

impl Engine {
    pub(super) fn publish_local(&self) {
        let mut local = Local { map: self.map.clone(), ..Local::default() };
        for ((disk, pg), replica) in &self.replicas {
            let roles = local.roles.entry(*disk).or_default();
            if replica.is_primary() {
                roles.primaries += 1;
            } else if replica.is_learning() {
                roles.learners += 1;
                local.learning.push((*pg, *disk));
            } else if !replica.is_outside() {
                roles.secondaries += 1;
            } else if replica.config().generation != Generation::default() {
                roles.old_copies += 1;
            }
        }
        local.learning.sort_unstable();
        local.links.extend(self.outbound.keys().map(|node| (*node, true)));
        local.links.extend(self.unreachable.iter().map(|node| (*node, false)));
        *self.parts.counters.local.lock() = local;
    }
}
