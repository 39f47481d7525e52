//! The node daemon: one process a host, with one or more disks.
//!
//! It joins the cluster once with a single-use token, keeps its identity in its directory, registers what its disks
//! know at each start, and then does what the map says: leads, follows or learns placement groups.

mod admin;
pub mod bulk;
mod console;
pub mod control;
mod cpu;
pub mod disks;
pub mod engine;
pub mod leases;
pub mod links;
pub mod queue;
pub mod throttle;
pub mod watch;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::api::metrics::Metrics;
use crate::api::types::{ApiError, JoinReply, JoinRequest};
use crate::core::cluster::ClusterMap;
use crate::core::ids::{ClusterId, DiskId, NodeId};
use crate::core::units::CHUNK_BYTES;
use crate::disk::{self, Disk};
use crate::net::admin::{AdminServer, AdminTransport};
use crate::net::identity::{Identity, PendingIdentity};
use crate::net::quic::Endpoint;
use crate::net::token::JoinToken;
use crate::net::tuning::Tuning;
use crate::wire::control as msg;
use crate::wire::replica::PeerHello;
use crate::wire::stats;

use bulk::Bulk;
use control::{Control, ControlError};
use disks::DiskHandle;
use engine::{Engine, Event, Events, Parts};
use links::Links;
use throttle::Throttle;

/// Class of a disk for which none is given.
pub const DEFAULT_CLASS: &str = "ssd";

/// How a node is set up.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Its directory: identity and state.
    pub dir: PathBuf,
    /// Its name, unique in the cluster.
    pub name: String,
    /// QUIC address; port 0 takes a free one and keeps it.
    pub listen: SocketAddr,
    /// UDP port for leases at the same address; 0 takes a free one.
    pub lease_port: u16,
    /// UDP port for copies at the same address; 0 takes a free one.
    pub bulk_port: u16,
    /// Admin HTTP address; port 0 takes a free one.
    pub admin: SocketAddr,
    /// The coordinator's admin URL, for joining.
    pub api: String,
    /// Needed once.
    pub join_token: Option<String>,
    /// Disks.
    pub disks: Vec<DiskConfig>,
    /// Failure domain.
    pub zone: String,
    /// Failure domain.
    pub rack: String,
}

/// A disk of a node.
#[derive(Clone, Debug)]
pub struct DiskConfig {
    /// Directory or block device.
    pub path: PathBuf,
    /// For a disk that is to be formatted.
    pub size_bytes: Option<u64>,
    /// For a disk that is to be formatted.
    pub class: String,
}

/// Why a node can't run.
#[derive(Debug, thiserror::Error)]
pub enum RunNode {
    /// No identity and no token.
    #[error(
        "{} holds no identity and no join token was given: make one with 'evenkeel token create --role node' and start with --join-token", .0.display()
    )]
    NotJoined(PathBuf),
    /// The coordinator refused the token, or can't be reached.
    #[error("can't join the cluster: {0}")]
    Join(String),
    /// Identity.
    #[error(transparent)]
    Identity(#[from] crate::net::identity::IdentityError),
    /// A file of the node's directory.
    #[error("can't use {}: {reason}", path.display())]
    NodeFile {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A disk.
    #[error(transparent)]
    OpenDisk(#[from] disk::OpenDisk),
    /// A new disk.
    #[error(transparent)]
    FormatDisk(#[from] disk::FormatDisk),
    /// A new disk without a size.
    #[error("{} is not formatted yet: give its size, as in --disk {},size=1TiB", .0.display(), .0.display())]
    SizeMissing(PathBuf),
    /// No disk at all.
    #[error("the node has no disk: give at least one with --disk PATH,size=SIZE")]
    NoDisk,
    /// QUIC.
    #[error(transparent)]
    Bind(#[from] crate::net::quic::BindEndpointError),
    /// Leases.
    #[error("can't start the lease thread: {0}")]
    Leases(String),
    /// Copies.
    #[error(transparent)]
    Bulk(#[from] bulk::StartBulk),
    /// Admin.
    #[error(transparent)]
    Admin(#[from] crate::net::admin::ServeAdminError),
    /// The coordinator.
    #[error(transparent)]
    Control(#[from] ControlError),
}

/// What the node keeps of its membership.
#[derive(Serialize, Deserialize)]
struct Membership {
    node: NodeId,
    cluster: ClusterId,
    coordinator_addr: SocketAddr,
    listen: SocketAddr,
    /// Highest map seen (R4).
    #[serde(default)]
    map_epoch: u32,
    #[serde(default)]
    map_version: u64,
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// Writes a file whole or not at all.
///
/// # Errors
/// The file system refuses.
pub fn write_atomically(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file = std::fs::File::create(&temporary)?;
    std::io::Write::write_all(&mut file, content)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    match path.parent() {
        Some(parent) => std::fs::File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

fn node_file(path: &Path) -> impl Fn(&dyn std::fmt::Display) -> RunNode {
    let path = path.to_owned();
    move |e| RunNode::NodeFile { path: path.clone(), reason: e.to_string() }
}

fn load_membership(path: &Path) -> Result<Option<Membership>, RunNode> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|e| node_file(path)(&e)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(node_file(path)(&e)),
    }
}

fn save_membership(path: &Path, membership: &Membership) -> Result<(), RunNode> {
    let bytes = serde_json::to_vec_pretty(membership).map_err(|e| node_file(path)(&e))?;
    write_atomically(path, &bytes).map_err(|e| node_file(path)(&e))
}

/// Trades the join token for an identity.
fn join(config: &NodeConfig, token: &str, addr: SocketAddr) -> Result<(Identity, Membership), RunNode> {
    let refused = |e: &dyn std::fmt::Display| RunNode::Join(e.to_string());
    let parsed = JoinToken::parse(token).map_err(|e| refused(&e))?;
    let pending = PendingIdentity::generate()?;
    let request = JoinRequest {
        token: token.to_owned(),
        name: config.name.clone(),
        csr_pem: pending.request_pem().to_owned(),
        addr: Some(addr.to_string()),
        zone: config.zone.clone(),
        rack: config.rack.clone(),
    };
    let reply: JoinReply =
        crate::api::client::post_json(&format!("{}/v1/join", config.api.trim_end_matches('/')), None, &request)
            .map_err(|e: ApiError| RunNode::Join(e.error))?;
    let identity = pending.complete(&reply.certificate_pem, &reply.ca_pem, Some(parsed.ca_fingerprint()))?;
    let node =
        reply.node.ok_or_else(|| RunNode::Join("the coordinator gave no node id: is this a node's token?".into()))?;
    let membership = Membership {
        node,
        cluster: reply.cluster.parse().map_err(|e| refused(&e))?,
        coordinator_addr: reply.coordinator_addr.parse().map_err(|e| refused(&e))?,
        listen: addr,
        map_epoch: 0,
        map_version: 0,
    };
    Ok((identity, membership))
}

/// A free UDP port of the address: bound and let go, so that it can be told to the coordinator before it is used.
fn choose_port(listen: SocketAddr) -> SocketAddr {
    if listen.port() != 0 {
        return listen;
    }
    std::net::UdpSocket::bind(listen).and_then(|s| s.local_addr()).unwrap_or(listen)
}

/// Runs a node until `shutdown` resolves; then stops it cleanly.
///
/// # Errors
/// It can't start, or the coordinator refuses it; one sentence says what to do.
pub async fn run(config: NodeConfig, shutdown: impl Future<Output = ()> + Send) -> Result<(), RunNode> {
    if config.disks.is_empty() {
        return Err(RunNode::NoDisk);
    }
    std::fs::create_dir_all(&config.dir).map_err(|e| node_file(&config.dir)(&e))?;
    let membership_path = config.dir.join("node.json");
    let identity_dir = config.dir.join("identity");
    let (identity, membership) = match load_membership(&membership_path)? {
        Some(membership) => (Identity::load(&identity_dir, Some(membership.cluster), unix_seconds())?, membership),
        None => {
            let token = config.join_token.clone().ok_or_else(|| RunNode::NotJoined(config.dir.clone()))?;
            let addr = choose_port(config.listen);
            let (identity, membership) = {
                let config = config.clone();
                tokio::task::spawn_blocking(move || join(&config, &token, addr))
                    .await
                    .map_err(|e| RunNode::Join(e.to_string()))??
            };
            identity.save(&identity_dir)?;
            save_membership(&membership_path, &membership)?;
            (identity, membership)
        }
    };
    let identity = Arc::new(identity);
    let listen = if config.listen.port() == 0 { membership.listen } else { config.listen };
    let endpoint = match Endpoint::bind(listen, identity.clone(), Tuning::default()) {
        Ok(endpoint) => endpoint,
        // Its old port is taken by something else: any other will do, the coordinator is told.
        Err(_) if config.listen.port() == 0 => Endpoint::bind(config.listen, identity.clone(), Tuning::default())?,
        Err(error) => return Err(error.into()),
    };
    let addr = endpoint.local_addr().map_err(|e| node_file(&config.dir)(&e))?;
    let coordinator = membership.coordinator_addr;
    tokio::pin!(shutdown);

    let events = Events::default();
    let opened = tokio::select! {
        opened = open_disks(&config, &membership, &endpoint, coordinator) => opened?,
        () = &mut shutdown => return Ok(()),
    };
    let started = {
        let events = events.clone();
        tokio::task::spawn_blocking(move || {
            let start = |disk: Disk| {
                let events = events.clone();
                DiskHandle::start(disk, move |done| events.push(Event::Disk(done)))
            };
            opened.into_iter().map(start).map(|d| (d.id(), d)).collect::<BTreeMap<DiskId, DiskHandle>>()
        })
        .await
        .map_err(|e| RunNode::Leases(e.to_string()))?
    };

    let leases = leases::Leases::new();
    let lease_addr = SocketAddr::new(addr.ip(), config.lease_port);
    let lease_port = leases::start(leases.clone(), identity.clone(), lease_addr).map_err(RunNode::Leases)?;
    let process = rand::random::<u64>() | 1;
    let throttle = Arc::new(Throttle::new());
    let bulk = Bulk::start(SocketAddr::new(addr.ip(), config.bulk_port), identity.clone(), throttle.clone())?;
    let hello = PeerHello {
        node: membership.node.0,
        process,
        lease_port: u32::from(lease_port),
        bulk_port: u32::from(bulk.port),
        ..PeerHello::default()
    };
    let links = Arc::new(Links { endpoint, bulk, events: events.clone(), hello, next_channel: AtomicU64::new(1) });
    let (to_coordinator, outgoing) = tokio::sync::mpsc::unbounded_channel();
    let counters = Arc::new(engine::Counters::default());
    let stats = Arc::new(parking_lot::Mutex::new(stats::Stats::default()));
    let metrics = Arc::new(Metrics::node());
    metrics.daemon.set_certificates(identity.not_after_unix_seconds(), identity.ca_not_after_unix_seconds());

    let observed = admin::Observed {
        metrics: metrics.clone(),
        stats: stats.clone(),
        counters: counters.clone(),
        throttle: throttle.clone(),
    };
    let heard = Arc::new(AtomicU64::new(0));
    let fixed = console::Fixed {
        node: membership.node,
        cluster: membership.cluster.to_string(),
        name: config.name.clone(),
        zone: config.zone.clone(),
        rack: config.rack.clone(),
        addr: addr.to_string(),
        coordinator_url: config.api.clone(),
        disks: started.values().map(|d| (d.id(), d.disk().superblock().class, d.disk().path().to_owned())).collect(),
    };
    let console = console::Console::new(fixed, observed.clone(), heard.clone());
    let routes = admin::router(observed, events.clone(), console.clone().hub().routes());
    let admin = AdminServer::serve(config.admin, AdminTransport::Auto, &identity, routes).await?;
    let watching = tokio::spawn(console.watch());
    let admin_url = admin.url();

    let disk_list: Vec<(DiskId, Arc<Disk>, PathBuf)> =
        started.values().map(|d| (d.id(), d.disk().clone(), d.disk().path().to_owned())).collect();
    let register = {
        let (node, admin_url) = (membership.node, admin_url.clone());
        let path = membership_path.clone();
        move |map: &ClusterMap| {
            let seen = load_membership(&path).ok().flatten();
            let (epoch, version) = seen.map_or((0, 0), |m| (m.map_epoch, m.map_version));
            msg::Register {
                node: node.0,
                release: env!("CARGO_PKG_VERSION").into(),
                feature_min: crate::core::cluster::FEATURE_LEVELS.0,
                feature_max: crate::core::cluster::FEATURE_LEVELS.1,
                addr: addr.to_string(),
                admin_url: admin_url.clone(),
                map_epoch: epoch.max(map.epoch),
                map_version: if map.epoch >= epoch { map.version.max(version) } else { version },
                disks: disk_list.iter().map(|(id, disk, path)| report(*id, disk, path)).collect(),
                pid: std::process::id(),
                process,
            }
        }
    };
    let engine_thread = {
        let handles = metrics.clone();
        let parts = Parts {
            disks: started,
            links: links.clone(),
            leases,
            throttle: throttle.clone(),
            control: to_coordinator,
            counters,
            stats,
            runtime: tokio::runtime::Handle::current(),
            metrics: handles.foreground.clone(),
        };
        let engine = Engine::new(parts);
        std::thread::Builder::new()
            .name("engine".into())
            .spawn({
                let events = events.clone();
                move || engine.run(&events)
            })
            .map_err(|e| RunNode::Leases(e.to_string()))?
    };
    let accepting = tokio::spawn(links.clone().accept());
    let (registered, first_registration) = tokio::sync::oneshot::channel();
    let control = Control {
        links: links.clone(),
        coordinator,
        register: Box::new(register),
        events: events.clone(),
        throttle,
        registered: Some(registered),
        connected: metrics.coordinator.clone(),
        heard,
    };
    let mut control = tokio::spawn(control.run(outgoing));
    let run_file = config.dir.join("run.json");
    let announce = {
        let run_file = run_file.clone();
        async move {
            if first_registration.await.is_ok() {
                let run = serde_json::json!({
                    "pid": std::process::id(), "addr": addr.to_string(), "admin_url": admin_url,
                    "node": membership.node, "disks": disk_ids_of(&config),
                });
                if let Err(error) = write_atomically(&run_file, run.to_string().as_bytes()) {
                    tracing::error!(%error, "can't write run.json");
                }
                tracing::info!(node = %membership.node, %addr, "the node serves");
            }
            std::future::pending::<()>().await
        }
    };
    let outcome = tokio::select! {
        () = &mut shutdown => Ok(()),
        ended = &mut control => match ended {
            Ok(Err(error)) => Err(error.into()),
            _ => Ok(()),
        },
        () = announce => Ok(()),
    };
    tracing::info!("stopping");
    let _ = std::fs::remove_file(&run_file);
    accepting.abort();
    watching.abort();
    let (done, stopped) = crossbeam_channel::bounded(1);
    events.push(Event::Stop(done));
    let waited = tokio::task::spawn_blocking(move || {
        let _ = stopped.recv();
        engine_thread.join().is_ok()
    });
    if !waited.await.unwrap_or(false) {
        tracing::error!("the engine thread had panicked");
    }
    control.abort();
    tokio::join!(links.endpoint.close("the node stops"), links.bulk.endpoint.close("the node stops"));
    admin.stop(Duration::from_secs(1)).await;
    outcome
}

fn disk_ids_of(config: &NodeConfig) -> Vec<serde_json::Value> {
    config
        .disks
        .iter()
        .filter_map(|d| disk::inspect(&d.path).ok().map(|s| serde_json::json!({ "id": s.disk, "path": d.path })))
        .collect()
}

fn report(id: DiskId, disk: &Disk, path: &Path) -> msg::DiskReport {
    let space = disk.space();
    let superblock = disk.superblock();
    msg::DiskReport {
        disk: id.0,
        boot: disk.boot_id().0,
        capacity_bytes: space.capacity_bytes,
        used_bytes: space.slots_used * CHUNK_BYTES,
        class: superblock.class,
        failed: disk.is_failed(),
        pgs: disk
            .pg_list()
            .into_iter()
            .map(|record| msg::PgReport {
                pg: record.pg.to_u64(),
                generation_epoch: record.generation.epoch,
                generation_n: record.generation.n,
                complete: record.complete,
                flush_mark: disk.flush_mark(record.pg),
                durability_epoch: record.durability_epoch,
            })
            .collect(),
        path: path.display().to_string(),
    }
}

/// Opens the node's disks; formats those that are new with ids from the coordinator.
async fn open_disks(
    config: &NodeConfig,
    membership: &Membership,
    endpoint: &Endpoint,
    coordinator: SocketAddr,
) -> Result<Vec<Disk>, RunNode> {
    let is_new = |path: &Path| match disk::inspect(path) {
        Ok(_) => Ok(false),
        Err(disk::OpenDisk::NotADisk { .. }) => Ok(true),
        Err(error) => Err(RunNode::from(error)),
    };
    let mut fresh = Vec::new();
    for disk in &config.disks {
        if is_new(&disk.path)? {
            let size = disk.size_bytes.ok_or_else(|| RunNode::SizeMissing(disk.path.clone()))?;
            fresh.push((disk, size));
        }
    }
    let class_of = |d: &DiskConfig| if d.class.is_empty() { DEFAULT_CLASS.to_owned() } else { d.class.clone() };
    let asked: Vec<(String, u64)> = fresh.iter().map(|(d, size)| (class_of(d), *size)).collect();
    if !asked.is_empty() {
        let ids = control::allocate_disks(endpoint, coordinator, membership.node, &asked).await?;
        for ((disk, capacity_bytes), id) in fresh.into_iter().zip(ids) {
            let class = class_of(disk);
            let options = disk::FormatOptions { cluster: membership.cluster, disk: id, class, capacity_bytes };
            disk::format(&disk.path, &options)?;
        }
    }
    let versions_path = config.dir.join("disks.json");
    let mut versions = load_versions(&versions_path)?;
    let mut opened = Vec::new();
    for disk in &config.disks {
        let id = disk::inspect(&disk.path)?.disk;
        let version_min = versions.get(&id.0).copied().unwrap_or(0);
        let cluster = Some(membership.cluster);
        let options = disk::OpenOptions { cluster, version_min, ..disk::OpenOptions::default() };
        let disk = Disk::open(&disk.path, options)?;
        versions.insert(id.0, disk.superblock().version);
        opened.push(disk);
    }
    // Before any of them is used.
    let bytes = serde_json::to_vec(&versions).map_err(|e| node_file(&versions_path)(&e))?;
    write_atomically(&versions_path, &bytes).map_err(|e| node_file(&versions_path)(&e))?;
    Ok(opened)
}

/// The superblock's version of each disk when it was last opened by this node: by it an old copy is known.
fn load_versions(path: &Path) -> Result<BTreeMap<u32, u64>, RunNode> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| node_file(path)(&e)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(BTreeMap::new()),
        Err(e) => Err(node_file(path)(&e)),
    }
}
