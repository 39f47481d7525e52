//! The PG table, the flush marks, and FLUSH itself.
//!
//! A PG record's body is opaque here: what the node must know of the PG (R21). Body and envelope are two stable writes,
//! so that a crash in between is told from damage: a damaged copy means that the replica isn't complete any more.
//!
//! A flush writes its marks and then calls fdatasync once. A mark may reach the disk before the data it speaks of, if the
//! flush never returns; so among replicas a mark ranks, it proves nothing (R2). Marks never go down.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;

use super::Disk;
use super::backend::Io;
use super::error::{DiskFault, FlushDisk, PutPg};
use super::layout::{
    Copy, MARK_BYTES, Mark, PG_BODY_BYTES_MAX, PG_ENVELOPE_BYTES, PG_RECORD_BYTES, PgEnvelope, Superblock,
};
use crate::core::ids::{Generation, PgId};

/// What a disk knows of a PG.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PgRecord {
    /// The PG.
    pub pg: PgId,
    /// The highest generation accepted.
    pub generation: Generation,
    /// The replica is complete; false also where a copy of the record, or a slot header, was found damaged (R21).
    pub complete: bool,
    /// R2, R13.
    pub durability_epoch: u64,
    /// Configuration, fences and volume records, encoded by the node; at most [`PG_BODY_BYTES_MAX`].
    pub body: Vec<u8>,
}

/// All PG records, in memory and on disk.
pub(super) struct PgTable {
    records: BTreeMap<PgId, Entry>,
    /// Entries without a record, with their versions.
    free: BTreeMap<u32, u64>,
    /// PGs whose entry is being written.
    busy: BTreeSet<PgId>,
    /// Damaged copies found at opening.
    pub corrupt: u64,
    /// Entries of which no copy says what they were.
    pub lost: u64,
}

struct Entry {
    entry: u32,
    version: u64,
    record: PgRecord,
}

impl PgTable {
    pub fn load(io: &Io, superblock: &Superblock) -> Self {
        let mut table =
            PgTable { records: BTreeMap::new(), free: BTreeMap::new(), busy: BTreeSet::new(), corrupt: 0, lost: 0 };
        let mut buf = vec![0; 2 * PG_RECORD_BYTES as usize];
        for entry in 0..superblock.geometry.pg_entries {
            for (copy, part) in buf.chunks_mut(PG_RECORD_BYTES as usize).enumerate() {
                if io.read(part, superblock.geometry.pg_record(entry, copy)).is_err() {
                    part.fill(0xff);
                }
            }
            table.take(entry, &buf, superblock);
        }
        table
    }

    fn take(&mut self, entry: u32, buf: &[u8], superblock: &Superblock) {
        let mut damaged = 0;
        let mut copies = Vec::new();
        for part in buf.chunks(PG_RECORD_BYTES as usize) {
            match PgEnvelope::decode(&part[..PG_ENVELOPE_BYTES], entry, &superblock.cluster) {
                Copy::Empty => {}
                Copy::Corrupt => damaged += 1,
                Copy::Valid(e) => {
                    let body = &part[PG_ENVELOPE_BYTES..PG_ENVELOPE_BYTES + e.body_len as usize];
                    copies.push((e, (crc32c::crc32c(body) == e.body_crc).then_some(body)));
                }
            }
        }
        copies.sort_by_key(|(e, _)| e.version);
        // The older copy's body may be torn by a put that a crash cut short: that is no damage. The newer one's was
        // stable before its envelope. Falling back keeps the older version, so that the damaged copy is written next.
        let mut newest = copies.pop();
        if matches!(newest, Some((_, None))) {
            damaged += 1;
            newest = copies.pop().filter(|(_, body)| body.is_some()).or(newest);
        }
        match newest {
            Some((e, Some(body))) if e.used => {
                let complete = e.complete && damaged == 0;
                let record = PgRecord {
                    pg: e.pg,
                    generation: e.generation,
                    complete,
                    durability_epoch: e.durability_epoch,
                    body: body.to_vec(),
                };
                // One PG in two entries comes only of damage: the later one, incomplete.
                if let Some(other) = self.records.get_mut(&e.pg) {
                    damaged += 1;
                    other.record.complete = false;
                    if other.record.generation < record.generation {
                        other.record = PgRecord { complete: false, ..record };
                    }
                } else {
                    self.records.insert(e.pg, Entry { entry, version: e.version, record });
                }
            }
            Some((e, _)) => {
                self.lost += u64::from(e.used || damaged > 0);
                self.free.insert(entry, e.version);
            }
            None => {
                self.lost += u64::from(damaged > 0);
                self.free.insert(entry, 0);
            }
        }
        self.corrupt += damaged;
    }

    pub fn mark_all_incomplete(&mut self) {
        for e in self.records.values_mut() {
            e.record.complete = false;
        }
    }
}

/// All flush marks.
pub(super) struct MarkTable {
    marks: BTreeMap<PgId, (u32, Mark)>,
    free: BTreeMap<u32, u64>,
}

impl MarkTable {
    pub fn load(io: &Io, superblock: &Superblock) -> Self {
        let g = &superblock.geometry;
        let mut table = MarkTable { marks: BTreeMap::new(), free: BTreeMap::new() };
        let copies = [0, 1].map(|copy| {
            let mut buf = vec![0; g.marks_bytes() as usize];
            // An unreadable mark is a low one: safe, it only ranks.
            if io.read(&mut buf, g.marks(copy)).is_err() {
                buf.fill(0xff);
            }
            buf
        });
        for entry in 0..g.pg_entries {
            let at = entry as usize * MARK_BYTES as usize;
            let newest = copies
                .iter()
                .filter_map(|c| match Mark::decode(&c[at..at + MARK_BYTES as usize], entry) {
                    Copy::Valid(m) => Some(m),
                    _ => None,
                })
                .max_by_key(|m| m.version);
            match newest {
                Some(m) if m.used && !table.marks.contains_key(&m.pg) => {
                    table.marks.insert(m.pg, (entry, m));
                }
                other => {
                    table.free.insert(entry, other.map_or(0, |m| m.version));
                }
            }
        }
        table
    }

    /// Gives each PG an entry; false if there are too few.
    fn claim(&mut self, pgs: impl Iterator<Item = PgId>) -> bool {
        for pg in pgs {
            if self.marks.contains_key(&pg) {
                continue;
            }
            let Some((entry, version)) = self.free.pop_first() else { return false };
            self.marks.insert(pg, (entry, Mark { used: true, pg, mark: 0, version }));
        }
        true
    }
}

impl Disk {
    /// Stores a PG's record; durable on return.
    ///
    /// # Errors
    /// The body is too long, the table is full, or the disk has failed or is closed.
    pub fn pg_put(&self, record: PgRecord) -> Result<(), PutPg> {
        self.check()?;
        let (pg, len) = (record.pg, record.body.len());
        if len > PG_BODY_BYTES_MAX {
            return Err(PutPg::TooLong { pg, len, max: PG_BODY_BYTES_MAX });
        }
        let (entry, version, new) = {
            let mut table = self.claim_pg(pg);
            let found = match table.records.get(&pg) {
                Some(e) => Some((e.entry, e.version, false)),
                None => table.free.pop_first().map(|(entry, version)| (entry, version, true)),
            };
            if let Some(found) = found {
                found
            } else {
                table.busy.remove(&pg);
                self.pg_written.notify_all();
                return Err(PutPg::TableFull { path: self.path.clone(), entries: self.identity.geometry.pg_entries });
            }
        };
        let envelope = PgEnvelope {
            used: true,
            complete: record.complete,
            pg,
            generation: record.generation,
            durability_epoch: record.durability_epoch,
            version: version + 1,
            body_len: len as u32,
            body_crc: crc32c::crc32c(&record.body),
        };
        let result = self.write_pg(entry, &envelope, &record.body);
        let mut table = self.pgs.lock();
        table.busy.remove(&pg);
        match &result {
            Ok(()) => {
                table.records.insert(pg, Entry { entry, version: version + 1, record });
            }
            Err(_) if new => {
                table.free.insert(entry, version);
            }
            Err(_) => {}
        }
        drop(table);
        self.pg_written.notify_all();
        Ok(result?)
    }

    /// A PG's record.
    pub fn pg_get(&self, pg: PgId) -> Option<PgRecord> {
        self.pgs.lock().records.get(&pg).map(|e| e.record.clone())
    }

    /// All PG records, in order.
    pub fn pg_list(&self) -> Vec<PgRecord> {
        self.pgs.lock().records.values().map(|e| e.record.clone()).collect()
    }

    /// Forgets a PG's record and flush mark, not its chunks; durable on return. True if there was one.
    ///
    /// # Errors
    /// The disk has failed or is closed.
    pub fn pg_remove(&self, pg: PgId) -> Result<bool, PutPg> {
        self.check()?;
        let found = {
            let mut table = self.claim_pg(pg);
            let found = table.records.get(&pg).map(|e| (e.entry, e.version, e.record.generation));
            if found.is_none() {
                table.busy.remove(&pg);
                self.pg_written.notify_all();
            }
            found
        };
        let Some((entry, mut version, generation)) = found else { return Ok(false) };
        // Both copies, so that damage to one doesn't bring the record back.
        let mut result = Ok(());
        for _ in 0..2 {
            version += 1;
            let envelope = PgEnvelope {
                used: false,
                complete: false,
                pg,
                generation,
                durability_epoch: 0,
                version,
                body_len: 0,
                body_crc: crc32c::crc32c(&[]),
            };
            result = result.and_then(|()| self.write_pg(entry, &envelope, &[]));
        }
        let mut table = self.pgs.lock();
        table.busy.remove(&pg);
        if result.is_ok() {
            table.records.remove(&pg);
            table.free.insert(entry, version);
        }
        drop(table);
        self.pg_written.notify_all();
        result?;
        self.remove_mark(pg)?;
        Ok(true)
    }

    /// Waits for the PG's write under way and claims the next.
    fn claim_pg(&self, pg: PgId) -> parking_lot::MutexGuard<'_, PgTable> {
        let mut table = self.pgs.lock();
        while !table.busy.insert(pg) {
            self.pg_written.wait(&mut table);
        }
        table
    }

    fn write_pg(&self, entry: u32, envelope: &PgEnvelope, body: &[u8]) -> Result<(), DiskFault> {
        self.check_failed()?;
        let at = self.identity.geometry.pg_record(entry, envelope.copy());
        let write = |bytes: &[u8], at| self.io.write_sync(bytes, at).map_err(|e| self.fault("write a PG record", &e));
        if !body.is_empty() {
            write(body, at + PG_ENVELOPE_BYTES as u64)?;
        }
        write(&envelope.encode(entry, &self.identity.cluster), at)
    }

    /// Returns when all writes that ended before this call are stable, and with them these PGs' flush marks. Calls at
    /// the same time share an fdatasync, but only one that starts after they came (R12).
    ///
    /// # Errors
    /// The disk has failed, now or before, or is closed, or has too few marks.
    pub fn flush(&self, marks: &[(PgId, u64)]) -> Result<(), FlushDisk> {
        self.check()?;
        if !marks.is_empty() && !self.marks.lock().claim(marks.iter().map(|(pg, _)| *pg)) {
            return Err(FlushDisk::MarksFull { path: self.path.clone(), entries: self.identity.geometry.pg_entries });
        }
        Ok(self.sync(marks.to_vec())?)
    }

    /// A PG's stable flush mark; 0 if it never had a flush.
    pub fn flush_mark(&self, pg: PgId) -> u64 {
        self.marks.lock().marks.get(&pg).map_or(0, |(_, m)| m.mark)
    }

    /// Flushes, with marks whose entries are claimed already.
    pub(super) fn sync(&self, marks: Vec<(PgId, u64)>) -> Result<(), DiskFault> {
        self.flushes.commit(marks, |marks| self.run_sync(&marks))
    }

    /// One at a time.
    fn run_sync(&self, marks: &[(PgId, u64)]) -> Result<(), DiskFault> {
        self.check_failed()?;
        // Counted before the fdatasync: writes that end from here on aren't covered by it.
        let number = self.syncs_started.fetch_add(1, Ordering::SeqCst) + 1;
        let mut next: BTreeMap<PgId, (u32, Mark)> = BTreeMap::new();
        {
            let table = self.marks.lock();
            for (pg, mark) in marks {
                let Some((entry, current)) = next.get(pg).or_else(|| table.marks.get(pg)).copied() else { continue };
                if current.mark < *mark {
                    let version = table.marks.get(pg).map_or(0, |(_, m)| m.version) + 1;
                    next.insert(*pg, (entry, Mark { used: true, pg: *pg, mark: *mark, version }));
                }
            }
        }
        for (entry, mark) in next.values() {
            let at = self.identity.geometry.mark(*entry, mark.copy());
            self.io.write(&mark.encode(*entry), at).map_err(|e| self.fault("write flush marks", &e))?;
        }
        self.io.sync().map_err(|e| self.fail("fsync", &e))?;
        {
            let mut table = self.marks.lock();
            for (pg, (entry, mark)) in next {
                if let Some(current) = table.marks.get_mut(&pg).filter(|c| c.0 == entry) {
                    current.1 = mark;
                }
            }
        }
        self.syncs_completed.store(number, Ordering::SeqCst);
        Ok(())
    }

    fn remove_mark(&self, pg: PgId) -> Result<(), DiskFault> {
        let found = self.marks.lock().marks.remove(&pg);
        let Some((entry, mut mark)) = found else { return Ok(()) };
        mark.used = false;
        // A flush of this PG that runs right now may use the next version.
        for _ in 0..3 {
            mark.version += 1;
            let at = self.identity.geometry.mark(entry, mark.copy());
            self.io.write_sync(&mark.encode(entry), at).map_err(|e| self.fault("write flush marks", &e))?;
        }
        self.marks.lock().free.insert(entry, mark.version);
        Ok(())
    }
}
