//! A queue between threads whose consumers sleep without spinning first and take all that waits at once.
//!
//! On a host with few cores a spinning consumer takes time from the threads that would feed it. One that spins with
//! sched_yield(2) is worse off: it gives its core to whatever else can run, a copy's hashing, until the next tick of the clock.

use std::collections::VecDeque;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

struct Inner<T> {
    items: VecDeque<T>,
    closed: bool,
}

/// The queue. Bounded by what its producers have under way.
pub struct Queue<T> {
    inner: Mutex<Inner<T>>,
    filled: Condvar,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Queue { inner: Mutex::new(Inner { items: VecDeque::new(), closed: false }), filled: Condvar::new() }
    }
}

impl<T> Queue<T> {
    /// Adds an item; one that comes after the close is dropped.
    pub fn push(&self, item: T) {
        let mut inner = self.inner.lock();
        if !inner.closed {
            inner.items.push_back(item);
            self.filled.notify_one();
        }
    }

    /// Consumers get what is left, then `None`.
    pub fn close(&self) {
        self.inner.lock().closed = true;
        self.filled.notify_all();
    }

    /// Closes it, and drops what waits.
    pub fn abandon(&self) {
        self.close();
        let dropped = std::mem::take(&mut self.inner.lock().items);
        // Outside of the lock: an item may wake up who waits for it.
        drop(dropped);
    }

    /// Waits for items and takes up to `max` of them, in order; empty after `timeout`. `None`: closed and drained.
    pub fn take(&self, max: usize, timeout: Duration) -> Option<Vec<T>> {
        let mut inner = self.inner.lock();
        if inner.items.is_empty() && !inner.closed {
            self.filled.wait_for(&mut inner, timeout);
        }
        if inner.items.is_empty() && inner.closed {
            return None;
        }
        let n = inner.items.len().min(max);
        Some(inner.items.drain(..n).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn items_come_in_order_and_the_end_is_seen() {
        let queue = Arc::new(Queue::default());
        let consumer = {
            let queue = queue.clone();
            std::thread::spawn(move || {
                let mut seen = Vec::new();
                while let Some(batch) = queue.take(3, Duration::from_secs(10)) {
                    assert!(batch.len() <= 3);
                    seen.extend(batch);
                }
                seen
            })
        };
        for i in 0..100 {
            queue.push(i);
        }
        queue.close();
        queue.push(100);
        assert_eq!(consumer.join().unwrap(), (0..100).collect::<Vec<i32>>());
    }

    #[test]
    fn what_nobody_will_take_is_dropped() {
        let (queue, item) = (Queue::default(), Arc::new(()));
        queue.push(item.clone());
        queue.abandon();
        queue.push(item.clone());
        assert_eq!(Arc::strong_count(&item), 1);
        assert_eq!(queue.take(10, Duration::ZERO), None);
    }
}
