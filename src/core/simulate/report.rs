//! What a run tells.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::core::placement::{Eta, NamedMissing, Rejected};

/// PGs by state: clean + degraded + unavailable = total.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Pgs {
    /// All copies there.
    pub clean: u64,
    /// Copies are missing; served.
    pub degraded: u64,
    /// Fewer copies than the pool's minimum: IO waits.
    pub unavailable: u64,
    /// One copy is left of several: part of degraded or unavailable.
    pub at_risk: u64,
    /// Clean, but the plan wants them elsewhere.
    pub misplaced: u64,
}

/// Bytes that wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Bytes {
    /// Data with one copy left.
    pub at_risk: u64,
    /// Missing copies.
    pub degraded: u64,
    /// To be moved by the plan, for another reason than a missing copy.
    pub misplaced: u64,
    /// Copied so far.
    pub done: u64,
    /// Left of the plan.
    pub left: u64,
}

/// What happened after a row; none where it never did.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Actual {
    /// Seconds until no copy was missing.
    pub redundant: Option<f64>,
    /// Seconds until nothing was left to do.
    pub balanced: Option<f64>,
}

/// One moment.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Row {
    /// Seconds since the start.
    pub at_seconds: f64,
    /// What has just happened.
    pub events: Vec<String>,
    /// States.
    pub pgs: Pgs,
    /// Sizes.
    pub bytes: Bytes,
    /// Moves that run.
    pub running: u64,
    /// Moves that wait.
    pub waiting: u64,
    /// All copies together.
    pub rate_bytes_per_sec: u64,
    /// What an operator is told now; none before the first plan.
    pub eta_seconds: Option<Eta>,
    /// What then happened.
    pub actual_seconds: Actual,
}

/// An ETA and what followed.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Told {
    /// When it was told.
    pub at_seconds: f64,
    /// Seconds: what was told as likely.
    pub likely: f64,
    /// Seconds: what happened; none if another plan came first.
    pub actual: Option<f64>,
}

/// One plan.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct JobLog {
    /// From 1.
    pub id: u64,
    /// When it was made.
    pub at_seconds: f64,
    /// Its moves.
    pub moves: u64,
    /// Their bytes.
    pub bytes: u64,
    /// No plan needs fewer moves.
    pub lower_bound_moves: u64,
    /// When its last move was done; none if another plan replaced it, or it didn't end.
    pub done_at_seconds: Option<f64>,
    /// Told when 10 % of its bytes were there: when all would be.
    pub told_balanced: Option<Told>,
    /// Told when 10 % of the missing copies' bytes were there: when all would be.
    pub told_redundant: Option<Told>,
    /// How long the last 2 % of its bytes took.
    pub last_2_percent_seconds: Option<f64>,
}

/// Why a run ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Ended {
    /// Nothing is left to do.
    #[default]
    Balanced,
    /// No copy is missing, as was asked.
    Redundant,
    /// The time that was asked for is over.
    Time,
    /// What is left can't be done: `rejected` and `missing_capacity_bytes` say why.
    Stuck,
    /// Foreground takes everything: it would never end.
    NoRate,
}

/// A whole run.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Report {
    /// Moments, in order.
    pub timeline: Vec<Row>,
    /// Plans, in order.
    pub jobs: Vec<JobLog>,
    /// Why it ended.
    pub ended: Ended,
    /// When.
    pub ended_at_seconds: f64,
    /// The last time at which missing copies had all come; none if copies are missing at the end.
    pub redundant_at_seconds: Option<f64>,
    /// When nothing was left to do; none if it never came.
    pub balanced_at_seconds: Option<f64>,
    /// Copied in all.
    pub bytes_copied: u64,
    /// Of it, what later plans had no use for.
    pub bytes_wasted: u64,
    /// PGs without any copy at the end.
    pub pgs_lost: u64,
    /// Bytes that lack room at the end.
    pub missing_capacity_bytes: u64,
    /// The same by pool and failure domain.
    pub missing_capacity: Vec<NamedMissing>,
    /// What the last plan could not do.
    pub rejected: Vec<Rejected>,
}
