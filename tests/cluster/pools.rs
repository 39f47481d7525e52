//! Pools changed while guests work, and whether nodes may be stopped.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::dev::{Dev, New};
use crate::space::Filler;
use crate::tools::{MIB, pattern, wait_for};

/// Of pool `p`.
fn pgs(dev: &Dev) -> Vec<Value> {
    let all = dev.json(&["pg", "list"]).as_array().expect("pgs").clone();
    all.into_iter().filter(|pg| pg["pool"] == "p").collect()
}

fn disks_of(pg: &Value) -> Vec<u64> {
    pg["members"].as_array().expect("members").iter().map(|m| m["disk"].as_u64().expect("a disk")).collect()
}

pub fn copies_domain_and_class_change_online() {
    let mut dev = Dev::start();
    dev.cli(&["pool", "create", "p", "--replicas", "2", "--min-replicas", "1", "--pg-count", "32"]);
    dev.cli(&["volume", "create", "v", "--size", "64MiB", "--pool", "p"]);
    let gateway = dev.gateway("v");
    let mut client = gateway.client();
    (0..8).for_each(|at| client.write(8 * at * MIB, &pattern(8 * MIB, at)).expect("writes"));
    client.flush().expect("flushes");
    dev.cli(&["volume", "create", "w", "--size", "16MiB", "--pool", "p"]);
    let busy = dev.gateway("w");
    let load = busy.load(256);

    assert!(pgs(&dev).iter().all(|pg| disks_of(pg).len() == 2));
    dev.cli(&["pool", "set", "p", "--replicas", "3", "--min-replicas", "2"]);
    wait_for("three copies of each", || {
        dev.wait_clean();
        pgs(&dev).iter().all(|pg| disks_of(pg).len() == 3).then_some(())
    });

    // By disk: a node with two disks may hold two copies. By node again: no more.
    dev.add_node_with(&["--disks", "2", "--class", "nvme"]);
    dev.wait_clean();
    dev.cli(&["pool", "set", "p", "--failure-domain", "disk"]);
    dev.wait_clean();
    dev.cli(&["pool", "set", "p", "--failure-domain", "node"]);
    let node_of: std::collections::BTreeMap<u64, String> = dev
        .json(&["disk", "list"])
        .as_array()
        .expect("disks")
        .iter()
        .map(|d| (d["id"].as_u64().expect("an id"), d["node"].to_string()))
        .collect();
    wait_for("no two copies on a node", || {
        dev.wait_clean();
        let apart = |pg: &Value| {
            let disks = disks_of(pg);
            disks.iter().map(|d| &node_of[d]).collect::<BTreeSet<_>>().len() == 3
        };
        pgs(&dev).iter().all(apart).then_some(())
    });

    // Another class: not before it can hold all copies, then all of them move there while the guest works.
    let refused = dev.try_cli(&["pool", "set", "p", "--class", "nvme"]);
    assert!(!refused.status.success() && refused.text().contains("\"nvme\" are in only 1"), "{}", refused.text());
    dev.add_node_with(&["--class", "nvme"]);
    dev.add_node_with(&["--class", "nvme"]);
    dev.wait_clean();
    let said = dev.cli(&["pool", "set", "p", "--class", "nvme"]);
    assert!(said.contains("disks of class nvme"), "{said}");
    let nvme: BTreeSet<u64> = dev
        .json(&["disk", "list"])
        .as_array()
        .expect("disks")
        .iter()
        .filter(|d| d["class"] == "nvme")
        .map(|d| d["id"].as_u64().expect("an id"))
        .collect();
    assert_eq!(nvme.len(), 4);
    wait_for("all copies are on disks of the class", || {
        dev.wait_clean();
        pgs(&dev)
            .iter()
            .all(|pg| disks_of(pg).iter().all(|d| nvme.contains(d)) && disks_of(pg).len() == 3)
            .then_some(())
    });
    load.stop_and_verify(&busy.socket, "w");
    for at in 0..8 {
        assert!(client.read(8 * at * MIB, 8 * MIB).expect("reads") == pattern(8 * MIB, at), "part {at} differs");
    }
    drop((client, gateway, busy));
    dev.finish();
}

/// Three copies become two while a guest writes: the surplus goes, its space comes free, and nothing is copied for it.
pub fn fewer_copies_free_their_space() {
    let mut dev = Dev::start_with(New { nodes: 4, ..New::default() });
    dev.cli(&["pool", "create", "p", "--replicas", "3", "--min-replicas", "2", "--pg-count", "32"]);
    dev.cli(&["volume", "create", "v", "--size", "64MiB", "--pool", "p"]);
    dev.cli(&["volume", "create", "w", "--size", "16MiB", "--pool", "p"]);
    let gateway = dev.gateway("v");
    let mut client = gateway.client();
    (0..8).for_each(|at| client.write(8 * at * MIB, &pattern(8 * MIB, at)).expect("writes"));
    client.flush().expect("flushes");
    let busy = dev.gateway("w");
    let load = busy.load(256);
    dev.wait_clean();
    let (hash, before, copied) = (dev.hash("v"), pgs(&dev), dev.resynced_bytes());
    assert!(before.iter().all(|pg| disks_of(pg).len() == 3));

    // The minimum is not lowered unasked; what would happen is told.
    let refused = dev.try_cli(&["pool", "set", "p", "--replicas", "1"]);
    assert!(!refused.status.success() && refused.text().contains("--min-replicas 1"), "{}", refused.text());
    let plan = dev.json(&["plan", "--replicas", "p=2"]);
    assert_eq!((plan["totals"]["moves"].clone(), plan["totals"]["removals"].clone()), (0.into(), 32.into()), "{plan}");
    assert!(plan["totals"]["freed_bytes"].as_u64() >= Some(64 * MIB), "{plan}");
    assert!(dev.cli(&["plan", "--replicas", "p=2"]).contains("32 copies beyond their pool's count"));

    dev.cli(&["pool", "set", "p", "--replicas", "2"]);
    wait_for("two copies of each", || {
        dev.wait_clean();
        pgs(&dev).iter().all(|pg| disks_of(pg).len() == 2).then_some(())
    });
    load.stop_and_verify(&busy.socket, "w");
    let after = pgs(&dev);
    for (had, has) in before.iter().zip(&after) {
        assert!(disks_of(has).iter().all(|d| disks_of(had).contains(d)), "{has} was {had}");
    }
    assert_eq!(dev.resynced_bytes(), copied, "nothing is copied");
    let mut held = std::collections::BTreeMap::<u64, i64>::new();
    after.iter().flat_map(disks_of).for_each(|d| *held.entry(d).or_default() += 1);
    assert!(held.len() == 4 && held.values().all(|n| (n - 16).abs() <= 1), "{held:?}");
    // What a disk holds is what its members hold: the old copies are gone.
    wait_for("the space is free", || {
        let pgs = dev.json(&["pg", "list"]).as_array().expect("pgs").clone();
        let disks = dev.json(&["disk", "list"]).as_array().expect("disks").clone();
        let of = |disk: &Value| -> u64 {
            let mine = pgs.iter().filter(|pg| disks_of(pg).contains(&disk["id"].as_u64().expect("an id")));
            mine.filter_map(|pg| pg["bytes"].as_u64()).sum()
        };
        disks.iter().all(|d| d["used_bytes"].as_u64() == Some(of(d))).then_some(())
    });
    assert_eq!(dev.hash("v"), hash);
    for at in 0..8 {
        assert!(client.read(8 * at * MIB, 8 * MIB).expect("reads") == pattern(8 * MIB, at), "part {at} differs");
    }
    let job = dev.json(&["resync", "jobs"])[0].clone();
    assert_eq!((job["state"].clone(), job["moves_done"].clone()), ("done".into(), 32.into()), "{job}");
    assert_eq!(job["actor"], "operator (api.token, from 127.0.0.1)", "{job}");
    // With two copies one node may still be lost.
    dev.cli(&["pool", "set", "p", "--min-replicas", "1"]);
    drop((client, gateway, busy));
    dev.finish();
}

pub fn ok_to_stop_tells_which_nodes_may_go() {
    let dev = Dev::start();
    for node in ["n1", "n2", "n3"] {
        let one = dev.json(&["node", "ok-to-stop", node]);
        assert_eq!((one["ok"].clone(), one["pgs_blocked"].clone()), (true.into(), 0.into()), "{one}");
        assert!(one["pgs_touched"].as_u64() > Some(0), "{one}");
    }
    let two = dev.try_cli(&["-o", "json", "node", "ok-to-stop", "n1", "n2"]);
    assert_eq!(two.status.code(), Some(1), "{}", two.text());
    let two: Value = serde_json::from_str(&two.stdout).expect("JSON");
    assert_eq!(two["ok"], false);
    let blocked = &two["blocked"][0];
    assert_eq!((blocked["live_after"].clone(), blocked["min_replicas"].clone()), (1.into(), 2.into()), "{two}");
    let unknown = dev.try_cli(&["node", "ok-to-stop", "n9"]);
    assert!(!unknown.status.success() && unknown.text().contains("there is no node \"n9\""), "{}", unknown.text());

    // What it says holds: one may go, and then no other one.
    dev.stop_node("n3");
    wait_for("it is seen", || (dev.node_state("n3") == "down").then_some(()));
    dev.cli(&["wait", "ready"]);
    assert_eq!(dev.try_cli(&["node", "ok-to-stop", "n1"]).status.code(), Some(1));
    dev.start_node("n3");
    wait_for("all is well again", || {
        dev.wait_clean();
        dev.try_cli(&["node", "ok-to-stop", "n1"]).status.success().then_some(())
    });
    dev.finish();
}

pub fn what_lacks_is_told_by_domain() {
    let mut dev = Dev::start_with(New { nodes: 3, disk_size: "512MiB", own_network: false });
    dev.create_volume("v", "224MiB");
    let gateway = dev.gateway("v");
    Filler::start(&gateway, 224).finish();
    // A fourth node would take its share; a small one takes the place of a lost one, and can't hold it all.
    dev.add_node_with(&["--disk-size", "128MiB"]);
    dev.wait_clean();
    dev.kill_node("n2");
    let missing = wait_for("what lacks is told", || {
        let status = dev.status();
        let missing = status["missing_capacity"].as_array().cloned().unwrap_or_default();
        (!missing.is_empty()).then_some((
            status["missing_capacity_bytes"].as_u64(),
            missing,
            status["health_reasons"].to_string(),
        ))
    });
    let (sum, all, reasons) = missing;
    assert_eq!(all.iter().filter_map(|m| m["bytes"].as_u64()).sum::<u64>(), sum.expect("bytes"), "{all:?}");
    assert!(all.iter().all(|m| m["pool"] == "default" && m["level"] == "node"), "{all:?}");
    assert!(all.iter().any(|m| m["domain"] == "n4"), "{all:?}");
    assert!(reasons.contains("for pool default in node n4"), "{reasons}");
    let plan = dev.json(&["plan"]);
    assert!(plan["missing_capacity"].as_array().is_some_and(|m| !m.is_empty()), "{plan}");
    drop(gateway);
    dev.finish();
}
