//! A gateway's side of the protocol: open, write, read, flush, retry, replay (R6, R12–R14).

use std::collections::{BTreeMap, BTreeSet};

use evenkeel::core::hashtree;
use evenkeel::core::ids::{ChunkId, DiskId, VolumeId};
use evenkeel::core::replica::{ClientOp, ClientReply, ClientRequest};
use evenkeel::core::units::BLOCK_BYTES;

use crate::model::{At, Model};
use crate::rng::Rng;

pub const VOLUME: VolumeId = VolumeId(7);
const MS: u64 = 1_000_000;
const SECTOR: u32 = 512;
const PER_BLOCK: u32 = BLOCK_BYTES as u32 / SECTOR;
/// Blocks that the workload uses: the edges of windows and chunks, and neighbours.
const BLOCKS: [u32; 8] = [0, 1, 2, 63, 64, 65, 700, 1023];
const CHUNKS: u64 = 3;
const IN_FLIGHT_MAX: usize = 6;

#[derive(Clone)]
pub enum Kind {
    Read { chunk: u32, sector: u32, count: u32 },
    Write { chunk: u32, sector: u32, values: Vec<u64>, fua: bool },
    Zero { chunk: u32, block: u32, count: u32, fua: bool },
    Flush { up_to: u64 },
}

impl Kind {
    pub fn writes(&self) -> Vec<(At, u64)> {
        match self {
            Kind::Write { chunk, sector, values, .. } => {
                values.iter().enumerate().map(|(i, v)| ((*chunk, sector + i as u32), *v)).collect()
            }
            Kind::Zero { chunk, block, count, .. } => {
                (block * PER_BLOCK..(block + count) * PER_BLOCK).map(|s| ((*chunk, s), 0)).collect()
            }
            _ => Vec::new(),
        }
    }

    fn request(&self) -> ClientOp {
        let id = |chunk: &u32| ChunkId { volume: VOLUME, index: *chunk };
        match self {
            Kind::Read { chunk, sector, count } => {
                ClientOp::Read { chunk: id(chunk), offset: sector * SECTOR, len: count * SECTOR }
            }
            Kind::Write { chunk, sector, values, fua } => {
                let mut data = Vec::new();
                for v in values {
                    for _ in 0..SECTOR / 8 {
                        data.extend_from_slice(&v.to_le_bytes());
                    }
                }
                let whole = sector.is_multiple_of(PER_BLOCK) && (values.len() as u32).is_multiple_of(PER_BLOCK);
                let leaves = match whole {
                    true => hashtree::leaves_of((sector / PER_BLOCK) as usize, &data),
                    false => Vec::new(),
                };
                ClientOp::Write { chunk: id(chunk), offset: sector * SECTOR, leaves, data: data.into(), fua: *fua }
            }
            Kind::Zero { chunk, block, count, fua } => {
                ClientOp::Zero { chunk: id(chunk), first_block: *block, count: *count, fua: *fua }
            }
            Kind::Flush { .. } => ClientOp::Flush,
        }
    }
}

/// One block somewhere: its sectors and the request.
pub fn some_read(rng: &mut Rng) -> (Vec<At>, ClientOp) {
    let chunk = rng.below(CHUNKS) as u32;
    let sector = rng.pick(&BLOCKS).copied().unwrap_or(0) * PER_BLOCK;
    let kind = Kind::Read { chunk, sector, count: PER_BLOCK };
    ((sector..sector + PER_BLOCK).map(|s| (chunk, s)).collect(), kind.request())
}

struct Op {
    kind: Kind,
    first_sent: u64,
    request: u64,
    /// A replay: the model knows it already.
    replay: bool,
}

#[derive(PartialEq)]
enum Phase {
    Closed { retry_at: u64 },
    Opening { request: u64, since: u64 },
    Replaying,
    Open,
}

pub struct Gateway {
    pub id: u32,
    pub incarnation: u64,
    pub connection: u64,
    pub alive: bool,
    /// Another gateway has been let in.
    pub fenced_at: Option<u64>,
    pub primary: Option<DiskId>,
    phase: Phase,
    ops: BTreeMap<u64, Op>,
    next: u64,
    epoch: u64,
    progress_at: u64,
    /// Acked writes that no flush covers (R13).
    kept: Vec<(u64, Kind)>,
    pub replays: u64,
    pub reads: u64,
    pub writes: u64,
    pub flushes: u64,
    /// Starts new requests.
    pub busy: bool,
    pub io_errors: u64,
    /// Canary: doesn't replay.
    pub forgets: bool,
    opens: u64,
}

/// What the gateway wants sent.
pub struct Outgoing {
    pub to: DiskId,
    pub request: ClientRequest,
}

impl Gateway {
    pub fn new(id: u32, incarnation: u64) -> Self {
        Gateway {
            id,
            incarnation,
            connection: 1,
            alive: true,
            fenced_at: None,
            primary: None,
            phase: Phase::Closed { retry_at: 0 },
            ops: BTreeMap::new(),
            next: u64::from(id) << 40,
            epoch: 0,
            progress_at: 0,
            kept: Vec::new(),
            replays: 0,
            reads: 0,
            writes: 0,
            flushes: 0,
            busy: true,
            io_errors: 0,
            forgets: false,
            opens: 0,
        }
    }

    pub fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    pub fn first_open(&self) -> bool {
        self.opens == 1
    }

    pub fn describe(&self) -> String {
        let phase = match self.phase {
            Phase::Closed { .. } => "closed",
            Phase::Opening { .. } => "opening",
            Phase::Replaying => "replaying",
            Phase::Open => "open",
        };
        format!("{} {phase} to {:?}, {} under way, alive {}", self.id, self.primary, self.ops.len(), self.alive)
    }

    pub fn is_quiet(&self) -> bool {
        self.is_open() && self.ops.is_empty()
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn wrap(&self, id: u64, op: ClientOp) -> ClientRequest {
        ClientRequest { id, volume: VOLUME, incarnation: self.incarnation, connection: self.connection, op }
    }

    fn close(&mut self, now: u64) {
        self.connection += 1;
        self.phase = Phase::Closed { retry_at: now + 20 * MS };
    }

    /// Time passes: opens, gives up on silence, starts new work.
    pub fn tick(&mut self, now: u64, model: &mut Model, rng: &mut Rng, out: &mut Vec<Outgoing>) {
        if !self.alive {
            return;
        }
        match self.phase {
            Phase::Closed { retry_at } if now >= retry_at => {
                if let Some(to) = self.primary {
                    let request = self.number();
                    self.phase = Phase::Opening { request, since: now };
                    out.push(Outgoing { to, request: self.wrap(request, ClientOp::Open) });
                }
            }
            Phase::Closed { .. } => {}
            Phase::Opening { since, .. } => {
                if now > since + 1_000 * MS {
                    self.close(now);
                }
            }
            Phase::Replaying | Phase::Open => {
                if !self.ops.is_empty() && now > self.progress_at + 1_500 * MS {
                    return self.close(now);
                }
                if self.phase == Phase::Open && self.busy && self.ops.len() < IN_FLIGHT_MAX {
                    for _ in 0..rng.below(3) {
                        self.start(now, model, rng, out);
                    }
                }
            }
        }
    }

    fn start(&mut self, now: u64, model: &mut Model, rng: &mut Rng, out: &mut Vec<Outgoing>) {
        let chunk = rng.below(CHUNKS) as u32;
        let block = rng.pick(&BLOCKS).copied().unwrap_or(0);
        let fua = rng.chance(80);
        let kind = match rng.below(100) {
            0..45 => {
                let mut value = || rng.next() | 1;
                let (sector, count) = match value() % 3 {
                    0 => (block * PER_BLOCK + (value() % 8) as u32, 1 + value() % 3),
                    1 => (block * PER_BLOCK, u64::from(PER_BLOCK)),
                    _ => (block * PER_BLOCK, 2 * u64::from(PER_BLOCK)),
                };
                let count = count.min(u64::from(1024 * PER_BLOCK - sector));
                Kind::Write { chunk, sector, values: (0..count).map(|_| value()).collect(), fua }
            }
            45..50 => Kind::Zero { chunk, block, count: 1, fua },
            50..92 => Kind::Read { chunk, sector: block * PER_BLOCK, count: PER_BLOCK },
            _ => Kind::Flush { up_to: model.order },
        };
        let writes = kind.writes();
        let clash = |op: &Op| op.kind.writes().iter().any(|(at, _)| writes.iter().any(|(b, _)| at == b));
        if !writes.is_empty() && self.ops.values().any(clash) {
            return;
        }
        self.issue(kind, false, now, model, out);
    }

    fn issue(&mut self, kind: Kind, replay: bool, now: u64, model: &mut Model, out: &mut Vec<Outgoing>) {
        let id = self.number();
        if !replay {
            match &kind {
                Kind::Read { chunk, sector, count } => {
                    model.read_starts(id, (*sector..sector + count).map(|s| (*chunk, s)).collect(), false);
                }
                Kind::Flush { .. } => {}
                _ => model.write_starts(&kind.writes()),
            }
        }
        if self.ops.is_empty() {
            self.progress_at = now;
        }
        if let Some(to) = self.primary {
            out.push(Outgoing { to, request: self.wrap(id, kind.request()) });
        }
        self.ops.insert(id, Op { kind, first_sent: now, request: id, replay });
    }

    /// Reads everything that was ever written, for the last comparison.
    pub fn read_all(&mut self, now: u64, model: &mut Model, out: &mut Vec<Outgoing>) {
        for chunk in 0..CHUNKS as u32 {
            for block in BLOCKS.iter().flat_map(|b| [*b, b + 1]).filter(|b| *b < 1024) {
                let kind = Kind::Read { chunk, sector: block * PER_BLOCK, count: PER_BLOCK };
                self.issue(kind, false, now, model, out);
            }
        }
    }

    /// Asks for a flush of everything.
    pub fn flush_all(&mut self, now: u64, model: &mut Model, out: &mut Vec<Outgoing>) {
        let up_to = model.order;
        self.issue(Kind::Flush { up_to }, false, now, model, out);
    }

    /// What this gateway had under way may have happened or not.
    pub fn lose(&mut self, model: &mut Model) {
        for (id, op) in &self.ops {
            if !op.replay {
                model.write_lost(&op.kind.writes());
                model.read_dropped(*id);
            }
        }
    }

    pub fn reply(
        &mut self,
        now: u64,
        request: u64,
        reply: ClientReply,
        model: &mut Model,
        out: &mut Vec<Outgoing>,
    ) -> Result<bool, String> {
        if !self.alive {
            return Ok(false);
        }
        if let Phase::Opening { request: mine, .. } = self.phase {
            if mine != request {
                return Ok(false);
            }
            match reply {
                ClientReply::Done { durability_epoch } => {
                    let lost = self.epoch != 0 && durability_epoch != self.epoch && !self.forgets;
                    self.opens += 1;
                    self.epoch = durability_epoch;
                    self.opened(now, lost, model, out);
                    return Ok(true);
                }
                ClientReply::Fenced => self.alive = false,
                _ => self.close(now),
            }
            return Ok(false);
        }
        if !matches!(self.phase, Phase::Open | Phase::Replaying) {
            return Ok(false);
        }
        let Some(key) = self.ops.iter().find(|(_, o)| o.request == request).map(|(k, _)| *k) else { return Ok(false) };
        self.progress_at = now;
        let done = match reply {
            ClientReply::Done { durability_epoch } => {
                if durability_epoch != self.epoch {
                    self.close(now);
                    return Ok(false);
                }
                None
            }
            ClientReply::Data(data) => Some(data),
            ClientReply::NotPrimary | ClientReply::NotOpen => {
                self.close(now);
                return Ok(false);
            }
            ClientReply::Fenced => {
                self.alive = false;
                return Ok(false);
            }
            ClientReply::IoError => {
                self.io_errors += 1;
                if let Some(op) = self.ops.remove(&key)
                    && !op.replay
                {
                    model.write_lost(&op.kind.writes());
                    model.read_dropped(key);
                }
                return Ok(false);
            }
            other => return Err(format!("an unexpected answer: {other:?}")),
        };
        let Some(op) = self.ops.remove(&key) else { return Ok(false) };
        if self.fenced_at.is_some_and(|t| op.first_sent > t) && !op.kind.writes().is_empty() {
            return Err("a write of a fenced gateway was acked (I3)".into());
        }
        if self.fenced_at.is_some() {
            model.read_dropped(key);
            return Ok(false);
        }
        match (&op.kind, done) {
            (Kind::Read { count, .. }, Some(data)) => {
                self.reads += 1;
                let mut values = Vec::new();
                for sector in data.chunks(SECTOR as usize) {
                    let words: BTreeSet<u64> =
                        sector.as_chunks::<8>().0.iter().map(|w| u64::from_le_bytes(*w)).collect();
                    if words.len() != 1 {
                        return Err(format!("a sector mixes several writes: {words:x?}"));
                    }
                    values.extend(words);
                }
                if values.len() != *count as usize {
                    return Err(format!("a read of {count} sectors returned {}", values.len()));
                }
                model.read_ends(key, &values)?;
            }
            (Kind::Flush { up_to }, None) => {
                self.flushes += 1;
                model.flushed(*up_to);
                self.kept.retain(|(order, _)| order > up_to);
            }
            (kind @ (Kind::Write { fua, .. } | Kind::Zero { fua, .. }), None) => {
                self.writes += 1;
                if !op.replay {
                    model.write_ends(&kind.writes(), *fua);
                    // Stable ones too: replaying an older write alone would bring it back.
                    self.kept.push((model.order, kind.clone()));
                }
            }
            _ => return Err("the answer doesn't fit the question".into()),
        }
        self.settle_replay(now, model, out);
        Ok(false)
    }

    /// Let in: replay what a power loss may have taken, then all that was under way.
    fn opened(&mut self, now: u64, lost: bool, model: &mut Model, out: &mut Vec<Outgoing>) {
        self.progress_at = now;
        // Replays that were under way start again.
        let unfinished = self.ops.values().any(|o| o.replay);
        self.ops.retain(|_, o| !o.replay);
        if lost || unfinished {
            self.replays += 1;
            self.phase = Phase::Replaying;
            let held = std::mem::take(&mut self.ops);
            // The newest value of each sector, as one write a sector run; order doesn't matter between sectors.
            let mut newest: BTreeMap<At, u64> = BTreeMap::new();
            for (_, kind) in &self.kept {
                newest.extend(kind.writes());
            }
            for ((chunk, sector), value) in newest {
                let kind = Kind::Write { chunk, sector, values: vec![value], fua: false };
                self.issue(kind, true, now, model, out);
            }
            self.held(held);
            self.settle_replay(now, model, out);
        } else {
            self.resume(now, out);
        }
    }

    fn held(&mut self, held: BTreeMap<u64, Op>) {
        for (id, mut op) in held {
            // Not sent until the replay is over.
            op.request = 0;
            self.ops.insert(id, op);
        }
    }

    fn finish_replay(&mut self, now: u64, model: &mut Model, out: &mut Vec<Outgoing>) {
        let kept: BTreeSet<At> = self.kept.iter().flat_map(|(_, k)| k.writes()).map(|(at, _)| at).collect();
        model.replayed(&kept);
        self.resume(now, out);
    }

    fn resume(&mut self, now: u64, out: &mut Vec<Outgoing>) {
        self.phase = Phase::Open;
        self.progress_at = now;
        let Some(to) = self.primary else { return };
        let ids: Vec<u64> = self.ops.keys().copied().collect();
        for id in ids {
            let request = self.number();
            let Some(op) = self.ops.get_mut(&id) else { continue };
            op.request = request;
            let kind = op.kind.request();
            out.push(Outgoing { to, request: self.wrap(request, kind) });
        }
    }

    /// Goes on once the last replay is acked.
    fn settle_replay(&mut self, now: u64, model: &mut Model, out: &mut Vec<Outgoing>) {
        if self.phase == Phase::Replaying && !self.ops.values().any(|o| o.replay) {
            self.finish_replay(now, model, out);
        }
    }
}
