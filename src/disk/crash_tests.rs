//! Power cuts at every step, from a seed, against a model of what may be there afterwards.
//!
//! One seed replays with `EVENKEEL_DISK_SEED=n cargo test --release --lib disk::crash_tests`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::layout::{Geometry, SLOT_BYTES};
use super::sim::{Faults, SimFile};
use super::tests::{CLUSTER, G1, PG, chunk, content, write};
use super::*;
use crate::core::hashtree;
use crate::core::ids::DiskId;
use crate::core::units::BLOCKS_PER_CHUNK;

/// Blocks of a chunk that the workload uses; two beyond PUNCH_BLOCKS_MIN, so that both ways of zeroing occur.
const BLOCKS: usize = 66;
const SLOTS: u64 = 5;
const CHUNKS: u32 = 7;
const ZERO: u64 = 0;

/// A block's content is known by its first 8 bytes, which are unique; zeros by 0.
#[derive(Clone, Default)]
struct Block {
    /// What a flush covered.
    stable: Option<u64>,
    /// Written since.
    later: Vec<u64>,
}

#[derive(Clone, Default)]
struct ModelChunk {
    blocks: BTreeMap<usize, Block>,
    /// Deleted, or created by a call that failed: may be here or not.
    may_be_absent: bool,
}

#[derive(Default)]
struct Model {
    chunks: BTreeMap<u32, ModelChunk>,
    deleted: BTreeMap<u32, ModelChunk>,
    pg: (u64, u64),
    mark: u64,
}

impl ModelChunk {
    fn put(&mut self, block: usize, content: u64) {
        let b = self.blocks.entry(block).or_insert(Block { stable: Some(ZERO), later: vec![] });
        b.later.push(content);
    }
    fn flush(&mut self) {
        for b in self.blocks.values_mut() {
            if let Some(last) = b.later.pop() {
                *b = Block { stable: Some(last), later: vec![] };
            }
        }
    }
    fn last(&self, block: usize) -> u64 {
        self.blocks.get(&block).map_or(ZERO, |b| b.later.last().copied().or(b.stable).unwrap_or(ZERO))
    }
    fn allows(&self, block: usize, content: u64) -> bool {
        self.blocks.get(&block).map_or(content == ZERO, |b| b.stable == Some(content) || b.later.contains(&content))
    }
}

fn tag(block: &[u8]) -> u64 {
    block[..8].iter().fold(0, |v, x| v << 8 | u64::from(*x))
}

/// How a life ended. Cut while closing, the stop may be clean all the same.
#[derive(PartialEq)]
enum Stop {
    Cut,
    WhileClosing,
    Clean,
}

struct Run {
    rng: StdRng,
    file: SimFile,
    model: Model,
    next_content: u64,
    sequence: u64,
}

type Checked = Result<(), String>;

macro_rules! ensure {
    ($cond:expr, $($arg:tt)+) => { if !$cond { return Err(format!($($arg)+)); } };
}

impl Run {
    fn new(seed: u64, faults: Faults) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let faults = Faults { is_device: rng.random_bool(0.3), ..faults };
        let capacity = Geometry::new(1 << 30, 2).map_or(0, |g| g.marks(2)) + (3 << 12) + SLOTS * (SLOT_BYTES + 256);
        let file = SimFile::new(capacity, rng.random(), Faults { is_device: faults.is_device, ..Faults::default() });
        let superblock = Superblock {
            cluster: CLUSTER,
            disk: DiskId(1),
            class: "ssd".into(),
            geometry: Geometry::new(capacity, 2).expect("large enough"),
            boot: BootId(1),
            clean: true,
            failed: false,
            version: 1,
        };
        if faults.is_device {
            // What an earlier life of the device left: blocks that match their leaves.
            let old = content(u64::MAX, 8);
            for slot in 0..superblock.geometry.slots {
                let leaves = hashtree::leaves_of(0, &old);
                file.write_at(&old, superblock.geometry.block(slot, 0)).expect("writes");
                file.write_at(leaves.as_flattened(), superblock.geometry.leaf(slot, 0)).expect("writes");
            }
        }
        format::write_empty(&Io::new(Box::new(file.clone())), &superblock).expect("formats");
        file.set_faults(|f| *f = faults);
        Run { rng, file, model: Model::default(), next_content: 1, sequence: 0 }
    }

    fn open(&self) -> Result<Disk, OpenDisk> {
        let options = OpenOptions { cluster: Some(CLUSTER), version_min: 0, hot_chunks_max: 2, cached_leaves_max: 2 };
        Disk::open_backend(Path::new("sim"), Box::new(self.file.clone()), options)
    }

    /// Some lives, each ended by a power cut.
    fn lives(&mut self, lives: usize) -> Checked {
        for _ in 0..lives {
            let cut = self.rng.random_range(1..150);
            self.file.power_off_after(Some(cut));
            let mut last = None;
            if let Ok(disk) = self.open() {
                last = Some((self.work(&disk)?, disk.boot_id()));
            }
            self.file.power_cycle();
            let disk = self.open().map_err(|e| format!("doesn't open: {e}"))?;
            if let Some((stop, boot)) = last {
                ensure!(stop != Stop::Clean || disk.boot_id() == boot, "a clean stop lost the boot id");
                ensure!(stop != Stop::Cut || disk.boot_id() != boot, "a power cut kept the boot id");
            }
            self.check(&disk)?;
            let boot = disk.boot_id();
            if self.rng.random_bool(0.3) {
                // A clean stop, and nothing happens before the next start.
                disk.close_clean().map_err(|e| e.to_string())?;
                drop(disk);
                self.file.power_cycle();
                let disk = self.open().map_err(|e| e.to_string())?;
                ensure!(disk.boot_id() == boot, "the boot id changed over a clean stop");
                ensure!(disk.chunk_table(PG).iter().all(|c| !c.dirty), "dirty after a clean stop");
                self.flushed();
                self.check(&disk)?;
            }
        }
        Ok(())
    }

    fn flushed(&mut self) {
        self.model.chunks.values_mut().chain(self.model.deleted.values_mut()).for_each(ModelChunk::flush);
    }

    /// Works until the power goes or it has had enough.
    fn work(&mut self, disk: &Disk) -> Result<Stop, String> {
        for _ in 0..60 {
            if self.file.is_powered_off() {
                break;
            }
            self.sequence += 1;
            let index = self.rng.random_range(0..CHUNKS);
            match self.rng.random_range(0..100) {
                0..45 => self.write_some(disk, index)?,
                45..55 => self.read_some(disk, index)?,
                55..63 => self.zero_some(disk, index),
                63..73 => {
                    self.model.mark += 1;
                    if disk.flush(&[(PG, self.model.mark)]).is_ok() {
                        self.flushed();
                    } else {
                        self.model.mark -= 1;
                    }
                }
                73..82 => {
                    let _maybe_cut = disk.clean_some(2);
                }
                82..90 => {
                    if disk.delete_chunk(chunk(index)) == Ok(true)
                        && let Some(gone) = self.model.chunks.remove(&index)
                    {
                        self.model.deleted.insert(index, gone);
                    }
                }
                90..95 => {
                    if disk.free_some(|_| ()).is_ok() {
                        self.model.deleted.clear();
                    }
                }
                95..98 => {
                    let n = self.model.pg.1 + 1;
                    let body = content(n, 1)[..self.rng.random_range(0..4000)].to_vec();
                    let record = PgRecord { pg: PG, generation: G1, complete: true, durability_epoch: n, body };
                    self.model.pg.1 = n;
                    if disk.pg_put(record).is_ok() {
                        self.model.pg.0 = n;
                    }
                }
                _ => {
                    if disk.close_clean().is_ok() {
                        self.flushed();
                        self.model.deleted.clear();
                        return Ok(Stop::Clean);
                    }
                    return Ok(Stop::WhileClosing);
                }
            }
        }
        Ok(Stop::Cut)
    }

    fn write_some(&mut self, disk: &Disk, index: u32) -> Checked {
        let first = self.rng.random_range(0..BLOCKS);
        let count = self.rng.random_range(1..=4.min(BLOCKS - first));
        let mut data = Vec::new();
        let mut tags = Vec::new();
        for _ in 0..count {
            self.next_content += 1;
            let block = if self.rng.random_bool(0.1) { vec![0; 4096] } else { content(self.next_content, 1) };
            tags.push(tag(&block));
            data.extend(block);
        }
        let result = write(disk, chunk(index), self.sequence, first, &data);
        if result.as_ref().is_err_and(WriteChunk::is_no_space) {
            return Ok(());
        }
        if result.is_ok() && !self.model.chunks.contains_key(&index) {
            // Made anew, so the old one is wiped.
            self.model.deleted.remove(&index);
        }
        let c = self.model.chunks.entry(index).or_insert(ModelChunk { may_be_absent: true, ..ModelChunk::default() });
        c.may_be_absent &= result.is_err();
        for (i, tag) in tags.iter().enumerate() {
            c.put(first + i, *tag);
        }
        Ok(())
    }

    fn zero_some(&mut self, disk: &Disk, index: u32) {
        let (first, count) = match self.rng.random_range(0..3) {
            0 => (0, BLOCKS_PER_CHUNK),
            1 => (0, 65),
            _ => (self.rng.random_range(0..BLOCKS - 3), 3),
        };
        let _maybe_cut = disk.zero(PG, chunk(index), G1, self.sequence, first, count);
        if let Some(c) = self.model.chunks.get_mut(&index) {
            for block in first..(first + count).min(BLOCKS) {
                c.put(block, ZERO);
            }
        }
    }

    fn read_some(&mut self, disk: &Disk, index: u32) -> Checked {
        let first = self.rng.random_range(0..BLOCKS);
        let mut buf = vec![1; 2 * 4096];
        let result = disk.read(chunk(index), first, 2, &mut buf);
        if self.file.is_powered_off() {
            return Ok(());
        }
        ensure!(result.is_ok(), "chunk {index} block {first}: {result:?}");
        for i in 0..2 {
            let (got, want) =
                (tag(&buf[i * 4096..]), self.model.chunks.get(&index).map_or(ZERO, |c| c.last(first + i)));
            ensure!(got == want, "chunk {index} block {}: read {got:x}, written {want:x}", first + i);
        }
        Ok(())
    }

    /// Everything that must hold after a power cut. Leaves the model as what is there.
    fn check(&mut self, disk: &Disk) -> Checked {
        let counters = disk.counters();
        ensure!(counters.corrupt_headers == 0 && counters.quarantined_slots == 0, "a power cut looks like damage");
        ensure!(!disk.is_failed(), "a power cut looks like a failed disk");
        ensure!(disk.flush_mark(PG) >= self.model.mark, "the flush mark went back");
        if let Some(r) = disk.pg_get(PG) {
            let n = r.durability_epoch;
            ensure!(r.complete && (self.model.pg.0..=self.model.pg.1).contains(&n), "PG record {n}");
            ensure!(content(n, 1).starts_with(&r.body), "PG record {n} has another's body");
            self.model.pg = (n, n);
        } else {
            ensure!(self.model.pg.0 == 0, "the PG record is lost");
            self.model.pg = (0, 0);
        }
        for (index, deleted) in std::mem::take(&mut self.model.deleted) {
            match self.model.chunks.get_mut(&index) {
                // Deleted, then a write that failed: either the old chunk is here or the new one.
                Some(new) if new.may_be_absent => {
                    for (block, b) in deleted.blocks {
                        let n = new.blocks.entry(block).or_insert(Block { stable: Some(ZERO), later: vec![] });
                        n.later.extend(b.stable.into_iter().chain(b.later));
                    }
                }
                Some(_) => {}
                None => {
                    self.model.chunks.insert(index, ModelChunk { may_be_absent: true, ..deleted });
                }
            }
        }
        let known: BTreeSet<u32> = self.model.chunks.keys().copied().collect();
        for entry in disk.chunk_table(PG) {
            ensure!(known.contains(&entry.chunk.index), "chunk {} came from nowhere", entry.chunk);
        }
        for index in known {
            let Some(meta) = disk.chunk_meta(chunk(index)) else {
                ensure!(self.model.chunks[&index].may_be_absent, "chunk {index} is lost");
                self.model.chunks.remove(&index);
                continue;
            };
            self.check_chunk(disk, index, meta)?;
        }
        ensure!(disk.unrecovered_chunks().is_empty(), "chunks stay unrecovered");
        Ok(())
    }

    fn check_chunk(&mut self, disk: &Disk, index: u32, meta: ChunkEntry) -> Checked {
        let id = chunk(index);
        let mut model = self.model.chunks.remove(&index).unwrap_or_default();
        model.may_be_absent = false;
        let bad = disk.recover_dirty(id).map_err(|e| e.to_string())?;
        ensure!(meta.dirty || bad.is_empty(), "chunk {index} is clean, but blocks {bad:?} are bad");
        let leaves = disk.leaves(id).map_err(|e| e.to_string())?.ok_or("no leaves")?;
        if let Some(root) = meta.root {
            ensure!(root == hashtree::root(&leaves), "chunk {index}: the root doesn't match");
        }
        let beyond = leaves.iter().enumerate().skip(BLOCKS).find(|(_, l)| **l != hashtree::HOLE);
        ensure!(beyond.is_none(), "chunk {index}: leaves of another chunk");
        for block in 0..BLOCKS {
            let mut buf = vec![1; 4096];
            if bad.contains(&block) {
                let torn = model.blocks.get(&block).is_some_and(|b| !b.later.is_empty());
                ensure!(torn, "chunk {index} block {block}: flushed, but bad");
                ensure!(disk.read(id, block, 1, &mut buf).is_err(), "a bad block was served");
                disk.adopt(id, block).map_err(|e| e.to_string())?;
                disk.read(id, block, 1, &mut buf).map_err(|e| e.to_string())?;
                model.blocks.insert(block, Block { stable: None, later: vec![tag(&buf)] });
                continue;
            }
            disk.read(id, block, 1, &mut buf).map_err(|e| e.to_string())?;
            let got = tag(&buf);
            ensure!(model.allows(block, got), "chunk {index} block {block}: {got:x} was never flushed there");
            model.blocks.insert(block, Block { stable: Some(got), later: vec![] });
        }
        self.model.chunks.insert(index, model);
        Ok(())
    }
}

fn seeds(count: u64) -> Vec<u64> {
    match std::env::var("EVENKEEL_DISK_SEED").ok().and_then(|s| s.parse().ok()) {
        Some(seed) => vec![seed],
        None => (0..count).collect(),
    }
}

#[test]
fn power_cuts_at_any_step_lose_nothing_flushed() {
    for seed in seeds(150) {
        if let Err(e) = Run::new(seed, Faults::default()).lives(4) {
            panic!("seed {seed}: {e}; replay with EVENKEEL_DISK_SEED={seed}");
        }
    }
}

#[test]
fn power_cuts_under_several_threads_lose_nothing_flushed() {
    for seed in seeds(30) {
        let mut run = Run::new(seed, Faults::default());
        let cut = run.rng.random_range(20..600);
        run.file.power_off_after(Some(cut));
        if let Ok(disk) = run.open() {
            // Each thread has blocks of its own in chunks that all share; the order of the threads is not in the seed.
            let results: Vec<_> = std::thread::scope(|s| {
                let threads: Vec<_> = (0..3usize)
                    .map(|t| {
                        s.spawn({
                            let disk = &disk;
                            move || writer(disk, seed, t)
                        })
                    })
                    .collect();
                threads.into_iter().map(|t| t.join().expect("no panic")).collect()
            });
            for (index, written) in results.into_iter().flatten() {
                let all =
                    run.model.chunks.entry(index).or_insert(ModelChunk { may_be_absent: true, ..written.clone() });
                all.may_be_absent &= written.may_be_absent;
                all.blocks.extend(written.blocks);
            }
        }
        run.file.power_cycle();
        let disk = run.open().expect("opens");
        run.check(&disk).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    }
}

/// Writes, flushes and cleans until the power goes; returns what it wrote.
fn writer(disk: &Disk, seed: u64, thread: usize) -> BTreeMap<u32, ModelChunk> {
    let mut rng = StdRng::seed_from_u64(seed << 8 | thread as u64);
    let mut chunks: BTreeMap<u32, ModelChunk> = BTreeMap::new();
    for sequence in 1..200 {
        let (index, block) = (rng.random_range(0..4), thread * 4 + rng.random_range(0..4));
        let data = content(seed << 32 | (thread as u64) << 16 | sequence, 1);
        let result = write(disk, chunk(index), sequence, block, &data);
        let c = chunks.entry(index).or_insert(ModelChunk { may_be_absent: true, ..ModelChunk::default() });
        c.put(block, tag(&data));
        c.may_be_absent &= result.is_err();
        if sequence % 7 == 0 && disk.flush(&[]).is_ok() {
            chunks.values_mut().for_each(ModelChunk::flush);
        }
        if sequence % 11 == 0 {
            let _maybe_cut = disk.clean_some(2);
        }
        if result.is_err() {
            break;
        }
    }
    chunks
}

#[test]
fn the_checker_catches_a_disk_that_lies_about_syncs() {
    let caught = (0..60).any(|seed| Run::new(seed, Faults { sync_lies: true, ..Faults::default() }).lives(3).is_err());
    assert!(caught, "the checker is blind");
}

#[test]
fn flipped_bits_are_never_served() {
    for seed in seeds(60) {
        let mut run = Run::new(seed, Faults::default());
        let disk = run.open().expect("opens");
        run.work(&disk).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        let _stopped_already = disk.close_clean();
        let g = disk.superblock().geometry;
        drop(disk);
        run.file.power_cycle();
        for _ in 0..40 {
            let offset = match run.rng.random_range(0..4) {
                0 => run.rng.random_range(g.pg_record(0, 0)..g.headers(0)),
                1 => g.headers(run.rng.random_range(0..2)) + run.rng.random_range(0..128 * u64::from(g.slots)),
                2 => g.leaf(run.rng.random_range(0..g.slots), 0) + run.rng.random_range(0..32 * BLOCKS as u64),
                _ => g.slot(run.rng.random_range(0..g.slots)) + run.rng.random_range(0..4096 * BLOCKS as u64),
            };
            run.file.flip(offset, run.rng.random());
        }
        let disk = run.open().expect("opens whatever the tables say");
        let incomplete = disk.counters().quarantined_slots > 0;
        assert!(!incomplete || disk.pg_list().iter().all(|r| !r.complete), "seed {seed}");
        for (index, c) in &run.model.chunks {
            assert!(disk.chunk_meta(chunk(*index)).is_some() || incomplete, "seed {seed}: chunk {index} vanished");
            for block in 0..BLOCKS {
                let mut buf = vec![1; 4096];
                let known = disk.chunk_meta(chunk(*index)).is_some();
                if known && disk.read(chunk(*index), block, 1, &mut buf).is_ok() {
                    assert!(c.allows(block, tag(&buf)), "seed {seed}: chunk {index} block {block}");
                }
            }
        }
    }
}

#[test]
fn a_failed_fsync_is_final_until_an_operator_clears_it() {
    let run = Run::new(0, Faults::default());
    let disk = run.open().expect("opens");
    write(&disk, chunk(0), 1, 0, &content(1, 2)).expect("writes");
    disk.flush(&[]).expect("flushes");
    run.file.set_faults(|f| f.sync_fails = true);
    assert!(matches!(disk.flush(&[]), Err(FlushDisk::Disk(DiskFault::Failed { .. }))));
    run.file.set_faults(|f| f.sync_fails = false);
    assert!(disk.is_failed() && disk.flush(&[]).is_err() && disk.clean_some(1).is_err() && disk.close_clean().is_err());
    assert!(write(&disk, chunk(0), 2, 0, &content(2, 1)).is_err());
    let boot = disk.boot_id();
    drop(disk);
    run.file.power_cycle();
    let disk = run.open().expect("a failed disk still opens for reading");
    assert!(disk.is_failed() && disk.boot_id() != boot && write(&disk, chunk(0), 2, 0, &content(2, 1)).is_err());
    let mut buf = vec![0; 8192];
    disk.read(chunk(0), 0, 2, &mut buf).expect("reads");
    assert_eq!(buf, content(1, 2));
}

#[test]
fn a_full_file_system_fails_the_write_alone() {
    let run = Run::new(1, Faults::default());
    let disk = run.open().expect("opens");
    write(&disk, chunk(0), 1, 0, &content(1, 4)).expect("writes");
    run.file.set_faults(|f| f.full = true);
    let result = write(&disk, chunk(0), 2, 2, &content(2, 4));
    assert!(result.is_err_and(|e| e.is_no_space()) && !disk.is_failed());
    let mut buf = vec![0; 6 * 4096];
    disk.read(chunk(0), 0, 6, &mut buf).expect("each block matches its leaf");
    assert_eq!(buf[..8192], content(1, 4)[..8192]);
    assert_eq!(buf[8192..16384], content(2, 4)[..8192], "the part that had its space");
    assert!(hashtree::is_zero(&buf[16384..]));
    run.file.set_faults(|f| f.full = false);
    write(&disk, chunk(0), 3, 0, &content(3, 4)).expect("writes again");
}
