//! What operators set about resync: it acts on running nodes at once, says where it comes from, outlives every daemon, and
//! a mistake changes nothing.

use std::process::Command;
use std::time::Instant;

use serde_json::{Value, json};

use crate::dev::{Daemon, Dev, sum_of};
use crate::resync::{filled, wait_for_middle};
use crate::tools::{MIB, hold, pattern, run_ok, wait_for};

fn info(dev: &Dev) -> Value {
    dev.json(&["resync", "status"])
}

/// What is said and in effect, without what changes by itself.
fn knobs(dev: &Dev) -> Value {
    let mut all = info(dev);
    let fields = all.as_object_mut().expect("an object");
    for field in [
        "status",
        "progress",
        "bytes_by_class",
        "sessions",
        "pending_nodes",
        "foreground_p99_us",
        "foreground_target_us",
    ] {
        fields.remove(field).unwrap_or_else(|| panic!("{field}"));
    }
    if let Some(deadline) = fields["deadline"].as_object_mut() {
        // They follow what is known of the nodes.
        for field in ["verdict", "holds", "needed_bytes_per_sec"] {
            deadline.remove(field).unwrap_or_else(|| panic!("{field}"));
        }
    }
    all
}

/// What the throttle of an idle disk allows is its cap.
fn wait_rate(dev: &Dev, node: &str, bytes_per_sec: u64) {
    wait_for(&format!("{node} keeps to {bytes_per_sec} bytes/s"), || {
        let metrics = dev.try_cli(&["metrics", "--node", node]);
        let rate = sum_of(&metrics.stdout, "evenkeel_throttle_rate_bytes_per_second");
        (metrics.status.success() && rate == bytes_per_sec as f64).then_some(())
    });
}

pub fn settings_act_at_once_name_their_origin_and_last() {
    let dev = Dev::start();
    let set = |args: &[&str]| dev.cli(&[&["resync", "set"], args].concat());
    let untouched = knobs(&dev);
    for (args, text) in [
        (vec!["--deadline", "2020-01-01 00:00"], "has passed already"),
        (vec!["--timezone", "Europe/Berln", "--profile", "recovery"], "no time zone"),
        (vec!["--window", "Mon 02:00-06:00 recovery", "--window", "Mon 05:00-07:00 balanced"], "overlap"),
        (vec!["--window", "Mon 2 to 6 recovery"], "is no window"),
        (vec!["--floor", "0"], "at least 4 KiB/s"),
        (vec!["--cap", "-3MiB/s"], "out of range"),
        (vec!["--cap", "99999999999999999999"], "out of range"),
        (vec!["--target-inflation", "NaN"], "between 1 and 1000"),
        (vec!["--cap", "4MiB/s", "--floor", "5MiB/s", "--profile", "recovery"], "above the cap of all classes"),
        (vec!["--class", "rebalances", "--weight", "3"], "repair-critical, repair, drain, rebalance, scrub"),
        (vec!["--class", "drain", "--weight", "0"], "from 1 to 1000"),
        (vec!["--pool", "default", "--cap", "4MiB/s"], "rates hold per disk"),
        (vec!["--node", "n9", "--cap", "4MiB/s"], "no node \"n9\""),
    ] {
        let refused = dev.try_cli(&[&["resync", "set"], args.as_slice()].concat());
        assert!(!refused.status.success() && refused.stderr.contains(text), "{args:?}: {}", refused.text());
    }
    assert_eq!(knobs(&dev), untouched, "nothing changes half");

    // A dead node is not needed.
    dev.kill_node("n3");
    let said = set(&["--cap", "10MiB/s", "--class", "scrub", "--weight", "3"]);
    assert!(said.contains("class scrub: cap 10 MiB/s (override), floor none, weight 3 (override)"), "{said}");
    set(&["--cap", "9MiB/s"]);
    let said = set(&["--node", "n1", "--cap", "7MiB/s"]);
    assert!(said.contains("cap 9 MiB/s (override), floor 8 MiB/s (default)"), "{said}");
    assert!(said.contains("node n1: cap 7 MiB/s (override), floor 7 MiB/s (default)"), "{said}");
    wait_rate(&dev, "n1", 7 * MIB);
    wait_rate(&dev, "n2", 9 * MIB);
    wait_for("the dead node is named", || (info(&dev)["pending_nodes"] == json!(["n3"])).then_some(()));

    // A window that always holds, and a target of a volume.
    dev.create_volume("v", "64MiB");
    set(&["--volume", "v", "--target-p99", "900us"]);
    let said = set(&["--window", "00:00-24:00 foreground", "--timezone", "Europe/Berlin", "--deadline", "20h"]);
    for part in [
        "profile foreground (window)",
        "floor 2 MiB/s (window), p99 ≤ 1.5 × the quiet one (window)",
        "volume v: p99 ≤ 900 µs where its copies are (override)",
        "window 00:00-24:00 foreground (Europe/Berlin): holds now",
        "Europe/Berlin: can't hold yet: nothing is planned for",
    ] {
        // Whether the dead node is known to be dead yet is a matter of moments.
        let now = wait_for(part, || {
            let now = dev.cli(&["resync", "status"]);
            now.contains(part).then_some(now)
        });
        assert!(now.contains("deadline 20"), "{now}\n{said}");
    }
    let events = dev.cli(&["events"]);
    assert!(events.contains("Window 00:00-24:00 foreground begins: profile foreground."), "{events}");

    // All of it outlives the coordinator and the nodes, and reaches a node that was dead meanwhile.
    let before = knobs(&dev);
    for name in ["coordinator", "n1"] {
        dev.kill_node(name);
        dev.start_node(name);
    }
    dev.start_node("n3");
    wait_rate(&dev, "n1", 7 * MIB);
    wait_rate(&dev, "n3", 9 * MIB);
    assert_eq!(knobs(&dev), before);
    wait_for("every node has it", || (info(&dev)["pending_nodes"] == json!([])).then_some(()));

    let all =
        ["--profile", "default", "--cap", "none", "--window", "none", "--timezone", "default", "--deadline", "none"];
    set(&all);
    set(&["--node", "n1", "--cap", "default"]);
    set(&["--volume", "v", "--target-p99", "default"]);
    set(&["--class", "scrub", "--cap", "none", "--weight", "default"]);
    assert_eq!(knobs(&dev), untouched, "nothing is left");
    wait_rate(&dev, "n1", 0);
    dev.finish();
}

/// Nothing is copied, and the coordinator says that an operator wants it so.
fn stands(dev: &Dev) {
    wait_for("what waits is paused", || {
        let status = dev.status();
        let planned = status["plan_pending"] == false && status["resync"]["pending_moves"].as_u64() > Some(0);
        (planned && status["resync"]["limited_by"] == "paused").then_some(())
    });
}

pub fn a_paused_pool_or_node_takes_no_copies() {
    let (dev, gateway, hash) = filled();
    let refused = dev.try_cli(&["resync", "pause", "--pool", "nowhere"]);
    assert!(refused.stderr.contains("no pool \"nowhere\""), "{}", refused.text());
    let said = dev.cli(&["resync", "pause", "--pool", "default"]);
    assert!(said.contains("paused pools: default"), "{said}");
    dev.add_node();
    stands(&dev);
    let before = dev.resynced_bytes();
    let health = dev.cli(&["status"]);
    assert!(health.contains("Resync of pool default is paused"), "{health}");
    let said = dev.cli(&["resync", "pause", "--node", "n4"]);
    assert!(said.contains("node n4") && said.contains(", paused"), "{said}");
    dev.cli(&["resync", "resume", "--pool", "default"]);
    stands(&dev);
    assert_eq!((dev.resynced_bytes(), &dev.status()["resync"]["active_moves"]), (before, &json!(0)));
    dev.cli(&["resync", "resume", "--node", "n4"]);
    wait_for_middle(&dev);

    // What runs already stops too, and goes on from there.
    dev.cli(&["resync", "pause", "--pool", "default"]);
    wait_for("what runs is held back", || {
        let sessions = info(&dev)["sessions"].as_array().expect("sessions").clone();
        (!sessions.is_empty() && sessions.iter().all(|s| s["limited_by"] == "paused")).then_some(())
    });
    // Windows that were on their way arrive, and are reported, within moments.
    let mut held = dev.resynced_bytes();
    wait_for("nothing arrives any more", || {
        hold(2);
        let now = dev.resynced_bytes();
        (std::mem::replace(&mut held, now) == now).then_some(())
    });
    assert!(dev.status()["resync"]["pending_moves"].as_u64() > Some(0), "something is left");
    dev.cli(&["resync", "resume", "--pool", "default"]);
    dev.cli(&["resync", "set", "--cap", "none"]);
    dev.wait_clean();
    assert_eq!(dev.hash("v"), hash);
    drop(gateway);
    dev.finish();
}

pub fn a_deadline_raises_the_floor_as_far_as_the_cap_allows() {
    let mut dev = Dev::start();
    dev.create_volume("v", "32MiB");
    let gateway = dev.gateway("v");
    let mut client = gateway.client();
    client.write(0, &pattern(8 * MIB, 1)).expect("writes");
    dev.kill_node("n3");
    for at in 0..4 {
        client.write(8 * at * MIB, &pattern(8 * MIB, at + 7)).expect("writes");
    }
    client.flush().expect("flushes");
    let hash = dev.hash("v");
    // What the node missed is copied slowly when it returns.
    dev.cli(&["resync", "set", "--cap", "256KiB/s", "--floor", "64KiB/s", "--deadline", "10m"]);
    dev.start_node("n3");
    let verdict = |part: &str| {
        wait_for(part, || {
            let info = info(&dev);
            info["deadline"]["verdict"].as_str().expect("a verdict").contains(part).then_some(info)
        })
    };
    let shown = verdict("can't hold: needs 1 MiB/s a disk, the cap allows 256 KiB/s");
    assert_eq!((&shown["deadline"]["holds"], &shown["origins"]["floor"]), (&json!(false), &json!("deadline")));
    assert_eq!(shown["floor_bytes_per_sec"], 256 << 10, "never above the cap");
    let health = dev.cli(&["status"]);
    assert!(health.contains("can't hold: needs 1 MiB/s a disk"), "{health}");
    dev.cli(&["resync", "set", "--cap", "2MiB/s"]);
    let shown = wait_for("the floor is what the deadline needs", || {
        let info = info(&dev);
        (info["floor_bytes_per_sec"] == MIB).then_some(info)
    });
    assert_eq!(
        (&shown["deadline"]["needed_bytes_per_sec"], &shown["origins"]["floor"]),
        (&json!(MIB), &json!("deadline"))
    );
    let shown = dev.json(&["resync", "set", "--deadline-wins", "latency"]);
    assert_eq!((&shown["floor_bytes_per_sec"], &shown["origins"]["floor"]), (&json!(64 << 10), &json!("override")));
    dev.cli(&["resync", "set", "--deadline-wins", "deadline", "--cap", "none"]);
    dev.wait_clean();
    let shown = verdict("holds: every copy is there");
    assert_eq!((&shown["floor_bytes_per_sec"], &shown["origins"]["floor"]), (&json!(64 << 10), &json!("override")));
    let events = dev.cli(&["events"]);
    assert!(events.contains("needs a floor of"), "{events}");
    assert_eq!(dev.hash("v"), hash);
    drop((client, gateway));
    dev.finish();
}

pub fn a_volumes_limits_hold_live_in_its_gateway() {
    let mut dev = Dev::start();
    let refused = dev.try_cli(&["volume", "create", "v", "--size", "64MiB", "--iops-limit", "0"]);
    assert!(refused.stderr.contains("IOPS limit can't be 0"), "{}", refused.text());
    let refused = dev.try_cli(&["volume", "show", "v"]);
    assert!(refused.stderr.contains("no volume \"v\""), "nothing was made: {}", refused.text());
    dev.cli(&["volume", "create", "v", "--size", "64MiB", "--iops-limit", "80"]);
    let shown = dev.cli(&["volume", "show", "v"]);
    assert!(shown.contains("limits    80 IOPS at most, no bandwidth limit, share 100"), "{shown}");
    let gateway = dev.gateway("v");
    let mut client = gateway.client();
    let block = pattern(4 << 10, 3);
    let mut write = |count: u64| {
        let begin = Instant::now();
        for at in 0..count {
            client.write(at * (4 << 10), &block).expect("writes");
        }
        begin.elapsed().as_secs_f64()
    };
    let seconds = write(120);
    assert!(120.0 <= 80.0 * seconds + 80.0, "120 writes in {seconds:.2} s at 80 a second");

    // A change reaches the gateway while it serves; a mistake changes nothing.
    let refused = dev.try_cli(&["volume", "set", "v", "--iops-limit", "many"]);
    assert!(refused.stderr.contains("whole number"), "{}", refused.text());
    let said = dev.cli(&["volume", "set", "v", "--iops-limit", "none", "--bandwidth-limit", "4MiB/s"]);
    assert!(said.contains("no IOPS limit, 4 MiB/s at most, share 100"), "{said}");
    wait_for("more writes than the old limit allows", || {
        let seconds = write(120);
        (120.0 > 80.0 * seconds + 80.0).then_some(())
    });
    let file = dev.path("content");
    std::fs::write(&file, pattern(12 * MIB, 5)).expect("writes a file");
    let begin = Instant::now();
    run_ok(Command::new("nbdcopy").arg(&file).arg(gateway.uri()));
    let seconds = begin.elapsed().as_secs_f64();
    assert!(12.0 <= 4.0 * seconds + 4.0, "12 MiB in {seconds:.2} s at 4 MiB/s");
    let before = dev.json(&["volume", "show", "v"]);
    assert_eq!((&before["iops_limit"], &before["bandwidth_limit_bytes_per_sec"]), (&Value::Null, &json!(4 * MIB)));
    dev.kill_node("coordinator");
    dev.start_node("coordinator");
    assert_eq!(dev.json(&["volume", "show", "v"])["bandwidth_limit_bytes_per_sec"], 4 * MIB);

    // What a guest saves up it may do at once; a burst goes with its limit.
    for (wrong, part) in [
        (&["--iops-burst", "500"][..], "needs an IOPS limit"),
        (&["--bandwidth-burst", "1KiB"], "a tenth of a second's worth"),
        (&["--share", "0"], "0 is not in 1..=1000"),
        (&[], "--iops-burst <N>"),
    ] {
        let refused = dev.try_cli(&[&["volume", "set", "v"], wrong].concat());
        assert!(refused.stderr.contains(part), "{}", refused.text());
    }
    let said = dev.cli(&["volume", "set", "v", "--bandwidth-burst", "32MiB", "--share", "250"]);
    assert!(said.contains("4 MiB/s at most (in bursts of 32 MiB), share 250"), "{said}");
    wait_for("what was saved up goes at once", || {
        hold(3);
        let begin = Instant::now();
        run_ok(Command::new("nbdcopy").arg(&file).arg(gateway.uri()));
        (12.0 > 4.0 * begin.elapsed().as_secs_f64() + 4.0).then_some(())
    });
    let events = dev.cli(&["events"]);
    assert!(events.contains("bandwidth limit 4 MiB/s in bursts of 32 MiB, share 250"), "{events}");
    dev.cli(&["volume", "set", "v", "--bandwidth-limit", "none"]);
    let now = dev.json(&["volume", "show", "v"]);
    assert_eq!((&now["bandwidth_burst_bytes"], &now["share"]), (&Value::Null, &json!(250)));
    wait_for("faster than the old limit allows", || {
        let begin = Instant::now();
        run_ok(Command::new("nbdcopy").arg(&file).arg(gateway.uri()));
        (12.0 > 4.0 * begin.elapsed().as_secs_f64() + 4.0).then_some(())
    });
    drop(client);
    drop(gateway);
    dev.finish();
}

/// A guest with many requests under way and one with few: the share decides, not the number.
pub fn shares_hold_between_volumes() {
    let mut dev = Dev::start();
    let gateways = ["many", "few"].map(|volume| {
        dev.create_volume(volume, "128MiB");
        dev.gateway(volume)
    });
    dev.cli(&["volume", "set", "few", "--share", "900"]);
    // Both from beginning to end at once: a run's writes are counted within the other's.
    let files = ["many", "few"].map(|volume| dev.path(&format!("{volume}.json")));
    let guests: Vec<Daemon> = [(&gateways[0], 64, &files[0]), (&gateways[1], 16, &files[1])]
        .map(|(gateway, depth, file)| {
            let mut fio = Command::new("fio");
            fio.args(["--name=guest", "--ioengine=nbd", "--rw=randwrite", "--bs=4k", "--size=128MiB", "--time_based"])
                .args(["--runtime=8", "--ramp_time=2", "--output-format=json"])
                .args([format!("--uri={}", gateway.uri()), format!("--iodepth={depth}")])
                .arg(format!("--output={}", file.display()));
            Daemon::spawn(&mut fio, &file.with_extension("out"))
        })
        .into();
    for mut guest in guests {
        assert!(guest.wait().success(), "{}", guest.log_text());
    }
    let writes = files.map(|file| {
        let text = std::fs::read_to_string(&file).expect("fio's result");
        let result: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
        result["jobs"][0]["write"]["total_ios"].as_u64().expect("a number")
    });
    assert!(writes[1] > writes[0], "64 at a time with a share of 100, 16 with 900: {writes:?} writes");
    assert!(writes[0] > 0, "none starves: {writes:?}");
    drop(gateways);
    dev.finish();
}
