//! Where copies travel: a thread, a runtime and a UDP socket of their own, at a lower CPU priority than guests' requests.
//!
//! A node's other messages share one or two worker threads. Unpacking a megabyte of a copy there would hold up each of
//! them, and on a host whose cores are busy a copy takes its turns from guests. So all Resync links, and hashing and
//! encoding of what travels on them, stay on this thread; the kernel lets it wait when the cores are wanted, and it gets
//! a part of one even then (`cpu`), so that copies never stand still. Peers learn the port from the hello of their foreground
//! link; a peer of a release that has no such port is dialed at its main one.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::runtime::Handle;

use super::cpu;
use super::throttle::Throttle;
use crate::core::ids::NodeId;
use crate::net::identity::Identity;
use crate::net::quic::{BindEndpointError, Endpoint};
use crate::net::tuning::Tuning;

/// The bulk thread's handle.
pub struct Bulk {
    /// Dials and accepts Resync links.
    pub endpoint: Endpoint,
    /// Its runtime.
    pub runtime: Handle,
    /// Of this node, for peers.
    pub port: u16,
    peers: Mutex<HashMap<NodeId, SocketAddr>>,
    /// Ends the thread when it is dropped.
    _stop: tokio::sync::oneshot::Sender<()>,
}

/// Why copies have no thread.
#[derive(Debug, thiserror::Error)]
pub enum StartBulk {
    /// No thread or no runtime.
    #[error("can't start the thread for copies: {0}")]
    Thread(#[from] io::Error),
    /// No socket.
    #[error("{}", .0.with_key("bulk_port"))]
    Endpoint(#[from] BindEndpointError),
}

impl Bulk {
    /// Starts the thread, with an endpoint at `addr`, whose port 0 takes a free one.
    ///
    /// # Errors
    /// No thread, no runtime or no socket.
    pub fn start(addr: SocketAddr, identity: Arc<Identity>, throttle: Arc<Throttle>) -> Result<Bulk, StartBulk> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        std::thread::Builder::new().name("copies".to_owned()).spawn(move || {
            cpu::yield_to_guests();
            runtime.spawn(cpu::give_way(move || throttle.is_below_floor()));
            // Ends when the handle is dropped; nothing is sent.
            let _ = runtime.block_on(stopped);
        })?;
        let endpoint = {
            let _inside = handle.enter();
            Endpoint::bind(addr, identity, Tuning::default())?
        };
        let port = endpoint.local_addr()?.port();
        Ok(Bulk { endpoint, runtime: handle, port, peers: Mutex::default(), _stop: stop })
    }

    /// Where a peer takes Resync links; none if it has no port for them.
    pub fn set_peer(&self, node: NodeId, addr: Option<SocketAddr>) {
        let mut peers = self.peers.lock();
        match addr {
            Some(addr) => drop(peers.insert(node, addr)),
            None => drop(peers.remove(&node)),
        }
    }

    /// Where to dial a peer; `main` is its foreground address.
    pub fn peer(&self, node: NodeId, main: SocketAddr) -> SocketAddr {
        self.peers.lock().get(&node).copied().unwrap_or(main)
    }
}
