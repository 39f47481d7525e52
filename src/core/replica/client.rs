//! What gateways ask of a serving primary: admission, locks, reads, partial blocks, repair of bad blocks.

use super::*;
use crate::core::hashtree;
use crate::core::units::{BLOCK_BYTES, BLOCKS_PER_CHUNK, CHUNK_BYTES};

fn blocks(offset: u32, len: u32) -> std::ops::Range<u32> {
    let b = BLOCK_BYTES as u32;
    offset / b..(offset + len).div_ceil(b)
}

impl Replica {
    pub(super) fn handle_client(&mut self, request: ClientRequest, env: &mut dyn Env) {
        match self.role {
            Role::Primary(Phase::Serving) => {}
            Role::Primary(_) if self.waiting_requests.len() < WAITING_REQUESTS_MAX => {
                return self.waiting_requests.push_back(request);
            }
            _ => return self.reply(request.id, ClientReply::NotPrimary),
        }
        let ClientRequest { id, volume, incarnation, connection, op } = request;
        let connection = (incarnation, connection);
        if incarnation > 0 && self.fences.get(&volume).is_some_and(|f| *f > incarnation) {
            return self.reply(id, ClientReply::Fenced);
        }
        if let ClientOp::Open = op {
            return self.open(id, volume, connection, env);
        }
        let reads = matches!(op, ClientOp::Read { .. } | ClientOp::Status { .. } | ClientOp::Root { .. });
        let opened = self.open.get(&volume) == Some(&connection);
        if !(opened || incarnation == 0 && reads) {
            return self.reply(id, ClientReply::NotOpen);
        }
        let in_chunk = |offset: u32, len: u32| len > 0 && u64::from(offset) + u64::from(len) <= CHUNK_BYTES;
        let all = BLOCKS_PER_CHUNK as u32;
        match op {
            ClientOp::Open => {}
            ClientOp::Read { chunk, offset, len } if in_chunk(offset, len) => {
                let step = Step::Read { request: id, offset, len };
                self.start_op(volume, connection, chunk, blocks(offset, len), Mode::Shared, step, env);
            }
            ClientOp::Write { chunk, offset, leaves, data, fua }
                if in_chunk(offset, data.len() as u32)
                    && (leaves.is_empty()
                        || u64::from(offset).is_multiple_of(BLOCK_BYTES)
                            && data.len() as u64 == leaves.len() as u64 * BLOCK_BYTES) =>
            {
                let range = blocks(offset, data.len() as u32);
                let step = Step::Write { request: id, offset, leaves, data, durable: fua };
                self.start_op(volume, connection, chunk, range, Mode::Exclusive, step, env);
            }
            ClientOp::Zero { chunk, first_block, count, fua }
                if count > 0 && first_block < all && count <= all - first_block =>
            {
                let step = Step::Zero { request: id, durable: fua };
                self.start_op(volume, connection, chunk, first_block..first_block + count, Mode::Exclusive, step, env);
            }
            ClientOp::Status { chunk, first_block, count }
                if count > 0 && first_block < all && count <= all - first_block =>
            {
                let step = Step::Status { request: id };
                self.start_op(volume, connection, chunk, first_block..first_block + count, Mode::Shared, step, env);
            }
            ClientOp::Root { chunk, len } if in_chunk(0, len) => {
                let step = Step::Root { request: id, len };
                self.start_op(volume, connection, chunk, 0..all, Mode::Shared, step, env);
            }
            ClientOp::Flush => self.start_flush(id),
            // A range outside the chunk: no gateway of ours sends it.
            _ => self.reply(id, ClientReply::IoError),
        }
    }

    /// Lets a gateway's connection in: orders its fence, and waits until nothing of an earlier connection is
    /// under way (R6, R14).
    fn open(&mut self, request: RequestId, volume: VolumeId, connection: Connection, env: &mut dyn Env) {
        let (incarnation, _) = connection;
        let durability_epoch = self.state.config.durability_epoch;
        if incarnation == 0 {
            return self.reply(request, ClientReply::Done { durability_epoch });
        }
        if self.open.get(&volume).is_some_and(|newest| *newest > connection) {
            // Late news of a connection that its gateway has replaced: what comes behind it is old too.
            return self.reply(request, ClientReply::NotOpen);
        }
        self.open.insert(volume, connection);
        self.cancel_unordered(volume, |c| c.0 != 0 && c != connection);
        let fence = if self.fences.get(&volume).is_none_or(|f| *f < incarnation) {
            Some(self.order(None, None, Operation::Fence { volume, incarnation }, false, env))
        } else {
            None
        };
        self.pending_opens.push(PendingOpen { request, volume, connection, fence });
        self.finish_opens();
    }

    pub(super) fn finish_opens(&mut self) {
        let durability_epoch = self.state.config.durability_epoch;
        let mut kept = Vec::new();
        for open in std::mem::take(&mut self.pending_opens) {
            let busy = self
                .ops
                .values()
                .any(|op| op.volume == open.volume && op.connection != open.connection && op.connection.0 != 0);
            if open.fence.is_some() || busy {
                kept.push(open);
            } else {
                self.reply(open.request, ClientReply::Done { durability_epoch });
            }
        }
        self.pending_opens = kept;
    }

    /// Drops what gateway connections asked for and what has not been ordered.
    pub(super) fn cancel_unordered(&mut self, volume: VolumeId, matches: impl Fn(Connection) -> bool) {
        let tickets: Vec<Ticket> = self
            .ops
            .iter()
            .filter(|(_, op)| op.volume == volume && op.connection != NO_CONNECTION && matches(op.connection))
            .filter(|(_, op)| !matches!(op.step, Step::Ordered))
            .map(|(t, _)| *t)
            .collect();
        for ticket in tickets {
            let Some(op) = self.ops.get_mut(&ticket) else { continue };
            // One that waits for its disk read keeps its lock until the answer; it then finds nobody to tell.
            let waits_for_disk = self.disk_waits.values().any(|w| matches!(w, Waiting::Op(t) if *t == ticket));
            if waits_for_disk {
                op.step = Step::Read { request: 0, offset: 0, len: 0 };
                op.connection = NO_CONNECTION;
            } else {
                let chunk = op.chunk;
                self.ops.remove(&ticket);
                for p in self.preparing.values_mut() {
                    p.waiters.retain(|t| *t != ticket);
                }
                let granted = self.locks.release(chunk, ticket);
                // Grants of cancelled neighbours are started later by their own cancellation; the rest start now.
                self.granted_later.extend(granted);
            }
        }
    }

    /// Starts operations whose locks came free while others were cancelled.
    pub(super) fn start_granted(&mut self, env: &mut dyn Env) {
        loop {
            let next = match self.granted_later.pop() {
                None if !self.is_crowded() => self.crowded.pop_front(),
                granted => granted,
            };
            let Some(ticket) = next else { return };
            self.run_op(ticket, env);
        }
    }

    fn is_crowded(&self) -> bool {
        self.inflight.len() >= IN_FLIGHT_MAX
    }

    /// Registers an operation and runs it as soon as it has its lock.
    #[allow(clippy::too_many_arguments, reason = "the fields of one operation")]
    pub(super) fn start_op(
        &mut self,
        volume: VolumeId,
        connection: Connection,
        chunk: ChunkId,
        range: std::ops::Range<u32>,
        mode: Mode,
        step: Step,
        env: &mut dyn Env,
    ) -> Ticket {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        let op = Op { volume, connection, chunk, range: range.clone(), step, repair: None };
        self.ops.insert(ticket, op);
        if self.locks.acquire(chunk, range, mode, ticket) {
            self.run_op(ticket, env);
        }
        ticket
    }

    /// The operation has its lock: do its first step.
    pub(super) fn run_op(&mut self, ticket: Ticket, env: &mut dyn Env) {
        let crowded = self.is_crowded();
        let Some(op) = self.ops.get_mut(&ticket) else { return };
        let (chunk, range) = (op.chunk, op.range.clone());
        if let Some(repair) = &mut op.repair {
            // A repair got its exclusive lock: look again before asking others.
            repair.locked = true;
            return self.read_op(ticket);
        }
        match &mut op.step {
            Step::Read { .. } | Step::Reconcile | Step::Window { .. } => self.read_op(ticket),
            Step::Status { .. } | Step::Snapshot { .. } => self.leaves_op(ticket),
            Step::Root { len, .. } => {
                if u64::from(*len) == CHUNK_BYTES {
                    self.leaves_op(ticket)
                } else {
                    self.read_op(ticket)
                }
            }
            Step::Write { leaves, .. } => {
                if leaves.is_empty() {
                    // Partial blocks: read what they stand in.
                    self.read_op(ticket);
                } else if self.reserve(chunk, ticket) {
                    self.reserved_with(ticket, env);
                }
            }
            Step::Zero { .. } => self.reserved_with(ticket, env),
            Step::Drop if crowded => self.crowded.push_back(ticket),
            Step::Drop => {
                op.step = Step::Ordered;
                self.order(Some(ticket), None, Operation::Drop { chunk }, false, env);
            }
            Step::Session { .. } => self.run_session_op(ticket, range, env),
            Step::Ordered => {}
        }
    }

    fn read_op(&mut self, ticket: Ticket) {
        if let Some(op) = self.ops.get(&ticket) {
            let (chunk, first_block, count) = (op.chunk, op.range.start, op.range.end - op.range.start);
            let resync = matches!(op.step, Step::Window { .. });
            self.disk(DiskOp::Read { chunk, first_block, count, resync }, Waiting::Op(ticket));
        }
    }

    fn leaves_op(&mut self, ticket: Ticket) {
        if let Some(op) = self.ops.get(&ticket) {
            let chunk = op.chunk;
            self.disk(DiskOp::Leaves { chunk }, Waiting::Op(ticket));
        }
    }

    /// The chunk's space is reserved on all members: order the write.
    fn reserved_with(&mut self, ticket: Ticket, env: &mut dyn Env) {
        if self.is_crowded() {
            return self.crowded.push_back(ticket);
        }
        let Some(op) = self.ops.get_mut(&ticket) else { return };
        let (chunk, range) = (op.chunk, op.range.clone());
        match std::mem::replace(&mut op.step, Step::Ordered) {
            Step::Write { request, leaves, data, durable, .. } => {
                let operation = Operation::Write { chunk, first_block: range.start, leaves: Arc::new(leaves), data };
                self.order(Some(ticket), Some(request), operation, durable, env);
            }
            Step::Zero { request, durable } => {
                let operation = Operation::Zero { chunk, first_block: range.start, count: range.end - range.start };
                self.order(Some(ticket), Some(request), operation, durable, env);
            }
            other => op.step = other,
        }
    }

    /// A disk answered for an operation.
    pub(super) fn op_disk_done(&mut self, ticket: Ticket, result: DiskResult, now: Instant, env: &mut dyn Env) {
        if matches!(self.ops.get(&ticket), Some(Op { step: Step::Session { .. }, .. })) {
            return self.session_op_done(ticket, result, now, env);
        }
        match result {
            DiskResult::Bad { blocks } => self.bad_blocks(ticket, blocks, env),
            DiskResult::Data { leaves, data } => {
                if let Some(op) = self.ops.get_mut(&ticket) {
                    op.repair = None;
                }
                self.op_data(ticket, leaves, data, now, env);
            }
            DiskResult::Leaves(chunk_leaves) => self.op_leaves(ticket, chunk_leaves, now, env),
            DiskResult::Done => {
                // A repair wrote the good blocks: read again.
                self.read_op(ticket);
            }
            DiskResult::NoSpace | DiskResult::Table(_) | DiskResult::Failed(_) | DiskResult::Refused(_) => {
                self.fail_op(ticket, env)
            }
        }
    }

    fn op_data(&mut self, ticket: Ticket, leaves: Vec<Hash>, data: Bytes, now: Instant, env: &mut dyn Env) {
        let Some(op) = self.ops.get_mut(&ticket) else { return };
        let (chunk, range) = (op.chunk, op.range.clone());
        let base = range.start * BLOCK_BYTES as u32;
        match &mut op.step {
            Step::Read { request, offset, len } => {
                let (request, from) = (*request, (*offset).saturating_sub(base) as usize);
                let slice = data.slice(from..(from + *len as usize).min(data.len()));
                self.reply_read(request, ClientReply::Data(slice), now, env);
                self.finish_op(ticket, env);
            }
            Step::Root { request, len } => {
                let (request, len) = (*request, *len as usize);
                let root = hashtree::root_of_bytes(&data[..len.min(data.len())]);
                self.reply_read(request, ClientReply::Root(root), now, env);
                self.finish_op(ticket, env);
            }
            Step::Write { leaves, data: new, offset, .. } => {
                let mut merged = data.to_vec();
                let from = (*offset - base) as usize;
                merged[from..from + new.len()].copy_from_slice(new);
                *leaves = hashtree::leaves_of(range.start as usize, &merged);
                *new = merged.into();
                if self.reserve(chunk, ticket) {
                    self.reserved_with(ticket, env);
                }
            }
            Step::Reconcile => {
                op.step = Step::Ordered;
                let operation = if leaves.iter().all(|l| *l == hashtree::HOLE) {
                    Operation::Zero { chunk, first_block: range.start, count: range.end - range.start }
                } else {
                    Operation::Write { chunk, first_block: range.start, leaves: Arc::new(leaves), data }
                };
                self.order(Some(ticket), None, operation, false, env);
            }
            Step::Window { learner, window, blocks } => {
                let (learner, window, blocks) = (*learner, *window, *blocks);
                self.window_read(learner, chunk, window, blocks, &leaves, &data);
                self.finish_op(ticket, env);
            }
            _ => self.finish_op(ticket, env),
        }
    }

    fn op_leaves(&mut self, ticket: Ticket, found: Option<ChunkLeaves>, now: Instant, env: &mut dyn Env) {
        let Some(op) = self.ops.get(&ticket) else { return };
        let chunk = op.chunk;
        match &op.step {
            Step::Status { request } => {
                let request = *request;
                let count = (op.range.end - op.range.start) as usize;
                let mut bits = vec![0u8; count.div_ceil(8)];
                if let Some(found) = found {
                    for (i, leaf) in found.leaves[op.range.start as usize..op.range.end as usize].iter().enumerate() {
                        if *leaf != hashtree::HOLE {
                            bits[i / 8] |= 1 << (i % 8);
                        }
                    }
                }
                self.reply_read(request, ClientReply::Allocated(bits), now, env);
            }
            Step::Root { request, .. } => {
                let request = *request;
                let root = found.map_or_else(hashtree::zero_root, |f| hashtree::root(&f.leaves));
                self.reply_read(request, ClientReply::Root(root), now, env);
            }
            Step::Snapshot { learner } => {
                let learner = *learner;
                self.snapshot_taken(learner, chunk, found);
            }
            _ => {}
        }
        self.finish_op(ticket, env);
    }

    /// Answers a read if the lease holds at this moment, after the data has been read (R7); else it waits.
    fn reply_read(&mut self, request: RequestId, reply: ClientReply, now: Instant, env: &mut dyn Env) {
        if request == 0 {
            return;
        }
        if self.lease_holds(now, env) {
            self.reply(request, reply);
        } else {
            self.lease_waiters.push((request, reply));
        }
    }

    fn lease_holds(&self, now: Instant, env: &dyn Env) -> bool {
        self.proposed_member().is_none()
            && (self.state.config.members.len() == 1 || env.lease_until(&self.state.config, self.me.disk) > now)
    }

    pub(super) fn answer_lease_waiters(&mut self, now: Instant, env: &mut dyn Env) {
        if !self.lease_waiters.is_empty() && self.is_serving() && self.lease_holds(now, env) {
            for (request, reply) in std::mem::take(&mut self.lease_waiters) {
                self.reply(request, reply);
            }
        }
    }

    /// The operation is over: its lock goes to the next.
    pub(super) fn finish_op(&mut self, ticket: Ticket, env: &mut dyn Env) {
        let Some(op) = self.ops.remove(&ticket) else { return };
        let granted = self.locks.release(op.chunk, ticket);
        self.activation.reconciling.remove(&ticket);
        let mut emptied = Vec::new();
        for (volume, tickets) in &mut self.dropping {
            if tickets.remove(&ticket) && tickets.is_empty() {
                emptied.push(*volume);
            }
        }
        for volume in emptied {
            self.dropping.remove(&volume);
            self.actions.push(Action::VolumeDropped(volume));
        }
        for next in granted {
            self.run_op(next, env);
        }
        if !self.pending_opens.is_empty() {
            self.finish_opens();
        }
    }

    fn fail_op(&mut self, ticket: Ticket, env: &mut dyn Env) {
        let Some(op) = self.ops.get(&ticket) else { return };
        match op.step {
            Step::Read { request, .. }
            | Step::Write { request, .. }
            | Step::Zero { request, .. }
            | Step::Status { request }
            | Step::Root { request, .. } => self.reply(request, ClientReply::IoError),
            Step::Window { learner, window, .. } => {
                let chunk = op.chunk;
                self.window_unreadable(learner, chunk, window);
            }
            _ => {}
        }
        self.finish_op(ticket, env);
    }

    // ---- repair (R24) ----

    /// Blocks don't match their leaves. First look again under the write lock, then fetch from another member.
    fn bad_blocks(&mut self, ticket: Ticket, bad: Vec<u32>, env: &mut dyn Env) {
        let Some(op) = self.ops.get_mut(&ticket) else { return };
        let (chunk, range) = (op.chunk, op.range.clone());
        match &mut op.repair {
            None => {
                op.repair = Some(Repair { bad, sources: Vec::new(), locked: false, fetch_id: 0 });
                // The lock becomes exclusive, behind whoever shares it now.
                let granted = self.locks.release(chunk, ticket);
                let now_mine = self.locks.acquire(chunk, range, Mode::Exclusive, ticket);
                for next in granted {
                    self.run_op(next, env);
                }
                if now_mine {
                    self.run_op(ticket, env);
                }
            }
            Some(repair) => {
                repair.bad = bad;
                if repair.fetch_id == 0 {
                    let me = self.me.disk;
                    let sources: Vec<DiskId> =
                        self.state.config.members.iter().map(|m| m.disk).filter(|d| *d != me).collect();
                    repair.sources = sources;
                }
                self.fetch_next(ticket, env);
            }
        }
    }

    fn fetch_next(&mut self, ticket: Ticket, env: &mut dyn Env) {
        let generation = self.generation();
        let id = self.next_token;
        self.next_token += 1;
        let Some(op) = self.ops.get_mut(&ticket) else { return };
        let (chunk, first_block, count) = (op.chunk, op.range.start, op.range.end - op.range.start);
        let Some(repair) = &mut op.repair else { return };
        let Some(source) = repair.sources.pop() else {
            self.lost_blocks += repair.bad.len() as u64;
            return self.fail_op(ticket, env);
        };
        repair.fetch_id = id;
        self.send(source, PeerMessage::Fetch { generation, id, chunk, first_block, count });
    }

    /// Answers to fetches may be lost, with a link or a configuration: look again, then ask again.
    pub(super) fn retry_repairs(&mut self) {
        let mut due = Vec::new();
        for (ticket, op) in &mut self.ops {
            let busy = self.disk_waits.values().any(|w| matches!(w, Waiting::Op(t) if t == ticket));
            if let Some(repair) = &mut op.repair
                && repair.fetch_id != 0
                && !busy
            {
                repair.fetch_id = 0;
                due.push(*ticket);
            }
        }
        for ticket in due {
            self.read_op(ticket);
        }
    }

    /// Another member's copy, verified on receipt. Under the write lock nothing is in flight on these blocks, so
    /// the members' contents are equal where both are intact: its leaf is the current one even if ours is damaged.
    pub(super) fn on_fetched(
        &mut self,
        _from: DiskId,
        id: u64,
        leaves: Arc<Vec<Hash>>,
        data: Bytes,
        env: &mut dyn Env,
    ) {
        let found = self.ops.iter().find(|(_, op)| op.repair.as_ref().is_some_and(|r| r.fetch_id == id));
        let Some((&ticket, op)) = found else { return };
        let (chunk, range) = (op.chunk, op.range.clone());
        let bad = op.repair.as_ref().map(|r| r.bad.clone()).unwrap_or_default();
        if leaves.len() as u32 != range.end - range.start || data.len() as u64 != leaves.len() as u64 * BLOCK_BYTES {
            return self.fetch_next(ticket, env);
        }
        let intact = data.chunks_exact(BLOCK_BYTES as usize).zip(leaves.iter()).enumerate();
        if intact.into_iter().any(|(i, (block, leaf))| !hashtree::verify(range.start as usize + i, block, leaf)) {
            return self.fetch_next(ticket, env);
        }
        let mut content = Vec::new();
        let mut list = Vec::new();
        for block in bad {
            let i = (block - range.start) as usize;
            list.push((block, leaves[i]));
            if leaves[i] != hashtree::HOLE {
                let at = i * BLOCK_BYTES as usize;
                content.extend_from_slice(&data[at..at + BLOCK_BYTES as usize]);
            }
        }
        self.repaired_blocks += list.len() as u64;
        let generation = self.generation();
        let copy = DiskOp::Copy { chunk, generation, blocks: list, data: content.into() };
        self.disk(copy, Waiting::Op(ticket));
    }

    // ---- deletion ----

    pub(super) fn delete_volume(&mut self, volume: VolumeId) {
        if self.is_serving() && !self.dropping.contains_key(&volume) {
            self.dropping.insert(volume, BTreeSet::new());
            self.disk(DiskOp::Table, Waiting::DeleteTable(volume));
        }
    }

    pub(super) fn delete_chunks(&mut self, volume: VolumeId, result: DiskResult, env: &mut dyn Env) {
        let DiskResult::Table(entries) = result else {
            self.dropping.remove(&volume);
            return;
        };
        let chunks: Vec<ChunkId> = entries.iter().map(|e| e.chunk).filter(|c| c.volume == volume).collect();
        if chunks.is_empty() {
            self.dropping.remove(&volume);
            self.actions.push(Action::VolumeDropped(volume));
            return;
        }
        // All tickets are known before the first can finish.
        let tickets: BTreeSet<Ticket> = (0..chunks.len() as u64).map(|i| self.next_ticket + i).collect();
        self.dropping.insert(volume, tickets);
        for chunk in chunks {
            self.start_op(volume, NO_CONNECTION, chunk, 0..BLOCKS_PER_CHUNK as u32, Mode::Exclusive, Step::Drop, env);
        }
    }

    /// Ordered operations whose local disk had no space are tried again.
    pub(super) fn retry_stalled(&mut self) {
        let generation = self.generation();
        for sequence in std::mem::take(&mut self.stalled) {
            if let Some(entry) = self.inflight.get(&sequence) {
                let apply = DiskOp::Apply { generation, sequence, op: entry.op.clone(), durable: entry.durable };
                self.disk(apply, Waiting::Local(sequence));
            }
        }
    }
}
