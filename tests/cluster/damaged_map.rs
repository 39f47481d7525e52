//! Every file of the coordinator's map, damaged in every way: it refuses to start, names the file and the way out, nodes
//! keep serving, and the saved files make all well again. So does the newest copy after an older one was put back.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::dev::{Dev, Gateway};
use crate::nbd::Load;
use crate::refusals::{copy, refused_start};
use crate::tools::{MIB, pattern, wait_for};

/// A kind of damage.
type Damage = (&'static str, fn(&Path));

const DAMAGE: [Damage; 5] = [
    ("cut in half", |path| {
        let used = used_bytes(path);
        open(path).set_len(used / 2).expect("cuts");
    }),
    ("cut to nothing", |path| open(path).set_len(0).expect("cuts")),
    ("zeroed", |path| {
        let len = path.metadata().expect("metadata").len();
        open(path).write_all_at(&vec![0; len as usize], 0).expect("writes");
    }),
    ("overwritten", |path| open(path).write_all_at(&pattern(used_bytes(path), 8), 0).expect("writes")),
    ("removed", |path| fs::remove_file(path).expect("removes")),
];

/// Without what was only preallocated.
fn used_bytes(path: &Path) -> u64 {
    let bytes = fs::read(path).expect("reads");
    (bytes.len() - bytes.iter().rev().take_while(|byte| **byte == 0).count()) as u64
}

fn open(path: &Path) -> File {
    File::options().read(true).write(true).open(path).expect("opens")
}

/// The map's files: the marker, and all of sled's.
fn files(home: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> =
        fs::read_dir(home.join("meta")).expect("sled's folder").map(|entry| entry.expect("an entry").path()).collect();
    found.retain(|path| path.is_file() && path.metadata().expect("metadata").len() > 0);
    found.push(home.join("meta.marker"));
    found.sort();
    found
}

/// A guest that writes to a volume of so many 4 KiB blocks, and a coordinator that was killed meanwhile.
fn without_coordinator(blocks: u64) -> (Dev, Gateway, Load) {
    let mut dev = Dev::start();
    dev.create_volume("v", &(blocks * 4096).to_string());
    let gateway = dev.gateway("v");
    let load = gateway.load(blocks);
    load.wait_for_more(200);
    dev.kill_node("coordinator");
    (dev, gateway, load)
}

pub fn every_damage_is_refused_and_undone_by_a_saved_copy() {
    let (dev, gateway, load) = without_coordinator(2048);
    let home = dev.dir().join("coordinator");
    let saved = dev.path("saved");
    copy(&home, &saved);
    for path in files(&home) {
        for (what, damage) in DAMAGE {
            let name = path.file_name().and_then(|name| name.to_str()).expect("a name").to_owned();
            println!("    {name} is {what}");
            damage(&path);
            match name.as_str() {
                // sled can do without: it scans its log, and its settings are the default ones. Then nothing may be missing.
                name if name == "conf" || name.starts_with("snap.") => starts_or_is_refused(&dev),
                // Its two slots are for a torn write of one of them.
                "meta.marker" if what == "cut in half" => starts_or_is_refused(&dev),
                "meta.marker" => refused_start(&dev, "coordinator", &["meta", "marker"]),
                _ => refused_start(&dev, "coordinator", &["meta", "put back"]),
            }
            load.wait_for_more(50);
            fs::remove_dir_all(&home).expect("removes");
            copy(&saved, &home);
        }
    }
    dev.start_node("coordinator");
    dev.wait_clean();
    assert_eq!(dev.json(&["volume", "show", "v"])["size_bytes"], 8 * MIB);
    load.wait_for_more(200);
    load.stop_and_verify(&gateway.socket, "v");
    drop(gateway);
    dev.finish();
}

fn starts_or_is_refused(dev: &Dev) {
    let dir = dev.dir().display().to_string();
    let started = dev.try_cli(&["dev", "start-node", "--dir", &dir, "coordinator"]);
    if started.status.success() {
        assert_eq!(dev.json(&["volume", "show", "v"])["size_bytes"], 8 * MIB);
        dev.kill_node("coordinator");
    } else {
        assert!(started.stderr.contains("meta"), "{}", started.text());
    }
}

/// R4: nodes serve on by the map that they know, and nothing is changed until the newest copy is back.
pub fn an_older_copy_is_not_taken_for_the_map() {
    let (dev, gateway, load) = without_coordinator(8192);
    let (home, older, newest) = (dev.dir().join("coordinator"), dev.path("older"), dev.path("newest"));
    copy(&home, &older);
    dev.start_node("coordinator");
    // What the older copy doesn't know: a node that holds copies, and a volume.
    dev.add_node();
    dev.wait_clean();
    dev.create_volume("w", "8MiB");
    dev.kill_node("coordinator");
    fs::rename(&home, &newest).expect("moves");
    copy(&older, &home);

    dev.start_node("coordinator");
    let health = wait_for("a node says that it has seen a newer map", || {
        let health = dev.try_cli(&["health", "--explain"]);
        health.stdout.contains("old copy of its map").then_some(health)
    });
    assert_eq!(health.status.code(), Some(2), "{}", health.text());
    assert!(health.stdout.contains("put back its newest directory"), "{}", health.text());
    for change in [
        &["volume", "create", "x", "--size", "8MiB"][..],
        &["volume", "delete", "v", "--yes"],
        &["node", "drain", "n1"],
        &["resync", "set", "--cap", "20MiB/s"],
    ] {
        let refused = dev.try_cli(change);
        assert!(!refused.status.success(), "{change:?}: {}", refused.text());
        assert!(refused.stderr.contains("old copy of its map"), "{change:?}: {}", refused.text());
    }
    load.wait_for_more(200);

    dev.kill_node("coordinator");
    fs::remove_dir_all(&home).expect("removes");
    fs::rename(&newest, &home).expect("moves");
    dev.start_node("coordinator");
    dev.wait_clean();
    assert_eq!(dev.json(&["volume", "show", "w"])["size_bytes"], 8 * MIB);
    assert_eq!(dev.json(&["node", "list"]).as_array().map(Vec::len), Some(4));
    load.wait_for_more(200);
    load.stop_and_verify(&gateway.socket, "v");
    drop(gateway);
    dev.finish();
}
