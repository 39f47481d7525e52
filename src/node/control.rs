//! The node's link to the coordinator: registers, follows the map, carries proposals.
//!
//! The coordinator is never on the IO path: while it is away, everything here waits and tries again; IO goes on.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prost::Message;
use tokio::sync::mpsc::UnboundedReceiver;

use super::engine::{Event, Events};
use super::links::Links;
use super::throttle::Throttle;
use crate::api::metrics::IntGauge;
use crate::core::cluster::{ClusterMap, PgConfig};
use crate::core::ids::{DiskId, Generation, NodeId, PgId};
use crate::core::throttle::peers::{self, Findings};
use crate::net::channel::{Channel, Sender};
use crate::net::quic::{ConnectLinkError, Endpoint};
use crate::net::tls::{Expect, IdentityRefused};
use crate::net::tuning::LinkClass;
use crate::wire::control::{self as msg, kind};
use crate::wire::frame::Frame;
use crate::wire::map::apply_delta;
use crate::wire::stats;

/// Sign of life.
const HEARTBEAT: Duration = Duration::from_millis(150);
/// The coordinator answers each heartbeat; one that is silent for this long was killed, or has been restarted since.
const SILENCE: Duration = Duration::from_millis(1200);
/// A try to reach it takes no longer, so that one that comes back is found soon.
const CONNECT: Duration = Duration::from_millis(700);
/// Between tries to reach the coordinator.
const RETRY: Duration = Duration::from_millis(250);
/// The same with one that refuses this node.
const RETRY_REFUSED: Duration = Duration::from_secs(2);

/// What the engine has for the coordinator.
pub enum ToCoordinator {
    /// A change of a configuration.
    Propose(msg::Propose),
    /// Peers that don't answer.
    Unreachable(Vec<NodeId>),
    /// Figures.
    Stats(Box<stats::Stats>),
    /// A copy is gone.
    Purged(msg::Purge),
    /// A deleted volume's chunks are gone from a PG.
    VolumeDropped(msg::VolumeDropped),
}

/// What the coordinator can refuse for good.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Its words.
    #[error("the coordinator refuses this node: {reason}")]
    Refused {
        /// One sentence.
        reason: String,
        /// The node was removed from the cluster.
        removed: bool,
    },
    /// It isn't this node's coordinator at all.
    #[error(
        "can't use the coordinator at {coordinator}: {refusal}; give the node the directory that joined this cluster, or its own coordinator's address"
    )]
    Stranger {
        /// Whom we dialed.
        coordinator: SocketAddr,
        /// What its certificate shows.
        refusal: IdentityRefused,
    },
}

impl ControlError {
    /// An error that waiting won't mend, if `error` is one.
    fn lasting(coordinator: SocketAddr, error: &ConnectLinkError) -> Option<Self> {
        match error {
            ConnectLinkError::PeerRefused {
                refusal: refusal @ (IdentityRefused::OtherCluster { .. } | IdentityRefused::NotSigned),
                ..
            } => Some(ControlError::Stranger { coordinator, refusal: refusal.clone() }),
            _ => None,
        }
    }

    fn refused(f: &Frame) -> Self {
        let msg::Refused { reason, removed } = msg::Refused::decode(f.meta.as_ref()).unwrap_or_default();
        ControlError::Refused { reason, removed }
    }
}

fn frame(kind: u16, message: &impl Message) -> Frame {
    Frame::new(kind, message.encode_to_vec())
}

/// Asks for ids for new disks, waiting for the coordinator if need be.
///
/// # Errors
/// The coordinator refuses.
pub async fn allocate_disks(
    endpoint: &Endpoint,
    coordinator: SocketAddr,
    node: NodeId,
    disks: &[(String, u64)],
) -> Result<Vec<DiskId>, ControlError> {
    let mut ids = Vec::new();
    loop {
        let link = match endpoint.connect(coordinator, Expect::Coordinator, LinkClass::Control).await {
            Ok(link) => link,
            Err(error) => {
                if let Some(lasting) = ControlError::lasting(coordinator, &error) {
                    return Err(lasting);
                }
                tracing::warn!(%coordinator, %error, "can't reach the coordinator; trying again");
                tokio::time::sleep(RETRY).await;
                continue;
            }
        };
        let mut parts = None;
        while let Some((class, capacity_bytes)) = disks.get(ids.len()) {
            let ask = msg::AllocDisk { class: class.clone(), capacity_bytes: *capacity_bytes, node: node.0 };
            let ask = frame(kind::ALLOC_DISK, &ask);
            if parts.is_none() {
                match link.open_channel(ask).await {
                    Ok(opened) => parts = Some(opened.split()),
                    Err(_) => break,
                }
            } else if let Some((sender, _)) = &parts
                && sender.send(ask).is_err()
            {
                break;
            }
            let Some((_, receiver)) = &mut parts else { break };
            match receiver.recv().await {
                Some(f) if f.kind == kind::DISK_ALLOCATED => match msg::DiskAllocated::decode(f.meta.as_ref()) {
                    Ok(allocated) => ids.push(DiskId(allocated.disk)),
                    Err(_) => break,
                },
                Some(f) if f.kind == kind::REFUSED => return Err(ControlError::refused(&f)),
                _ => break,
            }
        }
        if ids.len() == disks.len() {
            return Ok(ids);
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// The running link.
pub struct Control {
    /// Its endpoint dials the coordinator.
    pub links: Arc<Links>,
    /// Where the coordinator is.
    pub coordinator: SocketAddr,
    /// Makes the registration anew for each connection: what the disks know changes.
    pub register: Box<dyn Fn(&ClusterMap) -> msg::Register + Send>,
    /// To the engine.
    pub events: Events,
    /// Told what disks of a class have.
    pub throttle: Arc<Throttle>,
    /// Told when the first registration has been taken.
    pub registered: Option<tokio::sync::oneshot::Sender<()>>,
    /// 1 while the link is up.
    pub connected: IntGauge,
    /// When the coordinator was last heard, Unix milliseconds.
    pub heard: Arc<AtomicU64>,
}

impl Control {
    /// Runs for as long as the node does.
    ///
    /// # Errors
    /// The coordinator refuses this node before it has served. One that serves goes on: that coordinator may be the one that errs,
    /// with an old map or another's. One that was removed ends without an error.
    pub async fn run(mut self, mut outgoing: UnboundedReceiver<ToCoordinator>) -> Result<(), ControlError> {
        let mut map = ClusterMap::default();
        let mut proposals: HashMap<u64, msg::Propose> = HashMap::new();
        let mut unreachable = Vec::new();
        let mut warned = false;
        let mut refused = String::new();
        loop {
            let mut retry = RETRY;
            let connecting = self.links.endpoint.connect(self.coordinator, Expect::Coordinator, LinkClass::Control);
            let opened = match tokio::time::timeout(CONNECT, connecting).await {
                Err(_) => {
                    if !warned {
                        tracing::warn!(coordinator = %self.coordinator, "the coordinator doesn't answer: trying again, IO goes on");
                        warned = true;
                    }
                    None
                }
                Ok(Ok(link)) => link.open_channel(frame(kind::REGISTER, &(self.register)(&map))).await.ok(),
                Ok(Err(error)) => {
                    // A node that has served goes on serving whoever takes that address meanwhile.
                    if self.registered.is_some()
                        && let Some(lasting) = ControlError::lasting(self.coordinator, &error)
                    {
                        return Err(lasting);
                    }
                    if !warned {
                        tracing::warn!(coordinator = %self.coordinator, %error, "can't reach the coordinator: trying again, IO goes on");
                        warned = true;
                    }
                    None
                }
            };
            if let Some(channel) = opened {
                self.connected.set(1);
                let result = self.session(channel, &mut map, &mut proposals, &mut unreachable, &mut outgoing).await;
                self.connected.set(0);
                warned = false;
                match result {
                    Err(ControlError::Refused { reason, removed }) if self.registered.is_none() => {
                        if removed {
                            tracing::info!("this node ends: {reason}");
                            return Ok(());
                        }
                        if reason != refused {
                            tracing::warn!("the coordinator refuses this node: {reason}; trying again, IO goes on");
                            refused = reason;
                        }
                        retry = RETRY_REFUSED;
                    }
                    other => {
                        refused.clear();
                        other?;
                    }
                }
            }
            let pause = tokio::time::sleep(retry);
            tokio::pin!(pause);
            // What comes meanwhile is kept if it must not be lost.
            loop {
                tokio::select! {
                    () = &mut pause => break,
                    item = outgoing.recv() => match item {
                        Some(ToCoordinator::Propose(p)) => drop(proposals.insert(p.proposal, p)),
                        Some(ToCoordinator::Unreachable(list)) => unreachable = list,
                        Some(_) => {}
                        None => return Ok(()),
                    }
                }
            }
        }
    }

    async fn session(
        &mut self,
        channel: Channel,
        map: &mut ClusterMap,
        proposals: &mut HashMap<u64, msg::Propose>,
        unreachable: &mut Vec<NodeId>,
        outgoing: &mut UnboundedReceiver<ToCoordinator>,
    ) -> Result<(), ControlError> {
        let (sender, mut receiver) = channel.split();
        let mut beat = tokio::time::interval(HEARTBEAT);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut n = 0;
        let mut heard = tokio::time::Instant::now();
        for propose in proposals.values() {
            if sender.send(frame(kind::PROPOSE, propose)).is_err() {
                return Ok(());
            }
        }
        loop {
            tokio::select! {
                incoming = receiver.recv() => {
                    let Some(incoming) = incoming else { return Ok(()) };
                    heard = tokio::time::Instant::now();
                    self.heard.store(super::console::unix_ms(), Ordering::Relaxed);
                    if !self.incoming(&incoming, map, proposals)? {
                        return Ok(());
                    }
                }
                item = outgoing.recv() => {
                    let Some(item) = item else { return Ok(()) };
                    if send(&sender, item, proposals, unreachable).is_err() { return Ok(()) }
                }
                _ = beat.tick() => {
                    if heard.elapsed() > SILENCE { return Ok(()) }
                    n += 1;
                    let heartbeat = msg::Heartbeat { n, unreachable: unreachable.iter().map(|u| u.0).collect() };
                    if sender.send(frame(kind::HEARTBEAT, &heartbeat)).is_err() { return Ok(()) }
                }
            }
        }
    }

    /// Handles one frame; false: the link must be made anew.
    fn incoming(
        &mut self,
        f: &Frame,
        map: &mut ClusterMap,
        proposals: &mut HashMap<u64, msg::Propose>,
    ) -> Result<bool, ControlError> {
        match f.kind {
            kind::REGISTERED => {
                if let Some(registered) = self.registered.take() {
                    let _ = registered.send(());
                }
            }
            kind::MAP_DELTA => {
                let Ok(delta) = msg::MapDelta::decode(f.meta.as_ref()) else { return Ok(false) };
                let ids: Vec<PgId> = delta.pgs.iter().map(|p| PgId::from_u64(p.pg)).collect();
                if let Err(error) = apply_delta(map, delta) {
                    tracing::warn!(%error, "refused a change of the map; registering again");
                    return Ok(false);
                }
                let changed: Vec<PgConfig> = ids.iter().filter_map(|id| map.pgs.get(id).cloned()).collect();
                self.events.push(Event::Map { map: Arc::new(map.clone()), changed });
            }
            kind::PROPOSE_REPLY => {
                if let Ok(reply) = msg::ProposeReply::decode(f.meta.as_ref()) {
                    proposals.remove(&reply.proposal);
                    if !reply.accepted {
                        tracing::info!(pg = %PgId::from_u64(reply.pg), reason = reply.reason, "a proposal was not taken");
                    }
                    self.events.push(Event::Outcome {
                        pg: PgId::from_u64(reply.pg),
                        proposal: reply.proposal,
                        accepted: reply.accepted,
                        config: reply.config.and_then(|c| c.try_into().ok()),
                    });
                }
            }
            kind::PURGE => {
                if let Ok(purge) = msg::Purge::decode(f.meta.as_ref()) {
                    self.events.push(Event::Purge {
                        pg: PgId::from_u64(purge.pg),
                        disk: DiskId(purge.disk),
                        up_to: Generation { epoch: purge.up_to_epoch, n: purge.up_to_n },
                    });
                }
            }
            kind::CLASS_BASELINES => {
                let Ok(baselines) = stats::ClassBaselines::decode(f.meta.as_ref()) else { return Ok(false) };
                self.throttle.set_copies_run(baselines.copies_run);
                for disk in baselines.disks {
                    let usual = Findings {
                        quiet_p99_us: peers::from_list(&disk.quiet_p99_us),
                        rate_bytes_per_sec: disk.usual_rate_bytes_per_sec,
                    };
                    self.throttle.set_usual(DiskId(disk.disk), usual);
                }
            }
            kind::REFUSED => return Err(ControlError::refused(f)),
            kind::HEARTBEAT_ACK | kind::DISK_ALLOCATED => {}
            other => tracing::warn!(kind = other, "ignored a message that this release doesn't know"),
        }
        Ok(true)
    }
}

fn send(
    sender: &Sender,
    item: ToCoordinator,
    proposals: &mut HashMap<u64, msg::Propose>,
    unreachable: &mut Vec<NodeId>,
) -> Result<(), ()> {
    let frame = match item {
        ToCoordinator::Propose(p) => {
            let f = frame(kind::PROPOSE, &p);
            proposals.insert(p.proposal, p);
            f
        }
        ToCoordinator::Unreachable(list) => {
            *unreachable = list;
            return Ok(());
        }
        ToCoordinator::Stats(stats) => frame(kind::STATS, stats.as_ref()),
        ToCoordinator::Purged(p) => frame(kind::PURGED, &p),
        ToCoordinator::VolumeDropped(v) => frame(kind::VOLUME_DROPPED, &v),
    };
    sender.send(frame).map_err(drop)
}
