//! The files of a `dev` directory D.
//!
//! ```text
//! D/cluster.json    for commands and tests; there while the cluster is ready
//! D/dev.json        what `dev` must know to start D again: names, ids, ports, disk sizes
//! D/dev.lock        held by the running `dev`
//! D/dev.sock        takes add-node, kill-node, start-node
//! D/coordinator/    the coordinator's directory
//! D/nodes/NAME/     a node's directory; D/nodes/NAME-diskK its disks
//! D/logs/NAME.log   what a daemon printed
//! ```
//!
//! Invariants: a directory that holds anything else is refused and left alone; JSON files are replaced atomically;
//! `dev.json` is written before anything else, so that an interrupted start can be repeated.

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::core::ids::{DiskId, NodeId};

/// The layout's version.
const FORMAT: u32 = 1;
const CLUSTER_FILE: &str = "cluster.json";
const STATE_FILE: &str = "dev.json";
const LOCK_FILE: &str = "dev.lock";

/// Why a directory can't be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenDevDir {
    /// Another `dev` runs on it.
    #[error("{0} is in use by another `evenkeel dev`; stop that one first, or use another --dir")]
    InUse(PathBuf),
    /// It holds something that isn't ours.
    #[error(
        "{dir} is not empty and holds no `evenkeel dev` cluster (it has {found:?}); use an empty or a new directory"
    )]
    Foreign { dir: PathBuf, found: String },
    /// Its state can't be understood.
    #[error("{path} is damaged or of another release: {problem}")]
    StateMalformed { path: PathBuf, problem: String },
    /// Reading or writing failed.
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
}

/// What `dev.json` holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DevState {
    format: u32,
    /// `init` is done.
    pub initialised: bool,
    /// Of the coordinator; zero: none yet.
    pub coordinator: Ports,
    /// The number of the next node; never used twice.
    pub next_index: u32,
    /// In the order of their numbers.
    pub nodes: Vec<DevNode>,
}

/// The ports that a daemon had last; zero: none yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports {
    pub listen: u16,
    pub admin: u16,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DevNode {
    /// Its last address byte.
    pub index: u32,
    pub name: String,
    /// Once it has joined.
    pub id: Option<NodeId>,
    pub ports: Ports,
    pub disk_size_bytes: u64,
    /// Of its disks; empty: what a node takes by itself.
    #[serde(default)]
    pub disk_class: String,
    /// One for each disk; the id once it is in the map.
    pub disks: Vec<Option<DiskId>>,
}

impl DevState {
    /// A new cluster's state.
    pub fn new(nodes: u32, disks_per_node: u32, disk_size_bytes: u64) -> Self {
        let mut state = DevState {
            format: FORMAT,
            initialised: false,
            coordinator: Ports::default(),
            next_index: 1,
            nodes: Vec::new(),
        };
        for _ in 0..nodes {
            state.add_node(disks_per_node, disk_size_bytes, "");
        }
        state
    }

    /// Adds a node under the next number.
    pub fn add_node(&mut self, disks: u32, disk_size_bytes: u64, disk_class: &str) -> DevNode {
        let index = self.next_index;
        self.next_index += 1;
        let node = DevNode {
            index,
            name: format!("n{index}"),
            id: None,
            ports: Ports::default(),
            disk_size_bytes,
            disk_class: disk_class.to_owned(),
            disks: vec![None; disks as usize],
        };
        self.nodes.push(node.clone());
        node
    }

    /// The node of that name.
    pub fn node_mut(&mut self, name: &str) -> Option<&mut DevNode> {
        self.nodes.iter_mut().find(|n| n.name == name)
    }
}

/// An opened and locked directory.
#[derive(Debug)]
pub struct DevDir {
    path: PathBuf,
    _lock: File,
}

impl DevDir {
    /// Opens D, making it if it is missing; and the state of the cluster in it, if there is one.
    ///
    /// # Errors
    /// See [`OpenDevDir`]. Nothing is changed in a directory that is refused.
    pub fn open(dir: &Path) -> Result<(DevDir, Option<DevState>), OpenDevDir> {
        let io_error = |path: &Path| {
            let path = path.to_owned();
            move |source| OpenDevDir::Io { path, source }
        };
        fs::create_dir_all(dir).map_err(io_error(dir))?;
        let path = dir.canonicalize().map_err(io_error(dir))?;
        let state_path = path.join(STATE_FILE);
        if !state_path.exists() {
            for entry in fs::read_dir(&path).map_err(io_error(&path))? {
                let name = entry.map_err(io_error(&path))?.file_name().to_string_lossy().into_owned();
                // A lock alone is what an earlier start left that ended before it wrote anything.
                if name != LOCK_FILE {
                    return Err(OpenDevDir::Foreign { dir: path, found: name });
                }
            }
        }
        let lock_path = path.join(LOCK_FILE);
        let lock = File::options().create(true).append(true).open(&lock_path).map_err(io_error(&lock_path))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(OpenDevDir::InUse(path)),
            Err(e) => return Err(OpenDevDir::Io { path: lock_path, source: e.into() }),
        }
        let state = match fs::read(&state_path) {
            Ok(bytes) => Some(decode_state(&bytes, &state_path)?),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(OpenDevDir::Io { path: state_path, source: e }),
        };
        Ok((DevDir { path, _lock: lock }, state))
    }

    /// D, absolute.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The coordinator's directory.
    pub fn coordinator(&self) -> PathBuf {
        self.path.join("coordinator")
    }

    /// A node's directory.
    pub fn node(&self, name: &str) -> PathBuf {
        self.path.join("nodes").join(name)
    }

    /// A node's disk, counted from 0.
    pub fn disk(&self, name: &str, disk: usize) -> PathBuf {
        self.path.join("nodes").join(format!("{name}-disk{}", disk + 1))
    }

    /// A daemon's log.
    pub fn log(&self, name: &str) -> PathBuf {
        self.path.join("logs").join(format!("{name}.log"))
    }

    /// Where the cluster file is.
    pub fn cluster_file(&self) -> PathBuf {
        self.path.join(CLUSTER_FILE)
    }

    /// Keeps the state.
    pub fn save(&self, state: &DevState) -> io::Result<()> {
        write_json(&self.path.join(STATE_FILE), state)
    }
}

fn decode_state(bytes: &[u8], path: &Path) -> Result<DevState, OpenDevDir> {
    let malformed = |problem: String| OpenDevDir::StateMalformed { path: path.to_owned(), problem };
    let state: DevState = serde_json::from_slice(bytes).map_err(|e| malformed(e.to_string()))?;
    if state.format != FORMAT {
        return Err(malformed(format!("it has format {}, this release knows {FORMAT}", state.format)));
    }
    Ok(state)
}

/// Replaces a JSON file atomically: a reader sees the old or the new content.
pub fn write_json(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new().prefix(".new-").tempfile_in(dir)?;
    serde_json::to_writer_pretty(&mut file, value)?;
    file.write_all(b"\n")?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|e| e.error)?;
    File::open(dir)?.sync_all()
}

/// The address with the port that it had last if that is free, else with 0: any free one.
pub fn address(ip: IpAddr, last_port: u16, udp: bool) -> SocketAddr {
    let wanted = SocketAddr::new(ip, last_port);
    let free = if udp { UdpSocket::bind(wanted).is_ok() } else { TcpListener::bind(wanted).is_ok() };
    SocketAddr::new(ip, if free { last_port } else { 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_or_missing_directory_is_taken() {
        let tmp = tempfile::tempdir().unwrap();
        let (dir, state) = DevDir::open(tmp.path()).unwrap();
        assert!(state.is_none());
        drop(dir);
        let (_dir, state) = DevDir::open(tmp.path()).unwrap();
        assert!(state.is_none(), "a lock alone is no cluster");
        let (missing, _) = DevDir::open(&tmp.path().join("a/b")).unwrap();
        assert!(missing.path().is_absolute());
    }

    #[test]
    fn a_directory_with_something_else_is_refused_and_left_alone() {
        let tmp = tempfile::tempdir().unwrap();
        fs::write(tmp.path().join("thesis.txt"), "x").unwrap();
        let error = DevDir::open(tmp.path()).unwrap_err();
        assert!(matches!(&error, OpenDevDir::Foreign { found, .. } if found == "thesis.txt"), "{error}");
        assert_eq!(fs::read_dir(tmp.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_directory_in_use_is_refused_until_it_is_free() {
        let tmp = tempfile::tempdir().unwrap();
        let (dir, _) = DevDir::open(tmp.path()).unwrap();
        dir.save(&DevState::new(3, 1, 4 << 30)).unwrap();
        assert!(matches!(DevDir::open(tmp.path()), Err(OpenDevDir::InUse(_))));
        drop(dir);
        let (_, state) = DevDir::open(tmp.path()).unwrap();
        assert_eq!(state.unwrap(), DevState::new(3, 1, 4 << 30));
    }

    #[test]
    fn a_damaged_state_is_not_taken_for_an_empty_directory() {
        let tmp = tempfile::tempdir().unwrap();
        for bad in ["", "{", "{\"format\": 1}"] {
            fs::write(tmp.path().join(STATE_FILE), bad).unwrap();
            assert!(matches!(DevDir::open(tmp.path()), Err(OpenDevDir::StateMalformed { .. })), "{bad}");
        }
        let mut later = serde_json::to_value(DevState::new(1, 1, 1)).unwrap();
        later["format"] = 2.into();
        fs::write(tmp.path().join(STATE_FILE), later.to_string()).unwrap();
        assert!(DevDir::open(tmp.path()).unwrap_err().to_string().contains("format 2"));
    }

    #[test]
    fn node_numbers_are_never_used_twice() {
        let mut state = DevState::new(2, 1, 1);
        state.nodes.pop();
        assert_eq!(state.add_node(2, 1, "").name, "n3");
        assert_eq!(state.node_mut("n3").unwrap().disks.len(), 2);
    }

    #[test]
    fn a_port_is_kept_while_it_is_free() {
        let ip = IpAddr::from([127, 0, 0, 1]);
        let taken = TcpListener::bind((ip, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        assert_eq!(address(ip, port, false).port(), 0);
        assert_eq!(address(ip, 0, true).port(), 0);
    }
}
