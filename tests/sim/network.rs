//! The network between nodes: streams that keep their order and break, cuts of one or both ways; and the canaries that
//! alter what travels.

use evenkeel::core::hashtree::HOLE;
use evenkeel::core::ids::{DiskId, PgId};
use evenkeel::core::replica::{DiskOp, DiskResult, Input, Operation, PeerMessage, SessionMessage};
use evenkeel::core::units::BLOCK_BYTES;

use crate::canary::Canary;
use crate::clients::{CLIENT_IDLE_NS, ClientLink};
use crate::world::{Event, GATEWAY, MS, Node, World};

/// Who dialed whom.
pub type Conn = (DiskId, DiskId);

/// A PG's resync stream, from its primary to a learner.
pub type SessionKey = (PgId, Conn);

/// Nothing arrives any more on this stream.
pub const STUCK: u64 = u64::MAX / 2;

#[derive(Clone, Copy, Default)]
pub struct Stream {
    pub epoch: u64,
    pub up: bool,
    /// When the last message of each direction arrives: streams are FIFO.
    pub last: [u64; 2],
    /// Its number: a gateway's, or the coordinator's.
    pub connection: u64,
    /// When the peer that dialed heard anything last, or began to dial.
    pub heard: u64,
    /// A gateway tries to make it.
    pub dialing: bool,
}

impl Stream {
    /// When a message arrives that would need until `at` alone; `None`: never.
    pub fn arrival(&mut self, direction: usize, at: u64, blocked: bool) -> Option<u64> {
        if blocked {
            self.last[direction] = STUCK;
        }
        let at = at.max(self.last[direction] + 1);
        (at < STUCK).then(|| {
            self.last[direction] = at;
            at
        })
    }
}

impl World {
    pub fn send(&mut self, from: DiskId, to: DiskId, pg: PgId, message: PeerMessage) {
        if let PeerMessage::Session(inner) = &message {
            let open = self.sessions.get(&(pg, (from, to))).is_some_and(|s| s.up);
            let conn = if open { (from, to) } else { (to, from) };
            if self.is(Canary::ForwardDropped)
                && let SessionMessage::Forward { sequence, op, .. } = inner
                && !matches!(op, Operation::Fence { .. })
                && self.rng.chance(300)
            {
                let forged = PeerMessage::Session(SessionMessage::Forwarded { sequence: *sequence });
                return self.transmit(conn, true, to, from, pg, forged);
            }
            if self.is(Canary::FenceNotForwarded)
                && let SessionMessage::Forward { sequence, op: Operation::Fence { .. }, .. } = inner
            {
                let forged = PeerMessage::Session(SessionMessage::Forwarded { sequence: *sequence });
                return self.transmit(conn, true, to, from, pg, forged);
            }
            let message = match inner {
                SessionMessage::Copy { chunk, window, blocks, leaves, data } if self.is(Canary::WindowOffByOne) => {
                    let (mut leaves, mut data) = (leaves.clone(), data.clone());
                    if leaves.pop().is_some_and(|leaf| leaf != HOLE) {
                        data.truncate(data.len().saturating_sub(BLOCK_BYTES as usize));
                    }
                    let blocks = blocks & !(1u64.checked_shl(63 - blocks.leading_zeros()).unwrap_or(0));
                    let (chunk, window) = (*chunk, *window);
                    PeerMessage::Session(SessionMessage::Copy { chunk, window, blocks, leaves, data })
                }
                SessionMessage::Table { .. } if self.is(Canary::TableIgnored) => {
                    // The learner claims to have what the primary has.
                    match self.nodes.get_mut(&to).map(|n| n.disk.run(pg, DiskOp::Table)) {
                        Some(DiskResult::Table(entries)) => {
                            let entries = entries
                                .into_iter()
                                .map(|mut e| {
                                    e.unsure = false;
                                    e
                                })
                                .collect();
                            PeerMessage::Session(SessionMessage::Table { entries, last: true })
                        }
                        _ => message,
                    }
                }
                _ => message,
            };
            return self.transmit(conn, true, from, to, pg, message);
        }
        let answer = matches!(
            message,
            PeerMessage::ConfigAccepted { .. }
                | PeerMessage::ConfigRefused { .. }
                | PeerMessage::Prepared { .. }
                | PeerMessage::Applied { .. }
                | PeerMessage::Rejected { .. }
                | PeerMessage::Flushed { .. }
                | PeerMessage::Fetched { .. }
        );
        let conn = if answer { (to, from) } else { (from, to) };
        match &message {
            PeerMessage::Replicate { generation, sequence, .. } if self.is(Canary::AckBeforeSecondaryHasIt) => {
                let forged = PeerMessage::Applied { generation: *generation, sequence: *sequence };
                self.transmit(conn, false, to, from, pg, forged);
            }
            PeerMessage::Flush { generation, id, .. } if self.is(Canary::FlushOnPrimaryAlone) => {
                let forged = PeerMessage::Flushed { generation: *generation, id: *id };
                return self.transmit(conn, false, to, from, pg, forged);
            }
            _ => {}
        }
        let message = match message {
            PeerMessage::ConfigAccepted { generation, last_sequence, fences, .. }
                if self.is(Canary::ReconcileSkipped) =>
            {
                PeerMessage::ConfigAccepted { generation, last_sequence, uncommitted: Vec::new(), fences }
            }
            other => other,
        };
        self.transmit(conn, false, from, to, pg, message);
    }

    fn transmit(&mut self, conn: Conn, session: bool, from: DiskId, to: DiskId, pg: PgId, message: PeerMessage) {
        let (delay, now) = (self.delay(), self.now);
        let blocked = self.is_blocked(from.0, to.0);
        let stream = if session { self.sessions.get_mut(&(pg, conn)) } else { self.conns.get_mut(&conn) };
        let Some(stream) = stream.filter(|s| s.up) else { return };
        // What is blocked never arrives; nor does anything behind it before the stream is made anew.
        if let Some(at) = stream.arrival(usize::from(from != conn.0), now + delay, blocked) {
            let epoch = stream.epoch;
            self.at(at, Event::Peer { conn, epoch, from, to, pg, message });
        }
    }

    pub fn deliver(&mut self, conn: Conn, epoch: u64, from: DiskId, to: DiskId, pg: PgId, message: PeerMessage) {
        let session = matches!(message, PeerMessage::Session(_));
        let stream = if session { self.sessions.get(&(pg, conn)) } else { self.conns.get(&conn) };
        if !stream.is_some_and(|s| s.up && s.epoch == epoch) {
            return;
        }
        if self.lossy_parts > 0 && self.rng.below(10_000) < self.lossy_parts {
            self.coverage.add("stream resets", 1);
            return if session { self.break_session((pg, conn)) } else { self.reset_conn(conn) };
        }
        // Without a map nobody knows whether the disk had a copy before.
        let early = |n: &&mut Node| n.up && n.map.version == 0 && !n.replicas.contains_key(&pg);
        if let Some(node) = self.nodes.get_mut(&to).filter(early) {
            return node.early.push((conn, epoch, from, pg, message));
        }
        // A node that hears of a PG for the first time makes a replica for it.
        self.ensure(to, pg);
        self.feed(to, pg, Input::Peer { from, message });
    }

    pub fn reset_conn(&mut self, conn: Conn) {
        let stream = self.conns.entry(conn).or_default();
        stream.epoch += 1;
        stream.up = false;
        let epoch = stream.epoch;
        let delay = self.rng.range(1, 60) * MS;
        self.after(delay, Event::ConnUp { conn, epoch });
    }

    pub fn conn_up(&mut self, conn: Conn, epoch: u64) {
        let alive = |d: DiskId| self.nodes.get(&d).is_some_and(|n| n.is_awake());
        if self.conns.get(&conn).is_none_or(|s| s.epoch != epoch || s.up) {
            return;
        }
        let possible = alive(conn.0)
            && alive(conn.1)
            && !self.is_blocked(conn.0.0, conn.1.0)
            && !self.is_blocked(conn.1.0, conn.0.0);
        if !possible {
            return self.after(100 * MS, Event::ConnUp { conn, epoch });
        }
        if let Some(stream) = self.conns.get_mut(&conn) {
            stream.up = true;
            stream.last = [self.now; 2];
        }
        let Some(node) = self.nodes.get(&conn.0) else { return };
        let told = node.replicas.iter().filter(|(_, r)| r.others().contains(&conn.1));
        let told: Vec<PgId> = told.map(|(pg, _)| *pg).collect();
        told.into_iter().for_each(|pg| self.feed(conn.0, pg, Input::LinkReset { disk: conn.1 }));
    }

    pub fn open_session(&mut self, key: SessionKey) {
        let stream = self.sessions.entry(key).or_default();
        stream.epoch += 1;
        stream.up = false;
        let epoch = stream.epoch;
        let delay = self.rng.range(1, 30) * MS;
        self.after(delay, Event::SessionUp { key, epoch });
    }

    pub fn session_up(&mut self, key: SessionKey, epoch: u64) {
        let (pg, conn) = key;
        if self.sessions.get(&key).is_none_or(|s| s.epoch != epoch || s.up) {
            return;
        }
        let alive = |d: DiskId| self.nodes.get(&d).is_some_and(|n| n.is_awake());
        if !alive(conn.0) {
            return;
        }
        let possible = alive(conn.1) && !self.is_blocked(conn.0.0, conn.1.0) && !self.is_blocked(conn.1.0, conn.0.0);
        if !possible {
            return self.after(100 * MS, Event::SessionUp { key, epoch });
        }
        let again = self.sessions.get(&key).is_some_and(|s| s.connection > 0);
        if let Some(stream) = self.sessions.get_mut(&key) {
            (stream.up, stream.last, stream.connection) = (true, [self.now; 2], 1);
        }
        // What the learner still knows of an earlier stream ends first.
        self.ensure(conn.1, pg);
        self.feed(conn.1, pg, Input::SessionDown { peer: conn.0 });
        self.coverage.add("sessions", 1);
        self.coverage.add("sessions resumed", u64::from(again));
        self.feed(conn.0, pg, Input::SessionUp { learner: conn.1 });
        let asked = self.canary().is_some_and(Canary::needs_power_losses);
        if asked && self.now < self.faults_until && self.rng.chance(100) {
            let delay = self.rng.range(1, 30) * MS;
            self.after(delay, Event::PowerLoss);
        }
    }

    /// Closed by one side: the other hears of it, perhaps after what is under way.
    pub fn close_session(&mut self, pg: PgId, by: DiskId, peer: DiskId) {
        let up = |c: Conn| self.sessions.get(&(pg, c)).is_some_and(|s| s.up);
        let key = (pg, if up((peer, by)) { (peer, by) } else { (by, peer) });
        let Some(stream) = self.sessions.get_mut(&key) else { return };
        // Also one that broke a moment ago: the other side has not heard of it yet.
        let was_up = stream.connection > 0;
        stream.epoch += 1;
        stream.up = false;
        let epoch = stream.epoch;
        if was_up {
            let delay = self.delay();
            self.after(delay, Event::SessionEnd { key, epoch, to: peer });
        }
    }

    pub fn session_end(&mut self, key: SessionKey, epoch: u64, to: DiskId) {
        if self.sessions.get(&key).is_some_and(|s| s.epoch == epoch) {
            let (pg, conn) = key;
            let peer = if to == conn.0 { conn.1 } else { conn.0 };
            self.feed(to, pg, Input::SessionDown { peer });
        }
    }

    pub fn break_session(&mut self, key: SessionKey) {
        let Some(stream) = self.sessions.get_mut(&key) else { return };
        if !stream.up {
            return;
        }
        stream.epoch += 1;
        stream.up = false;
        let epoch = stream.epoch;
        for to in [key.1.0, key.1.1] {
            let delay = self.delay();
            self.after(delay, Event::SessionEnd { key, epoch, to });
        }
    }

    /// Every stream of a node ends.
    pub fn cut(&mut self, id: DiskId) {
        let conns: Vec<Conn> = self.conns.keys().copied().filter(|c| c.0 == id || c.1 == id).collect();
        for conn in conns {
            self.reset_conn(conn);
        }
        let sessions = self.sessions.keys().copied().filter(|(_, c)| c.0 == id || c.1 == id);
        let sessions: Vec<SessionKey> = sessions.collect();
        sessions.into_iter().for_each(|key| self.break_session(key));
        let clients: Vec<ClientLink> = self.clients.keys().copied().filter(|l| l.1 == id).collect();
        clients.into_iter().for_each(|link| self.break_client(link));
    }

    // ---- cuts ----

    pub fn is_blocked(&self, from: u32, to: u32) -> bool {
        self.blocked.contains(&(from, to))
    }

    pub fn block(&mut self, from: u32, to: u32, for_ns: u64) {
        if from == to {
            return;
        }
        self.blocked.insert((from, to));
        self.after(for_ns, Event::Unblock { from, to });
        // Streams notice after a while.
        let pair = |c: &Conn| (c.0.0 == from && c.1.0 == to) || (c.0.0 == to && c.1.0 == from);
        let conns: Vec<Conn> = self.conns.keys().copied().filter(pair).collect();
        for conn in conns {
            if let Some(s) = self.conns.get_mut(&conn) {
                s.last[usize::from(conn.0.0 != from)] = STUCK;
            }
        }
        for ((_, conn), s) in self.sessions.iter_mut().filter(|((_, c), _)| pair(c)) {
            s.last[usize::from(conn.0.0 != from)] = STUCK;
        }
        self.block_control(from, to);
        let mut silent = Vec::new();
        for (link, s) in self.clients.iter_mut().filter(|(_, s)| s.up) {
            let gateway = GATEWAY + link.0 as u32;
            if (gateway, link.1.0) == (from, to) || (link.1.0, gateway) == (from, to) {
                s.last[usize::from(gateway != from)] = STUCK;
                silent.push((*link, s.epoch));
            }
        }
        for (link, epoch) in silent {
            let idle = self.rng.range(CLIENT_IDLE_NS[0], CLIENT_IDLE_NS[1]);
            self.after(idle, Event::ClientDown { link, epoch });
        }
    }

    pub fn unblock(&mut self, from: u32, to: u32) {
        if self.cut_for_good.is_some_and(|(a, b)| (a, b) == (from, to) || (b, a) == (from, to)) {
            return;
        }
        self.blocked.remove(&(from, to));
        let pair = |c: &Conn| (c.0.0 == from && c.1.0 == to) || (c.0.0 == to && c.1.0 == from);
        let conns: Vec<Conn> = self.conns.keys().copied().filter(pair).collect();
        for conn in conns {
            self.reset_conn(conn);
        }
        let sessions: Vec<SessionKey> = self.sessions.keys().copied().filter(|(_, c)| pair(c)).collect();
        sessions.into_iter().for_each(|key| self.break_session(key));
        let gateway = |l: &ClientLink| GATEWAY + l.0 as u32;
        let clients = self.clients.keys().copied();
        let clients: Vec<ClientLink> =
            clients.filter(|l| (gateway(l), l.1.0) == (from, to) || (l.1.0, gateway(l)) == (from, to)).collect();
        clients.into_iter().for_each(|link| self.break_client(link));
    }
}
