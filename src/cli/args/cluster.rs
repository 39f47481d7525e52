//! `node`, `disk` and `pg`.

use clap::{Args, Subcommand};

use super::daemons::{NODE_RUN_EXAMPLES, NodeRunArgs};

/// `node …`.
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// Run a node in the foreground
    #[command(after_help = NODE_RUN_EXAMPLES)]
    Run(Box<NodeRunArgs>),
    /// All nodes
    #[command(after_help = "Examples:\n  evenkeel node list\n  evenkeel node list -o json")]
    List,
    /// One node and its disks
    #[command(after_help = "Example:\n  evenkeel node show n1")]
    Show {
        /// As `node list` has it
        name: String,
    },
    /// Move all replicas away from a node; it keeps serving until they are gone
    #[command(after_help = DRAIN_EXAMPLES)]
    Drain(NodeChangeArgs),
    /// End a drain or a maintenance
    #[command(after_help = "Example:\n  evenkeel node undrain n1")]
    Undrain(NodeChangeArgs),
    /// Say that a node is down on purpose, so that nothing is re-replicated (`undrain` ends it)
    #[command(after_help = MAINTENANCE_EXAMPLES)]
    Maintenance(NodeChangeArgs),
    /// Whether nodes may be stopped together without a placement group losing service; exit 1 if not
    #[command(name = "ok-to-stop", after_help = "Example:\n  evenkeel node ok-to-stop n1 n2 && ssh n1 reboot")]
    OkToStop {
        /// As `node list` has them
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
    /// Remove a node for good; its replicas are made anew elsewhere
    #[command(after_help = REMOVE_EXAMPLES)]
    Remove {
        #[command(flatten)]
        change: NodeChangeArgs,
        /// Yes, its copies count no more
        #[arg(long)]
        yes: bool,
    },
}

/// A change of one node.
#[derive(Clone, Debug, Args)]
pub struct NodeChangeArgs {
    /// As `node list` has it
    pub name: String,
    /// Say what would change and what would move; change nothing
    #[arg(long)]
    pub dry_run: bool,
}

const DRAIN_EXAMPLES: &str = "\
Examples:
  evenkeel node drain n1 --dry-run             what would move, and for how long; changes nothing
  evenkeel node drain n1 && evenkeel resync watch
  evenkeel wait clean --timeout 86400          n1 is empty when it ends well";

const MAINTENANCE_EXAMPLES: &str = "\
Examples:
  evenkeel node ok-to-stop n1 && evenkeel node maintenance n1 && ssh n1 reboot
  evenkeel node undrain n1                     when it is back";

const REMOVE_EXAMPLES: &str = "\
Examples:
  evenkeel node drain n1 && evenkeel wait clean --timeout 86400 && evenkeel node remove n1 --yes
  evenkeel node remove n1 --dry-run            what would have to be made anew elsewhere";

/// `disk …`.
#[derive(Debug, Subcommand)]
pub enum DiskCommand {
    /// All disks
    #[command(after_help = "Examples:\n  evenkeel disk list\n  evenkeel disk list -o json")]
    List,
    /// One disk
    #[command(after_help = "Example:\n  evenkeel disk show d3")]
    Show {
        /// Its id, as d3
        id: String,
    },
}

/// `pg …`.
#[derive(Debug, Subcommand)]
pub enum PgCommand {
    /// All placement groups
    #[command(after_help = "Examples:\n  evenkeel pg list\n  evenkeel pg list --state degraded")]
    List {
        /// Only those in this state
        #[arg(long, value_parser = ["clean", "degraded", "unavailable", "misplaced"])]
        state: Option<String>,
    },
    /// One placement group
    #[command(after_help = "Example:\n  evenkeel pg show 1.17")]
    Show {
        /// Its id, as 1.17
        id: String,
    },
    /// The last resort for an unavailable placement group: one copy leads alone, below the pool's minimum
    ///
    /// Without --accept-data-loss it changes nothing: it says what would happen and what would be lost, and fails.
    #[command(after_help = FORCE_EXAMPLES)]
    ForcePromote(ForcePromoteArgs),
}

const FORCE_EXAMPLES: &str = "\
Examples:
  evenkeel pg list --state unavailable
  evenkeel pg force-promote 1.17                              what would be lost; changes nothing
  evenkeel pg force-promote 1.17 --accept-data-loss           the best complete copy leads
  evenkeel pg force-promote 1.17 --disk d4 --accept-data-loss     another one, also an incomplete one";

/// `pg force-promote`.
#[derive(Debug, Args)]
pub struct ForcePromoteArgs {
    /// Its id, as 1.17
    pub id: String,
    /// The disk whose copy leads; default: the best complete one
    #[arg(long, value_name = "DISK")]
    pub disk: Option<String>,
    /// Do it, and lose what it says
    #[arg(long)]
    pub accept_data_loss: bool,
}
