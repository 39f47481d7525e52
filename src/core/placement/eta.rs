//! How long copies take: the busiest disk or link's bytes over its allowed rate, per phase, as a range.
//!
//! A copy is read once, from its PG's primary, and written once, on its target; reads and writes of a disk are limited
//! apart, as the throttle does. `low` is the busiest part alone; `likely` adds that its copies don't follow each other
//! without a gap; `high` adds that the last ones meet on one disk. Units: bytes and seconds. A negative value says
//! "diverging": the backlog grows faster than it is worked off, by so much that undoing it would take that long.

use std::collections::HashMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::model::{Input, Plan};
use crate::core::ids::{DiskId, NodeId, PgId};

/// Part of the busiest disk's time that is lost between copies: its other ends are busy too.
const LIKELY_SLACK: f64 = 1.05;
/// The same for the pessimistic end.
const HIGH_SLACK: f64 = 1.25;
/// What a modest spinning disk reads or writes in a row, per second.
const HDD_BYTES_PER_SEC: u64 = 150 << 20;
/// What a modest SSD on SATA, which carries twice as much, reads and writes at once, each.
const SSD_BYTES_PER_SEC: u64 = 250 << 20;
/// A rate that is as good as none: keeps divisions finite (about 1 byte in 12 days).
const RATE_MIN: f64 = 1e-6;

/// What resync may use.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
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
    /// Modest spinning disks and a 10 Gbit/s link, half of which foreground IO takes.
    fn default() -> Self {
        Rates {
            disk_bytes_per_sec: HDD_BYTES_PER_SEC,
            disk_overrides_bytes_per_sec: HashMap::new(),
            node_bytes_per_sec: 1_170 << 20,
            foreground_share: 0.5,
            backlog_growth_bytes_per_sec: 0.0,
        }
    }
}

impl Rates {
    /// Those where the disks have these classes: as slow as spinning ones, `hdd`, if there are any.
    pub fn of_classes<'a>(mut classes: impl Iterator<Item = &'a str>) -> Rates {
        let spins = classes.any(|class| class == "hdd");
        Rates { disk_bytes_per_sec: if spins { HDD_BYTES_PER_SEC } else { SSD_BYTES_PER_SEC }, ..Rates::default() }
    }

    /// What resync may read from a disk, and write to it, per second.
    pub fn of_disk(&self, disk: DiskId) -> f64 {
        let rate = *self.disk_overrides_bytes_per_sec.get(&disk).unwrap_or(&self.disk_bytes_per_sec);
        rate as f64 * self.free()
    }
    /// What resync may send and receive over a node's link, per second each.
    pub fn of_link(&self) -> f64 {
        self.node_bytes_per_sec as f64 * self.free()
    }
    fn free(&self) -> f64 {
        1.0 - self.foreground_share.clamp(0.0, 1.0)
    }
}

/// A range of seconds from now. Negative: diverging.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
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
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Eta {
    /// All PGs have all their copies.
    pub redundant: Span,
    /// The target is reached.
    pub balanced: Span,
}

/// A copy that is still to be made, or the rest of one.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct CopyLeft {
    /// The disk that it is read from; none if that isn't known.
    pub source: Option<DiskId>,
    /// The disk that it comes to.
    pub target: DiskId,
    /// What is left.
    pub bytes: f64,
    /// It restores a copy.
    pub is_repair: bool,
}

/// What one disk or link has to do.
#[derive(Clone, Copy, Default)]
struct Load {
    read: f64,
    write: f64,
    /// The largest single copy.
    largest: f64,
}

/// Estimates how long `plan`, made for `input`, takes at `rates`.
pub fn eta(input: &Input, plan: &Plan, rates: &Rates) -> Eta {
    let states: HashMap<DiskId, (NodeId, bool)> =
        input.topology.disks.iter().map(|d| (d.id, (d.node, d.state.is_live()))).collect();
    let wanted: std::collections::HashSet<PgId> = plan.moves.iter().map(|m| m.pg).collect();
    let live = |d: &&DiskId| states.get(d).is_some_and(|s| s.1);
    let rows = input.current.iter().filter(|r| wanted.contains(&r.pg));
    let sources: HashMap<PgId, DiskId> = rows.filter_map(|r| Some((r.pg, *r.disks.iter().find(live)?))).collect();
    let copies: Vec<CopyLeft> = plan
        .moves
        .iter()
        .map(|m| CopyLeft {
            source: sources.get(&m.pg).copied(),
            target: m.to,
            bytes: m.bytes as f64,
            is_repair: m.class.is_repair(),
        })
        .collect();
    eta_of(&copies, &|d| states.get(&d).map(|s| s.0), rates)
}

/// Estimates how long copies take at `rates`; repairs go first.
pub fn eta_of(copies: &[CopyLeft], node_of: &dyn Fn(DiskId) -> Option<NodeId>, rates: &Rates) -> Eta {
    let redundant = phase(copies.iter().filter(|c| c.is_repair), node_of, rates);
    let all = phase(copies.iter(), node_of, rates);
    let after = |a: f64, b: f64| if a < 0.0 || b < 0.0 { a.min(b) } else { a.max(b) };
    let balanced = Span {
        low: after(redundant.low, all.low),
        likely: after(redundant.likely, all.likely),
        high: after(redundant.high, all.high),
    };
    Eta { redundant, balanced }
}

fn phase<'a>(
    copies: impl Iterator<Item = &'a CopyLeft>,
    node_of: &dyn Fn(DiskId) -> Option<NodeId>,
    rates: &Rates,
) -> Span {
    let mut disks: HashMap<DiskId, Load> = HashMap::new();
    let mut nodes: HashMap<NodeId, Load> = HashMap::new();
    for c in copies.filter(|c| c.bytes > 0.0) {
        let mut add = |disk: DiskId, read: f64, write: f64| {
            let disk_load = disks.entry(disk).or_default();
            (disk_load.read, disk_load.write) = (disk_load.read + read, disk_load.write + write);
            disk_load.largest = disk_load.largest.max(c.bytes);
            if let Some(node) = node_of(disk) {
                let link = nodes.entry(node).or_default();
                (link.read, link.write) = (link.read + read, link.write + write);
            }
        };
        add(c.target, 0.0, c.bytes);
        c.source.into_iter().for_each(|s| add(s, c.bytes, 0.0));
    }
    let mut span = Span::default();
    for (d, load) in &disks {
        span.widen(load, rates.of_disk(*d) - rates.backlog_growth_bytes_per_sec);
    }
    nodes.values().for_each(|load| span.widen(load, rates.of_link()));
    span
}

impl Span {
    /// Takes one disk or link into the range.
    fn widen(&mut self, load: &Load, rate: f64) {
        let bytes = load.read.max(load.write);
        if bytes <= 0.0 {
            return;
        }
        let seconds = |bytes: f64| if rate.abs() < RATE_MIN { bytes / RATE_MIN } else { bytes / rate };
        let last = load.largest.min(bytes);
        // A lone copy has nothing to wait for.
        let likely = bytes + (LIKELY_SLACK - 1.0) * (bytes - last);
        let parts = [(bytes, &mut self.low), (likely, &mut self.likely), (bytes * HIGH_SLACK + last, &mut self.high)];
        for (bytes, worst) in parts {
            let seconds = seconds(bytes);
            // Once one part diverges, the phase does.
            *worst = if *worst >= 0.0 && seconds >= 0.0 { worst.max(seconds) } else { worst.min(seconds) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::ids::PoolId;
    use crate::core::placement::{DiskInfo, DiskState, Move, MoveClass, PgPlacement};

    #[test]
    fn one_spinning_disk_makes_the_forecast_that_of_spinning_disks() {
        let of = |classes: &[&str]| Rates::of_classes(classes.iter().copied()).disk_bytes_per_sec;
        assert_eq!(of(&["ssd", "hdd"]), Rates::default().disk_bytes_per_sec);
        assert!(of(&["ssd", "nvme"]) > of(&["hdd"]));
    }

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
