//! "What happens, and how long, if …": the planner on a changed copy of the cluster. Nothing is kept.

use std::collections::BTreeSet;

use crate::api::calls::{Answer, CallFailed};
use crate::api::types::PlanRequest;
use crate::core::cluster::{ClusterMap, NodeAdminState};
use crate::core::ids::NodeId;
use crate::core::placement as place;

/// The planner's input with the nodes' names.
pub fn named(input: place::Input, map: &ClusterMap) -> place::ClusterMap {
    let removed = |n: &&crate::core::cluster::Node| n.admin_state == NodeAdminState::Removed;
    let gone: BTreeSet<NodeId> = map.nodes.values().filter(removed).map(|n| n.id).collect();
    // A removed node's name may have been given to another one since.
    let nodes = map.nodes.values().filter(|n| !gone.contains(&n.id)).map(|n| (n.id, n.name.clone()));
    place::ClusterMap::new(input, nodes.collect(), gone)
}

/// What resync may use, as far as the map says.
pub fn rates(map: &ClusterMap) -> place::Rates {
    let mut rates = place::Rates::of_classes(map.disks.values().map(|disk| disk.class.as_str()));
    if let Some(cap) = map.settings.resync.cap_bytes_per_sec {
        rates.disk_bytes_per_sec = rates.disk_bytes_per_sec.min(cap);
    }
    rates
}

/// Answers a question.
///
/// # Errors
/// The question names what doesn't exist, or is malformed.
pub fn answer(map: place::ClusterMap, request: &PlanRequest, rates: place::Rates) -> Answer {
    use place::ChangeMap as E;
    let answer = place::answer(map, request, rates).map_err(|e| match e {
        E::Unknown { .. } => CallFailed::new(404, e.to_string()),
        E::PlanRefused { .. } => {
            tracing::error!(%e, "a what-if has no answer");
            CallFailed::new(500, e.to_string())
        }
        _ => CallFailed::new(400, e.to_string()),
    })?;
    serde_json::to_vec(&answer).map_err(|e| CallFailed::new(500, e.to_string()))
}

/// The map file of the cluster as it is.
pub fn export(map: &place::ClusterMap) -> Vec<u8> {
    place::write_map(map, &map.input.current).into_bytes()
}
