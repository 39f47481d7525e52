//! The cluster map as a state machine: commands in, changed records and happenings out.
//!
//! Call order: [`ClusterState::apply`] either refuses and changes nothing, or changes the map at once; the caller makes
//! the changed records durable before it shows any effect to anyone. Deltas for followers come from
//! [`ClusterState::delta_since`](super::delta).
//!
//! Invariants: see [`super`]; [`ClusterState::check`] tests them. Pure: no clock, no randomness.
//!
//! Non-goals: who is alive (see [`Liveness`](super::command::Liveness)), who waits for a volume, where replicas should be.

use std::collections::{BTreeMap, BTreeSet};

use super::command::{Applied, Command, Context, Happening, Outcome, RecordKey, Refusal};
use super::delta::Versions;
use super::layout;
use super::{
    ClusterMap, Disk, DiskAdminState, FailureDomain, Job, Node, NodeAdminState, PgConfig, Pool, Settings, Volume,
    VolumeQos,
};
use crate::core::ids::{DiskId, NodeId, PgId, PoolId, VolumeId};
use crate::core::units::HumanBytes;

/// Copies of a PG beyond which nobody goes; bounds configurations.
pub const REPLICAS_MAX: u32 = 16;
/// Bounds the map: 2^16 PGs of 3 replicas serve 2,000 disks from one pool.
pub const PG_COUNT_MAX: u32 = 65_536;
/// Below this a disk holds less than a few chunks.
pub const DISK_BYTES_MIN: u64 = 64 << 20;
/// A name fits a file name and an NBD export name.
pub const NAME_BYTES_MAX: usize = 128;

/// The next id of each kind; persisted, so that none is ever used twice (R4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextIds {
    /// Next NodeId.
    pub node: u32,
    /// Next DiskId.
    pub disk: u32,
    /// Next PoolId.
    pub pool: u32,
    /// Next VolumeId.
    pub volume: u64,
}

impl Default for NextIds {
    fn default() -> Self {
        NextIds { node: 1, disk: 1, pool: 1, volume: 1 }
    }
}

/// The map, its next ids and the version of each record.
#[derive(Clone, Debug, Default)]
pub struct ClusterState {
    pub(super) map: ClusterMap,
    pub(super) next: NextIds,
    pub(super) versions: Versions,
    read_only: BTreeSet<RecordKey>,
}

impl ClusterState {
    /// No cluster yet: only `Init` is taken.
    pub fn empty() -> Self {
        ClusterState::default()
    }

    /// As it was stored. `read_only` names the records that hold what this binary doesn't know (R28).
    pub fn restore(map: ClusterMap, next: NextIds, read_only: BTreeSet<RecordKey>) -> Self {
        let versions = Versions::starting_at(map.version);
        ClusterState { map, next, versions, read_only }
    }

    /// The map as it is now.
    pub fn map(&self) -> &ClusterMap {
        &self.map
    }

    /// The next ids.
    pub fn next_ids(&self) -> NextIds {
        self.next
    }

    /// Carries out a command, or refuses it and changes nothing.
    ///
    /// # Errors
    /// The command doesn't fit the map; see [`Refusal`].
    pub fn apply(&mut self, command: Command, context: &Context<'_>) -> Result<Applied, Refusal> {
        let mut tx = Tx::new(&self.map, self.next);
        let outcome = tx.run(command, context)?;
        let Tx { writes, happenings, next, init, .. } = tx;
        if let Some(key) = writes.keys().find(|k| self.read_only.contains(k)) {
            return Err(Refusal::ReadOnly(*key));
        }
        if let Some(map) = init {
            self.map = map;
        }
        self.next = next;
        let changed: Vec<RecordKey> = writes.keys().copied().collect();
        if !changed.is_empty() {
            self.map.version += 1;
        }
        for (key, record) in writes {
            self.versions.touch(key, self.map.version, record.is_none());
            put(&mut self.map, key, record);
        }
        Ok(Applied { changed, happenings, outcome })
    }

    /// What `apply` would answer; changes nothing.
    ///
    /// # Errors
    /// As [`ClusterState::apply`].
    pub fn probe(&self, command: Command, context: &Context<'_>) -> Result<Outcome, Refusal> {
        Tx::new(&self.map, self.next).run(command, context)
    }

    /// The first invariant that doesn't hold, as a sentence. For tests, and after loading.
    ///
    /// # Errors
    /// An invariant is broken.
    pub fn check(&self) -> Result<(), String> {
        super::check::check(&self.map, self.next)
    }
}

/// A record of any kind, new or changed.
#[derive(Clone, Debug)]
pub(super) enum Record {
    Node(Node),
    Disk(Disk),
    Pool(Pool),
    Volume(Volume),
    Pg(PgConfig),
    Settings(Box<Settings>),
    Job(Job),
}

fn put(map: &mut ClusterMap, key: RecordKey, record: Option<Record>) {
    match (key, record) {
        (_, Some(Record::Node(n))) => drop(map.nodes.insert(n.id, n)),
        (_, Some(Record::Disk(d))) => drop(map.disks.insert(d.id, d)),
        (_, Some(Record::Pool(p))) => drop(map.pools.insert(p.id, p)),
        (_, Some(Record::Volume(v))) => drop(map.volumes.insert(v.id, v)),
        (_, Some(Record::Pg(c))) => drop(map.pgs.insert(c.pg, c)),
        (_, Some(Record::Settings(s))) => map.settings = *s,
        (_, Some(Record::Job(j))) => drop(map.jobs.insert(j.id, j)),
        (RecordKey::Node(id), None) => drop(map.nodes.remove(&id)),
        (RecordKey::Disk(id), None) => drop(map.disks.remove(&id)),
        (RecordKey::Pool(id), None) => drop(map.pools.remove(&id)),
        (RecordKey::Volume(id), None) => drop(map.volumes.remove(&id)),
        (RecordKey::Pg(id), None) => drop(map.pgs.remove(&id)),
        (RecordKey::Settings, None) => map.settings = Settings::default(),
        (RecordKey::Job(id), None) => drop(map.jobs.remove(&id)),
    }
}

/// Writes that take effect together, or not at all.
pub(super) struct Tx<'a> {
    pub(super) map: &'a ClusterMap,
    pub(super) next: NextIds,
    writes: BTreeMap<RecordKey, Option<Record>>,
    happenings: Vec<Happening>,
    init: Option<ClusterMap>,
}

impl<'a> Tx<'a> {
    fn new(map: &'a ClusterMap, next: NextIds) -> Self {
        Tx { map, next, writes: BTreeMap::new(), happenings: Vec::new(), init: None }
    }

    pub(super) fn write(&mut self, record: Record) {
        let key = match &record {
            Record::Node(n) => RecordKey::Node(n.id),
            Record::Disk(d) => RecordKey::Disk(d.id),
            Record::Pool(p) => RecordKey::Pool(p.id),
            Record::Volume(v) => RecordKey::Volume(v.id),
            Record::Pg(c) => RecordKey::Pg(c.pg),
            Record::Settings(_) => RecordKey::Settings,
            Record::Job(j) => RecordKey::Job(j.id),
        };
        self.writes.insert(key, Some(record));
    }

    pub(super) fn remove(&mut self, key: RecordKey) {
        self.writes.insert(key, None);
    }

    pub(super) fn tell(&mut self, kind: &'static str, text: String) {
        self.happenings.push(Happening { kind, text });
    }

    fn run(&mut self, command: Command, context: &Context<'_>) -> Result<Outcome, Refusal> {
        if let Command::Init { cluster, feature_level } = command {
            if self.map.version != 0 {
                return Err(Refusal::MapExists);
            }
            let map = ClusterMap { cluster, epoch: 1, feature_level, ..ClusterMap::default() };
            self.init = Some(map);
            self.write(Record::Settings(Box::default()));
            self.tell("cluster-created", format!("Cluster {cluster} was created."));
            return Ok(Outcome::Done);
        }
        if self.map.version == 0 {
            return Err(Refusal::NoMap);
        }
        match command {
            Command::Init { .. } => Err(Refusal::MapExists),
            Command::AddNode { name, addr, zone, rack } => {
                check_name("node", &name)?;
                if self.map.nodes.values().any(|n| n.name == name && n.admin_state != NodeAdminState::Removed) {
                    return Err(Refusal::NameTaken { what: "node", name });
                }
                let id = NodeId(take(&mut self.next.node, "node")?);
                self.tell("node-joined", format!("Node {name} joined as {id}."));
                self.write(Record::Node(Node {
                    id,
                    name,
                    addr,
                    admin_url: String::new(),
                    zone,
                    rack,
                    release: String::new(),
                    admin_state: NodeAdminState::Active,
                }));
                Ok(Outcome::Node(id))
            }
            Command::UpdateNode { node, addr, admin_url, release } => {
                let old = self.live_node(node)?;
                let new = Node { addr, admin_url, release, ..old.clone() };
                if new != *old {
                    self.write(Record::Node(new));
                }
                Ok(Outcome::Done)
            }
            Command::SetNodeState { node, state } => self.set_node_state(&node, state),
            Command::AllocDisk { node, class, capacity_bytes } => {
                self.live_node(node)?;
                if capacity_bytes < DISK_BYTES_MIN {
                    return Err(Refusal::DiskTooSmall { capacity_bytes });
                }
                let id = DiskId(take(&mut self.next.disk, "disk")?);
                self.tell("disk-added", format!("Node {node} added disk {id} of {}.", HumanBytes(capacity_bytes)));
                let admin_state = DiskAdminState::Active;
                self.write(Record::Disk(Disk { id, node, class, capacity_bytes, admin_state }));
                Ok(Outcome::Disk(id))
            }
            Command::UpdateDisk { disk, class, capacity_bytes } => {
                let old = self.disk(disk)?;
                if (old.class.as_str(), old.capacity_bytes) != (class.as_str(), capacity_bytes) {
                    self.write(Record::Disk(Disk { class, capacity_bytes, ..old.clone() }));
                }
                Ok(Outcome::Done)
            }
            Command::DiskFailed { disk } => {
                let old = self.disk(disk)?;
                if matches!(old.admin_state, DiskAdminState::Active | DiskAdminState::Draining) {
                    self.tell("disk-failed", format!("Disk {disk} of node {} failed.", old.node));
                    self.write(Record::Disk(Disk { admin_state: DiskAdminState::Failed, ..old.clone() }));
                }
                Ok(Outcome::Done)
            }
            Command::CreatePool { spec, members } => self.create_pool(spec, members),
            Command::SetPool(change) => self.set_pool(change),
            Command::DeletePool { pool } => {
                let id = self.pool_named(&pool)?.id;
                let volumes = self.map.volumes.values().filter(|v| v.pool == id).count();
                if volumes > 0 {
                    return Err(Refusal::PoolInUse { pool, volumes });
                }
                self.remove(RecordKey::Pool(id));
                for pg in self.map.pgs.range(pgs_of(id)).map(|(pg, _)| *pg).collect::<Vec<_>>() {
                    self.remove(RecordKey::Pg(pg));
                }
                self.tell("pool-deleted", format!("Pool {pool} was deleted."));
                Ok(Outcome::Done)
            }
            Command::CreateVolume { name, pool, size_bytes } => self.create_volume(name, &pool, size_bytes),
            Command::ResizeVolume { volume, size_bytes } => self.resize_volume(&volume, size_bytes),
            Command::SetVolume { volume, priority } => {
                let new = Volume { priority, ..self.volume_named(&volume)?.clone() };
                Ok(self.put_volume(new))
            }
            Command::SetVolumeQos { volume, qos } => {
                qos.check()?;
                let old = self.volume_named(&volume)?;
                if old.qos != qos {
                    self.tell("volume-limits", format!("Volume {volume}: {qos}."));
                }
                Ok(self.put_volume(Volume { qos, ..old.clone() }))
            }
            Command::DeleteVolume { volume } => {
                let old = self.volume_named(&volume)?;
                if !old.attached_to.is_empty() {
                    return Err(Refusal::VolumeAttached { volume, gateway: old.attached_to.clone() });
                }
                let new = Volume { deleting: true, ..old.clone() };
                self.tell("volume-deleting", format!("Volume {volume} is being deleted."));
                Ok(self.put_volume(new))
            }
            Command::ForgetVolume { volume } => {
                if self.map.volumes.get(&volume).is_some_and(|v| v.deleting) {
                    self.remove(RecordKey::Volume(volume));
                    self.tell("volume-deleted", format!("Volume {volume} is gone."));
                }
                Ok(Outcome::Done)
            }
            Command::SetSettings { settings } => {
                check_settings(&settings)?;
                if *settings != self.map.settings {
                    self.write(Record::Settings(settings));
                }
                Ok(Outcome::Done)
            }
            Command::Attach { volume, gateway, take_over, had_incarnation } => {
                self.attach(&volume, gateway, take_over, had_incarnation)
            }
            Command::Release { volume, incarnation, untold } => {
                let old = self.map.volumes.get(&volume).filter(|v| v.incarnation == incarnation);
                let Some(old) = old.filter(|v| !v.attached_to.is_empty()) else {
                    return Err(Refusal::NotAttached { volume, incarnation });
                };
                self.tell("volume-released", format!("Gateway {} released volume {}.", old.attached_to, old.name));
                // All that it acked is flushed.
                let durability = if untold { old.durability } else { 0 };
                let new = Volume { attached_to: String::new(), durability, ..old.clone() };
                Ok(self.put_volume(new))
            }
            Command::Settle { volume, incarnation, durability } => {
                let old = self.map.volumes.get(&volume).filter(|v| v.incarnation == incarnation);
                let Some(old) = old.filter(|v| !v.attached_to.is_empty()) else {
                    return Err(Refusal::NotAttached { volume, incarnation });
                };
                let durability = durability.min(self.durability_of(old));
                Ok(self.put_volume(Volume { durability, ..old.clone() }))
            }
            Command::Propose(proposal) => self.propose(proposal, context),
            Command::Promote { pg, base, members } => self.promote(pg, base, members, context),
            Command::RemoveSurplus { pg, base, replica } => self.remove_surplus(pg, base, replica, context),
            Command::AddLearner { pg, learner } => self.add_learner(pg, learner, context),
            Command::DropLearner { pg, replica } => self.drop_learner(pg, replica),
            Command::SetMembers { pg, base, truth, learners } => self.set_members(pg, base, truth, learners, context),
            Command::ForcePromote(force) => self.force_promote(force, context),
            Command::PauseLearner { pg, replica, paused } => self.pause_learner(pg, replica, paused),
            Command::PutJob(job) => self.put_job(*job),
        }
    }

    fn live_node(&self, id: NodeId) -> Result<&'a Node, Refusal> {
        let unknown = || Refusal::Unknown { what: "node", name: id.to_string() };
        let node = self.map.nodes.get(&id).ok_or_else(unknown)?;
        if node.admin_state == NodeAdminState::Removed { Err(Refusal::NodeRemoved(id)) } else { Ok(node) }
    }

    pub(super) fn disk(&self, id: DiskId) -> Result<&'a Disk, Refusal> {
        self.map.disks.get(&id).ok_or_else(|| Refusal::Unknown { what: "disk", name: id.to_string() })
    }

    pub(super) fn pool_named(&self, name: &str) -> Result<&'a Pool, Refusal> {
        let found = self.map.pools.values().find(|p| p.name == name);
        found.ok_or_else(|| Refusal::Unknown { what: "pool", name: name.to_owned() })
    }

    /// The volume of that name, unless it is being deleted.
    fn volume_named(&self, name: &str) -> Result<&'a Volume, Refusal> {
        let found = self.map.volumes.values().find(|v| v.name == name);
        let volume = found.ok_or_else(|| Refusal::Unknown { what: "volume", name: name.to_owned() })?;
        if volume.deleting { Err(Refusal::VolumeDeleting(name.to_owned())) } else { Ok(volume) }
    }

    /// Writes the volume if it changed.
    fn put_volume(&mut self, volume: Volume) -> Outcome {
        if self.map.volumes.get(&volume.id) != Some(&volume) {
            self.write(Record::Volume(volume.clone()));
        }
        Outcome::Volume(Box::new(volume))
    }

    fn set_node_state(&mut self, name: &str, state: NodeAdminState) -> Result<Outcome, Refusal> {
        let unknown = || Refusal::Unknown { what: "node", name: name.to_owned() };
        let found = self.map.nodes.values().filter(|n| n.name == name).max_by_key(|n| n.id);
        let node = found.ok_or_else(unknown)?;
        if node.admin_state == state {
            return Ok(Outcome::Done);
        }
        if node.admin_state == NodeAdminState::Removed {
            return Err(Refusal::NodeStateFinal(name.to_owned()));
        }
        if state == NodeAdminState::Removed {
            let disks: BTreeSet<DiskId> = self.map.disks.values().filter(|d| d.node == node.id).map(|d| d.id).collect();
            for disk in &disks {
                let old = self.disk(*disk)?.clone();
                self.write(Record::Disk(Disk { admin_state: DiskAdminState::Removed, ..old }));
            }
        }
        self.tell("node-state", format!("Node {name} is now {}.", state_word(state)));
        self.write(Record::Node(Node { admin_state: state, ..node.clone() }));
        Ok(Outcome::Done)
    }

    fn create_volume(&mut self, name: String, pool: &str, size_bytes: u64) -> Result<Outcome, Refusal> {
        check_name("volume", &name)?;
        check_size(size_bytes)?;
        if let Some(old) = self.map.volumes.values().find(|v| v.name == name) {
            let deleting = old.deleting;
            return Err(if deleting {
                Refusal::VolumeDeleting(name)
            } else {
                Refusal::NameTaken { what: "volume", name }
            });
        }
        let pool = self.pool_named(pool)?;
        let id = VolumeId(self.next.volume);
        self.next.volume = self.next.volume.checked_add(1).ok_or(Refusal::IdsExhausted("volume"))?;
        self.tell(
            "volume-created",
            format!("Volume {name} of {} was created in pool {}.", HumanBytes(size_bytes), pool.name),
        );
        Ok(self.put_volume(Volume {
            id,
            name,
            pool: pool.id,
            size_bytes,
            stripes: vec![layout::choose_stripe(self.map, pool, id, 0, size_bytes)],
            incarnation: 0,
            attached_to: String::new(),
            durability: 0,
            priority: 0,
            deleting: false,
            qos: VolumeQos::default(),
        }))
    }

    fn resize_volume(&mut self, name: &str, size_bytes: u64) -> Result<Outcome, Refusal> {
        check_size(size_bytes)?;
        let old = self.volume_named(name)?;
        if size_bytes < old.size_bytes {
            return Err(Refusal::ShrinkUnsupported {
                volume: name.to_owned(),
                have: old.size_bytes,
                wanted: size_bytes,
            });
        }
        let mut new = old.clone();
        if let Some(pool) = self.map.pools.get(&old.pool) {
            new.stripes.extend(layout::growth_stripe(self.map, pool, old, size_bytes));
        }
        new.size_bytes = size_bytes;
        if old.durability != 0 {
            // The gateway has written nothing to what is new.
            new.durability += self.durability_of(&new) - self.durability_of(old);
        }
        if new != *old {
            self.tell("volume-resized", format!("Volume {name} grew to {}.", HumanBytes(size_bytes)));
        }
        Ok(self.put_volume(new))
    }

    fn attach(&mut self, name: &str, gateway: String, take_over: bool, had: u64) -> Result<Outcome, Refusal> {
        check_name("gateway", &gateway)?;
        let old = self.volume_named(name)?;
        if old.attached_to == gateway && had != 0 && had == old.incarnation {
            return Ok(Outcome::Attached { volume: Box::new(old.clone()), fenced: None, lost: false });
        }
        if !old.attached_to.is_empty() && old.attached_to != gateway && !take_over {
            return Ok(Outcome::Standby { volume: old.id, holder: old.attached_to.clone() });
        }
        let fenced = (!old.attached_to.is_empty()).then(|| (old.attached_to.clone(), old.incarnation));
        let now = self.durability_of(old);
        let lost = old.durability != 0 && old.durability != now;
        let durability = if lost { old.durability } else { now };
        let new = Volume { incarnation: old.incarnation + 1, attached_to: gateway, durability, ..old.clone() };
        if lost {
            self.tell(
                "writes-lost",
                format!(
                    "Volume {name}: its gateway and all copies of some of its data restarted together. What was written and not flushed may be gone; the next flush fails once, to say so."
                ),
            );
        }
        self.tell(
            "volume-attached",
            format!("Gateway {} has volume {name}, incarnation {}.", new.attached_to, new.incarnation),
        );
        self.put_volume(new.clone());
        Ok(Outcome::Attached { volume: Box::new(new), fenced, lost })
    }

    /// See [`Volume::durability`].
    fn durability_of(&self, volume: &Volume) -> u64 {
        volume.durability_in(self.map)
    }
}

/// Every PG of a pool.
pub fn pgs_of(pool: PoolId) -> std::ops::RangeInclusive<PgId> {
    PgId { pool, index: 0 }..=PgId { pool, index: u32::MAX }
}

/// An admin state as people read it.
pub fn state_word(state: NodeAdminState) -> &'static str {
    match state {
        NodeAdminState::Active => "active",
        NodeAdminState::Draining => "draining",
        NodeAdminState::Maintenance => "in maintenance",
        NodeAdminState::Removed => "removed",
    }
}

/// The name of the failure domain that a disk lies in, at a level.
pub fn domain_of(map: &ClusterMap, level: FailureDomain, disk: DiskId) -> Option<String> {
    let record = map.disks.get(&disk)?;
    let node = map.nodes.get(&record.node)?;
    Some(match level {
        FailureDomain::Disk => disk.to_string(),
        // Release is best effort above the node; two replicas never share a node under it.
        FailureDomain::Node | FailureDomain::Release => node.id.to_string(),
        FailureDomain::Rack => format!("{}/{}", node.zone, node.rack),
        FailureDomain::Zone => node.zone.clone(),
    })
}

pub(super) fn take(next: &mut u32, what: &'static str) -> Result<u32, Refusal> {
    let id = *next;
    *next = next.checked_add(1).ok_or(Refusal::IdsExhausted(what))?;
    Ok(id)
}

pub(super) fn check_name(what: &'static str, name: &str) -> Result<(), Refusal> {
    let ok = name.len() <= NAME_BYTES_MAX
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
    if ok { Ok(()) } else { Err(Refusal::NameInvalid { what, name: name.chars().take(NAME_BYTES_MAX).collect() }) }
}

fn check_size(size_bytes: u64) -> Result<(), Refusal> {
    if size_bytes == 0 || !size_bytes.is_multiple_of(crate::core::units::SECTOR_BYTES) {
        return Err(Refusal::SizeUnaligned(size_bytes));
    }
    if size_bytes > layout::VOLUME_BYTES_MAX { Err(Refusal::SizeTooLarge(size_bytes)) } else { Ok(()) }
}

fn check_settings(settings: &Settings) -> Result<(), Refusal> {
    crate::core::throttle::settings::check(&settings.config)?;
    let invalid = |name, value: f64, way_out| Err(Refusal::SettingInvalid { name, value: value.to_string(), way_out });
    let r = &settings.resync;
    if !(1.0..=1000.0).contains(&r.target_inflation) {
        return invalid(
            "target inflation",
            r.target_inflation,
            "it is a multiple of the quiet latency, from 1 to 1000",
        );
    }
    if !(0.0..=86_400.0 * 365.0).contains(&settings.grace_seconds) {
        return invalid("grace", settings.grace_seconds, "give seconds from 0 to a year");
    }
    if !(0.0..=3600.0).contains(&settings.debounce_seconds) {
        return invalid("debounce", settings.debounce_seconds, "give seconds from 0 to 3600");
    }
    if r.cap_bytes_per_sec.is_some_and(|cap| cap < 4096) {
        let cap = r.cap_bytes_per_sec.unwrap_or(0) as f64;
        return invalid("cap", cap, "give at least 4 KiB/s, or pause the resync");
    }
    if r.cap_bytes_per_sec.is_some_and(|cap| cap < r.floor_bytes_per_sec) {
        let floor = r.floor_bytes_per_sec as f64;
        return invalid("floor", floor, "it is above the cap: lower the floor with it");
    }
    for class in r.classes.values() {
        let cap = class.cap_bytes_per_sec;
        let floor = class.floor_bytes_per_sec.unwrap_or(0);
        if cap.is_some_and(|cap| cap < 4096) {
            return invalid("class's cap", cap.unwrap_or(0) as f64, "give at least 4 KiB/s, or pause the class");
        }
        if floor > cap.unwrap_or(u64::MAX).min(r.cap_bytes_per_sec.unwrap_or(u64::MAX)) {
            return invalid(
                "class's floor",
                floor as f64,
                "it is above the class's cap, or above the cap over all classes",
            );
        }
        if class.weight.is_some_and(|w| !(1..=1000).contains(&w)) {
            return invalid("class's weight", f64::from(class.weight.unwrap_or(0)), "give a number from 1 to 1000");
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
