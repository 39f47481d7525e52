//! `plan`, `simulate` and `meta`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::core::simulate::Until;
use crate::core::units::{parse_bytes_per_sec, parse_seconds_of};

pub(super) const PLAN_EXAMPLES: &str = "\
Examples:
  evenkeel plan                                what the cluster wants to do now
  evenkeel plan --remove-node n3
  evenkeel plan --add-node name=n9,zone=z2,rack=r1,disks=4x6TiB:ssd
  evenkeel plan --replicas default=2 --failure-domain default=rack
  evenkeel meta export > map.json                          and later, without the cluster:
  evenkeel plan --map map.json --remove-node n3 --write-map after.json -o json

A map file is JSON: {\"pools\": [{\"name\": \"vms\", \"replicas\": 3, \"min_replicas\": 2, \"failure_domain\": \"node\", \"class\": \"ssd\",
\"pg_count\": 128}], \"nodes\": [{\"name\": \"n1\", \"zone\": \"z1\", \"rack\": \"r1\", \"release\": \"1.0\", \"disks\": [{\"id\": \"d1\", \"class\": \"ssd\",
\"capacity_bytes\": 6597069766656, \"state\": \"up\"}]}], \"assignment\": {\"vms\": [[\"d1\", \"d5\", \"d9\"]]}, \"pg_bytes\": {\"vms\": [1073741824]}}.
Each row of the assignment is a placement group, its primary first; without one the planner makes the first.";

pub(super) const SIMULATE_EXAMPLES: &str = "\
Examples:
  evenkeel simulate --map map.json --at 0s lose-node:n3
  evenkeel simulate --map map.json --at 0s lose-node:n3 --at 10m add-node:name=n9,zone=z2,rack=r1,disks=4x6TiB:ssd
  evenkeel simulate --map map.json --at 0s drain-node:n3 --disk-rate 80MiB/s --foreground-share 0.3 -o csv > run.csv

Events: lose-node:NAME and lose-disk:ID (the data is gone), drain-node:NAME, add-node:SPEC, slow-disk:ID=RATE,
replicas:POOL=N, failure-domain:POOL=DOMAIN. Times: 0s, 10m, 1.5h, 2d.";

/// `plan`.
#[derive(Clone, Debug, Args)]
pub struct PlanArgs {
    /// What if this node came: name=n9,zone=z2,rack=r1,disks=4x6TiB:ssd
    #[arg(long, value_name = "SPEC")]
    pub add_node: Vec<String>,
    /// What if this node went
    #[arg(long, value_name = "NAME")]
    pub remove_node: Vec<String>,
    /// What if this node's drain or maintenance ended
    #[arg(long, value_name = "NAME")]
    pub undrain_node: Vec<String>,
    /// What if this pool had N copies: POOL=N
    #[arg(long, value_name = "POOL=N")]
    pub replicas: Vec<String>,
    /// What if this pool's copies had to be in different disks, nodes, racks or zones: POOL=DOMAIN
    #[arg(long, value_name = "POOL=DOMAIN")]
    pub failure_domain: Vec<String>,
    /// What if this pool's copies had to be on disks of this class, or on `any`: POOL=CLASS
    #[arg(long, value_name = "POOL=CLASS")]
    pub class: Vec<String>,
    /// Ask about the cluster of this map file instead of the live one
    #[arg(long, value_name = "FILE")]
    pub map: Option<PathBuf>,
    /// Write the map as it would be afterwards
    #[arg(long, value_name = "OUT")]
    pub write_map: Option<PathBuf>,
    #[command(flatten)]
    pub rates: RateArgs,
    /// Show every move, not the first 20
    #[arg(long)]
    pub all: bool,
}

/// What resync may use, for an ETA.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct RateArgs {
    /// Bytes per second that a disk reads, and that it writes [default: 250MiB/s, where a disk is an hdd
    /// 150MiB/s; at most the cluster's cap]
    #[arg(long, value_name = "RATE", value_parser = parse_bytes_per_sec)]
    pub disk_rate: Option<u64>,
    /// The part of disks and links that foreground IO takes, from 0 to 1 [default: 0.5]
    #[arg(long, value_name = "PART", value_parser = parse_share)]
    pub foreground_share: Option<f64>,
}

/// `simulate`.
#[derive(Clone, Debug, Args)]
pub struct SimulateArgs {
    /// The map file to begin with
    #[arg(long, value_name = "FILE")]
    pub map: PathBuf,
    /// What happens, and when: TIME EVENT, as in 10m lose-node:n3
    #[arg(long, num_args = 2, value_names = ["TIME", "EVENT"], action = clap::ArgAction::Append)]
    pub at: Vec<String>,
    #[command(flatten)]
    pub rates: RateArgs,
    /// Bytes per second of a node's network link, each way
    #[arg(long, value_name = "RATE", default_value = "1170MiB/s", value_parser = parse_bytes_per_sec)]
    pub link_rate: u64,
    /// Changes within this time make one plan
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_duration)]
    pub debounce: f64,
    /// Copies of a lost node or disk are made anew after this; a cluster waits 10m unless they are declared lost
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = parse_duration)]
    pub grace: f64,
    /// When to end: balanced, redundant, or a time
    #[arg(long, value_name = "STATE", default_value = "balanced", value_parser = parse_until)]
    pub until: Until,
    /// Write the map as it is at the end
    #[arg(long, value_name = "OUT")]
    pub write_map: Option<PathBuf>,
}

/// `meta …`.
#[derive(Debug, Subcommand)]
pub enum MetaCommand {
    /// Print the map file that `plan --map` and `simulate --map` read
    #[command(after_help = "Example:\n  evenkeel meta export > map.json")]
    Export,
}

fn parse_share(text: &str) -> Result<f64, String> {
    let share: f64 = text.parse().map_err(|_| "write a part, as in 0.5".to_owned())?;
    if (0.0..=1.0).contains(&share) { Ok(share) } else { Err("it lies between 0 and 1".to_owned()) }
}

fn parse_until(text: &str) -> Result<Until, String> {
    match text {
        "balanced" => Ok(Until::Balanced),
        "redundant" => Ok(Until::Redundant),
        time => {
            parse_duration(time).map(Until::Time).map_err(|_| "write balanced, redundant, or a time as 2d".to_owned())
        }
    }
}

fn parse_duration(text: &str) -> Result<f64, String> {
    parse_seconds_of(text).map_err(|e| e.to_string())
}
