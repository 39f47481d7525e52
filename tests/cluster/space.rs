//! Disks that fill up: writes wait, health says why, and they go on when there is space again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::dev::{Dev, Gateway, New};
use crate::tools::{MIB, pattern, wait_for};

/// Fills a volume from its beginning, one MiB after the other, and counts what was acked.
pub struct Filler {
    done: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Filler {
    pub fn start(gateway: &Gateway, mib: u64) -> Filler {
        let done = Arc::new(AtomicU64::new(0));
        let (mut client, counter) = (gateway.client(), done.clone());
        let thread = std::thread::spawn(move || {
            for at in 0..mib {
                client.write(at * MIB, &pattern(MIB, at)).expect("a write waits for space, it does not fail");
                counter.store(at + 1, Ordering::Relaxed);
            }
            client.flush().expect("flushes");
        });
        Filler { done, thread }
    }

    fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    pub fn finish(self) {
        wait_for("the stalled writes are acked", || self.thread.is_finished().then_some(()));
        self.thread.join().expect("every write was acked");
    }
}

/// Waits until health says that a disk is full and nothing more is acked.
pub fn wait_stalled(dev: &Dev, fillers: &[Filler]) {
    let mut last = None;
    wait_for("writes stall and health says why", || {
        assert!(fillers.iter().any(|f| !f.thread.is_finished()), "all was written: the disks never filled");
        std::thread::sleep(Duration::from_millis(500));
        let (now, status) = (fillers.iter().map(Filler::done).sum::<u64>(), dev.status());
        let stalled = last.replace(now) == Some(now);
        let says = status["health_reasons"].to_string().contains("Writes wait for space");
        (stalled && status["health"] != "ok" && says).then_some(())
    });
    // A full disk is no dead node.
    assert!(dev.status()["nodes"].as_array().expect("nodes").iter().all(|node| node["state"] == "up"));
}

pub fn verify(gateway: &Gateway, mib: u64) {
    let mut client = gateway.client();
    for at in 0..mib {
        assert!(client.read(at * MIB, MIB).expect("reads") == pattern(MIB, at), "MiB {at} differs");
    }
}

/// Room for about 220 MiB of data on each node.
const SMALL: New = New { nodes: 3, disk_size: "256MiB", own_network: false };

pub fn deleting_a_volume_lets_stalled_writes_go_on() {
    let mut dev = Dev::start_with(SMALL);
    dev.create_volume("old", "96MiB");
    let old = dev.gateway("old");
    Filler::start(&old, 96).finish();
    dev.create_volume("v", "224MiB");
    let gateway = dev.gateway("v");
    let filler = Filler::start(&gateway, 192);
    wait_stalled(&dev, std::slice::from_ref(&filler));

    // Trimming needs no space, nor does writing there again.
    let mut client = old.client();
    client.trim(0, 8 * MIB).expect("trims on full disks");
    assert!(client.read(0, MIB).expect("reads").iter().all(|byte| *byte == 0), "a trimmed range is not zero");
    client.write(0, &pattern(MIB, 0)).expect("writes where it was trimmed");
    assert!(client.read(32 * MIB, MIB).expect("reads") == pattern(MIB, 32), "reads go on");
    drop((client, old));

    dev.cli(&["volume", "delete", "old", "--yes"]);
    filler.finish();
    verify(&gateway, 192);
    drop(gateway);
    dev.finish();
}

pub fn a_new_node_lets_stalled_writes_go_on() {
    let mut dev = Dev::start_with(SMALL);
    // Several volumes, so that their bytes lie on many placement groups, which the new node evens out.
    let volumes = ["v1", "v2", "v3", "v4"];
    let gateways = volumes.map(|volume| {
        dev.create_volume(volume, "64MiB");
        dev.gateway(volume)
    });
    let fillers: Vec<Filler> = gateways.iter().map(|gateway| Filler::start(gateway, 64)).collect();
    wait_stalled(&dev, &fillers);
    dev.add_node();
    fillers.into_iter().for_each(Filler::finish);
    gateways.iter().for_each(|gateway| verify(gateway, 64));
    drop(gateways);
    dev.finish();
}
