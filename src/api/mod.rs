//! The admin HTTP API: its types, shared by the coordinator (server) and the command line (client); its operations, from which
//! routes and the OpenAPI document are made; kinds of problems and what to do; the console; and the table of metrics of every
//! daemon.

pub mod calls;
pub mod client;
pub mod console;
pub mod copies;
pub mod metrics;
pub mod openapi;
pub mod operations;
pub mod problems;
pub mod resync;
pub mod router;
pub mod types;
pub mod volumes;
