//! Whose turn it is on a CPU: threads that only copies need give way to those that carry guests' IO.
//!
//! Two ways, as a thread may hold what a guest waits for or not:
//! - *Disk threads* of copies hold a file's lock while they write. They are five steps of niceness lower
//!   ([`yield_to_guests`]), so that one which has lost its core is back soon.
//! - *The thread of what travels* (hashing, encryption, sockets) holds nothing. It runs under `SCHED_IDLE`, whose threads
//!   leave the core to any other at once, where one of low niceness may end its turn first, a millisecond or more
//!   ([`give_way`]). On cores that are never free it would stand still, and with it the floor and any write that overlaps a
//!   window: so when it waits far more than it runs it takes the niceness of the disk threads for a while.
//!
//! Going back from `SCHED_IDLE` needs RLIMIT_NICE of 15 or CAP_SYS_NICE (sched(7)); without either the thread is never
//! `SCHED_IDLE`, only nicer.

use std::fs;
use std::time::Duration;

use thread_priority::unix::{
    NormalThreadSchedulePolicy, ThreadSchedulePolicy, set_thread_priority_and_policy, thread_native_id,
};
use thread_priority::{ThreadPriority, ThreadPriorityValue};

/// CPU priority of what only copies need, as nice(2) counts: against a thread of guests' IO that wants the same core it gets
/// a quarter, which is more than any floor needs.
const NICENESS: i32 = 5;
/// How often the thread looks at what it got.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// It must have waited for so long since its last look to be starved: what wakes up rarely waits briefly.
const WAITED_MIN: Duration = Duration::from_millis(400);
/// And must have got less than one part in so many of the time in which it could have run.
const STARVED_PART: u64 = 10;
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

/// Keeps the thread that polls this under `SCHED_IDLE`, except where it starves; never returns where that is possible.
pub(super) async fn give_way() {
    if !may_return() {
        tracing::debug!("the thread for copies is nicer, but not SCHED_IDLE: that needs RLIMIT_NICE of 15");
        return;
    }
    let mut before = Turns::of_this_thread();
    while before.is_some() && set(NormalThreadSchedulePolicy::Idle) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let now = Turns::of_this_thread();
            let starved = before.zip(now).is_none_or(|(before, now)| now.is_starved_since(before));
            before = now;
            if starved {
                break;
            }
        }
        if !set(NormalThreadSchedulePolicy::Other) {
            tracing::warn!(
                "the thread for copies can't leave SCHED_IDLE: on a busy host they may fall below their floor"
            );
            return;
        }
        tracing::debug!("no core is free for copies: they take their turns from guests' IO for a while");
        tokio::time::sleep(RAISED).await;
        before = Turns::of_this_thread();
    }
}

/// Whether a thread of the caller's niceness that has become `SCHED_IDLE` can leave it: one that ends anyway tries it.
fn may_return() -> bool {
    let tried = std::thread::spawn(|| set(NormalThreadSchedulePolicy::Idle) && set(NormalThreadSchedulePolicy::Other));
    tried.join().unwrap_or(false)
}

/// Sets the calling thread's policy, at the niceness that it has.
fn set(policy: NormalThreadSchedulePolicy) -> bool {
    let Ok(niceness) = rustix::process::getpriority_process(None) else { return false };
    // `thread_priority` counts from 0 (nice 19) to 99 (nice -20).
    let priority = u8::try_from(99 * (19 - niceness) / 39).ok().and_then(|p| ThreadPriorityValue::try_from(p).ok());
    let Some(priority) = priority.map(ThreadPriority::Crossplatform) else { return false };
    set_thread_priority_and_policy(thread_native_id(), priority, ThreadSchedulePolicy::Normal(policy)).is_ok()
}

/// What a thread has had since it started, in nanoseconds: on a CPU, and able to run without one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Turns {
    ran: u64,
    waited: u64,
}

impl Turns {
    /// As the kernel counts (`Documentation/scheduler/sched-stats.rst`); none where it doesn't.
    fn of_this_thread() -> Option<Turns> {
        Turns::parse(&fs::read_to_string("/proc/thread-self/schedstat").ok()?)
    }

    fn parse(text: &str) -> Option<Turns> {
        let mut fields = text.split_whitespace().map(|f| f.parse::<u64>().ok());
        Some(Turns { ran: fields.next()??, waited: fields.next()?? })
    }

    /// It got hardly any of the time that it asked for.
    fn is_starved_since(self, before: Turns) -> bool {
        let ran = self.ran.saturating_sub(before.ran);
        let waited = self.waited.saturating_sub(before.waited);
        u128::from(waited) >= WAITED_MIN.as_nanos() && ran < ran.saturating_add(waited) / STARVED_PART
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_thread_starves_that_waits_far_more_than_it_runs() {
        let ms = |ran: u64, waited: u64| Turns { ran: ran * 1_000_000, waited: waited * 1_000_000 };
        let before = ms(1_000, 2_000);
        let is_starved = |ran: u64, waited: u64| ms(1_000 + ran, 2_000 + waited).is_starved_since(before);
        assert!(is_starved(3, 960));
        assert!(is_starved(40, 400));
        assert!(!is_starved(300, 700), "a third of what it asks for");
        assert!(!is_starved(1, 300), "seldom runs, seldom waits");
        assert!(!is_starved(0, 0));
        assert!(!before.is_starved_since(ms(5_000, 9_000)), "counters that fall");
        assert_eq!(Turns::parse("12 34 56\n"), Some(Turns { ran: 12, waited: 34 }));
        assert_eq!(Turns::parse("12\n"), None);
        assert_eq!(Turns::parse("a b c"), None);
    }

    /// The policy of a thread, as sched(7) numbers them: field 41 of its stat.
    fn policy(thread: &str) -> u32 {
        let stat = fs::read_to_string(format!("/proc/self/task/{thread}/stat")).expect("the thread runs");
        let after_name = stat.rsplit_once(')').expect("a name in parentheses").1;
        after_name.split_whitespace().nth(38).and_then(|f| f.parse().ok()).expect("a policy")
    }

    #[test]
    fn copies_leave_the_cores_to_others_until_they_starve() {
        const OTHER: u32 = 0;
        const IDLE: u32 = 5;
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
                    let giving_way = tokio::spawn(give_way());
                    while !stop.load(Ordering::Relaxed) {
                        let turn = Instant::now();
                        while turn.elapsed() < Duration::from_micros(100) {}
                        tokio::task::yield_now().await;
                    }
                    giving_way.abort();
                });
            });
            let (tid, may_return) = told.recv().expect("a thread id");
            let comes_to = |wanted: u32| {
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
                comes_to(IDLE);
                let cores = std::thread::available_parallelism().map_or(2, usize::from);
                for _ in 0..cores {
                    scope.spawn(move || while !stop.load(Ordering::Relaxed) {});
                }
                comes_to(OTHER);
            } else {
                assert_eq!(policy(&tid), OTHER, "without the right to come back it doesn't go");
            }
            stop.store(true, Ordering::Relaxed);
        });
    }

    #[test]
    fn the_niceness_stays_when_the_policy_changes() {
        // On a thread of its own: what it takes it can't give back.
        let niceness = || rustix::process::getpriority_process(None).expect("a priority");
        std::thread::spawn(move || {
            for nicer in niceness()..=19 {
                rustix::process::setpriority_process(None, nicer).expect("down is always allowed");
                for policy in [NormalThreadSchedulePolicy::Other, NormalThreadSchedulePolicy::Batch] {
                    assert!(set(policy));
                    assert_eq!(niceness(), nicer);
                }
            }
            assert!(set(NormalThreadSchedulePolicy::Idle));
            assert_eq!(niceness(), 19);
        })
        .join()
        .expect("each step is as asked");
    }
}
