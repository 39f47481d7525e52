//! A disk that works, and far slower than the others: it gets less at once, and nobody else waits for it.

use serde_json::Value;

use crate::dev::{Dev, New};
use crate::faultfs::FaultFs;
use crate::space::{Filler, verify};
use crate::tools::wait_for;

/// Of each of the volumes; together they lie on many PGs.
const VOLUME_MIB: u64 = 48;
const VOLUMES: u64 = 8;
/// What each disk may copy: slow enough that all of them work long enough to be judged.
const CAP: &str = "6MiB";
/// What the slow one takes: far less than a quarter of that.
const SLOW_BYTES_PER_SEC: u64 = 500 << 10;

fn list(value: &Value) -> Vec<Value> {
    value.as_array().expect("a list").clone()
}

/// A disk's number, however it is written.
fn number(disk: &Value) -> u64 {
    let text = disk.to_string();
    text.trim_matches('"').trim_start_matches('d').parse().unwrap_or_else(|_| panic!("{text} is no disk"))
}

/// Moves of the drain that are under way to a disk; what a member catches up with is no move.
fn copies_to(dev: &Dev, disk: u64) -> usize {
    list(&dev.json(&["resync", "status"])["sessions"])
        .iter()
        .filter(|s| number(&s["to"]) == disk && s["class"] == "drain")
        .count()
}

pub fn a_slow_disk_gets_one_move_and_the_others_go_on() {
    let mut dev = Dev::start_with(New { nodes: 4, ..New::default() });
    let fs = dev.put_below(&["n4"], FaultFs::mount_parallel).remove(0);
    dev.wait_clean();
    let names: Vec<String> = (0..VOLUMES).map(|i| format!("v{i}")).collect();
    for name in &names {
        dev.create_volume(name, &format!("{VOLUME_MIB}MiB"));
        let gateway = dev.gateway(name);
        Filler::start(&gateway, VOLUME_MIB).finish();
    }
    let slow = number(&dev.node("n4")["disks"][0]["id"]);
    let hashes: Vec<String> = names.iter().map(|name| dev.hash(name)).collect();

    // n1 is emptied: each of the others takes a third of what it has.
    dev.cli(&["resync", "set", "--cap", CAP]);
    fs.slow_writes(SLOW_BYTES_PER_SEC);
    dev.cli(&["node", "drain", "n1"]);
    let mut most = 0;
    wait_for("health names the slow disk", || {
        most = most.max(copies_to(&dev, slow));
        let health = dev.try_cli(&["health"]).stdout;
        (health.contains("of node n4 takes copies at") && health.contains("it gets one at a time")).then_some(())
    });
    assert!((1..=2).contains(&most), "it had {most} at once");
    wait_for("it has one move at a time", || (copies_to(&dev, slow) == 1).then_some(()));
    // What is planned anew is what is left.
    let left = wait_for("the others have all that is theirs", || {
        assert!(copies_to(&dev, slow) <= 1, "it got a second one again: {}", dev.try_cli(&["health"]).stdout);
        let moves = list(&dev.json(&["plan"])["moves"]);
        moves.iter().all(|m| number(&m["to"]) == slow).then_some(moves.len())
    });
    assert!(left > 0, "the slow disk was done before the others");

    fs.slow_writes(0);
    dev.cli(&["resync", "set", "--cap", "none"]);
    wait_for("n1 is empty", || {
        dev.wait_clean();
        (dev.disk_status("n1")["pg_replicas"] == 0).then_some(())
    });
    for (name, hash) in names.iter().zip(hashes) {
        assert_eq!(dev.hash(name), hash, "{name}");
    }
    verify(&dev.gateway("v0"), VOLUME_MIB);
    drop(fs);
    dev.finish();
}
