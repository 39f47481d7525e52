//! The sockets that a server listens on.
//!
//! Invariants: a Unix socket appears under its name only when it accepts connections; a dead server's socket is
//! replaced, a live one's never; on a clean stop the socket is removed if it is still this server's own. TCP is served
//! on loopback only, since there is no TLS.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use tokio::net::{TcpListener, UnixListener, UnixStream};

/// Permissions of a Unix socket unless told otherwise: the owner and the group (qemu often runs as another user).
pub const SOCKET_MODE: u32 = 0o660;
/// How long another server may hold the folder's lock while it binds, which takes it milliseconds.
const FOLDER_LOCK_TIME_MAX: Duration = Duration::from_secs(5);
/// Longest path of a Unix socket, set by the kernel, less what the temporary name adds.
const SOCKET_PATH_LEN_MAX: usize = 107 - TEMPORARY_SUFFIX.len();
/// Added to the name of a socket that doesn't accept connections yet.
const TEMPORARY_SUFFIX: &str = ".new";

/// Why a server can't listen.
#[derive(Debug, thiserror::Error)]
pub enum BindListener {
    #[error("another process serves {0}")]
    SocketInUse(PathBuf),
    #[error("{0} exists and is no socket")]
    NotASocket(PathBuf),
    #[error("the path {0} is longer than {SOCKET_PATH_LEN_MAX} bytes")]
    PathTooLong(PathBuf),
    #[error("the folder of {0} stays locked by another process")]
    FolderLocked(PathBuf),
    #[error("{0} is not a loopback address: NBD over TCP without TLS is served on loopback only")]
    RemoteTcp(SocketAddr),
    #[error("listen on {address}: {source}")]
    Io { address: String, source: io::Error },
}

/// A listening socket.
pub enum Listener {
    Unix(UnixSocket),
    Tcp(TcpListener),
}

/// A listening Unix socket; its name is removed when it is dropped.
pub struct UnixSocket {
    pub(super) listener: UnixListener,
    path: PathBuf,
    /// Device and inode, to recognise the name as this socket's.
    identity: (u64, u64),
}

impl Listener {
    /// Listens on a Unix socket with the permissions `mode`.
    pub async fn bind_unix(path: &Path, mode: u32) -> Result<Self, BindListener> {
        if path.as_os_str().len() > SOCKET_PATH_LEN_MAX {
            return Err(BindListener::PathTooLong(path.to_owned()));
        }
        let failed = |source| BindListener::Io { address: path.display().to_string(), source };
        // Two servers that start together must not both find a stale socket: the folder's lock, which the kernel
        // releases at any exit, makes look-and-replace one step.
        let _lock = lock_folder(path).await?;
        refuse_live_socket(path).await?;
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(TEMPORARY_SUFFIX);
        remove_if_exists(Path::new(&temporary)).map_err(failed)?;
        let listener = UnixListener::bind(&temporary).map_err(failed)?;
        let publish = || {
            fs::set_permissions(&temporary, fs::Permissions::from_mode(mode))?;
            let metadata = fs::symlink_metadata(&temporary)?;
            fs::rename(&temporary, path)?;
            Ok((metadata.dev(), metadata.ino()))
        };
        let identity = publish().map_err(failed)?;
        Ok(Listener::Unix(UnixSocket { listener, path: path.to_owned(), identity }))
    }

    /// Listens on a loopback TCP address; port 0 takes a free one.
    pub async fn bind_tcp(address: SocketAddr) -> Result<Self, BindListener> {
        if !address.ip().is_loopback() {
            return Err(BindListener::RemoteTcp(address));
        }
        let failed = |source| BindListener::Io { address: address.to_string(), source };
        TcpListener::bind(address).await.map(Listener::Tcp).map_err(failed)
    }

    /// The TCP address, if it is one.
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        match self {
            Listener::Unix(_) => None,
            Listener::Tcp(listener) => listener.local_addr().ok(),
        }
    }
}

impl Drop for UnixSocket {
    fn drop(&mut self) {
        let is_own = |metadata: fs::Metadata| (metadata.dev(), metadata.ino()) == self.identity;
        if fs::symlink_metadata(&self.path).is_ok_and(is_own)
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "the NBD socket could not be removed");
        }
    }
}

async fn lock_folder(path: &Path) -> Result<fs::File, BindListener> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let failed = |source| BindListener::Io { address: path.display().to_string(), source };
    let file = fs::File::open(folder).map_err(failed)?;
    let locked = async {
        while let Err(error) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
            if error != rustix::io::Errno::WOULDBLOCK {
                return Err(failed(error.into()));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    };
    match tokio::time::timeout(FOLDER_LOCK_TIME_MAX, locked).await {
        Ok(result) => result.map(|()| file),
        Err(_) => Err(BindListener::FolderLocked(path.to_owned())),
    }
}

/// Only a socket that refuses connections is dead; one whose queue is full, or that belongs to another user, is alive.
async fn refuse_live_socket(path: &Path) -> Result<(), BindListener> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(BindListener::Io { address: path.display().to_string(), source }),
        Ok(metadata) if !metadata.file_type().is_socket() => return Err(BindListener::NotASocket(path.to_owned())),
        Ok(_) => {}
    }
    match UnixStream::connect(path).await {
        Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound) => Ok(()),
        _ => Err(BindListener::SocketInUse(path.to_owned())),
    }
}

fn remove_if_exists(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_dead_socket_is_replaced_and_a_live_one_refused() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("volume.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).expect("binds"));
        assert!(path.exists(), "std leaves a dead socket");
        let live = Listener::bind_unix(&path, 0o600).await.expect("replaces");
        let metadata = fs::metadata(&path).expect("exists");
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
        assert!(matches!(Listener::bind_unix(&path, 0o600).await, Err(BindListener::SocketInUse(_))));
        UnixStream::connect(&path).await.expect("the live one still accepts");
        drop(live);
        assert_eq!(fs::read_dir(folder.path()).expect("folder").count(), 0, "nothing is left behind");
    }

    #[tokio::test]
    async fn a_successors_socket_is_not_removed() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("volume.sock");
        let old = Listener::bind_unix(&path, 0o600).await.expect("binds");
        fs::remove_file(&path).expect("an operator removes it");
        let new = Listener::bind_unix(&path, 0o600).await.expect("binds again");
        drop(old);
        UnixStream::connect(&path).await.expect("the new one still accepts");
        drop(new);
    }

    #[tokio::test]
    async fn refusals_name_their_reason() {
        let folder = tempfile::tempdir().expect("folder");
        let file = folder.path().join("file");
        fs::write(&file, b"precious").expect("writes");
        assert!(matches!(Listener::bind_unix(&file, 0o600).await, Err(BindListener::NotASocket(_))));
        assert_eq!(fs::read(&file).expect("reads"), b"precious");
        let long = folder.path().join("x".repeat(120));
        assert!(matches!(Listener::bind_unix(&long, 0o600).await, Err(BindListener::PathTooLong(_))));
        let remote = SocketAddr::from(([0, 0, 0, 0], 0));
        assert!(matches!(Listener::bind_tcp(remote).await, Err(BindListener::RemoteTcp(_))));
        let local = Listener::bind_tcp(SocketAddr::from(([127, 0, 0, 1], 0))).await.expect("binds");
        assert!(local.tcp_address().is_some_and(|address| address.port() != 0));
    }
}
