//! What is shipped to run a cluster: systemd's units, the container files, the examples for guests, the Debian package.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::dev::{Daemon, Dev, binary};
use crate::net::Namespace;
use crate::prometheus::{shipped, shipped_text};
use crate::tools::{missing, run, run_ok, wait_for};

/// Names in a folder of this repository.
fn names(folder: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(shipped(folder)).unwrap_or_else(|error| panic!("{folder}: {error}"));
    entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
}

/// systemd reads them without a complaint, and finds little to reproach.
pub fn units_are_sound() {
    let scratch = tempfile::tempdir().expect("a folder");
    let units: Vec<String> = names("deploy/systemd").into_iter().collect();
    assert!(units.len() >= 6, "{units:?}");
    let mut started = Vec::new();
    for unit in &units {
        let text = shipped_text(&format!("deploy/systemd/{unit}"));
        // systemd wants to find the programs, and an instance of each template.
        let text =
            text.replace("/usr/bin/evenkeel", &binary().display().to_string()).replace("/usr/bin/ssh", "/bin/true");
        fs::write(scratch.path().join(unit), text).expect("writes");
        started.push(unit.replace("@.", "@root."));
    }
    let ended = run(Command::new("systemd-analyze")
        .args(["verify", "--man=no", "--recursive-errors=no"])
        .args(&started)
        .current_dir(&scratch)
        .env("SYSTEMD_UNIT_PATH", format!("{}:", scratch.path().display())));
    assert!(ended.status.success() && ended.text().trim().is_empty(), "{}", ended.text());
    for unit in started.iter().filter(|unit| unit.ends_with(".service")) {
        let mut command = Command::new("systemd-analyze");
        command.args(["security", "--offline=yes", "--threshold=25", unit]).current_dir(&scratch);
        let ended = run(command.env("SYSTEMD_UNIT_PATH", format!("{}:", scratch.path().display())));
        assert!(ended.status.success(), "{unit}: {}", ended.text());
    }
}

/// Every system call that the daemons make in their main duties is one that their units allow, and no memory is both
/// writable and executable.
pub fn daemons_live_within_their_units() {
    let allowed = allowed_calls();
    assert!(allowed.len() > 200 && allowed.contains("setpriority"), "{allowed:?}");
    let mut dev = Dev::start();
    dev.create_volume("v", "64MiB");
    // Something to copy to the node that joins.
    let untraced = dev.gateway("v");
    let write = ["-f", "raw", &untraced.uri(), "-c", "write -P 7 0 64M", "-c", "flush"];
    run_ok(Command::new("qemu-io").args(write));
    drop(untraced);
    let log = dev.path("calls");
    let (dir, disk) = (dev.path("n9"), format!("{},size=1GiB", dev.path("n9-disk").display()));
    let token = dev.cli(&["token", "create"]);
    let api = dev.cluster()["api"].as_str().expect("a URL").to_owned();
    let traced = |what: &str| {
        let mut command = Command::new("strace");
        // -D: strace is its child's child, so that signals and parents are as without it.
        command.args(["-D", "-f", "-qq", "-o"]).arg(log.with_extension(what)).arg("--").arg(binary());
        command
    };
    let mut command = traced("node");
    command.args(["node", "run", "--name", "n9", "--listen", "127.0.1.9:0", "--api", &api, "--disk", &disk]);
    let mut node = Daemon::spawn(command.args(["--join-token", token.trim(), "--dir"]).arg(&dir), &dev.path("n9.log"));
    wait_for("the node holds copies", || {
        let disks = dev.status()["disks"].as_array().cloned().unwrap_or_default();
        disks.iter().any(|disk| disk["node"] == "n9" && disk["used_bytes"].as_u64() > Some(0)).then_some(())
    });
    let socket = dev.path("traced");
    let mut command = traced("gateway");
    command
        .args(["gateway", "--take-over", "--cluster"])
        .arg(dev.cluster_file())
        .args(["--volume", "v", "--socket"])
        .arg(&socket);
    let mut gateway = Daemon::spawn(&mut command, &dev.path("traced.log"));
    wait_for("the gateway serves", || socket.exists().then_some(()));
    let uri = format!("nbd+unix:///v?socket={}", socket.display());
    run_ok(Command::new("qemu-io").args([
        "-f",
        "raw",
        &uri,
        "-c",
        "write -P 7 0 8M",
        "-c",
        "flush",
        "-c",
        "discard 0 4M",
    ]));
    for (what, daemon) in [("gateway", &mut gateway), ("node", &mut node)] {
        daemon.stop();
        // strace writes the last line when the process has ended.
        let text = wait_for("the trace ends", || {
            let text = fs::read_to_string(log.with_extension(what)).expect("a trace");
            text.contains("exit_group(").then_some(text)
        });
        let calls: BTreeSet<&str> = text.lines().filter_map(call_in).collect();
        assert!(calls.len() > 30 && calls.contains("openat"), "{what}: {calls:?}");
        let refused: Vec<&&str> = calls.iter().filter(|call| !allowed.contains(**call)).collect();
        assert!(refused.is_empty(), "{what}: its unit refuses {refused:?}");
        let families: BTreeSet<&str> = text.lines().filter_map(family_in).collect();
        let unit = shipped_text(&format!(
            "deploy/systemd/evenkeel-{}.service",
            if what == "gateway" { "gateway@" } else { what }
        ));
        let line = unit.lines().find_map(|line| line.strip_prefix("RestrictAddressFamilies=")).expect("a list");
        let allows = |family: &&&str| line.split(' ').any(|allowed| allowed == **family);
        assert!(
            !families.is_empty() && families.iter().all(|f| allows(&f)),
            "{what}: {families:?}, its unit allows {line}"
        );
        let both = text.lines().find(|line| line.contains("PROT_WRITE|PROT_EXEC"));
        assert!(both.is_none(), "{what}: {both:?}");
    }
    dev.finish();
}

/// The call in a line of strace's: `PID name(…`.
fn call_in(line: &str) -> Option<&str> {
    let (_, rest) = line.split_once(' ')?;
    let (name, _) = rest.trim_start().split_once('(')?;
    (!name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')).then_some(name)
}

/// The address family of a socket that a line of strace's makes.
fn family_in(line: &str) -> Option<&str> {
    line.split_once("socket(")?.1.split(',').next().filter(|family| family.starts_with("AF_"))
}

/// `SystemCallFilter=@system-service`, less `@privileged`, as systemd has them.
fn allowed_calls() -> BTreeSet<String> {
    let calls = |set: &str| {
        let mut seen = BTreeSet::from([set.to_owned()]);
        let (mut sets, mut calls) = (vec![set.to_owned()], BTreeSet::new());
        while let Some(set) = sets.pop() {
            let text = run_ok(Command::new("systemd-analyze").args(["syscall-filter", "--no-pager", &set]));
            for word in text.lines().filter(|l| l.starts_with("    ")).map(str::trim).filter(|l| !l.starts_with('#')) {
                if !word.starts_with('@') {
                    calls.insert(word.to_owned());
                } else if seen.insert(word.to_owned()) {
                    sets.push(word.to_owned());
                }
            }
        }
        calls
    };
    &calls("@system-service") - &calls("@privileged")
}

/// Compose reads its file; what its containers run makes a cluster.
pub fn containers_make_a_cluster() {
    let file = shipped("deploy/compose/compose.yml").display().to_string();
    let config = run_ok(Command::new("docker-compose").args(["-f", &file, "config"]));
    for service in ["coordinator:", "n1:", "n2:", "n3:", "prometheus:", "grafana:"] {
        assert!(config.lines().any(|line| line.trim() == service), "no {service} {config}");
    }
    let rules = tempfile::tempdir().expect("a folder");
    fs::write(rules.path().join("prometheus.yml"), shipped_text("deploy/compose/prometheus.yml")).expect("writes");
    std::os::unix::fs::symlink(shipped("deploy/prometheus"), rules.path().join("rules")).expect("links");
    run_ok(Command::new("promtool").args(["check", "config"]).arg(rules.path().join("prometheus.yml")));

    let (network, scratch) = (Namespace::new(), tempfile::tempdir().expect("a folder"));
    let start = |words: &[&str]| {
        let mut command = network.command(&shipped("deploy/compose/start"));
        let path = std::env::var("PATH").expect("a path");
        command.args(words).env("EVENKEEL_ROOT", scratch.path());
        command.env("PATH", format!("{}:{path}", binary().parent().expect("a folder").display()));
        command
    };
    let daemon = |name: &str, words: &[&str]| {
        let mut command = Command::new("env");
        // `Daemon::spawn` takes EVENKEEL_* away, and ties what it starts to this process: but here a shell is between.
        command.args(["-u", "EVENKEEL_PARENT_PID"]).arg(format!("EVENKEEL_ROOT={}", scratch.path().display()));
        let inner = start(words);
        command.arg(format!(
            "PATH={}",
            inner.get_envs().find(|(k, _)| *k == "PATH").and_then(|(_, v)| v).expect("set").display()
        ));
        Daemon::spawn(
            command.arg(inner.get_program()).args(inner.get_args()),
            &scratch.path().join(format!("{name}.log")),
        )
    };
    let mut coordinator = daemon("coordinator", &["coordinator"]);
    let nodes = [("n1", "127.0.0.11"), ("n2", "127.0.0.12"), ("n3", "127.0.0.13")];
    let mut running: Vec<Daemon> = nodes.iter().map(|(n, ip)| daemon(n, &["node", n, ip, "1GiB"])).collect();
    let set_up = run_ok(&mut start(&["setup"]));
    // A container that is started anew finds its node where it left it.
    running[0].stop();
    running[0] = daemon("n1", &["node", "n1", "127.0.0.11", "1GiB"]);
    run_ok(&mut start(&["setup"]));
    assert!(!set_up.contains("gave up"), "{set_up}");
    running.iter_mut().for_each(Daemon::stop);
    coordinator.stop();
}

/// The examples for guests: XML that is well formed, and a qemu that opens the volume.
pub fn guests_open_their_disk() {
    run_ok(Command::new("xmllint").arg("--noout").arg(shipped("deploy/libvirt/vm1.xml")));
    let mut dev = Dev::start();
    dev.create_volume("vm1", "64MiB");
    let gateway = dev.gateway("vm1");
    let mut command = Command::new(shipped("deploy/qemu/vm1"));
    command.args(["-S", "-m", "64", "-display", "none", "-nodefaults", "-monitor", "stdio"]);
    command.env("EVENKEEL_SOCKET", &gateway.socket).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut qemu = command.spawn().unwrap_or_else(|error| panic!("{}", missing(&command, &error)));
    qemu.stdin.take().expect("a pipe").write_all(b"info block\nquit\n").expect("writes");
    let ended = qemu.wait_with_output().expect("waits");
    let text = String::from_utf8_lossy(&ended.stdout);
    assert!(ended.status.success(), "{ended:?}");
    assert!(text.contains("nbd+unix:///vm1"), "{ended:?}");
    drop(gateway);
    dev.finish();
}

/// Built, installed, its units started by systemd under its configurations, upgraded, removed and purged: in a container whose
/// file system lies over this one.
pub fn the_package_installs_runs_upgrades_and_goes() {
    let scratch = tempfile::Builder::new().prefix("evenkeel-package-").tempdir().expect("a folder");
    for revision in ["1", "2"] {
        let mut command = Command::new(shipped("deploy/debian/build"));
        command.args(["--fast", "--deb-version", &format!("0.1.0-{revision}"), "--output"]);
        let build = command.arg(scratch.path().join(format!("{revision}.deb"))).output().expect("runs");
        assert!(build.status.success(), "{}", String::from_utf8_lossy(&build.stderr));
    }
    let script: &Path = &shipped("tests/package.sh");
    let ended = Command::new("unshare")
        .args(["--mount", "--mount-proc", "--net", "--pid", "--fork", "--kill-child", "bash"])
        .arg(script)
        .arg(scratch.path())
        .output()
        .expect("runs");
    let text = String::from_utf8_lossy(&ended.stdout) + String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success() && text.contains("all steps passed"), "{text}");
}
