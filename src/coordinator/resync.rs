//! What operators say about resync's limits: from a request to the settings, and back to words.
//!
//! Invariant: a request that is wrong in one thing changes nothing (the caller applies all of it, or none).

use std::collections::BTreeMap;

use crate::api::calls::CallFailed;
use crate::api::types::ResyncSet;
use crate::core::cluster::{Profile, ResyncClass, ResyncSettings};
use crate::core::units::parse_bytes_per_sec;

/// Changes the settings; gives a sentence for the event.
///
/// # Errors
/// A value that can't be read, or that doesn't go with `class`.
pub(super) fn change(r: &mut ResyncSettings, request: &ResyncSet) -> Result<String, CallFailed> {
    if let Some(name) = &request.class {
        return change_class(r, name, request);
    }
    if request.weight.is_some() {
        return Err(CallFailed::new(400, "a weight is a class's: give --class with it"));
    }
    match request.cap.as_deref() {
        Some("none") => r.cap_bytes_per_sec = None,
        Some(text) => r.cap_bytes_per_sec = Some(rate("cap", text)?),
        None => {}
    }
    // After the cap, which bounds its floor.
    if let Some(name) = &request.profile {
        r.set_profile(profile(name)?);
    }
    match request.floor.as_deref() {
        Some(text) => r.floor_bytes_per_sec = rate("floor", text)?,
        // A cap below the floor that was there means both.
        None => r.floor_bytes_per_sec = r.floor_bytes_per_sec.min(r.cap_bytes_per_sec.unwrap_or(u64::MAX)),
    }
    r.target_inflation = request.target_inflation.unwrap_or(r.target_inflation);
    match request.target_p99_us {
        Some(0) => r.target_p99_us = None,
        Some(us) => r.target_p99_us = Some(us),
        None => {}
    }
    r.paused = request.paused.unwrap_or(r.paused);
    Ok(format!(
        "Resync: profile {}, cap {}, floor {} bytes/s, target {}, {}.",
        r.profile.name(),
        r.cap_bytes_per_sec.map_or_else(|| "none".to_owned(), |c| format!("{c} bytes/s")),
        r.floor_bytes_per_sec,
        r.target_p99_us.map_or_else(|| format!("{} × quiet", r.target_inflation), |us| format!("p99 of {us} µs")),
        if r.paused { "paused" } else { "running" }
    ))
}

fn change_class(r: &mut ResyncSettings, name: &str, request: &ResyncSet) -> Result<String, CallFailed> {
    let Some(class) = ResyncClass::ALL.into_iter().find(|c| c.name() == name) else {
        let all = ResyncClass::ALL.map(ResyncClass::name).join(", ");
        return Err(CallFailed::new(400, format!("{name:?} is no class of resync: write one of {all}")));
    };
    if request.profile.is_some() || request.target_inflation.is_some() || request.target_p99_us.is_some() {
        let text = "profile and latency target hold for all classes: a class has a cap, a floor and a weight";
        return Err(CallFailed::new(400, text));
    }
    let says_nothing = request.cap.is_none() && request.floor.is_none() && request.weight.is_none();
    if says_nothing && request.paused.is_none() {
        let text = format!("nothing was asked for class {name}: give a cap, a floor or a weight with it");
        return Err(CallFailed::new(400, text));
    }
    let own = r.classes.entry(class).or_default();
    match request.cap.as_deref() {
        Some("none") => own.cap_bytes_per_sec = None,
        Some(text) => own.cap_bytes_per_sec = Some(rate("cap", text)?),
        None => {}
    }
    match request.floor.as_deref() {
        Some("none") => own.floor_bytes_per_sec = None,
        Some(text) => own.floor_bytes_per_sec = Some(rate("floor", text)?),
        None => {}
    }
    own.weight = request.weight.or(own.weight);
    own.paused = request.paused.unwrap_or(own.paused);
    let words = |rate: Option<u64>| rate.map_or_else(|| "none".to_owned(), |rate| format!("{rate} bytes/s"));
    let said = format!(
        "Resync of class {name}: cap {}, floor {}, weight {}, {}.",
        words(own.cap_bytes_per_sec),
        words(own.floor_bytes_per_sec),
        own.weight.map_or_else(|| "as always".to_owned(), |w| w.to_string()),
        if own.paused { "paused" } else { "running" }
    );
    r.classes.retain(|_, own| *own != Default::default());
    Ok(said)
}

fn profile(name: &str) -> Result<Profile, CallFailed> {
    Profile::ALL.into_iter().find(|p| p.name() == name).ok_or_else(|| {
        CallFailed::new(400, format!("{name:?} is no profile: write {}", Profile::ALL.map(Profile::name).join(", ")))
    })
}

fn rate(what: &str, text: &str) -> Result<u64, CallFailed> {
    parse_bytes_per_sec(text).map_err(|e| CallFailed::new(400, format!("{what}: {e}")))
}

/// Where floor and target come from.
pub(super) fn origins(r: &ResyncSettings) -> BTreeMap<String, String> {
    let origin = |own: bool| (if own { "override" } else { "profile" }).to_owned();
    let target = r.target_p99_us.is_some() || r.target_inflation != r.profile.target_inflation();
    BTreeMap::from([
        ("floor".to_owned(), origin(r.floor_bytes_per_sec != r.profile.floor_bytes_per_sec())),
        ("target".to_owned(), origin(target)),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(class: Option<&str>, cap: Option<&str>, floor: Option<&str>) -> ResyncSet {
        let own = |text: Option<&str>| text.map(str::to_owned);
        ResyncSet { class: own(class), cap: own(cap), floor: own(floor), ..ResyncSet::default() }
    }

    #[test]
    fn a_profile_sets_floor_and_target_and_what_comes_later_overrides() {
        let mut r = ResyncSettings::default();
        assert_eq!(origins(&r)["floor"], "profile");
        change(&mut r, &ResyncSet { target_p99_us: Some(5000), ..ResyncSet::default() }).unwrap();
        assert_eq!((r.target_p99_us, origins(&r)["target"].as_str()), (Some(5000), "override"));
        change(&mut r, &ResyncSet { profile: Some("recovery".into()), ..ResyncSet::default() }).unwrap();
        assert_eq!((r.target_p99_us, r.target_inflation, r.floor_bytes_per_sec), (None, 5.0, 64 << 20));
        change(&mut r, &set(None, None, Some("1MiB/s"))).unwrap();
        assert_eq!((r.floor_bytes_per_sec, origins(&r)["floor"].as_str()), (1 << 20, "override"));
        // The cap wins over a profile's floor.
        change(&mut r, &set(None, Some("4MiB/s"), None)).unwrap();
        change(&mut r, &ResyncSet { profile: Some("recovery".into()), ..ResyncSet::default() }).unwrap();
        assert_eq!(r.floor_bytes_per_sec, 4 << 20);
    }

    #[test]
    fn a_class_has_limits_of_its_own_until_they_are_taken_away() {
        let mut r = ResyncSettings::default();
        let request = ResyncSet { weight: Some(4), ..set(Some("repair"), Some("400MiB/s"), Some("20MiB/s")) };
        change(&mut r, &request).unwrap();
        let own = r.classes[&ResyncClass::Repair];
        assert_eq!(
            (own.cap_bytes_per_sec, own.floor_bytes_per_sec, own.weight),
            (Some(400 << 20), Some(20 << 20), Some(4))
        );
        change(&mut r, &ResyncSet { paused: Some(true), ..set(Some("scrub"), None, None) }).unwrap();
        assert!(r.is_paused(ResyncClass::Scrub) && !r.is_paused(ResyncClass::Repair));
        change(&mut r, &ResyncSet { paused: Some(false), ..set(Some("scrub"), None, None) }).unwrap();
        assert!(!r.classes.contains_key(&ResyncClass::Scrub), "nothing of its own is left");
        change(&mut r, &set(Some("repair"), Some("none"), Some("none"))).unwrap();
        assert_eq!(r.classes[&ResyncClass::Repair].cap_bytes_per_sec, None);
    }

    #[test]
    fn mistakes_are_named() {
        let bad = |request: ResyncSet| change(&mut ResyncSettings::default(), &request).unwrap_err().message;
        assert!(bad(set(Some("repairs"), None, None)).contains("repair-critical, repair, drain, rebalance, scrub"));
        assert!(
            bad(ResyncSet { profile: Some("fast".into()), ..ResyncSet::default() }).contains("foreground, balanced")
        );
        assert!(bad(set(None, Some("18446744073709551616"), None)).contains("cap"));
        assert!(bad(set(None, None, Some("-3MiB/s"))).contains("floor"));
        assert!(bad(set(Some("repair"), Some("5 parsecs"), None)).contains("cap"));
        assert!(bad(ResyncSet { weight: Some(4), ..ResyncSet::default() }).contains("--class"));
        assert!(bad(set(Some("repair"), None, None)).contains("nothing was asked"));
        let both = ResyncSet { target_inflation: Some(2.0), ..set(Some("drain"), None, None) };
        assert!(bad(both).contains("hold for all classes"));
    }
}
