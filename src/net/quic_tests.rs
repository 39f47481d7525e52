use std::net::{IpAddr, Ipv4Addr};

use super::*;
use crate::core::ids::NodeId;
use crate::net::identity::{Role, RoleKind};
use crate::net::testing::TestCluster;
use crate::net::tuning::PathKind;

const ANY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

fn node(id: u32) -> Role {
    Role::Node(NodeId(id))
}

fn endpoint(cluster: &TestCluster, role: Role) -> (Endpoint, SocketAddr) {
    let endpoint = Endpoint::bind(ANY, cluster.identity(role), Tuning::default()).unwrap();
    let addr = endpoint.local_addr().unwrap();
    (endpoint, addr)
}

#[tokio::test]
async fn a_link_has_two_verified_ends_and_a_class() {
    let cluster = TestCluster::live(1);
    let (a, _) = endpoint(&cluster, node(1));
    let (b, addr) = endpoint(&cluster, node(2));
    for class in [LinkClass::Foreground, LinkClass::Resync, LinkClass::Control, LinkClass::Lease] {
        let (dialed, accepted) = tokio::join!(a.connect(addr, Expect::Node(NodeId(2)), class), b.accept());
        let (dialed, accepted) = (dialed.unwrap(), accepted.unwrap());
        assert_eq!((&dialed.peer().role, dialed.class()), (&node(2), class));
        assert_eq!((&accepted.peer().role, accepted.class()), (&node(1), class));
        assert_eq!(accepted.remote_addr(), a.local_addr().unwrap(), "dialing uses the bound socket");
    }
}

#[tokio::test]
async fn packets_leave_from_the_bound_address() {
    let cluster = TestCluster::live(1);
    let from: SocketAddr = "127.0.1.7:0".parse().unwrap();
    let a = Endpoint::bind(from, cluster.identity(node(1)), Tuning::default()).unwrap();
    let (b, addr) = endpoint(&cluster, node(2));
    let (dialed, accepted) = tokio::join!(a.connect(addr, Expect::AnyNode, LinkClass::Control), b.accept());
    dialed.unwrap();
    assert_eq!(accepted.unwrap().remote_addr().ip(), from.ip());
}

#[tokio::test]
async fn another_clusters_listener_is_refused_by_the_dialer() {
    let (ours, theirs) = (TestCluster::live(1), TestCluster::live(2));
    let (a, _) = endpoint(&ours, node(1));
    let (_b, addr) = endpoint(&theirs, node(2));
    let error = a.connect(addr, Expect::AnyNode, LinkClass::Control).await.unwrap_err();
    let expected = IdentityRefused::OtherCluster { found: theirs.id, ours: ours.id };
    assert!(matches!(&error, ConnectLinkError::PeerRefused { refusal, .. } if *refusal == expected), "{error}");
}

/// A cluster of the same name with another CA: only the signature tells them apart.
#[tokio::test]
async fn a_forged_ca_is_refused() {
    let (ours, forged) = (TestCluster::live(1), TestCluster::live(1));
    let (a, _) = endpoint(&ours, node(1));
    let (_b, addr) = endpoint(&forged, node(2));
    let error = a.connect(addr, Expect::AnyNode, LinkClass::Control).await.unwrap_err();
    assert!(matches!(&error, ConnectLinkError::PeerRefused { refusal: IdentityRefused::NotSigned, .. }), "{error}");
}

#[tokio::test]
async fn an_expired_listener_is_refused() {
    let year_seconds = 366 * 86_400;
    let fresh = TestCluster::live(1);
    let old = fresh.identity_at(node(2), fresh.now_unix_seconds - year_seconds);
    let (a, _) = endpoint(&fresh, node(1));
    let b = Endpoint::bind(ANY, old, Tuning::default()).unwrap();
    let error = a.connect(b.local_addr().unwrap(), Expect::AnyNode, LinkClass::Control).await.unwrap_err();
    assert!(
        matches!(&error, ConnectLinkError::PeerRefused { refusal: IdentityRefused::OutOfTime { .. }, .. }),
        "{error}"
    );
}

/// The dialer is made to believe the listener, so that the listener's check alone is left.
async fn refused_by_listener(dialer: Arc<Identity>, listener: Arc<Identity>) -> CloseReason {
    let b = Endpoint::bind(ANY, listener.clone(), Tuning::default()).unwrap();
    let a = Endpoint::bind(ANY, listener.clone(), Tuning::default()).unwrap();
    let trusting = tls::quic_client_showing(&dialer, &listener).unwrap();
    let mut config = quinn::ClientConfig::new(Arc::new(trusting));
    let addr = b.local_addr().unwrap();
    config.transport_config(a.shared.tuning.dialer(addr.ip(), LinkClass::Control));
    let hello = LinkHello { version: PROTOCOL_VERSION, class: LinkClass::Control as u32 };
    let connection = match a.shared.quinn.connect_with(config, addr, "x.evenkeel").unwrap().await {
        Ok(connection) => connection,
        Err(error) => return error.into(),
    };
    say_hello(&connection, &hello).await.unwrap_err()
}

#[tokio::test]
async fn the_listener_refuses_other_clusters_and_other_roles() {
    let (ours, theirs) = (TestCluster::live(1), TestCluster::live(2));
    let reason = refused_by_listener(theirs.identity(node(1)), ours.identity(node(2))).await;
    let CloseReason::IdentityRefused(text) = &reason else { panic!("{reason}") };
    assert!(text.contains("OtherCluster") || text.contains("belongs to cluster"), "{text}");
    let reason = refused_by_listener(ours.identity(Role::Viewer), ours.identity(node(2))).await;
    assert!(matches!(reason, CloseReason::IdentityRefused(_)), "{reason}");
}

#[tokio::test]
async fn roles_decide_who_gets_in() {
    let cluster = TestCluster::live(1);
    let (_node, node_addr) = endpoint(&cluster, node(1));
    let (_coordinator, coordinator_addr) = endpoint(&cluster, Role::Coordinator);
    let gateway = Role::Gateway("g1".into());
    let cases = [
        (gateway.clone(), node_addr, Expect::Node(NodeId(1)), true),
        (Role::Operator, node_addr, Expect::AnyNode, true),
        (Role::Viewer, node_addr, Expect::AnyNode, false),
        (Role::Viewer, coordinator_addr, Expect::Coordinator, true),
        (gateway.clone(), coordinator_addr, Expect::Coordinator, true),
        (gateway.clone(), coordinator_addr, Expect::AnyNode, false),
        (gateway.clone(), node_addr, Expect::Coordinator, false),
        (gateway, node_addr, Expect::Node(NodeId(2)), false),
    ];
    for (role, addr, expect, admitted) in cases {
        let (a, _) = endpoint(&cluster, role.clone());
        let result = a.connect(addr, expect, LinkClass::Foreground).await;
        assert_eq!(result.is_ok(), admitted, "{role} wants {expect}: {:?}", result.err().map(|e| e.to_string()));
    }
    assert!(tls::roles_accepted_by(RoleKind::Gateway).is_empty());
}

#[tokio::test]
async fn a_process_that_only_dials_does_not_answer() {
    let cluster = TestCluster::live(1);
    let (a, _) = endpoint(&cluster, node(1));
    let (_gateway, addr) = endpoint(&cluster, Role::Gateway("g".into()));
    let error = a.connect(addr, Expect::AnyNode, LinkClass::Lease).await.unwrap_err();
    assert!(matches!(error, ConnectLinkError::Closed { reason: CloseReason::TimedOut, .. }), "{error}");
}

#[tokio::test]
async fn garbage_at_the_port_is_survived() {
    let cluster = TestCluster::live(1);
    let (a, _) = endpoint(&cluster, node(1));
    let (b, addr) = endpoint(&cluster, node(2));
    let socket = tokio::net::UdpSocket::bind(ANY).await.unwrap();
    for n in 0..400_usize {
        let mut datagram: Vec<u8> = (0..n * 7 % 2900).map(|_| rand::random()).collect();
        if let (Some(first), true) = (datagram.first_mut(), n % 2 == 0) {
            *first |= 0xc0; // Looks like a long header.
        }
        socket.send_to(&datagram, addr).await.unwrap();
    }
    let (dialed, accepted) = tokio::join!(a.connect(addr, Expect::AnyNode, LinkClass::Control), b.accept());
    assert!(dialed.is_ok() && accepted.is_some());
}

#[tokio::test]
async fn an_unknown_class_is_refused_with_a_reason() {
    let cluster = TestCluster::live(1);
    let (a, _) = endpoint(&cluster, node(1));
    let (_b, addr) = endpoint(&cluster, node(2));
    let tls = tls::quic_client(&a.shared.identity.load(), Expect::AnyNode, RefusalSlot::default()).unwrap();
    let mut config = quinn::ClientConfig::new(Arc::new(tls));
    config.transport_config(a.shared.tuning.dialer(addr.ip(), LinkClass::Control));
    let connection = a.shared.quinn.connect_with(config, addr, "x.evenkeel").unwrap().await.unwrap();
    let reason = say_hello(&connection, &LinkHello { version: 9, class: 77 }).await.unwrap_err();
    assert!(matches!(&reason, CloseReason::Peer(text) if text.contains("class 77")), "{reason}");
}

#[tokio::test]
async fn both_ends_learn_why_a_link_ended() {
    let cluster = TestCluster::live(1);
    let (a, _) = endpoint(&cluster, node(1));
    let (b, addr) = endpoint(&cluster, node(2));
    let (dialed, accepted) = tokio::join!(a.connect(addr, Expect::AnyNode, LinkClass::Control), b.accept());
    let (dialed, accepted) = (dialed.unwrap(), accepted.unwrap());
    dialed.close("maintenance");
    assert_eq!(accepted.closed().await, CloseReason::Peer("maintenance".into()));
    assert_eq!(dialed.closed().await, CloseReason::Local);
    a.close("stopping").await;
    assert!(a.accept().await.is_none(), "a closed endpoint accepts nothing more");
}

#[tokio::test]
async fn a_renewed_identity_is_shown_to_new_links() {
    let cluster = TestCluster::live(1);
    let (a, _) = endpoint(&cluster, node(1));
    let (b, addr) = endpoint(&cluster, node(2));
    b.set_identity(cluster.identity(node(3))).unwrap();
    let link = a.connect(addr, Expect::Node(NodeId(3)), LinkClass::Control).await.unwrap();
    assert_eq!(link.peer().role, node(3));
}

/// All datagram sizes carry traffic: a datagram above the congestion window would hang.
#[tokio::test]
async fn every_tuning_carries_bulk() {
    let cluster = TestCluster::live(1);
    for (path, bytes, offload) in [
        (PathKind::Lan, 0, true),
        (PathKind::Loopback, 1200, true),
        (PathKind::Loopback, 8952, true),
        (PathKind::Loopback, u16::MAX, false),
    ] {
        let tuning = Tuning { path, loopback_datagram_bytes: bytes, loopback_offload: offload, ..Tuning::default() };
        let a = Endpoint::bind(ANY, cluster.identity(node(1)), tuning.clone()).unwrap();
        let b = Endpoint::bind(ANY, cluster.identity(node(2)), tuning).unwrap();
        let addr = b.local_addr().unwrap();
        let (dialed, accepted) = tokio::join!(a.connect(addr, Expect::AnyNode, LinkClass::Resync), b.accept());
        let (dialed, accepted) = (dialed.unwrap(), accepted.unwrap());
        let channel = dialed.open_channel(Frame::new(1, Bytes::new())).await.unwrap();
        let (sender, _receiver) = channel.split();
        let payload = Bytes::from(vec![7; 3 << 20]);
        sender.send_async(Frame::with_payload(2, Bytes::new(), payload.clone())).await.unwrap();
        let (_, channel) = accepted.accept_channel().await.unwrap();
        let (_sender, mut receiver) = channel.split();
        assert!(receiver.recv().await.unwrap().payload == payload);
    }
}
