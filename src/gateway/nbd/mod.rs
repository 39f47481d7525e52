//! The NBD server: how a virtual machine reaches its volume. And a small client, for load generators and tests.
//!
//! Purpose: fixed newstyle negotiation and the transmission phase with structured replies, written from the protocol's
//! specification. A [`Backend`] does the IO; this module knows nothing of chunks or replicas.
//!
//! Invariants:
//! - A request may stall for as long as its backend likes; all others go on, and replies go out in the order in which
//!   backends finish.
//! - No client makes the server panic or grow without bound: see [`Limits`] for each bound and its reason.
//! - A request that the server has begun is finished even if its client goes away, so a write is never half ordered;
//!   only the end of the server's stop cancels one.
//! - A write waits for an overlapping write of another connection: what a vanished client left in flight can't
//!   overwrite what its successor writes (see [`overlap`]).
//!
//! Units: bytes for sizes, offsets and lengths, unless a name says otherwise.
//!
//! Non-goals: TLS (so TCP is served on loopback only), resize, extended headers.
//!
//! Map: [`proto`] bytes ↔ values, pure; [`handshake`] the negotiation as a pure state machine; [`connection`] the
//! transmission phase; [`reply`] coalescing of replies; [`overlap`] order between connections; [`listener`] sockets;
//! [`server`] accepts and stops; [`client`] the client.

pub mod client;
pub mod connection;
pub mod handshake;
pub mod listener;
pub mod overlap;
pub mod proto;
pub mod reply;
pub mod server;
#[cfg(test)]
mod test_backend;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

pub use listener::{BindListener, Listener};
pub use server::Server;

/// What does a volume's IO.
///
/// Ranges are within [`size_bytes`](Backend::size_bytes) at the time of the call and multiples of 512 bytes. Calls run
/// at the same time. The server drops a running call only at the end of its stop, and a running read or block status
/// query also when the client has gone.
pub trait Backend: Send + Sync + 'static {
    /// The export's size; may grow while it is served.
    fn size_bytes(&self) -> u64;

    /// Reads `len` bytes at `offset`; `len` ≤ 32 MiB.
    fn read(&self, offset: u64, len: u32) -> impl Future<Output = Result<ReadReply, IoError>> + Send;

    /// Writes `data`, at most 32 MiB. With `fua` it returns when the data is on stable storage.
    ///
    /// `data` may be a slice of a larger receive buffer: copy it to keep it for long.
    fn write(&self, offset: u64, data: Bytes, fua: bool) -> impl Future<Output = Result<(), IoError>> + Send;

    /// Returns when every write that was answered before the call is on stable storage, whichever connection wrote it.
    fn flush(&self) -> impl Future<Output = Result<(), IoError>> + Send;

    /// Frees the range, which reads back as zeroes.
    fn trim(&self, offset: u64, len: u32, fua: bool) -> impl Future<Output = Result<(), IoError>> + Send;

    /// Zeroes the range; with `no_hole` its space stays provisioned.
    fn write_zeroes(
        &self,
        offset: u64,
        len: u32,
        no_hole: bool,
        fua: bool,
    ) -> impl Future<Output = Result<(), IoError>> + Send;

    /// Describes the range from `offset` on, in order and without gaps; it may stop early.
    fn block_status(&self, offset: u64, len: u32) -> impl Future<Output = Result<Vec<Extent>, IoError>> + Send;
}

/// What a read gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReadReply {
    /// The whole range in one piece.
    Data(Bytes),
    /// The range in order: pieces that need no copying, and holes that need no bytes on the wire.
    Segments(Vec<Segment>),
}

/// One piece of a read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Segment {
    Data(Bytes),
    /// So many bytes read as zeroes.
    Hole(u32),
}

/// One run of blocks of the same status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// A multiple of 512 bytes, not zero.
    pub len: u32,
    /// Not allocated.
    pub hole: bool,
    /// Reads as zeroes.
    pub zero: bool,
}

/// Why an operation failed; each has its NBD error number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum IoError {
    #[error("input/output error")]
    Io,
    #[error("no space left")]
    NoSpace,
    #[error("invalid request")]
    Invalid,
    #[error("request too long")]
    TooLong,
    #[error("the export is read-only")]
    ReadOnly,
    #[error("not supported")]
    NotSupported,
    #[error("the server is shutting down")]
    Shutdown,
}

impl IoError {
    /// The error number on the wire.
    pub fn errno(self) -> u32 {
        use proto::errno;
        match self {
            IoError::Io => errno::EIO,
            IoError::NoSpace => errno::ENOSPC,
            IoError::Invalid => errno::EINVAL,
            IoError::TooLong => errno::EOVERFLOW,
            IoError::ReadOnly => errno::EPERM,
            IoError::NotSupported => errno::ENOTSUP,
            IoError::Shutdown => errno::ESHUTDOWN,
        }
    }

    /// The error that a number on the wire stands for; unknown ones are input/output errors.
    pub fn from_errno(number: u32) -> Self {
        use proto::errno;
        match number {
            errno::EPERM => IoError::ReadOnly,
            errno::EINVAL => IoError::Invalid,
            errno::ENOSPC => IoError::NoSpace,
            errno::EOVERFLOW => IoError::TooLong,
            errno::ENOTSUP => IoError::NotSupported,
            errno::ESHUTDOWN => IoError::Shutdown,
            _ => IoError::Io,
        }
    }
}

/// One volume as clients see it.
pub struct Export<B> {
    /// The volume's name, at most 4,096 bytes.
    pub name: Arc<str>,
    pub backend: Arc<B>,
    pub read_only: bool,
    /// Shared by all connections to the volume.
    pub overlap: Arc<overlap::OverlapTable>,
}

impl<B> Export<B> {
    /// A read-write export.
    pub fn new(name: &str, backend: Arc<B>) -> Self {
        Self { name: name.into(), backend, read_only: false, overlap: Arc::default() }
    }
}

impl<B> Clone for Export<B> {
    fn clone(&self) -> Self {
        Self {
            name: self.name.clone(),
            backend: self.backend.clone(),
            read_only: self.read_only,
            overlap: self.overlap.clone(),
        }
    }
}

/// The volumes that a gateway serves.
pub trait Exports: Send + Sync + 'static {
    type Backend: Backend;

    /// The export of this name; the empty name asks for the default export.
    fn find(&self, name: &str) -> Option<Export<Self::Backend>>;

    /// All names, for LIST.
    fn names(&self) -> Vec<Arc<str>>;
}

/// One volume, which is the default export too.
impl<B: Backend> Exports for Export<B> {
    type Backend = B;

    fn find(&self, name: &str) -> Option<Export<B>> {
        (name.is_empty() || *name == *self.name).then(|| self.clone())
    }

    fn names(&self) -> Vec<Arc<str>> {
        vec![self.name.clone()]
    }
}

/// The kinds of operations that are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OpKind {
    Read,
    Write,
    Flush,
    Trim,
    WriteZeroes,
    BlockStatus,
    Cache,
    /// A request that no other kind fits.
    Other,
}

/// One finished operation.
#[derive(Debug, Clone, Copy)]
pub struct OpDone {
    pub kind: OpKind,
    /// The request's length in bytes.
    pub len: u32,
    /// From the request's arrival to its reply being queued.
    pub duration: Duration,
    pub error: Option<IoError>,
}

/// Hears of each operation, for metrics. Called on the connection's task: it must be quick.
pub trait Observer: Send + Sync + 'static {
    fn op_done(&self, _op: &OpDone) {}
    fn connection_opened(&self) {}
    fn connection_closed(&self) {}
}

/// Hears nothing.
pub struct NoObserver;

impl Observer for NoObserver {}

/// The bounds of a server.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at once, those in the handshake and those that only finish old writes included. qemu takes one a
    /// disk, nbdcopy four: 64 is ample and bounds the memory together with `in_flight_bytes_max`.
    pub connections_max: usize,
    /// Requests in progress on a connection: twice what a guest's virtio queue of 128 holds.
    pub in_flight_max: usize,
    /// Payload held by a connection, in flight or waiting to be sent: two requests of the largest size.
    pub in_flight_bytes_max: usize,
    /// The whole handshake: real clients take milliseconds, a half-open one must not hold its place.
    pub handshake_time_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 64,
            in_flight_max: 256,
            in_flight_bytes_max: 2 * proto::BLOCK_SIZE_MAX as usize,
            handshake_time_max: Duration::from_secs(10),
        }
    }
}
