//! SIGINT, SIGTERM and SIGHUP for long-running commands, and death together with a parent process.
//!
//! Invariants: the first signal asks for a clean stop, the second ends the process at once; a child that was told its
//! parent's process id ends when that parent does, however the parent ended.

use std::time::Duration;

use anyhow::Context as _;
use rustix::process::{Signal, getppid, set_parent_process_death_signal};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Names the process that the child must not outlive.
pub const PARENT_PID_VARIABLE: &str = "EVENKEEL_PARENT_PID";

/// If the parent asked for it, arranges that this process ends with the parent.
///
/// SIGKILL, because it must also end a process that is stopped or hangs; durability doesn't depend on a clean stop.
///
/// # Errors
/// The variable holds no process id, the kernel refuses, or the parent is gone already.
pub fn die_with_parent() -> anyhow::Result<()> {
    let Some(text) = std::env::var_os(PARENT_PID_VARIABLE) else { return Ok(()) };
    let text = text.to_string_lossy();
    let parent: i32 = text.parse().with_context(|| format!("{PARENT_PID_VARIABLE} is {text:?}, no process id"))?;
    set_parent_process_death_signal(Some(Signal::KILL)).context("tying this process to its parent")?;
    // The parent may have ended before the call above took effect; then no signal will come.
    let now = getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
    anyhow::ensure!(now == parent, "the process {parent} that started this one has ended");
    Ok(())
}

/// Becomes true at the first signal.
#[derive(Clone, Debug)]
pub struct Stop(watch::Receiver<bool>);

impl Stop {
    /// Watches for signals from a thread of its own, so that blocking commands can use it too.
    ///
    /// # Errors
    /// The handlers can't be installed.
    pub fn on_signals() -> anyhow::Result<Stop> {
        let (tell, stop) = watch::channel(false);
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_io().build().context("starting a runtime")?;
        let streams = {
            let _inside = runtime.enter();
            [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()]
                .into_iter()
                .map(signal)
                .collect::<Result<Vec<_>, _>>()
                .context("installing signal handlers")?
        };
        std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || runtime.block_on(count(streams, tell)))
            .context("starting a thread")?;
        Ok(Stop(stop))
    }

    /// True once a signal came.
    pub fn requested(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits for the signal, from async code.
    pub async fn wait(mut self) {
        // An error means that the signal thread is gone, which never happens before the process ends; then nothing
        // will ever ask for a stop.
        if self.0.wait_for(|stop| *stop).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Sleeps in small steps; true if a signal came before the time was over.
    pub fn sleep(&self, time: Duration) -> bool {
        /// A person doesn't notice this delay after Ctrl-C, and it costs next to nothing.
        const STEP: Duration = Duration::from_millis(50);
        let end = std::time::Instant::now() + time;
        loop {
            let left = end.saturating_duration_since(std::time::Instant::now());
            if self.requested() || left.is_zero() {
                return self.requested();
            }
            std::thread::sleep(left.min(STEP));
        }
    }
}

async fn count(streams: Vec<tokio::signal::unix::Signal>, tell: watch::Sender<bool>) {
    let [mut interrupt, mut terminate, mut hangup] = match <[_; 3]>::try_from(streams) {
        Ok(streams) => streams,
        Err(_) => return,
    };
    loop {
        let code = tokio::select! {
            _ = interrupt.recv() => 130,
            _ = terminate.recv() => 143,
            _ = hangup.recv() => 129,
        };
        if tell.send_replace(true) {
            super::out::note("evenkeel: second signal, ending at once");
            std::process::exit(code);
        }
    }
}
