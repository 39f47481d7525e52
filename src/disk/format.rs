//! Making a disk, locking it, and reading its superblock.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use super::backend::{Backend, Io, RealFile};
use super::error::{FormatDisk, OpenDisk};
use super::layout::{
    CLASS_BYTES_MAX, FORMAT_VERSION, Geometry, PAGE_BYTES, PG_ENTRIES, SUPERBLOCK_OFFSETS, Superblock,
    SuperblockProblem,
};
use crate::core::ids::{BootId, ClusterId, DiskId};

/// The smallest disk: 33 MiB are tables, so that a smaller one would hold next to nothing.
pub const CAPACITY_BYTES_MIN: u64 = 128 << 20;

/// What a new disk is to be.
#[derive(Clone, Debug)]
pub struct FormatOptions {
    /// Its cluster.
    pub cluster: ClusterId,
    /// Its id.
    pub disk: DiskId,
    /// Its class: `ssd`, `hdd` and so on.
    pub class: String,
    /// Its size. On a block device at most that of the device.
    pub capacity_bytes: u64,
}

/// Makes a disk of a block device, or of an empty directory, which is created if need be.
///
/// # Errors
/// The path holds a disk or anything else, is too small, or can't be written.
pub fn format(path: &Path, options: &FormatOptions) -> Result<(), FormatDisk> {
    let superblock = new_superblock(path, options)?;
    let io_error = |action| move |source| FormatDisk::Io { path: path.to_owned(), action, source };
    if is_device(path) {
        let file = open_file(path, path)?;
        lock(path, &file)?;
        refuse_used_device(path, &file)?;
        let io = Io::new(Box::new(RealFile::new(file, true)));
        let have = io.len().map_err(io_error("find the device's size"))?;
        if have < options.capacity_bytes {
            return Err(FormatDisk::TooSmall {
                path: path.to_owned(),
                capacity_bytes: have,
                minimum_bytes: options.capacity_bytes,
            });
        }
        return write_empty(&io, &superblock).map_err(io_error("write its tables"));
    }
    fs::create_dir_all(path).map_err(io_error("create the directory"))?;
    refuse_used_directory(path)?;
    // The file gets its name when it is whole: a crash in between leaves no half-made disk.
    let (new, data) = (path.join(NEW_NAME), path.join(DATA_NAME));
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&new)
        .map_err(io_error("create the data file"))?;
    file.set_len(options.capacity_bytes).map_err(io_error("size the data file"))?;
    let io = Io::new(Box::new(RealFile::new(file, false)));
    write_empty(&io, &superblock).map_err(io_error("write its tables"))?;
    fs::rename(&new, &data).map_err(io_error("name the data file"))?;
    File::open(path).and_then(|d| d.sync_all()).map_err(io_error("sync the directory"))
}

/// A new disk's superblock, marked clean: nothing has been written yet.
fn new_superblock(path: &Path, options: &FormatOptions) -> Result<Superblock, FormatDisk> {
    let FormatOptions { cluster, disk, class, capacity_bytes } = options;
    if class.is_empty() || class.len() > CLASS_BYTES_MAX {
        return Err(FormatDisk::BadClass { class: class.clone(), max: CLASS_BYTES_MAX });
    }
    let too_small = || FormatDisk::TooSmall {
        path: path.to_owned(),
        capacity_bytes: *capacity_bytes,
        minimum_bytes: CAPACITY_BYTES_MIN,
    };
    if *capacity_bytes < CAPACITY_BYTES_MIN {
        return Err(too_small());
    }
    Ok(Superblock {
        cluster: *cluster,
        disk: *disk,
        class: class.clone(),
        geometry: Geometry::new(*capacity_bytes, PG_ENTRIES).ok_or_else(too_small)?,
        boot: new_boot_id(),
        clean: true,
        failed: false,
        version: 1,
    })
}

/// Writes empty tables and then the superblocks. The header and mark tables are written out, so that later header
/// writes allocate nothing and can't meet a full file system.
pub(super) fn write_empty(io: &Io, superblock: &Superblock) -> io::Result<()> {
    let g = &superblock.geometry;
    io.allocate(0, g.slot(0))?;
    let zeros = vec![0; 1 << 20];
    let mut at = g.marks(0);
    while at < g.slot(0) {
        let n = (g.slot(0) - at).min(zeros.len() as u64);
        io.write(&zeros[..n as usize], at)?;
        at += n;
    }
    if !io.new_reads_zero() {
        for entry in 0..g.pg_entries {
            for copy in 0..2 {
                io.write(&zeros[..PAGE_BYTES as usize], g.pg_record(entry, copy))?;
            }
        }
    }
    io.sync()?;
    for copy in 0..2 {
        let s = Superblock { version: copy, ..superblock.clone() };
        io.write_sync(&s.encode(), SUPERBLOCK_OFFSETS[s.copy()])?;
    }
    Ok(())
}

/// What a disk says of itself, without locking it.
///
/// # Errors
/// There is no readable superblock.
pub fn inspect(path: &Path) -> Result<Superblock, OpenDisk> {
    let data = data_path(path);
    let file = File::open(&data).map_err(|e| open_error(path, e))?;
    Ok(read_superblock(path, &RealFile::new(file, is_device(path)))?.0)
}

/// Takes the failed mark off a disk whose hardware is known to be good again (R15). For an operator alone.
///
/// # Errors
/// The disk can't be opened, locked or written.
pub fn clear_failed(path: &Path) -> Result<(), OpenDisk> {
    let file = open_file(path, &data_path(path))?;
    lock(path, &file)?;
    let backend = RealFile::new(file, is_device(path));
    let (mut superblock, _) = read_superblock(path, &backend)?;
    superblock.failed = false;
    superblock.clean = false;
    for _ in 0..2 {
        superblock.version += 1;
        backend
            .write_sync(&superblock.encode(), SUPERBLOCK_OFFSETS[superblock.copy()])
            .map_err(|source| OpenDisk::Io { path: path.to_owned(), action: "write its superblock", source })?;
    }
    Ok(())
}

/// Opens and locks a disk's file or device.
pub(super) fn open_locked(path: &Path) -> Result<RealFile, OpenDisk> {
    let file = open_file(path, &data_path(path))?;
    lock(path, &file)?;
    Ok(RealFile::new(file, is_device(path)))
}

/// The newest superblock, and whether both copies are sound.
pub(super) fn read_superblock(path: &Path, backend: &dyn Backend) -> Result<(Superblock, bool), OpenDisk> {
    let mut problems = Vec::new();
    let mut best: Option<Superblock> = None;
    for offset in SUPERBLOCK_OFFSETS {
        let mut page = vec![0; PAGE_BYTES as usize];
        let copy = match backend.read_at(&mut page, offset) {
            Ok(()) => Superblock::decode(&page),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Err(SuperblockProblem::NotOurs),
            Err(_) => Err(SuperblockProblem::Corrupt),
        };
        match copy {
            Ok(s) if best.as_ref().is_none_or(|b| b.version < s.version) => best = Some(s),
            Ok(_) => {}
            Err(problem) => problems.push(problem),
        }
    }
    let path = path.to_owned();
    if let Some(found) = problems.iter().find_map(|p| if let SuperblockProblem::Newer(v) = p { Some(*v) } else { None })
    {
        return Err(OpenDisk::Newer { path, found, known: FORMAT_VERSION });
    }
    match best {
        Some(s) => Ok((s, problems.is_empty())),
        None if problems.contains(&SuperblockProblem::Corrupt) => Err(OpenDisk::SuperblockCorrupt { path }),
        None => Err(OpenDisk::NotADisk { path }),
    }
}

/// A boot id that no start has had before.
pub(super) fn new_boot_id() -> BootId {
    BootId(rand::random_range(1..=u64::MAX))
}

const DATA_NAME: &str = "data";
const NEW_NAME: &str = "data.new";

fn is_device(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|m| m.file_type().is_block_device())
}

fn data_path(path: &Path) -> PathBuf {
    if is_device(path) { path.to_owned() } else { path.join(DATA_NAME) }
}

fn open_file(path: &Path, file: &Path) -> Result<File, OpenDisk> {
    OpenOptions::new().read(true).write(true).open(file).map_err(|e| open_error(path, e))
}

fn open_error(path: &Path, source: io::Error) -> OpenDisk {
    match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => OpenDisk::NotADisk { path: path.to_owned() },
        _ => OpenDisk::Io { path: path.to_owned(), action: "open it", source },
    }
}

/// One process per disk: the lock ends with the process.
fn lock(path: &Path, file: &File) -> Result<(), OpenDisk> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(OpenDisk::InUse { path: path.to_owned(), pid: lock_holder(file) }),
        Err(e) => Err(OpenDisk::Io { path: path.to_owned(), action: "lock it", source: e.into() }),
    }
}

/// The process that holds the lock, by /proc/locks: `1: FLOCK ADVISORY WRITE 1234 fe:00:5678 0 EOF`.
fn lock_holder(file: &File) -> Option<u32> {
    let inode = file.metadata().ok()?.ino().to_string();
    let locks = fs::read_to_string("/proc/locks").ok()?;
    let line = locks.lines().find(|l| {
        l.contains("FLOCK") && l.split_whitespace().nth(5).and_then(|d| d.rsplit(':').next()) == Some(inode.as_str())
    })?;
    line.split_whitespace().nth(4)?.parse().ok().filter(|pid| *pid != 0)
}

fn refuse_used_directory(path: &Path) -> Result<(), FormatDisk> {
    let io_error = |source| FormatDisk::Io { path: path.to_owned(), action: "list the directory", source };
    if let Ok(s) = inspect(path) {
        return Err(already(path, &s));
    }
    for entry in fs::read_dir(path).map_err(io_error)? {
        let name = entry.map_err(io_error)?.file_name();
        // A fresh file system has a lost+found; a format that was cut short leaves its unfinished file.
        if name != "lost+found" && name != NEW_NAME {
            return Err(FormatDisk::OtherData { path: path.to_owned(), what: name.to_string_lossy().into_owned() });
        }
    }
    Ok(())
}

/// The first MiB holds the signature of any file system, partition table or volume manager.
fn refuse_used_device(path: &Path, file: &File) -> Result<(), FormatDisk> {
    if let Ok(s) = inspect(path) {
        return Err(already(path, &s));
    }
    let mut start = vec![0; 1 << 20];
    let backend = RealFile::new(
        file.try_clone().map_err(|source| FormatDisk::Io { path: path.to_owned(), action: "open it", source })?,
        true,
    );
    backend.read_at(&mut start, 0).map_err(|source| FormatDisk::Io {
        path: path.to_owned(),
        action: "read its first MiB",
        source,
    })?;
    if crate::core::hashtree::is_zero(&start) {
        return Ok(());
    }
    Err(FormatDisk::OtherData { path: path.to_owned(), what: "its first MiB is not zeros".to_owned() })
}

fn already(path: &Path, s: &Superblock) -> FormatDisk {
    FormatDisk::AlreadyADisk { path: path.to_owned(), disk: s.disk.to_string(), cluster: s.cluster }
}
