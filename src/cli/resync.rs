//! `resync`.

use std::collections::BTreeMap;

use indicatif::{ProgressBar, ProgressStyle};

use crate::api::types::{Knob, NodeLimits, OwnTarget, ResyncInfo, ResyncSet, SessionInfo};
use crate::core::cluster::{DeadlineWins, ResyncClass};
use crate::core::units::HumanBytes;

use super::args::{PauseArgs, ResyncCommand, ResyncSetArgs};
use super::out::{self, Table};
use super::status::resync_line;
use super::{Session, jobs, watch};

/// `resync …`.
pub fn resync(session: &Session, command: ResyncCommand) -> anyhow::Result<()> {
    let client = session.client()?;
    let change = match command {
        ResyncCommand::Status => {
            let text = client.get_text("/v1/resync")?;
            return session.show(&client, &text, |info: ResyncInfo| render_resync(&info));
        }
        ResyncCommand::Watch => return watch::watch(session),
        ResyncCommand::Set(set) => set_request(*set),
        ResyncCommand::Jobs { job: None } => return jobs::list(session),
        ResyncCommand::Jobs { job: Some(id) } => return jobs::show(session, id),
        ResyncCommand::Pause(PauseArgs { job: Some(id), .. }) => return jobs::change(session, id, "pause"),
        ResyncCommand::Resume(PauseArgs { job: Some(id), .. }) => return jobs::change(session, id, "resume"),
        ResyncCommand::Cancel { job, dry_run: true } => return jobs::cancel_dry_run(session, job),
        ResyncCommand::Cancel { job, .. } => return jobs::change(session, job, "cancel"),
        ResyncCommand::Pause(what) => pause_request(what, true),
        ResyncCommand::Resume(what) => pause_request(what, false),
    };
    let text = client.patch_text("/v1/resync", &change)?;
    let lead = if change.dry_run { "dry run, nothing was changed; it would be\n" } else { "" };
    session.show(&client, &text, |info: ResyncInfo| format!("{lead}{}", effective(&info)))
}

fn set_request(set: ResyncSetArgs) -> ResyncSet {
    ResyncSet {
        cap: set.cap,
        floor: set.floor,
        target_inflation: set.target_inflation.map(Knob::Text),
        target_p99_us: set.target_p99.or(set.target_p99_us),
        paused: None,
        profile: set.profile,
        class: set.class,
        weight: set.weight.map(Knob::Text),
        node: set.node,
        pool: set.pool,
        volume: set.volume,
        windows: (!set.windows.is_empty()).then_some(set.windows),
        time_zone: set.time_zone,
        deadline: set.deadline,
        deadline_wins: set.deadline_wins,
        dry_run: set.dry_run,
    }
}

fn pause_request(what: PauseArgs, paused: bool) -> ResyncSet {
    ResyncSet { paused: Some(paused), class: what.class, node: what.node, pool: what.pool, ..ResyncSet::default() }
}

/// Who sets something for a class without work must hear that it has none.
const NO_SCRUB: &str = " (this release does not scrub: kept for one that does)";

fn rate(rate: Option<u64>) -> String {
    rate.map_or("none".to_owned(), |rate| format!("{}/s", HumanBytes(rate)))
}

fn target(inflation: f64, p99_us: Option<u64>) -> String {
    match p99_us {
        Some(us) => format!("p99 ≤ {}", out::human_us(us)),
        None => format!("p99 ≤ {inflation} × the quiet one"),
    }
}

fn own_target(own: &OwnTarget) -> String {
    target(own.target_inflation.unwrap_or(1.0), own.target_p99_us)
}

/// Cap, floor and target with their origins.
fn limits(cap: Option<u64>, floor: u64, target: &str, origins: &BTreeMap<String, String>) -> String {
    let from = |what: &str| origins.get(what).map_or(String::new(), |origin| format!(" ({origin})"));
    let floor = format!("{}/s", HumanBytes(floor));
    format!("cap {}{}, floor {floor}{}, {target}{}", rate(cap), from("cap"), from("floor"), from("target"))
}

fn effective(info: &ResyncInfo) -> String {
    let profile_from = info.origins.get("profile").map_or(String::new(), |origin| format!(" ({origin})"));
    let all = target(info.target_inflation, info.target_p99_us);
    let mut text = format!(
        "in effect: profile {}{profile_from}, {}{}\n",
        info.profile.name(),
        limits(info.cap_bytes_per_sec, info.floor_bytes_per_sec, &all, &info.origins),
        if info.paused { ", paused" } else { "" }
    );
    let mut line = |what: String| text += &format!("           {what}\n");
    for (class, own) in &info.classes {
        let from = |given: bool| if given { " (override)" } else { "" };
        line(format!(
            "class {}: cap {}{}, floor {}{}, weight {}{}{}{}",
            class.name(),
            rate(own.cap_bytes_per_sec),
            from(own.cap_bytes_per_sec.is_some()),
            rate(own.floor_bytes_per_sec),
            from(own.floor_bytes_per_sec.is_some()),
            own.weight.map_or("as always".to_owned(), |w| w.to_string()),
            from(own.weight.is_some()),
            if own.paused { ", paused" } else { "" },
            if *class == ResyncClass::Scrub { NO_SCRUB } else { "" }
        ));
    }
    for (name, own) in &info.nodes {
        line(format!("node {name}: {}", node_limits(own)));
    }
    for (what, targets) in [("pool", &info.pools), ("volume", &info.volumes)] {
        for (name, own) in targets {
            line(format!("{what} {name}: {} where its copies are (override)", own_target(own)));
        }
    }
    if !info.paused_pools.is_empty() {
        line(format!("paused pools: {}", info.paused_pools.join(", ")));
    }
    for w in &info.windows {
        line(format!("window {} ({}){}", w.window, info.time_zone, if w.holds { ": holds now" } else { "" }));
    }
    if let Some(deadline) = &info.deadline {
        let wins = if deadline.wins == DeadlineWins::Latency { ", the latency target wins" } else { "" };
        line(format!("deadline {}{wins}: {}", deadline.at, deadline.verdict));
    }
    if !info.pending_nodes.is_empty() {
        text += &format!("not yet taken by: {} (they don't answer)\n", info.pending_nodes.join(", "));
    }
    text
}

fn node_limits(own: &NodeLimits) -> String {
    let target = target(own.target_inflation, own.target_p99_us);
    let paused = if own.paused { ", paused" } else { "" };
    limits(own.cap_bytes_per_sec, own.floor_bytes_per_sec, &target, &own.origins) + paused
}

/// Guests' p99 against what is aimed at; nothing while no guest runs.
pub fn guests(info: &ResyncInfo) -> Option<String> {
    let (p99, target) = (info.foreground_p99_us?, info.foreground_target_us?);
    let word = if p99 > target { "above" } else { "within" };
    Some(format!(
        "guests' p99 {} on the busiest disk, {word} the target of {}",
        out::human_us(p99),
        out::human_us(target)
    ))
}

fn render_resync(info: &ResyncInfo) -> String {
    let mut text = format!("resync     {}\n{}", resync_line(&info.status), effective(info));
    if let Some(guests) = guests(info) {
        text += &format!("guests:    {guests}\n");
    }
    let by_class: Vec<String> =
        info.bytes_by_class.iter().map(|(class, bytes)| format!("{class} {}", HumanBytes(*bytes))).collect();
    if !by_class.is_empty() {
        text += &format!("so far:    {}\n", by_class.join(", "));
    }
    let mut table = Table::new(&["PG", "CLASS", "FROM", "TO", ">DONE", ">OF", ">TRAVELLED", "LIMITED BY"]);
    for s in &info.sessions {
        table.row([
            s.pg.clone(),
            s.class.name().to_owned(),
            s.from.to_string(),
            s.to.to_string(),
            out::percent(s.bytes_done, s.bytes_total),
            HumanBytes(s.bytes_total).to_string(),
            HumanBytes(s.bytes_sent).to_string(),
            s.limited_by.clone(),
        ]);
    }
    if !table.is_empty() {
        text = text + "\n" + &table.render(out::colour());
    }
    for sentence in info.sessions.iter().filter_map(SessionInfo::stall_sentence) {
        text += &format!("- {sentence}\n");
    }
    text
}

/// A bar of bytes on stderr.
pub fn progress_bar(total: u64) -> ProgressBar {
    let bar = ProgressBar::new(total);
    if let Ok(style) = ProgressStyle::with_template("[{bar:40}] {percent:>3} %  {msg}") {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::{DeadlineInfo, WindowInfo};
    use crate::core::cluster::ClassSettings;

    #[test]
    fn the_effective_throttle_names_origins_and_nodes_that_lag() {
        let origins = [("profile", "window"), ("cap", "override"), ("floor", "deadline"), ("target", "window")];
        let origins: BTreeMap<String, String> = origins.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let own =
            NodeLimits { floor_bytes_per_sec: 1 << 20, target_inflation: 1.5, paused: true, ..NodeLimits::default() };
        let info = ResyncInfo {
            cap_bytes_per_sec: Some(20 << 20),
            floor_bytes_per_sec: 8 << 20,
            target_inflation: 2.0,
            origins,
            pending_nodes: vec!["n3".into()],
            classes: [ResyncClass::Repair, ResyncClass::Scrub]
                .map(|class| (class, ClassSettings { weight: Some(4), ..ClassSettings::default() }))
                .into(),
            nodes: BTreeMap::from([("n2".to_owned(), own)]),
            volumes: BTreeMap::from([("v".to_owned(), OwnTarget { target_inflation: None, target_p99_us: Some(900) })]),
            paused_pools: vec!["slow".into()],
            windows: vec![WindowInfo { window: "Mon 02:00-06:00 recovery".into(), holds: true }],
            time_zone: "Europe/Berlin".into(),
            deadline: Some(DeadlineInfo { at: "tomorrow".into(), verdict: "holds".into(), ..DeadlineInfo::default() }),
            foreground_p99_us: Some(12_000),
            foreground_target_us: Some(4_000),
            ..ResyncInfo::default()
        };
        let text = effective(&info);
        for part in [
            "profile balanced (window), cap 20 MiB/s (override), floor 8 MiB/s (deadline), p99 ≤ 2 × the quiet one (window)",
            "class repair: cap none, floor none, weight 4 (override)\n",
            "class scrub: cap none, floor none, weight 4 (override) (this release does not scrub: kept for one that does)\n",
            "node n2: cap none, floor 1 MiB/s, p99 ≤ 1.5 × the quiet one, paused",
            "volume v: p99 ≤ 900 µs where its copies are",
            "paused pools: slow",
            "window Mon 02:00-06:00 recovery (Europe/Berlin): holds now",
            "deadline tomorrow: holds",
            "not yet taken by: n3",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(render_resync(&info).contains("guests' p99 12.0 ms on the busiest disk, above the target of 4.0 ms"));
    }
}
