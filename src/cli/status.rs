//! `status`, `health`, `wait`, `events`.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::Serialize;

use crate::api::problems::{Advice, Problem, ProblemKind};
use crate::api::types::{Event, PgCounts, ResyncStatus, Status};
use crate::core::units::HumanBytes;
use crate::core::words;

use super::Session;
use super::args::{EventsArgs, HealthArgs, WaitArgs, WaitFor};
use super::client::{Client, RequestApi};
use super::out::{self, Table};

/// Between two looks at the cluster's state; a script notices no longer delay than this.
const POLL_EVERY: Duration = Duration::from_millis(200);
/// Enough for an answer from memory even on a loaded machine.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// See its use.
const MOMENT: Duration = Duration::from_millis(500);

/// What `health -o json` prints.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Health {
    /// `ok`, `warn` or `error`.
    health: String,
    /// One sentence for each thing that isn't well, worst first.
    health_reasons: Vec<String>,
    /// With `--explain`: what each kind of problem means and what to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    explained: Option<Vec<Explained>>,
}

/// A kind of problem.
#[derive(Debug, Serialize, JsonSchema)]
struct Explained {
    /// Kind.
    kind: ProblemKind,
    /// What is the case: the sentences of this kind.
    reasons: Vec<String>,
    #[serde(flatten)]
    advice: Advice,
}

/// `status`.
pub fn status(session: &Session) -> anyhow::Result<()> {
    let client = session.client()?;
    let text = client.get_text("/v1/status")?;
    session.show(&client, &text, |status: Status| render(&status, out::colour()))
}

/// `health`: the exit code says it to scripts.
pub fn health(session: &Session, args: HealthArgs) -> anyhow::Result<ExitCode> {
    let client = session.client()?;
    let (health, problems) = match client.status() {
        Ok(status) => (status.health.clone(), problems_of(status)),
        Err(e) => ("error".to_owned(), vec![Problem { kind: ProblemKind::CoordinatorDown, says: e.to_string() }]),
    };
    let health_reasons: Vec<String> = problems.iter().map(|problem| problem.says.clone()).collect();
    let explained = args.explain.then(|| explain(&problems));
    let code = match health.as_str() {
        "ok" => 0,
        "warn" => 1,
        _ => 2,
    };
    if session.json() {
        out::line(serde_json::to_string(&Health { health, health_reasons, explained })?)?;
    } else {
        let word = if out::colour() { out::paint_state(&health) } else { health };
        let body = explained.map_or(health_reasons, |all| all.iter().map(advice_text).collect());
        out::line([vec![word], body].concat().join("\n"))?;
    }
    Ok(ExitCode::from(code))
}

/// A coordinator of an earlier release names no kinds: its sentences stand for themselves.
fn problems_of(status: Status) -> Vec<Problem> {
    if !status.problems.is_empty() {
        return status.problems;
    }
    status.health_reasons.into_iter().map(|says| Problem { kind: ProblemKind::Unknown, says }).collect()
}

/// What each kind of problem means, in health's order.
fn explain(problems: &[Problem]) -> Vec<Explained> {
    let kinds = problems.chunk_by(|a, b| a.kind == b.kind);
    let explained = kinds.filter_map(|same| {
        let kind = same.first()?.kind;
        let reasons = same.iter().map(|problem| problem.says.clone()).collect();
        Some(Explained { kind, reasons, advice: kind.advice() })
    });
    explained.collect()
}

fn advice_text(explained: &Explained) -> String {
    let Explained { reasons, advice, .. } = explained;
    let mut lines = vec![String::new()];
    lines.extend(reasons.iter().cloned());
    lines.push(format!("  What it means: {}", advice.meaning));
    lines.push(format!("  What to do:    {}", advice.action));
    lines.extend(advice.commands.iter().map(|command| format!("    {command}")));
    lines.extend(advice.runbook.iter().map(|page| format!("  Runbook:       deploy/runbooks/{page}.md")));
    lines.join("\n")
}

/// `wait`.
pub fn wait(session: &Session, args: WaitArgs) -> anyhow::Result<()> {
    let client = session.client()?;
    let deadline = Instant::now() + Duration::from_secs_f64(args.timeout);
    let mut said = false;
    let last = wait_until(
        &client,
        deadline,
        |error| {
            if !std::mem::replace(&mut said, true) {
                out::note(format!("evenkeel: {error}; trying again for up to {} s", args.timeout));
            }
            false
        },
        |status| missing_for(args.what, status),
    );
    match last {
        Ok(_) => Ok(()),
        Err(missing) => {
            let what = if args.what == WaitFor::Ready { "ready" } else { "clean" };
            anyhow::bail!("not {what} after {} s: {missing}", args.timeout)
        }
    }
}

/// Polls until `missing` finds nothing or the deadline passes; then says what is missing. `on_error` hears of each
/// failed request and may say true to give up.
pub fn wait_until(
    client: &Client,
    deadline: Instant,
    mut on_error: impl FnMut(&RequestApi) -> bool,
    mut missing: impl FnMut(&Status) -> Option<String>,
) -> Result<Status, String> {
    loop {
        // A frozen coordinator must not hold the wait beyond its end; a moment is always given.
        let left = deadline.saturating_duration_since(Instant::now());
        let reason = match client.within(left.clamp(MOMENT, ANSWER_TIMEOUT)).status() {
            Ok(status) => match missing(&status) {
                None => return Ok(status),
                Some(reason) => reason,
            },
            Err(e) if !e.is_transient() || on_error(&e) => return Err(e.to_string()),
            Err(e) => e.to_string(),
        };
        if Instant::now() >= deadline {
            return Err(reason);
        }
        std::thread::sleep(POLL_EVERY.min(deadline.saturating_duration_since(Instant::now())));
    }
}

/// What keeps the cluster from being ready or clean; `None`: it is.
pub fn missing_for(what: WaitFor, status: &Status) -> Option<String> {
    let PgCounts { total, clean, degraded, unavailable, misplaced } = status.pgs;
    if !status.nodes.iter().any(|n| matches!(n.state.as_str(), "up" | "draining")) {
        return Some("no node is up".to_owned());
    }
    if unavailable > 0 {
        return Some(format!("{unavailable} of {total} PGs are unavailable"));
    }
    if what == WaitFor::Ready {
        return None;
    }
    let resync = &status.resync;
    if degraded > 0 || clean < total {
        return Some(format!("{degraded} of {total} PGs are degraded ({})", resync_line(resync)));
    }
    if misplaced > 0 {
        return Some(format!("{misplaced} of {total} PGs are misplaced ({})", resync_line(resync)));
    }
    if status.plan_pending {
        return Some("a plan waits for its debounce".to_owned());
    }
    if resync.active_moves > 0 || resync.pending_moves > 0 {
        return Some(format!("moves run ({})", resync_line(resync)));
    }
    None
}

/// `events`.
pub fn events(session: &Session, args: EventsArgs) -> anyhow::Result<()> {
    let client = session.client()?;
    let mut after = args.after;
    let mut silent_since_error = false;
    loop {
        let text = match client.get_text(&format!("/v1/events?after={after}")) {
            Ok(text) => text,
            Err(e) if args.follow && e.is_transient() => {
                if !std::mem::replace(&mut silent_since_error, true) {
                    out::note(format!("evenkeel: {e}; trying again each second"));
                }
                std::thread::sleep(Duration::from_secs(1));
                continue;
            }
            Err(e) => return Err(e.into()),
        };
        silent_since_error = false;
        let events: Vec<Event> = client.decode(&text)?;
        after = events.iter().map(|e| e.id).fold(after, u64::max);
        if session.json() && !args.follow {
            out::line(&text)?;
        } else {
            for event in &events {
                out::line(if session.json() { serde_json::to_string(event)? } else { event_line(event) })?;
            }
        }
        if !args.follow {
            return Ok(());
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn event_line(event: &Event) -> String {
    format!("{:>6}  {}  {:<16}  {}", event.id, utc(event.unix_ms), event.kind, event.text)
}

/// Unix milliseconds as `2026-01-31 12:00:00Z`.
pub fn utc(unix_ms: u64) -> String {
    let (date, time) = words::utc(unix_ms);
    format!("{date} {time}Z")
}

fn render(status: &Status, colour: bool) -> String {
    let state = |text: &str| if colour { out::paint_state(text) } else { text.to_owned() };
    let PgCounts { total, clean, degraded, unavailable, misplaced } = status.pgs;
    let mut text = format!(
        "cluster  {}, feature level {}, map version {}\nhealth   {}\n",
        status.cluster,
        status.feature_level,
        status.map_version,
        state(&status.health)
    );
    for reason in &status.health_reasons {
        text += &format!("         - {reason}\n");
    }
    text += &format!(
        "PGs      {total}: {clean} clean ({misplaced} of them misplaced), {degraded} degraded, {unavailable} \
         unavailable\n"
    );
    text += &format!(
        "space    {} used of {} ({}), {} provisioned\n",
        HumanBytes(status.used_bytes),
        HumanBytes(status.capacity_bytes),
        out::percent(status.used_bytes, status.capacity_bytes),
        HumanBytes(status.provisioned_bytes)
    );
    let f = &status.foreground;
    text += &format!(
        "guests   {} reads/s, {} writes/s, p50 {}, p99 {}\n",
        out::thousands(f.read_iops),
        out::thousands(f.write_iops),
        out::human_us(f.p50_us),
        out::human_us(f.p99_us)
    );
    let pending = if status.plan_pending { "; a plan waits for its debounce" } else { "" };
    text += &format!("resync   {}{pending}\n\n", resync_line(&status.resync));
    let mut nodes = Table::new(&["NODE", "ID", "STATE"]);
    for node in &status.nodes {
        nodes.row([node.name.clone(), node.id.to_string(), node.state.clone()]);
    }
    text += &nodes.render(colour);
    let mut disks = Table::new(&["DISK", "NODE", "STATE", ">USED", ">CAPACITY", ">FULL", ">PG REPLICAS", ">PRIMARIES"]);
    for disk in &status.disks {
        disks.row([
            disk.id.to_string(),
            disk.node.clone(),
            disk.state.clone(),
            HumanBytes(disk.used_bytes).to_string(),
            HumanBytes(disk.capacity_bytes).to_string(),
            out::percent(disk.used_bytes, disk.capacity_bytes),
            disk.pg_replicas.to_string(),
            disk.primaries.to_string(),
        ]);
    }
    if disks.is_empty() { text } else { text + "\n" + &disks.render(colour) }
}

/// Resync in one line.
pub fn resync_line(resync: &ResyncStatus) -> String {
    if resync.active_moves == 0 && resync.pending_moves == 0 {
        let paused = if resync.paused { ", paused" } else { "" };
        return format!("idle{paused}, {} copied so far", HumanBytes(resync.bytes_done));
    }
    let mut line = format!(
        "{} moves active, {} to do in all, {} left, {}/s",
        resync.active_moves,
        resync.pending_moves.max(resync.active_moves),
        HumanBytes(resync.bytes_left),
        HumanBytes(resync.rate_bytes_per_sec)
    );
    line += &eta_words(resync);
    if resync.paused {
        line += ", paused";
    } else if let Some(id) = resync.job.filter(|_| resync.job_paused) {
        line += &format!(", job {id} is paused");
    } else if !resync.limited_by.is_empty() {
        line += &format!(", limited by {}", resync.limited_by);
    }
    line
}

/// How long it will take, as the end of a line; empty: not known.
pub fn eta_words(resync: &ResyncStatus) -> String {
    match (resync.eta_seconds, resync.eta_range_seconds) {
        (Some(eta), _) if eta < 0.0 => ", diverging: guests write more than is copied".to_owned(),
        (Some(eta), Some(range)) => {
            let [low, high] = [range.low, range.high].map(out::human_seconds);
            format!(", {} to go ({low} to {high})", out::human_seconds(eta))
        }
        (Some(eta), None) => format!(", {} to go", out::human_seconds(eta)),
        (None, _) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::args::Cli;
    use super::*;
    use crate::api::types::NodeStatus;
    use crate::core::ids::NodeId;

    fn well() -> Status {
        Status {
            health: "ok".into(),
            pgs: PgCounts { total: 8, clean: 8, ..PgCounts::default() },
            nodes: vec![NodeStatus { id: NodeId(1), name: "n1".into(), state: "up".into() }],
            ..Status::default()
        }
    }

    #[test]
    fn clean_means_nothing_to_do() {
        assert_eq!(missing_for(WaitFor::Clean, &well()), None);
        let spoil: [fn(&mut Status); 5] = [
            |s| (s.pgs.clean, s.pgs.degraded) = (7, 1),
            |s| s.pgs.misplaced = 1,
            |s| s.plan_pending = true,
            |s| s.resync.active_moves = 1,
            |s| s.resync.pending_moves = 1,
        ];
        for change in spoil {
            let mut status = well();
            change(&mut status);
            assert_eq!(missing_for(WaitFor::Ready, &status), None, "{status:?}");
            assert!(missing_for(WaitFor::Clean, &status).is_some(), "{status:?}");
        }
    }

    #[test]
    fn ready_means_that_io_is_served() {
        let mut status = well();
        status.pgs = PgCounts { total: 8, clean: 7, unavailable: 1, ..PgCounts::default() };
        assert!(missing_for(WaitFor::Ready, &status).unwrap().contains("unavailable"));
        let mut status = well();
        status.nodes[0].state = "down".into();
        assert!(missing_for(WaitFor::Ready, &status).is_some());
    }

    #[test]
    fn problems_are_explained_by_kind_with_commands_that_exist() {
        let problem = |kind, says: &str| Problem { kind, says: says.to_owned() };
        let explained = explain(&[
            problem(ProblemKind::NodeDown, "Node n1 does not answer."),
            problem(ProblemKind::NodeDown, "Node n2 does not answer."),
            problem(ProblemKind::Degraded, "8 placement groups have fewer copies."),
        ]);
        assert_eq!(explained.iter().map(|e| e.reasons.len()).collect::<Vec<_>>(), [2, 1]);
        let text = advice_text(&explained[0]);
        for part in ["n2 does not answer", "What to do:", "evenkeel node remove NODE", "runbooks/EvenkeelNodeDown.md"] {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
        let earlier = Status { health: "warn".into(), health_reasons: vec!["It is dark.".into()], ..Status::default() };
        let text: String = explain(&problems_of(earlier)).iter().map(advice_text).collect();
        assert!(text.contains("It is dark.") && text.contains("another release"), "{text}");
        for kind in ProblemKind::ALL {
            for command in kind.advice().commands {
                // These have ids of their own form.
                let words = command.replace(" PG", " 1.0").replace(" JOB", " 1");
                let words = words.split_whitespace();
                assert!(Cli::try_parse_from(words).is_ok(), "{kind:?}: {command}");
            }
        }
    }

    #[test]
    fn the_status_shows_what_is_wrong() {
        let mut status = well();
        status.health = "warn".into();
        status.health_reasons = vec!["node n2 is down".into()];
        status.resync = ResyncStatus {
            active_moves: 2,
            pending_moves: 5,
            bytes_left: 1 << 30,
            rate_bytes_per_sec: 100 << 20,
            eta_seconds: Some(10.24),
            limited_by: "network".into(),
            ..ResyncStatus::default()
        };
        let text = render(&status, false);
        assert!(text.contains("- node n2 is down"), "{text}");
        assert!(text.contains("2 moves active, 5 to do in all, 1 GiB left, 100 MiB/s, 10 s to go, limited by network"));
        assert!(!text.contains('\x1b'));
        assert!(render(&status, true).contains("\x1b[33mwarn\x1b[0m"));
    }
}
