//! The map file: a cluster's topology, pools and placement as JSON, for planning without a cluster.
//!
//! ```json
//! {"pools": [{"name": "vms", "replicas": 3, "min_replicas": 2, "failure_domain": "node", "class": "ssd", "pg_count": 128}],
//!  "nodes": [{"name": "n1", "zone": "z1", "rack": "r1", "release": "1.0",
//!             "disks": [{"id": "d1", "class": "ssd", "capacity_bytes": 6597069766656, "state": "up"}]}],
//!  "assignment": {"vms": [["d1", "d5", "d9"]]}, "pg_bytes": {"vms": [1073741824]}}
//! ```
//!
//! `assignment` and `pg_bytes` may be left out; each row of `assignment` is one PG, primary first. Disk ids are
//! numbers, `dN`, or any other name. Unknown fields are refused, so that a typo is told rather than ignored.
//! Invariant: a map that was read contradicts itself nowhere. Non-goal: whether the topology can hold the pools is
//! the planner's to say.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::model::{DiskInfo, DiskState, FailureDomain, Input, PgPlacement, PoolSpec, Topology};
use crate::core::ids::{DiskId, NodeId, PgId, PoolId};

/// Larger maps are refused: 2^20 PG replicas with their names take about 12 MB.
pub const MAP_BYTES_MAX: usize = 64 << 20;
/// PGs of one pool: four times what the planner is measured at.
const PG_COUNT_MAX: u32 = 1 << 22;
/// Replicas of one PG: beyond any use, and it bounds a row.
const REPLICAS_MAX: u32 = 16;

/// What is wrong with a map.
#[derive(Debug, thiserror::Error)]
pub enum ReadMap {
    /// More than [`MAP_BYTES_MAX`].
    #[error("the map has {bytes} bytes; the most is {MAP_BYTES_MAX}")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// Not JSON, an unknown or missing field, a negative or fractional size; with line and column.
    #[error("the map is not well formed: {0}")]
    Malformed(#[from] serde_json::Error),
    /// Two items with one name.
    #[error("{what} {name} is listed twice")]
    Duplicate {
        /// The kind of item.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// A pool's numbers make no sense.
    #[error("pool {pool}: {why}")]
    PoolInvalid {
        /// The pool.
        pool: String,
        /// Why.
        why: String,
    },
    /// A name that nothing in the map has.
    #[error("{place} names {what} {name}, which the map doesn't have")]
    Unknown {
        /// Where.
        place: String,
        /// The kind of item.
        what: &'static str,
        /// As written.
        name: String,
    },
    /// As many rows as PGs are needed.
    #[error("{place} has {rows} rows; the pool has {pg_count} PGs")]
    RowCount {
        /// Where.
        place: String,
        /// As written.
        rows: usize,
        /// In the pool.
        pg_count: u32,
    },
    /// A row that breaks its pool's rule.
    #[error("{place}: {why}")]
    RowInvalid {
        /// Where.
        place: String,
        /// Why.
        why: String,
    },
}

/// A disk's id as a map writes it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum DiskName {
    /// A plain number.
    Number(u32),
    /// Anything else.
    Text(String),
}

impl DiskName {
    /// The number that a name of the usual form stands for.
    fn number(&self) -> Option<u32> {
        match self {
            DiskName::Number(n) => Some(*n),
            DiskName::Text(t) => t.strip_prefix('d').and_then(|n| n.parse().ok()),
        }
    }
}

impl std::fmt::Display for DiskName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            DiskName::Number(n) => write!(f, "{n}"),
            DiskName::Text(t) => f.write_str(t),
        }
    }
}

/// A pool in a map file.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct FilePool {
    /// Name.
    name: String,
    /// Copies.
    replicas: u32,
    /// Copies without which IO waits; default: replicas − 1, at least 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    min_replicas: Option<u32>,
    /// Where two copies may not meet.
    #[serde(default)]
    failure_domain: FailureDomain,
    /// Disks of this class only; empty or absent: any.
    #[serde(default)]
    class: Option<String>,
    /// Placement groups.
    pg_count: u32,
}

/// A disk in a map file.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct FileDisk {
    /// Id.
    id: DiskName,
    /// Class.
    #[serde(default)]
    class: String,
    /// Bytes that it can hold.
    capacity_bytes: u64,
    /// State.
    #[serde(default)]
    state: DiskState,
    /// Bytes that it holds.
    #[serde(default, skip_serializing_if = "is_zero")]
    used_bytes: u64,
    /// Bytes that are kept for moves under way.
    #[serde(default, skip_serializing_if = "is_zero")]
    reserved_bytes: u64,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// A node in a map file.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct FileNode {
    /// Name.
    name: String,
    /// Zone.
    #[serde(default)]
    zone: String,
    /// Rack.
    #[serde(default)]
    rack: String,
    /// The release that it runs.
    #[serde(default)]
    release: String,
    /// Its disks.
    disks: Vec<FileDisk>,
}

/// A map file: what `meta export` writes, and `plan --map` and `simulate --map` read.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MapFile {
    /// Pools.
    pools: Vec<FilePool>,
    /// Nodes and their disks.
    nodes: Vec<FileNode>,
    /// By pool: of each placement group the disks that hold it, the primary first.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "once_each")]
    assignment: Option<BTreeMap<String, Vec<Vec<DiskName>>>>,
    /// By pool: bytes that each placement group holds.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "once_each")]
    pg_bytes: Option<BTreeMap<String, Vec<u64>>>,
}

/// An object by pool; a pool that stands there twice is an error, not the last one's.
fn once_each<'de, D, T>(from: D) -> Result<Option<BTreeMap<String, T>>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct Once<T>(std::marker::PhantomData<T>);
    impl<'de, T: Deserialize<'de>> serde::de::Visitor<'de> for Once<T> {
        type Value = BTreeMap<String, T>;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object with a row list for each pool")
        }
        fn visit_map<A: serde::de::MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
            let mut out = BTreeMap::new();
            while let Some(pool) = access.next_key::<String>()? {
                if out.contains_key(&pool) {
                    return Err(serde::de::Error::custom(format_args!("pool {pool} is listed twice")));
                }
                out.insert(pool, access.next_value()?);
            }
            Ok(out)
        }
    }
    from.deserialize_map(Once(std::marker::PhantomData)).map(Some)
}

/// A map and the names in it.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct ClusterMap {
    /// What the planner reads.
    pub input: Input,
    pub(super) nodes: BTreeMap<NodeId, String>,
    /// Disks that are not called by their id.
    pub(super) disks: BTreeMap<DiskId, DiskName>,
    /// Nodes to be left out when the map is written.
    pub(super) removed: BTreeSet<NodeId>,
}

impl ClusterMap {
    /// The class of each disk.
    pub fn classes(&self) -> impl Iterator<Item = &str> {
        self.input.topology.disks.iter().map(|disk| disk.class.as_str())
    }

    /// A map of what a planner would read, with the nodes' names; `removed` nodes are left out when it is written.
    pub fn new(input: Input, nodes: BTreeMap<NodeId, String>, removed: BTreeSet<NodeId>) -> Self {
        ClusterMap { input, nodes, disks: BTreeMap::new(), removed }
    }
    /// A disk's id as the map writes it.
    pub fn disk(&self, id: DiskId) -> DiskName {
        self.disks.get(&id).cloned().unwrap_or_else(|| DiskName::Text(id.to_string()))
    }
    /// The same as text.
    pub fn disk_name(&self, id: DiskId) -> String {
        self.disk(id).to_string()
    }
    /// A node's name.
    pub fn node_name(&self, id: NodeId) -> String {
        self.nodes.get(&id).cloned().unwrap_or_else(|| id.to_string())
    }
    /// A pool's name.
    pub fn pool_name(&self, id: PoolId) -> String {
        self.input.pools.iter().find(|p| p.id == id).map_or_else(|| id.to_string(), |p| p.name.clone())
    }
}

/// Reads a map file.
///
/// # Errors
/// The first thing that is wrong with it, by line or item.
pub fn read_map(text: &str) -> Result<ClusterMap, ReadMap> {
    if text.len() > MAP_BYTES_MAX {
        return Err(ReadMap::TooLarge { bytes: text.len() });
    }
    let file: MapFile = serde_json::from_str(text)?;
    let mut map = ClusterMap::default();
    let ids = read_nodes(&mut map, &file)?;
    read_pools(&mut map, &file)?;
    read_rows(&mut map, &file, &ids)?;
    Ok(map)
}

fn read_nodes(map: &mut ClusterMap, file: &MapFile) -> Result<HashMap<DiskName, DiskId>, ReadMap> {
    let mut names = BTreeSet::new();
    let mut ids: HashMap<DiskName, DiskId> = HashMap::new();
    let all = || file.nodes.iter().flat_map(|n| &n.disks);
    let mut next = all().filter_map(|d| d.id.number()).max().unwrap_or(0);
    let mut topology = Topology::default();
    for (at, node) in file.nodes.iter().enumerate() {
        if !names.insert(&node.name) {
            return Err(ReadMap::Duplicate { what: "node", name: node.name.clone() });
        }
        let id = NodeId(at as u32 + 1);
        map.nodes.insert(id, node.name.clone());
        for disk in &node.disks {
            let number = disk.id.number().unwrap_or_else(|| {
                next = next.saturating_add(1);
                next
            });
            // `5` and `d5` are one disk.
            if ids.insert(disk.id.clone(), DiskId(number)).is_some() || map.disks.contains_key(&DiskId(number)) {
                return Err(ReadMap::Duplicate { what: "disk", name: disk.id.to_string() });
            }
            map.disks.insert(DiskId(number), disk.id.clone());
            topology.disks.push(DiskInfo {
                id: DiskId(number),
                node: id,
                rack: node.rack.clone(),
                zone: node.zone.clone(),
                release: node.release.clone(),
                class: disk.class.clone(),
                capacity_bytes: disk.capacity_bytes,
                state: disk.state,
                used_bytes: disk.used_bytes,
                reserved_bytes: disk.reserved_bytes,
            });
        }
    }
    map.input.topology = topology;
    Ok(ids)
}

fn read_pools(map: &mut ClusterMap, file: &MapFile) -> Result<(), ReadMap> {
    let mut names = BTreeSet::new();
    for (at, pool) in file.pools.iter().enumerate() {
        if !names.insert(&pool.name) {
            return Err(ReadMap::Duplicate { what: "pool", name: pool.name.clone() });
        }
        let invalid = |why: String| Err(ReadMap::PoolInvalid { pool: pool.name.clone(), why });
        if !(1..=REPLICAS_MAX).contains(&pool.replicas) {
            return invalid(format!("replicas is {}; it lies between 1 and {REPLICAS_MAX}", pool.replicas));
        }
        if !(1..=PG_COUNT_MAX).contains(&pool.pg_count) {
            return invalid(format!("pg_count is {}; it lies between 1 and {PG_COUNT_MAX}", pool.pg_count));
        }
        let min_replicas = pool.min_replicas.unwrap_or(pool.replicas / 2 + 1);
        if !(1..=pool.replicas).contains(&min_replicas) {
            return invalid(format!(
                "min_replicas is {min_replicas}; it lies between 1 and replicas ({})",
                pool.replicas
            ));
        }
        map.input.pools.push(PoolSpec {
            id: PoolId(at as u32 + 1),
            name: pool.name.clone(),
            replicas: pool.replicas,
            min_replicas,
            failure_domain: pool.failure_domain,
            class: pool.class.clone(),
            pg_count: pool.pg_count,
        });
    }
    Ok(())
}

fn read_rows(map: &mut ClusterMap, file: &MapFile, ids: &HashMap<DiskName, DiskId>) -> Result<(), ReadMap> {
    let by_id: HashMap<DiskId, &DiskInfo> = map.input.topology.disks.iter().map(|d| (d.id, d)).collect();
    let by_name: HashMap<&str, &PoolSpec> = map.input.pools.iter().map(|p| (p.name.as_str(), p)).collect();
    let known = |place: &'static str, name: &String| match by_name.get(name.as_str()) {
        Some(pool) => Ok(*pool),
        None => Err(ReadMap::Unknown { place: place.to_owned(), what: "pool", name: name.clone() }),
    };
    let count = |place: String, rows: usize, pool: &PoolSpec| match rows == pool.pg_count as usize {
        true => Ok(()),
        false => Err(ReadMap::RowCount { place, rows, pg_count: pool.pg_count }),
    };
    for (name, sizes) in file.pg_bytes.iter().flatten() {
        count(format!("pg_bytes of pool {name}"), sizes.len(), known("pg_bytes", name)?)?;
    }
    let mut current = Vec::new();
    for (name, rows) in file.assignment.iter().flatten() {
        let pool = known("assignment", name)?;
        count(format!("assignment of pool {name}"), rows.len(), pool)?;
        let sizes = file.pg_bytes.as_ref().and_then(|p| p.get(name));
        for (index, row) in rows.iter().enumerate() {
            let place = || format!("assignment of pool {name}, row {index}");
            let mut disks: Vec<DiskId> = Vec::with_capacity(row.len());
            for disk in row {
                let found =
                    ids.get(disk).copied().or_else(|| disk.number().map(DiskId)).filter(|d| by_id.contains_key(d));
                let id =
                    found.ok_or_else(|| ReadMap::Unknown { place: place(), what: "disk", name: disk.to_string() })?;
                if let Some(other) = disks.iter().find(|o| share_domain(pool.failure_domain, by_id[o], by_id[&id])) {
                    let why = format!("{disk} and {} are in one failure domain", map.disk_name(*other));
                    return Err(ReadMap::RowInvalid { place: place(), why });
                }
                disks.push(id);
            }
            if disks.len() > pool.replicas as usize {
                let why = format!("{} replicas; the pool has {}", disks.len(), pool.replicas);
                return Err(ReadMap::RowInvalid { place: place(), why });
            }
            let bytes = sizes.and_then(|s| s.get(index)).copied().unwrap_or(0);
            current.push(PgPlacement { pg: PgId { pool: pool.id, index: index as u32 }, bytes, disks });
        }
    }
    // Sizes without an assignment count for the first placement.
    for (name, sizes) in file.pg_bytes.iter().flatten() {
        if !file.assignment.as_ref().is_some_and(|a| a.contains_key(name)) {
            let pool = by_name[name.as_str()].id;
            let row =
                |(i, b): (usize, &u64)| PgPlacement { pg: PgId { pool, index: i as u32 }, bytes: *b, disks: vec![] };
            current.extend(sizes.iter().enumerate().map(row));
        }
    }
    current.sort_by_key(|r| r.pg);
    map.input.current = current;
    Ok(())
}

fn share_domain(level: FailureDomain, a: &DiskInfo, b: &DiskInfo) -> bool {
    match level {
        FailureDomain::Disk => a.id == b.id,
        FailureDomain::Node | FailureDomain::Release => a.node == b.node,
        FailureDomain::Rack => (&a.zone, &a.rack) == (&b.zone, &b.rack),
        FailureDomain::Zone => a.zone == b.zone,
    }
}

/// Writes the map with `rows` as its assignment. Removed nodes are left out, with what rows still name of them.
pub fn write_map(map: &ClusterMap, rows: &[PgPlacement]) -> String {
    let removed: BTreeSet<DiskId> =
        map.input.topology.disks.iter().filter(|d| map.removed.contains(&d.node)).map(|d| d.id).collect();
    let name = |id: &DiskId| map.disk(*id);
    let mut disks: BTreeMap<NodeId, Vec<&DiskInfo>> = BTreeMap::new();
    map.input.topology.disks.iter().for_each(|d| disks.entry(d.node).or_default().push(d));
    let file_disk = |d: &&DiskInfo| FileDisk {
        id: name(&d.id),
        class: d.class.clone(),
        capacity_bytes: d.capacity_bytes,
        state: d.state,
        used_bytes: d.used_bytes,
        reserved_bytes: d.reserved_bytes,
    };
    let mut assignment: BTreeMap<String, Vec<Vec<DiskName>>> = BTreeMap::new();
    let mut pg_bytes: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    let mut sorted: Vec<&PgPlacement> = rows.iter().collect();
    sorted.sort_by_key(|r| r.pg);
    for row in sorted {
        let pool = map.pool_name(row.pg.pool);
        let kept = row.disks.iter().filter(|d| !removed.contains(d)).map(name).collect();
        assignment.entry(pool.clone()).or_default().push(kept);
        pg_bytes.entry(pool).or_default().push(row.bytes);
    }
    let file = MapFile {
        pools: map
            .input
            .pools
            .iter()
            .map(|p| FilePool {
                name: p.name.clone(),
                replicas: p.replicas,
                min_replicas: Some(p.min_replicas),
                failure_domain: p.failure_domain,
                class: p.class.clone(),
                pg_count: p.pg_count,
            })
            .collect(),
        nodes: disks
            .iter()
            .filter(|(n, _)| !map.removed.contains(n))
            .map(|(n, list)| FileNode {
                name: map.node_name(*n),
                zone: list[0].zone.clone(),
                rack: list[0].rack.clone(),
                release: list[0].release.clone(),
                disks: list.iter().map(file_disk).collect(),
            })
            .collect(),
        assignment: Some(assignment),
        pg_bytes: Some(pg_bytes),
    };
    // Only maps with other keys than strings can't be written; these have strings.
    serde_json::to_string(&file).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::placement::{check, plan};

    const SMALL: &str = r#"{
      "pools": [{"name": "vms", "replicas": 2, "failure_domain": "node", "class": "ssd", "pg_count": 2}],
      "nodes": [
        {"name": "a", "zone": "z", "rack": "r", "release": "1.0",
         "disks": [{"id": 1, "class": "ssd", "capacity_bytes": 1000, "state": "up"}, {"id": "d2", "class": "ssd", "capacity_bytes": 1000}]},
        {"name": "b", "disks": [{"id": "fast", "class": "ssd", "capacity_bytes": 1000, "state": "draining"}]},
        {"name": "c", "disks": [{"id": 3, "class": "ssd", "capacity_bytes": 1000}]}],
      "assignment": {"vms": [["fast", "d1"], [2, "fast"]]},
      "pg_bytes": {"vms": [10, 20]}
    }"#;

    #[test]
    fn a_map_is_read_planned_and_written() {
        let map = read_map(SMALL).unwrap();
        assert_eq!(map.input.current[0].disks, [DiskId(4), DiskId(1)]);
        assert_eq!(map.disk_name(DiskId(4)), "fast");
        let p = plan(&map.input);
        assert_eq!(check(&map.input, &p), Ok(()));
        assert!(p.moves.iter().all(|m| m.to == DiskId(3)), "{:?}", p.moves);
        let again = read_map(&write_map(&map, &p.target)).unwrap();
        assert_eq!(again.input.current, p.target);
        assert_eq!(again.input.pools, map.input.pools);
        assert_eq!(again.input.topology, map.input.topology);
        let mut removed = map.clone();
        removed.removed.insert(NodeId(2));
        let text = write_map(&removed, &p.target);
        assert!(!text.contains("fast") && read_map(&text).is_ok());
    }

    #[test]
    fn what_is_wrong_is_named() {
        let cases = [
            ("\"replicas\": 2", "\"replica\": 2", "unknown field `replica`"),
            ("\"replicas\": 2", "\"replicas\": 0", "pool vms: replicas is 0"),
            ("\"capacity_bytes\": 1000", "\"capacity_bytes\": -1", "line 5"),
            ("\"id\": 3", "\"id\": \"d1\"", "disk d1 is listed twice"),
            ("\"name\": \"c\"", "\"name\": \"a\"", "node a is listed twice"),
            ("[2, \"fast\"]", "[2, 9]", "assignment of pool vms, row 1 names disk 9"),
            ("[2, \"fast\"]", "[2, 1]", "row 1: 1 and d2 are in one failure domain"),
            ("[2, \"fast\"]", "[2, 2]", "row 1: 2 and d2 are in one failure domain"),
            ("[2, \"fast\"]", "[2, \"fast\"], []", "has 3 rows; the pool has 2 PGs"),
            ("[10, 20]", "[10]", "pg_bytes of pool vms has 1 rows"),
            ("{\"vms\": [10, 20]}", "{\"vm\": [10, 20]}", "pg_bytes names pool vm"),
            ("\"pg_count\": 2", "\"pg_count\": 4294967295", "pg_count is 4294967295"),
            ("\"state\": \"up\"", "\"state\": \"upp\"", "unknown variant `upp`"),
            ("{\"vms\": [10, 20]}", "{\"vms\": [10, 20], \"vms\": [1, 2]}", "pool vms is listed twice at line"),
        ];
        for (from, to, expected) in cases {
            let text = SMALL.replacen(from, to, 1);
            assert_ne!(text, SMALL, "{from}");
            let told = read_map(&text).unwrap_err().to_string();
            assert!(told.contains(expected), "{to}: {told}");
        }
        assert!(matches!(read_map(&" ".repeat(MAP_BYTES_MAX + 1)), Err(ReadMap::TooLarge { .. })));
    }
}
