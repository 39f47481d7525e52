//! Whose turn it is on a CPU: threads that only copies need give way to those that carry guests' IO.
//!
//! Two ways, as a thread may hold what a guest waits for or not:
//! - *Disk threads* of copies hold a file's lock while they write. They are five steps of niceness lower
//!   ([`yield_to_guests`]), so that one which has lost its core is back soon.
//! - *The thread of what travels* (hashing, encryption, sockets) holds nothing. It runs under `SCHED_IDLE`, whose threads
//!   leave the core to any other at once, where one of low niceness may end its turn first, a millisecond or more
//!   ([`give_way`]). On cores that are never free it would stand still, and with it the floor and any write that overlaps a
//!   window: so where it waits for a core and copies are below their floor, it takes the niceness of the disk threads for a
//!   while.
//!
//! Going back from `SCHED_IDLE` needs RLIMIT_NICE of 15 or CAP_SYS_NICE (sched(7)); without either the thread is never
//! `SCHED_IDLE`, only nicer.

use std::time::Duration;
use std::{fs, io};

/// CPU priority of what only copies need, as nice(2) counts: against a thread of guests' IO that wants the same core it gets
/// a quarter, which is more than any floor needs.
const NICENESS: i32 = 5;
/// How often the thread looks at what it got.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// It must have waited for so long since its last look to lack a core: what wakes up rarely waits briefly.
const WAITED_MIN: Duration = Duration::from_millis(400);
/// Then it keeps the niceness of other threads of copies for so long.
const RAISED: Duration = Duration::from_secs(5);

/// Lowers the calling thread's CPU priority below that of its process: it does nothing that a guest waits for. Where that
/// isn't allowed, it runs like the others.
pub(super) fn yield_to_guests() {
    let lowered = rustix::process::getpriority_process(None)
        .and_then(|now| rustix::process::setpriority_process(None, (now + NICENESS).min(19)));
    if let Err(error) = lowered {
        tracing::debug!(%error, "a thread for copies keeps the ordinary priority");
    }
}

/// Keeps the thread that polls this under `SCHED_IDLE`, except where it lacks a core and copies are below their floor; never
/// returns where that is possible.
pub(super) async fn give_way(is_below_floor: impl Fn() -> bool) {
    if !may_return() {
        tracing::debug!("the thread for copies is nicer, but not SCHED_IDLE: that needs RLIMIT_NICE of 15");
        return;
    }
    // Where the kernel doesn't count, nobody would see it starve.
    while let Some(mut before) = waited() {
        if set_policy(libc::SCHED_IDLE).is_err() {
            return;
        }
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let now = waited().unwrap_or(Duration::MAX);
            if now.saturating_sub(before) >= WAITED_MIN && is_below_floor() {
                break;
            }
            before = now;
        }
        if let Err(error) = set_policy(libc::SCHED_OTHER) {
            tracing::warn!(%error, "copies can't leave SCHED_IDLE: on a busy host they may fall below their floor");
            return;
        }
        tracing::debug!("no core is free for copies: they take their turns from guests' IO for a while");
        tokio::time::sleep(RAISED).await;
    }
}

/// Whether a thread of the caller's niceness that has become `SCHED_IDLE` can leave it: one that ends anyway tries it.
fn may_return() -> bool {
    let tried = std::thread::spawn(|| set_policy(libc::SCHED_IDLE).and_then(|()| set_policy(libc::SCHED_OTHER)));
    tried.join().is_ok_and(|tried| tried.is_ok())
}

/// Sets the calling thread's policy, one of those without a priority; its niceness stays.
#[allow(
    unsafe_code,
    reason = "no crate sets a thread's policy and leaves its niceness; guests at full load have 15 % more IOPS by it"
)]
fn set_policy(policy: libc::c_int) -> io::Result<()> {
    let none = libc::sched_param { sched_priority: 0 };
    // SAFETY: 0 is the calling thread; the kernel reads one `sched_param`, which lives until the call has returned.
    match unsafe { libc::sched_setscheduler(0, policy, &raw const none) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// How long the calling thread could have run and had no core, since it started, as the kernel counts
/// (`Documentation/scheduler/sched-stats.rst`); none where it doesn't.
fn waited() -> Option<Duration> {
    parse_waited(&fs::read_to_string("/proc/thread-self/schedstat").ok()?)
}

/// The second of its fields, nanoseconds.
fn parse_waited(schedstat: &str) -> Option<Duration> {
    schedstat.split_whitespace().nth(1)?.parse().ok().map(Duration::from_nanos)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Instant;

    use super::*;

    #[test]
    fn the_kernel_says_how_long_a_thread_waited() {
        assert_eq!(parse_waited("12 34000 56\n"), Some(Duration::from_micros(34)));
        assert_eq!(parse_waited("12\n"), None);
        assert_eq!(parse_waited("a b c"), None);
        assert!(waited().is_some(), "this kernel counts");
    }

    /// The policy of a thread, as sched(7) numbers them: field 41 of its stat.
    fn policy(thread: &str) -> i32 {
        let stat = fs::read_to_string(format!("/proc/self/task/{thread}/stat")).expect("the thread runs");
        let after_name = stat.rsplit_once(')').expect("a name in parentheses").1;
        after_name.split_whitespace().nth(38).and_then(|f| f.parse().ok()).expect("a policy")
    }

    #[test]
    fn copies_leave_the_cores_to_others_until_they_starve() {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let (tell, told) = std::sync::mpsc::channel();
            let stop = &stop;
            scope.spawn(move || {
                let link = fs::read_link("/proc/thread-self").expect("procfs");
                let tid = link.file_name().expect("a thread").to_string_lossy().into_owned();
                yield_to_guests();
                tell.send((tid, may_return())).expect("the test waits");
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
                runtime.block_on(async {
                    let giving_way = tokio::spawn(give_way(|| true));
                    while !stop.load(Ordering::Relaxed) {
                        let turn = Instant::now();
                        while turn.elapsed() < Duration::from_micros(100) {}
                        tokio::task::yield_now().await;
                    }
                    giving_way.abort();
                });
            });
            let (tid, may_return) = told.recv().expect("a thread id");
            let comes_to = |wanted: i32| {
                let until = Instant::now() + Duration::from_secs(60);
                while policy(&tid) != wanted {
                    if Instant::now() > until {
                        stop.store(true, Ordering::Relaxed);
                        panic!("the thread's policy is {}, not {wanted}", policy(&tid));
                    }
                    std::thread::sleep(Duration::from_millis(20));
                }
            };
            if may_return {
                comes_to(libc::SCHED_IDLE);
                let cores = std::thread::available_parallelism().map_or(2, usize::from);
                for _ in 0..cores {
                    scope.spawn(move || while !stop.load(Ordering::Relaxed) {});
                }
                comes_to(libc::SCHED_OTHER);
            } else {
                assert_eq!(policy(&tid), libc::SCHED_OTHER, "without the right to come back it doesn't go");
            }
            stop.store(true, Ordering::Relaxed);
        });
    }
}
