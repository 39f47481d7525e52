//! Order between connections: a change waits for overlapping changes that other connections have in flight.
//!
//! Purpose: a client that lost its connection (or was killed) sends its writes again on a new one, and then writes
//! more. A write of the old connection that had stalled would land on top. So each connection announces its changes,
//! and a change of another connection that overlaps one waits until it has finished.
//!
//! Invariants: changes of one connection never wait for each other (NBD leaves their order to the backend); of two
//! overlapping changes of different connections, the one that was announced first goes first, so there is no cycle.
//!
//! Bound: an entry a change in flight, which [`Limits`](super::Limits) bounds.
//!
//! Non-goals: order between gateways; the replication protocol's fences have that.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;

/// The changes in flight on one export.
#[derive(Default)]
pub struct OverlapTable {
    changes: Mutex<Changes>,
    finished: Notify,
    connections: AtomicU64,
}

#[derive(Default)]
struct Changes {
    next: u64,
    /// By time of announcement.
    in_flight: BTreeMap<u64, Change>,
    /// How many of them are each connection's, so that a lone connection never searches.
    by_connection: BTreeMap<u64, usize>,
    /// Tasks that wait; without any, a finished change wakes nobody.
    waiting: usize,
}

struct Change {
    connection: u64,
    range: Range<u64>,
}

/// An announced change; dropping it lets others pass.
pub struct ChangeGuard {
    table: Arc<OverlapTable>,
    id: u64,
    connection: u64,
    range: Range<u64>,
    may_wait: bool,
}

impl OverlapTable {
    /// A number for a new connection.
    pub fn connection_id(&self) -> u64 {
        self.connections.fetch_add(1, Ordering::SeqCst)
    }

    /// The number of the newest connection. A connection that announces a change and then finds itself the newest knows
    /// that every other connection's changes come after it.
    pub fn newest_connection_id(&self) -> u64 {
        self.connections.load(Ordering::SeqCst).saturating_sub(1)
    }

    /// Announces a change. It must not begin before [`ChangeGuard::turn`] has returned.
    pub fn announce(self: &Arc<Self>, connection: u64, range: Range<u64>) -> ChangeGuard {
        let mut changes = self.changes.lock();
        let id = changes.next;
        changes.next += 1;
        let own = changes.by_connection.entry(connection).or_default();
        *own += 1;
        let own = *own;
        changes.in_flight.insert(id, Change { connection, range: range.clone() });
        let may_wait = own < changes.in_flight.len();
        ChangeGuard { table: self.clone(), id, connection, range, may_wait }
    }

    fn is_blocked(&self, changes: &Changes, guard: &ChangeGuard) -> bool {
        changes.in_flight.range(..guard.id).any(|(_, change)| {
            change.connection != guard.connection
                && change.range.start < guard.range.end
                && guard.range.start < change.range.end
        })
    }
}

impl ChangeGuard {
    /// Returns when no earlier change of another connection overlaps this one.
    pub async fn turn(&self) {
        // Changes announced later don't matter, so one that had no company at first never waits.
        if !self.may_wait {
            return;
        }
        let waiting = Waiting::new(&self.table);
        loop {
            let finished = self.table.finished.notified();
            tokio::pin!(finished);
            finished.as_mut().enable();
            if !self.table.is_blocked(&self.table.changes.lock(), self) {
                break;
            }
            finished.await;
        }
        drop(waiting);
    }
}

impl Drop for ChangeGuard {
    fn drop(&mut self) {
        let mut changes = self.table.changes.lock();
        changes.in_flight.remove(&self.id);
        if let Some(count) = changes.by_connection.get_mut(&self.connection) {
            *count -= 1;
            if *count == 0 {
                changes.by_connection.remove(&self.connection);
            }
        }
        if changes.waiting > 0 {
            self.table.finished.notify_waiters();
        }
    }
}

/// Counts a waiting task, also if its future is dropped.
struct Waiting<'a>(&'a OverlapTable);

impl<'a> Waiting<'a> {
    fn new(table: &'a OverlapTable) -> Self {
        table.changes.lock().waiting += 1;
        Self(table)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.changes.lock().waiting -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[test]
    fn only_overlapping_changes_of_others_wait() {
        let table = Arc::new(OverlapTable::default());
        let (old, new) = (table.connection_id(), table.connection_id());
        let first = table.announce(old, 0..4096);
        let same_connection = table.announce(old, 0..512);
        let beside = table.announce(new, 4096..8192);
        let over = table.announce(new, 512..1024);
        assert!(first.turn().now_or_never().is_some());
        assert!(same_connection.turn().now_or_never().is_some());
        assert!(beside.turn().now_or_never().is_some());
        assert!(over.turn().now_or_never().is_none());
        drop(first);
        assert!(over.turn().now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_waiting_change_goes_on_when_the_earlier_one_ends() {
        let table = Arc::new(OverlapTable::default());
        let first = table.announce(0, 0..4096);
        let second = table.announce(1, 0..4096);
        let mut turn = Box::pin(second.turn());
        assert!(turn.as_mut().now_or_never().is_none());
        drop(first);
        turn.await;
        drop(second);
        assert_eq!(table.changes.lock().in_flight.len(), 0);
        assert_eq!(table.changes.lock().by_connection.len(), 0);
    }
}
