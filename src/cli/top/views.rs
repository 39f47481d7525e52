//! Rows of each view, from what the coordinator said.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use super::data::Seen;
use crate::api::types::{DiskInfo, NodeInfo, SessionInfo, VolumeInfo};
use crate::cli::args::TopView;
use crate::cli::out::{self, human_us};
use crate::core::units::HumanBytes;

/// A column: its title, its width in characters, and whether it holds a number. The last one of a view takes what is left.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// In capitals.
    pub title: &'static str,
    /// On a terminal of 80 columns.
    pub width: u16,
    /// Stands right, and is first sorted downwards: who looks for a number looks for the largest.
    pub number: bool,
}

const fn text(title: &'static str, width: u16) -> Column {
    Column { title, width, number: false }
}

const fn number(title: &'static str, width: u16) -> Column {
    Column { title, width, number: true }
}

const NODES: &[Column] = &[
    text("NODE", 12),
    text("STATE", 11),
    number("READ/S", 7),
    number("WRITE/S", 7),
    number("P50", 8),
    number("P99", 8),
    number("DISKS", 5),
    number("USED", 9),
    number("FULL", 5),
];
const DISKS: &[Column] = &[
    text("DISK", 6),
    text("NODE", 10),
    text("STATE", 9),
    text("CLASS", 6),
    number("USED", 9),
    number("FULL", 5),
    number("P99", 8),
    number("TARGET", 8),
    number("COPIES MAY", 11),
];
const MOVES: &[Column] = &[
    text("PG", 8),
    text("CLASS", 15),
    text("FROM", 5),
    text("TO", 5),
    number("DONE", 5),
    number("LEFT", 9),
    number("RATE", 10),
    text("LIMITED BY", 14),
];
const VOLUMES: &[Column] = &[
    text("VOLUME", 14),
    text("STATE", 11),
    number("SIZE", 9),
    number("READ/S", 7),
    number("WRITE/S", 7),
    number("RATE", 10),
    number("P99", 8),
    text("GATEWAY", 7),
];

/// The columns of a view.
pub fn columns(view: TopView) -> &'static [Column] {
    match view {
        TopView::Nodes => NODES,
        TopView::Disks => DISKS,
        TopView::Moves => MOVES,
        TopView::Volumes => VOLUMES,
    }
}

/// What a cell is sorted by.
#[derive(Clone, Debug, PartialEq)]
pub enum Key {
    /// Digits count as numbers: d2 comes before d10.
    Text(String),
    /// Unknown values stand below all others.
    Number(Option<f64>),
}

impl Key {
    /// A total order.
    pub fn compare(&self, other: &Key) -> Ordering {
        match (self, other) {
            (Key::Text(a), Key::Text(b)) => natural(a, b),
            (Key::Number(a), Key::Number(b)) => {
                a.unwrap_or(f64::NEG_INFINITY).total_cmp(&b.unwrap_or(f64::NEG_INFINITY))
            }
            (Key::Text(_), Key::Number(_)) => Ordering::Less,
            (Key::Number(_), Key::Text(_)) => Ordering::Greater,
        }
    }
}

/// By characters, runs of digits by their value.
fn natural(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a, b);
    loop {
        let run = |s: &str| s.find(|c: char| !c.is_ascii_digit()).unwrap_or(s.len());
        let (m, n) = (run(a), run(b));
        let order = if m > 0 && n > 0 {
            // Leading zeros don't count; of what is left a longer run is the larger number.
            let value = |s: &str, n: usize| s[..n].trim_start_matches('0').to_owned();
            let (x, y) = (value(a, m), value(b, n));
            let order = x.len().cmp(&y.len()).then(x.cmp(&y));
            (a, b) = (&a[m..], &b[n..]);
            order
        } else {
            let (mut x, mut y) = (a.chars(), b.chars());
            match (x.next(), y.next()) {
                (None, None) => return Ordering::Equal,
                (c, d) => {
                    (a, b) = (x.as_str(), y.as_str());
                    c.cmp(&d)
                }
            }
        };
        if order.is_ne() {
            return order;
        }
    }
}

/// What stands in a row's column.
#[derive(Clone, Debug)]
pub struct Cell {
    /// For people.
    pub text: String,
    /// For sorting.
    pub key: Key,
}

fn word(text: impl Into<String>) -> Cell {
    let text = text.into();
    Cell { key: Key::Text(text.clone()), text }
}

fn figure(value: f64, text: String) -> Cell {
    Cell { text, key: Key::Number(Some(value)) }
}

fn count(n: u64) -> Cell {
    figure(n as f64, out::thousands(n))
}

fn bytes(n: u64) -> Cell {
    figure(n as f64, HumanBytes(n).to_string())
}

fn rate(n: Option<u64>) -> Cell {
    n.map_or_else(unknown, |n| figure(n as f64, format!("{}/s", HumanBytes(n))))
}

/// Nothing was measured when it is 0.
fn latency(us: u64) -> Cell {
    if us == 0 { unknown() } else { figure(us as f64, human_us(us)) }
}

fn full(used: u64, capacity: u64) -> Cell {
    let part = if capacity == 0 { 0.0 } else { used as f64 / capacity as f64 };
    figure(part, out::percent(used, capacity))
}

fn unknown() -> Cell {
    Cell { text: "-".to_owned(), key: Key::Number(None) }
}

/// A row: a cell for each column of its view.
pub type Row = Vec<Cell>;

/// The rows of a view, in the order in which the coordinator lists them.
pub fn rows(view: TopView, seen: &Seen, rates: &Rates) -> Vec<Row> {
    match view {
        TopView::Nodes => seen.nodes.iter().map(node).collect(),
        TopView::Disks => seen.nodes.iter().flat_map(|n| &n.disks).map(disk).collect(),
        TopView::Moves => seen.resync.sessions.iter().map(|s| session(s, rates)).collect(),
        TopView::Volumes => seen.volumes.iter().flatten().map(volume).collect(),
    }
}

fn node(n: &NodeInfo) -> Row {
    let (used, capacity) = n.disks.iter().fold((0, 0), |(u, c), d| (u + d.used_bytes, c + d.capacity_bytes));
    vec![
        word(&n.name),
        word(&n.state),
        count(n.foreground.read_iops),
        count(n.foreground.write_iops),
        latency(n.foreground.p50_us),
        latency(n.foreground.p99_us),
        count(n.disks.len() as u64),
        bytes(used),
        full(used, capacity),
    ]
}

fn disk(d: &DiskInfo) -> Row {
    vec![
        word(d.id.to_string()),
        word(&d.node),
        word(&d.state),
        word(if d.class.is_empty() { "-" } else { &d.class }),
        bytes(d.used_bytes),
        full(d.used_bytes, d.capacity_bytes),
        latency(d.foreground_p99_us.unwrap_or(0)),
        latency(d.target_p99_us.unwrap_or(0)),
        rate(d.resync_limit_bytes_per_sec),
    ]
}

fn session(s: &SessionInfo, rates: &Rates) -> Row {
    let limited_by = if s.stalled.is_some() { "no progress" } else { &s.limited_by };
    vec![
        word(&s.pg),
        word(s.class.name()),
        word(s.from.to_string()),
        word(s.to.to_string()),
        full(s.bytes_done, s.bytes_total),
        bytes(s.bytes_total.saturating_sub(s.bytes_done)),
        rate(rates.of(s)),
        word(limited_by),
    ]
}

fn volume(v: &VolumeInfo) -> Row {
    let guest = v.guest.as_ref();
    let rate_of = guest.map(|g| g.read_bytes_per_sec.saturating_add(g.write_bytes_per_sec));
    vec![
        word(&v.name),
        word(&v.state),
        bytes(v.size_bytes),
        guest.map_or_else(unknown, |g| count(g.read_iops)),
        guest.map_or_else(unknown, |g| count(g.write_iops)),
        rate(rate_of),
        latency(guest.map_or(0, |g| g.p99_us)),
        word(v.attached_to.as_deref().unwrap_or("-")),
    ]
}

/// Each copy's rate, from what it had done at two looks.
#[derive(Debug, Default)]
pub struct Rates {
    before: BTreeMap<(String, u32), u64>,
    per_sec: BTreeMap<(String, u32), u64>,
}

impl Rates {
    /// A look, `seconds` after the one before.
    pub fn look(&mut self, sessions: &[SessionInfo], seconds: f64) {
        let key = |s: &SessionInfo| (s.pg.clone(), s.to.0);
        let now: BTreeMap<_, u64> = sessions.iter().map(|s| (key(s), s.bytes_done)).collect();
        let rose = |(key, done): (&(String, u32), &u64)| {
            let rose = done.saturating_sub(*self.before.get(key)?);
            Some((key.clone(), (rose as f64 / seconds) as u64))
        };
        self.per_sec = if seconds > 0.0 { now.iter().filter_map(rose).collect() } else { BTreeMap::new() };
        self.before = now;
    }

    fn of(&self, s: &SessionInfo) -> Option<u64> {
        self.per_sec.get(&(s.pg.clone(), s.to.0)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::cluster::ResyncClass;
    use crate::core::ids::DiskId;

    #[test]
    fn every_view_fits_eighty_columns() {
        for view in [TopView::Nodes, TopView::Disks, TopView::Moves, TopView::Volumes] {
            let columns = columns(view);
            let gaps = columns.len() as u16 - 1;
            let width: u16 = columns.iter().map(|c| c.width).sum::<u16>() + gaps;
            assert!(width <= 80, "{view:?} takes {width}");
            for column in columns {
                assert!(column.title.len() <= usize::from(column.width), "{view:?}: {}", column.title);
            }
        }
    }

    #[test]
    fn numbers_in_names_count_as_numbers() {
        let mut names = ["d10", "d9", "d1", "n2-d3", "d", "1.17", "1.2", "d09"];
        names.sort_by(|a, b| natural(a, b));
        assert_eq!(names, ["1.2", "1.17", "d", "d1", "d9", "d09", "d10", "n2-d3"]);
        assert_eq!(natural("d9", "d09"), Ordering::Equal);
    }

    #[test]
    fn unknown_values_stand_below_all_others() {
        assert_eq!(unknown().key.compare(&count(0).key), Ordering::Less);
        assert_eq!(count(10).key.compare(&count(9).key), Ordering::Greater);
    }

    #[test]
    fn a_copys_rate_is_that_between_two_looks() {
        let at = |done| SessionInfo {
            pg: "1.3".into(),
            from: DiskId(1),
            to: DiskId(4),
            class: ResyncClass::Repair,
            bytes_total: 100 << 20,
            bytes_done: done,
            bytes_sent: done,
            limited_by: "cap".into(),
            stalled: None,
        };
        let mut rates = Rates::default();
        rates.look(&[at(10 << 20)], 0.0);
        assert_eq!(rates.of(&at(0)), None, "one look says nothing of a rate");
        rates.look(&[at(30 << 20)], 2.0);
        assert_eq!(rates.of(&at(0)), Some(10 << 20));
        let row = session(&at(30 << 20), &rates);
        assert_eq!(row.iter().map(|c| c.text.as_str()).collect::<Vec<_>>()[4..], ["30 %", "70 MiB", "10 MiB/s", "cap"]);
        rates.look(&[], 1.0);
        assert_eq!(rates.of(&at(0)), None);
    }
}
