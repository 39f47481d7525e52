//! Leases between nodes (R7), on a thread and a socket of their own, so that no amount of IO delays them.
//!
//! A primary asks each other member's node every 150 ms for all its PGs at once. A member grants for the generation
//! that it has accepted, to that generation's primary, for 600 ms by its own clock; the primary counts from the moment
//! at which it asked, less a margin for drift. A late renewal pauses reads; it removes nobody.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prost::Message;

use crate::core::cluster::PgConfig;
use crate::core::ids::{DiskId, Generation, NodeId, PgId};
use crate::core::units::Instant;
use crate::net::identity::Identity;
use crate::net::quic::{Endpoint, Link};
use crate::net::tls::Expect;
use crate::net::tuning::{LinkClass, Tuning};
use crate::wire::frame::Frame;
use crate::wire::leases::{LeaseEntry, LeaseGrant, LeaseRequest, lease_kind};

/// How long a grant lasts.
pub const LEASE: Duration = Duration::from_millis(600);
/// How often it is renewed.
pub const RENEWAL: Duration = Duration::from_millis(150);
/// Clocks may drift by 1 % against each other.
const DRIFT_MARGIN: Duration = Duration::from_millis(6);
/// A node that hasn't answered for this long is reported as unreachable: three renewals and a bit.
const UNREACHABLE: Duration = Duration::from_millis(500);

/// CLOCK_BOOTTIME: goes on while the host sleeps, so that a lease can't be overslept.
pub fn now() -> Instant {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Instant(t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64)
}

#[derive(Clone, Copy)]
struct Grant {
    generation: Generation,
    /// The primary that may renew; `None`: this replica leads, or is no member.
    primary: Option<DiskId>,
    until: Instant,
}

struct Hold {
    generation: Generation,
    until: HashMap<DiskId, Instant>,
}

#[derive(Default)]
struct Tables {
    /// By PG and granting member.
    grants: HashMap<(PgId, DiskId), Grant>,
    /// By PG and primary.
    holds: HashMap<(PgId, DiskId), Hold>,
    /// What to ask of each node.
    wanted: BTreeMap<NodeId, Vec<LeaseEntry>>,
    peers: BTreeMap<NodeId, SocketAddr>,
    heard: HashMap<NodeId, Instant>,
}

/// The lease tables of a node, shared by its engine and its lease thread.
pub struct Leases {
    started: Instant,
    tables: Mutex<Tables>,
    /// Something new is wanted: ask at once.
    changed: tokio::sync::watch::Sender<()>,
}

impl Leases {
    /// Empty tables. A node that has just started may have granted before: it waits one lease (R7).
    pub fn new() -> Arc<Self> {
        Arc::new(Leases { started: now(), tables: Mutex::default(), changed: tokio::sync::watch::Sender::new(()) })
    }

    /// From now on `me` grants under this configuration alone; returns when its earlier grants end.
    pub fn accept(&self, config: &PgConfig, me: DiskId) -> Instant {
        let mut tables = self.tables.lock();
        let primary = config.primary().map(|p| p.disk).filter(|p| *p != me);
        let member = config.members.iter().any(|m| m.disk == me);
        let key = (config.pg, me);
        let ends = tables.grants.get(&key).map_or(self.started + LEASE, |g| g.until.max(self.started + LEASE));
        let grant = Grant { generation: config.generation, primary: primary.filter(|_| member), until: ends };
        match tables.grants.get(&key) {
            Some(old) if old.generation > config.generation => {}
            _ => drop(tables.grants.insert(key, grant)),
        }
        ends
    }

    /// Until when all other members have granted `me` a lease for the configuration.
    pub fn held_until(&self, config: &PgConfig, me: DiskId) -> Instant {
        let tables = self.tables.lock();
        let Some(hold) = tables.holds.get(&(config.pg, me)).filter(|h| h.generation == config.generation) else {
            return Instant(0);
        };
        let others = config.members.iter().map(|m| m.disk).filter(|d| *d != me);
        others.map(|d| hold.until.get(&d).copied().unwrap_or_default()).min().unwrap_or(Instant(u64::MAX))
    }

    /// What to renew, by node: replaces the list.
    pub fn set_wanted(&self, wanted: BTreeMap<NodeId, Vec<LeaseEntry>>) {
        self.tables.lock().wanted = wanted;
        self.changed.send_replace(());
    }

    /// Where a peer's lease endpoint is.
    pub fn set_peer(&self, node: NodeId, addr: SocketAddr) {
        let mut tables = self.tables.lock();
        tables.peers.insert(node, addr);
        tables.heard.insert(node, now());
    }

    /// Nodes that don't answer.
    pub fn unreachable(&self) -> Vec<NodeId> {
        let tables = self.tables.lock();
        let t = now();
        tables.peers.keys().filter(|n| tables.heard.get(n).is_none_or(|h| t.since(*h) > UNREACHABLE)).copied().collect()
    }

    fn grant(&self, request: &LeaseRequest) -> LeaseGrant {
        let mut tables = self.tables.lock();
        let until = now() + LEASE;
        let mut entries = Vec::new();
        for e in &request.entries {
            let key = (PgId::from_u64(e.pg), DiskId(e.member));
            if let Some(grant) = tables.grants.get_mut(&key)
                && grant.generation == (Generation { epoch: e.epoch, n: e.n })
                && grant.primary == Some(DiskId(e.primary))
            {
                grant.until = grant.until.max(until);
                entries.push(*e);
            }
        }
        LeaseGrant { n: request.n, entries }
    }

    fn granted(&self, from: NodeId, grant: LeaseGrant, asked: Instant) {
        let mut tables = self.tables.lock();
        tables.heard.insert(from, now());
        let until = asked + (LEASE - DRIFT_MARGIN);
        for e in grant.entries {
            let generation = Generation { epoch: e.epoch, n: e.n };
            let hold = tables
                .holds
                .entry((PgId::from_u64(e.pg), DiskId(e.primary)))
                .or_insert_with(|| Hold { generation, until: HashMap::new() });
            if hold.generation < generation {
                *hold = Hold { generation, until: HashMap::new() };
            }
            if hold.generation == generation {
                hold.until.insert(DiskId(e.member), until);
            }
        }
    }
}

/// Starts the lease thread at `addr`, whose port 0 takes a free one; returns the port.
///
/// # Errors
/// The socket can't be bound.
pub fn start(leases: Arc<Leases>, identity: Arc<Identity>, addr: SocketAddr) -> Result<u16, String> {
    let (ready, port) = std::sync::mpsc::channel();
    std::thread::Builder::new()
        .name("leases".into())
        .spawn(move || {
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => return drop(ready.send(Err(error.to_string()))),
            };
            runtime.block_on(async move {
                let endpoint = match Endpoint::bind(addr, identity, Tuning::default()) {
                    Ok(endpoint) => Arc::new(endpoint),
                    Err(error) => return drop(ready.send(Err(error.with_key("lease_port")))),
                };
                let port = endpoint.local_addr().map(|a| a.port()).map_err(|e| e.to_string());
                drop(ready.send(port));
                let serving = leases.clone();
                let acceptor = endpoint.clone();
                tokio::spawn(async move {
                    while let Some(link) = acceptor.accept().await {
                        tokio::spawn(serve(serving.clone(), link));
                    }
                });
                renew(leases, endpoint).await;
            });
        })
        .map_err(|e| e.to_string())?;
    port.recv().map_err(|e| e.to_string())?
}

async fn serve(leases: Arc<Leases>, link: Link) {
    while let Ok((hello, channel)) = link.accept_channel().await {
        let (sender, mut receiver) = channel.split();
        let mut next = Some(hello);
        while let Some(frame) = next {
            if frame.kind == lease_kind::REQUEST
                && let Ok(request) = LeaseRequest::decode(frame.meta.as_ref())
            {
                let grant = leases.grant(&request);
                if sender.send(Frame::new(lease_kind::GRANT, grant.encode_to_vec())).is_err() {
                    break;
                }
            }
            next = receiver.recv().await;
        }
    }
}

async fn renew(leases: Arc<Leases>, endpoint: Arc<Endpoint>) {
    let mut tasks: BTreeMap<NodeId, (SocketAddr, tokio::task::JoinHandle<()>)> = BTreeMap::new();
    loop {
        let peers = leases.tables.lock().peers.clone();
        for (node, addr) in peers {
            let running = tasks.get(&node).is_some_and(|(a, task)| *a == addr && !task.is_finished());
            if !running {
                if let Some((_, old)) = tasks.remove(&node) {
                    old.abort();
                }
                let task = tokio::spawn(renew_with(leases.clone(), endpoint.clone(), node, addr));
                tasks.insert(node, (addr, task));
            }
        }
        tokio::time::sleep(RENEWAL).await;
    }
}

/// One connection to one peer; ends when it breaks.
async fn renew_with(leases: Arc<Leases>, endpoint: Arc<Endpoint>, node: NodeId, addr: SocketAddr) {
    let Ok(link) = endpoint.connect(addr, Expect::Node(node), LinkClass::Lease).await else { return };
    let mut n = 0;
    let request = |n: u64| {
        let entries = leases.tables.lock().wanted.get(&node).cloned().unwrap_or_default();
        Frame::new(lease_kind::REQUEST, LeaseRequest { n, entries }.encode_to_vec())
    };
    let mut asked: BTreeMap<u64, Instant> = BTreeMap::from([(0, now())]);
    let Ok(channel) = link.open_channel(request(0)).await else { return };
    let (sender, mut receiver) = channel.split();
    let mut changed = leases.changed.subscribe();
    let mut interval = tokio::time::interval(RENEWAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            frame = receiver.recv() => {
                let Some(frame) = frame else { return };
                if frame.kind == lease_kind::GRANT && let Ok(grant) = LeaseGrant::decode(frame.meta.as_ref())
                    && let Some(at) = asked.remove(&grant.n)
                {
                    leases.granted(node, grant, at);
                }
            }
            tick = async { tokio::select! { _ = interval.tick() => Ok(()), c = changed.changed() => c } } => {
                if tick.is_err() { return }
                n += 1;
                asked.insert(n, now());
                // An answer later than a lease is worth nothing.
                while asked.len() > 8 { asked.pop_first(); }
                if sender.send(request(n)).is_err() { return }
            }
        }
    }
}
