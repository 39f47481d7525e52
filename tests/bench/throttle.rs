//! The throttle on real disks: fio through NBD while data moves to a node, beside the same without a throttle and with a
//! static cap, then what follows a change: of the load, of a cap, of exposure. `cargo bench --bench throttle --profile release
//! [-- RUNS [CASE]]`; plots are written to `target/throttle`.
//!
//! One node is drained and taken back in turns: each turn moves the same data. Load generator, gateway and all nodes share
//! the machine's cores, so what is compared are ratios within one run. Latency is fio's, from issue to completion.

#[allow(dead_code, reason = "shared with the tests, which use the rest")]
#[path = "../cluster/dev.rs"]
mod dev;
#[allow(dead_code, reason = "shared with the tests, which use the rest")]
#[path = "../cluster/nbd.rs"]
mod nbd;
#[allow(dead_code, reason = "shared with the tests, which use the rest")]
#[path = "../cluster/net.rs"]
mod net;
mod throttle_changes;
#[allow(dead_code, reason = "shared with the tests, which use the rest")]
#[path = "../cluster/tools.rs"]
mod tools;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use dev::{Daemon, Dev, Gateway, New, sum_of};
use tools::{hold, run_ok, wait_for};

const VOLUME_BYTES: u64 = 4 << 30;
const MIB: f64 = 1_048_576.0;
/// A case that moves nothing more by then is reported as it stands.
const CASE_MAX: Duration = Duration::from_secs(180);
/// The load runs alone for so long before the data moves: its quiet figures, and the throttle's baseline.
const QUIET_SECONDS: u64 = 6;
/// A point of the curve of resync.
const SAMPLE_EVERY: Duration = Duration::from_millis(250);

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

/// The cluster, its gateway, and the directory for fio's logs.
struct Bed {
    dev: Dev,
    gateway: Gateway,
    drained: bool,
}

impl Bed {
    fn bytes_done(&self) -> f64 {
        self.dev.resynced_bytes() as f64
    }

    fn is_clean(&self) -> bool {
        let status = self.dev.status();
        let pgs = &status["pgs"];
        pgs["misplaced"] == 0
            && pgs["degraded"] == 0
            && status["plan_pending"] == false
            && status["resync"]["active_moves"] == 0
    }

    /// Drains the last node, or takes it back: about the same bytes each time.
    fn turn(&mut self) {
        self.drained = !self.drained;
        let verb = if self.drained { "drain" } else { "undrain" };
        self.dev.cli(&["node", verb, "n4"]);
    }

    fn fio(&self, name: &str, load: &Load, seconds: u64) -> Daemon {
        self.fio_as(name, load, seconds, &["--rw=randrw", "--rwmixread=70", "--bs=4k"])
    }

    fn fio_as(&self, name: &str, load: &Load, seconds: u64, kind: &[&str]) -> Daemon {
        let mut fio = Command::new("fio");
        fio.args([
            "--name=guest",
            "--ioengine=nbd",
            "--time_based",
            "--randseed=7",
            "--log_unix_epoch=1",
            "--iodepth=8",
        ])
        .args(kind)
        .arg(format!("--uri={}", self.gateway.uri()))
        .args([format!("--runtime={seconds}"), format!("--size={VOLUME_BYTES}")])
        .arg(format!("--write_lat_log={}", self.dev.path(name).display()));
        if let Some(iops) = load.iops {
            let (reads, writes) = ((iops * 0.7) as u64, (iops * 0.3) as u64);
            fio.args([format!("--rate_iops={reads},{writes}"), "--rate_process=poisson".into()]);
        }
        Daemon::spawn(&mut fio, &self.dev.path(&format!("{name}.out")))
    }

    /// When each operation of a load ended (Unix milliseconds), and its latency in microseconds; its log is then gone.
    fn operations(&self, name: &str) -> Vec<(u64, f64)> {
        let path = self.dev.path(&format!("{name}_lat.1.log"));
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("fio's log {}: {e}", path.display()));
        let operations = text.lines().filter_map(|line| {
            let mut fields = line.split(',').map(|f| f.trim().parse::<u64>().unwrap_or(0));
            Some((fields.next()?, fields.next()? as f64 / 1000.0))
        });
        let operations = operations.collect();
        for name in ["lat", "clat", "slat"].map(|kind| format!("{name}_{kind}.1.log")) {
            let _ = std::fs::remove_file(self.dev.path(&name));
        }
        operations
    }

    /// Latencies in microseconds by the second of the Unix clock (1,000 ms from `from_ms`).
    fn latencies(&self, name: &str, from_ms: u64) -> Vec<Vec<f64>> {
        let mut seconds: Vec<Vec<f64>> = Vec::new();
        for (at_ms, us) in self.operations(name) {
            let Some(second) = at_ms.checked_sub(from_ms).map(|ms| (ms / 1000) as usize) else { continue };
            if seconds.len() <= second {
                seconds.resize(second + 1, Vec::new());
            }
            seconds[second].push(us);
        }
        seconds
    }

    /// Bytes of copies that a node has written so far, as it says itself, and when it said so.
    fn copied_to(&self, node: &str) -> (u64, f64) {
        let asked_ms = unix_ms();
        let bytes = sum_of(&self.dev.cli(&["metrics", "--node", node]), "evenkeel_resync_bytes_total");
        (u64::midpoint(asked_ms, unix_ms()), bytes)
    }

    /// Brings the cluster to rest with the last node drained, or not.
    fn rest(&mut self, drained: bool) {
        self.dev.cli(&["resync", "set", "--cap", "none", "--profile", "balanced"]);
        wait_for("the cluster comes to rest", || self.is_clean().then_some(()));
        if self.drained != drained {
            self.turn();
            // The plan comes after its debounce.
            hold(2);
            wait_for("the cluster comes to rest", || self.is_clean().then_some(()));
        }
    }
}

#[derive(Clone, Copy)]
struct Load {
    /// `None`: as fast as it goes.
    iops: Option<f64>,
}

/// One second of a case.
#[derive(Clone, Copy, Default)]
struct Second {
    iops: f64,
    p99_us: f64,
    resync_mib: f64,
}

/// What a case showed.
struct Shown {
    quiet_iops: f64,
    quiet_p99_us: f64,
    iops: f64,
    p99_us: f64,
    worst_second_iops: f64,
    resync_mib_per_s: f64,
    took_s: f64,
    seconds: Vec<Second>,
}

fn percentile(values: &mut [f64], q: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(((values.len() as f64 * q) as usize).min(values.len().saturating_sub(1))).copied().unwrap_or(0.0)
}

/// Runs the load, then moves data beside it until the cluster is clean.
fn case(bed: &mut Bed, name: &str, load: Option<Load>) -> Shown {
    wait_for("the cluster comes to rest", || bed.is_clean().then_some(()));
    let begun_ms = unix_ms();
    let fio = load.map(|load| bed.fio(name, &load, 2 * CASE_MAX.as_secs()));
    hold(QUIET_SECONDS);
    let before = bed.bytes_done();
    bed.turn();
    wait_for("the first byte", || (bed.bytes_done() > before).then_some(()));
    let (started, started_ms, first) = (Instant::now(), unix_ms(), bed.bytes_done());
    let mut samples = vec![(started_ms, first)];
    let mut last_moved = started;
    loop {
        std::thread::sleep(SAMPLE_EVERY);
        let done = bed.bytes_done();
        if samples.last().is_some_and(|s| s.1 < done) {
            last_moved = Instant::now();
        }
        samples.push((unix_ms(), done));
        if bed.is_clean() || started.elapsed() > CASE_MAX {
            break;
        }
    }
    let took_s = last_moved.duration_since(started).as_secs_f64().max(0.25);
    let moved = samples.last().map_or(0.0, |s| s.1) - first;
    // It ends by the signal, and writes its log.
    drop(fio);
    let seconds_of = |ms: u64| ((ms - begun_ms) / 1000) as usize;
    let mut latencies = if load.is_some() { bed.latencies(name, begun_ms) } else { Vec::new() };
    let end = seconds_of(started_ms) + took_s as usize;
    latencies.resize((end + 1).max(latencies.len()), Vec::new());
    let mut seconds: Vec<Second> = latencies
        .iter()
        .map(|l| Second { iops: l.len() as f64, p99_us: percentile(&mut l.clone(), 0.99), resync_mib: 0.0 })
        .collect();
    for pair in samples.windows(2) {
        let at = seconds_of(pair[1].0).min(seconds.len() - 1);
        seconds[at].resync_mib += (pair[1].1 - pair[0].1) / MIB;
    }
    // fio's own start is no quiet second, nor are those at the edges of the move.
    let all = |from: usize, to: usize| -> Vec<f64> {
        latencies[from.min(to)..to.min(latencies.len())].iter().flatten().copied().collect()
    };
    let (from, to) = (seconds_of(started_ms) + 1, end.max(seconds_of(started_ms) + 2));
    let (mut quiet, mut beside) = (all(2, seconds_of(started_ms)), all(from, to));
    let per_second = |n: usize, s: usize| n as f64 / s.max(1) as f64;
    let worst = seconds[from.min(seconds.len() - 1)..to.min(seconds.len())].iter().map(|s| s.iops);
    Shown {
        quiet_iops: per_second(quiet.len(), seconds_of(started_ms).saturating_sub(2)),
        quiet_p99_us: percentile(&mut quiet, 0.99),
        iops: per_second(beside.len(), to - from),
        p99_us: percentile(&mut beside, 0.99),
        worst_second_iops: worst.fold(f64::INFINITY, f64::min),
        resync_mib_per_s: moved / MIB / took_s,
        took_s,
        seconds,
    }
}

/// A curve: name, colour, value.
type Row = (&'static str, &'static str, fn(&Second) -> f64);

/// IOPS, p99 and the rate of resync over the seconds, one below the other.
fn plot(path: &Path, title: &str, seconds: &[Second]) {
    let (width, height) = (900.0, 140.0);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/><text x=\"50\" y=\"16\">{title}</text>\n",
        width + 60.0,
        3.0 * (height + 30.0) + 30.0
    );
    let rows: [Row; 3] = [
        ("IOPS", "#1b6ca8", |s| s.iops),
        ("p99 ms", "#b3401f", |s| s.p99_us / 1000.0),
        ("resync MiB/s", "#2c7a3f", |s| s.resync_mib),
    ];
    for (row, (name, colour, value)) in rows.iter().enumerate() {
        let top = 30.0 + row as f64 * (height + 30.0);
        let most = seconds.iter().map(value).fold(1.0, f64::max);
        let _ = writeln!(svg, "<text x=\"50\" y=\"{}\">{name}, up to {most:.1}</text>", top + 12.0);
        let mut points = String::new();
        for (i, second) in seconds.iter().enumerate() {
            let x = 50.0 + i as f64 / seconds.len().max(2) as f64 * width;
            let _ = write!(points, "{x:.1},{:.1} ", top + height - value(second) / most * (height - 20.0));
        }
        let _ = writeln!(svg, "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"/>");
    }
    svg += "</svg>\n";
    std::fs::write(path, svg).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

fn median(mut values: Vec<f64>) -> f64 {
    percentile(&mut values, 0.5)
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let runs: usize = args.iter().find_map(|a| a.parse().ok()).unwrap_or(3);
    let only: Vec<&String> = args.iter().filter(|a| !a.starts_with('-') && a.parse::<usize>().is_err()).collect();
    let plots = PathBuf::from("target/throttle");
    std::fs::create_dir_all(&plots).expect("a folder for the plots");
    let mut dev = Dev::start_with(New { nodes: 4, disk_size: "16GiB", ..New::default() });
    dev.create_volume("bench", &VOLUME_BYTES.to_string());
    let gateway = dev.gateway("bench");
    let mut bed = Bed { dev, gateway, drained: false };
    run_ok(
        Command::new("fio")
            .args(["--name=fill", "--ioengine=nbd", "--rw=write", "--bs=1m", "--iodepth=4", "--end_fsync=1"])
            .args([format!("--uri={}", bed.gateway.uri()), format!("--size={VOLUME_BYTES}")]),
    );

    // What the guest can do alone, and resync alone.
    let from_ms = unix_ms();
    bed.fio("alone", &Load { iops: None }, 8).wait();
    let alone = bed.latencies("alone", from_ms);
    let full: f64 = median(alone.iter().skip(2).take(5).map(|s| s.len() as f64).collect());
    let share = Load { iops: Some(0.4 * full) };
    let whole = Load { iops: None };
    let idle: Vec<f64> = (0..runs).map(|i| case(&mut bed, &format!("idle-{i}"), None).resync_mib_per_s).collect();
    let idle = median(idle);
    println!("guest alone: {full:.0} IOPS (4 KiB, 70/30, QD8); resync alone: {idle:.0} MiB/s");
    let half = format!("{}MiB/s", (idle / 2.0).max(1.0) as u64);
    let mut cases: Vec<(&str, Load, Vec<&str>)> = vec![
        ("40 % load, balanced", share, vec![]),
        ("40 % load, foreground", share, vec!["--profile", "foreground"]),
        ("40 % load, recovery", share, vec!["--profile", "recovery"]),
        ("40 % load, static cap", share, vec!["--floor", &half, "--cap", &half]),
        ("40 % load, no throttle", share, vec!["--floor", "60GiB/s"]),
        ("full load, balanced", whole, vec![]),
        ("full load, foreground", whole, vec!["--profile", "foreground"]),
        ("full load, recovery", whole, vec!["--profile", "recovery"]),
        ("full load, no throttle", whole, vec!["--floor", "60GiB/s"]),
    ];
    if !only.is_empty() {
        // What a given rate costs takes minutes: for those who name it.
        cases.extend([
            ("40 % load, at 20 MiB/s a disk", share, vec!["--floor", "20MiB/s", "--cap", "20MiB/s"]),
            ("40 % load, at 60 MiB/s a disk", share, vec!["--floor", "60MiB/s", "--cap", "60MiB/s"]),
        ]);
    }
    println!();
    println!("| case | IOPS, of quiet | worst second | p99, × quiet | resync MiB/s, of idle | took | runs |");
    println!("|---|---|---|---|---|---|---|");
    for (name, load, set) in cases {
        if !only.is_empty() && !only.iter().any(|o| name.contains(o.as_str())) {
            continue;
        }
        let mut all = Vec::new();
        for run in 0..runs {
            bed.dev.cli(&["resync", "set", "--cap", "none", "--profile", "balanced"]);
            if !set.is_empty() {
                let args: Vec<&str> = ["resync", "set"].into_iter().chain(set.iter().copied()).collect();
                bed.dev.cli(&args);
            }
            let file = format!("{}-{run}", name.replace([' ', '%', ',', '/'], "-").replace("--", "-"));
            let shown = case(&mut bed, &file, Some(load));
            plot(&plots.join(format!("{file}.svg")), name, &shown.seconds);
            all.push(shown);
        }
        let of = |f: &dyn Fn(&Shown) -> f64| median(all.iter().map(f).collect());
        println!(
            "| {name} | {:.0}, {:.2} | {:.2} | {:.2} ms, {:.1} | {:.0}, {:.2} | {:.0} s | {runs} |",
            of(&|s| s.iops),
            of(&|s| s.iops / s.quiet_iops),
            of(&|s| s.worst_second_iops / s.quiet_iops),
            of(&|s| s.p99_us / 1000.0),
            of(&|s| s.p99_us / s.quiet_p99_us),
            of(&|s| s.resync_mib_per_s),
            of(&|s| s.resync_mib_per_s / idle),
            of(&|s| s.took_s),
        );
    }
    if only.is_empty() || only.iter().any(|o| "changes".contains(o.as_str())) {
        throttle_changes::run(&mut bed, runs, idle);
    }
    let Bed { dev, gateway, .. } = bed;
    drop(gateway);
    dev.finish();
}
