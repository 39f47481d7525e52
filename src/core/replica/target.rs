//! Resync at the learner: applies a session's messages in the order in which they come.
//!
//! Each message takes an exclusive lock on the blocks that it touches, in arrival order, so that different chunks
//! go on in parallel and overlapping ones don't. The incomplete mark is durable before the first overwrite, and
//! `complete` is set only by accepting a configuration that has this replica as a member (R19, I5).

use super::*;
use crate::core::hashtree;
use crate::core::units::{BLOCKS_PER_CHUNK, BLOCKS_PER_WINDOW};

/// Entries in one message of the table.
const TABLE_PART: usize = 4096;

/// Forwarded operations remembered as perhaps uncommitted: more than a primary has in flight, with what it reconciles.
const FORWARDED_MAX: usize = 4 * IN_FLIGHT_MAX;

/// The session as the learner sees it.
#[derive(Debug)]
pub(super) struct Target {
    primary: DiskId,
    /// Tells this session from earlier ones.
    number: u64,
    /// Messages that wait for the incomplete mark and the table.
    opening: bool,
    early: VecDeque<SessionMessage>,
    finish: bool,
    /// Operations that found the disk full, to be tried again.
    full: Vec<Ticket>,
    retry_at: Option<Instant>,
}

impl Target {
    pub(super) fn primary(&self) -> DiskId {
        self.primary
    }
}

impl Replica {
    /// True while this learner waits for space.
    pub fn target_is_full(&self) -> bool {
        self.target.as_ref().is_some_and(|t| !t.full.is_empty())
    }

    pub(super) fn on_session_message(&mut self, from: DiskId, message: SessionMessage) {
        if let SessionMessage::Open { config } = message {
            let stale = config.generation < self.generation()
                || self.is_primary()
                || config.is_member(self.me)
                // It has accepted that very configuration: it is no learner any more.
                || (config.generation == self.generation() && matches!(self.role, Role::Secondary))
                || !config.learners.iter().any(|l| l.replica == self.me);
            if stale || !self.ops.is_empty() || !self.applying.is_empty() || self.accepting.is_some() {
                // The primary's stream will be closed by its driver and opened again.
                return self.actions.push(Action::CloseSession { learner: from });
            }
            self.role = Role::Outside;
            self.caught_up_with = None;
            self.dropped = false;
            // What was received and may not be committed has a version that means nothing to the primary.
            for (chunk, _, _) in std::mem::take(&mut self.uncommitted).into_values() {
                self.note_unsure(chunk);
            }
            // Sequences of another history: after all members restarted, the truth may count from a lower one, and
            // what it orders must not look as if it had been applied here.
            self.last_sequence = 0;
            self.copying.clear();
            let number = self.next_token;
            self.next_token += 1;
            self.target = Some(Target {
                primary: from,
                number,
                opening: true,
                early: VecDeque::new(),
                finish: false,
                full: Vec::new(),
                retry_at: None,
            });
            self.state.config = PgConfig { learners: Vec::new(), ..config };
            self.state.complete = false;
            self.actions.push(Action::AcceptGeneration { config: self.state.config.clone() });
            return self.persist(Waiting::TargetOpen(number));
        }
        let Some(target) = &mut self.target else { return };
        if target.primary != from || self.accepting.is_some() {
            // Once it accepts as a member, what a deposed primary still forwards comes too late.
            return;
        }
        if target.opening {
            // The primary sends nothing before it has the table; a broken one can't make this grow.
            if target.early.len() < 1024 {
                target.early.push_back(message);
            }
            return;
        }
        self.start_session_op(message);
    }

    fn start_session_op(&mut self, message: SessionMessage) {
        match &message {
            SessionMessage::Compare { chunk, windows } if windows.is_empty() => {
                self.note_unsure(*chunk);
                self.copying.insert(*chunk, (Generation::default(), 0));
                return;
            }
            SessionMessage::Forward { sequence, committed, op, .. } => {
                self.forget_up_to(*committed);
                if let Some((chunk, range)) = op.extent() {
                    // A failover may find it here and nowhere else.
                    self.uncommitted.insert((*sequence, 0), (chunk, range.start, range.end - range.start));
                    if self.uncommitted.len() > FORWARDED_MAX {
                        self.uncommitted.pop_first();
                    }
                }
            }
            _ => {}
        }
        let all = 0..BLOCKS_PER_CHUNK as u32;
        let window_range = |w: u32| w * BLOCKS_PER_WINDOW as u32..(w + 1) * BLOCKS_PER_WINDOW as u32;
        let (chunk, range) = match &message {
            SessionMessage::Drop { chunk }
            | SessionMessage::Compare { chunk, .. }
            | SessionMessage::ChunkDone { chunk, .. } => (*chunk, all),
            SessionMessage::CompareWindow { chunk, window, .. }
            | SessionMessage::CompareBlocks { chunk, window, .. }
            | SessionMessage::Copy { chunk, window, .. } => (*chunk, window_range((*window).min(15))),
            SessionMessage::Forward { sequence, op, .. } => match op {
                Operation::Fence { volume, incarnation } => {
                    // It becomes durable with the configuration that makes this replica a member.
                    let fence = self.fences.entry(*volume).or_default();
                    *fence = (*fence).max(*incarnation);
                    let sequence = *sequence;
                    return self.tell_primary(SessionMessage::Forwarded { sequence });
                }
                op => match op.extent() {
                    Some(extent) => extent,
                    None => return,
                },
            },
            SessionMessage::Finish { sequence, uncommitted } => {
                let ranges = uncommitted.iter().zip(1..).map(|(range, i)| ((*sequence, i), *range));
                self.uncommitted.extend(ranges);
                if let Some(target) = &mut self.target {
                    target.finish = true;
                }
                return self.try_finish();
            }
            _ => return,
        };
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        let step = Step::Session { message: Box::new(message) };
        self.ops.insert(
            ticket,
            Op { volume: chunk.volume, connection: NO_CONNECTION, chunk, range: range.clone(), step, repair: None },
        );
        if self.locks.acquire(chunk, range, Mode::Exclusive, ticket) {
            self.granted_later.push(ticket);
        }
    }

    /// The operation has its lock.
    pub(super) fn run_session_op(&mut self, ticket: Ticket, range: std::ops::Range<u32>, env: &mut dyn Env) {
        let Some(op) = self.ops.get_mut(&ticket) else { return };
        let Step::Session { message } = &op.step else { return };
        let generation = self.state.config.generation;
        let disk_op = match message.as_ref() {
            SessionMessage::Drop { chunk } => {
                DiskOp::Apply { generation, sequence: 0, op: Operation::Drop { chunk: *chunk }, durable: false }
            }
            SessionMessage::Compare { chunk, .. }
            | SessionMessage::CompareWindow { chunk, .. }
            | SessionMessage::CompareBlocks { chunk, .. } => DiskOp::Leaves { chunk: *chunk },
            SessionMessage::Copy { chunk, blocks, leaves, data, .. } => {
                let indexes = (0..BLOCKS_PER_WINDOW as u32).filter(|i| blocks >> i & 1 == 1).map(|i| range.start + i);
                let list: Vec<(u32, Hash)> = indexes.zip(leaves.iter().copied()).collect();
                DiskOp::Copy { chunk: *chunk, generation, blocks: list, data: data.clone() }
            }
            SessionMessage::ChunkDone { chunk, generation, sequence } => {
                // What was forwarded meanwhile is newer.
                let forwarded = self.copying.get(chunk).copied().unwrap_or_default();
                let (generation, sequence) = forwarded.max((*generation, *sequence));
                DiskOp::SetVersion { chunk: *chunk, generation, sequence }
            }
            SessionMessage::Forward { generation, sequence, durable, op, .. } => {
                // A chunk that is half copied must not carry the version of a write that it has.
                let copying = op.extent().and_then(|(chunk, _)| self.copying.get_mut(&chunk));
                let version = match copying {
                    Some(newest) => {
                        *newest = (*newest).max((*generation, *sequence));
                        (Generation::default(), 0)
                    }
                    None => (*generation, *sequence),
                };
                DiskOp::Apply { generation: version.0, sequence: version.1, op: op.clone(), durable: *durable }
            }
            _ => return self.finish_op(ticket, env),
        };
        self.disk(disk_op, Waiting::Op(ticket));
    }

    pub(super) fn session_op_done(&mut self, ticket: Ticket, result: DiskResult, now: Instant, env: &mut dyn Env) {
        if matches!(result, DiskResult::NoSpace)
            && let Some(target) = &mut self.target
        {
            target.full.push(ticket);
            target.retry_at.get_or_insert(now + SPACE_RETRY);
            return;
        }
        let Some(op) = self.ops.get_mut(&ticket) else { return };
        let Step::Session { message } = std::mem::replace(&mut op.step, Step::Ordered) else { return };
        let found = match result {
            DiskResult::Leaves(found) => found.map(|f| f.leaves),
            _ => None,
        };
        let mine = |block: usize| found.as_ref().map_or(hashtree::HOLE, |l| l[block]);
        let subtree = |first: usize, count: usize| match &found {
            Some(leaves) => hashtree::subtree(first, &leaves[first..first + count]),
            None => hashtree::HOLE,
        };
        let answer = match *message {
            SessionMessage::Compare { chunk, windows } => {
                let differs = windows
                    .iter()
                    .enumerate()
                    .take(16)
                    .filter(|(w, theirs)| subtree(w * BLOCKS_PER_WINDOW, BLOCKS_PER_WINDOW) != **theirs)
                    .fold(0u16, |mask, (w, _)| mask | 1 << w);
                Some(SessionMessage::Differs { chunk, windows: differs })
            }
            SessionMessage::CompareWindow { chunk, window, groups } => {
                let first = window.min(15) as usize * BLOCKS_PER_WINDOW;
                let differs = groups
                    .iter()
                    .enumerate()
                    .take(16)
                    .filter(|(g, theirs)| subtree(first + g * 4, 4) != **theirs)
                    .fold(0u16, |mask, (g, _)| mask | 1 << g);
                Some(SessionMessage::WindowDiffers { chunk, window, groups: differs })
            }
            SessionMessage::CompareBlocks { chunk, window, groups, leaves } => {
                let first = window.min(15) as usize * BLOCKS_PER_WINDOW;
                let blocks = (0..BLOCKS_PER_WINDOW).filter(|i| groups >> (i / 4) & 1 == 1);
                let differs = blocks
                    .zip(&leaves)
                    .filter(|(i, theirs)| mine(first + i) != **theirs)
                    .fold(0u64, |mask, (i, _)| mask | 1 << i);
                Some(SessionMessage::BlocksDiffer { chunk, window, blocks: differs })
            }
            SessionMessage::Copy { chunk, window, blocks, .. } => {
                let bytes = blocks.count_ones() * crate::core::units::BLOCK_BYTES as u32;
                Some(SessionMessage::Copied { chunk, window, bytes })
            }
            SessionMessage::ChunkDone { chunk, .. } | SessionMessage::Drop { chunk } => {
                self.unsure_chunks.remove(&chunk);
                self.copying.remove(&chunk);
                None
            }
            SessionMessage::Forward { sequence, .. } => {
                self.last_sequence = self.last_sequence.max(sequence);
                Some(SessionMessage::Forwarded { sequence })
            }
            _ => None,
        };
        if let Some(answer) = answer {
            self.tell_primary(answer);
        }
        self.finish_op(ticket, env);
        self.try_finish();
        self.try_accept();
    }

    /// The chunk's version here can't be compared until the primary has said that it is done.
    fn note_unsure(&mut self, chunk: ChunkId) {
        if self.unsure_chunks.len() >= UNSURE_MAX && !self.unsure_chunks.contains(&chunk) {
            self.unsure_all = true;
            self.unsure_chunks.clear();
        }
        if !self.unsure_all {
            self.unsure_chunks.insert(chunk);
        }
    }

    /// This replica is whole.
    pub(super) fn clear_unsure(&mut self) {
        self.unsure_chunks.clear();
        self.unsure_all = false;
    }

    fn tell_primary(&mut self, message: SessionMessage) {
        if let Some(primary) = self.target.as_ref().map(|t| t.primary) {
            self.send(primary, PeerMessage::Session(message));
        }
    }

    fn try_finish(&mut self) {
        let Some(target) = &mut self.target else { return };
        if target.finish && self.ops.is_empty() {
            target.finish = false;
            let number = target.number;
            self.disk(DiskOp::Flush { mark: self.last_sequence }, Waiting::TargetFinish(number));
        }
    }

    pub(super) fn target_disk_done(&mut self, waiting: Waiting, result: DiskResult) {
        let Some(mine) = self.target.as_ref().map(|t| t.number) else { return };
        match (waiting, result) {
            (Waiting::TargetOpen(n) | Waiting::TargetTable(n) | Waiting::TargetFinish(n), _) if n != mine => {}
            (Waiting::TargetOpen(n), _) => self.disk(DiskOp::Table, Waiting::TargetTable(n)),
            (Waiting::TargetTable(_), DiskResult::Table(mut entries)) => {
                for entry in &mut entries {
                    entry.unsure |= self.unsure_all || self.unsure_chunks.contains(&entry.chunk);
                }
                let mut parts: Vec<Vec<TableEntry>> = entries.chunks(TABLE_PART).map(<[_]>::to_vec).collect();
                if parts.is_empty() {
                    parts.push(Vec::new());
                }
                let count = parts.len();
                for (i, entries) in parts.into_iter().enumerate() {
                    self.tell_primary(SessionMessage::Table { entries, last: i + 1 == count });
                }
                let early = match &mut self.target {
                    Some(target) => {
                        target.opening = false;
                        std::mem::take(&mut target.early)
                    }
                    None => return,
                };
                for message in early {
                    self.start_session_op(message);
                }
            }
            (Waiting::TargetFinish(_), _) => {
                self.caught_up_with = self.target.as_ref().map(|t| t.primary);
                self.tell_primary(SessionMessage::Finished);
            }
            _ => {}
        }
    }

    /// The stream from the primary is gone. What is being written finishes; a configuration that counts on this
    /// learner may still come, unless forwarded writes were lost with the stream: the primary knows.
    pub(super) fn target_session_down(&mut self) {
        self.target = None;
        self.copying.clear();
        let half: Vec<ChunkId> =
            self.ops.values().filter(|op| matches!(op.step, Step::Session { .. })).map(|op| op.chunk).collect();
        for chunk in half {
            self.note_unsure(chunk);
        }
        // Waiting operations never run; those on the disk end by themselves.
        let on_disk: BTreeSet<Ticket> =
            self.disk_waits.values().filter_map(|w| if let Waiting::Op(t) = w { Some(*t) } else { None }).collect();
        let waiting: Vec<(Ticket, ChunkId)> =
            self.ops.iter().filter(|(t, _)| !on_disk.contains(t)).map(|(t, op)| (*t, op.chunk)).collect();
        for (ticket, chunk) in waiting {
            self.ops.remove(&ticket);
            let granted = self.locks.release(chunk, ticket);
            self.granted_later.extend(granted);
        }
        self.granted_later.retain(|t| self.ops.contains_key(t));
    }

    pub(super) fn retry_target(&mut self, now: Instant) {
        let Some(target) = &mut self.target else { return };
        if target.retry_at.is_some_and(|at| at <= now) {
            target.retry_at = None;
            self.granted_later.append(&mut target.full);
        }
    }
}
