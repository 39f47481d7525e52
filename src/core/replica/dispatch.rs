//! Takes what peers and the disk say to where it belongs.

use super::*;

impl Replica {
    pub(super) fn handle_peer(&mut self, from: DiskId, message: PeerMessage, now: Instant, env: &mut dyn Env) {
        match message {
            PeerMessage::NewConfig { config } => self.on_new_config(from, config),
            PeerMessage::ConfigAccepted { generation, last_sequence, uncommitted, fences } => {
                self.on_config_accepted(from, generation, last_sequence, uncommitted, fences, now, env)
            }
            PeerMessage::ConfigRefused { generation } => {
                if generation == self.generation() && self.is_primary() {
                    self.faulty.insert(from);
                    self.propose_removals(now, env);
                }
            }
            PeerMessage::Activate { generation, base_sequence } => self.on_activate(generation, base_sequence),
            PeerMessage::Yield { generation } => self.on_yield(from, generation, now, env),
            PeerMessage::Prepare { generation, chunk } => self.on_prepare(from, generation, chunk),
            PeerMessage::Prepared { generation, chunk, ok } => {
                self.acked_write(from);
                if generation == self.generation() {
                    self.on_prepared(from, chunk, ok, now);
                }
            }
            PeerMessage::Replicate { generation, sequence, committed, durable, op } => {
                self.on_replicate(from, generation, sequence, committed, durable, op)
            }
            PeerMessage::Applied { generation, sequence } => {
                self.acked_write(from);
                self.on_applied(from, generation, sequence, env);
            }
            PeerMessage::Rejected { generation, gap } => self.on_rejected(from, generation, gap, now, env),
            PeerMessage::Flush { generation, id, mark } => self.on_flush(from, generation, id, mark),
            PeerMessage::Flushed { generation, id } => {
                self.acked_flush(from);
                if generation == self.generation() {
                    self.on_flushed(from, id);
                }
            }
            PeerMessage::Fetch { generation, id, chunk, first_block, count } => {
                if generation == self.generation() && matches!(self.role, Role::Secondary) {
                    self.disk(DiskOp::Read { chunk, first_block, count, resync: false }, Waiting::Fetch { from, id });
                } else if generation == self.generation() && self.accepting.is_none() {
                    // Restarted, and no member any more: nothing here is good enough.
                    let (leaves, data) = (Arc::default(), Bytes::new());
                    self.send(from, PeerMessage::Fetched { generation, id, leaves, data });
                }
            }
            PeerMessage::Fetched { generation, id, leaves, data } => {
                if generation == self.generation() {
                    self.on_fetched(from, id, leaves, data, env);
                }
            }
            PeerMessage::Session(message) => {
                if let SessionMessage::Open { config } = &message
                    && config.generation > self.generation()
                    && self.is_primary()
                {
                    // The map's news has not come yet: another leads, and this is a learner.
                    self.step_down();
                    self.yield_to(config);
                }
                if self.is_primary() && !matches!(message, SessionMessage::Open { .. }) {
                    self.on_session_reply(from, message, env);
                } else {
                    self.on_session_message(from, message);
                }
            }
        }
    }

    pub(super) fn handle_disk(&mut self, token: Token, result: DiskResult, now: Instant, env: &mut dyn Env) {
        let Some(waiting) = self.disk_waits.remove(&token) else { return };
        match result {
            DiskResult::Failed(_) => return self.fail(),
            DiskResult::Refused(_) => {
                self.leaving = self.is_primary();
                self.fail();
                if self.leaving {
                    self.propose_leaving(env);
                }
                return;
            }
            _ => {}
        }
        match waiting {
            Waiting::Record(all) => {
                self.persisting = false;
                for waiting in all {
                    self.disk_done(waiting, result.clone(), now, env);
                }
                self.persist_next();
            }
            waiting => self.disk_done(waiting, result, now, env),
        }
    }

    pub(super) fn disk_done(&mut self, waiting: Waiting, result: DiskResult, now: Instant, env: &mut dyn Env) {
        match waiting {
            Waiting::Record(_) => {}
            Waiting::Op(ticket) => self.op_disk_done(ticket, result, now, env),
            Waiting::Local(sequence) => {
                if matches!(result, DiskResult::NoSpace) {
                    // Space was reserved, yet the file system below has none: ordered is ordered, so try again.
                    self.stalled.push(sequence);
                    return;
                }
                let mut held = None;
                if let Some(entry) = self.inflight.get_mut(&sequence) {
                    entry.local_done = true;
                    held = entry.ticket.zip(entry.op.extent());
                }
                self.try_commit(sequence, env);
                if let Some((ticket, (chunk, _))) = held {
                    let granted = self.locks.applied(chunk, ticket);
                    self.granted_later.extend(granted);
                }
            }
            Waiting::Apply { from, sequence, durable } => {
                self.applied(from, sequence, durable, result);
                self.advance_activation(now, env);
            }
            Waiting::Persist(generation) => self.persisted(generation, now, env),
            Waiting::AcceptFlush(generation) => {
                if let Some(accepting) = &mut self.accepting
                    && accepting.config.generation == generation
                {
                    accepting.flush = AcceptFlush::Done;
                }
                self.try_accept();
            }
            Waiting::PersistFence { from, sequence } => self.fence_persisted(from, sequence, env),
            Waiting::Flush(id) => {
                if let Some(flush) = self.flushes.get_mut(&id) {
                    flush.local_done = true;
                }
                self.finish_flush(id);
            }
            Waiting::MemberFlush { from, id } => {
                let generation = self.generation();
                self.send(from, PeerMessage::Flushed { generation, id });
            }
            Waiting::Prepare(chunk) => {
                let ok = !matches!(result, DiskResult::NoSpace);
                self.on_prepared(self.me.disk, chunk, ok, now);
            }
            Waiting::MemberPrepare { from, chunk } => {
                let ok = !matches!(result, DiskResult::NoSpace);
                let generation = self.generation();
                self.send(from, PeerMessage::Prepared { generation, chunk, ok });
            }
            Waiting::Fetch { from, id } => {
                let (leaves, data) = match result {
                    DiskResult::Data { leaves, data } => (leaves, data),
                    _ => (Vec::new(), Bytes::new()),
                };
                let generation = self.generation();
                self.send(from, PeerMessage::Fetched { generation, id, leaves: leaves.into(), data });
            }
            Waiting::SourceTable(learner) => self.source_table(learner, result),
            Waiting::DeleteTable(volume) => self.delete_chunks(volume, result, env),
            Waiting::ForcedTable(generation) => self.forced_table(generation, result),
            Waiting::ForcedVersion(generation) => {
                if generation == self.generation() {
                    self.activation.restamping = self.activation.restamping.saturating_sub(1);
                }
                self.restamped(generation);
            }
            Waiting::ForcedFlush(generation) => self.forced_stable(generation),
            Waiting::TargetOpen(_) | Waiting::TargetTable(_) | Waiting::TargetFinish(_) => {
                self.target_disk_done(waiting, result)
            }
        }
    }

    /// The disk is gone: clients go elsewhere. A primary is told, for its node still answers: it would wait for this
    /// member for ever.
    pub(super) fn fail(&mut self) {
        if let Some(accepting) = self.accepting.take() {
            let generation = accepting.config.generation;
            self.send(accepting.from, PeerMessage::ConfigRefused { generation });
        } else if let (Role::Secondary, Some(primary)) = (&self.role, self.state.config.primary()) {
            let generation = self.generation();
            self.send(primary.disk, PeerMessage::Rejected { generation, gap: true });
        }
        self.abandon_clients();
        self.close_sessions();
        self.role = Role::Failed;
    }

    /// Members remain that can lead; the coordinator chooses (R5).
    pub(super) fn propose_leaving(&mut self, env: &mut dyn Env) {
        self.propose_after = self.now + PROPOSAL_RETRY;
        self.propose(Change::Remove(vec![self.me]), env);
    }

    /// What a member with a failed disk says to all that waits for it: it leaves (R11, R15).
    pub(super) fn refuse(&mut self, from: DiskId, message: PeerMessage) {
        match message {
            PeerMessage::NewConfig { config } => {
                self.send(from, PeerMessage::ConfigRefused { generation: config.generation });
            }
            PeerMessage::Replicate { generation, .. }
            | PeerMessage::Prepare { generation, .. }
            | PeerMessage::Flush { generation, .. } => {
                self.send(from, PeerMessage::Rejected { generation, gap: true });
            }
            _ => {}
        }
    }
}
