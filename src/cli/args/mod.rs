//! The command line: every subcommand, its options and its help.
//!
//! Invariants: names and options of DESIGN.md's "Interfaces" are stable, scripts depend on them; every reading command
//! takes `-o json`; every option that a daemon needs can also come from an `EVENKEEL_*` variable.
//!
//! Non-goals: doing anything. This module only describes and parses; `cli::run` acts.

mod cluster;
mod daemons;
mod planning;
mod pools;
mod resync;
mod volumes;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub use cluster::{DiskCommand, ForcePromoteArgs, NodeChangeArgs, NodeCommand, PgCommand};
pub use daemons::{
    CoordinatorCommand, CoordinatorRunArgs, DemoArgs, DevArgs, DevCommand, DevRunArgs, DevSignal, GatewayArgs,
    InitArgs, NodeRunArgs,
};
pub use planning::{MetaCommand, PlanArgs, SimulateArgs};
pub use pools::{PoolCommand, PoolCreateArgs, PoolSetArgs};
pub use resync::{PauseArgs, ResyncCommand, ResyncSetArgs};
pub use volumes::{VolumeCommand, VolumeQosArgs};

use daemons::{DEMO_EXAMPLES, DEV_EXAMPLES, GATEWAY_EXAMPLES};
use planning::{PLAN_EXAMPLES, SIMULATE_EXAMPLES};

const TOP_EXAMPLES: &str = "\
Examples:
  evenkeel demo                                    watch a node join and another one die, with every byte verified
  evenkeel dev --dir /tmp/ek                       a local cluster of three nodes
  export EVENKEEL_CLUSTER=/tmp/ek/cluster.json     so that the commands below find it
  evenkeel volume create vm1 --size 10GiB
  evenkeel gateway --volume vm1 --socket /tmp/vm1.sock
  evenkeel status";

/// The whole command line.
#[derive(Debug, Parser)]
#[command(name = "evenkeel", version, about = "Replicated block storage that keeps VMs running while their disks move")]
#[command(after_help = TOP_EXAMPLES, max_term_width = 110, subcommand_required = true, arg_required_else_help = true)]
pub struct Cli {
    #[command(flatten)]
    pub global: GlobalArgs,
    #[command(subcommand)]
    pub command: Command,
}

/// Options that every command takes.
#[derive(Clone, Debug, Default, Args)]
pub struct GlobalArgs {
    /// The cluster file that `evenkeel dev` writes
    #[arg(long, global = true, value_name = "FILE", env = "EVENKEEL_CLUSTER", help_heading = "Cluster")]
    pub cluster: Option<PathBuf>,
    /// The coordinator's admin URL, as http://127.0.0.1:7400
    #[arg(long, global = true, value_name = "URL", env = "EVENKEEL_API", help_heading = "Cluster")]
    pub api: Option<String>,
    /// The file that holds the bearer token for --api
    #[arg(long, global = true, value_name = "FILE", env = "EVENKEEL_TOKEN_FILE", help_heading = "Cluster")]
    pub token_file: Option<PathBuf>,
    /// Tables for people, or the API's JSON
    #[arg(short, long, global = true, value_enum, default_value_t, help_heading = "Output")]
    pub output: OutputFormat,
    /// The log on stderr as text or as JSON lines
    #[arg(long, global = true, value_enum, default_value_t, env = "EVENKEEL_LOG_FORMAT", help_heading = "Output")]
    pub log_format: LogFormat,
    /// What to log: error, warn, info, debug, trace, or directives as in evenkeel::node=debug
    #[arg(long, global = true, value_name = "LEVEL", env = "EVENKEEL_LOG", help_heading = "Output")]
    pub log_level: Option<String>,
}

/// How a reading command prints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    #[default]
    Table,
    Json,
    /// Rows for a spreadsheet; `simulate` alone has them
    Csv,
}

/// How the log is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

/// Every subcommand.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show the main job: a node joins and another dies while a guest works, and every byte verifies
    #[command(after_help = DEMO_EXAMPLES)]
    Demo(DemoArgs),
    /// Run a local cluster of real processes with a default pool
    #[command(after_help = DEV_EXAMPLES, args_conflicts_with_subcommands = true)]
    Dev(DevArgs),
    /// Make a new cluster: its identity, its CA and the operator's token
    #[command(after_help = "Example:\n  evenkeel init --dir /var/lib/evenkeel/coordinator")]
    Init(InitArgs),
    /// The coordinator: holds the cluster map
    #[command(subcommand)]
    Coordinator(CoordinatorCommand),
    /// Nodes: run one, list them, take one out of service
    #[command(subcommand)]
    Node(NodeCommand),
    /// Serve a volume to a VM by NBD
    #[command(after_help = GATEWAY_EXAMPLES)]
    Gateway(GatewayArgs),
    /// The cluster on one screen
    #[command(after_help = "Examples:\n  evenkeel status\n  evenkeel status -o json")]
    Status,
    /// Nodes, disks, moves and volumes as they work, anew each second; sortable
    #[command(after_help = LIVE_EXAMPLES)]
    Top(TopArgs),
    /// Exit 0 when the cluster is well, 1 on a warning, 2 on an error or no answer
    #[command(after_help = "Examples:\n  evenkeel health\n  evenkeel health --explain")]
    Health(HealthArgs),
    /// Wait until the cluster is ready or clean; exit 1 when the time is over
    #[command(after_help = "Example:\n  evenkeel wait clean --timeout 120")]
    Wait(WaitArgs),
    /// What happened
    #[command(after_help = "Example:\n  evenkeel events --follow")]
    Events(EventsArgs),
    /// Disks
    #[command(subcommand)]
    Disk(DiskCommand),
    /// Placement groups
    #[command(subcommand)]
    Pg(PgCommand),
    /// Pools
    #[command(subcommand)]
    Pool(PoolCommand),
    /// Volumes: the disks of VMs
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// What would move, how much and how long; changes nothing
    #[command(after_help = PLAN_EXAMPLES)]
    Plan(PlanArgs),
    /// How a cluster of a map file gets through losses, joins and drains, and when; needs no cluster
    #[command(after_help = SIMULATE_EXAMPLES)]
    Simulate(SimulateArgs),
    /// The cluster map as a file
    #[command(subcommand)]
    Meta(MetaCommand),
    /// Background copies: watch, limit, pause
    #[command(subcommand)]
    Resync(ResyncCommand),
    /// Join tokens
    #[command(subcommand)]
    Token(TokenCommand),
    /// A certificate for a program that reads beyond loopback, as Prometheus: cert.pem, key.pem and ca.pem
    ///
    /// It lasts a day. Run again, it is kept while more than half of its time is left, and renewed after; a timer does that.
    #[command(after_help = CERTIFICATE_EXAMPLES)]
    Certificate(CertificateArgs),
    /// All metrics: name, type, unit, labels, meaning; or the values of one daemon in Prometheus text
    #[command(
        after_help = "Examples:\n  evenkeel metrics\n  evenkeel metrics --coordinator\n  evenkeel metrics --node n1"
    )]
    Metrics(MetricsArgs),
    /// The JSON schema of what a command prints with `-o json`; without a command, of all
    #[command(after_help = "Examples:\n  evenkeel schema status\n  evenkeel schema volume list")]
    Schema {
        /// The command, as `volume list`
        #[arg(value_name = "COMMAND")]
        command: Vec<String>,
    },
    /// The OpenAPI 3.1 document of the coordinator's admin API, which also serves it at /v1/openapi.json
    #[command(after_help = "Example:\n  evenkeel openapi > evenkeel.json")]
    Openapi,
    /// Completions for a shell
    #[command(after_help = "Example:\n  evenkeel completions bash > /etc/bash_completion.d/evenkeel")]
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Manual pages, one for each command
    #[command(after_help = "Example:\n  evenkeel man /usr/local/share/man/man1")]
    Man {
        /// Where to write them
        #[arg(value_name = "DIR")]
        dir: PathBuf,
    },
    /// The volume hash of a raw image: what `evenkeel volume hash` gives for the same content
    #[command(after_help = "Example:\n  evenkeel hash disk.raw")]
    Hash {
        /// Raw images
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
}

const LIVE_EXAMPLES: &str = "\
Examples:
  evenkeel top
  evenkeel top --view volumes --sort write/s   the volumes that write most
  ssh -t coordinator evenkeel top              an SSH session needs -t, so that it has a terminal
Keys:
  1 2 3 4, Tab   nodes, disks, moves, volumes      ← →       the column to sort by
  ↑ ↓ PgUp PgDn Home End   scroll                  r         the other way round
  /              only rows with a text             space     hold the picture
  ?              this help                         q, Esc, Ctrl-C   end";

/// `top`.
#[derive(Clone, Debug, Args)]
pub struct TopArgs {
    /// What to show first
    #[arg(long, value_enum, default_value_t)]
    pub view: TopView,
    /// The column to sort by, as its title says; `+` or `-` before it: upwards or downwards [default: the first]
    #[arg(long, value_name = "COLUMN", allow_hyphen_values = true)]
    pub sort: Option<String>,
    /// Seconds between two looks, at least 0.2
    #[arg(long, value_name = "S", default_value = "1", value_parser = parse_interval)]
    pub interval: f64,
}

/// What `top` lists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum TopView {
    #[default]
    Nodes,
    Disks,
    Moves,
    Volumes,
}

/// `health`.
#[derive(Clone, Copy, Debug, Args)]
pub struct HealthArgs {
    /// Say of each problem what it means and what to do
    #[arg(long)]
    pub explain: bool,
}

/// `wait`.
#[derive(Clone, Copy, Debug, Args)]
pub struct WaitArgs {
    /// What to wait for
    #[arg(value_enum)]
    pub what: WaitFor,
    /// At most this many seconds
    #[arg(long, value_name = "S", default_value = "300", value_parser = parse_seconds)]
    pub timeout: f64,
}

/// States that scripts wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WaitFor {
    /// The coordinator answers, a node is up, and every PG is served
    Ready,
    /// Besides: no PG degraded or misplaced, no pending plan, no move
    Clean,
}

/// `events`.
#[derive(Clone, Copy, Debug, Args)]
pub struct EventsArgs {
    /// Only events with a higher id
    #[arg(long, value_name = "ID", default_value_t = 0)]
    pub after: u64,
    /// Keep printing new ones
    #[arg(short, long)]
    pub follow: bool,
}

/// `token …`.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a single-use join token and print it, once
    #[command(after_help = "Example:\n  evenkeel token create --role node --ttl 600 > join.token")]
    Create {
        /// What its bearer may become
        #[arg(long, default_value = "node", value_parser = ["node", "gateway", "operator", "viewer"])]
        role: String,
        /// Seconds until it expires
        #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
        ttl: u64,
    },
}

const CERTIFICATE_EXAMPLES: &str = "\
Examples:
  evenkeel certificate --name prometheus --out /etc/prometheus/evenkeel
  curl --cert D/cert.pem --key D/key.pem --cacert D/ca.pem \\
      --connect-to ::10.0.0.11:7411 https://CLUSTER.evenkeel/metrics     it says CLUSTER's name";

/// `certificate`.
#[derive(Clone, Debug, Args)]
pub struct CertificateArgs {
    /// What its holder may do: read, or change things too
    #[arg(long, default_value = "viewer", value_parser = ["viewer", "operator"])]
    pub role: String,
    /// Who it is for; the event that tells of it says so
    #[arg(long, value_parser = parse_holder_name)]
    pub name: String,
    /// Where to put the files; made if it is missing
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
}

/// `metrics`.
#[derive(Clone, Debug, Args)]
pub struct MetricsArgs {
    /// The values of a node
    #[arg(long, value_name = "NAME")]
    pub node: Option<String>,
    /// The values of the coordinator
    #[arg(long, conflicts_with = "node")]
    pub coordinator: bool,
}

fn parse_seconds(text: &str) -> Result<f64, String> {
    // A year bounds what a Duration and a clock can take without overflow, far above any sensible wait.
    const YEAR: f64 = 365.0 * 86_400.0;
    let seconds: f64 = text.parse().map_err(|_| "write seconds, as in 30 or 0.5".to_owned())?;
    if (0.0..=YEAR).contains(&seconds) { Ok(seconds) } else { Err("seconds lie between 0 and one year".to_owned()) }
}

fn parse_interval(text: &str) -> Result<f64, String> {
    let seconds = parse_seconds(text)?;
    if (0.2..=3600.0).contains(&seconds) { Ok(seconds) } else { Err("it lies between 0.2 and 3600".to_owned()) }
}

fn parse_holder_name(text: &str) -> Result<String, String> {
    let is_name = crate::net::identity::is_gateway_name(text);
    is_name.then(|| text.to_owned()).ok_or_else(|| "a name has 1 to 63 letters, digits, '.', '_' or '-'".to_owned())
}

#[cfg(test)]
mod examples_tests;

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_stable_command_lines_parse() {
        for line in [
            "evenkeel demo --size 256MiB --nodes 3 --keep",
            "evenkeel dev --dir D --nodes 3 --disk-size 4GiB",
            "evenkeel dev run --dir D --disks-per-node 2",
            "evenkeel dev add-node --dir D --disk-size 4GiB",
            "evenkeel dev kill-node --dir D n1 --signal KILL",
            "evenkeel dev kill-node --dir D coordinator --signal stop",
            "evenkeel dev start-node --dir D n1",
            "evenkeel init --dir D",
            "evenkeel coordinator run --dir D --listen 127.0.0.1:0 --admin 127.0.0.1:0 --grace-seconds 10",
            "evenkeel node run --dir D --name n1 --api http://127.0.0.1:1 --disk /a,size=1GiB --disk /b",
            "evenkeel gateway --volume v --socket s",
            "evenkeel gateway --volume v --listen 127.0.0.1:10809 --take-over",
            "evenkeel status -o json",
            "evenkeel -o json --cluster D/cluster.json status",
            "evenkeel top --view disks --sort -used --interval 0.5",
            "evenkeel node drain n1 --dry-run",
            "evenkeel pool set default --replicas 2 --dry-run",
            "evenkeel volume delete v --dry-run",
            "evenkeel wait ready",
            "evenkeel wait clean --timeout 12.5",
            "evenkeel health",
            "evenkeel events --after 3",
            "evenkeel node list",
            "evenkeel node remove n1 --yes",
            "evenkeel node ok-to-stop n1 n2",
            "evenkeel pg show 1.17",
            "evenkeel pool create p --replicas 2 --failure-domain rack",
            "evenkeel pool set default --replicas 3",
            "evenkeel pool set default --class ssd",
            "evenkeel volume create v --size 1GiB",
            "evenkeel volume create v --size 1GiB --priority -2",
            "evenkeel volume resize v --size 2GiB",
            "evenkeel volume set v --priority -3",
            "evenkeel volume set v --iops-limit 500 --bandwidth-limit none",
            "evenkeel volume create v --size 1GiB --iops-limit 500 --bandwidth-limit 50MiB/s",
            "evenkeel volume hash v w",
            "evenkeel plan --add-node name=n9,disks=1x1TiB --remove-node n1 --replicas default=2",
            "evenkeel plan --map m.json --failure-domain default=rack --write-map o.json --foreground-share 0.3",
            "evenkeel simulate --map m.json --at 0s lose-node:n3 --at 10m add-node:name=n9,disks=1x1TiB -o csv",
            "evenkeel simulate --map m.json --disk-rate 150MiB/s --foreground-share 0.5 --until balanced",
            "evenkeel meta export",
            "evenkeel resync set --cap 20MiB/s",
            "evenkeel resync set --cap none --target-p99-us 0",
            "evenkeel resync set --target-p99 5ms --floor default --cap 60MiB/s",
            "evenkeel resync set --class repair --floor 20MiB/s --cap 400MiB/s --weight 4",
            "evenkeel resync set --timezone Europe/Berlin --deadline 18:00 --deadline-wins latency",
            "evenkeel resync set --window none --deadline none",
            "evenkeel resync set --node n1 --profile default",
            "evenkeel resync set --pool p --target-inflation 2.0",
            "evenkeel resync set --volume v --target-p99 800us",
            "evenkeel resync pause --node n1",
            "evenkeel resync resume --pool p",
            "evenkeel resync jobs",
            "evenkeel resync jobs --job 3 -o json",
            "evenkeel resync pause",
            "evenkeel resync pause --job 3",
            "evenkeel resync resume --job 3",
            "evenkeel resync cancel --job 3",
            "evenkeel token create",
            "evenkeel hash a b",
            "evenkeel completions bash",
            "evenkeel certificate --role viewer --name prometheus --out D",
            "evenkeel man D",
        ] {
            if let Err(e) = parse(line) {
                panic!("{line}: {e}");
            }
        }
    }

    #[test]
    fn wrong_command_lines_are_refused() {
        for line in [
            "evenkeel",
            "evenkeel dev",
            "evenkeel dev --nodes 0 --dir D",
            "evenkeel dev --dir D --nodes 3 add-node --dir D",
            "evenkeel dev kill-node --dir D n1 --signal HUP",
            "evenkeel gateway --volume v --socket s --listen 127.0.0.1:1",
            "evenkeel wait",
            "evenkeel node ok-to-stop",
            "evenkeel wait clean --timeout -1",
            "evenkeel top --interval 0",
            "evenkeel pool set default",
            "evenkeel pool create p --failure-domain moon",
            "evenkeel volume create v",
            "evenkeel volume create v --size 4XB",
            "evenkeel volume set v",
            "evenkeel volume set v --bandwidth-limit fast",
            "evenkeel resync set",
            "evenkeel resync set --cap quick",
            "evenkeel resync set --target-inflation 0.5",
            "evenkeel resync set --target-inflation NaN",
            "evenkeel resync set --target-p99 5",
            "evenkeel resync set --target-p99 0ms",
            "evenkeel resync set --cap -5MiB/s",
            "evenkeel resync set --weight 3",
            "evenkeel resync set --pool p --deadline 20h",
            "evenkeel resync set --node n --volume v --cap 5MiB/s",
            "evenkeel resync pause --node n --pool p",
            "evenkeel resync cancel",
            "evenkeel resync pause --job all",
            "evenkeel hash",
            "evenkeel certificate --name prometheus",
            "evenkeel certificate --name a/b --out D",
            "evenkeel certificate --role node --name n1 --out D",
            "evenkeel plan --foreground-share 1.5",
            "evenkeel simulate --map m.json --at 0s",
            "evenkeel simulate --map m.json --until later",
            "evenkeel simulate --map m.json --grace 5x",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn the_cap_is_sent_in_bytes_per_second() {
        let Command::Resync(ResyncCommand::Set(set)) = parse("evenkeel resync set --cap 20MiB/s").unwrap().command
        else {
            panic!("another command");
        };
        assert_eq!(set.cap.as_deref(), Some("20971520"));
    }
}
