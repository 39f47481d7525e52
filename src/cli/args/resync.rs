//! `resync`.

use clap::{Args, Subcommand};

use crate::core::units::{parse_bytes, parse_bytes_per_sec};

/// `resync …`.
#[derive(Debug, Subcommand)]
pub enum ResyncCommand {
    /// What runs, how fast, and what limits it
    #[command(after_help = "Examples:\n  evenkeel resync status\n  evenkeel resync status -o json")]
    Status,
    /// Progress bars until nothing moves
    #[command(after_help = "Example:\n  evenkeel node drain n1 && evenkeel resync watch")]
    Watch,
    /// Change limits; acts within a second and is kept
    ///
    /// A value given here overrides the profile, a window's too, until `default` or `none` takes it away. What a node has of
    /// its own goes before what holds for all. All of one command holds, or nothing does; the reply shows each value that is
    /// in effect and where it comes from: default, profile, window, deadline, override.
    #[command(override_usage = "evenkeel resync set [OPTIONS]", after_help = RESYNC_SET_EXAMPLES)]
    Set(Box<ResyncSetArgs>),
    /// The last 100 jobs: every plan that moved something, why, who asked for it, and what became of it
    #[command(after_help = "Example:\n  evenkeel resync jobs -o json")]
    Jobs {
        /// Only one
        #[arg(long, value_name = "N")]
        job: Option<u64>,
    },
    /// Stop background copies: all, or those of a class, job, node or pool; nothing is lost
    #[command(
        after_help = "Examples:\n  evenkeel resync pause\n  evenkeel resync pause --class rebalance\n  evenkeel resync pause --job 7\n  evenkeel resync pause --node n2\n  evenkeel resync pause --pool default"
    )]
    Pause(PauseArgs),
    /// Go on; a cancelled job is planned anew
    #[command(
        after_help = "Examples:\n  evenkeel resync resume\n  evenkeel resync resume --job 7\n  evenkeel resync resume --node n2"
    )]
    Resume(PauseArgs),
    /// Give up a job's drains and rebalances; repairs of missing copies go on
    ///
    /// Half-made copies are removed. Nothing of it is planned again until the topology changes or the job is resumed.
    #[command(after_help = "Examples:\n  evenkeel resync cancel --job 7 --dry-run\n  evenkeel resync cancel --job 7")]
    Cancel {
        /// Which job
        #[arg(long, value_name = "N")]
        job: u64,
        /// Say what would be given up; change nothing
        #[arg(long)]
        dry_run: bool,
    },
}

const RESYNC_SET_EXAMPLES: &str = "\
Examples:
  evenkeel resync set --profile recovery
  evenkeel resync set --cap 20MiB/s --dry-run       what would be in effect; changes nothing
  evenkeel resync set --cap none --target-p99 5ms
  evenkeel resync set --class repair --floor 20MiB/s --cap 400MiB/s --weight 4
  evenkeel resync set --window \"Mon-Fri 02:00-06:00 recovery\" --window \"Sat,Sun 00:00-24:00 recovery\" --timezone Europe/Berlin
  evenkeel resync set --deadline 18:00              every missing copy is there by then, whatever guests see of it
  evenkeel resync set --deadline 20h --deadline-wins latency     only tell whether it holds
  evenkeel resync set --node n2 --profile foreground
  evenkeel resync set --volume vm1 --target-p99 2ms
  evenkeel resync set --profile default --window none --deadline none";

/// `resync pause`, `resync resume`: what.
#[derive(Clone, Debug, Default, Args)]
#[group(multiple = false)]
pub struct PauseArgs {
    /// Only this class: repair-critical, repair, drain, rebalance or scrub
    #[arg(long, value_name = "CLASS")]
    pub class: Option<String>,
    /// Only the moves of this job
    #[arg(long, value_name = "N")]
    pub job: Option<u64>,
    /// Only copies that this node gives or takes
    #[arg(long, value_name = "NAME")]
    pub node: Option<String>,
    /// Only copies of this pool
    #[arg(long, value_name = "NAME")]
    pub pool: Option<String>,
}

/// `resync set`: at least one thing.
#[derive(Clone, Debug, Args)]
#[group(required = true, multiple = true)]
pub struct ResyncSetArgs {
    /// Floor and target in one word: foreground, balanced or recovery; other options given with it override it
    #[arg(long, value_name = "PROFILE")]
    pub profile: Option<String>,
    /// Say what would be in effect; change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// The class that cap, floor and weight are for: repair-critical, repair, drain, rebalance or scrub
    #[arg(long, value_name = "CLASS", conflicts_with_all = ["node", "pool", "volume"])]
    pub class: Option<String>,
    /// The class's part of what is left above the floors, against other classes' (16, 8, 4, 2, 1); 1 to 1000
    #[arg(long, value_name = "N", allow_hyphen_values = true, requires = "class")]
    pub weight: Option<String>,
    /// Bytes per second and disk that it never exceeds, as 20MiB/s; `none` removes the cap
    #[arg(long, value_name = "RATE", allow_hyphen_values = true, value_parser = parse_rate_or_word)]
    pub cap: Option<String>,
    /// Bytes per second and disk that it always gets; `default` goes back to the profile's
    #[arg(long, value_name = "RATE", allow_hyphen_values = true, value_parser = parse_rate_or_word)]
    pub floor: Option<String>,
    /// Foreground p99 to aim at, as a multiple of the quiet one (at least 1); guests also keep 1 - K/10 of their
    /// throughput (0.3 to 0.95); `default` goes back to the profile's
    #[arg(long, value_name = "K", allow_hyphen_values = true, value_parser = parse_inflation, conflicts_with_all = ["target_p99", "target_p99_us"])]
    pub target_inflation: Option<String>,
    /// Foreground p99 to aim at, as 5ms or 800us; `none` goes back to a multiple of the quiet one
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = parse_latency_us)]
    pub target_p99: Option<u64>,
    /// The same in microseconds; 0 removes it
    #[arg(long, value_name = "US", hide = true, conflicts_with = "target_p99")]
    pub target_p99_us: Option<u64>,
    /// Days, times and the profile that holds then, as "Mon-Fri 02:00-06:00 recovery"; may cross midnight. Give all windows
    /// at once: they replace those before; `none` removes them
    #[arg(long = "window", value_name = "WINDOW", conflicts_with_all = ["class", "node", "pool", "volume"])]
    pub windows: Vec<String>,
    /// IANA time zone of windows and of the deadline, as Europe/Berlin [default: UTC]
    #[arg(long = "timezone", value_name = "ZONE", conflicts_with_all = ["class", "node", "pool", "volume"])]
    pub time_zone: Option<String>,
    /// When every missing copy is to be there, as 18:00, "2027-01-31 18:00" or 20h; floors rise as needed, never above a
    /// cap; `none` removes it
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, conflicts_with_all = ["class", "node", "pool", "volume"])]
    pub deadline: Option<String>,
    /// What holds if deadline and latency target can't both: deadline or latency [default: deadline]
    #[arg(long, value_name = "WHAT", conflicts_with_all = ["class", "node", "pool", "volume"])]
    pub deadline_wins: Option<String>,
    /// Profile, cap, floor and target are for the disks of this node
    #[arg(long, value_name = "NAME", conflicts_with_all = ["pool", "volume"])]
    pub node: Option<String>,
    /// The target is for disks that hold a part of this pool, where it is stricter than theirs
    #[arg(long, value_name = "NAME", conflicts_with = "volume")]
    pub pool: Option<String>,
    /// The target is for disks that hold a part of this volume, where it is stricter than theirs
    #[arg(long, value_name = "NAME")]
    pub volume: Option<String>,
}

/// A number in the coordinator's words, or a word; it is checked here too, so that a mistake is told with the usage.
fn parse_inflation(text: &str) -> Result<String, String> {
    if is_word(text) {
        return Ok(text.to_owned());
    }
    let k: f64 = text.parse().map_err(|_| "write a number, as in 2 or 1.5, or `default`".to_owned())?;
    if (1.0..=1000.0).contains(&k) { Ok(k.to_string()) } else { Err("it lies between 1 and 1000".to_owned()) }
}

fn is_word(text: &str) -> bool {
    matches!(text, "none" | "default")
}

/// Microseconds; 0: none.
fn parse_latency_us(text: &str) -> Result<u64, String> {
    if is_word(text) {
        return Ok(0);
    }
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let us = match unit.trim() {
        "us" | "µs" => 1.0,
        "ms" => 1e3,
        "s" => 1e6,
        _ => return Err("write a time with its unit, as in 800us, 5ms or 1s".to_owned()),
    };
    let value =
        number.parse::<f64>().map_err(|_| "write a time with its unit, as in 800us, 5ms or 1s".to_owned())? * us;
    if (1.0..=60e6).contains(&value) { Ok(value as u64) } else { Err("it lies between 1us and 60s".to_owned()) }
}

fn parse_rate(text: &str) -> Result<String, String> {
    parse_bytes_per_sec(text).map(|rate| rate.to_string()).map_err(|e| e.to_string())
}

pub(super) fn parse_rate_or_word(text: &str) -> Result<String, String> {
    if is_word(text) { Ok(text.to_owned()) } else { parse_rate(text) }
}

pub(super) fn parse_size_or_word(text: &str) -> Result<String, String> {
    if is_word(text) {
        return Ok(text.to_owned());
    }
    parse_bytes(text).map(|size| size.to_string()).map_err(|e| e.to_string())
}
