//! 4 KiB random IO with 16 requests in flight and 1 MiB sequential IO with 4, beside qemu-nbd on the same file: prints IOPS and server CPU per request.
//!
//! No gate: the figures are for a reader. `EVENKEEL_NBD_MEASURE_SECONDS` lengthens the second that each run takes.

use std::fs;
use std::process::{Child, Command};

use serde_json::Value;

use crate::setup::{MIB, TestServer, VOLUME, pattern, run_ok};

const FILE_BYTES: u64 = 256 * MIB;

/// A qemu-nbd that ends with the test.
struct QemuNbd(Child);

impl Drop for QemuNbd {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn throughput_beside_qemu_nbd() {
    let test = TestServer::start(FILE_BYTES).await;
    let disk = test.path("disk");
    fs::write(&disk, pattern(FILE_BYTES as usize, 1)).expect("writes");
    let theirs = test.path("q");
    let qemu = Command::new("qemu-nbd")
        .args(["-f", "raw", "-t", "-e", "8", "-x", VOLUME, "-k"])
        .arg(&theirs)
        .arg(&disk)
        .spawn()
        .expect("qemu-nbd can't be run: install qemu-utils");
    let qemu = QemuNbd(qemu);
    while !theirs.exists() {
        tokio::task::yield_now().await;
    }
    for (mode, block, depth) in [("randread", "4k", 16), ("randwrite", "4k", 16), ("read", "1m", 4), ("write", "1m", 4)]
    {
        for (name, pid, socket) in
            [("evenkeel", std::process::id(), test.socket()), ("qemu-nbd", qemu.0.id(), theirs.clone())]
        {
            let uri = format!("nbd+unix:///{VOLUME}?socket={}", socket.display());
            let before = cpu_seconds(pid);
            let (requests, iops, p99_us) = fio(mode, block, depth, &uri).await;
            let cpu_us = (cpu_seconds(pid) - before) / requests * 1e6;
            println!(
                "{mode} {block} QD{depth} {name}: {iops:.0} IOPS, p99 {p99_us:.0} µs, server CPU {cpu_us:.1} µs per request"
            );
            assert!(requests > 0.0);
        }
    }
    drop(qemu);
    test.stop().await;
}

/// Requests, requests per second, 99th percentile of the latency in microseconds.
async fn fio(mode: &str, block: &str, depth: u32, uri: &str) -> (f64, f64, f64) {
    let seconds = std::env::var("EVENKEEL_NBD_MEASURE_SECONDS").unwrap_or_else(|_| "1".into());
    let (uri, rw, runtime) = (format!("--uri={uri}"), format!("--rw={mode}"), format!("--runtime={seconds}"));
    let (size, bs, depth) = (format!("--size={FILE_BYTES}"), format!("--bs={block}"), format!("--iodepth={depth}"));
    let printed = run_ok(
        "fio",
        &[
            "--name=measure",
            "--ioengine=nbd",
            &uri,
            &rw,
            &runtime,
            &size,
            "--time_based",
            &bs,
            &depth,
            "--output-format=json",
        ],
    )
    .await;
    let start = printed.find('{').expect("JSON");
    let report: Value =
        serde_json::Deserializer::from_str(&printed[start..]).into_iter().next().expect("JSON").expect("JSON");
    let side = &report["jobs"][0][mode.trim_start_matches("rand")];
    let figure = |value: &Value| value.as_f64().expect("a number");
    (figure(&side["total_ios"]), figure(&side["iops"]), figure(&side["clat_ns"]["percentile"]["99.000000"]) / 1e3)
}

/// User and system time of a process.
fn cpu_seconds(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("reads");
    let (_, fields) = stat.rsplit_once(')').expect("a command name");
    let ticks: f64 =
        fields.split_whitespace().skip(11).take(2).map(|field| field.parse::<f64>().expect("a number")).sum();
    // Linux shows these times in hundredths of a second on every architecture.
    ticks / 100.0
}
