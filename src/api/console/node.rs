//! A node's page: what it knows by itself, also while no coordinator answers.

use maud::{Markup, html};

use super::chart::{Line, chart};
use super::cluster::{guest_charts, health_block};
use super::facts::{NodeDisk, NodeFacts};
use super::parts::*;
use super::{Page, Section};

/// Silence of the coordinator that is worth a word: several times what a link takes to be made anew.
const SILENCE_MS: u64 = 3000;
const COPIES_SHOWN: usize = 12;
const PEERS_SHOWN: usize = 60;
const DISKS_SHOWN: usize = 60;

/// The page of a node.
pub fn render(f: &NodeFacts) -> Page {
    let (level, mut reasons) = health(f);
    let sentence = reasons.remove(0);
    let section = |id, html: Markup| Section { id, html: html.into_string() };
    Page {
        title: format!("{} · {}", f.name, super::cluster::word_of(level)),
        sections: vec![
            section("who", who(f)),
            section("health", health_block(level, &sentence, &reasons)),
            section("node", this_node(f)),
            section("foreground", foreground(f)),
            section("copies", copies(f)),
            section("disks", disks(f)),
            section("throttle", throttle(f)),
            section("peers", peers(f)),
        ],
    }
}

/// At least one sentence, worst first.
fn health(f: &NodeFacts) -> (&'static str, Vec<String>) {
    let (mut errors, mut warnings) = (Vec::new(), Vec::new());
    for d in &f.disks {
        match d.state {
            "failed" => errors.push(format!("Disk {} has failed and is out: replace it.", d.id)),
            "hung" => errors.push(format!("Disk {} hangs: look at it and at this host's log.", d.id)),
            "full" => errors.push(format!("Disk {} is full: delete data or add a node.", d.id)),
            _ => {}
        }
    }
    let silent_ms = f.unix_ms.saturating_sub(f.coordinator_heard_unix_ms);
    if f.coordinator_heard_unix_ms == 0 {
        warnings.push(
            "No coordinator has answered since this node started: it serves what it knows as soon as one does."
                .to_owned(),
        );
    } else if silent_ms > SILENCE_MS {
        warnings.push(format!(
            "The coordinator has not answered for {}: IO goes on, nothing is planned or promoted meanwhile.",
            seconds(silent_ms as f64 / 1000.0)
        ));
    }
    let level = match (errors.is_empty(), warnings.is_empty()) {
        (false, _) => "error",
        (_, false) => "warn",
        _ => "ok",
    };
    errors.extend(warnings);
    if errors.is_empty() {
        let (led, held) = totals(&f.disks);
        errors.push(format!(
            "Node {} serves: it leads {} and holds {} of others; the coordinator answers.",
            f.name,
            plural(led, "placement group", "placement groups"),
            plural(held, "copy", "copies")
        ));
    }
    (level, errors)
}

fn totals(disks: &[NodeDisk]) -> (u64, u64) {
    (disks.iter().map(|d| d.primaries).sum(), disks.iter().map(|d| d.secondaries).sum())
}

fn who(f: &NodeFacts) -> Markup {
    html! {
        p { "node " strong { (f.name) } }
        p { "cluster " code { (f.cluster.chars().take(8).collect::<String>()) } }
        p.clock { (time(f.unix_ms, f.unix_ms)) " UTC" }
    }
}

fn this_node(f: &NodeFacts) -> Markup {
    let place =
        [f.zone.as_str(), f.rack.as_str()].into_iter().filter(|s| !s.is_empty()).collect::<Vec<_>>().join(" / ");
    html! {
        (title("node", "This node", html! { (f.id) }))
        dl.facts {
            div { dt { "release" } dd { (f.release) } }
            div { dt { "zone / rack" } dd { @if place.is_empty() { "—" } @else { (place) } } }
            div { dt { "address" } dd { (f.addr) } }
            div { dt { "up for" } dd { (seconds(f.unix_ms.saturating_sub(f.started_unix_ms) as f64 / 1000.0)) } }
            div { dt { "map" } dd { @if f.map_version == 0 { "none yet" } @else { (count(f.map_version)) " " span.sub { "epoch " (f.map_epoch) } } } }
            div { dt { "hash mismatches" } dd { (count(f.hash_mismatches)) } }
            div { dt { "coordinator" } dd {
                (state(if f.coordinator_connected { "up" } else { "down" }))
                " " span.sub { @if f.coordinator_heard_unix_ms == 0 { "not heard yet" } @else { "last heard " (time(f.coordinator_heard_unix_ms, f.unix_ms)) } }
            } }
            @if let Some(url) = link_to(&f.coordinator_url) {
                div { dt { "cluster's console" } dd { a href=(url) rel="noreferrer" { (url.split_once("//").map_or("", |(_, at)| at.trim_end_matches('/'))) } } }
            }
        }
    }
}

fn foreground(f: &NodeFacts) -> Markup {
    let now = f.history.last().copied().unwrap_or_default();
    html! {
        (title("foreground", "Foreground", html! { (count(now.read_iops + now.write_iops)) " operations/s" }))
        (guest_charts(&f.history))
        (chart("Resync", &[Line { name: "written here", class: "a", values: f.history.iter().map(|s| s.resync_bytes_per_sec).collect() }], (1024, 1 << 20), rate))
    }
}

fn disks(f: &NodeFacts) -> Markup {
    html! {
        (title("disks", "Disks", html! { (plural(f.disks.len() as u64, "disk", "disks")) }))
        div.scroll tabindex="0" role="region" aria-label="Disks" {
            table {
                caption.hidden { "Disks" }
                thead { tr {
                    th scope="col" { "Disk" } th scope="col" { "State" } th scope="col" { "Class" } th scope="col" { "Fill" } th.num scope="col" { "Used" } th.num scope="col" { "Capacity" }
                    th.num scope="col" { "Leads" } th.num scope="col" { "Follows" } th.num scope="col" { "Learns" } th.num scope="col" { "Old copies" } th scope="col" { "Path" }
                } }
                tbody { @for d in f.disks.iter().take(DISKS_SHOWN) { tr {
                    th scope="row" { (d.id) }
                    td { (state(d.state)) }
                    td { (d.class) }
                    td { (fill(d.used_bytes, d.capacity_bytes)) }
                    td.num { (HumanBytes(d.used_bytes)) }
                    td.num { (HumanBytes(d.capacity_bytes)) }
                    td.num { (count(d.primaries)) }
                    td.num { (count(d.secondaries)) }
                    td.num { (count(d.learners)) }
                    td.num { (count(d.old_copies)) }
                    td.path { (d.path) }
                } } }
            }
        }
    }
}

fn throttle(f: &NodeFacts) -> Markup {
    let known = |us: Option<u64>| us.map_or_else(|| "—".to_owned(), micros);
    html! {
        (title("throttle", "Throttle", html! { "what resync may do here now" }))
        div.scroll tabindex="0" role="region" aria-label="Throttle" {
            table {
                caption.hidden { "Throttle" }
                thead { tr { th scope="col" { "Disk" } th.num scope="col" { "Resync may" } th scope="col" { "Limited by" } th.num scope="col" { "p99 now" } th.num scope="col" { "Target" } th.num scope="col" { "Quiet" } } }
                tbody { @for d in f.disks.iter().take(DISKS_SHOWN) { tr {
                    th scope="row" { (d.id) }
                    td.num { @match d.rate_bytes_per_sec { Some(bytes) => (rate(bytes)), None => "no limit" } }
                    td { (d.limited_by) }
                    td.num { (known(d.p99_us)) }
                    td.num { (known(d.target_us)) }
                    td.num { (known(d.baseline_us)) }
                } } }
            }
        }
    }
}

fn copies(f: &NodeFacts) -> Markup {
    html! {
        (title("copies", "Copies under way", html! { (count(f.copies.len() as u64)) }))
        @if f.copies.is_empty() { p.line { "No copy runs from or to this node." } } @else {
            div.scroll tabindex="0" role="region" aria-label="Copies under way" {
                table {
                    caption.hidden { "Copies under way" }
                    thead { tr { th scope="col" { "PG" } th scope="col" { "Why" } th scope="col" { "From" } th scope="col" { "To" } th scope="col" { "Done" } th scope="col" { "Limited by" } } }
                    tbody { @for c in f.copies.iter().take(COPIES_SHOWN) { tr {
                        th scope="row" { (c.pg) }
                        td { @if c.class.is_empty() { "—" } @else { (c.class) } }
                        td { @match c.from { Some(disk) => (disk), None => "another node" } }
                        td { (c.to) }
                        td { @if c.bytes_total > 0 { (progress(c.bytes_done, c.bytes_total, &format!("PG {}", c.pg))) } @else { "the source knows" } }
                        td { @if c.limited_by.is_empty() { "—" } @else { (c.limited_by) } }
                    } } }
                }
            }
            @if f.copies.len() > COPIES_SHOWN { p.sub { "and " (count((f.copies.len() - COPIES_SHOWN) as u64)) " more" } }
        }
    }
}

fn peers(f: &NodeFacts) -> Markup {
    html! {
        (title("peers", "Other nodes", html! { "as the map has them" }))
        @if f.peers.is_empty() { p.line { "None is known yet." } } @else {
            ul.peers {
                @for p in f.peers.iter().take(PEERS_SHOWN) { li {
                    @match link_to(&p.url) { Some(url) => a href=(url) rel="noreferrer" { (p.name) }, None => (p.name) }
                    " " @match p.reached { Some(true) => (state("up")), Some(false) => span.state.error { "not reached from here" }, None => span.state.quiet { "no link" } }
                    @if !p.place.is_empty() { " " span.sub { (p.place) } }
                } }
            }
            @if f.peers.len() > PEERS_SHOWN { p.sub { "and " (count((f.peers.len() - PEERS_SHOWN) as u64)) " more" } }
        }
    }
}
