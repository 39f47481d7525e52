//! Versioned messages and framing; bytes only.
//!
//! Every message is a frame: a kind, a protobuf `meta` (prost, declared here by hand: no protoc), and a raw
//! payload that is never copied into protobuf. Field numbers are never reused. A kind that a binary doesn't know
//! is answered with an error or ignored; it never ends a process.

pub mod client;
pub mod control;
pub mod frame;
pub mod leases;
pub mod map;
pub mod replica;
pub mod settings;
pub mod stats;
pub mod stored;
