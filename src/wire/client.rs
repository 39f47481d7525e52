//! What gateways ask of primaries: kinds 0x05xx, on a Foreground link's one channel.
//!
//! A request carries the receiver's disk and PG, the sender's attach incarnation and connection number, and an id
//! that the answer echoes; answers come in any order.

use bytes::Bytes;
use prost::Message;

use super::frame::Frame;
use super::replica::verify_blocks;
use crate::core::hashtree::Hash;
use crate::core::ids::{ChunkId, DiskId, PgId, VolumeId};
use crate::core::replica::{ClientOp, ClientReply, ClientRequest};
use crate::core::throttle::Kind;
use crate::core::units::{BLOCK_BYTES, BLOCKS_PER_CHUNK, CHUNK_BYTES};

/// Frame kinds.
pub mod kind {
    /// First frame of a gateway's channel.
    pub const CLIENT_HELLO: u16 = 0x0500;
    pub(super) const OPEN: u16 = 0x0501;
    pub(super) const READ: u16 = 0x0502;
    pub(super) const WRITE: u16 = 0x0503;
    pub(super) const ZERO: u16 = 0x0504;
    pub(super) const FLUSH: u16 = 0x0505;
    pub(super) const STATUS: u16 = 0x0506;
    pub(super) const ROOT: u16 = 0x0507;
    pub(super) const REPLY: u16 = 0x0510;
}

#[derive(Clone, PartialEq, Message)]
struct Request {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(uint64, tag = "2")]
    pg: u64,
    #[prost(uint32, tag = "3")]
    disk: u32,
    #[prost(uint64, tag = "4")]
    volume: u64,
    #[prost(uint64, tag = "5")]
    incarnation: u64,
    #[prost(uint64, tag = "6")]
    connection: u64,
    #[prost(uint32, tag = "7")]
    chunk: u32,
    #[prost(uint32, tag = "8")]
    offset: u32,
    #[prost(uint32, tag = "9")]
    len: u32,
    #[prost(bool, tag = "10")]
    fua: bool,
    /// Leaves at the payload's start.
    #[prost(uint32, tag = "11")]
    leaves: u32,
    /// Each: microseconds × 4 + the kind's index.
    #[prost(uint32, repeated, tag = "12")]
    latencies: Vec<u32>,
}

/// How long an operation on the same disk took, as its gateway saw it: what the throttle has to keep low is what guests have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeenLatency {
    /// A client's, so never [`Kind::Apply`].
    pub kind: Kind,
    /// From when it was sent until its answer was there; at most [`SeenLatency::US_MAX`].
    pub us: u32,
}

impl SeenLatency {
    /// Longer ones count as this: 18 minutes.
    pub const US_MAX: u32 = u32::MAX / 4;

    fn pack(self) -> u32 {
        self.us.min(Self::US_MAX) * 4 + self.kind as u32
    }

    fn unpack(packed: u32) -> Self {
        SeenLatency { kind: Kind::ALL[(packed % 4) as usize], us: packed / 4 }
    }
}

// The kinds of a client's operations fit two bits.
const _: () = assert!(Kind::Apply as u32 == 4);

/// Most latencies that one request brings.
pub const LATENCIES_MAX: usize = 64;

/// A request that has come.
#[derive(Debug)]
pub struct Received {
    /// Whose PG.
    pub pg: PgId,
    /// The disk that it is for.
    pub disk: DiskId,
    /// What.
    pub request: ClientRequest,
    /// What its gateway has seen of this disk since its last request; at most [`LATENCIES_MAX`].
    pub latencies: Vec<SeenLatency>,
}

#[derive(Clone, PartialEq, Message)]
struct Reply {
    #[prost(uint64, tag = "1")]
    id: u64,
    /// 0 done, 1 data, 2 allocated, 3 root, 4 not primary, 5 fenced, 6 not open, 7 IO error.
    #[prost(uint32, tag = "2")]
    result: u32,
    #[prost(uint64, tag = "3")]
    durability_epoch: u64,
}

/// A frame that is no message of this module, or is damaged.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a {kind:#06x} message from a gateway or node is damaged or unknown: {reason}")]
pub struct DecodeClient {
    /// Kind.
    pub kind: u16,
    /// Why.
    pub reason: String,
}

/// Makes a request's frame for the primary's disk, with what was seen of that disk lately.
pub fn encode_request(pg: PgId, disk: DiskId, request: &ClientRequest, seen: &[SeenLatency]) -> Frame {
    let mut m = Request {
        id: request.id,
        pg: pg.to_u64(),
        disk: disk.0,
        volume: request.volume.0,
        incarnation: request.incarnation,
        connection: request.connection,
        latencies: seen.iter().take(LATENCIES_MAX).map(|l| l.pack()).collect(),
        ..Request::default()
    };
    let (mut lead, mut payload) = (Bytes::new(), Bytes::new());
    let kind = match &request.op {
        ClientOp::Open => kind::OPEN,
        ClientOp::Read { chunk, offset, len } => {
            (m.chunk, m.offset, m.len) = (chunk.index, *offset, *len);
            kind::READ
        }
        ClientOp::Write { chunk, offset, leaves, data, fua } => {
            (m.chunk, m.offset, m.len, m.fua) = (chunk.index, *offset, data.len() as u32, *fua);
            m.leaves = leaves.len() as u32;
            (lead, payload) = (Bytes::copy_from_slice(leaves.as_flattened()), data.clone());
            kind::WRITE
        }
        ClientOp::Zero { chunk, first_block, count, fua } => {
            (m.chunk, m.offset, m.len, m.fua) = (chunk.index, *first_block, *count, *fua);
            kind::ZERO
        }
        ClientOp::Flush => kind::FLUSH,
        ClientOp::Status { chunk, first_block, count } => {
            (m.chunk, m.offset, m.len) = (chunk.index, *first_block, *count);
            kind::STATUS
        }
        ClientOp::Root { chunk, len } => {
            (m.chunk, m.len) = (chunk.index, *len);
            kind::ROOT
        }
    };
    Frame { lead, ..Frame::with_payload(kind, m.encode_to_vec(), payload) }
}

/// Takes a request apart; whole blocks have been verified against their leaves.
///
/// # Errors
/// Unknown, malformed, or a block that doesn't match its leaf.
pub fn decode_request(frame: &Frame) -> Result<Received, DecodeClient> {
    let kind = frame.kind;
    let bad = |reason: String| DecodeClient { kind, reason };
    let m = Request::decode(frame.meta.as_ref()).map_err(|e| bad(e.to_string()))?;
    let volume = VolumeId(m.volume);
    let chunk = ChunkId { volume, index: m.chunk };
    let op = match kind {
        kind::OPEN => ClientOp::Open,
        kind::READ => ClientOp::Read { chunk, offset: m.offset, len: m.len },
        kind::WRITE => {
            let count = m.leaves as usize;
            if count > BLOCKS_PER_CHUNK || frame.payload.len() < count * 32 {
                return Err(bad(format!("{} bytes can't hold {count} leaves", frame.payload.len())));
            }
            let (leaves, _) = frame.payload[..count * 32].as_chunks::<32>();
            let leaves: Vec<Hash> = leaves.to_vec();
            let data = frame.payload.slice(count * 32..);
            let fits = u64::from(m.offset) + data.len() as u64 <= CHUNK_BYTES && !data.is_empty();
            if data.len() != m.len as usize || !fits {
                return Err(bad("the data isn't as long as said, or leaves its chunk".into()));
            }
            if count > 0 {
                let aligned = u64::from(m.offset).is_multiple_of(BLOCK_BYTES);
                if !aligned || data.len() as u64 != count as u64 * BLOCK_BYTES {
                    return Err(bad("the leaves don't cover the data".into()));
                }
                verify_blocks(chunk, m.offset / BLOCK_BYTES as u32, &leaves, &data).map_err(|e| bad(e.to_string()))?;
            }
            ClientOp::Write { chunk, offset: m.offset, leaves, data, fua: m.fua }
        }
        kind::ZERO => ClientOp::Zero { chunk, first_block: m.offset, count: m.len, fua: m.fua },
        kind::FLUSH => ClientOp::Flush,
        kind::STATUS => ClientOp::Status { chunk, first_block: m.offset, count: m.len },
        kind::ROOT => ClientOp::Root { chunk, len: m.len },
        _ => return Err(bad("unknown kind".into())),
    };
    let request = ClientRequest { id: m.id, volume, incarnation: m.incarnation, connection: m.connection, op };
    let latencies = m.latencies.into_iter().take(LATENCIES_MAX).map(SeenLatency::unpack).collect();
    Ok(Received { pg: PgId::from_u64(m.pg), disk: DiskId(m.disk), request, latencies })
}

/// The id of a request that can't be decoded whole, so that it can be refused.
pub fn request_id(frame: &Frame) -> Option<u64> {
    Request::decode(frame.meta.as_ref()).ok().map(|m| m.id)
}

/// Makes an answer's frame.
pub fn encode_reply(id: u64, reply: ClientReply) -> Frame {
    let mut m = Reply { id, ..Reply::default() };
    let mut payload = Bytes::new();
    m.result = match reply {
        ClientReply::Done { durability_epoch } => {
            m.durability_epoch = durability_epoch;
            0
        }
        ClientReply::Data(data) => {
            payload = data;
            1
        }
        ClientReply::Allocated(bits) => {
            payload = bits.into();
            2
        }
        ClientReply::Root(root) => {
            payload = Bytes::copy_from_slice(&root);
            3
        }
        ClientReply::NotPrimary => 4,
        ClientReply::Fenced => 5,
        ClientReply::NotOpen => 6,
        ClientReply::IoError => 7,
    };
    Frame::with_payload(kind::REPLY, m.encode_to_vec(), payload)
}

/// Takes an answer apart.
///
/// # Errors
/// Unknown or malformed.
pub fn decode_reply(frame: &Frame) -> Result<(u64, ClientReply), DecodeClient> {
    let bad = |reason: String| DecodeClient { kind: frame.kind, reason };
    if frame.kind != kind::REPLY {
        return Err(bad("unknown kind".into()));
    }
    let m = Reply::decode(frame.meta.as_ref()).map_err(|e| bad(e.to_string()))?;
    let reply = match m.result {
        0 => ClientReply::Done { durability_epoch: m.durability_epoch },
        1 => ClientReply::Data(frame.payload.clone()),
        2 => ClientReply::Allocated(frame.payload.to_vec()),
        3 => ClientReply::Root(frame.payload.as_ref().try_into().map_err(|_| bad("a root has 32 bytes".into()))?),
        4 => ClientReply::NotPrimary,
        5 => ClientReply::Fenced,
        6 => ClientReply::NotOpen,
        7 => ClientReply::IoError,
        other => return Err(bad(format!("result {other}"))),
    };
    Ok((m.id, reply))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::hashtree;
    use crate::core::ids::PoolId;

    #[test]
    fn requests_and_replies_round_trip() {
        let chunk = ChunkId { volume: VolumeId(3), index: 9 };
        let data: Bytes = vec![5; 8192].into();
        let leaves = hashtree::leaves_of(2, &data);
        let ops = [
            ClientOp::Open,
            ClientOp::Read { chunk, offset: 512, len: 1024 },
            ClientOp::Write { chunk, offset: 8192, leaves, data: data.clone(), fua: true },
            ClientOp::Write { chunk, offset: 512, leaves: vec![], data: data.slice(..512), fua: false },
            ClientOp::Zero { chunk, first_block: 1, count: 2, fua: false },
            ClientOp::Flush,
            ClientOp::Status { chunk, first_block: 0, count: 1024 },
            ClientOp::Root { chunk, len: 4096 },
        ];
        let pg = PgId { pool: PoolId(1), index: 2 };
        for op in ops {
            let volume = VolumeId(3);
            let request = ClientRequest { id: 8, volume, incarnation: 2, connection: 4, op };
            let frame = encode_request(pg, DiskId(6), &request, &[]);
            let back = decode_request(&frame.received()).unwrap();
            assert_eq!((back.pg, back.disk), (pg, DiskId(6)));
            assert_eq!(format!("{:?}", back.request), format!("{request:?}"));
            assert!(back.latencies.is_empty());
        }
        let seen = |kind, us| SeenLatency { kind, us };
        let all = [seen(Kind::SmallRead, 0), seen(Kind::LargeWrite, 1500), seen(Kind::SmallWrite, u32::MAX)];
        let request = ClientRequest { id: 8, volume: VolumeId(3), incarnation: 2, connection: 4, op: ClientOp::Flush };
        let back = decode_request(&encode_request(pg, DiskId(6), &request, &all)).unwrap().latencies;
        assert_eq!(back, [all[0], all[1], seen(Kind::SmallWrite, SeenLatency::US_MAX)]);
        let many = vec![all[0]; LATENCIES_MAX + 9];
        let back = decode_request(&encode_request(pg, DiskId(6), &request, &many)).unwrap().latencies;
        assert_eq!(back.len(), LATENCIES_MAX);
        let replies = [
            ClientReply::Done { durability_epoch: 4 },
            ClientReply::Data(data),
            ClientReply::Allocated(vec![3]),
            ClientReply::Root([4; 32]),
            ClientReply::NotPrimary,
            ClientReply::Fenced,
            ClientReply::NotOpen,
            ClientReply::IoError,
        ];
        for reply in replies {
            assert_eq!(decode_reply(&encode_reply(7, reply.clone())), Ok((7, reply)));
        }
    }
}
