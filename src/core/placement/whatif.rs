//! What-if: changes to a map that has not happened yet, and the answer as one record.
//!
//! The command line's specs are parsed here, so that the live and the offline path, and the simulator, share one
//! form: `name=n9,zone=z2,rack=r1,disks=4x6TiB:ssd`. Non-goal: printing.

use serde::Serialize;

use super::eta::Eta;
use super::map::ClusterMap;
use super::model::{Balance, DiskInfo, DiskState, FailureDomain, MoveClass, Plan, Rejected, Totals};
use crate::core::ids::{DiskId, NodeId, PoolId};
use crate::core::units::{ParseUnit, parse_bytes};

/// Disks of one added node: more than any chassis holds.
const NODE_DISKS_MAX: u32 = 1024;

/// A node to add.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NodeSpec {
    /// Its name.
    pub name: String,
    /// Its zone.
    pub zone: String,
    /// Its rack.
    pub rack: String,
    /// The release that it runs.
    pub release: String,
    /// Its disks: capacity in bytes and class.
    pub disks: Vec<(u64, String)>,
}

/// A spec or change that makes no sense.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ChangeMap {
    /// A part without `=`.
    #[error("{part:?} is not KEY=VALUE; a node is written name=n9,zone=z2,rack=r1,disks=4x6TiB:ssd")]
    NotAPair {
        /// As written.
        part: String,
    },
    /// A key that a node doesn't have.
    #[error("{key:?} is not a field of a node: use name, zone, rack, release or disks")]
    UnknownKey {
        /// As written.
        key: String,
    },
    /// A field that is needed, or needed once.
    #[error("the node spec needs {key} exactly once")]
    KeyTimes {
        /// Which one.
        key: &'static str,
    },
    /// Disks not of the form COUNTxSIZE:CLASS.
    #[error("{text:?} are not disks: write COUNTxSIZE:CLASS, as in 4x6TiB:ssd, several joined by +")]
    DisksInvalid {
        /// As written.
        text: String,
    },
    /// A size that is none.
    #[error(transparent)]
    Size(#[from] ParseUnit),
    /// A node or pool of this name exists already.
    #[error("{what} {name} exists already")]
    Exists {
        /// The kind.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// No such node or pool.
    #[error("there is no {what} {name}; there are: {known}")]
    Unknown {
        /// The kind.
        what: &'static str,
        /// As written.
        name: String,
        /// The first of those that exist.
        known: String,
    },
    /// A replica count out of bounds.
    #[error("{replicas} replicas: it lies between 1 and 16")]
    Replicas {
        /// As written.
        replicas: u32,
    },
}

impl std::str::FromStr for NodeSpec {
    type Err = ChangeMap;

    fn from_str(text: &str) -> Result<Self, ChangeMap> {
        let mut spec = NodeSpec::default();
        let (mut names, mut disks) = (0, 0);
        for part in text.split(',') {
            let (key, value) = part.split_once('=').ok_or_else(|| ChangeMap::NotAPair { part: part.to_owned() })?;
            let value = value.trim().to_owned();
            match key.trim() {
                "name" => {
                    names += 1;
                    spec.name = value;
                }
                "zone" => spec.zone = value,
                "rack" => spec.rack = value,
                "release" => spec.release = value,
                "disks" => {
                    disks += 1;
                    spec.disks = parse_disks(&value)?;
                }
                other => return Err(ChangeMap::UnknownKey { key: other.to_owned() }),
            }
        }
        if names != 1 || spec.name.is_empty() {
            return Err(ChangeMap::KeyTimes { key: "name" });
        }
        if disks != 1 {
            return Err(ChangeMap::KeyTimes { key: "disks" });
        }
        Ok(spec)
    }
}

fn parse_disks(text: &str) -> Result<Vec<(u64, String)>, ChangeMap> {
    let invalid = || ChangeMap::DisksInvalid { text: text.to_owned() };
    let mut disks = Vec::new();
    for group in text.split('+') {
        let (count, rest) = group.split_once('x').ok_or_else(invalid)?;
        let (size, class) = rest.split_once(':').unwrap_or((rest, ""));
        let count: u32 = count.trim().parse().map_err(|_| invalid())?;
        if count == 0 || count > NODE_DISKS_MAX || disks.len() as u32 + count > NODE_DISKS_MAX {
            return Err(invalid());
        }
        let bytes = parse_bytes(size)?;
        disks.extend((0..count).map(|_| (bytes, class.trim().to_owned())));
    }
    Ok(disks)
}

impl ClusterMap {
    /// Adds a node with empty disks; returns their ids.
    ///
    /// # Errors
    /// The name is taken.
    pub fn add_node(&mut self, spec: &NodeSpec) -> Result<Vec<DiskId>, ChangeMap> {
        if self.nodes.values().any(|n| *n == spec.name) {
            return Err(ChangeMap::Exists { what: "node", name: spec.name.clone() });
        }
        let node = NodeId(self.nodes.keys().map(|n| n.0).max().unwrap_or(0).saturating_add(1));
        self.nodes.insert(node, spec.name.clone());
        let mut id = self.input.topology.disks.iter().map(|d| d.id.0).max().unwrap_or(0);
        let mut ids = Vec::with_capacity(spec.disks.len());
        for (capacity_bytes, class) in &spec.disks {
            id = id.saturating_add(1);
            ids.push(DiskId(id));
            self.input.topology.disks.push(DiskInfo {
                id: DiskId(id),
                node,
                rack: spec.rack.clone(),
                zone: spec.zone.clone(),
                release: spec.release.clone(),
                class: class.clone(),
                capacity_bytes: *capacity_bytes,
                ..DiskInfo::default()
            });
        }
        Ok(ids)
    }

    /// Plans a node's removal: its disks drain, and a written map leaves it out.
    ///
    /// # Errors
    /// There is no such node.
    pub fn remove_node(&mut self, name: &str) -> Result<(), ChangeMap> {
        let node = self.find_node(name)?;
        self.removed.insert(node);
        self.set_node_state(node, DiskState::Draining);
        Ok(())
    }

    /// Takes a node as dead: its data is lost.
    ///
    /// # Errors
    /// There is no such node.
    pub fn lose_node(&mut self, name: &str) -> Result<(), ChangeMap> {
        let node = self.find_node(name)?;
        self.removed.insert(node);
        self.set_node_state(node, DiskState::Lost);
        Ok(())
    }

    /// Sets a pool's replica count.
    ///
    /// # Errors
    /// There is no such pool, or the count is out of bounds.
    pub fn set_replicas(&mut self, pool: &str, replicas: u32) -> Result<(), ChangeMap> {
        if !(1..=16).contains(&replicas) {
            return Err(ChangeMap::Replicas { replicas });
        }
        let at = self.find_pool(pool)?;
        let spec = &mut self.input.pools[at];
        spec.replicas = replicas;
        spec.min_replicas = spec.min_replicas.min(replicas);
        Ok(())
    }

    /// Sets a pool's failure domain.
    ///
    /// # Errors
    /// There is no such pool.
    pub fn set_failure_domain(&mut self, pool: &str, domain: FailureDomain) -> Result<(), ChangeMap> {
        let at = self.find_pool(pool)?;
        self.input.pools[at].failure_domain = domain;
        Ok(())
    }

    /// A node by name.
    ///
    /// # Errors
    /// There is none.
    pub fn find_node(&self, name: &str) -> Result<NodeId, ChangeMap> {
        let found = self.nodes.iter().find(|(_, n)| *n == name).map(|(id, _)| *id);
        found.ok_or_else(|| unknown("node", name, self.nodes.values().map(String::as_str)))
    }

    fn find_pool(&self, name: &str) -> Result<usize, ChangeMap> {
        let found = self.input.pools.iter().position(|p| p.name == name);
        found.ok_or_else(|| unknown("pool", name, self.input.pools.iter().map(|p| p.name.as_str())))
    }

    fn set_node_state(&mut self, node: NodeId, state: DiskState) {
        self.input.topology.disks.iter_mut().filter(|d| d.node == node).for_each(|d| d.state = state);
    }
}

fn unknown<'a>(what: &'static str, name: &str, known: impl Iterator<Item = &'a str>) -> ChangeMap {
    let known: Vec<&str> = known.take(8).collect();
    ChangeMap::Unknown { what, name: name.to_owned(), known: known.join(", ") }
}

/// A move by names.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct NamedMove {
    /// The pool's name.
    pub pool: String,
    /// The PG's index in it.
    pub pg: u32,
    /// The disk that gives it up.
    pub from: Option<String>,
    /// The disk that gets it.
    pub to: String,
    /// Bytes to copy.
    pub bytes: u64,
    /// How urgent.
    pub class: MoveClass,
    /// Why.
    pub reason: String,
}

/// The answer to a what-if, as `plan -o json` prints it.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct WhatIf {
    /// Every move.
    pub moves: Vec<NamedMove>,
    /// Sums.
    pub totals: Totals,
    /// Evenness.
    pub balance: Balance,
    /// Bytes that lack room.
    pub missing_capacity_bytes: u64,
    /// When it would be done.
    pub eta_seconds: Eta,
    /// What can't be done.
    pub rejected: Vec<Rejected>,
}

/// Puts a plan for `map` in names.
pub fn what_if(map: &ClusterMap, plan: &Plan, eta: Eta) -> WhatIf {
    let pools: std::collections::HashMap<PoolId, &str> =
        map.input.pools.iter().map(|p| (p.id, p.name.as_str())).collect();
    let named = |m: &super::model::Move| NamedMove {
        pool: pools.get(&m.pg.pool).map_or_else(|| m.pg.pool.to_string(), |n| (*n).to_owned()),
        pg: m.pg.index,
        from: m.from.map(|d| map.disk_name(d)),
        to: map.disk_name(m.to),
        bytes: m.bytes,
        class: m.class,
        reason: m.reason.clone(),
    };
    WhatIf {
        moves: plan.moves.iter().map(named).collect(),
        totals: plan.totals,
        balance: plan.balance,
        missing_capacity_bytes: plan.missing_capacity_bytes,
        eta_seconds: eta,
        rejected: plan.rejected.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::placement::{Rates, eta, plan, read_map, write_map};

    fn three_nodes() -> ClusterMap {
        let node = |n: u32| {
            format!(
                r#"{{"name":"n{n}","zone":"z","rack":"r{n}","disks":[{{"id":"d{n}","class":"ssd","capacity_bytes":1099511627776}}]}}"#
            )
        };
        let nodes: Vec<String> = (1..=4).map(node).collect();
        let sizes: Vec<&str> = vec!["1073741824"; 32];
        read_map(&format!(
            r#"{{"pools":[{{"name":"vms","replicas":2,"class":"ssd","pg_count":32}}],"nodes":[{}],"pg_bytes":{{"vms":[{}]}}}}"#,
            nodes.join(","),
            sizes.join(",")
        ))
        .unwrap()
    }

    #[test]
    fn node_specs_parse() {
        let spec: NodeSpec = "name=n9,zone=z2,rack=r1,disks=4x6TiB:ssd+1x10TB:hdd".parse().unwrap();
        assert_eq!((spec.name.as_str(), spec.disks.len()), ("n9", 5));
        assert_eq!(spec.disks[0], (6 << 40, "ssd".to_owned()));
        for (bad, expected) in [
            ("name=n9", "needs disks"),
            ("disks=1x1TiB:ssd", "needs name"),
            ("name=n9,disk=1x1TiB", "\"disk\" is not a field"),
            ("name=n9,disks=1x6TiX:ssd", "is not a size"),
            ("name=n9,disks=0x6TiB:ssd", "COUNTxSIZE:CLASS"),
            ("name=n9,disks=99999x6TiB", "COUNTxSIZE:CLASS"),
            ("name", "not KEY=VALUE"),
        ] {
            let told = bad.parse::<NodeSpec>().unwrap_err().to_string();
            assert!(told.contains(expected), "{bad}: {told}");
        }
    }

    #[test]
    fn an_added_and_a_removed_node_are_answered() {
        let mut map = three_nodes();
        map.input.current = plan(&map.input).target;
        map.add_node(&"name=n9,zone=z,rack=r9,disks=2x1TiB:ssd".parse().unwrap()).unwrap();
        map.remove_node("n2").unwrap();
        let p = plan(&map.input);
        let answer = what_if(&map, &p, eta(&map.input, &p, &Rates::default()));
        assert!(answer.eta_seconds.balanced.likely > 0.0);
        let json = serde_json::to_value(&answer).unwrap();
        for key in ["moves", "totals", "balance", "missing_capacity_bytes", "eta_seconds", "rejected"] {
            assert!(json.get(key).is_some(), "{key}");
        }
        assert_eq!(json["moves"][0]["pool"], "vms");
        assert_eq!(json["moves"][0]["class"], "drain");
        let after = read_map(&write_map(&map, &p.target)).unwrap();
        assert_eq!(after.nodes.len(), 4);
        assert!(plan(&after.input).moves.is_empty(), "the written map is the target");
        assert!(map.remove_node("n7").unwrap_err().to_string().contains("there are: n1, n2"));
        assert!(map.set_replicas("vm", 3).is_err() && map.set_replicas("vms", 0).is_err());
        assert!(map.add_node(&"name=n9,disks=1x1TiB".parse().unwrap()).is_err());
    }
}
