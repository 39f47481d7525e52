//! The simulator over random clusters and events: what it must never do, and the ETA that it tells.

use std::collections::{BTreeMap, BTreeSet};

use evenkeel::core::ids::{DiskId, NodeId, PoolId};
use evenkeel::core::placement::{
    ClusterMap, DiskInfo, FailureDomain, Input, PoolSpec, Rates, Topology, plan, read_map,
};
use evenkeel::core::simulate::{Ended, Event, Options, Report, run};
use proptest::prelude::*;

const GIB: u64 = 1 << 30;

#[derive(Clone, Debug)]
struct Case {
    nodes: Vec<(u8, u8)>,
    replicas: u8,
    pgs_per_disk: u16,
    uneven: bool,
    events: Vec<(u16, u8, u8)>,
    rate_mib: u16,
    foreground: u8,
}

fn case() -> impl Strategy<Value = Case> {
    let events = prop::collection::vec((0..2000u16, any::<u8>(), any::<u8>()), 1..4);
    let nodes = prop::collection::vec((1..5u8, 0..2u8), 5..12);
    (nodes, 2..4u8, 20..60u16, any::<bool>(), events, 20..400u16, 0..8u8).prop_map(
        |(nodes, replicas, pgs_per_disk, uneven, events, rate_mib, foreground)| Case {
            nodes,
            replicas,
            pgs_per_disk,
            uneven,
            events,
            rate_mib,
            foreground,
        },
    )
}

fn start(c: &Case) -> ClusterMap {
    let mut topology = Topology::default();
    for (n, (disks, size)) in c.nodes.iter().enumerate() {
        for _ in 0..*disks {
            topology.disks.push(DiskInfo {
                id: DiskId(topology.disks.len() as u32 + 1),
                node: NodeId(n as u32 + 1),
                capacity_bytes: (8 << 40) << size,
                ..DiskInfo::default()
            });
        }
    }
    let pg_count = topology.disks.len() as u32 * u32::from(c.pgs_per_disk) / u32::from(c.replicas);
    let pool = PoolSpec {
        id: PoolId(1),
        name: "vms".to_owned(),
        replicas: u32::from(c.replicas),
        min_replicas: 1,
        failure_domain: FailureDomain::Node,
        class: None,
        pg_count,
    };
    let mut input = Input { topology, pools: vec![pool], ..Input::default() };
    input.current = plan(&input).target;
    for r in &mut input.current {
        r.bytes = if c.uneven { GIB * (1 + u64::from(r.pg.index) * 7919 % 16) } else { 8 * GIB };
    }
    let names: BTreeMap<NodeId, String> = (1..=c.nodes.len() as u32).map(|n| (NodeId(n), format!("n{n}"))).collect();
    ClusterMap::new(input, names, BTreeSet::new())
}

/// At most one node is lost, so that something is left to copy from.
fn events(c: &Case, first_only: bool) -> Vec<Event> {
    let mut out = Vec::new();
    let mut lost = false;
    for (i, (at, kind, which)) in c.events.iter().enumerate() {
        let n = usize::from(*which) % c.nodes.len() + 1;
        let text = match kind % 3 {
            0 if !lost => format!("lose-node:n{n}"),
            1 if i == 0 => format!("drain-node:n{n}"),
            _ => format!("add-node:name=m{i},rack=m{i},disks={}x8TiB", which % 4 + 1),
        };
        lost |= text.starts_with("lose");
        out.push(Event::new(f64::from(*at), &text).expect("it is an event"));
        if first_only {
            break;
        }
    }
    out
}

fn simulate(c: &Case, first_only: bool) -> (Report, ClusterMap) {
    let rates = Rates {
        disk_bytes_per_sec: u64::from(c.rate_mib) << 20,
        foreground_share: f64::from(c.foreground) / 10.0,
        ..Rates::default()
    };
    let options = Options { rates, ..Options::default() };
    run(start(c), &events(c, first_only), options).expect("the run has a result")
}

/// What the README says of the outage.
#[test]
fn the_incident_of_2019_ends_as_the_readme_says() {
    let map = || read_map(include_str!("../../deploy/examples/incident-2019.json")).expect("the example is a map");
    let rates = Rates { disk_bytes_per_sec: 35 << 20, ..Rates::default() };
    let run = |events: &[(f64, &str)]| {
        let events: Vec<Event> = events.iter().map(|(at, text)| Event::new(*at, text).expect("an event")).collect();
        run(map(), &events, Options { rates: rates.clone(), ..Options::default() }).expect("a result").0
    };
    let lost = [(0.0, "lose-node:n5"), (0.0, "lose-node:n6")];
    let alone = run(&lost);
    let degraded = alone.timeline[0].bytes.degraded;
    assert!((11_500_000_000_000..12_500_000_000_000).contains(&degraded), "{degraded} bytes are degraded");
    assert_eq!((alone.ended, alone.redundant_at_seconds, alone.pgs_lost), (Ended::Stuck, None, 0));
    assert!(alone.missing_capacity_bytes > 1_500_000_000_000);
    assert!(alone.timeline.last().is_some_and(|r| r.pgs.at_risk == 0), "two copies before three");
    let helped = run(&[lost[0], lost[1], (1800.0, "add-node:name=n7,zone=dc1,rack=r2,disks=4x1.5TB:hdd")]);
    assert_eq!((helped.ended, helped.missing_capacity_bytes), (Ended::Balanced, 0));
    let hours = helped.redundant_at_seconds.map(|s| s / 3600.0);
    assert!(hours.is_some_and(|h| (18.0..22.0).contains(&h)), "redundant after {hours:?} h");
}

proptest! {
    #![proptest_config(crate::config(200))]

    #[test]
    fn a_run_ends_whole_and_at_rest(c in case()) {
        let (report, map) = simulate(&c, false);
        prop_assert_eq!(report.ended, Ended::Balanced, "{:?}", report.rejected);
        prop_assert_eq!(report.pgs_lost, 0);
        prop_assert!(report.redundant_at_seconds.is_some());
        prop_assert!(map.input.current.iter().all(|r| r.disks.len() == usize::from(c.replicas)));
        prop_assert!(plan(&map.input).moves.is_empty(), "it is at rest");
        for row in &report.timeline {
            prop_assert!(row.pgs.at_risk <= row.pgs.degraded + row.pgs.unavailable);
            prop_assert!(row.pgs.misplaced <= row.pgs.clean);
        }
        let times: Vec<f64> = report.timeline.iter().map(|r| r.at_seconds).collect();
        prop_assert!(times.is_sorted());
    }

    #[test]
    fn the_eta_told_at_ten_percent_is_right(c in case()) {
        let (report, _) = simulate(&c, true);
        for job in &report.jobs {
            for (what, told) in [("redundant", job.told_redundant), ("balanced", job.told_balanced)] {
                let Some((likely, actual)) = told.and_then(|t| Some((t.likely, t.actual?))) else { continue };
                prop_assert!((likely - actual).abs() <= 0.25 * actual, "{what}: told {likely} s, was {actual} s; {job:?}");
            }
            let tail = job.last_2_percent_seconds.zip(job.done_at_seconds).map(|(last, done)| last / (done - job.at_seconds));
            prop_assert!(tail.is_none_or(|part| part < 0.5), "the last 2 % took {tail:?} of the time");
        }
    }
}
