//! What is left to copy, and how safe each volume is meanwhile. The coordinator keeps nothing per chunk: a chunk stands as its
//! PG does, and the layout says how many chunks of a volume a PG has.

use std::collections::{BTreeMap, BTreeSet};

use super::owner::Owner;
use super::progress::Left;
use crate::api::types::{SessionInfo, VolumePg, VolumeRedundancy};
use crate::core::cluster::{JobState, Volume};
use crate::core::ids::{DiskId, PgId};
use crate::core::manager::plan::JobMove;
use crate::core::moves::order;
use crate::core::units::CHUNK_BYTES;

impl Owner {
    /// The job's moves that have not begun.
    pub(super) fn waiting(&self, sessions: &[SessionInfo]) -> Vec<&JobMove> {
        let active: BTreeSet<(PgId, DiskId)> =
            sessions.iter().filter_map(|s| Some((s.pg.parse().ok()?, s.to))).collect();
        self.manager.planning.job.moves.iter().filter(|m| !active.contains(&(m.pg, m.to))).collect()
    }

    /// What is left to copy, by disk.
    pub(super) fn left_of(&self, sessions: &[SessionInfo], waiting: &[&JobMove]) -> Left {
        let mut left = Left::default();
        for s in sessions {
            left.add(Some(s.from), s.to, s.bytes_total.saturating_sub(s.bytes_done), true);
        }
        for m in waiting {
            let config = self.manager.state.map().pgs.get(&m.pg);
            left.add(config.and_then(|c| c.primary()).map(|p| p.disk), m.to, m.bytes, false);
        }
        left
    }

    /// The operator holds everything back: no time can be told.
    pub(super) fn is_held_back(&self) -> bool {
        self.manager.state.map().settings.resync.paused
            || self.current_job().is_some_and(|j| j.state == JobState::Paused)
    }

    /// How safe a volume is.
    pub(super) fn redundancy(&self, volume: &Volume) -> VolumeRedundancy {
        let map = self.manager.state.map();
        let (moving, sessions) = (self.manager.planning.misplaced(), self.sessions());
        let chunks = volume.chunks_by_pg();
        let mut answer = VolumeRedundancy::default();
        // The last chunk may be a part of one.
        let last = volume.chunk_count().checked_sub(1).and_then(|c| volume.pg_of(c));
        let beyond = u64::from(volume.chunk_count()) * CHUNK_BYTES - volume.size_bytes;
        for (pg, chunks) in &chunks {
            let Some(config) = map.pgs.get(pg) else { continue };
            let info = self.pg_info(config, &moving);
            let bytes = chunks * CHUNK_BYTES - if last == Some(*pg) { beyond } else { 0 };
            answer.chunks.add(&info.state, info.misplaced, *chunks);
            answer.bytes.add(&info.state, info.misplaced, bytes);
            let its = sessions.iter().filter(|s| s.pg == info.id);
            answer.pgs.push(VolumePg {
                pg: info.id.clone(),
                state: info.state,
                misplaced: info.misplaced,
                chunks: *chunks,
                bytes,
                disks: info.members.iter().map(|m| m.disk).collect(),
                missing: info.missing,
                copying: its.map(|s| (s.to, s.bytes_done as f64 / s.bytes_total.max(1) as f64)).collect(),
            });
        }
        (answer.eta_seconds, answer.waits_for) = self.volume_eta(&answer, &chunks, &sessions);
        answer
    }

    /// When a volume will be clean: when the last of its PGs' moves is done, with all that goes before it.
    fn volume_eta(
        &self,
        answer: &VolumeRedundancy,
        chunks: &BTreeMap<PgId, u64>,
        sessions: &[SessionInfo],
    ) -> (Option<crate::core::placement::Span>, String) {
        if answer.chunks.clean == answer.chunks.total && answer.chunks.misplaced == 0 {
            return (None, String::new());
        }
        if self.is_held_back() {
            return (None, "the operator has paused it".to_owned());
        }
        let planning = &self.manager.planning;
        let ranks =
            order::ranks(self.manager.state.map().volumes.values(), &planning.bytes_left(&self.manager.pg_bytes));
        let place = |m: &JobMove| (m.class, ranks.get(&m.pg).copied().unwrap_or(order::NO_VOLUME));
        let waiting = self.waiting(sessions);
        let last = waiting.iter().filter(|m| chunks.contains_key(&m.pg)).map(|m| place(m)).max();
        let copied = sessions.iter().any(|s| s.pg.parse().is_ok_and(|pg| chunks.contains_key(&pg)));
        if last.is_none() && !copied {
            let text = match planning.is_pending() {
                true => "it is being planned",
                false => "missing nodes may return, or their copies are made elsewhere after the grace",
            };
            return (None, text.to_owned());
        }
        let before: Vec<&JobMove> = waiting.into_iter().filter(|m| Some(place(m)) <= last).collect();
        (self.progress.eta(&self.left_of(sessions, &before), self.manager.now), String::new())
    }
}
