//! Sizes, rates and times, with their units in the type or the name; and the system's fixed sizes.

use std::fmt;
use std::time::Duration;

/// Bytes in a chunk: the piece of a volume that has one header and one hash.
pub const CHUNK_BYTES: u64 = 4 << 20;
/// Bytes in a block: the unit of hashing, of dirty tracking and of partial resync.
pub const BLOCK_BYTES: u64 = 4096;
/// Blocks in a chunk.
pub const BLOCKS_PER_CHUNK: usize = (CHUNK_BYTES / BLOCK_BYTES) as usize;
/// Bytes in a resync window: what may be locked against writes at once (R17).
pub const WINDOW_BYTES: u64 = 256 << 10;
/// Blocks in a window.
pub const BLOCKS_PER_WINDOW: usize = (WINDOW_BYTES / BLOCK_BYTES) as usize;
/// Windows in a chunk.
pub const WINDOWS_PER_CHUNK: usize = (CHUNK_BYTES / WINDOW_BYTES) as usize;
/// Bytes in a sector: the smallest unit that a guest may address.
pub const SECTOR_BYTES: u64 = 512;

const _: () = assert!(CHUNK_BYTES.is_multiple_of(WINDOW_BYTES) && WINDOW_BYTES.is_multiple_of(BLOCK_BYTES));
const _: () = assert!(BLOCK_BYTES.is_multiple_of(SECTOR_BYTES));

/// A moment on a monotonic clock, in nanoseconds since an arbitrary origin (CLOCK_BOOTTIME in the daemons, R7).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Instant(pub u64);

impl Instant {
    /// Time since `earlier`; zero if `earlier` is later.
    pub fn since(self, earlier: Instant) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl std::ops::Add<Duration> for Instant {
    type Output = Instant;
    fn add(self, d: Duration) -> Instant {
        Instant(self.0.saturating_add(d.as_nanos().min(u128::from(u64::MAX)) as u64))
    }
}

/// A text that is not a size or a rate.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ParseUnit {
    /// Neither a number nor a known unit.
    #[error("{0:?} is not a size: write bytes, or a number with KiB, MiB, GiB, TiB (or kB, MB, GB, TB), as in 4GiB")]
    Malformed(String),
    /// More than 2^63 − 1 bytes, or less than zero.
    #[error("{0:?} is out of range: a size lies between 0 and 8 EiB")]
    OutOfRange(String),
}

/// Parses a size: `4096`, `4GiB`, `1.5TiB`, `64K` (binary), `20MB` (decimal).
///
/// # Errors
/// The text is no number with a known unit, or lies outside 0..2^63.
pub fn parse_bytes(text: &str) -> Result<u64, ParseUnit> {
    let t = text.trim();
    let split = t.find(|c: char| !c.is_ascii_digit() && c != '.' && c != '-').unwrap_or(t.len());
    let (number, unit) = t.split_at(split);
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        "p" | "pib" => 1 << 50,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        "pb" => 1_000_000_000_000_000,
        _ => return Err(ParseUnit::Malformed(text.to_owned())),
    };
    if let Ok(n) = number.parse::<u64>() {
        return n.checked_mul(factor).filter(|v| *v < 1 << 63).ok_or_else(|| ParseUnit::OutOfRange(text.to_owned()));
    }
    let n: f64 = number.parse().map_err(|_| ParseUnit::Malformed(text.to_owned()))?;
    let v = n * factor as f64;
    if (0.0..9.2e18).contains(&v) { Ok(v as u64) } else { Err(ParseUnit::OutOfRange(text.to_owned())) }
}

/// Parses a rate: as [`parse_bytes`], with an optional `/s`.
///
/// # Errors
/// As [`parse_bytes`].
pub fn parse_bytes_per_sec(text: &str) -> Result<u64, ParseUnit> {
    parse_bytes(text.trim().strip_suffix("/s").unwrap_or(text))
}

/// A text that is not a time.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not a time: write a number with s, m, h or d, as in 10m or 1.5h")]
pub struct ParseTime(pub String);

/// Parses a time into seconds: `90`, `90s`, `10m`, `1.5h`, `2d`; up to 100 years.
///
/// # Errors
/// The text is no number with a known unit, or is out of range.
pub fn parse_seconds_of(text: &str) -> Result<f64, ParseTime> {
    let t = text.trim();
    let wrong = || ParseTime(text.to_owned());
    let split = t.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(t.len());
    let (number, unit) = t.split_at(split);
    let factor = match unit.trim() {
        "" | "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        "d" => 86_400.0,
        _ => return Err(wrong()),
    };
    let seconds = number.parse::<f64>().map_err(|_| wrong())? * factor;
    const CENTURY: f64 = 100.0 * 365.25 * 86_400.0;
    if (0.0..=CENTURY).contains(&seconds) { Ok(seconds) } else { Err(wrong()) }
}

/// Shows bytes with a binary unit and up to one decimal: `1.5 GiB`.
#[derive(Clone, Copy, Debug)]
pub struct HumanBytes(pub u64);

impl fmt::Display for HumanBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut v = self.0 as f64;
        for unit in ["B", "KiB", "MiB", "GiB", "TiB", "PiB"] {
            if v < 1023.95 || unit == "PiB" {
                return if v.fract() < 0.05 || unit == "B" {
                    write!(f, "{v:.0} {unit}")
                } else {
                    write!(f, "{v:.1} {unit}")
                };
            }
            v /= 1024.0;
        }
        unreachable!("the last unit takes every value")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_parse_with_and_without_units() {
        assert_eq!(parse_bytes("4096"), Ok(4096));
        assert_eq!(parse_bytes("4GiB"), Ok(4 << 30));
        assert_eq!(parse_bytes("1.5TiB"), Ok(3 << 39));
        assert_eq!(parse_bytes("20MB"), Ok(20_000_000));
        assert_eq!(parse_bytes_per_sec("20MiB/s"), Ok(20 << 20));
        for bad in ["", "x", "4XB", "1.2.3GiB", "GiB"] {
            assert!(matches!(parse_bytes(bad), Err(ParseUnit::Malformed(_))), "{bad}");
        }
        for bad in ["-1", "16EiB", "99999999TiB", "9223372036854775808"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times_parse() {
        assert_eq!(
            ["90", "0s", "10m", "1.5h", "2d"].map(|t| parse_seconds_of(t).unwrap()),
            [90.0, 0.0, 600.0, 5400.0, 172_800.0]
        );
        for bad in ["", "x", "5x", "-1s", "1e9d", "99999999d"] {
            assert!(parse_seconds_of(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn bytes_show_with_a_unit() {
        assert_eq!(HumanBytes(0).to_string(), "0 B");
        assert_eq!(HumanBytes(1536).to_string(), "1.5 KiB");
        assert_eq!(HumanBytes(4 << 30).to_string(), "4 GiB");
    }
}
