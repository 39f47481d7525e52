//! Which device a disk is on, so that those on one device can be told from those with a device of their own.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// A number that disks on one block device of one host have in common, and no others; 0: not known. It changes when the host boots.
pub(super) fn of(path: &Path) -> u64 {
    let (Ok(host), Ok(metadata)) = (fs::read("/proc/sys/kernel/random/boot_id"), fs::metadata(path)) else { return 0 };
    let device = if metadata.file_type().is_block_device() { metadata.rdev() } else { metadata.dev() };
    let hash = blake3::Hasher::new().update(&host).update(&device.to_le_bytes()).finalize();
    hash.as_bytes().first_chunk().map_or(0, |first| u64::from_le_bytes(*first)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_of_one_file_system_share_a_device() {
        let (one, other) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        assert_eq!(of(one.path()), of(other.path()));
        assert_ne!(of(one.path()), of(Path::new("/proc")), "another file system");
        assert_eq!(of(&one.path().join("missing")), 0);
    }
}
