//! Whose request starts next where several volumes want one disk: each disk's [`FairQueue`], fed by the engine.

use super::*;
use crate::core::cluster::SHARE;
use crate::core::throttle::fair::FairQueue;

/// A request that is under way for longer doesn't wait for a busy disk alone, but for a member, a lease, a window of a copy:
/// others don't wait for it.
const TURN_KEPT: Duration = Duration::from_millis(250);

/// The queues of this node's disks.
#[derive(Default)]
pub(super) struct Turns {
    disks: HashMap<DiskId, FairQueue<(Key, ClientRequest)>>,
    /// Disks where a request has ended while others wait.
    freed: BTreeSet<DiskId>,
}

impl Turns {
    fn ended(&mut self, request: &Pending, at: Instant) {
        let Some(queue) = self.disks.get_mut(&request.disk).filter(|_| request.under_way_since.is_some()) else {
            return;
        };
        queue.ended(request.volume, request.bytes, at);
        if !queue.is_idle() {
            self.freed.insert(request.disk);
        }
    }

    fn next(&mut self, at: Instant) -> Option<(Key, ClientRequest)> {
        while let Some(disk) = self.freed.first() {
            if let Some(next) = self.disks.get_mut(disk).and_then(|queue| queue.next(at)) {
                return Some(next);
            }
            self.freed.pop_first();
        }
        None
    }
}

impl Engine {
    /// Takes a request of a replica that is here; it starts now or when it is its turn. A volume's requests keep their order:
    /// a gateway that sends writes again relies on it (R13).
    pub(super) fn enqueue(&mut self, key: Key, request: ClientRequest, mut pending: Pending) {
        let (id, at) = (request.id, pending.started);
        let share = self.map.volumes.get(&pending.volume).map_or(SHARE, |volume| volume.qos.share);
        let queue = self.turns.disks.entry(key.0).or_default();
        let starts = queue.offer(pending.volume, share, pending.bytes, (key, request), at);
        pending.under_way_since = starts.is_some().then_some(at);
        self.requests.insert(id, pending);
        if let Some((key, request)) = starts {
            self.feed(key, Input::Client(request));
        }
    }

    /// Starts what may start now that requests have ended.
    pub(super) fn start_next(&mut self) {
        while let Some((key, request)) = self.turns.next(now()) {
            if let Some(pending) = self.requests.get_mut(&request.id) {
                pending.under_way_since = Some(now());
            }
            if self.replicas.contains_key(&key) {
                self.feed(key, Input::Client(request));
            } else {
                self.reply(key, request.id, ClientReply::NotPrimary);
            }
        }
    }

    /// A request is answered.
    pub(super) fn end_turn(&mut self, request: &Pending) {
        self.turns.ended(request, now());
    }

    /// Nobody waits for the answers to what this gateway asked and what hasn't started yet.
    pub(super) fn withdraw(&mut self, conn: u64) {
        let requests = &mut self.requests;
        for queue in self.turns.disks.values_mut().filter(|queue| !queue.is_idle()) {
            let of_others = |request: &ClientRequest| requests.get(&request.id).is_some_and(|p| p.conn != conn);
            for (_, request) in queue.withdraw(|(_, request)| of_others(request), now()) {
                requests.remove(&request.id);
            }
        }
    }

    /// What takes long counts no more; volumes that have left are forgotten; and who waited for them may start.
    pub(super) fn free_turns(&mut self) {
        let at = now();
        for request in self.requests.values_mut() {
            if request.under_way_since.is_some_and(|since| at.since(since) > TURN_KEPT) {
                self.turns.ended(request, at);
                request.under_way_since = None;
            }
        }
        for (disk, queue) in &mut self.turns.disks {
            queue.forget_absent(at);
            if !queue.is_idle() {
                self.turns.freed.insert(*disk);
            }
        }
        self.start_next();
    }
}
