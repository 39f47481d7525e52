//! Links between nodes: dialing, accepting, and handing frames to the engine.
//!
//! A node dials every node that holds members of PGs which it leads, and sends requests on that link; answers come
//! back on it. A resync session has a stream of its own on a Resync link. Messages are decoded, and their blocks
//! verified, here, off the engine's thread.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prost::Message;

use super::bulk::Bulk;
use super::engine::{Event, Events};
use crate::core::ids::{DiskId, NodeId, PgId};
use crate::net::channel::{Channel, Receiver};
use crate::net::identity::Role;
use crate::net::outbox::Outbox;
use crate::net::quic::{Endpoint, Link};
use crate::net::tls::Expect;
use crate::net::tuning::LinkClass;
use crate::wire::client::{self, kind as client_kind};
use crate::wire::frame::Frame;
use crate::wire::replica::{self, PeerHello, kind};

/// A try to reach a peer takes no longer, so that one that comes back is found soon.
const CONNECT: Duration = Duration::from_millis(700);
/// Between tries to reach a peer.
const RETRY: Duration = Duration::from_millis(100);
/// Between a session's end and its next beginning: a session that ends at once must not spin.
const SESSION_RETRY: Duration = Duration::from_millis(300);

/// What all link tasks share.
pub struct Links {
    /// The node's endpoint, for all but copies.
    pub endpoint: Endpoint,
    /// For copies.
    pub bulk: Bulk,
    /// To the engine.
    pub events: Events,
    /// First frame of every channel.
    pub hello: PeerHello,
    /// Numbers channels.
    pub next_channel: AtomicU64,
}

impl Links {
    pub fn channel_id(&self) -> u64 {
        self.next_channel.fetch_add(1, Ordering::Relaxed)
    }

    /// Keeps a foreground link to a peer up for as long as the task runs.
    pub async fn keep_peer(self: Arc<Self>, node: NodeId, addr: SocketAddr) {
        loop {
            let connecting = self.endpoint.connect(addr, Expect::Node(node), LinkClass::Foreground);
            match tokio::time::timeout(CONNECT, connecting).await {
                Err(_) => tracing::debug!(%node, %addr, "a peer doesn't answer; trying again"),
                Ok(Ok(link)) => {
                    let hello = Frame::new(kind::PEER_HELLO, self.hello.encode_to_vec());
                    if let Ok(channel) = link.open_channel(hello).await {
                        self.run_peer(node, addr, channel).await;
                    }
                }
                Ok(Err(error)) => tracing::debug!(%node, %addr, %error, "can't reach a peer; trying again"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn run_peer(&self, node: NodeId, addr: SocketAddr, channel: Channel) {
        let (sender, mut receiver) = channel.split();
        let Some(hello) = receiver.recv().await else { return };
        let Ok(hello) = PeerHello::decode(hello.meta.as_ref()) else { return };
        let lease_addr = SocketAddr::new(addr.ip(), hello.lease_port as u16);
        let bulk_port = u16::try_from(hello.bulk_port).ok().filter(|port| *port != 0);
        self.bulk.set_peer(node, bulk_port.map(|port| SocketAddr::new(addr.ip(), port)));
        let id = self.channel_id();
        let outbox = Outbox::new(sender, tokio::runtime::Handle::current());
        self.events.push(Event::PeerUp { node, id, outbox, lease_addr, process: hello.process });
        self.read_peer(node, None, &mut receiver).await;
        self.events.push(Event::PeerDown { node, id });
    }

    async fn read_peer(&self, node: NodeId, session: Option<u64>, receiver: &mut Receiver) {
        let mut frames = Vec::new();
        while receiver.recv_batch(&mut frames).await.is_some() {
            for frame in frames.drain(..) {
                match replica::decode(&frame) {
                    Ok((address, message)) => {
                        self.events.push(Event::Peer { node, session, address, message });
                    }
                    Err(replica::DecodePeer::UnknownKind(unknown)) => {
                        tracing::warn!(kind = unknown, "ignored a message that this release doesn't know");
                    }
                    Err(error) => {
                        // The sender resends what isn't acked when the link is made anew.
                        tracing::error!(%error, "dropped a peer's link");
                        self.events.push(Event::Mismatch);
                        return;
                    }
                }
            }
        }
    }

    /// Takes links until the endpoints close: copies' on the thread for copies.
    pub async fn accept(self: Arc<Self>) {
        let bulk = self.bulk.runtime.spawn({
            let links = self.clone();
            async move {
                while let Some(link) = links.bulk.endpoint.accept().await {
                    tokio::spawn(links.clone().serve(link));
                }
            }
        });
        while let Some(link) = self.endpoint.accept().await {
            tokio::spawn(self.clone().serve(link));
        }
        bulk.abort();
    }

    async fn serve(self: Arc<Self>, link: Link) {
        while let Ok((hello, channel)) = link.accept_channel().await {
            let links = self.clone();
            let peer = link.peer().role.clone();
            tokio::spawn(async move {
                match (hello.kind, peer) {
                    (kind::PEER_HELLO, Role::Node(node)) => links.serve_peer(node, &hello, channel).await,
                    (kind::SESSION_HELLO, Role::Node(node)) => links.serve_session(node, &hello, channel).await,
                    (client_kind::CLIENT_HELLO, _) => links.serve_client(channel).await,
                    (other, role) => {
                        tracing::warn!(kind = other, ?role, "refused a channel: unknown, or not for this role")
                    }
                }
            });
        }
    }

    async fn serve_peer(&self, node: NodeId, hello: &Frame, channel: Channel) {
        let Ok(theirs) = PeerHello::decode(hello.meta.as_ref()) else { return };
        let (sender, mut receiver) = channel.split();
        if sender.send(Frame::new(kind::PEER_HELLO, self.hello.encode_to_vec())).is_err() {
            return;
        }
        let id = self.channel_id();
        let outbox = Outbox::new(sender, tokio::runtime::Handle::current());
        self.events.push(Event::InboundUp { node, id, outbox, process: theirs.process });
        self.read_peer(node, None, &mut receiver).await;
        self.events.push(Event::InboundDown { node, id });
    }

    async fn serve_client(&self, channel: Channel) {
        let (sender, mut receiver) = channel.split();
        let id = self.channel_id();
        let outbox = Outbox::new(sender, tokio::runtime::Handle::current());
        self.events.push(Event::ClientUp { id, outbox: outbox.clone() });
        let mut frames = Vec::new();
        while receiver.recv_batch(&mut frames).await.is_some() {
            for frame in frames.drain(..) {
                match client::decode_request(&frame) {
                    Ok(received) => self.events.push(Event::Client { conn: id, received }),
                    Err(error) => {
                        tracing::error!(%error, "refused a gateway's request");
                        if let Some(request) = client::request_id(&frame) {
                            outbox.send(client::encode_reply(request, crate::core::replica::ClientReply::IoError));
                        }
                    }
                }
            }
        }
        self.events.push(Event::ClientDown { id });
    }

    async fn serve_session(&self, node: NodeId, hello: &Frame, channel: Channel) {
        let Ok(hello) = PeerHello::decode(hello.meta.as_ref()) else { return };
        let (pg, learner, primary) = (PgId::from_u64(hello.pg), DiskId(hello.learner), DiskId(hello.primary));
        let (sender, mut receiver) = channel.split();
        let id = self.channel_id();
        let outbox = Outbox::new(sender, tokio::runtime::Handle::current());
        let class = hello.class;
        let opened = (hello.process, hello.session);
        self.events.push(Event::SessionAccepted { pg, learner, primary, class, id, opened, outbox });
        self.read_peer(node, Some(id), &mut receiver).await;
        self.events.push(Event::SessionEnded { pg, me: learner, peer: primary, id });
    }

    /// Ends a session that can't be opened now, so that it is tried again.
    pub async fn no_session(&self, id: u64, pg: PgId, primary: DiskId, learner: DiskId) {
        tokio::time::sleep(SESSION_RETRY).await;
        self.events.push(Event::SessionEnded { pg, me: primary, peer: learner, id });
    }

    /// Opens a session's stream to a learner, trying until it is up; reads it until it ends. `id` comes from
    /// [`Links::channel_id`]. To be run on the thread for copies.
    #[allow(clippy::too_many_arguments, reason = "what a session is between")]
    pub async fn run_session(
        self: Arc<Self>,
        id: u64,
        pg: PgId,
        primary: DiskId,
        learner: DiskId,
        class: u32,
        node: NodeId,
        addr: SocketAddr,
    ) {
        loop {
            let ends = PeerHello { pg: pg.to_u64(), learner: learner.0, primary: primary.0, ..self.hello };
            let hello = PeerHello { class, session: id, ..ends };
            // Asked at each try: a peer that has restarted has another port.
            let at = self.bulk.peer(node, addr);
            let link = self.bulk.endpoint.connect(at, Expect::Node(node), LinkClass::Resync).await;
            if let Ok(link) = link
                && let Ok(channel) = link.open_channel(Frame::new(kind::SESSION_HELLO, hello.encode_to_vec())).await
            {
                let (sender, mut receiver) = channel.split();
                let outbox = Outbox::new(sender, tokio::runtime::Handle::current());
                self.events.push(Event::SessionOpened { pg, me: primary, learner, id, outbox });
                self.read_peer(node, Some(id), &mut receiver).await;
                tokio::time::sleep(SESSION_RETRY).await;
                return self.events.push(Event::SessionEnded { pg, me: primary, peer: learner, id });
            }
            tokio::time::sleep(SESSION_RETRY).await;
        }
    }
}
