//! Minimum-cost flow by successive shortest paths: slow, simple, exact. The oracle for the planner's moves.

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
