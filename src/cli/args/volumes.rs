//! `volume`.

use clap::{ArgGroup, Args, Subcommand};

use super::resync::{parse_rate_or_word, parse_size_or_word};
use crate::core::cluster::SHARE_MAX;
use crate::core::units::parse_bytes;

/// `volume …`.
#[derive(Debug, Subcommand)]
pub enum VolumeCommand {
    /// Make a volume; it takes space as it is written
    #[command(
        after_help = "Examples:\n  evenkeel volume create vm1 --size 10GiB\n  evenkeel volume create db --size 1TiB --priority 10"
    )]
    Create {
        /// Letters, digits, `-`, `_` and `.`
        name: String,
        /// A multiple of 512 bytes
        #[arg(long, value_parser = parse_bytes)]
        size: u64,
        /// The pool [default: the one named default]
        #[arg(long)]
        pool: Option<String>,
        /// Higher is resynced first [default: 0]
        #[arg(long, allow_negative_numbers = true)]
        priority: Option<i32>,
        #[command(flatten)]
        qos: VolumeQosArgs,
        /// Success when it is there already with that size
        #[arg(long)]
        if_not_exists: bool,
    },
    /// All volumes
    #[command(after_help = "Examples:\n  evenkeel volume list\n  evenkeel volume list -o json")]
    List,
    /// One volume: its layout, how many of its chunks have all their copies, on which disks, and when all will have
    #[command(after_help = "Example:\n  evenkeel volume show vm1")]
    Show {
        /// As `volume list` has it
        name: String,
    },
    /// Grow a volume, or shrink it with --yes
    #[command(after_help = "Example:\n  evenkeel volume resize vm1 --size 20GiB")]
    Resize {
        /// As `volume list` has it
        name: String,
        /// A multiple of 512 bytes
        #[arg(long, value_parser = parse_bytes)]
        size: u64,
        /// Yes, drop what lies beyond the new end
        #[arg(long)]
        yes: bool,
        /// Say what would change; change nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Change a volume's settings; its gateway follows within a second
    #[command(
        after_help = "Examples:\n  evenkeel volume set vm1 --priority 10\n  evenkeel volume set vm1 --iops-limit 2000 --bandwidth-limit 50MiB/s\n  evenkeel volume set vm1 --iops-limit 500 --iops-burst 30000\n  evenkeel volume set vm1 --iops-limit none\n  evenkeel volume set db --share 400"
    )]
    Set(VolumeSetArgs),
    /// Delete a volume and its data
    #[command(after_help = "Examples:\n  evenkeel volume delete vm1 --dry-run\n  evenkeel volume delete vm1 --yes")]
    Delete {
        /// As `volume list` has it
        name: String,
        /// Yes, drop its data
        #[arg(long)]
        yes: bool,
        /// Success when there is none
        #[arg(long)]
        if_exists: bool,
        /// Say what would be deleted; change nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Print volume hashes as b3sum does; equal to `evenkeel hash` of the raw content
    #[command(after_help = "Examples:\n  evenkeel volume hash vm1\n  evenkeel volume hash vm1 vm2 > hashes")]
    Hash {
        /// As `volume list` has them
        #[arg(required = true)]
        names: Vec<String>,
    },
}

/// What a guest may do, and its share.
#[derive(Clone, Debug, Default, Args)]
pub struct VolumeQosArgs {
    /// Reads, writes and discards per second that its guest may do; flushes aren't counted; `none`: no limit
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub iops_limit: Option<String>,
    /// Operations that its guest saves up while it stays below its limit, and may do at once; `none`: one second's worth
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub iops_burst: Option<String>,
    /// Bytes per second that its guest may read or write, as 50MiB/s; `none`: no limit
    #[arg(long, value_name = "RATE", allow_hyphen_values = true, value_parser = parse_rate_or_word)]
    pub bandwidth_limit: Option<String>,
    /// Bytes that its guest saves up, and may move at once, as 2GiB; `none`: one second's worth
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, value_parser = parse_size_or_word)]
    pub bandwidth_burst: Option<String>,
    /// Its weight against other volumes, 1 to 1000, where several want a disk at once: of two with 100 and 300 the second may
    /// do three of four operations; what one doesn't use, the others may [default: 100]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(SHARE_MAX)))]
    pub share: Option<u32>,
}

/// `volume set`: at least one thing.
#[derive(Clone, Debug, Args)]
#[command(group(ArgGroup::new("change").required(true).multiple(true)
    .args(["priority", "iops_limit", "iops_burst", "bandwidth_limit", "bandwidth_burst", "share"])))]
pub struct VolumeSetArgs {
    /// As `volume list` has it
    pub name: String,
    /// Higher is resynced first; 0 is usual
    #[arg(long, allow_negative_numbers = true)]
    pub priority: Option<i32>,
    #[command(flatten)]
    pub qos: VolumeQosArgs,
}
