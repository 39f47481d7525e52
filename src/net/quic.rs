//! QUIC endpoints and links: mutual TLS between members of one cluster.
//!
//! A link is one QUIC connection of one [`LinkClass`]. Its dialer opens a first stream with a hello (protocol version, class); the
//! listener answers it. Only then does [`Endpoint::connect`] return: in TLS 1.3 a dialer would otherwise believe in a link that the
//! listener is about to refuse. After that both ends open channels ([`super::channel`]).
//!
//! Invariants: no link exists unless both ends were verified by the cluster's CA and accepted each other's role; all packets leave
//! from the one socket, so from the address that it is bound to; handshakes in progress are bounded in number and time.
//!
//! Call order: `bind`, then `accept` in a loop and `connect` at will; `close` last.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message;
use quinn::VarInt;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::{Semaphore, mpsc};

use super::identity::{self, Identity, PeerIdentity};
use super::tls::{self, Expect, IdentityRefused, RefusalSlot, TlsConfigError};
use super::tuning::{LinkClass, Tuning};
use crate::wire::frame::{Decoder, Encoder, Frame, KIND_TRANSPORT_FIRST};

const KIND_LINK_HELLO: u16 = KIND_TRANSPORT_FIRST;
const KIND_LINK_WELCOME: u16 = KIND_TRANSPORT_FIRST + 1;
const PROTOCOL_VERSION: u32 = 1;
/// A hello has some 20 bytes.
const HELLO_BYTES_MAX: usize = 1024;
/// Handshakes at once: a cluster's restart comes in one burst; each holds some 100 KiB.
const HANDSHAKES_MAX: usize = 256;
/// Verified links that wait for `accept`.
const ACCEPTED_MAX: usize = 256;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// A misplaced peer retries for ever: one line is enough to find it.
const REFUSAL_LOG_INTERVAL: Duration = Duration::from_secs(10);
const CODE_CLOSED: VarInt = VarInt::from_u32(0);
const CODE_HELLO_REFUSED: VarInt = VarInt::from_u32(1);

#[derive(Clone, PartialEq, Message)]
struct LinkHello {
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(uint32, tag = "2")]
    class: u32,
}

#[derive(Clone, PartialEq, Message)]
struct LinkWelcome {
    #[prost(uint32, tag = "1")]
    version: u32,
}

/// Why a link or a channel ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    /// This end closed it.
    #[error("closed here")]
    Local,
    /// The peer closed it, and says why.
    #[error("closed by the peer: {0}")]
    Peer(String),
    /// The peer ended this channel in good order; the link goes on.
    #[error("the peer ended the channel")]
    Ended,
    /// The peer gave up this channel; the link goes on.
    #[error("the peer reset the channel")]
    ChannelReset,
    /// Nothing was heard: the peer was killed, is frozen, or is cut off.
    #[error("the peer fell silent")]
    TimedOut,
    /// The peer is back without memory of this link.
    #[error("the peer has restarted")]
    Reset,
    /// One end refused the other's certificate.
    #[error("identity refused: {0}")]
    IdentityRefused(String),
    /// The peer broke a rule.
    #[error("protocol violation: {0}")]
    Protocol(String),
}

impl From<quinn::ConnectionError> for CloseReason {
    fn from(error: quinn::ConnectionError) -> CloseReason {
        use quinn::ConnectionError as E;
        // RFC 9001: 0x100 + the TLS alert.
        let is_crypto = |code: quinn::TransportErrorCode| (0x100..0x200).contains(&u64::from(code));
        match error {
            E::LocallyClosed => CloseReason::Local,
            E::TimedOut => CloseReason::TimedOut,
            E::Reset => CloseReason::Reset,
            E::ApplicationClosed(c) => CloseReason::Peer(String::from_utf8_lossy(&c.reason).into_owned()),
            E::ConnectionClosed(c) if is_crypto(c.error_code) => {
                CloseReason::IdentityRefused(String::from_utf8_lossy(&c.reason).into_owned())
            }
            E::ConnectionClosed(c) => CloseReason::Peer(c.to_string()),
            E::TransportError(e) if is_crypto(e.code) => CloseReason::IdentityRefused(e.reason),
            E::TransportError(e) => CloseReason::Protocol(e.to_string()),
            other @ (E::VersionMismatch | E::CidsExhausted) => CloseReason::Protocol(other.to_string()),
        }
    }
}

/// Why an endpoint can't be had.
#[derive(Debug, thiserror::Error)]
pub enum BindEndpointError {
    /// The address can't be bound.
    #[error("can't bind UDP {addr}: {source}")]
    Socket {
        /// As given.
        addr: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The identity makes no TLS configuration.
    #[error(transparent)]
    Tls(#[from] TlsConfigError),
}

impl BindEndpointError {
    /// In words, with the setting that names the port.
    pub fn with_key(&self, key: &str) -> String {
        match self {
            BindEndpointError::Socket { .. } => format!("{self}; set {key} to a port that is free, or to 0 for any"),
            BindEndpointError::Tls(_) => self.to_string(),
        }
    }
}

/// Why there is no link to a peer.
#[derive(Debug, thiserror::Error)]
pub enum ConnectLinkError {
    /// We refused the peer.
    #[error("{addr}: {refusal}")]
    PeerRefused {
        /// Whom we dialed.
        addr: SocketAddr,
        /// Why.
        refusal: IdentityRefused,
    },
    /// The peer refused us, or the link ended before it began.
    #[error("{addr}: {reason}")]
    Closed {
        /// Whom we dialed.
        addr: SocketAddr,
        /// Why.
        reason: CloseReason,
    },
    /// The address or this endpoint doesn't allow a connection.
    #[error("{addr}: {source}")]
    Dial {
        /// Whom we dialed.
        addr: SocketAddr,
        /// As quinn says.
        source: quinn::ConnectError,
    },
    /// The identity makes no TLS configuration.
    #[error(transparent)]
    Tls(#[from] TlsConfigError),
}

/// A listener's settings, by the peer's path.
struct ServerConfigs {
    loopback: Arc<quinn::ServerConfig>,
    lan: Arc<quinn::ServerConfig>,
}

struct Shared {
    quinn: quinn::Endpoint,
    identity: ArcSwap<Identity>,
    servers: ArcSwap<ServerConfigs>,
    tuning: Tuning,
    refusals: RefusalLog,
}

/// One UDP socket that dials and listens.
pub struct Endpoint {
    shared: Arc<Shared>,
    accepted: tokio::sync::Mutex<mpsc::Receiver<Link>>,
    accept_task: tokio::task::JoinHandle<()>,
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.accept_task.abort();
    }
}

impl Endpoint {
    /// Binds `addr` (one IP, not a wildcard, if packets must come from a known address) within the current tokio runtime.
    ///
    /// A process whose role accepts nobody's links (gateway, operator, viewer) only dials.
    ///
    /// # Errors
    /// The address can't be bound, or the identity is unusable.
    pub fn bind(addr: SocketAddr, identity: Arc<Identity>, tuning: Tuning) -> Result<Endpoint, BindEndpointError> {
        let servers = server_configs(&identity, &tuning)?;
        let listens = !tls::roles_accepted_by(identity.holder().role.kind()).is_empty();
        let socket_error = |source| BindEndpointError::Socket { addr, source };
        let socket = bind_udp(addr, tuning.socket_buffer_bytes).map_err(socket_error)?;
        let mut config = quinn::EndpointConfig::default();
        config
            .max_udp_payload_size(tuning.max_datagram_bytes())
            .map_err(|e| socket_error(std::io::Error::new(std::io::ErrorKind::InvalidInput, e)))?;
        let server = listens.then(|| servers.lan.as_ref().clone());
        let quinn =
            quinn::Endpoint::new(config, server, socket, Arc::new(quinn::TokioRuntime)).map_err(socket_error)?;
        let shared = Arc::new(Shared {
            quinn,
            identity: ArcSwap::new(identity),
            servers: ArcSwap::from_pointee(servers),
            tuning,
            refusals: RefusalLog::default(),
        });
        let (links, accepted) = mpsc::channel(ACCEPTED_MAX);
        let accept_task = tokio::spawn(accept_loop(shared.clone(), links));
        Ok(Endpoint { shared, accepted: tokio::sync::Mutex::new(accepted), accept_task })
    }

    /// Where it is bound.
    ///
    /// # Errors
    /// The socket is gone.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.shared.quinn.local_addr()
    }

    /// Uses a renewed identity for all links from now on.
    ///
    /// # Errors
    /// The identity is unusable; the old one stays.
    pub fn set_identity(&self, identity: Arc<Identity>) -> Result<(), TlsConfigError> {
        self.shared.servers.store(Arc::new(server_configs(&identity, &self.shared.tuning)?));
        self.shared.identity.store(identity);
        Ok(())
    }

    /// Opens a link of `class` to whom `expect` describes. Gives up after the class's idle timeout.
    ///
    /// # Errors
    /// Nobody answers, one end refuses the other, or the peer isn't the expected one.
    pub async fn connect(&self, addr: SocketAddr, expect: Expect, class: LinkClass) -> Result<Link, ConnectLinkError> {
        let identity = self.shared.identity.load_full();
        let refusal = RefusalSlot::default();
        let tls = tls::quic_client(&identity, expect, refusal.clone())?;
        let mut config = quinn::ClientConfig::new(Arc::new(tls));
        config.transport_config(self.shared.tuning.dialer(addr.ip(), class));
        let name = identity::server_name(identity.holder().cluster);
        let connecting = self
            .shared
            .quinn
            .connect_with(config, addr, &name)
            .map_err(|source| ConnectLinkError::Dial { addr, source })?;
        let closed = |reason: CloseReason| match refusal.lock().take() {
            Some(refusal) => ConnectLinkError::PeerRefused { addr, refusal },
            None => ConnectLinkError::Closed { addr, reason },
        };
        let connection = connecting.await.map_err(|e| closed(e.into()))?;
        let hello = LinkHello { version: PROTOCOL_VERSION, class: class as u32 };
        let welcomed = tokio::time::timeout(HANDSHAKE_TIMEOUT, say_hello(&connection, &hello)).await;
        welcomed.unwrap_or(Err(CloseReason::TimedOut)).map_err(closed)?;
        let peer = peer_of(&connection).map_err(closed)?;
        Ok(Link { connection, peer, class })
    }

    /// The next link that a peer has opened; `None` once the endpoint is closed. Safe to cancel.
    pub async fn accept(&self) -> Option<Link> {
        self.accepted.lock().await.recv().await
    }

    /// Ends all links, tells their peers why, and waits (briefly) until they know.
    pub async fn close(&self, why: &str) {
        self.shared.quinn.close(CODE_CLOSED, why.as_bytes());
        // Peers that are gone don't answer; closing is a courtesy.
        let _ = tokio::time::timeout(Duration::from_millis(500), self.shared.quinn.wait_idle()).await;
    }
}

fn server_configs(identity: &Identity, tuning: &Tuning) -> Result<ServerConfigs, TlsConfigError> {
    let crypto = Arc::new(tls::quic_server(identity)?);
    let with_path = |ip: std::net::IpAddr| {
        let mut config = quinn::ServerConfig::with_crypto(crypto.clone());
        // An address never changes under a link: a member has one address.
        config.migration(false).max_incoming(HANDSHAKES_MAX).transport_config(tuning.listener(ip));
        Arc::new(config)
    };
    let loopback = with_path(std::net::Ipv4Addr::LOCALHOST.into());
    let lan = with_path(std::net::Ipv4Addr::UNSPECIFIED.into());
    Ok(ServerConfigs { loopback, lan })
}

fn bind_udp(addr: SocketAddr, buffer_bytes: usize) -> std::io::Result<std::net::UdpSocket> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    // The kernel caps these at net.core.[rw]mem_max; less is slower, not wrong.
    for set in [socket.set_recv_buffer_size(buffer_bytes), socket.set_send_buffer_size(buffer_bytes)] {
        if let Err(error) = set {
            tracing::debug!(%addr, %error, "the socket buffers keep their size");
        }
    }
    socket.bind(&addr.into())?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

async fn accept_loop(shared: Arc<Shared>, links: mpsc::Sender<Link>) {
    let slots = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    while let Some(incoming) = shared.quinn.accept().await {
        let Ok(slot) = slots.clone().try_acquire_owned() else {
            incoming.refuse();
            continue;
        };
        let (shared, links) = (shared.clone(), links.clone());
        tokio::spawn(async move {
            let addr = incoming.remote_address();
            let link = tokio::time::timeout(HANDSHAKE_TIMEOUT, welcome(&shared, incoming)).await;
            drop(slot);
            match link.unwrap_or(Err(CloseReason::TimedOut)) {
                // The receiver is gone when the endpoint is.
                Ok(link) => drop(links.send(link).await),
                Err(reason) => shared.refusals.report(addr, &reason),
            }
        });
    }
}

async fn welcome(shared: &Shared, incoming: quinn::Incoming) -> Result<Link, CloseReason> {
    let servers = shared.servers.load();
    let is_loopback = shared.tuning.is_loopback(incoming.remote_address().ip());
    let config = if is_loopback { servers.loopback.clone() } else { servers.lan.clone() };
    let connection = incoming.accept_with(config)?.await?;
    let peer = peer_of(&connection)?;
    match hear_hello(&connection).await {
        Ok(class) => Ok(Link { connection, peer, class }),
        Err(reason) => {
            connection.close(CODE_HELLO_REFUSED, reason.to_string().as_bytes());
            Err(reason)
        }
    }
}

/// The peer's certificate was verified during the handshake.
fn peer_of(connection: &quinn::Connection) -> Result<PeerIdentity, CloseReason> {
    let none = || CloseReason::IdentityRefused("the peer shows no certificate".to_owned());
    let chain = connection.peer_identity().ok_or_else(none)?;
    let chain = chain.downcast::<Vec<rustls::pki_types::CertificateDer<'static>>>().map_err(|_| none())?;
    let cert = chain.first().ok_or_else(none)?;
    identity::holder_of(cert).map_err(|e| CloseReason::IdentityRefused(e.to_string()))
}

async fn say_hello(connection: &quinn::Connection, hello: &LinkHello) -> Result<(), CloseReason> {
    let (mut send, mut recv) = connection.open_bi().await?;
    write_one(&mut send, Frame::new(KIND_LINK_HELLO, hello.encode_to_vec()), connection).await?;
    let welcome = read_one(&mut recv, KIND_LINK_WELCOME, connection).await?;
    LinkWelcome::decode(welcome.meta).map_err(|e| CloseReason::Protocol(format!("malformed welcome: {e}")))?;
    Ok(())
}

async fn hear_hello(connection: &quinn::Connection) -> Result<LinkClass, CloseReason> {
    let (mut send, mut recv) = connection.accept_bi().await?;
    let hello = read_one(&mut recv, KIND_LINK_HELLO, connection).await?;
    let hello = LinkHello::decode(hello.meta).map_err(|e| CloseReason::Protocol(format!("malformed hello: {e}")))?;
    let class = LinkClass::from_wire(hello.class).ok_or_else(|| {
        CloseReason::Protocol(format!("link class {} is unknown here: the peer runs a newer release", hello.class))
    })?;
    let welcome = LinkWelcome { version: PROTOCOL_VERSION };
    write_one(&mut send, Frame::new(KIND_LINK_WELCOME, welcome.encode_to_vec()), connection).await?;
    Ok(class)
}

/// Why a stream failed: the link's reason if the link has ended, else the stream's.
pub(super) fn stream_reason(connection: &quinn::Connection) -> CloseReason {
    connection.close_reason().map_or(CloseReason::ChannelReset, CloseReason::from)
}

async fn write_one(
    send: &mut quinn::SendStream,
    frame: Frame,
    connection: &quinn::Connection,
) -> Result<(), CloseReason> {
    let mut encoder = Encoder::default();
    encoder.push(frame).map_err(|e| CloseReason::Protocol(e.to_string()))?;
    send.write_all_chunks(encoder.pieces()).await.map_err(|_| stream_reason(connection))?;
    send.finish().map_err(|_| stream_reason(connection))
}

async fn read_one(
    recv: &mut quinn::RecvStream,
    kind: u16,
    connection: &quinn::Connection,
) -> Result<Frame, CloseReason> {
    let bytes = recv.read_to_end(HELLO_BYTES_MAX).await.map_err(|e| match e {
        quinn::ReadToEndError::TooLong => CloseReason::Protocol("the hello is too long".to_owned()),
        quinn::ReadToEndError::Read(_) => stream_reason(connection),
    })?;
    let mut decoder = Decoder::default();
    decoder.push(Bytes::from(bytes));
    match decoder.next_frame() {
        Ok(Some(frame)) if frame.kind == kind && decoder.is_at_boundary() => Ok(frame),
        Ok(_) => Err(CloseReason::Protocol("the link does not begin with a hello".to_owned())),
        Err(e) => Err(CloseReason::Protocol(e.to_string())),
    }
}

/// A verified connection to one peer, for one class of traffic. Clones are handles to the same link; the last one's drop ends it.
#[derive(Clone, Debug)]
pub struct Link {
    pub(super) connection: quinn::Connection,
    peer: PeerIdentity,
    class: LinkClass,
}

impl Link {
    /// Who the peer is, by its certificate.
    pub fn peer(&self) -> &PeerIdentity {
        &self.peer
    }

    /// What the dialer opened the link for.
    pub fn class(&self) -> LinkClass {
        self.class
    }

    /// The peer's address.
    pub fn remote_addr(&self) -> SocketAddr {
        self.connection.remote_address()
    }

    /// The smoothed round-trip time.
    pub fn round_trip(&self) -> Duration {
        self.connection.rtt()
    }

    /// Bytes sent and received in UDP datagrams so far.
    pub fn udp_bytes(&self) -> (u64, u64) {
        let stats = self.connection.stats();
        (stats.udp_tx.bytes, stats.udp_rx.bytes)
    }

    /// UDP datagrams sent and received so far.
    pub fn udp_datagrams(&self) -> (u64, u64) {
        let stats = self.connection.stats();
        (stats.udp_tx.datagrams, stats.udp_rx.datagrams)
    }

    /// Ends the link and all its channels at once; the peer learns `why`.
    pub fn close(&self, why: &str) {
        self.connection.close(CODE_CLOSED, why.as_bytes());
    }

    /// Why the link has ended, if it has.
    pub fn close_reason(&self) -> Option<CloseReason> {
        self.connection.close_reason().map(CloseReason::from)
    }

    /// Waits until the link has ended. Safe to cancel.
    pub async fn closed(&self) -> CloseReason {
        self.connection.closed().await.into()
    }
}

/// One line for the first refusal, then one with a count each [`REFUSAL_LOG_INTERVAL`] while they go on.
#[derive(Default)]
struct RefusalLog {
    last: Mutex<Option<Instant>>,
    unlogged: AtomicU64,
}

impl RefusalLog {
    fn report(&self, addr: SocketAddr, reason: &CloseReason) {
        let mut last = self.last.lock();
        if last.is_some_and(|at| at.elapsed() < REFUSAL_LOG_INTERVAL) {
            self.unlogged.fetch_add(1, Ordering::Relaxed);
            return;
        }
        *last = Some(Instant::now());
        let unlogged = self.unlogged.swap(0, Ordering::Relaxed);
        tracing::warn!(%addr, %reason, more_refused_since_last = unlogged, "refused a link");
    }
}

#[cfg(test)]
impl Endpoint {
    /// Moves to another socket: to peers, the old one falls silent.
    pub(super) fn rebind_for_test(&self, socket: std::net::UdpSocket) {
        self.shared.quinn.rebind(socket).unwrap();
    }
}

#[cfg(test)]
#[path = "quic_tests.rs"]
mod tests;
