//! The gateway's link to the coordinator: attaches the volume, follows the map, says who doesn't answer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use tokio::sync::{mpsc, oneshot};

use super::GatewayConfig;
use super::guest::Guest;
use super::router::Router;
use crate::api::metrics::IntGauge;
use crate::core::cluster::ClusterMap;
use crate::core::ids::NodeId;
use crate::net::channel::{Channel, Receiver, Sender};
use crate::net::quic::Endpoint;
use crate::net::tls::Expect;
use crate::net::tuning::LinkClass;
use crate::wire::control::{self as msg, AttachOutcome, kind};
use crate::wire::frame::Frame;
use crate::wire::map::apply_delta;

const HEARTBEAT: Duration = Duration::from_millis(150);
/// How often the coordinator hears what the guest does, as from nodes.
const STATS: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_millis(250);
/// A coordinator that is silent for this long was killed, or has been restarted since.
const SILENCE: Duration = Duration::from_millis(1200);

/// What the coordinator tells a serving gateway.
pub enum News {
    /// A newer map.
    Map(Arc<ClusterMap>),
    /// Another gateway has the volume.
    Fenced,
}

/// The volume is this gateway's.
pub struct Grant {
    /// VolumeId.
    pub id: u64,
    /// Above those of all gateways before.
    pub incarnation: u64,
    /// What the gateway before had acked may be lost: the next FLUSH says so (R13).
    pub lost: bool,
    /// The map that has it.
    pub map: Arc<ClusterMap>,
}

type Attached = Result<Grant, String>;

/// What the coordinator is to know of the router.
#[derive(Clone, Default)]
struct RouterState {
    unreachable: Vec<NodeId>,
    /// See [`Router::settled`].
    settled: Option<u64>,
}

/// The link, kept up by a task.
pub struct Control {
    attached: mpsc::UnboundedReceiver<Attached>,
    news: mpsc::UnboundedReceiver<News>,
    state: tokio::sync::watch::Sender<RouterState>,
    release: Option<oneshot::Sender<msg::Release>>,
    task: tokio::task::JoinHandle<()>,
}

fn frame(kind: u16, message: &impl Message) -> Frame {
    Frame::new(kind, message.encode_to_vec())
}

impl Control {
    /// Starts the task.
    pub fn start(
        endpoint: Arc<Endpoint>,
        coordinator: SocketAddr,
        config: &GatewayConfig,
        admin_url: String,
        guest: Arc<Guest>,
        connected: IntGauge,
    ) -> Self {
        let (attached_to, attached) = mpsc::unbounded_channel();
        let (news_to, news) = mpsc::unbounded_channel();
        let (state, state_now) = tokio::sync::watch::channel(RouterState::default());
        let (release, released) = oneshot::channel();
        let hello = msg::GatewayHello {
            name: config.name.clone(),
            release: env!("CARGO_PKG_VERSION").into(),
            admin_url,
            feature_min: crate::core::cluster::FEATURE_LEVELS.0,
            feature_max: crate::core::cluster::FEATURE_LEVELS.1,
            map_epoch: 0,
            map_version: 0,
        };
        let link = ControlTask {
            endpoint,
            coordinator,
            hello,
            attach: msg::Attach { volume: config.volume.clone(), take_over: config.take_over, had_incarnation: 0 },
            map: ClusterMap::default(),
            granted: None,
            told: false,
            attached: attached_to,
            news: news_to,
            state: state_now,
            lost: false,
            guest,
            connected,
            refused: String::new(),
        };
        let task = tokio::spawn(link.run(released));
        Control { attached, news, state, release: Some(release), task }
    }

    /// Waits for the volume; the error is the coordinator's refusal.
    pub async fn attached(&mut self) -> Attached {
        self.attached.recv().await.unwrap_or_else(|| Err("the link to the coordinator ended".into()))
    }

    /// The next news; meanwhile tells the coordinator how the router fares.
    pub async fn news(&mut self, router: &Router) -> News {
        let mut look = tokio::time::interval(HEARTBEAT);
        loop {
            tokio::select! {
                news = self.news.recv() => match news {
                    Some(news) => return news,
                    None => std::future::pending().await,
                },
                _ = look.tick() => {
                    let state = RouterState { unreachable: router.unreachable(), settled: router.settled() };
                    self.state.send_replace(state);
                }
            }
        }
    }

    /// Gives the volume back. `untold`: a loss has not been told to the guest.
    pub async fn release(mut self, id: u64, incarnation: u64, untold: bool) {
        if let Some(release) = self.release.take() {
            let message = msg::Release { id, incarnation, reason: String::new(), untold };
            if release.send(message).is_ok() {
                // Best effort: a coordinator that is away learns it from the next attach.
                let _ = tokio::time::timeout(Duration::from_secs(2), &mut self.task).await;
            }
        }
        self.task.abort();
    }
}

struct ControlTask {
    endpoint: Arc<Endpoint>,
    coordinator: SocketAddr,
    hello: msg::GatewayHello,
    attach: msg::Attach,
    map: ClusterMap,
    granted: Option<(u64, u64)>,
    told: bool,
    attached: mpsc::UnboundedSender<Attached>,
    news: mpsc::UnboundedSender<News>,
    state: tokio::sync::watch::Receiver<RouterState>,
    lost: bool,
    guest: Arc<Guest>,
    /// 1 while the link is up.
    connected: IntGauge,
    /// What the coordinator said when it refused this gateway; said once.
    refused: String,
}

impl ControlTask {
    async fn run(mut self, mut released: oneshot::Receiver<msg::Release>) {
        let mut warned = false;
        loop {
            match self.endpoint.connect(self.coordinator, Expect::Coordinator, LinkClass::Control).await {
                Ok(link) => {
                    warned = false;
                    (self.hello.map_epoch, self.hello.map_version) = (self.map.epoch, self.map.version);
                    if let Ok(channel) = link.open_channel(frame(kind::GATEWAY_HELLO, &self.hello)).await {
                        self.connected.set(1);
                        let is_over = self.session(channel, &mut released).await;
                        self.connected.set(0);
                        if is_over {
                            return;
                        }
                    }
                }
                Err(error) if !warned => {
                    tracing::warn!(coordinator = %self.coordinator, %error, "can't reach the coordinator: trying again, IO goes on");
                    warned = true;
                }
                Err(_) => {}
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// True: over for good.
    async fn session(&mut self, channel: Channel, released: &mut oneshot::Receiver<msg::Release>) -> bool {
        let (sender, mut receiver) = channel.split();
        if let Some((_, incarnation)) = self.granted {
            self.attach.had_incarnation = incarnation;
        }
        if sender.send(frame(kind::ATTACH, &self.attach)).is_err() {
            return false;
        }
        // Taking over is asked for once: after a broken link the volume is ours or lost.
        let mut beat = tokio::time::interval(HEARTBEAT);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut report = tokio::time::interval(STATS);
        report.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut n = 0;
        let mut told_settled = None;
        let mut heard = tokio::time::Instant::now();
        loop {
            tokio::select! {
                incoming = receiver.recv() => {
                    let Some(incoming) = incoming else { return false };
                    heard = tokio::time::Instant::now();
                    match self.incoming(&incoming) {
                        Some(true) => {}
                        Some(false) => return false,
                        None => return true,
                    }
                }
                release = &mut *released => {
                    if let Ok(release) = release {
                        drop(sender.send(frame(kind::RELEASE, &release)));
                        sender.finish();
                        // The coordinator has it when it has read the end of the stream.
                        while receiver.recv().await.is_some() {}
                    }
                    return true;
                }
                _ = report.tick() => {
                    if sender.send(frame(kind::STATS, &self.guest.report())).is_err() {
                        return false;
                    }
                }
                _ = beat.tick() => {
                    if heard.elapsed() > SILENCE { return false }
                    n += 1;
                    let RouterState { unreachable, settled } = self.state.borrow().clone();
                    let unreachable = unreachable.iter().map(|u| u.0).collect();
                    if sender.send(frame(kind::HEARTBEAT, &msg::Heartbeat { n, unreachable })).is_err() {
                        return false;
                    }
                    if let (Some(durability), Some((id, incarnation))) = (settled, self.granted)
                        && told_settled != settled
                    {
                        told_settled = settled;
                        let settled = msg::Settled { id, incarnation, durability };
                        if sender.send(frame(kind::SETTLED, &settled)).is_err() {
                            return false;
                        }
                    }
                }
            }
        }
    }

    /// Some(false): make the link anew. None: over.
    fn incoming(&mut self, f: &Frame) -> Option<bool> {
        match f.kind {
            kind::MAP_DELTA => {
                let Ok(delta) = msg::MapDelta::decode(f.meta.as_ref()) else { return Some(false) };
                if let Err(error) = apply_delta(&mut self.map, delta) {
                    tracing::warn!(%error, "refused a change of the map");
                    return Some(false);
                }
                drop(self.news.send(News::Map(Arc::new(self.map.clone()))));
                self.tell_attached();
            }
            kind::ATTACH_REPLY => {
                let Ok(reply) = msg::AttachReply::decode(f.meta.as_ref()) else { return Some(false) };
                match AttachOutcome::try_from(reply.outcome) {
                    Ok(AttachOutcome::Granted) => {
                        let lost = self.granted.is_some_and(|(_, had)| had != reply.incarnation);
                        if lost {
                            drop(self.news.send(News::Fenced));
                            return None;
                        }
                        self.granted = Some((reply.id, reply.incarnation));
                        self.refused.clear();
                        self.lost |= reply.lost;
                        self.attach.take_over = false;
                        self.tell_attached();
                    }
                    Ok(AttachOutcome::Standby) => {
                        if self.granted.is_some() {
                            drop(self.news.send(News::Fenced));
                            return None;
                        }
                        tracing::info!(volume = reply.volume, reason = reply.reason, "standing by for the volume");
                    }
                    _ => {
                        drop(self.attached.send(Err(reply.reason)));
                        if self.granted.is_some() {
                            drop(self.news.send(News::Fenced));
                        }
                        return None;
                    }
                }
            }
            kind::FENCED => {
                drop(self.news.send(News::Fenced));
                return None;
            }
            kind::REFUSED => {
                let reason = msg::Refused::decode(f.meta.as_ref()).map(|r| r.reason).unwrap_or_default();
                if !self.told {
                    drop(self.attached.send(Err(reason)));
                    return None;
                }
                // The guest goes on: that coordinator may be the one that errs, with an old map or another's.
                if reason != self.refused {
                    tracing::warn!("the coordinator refuses this gateway: {reason}; trying again, IO goes on");
                    self.refused = reason;
                }
                return Some(false);
            }
            kind::HEARTBEAT_ACK => {}
            other => tracing::warn!(kind = other, "ignored a message that this release doesn't know"),
        }
        Some(true)
    }

    /// The volume is granted and the map has come: serve.
    fn tell_attached(&mut self) {
        if let Some((id, incarnation)) = self.granted
            && !self.told
            && self.map.volumes.contains_key(&crate::core::ids::VolumeId(id))
        {
            self.told = true;
            let grant = Grant { id, incarnation, lost: self.lost, map: Arc::new(self.map.clone()) };
            drop(self.attached.send(Ok(grant)));
        }
    }
}

/// Takes the map, attaching nothing, and follows it for as long as the receiver is kept: whoever waits for a PG must
/// learn of its new primary. A link that breaks is made anew.
///
/// # Errors
/// The coordinator can't be reached or refuses at first; one sentence.
pub async fn observe(
    endpoint: Arc<Endpoint>,
    coordinator: SocketAddr,
) -> Result<tokio::sync::watch::Receiver<Arc<ClusterMap>>, String> {
    let mut map = ClusterMap::default();
    let mut channel = open_observer(&endpoint, coordinator).await?;
    next_map(&mut channel.1, &mut map).await?;
    let (news, maps) = tokio::sync::watch::channel(Arc::new(map.clone()));
    tokio::spawn(async move {
        while !news.is_closed() {
            let next = tokio::select! {
                next = next_map(&mut channel.1, &mut map) => next,
                () = news.closed() => return,
            };
            match next {
                Ok(()) => drop(news.send_replace(Arc::new(map.clone()))),
                Err(_) => {
                    tokio::time::sleep(RETRY).await;
                    if let Ok(opened) = open_observer(&endpoint, coordinator).await {
                        (channel, map) = (opened, ClusterMap::default());
                    }
                }
            }
        }
    });
    Ok(maps)
}

/// The sending half is kept: its end would end the channel.
async fn open_observer(endpoint: &Endpoint, coordinator: SocketAddr) -> Result<(Sender, Receiver), String> {
    let link = endpoint
        .connect(coordinator, Expect::Coordinator, LinkClass::Control)
        .await
        .map_err(|e| format!("can't reach the coordinator at {coordinator}: {e}"))?;
    let channel = link
        .open_channel(Frame::new(kind::OBSERVE, Vec::new()))
        .await
        .map_err(|e| format!("the coordinator closed the link: {e}"))?;
    Ok(channel.split())
}

async fn next_map(receiver: &mut Receiver, map: &mut ClusterMap) -> Result<(), String> {
    while let Some(f) = receiver.recv().await {
        if f.kind == kind::MAP_DELTA {
            let delta = msg::MapDelta::decode(f.meta.as_ref()).map_err(|e| e.to_string())?;
            return apply_delta(map, delta).map_err(|e| e.to_string());
        }
    }
    Err("the coordinator sent no map".into())
}
