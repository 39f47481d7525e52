use super::facts::*;
use super::hub::whole;
use super::*;
use crate::api::types::*;
use crate::core::cluster::{JobState, ResyncClass};
use crate::core::ids::{DiskId, NodeId};
use crate::core::placement::Span;

const PAGE_BYTES_MAX: usize = 200 << 10;

fn node(n: u32, disks: u32) -> NodeInfo {
    let disk = |i: u32| DiskInfo {
        id: DiskId(n * 10 + i),
        node: format!("n{n}"),
        state: if n.is_multiple_of(7) { "down" } else { "up" }.into(),
        class: "ssd".into(),
        path: format!("/srv/evenkeel/disk{i}"),
        capacity_bytes: 4 << 40,
        used_bytes: u64::from(n) << 30,
        pg_replicas: 100,
        primaries: 33,
        foreground_p99_us: Some(900),
        target_p99_us: Some(2000),
        resync_limit_bytes_per_sec: None,
    };
    NodeInfo {
        id: NodeId(n),
        name: format!("n{n}"),
        state: if n.is_multiple_of(7) { "down" } else { "up" }.into(),
        addr: format!("10.0.{}.{}:7401", n / 256, n % 256),
        admin_url: format!("https://10.0.{}.{}:7410", n / 256, n % 256),
        pid: n,
        zone: format!("z{}", n % 200),
        rack: format!("r{n}"),
        release: "1.0".into(),
        foreground: ForegroundStatus::default(),
        disks: (0..disks).map(disk).collect(),
    }
}

fn cluster(nodes: u32, disks: u32) -> ClusterFacts {
    let nodes: Vec<NodeInfo> = (1..=nodes).map(|n| node(n, disks)).collect();
    let mut f = ClusterFacts { unix_ms: 1_800_000_000_000, nodes, ..ClusterFacts::default() };
    f.status.health = "ok".into();
    f.status.nodes =
        f.nodes.iter().map(|n| NodeStatus { id: n.id, name: n.name.clone(), state: n.state.clone() }).collect();
    f.status.pgs = PgCounts { total: 128, clean: 128, ..PgCounts::default() };
    f
}

fn text(page: &Page, id: &str) -> String {
    page.sections.iter().find(|s| s.id == id).unwrap_or_else(|| panic!("no section {id}")).html.clone()
}

#[test]
fn the_first_sentence_says_how_it_stands() {
    let mut f = cluster(3, 1);
    assert!(
        text(&render_cluster(&f), "health").contains("All is well: 3 nodes are up and all data has all its copies.")
    );
    f.status.resync.pending_moves = 5;
    f.resync.status = ResyncStatus {
        pending_moves: 5,
        eta_seconds: Some(11.2),
        eta_range_seconds: Some(Span { low: 9.0, likely: 11.2, high: 20.0 }),
        ..ResyncStatus::default()
    };
    let said = text(&render_cluster(&f), "health");
    assert!(said.contains("5 copies move to other disks, done in about 11 s (9.0 s to 20 s)."), "{said}");
    f.status.health = "error".into();
    f.status.health_reasons = vec!["2 placement groups are not served.".into(), "Run `evenkeel pg list`.".into()];
    let page = render_cluster(&f);
    let said = text(&page, "health");
    assert!(said.contains("class=\"error\"") && said.contains("2 placement groups are not served."), "{said}");
    assert!(said.contains("<li>Run <code>evenkeel pg list</code>.</li>"), "{said}");
    assert_eq!(page.title, "Error · Evenkeel");
    assert!(text(&render_cluster(&ClusterFacts::default()), "health").contains("No node has joined yet"));
}

#[test]
fn a_job_shows_how_far_it_is_and_a_diverging_one_says_so() {
    let mut f = cluster(3, 1);
    f.jobs = vec![JobInfo {
        id: 7,
        state: JobState::Running,
        reason: "node n4 joined".into(),
        actor: "n4".into(),
        started_unix_ms: f.unix_ms,
        ended_unix_ms: None,
        moves_total: 97,
        moves_done: 25,
        moves_failed: 0,
        moves_cancelled: 0,
        moves_active: 2,
        bytes_total: 1000,
        bytes_done: 333,
        holds_back: false,
    }];
    f.resync.status = ResyncStatus {
        active_moves: 2,
        pending_moves: 72,
        eta_seconds: Some(-5.0),
        limited_by: "foreground latency".into(),
        ..ResyncStatus::default()
    };
    let shown = text(&render_cluster(&f), "resync");
    assert!(shown.contains("<progress max=\"100\" value=\"33\""), "{shown}");
    assert!(
        shown.contains("25 of 97 moves") && shown.contains("diverging") && shown.contains("foreground latency"),
        "{shown}"
    );
}

#[test]
fn what_others_named_is_text() {
    let evil = "<img src=x onerror=alert(1)>\"'&";
    let mut f = cluster(2, 1);
    (f.nodes[0].name, f.nodes[0].zone, f.nodes[0].disks[0].path) = (evil.into(), evil.into(), evil.into());
    // Neither a script nor a way out of the attribute becomes a link.
    f.nodes[0].admin_url = "javascript:alert(1)".into();
    f.nodes[1].admin_url = "http://x\" onclick=\"alert(1)".into();
    f.status.health_reasons = vec![format!("`{evil}` {evil}")];
    let line = VolumeLine {
        name: evil.into(),
        pool: evil.into(),
        attached_to: evil.into(),
        state: "ok",
        ..VolumeLine::default()
    };
    f.volumes = Volumes { total: 1, unwell: 0, shown: vec![line] };
    f.events = vec![Event { id: 1, unix_ms: 1, kind: evil.into(), actor: evil.into(), text: evil.into() }];
    let peers =
        vec![NodeLink { name: evil.into(), url: "javascript:alert(1)".into(), place: evil.into(), reached: None }];
    let node = NodeFacts { name: evil.into(), zone: evil.into(), peers, ..NodeFacts::default() };
    for page in [whole(&render_cluster(&f), true), whole(&render_node(&node), false)] {
        assert!(!page.contains("<img") && !page.contains("javascript:") && !page.contains("onclick"), "{page}");
        assert!(page.contains("&lt;img src=x"), "it is shown as it is");
    }
}

#[test]
fn a_thousand_nodes_fit_the_page() {
    let mut f = cluster(1000, 10);
    let long = "x".repeat(120);
    f.status.health_reasons = vec![format!("Node {long} does not answer."); 200];
    f.resync.sessions = (0..5000)
        .map(|n| SessionInfo {
            pg: format!("1.{n}"),
            from: DiskId(10),
            to: DiskId(20),
            class: ResyncClass::Rebalance,
            bytes_total: 1 << 30,
            bytes_done: n,
            bytes_sent: n,
            limited_by: "cap".into(),
            stalled: None,
        })
        .collect();
    let line = VolumeLine {
        name: long.clone(),
        pool: long.clone(),
        attached_to: long.clone(),
        state: "ok",
        ..VolumeLine::default()
    };
    f.volumes = Volumes { total: 9000, unwell: 0, shown: vec![line; 50] };
    f.events = vec![Event { id: 1, unix_ms: 1, kind: "plan".into(), actor: long.clone(), text: long.repeat(2) }; 40];
    f.history = vec![
        Sample {
            read_iops: 1_000_000,
            write_iops: 999_999,
            p50_us: 123,
            p99_us: 4567,
            resync_bytes_per_sec: 1 << 30
        };
        150
    ];
    let page = whole(&render_cluster(&f), true);
    let all = page.len() + hub::ASSETS_BYTES;
    assert!(all <= PAGE_BYTES_MAX, "{all} bytes");
    assert!(
        page.contains("Nodes that need a look: 142") && page.contains("and 102 more") && page.contains("Zones"),
        "it says what it leaves out"
    );
    assert!(page.contains("and 4,992 more"), "copies are cut");
}

#[test]
fn what_happens_to_many_groups_at_once_is_one_line() {
    let mut f = cluster(3, 1);
    let event = |id: u64, kind: &str| Event {
        id,
        unix_ms: f.unix_ms - 1000 + id,
        kind: kind.into(),
        actor: "n3".into(),
        text: format!("Text {id}."),
    };
    f.events = (0..500).rev().map(|id| event(id, ["pg-changed", "pg-promoted"][(id % 2) as usize])).collect();
    f.events.push(event(0, "node-down"));
    f.events.push(Event { unix_ms: 1, ..event(0, "pg-changed") });
    let shown = text(&render_cluster(&f), "events");
    assert_eq!(shown.matches("<li>").count(), 4, "{shown}");
    assert_eq!(shown.matches("and 249 more like it").count(), 2, "{shown}");
    assert!(shown.contains("node-down"), "{shown}");
}

#[test]
fn a_node_alone_says_so() {
    let mut f = NodeFacts { unix_ms: 1_000_000, name: "n1".into(), ..NodeFacts::default() };
    assert!(text(&render_node(&f), "health").contains("No coordinator has answered since this node started"));
    f.coordinator_heard_unix_ms = 1_000_000 - 12_000;
    assert!(text(&render_node(&f), "health").contains("The coordinator has not answered for 12 s: IO goes on"));
    f.coordinator_heard_unix_ms = 999_900;
    f.disks = vec![NodeDisk { state: "up", primaries: 3, secondaries: 5, ..NodeDisk::default() }];
    let said = text(&render_node(&f), "health");
    assert!(said.contains("Node n1 serves: it leads 3 placement groups and holds 5 copies of others"), "{said}");
    f.disks[0].state = "failed";
    assert!(text(&render_node(&f), "health").contains("class=\"error\""));
}

#[test]
fn shares_and_links_are_exact() {
    use super::parts::*;
    assert_eq!(percent(999, 1000), 99);
    assert_eq!(percent(u64::MAX, u64::MAX), 100);
    assert_eq!(link_to("https://[::1]:7400/").as_deref(), Some("https://[::1]:7400/"));
    assert_eq!(link_to("http://10.0.0.1:1/x"), None);
}

#[tokio::test]
async fn viewers_share_a_rendering_and_hear_what_changed() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    let made = Arc::new(AtomicUsize::new(0));
    let source = {
        let made = made.clone();
        move || {
            let n = made.fetch_add(1, Ordering::Relaxed);
            let page = Page {
                title: "t".into(),
                sections: vec![
                    Section { id: "health", html: "<p>\"same\"</p>".into() },
                    Section { id: "resync", html: format!("<p>{n}</p>") },
                ],
            };
            Box::pin(async move { Some(page) }) as std::pin::Pin<Box<dyn Future<Output = _> + Send>>
        }
    };
    let hub = Hub::new(Arc::new(source), false);
    let first = hub.frame().await.unwrap();
    assert!(Arc::ptr_eq(&first, &hub.frame().await.unwrap()), "a second viewer gets the same");
    assert_eq!(made.load(Ordering::Relaxed), 1);
    let all: serde_json::Value = serde_json::from_str(&hub::news(&first, None)).unwrap();
    assert_eq!(all, serde_json::json!({ "health": "<p>\"same\"</p>", "resync": "<p>0</p>" }));
    hub.forget().await;
    let next = hub.frame().await.unwrap();
    let changed: serde_json::Value = serde_json::from_str(&hub::news(&next, Some(&first))).unwrap();
    assert_eq!(changed, serde_json::json!({ "resync": "<p>1</p>" }));
}

#[test]
fn windows_a_deadline_and_what_guests_do_are_shown() {
    let mut f = cluster(3, 1);
    f.resync.time_zone = "Europe/Berlin".into();
    f.resync.windows = [("Mon-Fri 02:00-06:00 recovery", true), ("Sat 00:00-24:00 recovery", false)]
        .map(|(window, holds)| WindowInfo { window: window.into(), holds })
        .into();
    f.resync.deadline = Some(DeadlineInfo {
        at: "2027-01-31 18:00".into(),
        holds: false,
        verdict: "can't hold: the cap is too low".into(),
        ..DeadlineInfo::default()
    });
    let guest = GuestStatus { read_iops: 1200, write_iops: 34, p99_us: 2500, ..GuestStatus::default() };
    let line = VolumeLine { name: "vm1".into(), state: "ok", guest: Some(guest), ..VolumeLine::default() };
    f.volumes = Volumes { total: 1, unwell: 0, shown: vec![line] };
    let resync = text(&render_cluster(&f), "resync");
    for part in
        ["<dt>window</dt><dd>Mon-Fri 02:00-06:00 recovery</dd>", "Europe/Berlin", "2027-01-31 18:00", "can't hold"]
    {
        assert!(resync.contains(part), "{part}: {resync}");
    }
    assert_eq!(resync.matches("holds now").count(), 1, "{resync}");
    let volumes = text(&render_cluster(&f), "volumes");
    assert!(volumes.contains("1,234/s") && volumes.contains("p99 2.5 ms"), "{volumes}");
}
