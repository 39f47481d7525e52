//! Which moves of a job run now: order of urgency, slots per disk, space, preemption.
//!
//! Purpose: a plan is frozen and may hold thousands of moves; this decides, from what runs, which to start and which to
//! give back. Pure: the same input gives the same decision. Call [`schedule`] after every change; carry out the decision
//! before calling again.
//!
//! Invariants: no disk is source or target of more running moves than its slots; no target is promised more bytes than
//! its backfill limit leaves; a PG has one planned move at a time; a repair never waits for a rebalance.
//!
//! Units: bytes. Non-goals: rates (the throttle's), where replicas belong (the planner's).

use std::collections::{BTreeMap, BTreeSet};

use crate::core::cluster::ResyncClass;
use crate::core::ids::{DiskId, PgId};

/// A move that is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The PG.
    pub pg: PgId,
    /// The disk that the copy is read from: the primary's.
    pub source: DiskId,
    /// The disk that it comes to.
    pub target: DiskId,
    /// Bytes to copy.
    pub bytes: u64,
    /// Urgency.
    pub class: ResyncClass,
}

/// A move that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Running {
    /// What it is.
    pub wanted: Wanted,
    /// It came from a plan and may be given back; a returning disk's catch-up may not.
    pub planned: bool,
}

/// What a target can still take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// Bytes until the backfill limit, as measured now.
    pub free_bytes: u64,
}

/// Limits of concurrency.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slots {
    /// Planned moves that read from a disk at once.
    pub per_source: usize,
    /// Planned moves that write to a disk at once.
    pub per_target: usize,
}

impl Default for Slots {
    /// Two: one streams while the other starts or ends; more only makes each take longer.
    fn default() -> Self {
        Slots { per_source: 2, per_target: 2 }
    }
}

/// What to do now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// Indexes into `wanted`, in the order to start.
    pub start: Vec<usize>,
    /// Indexes into `running` to give back, so that a more urgent move gets its slot.
    pub stop: Vec<usize>,
}

/// Decides what runs. `wanted` holds no move that runs.
pub fn schedule(wanted: &[Wanted], running: &[Running], room: &BTreeMap<DiskId, Room>, slots: Slots) -> Decision {
    let mut load = Load::default();
    running.iter().for_each(|r| load.add(&r.wanted));
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    // Within a class, small moves first: redundancy or room returns sooner for more PGs.
    order.sort_by_key(|i| (wanted[*i].class, wanted[*i].bytes, wanted[*i].pg));
    let mut decision = Decision::default();
    let mut stopped: BTreeSet<usize> = BTreeSet::new();
    for i in order {
        let w = &wanted[i];
        let free = room.get(&w.target).map_or(0, |r| r.free_bytes);
        if load.pgs.contains(&w.pg) || load.promised(w.target) + w.bytes > free {
            continue;
        }
        if !load.has_slots(w, slots) && w.class <= ResyncClass::Repair {
            for at in victims(w, running, &stopped, &load, slots) {
                stopped.insert(at);
                load.remove(&running[at].wanted);
                decision.stop.push(at);
            }
        }
        if load.has_slots(w, slots) {
            load.add(w);
            decision.start.push(i);
        }
    }
    decision
}

/// The rebalance moves that stand in a repair's way; empty if giving them back would not be enough.
fn victims(w: &Wanted, running: &[Running], stopped: &BTreeSet<usize>, load: &Load, slots: Slots) -> Vec<usize> {
    let mut load = load.clone();
    let mut found = Vec::new();
    for (at, r) in running.iter().enumerate() {
        let shares = r.wanted.source == w.source || r.wanted.target == w.target;
        if r.planned && r.wanted.class == ResyncClass::Rebalance && shares && !stopped.contains(&at) {
            load.remove(&r.wanted);
            found.push(at);
            if load.has_slots(w, slots) {
                return found;
            }
        }
    }
    Vec::new()
}

#[derive(Clone, Default)]
struct Load {
    sources: BTreeMap<DiskId, usize>,
    targets: BTreeMap<DiskId, (usize, u64)>,
    pgs: BTreeSet<PgId>,
}

impl Load {
    fn add(&mut self, w: &Wanted) {
        *self.sources.entry(w.source).or_default() += 1;
        let target = self.targets.entry(w.target).or_default();
        *target = (target.0 + 1, target.1 + w.bytes);
        self.pgs.insert(w.pg);
    }

    fn remove(&mut self, w: &Wanted) {
        if let Some(n) = self.sources.get_mut(&w.source) {
            *n = n.saturating_sub(1);
        }
        if let Some((n, bytes)) = self.targets.get_mut(&w.target) {
            (*n, *bytes) = (n.saturating_sub(1), bytes.saturating_sub(w.bytes));
        }
        self.pgs.remove(&w.pg);
    }

    fn has_slots(&self, w: &Wanted, slots: Slots) -> bool {
        self.sources.get(&w.source).is_none_or(|n| *n < slots.per_source)
            && self.targets.get(&w.target).is_none_or(|(n, _)| *n < slots.per_target)
    }

    fn promised(&self, target: DiskId) -> u64 {
        self.targets.get(&target).map_or(0, |(_, bytes)| *bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::ids::PoolId;

    fn wanted(pg: u32, source: u32, target: u32, bytes: u64, class: ResyncClass) -> Wanted {
        Wanted { pg: PgId { pool: PoolId(1), index: pg }, source: DiskId(source), target: DiskId(target), bytes, class }
    }

    fn room(bytes: u64) -> BTreeMap<DiskId, Room> {
        (1..10).map(|d| (DiskId(d), Room { free_bytes: bytes })).collect()
    }

    #[test]
    fn the_urgent_start_first_within_slots_and_space() {
        use ResyncClass::*;
        let list = [
            wanted(1, 1, 4, 10, Rebalance),
            wanted(2, 2, 4, 10, Repair),
            wanted(3, 3, 4, 10, RepairCritical),
            wanted(4, 3, 5, 200, Drain),
            wanted(3, 3, 6, 1, Rebalance),
        ];
        let d = schedule(&list, &[], &room(100), Slots::default());
        assert_eq!(d.start, [2, 1], "two slots at disk 4; move 3 has no room; PG 3 runs already");
        assert!(d.stop.is_empty());
        let d = schedule(&list, &[], &room(5), Slots::default());
        assert_eq!(d.start, [4], "no room for more than one byte");
    }

    #[test]
    fn a_repair_takes_the_slot_of_a_rebalance_and_nothing_else_does() {
        use ResyncClass::*;
        let running = |class, planned| Running { wanted: wanted(9, 1, 4, 10, class), planned };
        let slots = Slots { per_source: 1, per_target: 1 };
        let stop = |new, old, planned| {
            let d = schedule(&[wanted(1, 2, 4, 10, new)], &[running(old, planned)], &room(100), slots);
            assert_eq!(d.start.len(), d.stop.len());
            d.stop.len()
        };
        assert_eq!(stop(Repair, Rebalance, true), 1);
        assert_eq!(stop(Drain, Rebalance, true), 0);
        assert_eq!(stop(Repair, Drain, true), 0);
        assert_eq!(stop(Repair, Rebalance, false), 0);
    }
}
