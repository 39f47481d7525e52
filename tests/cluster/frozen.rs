//! Nodes that freeze (SIGSTOP) under load and thaw: to others a freeze looks like a death, to the node like no time.

use crate::dev::Dev;
use crate::tools::{hold, wait_for};

const LOAD_BLOCKS: u64 = 2048;

/// Freezes a node for so long, during which IO goes on.
fn freeze(victim: impl Fn(&Dev) -> String, seconds: u64) {
    let mut dev = Dev::start();
    dev.create_volume("v", "64MiB");
    let gateway = dev.gateway("v");
    let load = gateway.load(LOAD_BLOCKS);
    load.wait_for_more(300);
    let victim = victim(&dev);
    dev.signal_node(&victim, "STOP");
    hold(seconds);
    load.wait_for_more(300);
    assert!(dev.is_frozen(&victim), "{victim} was not frozen all the time");
    // So that its return is one.
    wait_for("the frozen node is missed", || (dev.node_state(&victim) == "down").then_some(()));
    dev.signal_node(&victim, "CONT");
    wait_for("the thawed node is back", || (dev.node_state(&victim) == "up").then_some(()));
    assert!(!dev.is_frozen(&victim), "{victim} is still frozen");
    load.wait_for_more(300);
    dev.wait_clean();
    load.stop_and_verify(&gateway.socket, "v");
    drop(gateway);
    dev.finish();
}

pub fn a_primary_frozen_for_2_s() {
    freeze(|dev| dev.primary_of("v"), 2);
}

/// Past the grace: its copies are made anew elsewhere, or would be if there was a fourth node.
pub fn a_secondary_frozen_for_30_s() {
    freeze(|dev| dev.members_of("v").swap_remove(1), 30);
}
