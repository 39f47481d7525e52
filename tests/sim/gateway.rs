//! A gateway: the production router (R6, R12–R14) under a workload of stamped sectors.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use evenkeel::core::cluster::ClusterMap;
use evenkeel::core::hashtree;
use evenkeel::core::ids::{ChunkId, PgId, VolumeId};
use evenkeel::core::replica::{ClientOp, ClientReply};
use evenkeel::core::router::Router;
use evenkeel::core::units::BLOCK_BYTES;

use crate::model::{At, Model};
use crate::rng::Rng;

pub const VOLUME: VolumeId = VolumeId(1);
const SECTOR: u32 = 512;
const PER_BLOCK: u32 = BLOCK_BYTES as u32 / SECTOR;
/// Blocks that the workload uses: the edges of windows and chunks, and neighbours.
const BLOCKS: [u32; 8] = [0, 1, 2, 63, 64, 65, 700, 1023];
pub const CHUNKS: u64 = 3;
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

    fn chunk(&self) -> Option<u32> {
        match self {
            Kind::Read { chunk, .. } | Kind::Write { chunk, .. } | Kind::Zero { chunk, .. } => Some(*chunk),
            Kind::Flush { .. } => None,
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Kind::Read { .. } => "read",
            Kind::Write { .. } => "write",
            Kind::Zero { .. } => "zero",
            Kind::Flush { .. } => "flush",
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
pub fn some_read(rng: &mut Rng) -> (u32, Vec<At>, ClientOp) {
    let chunk = rng.below(CHUNKS) as u32;
    let sector = rng.pick(&BLOCKS).copied().unwrap_or(0) * PER_BLOCK;
    let kind = Kind::Read { chunk, sector, count: PER_BLOCK };
    (chunk, (sector..sector + PER_BLOCK).map(|s| (chunk, s)).collect(), kind.request())
}

struct Op {
    kind: Kind,
    started: u64,
}

pub struct Gateway {
    pub id: u32,
    pub name: String,
    pub incarnation: u64,
    pub alive: bool,
    /// Another gateway has been let in.
    pub fenced_at: Option<u64>,
    /// The coordinator has granted it the volume.
    pub attached: bool,
    /// It takes the volume from whoever has it; else it stands by.
    pub take_over: bool,
    /// It hands the volume over: no new requests; when all is flushed it releases.
    pub leaving: bool,
    released: bool,
    /// When it started.
    pub since: u64,
    pub map: Arc<ClusterMap>,
    /// What the coordinator has been told last on this link.
    pub settled: Option<u64>,
    /// So many flushes may fail, to say so (R13).
    pub losses_told: u64,
    /// A loss was told since a PG was settled last.
    pub loss_seen: bool,
    pub router: Router,
    ops: BTreeMap<u64, Op>,
    next: u64,
    /// The durability epoch at which each PG let it in last.
    epochs: BTreeMap<PgId, u64>,
    /// PGs that let it in at another epoch, and have answered nothing since.
    settling: BTreeSet<PgId>,
    layout: Vec<PgId>,
    /// Acked writes that no flush covers (R13), with the model's order.
    kept: Vec<(u64, Kind)>,
    pub replays: u64,
    pub reads: u64,
    pub writes: u64,
    pub flushes: u64,
    pub io_errors: u64,
    /// Bits have rotted somewhere: an IO error may be right.
    pub rotten: bool,
    /// Starts new requests.
    pub busy: bool,
}

impl Gateway {
    pub fn new(id: u32, name: String, take_over: bool, layout: Vec<PgId>, since: u64) -> Self {
        Gateway {
            id,
            name,
            incarnation: 0,
            alive: true,
            fenced_at: None,
            attached: false,
            take_over,
            leaving: false,
            since,
            released: false,
            map: Arc::default(),
            settled: None,
            losses_told: 0,
            loss_seen: false,
            router: Router::new(VOLUME, 0),
            ops: BTreeMap::new(),
            next: 0,
            epochs: BTreeMap::new(),
            settling: BTreeSet::new(),
            layout,
            kept: Vec::new(),
            replays: 0,
            reads: 0,
            writes: 0,
            flushes: 0,
            io_errors: 0,
            rotten: false,
            busy: true,
        }
    }

    pub fn pg_of(&self, chunk: u32) -> PgId {
        self.layout[chunk as usize % self.layout.len()]
    }

    /// The coordinator granted it the volume; it starts when it has the map too.
    pub fn grant(&mut self, incarnation: u64, lost: bool) {
        if !self.attached {
            (self.attached, self.incarnation, self.take_over) = (true, incarnation, false);
            self.router = Router::new(VOLUME, incarnation);
            if lost {
                self.router.tell_loss();
            }
            self.router.handle_map(&self.map);
        }
    }

    /// A loss that its guest has not been told.
    pub fn is_loss_untold(&self) -> bool {
        self.attached && self.router.settled(&self.map).is_none()
    }

    /// What its volume's PGs may have lost is there again, up to this durability; once each time.
    pub fn take_settled(&mut self) -> Option<(u64, u64)> {
        let now = if self.attached { self.router.settled(&self.map) } else { None };
        if now.is_none() || now == self.settled {
            return None;
        }
        self.settled = now;
        Some((self.incarnation, now?))
    }

    pub fn handle_map(&mut self, map: Arc<ClusterMap>) {
        self.map = map;
        if self.attached {
            self.router.handle_map(&self.map);
        }
    }

    /// Every PG has let it in, so whoever had the volume before is fenced for good.
    pub fn is_in(&self) -> bool {
        self.epochs.len() == self.layout.len()
    }

    /// It has handed over: true once.
    pub fn take_release(&mut self, now: u64, model: &mut Model) -> bool {
        if !self.leaving || !self.alive || self.released || !self.attached || !self.ops.is_empty() {
            return false;
        }
        if !self.kept.is_empty() {
            self.flush_all(now, model);
            return false;
        }
        self.released = true;
        true
    }

    pub fn describe(&self) -> String {
        format!("{}, {} under way, idle {}, alive {}", self.id, self.ops.len(), self.router.is_idle(), self.alive)
    }

    pub fn is_quiet(&self) -> bool {
        self.ops.is_empty()
    }

    /// Time passes: starts new work.
    pub fn tick(&mut self, now: u64, model: &mut Model, rng: &mut Rng) {
        if !self.alive || !self.attached || self.map.pgs.is_empty() {
            return;
        }
        self.router.handle_tick();
        if !self.is_in() {
            // Its first request is a flush: the model has one writer at a time, and before it is let in the last one may
            // still be acked.
            if self.ops.is_empty() {
                self.flush_all(now, model);
            }
            return;
        }
        if self.busy && !self.leaving && self.ops.len() < IN_FLIGHT_MAX {
            for _ in 0..rng.below(3) {
                self.start(now, model, rng);
            }
        }
    }

    fn start(&mut self, now: u64, model: &mut Model, rng: &mut Rng) {
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
        self.issue(kind, now, model);
    }

    fn issue(&mut self, kind: Kind, now: u64, model: &mut Model) {
        self.next += 1;
        let token = self.next;
        match &kind {
            // Nothing of it may have an effect any more; the model has one writer.
            _ if self.fenced_at.is_some() => {}
            Kind::Read { chunk, sector, count } => {
                model.read_starts(self.key(token), (*sector..sector + count).map(|s| (*chunk, s)).collect(), false);
            }
            Kind::Flush { .. } => {}
            _ => model.write_starts(&kind.writes()),
        }
        match &kind {
            Kind::Flush { .. } => self.router.flush(token),
            other => {
                let volume = self.map.volumes.get(&VOLUME);
                let pg = volume.and_then(|v| v.pg_of(other.chunk()?)).unwrap_or(self.layout[0]);
                self.router.submit(token, pg, other.request());
            }
        }
        self.ops.insert(token, Op { kind, started: now });
    }

    /// The model knows reads by a number that is unique among gateways.
    fn key(&self, token: u64) -> u64 {
        u64::from(self.id) << 40 | token
    }

    /// Reads everything that was ever written, for the last comparison.
    pub fn read_all(&mut self, now: u64, model: &mut Model) {
        for chunk in 0..CHUNKS as u32 {
            for block in BLOCKS.iter().flat_map(|b| [*b, b + 1]).filter(|b| *b < 1024) {
                let kind = Kind::Read { chunk, sector: block * PER_BLOCK, count: PER_BLOCK };
                self.issue(kind, now, model);
            }
        }
    }

    /// Asks for a flush of everything.
    pub fn flush_all(&mut self, now: u64, model: &mut Model) {
        let up_to = model.order;
        self.issue(Kind::Flush { up_to }, now, model);
    }

    /// What this gateway had under way may have happened or not.
    pub fn lose(&mut self, model: &mut Model) {
        for (token, op) in &self.ops {
            model.write_lost(&op.kind.writes());
            model.read_dropped(self.key(*token));
        }
    }

    /// A PG's primary let it in.
    pub fn let_in(&mut self, pg: PgId, durability_epoch: u64) {
        if self.epochs.insert(pg, durability_epoch) != Some(durability_epoch) {
            self.settling.insert(pg);
        }
    }

    /// The router is done with a request.
    pub fn answered(&mut self, token: u64, reply: ClientReply, model: &mut Model) -> Result<(), String> {
        let key = self.key(token);
        let Some(op) = self.ops.remove(&token) else { return Err(format!("request {token} was answered twice")) };
        if !self.alive {
            return Ok(());
        }
        match reply {
            ClientReply::Done { .. } | ClientReply::Data(_) => {}
            ClientReply::Fenced => {
                // It may have happened: an earlier attempt can have been ordered.
                if self.fenced_at.is_none() {
                    model.write_lost(&op.kind.writes());
                }
                model.read_dropped(key);
                return Ok(());
            }
            ClientReply::IoError => {
                model.write_lost(&op.kind.writes());
                model.read_dropped(key);
                if matches!(op.kind, Kind::Flush { .. }) && self.losses_told > 0 {
                    self.losses_told -= 1;
                    return Ok(());
                }
                self.io_errors += 1;
                if self.rotten {
                    return Ok(());
                }
                return Err(format!("an IO error although a copy is recoverable (I8): {}", op.kind.name()));
            }
            other => return Err(format!("an unexpected answer: {other:?}")),
        }
        if self.fenced_at.is_some_and(|t| op.started > t) && !op.kind.writes().is_empty() {
            return Err("a write of a fenced gateway was acked (I3)".into());
        }
        if self.fenced_at.is_some() {
            model.read_dropped(key);
            return Ok(());
        }
        // Everything that it kept has been sent again; what others had acked and nobody kept stays as it was found.
        let settled = match op.kind.chunk().map(|c| self.pg_of(c)) {
            Some(pg) => self.settling.take(&pg).into_iter().collect(),
            // A flush went to the PGs that had something to flush when it began.
            None => {
                let up_to = if let Kind::Flush { up_to } = op.kind { up_to } else { 0 };
                let later = self.kept.iter().filter(|(order, _)| *order > up_to).filter_map(|(_, k)| k.chunk());
                let later: BTreeSet<PgId> = later.map(|c| self.pg_of(c)).collect();
                let done: BTreeSet<PgId> = self.settling.difference(&later).copied().collect();
                self.settling.retain(|pg| later.contains(pg));
                done
            }
        };
        if !settled.is_empty() {
            // Of what was kept, some could not be sent again where a loss was told: rot beside a power loss.
            let kept: BTreeSet<At> = match std::mem::take(&mut self.loss_seen) && self.rotten {
                true => BTreeSet::new(),
                false => self.kept.iter().flat_map(|(_, k)| k.writes()).map(|(at, _)| at).collect(),
            };
            model.replayed(&kept, |at| settled.contains(&self.pg_of(at.0)));
        }
        match (&op.kind, reply) {
            (Kind::Read { count, .. }, ClientReply::Data(data)) => {
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
                model.read_ends(key, &values)
            }
            (Kind::Flush { up_to }, ClientReply::Done { .. }) => {
                self.flushes += 1;
                model.flushed(*up_to);
                self.kept.retain(|(order, _)| order > up_to);
                Ok(())
            }
            (kind @ (Kind::Write { fua, .. } | Kind::Zero { fua, .. }), ClientReply::Done { .. }) => {
                self.writes += 1;
                model.write_ends(&kind.writes(), *fua);
                self.kept.push((model.order, kind.clone()));
                Ok(())
            }
            _ => Err("the answer doesn't fit the question".into()),
        }
    }
}
