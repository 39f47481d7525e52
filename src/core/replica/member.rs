//! What a secondary does: accept configurations, apply what the primary ordered, flush.

use super::*;

impl Replica {
    /// A primary wants this replica as a member. What was admitted before drains first (R6); then the record is
    /// made stable; then it is accepted.
    pub(super) fn on_new_config(&mut self, from: DiskId, config: PgConfig) {
        let generation = config.generation;
        let mut highest =
            self.accepting.as_ref().map_or(self.generation(), |a| a.config.generation.max(self.generation()));
        if self.generation() == Generation::default() {
            // A disk that gave its copy up knows no more what it had accepted, and would pass for a fresh member (R1, R3): the
            // map has gone on without it, and whoever leads by an older configuration is deposed.
            highest = highest.max(self.left_at);
        }
        if generation < highest {
            let mine = highest;
            return self.send(from, PeerMessage::Rejected { generation: mine, gap: false });
        }
        if !config.is_member(self.me) || config.primary().map(|p| p.disk) != Some(from) {
            return self.send(from, PeerMessage::ConfigRefused { generation });
        }
        if generation == self.generation()
            && matches!(self.role, Role::Secondary)
            && self.accepting.is_none()
            && self.applying.is_empty()
        {
            return self.send_accepted(from);
        }
        // Else what was received is applied first: the answer says that it is.
        if !self.can_be_member(&config) {
            return self.send(from, PeerMessage::ConfigRefused { generation });
        }
        if self.is_primary() {
            // The map's news has not come yet, the new primary's has: nothing more is served here.
            self.step_down();
        }
        self.yield_to(&config);
        self.actions.push(Action::AcceptGeneration { config: config.clone() });
        self.accepting = Some(Accepting { from, config, persisting: false, flush: AcceptFlush::Due });
        self.try_accept();
    }

    /// Nothing admitted under an earlier configuration is on its way to the disk.
    pub(super) fn is_drained(&self) -> bool {
        self.applying.is_empty() && !self.ops.values().any(|op| matches!(op.step, Step::Session { .. }))
    }

    pub(super) fn try_accept(&mut self) {
        if !self.applying.is_empty() || !self.ops.is_empty() {
            return;
        }
        let Some(accepting) = &mut self.accepting else { return };
        if accepting.persisting {
            return;
        }
        match accepting.flush {
            AcceptFlush::Due if self.caught_up_with.is_some() => {
                // A FLUSH that was answered since `Finish` did not ask this learner (R12, R19).
                accepting.flush = AcceptFlush::Running;
                let generation = accepting.config.generation;
                return self.disk(DiskOp::Flush { mark: self.last_sequence }, Waiting::AcceptFlush(generation));
            }
            AcceptFlush::Running => return,
            AcceptFlush::Due | AcceptFlush::Done => {}
        }
        accepting.persisting = true;
        let generation = accepting.config.generation;
        self.state.config = PgConfig { learners: Vec::new(), ..accepting.config.clone() };
        self.state.complete = true;
        self.persist(Waiting::Persist(generation));
    }

    /// The record is stable.
    pub(super) fn accepted(&mut self) {
        let Some(accepting) = self.accepting.take() else { return };
        // The map may have gone on while the record was written: then this is an old copy already, to be purged like any.
        self.role = if self.left_at > self.generation() { Role::Outside } else { Role::Secondary };
        self.target = None;
        self.caught_up_with = None;
        self.clear_unsure();
        self.copying.clear();
        self.send_accepted(accepting.from);
    }

    fn send_accepted(&mut self, to: DiskId) {
        let generation = self.generation();
        let uncommitted: BTreeSet<(ChunkId, u32, u32)> = self.uncommitted.values().copied().collect();
        let message = PeerMessage::ConfigAccepted {
            generation,
            last_sequence: self.last_sequence,
            uncommitted: uncommitted.into_iter().collect(),
            fences: self.fences.iter().map(|(v, i)| (*v, *i)).collect(),
        };
        self.send(to, message);
    }

    pub(super) fn on_activate(&mut self, generation: Generation, base_sequence: u64) {
        if generation == self.generation() && matches!(self.role, Role::Secondary) && base_sequence > self.last_sequence
        {
            self.last_sequence = base_sequence;
        }
    }

    /// Applies one ordered operation. A gap means that something was lost between the primary and here: the
    /// member says so and leaves rather than skip (R9, R11).
    pub(super) fn on_replicate(
        &mut self,
        from: DiskId,
        generation: Generation,
        sequence: u64,
        committed: u64,
        durable: bool,
        op: Operation,
    ) {
        let mine = self.generation();
        if generation != mine || !matches!(self.role, Role::Secondary) || self.accepting.is_some() {
            if generation <= mine && self.accepting.is_none() {
                let gap = generation == mine;
                self.send(from, PeerMessage::Rejected { generation: mine, gap });
            }
            return;
        }
        self.committed = self.committed.max(committed);
        self.forget_up_to(committed);
        if sequence <= self.last_sequence {
            if !self.applying.contains(&sequence) {
                self.send(from, PeerMessage::Applied { generation, sequence });
            }
            return;
        }
        if sequence != self.last_sequence + 1 {
            return self.send(from, PeerMessage::Rejected { generation, gap: true });
        }
        self.last_sequence = sequence;
        self.applying.insert(sequence);
        if let Some((chunk, range)) = op.extent() {
            self.uncommitted.insert((sequence, 0), (chunk, range.start, range.end - range.start));
        }
        match op {
            Operation::Fence { volume, incarnation } => {
                let fence = self.fences.entry(volume).or_default();
                *fence = (*fence).max(incarnation);
                self.persist(Waiting::PersistFence { from: Some(from), sequence });
            }
            op => self
                .disk(DiskOp::Apply { generation, sequence, op, durable }, Waiting::Apply { from, sequence, durable }),
        }
    }

    /// Every member has what was ordered up to here.
    pub(super) fn forget_up_to(&mut self, committed: u64) {
        self.uncommitted = self.uncommitted.split_off(&(committed + 1, 0));
    }

    pub(super) fn applied(&mut self, from: DiskId, sequence: u64, _durable: bool, result: DiskResult) {
        self.applying.remove(&sequence);
        let generation = self.generation();
        if from != self.me.disk {
            if matches!(result, DiskResult::NoSpace) {
                // Space was reserved; a file system below that lies about it makes this copy useless.
                self.send(from, PeerMessage::Rejected { generation, gap: true });
            } else {
                self.send(from, PeerMessage::Applied { generation, sequence });
            }
        }
        self.try_accept();
    }

    pub(super) fn on_prepare(&mut self, from: DiskId, generation: Generation, chunk: ChunkId) {
        if generation == self.generation() && matches!(self.role, Role::Secondary) {
            self.disk(DiskOp::Prepare { chunk, generation }, Waiting::MemberPrepare { from, chunk });
        }
    }

    pub(super) fn on_flush(&mut self, from: DiskId, generation: Generation, id: u64, mark: u64) {
        if generation == self.generation() && matches!(self.role, Role::Secondary) {
            self.disk(DiskOp::Flush { mark }, Waiting::MemberFlush { from, id });
        } else if generation < self.generation() {
            let mine = self.generation();
            self.send(from, PeerMessage::Rejected { generation: mine, gap: false });
        }
    }
}
