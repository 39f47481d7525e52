//! A backend over a sparse file, for the tests and as the limit that a file allows.
//!
//! Its IO goes to the page cache and runs on the calling task; only syncs run elsewhere. A gate can hold reads and
//! writes of one block back, as a stalled volume would.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use evenkeel::gateway::nbd::{Backend, Extent, IoError, ReadReply, Segment};
use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use tokio::sync::watch;

pub struct FileBackend {
    file: Arc<File>,
    size_bytes: u64,
    /// Requests that begin at this offset wait until it changes; `u64::MAX` for none.
    pub gate: watch::Sender<u64>,
    /// Requests that have reached the gate.
    pub held: watch::Sender<u64>,
    pub flushes: AtomicU64,
}

impl FileBackend {
    pub fn create(path: &Path, size_bytes: u64) -> Self {
        let file = File::options().read(true).write(true).create(true).truncate(true).open(path).expect("file opens");
        file.set_len(size_bytes).expect("file grows");
        Self {
            file: Arc::new(file),
            size_bytes,
            gate: watch::Sender::new(u64::MAX),
            held: watch::Sender::new(0),
            flushes: AtomicU64::new(0),
        }
    }

    /// What the file holds.
    pub fn contents(&self, offset: u64, len: u32) -> Bytes {
        self.read_bytes(offset, len).expect("reads")
    }

    async fn pass_gate(&self, offset: u64) {
        if *self.gate.borrow() == offset {
            self.held.send_modify(|held| *held += 1);
            self.gate.subscribe().wait_for(|gate| *gate != offset).await.expect("the backend lives");
        }
    }

    async fn sync_if(&self, fua: bool) -> Result<(), IoError> {
        if !fua {
            return Ok(());
        }
        let file = self.file.clone();
        tokio::task::spawn_blocking(move || file.sync_data()).await.expect("joins").map_err(|_| IoError::Io)
    }

    /// The runs of data and of holes within a range.
    fn extents(&self, offset: u64, len: u32) -> Vec<Extent> {
        let end = offset + u64::from(len);
        let mut extents = Vec::new();
        let mut at = offset;
        while at < end {
            let data = seek(&*self.file, SeekFrom::Data(at)).unwrap_or(end).min(end);
            if data > at {
                extents.push(Extent { len: (data - at) as u32, hole: true, zero: true });
            }
            at = data;
            if at < end {
                let hole = seek(&*self.file, SeekFrom::Hole(at)).unwrap_or(end).min(end);
                extents.push(Extent { len: (hole - at) as u32, hole: false, zero: false });
                at = hole;
            }
        }
        extents
    }

    fn read_bytes(&self, offset: u64, len: u32) -> Result<Bytes, IoError> {
        let mut data = vec![0; len as usize];
        self.file.read_exact_at(&mut data, offset).map_err(|_| IoError::Io)?;
        Ok(data.into())
    }
}

impl Backend for FileBackend {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    async fn read(&self, offset: u64, len: u32) -> Result<ReadReply, IoError> {
        self.pass_gate(offset).await;
        if len <= 64 << 10 {
            return self.read_bytes(offset, len).map(ReadReply::Data);
        }
        let mut at = offset;
        let mut segments = Vec::new();
        for extent in self.extents(offset, len) {
            segments.push(match extent.hole {
                true => Segment::Hole(extent.len),
                false => Segment::Data(self.read_bytes(at, extent.len)?),
            });
            at += u64::from(extent.len);
        }
        Ok(ReadReply::Segments(segments))
    }

    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), IoError> {
        self.pass_gate(offset).await;
        self.file.write_all_at(&data, offset).map_err(|_| IoError::Io)?;
        self.sync_if(fua).await
    }

    async fn flush(&self) -> Result<(), IoError> {
        self.flushes.fetch_add(1, Ordering::Relaxed);
        self.sync_if(true).await
    }

    async fn trim(&self, offset: u64, len: u32, fua: bool) -> Result<(), IoError> {
        self.write_zeroes(offset, len, false, fua).await
    }

    async fn write_zeroes(&self, offset: u64, len: u32, no_hole: bool, fua: bool) -> Result<(), IoError> {
        let how =
            if no_hole { FallocateFlags::ZERO_RANGE } else { FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE };
        if fallocate(&*self.file, how, offset, len.into()).is_err() {
            // Not every file system can zero a range in place.
            self.file.write_all_at(&vec![0; len as usize], offset).map_err(|_| IoError::Io)?;
        }
        self.sync_if(fua).await
    }

    async fn block_status(&self, offset: u64, len: u32) -> Result<Vec<Extent>, IoError> {
        Ok(self.extents(offset, len))
    }
}
