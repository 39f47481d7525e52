//! Daemons die by `kill -9` under load, one and all of them.

use crate::dev::Dev;
use crate::nbd::{Breaks, Load};
use crate::tools::{MIB, wait_for};

/// The load's part of a volume: its first 8 MiB.
const LOAD_BLOCKS: u64 = 2048;
/// One chunk, so one placement group.
const CHUNK_BLOCKS: u64 = 1024;

pub fn a_killed_secondary_returns() {
    let mut dev = Dev::start();
    dev.create_volume("v", "64MiB");
    let gateway = dev.gateway("v");
    let load = gateway.load(CHUNK_BLOCKS);
    load.wait_for_more(300);
    let [primary, victim] = [0, 1].map(|member| dev.members_of("v")[member].clone());
    dev.kill_node(&victim);
    assert_eq!(dev.node(&victim)["pid"], 0, "it still runs");
    load.wait_for_more(500);
    assert_eq!(dev.primary_of("v"), primary, "a secondary's death changes no primary");
    dev.start_node(&victim);
    dev.wait_clean();
    load.wait_for_more(200);

    // What it missed is there now: it serves, or stands in for, the blocks when the others go.
    dev.kill_node(&primary);
    load.wait_for_more(300);
    load.stop_and_verify(&gateway.socket, "v");
    drop(gateway);
    dev.finish();
}

/// As a hypervisor's gateway that its service manager starts again; the client is qemu with `reconnect-delay`.
pub fn a_killed_gateways_client_connects_again() {
    let mut dev = Dev::start();
    dev.create_volume("v", "64MiB");
    let mut gateway = dev.start_gateway("v", &["--name", "host1"]);
    gateway.wait_serving();
    // The nodes live on and hold every acked write, so that no more than the write in flight is in doubt.
    let load = Load::start_over(&[&gateway.socket], "v", LOAD_BLOCKS, Breaks::KeepAcked);
    for _ in 0..2 {
        load.wait_for_more(500);
        let before = load.breaks();
        gateway.daemon.signal("KILL");
        gateway.daemon.wait();
        dev.start_gateway_again(&mut gateway);
        load.wait_for_more(500);
        assert!(load.breaks() > before, "no connection broke");
    }
    load.stop_and_verify(&gateway.socket, "v");
    drop(gateway);
    dev.finish();
}

/// The gateway lives on and has what was acked: it sends again what the nodes lost (R13), and no client sees an error.
pub fn all_but_the_gateway_killed_at_once() {
    let mut dev = Dev::start();
    dev.create_volume("v", "64MiB");
    let gateway = dev.gateway("v");
    let load = gateway.load(LOAD_BLOCKS);
    load.wait_for_more(500);
    dev.kill();
    dev.start_again();
    load.wait_for_more(500);
    dev.wait_clean();
    load.stop_and_verify(&gateway.socket, "v");
    drop(gateway);
    dev.finish();
}

/// A power cut: what was flushed is there; each other block holds what it held at the flush, or a version written since.
pub fn everything_killed_at_once() {
    let mut dev = Dev::start();
    dev.create_volume("v", "64MiB");
    let mut gateway = dev.start_gateway("v", &["--name", "host1"]);
    gateway.wait_serving();
    let load = Load::start_over(&[&gateway.socket], "v", 8 * CHUNK_BLOCKS, Breaks::KeepFlushed);
    load.wait_for_more(1500);
    dev.kill();
    gateway.daemon.signal("KILL");
    gateway.daemon.wait();
    dev.start_again();
    dev.start_gateway_again(&mut gateway);
    load.wait_for_more(500);
    assert!(load.breaks() > 0, "no connection broke");
    // Nobody can know that a killed process's page cache has survived: the loss is told, once (R13).
    wait_for("a flush tells of the loss", || (load.failed_flushes() > 0).then_some(()));
    dev.wait_clean();
    load.wait_for_more(500);
    assert_eq!(load.failed_flushes(), 1);
    load.stop_and_verify(&gateway.socket, "v");

    // The copies agree on what was in doubt: another primary has the same.
    let hash = dev.hash("v");
    dev.kill_node(&dev.primary_of("v"));
    gateway.client().read(0, 32 * MIB).expect("reads");
    assert_eq!(dev.hash("v"), hash, "another primary has other content");
    drop(gateway);
    dev.finish();
}
