//! What faults cost a guest, and what a node's absence costs the network. `cargo bench --bench failover --profile release
//! [-- RUNS]`. The silent partitions need a network namespace (root, or user namespaces).
//!
//! Longest time without an acked IO: several clients write 4 KiB blocks to random places, each with one request in
//! flight, so that every PG of the volume is written all the time; the gap is between any two acks.

#[allow(dead_code, reason = "shared with the tests, which use the rest")]
#[path = "../cluster/dev.rs"]
mod dev;
#[allow(dead_code, reason = "shared with the tests, which use the rest")]
#[path = "../cluster/nbd.rs"]
mod nbd;
#[allow(dead_code, reason = "shared with the tests, which use the rest")]
#[path = "../cluster/net.rs"]
mod net;
#[allow(dead_code, reason = "shared with the tests, which use the rest")]
#[path = "../cluster/tools.rs"]
mod tools;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dev::{Dev, Gateway, New};
use nbd::{BLOCK_BYTES, Client, stamp};
use tools::{MIB, hold, wait_for};

const CLIENTS: u64 = 4;
const VOLUME_BYTES: u64 = 256 * MIB;

/// What one client saw.
struct Seen {
    acked: Vec<Instant>,
    slowest: Duration,
    blocks: BTreeSet<u64>,
}

/// Writers at random places, until they are stopped.
struct Writers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Seen>>,
}

impl Writers {
    fn start(gateway: &Gateway) -> Writers {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = (0..CLIENTS)
            .map(|n| {
                let (stop, mut client) = (stop.clone(), gateway.client());
                std::thread::spawn(move || write_until(&stop, &mut client, n))
            })
            .collect();
        Writers { stop, threads }
    }

    fn stop(self) -> Vec<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().map(|t| t.join().expect("a writer sees no error")).collect()
    }
}

fn write_until(stop: &AtomicBool, client: &mut Client, n: u64) -> Seen {
    let mut seen = Seen { acked: Vec::new(), slowest: Duration::ZERO, blocks: BTreeSet::new() };
    let mut state = n * 2 + 1;
    while !stop.load(Ordering::Relaxed) {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let block = (state >> 33) % (VOLUME_BYTES / BLOCK_BYTES);
        let sent = Instant::now();
        client.write(block * BLOCK_BYTES, &stamp(block, state)).expect("no error reaches the guest");
        seen.acked.push(Instant::now());
        seen.slowest = seen.slowest.max(sent.elapsed());
        seen.blocks.insert(block);
    }
    seen
}

/// The longest time between two acks of anybody, and the slowest single write.
fn stalls(seen: &[Seen]) -> (Duration, Duration) {
    let mut acked: Vec<Instant> = seen.iter().flat_map(|s| s.acked.iter().copied()).collect();
    acked.sort_unstable();
    let longest = acked.windows(2).map(|w| w[1] - w[0]).max().unwrap_or_default();
    (longest, seen.iter().map(|s| s.slowest).max().unwrap_or_default())
}

fn filled(own_network: bool) -> (Dev, Gateway) {
    let mut dev = Dev::start_with(New { own_network, ..New::default() });
    dev.create_volume("v", &VOLUME_BYTES.to_string());
    let gateway = dev.gateway("v");
    let mut client = gateway.client();
    for chunk in 0..VOLUME_BYTES / (4 * MIB) {
        client.write(chunk * 4 * MIB, &tools::pattern(4 * MIB, chunk)).expect("filled");
    }
    client.flush().expect("flushed");
    (dev, gateway)
}

fn all_up(dev: &Dev) {
    wait_for("every node is back", || {
        let nodes = dev.status()["nodes"].as_array().expect("nodes").clone();
        nodes.iter().all(|node| node["state"] == "up").then_some(())
    });
    dev.wait_clean();
}

/// The fault strikes a primary under load and is undone; gives the stalls of each run.
fn measure(runs: u64, own_network: bool, fault: fn(&Dev, &str), undo: fn(&Dev, &str)) -> Vec<(Duration, Duration)> {
    let (dev, gateway) = filled(own_network);
    let mut all = Vec::new();
    for _ in 0..runs {
        let victim = dev.primary_of("v");
        let writers = Writers::start(&gateway);
        hold(2);
        fault(&dev, &victim);
        hold(12);
        all.push(stalls(&writers.stop()));
        undo(&dev, &victim);
        all_up(&dev);
    }
    drop(gateway);
    dev.finish();
    all
}

fn cut(dev: &Dev, node: &str) {
    let node = dev.node(node);
    let address = node["addr"].as_str().expect("an address");
    dev.network().cut_off(address.rsplit_once(':').expect("a port").0);
}

fn report(fault: &str, runs: &[(Duration, Duration)], goal: &str) {
    let worst = |pick: fn(&(Duration, Duration)) -> Duration| {
        let mut all: Vec<f64> = runs.iter().map(|r| pick(r).as_secs_f64()).collect();
        all.sort_by(f64::total_cmp);
        format!("{:.2} / {:.2} s", all[all.len() / 2], all[all.len() - 1])
    };
    println!("| {fault} | {} | {} | {goal} | {} |", worst(|r| r.0), worst(|r| r.1), runs.len());
}

/// A node is away while others write; what it takes to bring it back.
fn absence(dev: &Dev, gateway: &Gateway, seconds: u64) -> (u64, u64, u64) {
    let sent = || dev.metric_of_nodes("evenkeel_resync_sent_bytes_total") as u64;
    let victim = dev.primary_of("v");
    dev.kill_node(&victim);
    let mut blocks = BTreeSet::new();
    if seconds > 0 {
        let writers = Writers::start(gateway);
        hold(seconds);
        for seen in writers.stop() {
            blocks.extend(seen.blocks);
        }
    }
    let (sent_before, written_before) = (sent(), dev.resynced_bytes());
    dev.start_node(&victim);
    all_up(dev);
    // Figures are reported each second.
    hold(2);
    (blocks.len() as u64 * BLOCK_BYTES, sent() - sent_before, dev.resynced_bytes() - written_before)
}

fn main() {
    let runs = std::env::args().skip(1).find_map(|a| a.parse().ok()).unwrap_or(5);
    println!();
    println!("| fault, under load | longest time without an acked IO, median / worst | slowest write | goal | runs |");
    println!("|---|---|---|---|---|");
    let killed = measure(runs, false, Dev::kill_node, Dev::start_node);
    report("kill -9 of a primary", &killed, "≤ 1 s");
    let frozen = measure(runs, false, |d, n| d.signal_node(n, "STOP"), |d, n| d.signal_node(n, "CONT"));
    report("a primary frozen", &frozen, "≤ 3 s");
    let silent = measure(runs, true, cut, |d, _| d.network().heal());
    report("a primary behind a silent partition", &silent, "≤ 3 s");

    let (dev, gateway) = filled(false);
    println!();
    println!("| a node was away | 4 KiB blocks written | on the wire | written to it | goal on the wire |");
    println!("|---|---|---|---|---|");
    for seconds in [0, 20] {
        let (changed, sent, written) = absence(&dev, &gateway, seconds);
        let goal = changed as f64 * 1.2 + VOLUME_BYTES as f64 * 0.001;
        println!(
            "| {seconds} s | {:.1} MiB | {:.2} MiB | {:.1} MiB | ≤ {:.1} MiB |",
            changed as f64 / MIB as f64,
            sent as f64 / MIB as f64,
            written as f64 / MIB as f64,
            goal / MIB as f64
        );
    }
    drop(gateway);
    dev.finish();
}
