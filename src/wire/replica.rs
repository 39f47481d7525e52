//! Messages between replicas of a PG: [`PeerMessage`] as frames, kinds 0x02xx (Foreground link) and 0x03xx (a resync
//! session's stream).
//!
//! All kinds share one meta message; each uses the fields that its variant has. Bulk parts stand in the payload:
//! leaves (32 bytes each) first, then data.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message;

use super::frame::Frame;
use super::map;
use crate::core::hashtree::{self, Hash};
use crate::core::ids::{ChunkId, DiskId, Generation, PgId, VolumeId};
use crate::core::replica::{Operation, PeerMessage, SessionMessage, TableEntry};
use crate::core::units::{BLOCK_BYTES, BLOCKS_PER_CHUNK, BLOCKS_PER_WINDOW};

/// Frame kinds.
pub mod kind {
    /// First frame of a node's foreground channel to another node.
    pub const PEER_HELLO: u16 = 0x0200;
    /// First frame of a resync session's channel.
    pub const SESSION_HELLO: u16 = 0x0300;
    pub(super) const NEW_CONFIG: u16 = 0x0201;
    pub(super) const CONFIG_ACCEPTED: u16 = 0x0202;
    pub(super) const CONFIG_REFUSED: u16 = 0x0203;
    pub(super) const ACTIVATE: u16 = 0x0204;
    pub(super) const YIELD: u16 = 0x0205;
    pub(super) const PREPARE: u16 = 0x0206;
    pub(super) const PREPARED: u16 = 0x0207;
    pub(super) const REPLICATE: u16 = 0x0208;
    pub(super) const APPLIED: u16 = 0x0209;
    pub(super) const REJECTED: u16 = 0x020a;
    pub(super) const FLUSH: u16 = 0x020b;
    pub(super) const FLUSHED: u16 = 0x020c;
    pub(super) const FETCH: u16 = 0x020d;
    pub(super) const FETCHED: u16 = 0x020e;
    pub(super) const OPEN: u16 = 0x0301;
    pub(super) const TABLE: u16 = 0x0302;
    pub(super) const DROP: u16 = 0x0303;
    pub(super) const COMPARE: u16 = 0x0304;
    pub(super) const DIFFERS: u16 = 0x0305;
    pub(super) const COMPARE_WINDOW: u16 = 0x0306;
    pub(super) const WINDOW_DIFFERS: u16 = 0x0307;
    pub(super) const COMPARE_BLOCKS: u16 = 0x0308;
    pub(super) const BLOCKS_DIFFER: u16 = 0x0309;
    pub(super) const COPY: u16 = 0x030a;
    pub(super) const COPIED: u16 = 0x030b;
    pub(super) const CHUNK_DONE: u16 = 0x030c;
    pub(super) const FORWARD: u16 = 0x030d;
    pub(super) const FORWARDED: u16 = 0x030e;
    pub(super) const FINISH: u16 = 0x030f;
    pub(super) const FINISHED: u16 = 0x0310;
}

/// A frame that is no message of this module, or is damaged.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DecodePeer {
    /// Kind.
    #[error("message kind {0:#06x} is unknown to this release")]
    UnknownKind(u16),
    /// Protobuf.
    #[error("a {kind:#06x} message can't be decoded: {reason}")]
    Malformed {
        /// Kind.
        kind: u16,
        /// Why.
        reason: String,
    },
    /// A block doesn't have its hash (I4).
    #[error("block {block} of chunk {chunk} arrived with the wrong content")]
    Mismatch {
        /// Chunk.
        chunk: ChunkId,
        /// Block in it.
        block: u32,
    },
}

/// A message's address: which PG's replica on which disk it goes to, and whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// PG.
    pub pg: PgId,
    /// Receiver.
    pub to: DiskId,
    /// Sender.
    pub from: DiskId,
}

#[derive(Clone, PartialEq, Message)]
struct Meta {
    #[prost(uint64, tag = "1")]
    pg: u64,
    #[prost(uint32, tag = "2")]
    to: u32,
    #[prost(uint32, tag = "3")]
    from: u32,
    #[prost(uint32, tag = "4")]
    epoch: u32,
    #[prost(uint64, tag = "5")]
    n: u64,
    #[prost(uint64, tag = "6")]
    sequence: u64,
    #[prost(uint64, tag = "7")]
    committed: u64,
    #[prost(uint64, tag = "8")]
    volume: u64,
    #[prost(uint32, tag = "9")]
    chunk: u32,
    #[prost(uint32, tag = "10")]
    first: u32,
    #[prost(uint32, tag = "11")]
    count: u32,
    #[prost(bool, tag = "12")]
    flag: bool,
    /// 1 write, 2 zero, 3 fence, 4 drop.
    #[prost(uint32, tag = "13")]
    operation: u32,
    #[prost(uint64, tag = "14")]
    mask: u64,
    #[prost(uint64, tag = "15")]
    id: u64,
    #[prost(message, optional, tag = "16")]
    config: Option<map::PgConfig>,
    #[prost(message, repeated, tag = "17")]
    ranges: Vec<Range>,
    #[prost(message, repeated, tag = "18")]
    fences: Vec<Fence>,
    #[prost(message, repeated, tag = "19")]
    entries: Vec<Entry>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Range {
    #[prost(uint64, tag = "1")]
    volume: u64,
    #[prost(uint32, tag = "2")]
    chunk: u32,
    #[prost(uint32, tag = "3")]
    first: u32,
    #[prost(uint32, tag = "4")]
    count: u32,
}

impl Range {
    pub(super) fn of((chunk, first, count): &(ChunkId, u32, u32)) -> Self {
        Range { volume: chunk.volume.0, chunk: chunk.index, first: *first, count: *count }
    }

    /// `None` if it isn't within a chunk.
    pub(super) fn checked(&self) -> Option<(ChunkId, u32, u32)> {
        let within = self.count > 0 && u64::from(self.first) + u64::from(self.count) <= BLOCKS_PER_CHUNK as u64;
        within.then_some((ChunkId { volume: VolumeId(self.volume), index: self.chunk }, self.first, self.count))
    }
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Fence {
    #[prost(uint64, tag = "1")]
    pub volume: u64,
    #[prost(uint64, tag = "2")]
    pub incarnation: u64,
}

#[derive(Clone, PartialEq, Message)]
struct Entry {
    #[prost(uint64, tag = "1")]
    volume: u64,
    #[prost(uint32, tag = "2")]
    chunk: u32,
    #[prost(uint32, tag = "3")]
    epoch: u32,
    #[prost(uint64, tag = "4")]
    n: u64,
    #[prost(uint64, tag = "5")]
    sequence: u64,
    #[prost(bytes = "vec", tag = "6")]
    root: Vec<u8>,
    #[prost(bool, tag = "7")]
    unsure: bool,
}

impl Meta {
    fn generation(mut self, g: Generation) -> Self {
        self.epoch = g.epoch;
        self.n = g.n;
        self
    }
    fn on(mut self, c: ChunkId) -> Self {
        self.volume = c.volume.0;
        self.chunk = c.index;
        self
    }
    fn chunk_id(&self) -> ChunkId {
        ChunkId { volume: VolumeId(self.volume), index: self.chunk }
    }
}

/// A payload: its lead and the rest.
type Body = (Bytes, Bytes);

/// Leaves, and the blocks behind them without a copy.
fn bulk(leaves: &[Hash], data: &Bytes) -> Body {
    (hashes(leaves), data.clone())
}

fn hashes(list: &[Hash]) -> Bytes {
    Bytes::copy_from_slice(list.as_flattened())
}

fn put_operation(mut meta: Meta, op: &Operation) -> (Meta, Body) {
    match op {
        Operation::Write { chunk, first_block, leaves, data } => {
            meta.operation = 1;
            meta.first = *first_block;
            meta.count = leaves.len() as u32;
            (meta.on(*chunk), bulk(leaves, data))
        }
        Operation::Zero { chunk, first_block, count } => {
            meta.operation = 2;
            meta.first = *first_block;
            meta.count = *count;
            (meta.on(*chunk), Body::default())
        }
        Operation::Fence { volume, incarnation } => {
            meta.operation = 3;
            meta.volume = volume.0;
            meta.id = *incarnation;
            (meta, Body::default())
        }
        Operation::Drop { chunk } => {
            meta.operation = 4;
            (meta.on(*chunk), Body::default())
        }
    }
}

/// Makes a frame.
pub fn encode(address: Address, message: &PeerMessage) -> Frame {
    let m = Meta { pg: address.pg.to_u64(), to: address.to.0, from: address.from.0, ..Meta::default() };
    let none = Body::default();
    let (kind, meta, (lead, payload)) = match message {
        PeerMessage::NewConfig { config } => (kind::NEW_CONFIG, Meta { config: Some(config.into()), ..m }, none),
        PeerMessage::ConfigAccepted { generation, last_sequence, uncommitted, fences } => {
            let ranges = uncommitted.iter().map(Range::of).collect();
            let fences = fences.iter().map(|(v, i)| Fence { volume: v.0, incarnation: *i }).collect();
            let meta = Meta { sequence: *last_sequence, ranges, fences, ..m }.generation(*generation);
            (kind::CONFIG_ACCEPTED, meta, none)
        }
        PeerMessage::ConfigRefused { generation } => (kind::CONFIG_REFUSED, m.generation(*generation), none),
        PeerMessage::Activate { generation, base_sequence } => {
            (kind::ACTIVATE, Meta { sequence: *base_sequence, ..m }.generation(*generation), none)
        }
        PeerMessage::Yield { generation } => (kind::YIELD, m.generation(*generation), none),
        PeerMessage::Prepare { generation, chunk } => (kind::PREPARE, m.generation(*generation).on(*chunk), none),
        PeerMessage::Prepared { generation, chunk, ok } => {
            (kind::PREPARED, Meta { flag: *ok, ..m }.generation(*generation).on(*chunk), none)
        }
        PeerMessage::Replicate { generation, sequence, committed, durable, op } => {
            let meta = Meta { sequence: *sequence, committed: *committed, flag: *durable, ..m };
            let (meta, payload) = put_operation(meta.generation(*generation), op);
            (kind::REPLICATE, meta, payload)
        }
        PeerMessage::Applied { generation, sequence } => {
            (kind::APPLIED, Meta { sequence: *sequence, ..m }.generation(*generation), none)
        }
        PeerMessage::Rejected { generation, gap } => {
            (kind::REJECTED, Meta { flag: *gap, ..m }.generation(*generation), none)
        }
        PeerMessage::Flush { generation, id, mark } => {
            (kind::FLUSH, Meta { id: *id, sequence: *mark, ..m }.generation(*generation), none)
        }
        PeerMessage::Flushed { generation, id } => (kind::FLUSHED, Meta { id: *id, ..m }.generation(*generation), none),
        PeerMessage::Fetch { generation, id, chunk, first_block, count } => {
            let meta = Meta { id: *id, first: *first_block, count: *count, ..m };
            (kind::FETCH, meta.generation(*generation).on(*chunk), none)
        }
        PeerMessage::Fetched { generation, id, leaves, data } => {
            let meta = Meta { id: *id, count: leaves.len() as u32, ..m };
            (kind::FETCHED, meta.generation(*generation), bulk(leaves, data))
        }
        PeerMessage::Session(message) => encode_session(m, message),
    };
    Frame { lead, ..Frame::with_payload(kind, meta.encode_to_vec(), payload) }
}

fn encode_session(m: Meta, message: &SessionMessage) -> (u16, Meta, Body) {
    let none = Body::default();
    match message {
        SessionMessage::Open { config } => (kind::OPEN, Meta { config: Some(config.into()), ..m }, none),
        SessionMessage::Table { entries, last } => {
            let entries = entries
                .iter()
                .map(|e| Entry {
                    volume: e.chunk.volume.0,
                    chunk: e.chunk.index,
                    epoch: e.generation.epoch,
                    n: e.generation.n,
                    sequence: e.sequence,
                    root: e.root.map_or_else(Vec::new, |r| r.to_vec()),
                    unsure: e.unsure,
                })
                .collect();
            (kind::TABLE, Meta { entries, flag: *last, ..m }, none)
        }
        SessionMessage::Drop { chunk } => (kind::DROP, m.on(*chunk), none),
        SessionMessage::Compare { chunk, windows } => (kind::COMPARE, m.on(*chunk), (Bytes::new(), hashes(windows))),
        SessionMessage::Differs { chunk, windows } => {
            (kind::DIFFERS, Meta { mask: u64::from(*windows), ..m }.on(*chunk), none)
        }
        SessionMessage::CompareWindow { chunk, window, groups } => {
            (kind::COMPARE_WINDOW, Meta { first: *window, ..m }.on(*chunk), (Bytes::new(), hashes(groups)))
        }
        SessionMessage::WindowDiffers { chunk, window, groups } => {
            (kind::WINDOW_DIFFERS, Meta { first: *window, mask: u64::from(*groups), ..m }.on(*chunk), none)
        }
        SessionMessage::CompareBlocks { chunk, window, groups, leaves } => {
            let meta = Meta { first: *window, mask: u64::from(*groups), ..m };
            (kind::COMPARE_BLOCKS, meta.on(*chunk), (Bytes::new(), hashes(leaves)))
        }
        SessionMessage::BlocksDiffer { chunk, window, blocks } => {
            (kind::BLOCKS_DIFFER, Meta { first: *window, mask: *blocks, ..m }.on(*chunk), none)
        }
        SessionMessage::Copy { chunk, window, blocks, leaves, data } => {
            let meta = Meta { first: *window, mask: *blocks, count: leaves.len() as u32, ..m };
            (kind::COPY, meta.on(*chunk), bulk(leaves, data))
        }
        SessionMessage::Copied { chunk, window, bytes } => {
            (kind::COPIED, Meta { first: *window, count: *bytes, ..m }.on(*chunk), none)
        }
        SessionMessage::ChunkDone { chunk, generation, sequence } => {
            (kind::CHUNK_DONE, Meta { sequence: *sequence, ..m }.generation(*generation).on(*chunk), none)
        }
        SessionMessage::Forward { generation, sequence, committed, durable, op } => {
            let meta = Meta { sequence: *sequence, committed: *committed, flag: *durable, ..m }.generation(*generation);
            let (meta, payload) = put_operation(meta, op);
            (kind::FORWARD, meta, payload)
        }
        SessionMessage::Forwarded { sequence } => (kind::FORWARDED, Meta { sequence: *sequence, ..m }, none),
        SessionMessage::Finish { sequence, uncommitted } => {
            (kind::FINISH, Meta { sequence: *sequence, ranges: uncommitted.iter().map(Range::of).collect(), ..m }, none)
        }
        SessionMessage::Finished => (kind::FINISHED, m, none),
    }
}

/// Splits leaves off a payload.
fn take_leaves(kind: u16, payload: &Bytes, count: usize) -> Result<(Vec<Hash>, Bytes), DecodePeer> {
    if count > BLOCKS_PER_CHUNK || payload.len() < count * 32 {
        let reason = format!("{} bytes can't hold {count} leaves", payload.len());
        return Err(DecodePeer::Malformed { kind, reason });
    }
    let (leaves, _) = payload[..count * 32].as_chunks::<32>();
    Ok((leaves.to_vec(), payload.slice(count * 32..)))
}

/// Checks blocks against their leaves, as whoever takes them off the network must (I4).
///
/// # Errors
/// The first block that doesn't match.
pub fn verify_blocks(chunk: ChunkId, first: u32, leaves: &[Hash], data: &[u8]) -> Result<(), DecodePeer> {
    for (i, (leaf, block)) in leaves.iter().zip(data.chunks_exact(BLOCK_BYTES as usize)).enumerate() {
        if !hashtree::verify(first as usize + i, block, leaf) {
            return Err(DecodePeer::Mismatch { chunk, block: first + i as u32 });
        }
    }
    Ok(())
}

fn take_operation(kind: u16, meta: &Meta, payload: &Bytes) -> Result<Operation, DecodePeer> {
    let chunk = meta.chunk_id();
    let in_chunk = u64::from(meta.first) + u64::from(meta.count) <= BLOCKS_PER_CHUNK as u64 && meta.count > 0;
    let bad = |reason: &str| DecodePeer::Malformed { kind, reason: reason.to_owned() };
    match meta.operation {
        1 if in_chunk => {
            let (leaves, data) = take_leaves(kind, payload, meta.count as usize)?;
            if data.len() as u64 != u64::from(meta.count) * BLOCK_BYTES {
                return Err(bad("the data isn't as long as its leaves say"));
            }
            verify_blocks(chunk, meta.first, &leaves, &data)?;
            Ok(Operation::Write { chunk, first_block: meta.first, leaves: Arc::new(leaves), data })
        }
        2 if in_chunk => Ok(Operation::Zero { chunk, first_block: meta.first, count: meta.count }),
        3 => Ok(Operation::Fence { volume: VolumeId(meta.volume), incarnation: meta.id }),
        4 => Ok(Operation::Drop { chunk }),
        _ => Err(bad("an operation is unknown or lies outside its chunk")),
    }
}

/// Takes a frame apart; blocks in it have been verified against their leaves.
///
/// # Errors
/// The kind is unknown, or something in it is malformed or doesn't match its hash.
pub fn decode(frame: &Frame) -> Result<(Address, PeerMessage), DecodePeer> {
    let kind = frame.kind;
    let malformed = |reason: String| DecodePeer::Malformed { kind, reason };
    if !(kind::NEW_CONFIG..=kind::FETCHED).contains(&kind) && !(kind::OPEN..=kind::FINISHED).contains(&kind) {
        return Err(DecodePeer::UnknownKind(kind));
    }
    let meta = Meta::decode(frame.meta.as_ref()).map_err(|e| malformed(e.to_string()))?;
    let address = Address { pg: PgId::from_u64(meta.pg), to: DiskId(meta.to), from: DiskId(meta.from) };
    let generation = Generation { epoch: meta.epoch, n: meta.n };
    let chunk = meta.chunk_id();
    let config = || -> Result<crate::core::cluster::PgConfig, DecodePeer> {
        let config = meta.config.clone().ok_or_else(|| malformed("no configuration".into()))?;
        config.try_into().map_err(|e: map::DecodeRecord| malformed(e.to_string()))
    };
    let hashes = |count: usize| take_leaves(kind, &frame.payload, count).map(|(l, _)| l);
    let message = match kind {
        kind::NEW_CONFIG => PeerMessage::NewConfig { config: config()? },
        kind::CONFIG_ACCEPTED => PeerMessage::ConfigAccepted {
            generation,
            last_sequence: meta.sequence,
            uncommitted: meta.ranges.iter().filter_map(Range::checked).collect(),
            fences: meta.fences.iter().map(|f| (VolumeId(f.volume), f.incarnation)).collect(),
        },
        kind::CONFIG_REFUSED => PeerMessage::ConfigRefused { generation },
        kind::ACTIVATE => PeerMessage::Activate { generation, base_sequence: meta.sequence },
        kind::YIELD => PeerMessage::Yield { generation },
        kind::PREPARE => PeerMessage::Prepare { generation, chunk },
        kind::PREPARED => PeerMessage::Prepared { generation, chunk, ok: meta.flag },
        kind::REPLICATE => PeerMessage::Replicate {
            generation,
            sequence: meta.sequence,
            committed: meta.committed,
            durable: meta.flag,
            op: take_operation(kind, &meta, &frame.payload)?,
        },
        kind::APPLIED => PeerMessage::Applied { generation, sequence: meta.sequence },
        kind::REJECTED => PeerMessage::Rejected { generation, gap: meta.flag },
        kind::FLUSH => PeerMessage::Flush { generation, id: meta.id, mark: meta.sequence },
        kind::FLUSHED => PeerMessage::Flushed { generation, id: meta.id },
        kind::FETCH => {
            if u64::from(meta.first) + u64::from(meta.count) > BLOCKS_PER_CHUNK as u64 {
                return Err(malformed("the range lies outside its chunk".into()));
            }
            PeerMessage::Fetch { generation, id: meta.id, chunk, first_block: meta.first, count: meta.count }
        }
        kind::FETCHED => {
            // The receiver knows the range: it checks the blocks.
            let (leaves, data) = take_leaves(kind, &frame.payload, meta.count as usize)?;
            if data.len() as u64 != u64::from(meta.count) * BLOCK_BYTES {
                return Err(malformed("the data isn't as long as its leaves say".into()));
            }
            PeerMessage::Fetched { generation, id: meta.id, leaves: Arc::new(leaves), data }
        }
        kind::OPEN => PeerMessage::Session(SessionMessage::Open { config: config()? }),
        kind::TABLE => {
            let entries = meta
                .entries
                .iter()
                .map(|e| TableEntry {
                    chunk: ChunkId { volume: VolumeId(e.volume), index: e.chunk },
                    generation: Generation { epoch: e.epoch, n: e.n },
                    sequence: e.sequence,
                    root: e.root.as_slice().try_into().ok(),
                    unsure: e.unsure,
                })
                .collect();
            PeerMessage::Session(SessionMessage::Table { entries, last: meta.flag })
        }
        kind::DROP => PeerMessage::Session(SessionMessage::Drop { chunk }),
        kind::COMPARE => {
            // Without windows: copying of the chunk begins.
            let windows = if frame.payload.is_empty() { Vec::new() } else { hashes(16)? };
            PeerMessage::Session(SessionMessage::Compare { chunk, windows })
        }
        kind::DIFFERS => PeerMessage::Session(SessionMessage::Differs { chunk, windows: meta.mask as u16 }),
        kind::COMPARE_WINDOW => {
            PeerMessage::Session(SessionMessage::CompareWindow { chunk, window: meta.first, groups: hashes(16)? })
        }
        kind::WINDOW_DIFFERS => {
            PeerMessage::Session(SessionMessage::WindowDiffers { chunk, window: meta.first, groups: meta.mask as u16 })
        }
        kind::COMPARE_BLOCKS => {
            let groups = meta.mask as u16;
            let leaves = hashes(groups.count_ones() as usize * 4)?;
            PeerMessage::Session(SessionMessage::CompareBlocks { chunk, window: meta.first, groups, leaves })
        }
        kind::BLOCKS_DIFFER => {
            PeerMessage::Session(SessionMessage::BlocksDiffer { chunk, window: meta.first, blocks: meta.mask })
        }
        kind::COPY => {
            let (leaves, data) = take_leaves(kind, &frame.payload, meta.mask.count_ones() as usize)?;
            verify_copy(kind, chunk, meta.first, meta.mask, &leaves, &data)?;
            PeerMessage::Session(SessionMessage::Copy { chunk, window: meta.first, blocks: meta.mask, leaves, data })
        }
        kind::COPIED => PeerMessage::Session(SessionMessage::Copied { chunk, window: meta.first, bytes: meta.count }),
        kind::CHUNK_DONE => {
            PeerMessage::Session(SessionMessage::ChunkDone { chunk, generation, sequence: meta.sequence })
        }
        kind::FORWARD => PeerMessage::Session(SessionMessage::Forward {
            generation,
            sequence: meta.sequence,
            committed: meta.committed,
            durable: meta.flag,
            op: take_operation(kind, &meta, &frame.payload)?,
        }),
        kind::FORWARDED => PeerMessage::Session(SessionMessage::Forwarded { sequence: meta.sequence }),
        kind::FINISH => PeerMessage::Session(SessionMessage::Finish {
            sequence: meta.sequence,
            uncommitted: meta.ranges.iter().filter_map(Range::checked).collect(),
        }),
        kind::FINISHED => PeerMessage::Session(SessionMessage::Finished),
        other => return Err(DecodePeer::UnknownKind(other)),
    };
    Ok((address, message))
}

fn verify_copy(
    kind: u16,
    chunk: ChunkId,
    window: u32,
    mask: u64,
    leaves: &[Hash],
    data: &Bytes,
) -> Result<(), DecodePeer> {
    let full = leaves.iter().filter(|l| **l != hashtree::HOLE).count();
    if window >= 16 || data.len() as u64 != full as u64 * BLOCK_BYTES {
        return Err(DecodePeer::Malformed { kind, reason: "the data isn't as long as its leaves say".into() });
    }
    let blocks = (0..BLOCKS_PER_WINDOW as u32).filter(|i| mask >> i & 1 == 1);
    let mut rest = data.as_ref();
    for (i, leaf) in blocks.zip(leaves) {
        if *leaf != hashtree::HOLE {
            let (block, after) = rest.split_at(BLOCK_BYTES as usize);
            let index = window * BLOCKS_PER_WINDOW as u32 + i;
            if !hashtree::verify(index as usize, block, leaf) {
                return Err(DecodePeer::Mismatch { chunk, block: index });
            }
            rest = after;
        }
    }
    Ok(())
}

/// First frame of a channel between nodes.
#[derive(Clone, PartialEq, Message)]
pub struct PeerHello {
    /// Sender's NodeId.
    #[prost(uint32, tag = "1")]
    pub node: u32,
    /// Random for each start of the sender's process.
    #[prost(uint64, tag = "2")]
    pub process: u64,
    /// UDP port of the sender's lease endpoint, at the same address.
    #[prost(uint32, tag = "3")]
    pub lease_port: u32,
    /// For a session: PgId.
    #[prost(uint64, tag = "4")]
    pub pg: u64,
    /// For a session: the learner's DiskId.
    #[prost(uint32, tag = "5")]
    pub learner: u32,
    /// For a session: the primary's DiskId.
    #[prost(uint32, tag = "6")]
    pub primary: u32,
    /// For a session: index into `ResyncClass::ALL`.
    #[prost(uint32, tag = "7")]
    pub class: u32,
    /// For a session: its number, which grows with each that the process opens.
    #[prost(uint64, tag = "8")]
    pub session: u64,
    /// UDP port of the sender's endpoint for copies, at the same address; 0: its main one.
    #[prost(uint32, tag = "9")]
    pub bulk_port: u32,
}

#[cfg(test)]
#[path = "replica_tests.rs"]
mod tests;
