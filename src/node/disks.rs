//! A disk and its threads: carries out [`DiskOp`]s and reports their results to the engine.
//!
//! Writes to chunks that are marked dirty already go to the page cache: one thread takes all that wait, so that a
//! batch costs one wake-up. What may wait for the disk (reads, reservations, first writes) runs on a few threads, so that
//! one slow request doesn't hold up the others. What copies read and what they write has threads of its own, at a lower
//! priority; those that write may also wait while the disk takes it. Flushes run on a thread of their own that takes all that wait
//! into one fdatasync, and only what arrived before it started (R12). One more thread clears dirty marks, and one wipes freed slots.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message;

use crate::core::cluster::Replica as Member;
use crate::core::hashtree::{HOLE, Hash};
use crate::core::ids::{BootId, ChunkId, DiskId, Generation, PgId};
use crate::core::replica::{ChunkLeaves, DiskOp, DiskResult, Operation, PgState, Replica, TableEntry, Token};
use crate::core::units::BLOCK_BYTES;
use crate::disk::{Disk, FlushDisk, PgRecord, PutPg, ReadChunk, WriteChunk, WriteOp};
use crate::wire::stored::StoredPg;

use super::cpu::yield_to_guests;
use super::queue::Queue;

/// Threads for what may wait for the disk: enough queue depth for an SSD, few enough for a small host.
const THREADS: usize = 4;
/// Threads for what copies read, and as many for what they write: one computes while the other waits for the disk.
const COPY_THREADS: usize = 2;
/// Jobs that the writing thread takes at once.
const WRITE_BATCH: usize = 64;
/// Consumers look up this often although nothing comes; it bounds nothing.
const IDLE: Duration = Duration::from_secs(60);
/// Sequences from here on are no PG's: they mark content of unknown age.
const UNIQUE_VERSION: u64 = 1 << 63;
/// Dirty marks cleared in one background round.
const CLEAN_BATCH: usize = 64;

/// What a disk is asked to do for one PG.
pub struct Job {
    /// PG.
    pub pg: PgId,
    /// Handle of the replica.
    pub token: Token,
    /// What.
    pub op: DiskOp,
}

/// What came of it.
pub struct JobDone {
    /// Disk.
    pub disk: DiskId,
    /// PG.
    pub pg: PgId,
    /// Handle.
    pub token: Token,
    /// Result.
    pub result: DiskResult,
}

struct FlushJob {
    pg: PgId,
    token: Token,
    mark: Option<u64>,
}

/// An open disk with its threads.
pub struct DiskHandle {
    id: DiskId,
    disk: Arc<Disk>,
    jobs: Arc<Queue<Job>>,
    writes: Arc<Queue<Job>>,
    copies: Arc<Queue<Job>>,
    sources: Arc<Queue<Job>>,
    flushes: Arc<Queue<FlushJob>>,
    threads: Vec<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    unsure: Arc<Mutex<HashSet<ChunkId>>>,
}

type Report = Arc<dyn Fn(Vec<JobDone>) + Send + Sync>;

impl DiskHandle {
    /// Starts the threads of an open disk. Chunks that were dirty at an unclean stop are rehashed first; where a block
    /// doesn't match, its content is taken as it is (R23), and the chunk's version counts for nothing until resync
    /// has compared it.
    pub fn start(disk: Disk, report: impl Fn(Vec<JobDone>) + Send + Sync + 'static) -> Self {
        let disk = Arc::new(disk);
        let id = disk.superblock().disk;
        let unsure: HashSet<ChunkId> = disk.unrecovered_chunks().into_iter().collect();
        for chunk in &unsure {
            match disk.recover_dirty(*chunk) {
                Ok(blocks) => {
                    for block in blocks {
                        if let Err(error) = disk.adopt(*chunk, block) {
                            tracing::warn!(disk = %id, %chunk, block, %error, "can't take over a block after an unclean stop");
                        }
                    }
                }
                Err(error) => tracing::warn!(disk = %id, %chunk, %error, "can't rehash a chunk after an unclean stop"),
            }
            // Its recorded version may be that of other content: one that no other replica has can't compare equal,
            // also after a second crash.
            if let Some(meta) = disk.chunk_meta(*chunk) {
                let unique = UNIQUE_VERSION | rand::random::<u64>() >> 1;
                if let Err(error) = disk.set_chunk_version(*chunk, meta.generation, unique) {
                    tracing::warn!(disk = %id, %chunk, %error, "can't set a chunk's version after an unclean stop");
                }
            }
        }
        let unsure = Arc::new(Mutex::new(unsure));
        let [jobs, writes, copies, sources] = std::array::from_fn(|_| Arc::new(Queue::default()));
        let flushes = Arc::new(Queue::default());
        let report: Report = Arc::new(report);
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        let queues = std::iter::repeat_n((&jobs, 1, "disk", false), THREADS)
            .chain([(&writes, WRITE_BATCH, "disk-write", false)])
            .chain(std::iter::repeat_n((&copies, 1, "disk-copy", true), COPY_THREADS))
            .chain(std::iter::repeat_n((&sources, 1, "disk-source", true), COPY_THREADS));
        for (queue, batch, name, yields) in queues {
            let worker = Worker {
                id,
                disk: disk.clone(),
                queue: Arc::clone(queue),
                flushes: flushes.clone(),
                report: report.clone(),
                unsure: unsure.clone(),
            };
            threads.push(spawn(name, move || {
                if yields {
                    yield_to_guests();
                }
                worker.run(batch);
            }));
        }
        {
            let (disk, report, flushes) = (disk.clone(), report.clone(), flushes.clone());
            threads.push(spawn("disk-flush", move || flush_loop(id, &disk, &flushes, &report)));
        }
        threads.push(each_second("disk-clean", id, &stop, {
            let disk = disk.clone();
            move || disk.clean_some(CLEAN_BATCH)
        }));
        // Wiping takes its time, most of all after a large volume's deletion: what guests write is brought to the disk meanwhile.
        threads.push(each_second("disk-free", id, &stop, {
            let (disk, stop) = (disk.clone(), stop.clone());
            move || {
                disk.free_some(|time| {
                    if !stop.load(Ordering::Relaxed) {
                        std::thread::park_timeout(time);
                    }
                })
            }
        }));
        let threads = threads.into_iter().flatten().collect();
        DiskHandle { id, disk, jobs, writes, copies, sources, flushes, threads, stop, unsure }
    }

    /// Its id.
    pub fn id(&self) -> DiskId {
        self.id
    }

    /// Its boot id (R1).
    pub fn boot(&self) -> BootId {
        self.disk.boot_id()
    }

    /// The store below.
    pub fn disk(&self) -> &Arc<Disk> {
        &self.disk
    }

    /// Takes a job; its result comes by the report function. Bounded by what replicas admit.
    pub fn submit(&self, job: Job) {
        let hot = |chunk: &ChunkId| self.disk.chunk_meta(*chunk).is_some_and(|m| m.dirty);
        match &job.op {
            DiskOp::Flush { mark } => {
                self.flushes.push(FlushJob { pg: job.pg, token: job.token, mark: Some(*mark) });
            }
            DiskOp::Apply { op: Operation::Write { chunk, .. }, .. } if hot(chunk) => self.writes.push(job),
            DiskOp::Copy { .. } => self.copies.push(job),
            DiskOp::Read { resync: true, .. } => self.sources.push(job),
            _ => self.jobs.push(job),
        }
    }

    /// Takes the disk out for good: the coordinator remembers a failure that the disk itself could not write down (R15).
    pub fn take_out(&self, reason: &'static str) {
        let (disk, id) = (self.disk.clone(), self.id);
        // The mark may have to wait for the disk.
        let taken = spawn("disk-out", move || {
            disk.take_out(reason);
            tracing::error!(disk = %id, reason, "the disk is taken out (it stays out until an operator clears it)");
        });
        drop(taken);
    }

    /// What the disk's PG table knows. A record of which only the envelope can be understood isn't complete (R21), and
    /// never a fresh one.
    pub fn states(&self) -> Vec<(PgId, Option<PgState>)> {
        self.disk
            .pg_list()
            .into_iter()
            .map(|record| {
                let state = StoredPg::decode(record.body.as_slice()).ok().and_then(|s| s.into_state(record.complete));
                let state = state.or_else(|| {
                    tracing::error!(disk = %self.id, pg = %record.pg, "can't understand a PG's record: its copy counts as incomplete");
                    let mut state = Replica::new(record.pg, Member { disk: self.id, boot: self.boot() }, None).state();
                    state.config.generation = record.generation;
                    Some(state)
                });
                (record.pg, state)
            })
            .collect()
    }

    /// Drops everything of a PG from the disk, durably.
    ///
    /// # Errors
    /// The disk failed; what is left is dropped at the next try.
    pub fn purge(&self, pg: PgId) -> Result<(), String> {
        for entry in self.disk.chunk_table(pg) {
            self.disk.delete_chunk(entry.chunk).map_err(|e| e.to_string())?;
            self.unsure.lock().remove(&entry.chunk);
        }
        self.disk.pg_remove(pg).map_err(|e| e.to_string())?;
        Ok(())
    }

    /// Lets everything queued finish, stores the last states, and closes. Clean: the boot id stays (R1).
    pub fn stop(mut self, states: Vec<(PgId, PgState)>) {
        self.stop.store(true, Ordering::Relaxed);
        // Workers may still queue flushes: their queue closes after they are done.
        self.jobs.close();
        self.writes.close();
        self.copies.close();
        self.sources.close();
        let flushing = self.flushes.clone();
        for thread in self.threads.drain(..) {
            thread.thread().unpark();
            if thread.thread().name() == Some("disk-flush") {
                flushing.close();
            }
            if thread.join().is_err() {
                tracing::error!(disk = %self.id, "a disk thread had panicked");
            }
        }
        for (pg, state) in states {
            if let Err(error) = put_state(&self.disk, pg, &state) {
                tracing::error!(disk = %self.id, %pg, %error, "can't store the PG's last state: the next start counts as unclean");
                return;
            }
        }
        let unsure = self.unsure.lock().len();
        if unsure > 0 {
            // Their versions mean nothing; only the next start's rehash would know.
            tracing::info!(disk = %self.id, unsure, "chunks were never compared since an unclean stop: stopping uncleanly again");
            return;
        }
        if let Err(error) = self.disk.close_clean() {
            tracing::error!(disk = %self.id, %error, "can't close the disk cleanly");
        }
    }
}

fn put_state(disk: &Disk, pg: PgId, state: &PgState) -> Result<(), PutPg> {
    disk.pg_put(PgRecord {
        pg,
        generation: state.config.generation,
        complete: state.complete,
        durability_epoch: state.config.durability_epoch,
        body: StoredPg::new(state).encode_to_vec(),
    })
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Option<JoinHandle<()>> {
    let spawned = std::thread::Builder::new().name(name.to_owned()).spawn(body);
    spawned.inspect_err(|error| tracing::error!(name, %error, "can't start a disk thread")).ok()
}

/// A thread that does something in the background, again a second after it was done, until `stop`.
fn each_second(
    name: &str,
    disk: DiskId,
    stop: &Arc<AtomicBool>,
    work: impl Fn() -> Result<usize, FlushDisk> + Send + 'static,
) -> Option<JoinHandle<()>> {
    let stop = stop.clone();
    spawn(name, move || {
        while !stop.load(Ordering::Relaxed) {
            std::thread::park_timeout(Duration::from_secs(1));
            if let Err(error) = work() {
                tracing::debug!(%disk, %error, "background work on the disk failed");
            }
        }
    })
}

fn flush_loop(id: DiskId, disk: &Disk, queue: &Queue<FlushJob>, report: &Report) {
    while let Some(batch) = queue.take(usize::MAX, IDLE) {
        if batch.is_empty() {
            continue;
        }
        let marks: Vec<(PgId, u64)> = batch.iter().filter_map(|j| j.mark.map(|m| (j.pg, m))).collect();
        let result = match disk.flush(&marks) {
            Ok(()) => DiskResult::Done,
            Err(error) => DiskResult::Failed(error.to_string()),
        };
        let done = |job: FlushJob| JobDone { disk: id, pg: job.pg, token: job.token, result: result.clone() };
        report(batch.into_iter().map(done).collect());
    }
}

struct Worker {
    id: DiskId,
    disk: Arc<Disk>,
    queue: Arc<Queue<Job>>,
    flushes: Arc<Queue<FlushJob>>,
    report: Report,
    unsure: Arc<Mutex<HashSet<ChunkId>>>,
}

impl Worker {
    fn run(&self, batch: usize) {
        while let Some(jobs) = self.queue.take(batch, IDLE) {
            let done: Vec<JobDone> = jobs.into_iter().filter_map(|job| self.job(job)).collect();
            if !done.is_empty() {
                (self.report)(done);
            }
        }
    }

    /// `None`: the result comes with a flush.
    fn job(&self, job: Job) -> Option<JobDone> {
        let Job { pg, token, op } = job;
        let durable = matches!(op, DiskOp::Apply { durable: true, .. });
        let result = carry_out(&self.disk, pg, op, &self.unsure);
        if durable && matches!(result, DiskResult::Done) {
            self.flushes.push(FlushJob { pg, token, mark: None });
            return None;
        }
        match &result {
            DiskResult::Failed(reason) => {
                tracing::error!(disk = %self.id, reason, "the disk failed and is taken out (it stays out until an operator clears it)");
            }
            DiskResult::Refused(reason) => {
                tracing::error!(disk = %self.id, %pg, reason, "the disk can't keep this PG: another disk must, until this node restarts");
            }
            _ => {}
        }
        Some(JobDone { disk: self.id, pg, token, result })
    }
}

fn written(result: Result<(), WriteChunk>) -> DiskResult {
    match result {
        Ok(()) => DiskResult::Done,
        Err(error) if error.is_no_space() => DiskResult::NoSpace,
        Err(WriteChunk::Disk(fault)) => DiskResult::Failed(fault.to_string()),
        Err(error) => DiskResult::Refused(error.to_string()),
    }
}

fn carry_out(disk: &Disk, pg: PgId, op: DiskOp, unsure: &Mutex<HashSet<ChunkId>>) -> DiskResult {
    match op {
        DiskOp::Prepare { chunk, generation } => written(disk.prepare(pg, chunk, generation)),
        DiskOp::Apply { generation, sequence, op, .. } => match op {
            Operation::Write { chunk, first_block, leaves, data } => written(disk.write(&WriteOp {
                pg,
                chunk,
                generation,
                sequence,
                first_block: first_block as usize,
                leaves: &leaves,
                data: &data,
                copy: false,
            })),
            Operation::Zero { chunk, first_block, count } => {
                written(disk.zero(pg, chunk, generation, sequence, first_block as usize, count as usize))
            }
            Operation::Drop { chunk } => {
                unsure.lock().remove(&chunk);
                written(disk.delete_chunk(chunk).map(|_| ()))
            }
            Operation::Fence { .. } => DiskResult::Done,
        },
        DiskOp::Copy { chunk, blocks, data, .. } => copy(disk, pg, chunk, &blocks, &data),
        DiskOp::Read { chunk, first_block, count, .. } => {
            let mut data = vec![0; count as usize * BLOCK_BYTES as usize];
            match disk.read(chunk, first_block as usize, count as usize, &mut data) {
                Ok(leaves) => DiskResult::Data { leaves, data: data.into() },
                Err(ReadChunk::BadBlocks { blocks, .. }) => {
                    DiskResult::Bad { blocks: blocks.into_iter().map(|b| b as u32).collect() }
                }
                Err(_) => DiskResult::Bad { blocks: (first_block..first_block + count).collect() },
            }
        }
        DiskOp::Flush { .. } => DiskResult::Done,
        DiskOp::Persist(state) => match put_state(disk, pg, &state) {
            Ok(()) => DiskResult::Done,
            Err(PutPg::Disk(fault)) => DiskResult::Failed(fault.to_string()),
            Err(error) => DiskResult::Refused(error.to_string()),
        },
        DiskOp::Table => {
            let unsure = unsure.lock();
            let entries = disk.chunk_table(pg).into_iter().map(|e| TableEntry {
                chunk: e.chunk,
                generation: e.generation,
                sequence: e.sequence,
                root: e.root,
                unsure: e.unrecovered || unsure.contains(&e.chunk),
            });
            DiskResult::Table(entries.collect())
        }
        DiskOp::Leaves { chunk } => match (disk.leaves(chunk), disk.chunk_meta(chunk)) {
            (Ok(Some(leaves)), Some(meta)) => {
                DiskResult::Leaves(Some(ChunkLeaves { leaves, generation: meta.generation, sequence: meta.sequence }))
            }
            (Ok(_), _) => DiskResult::Leaves(None),
            (Err(error), _) => DiskResult::Refused(error.to_string()),
        },
        DiskOp::SetVersion { chunk, generation, sequence } => {
            let Some(meta) = disk.chunk_meta(chunk) else {
                // The primary's chunk holds nothing but zeros: here it needs no slot.
                return DiskResult::Done;
            };
            let known = unsure.lock().remove(&chunk);
            if known || (meta.generation, meta.sequence) < (generation, sequence) {
                return written(disk.set_chunk_version(chunk, generation, sequence));
            }
            DiskResult::Done
        }
    }
}

/// Content with a block of zeros for each hole.
fn with_holes(leaves: &[Hash], mut given: &[u8]) -> Vec<u8> {
    let mut content = Vec::with_capacity(leaves.len() * BLOCK_BYTES as usize);
    for leaf in leaves {
        if *leaf == HOLE {
            content.resize(content.len() + BLOCK_BYTES as usize, 0);
        } else {
            let (block, after) = given.split_at(BLOCK_BYTES as usize);
            content.extend_from_slice(block);
            given = after;
        }
    }
    content
}

/// Writes blocks that needn't be neighbours: runs of them, each with one call.
fn copy(disk: &Disk, pg: PgId, chunk: ChunkId, blocks: &[(u32, Hash)], data: &Bytes) -> DiskResult {
    // A copy doesn't make the chunk newer: its version comes with ChunkDone.
    let (generation, sequence) =
        disk.chunk_meta(chunk).map_or((Generation::default(), 0), |m| (m.generation, m.sequence));
    let mut rest = data.as_ref();
    let mut i = 0;
    while i < blocks.len() {
        let run = blocks[i..].iter().zip(blocks[i].0..).take_while(|((b, _), want)| b == want).count();
        let leaves: Vec<_> = blocks[i..i + run].iter().map(|(_, l)| *l).collect();
        let present = leaves.iter().filter(|leaf| **leaf != HOLE).count();
        let (given, after) = rest.split_at(present * BLOCK_BYTES as usize);
        rest = after;
        let content = if present == run { Cow::Borrowed(given) } else { Cow::Owned(with_holes(&leaves, given)) };
        let op = WriteOp {
            pg,
            chunk,
            generation,
            sequence,
            first_block: blocks[i].0 as usize,
            leaves: &leaves,
            data: &content,
            copy: true,
        };
        match written(disk.write(&op)) {
            DiskResult::Done => i += run,
            other => return other,
        }
    }
    if let (Some((first, _)), Some((last, _))) = (blocks.first(), blocks.last()) {
        disk.begin_writeback(chunk, *first as usize, (last - first + 1) as usize);
    }
    DiskResult::Done
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::core::hashtree;
    use crate::core::ids::{ClusterId, PoolId, VolumeId};
    use crate::disk::{CAPACITY_BYTES_MIN, FormatOptions, OpenOptions, format};

    #[test]
    fn what_was_written_becomes_clean_while_freed_slots_are_being_wiped() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("disk");
        let options = FormatOptions {
            cluster: ClusterId([7; 16]),
            disk: DiskId(9),
            class: "ssd".into(),
            capacity_bytes: CAPACITY_BYTES_MIN,
        };
        format(&path, &options).expect("formats");
        let handle = DiskHandle::start(Disk::open(&path, OpenOptions::default()).expect("opens"), |_| ());
        let disk = handle.disk().clone();
        let wiping = disk.hold_wiping();
        // By then whoever wipes waits.
        std::thread::sleep(Duration::from_secs(2));
        let chunk = ChunkId { volume: VolumeId(1), index: 3 };
        let data = [5; BLOCK_BYTES as usize];
        let leaves = hashtree::leaves_of(0, &data);
        let generation = Generation { epoch: 1, n: 1 };
        let op = WriteOp {
            pg: PgId { pool: PoolId(1), index: 0 },
            chunk,
            generation,
            sequence: 1,
            first_block: 0,
            leaves: &leaves,
            data: &data,
            copy: true,
        };
        disk.write(&op).expect("writes");
        let until = Instant::now() + Duration::from_secs(60);
        while disk.chunk_meta(chunk).expect("a chunk").dirty {
            assert!(Instant::now() < until, "the chunk stays dirty");
            std::thread::sleep(Duration::from_millis(20));
        }
        drop(wiping);
        handle.stop(Vec::new());
    }
}
