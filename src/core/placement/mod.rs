//! Where every replica stands: topology in, target and moves out.
//!
//! Purpose: [`plan`] turns the topology, the pools and today's placement into a target and the least set of moves
//! that leads to it, with a reason for whatever it could not do. [`check`] judges a plan without sharing code with
//! the planner; the coordinator accepts no plan that it refuses.
//!
//! Invariants of a plan: no two replicas of a PG in one failure domain; no copy is given up before another is
//! there; no disk is planned past its backfill limit; disks within one PG replica of their feasible share per pool
//! wherever domains and space allow it; moves within 2 % + 2 of the lower bound; planning again on the target gives
//! no move; the same input gives the same plan.
//!
//! Method: shares by water-filling ([`lower_bound`]), whole quotas that stay at today's counts where they may, holes
//! filled by urgency, then one direct move from an over-full to an under-full disk each, and augmenting paths where
//! no direct move is allowed. Near-linear in the replicas.
//!
//! Units: shares and counts in PG replicas, sizes in bytes, ETA in seconds. Non-goals: no clock, no IO, no
//! scheduling (`core::moves` decides what runs now), nothing per chunk.

mod augment;
mod cancel;
mod check;
mod cohort;
mod eta;
mod even;
mod fill;
mod layout;
mod map;
mod missing;
mod model;
mod paths;
mod planner;
mod primary;
mod quota;
mod rng;
mod share;
#[cfg(test)]
mod tests;
mod trim;
mod whatif;

pub use check::{Violation, check};
pub use eta::{CopyLeft, Eta, Rates, Span, eta, eta_of};
pub use map::{ClusterMap, DiskName, MAP_BYTES_MAX, MapFile, ReadMap, read_map, write_map};
pub use model::*;
pub use planner::{PoolBound, lower_bound, plan};
pub use whatif::{ChangeMap, NamedMissing, NamedMove, NamedRemoval, NodeSpec, Question, WhatIf, answer, what_if};

/// A new pool's first placement: the plan of a pool that has no PG yet. It has a target and no moves.
pub fn initial(input: &Input, pool: &PoolSpec) -> Vec<PgPlacement> {
    let mut with = input.clone();
    with.pools.retain(|p| p.id != pool.id);
    with.pools.push(pool.clone());
    with.current.retain(|row| row.pg.pool != pool.id);
    let mut target = plan(&with).target;
    target.retain(|row| row.pg.pool == pool.id);
    target
}
