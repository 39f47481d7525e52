//! Raw IO on the file or device under a disk, and what is counted about it.
//!
//! [`Backend`] exists for the tests: theirs loses unsynced sectors at a crash, tears writes and fails syncs.
//! Offsets and lengths are bytes.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::fs::FallocateFlags;
use rustix::io::{Errno, ReadWriteFlags};

/// What a disk needs of its file or device. All calls block.
pub trait Backend: Send + Sync {
    /// Fills `buf` from `offset`.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes to the page cache.
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;
    /// Writes, and returns when these bytes are stable. Forces out nothing else.
    fn write_sync(&self, buf: &[u8], offset: u64) -> io::Result<()>;
    /// Returns when all bytes written before the call are stable.
    fn sync(&self) -> io::Result<()>;
    /// Begins to write a range back that nobody is expected to read soon, and waits for nothing: a later `sync` has less to
    /// do, and some time later the page cache has let go of it. A hint: nothing depends on it.
    fn begin_writeback(&self, _offset: u64, _len: u64) {}
    /// Makes a range read as zeros and gives its space back. `Unsupported` if it can't.
    fn punch(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Reserves space, so that writes to the range don't fail for want of it. `Unsupported` if it can't.
    fn allocate(&self, offset: u64, len: u64) -> io::Result<()>;
    /// True if what was never written reads as zeros, as in a new sparse file.
    fn new_reads_zero(&self) -> bool;
    /// Bytes that the file system below can still give; `None` if there is none below.
    fn free_bytes(&self) -> Option<u64>;
    /// Bytes of the file or device.
    fn len(&self) -> io::Result<u64>;
}

/// A real file or block device.
pub struct RealFile {
    file: File,
    is_device: bool,
    leaving: Mutex<Leaving>,
}

/// The page cache lets go of what is written back once so much more of it has come: by then the disk has it.
const LEAVING_BYTES: u64 = 64 << 20;

/// Nor are more ranges than this remembered, however small they are.
const LEAVING_RANGES: usize = 4096;

/// What is being written back and has to leave the page cache then.
#[derive(Default)]
struct Leaving {
    /// (offset, length), oldest first.
    ranges: VecDeque<(u64, u64)>,
    bytes: u64,
}

impl Leaving {
    /// Remembers a range; returns those whose turn it is.
    fn push(&mut self, range: (u64, u64)) -> Vec<(u64, u64)> {
        self.ranges.push_back(range);
        self.bytes += range.1;
        let mut out = Vec::new();
        while self.bytes > LEAVING_BYTES || self.ranges.len() > LEAVING_RANGES {
            let Some(oldest) = self.ranges.pop_front() else { break };
            self.bytes -= oldest.1;
            out.push(oldest);
        }
        out
    }
}

impl RealFile {
    /// Wraps an open file; it must be open for reading and writing.
    pub fn new(file: File, is_device: bool) -> Self {
        RealFile { file, is_device, leaving: Mutex::default() }
    }

    /// Linux begins the writeback of dirty pages in the range, and lets go of those that are clean.
    fn let_go(&self, (offset, len): (u64, u64)) {
        let len = std::num::NonZeroU64::new(len);
        let _ = rustix::fs::fadvise(&self.file, offset, len, rustix::fs::Advice::DontNeed);
    }

    fn write_flags(&self, mut buf: &[u8], mut offset: u64, flags: ReadWriteFlags) -> io::Result<()> {
        while !buf.is_empty() {
            match rustix::io::pwritev2(&self.file, &[IoSlice::new(buf)], offset, flags) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    buf = &buf[n..];
                    offset += n as u64;
                }
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }
}

impl Backend for RealFile {
    fn read_at(&self, mut buf: &mut [u8], mut offset: u64) -> io::Result<()> {
        while !buf.is_empty() {
            match rustix::io::pread(&self.file, &mut *buf, offset) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => {
                    buf = &mut buf[n..];
                    offset += n as u64;
                }
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    fn write_at(&self, mut buf: &[u8], mut offset: u64) -> io::Result<()> {
        while !buf.is_empty() {
            match rustix::io::pwrite(&self.file, buf, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    buf = &buf[n..];
                    offset += n as u64;
                }
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    fn write_sync(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        match self.write_flags(buf, offset, ReadWriteFlags::DSYNC) {
            // Some file systems know no flags: slower, and as safe.
            Err(e) if unsupported(&e) => {
                self.write_at(buf, offset)?;
                self.sync()
            }
            other => other,
        }
    }

    fn sync(&self) -> io::Result<()> {
        // Not retried on any error: after a failed fdatasync the kernel may have dropped the dirty pages (R15).
        Ok(rustix::fs::fdatasync(&self.file)?)
    }

    fn begin_writeback(&self, offset: u64, len: u64) {
        self.let_go((offset, len));
        let gone = self.leaving.lock().push((offset, len));
        gone.into_iter().for_each(|range| self.let_go(range));
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        if self.is_device {
            // Devices differ in what a discarded range reads as.
            return Err(io::ErrorKind::Unsupported.into());
        }
        Ok(rustix::fs::fallocate(&self.file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len)?)
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        if self.is_device {
            return Ok(());
        }
        Ok(rustix::fs::fallocate(&self.file, FallocateFlags::KEEP_SIZE, offset, len)?)
    }

    fn new_reads_zero(&self) -> bool {
        !self.is_device
    }

    fn free_bytes(&self) -> Option<u64> {
        if self.is_device {
            return None;
        }
        let stat = rustix::fs::fstatvfs(&self.file).ok()?;
        Some(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn len(&self) -> io::Result<u64> {
        Ok(rustix::fs::seek(&self.file, rustix::fs::SeekFrom::End(0))?)
    }
}

/// True if the call isn't known to this file system or device.
pub fn unsupported(e: &io::Error) -> bool {
    e.kind() == io::ErrorKind::Unsupported
        || matches!(e.raw_os_error().map(Errno::from_raw_os_error), Some(Errno::OPNOTSUPP | Errno::NOSYS))
}

/// True if the file system below is full.
pub fn no_space(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Counts since the disk was opened.
#[derive(Default, Debug)]
pub(super) struct IoCounters {
    pub hash_mismatches: AtomicU64,
    pub adopted_blocks: AtomicU64,
    pub corrupt_headers: AtomicU64,
    pub fsyncs: AtomicU64,
    pub fsync_nanos: AtomicU64,
    pub header_writes: AtomicU64,
    pub read_bytes: AtomicU64,
    pub written_bytes: AtomicU64,
}

impl IoCounters {
    pub fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Ordering::Relaxed);
    }
}

/// The backend with its counters and the start times of the calls in flight.
pub(super) struct Io {
    backend: Box<dyn Backend>,
    pub counters: IoCounters,
    inflight: Inflight,
    /// Calls that may take long on a disk that works.
    syncing: Inflight,
}

impl Io {
    pub fn new(backend: Box<dyn Backend>) -> Self {
        Io { backend, counters: IoCounters::default(), inflight: Inflight::new(), syncing: Inflight::new() }
    }

    pub fn read(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let _in_flight = self.inflight.enter();
        IoCounters::add(&self.counters.read_bytes, buf.len() as u64);
        self.backend.read_at(buf, offset)
    }

    pub fn write(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let _in_flight = self.inflight.enter();
        IoCounters::add(&self.counters.written_bytes, buf.len() as u64);
        self.backend.write_at(buf, offset)
    }

    pub fn write_sync(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let _in_flight = self.inflight.enter();
        IoCounters::add(&self.counters.written_bytes, buf.len() as u64);
        self.backend.write_sync(buf, offset)
    }

    pub fn begin_writeback(&self, offset: u64, len: u64) {
        let _in_flight = self.inflight.enter();
        self.backend.begin_writeback(offset, len);
    }

    pub fn sync(&self) -> io::Result<()> {
        let _in_flight = self.syncing.enter();
        let start = Instant::now();
        let result = self.backend.sync();
        IoCounters::add(&self.counters.fsyncs, 1);
        IoCounters::add(&self.counters.fsync_nanos, start.elapsed().as_nanos() as u64);
        result
    }

    /// Makes a range read as zeros, by writing them if there is no other way.
    pub fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        match self.punch(offset, len)? {
            true => Ok(()),
            false => {
                static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
                let mut done = 0;
                while done < len {
                    let n = (len - done).min(ZEROS.len() as u64);
                    self.write(&ZEROS[..n as usize], offset + done)?;
                    done += n;
                }
                Ok(())
            }
        }
    }

    /// Punches a hole; false if the file system can't.
    pub fn punch(&self, offset: u64, len: u64) -> io::Result<bool> {
        let _in_flight = self.inflight.enter();
        match self.backend.punch(offset, len) {
            Ok(()) => Ok(true),
            Err(e) if unsupported(&e) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Reserves space; does nothing where that is unknown.
    pub fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        let _in_flight = self.inflight.enter();
        match self.backend.allocate(offset, len) {
            Err(e) if unsupported(&e) => Ok(()),
            other => other,
        }
    }

    pub fn new_reads_zero(&self) -> bool {
        self.backend.new_reads_zero()
    }

    pub fn backend(&self) -> &dyn Backend {
        &*self.backend
    }

    pub fn len(&self) -> io::Result<u64> {
        self.backend.len()
    }

    /// When the oldest call in flight began, and the oldest fdatasync: a disk that hangs must be seen (R7).
    pub fn oldest_inflight(&self) -> (Option<Instant>, Option<Instant>) {
        (self.inflight.oldest(), self.syncing.oldest())
    }
}

/// Start times of calls in flight, without a lock. With more calls than places some go unseen: a hanging disk
/// soon hangs them all.
struct Inflight {
    origin: Instant,
    /// Nanoseconds since the origin, plus one; zero is free.
    places: [AtomicU64; INFLIGHT_PLACES],
    next: AtomicU64,
}

/// More than the threads that call one disk at once.
const INFLIGHT_PLACES: usize = 64;

impl Inflight {
    fn new() -> Self {
        Inflight { origin: Instant::now(), places: [const { AtomicU64::new(0) }; INFLIGHT_PLACES], next: 0.into() }
    }

    fn enter(&self) -> InflightGuard<'_> {
        let now = (self.origin.elapsed().as_nanos() as u64).saturating_add(1);
        let start = self.next.fetch_add(1, Ordering::Relaxed) as usize;
        let place = (0..INFLIGHT_PLACES).map(|i| &self.places[(start.wrapping_add(i)) % INFLIGHT_PLACES]).find(|p| {
            p.load(Ordering::Relaxed) == 0 && p.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        });
        InflightGuard(place)
    }

    fn oldest(&self) -> Option<Instant> {
        let oldest = self.places.iter().map(|p| p.load(Ordering::Relaxed)).filter(|v| *v != 0).min()?;
        Some(self.origin + Duration::from_nanos(oldest - 1))
    }
}

struct InflightGuard<'a>(Option<&'a AtomicU64>);

impl Drop for InflightGuard<'_> {
    fn drop(&mut self) {
        if let Some(place) = self.0 {
            place.store(0, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const WINDOW_BYTES: usize = 256 << 10;

    /// A file on the file system of the build: one in memory has no page cache to leave.
    fn file() -> RealFile {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tmp");
        std::fs::create_dir_all(&dir).expect("a directory");
        RealFile::new(tempfile::tempfile_in(dir).expect("a file"), false)
    }

    /// Whether a range can be read without its disk.
    fn is_cached(file: &RealFile, offset: u64) -> bool {
        let mut buf = vec![0; WINDOW_BYTES];
        let read =
            rustix::io::preadv2(&file.file, &mut [std::io::IoSliceMut::new(&mut buf)], offset, ReadWriteFlags::NOWAIT);
        match read {
            Ok(n) => n == WINDOW_BYTES,
            Err(Errno::AGAIN) => false,
            Err(e) => panic!("{e}"),
        }
    }

    #[test]
    fn what_is_written_back_leaves_the_page_cache_and_what_else_was_written_stays() {
        let file = file();
        let windows = 3 * LEAVING_BYTES / WINDOW_BYTES as u64;
        let content = |i: u64| vec![i as u8; WINDOW_BYTES];
        for i in 0..windows {
            let at = i * WINDOW_BYTES as u64;
            file.write_at(&content(i), at).expect("writes");
            // Each tenth window is a guest's.
            if i % 10 == 0 {
                continue;
            }
            file.begin_writeback(at, WINDOW_BYTES as u64);
            if i == windows / 2 {
                // The disk has what came so far before its turn to leave comes, however slow it is.
                file.sync().expect("syncs");
            }
        }
        let cached = |i: &u64| is_cached(&file, i * WINDOW_BYTES as u64);
        let (guests, copies): (Vec<u64>, Vec<u64>) = (0..windows).partition(|i| i % 10 == 0);
        assert_eq!(guests.iter().filter(|i| !cached(i)).count(), 0, "what guests wrote stays");
        // Of copies those stay that came last, and those that the disk didn't have in time: before the sync it may have had few.
        let left = copies.iter().filter(|i| !cached(i)).count() as u64;
        assert!(left >= windows / 6, "{left} of {windows} windows left the page cache");
        let mut buf = vec![0; WINDOW_BYTES];
        for i in 0..windows {
            file.read_at(&mut buf, i * WINDOW_BYTES as u64).expect("reads");
            assert!(buf == content(i), "window {i}");
        }
    }

    #[test]
    fn ranges_leave_in_their_order_and_few_are_remembered() {
        let mut leaving = Leaving::default();
        let half = LEAVING_BYTES / 2;
        assert_eq!(leaving.push((0, half)), []);
        assert_eq!(leaving.push((half, half)), []);
        assert_eq!(leaving.push((7, 1)), [(0, half)]);
        assert_eq!(leaving.push((9, LEAVING_BYTES)), [(half, half), (7, 1)]);
        let mut small = Leaving::default();
        let gone: usize = (0..2 * LEAVING_RANGES as u64).map(|i| small.push((i, 1)).len()).sum();
        assert_eq!(gone, LEAVING_RANGES);
    }
}
