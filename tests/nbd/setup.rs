//! A server over a temporary file, and the running of tools against it.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use evenkeel::gateway::nbd::client::{Address, Client};
use evenkeel::gateway::nbd::{Export, Limits, Listener, NoObserver, Observer, Server};
use tempfile::TempDir;

use crate::file::FileBackend;

pub const MIB: u64 = 1 << 20;
/// The name of the volume that every test serves.
pub const VOLUME: &str = "vm-disk";

pub struct TestServer {
    pub folder: TempDir,
    pub backend: Arc<FileBackend>,
    pub server: Server,
}

impl TestServer {
    pub async fn start(size_bytes: u64) -> Self {
        Self::with_limits(size_bytes, Limits::default()).await
    }

    pub async fn with_limits(size_bytes: u64, limits: Limits) -> Self {
        Self::with_observer(size_bytes, limits, Arc::new(NoObserver)).await
    }

    pub async fn with_observer(size_bytes: u64, limits: Limits, observer: Arc<impl Observer>) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let backend = Arc::new(FileBackend::create(&folder.path().join("disk"), size_bytes));
        let listener = Listener::bind_unix(&folder.path().join("s"), 0o600).await.expect("binds");
        let exports = Arc::new(Export::new(VOLUME, backend.clone()));
        let server = Server::start(listener, exports, observer, limits);
        Self { folder, backend, server }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn socket(&self) -> PathBuf {
        self.path("s")
    }

    pub fn uri(&self) -> String {
        format!("nbd+unix:///{VOLUME}?socket={}", self.socket().display())
    }

    pub async fn client(&self) -> Client {
        Client::connect(&Address::Unix(self.socket()), VOLUME).await.expect("connects")
    }

    pub async fn stop(self) {
        self.server.stop(Duration::from_secs(10)).await;
    }
}

/// Runs a tool beside the server; a missing one says which package has it.
pub async fn run(program: &'static str, args: &[&str]) -> Output {
    let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
    let output = tokio::task::spawn_blocking(move || Command::new(program).args(args).output()).await.expect("joins");
    output.unwrap_or_else(|error| {
        let package = match program {
            "nbdinfo" | "nbdcopy" => "libnbd-bin",
            "fio" => "fio",
            _ => "qemu-utils",
        };
        panic!("{program} can't be run ({error}): install {package}")
    })
}

/// Runs a tool that must succeed; gives what it printed.
pub async fn run_ok(program: &'static str, args: &[&str]) -> String {
    let output = run(program, args).await;
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {args:?}: {}\n{stdout}{stderr}", output.status);
    format!("{stdout}{stderr}")
}

/// Bytes that differ from block to block.
pub fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&(state ^ (state >> 29)).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
