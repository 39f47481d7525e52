//! Minimum-cost flow by successive shortest paths: slow, simple, exact. The oracle for the planner's moves.

use evenkeel::core::ids::DiskId;
use evenkeel::core::placement::{DiskInfo, FailureDomain, Input, PoolBound};

/// A directed graph with capacities and costs.
pub struct Graph {
    out: Vec<Vec<usize>>,
    to: Vec<usize>,
    room: Vec<i64>,
    cost: Vec<i64>,
}

impl Graph {
    pub fn new(nodes: usize) -> Self {
        Graph { out: vec![Vec::new(); nodes], to: Vec::new(), room: Vec::new(), cost: Vec::new() }
    }

    pub fn edge(&mut self, from: usize, to: usize, room: i64, cost: i64) {
        for (a, b, r, c) in [(from, to, room, cost), (to, from, 0, -cost)] {
            self.out[a].push(self.to.len());
            self.to.push(b);
            self.room.push(r);
            self.cost.push(c);
        }
    }

    /// The greatest flow from `s` to `t`, and its least cost.
    pub fn run(&mut self, s: usize, t: usize) -> (i64, i64) {
        let (mut flow, mut cost) = (0, 0);
        loop {
            let n = self.out.len();
            let mut dist = vec![i64::MAX; n];
            let mut via = vec![usize::MAX; n];
            let mut queued = vec![false; n];
            let mut queue = std::collections::VecDeque::from([s]);
            dist[s] = 0;
            while let Some(x) = queue.pop_front() {
                queued[x] = false;
                for &e in &self.out[x] {
                    let y = self.to[e];
                    if self.room[e] > 0 && dist[x] + self.cost[e] < dist[y] {
                        dist[y] = dist[x] + self.cost[e];
                        via[y] = e;
                        if !queued[y] {
                            queued[y] = true;
                            queue.push_back(y);
                        }
                    }
                }
            }
            if dist[t] == i64::MAX {
                return (flow, cost);
            }
            let mut y = t;
            while y != s {
                let e = via[y];
                self.room[e] -= 1;
                self.room[e ^ 1] += 1;
                y = self.to[e ^ 1];
            }
            flow += 1;
            cost += dist[t];
        }
    }
}

/// The fewest moves that bring a pool to within its shares, whatever the path.
pub fn exact_least(input: &Input, b: &PoolBound) -> u64 {
    let Some(pool) = input.pools.iter().find(|p| p.id == b.pool) else { return 0 };
    let rows: Vec<_> = input.current.iter().filter(|r| r.pg.pool == b.pool).collect();
    let disks: Vec<(&DiskInfo, f64)> = b
        .shares
        .iter()
        .filter_map(|(id, s)| input.topology.disks.iter().find(|d| d.id == *id).map(|d| (d, *s)))
        .collect();
    let domain = |d: &DiskInfo| match pool.failure_domain {
        FailureDomain::Disk => format!("{}", d.id),
        FailureDomain::Node | FailureDomain::Release => format!("{}", d.node),
        FailureDomain::Rack => format!("{}/{}", d.zone, d.rack),
        FailureDomain::Zone => d.zone.clone(),
    };
    let mut names: Vec<String> = disks.iter().map(|(d, _)| domain(d)).collect();
    names.sort();
    names.dedup();
    let exists = |id: &DiskId| disks.iter().any(|(d, _)| d.id == *id && !d.state.is_gone());
    let alive: Vec<_> = rows.into_iter().filter(|r| r.disks.is_empty() || r.disks.iter().any(exists)).collect();
    let (p, k, n) = (alive.len(), names.len(), disks.len());
    let mut g = Graph::new(2 + p + p * k + n);
    let (s, t) = (0, 1);
    const FIRST: i64 = 10_000;
    for (i, (_, share)) in disks.iter().enumerate() {
        let at = 2 + p + p * k + i;
        g.edge(at, t, share.floor() as i64, -FIRST);
        g.edge(at, t, share.ceil() as i64 - share.floor() as i64, 0);
    }
    for (i, row) in alive.iter().enumerate() {
        g.edge(s, 2 + i, i64::from(pool.replicas), 0);
        (0..k).for_each(|d| g.edge(2 + i, 2 + p + i * k + d, 1, 0));
        for (j, (d, _)) in disks.iter().enumerate() {
            let at = names.binary_search(&domain(d)).unwrap_or(0);
            g.edge(2 + p + i * k + at, 2 + p + p * k + j, 1, i64::from(!row.disks.contains(&d.id)));
        }
    }
    let (_, cost) = g.run(s, t);
    let floors: i64 = disks.iter().map(|(_, s)| s.floor() as i64).sum();
    (cost + floors * FIRST).max(0) as u64
}
