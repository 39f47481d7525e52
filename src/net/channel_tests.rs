use std::net::SocketAddr;

use super::*;
use crate::core::ids::NodeId;
use crate::net::identity::Role;
use crate::net::quic::Endpoint;
use crate::net::testing::TestCluster;
use crate::net::tls::Expect;
use crate::net::tuning::{LinkClass, Tuning};
use crate::wire::frame::PAYLOAD_BYTES_MAX;

struct Pair {
    a: Endpoint,
    _b: Endpoint,
    dialed: Link,
    accepted: Link,
}

async fn pair(class: LinkClass) -> Pair {
    let cluster = TestCluster::live(1);
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let bind = |id| Endpoint::bind(any, cluster.identity(Role::Node(NodeId(id))), Tuning::default()).unwrap();
    let (a, b) = (bind(1), bind(2));
    let (dialed, accepted) = tokio::join!(a.connect(b.local_addr().unwrap(), Expect::AnyNode, class), b.accept());
    Pair { a, dialed: dialed.unwrap(), accepted: accepted.unwrap(), _b: b }
}

type Halves = (Sender, Receiver);

async fn channels(pair: &Pair) -> (Halves, Halves) {
    let hello = Frame::new(9, &b"hello"[..]);
    let (opened, accepted) = tokio::join!(pair.dialed.open_channel(hello.clone()), pair.accepted.accept_channel());
    let (got, accepted) = accepted.unwrap();
    assert_eq!(got, hello);
    (opened.unwrap().split(), accepted.split())
}

fn numbered(n: u32) -> Frame {
    Frame::new(1, Bytes::copy_from_slice(&n.to_le_bytes()))
}

#[tokio::test]
async fn frames_arrive_in_order_both_ways() {
    let pair = pair(LinkClass::Foreground).await;
    let ((a_send, mut a_recv), (b_send, mut b_recv)) = channels(&pair).await;
    let count = 5000;
    let echo = tokio::spawn(async move {
        let mut batch = Vec::new();
        while b_recv.recv_batch(&mut batch).await.is_some() {
            for frame in batch.drain(..) {
                b_send.send_async(frame).await.unwrap();
            }
        }
        b_recv.close_reason().cloned()
    });
    for n in 0..count {
        a_send.send_async(numbered(n)).await.unwrap();
    }
    for n in 0..count {
        assert_eq!(a_recv.recv().await, Some(numbered(n)));
    }
    drop(a_send);
    assert_eq!(echo.await.unwrap(), Some(CloseReason::Ended));
    assert_eq!(a_recv.recv().await, None);
    assert_eq!(a_recv.close_reason(), Some(&CloseReason::Ended));
}

#[tokio::test]
async fn many_small_frames_share_packets() {
    let pair = pair(LinkClass::Foreground).await;
    let ((a_send, _a_recv), (_b_send, mut b_recv)) = channels(&pair).await;
    let before = pair.dialed.udp_datagrams().0;
    for n in 0..1000 {
        a_send.send(numbered(n)).unwrap();
    }
    let mut batch = Vec::new();
    while batch.len() < 1000 {
        b_recv.recv_batch(&mut batch).await.unwrap();
    }
    let datagrams = pair.dialed.udp_datagrams().0 - before;
    assert!(datagrams < 100, "1,000 frames of 16 B took {datagrams} datagrams");
}

#[tokio::test]
async fn the_largest_frame_passes_and_a_larger_one_is_refused() {
    let pair = pair(LinkClass::Resync).await;
    let ((a_send, _a_recv), (_b_send, mut b_recv)) = channels(&pair).await;
    let frame = Frame::with_payload(3, &b"meta"[..], vec![5; PAYLOAD_BYTES_MAX]);
    a_send.send(frame.clone()).unwrap();
    assert!(b_recv.recv().await.unwrap() == frame);
    let longer = Frame::with_payload(3, Bytes::new(), vec![5; PAYLOAD_BYTES_MAX + 1]);
    assert!(matches!(a_send.send(longer), Err(SendFrameError::Frame(_))));
    a_send.send(numbered(1)).unwrap();
    assert_eq!(b_recv.recv().await, Some(numbered(1)), "a refused frame leaves the channel whole");
}

#[tokio::test]
async fn a_peer_that_does_not_read_stops_the_sender_within_bounds() {
    let pair = pair(LinkClass::Foreground).await;
    let ((a_send, _a_recv), (_b_send, mut b_recv)) = channels(&pair).await;
    let frame = Frame::with_payload(1, Bytes::new(), vec![1; 256 << 10]);
    let mut sent = 0;
    // QUIC takes frames for as long as it has window; a wait that doesn't end shows that everything is full.
    let push = async {
        loop {
            a_send.send_async(frame.clone()).await.unwrap();
            sent += 1;
        }
    };
    let stalled = tokio::time::timeout(Duration::from_millis(500), push).await;
    assert!(stalled.is_err());
    assert!(a_send.queued_bytes() <= QUEUE_BYTES_MAX);
    let tuning = Tuning::default();
    let bound = QUEUE_BYTES_MAX + (tuning.stream_window_bytes + tuning.link_window_bytes) as usize;
    assert!(sent * frame.payload.len() <= bound, "{sent} frames are in flight");
    assert!(matches!(a_send.send(frame.clone()), Err(SendFrameError::Full(back)) if *back == frame));
    for _ in 0..sent {
        assert!(b_recv.recv().await.unwrap() == frame);
    }
    a_send.send_async(numbered(1)).await.unwrap();
    assert_eq!(b_recv.recv().await, Some(numbered(1)), "reading frees the sender");
}

#[tokio::test]
async fn what_was_queued_is_delivered_after_all_handles_are_dropped() {
    let pair = pair(LinkClass::Control).await;
    let ((a_send, a_recv), (_b_send, mut b_recv)) = channels(&pair).await;
    let frame = Frame::with_payload(1, Bytes::new(), vec![1; 1 << 20]);
    for _ in 0..4 {
        a_send.send(frame.clone()).unwrap();
    }
    let Pair { a: _a, _b, dialed, accepted: _accepted } = pair;
    drop((a_send, a_recv, dialed));
    for _ in 0..4 {
        assert!(b_recv.recv().await.unwrap() == frame);
    }
    assert_eq!(b_recv.recv().await, None);
    assert_eq!(b_recv.close_reason(), Some(&CloseReason::Ended));
}

/// Polls a condition that needs the network's help.
async fn until<T>(mut probe: impl FnMut() -> Option<T>) -> T {
    loop {
        if let Some(found) = probe() {
            return found;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn the_close_reason_is_visible_at_both_halves() {
    let pair = pair(LinkClass::Control).await;
    let ((a_send, mut a_recv), (b_send, mut b_recv)) = channels(&pair).await;
    pair.accepted.close("drained");
    assert_eq!(a_recv.recv().await, None);
    assert_eq!(a_recv.close_reason(), Some(&CloseReason::Peer("drained".into())));
    let reason = until(|| a_send.close_reason()).await;
    assert_eq!(reason, CloseReason::Peer("drained".into()));
    assert!(matches!(a_send.send(numbered(1)), Err(SendFrameError::Closed(CloseReason::Peer(_)))));
    assert_eq!(b_recv.recv().await, None);
    assert_eq!(b_recv.close_reason(), Some(&CloseReason::Local));
    assert_eq!(until(|| b_send.close_reason()).await, CloseReason::Local);
}

#[tokio::test]
async fn a_dropped_receiver_ends_the_peers_sender_and_no_other_channel() {
    let pair = pair(LinkClass::Control).await;
    let ((a_send, _a_recv), (_b_send, b_recv)) = channels(&pair).await;
    let ((other_send, _r), (_s, mut other_recv)) = channels(&pair).await;
    drop(b_recv);
    assert_eq!(until(|| a_send.close_reason()).await, CloseReason::ChannelReset);
    other_send.send(numbered(4)).unwrap();
    assert_eq!(other_recv.recv().await, Some(numbered(4)));
}

#[tokio::test]
async fn a_silent_peer_is_noticed() {
    let pair = pair(LinkClass::Lease).await;
    let ((a_send, mut a_recv), _b) = channels(&pair).await;
    // To the dialer, an endpoint whose socket is somewhere else looks like a killed process.
    let elsewhere = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    pair.a.rebind_for_test(elsewhere);
    let hole = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    pair._b.rebind_for_test(hole);
    assert_eq!(a_recv.recv().await, None);
    assert_eq!(a_recv.close_reason(), Some(&CloseReason::TimedOut));
    assert_eq!(until(|| a_send.close_reason()).await, CloseReason::TimedOut);
}

#[tokio::test]
async fn a_stream_that_is_not_frames_ends_its_channel_alone() {
    let pair = pair(LinkClass::Control).await;
    let ((good_send, _r), (_s, mut good_recv)) = channels(&pair).await;
    let (mut raw, _raw_recv) = pair.dialed.connection.open_bi().await.unwrap();
    let mut encoder = Encoder::default();
    encoder.push(numbered(1)).unwrap();
    let mut bytes = encoder.pieces().concat();
    bytes.extend([0; 12]);
    raw.write_all(&bytes).await.unwrap();
    let (hello, channel) = pair.accepted.accept_channel().await.unwrap();
    assert_eq!(hello, numbered(1));
    let (_sender, mut receiver) = channel.split();
    assert_eq!(receiver.recv().await, None);
    assert!(matches!(receiver.close_reason(), Some(CloseReason::Protocol(_))));
    good_send.send(numbered(2)).unwrap();
    assert_eq!(good_recv.recv().await, Some(numbered(2)));
}

#[tokio::test]
async fn a_stream_cut_inside_a_frame_is_a_violation() {
    let pair = pair(LinkClass::Control).await;
    let (mut raw, _raw_recv) = pair.dialed.connection.open_bi().await.unwrap();
    let mut encoder = Encoder::default();
    encoder.push(numbered(1)).unwrap();
    encoder.push(numbered(2)).unwrap();
    let bytes = encoder.pieces().concat();
    raw.write_all(&bytes[..bytes.len() - 1]).await.unwrap();
    raw.finish().unwrap();
    let (_, channel) = pair.accepted.accept_channel().await.unwrap();
    let (_sender, mut receiver) = channel.split();
    assert_eq!(receiver.recv().await, None);
    assert!(matches!(receiver.close_reason(), Some(CloseReason::Protocol(_))));
}
