//! The event log and the stored sums: what is kept beside the map.

use std::collections::VecDeque;

use super::totals::Totals;
use crate::api::types::Event;
use crate::meta::records::{EventRecord, RESYNC_TOTALS_KEY, ResyncTotals, kind};
use crate::meta::{Batch, MetaError, MetaStore, envelope};

/// Every kind of event, for what counts them. A test compares the list with the code.
pub const KINDS: &[&str] = &[
    "certificate",
    "cluster-created",
    "disk-added",
    "disk-answers",
    "disk-failed",
    "disk-hung",
    "job-cancelled",
    "job-ended",
    "job-paused",
    "job-resumed",
    "joined",
    "map-outdated",
    "node-down",
    "node-joined",
    "node-registered",
    "node-state",
    "node-up",
    "pg-changed",
    "pg-forced",
    "pg-promoted",
    "pg-recovered",
    "plan",
    "pool-created",
    "pool-deleted",
    "pool-set",
    "resync-deadline",
    "resync-set",
    "resync-target-met",
    "resync-target-missed",
    "resync-window",
    "token-created",
    "volume-attached",
    "volume-created",
    "volume-deleted",
    "volume-deleting",
    "volume-limits",
    "volume-released",
    "volume-resized",
    "writes-lost",
];

/// Events kept: days of a quiet cluster, hours of a busy one; a few MiB.
const EVENTS_MAX: usize = 10_000;

/// The last events, oldest first.
#[derive(Debug, Default)]
pub struct EventLog {
    events: VecDeque<EventRecord>,
    last: u64,
}

impl EventLog {
    /// As stored.
    ///
    /// # Errors
    /// A record is damaged.
    pub fn load(store: &dyn MetaStore) -> Result<Self, MetaError> {
        let mut log = EventLog::default();
        for (key, bytes) in store.scan("event/")? {
            let sealed = envelope::open(&key, &bytes)?;
            if sealed.kind == kind::EVENT {
                let (event, _) = envelope::decode::<EventRecord>(&key, &sealed.body)?;
                log.last = log.last.max(event.id);
                log.events.push_back(event);
            }
        }
        Ok(log)
    }

    /// Adds one; the oldest goes.
    pub fn add(&mut self, kind_name: &str, actor: &str, text: String, unix_ms: u64, batch: &mut Batch) {
        self.last += 1;
        let (kind_name, actor) = (kind_name.to_owned(), actor.to_owned());
        let event = EventRecord { id: self.last, unix_ms, kind: kind_name, actor, text };
        let key = key(event.id);
        batch.put(&key, envelope::seal(&key, kind::EVENT, 1, &event));
        self.events.push_back(event);
        while self.events.len() > EVENTS_MAX {
            if let Some(old) = self.events.pop_front() {
                batch.delete(self::key(old.id));
            }
        }
    }

    /// The number of the last one; 0: there is none.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// Those younger than `after`, oldest first.
    pub fn after(&self, after: u64) -> Vec<Event> {
        let from = self.events.partition_point(|e| e.id <= after);
        let show = |e: &EventRecord| Event {
            id: e.id,
            unix_ms: e.unix_ms,
            kind: e.kind.clone(),
            actor: e.actor.clone(),
            text: e.text.clone(),
        };
        self.events.range(from..).map(show).collect()
    }
}

fn key(id: u64) -> String {
    format!("event/{id:016x}")
}

/// The sums of resync bytes, as stored.
///
/// # Errors
/// The record is damaged.
pub fn load_totals(store: &dyn MetaStore) -> Result<Totals, MetaError> {
    let Some(bytes) = store.get(RESYNC_TOTALS_KEY)? else { return Ok(Totals::default()) };
    let sealed = envelope::open(RESYNC_TOTALS_KEY, &bytes)?;
    let (record, _) = envelope::decode::<ResyncTotals>(RESYNC_TOTALS_KEY, &sealed.body)?;
    Ok(Totals::restore(record))
}

/// Adds the sums to a batch.
pub fn put_totals(record: &ResyncTotals, batch: &mut Batch) {
    batch.put(RESYNC_TOTALS_KEY, envelope::seal(RESYNC_TOTALS_KEY, kind::RESYNC_TOTALS, 1, record));
}

#[cfg(test)]
mod tests {
    use super::KINDS;

    /// The first words that are told in a source: what stands quoted right behind `tell(`.
    fn told(source: &str) -> Vec<&str> {
        let calls = source.split(".tell(").skip(1).map(str::trim_start);
        let is_kind = |word: &&str| word.bytes().all(|b| b.is_ascii_lowercase() || b == b'-');
        calls.filter_map(|call| call.strip_prefix('"')?.split('"').next()).filter(is_kind).collect()
    }

    #[test]
    fn every_kind_is_in_the_list() {
        let mut found = std::collections::BTreeSet::new();
        let mut folders = vec!["src/core".to_owned(), "src/coordinator".to_owned()];
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(root.join(&folder)).unwrap().flatten() {
                let name = format!("{folder}/{}", entry.file_name().to_string_lossy());
                if entry.file_type().unwrap().is_dir() {
                    folders.push(name);
                } else {
                    let source = std::fs::read_to_string(entry.path()).unwrap();
                    found.extend(told(&source).into_iter().map(str::to_owned));
                }
            }
        }
        assert!(found.len() > 20, "the sources were read: {found:?}");
        let listed: std::collections::BTreeSet<String> = KINDS.iter().map(|k| (*k).to_owned()).collect();
        assert_eq!(found, listed);
    }
}
