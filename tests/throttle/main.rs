//! The throttle: its controller on models of disks, links and guests, and its enforcement against the clock.

mod enforcement;
mod models;
mod plant;
