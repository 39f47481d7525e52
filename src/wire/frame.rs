//! Frames: how messages are cut out of a byte stream.
//!
//! Layout, all integers little-endian:
//!
//! ```text
//! offset  size  field
//!      0     4  len        bytes that follow this field: 8 + meta_len + payload
//!      4     2  kind       the message's type
//!      6     2  flags      sent as 0; a receiver ignores the low byte and refuses the high byte
//!      8     4  meta_len
//!     12     …  meta       protobuf
//!      …     …  payload    raw bytes: block data, leaves
//! ```
//!
//! `len` comes first, so that a receiver knows what to skip or wait for after four bytes; meta comes before the payload, so that
//! its length alone places both. Payloads stay outside protobuf, so that block data is never copied by a codec.
//!
//! Invariants: a decoder never panics and never reserves more than [`RESERVE_BYTES_MAX`] on the peer's word: beyond that its buffer
//! grows with what has arrived. A frame that lies within one received piece is a view of it, without a copy; one that spans
//! pieces is copied once. Both lengths are bounded; past an error a decoder yields nothing more.
//!
//! Non-goals: checksums (QUIC authenticates, blocks have their hashes) and the meaning of kinds.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Bytes before the meta.
pub const HEADER_BYTES: usize = 12;
/// Largest meta: a PG's whole chunk table (64 B a chunk) comes in pieces well below it.
pub const META_BYTES_MAX: usize = 4 << 20;
/// Largest payload: NBD's largest request (32 MiB), its leaves and some room.
pub const PAYLOAD_BYTES_MAX: usize = 36 << 20;
/// What a decoder reserves at once for an announced frame; covers a resync window and its leaves in one piece.
pub const RESERVE_BYTES_MAX: usize = 512 << 10;
/// Parts below this are copied behind their header when frames are encoded: one long piece is cheaper to send than two short ones.
const INLINE_BYTES: usize = 16 << 10;
/// Kinds from here on belong to the transport itself.
pub const KIND_TRANSPORT_FIRST: u16 = 0xff00;

const _: () = assert!(HEADER_BYTES + META_BYTES_MAX + PAYLOAD_BYTES_MAX < u32::MAX as usize);

/// One message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    /// The message's type.
    pub kind: u16,
    /// Protobuf.
    pub meta: Bytes,
    /// The payload's first bytes, where the sender has them apart (leaves before their blocks): nothing long is copied to
    /// put them together. A decoded frame has none, its payload is whole.
    pub lead: Bytes,
    /// Raw bytes.
    pub payload: Bytes,
}

/// A frame that breaks the rules above.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The meta is longer than [`META_BYTES_MAX`].
    #[error("a frame's meta has {bytes} bytes, at most {META_BYTES_MAX} are allowed")]
    MetaTooLong {
        /// As announced or given.
        bytes: usize,
    },
    /// The payload is longer than [`PAYLOAD_BYTES_MAX`].
    #[error("a frame's payload has {bytes} bytes, at most {PAYLOAD_BYTES_MAX} are allowed")]
    PayloadTooLong {
        /// As announced or given.
        bytes: usize,
    },
    /// The two announced lengths contradict each other.
    #[error("a frame of {len} bytes can't hold a header and a meta of {meta_len} bytes")]
    LengthsContradict {
        /// As announced.
        len: u32,
        /// As announced.
        meta_len: u32,
    },
    /// A flag that a receiver must understand, and this one doesn't.
    #[error("a frame carries flags {flags:#06x}, which this release doesn't know: it comes from a newer release")]
    FlagsUnknown {
        /// As received.
        flags: u16,
    },
}

impl Frame {
    /// A frame without a payload.
    pub fn new(kind: u16, meta: impl Into<Bytes>) -> Frame {
        Frame { kind, meta: meta.into(), ..Frame::default() }
    }

    /// A frame with a payload.
    pub fn with_payload(kind: u16, meta: impl Into<Bytes>, payload: impl Into<Bytes>) -> Frame {
        Frame { kind, meta: meta.into(), lead: Bytes::new(), payload: payload.into() }
    }

    /// Bytes on the wire.
    pub fn wire_bytes(&self) -> usize {
        HEADER_BYTES + self.meta.len() + self.payload_bytes()
    }

    /// As a receiver gets it: the payload in one piece.
    #[cfg(test)]
    pub fn received(self) -> Frame {
        Frame { payload: [self.lead, self.payload].concat().into(), lead: Bytes::new(), ..self }
    }

    fn payload_bytes(&self) -> usize {
        self.lead.len() + self.payload.len()
    }

    /// Whether the frame may be sent.
    ///
    /// # Errors
    /// A part is too long.
    pub fn check(&self) -> Result<(), FrameError> {
        check_lengths(self.meta.len(), self.payload_bytes())
    }

    fn put_header(&self, out: &mut BytesMut) {
        out.put_u32_le((self.wire_bytes() - 4) as u32);
        out.put_u16_le(self.kind);
        out.put_u16_le(0);
        out.put_u32_le(self.meta.len() as u32);
    }
}

fn check_lengths(meta: usize, payload: usize) -> Result<(), FrameError> {
    if meta > META_BYTES_MAX {
        return Err(FrameError::MetaTooLong { bytes: meta });
    }
    if payload > PAYLOAD_BYTES_MAX {
        return Err(FrameError::PayloadTooLong { bytes: payload });
    }
    Ok(())
}

/// Turns frames into as few pieces as possible: short parts are gathered, long payloads are handed on without a copy.
#[derive(Debug, Default)]
pub struct Encoder {
    gathered: BytesMut,
    pieces: Vec<Bytes>,
}

impl Encoder {
    /// Adds a frame behind those before it.
    ///
    /// # Errors
    /// A part is too long; nothing was added.
    pub fn push(&mut self, frame: Frame) -> Result<(), FrameError> {
        frame.check()?;
        let lengths = [frame.meta.len(), frame.lead.len(), frame.payload.len()];
        self.gathered.reserve(HEADER_BYTES + lengths.into_iter().filter(|n| *n < INLINE_BYTES).sum::<usize>());
        frame.put_header(&mut self.gathered);
        [frame.meta, frame.lead, frame.payload].into_iter().for_each(|part| self.put_part(part));
        Ok(())
    }

    fn put_part(&mut self, part: Bytes) {
        if part.len() < INLINE_BYTES {
            self.gathered.extend_from_slice(&part);
        } else {
            self.cut();
            self.pieces.push(part);
        }
    }

    fn cut(&mut self) {
        if !self.gathered.is_empty() {
            self.pieces.push(self.gathered.split().freeze());
        }
    }

    /// All that was pushed since the last call, in order. The caller drains it.
    pub fn pieces(&mut self) -> &mut Vec<Bytes> {
        self.cut();
        &mut self.pieces
    }
}

#[derive(Clone, Copy)]
struct Header {
    kind: u16,
    meta_len: usize,
    payload_len: usize,
}

impl Header {
    /// `None` if `bytes` is shorter than a header.
    fn parse(mut bytes: &[u8]) -> Result<Option<Header>, FrameError> {
        if bytes.len() < HEADER_BYTES {
            return Ok(None);
        }
        let len = bytes.get_u32_le();
        let kind = bytes.get_u16_le();
        let flags = bytes.get_u16_le();
        let meta_len = bytes.get_u32_le();
        if flags & 0xff00 != 0 {
            return Err(FrameError::FlagsUnknown { flags });
        }
        let payload_len = (len as usize)
            .checked_sub(HEADER_BYTES - 4)
            .and_then(|rest| rest.checked_sub(meta_len as usize))
            .ok_or(FrameError::LengthsContradict { len, meta_len })?;
        check_lengths(meta_len as usize, payload_len)?;
        Ok(Some(Header { kind, meta_len: meta_len as usize, payload_len }))
    }

    fn wire_bytes(self) -> usize {
        HEADER_BYTES + self.meta_len + self.payload_len
    }

    /// `whole` is exactly one frame.
    fn cut(self, whole: &Bytes) -> Frame {
        let meta_end = HEADER_BYTES + self.meta_len;
        Frame {
            kind: self.kind,
            meta: whole.slice(HEADER_BYTES..meta_end),
            lead: Bytes::new(),
            payload: whole.slice(meta_end..),
        }
    }
}

/// Cuts frames out of received pieces: `push` a piece, then call `next` until it gives `None`.
#[derive(Debug, Default)]
pub struct Decoder {
    /// The start of a frame that spans pieces; empty otherwise.
    partial: BytesMut,
    /// Not yet looked at; follows `partial`.
    piece: Bytes,
    failed: Option<FrameError>,
}

impl Decoder {
    /// Gives the decoder the next piece of the stream.
    pub fn push(&mut self, piece: Bytes) {
        if self.piece.is_empty() {
            self.piece = piece;
        } else {
            // Only if the caller pushes twice without draining.
            let mut joined = BytesMut::with_capacity(self.piece.len() + piece.len());
            joined.extend_from_slice(&self.piece);
            joined.extend_from_slice(&piece);
            self.piece = joined.freeze();
        }
    }

    /// The next whole frame, or `None` until more arrives.
    ///
    /// # Errors
    /// The stream is not frames; the same error again on each further call.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let result = if self.partial.is_empty() { self.next_in_piece() } else { self.next_spanning() };
        if let Err(error) = &result {
            *self = Decoder { failed: Some(error.clone()), ..Decoder::default() };
        }
        result
    }

    /// Whether the stream may end here: no frame has begun.
    pub fn is_at_boundary(&self) -> bool {
        self.failed.is_none() && self.partial.is_empty() && self.piece.is_empty()
    }

    fn next_in_piece(&mut self) -> Result<Option<Frame>, FrameError> {
        match Header::parse(&self.piece)? {
            Some(header) if header.wire_bytes() <= self.piece.len() => {
                Ok(Some(header.cut(&self.piece.split_to(header.wire_bytes()))))
            }
            Some(header) => {
                self.partial = BytesMut::with_capacity(header.wire_bytes().min(RESERVE_BYTES_MAX));
                self.partial.extend_from_slice(&std::mem::take(&mut self.piece));
                Ok(None)
            }
            None => {
                self.partial.extend_from_slice(&std::mem::take(&mut self.piece));
                Ok(None)
            }
        }
    }

    fn next_spanning(&mut self) -> Result<Option<Frame>, FrameError> {
        self.take_up_to(HEADER_BYTES);
        let Some(header) = Header::parse(&self.partial)? else { return Ok(None) };
        let missing = header.wire_bytes().saturating_sub(self.partial.len());
        self.partial.reserve(missing.min(RESERVE_BYTES_MAX));
        self.take_up_to(header.wire_bytes());
        if self.partial.len() < header.wire_bytes() {
            return Ok(None);
        }
        Ok(Some(header.cut(&std::mem::take(&mut self.partial).freeze())))
    }

    /// Moves bytes from the piece until `partial` has `len` bytes or the piece is used up.
    fn take_up_to(&mut self, len: usize) {
        let n = len.saturating_sub(self.partial.len()).min(self.piece.len());
        self.partial.extend_from_slice(&self.piece[..n]);
        self.piece.advance(n);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encode(frames: &[Frame]) -> Vec<u8> {
        let mut encoder = Encoder::default();
        for f in frames {
            encoder.push(f.clone()).unwrap();
        }
        encoder.pieces().concat()
    }

    fn decode_all(pieces: impl IntoIterator<Item = Bytes>) -> Result<(Vec<Frame>, bool), FrameError> {
        let mut decoder = Decoder::default();
        let mut frames = Vec::new();
        for piece in pieces {
            decoder.push(piece);
            while let Some(f) = decoder.next_frame()? {
                frames.push(f);
            }
        }
        Ok((frames, decoder.is_at_boundary()))
    }

    #[test]
    fn golden_bytes() {
        let f = Frame::with_payload(0x0102, &b"me"[..], &b"data"[..]);
        let expected = [14, 0, 0, 0, 2, 1, 0, 0, 2, 0, 0, 0, b'm', b'e', b'd', b'a', b't', b'a'];
        assert_eq!(encode(std::slice::from_ref(&f)), expected);
        assert_eq!(decode_all([Bytes::copy_from_slice(&expected)]), Ok((vec![f], true)));
    }

    #[test]
    fn low_flags_are_ignored_and_high_ones_refused() {
        let mut bytes = encode(&[Frame::new(7, &b"x"[..])]);
        bytes[6] = 0xff;
        assert_eq!(decode_all([Bytes::from(bytes.clone())]).unwrap().0, [Frame::new(7, &b"x"[..])]);
        bytes[7] = 0x01;
        assert_eq!(decode_all([Bytes::from(bytes)]), Err(FrameError::FlagsUnknown { flags: 0x01ff }));
    }

    #[test]
    fn every_truncation_waits_for_more() {
        let bytes = Bytes::from(encode(&[Frame::with_payload(3, &b"meta"[..], &b"payload"[..])]));
        for n in 0..bytes.len() {
            let (frames, at_boundary) = decode_all([bytes.slice(..n)]).unwrap();
            assert!(frames.is_empty(), "{n}");
            assert_eq!(at_boundary, n == 0, "{n}");
            let (frames, at_boundary) = decode_all([bytes.slice(..n), bytes.slice(n..)]).unwrap();
            assert_eq!((frames.len(), at_boundary), (1, true), "{n}");
        }
    }

    #[test]
    fn lengths_beyond_the_bounds_are_refused_at_once() {
        let header = |len: u32, meta_len: u32| {
            let mut b = BytesMut::new();
            b.put_u32_le(len);
            b.put_u32_le(9);
            b.put_u32_le(meta_len);
            b.freeze()
        };
        let meta_max = META_BYTES_MAX as u32;
        let payload_max = PAYLOAD_BYTES_MAX as u32;
        assert!(decode_all([header(8 + meta_max + payload_max, meta_max)]).is_ok());
        let too_long = decode_all([header(8 + meta_max + 1, meta_max + 1)]);
        assert_eq!(too_long, Err(FrameError::MetaTooLong { bytes: META_BYTES_MAX + 1 }));
        let too_long = decode_all([header(8 + payload_max + 1, 0)]);
        assert_eq!(too_long, Err(FrameError::PayloadTooLong { bytes: PAYLOAD_BYTES_MAX + 1 }));
        for (len, meta_len) in [(0, 0), (7, 0), (8, 1), (u32::MAX, u32::MAX)] {
            assert_eq!(decode_all([header(len, meta_len)]), Err(FrameError::LengthsContradict { len, meta_len }));
        }
        let long = Frame::new(1, vec![0; META_BYTES_MAX + 1]);
        assert_eq!(Encoder::default().push(long), Err(FrameError::MetaTooLong { bytes: META_BYTES_MAX + 1 }));
    }

    #[test]
    fn an_announced_length_reserves_little() {
        let whole = encode(&[Frame::with_payload(1, Bytes::new(), vec![0; PAYLOAD_BYTES_MAX])]);
        let mut decoder = Decoder::default();
        decoder.push(Bytes::copy_from_slice(&whole[..100]));
        assert_eq!(decoder.next_frame(), Ok(None));
        assert!(decoder.partial.capacity() <= RESERVE_BYTES_MAX + 4096, "{}", decoder.partial.capacity());
    }

    #[test]
    fn an_error_is_final() {
        let mut decoder = Decoder::default();
        decoder.push(Bytes::from_static(&[0; 12]));
        let error = decoder.next_frame().unwrap_err();
        decoder.push(Bytes::from(encode(&[Frame::new(1, &b"x"[..])])));
        assert_eq!(decoder.next_frame(), Err(error));
        assert!(!decoder.is_at_boundary());
    }

    #[test]
    fn a_frame_within_one_piece_is_not_copied() {
        let piece = Bytes::from(encode(&[Frame::with_payload(1, &b"m"[..], &b"payload"[..])]));
        let mut decoder = Decoder::default();
        decoder.push(piece.clone());
        let frame = decoder.next_frame().unwrap().unwrap();
        assert_eq!(frame.payload.as_ptr(), piece[13..].as_ptr());
        let long = Bytes::from(vec![1; INLINE_BYTES]);
        let mut encoder = Encoder::default();
        let lead = Bytes::from_static(b"lead");
        encoder.push(Frame { lead, ..Frame::with_payload(1, &b"m"[..], long.clone()) }).unwrap();
        let pieces = encoder.pieces();
        assert_eq!(pieces.len(), 2, "what is short shares a piece with the header");
        assert_eq!(pieces[1].as_ptr(), long.as_ptr());
    }

    fn frames() -> impl Strategy<Value = Vec<Frame>> {
        let part = || {
            let byte = |n: std::ops::Range<usize>| proptest::collection::vec(any::<u8>(), n);
            prop_oneof![9 => byte(0..40), 1 => byte(16_300..16_500)]
        };
        let frame = (any::<u16>(), part(), part(), part())
            .prop_map(|(kind, meta, lead, data)| Frame { lead: lead.into(), ..Frame::with_payload(kind, meta, data) });
        proptest::collection::vec(frame, 0..12)
    }

    proptest! {
        #[test]
        fn any_cut_of_any_frames_round_trips(frames in frames(), cuts in proptest::collection::vec(any::<u16>(), 0..20)) {
            let bytes = Bytes::from(encode(&frames));
            let mut at: Vec<usize> = cuts.iter().map(|c| usize::from(*c) % (bytes.len() + 1)).collect();
            at.extend([0, bytes.len()]);
            at.sort_unstable();
            let pieces: Vec<Bytes> = at.windows(2).map(|w| bytes.slice(w[0]..w[1])).collect();
            let received: Vec<Frame> = frames.into_iter().map(Frame::received).collect();
            prop_assert_eq!(decode_all(pieces), Ok((received, true)));
        }

        #[test]
        fn garbage_never_panics(pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..64), 0..8)) {
            let _ = decode_all(pieces.into_iter().map(Bytes::from));
        }
    }
}
