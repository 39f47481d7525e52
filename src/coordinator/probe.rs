//! For benches: a coordinator's views over any map, without its links and its turns.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use tokio::sync::mpsc;

use super::owner::{Facts, Owner};
use super::{InitCluster, InitConfig, init};
use crate::api::console::{Page, render_cluster};
use crate::api::metrics::Metrics;
use crate::core::cluster::state::ClusterState;
use crate::core::manager::Manager;
use crate::core::manager::runtime::Limits;
use crate::core::units::Instant;
use crate::meta::sled_store::SledStore;
use crate::net::ca::ClusterCa;

/// A coordinator that hears nobody.
pub struct Probe {
    owner: Owner,
}

impl Probe {
    /// Over this map; `dir` is empty, for its store.
    ///
    /// # Errors
    /// The store can't be made.
    pub fn new(dir: &Path, state: ClusterState, now: Instant) -> Result<Self, InitCluster> {
        init(&InitConfig { dir: dir.to_owned() })?;
        let facts = Facts {
            ca: ClusterCa::load(&dir.join("ca"))?,
            coordinator_addr: std::net::SocketAddr::from(([127, 0, 0, 1], 0)),
            metrics: Metrics::coordinator(),
            map_version: Arc::new(AtomicU64::new(0)),
        };
        let (inbox, _) = mpsc::channel(1);
        let mut owner = Owner::new(Arc::new(SledStore::open(dir)?), facts, inbox.downgrade(), now)?;
        owner.manager = Manager::new(state, now, Limits::default());
        Ok(Probe { owner })
    }

    /// What it observes and decides.
    pub fn manager(&mut self) -> &mut Manager {
        &mut self.owner.manager
    }

    /// The answer to `GET /v1/status`, as JSON.
    pub fn status(&self) -> Vec<u8> {
        serde_json::to_vec(&self.owner.status()).unwrap_or_default()
    }

    /// The console's page.
    pub fn console(&self) -> Page {
        render_cluster(&self.owner.console_facts())
    }

    /// The answer to `GET /metrics`: Prometheus text.
    pub fn metrics(&self) -> String {
        self.owner.show_metrics();
        self.owner.facts.metrics.text()
    }
}
