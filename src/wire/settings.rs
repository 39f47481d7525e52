//! Stored and sent form of the operator settings.
//!
//! Fields 1 to 9 are what is in effect, as releases knew it that had no profiles' windows or deadlines; a record that has
//! nothing else is read as if each value that its profile doesn't say were an operator's override. Whatever is not needed
//! is left out, so that such a release can rewrite the record (R28).

use prost::Message;

use super::map::{DecodeRecord, bad, class_index};
use crate::core::cluster as core;
use crate::core::ids::{NodeId, PoolId, VolumeId};

/// See [`core::Settings`].
#[derive(Clone, PartialEq, Message)]
pub struct Settings {
    /// Cap over all classes.
    #[prost(uint64, optional, tag = "1")]
    pub cap_bytes_per_sec: Option<u64>,
    /// Floor over all classes.
    #[prost(uint64, tag = "2")]
    pub floor_bytes_per_sec: u64,
    /// Target as a multiple of the baseline.
    #[prost(double, tag = "3")]
    pub target_inflation: f64,
    /// Explicit target.
    #[prost(uint64, optional, tag = "4")]
    pub target_p99_us: Option<u64>,
    /// Paused.
    #[prost(bool, tag = "5")]
    pub paused: bool,
    /// Grace.
    #[prost(double, tag = "6")]
    pub grace_seconds: f64,
    /// Debounce.
    #[prost(double, tag = "7")]
    pub debounce_seconds: f64,
    /// Index into `Profile::ALL`; absent: balanced.
    #[prost(uint32, optional, tag = "8")]
    pub profile: Option<u32>,
    /// Classes with limits of their own.
    #[prost(message, repeated, tag = "9")]
    pub classes: Vec<ClassSettings>,
    /// Nodes for which other values hold.
    #[prost(message, repeated, tag = "10")]
    pub nodes: Vec<NodeSettings>,
    /// Pools with a target of their own.
    #[prost(message, repeated, tag = "11")]
    pub pools: Vec<OwnTarget>,
    /// Volumes with a target of their own.
    #[prost(message, repeated, tag = "12")]
    pub volumes: Vec<OwnTarget>,
    /// Pools that wait.
    #[prost(uint32, repeated, tag = "13")]
    pub paused_pools: Vec<u32>,
    /// What operators said, if what is in effect doesn't say all of it.
    #[prost(message, optional, tag = "14")]
    pub config: Option<ResyncConfig>,
}

/// See [`core::ClassSettings`].
#[derive(Clone, PartialEq, Message)]
pub struct ClassSettings {
    /// Index into `ResyncClass::ALL`.
    #[prost(uint32, tag = "1")]
    pub class: u32,
    /// Cap.
    #[prost(uint64, optional, tag = "2")]
    pub cap_bytes_per_sec: Option<u64>,
    /// Floor.
    #[prost(uint64, optional, tag = "3")]
    pub floor_bytes_per_sec: Option<u64>,
    /// Weight.
    #[prost(uint32, optional, tag = "4")]
    pub weight: Option<u32>,
    /// Paused.
    #[prost(bool, tag = "5")]
    pub paused: bool,
}

/// See [`core::NodeSettings`].
#[derive(Clone, PartialEq, Message)]
pub struct NodeSettings {
    /// NodeId.
    #[prost(uint32, tag = "1")]
    pub node: u32,
    /// Cap.
    #[prost(uint64, optional, tag = "2")]
    pub cap_bytes_per_sec: Option<u64>,
    /// Floor.
    #[prost(uint64, tag = "3")]
    pub floor_bytes_per_sec: u64,
    /// Target as a multiple of the baseline.
    #[prost(double, tag = "4")]
    pub target_inflation: f64,
    /// Explicit target.
    #[prost(uint64, optional, tag = "5")]
    pub target_p99_us: Option<u64>,
    /// Paused.
    #[prost(bool, tag = "6")]
    pub paused: bool,
}

/// See [`core::Target`].
#[derive(Clone, PartialEq, Message)]
pub struct OwnTarget {
    /// PoolId or VolumeId.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// Multiple of the baseline.
    #[prost(double, optional, tag = "2")]
    pub inflation: Option<f64>,
    /// Explicit.
    #[prost(uint64, optional, tag = "3")]
    pub p99_us: Option<u64>,
}

/// See [`core::Limits`].
#[derive(Clone, PartialEq, Message)]
pub struct Limits {
    /// Cap.
    #[prost(uint64, optional, tag = "1")]
    pub cap_bytes_per_sec: Option<u64>,
    /// Floor.
    #[prost(uint64, optional, tag = "2")]
    pub floor_bytes_per_sec: Option<u64>,
    /// Multiple of the baseline.
    #[prost(double, optional, tag = "3")]
    pub inflation: Option<f64>,
    /// Explicit target.
    #[prost(uint64, optional, tag = "4")]
    pub p99_us: Option<u64>,
}

/// See [`core::ResyncConfig`].
#[derive(Clone, PartialEq, Message)]
pub struct ResyncConfig {
    /// Index into `Profile::ALL`.
    #[prost(uint32, optional, tag = "1")]
    pub profile: Option<u32>,
    /// Over all classes.
    #[prost(message, optional, tag = "2")]
    pub limits: Option<Limits>,
    /// Nodes.
    #[prost(message, repeated, tag = "3")]
    pub nodes: Vec<NodeOverrides>,
    /// Windows.
    #[prost(message, repeated, tag = "4")]
    pub windows: Vec<Window>,
    /// IANA name; empty: UTC.
    #[prost(string, tag = "5")]
    pub time_zone: String,
    /// Deadline.
    #[prost(uint64, optional, tag = "6")]
    pub deadline_unix_seconds: Option<u64>,
    /// 0 the deadline wins, 1 the latency target.
    #[prost(uint32, tag = "7")]
    pub deadline_wins: u32,
}

/// See [`core::NodeOverrides`].
#[derive(Clone, PartialEq, Message)]
pub struct NodeOverrides {
    /// NodeId.
    #[prost(uint32, tag = "1")]
    pub node: u32,
    /// Index into `Profile::ALL`.
    #[prost(uint32, optional, tag = "2")]
    pub profile: Option<u32>,
    /// Limits.
    #[prost(message, optional, tag = "3")]
    pub limits: Option<Limits>,
    /// Paused.
    #[prost(bool, tag = "4")]
    pub paused: bool,
}

/// See [`core::Window`].
#[derive(Clone, PartialEq, Message)]
pub struct Window {
    /// Bit 0 is Monday.
    #[prost(uint32, tag = "1")]
    pub days: u32,
    /// Minute of the day.
    #[prost(uint32, tag = "2")]
    pub from_minute: u32,
    /// Minute of the day.
    #[prost(uint32, tag = "3")]
    pub to_minute: u32,
    /// Index into `Profile::ALL`.
    #[prost(uint32, tag = "4")]
    pub profile: u32,
}

fn profile_of(index: u32) -> Result<core::Profile, DecodeRecord> {
    core::Profile::ALL.get(index as usize).copied().ok_or_else(|| bad("settings", "profile", index))
}

impl From<&core::Settings> for Settings {
    fn from(s: &core::Settings) -> Self {
        let r = &s.resync;
        Settings {
            cap_bytes_per_sec: r.cap_bytes_per_sec,
            floor_bytes_per_sec: r.floor_bytes_per_sec,
            target_inflation: r.target_inflation,
            target_p99_us: r.target_p99_us,
            paused: r.paused,
            grace_seconds: s.grace_seconds,
            debounce_seconds: s.debounce_seconds,
            profile: (r.profile != core::Profile::default()).then_some(r.profile as u32),
            classes: r.classes.iter().map(class_settings).collect(),
            nodes: r.nodes.iter().map(node_settings).collect(),
            pools: r.pools.iter().map(|(id, t)| own_target(u64::from(id.0), t)).collect(),
            volumes: r.volumes.iter().map(|(id, t)| own_target(id.0, t)).collect(),
            paused_pools: r.paused_pools.iter().map(|p| p.0).collect(),
            config: (s.config != implied(r)).then(|| (&s.config).into()),
        }
    }
}

/// What operators said, as far as what is in effect tells it.
fn implied(r: &core::ResyncSettings) -> core::ResyncConfig {
    core::ResyncConfig {
        pools: r.pools.clone(),
        volumes: r.volumes.clone(),
        paused_pools: r.paused_pools.clone(),
        ..core::ResyncConfig::from(r)
    }
}

fn class_settings((class, c): (&core::ResyncClass, &core::ClassSettings)) -> ClassSettings {
    ClassSettings {
        class: class_index(*class),
        cap_bytes_per_sec: c.cap_bytes_per_sec,
        floor_bytes_per_sec: c.floor_bytes_per_sec,
        weight: c.weight,
        paused: c.paused,
    }
}

fn node_settings((node, n): (&NodeId, &core::NodeSettings)) -> NodeSettings {
    NodeSettings {
        node: node.0,
        cap_bytes_per_sec: n.cap_bytes_per_sec,
        floor_bytes_per_sec: n.floor_bytes_per_sec,
        target_inflation: n.target_inflation,
        target_p99_us: n.target_p99_us,
        paused: n.paused,
    }
}

fn own_target(id: u64, t: &core::Target) -> OwnTarget {
    OwnTarget { id, inflation: t.inflation, p99_us: t.p99_us }
}

impl From<&core::Limits> for Limits {
    fn from(l: &core::Limits) -> Self {
        Limits {
            cap_bytes_per_sec: l.cap_bytes_per_sec,
            floor_bytes_per_sec: l.floor_bytes_per_sec,
            inflation: l.target.inflation,
            p99_us: l.target.p99_us,
        }
    }
}

impl From<Limits> for core::Limits {
    fn from(l: Limits) -> Self {
        core::Limits {
            cap_bytes_per_sec: l.cap_bytes_per_sec,
            floor_bytes_per_sec: l.floor_bytes_per_sec,
            target: core::Target { inflation: l.inflation, p99_us: l.p99_us },
        }
    }
}

impl From<&core::ResyncConfig> for ResyncConfig {
    fn from(c: &core::ResyncConfig) -> Self {
        let node = |(node, own): (&NodeId, &core::NodeOverrides)| NodeOverrides {
            node: node.0,
            profile: own.profile.map(|p| p as u32),
            limits: Some((&own.limits).into()),
            paused: own.paused,
        };
        let window = |w: &core::Window| Window {
            days: u32::from(w.days),
            from_minute: u32::from(w.from_minute),
            to_minute: u32::from(w.to_minute),
            profile: w.profile as u32,
        };
        // Classes, pools, volumes and pauses are in effect as they were said.
        ResyncConfig {
            profile: c.profile.map(|p| p as u32),
            limits: Some((&c.limits).into()),
            nodes: c.nodes.iter().map(node).collect(),
            windows: c.windows.iter().map(window).collect(),
            time_zone: c.time_zone.clone(),
            deadline_unix_seconds: c.deadline_unix_seconds,
            deadline_wins: match c.deadline_wins {
                core::DeadlineWins::Deadline => 0,
                core::DeadlineWins::Latency => 1,
            },
        }
    }
}

impl TryFrom<Settings> for core::Settings {
    type Error = DecodeRecord;
    fn try_from(s: Settings) -> Result<Self, DecodeRecord> {
        let class = |c: ClassSettings| {
            let own = core::ClassSettings {
                cap_bytes_per_sec: c.cap_bytes_per_sec,
                floor_bytes_per_sec: c.floor_bytes_per_sec,
                weight: c.weight,
                paused: c.paused,
            };
            Some((*core::ResyncClass::ALL.get(c.class as usize)?, own))
        };
        let node = |n: NodeSettings| {
            let own = core::NodeSettings {
                cap_bytes_per_sec: n.cap_bytes_per_sec,
                floor_bytes_per_sec: n.floor_bytes_per_sec,
                target_inflation: n.target_inflation,
                target_p99_us: n.target_p99_us,
                paused: n.paused,
            };
            (NodeId(n.node), own)
        };
        let target = |t: &OwnTarget| core::Target { inflation: t.inflation, p99_us: t.p99_us };
        let resync = core::ResyncSettings {
            cap_bytes_per_sec: s.cap_bytes_per_sec,
            floor_bytes_per_sec: s.floor_bytes_per_sec,
            target_inflation: s.target_inflation,
            target_p99_us: s.target_p99_us,
            paused: s.paused,
            // Only its name; its values stand beside it.
            profile: s.profile.and_then(|p| profile_of(p).ok()).unwrap_or_default(),
            classes: s.classes.into_iter().filter_map(class).collect(),
            nodes: s.nodes.into_iter().map(node).collect(),
            pools: s.pools.iter().map(|t| (PoolId(t.id as u32), target(t))).collect(),
            volumes: s.volumes.iter().map(|t| (VolumeId(t.id), target(t))).collect(),
            paused_pools: s.paused_pools.into_iter().map(PoolId).collect(),
        };
        let mut config = implied(&resync);
        if let Some(said) = s.config {
            config.profile = said.profile.map(profile_of).transpose()?;
            config.limits = said.limits.unwrap_or_default().into();
            config.nodes = said.nodes.into_iter().map(node_overrides).collect::<Result<_, _>>()?;
            config.windows = said.windows.into_iter().map(window_of).collect::<Result<_, _>>()?;
            config.time_zone = said.time_zone;
            config.deadline_unix_seconds = said.deadline_unix_seconds;
            config.deadline_wins = match said.deadline_wins {
                0 => core::DeadlineWins::Deadline,
                1 => core::DeadlineWins::Latency,
                other => return Err(bad("settings", "deadline_wins", other)),
            };
        }
        Ok(core::Settings { resync, config, grace_seconds: s.grace_seconds, debounce_seconds: s.debounce_seconds })
    }
}

fn node_overrides(n: NodeOverrides) -> Result<(NodeId, core::NodeOverrides), DecodeRecord> {
    let own = core::NodeOverrides {
        profile: n.profile.map(profile_of).transpose()?,
        limits: n.limits.unwrap_or_default().into(),
        paused: n.paused,
    };
    Ok((NodeId(n.node), own))
}

fn window_of(w: Window) -> Result<core::Window, DecodeRecord> {
    let wrong = || bad("settings", "window", format!("{w:?}"));
    let window = core::Window {
        days: u8::try_from(w.days).map_err(|_| wrong())?,
        from_minute: u16::try_from(w.from_minute).map_err(|_| wrong())?,
        to_minute: u16::try_from(w.to_minute).map_err(|_| wrong())?,
        profile: profile_of(w.profile)?,
    };
    if window.is_valid() { Ok(window) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::throttle::schedule::parse_window;
    use crate::core::throttle::settings::effective;

    const NOW: u64 = 1_795_645_800;

    fn round_trip(settings: &core::Settings) -> Settings {
        let sent = Settings::from(settings);
        let read = Settings::decode(sent.encode_to_vec().as_slice()).unwrap();
        assert_eq!(&core::Settings::try_from(read.clone()).unwrap(), settings);
        read
    }

    #[test]
    fn records_of_the_first_release_are_overrides() {
        // cap 20 MiB/s, floor 1 MiB/s, inflation 3, p99 5 ms, paused, grace 600 s, debounce 10 s.
        let old =
            hex::decode("088080800a108080401900000000000008402088272801310000000000c08240390000000000002440").unwrap();
        let stored = Settings::decode(old.as_slice()).unwrap();
        let settings = core::Settings::try_from(stored).unwrap();
        let limits = settings.config.limits;
        assert_eq!((limits.cap_bytes_per_sec, limits.floor_bytes_per_sec), (Some(20 << 20), Some(1 << 20)));
        assert_eq!(limits.target, core::Target { inflation: Some(3.0), p99_us: Some(5000) });
        assert!(settings.config.paused && settings.config.profile.is_none());
        assert_eq!((settings.grace_seconds, settings.debounce_seconds), (600.0, 10.0));
        assert_eq!(effective(&settings.config, NOW, None).0, settings.resync);
        // And it is written as it was, so that the first release can still change it.
        assert_eq!(Settings::from(&settings).encode_to_vec(), old);
    }

    #[test]
    fn golden_bytes() {
        let mut config = core::ResyncConfig {
            profile: Some(core::Profile::Foreground),
            windows: vec![parse_window("Mon-Fri 02:00-06:00 recovery").unwrap()],
            time_zone: "Europe/Berlin".into(),
            deadline_unix_seconds: Some(1_795_700_000),
            deadline_wins: core::DeadlineWins::Latency,
            ..core::ResyncConfig::default()
        };
        config.limits.cap_bytes_per_sec = Some(20 << 20);
        config.nodes.insert(NodeId(3), core::NodeOverrides { paused: true, ..core::NodeOverrides::default() });
        config.pools.insert(PoolId(1), core::Target { inflation: None, p99_us: Some(900) });
        config.volumes.insert(VolumeId(5), core::Target { inflation: None, p99_us: Some(800) });
        config.paused_pools.insert(PoolId(2));
        config.classes.insert(
            core::ResyncClass::Scrub,
            core::ClassSettings { weight: Some(3), ..core::ClassSettings::default() },
        );
        let resync = effective(&config, NOW, None).0;
        let settings = core::Settings { resync, config, ..core::Settings::default() };
        let sent = round_trip(&settings);
        assert_eq!(hex::encode(sent.encode_to_vec()), GOLDEN);
    }

    const GOLDEN: &str = "088080800a108080800119000000000000f83f310000000000c0824039000000000000244040004a040804200352170803108080800a188080800121000000000000f83f30015a0508011884076205080518a0066a0102723308001205088080800a1a0608031a0020012209081f107818e80220022a0d4575726f70652f4265726c696e30a0eaa0d8063801";

    #[test]
    fn what_is_needed_is_kept_and_nothing_else() {
        let mut settings = core::Settings::default();
        assert_eq!(round_trip(&settings).config, None);
        // A floor that equals the profile's is an override all the same.
        settings.config.limits.floor_bytes_per_sec = Some(8 << 20);
        assert!(round_trip(&settings).config.is_some());
        // A cap below the profile's floor is no override of the floor.
        settings.config.limits = core::Limits { cap_bytes_per_sec: Some(1 << 20), ..core::Limits::default() };
        settings.resync = effective(&settings.config, NOW, None).0;
        assert_eq!(round_trip(&settings).config, None);
    }

    #[test]
    fn damaged_settings_are_refused() {
        let base = Settings::from(&core::Settings::default());
        let with = |config: ResyncConfig| core::Settings::try_from(Settings { config: Some(config), ..base.clone() });
        let window = |days, from_minute, to_minute, profile| ResyncConfig {
            windows: vec![Window { days, from_minute, to_minute, profile }],
            ..ResyncConfig::default()
        };
        assert!(with(window(1, 0, 60, 0)).is_ok());
        for config in [
            window(0, 0, 60, 0),
            window(128, 0, 60, 0),
            window(1, 1440, 60, 0),
            window(1, 0, 1441, 0),
            window(1, 60, 60, 0),
            window(1, 0, 70_000, 0),
            window(1, 0, 60, 3),
            ResyncConfig { deadline_wins: 2, ..ResyncConfig::default() },
            ResyncConfig { profile: Some(9), ..ResyncConfig::default() },
        ] {
            assert!(with(config.clone()).is_err(), "{config:?}");
        }
    }
}
