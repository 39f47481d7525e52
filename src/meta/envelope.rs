//! How a record looks as bytes: a protobuf envelope with a type, a version and a checksum around a protobuf body.
//!
//! The checksum (crc32c) covers key, type, version and body, so that a record under another's key is noticed. The body
//! is kept as it is: a reader that doesn't know its type or some of its fields never rewrites it (R28).

use prost::Message;

use super::MetaError;

/// A record as stored.
#[derive(Clone, PartialEq, Message)]
pub struct Envelope {
    /// See [`super::records::kind`].
    #[prost(uint32, tag = "1")]
    pub kind: u32,
    /// Version of the body's layout.
    #[prost(uint32, tag = "2")]
    pub version: u32,
    /// Protobuf.
    #[prost(bytes = "vec", tag = "3")]
    pub body: Vec<u8>,
    /// crc32c of key, kind, version and body.
    #[prost(fixed32, tag = "4")]
    pub crc: u32,
}

/// A body with its envelope, as bytes.
pub fn seal(key: &str, kind: u32, version: u32, body: &impl Message) -> Vec<u8> {
    let body = body.encode_to_vec();
    let crc = crc(key, kind, version, &body);
    Envelope { kind, version, body, crc }.encode_to_vec()
}

/// Takes the envelope off and verifies it.
///
/// # Errors
/// It is malformed, or the checksum doesn't match.
pub fn open(key: &str, bytes: &[u8]) -> Result<Envelope, MetaError> {
    let bad = |problem: &str| MetaError::Record { key: key.to_owned(), problem: problem.to_owned() };
    let envelope = Envelope::decode(bytes).map_err(|e| bad(&e.to_string()))?;
    if crc(key, envelope.kind, envelope.version, &envelope.body) != envelope.crc {
        return Err(bad("its checksum doesn't match"));
    }
    Ok(envelope)
}

/// Decodes a body; the flag is true if this binary knows every part of it: it re-encodes to the same bytes.
///
/// # Errors
/// It is malformed.
pub fn decode<M: Message + Default>(key: &str, body: &[u8]) -> Result<(M, bool), MetaError> {
    let message = M::decode(body).map_err(|e| MetaError::Record { key: key.to_owned(), problem: e.to_string() })?;
    let whole = message.encode_to_vec() == body;
    Ok((message, whole))
}

fn crc(key: &str, kind: u32, version: u32, body: &[u8]) -> u32 {
    let mut crc = crc32c::crc32c(key.as_bytes());
    crc = crc32c::crc32c_append(crc, &kind.to_le_bytes());
    crc = crc32c::crc32c_append(crc, &version.to_le_bytes());
    crc32c::crc32c_append(crc, body)
}
