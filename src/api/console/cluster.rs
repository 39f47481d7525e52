//! The coordinator's page.

use std::collections::BTreeMap;

use maud::{Markup, html};

use super::chart::{Line, chart};
use super::facts::{ClusterFacts, Sample};
use super::parts::*;
use super::{Page, Section};
use crate::api::types::{DiskInfo, Event, JobInfo, NodeInfo, PgCounts, ResyncInfo, SessionInfo};
use crate::core::ids::DiskId;

/// Reasons below the first that are shown.
const REASONS_SHOWN: usize = 8;
/// Running copies that are shown.
const COPIES_SHOWN: usize = 8;
/// Up to so many disks are shown one by one; above, zones, and what needs a look.
const DISKS_SHOWN: usize = 120;
/// Nodes or disks that need a look, of a large cluster.
const UNWELL_SHOWN: usize = 40;
/// Lines of events.
const EVENTS_SHOWN: usize = 40;
/// See [`folded`].
const FOLD_MS: u64 = 60_000;
/// Zones of a large cluster.
const ZONES_SHOWN: usize = 60;

/// The page of a coordinator.
pub fn render(f: &ClusterFacts) -> Page {
    let (level, sentence) = headline(f);
    let section = |id, html: Markup| Section { id, html: html.into_string() };
    Page {
        title: format!("{} · Evenkeel", word_of(level)),
        sections: vec![
            section("who", who(f)),
            section("health", health(f, level, &sentence)),
            section("redundancy", redundancy(f)),
            section("resync", resync(f)),
            section("foreground", foreground(f)),
            section("topology", topology(f)),
            section("volumes", volumes(f)),
            section("events", events(f)),
        ],
    }
}

fn who(f: &ClusterFacts) -> Markup {
    html! {
        p { "cluster " code { (f.status.cluster.chars().take(8).collect::<String>()) } }
        p { "coordinator " (f.release) }
        p.optional { "map " (count(f.status.map_version)) }
        p.clock { (time(f.unix_ms, f.unix_ms)) " UTC" }
    }
}

pub(super) fn word_of(level: &str) -> &'static str {
    match level {
        "ok" => "OK",
        "warn" => "Warning",
        _ => "Error",
    }
}

/// The state of the whole in one sentence.
fn headline(f: &ClusterFacts) -> (&'static str, String) {
    if let Some(first) = f.status.health_reasons.first() {
        return (level(&f.status.health), first.clone());
    }
    let nodes = f.status.nodes.iter().filter(|n| n.state != "removed").count() as u64;
    let moving = f.status.resync.pending_moves;
    let sentence = match (nodes, f.status.pgs.total) {
        (0, _) => "No node has joined yet: make a token for each with `evenkeel token create --role node`.".to_owned(),
        (_, 0) => format!("{} up; there is no pool yet: `evenkeel pool create default`.", nodes_are(nodes)),
        _ if moving > 0 => {
            let left = eta_words(&f.resync);
            let left = if left.is_empty() { String::new() } else { format!(", {left}") };
            format!(
                "All data has all its copies; {} to other disks{left}.",
                plural(moving, "copy moves", "copies move")
            )
        }
        _ => format!("All is well: {} up and all data has all its copies.", nodes_are(nodes)),
    };
    ("ok", sentence)
}

fn nodes_are(n: u64) -> String {
    if n == 1 { "1 node is".to_owned() } else { format!("{} nodes are", count(n)) }
}

pub(super) fn health_block(level: &str, sentence: &str, reasons: &[String]) -> Markup {
    html! {
        h1 class=(level) data-title={ (word_of(level)) " · Evenkeel" } {
            span.mark aria-hidden="true" {}
            span.word { (word_of(level)) }
            span.sentence { (words(sentence)) }
        }
        @if !reasons.is_empty() {
            ul.reasons {
                @for reason in reasons.iter().take(REASONS_SHOWN) { li { (words(reason)) } }
                @if reasons.len() > REASONS_SHOWN { li { (plural((reasons.len() - REASONS_SHOWN) as u64, "more reason", "more reasons")) ": " code { "evenkeel health" } } }
            }
        }
    }
}

fn health(f: &ClusterFacts, level: &str, sentence: &str) -> Markup {
    health_block(level, sentence, f.status.health_reasons.get(1..).unwrap_or_default())
}

/// Placement groups by state as one bar.
fn redundancy(f: &ClusterFacts) -> Markup {
    let PgCounts { total, clean, degraded, unavailable, misplaced } = f.status.pgs;
    let parts = [
        ("ok", "whole", clean.saturating_sub(misplaced)),
        ("move", "whole, moving", misplaced),
        ("warn", "copies missing", degraded),
        ("error", "not served", unavailable),
    ];
    let capacity = f.status.capacity_bytes;
    html! {
        (title("redundancy", "Redundancy", html! { (plural(total, "placement group", "placement groups")) }))
        (stack(&parts, total))
        ul.legend {
            @for (class, what, n) in parts {
                li class=[(n == 0).then_some("none")] { span class={ "dot " (class) } {} (what) " " strong { (count(n)) } }
            }
        }
        p.line {
            "Used " strong { (HumanBytes(f.status.used_bytes)) } " of " (HumanBytes(capacity)) " raw (" (percent(f.status.used_bytes, capacity)) " %), "
            strong { (HumanBytes(f.status.provisioned_bytes)) } " provisioned to guests."
            @if f.status.missing_capacity_bytes > 0 { " Room for " strong { (HumanBytes(f.status.missing_capacity_bytes)) } " of copies is missing." }
        }
    }
}

/// Parts of a whole side by side. Whatever is there is seen, however small its part.
fn stack(parts: &[(&str, &str, u64)], total: u64) -> Markup {
    const WIDTH: f64 = 1000.0;
    const LEAST: f64 = 6.0;
    let shown = parts.iter().filter(|p| p.2 > 0);
    let widths: Vec<f64> = shown.clone().map(|p| (p.2 as f64 / total.max(1) as f64 * WIDTH).max(LEAST)).collect();
    let sum: f64 = widths.iter().sum::<f64>().max(1.0);
    let mut x = 0.0;
    let mut placed = Vec::new();
    for (part, width) in shown.zip(widths) {
        let width = width / sum * WIDTH;
        placed.push((part.0, x, width));
        x += width;
    }
    let said: Vec<String> = parts.iter().filter(|p| p.2 > 0).map(|p| format!("{} {}", count(p.2), p.1)).collect();
    html! {
        svg.stack role="img" viewBox={ "0 0 " (WIDTH) " 10" } preserveAspectRatio="none" aria-label={ "of " (count(total)) ": " (said.join(", ")) } {
            rect.empty width=(WIDTH) height="10" {}
            @for (class, x, width) in placed { rect class=(class) x={ (format!("{x:.1}")) } width={ (format!("{width:.1}")) } height="10" {} }
        }
    }
}

fn eta_words(r: &ResyncInfo) -> String {
    match (r.status.eta_seconds, r.status.eta_range_seconds) {
        (Some(eta), _) if eta < 0.0 => "guests write more than is copied: no end in sight".to_owned(),
        (Some(eta), Some(range)) => {
            format!("done in about {} ({} to {})", seconds(eta), seconds(range.low), seconds(range.high))
        }
        (Some(eta), None) => format!("done in about {}", seconds(eta)),
        _ => String::new(),
    }
}

fn resync(f: &ClusterFacts) -> Markup {
    let (r, s) = (&f.resync, &f.resync.status);
    let idle = s.active_moves == 0 && s.pending_moves == 0;
    let aside = html! {
        @if s.paused { (state("paused")) } @else if idle { "idle" } @else { (plural(s.active_moves, "copy runs", "copies run")) ", " (count(s.pending_moves)) " to do" }
    };
    let current: Vec<&JobInfo> = f.jobs.iter().filter(|j| j.state.is_open()).collect();
    html! {
        (title("resync", "Resync", aside))
        @if !idle {
            dl.facts {
                div { dt { "rate" } dd { (rate(s.rate_bytes_per_sec)) } }
                div { dt { "left" } dd { (HumanBytes(s.bytes_left)) } }
                div { dt { "time left" } dd { (eta_short(r)) } }
                div { dt { "limited by" } dd { (s.limited_by) } }
            }
        }
        @for job in &current { (job_line(job)) }
        @if idle && current.is_empty() {
            p.line { "Nothing moves. " strong { (HumanBytes(s.bytes_done)) } " copied and verified over the cluster's life." }
        }
        (copies(f))
        (chart("Resync", &[Line { name: "written", class: "a", values: of(f, |s| s.resync_bytes_per_sec) }], (1024, 1 << 20), rate))
        (settings(r))
        (past_jobs(f))
    }
}

fn eta_short(r: &ResyncInfo) -> Markup {
    match (r.status.eta_seconds, r.status.eta_range_seconds) {
        (Some(eta), _) if eta < 0.0 => html! { "diverging" },
        (Some(eta), Some(range)) => {
            html! { (seconds(eta)) span.range { (seconds(range.low)) " to " (seconds(range.high)) } }
        }
        (Some(eta), None) => html! { (seconds(eta)) },
        _ => html! { "not known yet" },
    }
}

fn job_line(job: &JobInfo) -> Markup {
    html! {
        div.job {
            p { strong { "Job " (job.id) } " · " (state(job.state.name())) " · " (job.reason) }
            (progress(job.bytes_done, job.bytes_total, &format!("job {}", job.id)))
            p.sub {
                (HumanBytes(job.bytes_done)) " of " (HumanBytes(job.bytes_total)) " · " (count(job.moves_done)) " of " (plural(job.moves_total, "move", "moves")) " · by " (job.actor)
            }
        }
    }
}

/// Running copies: the most urgent, then those with most left.
fn copies(f: &ClusterFacts) -> Markup {
    let mut all: Vec<&SessionInfo> = f.resync.sessions.iter().collect();
    if all.is_empty() {
        return html! {};
    }
    all.sort_by_key(|s| (s.class, std::cmp::Reverse(s.bytes_total.saturating_sub(s.bytes_done)), s.to));
    let nodes: BTreeMap<DiskId, &str> = f.status.disks.iter().map(|d| (d.id, d.node.as_str())).collect();
    let place = |d: DiskId| match nodes.get(&d) {
        Some(node) => format!("{node} {d}"),
        None => d.to_string(),
    };
    html! {
        div.scroll tabindex="0" role="region" aria-label="Running copies" {
            table {
                caption.hidden { "Running copies" }
                thead { tr { th scope="col" { "PG" } th scope="col" { "Why" } th scope="col" { "From" } th scope="col" { "To" } th scope="col" { "Done" } th scope="col" { "Limited by" } } }
                tbody {
                    @for s in all.iter().take(COPIES_SHOWN) {
                        tr {
                            th scope="row" { (s.pg) }
                            td { (s.class.name()) }
                            td { (place(s.from)) }
                            td { (place(s.to)) }
                            td { (progress(s.bytes_done, s.bytes_total, &format!("PG {}", s.pg))) }
                            td { @match &s.stalled { Some(stall) => span.state.warn { "stalled: " (stall.reason) }, None => (s.limited_by) } }
                        }
                    }
                }
            }
        }
        @if all.len() > COPIES_SHOWN { p.sub { "and " (count((all.len() - COPIES_SHOWN) as u64)) " more: " code { "evenkeel resync status" } } }
    }
}

fn settings(r: &ResyncInfo) -> Markup {
    let target =
        r.target_p99_us.map_or_else(|| format!("{} × quiet", r.target_inflation), |us| format!("p99 ≤ {}", micros(us)));
    html! {
        dl.facts.small {
            div { dt { "profile" } dd { (r.profile.name()) } }
            div { dt { "target" } dd { (target) } }
            div { dt { "floor" } dd { (rate(r.floor_bytes_per_sec)) } }
            div { dt { "cap" } dd { @match r.cap_bytes_per_sec { Some(cap) => (rate(cap)), None => "none" } } }
            @for window in r.windows.iter().filter(|w| w.holds) { div { dt { "window" } dd { (window.window) } } }
        }
        @if let Some(d) = &r.deadline {
            p.line { @if d.holds { "Deadline " } @else { span.state.warn { "Deadline" } " " } strong { (d.at) } ": " (d.verdict) }
        }
        @if !r.windows.is_empty() {
            details {
                summary { "Windows (" (r.time_zone) ")" }
                ul.plain { @for w in &r.windows { li { (w.window) @if w.holds { ", " strong { "holds now" } } } } }
            }
        }
    }
}

fn past_jobs(f: &ClusterFacts) -> Markup {
    let past: Vec<&JobInfo> = f.jobs.iter().filter(|j| !j.state.is_open()).collect();
    if past.is_empty() {
        return html! {};
    }
    html! {
        details {
            summary { "Earlier jobs" }
            ul.plain {
                @for j in past {
                    li { strong { "Job " (j.id) } " " (state(j.state.name())) " " (j.reason) ", " (HumanBytes(j.bytes_done)) ", " (time(j.started_unix_ms, f.unix_ms)) }
                }
            }
        }
    }
}

fn of(f: &ClusterFacts, pick: impl Fn(&Sample) -> u64) -> Vec<u64> {
    f.history.iter().map(pick).collect()
}

/// Two charts of what guests do.
pub(super) fn guest_charts(history: &[Sample]) -> Markup {
    let of = |pick: fn(&Sample) -> u64| history.iter().map(pick).collect::<Vec<u64>>();
    html! {
        (chart("Operations", &[
            Line { name: "reads", class: "a", values: of(|s| s.read_iops) },
            Line { name: "writes", class: "b", values: of(|s| s.write_iops) },
        ], (1000, 10), |n| format!("{}/s", count(n))))
        (chart("Latency", &[
            Line { name: "median", class: "a", values: of(|s| s.p50_us) },
            Line { name: "p99", class: "b", values: of(|s| s.p99_us) },
        ], (1000, 1000), micros))
    }
}

fn foreground(f: &ClusterFacts) -> Markup {
    let g = &f.status.foreground;
    html! {
        (title("foreground", "Foreground", html! { (count(g.read_iops + g.write_iops)) " operations/s" }))
        (guest_charts(&f.history))
        p.sub { "Latency is that of the slowest node, as primaries see it." }
    }
}

fn topology(f: &ClusterFacts) -> Markup {
    let nodes: Vec<&NodeInfo> = f.nodes.iter().filter(|n| n.state != "removed").collect();
    let disks: usize = nodes.iter().map(|n| n.disks.len()).sum();
    let aside = html! { (plural(nodes.len() as u64, "node", "nodes")) ", " (plural(disks as u64, "disk", "disks")) };
    html! {
        (title("topology", "Nodes and disks", aside))
        @if disks <= DISKS_SHOWN && nodes.len() <= DISKS_SHOWN { (node_table(&nodes)) } @else { (zones(&nodes)) }
    }
}

fn place_of(node: &NodeInfo) -> String {
    match (node.zone.as_str(), node.rack.as_str()) {
        ("", "") => "—".to_owned(),
        (zone, "") => zone.to_owned(),
        ("", rack) => rack.to_owned(),
        (zone, rack) => format!("{zone} / {rack}"),
    }
}

fn node_name(node: &NodeInfo) -> Markup {
    match link_to(&node.admin_url) {
        Some(url) => html! { a href=(url) rel="noreferrer" { (node.name) } },
        None => html! { (node.name) },
    }
}

fn node_table(nodes: &[&NodeInfo]) -> Markup {
    let mut nodes = nodes.to_vec();
    nodes.sort_by(|a, b| (&a.zone, &a.rack, a.id).cmp(&(&b.zone, &b.rack, b.id)));
    html! {
        div.scroll tabindex="0" role="region" aria-label="Nodes and disks" {
            table {
                caption.hidden { "Nodes and disks" }
                thead { tr {
                    th scope="col" { "Node" } th scope="col" { "State" } th scope="col" { "Zone / rack" } th scope="col" { "Disk" } th scope="col" { "State" }
                    th scope="col" { "Class" } th scope="col" { "Fill" } th.num scope="col" { "Used" } th.num scope="col" { "Capacity" }
                    th.num scope="col" { "PG copies" } th.num scope="col" { "Led" }
                } }
                @for node in nodes { tbody {
                    @let disks: Vec<Option<&DiskInfo>> = if node.disks.is_empty() { vec![None] } else { node.disks.iter().map(Some).collect() };
                    @for (at, disk) in disks.iter().enumerate() {
                        tr data-node=(node.name) {
                            @if at == 0 {
                                th scope="rowgroup" rowspan=(disks.len()) { (node_name(node)) }
                                td rowspan=(disks.len()) { (state(&node.state)) }
                                td rowspan=(disks.len()) { (place_of(node)) }
                            }
                            @match disk {
                                Some(d) => (disk_cells(d)),
                                None => td colspan="8" { "no disk" },
                            }
                        }
                    }
                } }
            }
        }
    }
}

fn disk_cells(d: &DiskInfo) -> Markup {
    html! {
        td title=(d.path) { (d.id) }
        td { (state(&d.state)) }
        td { @if d.class.is_empty() { "—" } @else { (d.class) } }
        td { (fill(d.used_bytes, d.capacity_bytes)) }
        td.num { (HumanBytes(d.used_bytes)) }
        td.num { (HumanBytes(d.capacity_bytes)) }
        td.num { (count(d.pg_replicas)) }
        td.num { (count(d.primaries)) }
    }
}

/// A large cluster: zones, and one by one only what needs a look.
fn zones(nodes: &[&NodeInfo]) -> Markup {
    #[derive(Default)]
    struct Zone {
        nodes: u64,
        nodes_up: u64,
        disks: u64,
        disks_up: u64,
        used: u64,
        capacity: u64,
    }
    let mut zones: BTreeMap<&str, Zone> = BTreeMap::new();
    for node in nodes {
        let zone = zones.entry(node.zone.as_str()).or_default();
        zone.nodes += 1;
        zone.nodes_up += u64::from(node.state == "up");
        for d in node.disks.iter().filter(|d| d.state != "removed") {
            zone.disks += 1;
            zone.disks_up += u64::from(d.state == "up");
            (zone.used, zone.capacity) = (zone.used + d.used_bytes, zone.capacity + d.capacity_bytes);
        }
    }
    let unwell =
        |n: &&&NodeInfo| n.state != "up" || n.disks.iter().any(|d| !matches!(d.state.as_str(), "up" | "removed"));
    let unwell: Vec<&NodeInfo> = nodes.iter().filter(unwell).copied().collect();
    let mut fullest: Vec<(&NodeInfo, &DiskInfo)> = nodes.iter().flat_map(|n| n.disks.iter().map(|d| (*n, d))).collect();
    fullest.sort_by_key(|(_, d)| {
        std::cmp::Reverse((u128::from(d.used_bytes) * 1_000_000 / u128::from(d.capacity_bytes.max(1)), d.id))
    });
    html! {
        div.scroll tabindex="0" role="region" aria-label="Zones" {
            table {
                caption { "Zones" }
                thead { tr { th scope="col" { "Zone" } th.num scope="col" { "Nodes up" } th.num scope="col" { "Disks up" } th scope="col" { "Fill" } th.num scope="col" { "Used" } th.num scope="col" { "Capacity" } } }
                tbody { @for (name, z) in zones.iter().take(ZONES_SHOWN) { tr {
                    th scope="row" { @if name.is_empty() { "—" } @else { (name) } }
                    td.num { (count(z.nodes_up)) " of " (count(z.nodes)) }
                    td.num { (count(z.disks_up)) " of " (count(z.disks)) }
                    td { (fill(z.used, z.capacity)) }
                    td.num { (HumanBytes(z.used)) }
                    td.num { (HumanBytes(z.capacity)) }
                } } }
            }
        }
        @if zones.len() > ZONES_SHOWN { p.sub { "and " (count((zones.len() - ZONES_SHOWN) as u64)) " more zones" } }
        div.scroll tabindex="0" role="region" aria-label="Nodes that need a look" {
            table {
                caption { "Nodes that need a look: " (count(unwell.len() as u64)) }
                thead { tr { th scope="col" { "Node" } th scope="col" { "State" } th scope="col" { "Zone / rack" } th scope="col" { "Disks that are not up" } } }
                tbody { @for n in unwell.iter().take(UNWELL_SHOWN) { tr data-node=(n.name) {
                    th scope="row" { (node_name(n)) }
                    td { (state(&n.state)) }
                    td { (place_of(n)) }
                    td { @for d in n.disks.iter().filter(|d| !matches!(d.state.as_str(), "up" | "removed")).take(4) { (d.id) " " (state(&d.state)) " " } }
                } } }
            }
        }
        @if unwell.len() > UNWELL_SHOWN { p.sub { "and " (count((unwell.len() - UNWELL_SHOWN) as u64)) " more: " code { "evenkeel node list" } } }
        div.scroll tabindex="0" role="region" aria-label="Fullest disks" {
            table {
                caption { "Fullest disks" }
                thead { tr { th scope="col" { "Disk" } th scope="col" { "Node" } th scope="col" { "State" } th scope="col" { "Fill" } th.num scope="col" { "Used" } } }
                tbody { @for (n, d) in fullest.iter().take(10) { tr {
                    th scope="row" { (d.id) } td { (node_name(n)) } td { (state(&d.state)) } td { (fill(d.used_bytes, d.capacity_bytes)) } td.num { (HumanBytes(d.used_bytes)) }
                } } }
            }
        }
    }
}

fn volumes(f: &ClusterFacts) -> Markup {
    let v = &f.volumes;
    let aside = html! { (plural(v.total as u64, "volume", "volumes")) @if v.unwell > 0 { ", " (count(v.unwell as u64)) " not whole" } };
    html! {
        (title("volumes", "Volumes", aside))
        @if v.total == 0 { p.line { "No volume yet: " code { "evenkeel volume create disk1 --size 4GiB" } "." } } @else {
            div.scroll tabindex="0" role="region" aria-label="Volumes" {
                table {
                    caption.hidden { "Volumes" }
                    thead { tr { th scope="col" { "Volume" } th scope="col" { "State" } th.num scope="col" { "Size" } th scope="col" { "Pool" } th scope="col" { "Chunks with all copies" } th scope="col" { "Attached to" } th.num scope="col" { "Guest" } th.num scope="col" { "Priority" } } }
                    tbody { @for l in &v.shown { tr {
                        th scope="row" { (l.name) }
                        td { (state(l.state)) }
                        td.num { (HumanBytes(l.size_bytes)) }
                        td { (l.pool) ", " (plural(u64::from(l.replicas), "copy", "copies")) }
                        td { (stack(&[("ok", "whole", l.chunks.clean.saturating_sub(l.chunks.misplaced)), ("move", "whole, moving", l.chunks.misplaced), ("warn", "copies missing", l.chunks.degraded), ("error", "not served", l.chunks.unavailable)], l.chunks.total))
                             span.num { (count(l.chunks.clean)) " of " (count(l.chunks.total)) } }
                        td { @if l.attached_to.is_empty() { "—" } @else { (l.attached_to) } }
                        td.num { @match &l.guest {
                            Some(g) => { (count(g.read_iops + g.write_iops)) "/s" @if g.p99_us > 0 { span.sub { " p99 " (micros(g.p99_us)) } } },
                            None => "—",
                        } }
                        td.num { (l.priority) }
                    } } }
                }
            }
            @if v.total > v.shown.len() { p.sub { "and " (count((v.total - v.shown.len()) as u64)) " more: " code { "evenkeel volume list" } } }
        }
    }
}

fn events(f: &ClusterFacts) -> Markup {
    html! {
        (title("events", "Events", html! { "newest first, times in UTC" }))
        @if f.events.is_empty() { p.line { "Nothing happened yet." } } @else {
            ol.events tabindex="0" aria-label="Events" {
                @for (e, more) in folded(&f.events).iter().take(EVENTS_SHOWN) { li {
                    span.when { (time(e.unix_ms, f.unix_ms)) }
                    span.what {
                        (e.text) " "
                        @if *more > 0 { strong { "and " (count(*more)) " more like it " } }
                        span.sub { (e.kind) " · " (e.actor) }
                    }
                } }
            }
        }
    }
}

/// A lost node changes hundreds of PGs at once: those of a kind within a minute are one line, and how many more there were.
fn folded(events: &[Event]) -> Vec<(&Event, u64)> {
    let mut lines: Vec<(&Event, u64)> = Vec::new();
    for event in events {
        let alike = |(line, _): &&mut (&Event, u64)| {
            line.kind == event.kind && line.unix_ms.saturating_sub(event.unix_ms) < FOLD_MS
        };
        match lines.iter_mut().find(alike).filter(|_| event.kind.starts_with("pg-")) {
            Some((_, more)) => *more += 1,
            None => lines.push((event, 0)),
        }
    }
    lines
}

/// What an operator can do here. Shown by the script alone, as a header with the token can't be sent without one.
pub(super) fn actions() -> Markup {
    html! {
        noscript { p.line { "Actions need JavaScript here, or the command line: " code { "evenkeel resync pause" } ", " code { "evenkeel resync set --profile recovery" } ", " code { "evenkeel node drain n1" } "." } }
        section.card #actions aria-labelledby="actions-title" hidden {
            (title("actions", "Actions", html! { "with the operator's token" }))
            form #token-form method="post" autocomplete="off" {
                label for="token" { "Operator's token" }
                input #token type="password" autocomplete="off" spellcheck="false" aria-describedby="token-help";
                button type="button" #forget { "Forget" }
                p.sub #token-help { "The text of api.token in the coordinator's directory. It stays in this window and goes only to this coordinator." }
            }
            div.acts {
                fieldset {
                    legend { "Resync" }
                    button type="button" data-act="pause" { "Pause all" }
                    button type="button" data-act="resume" { "Resume" }
                }
                fieldset {
                    legend { "Profile" }
                    select #profile aria-label="Profile" { option { "foreground" } option selected { "balanced" } option { "recovery" } }
                    button type="button" data-act="profile" { "Set" }
                }
                fieldset {
                    legend { "Cap" }
                    input #cap type="text" size="9" placeholder="200MiB/s" aria-label="Cap, as 200MiB/s, or none";
                    button type="button" data-act="cap" { "Set" }
                }
                fieldset {
                    legend { "Running job" }
                    button type="button" data-act="job-pause" { "Pause" }
                    button type="button" data-act="job-resume" { "Resume" }
                }
                fieldset {
                    legend { "Node" }
                    input #node type="text" size="9" list="node-names" autocomplete="off" aria-label="Name of the node";
                    datalist #node-names {}
                    button type="button" data-act="drain" { "Drain" }
                    button type="button" data-act="undrain" { "Undrain" }
                }
            }
            output #said role="status" {}
            dialog #ask aria-labelledby="ask-text" {
                p #ask-text {}
                form method="dialog" { button value="no" { "Leave it" } button.go value="yes" { "Drain it" } }
            }
        }
    }
}
