//! Group commit: concurrent callers share one stable write.
//!
//! Invariant: a caller's items are in a batch that STARTS after the call (R12). No thread of its own: the first
//! caller of a batch runs it, the others wait. A batch holds at most what the threads in the call brought.

use std::sync::{Arc, OnceLock};

use parking_lot::{Condvar, Mutex};

pub(super) struct GroupCommit<T, E> {
    state: Mutex<State<T, E>>,
    done: Condvar,
}

struct State<T, E> {
    pending: Vec<T>,
    /// The result of the batch that is being gathered.
    batch: Arc<OnceLock<Result<(), E>>>,
    running: bool,
}

impl<T, E: Clone> GroupCommit<T, E> {
    pub fn new() -> Self {
        GroupCommit {
            state: Mutex::new(State { pending: Vec::new(), batch: Arc::default(), running: false }),
            done: Condvar::new(),
        }
    }

    /// Has `items` committed by `write`, together with those of other callers, and returns its result.
    pub fn commit(
        &self,
        items: impl IntoIterator<Item = T>,
        write: impl FnOnce(Vec<T>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut state = self.state.lock();
        state.pending.extend(items);
        let mine = state.batch.clone();
        while state.running {
            self.done.wait(&mut state);
            if let Some(result) = mine.get() {
                return result.clone();
            }
        }
        // Nothing runs and this batch has no result: so it is the one being gathered.
        state.running = true;
        state.batch = Arc::default();
        let items = std::mem::take(&mut state.pending);
        drop(state);
        let result = write(items);
        let mut state = self.state.lock();
        state.running = false;
        let result = mine.get_or_init(|| result).clone();
        drop(state);
        self.done.notify_all();
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn all_items_are_committed_and_a_failure_reaches_its_batch_alone() {
        let group = GroupCommit::<usize, ()>::new();
        let (seen, batches) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|s| {
            for t in 0..8 {
                let (group, seen, batches) = (&group, &seen, &batches);
                s.spawn(move || {
                    for i in 0..200 {
                        let bad = (t, i) == (3, 100);
                        let result = group.commit([usize::from(bad)], |items| {
                            batches.fetch_add(1, Ordering::Relaxed);
                            seen.fetch_add(items.len(), Ordering::Relaxed);
                            if items.contains(&1) { Err(()) } else { Ok(()) }
                        });
                        assert!(!bad || result.is_err());
                    }
                });
            }
        });
        assert_eq!(seen.load(Ordering::Relaxed), 1600);
        assert!(batches.load(Ordering::Relaxed) <= 1600);
        assert_eq!(group.commit([0], |_| Ok(())), Ok(()), "later batches don't inherit the failure");
    }
}
