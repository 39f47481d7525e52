//! Moments at which copies to and from all disks pause, so that each disk learns what guests have without any of them. Pure.
//!
//! A volume is spread over many disks, and a host's disks share its cores and its link: guests of a disk that copies nothing
//! wait for the copies of others. If each disk paused at a time of its own, none would see its guests alone, and baselines would
//! rise with the copies until the target means nothing; and a move stands still while either of its ends pauses. So all pause
//! at the same time, by the clocks of the hosts, which agree to some hundredths of a second; where they don't, a disk learns
//! what it learnt without. A disk without guests, or for which a latency was set, copies on: it has nothing to learn, and most of its
//! moves have another end that pauses.

use std::time::Duration;

/// Time between moments.
pub(super) const EVERY: Duration = Duration::from_secs(10);
/// Until then what was under way when copies paused is done: two ticks of the other nodes' loops.
const QUIET_FROM: Duration = Duration::from_millis(200);
/// Until then no disk goes on copying, if its clock is right and it has seen enough.
pub(super) const QUIET_TO: Duration = Duration::from_millis(500);

/// How long ago the last moment began, by Unix time.
pub fn since(unix: Duration) -> Duration {
    Duration::from_millis((unix.as_millis() % EVERY.as_millis()) as u64)
}

/// A moment began within the tick of this length that has just ended.
pub(super) fn begins(since: Duration, elapsed: Duration) -> bool {
    since < elapsed.min(EVERY)
}

/// All of the tick lay where no disk copies.
pub(super) fn is_quiet(since: Duration, elapsed: Duration) -> bool {
    since >= QUIET_FROM.saturating_add(elapsed) && since <= QUIET_TO
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tick_that_crosses_the_boundary_begins_one_and_two_are_quiet() {
        let ms = Duration::from_millis;
        for phase in [0, 30, 99] {
            let ends = (0..200).map(|tick| since(ms(1_795_000_000_000 + phase + tick * 100)));
            let ticks: Vec<_> = ends.map(|s| (begins(s, ms(100)), is_quiet(s, ms(100)))).collect();
            assert_eq!(ticks.iter().filter(|t| t.0).count(), 2, "two in twenty seconds");
            let quiet = ticks.iter().filter(|t| t.1).count();
            assert!((4..=6).contains(&quiet), "{quiet}");
        }
        assert!(begins(ms(150), ms(300)), "a late tick");
        assert!(!is_quiet(ms(450), ms(300)), "a late tick had copies in it");
    }
}
