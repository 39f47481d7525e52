use ratatui::Terminal;
use ratatui::backend::TestBackend;

use super::*;
use crate::api::types::{DiskInfo, ForegroundStatus, GuestStatus, NodeInfo, PgCounts, Status, VolumeInfo};
use crate::core::ids::DiskId;

fn args(view: TopView, sort: Option<&str>) -> TopArgs {
    TopArgs { view, sort: sort.map(str::to_owned), interval: 1.0 }
}

fn node(n: u32, writes: u64) -> NodeInfo {
    let disk = DiskInfo {
        id: DiskId(n),
        node: format!("n{n}"),
        capacity_bytes: 4 << 40,
        used_bytes: u64::from(n) << 30,
        ..DiskInfo::default()
    };
    NodeInfo {
        name: format!("n{n}"),
        state: if n == 2 { "down" } else { "up" }.into(),
        foreground: ForegroundStatus { read_iops: 10, write_iops: writes, p50_us: 300, p99_us: 1200 },
        disks: vec![disk],
        ..NodeInfo::default()
    }
}

fn seen(nodes: u32) -> Seen {
    let status = Status {
        cluster: "0123456789abcdef".into(),
        health: "warn".into(),
        health_reasons: vec!["Node n2 does not answer.".into(), "More.".into()],
        pgs: PgCounts { total: 128, clean: 100, degraded: 28, ..PgCounts::default() },
        resync: ResyncStatus {
            active_moves: 12,
            pending_moves: 40,
            bytes_total: 4 << 30,
            bytes_left: 1 << 30,
            rate_bytes_per_sec: 120 << 20,
            eta_seconds: Some(10.0),
            limited_by: "cap".into(),
            ..ResyncStatus::default()
        },
        capacity_bytes: 12 << 40,
        used_bytes: 3 << 40,
        ..Status::default()
    };
    Seen { status, nodes: (1..=nodes).map(|n| node(n, u64::from(n % 7))).collect(), ..Seen::default() }
}

fn screen(view: TopView, sort: Option<&str>, seen: Seen) -> Screen {
    let mut screen = Screen::new(&args(view, sort), false).unwrap();
    screen.take(News { at: Instant::now(), outcome: Ok(seen) });
    screen
}

fn press(screen: &mut Screen, code: KeyCode) -> Then {
    screen.key(KeyEvent::new(code, KeyModifiers::NONE))
}

/// The picture on 80 columns and 24 lines, as text.
fn picture(screen: &mut Screen) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
    terminal.draw(|frame| screen.draw(frame)).unwrap();
    let buffer = terminal.backend().buffer();
    (0..24).map(|y| (0..80).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned()).collect()
}

fn names(picture: &[String]) -> Vec<String> {
    let title = picture.iter().position(|l| l.starts_with("NODE")).unwrap();
    let rows = picture[title + 1..picture.len() - 1].iter();
    rows.filter_map(|l| l.split_whitespace().next()).map(str::to_owned).collect()
}

#[test]
fn one_screen_says_how_it_stands() {
    let lines = picture(&mut screen(TopView::Nodes, None, seen(3)));
    let text = lines.join("\n");
    for part in [
        "cluster 01234567: warn",
        "PGs      100 of 128 clean, 28 degraded   used 25 % of 12 TiB",
        "copies   12 of 40 moves, 1 GiB left, 120 MiB/s, 10 s to go",
        "75 % of 4 GiB, limited by cap",
        "Node n2 does not answer. (and 1 more: evenkeel health)",
        "1 nodes 3",
        "2 disks 3",
        "n1           up               10       1   300 µs   1.2 ms     1     1 GiB   0 %",
    ] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    assert_eq!(names(&lines), ["n1", "n2", "n3"]);
}

#[test]
fn any_column_sorts_either_way() {
    let mut screen = screen(TopView::Nodes, Some("write/s"), seen(6));
    assert_eq!(names(&picture(&mut screen)), ["n6", "n5", "n4", "n3", "n2", "n1"]);
    press(&mut screen, KeyCode::Char('r'));
    assert_eq!(names(&picture(&mut screen)), ["n1", "n2", "n3", "n4", "n5", "n6"]);
    press(&mut screen, KeyCode::Left);
    press(&mut screen, KeyCode::Left);
    // By state: down before up; equal ones by name.
    assert_eq!(names(&picture(&mut screen))[..2], ["n2".to_owned(), "n1".to_owned()]);
    assert!(Screen::new(&args(TopView::Disks, Some("write/s")), false).is_err_and(|e| e.to_string().contains("p99")));
}

#[test]
fn a_thousand_nodes_scroll_and_filter() {
    let mut screen = screen(TopView::Nodes, None, seen(1000));
    let first = names(&picture(&mut screen));
    assert_eq!((first[0].as_str(), first.len()), ("n1", 15));
    press(&mut screen, KeyCode::PageDown);
    assert_eq!(names(&picture(&mut screen))[0], "n16");
    press(&mut screen, KeyCode::End);
    assert_eq!(names(&picture(&mut screen))[14], "n1000");
    press(&mut screen, KeyCode::Char('/'));
    for c in "n99".chars() {
        press(&mut screen, KeyCode::Char(c));
    }
    press(&mut screen, KeyCode::Enter);
    assert_eq!(
        names(&picture(&mut screen)),
        ["n99", "n990", "n991", "n992", "n993", "n994", "n995", "n996", "n997", "n998", "n999"]
    );
    assert_eq!(press(&mut screen, KeyCode::Esc), Then::GoOn, "it drops the filter first");
    assert_eq!(names(&picture(&mut screen))[0], "n1");
    assert_eq!(press(&mut screen, KeyCode::Esc), Then::End);
}

#[test]
fn a_silent_coordinator_is_told_and_the_last_picture_stays() {
    use crate::cli::client::RequestApi;
    let mut screen = screen(TopView::Nodes, None, seen(3));
    let error = RequestApi::Unreachable { url: "http://127.0.0.1:1".into(), problem: "connection refused".into() };
    screen.take(News { at: Instant::now(), outcome: Err(error) });
    let lines = picture(&mut screen);
    assert!(lines.iter().any(|l| l.contains("the coordinator at http://127.0.0.1:1 does not answer")), "{lines:?}");
    assert_eq!(names(&lines), ["n1", "n2", "n3"]);
}

#[test]
fn a_held_picture_stays_and_keys_still_work() {
    let mut screen = screen(TopView::Nodes, None, seen(3));
    press(&mut screen, KeyCode::Char(' '));
    screen.take(News { at: Instant::now(), outcome: Ok(seen(5)) });
    let lines = picture(&mut screen);
    assert!(lines[0].ends_with("held, 0 s old"), "{}", lines[0]);
    assert_eq!(names(&lines).len(), 3);
    press(&mut screen, KeyCode::Char(' '));
    screen.take(News { at: Instant::now(), outcome: Ok(seen(5)) });
    assert_eq!(names(&picture(&mut screen)).len(), 5);
    assert_eq!(screen.key(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)), Then::End);
}

#[test]
fn volumes_show_what_their_guests_do() {
    let mut all = seen(1);
    let guest = GuestStatus {
        read_iops: 1500,
        write_iops: 20,
        read_bytes_per_sec: 6 << 20,
        write_bytes_per_sec: 2 << 20,
        p50_us: 400,
        p99_us: 2500,
    };
    all.volumes = Some(vec![VolumeInfo {
        name: "vm1".into(),
        size_bytes: 10 << 30,
        attached_to: Some("gw-7".into()),
        state: "ok".into(),
        guest: Some(guest),
        ..VolumeInfo::default()
    }]);
    let mut screen = screen(TopView::Volumes, None, all);
    let text = picture(&mut screen).join("\n");
    assert!(text.contains("vm1            ok             10 GiB   1,500      20    8 MiB/s   2.5 ms gw-7"), "{text}");
    // Other views don't ask for them; what was known stays.
    press(&mut screen, KeyCode::Tab);
    screen.take(News { at: Instant::now(), outcome: Ok(seen(1)) });
    assert!(picture(&mut screen).join("\n").contains("4 volumes 1"));
    press(&mut screen, KeyCode::Char('?'));
    assert!(picture(&mut screen).join("\n").contains("hold the picture"));
}

#[test]
fn the_picture_bears_any_terminal() {
    let mut screen = screen(TopView::Disks, None, seen(40));
    for (width, height) in [(1, 1), (20, 5), (40, 10), (300, 100)] {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| screen.draw(frame)).unwrap();
    }
}
