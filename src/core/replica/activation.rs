//! How a primary brings a configuration into force: members accept it, what may be on some only is reconciled, it serves.

use super::*;

impl Replica {
    /// The primary before this one serves no more: its lease needn't run out (R7). Both hear of the change from the coordinator;
    /// where the other was first, its word waits for the configuration.
    pub(super) fn on_yield(&mut self, from: DiskId, generation: Generation, now: Instant, env: &mut dyn Env) {
        if generation > self.generation() {
            self.yielded = Some((from, generation));
        } else if generation >= self.activation.led_since
            && self.is_primary()
            && self.activation.predecessor == Some(from)
        {
            self.activation.grants_end = Some(now);
            self.advance_activation(now, env);
        }
    }

    pub(super) fn begin_activation(&mut self, config: PgConfig, continuing: bool, now: Instant, env: &mut dyn Env) {
        // The same primary leads the very next configuration before it served: nobody else can have led in between, so what it
        // knows of the primary before it still holds.
        let again = self.is_primary() && !continuing && self.generation().next() == config.generation;
        let earlier =
            again.then_some((self.activation.predecessor, self.activation.grants_end, self.activation.led_since));
        if !continuing {
            if self.is_primary() {
                // It led before but served nothing: what it had ordered is reconciled like everyone's.
                self.step_down();
            }
            self.target_session_down();
        }
        self.unsaid = false;
        let incomplete = config.is_forced_on(self.me) && !self.is_complete();
        // By disk and boot: a restarted member that comes back in its own place is a newcomer too (R1).
        let old_members: BTreeSet<Member> = self.state.config.members.iter().copied().collect();
        let (predecessor, grants_end, mut led_since) =
            earlier.unwrap_or((self.state.config.primary().map(|p| p.disk), None, config.generation));
        // A word of the configuration before this one is one of this leadership too, as it was sent to its primary.
        let said = self.yielded.take_if(|(_, generation)| *generation <= config.generation);
        let counts = |to: Generation| to == config.generation || to.next() == config.generation;
        let yielded = said.filter(|(by, to)| counts(*to) && predecessor == Some(*by));
        if let Some((_, to)) = yielded {
            led_since = led_since.min(to);
        }
        self.state.config = PgConfig { learners: Vec::new(), ..config.clone() };
        self.state.complete = !incomplete;
        self.clear_unsure();
        self.caught_up_with = None;
        self.role = Role::Primary(Phase::Collecting);
        self.accepting = None;
        self.proposal = None;
        let others: BTreeSet<DiskId> = self.others().into_iter().collect();
        let mut newcomers: BTreeMap<DiskId, u64> = config
            .members
            .iter()
            .filter(|m| m.disk != self.me.disk && !old_members.contains(m))
            .map(|m| (m.disk, self.last_sequence))
            .collect();
        if continuing {
            // Those of the last configuration that were never activated still wait for it.
            let pending = self.activation.newcomers.iter().filter(|(d, _)| others.contains(d));
            newcomers.extend(pending.map(|(d, s)| (*d, *s)).collect::<Vec<_>>());
        }
        let mut bases = std::mem::take(&mut self.activation.bases);
        bases.retain(|d, _| continuing && others.contains(d) && !newcomers.contains_key(d));
        self.removals_refused = 0;
        let still_held = std::mem::take(&mut self.activation.held_back);
        let held_back: BTreeSet<DiskId> = newcomers
            .keys()
            .copied()
            .filter(|d| {
                config.members.iter().any(|m| m.disk == *d && !old_members.contains(m)) || still_held.contains(d)
            })
            .filter(|d| continuing && self.sessions.get(d).is_none_or(|s| !s.is_ready() || s.has_unacked_forwards()))
            .collect();
        // A newcomer whose session broke before the outcome was known may lack forwarded writes: it is taught again.
        let broken = held_back.iter().filter(|d| self.sessions.get(d).is_none_or(|s| !s.is_ready()));
        let broken: Vec<DiskId> = broken.copied().collect();
        self.faulty.clear();
        if !continuing {
            self.prepared.clear();
        }
        self.relinking.clear();
        self.stuck.clear();
        self.activation = Activation {
            began: now,
            continuing,
            persisted: false,
            waiting: others.clone(),
            held_back,
            newcomers,
            bases,
            max_sequence: self.last_sequence,
            uncommitted: if continuing { BTreeSet::new() } else { self.uncommitted.values().copied().collect() },
            grants_end: if continuing || yielded.is_some() { Some(now) } else { grants_end },
            predecessor,
            led_since,
            reconciling: BTreeSet::new(),
            repairs_due: true,
            restamping: 0,
        };
        self.actions.push(Action::AcceptGeneration { config: config.clone() });
        let generation = config.generation;
        if incomplete {
            self.disk(DiskOp::Table, Waiting::ForcedTable(generation));
        } else {
            self.persist(Waiting::Persist(generation));
        }
        self.send_new_config();
        self.sync_sessions();
        for disk in broken {
            self.teach_again(disk);
        }
        self.propose_removals(now, env);
    }

    /// The member's disk learns under another boot id: that member is no more (R1).
    pub(super) fn has_restarted(&self, member: Member) -> bool {
        self.learners.iter().any(|l| l.replica.disk == member.disk && l.replica != member)
    }

    /// A recorded member that has not accepted and lacks something: it gets it by a session, as a learner does, and
    /// accepts afterwards. Removing it may not be possible (R5).
    pub(super) fn teach_again(&mut self, disk: DiskId) {
        let member = self.state.config.members.iter().copied().find(|m| m.disk == disk);
        let Some(replica) = member.filter(|_| self.activation.waiting.contains(&disk)) else { return };
        if self.has_restarted(replica) {
            self.activation.held_back.remove(&disk);
            self.faulty.insert(disk);
            return;
        }
        self.activation.held_back.insert(disk);
        self.activation.newcomers.entry(disk).or_insert(self.last_sequence);
        if self.sessions.get(&disk).is_none_or(|s| !s.is_to(replica)) {
            self.new_session(super::super::cluster::Learner {
                replica,
                replaces: None,
                class: ResyncClass::Repair,
                paused: false,
            });
        }
    }

    /// The operator made an incomplete copy lead (R5). A half-copied chunk may carry the version of another content, and
    /// some replica may have that one: each chunk's content begins anew under this generation, stably, before the copy
    /// calls itself complete.
    pub(super) fn forced_table(&mut self, generation: Generation, result: DiskResult) {
        if generation != self.generation() || !self.is_primary() {
            return;
        }
        let chunks: Vec<ChunkId> = match result {
            DiskResult::Table(entries) => entries.into_iter().map(|e| e.chunk).collect(),
            _ => Vec::new(),
        };
        self.activation.restamping = chunks.len();
        for chunk in chunks {
            self.disk(DiskOp::SetVersion { chunk, generation, sequence: 0 }, Waiting::ForcedVersion(generation));
        }
        self.restamped(generation);
    }

    /// One chunk more has its new version, or there was none.
    pub(super) fn restamped(&mut self, generation: Generation) {
        let due = generation == self.generation() && self.is_primary() && !self.state.complete;
        if due && self.activation.restamping == 0 {
            self.disk(DiskOp::Flush { mark: 0 }, Waiting::ForcedFlush(generation));
        }
    }

    /// The new versions are stable.
    pub(super) fn forced_stable(&mut self, generation: Generation) {
        if generation == self.generation() && self.is_primary() && !self.state.complete {
            self.state.complete = true;
            self.persist(Waiting::Persist(generation));
        }
    }

    pub(super) fn send_new_config(&mut self) {
        let config = self.state.config.clone();
        let ready: Vec<DiskId> = self.activation.waiting.difference(&self.activation.held_back).copied().collect();
        for disk in ready {
            self.send(disk, PeerMessage::NewConfig { config: config.clone() });
        }
    }

    /// A promoted learner has applied all that was forwarded to it: it may accept the configuration now.
    pub(super) fn release_held_back(&mut self, learner: DiskId) {
        let has_all = self.sessions.get(&learner).is_some_and(|s| s.is_ready() && !s.has_unacked_forwards());
        if has_all
            && self.activation.held_back.remove(&learner)
            && matches!(self.role, Role::Primary(Phase::Collecting))
        {
            // Its session ends here: what is ordered from now on reaches it as a member.
            let base = self.last_sequence;
            self.activation.newcomers.insert(learner, base);
            let config = self.state.config.clone();
            self.send(learner, PeerMessage::NewConfig { config });
        }
    }

    pub(super) fn persisted(&mut self, generation: Generation, now: Instant, env: &mut dyn Env) {
        if self.accepting.as_ref().is_some_and(|a| a.config.generation == generation) {
            return self.accepted();
        }
        if self.is_primary() && generation == self.generation() {
            self.activation.persisted = true;
            self.advance_activation(now, env);
        }
    }

    #[allow(clippy::too_many_arguments, reason = "the fields of one message")]
    pub(super) fn on_config_accepted(
        &mut self,
        from: DiskId,
        generation: Generation,
        last_sequence: u64,
        uncommitted: Vec<(ChunkId, u32, u32)>,
        fences: Vec<(VolumeId, u64)>,
        now: Instant,
        env: &mut dyn Env,
    ) {
        if generation != self.generation() || !self.is_primary() {
            return;
        }
        self.acked_config(from);
        if !self.activation.waiting.remove(&from) {
            // An answer after a new link. What was acked before a clean restart is still there.
            if !self.activation.newcomers.contains_key(&from) {
                let last_sequence = self.activate_again(from, last_sequence);
                if last_sequence < self.committed {
                    self.faulty.insert(from);
                    return self.propose_removals(now, env);
                }
                for (_, entry) in self.inflight.range_mut(..=last_sequence) {
                    entry.awaiting.remove(&from);
                }
                self.resend_above(from, last_sequence);
            }
            self.relinking.remove(&from);
            self.resend_flushes();
            // What it was asked between its new link and its answer it could not say.
            self.retry_repairs();
            let chunks: Vec<ChunkId> =
                self.preparing.iter().filter(|(_, p)| p.awaiting.contains(&from)).map(|(c, _)| *c).collect();
            for chunk in chunks {
                self.send(from, PeerMessage::Prepare { generation, chunk });
            }
            return self.commit_all(env);
        }
        for (volume, incarnation) in fences {
            let fence = self.fences.entry(volume).or_default();
            *fence = (*fence).max(incarnation);
        }
        if self.activation.continuing {
            if !self.activation.newcomers.contains_key(&from) {
                // It drained what it had received before it accepted: all of that is applied.
                let last_sequence = self.activate_again(from, last_sequence);
                for (_, entry) in self.inflight.range_mut(..=last_sequence) {
                    entry.awaiting.remove(&from);
                }
                self.resend_above(from, last_sequence);
            }
        } else {
            self.activation.max_sequence = self.activation.max_sequence.max(last_sequence);
            self.activation.uncommitted.extend(uncommitted);
        }
        self.advance_activation(now, env);
    }

    /// A member that was told where sequences begin for it, and has not heard it: it has all up to there. Gives what it has.
    pub(super) fn activate_again(&mut self, member: DiskId, last_sequence: u64) -> u64 {
        match self.activation.bases.get(&member).copied() {
            Some(base_sequence) if last_sequence < base_sequence => {
                let generation = self.generation();
                self.send(member, PeerMessage::Activate { generation, base_sequence });
                base_sequence
            }
            _ => last_sequence,
        }
    }

    /// Moves an activation on as far as it can go.
    pub(super) fn advance_activation(&mut self, now: Instant, env: &mut dyn Env) {
        let generation = self.generation();
        // What this disk still applies of earlier generations must not land on what is reconciled (R6).
        let drained = self.activation.continuing || self.is_drained();
        if matches!(self.role, Role::Primary(Phase::Collecting))
            && self.activation.persisted
            && self.activation.waiting.is_empty()
            && drained
        {
            self.role = Role::Primary(Phase::Reconciling);
            if self.activation.continuing {
                let members: BTreeSet<DiskId> = self.others().into_iter().collect();
                for (sequence, entry) in &mut self.inflight {
                    // A learner in its last phase is waited for too: it may be the next member (R18).
                    let owes = |d: &DiskId| self.sessions.get(d).is_some_and(|s| s.owes(*sequence));
                    entry.awaiting.retain(|d| members.contains(d) || owes(d));
                }
                for flush in self.flushes.values_mut() {
                    flush.awaiting.retain(|d| members.contains(d));
                }
                for (disk, base_sequence) in std::mem::take(&mut self.activation.newcomers) {
                    self.activation.bases.insert(disk, base_sequence);
                    self.send(disk, PeerMessage::Activate { generation, base_sequence });
                    for (_, entry) in self.inflight.range_mut(..=base_sequence) {
                        entry.awaiting.remove(&disk);
                    }
                    self.resend_above(disk, base_sequence);
                }
                self.resend_flushes();
                self.restart_preparing();
                self.commit_all(env);
                let ids: Vec<u64> = self.flushes.keys().copied().collect();
                for id in ids {
                    self.finish_flush(id);
                }
            } else {
                self.last_sequence = self.activation.max_sequence;
                self.committed = self.last_sequence;
                let base_sequence = self.last_sequence;
                self.activation.newcomers.clear();
                for disk in self.others() {
                    self.activation.bases.insert(disk, base_sequence);
                    self.send(disk, PeerMessage::Activate { generation, base_sequence });
                }
                for (chunk, first, count) in std::mem::take(&mut self.activation.uncommitted) {
                    let ticket = self.start_op(
                        VolumeId(0),
                        NO_CONNECTION,
                        chunk,
                        first..first + count,
                        Mode::Exclusive,
                        Step::Reconcile,
                        env,
                    );
                    if self.ops.contains_key(&ticket) {
                        self.activation.reconciling.insert(ticket);
                    }
                }
            }
        }
        if self.is_primary() && self.activation.waiting.is_empty() && std::mem::take(&mut self.activation.repairs_due) {
            // Members that had not accepted didn't answer.
            self.retry_repairs();
        }
        if matches!(self.role, Role::Primary(Phase::Reconciling))
            && self.activation.reconciling.is_empty()
            && self.state.config.has_enough()
            && self.activation.grants_end.is_some_and(|at| at <= now)
        {
            self.role = Role::Primary(Phase::Serving);
            self.uncommitted.clear();
            for request in std::mem::take(&mut self.waiting_requests) {
                self.handle_client(request, env);
            }
        }
    }
}
