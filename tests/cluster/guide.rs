//! The operator's guide: its commands are typed as they stand, in their order, on a cluster of its nodes.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use crate::dev::{Dev, New, binary};
use crate::prometheus::{shipped, shipped_text};
use crate::tools::{run, run_ok};

/// Never end by themselves.
const ENDLESS: [&str; 1] = ["evenkeel resync watch"];

/// The lines of the guide's boxes without a language, less comments.
fn lines() -> Vec<String> {
    let text = shipped_text("deploy/README.md");
    let mut boxed = None::<bool>;
    let mut out = Vec::new();
    for line in text.lines() {
        match (line.strip_prefix("```"), boxed) {
            (Some(language), None) => boxed = Some(language.is_empty()),
            (Some(_), Some(_)) => boxed = None,
            (None, Some(true)) => out.push(line.split("  #").next().unwrap_or(line).trim_end().to_owned()),
            (None, _) => {}
        }
    }
    assert!(boxed.is_none(), "a box is open at the end");
    assert!(out.len() > 50, "{out:?}");
    out
}

pub fn its_commands_do_what_it_says() {
    let lines = lines();
    units_and_files_exist(&lines);
    // n1 to n3, and the one that dies.
    let dev = Dev::start_with(New { nodes: 4, ..New::default() });
    let home = dev.path("home");
    fs::create_dir(&home).expect("makes a folder");
    let path = format!("{}:{}", binary().parent().expect("a folder").display(), std::env::var("PATH").expect("a path"));
    let mut count = 0;
    for line in lines.iter().filter(|line| !ENDLESS.contains(&line.as_str())) {
        let Some(command) =
            line.strip_prefix("sudo -u evenkeel ").or(Some(line)).filter(|l| l.starts_with("evenkeel "))
        else {
            continue;
        };
        // Its own places instead of the system's.
        let command = command.replace("/var/lib/evenkeel", "var").replace("/etc/prometheus/evenkeel", "etc");
        if command == "evenkeel node drain n4" {
            dev.kill_node("n4");
        }
        let mut shell = Command::new("bash");
        shell.args(["-euo", "pipefail", "-c", &command]).current_dir(&home).env("PATH", &path);
        shell.env_remove("EVENKEEL_API").env_remove("EVENKEEL_TOKEN_FILE").env("EVENKEEL_CLUSTER", dev.cluster_file());
        let ended = run(&mut shell);
        // `health` tells by its code that a node is down.
        let is_told = command == "evenkeel health" && ended.status.code() < Some(2);
        assert!(ended.status.success() || is_told, "{command}: {}\n{}", ended.status, ended.text());
        count += 1;
    }
    assert!(count > 30, "only {count} commands");
    assert!(home.join("var/coordinator/api.token").exists() && home.join("etc/certificate/key.pem").exists());
    dev.finish();
}

/// Units, programs and files that the lines name are shipped.
fn units_and_files_exist(lines: &[String]) {
    let units: BTreeSet<String> = fs::read_dir(shipped("deploy/systemd"))
        .expect("units")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    let mut named = 0;
    for line in lines.iter().filter(|line| line.starts_with("sudo systemctl ")) {
        for word in line.split(' ').filter(|word| word.starts_with("evenkeel-")) {
            let (unit, instance) = word.split_once('@').unwrap_or((word, ""));
            let kind = if instance.ends_with(".timer") { "timer" } else { "service" };
            let file = if instance.is_empty() { format!("{unit}.{kind}") } else { format!("{unit}@.{kind}") };
            assert!(units.contains(&file), "{line}: there is no {file}");
            named += 1;
        }
    }
    assert!(named > 8, "only {named} units are named");
    let package = shipped_text("Cargo.toml");
    for line in lines {
        for word in line.split(' ').filter_map(|word| word.strip_prefix("/usr/")) {
            assert!(package.contains(&format!("\"usr/{word}")), "{line}: the package has no /usr/{word}");
        }
        run_ok(Command::new("bash").args(["-n", "-c", line]));
    }
}
