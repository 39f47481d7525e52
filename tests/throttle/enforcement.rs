//! Bytes granted against the cap, on the real clock. Upper bounds are exact: a slow machine grants less, never more.
//! Lower bounds leave room for that, and each test measures the time that really passed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use evenkeel::core::cluster::{ResyncClass, ResyncSettings};
use evenkeel::core::ids::DiskId;
use evenkeel::core::throttle::Kind;
use evenkeel::node::throttle::Throttle;

const DISK: DiskId = DiskId(7);
const WINDOW: u64 = 256 << 10;
const MIB: u64 = 1 << 20;
const CLASS: ResyncClass = ResyncClass::Rebalance;

fn capped(cap: u64) -> ResyncSettings {
    ResyncSettings { cap_bytes_per_sec: Some(cap), ..ResyncSettings::default() }
}

/// Takes all it can for `time`; bytes granted and the seconds that passed.
fn take_for(throttle: &Throttle, time: Duration, classes: &[ResyncClass]) -> (Vec<u64>, f64) {
    let start = Instant::now();
    let mut granted = vec![0; classes.len()];
    let mut ticked = Instant::now();
    while start.elapsed() < time {
        for (i, class) in classes.iter().enumerate() {
            if throttle.try_take_source(DISK, *class, WINDOW) {
                granted[i] += WINDOW;
            }
        }
        if ticked.elapsed() >= Duration::from_millis(100) {
            ticked = Instant::now();
            throttle.tick();
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    (granted, start.elapsed().as_secs_f64())
}

#[test]
fn a_cap_holds_within_a_burst_and_a_window() {
    let throttle = Throttle::new();
    for cap in [20 * MIB, 60 * MIB, 20 * MIB] {
        throttle.apply(&capped(cap));
        let (granted, seconds) = take_for(&throttle, Duration::from_millis(1_500), &[CLASS]);
        let most = cap as f64 * (seconds + 0.1) + WINDOW as f64;
        assert!(granted[0] as f64 <= most, "{} of at most {most}", granted[0]);
        assert!(granted[0] as f64 >= 0.85 * cap as f64 * seconds, "{} in {seconds} s at {cap}", granted[0]);
        assert_eq!((throttle.rate(DISK), throttle.limited_by(DISK, CLASS)), (Some(cap), "cap"));
    }
}

#[test]
fn classes_that_compete_share_by_weight_under_one_cap() {
    let throttle = Throttle::new();
    throttle.apply(&capped(60 * MIB));
    let classes = [ResyncClass::RepairCritical, ResyncClass::Rebalance];
    take_for(&throttle, Duration::from_millis(500), &classes);
    let (granted, seconds) = take_for(&throttle, Duration::from_millis(1_500), &classes);
    let sum = (granted[0] + granted[1]) as f64;
    assert!(sum <= 60.0 * MIB as f64 * (seconds + 0.1) + 2.0 * WINDOW as f64, "{granted:?}");
    // Weights 16 to 2.
    assert!(granted[0] > 4 * granted[1] && granted[1] > 0, "{granted:?}");
}

#[test]
fn pause_stops_at_once_and_the_end_of_it_starts_at_once() {
    let throttle = Throttle::new();
    throttle.apply(&ResyncSettings { paused: true, ..ResyncSettings::default() });
    assert!(!throttle.try_take_source(DISK, CLASS, 1));
    assert_eq!((throttle.rate(DISK), throttle.limited_by(DISK, CLASS)), (Some(0), "paused"));
    throttle.apply(&ResyncSettings::default());
    assert!(throttle.try_take_source(DISK, CLASS, u64::MAX));
    assert_eq!((throttle.rate(DISK), throttle.limited_by(DISK, CLASS)), (None, "nothing"));
}

#[tokio::test]
async fn targets_wait_for_the_cap_and_leave_as_soon_as_it_goes() {
    let throttle = Arc::new(Throttle::new());
    throttle.apply(&capped(1));
    let waiters: Vec<_> = (0..8)
        .map(|_| {
            let throttle = throttle.clone();
            tokio::spawn(async move { throttle.take_target(DISK, CLASS, WINDOW).await })
        })
        .collect();
    // At one byte a second nobody else follows the first for days.
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(waiters.iter().filter(|w| w.is_finished()).count() <= 1);
    throttle.apply(&ResyncSettings::default());
    for waiter in waiters {
        tokio::time::timeout(Duration::from_secs(30), waiter).await.expect("the wait ends").expect("no panic");
    }
}

#[tokio::test]
async fn reads_and_writes_are_counted_apart() {
    let throttle = Throttle::new();
    throttle.apply(&capped(1 << 12));
    throttle.take_target(DISK, CLASS, WINDOW).await;
    // The write's debt does not hold back the first read, whose turn comes with its own first cell.
    let start = Instant::now();
    while !throttle.try_take_source(DISK, CLASS, WINDOW) {
        assert!(start.elapsed() < Duration::from_secs(30), "the source waits for the target's 64 s of debt");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[test]
fn no_rate_or_size_panics() {
    let throttle = Throttle::new();
    for cap in [0, 1, 4095, 4096, 4097, (64 << 30) - 1, (64 << 30) + 1, 1 << 62, u64::MAX] {
        for floor in [0, 1, 1 << 62, u64::MAX] {
            throttle.apply(&ResyncSettings { floor_bytes_per_sec: floor, ..capped(cap) });
            for bytes in [0, 1, WINDOW, 1 << 40, u64::MAX] {
                let _ = throttle.try_take_source(DISK, CLASS, bytes);
            }
            throttle.observe_foreground(DISK, Kind::LargeWrite, Duration::MAX);
            throttle.observe_written(DISK, u64::MAX);
            throttle.observe_foreground(DISK, Kind::SmallRead, Duration::ZERO);
            throttle.tick();
        }
    }
    assert!(!throttle.limited_by(DISK, CLASS).is_empty());
}

#[test]
fn percentiles_cover_what_was_observed() {
    let throttle = Throttle::new();
    assert_eq!(throttle.foreground_percentiles().0, 0);
    for us in 1..=1000 {
        throttle.observe_foreground(DISK, Kind::of(us % 2 == 0, 4096), Duration::from_micros(us));
    }
    std::thread::sleep(Duration::from_millis(30));
    throttle.tick();
    let (p50, p99, per_second) = throttle.foreground_percentiles();
    assert!((440..570).contains(&p50) && (870..1130).contains(&p99), "{p50} {p99}");
    assert!(per_second > 0.0);
}
