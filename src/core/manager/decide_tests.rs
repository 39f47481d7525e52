use super::*;
use crate::core::cluster::{Disk, FailureDomain, Node};
use crate::core::ids::{BootId, Generation, NodeId, PoolId};
use crate::core::manager::runtime::{ConnId, Limits};
use crate::core::manager::{Copy, RegisteredDisk, Registration};
use crate::core::units::Instant;

const PG: PgId = PgId { pool: PoolId(1), index: 0 };
const START: Instant = Instant(1_000_000_000_000);

/// All have had time to register from 2,000 ms on.
fn later(ms: u64) -> Instant {
    let start = START + crate::core::manager::runtime::SETTLE;
    Instant(start.0 - 2_000_000_000 + ms * 1_000_000)
}

fn replica(disk: u32, boot: u64) -> Replica {
    Replica { disk: DiskId(disk), boot: BootId(boot) }
}

/// Five nodes of one disk each; a PG of three on disks 1, 2, 3 at boot 1, generation 5.
fn map() -> ClusterMap {
    let mut map = ClusterMap { epoch: 1, version: 1, ..ClusterMap::default() };
    for n in 1..=5 {
        let node = Node {
            id: NodeId(n),
            name: format!("n{n}"),
            addr: "127.0.0.1:1".parse().unwrap(),
            admin_url: String::new(),
            zone: String::new(),
            rack: String::new(),
            release: String::new(),
            admin_state: NodeAdminState::Active,
        };
        map.nodes.insert(node.id, node);
        let admin_state = DiskAdminState::Active;
        let disk = Disk { id: DiskId(n), node: NodeId(n), class: String::new(), capacity_bytes: 1 << 30, admin_state };
        map.disks.insert(disk.id, disk);
    }
    let pool = Pool {
        id: PoolId(1),
        name: "p".into(),
        replicas: 3,
        min_replicas: 2,
        failure_domain: FailureDomain::Node,
        class: String::new(),
        pg_count: 1,
        durable_writes: false,
    };
    map.pools.insert(pool.id, pool);
    let config = PgConfig {
        pg: PG,
        generation: Generation { epoch: 1, n: 5 },
        durability_epoch: 1,
        members: vec![replica(1, 1), replica(2, 1), replica(3, 1)],
        learners: vec![],
        last_proposal: 0,
        forced: false,
        members_min: 0,
    };
    map.pgs.insert(PG, config);
    map
}

/// What a disk reports of the PG: generation, complete, flush mark.
type Report = Option<(u64, bool, u64)>;

fn register(runtime: &mut Runtime, disk: u32, boot: u64, report: Report, failed: bool) {
    let copy = |(n, complete, flush_mark)| Copy { generation: Generation { epoch: 1, n }, complete, flush_mark };
    let copies = report.map(|r| (PG, copy(r))).into_iter().collect();
    let disks =
        vec![RegisteredDisk { disk: DiskId(disk), boot: BootId(boot), failed, copies, ..RegisteredDisk::default() }];
    let registration = Registration { node: NodeId(disk), disks, process: boot, ..Registration::default() };
    runtime.handle_registered(ConnId(u64::from(disk) * 100 + boot), &registration, runtime.now);
}

/// Nodes registered with these (disk, boot, report); three seconds after the start all others count as lost.
/// Their primaries serve.
fn settled(map: &ClusterMap, disks: &[(u32, u64, Report)]) -> Runtime {
    let mut runtime = Runtime::new(START, Limits::default());
    runtime.now = later(3000);
    for (disk, boot, report) in disks {
        register(&mut runtime, *disk, *boot, *report, false);
    }
    runtime.judge(map, later(3000));
    for config in map.pgs.values() {
        let primary = config.primary().and_then(|p| map.disks.get(&p.disk)).map(|d| d.node);
        if let Some(view) = primary.and_then(|n| runtime.nodes.get_mut(&n)) {
            view.serving.insert(config.pg);
        }
    }
    runtime
}

fn decided(map: &ClusterMap, runtime: &Runtime) -> Vec<Command> {
    decide(map, runtime, &map.pgs[&PG], &mut Counts::of(map))
}

const FULL: Report = Some((5, true, 10));

#[test]
fn nothing_to_do_for_a_healthy_pg_and_nothing_before_all_had_time() {
    let map = map();
    let runtime = settled(&map, &[(1, 1, FULL), (2, 1, FULL), (3, 1, FULL)]);
    assert_eq!(decided(&map, &runtime), []);
    assert_eq!(state_of(&map, &runtime, &map.pgs[&PG]), PgState::Clean);
    let mut runtime = runtime;
    runtime.nodes.get_mut(&NodeId(1)).unwrap().serving.clear();
    let waits = state_of(&map, &runtime, &map.pgs[&PG]);
    assert!(matches!(&waits, PgState::Unavailable(why) if why.contains("gets ready")), "nobody serves it: {waits:?}");
    let mut runtime = Runtime::new(START, Limits::default());
    register(&mut runtime, 2, 1, FULL, false);
    runtime.judge(&map, later(100));
    assert_eq!(decided(&map, &runtime), [], "the primary may be about to register");
}

#[test]
fn a_lost_primary_is_followed_by_a_complete_member() {
    let map = map();
    let promoted = |disks: &[(u32, u64, Report)]| {
        let runtime = settled(&map, disks);
        match decided(&map, &runtime).first() {
            Some(Command::Promote { members, .. }) => members.iter().map(|m| m.disk.0).collect(),
            _ => Vec::new(),
        }
    };
    assert_eq!(promoted(&[(2, 1, FULL), (3, 1, FULL)]), [2, 3]);
    assert_eq!(promoted(&[(2, 1, Some((5, false, 10))), (3, 1, FULL)]), [3, 2], "an incomplete one never leads");
    assert_eq!(promoted(&[(2, 1, None), (3, 1, FULL)]), [3, 2], "nor one whose PG table is gone");
    assert_eq!(promoted(&[(3, 1, FULL)]), [3, 2], "two are kept, dead or not (R5)");
    assert_eq!(promoted(&[(1, 2, FULL), (2, 1, FULL), (3, 1, FULL)]), [2, 3], "another boot is another replica (R1)");
    assert_eq!(promoted(&[(1, 1, None), (2, 1, FULL), (3, 1, FULL)]), [2, 3, 1], "alive without its copy: not dropped");
}

/// R2, row by row: what each member's disk reports, and who is taken.
#[test]
fn all_restarted() {
    let mut map = map();
    let truth = |map: &ClusterMap, disks: &[(u32, u64, Report)]| {
        let runtime = settled(map, disks);
        match decided(map, &runtime).first() {
            Some(Command::SetMembers { truth, learners, .. }) => Some((truth.disk.0, learners.len())),
            _ => None,
        }
    };
    let mark = |generation, flush_mark| Some((generation, true, flush_mark));
    assert_eq!(truth(&map, &[(1, 2, mark(5, 1)), (2, 2, mark(5, 9)), (3, 2, mark(5, 3))]), Some((2, 2)));
    assert_eq!(
        truth(&map, &[(1, 2, mark(5, 1)), (2, 2, mark(4, 9)), (3, 2, mark(5, 3))]),
        Some((3, 2)),
        "generation first"
    );
    assert_eq!(truth(&map, &[(1, 2, mark(5, 1)), (2, 2, Some((5, false, 99))), (3, 2, None)]), Some((1, 2)));
    assert_eq!(truth(&map, &[(1, 2, None), (2, 2, None), (3, 2, None)]), None, "nobody has a whole copy");
    assert_eq!(truth(&map, &[(1, 2, mark(5, 1)), (2, 2, mark(5, 9))]), None, "the third may hold what these lost");
    assert_eq!(
        truth(&map, &[(1, 2, mark(5, 1)), (2, 2, mark(5, 9)), (3, 1, mark(5, 3))]),
        None,
        "a recorded boot lives"
    );
    assert_eq!(
        truth(&map, &[(1, 2, mark(5, 1)), (2, 2, mark(5, 9)), (3, 1, Some((5, false, 12)))]),
        Some((2, 2)),
        "a recorded boot lives, but its disk found its record damaged (R21)"
    );
    map.pgs.get_mut(&PG).unwrap().members.rotate_left(1);
    let equal = [(1, 2, mark(5, 1)), (2, 2, mark(5, 1)), (3, 2, mark(5, 1))];
    assert_eq!(truth(&map, &equal), Some((2, 2)), "of equal ones the primary");
    map.pgs.get_mut(&PG).unwrap().members.rotate_right(1);
    map.disks.get_mut(&DiskId(3)).unwrap().admin_state = DiskAdminState::Failed;
    assert_eq!(truth(&map, &[(1, 2, mark(5, 1)), (2, 2, mark(5, 9))]), Some((2, 1)), "declared failed, not waited for");
    map.pgs.get_mut(&PG).unwrap().generation.n = 1;
    assert_eq!(truth(&map, &[(1, 2, None), (2, 2, None)]), Some((1, 1)), "the first configuration has nothing to lose");
}

#[test]
fn returning_disks_become_learners() {
    let mut map = map();
    let learners = |map: &ClusterMap, disks: &[(u32, u64, Report)]| {
        let runtime = settled(map, disks);
        let added = decided(map, &runtime).into_iter().filter_map(|c| match c {
            Command::AddLearner { learner, .. } => {
                Some((learner.replica.disk.0, learner.replaces.map(|d| d.0), learner.class))
            }
            _ => None,
        });
        added.collect::<Vec<_>>()
    };
    let (two, critical) = (ResyncClass::Repair, ResyncClass::RepairCritical);
    assert_eq!(learners(&map, &[(1, 1, FULL), (2, 1, FULL), (3, 2, FULL)]), [(3, Some(3), two)]);
    assert_eq!(
        learners(&map, &[(1, 1, FULL), (2, 2, FULL), (3, 2, FULL)]),
        [(2, Some(2), critical), (3, Some(3), critical)]
    );
    // Disk 4 has an old copy: it takes the place of the dead one at once.
    assert_eq!(learners(&map, &[(1, 1, FULL), (2, 1, FULL), (4, 1, Some((3, true, 1)))]), [(4, Some(3), two)]);
    // Of two, the newer complete one; none at full count; none without a copy.
    let old = Some((2, true, 1));
    assert_eq!(
        learners(&map, &[(1, 1, FULL), (2, 1, FULL), (4, 1, old), (5, 1, Some((3, true, 1)))]),
        [(5, Some(3), two)]
    );
    assert_eq!(learners(&map, &[(1, 1, FULL), (2, 1, FULL), (3, 1, FULL), (4, 1, old)]), []);
    assert_eq!(learners(&map, &[(1, 1, FULL), (2, 1, FULL), (4, 1, None)]), []);
    map.pgs.get_mut(&PG).unwrap().members.pop();
    assert_eq!(learners(&map, &[(1, 1, FULL), (2, 1, FULL), (3, 2, FULL)]), [(3, None, two)], "removed, and back");
    map.nodes.get_mut(&NodeId(3)).unwrap().admin_state = NodeAdminState::Draining;
    assert_eq!(learners(&map, &[(1, 1, FULL), (2, 1, FULL), (3, 2, FULL)]), [], "a draining node takes nothing");
}

#[test]
fn a_learner_that_cannot_go_on_is_dropped() {
    let mut map = map();
    let learner =
        Learner { replica: replica(4, 1), replaces: Some(DiskId(3)), class: ResyncClass::Rebalance, paused: false };
    map.pgs.get_mut(&PG).unwrap().learners.push(learner);
    let all = [(1, 1, FULL), (2, 1, FULL), (3, 1, FULL)];
    let drops = |extra: &[(u32, u64, Report)]| {
        let runtime = settled(&map, &[&all[..], extra].concat());
        decided(&map, &runtime) == [Command::DropLearner { pg: PG, replica: replica(4, 1) }]
    };
    assert!(!drops(&[(4, 1, None)]));
    assert!(drops(&[(4, 2, None)]), "another boot");
    assert!(drops(&[]), "gone");
}

#[test]
fn a_copy_is_purged_only_when_it_is_not_needed() {
    let map = map();
    let all = [(1, 1, FULL), (2, 1, FULL), (3, 1, FULL)];
    let purged = |disks: &[(u32, u64, Report)], wanted: &[(PgId, DiskId)]| {
        let mut runtime = settled(&map, disks);
        runtime.nodes.get_mut(&NodeId(1)).unwrap().serving.insert(PG);
        purgeable(&map, &runtime, 2, &wanted.iter().copied().collect()).iter().map(|p| p.1.0).collect::<Vec<_>>()
    };
    let extra = [(4, 1, Some((3, true, 1)))];
    assert_eq!(purged(&[&all[..], &extra].concat(), &[]), [4]);
    assert_eq!(purged(&[&all[..2], &extra].concat(), &[]), Vec::<u32>::new(), "not while a copy is missing");
    assert_eq!(purged(&[&all[..], &extra].concat(), &[(PG, DiskId(4))]), Vec::<u32>::new(), "the plan wants it there");
    let newer = [(4, 1, Some((6, true, 1)))];
    assert_eq!(purged(&[&all[..], &newer].concat(), &[]), Vec::<u32>::new(), "it knows more than the map");
    // R20: a disk that is near full keeps nothing that min_replicas others have.
    let near_full = |disks: &[(u32, u64, Report)]| {
        let mut runtime = settled(&map, disks);
        runtime.nodes.get_mut(&NodeId(1)).unwrap().serving.insert(PG);
        let view = runtime.disks.get_mut(&DiskId(4)).unwrap();
        (view.used_bytes, view.capacity_bytes) = (85, 100);
        purgeable(&map, &runtime, 2, &BTreeSet::new()).iter().map(|p| p.1.0).collect::<Vec<_>>()
    };
    assert_eq!(near_full(&[&all[..2], &extra].concat()), [4]);
    assert_eq!(near_full(&[&all[..1], &extra].concat()), Vec::<u32>::new(), "the only other copy may be lost next");
    let mut gone = map.clone();
    gone.pgs.clear();
    gone.pools.clear();
    let runtime = settled(&gone, &extra);
    let none = BTreeSet::new();
    assert_eq!(purgeable(&gone, &runtime, 2, &none).len(), 1, "its pool was deleted");
    assert_eq!(purgeable(&gone, &runtime, 1, &none).len(), 0, "an older map lacks the pool: nothing is deleted (R4)");
}

#[test]
fn silence_is_judged_by_both_sides() {
    use crate::core::manager::runtime::{Judgement, Life};
    let map = map();
    let all = [(1, 1, FULL), (2, 1, FULL), (3, 1, FULL), (4, 1, None), (5, 1, None)];
    let mut runtime = settled(&map, &all);
    let beat = |runtime: &mut Runtime, node: u32, unreachable: &[u32], at| {
        let unreachable: Vec<NodeId> = unreachable.iter().map(|n| NodeId(*n)).collect();
        runtime.handle_node_heartbeat(NodeId(node), ConnId(u64::from(node) * 100 + 1), &unreachable, at);
    };
    let others = |runtime: &mut Runtime, unreachable: &[u32], at| {
        (2..=5).for_each(|n| beat(runtime, n, unreachable, at));
    };
    others(&mut runtime, &[], later(3400));
    assert_eq!(runtime.judge(&map, later(3400)), []);
    others(&mut runtime, &[], later(3500));
    assert_eq!(runtime.judge(&map, later(3500)), [Judgement::Suspect(NodeId(1))]);
    others(&mut runtime, &[1], later(3600));
    assert_eq!(runtime.judge(&map, later(3600)), [Judgement::Down(NodeId(1))], "silent, and others miss it too");
    beat(&mut runtime, 1, &[], later(3700));
    assert_eq!(runtime.judge(&map, later(3700)), [Judgement::Up(NodeId(1))]);
    others(&mut runtime, &[1], later(3800));
    assert_eq!(runtime.judge(&map, later(3800)), [], "heard, so alive, whatever others say");
    others(&mut runtime, &[], later(4800));
    assert_eq!(runtime.judge(&map, later(4800)), [Judgement::Suspect(NodeId(1))]);
    others(&mut runtime, &[], later(4950));
    assert_eq!(runtime.judge(&map, later(4950)), [Judgement::Down(NodeId(1))], "silence alone, in the end");
    // This process was stopped: whoever was silent meanwhile is not judged at once.
    runtime.handle_frozen(std::time::Duration::from_secs(5), later(10_000));
    assert_eq!(runtime.judge(&map, later(10_000)), []);
    others(&mut runtime, &[], later(10_100));
    assert_eq!(
        runtime.judge(&map, later(10_001) + crate::core::manager::runtime::SETTLE).len(),
        4,
        "those who stay silent are"
    );
    assert_eq!(runtime.nodes[&NodeId(2)].life, Life::Down);
}

/// Joining puts a node into the map before it registers: it was told of as lost in that moment.
#[test]
fn a_node_that_joins_is_not_lost() {
    use crate::core::manager::runtime::{Judgement, Life, SETTLE};
    let mut map = map();
    let mut runtime = settled(&map, &[(1, 1, FULL), (2, 1, FULL), (3, 1, FULL), (4, 1, None)]);
    let at = later(1) + SETTLE;
    (1..=4).for_each(|n| runtime.handle_node_heartbeat(NodeId(n), ConnId(u64::from(n) * 100 + 1), &[], at));
    assert_eq!(runtime.judge(&map, at), [], "node 5 never registered");
    assert_eq!(runtime.nodes[&NodeId(5)].life, Life::Down, "nor is it there");
    // One that this coordinator's predecessor knew has a release.
    map.nodes.get_mut(&NodeId(5)).unwrap().release = "1.0.0".into();
    runtime.nodes.remove(&NodeId(5));
    assert_eq!(runtime.judge(&map, at), [Judgement::Down(NodeId(5))]);
}

/// What a real partition found: the node that came back first was taken for the only one left, and led everything.
#[test]
fn a_coordinator_that_heard_nobody_waits_for_all() {
    let map = map();
    let all = [(1, 1, FULL), (2, 1, FULL), (3, 1, FULL), (4, 1, None), (5, 1, None)];
    let mut runtime = settled(&map, &all);
    assert_eq!(runtime.judge(&map, later(5000)).len(), 5, "all are silent");
    assert_eq!(runtime.judge(&map, later(9000)), []);
    runtime.now = later(9100);
    register(&mut runtime, 2, 1, FULL, false);
    runtime.judge(&map, later(9100));
    assert_eq!(decided(&map, &runtime), [], "the primary may be about to come back, too");
    runtime.now = later(9500);
    register(&mut runtime, 1, 1, FULL, false);
    runtime.judge(&map, later(9500));
    assert_eq!(decided(&map, &runtime), []);
    // Those that stay away are dead in the end.
    let end = later(9200) + crate::core::manager::runtime::SETTLE;
    runtime.handle_node_heartbeat(NodeId(2), ConnId(201), &[], end);
    runtime.judge(&map, end);
    assert!(matches!(decided(&map, &runtime).first(), Some(Command::Promote { .. })));
}

#[test]
fn a_disk_that_its_primary_cannot_hear_comes_back_less_and_less_often() {
    let mut map = map();
    map.pgs.get_mut(&PG).unwrap().members.pop();
    let mut runtime = settled(&map, &[(1, 1, FULL), (2, 1, FULL), (3, 1, FULL)]);
    let comes = |runtime: &Runtime| !decided(&map, runtime).is_empty();
    assert!(comes(&runtime));
    for (removal, pause_ms) in [2000, 4000, 8000, 16_000, 32_000, 64_000, 64_000].into_iter().enumerate() {
        let at = runtime.now;
        runtime.handle_removed(PG, replica(3, 1), at);
        runtime.now = at + std::time::Duration::from_millis(pause_ms - 1);
        assert!(!comes(&runtime), "removal {removal}");
        runtime.now = at + std::time::Duration::from_millis(pause_ms);
        assert!(comes(&runtime), "removal {removal}");
    }
}

fn why(map: &ClusterMap, runtime: &Runtime) -> String {
    match state_of(map, runtime, &map.pgs[&PG]) {
        PgState::Unavailable(why) => why,
        served => panic!("{served:?}"),
    }
}

#[test]
fn an_unavailable_pg_says_which_disks_bring_it_back() {
    let map = map();
    let text = why(&map, &settled(&map, &[(4, 1, Some((3, true, 1))), (5, 1, Some((4, false, 1)))]));
    let parts = [
        "d1 of node n1, d2 of node n2 and d3 of node n3",
        "d4 of node n4 has a complete copy of generation 1:3 of 1:5",
    ];
    assert!(text.starts_with("no member answers: start") && parts.iter().all(|p| text.contains(p)), "{text}");
    assert!(text.contains("pg force-promote 1.7") || text.contains(&format!("pg force-promote {PG}")), "{text}");
    assert!(!text.contains("d5"), "an incomplete copy brings nothing back: {text}");
    let text = why(&map, &settled(&map, &[(1, 2, FULL)]));
    assert!(text.contains("d1 of node n1 has restarted") && text.contains("start d2 of node n2 and d3"), "{text}");
    let text = why(&map, &settled(&map, &[(1, 1, FULL)]));
    assert!(text.starts_with("1 of at least 2 copies answer: start d2 of node n2 and d3 of node n3"), "{text}");
    let text = why(&map, &settled(&map, &[]));
    assert!(!text.contains("force-promote"), "nobody could lead: {text}");
}

/// Which copy is best, and what is lost with it, row by row.
#[test]
fn copies_that_could_lead_are_named_with_what_they_lack() {
    use crate::core::manager::force::{candidates, command, loss};
    let map = map();
    let config = &map.pgs[&PG];
    let best = |disks: &[(u32, u64, Report)]| {
        let runtime = settled(&map, disks);
        let all = candidates(&map, &runtime, config);
        let c = all[0];
        (c.replica.disk.0, c.is_lossless(), loss(config, &c), command(&map, config, &c, &all).learners.len())
    };
    let (disk, lossless, text, learners) = best(&[(1, 2, FULL), (3, 1, Some((2, true, 0))), (4, 1, FULL)]);
    assert!(disk == 3 && lossless && text.contains("every acked write") && learners == 2, "{disk} {text}");
    let (disk, lossless, text, _) = best(&[(1, 2, Some((5, true, 3))), (2, 2, FULL), (4, 1, Some((5, true, 99)))]);
    assert!(disk == 2 && !lossless && text.contains("not flushed may be lost"), "members before others: {disk} {text}");
    let (disk, _, text, _) =
        best(&[(1, 2, Some((5, false, 99))), (4, 1, Some((3, true, 1))), (5, 1, Some((2, true, 9)))]);
    assert!(
        disk == 4 && text == "d4 has generation 1:3 of 1:5 and is complete; writes acked after it left are lost",
        "{text}"
    );
    let (disk, _, text, _) = best(&[(4, 1, Some((5, true, 1))), (5, 1, Some((5, false, 1)))]);
    assert!(disk == 4 && text.contains("was no member"), "{text}");
    let (disk, lossless, text, _) = best(&[(5, 1, Some((5, false, 1)))]);
    assert!(disk == 5 && !lossless && text.contains("incomplete"), "{text}");
    let (_, lossless, text, _) = best(&[(1, 1, Some((5, false, 10)))]);
    assert!(!lossless && text.contains("incomplete"), "a member whose table is gone: {text}");
    let runtime = settled(&map, &[(4, 1, Some((6, true, 1)))]);
    assert_eq!(candidates(&map, &runtime, config), [], "newer than the map: another map's (R4)");
}

#[test]
fn a_forced_pg_is_served_and_gets_its_copies_back() {
    let mut map = map();
    let config = map.pgs.get_mut(&PG).unwrap();
    (config.members, config.forced) = (vec![replica(4, 1)], true);
    let old = Some((3, true, 1));
    let runtime = settled(&map, &[(4, 1, Some((3, false, 1))), (1, 1, old), (2, 1, old)]);
    assert_eq!(state_of(&map, &runtime, &map.pgs[&PG]), PgState::Degraded, "one copy, but IO flows");
    let learners = decided(&map, &runtime);
    assert_eq!(learners.len(), 2, "{learners:?}");
    assert!(learners.iter().all(|c| matches!(c, Command::AddLearner { .. })));
    // It restarted before it had accepted: the decision holds.
    let runtime = settled(&map, &[(4, 2, Some((3, false, 1)))]);
    assert!(matches!(decided(&map, &runtime)[..], [Command::SetMembers { truth, .. }] if truth == replica(4, 2)));
}

#[test]
fn what_a_learner_has_is_known_while_it_learns() {
    let mut map = map();
    map.pgs.get_mut(&PG).unwrap().learners.push(Learner {
        replica: replica(4, 1),
        replaces: None,
        class: ResyncClass::Repair,
        paused: false,
    });
    let mut runtime = settled(&map, &[(1, 1, FULL), (4, 1, FULL)]);
    let generation = Generation { epoch: 1, n: 5 };
    let says = |disk, complete| (DiskId(disk), PG, Copy { generation, complete, flush_mark: 0 });
    runtime.handle_copies(NodeId(4), &[says(4, false)]);
    assert!(!runtime.disks[&DiskId(4)].copies[&PG].complete);
    runtime.handle_copies(NodeId(5), &[says(4, true)]);
    assert!(!runtime.disks[&DiskId(4)].copies[&PG].complete, "another node's word about it");
}

/// R2, R19: what the simulator found. A learner's old copy counted as complete, and as new as the configuration that it
/// learns; it could be taken as the truth before the copy that has everything.
#[test]
fn a_learner_is_not_the_truth_before_it_says_what_it_has() {
    let mut map = map();
    let mut runtime = settled(&map, &[(1, 2, Some((4, true, 9))), (2, 2, FULL), (3, 2, Some((5, false, 0)))]);
    let learner =
        Learner { replica: replica(1, 2), replaces: Some(DiskId(1)), class: ResyncClass::Repair, paused: false };
    map.pgs.get_mut(&PG).unwrap().learners.push(learner);
    runtime.note_learner(replica(1, 2), &map.pgs[&PG]);
    let copy = runtime.disks[&DiskId(1)].copies[&PG];
    assert_eq!((copy.generation.n, copy.complete), (4, false));
    let truth = |map: &ClusterMap, runtime: &Runtime| match &decided(map, runtime)[..] {
        [Command::SetMembers { truth, .. }] => Ok(truth.disk.0),
        other => Err(other.to_vec()),
    };
    assert_eq!(truth(&map, &runtime), Ok(2));
    // It has said that it is complete; that may have been before it began.
    let says = Copy { generation: Generation { epoch: 1, n: 6 }, complete: true, flush_mark: 0 };
    runtime.handle_copies(NodeId(1), &[(DiskId(1), PG, says)]);
    let drop = Command::DropLearner { pg: PG, replica: replica(1, 2) };
    assert_eq!(truth(&map, &runtime), Err(vec![drop]));
    map.pgs.get_mut(&PG).unwrap().learners.clear();
    assert_eq!(truth(&map, &runtime), Ok(1), "it says so although it doesn't learn");
}

/// R8: what the simulator found. A gateway names a node only while it must reach it: when the role had moved away, the plan
/// gave it back at once, for ever.
#[test]
fn a_primary_that_its_writer_could_not_reach_gets_the_role_back_less_and_less_often() {
    let mut map = map();
    let volume = crate::core::cluster::Volume {
        id: crate::core::ids::VolumeId(1),
        name: "v".into(),
        pool: PoolId(1),
        size_bytes: 512,
        stripes: vec![crate::core::cluster::Stripe { first_chunk: 0, pgs: vec![0] }],
        incarnation: 1,
        attached_to: "g".into(),
        durability: 0,
        priority: 0,
        deleting: false,
        qos: Default::default(),
    };
    map.volumes.insert(volume.id, volume);
    let mut runtime = settled(&map, &[(1, 1, FULL), (2, 1, FULL), (3, 1, FULL)]);
    runtime.handle_gateway(ConnId(1), "g".into(), later(3000));
    for (time, pause_ms) in [2000, 4000].into_iter().enumerate() {
        let began = runtime.now;
        for ms in (0..=2000).step_by(500) {
            let at = began + std::time::Duration::from_millis(ms);
            runtime.handle_gateway_heartbeat(ConnId(1), &[NodeId(1)], at);
            runtime.now = at;
            runtime.weigh_gateways(&map);
        }
        let cut = runtime.now;
        assert!(runtime.is_cut_off(PG, NodeId(1)), "time {time}");
        let mut later = |ms| {
            let at = cut + std::time::Duration::from_millis(ms);
            runtime.handle_gateway_heartbeat(ConnId(1), &[], at);
            runtime.now = at;
            runtime.weigh_gateways(&map);
            (runtime.is_cut_off(PG, NodeId(1)), runtime.was_cut_off(PG, NodeId(1)))
        };
        assert_eq!(later(pause_ms - 1), (false, true), "time {time}");
        assert_eq!(later(pause_ms), (false, false), "time {time}");
    }
}

/// R7: its node is heard and says that the disk doesn't answer.
#[test]
fn a_disk_that_hangs_leads_nothing_and_learns_nothing() {
    let mut map = map();
    let mut runtime = settled(&map, &[(1, 1, FULL), (2, 1, FULL), (3, 1, FULL), (4, 1, Some((3, true, 1)))]);
    let hang = |runtime: &mut Runtime, disk: u32, ms| runtime.disks.get_mut(&DiskId(disk)).unwrap().hung_ms = ms;
    hang(&mut runtime, 1, 5100);
    let text = why(&map, &runtime);
    assert!(text.contains("d1 of node n1 hangs"), "{text}");
    match &decided(&map, &runtime)[..] {
        [Command::Promote { members, .. }] => {
            assert_eq!(members.iter().map(|m| m.disk.0).collect::<Vec<_>>(), [2, 3, 1], "alive, it stays a member");
        }
        other => panic!("{other:?}"),
    }
    assert!(runtime.accusation_stands(PG, replica(1, 1)), "its own node says so: the new primary's word is enough");
    assert!(!runtime.accusation_stands(PG, replica(2, 1)));
    // A secondary that hangs changes nobody's role; the PG isn't clean meanwhile, and no orphan is purged.
    hang(&mut runtime, 1, 0);
    hang(&mut runtime, 2, 5100);
    assert_eq!(decided(&map, &runtime), []);
    assert_eq!(state_of(&map, &runtime, &map.pgs[&PG]), PgState::Degraded);
    assert_eq!(purgeable(&map, &runtime, 2, &BTreeSet::new()), []);
    // Removed, it comes back only when it answers; others take its place at once.
    map.pgs.get_mut(&PG).unwrap().members.remove(1);
    let learners = |runtime: &Runtime| {
        let added = decided(&map, runtime).into_iter().map(|c| match c {
            Command::AddLearner { learner, .. } => learner.replica.disk.0,
            other => panic!("{other:?}"),
        });
        added.collect::<Vec<_>>()
    };
    assert_eq!(learners(&runtime), [4]);
    hang(&mut runtime, 2, 0);
    assert_eq!(learners(&runtime), [2]);
    let learner = Learner { replica: replica(2, 1), replaces: None, class: ResyncClass::Repair, paused: false };
    map.pgs.get_mut(&PG).unwrap().learners.push(learner);
    assert_eq!(decided(&map, &runtime), []);
    hang(&mut runtime, 2, 7000);
    let dropped = Command::DropLearner { pg: PG, replica: replica(2, 1) };
    assert_eq!(decided(&map, &runtime), [dropped], "in its last phase it would hold up acks");
}

#[test]
fn a_repair_that_another_copy_came_before_makes_a_new_plan() {
    use crate::core::manager::plan::{JobMove, Planning};
    let all = [(1, 1, FULL), (2, 1, FULL), (3, 1, FULL), (4, 1, None)];
    let repair = JobMove { pg: PG, from: None, to: DiskId(4), bytes: 1, class: ResyncClass::Repair };
    let step = |map: &ClusterMap, runtime: &Runtime| {
        let mut planning = Planning::default();
        planning.job.moves = vec![repair.clone()];
        let commands = planning.step(map, runtime, &BTreeMap::new(), later(3000));
        (commands.len(), planning.job.moves.len(), planning.is_pending())
    };
    let mut map = map();
    // The plan was made when disk 3 was not there; a copy on it was under way, and is complete now.
    assert_eq!(step(&map, &settled(&map, &all)), (0, 0, true), "it stays for ever: {repair:?}");
    // While a copy is missing the move stays, whatever it waits for.
    assert_eq!(step(&map, &settled(&map, &all[..2])), (0, 1, false));
    map.pgs.get_mut(&PG).unwrap().members.pop();
    assert_eq!(step(&map, &settled(&map, &all)), (0, 1, false));
}

/// What the simulator found: a drained disk kept its copy for ever.
#[test]
fn a_move_whose_disk_took_another_members_place_makes_a_new_plan() {
    use crate::core::manager::plan::{JobMove, Planning};
    let map = map();
    let runtime = settled(&map, &[(1, 1, FULL), (2, 1, FULL), (3, 1, FULL), (4, 1, None)]);
    let after = |from: u32| {
        let mut planning = Planning::default();
        let (from, class) = (Some(DiskId(from)), ResyncClass::Drain);
        planning.job.moves = vec![JobMove { pg: PG, from, to: DiskId(3), bytes: 1, class }];
        planning.step(&map, &runtime, &BTreeMap::new(), later(3000));
        (planning.job.moves.len(), planning.is_pending())
    };
    assert_eq!(after(2), (0, true), "disk 2 is still a member");
    assert_eq!(after(4), (0, false), "as planned");
}
