//! The gateway daemon: serves a volume to virtual machines over NBD.
//!
//! It trades the admin API's token for a short-lived certificate, attaches the volume at the coordinator (or stands by
//! until it may), opens it at each of its placement groups, and then serves. While the coordinator is away IO goes on.

pub mod control;
mod guest;
pub mod nbd;
pub mod qos;
pub mod router;
pub mod volume;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;

use crate::api::metrics::{GatewayMetrics, Metrics, Operation};
use crate::api::types::{CertificateRequest, JoinReply};
use crate::core::hashtree::{Hash, VolumeHasher};
use crate::core::ids::VolumeId;
use crate::core::replica::{ClientOp, ClientReply};
use crate::core::units::CHUNK_BYTES;
use crate::net::admin::{AdminServer, AdminTransport};
use crate::net::guard;
use crate::net::identity::{Identity, PendingIdentity};
use crate::net::quic::Endpoint;
use crate::net::tuning::Tuning;

use control::{Control, Grant, News};
use guest::Guest;
use nbd::{Export, Limits, Listener, Observer, OpDone, OpKind, Server};
use router::Router;
use volume::Volume;

/// Requests that finish after a stop was asked for get this long.
const DRAIN: Duration = Duration::from_secs(5);
/// The last flush gets this long: a failover takes no longer; nodes that were stopped with their gateways never answer.
const LAST_FLUSH_MAX: Duration = Duration::from_secs(30);
/// A last flush that takes longer is spoken of, so that nobody wonders what the stop waits for.
const LAST_FLUSH_QUIET: Duration = Duration::from_secs(2);
/// Chunk roots asked for at once when a volume is hashed.
const ROOTS_UNDER_WAY: usize = 64;

/// Where a gateway listens.
#[derive(Clone, Debug)]
pub enum ListenAt {
    /// A Unix socket.
    Unix(PathBuf),
    /// TCP on loopback.
    Tcp(SocketAddr),
}

/// How a gateway is set up.
#[derive(Clone, Debug)]
pub struct GatewayConfig {
    /// The volume's name: the export's name.
    pub volume: String,
    /// Where clients connect.
    pub listen: ListenAt,
    /// The coordinator's admin URL.
    pub api: String,
    /// The admin API's bearer token.
    pub token: String,
    /// Unique name of this process.
    pub name: String,
    /// Fence the gateway that has the volume.
    pub take_over: bool,
    /// Address that it sends from.
    pub bind: IpAddr,
    /// Admin HTTP address, for metrics.
    pub admin: Option<SocketAddr>,
}

/// Why a gateway can't run, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum RunGateway {
    /// The admin API.
    #[error("{0}")]
    Api(String),
    /// Identity.
    #[error(transparent)]
    Identity(#[from] crate::net::identity::IdentityError),
    /// QUIC.
    #[error(transparent)]
    Bind(#[from] crate::net::quic::BindEndpointError),
    /// NBD.
    #[error(transparent)]
    Listen(#[from] nbd::BindListener),
    /// Admin.
    #[error(transparent)]
    Admin(#[from] crate::net::admin::ServeAdminError),
    /// The coordinator refuses.
    #[error("can't attach volume {volume:?}: {reason}")]
    Attach {
        /// Volume.
        volume: String,
        /// Why.
        reason: String,
    },
    /// Lost.
    #[error("volume {0:?} was taken over by another gateway: this one has stopped serving it")]
    Fenced(String),
    /// No such volume.
    #[error("there is no volume {0:?}: 'evenkeel volume list' shows those that exist")]
    UnknownVolume(String),
    /// A placement group can't answer.
    #[error("chunk {chunk} of volume {volume:?} has no readable copy: 'evenkeel pg list' shows what is missing")]
    Unreadable {
        /// Volume.
        volume: String,
        /// Chunk.
        chunk: u32,
    },
}

/// Trades the token for a certificate; returns it with the coordinator's QUIC address.
async fn enrol(api: &str, token: &str, role: &str, name: &str) -> Result<(Arc<Identity>, SocketAddr), RunGateway> {
    let pending = PendingIdentity::generate()?;
    let request =
        CertificateRequest { role: role.into(), name: name.into(), csr_pem: pending.request_pem().to_owned() };
    let (url, token) = (format!("{}/v1/certificates", api.trim_end_matches('/')), token.trim().to_owned());
    let reply: JoinReply =
        tokio::task::spawn_blocking(move || crate::api::client::post_json(&url, Some(&token), &request))
            .await
            .map_err(|e| RunGateway::Api(e.to_string()))?
            .map_err(|e| RunGateway::Api(e.error))?;
    let identity = pending.complete(&reply.certificate_pem, &reply.ca_pem, None)?;
    let coordinator =
        reply.coordinator_addr.parse().map_err(|_| RunGateway::Api("the coordinator gave no address".into()))?;
    Ok((Arc::new(identity), coordinator))
}

struct Measured {
    metrics: GatewayMetrics,
    guest: Arc<Guest>,
}

impl Observer for Measured {
    fn op_done(&self, op: &OpDone) {
        let kind = match op.kind {
            OpKind::Read => Operation::Read,
            OpKind::Write => Operation::Write,
            OpKind::Flush => Operation::Flush,
            OpKind::Trim => Operation::Trim,
            OpKind::WriteZeroes => Operation::Zero,
            _ => return,
        };
        match op.error {
            None => {
                self.metrics.foreground.done(kind, u64::from(op.len), op.duration);
                self.guest.done(kind, op.duration);
            }
            Some(_) => self.metrics.foreground.failed(kind),
        }
    }
    fn connection_opened(&self) {
        self.metrics.connections.inc();
    }
    fn connection_closed(&self) {
        self.metrics.connections.dec();
    }
}

/// Runs a gateway until `shutdown` resolves, or another gateway takes the volume over.
///
/// # Errors
/// It can't start, is refused, or was fenced; one sentence says what to do.
pub async fn run(config: GatewayConfig, shutdown: impl Future<Output = ()> + Send) -> Result<(), RunGateway> {
    tokio::pin!(shutdown);
    let (identity, coordinator) = enrol(&config.api, &config.token, "gateway", &config.name).await?;
    let endpoint = Arc::new(Endpoint::bind(SocketAddr::new(config.bind, 0), identity.clone(), Tuning::default())?);
    let metrics = Metrics::gateway(&config.volume);
    metrics.daemon.set_certificates(identity.not_after_unix_seconds(), identity.ca_not_after_unix_seconds());
    let admin = match config.admin {
        Some(addr) => {
            let metrics = metrics.clone();
            let text = move || {
                let text = metrics.text();
                async move { text }
            };
            let routes = axum::Router::new().route("/metrics", axum::routing::get(text));
            Some(AdminServer::serve(addr, AdminTransport::Auto, &identity, guard::readers_only(routes)).await?)
        }
        None => None,
    };
    let admin_url = admin.as_ref().map(AdminServer::url).unwrap_or_default();
    let guest = Arc::new(Guest::new(metrics.foreground.clone()));
    let connected = metrics.coordinator.clone();
    let mut control = Control::start(endpoint.clone(), coordinator, &config, admin_url, guest.clone(), connected);
    let attached = tokio::select! {
        attached = control.attached() => attached,
        () = &mut shutdown => return Ok(()),
    };
    let Grant { id, incarnation, lost, map } =
        attached.map_err(|reason| RunGateway::Attach { volume: config.volume.clone(), reason })?;
    let router = Router::new(VolumeId(id), incarnation, endpoint.clone(), map);
    if lost {
        tracing::warn!(
            volume = config.volume,
            "the gateway before and all copies of some data restarted together: what was not flushed may be lost, and the next flush fails once"
        );
        router.tell_loss();
    }
    let volume = Arc::new(Volume::new(VolumeId(id), router.clone()));
    volume.follow_limits();
    let export = Arc::new(Export::new(&config.volume, volume.clone()));
    let listener = match &config.listen {
        ListenAt::Unix(path) => Listener::bind_unix(path, nbd::listener::SOCKET_MODE).await?,
        ListenAt::Tcp(addr) => Listener::bind_tcp(*addr).await?,
    };
    let server =
        Server::start(listener, export, Arc::new(Measured { metrics: metrics.clone(), guest }), Limits::default());
    tracing::info!(volume = config.volume, incarnation, "the gateway serves");
    let outcome = loop {
        tokio::select! {
            () = &mut shutdown => break Ok(()),
            () = router.fenced() => break Err(RunGateway::Fenced(config.volume.clone())),
            news = control.news(&router) => match news {
                News::Map(map) => {
                    metrics.map_version.set(map.version as i64);
                    router.set_map(map);
                    volume.follow_limits();
                }
                News::Fenced => router.fence(),
            }
        }
    };
    server.stop(DRAIN).await;
    if outcome.is_ok() {
        let untold = last_flush(&router).await;
        control.release(id, incarnation, untold).await;
    }
    endpoint.close("the gateway stops").await;
    if let Some(admin) = admin {
        admin.stop(Duration::from_secs(1)).await;
    }
    outcome
}

/// Makes what was acked stable before the volume is given back; true: a loss was not told to the guest yet.
async fn last_flush(router: &Arc<Router>) -> bool {
    let flush = router.flush();
    tokio::pin!(flush);
    let mut outcome = tokio::time::timeout(LAST_FLUSH_QUIET, &mut flush).await;
    if outcome.is_err() {
        tracing::warn!(
            "stopping: the last flush waits for nodes that don't answer, for up to {} s more (a second signal ends at once)",
            LAST_FLUSH_MAX.as_secs()
        );
        outcome = tokio::time::timeout(LAST_FLUSH_MAX, flush).await;
    }
    match outcome {
        Ok(Ok(_)) => false,
        Ok(Err(_)) => {
            tracing::warn!("the last flush was refused");
            true
        }
        Err(_) => {
            tracing::warn!(
                "gave up the last flush: what was acked since the guest's last flush is on the nodes, as in a disk's cache"
            );
            false
        }
    }
}

/// A volume's hash: BLAKE3 over its chunks' roots, asked of the primaries; next to no data is read.
///
/// # Errors
/// The volume doesn't exist, or a chunk has no readable copy.
pub async fn volume_hash(api: &str, token: &str, volume: &str) -> Result<Hash, RunGateway> {
    let (identity, coordinator) = enrol(api, token, "operator", "volume-hash").await?;
    let bind: IpAddr = if coordinator.ip().is_loopback() { [127, 0, 0, 1].into() } else { [0, 0, 0, 0].into() };
    let endpoint = Arc::new(Endpoint::bind(SocketAddr::new(bind, 0), identity, Tuning::default())?);
    let mut maps = control::observe(endpoint.clone(), coordinator).await.map_err(RunGateway::Api)?;
    let map = maps.borrow_and_update().clone();
    let found = map.volumes.values().find(|v| v.name == volume && !v.deleting).cloned();
    let record = found.ok_or_else(|| RunGateway::UnknownVolume(volume.to_owned()))?;
    let router = Router::new(record.id, 0, endpoint.clone(), map);
    // Primaries may change while it is under way, or have changed since the map was sent.
    let following = router.clone();
    let follow = tokio::spawn(async move {
        while maps.changed().await.is_ok() {
            following.set_map(maps.borrow_and_update().clone());
        }
    });
    let roots = futures_util::stream::iter(0..record.chunk_count())
        .map(|index| {
            let (router, record) = (router.clone(), record.clone());
            async move {
                let len = (record.size_bytes - u64::from(index) * CHUNK_BYTES).min(CHUNK_BYTES) as u32;
                let pg = record.pg_of(index)?;
                match router.submit(pg, ClientOp::Root { chunk: record.chunk(index), len }).await {
                    ClientReply::Root(root) => Some(root),
                    _ => None,
                }
            }
        })
        .buffered(ROOTS_UNDER_WAY);
    let mut hasher = VolumeHasher::default();
    let mut index = 0;
    tokio::pin!(roots);
    while let Some(root) = roots.next().await {
        let root = root.ok_or_else(|| RunGateway::Unreadable { volume: volume.to_owned(), chunk: index })?;
        hasher.push(&root);
        index += 1;
    }
    follow.abort();
    endpoint.close("done").await;
    Ok(hasher.finish())
}
