use super::*;
use proptest::prelude::*;

#[test]
fn golden_greeting_and_options() {
    let mut out = Vec::new();
    encode_greeting(&mut out);
    assert_eq!(hex::encode(&out), "4e42444d4147494349484156454f50540003");
    assert_eq!(decode_greeting(&out), Ok(Some(3)));

    out.clear();
    encode_option(&mut out, opt::EXPORT_NAME, b"disk");
    assert_eq!(hex::encode(&out), "49484156454f505400000001000000046469736b");
    assert_eq!(decode_option(&out), Ok(Some((opt::EXPORT_NAME, &b"disk"[..]))));

    out.clear();
    encode_option_reply(&mut out, opt::GO, rep::ERR_UNKNOWN, b"no");
    assert_eq!(hex::encode(&out), "0003e889045565a90000000780000006000000026e6f");
    assert_eq!(
        decode_option_reply(&out),
        Ok(Some(OptionReply { option: opt::GO, kind: rep::ERR_UNKNOWN, data: b"no" }))
    );
}

#[test]
fn golden_information() {
    let mut out = Vec::new();
    encode_info_export(&mut out, opt::GO, 1 << 30, 0x0ded);
    assert_eq!(hex::encode(&out[20..]), "000000000000400000000ded");
    assert_eq!(decode_info_export(&out[20..]), Ok(Some((1 << 30, 0x0ded))));
    assert_eq!(decode_info_export(&[0, 3, 9]), Ok(None));
    assert!(decode_info_export(&[0, 0, 1]).is_err());

    out.clear();
    encode_info_block_size(&mut out, opt::GO);
    assert_eq!(hex::encode(&out[20..]), "0003000002000000100002000000");

    out.clear();
    encode_info_request(&mut out, "d");
    assert_eq!(hex::encode(&out), "000000016400010003");
    let request = InfoRequest { name: "d", wants_block_size: true, wants_name: false };
    assert_eq!(decode_info_request(&out), Ok(request));

    out.clear();
    encode_export_name_reply(&mut out, 512, 1, false);
    assert_eq!(out.len(), 10 + 124);
}

#[test]
fn golden_request_and_replies() {
    let request =
        Request { flags: cmd_flag::FUA, kind: cmd::WRITE, cookie: 0x0102_0304_0506_0708, offset: 4096, len: 512 };
    let mut out = Vec::new();
    encode_request(&mut out, &request);
    assert_eq!(hex::encode(&out), "25609513000100010102030405060708000000000000100000000200");
    assert_eq!(decode_request(&out), Ok(Some(request)));

    out.clear();
    encode_simple_reply(&mut out, errno::EIO, 2);
    assert_eq!(hex::encode(&out), "67446698000000050000000000000002");
    let header = ReplyHeader::Simple { cookie: 2, error: errno::EIO };
    assert_eq!(decode_reply_header(&out), Ok(Some((header, 16))));

    out.clear();
    encode_chunk_header(&mut out, chunk::DONE, chunk::OFFSET_DATA, 3, 9);
    assert_eq!(hex::encode(&out), "668e33ef00010001000000000000000300000009");
    let header = ReplyHeader::Chunk { flags: chunk::DONE, kind: chunk::OFFSET_DATA, cookie: 3, len: 9 };
    assert_eq!(decode_reply_header(&out), Ok(Some((header, 20))));
    assert_eq!(decode_reply_header(&out[..19]), Ok(None));
}

#[test]
fn metadata_queries_are_bounded_by_their_data() {
    let mut data = Vec::new();
    for part in ["disk", "base:allocation"] {
        if part != "disk" {
            data.put_u32(1);
        }
        data.put_u32(part.len() as u32);
        data.put_slice(part.as_bytes());
    }
    let request = MetaContextRequest { name: "disk", queries: vec!["base:allocation"] };
    assert_eq!(decode_meta_context_request(&data), Ok(request));
    for len in 0..data.len() {
        assert!(decode_meta_context_request(&data[..len]).is_err(), "{len}");
    }
    assert!(decode_meta_context_request(&[0, 0, 0, 0, 255, 255, 255, 255]).is_err());
}

#[test]
fn bounds_are_checked_before_the_data_arrives() {
    let mut out = Vec::new();
    encode_option(&mut out, 99, &[]);
    out[12..16].copy_from_slice(&(OPTION_LEN_MAX + 1).to_be_bytes());
    assert!(matches!(decode_option(&out), Err(DecodeMessage::OptionTooLong { option: 99, .. })));
    assert!(decode_client_flags(&[0, 0, 0, 4]).is_err());
    assert!(decode_export_name(&[b'x'; STRING_LEN_MAX + 1]).is_err());
    assert!(decode_export_name(&[0xff]).is_err());
    assert!(matches!(decode_request(b"GET / HTTP/1.1"), Err(DecodeMessage::BadMagic { what: "request", .. })));
}

proptest! {
    #[test]
    fn no_decoder_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        decode_greeting(&bytes).ok();
        decode_client_flags(&bytes).ok();
        decode_option(&bytes).ok();
        decode_option_reply(&bytes).ok();
        decode_info_export(&bytes).ok();
        decode_info_request(&bytes).ok();
        decode_meta_context_request(&bytes).ok();
        decode_export_name(&bytes).ok();
        decode_request(&bytes).ok();
        decode_reply_header(&bytes).ok();
    }

    #[test]
    fn requests_round_trip(flags: u16, kind: u16, cookie: u64, offset: u64, len: u32) {
        let request = Request { flags, kind, cookie, offset, len };
        let mut out = Vec::new();
        encode_request(&mut out, &request);
        prop_assert_eq!(decode_request(&out), Ok(Some(request)));
        for len in 0..out.len() {
            prop_assert_eq!(decode_request(&out[..len]), Ok(None));
        }
    }
}
