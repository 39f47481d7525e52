//! When things hold: windows of the week, time zones, and clock times of deadlines.
//!
//! Pure: the time is passed in as unix seconds, and the time zone database is part of the binary, so that all
//! coordinators agree whatever their hosts have installed. Windows follow the wall clock: on the day on which clocks go
//! forward the hour that is left out is in no window, and the hour that comes twice is in it twice.

use std::fmt;
use std::sync::LazyLock;

use jiff::Timestamp;
use jiff::civil::{DateTime, Time};
use jiff::tz::{TimeZone, TimeZoneDatabase};

use crate::core::cluster::{DAY_MINUTES, Profile, Window};
use crate::core::units::parse_seconds_of;

/// More windows than a week's hours make sense for nobody; bounds the record.
pub const WINDOWS_MAX: usize = 64;
/// A deadline further away than ten years is a typing error.
const DEADLINE_MAX_SECONDS: u64 = 10 * 366 * 86_400;
const DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
const EVERY_DAY: u8 = 0b111_1111;
const WEEK_MINUTES: usize = 7 * DAY_MINUTES as usize;

static DATABASE: LazyLock<TimeZoneDatabase> = LazyLock::new(TimeZoneDatabase::bundled);

/// What is wrong with a window, a zone or a deadline.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    /// Not a window.
    #[error(
        "{0:?} is no window: write days, from-to and a profile, as in \"Mon-Fri 02:00-06:00 recovery\" or \"22:00-05:00 foreground\""
    )]
    WindowMalformed(String),
    /// Nothing lies between its ends.
    #[error("the window {0:?} begins when it ends: write 00:00-24:00 for a whole day")]
    WindowEmpty(String),
    /// Two profiles at once.
    #[error("the windows \"{0}\" and \"{1}\" overlap: at each time one profile can hold, so shorten one of them")]
    WindowsOverlap(Window, Window),
    /// Too many.
    #[error("{0} windows are too many: the limit is {WINDOWS_MAX}")]
    TooManyWindows(usize),
    /// Not in the database.
    #[error("{0:?} is no time zone: write an IANA name, as in Europe/Berlin, or UTC")]
    ZoneUnknown(String),
    /// Not a time.
    #[error(
        "{0:?} is no deadline: write a time as in 18:00 or \"2027-01-31 18:00\", or how long it may take, as in 20h"
    )]
    DeadlineMalformed(String),
    /// Over already.
    #[error("the deadline {0} has passed already: give one that lies ahead")]
    DeadlinePassed(String),
    /// Ten years.
    #[error("the deadline {0} is more than ten years away: give a nearer one")]
    DeadlineTooFar(String),
}

/// Parses `[DAYS] HH:MM-HH:MM PROFILE`; days as in `Mon-Fri` or `Sat,Sun`; without them it is every day.
///
/// # Errors
/// The text is something else, or the window is empty.
pub fn parse_window(text: &str) -> Result<Window, ScheduleError> {
    let wrong = || ScheduleError::WindowMalformed(text.to_owned());
    let words: Vec<&str> = text.split_whitespace().collect();
    let (days, times, profile) = match words.as_slice() {
        [times, profile] => (EVERY_DAY, *times, *profile),
        [days, times, profile] => (parse_days(days).ok_or_else(wrong)?, *times, *profile),
        _ => return Err(wrong()),
    };
    let (from, to) = times.split_once('-').ok_or_else(wrong)?;
    let (from_minute, to_minute) = (parse_clock(from).ok_or_else(wrong)?, parse_clock(to).ok_or_else(wrong)?);
    let profile = Profile::ALL.into_iter().find(|p| p.name().eq_ignore_ascii_case(profile)).ok_or_else(wrong)?;
    let to_minute = if to_minute == 0 { DAY_MINUTES } else { to_minute };
    if from_minute == DAY_MINUTES {
        return Err(wrong());
    }
    if from_minute == to_minute {
        return Err(ScheduleError::WindowEmpty(text.to_owned()));
    }
    Ok(Window { days, from_minute, to_minute, profile })
}

fn parse_days(text: &str) -> Option<u8> {
    if text.eq_ignore_ascii_case("daily") {
        return Some(EVERY_DAY);
    }
    let day = |name: &str| DAYS.iter().position(|d| d.eq_ignore_ascii_case(name));
    let mut days = 0u8;
    for part in text.split(',') {
        let (first, last) = match part.split_once('-') {
            Some((first, last)) => (day(first)?, day(last)?),
            None => (day(part)?, day(part)?),
        };
        let mut at = first;
        loop {
            days |= 1 << at;
            if at == last {
                break;
            }
            at = (at + 1) % 7;
        }
    }
    Some(days)
}

/// Minutes of the day, 0 to 1440.
fn parse_clock(text: &str) -> Option<u16> {
    let (hours, minutes) = text.split_once(':')?;
    let digits = |s: &str| !s.is_empty() && s.len() <= 2 && s.bytes().all(|b| b.is_ascii_digit());
    if !digits(hours) || minutes.len() != 2 || !digits(minutes) {
        return None;
    }
    let (hours, minutes): (u16, u16) = (hours.parse().ok()?, minutes.parse().ok()?);
    let of_day = hours * 60 + minutes;
    (minutes < 60 && of_day <= DAY_MINUTES).then_some(of_day)
}

impl Window {
    /// Is this minute, of a day of the week that counts from Monday, in it?
    pub fn holds(&self, day: usize, minute: u16) -> bool {
        let begins_on = |day: usize| self.days >> (day % 7) & 1 == 1;
        if self.from_minute < self.to_minute {
            return begins_on(day) && (self.from_minute..self.to_minute).contains(&minute);
        }
        begins_on(day) && minute >= self.from_minute || begins_on(day + 6) && minute < self.to_minute
    }

    /// All that a window must be, wherever it came from.
    pub fn is_valid(&self) -> bool {
        (1..=EVERY_DAY).contains(&self.days)
            && self.from_minute < DAY_MINUTES
            && (1..=DAY_MINUTES).contains(&self.to_minute)
            && self.from_minute != self.to_minute
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.days & EVERY_DAY != EVERY_DAY {
            let mut runs: Vec<(usize, usize)> = Vec::new();
            for day in (0..7).filter(|d| self.days >> d & 1 == 1) {
                match runs.last_mut() {
                    Some((_, last)) if *last + 1 == day => *last = day,
                    _ => runs.push((day, day)),
                }
            }
            let names = runs.iter().map(|(first, last)| match last - first {
                0 => DAYS[*first].to_owned(),
                1 => format!("{},{}", DAYS[*first], DAYS[*last]),
                _ => format!("{}-{}", DAYS[*first], DAYS[*last]),
            });
            write!(f, "{} ", names.collect::<Vec<_>>().join(","))?;
        }
        let (from, to) = (self.from_minute, self.to_minute);
        write!(f, "{:02}:{:02}-{:02}:{:02} {}", from / 60, from % 60, to / 60, to % 60, self.profile.name())
    }
}

/// Checks windows against each other.
///
/// # Errors
/// One is no window, two overlap, or they are too many.
pub fn check_windows(windows: &[Window]) -> Result<(), ScheduleError> {
    if windows.len() > WINDOWS_MAX {
        return Err(ScheduleError::TooManyWindows(windows.len()));
    }
    let mut taken: Vec<Option<Window>> = vec![None; WEEK_MINUTES];
    for window in windows {
        if !window.is_valid() {
            return Err(ScheduleError::WindowEmpty(window.to_string()));
        }
        for (at, holder) in taken.iter_mut().enumerate() {
            let (day, minute) = (at / usize::from(DAY_MINUTES), (at % usize::from(DAY_MINUTES)) as u16);
            if window.holds(day, minute) {
                if let Some(other) = holder {
                    return Err(ScheduleError::WindowsOverlap(*other, *window));
                }
                *holder = Some(*window);
            }
        }
    }
    Ok(())
}

/// The zone of this IANA name; empty: UTC.
///
/// # Errors
/// The database doesn't have it.
pub fn zone(name: &str) -> Result<TimeZone, ScheduleError> {
    if name.is_empty() {
        return Ok(TimeZone::UTC);
    }
    DATABASE.get(name).map_err(|_| ScheduleError::ZoneUnknown(name.to_owned()))
}

fn local(unix_seconds: u64, zone: &TimeZone) -> Option<DateTime> {
    let at = Timestamp::from_second(i64::try_from(unix_seconds).ok()?).ok()?;
    Some(at.to_zoned_datetime(zone.clone()).datetime())
}

/// The place of the window that holds at this time.
pub fn window_at(windows: &[Window], time_zone: &str, unix_seconds: u64) -> Option<usize> {
    if windows.is_empty() {
        return None;
    }
    let at = local(unix_seconds, &zone(time_zone).ok()?)?;
    let day = at.weekday().to_monday_zero_offset().max(0) as usize;
    let minute = at.hour().max(0) as u16 * 60 + at.minute().max(0) as u16;
    windows.iter().position(|w| w.holds(day, minute))
}

/// A unix time as people read it, with its zone.
pub fn show_time(unix_seconds: u64, time_zone: &str) -> String {
    let shown = zone(time_zone).ok().and_then(|zone| local(unix_seconds, &zone));
    let Some(at) = shown else { return format!("unix time {unix_seconds}") };
    let zone = if time_zone.is_empty() { "UTC" } else { time_zone };
    format!("{:04}-{:02}-{:02} {:02}:{:02} {zone}", at.year(), at.month(), at.day(), at.hour(), at.minute())
}

/// Parses a deadline into unix seconds: `18:00` (the next one in the zone), `2027-01-31 18:00`, or a time from now as `20h`.
///
/// # Errors
/// It is none of these, has passed, or is too far away.
pub fn parse_deadline(text: &str, time_zone: &str, now_unix_seconds: u64) -> Result<u64, ScheduleError> {
    let t = text.trim();
    let wrong = || ScheduleError::DeadlineMalformed(text.to_owned());
    let zone = zone(time_zone)?;
    let of = |at: DateTime| {
        let zoned = at.to_zoned_datetime(zone.clone()).map_err(|_| wrong())?;
        u64::try_from(zoned.timestamp().as_second()).map_err(|_| ScheduleError::DeadlinePassed(text.to_owned()))
    };
    let at = if let Some((day, clock)) = t.split_once([' ', 'T']) {
        let (day, clock) = (day.trim().parse().map_err(|_| wrong())?, clock_time(clock.trim()).ok_or_else(wrong)?);
        of(DateTime::from_parts(day, clock))?
    } else if t.contains(':') {
        let clock = clock_time(t).ok_or_else(wrong)?;
        let today = local(now_unix_seconds, &zone).ok_or_else(wrong)?.date();
        match of(DateTime::from_parts(today, clock))? {
            at if at > now_unix_seconds => at,
            _ => of(DateTime::from_parts(today.tomorrow().map_err(|_| wrong())?, clock))?,
        }
    } else {
        // A number alone could be an hour as well as seconds.
        if t.ends_with(|c: char| c.is_ascii_digit()) {
            return Err(wrong());
        }
        now_unix_seconds.saturating_add(parse_seconds_of(t).map_err(|_| wrong())? as u64)
    };
    if at <= now_unix_seconds {
        return Err(ScheduleError::DeadlinePassed(text.to_owned()));
    }
    if at - now_unix_seconds > DEADLINE_MAX_SECONDS {
        return Err(ScheduleError::DeadlineTooFar(text.to_owned()));
    }
    Ok(at)
}

fn clock_time(text: &str) -> Option<Time> {
    let minutes = parse_clock(text).filter(|m| *m < DAY_MINUTES)?;
    Time::new((minutes / 60) as i8, (minutes % 60) as i8, 0, 0).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-11-25 22:30:00 UTC, a Wednesday.
    const NOW: u64 = 1_795_645_800;

    #[test]
    fn windows_read_as_they_are_written() {
        for text in [
            "Mon-Fri 02:00-06:00 recovery",
            "Sat,Sun 00:00-24:00 recovery",
            "Mon,Wed,Fri-Sun 22:30-05:00 foreground",
            "02:00-06:00 balanced",
        ] {
            assert_eq!(parse_window(text).unwrap().to_string(), text);
        }
        assert_eq!(parse_window("fri-mon 1:00-2:00 Recovery").unwrap().to_string(), "Mon,Fri-Sun 01:00-02:00 recovery");
        assert_eq!(parse_window("daily 22:00-00:00 recovery").unwrap().to_string(), "22:00-24:00 recovery");
    }

    #[test]
    fn what_is_no_window_is_named() {
        for text in [
            "",
            "recovery",
            "Mon-Fri recovery",
            "Mon-Fry 02:00-06:00 recovery",
            "Mon 2-6 recovery",
            "Mon 02:00-06:60 recovery",
            "Mon 02:00-25:00 recovery",
            "Mon 24:00-02:00 recovery",
            "Mon 02:00-06:00 fast",
            "Mon 02:00-06:00 recovery please",
            "Mon +2:00-06:00 recovery",
        ] {
            let error = parse_window(text).unwrap_err();
            assert_eq!(error, ScheduleError::WindowMalformed(text.into()));
            assert!(error.to_string().contains("Mon-Fri 02:00-06:00 recovery"), "{error}");
        }
        assert!(matches!(parse_window("Mon 02:00-02:00 recovery"), Err(ScheduleError::WindowEmpty(_))));
        assert!(matches!(parse_window("00:00-00:00 recovery"), Ok(w) if w.to_minute == DAY_MINUTES));
    }

    #[test]
    fn a_window_may_cross_midnight_and_the_week() {
        let night = parse_window("Sun 22:00-05:00 recovery").unwrap();
        let holds = |day, clock: &str| night.holds(day, parse_clock(clock).unwrap());
        assert!(holds(6, "22:00") && holds(6, "23:59") && holds(0, "0:00") && holds(0, "04:59"));
        assert!(!holds(6, "21:59") && !holds(0, "05:00") && !holds(6, "01:00") && !holds(0, "22:00"));
    }

    #[test]
    fn overlaps_are_found_also_over_midnight_and_sunday() {
        let all = |texts: &[&str]| {
            check_windows(&texts.iter().map(|t| parse_window(t).unwrap()).collect::<Vec<_>>())
                .map_err(|e| e.to_string())
        };
        assert_eq!(
            all(&["Mon-Fri 02:00-06:00 recovery", "Mon-Fri 06:00-18:00 foreground", "Sat,Sun 00:00-24:00 recovery"]),
            Ok(())
        );
        for pair in [
            ["Mon-Fri 02:00-06:00 recovery", "Wed 05:59-07:00 foreground"],
            ["Sun 22:00-05:00 recovery", "Mon 04:00-05:00 foreground"],
            ["Mon 02:00-06:00 recovery", "02:00-06:00 recovery"],
        ] {
            let error = all(&pair).unwrap_err();
            assert!(error.contains("overlap") && error.contains(pair[0]) && error.contains(pair[1]), "{error}");
        }
        let many = vec![parse_window("Mon 02:00-06:00 recovery").unwrap(); WINDOWS_MAX + 1];
        assert!(matches!(check_windows(&many), Err(ScheduleError::TooManyWindows(_))));
    }

    #[test]
    fn windows_hold_by_the_zones_wall_clock() {
        let windows =
            [parse_window("Wed 23:00-24:00 recovery").unwrap(), parse_window("Thu 00:00-01:00 foreground").unwrap()];
        assert_eq!(window_at(&windows, "", NOW), None, "22:30");
        assert_eq!(window_at(&windows, "Europe/Berlin", NOW), Some(0), "23:30");
        assert_eq!(window_at(&windows, "Europe/Berlin", NOW + 1800), Some(1), "0:00 of Thursday");
        assert_eq!(window_at(&windows, "Asia/Tokyo", NOW), None);
        // In July Berlin is two hours ahead.
        let july = NOW - 140 * 86_400;
        assert_eq!(window_at(&windows, "Europe/Berlin", july), Some(1), "0:30 of Thursday");
        assert_eq!(window_at(&[], "Nowhere", NOW), None);
        for name in ["Europe/Berln", "Mars", "../../etc/passwd", "CESTX"] {
            assert!(matches!(zone(name), Err(ScheduleError::ZoneUnknown(_))), "{name}");
        }
    }

    #[test]
    fn deadlines_are_times_ahead() {
        let at = |text: &str, zone: &str| parse_deadline(text, zone, NOW).map(|t| show_time(t, zone));
        assert_eq!(at("23:00", "").unwrap(), "2026-11-25 23:00 UTC");
        assert_eq!(at("18:00", "").unwrap(), "2026-11-26 18:00 UTC", "the next one");
        assert_eq!(at("23:00", "Europe/Berlin").unwrap(), "2026-11-26 23:00 Europe/Berlin");
        assert_eq!(at("2027-01-31 18:00", "Europe/Berlin").unwrap(), "2027-01-31 18:00 Europe/Berlin");
        assert_eq!(at("20h", "").unwrap(), "2026-11-26 18:30 UTC");
        assert_eq!(at("90m", "").unwrap(), "2026-11-26 00:00 UTC");
        for past in ["2026-11-25 22:30", "2020-01-01 00:00", "0h", "0s"] {
            let error = at(past, "").unwrap_err();
            assert!(matches!(error, ScheduleError::DeadlinePassed(_)), "{past}: {error}");
        }
        for wrong in ["", "soon", "25:00", "18", "-3h", "2026-13-01 10:00", "20 parsecs", "NaNh"] {
            let error = at(wrong, "").unwrap_err();
            assert!(matches!(error, ScheduleError::DeadlineMalformed(_)), "{wrong}: {error}");
        }
        assert!(matches!(at("5000d", ""), Err(ScheduleError::DeadlineTooFar(_))));
        assert!(matches!(at("18:00", "Moon"), Err(ScheduleError::ZoneUnknown(_))));
    }
}
