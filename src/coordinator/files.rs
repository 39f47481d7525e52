//! The coordinator's directory.
//!
//! | file | what |
//! |---|---|
//! | `ca/` | the cluster's CA |
//! | `identity/` | the coordinator's certificate and key |
//! | `meta/`, `meta.marker` | the metadata store |
//! | `api.token` | the admin API's bearer token, 0600 |
//! | `viewer.token` | that of those who may only read, 0600 |
//! | `ports.json` | addresses of the last run: nodes keep them |
//! | `run.json` | pid and addresses while it serves |

use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Addresses as they were served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports {
    /// QUIC.
    pub addr: SocketAddr,
    /// Admin HTTP.
    pub admin: SocketAddr,
}

/// `run.json`: who serves now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunFile {
    /// Process id.
    pub pid: u32,
    /// QUIC address.
    pub addr: String,
    /// Admin HTTP base URL.
    pub admin_url: String,
}

/// A file of the directory can't be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{path} can't be read or written ({source}): check its owner and the disk", path = .path.display())]
pub struct FileFailed {
    /// Which.
    pub path: PathBuf,
    /// Why.
    pub source: std::io::Error,
}

/// Writes a file, readable by its owner only, so that it is either the old or the new one.
///
/// # Errors
/// The file system fails.
pub fn write_atomically(path: &Path, content: &[u8]) -> Result<(), FileFailed> {
    let failed = |source| FileFailed { path: path.to_owned(), source };
    let temporary = path.with_extension("new");
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary).map_err(failed)?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(failed)?;
    std::fs::rename(&temporary, path).map_err(failed)?;
    let parent = path.parent().unwrap_or(Path::new("."));
    std::fs::File::open(parent).and_then(|d| d.sync_all()).map_err(failed)
}

/// The addresses of the last run; `None` if there was none or the file is damaged, which costs only the old port.
pub fn read_ports(dir: &Path) -> Option<Ports> {
    serde_json::from_slice(&std::fs::read(dir.join("ports.json")).ok()?).ok()
}

/// An address with the last run's port in place of 0.
pub fn keep_port(wanted: SocketAddr, last: Option<SocketAddr>) -> SocketAddr {
    match last {
        Some(last) if wanted.port() == 0 && last.ip() == wanted.ip() => last,
        _ => wanted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_of_zero_is_the_last_one() {
        let (zero, last) = ("127.0.0.1:0".parse().unwrap(), "127.0.0.1:7001".parse().unwrap());
        assert_eq!(keep_port(zero, Some(last)), last);
        assert_eq!(keep_port(zero, None), zero);
        let fixed = "127.0.0.1:9".parse().unwrap();
        assert_eq!(keep_port(fixed, Some(last)), fixed);
        assert_eq!(keep_port("127.0.1.1:0".parse().unwrap(), Some(last)).port(), 0);
    }
}
