//! The NBD wire format: constants, decoders and encoders.
//!
//! Purpose: one place for every number and byte layout of the protocol (fixed newstyle negotiation, simple and
//! structured replies, the `base:allocation` metadata context).
//!
//! Invariants: each function is pure; a decoder takes bytes and never panics, whatever they are; `Ok(None)` means
//! "more bytes are needed"; no decoder allocates more than the bytes that it was given.
//!
//! Units: all integers are big-endian on the wire; offsets and lengths are bytes.
//!
//! Non-goals: the oldstyle handshake, TLS, extended headers, resize.
//!
//! ```text
//! greeting      NBDMAGIC u64 │ IHAVEOPT u64 │ handshake flags u16
//! client flags  u32
//! option        IHAVEOPT u64 │ option u32 │ length u32 │ data
//! option reply  magic u64 │ option u32 │ type u32 │ length u32 │ data
//! request       magic u32 │ flags u16 │ type u16 │ cookie u64 │ offset u64 │ length u32 │ data (WRITE)
//! simple reply  magic u32 │ error u32 │ cookie u64 │ data (READ)
//! chunk         magic u32 │ flags u16 │ type u16 │ cookie u64 │ length u32 │ payload
//! ```

use bytes::{Buf, BufMut};

/// First word of the greeting, "NBDMAGIC".
pub const NBD_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Second word of the greeting and first of each option, "IHAVEOPT".
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// First word of each reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// First word of each request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// First word of a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// First word of a structured reply chunk.
pub const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// Handshake flag and client flag: fixed newstyle.
pub const FLAG_FIXED_NEWSTYLE: u32 = 1;
/// Handshake flag and client flag: no 124 zeroes after EXPORT_NAME.
pub const FLAG_NO_ZEROES: u32 = 1 << 1;

/// Option numbers.
pub mod opt {
    pub const EXPORT_NAME: u32 = 1;
    pub const ABORT: u32 = 2;
    pub const LIST: u32 = 3;
    pub const STARTTLS: u32 = 5;
    pub const INFO: u32 = 6;
    pub const GO: u32 = 7;
    pub const STRUCTURED_REPLY: u32 = 8;
    pub const LIST_META_CONTEXT: u32 = 9;
    pub const SET_META_CONTEXT: u32 = 10;
}

/// Types of option replies.
pub mod rep {
    pub const ACK: u32 = 1;
    pub const SERVER: u32 = 2;
    pub const INFO: u32 = 3;
    pub const META_CONTEXT: u32 = 4;
    /// Set in every error type.
    pub const ERR_BIT: u32 = 1 << 31;
    pub const ERR_UNSUP: u32 = ERR_BIT | 1;
    pub const ERR_POLICY: u32 = ERR_BIT | 2;
    pub const ERR_INVALID: u32 = ERR_BIT | 3;
    pub const ERR_UNKNOWN: u32 = ERR_BIT | 6;
    pub const ERR_SHUTDOWN: u32 = ERR_BIT | 7;
    pub const ERR_TOO_BIG: u32 = ERR_BIT | 9;
}

/// Types of information in a reply to INFO or GO.
pub mod info {
    pub const EXPORT: u16 = 0;
    pub const NAME: u16 = 1;
    pub const BLOCK_SIZE: u16 = 3;
}

/// Transmission flags: what an export can do.
pub mod trans {
    pub const HAS_FLAGS: u16 = 1;
    pub const READ_ONLY: u16 = 1 << 1;
    pub const SEND_FLUSH: u16 = 1 << 2;
    pub const SEND_FUA: u16 = 1 << 3;
    pub const SEND_TRIM: u16 = 1 << 5;
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub const SEND_DF: u16 = 1 << 7;
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    pub const SEND_CACHE: u16 = 1 << 10;
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// Request types.
pub mod cmd {
    pub const READ: u16 = 0;
    pub const WRITE: u16 = 1;
    pub const DISC: u16 = 2;
    pub const FLUSH: u16 = 3;
    pub const TRIM: u16 = 4;
    pub const CACHE: u16 = 5;
    pub const WRITE_ZEROES: u16 = 6;
    pub const BLOCK_STATUS: u16 = 7;
}

/// Request flags.
pub mod cmd_flag {
    pub const FUA: u16 = 1;
    pub const NO_HOLE: u16 = 1 << 1;
    pub const DF: u16 = 1 << 2;
    pub const REQ_ONE: u16 = 1 << 3;
    pub const FAST_ZERO: u16 = 1 << 4;
}

/// Types and flags of structured reply chunks.
pub mod chunk {
    /// Flag: the last chunk of a reply.
    pub const DONE: u16 = 1;
    pub const NONE: u16 = 0;
    pub const OFFSET_DATA: u16 = 1;
    pub const OFFSET_HOLE: u16 = 2;
    pub const BLOCK_STATUS: u16 = 5;
    /// Set in every error type.
    pub const ERR_BIT: u16 = 1 << 15;
    pub const ERROR: u16 = ERR_BIT | 1;
    pub const ERROR_OFFSET: u16 = ERR_BIT | 2;
}

/// Error numbers in replies.
pub mod errno {
    pub const EPERM: u32 = 1;
    pub const EIO: u32 = 5;
    pub const EINVAL: u32 = 22;
    pub const ENOSPC: u32 = 28;
    pub const EOVERFLOW: u32 = 75;
    pub const ENOTSUP: u32 = 95;
    pub const ESHUTDOWN: u32 = 108;
}

/// Status flags of the `base:allocation` context.
pub mod state {
    pub const HOLE: u32 = 1;
    pub const ZERO: u32 = 1 << 1;
}

/// The one metadata context that the server knows.
pub const CONTEXT_BASE_ALLOCATION: &str = "base:allocation";
/// Its id, which a client treats as opaque.
pub const CONTEXT_ID: u32 = 1;

/// Smallest length and alignment of a request: a disk sector.
pub const BLOCK_SIZE_MIN: u32 = 512;
/// Requests of this alignment need no read-modify-write: the size of a hash leaf.
pub const BLOCK_SIZE_PREFERRED: u32 = 4096;
/// Largest READ or WRITE: the protocol says that up to 32 MiB should be accepted.
pub const BLOCK_SIZE_MAX: u32 = 32 << 20;
/// Largest string in the protocol.
pub const STRING_LEN_MAX: usize = 4096;
/// Largest option data that is read: an export name and some metadata queries fit many times over.
pub const OPTION_LEN_MAX: u32 = 64 << 10;

/// Bytes of the greeting.
pub const GREETING_LEN: usize = 18;
/// Bytes of an option before its data.
pub const OPTION_HEADER_LEN: usize = 16;
/// Bytes of an option reply before its data.
pub const OPTION_REPLY_HEADER_LEN: usize = 20;
/// Bytes of a request before its data.
pub const REQUEST_LEN: usize = 28;
/// Bytes of a simple reply before its data.
pub const SIMPLE_REPLY_LEN: usize = 16;
/// Bytes of a chunk before its payload.
pub const CHUNK_HEADER_LEN: usize = 20;

/// Why bytes are not NBD.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeMessage {
    #[error("bad magic {found:#x} in {what}")]
    BadMagic { what: &'static str, found: u64 },
    #[error("unknown client flags {0:#x}")]
    UnknownClientFlags(u32),
    #[error("option {option} has {len} bytes of data, more than the {OPTION_LEN_MAX} allowed")]
    OptionTooLong { option: u32, len: u32 },
    #[error("malformed data in {0}")]
    Malformed(&'static str),
}

/// A request as it stands on the wire; its fields are not checked yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    pub flags: u16,
    pub kind: u16,
    pub cookie: u64,
    pub offset: u64,
    pub len: u32,
}

/// The data of GO and INFO.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InfoRequest<'a> {
    pub name: &'a str,
    pub wants_block_size: bool,
    pub wants_name: bool,
}

/// The data of SET_META_CONTEXT and LIST_META_CONTEXT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetaContextRequest<'a> {
    pub name: &'a str,
    pub queries: Vec<&'a str>,
}

/// One reply to an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionReply<'a> {
    pub option: u32,
    /// One of [`rep`].
    pub kind: u32,
    pub data: &'a [u8],
}

/// The header of a reply in the transmission phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplyHeader {
    Simple { cookie: u64, error: u32 },
    Chunk { flags: u16, kind: u16, cookie: u64, len: u32 },
}

/// Writes the server's greeting.
pub fn encode_greeting(out: &mut impl BufMut) {
    out.put_u64(NBD_MAGIC);
    out.put_u64(OPTION_MAGIC);
    out.put_u16((FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES) as u16);
}

/// Reads the server's greeting; gives the handshake flags.
pub fn decode_greeting(mut bytes: &[u8]) -> Result<Option<u16>, DecodeMessage> {
    if bytes.len() < GREETING_LEN {
        return Ok(None);
    }
    for (what, expected) in [("greeting", NBD_MAGIC), ("greeting (oldstyle server?)", OPTION_MAGIC)] {
        let found = bytes.get_u64();
        if found != expected {
            return Err(DecodeMessage::BadMagic { what, found });
        }
    }
    Ok(Some(bytes.get_u16()))
}

/// Reads the client's flags, and refuses unknown ones, as the protocol demands.
pub fn decode_client_flags(mut bytes: &[u8]) -> Result<Option<u32>, DecodeMessage> {
    if bytes.len() < 4 {
        return Ok(None);
    }
    let flags = bytes.get_u32();
    if flags & !(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES) != 0 {
        return Err(DecodeMessage::UnknownClientFlags(flags));
    }
    Ok(Some(flags))
}

/// Writes one option with its data.
pub fn encode_option(out: &mut impl BufMut, option: u32, data: &[u8]) {
    out.put_u64(OPTION_MAGIC);
    out.put_u32(option);
    out.put_u32(data.len() as u32);
    out.put_slice(data);
}

/// Reads one option; gives its number and its data.
pub fn decode_option(mut bytes: &[u8]) -> Result<Option<(u32, &[u8])>, DecodeMessage> {
    // The magic is checked as soon as it is there, so that garbage is refused at once.
    if bytes.len() >= 8 {
        let found = (&bytes[..8]).get_u64();
        if found != OPTION_MAGIC {
            return Err(DecodeMessage::BadMagic { what: "option", found });
        }
    }
    if bytes.len() < OPTION_HEADER_LEN {
        return Ok(None);
    }
    bytes.advance(8);
    let option = bytes.get_u32();
    let len = bytes.get_u32();
    if len > OPTION_LEN_MAX {
        return Err(DecodeMessage::OptionTooLong { option, len });
    }
    Ok(bytes.get(..len as usize).map(|data| (option, data)))
}

/// Writes one reply to an option.
pub fn encode_option_reply(out: &mut impl BufMut, option: u32, kind: u32, data: &[u8]) {
    out.put_u64(OPTION_REPLY_MAGIC);
    out.put_u32(option);
    out.put_u32(kind);
    out.put_u32(data.len() as u32);
    out.put_slice(data);
}

/// Reads one reply to an option.
pub fn decode_option_reply(mut bytes: &[u8]) -> Result<Option<OptionReply<'_>>, DecodeMessage> {
    if bytes.len() < OPTION_REPLY_HEADER_LEN {
        return Ok(None);
    }
    let found = bytes.get_u64();
    if found != OPTION_REPLY_MAGIC {
        return Err(DecodeMessage::BadMagic { what: "option reply", found });
    }
    let option = bytes.get_u32();
    let kind = bytes.get_u32();
    let len = bytes.get_u32();
    if len > OPTION_LEN_MAX {
        return Err(DecodeMessage::OptionTooLong { option, len });
    }
    Ok(bytes.get(..len as usize).map(|data| OptionReply { option, kind, data }))
}

/// Writes the reply to EXPORT_NAME, which has no header.
pub fn encode_export_name_reply(out: &mut impl BufMut, size_bytes: u64, flags: u16, no_zeroes: bool) {
    out.put_u64(size_bytes);
    out.put_u16(flags);
    if !no_zeroes {
        out.put_bytes(0, 124);
    }
}

/// Writes the INFO_EXPORT reply to GO or INFO.
pub fn encode_info_export(out: &mut impl BufMut, option: u32, size_bytes: u64, flags: u16) {
    let mut data = [0; 12];
    let mut rest = &mut data[..];
    rest.put_u16(info::EXPORT);
    rest.put_u64(size_bytes);
    rest.put_u16(flags);
    encode_option_reply(out, option, rep::INFO, &data);
}

/// Reads INFO_EXPORT; gives the size in bytes and the transmission flags, or `None` for another information.
pub fn decode_info_export(mut data: &[u8]) -> Result<Option<(u64, u16)>, DecodeMessage> {
    let malformed = DecodeMessage::Malformed("export information");
    match data.try_get_u16() {
        Ok(info::EXPORT) if data.len() == 10 => Ok(Some((data.get_u64(), data.get_u16()))),
        Ok(info::EXPORT) | Err(_) => Err(malformed),
        Ok(_) => Ok(None),
    }
}

/// Writes the INFO_BLOCK_SIZE reply to GO or INFO.
pub fn encode_info_block_size(out: &mut impl BufMut, option: u32) {
    let mut data = [0; 14];
    let mut rest = &mut data[..];
    rest.put_u16(info::BLOCK_SIZE);
    rest.put_u32(BLOCK_SIZE_MIN);
    rest.put_u32(BLOCK_SIZE_PREFERRED);
    rest.put_u32(BLOCK_SIZE_MAX);
    encode_option_reply(out, option, rep::INFO, &data);
}

/// Writes the INFO_NAME reply to GO or INFO.
pub fn encode_info_name(out: &mut impl BufMut, option: u32, name: &str) {
    let mut data = Vec::with_capacity(2 + name.len());
    data.put_u16(info::NAME);
    data.put_slice(name.as_bytes());
    encode_option_reply(out, option, rep::INFO, &data);
}

/// Writes one export of the reply to LIST.
pub fn encode_list_entry(out: &mut impl BufMut, name: &str) {
    let mut data = Vec::with_capacity(4 + name.len());
    data.put_u32(name.len() as u32);
    data.put_slice(name.as_bytes());
    encode_option_reply(out, opt::LIST, rep::SERVER, &data);
}

/// Writes one metadata context of the reply to SET_META_CONTEXT or LIST_META_CONTEXT.
pub fn encode_meta_context(out: &mut impl BufMut, option: u32, id: u32, name: &str) {
    let mut data = Vec::with_capacity(4 + name.len());
    data.put_u32(id);
    data.put_slice(name.as_bytes());
    encode_option_reply(out, option, rep::META_CONTEXT, &data);
}

/// Writes the data of GO or INFO with the block size asked for.
pub fn encode_info_request(out: &mut impl BufMut, name: &str) {
    out.put_u32(name.len() as u32);
    out.put_slice(name.as_bytes());
    out.put_u16(1);
    out.put_u16(info::BLOCK_SIZE);
}

/// Reads the data of GO or INFO.
pub fn decode_info_request(mut data: &[u8]) -> Result<InfoRequest<'_>, DecodeMessage> {
    let malformed = DecodeMessage::Malformed("GO or INFO");
    let name = take_string(&mut data).ok_or(malformed)?;
    let count = data.try_get_u16().map_err(|_| malformed)?;
    if data.len() != usize::from(count) * 2 {
        return Err(malformed);
    }
    let mut request = InfoRequest { name, wants_block_size: false, wants_name: false };
    while data.has_remaining() {
        match data.get_u16() {
            info::BLOCK_SIZE => request.wants_block_size = true,
            info::NAME => request.wants_name = true,
            _ => {} // unknown information requests are ignored, says the protocol
        }
    }
    Ok(request)
}

/// Reads the data of SET_META_CONTEXT or LIST_META_CONTEXT.
pub fn decode_meta_context_request(mut data: &[u8]) -> Result<MetaContextRequest<'_>, DecodeMessage> {
    let malformed = DecodeMessage::Malformed("metadata context query");
    let name = take_string(&mut data).ok_or(malformed)?;
    let count = data.try_get_u32().map_err(|_| malformed)? as usize;
    // Each query takes four bytes at least, so the data bounds the count.
    if count > data.len() / 4 {
        return Err(malformed);
    }
    let queries = (0..count).map(|_| take_string(&mut data)).collect::<Option<Vec<_>>>().ok_or(malformed)?;
    if !data.is_empty() {
        return Err(malformed);
    }
    Ok(MetaContextRequest { name, queries })
}

/// Reads an export name that is the whole of an option's data.
pub fn decode_export_name(data: &[u8]) -> Result<&str, DecodeMessage> {
    let malformed = DecodeMessage::Malformed("export name");
    if data.len() > STRING_LEN_MAX {
        return Err(malformed);
    }
    std::str::from_utf8(data).map_err(|_| malformed)
}

/// Writes one request.
pub fn encode_request(out: &mut impl BufMut, request: &Request) {
    out.put_u32(REQUEST_MAGIC);
    out.put_u16(request.flags);
    out.put_u16(request.kind);
    out.put_u64(request.cookie);
    out.put_u64(request.offset);
    out.put_u32(request.len);
}

/// Reads one request's header.
pub fn decode_request(mut bytes: &[u8]) -> Result<Option<Request>, DecodeMessage> {
    if bytes.len() >= 4 {
        let found = (&bytes[..4]).get_u32();
        if found != REQUEST_MAGIC {
            return Err(DecodeMessage::BadMagic { what: "request", found: found.into() });
        }
    }
    if bytes.len() < REQUEST_LEN {
        return Ok(None);
    }
    bytes.advance(4);
    Ok(Some(Request {
        flags: bytes.get_u16(),
        kind: bytes.get_u16(),
        cookie: bytes.get_u64(),
        offset: bytes.get_u64(),
        len: bytes.get_u32(),
    }))
}

/// Writes a simple reply's header.
pub fn encode_simple_reply(out: &mut impl BufMut, error: u32, cookie: u64) {
    out.put_u32(SIMPLE_REPLY_MAGIC);
    out.put_u32(error);
    out.put_u64(cookie);
}

/// Writes a chunk's header.
pub fn encode_chunk_header(out: &mut impl BufMut, flags: u16, kind: u16, cookie: u64, payload_len: u32) {
    out.put_u32(CHUNK_MAGIC);
    out.put_u16(flags);
    out.put_u16(kind);
    out.put_u64(cookie);
    out.put_u32(payload_len);
}

/// Writes a whole error chunk, the last of its reply.
pub fn encode_error_chunk(out: &mut impl BufMut, cookie: u64, error: u32, message: &str) {
    encode_chunk_header(out, chunk::DONE, chunk::ERROR, cookie, 6 + message.len() as u32);
    out.put_u32(error);
    out.put_u16(message.len() as u16);
    out.put_slice(message.as_bytes());
}

/// Reads the header of a simple reply or of a chunk.
pub fn decode_reply_header(mut bytes: &[u8]) -> Result<Option<(ReplyHeader, usize)>, DecodeMessage> {
    if bytes.len() < SIMPLE_REPLY_LEN {
        return Ok(None);
    }
    match bytes.get_u32() {
        SIMPLE_REPLY_MAGIC => {
            let error = bytes.get_u32();
            Ok(Some((ReplyHeader::Simple { error, cookie: bytes.get_u64() }, SIMPLE_REPLY_LEN)))
        }
        CHUNK_MAGIC if bytes.len() < CHUNK_HEADER_LEN - 4 => Ok(None),
        CHUNK_MAGIC => Ok(Some((
            ReplyHeader::Chunk {
                flags: bytes.get_u16(),
                kind: bytes.get_u16(),
                cookie: bytes.get_u64(),
                len: bytes.get_u32(),
            },
            CHUNK_HEADER_LEN,
        ))),
        found => Err(DecodeMessage::BadMagic { what: "reply", found: found.into() }),
    }
}

/// Takes a string with a 32-bit length in front.
fn take_string<'a>(data: &mut &'a [u8]) -> Option<&'a str> {
    let len = data.try_get_u32().ok()? as usize;
    if len > STRING_LEN_MAX {
        return None;
    }
    let (head, tail) = data.split_at_checked(len)?;
    *data = tail;
    std::str::from_utf8(head).ok()
}

#[cfg(test)]
#[path = "proto_tests.rs"]
mod tests;
