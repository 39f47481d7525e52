//! Options of what runs for long: the daemons, `dev` and `demo`.
//!
//! A daemon's options are all optional here, because its configuration file may give them: `cli::config` merges.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use crate::cli::config::DiskSpec;
use crate::core::units::parse_bytes;

use super::parse_seconds;

pub(super) const DEMO_EXAMPLES: &str = "\
Examples:
  evenkeel demo
  evenkeel demo --size 256MiB --nodes 4
  evenkeel demo --keep --dir /tmp/ek-demo      leaves the cluster running in the foreground";

pub(super) const DEV_EXAMPLES: &str = "\
Examples:
  evenkeel dev --dir /tmp/ek                   three nodes of one 4 GiB disk each; Ctrl-C stops them, the data stays
  evenkeel dev add-node --dir /tmp/ek --disk-size 8GiB
  evenkeel dev kill-node --dir /tmp/ek n2      as kill -9
  evenkeel dev start-node --dir /tmp/ek n2";

const KILL_NODE_EXAMPLES: &str = "\
Examples:
  evenkeel dev kill-node --dir /tmp/ek n2                      as a host that loses power
  evenkeel dev kill-node --dir /tmp/ek n2 --signal stop        it hangs until --signal cont
  evenkeel dev kill-node --dir /tmp/ek coordinator --signal term";

pub(super) const GATEWAY_EXAMPLES: &str = "\
Examples:
  evenkeel gateway --cluster /tmp/ek/cluster.json --volume vm1 --socket /run/vm1.sock
  qemu-system-x86_64 … -drive file=nbd+unix:///vm1?socket=/run/vm1.sock,format=raw,if=virtio";

/// `demo`.
#[derive(Clone, Debug, Args)]
pub struct DemoArgs {
    /// Nodes to begin with; one more joins later
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(3..=16))]
    pub nodes: u32,
    /// The volume's size
    #[arg(long, default_value = "1GiB", value_parser = parse_bytes)]
    pub size: u64,
    /// Leave the cluster running in the foreground at the end
    #[arg(long)]
    pub keep: bool,
    /// Where the cluster lives: an empty or missing directory; default: a temporary one
    #[arg(long, value_name = "D")]
    pub dir: Option<PathBuf>,
}

/// `dev` and its subcommands.
#[derive(Debug, Args)]
#[command(subcommand_negates_reqs = true)]
pub struct DevArgs {
    #[command(subcommand)]
    pub command: Option<DevCommand>,
    #[command(flatten)]
    pub run: Option<DevRunArgs>,
}

/// `dev` itself.
#[derive(Clone, Debug, Args)]
pub struct DevRunArgs {
    /// The cluster's directory: empty, missing, or that of an earlier `evenkeel dev`
    #[arg(long, value_name = "D")]
    pub dir: PathBuf,
    /// Nodes of a new cluster [default: 3]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub nodes: Option<u32>,
    /// Size of each disk of a new cluster [default: 4GiB]
    #[arg(long, value_parser = parse_bytes)]
    pub disk_size: Option<u64>,
    /// Disks of each node of a new cluster [default: 1]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=16))]
    pub disks_per_node: Option<u32>,
}

/// Changes to a running `dev` cluster.
#[derive(Debug, Subcommand)]
pub enum DevCommand {
    /// Run the cluster (the same as `dev` without a subcommand)
    #[command(after_help = "Example:\n  evenkeel dev run --dir /tmp/ek")]
    Run(DevRunArgs),
    /// Add a node; prints it as JSON once its disks are in the map
    #[command(after_help = "Example:\n  evenkeel dev add-node --dir /tmp/ek --disk-size 8GiB --disks 2")]
    AddNode {
        /// The cluster's directory
        #[arg(long, value_name = "D")]
        dir: PathBuf,
        /// Size of each of its disks
        #[arg(long, default_value = "4GiB", value_parser = parse_bytes)]
        disk_size: u64,
        /// How many disks
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=16))]
        disks: u32,
        /// Class of its disks, as ssd or hdd [default: what a node takes by itself]
        #[arg(long, default_value = "", hide_default_value = true)]
        class: String,
    },
    /// Send a signal to a daemon; KILL and TERM return after its exit
    #[command(after_help = KILL_NODE_EXAMPLES)]
    KillNode {
        /// The cluster's directory
        #[arg(long, value_name = "D")]
        dir: PathBuf,
        /// The node's name, or `coordinator`
        name: String,
        /// Which signal
        #[arg(long, value_enum, ignore_case = true, default_value_t)]
        signal: DevSignal,
    },
    /// Start a daemon that was killed; returns once it is back in the cluster
    #[command(after_help = "Example:\n  evenkeel dev start-node --dir /tmp/ek n2")]
    StartNode {
        /// The cluster's directory
        #[arg(long, value_name = "D")]
        dir: PathBuf,
        /// The node's name, or `coordinator`
        name: String,
    },
}

/// What `kill-node` sends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[value(rename_all = "UPPER")]
pub enum DevSignal {
    /// Ends it at once
    #[default]
    Kill,
    /// Asks it to stop cleanly
    Term,
    /// Freezes it
    Stop,
    /// Thaws it
    Cont,
}

/// `init`.
#[derive(Clone, Debug, Args)]
pub struct InitArgs {
    /// The coordinator's directory, which must be empty or missing
    #[arg(long, value_name = "DIR", env = "EVENKEEL_DIR")]
    pub dir: PathBuf,
}

/// `coordinator …`.
#[derive(Debug, Subcommand)]
pub enum CoordinatorCommand {
    /// Run the coordinator in the foreground
    #[command(after_help = "Example:\n  evenkeel coordinator run --config /etc/evenkeel/coordinator.toml")]
    Run(CoordinatorRunArgs),
}

/// `coordinator run`: flags and variables; the file is merged in `cli::config`.
#[derive(Clone, Debug, Default, Args)]
pub struct CoordinatorRunArgs {
    /// Configuration file (TOML); flags and variables override it
    #[arg(long, value_name = "FILE", env = "EVENKEEL_CONFIG")]
    pub config: Option<PathBuf>,
    /// Its directory, made by `evenkeel init`
    #[arg(long, value_name = "DIR", env = "EVENKEEL_DIR")]
    pub dir: Option<PathBuf>,
    /// QUIC address; port 0 takes a free one [default: 127.0.0.1:7401]
    #[arg(long, value_name = "ADDR", env = "EVENKEEL_LISTEN")]
    pub listen: Option<SocketAddr>,
    /// Admin HTTP address, on loopback [default: 127.0.0.1:7400]
    #[arg(long, value_name = "ADDR", env = "EVENKEEL_ADMIN")]
    pub admin: Option<SocketAddr>,
    /// Joins within this time make one plan [default: what the map says, at first 10]
    #[arg(long, value_name = "SECONDS", env = "EVENKEEL_DEBOUNCE_SECONDS", value_parser = parse_seconds)]
    pub debounce_seconds: Option<f64>,
    /// Time between a node's loss and its re-replication [default: what the map says, at first 600]
    #[arg(long, value_name = "SECONDS", env = "EVENKEEL_GRACE_SECONDS", value_parser = parse_seconds)]
    pub grace_seconds: Option<f64>,
}

pub(super) const NODE_RUN_EXAMPLES: &str = "\
Examples:
  evenkeel token create --role node > join.token          on the coordinator's host
  evenkeel node run --dir /var/lib/evenkeel/node --name n1 --api http://127.0.0.1:7400 \\
      --join-token-file join.token --disk /srv/disk1,size=4TiB,class=ssd
  evenkeel node run --config /etc/evenkeel/node.toml";

/// `node run`: flags and variables; the file is merged in `cli::config`.
#[derive(Clone, Debug, Default, Args)]
pub struct NodeRunArgs {
    /// Configuration file (TOML); flags and variables override it
    #[arg(long, value_name = "FILE", env = "EVENKEEL_CONFIG")]
    pub config: Option<PathBuf>,
    /// Its directory: identity and index
    #[arg(long, value_name = "DIR", env = "EVENKEEL_DIR")]
    pub dir: Option<PathBuf>,
    /// Its name, unique in the cluster
    #[arg(long, env = "EVENKEEL_NAME")]
    pub name: Option<String>,
    /// QUIC address; port 0 takes a free one [default: 127.0.0.1:7410]
    #[arg(long, value_name = "ADDR", env = "EVENKEEL_LISTEN")]
    pub listen: Option<SocketAddr>,
    /// UDP port for leases, at the same address; 0 takes a free one [default: 0]
    #[arg(long, value_name = "PORT", env = "EVENKEEL_LEASE_PORT")]
    pub lease_port: Option<u16>,
    /// UDP port for copies, at the same address; 0 takes a free one [default: 0]
    #[arg(long, value_name = "PORT", env = "EVENKEEL_BULK_PORT")]
    pub bulk_port: Option<u16>,
    /// Admin HTTP address, on loopback [default: 127.0.0.1:0]
    #[arg(long, value_name = "ADDR", env = "EVENKEEL_ADMIN")]
    pub admin: Option<SocketAddr>,
    /// Join token, needed at the first start only (prefer the file: arguments are visible to all users)
    #[arg(long, value_name = "TOKEN", env = "EVENKEEL_JOIN_TOKEN", hide_env_values = true)]
    pub join_token: Option<String>,
    /// File that holds the join token
    #[arg(long, value_name = "FILE", env = "EVENKEEL_JOIN_TOKEN_FILE", conflicts_with = "join_token")]
    pub join_token_file: Option<PathBuf>,
    /// A disk: PATH[,size=S][,class=ssd]; repeat for more (`;` between them in the variable)
    #[arg(long = "disk", value_name = "DISK", env = "EVENKEEL_DISKS", value_delimiter = ';')]
    pub disks: Vec<DiskSpec>,
    /// Zone of the topology
    #[arg(long, env = "EVENKEEL_ZONE")]
    pub zone: Option<String>,
    /// Rack of the topology
    #[arg(long, env = "EVENKEEL_RACK")]
    pub rack: Option<String>,
}

/// `gateway`: flags and variables; the file is merged in `cli::config`.
#[derive(Clone, Debug, Default, Args)]
pub struct GatewayArgs {
    /// Configuration file (TOML); flags and variables override it
    #[arg(long, value_name = "FILE", env = "EVENKEEL_CONFIG")]
    pub config: Option<PathBuf>,
    /// The volume to serve: the export's name
    #[arg(long, value_name = "V", env = "EVENKEEL_VOLUME")]
    pub volume: Option<String>,
    /// Serve on this Unix socket
    #[arg(long, value_name = "S", env = "EVENKEEL_SOCKET")]
    pub socket: Option<PathBuf>,
    /// Serve on this TCP address, on loopback
    #[arg(long, value_name = "ADDR", env = "EVENKEEL_LISTEN", conflicts_with = "socket")]
    pub listen: Option<SocketAddr>,
    /// The gateway's name in the cluster [default: gateway-PID]
    #[arg(long, env = "EVENKEEL_NAME")]
    pub name: Option<String>,
    /// The address that it sends from [default: 127.0.0.1]
    #[arg(long, value_name = "IP", env = "EVENKEEL_BIND")]
    pub bind: Option<IpAddr>,
    /// Admin HTTP address for /metrics, on loopback [default: none]
    #[arg(long, value_name = "ADDR", env = "EVENKEEL_ADMIN")]
    pub admin: Option<SocketAddr>,
    /// Fence the gateway that has the volume now, and take it
    #[arg(long)]
    pub take_over: bool,
}
