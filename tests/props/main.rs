//! Property tests: random inputs against invariants and slow, simple oracles.
//!
//! A failing case prints its input, shrunk. Each run takes the same cases; `PROPTEST_RNG_SEED=N` takes others, and
//! `PROPTEST_CASES=N` sets how many.

mod flow;
mod placement;
mod placement_oracle;
mod simulate;
mod topologies;

use proptest::test_runner::{Config, RngSeed};

/// `cases` cases from a fixed seed, unless the environment says otherwise.
fn config(cases: u32) -> Config {
    let given = |name: &str| std::env::var_os(name).is_some();
    let mut config = Config { failure_persistence: None, ..Config::default() };
    if !given("PROPTEST_CASES") {
        config.cases = cases;
    }
    if !given("PROPTEST_RNG_SEED") {
        config.rng_seed = RngSeed::Fixed(1);
    }
    config
}
