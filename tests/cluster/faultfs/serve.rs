//! What the kernel asks for.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner, OpenFlags,
    RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs,
    ReplyWrite, Request, TimeOrNow, WriteFlags,
};

use super::Faults;
use super::pages::Pages;

/// Nothing is kept by the kernel: sizes and names change behind it.
const TTL: Duration = Duration::ZERO;
const DSYNC: i32 = 0o10_000;

/// What the server and the test share.
pub struct Shared {
    pub faults: Faults,
    table: Mutex<Table>,
}

struct Table {
    paths: HashMap<u64, PathBuf>,
    next: u64,
    /// By inode. Kept after the last close: what isn't stable must still be there.
    files: BTreeMap<u64, Pages>,
}

impl Shared {
    pub fn new(below: &Path) -> Self {
        let paths = HashMap::from([(INodeNo::ROOT.0, below.to_owned())]);
        let table = Table { paths, next: INodeNo::ROOT.0 + 1, files: BTreeMap::new() };
        Shared { faults: Faults::default(), table: Mutex::new(table) }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().expect("the server has not panicked")
    }

    pub fn unstable_pages(&self) -> u64 {
        self.table().files.values().map(Pages::unstable).sum()
    }

    pub fn power_cut(&self, seed: Option<u64>) -> u64 {
        let mut lost = 0;
        let mut state = seed.unwrap_or_default();
        for pages in self.table().files.values_mut() {
            let survives = |_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                seed.is_some() && state >> 63 == 1
            };
            lost += pages.keep(survives).expect("writes below");
        }
        lost
    }
}

impl Table {
    fn path(&self, ino: INodeNo) -> io::Result<PathBuf> {
        self.paths.get(&ino.0).cloned().ok_or_else(|| io::Error::from_raw_os_error(2))
    }

    fn inode_of(&mut self, path: &Path) -> u64 {
        if let Some((ino, _)) = self.paths.iter().find(|(_, known)| *known == path) {
            return *ino;
        }
        self.next += 1;
        self.paths.insert(self.next, path.to_owned());
        self.next
    }

    fn entry(&mut self, path: &Path) -> io::Result<FileAttr> {
        let metadata = fs::symlink_metadata(path)?;
        Ok(attributes(self.inode_of(path), &metadata))
    }

    fn pages(&mut self, ino: INodeNo) -> io::Result<&mut Pages> {
        if !self.files.contains_key(&ino.0) {
            let file = File::options().read(true).write(true).open(self.path(ino)?)?;
            self.files.insert(ino.0, Pages::new(file));
        }
        Ok(self.files.get_mut(&ino.0).expect("just put there"))
    }

    /// The name is gone. A file that is still open lives on under its inode.
    fn forget_name(&mut self, path: &Path) {
        self.paths.retain(|_, known| known != path);
    }
}

fn attributes(ino: u64, m: &Metadata) -> FileAttr {
    let time = |t: io::Result<SystemTime>| t.unwrap_or(SystemTime::UNIX_EPOCH);
    FileAttr {
        ino: INodeNo(ino),
        size: m.len(),
        blocks: m.blocks(),
        atime: time(m.accessed()),
        mtime: time(m.modified()),
        ctime: time(m.modified()),
        crtime: SystemTime::UNIX_EPOCH,
        kind: if m.is_dir() { FileType::Directory } else { FileType::RegularFile },
        perm: (m.mode() & 0o7777) as u16,
        nlink: m.nlink() as u32,
        uid: m.uid(),
        gid: m.gid(),
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

pub struct Server {
    shared: Arc<Shared>,
}

impl Server {
    pub fn new(shared: Arc<Shared>) -> Self {
        Server { shared }
    }
}

/// Replies with what an expression of `io::Result` gives, or its error.
macro_rules! answer {
    ($reply:ident, $result:expr, $found:ident => $with:expr) => {
        match $result {
            Ok($found) => $with,
            Err(error) => $reply.error(Errno::from(error)),
        }
    };
}

impl Filesystem for Server {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let mut table = self.shared.table();
        let found = table.path(parent).and_then(|folder| table.entry(&folder.join(name)));
        answer!(reply, found, attr => reply.entry(&TTL, &attr, Generation(0)));
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let table = self.shared.table();
        // An open file may have lost its name.
        let found = match table.files.get(&ino.0) {
            Some(pages) => pages.file().metadata(),
            None => table.path(ino).and_then(fs::symlink_metadata),
        };
        answer!(reply, found, metadata => reply.attr(&TTL, &attributes(ino.0, &metadata)));
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut table = self.shared.table();
        let done = (|| {
            let path = table.path(ino)?;
            if let Some(mode) = mode {
                fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
            }
            if let Some(size) = size {
                table.pages(ino)?.set_len(size)?;
            }
            fs::symlink_metadata(&path)
        })();
        answer!(reply, done, metadata => reply.attr(&TTL, &attributes(ino.0, &metadata)));
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, reply: ReplyEntry) {
        let mut table = self.shared.table();
        let made = table.path(parent).and_then(|folder| {
            let path = folder.join(name);
            fs::DirBuilder::new().mode(mode).create(&path)?;
            table.entry(&path)
        });
        answer!(reply, made, attr => reply.entry(&TTL, &attr, Generation(0)));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let mut table = self.shared.table();
        let done = table.path(parent).and_then(|folder| {
            let path = folder.join(name);
            fs::remove_file(&path)?;
            table.forget_name(&path);
            Ok(())
        });
        answer!(reply, done, _done => reply.ok());
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let mut table = self.shared.table();
        let done = table.path(parent).and_then(|folder| {
            let path = folder.join(name);
            fs::remove_dir(&path)?;
            table.forget_name(&path);
            Ok(())
        });
        answer!(reply, done, _done => reply.ok());
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        to: INodeNo,
        new_name: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mut table = self.shared.table();
        let done = table.path(parent).and_then(|from| {
            let (old, new) = (from.join(name), table.path(to)?.join(new_name));
            fs::rename(&old, &new)?;
            table.forget_name(&new);
            for path in table.paths.values_mut() {
                if let Ok(rest) = path.strip_prefix(&old) {
                    *path = if rest.as_os_str().is_empty() { new.clone() } else { new.join(rest) };
                }
            }
            Ok(())
        });
        answer!(reply, done, _done => reply.ok());
    }

    fn open(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let opened = self.shared.table().pages(ino).map(|_| ());
        answer!(reply, opened, _done => reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO));
    }

    fn create(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, _: i32, reply: ReplyCreate) {
        let mut table = self.shared.table();
        let made = table.path(parent).and_then(|folder| {
            let path = folder.join(name);
            File::options().write(true).create(true).truncate(false).mode(mode).open(&path)?;
            let attr = table.entry(&path)?;
            table.pages(attr.ino)?;
            Ok(attr)
        });
        answer!(reply, made, attr => {
            reply.created(&TTL, &attr, Generation(0), FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
        });
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let found = self.shared.table().pages(ino).and_then(|pages| pages.read(offset, size as usize));
        answer!(reply, found, data => reply.data(&data));
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let faults = &self.shared.faults;
        if faults.writes.hits() {
            return reply.error(Errno::EIO);
        }
        let data = if data.len() > 1 && faults.short_writes.hits() { &data[..data.len() / 2] } else { data };
        faults.take_time(data.len());
        let mut table = self.shared.table();
        let done = table.pages(ino).and_then(|pages| {
            if flags.0 & DSYNC != 0 { pages.write_stable(offset, data) } else { pages.write(offset, data) }
        });
        answer!(reply, done, _done => reply.written(data.len() as u32));
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // A close makes nothing stable.
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let faults = &self.shared.faults;
        let mut table = self.shared.table();
        if faults.fsyncs.hits() {
            if let Ok(pages) = table.pages(ino) {
                pages.keep(|_| false).expect("nothing to write");
            }
            return reply.error(Errno::EIO);
        }
        let done = table.pages(ino).and_then(Pages::sync);
        faults.synced.fetch_add(1, Ordering::SeqCst);
        answer!(reply, done, _done => reply.ok());
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fallocate(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let flags = rustix::fs::FallocateFlags::from_bits_retain(mode as u32);
        let mut table = self.shared.table();
        let done = table.pages(ino).and_then(|pages| {
            if flags.contains(rustix::fs::FallocateFlags::PUNCH_HOLE) {
                return pages.punch(offset, length);
            }
            Ok(rustix::fs::fallocate(pages.file(), flags, offset, length)?)
        });
        answer!(reply, done, _done => reply.ok());
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let mut table = self.shared.table();
        let listed = table.path(ino).and_then(|folder| {
            let mut names = fs::read_dir(folder)?.collect::<io::Result<Vec<_>>>()?;
            names.sort_by_key(fs::DirEntry::file_name);
            Ok(names)
        });
        answer!(reply, listed, names => {
            for (i, entry) in names.iter().enumerate().skip(offset as usize) {
                let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
                let kind = if is_dir { FileType::Directory } else { FileType::RegularFile };
                let found = table.inode_of(&entry.path());
                if reply.add(INodeNo(found), i as u64 + 1, kind, entry.file_name()) {
                    break;
                }
            }
            reply.ok();
        });
    }

    fn statfs(&self, _: &Request, ino: INodeNo, reply: ReplyStatfs) {
        let found = self.shared.table().path(ino).and_then(|path| Ok(rustix::fs::statvfs(path)?));
        answer!(reply, found, s => reply.statfs(
            s.f_blocks,
            s.f_bfree,
            s.f_bavail,
            s.f_files,
            s.f_ffree,
            s.f_bsize as u32,
            s.f_namemax as u32,
            s.f_frsize as u32,
        ));
    }
}
