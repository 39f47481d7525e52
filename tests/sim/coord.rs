//! The coordinator: the production map and decisions (`core::manager`) behind simulated links, with a store that keeps
//! the map alone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use evenkeel::core::cluster::command::{Change, Command, Context, Liveness, Outcome, PoolChange, PoolSpec};
use evenkeel::core::cluster::state::ClusterState;
use evenkeel::core::cluster::{
    ClusterMap, FailureDomain, JobState, Learner, NodeAdminState, PgConfig, Replica as Member, ResyncClass, Settings,
};
use evenkeel::core::ids::{ClusterId, DiskId, Generation, NodeId, PgId, PoolId};
use evenkeel::core::manager::plan::JobMove;
use evenkeel::core::manager::runtime::{ConnId, Limits, Runtime};
use evenkeel::core::manager::{Attachment, Manager, Proposed, Purge, Registration, Report};
use evenkeel::core::placement as place;
use evenkeel::core::units::Instant;

use crate::canary::Canary;
use crate::gateway::VOLUME;

/// Between two turns that could not be triggered by a message.
const PASS_PAUSE: Duration = Duration::from_millis(10);
/// A plan is made beside the turns.
const PLAN_TAKES: Duration = Duration::from_millis(20);
/// Canary: the map that comes back is this old.
const OLD_MAP_AGE: Duration = Duration::from_secs(1);

/// Who is linked to the coordinator.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Peer {
    Node(DiskId),
    Gateway(usize),
}

/// What peers say.
#[derive(Clone, Debug)]
pub enum Up {
    /// With the version of the newest map that it has seen (R4).
    Register(Registration, u64),
    Heartbeat(Vec<NodeId>),
    Report(Report),
    Propose(Proposed),
    Purged(PgId, DiskId),
    Hello(String),
    Attach {
        take_over: bool,
        had_incarnation: u64,
    },
    Release(u64, bool),
    /// What the volume's PGs may have lost has been sent again (R13).
    Settled(u64, u64),
}

/// What the coordinator says.
#[derive(Clone, Debug)]
pub enum Down {
    Ack,
    Map {
        map: Arc<ClusterMap>,
        changed: Vec<PgConfig>,
    },
    Outcome {
        pg: PgId,
        proposal: u64,
        accepted: bool,
        config: Option<PgConfig>,
    },
    Purge(Purge),
    /// The incarnation, and whether the next FLUSH must fail (R13).
    Granted(u64, bool),
    Standby,
    Fenced,
}

struct Conn {
    peer: Peer,
    gateway: Option<String>,
    has_version: Option<u64>,
}

/// What the cluster is to be.
pub struct Setup {
    pub nodes: u32,
    pub pgs: u32,
    pub replicas: u32,
    pub min_replicas: u32,
    pub grace_seconds: f64,
    pub debounce_seconds: f64,
    pub limits: Limits,
    pub canary: Option<Canary>,
}

pub struct Coordinator {
    pub manager: Manager,
    pub up: bool,
    conns: BTreeMap<ConnId, Conn>,
    next_conn: u64,
    planned: Option<(Instant, place::Plan)>,
    out: Vec<(Peer, u64, Down)>,
    limits: Limits,
    canary: Option<Canary>,
    /// Maps of the last while, for a canary.
    older: Vec<(Instant, ClusterState)>,
    /// Events by kind.
    pub events: BTreeMap<&'static str, u64>,
    pub told: Vec<String>,
    pub failure: Option<String>,
}

struct All;

impl Liveness for All {
    fn is_live(&self, _: Member) -> bool {
        true
    }
    fn accusation_stands(&self, _: PgId, _: Member) -> bool {
        false
    }
    fn has_whole_copy(&self, _: &PgConfig, _: Member) -> bool {
        true
    }
}

/// The name of a node whose disk has this number.
pub fn node_name(disk: DiskId) -> String {
    format!("n{}", disk.0)
}

fn add_node(state: &mut ClusterState, liveness: &dyn Liveness) -> Result<DiskId, String> {
    let context = Context { liveness };
    let name = format!("n{}", state.next_ids().node);
    let addr = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
    let joined = Command::AddNode { name, addr, zone: String::new(), rack: String::new() };
    let Ok(Outcome::Node(node)) = state.apply(joined, &context).map(|a| a.outcome) else {
        return Err("a node can't join".into());
    };
    let disk = Command::AllocDisk { node, class: String::new(), capacity_bytes: 1 << 40 };
    match state.apply(disk, &context).map(|a| a.outcome) {
        Ok(Outcome::Disk(disk)) if disk.0 == node.0 => Ok(disk),
        other => Err(format!("node {node} got {other:?} for a disk")),
    }
}

impl Coordinator {
    /// A cluster whose nodes have joined; `boot` gives each disk's boot id.
    pub fn new(setup: &Setup, boot: impl Fn(DiskId) -> Member, now: Instant) -> Result<Self, String> {
        let mut state = ClusterState::empty();
        let context = Context { liveness: &All };
        let run = |state: &mut ClusterState, command| match state.apply(command, &context) {
            Ok(_) => Ok(()),
            Err(refusal) => Err(refusal.to_string()),
        };
        run(&mut state, Command::Init { cluster: ClusterId([7; 16]), feature_level: 1 })?;
        for _ in 0..setup.nodes {
            add_node(&mut state, &All)?;
        }
        let settings = Settings {
            grace_seconds: setup.grace_seconds,
            debounce_seconds: setup.debounce_seconds,
            ..Settings::default()
        };
        run(&mut state, Command::SetSettings { settings: Box::new(settings) })?;
        let ignored = setup.canary == Some(Canary::MinimumIgnored);
        let spec = PoolSpec {
            name: "p".into(),
            replicas: setup.replicas,
            min_replicas: if ignored { 1 } else { setup.min_replicas },
            failure_domain: FailureDomain::Node,
            class: String::new(),
            pg_count: setup.pgs,
            durable_writes: false,
        };
        let member = |pg: u32, i: u32| boot(DiskId(1 + (pg + i) % setup.nodes));
        let members = (0..setup.pgs).map(|pg| (0..setup.replicas).map(|i| member(pg, i)).collect()).collect();
        run(&mut state, Command::CreatePool { spec, members })?;
        run(&mut state, Command::CreateVolume { name: "v".into(), pool: "p".into(), size_bytes: 1 << 30 })?;
        let limits = setup.limits;
        Ok(Coordinator {
            manager: Manager::new(state, now, limits),
            up: true,
            conns: BTreeMap::new(),
            next_conn: 1,
            planned: None,
            out: Vec::new(),
            limits,
            canary: setup.canary,
            older: Vec::new(),
            events: BTreeMap::new(),
            told: Vec::new(),
            failure: None,
        })
    }

    fn is(&self, canary: Canary) -> bool {
        self.canary == Some(canary)
    }

    pub fn map(&self) -> &ClusterMap {
        self.manager.state.map()
    }

    pub fn config(&self, pg: PgId) -> PgConfig {
        self.map().pgs[&pg].clone()
    }

    pub fn pgs(&self) -> Vec<PgId> {
        self.map().pgs.keys().copied().collect()
    }

    /// The volume's PGs, over which its chunks cycle.
    pub fn layout(&self) -> Vec<PgId> {
        let stripe = &self.map().volumes[&VOLUME].stripes[0];
        stripe.pgs.iter().map(|index| PgId { pool: PoolId(1), index: *index }).collect()
    }

    /// The process ends; only the map is left.
    pub fn crash(&mut self) {
        self.up = false;
        self.conns.clear();
        self.out.clear();
        self.planned = None;
    }

    /// It starts with the map as it was stored.
    pub fn start(&mut self, now: Instant) {
        if self.up {
            return;
        }
        let newest = &self.manager.state;
        let old = self.older.iter().rev().find(|(at, _)| self.manager.now.since(*at) >= OLD_MAP_AGE);
        let state = match old {
            Some((_, old)) if self.is(Canary::OldMapRestored) => old,
            _ => newest,
        };
        let state = ClusterState::restore(state.map().clone(), state.next_ids(), Default::default());
        self.manager = Manager::new(state, now, self.limits);
        self.up = true;
    }

    /// A peer's link is up; gives its number.
    pub fn open(&mut self, peer: Peer) -> u64 {
        let id = self.next_conn;
        self.next_conn += 1;
        self.conns.insert(ConnId(id), Conn { peer, gateway: None, has_version: None });
        id
    }

    pub fn closed(&mut self, conn: u64, by_process: bool, now: Instant) {
        if self.conns.remove(&ConnId(conn)).is_some() {
            self.manager.begin(now);
            self.manager.handle_closed(ConnId(conn), by_process);
            self.turn(now);
        }
    }

    /// This process stood still.
    pub fn frozen(&mut self, gap: Duration, now: Instant) {
        self.manager.begin(now);
        self.manager.runtime.handle_frozen(gap, now);
    }

    fn send(&mut self, conn: ConnId, down: Down) {
        if let Some(c) = self.conns.get(&conn) {
            self.out.push((c.peer, conn.0, down));
        }
    }

    /// One message of a peer.
    pub fn handle(&mut self, conn: u64, up: Up, now: Instant) {
        let id = ConnId(conn);
        let Some(Conn { peer, gateway, .. }) = self.conns.get(&id) else { return };
        let (peer, gateway) = (*peer, gateway.clone());
        self.manager.begin(now);
        match (up, peer, gateway) {
            (Up::Register(mut registration, seen), Peer::Node(disk), _) => {
                if seen > self.map().version && !self.is(Canary::OldMapRestored) {
                    let version = self.map().version;
                    self.failure =
                        Some(format!("{disk} has seen map version {seen}, the coordinator has {version} (R4)"));
                }
                if self.is(Canary::IncompleteBelieved) {
                    registration.disks.iter_mut().flat_map(|d| &mut d.copies).for_each(|(_, c)| c.complete = true);
                }
                if let Some(old) = self.manager.handle_registered(id, &node_name(disk), &registration) {
                    self.conns.remove(&old);
                }
                self.follow(id);
            }
            (Up::Heartbeat(unreachable), Peer::Node(disk), _) => {
                self.manager.runtime.handle_node_heartbeat(NodeId(disk.0), id, &unreachable, now);
                self.send(id, Down::Ack);
            }
            (Up::Heartbeat(unreachable), Peer::Gateway(_), _) => {
                let unreachable = if self.is(Canary::GatewayWordIgnored) { Vec::new() } else { unreachable };
                self.manager.runtime.handle_gateway_heartbeat(id, &unreachable, now);
                self.send(id, Down::Ack);
            }
            (Up::Report(mut report), Peer::Node(disk), _) => {
                if self.is(Canary::IncompleteBelieved) {
                    report.copies.iter_mut().for_each(|(_, _, c)| c.complete = true);
                }
                self.manager.handle_report(NodeId(disk.0), report);
            }
            (Up::Propose(proposed), Peer::Node(disk), _) => self.propose(id, NodeId(disk.0), proposed),
            (Up::Purged(pg, disk), Peer::Node(node), _) => self.manager.handle_purged(NodeId(node.0), pg, disk),
            (Up::Hello(name), Peer::Gateway(_), _) => {
                self.manager.runtime.handle_gateway(id, name.clone(), now);
                if let Some(c) = self.conns.get_mut(&id) {
                    c.gateway = Some(name);
                }
                self.follow(id);
            }
            (Up::Attach { take_over, had_incarnation }, Peer::Gateway(_), Some(name)) => {
                self.attach(id, name, take_over, had_incarnation);
            }
            (Up::Settled(incarnation, durability), Peer::Gateway(_), Some(name)) => {
                self.manager.handle_settled(&name, VOLUME, incarnation, durability);
            }
            (Up::Release(incarnation, untold), Peer::Gateway(_), Some(name)) => {
                if let Some((_, next)) = self.manager.handle_release(&name, VOLUME, incarnation, untold) {
                    self.attach(next.conn, next.gateway, false, 0);
                }
            }
            (up, peer, _) => self.failure = Some(format!("{peer:?} says {up:?} out of turn")),
        }
        self.turn(now);
    }

    fn follow(&mut self, id: ConnId) {
        let map = Arc::new(self.map().clone());
        if let Some(c) = self.conns.get_mut(&id) {
            c.has_version = Some(map.version);
        }
        let changed = map.pgs.values().cloned().collect();
        self.send(id, Down::Map { map, changed });
    }

    fn propose(&mut self, conn: ConnId, from: NodeId, proposed: Proposed) {
        let (pg, proposal) = (proposed.pg, proposed.id);
        if self.is(Canary::AccusationIgnored)
            && matches!(&proposed.change, Some(Change::RemoveMembers(gone)) if gone.iter().any(|g| self.manager.runtime.is_live(*g)))
        {
            let config = self.map().pgs.get(&pg).cloned();
            return self.send(conn, Down::Outcome { pg, proposal, accepted: false, config });
        }
        let text = format!("{from} proposes {:?} on {}", proposed.change, proposed.base);
        let (outcome, config) = self.manager.handle_proposal(from, proposed);
        self.told.push(format!("{text}: {outcome:?}"));
        self.send(conn, Down::Outcome { pg, proposal, accepted: outcome.is_ok(), config });
    }

    fn attach(&mut self, conn: ConnId, gateway: String, take_over: bool, had: u64) {
        match self.manager.handle_attach(conn, gateway.clone(), "v", take_over, had) {
            Ok(Attachment::Granted { volume, fenced, lost }) => {
                self.send(conn, Down::Granted(volume.incarnation, lost));
                if let Some((loser, _)) = fenced {
                    let named = |c: &Conn| c.gateway.as_ref() == Some(&loser);
                    let losers: Vec<ConnId> =
                        self.conns.iter().filter(|(id, c)| **id != conn && named(c)).map(|(id, _)| *id).collect();
                    losers.into_iter().for_each(|id| self.send(id, Down::Fenced));
                }
            }
            Ok(Attachment::Standby { .. }) => self.send(conn, Down::Standby),
            Err(refusal) => self.failure = Some(format!("{gateway} is refused: {refusal}")),
        }
    }

    /// What the owner does after the messages that have come.
    pub fn turn(&mut self, now: Instant) {
        self.manager.begin(now);
        if let Some((_, plan)) = self.planned.take_if(|(at, _)| now.since(*at) >= PLAN_TAKES) {
            self.manager.handle_planned(plan);
        }
        self.manager.judge();
        self.manager.decide(PASS_PAUSE);
        self.break_rules();
        if let Some(input) = self.manager.take_plan_input() {
            let plan = place::plan(&input);
            if let Err(violations) = place::check(&input, &plan) {
                self.failure = Some(format!("the planner's own check refuses its plan: {violations:?}"));
            }
            self.planned = Some((now, plan));
        }
        let version = self.map().version;
        if self.manager.look() {
            let conns = &self.conns;
            let told = |c: ConnId| conns.get(&c).is_some_and(|c| c.has_version == Some(version));
            for purge in self.manager.purges_due(told) {
                *self.events.entry("purges").or_default() += 1;
                self.send(purge.conn, Down::Purge(purge));
            }
        }
        if self.manager.has_changed() {
            self.manager.take_changed();
            if let Err(text) = self.manager.state.check() {
                self.failure = Some(text);
            }
            if self.is(Canary::OldMapRestored) {
                self.older.push((now, self.manager.state.clone()));
            }
        }
        for told in self.manager.take_told() {
            *self.events.entry(told.kind).or_default() += 1;
            self.told.push(told.text);
        }
        let behind = self.conns.iter().filter_map(|(id, c)| c.has_version.filter(|v| *v < version).map(|v| (*id, v)));
        let behind: Vec<(ConnId, u64)> = behind.collect();
        let map = (!behind.is_empty()).then(|| Arc::new(self.map().clone()));
        for (id, from) in behind {
            let changed = self.manager.state.delta_since(from).pgs;
            if let Some(c) = self.conns.get_mut(&id) {
                c.has_version = Some(version);
            }
            if let Some(map) = map.clone() {
                self.send(id, Down::Map { map, changed });
            }
        }
    }

    pub fn take_out(&mut self) -> Vec<(Peer, u64, Down)> {
        std::mem::take(&mut self.out)
    }

    /// Canaries that make decisions which the production code would not make.
    fn break_rules(&mut self) {
        let configs: Vec<PgConfig> = self.map().pgs.values().cloned().collect();
        for config in configs {
            let (pg, base) = (config.pg, config.generation);
            if self.is(Canary::RecoverBeforeAllReturned)
                && self.manager.runtime.is_settled()
                && !config.members.iter().any(|m| self.manager.runtime.is_live(*m))
                && let Some(truth) = config.members.iter().find_map(|m| self.manager.runtime.live_replica(m.disk))
            {
                drop(self.manager.apply("canary", Command::SetMembers { pg, base, truth, learners: Vec::new() }));
            }
            let Some(primary) = config.primary() else { continue };
            if self.is(Canary::PromotedAtOnce)
                && let Some(learner) =
                    config.learners.first().filter(|l| l.replaces.is_none_or(|d| d != l.replica.disk))
            {
                let change = Some(Change::PromoteLearner(learner.replica));
                let id = base.n << 8 | 1;
                let proposed = Proposed { id, pg, base, change, reason: String::new() };
                drop(self.manager.handle_proposal(NodeId(primary.disk.0), proposed));
            }
            if self.is(Canary::PurgeBeforeSwap) {
                for learner in config.learners.iter().filter(|l| l.class == ResyncClass::Rebalance) {
                    let Some(disk) = learner.replaces.filter(|d| *d != learner.replica.disk) else { continue };
                    let node = self.manager.runtime.disks.get(&disk).map(|d| d.node);
                    let view = node.and_then(|n| self.manager.runtime.nodes.get(&n));
                    if let Some(conn) = view.and_then(|v| v.conn) {
                        let up_to = Generation { epoch: base.epoch, n: u64::MAX };
                        self.send(conn, Down::Purge(Purge { conn, pg, disk, up_to }));
                    }
                }
            }
        }
    }

    // ---- the operator ----

    pub fn set_node_state(&mut self, disk: DiskId, state: NodeAdminState, now: Instant) -> bool {
        self.manager.begin(now);
        let done = self.manager.apply("operator", Command::SetNodeState { node: node_name(disk), state }).is_ok();
        self.manager.planning.touch(now);
        self.turn(now);
        done
    }

    /// As the daemon does it: what the change lacks waits for no grace.
    pub fn set_replicas(&mut self, replicas: u32, now: Instant) -> bool {
        self.manager.begin(now);
        let change = PoolChange { pool: "p".into(), replicas: Some(replicas), ..PoolChange::default() };
        let done = self.manager.apply("operator", Command::SetPool(change)).is_ok();
        let pgs = self.pgs();
        self.manager.runtime.no_grace.extend(pgs);
        self.manager.planning.touch_for(now, "operator", "pool p was changed".into());
        self.turn(now);
        done
    }

    /// What an operator may do about the last job, at random; gives what was done.
    pub fn change_job(&mut self, choice: u64, now: Instant) -> Option<&'static str> {
        let id = *self.map().jobs.last_key_value()?.0;
        self.manager.begin(now);
        let done = match choice {
            0 => self.manager.pause_job(id, true, "operator").map(|()| "jobs paused"),
            1 => self.manager.pause_job(id, false, "operator").map(|()| "jobs resumed"),
            _ => self.manager.cancel_job(id, "operator").map(|_| "jobs cancelled"),
        };
        self.turn(now);
        done.ok()
    }

    /// True while an operator holds something back.
    pub fn holds_back(&self) -> bool {
        self.map().jobs.last_key_value().is_some_and(|(_, j)| j.state == JobState::Paused || j.holds_back)
    }

    /// A new node joins with one disk.
    pub fn join(&mut self, now: Instant) -> Option<DiskId> {
        self.manager.begin(now);
        let disk = match add_node(&mut self.manager.state, &All) {
            Ok(disk) => disk,
            Err(text) => {
                self.failure = Some(text);
                return None;
            }
        };
        self.manager.fresh_disks.insert(disk, now);
        self.manager.planning.touch(now);
        self.turn(now);
        Some(disk)
    }

    /// Wants a move as if a plan had it.
    pub fn want_move(&mut self, pg: PgId, from: DiskId, to: DiskId) {
        if !Runtime::is_active(self.map(), to) {
            return;
        }
        let class = ResyncClass::Rebalance;
        self.manager.planning.job.moves.push(JobMove { pg, from: Some(from), to, bytes: 0, class });
        self.manager.touch_pgs();
    }

    /// Wants another primary as if a plan had it.
    pub fn want_primary(&mut self, pg: PgId, disk: DiskId) {
        self.manager.planning.job.primaries.insert(pg, disk);
        self.manager.touch_pgs();
    }

    pub fn is_live(&self, member: Member) -> bool {
        self.manager.runtime.is_live(member)
    }

    pub fn is_draining(&self, disk: DiskId) -> bool {
        self.map().nodes.get(&NodeId(disk.0)).is_some_and(|n| n.admin_state == NodeAdminState::Draining)
    }

    /// Nothing is planned, moved or about to be.
    pub fn is_settled(&self) -> bool {
        let planning = &self.manager.planning;
        self.manager.runtime.is_settled() && !planning.is_pending() && planning.job.is_empty()
    }

    /// Learners of all PGs.
    pub fn learners(&self) -> Vec<Learner> {
        self.map().pgs.values().flat_map(|c| c.learners.iter().copied()).collect()
    }
}
