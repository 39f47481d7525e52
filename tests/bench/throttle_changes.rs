//! What follows a change of the load, of a cap, of how many copies are left: how soon, and how far off. Curves are sampled; what is
//! printed are times and ratios of one run.

use std::time::{Duration, Instant};

use super::dev::sum_of;
use super::tools::{hold, wait_for};
use super::{Bed, CASE_MAX, Load, MIB, SAMPLE_EVERY, case, median, percentile, unix_ms};

/// Curve of what a node has had copied to it: a sample about each 50 ms.
type Copied = Vec<(u64, f64)>;

/// Samples for so long.
fn sample(bed: &Bed, node: &str, seconds: u64, into: &mut Copied) {
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        into.push(bed.copied_to(node));
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// MiB/s over the `window_ms` from each sample in a span of time: (when, rate).
fn rates(copied: &Copied, from_ms: u64, to_ms: u64, window_ms: u64) -> Vec<(u64, f64)> {
    let starts = copied.iter().filter(|(at, _)| (from_ms..to_ms).contains(at));
    let rate = |(at, bytes): &(u64, f64)| {
        let (end, more) = copied.iter().find(|(then, _)| *then >= at + window_ms && *then <= to_ms)?;
        Some((*at, (more - bytes) / MIB / ((end - at) as f64 / 1000.0)))
    };
    starts.filter_map(rate).collect()
}

/// What follows a change, and how soon.
pub fn run(bed: &mut Bed, runs: usize, idle: f64) {
    println!();
    println!("| what follows | figure | shown (median of {runs}) |");
    println!("|---|---|---|");
    let times = |bed: &mut Bed, f: &dyn Fn(&mut Bed) -> [f64; 3]| -> [f64; 3] {
        let all: Vec<[f64; 3]> = (0..runs).map(|_| f(bed)).collect();
        [0, 1, 2].map(|i| median(all.iter().map(|shown| shown[i]).collect()))
    };
    // In turns, lest one has the warmer cache.
    let [part, bound, free] = times(bed, &|bed| {
        let [bound, free] = ["8MiB/s", "60GiB/s"].map(|floor| {
            bed.rest(false);
            bed.dev.cli(&["resync", "set", "--floor", floor]);
            case(bed, "free", None).resync_mib_per_s
        });
        [bound / free, bound, free]
    });
    println!("| no foreground: resync, of unthrottled | 0.90 | {part:.2} ({bound:.0} of {free:.0} MiB/s) |");
    let [stop_s, start_s, quiet_us] = times(bed, &|bed| load_stops_and_starts(bed, idle));
    println!("| load stops: 0.8 of the idle rate after | 2 s | {stop_s:.1} s |");
    println!(
        "| load starts: p99 back under twice quiet ({:.1} ms) after | 1 s | {start_s:.1} s |",
        quiet_us * 2.0 / 1000.0
    );
    let [off, up_s, down_s] = times(bed, &|bed| cap_changes(bed));
    println!("| cap 20, 60, 20 MiB/s: furthest off over any 5 s | 5 % | {:.1} % |", off * 100.0);
    println!("| the same: acts after | 1 s | {up_s:.1} s up, {down_s:.1} s down |");
    let [took_s, guest, copies] = times(bed, &|bed| outpaced(bed));
    println!(
        "| a guest writes faster than the copy: done after | it ends | {took_s:.0} s (guest {guest:.0} MiB/s, copies {copies:.0} MiB/s) |"
    );
    let floor = 4.0 * 8.0;
    let [least, mean, iops] = times(bed, &|bed| one_copy_left(bed));
    println!(
        "| one copy left, full load: least rate over 2 s | {floor:.0} MiB/s | {least:.0} MiB/s (mean {mean:.0}; guest {iops:.0} IOPS) |"
    );
}

/// Seconds until resync is fast after a load's end, until guests are quick after its start; the quiet p99 (µs).
fn load_stops_and_starts(bed: &mut Bed, idle: f64) -> [f64; 3] {
    bed.rest(true);
    let whole = Load { iops: None };
    bed.fio("quiet", &whole, 7).wait();
    let quiet = bed.operations("quiet");
    let begun_ms = quiet.first().map_or(0, |o| o.0);
    let mut quiet: Vec<f64> = quiet.iter().filter(|o| o.0 >= begun_ms + 2000).map(|o| o.1).collect();
    let quiet_us = percentile(&mut quiet, 0.99);
    let load = bed.fio("before", &whole, 60);
    hold(3);
    let before = bed.bytes_done();
    bed.turn();
    wait_for("the first byte", || (bed.bytes_done() > before).then_some(()));
    hold(1);
    drop(load);
    let mut copied = Copied::new();
    // Short: what is left to copy has to last beside the next load.
    sample(bed, "n4", 1, &mut copied);
    let stopped_ms = bed.operations("before").last().map_or(0, |o| o.0);
    let to_ms = copied.last().map_or(0, |c| c.0);
    let fast = rates(&copied, stopped_ms, to_ms, 400).into_iter().find(|r| r.1 >= 0.8 * idle);
    let stop_s = fast.map_or(f64::INFINITY, |r| (r.0 - stopped_ms) as f64 / 1000.0);
    bed.fio("after", &whole, 6).wait();
    let still_moves = !bed.is_clean();
    let after = bed.operations("after");
    let started_ms = after.first().map_or(0, |o| o.0);
    let target_us = 2.0 * quiet_us;
    let back = (0..50u64).map(|step| started_ms + step * 100).find(|from| {
        let second = after.iter().filter(|o| (*from..from + 1000).contains(&o.0)).map(|o| o.1);
        percentile(&mut second.collect::<Vec<f64>>(), 0.99) <= target_us
    });
    let start_s = back.map_or(f64::INFINITY, |at| (at - started_ms) as f64 / 1000.0);
    // Without a copy that runs, quick guests prove nothing.
    [stop_s, if still_moves { start_s } else { f64::NAN }, quiet_us]
}

/// How far off a cap over 5 s at worst (a part of it), and seconds until a higher and a lower one act.
fn cap_changes(bed: &mut Bed) -> [f64; 3] {
    bed.rest(true);
    let before = bed.bytes_done();
    bed.dev.cli(&["resync", "set", "--cap", "20MiB/s"]);
    bed.turn();
    wait_for("the first byte", || (bed.bytes_done() > before).then_some(()));
    hold(2);
    let (mut copied, mut set_ms) = (Copied::new(), vec![unix_ms()]);
    for next in [Some("60MiB/s"), Some("20MiB/s"), None] {
        sample(bed, "n4", 8, &mut copied);
        set_ms.push(unix_ms());
        next.iter().for_each(|cap| drop(bed.dev.cli(&["resync", "set", "--cap", cap])));
    }
    let off = [20.0, 60.0, 20.0].iter().enumerate().map(|(i, cap)| {
        // A change has a second to act.
        let from_ms = set_ms[i] + if i > 0 { 1000 } else { 0 };
        let windows = rates(&copied, from_ms, set_ms[i + 1], 5000);
        windows.iter().map(|r| (r.1 / cap - 1.0).abs()).fold(if windows.is_empty() { f64::NAN } else { 0.0 }, f64::max)
    });
    let off = off.fold(0.0, f64::max);
    let acts = |set: u64, to: u64, is_new: &dyn Fn(f64) -> bool| {
        let first = rates(&copied, set, to, 300).into_iter().find(|r| is_new(r.1));
        first.map_or(f64::INFINITY, |r| (r.0 - set) as f64 / 1000.0)
    };
    let up_s = acts(set_ms[1], set_ms[2], &|rate| rate >= 50.0);
    let down_s = acts(set_ms[2], set_ms[3], &|rate| rate <= 25.0);
    [off, up_s, down_s]
}

/// Seconds that a drain took whose floor is far below what the guest writes, the guest's rate and the copies' (MiB/s).
fn outpaced(bed: &mut Bed) -> [f64; 3] {
    bed.rest(false);
    bed.dev.cli(&["resync", "set", "--profile", "foreground"]);
    let whole = Load { iops: None };
    let load = bed.fio_as("writes", &whole, 2 * CASE_MAX.as_secs(), &["--rw=randwrite", "--bs=64k"]);
    hold(2);
    let (started, from_ms, before) = (Instant::now(), unix_ms(), bed.bytes_done());
    bed.turn();
    hold(2);
    while !bed.is_clean() && started.elapsed() < CASE_MAX {
        std::thread::sleep(SAMPLE_EVERY);
    }
    let took_s = if bed.is_clean() { started.elapsed().as_secs_f64() } else { f64::INFINITY };
    let seconds = started.elapsed().as_secs_f64();
    let copies = (bed.bytes_done() - before) / MIB / seconds;
    drop(load);
    let written = bed.operations("writes").iter().filter(|o| o.0 >= from_ms).count();
    [took_s, written as f64 * 65_536.0 / MIB / seconds, copies]
}

/// Two of four nodes die under full load: the least and the mean rate of both disks (MiB/s) while PGs have one copy left, and the
/// guest's IOPS meanwhile.
fn one_copy_left(bed: &mut Bed) -> [f64; 3] {
    bed.rest(false);
    bed.dev.cli(&["pool", "set", "default", "--min-replicas", "1"]);
    let load = bed.fio("exposed", &Load { iops: None }, 2 * CASE_MAX.as_secs());
    hold(3);
    bed.dev.kill_node("n3");
    bed.dev.kill_node("n4");
    let targets = ["n1", "n2"];
    let start: Vec<f64> = targets.iter().map(|n| bed.copied_to(n).1).collect();
    wait_for("the repair begins", || (0..2).all(|i| bed.copied_to(targets[i]).1 > start[i] + 8.0 * MIB).then_some(()));
    let from_ms = unix_ms();
    // Of both together: one may be done while the other isn't.
    let mut copied = Copied::new();
    let at_risk = |bed: &Bed| sum_of(&bed.dev.cli(&["metrics", "--coordinator"]), "evenkeel_pgs_at_risk");
    while at_risk(bed) > 8.0 && unix_ms() < from_ms + CASE_MAX.as_millis() as u64 {
        let [one, other] = targets.map(|node| bed.copied_to(node));
        copied.push((u64::midpoint(one.0, other.0), one.1 + other.1));
    }
    let to_ms = unix_ms();
    drop(load);
    let exposed = bed.operations("exposed");
    let iops =
        exposed.iter().filter(|o| (from_ms..to_ms).contains(&o.0)).count() as f64 * 1000.0 / (to_ms - from_ms) as f64;
    let all: Vec<f64> = rates(&copied, from_ms, to_ms, 2000).into_iter().map(|r| r.1).collect();
    let least = all.iter().copied().fold(f64::INFINITY, f64::min);
    let mean = all.iter().sum::<f64>() / all.len().max(1) as f64;
    for node in ["n3", "n4"] {
        bed.dev.start_node(node);
    }
    bed.rest(false);
    bed.dev.cli(&["pool", "set", "default", "--min-replicas", "2"]);
    [least, mean, iops]
}
