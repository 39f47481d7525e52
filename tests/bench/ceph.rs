//! Ceph's placement on the same topologies, by its own tools (Debian's ceph-base and ceph-common): CRUSH with straw2 and the
//! upmap balancer at its sharpest, until it finds nothing more. Both then answer the same change from the same placement, Ceph's.
//! What Ceph moves is counted from before to what it is balanced to: less than it really moves, as its balancer comes after CRUSH.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use evenkeel::core::ids::{DiskId, NodeId, PgId, PoolId};
use evenkeel::core::placement::{DiskState, FailureDomain, Input, PgPlacement, check, lower_bound, plan};

use super::topologies::{hosts_of_ten, pool};

/// The balancer's changes in one run: more than any of these maps needs.
const CHANGES_MAX: &str = "1000000";
/// PGs for each disk, as a power of two: 96 replicas a disk and a few.
const PG_BITS: &str = "5";

/// A crush map of hosts of 10 disks and racks of 10 hosts; buckets keep their ids when hosts come. `gone`: a host without weight.
fn crush_text(disks: u32, mixed: bool, gone: Option<u32>) -> String {
    let mut text = String::from(
        "tunable choose_local_tries 0\ntunable choose_local_fallback_tries 0\ntunable choose_total_tries 50\n\
         tunable chooseleaf_descend_once 1\ntunable chooseleaf_vary_r 1\ntunable chooseleaf_stable 1\n\
         tunable straw_calc_version 1\ntunable allowed_bucket_algs 54\n",
    );
    for d in 0..disks {
        let _ = writeln!(text, "device {d} osd.{d}");
    }
    text += "type 0 osd\ntype 1 host\ntype 2 rack\ntype 3 root\n";
    let weight = |d: u32| if gone == Some(d / 10) { 0.0 } else { 4.0 * f64::from(1 + u32::from(mixed && d % 2 == 1)) };
    let hosts = disks.div_ceil(10);
    let of_host = |h: u32| h * 10..((h + 1) * 10).min(disks);
    let host_weight = |h: u32| of_host(h).map(weight).sum::<f64>();
    let mut bucket = |kind: &str, name: String, id: u32, items: Vec<(String, f64)>| {
        let _ = writeln!(text, "{kind} {name} {{\n\tid -{id}\n\talg straw2\n\thash 0");
        for (item, weight) in items {
            let _ = writeln!(text, "\titem {item} weight {weight:.3}");
        }
        text += "}\n";
    };
    for h in 0..hosts {
        bucket("host", format!("h{h}"), 10_000 + h, of_host(h).map(|d| (format!("osd.{d}"), weight(d))).collect());
    }
    let of_rack = |r: u32| r * 10..((r + 1) * 10).min(hosts);
    let racks = hosts.div_ceil(10);
    for r in 0..racks {
        bucket("rack", format!("r{r}"), 5_000 + r, of_rack(r).map(|h| (format!("h{h}"), host_weight(h))).collect());
    }
    let rack_weight = |r: u32| of_rack(r).map(host_weight).sum::<f64>();
    bucket("root", "default".into(), 1, (0..racks).map(|r| (format!("r{r}"), rack_weight(r))).collect());
    text += "rule replicated_rule {\n\tid 0\n\ttype replicated\n\tmin_size 1\n\tmax_size 10\n\tstep take default\n\tstep chooseleaf firstn 0 type host\n\tstep emit\n}\n";
    text
}

fn tool(command: &mut Command) -> String {
    let ended = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(ended.status.success(), "{command:?}: {}", String::from_utf8_lossy(&ended.stderr));
    String::from_utf8_lossy(&ended.stdout).into_owned()
}

/// An osdmap in a folder.
struct OsdMap<'a> {
    folder: &'a Path,
    pgs: u32,
}

impl OsdMap<'_> {
    /// Every disk, up and in, also those that no bucket has yet. osdmaptool keeps states only with a change by the balancer, and the
    /// option that sets them sets all weights to one: so the crush map has to be imported again.
    fn create(&self, disks: u32, crush: &str) {
        let mut command = Command::new("osdmaptool");
        command.current_dir(self.folder).args(["map", "--clobber", "--with-default-pool", "--pg-bits", PG_BITS]);
        tool(command.args(["--createsimple", &disks.to_string()]));
        self.import(crush);
        self.balanced(&["--mark-up-in", "--upmap-max", "1"]);
        self.import(crush);
    }

    fn import(&self, crush: &str) {
        std::fs::write(self.folder.join("crush.txt"), crush).expect("writes");
        tool(Command::new("crushtool").current_dir(self.folder).args(["-c", "crush.txt", "-o", "crush"]));
        tool(Command::new("osdmaptool").current_dir(self.folder).args(["map", "--import-crush", "crush"]));
    }

    fn balanced(&self, options: &[&str]) {
        let mut command = Command::new("osdmaptool");
        command.current_dir(self.folder).args(["map", "--upmap", "upmap", "--upmap-deviation", "1", "--save"]);
        tool(command.args(options));
    }

    /// Balances until nothing is left to do.
    fn balance(&self) {
        self.balanced(&["--upmap-max", CHANGES_MAX]);
    }

    /// The disks of each PG, its primary first.
    fn rows(&self) -> Vec<Vec<u32>> {
        let mut command = Command::new("osdmaptool");
        command.current_dir(self.folder).args(["map", "--test-map-pgs-dump", "--pool", "1"]);
        let text = tool(&mut command);
        let rows = text.lines().filter_map(|line| line.strip_prefix("1.")?.split_once('[')?.1.split_once(']'));
        let rows: Vec<Vec<u32>> =
            rows.map(|(ids, _)| ids.split(',').filter_map(|id| id.parse().ok()).collect()).collect();
        assert_eq!(rows.len(), self.pgs as usize, "every PG is in the dump");
        rows
    }
}

/// How far the fullest or emptiest disk is off its share, in PG replicas.
fn off_share(rows: &[Vec<u32>], disks: u32, weight: impl Fn(u32) -> f64) -> f64 {
    let mut counts = vec![0.0; disks as usize];
    rows.iter().flatten().for_each(|d| counts[*d as usize] += 1.0);
    let (all, weights): (f64, f64) = (counts.iter().sum(), (0..disks).map(&weight).sum());
    (0..disks).map(|d| (counts[d as usize] - all * weight(d) / weights).abs()).fold(0.0, f64::max)
}

fn moved(before: &[Vec<u32>], after: &[Vec<u32>]) -> usize {
    let more = |(b, a): (&Vec<u32>, &Vec<u32>)| {
        let had: BTreeSet<u32> = b.iter().copied().collect();
        a.iter().filter(|d| !had.contains(d)).count()
    };
    before.iter().zip(after).map(more).sum()
}

/// One topology: first placement, a host that joins, a host that is lost.
pub fn compare(disks: u32, mixed: bool) {
    let folder = tempfile::tempdir().expect("a folder");
    // osdmaptool makes them for the disks that may come, too.
    let pgs = (disks + 10) << PG_BITS.parse::<u32>().expect("a number");
    let weight = |gone: Option<u32>| {
        move |d: u32| if gone == Some(d / 10) { 0.0 } else { f64::from(1 + u32::from(mixed && d % 2 == 1)) }
    };
    let map = OsdMap { folder: folder.path(), pgs };
    map.create(disks + 10, &crush_text(disks, mixed, None));
    let begun = Instant::now();
    map.balance();
    let before = map.rows();
    let says = |what: &str, ceph: (f64, usize, f64), ours: Option<(f64, usize, f64, u64)>| {
        let sizes = if mixed { "1:2" } else { "equal" };
        let (off, moves, seconds) = ceph;
        let ours = ours.map_or_else(String::new, |(off, moves, seconds, least)| {
            format!("  {moves:>7}  {off:>5.2}  {seconds:>7.2}  {least:>7}")
        });
        println!("{disks:>6}  {sizes:<5}  {what:<10}  {moves:>7}  {off:>5.2}  {seconds:>7.2}{ours}");
    };
    says("first", (off_share(&before, disks, weight(None)), 0, begun.elapsed().as_secs_f64()), None);
    let saved = std::fs::read(folder.path().join("map")).expect("reads");
    for (what, after_disks, gone) in [("host joins", disks + 10, None), ("host lost", disks, Some(2))] {
        std::fs::write(folder.path().join("map"), &saved).expect("writes");
        let begun = Instant::now();
        map.import(&crush_text(after_disks, mixed, gone));
        map.balance();
        let after = map.rows();
        let ceph =
            (off_share(&after, after_disks, weight(gone)), moved(&before, &after), begun.elapsed().as_secs_f64());
        let mut topology = hosts_of_ten(after_disks, mixed);
        for disk in topology.disks.iter_mut().filter(|d| gone.is_some_and(|host| d.node == NodeId(host + 1))) {
            disk.state = DiskState::Lost;
        }
        let rows = before.iter().enumerate().map(|(index, disks)| PgPlacement {
            pg: PgId { pool: PoolId(1), index: index as u32 },
            bytes: 8 << 30,
            disks: disks.iter().map(|d| DiskId(d + 1)).collect(),
        });
        let input = Input {
            topology,
            pools: vec![pool(FailureDomain::Node, pgs)],
            current: rows.collect(),
            ..Input::default()
        };
        let begun = Instant::now();
        let p = plan(&input);
        let seconds = begun.elapsed().as_secs_f64();
        check(&input, &p).expect("a sound plan");
        let least = lower_bound(&input).iter().map(|b| b.least_moves).sum::<u64>();
        says(what, ceph, Some((p.balance.after.max_deviation_pgs, p.totals.moves as usize, seconds, least)));
    }
}

/// What Ceph's tools make of the same, if they are there. The balancer takes minutes for 1,000 disks.
pub fn run(sizes: &[u32]) {
    let there = |name: &str| Command::new(name).arg("--help").output().is_ok();
    if !there("crushtool") || !there("osdmaptool") {
        println!("no comparison with Ceph: crushtool and osdmaptool aren't installed (Debian's ceph-base)");
        return;
    }
    println!("from Ceph's balanced placement: CRUSH and upmap (deviation 1), then Evenkeel's plan for the same change");
    println!(" disks  sizes  change        Ceph's    off  seconds     ours    off  seconds        L");
    for disks in sizes {
        [false, true].into_iter().for_each(|mixed| compare(*disks, mixed));
    }
}
