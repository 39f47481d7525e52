//! Flushes, and the acked writes that are kept until one covers them (R12, R13).

use bytes::Bytes;

use super::*;

#[derive(Debug)]
pub(super) struct Flush {
    /// `None`: made in the background.
    pub token: Option<Token>,
    /// Covers what was acked before this.
    order: u64,
    left: BTreeSet<PgId>,
    all: bool,
}

impl Router {
    /// Makes everything that was acked before the call stable on every member (R12).
    pub fn flush(&mut self, token: Token) {
        if self.fenced {
            return self.actions.push(Action::Answer { token, reply: ClientReply::Fenced });
        }
        let all = !self.flushed_all;
        let targets = self.routes.iter().filter(|(_, r)| all || r.written.is_some()).map(|(pg, _)| *pg).collect();
        self.start_flush(Some(token), targets, all);
    }

    fn start_flush(&mut self, token: Option<Token>, targets: BTreeSet<PgId>, all: bool) {
        let order = self.next_order;
        self.next_order += 1;
        let id = order;
        self.flushes.insert(id, Flush { token, order, left: targets.clone(), all });
        if targets.is_empty() {
            return self.finish_flush(id);
        }
        for pg in targets {
            self.enqueue(pg, ClientOp::Flush, Origin::Flush(id));
        }
    }

    pub(super) fn flushed(&mut self, pg: PgId, id: u64) {
        let Some(flush) = self.flushes.get_mut(&id) else { return };
        flush.left.remove(&pg);
        let (order, done) = (flush.order, flush.left.is_empty());
        if let Some(route) = self.routes.get_mut(&pg) {
            while route.unflushed.front().is_some_and(|(o, _)| *o < order) {
                let freed = route.unflushed.pop_front().map_or(0, |(_, op)| size(&op));
                self.unflushed_bytes = self.unflushed_bytes.saturating_sub(freed);
            }
            route.written = route.written.filter(|last| *last >= order);
        }
        if done {
            self.finish_flush(id);
        }
        while self.unflushed_bytes < UNFLUSHED_BYTES_HARD
            && let Some((token, pg, op)) = self.held.pop_front()
        {
            self.enqueue(pg, op, Origin::Client(token));
        }
    }

    fn finish_flush(&mut self, id: u64) {
        let Some(flush) = self.flushes.remove(&id) else { return };
        self.flushed_all |= flush.all;
        let Some(token) = flush.token else {
            self.background = false;
            return self.flush_in_background();
        };
        let reply = if std::mem::take(&mut self.tell_loss) {
            self.actions.push(Action::LossTold);
            ClientReply::IoError
        } else {
            ClientReply::Done { durability_epoch: 0 }
        };
        self.actions.push(Action::Answer { token, reply });
    }

    pub(super) fn flush_in_background(&mut self) {
        if self.unflushed_bytes > UNFLUSHED_BYTES_MAX && !self.background {
            self.background = true;
            let dirty = self.routes.iter().filter(|(_, r)| !r.unflushed.is_empty()).map(|(pg, _)| *pg).collect();
            self.start_flush(None, dirty, false);
        }
    }

    /// Keeps an acked write until a FLUSH covers it. Also one that is stable already: a replay without it would bring
    /// back what an earlier write left in its place.
    pub(super) fn remember(&mut self, pg: PgId, op: &ClientOp) {
        let (op, fua) = match op {
            ClientOp::Write { chunk, offset, leaves, data, fua } => {
                let data = if data.len() < COPY_BELOW_BYTES { Bytes::copy_from_slice(data) } else { data.clone() };
                (ClientOp::Write { chunk: *chunk, offset: *offset, leaves: leaves.clone(), data, fua: *fua }, *fua)
            }
            ClientOp::Zero { fua, .. } => (op.clone(), *fua),
            _ => return,
        };
        // In the order of the acks: a later write of the same block was sent after the earlier one's ack.
        let order = self.next_order;
        self.next_order += 1;
        if let Some(route) = self.routes.get_mut(&pg) {
            self.unflushed_bytes += size(&op);
            route.unflushed.push_back((order, op));
            if !fua {
                route.written = Some(order);
            }
        }
    }
}
