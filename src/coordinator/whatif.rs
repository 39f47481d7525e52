//! "What happens, and how long, if …": the planner on a changed copy of the cluster. Nothing is kept.

use std::collections::BTreeMap;

use crate::api::calls::CallFailed;
use crate::api::types::*;
use crate::core::cluster::ClusterMap;
use crate::core::ids::{DiskId, NodeId};
use crate::core::manager::plan::class_of;
use crate::core::placement as place;
use crate::core::units::parse_bytes;

/// Ids of disks that a question adds; no real cluster comes near.
const WHAT_IF_FIRST: u32 = 0xf000_0000;
/// Disks that one question may add.
const WHAT_IF_DISKS_MAX: usize = 10_000;

/// Answers a question.
///
/// # Errors
/// The question names what doesn't exist, or is malformed.
pub fn answer(
    mut input: place::Input,
    map: &ClusterMap,
    cap_bytes_per_sec: Option<u64>,
    request: &PlanRequest,
) -> Result<PlanReply, CallFailed> {
    let mut added = BTreeMap::new();
    for spec in &request.add_node {
        add_node(&mut input, spec, &mut added)?;
    }
    for name in &request.remove_node {
        let node = map.nodes.values().find(|n| n.name == *name).map(|n| n.id).ok_or_else(|| unknown("node", name))?;
        input.topology.disks.iter_mut().filter(|d| d.node == node).for_each(|d| d.state = place::DiskState::Lost);
    }
    for text in &request.replicas {
        let wrong = || CallFailed::new(400, format!("{text:?} is not POOL=N, as in default=3"));
        let (pool, n) = text.split_once('=').ok_or_else(wrong)?;
        let n: u32 = n.parse().ok().filter(|n| (1..=16).contains(n)).ok_or_else(wrong)?;
        let pool = input.pools.iter_mut().find(|p| p.name == pool).ok_or_else(|| unknown("pool", pool))?;
        pool.replicas = n;
        pool.min_replicas = pool.min_replicas.min(n);
    }
    let plan = super::wiring::checked_plan(&input);
    let mut rates = place::Rates::default();
    if let Some(cap) = cap_bytes_per_sec {
        rates.disk_bytes_per_sec = rates.disk_bytes_per_sec.min(cap);
    }
    let eta = place::eta(&input, &plan, &rates);
    let span = |s: place::Span| EtaRange { low: s.low, likely: s.likely, high: s.high };
    let figures = |e: &place::Evenness| BalanceFigures {
        max_over_mean: e.max_over_mean,
        stddev: e.stddev,
        max_deviation_pgs: e.max_deviation_pgs,
    };
    let pool_name = |id| input.pools.iter().find(|p| p.id == id).map_or_else(String::new, |p| p.name.clone());
    let moves = plan.moves.iter().map(|m| PlanMove {
        pool: pool_name(m.pg.pool),
        pg: m.pg,
        from: m.from,
        to: added.get(&m.to).cloned().unwrap_or_else(|| m.to.to_string()),
        bytes: m.bytes,
        class: class_of(m.class),
    });
    Ok(PlanReply {
        moves: moves.collect(),
        totals: PlanTotals {
            moves: plan.totals.moves,
            bytes: plan.totals.bytes,
            lower_bound_moves: plan.totals.lower_bound_moves,
        },
        balance: PlanBalance { before: figures(&plan.balance.before), after: figures(&plan.balance.after) },
        missing_capacity_bytes: plan.missing_capacity_bytes,
        eta_seconds: PlanEta { redundant: span(eta.redundant), balanced: span(eta.balanced) },
        rejected: plan
            .rejected
            .iter()
            .map(|r| PlanRejected { what: r.what.clone(), reason: r.reason.clone() })
            .collect(),
    })
}

/// Adds `name=n9,zone=z2,rack=r1,disks=4x6TiB:ssd`.
fn add_node(input: &mut place::Input, spec: &str, added: &mut BTreeMap<DiskId, String>) -> Result<(), CallFailed> {
    let wrong = |why: &str| {
        CallFailed::new(400, format!("{spec:?} is not a node ({why}): write name=n9,zone=z2,rack=r1,disks=4x6TiB:ssd"))
    };
    let fields: Vec<(&str, &str)> =
        spec.split(',').map(|f| f.split_once('=').ok_or_else(|| wrong("a field lacks ="))).collect::<Result<_, _>>()?;
    if let Some((key, _)) = fields.iter().find(|(k, _)| !matches!(*k, "name" | "zone" | "rack" | "disks" | "release")) {
        return Err(wrong(&format!("unknown field {key}")));
    }
    let get = |key: &str| fields.iter().find(|(k, _)| *k == key).map(|(_, v)| (*v).to_owned());
    let name = get("name").ok_or_else(|| wrong("name is missing"))?;
    let disks = get("disks").ok_or_else(|| wrong("disks is missing"))?;
    let (disks, class) = disks.split_once(':').map_or((disks.as_str(), ""), |(d, c)| (d, c));
    let (count, size) = disks.split_once('x').unwrap_or(("1", disks));
    let count: usize = count.parse().map_err(|_| wrong("the number of disks is no number"))?;
    let capacity_bytes = parse_bytes(size).map_err(|e| wrong(&e.to_string()))?;
    if count == 0 || added.len() + count > WHAT_IF_DISKS_MAX {
        return Err(wrong("1 to 10000 disks"));
    }
    let node = NodeId(WHAT_IF_FIRST + added.len() as u32);
    for i in 0..count {
        let id = DiskId(WHAT_IF_FIRST + added.len() as u32);
        added.insert(id, format!("{name}/{}", i + 1));
        input.topology.disks.push(place::DiskInfo {
            id,
            node,
            rack: get("rack").unwrap_or_default(),
            zone: get("zone").unwrap_or_default(),
            release: get("release").unwrap_or_default(),
            class: class.to_owned(),
            capacity_bytes,
            ..place::DiskInfo::default()
        });
    }
    Ok(())
}

fn unknown(what: &'static str, name: &str) -> CallFailed {
    crate::core::cluster::command::Refusal::Unknown { what, name: name.to_owned() }.into()
}
