//! What the demo's volume must hold: a model that knows every byte without keeping it.
//!
//! Each 4 KiB block has a version; its content is a function of (seed, block, version), so one number a block is
//! enough to check any read, and to compute the volume's hash without asking the cluster. Version 0 is the filling.
//!
//! Invariants: one operation at a time has a block, so that each read has exactly one right answer.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::core::hashtree::{Hash, VolumeHasher, root_of_bytes};
use crate::core::units::{BLOCK_BYTES, BLOCKS_PER_CHUNK};

const BLOCK: usize = BLOCK_BYTES as usize;
const BUSY: u32 = 1 << 31;
/// A stamp opens each block, so that a wrong one can be named: mark, block, version.
const MARK: &[u8; 8] = b"evenkeel";
const STAMP: usize = 24;

/// The versions of all blocks.
pub struct Model {
    seed: u64,
    versions: Vec<AtomicU32>,
}

/// A block that one operation has to itself; given back when dropped.
pub struct Taken<'a> {
    model: &'a Model,
    block: u64,
    version: u32,
}

impl Model {
    /// The model of a filled volume.
    pub fn new(seed: u64, size_bytes: u64) -> Self {
        let blocks = (size_bytes / BLOCK_BYTES) as usize;
        Model { seed, versions: (0..blocks).map(|_| AtomicU32::new(0)).collect() }
    }

    /// How many blocks there are.
    pub fn blocks(&self) -> u64 {
        self.versions.len() as u64
    }

    /// Takes a block, unless another operation has it.
    pub fn take(&self, block: u64) -> Option<Taken<'_>> {
        let before = self.versions[block as usize].fetch_or(BUSY, Ordering::AcqRel);
        (before & BUSY == 0).then_some(Taken { model: self, block, version: before })
    }

    /// The right content of the blocks from `first` on, as many as `out` has room for.
    pub fn fill(&self, first: u64, out: &mut [u8]) {
        for (i, piece) in out.chunks_exact_mut(BLOCK).enumerate() {
            let block = first + i as u64;
            let version = self.versions[block as usize].load(Ordering::Acquire) & !BUSY;
            content(self.seed, block, version, piece);
        }
    }

    /// Compares what was read from the blocks from `first` on with what must be there.
    ///
    /// # Errors
    /// A sentence that names the first wrong block.
    pub fn check(&self, first: u64, read: &[u8]) -> Result<(), String> {
        let mut right = [0; BLOCK];
        for (i, piece) in read.chunks_exact(BLOCK).enumerate() {
            let block = first + i as u64;
            let version = self.versions[block as usize].load(Ordering::Acquire) & !BUSY;
            content(self.seed, block, version, &mut right);
            if piece != right {
                return Err(diagnose(block, version, piece));
            }
        }
        Ok(())
    }

    /// The hash that the volume must have.
    pub fn hash(&self) -> Hash {
        let mut hasher = VolumeHasher::default();
        let mut chunk = vec![0; BLOCKS_PER_CHUNK * BLOCK];
        let mut first = 0;
        while first < self.blocks() {
            let blocks = (self.blocks() - first).min(BLOCKS_PER_CHUNK as u64);
            let piece = &mut chunk[..blocks as usize * BLOCK];
            self.fill(first, piece);
            hasher.push(&root_of_bytes(piece));
            first += blocks;
        }
        hasher.finish()
    }
}

impl Taken<'_> {
    /// The content that a write of this block shall bring, and makes it the right one.
    pub fn next_version(&mut self) -> Vec<u8> {
        // 2^31 writes of one block would take years.
        self.version = (self.version + 1) & !BUSY;
        let mut out = vec![0; BLOCK];
        content(self.model.seed, self.block, self.version, &mut out);
        out
    }

    /// Compares a read of this block.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn check(&self, read: &[u8]) -> Result<(), String> {
        let mut right = [0; BLOCK];
        content(self.model.seed, self.block, self.version, &mut right);
        if read == right { Ok(()) } else { Err(diagnose(self.block, self.version, read)) }
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.model.versions[self.block as usize].store(self.version, Ordering::Release);
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014) over the stamp: fast, and no two blocks alike, so that nothing can be skipped.
fn content(seed: u64, block: u64, version: u32, out: &mut [u8]) {
    out[..8].copy_from_slice(MARK);
    out[8..16].copy_from_slice(&block.to_le_bytes());
    out[16..STAMP].copy_from_slice(&u64::from(version).to_le_bytes());
    let mut state = mix(seed ^ mix(block) ^ mix(u64::from(version) << 32 | 1));
    for word in out[STAMP..].chunks_exact_mut(8) {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        word.copy_from_slice(&mix(state).to_le_bytes());
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn diagnose(block: u64, version: u32, read: &[u8]) -> String {
    let word = |at: usize| read.get(at..at + 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
    let found = if read.iter().all(|b| *b == 0) {
        "zeros".to_owned()
    } else if read.get(..8) == Some(MARK) {
        match (word(8), word(16)) {
            (Some(b), Some(v)) if b == block && v == u64::from(version) => "damaged content".to_owned(),
            (Some(b), Some(v)) => format!("version {v} of block {b}"),
            _ => "a short block".to_owned(),
        }
    } else {
        "foreign content".to_owned()
    };
    format!("block {block} (offset {}) must hold version {version} and holds {found}", block * BLOCK_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::units::CHUNK_BYTES;

    #[test]
    fn the_model_knows_every_byte_and_the_hash() {
        let size = CHUNK_BYTES + 8 * BLOCK_BYTES;
        let model = Model::new(7, size);
        let mut content = vec![0; size as usize];
        model.fill(0, &mut content);
        assert!(model.check(0, &content).is_ok());
        let mut taken = model.take(5).unwrap();
        assert!(model.take(5).is_none(), "one operation at a time");
        let new = taken.next_version();
        assert!(taken.check(&new).is_ok());
        drop(taken);
        content[5 * BLOCK..6 * BLOCK].copy_from_slice(&new);
        assert!(model.check(0, &content).is_ok());
        let mut roots = Vec::new();
        for chunk in content.chunks(CHUNK_BYTES as usize) {
            roots.extend_from_slice(blake3::hash(chunk).as_bytes());
        }
        assert_eq!(model.hash(), *blake3::hash(&roots).as_bytes());
    }

    #[test]
    fn what_is_wrong_is_named() {
        let model = Model::new(7, 16 * BLOCK_BYTES);
        let mut blocks = vec![0; 2 * BLOCK];
        model.fill(3, &mut blocks);
        let mut taken = model.take(4).unwrap();
        let new = taken.next_version();
        drop(taken);
        assert!(model.check(3, &blocks).unwrap_err().contains("block 4 (offset 16384) must hold version 1"));
        assert!(model.check(3, &blocks).unwrap_err().ends_with("holds version 0 of block 4"));
        let taken = model.take(4).unwrap();
        assert!(taken.check(&[0; BLOCK]).unwrap_err().ends_with("holds zeros"));
        let mut flipped = new.clone();
        flipped[100] ^= 1;
        assert!(taken.check(&flipped).unwrap_err().ends_with("damaged content"));
        assert!(taken.check(&new[..100]).is_err());
    }
}
