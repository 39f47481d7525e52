//! Golden bytes and round trips.

use super::*;
use crate::core::ids::PoolId;

const CLUSTER: ClusterId = ClusterId([0xc1; 16]);

/// The bytes without the trailing zeros before the checksum, then the checksum.
fn golden(b: &[u8]) -> String {
    let (body, crc) = b.split_at(b.len() - 4);
    let used = body.iter().rposition(|x| *x != 0).map_or(0, |i| i + 1);
    format!("{} {}", hex::encode(&body[..used]), hex::encode(crc))
}

fn header() -> Header {
    Header {
        slot_use: SlotUse::Chunk,
        dirty: false,
        trimmed: true,
        chunk: ChunkId { volume: VolumeId(0x0102_0304), index: 7 },
        pg: PgId { pool: PoolId(1), index: 17 },
        generation: Generation { epoch: 2, n: 9 },
        sequence: 0x55,
        root: [0xee; 32],
        version: 5,
    }
}

#[test]
fn a_header_has_these_bytes() {
    let b = header().encode(3, &CLUSTER);
    assert_eq!(golden(&b), HEADER_GOLDEN);
    assert_eq!(Header::decode(&b, 3, &CLUSTER), Copy::Valid(header()));
    assert_eq!(Header::decode(&b, 4, &CLUSTER), Copy::Corrupt, "another slot's header");
    assert_eq!(Header::decode(&b, 3, &ClusterId([0xc2; 16])), Copy::Corrupt, "another cluster's header");
    assert_eq!(Header::decode(&[0; HEADER_BYTES], 3, &CLUSTER), Copy::Empty);
    for bit in 0..HEADER_BYTES * 8 {
        let mut bad = b;
        bad[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(Header::decode(&bad, 3, &CLUSTER), Copy::Corrupt, "bit {bit}");
    }
}

#[test]
fn a_superblock_has_these_bytes() {
    let s = Superblock {
        cluster: CLUSTER,
        disk: DiskId(4),
        class: "ssd".into(),
        geometry: Geometry::new(1 << 30, PG_ENTRIES).expect("large enough"),
        boot: BootId(0x1122_3344_5566_7788),
        clean: true,
        failed: false,
        version: 3,
    };
    let b = s.encode();
    assert_eq!(golden(&b), SUPERBLOCK_GOLDEN);
    assert_eq!(Superblock::decode(&b), Ok(s.clone()));
    let mut bad = b.clone();
    bad[90] ^= 1;
    assert_eq!(Superblock::decode(&bad), Err(SuperblockProblem::Corrupt));
    let mut newer = b;
    put_u32(&mut newer, 8, 2);
    seal(&mut newer, u64::MAX);
    assert_eq!(Superblock::decode(&newer), Err(SuperblockProblem::Newer(2)));
    let huge = Superblock { geometry: Geometry { slots: u32::MAX, ..s.geometry }, ..s };
    assert_eq!(Superblock::decode(&huge.encode()), Err(SuperblockProblem::Corrupt));
}

#[test]
fn a_pg_envelope_and_a_mark_have_these_bytes() {
    let e = PgEnvelope {
        used: true,
        complete: true,
        pg: PgId { pool: PoolId(1), index: 17 },
        generation: Generation { epoch: 2, n: 9 },
        durability_epoch: 6,
        version: 8,
        body_len: 100,
        body_crc: 0xdead_beef,
    };
    let b = e.encode(5, &CLUSTER);
    assert_eq!(golden(&b), ENVELOPE_GOLDEN);
    assert_eq!(PgEnvelope::decode(&b, 5, &CLUSTER), Copy::Valid(e));
    assert_eq!(PgEnvelope::decode(&b, 6, &CLUSTER), Copy::Corrupt);
    let m = Mark { used: true, pg: e.pg, mark: 77, version: 2 };
    let b = m.encode(1);
    assert_eq!(golden(&b), MARK_GOLDEN);
    assert_eq!(Mark::decode(&b, 1), Copy::Valid(m));
    assert_eq!(Mark::decode(&b, 2), Copy::Corrupt);
}

#[test]
fn regions_follow_each_other_and_fit() {
    for capacity in [128 << 20, (1 << 30) + 4097, 10 << 40] {
        let g = Geometry::new(capacity, PG_ENTRIES).expect("large enough");
        assert_eq!(g.pg_record(g.pg_entries, 0), g.marks(0));
        assert_eq!(g.headers(1) - g.headers(0), g.headers_bytes());
        assert!(g.headers(0).is_multiple_of(PAGE_BYTES) && g.slot(0).is_multiple_of(PAGE_BYTES));
        assert!(g.end() <= capacity && g.end() + SLOT_BYTES + 3 * PAGE_BYTES > capacity, "{capacity}");
    }
    assert_eq!(Geometry::new(1 << 20, PG_ENTRIES), None);
}

proptest::proptest! {
    /// Even under a checksum that fits, no content may panic or name regions outside the capacity (I9).
    #[test]
    fn any_bytes_decode_to_something_sane(
        mut page in proptest::collection::vec(proptest::num::u8::ANY, PAGE_BYTES as usize),
        small in proptest::num::u8::ANY,
        entry in 0u32..4,
    ) {
        page[..8].copy_from_slice(SUPERBLOCK_MAGIC);
        put_u32(&mut page, 8, FORMAT_VERSION);
        put_u32(&mut page, 68, BLOCK_BYTES as u32);
        put_u64(&mut page, 104, CHUNK_BYTES);
        page[36] = small;
        page[79] = 0;
        page[82..84].fill(0);
        page[86..88].fill(0);
        seal(&mut page, u64::MAX);
        if let Ok(s) = Superblock::decode(&page) {
            proptest::prop_assert!(s.geometry.end() <= s.geometry.capacity_bytes);
            proptest::prop_assert_eq!(Superblock::decode(&s.encode()), Ok(s));
        }
        let header = &mut page[..HEADER_BYTES];
        put_u32(header, 0, HEADER_MAGIC);
        header[8..16].copy_from_slice(&CLUSTER.0[..8]);
        seal(header, u64::from(entry));
        if let Copy::Valid(h) = Header::decode(header, entry, &CLUSTER) {
            proptest::prop_assert_eq!(Header::decode(&h.encode(entry, &CLUSTER), entry, &CLUSTER), Copy::Valid(h));
        }
        let envelope = &mut page[..PG_ENVELOPE_BYTES];
        put_u32(envelope, 0, PG_MAGIC);
        seal(envelope, u64::from(entry));
        if let Copy::Valid(e) = PgEnvelope::decode(envelope, entry, &CLUSTER) {
            proptest::prop_assert!(e.body_len as usize <= PG_BODY_BYTES_MAX);
        }
        let mark = &mut page[..MARK_BYTES as usize];
        seal(mark, u64::from(entry));
        proptest::prop_assert!(Mark::decode(mark, entry) != Copy::Corrupt);
    }
}

const HEADER_GOLDEN: &str = "454b534805000000c1c1c1c1c1c1c1c104030201000000000700000002000000090000000000000011000000010000005500000000000000eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee05 c6b4fc04";
const SUPERBLOCK_GOLDEN: &str = "4556454e4b45454c0100000001000000c1c1c1c1c1c1c1c1c1c1c1c1c1c1c1c1040000000373736400000000000000000000000000000000000000000000000000000000001000000000004000000000f60000000002000088776655443322110300000000000000000040 23e7303a";
const ENVELOPE_GOLDEN: &str = "454b504703000000c1c1c1c1c1c1c1c111000000010000000900000000000000060000000000000008000000000000000200000064000000efbeadde e9e04b7c";
const MARK_GOLDEN: &str = "11000000010000004d00000000000000020000000000000001 8b2889d3";
