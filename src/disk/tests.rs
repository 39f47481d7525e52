//! Tests on real files.

use std::path::PathBuf;

use super::*;
use crate::core::hashtree::{self, HOLE};
use crate::core::ids::{DiskId, PoolId, VolumeId};
use crate::core::units::BLOCKS_PER_CHUNK;

pub(super) const CLUSTER: ClusterId = ClusterId([7; 16]);
pub(super) const PG: PgId = PgId { pool: PoolId(1), index: 3 };
pub(super) const G1: Generation = Generation { epoch: 1, n: 1 };

struct Place {
    _dir: tempfile::TempDir,
    path: PathBuf,
}

fn place() -> Place {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("disk");
    format(&path, &format_options()).expect("formats");
    Place { _dir: dir, path }
}

fn format_options() -> FormatOptions {
    FormatOptions { cluster: CLUSTER, disk: DiskId(9), class: "ssd".into(), capacity_bytes: CAPACITY_BYTES_MIN }
}

fn open(p: &Place) -> Disk {
    Disk::open(&p.path, OpenOptions { cluster: Some(CLUSTER), ..OpenOptions::default() }).expect("opens")
}

pub(super) fn chunk(index: u32) -> ChunkId {
    ChunkId { volume: VolumeId(5), index }
}

pub(super) fn content(seed: u64, blocks: usize) -> Vec<u8> {
    let mut out = vec![0; blocks * 4096];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

pub(super) fn write(disk: &Disk, c: ChunkId, sequence: u64, first_block: usize, data: &[u8]) -> Result<(), WriteChunk> {
    let leaves = hashtree::leaves_of(first_block, data);
    disk.write(&WriteOp { pg: PG, chunk: c, generation: G1, sequence, first_block, leaves: &leaves, data, copy: false })
}

fn read(disk: &Disk, c: ChunkId, first: usize, count: usize) -> Result<Vec<u8>, ReadChunk> {
    let mut buf = vec![0xaa; count * 4096];
    disk.read(c, first, count, &mut buf).map(|_| buf)
}

fn poke(p: &Place, offset: u64, bytes: &[u8]) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::OpenOptions::new().write(true).open(p.path.join("data")).expect("opens");
    file.write_all_at(bytes, offset).expect("writes");
}

#[test]
fn what_is_written_is_read_before_and_after_a_clean_stop() {
    let p = place();
    let disk = open(&p);
    let boot = disk.boot_id();
    let data = content(1, 8);
    write(&disk, chunk(2), 1, 100, &data).expect("writes");
    assert_eq!(read(&disk, chunk(2), 100, 8), Ok(data.clone()));
    assert_eq!(read(&disk, chunk(2), 0, 4), Ok(vec![0; 4 * 4096]), "holes");
    assert_eq!(read(&disk, chunk(3), 7, 2), Ok(vec![0; 2 * 4096]), "absent");
    assert!(disk.chunk_meta(chunk(2)).is_some_and(|m| m.dirty && m.root.is_none()));
    disk.flush(&[(PG, 17)]).expect("flushes");
    let root = disk.root(chunk(2)).expect("reads").expect("present");
    disk.close_clean().expect("closes");
    assert!(
        write(&disk, chunk(2), 2, 0, &data).is_err_and(|e| matches!(e, WriteChunk::Disk(DiskFault::Closed { .. })))
    );
    drop(disk);

    let disk = open(&p);
    assert_eq!(disk.boot_id(), boot, "a clean stop keeps the boot id");
    let meta = disk.chunk_meta(chunk(2)).expect("present");
    assert_eq!((meta.dirty, meta.root, meta.sequence, meta.generation), (false, Some(root), 1, G1));
    assert_eq!(read(&disk, chunk(2), 100, 8), Ok(data));
    assert_eq!(disk.flush_mark(PG), 17);
    assert_eq!(disk.chunk_table(PG).len(), 1);
    drop(disk);
    assert_ne!(open(&p).boot_id(), boot, "an unclean one doesn't");
}

#[test]
fn a_flipped_bit_is_never_served_and_is_counted() {
    let p = place();
    let disk = open(&p);
    write(&disk, chunk(0), 1, 0, &content(1, 16)).expect("writes");
    let at = disk.superblock().geometry.block(0, 5);
    poke(&p, at + 77, b"x");
    assert_eq!(read(&disk, chunk(0), 4, 4), Err(ReadChunk::BadBlocks { chunk: chunk(0), blocks: vec![5] }));
    assert_eq!(disk.counters().hash_mismatches, 1);
    assert_eq!(disk.recover_dirty(chunk(0)), Ok(vec![5]));
    disk.adopt(chunk(0), 5).expect("adopts");
    assert!(read(&disk, chunk(0), 0, 16).is_ok());
    assert_eq!(disk.counters().adopted_blocks, 1);
}

#[test]
fn zeroed_blocks_read_as_zeros_and_a_trimmed_chunk_keeps_its_header() {
    let p = place();
    let disk = open(&p);
    write(&disk, chunk(0), 1, 0, &content(1, 200)).expect("writes");
    disk.zero(PG, chunk(0), G1, 2, 3, 2).expect("zeroes a few");
    disk.zero(PG, chunk(0), G1, 3, 64, 128).expect("zeroes many");
    let data = read(&disk, chunk(0), 0, 200).expect("reads");
    assert!(hashtree::is_zero(&data[3 * 4096..5 * 4096]) && hashtree::is_zero(&data[64 * 4096..192 * 4096]));
    assert_eq!(&data[5 * 4096..64 * 4096], &content(1, 200)[5 * 4096..64 * 4096]);
    assert_eq!(disk.root(chunk(0)), Ok(Some(hashtree::root(&disk.leaves(chunk(0)).unwrap().unwrap()))));
    disk.zero(PG, chunk(0), G1, 4, 0, BLOCKS_PER_CHUNK).expect("trims");
    disk.zero(PG, chunk(1), G1, 1, 0, BLOCKS_PER_CHUNK).expect("an absent chunk needs no trim");
    disk.close_clean().expect("closes");
    drop(disk);
    let disk = open(&p);
    let table = disk.chunk_table(PG);
    assert_eq!(table.len(), 1);
    assert!(table[0].trimmed && table[0].sequence == 4 && table[0].root == Some(hashtree::zero_root()));
}

#[test]
fn a_deleted_chunk_leaves_nothing_in_its_slot() {
    let p = place();
    let disk = open(&p);
    let slots = disk.space().slots_total;
    for i in 0..slots as u32 {
        write(&disk, chunk(i), 1, 0, &content(u64::from(i), 2)).expect("writes");
    }
    assert!(write(&disk, chunk(1000), 1, 0, &content(1, 1)).is_err_and(|e| e.is_no_space()));
    assert_eq!(disk.space().slots_free, 0);
    assert_eq!(disk.delete_chunk(chunk(4)), Ok(true));
    assert_eq!(disk.delete_chunk(chunk(4)), Ok(false));
    assert_eq!(read(&disk, chunk(4), 0, 2), Ok(vec![0; 8192]));
    disk.prepare(PG, chunk(2000), G1).expect("takes the freed slot");
    assert_eq!(disk.leaves(chunk(2000)).unwrap().unwrap()[..2], [HOLE; 2]);
    assert!(!disk.is_failed());
    drop(disk);
    let disk = open(&p);
    assert!(disk.chunk_meta(chunk(4)).is_none() && disk.chunk_meta(chunk(2000)).is_some());
    assert_eq!(read(&disk, chunk(2000), 0, 2), Ok(vec![0; 8192]));
}

#[test]
fn pg_records_survive_and_damage_makes_them_incomplete() {
    let p = place();
    let disk = open(&p);
    let record = |n: u64, body: &[u8]| PgRecord {
        pg: PG,
        generation: Generation { epoch: 1, n },
        complete: true,
        durability_epoch: n,
        body: body.to_vec(),
    };
    assert!(matches!(disk.pg_put(record(1, &vec![0; 40 << 10])), Err(PutPg::TooLong { .. })));
    disk.pg_put(record(1, b"one")).expect("puts");
    disk.pg_put(record(2, &[2; 30 << 10])).expect("puts");
    let g = disk.superblock().geometry;
    drop(disk);
    assert_eq!(open(&p).pg_list(), vec![record(2, &[2; 30 << 10])]);
    // Version 2 lies in copy 0; damage its body, then its envelope.
    for at in [20_000, 20] {
        poke(&p, g.pg_record(0, 0) + at, b"damage");
        let found = open(&p).pg_get(PG).expect("the older copy");
        assert_eq!(found, PgRecord { complete: false, ..record(1, b"one") });
    }
    let disk = open(&p);
    disk.pg_put(record(3, b"three")).expect("puts");
    drop(disk);
    let disk = open(&p);
    assert_eq!(disk.pg_get(PG), Some(record(3, b"three")), "the damaged copy was written anew");
    disk.flush(&[(PG, 5)]).expect("flushes");
    assert_eq!(disk.pg_remove(PG), Ok(true));
    assert_eq!(disk.pg_remove(PG), Ok(false));
    drop(disk);
    let disk = open(&p);
    assert_eq!((disk.pg_get(PG), disk.flush_mark(PG)), (None, 0));
}

/// Else it would look like a member that never had the PG: a fresh one, which counts as complete.
#[test]
fn a_disk_that_lost_a_pg_record_is_another_member() {
    let p = place();
    let disk = open(&p);
    let record = PgRecord { pg: PG, generation: G1, complete: true, durability_epoch: 1, body: b"one".to_vec() };
    disk.pg_put(record).expect("puts");
    let (g, boot) = (disk.superblock().geometry, disk.boot_id());
    disk.close_clean().expect("closes");
    drop(disk);
    let disk = open(&p);
    assert_eq!(disk.boot_id(), boot, "a clean stop keeps it");
    disk.close_clean().expect("closes");
    drop(disk);
    for copy in 0..2 {
        poke(&p, g.pg_record(0, copy) + 20, b"damage");
    }
    let disk = open(&p);
    assert_eq!(disk.pg_list(), vec![]);
    assert_ne!(disk.boot_id(), boot);
}

#[test]
fn damaged_headers_are_counted_and_never_trusted() {
    let p = place();
    let disk = open(&p);
    let g = disk.superblock().geometry;
    for i in 0..3 {
        write(&disk, chunk(i), 1, 0, &content(u64::from(i), 2)).expect("writes");
    }
    disk.pg_put(PgRecord { pg: PG, generation: G1, complete: true, durability_epoch: 1, body: vec![] }).expect("puts");
    disk.close_clean().expect("closes");
    drop(disk);
    // Slot 0: the older copy; slot 1: both; slots 1 and 2 were clean.
    poke(&p, g.headers(1) + 60, b"damage");
    poke(&p, g.headers(0) + 128 + 60, b"damage");
    poke(&p, g.headers(1) + 128 + 60, b"damage");
    let disk = open(&p);
    assert_eq!((disk.counters().corrupt_headers, disk.counters().quarantined_slots), (3, 1));
    assert_eq!(disk.unrecovered_chunks(), vec![chunk(0)]);
    assert!(disk.chunk_meta(chunk(0)).is_some_and(|m| m.dirty && m.unrecovered));
    assert!(disk.chunk_meta(chunk(1)).is_none());
    assert_eq!(disk.pg_get(PG).map(|r| r.complete), Some(false), "a chunk is missing, nobody knows of which PG");
    assert_eq!(disk.recover_dirty(chunk(0)), Ok(vec![]));
    assert!(disk.unrecovered_chunks().is_empty());
    assert_eq!(disk.free_quarantined(), Ok(1));
    disk.close_clean().expect("closes");
    drop(disk);
    let disk = open(&p);
    assert_eq!((disk.counters().corrupt_headers, disk.counters().quarantined_slots), (0, 0));
    assert_eq!(
        disk.chunk_table(PG).iter().map(|c| (c.chunk.index, c.dirty)).collect::<Vec<_>>(),
        [(0, false), (2, false)]
    );
}

#[test]
fn the_hot_set_is_bounded_and_idle_chunks_are_cleaned() {
    let p = place();
    let options = OpenOptions { hot_chunks_max: 4, cached_leaves_max: 2, ..OpenOptions::default() };
    let disk = Disk::open(&p.path, options).expect("opens");
    for i in 0..12 {
        write(&disk, chunk(i), 1, 0, &content(u64::from(i), 2)).expect("writes");
        assert!(disk.chunk_table(PG).iter().filter(|c| c.dirty).count() <= 4);
    }
    while disk.chunk_table(PG).iter().any(|c| c.dirty) {
        disk.clean_some(100).expect("cleans");
    }
    drop(disk);
    let disk = open(&p);
    for c in disk.chunk_table(PG) {
        assert_eq!(c.root, Some(hashtree::root(&disk.leaves(c.chunk).unwrap().unwrap())));
        assert_eq!(read(&disk, c.chunk, 0, 2), Ok(content(u64::from(c.chunk.index), 2)));
    }
}

/// A mark costs a stable write that a guest waits for: its chunks keep theirs, and copies don't take their places.
#[test]
fn what_guests_write_stays_marked_and_what_copies_write_makes_room() {
    let p = place();
    let disk = Disk::open(&p.path, OpenOptions { hot_chunks_max: 8, ..OpenOptions::default() }).expect("opens");
    let guest_writes = || (0..3).for_each(|i| write(&disk, chunk(i), 1, 0, &content(1, 2)).expect("writes"));
    guest_writes();
    for i in 10..30 {
        let data = content(i, 2);
        let leaves = hashtree::leaves_of(0, &data);
        let chunk = chunk(i as u32);
        let op = WriteOp {
            pg: PG,
            chunk,
            generation: G1,
            sequence: 0,
            first_block: 0,
            leaves: &leaves,
            data: &data,
            copy: true,
        };
        disk.write(&op).expect("writes");
        disk.clean_some(100).expect("cleans");
    }
    for _ in 0..4 {
        disk.clean_some(100).expect("cleans");
    }
    let dirty: Vec<u32> = disk.chunk_table(PG).iter().filter(|c| c.dirty).map(|c| c.chunk.index).collect();
    assert_eq!(dirty, [0, 1, 2]);
    let headers = disk.counters().header_writes;
    guest_writes();
    assert_eq!(disk.counters().header_writes, headers, "no stable write for chunks that are marked");
}

#[test]
fn threads_write_read_flush_clean_and_delete_at_once() {
    let p = place();
    let options = OpenOptions { hot_chunks_max: 3, cached_leaves_max: 2, ..OpenOptions::default() };
    let disk = Disk::open(&p.path, options).expect("opens");
    std::thread::scope(|s| {
        for t in 0..4usize {
            let disk = &disk;
            s.spawn(move || {
                for i in 0..150u64 {
                    // Each thread has blocks of its own in chunks that all share.
                    let c = chunk((i % 6) as u32);
                    let data = content(i << 8 | t as u64, 2);
                    write(disk, c, i + 1, t * 2, &data).expect("writes");
                    assert_eq!(read(disk, c, t * 2, 2), Ok(data));
                    let own = chunk(10 + t as u32);
                    write(disk, own, i + 1, 0, &content(i, 1)).expect("writes");
                    if i % 10 == 0 {
                        disk.flush(&[(PG, i)]).expect("flushes");
                        assert_eq!(disk.delete_chunk(own), Ok(true));
                    }
                    if i % 25 == 0 {
                        disk.clean_some(8).expect("cleans");
                        disk.free_some(|_| ()).expect("frees");
                    }
                }
            });
        }
    });
    assert!(!disk.is_busy() && disk.hangs_since().is_none());
    disk.close_clean().expect("closes");
    drop(disk);
    let disk = open(&p);
    for c in disk.chunk_table(PG) {
        assert_eq!(c.root, Some(hashtree::root(&disk.leaves(c.chunk).unwrap().unwrap())));
        assert_eq!(disk.recover_dirty(c.chunk), Ok(vec![]));
    }
    assert_eq!(disk.flush_mark(PG), 140);
}

#[test]
fn opening_and_formatting_refuse_with_the_way_out() {
    let p = place();
    let disk = open(&p);
    let error = |e: Option<OpenDisk>| e.map(|e| e.to_string()).unwrap_or_default();
    let in_use = error(Disk::open(&p.path, OpenOptions::default()).err());
    assert!(in_use.contains("is in use by process") && in_use.contains(&std::process::id().to_string()), "{in_use}");
    drop(disk);
    let other = OpenOptions { cluster: Some(ClusterId([8; 16])), ..OpenOptions::default() };
    assert!(matches!(Disk::open(&p.path, other), Err(OpenDisk::OtherCluster { .. })));
    assert!(matches!(format(&p.path, &format_options()), Err(FormatDisk::AlreadyADisk { .. })));
    let nothing = p.path.join("nothing");
    assert!(matches!(Disk::open(&nothing, OpenOptions::default()), Err(OpenDisk::NotADisk { .. })));
    let small = FormatOptions { capacity_bytes: 1 << 20, ..format_options() };
    assert!(matches!(format(&nothing, &small), Err(FormatDisk::TooSmall { .. })));
    let used = p.path.join("used");
    std::fs::create_dir(&used).expect("creates");
    std::fs::write(used.join("file"), b"precious").expect("writes");
    assert!(matches!(format(&used, &format_options()), Err(FormatDisk::OtherData { .. })));
    assert_eq!(inspect(&p.path).expect("inspects").disk, DiskId(9));
    // One damaged superblock copy: opens, with a new boot id. Both: doesn't.
    let boot = open(&p).boot_id();
    open(&p).close_clean().expect("closes");
    poke(&p, 90, b"damage");
    let disk = open(&p);
    assert_ne!(disk.boot_id(), boot);
    drop(disk);
    let file = std::fs::OpenOptions::new().write(true).open(p.path.join("data")).expect("opens");
    file.set_len(1 << 25).expect("truncates");
    assert!(matches!(Disk::open(&p.path, OpenOptions::default()), Err(OpenDisk::Truncated { .. })));
    poke(&p, 90, b"damage");
    poke(&p, 90 + (64 << 10), b"damage");
    assert!(matches!(Disk::open(&p.path, OpenOptions::default()), Err(OpenDisk::SuperblockCorrupt { .. })));
}

#[test]
fn wiping_leaves_the_disk_to_guests_between_slots_until_somebody_needs_a_slot() {
    use std::cell::Cell;
    use std::sync::atomic::Ordering;

    let p = place();
    let disk = open(&p);
    let fill = |ids: std::ops::Range<u32>| {
        for i in ids {
            write(&disk, chunk(i), 1, 0, &content(1, 1)).expect("writes");
        }
    };
    let slots = disk.space().slots_total as u32;
    fill(0..slots);
    let pauses = Cell::new(0);
    (0..6).for_each(|i| assert_eq!(disk.delete_chunk(chunk(i)), Ok(true)));
    assert_eq!(disk.free_some(|_| pauses.set(pauses.get() + 1)), Ok(6));
    assert_eq!(pauses.get(), 6);

    fill(0..6);
    pauses.set(0);
    (0..6).for_each(|i| assert_eq!(disk.delete_chunk(chunk(i)), Ok(true)));
    std::thread::scope(|s| {
        let freed = disk.free_some(|_| {
            pauses.set(pauses.get() + 1);
            // There is no other slot than those that are being wiped.
            s.spawn(|| write(&disk, chunk(slots), 1, 0, &content(2, 1)).expect("writes"));
            while disk.slot_waiters.load(Ordering::Relaxed) == 0 {
                std::thread::yield_now();
            }
        });
        assert_eq!(freed, Ok(6));
    });
    assert_eq!(pauses.get(), 1);
    assert_eq!(read(&disk, chunk(slots), 0, 1), Ok(content(2, 1)));
}
