//! Leases and who answers: each node asks all others, for all PGs that it leads (R7).

use std::collections::BTreeMap;

use evenkeel::core::cluster::PgConfig;
use evenkeel::core::ids::{DiskId, Generation, PgId};
use evenkeel::core::replica::Input;

use crate::canary::Canary;
use crate::world::{Event, MS, World};

const LEASE_NS: u64 = 600 * MS;
const RENEWAL_NS: u64 = 150 * MS;
/// Clocks drift by up to 0.5 % each, so 1 % against each other.
const DRIFT_MARGIN_NS: u64 = 6 * MS;
const UNREACHABLE_NS: u64 = 500 * MS;
/// A disk that has answered nothing for so long hangs.
pub const HANGS_NS: u64 = 5_000 * MS;

#[derive(Clone, Copy)]
pub struct Grant {
    generation: Generation,
    primary: Option<DiskId>,
    until: u64,
}

/// What a primary holds: under which generation, and until when from whom.
pub type Hold = (Generation, BTreeMap<DiskId, u64>);

impl World {
    /// From now on this node grants under this configuration alone; when its earlier grants end.
    pub fn accept(&mut self, id: DiskId, config: &PgConfig) -> u64 {
        let ignore = self.is(Canary::GrantNotWaitedFor);
        let Some(node) = self.nodes.get_mut(&id) else { return 0 };
        let local = node.local(self.now);
        let primary = config.primary().map(|p| p.disk).filter(|p| *p != id);
        let member = config.members.iter().any(|m| m.disk == id);
        let first = node.started + LEASE_NS;
        let old = node.grants.get(&config.pg);
        let ends = old.map_or(first, |g| g.until.max(first));
        if old.is_none_or(|g| g.generation <= config.generation) {
            let grant = Grant { generation: config.generation, primary: primary.filter(|_| member), until: ends };
            node.grants.insert(config.pg, grant);
        }
        if ignore { local } else { ends }
    }

    /// Asks for leases, and looks who has answered lately.
    pub fn housekeeping(&mut self, id: DiskId, life: u64) {
        if self.nodes.get(&id).is_none_or(|n| !n.up || n.life != life) {
            return;
        }
        self.after(RENEWAL_NS, Event::Housekeeping { node: id, life });
        let node = &self.nodes[&id];
        let asked = node.local(self.now);
        // Renewal needs IO progress (R7).
        let works = !node.disk.failed && !self.hangs(id);
        let led = node.replicas.iter().filter(|(_, r)| works && r.is_primary());
        let entries: Vec<(PgId, Generation)> = led.map(|(pg, r)| (*pg, r.config().generation)).collect();
        let others: Vec<DiskId> = self.ids().into_iter().filter(|d| *d != id).collect();
        for to in &others {
            if !self.is_blocked(id.0, to.0) && !self.rng.chance(10) {
                let delay = self.delay();
                self.after(delay, Event::LeaseAsk { from: id, to: *to, life, entries: entries.clone(), asked });
            }
        }
        let now = self.now;
        for peer in others {
            let Some(node) = self.nodes.get_mut(&id) else { return };
            let heard = *node.heard.entry(peer).or_insert(now);
            let yes = now < heard + UNREACHABLE_NS;
            let news = node.reachable.insert(peer, yes).unwrap_or(true) != yes;
            // A configuration may be newer than what was told when the peer was already unreachable.
            let again = |r: &evenkeel::core::replica::Replica| !yes && r.is_primary() && r.others().contains(&peer);
            let told: Vec<PgId> = node.replicas.iter().filter(|(_, r)| news || again(r)).map(|(pg, _)| *pg).collect();
            told.into_iter().for_each(|pg| self.feed(id, pg, Input::Reachable { disk: peer, yes }));
        }
        if self.nodes.get_mut(&id).is_some_and(|n| std::mem::take(&mut n.serving_changed)) {
            self.report(id);
        }
    }

    /// The disk has hung for so long that its node says so, or did until a moment ago.
    pub fn hangs(&self, id: DiskId) -> bool {
        self.nodes.get(&id).is_some_and(|n| {
            n.hangs_until > n.hangs_since + HANGS_NS
                && self.now >= n.hangs_since + HANGS_NS
                && self.now < n.hangs_until + 2_000 * MS
        })
    }

    pub fn lease_ask(&mut self, from: DiskId, to: DiskId, life: u64, entries: &[(PgId, Generation)], asked: u64) {
        let now = self.now;
        let Some(node) = self.nodes.get_mut(&to).filter(|n| n.up) else { return };
        let until = node.local(now) + LEASE_NS;
        let mut granted = Vec::new();
        for (pg, generation) in entries {
            if let Some(g) = node.grants.get_mut(pg)
                && g.generation == *generation
                && g.primary == Some(from)
            {
                g.until = g.until.max(until);
                granted.push((*pg, *generation));
            }
        }
        if !self.is_blocked(to.0, from.0) && !self.rng.chance(10) {
            let delay = self.delay();
            self.after(delay, Event::LeaseAnswer { from: to, to: from, life, entries: granted, asked });
        }
    }

    pub fn lease_answer(&mut self, from: DiskId, to: DiskId, life: u64, entries: &[(PgId, Generation)], asked: u64) {
        let now = self.now;
        let Some(node) = self.nodes.get_mut(&to).filter(|n| n.life == life) else { return };
        node.heard.insert(from, now);
        for (pg, generation) in entries {
            let hold = node.holds.entry(*pg).or_default();
            if hold.0 < *generation {
                *hold = (*generation, BTreeMap::new());
            }
            if hold.0 == *generation {
                let until = hold.1.entry(from).or_default();
                *until = (*until).max(asked + LEASE_NS - DRIFT_MARGIN_NS);
            }
        }
    }
}
