//! Deadlines: what floor they need, and whether they can hold.
//!
//! A deadline is met if the busiest disk works off what it has to read, or to write, in time; floors hold for each disk and
//! direction. So what is needed is that disk's bytes over the time left, with a margin. Units: bytes, seconds. Pure.

use std::fmt;

use crate::core::cluster::DeadlineWins;
use crate::core::units::HumanBytes;

/// Needed floors are multiples of this, so that they don't change each second.
pub const STEP_BYTES_PER_SEC: u64 = 1 << 20;
/// A tenth more than what is needed exactly: copies don't follow each other without a gap.
const MARGIN: (u128, u128) = (11, 10);
/// A needed floor falls only when it is this part of the one before: while a disk works at its floor, what is needed stays
/// the same or falls a little.
const FALLS_BELOW: (u128, u128) = (3, 4);
/// A rate that was measured so soon after the deadline was set is that of before: the floor that it brings has yet to act.
const ACTS_WITHIN_SECONDS: u64 = 5;

/// The floor for each disk that the busiest one needs; 0 bytes need none. `before`: what was answered last.
pub fn needed_floor(before: Option<u64>, busiest_bytes: u64, seconds_left: u64) -> Option<u64> {
    if busiest_bytes == 0 {
        return None;
    }
    let exact = (u128::from(busiest_bytes) * MARGIN.0).div_ceil(u128::from(seconds_left.max(1)) * MARGIN.1);
    let steps = exact.div_ceil(u128::from(STEP_BYTES_PER_SEC));
    let rounded = u64::try_from(steps.max(1) * u128::from(STEP_BYTES_PER_SEC)).unwrap_or(u64::MAX);
    match before {
        Some(before)
            if rounded <= before && u128::from(rounded) * FALLS_BELOW.1 > u128::from(before) * FALLS_BELOW.0 =>
        {
            Some(before)
        }
        _ => Some(rounded),
    }
}

/// What is known of a deadline now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outlook {
    /// 0: it has passed.
    pub seconds_left: u64,
    /// Bytes of copies that are missing, over all disks.
    pub left_bytes: u64,
    /// PGs that lack a copy for which nothing is planned at this moment.
    pub lacking_pgs: u64,
    /// Of them, those that did so at the look before: no mere moment between two steps.
    pub unplanned_pgs: u64,
    /// What it needs on each disk, as [`needed_floor`] has it.
    pub needed_bytes_per_sec: Option<u64>,
    /// The cap that is lowest on a disk that has work.
    pub cap_bytes_per_sec: Option<u64>,
    /// Something that has to run is paused.
    pub paused: bool,
    /// Since it was set, as far as is known.
    pub set_seconds_ago: u64,
    /// Seconds until it is done as things go, if that is known.
    pub eta_seconds: Option<f64>,
    /// The guests' p99 that is furthest above its target: measured and target, in microseconds.
    pub over_target_us: Option<(u64, u64)>,
    /// What yields.
    pub wins: DeadlineWins,
}

/// What is to be said of a deadline.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    /// Every copy is there.
    Met,
    /// It passed, with so many bytes left.
    Missed {
        /// Bytes.
        left_bytes: u64,
    },
    /// Needed and done.
    Holds {
        /// On each disk.
        needed: u64,
    },
    /// It holds at the guests' cost.
    HoldsAboveTarget {
        /// Measured p99.
        p99_us: u64,
        /// What is aimed at.
        target_us: u64,
    },
    /// The operator's cap is lower than what it needs.
    CapTooLow {
        /// On each disk.
        needed: u64,
        /// The cap.
        cap: u64,
    },
    /// Paused.
    Paused,
    /// Nothing is planned for so many PGs, for lack of room or of a grace's end.
    Unplanned {
        /// PGs.
        pgs: u64,
    },
    /// It goes too slowly, whatever is allowed.
    TooSlow {
        /// Until it is done.
        eta_seconds: u64,
        /// Until the deadline.
        seconds_left: u64,
    },
    /// It would hold above the latency target, which wins.
    LatencyWins {
        /// Until it is done.
        eta_seconds: u64,
        /// Until the deadline.
        seconds_left: u64,
        /// On each disk.
        needed: u64,
    },
    /// Copies have just begun, or wait: no rate is known, and nothing guarantees one.
    Unknown,
}

impl Verdict {
    /// It doesn't hold.
    pub fn is_bad(&self) -> bool {
        matches!(
            self,
            Verdict::Missed { .. }
                | Verdict::CapTooLow { .. }
                | Verdict::Paused
                | Verdict::Unplanned { .. }
                | Verdict::TooSlow { .. }
                | Verdict::LatencyWins { .. }
        )
    }
}

/// Judges a deadline.
pub fn judge(o: &Outlook) -> Verdict {
    if o.left_bytes == 0 && o.lacking_pgs == 0 {
        return Verdict::Met;
    }
    if o.seconds_left == 0 {
        return Verdict::Missed { left_bytes: o.left_bytes };
    }
    if o.paused {
        return Verdict::Paused;
    }
    if o.unplanned_pgs > 0 {
        return Verdict::Unplanned { pgs: o.unplanned_pgs };
    }
    if o.left_bytes == 0 {
        return Verdict::Unknown;
    }
    let needed = o.needed_bytes_per_sec.unwrap_or(0);
    if let Some(cap) = o.cap_bytes_per_sec.filter(|cap| *cap < needed) {
        return Verdict::CapTooLow { needed, cap };
    }
    // Negative: what is left grows.
    let eta = o
        .eta_seconds
        .filter(|_| o.set_seconds_ago >= ACTS_WITHIN_SECONDS)
        .map(|s| if s < 0.0 { u64::MAX } else { s as u64 });
    let late = eta.filter(|eta| *eta > o.seconds_left);
    match (late, o.wins) {
        (Some(eta_seconds), DeadlineWins::Latency) => {
            Verdict::LatencyWins { eta_seconds, seconds_left: o.seconds_left, needed }
        }
        (Some(eta_seconds), DeadlineWins::Deadline) => Verdict::TooSlow { eta_seconds, seconds_left: o.seconds_left },
        (None, DeadlineWins::Latency) if eta.is_none() => Verdict::Unknown,
        (None, _) => match o.over_target_us {
            Some((p99_us, target_us)) => Verdict::HoldsAboveTarget { p99_us, target_us },
            None => Verdict::Holds { needed },
        },
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rate = |bytes: u64| format!("{}/s", HumanBytes(bytes));
        let ms = |us: u64| format!("{} ms", (us as f64 / 100.0).round() / 10.0);
        let minutes = |s: u64| {
            if s == u64::MAX { "for ever".to_owned() } else { format!("{} min", s.div_ceil(60)) }
        };
        match *self {
            Verdict::Met => f.write_str("holds: every copy is there"),
            Verdict::Missed { left_bytes } => {
                write!(f, "missed: {} were left when it passed, or are missing since", HumanBytes(left_bytes))
            }
            Verdict::Holds { needed } => write!(f, "holds: needs {} a disk", rate(needed)),
            Verdict::HoldsAboveTarget { p99_us, target_us } => {
                write!(f, "holds only above the latency target: p99 {} against {}", ms(p99_us), ms(target_us))
            }
            Verdict::CapTooLow { needed, cap } => {
                write!(f, "can't hold: needs {} a disk, the cap allows {}", rate(needed), rate(cap))
            }
            Verdict::Paused => f.write_str("can't hold while copies that it needs are paused"),
            Verdict::Unplanned { pgs } => write!(
                f,
                "can't hold yet: nothing is planned for {pgs} placement groups that lack a copy; their nodes may return within the grace, or there is no room"
            ),
            Verdict::TooSlow { eta_seconds, seconds_left } => write!(
                f,
                "can't hold: at the rate of now it takes {}, and {} are left",
                minutes(eta_seconds),
                minutes(seconds_left)
            ),
            Verdict::LatencyWins { eta_seconds, seconds_left, needed } => write!(
                f,
                "can't hold within the latency target: it takes {}, and {} are left; it needs {} a disk, which `--deadline-wins deadline` would give",
                minutes(eta_seconds),
                minutes(seconds_left),
                rate(needed)
            ),
            Verdict::Unknown => f.write_str("not known yet: copies have just begun, or wait"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_needed_floor_has_a_margin_and_moves_in_steps() {
        assert_eq!(needed_floor(None, 0, 100), None);
        assert_eq!(needed_floor(None, 1, 1_000_000), Some(MIB));
        assert_eq!(needed_floor(None, 1000 * MIB, 100), Some(11 * MIB));
        assert_eq!(needed_floor(None, 1001 * MIB, 100), Some(12 * MIB));
        assert_eq!(needed_floor(None, 100 * MIB, 0), Some(110 * MIB));
        assert_eq!(needed_floor(None, u64::MAX, 0), Some(u64::MAX));
        // Up at once, down only by a quarter.
        assert_eq!(needed_floor(Some(11 * MIB), 1001 * MIB, 100), Some(12 * MIB));
        assert_eq!(needed_floor(Some(12 * MIB), 900 * MIB, 100), Some(12 * MIB));
        assert_eq!(needed_floor(Some(12 * MIB), 800 * MIB, 100), Some(9 * MIB));
    }

    #[test]
    fn a_disk_that_works_at_the_needed_floor_ends_in_time_and_the_floor_hardly_changes() {
        for (bytes, seconds) in [(10_000 * MIB, 600), (MIB, 3600), (77 << 30, 86_400), (3 << 40, 7200)] {
            let (mut left, mut floor, mut changes) = (bytes, None, 0);
            for s in 0..seconds {
                let next = needed_floor(floor, left, seconds - s);
                changes += u64::from(next != floor);
                floor = next;
                left = left.saturating_sub(floor.unwrap_or(0));
            }
            assert_eq!(left, 0, "{bytes} in {seconds}");
            assert!(changes <= 24, "{changes} changes for {bytes} in {seconds}");
        }
    }

    #[test]
    fn verdicts_say_what_bounds() {
        let base = Outlook {
            seconds_left: 600,
            left_bytes: 1 << 30,
            lacking_pgs: 0,
            unplanned_pgs: 0,
            needed_bytes_per_sec: Some(80 * MIB),
            cap_bytes_per_sec: None,
            paused: false,
            set_seconds_ago: 60,
            eta_seconds: None,
            over_target_us: None,
            wins: DeadlineWins::Deadline,
        };
        let latency = Outlook { wins: DeadlineWins::Latency, ..base };
        let cases = [
            (base, "holds: needs 80 MiB/s a disk", false),
            (
                Outlook { cap_bytes_per_sec: Some(20 * MIB), ..base },
                "can't hold: needs 80 MiB/s a disk, the cap allows 20 MiB/s",
                true,
            ),
            (Outlook { cap_bytes_per_sec: Some(80 * MIB), ..base }, "holds: needs", false),
            (
                Outlook { over_target_us: Some((12_000, 4_000)), ..base },
                "holds only above the latency target: p99 12 ms against 4 ms",
                false,
            ),
            (Outlook { left_bytes: 0, ..base }, "holds: every copy is there", false),
            (Outlook { seconds_left: 0, ..base }, "missed: 1 GiB were left", true),
            (Outlook { seconds_left: 0, left_bytes: 0, ..base }, "every copy", false),
            (Outlook { paused: true, ..base }, "paused", true),
            (Outlook { lacking_pgs: 5, unplanned_pgs: 3, left_bytes: 0, ..base }, "nothing is planned for 3", true),
            (Outlook { lacking_pgs: 5, left_bytes: 0, ..base }, "not known yet", false),
            (Outlook { lacking_pgs: 5, ..base }, "holds: needs", false),
            (Outlook { eta_seconds: Some(1200.0), ..base }, "takes 20 min, and 10 min are left", true),
            // At the rate of before its floor acts.
            (Outlook { eta_seconds: Some(1200.0), set_seconds_ago: 1, ..base }, "holds: needs", false),
            (Outlook { eta_seconds: Some(1200.0), set_seconds_ago: 1, ..latency }, "not known yet", false),
            (Outlook { eta_seconds: Some(-5.0), ..base }, "takes for ever", true),
            (Outlook { eta_seconds: Some(300.0), ..latency }, "holds: needs", false),
            (Outlook { eta_seconds: Some(1200.0), ..latency }, "within the latency target: it takes 20 min", true),
            (latency, "not known yet", false),
        ];
        for (outlook, text, bad) in cases {
            let verdict = judge(&outlook);
            assert!(verdict.to_string().contains(text), "{verdict}, not {text}");
            assert_eq!(verdict.is_bad(), bad, "{verdict}");
        }
    }
}
