//! A witness beside the database: how many commits it must hold at least.
//!
//! An embedded log that loses its tail opens without a word, one commit or a thousand younger. The marker says which
//! commit was stable last. Layout: two slots of 512 bytes; commit n writes slot n mod 2, so that a torn write leaves
//! the other one. A slot, little endian: magic `EVKMARK1` (8), sequence (8), crc32c of both (4).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

const MAGIC: &[u8; 8] = b"EVKMARK1";
const SLOT_BYTES: u64 = 512;
const RECORD_BYTES: usize = 20;

/// An open marker.
#[derive(Debug)]
pub(super) struct Marker {
    file: File,
}

impl Marker {
    /// Makes a marker for a database at sequence `at`; it must not exist.
    pub(super) fn create(path: &Path, at: u64) -> io::Result<Marker> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
        file.set_len(2 * SLOT_BYTES)?;
        let marker = Marker { file };
        marker.advance(at)?;
        marker.file.sync_all()?;
        Ok(marker)
    }

    /// Opens a marker; `None` in place of the sequence if neither slot is valid.
    pub(super) fn open(path: &Path) -> io::Result<(Marker, Option<u64>)> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let slots = [0, 1].map(|slot| read_slot(&file, slot));
        Ok((Marker { file }, slots.into_iter().flatten().max()))
    }

    /// Records that commit `sequence` is stable.
    pub(super) fn advance(&self, sequence: u64) -> io::Result<()> {
        let mut record = [0; RECORD_BYTES];
        record[..8].copy_from_slice(MAGIC);
        record[8..16].copy_from_slice(&sequence.to_le_bytes());
        let crc = crc32c::crc32c(&record[..16]);
        record[16..].copy_from_slice(&crc.to_le_bytes());
        self.file.write_all_at(&record, sequence % 2 * SLOT_BYTES)?;
        self.file.sync_data()
    }
}

fn read_slot(file: &File, slot: u64) -> Option<u64> {
    let mut record = [0; RECORD_BYTES];
    file.read_exact_at(&mut record, slot * SLOT_BYTES).ok()?;
    let crc = u32::from_le_bytes(record[16..].try_into().ok()?);
    let valid = record.starts_with(MAGIC) && crc32c::crc32c(&record[..16]) == crc;
    valid.then(|| u64::from_le_bytes([0, 1, 2, 3, 4, 5, 6, 7].map(|i| record[8 + i])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_whole_slot_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m");
        let marker = Marker::create(&path, 1).unwrap();
        marker.advance(2).unwrap();
        assert_eq!(Marker::open(&path).unwrap().1, Some(2));
        marker.file.write_all_at(&[0xff], 9).unwrap();
        assert_eq!(Marker::open(&path).unwrap().1, Some(1), "a torn slot leaves the other");
        marker.file.set_len(0).unwrap();
        assert_eq!(Marker::open(&path).unwrap().1, None);
    }
}
