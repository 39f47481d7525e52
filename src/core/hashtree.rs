//! BLAKE3 leaves and roots.
//!
//! A chunk's hash is the BLAKE3 root of its content, the value that `b3sum` prints for those bytes. Its leaves
//! are the chaining values of the 4 KiB subtrees (BLAKE3's own chunks are 1 KiB; four make a leaf), so that one
//! block's change costs one leaf and the path above it. Source: the BLAKE3 specification, section 2.1 (tree
//! structure), through `blake3::hazmat`.
//!
//! A block that was never written, or was trimmed, has the leaf [`HOLE`] (32 zero bytes) on disk and on the wire.
//! Its content is zeros; wherever a hash is computed it counts as [`zero_leaf`].
//!
//! Non-goals: other hash functions; keyed hashing.

use std::sync::LazyLock;

use blake3::Hasher;
use blake3::hazmat::{self, HasherExt, Mode};

use super::units::{BLOCK_BYTES, BLOCKS_PER_CHUNK, CHUNK_BYTES};

/// A BLAKE3 chaining value or root.
pub type Hash = [u8; 32];

/// The leaf of a block that holds no data: it reads as zeros.
pub const HOLE: Hash = [0; 32];

const ZERO_BLOCK: [u8; BLOCK_BYTES as usize] = [0; BLOCK_BYTES as usize];

static ZERO_LEAVES: LazyLock<Vec<Hash>> =
    LazyLock::new(|| (0..BLOCKS_PER_CHUNK).map(|i| leaf(i, &ZERO_BLOCK)).collect());

static ZERO_ROOT: LazyLock<Hash> = LazyLock::new(|| root(&[HOLE; BLOCKS_PER_CHUNK]));

/// The leaf of the 4 KiB block at position `block` of its chunk (the position enters the hash).
///
/// # Panics
/// If `data` is not one block long or `block` is outside the chunk.
pub fn leaf(block: usize, data: &[u8]) -> Hash {
    assert_eq!(data.len() as u64, BLOCK_BYTES, "a leaf covers one whole block");
    assert!(block < BLOCKS_PER_CHUNK);
    let mut hasher = Hasher::new();
    hasher.set_input_offset(block as u64 * BLOCK_BYTES);
    hasher.update(data);
    hasher.finalize_non_root()
}

/// The leaves of consecutive blocks, starting at position `first`; a block of zeros gives [`HOLE`].
///
/// # Panics
/// If `data` is not a whole number of blocks.
pub fn leaves_of(first: usize, data: &[u8]) -> Vec<Hash> {
    assert!((data.len() as u64).is_multiple_of(BLOCK_BYTES));
    data.chunks_exact(BLOCK_BYTES as usize)
        .enumerate()
        .map(|(i, block)| if is_zero(block) { HOLE } else { leaf(first + i, block) })
        .collect()
}

/// True if all bytes are zero.
pub fn is_zero(data: &[u8]) -> bool {
    let (words, tail) = data.as_chunks::<64>();
    words.iter().all(|w| *w == [0; 64]) && tail.iter().all(|b| *b == 0)
}

/// True if `data` is what `leaf` says of the block at position `block`.
pub fn verify(block: usize, data: &[u8], expected: &Hash) -> bool {
    if *expected == HOLE { is_zero(data) } else { leaf(block, data) == *expected }
}

/// The leaf of a block of zeros at position `block`.
pub fn zero_leaf(block: usize) -> Hash {
    ZERO_LEAVES[block]
}

/// The leaf as it enters a hash: [`HOLE`] counts as zeros.
pub fn effective(block: usize, stored: &Hash) -> Hash {
    if *stored == HOLE { zero_leaf(block) } else { *stored }
}

/// The chaining value of `leaves`, which stand at position `first` of their chunk. Their count is a power of two,
/// `first` a multiple of it. [`HOLE`] if all are holes, so that equal holes compare equal without hashing.
///
/// # Panics
/// If the count or the alignment is wrong.
pub fn subtree(first: usize, leaves: &[Hash]) -> Hash {
    assert!(leaves.len().is_power_of_two() && first.is_multiple_of(leaves.len()));
    if leaves.iter().all(|l| *l == HOLE) {
        return HOLE;
    }
    merge(first, leaves)
}

fn merge(first: usize, leaves: &[Hash]) -> Hash {
    match leaves {
        [one] => effective(first, one),
        _ => {
            let (left, right) = leaves.split_at(leaves.len() / 2);
            let (l, r) = (merge(first, left), merge(first + left.len(), right));
            hazmat::merge_subtrees_non_root(&l, &r, Mode::Hash)
        }
    }
}

/// The root of a whole chunk from its 1,024 leaves.
///
/// # Panics
/// If the number of leaves is not that of a chunk.
pub fn root(leaves: &[Hash]) -> Hash {
    assert_eq!(leaves.len(), BLOCKS_PER_CHUNK);
    let (left, right) = leaves.split_at(BLOCKS_PER_CHUNK / 2);
    let (l, r) = (merge(0, left), merge(left.len(), right));
    *hazmat::merge_subtrees_root(&l, &r, Mode::Hash).as_bytes()
}

/// The root of a whole chunk of zeros.
pub fn zero_root() -> Hash {
    *ZERO_ROOT
}

/// The root of a chunk's first `len` bytes, for the last chunk of a volume. `tail` holds the last, partial block's
/// bytes (`len % 4096` of them, empty if `len` is a multiple); with `len` at most one block, all of it.
///
/// # Panics
/// If `len` is zero or more than a chunk, or `tail` has another length than said.
pub fn root_of_prefix(leaves: &[Hash], len: u64, tail: &[u8]) -> Hash {
    assert!(len > 0 && len <= CHUNK_BYTES);
    if len <= BLOCK_BYTES {
        assert_eq!(tail.len() as u64, len);
        return *blake3::hash(tail).as_bytes();
    }
    assert_eq!(tail.len() as u64, len % BLOCK_BYTES);
    if len == CHUNK_BYTES {
        return root(leaves);
    }
    let left = hazmat::left_subtree_len(len);
    let l = prefix(leaves, 0, left, tail);
    let r = prefix(leaves, left, len - left, tail);
    *hazmat::merge_subtrees_root(&l, &r, Mode::Hash).as_bytes()
}

/// The non-root chaining value of `len` bytes at byte offset `start`, where `tail` ends the chunk's true content.
fn prefix(leaves: &[Hash], start: u64, len: u64, tail: &[u8]) -> Hash {
    let first = (start / BLOCK_BYTES) as usize;
    if len == BLOCK_BYTES {
        return effective(first, &leaves[first]);
    }
    if len < BLOCK_BYTES {
        let mut hasher = Hasher::new();
        hasher.set_input_offset(start);
        hasher.update(tail);
        return hasher.finalize_non_root();
    }
    let left = hazmat::left_subtree_len(len);
    let l = prefix(leaves, start, left, tail);
    let r = prefix(leaves, start + left, len - left, tail);
    hazmat::merge_subtrees_non_root(&l, &r, Mode::Hash)
}

/// Hashes a volume from its chunk roots, fed in order: BLAKE3 over the roots, 32 bytes each.
#[derive(Default)]
pub struct VolumeHasher(Hasher);

impl VolumeHasher {
    /// Adds the next chunk's root.
    pub fn push(&mut self, root: &Hash) {
        self.0.update(root);
    }
    /// The volume's hash.
    pub fn finish(&self) -> Hash {
        *self.0.finalize().as_bytes()
    }
}

/// The root of one chunk's raw content: its BLAKE3 hash, with zeros recognised without hashing them.
pub fn root_of_bytes(data: &[u8]) -> Hash {
    if data.len() as u64 == CHUNK_BYTES && is_zero(data) { zero_root() } else { *blake3::hash(data).as_bytes() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        Hasher::new().update(b"content").finalize_xof().fill(&mut out);
        out
    }

    #[test]
    fn the_root_is_what_b3sum_prints() {
        let data = content(CHUNK_BYTES as usize);
        let leaves = leaves_of(0, &data);
        assert_eq!(root(&leaves), *blake3::hash(&data).as_bytes());
        assert_eq!(zero_root(), *blake3::hash(&vec![0; CHUNK_BYTES as usize]).as_bytes());
    }

    #[test]
    fn holes_count_as_zeros() {
        let mut data = content(CHUNK_BYTES as usize);
        data[3 * 4096..700 * 4096].fill(0);
        let leaves = leaves_of(0, &data);
        assert_eq!(leaves[3], HOLE);
        assert_eq!(root(&leaves), *blake3::hash(&data).as_bytes());
        assert_eq!(subtree(4, &leaves[4..8]), HOLE);
        assert_ne!(subtree(0, &leaves[0..8]), HOLE);
    }

    #[test]
    fn a_prefix_has_the_hash_of_its_bytes_at_every_edge() {
        let mut data = content(CHUNK_BYTES as usize);
        data[8 * 4096..64 * 4096].fill(0);
        let leaves = leaves_of(0, &data);
        for len in
            [512, 1024, 3584, 4096, 4608, 8192, 12288, 12800, 36864, 1 << 20, (1 << 20) + 512, (4 << 20) - 512, 4 << 20]
        {
            let tail_start = if len <= 4096 { 0 } else { len - len % 4096 };
            let got = root_of_prefix(&leaves, len as u64, &data[tail_start..len]);
            assert_eq!(got, *blake3::hash(&data[..len]).as_bytes(), "{len}");
        }
    }

    #[test]
    fn a_flipped_bit_is_seen() {
        let mut data = content(4096);
        let l = leaf(17, &data);
        assert!(verify(17, &data, &l));
        assert!(!verify(18, &data, &l), "the position enters the hash");
        data[100] ^= 1;
        assert!(!verify(17, &data, &l));
        assert!(verify(5, &[0; 4096], &HOLE) && !verify(5, &data, &HOLE));
    }
}
