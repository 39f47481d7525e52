//! `simulate`: a map file's future, as a table, JSON or CSV.

use crate::core::placement::{Rates, write_map};
use crate::core::simulate::{Ended, Event, Options, Report, Row, run};
use crate::core::units::{HumanBytes, parse_seconds_of};

use super::Session;
use super::args::{OutputFormat, SimulateArgs};
use super::out::{self, Table};
use super::plan::{read_map, write_file};

/// Columns of the CSV form.
const CSV_COLUMNS: &str = "at_seconds,events,pgs_clean,pgs_degraded,pgs_unavailable,pgs_at_risk,pgs_misplaced,at_risk_bytes,\
degraded_bytes,misplaced_bytes,done_bytes,left_bytes,running,waiting,rate_bytes_per_sec,eta_redundant_low,eta_redundant_likely,\
eta_redundant_high,actual_redundant,eta_balanced_low,eta_balanced_likely,eta_balanced_high,actual_balanced";

/// `simulate`.
pub fn simulate(session: &Session, args: &SimulateArgs) -> anyhow::Result<()> {
    let events = args.at.chunks(2).map(|pair| Ok(Event::new(parse_seconds_of(&pair[0])?, &pair[1])?));
    let events: Vec<Event> = events.collect::<anyhow::Result<_>>()?;
    let map = read_map(&args.map)?;
    let rates = Rates::of_classes(map.classes());
    let options = Options {
        rates: Rates {
            disk_bytes_per_sec: args.rates.disk_rate.unwrap_or(rates.disk_bytes_per_sec),
            foreground_share: args.rates.foreground_share.unwrap_or(rates.foreground_share),
            node_bytes_per_sec: args.link_rate,
            ..rates
        },
        debounce_seconds: args.debounce,
        grace_seconds: args.grace,
        until: args.until,
        ..Options::default()
    };
    let (report, map) = run(map, &events, options)?;
    if let Some(out) = &args.write_map {
        write_file(out, &write_map(&map, &map.input.current))?;
    }
    match session.global.output {
        OutputFormat::Json => out::line(serde_json::to_string(&report)?),
        OutputFormat::Csv => out::line(csv(&report)),
        OutputFormat::Table => out::line(render(&report)),
    }
}

fn render(report: &Report) -> String {
    let titles = [
        ">AT",
        ">AT RISK",
        ">DEGRADED",
        ">MISPLACED",
        ">RATE",
        ">ACTIVE",
        ">LEFT",
        ">REDUNDANT IN",
        ">WAS",
        ">BALANCED IN",
        ">WAS",
        "EVENTS",
    ];
    let mut table = Table::new(&titles);
    let seconds = |s: f64| if s < 0.0 { "diverging".to_owned() } else { out::human_seconds(s) };
    let bytes = |b: u64| if b == 0 { "-".to_owned() } else { HumanBytes(b).to_string() };
    for row in &report.timeline {
        let told = |f: &dyn Fn(&Row) -> Option<f64>| f(row).map_or("-".to_owned(), seconds);
        let active = row.running + row.waiting > 0;
        table.row([
            out::human_seconds(row.at_seconds),
            bytes(row.bytes.at_risk),
            bytes(row.bytes.degraded),
            bytes(row.bytes.misplaced),
            if active { format!("{}/s", HumanBytes(row.rate_bytes_per_sec)) } else { "-".to_owned() },
            if active { format!("{} of {}", row.running, row.running + row.waiting) } else { "-".to_owned() },
            bytes(row.bytes.left),
            told(&|r| r.eta_seconds.map(|e| e.redundant.likely)),
            told(&|r| r.actual_seconds.redundant),
            told(&|r| r.eta_seconds.map(|e| e.balanced.likely)),
            told(&|r| r.actual_seconds.balanced),
            row.events.join("; "),
        ]);
    }
    let mut text = table.render(out::colour()) + "\n";
    for job in &report.jobs {
        let least = job.lower_bound_moves;
        text += &format!("plan {}: {} moves (lower bound {least}), {}", job.id, job.moves, HumanBytes(job.bytes));
        text += &match job.done_at_seconds {
            Some(at) => format!(", done after {}", seconds(at - job.at_seconds)),
            None => ", not done".to_owned(),
        };
        for (what, told) in [("redundant", job.told_redundant), ("balanced", job.told_balanced)] {
            if let Some((told, actual)) = told.and_then(|t| Some((t, t.actual?))) {
                text += &format!("; told at 10 %: {what} in {}, was {}", seconds(told.likely), seconds(actual));
            }
        }
        text.push('\n');
    }
    let at = |t: Option<f64>| t.map_or("not reached".to_owned(), |t| format!("after {}", seconds(t)));
    text += &format!("redundant  {}\n", at(report.redundant_at_seconds));
    text += &format!("balanced   {}\n", at(report.balanced_at_seconds));
    text += &format!("copied     {}", HumanBytes(report.bytes_copied));
    if report.bytes_wasted > 0 {
        text += &format!(", of it {} for plans that were replaced", HumanBytes(report.bytes_wasted));
    }
    text.push('\n');
    if report.pgs_lost > 0 {
        text += &format!("lost       {} PGs have no copy left\n", report.pgs_lost);
    }
    if report.missing_capacity_bytes > 0 {
        text += &format!("missing    {} to hold every copy\n", HumanBytes(report.missing_capacity_bytes));
        for missing in &report.missing_capacity {
            text += &format!("           - {missing}\n");
        }
    }
    if report.ended == Ended::NoRate {
        text += "ended      foreground IO takes everything: resync would never end\n";
    }
    for rejected in report.rejected.iter().take(20) {
        text += &format!("not possible  {}: {}\n", rejected.what, rejected.reason);
    }
    text
}

fn csv(report: &Report) -> String {
    let mut text = CSV_COLUMNS.to_owned() + "\n";
    let number = |v: Option<f64>| v.map_or(String::new(), |v| format!("{v:.1}"));
    for row in &report.timeline {
        let (p, b, eta) = (&row.pgs, &row.bytes, row.eta_seconds);
        let counts = [p.clean, p.degraded, p.unavailable, p.at_risk, p.misplaced];
        let sizes =
            [b.at_risk, b.degraded, b.misplaced, b.done, b.left, row.running, row.waiting, row.rate_bytes_per_sec];
        let mut cells =
            vec![format!("{:.1}", row.at_seconds), format!("\"{}\"", row.events.join("; ").replace('"', "\"\""))];
        cells.extend(counts.into_iter().chain(sizes).map(|n| n.to_string()));
        for (told, actual) in [
            (eta.map(|e| e.redundant), row.actual_seconds.redundant),
            (eta.map(|e| e.balanced), row.actual_seconds.balanced),
        ] {
            cells.extend([told.map(|t| t.low), told.map(|t| t.likely), told.map(|t| t.high), actual].map(number));
        }
        text += &(cells.join(",") + "\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_has_every_column() {
        let events = vec!["lose-node:\"n1\"".to_owned()];
        let report = Report { timeline: vec![Row { events, ..Row::default() }], ..Report::default() };
        let text = csv(&report);
        let columns: Vec<usize> = text.lines().map(|l| l.split(',').count()).collect();
        assert_eq!(columns, [23, 23]);
        assert!(text.contains("\"lose-node:\"\"n1\"\"\""));
        assert!(render(&report).contains("REDUNDANT IN"));
    }
}
