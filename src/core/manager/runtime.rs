//! What the coordinator observes and the map doesn't hold: who answers, at which boot, with which copies.
//!
//! Rebuilt from registrations after every start; nothing here is stored. Pure but for its inputs: time is passed in.
//!
//! A node is `Up` while it is heard, `Suspect` after [`SUSPECT_AFTER`], `Down` after [`DOWN_AFTER`] of silence, sooner if
//! a gateway or another node can't reach it either (R8), and at once if its link ended by the process's own end.
//! A coordinator that has just started, was itself frozen, or heard nobody at all, judges nobody until everyone had time to be
//! heard.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::pace::Pace;
use super::reports::{Copy, Registration};
use crate::core::cluster::command::Liveness;
use crate::core::cluster::{ClusterMap, DiskAdminState, NodeAdminState, PgConfig, Replica};
use crate::core::ids::{BootId, DiskId, NodeId, PgId, VolumeId};
use crate::core::units::Instant;

/// Three heartbeats of 150 ms missed.
pub const SUSPECT_AFTER: Duration = Duration::from_millis(450);
/// Silence that counts alone.
pub const DOWN_AFTER: Duration = Duration::from_millis(1200);
/// How long after its own start the coordinator waits for registrations.
pub const SETTLE: Duration = Duration::from_secs(4);
/// An accusation counts against the heartbeats when it has stood so long (R8).
pub const ACCUSATION_STANDS: Duration = Duration::from_secs(2);
/// An accusation that isn't repeated is forgotten.
const ACCUSATION_KEPT: Duration = Duration::from_secs(5);
/// A disk that its primary removed although others hear it comes back to that PG after this, and twice as long each
/// time it happens again: two nodes that can't hear each other must not make configurations without end.
const FLAP_PAUSE: Duration = Duration::from_secs(2);
/// Doublings of the pause: at most 64 s.
const FLAP_DOUBLINGS_MAX: u32 = 5;
/// So long without another removal, and it is forgotten.
const FLAP_KEPT: Duration = Duration::from_secs(180);
/// A gateway's word alone counts against a node's heartbeats when it has stood so long (R8).
const CUT_OFF_AFTER: Duration = Duration::from_secs(2);
/// What a peer says it can't reach counts only while it says so.
const UNREACHABLE_KEPT: Duration = Duration::from_secs(2);

/// Times by which is judged. Safety doesn't depend on them; the simulator varies them.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// See [`SUSPECT_AFTER`].
    pub suspect_after: Duration,
    /// See [`DOWN_AFTER`].
    pub down_after: Duration,
    /// See [`SETTLE`].
    pub settle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { suspect_after: SUSPECT_AFTER, down_after: DOWN_AFTER, settle: SETTLE }
    }
}

/// Names a control connection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ConnId(pub u64);

/// Whether a node answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Life {
    /// It is heard.
    Up,
    /// It missed heartbeats.
    Suspect,
    /// Taken as dead.
    Down,
}

/// A node as it registered and reports.
#[derive(Clone, Debug)]
pub struct NodeView {
    /// Its control connection.
    pub conn: Option<ConnId>,
    /// Random number of the process.
    pub process: u64,
    /// Operating system's number of it.
    pub pid: u32,
    /// See [`Life`].
    pub life: Life,
    /// Last sign of life.
    pub heard: Instant,
    /// Since when it is lost.
    pub lost_at: Option<Instant>,
    /// It has registered since this coordinator started.
    pub registered: bool,
    /// Whom it can't reach, and when it said so.
    unreachable: (Instant, BTreeSet<NodeId>),
    /// Disks that its primaries wait for, and when it said so: PGs, and milliseconds of the longest wait.
    pub lagging: (Instant, Vec<(DiskId, u32, u64)>),
    /// PGs that it serves as primary.
    pub serving: BTreeSet<PgId>,
}

/// A disk as it registered.
#[derive(Clone, Debug)]
pub struct DiskView {
    /// Its node.
    pub node: NodeId,
    /// R1.
    pub boot: BootId,
    /// Not to be used.
    pub failed: bool,
    /// For how long it has not answered an operation, as its node says; 0: it works (R7).
    pub hung_ms: u64,
    /// Bytes in used slots.
    pub used_bytes: u64,
    /// Bytes that slots can hold.
    pub capacity_bytes: u64,
    /// For people.
    pub path: String,
    /// What it holds.
    pub copies: BTreeMap<PgId, Copy>,
}

/// A gateway that is connected.
#[derive(Clone, Debug)]
pub struct GatewayView {
    /// Its name.
    pub name: String,
    unreachable: (Instant, BTreeSet<NodeId>),
    /// Since when it says so without a break.
    unreachable_since: BTreeMap<NodeId, Instant>,
}

/// What changed by judging.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// Heard again.
    Up(NodeId),
    /// Missed heartbeats.
    Suspect(NodeId),
    /// Taken as dead.
    Down(NodeId),
}

/// All observations.
#[derive(Debug)]
pub struct Runtime {
    /// Times by which is judged.
    pub limits: Limits,
    /// When this coordinator started.
    pub started: Instant,
    /// At the last look every node was silent.
    heard_nobody: bool,
    /// Nobody is judged before.
    pub judge_from: Instant,
    /// As of the last judgement.
    pub now: Instant,
    /// By node.
    pub nodes: BTreeMap<NodeId, NodeView>,
    /// By disk.
    pub disks: BTreeMap<DiskId, DiskView>,
    /// By connection.
    pub gateways: BTreeMap<ConnId, GatewayView>,
    /// First and last time that a primary accused a member.
    accusations: BTreeMap<(PgId, Replica), (Instant, Instant)>,
    /// Disks that a PG's primary removed although they answer: how often, and when last.
    flaps: BTreeMap<(PgId, DiskId), (u32, Instant)>,
    /// PGs and nodes that the PG's writer can't reach.
    cut_off: BTreeSet<(PgId, NodeId)>,
    /// The same for a while after: how often it began, and when it was seen last.
    cut_off_lately: BTreeMap<(PgId, NodeId), (u32, Instant)>,
    /// PGs that have dropped a volume which is being deleted.
    pub dropped: BTreeMap<VolumeId, BTreeSet<PgId>>,
    /// Since when a PG has fewer live members than its pool wants.
    pub short_since: BTreeMap<PgId, Instant>,
    /// When a PG's configuration changed, for as long as that is news.
    pub changed_at: BTreeMap<PgId, Instant>,
    /// PGs that need no grace: a disk was declared lost, or the pool asks for more.
    pub no_grace: BTreeSet<PgId>,
    /// How fast disks take copies.
    pub pace: Pace,
}

impl Runtime {
    /// Nothing observed yet.
    pub fn new(now: Instant, limits: Limits) -> Self {
        Runtime {
            limits,
            started: now,
            heard_nobody: false,
            judge_from: now + limits.settle,
            now,
            nodes: BTreeMap::new(),
            disks: BTreeMap::new(),
            gateways: BTreeMap::new(),
            accusations: BTreeMap::new(),
            flaps: BTreeMap::new(),
            cut_off: BTreeSet::new(),
            cut_off_lately: BTreeMap::new(),
            dropped: BTreeMap::new(),
            short_since: BTreeMap::new(),
            changed_at: BTreeMap::new(),
            no_grace: BTreeSet::new(),
            pace: Pace::default(),
        }
    }

    /// A node registered, on this connection. Gives the connection that it replaces.
    pub fn handle_registered(&mut self, conn: ConnId, reg: &Registration, now: Instant) -> Option<ConnId> {
        let node = reg.node;
        for disk in &reg.disks {
            let view = DiskView {
                node,
                boot: disk.boot,
                failed: disk.failed,
                hung_ms: 0,
                used_bytes: disk.used_bytes,
                capacity_bytes: disk.capacity_bytes,
                path: disk.path.clone(),
                copies: disk.copies.iter().copied().collect(),
            };
            self.disks.insert(disk.disk, view);
        }
        // A disk that the node no longer brings doesn't answer.
        self.disks.retain(|id, d| d.node != node || reg.disks.iter().any(|r| r.disk == *id));
        let old = self.nodes.remove(&node);
        self.nodes.insert(
            node,
            NodeView {
                conn: Some(conn),
                process: reg.process,
                pid: reg.pid,
                life: Life::Up,
                heard: now,
                lost_at: None,
                registered: true,
                unreachable: (now, BTreeSet::new()),
                lagging: (now, Vec::new()),
                serving: BTreeSet::new(),
            },
        );
        old.and_then(|o| o.conn).filter(|c| *c != conn)
    }

    /// A sign of life from a node.
    pub fn handle_node_heartbeat(&mut self, node: NodeId, conn: ConnId, unreachable: &[NodeId], at: Instant) {
        if let Some(view) = self.nodes.get_mut(&node).filter(|v| v.conn == Some(conn)) {
            view.heard = view.heard.max(at);
            view.unreachable = (at, unreachable.iter().copied().collect());
        }
    }

    /// A sign of life from a gateway.
    pub fn handle_gateway_heartbeat(&mut self, conn: ConnId, unreachable: &[NodeId], at: Instant) {
        if let Some(view) = self.gateways.get_mut(&conn) {
            let said: BTreeSet<NodeId> = unreachable.iter().copied().collect();
            if at.since(view.unreachable.0) >= UNREACHABLE_KEPT {
                view.unreachable_since.clear(); // It was silent in between: its word starts anew.
            }
            view.unreachable_since.retain(|n, _| said.contains(n));
            for node in &said {
                view.unreachable_since.entry(*node).or_insert(at);
            }
            view.unreachable = (at, said);
        }
    }

    /// A gateway presented itself.
    pub fn handle_gateway(&mut self, conn: ConnId, name: String, now: Instant) {
        let view = GatewayView { name, unreachable: (now, BTreeSet::new()), unreachable_since: BTreeMap::new() };
        self.gateways.insert(conn, view);
    }

    /// A connection ended; `by_process` if the process ended it or has restarted, rather than fell silent.
    /// Gives the node that is down by this.
    pub fn handle_closed(&mut self, conn: ConnId, by_process: bool, now: Instant) -> Option<NodeId> {
        self.gateways.remove(&conn);
        let (node, view) = self.nodes.iter_mut().find(|(_, v)| v.conn == Some(conn))?;
        view.conn = None;
        if by_process && view.life != Life::Down {
            (view.life, view.lost_at) = (Life::Down, Some(now));
            return Some(*node);
        }
        None
    }

    /// A primary accuses members (R8).
    pub fn handle_accusation(&mut self, pg: PgId, accused: &[Replica], now: Instant) {
        for replica in accused {
            let entry = self.accusations.entry((pg, *replica)).or_insert((now, now));
            entry.1 = now;
        }
    }

    /// A primary's removal of a member was carried out: its word is used up.
    pub fn handle_removed(&mut self, pg: PgId, removed: Replica, now: Instant) {
        self.accusations.remove(&(pg, removed));
        if self.is_live(removed) {
            let flap = self.flaps.entry((pg, removed.disk)).or_insert((0, now));
            *flap = (flap.0.saturating_add(1), now);
        }
    }

    /// The disk was removed from the PG although it answers, and its pause isn't over.
    pub fn is_flapping(&self, pg: PgId, disk: DiskId) -> bool {
        self.flaps.get(&(pg, disk)).is_some_and(|(count, at)| self.now.since(*at) < pause_after(*count))
    }

    /// This process was itself stopped for a while.
    pub fn handle_frozen(&mut self, gap: Duration, now: Instant) {
        // After a long gap peers dial anew; after a short one their heartbeats are on the way.
        let hold = if gap > self.limits.down_after { self.limits.settle } else { Duration::from_millis(600) };
        self.judge_from = self.judge_from.max(now + hold);
    }

    /// Compares silence with the limits. Call it often, after all heartbeats that have arrived were handled.
    pub fn judge(&mut self, map: &ClusterMap, now: Instant) -> Vec<Judgement> {
        self.now = now;
        self.accusations.retain(|_, (_, last)| now.since(*last) < ACCUSATION_KEPT);
        self.flaps.retain(|_, (_, last)| now.since(*last) < FLAP_KEPT);
        let mut out = Vec::new();
        let Limits { suspect_after, down_after, settle } = self.limits;
        let is_heard = |v: &NodeView| v.life == Life::Up || (v.conn.is_some() && now.since(v.heard) < suspect_after);
        if self.heard_nobody && self.nodes.values().any(is_heard) {
            // It was this coordinator that was cut off. Who comes back first is not the only one left.
            self.judge_from = self.judge_from.max(now + settle);
        }
        let settled = now >= self.judge_from;
        if settled {
            // Nodes that have not come back since this coordinator started are lost since then.
            for node in map.nodes.values().filter(|n| !self.nodes.contains_key(&n.id)).collect::<Vec<_>>() {
                self.nodes.insert(node.id, absent(self.started));
                // One that has just joined and never registered is not lost, it is on its way.
                if !node.release.is_empty() {
                    out.push(Judgement::Down(node.id));
                }
            }
        }
        let accused = self.unreachable_nodes(now);
        for (node, view) in &mut self.nodes {
            if !view.registered {
                continue;
            }
            let silence = now.since(view.heard);
            if silence < suspect_after && view.conn.is_some() {
                if view.life != Life::Up {
                    (view.life, view.lost_at) = (Life::Up, None);
                    out.push(Judgement::Up(*node));
                }
            } else if settled && view.life != Life::Down {
                if silence >= down_after || (silence >= suspect_after && accused.contains(node)) {
                    (view.life, view.lost_at) = (Life::Down, Some(now));
                    out.push(Judgement::Down(*node));
                } else if silence >= suspect_after && view.life == Life::Up {
                    view.life = Life::Suspect;
                    out.push(Judgement::Suspect(*node));
                }
            }
        }
        self.heard_nobody = !self.nodes.is_empty() && self.nodes.values().all(|v| v.life == Life::Down);
        out
    }

    /// Nodes that somebody who is heard can't reach.
    fn unreachable_nodes(&self, now: Instant) -> BTreeSet<NodeId> {
        let fresh = |at: Instant| now.since(at) < UNREACHABLE_KEPT;
        let mut all = BTreeSet::new();
        for (node, view) in self.nodes.iter().filter(|(_, v)| v.life == Life::Up && fresh(v.unreachable.0)) {
            all.extend(view.unreachable.1.iter().filter(|n| *n != node));
        }
        for view in self.gateways.values().filter(|v| fresh(v.unreachable.0)) {
            all.extend(&view.unreachable.1);
        }
        all
    }

    /// Finds the PGs whose writer can't reach a node that others hear (R8). Call it before deciding.
    pub fn weigh_gateways(&mut self, map: &ClusterMap) {
        let before = std::mem::take(&mut self.cut_off);
        for view in self.gateways.values() {
            if self.now.since(view.unreachable.0) >= UNREACHABLE_KEPT {
                continue;
            }
            let stood = |at: &Instant| self.now.since(*at) >= CUT_OFF_AFTER;
            let nodes: Vec<NodeId> =
                view.unreachable_since.iter().filter(|(_, at)| stood(at)).map(|(n, _)| *n).collect();
            // One that reaches nobody has lost its own network.
            if nodes.is_empty() || nodes.len() >= self.nodes.values().filter(|n| n.life == Life::Up).count() {
                continue;
            }
            for volume in map.volumes.values().filter(|v| v.attached_to == view.name) {
                self.cut_off.extend(volume.pgs().flat_map(|pg| nodes.iter().map(move |n| (pg, *n))));
            }
        }
        let now = self.now;
        self.cut_off_lately.retain(|_, (_, last)| now.since(*last) < FLAP_KEPT);
        for key in &self.cut_off {
            let lately = self.cut_off_lately.entry(*key).or_insert((0, now));
            *lately = (lately.0.saturating_add(u32::from(!before.contains(key))), now);
        }
    }

    /// The PG's writer can't reach the node, or could not a while ago: it says so only while it must. A plan must not give
    /// the role back at once, each time with a stall; it tries less and less often.
    pub fn was_cut_off(&self, pg: PgId, node: NodeId) -> bool {
        self.cut_off_lately.get(&(pg, node)).is_some_and(|(count, at)| self.now.since(*at) < pause_after(*count))
    }

    /// The PG's writer can't reach the node.
    pub fn is_cut_off(&self, pg: PgId, node: NodeId) -> bool {
        self.cut_off.contains(&(pg, node))
    }

    /// Takes the failed and removed disks of the map to heart.
    pub fn follow_disk(&mut self, map: &ClusterMap, disk: DiskId) {
        let gone = map
            .disks
            .get(&disk)
            .is_none_or(|d| matches!(d.admin_state, DiskAdminState::Failed | DiskAdminState::Removed));
        if let Some(view) = self.disks.get_mut(&disk) {
            view.failed |= gone;
        }
    }

    /// Notes that a disk has, or will have, a copy.
    pub fn note_copy(&mut self, replica: Replica, config: &PgConfig, complete: bool) {
        if let Some(view) = self.disks.get_mut(&replica.disk).filter(|v| v.boot == replica.boot) {
            let copy = view.copies.entry(config.pg).or_default();
            copy.generation = copy.generation.max(config.generation);
            copy.complete |= complete;
        }
    }

    /// A disk learns, or has ended to: what was known of its copy counts no more before it says so anew. Its generation
    /// stays: a copy that is complete again before it has learnt is as old as it was.
    pub fn note_learner(&mut self, replica: Replica, config: &PgConfig) {
        if let Some(view) = self.disks.get_mut(&replica.disk).filter(|v| v.boot == replica.boot) {
            let new = Copy { generation: config.generation, ..Copy::default() };
            view.copies.entry(config.pg).or_insert(new).complete = false;
        }
    }

    /// A node says what copies are: learners and old ones each second, and a member when it has accepted a configuration. A
    /// word from before it became a member may come late; then its acceptance follows.
    pub fn handle_copies(&mut self, node: NodeId, copies: &[(DiskId, PgId, Copy)]) {
        for (disk, pg, copy) in copies {
            if let Some(view) = self.disks.get_mut(disk).filter(|d| d.node == node) {
                view.copies.insert(*pg, *copy);
            }
        }
    }

    /// The disk's boot, if it answers now.
    pub fn live_boot(&self, disk: DiskId) -> Option<BootId> {
        let view = self.disks.get(&disk).filter(|v| !v.failed)?;
        let node = self.nodes.get(&view.node)?;
        (node.life != Life::Down).then_some(view.boot)
    }

    /// The disk as a replica at its present boot, if it answers now.
    pub fn live_replica(&self, disk: DiskId) -> Option<Replica> {
        Some(Replica { disk, boot: self.live_boot(disk)? })
    }

    /// A live member that may be primary: its disk answers, and it is complete, as far as its disk says (R21).
    pub fn may_serve(&self, config: &PgConfig, replica: Replica) -> bool {
        self.is_live(replica) && !self.is_hung(replica.disk) && self.has_whole_copy(config, replica)
    }

    /// The disk's node is heard, but its disk doesn't answer: it leads nothing and takes no copy (R7).
    pub fn is_hung(&self, disk: DiskId) -> bool {
        self.disks.get(&disk).is_some_and(|d| d.hung_ms > 0)
    }

    /// Disks for which primaries wait: PGs, and milliseconds of the longest wait.
    pub fn lagging(&self) -> BTreeMap<DiskId, (u32, u64)> {
        let mut all: BTreeMap<DiskId, (u32, u64)> = BTreeMap::new();
        let fresh = |at: Instant| self.now.since(at) < UNREACHABLE_KEPT;
        for view in self.nodes.values().filter(|v| v.life != Life::Down) {
            for (disk, pgs, oldest_ms) in view.lagging.1.iter().filter(|_| fresh(view.lagging.0)) {
                let entry = all.entry(*disk).or_default();
                *entry = (entry.0.saturating_add(*pgs), entry.1.max(*oldest_ms));
            }
        }
        all
    }

    /// True if the disk's node says that it serves the PG as primary.
    pub fn serves(&self, pg: PgId, disk: DiskId) -> bool {
        let node = self.disks.get(&disk).and_then(|d| self.nodes.get(&d.node));
        node.is_some_and(|n| n.serving.contains(&pg))
    }

    /// Since when the node is lost; `None` if it isn't.
    pub fn lost_since(&self, node: NodeId) -> Option<Instant> {
        match self.nodes.get(&node) {
            Some(view) => view.lost_at,
            None => Some(self.started),
        }
    }

    /// True once everyone had time to be heard.
    pub fn is_settled(&self) -> bool {
        self.now >= self.judge_from
    }

    /// True if the operator wants the node to take replicas.
    pub fn is_active(map: &ClusterMap, disk: DiskId) -> bool {
        map.disks.get(&disk).is_some_and(|d| {
            d.admin_state == DiskAdminState::Active
                && map.nodes.get(&d.node).is_some_and(|n| n.admin_state == NodeAdminState::Active)
        })
    }
}

/// How long after the `count`th time.
fn pause_after(count: u32) -> Duration {
    FLAP_PAUSE * 2u32.pow(count.saturating_sub(1).min(FLAP_DOUBLINGS_MAX))
}

fn absent(since: Instant) -> NodeView {
    NodeView {
        conn: None,
        process: 0,
        pid: 0,
        life: Life::Down,
        heard: since,
        lost_at: Some(since),
        registered: false,
        unreachable: (since, BTreeSet::new()),
        lagging: (since, Vec::new()),
        serving: BTreeSet::new(),
    }
}

impl Liveness for Runtime {
    fn is_live(&self, replica: Replica) -> bool {
        self.live_boot(replica.disk) == Some(replica.boot)
    }

    fn accusation_stands(&self, pg: PgId, accused: Replica) -> bool {
        if self.is_hung(accused.disk) {
            return true; // Its own node says so too: both sides agree.
        }
        let entry = self.accusations.get(&(pg, accused));
        entry.is_some_and(|(first, last)| last.since(*first) >= ACCUSATION_STANDS)
    }

    /// Also made the only member by the operator (R5).
    fn has_whole_copy(&self, config: &PgConfig, replica: Replica) -> bool {
        if config.is_forced_on(replica) {
            return true;
        }
        match self.disks.get(&replica.disk).and_then(|d| d.copies.get(&config.pg)) {
            Some(copy) => copy.complete,
            // The first configuration acks nothing before every member has persisted it: nothing can be missing.
            None => config.generation.n == 1,
        }
    }
}
