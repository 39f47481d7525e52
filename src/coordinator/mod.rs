//! The coordinator: holds the cluster map, watches who is alive, promotes, plans, and lets moves run.
//!
//! It is never on the IO path. One task owns the state ([`owner`]); links ([`session`]) and HTTP ([`crate::api::router`])
//! send it messages. What it knows and decides is pure, and the simulator runs the same: [`crate::core::manager`].
//!
//! Invariants: every change is stable before anybody sees its effect; a restart loses nothing (what isn't stored is
//! rebuilt from registrations); a coordinator that has just started or was frozen judges nobody at once.
//!
//! Non-goals: several coordinators (the store's compare-and-swap is where they will meet).

mod admin;
mod baselines;
mod console;
mod control;
mod events;
mod figures;
mod files;
mod health;
mod jobs;
mod owner;
mod probe;
mod progress;
mod redundancy;
mod resync;
mod session;
mod steer;
mod stop;
mod survey;
mod totals;
mod view;
mod whatif;
mod wiring;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use axum::extract::ConnectInfo;
use tokio::sync::mpsc;

pub use control::FEATURE_LEVEL;
pub use files::{FileFailed, RunFile};
pub use probe::Probe;

use crate::api::calls::{Access, Caller};
use crate::api::metrics::Metrics;
use crate::api::router::router;
use crate::core::cluster::command::{Command, Context, Nobody, Refusal};
use crate::core::cluster::state::ClusterState;
use crate::core::ids::ClusterId;
use crate::meta::sled_store::SledStore;
use crate::meta::{Batch, MetaError, MetaStore, migrate, records};
use crate::net::admin::{AdminPeer, AdminServer, AdminTransport, ServeAdminError};
use crate::net::ca::{CaError, ClusterCa};
use crate::net::identity::{Identity, IdentityError, PendingIdentity, Role, RoleKind, cert_pem};
use crate::net::quic::{BindEndpointError, Endpoint};
use crate::net::token::BearerToken;
use crate::net::tuning::Tuning;

/// A coordinator's certificate is made anew when it would run out within this.
const RENEW_BEFORE: Duration = Duration::from_secs(60 * 86_400);
/// Requests in progress get so long at a clean stop.
const STOP_GRACE: Duration = Duration::from_secs(2);
/// Admin calls that wait for the owner.
const CALLS_MAX: usize = 256;

/// Where to make a cluster.
#[derive(Clone, Debug)]
pub struct InitConfig {
    /// The coordinator's directory; made if it is missing.
    pub dir: PathBuf,
}

/// How to run a coordinator.
#[derive(Clone, Debug)]
pub struct CoordinatorConfig {
    /// Its directory.
    pub dir: PathBuf,
    /// QUIC address; port 0: that of the last run, else any.
    pub listen: SocketAddr,
    /// Admin HTTP address; port 0 as above.
    pub admin: SocketAddr,
    /// Replaces the stored setting.
    pub debounce_seconds: Option<f64>,
    /// Replaces the stored setting.
    pub grace_seconds: Option<f64>,
}

/// Why a cluster can't be made.
#[derive(Debug, thiserror::Error)]
pub enum InitCluster {
    /// The store.
    #[error(transparent)]
    Meta(#[from] MetaError),
    /// The CA.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// The coordinator's identity.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A file.
    #[error(transparent)]
    File(#[from] FileFailed),
    /// The map.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// Why a coordinator doesn't run, or ended.
#[derive(Debug, thiserror::Error)]
pub enum RunCoordinator {
    /// The store.
    #[error(transparent)]
    Meta(#[from] MetaError),
    /// The CA.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// The coordinator's identity.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A file.
    #[error(transparent)]
    File(#[from] FileFailed),
    /// The QUIC address.
    #[error(transparent)]
    Listen(#[from] BindEndpointError),
    /// The admin address.
    #[error(transparent)]
    Admin(#[from] ServeAdminError),
    /// A setting given at the start.
    #[error(transparent)]
    Setting(#[from] Refusal),
}

/// Makes a cluster: CA, the coordinator's identity, an empty map, `api.token`.
///
/// # Errors
/// The directory holds a cluster already, or can't be written.
pub fn init(config: &InitConfig) -> Result<ClusterId, InitCluster> {
    let dir = &config.dir;
    let failed = |source| FileFailed { path: dir.clone(), source };
    std::fs::create_dir_all(dir).map_err(failed)?;
    if dir.join("meta.marker").exists() || dir.join("meta").exists() {
        return Err(MetaError::Exists(dir.join("meta")).into());
    }
    let cluster = ClusterId(rand::random());
    let now_seconds = wiring::unix_ms() / 1000;
    let ca = ClusterCa::create(cluster, now_seconds)?;
    ca.save(&dir.join("ca"))?;
    make_identity(&ca, now_seconds)?.save(&dir.join("identity"))?;
    files::write_atomically(&dir.join("api.token"), BearerToken::generate().reveal().as_bytes())?;
    // The store comes last: with it the cluster exists.
    let store = SledStore::create(dir)?;
    migrate::migrate(&store, false)?;
    let mut state = ClusterState::empty();
    let command = Command::Init { cluster, feature_level: FEATURE_LEVEL };
    let applied = state.apply(command, &Context { liveness: &Nobody })?;
    let mut batch = Batch::default();
    records::put_changes(&state, &applied.changed.into_iter().collect(), &mut batch);
    store.commit(&batch)?;
    Ok(cluster)
}

fn make_identity(ca: &ClusterCa, now_seconds: u64) -> Result<Identity, InitCluster> {
    let pending = PendingIdentity::generate()?;
    let cert = ca.issue(pending.request_pem(), &Role::Coordinator, now_seconds)?;
    Ok(pending.complete(&cert, &cert_pem(&ca.cert()), Some(ca.fingerprint()))?)
}

/// Runs a coordinator until `shutdown` is done; then it stops in good order.
///
/// # Errors
/// It can't start, or its store fails; each is one sentence with the way out.
pub async fn run(config: CoordinatorConfig, shutdown: impl Future<Output = ()>) -> Result<(), RunCoordinator> {
    let dir = config.dir.clone();
    let store = open_store(&config).await?;
    let now_seconds = wiring::unix_ms() / 1000;
    let ca = ClusterCa::load(&dir.join("ca"))?;
    let identity = Arc::new(load_identity(&dir.join("identity"), &ca, now_seconds)?);
    let token_path = dir.join("api.token");
    let token = std::fs::read_to_string(&token_path).map_err(|source| FileFailed { path: token_path, source })?;
    let token = BearerToken::from_text(&token);
    let viewer_token = viewer_token(&dir)?;

    let last = files::read_ports(&dir);
    let listen = files::keep_port(config.listen, last.map(|p| p.addr));
    let endpoint = Arc::new(Endpoint::bind(listen, identity.clone(), Tuning::default())?);
    let addr = endpoint.local_addr().map_err(|source| FileFailed { path: dir.clone(), source })?;

    let (inbox, inputs) = mpsc::channel(owner::MAILBOX_MAX);
    let map_version = Arc::new(AtomicU64::new(0));
    let facts =
        owner::Facts { ca, coordinator_addr: addr, metrics: Metrics::coordinator(), map_version: map_version.clone() };
    facts.metrics.daemon.set_certificates(identity.not_after_unix_seconds(), identity.ca_not_after_unix_seconds());
    let mut owner = owner::Owner::new(store, facts, inbox.downgrade(), wiring::now())?;
    owner.set_times(config.debounce_seconds, config.grace_seconds)?;

    let (calls, mut waiting) = mpsc::channel(CALLS_MAX);
    let admin_addr = files::keep_port(config.admin, last.map(|p| p.admin));
    let console = console::hub(inbox.clone());
    let routes = router(calls, Arc::new(authoriser(token, viewer_token)), console.routes());
    let admin = AdminServer::serve(admin_addr, AdminTransport::Auto, &identity, routes).await?;
    owner.admin_url = admin.url();
    let to_owner = inbox.clone();
    let forward = tokio::spawn(async move {
        while let Some(call) = waiting.recv().await {
            if to_owner.send(owner::Input::Admin(call)).await.is_err() {
                return;
            }
        }
    });
    let accept = tokio::spawn(session::accept(endpoint.clone(), inbox.clone(), map_version));
    let pulse = tokio::spawn(session::pulse(inbox));

    let ports = files::Ports { addr, admin: admin.local_addr() };
    let run_file = RunFile { pid: std::process::id(), addr: addr.to_string(), admin_url: admin.url() };
    files::write_atomically(&dir.join("ports.json"), &serde_json::to_vec(&ports).unwrap_or_default())?;
    files::write_atomically(&dir.join("run.json"), &serde_json::to_vec(&run_file).unwrap_or_default())?;
    tracing::info!(%addr, admin = %admin.url(), "the coordinator serves");

    let ended = owner.run(inputs, shutdown).await;
    // Without its file nobody takes this process for one that serves.
    let _ = std::fs::remove_file(dir.join("run.json"));
    [&accept, &pulse, &forward].iter().for_each(|t| t.abort());
    admin.stop(STOP_GRACE).await;
    endpoint.close("the coordinator is stopping").await;
    Ok(ended?)
}

async fn open_store(config: &CoordinatorConfig) -> Result<Arc<dyn MetaStore>, MetaError> {
    let dir = config.dir.clone();
    let opened = tokio::task::spawn_blocking(move || {
        let store = SledStore::open(&dir)?;
        migrate::migrate(&store, false)?;
        Ok(store)
    });
    match opened.await {
        Ok(store) => Ok(Arc::new(store?)),
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

/// Loads the identity, or makes a new one with the CA that is here anyway if it runs out soon.
fn load_identity(dir: &std::path::Path, ca: &ClusterCa, now_seconds: u64) -> Result<Identity, RunCoordinator> {
    match Identity::load(dir, Some(ca.cluster()), now_seconds) {
        Ok(identity) if identity.not_after_unix_seconds() > now_seconds + RENEW_BEFORE.as_secs() => Ok(identity),
        Ok(_) | Err(IdentityError::Expired { .. }) => {
            let identity = make_identity(ca, now_seconds).map_err(|e| match e {
                InitCluster::Ca(e) => RunCoordinator::Ca(e),
                InitCluster::Identity(e) => RunCoordinator::Identity(e),
                InitCluster::Meta(e) => RunCoordinator::Meta(e),
                InitCluster::File(e) => RunCoordinator::File(e),
                InitCluster::Refused(e) => RunCoordinator::Setting(e),
            })?;
            identity.save(dir)?;
            Ok(identity)
        }
        Err(e) => Err(e.into()),
    }
}

/// The token of those who may only read; made if the cluster is older than it.
fn viewer_token(dir: &std::path::Path) -> Result<BearerToken, FileFailed> {
    let path = dir.join("viewer.token");
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(BearerToken::from_text(&text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let token = BearerToken::generate();
            files::write_atomically(&path, token.reveal().as_bytes())?;
            Ok(token)
        }
        Err(source) => Err(FileFailed { path, source }),
    }
}

/// Bearer token or certificate; and whether the caller is on this host.
fn authoriser(
    token: BearerToken,
    viewer: BearerToken,
) -> impl Fn(&axum::http::Extensions, &axum::http::HeaderMap) -> Access {
    move |extensions, headers| {
        let peer = extensions.get::<ConnectInfo<AdminPeer>>().map(|c| &c.0);
        let loopback = peer.is_some_and(AdminPeer::is_loopback);
        let header = headers.get(axum::http::header::AUTHORIZATION).and_then(|v| v.to_str().ok());
        let role = peer.and_then(|p| p.identity.as_ref()).map(|i| i.role.kind());
        let (caller, by) = match role {
            _ if header.is_some_and(|h| token.matches_header(h)) => (Caller::Operator, "operator (api.token"),
            Some(RoleKind::Operator) => (Caller::Operator, "operator (certificate"),
            _ if header.is_some_and(|h| viewer.matches_header(h)) => (Caller::Viewer, "viewer (viewer.token"),
            Some(RoleKind::Viewer) => (Caller::Viewer, "viewer (certificate"),
            _ => (Caller::Anyone, "anyone (no token"),
        };
        let from = peer.map_or_else(|| "nowhere".to_owned(), |p| p.addr.ip().to_canonical().to_string());
        Access { caller, loopback, asker: format!("{by}, from {from})") }
    }
}

#[cfg(test)]
mod tests;
