//! Faults that overlap with a resync, or with one another.

use std::thread::JoinHandle;

use crate::dev::{Dev, Gateway, New};
use crate::nbd::Load;
use crate::tools::{MIB, pattern, wait_for};

const LOAD_BLOCKS: u64 = 2048;
/// What the volume `v` holds: so many parts of 8 MiB.
const PARTS: u64 = 16;

/// A full volume `v`, resync capped so that it takes a while, and a load on another volume, `w`.
struct Scene {
    dev: Dev,
    full: Gateway,
    hash: String,
    loaded: Gateway,
    load: Load,
}

impl Scene {
    fn new(nodes: u32) -> Scene {
        let mut dev = Dev::start_with(New { nodes, ..New::default() });
        dev.create_volume("v", "128MiB");
        dev.create_volume("w", "64MiB");
        let (full, loaded) = (dev.gateway("v"), dev.gateway("w"));
        let mut client = full.client();
        for at in 0..PARTS {
            client.write(8 * at * MIB, &pattern(8 * MIB, at)).expect("writes");
        }
        client.flush().expect("flushes");
        dev.cli(&["resync", "set", "--cap", "1MiB/s"]);
        let hash = dev.hash("v");
        let load = loaded.load(LOAD_BLOCKS);
        load.wait_for_more(200);
        Scene { dev, full, hash, loaded, load }
    }

    /// Waits until copies run that began after `before` bytes.
    fn wait_for_copies(&self, before: u64) {
        wait_for("copies run", || {
            let resync = &self.dev.status()["resync"];
            (resync["active_moves"] != 0 && resync["bytes_done"].as_u64() > Some(before + MIB)).then_some(())
        });
    }

    /// Is some of the resync still to do?
    fn is_busy(&self) -> bool {
        let status = self.dev.status();
        let number = |value: &serde_json::Value| value.as_u64().expect("a number");
        number(&status["resync"]["pending_moves"]) + number(&status["pgs"]["degraded"]) > 0
    }

    fn replicas_of(&self, node: &str) -> u64 {
        let disks = self.dev.status()["disks"].as_array().expect("disks").clone();
        disks.iter().filter(|disk| disk["node"] == node).filter_map(|disk| disk["pg_replicas"].as_u64()).sum()
    }

    fn speed_up(&self) {
        self.dev.cli(&["resync", "set", "--cap", "none"]);
    }

    /// Everything is there, and everything is right.
    fn end(self) {
        self.load.wait_for_more(200);
        self.dev.wait_clean();
        self.load.stop_and_verify(&self.loaded.socket, "w");
        assert_eq!(self.dev.hash("v"), self.hash);
        let mut client = self.full.client();
        for at in 0..PARTS {
            let found = client.read(8 * at * MIB, 8 * MIB).expect("reads");
            assert!(found == pattern(8 * MIB, at), "part {at} differs");
        }
        drop((client, self.full, self.loaded));
        self.dev.finish();
    }
}

/// It dies again and again, whatever it was doing: as a source, as a target, while it catches up.
pub fn a_node_restarts_in_a_loop_during_a_rebalance() {
    let scene = Scene::new(3);
    let before = scene.dev.resynced_bytes();
    scene.dev.add_node();
    scene.wait_for_copies(before);
    for round in 0..6 {
        let victim = if round % 3 == 2 { "n4" } else { "n2" };
        assert!(scene.is_busy(), "the rebalance was over before kill {round}");
        scene.dev.kill_node(victim);
        assert_eq!(scene.dev.node(victim)["pid"], 0, "it still runs");
        scene.load.wait_for_more(50);
        scene.dev.start_node(victim);
    }
    scene.speed_up();
    wait_for("the new node has its share", || {
        scene.dev.wait_clean();
        (scene.replicas_of("n4") > 90).then_some(())
    });
    scene.end();
}

/// A read of the whole volume, which may have to wait for a node's return.
fn read_all(gateway: &Gateway) -> JoinHandle<()> {
    let mut client = gateway.client();
    std::thread::spawn(move || {
        for at in 0..PARTS {
            let found = client.read(8 * at * MIB, 8 * MIB).expect("a read waits for a copy, it does not fail");
            assert!(found == pattern(8 * MIB, at), "part {at} differs");
        }
    })
}

/// Of five nodes two die, the second while the first one's copies are made anew. Where both were members one copy is
/// left, less than the minimum: IO there waits until the second returns.
pub fn a_second_node_dies_during_the_repair() {
    let scene = Scene::new(5);
    let members = scene.dev.members_of("v");
    let before = scene.dev.resynced_bytes();
    scene.dev.kill_node(&members[0]);
    scene.load.wait_for_more(100);
    scene.wait_for_copies(before);
    scene.dev.kill_node(&members[1]);
    wait_for("placement groups below their minimum are reported", || {
        assert!(scene.is_busy(), "the repair was over before the second death");
        (scene.dev.status()["pgs"]["unavailable"].as_u64() > Some(0)).then_some(())
    });
    let reader = read_all(&scene.full);
    scene.dev.start_node(&members[1]);
    wait_for("every read is answered", || reader.is_finished().then_some(()));
    reader.join().expect("every byte is right");
    scene.load.wait_for_more(200);
    scene.speed_up();
    // The first never returns: its copies are elsewhere now.
    wait_for("everything is whole again", || {
        scene.dev.wait_clean();
        (scene.replicas_of(&members[0]) == 0 && !scene.is_busy()).then_some(())
    });
    scene.end();
}

pub fn a_join_and_a_drain_while_a_node_is_down() {
    let scene = Scene::new(4);
    let before = scene.dev.resynced_bytes();
    scene.dev.kill_node("n2");
    scene.load.wait_for_more(100);
    scene.wait_for_copies(before);
    scene.dev.add_node();
    scene.dev.cli(&["node", "drain", "n3"]);
    assert_eq!(scene.dev.node("n2")["pid"], 0, "it runs again");
    scene.load.wait_for_more(100);
    scene.speed_up();
    wait_for("the drained node is empty", || (scene.replicas_of("n3") == 0).then_some(()));
    assert!(scene.replicas_of("n5") > 0, "the new node has nothing");
    assert_eq!(scene.dev.node_state("n2"), "down");
    scene.dev.start_node("n2");
    wait_for("the node that was down has its share again", || {
        scene.dev.wait_clean();
        (scene.replicas_of("n2") > 50).then_some(())
    });
    scene.end();
}
