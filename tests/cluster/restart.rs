//! The whole cluster stops, cleanly or not, and starts again on the same directory.

use crate::dev::Dev;
use crate::tools::{MIB, pattern};

pub fn a_clean_stop_costs_nothing() {
    let mut dev = Dev::start();
    dev.create_volume("v", "64MiB");
    let gateway = dev.gateway("v");
    let data = pattern(16 * MIB, 1);
    let mut client = gateway.client();
    assert_eq!(client.size_bytes, 64 * MIB);
    client.write(8 * MIB, &data).expect("writes");
    client.flush().expect("flushes");
    let hash = dev.hash("v");
    let before = dev.resynced_bytes();
    drop((client, gateway));
    dev.stop();
    assert!(!dev.cluster_file().exists(), "cluster.json names a cluster that has stopped");

    dev.start_again();
    dev.wait_clean();
    assert_eq!(dev.hash("v"), hash);
    let gateway = dev.gateway("v");
    assert!(gateway.client().read(8 * MIB, 16 * MIB).expect("reads") == data, "the data differs");
    assert_eq!(dev.resynced_bytes(), before, "a clean restart has nothing to copy");
    drop(gateway);
    dev.finish();
}

pub fn all_members_killed_at_once_come_back() {
    let mut dev = Dev::start();
    dev.create_volume("v", "64MiB");
    let gateway = dev.gateway("v");
    let mut client = gateway.client();
    let (flushed, later) = (pattern(16 * MIB, 2), pattern(MIB, 3));
    client.write(0, &flushed).expect("writes");
    client.flush().expect("flushes");
    let hash = dev.hash("v");
    // Written but never flushed: any of it may be there afterwards, block by block, and the copies must agree.
    client.write(32 * MIB, &later).expect("writes");
    dev.kill();
    drop((client, gateway));

    dev.start_again();
    dev.wait_clean();
    // The first gateway ended while nobody was there to take the volume back.
    let mut gateway = dev.start_gateway("v", &["--take-over"]);
    gateway.wait_serving();
    let mut client = gateway.client();
    assert!(client.read(0, 16 * MIB).expect("reads") == flushed, "flushed data was lost");
    let found = client.read(32 * MIB, MIB).expect("reads");
    for (i, block) in found.chunks(4096).enumerate() {
        let was = &later[i * 4096..][..block.len()];
        assert!(block == was || block.iter().all(|byte| *byte == 0), "block {i} holds neither old nor new content");
    }
    client.trim(32 * MIB, MIB).expect("trims");
    // What was written and not flushed may be lost, and its gateway is gone: one flush says so (R13).
    client.flush().expect_err("a loss was not told");
    client.flush().expect("flushes");
    assert_eq!(dev.hash("v"), hash);
    drop((client, gateway));
    dev.finish();
}
