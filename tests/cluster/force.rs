//! The operator's last resort: nodes are gone with their data, and what is left serves again.

use std::fs;

use serde_json::Value;

use crate::dev::Dev;
use crate::tools::{MIB, pattern, wait_for};

fn unavailable(dev: &Dev, volume: &str) -> Vec<Value> {
    let stripes = dev.json(&["volume", "show", volume])["stripes"].clone();
    let indexes: Vec<String> = stripes[0]["pgs"].as_array().expect("PGs").iter().map(|i| format!("1.{i}")).collect();
    let pgs = dev.json(&["pg", "list", "--state", "unavailable"]);
    let pgs = pgs.as_array().expect("a list").iter();
    pgs.filter(|pg| indexes.iter().any(|i| pg["id"] == **i)).cloned().collect()
}

pub fn the_last_copy_serves_when_the_operator_says_so() {
    let mut dev = Dev::start();
    dev.create_volume("v", "64MiB");
    let gateway = dev.gateway("v");
    let mut client = gateway.client();
    for at in 0..4 {
        client.write(8 * at * MIB, &pattern(4 * MIB, at)).expect("writes");
    }
    client.flush().expect("flushes");
    client.write(40 * MIB, &pattern(MIB, 9)).expect("writes");
    let pg = "1.0";
    let refused = dev.try_cli(&["pg", "force-promote", pg, "--accept-data-loss"]);
    assert!(!refused.status.success() && refused.stderr.contains("is served"), "{}", refused.text());

    for node in ["n2", "n3"] {
        let dir = dev.node(node)["dir"].as_str().expect("a path").to_owned();
        dev.kill_node(node);
        fs::remove_dir_all(dir).expect("its data is lost for good");
    }
    wait_for("the PGs are unavailable", || (unavailable(&dev, "v").len() >= 8).then_some(()));
    let pgs = unavailable(&dev, "v");
    let reason = pgs[0]["reason"].as_str().expect("a reason");
    // Of the two, one was left out while the other was there: which one, each placement group decides.
    let needed = if reason.contains(" of node n3") { " of node n3" } else { " of node n2" };
    for part in ["1 of at least 2 copies answer", needed, "force-promote"] {
        assert!(reason.contains(part), "{reason}");
    }
    let health = dev.try_cli(&["health"]).stdout;
    assert!(
        ["d2 of node n2", "d3 of node n3"].iter().any(|disk| health.contains(disk)),
        "which bring it back: {health}"
    );

    let first = pgs[0]["id"].as_str().expect("an id");
    let before = dev.json(&["pg", "show", first])["generation"].clone();
    let preview = dev.try_cli(&["pg", "force-promote", first]);
    assert_eq!(preview.status.code(), Some(1), "{}", preview.text());
    for part in ["would lead alone", "holds every acked write", needed, "be sure that it is stopped"] {
        assert!(preview.stdout.contains(part), "{part:?} is not in: {}", preview.text());
    }
    assert!(preview.stderr.contains("--accept-data-loss"), "{}", preview.text());
    let unknown = dev.try_cli(&["pg", "force-promote", first, "--disk", "d99", "--accept-data-loss"]);
    assert!(unknown.stderr.contains("d99 has no copy"), "{}", unknown.text());
    assert_eq!(dev.json(&["pg", "show", first])["generation"], before, "a preview changes nothing");

    // A guest's write that waits now is answered afterwards, without an error.
    let waiting = std::thread::spawn(move || {
        client.write(48 * MIB, &pattern(4 * MIB, 11)).expect("a stalled write is answered at last");
        client.flush().expect("flushes");
        client
    });
    for pg in &pgs {
        let id = pg["id"].as_str().expect("an id");
        let done = dev.json(&["pg", "force-promote", id, "--accept-data-loss"]);
        assert!(done["done"] == true && done["lossless"] == true, "{done}");
    }
    wait_for("IO goes on", || waiting.is_finished().then_some(()));
    let mut client = waiting.join().expect("every write was acked");
    for at in 0..4 {
        assert!(client.read(8 * at * MIB, 4 * MIB).expect("reads") == pattern(4 * MIB, at), "part {at} differs");
    }
    assert!(client.read(40 * MIB, MIB).expect("reads") == pattern(MIB, 9), "an acked write was lost");
    // The load begins on blocks of zeros.
    client.trim(0, 4 * MIB).expect("trims");
    let load = gateway.load(1024);
    load.wait_for_more(300);
    load.stop_and_verify(&gateway.socket, "v");

    assert!(unavailable(&dev, "v").is_empty());
    let events = dev.json(&["events"]);
    let forced: Vec<&Value> = events.as_array().expect("a list").iter().filter(|e| e["kind"] == "pg-forced").collect();
    let by_operator = |e: &&Value| e["actor"].as_str().is_some_and(|actor| actor.starts_with("operator"));
    assert!(forced.len() == pgs.len() && forced.iter().all(by_operator), "{forced:?}");
    let again = dev.try_cli(&["pg", "force-promote", first, "--accept-data-loss"]);
    assert!(!again.status.success() && again.stderr.contains("is served"), "{}", again.text());

    // New nodes take copies of what was forced, and the exception ends.
    dev.add_node();
    dev.add_node();
    wait_for("the volume's copies are there again", || {
        let show = dev.json(&["pg", "show", first]);
        (show["state"] == "clean").then_some(())
    });
    assert!(client.read(8 * MIB, 4 * MIB).expect("reads") == pattern(4 * MIB, 1), "part 1 differs");
    drop((client, gateway));
    dev.finish();
}
