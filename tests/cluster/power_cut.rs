//! Power cuts: processes are killed, and their disks lose what was not synced.

use std::sync::Arc;

use crate::copies::{agree, check_history, write_until_cut};
use crate::dev::Dev;
use crate::faultfs::FaultFs;
use crate::tools::wait_for;

/// Two chunks.
const BLOCKS: u64 = 2048;
const NODES: [&str; 3] = ["n1", "n2", "n3"];
/// A kill may come just after a sync; then there is nothing to lose, and it is tried again.
const ATTEMPTS: usize = 10;

fn on_fault_fs(nodes: &[&str]) -> (Dev, Vec<Arc<FaultFs>>) {
    let mut dev = Dev::start();
    let mounts = dev.put_below(nodes, FaultFs::mount);
    dev.create_volume("v", "8MiB");
    (dev, mounts)
}

/// Waits until there is something to lose.
fn wait_unstable(mounts: &[Arc<FaultFs>]) {
    wait_for("each disk has writes that are not synced", || {
        mounts.iter().all(|fs| fs.unstable_pages() > 8).then_some(())
    });
}

pub fn one_node_loses_what_was_not_synced() {
    let (mut dev, mounts) = on_fault_fs(&["n2"]);
    let gateway = dev.gateway("v");
    let load = gateway.load(BLOCKS);
    load.wait_for_more(300);
    for attempt in 1.. {
        wait_unstable(&mounts);
        dev.kill_at_once(&[dev.pid_of("n2")]);
        let lost = mounts[0].power_cut(None);
        // Known to have died, as `kill-node` would have it.
        dev.kill_node("n2");
        load.wait_for_more(300);
        dev.start_node("n2");
        dev.wait_clean();
        if lost > 0 {
            break;
        }
        assert!(attempt < ATTEMPTS, "nothing was ever lost");
    }
    load.wait_for_more(200);
    load.stop_and_verify(&gateway.socket, "v");
    agree(&dev, &gateway, 2);
    drop((gateway, mounts));
    dev.finish();
}

/// All nodes at once, while the gateway lives on: it has what was acked and not flushed, and writes it again (R13).
pub fn all_nodes_lose_what_was_not_synced() {
    let (mut dev, mounts) = on_fault_fs(&NODES);
    let gateway = dev.gateway("v");
    let load = gateway.load(BLOCKS);
    // Disks keep nothing, or each page by chance, and never the same ones.
    for seeds in [[None; 3], [Some(1), Some(2), Some(3)], [Some(4), None, Some(5)]] {
        load.wait_for_more(500);
        wait_unstable(&mounts);
        dev.kill_at_once(&NODES.map(|node| dev.pid_of(node)));
        let lost: Vec<u64> = mounts.iter().zip(seeds).map(|(fs, seed)| fs.power_cut(seed)).collect();
        println!("    with {seeds:?} the disks lost {lost:?} pages");
        assert!(lost.iter().sum::<u64>() > 0, "nothing was lost");
        NODES.iter().for_each(|node| dev.kill_node(node));
        NODES.iter().for_each(|node| dev.start_node(node));
        dev.wait_clean();
        load.wait_for_more(300);
    }
    load.stop_and_verify(&gateway.socket, "v");
    agree(&dev, &gateway, 2);
    drop((gateway, mounts));
    dev.finish();
}

/// Nodes, coordinator and gateway at once. What was flushed is there, or something newer, and the copies agree.
pub fn the_whole_cluster_loses_what_was_not_synced() {
    let (mut dev, mounts) = on_fault_fs(&NODES);
    let mut gateway = dev.gateway("v");
    for seeds in [[None; 3], [Some(11), Some(12), Some(13)], [None, Some(14), Some(15)]] {
        let writers: Vec<_> = (0..4)
            .map(|part| {
                let client = gateway.client();
                let (first, blocks) = (part * BLOCKS / 4, BLOCKS / 4);
                (first, std::thread::spawn(move || write_until_cut(client, first, blocks)))
            })
            .collect();
        let synced: u64 = mounts.iter().map(|fs| fs.fsyncs()).sum();
        wait_for("some flushes are done", || {
            (mounts.iter().map(|fs| fs.fsyncs()).sum::<u64>() > synced + 36).then_some(())
        });
        wait_unstable(&mounts);
        let coordinator = dev.cluster()["coordinator"]["pid"].as_u64().expect("a process id");
        let nodes = NODES.map(|node| dev.pid_of(node));
        dev.kill_at_once(&[&nodes[..], &[coordinator, u64::from(gateway.daemon.pid())]].concat());
        let lost: Vec<u64> = mounts.iter().zip(seeds).map(|(fs, seed)| fs.power_cut(seed)).collect();
        println!("    with {seeds:?} the disks lost {lost:?} pages");
        assert!(lost.iter().sum::<u64>() > 0, "nothing was lost");
        let histories: Vec<_> = writers.into_iter().map(|(first, w)| (first, w.join().expect("no panic"))).collect();
        assert!(histories.iter().flat_map(|(_, h)| h).any(|h| h.flushed > 0), "nothing was flushed");
        assert!(histories.iter().flat_map(|(_, h)| h).any(|h| h.acked > h.flushed), "all was flushed");

        dev.kill_node("coordinator");
        NODES.iter().for_each(|node| dev.kill_node(node));
        dev.start_node("coordinator");
        NODES.iter().for_each(|node| dev.start_node(node));
        gateway = dev.start_gateway("v", &["--take-over"]);
        gateway.wait_serving();
        for (first, history) in &histories {
            check_history(&mut gateway.client(), *first, history);
        }
        agree(&dev, &gateway, 2);
        for (first, history) in &histories {
            check_history(&mut gateway.client(), *first, history);
        }
        // The gateway that had acked it is gone with what was not flushed: the guest hears of it, once (R13).
        let mut client = gateway.client();
        client.trim(0, 8 << 20).expect("trims");
        let told = client.flush().expect_err("a loss was not told");
        assert_eq!(told.raw_os_error(), Some(5), "{told}");
        client.flush().expect("flushes");
    }
    drop((gateway, mounts));
    dev.finish();
}

/// What the coordinator has answered survives the loss of all that it had not synced.
pub fn the_coordinator_keeps_what_it_said() {
    let mut dev = Dev::start();
    dev.create_volume("v", "8MiB");
    let fs = dev.put_below_coordinator(FaultFs::mount);
    let gateway = dev.gateway("v");
    let load = gateway.load(BLOCKS);
    let mut count = 0;
    for round in 0..5 {
        for _ in 0..4 {
            count += 1;
            dev.create_volume(&format!("w{count}"), "8MiB");
        }
        // Something changes at the moment of the cut, too.
        let (unanswered, file) = (format!("x{round}"), dev.cluster_file());
        let client = std::thread::spawn(move || {
            // It may be answered or not.
            let args = ["volume", "create", &unanswered, "--size", "8MiB", "--cluster"];
            crate::tools::run(std::process::Command::new(crate::dev::binary()).args(args).arg(file));
        });
        let coordinator = dev.cluster()["coordinator"]["pid"].as_u64().expect("a process id");
        dev.kill_at_once(&[coordinator]);
        println!("    the coordinator lost {} pages", fs.power_cut((round > 0).then_some(round)));
        client.join().expect("no panic");
        dev.kill_node("coordinator");
        load.wait_for_more(100);
        dev.start_node("coordinator");
        let volumes = dev.json(&["volume", "list"]);
        let names: Vec<&str> = volumes.as_array().expect("volumes").iter().filter_map(|v| v["name"].as_str()).collect();
        for i in 1..=count {
            assert!(names.contains(&format!("w{i}").as_str()), "volume w{i} was lost: {names:?}");
        }
    }
    dev.wait_clean();
    load.stop_and_verify(&gateway.socket, "v");
    drop((gateway, fs));
    dev.finish();
}
