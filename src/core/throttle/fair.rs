//! Which volume's request starts next on a disk that several volumes want at once.
//!
//! Purpose: each volume gets at least its share of the disk, however many requests another has under way.
//! - *Equal shares*: start-time fair queueing with a depth, SFQ(D) (Jin, Chase, Kaur, "Interposed proportional sharing for a
//!   storage service utility", SIGMETRICS 2004), with a part of the depth kept for each volume, so that one whose requests
//!   wait for something else (a member that doesn't answer) holds up no other. What one doesn't use, the others get.
//! - *Shares that differ* were set by somebody who wants them to hold, whatever is busy: the disk, a link, a core. By Little's
//!   law throughputs are as what is under way, so each volume has no more under way than its share of what another asks for;
//!   a busy guest with few requests at a time then slows others down rather than wait behind them. One that asks for little
//!   slows nobody down: the others' bound rises as the time falls in which it waits for an answer.
//!
//! Invariants: a volume's requests start in the order in which they came; one beside which no other is busy never waits; each
//! has one under way at least. Units: what is under way counts as many small requests as it costs, see [`cost`].
//! Non-goals: limits (`gateway::qos`), and which disk a request goes to. No clock, no IO.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::core::ids::VolumeId;
use crate::core::units::Instant;

/// What is under way on one disk while several volumes are busy there: enough for a disk that serves many at once, and for a
/// few large requests.
pub const DEPTH: u64 = 64;
/// Where shares differ, a volume has its part of so many under way however little the others ask for.
const DEPTH_OF_SHARES: u64 = 6;
/// So many bytes cost a disk as much as a request by itself does: here 4 KiB take a tenth of a millisecond of all that is
/// involved, 1 MiB somewhat over one.
const BYTES_COST: u64 = 64 << 10;
/// Virtual time of one small request at a share of 1.
const TIME: u64 = 1 << 20;
/// How busy a volume is, is seen over about this time: a guest that waits for each answer before it asks again is not idle
/// between the two.
const WINDOW: Duration = Duration::from_millis(100);
/// A volume that waits for answers less than this part of the time counts for nothing.
const HARDLY_BUSY: f64 = 0.05;
/// One that waits this part of the time or more is owed its whole share.
const BUSY: f64 = 0.5;

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
    /// The part of the time in which it asked for something, up to `changed`; from then on it asked throughout, or not at all.
    busy: f64,
    changed: Instant,
}

impl<T> Flow<T> {
    fn busy(&self, now: Instant) -> f64 {
        let old = (-now.since(self.changed).as_secs_f64() / WINDOW.as_secs_f64()).exp();
        self.busy * old + if self.asked > 0 { 1.0 - old } else { 0.0 }
    }

    fn ask(&mut self, cost: u64, now: Instant) {
        if self.asked == 0 {
            (self.busy, self.changed) = (self.busy(now), now);
        }
        self.asked += cost;
    }

    fn unask(&mut self, cost: u64, now: Instant) {
        if cost > 0 && self.asked == cost {
            (self.busy, self.changed) = (self.busy(now), now);
        }
        self.asked -= cost;
    }
}

/// The largest of what volumes have, and the second: what is largest beside any one of them.
#[derive(Clone, Copy, Default)]
struct Largest<V> {
    of: Option<VolumeId>,
    first: V,
    second: V,
}

impl<V: PartialOrd + Copy> Largest<V> {
    fn add(&mut self, volume: VolumeId, value: V) {
        if self.of.is_none() || value > self.first {
            (self.of, self.first, self.second) = (Some(volume), value, self.first);
        } else if value > self.second {
            self.second = value;
        }
    }

    fn beside(&self, volume: VolumeId) -> V {
        if self.of == Some(volume) { self.second } else { self.first }
    }
}

/// Who wants the disk now.
#[derive(Default)]
struct Contest {
    /// Sum, smallest and largest of their shares.
    shares: u64,
    smallest: u64,
    largest: u64,
    busy: Largest<f64>,
    /// What each asks for, for a share of [`TIME`].
    asks: Largest<u64>,
}

/// The requests of one disk. Bounded by what gateways have under way.
pub struct FairQueue<T> {
    flows: BTreeMap<VolumeId, Flow<T>>,
    waiting: usize,
    /// Cost of all that is under way.
    started: u64,
    /// Virtual time: that of what was started last.
    clock: u64,
}

impl<T> Default for FairQueue<T> {
    fn default() -> Self {
        FairQueue { flows: BTreeMap::new(), waiting: 0, started: 0, clock: 0 }
    }
}

impl<T> FairQueue<T> {
    /// A request has come, `bytes` of it are data. `Some`: it starts now, else [`FairQueue::next`] gives it later. Each that
    /// was started ends by [`FairQueue::ended`].
    pub fn offer(&mut self, volume: VolumeId, share: u32, bytes: u64, request: T, now: Instant) -> Option<T> {
        let fresh =
            || Flow { share, waiting: VecDeque::new(), asked: 0, started: 0, finish: 0, busy: 0.0, changed: now };
        let flow = self.flows.entry(volume).or_insert_with(fresh);
        flow.share = share.max(1);
        flow.ask(cost(bytes), now);
        flow.waiting.push_back((cost(bytes), request));
        self.waiting += 1;
        // Those that wait from before aren't overtaken by it, nor do they become able to start because it came.
        let first = flow.waiting.len() == 1;
        if first && self.may_start(volume, &self.contest(now)) { self.start(volume) } else { None }
    }

    /// What starts next; to be asked until it gives nothing, after requests have ended and from time to time.
    pub fn next(&mut self, now: Instant) -> Option<T> {
        let contest = self.contest(now);
        let able = self.flows.iter().filter(|(id, flow)| !flow.waiting.is_empty() && self.may_start(**id, &contest));
        let volume = able.min_by_key(|(id, flow)| (flow.finish.max(self.clock), **id)).map(|(id, _)| *id)?;
        self.start(volume)
    }

    /// One that was started, with so many bytes, is answered, or waits for something else than this disk.
    pub fn ended(&mut self, volume: VolumeId, bytes: u64, now: Instant) {
        let Some(flow) = self.flows.get_mut(&volume) else { return };
        let cost = cost(bytes).min(flow.started);
        flow.started -= cost;
        flow.unask(cost, now);
        self.started -= cost;
    }

    /// Takes out those that wait and aren't to be kept.
    pub fn withdraw(&mut self, mut keep: impl FnMut(&T) -> bool, now: Instant) -> Vec<T> {
        let mut out = Vec::new();
        for flow in self.flows.values_mut() {
            let (kept, gone): (VecDeque<_>, VecDeque<_>) =
                std::mem::take(&mut flow.waiting).into_iter().partition(|(_, request)| keep(request));
            flow.waiting = kept;
            flow.unask(gone.iter().map(|(cost, _)| cost).sum(), now);
            out.extend(gone.into_iter().map(|(_, request)| request));
        }
        self.waiting -= out.len();
        out
    }

    /// Forgets volumes that have left.
    pub fn forget_absent(&mut self, now: Instant) {
        self.flows.retain(|_, flow| flow.asked > 0 || flow.busy(now) >= HARDLY_BUSY);
        if self.flows.is_empty() {
            self.clock = 0;
        }
    }

    /// True if nothing waits: then nothing starts by [`FairQueue::next`] either.
    pub fn is_idle(&self) -> bool {
        self.waiting == 0
    }

    fn contest(&self, now: Instant) -> Contest {
        let mut contest = Contest { smallest: u64::MAX, ..Contest::default() };
        // Most often there is one: then there is no contest, and nothing to compute.
        for (id, flow) in self.flows.iter().filter(|_| self.flows.len() > 1) {
            let busy = flow.busy(now);
            if busy < HARDLY_BUSY && flow.asked == 0 {
                continue;
            }
            let share = u64::from(flow.share);
            contest.shares += share;
            contest.smallest = contest.smallest.min(share);
            contest.largest = contest.largest.max(share);
            contest.busy.add(*id, busy);
            contest.asks.add(*id, flow.asked.saturating_mul(TIME) / share);
        }
        contest
    }

    fn may_start(&self, volume: VolumeId, contest: &Contest) -> bool {
        let Some(flow) = self.flows.get(&volume) else { return false };
        let others = contest.busy.beside(volume);
        if flow.started == 0 || others < HARDLY_BUSY {
            return true;
        }
        let share = u64::from(flow.share);
        let part = |depth: u64| depth * share / contest.shares;
        if contest.smallest == contest.largest {
            return self.started < DEPTH || flow.started < part(DEPTH);
        }
        // The volume with the largest share has no more than the depth, the others in proportion.
        let most = DEPTH * share / contest.largest;
        let matched = contest.asks.beside(volume).saturating_mul(share) / TIME;
        let owed = part(DEPTH_OF_SHARES).max(matched.min(most));
        let idle = (DEPTH as f64 * (1.0 - others / BUSY)).max(0.0) as u64;
        flow.started < owed.max(idle)
    }

    fn start(&mut self, volume: VolumeId) -> Option<T> {
        let flow = self.flows.get_mut(&volume)?;
        let (cost, request) = flow.waiting.pop_front()?;
        self.waiting -= 1;
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
        // However many one has under way, if the other has enough for the depth.
        let done = serve(&[(100, 500, 4096), (100, 64, 4096)], 10_000);
        assert!((4500..5500).contains(&done[1]), "{done:?}");
        // Large requests count for more.
        let done = serve(&[(100, 64, 1 << 20), (100, 64, 4096)], 10_000);
        assert!(done[1] > 6 * done[0] && done[1] < 18 * done[0], "{done:?}");
    }

    #[test]
    fn who_asks_for_little_slows_nobody_down() {
        let mut queue = FairQueue::default();
        let mut now = Instant(0);
        let mut most = 0;
        let mut under_way = 0u64;
        for _ in 0..1000 {
            now = now + MS;
            // One request in 50 ms, answered in 1.
            queue.offer(VolumeId(1), 900, 4096, 0, now);
            queue.ended(VolumeId(1), 4096, now + MS);
            for _ in 0..49 {
                now = now + MS;
                under_way += u64::from(queue.offer(VolumeId(2), 100, 4096, 1, now).is_some());
                under_way += std::iter::from_fn(|| queue.next(now)).count() as u64;
                most = most.max(under_way);
                if under_way > 40 {
                    queue.ended(VolumeId(2), 4096, now);
                    under_way -= 1;
                }
            }
        }
        assert_eq!(most, 41, "as many as there were");
        assert!(queue.is_idle());
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
        for i in 0..100 {
            assert!(queue.offer(VolumeId(1), 100, 4096, i, Instant(0)).is_some(), "it is alone");
        }
        // None of them ends. Another still has its part.
        let now = Instant(0) + WINDOW * 10;
        let started = (0..100).filter_map(|i| queue.offer(VolumeId(2), 100, 4096, i, now)).count();
        assert_eq!(started as u64, DEPTH / 2);
        // Declared to wait for something else, they leave the depth to the others.
        (0..100).for_each(|_| queue.ended(VolumeId(1), 4096, now));
        assert_eq!(std::iter::from_fn(|| queue.next(now)).count() as u64, DEPTH / 2);
        // And when the first has left, the second is alone.
        let later = now + WINDOW * 4;
        assert_eq!(std::iter::from_fn(|| queue.next(later)).count() as u64, 100 - DEPTH);
    }

    #[test]
    fn what_is_withdrawn_never_starts() {
        let mut queue = FairQueue::default();
        queue.offer(VolumeId(2), 900, 4096, 1000, Instant(0));
        queue.offer(VolumeId(1), 100, 4096, 1001, Instant(0));
        let now = Instant(0) + WINDOW * 10;
        assert_eq!((0..40).filter_map(|i| queue.offer(VolumeId(1), 100, 4096, i, now)).count(), 0);
        let withdrawn = queue.withdraw(|i| i % 2 == 0, now);
        assert_eq!(withdrawn, (0..40).filter(|i| i % 2 == 1).collect::<Vec<_>>());
        queue.ended(VolumeId(1), 4096, now);
        queue.ended(VolumeId(2), 4096, now);
        let later = now + WINDOW * 10;
        let rest: Vec<_> = std::iter::from_fn(|| queue.next(later)).collect();
        assert_eq!(rest, (0..40).filter(|i| i % 2 == 0).collect::<Vec<_>>());
        queue.forget_absent(later);
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
