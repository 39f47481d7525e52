//! The planner's working state: disks by index, and per pool which PG is where.
//!
//! Invariants: a PG's row names each disk once; `held[d]` lists exactly the PGs whose row names `d`;
//! `load[d]` is what `d` holds once the plan is done, other data included.

use std::collections::{HashMap, HashSet};

use super::model::{DiskState, FailureDomain, Input, PoolSpec};
use crate::core::ids::DiskId;

/// No domain: the disk is not for this pool.
pub(super) const NONE: u32 = u32::MAX;

/// The disks, by ascending id.
pub(super) struct Disks {
    pub ids: Vec<DiskId>,
    pub index: HashMap<DiskId, u32>,
    /// Capacity over the largest one.
    pub weight: Vec<f64>,
    pub state: Vec<DiskState>,
    /// Bytes that no plan exceeds.
    pub limit: Vec<u64>,
    /// Bytes that are no PG's.
    pub base: Vec<u64>,
    /// Bytes once the plan is done.
    pub load: Vec<u64>,
    /// Position in `Topology::disks`.
    pub source: Vec<usize>,
}

impl Disks {
    pub fn len(&self) -> usize {
        self.ids.len()
    }
    /// How many of these can be read.
    pub fn live(&self, row: &[u32]) -> usize {
        row.iter().filter(|&&d| self.state[d as usize].is_live()).count()
    }
    /// The disk may be given one more replica of this size.
    pub fn fits(&self, d: u32, bytes: u64) -> bool {
        bytes == 0 || self.load[d as usize].saturating_add(bytes) <= self.limit[d as usize]
    }
    /// How full it is, for comparing disks of different sizes.
    pub fn fullness(&self, d: u32) -> f64 {
        self.load[d as usize] as f64 / self.weight[d as usize].max(1e-12)
    }
}

/// One pool.
pub(super) struct Layout<'a> {
    pub spec: &'a PoolSpec,
    /// Copies wanted of each PG: what the domains allow of `spec.replicas`.
    pub replicas: usize,
    /// Failure domain of each disk; [`NONE`] where the pool's class forbids it.
    pub domain: Vec<u32>,
    /// The same for all disks, whatever their class.
    pub site: Vec<u32>,
    pub domains: usize,
    /// Members of each domain.
    pub members: Vec<Vec<u32>>,
    /// Bytes of one replica of each PG.
    pub bytes: Vec<u64>,
    /// Today's disks that still exist, in the input's order, for each PG.
    pub today: Vec<Vec<u32>>,
    /// Today's disks whose data is gone, for each PG that has some.
    pub gone: HashMap<u32, Vec<DiskId>>,
    /// The target under construction.
    pub rows: Vec<Vec<u32>>,
    /// Live replicas that must leave, in case nothing else is found for them.
    pub evicted: HashMap<u32, Vec<u32>>,
    /// PGs whose evicted replicas still count in the load of their disks: until they have another place.
    pub pinned: HashSet<u32>,
    /// PGs that have data but no live copy: left alone.
    pub dead: Vec<u32>,
    /// PGs that have no row in the input or an empty one: nothing to copy.
    pub fresh: Vec<bool>,
    /// PGs on each disk, by `rows`.
    pub held: Vec<Vec<u32>>,
    pub quota: Vec<u32>,
    pub share: Vec<f64>,
    /// Replicas on lost or forbidden places, before the plan.
    pub forbidden: u64,
    /// Today's replicas beyond the pool's count: so many leave without a move.
    pub free: u64,
    /// The pool's L.
    pub least_moves: u64,
    /// What space allows of this pool on each disk, in replicas; infinite where it doesn't bind.
    pub room: Vec<f64>,
}

impl Layout<'_> {
    pub fn count(&self, d: u32) -> u32 {
        self.held[d as usize].len() as u32
    }
    pub fn lacking(&self, d: u32) -> u32 {
        self.quota[d as usize].saturating_sub(self.count(d))
    }
    pub fn surplus(&self, d: u32) -> u32 {
        self.count(d).saturating_sub(self.quota[d as usize])
    }
    /// A replica of `pg` may stand in `domain` once the one on `leaving` is away.
    pub fn admits(&self, pg: u32, domain: u32, leaving: u32) -> bool {
        domain != NONE && self.rows[pg as usize].iter().all(|&d| d == leaving || self.domain[d as usize] != domain)
    }
    /// There is room for a replica of `pg` on `d`, and it isn't where one must leave.
    pub fn fits(&self, disks: &Disks, pg: u32, d: u32) -> bool {
        disks.fits(d, self.bytes[pg as usize]) && !self.must_leave(pg, d)
    }
    /// A replica of `pg` on `d` was set aside.
    pub fn must_leave(&self, pg: u32, d: u32) -> bool {
        !self.evicted.is_empty() && self.evicted.get(&pg).is_some_and(|e| e.contains(&d))
    }
    pub fn place(&mut self, disks: &mut Disks, pg: u32, d: u32) {
        self.rows[pg as usize].push(d);
        self.held[d as usize].push(pg);
        disks.load[d as usize] = disks.load[d as usize].saturating_add(self.bytes[pg as usize]);
    }
    pub fn remove(&mut self, disks: &mut Disks, pg: u32, d: u32) {
        self.rows[pg as usize].retain(|x| *x != d);
        let held = &mut self.held[d as usize];
        if let Some(i) = held.iter().position(|x| *x == pg) {
            held.swap_remove(i);
        }
        disks.load[d as usize] = disks.load[d as usize].saturating_sub(self.bytes[pg as usize]);
    }
    pub fn shift(&mut self, disks: &mut Disks, pg: u32, from: u32, to: u32) {
        self.remove(disks, pg, from);
        self.place(disks, pg, to);
    }
    /// Sets a replica aside that must leave. Its bytes count until it has another place.
    fn evict(&mut self, disks: &mut Disks, pg: u32, d: u32) {
        self.evicted.entry(pg).or_default().push(d);
        self.pinned.insert(pg);
        self.forbidden += 1;
        disks.load[d as usize] = disks.load[d as usize].saturating_add(self.bytes[pg as usize]);
    }
    /// The evicted replicas of `pg` no longer count.
    pub fn unpin(&mut self, disks: &mut Disks, pg: u32) {
        if self.pinned.remove(&pg) {
            for &d in self.evicted.get(&pg).into_iter().flatten() {
                disks.load[d as usize] = disks.load[d as usize].saturating_sub(self.bytes[pg as usize]);
            }
        }
    }
    /// The replica was there before the plan, so that moving it costs a move.
    pub fn is_original(&self, pg: u32, d: u32) -> bool {
        self.today[pg as usize].contains(&d)
    }
    /// Replicas wanted but not placed.
    pub fn holes(&self, pg: u32) -> usize {
        self.replicas.saturating_sub(self.rows[pg as usize].len())
    }
    /// The two disks are in different failure domains.
    pub fn apart(&self, a: u32, b: u32) -> bool {
        self.site[a as usize] != self.site[b as usize]
    }
    /// PGs that can be placed: all but those without a live copy.
    pub fn living(&self) -> u32 {
        self.pg_count() - self.dead.len() as u32
    }
    /// It has as many replicas as the pool asks for, whatever the domains allow.
    pub fn is_whole(&self, pg: u32) -> bool {
        self.rows[pg as usize].len() >= self.spec.replicas as usize
    }
    pub fn pg_count(&self) -> u32 {
        self.rows.len() as u32
    }
}

/// Indexes the disks. Duplicate ids are told through `reject`; the first one counts.
pub(super) fn index_disks(input: &Input, reject: &mut dyn FnMut(String, String)) -> Disks {
    let list = &input.topology.disks;
    let mut source: Vec<usize> = (0..list.len()).collect();
    source.sort_by_key(|&i| (list[i].id, i));
    source.dedup_by(|later, first| {
        let same = list[*later].id == list[*first].id;
        if same {
            reject(list[*later].id.to_string(), "the disk is listed twice; the first one counts".to_owned());
        }
        same
    });
    let largest = list.iter().map(|d| d.capacity_bytes).max().unwrap_or(0).max(1) as f64;
    let ratio = input.limits.backfill_limit_ratio.clamp(0.0, 1.0);
    Disks {
        ids: source.iter().map(|&i| list[i].id).collect(),
        index: source.iter().enumerate().map(|(n, &i)| (list[i].id, n as u32)).collect(),
        weight: source.iter().map(|&i| list[i].capacity_bytes as f64 / largest).collect(),
        state: source.iter().map(|&i| list[i].state).collect(),
        limit: source.iter().map(|&i| (list[i].capacity_bytes as f64 * ratio) as u64).collect(),
        base: vec![0; source.len()],
        load: vec![0; source.len()],
        source,
    }
}

/// Failure domain of each disk, numbered by first use.
fn domains_of(input: &Input, disks: &Disks, spec: &PoolSpec) -> (Vec<u32>, usize) {
    #[derive(PartialEq, Eq, Hash)]
    enum Key<'a> {
        Disk(DiskId),
        Node(u32),
        Rack(&'a str, &'a str),
        Zone(&'a str),
    }
    let mut numbers = HashMap::new();
    let domain = disks.source.iter().map(|&i| {
        let d = &input.topology.disks[i];
        let key = match spec.failure_domain {
            FailureDomain::Disk => Key::Disk(d.id),
            FailureDomain::Node | FailureDomain::Release => Key::Node(d.node.0),
            FailureDomain::Rack => Key::Rack(&d.zone, &d.rack),
            FailureDomain::Zone => Key::Zone(&d.zone),
        };
        let next = numbers.len() as u32;
        *numbers.entry(key).or_insert(next)
    });
    let domain: Vec<u32> = domain.collect();
    (domain, numbers.len())
}

/// Builds each pool's state: what may stay stays, the rest is noted as gone or evicted. Fills `disks.load`.
pub(super) fn build<'a>(
    input: &'a Input,
    disks: &mut Disks,
    reject: &mut dyn FnMut(String, String),
) -> Vec<Layout<'a>> {
    let mut pools: Vec<Layout<'a>> = Vec::with_capacity(input.pools.len());
    let mut by_id = HashMap::new();
    for spec in &input.pools {
        if by_id.contains_key(&spec.id) {
            reject(format!("pool {}", spec.name), format!("id {} is used twice; the first pool counts", spec.id));
            continue;
        }
        by_id.insert(spec.id, pools.len());
        pools.push(empty_layout(input, disks, spec));
    }
    let mut own_bytes = vec![0u64; disks.len()];
    let mut seen: Vec<Vec<bool>> = pools.iter().map(|p| vec![false; p.rows.len()]).collect();
    for row in &input.current {
        let Some(&at) = by_id.get(&row.pg.pool) else {
            reject(format!("pg {}", row.pg), "its pool is not in the list".to_owned());
            continue;
        };
        let pool = &mut pools[at];
        let pg = row.pg.index;
        match seen[at].get_mut(pg as usize) {
            None => {
                reject(format!("pg {}", row.pg), format!("the pool has {} PGs", pool.spec.pg_count));
                continue;
            }
            Some(true) => {
                reject(format!("pg {}", row.pg), "it is listed twice; the first row counts".to_owned());
                continue;
            }
            Some(new) => *new = true,
        }
        pool.bytes[pg as usize] = row.bytes;
        pool.fresh[pg as usize] = row.disks.is_empty();
        for id in &row.disks {
            match disks.index.get(id) {
                Some(&d) if !disks.state[d as usize].is_gone() => {
                    if !pool.today[pg as usize].contains(&d) {
                        pool.today[pg as usize].push(d);
                        own_bytes[d as usize] = own_bytes[d as usize].saturating_add(row.bytes);
                    }
                }
                _ => pool.gone.entry(pg).or_default().push(*id),
            }
        }
    }
    for (n, &i) in disks.source.iter().enumerate() {
        let d = &input.topology.disks[i];
        disks.base[n] = d.used_bytes.saturating_sub(own_bytes[n]).saturating_add(d.reserved_bytes);
        disks.load[n] = disks.base[n];
    }
    for pool in &mut pools {
        keep_what_may_stay(pool, disks);
    }
    pools
}

fn empty_layout<'a>(input: &Input, disks: &Disks, spec: &'a PoolSpec) -> Layout<'a> {
    let n = spec.pg_count as usize;
    let (site, domains) = domains_of(input, disks, spec);
    let allowed = |i: usize| spec.class.as_ref().is_none_or(|c| *c == input.topology.disks[i].class);
    let domain: Vec<u32> = site.iter().zip(&disks.source).map(|(k, &i)| if allowed(i) { *k } else { NONE }).collect();
    let mut members = vec![Vec::new(); domains];
    for (d, &k) in domain.iter().enumerate().filter(|(_, k)| **k != NONE) {
        members[k as usize].push(d as u32);
    }
    Layout {
        spec,
        replicas: spec.replicas as usize,
        domain,
        site,
        domains,
        members,
        bytes: vec![0; n],
        today: vec![Vec::new(); n],
        gone: HashMap::new(),
        rows: vec![Vec::new(); n],
        evicted: HashMap::new(),
        pinned: HashSet::new(),
        dead: Vec::new(),
        fresh: vec![true; n],
        held: vec![Vec::new(); disks.len()],
        quota: vec![0; disks.len()],
        share: vec![0.0; disks.len()],
        forbidden: 0,
        free: 0,
        least_moves: 0,
        room: vec![f64::INFINITY; disks.len()],
    }
}

/// Fills the rows with the replicas that may stay, and sets what must leave aside.
fn keep_what_may_stay(pool: &mut Layout<'_>, disks: &mut Disks) {
    let mut crowded = Vec::new();
    for pg in 0..pool.pg_count() {
        let today = std::mem::take(&mut pool.today[pg as usize]);
        let gone = pool.gone.get(&pg).map_or(0, Vec::len);
        pool.forbidden += gone as u64;
        if !today.is_empty() {
            pool.free += (today.len() + gone).saturating_sub(pool.spec.replicas as usize) as u64;
        }
        if !pool.fresh[pg as usize] && today.is_empty() {
            pool.dead.push(pg);
        }
        let mut clash = false;
        for &d in &today {
            let k = pool.domain[d as usize];
            if k == NONE || disks.state[d as usize] == DiskState::Draining {
                pool.evict(disks, pg, d);
            } else {
                clash |= !pool.admits(pg, k, NONE);
                pool.place(disks, pg, d);
            }
        }
        if clash {
            crowded.push(pg);
        }
        pool.today[pg as usize] = today;
    }
    if crowded.is_empty() {
        return;
    }
    // Which of two replicas in one domain leaves: the one on the disk that has the most for its size.
    for pg in crowded {
        while let Some(d) = most_crowded(pool, disks, pg) {
            pool.remove(disks, pg, d);
            pool.evict(disks, pg, d);
        }
    }
}

fn most_crowded(pool: &Layout<'_>, disks: &Disks, pg: u32) -> Option<u32> {
    let row = &pool.rows[pg as usize];
    let clashes = |d: u32| row.iter().any(|&x| x != d && pool.domain[x as usize] == pool.domain[d as usize]);
    let relative = |d: u32| f64::from(pool.count(d)) / disks.weight[d as usize].max(1e-12);
    // A disk that is down goes last: its replica can't be copied from, but taking it away gains nothing.
    row.iter().copied().filter(|&d| clashes(d)).max_by(|&a, &b| relative(a).total_cmp(&relative(b)).then(b.cmp(&a)))
}
