use std::io::Write;
use std::sync::atomic::Ordering;

use super::super::test_backend::NoIo;
use super::super::{Export, NoObserver};
use super::*;

const SIZE: u64 = 64 << 20;

fn request(kind: u16, flags: u16, offset: u64, len: u32) -> Request {
    Request { flags, kind, cookie: 1, offset, len }
}

#[test]
fn requests_are_checked_as_the_protocol_says() {
    let check = |kind, flags, offset, len| check_request(&request(kind, flags, offset, len), SIZE, false);
    assert_eq!(check(cmd::READ, 0, 0, 4096), Ok(OpKind::Read));
    assert_eq!(check(cmd::READ, cmd_flag::FUA | cmd_flag::DF, SIZE - 512, 512), Ok(OpKind::Read));
    assert_eq!(check(cmd::WRITE, cmd_flag::FUA, 0, 32 << 20), Ok(OpKind::Write));
    assert_eq!(check(cmd::TRIM, 0, 0, SIZE as u32), Ok(OpKind::Trim));
    assert_eq!(check(cmd::FLUSH, 0, 0, 0), Ok(OpKind::Flush));
    assert_eq!(check(cmd::CACHE, 0, 0, 4096), Ok(OpKind::Cache));
    assert_eq!(check(cmd::WRITE_ZEROES, cmd_flag::FAST_ZERO, 0, 4096), Ok(OpKind::WriteZeroes));
    let both = cmd_flag::FAST_ZERO | cmd_flag::NO_HOLE;
    assert_eq!(check(cmd::WRITE_ZEROES, both, 0, 4096), Err(IoError::NotSupported));
    for kind in [cmd::READ, cmd::WRITE, cmd::TRIM, cmd::CACHE, cmd::WRITE_ZEROES, cmd::BLOCK_STATUS] {
        let beyond = if matches!(kind, cmd::WRITE | cmd::WRITE_ZEROES) { IoError::NoSpace } else { IoError::Invalid };
        assert_eq!(check(kind, 0, SIZE - 512, 1024), Err(beyond), "{kind}");
        assert_eq!(check(kind, 0, u64::MAX - 511, 1024), Err(beyond), "{kind}");
        assert_eq!(check(kind, 0, 100, 512), Err(IoError::Invalid), "{kind}");
        assert_eq!(check(kind, 0, 512, 100), Err(IoError::Invalid), "{kind}");
        assert_eq!(check(kind, 1 << 9, 0, 512), Err(IoError::Invalid), "{kind}");
    }
    assert_eq!(check(cmd::READ, 0, 0, (32 << 20) + 512), Err(IoError::Invalid));
    assert_eq!(check(cmd::READ, cmd_flag::DF, 0, (32 << 20) + 512), Err(IoError::TooLong));
    assert_eq!(check(cmd::WRITE, cmd_flag::DF, 0, 512), Err(IoError::Invalid));
    assert_eq!(check(99, 0, 0, 512), Err(IoError::Invalid));
    let read_only = |kind| check_request(&request(kind, 0, 0, 512), SIZE, true);
    assert_eq!(read_only(cmd::WRITE), Err(IoError::ReadOnly));
    assert_eq!(read_only(cmd::READ), Ok(OpKind::Read));
}

#[test]
fn a_backends_wrong_length_is_an_error() {
    let read = request(cmd::READ, 0, 0, 1024);
    let outcome = |segments| Outcome::Read(ReadReply::Segments(segments));
    let data = Segment::Data(Bytes::from(vec![1; 512]));
    assert!(check_outcome(&read, outcome(vec![data.clone(), Segment::Hole(512)])).is_ok());
    assert!(check_outcome(&read, outcome(vec![data])).is_err());
    assert!(check_outcome(&read, Outcome::Read(ReadReply::Data(Bytes::from(vec![0; 1536])))).is_err());
}

#[test]
fn extents_are_merged_cut_and_never_empty() {
    let extent = |len, hole| Extent { len, hole, zero: hole };
    let merged = trim_extents(vec![extent(512, true), extent(512, true), extent(4096, false)], 2048, 16);
    assert_eq!(merged, [extent(1024, true), extent(1024, false)]);
    let one = trim_extents(vec![extent(512, true), extent(512, true), extent(512, false), extent(512, true)], 2048, 1);
    assert_eq!(one, [extent(1024, true)]);
    assert_eq!(trim_extents(vec![], 2048, 1), [extent(2048, false)]);
    assert_eq!(trim_extents(vec![extent(0, true)], 2048, 1), [extent(2048, false)]);
    let many = (0..10_000).map(|i| extent(512, i % 2 == 0)).collect();
    assert_eq!(trim_extents(many, u32::MAX, EXTENTS_MAX).len(), EXTENTS_MAX);
}

/// Writes begun for a client that sent one and closed, before the server looked.
async fn writes_begun(has_successor: bool, closed: bool) -> u64 {
    let backend = Arc::new(NoIo::default());
    let export = Export::new("disk", backend.clone());
    let (near, mut far) = std::os::unix::net::UnixStream::pair().expect("a pair");
    near.set_nonblocking(true).expect("sets");
    let near = UnixStream::from_std(near).expect("registers");
    let overlap = export.overlap.clone();
    let negotiated = Negotiated { export, structured_replies: true, block_status: false };
    let mut connection = Connection::new(near, BytesMut::new(), negotiated, Arc::new(NoObserver), Limits::default());
    let mut bytes = BytesMut::new();
    proto::encode_request(&mut bytes, &request(cmd::WRITE, 0, 0, 512));
    bytes.resize(bytes.len() + 512, 7);
    far.write_all(&bytes).expect("sends");
    let far = (!closed).then_some(far);
    if has_successor {
        overlap.connection_id();
    }
    if far.is_some() {
        while backend.writes.load(Ordering::Relaxed) == 0 {
            assert!(poll_fn(|cx| Poll::Ready(connection.poll_run(cx).is_pending())).await);
            tokio::task::yield_now().await;
        }
    } else {
        // A client that has gone is no failure, or a broken pipe; the connection ends either way.
        poll_fn(|cx| connection.poll_run(cx)).await.ok();
    }
    backend.writes.load(Ordering::Relaxed)
}

#[tokio::test]
async fn a_superseded_connection_begins_nothing_for_a_client_that_has_gone() {
    assert_eq!(writes_begun(true, true).await, 0);
    assert_eq!(writes_begun(false, true).await, 1);
    assert_eq!(writes_begun(true, false).await, 1, "several connections of one client are served alike");
}
