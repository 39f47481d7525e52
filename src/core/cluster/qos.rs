//! What a volume's guest may do, and what it is promised.
//!
//! Its gateway enforces the limits; nodes share out what several volumes want at once.

use std::fmt;

use super::command::Refusal;
use crate::core::units::HumanBytes;

/// The most operations a second that can be asked for: 100 ns each, far above what a gateway does.
pub const IOPS_MAX: u64 = 10_000_000;
/// The least bandwidth: below, one large request of a guest takes longer than guests wait.
pub const BANDWIDTH_MIN: u64 = 64 << 10;
/// The most bandwidth: far above what a gateway does.
pub const BANDWIDTH_MAX: u64 = 16 << 30;
/// The most operations that may be saved up: an hour and more of what a fast gateway does.
pub const IOPS_BURST_MAX: u64 = 1_000_000_000;
/// The most bytes that may be saved up.
pub const BANDWIDTH_BURST_MAX: u64 = 1 << 40;
/// A burst is at least its limit's worth of a second divided by this: timers and batches need so much room to reach the limit.
pub const BURST_PARTS: u64 = 10;
/// The largest share.
pub const SHARE_MAX: u32 = 1000;
/// The usual share.
pub const SHARE: u32 = 100;

/// Limits of what a guest may do, and its share where nodes are busy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VolumeQos {
    /// Reads, writes and discards a second; flushes aren't counted. `None`: no limit.
    pub iops: Option<u64>,
    /// Operations that a guest below its limit saves up, and may do at once. `None`: one second's worth.
    pub iops_burst: Option<u64>,
    /// Bytes a second that are read or written, together. `None`: no limit.
    pub bytes_per_sec: Option<u64>,
    /// Bytes that it saves up. `None`: one second's worth.
    pub bytes_burst: Option<u64>,
    /// Its weight against other volumes, 1 to [`SHARE_MAX`], on a disk that several want at once.
    pub share: u32,
}

impl Default for VolumeQos {
    fn default() -> Self {
        VolumeQos { iops: None, iops_burst: None, bytes_per_sec: None, bytes_burst: None, share: SHARE }
    }
}

impl VolumeQos {
    /// Checks them.
    ///
    /// # Errors
    /// One is out of range, or a burst has no limit to exceed.
    pub fn check(&self) -> Result<(), Refusal> {
        let invalid = |name: &'static str, value: String, way_out: &'static str| {
            Err(Refusal::SettingInvalid { name, value, way_out })
        };
        if let Some(iops) = self.iops.filter(|n| !(1..=IOPS_MAX).contains(n)) {
            return invalid("IOPS limit", iops.to_string(), "give a number from 1 to 10000000, or none");
        }
        if let Some(rate) = self.bytes_per_sec.filter(|n| !(BANDWIDTH_MIN..=BANDWIDTH_MAX).contains(n)) {
            return invalid("bandwidth limit", format!("{rate} bytes/s"), "give 64KiB/s to 16GiB/s, or none");
        }
        if let Some(burst) = self.iops_burst {
            let Some(limit) = self.iops else {
                return invalid("IOPS burst", burst.to_string(), "a burst needs an IOPS limit: give that too");
            };
            if !(limit.div_ceil(BURST_PARTS)..=IOPS_BURST_MAX).contains(&burst) {
                let way_out = "give at least a tenth of a second's worth of the limit, at most 1000000000, or none";
                return invalid("IOPS burst", burst.to_string(), way_out);
            }
        }
        if let Some(burst) = self.bytes_burst {
            let Some(limit) = self.bytes_per_sec else {
                let way_out = "a burst needs a bandwidth limit: give that too";
                return invalid("bandwidth burst", format!("{burst} bytes"), way_out);
            };
            if !(limit.div_ceil(BURST_PARTS)..=BANDWIDTH_BURST_MAX).contains(&burst) {
                let way_out = "give at least a tenth of a second's worth of the limit, at most 1TiB, or none";
                return invalid("bandwidth burst", format!("{burst} bytes"), way_out);
            }
        }
        if !(1..=SHARE_MAX).contains(&self.share) {
            return invalid("share", self.share.to_string(), "give a number from 1 to 1000; 100 is usual");
        }
        Ok(())
    }
}

impl fmt::Display for VolumeQos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let limit = |limit: Option<String>, burst: Option<String>| {
            let burst = burst.map_or(String::new(), |burst| format!(" in bursts of {burst}"));
            limit.map_or("none".to_owned(), |limit| limit + &burst)
        };
        let iops = limit(self.iops.map(|n| n.to_string()), self.iops_burst.map(|n| n.to_string()));
        let rate = self.bytes_per_sec.map(|n| format!("{}/s", HumanBytes(n)));
        let rate = limit(rate, self.bytes_burst.map(|n| HumanBytes(n).to_string()));
        write!(f, "IOPS limit {iops}, bandwidth limit {rate}, share {}", self.share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_lies_in_its_range() {
        let usual = VolumeQos::default();
        let limits = VolumeQos { iops: Some(1000), bytes_per_sec: Some(1 << 20), ..usual };
        for good in [
            usual,
            limits,
            VolumeQos { iops: Some(1), bytes_per_sec: Some(BANDWIDTH_MIN), ..usual },
            VolumeQos { iops: Some(IOPS_MAX), bytes_per_sec: Some(BANDWIDTH_MAX), ..usual },
            VolumeQos { iops_burst: Some(100), bytes_burst: Some(105 << 10), ..limits },
            VolumeQos { iops_burst: Some(IOPS_BURST_MAX), bytes_burst: Some(BANDWIDTH_BURST_MAX), ..limits },
            VolumeQos { share: 1, ..usual },
            VolumeQos { share: SHARE_MAX, ..usual },
        ] {
            assert_eq!(good.check(), Ok(()), "{good:?}");
        }
        for (bad, text) in [
            (VolumeQos { iops: Some(0), ..usual }, "IOPS limit can't be 0"),
            (VolumeQos { iops: Some(IOPS_MAX + 1), ..usual }, "10000000"),
            (VolumeQos { bytes_per_sec: Some(0), ..usual }, "bandwidth limit can't be 0 bytes/s"),
            (VolumeQos { bytes_per_sec: Some(u64::MAX), iops: Some(5), ..usual }, "16GiB/s"),
            (VolumeQos { iops_burst: Some(5), ..usual }, "needs an IOPS limit"),
            (VolumeQos { iops_burst: Some(99), ..limits }, "a tenth of a second's worth"),
            (VolumeQos { iops_burst: Some(IOPS_BURST_MAX + 1), ..limits }, "at most 1000000000"),
            (VolumeQos { bytes_burst: Some(1 << 20), ..usual }, "needs a bandwidth limit"),
            (VolumeQos { bytes_burst: Some(0), ..limits }, "bandwidth burst can't be 0 bytes"),
            (VolumeQos { bytes_burst: Some(u64::MAX), ..limits }, "at most 1TiB"),
            (VolumeQos { share: 0, ..usual }, "share can't be 0"),
            (VolumeQos { share: SHARE_MAX + 1, ..usual }, "from 1 to 1000"),
        ] {
            let error = bad.check().unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
    }
}
