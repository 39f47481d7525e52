//! The listener for the admin HTTP API: plain HTTP on loopback, TLS elsewhere.
//!
//! Invariants: plain HTTP is never served on an address that another host can reach; a TLS client certificate, if shown, is one of the
//! cluster's, verified; handshakes are bounded in number and time; what foreign pages make a browser send is refused ([`guard`]). A request sees its peer as `ConnectInfo<AdminPeer>`.
//!
//! Non-goals: who may do what (the API's business), tokens ([`super::token::BearerToken`]).

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::extract::connect_info::Connected;
use axum::serve::IncomingStream;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::guard;
use super::identity::{self, Identity, PeerIdentity};
use super::tls::{self, TlsConfigError};

/// Connections in their TLS handshake, and those waiting for the server.
const HANDSHAKES_MAX: usize = 128;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// The first byte of every TLS connection: a handshake record.
const TLS_HANDSHAKE_RECORD: u8 = 0x16;
const PLAIN_REFUSED: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n\
    This address speaks HTTPS only: use https://, with the cluster's CA. Plain HTTP is served on loopback alone.\n";

/// How a listener protects its connections.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum AdminTransport {
    /// Plain on loopback, TLS elsewhere.
    #[default]
    Auto,
    /// Plain; refused on any other address than loopback.
    Plain,
    /// TLS, on loopback too.
    Tls,
}

/// Why the admin API isn't served.
#[derive(Debug, thiserror::Error)]
pub enum ServeAdminError {
    /// Plain HTTP was asked for where others could reach it.
    #[error("plain HTTP is refused on {0}, which other hosts can reach: use TLS there, or a loopback address")]
    PlainNotLoopback(SocketAddr),
    /// The address can't be bound.
    #[error("can't bind TCP {addr}: {source}")]
    Bind {
        /// As given.
        addr: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The identity makes no TLS configuration.
    #[error(transparent)]
    Tls(#[from] TlsConfigError),
}

/// Who sends a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminPeer {
    /// Its address.
    pub addr: SocketAddr,
    /// Who it is, if it has shown a certificate.
    pub identity: Option<PeerIdentity>,
}

impl Connected<IncomingStream<'_, AdminListener>> for AdminPeer {
    fn connect_info(stream: IncomingStream<'_, AdminListener>) -> AdminPeer {
        stream.remote_addr().clone()
    }
}

/// A running admin server; dropping it stops it.
pub struct AdminServer {
    addr: SocketAddr,
    is_tls: bool,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl AdminServer {
    /// Serves `router` on `addr` within the current tokio runtime.
    ///
    /// # Errors
    /// The address can't be bound or may not be served plainly, or the identity is unusable.
    pub async fn serve(
        addr: SocketAddr,
        transport: AdminTransport,
        identity: &Identity,
        router: Router,
    ) -> Result<AdminServer, ServeAdminError> {
        let is_loopback = addr.ip().to_canonical().is_loopback();
        let is_tls = match transport {
            AdminTransport::Auto => !is_loopback,
            AdminTransport::Plain if !is_loopback => return Err(ServeAdminError::PlainNotLoopback(addr)),
            AdminTransport::Plain => false,
            AdminTransport::Tls => true,
        };
        let tls = match is_tls {
            true => Some(TlsAcceptor::from(Arc::new(tls::admin_server(identity)?))),
            false => None,
        };
        let bind_error = |source| ServeAdminError::Bind { addr, source };
        let tcp = TcpListener::bind(addr).await.map_err(bind_error)?;
        let addr = tcp.local_addr().map_err(bind_error)?;
        let (connections, accepted) = mpsc::channel(HANDSHAKES_MAX);
        let listener = AdminListener { addr, accepted, accept_task: tokio::spawn(accept_loop(tcp, tls, connections)) };
        let (stop, stopped) = oneshot::channel::<()>();
        let service = guard::same_site(router, !is_tls).into_make_service_with_connect_info::<AdminPeer>();
        let task = tokio::spawn(async move {
            let served = axum::serve(listener, service).with_graceful_shutdown(async {
                // A dropped handle means stop, too.
                let _ = stopped.await;
            });
            if let Err(error) = served.await {
                tracing::error!(%addr, %error, "the admin listener ended");
            }
        });
        Ok(AdminServer { addr, is_tls, stop: Some(stop), task })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// `http://…` or `https://…`.
    pub fn url(&self) -> String {
        format!("{}://{}", if self.is_tls { "https" } else { "http" }, self.addr)
    }

    /// Takes no more connections, lets requests in progress finish for at most `grace`, then ends them.
    pub async fn stop(mut self, grace: Duration) {
        drop(self.stop.take());
        // Event streams never finish by themselves; `drop` ends them.
        let _ = tokio::time::timeout(grace, &mut self.task).await;
    }
}

impl Drop for AdminServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Gives axum connections whose handshake is done.
struct AdminListener {
    addr: SocketAddr,
    accepted: mpsc::Receiver<(AdminIo, AdminPeer)>,
    accept_task: JoinHandle<()>,
}

impl Drop for AdminListener {
    fn drop(&mut self) {
        self.accept_task.abort();
    }
}

impl axum::serve::Listener for AdminListener {
    type Io = AdminIo;
    type Addr = AdminPeer;

    async fn accept(&mut self) -> (AdminIo, AdminPeer) {
        match self.accepted.recv().await {
            Some(connection) => connection,
            // The accept task ends with this listener only.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<AdminPeer> {
        Ok(AdminPeer { addr: self.addr, identity: None })
    }
}

async fn accept_loop(tcp: TcpListener, tls: Option<TlsAcceptor>, connections: mpsc::Sender<(AdminIo, AdminPeer)>) {
    let slots = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let (stream, addr) = match tcp.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors: wait for some to be closed, rather than spin.
                tracing::warn!(%error, "the admin listener can't accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        // Answers are small; without it, each would wait for the client's delayed ACK.
        let _ = stream.set_nodelay(true);
        let (tls, connections) = (tls.clone(), connections.clone());
        tokio::spawn(async move {
            let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake(stream, addr, tls)).await;
            match handshake {
                Ok(Ok(connection)) => drop(connections.send(connection).await),
                Ok(Err(error)) => tracing::debug!(%addr, %error, "refused an admin connection"),
                Err(_) => tracing::debug!(%addr, "an admin connection took too long to begin"),
            }
            drop(slot);
        });
    }
}

async fn handshake(
    mut stream: TcpStream,
    addr: SocketAddr,
    tls: Option<TlsAcceptor>,
) -> io::Result<(AdminIo, AdminPeer)> {
    let Some(tls) = tls else { return Ok((AdminIo::Plain(stream), AdminPeer { addr, identity: None })) };
    let mut first = [0];
    if stream.peek(&mut first).await? == 1 && first[0] != TLS_HANDSHAKE_RECORD {
        stream.write_all(PLAIN_REFUSED).await?;
        stream.shutdown().await?;
        return Err(io::Error::new(io::ErrorKind::InvalidData, "plain HTTP on an HTTPS address"));
    }
    let stream = tls.accept(stream).await?;
    let cert = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let identity = cert.map(identity::holder_of).transpose().map_err(io::Error::other)?;
    Ok((AdminIo::Tls(Box::new(stream)), AdminPeer { addr, identity }))
}

/// A connection, protected or not.
enum AdminIo {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for AdminIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            AdminIo::Plain(s) => Pin::new(s).poll_read(cx, buf),
            AdminIo::Tls(s) => Pin::new(s).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for AdminIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            AdminIo::Plain(s) => Pin::new(s).poll_write(cx, buf),
            AdminIo::Tls(s) => Pin::new(s).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            AdminIo::Plain(s) => Pin::new(s).poll_flush(cx),
            AdminIo::Tls(s) => Pin::new(s).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            AdminIo::Plain(s) => Pin::new(s).poll_shutdown(cx),
            AdminIo::Tls(s) => Pin::new(s).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
#[path = "admin_tests.rs"]
mod tests;
