//! Replies on their way to the client, coalesced into few vectored writes.
//!
//! Invariants: bytes go out in the order in which they were added; payloads of [`COPY_LEN_MAX`] bytes or more are
//! never copied; [`len`](ReplyQueue::len) counts every byte not yet sent.
//!
//! Non-goals: a bound of its own: the connection stops taking requests while the queue holds too much.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::AsyncWrite;

use super::proto::{self, chunk};
use super::{Extent, IoError, Segment};

/// A payload shorter than this is copied beside its header: cheaper than a slice of its own in the vectored write.
const COPY_LEN_MAX: usize = 1024;
/// Slices in one write: a header and a payload for each of 64 replies.
const SLICES_MAX: usize = 128;
/// Zeroes for clients that can't take holes.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// The replies of one connection.
#[derive(Default)]
pub struct ReplyQueue {
    pieces: VecDeque<Bytes>,
    /// Headers and short payloads that follow the last piece.
    tail: BytesMut,
    len: usize,
}

impl ReplyQueue {
    /// Bytes not yet sent.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether all has been sent.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Forgets what has not been sent.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Adds a success without payload.
    pub fn push_done(&mut self, cookie: u64) {
        self.encode(|out| proto::encode_simple_reply(out, 0, cookie));
    }

    /// Adds an error, with its text if the client takes structured replies.
    pub fn push_error(&mut self, cookie: u64, error: IoError, structured: bool) {
        self.encode(|out| match structured {
            true => proto::encode_error_chunk(out, cookie, error.errno(), &error.to_string()),
            false => proto::encode_simple_reply(out, error.errno(), cookie),
        });
    }

    /// Adds the data of a read as a simple reply.
    pub fn push_simple_read(&mut self, cookie: u64, segments: impl IntoIterator<Item = Segment>) {
        self.encode(|out| proto::encode_simple_reply(out, 0, cookie));
        segments.into_iter().for_each(|segment| self.push_segment(segment));
    }

    /// Adds the data of a read as one chunk, holes as zeroes (the "don't fragment" flag).
    pub fn push_whole_read(&mut self, cookie: u64, offset: u64, len: u32, segments: impl IntoIterator<Item = Segment>) {
        self.push_data_header(chunk::DONE, cookie, offset, len);
        segments.into_iter().for_each(|segment| self.push_segment(segment));
    }

    /// Adds the data of a read as chunks, with holes as holes.
    pub fn push_read(&mut self, cookie: u64, mut offset: u64, segments: impl IntoIterator<Item = Segment>) {
        let mut segments = segments.into_iter().filter(|segment| !segment.is_empty()).peekable();
        if segments.peek().is_none() {
            return self.encode(|out| proto::encode_chunk_header(out, chunk::DONE, chunk::NONE, cookie, 0));
        }
        while let Some(segment) = segments.next() {
            let flags = if segments.peek().is_none() { chunk::DONE } else { 0 };
            let len = segment.len();
            match segment {
                Segment::Data(_) => {
                    self.push_data_header(flags, cookie, offset, len);
                    self.push_segment(segment);
                }
                Segment::Hole(_) => self.encode(|out| {
                    proto::encode_chunk_header(out, flags, chunk::OFFSET_HOLE, cookie, 12);
                    out.put_u64(offset);
                    out.put_u32(len);
                }),
            }
            offset += u64::from(len);
        }
    }

    /// Adds the answer to a block status query. `extents` must not be empty.
    pub fn push_block_status(&mut self, cookie: u64, extents: &[Extent]) {
        self.encode(|out| {
            let len = 4 + 8 * extents.len() as u32;
            proto::encode_chunk_header(out, chunk::DONE, chunk::BLOCK_STATUS, cookie, len);
            out.put_u32(proto::CONTEXT_ID);
            for extent in extents {
                let hole = if extent.hole { proto::state::HOLE } else { 0 };
                let zero = if extent.zero { proto::state::ZERO } else { 0 };
                out.put_u32(extent.len);
                out.put_u32(hole | zero);
            }
        });
    }

    /// Sends as much as the socket takes; ready when all has been sent.
    pub fn poll_send<S: AsyncWrite + Unpin>(&mut self, cx: &mut Context<'_>, stream: &mut S) -> Poll<io::Result<()>> {
        while self.len > 0 {
            self.close_tail();
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let mut used = 0;
            for (slice, piece) in slices.iter_mut().zip(&self.pieces) {
                *slice = IoSlice::new(piece);
                used += 1;
            }
            let sent = ready!(Pin::new(&mut *stream).poll_write_vectored(cx, &slices[..used]))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.advance(sent);
        }
        Poll::Ready(Ok(()))
    }

    fn push_data_header(&mut self, flags: u16, cookie: u64, offset: u64, len: u32) {
        self.encode(|out| {
            proto::encode_chunk_header(out, flags, chunk::OFFSET_DATA, cookie, 8 + len);
            out.put_u64(offset);
        });
    }

    fn push_segment(&mut self, segment: Segment) {
        match segment {
            Segment::Data(data) if data.len() < COPY_LEN_MAX => self.encode(|out| out.put_slice(&data)),
            Segment::Data(data) => {
                self.close_tail();
                self.len += data.len();
                self.pieces.push_back(data);
            }
            Segment::Hole(mut len) => {
                self.close_tail();
                self.len += len as usize;
                while len > 0 {
                    let piece = len.min(ZEROES.len() as u32);
                    self.pieces.push_back(Bytes::from_static(&ZEROES[..piece as usize]));
                    len -= piece;
                }
            }
        }
    }

    fn encode(&mut self, encode: impl FnOnce(&mut BytesMut)) {
        let before = self.tail.len();
        encode(&mut self.tail);
        self.len += self.tail.len() - before;
    }

    fn close_tail(&mut self) {
        if !self.tail.is_empty() {
            self.pieces.push_back(self.tail.split().freeze());
        }
    }

    fn advance(&mut self, mut sent: usize) {
        self.len -= sent;
        while let Some(piece) = self.pieces.front_mut() {
            if sent < piece.len() {
                return piece.advance(sent);
            }
            sent -= piece.len();
            self.pieces.pop_front();
        }
    }
}

impl Segment {
    /// Bytes of the volume that this piece covers. A segment longer than any request counts as the longest.
    pub fn len(&self) -> u32 {
        match self {
            Segment::Data(data) => u32::try_from(data.len()).unwrap_or(u32::MAX),
            Segment::Hole(len) => *len,
        }
    }

    /// Whether it covers nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use tokio::io::AsyncReadExt;

    /// Everything that a queue sends.
    async fn sent(mut queue: ReplyQueue) -> Vec<u8> {
        let (mut near, mut far) = tokio::io::duplex(64);
        let len = queue.len();
        let reader = tokio::spawn(async move {
            let mut bytes = Vec::new();
            far.read_to_end(&mut bytes).await.map(|_| bytes)
        });
        poll_fn(|cx| queue.poll_send(cx, &mut near)).await.expect("sends");
        assert!(queue.is_empty());
        drop(near);
        let bytes = reader.await.expect("joins").expect("reads");
        assert_eq!(bytes.len(), len);
        bytes
    }

    #[tokio::test]
    async fn golden_replies() {
        let mut queue = ReplyQueue::default();
        queue.push_done(7);
        queue.push_error(8, IoError::NoSpace, false);
        queue.push_error(9, IoError::Io, true);
        let mut expected = hex::decode("67446698000000000000000000000007").expect("hex");
        expected.extend(hex::decode("674466980000001c0000000000000008").expect("hex"));
        expected.extend(hex::decode("668e33ef00018001000000000000000900000018000000050012").expect("hex"));
        expected.extend(b"input/output error");
        assert_eq!(sent(queue).await, expected);
    }

    #[tokio::test]
    async fn a_hole_travels_as_a_hole_unless_the_client_cannot_take_it() {
        let segments = || [Segment::Data(Bytes::from(vec![5; 2048])), Segment::Hole(512)];
        let mut queue = ReplyQueue::default();
        queue.push_read(1, 4096, segments());
        let mut expected = hex::decode("668e33ef0000000100000000000000010000080800000000000010").expect("hex");
        expected.push(0);
        expected.extend([5; 2048]);
        expected.extend(hex::decode("668e33ef0001000200000000000000010000000c000000000000180000000200").expect("hex"));
        assert_eq!(sent(queue).await, expected);

        let mut queue = ReplyQueue::default();
        queue.push_whole_read(1, 4096, 2560, segments());
        let bytes = sent(queue).await;
        assert_eq!(bytes.len(), 28 + 2560);
        assert_eq!(bytes[28..28 + 2048], [5; 2048]);
        assert_eq!(bytes[28 + 2048..], [0; 512]);
    }

    #[tokio::test]
    async fn long_queues_go_out_whole_and_in_order() {
        let mut queue = ReplyQueue::default();
        for cookie in 0..300u64 {
            queue.push_simple_read(cookie, [Segment::Data(Bytes::from(vec![cookie as u8; 1500]))]);
        }
        let bytes = sent(queue).await;
        for (cookie, reply) in bytes.chunks(1516).enumerate() {
            assert_eq!(reply[15], cookie as u8);
            assert_eq!(reply[16..], [cookie as u8; 1500]);
        }
    }
}
