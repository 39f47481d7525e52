//! What the engine tells its coordinator and its peers: leases asked for, statistics, copies.

use super::*;

impl Engine {
    /// Graded failure detection: whose disk hangs here, and for whom operations wait.
    pub(super) fn watch_disks(&mut self) {
        let (t, at) = (std::time::Instant::now(), now());
        for (id, handle) in &self.parts.disks {
            if self.watch.see_disk(*id, handle.disk().hangs_since(), t) {
                // Leases are no longer asked for, or again (R7), and the coordinator hears of it at once.
                (self.wanted_stale, self.serving_changed) = (true, true);
            }
        }
        let mut waits: BTreeMap<DiskId, (u32, Duration)> = BTreeMap::new();
        for replica in self.replicas.values() {
            for (disk, age) in replica.lagging(at) {
                let entry = waits.entry(disk).or_default();
                *entry = (entry.0 + 1, entry.1.max(age));
            }
        }
        if !waits.is_empty() {
            let waiting: Vec<Key> = self.keys().into_iter().filter(|k| !self.ticking.contains(k)).collect();
            for key in waiting {
                if self.replicas.get(&key).is_some_and(|r| !r.lagging(at).is_empty()) {
                    self.feed(key, Input::Tick);
                }
            }
        }
        self.serving_changed |= self.watch.see_waits(&waits, t);
    }

    /// What leases this node asks for, by node.
    pub(super) fn renew_wanted(&mut self) {
        let mut wanted: BTreeMap<NodeId, Vec<LeaseEntry>> = BTreeMap::new();
        for (key, replica) in &self.replicas {
            // Renewal needs IO progress (R7).
            if !replica.is_primary() || self.failed.contains(&key.0) || self.watch.hung(key.0).is_some() {
                continue;
            }
            let generation = replica.config().generation;
            for member in replica.others() {
                let Some(node) = self.node_of(member) else { continue };
                wanted.entry(node).or_default().push(LeaseEntry {
                    pg: key.1.to_u64(),
                    epoch: generation.epoch,
                    n: generation.n,
                    member: member.0,
                    primary: key.0.0,
                });
            }
        }
        self.parts.leases.set_wanted(wanted);
    }

    pub(super) fn publish_stats(&mut self) {
        self.delete_volumes();
        self.publish_local();
        let c = &self.parts.counters;
        let mut stats = stats::Stats {
            resync_written_bytes: c.resync_written.iter().map(|v| v.load(Ordering::Relaxed)).collect(),
            foreground_reads: c.reads.load(Ordering::Relaxed),
            foreground_writes: c.writes.load(Ordering::Relaxed),
            foreground_read_bytes: c.read_bytes.load(Ordering::Relaxed),
            foreground_write_bytes: c.write_bytes.load(Ordering::Relaxed),
            process: self.parts.links.hello.process,
            ..stats::Stats::default()
        };
        c.map_version.store(self.map.version, Ordering::Relaxed);
        let (mut fsyncs, mut fsync_time) = (0, Duration::ZERO);
        let (p50, p99, _) = self.parts.throttle.foreground_percentiles();
        (stats.foreground_p50_us, stats.foreground_p99_us) = (p50, p99);
        for (id, handle) in &self.parts.disks {
            let (space, io) = (handle.disk().space(), handle.disk().counters());
            let (decision, findings) = (self.parts.throttle.decision(*id), self.parts.throttle.findings(*id));
            stats.hash_mismatches += io.hash_mismatches;
            fsyncs += io.fsyncs;
            fsync_time += io.fsync_time;
            stats.disks.push(stats::DiskStats {
                disk: id.0,
                used_bytes: space.slots_used * CHUNK_BYTES,
                capacity_bytes: space.capacity_bytes,
                failed: handle.disk().is_failed(),
                resync_rate_bytes_per_sec: self.parts.throttle.rate(*id).unwrap_or(0),
                hung_ms: self.watch.hung(*id).map_or(0, |d| d.as_millis() as u64),
                foreground_p99_us: decision.p99_us.unwrap_or(0),
                target_p99_us: decision.target_p99_us.unwrap_or(0),
                target_limited_by: self.parts.throttle.target_limited_by(*id).unwrap_or_default().to_owned(),
                quiet_p99_us: findings.quiet_p99_us.to_vec(),
                found_rate_bytes_per_sec: findings.rate_bytes_per_sec,
            });
        }
        c.fsyncs.store(fsyncs, Ordering::Relaxed);
        c.fsync_nanos.store(fsync_time.as_nanos() as u64, Ordering::Relaxed);
        stats.lagging = self.watch.lagging().collect();
        stats.hash_mismatches += c.wire_mismatches.load(Ordering::Relaxed);
        let (mut repaired, mut lost) = (0, 0);
        for (key, replica) in &self.replicas {
            let (r, l) = replica.block_repairs();
            repaired += r;
            lost += l;
            stats.copies.extend(self.copy_stats(*key, replica));
            if !replica.is_primary() {
                if replica.target_is_full() {
                    stats.full_pgs.push(key.1.to_u64());
                    stats.full_disks.push(key.0.0);
                }
                continue;
            }
            if replica.is_serving() && self.watch.hung(key.0).is_none() {
                stats.serving_pgs.push(key.1.to_u64());
            }
            for disk in replica.full_disks() {
                stats.full_pgs.push(key.1.to_u64());
                stats.full_disks.push(disk.0);
            }
            for s in replica.sessions() {
                let target_node = self.node_of(s.learner);
                let resync = &self.map.settings.resync;
                let held_back = resync.paused_pools.contains(&key.1.pool)
                    || target_node.is_some_and(|node| resync.is_node_paused(node));
                let limited_by = if s.paused || held_back {
                    "paused"
                } else if s.copied {
                    "slots"
                } else if s.throttled {
                    self.parts.throttle.limited_by(key.0, s.class)
                } else {
                    "nothing"
                };
                let stalled = replica.stalled(s.learner, now());
                let stuck_at = stalled.and_then(|s| s.chunk);
                stats.sessions.push(stats::SessionStats {
                    pg: key.1.to_u64(),
                    learner: s.learner.0,
                    class: ResyncClass::ALL.iter().position(|c| *c == s.class).unwrap_or(0) as u32,
                    chunks_total: s.chunks_total,
                    chunks_done: s.chunks_done,
                    bytes_total: s.chunks_total * CHUNK_BYTES,
                    bytes_done: s.chunks_done * CHUNK_BYTES,
                    bytes_sent: s.bytes_sent,
                    limited_by: limited_by.into(),
                    stalled_ms: stalled.map_or(0, |s| now().since(s.since).as_millis() as u64),
                    stall_reason: stalled.map_or(0, |s| s.reason.code()),
                    stalled_volume: stuck_at.map_or(0, |c| c.volume.0),
                    stalled_chunk: stuck_at.map_or(0, |c| c.index),
                });
            }
            if let Some(handle) = self.parts.disks.get(&key.0) {
                let bytes = handle.disk().chunk_table(key.1).len() as u64 * CHUNK_BYTES;
                stats.pg_bytes.push(stats::PgBytes { pg: key.1.to_u64(), bytes });
            }
        }
        self.parts.counters.repaired_blocks.store(repaired, Ordering::Relaxed);
        self.parts.counters.lost_blocks.store(lost, Ordering::Relaxed);
        self.accepted.retain(|_, left| {
            *left -= 1;
            *left > 0
        });
        *self.parts.stats.lock() = stats.clone();
        drop(self.parts.control.send(ToCoordinator::Stats(Box::new(stats))));
    }

    /// What the disk has of a PG whose member it isn't, or has just become.
    pub(super) fn copy_stats(&self, (disk, pg): Key, replica: &Replica) -> Option<stats::CopyStats> {
        let config = replica.config();
        let tells = replica.is_outside() || self.accepted.contains_key(&(disk, pg));
        if !tells || config.generation == Generation::default() {
            return None;
        }
        let report = msg::PgReport {
            pg: pg.to_u64(),
            generation_epoch: config.generation.epoch,
            generation_n: config.generation.n,
            complete: replica.is_complete(),
            flush_mark: self.parts.disks.get(&disk).map_or(0, |d| d.disk().flush_mark(pg)),
            durability_epoch: config.durability_epoch,
        };
        Some(stats::CopyStats { disk: disk.0, report: Some(report) })
    }
}
