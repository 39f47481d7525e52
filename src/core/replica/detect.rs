//! Graded failure detection at the primary: which members operations wait for, and since when.
//!
//! ```text
//!   suspect                         lagging                            removed
//!   (leases, heartbeats: node) ──▶  oldest wait > 500 ms: reported ──▶  nothing acked for 5 s: proposed (R8)
//! ```
//!
//! A member may answer leases and yet not apply or flush: its disk hangs. Each operation, reservation and flush knows
//! when it was sent. Whoever acks slowly is only named; whoever acks nothing while this disk or another member did is
//! proposed for removal as if it couldn't be reached. The coordinator still judges: an accusation must stand, and below
//! min_replicas nobody goes (R5).
//!
//! Times are the primary's own clock; a primary that stood still itself proposes in vain, as the acks that wait for it
//! come before the accusation counts.

use super::*;

/// A member whose oldest unacked operation is older than this is lagging: three times what a busy disk takes for one.
pub const LAGGING_AFTER: Duration = Duration::from_millis(500);
/// A member that has acked nothing for so long, although operations wait for it, is proposed for removal: far beyond
/// what a working disk or a lossy link takes, well within what a guest's own timeouts (30 s) allow.
const STUCK_AFTER: Duration = Duration::from_secs(5);
/// The same for one that acks writes but no flush: an fdatasync of a full page cache may take many seconds.
const FLUSH_STUCK_AFTER: Duration = Duration::from_secs(15);
/// How often it is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// When a member acked last.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Acked {
    /// The configuration, or anything at a new link: what was ordered before was not on its way until then.
    accepted: Instant,
    /// An operation or reservation.
    write: Instant,
    flush: Instant,
}

/// What waits for one member.
#[derive(Clone, Copy, Debug)]
struct Wait {
    since: Instant,
    flush: bool,
    /// This disk, or another member, has done it.
    proven: bool,
}

impl Replica {
    pub(super) fn acked_config(&mut self, from: DiskId) {
        let now = self.now;
        self.acked.insert(from, Acked { accepted: now, write: now, flush: now });
        self.stuck.remove(&from);
    }

    pub(super) fn acked_write(&mut self, from: DiskId) {
        self.acked.entry(from).or_default().write = self.now;
        self.stuck.remove(&from);
    }

    pub(super) fn acked_flush(&mut self, from: DiskId) {
        self.acked.entry(from).or_default().flush = self.now;
    }

    /// Calls `found` with each disk of the configuration and what waits for it.
    fn each_wait(&self, mut found: impl FnMut(DiskId, Wait)) {
        let me = self.me.disk;
        let others = self.others();
        let mut waits = |since: Instant, flush: bool, here: bool, awaiting: &BTreeSet<DiskId>| {
            let waiting = others.iter().filter(|d| awaiting.contains(d)).count();
            let proven = here || waiting < others.len();
            for disk in others.iter().filter(|d| awaiting.contains(d)) {
                found(*disk, Wait { since, flush, proven });
            }
            if !here {
                found(me, Wait { since, flush, proven });
            }
        };
        if matches!(self.role, Role::Primary(Phase::Collecting)) {
            let told = self.activation.waiting.difference(&self.activation.held_back).copied().collect();
            waits(self.activation.began, false, self.activation.persisted, &told);
        }
        for entry in self.inflight.values() {
            waits(entry.since, false, entry.local_done, &entry.awaiting);
        }
        for flush in self.flushes.values() {
            waits(flush.since, true, flush.local_done, &flush.awaiting);
        }
        for p in self.preparing.values() {
            waits(p.since, false, !p.awaiting.contains(&me), &p.awaiting);
        }
    }

    /// Members, this one among them, for whose oldest operation a primary has waited longer than [`LAGGING_AFTER`], and
    /// for how long.
    pub fn lagging(&self, now: Instant) -> BTreeMap<DiskId, Duration> {
        let mut oldest: BTreeMap<DiskId, Duration> = BTreeMap::new();
        if !self.is_primary() {
            return oldest;
        }
        self.each_wait(|disk, wait| {
            let since = wait.since.max(self.acked.get(&disk).copied().unwrap_or_default().accepted);
            let age = now.since(since);
            if age > LAGGING_AFTER {
                let entry = oldest.entry(disk).or_default();
                *entry = (*entry).max(age);
            }
        });
        oldest
    }

    /// Looks for members that ack nothing.
    pub(super) fn look_for_stuck(&mut self) {
        if self.now < self.look_after || !self.is_primary() {
            return;
        }
        self.look_after = self.now + LOOK_EVERY;
        let mut stuck = BTreeSet::new();
        self.each_wait(|disk, wait| {
            let acked = self.acked.get(&disk).copied().unwrap_or_default();
            let (last, limit) = if wait.flush { (acked.flush, FLUSH_STUCK_AFTER) } else { (acked.write, STUCK_AFTER) };
            if wait.proven && disk != self.me.disk && self.now.since(wait.since.max(last)) >= limit {
                stuck.insert(disk);
            }
        });
        self.stuck = stuck;
    }
}
