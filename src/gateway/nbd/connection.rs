//! The transmission phase of one connection.
//!
//! Purpose: one task reads requests in batches from a large buffer, drives the backend's futures, and sends the replies
//! that are ready in one vectored write. No locks between tasks, no copies of payloads of a kilobyte or more.
//!
//! Invariants:
//! - Requests in flight, and the bytes held for them and for unsent replies, stay within [`Limits`]; past them the
//!   socket is simply not read.
//! - Memory for a write's payload is reserved only after its length was checked and fits these bounds.
//! - When the client has gone, changes in flight are finished, reads are dropped.
//! - A change read from a connection whose client has gone already is not begun if a newer connection exists: its
//!   client may have sent it again (see [`overlap`](super::overlap)).
//!
//! Non-goals: the negotiation; order among requests of one connection, which the protocol leaves open.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::watch;

use super::handshake::Negotiated;
use super::overlap::ChangeGuard;
use super::proto::{self, Request, cmd, cmd_flag};
use super::reply::ReplyQueue;
use super::{Backend, Extent, IoError, Limits, Observer, OpDone, OpKind, ReadReply, Segment};

/// Room for one batch of requests: 16 writes of 4 KiB come in one system call, and the default Unix socket buffer
/// (208 KiB) is emptied by it.
const RECEIVE_LEN: usize = 256 << 10;
/// With less room than this a new buffer is taken: the rest of the old one isn't worth a system call.
const RECEIVE_LEN_MIN: usize = 32 << 10;
/// A refused write's payload up to this is read and dropped, a longer one closes the connection.
const REFUSED_PAYLOAD_LEN_MAX: u32 = 2 * proto::BLOCK_SIZE_MAX;
/// Extents in one block status reply (32 KiB); the client asks again for the rest.
const EXTENTS_MAX: usize = 4096;

/// A connection to a client.
pub trait ClientStream: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// Whether the client has closed its end, even if bytes that it sent before are still unread.
    fn peer_is_gone(&self) -> bool;
}

impl ClientStream for UnixStream {
    fn peer_is_gone(&self) -> bool {
        is_hung_up(self)
    }
}

impl ClientStream for TcpStream {
    fn peer_is_gone(&self) -> bool {
        is_hung_up(self)
    }
}

/// How far the server's stop has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopPhase {
    Running,
    /// Finish what is in flight, refuse what is new.
    Draining,
    /// Refuse what is still in flight, and close.
    Ending,
}

/// Why a connection was closed by the server.
#[derive(Debug, thiserror::Error)]
pub enum ServeConnection {
    #[error(transparent)]
    Decode(#[from] proto::DecodeMessage),
    #[error("a refused write of {0} bytes is too long to be skipped")]
    PayloadTooLong(u32),
    #[error("connection lost: {0}")]
    Lost(#[from] io::Error),
}

/// Serves one connection until the client leaves or the server stops. `input` holds what came after the negotiation.
pub async fn serve<S: ClientStream, B: Backend, O: Observer>(
    stream: S,
    input: BytesMut,
    negotiated: Negotiated<B>,
    observer: Arc<O>,
    limits: Limits,
    mut stop: watch::Receiver<StopPhase>,
) -> Result<(), ServeConnection> {
    let mut connection = Connection::new(stream, input, negotiated, observer, limits);
    loop {
        let phase = *stop.borrow_and_update();
        connection.enter(phase);
        tokio::select! {
            biased;
            changed = stop.changed(), if phase != StopPhase::Ending => {
                if changed.is_err() {
                    connection.enter(StopPhase::Ending);
                    return poll_fn(|cx| connection.poll_run(cx)).await;
                }
            }
            end = poll_fn(|cx| connection.poll_run(cx)) => return end,
        }
    }
}

struct Connection<S, B, O> {
    stream: S,
    input: BytesMut,
    negotiated: Negotiated<B>,
    observer: Arc<O>,
    limits: Limits,
    id: u64,
    phase: StopPhase,
    /// Requests read together, not begun.
    batch: Vec<Operation>,
    in_flight: FuturesUnordered<Operation>,
    in_flight_bytes: usize,
    replies: ReplyQueue,
    /// Bytes of the first buffered request that are still to come.
    missing: usize,
    /// Bytes of a refused write's payload, still to be read and dropped.
    skip: u64,
    receiving: bool,
    peer_gone: bool,
    /// What ended the receiving, if it was an error.
    failure: Option<ServeConnection>,
}

/// One request in flight.
struct Operation {
    request: Request,
    kind: OpKind,
    started: Instant,
    work: Pin<Box<dyn Future<Output = Result<Outcome, IoError>> + Send>>,
}

/// What the backend gave.
enum Outcome {
    Done,
    Read(ReadReply),
    Status(Vec<Extent>),
}

/// Why no further request was taken from the buffer.
#[derive(PartialEq, Eq)]
enum Taken {
    NeedMore,
    LimitReached,
}

impl Future for Operation {
    type Output = (Request, OpKind, Instant, Result<Outcome, IoError>);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let result = ready!(self.work.as_mut().poll(cx));
        Poll::Ready((self.request, self.kind, self.started, result))
    }
}

impl<S: ClientStream, B: Backend, O: Observer> Connection<S, B, O> {
    fn new(stream: S, input: BytesMut, negotiated: Negotiated<B>, observer: Arc<O>, limits: Limits) -> Self {
        let id = negotiated.export.overlap.connection_id();
        Self {
            stream,
            input,
            negotiated,
            observer,
            limits,
            id,
            phase: StopPhase::Running,
            batch: Vec::new(),
            in_flight: FuturesUnordered::new(),
            in_flight_bytes: 0,
            replies: ReplyQueue::default(),
            missing: 0,
            skip: 0,
            receiving: true,
            peer_gone: false,
            failure: None,
        }
    }

    /// Goes on to a later phase of the stop.
    fn enter(&mut self, phase: StopPhase) {
        self.phase = phase;
        if phase == StopPhase::Ending {
            for operation in std::mem::take(&mut self.in_flight) {
                self.finish(operation.request, operation.kind, operation.started, Err(IoError::Shutdown));
            }
            self.receiving = false;
        }
    }

    /// Goes round until nothing more can be done now; ready when the connection is over.
    fn poll_run(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ServeConnection>> {
        loop {
            let taken = self.take_requests();
            let mut progress = self.begin_batch();
            while let Poll::Ready(Some((request, kind, started, result))) = self.in_flight.poll_next_unpin(cx) {
                self.finish(request, kind, started, result);
                progress = true;
            }
            progress |= self.send(cx);
            if taken == Taken::NeedMore && self.receiving && self.phase != StopPhase::Ending {
                progress |= self.receive(cx);
            }
            let draining = !self.receiving || self.phase != StopPhase::Running;
            if draining && !progress && self.in_flight.is_empty() && self.replies.is_empty() {
                return Poll::Ready(self.failure.take().map_or(Ok(()), Err));
            }
            if !progress {
                return Poll::Pending;
            }
        }
    }

    /// Takes whole requests from the buffer into the batch.
    fn take_requests(&mut self) -> Taken {
        self.missing = 0;
        while self.receiving {
            if self.skip > 0 {
                let skipped = self.skip.min(self.input.len() as u64);
                self.input.advance(skipped as usize);
                self.skip -= skipped;
            }
            if self.in_flight.len() + self.batch.len() >= self.limits.in_flight_max.max(1) {
                return Taken::LimitReached;
            }
            match proto::decode_request(&self.input) {
                Ok(None) => break,
                Err(error) => self.fail(error.into()),
                Ok(Some(request)) => match self.check(&request) {
                    Ok(kind) => {
                        let held = if has_payload(kind) { request.len as usize } else { 0 };
                        let busy = self.in_flight_bytes + self.replies.len();
                        // A lone request always fits, whatever the limits are.
                        if busy > 0 && busy + held > self.limits.in_flight_bytes_max {
                            return Taken::LimitReached;
                        }
                        let payload_len = if kind == OpKind::Write { request.len as usize } else { 0 };
                        self.missing = (proto::REQUEST_LEN + payload_len).saturating_sub(self.input.len());
                        if self.missing > 0 {
                            break;
                        }
                        self.input.advance(proto::REQUEST_LEN);
                        let payload = self.input.split_to(payload_len).freeze();
                        self.in_flight_bytes += held;
                        self.batch.push(self.operation(request, kind, payload));
                    }
                    Err(refusal) => self.refuse(&request, refusal),
                },
            }
        }
        Taken::NeedMore
    }

    /// Hands the batch to the backend, unless it is stale.
    fn begin_batch(&mut self) -> bool {
        if self.batch.is_empty() {
            return false;
        }
        let superseded = self.negotiated.export.overlap.newest_connection_id() != self.id;
        if superseded && self.batch.iter().any(|operation| is_change(operation.kind)) && self.stream.peer_is_gone() {
            self.batch.clear();
            self.lose_peer();
            return true;
        }
        self.in_flight.extend(self.batch.drain(..));
        true
    }

    /// Answers a request that is not begun.
    fn refuse(&mut self, request: &Request, refusal: Option<IoError>) {
        self.input.advance(proto::REQUEST_LEN);
        let Some(error) = refusal else {
            self.receiving = false;
            return;
        };
        if request.kind == cmd::WRITE {
            if request.len > REFUSED_PAYLOAD_LEN_MAX {
                return self.fail(ServeConnection::PayloadTooLong(request.len));
            }
            self.skip = request.len.into();
        }
        self.replies.push_error(request.cookie, error, self.negotiated.structured_replies);
        self.observe(request, kind_of(request.kind), Instant::now(), Some(error));
    }

    /// Checks a request; `Err(None)` is the client's farewell.
    fn check(&self, request: &Request) -> Result<OpKind, Option<IoError>> {
        if request.kind == cmd::DISC {
            return Err(None);
        }
        if self.phase != StopPhase::Running {
            return Err(Some(IoError::Shutdown));
        }
        let export = &self.negotiated.export;
        let kind = check_request(request, export.backend.size_bytes(), export.read_only).map_err(Some)?;
        if kind == OpKind::BlockStatus && !self.negotiated.block_status {
            return Err(Some(IoError::Invalid));
        }
        Ok(kind)
    }

    /// The backend's work on a request. A change is announced here, before it is known whether it will begin.
    fn operation(&self, request: Request, kind: OpKind, payload: Bytes) -> Operation {
        let export = &self.negotiated.export;
        let change = is_change(kind).then(|| {
            let range = request.offset..request.offset.saturating_add(request.len.into());
            export.overlap.announce(self.id, range)
        });
        let work = Box::pin(execute(export.backend.clone(), request, kind, payload, change));
        Operation { request, kind, started: Instant::now(), work }
    }

    /// Queues the reply of a finished request.
    fn finish(&mut self, request: Request, kind: OpKind, started: Instant, result: Result<Outcome, IoError>) {
        if has_payload(kind) {
            self.in_flight_bytes -= request.len as usize;
        }
        let result = result.and_then(|outcome| check_outcome(&request, outcome));
        self.observe(&request, kind, started, result.as_ref().err().copied());
        if self.peer_gone {
            return;
        }
        let cookie = request.cookie;
        match result {
            Ok(Outcome::Done) => self.replies.push_done(cookie),
            Ok(Outcome::Status(extents)) => self.replies.push_block_status(cookie, &extents),
            Ok(Outcome::Read(ReadReply::Data(data))) => self.push_read(&request, [Segment::Data(data)]),
            Ok(Outcome::Read(ReadReply::Segments(segments))) => self.push_read(&request, segments),
            Err(error) => self.replies.push_error(cookie, error, self.negotiated.structured_replies),
        }
    }

    fn push_read(&mut self, request: &Request, segments: impl IntoIterator<Item = Segment>) {
        let Request { cookie, offset, len, flags, .. } = *request;
        if !self.negotiated.structured_replies {
            self.replies.push_simple_read(cookie, segments);
        } else if flags & cmd_flag::DF != 0 && len > 0 {
            self.replies.push_whole_read(cookie, offset, len, segments);
        } else {
            self.replies.push_read(cookie, offset, segments);
        }
    }

    fn observe(&self, request: &Request, kind: OpKind, started: Instant, error: Option<IoError>) {
        self.observer.op_done(&OpDone { kind, len: request.len, duration: started.elapsed(), error });
    }

    /// Sends what the socket takes; gives whether anything went out.
    fn send(&mut self, cx: &mut Context<'_>) -> bool {
        let before = self.replies.len();
        if before == 0 {
            return false;
        }
        if let Poll::Ready(Err(error)) = self.replies.poll_send(cx, &mut self.stream) {
            self.fail(error.into());
            self.lose_peer();
        }
        self.replies.len() < before
    }

    /// Receives what has come; gives whether the state changed.
    fn receive(&mut self, cx: &mut Context<'_>) -> bool {
        let buffered = self.input.len();
        let spare = self.input.capacity() - buffered;
        // A long payload's buffer is filled to its end; a short rest moves to a new buffer.
        if spare < self.missing || (spare < RECEIVE_LEN_MIN && buffered < RECEIVE_LEN_MIN) {
            self.input.reserve(self.missing.max(RECEIVE_LEN));
        }
        match pin!(self.stream.read_buf(&mut self.input)).poll(cx) {
            Poll::Pending => return false,
            Poll::Ready(Ok(0)) => self.lose_peer(),
            Poll::Ready(Ok(_)) => {}
            Poll::Ready(Err(error)) => {
                self.fail(error.into());
                self.lose_peer();
            }
        }
        true
    }

    /// Stops receiving; the first failure is kept for the log.
    fn fail(&mut self, failure: ServeConnection) {
        self.receiving = false;
        self.failure.get_or_insert(failure);
    }

    /// The client has gone: nobody wants its replies, and only changes are finished.
    fn lose_peer(&mut self) {
        self.receiving = false;
        self.peer_gone = true;
        self.replies.clear();
        for operation in std::mem::take(&mut self.in_flight) {
            if is_change(operation.kind) {
                self.in_flight.push(operation);
            }
        }
    }
}

/// Runs one request on the backend.
async fn execute<B: Backend>(
    backend: Arc<B>,
    request: Request,
    kind: OpKind,
    payload: Bytes,
    change: Option<ChangeGuard>,
) -> Result<Outcome, IoError> {
    let Request { offset, len, flags, .. } = request;
    let fua = flags & cmd_flag::FUA != 0;
    if let Some(change) = &change {
        change.turn().await;
    }
    if len == 0 && kind != OpKind::Flush {
        return Ok(if kind == OpKind::Read { Outcome::Read(ReadReply::Data(Bytes::new())) } else { Outcome::Done });
    }
    match kind {
        OpKind::Read => return backend.read(offset, len).await.map(Outcome::Read),
        OpKind::BlockStatus => return backend.block_status(offset, len).await.map(Outcome::Status),
        OpKind::Write => backend.write(offset, payload, fua).await,
        OpKind::Flush => backend.flush().await,
        OpKind::Trim => backend.trim(offset, len, fua).await,
        OpKind::WriteZeroes => backend.write_zeroes(offset, len, flags & cmd_flag::NO_HOLE != 0, fua).await,
        OpKind::Cache => Ok(()),
        OpKind::Other => Err(IoError::Invalid),
    }
    .map(|()| Outcome::Done)
}

/// Checks a request against the export, and tells what it is.
pub fn check_request(request: &Request, size_bytes: u64, read_only: bool) -> Result<OpKind, IoError> {
    let kind = kind_of(request.kind);
    let allowed = cmd_flag::FUA
        | match kind {
            OpKind::Read => cmd_flag::DF,
            OpKind::WriteZeroes => cmd_flag::NO_HOLE | cmd_flag::FAST_ZERO,
            OpKind::BlockStatus => cmd_flag::REQ_ONE,
            _ => 0,
        };
    if kind == OpKind::Other || request.flags & !allowed != 0 {
        return Err(IoError::Invalid);
    }
    if kind == OpKind::Flush {
        return Ok(kind);
    }
    if is_change(kind) && read_only {
        return Err(IoError::ReadOnly);
    }
    let block = u64::from(proto::BLOCK_SIZE_MIN);
    if !request.offset.is_multiple_of(block) || !u64::from(request.len).is_multiple_of(block) {
        return Err(IoError::Invalid);
    }
    if has_payload(kind) && request.len > proto::BLOCK_SIZE_MAX {
        return Err(if request.flags & cmd_flag::DF != 0 { IoError::TooLong } else { IoError::Invalid });
    }
    if kind == OpKind::BlockStatus && request.len == 0 {
        return Err(IoError::Invalid);
    }
    if request.offset.checked_add(request.len.into()).is_none_or(|end| end > size_bytes) {
        return Err(if matches!(kind, OpKind::Write | OpKind::WriteZeroes) {
            IoError::NoSpace
        } else {
            IoError::Invalid
        });
    }
    // Provisioning space is no faster than writing zeroes, so a client that wants both at once is told so.
    let fast_and_provisioned = cmd_flag::NO_HOLE | cmd_flag::FAST_ZERO;
    if request.flags & fast_and_provisioned == fast_and_provisioned {
        return Err(IoError::NotSupported);
    }
    Ok(kind)
}

/// Checks and trims what a backend gave, so that a mistake there is an error and not a broken stream.
fn check_outcome(request: &Request, outcome: Outcome) -> Result<Outcome, IoError> {
    let expected = u64::from(request.len);
    match outcome {
        Outcome::Done => Ok(Outcome::Done),
        Outcome::Read(reply) => {
            let found: u64 = match &reply {
                ReadReply::Data(data) => data.len() as u64,
                ReadReply::Segments(segments) => segments.iter().map(|segment| u64::from(segment.len())).sum(),
            };
            if found != expected {
                tracing::error!(offset = request.offset, expected, found, "the backend read a wrong number of bytes");
                return Err(IoError::Io);
            }
            Ok(Outcome::Read(reply))
        }
        Outcome::Status(extents) => {
            let max = if request.flags & cmd_flag::REQ_ONE != 0 { 1 } else { EXTENTS_MAX };
            Ok(Outcome::Status(trim_extents(extents, request.len, max)))
        }
    }
}

/// Merges neighbours of one status, cuts what lies past the request, and never gives an empty list.
fn trim_extents(extents: Vec<Extent>, mut len: u32, max: usize) -> Vec<Extent> {
    let mut trimmed: Vec<Extent> = Vec::new();
    for mut extent in extents {
        let full = trimmed.len() == max;
        extent.len = extent.len.min(len);
        match trimmed.last_mut() {
            _ if extent.len == 0 => break,
            Some(last) if (last.hole, last.zero) == (extent.hole, extent.zero) => last.len += extent.len,
            _ if full => break,
            _ => trimmed.push(extent),
        }
        len -= extent.len;
    }
    if trimmed.is_empty() {
        trimmed.push(Extent { len, hole: false, zero: false });
    }
    trimmed
}

fn kind_of(command: u16) -> OpKind {
    match command {
        cmd::READ => OpKind::Read,
        cmd::WRITE => OpKind::Write,
        cmd::FLUSH => OpKind::Flush,
        cmd::TRIM => OpKind::Trim,
        cmd::CACHE => OpKind::Cache,
        cmd::WRITE_ZEROES => OpKind::WriteZeroes,
        cmd::BLOCK_STATUS => OpKind::BlockStatus,
        _ => OpKind::Other,
    }
}

fn is_change(kind: OpKind) -> bool {
    matches!(kind, OpKind::Write | OpKind::Trim | OpKind::WriteZeroes)
}

fn has_payload(kind: OpKind) -> bool {
    matches!(kind, OpKind::Read | OpKind::Write)
}

fn is_hung_up(socket: &impl std::os::fd::AsFd) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(socket, PollFlags::RDHUP)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
}

#[cfg(test)]
#[path = "connection_tests.rs"]
mod tests;
