//! [`MetaStore`] on sled 0.34, in `DIR/meta` with the marker `DIR/meta.marker`.
//!
//! What is known of sled: its `flush` ends in `sync_file_range`, so its file is fsynced after it; damage may show as a
//! panic, as an error, or as an older state without a word. So it is opened in a thread of its own whose panics become
//! errors, and every commit keeps a sequence number and a sum over all records (XOR of BLAKE3 of key and value), which
//! are verified at opening against the records and against the marker.
//!
//! One tree. Errors are final: after a failed commit nothing is taken any more.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Once;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::marker::Marker;
use super::{Batch, MetaError, MetaStore};

/// The key of the sequence and the sum: 8 + 16 bytes.
const SUM_KEY: &str = "\u{1}sum";
/// Threads with this name report damage as errors; the default hook's backtrace would only hide the sentence.
const QUIET_THREAD: &str = "meta-quiet";

/// A store in a directory.
#[derive(Debug)]
pub struct SledStore {
    path: PathBuf,
    db: sled::Db,
    state: Mutex<State>,
    changes: watch::Sender<u64>,
}

#[derive(Debug)]
struct State {
    marker: Marker,
    sequence: u64,
    sum: [u8; 16],
    failed: bool,
}

impl SledStore {
    /// Makes an empty store in `dir`, which exists.
    ///
    /// # Errors
    /// There is one already, or the file system fails.
    pub fn create(dir: &Path) -> Result<SledStore, MetaError> {
        let path = dir.join("meta");
        if path.exists() || marker_path(dir).exists() {
            return Err(MetaError::Exists(path));
        }
        let db = open_sled(&path)?;
        db.insert(SUM_KEY, sum_value(1, [0; 16]).as_slice()).map_err(|e| sled_error(&path, e))?;
        stabilise(&db, &path)?;
        // The marker comes last: with it, an empty database is never taken for a new one.
        let io = |source| MetaError::Io { path: path.clone(), source };
        let marker = Marker::create(&marker_path(dir), 1).map_err(io)?;
        File::open(dir).and_then(|d| d.sync_all()).map_err(io)?;
        let state = Mutex::new(State { marker, sequence: 1, sum: [0; 16], failed: false });
        Ok(SledStore { path, db, state, changes: watch::Sender::new(1) })
    }

    /// Opens the store in `dir` and verifies all of it.
    ///
    /// # Errors
    /// There is none, another process has it, or it is damaged; each says what to do.
    pub fn open(dir: &Path) -> Result<SledStore, MetaError> {
        let path = dir.join("meta");
        let damaged = |problem: &str| MetaError::Damaged { path: path.clone(), problem: problem.to_owned() };
        match (marker_path(dir).exists(), path.join("db").exists()) {
            (false, false) => return Err(MetaError::Missing(dir.to_owned())),
            (false, true) => return Err(damaged("its marker file meta.marker is missing")),
            (true, false) => return Err(damaged("its database file is missing")),
            (true, true) => {}
        }
        let io = |source| MetaError::Io { path: path.clone(), source };
        let (marker, least) = Marker::open(&marker_path(dir)).map_err(io)?;
        let least = least.ok_or_else(|| damaged("its marker file is unreadable"))?;
        let at = path.clone();
        let (db, sequence, sum) = quietly(&path, move || {
            let db = open_sled(&at)?;
            let (sequence, sum) = verify(&db, &at)?;
            Ok((db, sequence, sum))
        })?;
        if sequence < least {
            return Err(damaged(&format!("it ends at change {sequence}, but change {least} was stable")));
        }
        let state = Mutex::new(State { marker, sequence, sum, failed: false });
        Ok(SledStore { path, db, state, changes: watch::Sender::new(sequence) })
    }

    fn try_commit(&self, state: &mut State, batch: &Batch) -> Result<(), MetaError> {
        let err = |e| sled_error(&self.path, e);
        let mut sum = state.sum;
        let mut writes = sled::Batch::default();
        let mut latest = std::collections::BTreeMap::new();
        for (key, value) in &batch.writes {
            latest.insert(key.as_str(), value.as_deref());
        }
        for (key, value) in latest {
            if let Some(old) = self.db.get(key).map_err(err)? {
                xor(&mut sum, digest(key.as_bytes(), &old));
            }
            match value {
                Some(value) => {
                    xor(&mut sum, digest(key.as_bytes(), value));
                    writes.insert(key, value);
                }
                None => writes.remove(key),
            }
        }
        let sequence = state.sequence + 1;
        writes.insert(SUM_KEY, sum_value(sequence, sum).as_slice());
        self.db.apply_batch(writes).map_err(err)?;
        stabilise(&self.db, &self.path)?;
        state.marker.advance(sequence).map_err(|source| MetaError::Io { path: self.path.clone(), source })?;
        (state.sequence, state.sum) = (sequence, sum);
        Ok(())
    }
}

impl MetaStore for SledStore {
    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, MetaError> {
        Ok(self.db.get(key).map_err(|e| sled_error(&self.path, e))?.map(|v| v.to_vec()))
    }

    fn scan(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, MetaError> {
        let err = |e| sled_error(&self.path, e);
        let rows = self.db.scan_prefix(prefix).filter(|row| !matches!(row, Ok((k, _)) if k == SUM_KEY.as_bytes()));
        rows.map(|row| {
            let (key, value) = row.map_err(err)?;
            Ok((String::from_utf8_lossy(&key).into_owned(), value.to_vec()))
        })
        .collect()
    }

    fn commit(&self, batch: &Batch) -> Result<(), MetaError> {
        let mut state = self.state.lock();
        if state.failed {
            return Err(MetaError::Failed(self.path.clone()));
        }
        for (key, expected) in &batch.expect {
            if self.get(key)? != *expected {
                return Err(MetaError::Conflict { key: key.clone() });
            }
        }
        let done = catch_unwind(AssertUnwindSafe(|| self.try_commit(&mut state, batch)));
        let done = done.unwrap_or_else(|_| {
            Err(MetaError::Damaged { path: self.path.clone(), problem: "the database gave up".to_owned() })
        });
        state.failed = done.is_err();
        if done.is_ok() {
            self.changes.send_replace(state.sequence);
        }
        done
    }

    fn watch(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

fn marker_path(dir: &Path) -> PathBuf {
    dir.join("meta.marker")
}

fn open_sled(path: &Path) -> Result<sled::Db, MetaError> {
    // The map is small; the cache bounds memory, not speed.
    let config = sled::Config::new().path(path).cache_capacity(64 << 20).flush_every_ms(None);
    config.open().map_err(|e| sled_error(path, e))
}

/// Everything written so far is on stable storage.
fn stabilise(db: &sled::Db, path: &Path) -> Result<(), MetaError> {
    db.flush().map_err(|e| sled_error(path, e))?;
    let synced = File::open(path.join("db")).and_then(|f| f.sync_all());
    synced.map_err(|source| MetaError::Io { path: path.to_owned(), source })
}

/// Reads every record and compares with the sum.
fn verify(db: &sled::Db, path: &Path) -> Result<(u64, [u8; 16]), MetaError> {
    let damaged = |problem: &str| MetaError::Damaged { path: path.to_owned(), problem: problem.to_owned() };
    let (mut sum, mut recorded) = ([0; 16], None);
    for row in db.iter() {
        let (key, value) = row.map_err(|e| sled_error(path, e))?;
        if key == SUM_KEY.as_bytes() {
            let bytes: [u8; 24] = value.as_ref().try_into().map_err(|_| damaged("its sum is malformed"))?;
            let (sequence, sum) = bytes.split_at(8);
            recorded = sequence.try_into().ok().map(u64::from_le_bytes).zip(<[u8; 16]>::try_from(sum).ok());
        } else {
            xor(&mut sum, digest(&key, &value));
        }
    }
    let (sequence, expected) = recorded.ok_or_else(|| damaged("it is empty"))?;
    if sum != expected {
        return Err(damaged("records are missing or changed"));
    }
    Ok((sequence, sum))
}

fn digest(key: &[u8], value: &[u8]) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(key.len() as u64).to_le_bytes()).update(key).update(value);
    let mut out = [0; 16];
    out.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    out
}

fn xor(sum: &mut [u8; 16], other: [u8; 16]) {
    sum.iter_mut().zip(other).for_each(|(a, b)| *a ^= b);
}

fn sum_value(sequence: u64, sum: [u8; 16]) -> Vec<u8> {
    [sequence.to_le_bytes().as_slice(), sum.as_slice()].concat()
}

fn sled_error(path: &Path, error: sled::Error) -> MetaError {
    let path = path.to_owned();
    match error {
        sled::Error::Io(e) if e.kind() == std::io::ErrorKind::WouldBlock => MetaError::Busy(path),
        // sled wraps the failed lock in an error of kind Other.
        sled::Error::Io(e) if e.to_string().contains("could not acquire lock") => MetaError::Busy(path),
        sled::Error::Io(source) => MetaError::Io { path, source },
        other => MetaError::Damaged { path, problem: other.to_string().replace('\n', " ") },
    }
}

/// Runs in a thread whose panics become errors without a backtrace on stderr.
fn quietly<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce() -> Result<T, MetaError> + Send + 'static,
) -> Result<T, MetaError> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let thread = std::thread::current();
            let name = thread.name().unwrap_or("");
            if name != QUIET_THREAD && !name.starts_with("sled") {
                before(info);
            }
        }));
    });
    let spawned = std::thread::Builder::new().name(QUIET_THREAD.to_owned()).spawn(work);
    let thread = spawned.map_err(|source| MetaError::Io { path: path.to_owned(), source })?;
    thread.join().unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
        let problem: String = text.unwrap_or_default().replace('\n', " ").chars().take(120).collect();
        Err(MetaError::Damaged { path: path.to_owned(), problem: format!("the database can't be opened: {problem}") })
    })
}

#[cfg(test)]
#[path = "sled_store_tests.rs"]
mod tests;
