use std::cell::RefCell;

use proptest::prelude::*;

use super::*;
use crate::core::cluster::command::{Change, Liveness, PoolChange, PoolSpec, Proposal};
use crate::core::cluster::delta::Delta;
use crate::core::cluster::{Learner, Replica, ResyncClass};
use crate::core::ids::{BootId, ClusterId, Generation};
use crate::core::units::CHUNK_BYTES;

#[path = "pgs_tests.rs"]
mod pgs;

/// Live replicas, and accusations that stand.
#[derive(Default)]
struct World {
    live: RefCell<BTreeSet<Replica>>,
    stands: RefCell<BTreeSet<Replica>>,
    /// With a damaged record (R21).
    damaged: RefCell<BTreeSet<Replica>>,
}

impl Liveness for World {
    fn is_live(&self, replica: Replica) -> bool {
        self.live.borrow().contains(&replica)
    }
    fn accusation_stands(&self, _: PgId, accused: Replica) -> bool {
        self.stands.borrow().contains(&accused)
    }
    fn has_whole_copy(&self, _: &PgConfig, replica: Replica) -> bool {
        !self.damaged.borrow().contains(&replica)
    }
}

fn replica(disk: u32, boot: u64) -> Replica {
    Replica { disk: DiskId(disk), boot: BootId(boot) }
}

fn node(name: &str) -> Command {
    Command::AddNode { name: name.into(), addr: "127.0.0.1:1".parse().unwrap(), zone: "z".into(), rack: "r".into() }
}

fn spec(name: &str, replicas: u32, min_replicas: u32, pg_count: u32) -> PoolSpec {
    PoolSpec {
        name: name.into(),
        replicas,
        min_replicas,
        failure_domain: FailureDomain::Node,
        class: String::new(),
        pg_count,
        durable_writes: false,
    }
}

struct Bed {
    state: ClusterState,
    world: World,
}

impl Bed {
    /// Four nodes of one disk each, all live at boot 1; pool `p` of 3 replicas, 16 PGs on disks 1, 2, 3.
    fn new() -> Bed {
        let mut bed = Bed { state: ClusterState::empty(), world: World::default() };
        bed.ok(Command::Init { cluster: ClusterId([1; 16]), feature_level: 1 });
        for n in 1..=4 {
            bed.ok(node(&format!("n{n}")));
            bed.ok(Command::AllocDisk { node: NodeId(n), class: "ssd".into(), capacity_bytes: 1 << 30 });
            bed.world.live.borrow_mut().insert(replica(n, 1));
        }
        let members = vec![vec![replica(1, 1), replica(2, 1), replica(3, 1)]; 16];
        bed.ok(Command::CreatePool { spec: spec("p", 3, 2, 16), members });
        bed
    }

    fn try_apply(&mut self, command: Command) -> Result<Applied, Refusal> {
        let before = self.state.clone();
        let done = self.state.apply(command, &Context { liveness: &self.world });
        match &done {
            Ok(applied) => {
                let grew = self.state.map.version - before.map.version;
                assert_eq!(grew, u64::from(!applied.changed.is_empty()), "one version for each change");
                self.state.check().unwrap();
            }
            Err(refusal) => {
                assert_eq!(self.state.map, before.map, "a refusal changes nothing");
                assert_eq!(self.state.next, before.next);
                let text = refusal.to_string();
                assert!(!text.ends_with('.') && !text.contains('\n') && text.len() > 20, "{text}");
            }
        }
        done
    }

    fn ok(&mut self, command: Command) -> Outcome {
        self.try_apply(command).unwrap().outcome
    }

    fn no(&mut self, command: Command) -> Refusal {
        self.try_apply(command).unwrap_err()
    }

    fn config(&self) -> PgConfig {
        self.state.map.pgs[&PG].clone()
    }

    fn propose(&mut self, id: u64, from: u32, change: Change) -> Result<Applied, Refusal> {
        let base = self.config().generation;
        let p = Proposal { id, pg: PG, base, from: NodeId(from), change, reason: "it fell silent".into() };
        self.try_apply(Command::Propose(p))
    }

    fn dies(&self, r: Replica) {
        self.world.live.borrow_mut().remove(&r);
    }

    fn comes(&self, r: Replica) {
        self.world.live.borrow_mut().insert(r);
    }

    fn learner(&mut self, replica: Replica, replaces: Option<u32>) -> Result<Applied, Refusal> {
        let learner = Learner { replica, replaces: replaces.map(DiskId), class: ResyncClass::Repair, paused: false };
        self.try_apply(Command::AddLearner { pg: PG, learner })
    }
}

const PG: PgId = PgId { pool: PoolId(1), index: 0 };

fn volume(name: &str, size_bytes: u64) -> Command {
    Command::CreateVolume { name: name.into(), pool: "p".into(), size_bytes }
}

#[test]
fn before_init_nothing_and_after_it_no_second() {
    let mut bed = Bed { state: ClusterState::empty(), world: World::default() };
    assert_eq!(bed.no(node("a")), Refusal::NoMap);
    let mut bed = Bed::new();
    assert_eq!(bed.no(Command::Init { cluster: ClusterId([2; 16]), feature_level: 1 }), Refusal::MapExists);
}

#[test]
fn names_and_ids_are_given_once() {
    let mut bed = Bed::new();
    assert!(matches!(bed.no(node("n1")), Refusal::NameTaken { .. }));
    for bad in ["", "-x", "a b", "ä", &"x".repeat(129)] {
        assert!(matches!(bed.no(node(bad)), Refusal::NameInvalid { .. }), "{bad}");
    }
    bed.ok(Command::SetNodeState { node: "n4".into(), state: NodeAdminState::Removed });
    let state = NodeAdminState::Active;
    assert!(matches!(bed.no(Command::SetNodeState { node: "n4".into(), state }), Refusal::NodeStateFinal(_)));
    assert_eq!(bed.state.map.disks[&DiskId(4)].admin_state, DiskAdminState::Removed, "its disks go with it");
    assert_eq!(bed.ok(node("n4")), Outcome::Node(NodeId(5)), "the name is free, the id is not");
    let alloc = |node| Command::AllocDisk { node: NodeId(node), class: String::new(), capacity_bytes: 1 << 30 };
    assert_eq!(bed.no(alloc(4)), Refusal::NodeRemoved(NodeId(4)));
    assert!(matches!(bed.no(alloc(9)), Refusal::Unknown { what: "node", .. }));
    let tiny = Command::AllocDisk { node: NodeId(1), class: String::new(), capacity_bytes: 1 << 20 };
    assert!(matches!(bed.no(tiny), Refusal::DiskTooSmall { .. }));
    assert_eq!(bed.ok(alloc(5)), Outcome::Disk(DiskId(5)));
}

#[test]
fn a_failed_disk_stays_failed() {
    let mut bed = Bed::new();
    bed.ok(Command::DiskFailed { disk: DiskId(2) });
    assert_eq!(bed.state.map.disks[&DiskId(2)].admin_state, DiskAdminState::Failed);
    assert!(
        bed.try_apply(Command::DiskFailed { disk: DiskId(2) }).unwrap().changed.is_empty(),
        "told twice, once done"
    );
    assert!(matches!(bed.no(Command::DiskFailed { disk: DiskId(77) }), Refusal::Unknown { what: "disk", .. }));
}

#[test]
fn pools_are_checked() {
    let mut bed = Bed::new();
    let three = || vec![vec![replica(1, 1), replica(2, 1), replica(3, 1)]];
    let make = |spec, members| Command::CreatePool { spec, members };
    assert!(matches!(bed.no(make(spec("p", 3, 2, 1), three())), Refusal::NameTaken { .. }));
    assert!(matches!(bed.no(make(spec("q", 0, 0, 1), three())), Refusal::ReplicasInvalid { .. }));
    assert!(matches!(bed.no(make(spec("q", 3, 4, 1), three())), Refusal::ReplicasInvalid { .. }));
    assert!(matches!(bed.no(make(spec("q", 3, 2, 0), vec![])), Refusal::PgCountInvalid(0)));
    assert!(matches!(bed.no(make(spec("q", 3, 2, 70_000), vec![])), Refusal::PgCountInvalid(_)));
    assert!(matches!(bed.no(make(spec("q", 4, 2, 1), three())), Refusal::TooFewDomains { found: 3, .. }));
    let twice = vec![vec![replica(1, 1), replica(1, 1), replica(3, 1)]];
    assert!(matches!(bed.no(make(spec("q", 3, 2, 1), twice)), Refusal::TooFewDomains { found: 2, .. }));
    let nobody = vec![vec![replica(1, 1), replica(2, 1), replica(99, 1)]];
    assert!(matches!(bed.no(make(spec("q", 3, 2, 1), nobody)), Refusal::Unknown { what: "disk", .. }));
    let set = |pool: &str, replicas, min_replicas| {
        let (pool, durable_writes) = (pool.into(), Some(true));
        Command::SetPool(PoolChange { pool, replicas, min_replicas, durable_writes, ..PoolChange::default() })
    };
    assert!(matches!(bed.no(set("x", None, None)), Refusal::Unknown { what: "pool", .. }));
    assert!(matches!(bed.no(set("p", Some(3), Some(4))), Refusal::ReplicasInvalid { .. }));
    let refused = bed.no(set("p", Some(1), None));
    assert!(matches!(refused, Refusal::ReplicasBelowMinimum { replicas: 1, min_replicas: 2, .. }));
    assert!(refused.to_string().contains("--min-replicas 1"), "{refused}");
    assert!(matches!(bed.no(set("p", Some(0), None)), Refusal::ReplicasInvalid { .. }));
    bed.ok(set("p", Some(1), Some(1)));
    assert_eq!(bed.state.map.pools[&PoolId(1)].min_replicas, 1);
    bed.ok(volume("v", 512));
    assert!(matches!(bed.no(Command::DeletePool { pool: "p".into() }), Refusal::PoolInUse { volumes: 1, .. }));
    bed.ok(Command::DeleteVolume { volume: "v".into() });
    bed.ok(Command::ForgetVolume { volume: VolumeId(1) });
    bed.ok(Command::DeletePool { pool: "p".into() });
    assert!(bed.state.map.pgs.is_empty());
    assert_eq!(bed.ok(make(spec("p", 3, 2, 1), three())), Outcome::Pool(PoolId(2)), "a pool's id is never reused");
}

#[test]
fn volumes_live_and_die() {
    let mut bed = Bed::new();
    for bad in [0, 100, 513] {
        assert!(matches!(bed.no(volume("v", bad)), Refusal::SizeUnaligned(_)));
    }
    assert!(matches!(bed.no(volume("v", 1 << 62)), Refusal::SizeTooLarge(_)));
    assert!(matches!(bed.no(volume("a/b", 512)), Refusal::NameInvalid { .. }));
    let Outcome::Volume(v) = bed.ok(volume("v", 3 * CHUNK_BYTES + 512)) else { panic!() };
    assert_eq!((v.id, v.stripes.len(), v.stripes[0].pgs.len()), (VolumeId(1), 1, 8));
    assert!(matches!(bed.no(volume("v", 512)), Refusal::NameTaken { .. }));
    let Outcome::Volume(w) = bed.ok(volume("w", 8 * CHUNK_BYTES)) else { panic!() };
    let first: BTreeSet<u32> = v.stripes[0].pgs[..4].iter().copied().collect();
    assert!(w.stripes[0].pgs.iter().all(|pg| !first.contains(pg)), "the PGs with the fewest provisioned bytes");
    let resize = |size_bytes| Command::ResizeVolume { volume: "v".into(), size_bytes };
    assert!(matches!(bed.no(resize(512)), Refusal::ShrinkUnsupported { .. }));
    bed.ok(resize(5 * CHUNK_BYTES));
    let Outcome::Volume(grown) = bed.ok(resize(100 * CHUNK_BYTES)) else { panic!() };
    assert_eq!((grown.stripes.len(), &grown.stripes[0]), (2, &v.stripes[0]));
    assert_eq!(grown.stripes[1].first_chunk, 5);
    bed.ok(Command::DeleteVolume { volume: "v".into() });
    assert!(matches!(bed.no(volume("v", 512)), Refusal::VolumeDeleting(_)));
    assert!(matches!(bed.no(resize(1 << 40)), Refusal::VolumeDeleting(_)));
    bed.ok(Command::ForgetVolume { volume: VolumeId(2) });
    assert!(bed.state.map.volumes.contains_key(&VolumeId(2)), "only what is being deleted is forgotten");
    bed.ok(Command::ForgetVolume { volume: VolumeId(1) });
    let Outcome::Volume(again) = bed.ok(volume("v", 512)) else { panic!() };
    assert_eq!(again.id, VolumeId(3));
}

#[test]
fn one_writer_at_a_time() {
    let mut bed = Bed::new();
    bed.ok(volume("v", 512));
    let attach = |gateway: &str, take_over, had_incarnation| Command::Attach {
        volume: "v".into(),
        gateway: gateway.into(),
        take_over,
        had_incarnation,
    };
    let grant = |outcome| match outcome {
        Outcome::Attached { volume, fenced, lost: false } => (volume.incarnation, fenced),
        other => panic!("{other:?}"),
    };
    assert_eq!(grant(bed.ok(attach("g1", false, 0))), (1, None));
    assert_eq!(grant(bed.ok(attach("g1", false, 1))), (1, None), "a broken link costs no incarnation");
    assert_eq!(grant(bed.ok(attach("g1", false, 0))), (2, Some(("g1".into(), 1))), "a restarted gateway starts anew");
    assert_eq!(
        bed.ok(attach("g2", false, 0)),
        Outcome::Standby { volume: VolumeId(1), holder: "g1".into() },
        "opening never fences"
    );
    assert!(matches!(bed.no(Command::DeleteVolume { volume: "v".into() }), Refusal::VolumeAttached { .. }));
    assert_eq!(grant(bed.ok(attach("g2", true, 0))), (3, Some(("g1".into(), 2))));
    let release = |incarnation| Command::Release { volume: VolumeId(1), incarnation, untold: false };
    assert!(matches!(bed.no(release(2)), Refusal::NotAttached { .. }), "the fenced one has nothing to give");
    bed.ok(release(3));
    assert!(matches!(bed.no(release(3)), Refusal::NotAttached { .. }));
    assert_eq!(grant(bed.ok(attach("g1", false, 2))), (4, None), "an old incarnation never comes back");
}

/// R13: the gateway and all copies restarted together, so that nobody has what was acked and not flushed.
#[test]
fn a_loss_is_told_to_the_gateway_that_comes_after_it() {
    let mut bed = Bed::new();
    // On all PGs.
    bed.ok(volume("v", 512 << 30));
    let attach = |bed: &mut Bed| {
        let command = Command::Attach { volume: "v".into(), gateway: "g".into(), take_over: false, had_incarnation: 0 };
        match bed.ok(command) {
            Outcome::Attached { volume, lost, .. } => (*volume, lost),
            other => panic!("{other:?}"),
        }
    };
    let restart = |bed: &mut Bed, boot: u64| {
        for disk in 1..=3 {
            bed.dies(replica(disk, boot));
            bed.comes(replica(disk, boot + 1));
        }
        let base = bed.config().generation;
        bed.ok(Command::SetMembers { pg: PG, base, truth: replica(1, boot + 1), learners: vec![] });
    };
    let release = |bed: &mut Bed, incarnation, untold| {
        bed.ok(Command::Release { volume: VolumeId(1), incarnation, untold });
    };
    assert!(!attach(&mut bed).1);
    assert!(!attach(&mut bed).1, "the gateway alone restarted");
    restart(&mut bed, 1);
    let (volume, lost) = attach(&mut bed);
    assert!(lost && attach(&mut bed).1, "until it has told its guest");
    let settle = |volume: &Volume, durability| Command::Settle {
        volume: volume.id,
        incarnation: volume.incarnation + 1,
        durability,
    };
    bed.ok(settle(&volume, volume.durability + 1));
    assert!(!attach(&mut bed).1);
    // One that lives on sends its writes again; what it says of later epochs than there are counts for nothing.
    restart(&mut bed, 2);
    let (volume, _) = attach(&mut bed);
    bed.ok(settle(&Volume { incarnation: volume.incarnation - 1, ..volume }, u64::MAX));
    restart(&mut bed, 3);
    let (volume, lost) = attach(&mut bed);
    assert!(lost);
    release(&mut bed, volume.incarnation, true);
    let (volume, lost) = attach(&mut bed);
    assert!(lost, "the loss is handed on");
    release(&mut bed, volume.incarnation, false);
    restart(&mut bed, 4);
    assert!(!attach(&mut bed).1, "everything was flushed before");
}

#[test]
fn settings_are_checked() {
    let mut bed = Bed::new();
    let base = Settings::default();
    type Change = fn(&mut Settings);
    let bad: [Change; 6] = [
        |s| s.resync.target_inflation = 0.5,
        |s| s.resync.target_inflation = f64::NAN,
        |s| s.grace_seconds = -1.0,
        |s| s.debounce_seconds = f64::INFINITY,
        |s| s.resync.cap_bytes_per_sec = Some(1),
        |s| s.resync.cap_bytes_per_sec = Some(1 << 20),
    ];
    for change in bad {
        let mut settings = base.clone();
        change(&mut settings);
        assert!(matches!(
            bed.no(Command::SetSettings { settings: Box::new(settings) }),
            Refusal::SettingInvalid { .. }
        ));
    }
    let mut settings = base;
    settings.resync.paused = true;
    bed.ok(Command::SetSettings { settings: Box::new(settings) });
}

/// What a follower does with a delta.
fn follow(map: &mut ClusterMap, delta: Delta, whole: &ClusterMap) {
    if delta.from_version == 0 {
        *map = ClusterMap::default();
    } else {
        assert!(delta.from_version <= map.version);
    }
    (map.cluster, map.epoch, map.feature_level) = (whole.cluster, whole.epoch, whole.feature_level);
    map.version = delta.to_version;
    map.nodes.extend(delta.nodes.into_iter().map(|n| (n.id, n)));
    map.disks.extend(delta.disks.into_iter().map(|d| (d.id, d)));
    map.pools.extend(delta.pools.into_iter().map(|p| (p.id, p)));
    map.volumes.extend(delta.volumes.into_iter().map(|v| (v.id, v)));
    map.pgs.extend(delta.pgs.into_iter().map(|c| (c.pg, c)));
    map.settings = delta.settings.unwrap_or_else(|| map.settings.clone());
    delta.removed_volumes.iter().for_each(|v| drop(map.volumes.remove(v)));
    for pool in &delta.removed_pools {
        map.pools.remove(pool);
        map.pgs.retain(|pg, _| pg.pool != *pool);
    }
}

/// A command from a few bytes: mostly plausible, often refused.
fn random_command(state: &ClusterState, world: &World, [op, a, b, c]: [u8; 4]) -> Command {
    let pick = |n: usize, byte: u8| byte as usize % n.max(1);
    let map = &state.map;
    let pg = map.pgs.keys().nth(pick(map.pgs.len(), a)).copied().unwrap_or(PG);
    let config = map.pgs.get(&pg).cloned();
    let member = config.as_ref().map_or(replica(1, 1), |c| c.members[pick(c.members.len(), b)]);
    let learner = config.as_ref().and_then(|c| c.learners.first().map(|l| l.replica)).unwrap_or(replica(4, 1));
    let base = config.as_ref().map_or(Generation::default(), |c| c.generation);
    let primary = config.as_ref().and_then(PgConfig::primary).unwrap_or_default();
    let from = map.disks.get(&primary.disk).map_or(NodeId(1), |d| d.node);
    let any = replica(1 + u32::from(b % 6), 1 + u64::from(c % 3));
    let volume_name = format!("v{}", a % 4);
    let propose =
        |change| Command::Propose(Proposal { id: u64::from(c) + 1, pg, base, from, change, reason: String::new() });
    match op % 21 {
        0 => node(&format!("m{}", a % 8)),
        1 => Command::AllocDisk { node: NodeId(1 + u32::from(a % 8)), class: String::new(), capacity_bytes: 1 << 30 },
        2 => Command::DiskFailed { disk: DiskId(1 + u32::from(a % 8)) },
        3 => Command::CreatePool {
            spec: spec(&format!("p{}", a % 3), 2, 1, 4),
            members: vec![vec![replica(1 + u32::from(b % 4), 1), replica(1 + u32::from(c % 4), 1)]; 4],
        },
        4 => Command::DeletePool { pool: format!("p{}", a % 3) },
        5 => Command::CreateVolume {
            name: volume_name,
            pool: if b % 2 == 0 { "p".into() } else { format!("p{}", b % 3) },
            size_bytes: u64::from(c) * 512,
        },
        6 => Command::ResizeVolume { volume: volume_name, size_bytes: u64::from(c) * CHUNK_BYTES },
        7 => Command::DeleteVolume { volume: volume_name },
        8 => Command::ForgetVolume { volume: VolumeId(u64::from(a % 8)) },
        9 => Command::Attach {
            volume: volume_name,
            gateway: format!("g{}", b % 3),
            take_over: c % 2 == 0,
            had_incarnation: u64::from(c % 4),
        },
        10 => {
            Command::Release { volume: VolumeId(u64::from(a % 8)), incarnation: u64::from(b % 4), untold: b & 4 == 4 }
        }
        11 => propose(Change::RemoveMembers(vec![member])),
        12 => propose(Change::PromoteLearner(learner)),
        13 => propose(Change::DropLearner(learner)),
        14 => {
            let mut members = config.map_or(vec![], |c| c.members);
            let by = pick(members.len(), b);
            if !members.is_empty() {
                members.rotate_left(by);
            }
            members.truncate(1 + pick(4, c));
            Command::Promote { pg, base, members }
        }
        15 | 16 => Command::AddLearner {
            pg,
            learner: Learner {
                replica: any,
                replaces: (a % 2 == 0).then_some(member.disk),
                class: ResyncClass::Rebalance,
                paused: false,
            },
        },
        17 => Command::DropLearner { pg, replica: learner },
        19 => {
            if c % 4 == 0 {
                let (pool, replicas) = ("p".into(), Some(2 + u32::from(c % 2)));
                return Command::SetPool(PoolChange { pool, replicas, ..PoolChange::default() });
            }
            Command::RemoveSurplus { pg, base, replica: member }
        }
        18 => Command::SetMembers { pg, base, truth: Replica { disk: member.disk, ..any }, learners: vec![] },
        _ => {
            // The world changes: a replica dies or comes.
            let mut live = world.live.borrow_mut();
            if !live.remove(&any) {
                live.insert(any);
            }
            let mut settings = map.settings.clone();
            settings.grace_seconds = f64::from(c);
            Command::SetSettings { settings: Box::new(settings) }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is asked, the map keeps its invariants, generations never fall, and every older copy catches up.
    #[test]
    fn random_commands_keep_the_map_whole(bytes in proptest::collection::vec(any::<[u8; 4]>(), 1..120)) {
        let mut bed = Bed::new();
        let mut copies = vec![bed.state.map.clone()];
        for command in bytes {
            let command = random_command(&bed.state, &bed.world, command);
            let before = bed.state.map.clone();
            if bed.try_apply(command.clone()).is_ok() {
                for (pg, config) in &bed.state.map.pgs {
                    if let Some(old) = before.pgs.get(pg) {
                        prop_assert!(config.generation >= old.generation);
                        prop_assert!(config.durability_epoch >= old.durability_epoch);
                        let wanted = before.pools.get(&pg.pool).map_or(0, |p| p.replicas as usize);
                        let fewer = old.members.len() > config.members.len() && matches!(command, Command::RemoveSurplus { .. });
                        prop_assert!(!fewer || config.members.len() >= wanted, "only what is beyond the count is given up");
                        prop_assert!(config.members == old.members || config.generation > old.generation,
                            "members change only with the generation");
                    }
                }
                for (id, volume) in &bed.state.map.volumes {
                    if let Some(old) = before.volumes.get(id) {
                        prop_assert!(volume.stripes.starts_with(&old.stripes), "a stripe never changes");
                        prop_assert!(volume.incarnation >= old.incarnation);
                    }
                }
                copies.push(bed.state.map.clone());
            }
        }
        for mut copy in copies {
            let delta = bed.state.delta_since(copy.version);
            follow(&mut copy, delta, &bed.state.map);
            prop_assert_eq!(&copy, &bed.state.map);
        }
        // One that this process can't know the past of gets everything.
        let restored = ClusterState::restore(bed.state.map.clone(), bed.state.next, BTreeSet::new());
        let mut copy = ClusterMap { version: 1, ..ClusterMap::default() };
        follow(&mut copy, restored.delta_since(1), restored.map());
        prop_assert_eq!(&copy, restored.map());
    }
}

#[test]
fn a_pools_class_is_changed_where_the_class_can_hold_it() {
    let mut bed = Bed::new();
    let class = |class: &str| {
        Command::SetPool(PoolChange { pool: "p".into(), class: Some(class.into()), ..PoolChange::default() })
    };
    bed.ok(class("ssd"));
    assert_eq!(bed.state.map.pools[&PoolId(1)].class, "ssd");
    for (n, replaced) in [(1, "hdd"), (2, "hdd")] {
        let disk = Command::AllocDisk { node: NodeId(n), class: replaced.into(), capacity_bytes: 1 << 30 };
        bed.ok(disk);
    }
    let text = bed.no(class("hdd")).to_string();
    assert!(text.contains("\"hdd\" are in only 2") && text.contains("hdd, ssd"), "{text}");
    let text = bed.no(class("nvme")).to_string();
    assert!(text.contains("in only 0"), "{text}");
    assert_eq!(bed.state.map.pools[&PoolId(1)].class, "ssd", "a refusal changes nothing");
    bed.ok(class(""));
    assert_eq!(bed.state.map.pools[&PoolId(1)].class, "");
}
