use super::*;
use crate::core::cluster::command::PoolSpec;
use crate::core::cluster::{FailureDomain, NodeAdminState};
use crate::core::ids::{BootId, ClusterId, PoolId};

const PG: PgId = PgId { pool: PoolId(1), index: 0 };

fn at(ms: u64) -> Instant {
    Instant(1_000_000_000_000 + ms * 1_000_000)
}

/// Three copies on different nodes.
pub(crate) fn pool_spec(pg_count: u32) -> PoolSpec {
    PoolSpec {
        name: "p".into(),
        replicas: 3,
        min_replicas: 2,
        failure_domain: FailureDomain::Node,
        class: String::new(),
        pg_count,
        durable_writes: false,
    }
}

/// Three nodes of one disk each and a pool of one PG on all of them; nobody has registered.
fn manager() -> Manager {
    let mut m = Manager::new(ClusterState::empty(), at(0), Limits::default());
    let mut run = |command| m.apply("test", command).unwrap();
    run(Command::Init { cluster: ClusterId([1; 16]), feature_level: 1 });
    for n in 1..=3 {
        let (name, addr) = (format!("n{n}"), "127.0.0.1:1".parse().unwrap());
        run(Command::AddNode { name, addr, zone: String::new(), rack: String::new() });
        run(Command::AllocDisk { node: NodeId(n), class: String::new(), capacity_bytes: 1 << 30 });
    }
    run(Command::CreatePool { spec: pool_spec(1), members: vec![(1..=3).map(member).collect()] });
    m
}

fn member(n: u32) -> Replica {
    Replica { disk: DiskId(n), boot: BootId(u64::from(n)) }
}

fn register(m: &mut Manager, n: u32, boot: u64) {
    let disk = RegisteredDisk { disk: DiskId(n), boot: BootId(boot), ..RegisteredDisk::default() };
    let registration = Registration { node: NodeId(n), process: boot, disks: vec![disk], ..Registration::default() };
    m.handle_registered(ConnId(u64::from(n) * 100 + boot), &format!("n{n}"), &registration);
}

/// R3: what the simulator found. Members that registered before they had persisted the first configuration counted as
/// incomplete as soon as a second one was made, and nobody could follow its primary.
#[test]
fn members_of_the_first_configuration_stay_complete_in_the_next() {
    let mut m = manager();
    m.begin(at(0));
    (1..=3).for_each(|n| register(&mut m, n, u64::from(n)));
    let beat = |m: &mut Manager, n: u32, boot: u64, ms| {
        m.runtime.handle_node_heartbeat(NodeId(n), ConnId(u64::from(n) * 100 + boot), &[], at(ms));
    };
    let turn = |m: &mut Manager, ms| {
        m.begin(at(ms));
        m.judge();
        m.touch_pgs();
        m.decide(Duration::ZERO);
        m.state.map().pgs[&PG].members.iter().map(|r| r.disk.0).collect::<Vec<_>>()
    };
    (2..=3).for_each(|n| beat(&mut m, n, u64::from(n), 5_000));
    assert_eq!(turn(&mut m, 5_000), [2, 3], "the first primary is dead");
    // The second one restarts uncleanly; it was never heard to serve.
    register(&mut m, 2, 20);
    beat(&mut m, 3, 3, 5_100);
    assert_eq!(turn(&mut m, 5_100), [3, 2], "the third has all that there is (R5: the second stays)");
}

/// What the simulator found: a plan that was made while a draining disk hung left it out, and nothing asked for another.
#[test]
fn a_disk_that_answers_again_is_planned_for() {
    let mut m = manager();
    m.begin(at(0));
    (1..=3).for_each(|n| register(&mut m, n, u64::from(n)));
    let report = |m: &mut Manager, hung_ms| {
        let disk = ReportedDisk { disk: DiskId(3), hung_ms, ..ReportedDisk::default() };
        m.handle_report(NodeId(3), Report { disks: vec![disk], ..Report::default() });
    };
    report(&mut m, 5_000);
    m.planning = Planning::default();
    report(&mut m, 6_000);
    assert!(!m.planning.is_pending());
    report(&mut m, 0);
    assert!(m.planning.is_pending());
}

/// R4: a coordinator that was restored from an old copy of its map. Its own changes must not take its versions past those that
/// nodes have seen, or they would take its map for the newest.
#[test]
fn an_outdated_map_is_never_changed() {
    let mut m = manager();
    m.begin(at(0));
    let map = m.state.map();
    let have = SeenMap { epoch: map.epoch, version: map.version };
    assert_eq!(m.handle_seen("node n1", have), Ok(()));
    assert_eq!(m.handle_seen("node n1", SeenMap { version: have.version - 1, ..have }), Ok(()));
    (1..=3).for_each(|n| register(&mut m, n, u64::from(n)));
    let drain = Command::SetNodeState { node: "n1".into(), state: NodeAdminState::Draining };
    assert_eq!(m.probe(drain.clone()), Ok(()));
    let _ = m.take_changed();
    for newer in [SeenMap { version: have.version + 1, ..have }, SeenMap { epoch: have.epoch + 1, version: 1 }] {
        let refusal = m.handle_seen("node n2", newer).unwrap_err();
        assert!(refusal.to_string().contains("put back its newest directory"), "{refusal}");
    }
    assert!(m.handle_seen("gateway g", SeenMap::default()).is_err(), "a gateway that follows no map yet");
    assert!(matches!(m.probe(drain.clone()), Err(Refusal::MapOutdated { .. })));
    assert!(matches!(m.apply("test", drain), Err(Refusal::MapOutdated { .. })));
    // Nor do its own decisions: the primary is long dead.
    m.begin(at(60_000));
    m.judge();
    m.touch_pgs();
    m.decide(Duration::ZERO);
    assert!(m.take_plan_input().is_none() && m.purges_due(|_| true).is_empty());
    assert_eq!(m.state.map().version, have.version);
    assert!(!m.has_changed());
    assert_eq!(m.take_told().iter().filter(|told| told.kind == "map-outdated").count(), 1);
}

/// Each planned change of a primary would read as an outage, and make `health` fail for a script, until the new one's next report.
#[test]
fn a_change_of_the_primary_is_a_moment_and_no_more() {
    let mut m = manager();
    m.begin(at(0));
    (1..=3).for_each(|n| register(&mut m, n, u64::from(n)));
    let config = |m: &Manager| m.state.map().pgs[&PG].clone();
    m.begin(at(60_000));
    (1..=3).for_each(|n| m.runtime.handle_node_heartbeat(NodeId(n), ConnId(u64::from(n) * 101), &[], at(60_000)));
    m.look();
    assert!(!m.takes_over(&m.runtime, &config(&m)), "nothing changed: that it isn't served is no mere moment");
    let members = vec![member(2), member(1), member(3)];
    m.apply("test", Command::Promote { pg: PG, base: config(&m).generation, members }).unwrap();
    assert!(m.takes_over(&m.runtime, &config(&m)));
    m.begin(at(62_900));
    assert!(m.takes_over(&m.runtime, &config(&m)));
    m.begin(at(63_100));
    assert!(!m.takes_over(&m.runtime, &config(&m)), "it should serve by now");
    // One that doesn't answer is no primary to wait for.
    m.begin(at(61_000));
    m.runtime.handle_closed(ConnId(202), true, at(61_000));
    assert!(!m.takes_over(&m.runtime, &config(&m)));
}
