//! Errors of a disk under load: it goes out for good (R15), IO goes on with the others, and nothing is lost.

use std::sync::Arc;

use crate::copies::agree;
use crate::dev::{Dev, Gateway};
use crate::faultfs::{ALWAYS, FaultFs};
use crate::nbd::Load;
use crate::tools::wait_for;

/// Two chunks.
const BLOCKS: u64 = 2048;
const VICTIM: &str = "n2";

/// A cluster of three nodes under load, one with its disk on a file system that fails on command.
fn loaded() -> (Dev, Arc<FaultFs>, Gateway, Load) {
    let mut dev = Dev::start();
    let fs = dev.put_below(&[VICTIM], FaultFs::mount).remove(0);
    dev.create_volume("v", "8MiB");
    let gateway = dev.gateway("v");
    let load = gateway.load(BLOCKS);
    load.wait_for_more(300);
    assert!(fs.fsyncs() > 0, "the disk is not where its faults are");
    (dev, fs, gateway, load)
}

/// Status and health name the disk as failed, and the cluster works without it.
fn wait_out(dev: &Dev) {
    wait_for("the disk is reported as failed", || {
        let status = dev.status();
        let disks = status["disks"].as_array().expect("disks");
        let failed: Vec<_> = disks.iter().filter(|disk| disk["state"] == "failed").collect();
        let named = |disk: &serde_json::Value| format!("Disk {} of node {VICTIM} has failed", name(disk));
        let says = |disk| status["health_reasons"].to_string().contains(&named(disk));
        (failed.len() == 1 && failed[0]["node"] == VICTIM && says(failed[0])).then_some(())
    });
    let health = dev.try_cli(&["health"]);
    assert!(health.status.code() == Some(2) && health.text().contains("has failed"), "{}", health.text());
}

fn name(disk: &serde_json::Value) -> String {
    disk["id"].as_str().map_or_else(|| format!("d{}", disk["id"]), str::to_owned)
}

/// After its fault the disk is out, and stays out whoever restarts; the rest makes itself whole.
fn out_for_good(dev: Dev, fs: Arc<FaultFs>, gateway: Gateway, load: Load) {
    wait_out(&dev);
    let synced = fs.fsyncs();
    load.wait_for_more(300);
    assert_eq!(fs.fsyncs(), synced, "a failed disk was synced again");

    dev.kill_node(VICTIM);
    load.wait_for_more(100);
    dev.start_node(VICTIM);
    wait_out(&dev);
    load.wait_for_more(300);
    dev.kill_node("coordinator");
    dev.start_node("coordinator");
    wait_out(&dev);
    load.wait_for_more(300);
    wait_for("the failed disk serves nothing", || (dev.disk_status(VICTIM)["primaries"] == 0).then_some(()));

    // A new node takes over its part.
    dev.add_node();
    dev.wait_clean();
    wait_out(&dev);
    load.wait_for_more(300);
    load.stop_and_verify(&gateway.socket, "v");
    agree(&dev, &gateway, 2);
    assert_eq!(fs.fsyncs(), synced, "a failed disk was synced again");
    drop((gateway, fs));
    dev.finish();
}

pub fn a_failed_fsync_takes_the_disk_out_for_good() {
    let (dev, fs, gateway, load) = loaded();
    fs.fail_fsyncs(1);
    wait_for("an fsync fails", || (fs.failed_fsyncs() == 1).then_some(()));
    out_for_good(dev, fs, gateway, load);
}

pub fn fsyncs_that_always_fail_take_the_disk_out_for_good() {
    let (dev, fs, gateway, load) = loaded();
    fs.fail_fsyncs(ALWAYS);
    wait_for("an fsync fails", || (fs.failed_fsyncs() > 0).then_some(()));
    out_for_good(dev, fs, gateway, load);
}

pub fn a_failed_write_takes_the_disk_out_for_good() {
    let (dev, fs, gateway, load) = loaded();
    fs.fail_writes(1);
    wait_for("a write fails", || (fs.failed_writes() == 1).then_some(()));
    out_for_good(dev, fs, gateway, load);
}

/// The disk can't even be marked as failed. The coordinator remembers, also when the disk is well after the restart.
pub fn a_disk_that_takes_no_mark_stays_out() {
    let (dev, fs, gateway, load) = loaded();
    fs.fail_writes(ALWAYS);
    wait_for("writes fail", || (fs.failed_writes() > 0).then_some(()));
    wait_out(&dev);
    dev.kill_node(VICTIM);
    fs.fail_writes(0);
    dev.start_node(VICTIM);
    wait_for("the disk takes the mark from the coordinator", || {
        let logs = dev.logs();
        logs.iter().any(|(_, log)| log.contains("the coordinator has it as failed")).then_some(())
    });
    out_for_good(dev, fs, gateway, load);
}

pub fn short_writes_lose_nothing() {
    const SHORT: u64 = 300;
    let (dev, fs, gateway, load) = loaded();
    fs.shorten_writes(SHORT);
    wait_for("writes were cut short", || (fs.shortened_writes() == SHORT).then_some(()));
    load.wait_for_more(300);
    assert_eq!(dev.disk_status(VICTIM)["state"], "up", "a short write is no failure");
    load.stop_and_verify(&gateway.socket, "v");
    agree(&dev, &gateway, 2);
    drop((gateway, fs));
    dev.finish();
}
