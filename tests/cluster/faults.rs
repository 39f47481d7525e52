//! Single daemons die and come back under load.

use crate::dev::Dev;
use crate::tools::{MIB, pattern};

/// The load's part of a volume: its first 8 MiB.
const LOAD_BLOCKS: u64 = 2048;

pub fn a_killed_primary_returns_by_difference() {
    let mut dev = Dev::start();
    dev.create_volume("v", "256MiB");
    let gateway = dev.gateway("v");
    let mut client = gateway.client();
    for at in 0..24 {
        client.write((16 + 8 * at) * MIB, &pattern(8 * MIB, at)).expect("writes");
    }
    client.flush().expect("flushes");
    let load = gateway.load(LOAD_BLOCKS);
    load.wait_for_more(500);
    let before = dev.resynced_bytes();

    let victim = dev.primary_of("v");
    dev.kill_node(&victim);
    load.wait_for_more(500);
    dev.start_node(&victim);
    dev.wait_clean();
    load.wait_for_more(200);
    let copied = dev.resynced_bytes() - before;
    assert!(copied < 64 * MIB, "a return by difference copied {copied} bytes of a volume that holds 200 MiB");

    load.stop_and_verify(&gateway.socket, "v");
    dev.wait_clean();
    // The copies agree: the hash is the same whoever is asked, so also without the node that was asked first.
    let hash = dev.hash("v");
    // Asked at once: the primaries change while the hash is taken.
    dev.kill_node(&dev.primary_of("v"));
    assert_eq!(dev.hash("v"), hash, "another primary has other content");
    client.read(0, MIB).expect("reads");
    for at in 0..24 {
        assert!(client.read((16 + 8 * at) * MIB, 8 * MIB).expect("reads") == pattern(8 * MIB, at), "part {at} differs");
    }
    drop((client, gateway));
    dev.finish();
}

/// What a hypervisor's restart does: the same gateway, by name, comes back after a kill, and has all that was flushed.
pub fn a_killed_gateway_returns_under_its_name() {
    let mut dev = Dev::start();
    dev.create_volume("v", "16MiB");
    let mut first = dev.start_gateway("v", &["--name", "host1"]);
    first.wait_serving();
    let mut client = first.client();
    client.write(0, &pattern(4 * MIB, 1)).expect("writes");
    client.flush().expect("flushes");
    first.daemon.signal("KILL");
    first.daemon.wait();
    drop(client);
    let mut second = dev.start_gateway("v", &["--name", "host1"]);
    second.wait_serving();
    let mut client = second.wait_connects();
    assert!(client.read(0, 4 * MIB).expect("reads") == pattern(4 * MIB, 1), "flushed data was lost");
    client.write(4 * MIB, &pattern(MIB, 2)).expect("writes");
    drop((client, first, second));
    dev.finish();
}

pub fn io_goes_on_without_the_coordinator() {
    let mut dev = Dev::start();
    dev.create_volume("v", "64MiB");
    let gateway = dev.gateway("v");
    let load = gateway.load(LOAD_BLOCKS);
    load.wait_for_more(200);
    let before = dev.status();
    dev.kill_node("coordinator");
    load.wait_for_more(1000);
    let refused = dev.try_cli(&["status"]);
    assert!(!refused.status.success() && refused.stderr.contains("coordinator"), "{}", refused.text());

    dev.start_node("coordinator");
    dev.wait_clean();
    load.wait_for_more(200);
    let after = dev.status();
    assert_eq!(after["resync"]["bytes_done"], before["resync"]["bytes_done"], "a coordinator's restart moves nothing");
    for key in ["total", "clean", "misplaced"] {
        assert_eq!(after["pgs"][key], before["pgs"][key], "{key}");
    }
    let placement = |status: &serde_json::Value| {
        let disks = status["disks"].as_array().expect("disks").iter();
        disks.map(|d| (d["id"].to_string(), d["pg_replicas"].to_string())).collect::<Vec<_>>()
    };
    assert_eq!(placement(&after), placement(&before));
    load.stop_and_verify(&gateway.socket, "v");
    drop(gateway);
    dev.finish();
}
