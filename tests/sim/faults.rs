//! What goes wrong, at random: processes, hosts, disks, network, gateways, the coordinator; and what the operator does
//! meanwhile.

use evenkeel::core::ids::{BootId, DiskId};

use crate::canary::Canary;
use crate::clients::ClientLink;
use crate::disk::Disk;
use crate::leases::HANGS_NS;
use crate::network::Conn;
use crate::world::{COORDINATOR, Event, GATEWAY, MS, Node, World};

impl World {
    pub fn fault(&mut self) {
        if self.now >= self.faults_until {
            return;
        }
        let next = match self.rng.below(10) {
            0..3 => self.rng.range(1, 60),
            3..7 => self.rng.range(100, 800),
            _ => self.rng.range(800, 3_000),
        };
        self.after(next * MS, Event::Fault);
        let ids = self.ids();
        let mut target = self.rng.pick(&ids).copied().unwrap_or_default();
        let pg = self.rng.pick(&self.layout).copied().unwrap_or(self.layout[0]);
        if self.rng.chance(400)
            && let Some(primary) = self.coordinator.config(pg).primary()
        {
            target = primary.disk;
        }
        let down = if self.rng.chance(500) { self.rng.range(5, 300) } else { self.rng.range(300, 4_000) } * MS;
        let other = self.rng.pick(&ids).copied().unwrap_or_default();
        match self.rng.below(120) {
            0..22 => self.crash(target, down),
            22..30 => self.stop_clean(target, down),
            30..35 => self.power_loss(),
            35..50 => self.reset_links(target, other),
            50..54 => self.break_some_client(),
            54..58 => self.break_some_session(),
            58..68 => {
                self.log(|| format!("{target} and {other} are cut off from each other"));
                self.coverage.add("partitions", 1);
                let one_way = self.rng.chance(400);
                self.block(target.0, other.0, down);
                if !one_way {
                    self.block(other.0, target.0, down);
                }
            }
            68..76 => self.cut_off(target, down),
            76..82 => self.freeze(target, down),
            82..88 => self.change_gateway(),
            88..91 => self.coordinator_crash(down),
            91..93 => self.coordinator_freeze(down),
            93..96 => {
                if let Some(n) = self.nodes.get_mut(&target) {
                    n.disk.full = true;
                    self.coverage.add("disk full", 1);
                    self.after(down, Event::NotFull { node: target });
                }
            }
            96..99 => self.rot(target),
            99..101 => self.fail_disk(target),
            101..103 => self.hang_disk(target, down),
            103..106 => self.cut_from_gateways(target, down),
            106..109 => self.drain_some(target, down),
            109..112 => self.change_copies(),
            112..119 => {
                let choice = self.rng.below(3);
                self.change_job(choice);
            }
            _ => self.join(),
        }
    }

    pub fn power_loss(&mut self) {
        self.coverage.add("power losses of all", 1);
        for id in self.ids() {
            let down = self.rng.range(5, 1_500) * MS;
            self.crash(id, down);
        }
    }

    fn reset_links(&mut self, target: DiskId, other: DiskId) {
        self.log(|| format!("links of {target} and {other} are reset"));
        let pair: [Conn; 2] = [(target, other), (other, target)];
        for conn in pair.into_iter().filter(|c| c.0 != c.1) {
            if self.rng.chance(700) {
                self.coverage.add("stream resets", 1);
                self.reset_conn(conn);
            }
        }
    }

    fn break_some_client(&mut self) {
        let up: Vec<ClientLink> = self.clients.iter().filter(|(_, s)| s.up).map(|(l, _)| *l).collect();
        if let Some(link) = self.rng.pick(&up).copied() {
            self.log(|| format!("the link of gateway {} to {} breaks", link.0, link.1));
            self.break_client(link);
        }
    }

    fn break_some_session(&mut self) {
        let up: Vec<_> = self.sessions.iter().filter(|(_, s)| s.up).map(|(key, _)| *key).collect();
        if let Some(key) = self.rng.pick(&up).copied() {
            self.log(|| format!("the session {} to {} breaks", key.1.0, key.1.1));
            self.coverage.add("session breaks", 1);
            self.break_session(key);
        }
    }

    fn cut_off(&mut self, target: DiskId, down: u64) {
        self.log(|| format!("{target} is cut off"));
        self.coverage.add("partitions", 1);
        let (coordinator, gateways) = (self.rng.chance(700), self.rng.chance(500));
        for id in self.ids() {
            self.block(target.0, id.0, down);
            self.block(id.0, target.0, down);
        }
        if coordinator {
            self.block(target.0, COORDINATOR, down);
            self.block(COORDINATOR, target.0, down);
        }
        if gateways {
            self.cut_from_gateways(target, down);
        }
    }

    fn cut_from_gateways(&mut self, target: DiskId, down: u64) {
        self.log(|| format!("no gateway reaches {target}"));
        for g in 0..self.gateways.len() as u32 {
            self.block(target.0, GATEWAY + g, down);
            self.block(GATEWAY + g, target.0, down);
        }
    }

    fn freeze(&mut self, target: DiskId, down: u64) {
        if let Some(n) = self.nodes.get_mut(&target).filter(|n| n.is_awake()) {
            n.frozen = true;
            self.log(|| format!("{target} freezes"));
            self.coverage.add("freezes", 1);
            self.after(down, Event::Thaw { node: target });
        }
    }

    /// The volume goes to another gateway: the old one is dead, or is pushed out, or hands over.
    fn change_gateway(&mut self) {
        let i = self.gateways.len() - 1;
        let old = &self.gateways[i];
        if old.alive && (!old.is_in() || old.leaving) {
            return;
        }
        match self.rng.below(4) {
            0 | 1 => {
                let same_name = self.rng.chance(500);
                let name = if same_name { old.name.clone() } else { format!("g{}", i + 1) };
                self.log(|| format!("gateway {i} is dead, {name} takes over"));
                self.gateway_dies(i);
                // Its own incarnation comes back without a word of the operator.
                self.new_gateway(name, !same_name);
            }
            2 => {
                self.log(|| format!("gateway {i} is pushed out"));
                self.new_gateway(format!("g{}", i + 1), true);
            }
            _ => {
                self.log(|| format!("gateway {i} hands over"));
                self.gateways[i].leaving = true;
                self.new_gateway(format!("g{}", i + 1), false);
            }
        }
    }

    fn rot(&mut self, target: DiskId) {
        // At most one copy of a block may be bad, else there is nothing to repair from.
        if self.rots == 0
            && let Some(n) = self.nodes.get_mut(&target)
            && n.disk.rot(&mut self.rng)
        {
            self.rots += 1;
            self.gateways.iter_mut().for_each(|g| g.rotten = true);
            self.coverage.add("bit rot", 1);
        }
    }

    fn fail_disk(&mut self, target: DiskId) {
        let ignored = self.is(Canary::FailedFsyncIgnored);
        if self.may_lose_a_disk()
            && let Some(n) = self.nodes.get_mut(&target)
        {
            // The canary goes on as if the fsync could be tried again: the kernel has dropped what it did not write.
            n.disk.loses_flushes = ignored;
            n.disk.failed = !ignored;
            n.serving_changed = true;
            self.log(|| format!("the disk of {target} fails"));
            self.coverage.add("failed fsyncs", 1);
        }
    }

    /// What is on one more disk may go for good: every PG has two other copies, and the placement enough other disks.
    pub fn may_lose_a_disk(&self) -> bool {
        let failed = self.nodes.values().filter(|n| n.disk.failed).count();
        let draining = self.ids().into_iter().filter(|d| self.coordinator.is_draining(*d)).count();
        let whole = self.coordinator.map().pgs.values().all(|c| c.members.len() >= self.replicas);
        let enough = self.nodes.len() - failed - draining > self.replicas;
        self.replicas == 3 && whole && enough && self.coordinator.learners().is_empty()
    }

    fn hang_disk(&mut self, target: DiskId, down: u64) {
        let now = self.now;
        let long = self.rng.chance(500);
        if let Some(n) = self.nodes.get_mut(&target).filter(|n| n.up && n.hangs_until <= now) {
            let down = if long { down + HANGS_NS } else { down };
            (n.hangs_since, n.hangs_until) = (now, now + down);
            self.log(|| format!("the disk of {target} hangs for {} ms", down / MS));
            self.coverage.add(if long { "disk hangs" } else { "disk stalls" }, 1);
        }
    }

    fn drain_some(&mut self, target: DiskId, down: u64) {
        let out = |w: &World, d: DiskId| w.coordinator.is_draining(d) || w.nodes[&d].disk.failed;
        let active = self.ids().into_iter().filter(|d| !out(self, *d)).count();
        if active > self.replicas && !out(self, target) {
            // Some stay drained to the end.
            let down = if self.rng.chance(500) { down } else { 1_000_000 * MS };
            self.drain(target, down);
        }
    }

    /// The operator wants more or fewer copies of the pool's PGs.
    fn change_copies(&mut self) {
        let out = |w: &World, d: DiskId| w.coordinator.is_draining(d) || w.nodes[&d].disk.failed;
        let active = self.ids().into_iter().filter(|d| !out(self, *d)).count();
        let replicas = if self.replicas == 3 { 2 } else { 3 };
        if replicas > active || !self.coordinator.up || self.coordinator_frozen.is_some() {
            return;
        }
        let now = self.coordinator_now();
        if self.coordinator.set_replicas(replicas as u32, now) {
            self.replicas = replicas;
            self.log(|| format!("the pool keeps {replicas} copies from now on"));
            self.coverage.add(if replicas == 2 { "pools set to fewer copies" } else { "pools set to more copies" }, 1);
        }
        self.after_turn();
    }

    fn join(&mut self) {
        if self.spare_nodes == 0 || !self.coordinator.up || self.coordinator_frozen.is_some() {
            return;
        }
        self.spare_nodes -= 1;
        let now = self.coordinator_now();
        let Some(id) = self.coordinator.join(now) else { return };
        self.log(|| format!("{id} joins"));
        self.coverage.add("joins", 1);
        let boot = BootId(self.rng.next() | 1);
        let drift = self.rng.range(0, 10_000) as i64 - 5_000;
        self.nodes.insert(id, Node::new(Disk::new(boot, self.layout.clone()), drift));
        self.start(id, true);
        self.after_turn();
    }

    /// Faults end: everything comes back, except a link that stays cut (R8).
    pub fn calm(&mut self) {
        if let Some((id, ..)) = self.reader.request.take() {
            self.model.read_dropped(id);
        }
        self.log(|| "no more faults".into());
        self.lossy_parts = 0;
        self.slow = false;
        self.coordinator_goes_on();
        for (from, to) in self.blocked.clone() {
            self.unblock(from, to);
        }
        for id in self.ids() {
            self.thaw(id);
            let Some(node) = self.nodes.get_mut(&id) else { continue };
            node.disk.full = false;
            node.hangs_until = node.hangs_until.min(self.now);
            if !node.up {
                self.start(id, false);
            }
        }
        self.cut_one_for_good();
        for g in &mut self.gateways {
            g.busy = self.cut_for_good.is_some();
        }
    }

    /// A gateway and a primary, or a primary and a member, never hear each other again: IO must go on (R8).
    fn cut_one_for_good(&mut self) {
        if !self.rng.chance(200) || self.is_any_disk_failed() {
            return;
        }
        let pg = self.layout[0];
        let config = self.coordinator.config(pg);
        let Some(primary) = config.primary().map(|p| p.disk.0) else { return };
        let last = GATEWAY + self.gateways.len() as u32 - 1;
        let member = config.members.get(1).map(|m| m.disk.0).filter(|_| self.min_replicas < self.replicas);
        let pair = match member {
            Some(member) if self.rng.chance(500) => (primary, member),
            _ if self.replicas > 1 => (last, primary),
            _ => return,
        };
        self.log(|| format!("{} and {} never hear each other again", pair.0, pair.1));
        self.coverage.add(if pair.0 == last { "gateways cut off for good" } else { "members cut off for good" }, 1);
        self.block(pair.0, pair.1, u64::MAX / 4);
        self.block(pair.1, pair.0, u64::MAX / 4);
        // A stream on which nothing is ever heard again ends by its transport's own time limit.
        let between = |c: &Conn| (c.0.0, c.1.0) == pair || (c.1.0, c.0.0) == pair;
        let silent: Vec<_> = self.sessions.keys().copied().filter(|(_, c)| between(c)).collect();
        silent.into_iter().for_each(|key| self.break_session(key));
        self.cut_for_good = Some(pair);
    }

    fn is_any_disk_failed(&self) -> bool {
        self.nodes.values().any(|n| n.disk.failed)
    }
}
