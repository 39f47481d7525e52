//! Plans as jobs: their history, and what an operator can do about one.

use serde_json::Value;

use crate::dev::{Dev, Gateway};
use crate::resync::{filled, wait_for_middle};
use crate::tools::{MIB, hold, pattern, wait_for};

fn jobs(dev: &Dev) -> Vec<Value> {
    dev.json(&["resync", "jobs"]).as_array().expect("jobs").clone()
}

fn number(job: &Value, field: &str) -> u64 {
    job[field].as_u64().unwrap_or_else(|| panic!("{field} of {job}"))
}

/// Every disk holds the copies that it is a member of, and no other.
fn wait_nothing_leaked(dev: &Dev) {
    wait_for("no disk holds more than its copies", || {
        let pgs = dev.json(&["pg", "list"]);
        let disks = dev.json(&["disk", "list"]);
        let all = disks.as_array().expect("disks").iter().all(|disk| {
            let is_on =
                |pg: &&Value| pg["members"].as_array().expect("members").iter().any(|m| m["disk"] == disk["id"]);
            let pgs = pgs.as_array().expect("pgs").iter().filter(is_on);
            pgs.map(|pg| number(pg, "bytes")).sum::<u64>() == number(disk, "used_bytes")
        });
        all.then_some(())
    });
}

fn verify(dev: &Dev, gateway: &Gateway, hash: &str) {
    assert_eq!(dev.hash("v"), hash);
    let mut client = gateway.client();
    for at in 0..16 {
        assert!(client.read(8 * at * MIB, 8 * MIB).expect("reads") == pattern(8 * MIB, at), "part {at} differs");
    }
}

/// Waits until all copies that run are held back.
fn wait_held(dev: &Dev) {
    wait_for("what runs is held back", || {
        let sessions = dev.json(&["resync", "status"])["sessions"].as_array().expect("sessions").clone();
        (!sessions.is_empty() && sessions.iter().all(|s| s["limited_by"] == "paused")).then_some(())
    });
}

pub fn a_job_is_paused_cancelled_and_asked_for_again() {
    let (dev, gateway, hash) = filled();
    assert!(jobs(&dev).is_empty() && dev.cli(&["resync", "jobs"]).contains("no job yet"));
    dev.add_node();
    wait_for_middle(&dev);
    let job = jobs(&dev)[0].clone();
    assert_eq!((job["id"].clone(), job["state"].clone()), (1.into(), "running".into()), "{job}");
    assert!(job["reason"].as_str().expect("a reason").contains("n4"), "{job}");
    assert!(number(&job, "moves_total") > number(&job, "moves_done"), "{job}");

    // Paused, also for a coordinator that starts anew; writes go on.
    let said = dev.cli(&["resync", "pause", "--job", "1"]);
    assert!(said.contains("job 1 is paused"), "{said}");
    wait_held(&dev);
    let before = dev.resynced_bytes();
    gateway.client().write(0, &pattern(8 * MIB, 0)).expect("writes");
    dev.kill_node("coordinator");
    dev.start_node("coordinator");
    wait_held(&dev);
    let status = dev.status();
    assert!(status["health_reasons"].to_string().contains("Job 1 is paused"), "{}", status["health_reasons"]);
    assert_eq!((status["resync"]["job"].clone(), status["resync"]["job_paused"].clone()), (1.into(), true.into()));
    hold(3);
    // What was under way when it was paused may still be counted.
    let copied = dev.resynced_bytes() - before;
    assert!(copied <= 32 * MIB, "{copied} bytes were copied while the job was paused");
    let after = dev.resynced_bytes();
    hold(2);
    assert_eq!(dev.resynced_bytes(), after, "a paused job copies nothing");
    assert_eq!(jobs(&dev).len(), 1, "the same topology is the same job");

    // Cancelled: nothing is left of what was half-made, and nobody plans it again.
    dev.cli(&["resync", "resume", "--job", "1"]);
    wait_for("it goes on", || (dev.resynced_bytes() > after).then_some(()));
    let said = dev.cli(&["resync", "cancel", "--job", "1"]);
    assert!(said.contains("job 1 is cancelled") && said.contains("half-made copies are removed"), "{said}");
    let job = dev.json(&["resync", "jobs", "--job", "1"]);
    assert_eq!((job["state"].clone(), job["holds_back"].clone()), ("cancelled".into(), true.into()), "{job}");
    assert_eq!(
        number(&job, "moves_done") + number(&job, "moves_failed") + number(&job, "moves_cancelled"),
        number(&job, "moves_total")
    );
    dev.wait_clean();
    wait_nothing_leaked(&dev);
    let held = dev.disk_status("n4")["pg_replicas"].clone();
    dev.kill_node("coordinator");
    dev.start_node("coordinator");
    dev.wait_clean();
    hold(3);
    dev.wait_clean();
    assert_eq!(dev.disk_status("n4")["pg_replicas"], held, "it was planned again");
    assert_eq!(jobs(&dev).len(), 1);
    let refused = dev.try_cli(&["resync", "pause", "--job", "1"]);
    assert!(!refused.status.success() && refused.text().contains("job 1 is cancelled already"), "{}", refused.text());
    let refused = dev.try_cli(&["resync", "cancel", "--job", "17"]);
    assert!(!refused.status.success() && refused.text().contains("there is no job 17"), "{}", refused.text());

    // Asked for again.
    dev.cli(&["resync", "set", "--cap", "none"]);
    dev.cli(&["resync", "resume", "--job", "1"]);
    wait_for("the new node has its share", || {
        dev.wait_clean();
        (dev.disk_status("n4")["pg_replicas"].as_u64() > Some(90)).then_some(())
    });
    let all = jobs(&dev);
    assert!(
        all.len() >= 2 && all[0]["state"] == "done" && all.last().expect("a job")["state"] == "cancelled",
        "{all:?}"
    );
    assert_eq!(all[0]["actor"], "operator (api.token, from 127.0.0.1)", "{all:?}");
    wait_nothing_leaked(&dev);
    verify(&dev, &gateway, &hash);
    drop(gateway);
    dev.finish();
}

pub fn a_repair_is_not_cancelled() {
    let (dev, gateway, hash) = filled();
    dev.cli(&["resync", "set", "--cap", "none"]);
    dev.add_node();
    wait_for("the new node has its share", || {
        dev.wait_clean();
        (dev.disk_status("n4")["pg_replicas"].as_u64() > Some(90)).then_some(())
    });
    dev.cli(&["resync", "set", "--cap", "2MiB/s"]);
    dev.kill_node("n2");
    let repairing =
        |job: &Value| job["reason"].as_str().is_some_and(|r| r.contains("n2 is lost")) && job["state"] == "running";
    let id = wait_for("the repair is a job", || jobs(&dev).first().filter(|j| repairing(j)).map(|j| number(j, "id")));
    let refused = dev.try_cli(&["resync", "cancel", "--job", &id.to_string()]);
    assert!(!refused.status.success(), "{}", refused.text());
    assert!(refused.text().contains("only makes copies that are missing"), "{}", refused.text());
    assert_eq!(dev.json(&["resync", "jobs", "--job", &id.to_string()])["state"], "running");
    dev.cli(&["resync", "set", "--cap", "none"]);
    dev.wait_clean();
    assert_eq!(dev.disk_status("n2")["pg_replicas"], 0);
    verify(&dev, &gateway, &hash);
    drop(gateway);
    dev.finish();
}

pub fn a_volumes_redundancy_is_shown() {
    let (mut dev, gateway, hash) = filled();
    dev.cli(&["volume", "create", "urgent", "--size", "66MiB", "--priority", "7"]);
    let urgent = dev.gateway("urgent");
    let mut client = urgent.client();
    (0..8).for_each(|at| client.write(8 * at * MIB, &pattern(8 * MIB, 90 + at)).expect("writes"));
    let show = |volume: &str| dev.json(&["volume", "show", volume])["redundancy"].clone();
    let well = show("urgent");
    assert_eq!((number(&well["chunks"], "total"), number(&well["chunks"], "clean")), (17, 17), "{well}");
    assert_eq!(number(&well["bytes"], "clean"), 66 * MIB, "the last chunk is half a one: {well}");
    assert_eq!(well["eta_seconds"], Value::Null);

    dev.cli(&["resync", "set", "--cap", "4MiB/s"]);
    dev.add_node();
    let told = wait_for("the volume moves, and it is told for how long", || {
        Some(show("v"))
            .filter(|r| r["eta_seconds"]["likely"].as_f64() > Some(0.0) && number(&r["chunks"], "misplaced") > 0)
    });
    let pgs = told["pgs"].as_array().expect("pgs");
    assert_eq!(pgs.iter().map(|pg| number(pg, "chunks")).sum::<u64>(), 32, "{told}");
    assert!(pgs.iter().all(|pg| pg["disks"].as_array().is_some_and(|d| d.len() == 3)), "{told}");
    // The urgent one is whole first.
    wait_for("the urgent volume is where it belongs", || {
        (number(&show("urgent")["chunks"], "misplaced") == 0).then_some(())
    });
    assert!(number(&show("v")["chunks"], "misplaced") > 0, "the other one goes after it");

    dev.kill_node("n1");
    let hurt = wait_for("chunks are degraded", || Some(show("v")).filter(|r| number(&r["chunks"], "degraded") > 0));
    // A member that is gone is left out soon: then the PG has a disk less.
    let count = |pg: &Value, what: &str| pg[what].as_array().expect("disks").len();
    let lacks = |pg: &Value| count(pg, "missing") > 0 || count(pg, "disks") < 3;
    let degraded = |r: &Value| -> Vec<Value> {
        r["pgs"].as_array().expect("pgs").iter().filter(|pg| pg["state"] == "degraded").cloned().collect()
    };
    assert!(!degraded(&hurt).is_empty() && degraded(&hurt).iter().all(lacks), "{hurt}");
    assert!(dev.cli(&["volume", "show", "v"]).contains("degraded ("));
    // One of the last two stays a member, dead or not (R5): it is named until it is back.
    dev.kill_node("n2");
    let down = wait_for("chunks are unavailable", || {
        let r = show("v");
        let waits = |pg: &&Value| pg["state"] == "unavailable" && count(pg, "missing") > 0;
        let first = r["pgs"].as_array().expect("pgs").iter().find(waits).cloned();
        first.filter(|_| number(&r["chunks"], "unavailable") > 0)
    });
    let (pg, disk) = (down["pg"].as_str().expect("a PG"), down["missing"][0].as_u64().expect("a disk"));
    let text = dev.cli(&["volume", "show", "v"]);
    let row = text.lines().find(|line| line.split_whitespace().next() == Some(pg)).expect("the PG's line");
    assert!(row.matches(&format!("d{disk}")).count() >= 2, "a member, and no answer from it: {text}");
    dev.start_node("n2");
    dev.start_node("n1");
    dev.cli(&["resync", "set", "--cap", "none"]);
    dev.wait_clean();
    let end = show("v");
    assert_eq!(number(&end["chunks"], "clean"), 32, "{end}");
    verify(&dev, &gateway, &hash);
    drop((client, gateway, urgent));
    dev.finish();
}
