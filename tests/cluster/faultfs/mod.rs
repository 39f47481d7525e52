//! A file system for tests: it passes through to another directory, and fails on command as disks fail.
//!
//! Writes stay in memory until an fsync of their file, or their own O_DSYNC, takes them below: nothing that wasn't made
//! stable is. So [`FaultFs::power_cut`] can drop what a power cut may drop, and a failed fsync drops what it should have
//! written, as the kernel does: who tries it again gets a success and has lost the data.
//!
//! Files bypass the page cache, so that each write and each fsync of a process comes here as it was made. Names and
//! sizes are stable at once. Threads of this process serve it; it is unmounted with its value.

mod pages;
mod serve;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fuser::{BackgroundSession, Config, MountOption};

use crate::tools::{run, run_ok};
use serve::Server;

/// Calls served at once where slow ones must not hold up others: more than a node writes at once.
const PARALLEL: usize = 16;

/// A write of data, rather than of marks and records.
const LARGE: usize = 32 << 10;

/// For a fault that stays.
pub const ALWAYS: u64 = u64::MAX;

/// Faults still to come, and what has happened.
#[derive(Default)]
struct Faults {
    fsyncs: Fault,
    writes: Fault,
    short_writes: Fault,
    /// What writes may take in a second, in bytes; 0: what they can.
    write_bytes_per_sec: AtomicU64,
    /// Held by the one write that a slow device works at.
    writing: Mutex<()>,
    /// Calls of fsync or fdatasync that were carried out.
    synced: AtomicU64,
}

/// A fault that hits the next calls of its kind.
#[derive(Default)]
struct Fault {
    to_come: AtomicU64,
    fired: AtomicU64,
}

impl Faults {
    /// Waits as long as a slow device would for these bytes.
    fn take_time(&self, bytes: usize) {
        let rate = self.write_bytes_per_sec.load(Ordering::SeqCst);
        if rate > 0 && bytes >= LARGE {
            let _one_at_a_time = self.writing.lock().expect("no writer panicked");
            std::thread::sleep(Duration::from_secs_f64(bytes as f64 / rate as f64));
        }
    }
}

impl Fault {
    fn set(&self, count: u64) {
        self.to_come.store(count, Ordering::SeqCst);
    }

    /// True if this call is hit.
    fn hits(&self) -> bool {
        let take = |n: u64| if n == ALWAYS { Some(n) } else { n.checked_sub(1) };
        let hit = self.to_come.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_ok();
        self.fired.fetch_add(u64::from(hit), Ordering::SeqCst);
        hit
    }

    fn fired(&self) -> u64 {
        self.fired.load(Ordering::SeqCst)
    }
}

/// A mounted file system.
pub struct FaultFs {
    at: PathBuf,
    shared: Arc<serve::Shared>,
    session: Option<BackgroundSession>,
}

impl FaultFs {
    /// Mounts it at `at`, over what `below` holds.
    pub fn mount(below: &Path, at: &Path) -> FaultFs {
        FaultFs::mount_with(below, at, 1)
    }

    /// The same; a write that takes long holds up other writes alone.
    pub fn mount_parallel(below: &Path, at: &Path) -> FaultFs {
        FaultFs::mount_with(below, at, PARALLEL)
    }

    fn mount_with(below: &Path, at: &Path, threads: usize) -> FaultFs {
        let shared = Arc::new(serve::Shared::new(below));
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("evenkeel-faults".to_owned())];
        config.n_threads = Some(threads);
        let session = fuser::spawn_mount(Server::new(shared.clone()), at, &config)
            .unwrap_or_else(|error| panic!("can't mount at {} (root and /dev/fuse are needed): {error}", at.display()));
        FaultFs { at: at.to_owned(), shared, session: Some(session) }
    }

    /// The next `count` fsyncs fail with EIO, and what they should have written is lost.
    pub fn fail_fsyncs(&self, count: u64) {
        self.shared.faults.fsyncs.set(count);
    }

    pub fn failed_fsyncs(&self) -> u64 {
        self.shared.faults.fsyncs.fired()
    }

    /// The next `count` writes fail with EIO and write nothing.
    pub fn fail_writes(&self, count: u64) {
        self.shared.faults.writes.set(count);
    }

    pub fn failed_writes(&self) -> u64 {
        self.shared.faults.writes.fired()
    }

    /// The next `count` writes of more than one byte take a part of what they were given.
    pub fn shorten_writes(&self, count: u64) {
        self.shared.faults.short_writes.set(count);
    }

    pub fn shortened_writes(&self) -> u64 {
        self.shared.faults.short_writes.fired()
    }

    /// From now on large writes take as long as on a device of this speed; 0: as long as they take. Small ones go first, as
    /// devices have it that do several at once: the node's marks and records don't wait behind its copies.
    pub fn slow_writes(&self, bytes_per_sec: u64) {
        self.shared.faults.write_bytes_per_sec.store(bytes_per_sec, Ordering::SeqCst);
    }

    /// Fsyncs that were carried out.
    pub fn fsyncs(&self) -> u64 {
        self.shared.faults.synced.load(Ordering::SeqCst)
    }

    /// A power cut, after the processes that use it were killed: unstable pages are lost, each by chance if there is a
    /// seed, else all. Gives how many were lost.
    pub fn power_cut(&self, seed: Option<u64>) -> u64 {
        self.shared.power_cut(seed)
    }

    /// Pages that a power cut could take now.
    pub fn unstable_pages(&self) -> u64 {
        self.shared.unstable_pages()
    }
}

impl Drop for FaultFs {
    fn drop(&mut self) {
        unmount(&self.at);
        // Its thread ends when the last user has gone; there is none, or this process is about to end.
        drop(self.session.take());
    }
}

/// Unmounts; one that something still uses goes when that ends, so that no test leaves a mount.
pub fn unmount(at: &Path) {
    let ended = run(Command::new("umount").arg(at));
    if !ended.status.success() {
        eprintln!("{}: {}", at.display(), ended.text());
        run_ok(Command::new("umount").arg("--lazy").arg(at));
    }
}

/// The file system itself keeps what it promises: otherwise a test above it proves nothing.
pub fn the_file_system_of_these_tests_loses_what_it_should() {
    use std::fs::{self, File};
    use std::os::unix::fs::FileExt;

    let folder = tempfile::tempdir().expect("a temporary folder");
    let (below, at) = (folder.path().join("below"), folder.path().join("at"));
    for path in [&below, &at] {
        fs::create_dir(path).expect("makes a folder");
    }
    let fs = FaultFs::mount(&below, &at);
    let file = File::options().read(true).write(true).create_new(true).open(at.join("f")).expect("creates");
    let read = |len: usize| {
        let mut found = vec![0; len];
        file.read_exact_at(&mut found, 0).expect("reads");
        found
    };
    file.write_all_at(&[1; 10_000], 0).expect("writes");
    file.sync_data().expect("syncs");
    file.write_all_at(&[2; 5_000], 100).expect("writes");
    assert!(read(10_000)[100..5100].iter().all(|b| *b == 2), "a write is seen at once");
    // Stable on its own, amid what is not.
    let direct = [std::io::IoSlice::new(&[3; 128])];
    let flags = rustix::io::ReadWriteFlags::DSYNC;
    assert_eq!(rustix::io::pwritev2(&file, &direct, 200, flags).expect("writes"), 128);
    assert_eq!(fs.unstable_pages(), 2);
    assert_eq!(fs.fsyncs(), 1, "an O_DSYNC write is no fsync");
    assert_eq!(fs.power_cut(None), 2);
    let mut wanted = vec![1; 10_000];
    wanted[200..328].fill(3);
    assert!(read(10_000) == wanted, "what was stable stays, the rest goes");

    fs.shorten_writes(1);
    let n = file.write_at(&[4; 4096], 0).expect("writes");
    assert!((1..4096).contains(&n) && fs.shortened_writes() == 1, "{n}");
    fs.fail_writes(1);
    assert_eq!(file.write_at(&[4; 4096], 0).expect_err("fails").raw_os_error(), Some(5));
    assert_eq!(fs.failed_writes(), 1);
    fs.fail_fsyncs(1);
    assert_eq!(file.sync_data().expect_err("fails").raw_os_error(), Some(5));
    file.sync_data().expect("the next one passes");
    assert!(read(10_000) == wanted, "what a failed fsync should have written is lost");
    assert_eq!(fs.failed_fsyncs(), 1);

    rustix::fs::fallocate(
        &file,
        rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE,
        0,
        8192,
    )
    .expect("punches");
    assert!(read(8192).iter().all(|b| *b == 0));
    fs.power_cut(None);
    assert!(read(10_000) == wanted, "a hole is not stable either");
    fs::rename(at.join("f"), at.join("g")).expect("renames");
    drop(file);
    assert!(fs::read(at.join("g")).expect("reads") == wanted && fs::read(below.join("g")).expect("reads") == wanted);
    drop(fs);
    assert!(!at.join("g").exists(), "it is unmounted");
}
