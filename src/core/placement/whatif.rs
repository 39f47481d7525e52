//! What-if: changes to a map that has not happened yet, and the answer as one record.
//!
//! The command line's specs are parsed here, so that the live and the offline path, and the simulator, share one
//! form: `name=n9,zone=z2,rack=r1,disks=4x6TiB:ssd`. Non-goal: printing.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::check::check;
use super::eta::eta;
use super::eta::{Eta, Rates};
use super::map::write_map;
use super::map::{ClusterMap, DiskName};
use super::model::{Balance, DiskInfo, DiskState, FailureDomain, MissingCapacity, MoveClass, Plan, Rejected, Totals};
use super::planner::plan;
use crate::core::ids::{DiskId, NodeId, PoolId};
use crate::core::units::{HumanBytes, ParseUnit, parse_bytes};

/// Disks of one added node: more than any chassis holds.
const NODE_DISKS_MAX: u32 = 1024;

/// "What if …": changes to a map, in the command line's form, and what resync may use.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Question {
    /// Nodes to add, as `name=n9,zone=z2,rack=r1,disks=4x6TiB:ssd`.
    pub add_node: Vec<String>,
    /// Nodes to remove or drain, by name.
    pub remove_node: Vec<String>,
    /// Nodes whose drain or maintenance ends, by name.
    pub undrain_node: Vec<String>,
    /// POOL=N.
    pub replicas: Vec<String>,
    /// POOL=DOMAIN.
    pub failure_domain: Vec<String>,
    /// POOL=CLASS; the class `any`: every disk.
    pub class: Vec<String>,
    /// Bytes per second of one disk, for reads and for writes each.
    pub disk_rate_bytes_per_sec: Option<u64>,
    /// The part of the rates that foreground IO takes.
    pub foreground_share: Option<f64>,
    /// The answer carries the map afterwards.
    pub write_map: bool,
}

impl Question {
    /// `rates`, with what the question says of them.
    pub fn rates(&self, rates: Rates) -> Rates {
        Rates {
            disk_bytes_per_sec: self.disk_rate_bytes_per_sec.unwrap_or(rates.disk_bytes_per_sec),
            foreground_share: self.foreground_share.unwrap_or(rates.foreground_share),
            ..rates
        }
    }
}

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
    /// Not POOL=VALUE.
    #[error("{text:?} is not {form}, as in {example}")]
    PoolValue {
        /// As written.
        text: String,
        /// How it is written.
        form: &'static str,
        /// For instance.
        example: &'static str,
    },
    /// A replica count out of bounds.
    #[error("{replicas} replicas: it lies between 1 and 16")]
    Replicas {
        /// As written.
        replicas: u32,
    },
    /// A bug of the planner; nothing of its plan may be used.
    #[error("the plan was refused by its checker, {violations} times; the first: {first}")]
    PlanRefused {
        /// How many.
        violations: usize,
        /// The first one.
        first: String,
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
        let known = self.input.topology.disks.iter().map(|d| d.node).chain(self.nodes.keys().copied());
        let node = NodeId(known.map(|n| n.0).max().unwrap_or(0).saturating_add(1));
        self.nodes.insert(node, spec.name.clone());
        let mut id = self.input.topology.disks.iter().map(|d| d.id.0).max().unwrap_or(0);
        let mut ids = Vec::with_capacity(spec.disks.len());
        for (n, (capacity_bytes, class)) in spec.disks.iter().enumerate() {
            id = id.saturating_add(1);
            ids.push(DiskId(id));
            let name = DiskName::Text(format!("{}/{}", spec.name, n + 1));
            if !self.disks.values().any(|d| *d == name) {
                self.disks.insert(DiskId(id), name);
            }
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

    /// Makes the changes that a question asks for.
    ///
    /// # Errors
    /// The first change that makes no sense; what came before it is made.
    pub fn change(&mut self, question: &Question) -> Result<(), ChangeMap> {
        for spec in &question.add_node {
            self.add_node(&spec.parse()?)?;
        }
        for name in &question.remove_node {
            self.remove_node(name)?;
        }
        for name in &question.undrain_node {
            self.undrain_node(name)?;
        }
        for text in &question.replicas {
            let wrong = || ChangeMap::PoolValue { text: text.clone(), form: "POOL=N", example: "default=3" };
            let (pool, n) = text.split_once('=').ok_or_else(wrong)?;
            self.set_replicas(pool, n.parse().map_err(|_| wrong())?)?;
        }
        for text in &question.failure_domain {
            let form = "POOL=DOMAIN with disk, node, rack, zone or release";
            let wrong = || ChangeMap::PoolValue { text: text.clone(), form, example: "default=rack" };
            let (pool, domain) = text.split_once('=').ok_or_else(wrong)?;
            self.set_failure_domain(pool, FailureDomain::parse(domain).ok_or_else(wrong)?)?;
        }
        for text in &question.class {
            let wrong = || ChangeMap::PoolValue { text: text.clone(), form: "POOL=CLASS", example: "default=ssd" };
            let (pool, class) = text.split_once('=').ok_or_else(wrong)?;
            self.set_class(pool, class)?;
        }
        Ok(())
    }

    /// Plans a node's removal: its disks drain where they can still be read, and a written map leaves it out.
    ///
    /// # Errors
    /// There is no such node.
    pub fn remove_node(&mut self, name: &str) -> Result<(), ChangeMap> {
        let node = self.find_node(name)?;
        self.removed.insert(node);
        for disk in self.input.topology.disks.iter_mut().filter(|d| d.node == node) {
            disk.state = if disk.state.is_live() { DiskState::Draining } else { DiskState::Lost };
        }
        Ok(())
    }

    /// Ends a node's drain or maintenance: what can be read of it takes replicas again.
    ///
    /// # Errors
    /// There is no such node.
    pub fn undrain_node(&mut self, name: &str) -> Result<(), ChangeMap> {
        let node = self.find_node(name)?;
        let disks = self.input.topology.disks.iter_mut().filter(|d| d.node == node);
        disks
            .filter(|d| matches!(d.state, DiskState::Draining | DiskState::Maintenance))
            .for_each(|d| d.state = DiskState::Up);
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

    /// Sets the class of a pool's disks; `any` and the empty one: every disk.
    ///
    /// # Errors
    /// There is no such pool.
    pub fn set_class(&mut self, pool: &str, class: &str) -> Result<(), ChangeMap> {
        let at = self.find_pool(pool)?;
        self.input.pools[at].class = (!matches!(class, "" | "any")).then(|| class.to_owned());
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

    /// A disk by its id as written.
    ///
    /// # Errors
    /// There is none.
    pub fn find_disk(&self, name: &str) -> Result<DiskId, ChangeMap> {
        let all = || self.input.topology.disks.iter().map(|d| d.id);
        let found = all().find(|id| self.disk_name(*id) == name);
        let names: Vec<String> = all().take(8).map(|id| self.disk_name(id)).collect();
        found.ok_or_else(|| unknown("disk", name, names.iter().map(String::as_str)))
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
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct NamedMove {
    /// The pool's name.
    pub pool: String,
    /// The PG's index in it.
    pub pg: u32,
    /// The disk that gives it up; none where a copy is added.
    pub from: Option<DiskName>,
    /// The disk that gets it.
    pub to: DiskName,
    /// Bytes to copy.
    pub bytes: u64,
    /// How urgent.
    pub class: MoveClass,
}

/// A copy given up without a successor, by names.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct NamedRemoval {
    /// The pool's name.
    pub pool: String,
    /// The PG's index in it.
    pub pg: u32,
    /// The disk that gives it up.
    pub disk: DiskName,
    /// Bytes that come free.
    pub bytes: u64,
}

/// Space that lacks for a pool's copies in one place, by names.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct NamedMissing {
    /// The pool's name.
    pub pool: String,
    /// Disks of this class would do; empty: of any.
    pub class: String,
    /// `disk`, `node`, `rack`, `zone` or `release`.
    pub level: String,
    /// The failure domain in which space would do; `null`: only a further one would.
    pub domain: Option<String>,
    /// How much, below the backfill limit.
    pub bytes: u64,
}

impl std::fmt::Display for NamedMissing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let class = if self.class.is_empty() { String::new() } else { format!(" of class {}", self.class) };
        write!(f, "{}{class} for pool {} in ", HumanBytes(self.bytes), self.pool)?;
        match &self.domain {
            Some(domain) => write!(f, "{} {domain}", self.level),
            None => write!(f, "a further {}", self.level),
        }
    }
}

impl ClusterMap {
    /// By names.
    pub fn missing(&self, m: &MissingCapacity) -> NamedMissing {
        let disk = m.domain_of.and_then(|id| self.input.topology.disks.iter().find(|d| d.id == id));
        let level = match m.level {
            FailureDomain::Disk => "disk",
            // Under it two replicas never share a node; releases themselves are best effort.
            FailureDomain::Node | FailureDomain::Release => "node",
            FailureDomain::Rack => "rack",
            FailureDomain::Zone => "zone",
        };
        let name = |d: &DiskInfo| match m.level {
            FailureDomain::Disk => self.disk_name(d.id),
            FailureDomain::Node | FailureDomain::Release => self.node_name(d.node),
            FailureDomain::Rack => format!("{}/{}", d.zone, d.rack),
            FailureDomain::Zone => d.zone.clone(),
        };
        let pool = self.input.pools.iter().find(|p| p.id == m.pool);
        NamedMissing {
            pool: pool.map_or_else(|| m.pool.to_string(), |p| p.name.clone()),
            class: m.class.clone().unwrap_or_default(),
            level: level.to_owned(),
            domain: disk.map(name),
            bytes: m.bytes,
        }
    }
}

/// The answer to a what-if, as `plan -o json` prints it.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct WhatIf {
    /// Every move.
    pub moves: Vec<NamedMove>,
    /// Copies beyond their pool's count.
    #[serde(default)]
    pub removals: Vec<NamedRemoval>,
    /// Sums.
    pub totals: Totals,
    /// Evenness.
    pub balance: Balance,
    /// Bytes that lack room.
    pub missing_capacity_bytes: u64,
    /// The same by pool and failure domain.
    #[serde(default)]
    pub missing_capacity: Vec<NamedMissing>,
    /// When it would be done.
    pub eta_seconds: Eta,
    /// What can't be done.
    pub rejected: Vec<Rejected>,
    /// The map afterwards, if the question asks for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub map: Option<String>,
}

/// Puts a plan for `map` in names.
pub fn what_if(map: &ClusterMap, plan: &Plan, eta: Eta) -> WhatIf {
    let pools: std::collections::HashMap<PoolId, &str> =
        map.input.pools.iter().map(|p| (p.id, p.name.as_str())).collect();
    let pool_of = |id: PoolId| pools.get(&id).map_or_else(|| id.to_string(), |n| (*n).to_owned());
    let named = |m: &super::model::Move| NamedMove {
        pool: pool_of(m.pg.pool),
        pg: m.pg.index,
        from: m.from.map(|d| map.disk(d)),
        to: map.disk(m.to),
        bytes: m.bytes,
        class: m.class,
    };
    let removal = |r: &super::model::Removal| NamedRemoval {
        pool: pool_of(r.pg.pool),
        pg: r.pg.index,
        disk: map.disk(r.disk),
        bytes: r.bytes,
    };
    WhatIf {
        moves: plan.moves.iter().map(named).collect(),
        removals: plan.removals.iter().map(removal).collect(),
        totals: plan.totals,
        balance: plan.balance,
        missing_capacity_bytes: plan.missing_capacity_bytes,
        missing_capacity: plan.missing_capacity.iter().map(|m| map.missing(m)).collect(),
        eta_seconds: eta,
        rejected: plan.rejected.clone(),
        map: None,
    }
}

/// Answers a question about `map` with a plan that its checker accepts. `rates` is what holds unless the question says
/// otherwise.
///
/// # Errors
/// The question makes no sense, or the checker refuses the plan.
pub fn answer(mut map: ClusterMap, question: &Question, rates: Rates) -> Result<WhatIf, ChangeMap> {
    map.change(question)?;
    let made = plan(&map.input);
    if let Err(violations) = check(&map.input, &made) {
        let first = violations.first().map(ToString::to_string).unwrap_or_default();
        return Err(ChangeMap::PlanRefused { violations: violations.len(), first });
    }
    let eta = eta(&map.input, &made, &question.rates(rates));
    let mut answer = what_if(&map, &made, eta);
    answer.map = question.write_map.then(|| write_map(&map, &made.target));
    Ok(answer)
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
        for key in
            ["moves", "totals", "balance", "missing_capacity_bytes", "missing_capacity", "eta_seconds", "rejected"]
        {
            assert!(json.get(key).is_some(), "{key}");
        }
        assert_eq!(json["moves"][0]["pool"], "vms");
        assert_eq!(json["moves"][0]["class"], "drain");
        assert!(answer.moves.iter().any(|m| m.to == DiskName::Text("n9/2".to_owned())));
        let after = read_map(&write_map(&map, &p.target)).unwrap();
        assert_eq!(after.nodes.len(), 4);
        assert!(plan(&after.input).moves.is_empty(), "the written map is the target");
        assert!(map.remove_node("n7").unwrap_err().to_string().contains("there are: n1, n2"));
        assert!(map.set_replicas("vm", 3).is_err() && map.set_replicas("vms", 0).is_err());
        assert!(map.add_node(&"name=n9,disks=1x1TiB".parse().unwrap()).is_err());
    }
}
