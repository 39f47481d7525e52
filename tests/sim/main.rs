//! A whole cluster in one thread from one seed: the production replicas, routers and configuration manager under simulated
//! disks, clocks, network and crashes, with checkers for what must always hold, and canaries that prove that they would see
//! it.
//!
//! `cargo test --release --test sim` runs a few hundred seeds and all canaries. `-- --seeds A..B` runs those seeds,
//! `-- --seed N --trace` replays one with everything that happens.

mod canary;
mod clients;
mod control;
mod coord;
mod disk;
mod faults;
mod finish;
mod gateway;
mod leases;
mod model;
mod network;
mod replicas;
mod rng;
mod show;
mod world;

use std::panic::AssertUnwindSafe;
use std::process::ExitCode;

use canary::{Canary, ELSEWHERE};
use world::{Coverage, Options, World};

/// Seeds of an ordinary run.
const SEEDS: u64 = 300;
/// A canary must be caught within so many seeds.
const CANARY_SEEDS: u64 = 4000;
/// One that needs a rare coincidence is given up after so many.
const RARE_SEEDS: u64 = 500;

fn run(options: &Options, coverage: &mut Coverage) -> Result<(), String> {
    let result = std::panic::catch_unwind(AssertUnwindSafe(|| {
        let mut world = World::new(options);
        let result = world.run();
        (result, world.coverage)
    }));
    match result {
        Ok((result, seen)) => {
            for (what, n) in seen.0 {
                coverage.add(what, n);
            }
            result
        }
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
            Err(format!("panic: {} (I9)", text.unwrap_or_default()))
        }
    }
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str| args.iter().position(|a| a == name).and_then(|i| args.get(i + 1)).cloned();
    let trace = args.iter().any(|a| a == "--trace");
    let mut seeds = 0..SEEDS;
    let mut canaries = !trace;
    if let Some(n) = value("--seed").and_then(|v| v.parse().ok()) {
        (seeds, canaries) = (n..n + 1, false);
    }
    if let Some((a, b)) = value("--seeds").and_then(|v| {
        let (a, b) = v.split_once("..")?;
        Some((a.parse().ok()?, b.parse().ok()?))
    }) {
        (seeds, canaries) = (a..b, false);
    }
    let only = value("--canary");
    if !args.iter().any(|a| a == "--trace") {
        std::panic::set_hook(Box::new(|_| {}));
    }
    let started = std::time::Instant::now();
    let (mut passed, mut failed) = (0u64, 0u64);
    let mut coverage = Coverage::default();
    for seed in if only.is_some() { 0..0 } else { seeds } {
        match run(&Options { seed, canary: None, trace }, &mut coverage) {
            Ok(()) => passed += 1,
            Err(text) => {
                failed += 1;
                println!("seed {seed}: {text}");
                println!("  replay: cargo test --release --test sim -- --seed {seed} --trace");
            }
        }
    }
    println!("seen: {}", coverage.0.iter().map(|(w, n)| format!("{w} {n}")).collect::<Vec<_>>().join(", "));
    if canaries || only.is_some() {
        let (caught, missed) = run_canaries(only.as_deref());
        (passed, failed) = (passed + caught, failed + missed);
    }
    println!("{passed} passed, {failed} failed in {:.1} s", started.elapsed().as_secs_f64());
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Breaks one rule after the other, and counts those that are caught and those that are not.
fn run_canaries(only: Option<&str>) -> (u64, u64) {
    let (mut passed, mut failed) = (0, 0);
    for (canary, rule, what) in Canary::ALL.iter().copied() {
        if only.is_some_and(|o| o != format!("{canary:?}")) {
            continue;
        }
        let seeds = if canary.rare().is_some() { RARE_SEEDS } else { CANARY_SEEDS };
        let caught = (0..seeds).find_map(|seed| {
            let result = run(&Options { seed, canary: Some(canary), trace: false }, &mut Coverage::default());
            result.err().map(|text| (seed, text))
        });
        match (caught, canary.rare()) {
            (Some((seed, text)), _) => {
                passed += 1;
                let text: String = text.chars().take(90).collect();
                println!("canary {rule} {canary:?} ({what}): caught after {} seeds: {text}", seed + 1);
            }
            (None, Some(why)) => {
                println!("canary {rule} {canary:?} ({what}): not caught in {seeds} seeds; it needs {why}");
            }
            (None, None) => {
                failed += 1;
                println!("canary {rule} {canary:?} ({what}): NOT caught in {seeds} seeds");
            }
        }
    }
    if only.is_none() {
        for (rule, why, proof) in ELSEWHERE {
            println!("{rule}: no canary here, as {why}; see {proof}");
        }
    }
    (passed, failed)
}
