//! Nodes' processes and their disks: starts and stops, what a disk is asked, purges.

use std::collections::BTreeMap;

use evenkeel::core::cluster::{PgConfig, Replica as Member};
use evenkeel::core::ids::{BootId, ClusterId, DiskId, PgId};
use evenkeel::core::manager::Purge;
use evenkeel::core::replica::{DiskOp, DiskResult, Input, PgState, Replica, Token};

use crate::canary::Canary;
use crate::coord::{Peer, Up};
use crate::disk::Covered;
use crate::world::{Event, MS, World};

impl World {
    pub fn disk_op(&mut self, id: DiskId, pg: PgId, token: Token, op: DiskOp) {
        let slow = self.slow;
        let delay = match self.rng.below(1_000) {
            0..900 => self.rng.range(20_000, 300_000),
            900..995 => self.rng.range(300_000, 4 * MS),
            _ if slow => self.rng.range(4 * MS, 900 * MS),
            _ => self.rng.range(4 * MS, 30 * MS),
        };
        let early = self.is(Canary::FlushJoinsEarlier);
        let at = self.now + delay;
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let flush = matches!(op, DiskOp::Flush { .. });
        let mut covered = if flush { node.disk.snapshot_unsynced() } else { BTreeMap::new() };
        if flush && early {
            std::mem::swap(&mut covered, &mut node.covered_before);
        }
        let (life, at) = (node.life, at.max(node.hangs_until));
        self.at(at, Event::Disk { node: id, life, pg, token, op: Some(op), covered });
    }

    pub fn disk_done(&mut self, id: DiskId, life: u64, pg: PgId, token: Token, op: Option<DiskOp>, covered: Covered) {
        let now = self.now;
        let canary = self.canary();
        let Some(node) = self.nodes.get_mut(&id) else { return };
        if node.life != life {
            return;
        }
        if node.hangs_until > now {
            let at = node.hangs_until;
            return self.at(at, Event::Disk { node: id, life, pg, token, op, covered });
        }
        if node.disk.failed {
            return self.feed(id, pg, Input::Disk { token, result: DiskResult::Failed("failed".into()) });
        }
        let Some(op) = op else {
            // The fdatasync behind a durable write.
            node.disk.synced(covered, None);
            return self.feed(id, pg, Input::Disk { token, result: DiskResult::Done });
        };
        let replica = node.replicas.get(&pg);
        if let DiskOp::Flush { mark } = op {
            let learns = replica.is_some_and(|r| !r.is_complete());
            if !(learns && canary == Some(Canary::LearnerNotSynced)) {
                node.disk.synced(covered, Some((pg, mark)));
            }
            return self.feed(id, pg, Input::Disk { token, result: DiskResult::Done });
        }
        let durable = matches!(op, DiskOp::Apply { durable: true, .. });
        let secondary = replica.is_some_and(|r| !r.is_primary() && !r.is_outside());
        let skips = canary == Some(Canary::OperationSkipped) && secondary && matches!(op, DiskOp::Apply { .. });
        let result = if skips && self.rng.chance(100) { DiskResult::Done } else { node.disk.run(pg, op) };
        if durable && matches!(result, DiskResult::Done) {
            let covered = node.disk.snapshot_unsynced();
            let delay = self.rng.range(50_000, 2 * MS);
            return self.at(now + delay, Event::Disk { node: id, life, pg, token, op: None, covered });
        }
        self.feed(id, pg, Input::Disk { token, result });
    }

    /// Makes a replica for a PG that the disk knows nothing of.
    pub fn ensure(&mut self, id: DiskId, pg: PgId) {
        let Some(node) = self.nodes.get_mut(&id).filter(|n| n.up && !n.replicas.contains_key(&pg)) else { return };
        let me = Member { disk: id, boot: node.disk.boot };
        node.replicas.insert(pg, Replica::new(pg, me, None));
        // As the engine does: the disk may have given a copy up.
        let without = node.map.pgs.get(&pg).filter(|c| !c.members.iter().any(|m| m.disk == id)).cloned();
        if let Some(config) = without {
            self.feed(id, pg, Input::Config(config));
        }
    }

    pub fn start(&mut self, id: DiskId, clean: bool) {
        let boot = BootId(self.rng.next() | 1);
        let keep_boot = self.is(Canary::BootIdKept);
        let (now, canary) = (self.now, self.canary());
        let Some(node) = self.nodes.get_mut(&id).filter(|n| !n.up) else { return };
        if !clean {
            let boot = if keep_boot { node.disk.boot } else { boot };
            let torn = node.disk.crash(boot, &mut self.rng);
            self.coverage.add("torn blocks", torn);
            self.coverage.add("torn recoveries", u64::from(torn > 0));
        } else {
            self.damage_records(id);
        }
        let Some(node) = self.nodes.get_mut(&id) else { return };
        node.disk.canary = canary;
        node.up = true;
        node.life += 1;
        node.started = node.local(now);
        node.grants.clear();
        node.holds.clear();
        node.heard.clear();
        node.reachable.clear();
        node.frozen = false;
        node.map = Default::default();
        node.early.clear();
        node.proposals.clear();
        node.accepted.clear();
        node.serving_changed = false;
        let me = Member { disk: id, boot: node.disk.boot };
        node.replicas =
            node.disk.states.iter().map(|(pg, state)| (*pg, Replica::new(*pg, me, Some(state.clone())))).collect();
        let life = node.life;
        self.log(|| format!("{id} starts, {}, boot {}", if clean { "clean" } else { "after a crash" }, me.boot));
        for other in self.ids().into_iter().filter(|d| *d != id) {
            for conn in [(id, other), (other, id)] {
                self.reset_conn(conn);
            }
        }
        self.after(MS, Event::Dial { peer: Peer::Node(id), life });
        self.after(2 * MS, Event::Housekeeping { node: id, life });
        self.after(3 * MS, Event::Stats { node: id, life });
    }

    /// While a cleanly stopped node was down, what its disk has of a PG was damaged (R21): a record's newer copy, so that
    /// the older one counts, as incomplete; or all of it, so that the disk can't say what it once promised.
    fn damage_records(&mut self, id: DiskId) {
        let chance = if self.is(Canary::LostRecordIsComplete) { 1_000 } else { 300 };
        if self.now >= self.faults_until || !self.rng.chance(chance) || !self.may_lose_a_disk() || self.records_damaged
        {
            return;
        }
        let all = self.rng.chance(500);
        let believed = self.is(Canary::LostRecordIsComplete);
        let boot = BootId(self.rng.next() | 1);
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let known: Vec<PgId> = node.disk.states.keys().copied().collect();
        let Some(pg) = self.rng.pick(&known).copied() else { return };
        self.records_damaged = true;
        if all {
            let state = node.disk.states.get(&pg).cloned();
            node.disk.purge(pg);
            if let Some(state) = state.filter(|_| believed) {
                node.disk.states.insert(pg, state);
            } else {
                node.disk.boot = boot;
            }
            self.coverage.add("PG records lost", 1);
        } else if let Some(older) = node.disk.older_states.get(&pg).cloned() {
            node.disk.states.insert(pg, PgState { complete: believed && older.complete, ..older });
            self.coverage.add("PG records damaged", 1);
        }
        self.log(|| format!("{id} {} of PG {pg}", if all { "loses everything" } else { "has an older record" }));
    }

    /// The process dies, and the host's cache is lost.
    pub fn crash(&mut self, id: DiskId, down_ns: u64) {
        let Some(node) = self.nodes.get_mut(&id).filter(|n| n.up) else { return };
        (node.up, node.life, node.hangs_until) = (false, node.life + 1, 0);
        node.replicas.clear();
        self.thaw(id);
        self.log(|| format!("{id} crashes"));
        self.coverage.add("crashes", 1);
        self.cut(id);
        self.end_control(Peer::Node(id), false);
        self.after(down_ns, Event::Start { node: id, clean: false });
    }

    pub fn stop_clean(&mut self, id: DiskId, down_ns: u64) {
        let Some(node) = self.nodes.get(&id).filter(|n| n.is_awake() && !n.disk.failed && n.hangs_until <= self.now)
        else {
            return;
        };
        // What the disk has in its queue is done first, as its driver does.
        let life = node.life;
        let mine = |e: &Event| matches!(e, Event::Disk { node, life: l, .. } if *node == id && *l == life);
        let queued = self.take_events(mine);
        let Some(node) = self.nodes.get_mut(&id) else { return };
        for event in queued {
            if let Event::Disk { pg, op: Some(op), .. } = event {
                drop(node.disk.run(pg, op));
            }
        }
        let states = node.replicas.iter().map(|(pg, r)| (*pg, r.state())).collect();
        node.replicas.clear();
        (node.up, node.life) = (false, node.life + 1);
        let clean = node.disk.stop(states);
        self.log(|| format!("{id} stops cleanly"));
        self.coverage.add("clean restarts", 1);
        self.cut(id);
        self.end_control(Peer::Node(id), true);
        self.after(down_ns, Event::Start { node: id, clean });
    }

    // ---- the map ----

    pub fn map_changed(&mut self, id: DiskId, changed: Vec<PgConfig>) {
        for config in changed {
            if config.members.iter().any(|m| m.disk == id) {
                self.ensure(id, config.pg);
            }
            self.feed(id, config.pg, Input::Config(config));
        }
        debug_assert_ne!(self.coordinator.map().cluster, ClusterId::default());
        let early = self.nodes.get_mut(&id).map(|n| std::mem::take(&mut n.early)).unwrap_or_default();
        for (conn, epoch, from, pg, message) in early {
            self.deliver(conn, epoch, from, id, pg, message);
        }
    }

    /// The coordinator wants a copy gone.
    pub fn purge(&mut self, id: DiskId, purge: Purge) {
        let guarded = !self.is(Canary::PurgeBeforeSwap);
        let now = self.now;
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let listed =
            node.map.pgs.get(&purge.pg).is_some_and(|c| {
                c.members.iter().any(|m| m.disk == id) || c.learners.iter().any(|l| l.replica.disk == id)
            });
        let newer = node
            .replicas
            .get(&purge.pg)
            .is_some_and(|r| r.config().generation > purge.up_to || !r.is_outside() || r.is_learning());
        let busy = node.replicas.get(&purge.pg).is_some_and(Replica::has_disk_work);
        if (guarded && (listed || newer || busy)) || node.hangs_until > now {
            return;
        }
        node.replicas.remove(&purge.pg);
        node.disk.purge(purge.pg);
        self.log(|| format!("{id} gives its copy of PG {} up", purge.pg));
        self.coverage.add("copies given up", 1);
        self.send_up(Peer::Node(id), Up::Purged(purge.pg, id));
    }
}
