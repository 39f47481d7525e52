//! A small NBD client, and a load that knows what every block must hold.
//!
//! The client has one request in flight; a load opens several connections.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::tools::{PATIENCE, wait_for};

const READ: u16 = 0;
const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
/// A command flag, kept in the upper half of a kind.
const FUA: u16 = 1 << 15;
pub const BLOCK_BYTES: u64 = 4096;

/// A connection to an export.
pub struct Client {
    stream: UnixStream,
    pub size_bytes: u64,
    cookie: u64,
}

impl Client {
    /// Connects with EXPORT_NAME.
    pub fn connect(socket: &Path, volume: &str) -> io::Result<Self> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting)?;
        let mut hello = Vec::new();
        // Fixed newstyle, and no zeroes after the export's description.
        hello.extend_from_slice(&3_u32.to_be_bytes());
        hello.extend_from_slice(b"IHAVEOPT");
        hello.extend_from_slice(&1_u32.to_be_bytes());
        hello.extend_from_slice(&u32::try_from(volume.len()).expect("a short name").to_be_bytes());
        hello.extend_from_slice(volume.as_bytes());
        stream.write_all(&hello)?;
        let mut export = [0; 10];
        stream.read_exact(&mut export)?;
        let size_bytes = u64::from_be_bytes(export[..8].try_into().expect("eight bytes"));
        Ok(Client { stream, size_bytes, cookie: 0 })
    }

    pub fn read(&mut self, offset: u64, len: u64) -> io::Result<Vec<u8>> {
        self.request(READ, offset, len, &[])?;
        let mut data = vec![0; usize::try_from(len).expect("fits")];
        self.stream.read_exact(&mut data)?;
        Ok(data)
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.request(WRITE, offset, data.len() as u64, data)
    }

    pub fn trim(&mut self, offset: u64, len: u64) -> io::Result<()> {
        self.request(TRIM, offset, len, &[])
    }

    pub fn flush(&mut self) -> io::Result<()> {
        self.request(FLUSH, 0, 0, &[])
    }

    /// Sends bytes in the place of a request.
    pub fn send_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// A write that is stable when it is acked.
    pub fn write_fua(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.request(WRITE | FUA, offset, data.len() as u64, data)
    }

    fn request(&mut self, kind: u16, offset: u64, len: u64, data: &[u8]) -> io::Result<()> {
        self.send(kind, offset, len, data)?;
        let mut reply = [0; 16];
        self.stream.read_exact(&mut reply)?;
        let error = u32::from_be_bytes(reply[4..8].try_into().expect("four bytes"));
        let cookie = u64::from_be_bytes(reply[8..].try_into().expect("eight bytes"));
        if reply[..4] != 0x6744_6698_u32.to_be_bytes() || cookie != self.cookie {
            return Err(io::Error::other(format!("not a reply to request {}: {reply:02x?}", self.cookie)));
        }
        if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(i32::try_from(error).unwrap_or(5))) }
    }

    fn send(&mut self, kind: u16, offset: u64, len: u64, data: &[u8]) -> io::Result<()> {
        self.cookie += 1;
        let mut request = Vec::with_capacity(28 + data.len());
        request.extend_from_slice(&0x2560_9513_u32.to_be_bytes());
        request.extend_from_slice(&u16::from(kind & FUA != 0).to_be_bytes());
        request.extend_from_slice(&(kind & !FUA).to_be_bytes());
        request.extend_from_slice(&self.cookie.to_be_bytes());
        request.extend_from_slice(&offset.to_be_bytes());
        request.extend_from_slice(&u32::try_from(len).expect("fits").to_be_bytes());
        request.extend_from_slice(data);
        self.stream.write_all(&request)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // The server sees the end of the connection in any case.
        let _ = self.send(DISCONNECT, 0, 0, &[]);
    }
}

/// What a load does when its connection breaks, and what it may find over the next one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Breaks {
    /// It fails.
    Fail,
    /// It connects again and must find every acked write; the one in flight may be there or not.
    KeepAcked,
    /// It connects again and must find every flushed write. A block that was written since holds what it held at the
    /// flush or any version written since, as on a disk that lost its power. A flush may fail once for it (R13).
    KeepFlushed,
}

/// A steady load of stamped 4 KiB blocks on the first blocks of a volume. Any error, and any block that doesn't hold
/// the last acked stamp, fails it; `Breaks` says what a lost connection may change.
pub struct Load {
    stop: Arc<AtomicBool>,
    counts: Arc<Counts>,
    workers: Vec<JoinHandle<Result<Vec<u64>, String>>>,
}

/// What happened so far.
#[derive(Default)]
struct Counts {
    operations: AtomicU64,
    breaks: AtomicU64,
    failed_flushes: AtomicU64,
}

pub const WORKERS: u64 = 4;

impl Load {
    /// Starts it on blocks 0 to `blocks` of the volume.
    pub fn start(socket: &Path, volume: &str, blocks: u64) -> Load {
        Load::start_over(&[socket], volume, blocks, Breaks::Fail)
    }

    /// The same by a client that knows several sockets and takes the first that answers.
    pub fn start_over(sockets: &[&Path], volume: &str, blocks: u64, breaks: Breaks) -> Load {
        let (stop, counts) = (Arc::default(), Arc::default());
        let workers = (0..WORKERS).map(|number| {
            let worker = Worker {
                client: Client::connect(sockets[0], volume).expect("connects"),
                sockets: sockets.iter().map(|&socket| socket.to_owned()).collect(),
                volume: volume.to_owned(),
                first: number * (blocks / WORKERS),
                blocks: vec![Block::default(); usize::try_from(blocks / WORKERS).expect("fits")],
                breaks,
                random: number + 1,
            };
            let (stop, counts) = (Arc::clone(&stop), Arc::clone(&counts));
            std::thread::spawn(move || worker.run(&stop, &counts))
        });
        let workers = workers.collect();
        Load { stop, counts, workers }
    }

    /// Operations that were answered so far.
    pub fn operations(&self) -> u64 {
        self.counts.operations.load(Ordering::Relaxed)
    }

    /// How often a connection broke and was made again.
    pub fn breaks(&self) -> u64 {
        self.counts.breaks.load(Ordering::Relaxed)
    }

    /// Flushes that were answered by an error, to tell of a loss.
    pub fn failed_flushes(&self) -> u64 {
        self.counts.failed_flushes.load(Ordering::Relaxed)
    }

    /// Waits until that many operations more are answered: IO goes on.
    pub fn wait_for_more(&self, more: u64) {
        let from = self.operations();
        wait_for("more IO is answered", || {
            assert!(!self.workers.iter().any(JoinHandle::is_finished), "the load has ended early: see its error below");
            (self.operations() >= from + more).then_some(())
        });
    }

    /// Ends it, and reads every block again over a new connection.
    pub fn stop_and_verify(mut self, socket: &Path, volume: &str) {
        self.stop.store(true, Ordering::Relaxed);
        let mut client = Client::connect(socket, volume).expect("connects");
        for (worker, handle) in std::mem::take(&mut self.workers).into_iter().enumerate() {
            let versions = handle.join().expect("no panic").unwrap_or_else(|error| panic!("the load failed: {error}"));
            for (i, version) in versions.iter().enumerate() {
                let block = worker as u64 * versions.len() as u64 + i as u64;
                let found = client.read(block * BLOCK_BYTES, BLOCK_BYTES).expect("reads");
                check(&found, block, &[*version]).unwrap_or_else(|error| panic!("{error}"));
            }
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for worker in self.workers.drain(..) {
            // Left over only when the test fails for another reason; what it says is of use there.
            if let Ok(Err(error)) = worker.join() {
                eprintln!("the load failed: {error}");
            }
        }
    }
}

/// What one block may hold.
#[derive(Clone, Default)]
struct Block {
    /// The version at the last flush.
    flushed: u64,
    /// The versions written since then, in order.
    since: Vec<u64>,
    /// How many of those were acked.
    acked: usize,
    /// The highest version ever written: none is used twice, so that a lost one that comes back is found out.
    newest: u64,
}

impl Block {
    /// What a read finds while the connection holds.
    fn now(&self) -> u64 {
        self.since.last().copied().unwrap_or(self.flushed)
    }

    /// What a read may find over a new connection.
    fn allowed(&self, breaks: Breaks) -> Vec<u64> {
        let all = [&[self.flushed], &self.since[..]].concat();
        match breaks {
            Breaks::KeepFlushed => all,
            Breaks::KeepAcked | Breaks::Fail => all[self.acked..].to_vec(),
        }
    }

    /// Later versions than the one found are gone for good.
    fn adopt(&mut self, version: u64) {
        self.since.retain(|written| *written <= version);
        self.acked = self.since.len();
    }

    fn flush(&mut self) {
        self.flushed = self.now();
        self.since.clear();
        self.acked = 0;
    }
}

/// Why a worker's step failed.
enum Failed {
    /// The connection is gone.
    Broken(String),
    /// A flush was answered by an error.
    Flush(String),
    Wrong(String),
}

/// Writes, reads back and flushes blocks of its own.
struct Worker {
    client: Client,
    sockets: Vec<PathBuf>,
    volume: String,
    first: u64,
    blocks: Vec<Block>,
    breaks: Breaks,
    random: u64,
}

impl Worker {
    /// Works until told to stop; gives each block's version, flushed.
    fn run(mut self, stop: &AtomicBool, counts: &Counts) -> Result<Vec<u64>, String> {
        let mut step = 0;
        loop {
            let stopping = stop.load(Ordering::Relaxed);
            step += 1;
            let outcome = if stopping || step % 64 == 0 { self.flush() } else { self.step() };
            match outcome {
                Ok(()) if stopping => return Ok(self.blocks.iter().map(Block::now).collect()),
                Ok(()) => {
                    counts.operations.fetch_add(1, Ordering::Relaxed);
                }
                Err(Failed::Broken(_)) if self.breaks != Breaks::Fail => {
                    self.reconnect()?;
                    counts.breaks.fetch_add(1, Ordering::Relaxed);
                }
                Err(Failed::Flush(_)) if self.breaks == Breaks::KeepFlushed => {
                    counts.failed_flushes.fetch_add(1, Ordering::Relaxed);
                }
                Err(Failed::Broken(error) | Failed::Flush(error) | Failed::Wrong(error)) => return Err(error),
            }
            // A steady load, not the most that the machine can do: tests share it.
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn step(&mut self) -> Result<(), Failed> {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let i = usize::try_from((self.random >> 33) % self.blocks.len() as u64).expect("fits");
        if self.random >> 32 & 3 == 0 {
            let now = self.blocks[i].now();
            return self.find(i, &[now]).map(drop);
        }
        let number = self.first + i as u64;
        let block = &mut self.blocks[i];
        block.newest += 1;
        block.since.push(block.newest);
        let written = self.client.write(number * BLOCK_BYTES, &stamp(number, block.newest));
        written.map_err(|error| failed(&format!("writing block {number}"), &error))?;
        block.acked = block.since.len();
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Failed> {
        self.client.flush().map_err(|error| match failed("flushing", &error) {
            Failed::Wrong(text) => Failed::Flush(text),
            other => other,
        })?;
        self.blocks.iter_mut().for_each(Block::flush);
        Ok(())
    }

    /// Reads a block that holds one of these versions; gives which.
    fn find(&mut self, i: usize, allowed: &[u64]) -> Result<u64, Failed> {
        let number = self.first + i as u64;
        let found = self.client.read(number * BLOCK_BYTES, BLOCK_BYTES);
        let found = found.map_err(|error| failed(&format!("reading block {number}"), &error))?;
        check(&found, number, allowed).map_err(Failed::Wrong)
    }

    /// Connects again, and looks at each block that is not flushed.
    fn reconnect(&mut self) -> Result<(), String> {
        wait_for("a gateway takes the load again", || match self.look_again() {
            Ok(()) => Some(Ok(())),
            Err(Failed::Broken(_)) => None,
            Err(Failed::Wrong(error) | Failed::Flush(error)) => Some(Err(error)),
        })
    }

    fn look_again(&mut self) -> Result<(), Failed> {
        let found = self.sockets.iter().find_map(|socket| Client::connect(socket, &self.volume).ok());
        self.client = found.ok_or_else(|| Failed::Broken("nobody serves".to_owned()))?;
        for i in 0..self.blocks.len() {
            if !self.blocks[i].since.is_empty() {
                let version = self.find(i, &self.blocks[i].allowed(self.breaks))?;
                self.blocks[i].adopt(version);
            }
        }
        Ok(())
    }
}

fn failed(what: &str, error: &io::Error) -> Failed {
    let text = format!("{what}: {error}");
    // ESHUTDOWN is NBD's word of a server that stops; the rest says that there is no connection any more.
    let broken = error.raw_os_error() == Some(108)
        || matches!(
            error.kind(),
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
        );
    if broken { Failed::Broken(text) } else { Failed::Wrong(text) }
}

/// What a block holds at a version; zeros before the first.
pub fn stamp(block: u64, version: u64) -> Vec<u8> {
    if version == 0 {
        return vec![0; BLOCK_BYTES as usize];
    }
    let word = [block.to_le_bytes(), version.to_le_bytes()].concat();
    word.repeat(BLOCK_BYTES as usize / word.len())
}

/// Which of the allowed versions the block holds.
fn check(found: &[u8], block: u64, allowed: &[u64]) -> Result<u64, String> {
    let holds = allowed.iter().find(|version| found == stamp(block, **version));
    holds.copied().ok_or_else(|| {
        format!("block {block} should hold a version of {allowed:?}, but begins with {:02x?}", &found[..16])
    })
}
