//! Carries a volume's requests to the primaries of its PGs, through failovers.
//!
//! A request waits here until its PG has a primary that answers; it is sent again whenever the link breaks, the primary
//! changes or says that it isn't one. It never fails for want of a replica (I8). Each link has a connection number
//! above all earlier ones, and a PG is opened on it before IO goes there (R6, R14), so that what an earlier attempt
//! left behind can't overwrite what came later.
//!
//! Writes that were acked and aren't covered by a FLUSH yet are kept, bounded, and sent again when a PG's durability
//! epoch shows that it may have lost them (R13).

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use crate::core::cluster::ClusterMap;
use crate::core::ids::{DiskId, Generation, NodeId, PgId, VolumeId};
use crate::core::replica::{ClientOp, ClientReply, ClientRequest};
use crate::net::channel::{Receiver, Sender};
use crate::net::quic::Endpoint;
use crate::net::tls::Expect;
use crate::net::tuning::LinkClass;
use crate::wire::client::{self, kind};
use crate::wire::frame::Frame;

/// Acked writes kept until a FLUSH covers them; past it a FLUSH is made in the background.
const UNFLUSHED_BYTES_MAX: usize = 64 << 20;
/// A small write is copied out of its receive buffer, so that it doesn't keep the whole of it.
const COPY_BELOW_BYTES: usize = 64 << 10;
/// What waits for a primary looks again after this long.
const RETRY: Duration = Duration::from_millis(50);
/// A node whose link can't be made for this long is reported to the coordinator (R8).
const UNREACHABLE: Duration = Duration::from_millis(400);

struct Waiting {
    order: u64,
    op: ClientOp,
    /// `None`: a replay of an acked write.
    answer: Option<oneshot::Sender<ClientReply>>,
}

struct InFlight {
    pg: PgId,
    node: NodeId,
    waiting: Option<Waiting>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Closed,
    Opening,
    /// Acked writes are being sent again.
    Replaying,
    Open,
}

struct Route {
    disk: DiskId,
    node: NodeId,
    generation: Generation,
    phase: Phase,
    connection: u64,
    durability_epoch: Option<u64>,
    replays: usize,
    waiting: VecDeque<Waiting>,
    unflushed: VecDeque<(u64, ClientOp)>,
}

struct NodeLink {
    sender: Sender,
    connection: u64,
}

struct State {
    map: Arc<ClusterMap>,
    incarnation: u64,
    fenced: bool,
    next_id: u64,
    next_order: u64,
    next_connection: u64,
    nodes: HashMap<NodeId, NodeLink>,
    dialing: HashMap<NodeId, Option<std::time::Instant>>,
    routes: BTreeMap<PgId, Route>,
    inflight: HashMap<u64, InFlight>,
    unflushed_bytes: usize,
    flushing: bool,
}

/// Routes one volume's requests.
pub struct Router {
    volume: VolumeId,
    endpoint: Arc<Endpoint>,
    state: Mutex<State>,
    stopped: Notify,
}

impl Router {
    /// A router for a volume that has been granted at `incarnation` (0: for reading alone).
    pub fn new(volume: VolumeId, incarnation: u64, endpoint: Arc<Endpoint>, map: Arc<ClusterMap>) -> Arc<Self> {
        let router = Arc::new(Router {
            volume,
            endpoint,
            state: Mutex::new(State {
                map: Arc::default(),
                incarnation,
                fenced: false,
                next_id: 1,
                next_order: 1,
                next_connection: 1,
                nodes: HashMap::new(),
                dialing: HashMap::new(),
                routes: BTreeMap::new(),
                inflight: HashMap::new(),
                unflushed_bytes: 0,
                flushing: false,
            }),
            stopped: Notify::new(),
        });
        router.set_map(map);
        let ticking = Arc::downgrade(&router);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(RETRY).await;
                let Some(router) = ticking.upgrade() else { return };
                router.pump_all();
            }
        });
        router
    }

    /// The map as last seen.
    pub fn map(&self) -> Arc<ClusterMap> {
        self.state.lock().map.clone()
    }

    /// True once a higher incarnation has the volume.
    pub fn is_fenced(&self) -> bool {
        self.state.lock().fenced
    }

    /// Resolves when the volume is lost to another gateway.
    pub async fn fenced(&self) {
        loop {
            let notified = self.stopped.notified();
            if self.is_fenced() {
                return;
            }
            notified.await;
        }
    }

    /// Another gateway has the volume: nothing more is sent, everything that waits is refused.
    pub fn fence(&self) {
        let mut state = self.state.lock();
        state.fenced = true;
        for route in state.routes.values_mut() {
            for waiting in route.waiting.drain(..) {
                answer(waiting, ClientReply::Fenced);
            }
        }
        for (_, inflight) in state.inflight.drain() {
            if let Some(waiting) = inflight.waiting {
                answer(waiting, ClientReply::Fenced);
            }
        }
        drop(state);
        self.stopped.notify_waiters();
    }

    /// Nodes that can't be reached, for the coordinator.
    pub fn unreachable(&self) -> Vec<NodeId> {
        let state = self.state.lock();
        let since = |at: &Option<std::time::Instant>| at.is_some_and(|a| a.elapsed() > UNREACHABLE);
        state.dialing.iter().filter(|(n, at)| since(at) && !state.nodes.contains_key(n)).map(|(n, _)| *n).collect()
    }

    /// Follows the map: requests go to the primaries that it names.
    pub fn set_map(self: &Arc<Self>, map: Arc<ClusterMap>) {
        let mut state = self.state.lock();
        let pgs: Vec<PgId> = map.volumes.get(&self.volume).map(|v| v.pgs().collect()).unwrap_or_default();
        for pg in pgs {
            let Some(config) = map.pgs.get(&pg) else { continue };
            let Some(primary) = config.primary() else { continue };
            let Some(node) = map.disks.get(&primary.disk).map(|d| d.node) else { continue };
            let route = state.routes.entry(pg).or_insert_with(|| Route {
                disk: primary.disk,
                node,
                generation: config.generation,
                phase: Phase::Closed,
                connection: 0,
                durability_epoch: None,
                replays: 0,
                waiting: VecDeque::new(),
                unflushed: VecDeque::new(),
            });
            let moved = route.disk != primary.disk;
            route.generation = config.generation;
            if moved {
                (route.disk, route.node, route.phase) = (primary.disk, node, Phase::Closed);
                requeue(&mut state, |f| f.pg == pg);
            }
        }
        state.map = map;
        drop(state);
        self.pump_all();
    }

    /// Sends one operation on a PG; resolves when it is done, however long that takes.
    pub async fn submit(self: &Arc<Self>, pg: PgId, op: ClientOp) -> ClientReply {
        let (answer, answered) = oneshot::channel();
        {
            let mut state = self.state.lock();
            if state.fenced {
                return ClientReply::Fenced;
            }
            let order = state.next_order;
            state.next_order += 1;
            let Some(route) = state.routes.get_mut(&pg) else { return ClientReply::IoError };
            route.waiting.push_back(Waiting { order, op, answer: Some(answer) });
            self.pump(&mut state, pg);
        }
        answered.await.unwrap_or(ClientReply::Fenced)
    }

    /// Makes everything that was acked before the call stable on every member (R12), on the PGs given, or on all that
    /// the volume has.
    pub async fn flush(self: &Arc<Self>, pgs: Option<HashSet<PgId>>) -> Result<(), ClientReply> {
        let (targets, order): (Vec<PgId>, u64) = {
            let state = self.state.lock();
            let all = state.routes.keys().copied();
            (all.filter(|pg| pgs.as_ref().is_none_or(|p| p.contains(pg))).collect(), state.next_order)
        };
        let replies = futures_util::future::join_all(targets.iter().map(|pg| self.submit(*pg, ClientOp::Flush))).await;
        for (pg, reply) in targets.into_iter().zip(replies) {
            match reply {
                ClientReply::Done { .. } => {
                    let mut state = self.state.lock();
                    let mut freed = 0;
                    if let Some(route) = state.routes.get_mut(&pg) {
                        while route.unflushed.front().is_some_and(|(o, _)| *o < order) {
                            freed += route.unflushed.pop_front().map_or(0, |(_, op)| size(&op));
                        }
                    }
                    state.unflushed_bytes = state.unflushed_bytes.saturating_sub(freed);
                }
                other => return Err(other),
            }
        }
        Ok(())
    }

    fn pump_all(self: &Arc<Self>) {
        let mut state = self.state.lock();
        let pgs: Vec<PgId> = state.routes.iter().filter(|(_, r)| !r.waiting.is_empty()).map(|(pg, _)| *pg).collect();
        for pg in pgs {
            self.pump(&mut state, pg);
        }
    }

    /// Sends what can be sent for a PG; dials or opens first if need be.
    fn pump(self: &Arc<Self>, state: &mut State, pg: PgId) {
        if state.fenced {
            return;
        }
        let Some(route) = state.routes.get_mut(&pg) else { return };
        let node = route.node;
        let Some(link) = state.nodes.get(&node) else {
            if !route.waiting.is_empty() && !state.dialing.contains_key(&node) {
                state.dialing.insert(node, Some(std::time::Instant::now()));
                tokio::spawn(self.clone().dial(node));
            }
            return;
        };
        if route.phase == Phase::Open && route.connection != link.connection {
            route.phase = Phase::Closed;
        }
        match route.phase {
            Phase::Closed => {
                if route.waiting.is_empty() {
                    return;
                }
                route.phase = Phase::Opening;
                route.connection = link.connection;
                send(state, self.volume, pg, Waiting { order: 0, op: ClientOp::Open, answer: None });
            }
            Phase::Opening | Phase::Replaying => {}
            Phase::Open => {
                for waiting in std::mem::take(&mut route.waiting) {
                    send(state, self.volume, pg, waiting);
                }
            }
        }
    }

    async fn dial(self: Arc<Self>, node: NodeId) {
        loop {
            let addr: Option<SocketAddr> = self.state.lock().map.nodes.get(&node).map(|n| n.addr);
            let wanted = self.state.lock().routes.values().any(|r| r.node == node);
            let Some(addr) = addr.filter(|_| wanted) else {
                self.state.lock().dialing.remove(&node);
                return;
            };
            let connecting = self.endpoint.connect(addr, Expect::Node(node), LinkClass::Foreground);
            // A peer that is frozen or gone must not hold up the next try for long.
            if let Ok(Ok(link)) = tokio::time::timeout(Duration::from_secs(1), connecting).await
                && let Ok(channel) = link.open_channel(Frame::new(kind::CLIENT_HELLO, Bytes::new())).await
            {
                let (sender, receiver) = channel.split();
                let connection = {
                    let mut state = self.state.lock();
                    let connection = state.next_connection;
                    state.next_connection += 1;
                    state.nodes.insert(node, NodeLink { sender, connection });
                    state.dialing.remove(&node);
                    connection
                };
                self.pump_all();
                self.read(node, connection, receiver).await;
                return;
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn read(self: &Arc<Self>, node: NodeId, connection: u64, mut receiver: Receiver) {
        let mut frames = Vec::new();
        while receiver.recv_batch(&mut frames).await.is_some() {
            for frame in frames.drain(..) {
                match client::decode_reply(&frame) {
                    Ok((id, reply)) => self.replied(id, reply),
                    Err(error) => tracing::warn!(%error, "ignored an answer"),
                }
            }
        }
        let mut state = self.state.lock();
        if state.nodes.get(&node).is_some_and(|l| l.connection == connection) {
            state.nodes.remove(&node);
            for route in state.routes.values_mut().filter(|r| r.node == node) {
                route.phase = Phase::Closed;
            }
            requeue(&mut state, |f| f.node == node);
        }
        drop(state);
        self.pump_all();
    }

    fn replied(self: &Arc<Self>, id: u64, reply: ClientReply) {
        let mut state = self.state.lock();
        let Some(InFlight { pg, waiting, .. }) = state.inflight.remove(&id) else { return };
        let Some(waiting) = waiting else { return };
        if let ClientOp::Open = waiting.op {
            self.opened(&mut state, pg, &reply);
            return;
        }
        match reply {
            ClientReply::NotPrimary | ClientReply::NotOpen => {
                if let Some(route) = state.routes.get_mut(&pg) {
                    if route.phase != Phase::Opening {
                        route.phase = Phase::Closed;
                    }
                    insert_in_order(&mut route.waiting, waiting);
                }
            }
            ClientReply::Fenced => {
                answer(waiting, ClientReply::Fenced);
                drop(state);
                self.fence();
            }
            reply => {
                let is_replay = waiting.answer.is_none();
                if let (ClientReply::Done { .. }, false) = (&reply, is_replay) {
                    self.remember(&mut state, pg, &waiting);
                }
                if is_replay && let Some(route) = state.routes.get_mut(&pg) {
                    route.replays = route.replays.saturating_sub(1);
                    if route.replays == 0 && route.phase == Phase::Replaying {
                        route.phase = Phase::Open;
                        self.pump(&mut state, pg);
                    }
                }
                answer(waiting, reply);
            }
        }
    }

    fn opened(self: &Arc<Self>, state: &mut State, pg: PgId, reply: &ClientReply) {
        let Some(route) = state.routes.get_mut(&pg) else { return };
        if route.phase != Phase::Opening {
            return;
        }
        match reply {
            ClientReply::Done { durability_epoch } => {
                let lost = route.durability_epoch.is_some_and(|known| known != *durability_epoch);
                route.durability_epoch = Some(*durability_epoch);
                route.phase = Phase::Open;
                if lost && !route.unflushed.is_empty() {
                    tracing::warn!(%pg, writes = route.unflushed.len(), "a placement group restarted whole: sending unflushed writes again");
                    route.phase = Phase::Replaying;
                    route.replays = route.unflushed.len();
                    let replays: Vec<Waiting> = route
                        .unflushed
                        .iter()
                        .map(|(order, op)| Waiting { order: *order, op: op.clone(), answer: None })
                        .collect();
                    for replay in replays {
                        send(state, self.volume, pg, replay);
                    }
                }
                self.pump(state, pg);
            }
            ClientReply::Fenced => {
                state.fenced = true;
                let router = self.clone();
                tokio::spawn(async move { router.fence() });
            }
            // Not the primary (yet): the next tick or map looks again.
            _ => route.phase = Phase::Closed,
        }
    }

    /// Keeps an acked write until a FLUSH covers it. Also one that is stable already: a replay without it would bring
    /// back what an earlier write left in its place.
    fn remember(self: &Arc<Self>, state: &mut State, pg: PgId, waiting: &Waiting) {
        let op = match &waiting.op {
            ClientOp::Write { chunk, offset, leaves, data, fua } => {
                let data = if data.len() < COPY_BELOW_BYTES { Bytes::copy_from_slice(data) } else { data.clone() };
                ClientOp::Write { chunk: *chunk, offset: *offset, leaves: leaves.clone(), data, fua: *fua }
            }
            ClientOp::Zero { .. } => waiting.op.clone(),
            _ => return,
        };
        let bytes = size(&op);
        let order = state.next_order;
        state.next_order += 1;
        if let Some(route) = state.routes.get_mut(&pg) {
            // In the order of the acks: a later write of the same block was sent after the earlier one's ack.
            route.unflushed.push_back((order, op));
            state.unflushed_bytes += bytes;
        }
        if state.unflushed_bytes > UNFLUSHED_BYTES_MAX && !state.flushing {
            state.flushing = true;
            let router = self.clone();
            tokio::spawn(async move {
                let dirty: HashSet<PgId> = {
                    let state = router.state.lock();
                    state.routes.iter().filter(|(_, r)| !r.unflushed.is_empty()).map(|(pg, _)| *pg).collect()
                };
                if router.flush(Some(dirty)).await.is_err() {
                    tracing::debug!("the background flush was refused");
                }
                router.state.lock().flushing = false;
            });
        }
    }
}

fn size(op: &ClientOp) -> usize {
    match op {
        ClientOp::Write { data, .. } => data.len() + 128,
        _ => 128,
    }
}

fn answer(waiting: Waiting, reply: ClientReply) {
    if let Some(answer) = waiting.answer {
        // Whoever asked may have gone.
        let _ = answer.send(reply);
    }
}

fn insert_in_order(queue: &mut VecDeque<Waiting>, waiting: Waiting) {
    let at = queue.partition_point(|w| w.order < waiting.order);
    queue.insert(at, waiting);
}

/// Puts what is in flight back to wait, in its order.
fn requeue(state: &mut State, which: impl Fn(&InFlight) -> bool) {
    let ids: Vec<u64> = state.inflight.iter().filter(|(_, f)| which(f)).map(|(id, _)| *id).collect();
    for id in ids {
        let Some(InFlight { pg, waiting: Some(waiting), .. }) = state.inflight.remove(&id) else { continue };
        // Opens and replays start anew with the next link.
        if waiting.answer.is_some()
            && let Some(route) = state.routes.get_mut(&pg)
        {
            insert_in_order(&mut route.waiting, waiting);
        } else if waiting.answer.is_none()
            && !matches!(waiting.op, ClientOp::Open)
            && let Some(route) = state.routes.get_mut(&pg)
        {
            // An interrupted replay: all of it again.
            route.durability_epoch = Some(u64::MAX);
        }
    }
}

fn send(state: &mut State, volume: VolumeId, pg: PgId, waiting: Waiting) {
    let Some(route) = state.routes.get(&pg) else { return };
    let (disk, node) = (route.disk, route.node);
    let id = state.next_id;
    state.next_id += 1;
    let request = ClientRequest {
        id,
        volume,
        incarnation: state.incarnation,
        connection: route.connection,
        op: waiting.op.clone(),
    };
    let frame = client::encode_request(pg, disk, &request);
    state.inflight.insert(id, InFlight { pg, node, waiting: Some(waiting) });
    if let Some(link) = state.nodes.get(&node)
        && let Err(error) = link.sender.send(frame)
    {
        match error {
            // The queue is bounded; the client's own bounds are below it, so this is rare: wait with the frame.
            crate::net::channel::SendFrameError::Full(frame) => {
                let sender = link.sender.clone();
                tokio::spawn(async move { drop(sender.send_async(*frame).await) });
            }
            // The reader sees the end and puts everything back.
            other => tracing::debug!(%other, "a link ended"),
        }
    }
}
