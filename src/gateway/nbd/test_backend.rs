//! A backend without any IO, for unit tests.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use super::{Backend, Extent, IoError, ReadReply};

/// Of 1 MiB; counts writes and refuses all else.
#[derive(Default)]
pub struct NoIo {
    pub writes: AtomicU64,
}

impl Backend for NoIo {
    fn size_bytes(&self) -> u64 {
        1 << 20
    }
    async fn read(&self, _offset: u64, _len: u32) -> Result<ReadReply, IoError> {
        Err(IoError::Io)
    }
    async fn write(&self, _offset: u64, _data: Bytes, _fua: bool) -> Result<(), IoError> {
        self.writes.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
    async fn flush(&self) -> Result<(), IoError> {
        Err(IoError::Io)
    }
    async fn trim(&self, _offset: u64, _len: u32, _fua: bool) -> Result<(), IoError> {
        Err(IoError::Io)
    }
    async fn write_zeroes(&self, _offset: u64, _len: u32, _no_hole: bool, _fua: bool) -> Result<(), IoError> {
        Err(IoError::Io)
    }
    async fn block_status(&self, _offset: u64, _len: u32) -> Result<Vec<Extent>, IoError> {
        Err(IoError::Io)
    }
}
