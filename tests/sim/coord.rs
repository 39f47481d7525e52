//! The coordinator after rules R1–R8: who lives, who leads, who learns.

use std::collections::{BTreeMap, BTreeSet};

use evenkeel::core::cluster::{Learner, PgConfig, Replica as Member, ResyncClass};
use evenkeel::core::ids::{BootId, DiskId, Generation, PgId};
use evenkeel::core::replica::Change;

use crate::rng::Rng;

const MS: u64 = 1_000_000;
const ACCUSED_NS: u64 = 2_000 * MS;

/// What a node says of its disk.
#[derive(Clone, Copy)]
pub struct Heard {
    pub boot: BootId,
    pub at: u64,
    pub complete: bool,
    pub generation: Generation,
    pub mark: u64,
    pub failed: bool,
}

pub struct Coordinator {
    pub config: PgConfig,
    pub replicas: usize,
    pub min_replicas: usize,
    pub up: bool,
    /// A node that hasn't been heard for this long isn't live. Sometimes it is less than a lease: safety must not
    /// depend on it.
    pub dead_ns: u64,
    heard: BTreeMap<DiskId, Heard>,
    accused: BTreeMap<Member, (u64, u64)>,
    /// Learners that became members: complete, whatever their disks' records say yet.
    promoted: BTreeSet<Member>,
    /// When the member count was first seen to be too low.
    short_since: Option<u64>,
    pub failovers: u64,
    pub removals: u64,
    pub promotions: u64,
    pub recoveries: u64,
    pub moves: u64,
    pub incarnation: u64,
    /// Canary.
    pub no_minimum: bool,
}

impl Coordinator {
    pub fn new(pg: PgId, members: Vec<Member>, replicas: usize, min_replicas: usize) -> Self {
        let generation = Generation { epoch: 1, n: 1 };
        Coordinator {
            config: PgConfig {
                pg,
                generation,
                durability_epoch: 1,
                members,
                learners: Vec::new(),
                last_proposal: 0,
                forced: false,
                members_min: 0,
            },
            replicas,
            min_replicas,
            up: true,
            dead_ns: 1_000 * MS,
            heard: BTreeMap::new(),
            accused: BTreeMap::new(),
            promoted: BTreeSet::new(),
            short_since: None,
            failovers: 0,
            removals: 0,
            promotions: 0,
            recoveries: 0,
            moves: 0,
            incarnation: 0,
            no_minimum: false,
        }
    }

    pub fn hear(&mut self, disk: DiskId, heard: Heard) {
        self.heard.insert(disk, heard);
    }

    pub fn is_live(&self, m: Member, now: u64) -> bool {
        self.heard.get(&m.disk).is_some_and(|h| h.boot == m.boot && !h.failed && now < h.at + self.dead_ns)
    }

    fn next(&mut self) {
        self.config.generation = self.config.generation.next();
        let members = self.config.members.clone();
        self.config.learners.retain(|l| !members.contains(&l.replica));
        for l in &mut self.config.learners {
            l.replaces = l.replaces.filter(|d| members.iter().any(|m| m.disk == *d));
        }
    }

    /// A proposal; the answer is (accepted, the configuration now).
    pub fn propose(&mut self, from: DiskId, id: u64, base: Generation, change: &Change, now: u64) -> (bool, PgConfig) {
        let accepted = self.config.last_proposal == id
            || base == self.config.generation
                && self.config.primary().is_some_and(|p| p.disk == from)
                && self.carry_out(change, now);
        if accepted {
            self.config.last_proposal = id;
        }
        (accepted, self.config.clone())
    }

    fn carry_out(&mut self, change: &Change, now: u64) -> bool {
        match change {
            Change::Remove(gone) => {
                for g in gone {
                    let accused = self.accused.entry(*g).or_insert((now, now));
                    // An accusation that wasn't repeated lately starts anew.
                    *accused = if now > accused.1 + 1_000 * MS { (now, now) } else { (accused.0, now) };
                }
                let rest = self.config.members.iter().filter(|m| !gone.contains(m)).count();
                let stands = |g: &Member| self.accused.get(g).is_some_and(|(since, _)| now >= since + ACCUSED_NS);
                let guilty = gone.iter().all(|g| {
                    self.config.is_member(*g)
                        && Some(*g) != self.config.primary()
                        && (!self.is_live(*g, now) || stands(g))
                });
                let minimum = if self.no_minimum { 1 } else { self.min_replicas.max(1) };
                if !guilty || rest < minimum {
                    return false;
                }
                self.config.members.retain(|m| !gone.contains(m));
                self.removals += 1;
                self.next();
                true
            }
            Change::Promote(replica) => {
                let Some(at) = self.config.learners.iter().position(|l| l.replica == *replica) else { return false };
                if !self.is_live(*replica, now) {
                    return false;
                }
                self.promoted.insert(*replica);
                let learner = self.config.learners.remove(at);
                match learner.replaces.and_then(|d| self.config.members.iter().position(|m| m.disk == d)) {
                    Some(seat) => self.config.members[seat] = *replica,
                    None => {
                        self.config.members.push(*replica);
                        while self.config.members.len() > self.replicas {
                            let dead = self.config.members.iter().rposition(|m| !self.is_live(*m, now));
                            let Some(dead) = dead else { break };
                            self.config.members.remove(dead);
                        }
                    }
                }
                self.promotions += 1;
                if self.config.has_enough() {
                    self.config.members_min = 0;
                }
                self.next();
                true
            }
        }
    }

    /// Looks after the PG; true if the configuration changed. `moves`: a rebalance may start now.
    pub fn tick(&mut self, now: u64, moves: bool, rng: &mut Rng) -> bool {
        let before = self.config.clone();
        let live: Vec<Member> = self.config.members.iter().copied().filter(|m| self.is_live(*m, now)).collect();
        let Some(primary) = self.config.primary() else { return false };
        if live.is_empty() {
            self.recover(now);
        } else if !live.contains(&primary) {
            // One that is known to be complete comes first.
            let complete =
                |m: &&Member| self.promoted.contains(m) || self.heard.get(&m.disk).is_some_and(|h| h.complete);
            let complete: Vec<Member> = live.iter().filter(complete).copied().collect();
            if let Some(first) = rng.pick(&complete).copied() {
                let mut members = vec![first];
                let rest: Vec<Member> =
                    self.config.members.iter().copied().filter(|m| *m != first && *m != primary).collect();
                members.extend(rest);
                if members.len() < self.min_replicas {
                    members.push(primary);
                }
                self.config.members = members;
                self.failovers += 1;
                self.next();
            }
        }
        self.teach(now, moves, rng);
        self.config != before
    }

    /// R2: every member restarted.
    fn recover(&mut self, now: u64) {
        let back: Vec<(Member, Heard)> = self
            .config
            .members
            .iter()
            .filter_map(|m| self.heard.get(&m.disk).map(|h| (Member { disk: m.disk, boot: h.boot }, *h)))
            .filter(|(m, _)| self.is_live(*m, now))
            .collect();
        // A failed disk has been declared lost.
        let failed = |m: &&Member| self.heard.get(&m.disk).is_some_and(|h| h.failed);
        let lost = self.config.members.iter().filter(failed).count();
        if back.len() + lost < self.config.members.len() {
            return;
        }
        let best = back.iter().filter(|(_, h)| h.complete).max_by_key(|(m, h)| (h.generation, h.mark, m.disk));
        let Some((truth, _)) = best.copied() else { return };
        self.config.learners = back
            .iter()
            .filter(|(m, _)| *m != truth)
            .map(|(m, _)| Learner { replica: *m, replaces: None, class: ResyncClass::RepairCritical })
            .collect();
        self.config.members = vec![truth];
        self.config.members_min = self.min_replicas as u32;
        self.config.durability_epoch += 1;
        self.recoveries += 1;
        self.next();
    }

    fn teach(&mut self, now: u64, moves: bool, rng: &mut Rng) {
        let gone: Vec<Learner> =
            self.config.learners.iter().copied().filter(|l| !self.is_live(l.replica, now)).collect();
        self.config.learners.retain(|l| !gone.contains(l));
        let short =
            self.config.members.len() < self.replicas || self.config.members.iter().any(|m| !self.is_live(*m, now));
        self.short_since = if short { self.short_since.or(Some(now)) } else { None };
        let spares: Vec<Member> = self
            .heard
            .iter()
            .map(|(d, h)| Member { disk: *d, boot: h.boot })
            .filter(|m| self.is_live(*m, now) && !self.config.is_member(*m))
            .filter(|m| !self.config.learners.iter().any(|l| l.replica.disk == m.disk))
            .collect();
        // A member's disk that came back with a new boot id learns at once.
        for m in &spares {
            if self.config.members.iter().any(|x| x.disk == m.disk) {
                let learner = Learner { replica: *m, replaces: Some(m.disk), class: ResyncClass::Repair };
                self.config.learners.push(learner);
            }
        }
        let others: Vec<Member> =
            spares.iter().copied().filter(|m| !self.config.members.iter().any(|x| x.disk == m.disk)).collect();
        let Some(spare) = rng.pick(&others).copied() else { return };
        let adding = self.config.learners.iter().filter(|l| l.replaces.is_none()).count();
        if self.config.members.len() + adding < self.replicas {
            let class = ResyncClass::Repair;
            self.config.learners.push(Learner { replica: spare, replaces: None, class });
        } else if self.config.learners.is_empty() {
            let dead = self.config.members.iter().find(|m| !self.is_live(**m, now)).copied();
            let long = self.short_since.is_some_and(|s| now >= s + 3_000 * MS);
            let class = ResyncClass::Rebalance;
            if let Some(dead) = dead.filter(|_| long) {
                self.config.learners.push(Learner { replica: spare, replaces: Some(dead.disk), class });
            } else if moves && dead.is_none() && !short {
                let from = rng.pick(&self.config.members).copied().map(|m| m.disk);
                self.config.learners.push(Learner { replica: spare, replaces: from, class });
                self.moves += 1;
            }
        }
    }
}
