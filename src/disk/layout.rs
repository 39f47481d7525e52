//! The byte layout of a disk. All integers are little-endian; all checksums CRC-32C.
//!
//! ```text
//! 0          superblock, copy 0 (4 KiB)         the two copies lie 64 KiB apart, so that one bad
//! 64 KiB     superblock, copy 1 (4 KiB)         erase block or track doesn't take both
//! 128 KiB    PG table: entries × 2 copies × 32 KiB
//! …          flush marks: 2 copies × entries × 32 B   a table of its own: a FLUSH rewrites 32 B, not a PG record
//! …          slot headers, table A: slots × 128 B     contiguous: a scan of 10 TB reads 2 × 320 MB in sequence
//! …          slot headers, table B
//! …          slots: 4 MiB of data, then 1,024 leaves × 32 B
//! ```
//! Every region starts on a 4 KiB boundary. Leaves stand behind their data, so that a slot is one extent and a
//! sequential chunk read takes its leaves along.
//!
//! **Copies.** Superblock, PG record, flush mark and header carry a version. Version v lies in copy v mod 2, so a
//! writer always overwrites the older copy, and a torn write leaves the newer one (R22). All zeros means "never
//! written". Checksums are seeded with the entry's number: an entry in another's place doesn't check.
//!
//! **Sectors.** A header (128 B), a mark (32 B) and a PG envelope (512 B) each lie within one 512 B sector, which
//! a disk writes wholly or not at all.
//!
//! Non-goals: other chunk sizes. They are recorded, and a superblock that names others is refused.

use crate::core::hashtree::Hash;
use crate::core::ids::{BootId, ChunkId, ClusterId, DiskId, Generation, PgId, VolumeId};
use crate::core::units::{BLOCK_BYTES, BLOCKS_PER_CHUNK, CHUNK_BYTES};

/// The version of this layout. A higher one in a superblock is refused.
pub const FORMAT_VERSION: u32 = 1;
/// The unit in which tables are written.
pub const PAGE_BYTES: u64 = 4096;
/// Where the superblock's copies lie.
pub const SUPERBLOCK_OFFSETS: [u64; 2] = [0, 64 << 10];
/// PG records a disk can hold: at about 100 PG replicas a disk, room for a badly skewed cluster.
pub const PG_ENTRIES: u32 = 512;
/// One copy of a PG record: envelope and body.
pub const PG_RECORD_BYTES: u64 = 32 << 10;
/// The envelope before a PG record's body: one sector.
pub const PG_ENVELOPE_BYTES: usize = 512;
/// The longest body of a PG record; the rest of the copy is left for a longer envelope.
pub const PG_BODY_BYTES_MAX: usize = 30 << 10;
/// One flush mark.
pub const MARK_BYTES: u64 = 32;
/// One slot header.
pub const HEADER_BYTES: usize = 128;
/// One chunk's leaves.
pub const LEAVES_BYTES: u64 = (BLOCKS_PER_CHUNK * 32) as u64;
/// A slot: a chunk's data and its leaves.
pub const SLOT_BYTES: u64 = CHUNK_BYTES + LEAVES_BYTES;
/// The longest disk class name.
pub const CLASS_BYTES_MAX: usize = 31;

const SUPERBLOCK_MAGIC: &[u8; 8] = b"EVENKEEL";
const PG_MAGIC: u32 = u32::from_le_bytes(*b"EKPG");
const HEADER_MAGIC: u32 = u32::from_le_bytes(*b"EKSH");
const PG_TABLE_OFFSET: u64 = 128 << 10;

const _: () = assert!(512 % HEADER_BYTES == 0 && 512 % MARK_BYTES == 0, "an entry never spans sectors");
const _: () = assert!(PG_ENVELOPE_BYTES + PG_BODY_BYTES_MAX <= PG_RECORD_BYTES as usize);
const _: () = assert!(SLOT_BYTES.is_multiple_of(PAGE_BYTES));

/// Where each region of one disk lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    /// Bytes of the file or device in use.
    pub capacity_bytes: u64,
    /// Number of slots.
    pub slots: u32,
    /// Number of PG table and of flush mark entries.
    pub pg_entries: u32,
}

impl Geometry {
    /// The most slots that fit in `capacity_bytes`; `None` if not even four do.
    pub fn new(capacity_bytes: u64, pg_entries: u32) -> Option<Self> {
        let mut g = Geometry { capacity_bytes, slots: 0, pg_entries };
        // Two pages may go to the rounding of the two header tables.
        let room = capacity_bytes.checked_sub(g.headers(0) + 2 * PAGE_BYTES)?;
        g.slots = u32::try_from(room / (SLOT_BYTES + 2 * HEADER_BYTES as u64)).unwrap_or(u32::MAX);
        (g.slots >= 4).then_some(g)
    }
    /// One copy of one PG record.
    pub fn pg_record(&self, entry: u32, copy: usize) -> u64 {
        PG_TABLE_OFFSET + (u64::from(entry) * 2 + copy as u64) * PG_RECORD_BYTES
    }
    /// The PG table's length.
    pub fn pg_table_bytes(&self) -> u64 {
        u64::from(self.pg_entries) * 2 * PG_RECORD_BYTES
    }
    /// One copy of one flush mark.
    pub fn mark(&self, entry: u32, copy: usize) -> u64 {
        self.marks(copy) + u64::from(entry) * MARK_BYTES
    }
    /// One copy of the flush mark table.
    pub fn marks(&self, copy: usize) -> u64 {
        PG_TABLE_OFFSET + self.pg_table_bytes() + copy as u64 * self.marks_bytes()
    }
    /// The length of one copy of the flush mark table.
    pub fn marks_bytes(&self) -> u64 {
        (u64::from(self.pg_entries) * MARK_BYTES).next_multiple_of(PAGE_BYTES)
    }
    /// One header table.
    pub fn headers(&self, table: usize) -> u64 {
        self.marks(2) + table as u64 * self.headers_bytes()
    }
    /// The length of one header table.
    pub fn headers_bytes(&self) -> u64 {
        (u64::from(self.slots) * HEADER_BYTES as u64).next_multiple_of(PAGE_BYTES)
    }
    /// Where a slot starts: its data.
    pub fn slot(&self, slot: u32) -> u64 {
        self.headers(2) + u64::from(slot) * SLOT_BYTES
    }
    /// A block of a slot's data.
    pub fn block(&self, slot: u32, block: usize) -> u64 {
        self.slot(slot) + block as u64 * BLOCK_BYTES
    }
    /// A leaf of a slot.
    pub fn leaf(&self, slot: u32, block: usize) -> u64 {
        self.slot(slot) + CHUNK_BYTES + block as u64 * 32
    }
    /// Where the slots end; at most the capacity.
    pub fn end(&self) -> u64 {
        self.slot(0) + u64::from(self.slots) * SLOT_BYTES
    }
}

/// What a copy of an entry holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Copy<T> {
    /// All zeros: never written.
    Empty,
    /// Checks.
    Valid(T),
    /// Neither: damaged, in another entry's place, or another cluster's.
    Corrupt,
}

/// The disk's own record.
///
/// ```text
/// 0 magic 8 · 8 format version u32 · 12 flags u32 (1 clean stop, 2 failed) · 16 cluster 16 · 32 disk u32
/// 36 class length u8, class 31 · 68 block bytes u32 · 72 capacity u64 · 80 slots u32 · 84 PG entries u32
/// 88 boot id u64 · 96 version u64 · 104 chunk bytes u64 · zeros · 4092 crc u32
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Superblock {
    /// The cluster that the disk belongs to.
    pub cluster: ClusterId,
    /// The disk.
    pub disk: DiskId,
    /// Its class: `ssd`, `hdd` and so on.
    pub class: String,
    /// Where everything lies.
    pub geometry: Geometry,
    /// This start's boot id (R1).
    pub boot: BootId,
    /// The last stop was clean.
    pub clean: bool,
    /// A write or an fsync failed: final until an operator clears it (R15).
    pub failed: bool,
    /// Counts the superblock's own writes.
    pub version: u64,
}

/// Why a superblock copy can't be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SuperblockProblem {
    /// All zeros or something else's bytes.
    NotOurs,
    /// Ours, but the checksum or a field is wrong.
    Corrupt,
    /// Written by a newer binary.
    Newer(u32),
}

impl Superblock {
    /// The copy to be written for this version.
    pub fn copy(&self) -> usize {
        (self.version & 1) as usize
    }

    /// One copy's bytes. A class beyond [`CLASS_BYTES_MAX`] is cut; `format` refuses it before.
    pub fn encode(&self) -> Vec<u8> {
        let mut b = vec![0; PAGE_BYTES as usize];
        b[..8].copy_from_slice(SUPERBLOCK_MAGIC);
        put_u32(&mut b, 8, FORMAT_VERSION);
        put_u32(&mut b, 12, u32::from(self.clean) | u32::from(self.failed) << 1);
        b[16..32].copy_from_slice(&self.cluster.0);
        put_u32(&mut b, 32, self.disk.0);
        let class = &self.class.as_bytes()[..self.class.len().min(CLASS_BYTES_MAX)];
        b[36] = class.len() as u8;
        b[37..37 + class.len()].copy_from_slice(class);
        put_u32(&mut b, 68, BLOCK_BYTES as u32);
        put_u64(&mut b, 72, self.geometry.capacity_bytes);
        put_u32(&mut b, 80, self.geometry.slots);
        put_u32(&mut b, 84, self.geometry.pg_entries);
        put_u64(&mut b, 88, self.boot.0);
        put_u64(&mut b, 96, self.version);
        put_u64(&mut b, 104, CHUNK_BYTES);
        seal(&mut b, u64::MAX);
        b
    }

    /// Reads one copy.
    ///
    /// # Errors
    /// It is not a superblock, is damaged, or comes from a newer binary.
    pub fn decode(b: &[u8]) -> Result<Self, SuperblockProblem> {
        if b.len() != PAGE_BYTES as usize || &b[..8] != SUPERBLOCK_MAGIC {
            return Err(SuperblockProblem::NotOurs);
        }
        if !sealed(b, u64::MAX) {
            return Err(SuperblockProblem::Corrupt);
        }
        let format = get_u32(b, 8);
        if format > FORMAT_VERSION {
            return Err(SuperblockProblem::Newer(format));
        }
        let class_len = usize::from(b[36]).min(CLASS_BYTES_MAX);
        let class = std::str::from_utf8(&b[37..37 + class_len]).map_err(|_| SuperblockProblem::Corrupt)?;
        let mut cluster = ClusterId::default();
        cluster.0.copy_from_slice(&b[16..32]);
        let flags = get_u32(b, 12);
        let geometry = Geometry { capacity_bytes: get_u64(b, 72), slots: get_u32(b, 80), pg_entries: get_u32(b, 84) };
        // A valid checksum doesn't make a size sane: nothing may overflow or reserve memory by it (I9).
        let sane = geometry.capacity_bytes < 1 << 56
            && (1..=1 << 16).contains(&geometry.pg_entries)
            && geometry.slots > 0
            && geometry.end() <= geometry.capacity_bytes;
        if !sane || u64::from(get_u32(b, 68)) != BLOCK_BYTES || get_u64(b, 104) != CHUNK_BYTES {
            return Err(SuperblockProblem::Corrupt);
        }
        Ok(Superblock {
            cluster,
            disk: DiskId(get_u32(b, 32)),
            class: class.to_owned(),
            geometry,
            boot: BootId(get_u64(b, 88)),
            clean: flags & 1 != 0,
            failed: flags & 2 != 0,
            version: get_u64(b, 96),
        })
    }
}

/// What a slot is used for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SlotUse {
    /// Wiped, and ready for a chunk.
    Free,
    /// Its chunk was deleted, its bytes aren't wiped yet: not to be used (R22).
    Freeing,
    /// Holds a chunk.
    Chunk,
}

/// A slot header: says by itself what the slot holds.
///
/// ```text
/// 0 magic u32 · 4 flags u32 (1 chunk, 2 dirty, 4 trimmed, 8 freeing) · 8 cluster prefix 8 · 16 volume u64
/// 24 chunk index u32 · 28 generation epoch u32 · 32 generation n u64 · 40 PG u64 · 48 sequence u64 · 56 root 32
/// 88 version u64 · 96 zeros · 124 crc u32, seeded with the slot's number
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// What the slot is used for.
    pub slot_use: SlotUse,
    /// May have been written since the last clean header (R23); the root doesn't stand then.
    pub dirty: bool,
    /// Trimmed whole; kept for its sequence until the PG is clean (R16).
    pub trimmed: bool,
    /// The chunk.
    pub chunk: ChunkId,
    /// Its PG.
    pub pg: PgId,
    /// The generation of the last operation on the chunk, as of this header.
    pub generation: Generation,
    /// The sequence of the last operation on the chunk, as of this header.
    pub sequence: u64,
    /// The chunk's hash, zeros while dirty (R25).
    pub root: Hash,
    /// Counts this header's writes.
    pub version: u64,
}

impl Header {
    /// A header without a chunk.
    pub fn empty(slot_use: SlotUse, version: u64) -> Self {
        Header {
            slot_use,
            dirty: false,
            trimmed: false,
            chunk: ChunkId::default(),
            pg: PgId::default(),
            generation: Generation::default(),
            sequence: 0,
            root: [0; 32],
            version,
        }
    }

    /// The table that this version lies in.
    pub fn table(&self) -> usize {
        (self.version & 1) as usize
    }

    /// The bytes for slot `slot`.
    pub fn encode(&self, slot: u32, cluster: &ClusterId) -> [u8; HEADER_BYTES] {
        let mut b = [0; HEADER_BYTES];
        put_u32(&mut b, 0, HEADER_MAGIC);
        let kind = match self.slot_use {
            SlotUse::Free => 0,
            SlotUse::Freeing => 8,
            SlotUse::Chunk => 1,
        };
        put_u32(&mut b, 4, kind | u32::from(self.dirty) << 1 | u32::from(self.trimmed) << 2);
        b[8..16].copy_from_slice(&cluster.0[..8]);
        put_u64(&mut b, 16, self.chunk.volume.0);
        put_u32(&mut b, 24, self.chunk.index);
        put_u32(&mut b, 28, self.generation.epoch);
        put_u64(&mut b, 32, self.generation.n);
        put_u64(&mut b, 40, self.pg.to_u64());
        put_u64(&mut b, 48, self.sequence);
        b[56..88].copy_from_slice(&self.root);
        put_u64(&mut b, 88, self.version);
        seal(&mut b, u64::from(slot));
        b
    }

    /// Reads one copy.
    pub fn decode(b: &[u8], slot: u32, cluster: &ClusterId) -> Copy<Self> {
        if b.len() != HEADER_BYTES {
            return Copy::Corrupt;
        }
        if b.iter().all(|x| *x == 0) {
            return Copy::Empty;
        }
        if get_u32(b, 0) != HEADER_MAGIC || !sealed(b, u64::from(slot)) || b[8..16] != cluster.0[..8] {
            return Copy::Corrupt;
        }
        let flags = get_u32(b, 4);
        let slot_use = match flags & 9 {
            0 => SlotUse::Free,
            1 => SlotUse::Chunk,
            8 => SlotUse::Freeing,
            _ => return Copy::Corrupt,
        };
        let mut root = [0; 32];
        root.copy_from_slice(&b[56..88]);
        Copy::Valid(Header {
            slot_use,
            dirty: flags & 2 != 0,
            trimmed: flags & 4 != 0,
            chunk: ChunkId { volume: VolumeId(get_u64(b, 16)), index: get_u32(b, 24) },
            pg: PgId::from_u64(get_u64(b, 40)),
            generation: Generation { epoch: get_u32(b, 28), n: get_u64(b, 32) },
            sequence: get_u64(b, 48),
            root,
            version: get_u64(b, 88),
        })
    }
}

/// The envelope of a PG record. The body follows it.
///
/// ```text
/// 0 magic u32 · 4 flags u32 (1 holds a record, 2 complete) · 8 cluster prefix 8 · 16 PG u64 · 24 generation n u64
/// 32 durability epoch u64 · 40 version u64 · 48 generation epoch u32 · 52 body length u32 · 56 body crc u32
/// zeros · 508 crc u32, seeded with the entry's number
/// ```
/// The body is made stable before its envelope, so a crash never leaves a valid envelope over a torn body.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PgEnvelope {
    /// False: the entry is free again.
    pub used: bool,
    /// The replica is complete (I5).
    pub complete: bool,
    /// The PG.
    pub pg: PgId,
    /// The highest generation accepted.
    pub generation: Generation,
    /// R2, R13.
    pub durability_epoch: u64,
    /// Counts this entry's writes.
    pub version: u64,
    /// Bytes of body.
    pub body_len: u32,
    /// The body's checksum.
    pub body_crc: u32,
}

impl PgEnvelope {
    /// The copy that this version lies in.
    pub fn copy(&self) -> usize {
        (self.version & 1) as usize
    }

    /// The bytes for entry `entry`.
    pub fn encode(&self, entry: u32, cluster: &ClusterId) -> [u8; PG_ENVELOPE_BYTES] {
        let mut b = [0; PG_ENVELOPE_BYTES];
        put_u32(&mut b, 0, PG_MAGIC);
        put_u32(&mut b, 4, u32::from(self.used) | u32::from(self.complete) << 1);
        b[8..16].copy_from_slice(&cluster.0[..8]);
        put_u64(&mut b, 16, self.pg.to_u64());
        put_u64(&mut b, 24, self.generation.n);
        put_u64(&mut b, 32, self.durability_epoch);
        put_u64(&mut b, 40, self.version);
        put_u32(&mut b, 48, self.generation.epoch);
        put_u32(&mut b, 52, self.body_len);
        put_u32(&mut b, 56, self.body_crc);
        seal(&mut b, u64::from(entry));
        b
    }

    /// Reads one copy.
    pub fn decode(b: &[u8], entry: u32, cluster: &ClusterId) -> Copy<Self> {
        if b.len() != PG_ENVELOPE_BYTES {
            return Copy::Corrupt;
        }
        if b.iter().all(|x| *x == 0) {
            return Copy::Empty;
        }
        let body_len = get_u32(b, 52);
        if get_u32(b, 0) != PG_MAGIC
            || !sealed(b, u64::from(entry))
            || b[8..16] != cluster.0[..8]
            || body_len as usize > PG_BODY_BYTES_MAX
        {
            return Copy::Corrupt;
        }
        let flags = get_u32(b, 4);
        Copy::Valid(PgEnvelope {
            used: flags & 1 != 0,
            complete: flags & 2 != 0,
            pg: PgId::from_u64(get_u64(b, 16)),
            generation: Generation { epoch: get_u32(b, 48), n: get_u64(b, 24) },
            durability_epoch: get_u64(b, 32),
            version: get_u64(b, 40),
            body_len,
            body_crc: get_u32(b, 56),
        })
    }
}

/// A flush mark: `0 PG u64 · 8 mark u64 · 16 version u64 · 24 flags u32 (1 used) · 28 crc u32`, the crc seeded with
/// the entry's number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mark {
    /// False: the entry is free again.
    pub used: bool,
    /// The PG.
    pub pg: PgId,
    /// The highest sequence that a FLUSH covered.
    pub mark: u64,
    /// Counts this entry's writes.
    pub version: u64,
}

impl Mark {
    /// The copy that this version lies in.
    pub fn copy(&self) -> usize {
        (self.version & 1) as usize
    }

    /// The bytes for entry `entry`.
    pub fn encode(&self, entry: u32) -> [u8; MARK_BYTES as usize] {
        let mut b = [0; MARK_BYTES as usize];
        put_u64(&mut b, 0, self.pg.to_u64());
        put_u64(&mut b, 8, self.mark);
        put_u64(&mut b, 16, self.version);
        put_u32(&mut b, 24, u32::from(self.used));
        seal(&mut b, u64::from(entry));
        b
    }

    /// Reads one copy.
    pub fn decode(b: &[u8], entry: u32) -> Copy<Self> {
        if b.len() as u64 != MARK_BYTES {
            return Copy::Corrupt;
        }
        if b.iter().all(|x| *x == 0) {
            return Copy::Empty;
        }
        if !sealed(b, u64::from(entry)) {
            return Copy::Corrupt;
        }
        Copy::Valid(Mark {
            used: get_u32(b, 24) & 1 != 0,
            pg: PgId::from_u64(get_u64(b, 0)),
            mark: get_u64(b, 8),
            version: get_u64(b, 16),
        })
    }
}

fn checksum(b: &[u8], seed: u64) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&seed.to_le_bytes()), b)
}

fn seal(b: &mut [u8], seed: u64) {
    let end = b.len() - 4;
    let crc = checksum(&b[..end], seed);
    put_u32(b, end, crc);
}

fn sealed(b: &[u8], seed: u64) -> bool {
    let end = b.len() - 4;
    get_u32(b, end) == checksum(&b[..end], seed)
}

fn put_u32(b: &mut [u8], at: usize, v: u32) {
    b[at..at + 4].copy_from_slice(&v.to_le_bytes());
}

fn put_u64(b: &mut [u8], at: usize, v: u64) {
    b[at..at + 8].copy_from_slice(&v.to_le_bytes());
}

fn get_u32(b: &[u8], at: usize) -> u32 {
    b[at..at + 4].iter().rev().fold(0, |v, x| v << 8 | u32::from(*x))
}

fn get_u64(b: &[u8], at: usize) -> u64 {
    b[at..at + 8].iter().rev().fold(0, |v, x| v << 8 | u64::from(*x))
}

#[cfg(test)]
mod tests;
