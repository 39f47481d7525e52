//! Child processes: started by one thread, watched, signalled, and never left behind.
//!
//! Invariants: a child ends when this process does, however it ends (the kernel sends the signal when the *thread* that
//! forked ends, so one thread that lives as long as the children forks them all); a process id is signalled only
//! while it is certain to be ours (exits are noticed without reaping, and reaped under the lock that signals take).
//!
//! Non-goals: restarting. What was killed stays down until someone starts it.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

use crate::cli::signals::PARENT_PID_VARIABLE;

/// What can go wrong with a child.
#[derive(Debug, thiserror::Error)]
pub enum RunChild {
    #[error("can't start {name}: {source}")]
    Start { name: String, source: io::Error },
    #[error("{0} runs already")]
    RunsAlready(String),
    #[error("{0} does not run")]
    NotRunning(String),
    #[error("{name} has not ended within {seconds} s")]
    StillRuns { name: String, seconds: u64 },
    #[error("can't signal {name}: {source}")]
    Signal { name: String, source: io::Error },
    #[error("the cluster is stopping")]
    Stopping,
}

/// All children of this process that `dev` owns.
pub struct Children {
    spawn: mpsc::Sender<SpawnJob>,
    shared: Arc<Shared>,
    report: fn(&str),
}

struct SpawnJob {
    command: Command,
    reply: mpsc::Sender<io::Result<Child>>,
}

#[derive(Default)]
struct Shared {
    table: Mutex<Table>,
    changed: Condvar,
}

#[derive(Default)]
struct Table {
    entries: BTreeMap<String, Entry>,
    closing: bool,
}

struct Entry {
    pid: u32,
    /// `None`: it runs. A name's last exit is kept until it starts again.
    exit: Option<ExitStatus>,
    /// Someone asked for its end, so that its exit is no surprise.
    expected: bool,
}

impl Children {
    /// `report` gets one line for each exit.
    pub fn new(report: fn(&str)) -> io::Result<Self> {
        let (spawn, jobs) = mpsc::channel::<SpawnJob>();
        std::thread::Builder::new().name("spawner".to_owned()).spawn(move || {
            for mut job in jobs {
                // The asker waits for the reply, so it is always there to take it.
                let _ = job.reply.send(job.command.spawn());
            }
        })?;
        Ok(Children { spawn, shared: Arc::default(), report })
    }

    /// Starts a child under a name. It gets no `EVENKEEL_*` variable from here but those that `command` sets and the
    /// log level; its own process group, so that Ctrl-C reaches this process alone, which stops children in order.
    pub fn start(&self, name: &str, mut command: Command) -> Result<u32, RunChild> {
        let fail = |source| RunChild::Start { name: name.to_owned(), source };
        let set: Vec<_> = command.get_envs().map(|(key, _)| key.to_owned()).collect();
        for (key, _) in std::env::vars_os() {
            let text = key.to_string_lossy();
            if text.starts_with("EVENKEEL_") && !text.starts_with("EVENKEEL_LOG") && !set.contains(&key) {
                command.env_remove(&key);
            }
        }
        command.env(PARENT_PID_VARIABLE, std::process::id().to_string()).stdin(Stdio::null()).process_group(0);
        // The lock is held over the start, so that no child appears after `close`.
        let mut table = self.shared.table.lock();
        if table.closing {
            return Err(RunChild::Stopping);
        }
        if table.entries.get(name).is_some_and(|e| e.exit.is_none()) {
            return Err(RunChild::RunsAlready(name.to_owned()));
        }
        let (reply, answer) = mpsc::channel();
        let gone = || fail(io::Error::other("the thread that starts children is gone"));
        self.spawn.send(SpawnJob { command, reply }).map_err(|_| gone())?;
        let child = answer.recv().map_err(|_| gone())?.map_err(fail)?;
        let pid = child.id();
        table.entries.insert(name.to_owned(), Entry { pid, exit: None, expected: false });
        drop(table);
        let (shared, report, owned) = (Arc::clone(&self.shared), self.report, name.to_owned());
        std::thread::Builder::new()
            .name(format!("wait-{name}"))
            .spawn(move || watch(&shared, report, owned, child))
            .map_err(fail)?;
        Ok(pid)
    }

    /// The process id, if it runs.
    pub fn pid(&self, name: &str) -> Option<u32> {
        self.shared.table.lock().entries.get(name).filter(|e| e.exit.is_none()).map(|e| e.pid)
    }

    /// How the child of that process id ended, if it has.
    pub fn exit_of(&self, name: &str, pid: u32) -> Option<String> {
        let table = self.shared.table.lock();
        let entry = table.entries.get(name).filter(|e| e.pid == pid)?;
        entry.exit.map(exit_text)
    }

    /// Sends a signal.
    pub fn signal(&self, name: &str, signal: Signal) -> Result<u32, RunChild> {
        let mut table = self.shared.table.lock();
        let entry = table
            .entries
            .get_mut(name)
            .filter(|e| e.exit.is_none())
            .ok_or_else(|| RunChild::NotRunning(name.to_owned()))?;
        entry.expected |= matches!(signal, Signal::KILL | Signal::TERM);
        send(entry.pid, signal).map_err(|source| RunChild::Signal { name: name.to_owned(), source })?;
        Ok(entry.pid)
    }

    /// Waits for a child's exit.
    pub fn wait_exit(&self, name: &str, timeout: Duration) -> Result<(), RunChild> {
        let end = Instant::now() + timeout;
        let mut table = self.shared.table.lock();
        while table.entries.get(name).is_some_and(|e| e.exit.is_none()) {
            if self.shared.changed.wait_until(&mut table, end).timed_out() {
                return Err(RunChild::StillRuns { name: name.to_owned(), seconds: timeout.as_secs() });
            }
        }
        Ok(())
    }

    /// From now on nothing starts.
    pub fn close(&self) {
        self.shared.table.lock().closing = true;
    }

    /// Ends those children that `which` names: TERM, and KILL to those that are left after `patience`.
    pub fn stop(&self, which: impl Fn(&str) -> bool, patience: Duration) {
        let names: Vec<String> = {
            let mut table = self.shared.table.lock();
            let live = table.entries.iter_mut().filter(|(name, e)| e.exit.is_none() && which(name));
            live.map(|(name, entry)| {
                entry.expected = true;
                // A child that ended meanwhile needs no signal. A frozen one must be thawed to see it.
                let _ = send(entry.pid, Signal::TERM).and_then(|()| send(entry.pid, Signal::CONT));
                name.clone()
            })
            .collect()
        };
        let end = Instant::now() + patience;
        for name in names {
            if self.wait_exit(&name, end.saturating_duration_since(Instant::now())).is_ok() {
                continue;
            }
            (self.report)(&format!("{name} does not stop within {} s; killing it", patience.as_secs()));
            let _ = self.signal(&name, Signal::KILL);
            // KILL needs no cooperation; only a process stuck in the kernel takes longer, and waiting won't help it.
            let _ = self.wait_exit(&name, Duration::from_secs(2));
        }
    }
}

impl Drop for Children {
    fn drop(&mut self) {
        self.close();
        self.stop(|_| true, Duration::from_secs(10));
    }
}

fn send(pid: u32, signal: Signal) -> io::Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
    kill_process(pid, signal).map_err(io::Error::from)
}

/// Waits for the exit without reaping, then reaps under the lock: until then the id can't belong to another process.
fn watch(shared: &Shared, report: fn(&str), name: String, mut child: Child) {
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        while let Err(rustix::io::Errno::INTR) = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT)
        {
        }
    }
    let mut table = shared.table.lock();
    let status = child.wait().unwrap_or_default();
    let mut expected = false;
    if let Some(entry) = table.entries.get_mut(&name).filter(|e| e.pid == child.id()) {
        entry.exit = Some(status);
        expected = entry.expected;
    }
    drop(table);
    shared.changed.notify_all();
    let surprise = if expected { "" } else { ", though nobody asked for it; its log says why" };
    report(&format!("{name} (pid {}) ended: {}{surprise}", child.id(), exit_text(status)));
}

fn exit_text(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(9)) => "killed".to_owned(),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "unknown".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper() -> Command {
        let mut command = Command::new("sleep");
        command.arg("600");
        command
    }

    #[test]
    fn a_killed_child_is_noticed_and_may_start_again() {
        let children = Children::new(|_| {}).unwrap();
        let first = children.start("a", sleeper()).unwrap();
        assert_eq!(children.pid("a"), Some(first));
        assert!(matches!(children.start("a", sleeper()), Err(RunChild::RunsAlready(_))));
        children.signal("a", Signal::KILL).unwrap();
        children.wait_exit("a", Duration::from_secs(60)).unwrap();
        assert_eq!(children.pid("a"), None);
        assert_eq!(children.exit_of("a", first).as_deref(), Some("killed"));
        assert!(matches!(children.signal("a", Signal::KILL), Err(RunChild::NotRunning(_))));
        let second = children.start("a", sleeper()).unwrap();
        assert_eq!(children.exit_of("a", second), None);
    }

    #[test]
    fn stop_ends_a_frozen_child_too_and_then_nothing_starts() {
        let children = Children::new(|_| {}).unwrap();
        children.start("a", sleeper()).unwrap();
        children.start("b", sleeper()).unwrap();
        children.signal("b", Signal::STOP).unwrap();
        children.stop(|name| name == "b", Duration::from_secs(60));
        assert!(children.pid("a").is_some() && children.pid("b").is_none());
        children.close();
        assert!(matches!(children.start("b", sleeper()), Err(RunChild::Stopping)));
        let pid = children.pid("a").unwrap();
        drop(children);
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    }

    #[test]
    fn what_cannot_start_is_named() {
        let children = Children::new(|_| {}).unwrap();
        let error = children.start("a", Command::new("/nonexistent/program")).unwrap_err();
        assert!(error.to_string().starts_with("can't start a: "), "{error}");
    }
}
