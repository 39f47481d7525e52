//! A small NBD client, and a load that knows what every block must hold.
//!
//! The client has one request in flight; a load opens several connections.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
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

/// A steady load of stamped 4 KiB blocks on the first blocks of a volume. Any error, and any block that doesn't hold
/// the last acked stamp, fails it.
pub struct Load {
    stop: Arc<AtomicBool>,
    operations: Arc<AtomicU64>,
    workers: Vec<JoinHandle<Result<Vec<u64>, String>>>,
}

const WORKERS: u64 = 4;

impl Load {
    /// Starts it on blocks 0 to `blocks` of the volume.
    pub fn start(socket: &Path, volume: &str, blocks: u64) -> Load {
        let (stop, operations) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let workers = (0..WORKERS).map(|worker| {
            let client = Client::connect(socket, volume).expect("connects");
            let (stop, operations) = (stop.clone(), operations.clone());
            std::thread::spawn(move || work(client, worker, blocks / WORKERS, &stop, &operations))
        });
        let workers = workers.collect();
        Load { stop, operations, workers }
    }

    /// Operations that were answered so far.
    pub fn operations(&self) -> u64 {
        self.operations.load(Ordering::Relaxed)
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
                check(&found, block, *version).unwrap_or_else(|error| panic!("{error}"));
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

/// Writes, reads back and flushes blocks of its own until told to stop; gives each block's last acked version.
fn work(mut client: Client, worker: u64, blocks: u64, stop: &AtomicBool, done: &AtomicU64) -> Result<Vec<u64>, String> {
    let mut versions = vec![0; usize::try_from(blocks).expect("fits")];
    let mut random = worker + 1;
    let mut step = 0;
    while !stop.load(Ordering::Relaxed) {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let i = usize::try_from((random >> 33) % blocks).expect("fits");
        let block = worker * blocks + i as u64;
        let fail = |what: &str, error: io::Error| format!("{what} block {block}: {error}");
        if random >> 32 & 3 == 0 {
            let found = client.read(block * BLOCK_BYTES, BLOCK_BYTES).map_err(|e| fail("reading", e))?;
            check(&found, block, versions[i])?;
        } else {
            let version = versions[i] + 1;
            client.write(block * BLOCK_BYTES, &stamp(block, version)).map_err(|e| fail("writing", e))?;
            versions[i] = version;
        }
        step += 1;
        if step % 64 == 0 {
            client.flush().map_err(|e| fail("flushing after", e))?;
        }
        done.fetch_add(1, Ordering::Relaxed);
        // A steady load, not the most that the machine can do: tests share it.
        std::thread::sleep(Duration::from_millis(2));
    }
    client.flush().map_err(|error| format!("flushing: {error}"))?;
    Ok(versions)
}

/// What a block holds at a version; zeros before the first.
pub fn stamp(block: u64, version: u64) -> Vec<u8> {
    if version == 0 {
        return vec![0; BLOCK_BYTES as usize];
    }
    let word = [block.to_le_bytes(), version.to_le_bytes()].concat();
    word.repeat(BLOCK_BYTES as usize / word.len())
}

fn check(found: &[u8], block: u64, version: u64) -> Result<(), String> {
    if found == stamp(block, version) {
        return Ok(());
    }
    Err(format!("block {block} should hold version {version}, but begins with {:02x?}", &found[..16]))
}
