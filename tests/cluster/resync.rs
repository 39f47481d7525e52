//! A joining node's copies: interrupted by the death of each party, and held under a cap.

use std::time::Instant;

use serde_json::Value;

use crate::dev::{Dev, Gateway};
use crate::tools::{MIB, pattern, wait_for};

const CAP_BYTES_PER_SEC: u64 = 10 * MIB;

/// A cluster with a volume of 128 MiB that is full, and resync capped, so that a join takes a while.
pub fn filled() -> (Dev, Gateway, String) {
    let mut dev = Dev::start();
    dev.create_volume("v", "128MiB");
    let gateway = dev.gateway("v");
    let mut client = gateway.client();
    for at in 0..16 {
        client.write(8 * at * MIB, &pattern(8 * MIB, at)).expect("writes");
    }
    client.flush().expect("flushes");
    dev.cli(&["resync", "set", "--cap", "10MiB/s"]);
    let hash = dev.hash("v");
    (dev, gateway, hash)
}

/// Waits until the join's copies run and some of them are done, but not all.
pub fn wait_for_middle(dev: &Dev) {
    wait_for("copies run", || {
        let resync = &dev.status()["resync"];
        (resync["active_moves"] != 0 && resync["bytes_done"].as_u64() > Some(2 * MIB)).then_some(())
    });
}

fn ends_clean(dev: Dev, gateway: Gateway, hash: &str) {
    let pending = |status: Value| {
        status["resync"]["pending_moves"].as_u64().unwrap_or(0) + status["pgs"]["degraded"].as_u64().unwrap_or(0)
    };
    assert!(pending(dev.status()) > 0, "all was over before the killed daemon came back: there was no middle");
    dev.cli(&["resync", "set", "--cap", "none"]);
    // Peers may drop the restarted node once more before they are connected to it again: clean, and filled.
    wait_for("the new node has its share", || {
        dev.wait_clean();
        let disks = dev.status()["disks"].as_array().expect("disks").clone();
        let joined = disks.iter().find(|d| d["node"] == "n4").expect("the new node's disk");
        (joined["pg_replicas"].as_u64() > Some(90)).then_some(())
    });
    assert_eq!(dev.hash("v"), hash);
    let mut client = gateway.client();
    for at in 0..16 {
        assert!(client.read(8 * at * MIB, 8 * MIB).expect("reads") == pattern(8 * MIB, at), "part {at} differs");
    }
    drop((client, gateway));
    dev.finish();
}

fn interrupted(victim: impl Fn(&Dev) -> String) {
    let (dev, gateway, hash) = filled();
    dev.add_node();
    wait_for_middle(&dev);
    let victim = victim(&dev);
    dev.kill_node(&victim);
    dev.start_node(&victim);
    ends_clean(dev, gateway, &hash);
}

pub fn a_killed_target_resumes() {
    interrupted(|_| "n4".to_owned());
}

pub fn a_killed_source_resumes() {
    interrupted(|dev| dev.primary_of("v"));
}

pub fn a_killed_coordinator_resumes() {
    interrupted(|_| "coordinator".to_owned());
}

pub fn the_cap_holds_and_none_removes_it() {
    let (dev, gateway, hash) = filled();
    let shown = dev.json(&["resync", "status"]);
    assert_eq!(shown["cap_bytes_per_sec"], CAP_BYTES_PER_SEC, "{shown}");
    dev.add_node();
    wait_for_middle(&dev);
    // Here it is the target that waits.
    wait_for("status names the cap", || (dev.status()["resync"]["limited_by"] == "cap").then_some(()));
    // All copies of a join go to the new node's one disk, so the cap on that disk bounds their sum. The count is read
    // after the first clock and before the second, so that reading slowly never looks like copying fast.
    let begin_bytes = dev.resynced_bytes();
    let begin = Instant::now();
    let enough = wait_for("20 MiB more are copied", || {
        let bytes = dev.resynced_bytes() - begin_bytes;
        (bytes >= 20 * MIB).then_some(bytes)
    });
    let seconds = begin.elapsed().as_secs_f64();
    let allowed = CAP_BYTES_PER_SEC as f64 * 1.05 * seconds;
    // Reports come each second, and what was done before the first one may be counted after it.
    let slack = (CAP_BYTES_PER_SEC + 2 * MIB) as f64;
    assert!(enough as f64 <= allowed + slack, "{enough} bytes in {seconds:.2} s exceed the cap");

    println!("    {:.1} MiB/s under a cap of 10 MiB/s", enough as f64 / seconds / MIB as f64);
    let shown = dev.cli(&["resync", "set", "--cap", "none"]);
    assert!(!shown.contains("10 MiB/s"), "{shown}");
    assert_eq!(dev.json(&["resync", "status"])["cap_bytes_per_sec"], Value::Null);
    dev.wait_clean();
    assert_eq!(dev.hash("v"), hash);
    drop(gateway);
    dev.finish();
}

/// What operators set acts on running nodes, outlives the coordinator, and a mistake changes nothing.
pub fn a_paused_class_waits_and_settings_last() {
    let (dev, gateway, hash) = filled();
    let refused = dev.try_cli(&["resync", "set", "--class", "rebalances", "--cap", "5MiB/s"]);
    assert!(refused.stderr.contains("repair-critical, repair, drain, rebalance, scrub"), "{}", refused.stderr);
    let refused = dev.try_cli(&["resync", "set", "--class", "drain", "--cap", "5MiB/s", "--floor", "6MiB/s"]);
    assert!(refused.stderr.contains("above the cap of class drain"), "{}", refused.stderr);
    let shown = dev.cli(&["resync", "set", "--profile", "recovery", "--cap", "none"]);
    assert!(shown.contains("profile recovery (profile), cap none (default), floor 64 MiB/s (profile)"), "{shown}");
    dev.cli(&["resync", "set", "--class", "drain", "--weight", "9"]);
    let shown = dev.cli(&["resync", "pause", "--class", "rebalance"]);
    assert!(shown.contains("rebalance: cap none, floor none, weight as always, paused"), "{shown}");
    dev.add_node();
    wait_for("the join is planned", || {
        let status = dev.status();
        let planned = status["pgs"]["misplaced"].as_u64() > Some(0) && status["plan_pending"] == false;
        planned.then_some(())
    });
    let before = dev.resynced_bytes();
    dev.kill_node("coordinator");
    dev.start_node("coordinator");
    let shown = dev.json(&["resync", "status"]);
    assert_eq!(shown["profile"], "recovery", "{shown}");
    assert_eq!(
        (&shown["classes"]["rebalance"]["paused"], &shown["classes"]["drain"]["weight"]),
        (&true.into(), &9.into())
    );
    wait_for("the plan is there again", || (dev.status()["pgs"]["misplaced"].as_u64() > Some(0)).then_some(()));
    assert_eq!(dev.status()["resync"]["active_moves"], 0);
    assert_eq!(dev.resynced_bytes(), before, "nothing of a paused class moves");
    dev.cli(&["resync", "resume", "--class", "rebalance"]);
    wait_for("copies run", || (dev.resynced_bytes() > before).then_some(()));
    dev.wait_clean();
    assert_eq!(dev.hash("v"), hash);
    drop(gateway);
    dev.finish();
}
