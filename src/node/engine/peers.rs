//! Other nodes' replicas: what comes from them, what goes to them, and the streams of copies.

use super::*;

impl Engine {
    pub(super) fn peer(&mut self, node: NodeId, session: Option<u64>, address: Address, message: PeerMessage) {
        // What an earlier stream still brings belongs to no session any more: it would be taken for the new one's.
        let current = self.sessions.get(&((address.to, address.pg), address.from)).map(|s| s.id);
        let stale = session.is_some() && session != current;
        if stale || session.is_some() != matches!(message, PeerMessage::Session(_)) {
            return tracing::debug!(%node, ?address, "ignored a message of a stream that is not its session's");
        }
        match self.map.disks.get(&address.from) {
            Some(disk) if disk.node != node => {
                return tracing::warn!(%node, disk = %address.from, "ignored a message for another node's disk");
            }
            None if self.speakers.len() < SPEAKERS_MAX => drop(self.speakers.insert(address.from, node)),
            _ => {}
        }
        let key = (address.to, address.pg);
        if self.map.version == 0 && !self.replicas.contains_key(&key) {
            // Without a map nobody knows whether the disk had a copy before: see `ensure`. Links begin by saying it again.
            if self.early.len() < EARLY_MAX {
                self.early.push((node, session, address, message));
            }
            return;
        }
        self.ensure(key);
        self.foreground_begins(key, &message);
        self.feed(key, Input::Peer { from: address.from, message });
    }

    pub(super) fn send(&mut self, key: Key, to: DiskId, message: PeerMessage) {
        self.foreground_ends(key, &message);
        let address = Address { pg: key.1, to, from: key.0 };
        if let PeerMessage::Session(session) = &message {
            let Some(open) = self.sessions.get(&(key, to)) else { return };
            let Some(outbox) = open.outbox.clone() else { return };
            let class = open.class;
            let index = ResyncClass::ALL.iter().position(|c| *c == class).unwrap_or(0);
            let frame = encode(address, &message);
            if !matches!(session, SessionMessage::Forward { .. } | SessionMessage::Forwarded { .. }) {
                self.parts.counters.resync_sent[index].fetch_add(frame.wire_bytes() as u64, Ordering::Relaxed);
            }
            if let SessionMessage::Copied { bytes, .. } = session {
                // The target pays for what it wrote before it asks for more.
                let (bytes, disk) = (u64::from(*bytes), key.0);
                self.parts.counters.resync_written[index].fetch_add(bytes, Ordering::Relaxed);
                let throttle = self.parts.throttle.clone();
                self.parts.links.bulk.runtime.spawn(async move {
                    throttle.take_target(disk, class, bytes).await;
                    outbox.send(frame);
                });
                return;
            }
            return outbox.send(frame);
        }
        let Some(node) = self.node_of(to) else { return };
        if Some(node) == self.node_of(key.0) {
            // Two disks of one node: no network between them.
            let node = NodeId(self.parts.links.hello.node);
            let event = Event::Peer { node, session: None, address, message };
            return self.parts.links.events.push(event);
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
        let link = if answer { self.inbound.get(&node) } else { self.outbound.get(&node) };
        if let Some((_, outbox)) = link {
            outbox.send(encode(address, &message));
        }
    }

    pub(super) fn open_session(&mut self, key: Key, learner: DiskId) {
        let class = self
            .map
            .pgs
            .get(&key.1)
            .and_then(|c| c.learners.iter().find(|l| l.replica.disk == learner))
            .map_or(ResyncClass::Repair, |l| l.class);
        let index = ResyncClass::ALL.iter().position(|c| *c == class).unwrap_or(1) as u32;
        self.close_session(key, learner);
        let node = self.node_of(learner).and_then(|n| self.map.nodes.get(&n)).map(|n| (n.id, n.addr));
        let (links, id) = (self.parts.links.clone(), self.parts.links.channel_id());
        let task = async move {
            match node {
                Some((node, addr)) => links.run_session(id, key.1, key.0, learner, index, node, addr).await,
                // The map that has it is on its way.
                None => links.no_session(id, key.1, key.0, learner).await,
            }
        };
        let task = Some(self.parts.links.bulk.runtime.spawn(task));
        self.sessions.insert((key, learner), Session { id, opened: None, outbox: None, task, class });
    }

    /// False: there was none.
    pub(super) fn close_session(&mut self, key: Key, peer: DiskId) -> bool {
        let Some(session) = self.sessions.remove(&(key, peer)) else { return false };
        if let Some(outbox) = session.outbox {
            outbox.finish();
        }
        if let Some(task) = session.task {
            task.abort();
        }
        true
    }
}
