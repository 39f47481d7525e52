//! A channel's sending half for those who may neither wait nor lose anything.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;

use super::channel::{SendFrameError, Sender};
use crate::wire::frame::Frame;

/// A channel's sending half that never blocks and never drops: what its queue can't take waits here. Bounded by what
/// the protocol has under way: requests in flight, windows, table parts.
#[derive(Clone)]
pub struct Outbox {
    sender: Sender,
    overflow: Arc<Mutex<VecDeque<Frame>>>,
    runtime: tokio::runtime::Handle,
}

impl Outbox {
    /// Wraps a sender.
    pub fn new(sender: Sender, runtime: tokio::runtime::Handle) -> Self {
        Outbox { sender, overflow: Arc::default(), runtime }
    }

    /// Queues a frame; a channel that has ended swallows it (its reader reports the end).
    pub fn send(&self, frame: Frame) {
        let mut overflow = self.overflow.lock();
        if !overflow.is_empty() {
            return overflow.push_back(frame);
        }
        if let Err(SendFrameError::Full(frame)) = self.sender.send(frame) {
            overflow.push_back(*frame);
            let (sender, overflow) = (self.sender.clone(), self.overflow.clone());
            self.runtime.spawn(async move {
                loop {
                    let Some(frame) = overflow.lock().front().cloned() else { return };
                    if sender.send_async(frame).await.is_err() {
                        return overflow.lock().clear();
                    }
                    overflow.lock().pop_front();
                }
            });
        }
    }

    /// Ends the channel after what is queued.
    pub fn finish(&self) {
        self.sender.finish();
    }
}
