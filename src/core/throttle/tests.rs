//! Unit tests of the law; whole plants are in `tests/throttle`.

use super::ground::GROUND_TICKS;
use super::*;

const MIB: u64 = 1 << 20;

fn sample(operations: u32, latency_us: u64, resync_bytes: u64) -> Sample {
    let mut latencies = Latencies::default();
    latencies.add_bucket(Kind::SmallRead, Histogram::bucket(latency_us), operations);
    Sample { elapsed: Duration::from_millis(100), latencies, resync_bytes, resync_held_back: true, ..Sample::default() }
}

/// A busy disk whose baseline of about 1 ms is known.
fn busy(policy: Policy) -> Controller {
    let mut c = Controller::new(policy);
    for _ in 0..20 {
        c.handle_sample(&sample(200, 1_000, 0));
    }
    assert!(c.handle_sample(&sample(200, 1_000, 0)).baseline_p99_us.is_some_and(|us| (900..1150).contains(&us)));
    c
}

fn usual_p99s(quiet_p99_us: [u64; KINDS]) -> Findings {
    Findings { quiet_p99_us, ..Findings::default() }
}

fn step(c: &mut Controller, latency_us: u64) -> Decision {
    let rate = c.decision().rate_bytes_per_sec.unwrap_or(1 << 30);
    c.handle_sample(&sample(200, latency_us, rate / 10))
}

#[test]
fn idle_is_unlimited_and_capped_only_by_the_cap() {
    let mut c = Controller::new(Policy::default());
    let d = c.handle_sample(&sample(0, 0, 1 << 30));
    assert_eq!((d.rate_bytes_per_sec, d.limited_by), (None, LimitedBy::Nothing));
    let d = c.set_policy(Policy { cap_bytes_per_sec: Some(20 * MIB), ..Policy::default() });
    assert_eq!((d.rate_bytes_per_sec, d.limited_by), (Some(20 * MIB), LimitedBy::Cap));
    let d = c.set_policy(Policy { paused: true, ..Policy::default() });
    assert_eq!((d.rate_bytes_per_sec, d.limited_by), (Some(0), LimitedBy::Paused));
}

#[test]
fn below_the_target_the_rate_rises_and_above_it_falls() {
    let mut c = busy(Policy::default());
    let before = step(&mut c, 1_000).rate_bytes_per_sec;
    let after = (0..20).map(|_| step(&mut c, 1_000)).last().and_then(|d| d.rate_bytes_per_sec);
    assert!(after > before.map(|b| b * 2), "{before:?} {after:?}");
    let fallen = (0..12).map(|_| step(&mut c, 4_000)).last().and_then(|d| d.rate_bytes_per_sec);
    assert!(fallen < after.map(|a| a / 4), "{after:?} {fallen:?}");
}

#[test]
fn the_floor_holds_when_the_target_is_missed_and_the_cap_wins_over_it() {
    let mut c = busy(Policy::default());
    for _ in 0..40 {
        let d = step(&mut c, 500_000);
        assert!(d.rate_bytes_per_sec.is_some_and(|r| r >= 8 * MIB), "{d:?}");
    }
    assert_eq!(c.decision().limited_by, LimitedBy::Floor);
    let d = c.set_policy(Policy { cap_bytes_per_sec: Some(MIB), ..Policy::default() });
    assert_eq!(d.rate_bytes_per_sec, Some(MIB));
}

#[test]
fn the_floor_rises_with_one_copy_left() {
    let mut c = busy(Policy::default());
    let mut critical = sample(200, 500_000, MIB);
    critical.wanted[0] = true;
    let d = (0..20).map(|_| c.handle_sample(&critical)).last();
    assert!(d.and_then(|d| d.rate_bytes_per_sec).is_some_and(|r| r >= 32 * MIB), "{d:?}");
}

#[test]
fn an_explicit_target_needs_no_baseline() {
    let mut c = Controller::new(Policy { target_p99_us: Some(5_000), ..Policy::default() });
    let d = step(&mut c, 1_000);
    assert_eq!((d.target_p99_us, d.baseline_p99_us), (Some(5_000), None));
    let d = (0..30).map(|_| step(&mut c, 1_000)).last();
    assert!(d.and_then(|d| d.rate_bytes_per_sec).is_some_and(|r| r > 8 * MIB), "{d:?}");
}

/// What the demo showed: a new disk whose parts of writes took 300 µs in place of 100 kept its copies at the floor.
#[test]
fn a_members_part_of_a_write_may_grow_as_long_as_guests_do_not_feel_it() {
    let apply = |latency_us: u64, resync_bytes: u64| {
        let mut latencies = Latencies::default();
        latencies.add_bucket(Kind::Apply, Histogram::bucket(latency_us), 200);
        Sample { latencies, ..sample(0, 0, resync_bytes) }
    };
    let mut c = Controller::new(Policy::default());
    for _ in 0..20 {
        c.handle_sample(&apply(100, 0));
    }
    let step = |c: &mut Controller, us: u64| {
        let rate = c.decision().rate_bytes_per_sec.unwrap_or(1 << 30);
        c.handle_sample(&apply(us, rate / 10)).rate_bytes_per_sec
    };
    let quick = (0..30).map(|_| step(&mut c, 300)).last().flatten();
    assert!(quick.is_some_and(|rate| rate > 40 * MIB), "{quick:?}");
    let slow = (0..30).map(|_| step(&mut c, 20_000)).last().flatten();
    assert!(slow.is_some_and(|slow| quick.is_some_and(|quick| slow < quick / 10)), "a disk that is overrun: {slow:?}");
}

#[test]
fn an_unused_allowance_is_not_raised() {
    let mut c = busy(Policy::default());
    let first = step(&mut c, 1_000).rate_bytes_per_sec;
    let mut slow = sample(200, 1_000, 1_000);
    slow.resync_held_back = false;
    let last = (0..50).map(|_| c.handle_sample(&slow)).last().and_then(|d| d.rate_bytes_per_sec);
    assert!(last <= first, "{first:?} {last:?}");
}

#[test]
fn resync_that_loses_ground_is_not_decreased_further() {
    let mut c = busy(Policy::default());
    for _ in 0..20 {
        step(&mut c, 1_000);
    }
    let mut losing = sample(200, 10_000, MIB);
    losing.foreground_write_bytes = 5 * MIB;
    let mut rates = Vec::new();
    for i in 0..60 {
        losing.backlog_bytes = (1 << 30) + i * MIB;
        rates.push(c.handle_sample(&losing).rate_bytes_per_sec);
    }
    assert!(c.decision().losing_ground);
    assert_eq!(rates[40], rates[59]);
}

#[test]
fn absurd_input_gives_a_decision() {
    for policy in [
        Policy { floor_bytes_per_sec: u64::MAX, cap_bytes_per_sec: Some(0), ..Policy::default() },
        Policy { target_inflation: f64::NAN, ..Policy::default() },
        Policy { target_inflation: -1.0, target_p99_us: Some(0), ..Policy::default() },
        Policy { target_p99_us: Some(u64::MAX), cap_bytes_per_sec: Some(1 << 62), ..Policy::default() },
    ] {
        let mut c = Controller::new(policy);
        for (elapsed, latency, bytes) in [(0, 0, u64::MAX), (1, u64::MAX, 0), (u64::MAX, 1, 1)] {
            let mut s = sample(7, latency, bytes);
            s.elapsed = Duration::from_nanos(elapsed);
            s.backlog_bytes = bytes;
            s.foreground_write_bytes = bytes;
            for _ in 0..30 {
                let d = c.handle_sample(&s);
                assert!(d.rate_bytes_per_sec <= Some(policy.cap_bytes_per_sec.unwrap_or(u64::MAX)), "{d:?}");
            }
        }
    }
}

/// What a drain showed: one disk stayed at a third of the others' rate for ten seconds after they had stopped copying, as it had
/// been overloaded a little when all of them copied.
#[test]
fn an_old_overload_holds_nothing_up_while_guests_have_most_of_their_allowance_left() {
    let mut c = busy(Policy::default());
    for _ in 0..30 {
        step(&mut c, 1_000);
    }
    let rate = |c: &mut Controller| c.decision().rate_bytes_per_sec.unwrap_or(0);
    let knee = rate(&mut c);
    // One in sixteen over the target, until it is taken for an overload.
    while rate(&mut c) > knee * 9 / 10 {
        let mut bad = sample(188, 1_000, rate(&mut c) / 10);
        bad.latencies.add_bucket(Kind::SmallRead, Histogram::bucket(4_000), 12);
        c.handle_sample(&bad);
    }
    let ticks =
        (0..300).take_while(|_| step(&mut c, 1_000).rate_bytes_per_sec.is_some_and(|r| r < knee * 6 / 5)).count();
    // The fine loop alone takes 70 for the last third.
    assert!(ticks < 60, "{ticks}");
}

#[test]
fn guests_with_a_fixed_queue_keep_four_fifths_of_their_throughput() {
    // Eight requests under way; beside a copy of 100 MiB/s each takes twice as long, which their target of p99 allows.
    let tick = |c: &mut Controller, rate: u64| {
        let latency_us = 500.0 * (1.0 + rate as f64 / (100 * MIB) as f64);
        let operations = (8.0 * 100_000.0 / latency_us) as u32;
        let decision = c.handle_sample(&sample(operations, latency_us as u64, rate / 10));
        (f64::from(operations), decision.rate_bytes_per_sec.unwrap_or(100 * MIB))
    };
    let run = |policy: Policy| {
        let mut c = Controller::new(policy);
        let alone: f64 = (0..30).map(|_| tick(&mut c, 0).0).sum::<f64>() / 30.0;
        let mut rate = 100 * MIB;
        let mut beside = Vec::new();
        for _ in 0..600 {
            let (operations, next) = tick(&mut c, rate);
            beside.push((operations / alone, rate));
            rate = next;
        }
        let lasting = &beside[300..];
        let mean = |of: fn(&(f64, u64)) -> f64| lasting.iter().map(of).sum::<f64>() / lasting.len() as f64;
        (mean(|t| t.0), mean(|t| t.1 as f64 / MIB as f64))
    };
    let (kept, rate) = run(Policy::default());
    assert!((0.78..0.90).contains(&kept) && rate > 12.0, "{kept} at {rate} MiB/s");
    // Who asks for speed gets it, and who sets a latency is held to that alone.
    let (fast, rate_of_fast) = run(Policy { target_inflation: 5.0, ..Policy::default() });
    assert!(fast < 0.65 && rate_of_fast > 2.0 * rate, "{fast} at {rate_of_fast} MiB/s");
    let (explicit, _) = run(Policy { target_p99_us: Some(1_000), ..Policy::default() });
    assert!(explicit < 0.70, "{explicit}");
}

#[test]
fn resync_that_makes_less_than_its_floor_unhindered_is_noticed() {
    let mut c = busy(Policy::default());
    let mut second = |bytes: u64, held_back: bool, wanted: bool, backlog_bytes: u64| {
        let mut s = sample(200, 1_000, bytes / 10);
        (s.resync_held_back, s.wanted[1], s.backlog_bytes) = (held_back, wanted, backlog_bytes);
        for _ in 0..2 * GROUND_TICKS {
            c.handle_sample(&s);
        }
        c.decision().below_floor
    };
    assert!(second(MIB, false, true, 0));
    assert!(!second(8 * MIB, false, true, 0));
    assert!(!second(MIB, true, true, 0), "its gate holds it back");
    assert!(!second(0, false, false, 0), "there is no work");
    assert!(second(0, false, false, 1 << 30), "there is, and none of it is done");
}

#[test]
fn a_low_baseline_is_held_to_the_median_of_its_class() {
    let mut c = busy(Policy::default());
    let own = c.findings().quiet_p99_us;
    assert!((900..1150).contains(&own[Kind::SmallRead as usize]) && own[Kind::LargeRead as usize] == 0, "{own:?}");
    c.set_usual(usual_p99s([1_300; KINDS]));
    let d = step(&mut c, 1_000);
    assert_eq!((d.baseline_p99_us, d.target_p99_us), (Some(1_300), Some(2_600)));
    assert_eq!(c.findings().quiet_p99_us, own, "what others have is not what was learnt here");
    c.set_usual(usual_p99s([0; KINDS]));
    assert!(step(&mut c, 1_000).baseline_p99_us.is_some_and(|us| us < 1_150));
}

/// A disk whose driver tells the time: samples that end so long after a moment, by tick.
fn at(moment_ms: u64, sample: Sample) -> Sample {
    Sample { since_moment: Some(Duration::from_millis(moment_ms % 10_000)), copies_run: true, ..sample }
}

#[test]
fn beside_others_copies_only_moments_teach() {
    // It copies nothing itself; its guests wait for others' copies but in the moments.
    let mut c = busy(Policy::default());
    for tick in 1..=600 {
        let ms = tick * 100;
        let latency_us = if (100..=500).contains(&(ms % 10_000)) { 1_100 } else { 5_000 };
        c.handle_sample(&at(ms, sample(200, latency_us, 0)));
    }
    let baseline = c.handle_sample(&sample(200, 1_000, 0)).baseline_p99_us;
    assert!(baseline.is_some_and(|us| us < 1_300), "{baseline:?}");
    // With no copies anywhere the same is what guests have.
    for _ in 0..600 {
        c.handle_sample(&sample(200, 5_000, 0));
    }
    assert!(c.findings().quiet_p99_us[0] > 4_000);
}

#[test]
fn all_disks_that_copy_pause_in_each_moment() {
    // It has just learnt what its guests have: another disk still has to.
    let mut c = busy(Policy::default());
    let mut pauses = Vec::new();
    for tick in 0..300 {
        let ms = 9_000 + tick * 100;
        let decision = c.handle_sample(&at(ms, sample(200, 1_000, 4 * MIB)));
        if decision.probing {
            pauses.push(ms % 10_000);
        }
    }
    let begun = pauses.iter().filter(|ms| **ms == 0).count();
    assert_eq!(begun, 3, "{pauses:?}");
    assert!(pauses.contains(&400), "until others have learnt: {pauses:?}");
}

#[test]
fn a_disk_that_joins_has_the_baseline_of_its_class_and_copies_on() {
    let mut c = Controller::new(Policy::default());
    c.set_usual(usual_p99s([1_500; KINDS]));
    c.handle_sample(&sample(0, 0, 10 * MIB));
    let d = c.handle_sample(&sample(200, 1_000, 10 * MIB));
    assert!(!d.probing);
    assert_eq!(d.target_p99_us, Some(3_000));
    assert_eq!(d.rate_bytes_per_sec, Some(50 * MIB), "half of what it took");
}

#[test]
fn operations_of_several_kinds_are_known_as_well_as_those_of_one() {
    // Overloads a second apart: where guests read and write, the second wears the limit down no more than where they read alone.
    let second_knee = |kinds: &[Kind]| {
        let of_kinds = |latency_us, resync_bytes| {
            let mut latencies = Latencies::default();
            let each = 60 / kinds.len() as u32;
            kinds.iter().for_each(|kind| latencies.add_bucket(*kind, Histogram::bucket(latency_us), each));
            Sample { latencies, ..sample(0, 0, resync_bytes) }
        };
        let mut c = Controller::new(Policy { floor_bytes_per_sec: MIB, ..Policy::default() });
        (0..60).for_each(|_| _ = c.handle_sample(&of_kinds(10_000, 0)));
        let mut run = |ticks: u32, latency_us| {
            for _ in 0..ticks {
                let rate = c.decision().rate_bytes_per_sec.unwrap_or(0);
                c.handle_sample(&of_kinds(latency_us, rate / 10));
            }
            c.footing().knee_bytes_per_sec
        };
        run(60, 10_000);
        let first = run(5, 90_000).expect("an overload");
        run(9, 15_000);
        let second = run(4, 90_000).expect("another");
        second as f64 / first as f64
    };
    let (alone, mixed) =
        (second_knee(&[Kind::SmallRead]), second_knee(&[Kind::SmallRead, Kind::SmallWrite, Kind::Apply]));
    assert!(alone > 0.8 && mixed > 0.8, "{alone}, {mixed}");
}

#[test]
fn a_disks_first_copies_begin_with_half_of_what_is_usual_in_its_class() {
    let mut first = Controller::new(Policy::default());
    let alone = || Sample { resync_held_back: false, ..sample(200, 1_000, 0) };
    (0..30).for_each(|_| _ = first.handle_sample(&alone()));
    let mut later = first.clone();
    for _ in 0..30 {
        later.handle_sample(&alone());
        assert_eq!(later.findings().rate_bytes_per_sec, 0, "guests alone show no rate");
        let rate = first.handle_sample(&Sample { resync_bytes: MIB, ..sample(200, 1_000, 0) }).rate_bytes_per_sec;
        if first.findings().rate_bytes_per_sec > 0 {
            assert_eq!(Some(first.findings().rate_bytes_per_sec), rate);
        }
    }
    assert!(first.findings().rate_bytes_per_sec > 0);
    later.set_usual(Findings { rate_bytes_per_sec: 80 * MIB, ..Findings::default() });
    let rate = |d: Decision| d.rate_bytes_per_sec.unwrap();
    let began = rate(later.handle_sample(&sample(200, 1_000, MIB)));
    assert!((40 * MIB..60 * MIB).contains(&began), "{began}");
    // What it has found itself counts from then on.
    (0..20).for_each(|_| _ = later.handle_sample(&sample(200, 9_000, 4 * MIB)));
    assert!(rate(later.handle_sample(&sample(200, 1_000, MIB))) < 40 * MIB);
}

#[test]
fn a_disk_that_was_known_is_no_unknown_one_when_its_load_changes() {
    let mut c = busy(Policy { target_inflation: 2.0, ..Policy::default() });
    c.set_usual(usual_p99s([20_000; KINDS]));
    // Three times as many operations: what was known is forgotten.
    for _ in 0..100 {
        let d = c.handle_sample(&sample(600, 1_000, 4 * MIB));
        assert!(d.baseline_p99_us.is_some_and(|us| us < 2_000), "{d:?}");
    }
}

#[test]
fn a_lucky_second_beside_copies_is_no_baseline() {
    // A busy machine: guests have 4 ms in an ordinary moment.
    let mut c = Controller::new(Policy::default());
    for _ in 0..10 {
        c.handle_sample(&sample(0, 0, 0));
    }
    for _ in 0..300 {
        c.handle_sample(&sample(200, 4_000, 0));
    }
    let known = c.findings().quiet_p99_us[0];
    assert!(known > 3_500);
    for _ in 0..20 {
        c.handle_sample(&sample(200, 1_000, 4 * MIB));
    }
    assert_eq!(c.findings().quiet_p99_us[0], known, "two seconds");
    for _ in 0..120 {
        c.handle_sample(&sample(200, 1_000, 4 * MIB));
    }
    assert!(c.findings().quiet_p99_us[0] < 1_300, "copies never make guests faster");
}
