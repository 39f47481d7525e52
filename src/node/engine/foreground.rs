//! Foreground: clients' requests and members' parts of replicated writes, and what the throttle is told of both.

use super::*;
use crate::core::throttle::Kind;

/// Parts of replicated writes that are measured at once: primaries have hundreds in flight a PG; what is beyond goes
/// unmeasured.
const APPLYING_MAX: usize = 4096;
/// One that isn't acked within this time never will be, or says nothing of the disk.
const APPLYING_KEPT: Duration = Duration::from_secs(10);

impl Engine {
    pub(super) fn client(&mut self, conn: u64, received: Received) {
        let Received { pg, disk, mut request, latencies } = received;
        let key = (disk, pg);
        if let Some(client) = self.clients.get_mut(&conn).filter(|_| !latencies.is_empty()) {
            client.tells_latencies = true;
            for seen in latencies {
                self.parts.throttle.observe_foreground(disk, seen.kind, Duration::from_micros(u64::from(seen.us)));
            }
        }
        let id = self.next_request;
        self.next_request += 1;
        let (bytes, write, measured) = match &request.op {
            ClientOp::Read { len, .. } => (u64::from(*len), false, true),
            ClientOp::Write { data, .. } => (data.len() as u64, true, true),
            _ => (0, false, false),
        };
        let volume = request.volume;
        let theirs = std::mem::replace(&mut request.id, id);
        let pending =
            Pending { conn, id: theirs, started: now(), bytes, write, measured, disk, volume, under_way_since: None };
        // A peer may name any disk and PG: what isn't here has no queue.
        if !self.replicas.contains_key(&key) {
            self.requests.insert(id, pending);
            self.reply(key, id, ClientReply::NotPrimary);
        } else if let ClientOp::Open = request.op {
            // It waits for what is under way, so nothing that waits may hold it up.
            let entry = (volume, request.incarnation, request.connection, key);
            self.client_sessions.entry(conn).or_default().insert(entry);
            self.requests.insert(id, pending);
            self.feed(key, Input::Client(request));
        } else {
            self.enqueue(key, request, pending);
        }
    }

    pub(super) fn reply(&mut self, key: Key, request: u64, reply: ClientReply) {
        let Some(pending) = self.requests.remove(&request) else { return };
        self.end_turn(&pending);
        if pending.measured && matches!(reply, ClientReply::Data(_) | ClientReply::Done { .. }) {
            let latency = now().since(pending.started);
            // What the gateway sees counts; from one that doesn't tell, of an earlier release, what is seen here.
            if !self.clients.get(&pending.conn).is_some_and(|client| client.tells_latencies) {
                let kind = Kind::of(pending.write, pending.bytes);
                self.parts.throttle.observe_foreground(key.0, kind, latency);
            }
            if pending.write {
                self.parts.throttle.observe_written(key.0, pending.bytes);
            }
            let c = &self.parts.counters;
            let (ops, bytes, kind) = if pending.write {
                (&c.writes, &c.write_bytes, Operation::Write)
            } else {
                (&c.reads, &c.read_bytes, Operation::Read)
            };
            ops.fetch_add(1, Ordering::Relaxed);
            bytes.fetch_add(pending.bytes, Ordering::Relaxed);
            self.parts.metrics.done(kind, pending.bytes, latency);
        }
        if let Some(client) = self.clients.get(&pending.conn) {
            client.outbox.send(encode_reply(pending.id, reply));
        }
    }

    /// A replicated write has come: from now to its ack it is this disk's foreground (both ends count).
    pub(super) fn foreground_begins(&mut self, key: Key, message: &PeerMessage) {
        if let PeerMessage::Replicate { sequence, .. } = message {
            if self.applying.len() >= APPLYING_MAX {
                // Those that were never acked: their configurations have gone.
                let fresh = |at: &Instant| now().since(*at) < APPLYING_KEPT;
                self.applying.retain(|_, at| fresh(at));
            }
            if self.applying.len() < APPLYING_MAX {
                self.applying.insert((key, *sequence), now());
            }
        }
    }

    /// A member acks its part of a write.
    pub(super) fn foreground_ends(&mut self, key: Key, message: &PeerMessage) {
        if let PeerMessage::Applied { sequence, .. } = message
            && let Some(began) = self.applying.remove(&(key, *sequence))
        {
            self.parts.throttle.observe_foreground(key.0, Kind::Apply, now().since(began));
        }
    }

    /// Tells the throttle what is under way and what copies have left, and runs its controllers.
    pub(super) fn tick_throttle(&mut self) {
        // One pass over each, however many disks there are: this is the thread that carries IO.
        let mut disks: HashMap<DiskId, (u32, u64)> = self.parts.disks.keys().map(|id| (*id, (0, 0))).collect();
        for request in self.requests.values().filter(|r| r.measured) {
            if let Some((depth, _)) = disks.get_mut(&request.disk) {
                *depth += 1;
            }
        }
        for ((disk, _), replica) in self.replicas.iter().filter(|(_, r)| r.is_primary()) {
            let left: u64 = replica.sessions().map(|s| s.chunks_total.saturating_sub(s.chunks_done)).sum();
            if let Some((_, chunks)) = disks.get_mut(disk) {
                *chunks = chunks.saturating_add(left);
            }
        }
        for (id, (depth, chunks)) in disks {
            self.parts.throttle.set_queue_depth(id, depth);
            self.parts.throttle.set_backlog(id, chunks.saturating_mul(CHUNK_BYTES));
        }
        self.parts.throttle.tick();
    }
}
