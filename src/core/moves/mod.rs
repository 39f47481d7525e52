//! Which moves of a job run now: order of urgency, slots per disk, space, preemption.
//!
//! Purpose: a plan is frozen and may hold thousands of moves; this decides, from what runs, which to start and which to
//! give back. Pure: the same input gives the same decision. Call [`schedule`] after every change; carry out the decision
//! before calling again.
//!
//! Invariants: no disk or node is source or target of more running moves than its slots; no target is promised more bytes
//! than its backfill limit leaves; a PG has one planned move at a time; a repair never waits for a rebalance.
//!
//! Order: by class, then by volume ([`order`]), then the moves of the disk that has most left to read or to write, as that
//! one ends last; so the last moves of a plan don't wait for each other. Two slots of a disk go to two partners where they
//! can: one that is slow then holds up one slot of those that work with it, not all. A disk that is known to be slow has
//! one slot.
//!
//! Units: bytes. Non-goals: rates (the throttle's), where replicas belong (the planner's).

pub mod order;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::core::cluster::ResyncClass;
use crate::core::ids::{DiskId, NodeId, PgId};

/// A move that is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The PG.
    pub pg: PgId,
    /// The disk that the copy is read from: the primary's.
    pub source: DiskId,
    /// Its node.
    pub source_node: NodeId,
    /// The disk that it comes to.
    pub target: DiskId,
    /// Its node.
    pub target_node: NodeId,
    /// Bytes to copy.
    pub bytes: u64,
    /// Urgency.
    pub class: ResyncClass,
    /// Place in the order of volumes within the class: see [`order::ranks`].
    pub rank: u32,
}

/// A move that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Running {
    /// What it is.
    pub wanted: Wanted,
    /// It came from a plan and may be given back; a returning disk's catch-up may not.
    pub planned: bool,
}

/// What a disk can take, and how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// Bytes until the backfill limit, as measured now.
    pub free_bytes: u64,
    /// It works far slower than the others: one move at a time, whichever way.
    pub is_slow: bool,
}

/// Limits of concurrency.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slots {
    /// Planned moves that read from a disk at once.
    pub per_source: usize,
    /// Planned moves that write to a disk at once.
    pub per_target: usize,
    /// Planned moves that read from, and that write to, all disks of a node at once.
    pub per_node: usize,
}

impl Default for Slots {
    /// Two a disk: one streams while the other starts or ends; more only makes each take longer. A node's: a session has up
    /// to 4 MiB under way, so these are 256 MiB.
    fn default() -> Self {
        Slots { per_source: 2, per_target: 2, per_node: 64 }
    }
}

impl Slots {
    /// Those of a move between two disks.
    fn for_disks(self, source: Room, target: Room) -> Slots {
        let of = |slots: usize, room: Room| if room.is_slow { slots.min(1) } else { slots };
        Slots { per_source: of(self.per_source, source), per_target: of(self.per_target, target), ..self }
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

/// Bytes that each disk still has to read and to write, over all moves that run or wait.
#[derive(Clone, Debug, Default)]
pub struct Backlog {
    read: HashMap<DiskId, u64>,
    write: HashMap<DiskId, u64>,
}

impl Backlog {
    /// A move is wanted.
    pub fn add(&mut self, w: &Wanted) {
        for (of, disk) in [(&mut self.read, w.source), (&mut self.write, w.target)] {
            let bytes = of.entry(disk).or_default();
            *bytes = bytes.saturating_add(w.bytes);
        }
    }

    /// What the busier of a move's two disks has to do, and both of them.
    fn busiest(&self, w: &Wanted) -> (u64, u64) {
        let of = |bytes: &HashMap<DiskId, u64>, disk| bytes.get(&disk).copied().unwrap_or(0);
        let (read, write) = (of(&self.read, w.source), of(&self.write, w.target));
        (read.max(write), read.saturating_add(write))
    }
}

/// Decides what runs. `wanted` holds no move that runs.
pub fn schedule(wanted: &[Wanted], running: &[Running], room: &BTreeMap<DiskId, Room>, slots: Slots) -> Decision {
    let mut backlog = Backlog::default();
    wanted.iter().chain(running.iter().map(|r| &r.wanted)).for_each(|w| backlog.add(w));
    let room = |disk| room.get(&disk).copied().unwrap_or_default();
    schedule_some(wanted, running, &room, slots, &backlog)
}

/// The same where `wanted` may lack moves that can't start now anyway; `backlog` counts them.
pub fn schedule_some(
    wanted: &[Wanted],
    running: &[Running],
    room: &dyn Fn(DiskId) -> Room,
    slots: Slots,
    backlog: &Backlog,
) -> Decision {
    let mut load = Load::default();
    running.iter().for_each(|r| load.add(&r.wanted));
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    order.sort_by_cached_key(|i| {
        let w = &wanted[*i];
        (w.class, w.rank, Reverse(backlog.busiest(w)), w.bytes, w.pg, w.target)
    });
    let mut decision = Decision::default();
    let mut preemptible = Preemptible::of(running);
    let mut started = vec![false; wanted.len()];
    // A repair's second slot with one partner goes before the first of what is less urgent.
    let by_class = order.chunk_by(|a, b| wanted[*a].class == wanted[*b].class);
    for (i, new_pair) in by_class.flat_map(|c| c.iter().map(|i| (*i, true)).chain(c.iter().map(|i| (*i, false)))) {
        let w = &wanted[i];
        if started[i]
            || load.pgs.contains(&w.pg)
            || load.promised(w.target).saturating_add(w.bytes) > room(w.target).free_bytes
        {
            continue;
        }
        if new_pair && load.pairs.get(&(w.source, w.target)).is_some_and(|n| *n > 0) {
            continue;
        }
        let slots = slots.for_disks(room(w.source), room(w.target));
        if !load.has_slots(w, slots) && w.class.is_repair() {
            decision.stop.extend(preemptible.give_way(w, running, &mut load, slots));
        }
        if load.has_slots(w, slots) {
            load.add(w);
            started[i] = true;
            decision.start.push(i);
        }
    }
    decision
}

/// Rebalance moves of a plan, by the disks that they use: what a repair may take the slots of.
#[derive(Default)]
struct Preemptible {
    by_source: HashMap<DiskId, Vec<usize>>,
    by_target: HashMap<DiskId, Vec<usize>>,
}

impl Preemptible {
    fn of(running: &[Running]) -> Self {
        let mut found = Preemptible::default();
        for (at, r) in running.iter().enumerate() {
            if r.planned && r.wanted.class == ResyncClass::Rebalance {
                found.by_source.entry(r.wanted.source).or_default().push(at);
                found.by_target.entry(r.wanted.target).or_default().push(at);
            }
        }
        found
    }

    /// Takes those that stand in a repair's way from `load` and gives them; none if that would not be enough.
    fn give_way(&mut self, w: &Wanted, running: &[Running], load: &mut Load, slots: Slots) -> Vec<usize> {
        let sharing = self.by_source.get(&w.source).into_iter().chain(self.by_target.get(&w.target)).flatten();
        let mut found: Vec<usize> = Vec::new();
        for &at in sharing {
            if found.contains(&at) {
                continue;
            }
            load.remove(&running[at].wanted);
            found.push(at);
            if load.has_slots(w, slots) {
                for at in &found {
                    let gone = &running[*at].wanted;
                    self.by_source.entry(gone.source).or_default().retain(|x| x != at);
                    self.by_target.entry(gone.target).or_default().retain(|x| x != at);
                }
                return found;
            }
        }
        found.into_iter().for_each(|at| load.add(&running[at].wanted));
        Vec::new()
    }
}

#[derive(Default)]
struct Load {
    sources: HashMap<DiskId, usize>,
    targets: HashMap<DiskId, (usize, u64)>,
    senders: HashMap<NodeId, usize>,
    receivers: HashMap<NodeId, usize>,
    pairs: HashMap<(DiskId, DiskId), usize>,
    pgs: BTreeSet<PgId>,
}

impl Load {
    fn add(&mut self, w: &Wanted) {
        *self.sources.entry(w.source).or_default() += 1;
        *self.senders.entry(w.source_node).or_default() += 1;
        *self.receivers.entry(w.target_node).or_default() += 1;
        *self.pairs.entry((w.source, w.target)).or_default() += 1;
        let target = self.targets.entry(w.target).or_default();
        *target = (target.0 + 1, target.1.saturating_add(w.bytes));
        self.pgs.insert(w.pg);
    }

    fn remove(&mut self, w: &Wanted) {
        let less = |n: Option<&mut usize>| n.into_iter().for_each(|n| *n = n.saturating_sub(1));
        less(self.sources.get_mut(&w.source));
        less(self.senders.get_mut(&w.source_node));
        less(self.receivers.get_mut(&w.target_node));
        less(self.pairs.get_mut(&(w.source, w.target)));
        if let Some((n, bytes)) = self.targets.get_mut(&w.target) {
            (*n, *bytes) = (n.saturating_sub(1), bytes.saturating_sub(w.bytes));
        }
        self.pgs.remove(&w.pg);
    }

    fn has_slots(&self, w: &Wanted, slots: Slots) -> bool {
        self.sources.get(&w.source).is_none_or(|n| *n < slots.per_source)
            && self.targets.get(&w.target).is_none_or(|(n, _)| *n < slots.per_target)
            && self.senders.get(&w.source_node).is_none_or(|n| *n < slots.per_node)
            && self.receivers.get(&w.target_node).is_none_or(|n| *n < slots.per_node)
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
        let pg = PgId { pool: PoolId(1), index: pg };
        let (source_node, target_node) = (NodeId(source), NodeId(target));
        Wanted { pg, source: DiskId(source), source_node, target: DiskId(target), target_node, bytes, class, rank: 0 }
    }

    fn room(bytes: u64) -> BTreeMap<DiskId, Room> {
        (1..10).map(|d| (DiskId(d), Room { free_bytes: bytes, is_slow: false })).collect()
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
        let slots = Slots { per_source: 1, per_target: 1, per_node: 8 };
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

    #[test]
    fn a_slow_disk_gets_one_move_at_a_time_and_the_others_go_on() {
        use ResyncClass::Repair;
        let list = [wanted(1, 1, 2, 10, Repair), wanted(2, 3, 2, 10, Repair), wanted(3, 3, 4, 10, Repair)];
        let mut rooms = room(100);
        assert_eq!(schedule(&list, &[], &rooms, Slots::default()).start.len(), 3);
        rooms.insert(DiskId(2), Room { free_bytes: 100, is_slow: true });
        let d = schedule(&list, &[], &rooms, Slots::default());
        assert_eq!(d.start.iter().filter(|i| list[**i].target == DiskId(2)).count(), 1);
        assert!(d.start.contains(&2), "what has nothing to do with it runs");
        rooms.insert(DiskId(3), Room { free_bytes: 100, is_slow: true });
        let d = schedule(&list[1..], &[], &rooms, Slots::default());
        assert_eq!(d.start.len(), 1, "as a source too");
    }

    #[test]
    fn the_busiest_disk_goes_first_and_a_slow_partner_holds_one_slot() {
        use ResyncClass::Rebalance;
        // Disk 2 has most to write.
        let list = [
            wanted(1, 5, 3, 10, Rebalance),
            wanted(2, 1, 2, 10, Rebalance),
            wanted(3, 4, 2, 10, Rebalance),
            wanted(4, 1, 2, 10, Rebalance),
        ];
        let d = schedule(&list, &[], &room(100), Slots::default());
        assert_eq!(d.start, [1, 2, 0]);
        let pair = [list[1], list[3], wanted(5, 1, 6, 10, Rebalance)];
        assert_eq!(schedule(&pair, &[], &room(100), Slots::default()).start, [0, 2], "disk 1 reads for two partners");
        let d = schedule(&list[1..], &[], &room(100), Slots { per_node: 1, ..Slots::default() });
        assert_eq!(d.start.len(), 1, "one at a time to a node");
        // A whole volume goes before the busiest disk, a more urgent class before both.
        let mut ranked = list;
        (ranked[0].rank, ranked[1].rank, ranked[2].rank, ranked[3].rank) = (0, 1, 2, 3);
        assert_eq!(schedule(&ranked, &[], &room(100), Slots::default()).start, [0, 1, 2]);
        ranked[2].class = ResyncClass::Drain;
        assert_eq!(schedule(&ranked, &[], &room(100), Slots::default()).start, [2, 0, 1]);
        // Where there is one partner alone, it gets both.
        assert_eq!(schedule(&[list[1], list[3]], &[], &room(100), Slots::default()).start.len(), 2);
    }
}
