//! Foreground latencies apart by what was asked: a baseline of small reads says nothing of large writes, and a change of
//! the mix must not look like a change of the disk.

use super::histogram::Histogram;

/// Above this many bytes an operation's latency is mostly its transfer.
const LARGE_BYTES: u64 = 64 << 10;

/// What a foreground operation was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A read of 64 KiB at most.
    SmallRead,
    /// A write of 64 KiB at most, with all its copies.
    SmallWrite,
    /// A larger read.
    LargeRead,
    /// A larger write.
    LargeWrite,
    /// A member's own part of a replicated write.
    Apply,
}

/// Number of kinds.
pub const KINDS: usize = 5;

impl Kind {
    /// In order of their index.
    pub const ALL: [Kind; KINDS] = [Kind::SmallRead, Kind::SmallWrite, Kind::LargeRead, Kind::LargeWrite, Kind::Apply];

    /// A client's operation.
    pub fn of(write: bool, bytes: u64) -> Kind {
        match (write, bytes > LARGE_BYTES) {
            (false, false) => Kind::SmallRead,
            (true, false) => Kind::SmallWrite,
            (false, true) => Kind::LargeRead,
            (true, true) => Kind::LargeWrite,
        }
    }
}

/// One histogram a kind.
#[derive(Clone, Debug, Default)]
pub struct Latencies {
    kinds: [Histogram; KINDS],
}

impl Latencies {
    /// One operation.
    pub fn record_us(&mut self, kind: Kind, latency_us: u64) {
        self.kinds[kind as usize].record_us(latency_us);
    }

    /// Several of one bucket; see [`Histogram::bucket`].
    pub fn add_bucket(&mut self, kind: Kind, bucket: usize, count: u32) {
        self.kinds[kind as usize].add_bucket(bucket, count);
    }

    /// Of one kind.
    pub fn of(&self, kind: Kind) -> &Histogram {
        &self.kinds[kind as usize]
    }

    /// What guests see: all kinds but a member's part of other disks' writes.
    pub fn guests(&self) -> Histogram {
        let mut sum = Histogram::default();
        Kind::ALL.iter().filter(|k| **k != Kind::Apply).for_each(|k| sum.merge(self.of(*k)));
        sum
    }

    /// Operations of all kinds, by weight.
    pub fn total(&self) -> f64 {
        self.kinds.iter().map(Histogram::total).sum()
    }

    /// The longest, in microseconds; 0: none.
    pub fn longest_us(&self) -> f64 {
        self.kinds.iter().filter_map(|h| h.quantile_us(1.0)).fold(0.0, f64::max)
    }

    /// Adds another's operations.
    pub fn merge(&mut self, other: &Latencies) {
        self.kinds.iter_mut().zip(&other.kinds).for_each(|(mine, theirs)| mine.merge(theirs));
    }

    /// Multiplies every weight.
    pub fn decay(&mut self, factor: f64) {
        self.kinds.iter_mut().for_each(|h| h.decay(factor));
    }

    /// Adds another's operations, and fades what is older so that about `operations_max` stay.
    pub fn learn(&mut self, other: &Latencies, operations_max: f64) {
        let room = (operations_max - other.total()).max(0.0);
        if self.total() > room {
            self.decay(room / self.total());
        }
        self.merge(other);
    }

    /// One kind's operations in place of what was known of it.
    pub fn replace(&mut self, kind: Kind, histogram: Histogram) {
        self.kinds[kind as usize] = histogram;
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        *self = Latencies::default();
    }
}
