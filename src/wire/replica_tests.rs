//! Every message, its bytes, and what is refused.

use super::*;
use crate::core::cluster::{PgConfig, Replica};
use crate::core::ids::{BootId, PoolId};

const CHUNK: ChunkId = ChunkId { volume: VolumeId(7), index: 3 };
const G: Generation = Generation { epoch: 1, n: 9 };

fn address() -> Address {
    Address { pg: PgId { pool: PoolId(1), index: 2 }, to: DiskId(4), from: DiskId(5) }
}

fn write() -> Operation {
    let data = vec![7; 8192];
    let leaves = Arc::new(hashtree::leaves_of(5, &data));
    Operation::Write { chunk: CHUNK, first_block: 5, leaves, data: data.into() }
}

fn config() -> PgConfig {
    PgConfig {
        pg: address().pg,
        generation: G,
        durability_epoch: 2,
        members: vec![Replica { disk: DiskId(4), boot: BootId(1) }],
        learners: vec![],
        last_proposal: 0,
        forced: true,
        members_min: 0,
    }
}

fn messages() -> Vec<PeerMessage> {
    let config = config();
    let s = PeerMessage::Session;
    let data: Bytes = vec![9; 4096].into();
    let leaf = hashtree::leaf(64, &data);
    vec![
        PeerMessage::NewConfig { config: config.clone() },
        PeerMessage::ConfigAccepted {
            generation: G,
            last_sequence: 8,
            uncommitted: vec![(CHUNK, 1, 2)],
            fences: vec![(VolumeId(7), 3)],
        },
        PeerMessage::ConfigRefused { generation: G },
        PeerMessage::Activate { generation: G, base_sequence: 3 },
        PeerMessage::Yield { generation: G },
        PeerMessage::Prepare { generation: G, chunk: CHUNK },
        PeerMessage::Prepared { generation: G, chunk: CHUNK, ok: true },
        PeerMessage::Replicate { generation: G, sequence: 4, committed: 3, durable: true, op: write() },
        PeerMessage::Replicate {
            generation: G,
            sequence: 5,
            committed: 3,
            durable: false,
            op: Operation::Zero { chunk: CHUNK, first_block: 0, count: 1024 },
        },
        PeerMessage::Applied { generation: G, sequence: 4 },
        PeerMessage::Rejected { generation: G, gap: true },
        PeerMessage::Flush { generation: G, id: 1, mark: 4 },
        PeerMessage::Flushed { generation: G, id: 1 },
        PeerMessage::Fetch { generation: G, id: 1, chunk: CHUNK, first_block: 1, count: 2 },
        PeerMessage::Fetched { generation: G, id: 1, leaves: Arc::new(vec![leaf]), data: data.clone() },
        s(SessionMessage::Open { config }),
        s(SessionMessage::Table {
            entries: vec![TableEntry { chunk: CHUNK, generation: G, sequence: 1, root: Some([3; 32]), unsure: true }],
            last: true,
        }),
        s(SessionMessage::Drop { chunk: CHUNK }),
        s(SessionMessage::Compare { chunk: CHUNK, windows: vec![[1; 32]; 16] }),
        s(SessionMessage::Compare { chunk: CHUNK, windows: vec![] }),
        s(SessionMessage::Differs { chunk: CHUNK, windows: 0x8001 }),
        s(SessionMessage::CompareWindow { chunk: CHUNK, window: 3, groups: vec![[2; 32]; 16] }),
        s(SessionMessage::WindowDiffers { chunk: CHUNK, window: 3, groups: 5 }),
        s(SessionMessage::CompareBlocks { chunk: CHUNK, window: 3, groups: 5, leaves: vec![[2; 32]; 8] }),
        s(SessionMessage::BlocksDiffer { chunk: CHUNK, window: 3, blocks: 1 << 63 }),
        s(SessionMessage::Copy { chunk: CHUNK, window: 1, blocks: 0b11, leaves: vec![leaf, hashtree::HOLE], data }),
        s(SessionMessage::Copied { chunk: CHUNK, window: 1, bytes: 4096 }),
        s(SessionMessage::ChunkDone { chunk: CHUNK, generation: G, sequence: 4 }),
        s(SessionMessage::Forward { generation: G, sequence: 4, committed: 3, durable: false, op: write() }),
        s(SessionMessage::Forwarded { sequence: 4 }),
        s(SessionMessage::Finish { sequence: 9, uncommitted: vec![(CHUNK, 1, 2)] }),
        s(SessionMessage::Finished),
    ]
}

#[test]
fn every_message_comes_back_as_it_went() {
    for message in messages() {
        let frame = encode(address(), &message).received();
        assert_eq!(decode(&frame), Ok((address(), message)));
    }
}

#[test]
fn a_changed_block_is_refused() {
    let message = PeerMessage::Replicate { generation: G, sequence: 4, committed: 3, durable: true, op: write() };
    let mut frame = encode(address(), &message).received();
    let mut payload = frame.payload.to_vec();
    *payload.last_mut().unwrap() ^= 1;
    frame.payload = payload.into();
    assert_eq!(decode(&frame), Err(DecodePeer::Mismatch { chunk: CHUNK, block: 6 }));
}

#[test]
fn truncated_payloads_and_unknown_kinds_are_refused() {
    for message in messages() {
        let mut frame = encode(address(), &message).received();
        if !frame.payload.is_empty() {
            frame.payload.truncate(frame.payload.len() - 1);
            assert!(decode(&frame).is_err(), "{message:?}");
        }
    }
    let unknown = Frame::new(0x02ff, Bytes::new());
    assert_eq!(decode(&unknown), Err(DecodePeer::UnknownKind(0x02ff)));
}

/// The bytes on the wire: a change here is a change of the protocol.
#[test]
fn golden_bytes() {
    let frame = encode(address(), &PeerMessage::Applied { generation: G, sequence: 300 });
    assert_eq!(frame.kind, 0x0209);
    assert_eq!(hex::encode(&frame.meta), "088280808010100418052001280930ac02");
    let frame = encode(address(), &PeerMessage::Prepare { generation: G, chunk: CHUNK });
    assert_eq!(hex::encode(&frame.meta), "0882808080101004180520012809400748".to_owned() + "03");
}
