//! Which disks of this node hang, and which members its primaries wait for, with hysteresis. Pure: time is passed in.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::core::ids::DiskId;
use crate::wire::stats::LaggingStats;

/// A disk that answers again, or a member that acks in time again, is named for so long still: one that comes and goes
/// must not make the coordinator move primaries to and fro.
const CALM: Duration = Duration::from_secs(2);

struct Hung {
    since: Instant,
    seen: Instant,
}

struct Lagging {
    pgs: u32,
    oldest: Duration,
    seen: Instant,
}

/// What has been seen.
#[derive(Default)]
pub struct Watch {
    hung: BTreeMap<DiskId, Hung>,
    lagging: BTreeMap<DiskId, Lagging>,
}

impl Watch {
    /// A look at a disk: since when it hangs, if it does. True if that is news.
    pub fn see_disk(&mut self, disk: DiskId, hangs_since: Option<Instant>, now: Instant) -> bool {
        match (hangs_since, self.hung.get_mut(&disk)) {
            (Some(since), None) => {
                let seconds = now.saturating_duration_since(since).as_secs();
                tracing::error!(%disk, seconds, "the disk does not answer: it serves no PG as primary until it does");
                self.hung.insert(disk, Hung { since, seen: now });
                true
            }
            (Some(_), Some(hung)) => {
                hung.seen = now;
                false
            }
            (None, Some(hung)) if now.saturating_duration_since(hung.seen) >= CALM => {
                tracing::info!(%disk, "the disk answers again");
                self.hung.remove(&disk);
                true
            }
            (None, _) => false,
        }
    }

    /// For how long the disk has hung, if it does.
    pub fn hung(&self, disk: DiskId) -> Option<Duration> {
        self.hung.get(&disk).map(|h| h.seen.saturating_duration_since(h.since))
    }

    /// A look at all primaries: PGs that wait for a disk longer than they should, and the longest wait. True if a disk is
    /// new in the list, or out of it.
    pub fn see_waits(&mut self, waits: &BTreeMap<DiskId, (u32, Duration)>, now: Instant) -> bool {
        let before = self.lagging.len();
        self.lagging.retain(|_, l| now.saturating_duration_since(l.seen) < CALM);
        let mut news = self.lagging.len() != before;
        for (disk, (pgs, oldest)) in waits {
            let lagging = Lagging { pgs: *pgs, oldest: *oldest, seen: now };
            if self.lagging.insert(*disk, lagging).is_none() {
                tracing::warn!(%disk, pgs, wait_ms = oldest.as_millis(), "writes wait for a disk");
                news = true;
            }
        }
        news
    }

    /// The list, for the coordinator.
    pub fn lagging(&self) -> impl Iterator<Item = LaggingStats> + '_ {
        self.lagging.iter().map(|(disk, l)| LaggingStats {
            disk: disk.0,
            pgs: l.pgs,
            oldest_ms: u64::try_from(l.oldest.as_millis()).unwrap_or(u64::MAX),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: DiskId = DiskId(1);

    #[test]
    fn a_disk_hangs_until_it_has_answered_for_a_while() {
        let mut watch = Watch::default();
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        assert!(!watch.see_disk(D, None, at(0)));
        assert!(watch.see_disk(D, Some(at(0)), at(5000)));
        assert!(!watch.see_disk(D, Some(at(0)), at(6000)));
        assert_eq!(watch.hung(D), Some(Duration::from_secs(6)));
        assert!(!watch.see_disk(D, None, at(6100)), "not yet believed");
        assert!(!watch.see_disk(D, Some(at(3000)), at(7000)), "it hung all along");
        assert!(!watch.see_disk(D, None, at(8900)));
        assert!(watch.see_disk(D, None, at(9000)));
        assert_eq!(watch.hung(D), None);
    }

    #[test]
    fn a_slow_member_stays_listed_for_two_seconds() {
        let mut watch = Watch::default();
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let slow = BTreeMap::from([(D, (3, Duration::from_millis(800)))]);
        assert!(watch.see_waits(&slow, at(0)));
        assert!(!watch.see_waits(&slow, at(100)));
        let listed: Vec<LaggingStats> = watch.lagging().collect();
        assert_eq!(listed, [LaggingStats { disk: 1, pgs: 3, oldest_ms: 800 }]);
        assert!(!watch.see_waits(&BTreeMap::new(), at(2000)));
        assert!(watch.see_waits(&BTreeMap::new(), at(2100)));
        assert_eq!(watch.lagging().count(), 0);
    }
}
