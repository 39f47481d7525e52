//! What the engine does when the cluster map changes, and copies that nobody needs.

use super::*;
use crate::core::throttle::settings::policies;

impl Engine {
    pub(super) fn map_changed(&mut self, map: Arc<ClusterMap>, changed: Vec<PgConfig>) {
        self.map = map;
        self.speakers.retain(|disk, _| !self.map.disks.contains_key(disk));
        let policies = policies(&self.map, self.parts.disks.keys().copied());
        self.parts.throttle.apply_each(&self.map.settings.resync, policies);
        for (id, handle) in &self.parts.disks {
            let failed = self.map.disks.get(id).is_some_and(|d| d.admin_state == DiskAdminState::Failed);
            if failed && !handle.disk().is_failed() && self.failed.insert(*id) {
                handle.take_out("the coordinator has it as failed");
            }
        }
        let me = self.parts.links.hello.node;
        let others: Vec<(NodeId, SocketAddr)> =
            self.map.nodes.values().filter(|n| n.id.0 != me).map(|n| (n.id, n.addr)).collect();
        for (node, addr) in others {
            let kept = self.keepers.get(&node).is_some_and(|(a, _)| *a == addr);
            if !kept {
                self.keep(node, addr);
            }
        }
        for config in changed {
            let mine: Vec<Key> = self.parts.disks.keys().map(|d| (*d, config.pg)).collect();
            for key in mine {
                let listed = config.members.iter().any(|m| m.disk == key.0);
                if listed {
                    self.ensure(key);
                }
                // A known replica also hears of configurations without it.
                self.feed(key, Input::Config(config.clone()));
            }
        }
        for (node, session, address, message) in std::mem::take(&mut self.early) {
            self.peer(node, session, address, message);
        }
        self.wanted_stale = true;
        self.delete_volumes();
    }

    /// Keeps a link to a peer up from now on; one that was kept is made anew.
    pub(super) fn keep(&mut self, node: NodeId, addr: SocketAddr) {
        let task = self.parts.runtime.spawn(self.parts.links.clone().keep_peer(node, addr));
        if let Some((_, old)) = self.keepers.insert(node, (addr, task)) {
            old.abort();
        }
    }

    pub(super) fn delete_volumes(&mut self) {
        let volumes: Vec<(VolumeId, Vec<PgId>)> =
            self.map.volumes.values().filter(|v| v.deleting).map(|v| (v.id, v.pgs().collect())).collect();
        self.dropped.retain(|(v, _)| self.map.volumes.contains_key(v));
        for (volume, pgs) in volumes {
            for pg in pgs {
                for key in self.keys().into_iter().filter(|k| k.1 == pg) {
                    if self.replicas.get(&key).is_some_and(Replica::is_serving) {
                        if self.dropped.contains(&(volume, pg)) {
                            let dropped = msg::VolumeDropped { id: volume.0, pg: pg.to_u64() };
                            drop(self.parts.control.send(ToCoordinator::VolumeDropped(dropped)));
                        } else {
                            self.feed(key, Input::DeleteVolume(volume));
                        }
                    }
                }
            }
        }
    }

    pub(super) fn purge(&mut self, pg: PgId, disk: DiskId, up_to: Generation) {
        let key = (disk, pg);
        let listed = self.map.pgs.get(&pg).is_some_and(|c| {
            c.members.iter().any(|m| m.disk == disk) || c.learners.iter().any(|l| l.replica.disk == disk)
        });
        // Also where this map is older than a session's: what learns, or has learnt, is no old copy.
        let newer = self
            .replicas
            .get(&key)
            .is_some_and(|r| r.config().generation > up_to || !r.is_outside() || r.is_learning());
        let Some(handle) = self.parts.disks.get(&disk) else { return };
        if listed || newer {
            return tracing::warn!(%pg, %disk, "kept a copy that the coordinator wanted purged: it is in use or newer");
        }
        if self.watch.hung(disk).is_some() {
            return; // It would hang this thread too; the coordinator asks again.
        }
        if self.replicas.get(&key).is_some_and(Replica::has_disk_work) {
            return; // A record that is on its way would bring the copy back, complete and empty; the coordinator asks again.
        }
        self.replicas.remove(&key);
        self.ticking.remove(&key);
        match handle.purge(pg) {
            Ok(()) => {
                let purged = msg::Purge { pg: pg.to_u64(), disk: disk.0, up_to_epoch: up_to.epoch, up_to_n: up_to.n };
                drop(self.parts.control.send(ToCoordinator::Purged(purged)));
            }
            Err(error) => tracing::error!(%pg, %disk, error, "can't purge a copy"),
        }
    }
}
