//! Which volume's request starts next on a disk that several volumes want at once.
//!
//! Purpose: each volume gets at least its share of the disk, however many requests another has under way.
//! - *Equal shares*: start-time fair queueing with a depth, SFQ(D) (Jin, Chase, Kaur, "Interposed proportional sharing for a
//!   storage service utility", SIGMETRICS 2004), with a part of the depth kept for each volume, so that one whose requests
//!   wait for something else (a member that doesn't answer) holds up no other. What one doesn't use, the others get.
//! - *Shares that differ* were set by somebody who wants them to hold, whatever is busy: the disk, a link, a core. By Little's
//!   law throughputs are as what is under way, so each volume has no more under way than its share of what another asks for;
//!   a guest with few requests at a time then slows others down rather than wait behind them.
//!
//! Invariants: a volume's requests start in the order in which they came; a volume alone never waits; each has one under way
//! at least. Units: what is under way counts as many small requests as it costs, see [`cost`].
//! Non-goals: limits (`gateway::qos`), and which disk a request goes to. No clock, no IO.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::core::ids::VolumeId;
use crate::core::units::Instant;

/// What is under way on one disk while several volumes want it and all have the same share. Fewer part the disk more
/// sharply (a guest with few requests at a time competes with this many), more keep a disk busier that serves many at once.
pub const DEPTH: u64 = 16;
/// Where shares differ, a volume has its part of so many under way however little the others ask for.
const DEPTH_OF_SHARES: u64 = 6;
/// So many bytes cost a disk as much as a request by itself does: here 4 KiB take a tenth of a millisecond of all that is
/// involved, 1 MiB somewhat over one.
const BYTES_COST: u64 = 64 << 10;
/// Virtual time of one small request at a share of 1.
const TIME: u64 = 1 << 20;
/// A guest that waits for each answer before it asks again is not gone between the two.
const PRESENT: Duration = Duration::from_millis(100);

/// How many small requests one with so many bytes counts for.
fn cost(bytes: u64) -> u64 {
    1 + bytes / BYTES_COST
}

/// What one volume has here.
struct Flow<T> {
    share: u32,
    waiting: VecDeque<(u64, T)>,
    /// Cost of what waits and of what is under way.
    asked: u64,
    /// Cost of what is under way.
    started: u64,
    /// Virtual time at which what it has started is done.
    finish: u64,
    /// When it last asked or was answered.
    seen: Instant,
}

impl<T> Flow<T> {
    fn is_present(&self, now: Instant) -> bool {
        self.started > 0 || !self.waiting.is_empty() || now.since(self.seen) < PRESENT
    }
}

/// The requests of one disk. Bounded by what gateways have under way.
pub struct FairQueue<T> {
    flows: BTreeMap<VolumeId, Flow<T>>,
    /// Cost of all that is under way.
    started: u64,
    /// Virtual time: that of what was started last.
    clock: u64,
}

impl<T> Default for FairQueue<T> {
    fn default() -> Self {
        FairQueue { flows: BTreeMap::new(), started: 0, clock: 0 }
    }
}

impl<T> FairQueue<T> {
    /// A request has come, `bytes` of it are data. `Some`: it starts now, else [`FairQueue::next`] gives it later. Each that
    /// was started ends by [`FairQueue::ended`].
    pub fn offer(&mut self, volume: VolumeId, share: u32, bytes: u64, request: T, now: Instant) -> Option<T> {
        let fresh = || Flow { share, waiting: VecDeque::new(), asked: 0, started: 0, finish: 0, seen: now };
        let flow = self.flows.entry(volume).or_insert_with(fresh);
        (flow.share, flow.seen) = (share.max(1), now);
        flow.waiting.push_back((cost(bytes), request));
        flow.asked += cost(bytes);
        let first = flow.waiting.len() == 1;
        // Those that wait from before aren't overtaken by it, nor do they become able to start because it came.
        if first && self.may_start(volume, now) { self.start(volume) } else { None }
    }

    /// What starts next; to be asked until it gives nothing, after requests have ended and from time to time.
    pub fn next(&mut self, now: Instant) -> Option<T> {
        let begins = |flow: &Flow<T>| flow.finish.max(self.clock);
        let waiting = self.flows.iter().filter(|(_, flow)| !flow.waiting.is_empty());
        let mut waiting: Vec<(u64, VolumeId)> = waiting.map(|(id, flow)| (begins(flow), *id)).collect();
        waiting.sort_unstable();
        let volume = waiting.into_iter().map(|(_, id)| id).find(|id| self.may_start(*id, now))?;
        self.start(volume)
    }

    /// One that was started, with so many bytes, is answered, or waits for something else than this disk.
    pub fn ended(&mut self, volume: VolumeId, bytes: u64, now: Instant) {
        let Some(flow) = self.flows.get_mut(&volume) else { return };
        let cost = cost(bytes).min(flow.started);
        flow.started -= cost;
        flow.asked -= cost;
        flow.seen = now;
        self.started -= cost;
    }

    /// Takes out those that wait and aren't to be kept.
    pub fn withdraw(&mut self, mut keep: impl FnMut(&T) -> bool) -> Vec<T> {
        let mut out = Vec::new();
        for flow in self.flows.values_mut() {
            let (kept, gone): (VecDeque<_>, VecDeque<_>) =
                std::mem::take(&mut flow.waiting).into_iter().partition(|(_, request)| keep(request));
            flow.waiting = kept;
            flow.asked -= gone.iter().map(|(cost, _)| cost).sum::<u64>();
            out.extend(gone.into_iter().map(|(_, request)| request));
        }
        out
    }

    /// Forgets volumes that have left.
    pub fn forget_absent(&mut self, now: Instant) {
        self.flows.retain(|_, flow| flow.is_present(now));
        if self.flows.is_empty() {
            self.clock = 0;
        }
    }

    /// True if nothing waits: then nothing starts by [`FairQueue::next`] either.
    pub fn is_idle(&self) -> bool {
        self.flows.values().all(|flow| flow.waiting.is_empty())
    }

    fn may_start(&self, volume: VolumeId, now: Instant) -> bool {
        let Some(flow) = self.flows.get(&volume) else { return false };
        let present = self.flows.values().filter(|other| other.is_present(now));
        let (mut volumes, mut shares, mut largest, mut differ, mut matched) = (0, 0, 1, false, 0);
        for other in present {
            volumes += 1;
            shares += u64::from(other.share);
            largest = largest.max(u64::from(other.share));
            differ |= other.share != flow.share;
            if !std::ptr::eq(other, flow) {
                matched = matched.max(other.asked * u64::from(flow.share) / u64::from(other.share));
            }
        }
        let part = |depth: u64| depth * u64::from(flow.share) / shares.max(1);
        volumes <= 1
            || flow.started == 0
            || if differ {
                // The volume with the largest share has no more than the depth, the others in proportion.
                let most = DEPTH * u64::from(flow.share) / largest;
                flow.started < part(DEPTH_OF_SHARES).max(matched.min(most))
            } else {
                self.started < DEPTH || flow.started < part(DEPTH)
            }
    }

    fn start(&mut self, volume: VolumeId) -> Option<T> {
        let flow = self.flows.get_mut(&volume)?;
        let (cost, request) = flow.waiting.pop_front()?;
        self.clock = self.clock.max(flow.finish);
        flow.finish = self.clock.saturating_add(cost.saturating_mul(TIME) / u64::from(flow.share));
        flow.started += cost;
        self.started += cost;
        Some(request)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// A disk that answers one request a turn, and guests that keep so many under way: how many of each it answered.
    fn serve(guests: &[(u32, u32, u64)], turns: u32) -> Vec<u32> {
        let mut queue = FairQueue::default();
        let mut now = Instant(1);
        let mut at_disk = VecDeque::new();
        let mut done = vec![0; guests.len()];
        for (i, (share, depth, bytes)) in guests.iter().enumerate() {
            for _ in 0..*depth {
                at_disk.extend(queue.offer(VolumeId(i as u64), *share, *bytes, i, now));
            }
        }
        for _ in 0..turns {
            now = now + MS;
            let i: usize = at_disk.pop_front().expect("the disk is never idle while guests wait");
            done[i] += 1;
            let (share, _, bytes) = guests[i];
            queue.ended(VolumeId(i as u64), bytes, now);
            at_disk.extend(queue.offer(VolumeId(i as u64), share, bytes, i, now));
            at_disk.extend(std::iter::from_fn(|| queue.next(now)));
        }
        done
    }

    #[test]
    fn a_volume_alone_never_waits() {
        let mut queue = FairQueue::default();
        for i in 0..1000 {
            assert_eq!(queue.offer(VolumeId(1), 1, 4096, i, Instant(0)), Some(i));
        }
        assert!(queue.is_idle());
    }

    #[test]
    fn shares_hold_among_those_that_want_more() {
        let done = serve(&[(100, 64, 4096), (300, 64, 4096)], 10_000);
        assert!((2300..2700).contains(&done[0]), "{done:?}");
        // Where the one with the larger share asks for little at a time, it is that which is shared.
        let done = serve(&[(100, 64, 4096), (900, 6, 4096)], 10_000);
        assert!(done[1] > 5 * done[0] && done[1] < 9 * done[0], "{done:?}");
        // However many one has under way.
        let done = serve(&[(100, 500, 4096), (100, 20, 4096)], 10_000);
        assert!((4500..5500).contains(&done[1]), "{done:?}");
        // Large requests count for more.
        let done = serve(&[(100, 64, 1 << 20), (100, 64, 4096)], 10_000);
        assert!(done[1] > 6 * done[0] && done[1] < 18 * done[0], "{done:?}");
    }

    #[test]
    fn one_at_a_time_waits_for_no_queue_but_the_disks() {
        let done = serve(&[(100, 500, 4096), (100, 1, 4096)], 10_000);
        assert!(u64::from(done[1]) >= 10_000 / (DEPTH + 1) - 50, "{done:?}");
        let small = serve(&[(1000, 500, 4096), (1, 1, 4096)], 10_000);
        assert!(u64::from(small[1]) >= 10_000 / (DEPTH + 1) - 50, "not even with the smallest share: {small:?}");
    }

    #[test]
    fn requests_that_hang_hold_up_no_other_volume() {
        let mut queue = FairQueue::default();
        let now = Instant(0);
        for i in 0..100 {
            queue.offer(VolumeId(1), 100, 4096, i, now);
        }
        // All hundred had started, as the volume was alone, and none ends. Another still has its part.
        let started: Vec<_> = (0..100).filter_map(|i| queue.offer(VolumeId(2), 100, 4096, i, now)).collect();
        assert_eq!(started, (0..DEPTH as i32 / 2).collect::<Vec<_>>());
        // Declared to wait for something else, they leave the depth to the others.
        (0..100).for_each(|_| queue.ended(VolumeId(1), 4096, now));
        assert_eq!(std::iter::from_fn(|| queue.next(now)).count(), DEPTH as usize / 2);
        // And when the first has left, the second is alone.
        let later = now + PRESENT;
        assert_eq!(std::iter::from_fn(|| queue.next(later)).count(), 100 - DEPTH as usize);
    }

    #[test]
    fn what_is_withdrawn_never_starts() {
        let mut queue = FairQueue::default();
        let now = Instant(0);
        queue.offer(VolumeId(2), 100, 4096, 1000, now);
        let started: Vec<_> = (0..40).filter_map(|i| queue.offer(VolumeId(1), 100, 4096, i, now)).collect();
        let withdrawn = queue.withdraw(|i| i % 2 == 0);
        assert_eq!(started.len() + withdrawn.len(), 40 - (started.len()..40).filter(|i| i % 2 == 0).count());
        (0..started.len()).for_each(|_| queue.ended(VolumeId(1), 4096, now));
        let rest: Vec<_> = std::iter::from_fn(|| queue.next(now)).collect();
        assert!(!rest.is_empty() && rest.iter().all(|i| i % 2 == 0), "{rest:?}");
        queue.ended(VolumeId(2), 4096, now);
        queue.forget_absent(now + PRESENT);
        assert_eq!(queue.flows.len(), 1, "the one with requests under way is kept");
    }

    proptest! {
        #[test]
        fn order_is_kept_nothing_is_lost_and_whoever_waits_has_something_under_way(
            steps in prop::collection::vec((0u64..4, 1u32..1000, 0u64..(4 << 20), 0u32..3), 1..400),
        ) {
            let mut queue = FairQueue::default();
            let mut now = Instant(0);
            let mut under_way: VecDeque<(u64, u64)> = VecDeque::new();
            let mut started = [0u64; 4];
            let mut offered = [0u64; 4];
            let mut take = |under_way: &mut VecDeque<(u64, u64)>, got: Option<(u64, u64, u64)>| {
                if let Some((volume, number, bytes)) = got {
                    assert_eq!(number, started[volume as usize], "in order");
                    started[volume as usize] += 1;
                    under_way.push_back((volume, bytes));
                }
                got.is_some()
            };
            for (volume, share, bytes, ends) in steps {
                now = now + MS;
                let number = offered[volume as usize];
                offered[volume as usize] += 1;
                let got = queue.offer(VolumeId(volume), share, bytes, (volume, number, bytes), now);
                take(&mut under_way, got);
                for _ in 0..ends {
                    if let Some((volume, bytes)) = under_way.pop_front() {
                        queue.ended(VolumeId(volume), bytes, now);
                    }
                }
                while take(&mut under_way, queue.next(now)) {}
                prop_assert!(queue.is_idle() || !under_way.is_empty());
            }
            while let Some((volume, bytes)) = under_way.pop_front() {
                queue.ended(VolumeId(volume), bytes, now);
                while take(&mut under_way, queue.next(now)) {}
            }
            prop_assert_eq!(started, offered);
            prop_assert!(queue.started == 0 && queue.flows.values().all(|flow| flow.asked == 0));
        }
    }
}
