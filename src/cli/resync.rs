//! `plan` and `resync`.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::api::types::{EtaRange, PlanReply, PlanRequest, ResyncInfo, ResyncSet, SessionInfo};
use crate::core::units::HumanBytes;

use super::Session;
use super::args::{PlanArgs, ResyncCommand};
use super::client::PLAN_TIMEOUT;
use super::out::{self, Table};
use super::signals::Stop;
use super::status::resync_line;

/// Moves shown without `--all`: a screen.
const MOVES_SHOWN: usize = 20;

/// `plan`.
pub fn plan(session: &Session, args: PlanArgs) -> anyhow::Result<()> {
    let client = session.client()?;
    let question = PlanRequest { add_node: args.add_node, remove_node: args.remove_node, replicas: args.replicas };
    let text = client.within(PLAN_TIMEOUT).post_text("/v1/plan", &question)?;
    session.show(&client, &text, |plan: PlanReply| render_plan(&plan, args.all))
}

fn render_plan(plan: &PlanReply, all: bool) -> String {
    let mut text = String::new();
    if plan.moves.is_empty() {
        text += "nothing would move\n";
    } else {
        let mut table = Table::new(&["PG", "POOL", "FROM", "TO", ">BYTES", "CLASS"]);
        let shown = if all { plan.moves.len() } else { MOVES_SHOWN };
        for m in plan.moves.iter().take(shown) {
            table.row([
                m.pg.to_string(),
                m.pool.clone(),
                m.from.map_or("(new copy)".to_owned(), |d| d.to_string()),
                m.to.clone(),
                HumanBytes(m.bytes).to_string(),
                m.class.name().to_owned(),
            ]);
        }
        text += &table.render(out::colour());
        if plan.moves.len() > shown {
            text += &format!("… and {} more (--all shows them)\n", plan.moves.len() - shown);
        }
        text += &format!(
            "\n{} moves, {}; lower bound {} moves\n",
            plan.totals.moves,
            HumanBytes(plan.totals.bytes),
            plan.totals.lower_bound_moves
        );
        text += &format!("redundant in  {}\n", eta(&plan.eta_seconds.redundant));
        text += &format!("balanced in   {}\n", eta(&plan.eta_seconds.balanced));
    }
    let (before, after) = (&plan.balance.before, &plan.balance.after);
    text += &format!(
        "balance       fullest disk {:.2} × the mean now, {:.2} × after; farthest from its share {:.1} PGs now, {:.1} after\n",
        before.max_over_mean, after.max_over_mean, before.max_deviation_pgs, after.max_deviation_pgs
    );
    if plan.missing_capacity_bytes > 0 {
        text += &format!("missing       {} to hold every copy\n", HumanBytes(plan.missing_capacity_bytes));
    }
    for rejected in plan.rejected.iter().take(if all { usize::MAX } else { MOVES_SHOWN }) {
        text += &format!("not possible  {}: {}\n", rejected.what, rejected.reason);
    }
    text
}

fn eta(range: &EtaRange) -> String {
    let [low, likely, high] = [range.low, range.likely, range.high].map(out::human_seconds);
    format!("{likely} ({low} to {high})")
}

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
            target_p99_us: set.target_p99_us,
            paused: None,
        },
        ResyncCommand::Pause => ResyncSet { paused: Some(true), ..ResyncSet::default() },
        ResyncCommand::Resume => ResyncSet { paused: Some(false), ..ResyncSet::default() },
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
    let mut text = format!(
        "in effect: cap {cap}, floor {}/s, {target}{}\n",
        HumanBytes(info.floor_bytes_per_sec),
        if info.paused { ", paused" } else { "" }
    );
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
    use crate::api::types::{PlanMove, PlanTotals};
    use crate::core::cluster::ResyncClass;
    use crate::core::ids::{DiskId, PgId, PoolId};

    #[test]
    fn a_long_plan_is_cut_and_says_so() {
        let one = |index| PlanMove {
            pool: "default".into(),
            pg: PgId { pool: PoolId(1), index },
            from: (index > 0).then_some(DiskId(1)),
            to: "d4".into(),
            bytes: 4 << 20,
            class: ResyncClass::Rebalance,
        };
        let plan = PlanReply {
            moves: (0..25).map(one).collect(),
            totals: PlanTotals { moves: 25, bytes: 100 << 20, lower_bound_moves: 25 },
            ..PlanReply::default()
        };
        let text = render_plan(&plan, false);
        assert!(text.contains("… and 5 more") && text.contains("(new copy)"), "{text}");
        assert!(text.contains("25 moves, 100 MiB; lower bound 25 moves"), "{text}");
        assert!(!render_plan(&plan, true).contains("more (--all"));
        assert!(render_plan(&PlanReply::default(), false).starts_with("nothing would move"));
    }

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
        assert!(text.contains("cap 20 MiB/s, floor 8 MiB/s, p99 ≤ 2 × the quiet one"), "{text}");
        assert!(text.contains("not yet taken by: n3"), "{text}");
    }
}
