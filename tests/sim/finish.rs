//! A run from its start to its verdict: faults, then calm, then convergence, then a comparison of all copies.

use std::collections::BTreeMap;

use evenkeel::core::cluster::Replica as Member;
use evenkeel::core::ids::{DiskId, PgId};

use crate::gateway::Gateway;
use crate::world::{GATEWAY, MS, World};

/// Copies that two nodes which can't hear each other make and lose come back at longer and longer intervals (R8), and a plan
/// that could not place all is made again after 30 s.
const CONVERGENCE_NS: u64 = 200_000 * MS;

impl World {
    /// Runs to the end; `Err` says what went wrong.
    pub fn run(&mut self) -> Result<(), String> {
        while self.failure.is_none() && self.now < self.faults_until {
            self.step();
        }
        self.calm();
        let busy_until = self.now + 6_000 * MS;
        let mut deadline = self.now + CONVERGENCE_NS;
        while self.failure.is_none() && self.now < deadline {
            self.step();
            if self.now > busy_until {
                self.gateways.iter_mut().for_each(|g| g.busy = false);
            }
            if self.order.is_multiple_of(64) && self.coordinator.holds_back() {
                self.change_job(1); // The operator has thought better of it.
            }
            if self.order.is_multiple_of(64) && (self.cut_for_good.is_none() || self.now > busy_until) && self.is_calm()
            {
                deadline = 0;
            }
        }
        if self.failure.is_none() && deadline != 0 {
            if let Some(why) = self.is_excused() {
                self.coverage.add(why, 1);
                return Ok(());
            }
            let why = self.describe();
            self.fail(format!(
                "no convergence within {} s after the last fault (I7): {why}",
                CONVERGENCE_NS / MS / 1000
            ));
        }
        if self.failure.is_none() {
            self.compare();
        }
        self.count();
        self.failure.take().map_or(Ok(()), Err)
    }

    /// Why a run may end without convergence.
    fn is_excused(&self) -> Option<&'static str> {
        let replicas = || self.nodes.values().flat_map(|n| n.replicas.values());
        // The only good copy of a block was lost to bit rot: nothing can make that whole.
        if self.rots > 0 || replicas().any(|r| r.block_repairs().1 > 0) {
            return Some("not whole after bit rot");
        }
        let configs = self.coordinator.map().pgs.values();
        // The same if the disk of every member failed.
        let failed = |m: &Member| self.nodes.get(&m.disk).is_some_and(|n| n.disk.failed);
        if configs.clone().any(|c| c.members.iter().all(failed)) {
            return Some("all members' disks failed");
        }
        // With one copy as the minimum, a member that died before it had accepted its first configuration may have been
        // the last: an operator must say which older copy is to be taken (force-promote).
        for config in configs {
            let incomplete = |m: &Member| {
                let replica = self.nodes.get(&m.disk).and_then(|n| n.replicas.get(&config.pg));
                replica.is_some_and(|r| !r.state().complete)
            };
            if self.min_replicas == 1 && config.members.iter().all(incomplete) {
                return Some("operator must choose a copy");
            }
        }
        None
    }

    fn count(&mut self) {
        for (kind, n) in std::mem::take(&mut self.coordinator.events) {
            self.coverage.add(kind, n);
        }
        for g in &self.gateways {
            self.coverage.add("reads", g.reads);
            self.coverage.add("writes", g.writes);
            self.coverage.add("flushes", g.flushes);
            self.coverage.add("replays (R13)", g.replays);
            self.coverage.add("io errors", g.io_errors);
        }
        for r in self.nodes.values().flat_map(|n| n.replicas.values()) {
            self.coverage.add("blocks repaired", r.block_repairs().0);
        }
    }

    fn is_quiet(&self) -> bool {
        self.gateways.last().is_some_and(|g| g.is_quiet() && g.attached || !g.alive)
    }

    fn is_calm(&self) -> bool {
        if !self.is_quiet() {
            return false;
        }
        // Two members that never hear each other: the PG is served, and that must do.
        let apart = self.cut_for_good.is_some_and(|(a, _)| a < GATEWAY);
        let gone = |d: &DiskId| self.nodes[d].disk.failed || self.coordinator.is_draining(*d);
        let wanted = self.replicas.min(self.nodes.keys().filter(|d| !gone(d)).count());
        let served = self.layout.iter().all(|pg| self.is_served(*pg));
        let whole = || {
            self.coordinator.map().pgs.values().all(|config| {
                let right = |m: &Member| self.coordinator.is_live(*m) && !self.coordinator.is_draining(m.disk);
                let enough = (wanted..=self.replicas).contains(&config.members.len());
                config.learners.is_empty() && enough && config.members.iter().all(right)
            })
        };
        served && (apart || whole() && self.coordinator.is_settled() && !self.has_orphans())
    }

    fn is_served(&self, pg: PgId) -> bool {
        let config = self.coordinator.config(pg);
        let Some(primary) = config.primary() else { return false };
        self.nodes.get(&primary.disk).and_then(|n| n.replicas.get(&pg)).is_some_and(|r| {
            r.is_serving()
                && r.config().generation == config.generation
                && (r.sessions().next().is_none() || self.cut_for_good.is_some())
        })
    }

    /// A copy that nobody needs is left on a disk that works.
    fn has_orphans(&self) -> bool {
        let configs = &self.coordinator.map().pgs;
        let member = |pg: &PgId, disk: &DiskId| configs[pg].members.iter().any(|m| m.disk == *disk);
        self.nodes.iter().any(|(id, n)| !n.disk.failed && n.disk.states.keys().any(|pg| !member(pg, id)))
    }

    pub fn describe(&self) -> String {
        let mut text = String::new();
        for config in self.coordinator.map().pgs.values() {
            text += &format!("PG {} {}; ", config.pg.index, crate::show::config(config));
        }
        for (id, n) in &self.nodes {
            for (pg, r) in &n.replicas {
                let state = r.state();
                let role = if r.is_serving() {
                    "serves"
                } else if r.is_primary() {
                    "leads"
                } else {
                    "follows"
                };
                text += &format!(
                    "{id} {role} PG {} {} {} seq {}",
                    pg.index,
                    crate::show::config(r.config()),
                    if state.complete { "complete" } else { "incomplete" },
                    state.last_sequence
                );
                for s in r.sessions() {
                    text += &format!(" session to {} {}/{} ", s.learner, s.chunks_done, s.chunks_total);
                }
                text += "; ";
            }
            let marks = [(n.disk.failed, "failed"), (self.coordinator.is_draining(*id), "draining"), (!n.up, "down")];
            for (_, mark) in marks.iter().filter(|(is, _)| *is) {
                text += &format!("{id} is {mark}; ");
            }
        }
        let planning = &self.coordinator.manager.planning;
        let job = &planning.job;
        text += &format!("moves {:?}, surplus {:?}, plan pending {}; ", job.moves, job.removals, planning.is_pending());
        for (disk, view) in &self.coordinator.manager.runtime.disks {
            text += &format!("{disk} as the coordinator knows it {:x} {:?}; ", view.boot.0 & 0xfff, view.copies);
        }
        let (last, runtime) = (self.gateways.len() - 1, &self.coordinator.manager.runtime);
        for (pg, node) in self.layout.iter().flat_map(|pg| runtime.nodes.keys().map(move |n| (*pg, *n))) {
            if runtime.is_cut_off(pg, node) {
                text += &format!("{node} is cut off from the writer of PG {}; ", pg.index);
            }
        }
        text += &format!("the gateway can't reach {:?}; ", self.gateway_unreachable(last));
        text += &format!("gateway {}", self.gateways.last().map_or(String::new(), Gateway::describe));
        text
    }

    /// All replicas are identical, and what clients read is what they wrote.
    fn compare(&mut self) {
        let i = self.gateways.len() - 1;
        for round in 0..2 {
            match round {
                0 => self.gateways[i].read_all(self.now, &mut self.model),
                _ => self.gateways[i].flush_all(self.now, &mut self.model),
            }
            self.dispatch(i);
            let deadline = self.now + 20_000 * MS;
            while self.failure.is_none() && self.now < deadline && !self.gateways[i].is_quiet() {
                self.step();
            }
            if self.failure.is_none() && !self.gateways[i].is_quiet() && self.gateways[i].alive {
                let why = self.describe();
                self.fail(format!("IO hangs although nothing is wrong any more (I8): {why}"));
            }
        }
        let until = self.now + 300 * MS;
        while self.failure.is_none() && self.now < until {
            self.step();
        }
        for pg in self.layout.clone() {
            self.compare_pg(pg);
        }
    }

    fn compare_pg(&mut self, pg: PgId) {
        let members: Vec<DiskId> = self.coordinator.config(pg).members.iter().map(|m| m.disk).collect();
        let Some(first) = members.first().copied() else { return };
        let view = |id: &DiskId| {
            let disk = &self.nodes[id].disk;
            let mine = disk.chunks.iter().filter(|(id, c)| disk.pg_of(**id) == pg && !c.is_empty());
            mine.map(|(id, c)| (*id, c.leaves())).collect::<BTreeMap<_, _>>()
        };
        let truth = view(&first);
        for id in &members[1..] {
            let other = view(id);
            if other != truth {
                let mut text = format!("{first} and {id} differ:");
                for (chunk, leaves) in &truth {
                    let theirs = other.get(chunk);
                    let blocks: Vec<usize> =
                        (0..leaves.len()).filter(|b| theirs.is_none_or(|t| t[*b] != leaves[*b])).collect();
                    if !blocks.is_empty() {
                        text += &format!(" {chunk:?} blocks {blocks:?}");
                    }
                }
                return self.fail(text);
            }
        }
    }
}
