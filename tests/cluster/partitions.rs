//! The network is cut, in part or one way, and healed, under load.

use serde_json::Value;

use crate::dev::{Dev, Gateway, New};
use crate::nbd::Load;
use crate::real_input::Fio;
use crate::tools::{hold, wait_for};

const LOAD_BLOCKS: u64 = 2048;

fn loaded() -> (Dev, Gateway, Load) {
    let mut dev = Dev::start_with(New { own_network: true, ..New::default() });
    dev.create_volume("v", "64MiB");
    let gateway = dev.gateway("v");
    let load = gateway.load(LOAD_BLOCKS);
    load.wait_for_more(300);
    (dev, gateway, load)
}

/// The network heals; everything gets clean, and every block is right whoever is asked for it.
fn heals(dev: Dev, gateway: Gateway, load: Load) {
    dev.network().heal();
    load.wait_for_more(200);
    wait_for("every node is back", || {
        let nodes = dev.status()["nodes"].as_array().expect("nodes").clone();
        nodes.iter().all(|node| node["state"] == "up").then_some(())
    });
    dev.wait_clean();
    load.stop_and_verify(&gateway.socket, "v");
    let hash = dev.hash("v");
    dev.kill_node(&dev.primary_of("v"));
    gateway.client().read(0, LOAD_BLOCKS * 4096).expect("reads");
    assert_eq!(dev.hash("v"), hash, "another primary has other content");
    drop(gateway);
    dev.finish();
}

/// The address of a node, or with its port.
fn ip_of(daemon: &Value) -> String {
    let address = daemon["addr"].as_str().expect("an address");
    address.rsplit_once(':').expect("a port").0.to_owned()
}

pub fn a_primary_cut_off_from_all() {
    let (mut dev, gateway, load) = loaded();
    dev.create_volume("scratch", "64MiB");
    let to_scratch = dev.gateway("scratch");
    let fio = Fio::start(&to_scratch);
    let victim = dev.primary_of("v");
    dev.network().cut_off(&ip_of(&dev.node(&victim)));
    wait_for("the node is missed", || (dev.node_state(&victim) == "down").then_some(()));
    load.wait_for_more(300);
    assert_ne!(dev.primary_of("v"), victim, "a node that nobody reaches is still primary");
    fio.wait_for_whole_round();
    assert_eq!(dev.node_state(&victim), "down", "the cut did not hold");
    fio.finish();
    drop(to_scratch);
    heals(dev, gateway, load);
}

/// The old primary and the gateway still see each other: what it says must not count any more.
pub fn a_primary_that_only_its_gateway_reaches() {
    let (dev, gateway, load) = loaded();
    let victim = dev.primary_of("v");
    let ip = ip_of(&dev.node(&victim));
    for other in dev.node_names().iter().filter(|name| **name != victim) {
        let other = ip_of(&dev.node(other));
        dev.network().cut(&["-s", &ip, "-d", &other]);
        dev.network().cut(&["-s", &other, "-d", &ip]);
    }
    dev.network().cut_off_port_for(dev.cluster()["coordinator"]["addr"].as_str().expect("an address"), &ip);
    wait_for("the node is missed", || (dev.node_state(&victim) == "down").then_some(()));
    load.wait_for_more(500);
    assert_ne!(dev.primary_of("v"), victim, "a node that only the gateway reaches is still primary");
    heals(dev, gateway, load);
}

/// All nodes still see each other: IO goes on, and nothing is moved when they are seen again.
pub fn the_coordinator_cut_off() {
    let (dev, gateway, load) = loaded();
    let before = dev.resynced_bytes();
    let placed = |dev: &Dev| dev.status()["disks"].as_array().expect("disks").iter().map(replicas).collect::<Vec<_>>();
    let placement = placed(&dev);
    dev.network().cut_off_port(dev.cluster()["coordinator"]["addr"].as_str().expect("an address"));
    wait_for("the coordinator sees nobody", || {
        let nodes = dev.status()["nodes"].as_array().expect("nodes").clone();
        nodes.iter().all(|node| node["state"] == "down").then_some(())
    });
    load.wait_for_more(500);
    // Past the grace after which a lost node's copies are made anew.
    hold(12);
    load.wait_for_more(500);
    dev.network().heal();
    load.wait_for_more(500);
    dev.wait_clean();
    assert_eq!(dev.resynced_bytes(), before, "a cut that no replica felt moves nothing");
    assert_eq!(placed(&dev), placement);
    load.stop_and_verify(&gateway.socket, "v");
    drop(gateway);
    dev.finish();
}

fn replicas(disk: &Value) -> String {
    format!("{} {}", disk["id"], disk["pg_replicas"])
}

/// The primary's packets to another member are lost, that member's packets to the primary are not.
pub fn a_cut_one_way() {
    let (dev, gateway, load) = loaded();
    let members = dev.members_of("v");
    let [from, to] = [0, 1].map(|member| ip_of(&dev.node(&members[member])));
    dev.network().cut(&["-s", &from, "-d", &to]);
    load.wait_for_more(1000);
    assert!(dev.network().dropped() > 0, "nothing was lost");
    // Each is heard by all others; who goes is the coordinator's choice, but both can't stay together.
    wait_for("the two are no longer in one configuration", || {
        let now = dev.members_of("v");
        (!(now.contains(&members[0]) && now.contains(&members[1]))).then_some(())
    });
    load.wait_for_more(1000);
    heals(dev, gateway, load);
}

/// One packet in twenty is lost, of each node, each way: slower, and nobody is taken for dead.
pub fn lost_packets_remove_nobody() {
    let (dev, gateway, load) = loaded();
    let generations = |dev: &Dev| {
        let pgs = dev.json(&["pg", "list"]);
        let all = pgs.as_array().expect("PGs").iter();
        all.map(|pg| format!("{} {}", pg["id"], pg["generation"])).collect::<Vec<_>>()
    };
    let before = generations(&dev);
    dev.network().cut(&["-p", "udp", "-m", "statistic", "--mode", "random", "--probability", "0.05"]);
    load.wait_for_more(1000);
    // Long enough for hundreds of heartbeats and renewals of each.
    hold(20);
    load.wait_for_more(1000);
    assert!(dev.network().dropped() > 1000, "next to nothing was lost");
    assert_eq!(generations(&dev), before, "somebody was removed, or promoted");
    heals(dev, gateway, load);
}
