//! What operators say about resync's limits: from a request to [`ResyncConfig`].
//!
//! Invariant: a request that is wrong in one thing changes nothing (the caller applies all of it, or none).

use std::collections::BTreeMap;

use crate::api::calls::CallFailed;
use crate::api::types::{Knob, ResyncSet, VolumeQosSet};
use crate::core::cluster::command::Refusal;
use crate::core::cluster::{
    ClusterMap, DeadlineWins, Limits, NodeAdminState, Profile, ResyncClass, ResyncConfig, Target, VolumeQos,
};
use crate::core::throttle::schedule::{self, ScheduleError};
use crate::core::throttle::settings::{BadSetting, RATE_MIN};
use crate::core::units::{HumanBytes, ParseUnit, parse_bytes, parse_bytes_per_sec};

fn wrong(text: impl Into<String>) -> CallFailed {
    CallFailed::new(400, text.into())
}

impl From<ScheduleError> for CallFailed {
    fn from(error: ScheduleError) -> Self {
        wrong(error.to_string())
    }
}

/// True for the words that take a value away.
fn is_none(text: &str) -> bool {
    matches!(text.trim(), "none" | "default")
}

/// Changes what operators said; gives a sentence for the event.
///
/// # Errors
/// A value that can't be read, or that doesn't go with what it is for.
pub(super) fn change(
    config: &mut ResyncConfig,
    map: &ClusterMap,
    request: &ResyncSet,
    now_unix_seconds: u64,
) -> Result<String, CallFailed> {
    let scopes = [&request.class, &request.node, &request.pool, &request.volume];
    if scopes.iter().filter(|s| s.is_some()).count() > 1 {
        return Err(wrong("class, node, pool and volume each stand alone: set one of them at a time"));
    }
    let mut said = Vec::new();
    let of = if let Some(name) = &request.class {
        of_class(config, name, request, &mut said)?;
        format!(" of class {name}")
    } else if let Some(name) = &request.node {
        of_node(config, map, name, request, &mut said)?;
        format!(" of node {name}")
    } else if let Some(name) = &request.pool {
        of_pool(config, map, name, request, &mut said)?;
        format!(" of pool {name}")
    } else if let Some(name) = &request.volume {
        of_volume(config, map, name, request, &mut said)?;
        format!(" of volume {name}")
    } else {
        of_all(config, request, now_unix_seconds, &mut said)?;
        String::new()
    };
    if said.is_empty() {
        return Err(wrong("nothing is to be changed: give a value, as cap, floor, profile, a target or a window"));
    }
    Ok(format!("Resync{of}: {}.", said.join(", ")))
}

/// Refuses what a scope doesn't have, with the reason.
fn only(scope: &str, why: &str, given: &[(&str, bool)]) -> Result<(), CallFailed> {
    match given.iter().find(|(_, given)| *given) {
        Some((what, _)) => Err(wrong(format!("{scope} has no {what} of its own: {why}"))),
        None => Ok(()),
    }
}

fn of_all(
    config: &mut ResyncConfig,
    request: &ResyncSet,
    now_unix_seconds: u64,
    said: &mut Vec<String>,
) -> Result<(), CallFailed> {
    if request.weight.is_some() {
        return Err(wrong("a weight is a class's: give --class with it"));
    }
    if let Some(name) = &request.profile {
        config.profile = profile(name, &mut config.limits, said)?;
    }
    limits(&mut config.limits, request, "all classes", said)?;
    target(&mut config.limits.target, request, said)?;
    if let Some(zone) = &request.time_zone {
        let name = if is_none(zone) || zone == "UTC" { "" } else { zone.trim() };
        schedule::zone(name)?;
        config.time_zone = name.to_owned();
        said.push(format!("time zone {}", if name.is_empty() { "UTC" } else { name }));
    }
    if let Some(texts) = &request.windows {
        windows(config, texts, said)?;
    }
    match request.deadline.as_deref() {
        Some(text) if is_none(text) => {
            config.deadline_unix_seconds = None;
            said.push("no deadline".to_owned());
        }
        Some(text) => {
            let at = schedule::parse_deadline(text, &config.time_zone, now_unix_seconds)?;
            config.deadline_unix_seconds = Some(at);
            said.push(format!("deadline {}", schedule::show_time(at, &config.time_zone)));
        }
        None => {}
    }
    match request.deadline_wins.as_deref() {
        Some("deadline") => config.deadline_wins = DeadlineWins::Deadline,
        Some("latency") => config.deadline_wins = DeadlineWins::Latency,
        Some(text) if is_none(text) => config.deadline_wins = DeadlineWins::default(),
        Some(other) => return Err(wrong(format!("{other:?} can't win over a deadline: write deadline or latency"))),
        None => {}
    }
    if let Some(text) = &request.deadline_wins {
        said.push(format!("what wins: {text}"));
    }
    if let Some(paused) = request.paused {
        config.paused = paused;
        said.push(pause_word(paused));
    }
    Ok(())
}

fn windows(config: &mut ResyncConfig, texts: &[String], said: &mut Vec<String>) -> Result<(), CallFailed> {
    if texts.len() == 1 && is_none(&texts[0]) {
        config.windows.clear();
    } else {
        let parsed: Vec<_> = texts.iter().map(|t| schedule::parse_window(t)).collect::<Result<_, _>>()?;
        schedule::check_windows(&parsed)?;
        config.windows = parsed;
    }
    if config.windows.is_empty() {
        said.push("no window".to_owned());
    }
    said.extend(config.windows.iter().map(|w| format!("window {w}")));
    Ok(())
}

fn of_class(
    config: &mut ResyncConfig,
    name: &str,
    request: &ResyncSet,
    said: &mut Vec<String>,
) -> Result<(), CallFailed> {
    let Some(class) = ResyncClass::ALL.into_iter().find(|c| c.name() == name) else {
        let all = ResyncClass::ALL.map(ResyncClass::name).join(", ");
        return Err(wrong(format!("{name:?} is no class of resync: write one of {all}")));
    };
    let why = "it holds for all classes; a class has a cap, a floor and a weight, and can be paused";
    only("a class", why, &[("profile", request.profile.is_some()), ("latency target", has_target(request))])?;
    only("a class", why, &has_time(request))?;
    let own = config.classes.entry(class).or_default();
    let mut both = Limits {
        cap_bytes_per_sec: own.cap_bytes_per_sec,
        floor_bytes_per_sec: own.floor_bytes_per_sec,
        ..Limits::default()
    };
    limits(&mut both, request, &format!("class {name}"), said)?;
    (own.cap_bytes_per_sec, own.floor_bytes_per_sec) = (both.cap_bytes_per_sec, both.floor_bytes_per_sec);
    if let Some(knob) = &request.weight {
        own.weight = weight(knob, name)?;
        said.push(own.weight.map_or_else(|| "weight as always".to_owned(), |w| format!("weight {w}")));
    }
    if let Some(paused) = request.paused {
        own.paused = paused;
        said.push(pause_word(paused));
    }
    config.classes.retain(|_, own| *own != Default::default());
    Ok(())
}

fn weight(knob: &Knob, class: &str) -> Result<Option<u32>, CallFailed> {
    let number = match knob {
        Knob::Text(text) if is_none(text) => return Ok(None),
        Knob::Text(text) => text.trim().parse().ok(),
        Knob::Number(n) => Some(*n),
    };
    match number {
        Some(n) if n.fract() == 0.0 && (1.0..=1000.0).contains(&n) => Ok(Some(n as u32)),
        _ => {
            let given = match knob {
                Knob::Text(text) => text.clone(),
                Knob::Number(n) => n.to_string(),
            };
            Err(wrong(format!("the weight of class {class} can't be {given}: give a whole number from 1 to 1000")))
        }
    }
}

fn of_node(
    config: &mut ResyncConfig,
    map: &ClusterMap,
    name: &str,
    request: &ResyncSet,
    said: &mut Vec<String>,
) -> Result<(), CallFailed> {
    let in_use = map.nodes.values().filter(|n| n.admin_state != NodeAdminState::Removed);
    let found = in_use.filter(|n| n.name == name || n.id.to_string() == name).max_by_key(|n| n.name == name);
    let id = found.ok_or(Refusal::Unknown { what: "node", name: name.to_owned() })?.id;
    let why =
        "it holds for the whole cluster; a node has a profile, a cap, a floor and a latency target, and can be paused";
    only("a node", why, &[("weight", request.weight.is_some())])?;
    only("a node", why, &has_time(request))?;
    let own = config.nodes.entry(id).or_default();
    if let Some(name) = &request.profile {
        own.profile = profile(name, &mut own.limits, said)?;
    }
    limits(&mut own.limits, request, &format!("node {name}"), said)?;
    target(&mut own.limits.target, request, said)?;
    if let Some(paused) = request.paused {
        own.paused = paused;
        said.push(pause_word(paused));
    }
    config.nodes.retain(|_, own| *own != Default::default());
    Ok(())
}

fn of_pool(
    config: &mut ResyncConfig,
    map: &ClusterMap,
    name: &str,
    request: &ResyncSet,
    said: &mut Vec<String>,
) -> Result<(), CallFailed> {
    let found = map.pools.values().find(|p| p.name == name);
    let id = found.ok_or(Refusal::Unknown { what: "pool", name: name.to_owned() })?.id;
    let why = "rates hold per disk, and a disk serves many pools; a pool has a latency target and can be paused";
    only("a pool", why, &has_rates(request))?;
    only("a pool", why, &has_time(request))?;
    own_target(&mut config.pools, id, request, said)?;
    match request.paused {
        Some(true) => drop(config.paused_pools.insert(id)),
        Some(false) => drop(config.paused_pools.remove(&id)),
        None => {}
    }
    said.extend(request.paused.map(pause_word));
    Ok(())
}

fn of_volume(
    config: &mut ResyncConfig,
    map: &ClusterMap,
    name: &str,
    request: &ResyncSet,
    said: &mut Vec<String>,
) -> Result<(), CallFailed> {
    let found = map.volumes.values().find(|v| v.name == name);
    let id = found.ok_or(Refusal::Unknown { what: "volume", name: name.to_owned() })?.id;
    let why = "rates hold per disk, and copies are made of whole placement groups; a volume has a latency target, and its \
               priority says what is copied first";
    only("a volume", why, &has_rates(request))?;
    only("a volume", why, &[("pause", request.paused.is_some())])?;
    only("a volume", why, &has_time(request))?;
    own_target(&mut config.volumes, id, request, said)
}

fn own_target<K: Ord>(
    targets: &mut BTreeMap<K, Target>,
    of: K,
    request: &ResyncSet,
    said: &mut Vec<String>,
) -> Result<(), CallFailed> {
    target(targets.entry(of).or_default(), request, said)?;
    targets.retain(|_, own| !own.is_empty());
    Ok(())
}

fn has_target(request: &ResyncSet) -> bool {
    request.target_inflation.is_some() || request.target_p99_us.is_some()
}

fn has_rates(request: &ResyncSet) -> [(&'static str, bool); 4] {
    [
        ("profile", request.profile.is_some()),
        ("cap", request.cap.is_some()),
        ("floor", request.floor.is_some()),
        ("weight", request.weight.is_some()),
    ]
}

fn has_time(request: &ResyncSet) -> [(&'static str, bool); 3] {
    [
        ("window", request.windows.is_some()),
        ("time zone", request.time_zone.is_some()),
        ("deadline", request.deadline.is_some() || request.deadline_wins.is_some()),
    ]
}

fn pause_word(paused: bool) -> String {
    if paused { "paused" } else { "running" }.to_owned()
}

/// A profile stands for floor and target: single values of these that were set before go.
fn profile(name: &str, limits: &mut Limits, said: &mut Vec<String>) -> Result<Option<Profile>, CallFailed> {
    let found = Profile::ALL.into_iter().find(|p| p.name() == name);
    if found.is_none() && !is_none(name) {
        let all = Profile::ALL.map(Profile::name).join(", ");
        return Err(wrong(format!("{name:?} is no profile: write one of {all}, or default")));
    }
    (limits.floor_bytes_per_sec, limits.target) = (None, Target::default());
    said.push(format!("profile {name}"));
    Ok(found)
}

fn limits(limits: &mut Limits, request: &ResyncSet, of: &str, said: &mut Vec<String>) -> Result<(), CallFailed> {
    let pairs = [
        ("cap", &request.cap, &mut limits.cap_bytes_per_sec),
        ("floor", &request.floor, &mut limits.floor_bytes_per_sec),
    ];
    for (what, given, kept) in pairs {
        let Some(text) = given else { continue };
        *kept = rate(what, of, text)?;
        said.push(kept.map_or_else(|| format!("{what} none"), |rate| format!("{what} {}/s", HumanBytes(rate))));
    }
    Ok(())
}

fn rate(what: &'static str, of: &str, text: &str) -> Result<Option<u64>, CallFailed> {
    if is_none(text) {
        return Ok(None);
    }
    let rate = parse_bytes_per_sec(text).map_err(|e| wrong(format!("{what}: {e}")))?;
    if rate < RATE_MIN {
        return Err(wrong(BadSetting::RateTooLow { what, of: of.to_owned(), rate }.to_string()));
    }
    Ok(Some(rate))
}

fn target(target: &mut Target, request: &ResyncSet, said: &mut Vec<String>) -> Result<(), CallFailed> {
    if let Some(knob) = &request.target_inflation {
        target.inflation =
            match knob {
                Knob::Text(text) if is_none(text) => None,
                Knob::Text(text) => {
                    let number = text.trim().parse();
                    Some(number.map_err(|_| {
                        wrong(format!("{text:?} is no target inflation: write a number, as in 2 or 1.5"))
                    })?)
                }
                Knob::Number(n) => Some(*n),
            };
        said.push(target.inflation.map_or_else(|| "no target inflation".to_owned(), |k| format!("target {k} × quiet")));
    }
    match request.target_p99_us {
        Some(0) => target.p99_us = None,
        Some(us) => {
            // The one that was given last holds.
            target.p99_us = Some(us);
            if request.target_inflation.is_none() {
                target.inflation = None;
            }
        }
        // An explicit p99 goes first: a multiple that is given now would be without effect beside it.
        None if target.inflation.is_some() && request.target_inflation.is_some() => target.p99_us = None,
        None => {}
    }
    if let Some(us) = request.target_p99_us {
        said.push(if us == 0 { "no target p99".to_owned() } else { format!("target p99 {us} µs") });
    }
    Ok(())
}

/// What a volume's guest may do after a request; what is absent stays. A burst goes with its limit.
///
/// # Errors
/// A value that can't be read, or is out of range.
pub(super) fn volume_qos(old: VolumeQos, request: &VolumeQosSet) -> Result<VolumeQos, CallFailed> {
    let operations = |name: &str, given: &Option<Knob>, old: Option<u64>| {
        let bad = |given: &dyn std::fmt::Display| {
            wrong(format!("the {name} can't be {given}: give a whole number of operations, or none"))
        };
        match given {
            None => Ok(old),
            Some(Knob::Text(text)) if is_none(text) => Ok(None),
            Some(Knob::Text(text)) => text.trim().parse().map(Some).map_err(|_| bad(text)),
            Some(Knob::Number(n)) if n.fract() == 0.0 && (0.0..1e15).contains(n) => Ok(Some(*n as u64)),
            Some(Knob::Number(n)) => Err(bad(n)),
        }
    };
    let bytes =
        |name: &str, given: &Option<String>, old: Option<u64>, read: fn(&str) -> Result<u64, ParseUnit>| match given
            .as_deref()
        {
            None => Ok(old),
            Some(text) if is_none(text) => Ok(None),
            Some(text) => read(text).map(Some).map_err(|e| wrong(format!("{name}: {e}"))),
        };
    let iops = operations("IOPS limit", &request.iops_limit, old.iops)?;
    let bytes_per_sec = bytes("bandwidth limit", &request.bandwidth_limit, old.bytes_per_sec, parse_bytes_per_sec)?;
    let qos = VolumeQos {
        iops,
        iops_burst: operations("IOPS burst", &request.iops_burst, old.iops_burst.filter(|_| iops.is_some()))?,
        bytes_per_sec,
        bytes_burst: bytes(
            "bandwidth burst",
            &request.bandwidth_burst,
            old.bytes_burst.filter(|_| bytes_per_sec.is_some()),
            parse_bytes,
        )?,
        share: request.share.unwrap_or(old.share),
    };
    qos.check()?;
    Ok(qos)
}

#[cfg(test)]
#[path = "resync_tests.rs"]
mod tests;
