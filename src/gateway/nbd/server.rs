//! Accepts connections, negotiates, serves, and stops in good order.
//!
//! Invariants: at most [`Limits::connections_max`] connections; a handshake ends within its time; a stop ends within
//! its drain time and [`CLOSE_TIME_MAX`], whatever backends and clients do.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use super::connection::{self, ClientStream, ServeConnection, StopPhase};
use super::handshake::{Handshake, NegotiateExport, Negotiated, Step};
use super::listener::Listener;
use super::{Exports, Limits, Observer};

/// Time for the last replies of a stop to reach clients that read them.
pub const CLOSE_TIME_MAX: Duration = Duration::from_secs(1);
/// Pause after a failed accept (no file descriptors left, say), so that it doesn't spin.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// A running server. Dropping it ends it at once; [`stop`](Server::stop) ends it in good order.
pub struct Server {
    phase: watch::Sender<StopPhase>,
    accepting: JoinHandle<JoinSet<()>>,
}

/// Why a client was turned away before the transmission phase.
#[derive(Debug, thiserror::Error)]
enum AcceptClient {
    #[error(transparent)]
    Negotiate(#[from] NegotiateExport),
    #[error("the handshake took longer than {0:?}")]
    TooSlow(Duration),
    #[error("connection lost: {0}")]
    Lost(#[from] std::io::Error),
}

impl Server {
    /// Serves `exports` on `listener` until it is stopped. Must be called within a tokio runtime.
    pub fn start<E: Exports, O: Observer>(
        listener: Listener,
        exports: Arc<E>,
        observer: Arc<O>,
        limits: Limits,
    ) -> Server {
        let (phase, stop) = watch::channel(StopPhase::Running);
        Server { phase, accepting: tokio::spawn(accept(listener, exports, observer, limits, stop)) }
    }

    /// Stops: removes the socket, lets what is in flight finish for up to `drain`, answers the rest (and all that is
    /// new) with "shutting down", and closes.
    pub async fn stop(self, drain: Duration) {
        self.phase.send_replace(StopPhase::Draining);
        let mut connections = match self.accepting.await {
            Ok(connections) => connections,
            Err(error) => return tracing::error!(%error, "the NBD server's accept task failed"),
        };
        let mut all_closed = async |limit| {
            tokio::time::timeout(limit, async { while connections.join_next().await.is_some() {} }).await.is_ok()
        };
        if !all_closed(drain).await {
            self.phase.send_replace(StopPhase::Ending);
            if !all_closed(CLOSE_TIME_MAX).await {
                tracing::warn!(connections = connections.len(), "NBD connections were cut: their clients don't read");
            }
        }
    }
}

/// Accepts until the stop begins; gives the connections that are still open.
async fn accept<E: Exports, O: Observer>(
    listener: Listener,
    exports: Arc<E>,
    observer: Arc<O>,
    limits: Limits,
    mut stop: watch::Receiver<StopPhase>,
) -> JoinSet<()> {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            _ = stop.wait_for(|phase| *phase != StopPhase::Running) => return connections,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            accepted = accept_one(&listener) => accepted,
        };
        let stream = match accepted {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(%error, "accepting an NBD connection failed");
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        if connections.len() >= limits.connections_max {
            tracing::warn!(limit = limits.connections_max, "an NBD connection was refused: too many are open");
            continue;
        }
        let (exports, observer, stop) = (exports.clone(), observer.clone(), stop.clone());
        match stream {
            Accepted::Unix(stream) => connections.spawn(handle(stream, exports, observer, limits, stop)),
            Accepted::Tcp(stream) => connections.spawn(handle(stream, exports, observer, limits, stop)),
        };
    }
}

enum Accepted {
    Unix(tokio::net::UnixStream),
    Tcp(tokio::net::TcpStream),
}

async fn accept_one(listener: &Listener) -> std::io::Result<Accepted> {
    match listener {
        Listener::Unix(socket) => Ok(Accepted::Unix(socket.listener.accept().await?.0)),
        Listener::Tcp(listener) => {
            let stream = listener.accept().await?.0;
            // Replies are coalesced here already; waiting for more would only delay them.
            stream.set_nodelay(true)?;
            Ok(Accepted::Tcp(stream))
        }
    }
}

/// One client from its first byte to its last, with one log line if it misbehaves.
async fn handle<S: ClientStream, E: Exports, O: Observer>(
    mut stream: S,
    exports: Arc<E>,
    observer: Arc<O>,
    limits: Limits,
    mut stop: watch::Receiver<StopPhase>,
) {
    let mut input = BytesMut::new();
    let negotiation = async {
        tokio::time::timeout(limits.handshake_time_max, negotiate(&mut stream, &mut input, &*exports))
            .await
            .unwrap_or(Err(AcceptClient::TooSlow(limits.handshake_time_max)))
    };
    let negotiated = tokio::select! {
        biased;
        _ = stop.wait_for(|phase| *phase != StopPhase::Running) => return,
        negotiated = negotiation => negotiated,
    };
    let negotiated = match negotiated {
        Ok(Some(negotiated)) => negotiated,
        Ok(None) => return,
        Err(error) => return tracing::warn!(%error, "an NBD handshake failed"),
    };
    let export = negotiated.export.name.clone();
    observer.connection_opened();
    let end = connection::serve(stream, input, negotiated, observer.clone(), limits, stop).await;
    observer.connection_closed();
    match end {
        Ok(()) => {}
        Err(ServeConnection::Lost(error)) => tracing::info!(%export, %error, "an NBD client was lost"),
        Err(error) => tracing::warn!(%export, %error, "an NBD connection was closed"),
    }
}

/// Negotiates; `None` is a client that left in good order.
async fn negotiate<S: ClientStream, E: Exports>(
    stream: &mut S,
    input: &mut BytesMut,
    exports: &E,
) -> Result<Option<Negotiated<E::Backend>>, AcceptClient> {
    let mut out = BytesMut::new();
    let mut handshake = Handshake::new(&mut out);
    loop {
        let step = handshake.handle_bytes(input, &mut out, exports)?;
        stream.write_all_buf(&mut out).await?;
        match step {
            Step::Transmission(negotiated) => return Ok(Some(negotiated)),
            Step::Close => return Ok(None),
            // The client may leave at any time: probes do.
            Step::NeedMore if stream.read_buf(input).await? == 0 => return Ok(None),
            Step::NeedMore => {}
        }
    }
}
