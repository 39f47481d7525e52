//! What a replica does and waits for, in words.

use super::*;

impl Replica {
    /// What it does and what it waits for, for whoever looks for a fault.
    pub fn describe(&self) -> String {
        let mut text = format!(
            "{:?} at {} of {:?}, complete {}, sequence {}, committed {}\n",
            self.role,
            self.generation(),
            self.state.config.members,
            self.state.complete,
            self.last_sequence,
            self.committed
        );
        let mut line = |name: &str, value: String| text.push_str(&format!("  {name}: {value}\n"));
        line("learners", format!("{:?}", self.learners));
        line("proposal", format!("{:?}, leaving {}", self.proposal, self.leaving));
        line("unreachable, faulty, stuck", format!("{:?} {:?} {:?}", self.unreachable, self.faulty, self.stuck));
        let a = &self.activation;
        line(
            "activation",
            format!(
                "waits for {:?}, held back {:?}, newcomers {:?}, relinking {:?}, persisted {}, grants end {:?}, {} to reconcile",
                a.waiting,
                a.held_back,
                a.newcomers,
                self.relinking,
                a.persisted,
                a.grants_end,
                a.reconciling.len()
            ),
        );
        line("accepting", format!("{:?}", self.accepting));
        line("target", format!("{:?}, caught up with {:?}", self.target, self.caught_up_with));
        for session in self.sessions.values() {
            line("session", session.describe());
        }
        let waits = |what: &Waiting| matches!(what, Waiting::Op(_) | Waiting::Local(_) | Waiting::Apply { .. });
        let other: Vec<&Waiting> = self.disk_waits.values().filter(|w| !waits(w)).take(8).collect();
        line("disk", format!("{} requests, of these {other:?}", self.disk_waits.len()));
        line(
            "operations",
            format!(
                "{} waiting or running, {} ordered, {} being applied, {} flushes, {} chunks without space, {} for a lease",
                self.ops.len(),
                self.inflight.len(),
                self.applying.len(),
                self.flushes.len(),
                self.preparing.len(),
                self.lease_waiters.len()
            ),
        );
        for (sequence, entry) in self.inflight.iter().take(4) {
            let waits = format!("sequence {sequence}, here {}, waits for {:?}", entry.local_done, entry.awaiting);
            line("ordered", waits);
        }
        for (ticket, op) in self.ops.iter().take(4) {
            let step = format!("{:?}", op.step);
            let step: String = step.chars().take(80).collect();
            line(
                "operation",
                format!("{ticket} on {} {:?}, on disk {}: {step}", op.chunk, op.range, {
                    self.disk_waits.values().any(|w| matches!(w, Waiting::Op(t) if t == ticket))
                }),
            );
        }
        text
    }
}
