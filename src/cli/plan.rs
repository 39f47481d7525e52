//! `plan`, on the live cluster or on a map file, and `meta export`.

use std::io::Read;
use std::path::Path;

use anyhow::Context;

use crate::api::types::{PlanReply, PlanRequest};
use crate::core::placement::{self as place, ClusterMap, MAP_BYTES_MAX, Rates, Span};
use crate::core::units::HumanBytes;

use super::Session;
use super::args::PlanArgs;
use super::client::{Client, PLAN_TIMEOUT};
use super::out::{self, Table};

/// Moves shown without `--all`: a screen.
const MOVES_SHOWN: usize = 20;

/// `plan`.
pub fn plan(session: &Session, args: PlanArgs) -> anyhow::Result<()> {
    let question = PlanRequest {
        add_node: args.add_node,
        remove_node: args.remove_node,
        undrain_node: args.undrain_node,
        replicas: args.replicas,
        failure_domain: args.failure_domain,
        class: args.class,
        disk_rate_bytes_per_sec: args.rates.disk_rate,
        foreground_share: args.rates.foreground_share,
        write_map: args.write_map.is_some(),
    };
    let mut answer: PlanReply = match &args.map {
        Some(file) => {
            let map = read_map(file)?;
            let rates = Rates::of_classes(map.classes());
            place::answer(map, &question, rates)?
        }
        None => session.client()?.within(PLAN_TIMEOUT).post("/v1/plan", &question)?,
    };
    if let (Some(out), Some(map)) = (&args.write_map, answer.map.take()) {
        write_file(out, &map)?;
    }
    session.show_one(&answer, |answer| render(answer, args.all))
}

/// `--dry-run` of a change that moves data: what would move.
pub fn dry_run(session: &Session, client: &Client, question: &PlanRequest) -> anyhow::Result<()> {
    let answer: PlanReply = client.within(PLAN_TIMEOUT).post("/v1/plan", question)?;
    session
        .show_one(&answer, |answer| format!("dry run, nothing was changed; it would mean:\n{}", render(answer, false)))
}

/// `meta export`.
pub fn export(session: &Session) -> anyhow::Result<()> {
    out::line(session.client()?.within(PLAN_TIMEOUT).get_text("/v1/map/export")?)
}

/// Reads a map file; what is wrong with it is told with the file's name.
pub fn read_map(file: &Path) -> anyhow::Result<ClusterMap> {
    let name = || format!("map file {}", file.display());
    let mut bytes = Vec::new();
    // One byte more than is allowed tells that there are more, whatever kind of file it is.
    let source = std::fs::File::open(file).with_context(|| format!("can't open {}", name()))?;
    let known = source.metadata().map_or(0, |m| m.len());
    anyhow::ensure!(
        known <= MAP_BYTES_MAX as u64,
        "{}: it has {}; the most is {}",
        name(),
        HumanBytes(known),
        HumanBytes(MAP_BYTES_MAX as u64)
    );
    let read = source.take(MAP_BYTES_MAX as u64 + 1).read_to_end(&mut bytes);
    read.with_context(|| format!("can't read {}", name()))?;
    let text = String::from_utf8(bytes).map_err(|e| {
        let line = e.as_bytes()[..e.utf8_error().valid_up_to()].iter().filter(|b| **b == b'\n').count() + 1;
        anyhow::anyhow!("{}: line {line} is not UTF-8 text", name())
    })?;
    place::read_map(&text).with_context(name)
}

/// Writes a result; the directory must be there.
pub fn write_file(out: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(out, text).with_context(|| format!("can't write {}", out.display()))
}

fn render(plan: &PlanReply, all: bool) -> String {
    let mut text = String::new();
    if plan.moves.is_empty() {
        text += if plan.removals.is_empty() { "nothing would move\n" } else { "nothing would be copied\n" };
    } else {
        let mut table = Table::new(&["POOL", ">PG", "FROM", "TO", ">BYTES", "CLASS"]);
        let shown = if all { plan.moves.len() } else { MOVES_SHOWN };
        for m in plan.moves.iter().take(shown) {
            table.row([
                m.pool.clone(),
                m.pg.to_string(),
                m.from.as_ref().map_or("(new copy)".to_owned(), ToString::to_string),
                m.to.to_string(),
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
        let short = if plan.missing_capacity_bytes > 0 { ", as far as there is room" } else { "" };
        text += &format!("redundant in  {}{short}\n", span(&plan.eta_seconds.redundant));
        text += &format!("balanced in   {}\n", span(&plan.eta_seconds.balanced));
    }
    if !plan.removals.is_empty() {
        let (n, freed) = (plan.totals.removals, HumanBytes(plan.totals.freed_bytes));
        text += &format!("given up      {n} copies beyond their pool's count, {freed} come free\n");
        if all {
            let mut table = Table::new(&["POOL", ">PG", "GIVES UP", ">BYTES"]);
            for r in &plan.removals {
                table.row([r.pool.clone(), r.pg.to_string(), r.disk.to_string(), HumanBytes(r.bytes).to_string()]);
            }
            text += &table.render(out::colour());
        }
    }
    let (before, after) = (&plan.balance.before, &plan.balance.after);
    text += &format!(
        "balance       fullest disk {:.2} × the mean now, {:.2} × after; farthest from its share {:.1} PGs now, {:.1} after\n",
        before.max_over_mean, after.max_over_mean, before.max_deviation_pgs, after.max_deviation_pgs
    );
    if plan.missing_capacity_bytes > 0 {
        text += &format!("missing       {} to hold every copy\n", HumanBytes(plan.missing_capacity_bytes));
        for missing in &plan.missing_capacity {
            text += &format!("              - {missing}\n");
        }
    }
    for rejected in plan.rejected.iter().take(if all { usize::MAX } else { MOVES_SHOWN }) {
        text += &format!("not possible  {}: {}\n", rejected.what, rejected.reason);
    }
    text
}

/// A range of time for people.
pub fn span(range: &Span) -> String {
    if range.is_diverging() {
        return "never: diverging, foreground writes add more than resync works off".to_owned();
    }
    let [low, likely, high] = [range.low, range.likely, range.high].map(out::human_seconds);
    format!("{likely} ({low} to {high})")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::placement::{DiskName, MoveClass, NamedMove, NamedRemoval, Totals};

    #[test]
    fn a_long_plan_is_cut_and_says_so() {
        let one = |pg| NamedMove {
            pool: "default".into(),
            pg,
            from: (pg > 0).then_some(DiskName::Number(1)),
            to: DiskName::Text("d4".into()),
            bytes: 4 << 20,
            class: MoveClass::Rebalance,
        };
        let plan = PlanReply {
            moves: (0..25).map(one).collect(),
            totals: Totals { moves: 25, bytes: 100 << 20, lower_bound_moves: 25, ..Totals::default() },
            ..PlanReply::default()
        };
        let text = render(&plan, false);
        assert!(text.contains("… and 5 more") && text.contains("(new copy)"), "{text}");
        assert!(text.contains("25 moves, 100 MiB; lower bound 25 moves"), "{text}");
        assert!(!render(&plan, true).contains("more (--all"));
        assert!(render(&PlanReply::default(), false).starts_with("nothing would move"));
        let given_up = NamedRemoval { pool: "default".into(), pg: 3, disk: DiskName::Number(2), bytes: 4 << 20 };
        let totals = Totals { removals: 1, freed_bytes: 4 << 20, ..Totals::default() };
        let fewer = PlanReply { removals: vec![given_up], totals, ..PlanReply::default() };
        let text = render(&fewer, true);
        assert!(text.starts_with("nothing would be copied\ngiven up      1 copies beyond"), "{text}");
        assert!(text.contains("4 MiB come free") && text.contains("GIVES UP"), "{text}");
    }

    #[test]
    fn losing_ground_is_said() {
        assert!(span(&Span { low: -2.0, likely: -2.0, high: -2.0 }).contains("diverging"));
        assert_eq!(span(&Span { low: 60.0, likely: 70.0, high: 90.0 }), "1 min 10 s (1 min 0 s to 1 min 30 s)");
    }

    #[test]
    fn a_bad_map_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let told = |name: &str, bytes: &[u8]| {
            let file = dir.path().join(name);
            std::fs::write(&file, bytes).unwrap();
            format!("{:#}", read_map(&file).unwrap_err())
        };
        assert!(told("a", b"{\n \"pools\": 3}").contains("line 2"));
        assert!(told("b", b"{}\n\n\xff").contains("line 3 is not UTF-8"));
        let large = dir.path().join("large");
        std::fs::File::create(&large).unwrap().set_len(100 << 20).unwrap();
        let error = format!("{:#}", read_map(&large).unwrap_err());
        assert!(error.contains("large") && error.contains("100 MiB; the most is 64 MiB"), "{error}");
        assert!(format!("{:#}", read_map(&dir.path().join("none")).unwrap_err()).contains("can't open map file"));
    }
}
