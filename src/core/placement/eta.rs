//! How long a plan takes: the busiest disk or link's bytes over its allowed rate, per phase, as a range.
//!
//! Every copy is written once on its target and read once from a live replica; several sources are used at once, so
//! reads spread over all of them. `low` is the busiest part alone at the full rate; `likely` lets reads and writes
//! meet on one disk; `high` reads each PG from one source only and adds slots that idle at the end. Units: bytes and
//! seconds. A negative value says "diverging": the backlog grows faster than it is worked off.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::model::{Input, MoveClass, Plan};
use crate::core::ids::{DiskId, NodeId, PgId};

/// Part of the range by which copies end later than the busiest disk's bytes say: slots refill with a delay and the
/// last PGs of a disk don't overlap.
const LIKELY_SLACK: f64 = 1.05;
/// The same for the pessimistic end.
const HIGH_SLACK: f64 = 1.25;
/// A rate that is as good as none: keeps divisions finite (about 1 byte in 12 days).
const RATE_MIN: f64 = 1e-6;

/// What resync may use.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Rates {
    /// Of one disk, for reads and for writes each.
    pub disk_bytes_per_sec: u64,
    /// Disks that differ.
    pub disk_overrides_bytes_per_sec: HashMap<DiskId, u64>,
    /// Of one node's network link, for each direction.
    pub node_bytes_per_sec: u64,
    /// The part of the rates that foreground IO takes, from 0 to 1.
    pub foreground_share: f64,
    /// How fast foreground writes add to the backlog of a disk under resync.
    pub backlog_growth_bytes_per_sec: f64,
}

impl Default for Rates {
    /// Modest disks and a 10 Gbit/s link, half of which foreground IO takes.
    fn default() -> Self {
        Rates {
            disk_bytes_per_sec: 150 << 20,
            disk_overrides_bytes_per_sec: HashMap::new(),
            node_bytes_per_sec: 1_170 << 20,
            foreground_share: 0.5,
            backlog_growth_bytes_per_sec: 0.0,
        }
    }
}

/// A range of seconds from now. Negative: diverging.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Span {
    /// If all goes well.
    pub low: f64,
    /// To be told.
    pub likely: f64,
    /// If it doesn't.
    pub high: f64,
}

impl Span {
    /// The backlog grows.
    pub fn is_diverging(&self) -> bool {
        self.likely < 0.0
    }
}

/// When the plan's phases end.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Eta {
    /// All PGs have all their copies.
    pub redundant: Span,
    /// The target is reached.
    pub balanced: Span,
}

/// Bytes on one disk or link.
#[derive(Clone, Copy, Default)]
struct Load {
    read: f64,
    read_one: f64,
    write: f64,
}

/// Estimates how long `plan`, made for `input`, takes at `rates`.
pub fn eta(input: &Input, plan: &Plan, rates: &Rates) -> Eta {
    let states: HashMap<DiskId, (NodeId, bool)> =
        input.topology.disks.iter().map(|d| (d.id, (d.node, d.state.is_live()))).collect();
    let wanted: std::collections::HashSet<PgId> = plan.moves.iter().map(|m| m.pg).collect();
    let rows: HashMap<PgId, &[DiskId]> =
        input.current.iter().filter(|r| wanted.contains(&r.pg)).map(|r| (r.pg, r.disks.as_slice())).collect();
    let phase = |keep: &dyn Fn(MoveClass) -> bool| -> Span {
        let mut disks: HashMap<DiskId, Load> = HashMap::new();
        let mut nodes: HashMap<NodeId, Load> = HashMap::new();
        for m in plan.moves.iter().filter(|m| keep(m.class)) {
            let bytes = m.bytes as f64;
            disks.entry(m.to).or_default().write += bytes;
            if let Some((node, _)) = states.get(&m.to) {
                nodes.entry(*node).or_default().write += bytes;
            }
            let row = rows.get(&m.pg).copied().unwrap_or_default();
            let live: Vec<DiskId> = row.iter().copied().filter(|d| states.get(d).is_some_and(|s| s.1)).collect();
            for (i, d) in live.iter().enumerate() {
                let one = if i == 0 { bytes } else { 0.0 };
                let part = bytes / live.len() as f64;
                for load in [disks.entry(*d).or_default(), nodes.entry(states[d].0).or_default()] {
                    load.read += part;
                    load.read_one += one;
                }
            }
        }
        let free = 1.0 - rates.foreground_share.clamp(0.0, 1.0);
        let mut span = Span::default();
        for (d, load) in &disks {
            let rate = *rates.disk_overrides_bytes_per_sec.get(d).unwrap_or(&rates.disk_bytes_per_sec) as f64;
            widen(&mut span, load, rate * free - rates.backlog_growth_bytes_per_sec, true);
        }
        for load in nodes.values() {
            widen(&mut span, load, rates.node_bytes_per_sec as f64 * free, false);
        }
        span
    };
    let redundant = phase(&|c| c <= MoveClass::Repair);
    let after = phase(&|c| c > MoveClass::Repair);
    let all = phase(&|_| true);
    let sum = |a: f64, b: f64| if a < 0.0 || b < 0.0 { a.min(b) } else { a + b };
    let balanced = Span {
        low: if all.low < 0.0 { all.low } else { all.low.max(redundant.low) },
        likely: sum(redundant.likely, after.likely),
        high: sum(redundant.high, after.high),
    };
    Eta { redundant, balanced }
}

/// Takes one disk or link into the phase's range.
fn widen(span: &mut Span, load: &Load, rate: f64, is_disk: bool) {
    let both =
        |read: f64| if is_disk { load.write.max(read) + 0.1 * load.write.min(read) } else { load.write.max(read) };
    let parts = [
        (load.write.max(load.read), &mut span.low),
        (both(load.read) * LIKELY_SLACK, &mut span.likely),
        (both(load.read_one.max(load.read)) * HIGH_SLACK, &mut span.high),
    ];
    for (bytes, worst) in parts {
        if bytes <= 0.0 {
            continue;
        }
        let seconds = if rate.abs() < RATE_MIN { bytes / RATE_MIN } else { bytes / rate };
        // Once one part diverges, the phase does.
        if *worst >= 0.0 {
            *worst = if seconds < 0.0 { seconds } else { worst.max(seconds) };
        } else {
            *worst = worst.min(seconds);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::ids::PoolId;
    use crate::core::placement::{DiskInfo, DiskState, Move, PgPlacement};

    fn one_repair(bytes: u64) -> (Input, Plan) {
        let disk = |id, state| DiskInfo { id: DiskId(id), node: NodeId(id), state, ..DiskInfo::default() };
        let pg = PgId { pool: PoolId(1), index: 0 };
        let mut input = Input::default();
        input.topology.disks = vec![disk(1, DiskState::Up), disk(2, DiskState::Lost), disk(3, DiskState::Up)];
        input.current = vec![PgPlacement { pg, bytes, disks: vec![DiskId(1), DiskId(2)] }];
        let class = MoveClass::RepairCritical;
        let m = Move { pg, from: Some(DiskId(2)), to: DiskId(3), bytes, class, reason: String::new() };
        (input, Plan { moves: vec![m], ..Plan::default() })
    }

    #[test]
    fn the_busiest_disk_sets_the_time() {
        let (input, plan) = one_repair(1000);
        let rates = Rates { disk_bytes_per_sec: 20, foreground_share: 0.5, ..Rates::default() };
        let e = eta(&input, &plan, &rates);
        assert_eq!(e.redundant.low, 100.0);
        assert_eq!(e.balanced.likely, e.redundant.likely);
        assert!(e.redundant.low <= e.redundant.likely && e.redundant.likely <= e.redundant.high);
        let slow_link = Rates { node_bytes_per_sec: 10, ..rates.clone() };
        assert_eq!(eta(&input, &plan, &slow_link).redundant.low, 200.0);
        let slow_disk = Rates { disk_overrides_bytes_per_sec: HashMap::from([(DiskId(3), 2)]), ..rates };
        assert_eq!(eta(&input, &plan, &slow_disk).redundant.low, 1000.0);
        assert_eq!(eta(&input, &Plan::default(), &slow_disk), Eta::default());
    }

    #[test]
    fn losing_ground_is_told_as_diverging() {
        let (input, plan) = one_repair(1000);
        let rates = Rates { disk_bytes_per_sec: 20, backlog_growth_bytes_per_sec: 30.0, ..Rates::default() };
        let e = eta(&input, &plan, &rates);
        assert!(e.redundant.is_diverging() && e.balanced.is_diverging());
    }
}
