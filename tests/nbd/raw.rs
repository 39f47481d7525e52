//! Raw sockets: what no well-behaved client sends, and what their tools can't show.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use evenkeel::gateway::nbd::proto::{self, ReplyHeader, Request, chunk, cmd, cmd_flag, errno, opt, rep};
use evenkeel::gateway::nbd::{IoError, Limits, Observer, OpDone, OpKind};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::setup::{MIB, TestServer, VOLUME, pattern};

/// A client that sends what it is told.
struct Raw {
    stream: UnixStream,
    input: BytesMut,
}

impl Raw {
    /// Connects and takes the greeting; sends `client_flags`.
    async fn connect(test: &TestServer, client_flags: u32) -> Self {
        let stream = UnixStream::connect(test.socket()).await.expect("connects");
        let mut raw = Self { stream, input: BytesMut::new() };
        let greeting = raw.take(proto::GREETING_LEN).await;
        assert_eq!(proto::decode_greeting(&greeting), Ok(Some(3)));
        raw.stream.write_u32(client_flags).await.expect("sends");
        raw
    }

    /// Connects and enters the transmission phase.
    async fn transmission(test: &TestServer, structured: bool) -> Self {
        let mut raw = Self::connect(test, 3).await;
        if structured {
            assert_eq!(raw.option(opt::STRUCTURED_REPLY, &[]).await.0, rep::ACK);
        }
        let mut go = Vec::new();
        proto::encode_info_request(&mut go, VOLUME);
        assert_eq!(raw.option(opt::GO, &go).await.0, rep::ACK);
        raw
    }

    /// Sends an option; gives the type and data of its last reply.
    async fn option(&mut self, option: u32, data: &[u8]) -> (u32, Vec<u8>) {
        let mut out = BytesMut::new();
        proto::encode_option(&mut out, option, data);
        self.send(&out).await;
        loop {
            let header = self.peek(proto::OPTION_REPLY_HEADER_LEN).await;
            let len = (&header[16..20]).get_u32() as usize;
            let bytes = self.take(proto::OPTION_REPLY_HEADER_LEN + len).await;
            let reply = proto::decode_option_reply(&bytes).expect("valid").expect("whole");
            assert_eq!(reply.option, option);
            if reply.kind == rep::ACK || reply.kind & rep::ERR_BIT != 0 {
                return (reply.kind, reply.data.to_vec());
            }
        }
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.expect("sends");
    }

    async fn request(&mut self, kind: u16, flags: u16, cookie: u64, offset: u64, len: u32, payload: &[u8]) {
        let mut out = BytesMut::new();
        proto::encode_request(&mut out, &Request { flags, kind, cookie, offset, len });
        out.put_slice(payload);
        self.send(&out).await;
    }

    async fn peek(&mut self, len: usize) -> Bytes {
        while self.input.len() < len {
            assert_ne!(self.stream.read_buf(&mut self.input).await.expect("receives"), 0, "the server closed");
        }
        Bytes::copy_from_slice(&self.input[..len])
    }

    async fn take(&mut self, len: usize) -> Bytes {
        let bytes = self.peek(len).await;
        self.input.advance(len);
        bytes
    }

    /// The next simple reply: its cookie and error.
    async fn simple_reply(&mut self) -> (u64, u32) {
        match proto::decode_reply_header(&self.take(proto::SIMPLE_REPLY_LEN).await) {
            Ok(Some((ReplyHeader::Simple { cookie, error }, _))) => (cookie, error),
            other => panic!("not a simple reply: {other:?}"),
        }
    }

    /// The next chunk: flags, type, cookie, payload.
    async fn chunk(&mut self) -> (u16, u16, u64, Bytes) {
        match proto::decode_reply_header(&self.take(proto::CHUNK_HEADER_LEN).await) {
            Ok(Some((ReplyHeader::Chunk { flags, kind, cookie, len }, _))) => {
                (flags, kind, cookie, self.take(len as usize).await)
            }
            other => panic!("not a chunk: {other:?}"),
        }
    }

    /// Waits until the server closes the connection.
    async fn closed(&mut self) {
        self.input.clear();
        // A reset is a close too: the server had not read everything.
        while matches!(self.stream.read_buf(&mut self.input).await, Ok(len) if len > 0) {
            self.input.clear();
        }
    }
}

#[tokio::test]
async fn unknown_options_and_names_are_refused_and_the_old_way_in_works() {
    let test = TestServer::start(MIB).await;
    let mut raw = Raw::connect(&test, 3).await;
    assert_eq!(raw.option(4711, b"data").await.0, rep::ERR_UNSUP);
    assert_eq!(raw.option(opt::STARTTLS, &[]).await.0, rep::ERR_UNSUP);
    let mut go = Vec::new();
    proto::encode_info_request(&mut go, "other");
    let (kind, text) = raw.option(opt::GO, &go).await;
    assert_eq!((kind, &text[..]), (rep::ERR_UNKNOWN, &b"no export named \"other\""[..]));
    assert_eq!(raw.option(opt::ABORT, &[]).await.0, rep::ACK);
    raw.closed().await;

    for (client_flags, zeroes) in [(1, 124), (3, 0)] {
        let mut raw = Raw::connect(&test, client_flags).await;
        let mut out = BytesMut::new();
        proto::encode_option(&mut out, opt::EXPORT_NAME, VOLUME.as_bytes());
        raw.send(&out).await;
        let reply = raw.take(10 + zeroes).await;
        assert_eq!((&reply[..8]).get_u64(), MIB);
        raw.request(cmd::WRITE, 0, 1, 0, 512, &[7; 512]).await;
        assert_eq!(raw.simple_reply().await, (1, 0));
        raw.request(cmd::READ, 0, 2, 0, 512, &[]).await;
        assert_eq!(raw.simple_reply().await, (2, 0));
        assert_eq!(raw.take(512).await[..], [7; 512]);
        raw.request(cmd::DISC, 0, 3, 0, 0, &[]).await;
        raw.closed().await;
    }

    let mut raw = Raw::connect(&test, 3).await;
    let mut out = BytesMut::new();
    proto::encode_option(&mut out, opt::EXPORT_NAME, b"other");
    raw.send(&out).await;
    raw.closed().await;
    test.stop().await;
}

#[tokio::test]
async fn garbage_closes_its_own_connection_only() {
    let test = TestServer::start(MIB).await;
    let mut good = Raw::transmission(&test, true).await;
    for seed in 0..20 {
        let mut raw = Raw::connect(&test, if seed % 2 == 0 { 3 } else { 0xffff_ffff }).await;
        // The server may close while this is being sent.
        raw.stream.write_all(&pattern(100_000, seed)).await.ok();
        raw.closed().await;
        let mut raw = Raw::transmission(&test, seed % 2 == 0).await;
        raw.stream.write_all(&pattern(100_000, seed)).await.ok();
        raw.closed().await;
    }
    let mut huge = Raw::connect(&test, 3).await;
    huge.send(&[&proto::OPTION_MAGIC.to_be_bytes()[..], &[0, 0, 0, 77, 255, 255, 255, 255]].concat()).await;
    huge.closed().await;
    good.request(cmd::READ, 0, 1, 0, 512, &[]).await;
    assert_eq!(good.chunk().await.2, 1);
    test.stop().await;
}

#[tokio::test]
async fn a_half_handshake_is_ended_and_places_are_bounded() {
    let limits = Limits { handshake_time_max: Duration::from_millis(100), connections_max: 2, ..Limits::default() };
    let test = TestServer::with_limits(MIB, limits).await;
    let mut half = Raw::connect(&test, 3).await;
    half.send(&proto::OPTION_MAGIC.to_be_bytes()[..5]).await;
    half.closed().await;
    let mut first = Raw::transmission(&test, true).await;
    let _second = Raw::transmission(&test, true).await;
    let mut third = Raw { stream: UnixStream::connect(test.socket()).await.expect("connects"), input: BytesMut::new() };
    third.closed().await;
    first.request(cmd::FLUSH, 0, 1, 0, 0, &[]).await;
    assert_eq!(first.simple_reply().await, (1, 0));
    test.stop().await;
}

#[tokio::test]
async fn the_largest_request_and_larger_ones() {
    let test = TestServer::start(96 * MIB).await;
    let mut raw = Raw::transmission(&test, false).await;
    let largest = proto::BLOCK_SIZE_MAX;
    let data = pattern(largest as usize, 5);
    raw.request(cmd::WRITE, 0, 1, 4096, largest, &data).await;
    assert_eq!(raw.simple_reply().await, (1, 0));
    raw.request(cmd::READ, 0, 2, 4096, largest, &[]).await;
    assert_eq!(raw.simple_reply().await, (2, 0));
    assert!(raw.take(data.len()).await == data, "read differs from write");
    // One sector more: refused, its payload skipped, and the connection goes on.
    raw.request(cmd::WRITE, 0, 3, 4096, largest + 512, &vec![0; largest as usize + 512]).await;
    assert_eq!(raw.simple_reply().await, (3, errno::EINVAL));
    raw.request(cmd::READ, 0, 4, 4096, largest + 512, &[]).await;
    assert_eq!(raw.simple_reply().await, (4, errno::EINVAL));
    raw.request(cmd::READ, 0, 5, 4096, 512, &[]).await;
    assert_eq!(raw.simple_reply().await, (5, 0));
    assert_eq!(raw.take(512).await[..], data[..512]);
    // A payload that nobody should have to skip.
    raw.request(cmd::WRITE, 0, 6, 0, u32::MAX - 511, &[]).await;
    raw.closed().await;
    test.stop().await;
}

#[tokio::test]
async fn refused_requests_carry_their_reason() {
    let test = TestServer::start(MIB).await;
    let mut raw = Raw::transmission(&test, true).await;
    let cases: [(u16, u16, u64, u32, u32); 8] = [
        (cmd::READ, 0, MIB, 512, errno::EINVAL),
        (cmd::TRIM, 0, MIB - 512, 1024, errno::EINVAL),
        (cmd::WRITE, 0, MIB - 512, 1024, errno::ENOSPC),
        (cmd::WRITE_ZEROES, 0, MIB, 512, errno::ENOSPC),
        (cmd::WRITE, 0, 100, 512, errno::EINVAL),
        (cmd::WRITE_ZEROES, cmd_flag::NO_HOLE | cmd_flag::FAST_ZERO, 0, 512, errno::ENOTSUP),
        (cmd::BLOCK_STATUS, 0, 0, 512, errno::EINVAL), // no context was selected
        (99, 0, 0, 512, errno::EINVAL),
    ];
    for (cookie, (kind, flags, offset, len, error)) in (1..).zip(cases) {
        let payload = if kind == cmd::WRITE { vec![9; len as usize] } else { vec![] };
        raw.request(kind, flags, cookie, offset, len, &payload).await;
        let (flags, kind, found, mut payload) = raw.chunk().await;
        assert_eq!((flags, kind, found), (chunk::DONE, chunk::ERROR, cookie));
        assert_eq!(payload.get_u32(), error, "case {cookie}");
        assert_eq!(payload.get_u16() as usize, payload.len());
    }
    for (kind, cookie) in [(cmd::READ, 20), (cmd::WRITE, 21), (cmd::TRIM, 22), (cmd::CACHE, 23)] {
        raw.request(kind, 0, cookie, 0, 0, &[]).await;
        if kind == cmd::READ {
            assert_eq!(raw.chunk().await, (chunk::DONE, chunk::NONE, cookie, Bytes::new()));
        } else {
            assert_eq!(raw.simple_reply().await, (cookie, 0));
        }
    }
    test.stop().await;
}

#[tokio::test]
async fn a_stalled_read_holds_nobody_up() {
    let test = TestServer::start(MIB).await;
    test.backend.gate.send_replace(0);
    let mut raw = Raw::transmission(&test, true).await;
    raw.request(cmd::READ, 0, 1, 0, 4096, &[]).await;
    for cookie in 2..100 {
        raw.request(cmd::READ, 0, cookie, cookie * 4096, 4096, &[]).await;
        assert_eq!(raw.chunk().await.2, cookie);
    }
    test.backend.gate.send_replace(u64::MAX);
    assert_eq!(raw.chunk().await.2, 1);
    test.stop().await;
}

#[tokio::test]
async fn df_gives_one_chunk_and_its_absence_holes() {
    let test = TestServer::start(4 * MIB).await;
    let mut raw = Raw::transmission(&test, true).await;
    let data = pattern(MIB as usize, 11);
    raw.request(cmd::WRITE, cmd_flag::FUA, 1, MIB, MIB as u32, &data).await;
    assert_eq!(raw.simple_reply().await, (1, 0));
    raw.request(cmd::READ, cmd_flag::DF, 2, 0, 4 * MIB as u32, &[]).await;
    let (flags, kind, cookie, mut payload) = raw.chunk().await;
    assert_eq!((flags, kind, cookie, payload.get_u64()), (chunk::DONE, chunk::OFFSET_DATA, 2, 0));
    assert!(payload[..1 << 20].iter().chain(&payload[2 << 20..]).all(|byte| *byte == 0));
    assert!(payload[1 << 20..2 << 20] == data, "read differs from write");
    raw.request(cmd::READ, 0, 3, 0, 4 * MIB as u32, &[]).await;
    let kinds = [raw.chunk().await, raw.chunk().await, raw.chunk().await].map(|(flags, kind, _, _)| (flags, kind));
    assert_eq!(kinds, [(0, chunk::OFFSET_HOLE), (0, chunk::OFFSET_DATA), (chunk::DONE, chunk::OFFSET_HOLE)]);
    test.stop().await;
}

#[tokio::test]
async fn more_requests_than_the_limits_allow_are_all_answered() {
    let limits = Limits { in_flight_max: 4, in_flight_bytes_max: 33 << 20, ..Limits::default() };
    let test = TestServer::with_limits(64 * MIB, limits).await;
    let mut raw = Raw::transmission(&test, true).await;
    // Nothing is read until all is sent: the server must hold back, and lose nothing.
    let count = 300;
    for cookie in 0..count {
        raw.request(cmd::READ, cmd_flag::DF, cookie, (cookie % 60) * MIB, MIB as u32, &[]).await;
    }
    let mut seen = vec![false; count as usize];
    for _ in 0..count {
        let (_, _, cookie, payload) = raw.chunk().await;
        assert_eq!(payload.len() as u64, MIB + 8);
        assert!(!std::mem::replace(&mut seen[cookie as usize], true));
    }
    test.stop().await;
}

#[tokio::test]
async fn a_lost_clients_write_cannot_overwrite_its_successors() {
    let test = TestServer::start(MIB).await;
    test.backend.gate.send_replace(0);
    let mut held = test.backend.held.subscribe();
    let mut old = Raw::transmission(&test, true).await;
    old.request(cmd::WRITE, 0, 1, 0, 8192, &[1; 8192]).await;
    held.wait_for(|held| *held == 1).await.expect("the write reaches the backend");
    drop(old);
    let mut new = Raw::transmission(&test, true).await;
    new.request(cmd::WRITE, 0, 1, 4096, 4096, &[2; 4096]).await;
    // Requests that don't overlap go on, and their replies show that the write still waits.
    for cookie in 2..10 {
        new.request(cmd::WRITE, 0, cookie, cookie * 8192, 4096, &[3; 4096]).await;
        assert_eq!(new.simple_reply().await, (cookie, 0));
    }
    test.backend.gate.send_replace(u64::MAX);
    assert_eq!(new.simple_reply().await, (1, 0));
    new.request(cmd::READ, 0, 11, 0, 8192, &[]).await;
    let (_, _, _, payload) = new.chunk().await;
    assert_eq!(payload[8..8 + 4096], [1; 4096]);
    assert_eq!(payload[8 + 4096..], [2; 4096]);
    test.stop().await;
}

#[tokio::test]
async fn what_a_lost_client_left_behind_the_limit_is_not_begun() {
    let limits = Limits { in_flight_max: 1, ..Limits::default() };
    let test = TestServer::with_limits(MIB, limits).await;
    test.backend.gate.send_replace(0);
    let mut held = test.backend.held.subscribe();
    let mut old = Raw::transmission(&test, true).await;
    old.request(cmd::WRITE, 0, 1, 0, 4096, &[1; 4096]).await;
    held.wait_for(|held| *held == 1).await.expect("the write reaches the backend");
    old.request(cmd::WRITE, 0, 2, 4096, 4096, &[1; 4096]).await; // waits in the socket
    drop(old);
    let mut new = Raw::transmission(&test, true).await;
    new.request(cmd::WRITE, 0, 1, 4096, 4096, &[2; 4096]).await;
    assert_eq!(new.simple_reply().await, (1, 0));
    // Opened, the old connection ends; a write over its first one is answered when it has.
    test.backend.gate.send_replace(u64::MAX);
    new.request(cmd::WRITE, 0, 2, 0, 4096, &[2; 4096]).await;
    assert_eq!(new.simple_reply().await, (2, 0));
    new.request(cmd::READ, 0, 3, 0, 8192, &[]).await;
    assert_eq!(new.chunk().await.3[8..], [2; 8192]);
    let backend = test.backend.clone();
    test.stop().await; // ends when the old connection, too, is over
    assert_eq!(backend.contents(4096, 4096)[..], [2; 4096]);
}

#[tokio::test]
async fn a_farewell_waits_for_what_is_in_flight() {
    let test = TestServer::start(MIB).await;
    test.backend.gate.send_replace(0);
    let mut raw = Raw::transmission(&test, true).await;
    raw.request(cmd::WRITE, 0, 1, 0, 4096, &[1; 4096]).await;
    raw.request(cmd::DISC, 0, 0, 0, 0, &[]).await;
    raw.stream.shutdown().await.expect("shuts down");
    test.backend.gate.send_replace(u64::MAX);
    assert_eq!(raw.simple_reply().await, (1, 0));
    raw.closed().await;
    test.stop().await;
}

/// Notes each finished operation.
#[derive(Default)]
struct Log(Mutex<Vec<(OpKind, u32, Option<IoError>)>>);

impl Observer for Log {
    fn op_done(&self, op: &OpDone) {
        self.0.lock().push((op.kind, op.len, op.error));
    }
}

#[tokio::test]
async fn the_observer_hears_of_each_operation() {
    let log = Arc::new(Log::default());
    let test = TestServer::with_observer(MIB, Limits::default(), log.clone()).await;
    let mut raw = Raw::transmission(&test, false).await;
    raw.request(cmd::WRITE, 0, 1, 0, 512, &[1; 512]).await;
    raw.simple_reply().await;
    raw.request(cmd::WRITE, 0, 2, MIB, 512, &[1; 512]).await;
    raw.simple_reply().await;
    raw.request(cmd::FLUSH, 0, 3, 0, 0, &[]).await;
    raw.simple_reply().await;
    let expected = [(OpKind::Write, 512, None), (OpKind::Write, 512, Some(IoError::NoSpace)), (OpKind::Flush, 0, None)];
    assert_eq!(*log.0.lock(), expected);
    test.stop().await;
}

#[tokio::test]
async fn a_stop_finishes_what_is_in_flight_and_refuses_what_is_new() {
    let test = TestServer::start(MIB).await;
    test.backend.gate.send_replace(0);
    let mut held = test.backend.held.subscribe();
    let mut raw = Raw::transmission(&test, false).await;
    raw.request(cmd::WRITE, 0, 1, 0, 4096, &[1; 4096]).await;
    held.wait_for(|held| *held == 1).await.expect("the write reaches the backend");
    let (socket, backend) = (test.socket(), test.backend.clone());
    let stopping = tokio::spawn(test.server.stop(Duration::from_secs(60)));
    while socket.exists() {
        tokio::task::yield_now().await;
    }
    raw.request(cmd::WRITE, 0, 2, 4096, 4096, &[1; 4096]).await;
    assert_eq!(raw.simple_reply().await, (2, errno::ESHUTDOWN));
    backend.gate.send_replace(u64::MAX);
    assert_eq!(raw.simple_reply().await, (1, 0));
    raw.closed().await;
    stopping.await.expect("stops");
}

#[tokio::test]
async fn a_stop_does_not_wait_for_a_stalled_backend() {
    let test = TestServer::start(MIB).await;
    test.backend.gate.send_replace(0);
    let mut held = test.backend.held.subscribe();
    let mut raw = Raw::transmission(&test, false).await;
    raw.request(cmd::WRITE, 0, 1, 0, 4096, &[1; 4096]).await;
    held.wait_for(|held| *held == 1).await.expect("the write reaches the backend");
    test.server.stop(Duration::ZERO).await;
    assert_eq!(raw.simple_reply().await, (1, errno::ESHUTDOWN));
    raw.closed().await;
}
