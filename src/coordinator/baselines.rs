//! What is usual on disks of each class, guests' latency without resync and the rate of copies beside them, and whether copies
//! run anywhere, told to nodes with each of their reports.
//!
//! Nodes learn it disk by disk and report it; the law is [`peers`]. While copies run, they learn only in moments at which all
//! pause ([`moment`](crate::core::throttle::moment)). Soft: nothing is stored, and a node that hears nothing goes on
//! with what it heard last.

use std::collections::BTreeMap;
use std::time::Duration;

use super::owner::{Effect, Owner};
use super::wiring;
use crate::core::ids::DiskId;
use crate::core::manager::runtime::ConnId;
use crate::core::throttle::peers::{Findings, from_list, usual};
use crate::core::units::Instant;
use crate::wire::control::kind;
use crate::wire::stats::{ClassBaseline, ClassBaselines, Stats};

/// Medians are good for so long; it bounds the work over many disks.
const FRESH: Duration = Duration::from_secs(2);

/// The last medians.
#[derive(Debug, Default)]
pub(super) struct ClassMedians {
    at: Option<Instant>,
    by_class: BTreeMap<String, Findings>,
    copies_run: bool,
}

impl Owner {
    /// Answers a node's report. Those of a release that reports no baselines wouldn't know the answer.
    pub(super) fn tell_class_baselines(&mut self, id: ConnId, stats: &Stats) {
        if stats.disks.iter().all(|disk| disk.quiet_p99_us.is_empty()) {
            return;
        }
        let now = self.manager.now;
        if self.class_medians.at.is_none_or(|at| now.since(at) >= FRESH) {
            let map = self.manager.state.map();
            let reported = self.live_figures().flat_map(|figures| &figures.last.1.disks);
            let by_class = usual(reported.filter_map(|disk| {
                let found = Findings {
                    quiet_p99_us: from_list(&disk.quiet_p99_us),
                    rate_bytes_per_sec: disk.found_rate_bytes_per_sec,
                };
                Some((map.disks.get(&DiskId(disk.disk))?.class.as_str(), found))
            }));
            let copies_run = self.live_figures().any(|figures| !figures.last.1.sessions.is_empty());
            self.class_medians = ClassMedians { at: Some(now), by_class, copies_run };
        }
        let map = self.manager.state.map();
        let of_disk = |disk: u32| {
            let usual = self.class_medians.by_class.get(&map.disks.get(&DiskId(disk))?.class)?;
            let (quiet_p99_us, rate) = (usual.quiet_p99_us.to_vec(), usual.rate_bytes_per_sec);
            Some(ClassBaseline { disk, quiet_p99_us, usual_rate_bytes_per_sec: rate })
        };
        let disks: Vec<ClassBaseline> = stats.disks.iter().filter_map(|disk| of_disk(disk.disk)).collect();
        let answer = ClassBaselines { disks, copies_run: self.class_medians.copies_run };
        self.effects.push(Effect::Send(id, wiring::frame(kind::CLASS_BASELINES, &answer)));
    }
}
