//! From what operators said to what is in effect, and from there to each disk's policy.
//!
//! Precedence, per value: an override, then the window that holds, then the profile that was set, then the default. What a
//! node has of its own goes before what holds for all. A deadline raises floors, never caps. A cap bounds the floors that
//! profiles and deadlines bring; a floor that an operator gave above a cap is refused. Pure: the time is an argument.

use std::collections::BTreeMap;
use std::fmt;

use super::Policy;
use super::schedule::{self, ScheduleError};
use crate::core::cluster::{
    ClusterMap, DeadlineWins, Limits, NodeOverrides, NodeSettings, PgConfig, Profile, ResyncConfig, ResyncSettings,
    Target, Window,
};
use crate::core::ids::{DiskId, NodeId};

/// The least rate that can be set: one block a second; less is a pause.
pub const RATE_MIN: u64 = 4096;
/// The longest latency that is a target, in microseconds: a minute.
pub const P99_US_MAX: u64 = 60_000_000;

/// Where a value comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Origin {
    /// Nobody said anything.
    #[default]
    Default,
    /// The profile that an operator set.
    Profile,
    /// The window that holds.
    Window,
    /// The deadline needs it.
    Deadline,
    /// An operator gave this very value.
    Override,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Origin::Default => "default",
            Origin::Profile => "profile",
            Origin::Window => "window",
            Origin::Deadline => "deadline",
            Origin::Override => "override",
        })
    }
}

/// Where the values of one scope come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScopeOrigins {
    /// Of the profile.
    pub profile: Origin,
    /// Of the cap.
    pub cap: Origin,
    /// Of the floor.
    pub floor: Origin,
    /// Of the latency target.
    pub target: Origin,
}

/// Where everything comes from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Origins {
    /// What holds for all nodes without something of their own.
    pub all: ScopeOrigins,
    /// Nodes with something of their own.
    pub nodes: BTreeMap<NodeId, ScopeOrigins>,
    /// The window that holds now.
    pub window: Option<Window>,
}

/// What is in effect at a time. `needed_floor`: what the deadline needs on each disk, if it needs anything.
pub fn effective(config: &ResyncConfig, now_unix_seconds: u64, needed_floor: Option<u64>) -> (ResyncSettings, Origins) {
    let window = schedule::window_at(&config.windows, &config.time_zone, now_unix_seconds).map(|at| config.windows[at]);
    let (profile, from) = match (window, config.profile) {
        (Some(window), _) => (window.profile, Origin::Window),
        (None, Some(profile)) => (profile, Origin::Profile),
        (None, None) => (Profile::default(), Origin::Default),
    };
    let counts = config.deadline_wins == DeadlineWins::Deadline
        && config.deadline_unix_seconds.is_some_and(|deadline| deadline > now_unix_seconds);
    let needed_floor = needed_floor.filter(|_| counts);
    let base = NodeSettings {
        cap_bytes_per_sec: None,
        floor_bytes_per_sec: profile.floor_bytes_per_sec(),
        target_inflation: profile.target_inflation(),
        target_p99_us: None,
        paused: false,
    };
    let origins = ScopeOrigins { profile: from, cap: Origin::Default, floor: from, target: from };
    let (unbounded, origins) = overridden(base, origins, &config.limits);
    let (all, all_origins) = bounded(unbounded, origins, needed_floor);
    let mut nodes = BTreeMap::new();
    let mut node_origins = BTreeMap::new();
    for (id, own) in &config.nodes {
        let (settings, origins) = of_node(own, unbounded, origins, needed_floor);
        nodes.insert(*id, settings);
        node_origins.insert(*id, origins);
    }
    let settings = ResyncSettings {
        cap_bytes_per_sec: all.cap_bytes_per_sec,
        floor_bytes_per_sec: all.floor_bytes_per_sec,
        target_inflation: all.target_inflation,
        target_p99_us: all.target_p99_us,
        paused: config.paused,
        profile,
        classes: config.classes.clone(),
        nodes,
        pools: config.pools.clone(),
        volumes: config.volumes.clone(),
        paused_pools: config.paused_pools.clone(),
    };
    (settings, Origins { all: all_origins, nodes: node_origins, window })
}

fn of_node(
    own: &NodeOverrides,
    all: NodeSettings,
    origins: ScopeOrigins,
    needed_floor: Option<u64>,
) -> (NodeSettings, ScopeOrigins) {
    let (mut base, mut from) = (NodeSettings { paused: own.paused, ..all }, origins);
    if let Some(profile) = own.profile {
        base.floor_bytes_per_sec = profile.floor_bytes_per_sec();
        (base.target_inflation, base.target_p99_us) = (profile.target_inflation(), None);
        from = ScopeOrigins { profile: Origin::Profile, floor: Origin::Profile, target: Origin::Profile, ..from };
    }
    let (base, from) = overridden(base, from, &own.limits);
    bounded(base, from, needed_floor)
}

fn overridden(mut s: NodeSettings, mut from: ScopeOrigins, limits: &Limits) -> (NodeSettings, ScopeOrigins) {
    if let Some(cap) = limits.cap_bytes_per_sec {
        (s.cap_bytes_per_sec, from.cap) = (Some(cap), Origin::Override);
    }
    if let Some(floor) = limits.floor_bytes_per_sec {
        (s.floor_bytes_per_sec, from.floor) = (floor, Origin::Override);
    }
    if let Some(inflation) = limits.target.inflation {
        // It would be without effect beside a p99 that is inherited.
        (s.target_inflation, s.target_p99_us, from.target) = (inflation, None, Origin::Override);
    }
    if let Some(us) = limits.target.p99_us {
        (s.target_p99_us, from.target) = (Some(us), Origin::Override);
    }
    (s, from)
}

fn bounded(mut s: NodeSettings, mut from: ScopeOrigins, needed: Option<u64>) -> (NodeSettings, ScopeOrigins) {
    let cap = s.cap_bytes_per_sec.unwrap_or(u64::MAX);
    s.floor_bytes_per_sec = s.floor_bytes_per_sec.min(cap);
    if let Some(needed) = needed.map(|n| n.min(cap)).filter(|n| *n > s.floor_bytes_per_sec) {
        (s.floor_bytes_per_sec, from.floor) = (needed, Origin::Deadline);
    }
    (s, from)
}

/// A setting that can't be, with the way out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadSetting {
    /// A window, a time zone or a deadline.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
    /// Less than a block a second.
    #[error("the {what} of {of} can't be {rate} bytes/s: give at least 4 KiB/s, or pause it")]
    RateTooLow {
        /// Cap or floor.
        what: &'static str,
        /// All classes, a class, a node.
        of: String,
        /// As given.
        rate: u64,
    },
    /// Both can't hold.
    #[error(
        "the floor of {of} can't be {floor} bytes/s, above the cap of {cap_of}, {cap} bytes/s: lower the floor or raise the cap"
    )]
    FloorAboveCap {
        /// Whose floor.
        of: String,
        /// As given.
        floor: u64,
        /// Whose cap.
        cap_of: String,
        /// As it is.
        cap: u64,
    },
    /// Out of range.
    #[error("the target inflation of {of} can't be {value}: it is a multiple of the quiet latency, from 1 to 1000")]
    Inflation {
        /// Whose.
        of: String,
        /// As given.
        value: String,
    },
    /// Out of range.
    #[error("the target p99 of {of} can't be {us} µs: it lies between 1 µs and a minute")]
    P99 {
        /// Whose.
        of: String,
        /// As given.
        us: u64,
    },
    /// Out of range.
    #[error("the weight of {of} can't be {weight}: give a number from 1 to 1000")]
    Weight {
        /// Whose.
        of: String,
        /// As given.
        weight: u32,
    },
    /// One of them would be without effect.
    #[error(
        "{of} can't have a target as a multiple of the quiet latency while {other} has one as a p99, which goes first: give a p99 to both"
    )]
    MixedTargets {
        /// A pool or a volume.
        of: String,
        /// Whose p99.
        other: String,
    },
}

/// Checks all that operators said.
///
/// # Errors
/// The first thing that can't be.
pub fn check(config: &ResyncConfig) -> Result<(), BadSetting> {
    let all = || "all classes".to_owned();
    check_limits(&config.limits, &all())?;
    let cap = config.limits.cap_bytes_per_sec;
    floor_below(config.limits.floor_bytes_per_sec, all, cap, all)?;
    for (class, own) in &config.classes {
        let of = || format!("class {}", class.name());
        rate_min("cap", own.cap_bytes_per_sec, &of())?;
        floor_below(own.floor_bytes_per_sec, of, own.cap_bytes_per_sec, of)?;
        floor_below(own.floor_bytes_per_sec, of, cap, all)?;
        if let Some(weight) = own.weight.filter(|w| !(1..=1000).contains(w)) {
            return Err(BadSetting::Weight { of: of(), weight });
        }
    }
    for (node, own) in &config.nodes {
        let of = || format!("node {node}");
        check_limits(&own.limits, &of())?;
        match own.limits.cap_bytes_per_sec {
            Some(own_cap) => floor_below(own.limits.floor_bytes_per_sec, of, Some(own_cap), of)?,
            None => floor_below(own.limits.floor_bytes_per_sec, of, cap, all)?,
        }
    }
    check_targets(config)?;
    schedule::zone(&config.time_zone)?;
    Ok(schedule::check_windows(&config.windows)?)
}

fn check_targets(config: &ResyncConfig) -> Result<(), BadSetting> {
    let pools = config.pools.iter().map(|(id, t)| (format!("pool {id}"), *t));
    let volumes = config.volumes.iter().map(|(id, t)| (format!("volume {id}"), *t));
    let own: Vec<(String, Target)> = pools.chain(volumes).collect();
    for (of, target) in &own {
        check_target(target, of)?;
    }
    let nodes = config.nodes.iter().map(|(id, n)| (format!("node {id}"), n.limits.target));
    let everyone =
        [("the cluster".to_owned(), config.limits.target)].into_iter().chain(nodes).chain(own.iter().cloned());
    let p99 = everyone.filter(|(_, t)| t.p99_us.is_some()).map(|(of, _)| of).next();
    match (own.iter().find(|(_, t)| t.inflation.is_some()), p99) {
        (Some((of, _)), Some(other)) => Err(BadSetting::MixedTargets { of: of.clone(), other }),
        _ => Ok(()),
    }
}

fn check_limits(limits: &Limits, of: &str) -> Result<(), BadSetting> {
    rate_min("cap", limits.cap_bytes_per_sec, of)?;
    check_target(&limits.target, of)
}

fn check_target(target: &Target, of: &str) -> Result<(), BadSetting> {
    if let Some(value) = target.inflation.filter(|k| !(1.0..=1000.0).contains(k)) {
        return Err(BadSetting::Inflation { of: of.to_owned(), value: value.to_string() });
    }
    match target.p99_us.filter(|us| !(1..=P99_US_MAX).contains(us)) {
        Some(us) => Err(BadSetting::P99 { of: of.to_owned(), us }),
        None => Ok(()),
    }
}

fn rate_min(what: &'static str, rate: Option<u64>, of: &str) -> Result<(), BadSetting> {
    match rate.filter(|rate| *rate < RATE_MIN) {
        Some(rate) => Err(BadSetting::RateTooLow { what, of: of.to_owned(), rate }),
        None => Ok(()),
    }
}

fn floor_below(
    floor: Option<u64>,
    of: impl Fn() -> String,
    cap: Option<u64>,
    cap_of: impl Fn() -> String,
) -> Result<(), BadSetting> {
    match (floor, cap) {
        (Some(floor), Some(cap)) if floor > cap => {
            Err(BadSetting::FloorAboveCap { of: of(), floor, cap_of: cap_of(), cap })
        }
        _ => Ok(()),
    }
}

/// Each of these disks' policy: its node's values, and the strictest target of the pools and volumes that it holds a part
/// of. An explicit p99 goes before a multiple, as everywhere.
pub fn policies(map: &ClusterMap, disks: impl IntoIterator<Item = DiskId>) -> BTreeMap<DiskId, Policy> {
    let r = &map.settings.resync;
    let mut policies: BTreeMap<DiskId, Policy> = BTreeMap::new();
    for disk in disks {
        let mut policy = Policy::from(r);
        if let Some(own) = map.disks.get(&disk).and_then(|d| r.nodes.get(&d.node)) {
            policy.cap_bytes_per_sec = own.cap_bytes_per_sec;
            policy.floor_bytes_per_sec = own.floor_bytes_per_sec;
            policy.target_inflation = own.target_inflation;
            policy.target_p99_us = own.target_p99_us;
            policy.paused |= own.paused;
        }
        policies.insert(disk, policy);
    }
    let mut keep = |config: &PgConfig, target: &Target| {
        let learners = config.learners.iter().map(|l| l.replica.disk);
        for disk in config.members.iter().map(|m| m.disk).chain(learners) {
            let Some(policy) = policies.get_mut(&disk) else { continue };
            if let Some(inflation) = target.inflation {
                policy.target_inflation = policy.target_inflation.min(inflation);
            }
            if let Some(us) = target.p99_us {
                policy.target_p99_us = Some(policy.target_p99_us.map_or(us, |now| now.min(us)));
            }
        }
    };
    if !r.pools.is_empty() {
        for config in map.pgs.values() {
            if let Some(target) = r.pools.get(&config.pg.pool) {
                keep(config, target);
            }
        }
    }
    for (volume, target) in r.volumes.iter().filter_map(|(id, t)| Some((map.volumes.get(id)?, t))) {
        for config in volume.pgs().filter_map(|pg| map.pgs.get(&pg)) {
            keep(config, target);
        }
    }
    policies
}

#[cfg(test)]
#[path = "settings_tests.rs"]
mod tests;
