//! Numbers and times as people read them: one way for the command line, the console and what the coordinator tells.

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// A count with thousands separated, as in 12,345.
pub fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// A duration for people: `0.8 s`, `12 s`, `3 min 5 s`, `2 h 10 min`, `5 d 3 h`.
pub fn human_seconds(seconds: f64) -> String {
    // What doesn't fit a u64 (or is no number) is shown as unknown rather than as a wrong number.
    if !seconds.is_finite() || !(0.0..1e12).contains(&seconds) {
        return "unknown".to_owned();
    }
    if seconds < 10.0 {
        return format!("{seconds:.1} s");
    }
    let s = seconds.round() as u64;
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{} min {} s", s / 60, s % 60),
        3600..86_400 => format!("{} h {} min", s / 3600, s % 3600 / 60),
        _ => format!("{} d {} h", s / 86_400, s % 86_400 / 3600),
    }
}

/// Microseconds for people: `850 µs`, `1.9 ms`, `2.10 s`.
pub fn human_us(us: u64) -> String {
    match us {
        0..1000 => format!("{us} µs"),
        1000..1_000_000 => format!("{:.1} ms", us as f64 / 1e3),
        _ => format!("{:.2} s", us as f64 / 1e6),
    }
}

/// Unix milliseconds as date and time of day, both UTC: `2026-01-31`, `12:00:00`.
pub fn utc(unix_ms: u64) -> (String, String) {
    let at = i64::try_from(unix_ms / 1000).ok().and_then(|s| Timestamp::from_second(s).ok()).unwrap_or(Timestamp::MAX);
    let at = at.to_zoned_datetime(TimeZone::UTC).datetime();
    (at.date().to_string(), format!("{:02}:{:02}:{:02}", at.hour(), at.minute(), at.second()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!([0, 999, 1000, 1_234_567].map(thousands), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(
            [0.84, 9.94, 12.4, 59.6, 185.0, 3725.0, 7800.0, 442_800.0, f64::NAN].map(human_seconds),
            ["0.8 s", "9.9 s", "12 s", "1 min 0 s", "3 min 5 s", "1 h 2 min", "2 h 10 min", "5 d 3 h", "unknown"]
        );
        assert_eq!([850, 1900, 250_000, 2_100_000].map(human_us), ["850 µs", "1.9 ms", "250.0 ms", "2.10 s"]);
    }

    #[test]
    fn times_are_utc() {
        let both = |date: &str, time: &str| (date.to_owned(), time.to_owned());
        assert_eq!(utc(0), both("1970-01-01", "00:00:00"));
        assert_eq!(utc(951_782_400_000), both("2000-02-29", "00:00:00"));
        assert_eq!(utc(1_767_225_599_999), both("2025-12-31", "23:59:59"));
        assert!(utc(u64::MAX).0.starts_with("9999-"), "any number is shown");
    }
}
