//! The cluster in a run: the map, what each disk holds, who leads, and what a change does to it.

use std::collections::{BTreeSet, HashMap};

use super::event::Change;
use crate::core::ids::{DiskId, NodeId, PgId, PoolId};
use crate::core::placement::{ChangeMap, ClusterMap, DiskState, PgPlacement, Rates, plan};

/// The cluster.
pub(super) struct State {
    pub map: ClusterMap,
    pub rates: Rates,
    /// Disks by id, nodes by id; in order of appearance.
    pub disk_at: HashMap<DiskId, usize>,
    pub node_at: HashMap<NodeId, usize>,
    /// Each disk's node.
    pub node_of: Vec<usize>,
    /// Bytes on each disk that are no PG's.
    other: Vec<u64>,
    /// Bytes of PGs on each disk.
    pub held: Vec<u64>,
    /// Each PG's row in the map's placement.
    pub row_at: HashMap<PgId, usize>,
    /// Each row's replicas wanted, and least to serve.
    pub wanted: Vec<(usize, usize)>,
    /// Rows with fewer live copies than wanted.
    pub short: usize,
}

impl State {
    /// A map at rest. Pools without a placement get their first one.
    pub fn new(mut map: ClusterMap, rates: Rates) -> Self {
        let of_rows: u64 = map.input.pools.iter().map(|p| u64::from(p.pg_count)).sum();
        let placed = map.input.current.iter().filter(|r| !r.disks.is_empty()).count() as u64;
        if placed < of_rows {
            let first = plan(&map.input).target;
            let today: HashMap<PgId, PgPlacement> =
                map.input.current.drain(..).filter(|r| !r.disks.is_empty()).map(|r| (r.pg, r)).collect();
            map.input.current = first.into_iter().map(|r| today.get(&r.pg).cloned().unwrap_or(r)).collect();
        }
        let mut state = State {
            map,
            rates,
            disk_at: HashMap::new(),
            node_at: HashMap::new(),
            node_of: Vec::new(),
            other: Vec::new(),
            held: Vec::new(),
            row_at: HashMap::new(),
            wanted: Vec::new(),
            short: 0,
        };
        state.row_at = state.map.input.current.iter().enumerate().map(|(i, r)| (r.pg, i)).collect();
        state.index_disks();
        for row in &state.map.input.current {
            for d in row.disks.iter().collect::<BTreeSet<_>>() {
                if let Some(&d) = state.disk_at.get(d) {
                    state.held[d] = state.held[d].saturating_add(row.bytes);
                }
            }
        }
        for (d, disk) in state.map.input.topology.disks.iter().enumerate() {
            state.other[d] = disk.used_bytes.saturating_sub(state.held[d]);
        }
        state.index_pools();
        state
    }

    fn index_disks(&mut self) {
        for (at, disk) in self.map.input.topology.disks.iter().enumerate().skip(self.node_of.len()) {
            self.disk_at.insert(disk.id, at);
            let next = self.node_at.len();
            self.node_of.push(*self.node_at.entry(disk.node).or_insert(next));
            self.other.push(disk.used_bytes);
            self.held.push(0);
        }
    }

    fn index_pools(&mut self) {
        let rules: HashMap<PoolId, (usize, usize)> =
            self.map.input.pools.iter().map(|p| (p.id, (p.replicas as usize, p.min_replicas as usize))).collect();
        self.wanted = self.map.input.current.iter().map(|r| rules.get(&r.pg.pool).copied().unwrap_or((0, 0))).collect();
        self.short = (0..self.wanted.len()).filter(|&row| self.is_short(row)).count();
    }

    pub fn row(&self, row: usize) -> &PgPlacement {
        &self.map.input.current[row]
    }

    pub fn is_live(&self, disk: DiskId) -> bool {
        self.disk_at.get(&disk).is_some_and(|&d| self.map.input.topology.disks[d].state.is_live())
    }

    /// A copy may come to it.
    pub fn takes(&self, disk: usize) -> bool {
        self.map.input.topology.disks[disk].state.takes()
    }

    pub fn live(&self, row: usize) -> usize {
        self.row(row).disks.iter().filter(|d| self.is_live(**d)).count()
    }

    pub fn is_short(&self, row: usize) -> bool {
        self.live(row) < self.wanted[row].0
    }

    /// The disk that a PG's copies are read from.
    pub fn source(&self, row: usize) -> Option<usize> {
        let primary = self.row(row).disks.first()?;
        self.disk_at.get(primary).copied().filter(|&d| self.map.input.topology.disks[d].state.is_live())
    }

    /// Bytes that a disk can still take.
    pub fn room(&self, disk: usize) -> u64 {
        let d = &self.map.input.topology.disks[disk];
        let limit = (d.capacity_bytes as f64 * self.map.input.limits.backfill_limit_ratio) as u64;
        limit.saturating_sub(self.other[disk]).saturating_sub(self.held[disk]).saturating_sub(d.reserved_bytes)
    }

    /// A copy is whole: it takes the place of `from`.
    pub fn swap(&mut self, row: usize, from: Option<DiskId>, to: usize) {
        let was_short = self.is_short(row);
        let bytes = self.row(row).bytes;
        let id = self.map.input.topology.disks[to].id;
        let disks = &mut self.map.input.current[row].disks;
        match from.and_then(|f| disks.iter().position(|d| *d == f)) {
            Some(i) => disks[i] = id,
            None => disks.push(id),
        }
        self.held[to] = self.held[to].saturating_add(bytes);
        if let Some(&f) = from.and_then(|f| self.disk_at.get(&f)) {
            self.held[f] = self.held[f].saturating_sub(bytes);
        }
        self.short = self.short - usize::from(was_short) + usize::from(self.is_short(row));
        self.lead(row);
    }

    /// A PG that reached its target: copies that it no longer needs go, and the order is the plan's.
    pub fn settle(&mut self, row: usize, target: &[DiskId]) {
        if !target.iter().all(|d| self.row(row).disks.contains(d)) {
            return;
        }
        let was_short = self.is_short(row);
        let today = std::mem::take(&mut self.map.input.current[row].disks);
        let bytes = self.row(row).bytes;
        for d in today.iter().filter(|d| !target.contains(d)) {
            if let Some(&d) = self.disk_at.get(d) {
                self.held[d] = self.held[d].saturating_sub(bytes);
            }
        }
        self.map.input.current[row].disks = target.to_vec();
        self.short = self.short - usize::from(was_short) + usize::from(self.is_short(row));
        self.lead(row);
    }

    /// Puts a live copy first.
    fn lead(&mut self, row: usize) {
        if let Some(i) = self.row(row).disks.iter().position(|d| self.is_live(*d)) {
            self.map.input.current[row].disks[..=i].rotate_right(1);
        }
    }

    /// PGs whose primary is gone are led by the live member that leads the fewest with a copy missing, as by the coordinator:
    /// that one reads least for the repair.
    fn promote(&mut self) {
        let mut leads: HashMap<DiskId, (usize, usize)> = HashMap::new();
        for (at, row) in self.map.input.current.iter().enumerate() {
            if let Some(p) = row.disks.first() {
                let of = leads.entry(*p).or_default();
                *of = (of.0 + usize::from(self.is_short(at)), of.1 + 1);
            }
        }
        for row in 0..self.wanted.len() {
            if self.row(row).disks.first().is_none_or(|p| self.is_live(*p)) {
                continue;
            }
            let fewest = |d: &DiskId| (leads.get(d).copied().unwrap_or_default(), *d);
            let next = self.row(row).disks.iter().copied().filter(|d| self.is_live(*d)).min_by_key(fewest);
            if let Some(next) = next {
                let of = leads.entry(next).or_default();
                *of = (of.0 + 1, of.1 + 1);
                let disks = &mut self.map.input.current[row].disks;
                if let Some(i) = disks.iter().position(|d| *d == next) {
                    disks[..=i].rotate_right(1);
                }
            }
        }
    }

    fn set_states(&mut self, of: impl Fn(&crate::core::placement::DiskInfo) -> bool, state: DiskState) {
        self.map.input.topology.disks.iter_mut().filter(|d| of(d) && !d.state.is_gone()).for_each(|d| d.state = state);
    }

    /// Makes a change. Gives the disks whose data it takes: they are away until [`State::give_up`].
    pub fn change(&mut self, change: &Change) -> Result<Vec<DiskId>, ChangeMap> {
        let mut lost = Vec::new();
        match change {
            Change::LoseNode(name) => {
                let node = self.map.find_node(name)?;
                let all = self.map.input.topology.disks.iter();
                lost.extend(all.filter(|d| d.node == node && !d.state.is_gone()).map(|d| d.id));
                self.set_states(|d| d.node == node, DiskState::Down);
            }
            Change::LoseDisk(name) => {
                let disk = self.map.find_disk(name)?;
                lost.push(disk);
                self.set_states(|d| d.id == disk, DiskState::Down);
            }
            Change::DrainNode(name) => self.map.remove_node(name)?,
            Change::AddNode(spec) => {
                self.map.add_node(spec)?;
            }
            Change::SlowDisk { disk, bytes_per_sec } => {
                let disk = self.map.find_disk(disk)?;
                self.rates.disk_overrides_bytes_per_sec.insert(disk, *bytes_per_sec);
            }
            Change::Replicas { pool, replicas } => self.map.set_replicas(pool, *replicas)?,
            Change::FailureDomain { pool, domain } => self.map.set_failure_domain(pool, *domain)?,
        }
        self.index_disks();
        self.promote();
        self.index_pools();
        Ok(lost)
    }

    /// The grace is over: these disks count as lost.
    pub fn give_up(&mut self, disks: &BTreeSet<DiskId>) {
        self.set_states(|d| disks.contains(&d.id), DiskState::Lost);
        for row in 0..self.wanted.len() {
            for d in self.row(row).disks.clone() {
                if let Some(&at) = self.disk_at.get(&d).filter(|_| disks.contains(&d)) {
                    self.held[at] = 0;
                }
            }
        }
    }

    /// What the planner is to see: the sizes as they are now.
    pub fn measure(&mut self) {
        for (d, disk) in self.map.input.topology.disks.iter_mut().enumerate() {
            disk.used_bytes = self.other[d].saturating_add(self.held[d]);
        }
    }
}
