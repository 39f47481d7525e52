//! Drives [`crate::core::router`]: dials the primaries' nodes, carries frames, and wakes those who asked.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use crate::core::cluster::ClusterMap;
use crate::core::ids::{DiskId, NodeId, PgId, VolumeId};
use crate::core::replica::{ClientOp, ClientReply, ClientRequest};
use crate::core::router::{self as core, Action, Token};
use crate::core::throttle::Kind;
use crate::net::channel::Receiver;
use crate::net::outbox::Outbox;
use crate::net::quic::Endpoint;
use crate::net::tls::Expect;
use crate::net::tuning::LinkClass;
use crate::wire::client::{self, LATENCIES_MAX, SeenLatency, kind};
use crate::wire::frame::Frame;

/// What waits for a primary looks again after this long.
const RETRY: Duration = Duration::from_millis(50);
/// A peer that is frozen or gone must not hold up the next try for long.
const CONNECT: Duration = Duration::from_secs(1);
/// A node whose link can't be made for this long is reported to the coordinator (R8).
const UNREACHABLE: Duration = Duration::from_millis(400);

/// Latencies older than this are no news: the next request may come much later.
const LATENCY_KEPT: Duration = Duration::from_secs(1);

struct State {
    core: core::Router,
    map: Arc<ClusterMap>,
    next_token: Token,
    answers: HashMap<Token, oneshot::Sender<ClientReply>>,
    links: HashMap<NodeId, (u64, Outbox)>,
    dialing: HashMap<NodeId, Instant>,
    latencies: SeenLatencies,
}

/// What each disk's operations took, for its node's throttle: a node can't measure what guests wait for on the way to it. It
/// goes with the next request to the same disk.
#[derive(Default)]
struct SeenLatencies {
    /// By request id: those that are in flight, as of the last tick.
    under_way: HashMap<u64, (DiskId, Kind, Instant)>,
    /// Oldest first; at most [`LATENCIES_MAX`] a disk.
    seen: HashMap<DiskId, Vec<(Instant, SeenLatency)>>,
}

impl SeenLatencies {
    /// A request leaves; gives what goes with it.
    fn sent(&mut self, disk: DiskId, request: &ClientRequest) -> Vec<SeenLatency> {
        let kind = match &request.op {
            ClientOp::Read { len, .. } => Some(Kind::of(false, u64::from(*len))),
            ClientOp::Write { data, .. } => Some(Kind::of(true, data.len() as u64)),
            _ => None,
        };
        if let Some(kind) = kind {
            self.under_way.insert(request.id, (disk, kind, Instant::now()));
        }
        let seen = self.seen.get_mut(&disk).map(std::mem::take).unwrap_or_default();
        seen.into_iter().filter(|(at, _)| at.elapsed() < LATENCY_KEPT).map(|(_, seen)| seen).collect()
    }

    fn answered(&mut self, id: u64, reply: &ClientReply) {
        let Some((disk, kind, sent)) = self.under_way.remove(&id) else { return };
        if !matches!(reply, ClientReply::Data(_) | ClientReply::Done { .. }) {
            return;
        }
        let seen = self.seen.entry(disk).or_default();
        if seen.len() < LATENCIES_MAX {
            let us = u32::try_from(sent.elapsed().as_micros()).unwrap_or(u32::MAX);
            seen.push((Instant::now(), SeenLatency { kind, us }));
        }
    }

    /// What was sent again under another number is answered under that one, or never.
    fn forget_overtaken(&mut self, core: &core::Router) {
        self.under_way.retain(|id, _| core.is_in_flight(*id));
    }
}

/// Routes one volume's requests.
pub struct Router {
    endpoint: Arc<Endpoint>,
    state: Mutex<State>,
    stopped: Notify,
}

impl Router {
    /// A router for a volume that has been granted at `incarnation` (0: for reading alone).
    pub fn new(volume: VolumeId, incarnation: u64, endpoint: Arc<Endpoint>, map: Arc<ClusterMap>) -> Arc<Self> {
        let router = Arc::new(Router {
            endpoint,
            state: Mutex::new(State {
                core: core::Router::new(volume, incarnation),
                map: Arc::default(),
                next_token: 1,
                answers: HashMap::new(),
                links: HashMap::new(),
                dialing: HashMap::new(),
                latencies: SeenLatencies::default(),
            }),
            stopped: Notify::new(),
        });
        router.set_map(map);
        let ticking = Arc::downgrade(&router);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(RETRY).await;
                let Some(router) = ticking.upgrade() else { return };
                router.tick();
            }
        });
        router
    }

    fn tick(self: &Arc<Self>) {
        let state = &mut *self.state.lock();
        state.core.handle_tick();
        state.latencies.forget_overtaken(&state.core);
        self.act(state);
    }

    /// The map as last seen.
    pub fn map(&self) -> Arc<ClusterMap> {
        self.state.lock().map.clone()
    }

    /// True once a higher incarnation has the volume.
    pub fn is_fenced(&self) -> bool {
        self.state.lock().core.is_fenced()
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
    pub fn fence(self: &Arc<Self>) {
        self.with(core::Router::fence);
    }

    /// Nodes that can't be reached, for the coordinator.
    pub fn unreachable(&self) -> Vec<NodeId> {
        let state = self.state.lock();
        state.dialing.iter().filter(|(_, since)| since.elapsed() > UNREACHABLE).map(|(n, _)| *n).collect()
    }

    /// What an earlier gateway acked may be lost: the next FLUSH fails (R13).
    pub fn tell_loss(self: &Arc<Self>) {
        self.with(core::Router::tell_loss);
    }

    /// The sum of the volume's durability epochs, if nothing acked is lost up to them, and nothing is left to be told.
    pub fn settled(&self) -> Option<u64> {
        let state = self.state.lock();
        state.core.settled(&state.map)
    }

    /// Follows the map: requests go to the primaries that it names.
    pub fn set_map(self: &Arc<Self>, map: Arc<ClusterMap>) {
        let mut state = self.state.lock();
        state.map = map.clone();
        state.core.handle_map(&map);
        self.act(&mut state);
    }

    /// Sends one operation on a PG; resolves when it is done, however long that takes.
    pub async fn submit(self: &Arc<Self>, pg: PgId, op: ClientOp) -> ClientReply {
        self.ask(|core, token| core.submit(token, pg, op)).await
    }

    /// Makes everything that was acked before the call stable on every member (R12).
    ///
    /// # Errors
    /// The volume was taken over, or an acked write could not be sent again (once, R13).
    pub async fn flush(self: &Arc<Self>) -> Result<(), ClientReply> {
        match self.ask(core::Router::flush).await {
            ClientReply::Done { .. } => Ok(()),
            other => Err(other),
        }
    }

    async fn ask(self: &Arc<Self>, request: impl FnOnce(&mut core::Router, Token)) -> ClientReply {
        let (answer, answered) = oneshot::channel();
        {
            let mut state = self.state.lock();
            let token = state.next_token;
            state.next_token += 1;
            state.answers.insert(token, answer);
            request(&mut state.core, token);
            self.act(&mut state);
        }
        answered.await.unwrap_or(ClientReply::Fenced)
    }

    fn with<T>(self: &Arc<Self>, step: impl FnOnce(&mut core::Router) -> T) -> T {
        let mut state = self.state.lock();
        let result = step(&mut state.core);
        self.act(&mut state);
        result
    }

    /// Carries out what the core wants done.
    fn act(self: &Arc<Self>, state: &mut State) {
        for action in state.core.take_actions() {
            match action {
                Action::Dial(node) => {
                    state.dialing.insert(node, Instant::now());
                    tokio::spawn(self.clone().dial(node));
                }
                Action::Send { node, connection, pg, disk, request } => {
                    if let Some((_, outbox)) = state.links.get(&node).filter(|(number, _)| *number == connection) {
                        let seen = state.latencies.sent(disk, &request);
                        outbox.send(client::encode_request(pg, disk, &request, &seen));
                    }
                }
                Action::Answer { token, reply } => {
                    if let Some(answer) = state.answers.remove(&token) {
                        // Whoever asked may have gone.
                        let _ = answer.send(reply);
                    }
                }
                Action::Replaying { pg, writes } => {
                    tracing::warn!(%pg, writes, "a placement group restarted whole: sending unflushed writes again");
                }
                Action::LossTold => {
                    tracing::error!("a FLUSH failed: a write that was acked before and not flushed is lost");
                }
                Action::Fenced => self.stopped.notify_waiters(),
            }
        }
    }

    async fn dial(self: Arc<Self>, node: NodeId) {
        loop {
            let addr: Option<SocketAddr> = {
                let mut state = self.state.lock();
                if !state.core.wants(node) {
                    state.dialing.remove(&node);
                    state.core.handle_dial_ended(node);
                    return self.act(&mut state);
                }
                state.map.nodes.get(&node).map(|n| n.addr)
            };
            let Some(addr) = addr else {
                tokio::time::sleep(RETRY).await;
                continue;
            };
            let connecting = self.endpoint.connect(addr, Expect::Node(node), LinkClass::Foreground);
            if let Ok(Ok(link)) = tokio::time::timeout(CONNECT, connecting).await
                && let Ok(channel) = link.open_channel(Frame::new(kind::CLIENT_HELLO, Bytes::new())).await
            {
                let (sender, receiver) = channel.split();
                let connection = {
                    let mut state = self.state.lock();
                    let connection = state.core.handle_link_up(node);
                    let outbox = Outbox::new(sender, tokio::runtime::Handle::current());
                    state.links.insert(node, (connection, outbox));
                    state.dialing.remove(&node);
                    self.act(&mut state);
                    connection
                };
                return self.read(node, connection, receiver).await;
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn read(self: &Arc<Self>, node: NodeId, connection: u64, mut receiver: Receiver) {
        let mut frames = Vec::new();
        while receiver.recv_batch(&mut frames).await.is_some() {
            for frame in frames.drain(..) {
                match client::decode_reply(&frame) {
                    Ok((id, reply)) => {
                        let mut state = self.state.lock();
                        state.latencies.answered(id, &reply);
                        state.core.handle_reply(id, reply);
                        self.act(&mut state);
                    }
                    Err(error) => tracing::warn!(%error, "ignored an answer"),
                }
            }
        }
        let mut state = self.state.lock();
        if state.links.get(&node).is_some_and(|(number, _)| *number == connection) {
            state.links.remove(&node);
        }
        state.core.handle_link_down(node, connection);
        self.act(&mut state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::ids::ChunkId;

    fn read(id: u64) -> ClientRequest {
        let volume = VolumeId(1);
        let op = ClientOp::Read { chunk: ChunkId { volume, index: 0 }, offset: 0, len: 4096 };
        ClientRequest { id, volume, incarnation: 1, connection: 1, op }
    }

    #[test]
    fn what_an_operation_took_goes_with_the_next_request_to_its_disk_once() {
        let mut latencies = SeenLatencies::default();
        let data = ClientReply::Data(Bytes::new());
        assert_eq!(latencies.sent(DiskId(1), &read(1)), []);
        latencies.answered(1, &data);
        assert_eq!(latencies.sent(DiskId(2), &read(2)), [], "another disk's");
        assert_eq!(latencies.sent(DiskId(1), &read(3)).len(), 1);
        assert_eq!(latencies.sent(DiskId(1), &read(4)), [], "it was told");
        latencies.answered(3, &ClientReply::NotPrimary);
        assert_eq!(latencies.sent(DiskId(1), &read(5)), [], "nothing was done");
        for id in 100..100 + 2 * LATENCIES_MAX as u64 {
            latencies.sent(DiskId(9), &read(id));
        }
        (100..100 + 2 * LATENCIES_MAX as u64).for_each(|id| latencies.answered(id, &data));
        assert_eq!(latencies.sent(DiskId(9), &read(6)).len(), LATENCIES_MAX, "bounded");
    }

    #[test]
    fn what_was_sent_again_is_forgotten() {
        let mut latencies = SeenLatencies::default();
        latencies.sent(DiskId(1), &read(1));
        latencies.forget_overtaken(&core::Router::new(VolumeId(1), 1));
        assert!(latencies.under_way.is_empty(), "its router knows nothing of it");
    }
}
