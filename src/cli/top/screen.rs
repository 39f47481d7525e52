//! What the operator chose, and the picture that follows from it.
//!
//! Nothing here asks or waits: keys and news come in, a picture goes out, so that tests see what an operator sees.

use std::time::Instant;

use ratatui::Frame;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span, Text};
use ratatui::widgets::{Cell, Gauge, Paragraph, Row, Table};

use super::data::{News, Seen};
use super::views::{self, Column, Rates};
use crate::api::types::ResyncStatus;
use crate::cli::args::{TopArgs, TopView};
use crate::cli::out::{self, Grade, human_us};
use crate::cli::status::eta_words;
use crate::core::units::HumanBytes;

const VIEWS: [(TopView, &str); 4] =
    [(TopView::Nodes, "nodes"), (TopView::Disks, "disks"), (TopView::Moves, "moves"), (TopView::Volumes, "volumes")];
const KEYS: &str = " 1-4 Tab view   ← → column   r reverse   / filter   space hold   ? help   q end";
const HELP: [&str; 12] = [
    "1 2 3 4, Tab, Shift-Tab          nodes, disks, moves, volumes",
    "← →, h l                         the column to sort by",
    "r                                the other way round",
    "↑ ↓, k j, PgUp PgDn, Home End    scroll",
    "/                                only rows with a text; Esc: all of them again",
    "space                            hold the picture, and let it go on",
    "q, Esc, Ctrl-C                   end",
    "",
    "Latencies of nodes are those of their placement groups' primaries; those of",
    "volumes are what the guest sees, with all that it waits for. A disk's target is",
    "what the throttle aims at, and COPIES MAY what it lets copies take of the disk",
    "now (-: no limit).",
];
/// Older than this, what is shown is dated.
const FRESH_SECONDS: u64 = 3;

/// Whether the command goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// It does.
    GoOn,
    /// The operator has ended it.
    End,
}

/// By which column a view is sorted, and whether the largest stands first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sort {
    column: usize,
    down: bool,
}

/// The choice and the last news.
pub struct Screen {
    view: TopView,
    /// Of each view, in the order of [`VIEWS`].
    sorts: [Sort; VIEWS.len()],
    filter: String,
    typing: bool,
    help: bool,
    held: bool,
    /// The first row shown.
    offset: usize,
    /// Rows that fit, as last drawn.
    page: usize,
    colour: bool,
    seen: Option<(Instant, Seen)>,
    rates: Rates,
    /// Why the last look failed.
    problem: Option<String>,
}

impl Screen {
    /// Nothing was seen yet.
    ///
    /// # Errors
    /// The view has no such column.
    pub fn new(args: &TopArgs, colour: bool) -> anyhow::Result<Screen> {
        let mut sorts = [Sort { column: 0, down: false }; VIEWS.len()];
        if let Some(text) = &args.sort {
            sorts[args.view as usize] = parse_sort(text, views::columns(args.view))?;
        }
        Ok(Screen {
            view: args.view,
            sorts,
            filter: String::new(),
            typing: false,
            help: false,
            held: false,
            offset: 0,
            page: 1,
            colour,
            seen: None,
            rates: Rates::default(),
            problem: None,
        })
    }

    /// What is looked at.
    pub fn view(&self) -> TopView {
        self.view
    }

    /// The coordinator has answered once.
    pub fn has_seen(&self) -> bool {
        self.seen.is_some()
    }

    /// Takes what the coordinator said.
    pub fn take(&mut self, news: News) {
        match news.outcome {
            Err(e) => self.problem = Some(e.to_string()),
            Ok(_) if self.held => self.problem = None,
            Ok(mut seen) => {
                let before = self.seen.take();
                let since = before.as_ref().map_or(0.0, |(at, _)| news.at.duration_since(*at).as_secs_f64());
                self.rates.look(&seen.resync.sessions, since);
                // Not asked for with the other views; what was known stays until it is looked at again.
                seen.volumes = seen.volumes.or(before.and_then(|(_, earlier)| earlier.volumes));
                (self.seen, self.problem) = (Some((news.at, seen)), None);
            }
        }
    }

    /// A key.
    pub fn key(&mut self, key: KeyEvent) -> Then {
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        if control && matches!(key.code, KeyCode::Char('c' | 'd')) {
            return Then::End;
        }
        if self.typing {
            self.typed(key.code);
            return Then::GoOn;
        }
        match key.code {
            KeyCode::Char('q') => return Then::End,
            KeyCode::Esc if self.help => self.help = false,
            KeyCode::Esc if !self.filter.is_empty() => self.filter.clear(),
            KeyCode::Esc => return Then::End,
            KeyCode::Char('?') => self.help = !self.help,
            KeyCode::Char(c @ '1'..='4') => self.look_at(c as usize - '1' as usize),
            KeyCode::Tab => self.look_at((self.view as usize + 1) % VIEWS.len()),
            KeyCode::BackTab => self.look_at((self.view as usize + VIEWS.len() - 1) % VIEWS.len()),
            KeyCode::Left | KeyCode::Char('h') => self.sort_by(-1),
            KeyCode::Right | KeyCode::Char('l') => self.sort_by(1),
            KeyCode::Char('r') => {
                let sort = &mut self.sorts[self.view as usize];
                sort.down = !sort.down;
            }
            KeyCode::Char('/') => self.typing = true,
            KeyCode::Char(' ') => self.held = !self.held,
            KeyCode::Up | KeyCode::Char('k') => self.offset = self.offset.saturating_sub(1),
            KeyCode::Down | KeyCode::Char('j') => self.offset += 1,
            KeyCode::PageUp => self.offset = self.offset.saturating_sub(self.page),
            KeyCode::PageDown => self.offset += self.page,
            KeyCode::Home => self.offset = 0,
            KeyCode::End => self.offset = usize::MAX / 2,
            _ => {}
        }
        Then::GoOn
    }

    fn typed(&mut self, code: KeyCode) {
        match code {
            KeyCode::Enter => self.typing = false,
            KeyCode::Esc => {
                self.typing = false;
                self.filter.clear();
            }
            KeyCode::Backspace => drop(self.filter.pop()),
            KeyCode::Char(c) if self.filter.len() < 64 => self.filter.push(c),
            _ => {}
        }
        self.offset = 0;
    }

    fn look_at(&mut self, index: usize) {
        (self.view, self.offset) = (VIEWS[index].0, 0);
    }

    fn sort_by(&mut self, step: isize) {
        let columns = views::columns(self.view);
        let sort = &mut self.sorts[self.view as usize];
        sort.column = (sort.column as isize + step).rem_euclid(columns.len() as isize) as usize;
        (sort.down, self.offset) = (columns[sort.column].number, 0);
    }

    /// The picture.
    pub fn draw(&mut self, frame: &mut Frame<'_>) {
        let problem = self.problem_line();
        let heights = [
            Constraint::Length(4),
            Constraint::Length(1),
            Constraint::Length(u16::from(problem.is_some())),
            Constraint::Length(1),
            Constraint::Min(1),
            Constraint::Length(1),
        ];
        let [head, bar, why, tabs, body, foot] = Layout::vertical(heights).areas(frame.area());
        self.draw_head(frame, head);
        self.draw_bar(frame, bar);
        if let Some(line) = problem {
            frame.render_widget(Paragraph::new(line), why);
        }
        frame.render_widget(Paragraph::new(self.tabs()), tabs);
        if self.help {
            frame.render_widget(Paragraph::new(Text::from_iter(HELP)), body);
        } else {
            self.draw_rows(frame, body);
        }
        let foot_text = match self.typing {
            true => format!(" filter: {}▏  Enter keeps it, Esc drops it", self.filter),
            false if !self.filter.is_empty() => format!(" only {:?} (Esc: all)  {}", self.filter, KEYS.trim_start()),
            false => KEYS.to_owned(),
        };
        frame.render_widget(Paragraph::new(foot_text).style(Style::new().add_modifier(Modifier::DIM)), foot);
    }

    fn draw_head(&self, frame: &mut Frame<'_>, area: Rect) {
        let Some((at, seen)) = &self.seen else {
            frame.render_widget(Paragraph::new("evenkeel top: asking the coordinator …"), area);
            return;
        };
        let status = &seen.status;
        let mut health = vec![
            Span::raw("evenkeel top   cluster "),
            Span::raw(status.cluster.chars().take(8).collect::<String>()),
            Span::raw(": "),
            Span::styled(status.health.clone(), self.state_style(&status.health).add_modifier(Modifier::BOLD)),
        ];
        let nodes_up = status.nodes.iter().filter(|n| n.state == "up").count();
        let present = status.nodes.iter().filter(|n| n.state != "removed").count();
        health.push(Span::raw(format!("   {nodes_up} of {present} nodes up")));
        let pgs = &status.pgs;
        let used = out::percent(status.used_bytes, status.capacity_bytes);
        let mut space = vec![Span::raw(format!("PGs      {} of {} clean", pgs.clean, pgs.total))];
        for (n, what) in [(pgs.degraded, "degraded"), (pgs.unavailable, "unavailable"), (pgs.misplaced, "misplaced")] {
            if n > 0 {
                space.push(Span::raw(", "));
                space.push(Span::styled(format!("{n} {what}"), self.state_style(what)));
            }
        }
        space.push(Span::raw(format!("   used {used} of {}", HumanBytes(status.capacity_bytes))));
        let guests = &status.foreground;
        let aim = seen.resync.foreground_target_us.map_or(String::new(), |us| format!(", target {}", human_us(us)));
        let guests = format!(
            "guests   {} reads/s, {} writes/s, p50 {}, p99 {}{aim}",
            out::thousands(guests.read_iops),
            out::thousands(guests.write_iops),
            human_us(guests.p50_us),
            human_us(guests.p99_us)
        );
        let copies = format!("copies   {}", copies(&status.resync));
        let text = vec![Line::from(health), Line::from(space), Line::from(guests), Line::from(copies)];
        frame.render_widget(Paragraph::new(text), area);
        let age = at.elapsed().as_secs();
        let note = match (self.held, age > FRESH_SECONDS) {
            (true, _) => format!("held, {age} s old"),
            (false, true) => format!("{age} s old"),
            (false, false) => return,
        };
        let note = Paragraph::new(Span::styled(note, self.coloured(Color::Yellow).add_modifier(Modifier::REVERSED)));
        frame.render_widget(note.alignment(Alignment::Right), Rect { height: 1, ..area });
    }

    fn draw_bar(&self, frame: &mut Frame<'_>, area: Rect) {
        let Some((_, seen)) = &self.seen else { return };
        let r = &seen.status.resync;
        if r.bytes_total == 0 {
            return;
        }
        let part = 1.0 - (r.bytes_left as f64 / r.bytes_total as f64).clamp(0.0, 1.0);
        let by = match r.limited_by.as_str() {
            "" => String::new(),
            by => format!(", limited by {by}"),
        };
        let gauge = Gauge::default()
            .ratio(part)
            .label(format!("{:.0} % of {}{by}", part * 100.0, HumanBytes(r.bytes_total)))
            .use_unicode(true)
            .gauge_style(self.coloured(Color::Cyan));
        frame.render_widget(gauge, area);
    }

    /// What isn't well, in one line: the coordinator's silence before what it said last.
    fn problem_line(&self) -> Option<Line<'static>> {
        if let Some(problem) = &self.problem {
            return Some(Line::styled(problem.clone(), self.coloured(Color::Red)));
        }
        let status = &self.seen.as_ref()?.1.status;
        let first = status.health_reasons.first()?;
        let more = status.health_reasons.len() - 1;
        let more = if more > 0 { format!(" (and {more} more: evenkeel health)") } else { String::new() };
        Some(Line::styled(format!("{first}{more}"), self.state_style(&status.health)))
    }

    fn tabs(&self) -> Line<'static> {
        let counts = self.seen.as_ref().map(|(_, seen)| {
            let disks = seen.nodes.iter().map(|n| n.disks.len()).sum();
            let volumes = seen.volumes.as_ref().map(Vec::len);
            [Some(seen.nodes.len()), Some(disks), Some(seen.resync.sessions.len()), volumes]
        });
        let mut spans = Vec::new();
        for (i, (view, name)) in VIEWS.iter().enumerate() {
            let count = counts.and_then(|c| c[i]);
            let count = count.map_or(String::new(), |n| format!(" {}", out::thousands(n as u64)));
            let style = if *view == self.view {
                Style::new().add_modifier(Modifier::REVERSED | Modifier::BOLD)
            } else {
                Style::new()
            };
            spans.push(Span::styled(format!(" {} {name}{count} ", i + 1), style));
            spans.push(Span::raw(" "));
        }
        Line::from(spans)
    }

    fn draw_rows(&mut self, frame: &mut Frame<'_>, area: Rect) {
        let (columns, sort) = (views::columns(self.view), self.sorts[self.view as usize]);
        let mut rows = self.seen.as_ref().map_or(Vec::new(), |(_, seen)| views::rows(self.view, seen, &self.rates));
        let filter = self.filter.to_lowercase();
        rows.retain(|row| row.iter().any(|cell| cell.text.to_lowercase().contains(&filter)));
        // Stable, and by the first column where two are equal, so that rows don't jump about.
        rows.sort_by(|a, b| {
            let order = a[sort.column].key.compare(&b[sort.column].key);
            let order = if sort.down { order.reverse() } else { order };
            order.then_with(|| a[0].key.compare(&b[0].key))
        });
        self.page = usize::from(area.height.saturating_sub(1)).max(1);
        self.offset = self.offset.min(rows.len().saturating_sub(self.page));
        if rows.is_empty() {
            let empty = match (&self.seen, self.view) {
                (None, _) => "",
                (Some((_, seen)), TopView::Volumes) if seen.volumes.is_none() => "",
                _ if !filter.is_empty() => "no row has that text",
                (_, TopView::Moves) => "nothing is being copied",
                (_, TopView::Volumes) => "there is no volume",
                _ => "there is none",
            };
            frame.render_widget(Paragraph::new(format!("\n {empty}")), area);
            return;
        }
        let titles = columns.iter().enumerate().map(|(i, c)| {
            // An arrow in place of the last blank, where there is one.
            let mark = if i != sort.column {
                ""
            } else if sort.down {
                "▼"
            } else {
                "▲"
            };
            let title =
                if c.title.len() < usize::from(c.width) { format!("{}{mark}", c.title) } else { c.title.to_owned() };
            let style = Style::new().add_modifier(Modifier::BOLD);
            let style = if i == sort.column { style.add_modifier(Modifier::UNDERLINED) } else { style };
            aligned(title, c, style)
        });
        let shown = rows.iter().skip(self.offset).take(self.page).map(|row| {
            Row::new(
                row.iter().zip(columns).map(|(cell, c)| aligned(cell.text.clone(), c, self.state_style(&cell.text))),
            )
        });
        let last = columns.len() - 1;
        let widths = columns.iter().enumerate().map(|(i, c)| match i {
            _ if i == last && !c.number => Constraint::Min(c.width),
            // What is left over goes to names, which may be long.
            0 => Constraint::Min(c.width),
            _ => Constraint::Length(c.width),
        });
        frame.render_widget(Table::new(shown, widths).header(Row::new(titles)).column_spacing(1), area);
    }

    fn coloured(&self, colour: Color) -> Style {
        if self.colour { Style::new().fg(colour) } else { Style::new() }
    }

    /// The style of a word that names a state; of other words none.
    fn state_style(&self, text: &str) -> Style {
        match out::grade(text) {
            Some(Grade::Well) => self.coloured(Color::Green),
            Some(Grade::Warn) => self.coloured(Color::Yellow),
            Some(Grade::Bad) => self.coloured(Color::Red),
            None => Style::new(),
        }
    }
}

fn aligned(text: String, column: &Column, style: Style) -> Cell<'static> {
    let line = Line::styled(text, style);
    Cell::from(if column.number { line.alignment(Alignment::Right) } else { line })
}

/// `--sort`: a title, with or without its direction.
fn parse_sort(text: &str, columns: &[Column]) -> anyhow::Result<Sort> {
    let (title, down) = match text.strip_prefix('-') {
        Some(title) => (title, Some(true)),
        None => (text.strip_prefix('+').unwrap_or(text), text.starts_with('+').then_some(false)),
    };
    let found = columns.iter().position(|c| c.title.eq_ignore_ascii_case(title.trim()));
    let Some(column) = found else {
        let titles: Vec<String> = columns.iter().map(|c| c.title.to_lowercase()).collect();
        anyhow::bail!("--sort {text:?} is no column of this view; there are: {}", titles.join(", "));
    };
    Ok(Sort { column, down: down.unwrap_or(columns[column].number) })
}

/// What is copied, in one line that fits a narrow terminal.
fn copies(r: &ResyncStatus) -> String {
    let paused = if r.paused || r.job_paused { ", paused" } else { "" };
    if r.active_moves == 0 && r.pending_moves == 0 {
        return format!("none{paused}; {} copied so far", HumanBytes(r.bytes_done));
    }
    let (all, left, rate) =
        (r.pending_moves.max(r.active_moves), HumanBytes(r.bytes_left), HumanBytes(r.rate_bytes_per_sec));
    format!("{} of {all} moves, {left} left, {rate}/s{}{paused}", r.active_moves, eta_words(r))
}

#[cfg(test)]
#[path = "screen_tests.rs"]
mod tests;
