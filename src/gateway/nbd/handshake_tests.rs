use std::sync::Arc;

use bytes::BufMut;
use proptest::prelude::*;

use super::super::test_backend::NoIo;
use super::*;

fn exports() -> Export<NoIo> {
    Export::new("disk", Arc::new(NoIo::default()))
}

fn string(out: &mut Vec<u8>, text: &str) {
    out.put_u32(text.len() as u32);
    out.put_slice(text.as_bytes());
}

/// What a client sends that lists, selects a context, and goes.
fn full_handshake() -> Vec<u8> {
    let mut sent = vec![0, 0, 0, 3];
    proto::encode_option(&mut sent, opt::LIST, &[]);
    proto::encode_option(&mut sent, opt::STARTTLS, &[]);
    proto::encode_option(&mut sent, opt::STRUCTURED_REPLY, &[]);
    proto::encode_option(&mut sent, 77, b"whatever");
    let mut query = Vec::new();
    string(&mut query, "disk");
    query.put_u32(1);
    string(&mut query, "base:allocation");
    proto::encode_option(&mut sent, opt::SET_META_CONTEXT, &query);
    let mut go = Vec::new();
    proto::encode_info_request(&mut go, "disk");
    proto::encode_option(&mut sent, opt::GO, &go);
    sent
}

/// The types of the replies to options.
fn reply_types(mut out: &[u8]) -> Vec<(u32, u32)> {
    let mut types = Vec::new();
    while let Some(proto::OptionReply { option, kind, data }) = proto::decode_option_reply(out).expect("replies") {
        types.push((option, kind));
        out = &out[proto::OPTION_REPLY_HEADER_LEN + data.len()..];
    }
    types
}

#[test]
fn a_full_handshake_in_one_piece_or_byte_by_byte() {
    let sent = full_handshake();
    for step in [1, 7, sent.len()] {
        let mut out = BytesMut::new();
        let mut handshake = Handshake::new(&mut out);
        let mut input = BytesMut::new();
        let mut negotiated = None;
        for piece in sent.chunks(step) {
            assert!(negotiated.is_none());
            input.extend_from_slice(piece);
            if let Step::Transmission(end) = handshake.handle_bytes(&mut input, &mut out, &exports()).expect("valid") {
                negotiated = Some(end);
            }
        }
        let negotiated = negotiated.expect("goes");
        assert!(negotiated.structured_replies && negotiated.block_status);
        assert!(input.is_empty());
        let expected = [
            (opt::LIST, rep::SERVER),
            (opt::LIST, rep::ACK),
            (opt::STARTTLS, rep::ERR_UNSUP),
            (opt::STRUCTURED_REPLY, rep::ACK),
            (77, rep::ERR_UNSUP),
            (opt::SET_META_CONTEXT, rep::META_CONTEXT),
            (opt::SET_META_CONTEXT, rep::ACK),
            (opt::GO, rep::INFO),
            (opt::GO, rep::INFO),
            (opt::GO, rep::ACK),
        ];
        assert_eq!(reply_types(&out[proto::GREETING_LEN..]), expected);
    }
}

#[test]
fn every_truncation_waits_for_more_and_keeps_what_follows() {
    let mut sent = full_handshake();
    for len in 0..sent.len() {
        let mut out = BytesMut::new();
        let mut input = BytesMut::from(&sent[..len]);
        let step = Handshake::new(&mut out).handle_bytes(&mut input, &mut out, &exports());
        assert!(matches!(step, Ok(Step::NeedMore)), "{len}");
    }
    sent.extend_from_slice(b"first request");
    let mut out = BytesMut::new();
    let mut input = BytesMut::from(&sent[..]);
    let step = Handshake::new(&mut out).handle_bytes(&mut input, &mut out, &exports());
    assert!(matches!(step, Ok(Step::Transmission(_))));
    assert_eq!(&input[..], b"first request");
}

/// The end of a negotiation with these options, and what was answered.
fn negotiate(options: &[(u32, &[u8])]) -> (Result<Step<NoIo>, NegotiateExport>, BytesMut) {
    let mut input = BytesMut::from(&[0, 0, 0, 3][..]);
    options.iter().for_each(|(option, data)| proto::encode_option(&mut input, *option, data));
    let mut out = BytesMut::new();
    let mut handshake = Handshake::new(&mut out);
    out.clear();
    let end = handshake.handle_bytes(&mut input, &mut out, &exports());
    (end, out)
}

#[test]
fn refusals() {
    let mut unknown = Vec::new();
    proto::encode_info_request(&mut unknown, "other");
    let (end, out) = negotiate(&[(opt::GO, &unknown), (opt::GO, b"?"), (opt::LIST, b"data"), (opt::ABORT, b"x")]);
    assert!(matches!(end, Ok(Step::Close)));
    let expected = [
        (opt::GO, rep::ERR_UNKNOWN),
        (opt::GO, rep::ERR_INVALID),
        (opt::LIST, rep::ERR_INVALID),
        (opt::ABORT, rep::ACK),
    ];
    assert_eq!(reply_types(&out), expected);
    let (end, _) = negotiate(&[(opt::EXPORT_NAME, b"other")]);
    assert_eq!(end.err(), Some(NegotiateExport::UnknownExport("other".into())));
    let (end, _) = negotiate(&vec![(77, &b""[..]); OPTIONS_MAX as usize + 1]);
    assert_eq!(end.err(), Some(NegotiateExport::TooManyOptions));
}

#[test]
fn a_context_counts_only_for_its_export_and_after_structured_replies() {
    let mut query = Vec::new();
    string(&mut query, "disk");
    query.put_u32(1);
    string(&mut query, "base:allocation");
    let (_, out) = negotiate(&[(opt::SET_META_CONTEXT, &query)]);
    assert_eq!(reply_types(&out), [(opt::SET_META_CONTEXT, rep::ERR_INVALID)]);
    let mut go = Vec::new();
    proto::encode_info_request(&mut go, "");
    let (end, _) = negotiate(&[(opt::STRUCTURED_REPLY, b""), (opt::SET_META_CONTEXT, &query), (opt::GO, &go)]);
    assert!(matches!(end, Ok(Step::Transmission(Negotiated { block_status: false, .. }))));
}

proptest! {
    #[test]
    fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let mut out = BytesMut::new();
        let mut input = BytesMut::from(&bytes[..]);
        Handshake::new(&mut out).handle_bytes(&mut input, &mut out, &exports()).ok();
    }

    #[test]
    fn a_damaged_handshake_never_panics(at in 0usize..200, value: u8) {
        let mut sent = full_handshake();
        let at = at % sent.len();
        sent[at] = value;
        let mut out = BytesMut::new();
        let mut input = BytesMut::from(&sent[..]);
        Handshake::new(&mut out).handle_bytes(&mut input, &mut out, &exports()).ok();
    }
}
