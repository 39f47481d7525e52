//! Cluster identities and the network: who a peer is, QUIC links between processes, and the admin listener.
//!
//! - [`identity`] what a process is in its cluster, and its certificate; [`ca`] issues them; [`token`] lets one join;
//! - [`tls`] the verifiers that turn a certificate into an identity, or refuse it;
//! - [`quic`] endpoints and links, tuned by [`tuning`]; [`channel`] framed messages over one stream of a link,
//!   [`outbox`] its sending half that never waits;
//! - [`admin`] the listener for the admin HTTP API; [`guard`] what it refuses at once.
//!
//! Non-goals: reconnecting (the caller knows what a lost peer means) and what messages mean.

pub mod admin;
pub mod ca;
pub mod channel;
pub mod guard;
pub mod identity;
pub mod outbox;
pub mod quic;
pub mod tls;
pub mod token;
pub mod tuning;

#[cfg(test)]
pub(crate) mod testing;
