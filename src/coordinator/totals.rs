//! Resync bytes over the cluster's life: exact across restarts of nodes and coordinators, and never falling.
//!
//! Nodes report counters since their process start. What a process has counted since it was last added is added, and
//! how far it was counted is stored with the sums. The sums are shown only as they are stored.

use crate::core::ids::NodeId;
use crate::meta::records::{CountedNode, ResyncTotals};

/// The sums: what is stored, and what waits to be.
#[derive(Debug, Default)]
pub struct Totals {
    stored: ResyncTotals,
    next: ResyncTotals,
    dirty: bool,
}

impl Totals {
    /// As stored.
    pub fn restore(stored: ResyncTotals) -> Self {
        Totals { next: stored.clone(), stored, dirty: false }
    }

    /// A node's process reports its counters.
    pub fn handle_report(&mut self, node: NodeId, process: u64, counters: &[u64]) {
        let at = match self.next.nodes.iter().position(|n| n.node == node.0) {
            Some(at) => at,
            None => {
                self.next.nodes.push(CountedNode { node: node.0, ..CountedNode::default() });
                self.next.nodes.len() - 1
            }
        };
        let entry = &mut self.next.nodes[at];
        if entry.process != process {
            (entry.process, entry.counted) = (process, Vec::new());
        }
        // As many classes as there are; a peer can't make this grow.
        for (class, count) in counters.iter().enumerate().take(crate::core::cluster::ResyncClass::ALL.len()) {
            entry.counted.resize(entry.counted.len().max(class + 1), 0);
            let added = count.saturating_sub(entry.counted[class]);
            if added > 0 {
                entry.counted[class] = *count;
                self.next.bytes.resize(self.next.bytes.len().max(class + 1), 0);
                self.next.bytes[class] = self.next.bytes[class].saturating_add(added);
                self.dirty = true;
            }
        }
    }

    /// What has to be stored, if anything; call [`Totals::stored`] when it is.
    pub fn to_store(&self) -> Option<ResyncTotals> {
        self.dirty.then(|| self.next.clone())
    }

    /// The record is stable.
    pub fn handle_stored(&mut self, record: ResyncTotals) {
        self.stored = record;
        self.dirty = self.stored.bytes != self.next.bytes;
    }

    /// Bytes by class, as stored.
    pub fn by_class(&self) -> &[u64] {
        &self.stored.bytes
    }

    /// All bytes, as stored.
    pub fn bytes_done(&self) -> u64 {
        self.stored.bytes.iter().fold(0, |a, b| a.saturating_add(*b))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_counts_once_across_restarts() {
        let mut totals = Totals::default();
        let store = |t: &mut Totals| {
            if let Some(record) = t.to_store() {
                t.handle_stored(record);
            }
        };
        totals.handle_report(NodeId(1), 7, &[0, 10]);
        assert_eq!(totals.bytes_done(), 0, "not shown before it is stored");
        store(&mut totals);
        assert_eq!(totals.bytes_done(), 10);
        totals.handle_report(NodeId(1), 7, &[0, 15]);
        totals.handle_report(NodeId(2), 9, &[3, 0, 0, 0, 0, 99]);
        store(&mut totals);
        assert_eq!(totals.bytes_done(), 18);
        let mut totals = Totals::restore(totals.stored.clone());
        totals.handle_report(NodeId(1), 7, &[0, 15]); // The coordinator restarted; nothing new.
        assert!(totals.to_store().is_none());
        totals.handle_report(NodeId(1), 8, &[0, 4]); // The node restarted.
        totals.handle_report(NodeId(1), 8, &[0, 2]); // A counter that falls is not believed.
        store(&mut totals);
        assert_eq!(totals.bytes_done(), 22);
    }
}
