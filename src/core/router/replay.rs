//! What is sent again after a PG lost its memory: of each byte the newest acked value, once.
//!
//! Sending every kept operation in order would do if all of them arrived. A gateway that dies half-way would leave an
//! older value over a newer one, which may have been stable since its ack (FUA). The newest values alone can come in
//! any order and in any number: where one is missing, what the disks kept shows through.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;

use crate::core::ids::ChunkId;
use crate::core::replica::ClientOp;
use crate::core::units::BLOCK_BYTES;

const BLOCK: u32 = BLOCK_BYTES as u32;

/// The parts of kept operations (oldest first) that no later one overwrites.
pub(super) fn newest<'a>(kept: impl DoubleEndedIterator<Item = &'a ClientOp>) -> Vec<ClientOp> {
    let mut covered: BTreeMap<ChunkId, Ranges> = BTreeMap::new();
    let mut parts = Vec::new();
    for op in kept.rev() {
        match op {
            ClientOp::Write { chunk, offset, leaves, data, fua } => {
                for part in covered.entry(*chunk).or_default().add(*offset..*offset + data.len() as u32) {
                    let at = (part.start - offset) as usize..(part.end - offset) as usize;
                    let whole = part.start.is_multiple_of(BLOCK) && part.end.is_multiple_of(BLOCK);
                    let leaves = match (whole, leaves.is_empty()) {
                        (true, false) => leaves[at.start / BLOCK as usize..at.end / BLOCK as usize].to_vec(),
                        _ => Vec::new(),
                    };
                    let data = data.slice(at);
                    parts.push(ClientOp::Write { chunk: *chunk, offset: part.start, leaves, data, fua: *fua });
                }
            }
            ClientOp::Zero { chunk, first_block, count, fua } => {
                let range = first_block * BLOCK..(first_block + count) * BLOCK;
                for part in covered.entry(*chunk).or_default().add(range) {
                    zeros(*chunk, part, *fua, &mut parts);
                }
            }
            _ => {}
        }
    }
    parts.reverse();
    parts
}

/// Whole blocks as holes, the rest as bytes.
fn zeros(chunk: ChunkId, part: Range<u32>, fua: bool, parts: &mut Vec<ClientOp>) {
    let (first, last) = (part.start.div_ceil(BLOCK), part.end / BLOCK);
    let mut bytes = |range: Range<u32>| {
        if !range.is_empty() {
            let data = Bytes::from(vec![0; range.len()]);
            parts.push(ClientOp::Write { chunk, offset: range.start, leaves: Vec::new(), data, fua });
        }
    };
    if first >= last {
        return bytes(part);
    }
    bytes(part.start..first * BLOCK);
    bytes(last * BLOCK..part.end);
    parts.push(ClientOp::Zero { chunk, first_block: first, count: last - first, fua });
}

/// Disjoint ranges that don't touch, rising: start → end.
#[derive(Default)]
struct Ranges(BTreeMap<u32, u32>);

impl Ranges {
    /// Adds a range; gives the parts of it that were not there.
    fn add(&mut self, range: Range<u32>) -> Vec<Range<u32>> {
        let (mut start, mut end) = (range.start, range.end);
        let mut missing = Vec::new();
        let mut at = range.start;
        let touching: Vec<(u32, u32)> =
            self.0.range(..=range.end).rev().take_while(|(_, e)| **e >= range.start).map(|(s, e)| (*s, *e)).collect();
        for (s, e) in touching.into_iter().rev() {
            if at < s {
                missing.push(at..s.min(range.end));
            }
            at = at.max(e);
            (start, end) = (start.min(s), end.max(e));
            self.0.remove(&s);
        }
        if at < range.end {
            missing.push(at..range.end);
        }
        self.0.insert(start, end);
        missing
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::hashtree;
    use crate::core::ids::VolumeId;
    use proptest::prelude::*;

    const C: ChunkId = ChunkId { volume: VolumeId(1), index: 0 };
    const SECTOR: u32 = 512;

    fn operation() -> impl Strategy<Value = ClientOp> {
        let write = (0u32..60, 1u32..20, any::<u8>()).prop_map(|(sector, count, byte)| {
            let (offset, data) = (sector * SECTOR, Bytes::from(vec![byte | 1; (count * SECTOR) as usize]));
            let whole = offset.is_multiple_of(BLOCK) && (data.len() as u32).is_multiple_of(BLOCK);
            let leaves = if whole { hashtree::leaves_of((offset / BLOCK) as usize, &data) } else { Vec::new() };
            ClientOp::Write { chunk: C, offset, leaves, data, fua: false }
        });
        let zero = (0u32..9, 1u32..4).prop_map(|(first_block, count)| ClientOp::Zero {
            chunk: C,
            first_block,
            count,
            fua: false,
        });
        prop_oneof![3 => write, 1 => zero]
    }

    /// What the operations leave in 12 blocks, and how often each byte is written; 2 stands for "never written".
    fn apply(ops: &[ClientOp]) -> (Vec<u8>, Vec<u32>) {
        let (mut content, mut times) = (vec![2; 12 * BLOCK as usize], vec![0; 12 * BLOCK as usize]);
        for op in ops {
            let (range, bytes) = match op {
                ClientOp::Write { offset, data, leaves, .. } => {
                    let first = (*offset / BLOCK) as usize;
                    assert!(leaves.is_empty() || *leaves == hashtree::leaves_of(first, data), "leaves fit their data");
                    (*offset as usize..*offset as usize + data.len(), data.to_vec())
                }
                ClientOp::Zero { first_block, count, .. } => {
                    let range = (first_block * BLOCK) as usize..((first_block + count) * BLOCK) as usize;
                    (range.clone(), vec![0; range.len()])
                }
                other => panic!("{other:?}"),
            };
            content[range.clone()].copy_from_slice(&bytes);
            times[range].iter_mut().for_each(|n| *n += 1);
        }
        (content, times)
    }

    proptest! {
        #[test]
        fn the_newest_value_of_each_byte_comes_once(ops in proptest::collection::vec(operation(), 0..12)) {
            let parts = newest(ops.iter());
            let (wanted, _) = apply(&ops);
            let (found, times) = apply(&parts);
            prop_assert!(found == wanted);
            prop_assert!(times.iter().all(|n| *n <= 1), "no order is needed");
        }
    }
}
