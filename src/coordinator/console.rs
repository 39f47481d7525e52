//! What the console shows, from the same views as the API. The lines' history is kept here; rendering is not the owner's work.

use super::owner::{Input, Owner};
use super::survey::Survey;
use crate::api::console::{ClusterFacts, HISTORY_INTERVAL, Hub, Sample, VolumeLine, Volumes, render_cluster};
use crate::api::types::{ChunkCounts, Event};
use crate::core::cluster::Volume;
use crate::core::manager::decide::{PgState, state_of};
use tokio::sync::{mpsc, oneshot};

/// Jobs shown: the one that runs and the last few.
const JOBS_SHOWN: usize = 6;
/// Events looked at: many of a kind become one line.
const EVENTS_LOOKED_AT: u64 = 600;
/// Volumes shown one by one, the worst first.
const VOLUMES_SHOWN: usize = 50;

/// The console, asking the owner behind `inbox`.
pub(super) fn hub(inbox: mpsc::Sender<Input>) -> Hub {
    let source = move || {
        let inbox = inbox.clone();
        let page = async move {
            let (answer, facts) = oneshot::channel();
            inbox.send(Input::Console(answer)).await.ok()?;
            Some(render_cluster(&*facts.await.ok()?))
        };
        Box::pin(page) as std::pin::Pin<Box<dyn Future<Output = _> + Send>>
    };
    Hub::new(std::sync::Arc::new(source), true)
}

impl Owner {
    /// A point of the lines, when one is due.
    pub(super) fn sample_history(&mut self) {
        if self.manager.now.since(self.history_at) < HISTORY_INTERVAL {
            return;
        }
        self.history_at = self.manager.now;
        let guests = self.foreground();
        self.history.add(Sample {
            read_iops: guests.read_iops,
            write_iops: guests.write_iops,
            p50_us: guests.p50_us,
            p99_us: guests.p99_us,
            resync_bytes_per_sec: self.progress.per_sec(self.manager.now),
        });
    }

    pub(super) fn console_facts(&self) -> ClusterFacts {
        let survey = self.survey();
        let mut jobs = self.job_infos();
        jobs.truncate(JOBS_SHOWN);
        ClusterFacts {
            unix_ms: super::wiring::unix_ms(),
            release: env!("CARGO_PKG_VERSION").to_owned(),
            status: self.status_of(&survey),
            resync: self.resync_info(),
            jobs,
            nodes: self.node_infos_of(&survey),
            volumes: self.volume_lines(&survey),
            events: self.last_events(),
            history: self.history.points(),
        }
    }

    fn last_events(&self) -> Vec<Event> {
        let mut events = self.events.after(self.events.last().saturating_sub(EVENTS_LOOKED_AT));
        events.reverse();
        events
    }

    /// The worst first; of equal ones by name.
    fn volume_lines(&self, survey: &Survey) -> Volumes {
        let map = self.manager.state.map();
        // In a whole cluster every volume is.
        let all_whole = survey.counts.clean == survey.counts.total;
        let grade = |v: &Volume| -> u8 {
            let states = || v.pgs().filter_map(|pg| map.pgs.get(&pg)).map(|c| state_of(map, &self.manager.runtime, c));
            match v.deleting {
                false if all_whole => 3,
                true => 2,
                false => states().fold(3, |worst, s| {
                    worst.min(match s {
                        PgState::Unavailable(_) => 0,
                        PgState::Degraded => 1,
                        PgState::Clean => 3,
                    })
                }),
            }
        };
        let mut graded: Vec<(u8, &Volume)> = map.volumes.values().map(|v| (grade(v), v)).collect();
        let (total, unwell) = (graded.len(), graded.iter().filter(|(grade, _)| *grade < 2).count());
        graded.sort_by(|a, b| (a.0, &a.1.name).cmp(&(b.0, &b.1.name)));
        let moving = self.manager.planning.misplaced();
        let line = |(grade, v): (u8, &Volume)| {
            let pool = map.pools.get(&v.pool);
            let mut chunks = ChunkCounts::default();
            for (pg, n) in v.chunks_by_pg() {
                let Some(config) = map.pgs.get(&pg) else { continue };
                let state = match state_of(map, &self.manager.runtime, config) {
                    PgState::Clean => "clean",
                    PgState::Degraded => "degraded",
                    PgState::Unavailable(_) => "unavailable",
                };
                chunks.add(state, state == "clean" && moving.contains(&pg), n);
            }
            VolumeLine {
                name: v.name.clone(),
                pool: pool.map_or_else(String::new, |p| p.name.clone()),
                replicas: pool.map_or(0, |p| p.replicas),
                size_bytes: v.size_bytes,
                attached_to: v.attached_to.clone(),
                priority: v.priority,
                state: ["unavailable", "degraded", "deleting", "ok"][usize::from(grade)],
                chunks,
                guest: self.guest_status(v),
            }
        };
        let shown = graded.into_iter().take(VOLUMES_SHOWN).map(line).collect();
        Volumes { total, unwell, shown }
    }
}
