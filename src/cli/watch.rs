//! `resync watch`: a bar for each class until nothing moves.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::api::types::{ClassProgress, DeadlineInfo, ResyncInfo, ResyncStatus};
use crate::core::cluster::ResyncClass;
use crate::core::units::HumanBytes;

use super::Session;
use super::out;
use super::resync::guests;
use super::signals::Stop;
use super::status::resync_line;

/// A line of `-o json`: the sum as in `status`, and what belongs to it.
#[derive(Serialize, schemars::JsonSchema)]
pub struct Line<'a> {
    #[serde(flatten)]
    sum: &'a ResyncStatus,
    /// What each class that has work does.
    progress: &'a [ClassProgress],
    /// Guests' p99, microseconds, on the disk that is furthest from its target; `null`: no guest, or not known yet.
    foreground_p99_us: Option<u64>,
    /// That disk's target, microseconds.
    foreground_target_us: Option<u64>,
    /// If one is set.
    deadline: Option<&'a DeadlineInfo>,
}

/// Shows progress until nothing moves.
pub fn watch(session: &Session) -> anyhow::Result<()> {
    let client = session.client()?;
    let stop = Stop::on_signals()?;
    let mut bars = (std::io::stderr().is_terminal() && !session.json()).then(Bars::new);
    let mut said_unreachable = false;
    loop {
        let answer = client.status().and_then(|status| Ok((status, client.get::<ResyncInfo>("/v1/resync")?)));
        match answer {
            Ok((status, info)) => {
                said_unreachable = false;
                if let Some(bars) = &mut bars {
                    bars.show(&info);
                } else if session.json() {
                    out::line(serde_json::to_string(&line_of(&info))?)?;
                } else {
                    out::line(words(&info).join("; "))?;
                }
                let busy = info.status.active_moves > 0 || info.status.pending_moves > 0 || status.plan_pending;
                if !busy {
                    if let Some(bars) = bars {
                        bars.all.clear()?;
                        out::line(resync_line(&info.status))?;
                    }
                    return Ok(());
                }
            }
            Err(e) if e.is_transient() => {
                if !std::mem::replace(&mut said_unreachable, true) {
                    let text = format!("evenkeel: {e}; trying again each second");
                    match &bars {
                        Some(bars) => bars.all.println(&text)?,
                        None => out::note(&text),
                    }
                }
            }
            Err(e) => return Err(e.into()),
        }
        if stop.sleep(Duration::from_secs(1)) {
            return Ok(());
        }
    }
}

fn line_of(info: &ResyncInfo) -> Line<'_> {
    Line {
        sum: &info.status,
        progress: &info.progress,
        foreground_p99_us: info.foreground_p99_us,
        foreground_target_us: info.foreground_target_us,
        deadline: info.deadline.as_ref(),
    }
}

/// All of it in words: the sum, each class, the guests, the deadline.
fn words(info: &ResyncInfo) -> Vec<String> {
    let mut words = vec![resync_line(&info.status)];
    words.extend(info.progress.iter().map(|p| format!("{}: {}", p.class.name(), class_words(p))));
    words.extend(guests(info));
    words.extend(info.deadline.as_ref().map(|d| format!("deadline {}: {}", d.at, d.verdict)));
    words
}

fn class_words(p: &ClassProgress) -> String {
    let eta = p.eta_seconds.map_or(String::new(), |s| format!(", {} to go", out::human_seconds(s)));
    format!(
        "{} of {} moves, {} left, {}/s{eta}, limited by {}",
        p.moves_active,
        p.moves_active + p.moves_waiting,
        HumanBytes(p.bytes_left),
        HumanBytes(p.rate_bytes_per_sec),
        p.limited_by
    )
}

/// What is on the terminal.
struct Bars {
    all: MultiProgress,
    /// The sum; guests and deadline below the classes.
    head: ProgressBar,
    foot: ProgressBar,
    /// A class's bar, and its whole: what was left when it was first seen, or more if it grew.
    classes: BTreeMap<ResyncClass, (ProgressBar, u64)>,
}

impl Bars {
    fn new() -> Self {
        let all = MultiProgress::new();
        let text = |bar: ProgressBar| {
            if let Ok(style) = ProgressStyle::with_template("{msg}") {
                bar.set_style(style);
            }
            bar
        };
        let (head, foot) = (all.add(text(ProgressBar::new(0))), all.add(text(ProgressBar::new(0))));
        Bars { all, head, foot, classes: BTreeMap::new() }
    }

    fn show(&mut self, info: &ResyncInfo) {
        self.head.set_message(resync_line(&info.status));
        for p in &info.progress {
            let (all, foot) = (&self.all, &self.foot);
            let (bar, whole) = self.classes.entry(p.class).or_insert_with(|| {
                let bar = all.insert_before(foot, ProgressBar::new(0));
                if let Ok(style) = ProgressStyle::with_template("{prefix:>15} [{bar:30}] {percent:>3} %  {msg}") {
                    bar.set_style(style.progress_chars("=> "));
                }
                bar.set_prefix(p.class.name());
                (bar, 0)
            });
            *whole = (*whole).max(p.bytes_left);
            bar.set_length(*whole);
            bar.set_position(*whole - p.bytes_left);
            bar.set_message(class_words(p));
        }
        self.classes.retain(|class, (bar, _)| {
            let there = info.progress.iter().any(|p| p.class == *class);
            if !there {
                bar.finish_and_clear();
            }
            there
        });
        let deadline = info.deadline.as_ref().map(|d| format!("deadline {}: {}", d.at, d.verdict));
        self.foot.set_message(guests(info).into_iter().chain(deadline).collect::<Vec<_>>().join("; "));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info() -> ResyncInfo {
        let progress = ClassProgress {
            class: ResyncClass::Repair,
            moves_active: 3,
            moves_waiting: 4,
            bytes_left: 5 << 20,
            rate_bytes_per_sec: 1 << 20,
            eta_seconds: Some(5.0),
            limited_by: "cap".into(),
        };
        ResyncInfo {
            status: ResyncStatus { active_moves: 3, pending_moves: 7, bytes_left: 5 << 20, ..ResyncStatus::default() },
            progress: vec![progress],
            foreground_p99_us: Some(900),
            foreground_target_us: Some(2000),
            deadline: Some(DeadlineInfo { at: "18:00".into(), verdict: "holds".into(), ..DeadlineInfo::default() }),
            ..ResyncInfo::default()
        }
    }

    #[test]
    fn every_class_guests_and_the_deadline_are_told() {
        let text = words(&info()).join("; ");
        for part in [
            "repair: 3 of 7 moves, 5 MiB left, 1 MiB/s, 5.0 s to go, limited by cap",
            "guests' p99 900 µs on the busiest disk, within the target of 2.0 ms",
            "deadline 18:00: holds",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let json = serde_json::to_value(line_of(&info())).unwrap();
        assert_eq!(
            (json["bytes_left"].as_u64(), json["progress"][0]["class"].as_str()),
            (Some(5 << 20), Some("repair"))
        );
    }

    #[test]
    fn a_bar_never_goes_beyond_its_whole_and_ends_with_its_class() {
        let mut bars = Bars::new();
        let mut seen = info();
        for left in [100, 40, 160, 0] {
            seen.progress[0].bytes_left = left;
            bars.show(&seen);
            let (bar, whole) = &bars.classes[&ResyncClass::Repair];
            assert_eq!((bar.length(), bar.position()), (Some(*whole), whole - left));
        }
        seen.progress.clear();
        bars.show(&seen);
        assert!(bars.classes.is_empty());
    }
}
