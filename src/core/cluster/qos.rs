//! A volume's own limits, which its gateway enforces.

use super::command::Refusal;

/// The most operations a second that can be asked for: 100 ns each, far above what a gateway does.
pub const IOPS_MAX: u64 = 10_000_000;
/// The least bandwidth: below, one large request of a guest takes longer than guests wait.
pub const BANDWIDTH_MIN: u64 = 64 << 10;
/// The most bandwidth: far above what a gateway does.
pub const BANDWIDTH_MAX: u64 = 16 << 30;

/// Limits of what a guest may do. Bursts of one second's worth are allowed after a pause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VolumeLimits {
    /// Reads, writes and discards a second; flushes aren't counted. `None`: no limit.
    pub iops: Option<u64>,
    /// Bytes a second that are read or written, together. `None`: no limit.
    pub bytes_per_sec: Option<u64>,
}

impl VolumeLimits {
    /// Checks them.
    ///
    /// # Errors
    /// One is out of range.
    pub fn check(&self) -> Result<(), Refusal> {
        if let Some(iops) = self.iops.filter(|n| !(1..=IOPS_MAX).contains(n)) {
            return Err(Refusal::SettingInvalid {
                name: "IOPS limit",
                value: iops.to_string(),
                way_out: "give a number from 1 to 10000000, or none",
            });
        }
        if let Some(rate) = self.bytes_per_sec.filter(|n| !(BANDWIDTH_MIN..=BANDWIDTH_MAX).contains(n)) {
            return Err(Refusal::SettingInvalid {
                name: "bandwidth limit",
                value: format!("{rate} bytes/s"),
                way_out: "give 64KiB/s to 16GiB/s, or none",
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_lie_in_their_range() {
        let limits = |iops, bytes_per_sec| VolumeLimits { iops, bytes_per_sec };
        for good in
            [limits(None, None), limits(Some(1), Some(BANDWIDTH_MIN)), limits(Some(IOPS_MAX), Some(BANDWIDTH_MAX))]
        {
            assert_eq!(good.check(), Ok(()));
        }
        for (bad, text) in [
            (limits(Some(0), None), "IOPS limit can't be 0"),
            (limits(Some(IOPS_MAX + 1), None), "10000000"),
            (limits(None, Some(0)), "bandwidth limit can't be 0 bytes/s"),
            (limits(Some(5), Some(u64::MAX)), "16GiB/s"),
        ] {
            let error = bad.check().unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
    }
}
