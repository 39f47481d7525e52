//! Links to the coordinator: what nodes and gateways say to it, as their daemons do, and what it answers.
//!
//! A link is one FIFO stream each way. A peer that has heard nothing for 1.2 s makes a new one and says all anew.

use std::collections::BTreeSet;
use std::time::Duration;

use evenkeel::core::cluster::NodeAdminState;
use evenkeel::core::cluster::command;
use evenkeel::core::ids::{DiskId, Generation, NodeId, PgId};
use evenkeel::core::manager::{Copy, Proposed, RegisteredDisk, Registration, Report, ReportedDisk};
use evenkeel::core::replica::{Change, Input};
use evenkeel::core::units::Instant;

use crate::canary::Canary;
use crate::coord::{Down, Peer, Up};
use crate::network::STUCK;
use crate::world::{COORDINATOR, Event, GATEWAY, MS, World, local};

const BEAT_NS: u64 = 150 * MS;
const SILENCE_NS: u64 = 1_200 * MS;
const RETRY_NS: u64 = 250 * MS;
const TICK_NS: u64 = 50 * MS;
const STATS_NS: u64 = 1_000 * MS;
const CAPACITY_BYTES: u64 = 1 << 40;

fn number(peer: Peer) -> u32 {
    match peer {
        Peer::Node(disk) => disk.0,
        Peer::Gateway(i) => GATEWAY + i as u32,
    }
}

impl World {
    pub fn coordinator_now(&self) -> Instant {
        Instant(local(self.now, self.coordinator_drift_ppm))
    }

    fn is_peer_awake(&self, peer: Peer) -> bool {
        match peer {
            Peer::Node(disk) => self.nodes.get(&disk).is_some_and(|n| n.is_awake()),
            Peer::Gateway(i) => self.gateways[i].alive,
        }
    }

    fn life_of(&self, peer: Peer) -> u64 {
        match peer {
            Peer::Node(disk) => self.nodes.get(&disk).map_or(0, |n| n.life),
            Peer::Gateway(_) => 0,
        }
    }

    /// A peer makes a link.
    pub fn dial_coordinator(&mut self, peer: Peer, life: u64) {
        let linked = self.controls.get(&peer).is_some_and(|s| s.up);
        if self.life_of(peer) != life || !self.is_peer_awake(peer) || linked {
            return;
        }
        let me = number(peer);
        let cut = self.is_blocked(me, COORDINATOR) || self.is_blocked(COORDINATOR, me);
        if !self.coordinator.up || self.coordinator_frozen.is_some() || cut {
            return self.after(RETRY_NS, Event::Dial { peer, life });
        }
        let conn = self.coordinator.open(peer);
        self.log(|| format!("{peer:?} has link {conn} to the coordinator"));
        let now = self.now;
        let stream = self.controls.entry(peer).or_default();
        (stream.up, stream.connection, stream.last, stream.heard) = (true, conn, [now; 2], now);
        match peer {
            Peer::Node(disk) => {
                let registration = self.registration(disk);
                let seen = self.nodes.get(&disk).map_or(0, |n| n.map.version);
                self.send_up(peer, Up::Register(registration, seen));
                let proposals: Vec<Proposed> =
                    self.nodes.get(&disk).map(|n| n.proposals.values().cloned().collect()).unwrap_or_default();
                proposals.into_iter().for_each(|p| self.send_up(peer, Up::Propose(p)));
            }
            Peer::Gateway(i) => {
                let g = &self.gateways[i];
                let had_incarnation = if g.attached { g.incarnation } else { 0 };
                let (name, take_over) = (g.name.clone(), g.take_over);
                self.gateways[i].settled = None;
                self.send_up(peer, Up::Hello(name));
                self.send_up(peer, Up::Attach { take_over, had_incarnation });
            }
        }
        self.after(BEAT_NS, Event::Beat { peer, conn });
    }

    fn registration(&self, id: DiskId) -> Registration {
        let node = &self.nodes[&id];
        // As the disk says (R21): a learner that has everything in memory alone is no source after a restart.
        let copy = |(pg, s): (&PgId, &evenkeel::core::replica::PgState)| {
            let flush_mark = node.disk.marks.get(pg).copied().unwrap_or(0);
            (*pg, Copy { generation: s.config.generation, complete: s.complete, flush_mark })
        };
        let disk = RegisteredDisk {
            disk: id,
            boot: node.disk.boot,
            failed: node.disk.failed,
            used_bytes: 0,
            capacity_bytes: CAPACITY_BYTES,
            class: String::new(),
            path: String::new(),
            copies: node.disk.states.iter().map(copy).collect(),
        };
        Registration { node: NodeId(id.0), process: node.life, pid: 1, disks: vec![disk] }
    }

    /// A sign of life, if the coordinator gives any.
    pub fn beat(&mut self, peer: Peer, conn: u64) {
        let Some(stream) = self.controls.get(&peer).filter(|s| s.up && s.connection == conn) else { return };
        if !self.is_peer_awake(peer) {
            return;
        }
        if self.now > stream.heard + SILENCE_NS {
            return self.end_control(peer, true);
        }
        let unreachable: Vec<NodeId> = match peer {
            Peer::Node(disk) => {
                let lost = self.nodes[&disk].reachable.iter().filter(|(_, yes)| !**yes);
                lost.map(|(d, _)| NodeId(d.0)).collect()
            }
            Peer::Gateway(i) => self.gateway_unreachable(i),
        };
        self.send_up(peer, Up::Heartbeat(unreachable));
        if let Peer::Gateway(i) = peer
            && let Some((incarnation, durability)) = self.gateways[i].take_settled()
        {
            self.send_up(peer, Up::Settled(incarnation, durability));
        }
        self.after(BEAT_NS, Event::Beat { peer, conn });
    }

    pub fn stats(&mut self, id: DiskId, life: u64) {
        if self.nodes.get(&id).is_some_and(|n| n.up && n.life == life) {
            self.after(STATS_NS, Event::Stats { node: id, life });
            self.report(id);
        }
    }

    /// The figures that the coordinator decides by.
    pub fn report(&mut self, id: DiskId) {
        let hung = self.hangs(id);
        let Some(node) = self.nodes.get(&id).filter(|n| n.up) else { return };
        let at = Instant(node.local(self.now));
        let hung_ms = if hung { (self.now.min(node.hangs_until) - node.hangs_since) / MS } else { 0 };
        let failed = node.disk.failed;
        let disk = ReportedDisk { disk: id, used_bytes: 0, capacity_bytes: CAPACITY_BYTES, failed, hung_ms };
        let mut report = Report { disks: vec![disk], ..Report::default() };
        for (pg, replica) in &node.replicas {
            for (disk, age) in replica.lagging(at) {
                report.lagging.push((disk, 1, age.as_millis() as u64));
            }
            let config = replica.config();
            if replica.is_primary() {
                report.pg_bytes.push((*pg, node.disk.bytes_of(*pg)));
                if replica.is_serving() && !hung {
                    report.serving.insert(*pg);
                }
            }
            let tells = replica.is_outside() || node.accepted.contains_key(pg);
            if tells && config.generation != Generation::default() {
                let flush_mark = node.disk.marks.get(pg).copied().unwrap_or(0);
                let (generation, complete) = (config.generation, replica.is_complete());
                report.copies.push((id, *pg, Copy { generation, complete, flush_mark }));
            }
        }
        if let Some(node) = self.nodes.get_mut(&id) {
            node.accepted.retain(|_, left| {
                *left -= 1;
                *left > 0
            });
        }
        self.send_up(Peer::Node(id), Up::Report(report));
    }

    pub fn propose(&mut self, id: DiskId, pg: PgId, proposal: u64, base: Generation, change: &Change) {
        let (change, reason) = match change {
            Change::Remove(gone) => (command::Change::RemoveMembers(gone.clone()), "they don't answer"),
            Change::Promote(learner) => (command::Change::PromoteLearner(*learner), "it is complete"),
        };
        let proposed = Proposed { id: proposal, pg, base, change: Some(change), reason: reason.into() };
        if let Some(node) = self.nodes.get_mut(&id) {
            node.proposals.insert(proposal, proposed.clone());
        }
        self.send_up(Peer::Node(id), Up::Propose(proposed));
        if self.is(Canary::OutcomeGuessed) {
            self.feed(id, pg, Input::Outcome { proposal, accepted: false, config: None });
        }
    }

    // ---- streams ----

    pub fn send_up(&mut self, peer: Peer, message: Up) {
        let (delay, now) = (self.delay(), self.now);
        let blocked = self.is_blocked(number(peer), COORDINATOR);
        let Some(stream) = self.controls.get_mut(&peer).filter(|s| s.up) else { return };
        if let Some(at) = stream.arrival(0, now + delay, blocked) {
            let conn = stream.connection;
            self.at(at, Event::Up { peer, conn, message });
        }
    }

    pub fn up(&mut self, peer: Peer, conn: u64, message: Up) {
        if self.coordinator.up && self.controls.get(&peer).is_some_and(|s| s.connection == conn) {
            let now = self.coordinator_now();
            self.coordinator.handle(conn, message, now);
            self.after_turn();
        }
    }

    /// Sends what the coordinator's turn let out, and checks what it recorded.
    pub fn after_turn(&mut self) {
        for text in std::mem::take(&mut self.coordinator.told) {
            self.log(|| format!("coordinator: {text}"));
        }
        if let Some(text) = self.coordinator.failure.take() {
            self.fail(text);
        }
        for (peer, conn, message) in self.coordinator.take_out() {
            let (delay, now) = (self.delay(), self.now);
            let blocked = self.is_blocked(COORDINATOR, number(peer));
            let Some(stream) = self.controls.get_mut(&peer).filter(|s| s.up && s.connection == conn) else { continue };
            if let Some(at) = stream.arrival(1, now + delay, blocked) {
                self.at(at, Event::Down { peer, conn, message });
            }
        }
        self.check_configs();
    }

    pub fn down(&mut self, peer: Peer, conn: u64, message: Down) {
        if !self.is_peer_awake(peer) {
            return;
        }
        let now = self.now;
        let Some(stream) = self.controls.get_mut(&peer).filter(|s| s.up && s.connection == conn) else { return };
        stream.heard = now;
        if let (Peer::Gateway(i), false) = (peer, matches!(message, Down::Ack)) {
            self.log(|| format!("gateway {i} <- {}", crate::show::clip(&format!("{message:?}"))));
        }
        match (peer, message) {
            (Peer::Node(id), Down::Map { map, changed }) => {
                if let Some(node) = self.nodes.get_mut(&id) {
                    node.map = map;
                }
                self.map_changed(id, changed);
            }
            (Peer::Node(id), Down::Outcome { pg, proposal, accepted, config }) => {
                if let Some(node) = self.nodes.get_mut(&id) {
                    node.proposals.remove(&proposal);
                }
                self.feed(id, pg, Input::Outcome { proposal, accepted, config });
            }
            (Peer::Node(id), Down::Purge(purge)) => self.purge(id, purge),
            (Peer::Gateway(i), Down::Map { map, .. }) => {
                let map = if self.is(Canary::StripeChanged) && self.now > 2_000 * MS { self.turned(&map) } else { map };
                self.gateways[i].handle_map(map);
                self.dispatch(i);
            }
            (Peer::Gateway(i), Down::Granted(incarnation, lost)) => {
                let g = &mut self.gateways[i];
                if g.attached && g.incarnation != incarnation {
                    return self.gateway_lost(i);
                }
                g.grant(incarnation, lost);
                self.dispatch(i);
            }
            (Peer::Gateway(i), Down::Standby) if self.gateways[i].attached => self.gateway_lost(i),
            (Peer::Gateway(i), Down::Fenced) => self.gateway_lost(i),
            (_, Down::Ack | Down::Standby) => {}
            (peer, message) => self.fail(format!("{peer:?} is told {message:?}")),
        }
    }

    /// A peer gives its link up, or its process ends; the coordinator hears of it or not.
    pub fn end_control(&mut self, peer: Peer, closes: bool) {
        let Some(stream) = self.controls.get_mut(&peer).filter(|s| s.up) else { return };
        stream.up = false;
        let conn = stream.connection;
        self.log(|| format!("{peer:?} ends its link {conn} to the coordinator"));
        let me = number(peer);
        let heard = !self.is_blocked(me, COORDINATOR) && (closes || self.rng.chance(300));
        let (soon, late) = (self.now + self.delay(), self.now + self.rng.range(1_000, 3_000) * MS);
        // Behind all that it said.
        let stream = self.controls.entry(peer).or_default();
        let at = if heard { stream.arrival(0, soon, false) } else { None };
        self.at(at.unwrap_or(late), Event::Closed { conn, by_process: at.is_some() });
        if self.is_peer_awake(peer) {
            let life = self.life_of(peer);
            self.after(RETRY_NS, Event::Dial { peer, life });
        }
    }

    pub fn control_closed(&mut self, conn: u64, by_process: bool) {
        if self.coordinator.up {
            let now = self.coordinator_now();
            self.coordinator.closed(conn, by_process, now);
            self.after_turn();
        }
    }

    /// The coordinator's process has ended.
    pub fn control_down(&mut self, peer: Peer, conn: u64) {
        let Some(stream) = self.controls.get_mut(&peer).filter(|s| s.up && s.connection == conn) else { return };
        stream.up = false;
        let life = self.life_of(peer);
        self.after(RETRY_NS, Event::Dial { peer, life });
    }

    // ---- the coordinator's process ----

    pub fn coordinator_tick(&mut self) {
        self.after(TICK_NS, Event::CoordinatorTick);
        if !self.coordinator.up || self.coordinator_frozen.is_some() {
            return;
        }
        if self.now < self.faults_until && self.rng.chance(30) {
            self.want_something();
        }
        let now = self.coordinator_now();
        self.coordinator.turn(now);
        self.after_turn();
    }

    /// A move or another primary, as a plan might want them.
    fn want_something(&mut self) {
        let Some(pg) = self.rng.pick(&self.layout).copied() else { return };
        let config = self.coordinator.config(pg);
        let Some(member) = self.rng.pick(&config.members).copied() else { return };
        let spares: Vec<DiskId> =
            self.ids().into_iter().filter(|d| !config.members.iter().any(|m| m.disk == *d)).collect();
        if self.rng.chance(300) {
            self.coordinator.want_primary(pg, member.disk);
        } else if let Some(to) = self.rng.pick(&spares).copied() {
            self.coverage.add("moves wanted", 1);
            self.coordinator.want_move(pg, member.disk, to);
        }
    }

    pub fn coordinator_crash(&mut self, down_ns: u64) {
        if !self.coordinator.up || self.coordinator_frozen.is_some() {
            return;
        }
        self.log(|| "the coordinator crashes".into());
        self.coverage.add("coordinator restarts", 1);
        self.coordinator.crash();
        let up: Vec<(Peer, u64)> =
            self.controls.iter().filter(|(_, s)| s.up).map(|(p, s)| (*p, s.connection)).collect();
        for (peer, conn) in up {
            if self.rng.chance(500) {
                let delay = self.rng.range(1, 200) * MS;
                self.after(delay, Event::ControlDown { peer, conn });
            }
        }
        self.after(down_ns, Event::CoordinatorUp);
    }

    pub fn coordinator_freeze(&mut self, for_ns: u64) {
        if self.coordinator.up && self.coordinator_frozen.is_none() {
            self.log(|| "the coordinator stands still".into());
            self.coverage.add("coordinator freezes", 1);
            self.coordinator_frozen = Some((self.now, Vec::new()));
            self.after(for_ns, Event::CoordinatorUp);
        }
    }

    pub fn coordinator_goes_on(&mut self) {
        let now = self.coordinator_now();
        if let Some((since, backlog)) = self.coordinator_frozen.take() {
            if self.now > since + 400 * MS {
                self.coordinator.frozen(Duration::from_nanos(self.now - since), now);
            }
            backlog.into_iter().for_each(|event| self.at(self.now, event));
        } else if !self.coordinator.up {
            self.log(|| "the coordinator starts".into());
            self.coordinator.start(now);
        }
    }

    // ---- what is recorded ----

    /// What any recorded configuration must satisfy.
    fn check_configs(&mut self) {
        for pg in self.coordinator.pgs() {
            let new = self.coordinator.config(pg);
            let Some(old) = self.configs.insert(pg, new.clone()) else { continue };
            if old == new {
                continue;
            }
            self.log(|| format!("coordinator: PG {} is {}", pg.index, crate::show::config(&new)));
            let disks: BTreeSet<DiskId> = new.members.iter().map(|m| m.disk).collect();
            if new.members.is_empty() || disks.len() != new.members.len() {
                self.fail(format!("the coordinator recorded {}", crate::show::config(&new)));
            }
            if new.generation < old.generation {
                let (a, b) = (crate::show::config(&old), crate::show::config(&new));
                self.fail(format!("the coordinator went back from {a} to {b} (R4)"));
            }
            let recovered = new.durability_epoch != old.durability_epoch;
            // Only after a restart of all members is one enough (R2, R5).
            if new.members.len() < self.min_replicas && new.members.len() < old.members.len() && !recovered {
                self.fail(format!("{} is below min_replicas (R5)", crate::show::config(&new)));
            }
            let beyond = old.members.len() > self.replicas && new.members.len() < old.members.len();
            self.coverage.add("surplus copies given up", u64::from(beyond && !recovered));
            if recovered {
                let waiting = |m: &&evenkeel::core::cluster::Replica| {
                    self.nodes.get(&m.disk).is_some_and(|n| {
                        let whole = n.disk.states.get(&pg).is_some_and(|s| s.complete);
                        n.disk.boot == m.boot && !n.disk.failed && whole
                    })
                };
                let left_out = old.members.iter().find(waiting).map(|m| m.disk);
                if let Some(disk) = left_out.filter(|_| !self.is(Canary::BootIdKept)) {
                    self.fail(format!("{disk} has not restarted, but another copy is taken as the truth (R2)"));
                }
                self.coverage.add("whole-PG recoveries (R2)", 1);
                let layout = self.layout.clone();
                self.model.power_lost(|at| layout[at.0 as usize % layout.len()] == pg);
            } else if old.primary() != new.primary() {
                let live = old.primary().is_some_and(|p| self.coordinator.is_live(p));
                self.coverage.add(if live { "primaries changed" } else { "failovers" }, 1);
            } else if new.members.len() < old.members.len() {
                self.coverage.add("removals", 1);
            } else if new.members != old.members {
                self.coverage.add("promotions", 1);
            }
        }
    }

    // ---- the operator ----

    pub fn drain(&mut self, id: DiskId, for_ns: u64) {
        let now = self.coordinator_now();
        if !self.coordinator.up || self.coordinator_frozen.is_some() {
            return;
        }
        if self.coordinator.set_node_state(id, NodeAdminState::Draining, now) {
            self.log(|| format!("{id} is drained"));
            self.coverage.add("drains", 1);
            self.after(for_ns, Event::Undrain { node: id });
        }
        self.after_turn();
    }

    /// A job is paused (0), resumed (1) or cancelled.
    pub fn change_job(&mut self, choice: u64) {
        if !self.coordinator.up || self.coordinator_frozen.is_some() {
            return;
        }
        let now = self.coordinator_now();
        if let Some(done) = self.coordinator.change_job(choice, now) {
            self.log(|| done.to_owned());
            self.coverage.add(done, 1);
        }
        self.after_turn();
    }

    pub fn undrain(&mut self, id: DiskId) {
        if !self.coordinator.is_draining(id) {
            return;
        }
        if !self.coordinator.up || self.coordinator_frozen.is_some() {
            return self.after(RETRY_NS, Event::Undrain { node: id });
        }
        let now = self.coordinator_now();
        self.coordinator.set_node_state(id, NodeAdminState::Active, now);
        self.after_turn();
    }

    /// The old map with the volume's chunks cycling the other way (a canary).
    fn turned(&self, map: &evenkeel::core::cluster::ClusterMap) -> std::sync::Arc<evenkeel::core::cluster::ClusterMap> {
        let mut map = map.clone();
        for stripe in map.volumes.values_mut().flat_map(|v| &mut v.stripes) {
            stripe.pgs.rotate_left(1);
        }
        std::sync::Arc::new(map)
    }

    /// The streams of a peer that can't be reached any more die silently.
    pub fn block_control(&mut self, from: u32, to: u32) {
        for (peer, stream) in self.controls.iter_mut().filter(|(_, s)| s.up) {
            let me = number(*peer);
            if (me, COORDINATOR) == (from, to) {
                stream.last[0] = STUCK;
            } else if (COORDINATOR, me) == (from, to) {
                stream.last[1] = STUCK;
            }
        }
    }
}
