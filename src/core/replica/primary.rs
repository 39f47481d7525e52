//! The primary: configurations from the map, ordering, commit, proposals, reservation and flush.

use super::*;

impl Replica {
    /// A configuration from the map or from a proposal's outcome.
    pub(super) fn handle_config(&mut self, config: PgConfig, now: Instant, env: &mut dyn Env) {
        if config.generation < self.generation() {
            return;
        }
        let listed = config.is_member(self.me) || config.learners.iter().any(|l| l.replica == self.me);
        self.dropped = !listed;
        if !listed && self.target.is_some() && config.generation > self.generation() {
            // A later configuration went on without it: whoever taught it leads no more, and may be gone without a word.
            self.target_session_down();
        }
        if !listed && self.target.is_none() {
            // It was dropped: it waits for no promotion any more, and is an old copy like any other. If the map that has it
            // as a learner is still on its way, it is only taught again.
            self.caught_up_with = None;
        }
        if !config.is_member(self.me) {
            self.left_at = self.left_at.max(config.generation);
        }
        let leads = config.primary() == Some(self.me);
        if config.generation == self.generation() {
            if self.is_primary() {
                self.learners = config.learners;
                self.sync_sessions();
                self.commit_all(env);
            } else if leads
                && matches!(self.role, Role::Outside)
                && self.accepting.is_none()
                && self.can_be_member(&config)
            {
                // A clean restart keeps the boot id and the configuration: lead it again, as a newcomer would. Not with a
                // copy that its disk found damaged: the coordinator promotes another (I5).
                self.learners = config.learners.clone();
                self.begin_activation(config, false, now, env);
            }
            return;
        }
        if leads {
            let continuing = self.is_serving() || (self.is_primary() && self.activation.continuing);
            if !continuing && !self.can_be_member(&config) {
                return;
            }
            self.learners = config.learners.clone();
            self.begin_activation(config, continuing, now, env);
            return;
        }
        if self.is_primary() {
            self.step_down();
        }
        self.yield_to(&config);
        if !config.is_member(self.me) && matches!(self.role, Role::Secondary) {
            self.role = Role::Outside;
        }
        self.actions.push(Action::AcceptGeneration { config });
    }

    /// Complete, or fresh: a member under this very boot id that has accepted nothing yet was one from the PG's first
    /// configuration on (a learner has a record), and none is active before all its members have accepted it (R3): there
    /// is no data that could be missing. Or the operator's decision, which the record itself carries (R5).
    pub(super) fn can_be_member(&self, config: &PgConfig) -> bool {
        let fresh = self.generation() == Generation::default() && config.is_member(self.me);
        self.is_complete() || fresh || config.is_forced_on(self.me)
    }

    /// Tells who leads by this configuration that nobody serves any more, if that is so and wasn't told: then the lease needn't run
    /// out before IO goes on (R7). Whoever brings the news first, the map or the successor itself.
    pub(super) fn yield_to(&mut self, config: &PgConfig) {
        if let Some(primary) = config.primary()
            && std::mem::take(&mut self.unsaid)
        {
            self.send(primary.disk, PeerMessage::Yield { generation: config.generation });
        }
    }

    /// Another replica leads now: clients go there, what is in flight counts as uncommitted.
    pub(super) fn step_down(&mut self) {
        // One that never served can't speak for the primary before it, whose lease may still hold.
        self.unsaid |= self.is_serving() || self.activation.continuing;
        for (sequence, entry) in std::mem::take(&mut self.inflight) {
            if let Some((chunk, range)) = entry.op.extent() {
                self.uncommitted.insert((sequence, 0), (chunk, range.start, range.end - range.start));
            }
            if let Some(request) = entry.request {
                self.reply(request, ClientReply::NotPrimary);
            }
        }
        self.abandon_clients();
        self.close_sessions();
        self.role = Role::Secondary;
        self.proposal = None;
        self.faulty.clear();
    }

    pub(super) fn close_sessions(&mut self) {
        for learner in std::mem::take(&mut self.sessions).into_keys() {
            self.actions.push(Action::CloseSession { learner });
        }
    }

    /// Everything that clients wait for is answered: ask elsewhere.
    pub(super) fn abandon_clients(&mut self) {
        let mut requests: Vec<RequestId> = self.waiting_requests.drain(..).map(|r| r.id).collect();
        requests.extend(self.lease_waiters.drain(..).map(|(r, _)| r));
        requests.extend(self.pending_opens.drain(..).map(|o| o.request));
        requests.extend(std::mem::take(&mut self.flushes).into_values().map(|f| f.request));
        for (_, op) in std::mem::take(&mut self.ops) {
            match op.step {
                Step::Read { request, .. }
                | Step::Write { request, .. }
                | Step::Zero { request, .. }
                | Step::Status { request }
                | Step::Root { request, .. } => requests.push(request),
                _ => {}
            }
        }
        requests.extend(self.inflight.values_mut().filter_map(|e| e.request.take()));
        for request in requests {
            self.reply(request, ClientReply::NotPrimary);
        }
        self.locks = Locks::default();
        self.crowded.clear();
        self.preparing.clear();
        self.prepared.clear();
        self.open.clear();
        self.dropping.clear();
        // The disk still works on some of these; their answers find nobody and are ignored, but a write that is
        // under way must have drained before a new configuration is accepted.
        for (token, waiting) in &mut self.disk_waits {
            let sequence = match waiting {
                Waiting::Local(sequence) => *sequence,
                // A repair's write would land on newer content. It has no sequence: take one that no operation has.
                Waiting::Op(_) => u64::MAX - token,
                _ => continue,
            };
            self.applying.insert(sequence);
            *waiting = Waiting::Apply { from: self.me.disk, sequence, durable: false };
        }
        // Those that found no space never reached the disk.
        self.stalled.clear();
    }

    /// Writes the record, one at a time: the disk works on several things at once, and an older record must not land
    /// on a newer one. Those that wait share the next.
    pub(super) fn persist(&mut self, waiting: Waiting) {
        self.persist_waiting.push(waiting);
        self.persist_next();
    }

    pub(super) fn persist_next(&mut self) {
        if !self.persisting && !self.persist_waiting.is_empty() {
            self.persisting = true;
            let waiting = std::mem::take(&mut self.persist_waiting);
            self.disk(DiskOp::Persist(self.state()), Waiting::Record(waiting));
        }
    }

    /// Gives the operation the next sequence and sends it to everyone who must have it.
    pub(super) fn order(
        &mut self,
        ticket: Option<Ticket>,
        request: Option<RequestId>,
        op: Operation,
        durable: bool,
        env: &mut dyn Env,
    ) -> u64 {
        self.last_sequence += 1;
        let sequence = self.last_sequence;
        let generation = self.generation();
        let mut awaiting: BTreeSet<DiskId> = BTreeSet::new();
        for disk in self.others() {
            awaiting.insert(disk);
            let not_yet = self.activation.waiting.contains(&disk)
                || self.activation.newcomers.contains_key(&disk)
                || self.relinking.contains(&disk);
            if not_yet {
                // It would be refused, or be a gap; it follows the member's acceptance.
                continue;
            }
            let committed = self.committed_for_members();
            let message = PeerMessage::Replicate { generation, sequence, committed, durable, op: op.clone() };
            self.send(disk, message);
        }
        self.forward(generation, sequence, durable, &op, &mut awaiting);
        // Also if its session has broken: then the outcome decides who must have it (R3).
        awaiting.extend(self.proposed_member());
        let local_done = match &op {
            Operation::Fence { volume, incarnation } => {
                self.fences.insert(*volume, *incarnation);
                self.persist(Waiting::PersistFence { from: None, sequence });
                false
            }
            _ => {
                let apply = DiskOp::Apply { generation, sequence, op: op.clone(), durable };
                self.disk(apply, Waiting::Local(sequence));
                false
            }
        };
        let since = self.now;
        self.inflight.insert(sequence, InFlight { ticket, request, op, durable, since, local_done, awaiting });
        let _ = env;
        sequence
    }

    pub(super) fn on_applied(&mut self, from: DiskId, generation: Generation, sequence: u64, env: &mut dyn Env) {
        // An ack of an older generation that this primary led is as good: the member has it.
        let _ = generation;
        if let Some(entry) = self.inflight.get_mut(&sequence) {
            entry.awaiting.remove(&from);
            self.try_commit(sequence, env);
        }
    }

    pub(super) fn try_commit(&mut self, sequence: u64, env: &mut dyn Env) {
        if !matches!(self.role, Role::Primary(Phase::Reconciling | Phase::Serving)) {
            return;
        }
        let Some(entry) = self.inflight.get(&sequence) else { return };
        if !entry.local_done || !entry.awaiting.is_empty() {
            return;
        }
        let Some(entry) = self.inflight.remove(&sequence) else { return };
        self.committed = self.inflight.keys().next().map_or(self.last_sequence, |first| first - 1);
        if let Some(request) = entry.request {
            let durability_epoch = self.state.config.durability_epoch;
            self.reply(request, ClientReply::Done { durability_epoch });
        }
        if let Some(ticket) = entry.ticket {
            self.finish_op(ticket, env);
        }
        for open in &mut self.pending_opens {
            if open.fence == Some(sequence) {
                open.fence = None;
            }
        }
        self.finish_opens();
    }

    pub(super) fn commit_all(&mut self, env: &mut dyn Env) {
        let sequences: Vec<u64> = self.inflight.keys().copied().collect();
        for sequence in sequences {
            self.try_commit(sequence, env);
        }
    }

    pub(super) fn on_rejected(
        &mut self,
        from: DiskId,
        generation: Generation,
        gap: bool,
        now: Instant,
        env: &mut dyn Env,
    ) {
        if !self.is_primary() {
            return;
        }
        if gap && generation == self.generation() {
            self.faulty.insert(from);
            self.propose_removals(now, env);
        } else if generation > self.generation() {
            // Deposed: the map will say by whom. Until then nothing is acked (the members refuse) or read (they
            // no longer renew).
            self.step_down();
        }
    }

    /// What the peer may have missed goes out again, in order; it drops what it has.
    pub(super) fn resend_to(&mut self, disk: DiskId) {
        if !self.is_primary() {
            return;
        }
        if self.activation.waiting.contains(&disk) {
            if !self.activation.held_back.contains(&disk) {
                let config = self.state.config.clone();
                self.send(disk, PeerMessage::NewConfig { config });
            }
            return;
        }
        if !self.others().contains(&disk) {
            return;
        }
        self.retry_repairs();
        self.acked_config(disk);
        self.relinking.insert(disk);
        if !self.activation.newcomers.contains_key(&disk) {
            let generation = self.generation();
            // It has all that it acked, also after a clean restart; the answer to NewConfig tells how much more.
            let base_sequence = self.committed;
            self.send(disk, PeerMessage::Activate { generation, base_sequence });
        }
        let config = self.state.config.clone();
        self.send(disk, PeerMessage::NewConfig { config });
    }

    /// Up to where members may forget which ranges are uncommitted. Nothing while a new primary reconciles: should it
    /// fail half-way, the next one needs all those ranges again.
    pub(super) fn committed_for_members(&self) -> u64 {
        if self.is_serving() || self.activation.continuing { self.committed } else { 0 }
    }

    pub(super) fn resend_above(&mut self, disk: DiskId, sequence: u64) {
        let generation = self.generation();
        let committed = self.committed_for_members();
        let messages: Vec<PeerMessage> = self
            .inflight
            .range(sequence + 1..)
            .filter(|(_, e)| e.awaiting.contains(&disk))
            .map(|(s, e)| PeerMessage::Replicate {
                generation,
                sequence: *s,
                committed,
                durable: e.durable,
                op: e.op.clone(),
            })
            .collect();
        for message in messages {
            self.send(disk, message);
        }
    }

    // ---- proposals ----

    /// Members that don't answer, or ack nothing, are proposed for removal; the coordinator judges (R3, R5, R8).
    pub(super) fn propose_removals(&mut self, now: Instant, env: &mut dyn Env) {
        if !self.is_primary() || self.proposal.is_some() || now < self.propose_after {
            return;
        }
        let gone: Vec<Member> = self
            .state
            .config
            .members
            .iter()
            .copied()
            .filter(|m| m.disk != self.me.disk)
            .filter(|m| [&self.unreachable, &self.faulty, &self.stuck].iter().any(|set| set.contains(&m.disk)))
            .collect();
        if gone.is_empty() {
            return;
        }
        // All at once; if that is refused, one after the other: some may go where all can't (R5).
        let turn = self.removals_refused % (gone.len() + 1);
        let some = if turn == 0 || gone.len() == 1 { gone } else { vec![gone[turn - 1]] };
        self.propose(Change::Remove(some), env);
    }

    pub(super) fn propose(&mut self, change: Change, env: &mut dyn Env) {
        let proposal = env.random();
        self.proposal = Some((proposal, change.clone()));
        let base = self.generation();
        self.actions.push(Action::Propose { proposal, base, change });
    }

    /// The learner whose promotion is proposed. Until the outcome is known it may be a member already, and even lead
    /// without the granters of this primary's lease: no read is served, and no operation is acked without it (R3).
    pub(super) fn proposed_member(&self) -> Option<DiskId> {
        match &self.proposal {
            Some((_, Change::Promote(learner))) => Some(learner.disk),
            _ => None,
        }
    }

    pub(super) fn handle_outcome(
        &mut self,
        proposal: u64,
        accepted: bool,
        config: Option<PgConfig>,
        now: Instant,
        env: &mut dyn Env,
    ) {
        let Some((mine, change)) = self.proposal.clone() else { return };
        if mine != proposal {
            return;
        }
        if accepted && config.as_ref().is_none_or(|c| c.generation <= self.generation()) {
            // The map will bring the configuration; until then the change counts as possible.
            return;
        }
        self.proposal = None;
        self.propose_after = now + PROPOSAL_RETRY;
        if !accepted && matches!(change, Change::Remove(_)) {
            self.removals_refused += 1;
        }
        if !accepted && let Change::Promote(learner) = change {
            self.promotion_refused(learner.disk, env);
        }
        if let Some(config) = config {
            self.handle_config(config, now, env);
        }
    }

    // ---- space ----

    /// True if the chunk's space is reserved on all members; else the ticket waits for it (R9).
    pub(super) fn reserve(&mut self, chunk: ChunkId, ticket: Ticket) -> bool {
        if self.prepared.contains(&chunk) {
            return true;
        }
        self.locks.park(chunk, ticket);
        let first = !self.preparing.contains_key(&chunk);
        self.preparing.entry(chunk).or_default().waiters.push(ticket);
        if first {
            self.send_prepares(chunk);
        }
        false
    }

    fn send_prepares(&mut self, chunk: ChunkId) {
        let generation = self.generation();
        let mut awaiting: BTreeSet<DiskId> = self.others().into_iter().collect();
        for disk in awaiting.clone() {
            self.send(disk, PeerMessage::Prepare { generation, chunk });
        }
        awaiting.insert(self.me.disk);
        self.disk(DiskOp::Prepare { chunk, generation }, Waiting::Prepare(chunk));
        if let Some(p) = self.preparing.get_mut(&chunk) {
            p.since = self.now;
            p.awaiting = awaiting;
            p.full.clear();
            p.retry_at = None;
        }
    }

    pub(super) fn on_prepared(&mut self, from: DiskId, chunk: ChunkId, ok: bool, now: Instant) {
        let Some(p) = self.preparing.get_mut(&chunk) else { return };
        if !p.awaiting.remove(&from) {
            return;
        }
        if !ok {
            p.full.insert(from);
        }
        if !p.awaiting.is_empty() {
            return;
        }
        if p.full.is_empty() {
            let waiters = std::mem::take(&mut p.waiters);
            self.preparing.remove(&chunk);
            self.prepared.insert(chunk);
            for ticket in waiters {
                if self.locks.unpark(chunk, ticket) {
                    self.granted_later.push(ticket);
                }
            }
        } else {
            p.retry_at = Some(now + SPACE_RETRY);
        }
    }

    /// Full disks are asked again: space may have been freed, or the configuration changed.
    pub(super) fn retry_space(&mut self, now: Instant) {
        let due: Vec<ChunkId> =
            self.preparing.iter().filter(|(_, p)| p.retry_at.is_some_and(|at| at <= now)).map(|(c, _)| *c).collect();
        for chunk in due {
            self.send_prepares(chunk);
        }
    }

    pub(super) fn restart_preparing(&mut self) {
        let chunks: Vec<ChunkId> = self.preparing.keys().copied().collect();
        for chunk in chunks {
            self.send_prepares(chunk);
        }
    }

    // ---- flush ----

    pub(super) fn start_flush(&mut self, request: RequestId) {
        let id = self.next_token;
        self.next_token += 1;
        let mark = self.committed;
        let awaiting: BTreeSet<DiskId> = self.others().into_iter().collect();
        let generation = self.generation();
        for disk in &awaiting {
            self.actions.push(Action::Send { to: *disk, message: PeerMessage::Flush { generation, id, mark } });
        }
        self.flushes.insert(id, PendingFlush { request, mark, since: self.now, local_done: false, awaiting });
        self.disk(DiskOp::Flush { mark }, Waiting::Flush(id));
    }

    /// After a change of members every one of them flushes (R12: a flush that spans a promotion includes the
    /// learner).
    pub(super) fn resend_flushes(&mut self) {
        let generation = self.generation();
        let others = self.others();
        let marks: Vec<(u64, u64)> = self.flushes.iter().map(|(id, f)| (*id, f.mark)).collect();
        for (id, mark) in marks {
            for disk in &others {
                self.send(*disk, PeerMessage::Flush { generation, id, mark });
            }
            if let Some(flush) = self.flushes.get_mut(&id) {
                flush.awaiting = others.iter().copied().collect();
            }
        }
    }

    pub(super) fn on_flushed(&mut self, from: DiskId, id: u64) {
        if let Some(flush) = self.flushes.get_mut(&id) {
            flush.awaiting.remove(&from);
        }
        self.finish_flush(id);
    }

    pub(super) fn finish_flush(&mut self, id: u64) {
        if !matches!(self.role, Role::Primary(Phase::Reconciling | Phase::Serving)) {
            return;
        }
        if self.flushes.get(&id).is_some_and(|f| f.local_done && f.awaiting.is_empty())
            && let Some(flush) = self.flushes.remove(&id)
        {
            let durability_epoch = self.state.config.durability_epoch;
            self.reply(flush.request, ClientReply::Done { durability_epoch });
        }
    }

    /// The fence's record is stable here: at the primary it counts as applied, at a member it is acked.
    pub(super) fn fence_persisted(&mut self, from: Option<DiskId>, sequence: u64, env: &mut dyn Env) {
        match from {
            None => {
                if let Some(entry) = self.inflight.get_mut(&sequence) {
                    entry.local_done = true;
                }
                self.try_commit(sequence, env);
            }
            Some(primary) => self.applied(primary, sequence, false, DiskResult::Done),
        }
    }
}
