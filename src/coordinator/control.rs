//! Messages of nodes, gateways and observers, one after the other.
//!
//! A peer acts only for itself: a node by the id in its certificate, a gateway by the name in its certificate (which its
//! own name must begin with). What is malformed or not allowed is refused with one sentence, and the channel ends.

use std::net::SocketAddr;

use prost::Message;

use super::owner::{Effect, Owner, PeerRole, Waiter};
use super::runtime::ConnId;
use super::wiring;
use crate::core::cluster::command::{Change, Command, Outcome, Proposal};
use crate::core::cluster::{Replica, Volume};
use crate::core::ids::{DiskId, Generation, NodeId, PgId, VolumeId};
use crate::core::units::Instant;
use crate::net::identity::Role;
use crate::wire::control::{self, AttachOutcome, ProposeKind, kind};
use crate::wire::frame::Frame;

/// Gateways that may wait for one volume: a live migration has one.
const STANDBY_MAX: usize = 64;
/// The feature level that this release runs.
pub const FEATURE_LEVEL: u32 = 1;

/// Why a peer is refused for good.
type Refuse = String;

impl Owner {
    pub(super) fn handle_frame(&mut self, id: ConnId, frame: Frame, at: Instant) {
        let Some(conn) = self.conns.get(&id) else { return };
        let role = conn.role.clone();
        let done = match (frame.kind, role) {
            (kind::HEARTBEAT, role) => decode(&frame).map(|m| self.heartbeat(id, role, m, at)),
            (kind::REGISTER, _) => decode(&frame).and_then(|m| self.register(id, m)),
            (kind::ALLOC_DISK, _) => decode(&frame).and_then(|m| self.alloc_disk(id, m)),
            (kind::GATEWAY_HELLO, _) => decode(&frame).and_then(|m| self.gateway_hello(id, m)),
            (kind::OBSERVE, PeerRole::New) => {
                self.set_role(id, PeerRole::Observer);
                self.effects.push(Effect::Follow(id));
                Ok(())
            }
            (kind::PROPOSE, PeerRole::Node(node)) => decode(&frame).map(|m| self.propose(id, node, m)),
            (kind::STATS, PeerRole::Node(node)) => decode(&frame).map(|m| self.node_stats(node, m)),
            (kind::STATS, PeerRole::Gateway(_)) => Ok(()),
            (kind::PURGED, PeerRole::Node(node)) => decode(&frame).map(|m| self.purged(node, m)),
            (kind::VOLUME_DROPPED, PeerRole::Node(node)) => decode(&frame).map(|m| self.volume_dropped(node, m)),
            (kind::ATTACH, PeerRole::Gateway(name)) => decode(&frame).map(|m| self.attach(id, name, m)),
            (kind::RELEASE, PeerRole::Gateway(name)) => decode(&frame).map(|m| self.release_volume(&name, m)),
            (kind::SETTLED, PeerRole::Gateway(name)) => decode(&frame).map(|m| self.settled(&name, m)),
            (
                kind::PROPOSE
                | kind::STATS
                | kind::PURGED
                | kind::VOLUME_DROPPED
                | kind::ATTACH
                | kind::RELEASE
                | kind::SETTLED,
                PeerRole::New | PeerRole::Observer | PeerRole::Node(_) | PeerRole::Gateway(_),
            ) => {
                Err(format!("message {:#06x} came before the registration or from the wrong kind of peer", frame.kind))
            }
            (other, _) => {
                tracing::debug!(kind = other, "a message of an unknown kind is ignored");
                Ok(())
            }
        };
        if let Err(reason) = done {
            self.effects.push(Effect::Refuse(id, reason));
        }
    }

    fn set_role(&mut self, id: ConnId, role: PeerRole) {
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.role = role;
        }
    }

    fn heartbeat(&mut self, id: ConnId, role: PeerRole, m: control::Heartbeat, at: Instant) {
        match role {
            PeerRole::Node(node) => self.runtime.handle_node_heartbeat(node, id, &m.unreachable, at),
            PeerRole::Gateway(_) => self.runtime.handle_gateway_heartbeat(id, &m.unreachable, at),
            PeerRole::New | PeerRole::Observer => {}
        }
    }

    /// The node that the peer's certificate names.
    fn certified_node(&self, id: ConnId, claimed: u32) -> Result<NodeId, Refuse> {
        let role = self.conns.get(&id).map(|c| &c.peer.role);
        match role {
            Some(Role::Node(node)) if node.0 == claimed => Ok(*node),
            Some(other) => Err(format!(
                "the certificate says {other}, the message says node n{claimed}: start the node with the identity that it joined with"
            )),
            None => Err("the connection is gone".to_owned()),
        }
    }

    fn check_level(&self, who: &str, min: u32, max: u32) -> Result<(), Refuse> {
        let level = self.state.map().feature_level;
        if (min..=max).contains(&level) {
            return Ok(());
        }
        Err(format!(
            "{who} runs feature levels {min} to {max}, the cluster is at {level}: install a release that runs level {level}"
        ))
    }

    fn register(&mut self, id: ConnId, m: control::Register) -> Result<(), Refuse> {
        let node = self.certified_node(id, m.node)?;
        let map = self.state.map();
        let record = map.nodes.get(&node).ok_or_else(|| {
            format!("node {node} is not in this cluster's map: join it with a new token, with empty disks")
        })?;
        let name = record.name.clone();
        self.check_level(&format!("node {name}"), m.feature_min, m.feature_max)?;
        if (m.map_epoch, m.map_version) > (map.epoch, map.version) {
            return Err(format!(
                "node {name} has seen map version {} of epoch {}, the coordinator has version {} of epoch {}: the \
                 coordinator runs on old metadata; put back its newest copy",
                m.map_version, m.map_epoch, map.version, map.epoch
            ));
        }
        let addr: SocketAddr =
            m.addr.parse().map_err(|_| format!("node {name} gives the address {:?}: it must be IP:PORT", m.addr))?;
        for disk in &m.disks {
            let known = map.disks.get(&DiskId(disk.disk));
            let owner = known.map(|d| d.node);
            if owner != Some(node) {
                let owner = owner.map_or_else(|| "no node".to_owned(), |n| format!("node {n}"));
                return Err(format!(
                    "disk d{} at {} belongs to {owner} in this cluster's map: give node {name} its own disks",
                    disk.disk, disk.path
                ));
            }
        }
        let refused = |e: crate::core::cluster::command::Refusal| e.to_string();
        let (admin_url, release) = (m.admin_url.clone(), m.release.clone());
        self.apply(&name, Command::UpdateNode { node, addr, admin_url, release }).map_err(refused)?;
        for disk in &m.disks {
            let (id, class, capacity_bytes) = (DiskId(disk.disk), disk.class.clone(), disk.capacity_bytes);
            self.apply(&name, Command::UpdateDisk { disk: id, class, capacity_bytes }).map_err(refused)?;
            self.fresh_disks.remove(&id);
        }
        if let Some(old) = self.runtime.handle_registered(id, &m, self.now)
            && let Some(conn) = self.conns.remove(&old)
        {
            conn.link.close("the node has registered again");
        }
        for disk in m.disks.iter().filter(|d| d.failed) {
            self.fail_disk(&name, DiskId(disk.disk));
        }
        for disk in &m.disks {
            self.runtime.follow_disk(self.state.map(), DiskId(disk.disk));
        }
        self.tell("node-registered", &name, format!("Node {name} registered with {} disks.", m.disks.len()));
        self.set_role(id, PeerRole::Node(node));
        self.note_registered(node);
        let level = self.state.map().feature_level;
        let registered = wiring::frame(kind::REGISTERED, &control::Registered { feature_level: level });
        self.effects.push(Effect::Send(id, registered));
        self.effects.push(Effect::Follow(id));
        Ok(())
    }

    /// R15: the disk is out, and its PGs are repaired without grace.
    fn fail_disk(&mut self, actor: &str, disk: DiskId) {
        let touched = self.state.map().pgs.values().filter(|c| c.members.iter().any(|m| m.disk == disk));
        let touched: Vec<PgId> = touched.map(|c| c.pg).collect();
        match self.apply(actor, Command::DiskFailed { disk }) {
            Ok(applied) if !applied.changed.is_empty() => {
                self.runtime.no_grace.extend(touched);
                self.planning.touch(self.now);
            }
            Ok(_) => {}
            Err(refusal) => tracing::warn!(%refusal, "a disk's failure can't be recorded"),
        }
    }

    fn alloc_disk(&mut self, id: ConnId, m: control::AllocDisk) -> Result<(), Refuse> {
        let node = self.certified_node(id, m.node)?;
        let command = Command::AllocDisk { node, class: m.class, capacity_bytes: m.capacity_bytes };
        let applied = self.apply(&node.to_string(), command).map_err(|e| e.to_string())?;
        if let Outcome::Disk(disk) = applied.outcome {
            self.fresh_disks.insert(disk, self.now);
            self.planning.touch(self.now);
            let reply = control::DiskAllocated { disk: disk.0 };
            self.effects.push(Effect::Send(id, wiring::frame(kind::DISK_ALLOCATED, &reply)));
        }
        Ok(())
    }

    fn propose(&mut self, id: ConnId, from: NodeId, m: control::Propose) {
        let pg = PgId::from_u64(m.pg);
        let replicas: Vec<Replica> = m.replicas.iter().map(|r| (*r).into()).collect();
        let base = Generation { epoch: m.base_epoch, n: m.base_n };
        let change = match (ProposeKind::try_from(m.kind), replicas.first()) {
            (Ok(ProposeKind::RemoveMembers), Some(_)) => {
                let serves = self.state.map().pgs.get(&pg).is_some_and(|c| c.generation == base);
                if serves && replicas.len() <= crate::core::cluster::state::REPLICAS_MAX as usize {
                    self.runtime.handle_accusation(pg, &replicas, self.now);
                }
                Some(Change::RemoveMembers(replicas))
            }
            (Ok(ProposeKind::PromoteLearner), Some(r)) => Some(Change::PromoteLearner(*r)),
            (Ok(ProposeKind::DropLearner), Some(r)) => Some(Change::DropLearner(*r)),
            _ => None,
        };
        let removed = match &change {
            Some(Change::RemoveMembers(replicas)) => replicas.clone(),
            _ => Vec::new(),
        };
        let promoted = match &change {
            Some(Change::PromoteLearner(replica)) => Some(*replica),
            _ => None,
        };
        let actor = self.state.map().nodes.get(&from).map_or_else(|| from.to_string(), |n| n.name.clone());
        let outcome = match change {
            Some(change) => {
                let proposal = Proposal { id: m.proposal, pg, base, from, change, reason: m.reason };
                self.apply(&actor, Command::Propose(proposal)).map(|a| !a.changed.is_empty()).map_err(|e| e.to_string())
            }
            None => Err("the proposal names no change that this release knows, or nobody".to_owned()),
        };
        // An outcome that is only read again uses up no word.
        if outcome == Ok(true) {
            removed.iter().for_each(|r| self.runtime.handle_removed(pg, *r, self.now));
        }
        let config = self.state.map().pgs.get(&pg).cloned();
        if let (Ok(_), Some(replica), Some(config)) = (&outcome, promoted, &config) {
            self.runtime.note_copy(replica, config, true);
        }
        let reply = control::ProposeReply {
            proposal: m.proposal,
            pg: m.pg,
            accepted: outcome.is_ok(),
            reason: outcome.err().unwrap_or_default(),
            config: config.as_ref().map(Into::into),
        };
        self.effects.push(Effect::Send(id, wiring::frame(kind::PROPOSE_REPLY, &reply)));
    }

    fn node_stats(&mut self, node: NodeId, m: control::Stats) {
        for stats in &m.disks {
            let disk = DiskId(stats.disk);
            let Some(view) = self.runtime.disks.get_mut(&disk).filter(|d| d.node == node) else { continue };
            (view.used_bytes, view.capacity_bytes) = (stats.used_bytes, stats.capacity_bytes);
            let was_hung = std::mem::replace(&mut view.hung_ms, stats.hung_ms) > 0;
            let fails = stats.failed && !view.failed;
            if was_hung != (stats.hung_ms > 0) {
                self.note_hung(disk, stats.hung_ms);
            }
            if fails {
                self.fail_disk(&node.to_string(), disk);
                self.touch_pgs();
            }
        }
        for entry in &m.pg_bytes {
            let pg = PgId::from_u64(entry.pg);
            if self.state.map().pgs.contains_key(&pg) {
                self.pg_bytes.insert(pg, entry.bytes);
            }
        }
        self.runtime.handle_copies(node, self.state.map(), &m.copies);
        self.totals.handle_report(node, m.process, &m.resync_written_bytes);
        let now = self.now;
        if let Some(view) = self.runtime.nodes.get_mut(&node) {
            view.serving = m.serving_pgs.iter().map(|pg| PgId::from_u64(*pg)).collect();
            view.stats_before = view.stats.take();
            view.stats = Some((now, m));
        }
    }

    fn note_hung(&mut self, disk: DiskId, hung_ms: u64) {
        let name = super::force::disk_on_node(self.state.map(), disk);
        if hung_ms > 0 {
            let seconds = hung_ms as f64 / 1000.0;
            self.tell("disk-hung", "coordinator", format!("Disk {name} has not answered for {seconds:.1} s."));
        } else {
            self.tell("disk-answers", "coordinator", format!("Disk {name} answers again."));
        }
        self.touch_pgs();
    }

    fn purged(&mut self, node: NodeId, m: control::Purge) {
        let disk = DiskId(m.disk);
        if self.runtime.disks.get(&disk).is_some_and(|d| d.node == node) {
            self.handle_purged(PgId::from_u64(m.pg), disk);
        }
    }

    fn volume_dropped(&mut self, node: NodeId, m: control::VolumeDropped) {
        let (volume, pg) = (VolumeId(m.id), PgId::from_u64(m.pg));
        let map = self.state.map();
        let primary = map.pgs.get(&pg).and_then(|c| c.primary());
        let by_primary = primary.and_then(|p| map.disks.get(&p.disk)).is_some_and(|d| d.node == node);
        if by_primary && map.volumes.get(&volume).is_some_and(|v| v.deleting) {
            self.runtime.dropped.entry(volume).or_default().insert(pg);
            self.touch_pgs();
        }
    }

    fn gateway_hello(&mut self, id: ConnId, m: control::GatewayHello) -> Result<(), Refuse> {
        let Some(conn) = self.conns.get(&id) else { return Ok(()) };
        let allowed = match &conn.peer.role {
            Role::Gateway(name) => m.name.starts_with(name.as_str()),
            Role::Operator => !m.name.is_empty(),
            _ => false,
        };
        if !allowed {
            return Err(format!(
                "the certificate says {}, which may not serve volumes as gateway {:?}: get a gateway's certificate of that name",
                conn.peer.role, m.name
            ));
        }
        self.check_level(&format!("gateway {}", m.name), m.feature_min, m.feature_max)?;
        self.runtime.handle_gateway(id, m.name.clone(), self.now);
        self.set_role(id, PeerRole::Gateway(m.name));
        self.effects.push(Effect::Follow(id));
        Ok(())
    }

    fn attach(&mut self, id: ConnId, gateway: String, m: control::Attach) {
        let command = Command::Attach {
            volume: m.volume.clone(),
            gateway: gateway.clone(),
            take_over: m.take_over,
            had_incarnation: m.had_incarnation,
        };
        let mut reply = control::AttachReply { volume: m.volume.clone(), ..control::AttachReply::default() };
        match self.apply(&gateway, command).map(|a| a.outcome) {
            Ok(Outcome::Attached { volume, fenced, lost }) => {
                reply.lost = lost;
                (reply.id, reply.incarnation) = (volume.id.0, volume.incarnation);
                reply.set_outcome(AttachOutcome::Granted);
                if let Some(queue) = self.standby.get_mut(&volume.id) {
                    queue.retain(|w| w.conn != id);
                }
                if let Some((name, incarnation)) = fenced {
                    self.fence(&name, id, volume.id, incarnation, &gateway);
                }
            }
            Ok(Outcome::Standby { volume, holder }) => {
                reply.id = volume.0;
                let queue = self.standby.entry(volume).or_default();
                if queue.iter().all(|w| w.conn != id) && queue.len() < STANDBY_MAX {
                    queue.push_back(Waiter { conn: id, gateway });
                }
                reply.reason = format!(
                    "volume {:?} is attached to gateway {holder:?}: it is yours when that one releases it, or with --take-over",
                    m.volume
                );
                reply.set_outcome(AttachOutcome::Standby);
            }
            Ok(_) => {}
            Err(refusal) => {
                reply.reason = refusal.to_string();
                reply.set_outcome(AttachOutcome::Refused);
            }
        }
        self.effects.push(Effect::Send(id, wiring::frame(kind::ATTACH_REPLY, &reply)));
    }

    /// Tells the connections of the gateway that lost a volume.
    fn fence(&mut self, name: &str, winner: ConnId, volume: VolumeId, incarnation: u64, by: &str) {
        let reason = format!("gateway {by:?} has taken the volume over");
        let message = control::Release { id: volume.0, incarnation, reason, untold: false };
        let losers =
            self.conns.iter().filter(|(id, c)| **id != winner && matches!(&c.role, PeerRole::Gateway(n) if n == name));
        let losers: Vec<ConnId> = losers.map(|(id, _)| *id).collect();
        for loser in losers {
            self.effects.push(Effect::Send(loser, wiring::frame(kind::FENCED, &message)));
        }
    }

    fn settled(&mut self, gateway: &str, m: control::Settled) {
        let volume = VolumeId(m.id);
        let holds = |v: &Volume| v.attached_to == gateway && v.durability != m.durability;
        if self.state.map().volumes.get(&volume).is_some_and(holds) {
            let command = Command::Settle { volume, incarnation: m.incarnation, durability: m.durability };
            if let Err(refusal) = self.apply(gateway, command) {
                tracing::debug!(%refusal, "a gateway's word came late");
            }
        }
    }

    fn release_volume(&mut self, gateway: &str, m: control::Release) {
        let volume = VolumeId(m.id);
        let holds = self.state.map().volumes.get(&volume).is_some_and(|v| v.attached_to == gateway);
        if !holds {
            return; // It was taken over before; FENCED says so.
        }
        if let Err(refusal) =
            self.apply(gateway, Command::Release { volume, incarnation: m.incarnation, untold: m.untold })
        {
            tracing::debug!(%refusal, "a release came late");
            return;
        }
        // The first that waits is next.
        let Some(next) = self.standby.get_mut(&volume).and_then(|q| q.pop_front()) else { return };
        let Some(name) = self.state.map().volumes.get(&volume).map(|v| v.name.clone()) else { return };
        let attach = control::Attach { volume: name, take_over: false, had_incarnation: 0 };
        self.attach(next.conn, next.gateway, attach);
    }
}

fn decode<M: Message + Default>(frame: &Frame) -> Result<M, Refuse> {
    M::decode(frame.meta.clone()).map_err(|e| format!("message {:#06x} is malformed: {e}", frame.kind))
}
