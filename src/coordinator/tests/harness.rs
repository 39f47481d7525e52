//! A coordinator in this process, and nodes and gateways that are only their control channel.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use prost::Message;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;

use crate::api::types::*;
use crate::coordinator::{CoordinatorConfig, InitConfig, RunCoordinator, RunFile, init, run, wiring};
use crate::core::cluster::{ClusterMap, PgConfig};
use crate::core::ids::{BootId, DiskId, NodeId};
use crate::net::channel::Sender;
use crate::net::identity::{Identity, PendingIdentity, Role};
use crate::net::quic::{Endpoint, Link};
use crate::net::tls::Expect;
use crate::net::tuning::{LinkClass, Tuning};
use crate::wire::control::{self, kind};
use crate::wire::frame::Frame;
use crate::wire::stats;

/// A condition that takes longer than this never comes.
const PATIENCE: Duration = Duration::from_secs(30);

pub async fn until<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(value) = check() {
            return value;
        }
        assert!(tokio::time::Instant::now() < deadline, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub struct Cluster {
    pub dir: tempfile::TempDir,
    pub run: RunFile,
    pub token: String,
    stop: Option<oneshot::Sender<()>>,
    task: Option<tokio::task::JoinHandle<Result<(), RunCoordinator>>>,
}

impl Cluster {
    pub async fn start() -> Cluster {
        let dir = tempfile::tempdir().unwrap();
        init(&InitConfig { dir: dir.path().to_owned() }).unwrap();
        let token = std::fs::read_to_string(dir.path().join("api.token")).unwrap();
        let empty = RunFile { pid: 0, addr: String::new(), admin_url: String::new() };
        let mut cluster = Cluster { dir, run: empty, token, stop: None, task: None };
        cluster.resume().await;
        cluster
    }

    pub async fn resume(&mut self) {
        let (stop, stopped) = oneshot::channel::<()>();
        let zero: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let config = CoordinatorConfig {
            dir: self.dir.path().to_owned(),
            listen: zero,
            admin: zero,
            debounce_seconds: Some(0.2),
            grace_seconds: Some(0.5),
        };
        let shutdown = async {
            let _ = stopped.await;
        };
        self.task = Some(tokio::spawn(run(config, shutdown)));
        self.stop = Some(stop);
        let path = self.dir.path().join("run.json");
        self.run = until("the coordinator serves", || {
            assert!(!self.task.as_ref().unwrap().is_finished(), "it ended at once");
            serde_json::from_slice(&std::fs::read(&path).ok()?).ok()
        })
        .await;
    }

    pub async fn stop(&mut self) {
        drop(self.stop.take());
        self.task.take().unwrap().await.unwrap().unwrap();
    }

    pub async fn request<T: DeserializeOwned>(
        &self,
        method: &str,
        path: &str,
        body: Option<&impl Serialize>,
        token: &str,
    ) -> Result<T, (u16, String)> {
        let url = format!("{}{path}", self.run.admin_url);
        let body = body.map(|b| serde_json::to_vec(b).unwrap()).unwrap_or_default();
        let (method, auth) = (method.to_owned(), format!("Bearer {token}"));
        let answered = tokio::task::spawn_blocking(move || {
            let request = axum::http::Request::builder().method(method.as_str()).uri(url).header("authorization", auth);
            let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
            let mut response = agent.run(request.body(body).unwrap()).unwrap();
            (response.status().as_u16(), response.body_mut().read_to_vec().unwrap())
        });
        let (status, body) = answered.await.unwrap();
        if status == 200 {
            return Ok(serde_json::from_slice(&body).unwrap());
        }
        Err((status, serde_json::from_slice::<ApiError>(&body).unwrap().error))
    }

    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> T {
        self.request("GET", path, None::<&()>, &self.token).await.unwrap()
    }

    pub async fn send<T: DeserializeOwned>(
        &self,
        method: &str,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, (u16, String)> {
        self.request(method, path, Some(body), &self.token).await
    }

    pub async fn status_until(&self, what: &str, check: impl Fn(&Status) -> bool) -> Status {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let status: Status = self.get("/v1/status").await;
            if check(&status) {
                return status;
            }
            assert!(tokio::time::Instant::now() < deadline, "never happened: {what}; status is {status:#?}");
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }

    pub async fn join(&self, name: &str) -> (Arc<Identity>, JoinReply) {
        let create = TokenCreate { role: "node".into(), ttl_seconds: None };
        let token: TokenCreated = self.send("POST", "/v1/tokens", &create).await.unwrap();
        let pending = PendingIdentity::generate().unwrap();
        let request = JoinRequest {
            token: token.token.clone(),
            name: name.into(),
            csr_pem: pending.request_pem().into(),
            addr: None,
            zone: String::new(),
            rack: String::new(),
        };
        let reply: JoinReply = self.request("POST", "/v1/join", Some(&request), "").await.unwrap();
        let again = self.request::<JoinReply>("POST", "/v1/join", Some(&request), "").await.unwrap_err();
        assert!(again.0 == 403 && again.1.contains("used already"), "{again:?}");
        let identity = pending.complete(&reply.certificate_pem, &reply.ca_pem, None).unwrap();
        (Arc::new(identity), reply)
    }

    pub async fn gateway(&self, name: &str) -> Peer {
        let pending = PendingIdentity::generate().unwrap();
        let request =
            CertificateRequest { role: "gateway".into(), name: name.into(), csr_pem: pending.request_pem().into() };
        let reply: JoinReply = self.send("POST", "/v1/certificates", &request).await.unwrap();
        let identity = Arc::new(pending.complete(&reply.certificate_pem, &reply.ca_pem, None).unwrap());
        let peer = Peer::connect(self, identity).await;
        peer.say(
            kind::GATEWAY_HELLO,
            &control::GatewayHello {
                name: name.into(),
                release: "test".into(),
                admin_url: String::new(),
                feature_min: 1,
                feature_max: 1,
                ..control::GatewayHello::default()
            },
        );
        peer
    }

    /// A node with one disk, registered.
    pub async fn node(&self, name: &str) -> Node {
        let (identity, reply) = self.join(name).await;
        let id = reply.node.unwrap();
        let peer = Peer::connect(self, identity.clone()).await;
        peer.say(kind::ALLOC_DISK, &control::AllocDisk { class: "ssd".into(), capacity_bytes: 1 << 30, node: id.0 });
        let allocated: control::DiskAllocated = peer.hear(kind::DISK_ALLOCATED).await;
        let node = Node {
            name: name.into(),
            id,
            disk: DiskId(allocated.disk),
            boot: BootId(u64::from(id.0) * 1000),
            process: u64::from(id.0),
            identity,
            peer,
            pgs: Vec::new(),
        };
        node.register();
        let _: control::Registered = node.peer.hear(kind::REGISTERED).await;
        node
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        drop(self.stop.take());
    }
}

fn led_by(node: NodeId, map: &ClusterMap) -> Vec<u64> {
    let leads = |c: &&PgConfig| c.primary().and_then(|p| map.disks.get(&p.disk)).is_some_and(|d| d.node == node);
    map.pgs.values().filter(leads).map(|c| c.pg.to_u64()).collect()
}

/// A control channel with heartbeats.
pub struct Peer {
    pub link: Link,
    pub sender: Sender,
    pub map: Arc<Mutex<ClusterMap>>,
    pub beats: Arc<AtomicBool>,
    pub unreachable: Arc<Mutex<Vec<u32>>>,
    pub acks: Arc<AtomicU64>,
    heard: Arc<Mutex<BTreeMap<u16, VecDeque<Frame>>>>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
    _endpoint: Endpoint,
}

impl Peer {
    pub async fn connect(cluster: &Cluster, identity: Arc<Identity>) -> Peer {
        let role = identity.holder().role.clone();
        let endpoint = Endpoint::bind("127.0.0.1:0".parse().unwrap(), identity, Tuning::default()).unwrap();
        let addr = cluster.run.addr.parse().unwrap();
        let link = endpoint.connect(addr, Expect::Coordinator, LinkClass::Control).await.unwrap();
        let first = wiring::frame(kind::HEARTBEAT, &control::Heartbeat::default());
        let (sender, mut receiver) = link.open_channel(first).await.unwrap().split();
        let map = Arc::new(Mutex::new(ClusterMap::default()));
        let heard: Arc<Mutex<BTreeMap<u16, VecDeque<Frame>>>> = Arc::default();
        let (beats, unreachable, acks) =
            (Arc::new(AtomicBool::new(true)), Arc::<Mutex<Vec<u32>>>::default(), Arc::new(AtomicU64::new(0)));
        let (in_map, in_heard, in_acks) = (map.clone(), heard.clone(), acks.clone());
        let answers = sender.clone();
        let reader = tokio::spawn(async move {
            while let Some(frame) = receiver.recv().await {
                match frame.kind {
                    kind::MAP_DELTA => {
                        let delta = control::MapDelta::decode(frame.meta).unwrap();
                        crate::wire::map::apply_delta(&mut in_map.lock(), delta).unwrap();
                        if let Role::Node(node) = role {
                            // It serves at once what it is to lead.
                            let stats =
                                stats::Stats { serving_pgs: led_by(node, &in_map.lock()), ..Default::default() };
                            drop(answers.send(wiring::frame(kind::STATS, &stats)));
                        }
                    }
                    kind::HEARTBEAT_ACK => drop(in_acks.fetch_add(1, Ordering::Relaxed)),
                    other => in_heard.lock().entry(other).or_default().push_back(frame),
                }
            }
        });
        let (out, out_beats, out_unreachable) = (sender.clone(), beats.clone(), unreachable.clone());
        let beater = tokio::spawn(async move {
            for n in 0.. {
                if out_beats.load(Ordering::Relaxed) {
                    let beat = control::Heartbeat { n, unreachable: out_unreachable.lock().clone() };
                    if out.send(wiring::frame(kind::HEARTBEAT, &beat)).is_err() {
                        return;
                    }
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        Peer { link, sender, map, beats, unreachable, acks, heard, tasks: vec![reader, beater], _endpoint: endpoint }
    }

    pub fn say(&self, kind: u16, message: &impl Message) {
        self.sender.send(wiring::frame(kind, message)).unwrap();
    }

    pub async fn hear<M: Message + Default>(&self, kind: u16) -> M {
        let what = format!("a message of kind {kind:#06x}");
        let frame = until(&what, || self.heard.lock().get_mut(&kind).and_then(VecDeque::pop_front)).await;
        M::decode(frame.meta).unwrap()
    }

    pub fn try_hear<M: Message + Default>(&self, kind: u16) -> Option<M> {
        let frame = self.heard.lock().get_mut(&kind).and_then(VecDeque::pop_front)?;
        Some(M::decode(frame.meta).unwrap())
    }

    pub async fn map_until(&self, what: &str, check: impl Fn(&ClusterMap) -> bool) -> ClusterMap {
        until(what, || Some(self.map.lock().clone()).filter(|m| check(m))).await
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.tasks.iter().for_each(|t| t.abort());
    }
}

pub struct Node {
    pub name: String,
    pub id: NodeId,
    pub disk: DiskId,
    pub boot: BootId,
    pub process: u64,
    pub identity: Arc<Identity>,
    pub peer: Peer,
    pub pgs: Vec<control::PgReport>,
}

impl Node {
    pub fn registration(&self) -> control::Register {
        let map = self.peer.map.lock();
        control::Register {
            node: self.id.0,
            release: "0.1.0".into(),
            feature_min: 1,
            feature_max: 1,
            addr: format!("127.0.0.1:{}", 20_000 + self.id.0),
            admin_url: String::new(),
            map_epoch: map.epoch,
            map_version: map.version,
            disks: vec![control::DiskReport {
                disk: self.disk.0,
                boot: self.boot.0,
                capacity_bytes: 1 << 30,
                used_bytes: 0,
                class: "ssd".into(),
                failed: false,
                pgs: self.pgs.clone(),
                path: format!("/disks/{}", self.name),
            }],
            pid: std::process::id(),
            process: self.process,
        }
    }

    pub fn register(&self) {
        self.peer.say(kind::REGISTER, &self.registration());
    }

    /// A new process: a new link, and a new boot unless it stopped cleanly. Its disk holds a copy of each PG that it was a
    /// member of.
    pub async fn restart(&mut self, cluster: &Cluster, clean: bool) {
        let map = self.peer.map.lock().clone();
        let held = map.pgs.values().filter(|c| c.members.iter().any(|m| m.disk == self.disk));
        self.pgs = held
            .map(|c| control::PgReport {
                pg: c.pg.to_u64(),
                generation_epoch: c.generation.epoch,
                generation_n: c.generation.n,
                complete: true,
                flush_mark: 0,
                durability_epoch: c.durability_epoch,
            })
            .collect();
        self.peer.link.close("restarting");
        self.process += 1;
        if !clean {
            self.boot = BootId(self.boot.0 + 1);
        }
        self.peer = Peer::connect(cluster, self.identity.clone()).await;
        self.register();
        let _: control::Registered = self.peer.hear(kind::REGISTERED).await;
    }
}
