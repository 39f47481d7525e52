//! Framed messages over one bidirectional stream of a link.
//!
//! A [`Sender`] puts frames into a queue without blocking; a writer task takes all that is queued each turn and hands it to QUIC in one call,
//! so that many small messages share packets. A [`Receiver`] takes all that QUIC has in one call and decodes it without copies.
//!
//! Invariants: frames arrive in the order sent, once each, or the channel ends; the send queue is bounded in bytes
//! ([`QUEUE_BYTES_MAX`]), the receive side by the stream's window. Once a channel has ended it stays so, and both halves
//! say why. When the last sender goes, what is queued is still delivered.
//!
//! Cost: a small frame within a packet is a view of that packet and keeps its memory (up to one datagram); keep none for long.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use quinn::VarInt;
use tokio::sync::Notify;

use super::quic::{CloseReason, Link, stream_reason};
use crate::wire::frame::{Decoder, Encoder, Frame, FrameError};

/// Bytes queued and not yet taken by QUIC. Twice the largest common burst: 16 requests of 256 KiB; one larger frame may always be queued alone.
pub const QUEUE_BYTES_MAX: usize = 8 << 20;
/// What a queued frame costs besides its bytes.
const FRAME_OVERHEAD_BYTES: usize = 96;
/// Pieces taken from QUIC in one call; a full receive window of large datagrams takes a few calls.
const PIECES_PER_READ: usize = 32;
/// A peer that opens a channel sends its hello at once.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
const CODE_DROPPED: VarInt = VarInt::from_u32(0);
const CODE_PROTOCOL: VarInt = VarInt::from_u32(2);

/// Why a frame was not taken.
#[derive(Debug, thiserror::Error)]
pub enum SendFrameError {
    /// The queue is full; the frame comes back.
    #[error("the channel's queue is full")]
    Full(Box<Frame>),
    /// The channel has ended.
    #[error("the channel has ended: {0}")]
    Closed(CloseReason),
    /// The frame may not be sent.
    #[error(transparent)]
    Frame(#[from] FrameError),
}

/// Both halves of a channel.
pub struct Channel {
    sender: Sender,
    receiver: Receiver,
}

impl Channel {
    /// The two halves, to be used independently.
    pub fn split(self) -> (Sender, Receiver) {
        (self.sender, self.receiver)
    }
}

impl Link {
    /// Opens a channel whose first frame is `hello`.
    ///
    /// # Errors
    /// The link has ended, or `hello` is too long.
    pub async fn open_channel(&self, hello: Frame) -> Result<Channel, SendFrameError> {
        hello.check()?;
        let opened = self.connection.open_bi().await;
        let (send, recv) = opened.map_err(|e| SendFrameError::Closed(e.into()))?;
        let channel = start(self.connection.clone(), send, Receiver::new(self.connection.clone(), recv));
        channel.sender.send(hello)?;
        Ok(channel)
    }

    /// The next channel that the peer opens, and its hello. Call it in a loop: channels come in the order of opening.
    /// Cancelling it may lose a channel whose hello is on its way.
    ///
    /// # Errors
    /// The link has ended.
    pub async fn accept_channel(&self) -> Result<(Frame, Channel), CloseReason> {
        loop {
            let (send, recv) = self.connection.accept_bi().await?;
            let mut receiver = Receiver::new(self.connection.clone(), recv);
            match tokio::time::timeout(HELLO_TIMEOUT, receiver.recv()).await {
                Ok(Some(hello)) => return Ok((hello, start(self.connection.clone(), send, receiver))),
                Ok(None) | Err(_) => match self.close_reason() {
                    Some(reason) => return Err(reason),
                    None => tracing::debug!(peer = %self.peer(), "dropped a channel without a hello"),
                },
            }
        }
    }
}

fn start(connection: quinn::Connection, send: quinn::SendStream, receiver: Receiver) -> Channel {
    let shared = Arc::new(Shared {
        queue: Mutex::new(Queue { frames: VecDeque::new(), bytes: 0, writer_waits: false, state: State::Open }),
        wake_writer: Notify::new(),
        space: Notify::new(),
    });
    tokio::spawn(write_loop(connection, send, shared.clone()));
    Channel { sender: Sender { last: Arc::new(LastSender(shared)) }, receiver }
}

#[derive(Clone)]
enum State {
    Open,
    /// No more frames come; the queue is still written.
    Draining,
    Closed(CloseReason),
}

struct Queue {
    frames: VecDeque<Frame>,
    /// Of `frames`, and of those that the writer has taken and not yet handed to QUIC.
    bytes: usize,
    writer_waits: bool,
    state: State,
}

struct Shared {
    queue: Mutex<Queue>,
    wake_writer: Notify,
    space: Notify,
}

impl Shared {
    /// Changes an open state; the first reason stays.
    fn end(&self, state: State) {
        let mut queue = self.queue.lock();
        match (&queue.state, &state) {
            (State::Open, _) | (State::Draining, State::Closed(_)) => queue.state = state,
            _ => return,
        }
        if matches!(queue.state, State::Closed(_)) {
            queue.frames.clear();
            queue.bytes = 0;
        }
        drop(queue);
        self.wake_writer.notify_one();
        self.space.notify_waiters();
    }
}

struct LastSender(Arc<Shared>);

impl Drop for LastSender {
    fn drop(&mut self) {
        self.0.end(State::Draining);
    }
}

/// The sending half; clones share the queue.
#[derive(Clone)]
pub struct Sender {
    last: Arc<LastSender>,
}

impl Sender {
    /// Queues a frame; never waits.
    ///
    /// # Errors
    /// The queue is full (the frame comes back), the channel has ended, or the frame is too long.
    pub fn send(&self, frame: Frame) -> Result<(), SendFrameError> {
        frame.check()?;
        let shared = &self.last.0;
        let cost = cost_of(&frame);
        let mut queue = shared.queue.lock();
        match &queue.state {
            State::Open => {}
            State::Draining => return Err(SendFrameError::Closed(CloseReason::Local)),
            State::Closed(reason) => return Err(SendFrameError::Closed(reason.clone())),
        }
        if queue.bytes > 0 && queue.bytes + cost > QUEUE_BYTES_MAX {
            return Err(SendFrameError::Full(Box::new(frame)));
        }
        queue.bytes += cost;
        queue.frames.push_back(frame);
        let wake = std::mem::take(&mut queue.writer_waits);
        drop(queue);
        if wake {
            shared.wake_writer.notify_one();
        }
        Ok(())
    }

    /// Queues a frame as soon as there is space. Safe to cancel: then the frame was not queued.
    ///
    /// # Errors
    /// The channel has ended, or the frame is too long.
    pub async fn send_async(&self, mut frame: Frame) -> Result<(), SendFrameError> {
        loop {
            let mut space = std::pin::pin!(self.last.0.space.notified());
            space.as_mut().enable();
            match self.send(frame) {
                Err(SendFrameError::Full(back)) => frame = *back,
                other => return other,
            }
            space.await;
        }
    }

    /// Bytes queued and not yet taken by QUIC.
    pub fn queued_bytes(&self) -> usize {
        self.last.0.queue.lock().bytes
    }

    /// Takes no more frames; what is queued is still delivered, then the peer sees the channel's end.
    pub fn finish(&self) {
        self.last.0.end(State::Draining);
    }

    /// Why the channel has ended, if it has.
    pub fn close_reason(&self) -> Option<CloseReason> {
        match &self.last.0.queue.lock().state {
            State::Closed(reason) => Some(reason.clone()),
            State::Open | State::Draining => None,
        }
    }
}

fn cost_of(frame: &Frame) -> usize {
    frame.wire_bytes() + FRAME_OVERHEAD_BYTES
}

async fn write_loop(connection: quinn::Connection, mut stream: quinn::SendStream, shared: Arc<Shared>) {
    let mut stopped = std::pin::pin!(stream.stopped());
    let mut encoder = Encoder::default();
    let mut batch = VecDeque::new();
    loop {
        {
            let mut queue = shared.queue.lock();
            match &queue.state {
                State::Closed(_) => return,
                State::Draining if queue.frames.is_empty() => break,
                State::Open | State::Draining => {}
            }
            std::mem::swap(&mut queue.frames, &mut batch);
            queue.writer_waits = batch.is_empty();
        }
        if batch.is_empty() {
            tokio::select! {
                () = shared.wake_writer.notified() => continue,
                _ = &mut stopped => return shared.end(State::Closed(stream_reason(&connection))),
            }
        }
        let mut taken = 0;
        for frame in batch.drain(..) {
            taken += cost_of(&frame);
            if let Err(error) = encoder.push(frame) {
                // `send` has checked it; a frame left out would break the order's promise.
                return shared.end(State::Closed(CloseReason::Protocol(error.to_string())));
            }
        }
        let pieces = encoder.pieces();
        if stream.write_all_chunks(pieces).await.is_err() {
            return shared.end(State::Closed(stream_reason(&connection)));
        }
        pieces.clear();
        let mut queue = shared.queue.lock();
        queue.bytes = queue.bytes.saturating_sub(taken);
        drop(queue);
        shared.space.notify_waiters();
    }
    // The stream keeps the link alive until the peer has everything, even if all other handles are gone.
    if stream.finish().is_ok() {
        let _ = stopped.await;
    }
    shared.end(State::Closed(CloseReason::Local));
}

/// The receiving half.
pub struct Receiver {
    connection: quinn::Connection,
    stream: quinn::RecvStream,
    decoder: Decoder,
    ready: VecDeque<Frame>,
    reason: Option<CloseReason>,
}

impl Receiver {
    fn new(connection: quinn::Connection, stream: quinn::RecvStream) -> Receiver {
        Receiver { connection, stream, decoder: Decoder::default(), ready: VecDeque::new(), reason: None }
    }

    /// The next frame; `None` once the channel has ended. Safe to cancel.
    pub async fn recv(&mut self) -> Option<Frame> {
        while self.ready.is_empty() {
            self.fill().await?;
        }
        self.ready.pop_front()
    }

    /// Waits for at least one frame, then appends all that have arrived. `None` once the channel has ended. Safe to cancel.
    pub async fn recv_batch(&mut self, into: &mut Vec<Frame>) -> Option<usize> {
        while self.ready.is_empty() {
            self.fill().await?;
        }
        let count = self.ready.len();
        into.extend(self.ready.drain(..));
        Some(count)
    }

    /// Why the channel has ended, if it has.
    pub fn close_reason(&self) -> Option<&CloseReason> {
        self.reason.as_ref()
    }

    /// Reads once and decodes; `None` if the channel has ended.
    async fn fill(&mut self) -> Option<()> {
        if self.reason.is_some() {
            return None;
        }
        let mut pieces: [Bytes; PIECES_PER_READ] = Default::default();
        let reason = match self.stream.read_chunks(&mut pieces).await {
            Ok(Some(count)) => match self.decode(pieces.into_iter().take(count)) {
                Ok(()) => return Some(()),
                Err(error) => {
                    // Frames before the bad one are still given out: `ready` is drained first.
                    let _ = self.stream.stop(CODE_PROTOCOL);
                    CloseReason::Protocol(error.to_string())
                }
            },
            Ok(None) if self.decoder.is_at_boundary() => CloseReason::Ended,
            Ok(None) => CloseReason::Protocol("the channel ended inside a frame".to_owned()),
            Err(_) => stream_reason(&self.connection),
        };
        self.reason = Some(reason);
        (!self.ready.is_empty()).then_some(())
    }

    fn decode(&mut self, pieces: impl Iterator<Item = Bytes>) -> Result<(), FrameError> {
        for piece in pieces {
            self.decoder.push(piece);
            while let Some(frame) = self.decoder.next_frame()? {
                self.ready.push_back(frame);
            }
        }
        Ok(())
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        // The peer's writer learns it at once rather than when its window is full.
        if self.reason.is_none() {
            let _ = self.stream.stop(CODE_DROPPED);
        }
    }
}

#[cfg(test)]
#[path = "channel_tests.rs"]
mod tests;
