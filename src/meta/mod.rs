//! Lasting metadata: a small ordered store with compare-and-swap and watch, and what the coordinator keeps in it.
//!
//! - [`MetaStore`]: the interface; [`sled_store`] is the embedded one.
//! - [`envelope`]: how a record looks as bytes; [`records`]: the cluster map as records; [`migrate`]: schema steps.
//!
//! Invariants: a commit is on stable storage when it returns; errors are final (the process stops and starts again from
//! what is stable); records of unknown type are kept and ignored; an empty or shortened database is never taken for a
//! valid one.

pub mod envelope;
mod jobs;
mod marker;
pub mod migrate;
pub mod records;
pub mod sled_store;

use std::path::PathBuf;

/// A change of several records that takes effect as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Each key must hold this value (`None`: be absent), or nothing is changed.
    pub expect: Vec<(String, Option<Vec<u8>>)>,
    /// New values; `None` removes.
    pub writes: Vec<(String, Option<Vec<u8>>)>,
}

impl Batch {
    /// Sets a key.
    pub fn put(&mut self, key: impl Into<String>, value: Vec<u8>) {
        self.writes.push((key.into(), Some(value)));
    }
    /// Removes a key.
    pub fn delete(&mut self, key: impl Into<String>) {
        self.writes.push((key.into(), None));
    }
    /// True if there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }
}

/// An ordered store of small records.
pub trait MetaStore: Send + Sync {
    /// One record.
    ///
    /// # Errors
    /// The store is damaged or failed before.
    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, MetaError>;
    /// Every record whose key starts so, in order.
    ///
    /// # Errors
    /// As `get`.
    fn scan(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, MetaError>;
    /// Carries out a batch; it is on stable storage when this returns.
    ///
    /// # Errors
    /// [`MetaError::Conflict`] if an expectation doesn't hold (nothing changed); all else is final.
    fn commit(&self, batch: &Batch) -> Result<(), MetaError>;
    /// Follows the number of commits.
    fn watch(&self) -> tokio::sync::watch::Receiver<u64>;
}

/// What goes wrong with a store. Each names the path and the way out.
#[derive(Debug, thiserror::Error)]
pub enum MetaError {
    /// An expectation of a batch doesn't hold.
    #[error("the metadata record {key:?} was changed by someone else: read it again")]
    Conflict {
        /// Which.
        key: String,
    },
    /// There is a store already.
    #[error("{path} holds a cluster's metadata already: choose another directory, or use this one as it is", path = .0.display())]
    Exists(PathBuf),
    /// There never was a store.
    #[error("{path} holds no cluster: run `evenkeel init` for it first", path = .0.display())]
    Missing(PathBuf),
    /// A store that was here is gone, shortened or unreadable.
    #[error("the metadata in {path} is damaged ({problem}): put back a backup of the whole directory and start again", path = .path.display())]
    Damaged {
        /// Where.
        path: PathBuf,
        /// What was found.
        problem: String,
    },
    /// Another process has it open.
    #[error("the metadata in {path} is in use by another process: stop that one first", path = .0.display())]
    Busy(PathBuf),
    /// The file system failed. Final: what is in memory may be newer than what is stable.
    #[error("the metadata in {path} can't be written or read ({source}): check the disk and free space, then start again", path = .path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// What.
        source: std::io::Error,
    },
    /// A commit failed before; nothing more is taken.
    #[error("the metadata in {path} failed earlier and takes no more changes: start again", path = .0.display())]
    Failed(PathBuf),
    /// A record that this binary can't read.
    #[error("the metadata record {key:?} can't be read by this release ({problem}): start the release that wrote it")]
    Record {
        /// Which.
        key: String,
        /// Why.
        problem: String,
    },
    /// The schema is newer than this binary.
    #[error("the metadata has schema {found}, this release knows up to {known}: start the newer release")]
    SchemaTooNew {
        /// As recorded.
        found: u32,
        /// What this binary has.
        known: u32,
    },
}
