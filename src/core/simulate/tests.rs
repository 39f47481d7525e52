//! Small clusters with known answers.

use super::*;
use crate::core::placement::{ClusterMap, NodeSpec, Span, read_map};
use crate::core::units::parse_bytes;

const GIB: u64 = 1 << 30;

/// `nodes` nodes of `disks` disks of 1 TiB; `pgs` PGs of `gib` GiB and three copies.
fn cluster(nodes: u32, disks: u32, pgs: usize, gib: u64) -> ClusterMap {
    let disk =
        |n: u32, d: u32| format!(r#"{{"id":"d{}","class":"ssd","capacity_bytes":{}}}"#, n * disks + d + 1, 1u64 << 40);
    let node = |n: u32| {
        let list: Vec<String> = (0..disks).map(|d| disk(n, d)).collect();
        format!(r#"{{"name":"n{}","zone":"z","rack":"r{n}","disks":[{}]}}"#, n + 1, list.join(","))
    };
    let list: Vec<String> = (0..nodes).map(node).collect();
    let sizes = vec![(gib * GIB).to_string(); pgs];
    let text = format!(
        r#"{{"pools":[{{"name":"vms","replicas":3,"min_replicas":2,"failure_domain":"node","pg_count":{pgs}}}],"nodes":[{}],"pg_bytes":{{"vms":[{}]}}}}"#,
        list.join(","),
        sizes.join(",")
    );
    read_map(&text).unwrap()
}

fn at(seconds: f64, text: &str) -> Event {
    Event::new(seconds, text).unwrap()
}

/// 100 MiB/s, no foreground.
fn quick() -> Options {
    let rates = Rates { disk_bytes_per_sec: 100 << 20, foreground_share: 0.0, ..Rates::default() };
    Options { rates, debounce_seconds: 0.0, ..Options::default() }
}

#[test]
fn a_balanced_map_stays_as_it_is() {
    let (report, _) = run(cluster(4, 1, 32, 1), &[], quick()).unwrap();
    assert_eq!((report.ended, report.bytes_copied, report.jobs.len()), (Ended::Balanced, 0, 0));
    assert_eq!((report.redundant_at_seconds, report.balanced_at_seconds), (Some(0.0), Some(0.0)));
}

#[test]
fn a_lost_node_is_repaired_at_the_rate_of_the_disks() {
    let (report, map) = run(cluster(5, 2, 100, 1), &[at(60.0, "lose-node:n3")], quick()).unwrap();
    assert_eq!(report.ended, Ended::Balanced);
    assert_eq!(report.bytes_copied, 60 * GIB, "a fifth of 300 replicas");
    let after = report.redundant_at_seconds.unwrap() - 60.0;
    // 60 GiB onto eight disks at 100 MiB/s each.
    let ideal = 60.0 * 1024.0 / 100.0 / 8.0;
    assert!(after >= ideal && after < 1.4 * ideal, "{after} s, {ideal} at best");
    assert!(map.input.current.iter().all(|r| r.disks.len() == 3 && r.disks.iter().all(|d| !(5..=6).contains(&d.0))));
    let worst = report.timeline.iter().map(|r| r.pgs.degraded).max();
    assert_eq!(worst, Some(60));
    let sums = |r: &Row| r.pgs.clean + r.pgs.degraded + r.pgs.unavailable == 100 && r.pgs.misplaced <= r.pgs.clean;
    assert!(report.timeline.iter().all(sums));
    assert!(report.timeline.is_sorted_by_key(|r| (r.at_seconds, r.bytes.done)));
}

#[test]
fn half_of_the_rate_takes_twice_as_long_and_nothing_of_it_for_ever() {
    let events = [at(0.0, "drain-node:n1")];
    let took = |foreground_share: f64| {
        let mut options = quick();
        options.rates.foreground_share = foreground_share;
        run(cluster(5, 2, 100, 1), &events, options).unwrap().0
    };
    let (full, half, none) = (took(0.0), took(0.5), took(1.0));
    let ratio = half.balanced_at_seconds.unwrap() / full.balanced_at_seconds.unwrap();
    assert!((1.9..2.1).contains(&ratio), "{ratio}");
    assert_eq!((none.ended, none.balanced_at_seconds), (Ended::NoRate, None));
    assert_eq!(full.timeline.iter().map(|r| r.pgs.degraded).max(), Some(0), "make before break");
}

#[test]
fn an_added_node_takes_part_and_what_runs_is_kept() {
    // Four nodes of 2 TiB hold 4.8 TiB: three have no room for all of it.
    let loss = at(0.0, "lose-node:n2");
    let join = at(1000.0, "add-node:name=n9,zone=z,rack=r9,disks=2x1TiB:ssd");
    let (alone, map) = run(cluster(4, 2, 100, 19), std::slice::from_ref(&loss), quick()).unwrap();
    assert_eq!((alone.ended, alone.redundant_at_seconds), (Ended::Stuck, None));
    assert!(alone.missing_capacity_bytes > 0);
    assert!(map.input.current.iter().all(|r| r.disks.len() >= 2), "two copies of everything");
    let (helped, map) = run(cluster(4, 2, 100, 19), &[loss, join], quick()).unwrap();
    assert_eq!((helped.ended, helped.missing_capacity_bytes), (Ended::Balanced, 0));
    assert!(helped.redundant_at_seconds.is_some() && helped.bytes_wasted == 0, "{}", helped.bytes_wasted);
    assert_eq!(helped.jobs[0].done_at_seconds, None);
    assert!(map.input.current.iter().any(|r| r.disks.iter().any(|d| map.disk_name(*d) == "n9/1")));
}

#[test]
fn grace_and_debounce_delay_the_plan() {
    let options = Options { grace_seconds: 600.0, debounce_seconds: 10.0, ..quick() };
    let (report, _) = run(cluster(4, 1, 32, 1), &[at(5.0, "lose-node:n1")], options).unwrap();
    assert_eq!(report.jobs[0].at_seconds, 615.0);
    // Ten nodes that join one after the other make one plan.
    let join = |n: u32| at(f64::from(n), &format!("add-node:name=m{n},rack=m{n},disks=1x1TiB:ssd"));
    let options = Options { debounce_seconds: 10.0, ..quick() };
    let (report, _) = run(cluster(4, 1, 32, 1), &(0..10).map(join).collect::<Vec<_>>(), options).unwrap();
    assert_eq!(report.jobs.len(), 1);
}

#[test]
fn what_has_no_room_is_told() {
    // Three nodes of 1 TiB, 0.9 of which may be filled; three copies of 500 GiB.
    let (report, _) = run(cluster(4, 1, 50, 15), &[at(0.0, "lose-node:n1")], quick()).unwrap();
    assert_eq!(report.ended, Ended::Balanced);
    let (report, _) = run(cluster(3, 1, 50, 15), &[at(0.0, "lose-node:n1")], quick()).unwrap();
    assert_eq!((report.ended, report.redundant_at_seconds), (Ended::Stuck, None));
    assert!(!report.rejected.is_empty());
    let lost = [at(0.0, "lose-node:n1"), at(0.0, "lose-node:n2"), at(0.0, "lose-node:n3")];
    assert_eq!(run(cluster(3, 1, 50, 15), &lost, quick()).unwrap().0.pgs_lost, 50);
}

#[test]
fn a_run_ends_when_asked() {
    let until = |until| run(cluster(4, 2, 100, 2), &[at(0.0, "lose-node:n2")], Options { until, ..quick() }).unwrap().0;
    assert_eq!(until(Until::Time(30.0)).ended_at_seconds, 30.0);
    let redundant = until(Until::Redundant);
    assert_eq!((redundant.ended, redundant.redundant_at_seconds), (Ended::Redundant, Some(redundant.ended_at_seconds)));
}

#[test]
fn a_slow_disk_holds_up_its_own_copies_alone() {
    let events = [at(0.0, "slow-disk:d3=5MiB/s"), at(0.0, "drain-node:n5")];
    let (slow, _) = run(cluster(8, 2, 400, 1), &events, quick()).unwrap();
    let (even, _) = run(cluster(8, 2, 400, 1), &events[1..], quick()).unwrap();
    // All but what the slow disk takes part in is there about as soon as without it.
    let most = |r: &Report| r.timeline.iter().find(|row| row.bytes.left * 5 <= r.bytes_copied * 2).unwrap().at_seconds;
    assert!(most(&slow) < 1.3 * most(&even), "{} s, {} s", most(&slow), most(&even));
}

#[test]
fn what_an_event_names_must_be_there() {
    let told = |text: &str| run(cluster(3, 1, 8, 1), &[at(0.0, text)], quick()).unwrap_err().to_string();
    assert!(told("lose-node:n7").contains("lose-node:n7: there is no node n7; there are: n1, n2, n3"));
    assert!(told("slow-disk:d9=1MiB/s").contains("there is no disk d9"));
    assert!(told("replicas:vms=99").contains("between 1 and 16"));
}

#[test]
fn specs_are_those_of_the_planner() {
    let spec: NodeSpec = "name=n9,disks=1x1TiB".parse().unwrap();
    assert_eq!(spec.disks[0].0, parse_bytes("1TiB").unwrap());
    assert!(!Span::default().is_diverging());
}
