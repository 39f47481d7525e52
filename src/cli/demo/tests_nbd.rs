//! The demo's guest against the real NBD server over memory.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::core::units::BLOCK_BYTES;
use crate::gateway::nbd::client::{Address, Client};
use crate::gateway::nbd::{Backend, Export, Extent, IoError, Limits, Listener, NoObserver, ReadReply, Server};

use super::content::Model;
use super::load::{Load, Phase};
use super::volume_io;

const SIZE: usize = 3 << 20;

/// A volume in memory.
struct Memory(Mutex<Vec<u8>>);

impl Backend for Memory {
    fn size_bytes(&self) -> u64 {
        SIZE as u64
    }
    async fn read(&self, offset: u64, len: u32) -> Result<ReadReply, IoError> {
        let at = offset as usize;
        Ok(ReadReply::Data(Bytes::copy_from_slice(&self.0.lock()[at..at + len as usize])))
    }
    async fn write(&self, offset: u64, data: Bytes, _fua: bool) -> Result<(), IoError> {
        let at = offset as usize;
        self.0.lock()[at..at + data.len()].copy_from_slice(&data);
        Ok(())
    }
    async fn flush(&self) -> Result<(), IoError> {
        Ok(())
    }
    async fn trim(&self, _offset: u64, _len: u32, _fua: bool) -> Result<(), IoError> {
        Err(IoError::NotSupported)
    }
    async fn write_zeroes(&self, _offset: u64, _len: u32, _no_hole: bool, _fua: bool) -> Result<(), IoError> {
        Err(IoError::NotSupported)
    }
    async fn block_status(&self, _offset: u64, _len: u32) -> Result<Vec<Extent>, IoError> {
        Err(IoError::NotSupported)
    }
}

struct Guest {
    memory: Arc<Memory>,
    client: Client,
    model: Arc<Model>,
    _server: Server,
    _dir: tempfile::TempDir,
}

async fn filled() -> Guest {
    let dir = tempfile::tempdir().unwrap();
    let path: PathBuf = dir.path().join("s");
    let memory = Arc::new(Memory(Mutex::new(vec![0; SIZE])));
    let listener = Listener::bind_unix(&path, 0o600).await.unwrap();
    let export = Arc::new(Export::new("demo", Arc::clone(&memory)));
    let server = Server::start(listener, export, Arc::new(NoObserver), Limits::default());
    let client = Client::connect(&Address::Unix(path), "demo").await.unwrap();
    let model = Arc::new(Model::new(42, SIZE as u64));
    let mut last = 0;
    let progress = |done| {
        last = done;
        Ok(())
    };
    volume_io::fill(&client, &model, progress).await.unwrap();
    assert_eq!(last, SIZE as u64);
    Guest { memory, client, model, _server: server, _dir: dir }
}

async fn until(what: impl Fn() -> bool) {
    while !what() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn a_good_volume_verifies_after_a_load() {
    let guest = filled().await;
    for rate in [None, Some(5000.0)] {
        let load = Load::start(guest.client.clone(), Arc::clone(&guest.model), rate, 1);
        load.enter(Phase::Joining);
        until(|| load.figures(Phase::Joining).operations > 500 || load.failure().is_some()).await;
        let figures = load.figures(Phase::Joining);
        assert!(figures.p50_us <= figures.p99_us && figures.iops() > 0, "{figures:?}");
        let ended = load.stop().await.unwrap();
        assert!(ended.reads_verified() > 100);
    }
    volume_io::verify(&guest.client, &guest.model, |_| Ok(())).await.unwrap();
    let image = guest.memory.0.lock().clone();
    let mut hasher = crate::core::hashtree::VolumeHasher::default();
    hasher.push(blake3::hash(&image).as_bytes());
    assert_eq!(guest.model.hash(), hasher.finish());
}

#[tokio::test]
async fn one_flipped_bit_is_found() {
    let guest = filled().await;
    guest.memory.0.lock()[2 << 20] ^= 1;
    let error = volume_io::verify(&guest.client, &guest.model, |_| Ok(())).await.unwrap_err().to_string();
    assert!(error.contains(&format!("block {}", (2 << 20) / BLOCK_BYTES)), "{error}");
    let load = Load::start(guest.client.clone(), Arc::clone(&guest.model), None, 1);
    // A write may heal the block before a read sees it; then nothing is wrong any more.
    let all = guest.model.blocks() * 64;
    until(|| load.failure().is_some() || load.figures(Phase::Before).operations > all).await;
    match load.failure() {
        Some(reason) => assert!(reason.contains("must hold version 0"), "{reason}"),
        None => load.stop().await.map(drop).unwrap(),
    }
}

#[tokio::test]
async fn an_interrupted_fill_ends() {
    let guest = filled().await;
    let error = volume_io::fill(&guest.client, &guest.model, |_| anyhow::bail!("interrupted")).await.unwrap_err();
    assert_eq!(error.to_string(), "interrupted");
}
