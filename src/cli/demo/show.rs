//! The demo's narration: sentences on stdout, progress as bars on a terminal and as plain lines elsewhere.

use std::io::IsTerminal;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar};

use crate::cli::out;
use crate::cli::resync::progress_bar;

/// Without a terminal: one line of progress in this time.
const LINE_EVERY: Duration = Duration::from_secs(3);

/// One place draws, so that a sentence doesn't fall into a bar.
static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// Prints a sentence.
pub fn say(text: impl AsRef<str>) -> anyhow::Result<()> {
    BARS.suspend(|| out::line(text))
}

/// What the cluster's supervisor reports; a closed stdout is noticed at the next sentence.
pub fn report(text: &str) {
    let _ = say(format!("    {text}"));
}

/// Progress of one step.
pub struct Progress {
    bar: Option<ProgressBar>,
    last_line: Instant,
}

impl Progress {
    /// A step with `total` units to do; zero if that isn't known yet.
    pub fn new(total: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| BARS.add(progress_bar(total)));
        Progress { bar, last_line: Instant::now() }
    }

    /// Shows how far it is, and a word about it.
    pub fn show(&mut self, done: u64, total: u64, text: &str) -> anyhow::Result<()> {
        if let Some(bar) = &self.bar {
            bar.set_length(total);
            bar.set_position(done.min(total));
            bar.set_message(text.to_owned());
        } else if self.last_line.elapsed() >= LINE_EVERY {
            self.last_line = Instant::now();
            say(format!("    {:>5}  {text}", out::percent(done.min(total), total)))?;
        }
        Ok(())
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
            BARS.remove(bar);
        }
    }
}
