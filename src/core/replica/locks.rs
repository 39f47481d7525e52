//! Range locks on a PG's chunks, in blocks, granted in arrival order.
//!
//! A write holds an exclusive lock until every member has it, so that a read which overlaps an unacked write
//! waits (R10) and overlapping writes reach the members in one order. Reads share. Resync shares too, and passes
//! by writes that wait for their turn or for space, and by those that are applied here: a write that waits for a dead
//! member must not keep the learner from completing which is to take that member's place (R5). A parked write goes on
//! only when no resync read is under way on its blocks: what is ordered then is forwarded behind what was read.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;

use crate::core::ids::ChunkId;

/// What a lock belongs to; unique within the table.
pub type Ticket = u64;

/// What a lock lets others do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// A client's read, or a question.
    Shared,
    /// A write, or a repair.
    Exclusive,
    /// A write that isn't ordered yet and waits for its space on all members.
    Parked,
    /// One that has its space, and waits for the resync reads that passed it by.
    Waking,
    /// A write that this disk has applied.
    Applied,
    /// A read for a learner.
    Resync,
}

#[derive(Debug, Clone)]
struct Lock {
    ticket: Ticket,
    range: Range<u32>,
    mode: Mode,
}

impl Lock {
    fn overlaps(&self, other: &Lock) -> bool {
        self.range.start < other.range.end && other.range.start < self.range.end
    }

    /// True if `self` can't have its lock while `held` is held.
    fn waits_for(&self, held: &Lock) -> bool {
        let writes = |m: Mode| !matches!(m, Mode::Shared | Mode::Resync);
        let passes = self.mode == Mode::Resync && matches!(held.mode, Mode::Applied | Mode::Parked);
        self.overlaps(held) && (writes(self.mode) || writes(held.mode)) && !passes
    }

    /// True if `self` must not overtake `waiting`.
    fn waits_behind(&self, waiting: &Lock) -> bool {
        self.mode != Mode::Resync && self.waits_for(waiting)
    }
}

#[derive(Debug, Default)]
struct ChunkLocks {
    held: Vec<Lock>,
    waiting: VecDeque<Lock>,
}

/// The lock table of one PG replica.
#[derive(Debug, Default)]
pub struct Locks {
    chunks: HashMap<ChunkId, ChunkLocks>,
}

impl Locks {
    /// Asks for a lock. True: it is held. False: it waits its turn; [`Locks::release`] will return its ticket.
    pub fn acquire(&mut self, chunk: ChunkId, range: Range<u32>, mode: Mode, ticket: Ticket) -> bool {
        let locks = self.chunks.entry(chunk).or_default();
        let lock = Lock { ticket, range, mode };
        let free = !locks.held.iter().any(|l| lock.waits_for(l)) && !locks.waiting.iter().any(|l| lock.waits_behind(l));
        if free {
            locks.held.push(lock);
        } else {
            locks.waiting.push_back(lock);
        }
        free
    }

    /// Gives a lock back, or leaves the queue; returns the tickets that hold their locks now.
    pub fn release(&mut self, chunk: ChunkId, ticket: Ticket) -> Vec<Ticket> {
        let Some(locks) = self.chunks.get_mut(&chunk) else { return Vec::new() };
        locks.held.retain(|l| l.ticket != ticket);
        locks.waiting.retain(|l| l.ticket != ticket);
        self.grant(chunk)
    }

    /// A write's lock: this disk has applied it. Returns the tickets that hold their locks now.
    pub fn applied(&mut self, chunk: ChunkId, ticket: Ticket) -> Vec<Ticket> {
        let Some(locks) = self.chunks.get_mut(&chunk) else { return Vec::new() };
        for lock in locks.held.iter_mut().filter(|l| l.ticket == ticket) {
            lock.mode = Mode::Applied;
        }
        self.grant(chunk)
    }

    /// A write waits for its space: resync may pass it by.
    pub fn park(&mut self, chunk: ChunkId, ticket: Ticket) {
        let locks = self.chunks.get_mut(&chunk);
        for lock in locks.into_iter().flat_map(|l| &mut l.held).filter(|l| l.ticket == ticket) {
            lock.mode = Mode::Parked;
        }
    }

    /// A parked write has its space. True: it goes on. False: a resync read is under way; [`Locks::release`] will
    /// return its ticket.
    pub fn unpark(&mut self, chunk: ChunkId, ticket: Ticket) -> bool {
        let locks = self.chunks.get_mut(&chunk);
        for lock in locks.into_iter().flat_map(|l| &mut l.held).filter(|l| l.ticket == ticket) {
            lock.mode = Mode::Waking;
        }
        self.wake(chunk).contains(&ticket)
    }

    /// Waking writes that no resync read stands in the way of any more.
    fn wake(&mut self, chunk: ChunkId) -> Vec<Ticket> {
        let Some(locks) = self.chunks.get_mut(&chunk) else { return Vec::new() };
        let reads: Vec<Lock> = locks.held.iter().filter(|l| l.mode == Mode::Resync).cloned().collect();
        let mut woken = Vec::new();
        for lock in locks.held.iter_mut().filter(|l| l.mode == Mode::Waking) {
            if !reads.iter().any(|r| r.overlaps(lock)) {
                lock.mode = Mode::Exclusive;
                woken.push(lock.ticket);
            }
        }
        woken
    }

    fn grant(&mut self, chunk: ChunkId) -> Vec<Ticket> {
        let mut granted = self.wake(chunk);
        let Some(locks) = self.chunks.get_mut(&chunk) else { return granted };
        let mut still_waiting: VecDeque<Lock> = VecDeque::new();
        for lock in std::mem::take(&mut locks.waiting) {
            if locks.held.iter().any(|l| lock.waits_for(l)) || still_waiting.iter().any(|l| lock.waits_behind(l)) {
                still_waiting.push_back(lock);
            } else {
                granted.push(lock.ticket);
                locks.held.push(lock);
            }
        }
        locks.waiting = still_waiting;
        if locks.held.is_empty() && locks.waiting.is_empty() {
            self.chunks.remove(&chunk);
        }
        granted
    }

    /// True if nothing is held and nothing waits.
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::ids::VolumeId;

    const C: ChunkId = ChunkId { volume: VolumeId(1), index: 0 };

    #[test]
    fn readers_share_and_writers_wait_in_order() {
        let mut locks = Locks::default();
        assert!(locks.acquire(C, 0..4, Mode::Shared, 1));
        assert!(locks.acquire(C, 2..6, Mode::Shared, 2));
        assert!(!locks.acquire(C, 3..5, Mode::Exclusive, 3), "a write waits for both reads");
        assert!(!locks.acquire(C, 4..5, Mode::Shared, 4), "a read doesn't overtake a waiting write");
        assert!(locks.acquire(C, 10..12, Mode::Exclusive, 5), "elsewhere is free");
        assert!(locks.release(C, 1).is_empty());
        assert_eq!(locks.release(C, 2), vec![3]);
        assert_eq!(locks.release(C, 3), vec![4]);
        locks.release(C, 4);
        locks.release(C, 5);
        assert!(locks.is_empty());
    }

    #[test]
    fn resync_passes_by_what_is_applied_and_by_what_waits() {
        let mut locks = Locks::default();
        assert!(locks.acquire(C, 0..4, Mode::Exclusive, 1));
        assert!(!locks.acquire(C, 0..4, Mode::Exclusive, 2));
        assert!(!locks.acquire(C, 0..8, Mode::Resync, 3), "the write is on its way to this disk");
        assert_eq!(locks.applied(C, 1), vec![3]);
        assert!(!locks.acquire(C, 0..1, Mode::Shared, 4), "a read waits until every member has the write (R10)");
        assert!(locks.release(C, 1).is_empty(), "the next write waits for the resync read");
        assert_eq!(locks.release(C, 3), vec![2]);
    }

    #[test]
    fn resync_passes_by_a_write_that_waits_for_space() {
        let mut locks = Locks::default();
        assert!(locks.acquire(C, 0..4, Mode::Exclusive, 1));
        locks.park(C, 1);
        assert!(locks.acquire(C, 2..8, Mode::Resync, 2), "it isn't ordered: it will be forwarded");
        assert!(!locks.acquire(C, 0..1, Mode::Shared, 3), "others still wait for it");
        assert!(!locks.unpark(C, 1), "it would be forwarded before what is being read");
        assert!(!locks.acquire(C, 0..8, Mode::Resync, 4), "no more of them, else it would wait for ever");
        assert_eq!(locks.release(C, 2), vec![1]);
        assert!(locks.release(C, 1).contains(&4));
        locks.release(C, 4);
        locks.release(C, 3);
        assert!(locks.is_empty());
        assert!(locks.acquire(C, 0..4, Mode::Exclusive, 5));
        locks.park(C, 5);
        assert!(locks.unpark(C, 5));
    }

    #[test]
    fn a_cancelled_waiter_lets_the_next_in() {
        let mut locks = Locks::default();
        assert!(locks.acquire(C, 0..1, Mode::Exclusive, 1));
        assert!(!locks.acquire(C, 0..1, Mode::Exclusive, 2));
        assert!(!locks.acquire(C, 0..1, Mode::Exclusive, 3));
        assert!(locks.release(C, 2).is_empty());
        assert_eq!(locks.release(C, 1), vec![3]);
    }
}
