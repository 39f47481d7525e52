//! Bad input: one clear sentence that names the thing, an exit code other than 0, nothing lost, no panic.

use std::fs::{self, File};
use std::io::Write;
use std::net::{TcpStream, UdpSocket};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::dev::{Daemon, Dev, New, binary};
use crate::tools::{Ended, KIB, MIB, pattern, run, wait_for};

/// One sentence on stderr that has these words, a failing exit code, nothing on stdout.
fn refused(ended: &Ended, words: &[&str]) {
    assert!(!ended.status.success(), "it was accepted: {}", ended.text());
    assert!(ended.status.code().is_some(), "it ended with {}", ended.status);
    sentence(&ended.stderr, words);
    assert_eq!(ended.stdout, "");
}

fn sentence(text: &str, words: &[&str]) {
    let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("evenkeel: ")).collect();
    assert_eq!(lines.len(), 1, "not one sentence: {text}");
    for word in words {
        assert!(lines[0].contains(word), "{:?} does not say {word:?}", lines[0]);
    }
    assert!(!text.contains("panicked"), "{text}");
}

/// Runs a node of its own that must end with one sentence.
fn node_refused(dev: &Dev, extra: &[&str], token: Option<&str>, words: &[&str]) {
    let api = dev.cluster()["api"].as_str().expect("a URL").to_owned();
    let args = ["node", "run", "--api", &api, "--listen", "127.0.1.99:0", "--admin", "127.0.0.1:0"];
    let mut command = Command::new(binary());
    command.args(args).args(extra);
    if let Some(token) = token {
        command.env("EVENKEEL_JOIN_TOKEN", token);
    }
    let ended = run(&mut command);
    assert!(!ended.status.success(), "it was accepted: {}", ended.text());
    sentence(&ended.stderr, words);
}

fn token(dev: &Dev, ttl: &str) -> String {
    dev.cli(&["token", "create", "--role", "node", "--ttl", ttl]).trim().to_owned()
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// A copy of a folder, sparse where it was.
pub fn copy(from: &Path, to: &Path) {
    let ended = run(Command::new("cp").args(["-a", "--sparse=always"]).arg(from).arg(to));
    assert!(ended.status.success(), "{}", ended.text());
}

fn disk_path(dev: &Dev, node: &str) -> PathBuf {
    PathBuf::from(dev.node(node)["disks"][0]["path"].as_str().expect("a path"))
}

/// The cluster still serves: written data comes back.
fn still_serves(dev: &mut Dev) {
    dev.cli(&["volume", "create", "after", "--size", "8MiB", "--if-not-exists"]);
    let gateway = dev.gateway("after");
    let mut client = gateway.client();
    client.write(0, &pattern(MIB, 9)).expect("writes");
    client.flush().expect("flushes");
    assert!(client.read(0, MIB).expect("reads") == pattern(MIB, 9));
}

pub fn commands_name_what_is_wrong() {
    let mut dev = Dev::start();
    dev.create_volume("v", "8MiB");
    let cases: &[(&[&str], &[&str])] = &[
        (&["volume", "show", "nope"], &["no volume", "\"nope\"", "volume list"]),
        (&["volume", "hash", "nope"], &["no volume", "\"nope\""]),
        (&["volume", "delete", "nope", "--yes"], &["no volume", "\"nope\""]),
        (&["volume", "resize", "v", "--size", "8389000"], &["multiple of 512"]),
        (&["volume", "create", "odd", "--size", "1000"], &["multiple of 512", "1000"]),
        (&["volume", "create", "v", "--size", "8MiB"], &["\"v\""]),
        (&["volume", "create", "w", "--size", "8MiB", "--pool", "nope"], &["no pool", "\"nope\"", "pool list"]),
        (&["pool", "show", "nope"], &["no pool", "\"nope\""]),
        (&["pool", "create", "wide", "--replicas", "5"], &["\"wide\"", "5 replicas", "3", "add nodes"]),
        (&["pool", "create", "wide", "--replicas", "5", "--if-not-exists"], &["\"wide\"", "5 replicas", "add nodes"]),
        // What would be refused is refused dry, too.
        (&["pool", "set", "default", "--min-replicas", "9", "--dry-run"], &["3 replicas", "minimum of 9"]),
        (&["volume", "resize", "v", "--size", "4MiB", "--dry-run"], &["\"v\"", "shrink"]),
        (&["node", "remove", "n1", "--dry-run"], &["n1", "drain"]),
        (&["node", "show", "nope"], &["nope", "n1, n2, n3"]),
        (&["node", "drain", "nope"], &["nope"]),
        (&["dev", "kill-node", "--dir", "D", "nope"], &["nope", "n1, n2, n3"]),
        (&["dev", "start-node", "--dir", "/nonexistent", "n1"], &["/nonexistent", "evenkeel dev"]),
        (&["hash", "/nonexistent"], &["/nonexistent"]),
        (&["status", "--cluster", "/nonexistent"], &["/nonexistent"]),
    ];
    let dir = text(&dev.dir());
    for (args, words) in cases {
        let args: Vec<&str> = args.iter().map(|arg| if *arg == "D" { dir.as_str() } else { *arg }).collect();
        refused(&dev.try_cli(&args), words);
    }
    let mut gateway = dev.start_gateway("nope", &[]);
    assert!(!gateway.daemon.wait().success());
    sentence(&gateway.daemon.log_text(), &["no volume", "\"nope\""]);
    assert!(!gateway.socket.exists());
    refused(&run(Command::new(binary()).args(["dev", "--dir", &dir])), &["in use", &dir]);
    still_serves(&mut dev);
    dev.finish();
}

pub fn tokens_and_certificates_of_others_are_refused() {
    let mut dev = Dev::start();
    let other = Dev::start_with(New { nodes: 1, disk_size: "256MiB", ..New::default() });
    let disk = |name: &str| format!("{},size=256MiB", text(&dev.path(name)));
    let dir = |name: &str| text(&dev.path(name));

    let foreign = token(&other, "600");
    node_refused(
        &dev,
        &["--name", "x1", "--dir", &dir("x1"), "--disk", &disk("x1-disk")],
        Some(&foreign),
        &["token", "another cluster"],
    );

    let short = token(&dev, "1");
    // Waiting for the condition "expired": the sentence changes from whatever the first refusal would say.
    std::thread::sleep(std::time::Duration::from_secs(2));
    node_refused(
        &dev,
        &["--name", "x2", "--dir", &dir("x2"), "--disk", &disk("x2-disk")],
        Some(&short),
        &["token", "expired", "token create"],
    );

    let once = token(&dev, "600");
    let api = dev.cluster()["api"].as_str().expect("a URL").to_owned();
    let mut command = Command::new(binary());
    command.args(["node", "run", "--api", &api, "--listen", "127.0.1.98:0", "--admin", "127.0.0.1:0", "--name", "x3"]);
    command.args(["--dir", &dir("x3"), "--disk", &disk("x3-disk"), "--join-token", &once]);
    let mut joined = Daemon::spawn(&mut command, &dev.path("x3.log"));
    wait_for("the node joins", || {
        assert!(joined.ended().is_none(), "{}", joined.log_text());
        let nodes = dev.json(&["node", "list"]);
        nodes.as_array().expect("nodes").iter().any(|node| node["name"] == "x3").then_some(())
    });
    node_refused(
        &dev,
        &["--name", "x4", "--dir", &dir("x4"), "--disk", &disk("x4-disk")],
        Some(&once),
        &["token", "used", "token create"],
    );
    node_refused(&dev, &["--name", "x5", "--dir", &dir("x5"), "--disk", &disk("x5-disk")], Some("rubbish"), &["token"]);
    node_refused(&dev, &["--name", "x6", "--dir", &dir("x6"), "--disk", &disk("x6-disk")], None, &["token"]);

    // A node's directory of another cluster: its certificate counts nothing here.
    let theirs = PathBuf::from(other.node("n1")["dir"].as_str().expect("a path"));
    copy(&theirs, &dev.path("x7"));
    let address = &dev.cluster()["coordinator"]["addr"];
    let file = dev.path("x7/node.json");
    let mut kept: Value = serde_json::from_slice(&fs::read(&file).expect("node.json")).expect("JSON");
    for value in kept.as_object_mut().expect("an object").values_mut() {
        if *value == other.cluster()["coordinator"]["addr"] {
            *value = address.clone();
        }
    }
    fs::write(&file, kept.to_string()).expect("writes");
    node_refused(&dev, &["--name", "n1", "--dir", &dir("x7"), "--disk", &disk("x7-disk")], None, &["cluster"]);

    joined.stop();
    still_serves(&mut dev);
    other.finish();
    dev.finish();
}

pub fn disks_that_are_not_right_are_refused() {
    let mut dev = Dev::start();
    let other = Dev::start_with(New { nodes: 1, disk_size: "256MiB", ..New::default() });
    dev.create_volume("v", "8MiB");
    let gateway = dev.gateway("v");
    let mut client = gateway.client();
    client.write(0, &pattern(8 * MIB, 4)).expect("writes");
    client.flush().expect("flushes");

    // The disk of a live node, given to a second process.
    let live = format!("{},size=4GiB", text(&disk_path(&dev, "n1")));
    let home = text(&dev.path("y1"));
    let fresh = token(&dev, "600");
    node_refused(
        &dev,
        &["--name", "y1", "--dir", &home, "--disk", &live],
        Some(&fresh),
        &["in use", "n1-disk1", "process"],
    );

    // A disk of another cluster.
    copy(&disk_path(&other, "n1"), &dev.path("their-disk"));
    let theirs = format!("{},size=256MiB", text(&dev.path("their-disk")));
    let home = text(&dev.path("y2"));
    let fresh = token(&dev, "600");
    node_refused(&dev, &["--name", "y2", "--dir", &home, "--disk", &theirs], Some(&fresh), &["their-disk", "cluster"]);

    // Both copies of a stopped node's superblock are damaged.
    dev.kill_node("n2");
    let data =
        File::options().read(true).write(true).open(disk_path(&dev, "n2").join("data")).expect("the disk's file");
    let mut saved = Vec::new();
    for offset in [0, 64 * KIB] {
        let mut was = vec![0; 4096];
        data.read_exact_at(&mut was, offset).expect("reads");
        let mut bad = was.clone();
        bad[100..200].fill(0xee);
        data.write_all_at(&bad, offset).expect("writes");
        saved.push((offset, was));
    }
    refused_start(&dev, "n2", &["n2-disk1", "superblock"]);
    // Nothing was made anew over it: with its superblock back, the disk is as it was.
    for (offset, was) in saved {
        data.write_all_at(&was, offset).expect("writes");
    }
    dev.start_node("n2");
    dev.wait_clean();
    assert!(client.read(0, 8 * MIB).expect("reads") == pattern(8 * MIB, 4));
    drop((client, gateway));
    still_serves(&mut dev);
    other.finish();
    dev.finish();
}

/// `dev start-node` fails and repeats the daemon's last sentence.
pub fn refused_start(dev: &Dev, name: &str, words: &[&str]) {
    refused(&dev.try_cli(&["dev", "start-node", "--dir", &text(&dev.dir()), name]), words);
}

pub fn a_damaged_map_is_never_taken_for_a_new_one() {
    let mut dev = Dev::start();
    dev.create_volume("v", "8MiB");
    let gateway = dev.gateway("v");
    let mut client = gateway.client();
    client.write(0, &pattern(MIB, 4)).expect("writes");
    client.flush().expect("flushes");
    dev.kill_node("coordinator");
    let home = dev.dir().join("coordinator");
    copy(&home, &dev.path("saved"));
    let put_back = || {
        fs::remove_dir_all(&home).expect("removes");
        copy(&dev.path("saved"), &home);
    };
    let database = home.join("meta/db");
    let len = database.metadata().expect("sled's file").len();
    // The file is preallocated: where it is cut decides whether anything is lost with its end.
    let used = len - trailing_zeros(&fs::read(&database).expect("sled's file"));
    let damage: [(&str, &dyn Fn()); 4] = [
        ("cut within its content", &|| open(&database).set_len(used / 2).expect("cuts")),
        ("cut to nothing", &|| open(&database).set_len(0).expect("cuts")),
        ("removed", &|| fs::remove_dir_all(home.join("meta")).expect("removes")),
        ("overwritten", &|| open(&database).write_all_at(&pattern(used, 8), 0).expect("writes")),
    ];
    for (what, apply) in damage {
        apply();
        println!("    the map's file is {what}");
        refused_start(&dev, "coordinator", &["meta"]);
        put_back();
    }
    client.write(MIB, &pattern(MIB, 5)).expect("IO goes on meanwhile");
    dev.start_node("coordinator");
    dev.wait_clean();
    assert_eq!(dev.json(&["volume", "show", "v"])["size_bytes"], 8 * MIB);
    assert!(client.read(0, MIB).expect("reads") == pattern(MIB, 4));
    drop((client, gateway));
    dev.finish();
}

fn trailing_zeros(bytes: &[u8]) -> u64 {
    bytes.iter().rev().take_while(|byte| **byte == 0).count() as u64
}

fn open(path: &Path) -> File {
    File::options().read(true).write(true).open(path).expect("opens")
}

pub fn an_unreachable_coordinator_is_named() {
    let dev = Dev::start_with(New { nodes: 1, disk_size: "256MiB", ..New::default() });
    let file = dev.path("kept.json");
    fs::copy(dev.cluster_file(), &file).expect("copies");
    let address = dev.cluster()["api"].as_str().expect("a URL").to_owned();
    dev.kill_node("coordinator");
    let file = text(&file);
    for args in [&["status"][..], &["volume", "list"], &["volume", "create", "v", "--size", "8MiB"]] {
        refused(&run(Command::new(binary()).args(args).args(["--cluster", &file])), &["coordinator", &address]);
    }
    let waited = run(Command::new(binary()).args(["wait", "ready", "--timeout", "1", "--cluster", &file]));
    assert_eq!(waited.status.code(), Some(1));
    assert!(waited.stderr.contains("trying again") && waited.stderr.contains(&address), "{}", waited.stderr);
    let health = run(Command::new(binary()).args(["health", "--cluster", &file]));
    assert_eq!(health.status.code(), Some(2), "{}", health.text());
    dev.start_node("coordinator");
    dev.finish();
}

pub fn garbage_on_the_ports_harms_nothing() {
    let mut dev = Dev::start();
    dev.create_volume("v", "8MiB");
    let gateway = dev.gateway("v");
    let load = gateway.load(256);
    load.wait_for_more(50);
    let cluster = dev.cluster();
    let daemons = cluster["nodes"].as_array().expect("nodes").iter().chain([&cluster["coordinator"]]);
    let (mut quic, mut admin) = (Vec::new(), Vec::new());
    for daemon in daemons {
        quic.push(daemon["addr"].as_str().expect("an address").to_owned());
        admin.push(daemon["admin_url"].as_str().expect("a URL").trim_start_matches("http://").to_owned());
    }
    for round in 0..20 {
        for address in &quic {
            let socket = UdpSocket::bind("127.0.0.1:0").expect("binds");
            for len in [1, 20, 1200, 1452, 9000] {
                let mut bytes = pattern(len, round * 31 + len);
                // Every second packet looks like an Initial of QUIC version 1.
                if round % 2 == 0 && len > 5 {
                    bytes[..5].copy_from_slice(&[0xc3, 0, 0, 0, 1]);
                }
                // A full buffer over there is as good as a packet that is thrown away.
                let _ = socket.send_to(&bytes, address);
            }
        }
        for address in &admin {
            let mut stream = TcpStream::connect(address).expect("connects");
            // The server may hang up in the middle: that is its right.
            let _ = stream.write_all(&pattern(64 * KIB, round));
        }
        // At the greeting, and in the place of a request after a proper handshake.
        let mut stream = UnixStream::connect(&gateway.socket).expect("connects");
        let _ = stream.write_all(&pattern(64 * KIB, round));
        let _ = gateway.client().send_raw(&pattern(64 * KIB, round + 100));
    }
    load.wait_for_more(200);
    load.stop_and_verify(&gateway.socket, "v");
    dev.wait_clean();
    let nodes = dev.status()["nodes"].as_array().expect("nodes").clone();
    assert!(nodes.iter().all(|node| node["state"] == "up"), "{nodes:?}");
    assert_eq!(dev.cluster(), cluster, "a daemon has ended");
    drop(gateway);
    still_serves(&mut dev);
    dev.finish();
}
