//! A latency histogram of fixed size: log-linear buckets in microseconds.
//!
//! Eight buckets an octave bound the error of a bucket to 12.5 %; percentiles are interpolated within it. The
//! range ends at 2^27 µs (134 s), far past any IO timeout; what is slower counts in the last bucket. The size is
//! fixed, so a driver can keep the same buckets as atomics ([`Histogram::bucket`]) and the controller needs no
//! allocation.

/// log2 of the buckets in an octave.
const SUB_BITS: u32 = 3;
/// Octaves above the linear start.
const OCTAVES: u32 = 24;
/// Number of buckets.
pub const BUCKETS: usize = ((OCTAVES + 1) << SUB_BITS) as usize;

/// Weighted counts per bucket. Weights are fractions once the histogram has been decayed.
#[derive(Clone, Debug)]
pub struct Histogram {
    counts: [f32; BUCKETS],
    total: f64,
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram { counts: [0.0; BUCKETS], total: 0.0 }
    }
}

impl Histogram {
    /// The bucket of a latency in microseconds.
    pub fn bucket(latency_us: u64) -> usize {
        let v = latency_us.max(1);
        let octave = 63 - v.leading_zeros();
        if octave < SUB_BITS {
            return v as usize;
        }
        let index = ((octave - SUB_BITS + 1) << SUB_BITS) as u64 + ((v >> (octave - SUB_BITS)) & ((1 << SUB_BITS) - 1));
        (index as usize).min(BUCKETS - 1)
    }

    /// Lower bound of a bucket, in microseconds.
    fn lower_us(index: usize) -> f64 {
        let sub = 1usize << SUB_BITS;
        if index < sub {
            return index as f64;
        }
        let octave = (index >> SUB_BITS) - 1;
        ((sub + (index & (sub - 1))) as f64) * (octave as f64).exp2()
    }

    /// Adds `count` operations to a bucket; an index out of range counts in the last bucket.
    pub fn add_bucket(&mut self, index: usize, count: u32) {
        self.counts[index.min(BUCKETS - 1)] += count as f32;
        self.total += f64::from(count);
    }

    /// Adds one operation.
    pub fn record_us(&mut self, latency_us: u64) {
        self.add_bucket(Self::bucket(latency_us), 1);
    }

    /// Adds another histogram's counts.
    pub fn merge(&mut self, other: &Histogram) {
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
        self.total += other.total;
    }

    /// Multiplies all weights by `factor` (0..=1): how the past is forgotten.
    pub fn decay(&mut self, factor: f64) {
        let mut total = 0.0;
        for count in &mut self.counts {
            *count *= factor as f32;
            total += f64::from(*count);
        }
        self.total = total;
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        *self = Histogram::default();
    }

    /// Sum of the weights.
    pub fn total(&self) -> f64 {
        self.total
    }

    /// The sum of all latencies in microseconds: each counts as the middle of its bucket.
    pub fn sum_us(&self) -> f64 {
        let middle = |index| f64::midpoint(Self::lower_us(index), Self::lower_us(index + 1));
        self.counts.iter().enumerate().map(|(index, count)| f64::from(*count) * middle(index)).sum()
    }

    /// Weight of the operations slower than `us`, interpolated within its bucket.
    pub fn above_us(&self, us: f64) -> f64 {
        let mut sum = 0.0;
        for (index, count) in self.counts.iter().enumerate().rev() {
            let (from, to) = (Self::lower_us(index), Self::lower_us(index + 1));
            if to <= us {
                break;
            }
            sum += f64::from(*count) * ((to - us) / (to - from)).min(1.0);
        }
        sum
    }

    /// The `q`-quantile (0..=1) in microseconds; `None` while empty.
    pub fn quantile_us(&self, q: f64) -> Option<f64> {
        if self.total <= 0.0 {
            return None;
        }
        let rank = self.total * q.clamp(0.0, 1.0);
        let mut below = 0.0;
        let mut last = 0;
        for (index, count) in self.counts.iter().enumerate() {
            let count = f64::from(*count);
            if count <= 0.0 {
                continue;
            }
            last = index;
            if below + count >= rank {
                let (from, to) = (Self::lower_us(index), Self::lower_us(index + 1));
                return Some(from + (to - from) * ((rank - below) / count).clamp(0.0, 1.0));
            }
            below += count;
        }
        // Rounding of the weights: the largest value seen.
        Some(Self::lower_us(last + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_ordered_and_cover_all_values() {
        let mut before = 0;
        for us in (0..2000).chain((11..63).map(|s| 1u64 << s)).chain([u64::MAX]) {
            let bucket = Histogram::bucket(us);
            assert!(bucket >= before && bucket < BUCKETS, "{us}");
            before = bucket;
            if us > 0 && bucket < BUCKETS - 1 {
                assert!(Histogram::lower_us(bucket) <= us as f64 && (us as f64) < Histogram::lower_us(bucket + 1));
            }
        }
    }

    #[test]
    fn quantiles_are_within_a_bucket_of_the_truth() {
        let mut h = Histogram::default();
        (1..=10_000).for_each(|us| h.record_us(us));
        for (q, truth) in [(0.5, 5_000.0), (0.9, 9_000.0), (0.99, 9_900.0)] {
            let found = h.quantile_us(q).unwrap_or_default();
            assert!((found / truth - 1.0).abs() < 0.125, "{q}: {found}");
        }
        assert_eq!(Histogram::default().quantile_us(0.5), None);
        for us in [10.0, 2_500.0, 9_000.0] {
            assert!((h.above_us(us) - (10_000.0 - us)).abs() < 20.0, "{us}: {}", h.above_us(us));
        }
        assert_eq!(h.above_us(1e9), 0.0);
    }

    #[test]
    fn decay_keeps_the_shape() {
        let mut h = Histogram::default();
        (0..1000).for_each(|i| h.record_us(100 + i));
        let before = h.quantile_us(0.99);
        h.decay(0.5);
        assert!((h.total() - 500.0).abs() < 1.0);
        assert_eq!(h.quantile_us(0.99).map(|v| v.round()), before.map(|v| v.round()));
    }
}
