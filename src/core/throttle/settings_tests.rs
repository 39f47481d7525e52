use super::*;
use crate::core::cluster::{ClassSettings, Disk, DiskAdminState, Replica, ResyncClass, Volume};
use crate::core::ids::{PgId, PoolId, VolumeId};
use crate::core::throttle::schedule::parse_window;

const MIB: u64 = 1 << 20;
/// 2026-11-25 22:30:00 UTC, a Wednesday.
const NOW: u64 = 1_795_645_800;

fn limits(cap: Option<u64>, floor: Option<u64>) -> Limits {
    Limits { cap_bytes_per_sec: cap, floor_bytes_per_sec: floor, target: Target::default() }
}

fn window(text: &str) -> Window {
    parse_window(text).unwrap()
}

#[test]
fn nothing_said_is_the_default() {
    let (settings, origins) = effective(&ResyncConfig::default(), NOW, None);
    assert_eq!(settings, ResyncSettings::default());
    assert_eq!(origins, Origins::default());
}

#[test]
fn an_override_goes_before_a_window_and_that_before_a_profile() {
    let mut config = ResyncConfig { profile: Some(Profile::Foreground), ..ResyncConfig::default() };
    let (s, o) = effective(&config, NOW, None);
    assert_eq!((s.profile, s.floor_bytes_per_sec, o.all.floor), (Profile::Foreground, 2 * MIB, Origin::Profile));
    config.windows = vec![window("Wed 22:00-24:00 recovery")];
    let (s, o) = effective(&config, NOW, None);
    assert_eq!((s.profile, s.floor_bytes_per_sec, s.target_inflation), (Profile::Recovery, 64 * MIB, 5.0));
    assert_eq!((o.all.profile, o.all.floor, o.all.target), (Origin::Window, Origin::Window, Origin::Window));
    assert_eq!(o.window, Some(config.windows[0]));
    config.limits.target.p99_us = Some(5000);
    let (s, o) = effective(&config, NOW, None);
    assert_eq!((s.target_p99_us, o.all.target, o.all.floor), (Some(5000), Origin::Override, Origin::Window));
    // Half a day later the window is over.
    let (s, o) = effective(&config, NOW + 43_200, None);
    assert_eq!((s.profile, o.all.profile, o.window), (Profile::Foreground, Origin::Profile, None));
}

#[test]
fn a_deadline_raises_floors_up_to_caps_until_it_has_passed() {
    let mut config = ResyncConfig { deadline_unix_seconds: Some(NOW + 60), ..ResyncConfig::default() };
    let floor = |config: &ResyncConfig, now| {
        let (s, o) = effective(config, now, Some(80 * MIB));
        (s.floor_bytes_per_sec, o.all.floor)
    };
    assert_eq!(floor(&config, NOW), (80 * MIB, Origin::Deadline));
    assert_eq!(floor(&config, NOW + 60), (8 * MIB, Origin::Default));
    config.limits = limits(Some(20 * MIB), None);
    assert_eq!(floor(&config, NOW), (20 * MIB, Origin::Deadline));
    config.limits = limits(None, Some(100 * MIB));
    assert_eq!(floor(&config, NOW), (100 * MIB, Origin::Override));
    config.limits = Limits::default();
    config.deadline_wins = DeadlineWins::Latency;
    assert_eq!(floor(&config, NOW), (8 * MIB, Origin::Default));
}

#[test]
fn a_nodes_own_values_go_before_those_of_all() {
    let mut config = ResyncConfig { limits: limits(Some(200 * MIB), Some(30 * MIB)), ..ResyncConfig::default() };
    config.nodes.insert(NodeId(1), NodeOverrides { limits: limits(Some(10 * MIB), None), ..NodeOverrides::default() });
    let recovery = NodeOverrides { profile: Some(Profile::Recovery), paused: true, ..NodeOverrides::default() };
    config.nodes.insert(NodeId(2), recovery);
    let (s, o) = effective(&config, NOW, None);
    assert_eq!((s.floor_bytes_per_sec, s.cap_bytes_per_sec), (30 * MIB, Some(200 * MIB)));
    let one = s.nodes[&NodeId(1)];
    assert_eq!((one.floor_bytes_per_sec, one.cap_bytes_per_sec, one.paused), (10 * MIB, Some(10 * MIB), false));
    let two = s.nodes[&NodeId(2)];
    assert_eq!((two.floor_bytes_per_sec, two.cap_bytes_per_sec, two.paused), (64 * MIB, Some(200 * MIB), true));
    assert_eq!((o.nodes[&NodeId(2)].floor, o.nodes[&NodeId(2)].cap), (Origin::Profile, Origin::Override));
    assert!(s.is_node_paused(NodeId(2)) && !s.is_node_paused(NodeId(1)));
    assert!(s.holds_back(ResyncClass::Drain, PoolId(1), [NodeId(1), NodeId(2)]));
    assert!(!s.holds_back(ResyncClass::Drain, PoolId(1), [NodeId(1), NodeId(3)]));
}

#[test]
fn what_an_earlier_release_stored_says_the_same_again() {
    let cases = [
        ResyncSettings::default(),
        ResyncSettings { cap_bytes_per_sec: Some(4 * MIB), floor_bytes_per_sec: 4 * MIB, ..ResyncSettings::default() },
        ResyncSettings { cap_bytes_per_sec: Some(40 * MIB), floor_bytes_per_sec: MIB, ..ResyncSettings::default() },
        ResyncSettings { target_inflation: 3.0, target_p99_us: Some(900), paused: true, ..ResyncSettings::default() },
        ResyncSettings {
            profile: Profile::Recovery,
            floor_bytes_per_sec: 64 * MIB,
            target_inflation: 5.0,
            classes: BTreeMap::from([(ResyncClass::Scrub, ClassSettings { paused: true, ..ClassSettings::default() })]),
            ..ResyncSettings::default()
        },
        // Only a floor of nothing, which nobody can ask for any more.
        ResyncSettings { floor_bytes_per_sec: 0, ..ResyncSettings::default() },
    ];
    for old in cases {
        let config = ResyncConfig::from(&old);
        check(&config).unwrap();
        assert_eq!(effective(&config, NOW, None).0, old);
    }
    let old = ResyncSettings { floor_bytes_per_sec: MIB, ..ResyncSettings::default() };
    let (_, origins) = effective(&ResyncConfig::from(&old), NOW, None);
    assert_eq!((origins.all.floor, origins.all.target), (Origin::Override, Origin::Default));
}

#[test]
fn what_can_not_be_is_named() {
    type Change = fn(&mut ResyncConfig);
    let cases: [(Change, &str); 16] = [
        (|c| c.limits.cap_bytes_per_sec = Some(4095), "cap of all classes can't be 4095"),
        (
            |c| c.limits = limits(Some(MIB), Some(2 * MIB)),
            "floor of all classes can't be 2097152 bytes/s, above the cap of all classes",
        ),
        (|c| c.limits.target.inflation = Some(0.99), "from 1 to 1000"),
        (|c| c.limits.target.inflation = Some(f64::NAN), "can't be NaN"),
        (|c| c.limits.target.inflation = Some(f64::INFINITY), "can't be inf"),
        (|c| c.limits.target.p99_us = Some(0), "target p99 of all classes can't be 0"),
        (|c| c.limits.target.p99_us = Some(u64::MAX), "a minute"),
        (
            |c| {
                c.classes.insert(ResyncClass::Repair, ClassSettings { weight: Some(0), ..ClassSettings::default() });
            },
            "weight of class repair can't be 0",
        ),
        (
            |c| {
                let own = ClassSettings {
                    cap_bytes_per_sec: Some(MIB),
                    floor_bytes_per_sec: Some(2 * MIB),
                    ..ClassSettings::default()
                };
                c.classes.insert(ResyncClass::Drain, own);
            },
            "floor of class drain can't be 2097152 bytes/s, above the cap of class drain",
        ),
        (
            |c| {
                c.limits.cap_bytes_per_sec = Some(MIB);
                let own = ClassSettings { floor_bytes_per_sec: Some(2 * MIB), ..ClassSettings::default() };
                c.classes.insert(ResyncClass::Drain, own);
            },
            "floor of class drain can't be 2097152 bytes/s, above the cap of all classes",
        ),
        (
            |c| {
                c.limits.cap_bytes_per_sec = Some(MIB);
                c.nodes.insert(
                    NodeId(7),
                    NodeOverrides { limits: limits(None, Some(2 * MIB)), ..NodeOverrides::default() },
                );
            },
            "floor of node n7 can't be",
        ),
        (
            |c| {
                c.pools.insert(PoolId(1), Target { inflation: Some(0.5), p99_us: None });
            },
            "target inflation of pool p1",
        ),
        (
            |c| {
                c.limits.target.p99_us = Some(900);
                c.pools.insert(PoolId(1), Target { inflation: Some(1.5), p99_us: None });
            },
            "pool p1 can't have a target as a multiple of the quiet latency while the cluster has one as a p99",
        ),
        (
            |c| {
                c.volumes.insert(VolumeId(1), Target { inflation: None, p99_us: Some(900) });
                c.pools.insert(PoolId(1), Target { inflation: Some(1.5), p99_us: None });
            },
            "while volume v1 has one",
        ),
        (|c| c.windows = vec![window("Mon 02:00-06:00 recovery"), window("Mon 05:00-07:00 balanced")], "overlap"),
        (|c| c.time_zone = "Europe/Atlantis".into(), "no time zone"),
    ];
    for (change, text) in cases {
        let mut config = ResyncConfig::default();
        change(&mut config);
        let error = check(&config).unwrap_err().to_string();
        assert!(error.contains(text), "{error}, not {text}");
    }
}

#[test]
fn a_disk_keeps_the_strictest_target_of_what_lies_on_it() {
    let mut map = ClusterMap::default();
    for (disk, node) in [(1, 1), (2, 2), (3, 3)] {
        let disk = Disk {
            id: DiskId(disk),
            node: NodeId(node),
            class: String::new(),
            capacity_bytes: 1 << 30,
            admin_state: DiskAdminState::Active,
        };
        map.disks.insert(disk.id, disk);
    }
    let member = |disk| Replica { disk: DiskId(disk), ..Replica::default() };
    for (pool, index, disks) in [(1, 0, [1, 2]), (1, 1, [2, 3]), (2, 0, [1, 3])] {
        let pg = PgId { pool: PoolId(pool), index };
        let config = PgConfig {
            pg,
            generation: Default::default(),
            durability_epoch: 0,
            members: vec![member(disks[0])],
            learners: vec![crate::core::cluster::Learner { replica: member(disks[1]), ..Default::default() }],
            last_proposal: 0,
            forced: false,
            members_min: 0,
        };
        map.pgs.insert(pg, config);
    }
    let volume = Volume {
        id: VolumeId(9),
        name: "v".into(),
        pool: PoolId(1),
        size_bytes: 512,
        stripes: vec![crate::core::cluster::Stripe { first_chunk: 0, pgs: vec![1] }],
        incarnation: 0,
        attached_to: String::new(),
        durability: 0,
        priority: 0,
        deleting: false,
        qos: Default::default(),
    };
    map.volumes.insert(volume.id, volume);
    let p99 = |us| Target { inflation: None, p99_us: Some(us) };
    let mut config = ResyncConfig::default();
    config.pools.insert(PoolId(2), p99(5000));
    config.volumes.insert(VolumeId(9), p99(800));
    config.volumes.insert(VolumeId(77), p99(1)); // It is gone.
    config.nodes.insert(NodeId(3), NodeOverrides { limits: limits(Some(MIB), None), ..NodeOverrides::default() });
    map.settings.resync = effective(&config, NOW, None).0;
    let all = policies(&map, [1, 2, 3].map(DiskId));
    assert_eq!([1, 2, 3].map(|d| all[&DiskId(d)].target_p99_us), [Some(5000), Some(800), Some(800)]);
    assert_eq!([1, 3].map(|d| all[&DiskId(d)].cap_bytes_per_sec), [None, Some(MIB)]);
    assert_eq!(policies(&map, [DiskId(2)]).len(), 1, "only those asked for");
}
