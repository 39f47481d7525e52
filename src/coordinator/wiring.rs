//! Small translations between the core and the outside: clocks, frames, plans.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use prost::Message;

use crate::core::cluster::state::ClusterState;
use crate::core::ids::{DiskId, Generation, PgId};
use crate::core::placement as place;
use crate::core::units::Instant;
use crate::wire::control::{self, kind};
use crate::wire::frame::Frame;

/// CLOCK_BOOTTIME: it goes on while the machine sleeps.
pub fn now() -> Instant {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = u64::try_from(t.tv_sec).unwrap_or(0);
    Instant(seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(t.tv_nsec).unwrap_or(0)))
}

/// The wall clock, for people.
pub fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// A message as a frame.
pub fn frame(kind: u16, message: &impl Message) -> Frame {
    Frame::new(kind, Bytes::from(message.encode_to_vec()))
}

/// PGs in one frame: some 100 bytes each, far below the frame's limit of 4 MiB.
const PGS_PER_FRAME: usize = 8192;
/// Volumes in one frame: some 200 bytes each, more for long layouts.
const VOLUMES_PER_FRAME: usize = 2048;

/// What a follower at `version` lacks. Large maps come in several frames; the later ones add records to the same version.
pub fn delta_frames(state: &ClusterState, version: u64) -> Vec<Frame> {
    let mut whole = delta(state, version);
    let (mut pgs, mut volumes) = (std::mem::take(&mut whole.pgs), std::mem::take(&mut whole.volumes));
    let rest = control::MapDelta {
        from_version: whole.to_version,
        to_version: whole.to_version,
        epoch: whole.epoch,
        cluster: whole.cluster.clone(),
        feature_level: whole.feature_level,
        ..control::MapDelta::default()
    };
    let mut frames = Vec::new();
    let mut part = whole;
    loop {
        part.pgs = pgs.drain(..pgs.len().min(PGS_PER_FRAME)).collect();
        part.volumes = volumes.drain(..volumes.len().min(VOLUMES_PER_FRAME)).collect();
        frames.push(frame(kind::MAP_DELTA, &part));
        if pgs.is_empty() && volumes.is_empty() {
            return frames;
        }
        part = rest.clone();
    }
}

/// See [`delta_frames`].
pub fn delta(state: &ClusterState, version: u64) -> control::MapDelta {
    let (map, d) = (state.map(), state.delta_since(version));
    control::MapDelta {
        from_version: d.from_version,
        to_version: d.to_version,
        epoch: map.epoch,
        cluster: map.cluster.0.to_vec(),
        feature_level: map.feature_level,
        nodes: d.nodes.iter().map(Into::into).collect(),
        disks: d.disks.iter().map(Into::into).collect(),
        pools: d.pools.iter().map(Into::into).collect(),
        volumes: d.volumes.iter().map(Into::into).collect(),
        pgs: d.pgs.iter().map(Into::into).collect(),
        settings: d.settings.as_ref().map(Into::into),
        removed_volumes: d.removed_volumes.iter().map(|v| v.0).collect(),
        removed_pools: d.removed_pools.iter().map(|p| p.0).collect(),
    }
}

/// Asks a node to give a copy up.
pub fn purge(pg: PgId, disk: DiskId, up_to: Generation) -> Frame {
    let message = control::Purge { pg: pg.to_u64(), disk: disk.0, up_to_epoch: up_to.epoch, up_to_n: up_to.n };
    frame(kind::PURGE, &message)
}

/// A plan that its checker accepts; else an empty one: then nothing moves, and the log says why.
pub fn checked_plan(input: &place::Input) -> place::Plan {
    let plan = place::plan(input);
    match place::check(input, &plan) {
        Ok(()) => plan,
        Err(violations) => {
            tracing::error!(?violations, "the plan was refused by its checker; nothing moves");
            place::Plan::default()
        }
    }
}
