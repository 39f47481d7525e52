//! What a node answers over HTTP: its console, its metrics, and what a PG's replicas wait for. All of it only reads; beyond
//! loopback it needs a certificate of an operator or a viewer.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use axum::Router;
use axum::extract::Path;
use axum::routing::get;

use super::engine::{Counters, Event, Events};
use super::throttle::Throttle;
use crate::api::metrics::NodeMetrics;
use crate::core::cluster::ResyncClass;
use crate::core::ids::{DiskId, PgId};
use crate::net::guard;
use crate::wire::stats;

/// What the engine keeps up to date for whoever looks.
#[derive(Clone)]
pub(super) struct Observed {
    pub metrics: Arc<NodeMetrics>,
    pub stats: Arc<parking_lot::Mutex<stats::Stats>>,
    pub counters: Arc<Counters>,
    pub throttle: Arc<Throttle>,
}

impl Observed {
    /// Brings gauges and totals that the engine keeps up to date.
    fn fill(&self) {
        let Observed { metrics, counters, throttle, stats } = self;
        let stats = stats.lock();
        for (class, total) in ResyncClass::ALL.into_iter().zip(&counters.resync_written) {
            metrics.resync_bytes.raise_to(class, total.load(Relaxed));
        }
        for (class, total) in ResyncClass::ALL.into_iter().zip(&counters.resync_sent) {
            metrics.resync_sent.raise_to(class, total.load(Relaxed));
        }
        let fsync_time = Duration::from_nanos(counters.fsync_nanos.load(Relaxed));
        metrics.fsyncs.raise_to(counters.fsyncs.load(Relaxed), fsync_time);
        metrics.map_version.set(i64::try_from(counters.map_version.load(Relaxed)).unwrap_or(i64::MAX));
        metrics.active_moves.set(stats.sessions.len() as i64);
        metrics.hash_mismatches.inc_by(stats.hash_mismatches.saturating_sub(metrics.hash_mismatches.get()));
        for disk in &stats.disks {
            metrics.space.set(DiskId(disk.disk), disk.used_bytes, disk.capacity_bytes);
            let id = DiskId(disk.disk);
            metrics.throttle.set(id, throttle.rate(id).unwrap_or(0), &throttle.decision(id));
        }
    }
}

/// All routes.
pub(super) fn router(observed: Observed, events: Events, console: Router) -> Router {
    let text = move || {
        observed.fill();
        let text = observed.metrics.text();
        async move { text }
    };
    // For whoever looks for a fault: what a PG's replicas here wait for.
    let describe = move |Path(pg): Path<String>| {
        let events = events.clone();
        async move {
            let Ok(pg) = pg.parse::<PgId>() else {
                return format!("{pg} is no PG: write it as POOL.INDEX, like 1.60\n");
            };
            let (answer, said) = tokio::sync::oneshot::channel();
            events.push(Event::Describe { pg, answer });
            match said.await {
                Ok(text) if text.is_empty() => format!("no disk of this node has a replica of PG {pg}\n"),
                Ok(text) => text,
                Err(_) => "the node is stopping\n".to_owned(),
            }
        }
    };
    guard::readers_only(
        Router::new().route("/metrics", get(text)).route("/debug/pg/{pg}", get(describe)).merge(console),
    )
}
