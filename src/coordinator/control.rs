//! Messages of nodes, gateways and observers, one after the other.
//!
//! A peer acts only for itself: a node by the id in its certificate, a gateway by the name in its certificate (which its
//! own name must begin with). What is malformed or not allowed is refused with one sentence, and the channel ends.

use std::net::SocketAddr;

use prost::Message;

use super::owner::{Effect, Figures, Owner, PeerRole};

use super::wiring;
use crate::core::cluster::Replica;
use crate::core::cluster::command::{Change, Command, Outcome, SeenMap};
use crate::core::ids::{BootId, DiskId, Generation, NodeId, PgId, VolumeId};
use crate::core::manager::runtime::ConnId;
use crate::core::manager::{Attachment, Copy, Copying, Proposed, RegisteredDisk, Registration, Report, ReportedDisk};
use crate::core::units::Instant;
use crate::net::identity::Role;
use crate::wire::control::{self, AttachOutcome, ProposeKind, kind};
use crate::wire::frame::Frame;
use crate::wire::stats;

/// The feature level that this release runs.
pub const FEATURE_LEVEL: u32 = 1;

/// Why a peer is refused for good.
type Refuse = String;

impl Owner {
    pub(super) fn handle_frame(&mut self, id: ConnId, frame: Frame, at: Instant) {
        let Some(conn) = self.conns.get(&id) else { return };
        let role = conn.role.clone();
        // With an old map nobody is taken. A refused attach would fence its gateway; a refused link it takes as it would
        // an absent coordinator.
        if let Some(refusal) = self.manager.outdated().filter(|_| frame.kind != kind::OBSERVE) {
            self.effects.push(Effect::Refuse(id, refusal.to_string()));
            return;
        }
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
            (kind::STATS, PeerRole::Node(node)) => decode(&frame).map(|m| self.node_stats(id, node, m)),
            (kind::STATS, PeerRole::Gateway(name)) => decode(&frame).map(|m| self.guest_stats(id, name, m)),
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
        let unreachable: Vec<NodeId> = m.unreachable.iter().map(|n| NodeId(*n)).collect();
        match role {
            PeerRole::Node(node) => self.manager.runtime.handle_node_heartbeat(node, id, &unreachable, at),
            PeerRole::Gateway(_) => self.manager.runtime.handle_gateway_heartbeat(id, &unreachable, at),
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
        let level = self.manager.state.map().feature_level;
        if (min..=max).contains(&level) {
            return Ok(());
        }
        Err(format!(
            "{who} runs feature levels {min} to {max}, the cluster is at {level}: install a release that runs level {level}"
        ))
    }

    fn register(&mut self, id: ConnId, m: control::Register) -> Result<(), Refuse> {
        let node = self.certified_node(id, m.node)?;
        let map = self.manager.state.map();
        let record = map.nodes.get(&node).ok_or_else(|| {
            format!("node {node} is not in this cluster's map: join it with a new token, with empty disks")
        })?;
        let name = record.name.clone();
        self.check_level(&format!("node {name}"), m.feature_min, m.feature_max)?;
        let seen = SeenMap { epoch: m.map_epoch, version: m.map_version };
        self.manager.handle_seen(&format!("node {name}"), seen).map_err(|e| e.to_string())?;
        let map = self.manager.state.map();
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
        }
        let process = self.manager.runtime.nodes.get(&node).map(|v| v.process);
        if process != Some(m.process) {
            self.figures.remove(&node);
        } else if let Some(figures) = self.figures.get_mut(&node) {
            figures.before = None;
        }
        if let Some(old) = self.manager.handle_registered(id, &name, &registration(&m))
            && let Some(conn) = self.conns.remove(&old)
        {
            conn.link.close("the node has registered again");
        }
        self.set_role(id, PeerRole::Node(node));
        let level = self.manager.state.map().feature_level;
        let registered = wiring::frame(kind::REGISTERED, &control::Registered { feature_level: level });
        self.effects.push(Effect::Send(id, registered));
        self.effects.push(Effect::Follow(id));
        Ok(())
    }

    fn alloc_disk(&mut self, id: ConnId, m: control::AllocDisk) -> Result<(), Refuse> {
        let node = self.certified_node(id, m.node)?;
        let command = Command::AllocDisk { node, class: m.class, capacity_bytes: m.capacity_bytes };
        let applied = self.apply(&self.node_name(node), command).map_err(|e| e.to_string())?;
        if let Outcome::Disk(disk) = applied.outcome {
            self.manager.fresh_disks.insert(disk, self.manager.now);
            let name = self.node_name(node);
            let what = format!("node {name} added disk {disk}");
            self.manager.planning.touch_for(self.manager.now, &name, what);
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
            (Ok(ProposeKind::RemoveMembers), Some(_)) => Some(Change::RemoveMembers(replicas)),
            (Ok(ProposeKind::PromoteLearner), Some(r)) => Some(Change::PromoteLearner(*r)),
            (Ok(ProposeKind::DropLearner), Some(r)) => Some(Change::DropLearner(*r)),
            _ => None,
        };
        let proposed = Proposed { id: m.proposal, pg, base, change, reason: m.reason };
        let (outcome, config) = self.manager.handle_proposal(from, proposed);
        let reply = control::ProposeReply {
            proposal: m.proposal,
            pg: m.pg,
            accepted: outcome.is_ok(),
            reason: outcome.err().unwrap_or_default(),
            config: config.as_ref().map(Into::into),
        };
        self.effects.push(Effect::Send(id, wiring::frame(kind::PROPOSE_REPLY, &reply)));
    }

    fn node_stats(&mut self, id: ConnId, node: NodeId, m: stats::Stats) {
        self.tell_class_baselines(id, &m);
        self.manager.handle_report(node, report(&m));
        self.totals.handle_report(node, m.process, &m.resync_written_bytes);
        let written = m.resync_written_bytes.iter().fold(0u64, |sum, bytes| sum.saturating_add(*bytes));
        self.progress.handle_report(node, m.process, written, self.manager.now);
        let earlier = self.figures.remove(&node);
        self.figures.insert(node, Figures::next(earlier, self.manager.now, m));
    }

    fn guest_stats(&mut self, id: ConnId, gateway: String, m: stats::Stats) {
        let earlier = self.gateway_figures.remove(&gateway).map(|(_, figures)| figures);
        self.gateway_figures.insert(gateway, (id, Figures::next(earlier, self.manager.now, m)));
    }

    fn purged(&mut self, node: NodeId, m: control::Purge) {
        self.manager.handle_purged(node, PgId::from_u64(m.pg), DiskId(m.disk));
    }

    fn volume_dropped(&mut self, node: NodeId, m: control::VolumeDropped) {
        self.manager.handle_volume_dropped(node, VolumeId(m.id), PgId::from_u64(m.pg));
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
        let who = format!("gateway {}", m.name);
        self.check_level(&who, m.feature_min, m.feature_max)?;
        let seen = SeenMap { epoch: m.map_epoch, version: m.map_version };
        self.manager.handle_seen(&who, seen).map_err(|e| e.to_string())?;
        self.manager.runtime.handle_gateway(id, m.name.clone(), self.manager.now);
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.admin_url = m.admin_url;
        }
        self.set_role(id, PeerRole::Gateway(m.name));
        self.effects.push(Effect::Follow(id));
        Ok(())
    }

    fn attach(&mut self, id: ConnId, gateway: String, m: control::Attach) {
        let mut reply = control::AttachReply { volume: m.volume.clone(), ..control::AttachReply::default() };
        match self.manager.handle_attach(id, gateway.clone(), &m.volume, m.take_over, m.had_incarnation) {
            Ok(Attachment::Granted { volume, fenced, lost }) => {
                reply.lost = lost;
                (reply.id, reply.incarnation) = (volume.id.0, volume.incarnation);
                reply.set_outcome(AttachOutcome::Granted);
                if let Some((name, incarnation)) = fenced {
                    self.fence(&name, id, volume.id, incarnation, &gateway);
                }
            }
            Ok(Attachment::Standby { volume, holder }) => {
                reply.id = volume.0;
                reply.reason = format!(
                    "volume {:?} is attached to gateway {holder:?}: it is yours when that one releases it, or with --take-over",
                    m.volume
                );
                reply.set_outcome(AttachOutcome::Standby);
            }
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
        self.manager.handle_settled(gateway, VolumeId(m.id), m.incarnation, m.durability);
    }

    fn release_volume(&mut self, gateway: &str, m: control::Release) {
        // The first that waits is next.
        let Some((name, next)) = self.manager.handle_release(gateway, VolumeId(m.id), m.incarnation, m.untold) else {
            return;
        };
        let attach = control::Attach { volume: name, take_over: false, had_incarnation: 0 };
        self.attach(next.conn, next.gateway, attach);
    }
}

fn decode<M: Message + Default>(frame: &Frame) -> Result<M, Refuse> {
    M::decode(frame.meta.clone()).map_err(|e| format!("message {:#06x} is malformed: {e}", frame.kind))
}

fn copy(p: &control::PgReport) -> (PgId, Copy) {
    let generation = Generation { epoch: p.generation_epoch, n: p.generation_n };
    (PgId::from_u64(p.pg), Copy { generation, complete: p.complete, flush_mark: p.flush_mark })
}

fn registration(m: &control::Register) -> Registration {
    let disk = |d: &control::DiskReport| RegisteredDisk {
        disk: DiskId(d.disk),
        boot: BootId(d.boot),
        failed: d.failed,
        used_bytes: d.used_bytes,
        capacity_bytes: d.capacity_bytes,
        class: d.class.clone(),
        path: d.path.clone(),
        copies: d.pgs.iter().map(copy).collect(),
    };
    let disks = m.disks.iter().map(disk).collect();
    Registration { node: NodeId(m.node), process: m.process, pid: m.pid, disks }
}

fn copying(s: &stats::SessionStats) -> Copying {
    Copying {
        pg: PgId::from_u64(s.pg),
        to: DiskId(s.learner),
        bytes_done: s.bytes_done,
        bytes_total: s.bytes_total,
        paused: s.limited_by == "paused",
    }
}

fn report(m: &stats::Stats) -> Report {
    let disk = |d: &stats::DiskStats| ReportedDisk {
        disk: DiskId(d.disk),
        used_bytes: d.used_bytes,
        capacity_bytes: d.capacity_bytes,
        failed: d.failed,
        hung_ms: d.hung_ms,
    };
    let copy_of = |c: &stats::CopyStats| {
        let (pg, copy) = copy(c.report.as_ref()?);
        Some((DiskId(c.disk), pg, copy))
    };
    Report {
        disks: m.disks.iter().map(disk).collect(),
        pg_bytes: m.pg_bytes.iter().map(|p| (PgId::from_u64(p.pg), p.bytes)).collect(),
        copies: m.copies.iter().filter_map(copy_of).collect(),
        serving: m.serving_pgs.iter().map(|pg| PgId::from_u64(*pg)).collect(),
        lagging: m.lagging.iter().map(|l| (DiskId(l.disk), l.pgs, l.oldest_ms)).collect(),
        copying: m.sessions.iter().map(copying).collect(),
    }
}
