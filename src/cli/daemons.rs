//! Starts the daemons: the only place of the command line that calls them.
//!
//! Each daemon runs on a tokio runtime of its own until it ends or a signal asks it to stop.

use std::path::Path;

use anyhow::Context as _;
use tokio::runtime::Runtime;

use crate::coordinator::{self, CoordinatorConfig, InitConfig};
use crate::core::hashtree::Hash;
use crate::core::ids::ClusterId;
use crate::gateway::{self, GatewayConfig, ListenAt};
use crate::node::{self, DiskConfig, NodeConfig};

use super::args::{CoordinatorRunArgs, GatewayArgs, GlobalArgs, InitArgs, NodeRunArgs};
use super::client::Access;
use super::config::{self, CoordinatorSettings, DiskSpec, GatewayListen, GatewaySettings, NodeSettings};
use super::out;
use super::signals::Stop;

/// The operator's token in a coordinator's directory, made by `init`.
pub const OPERATOR_TOKEN_FILE: &str = "api.token";

/// `init`.
pub fn init(args: &InitArgs) -> anyhow::Result<()> {
    let cluster = make_cluster(&args.dir)?;
    out::line(format!(
        "made cluster {cluster} in {0}; the operator's token is in {0}/{OPERATOR_TOKEN_FILE}\n\
         next: evenkeel coordinator run --dir {0}",
        args.dir.display()
    ))
}

/// `coordinator run`.
pub fn coordinator_command(args: &CoordinatorRunArgs) -> anyhow::Result<()> {
    run_coordinator(config::coordinator(args)?, Stop::on_signals()?)
}

/// `node run`.
pub fn node_command(args: &NodeRunArgs, api: Option<String>) -> anyhow::Result<()> {
    run_node(config::node(args, api)?, Stop::on_signals()?)
}

/// `gateway`.
pub fn gateway_command(args: &GatewayArgs, global: &GlobalArgs) -> anyhow::Result<()> {
    let file = config::gateway_file(args)?;
    let cluster = GlobalArgs {
        api: global.api.clone().or_else(|| file.api.clone()),
        token_file: global.token_file.clone().or_else(|| file.token_file.clone()),
        cluster: global.cluster.clone().or_else(|| file.cluster.clone()),
        ..global.clone()
    };
    let settings = config::gateway(args, file)?;
    run_gateway(settings, Access::find(&cluster)?, Stop::on_signals()?)
}

/// Makes a cluster's identity, CA and operator token in `dir`.
pub fn make_cluster(dir: &Path) -> anyhow::Result<ClusterId> {
    Ok(coordinator::init(&InitConfig { dir: dir.to_owned() })?)
}

fn run_coordinator(settings: CoordinatorSettings, stop: Stop) -> anyhow::Result<()> {
    let config = CoordinatorConfig {
        dir: settings.dir,
        listen: settings.listen,
        admin: settings.admin,
        debounce_seconds: settings.debounce_seconds,
        grace_seconds: settings.grace_seconds,
    };
    Ok(runtime()?.block_on(coordinator::run(config, stop.wait()))?)
}

fn runtime() -> anyhow::Result<Runtime> {
    // Each hand-over between workers costs a wake-up, and a daemon's IO and state machines have threads of their own: one
    // worker on a small host serves more requests than two (measured: a quarter more at 2 cores).
    let workers = std::thread::available_parallelism().map_or(1, |n| (n.get() / 4).clamp(1, 4));
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .enable_all()
        .build()
        .context("starting a runtime")
}

fn run_node(settings: NodeSettings, stop: Stop) -> anyhow::Result<()> {
    let disk = |d: DiskSpec| DiskConfig { path: d.path, size_bytes: d.size_bytes, class: d.class };
    let config = NodeConfig {
        dir: settings.dir,
        name: settings.name,
        listen: settings.listen,
        lease_port: settings.lease_port,
        bulk_port: settings.bulk_port,
        admin: settings.admin,
        api: settings.api,
        join_token: settings.join_token,
        disks: settings.disks.into_iter().map(disk).collect(),
        zone: settings.zone,
        rack: settings.rack,
    };
    Ok(runtime()?.block_on(node::run(config, stop.wait()))?)
}

fn run_gateway(settings: GatewaySettings, access: Access, stop: Stop) -> anyhow::Result<()> {
    let config = GatewayConfig {
        volume: settings.volume,
        listen: match settings.listen {
            GatewayListen::Unix(path) => ListenAt::Unix(path),
            GatewayListen::Tcp(addr) => ListenAt::Tcp(addr),
        },
        api: access.api,
        token: access.token,
        name: settings.name,
        take_over: settings.take_over,
        bind: settings.bind,
        admin: settings.admin,
    };
    Ok(runtime()?.block_on(gateway::run(config, stop.wait()))?)
}

/// A volume's hash, from the leaves that its replicas keep.
pub fn volume_hash(access: &Access, volume: &str) -> anyhow::Result<Hash> {
    Ok(runtime()?.block_on(gateway::volume_hash(&access.api, &access.token, volume))?)
}
