//! A small NBD client, for load generators and tests.
//!
//! Purpose: one connection with many requests in flight, matched by cookie whatever the order of the replies. Clones
//! share the connection.
//!
//! Invariants: a request ends with its reply or, once the connection is lost, with one [`RequestVolume::Disconnected`]
//! that says why; nothing is retried. At most [`QUEUE_LEN`] requests wait to be sent, so a slow server slows callers.
//!
//! Non-goals: reconnecting, TLS, block status.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;

use super::IoError;
use super::proto::{self, DecodeMessage, ReplyHeader, Request, chunk, cmd, cmd_flag, opt, rep};

/// Requests waiting to be sent: enough for one batch, few enough that a slow server is felt at once.
pub const QUEUE_LEN: usize = 64;
/// Bytes gathered into one write; larger payloads go out on their own.
const SEND_BATCH_LEN: usize = 256 << 10;
/// Longest payload of a reply: the largest read and its offset, or an error's text.
const PAYLOAD_LEN_MAX: u32 = proto::BLOCK_SIZE_MAX + 8;

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

/// Why no connection was made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectVolume {
    #[error("connect to {address:?}: {source}")]
    Connect { address: Address, source: io::Error },
    #[error("the connection ended in the handshake: {0}")]
    Lost(#[from] io::Error),
    #[error(transparent)]
    Decode(#[from] DecodeMessage),
    #[error("the server refused the export {name:?}: {text}")]
    Refused { name: String, text: String },
    #[error("the server lacks fixed newstyle negotiation or structured replies")]
    TooOld,
}

/// Why a request failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RequestVolume {
    #[error("the server answered: {0}")]
    Failed(IoError),
    #[error("disconnected: {0}")]
    Disconnected(Arc<str>),
    #[error("{0} bytes are more than one request may have")]
    TooLong(usize),
}

/// A connection to one export. The last clone's drop closes it.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
    requests: mpsc::Sender<(Request, Bytes)>,
    size_bytes: u64,
    _tasks: Arc<Tasks>,
}

/// What callers and the receiving task share.
struct Shared {
    next_cookie: AtomicU64,
    pending: Mutex<Pending>,
}

struct Pending {
    replies: HashMap<u64, PendingReply>,
    /// Set once, when the connection is lost.
    lost: Option<Arc<str>>,
}

struct PendingReply {
    read: Option<ReadAssembly>,
    error: Option<IoError>,
    done: oneshot::Sender<Result<Bytes, RequestVolume>>,
}

/// A read's pieces as they come.
struct ReadAssembly {
    offset: u64,
    len: u32,
    /// The usual case: all in one chunk, which is not copied.
    whole: Option<Bytes>,
    parts: BytesMut,
    covered: u64,
}

/// Ends the connection's tasks with the last client.
struct Tasks([AbortHandle; 2]);

impl Drop for Tasks {
    fn drop(&mut self) {
        self.0.iter().for_each(AbortHandle::abort);
    }
}

impl Client {
    /// Connects and negotiates; the empty name asks for the default export.
    pub async fn connect(address: &Address, export: &str) -> Result<Client, ConnectVolume> {
        let failed = |source| ConnectVolume::Connect { address: address.clone(), source };
        match address {
            Address::Unix(path) => {
                let (read, write) = UnixStream::connect(path).await.map_err(failed)?.into_split();
                Self::negotiate(read, write, export).await
            }
            Address::Tcp(target) => {
                let stream = TcpStream::connect(target).await.map_err(failed)?;
                stream.set_nodelay(true).map_err(failed)?;
                let (read, write) = stream.into_split();
                Self::negotiate(read, write, export).await
            }
        }
    }

    /// The export's size when the connection was made.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Reads `len` bytes, at most 32 MiB.
    pub async fn read(&self, offset: u64, len: u32) -> Result<Bytes, RequestVolume> {
        if len > proto::BLOCK_SIZE_MAX {
            return Err(RequestVolume::TooLong(len as usize));
        }
        self.request(cmd::READ, 0, offset, len, Bytes::new()).await
    }

    /// Writes `data`, at most 32 MiB.
    pub async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), RequestVolume> {
        if data.len() > proto::BLOCK_SIZE_MAX as usize {
            return Err(RequestVolume::TooLong(data.len()));
        }
        self.request(cmd::WRITE, fua_flag(fua), offset, data.len() as u32, data).await.map(drop)
    }

    /// Makes all answered writes durable.
    pub async fn flush(&self) -> Result<(), RequestVolume> {
        self.request(cmd::FLUSH, 0, 0, 0, Bytes::new()).await.map(drop)
    }

    /// Frees a range.
    pub async fn trim(&self, offset: u64, len: u32, fua: bool) -> Result<(), RequestVolume> {
        self.request(cmd::TRIM, fua_flag(fua), offset, len, Bytes::new()).await.map(drop)
    }

    /// Zeroes a range.
    pub async fn write_zeroes(&self, offset: u64, len: u32, no_hole: bool, fua: bool) -> Result<(), RequestVolume> {
        let flags = fua_flag(fua) | if no_hole { cmd_flag::NO_HOLE } else { 0 };
        self.request(cmd::WRITE_ZEROES, flags, offset, len, Bytes::new()).await.map(drop)
    }

    /// Says farewell and returns when the server has answered what is in flight and closed the connection.
    pub async fn disconnect(self) {
        // There is no reply to this request: it ends with the connection.
        self.request(cmd::DISC, 0, 0, 0, Bytes::new()).await.ok();
    }

    async fn request(&self, kind: u16, flags: u16, offset: u64, len: u32, data: Bytes) -> Result<Bytes, RequestVolume> {
        let cookie = self.shared.next_cookie.fetch_add(1, Ordering::Relaxed);
        let read =
            (kind == cmd::READ).then(|| ReadAssembly { offset, len, whole: None, parts: BytesMut::new(), covered: 0 });
        // A place in the queue comes first, so that a caller who gives up while waiting leaves nothing behind.
        let Ok(place) = self.requests.reserve().await else {
            return Err(self.shared.disconnected());
        };
        let (done, reply) = oneshot::channel();
        {
            let mut pending = self.shared.pending.lock();
            if let Some(reason) = &pending.lost {
                return Err(RequestVolume::Disconnected(reason.clone()));
            }
            pending.replies.insert(cookie, PendingReply { read, error: None, done });
        }
        place.send((Request { flags, kind, cookie, offset, len }, data));
        reply.await.unwrap_or_else(|_| Err(self.shared.disconnected()))
    }

    async fn negotiate<R, W>(mut read: R, mut write: W, export: &str) -> Result<Client, ConnectVolume>
    where
        R: AsyncRead + Unpin + Send + 'static,
        W: AsyncWrite + Unpin + Send + 'static,
    {
        let mut input = BytesMut::new();
        let handshake_flags = loop {
            if let Some(flags) = proto::decode_greeting(&input)? {
                break u32::from(flags);
            }
            receive(&mut read, &mut input).await?;
        };
        input.advance(proto::GREETING_LEN);
        let required = proto::FLAG_FIXED_NEWSTYLE | proto::FLAG_NO_ZEROES;
        if handshake_flags & required != required {
            return Err(ConnectVolume::TooOld);
        }
        let mut out = BytesMut::new();
        out.put_u32(required);
        proto::encode_option(&mut out, opt::STRUCTURED_REPLY, &[]);
        write.write_all_buf(&mut out).await?;
        let (kind, _) = option_reply(&mut read, &mut input).await?;
        if kind != rep::ACK {
            return Err(ConnectVolume::TooOld);
        }
        let mut data = BytesMut::new();
        proto::encode_info_request(&mut data, export);
        proto::encode_option(&mut out, opt::GO, &data);
        write.write_all_buf(&mut out).await?;
        let mut size_bytes = None;
        loop {
            let (kind, data) = option_reply(&mut read, &mut input).await?;
            match kind {
                rep::ACK => break,
                rep::INFO => size_bytes = proto::decode_info_export(&data)?.map(|(size, _)| size).or(size_bytes),
                _ => {
                    let text = String::from_utf8_lossy(&data).into_owned();
                    return Err(ConnectVolume::Refused { name: export.to_owned(), text });
                }
            }
        }
        let size_bytes = size_bytes.ok_or(DecodeMessage::Malformed("the reply to GO: no size"))?;
        let pending = Pending { replies: HashMap::new(), lost: None };
        let shared = Arc::new(Shared { next_cookie: AtomicU64::new(1), pending: Mutex::new(pending) });
        let (requests, queue) = mpsc::channel(QUEUE_LEN);
        let sender = {
            let shared = shared.clone();
            tokio::spawn(async move {
                if let Err(error) = send_requests(write, queue).await {
                    shared.lose(&error.to_string());
                }
            })
        };
        let receiver = {
            let shared = shared.clone();
            tokio::spawn(async move {
                let reason = match receive_replies(read, input, &shared).await {
                    Ok(()) => "the server closed the connection".to_owned(),
                    Err(error) => error.to_string(),
                };
                shared.lose(&reason);
            })
        };
        let tasks = Arc::new(Tasks([sender.abort_handle(), receiver.abort_handle()]));
        Ok(Client { shared, requests, size_bytes, _tasks: tasks })
    }
}

impl Shared {
    fn lose(&self, reason: &str) {
        let mut pending = self.pending.lock();
        pending.lost.get_or_insert_with(|| reason.into());
        // Each waiting request sees its sender dropped and takes the reason from here.
        pending.replies.clear();
    }

    fn disconnected(&self) -> RequestVolume {
        let reason = self.pending.lock().lost.clone();
        RequestVolume::Disconnected(reason.unwrap_or_else(|| "the connection is closed".into()))
    }

    /// Takes one reply or chunk.
    fn handle(&self, header: ReplyHeader, payload: Bytes) -> Result<(), DecodeMessage> {
        let mut pending = self.pending.lock();
        let cookie = match header {
            ReplyHeader::Simple { cookie, .. } | ReplyHeader::Chunk { cookie, .. } => cookie,
        };
        let reply = pending.replies.get_mut(&cookie).ok_or(DecodeMessage::Malformed("a reply: unknown cookie"))?;
        let last = match header {
            ReplyHeader::Simple { error, .. } => {
                if error == 0 && reply.read.is_some() {
                    return Err(DecodeMessage::Malformed("a read's reply: not structured"));
                }
                reply.error = (error != 0).then(|| IoError::from_errno(error));
                true
            }
            ReplyHeader::Chunk { flags, kind, .. } => {
                reply.take_chunk(kind, payload)?;
                flags & chunk::DONE != 0
            }
        };
        if last && let Some(reply) = pending.replies.remove(&cookie) {
            drop(pending);
            reply.end()?;
        }
        Ok(())
    }
}

impl PendingReply {
    fn take_chunk(&mut self, kind: u16, mut payload: Bytes) -> Result<(), DecodeMessage> {
        match (kind, &mut self.read) {
            (chunk::NONE, _) => Ok(()),
            (chunk::OFFSET_DATA, Some(read)) if payload.len() > 8 => {
                let offset = payload.get_u64();
                read.take(offset, payload.len() as u64, Some(payload))
            }
            (chunk::OFFSET_HOLE, Some(read)) if payload.len() == 12 => {
                let offset = payload.get_u64();
                read.take(offset, payload.get_u32().into(), None)
            }
            (kind, _) if kind & chunk::ERR_BIT != 0 && payload.len() >= 6 => {
                self.error = Some(IoError::from_errno(payload.get_u32()));
                Ok(())
            }
            _ => Err(DecodeMessage::Malformed("a chunk")),
        }
    }

    fn end(self) -> Result<(), DecodeMessage> {
        let result = match (self.error, self.read) {
            (Some(error), _) => Err(RequestVolume::Failed(error)),
            (None, None) => Ok(Bytes::new()),
            (None, Some(read)) if read.covered != u64::from(read.len) => {
                return Err(DecodeMessage::Malformed("a read's reply: not all bytes came"));
            }
            (None, Some(read)) => Ok(read.whole.unwrap_or_else(|| read.parts.freeze())),
        };
        // The caller may have lost interest.
        self.done.send(result).ok();
        Ok(())
    }
}

impl ReadAssembly {
    /// Takes one piece; without data it is a hole.
    fn take(&mut self, offset: u64, len: u64, data: Option<Bytes>) -> Result<(), DecodeMessage> {
        let malformed = DecodeMessage::Malformed("a read's chunk: outside the request");
        let start = offset.checked_sub(self.offset).ok_or(malformed)?;
        if len == 0 || start.checked_add(len).is_none_or(|end| end > self.len.into()) || self.whole.is_some() {
            return Err(malformed);
        }
        self.covered += len;
        match data {
            Some(data) if len == u64::from(self.len) => self.whole = Some(data),
            data => {
                self.parts.resize(self.len as usize, 0);
                if let Some(data) = data {
                    self.parts[start as usize..(start + len) as usize].copy_from_slice(&data);
                }
            }
        }
        Ok(())
    }
}

/// Sends requests, as many in one write as are waiting.
async fn send_requests(
    mut write: impl AsyncWrite + Unpin,
    mut queue: mpsc::Receiver<(Request, Bytes)>,
) -> io::Result<()> {
    let mut batch = BytesMut::new();
    while let Some(first) = queue.recv().await {
        let mut next = Some(first);
        while let Some((request, data)) = next {
            proto::encode_request(&mut batch, &request);
            if data.len() < SEND_BATCH_LEN {
                batch.put_slice(&data);
            } else {
                write.write_all_buf(&mut batch).await?;
                write.write_all(&data).await?;
            }
            next = if batch.len() < SEND_BATCH_LEN { queue.try_recv().ok() } else { None };
        }
        write.write_all_buf(&mut batch).await?;
    }
    Ok(())
}

/// Receives replies until the server closes the connection.
async fn receive_replies(
    mut read: impl AsyncRead + Unpin,
    mut input: BytesMut,
    shared: &Shared,
) -> Result<(), ConnectVolume> {
    loop {
        while let Some((header, header_len)) = proto::decode_reply_header(&input)? {
            let payload_len = match header {
                ReplyHeader::Simple { .. } => 0,
                ReplyHeader::Chunk { len, .. } if len > PAYLOAD_LEN_MAX => {
                    return Err(DecodeMessage::Malformed("a chunk: too long").into());
                }
                ReplyHeader::Chunk { len, .. } => len as usize,
            };
            let missing = (header_len + payload_len).saturating_sub(input.len());
            if missing > 0 {
                input.reserve(missing);
                break;
            }
            input.advance(header_len);
            shared.handle(header, input.split_to(payload_len).freeze())?;
        }
        if input.capacity() == input.len() {
            input.reserve(SEND_BATCH_LEN);
        }
        if read.read_buf(&mut input).await? == 0 {
            return Ok(());
        }
    }
}

async fn option_reply(
    read: &mut (impl AsyncRead + Unpin),
    input: &mut BytesMut,
) -> Result<(u32, Bytes), ConnectVolume> {
    loop {
        if let Some(proto::OptionReply { kind, data, .. }) = proto::decode_option_reply(input)? {
            let data = Bytes::copy_from_slice(data);
            input.advance(proto::OPTION_REPLY_HEADER_LEN + data.len());
            return Ok((kind, data));
        }
        receive(read, input).await?;
    }
}

async fn receive(read: &mut (impl AsyncRead + Unpin), input: &mut BytesMut) -> io::Result<()> {
    match read.read_buf(input).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}

fn fua_flag(fua: bool) -> u16 {
    if fua { cmd_flag::FUA } else { 0 }
}
