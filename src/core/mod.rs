//! The pure core: no tokio, no clock, no files, no OS randomness.
//!
//! Time enters as [`units::Instant`] arguments, so that a whole cluster runs in one thread from one seed.
//! Each state machine takes `handle_*(event, now)` and gives its actions back; drivers in `node`,
//! `coordinator` and `gateway` turn IO into events and actions into IO.

pub mod cluster;
pub mod hashtree;
pub mod ids;
pub mod manager;
pub mod moves;
pub mod placement;
pub mod replica;
pub mod router;
pub mod simulate;
pub mod throttle;
pub mod units;
pub mod words;
