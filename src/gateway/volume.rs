//! A volume as a block device: splits requests at chunks and blocks, computes leaves where data enters.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::{join_all, try_join_all};

use super::nbd::{Backend, Extent, IoError, ReadReply, Segment};
use super::qos::Qos;
use super::router::Router;
use crate::core::hashtree;
use crate::core::ids::{ChunkId, PgId, VolumeId};
use crate::core::replica::{ClientOp, ClientReply};
use crate::core::units::{BLOCK_BYTES, CHUNK_BYTES};

/// Pieces of one request: large enough for throughput, small enough that others get their turn.
const PIECE_BYTES: u64 = 1 << 20;

/// A volume that this gateway has.
pub struct Volume {
    id: VolumeId,
    router: Arc<Router>,
    qos: Qos,
}

fn failed(reply: &ClientReply) -> IoError {
    match reply {
        ClientReply::Fenced => IoError::Shutdown,
        _ => IoError::Io,
    }
}

impl Volume {
    /// The volume behind a router.
    pub fn new(id: VolumeId, router: Arc<Router>) -> Self {
        Volume { id, router, qos: Qos::default() }
    }

    /// The limits that the router's map has for the volume hold from now on.
    pub fn follow_limits(&self) {
        if let Some(volume) = self.router.map().volumes.get(&self.id) {
            self.qos.set(volume.qos);
        }
    }

    /// Splits a range at chunks and piece sizes: (chunk, its PG, byte offset in it, length).
    fn pieces(&self, offset: u64, len: u64, piece_bytes: u64) -> Result<Vec<(ChunkId, PgId, u64, u64)>, IoError> {
        let map = self.router.map();
        let volume = map.volumes.get(&self.id).ok_or(IoError::Io)?;
        let end = offset + len;
        let mut at = offset;
        let mut pieces = Vec::new();
        while at < end {
            let index = (at / CHUNK_BYTES) as u32;
            let in_chunk = at % CHUNK_BYTES;
            let until_piece = piece_bytes - in_chunk % piece_bytes;
            let n = until_piece.min(end - at);
            let pg = volume.pg_of(index).ok_or(IoError::Io)?;
            pieces.push((volume.chunk(index), pg, in_chunk, n));
            at += n;
        }
        Ok(pieces)
    }

    async fn change(&self, pg: PgId, op: ClientOp) -> Result<(), IoError> {
        match self.router.submit(pg, op).await {
            ClientReply::Done { .. } => Ok(()),
            other => Err(failed(&other)),
        }
    }

    async fn write_piece(&self, chunk: ChunkId, pg: PgId, offset: u64, data: Bytes, fua: bool) -> Result<(), IoError> {
        // Whole blocks carry their leaves from here on; the primary merges the partial ones at the ends.
        let head = (BLOCK_BYTES - offset % BLOCK_BYTES) % BLOCK_BYTES;
        let head = head.min(data.len() as u64) as usize;
        let middle = (data.len() - head) / BLOCK_BYTES as usize * BLOCK_BYTES as usize;
        let parts = [(0, head), (head, head + middle), (head + middle, data.len())];
        let writes = parts.into_iter().filter(|(from, to)| from < to).map(|(from, to)| {
            let part = data.slice(from..to);
            let at = offset + from as u64;
            let whole = at.is_multiple_of(BLOCK_BYTES) && (part.len() as u64).is_multiple_of(BLOCK_BYTES);
            let leaves = if whole { hashtree::leaves_of((at / BLOCK_BYTES) as usize, &part) } else { Vec::new() };
            self.change(pg, ClientOp::Write { chunk, offset: at as u32, leaves, data: part, fua })
        });
        try_join_all(writes).await.map(|_| ())
    }

    async fn zero(&self, offset: u64, len: u64, fua: bool) -> Result<(), IoError> {
        let zeros = self.pieces(offset, len, CHUNK_BYTES)?.into_iter().map(|(chunk, pg, at, n)| async move {
            let first = at.div_ceil(BLOCK_BYTES);
            let last = (at + n) / BLOCK_BYTES;
            if first >= last {
                return self.write_piece(chunk, pg, at, vec![0; n as usize].into(), fua).await;
            }
            let head = first * BLOCK_BYTES - at;
            let tail = at + n - last * BLOCK_BYTES;
            let op = ClientOp::Zero { chunk, first_block: first as u32, count: (last - first) as u32, fua };
            let (a, b, c) = tokio::join!(
                self.edge(chunk, pg, at, head, fua),
                self.change(pg, op),
                self.edge(chunk, pg, last * BLOCK_BYTES, tail, fua),
            );
            a.and(b).and(c)
        });
        try_join_all(zeros).await.map(|_| ())
    }

    async fn edge(&self, chunk: ChunkId, pg: PgId, at: u64, len: u64, fua: bool) -> Result<(), IoError> {
        if len == 0 {
            return Ok(());
        }
        self.write_piece(chunk, pg, at, vec![0; len as usize].into(), fua).await
    }
}

impl Backend for Volume {
    fn size_bytes(&self) -> u64 {
        self.router.map().volumes.get(&self.id).map_or(0, |v| v.size_bytes)
    }

    async fn read(&self, offset: u64, len: u32) -> Result<ReadReply, IoError> {
        self.qos.take(u64::from(len)).await;
        let pieces = self.pieces(offset, u64::from(len), PIECE_BYTES)?;
        let reads = pieces.into_iter().map(|(chunk, pg, at, n)| {
            self.router.submit(pg, ClientOp::Read { chunk, offset: at as u32, len: n as u32 })
        });
        let mut segments = Vec::new();
        for reply in join_all(reads).await {
            match reply {
                ClientReply::Data(data) => segments.push(Segment::Data(data)),
                other => return Err(failed(&other)),
            }
        }
        match segments.as_slice() {
            [Segment::Data(data)] => Ok(ReadReply::Data(data.clone())),
            _ => Ok(ReadReply::Segments(segments)),
        }
    }

    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), IoError> {
        self.qos.take(data.len() as u64).await;
        let pieces = self.pieces(offset, data.len() as u64, PIECE_BYTES)?;
        let writes = pieces.into_iter().scan(0usize, |from, (chunk, pg, at, n)| {
            let part = data.slice(*from..*from + n as usize);
            *from += n as usize;
            Some(self.write_piece(chunk, pg, at, part, fua))
        });
        try_join_all(writes).await.map(|_| ())
    }

    async fn flush(&self) -> Result<(), IoError> {
        self.router.flush().await.map_err(|reply| failed(&reply))
    }

    async fn trim(&self, offset: u64, len: u32, fua: bool) -> Result<(), IoError> {
        // Nothing travels but the request.
        self.qos.take(0).await;
        self.zero(offset, u64::from(len), fua).await
    }

    async fn write_zeroes(&self, offset: u64, len: u32, _no_hole: bool, fua: bool) -> Result<(), IoError> {
        self.qos.take(0).await;
        self.zero(offset, u64::from(len), fua).await
    }

    async fn block_status(&self, offset: u64, len: u32) -> Result<Vec<Extent>, IoError> {
        let pieces = self.pieces(offset, u64::from(len), CHUNK_BYTES)?;
        let questions = pieces.iter().map(|(chunk, pg, at, n)| {
            let first_block = (at / BLOCK_BYTES) as u32;
            let count = (at + n).div_ceil(BLOCK_BYTES) as u32 - first_block;
            self.router.submit(*pg, ClientOp::Status { chunk: *chunk, first_block, count })
        });
        let mut extents: Vec<Extent> = Vec::new();
        for (reply, (_, _, at, n)) in join_all(questions).await.into_iter().zip(&pieces) {
            let ClientReply::Allocated(bits) = reply else { return Err(failed(&reply)) };
            let (mut position, end) = (*at, at + n);
            let first = at / BLOCK_BYTES;
            while position < end {
                let block = (position / BLOCK_BYTES - first) as usize;
                let data = bits.get(block / 8).is_some_and(|b| b >> (block % 8) & 1 == 1);
                let next = ((position / BLOCK_BYTES + 1) * BLOCK_BYTES).min(end);
                let run = next - position;
                match extents.last_mut() {
                    Some(last) if last.hole != data => last.len += run as u32,
                    _ => extents.push(Extent { len: run as u32, hole: !data, zero: !data }),
                }
                position = next;
            }
        }
        Ok(extents)
    }
}
