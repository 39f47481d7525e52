//! `hash FILE`: the volume hash of a raw image.
//!
//! The hash is BLAKE3 over the chunk roots in order; a root is the BLAKE3 hash of the chunk's 4 MiB, the last chunk's
//! of its true length. Holes of a sparse file are found by SEEK_HOLE and not read: a chunk without data has the root
//! of zeros. Units: bytes.
//!
//! Several threads take chunk numbers from one counter and hash them; the roots (32 bytes a chunk) are put in order
//! at the end. Memory: 4 MiB a thread and 8 bytes a MiB of the file.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use indicatif::ProgressBar;
use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::core::hashtree::{Hash, VolumeHasher, root_of_bytes, zero_root};
use crate::core::units::{CHUNK_BYTES, HumanBytes};

use super::Session;
use super::out;
use super::resync::progress_bar;

/// A hash that `hash -o json` and `volume hash -o json` print.
#[derive(Debug, serde::Serialize, schemars::JsonSchema)]
pub struct Hashed {
    /// The volume hash: 64 hex digits.
    pub hash: String,
    /// The volume's name, or the file's path.
    pub name: String,
}

/// Below this, a bar would be gone before anyone sees it.
const BAR_FROM_BYTES: u64 = 1 << 30;
/// More threads than this only queue for the disk.
const THREADS_MAX: usize = 16;

/// Why a file has no hash.
#[derive(Debug, thiserror::Error)]
pub enum HashFile {
    /// It can't be read.
    #[error("can't read {path}: {source}")]
    Read { path: String, source: io::Error },
    /// It isn't something with a size.
    #[error("{path} is neither a file nor a block device")]
    NotAnImage { path: String },
}

/// `hash FILE…`.
pub fn hash_files(session: &Session, files: &[impl AsRef<Path>]) -> anyhow::Result<()> {
    let mut hashes = Vec::new();
    for path in files {
        let path = path.as_ref();
        let hash = hex::encode(hash_file(path)?);
        if session.json() {
            hashes.push(Hashed { hash, name: path.display().to_string() });
        } else {
            out::line(format!("{hash}  {}", path.display()))?;
        }
    }
    if session.json() { out::line(serde_json::to_string(&hashes)?) } else { Ok(()) }
}

/// The volume hash of a raw image.
///
/// # Errors
/// The file can't be read, or has no size.
pub fn hash_file(path: &Path) -> Result<Hash, HashFile> {
    use std::os::unix::fs::FileTypeExt;
    let name = || path.display().to_string();
    let fail = |source| HashFile::Read { path: name(), source };
    // Opening a FIFO would wait for a writer, so look first.
    let kind = std::fs::metadata(path).map_err(fail)?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(HashFile::NotAnImage { path: name() });
    }
    let file = File::open(path).map_err(fail)?;
    let size = rustix::fs::seek(&file, SeekFrom::End(0)).map_err(|e| fail(e.into()))?;
    let bar = (size >= BAR_FROM_BYTES && io::stderr().is_terminal()).then(|| progress_bar(size));
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get()).min(THREADS_MAX);
    let hash = hash_image(&file, size, threads, bar.as_ref()).map_err(fail);
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    hash
}

fn hash_image(file: &File, size: u64, threads: usize, bar: Option<&ProgressBar>) -> io::Result<Hash> {
    let chunks = size.div_ceil(CHUNK_BYTES);
    let next = AtomicU64::new(0);
    let failed = AtomicBool::new(false);
    let worker = || -> io::Result<Vec<(u64, Hash)>> {
        let mut buffer = vec![0; CHUNK_BYTES as usize];
        let mut roots = Vec::new();
        while !failed.load(Ordering::Relaxed) {
            let chunk = next.fetch_add(1, Ordering::Relaxed);
            if chunk >= chunks {
                break;
            }
            let start = chunk * CHUNK_BYTES;
            let len = CHUNK_BYTES.min(size - start);
            let root = chunk_root(file, start, &mut buffer[..len as usize]).inspect_err(|_| {
                // One unreadable chunk spoils the hash; the others needn't go on.
                failed.store(true, Ordering::Relaxed);
            })?;
            roots.push((chunk, root));
            if let Some(bar) = bar {
                bar.inc(len);
                bar.set_message(format!("{} of {}", HumanBytes(bar.position()), HumanBytes(size)));
            }
        }
        Ok(roots)
    };
    let mut roots = Vec::new();
    std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(worker)).collect();
        for handle in handles {
            match handle.join() {
                Ok(part) => roots.extend(part?),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        io::Result::Ok(())
    })?;
    roots.sort_unstable_by_key(|(chunk, _)| *chunk);
    let mut hasher = VolumeHasher::default();
    for (_, root) in &roots {
        hasher.push(root);
    }
    Ok(hasher.finish())
}

fn chunk_root(file: &File, start: u64, buffer: &mut [u8]) -> io::Result<Hash> {
    let end = start + buffer.len() as u64;
    let data = next_data(file, start)?;
    if data.is_none_or(|data| data >= end) {
        if buffer.len() as u64 == CHUNK_BYTES {
            return Ok(zero_root());
        }
        buffer.fill(0);
    } else {
        file.read_exact_at(buffer, start)?;
    }
    Ok(root_of_bytes(buffer))
}

/// Where the next data begins at or after `from`; `None`: only a hole follows.
///
/// The seek moves the file's position, which all threads share; nobody uses it, as reads give their offset.
fn next_data(file: &File, from: u64) -> io::Result<Option<u64>> {
    match rustix::fs::seek(file, SeekFrom::Data(from)) {
        Ok(at) => Ok(Some(at)),
        Err(Errno::NXIO) => Ok(None),
        // A file system or device that knows no holes: everything is data.
        Err(Errno::INVAL | Errno::NOTSUP) => Ok(Some(from)),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the definition says, with nothing clever.
    fn naive(content: &[u8]) -> Hash {
        let mut roots = Vec::new();
        for chunk in content.chunks(CHUNK_BYTES as usize) {
            roots.extend_from_slice(blake3::hash(chunk).as_bytes());
        }
        *blake3::hash(&roots).as_bytes()
    }

    fn noise(len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        blake3::Hasher::new().update(b"noise").finalize_xof().fill(&mut out);
        out
    }

    #[test]
    fn equals_the_naive_hash_at_every_edge() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let content = noise(2 * CHUNK_BYTES as usize + 1536);
        for len in [0, 1, 511, 512, 4096, 4097, (4 << 20) - 512, 4 << 20, (4 << 20) + 512, content.len()] {
            std::fs::write(&path, &content[..len]).unwrap();
            assert_eq!(hash_file(&path).unwrap(), naive(&content[..len]), "{len}");
        }
    }

    #[test]
    fn holes_are_zeros_wherever_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sparse");
        let data = noise(8192);
        for size in [5 * CHUNK_BYTES, 5 * CHUNK_BYTES - 512, 4 * CHUNK_BYTES + 4096] {
            let file = File::create(&path).unwrap();
            file.set_len(size).unwrap();
            file.write_all_at(&data, CHUNK_BYTES + 12288).unwrap();
            file.write_all_at(&data, 3 * CHUNK_BYTES - 4096).unwrap();
            let mut content = vec![0; size as usize];
            content[CHUNK_BYTES as usize + 12288..][..8192].copy_from_slice(&data);
            content[3 * CHUNK_BYTES as usize - 4096..][..8192].copy_from_slice(&data);
            let expected = naive(&content);
            assert_eq!(hash_file(&path).unwrap(), expected, "{size}");
            let file = File::open(&path).unwrap();
            for threads in [1, 3, 16] {
                assert_eq!(hash_image(&file, size, threads, None).unwrap(), expected, "{threads} threads");
            }
        }
    }

    #[test]
    fn what_is_no_image_is_said() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(hash_file(dir.path()), Err(HashFile::NotAnImage { .. })));
        assert!(matches!(hash_file(&dir.path().join("none")), Err(HashFile::Read { .. })));
    }
}
