//! The table's rules, and what each daemon shows.

use super::*;
use crate::core::ids::DiskId;

#[test]
fn the_table_follows_its_own_rules() {
    let mut names: Vec<&str> = TABLE.iter().map(|r| r.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), TABLE.len(), "a name stands once");
    for row in TABLE {
        assert!(row.name.starts_with("evenkeel_") && row.help.ends_with('.'), "{}", row.name);
        assert_eq!(row.kind == Counter, row.name.ends_with("_total"), "{}", row.name);
        let unit = row.unit.replace(' ', "_");
        assert!(unit.is_empty() || row.name.contains(&unit), "{} names its unit", row.name);
    }
}

#[test]
fn every_daemon_shows_its_rows() {
    let (node, gateway, coordinator) = (Metrics::node(), Metrics::gateway("v"), Metrics::coordinator());
    node.foreground.done(Operation::Write, 4096, std::time::Duration::from_micros(80));
    node.space.set(DiskId(1), 1, 2);
    let mut controller = crate::core::throttle::Controller::new(Default::default());
    node.throttle.set(DiskId(1), 0, &controller.set_policy(Default::default()));
    node.daemon.set_certificates(1, 2);
    gateway.daemon.set_certificates(1, 2);
    coordinator.daemon.set_certificates(1, 2);
    coordinator.count_event("plan");
    coordinator.show_events(&["plan", "node-up"]);
    assert!(coordinator.text().contains("evenkeel_events_total{kind=\"node-up\"} 0"));
    assert!(coordinator.text().contains("evenkeel_events_total{kind=\"plan\"} 1"));
    for row in cluster::ROWS {
        coordinator.cluster.set(row, &vec!["x"; row.labels.len()], 1.5);
    }
    coordinator.set_pgs("clean", 3);
    coordinator.set_nodes(&[("up".to_owned(), 3)].into());
    coordinator.resync_bytes.raise_to(ResyncClass::Drain, 7);
    coordinator.resync_bytes.raise_to(ResyncClass::Drain, 5);
    assert_eq!(coordinator.resync_bytes.totals()[2], 7);
    for (daemon, text) in [(Node, node.text()), (Gateway, gateway.text()), (Coordinator, coordinator.text())] {
        for row in TABLE.iter().filter(|r| r.daemons.contains(&daemon)) {
            assert!(text.contains(&format!("# HELP {} ", row.name)), "{} of {daemon:?}", row.name);
        }
    }
    assert!(coordinator.text().contains("evenkeel_disk_primaries{disk=\"x\"} 1.5"));
    coordinator.cluster.begin();
    assert!(!coordinator.text().contains("evenkeel_disk_primaries{"), "what is gone is not shown");
    assert!(node.text().contains("evenkeel_foreground_operations_total{kind=\"write\"} 1"));
    assert!(node.text().contains("evenkeel_throttle_limited_by{disk=\"d1\",reason=\"nothing\"} 1"));
}
