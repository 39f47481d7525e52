//! `resync`.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::api::types::{ResyncInfo, ResyncSet, SessionInfo};
use crate::core::units::HumanBytes;

use super::args::ResyncCommand;
use super::out::{self, Table};
use super::signals::Stop;
use super::status::resync_line;
use super::{Session, jobs};

/// `resync …`.
pub fn resync(session: &Session, command: ResyncCommand) -> anyhow::Result<()> {
    let client = session.client()?;
    let change = match command {
        ResyncCommand::Status => {
            let text = client.get_text("/v1/resync")?;
            return session.show(&client, &text, |info: ResyncInfo| render_resync(&info));
        }
        ResyncCommand::Watch => return watch(session),
        ResyncCommand::Set(set) => ResyncSet {
            cap: set.cap,
            floor: set.floor,
            target_inflation: set.target_inflation,
            target_p99_us: set.target_p99.or(set.target_p99_us),
            paused: None,
            profile: set.profile,
            class: set.class,
            weight: set.weight,
        },
        ResyncCommand::Jobs { job: None } => return jobs::list(session),
        ResyncCommand::Jobs { job: Some(id) } => return jobs::show(session, id),
        ResyncCommand::Pause { job: Some(id), .. } => return jobs::change(session, id, "pause"),
        ResyncCommand::Resume { job: Some(id), .. } => return jobs::change(session, id, "resume"),
        ResyncCommand::Cancel { job } => return jobs::change(session, job, "cancel"),
        ResyncCommand::Pause { job: None, class } => ResyncSet { paused: Some(true), class, ..ResyncSet::default() },
        ResyncCommand::Resume { job: None, class } => ResyncSet { paused: Some(false), class, ..ResyncSet::default() },
    };
    let text = client.patch_text("/v1/resync", &change)?;
    session.show(&client, &text, |info: ResyncInfo| effective(&info))
}

fn effective(info: &ResyncInfo) -> String {
    let cap = info.cap_bytes_per_sec.map_or("none".to_owned(), |cap| format!("{}/s", HumanBytes(cap)));
    let target = match info.target_p99_us {
        Some(us) => format!("p99 ≤ {}", out::human_us(us)),
        None => format!("p99 ≤ {} × the quiet one", info.target_inflation),
    };
    let from = |what: &str| info.origins.get(what).map_or(String::new(), |origin| format!(" ({origin})"));
    let mut text = format!(
        "in effect: profile {}, cap {cap}, floor {}/s{}, {target}{}{}\n",
        info.profile.name(),
        HumanBytes(info.floor_bytes_per_sec),
        from("floor"),
        from("target"),
        if info.paused { ", paused" } else { "" }
    );
    for (class, own) in &info.classes {
        let rate = |rate: Option<u64>| rate.map_or("none".to_owned(), |rate| format!("{}/s", HumanBytes(rate)));
        text += &format!(
            "           {}: cap {}, floor {}, weight {}{}\n",
            class.name(),
            rate(own.cap_bytes_per_sec),
            rate(own.floor_bytes_per_sec),
            own.weight.map_or("as always".to_owned(), |w| w.to_string()),
            if own.paused { ", paused" } else { "" }
        );
    }
    if !info.pending_nodes.is_empty() {
        text += &format!("not yet taken by: {} (they don't answer)\n", info.pending_nodes.join(", "));
    }
    text
}

fn render_resync(info: &ResyncInfo) -> String {
    let mut text = format!("resync     {}\n{}", resync_line(&info.status), effective(info));
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

/// Shows progress until nothing moves; a job's whole is what was left when it was first seen, or more if it grew.
fn watch(session: &Session) -> anyhow::Result<()> {
    let client = session.client()?;
    let stop = Stop::on_signals()?;
    let terminal = std::io::stderr().is_terminal() && !session.json();
    let bar = terminal.then(|| progress_bar(0));
    let mut said_unreachable = false;
    loop {
        match client.status() {
            Ok(status) => {
                said_unreachable = false;
                let resync = &status.resync;
                let total = resync.bytes_total.max(resync.bytes_left);
                if let Some(bar) = &bar {
                    bar.set_length(total);
                    bar.set_position(total - resync.bytes_left);
                    bar.set_message(resync_line(resync));
                } else if session.json() {
                    out::line(serde_json::to_string(resync)?)?;
                } else {
                    out::line(resync_line(resync))?;
                }
                let busy = resync.active_moves > 0 || resync.pending_moves > 0 || status.plan_pending;
                if !busy {
                    if let Some(bar) = bar {
                        bar.finish_and_clear();
                        out::line(resync_line(resync))?;
                    }
                    return Ok(());
                }
            }
            Err(e) if e.is_transient() => {
                if !std::mem::replace(&mut said_unreachable, true) {
                    let text = format!("evenkeel: {e}; trying again each second");
                    bar.as_ref().map_or_else(|| out::note(&text), |bar| bar.println(&text));
                }
            }
            Err(e) => return Err(e.into()),
        }
        if stop.sleep(Duration::from_secs(1)) {
            return Ok(());
        }
    }
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

    #[test]
    fn the_effective_throttle_names_nodes_that_lag() {
        let info = ResyncInfo {
            cap_bytes_per_sec: Some(20 << 20),
            floor_bytes_per_sec: 8 << 20,
            target_inflation: 2.0,
            pending_nodes: vec!["n3".into()],
            ..ResyncInfo::default()
        };
        let text = effective(&info);
        assert!(text.contains("profile balanced, cap 20 MiB/s, floor 8 MiB/s, p99 ≤ 2 × the quiet one"), "{text}");
        assert!(text.contains("not yet taken by: n3"), "{text}");
    }
}
