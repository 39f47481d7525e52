//! `pool`.

use clap::{Args, Subcommand};

use crate::core::cluster::FailureDomain;

/// `pool …`.
#[derive(Debug, Subcommand)]
pub enum PoolCommand {
    /// Make a pool
    #[command(after_help = "Example:\n  evenkeel pool create fast --replicas 3 --class ssd")]
    Create(PoolCreateArgs),
    /// All pools
    #[command(after_help = "Example:\n  evenkeel pool list")]
    List,
    /// One pool
    #[command(after_help = "Example:\n  evenkeel pool show default")]
    Show {
        /// As `pool list` has it
        name: String,
    },
    /// Change a pool
    #[command(
        after_help = "Examples:\n  evenkeel pool set default --replicas 3 --min-replicas 2\n  evenkeel pool set default --class ssd --dry-run     what would move; changes nothing"
    )]
    Set(PoolSetArgs),
    /// Delete an empty pool
    #[command(
        after_help = "Examples:\n  evenkeel pool delete fast --yes\n  evenkeel pool delete fast --yes --if-exists"
    )]
    Delete {
        /// As `pool list` has it
        name: String,
        /// Yes, delete it
        #[arg(long)]
        yes: bool,
        /// Success when there is none
        #[arg(long)]
        if_exists: bool,
        /// Say whether it would be deleted; change nothing
        #[arg(long)]
        dry_run: bool,
    },
}

/// `pool create`.
#[derive(Clone, Debug, Args)]
pub struct PoolCreateArgs {
    /// Letters, digits, `-`, `_` and `.`
    pub name: String,
    /// Copies [default: 3]
    #[arg(long)]
    pub replicas: Option<u32>,
    /// Copies without which IO waits [default: replicas − 1, at least 1]
    #[arg(long)]
    pub min_replicas: Option<u32>,
    /// Where two copies may not meet: disk, node, rack, zone, release [default: node]
    #[arg(long, value_name = "DOMAIN", value_parser = parse_failure_domain)]
    pub failure_domain: Option<FailureDomain>,
    /// Disks of this class only [default: any]
    #[arg(long)]
    pub class: Option<String>,
    /// Placement groups, a power of two [default: 100 replicas a disk]
    #[arg(long)]
    pub pg_count: Option<u32>,
    /// What an ack means: on every copy (`flush`), or on stable storage of every copy (`write`)
    #[arg(long, value_parser = ["flush", "write"])]
    pub durability: Option<String>,
    /// Success when it is there already
    #[arg(long)]
    pub if_not_exists: bool,
}

/// `pool set`.
#[derive(Clone, Debug, Args)]
pub struct PoolSetArgs {
    /// As `pool list` has it
    pub name: String,
    /// Say what would move and for how long; change nothing
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub change: PoolChange,
}

/// What `pool set` changes: at least one thing.
#[derive(Clone, Debug, Args)]
#[group(required = true, multiple = true)]
pub struct PoolChange {
    /// Copies. Fewer: the surplus goes once a placement group is clean; not below the minimum
    #[arg(long)]
    pub replicas: Option<u32>,
    /// Copies without which IO waits
    #[arg(long)]
    pub min_replicas: Option<u32>,
    /// Where two copies may not meet: disk, node, rack, zone, release
    #[arg(long, value_name = "DOMAIN", value_parser = parse_failure_domain)]
    pub failure_domain: Option<FailureDomain>,
    /// Disks of this class only; all data moves there. `any`: of any class
    #[arg(long)]
    pub class: Option<String>,
    /// What an ack means
    #[arg(long, value_parser = ["flush", "write"])]
    pub durability: Option<String>,
}

fn parse_failure_domain(text: &str) -> Result<FailureDomain, String> {
    use serde::Deserialize;
    let deserializer: serde::de::value::StrDeserializer<'_, serde::de::value::Error> =
        serde::de::IntoDeserializer::into_deserializer(text);
    FailureDomain::deserialize(deserializer).map_err(|_| "write disk, node, rack, zone or release".to_owned())
}
