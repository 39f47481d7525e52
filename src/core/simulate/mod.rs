//! What will happen to a cluster, and when: a discrete-event run of the production planner, move scheduler and throttle
//! classes over a map, without a cluster.
//!
//! Purpose: "how many nodes must I add, and when will it be done?", answered before anyone buys one; and a test that the ETA
//! told on the way is right.
//!
//! Model: a copy is a flow from its PG's primary to its target. A disk's reads, its writes, and each direction of a node's
//! link have a rate of which foreground IO takes a fixed part; what is left is divided among the classes by
//! [`crate::core::throttle::divide`], and within a class evenly. Between two events all rates are constant, so time
//! goes from one completed copy to the next.
//!
//! Invariants: the same map and events give the same run; a copy counts only once it is whole; a plan that its checker
//! refuses ends the run. Units: seconds since the start, bytes.
//!
//! Non-goals: single writes, latencies, the closed loop of the throttle: its outcome is taken as the foreground's share.

mod engine;
mod event;
mod flow;
mod observe;
mod report;
mod state;
#[cfg(test)]
mod tests;

pub use engine::run;
pub use event::{Change, Event, ParseEvent};
pub use report::{Actual, Bytes, Ended, JobLog, Pgs, Report, Row, Told};

use super::moves::Slots;
use super::placement::{ChangeMap, Rates};

/// When a run ends, at the latest when nothing is left to do.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub enum Until {
    /// Nothing is left to do.
    #[default]
    Balanced,
    /// No copy is missing.
    Redundant,
    /// So many seconds have passed.
    Time(f64),
}

/// Which copy of a PG is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Sources {
    /// The primary's, as the replication protocol has it.
    #[default]
    Primary,
    /// That of the live member with least to read: what the placement alone would allow.
    AnyMember,
}

/// How to run.
#[derive(Clone, PartialEq, Debug)]
pub struct Options {
    /// What disks and links give, and what foreground takes of it.
    pub rates: Rates,
    /// Changes within this make one plan.
    pub debounce_seconds: f64,
    /// A lost disk's copies are made anew after this.
    pub grace_seconds: f64,
    /// When to end.
    pub until: Until,
    /// Moves at once.
    pub slots: Slots,
    /// Which copy is read.
    pub sources: Sources,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            rates: Rates::default(),
            debounce_seconds: 10.0,
            grace_seconds: 0.0,
            until: Until::default(),
            slots: Slots::default(),
            sources: Sources::default(),
        }
    }
}

/// Why a run has no result.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RunSimulation {
    /// An event names what isn't there then.
    #[error("at {at}: {event}: {source}")]
    Event {
        /// When, as text.
        at: String,
        /// The event as written.
        event: String,
        /// What is wrong.
        source: ChangeMap,
    },
    /// A bug of the planner.
    #[error("at {at}: a plan was refused by its checker: {first}")]
    PlanRefused {
        /// When.
        at: String,
        /// The first violation.
        first: String,
    },
}
