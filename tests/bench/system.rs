//! The whole system on one machine: IO through NBD with three replicas beside qemu-nbd on a raw file, and resync beside
//! raw TCP and a raw file copy, in one run; and what metrics cost, on and off in turn. `cargo bench --bench system --profile
//! release [-- SECONDS] [metrics]`; with the word, the metrics alone.
//!
//! Everything shares the machine's cores, the load generator too, so the ratios count, not the absolute figures.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use evenkeel::api::metrics::{Metrics, Operation};
use serde_json::Value;

const EVENKEEL: &str = env!("CARGO_BIN_EXE_evenkeel");
const VOLUME_BYTES: u64 = 1 << 30;
/// (name, fio's pattern, block size, queue depth)
const JOBS: [(&str, &str, &str, u32); 6] = [
    ("4 KiB random write QD1", "randwrite", "4k", 1),
    ("4 KiB random write QD16", "randwrite", "4k", 16),
    ("4 KiB random read QD1", "randread", "4k", 1),
    ("4 KiB random read QD16", "randread", "4k", 16),
    ("1 MiB write QD4", "write", "1m", 4),
    ("1 MiB read QD4", "read", "1m", 4),
];

/// A child that doesn't outlive the bench.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let term = Command::new("kill").arg(self.0.id().to_string()).status();
        if term.is_err() {
            let _ = self.0.kill();
        }
        let _ = self.0.wait();
    }
}

struct Result {
    iops: f64,
    mb_per_s: f64,
    p50_us: f64,
    p99_us: f64,
    cpu_s_per_10k: f64,
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(120);
    while !done() {
        assert!(Instant::now() < until, "waited two minutes for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn spawn(command: &mut Command) -> Running {
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    Running(child.unwrap_or_else(|e| panic!("{command:?} can't be run ({e}): tests/run installs what it needs")))
}

fn json(cluster: &Path, args: &[&str]) -> Value {
    let output = Command::new(EVENKEEL).env("EVENKEEL_CLUSTER", cluster).args(args).output().expect("evenkeel runs");
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
}

/// CPU time of processes so far, in seconds.
fn cpu_seconds(pids: &[u32]) -> f64 {
    let one = |pid: &u32| -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let after = stat.rsplit(')').next().unwrap_or_default().to_owned();
        let fields: Vec<f64> = after.split_whitespace().map(|f| f.parse().unwrap_or(0.0)).collect();
        // utime and stime, in hundredths of a second.
        fields.get(11).zip(fields.get(12)).map_or(0.0, |(u, s)| (u + s) / 100.0)
    };
    pids.iter().map(one).sum()
}

fn fio(uri: &str, (_, pattern, bs, depth): (&str, &str, &str, u32), seconds: u64, pids: &[u32]) -> Result {
    let before = cpu_seconds(pids);
    let output = Command::new("fio")
        .args(["--name=bench", "--ioengine=nbd", "--output-format=json", "--time_based", "--randseed=7"])
        .arg(format!("--uri={uri}"))
        .args([format!("--rw={pattern}"), format!("--bs={bs}"), format!("--iodepth={depth}")])
        .args([format!("--runtime={seconds}"), format!("--size={VOLUME_BYTES}")])
        .output()
        .expect("fio can't be run: install fio");
    let cpu = cpu_seconds(pids) - before;
    let text = String::from_utf8_lossy(&output.stdout);
    let report: Value = serde_json::from_str(&text[text.find('{').unwrap_or(0)..]).expect("fio's JSON");
    let side = &report["jobs"][0][if pattern.contains("read") { "read" } else { "write" }];
    let percentile = |p: &str| side["clat_ns"]["percentile"][p].as_f64().unwrap_or(0.0) / 1000.0;
    let ios = side["total_ios"].as_f64().unwrap_or(0.0);
    Result {
        iops: side["iops"].as_f64().unwrap_or(0.0),
        mb_per_s: side["bw_bytes"].as_f64().unwrap_or(0.0) / 1e6,
        p50_us: percentile("50.000000"),
        p99_us: percentile("99.000000"),
        cpu_s_per_10k: if ios > 0.0 { cpu / ios * 10_000.0 } else { 0.0 },
    }
}

fn jobs(uri: &str, seconds: u64, pids: &[u32]) -> Vec<Result> {
    // Every block exists before anything is measured.
    fio(uri, ("fill", "write", "1m", 4), 1, pids);
    let fill = Command::new("fio")
        .args(["--name=fill", "--ioengine=nbd", "--rw=write", "--bs=1m", "--iodepth=4", "--end_fsync=1"])
        .args([format!("--uri={uri}"), format!("--size={VOLUME_BYTES}")])
        .output()
        .expect("fio can't be run: install fio");
    assert!(fill.status.success(), "the fill failed: {}", String::from_utf8_lossy(&fill.stderr));
    JOBS.iter().map(|job| fio(uri, *job, seconds, pids)).collect()
}

fn raw_tcp_mb_per_s() -> f64 {
    const BYTES: usize = 1 << 30;
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let addr = listener.local_addr().expect("its address");
    let sender = std::thread::spawn(move || {
        let mut stream = TcpStream::connect(addr).expect("loopback");
        let block = vec![7u8; 256 << 10];
        for _ in 0..BYTES / block.len() {
            stream.write_all(&block).expect("sent");
        }
    });
    let (mut stream, _) = listener.accept().expect("accepted");
    let started = Instant::now();
    let mut buffer = vec![0u8; 256 << 10];
    let mut total = 0;
    while total < BYTES {
        total += stream.read(&mut buffer).expect("received");
    }
    sender.join().expect("the sender ends");
    total as f64 / started.elapsed().as_secs_f64() / 1e6
}

fn raw_copy_mb_per_s(dir: &Path) -> f64 {
    let (from, to) = (dir.join("from"), dir.join("to"));
    std::fs::write(&from, vec![9u8; 512 << 20]).expect("a file");
    let started = Instant::now();
    std::fs::copy(&from, &to).expect("a copy");
    std::fs::File::open(&to).and_then(|f| f.sync_all()).expect("synced");
    let rate = (512u64 << 20) as f64 / started.elapsed().as_secs_f64() / 1e6;
    let _ = (std::fs::remove_file(from), std::fs::remove_file(to));
    rate
}

/// A node joins an idle cluster: MB/s between the first and the last byte, and the bytes.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("its address").port()
}

/// Where each daemon's metrics are, as Prometheus finds them.
fn scrape_urls(cluster: &Path) -> Vec<String> {
    let file: Value = serde_json::from_slice(&std::fs::read(cluster).expect("cluster.json")).expect("JSON");
    let api = file["api"].as_str().expect("an URL");
    let token = std::fs::read_to_string(file["token_file"].as_str().expect("a path")).expect("the token");
    let bearer = format!("Authorization: Bearer {}", token.trim());
    let found = Command::new("curl").args(["-sf", "-H", &bearer, &format!("{api}/v1/prometheus/targets")]).output();
    let found: Value = serde_json::from_slice(&found.expect("curl can't be run").stdout).expect("targets");
    let targets = found.as_array().expect("a list").iter().flat_map(|t| t["targets"].as_array().cloned());
    targets.flatten().map(|t| format!("http://{}/metrics", t.as_str().expect("an address"))).collect()
}

fn resync(dir: &Path, cluster: &Path) -> (f64, u64) {
    let done = || json(cluster, &["status", "-o", "json"])["resync"]["bytes_done"].as_u64().unwrap_or(0);
    let before = done();
    let added = Command::new(EVENKEEL).args(["dev", "add-node", "--dir"]).arg(dir).output().expect("evenkeel runs");
    assert!(added.status.success(), "{}", String::from_utf8_lossy(&added.stderr));
    wait_for("the first byte of the resync", || done() > before);
    let started = Instant::now();
    let first = done();
    wait_for("the resync", || {
        let status = json(cluster, &["status", "-o", "json"]);
        status["pgs"]["misplaced"] == 0 && status["plan_pending"] == false
    });
    let took = started.elapsed().as_secs_f64();
    // The last bytes are reported within a second.
    std::thread::sleep(Duration::from_secs(2));
    let last = done();
    ((last - first) as f64 / took / 1e6, last - before)
}

/// What a guest loses to metrics: IOPS with every daemon scraped each second (15 times as often as Prometheus does by itself) over
/// IOPS without, in turns; and what it costs to count an operation, against the CPU that the operation takes.
fn metrics_cost(uri: &str, urls: &[String], seconds: u64, pids: &[u32]) {
    const TURNS: usize = 8;
    let job = ("", "randrw", "4k", 16);
    let mut iops = [Vec::new(), Vec::new()];
    let mut cpu = Vec::new();
    for turn in 0..2 * TURNS {
        let scraped = turn % 2 == 1;
        let over = AtomicBool::new(false);
        let result = std::thread::scope(|threads| {
            threads.spawn(|| {
                while scraped && !over.load(Ordering::Relaxed) {
                    let began = Instant::now();
                    for url in urls {
                        let text = Command::new("curl").args(["-sf", url]).output().expect("curl can't be run").stdout;
                        assert!(text.starts_with(b"# HELP"), "{url} gives no metrics");
                    }
                    std::thread::sleep(Duration::from_secs(1).saturating_sub(began.elapsed()));
                }
            });
            let result = fio(uri, job, seconds, pids);
            over.store(true, Ordering::Relaxed);
            result
        });
        iops[usize::from(scraped)].push(result.iops);
        cpu.push(result.cpu_s_per_10k);
    }
    let median = |values: &mut Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let [mut off, mut on] = iops;
    let spread = |v: &[f64]| format!("{:.0} to {:.0}", v[0], v[v.len() - 1]);
    let (without, with) = (median(&mut off), median(&mut on));
    let counted = {
        const OPERATIONS: u32 = 1_000_000;
        let metrics = Metrics::gateway("bench");
        let began = Instant::now();
        for i in 0..OPERATIONS {
            metrics.foreground.done(Operation::Write, 4096, Duration::from_micros(u64::from(i % 4096)));
        }
        began.elapsed().as_secs_f64() / f64::from(OPERATIONS)
    };
    let operation = median(&mut cpu) / 10_000.0;
    println!();
    println!("| metrics | without a scrape | each daemon once a second | ratio | to count an operation | of its CPU |");
    println!("|---|---|---|---|---|---|");
    println!(
        "| 4 KiB random, QD16, {TURNS} turns of {seconds} s each | {without:.0} IOPS ({}) | {with:.0} IOPS ({}) | {:.3} | {:.0} ns | {:.2} % |",
        spread(&off),
        spread(&on),
        with / without,
        counted * 1e9,
        // At the gateway, and at the node that leads.
        2.0 * counted / operation * 100.0
    );
}

fn main() {
    let seconds = std::env::args().skip(1).find_map(|a| a.parse().ok()).unwrap_or(5);
    let metrics_alone = std::env::args().any(|a| a == "metrics");
    let temp = tempfile::tempdir().expect("a temporary directory");
    let dir: PathBuf = temp.path().join("cluster");
    let dev = spawn(Command::new(EVENKEEL).args(["dev", "--nodes", "3", "--disk-size", "8GiB", "--dir"]).arg(&dir));
    let cluster = dir.join("cluster.json");
    wait_for("the cluster", || cluster.exists());
    json(&cluster, &["volume", "create", "bench", "--size", &VOLUME_BYTES.to_string()]);
    let socket = temp.path().join("evenkeel.sock");
    let mut gateway = Command::new(EVENKEEL);
    gateway.env("EVENKEEL_CLUSTER", &cluster).args(["gateway", "--volume", "bench", "--socket"]).arg(&socket);
    gateway.args(["--admin", &format!("127.0.0.1:{}", free_port())]);
    let gateway = spawn(&mut gateway);
    wait_for("the gateway", || socket.exists());
    let file: Value = serde_json::from_slice(&std::fs::read(&cluster).expect("cluster.json")).expect("JSON");
    let mut pids = vec![gateway.0.id(), file["coordinator"]["pid"].as_u64().unwrap_or(0) as u32];
    for node in file["nodes"].as_array().expect("nodes") {
        pids.push(node["pid"].as_u64().unwrap_or(0) as u32);
    }
    let uri = format!("nbd+unix:///bench?socket={}", socket.display());
    let urls = scrape_urls(&cluster);
    if metrics_alone {
        return metrics_cost(&uri, &urls, seconds, &pids);
    }
    let ours = jobs(&uri, seconds, &pids);
    metrics_cost(&uri, &urls, seconds, &pids);

    let (raw_file, raw_socket) = (temp.path().join("raw"), temp.path().join("raw.sock"));
    std::fs::File::create(&raw_file).and_then(|f| f.set_len(VOLUME_BYTES)).expect("a raw file");
    let mut nbd = Command::new("qemu-nbd");
    nbd.args(["--format=raw", "--persistent", "--shared=8", "--cache=writeback", "--socket"]).arg(&raw_socket);
    let nbd = spawn(nbd.arg(&raw_file));
    wait_for("qemu-nbd", || raw_socket.exists());
    let raw = jobs(&format!("nbd+unix:///?socket={}", raw_socket.display()), seconds, &[nbd.0.id()]);
    drop(nbd);

    println!();
    println!(
        "| job | Evenkeel, 3 copies | p50 | p99 | CPU s / 10,000 | qemu-nbd, 1 file | p50 | p99 | CPU s / 10,000 | ratio |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for ((job, a), b) in JOBS.iter().zip(&ours).zip(&raw) {
        let rate = |r: &Result| match job.2 {
            "4k" => format!("{:.0} IOPS", r.iops),
            _ => format!("{:.0} MB/s", r.mb_per_s),
        };
        let cells =
            |r: &Result| format!("{} | {:.0} µs | {:.0} µs | {:.2}", rate(r), r.p50_us, r.p99_us, r.cpu_s_per_10k);
        println!("| {} | {} | {} | {:.2} |", job.0, cells(a), cells(b), a.iops / b.iops);
    }
    let (rate, bytes) = resync(&dir, &cluster);
    let (tcp, copy) = (raw_tcp_mb_per_s(), raw_copy_mb_per_s(temp.path()));
    println!();
    println!("| resync, no foreground | MB/s | of raw TCP | of a raw file copy with fsync |");
    println!("|---|---|---|---|");
    println!(
        "| {:.0} MiB to a new node | {rate:.0} | {:.2} of {tcp:.0} | {:.2} of {copy:.0} |",
        bytes as f64 / 1048576.0,
        rate / tcp,
        rate / copy
    );
    drop(gateway);
    drop(dev);
}
