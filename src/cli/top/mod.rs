//! `top`: the cluster as it works, on a terminal.
//!
//! Invariants: keys answer at once, also while the coordinator doesn't (a thread of its own asks it); what is shown is dated
//! as soon as it is no longer fresh; the terminal is as it was before, however the command ends.
//!
//! Layout: `data` asks the coordinator, `views` makes rows of what it said, `screen` holds what the operator chose and draws.
//!
//! Non-goals: changing anything. An operator who looks must not stop a cluster by a wrong key.

mod data;
mod screen;
mod views;

use std::io::IsTerminal;
use std::time::Duration;

use anyhow::Context as _;
use ratatui::crossterm::event;

use super::Session;
use super::args::TopArgs;
use super::signals::Stop;
use data::Source;
use screen::{Screen, Then};

/// A key and a signal are noticed within this time.
const LOOK: Duration = Duration::from_millis(50);

/// Shows the cluster until the operator ends it.
pub fn top(session: &Session, args: &TopArgs) -> anyhow::Result<()> {
    anyhow::ensure!(
        !session.json(),
        "`evenkeel top` draws on a terminal; `evenkeel status`, `node list`, `disk list`, `volume list` and `resync status` have -o json"
    );
    anyhow::ensure!(
        std::io::stdout().is_terminal() && std::io::stdin().is_terminal(),
        "`evenkeel top` needs a terminal (over ssh: ssh -t HOST evenkeel top); for a file or a pipe take `evenkeel status`"
    );
    let mut screen = Screen::new(args, super::out::colour())?;
    let client = session.client()?;
    let stop = Stop::on_signals()?;
    let source = Source::start(client, Duration::from_secs_f64(args.interval));
    let mut terminal = ratatui::try_init().context("taking over the terminal")?;
    let outcome = show(&mut terminal, &mut screen, &source, &stop);
    ratatui::try_restore().context("giving the terminal back")?;
    outcome
}

fn show(
    terminal: &mut ratatui::DefaultTerminal,
    screen: &mut Screen,
    source: &Source,
    stop: &Stop,
) -> anyhow::Result<()> {
    loop {
        for news in source.news() {
            match news.outcome {
                // What is wrong with the address or the token is told as by every other command.
                Err(e) if !screen.has_seen() && !e.is_transient() => return Err(e.into()),
                _ => screen.take(news),
            }
        }
        source.want(screen.view());
        terminal.draw(|frame| screen.draw(frame)).context("drawing")?;
        // Until something changes: a look at the clock each second keeps the age of what is shown right.
        for _ in 0..20 {
            if stop.requested() {
                return Ok(());
            }
            if event::poll(LOOK).context("reading the terminal")? {
                let key = event::read().context("reading the terminal")?.as_key_press_event();
                if key.is_some_and(|key| screen.key(key) == Then::End) {
                    return Ok(());
                }
                break;
            }
            if source.has_news() {
                break;
            }
        }
    }
}
