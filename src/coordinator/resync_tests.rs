use super::*;
use crate::core::cluster::{Node, Pool, Volume};
use crate::core::ids::{NodeId, PoolId, VolumeId};
use crate::core::throttle::settings::{check, effective};

const MIB: u64 = 1 << 20;
/// 2026-11-25 22:30:00 UTC, a Wednesday.
const NOW: u64 = 1_795_645_800;

fn map() -> ClusterMap {
    let mut map = ClusterMap::default();
    for (id, name, admin_state) in [(1, "a", NodeAdminState::Active), (2, "gone", NodeAdminState::Removed)] {
        let node = Node {
            id: NodeId(id),
            name: name.into(),
            addr: "127.0.0.1:1".parse().unwrap(),
            admin_url: String::new(),
            zone: String::new(),
            rack: String::new(),
            release: String::new(),
            admin_state,
        };
        map.nodes.insert(node.id, node);
    }
    let pool = Pool {
        id: PoolId(1),
        name: "p".into(),
        replicas: 3,
        min_replicas: 2,
        failure_domain: Default::default(),
        class: String::new(),
        pg_count: 8,
        durable_writes: false,
    };
    map.pools.insert(pool.id, pool);
    let volume = Volume {
        id: VolumeId(1),
        name: "v".into(),
        pool: PoolId(1),
        size_bytes: 512,
        stripes: vec![],
        incarnation: 0,
        attached_to: String::new(),
        durability: 0,
        priority: 0,
        deleting: false,
        qos: Default::default(),
    };
    map.volumes.insert(volume.id, volume);
    map
}

fn request(json: serde_json::Value) -> ResyncSet {
    serde_json::from_value(json).unwrap()
}

/// As the coordinator does it: all of it or nothing.
fn set(config: &mut ResyncConfig, json: serde_json::Value) -> Result<String, String> {
    let mut new = config.clone();
    let said = change(&mut new, &map(), &request(json), NOW).map_err(|e| e.message)?;
    check(&new).map_err(|e| e.to_string())?;
    *config = new;
    Ok(said)
}

#[test]
fn a_profile_sets_floor_and_target_and_what_comes_later_overrides() {
    let mut c = ResyncConfig::default();
    set(&mut c, serde_json::json!({ "target_p99_us": 5000, "floor": "3MiB/s" })).unwrap();
    assert_eq!(effective(&c, NOW, None).0.target_p99_us, Some(5000));
    set(&mut c, serde_json::json!({ "profile": "recovery" })).unwrap();
    let r = effective(&c, NOW, None).0;
    assert_eq!((r.target_p99_us, r.target_inflation, r.floor_bytes_per_sec), (None, 5.0, 64 * MIB));
    set(&mut c, serde_json::json!({ "profile": "recovery", "floor": "1MiB/s", "cap": "4MiB/s" })).unwrap();
    assert_eq!(effective(&c, NOW, None).0.floor_bytes_per_sec, MIB);
    // The cap bounds a profile's floor; words take values away.
    set(&mut c, serde_json::json!({ "floor": "default" })).unwrap();
    assert_eq!(effective(&c, NOW, None).0.floor_bytes_per_sec, 4 * MIB);
    set(&mut c, serde_json::json!({ "profile": "default", "cap": "none" })).unwrap();
    assert_eq!(c, ResyncConfig::default());
}

#[test]
fn of_two_kinds_of_target_the_later_holds() {
    let mut c = ResyncConfig::default();
    set(&mut c, serde_json::json!({ "target_p99_us": 5000 })).unwrap();
    set(&mut c, serde_json::json!({ "target_inflation": 3 })).unwrap();
    assert_eq!(c.limits.target, Target { inflation: Some(3.0), p99_us: None });
    set(&mut c, serde_json::json!({ "target_p99_us": 700 })).unwrap();
    assert_eq!(c.limits.target, Target { inflation: None, p99_us: Some(700) });
    set(&mut c, serde_json::json!({ "target_p99_us": 0 })).unwrap();
    assert!(c.limits.target.is_empty());
}

#[test]
fn each_scope_has_its_own_until_it_is_taken_away() {
    let mut c = ResyncConfig::default();
    let repair = serde_json::json!({ "class": "repair", "cap": "400MiB/s", "floor": "20MiB/s", "weight": 4 });
    assert_eq!(set(&mut c, repair).unwrap(), "Resync of class repair: cap 400 MiB/s, floor 20 MiB/s, weight 4.");
    set(&mut c, serde_json::json!({ "class": "scrub", "paused": true })).unwrap();
    set(&mut c, serde_json::json!({ "node": "a", "profile": "foreground", "cap": "10MiB/s" })).unwrap();
    set(&mut c, serde_json::json!({ "pool": "p", "target_p99_us": 900 })).unwrap();
    set(&mut c, serde_json::json!({ "pool": "p", "paused": true })).unwrap();
    set(&mut c, serde_json::json!({ "volume": "v", "target_p99_us": 800 })).unwrap();
    let r = effective(&c, NOW, None).0;
    assert!(r.is_paused(ResyncClass::Scrub) && !r.is_paused(ResyncClass::Repair));
    assert_eq!(r.nodes[&NodeId(1)].cap_bytes_per_sec, Some(10 * MIB));
    assert!(r.paused_pools.contains(&PoolId(1)));
    assert_eq!((r.pools[&PoolId(1)].p99_us, r.volumes[&VolumeId(1)].p99_us), (Some(900), Some(800)));
    for undo in [
        serde_json::json!({ "class": "repair", "cap": "none", "floor": "default", "weight": "default" }),
        serde_json::json!({ "class": "scrub", "paused": false }),
        serde_json::json!({ "node": "n1", "profile": "default", "cap": "default" }),
        serde_json::json!({ "pool": "p", "target_p99_us": 0, "paused": false }),
        serde_json::json!({ "volume": "v", "target_p99_us": 0 }),
    ] {
        set(&mut c, undo).unwrap();
    }
    assert_eq!(c, ResyncConfig::default(), "nothing is left");
}

#[test]
fn windows_replace_those_before_and_deadlines_use_the_zone() {
    let mut c = ResyncConfig::default();
    let both = ["Mon-Fri 02:00-06:00 recovery", "Sat,Sun 00:00-24:00 recovery"];
    set(&mut c, serde_json::json!({ "windows": both, "time_zone": "Europe/Berlin", "deadline": "23:00" })).unwrap();
    assert_eq!((c.windows.len(), c.time_zone.as_str()), (2, "Europe/Berlin"));
    assert_eq!(schedule::show_time(c.deadline_unix_seconds.unwrap(), "UTC"), "2026-11-26 22:00 UTC");
    set(&mut c, serde_json::json!({ "windows": [both[0]] })).unwrap();
    assert_eq!(c.windows.len(), 1);
    set(&mut c, serde_json::json!({ "deadline_wins": "latency" })).unwrap();
    let undo = serde_json::json!({ "windows": ["none"], "time_zone": "default", "deadline": "none", "deadline_wins": "default" });
    set(&mut c, undo).unwrap();
    assert_eq!(c, ResyncConfig::default());
}

#[test]
fn mistakes_are_named_and_change_nothing() {
    let cases = [
        (serde_json::json!({}), "nothing is to be changed"),
        (serde_json::json!({ "class": "repair" }), "nothing is to be changed"),
        (
            serde_json::json!({ "class": "repairs", "cap": "5MiB/s" }),
            "repair-critical, repair, drain, rebalance, scrub",
        ),
        (serde_json::json!({ "profile": "fast" }), "foreground, balanced, recovery"),
        (serde_json::json!({ "cap": "18446744073709551616" }), "cap"),
        (serde_json::json!({ "cap": "99999999999999999999TiB/s" }), "out of range"),
        (serde_json::json!({ "cap": "0" }), "at least 4 KiB/s"),
        (serde_json::json!({ "floor": "0MiB/s" }), "floor of all classes can't be 0"),
        (serde_json::json!({ "floor": "-3MiB/s" }), "floor"),
        (serde_json::json!({ "floor": "NaN" }), "floor"),
        (serde_json::json!({ "class": "repair", "cap": "5 parsecs" }), "cap: \"5 parsecs\" is not a size"),
        (serde_json::json!({ "cap": "4MiB/s", "floor": "5MiB/s" }), "above the cap of all classes"),
        (serde_json::json!({ "class": "drain", "cap": "4MiB/s", "floor": "5MiB/s" }), "above the cap of class drain"),
        (serde_json::json!({ "node": "a", "cap": "4MiB/s", "floor": "5MiB/s" }), "above the cap of node n1"),
        (serde_json::json!({ "weight": 4 }), "--class"),
        (serde_json::json!({ "class": "drain", "weight": 0 }), "from 1 to 1000"),
        (serde_json::json!({ "class": "drain", "weight": 1.5 }), "whole number"),
        (serde_json::json!({ "class": "drain", "weight": "NaN" }), "can't be NaN"),
        (serde_json::json!({ "class": "drain", "weight": -1 }), "can't be -1"),
        (serde_json::json!({ "class": "drain", "target_inflation": 2 }), "holds for all classes"),
        (serde_json::json!({ "class": "drain", "deadline": "20h" }), "holds for all classes"),
        (serde_json::json!({ "class": "drain", "node": "a", "cap": "5MiB/s" }), "one of them at a time"),
        (serde_json::json!({ "target_inflation": 0.5 }), "from 1 to 1000"),
        (serde_json::json!({ "target_inflation": "NaN" }), "can't be NaN"),
        (serde_json::json!({ "target_inflation": "two" }), "no target inflation"),
        (serde_json::json!({ "target_p99_us": u64::MAX }), "a minute"),
        (serde_json::json!({ "node": "nobody", "cap": "5MiB/s" }), "no node \"nobody\""),
        (serde_json::json!({ "node": "gone", "cap": "5MiB/s" }), "no node \"gone\""),
        (serde_json::json!({ "node": "a", "windows": ["none"] }), "a node has no window of its own"),
        (serde_json::json!({ "pool": "q", "target_p99_us": 900 }), "no pool \"q\""),
        (serde_json::json!({ "pool": "p", "cap": "5MiB/s" }), "rates hold per disk"),
        (serde_json::json!({ "pool": "p", "deadline": "20h" }), "a pool has no deadline of its own"),
        (serde_json::json!({ "volume": "w", "target_p99_us": 900 }), "no volume \"w\""),
        (serde_json::json!({ "volume": "v", "paused": true }), "a volume has no pause of its own"),
        (serde_json::json!({ "windows": ["Mon 02:00-06:00 recovery", "Mon 05:00-07:00 recovery"] }), "overlap"),
        (serde_json::json!({ "windows": ["Mon 2-6 recovery"] }), "is no window"),
        (serde_json::json!({ "time_zone": "Europe/Berln" }), "no time zone"),
        (serde_json::json!({ "deadline": "2020-01-01 00:00" }), "has passed already"),
        (serde_json::json!({ "deadline": "soon" }), "is no deadline"),
        (serde_json::json!({ "deadline_wins": "both" }), "deadline or latency"),
        // All is well but the last thing.
        (serde_json::json!({ "profile": "recovery", "cap": "1GiB/s", "windows": [], "deadline": "0h" }), "passed"),
    ];
    for (json, text) in cases {
        let mut config = ResyncConfig::default();
        let error = set(&mut config, json.clone()).unwrap_err();
        assert!(error.contains(text), "{json}: {error}, not {text}");
        assert_eq!(config, ResyncConfig::default(), "{json}");
    }
    assert!(serde_json::from_value::<ResyncSet>(serde_json::json!({ "cpa": "5MiB/s" })).is_err(), "a typo in a key");
}

#[test]
fn a_volumes_limits_are_read_and_mistakes_named() {
    let old = VolumeQos { iops: Some(100), iops_burst: Some(300), ..VolumeQos::default() };
    let set = |request: VolumeQosSet| volume_qos(old, &request).map_err(|e| e.message);
    let of = |iops_limit: Option<Knob>, bandwidth: Option<&str>| {
        set(VolumeQosSet { iops_limit, bandwidth_limit: bandwidth.map(str::to_owned), ..VolumeQosSet::default() })
    };
    let text = |text: &str| Some(Knob::Text(text.to_owned()));
    assert_eq!(of(None, None), Ok(old));
    // A burst goes with its limit.
    let rate = VolumeQos { bytes_per_sec: Some(MIB), ..VolumeQos::default() };
    assert_eq!(of(text("none"), Some("1MiB/s")), Ok(rate));
    assert_eq!(of(Some(Knob::Number(50.0)), Some("none")), Ok(VolumeQos { iops: Some(50), ..old }));
    let bursts = VolumeQosSet {
        iops_burst: text("none"),
        bandwidth_limit: Some("1MiB/s".to_owned()),
        bandwidth_burst: Some("30MiB".to_owned()),
        share: Some(7),
        ..VolumeQosSet::default()
    };
    assert_eq!(set(bursts), Ok(VolumeQos { iops: Some(100), bytes_burst: Some(30 * MIB), share: 7, ..rate }));
    for (iops_burst, bandwidth_burst, share, part) in [
        (text("5"), None, None, "IOPS burst can't be 5: give at least a tenth"),
        (text("lots"), None, None, "IOPS burst can't be lots"),
        (None, Some("5MiB"), None, "needs a bandwidth limit"),
        (None, Some("5 parsecs"), None, "bandwidth burst: \"5 parsecs\" is not a size"),
        (None, None, Some(0), "share can't be 0"),
    ] {
        let bandwidth_burst = bandwidth_burst.map(str::to_owned);
        let error = set(VolumeQosSet { iops_burst, bandwidth_burst, share, ..VolumeQosSet::default() }).unwrap_err();
        assert!(error.contains(part), "{error}, not {part}");
    }
    for (iops, bandwidth, part) in [
        (text("many"), None, "can't be many"),
        (text("-1"), None, "can't be -1"),
        (text("99999999999999999999999"), None, "whole number"),
        (text("0"), None, "from 1 to 10000000"),
        (Some(Knob::Number(0.5)), None, "can't be 0.5"),
        (Some(Knob::Number(f64::NAN)), None, "can't be NaN"),
        (None, Some("0"), "64KiB/s"),
        (None, Some("5 parsecs"), "bandwidth limit: \"5 parsecs\" is not a size"),
        (None, Some("-1MiB/s"), "out of range"),
    ] {
        let error = of(iops, bandwidth).unwrap_err();
        assert!(error.contains(part), "{error}, not {part}");
    }
}
