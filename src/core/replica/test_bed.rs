//! A bed for tests: disk d1's replica, its surroundings, and a disk that answers when it is told to.

use super::*;
use crate::core::cluster::Learner;
use crate::core::ids::{BootId, PoolId};
use crate::core::units::BLOCK_BYTES;

pub(super) const PG: PgId = PgId { pool: PoolId(1), index: 7 };
pub(super) const V: VolumeId = VolumeId(1);

pub(super) fn member(disk: u32) -> Member {
    Member { disk: DiskId(disk), boot: BootId(1) }
}

pub(super) fn generation(n: u64) -> Generation {
    Generation { epoch: 1, n }
}

pub(super) fn chunk(index: u32) -> ChunkId {
    ChunkId { volume: V, index }
}

pub(super) fn config(n: u64, members: &[u32]) -> PgConfig {
    PgConfig {
        pg: PG,
        generation: generation(n),
        durability_epoch: 1,
        members: members.iter().map(|d| member(*d)).collect(),
        learners: Vec::new(),
        last_proposal: 0,
        forced: false,
        members_min: 0,
    }
}

pub(super) fn learner(disk: u32) -> Learner {
    Learner { replica: member(disk), replaces: None, class: ResyncClass::Repair, paused: false }
}

/// Leases always hold; tokens are given while `tokens` says so.
pub(super) struct Surroundings {
    pub(super) tokens: bool,
    random: u64,
}

impl Env for Surroundings {
    fn lease_until(&self, _: &PgConfig, _: DiskId) -> Instant {
        Instant(u64::MAX)
    }
    fn take_resync_tokens(&mut self, _: ResyncClass, _: u64) -> bool {
        self.tokens
    }
    fn random(&mut self) -> u64 {
        self.random += 1;
        self.random
    }
}

/// Disk d1's replica.
pub(super) struct Bed {
    pub(super) replica: Replica,
    pub(super) now: Instant,
    pub(super) env: Surroundings,
    /// What came out and nobody has looked at, without what the disk was asked.
    pub(super) out: Vec<Action>,
    /// What the disk was asked and has not answered.
    pub(super) disk: VecDeque<(Token, DiskOp)>,
    pub(super) table: Vec<TableEntry>,
    /// Reads find every block damaged.
    pub(super) bad_reads: bool,
    /// How long what this replica has granted lasts.
    pub(super) granted: Duration,
}

impl Bed {
    pub(super) fn new(known: Option<PgState>) -> Bed {
        Bed {
            replica: Replica::new(PG, member(1), known),
            now: Instant(1_000_000_000_000),
            env: Surroundings { tokens: true, random: 0 },
            out: Vec::new(),
            disk: VecDeque::new(),
            table: Vec::new(),
            bad_reads: false,
            granted: Duration::ZERO,
        }
    }

    /// A serving primary with these others, and an open gateway.
    pub(super) fn serving(others: &[u32]) -> Bed {
        let mut bed = Bed::new(None);
        let members = [&[1], others].concat();
        bed.feed(Input::Config(config(1, &members)));
        bed.answer_disk();
        for other in others {
            bed.accepts(*other, 1);
        }
        bed.ask(1, ClientOp::Open);
        bed.answer_disk();
        for other in others {
            bed.peer(*other, PeerMessage::Applied { generation: generation(1), sequence: 1 });
        }
        assert!(bed.replica.is_serving());
        assert!(bed.is_done(1));
        bed.out.clear();
        bed
    }

    pub(super) fn feed(&mut self, input: Input) {
        for action in self.replica.handle(input, self.now, &mut self.env) {
            match action {
                Action::Disk { token, op } => self.disk.push_back((token, op)),
                Action::AcceptGeneration { config } => {
                    let (generation, at) = (config.generation, self.now + self.granted);
                    self.feed(Input::GrantsEnd { generation, at });
                }
                other => self.out.push(other),
            }
        }
    }

    /// Time passes, in ticks.
    pub(super) fn pass(&mut self, ms: u64) {
        for _ in 0..ms / 50 {
            self.now = self.now + Duration::from_millis(50);
            self.feed(Input::Tick);
        }
    }

    pub(super) fn peer(&mut self, from: u32, message: PeerMessage) {
        self.feed(Input::Peer { from: DiskId(from), message });
    }

    pub(super) fn session(&mut self, from: u32, message: SessionMessage) {
        self.peer(from, PeerMessage::Session(message));
    }

    pub(super) fn accepts(&mut self, from: u32, n: u64) {
        let generation = generation(n);
        let message =
            PeerMessage::ConfigAccepted { generation, last_sequence: 0, uncommitted: Vec::new(), fences: Vec::new() };
        self.peer(from, message);
    }

    pub(super) fn ask(&mut self, id: u64, op: ClientOp) {
        self.feed(Input::Client(ClientRequest { id, volume: V, incarnation: 1, connection: 1, op }));
    }

    /// One block.
    pub(super) fn write(&mut self, id: u64, index: u32) {
        let data = vec![id as u8; BLOCK_BYTES as usize];
        let leaves = crate::core::hashtree::leaves_of(0, &data);
        self.ask(id, ClientOp::Write { chunk: chunk(index), offset: 0, leaves, data: data.into(), fua: false });
    }

    pub(super) fn result(&self, op: &DiskOp) -> DiskResult {
        match op {
            DiskOp::Table => DiskResult::Table(self.table.clone()),
            DiskOp::Read { first_block, count, .. } if self.bad_reads => {
                DiskResult::Bad { blocks: (*first_block..first_block + count).collect() }
            }
            DiskOp::Read { count, .. } => DiskResult::Data {
                leaves: vec![crate::core::hashtree::HOLE; *count as usize],
                data: vec![0; *count as usize * BLOCK_BYTES as usize].into(),
            },
            DiskOp::Leaves { .. } => {
                let data = vec![1; crate::core::units::CHUNK_BYTES as usize];
                let leaves = Arc::new(crate::core::hashtree::leaves_of(0, &data));
                DiskResult::Leaves(Some(ChunkLeaves { leaves, generation: generation(1), sequence: 5 }))
            }
            _ => DiskResult::Done,
        }
    }

    /// The disk answers everything that it has been and is being asked; gives what that was.
    pub(super) fn answer_disk(&mut self) -> Vec<DiskOp> {
        let mut done = Vec::new();
        while let Some((token, op)) = self.disk.pop_front() {
            let result = self.result(&op);
            self.feed(Input::Disk { token, result });
            done.push(op);
        }
        done
    }

    /// The same, but for what matches `held`.
    pub(super) fn answer_disk_but(&mut self, held: impl Fn(&DiskOp) -> bool) {
        while let Some(at) = self.disk.iter().position(|(_, op)| !held(op)) {
            if let Some((token, op)) = self.disk.remove(at) {
                let result = self.result(&op);
                self.feed(Input::Disk { token, result });
            }
        }
    }

    pub(super) fn is_done(&self, id: u64) -> bool {
        self.out.iter().any(
            |a| matches!(a, Action::Reply { request, reply: ClientReply::Done { .. } | ClientReply::Data(_) } if *request == id),
        )
    }

    /// Members whose removal was proposed, in the last proposal.
    pub(super) fn removal(&self) -> Option<(u64, Vec<u32>)> {
        self.out.iter().rev().find_map(|a| match a {
            Action::Propose { proposal, change: Change::Remove(gone), .. } => {
                Some((*proposal, gone.iter().map(|m| m.disk.0).collect()))
            }
            _ => None,
        })
    }

    pub(super) fn sent(&self, to: u32) -> Vec<&PeerMessage> {
        let to = DiskId(to);
        self.out
            .iter()
            .filter_map(|a| match a {
                Action::Send { to: t, message } if *t == to => Some(message),
                _ => None,
            })
            .collect()
    }
}

pub(super) fn known(n: u64, complete: bool) -> PgState {
    PgState {
        config: config(n, &[2, 3]),
        complete,
        fences: Vec::new(),
        last_sequence: 0,
        uncommitted: Vec::new(),
        unsure_all: false,
    }
}

pub(super) fn entry(index: u32) -> TableEntry {
    TableEntry { chunk: chunk(index), generation: generation(3), sequence: 9, root: None, unsure: false }
}

pub(super) fn applied(n: u64, sequence: u64) -> PeerMessage {
    PeerMessage::Applied { generation: generation(n), sequence }
}

pub(super) fn prepared(index: u32) -> PeerMessage {
    PeerMessage::Prepared { generation: generation(1), chunk: chunk(index), ok: true }
}
