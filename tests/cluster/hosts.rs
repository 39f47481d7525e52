//! Five hosts, each with an address, file systems and a firewall of its own, under the shipped configurations: what
//! `deploy/netns/five-hosts` brings up. The firewalls open what the guide's table of ports lists.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::dev::{Daemon, binary, first_word};
use crate::nbd::Load;
use crate::prometheus::shipped;
use crate::tools::{MIB, missing, pattern, run, run_ok, tail, wait_for};

const VOLUME: &str = "vm1";
/// The load's part of the volume: its first 8 MiB.
const LOAD_BLOCKS: u64 = 2048;
const HOSTS: std::ops::RangeInclusive<u32> = 1..=5;

/// The script's cluster; it ends with its value, and with this process.
struct FiveHosts {
    script: Option<Child>,
    folder: TempDir,
}

fn script(args: &[&str], dir: &Path) -> Command {
    let mut command = Command::new(shipped("deploy/netns/five-hosts"));
    command.args(args).arg(dir).env("EVENKEEL_BIN", binary());
    command
}

impl FiveHosts {
    /// Begins to start them.
    fn begin() -> FiveHosts {
        assert!(rustix::process::geteuid().is_root(), "hosts with mounts and users of their own: this test needs root");
        let folder = tempfile::Builder::new().prefix("evenkeel-hosts-").tempdir().expect("a temporary folder");
        let log = fs::File::create(folder.path().join("up.log")).expect("makes the log");
        let mut command = script(&["up", "--stay"], &folder.path().join("d"));
        command.stdin(Stdio::piped()).stdout(log.try_clone().expect("a handle")).stderr(log);
        let child = command.spawn().unwrap_or_else(|error| panic!("{}", missing(&command, &error)));
        FiveHosts { script: Some(child), folder }
    }

    fn up() -> FiveHosts {
        let mut five = FiveHosts::begin();
        five.wait_until_there_is("ready");
        five
    }

    /// Waits for a file below its directory.
    fn wait_until_there_is(&mut self, file: &str) {
        wait_for(&format!("there is {file}"), || {
            let ended = self.script.as_mut().expect("it runs").try_wait().expect("waits");
            assert!(ended.is_none(), "{ended:?}: {}", self.log());
            self.dir().join(file).exists().then_some(())
        });
    }

    fn dir(&self) -> PathBuf {
        self.folder.path().join("d")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("up.log")).unwrap_or_default()
    }

    fn host(&self, host: u32) -> PathBuf {
        self.dir().join(format!("hosts/{host}"))
    }

    /// A command on a host.
    fn on(&self, host: u32, args: &[&str]) -> Command {
        let mut command = script(&["exec"], &self.dir());
        command.arg(host.to_string()).args(args);
        command
    }

    fn json(&self, args: &[&str]) -> Value {
        let text = run_ok(&mut self.on(1, &[&["evenkeel"], args, &["-o", "json"]].concat()));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("evenkeel {args:?}: {error}: {text}"))
    }

    /// The states of the nodes, by name.
    fn states(&self) -> BTreeMap<String, String> {
        let word = |value: &Value| value.as_str().expect("a word").to_owned();
        let status = self.json(&["status"]);
        let nodes = status["nodes"].as_array().expect("nodes").iter();
        nodes.map(|node| (word(&node["name"]), word(&node["state"]))).collect()
    }

    fn all_up(&self) -> bool {
        self.states().values().filter(|state| *state == "up").count() == HOSTS.count()
    }

    fn socket(&self) -> PathBuf {
        self.host(5).join(format!("run/evenkeel/{VOLUME}.sock"))
    }

    fn qemu_io(&self, commands: &[&str]) {
        let mut command = Command::new("qemu-io");
        command.args(["-f", "raw", &format!("nbd+unix:///{VOLUME}?socket={}", self.socket().display())]);
        let printed = run_ok(command.args(commands.iter().flat_map(|line| ["-c", line])));
        assert!(!printed.contains("failed"), "{printed}");
    }

    /// How many packets a host's firewall has counted, by rule: `udp dpt:7410`, `udp DROP` …
    fn counted(&self, host: u32) -> BTreeMap<String, u64> {
        let rules = run_ok(&mut self.on(host, &["iptables", "-w", "-L", "INPUT", "-v", "-x", "-n"]));
        let mut counted = BTreeMap::new();
        for line in rules.lines().skip(2) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let protocol = match words[3] {
                "6" | "tcp" => "tcp",
                "17" | "udp" => "udp",
                _ => continue,
            };
            let port = words.last().filter(|word| word.starts_with("dpt:"));
            counted.insert(format!("{protocol} {}", port.unwrap_or(&words[2])), words[0].parse().expect("a count"));
        }
        assert!(counted.len() > 4, "{rules}");
        counted
    }

    /// Datagrams and segments that firewalls have kept out, by host.
    fn dropped(&self) -> Vec<(u32, String, u64)> {
        let all = HOSTS.flat_map(|host| self.counted(host).into_iter().map(move |(rule, n)| (host, rule, n)));
        all.filter(|(_, rule, n)| rule.ends_with(" DROP") && *n > 0).collect()
    }

    /// Nothing has panicked so far.
    fn check_logs(&self) {
        for (path, text) in self.logs() {
            let line = text.lines().find(|line| line.contains("panicked"));
            assert!(line.is_none(), "{}: {}", path.display(), line.unwrap_or_default());
        }
    }

    fn logs(&self) -> Vec<(PathBuf, String)> {
        let files = HOSTS.filter_map(|host| fs::read_dir(self.host(host).join("log")).ok()).flatten().flatten();
        files.map(|file| (file.path(), fs::read_to_string(file.path()).unwrap_or_default())).collect()
    }

    /// Stops them as their owner's end does; nothing is left but their data.
    fn finish(mut self) {
        self.check_logs();
        let mut script = self.script.take().expect("it runs");
        drop(script.stdin.take());
        let status = wait_for("the hosts end", || script.try_wait().expect("waits"));
        let log = self.log();
        assert!(status.success() && !log.contains("killed"), "{status}: {log}");
        self.check_logs();
        assert_eq!(self.leftovers(), Vec::<String>::new(), "{log}");
        assert!(self.host(1).join("lib/coordinator/api.token").exists(), "the data has gone");
    }

    /// Processes of the script, and those that see a host's mounts; this process would see a mount that was left.
    fn leftovers(&self) -> Vec<String> {
        let dir = self.dir().display().to_string();
        let mut found = Vec::new();
        for process in fs::read_dir("/proc").expect("/proc").flatten() {
            // Those that end meanwhile have no files.
            let text = |name: &str| fs::read(process.path().join(name)).unwrap_or_default();
            let has = |name: &str| String::from_utf8_lossy(&text(name)).contains(&dir);
            if has("mountinfo") || has("cmdline") {
                found.push(format!("{}: {}", process.path().display(), String::from_utf8_lossy(&text("cmdline"))));
            }
        }
        found
    }
}

impl Drop for FiveHosts {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- up.log ---\n{}", tail(&self.log(), 25));
            if self.dir().join("ready").exists() {
                eprintln!("{}", run(&mut self.on(1, &["evenkeel", "status"])).text());
            }
            for (path, text) in self.logs() {
                eprintln!("--- {} ---\n{}", path.display(), tail(&text, 25));
            }
            if std::env::var_os("EVENKEEL_KEEP").is_some() {
                self.folder.disable_cleanup(true);
                eprintln!("kept {}", self.folder.path().display());
            }
        }
        if let Some(mut script) = self.script.take() {
            drop(script.stdin.take());
            let _ = script.wait();
        }
    }
}

pub fn a_guest_outlives_a_pulled_cable_behind_firewalls() {
    let five = FiveHosts::up();
    assert!(five.all_up(), "{:?}", five.states());
    let load = Load::start(&five.socket(), VOLUME, LOAD_BLOCKS);
    // Over many placement groups.
    five.qemu_io(&["write -P 1 256M 64M", "flush"]);
    load.wait_for_more(300);
    readers_come_in(&five);
    assert_eq!(five.dropped(), [], "what the table of ports lists is not enough");

    run_ok(&mut five.on(3, &["ip", "link", "set", "eth0", "down"]));
    wait_for("the node is missed", || (five.states()["n3"] == "down").then_some(()));
    five.qemu_io(&["write -P 2 288M 64M", "flush", "read -P 1 256M 32M", "read -P 2 288M 64M"]);
    load.wait_for_more(500);
    assert_eq!(five.states()["n3"], "down", "the cable was not out");
    let health = run(&mut five.on(1, &["evenkeel", "health"]));
    assert!(health.stdout.contains("n3"), "{}", health.text());

    run_ok(&mut five.on(3, &["ip", "link", "set", "eth0", "up"]));
    wait_for("every node is back", || five.all_up().then_some(()));
    run_ok(&mut five.on(1, &["evenkeel", "wait", "clean", "--timeout", "110"]));
    load.wait_for_more(300);
    wait_for("the host has its tunnel again", || {
        let answer = run(&mut five.on(3, &["curl", "-s", "--max-time", "5", "http://127.0.0.1:7400/v1/status"]));
        answer.status.success().then_some(())
    });
    load.stop_and_verify(&five.socket(), VOLUME);
    five.qemu_io(&["read -P 1 256M 32M", "read -P 2 288M 64M", "read -P 0 352M 32M"]);
    returned_copies_are_right(&five);

    // Each row of the table is there for something.
    let mut let_in = BTreeMap::<String, u64>::new();
    for host in HOSTS {
        five.counted(host).into_iter().for_each(|(rule, n)| *let_in.entry(rule).or_default() += n);
    }
    let rules: BTreeSet<&str> = let_in.keys().map(String::as_str).filter(|rule| rule.contains("dpt:")).collect();
    let table = ["tcp 22", "tcp 7411", "tcp 7420", "udp 7401", "udp 7410", "udp 7411", "udp 7412"];
    assert_eq!(rules, table.map(|row| row.replace(' ', " dpt:")).iter().map(String::as_str).collect());
    assert!(rules.iter().all(|rule| let_in[*rule] > 0), "nobody came in by one: {let_in:?}");
    assert_eq!(five.dropped(), [], "what the table of ports lists is not enough after a cut");
    other_ports_are_closed(&five);
    five.finish();
}

/// Prometheus on another host reads a node and a gateway, with a viewer's certificate.
fn readers_come_in(five: &FiveHosts) {
    let out = "/run/evenkeel-certificate";
    run_ok(&mut five.on(1, &["evenkeel", "certificate", "--role", "viewer", "--name", "prometheus", "--out", out]));
    let [from, to] = [1, 4].map(|host| five.host(host).join("run/evenkeel-certificate"));
    run_ok(Command::new("cp").arg("-r").args([from, to]));
    let cluster = five.json(&["status"])["cluster"].as_str().expect("an id").to_owned();
    let [cert, key, ca] = ["cert.pem", "key.pem", "ca.pem"].map(|file| format!("{out}/{file}"));
    for address in ["10.0.0.12:7411", "10.0.0.15:7420"] {
        let (connect, url) = (format!("::{address}"), format!("https://{cluster}.evenkeel/metrics"));
        let get = ["curl", "-sS", "--max-time", "20", "-w", "%{http_code}", "--cacert", &ca, "--connect-to", &connect];
        let metrics = run_ok(&mut five.on(4, &[&get[..], &["--cert", &cert, "--key", &key, &url]].concat()));
        assert!(metrics.contains("evenkeel_build_info") && metrics.ends_with("200"), "{address}: {metrics}");
        let refused = run_ok(&mut five.on(4, &[&get[..], &[&url]].concat()));
        assert!(refused.ends_with("401"), "{address}: {refused}");
    }
}

/// With another host gone, those that were away serve what was written meanwhile.
fn returned_copies_are_right(five: &FiveHosts) {
    let hash = || first_word(&run_ok(&mut five.on(1, &["evenkeel", "volume", "hash", VOLUME])));
    let before = hash();
    run_ok(&mut five.on(2, &["ip", "link", "set", "eth0", "down"]));
    wait_for("the other node is missed", || (five.states()["n2"] == "down").then_some(()));
    five.qemu_io(&["read -P 1 256M 32M", "read -P 2 288M 64M"]);
    assert_eq!(hash(), before, "a copy of the host that came back has other content");
    run_ok(&mut five.on(2, &["ip", "link", "set", "eth0", "up"]));
    wait_for("every node is back", || five.all_up().then_some(()));
}

/// A server at a port that the table doesn't list: its own host reaches it, another one does not.
fn other_ports_are_closed(five: &FiveHosts) {
    fs::write(five.host(2).join("run/image"), pattern(MIB, 1)).expect("writes");
    let mut serve = five.on(2, &["qemu-nbd", "-r", "-t", "-f", "raw", "-b", "10.0.0.12", "-p", "10809", "/run/image"]);
    let _server = Daemon::spawn(&mut serve, &five.host(2).join("log/qemu-nbd.log"));
    // Without an answer at all it would wait for minutes.
    let size = ["timeout", "3", "nbdinfo", "--size", "nbd://10.0.0.12:10809"];
    wait_for("its own host reaches it", || run(&mut five.on(2, &size)).stdout.starts_with("1048576").then_some(()));
    let before = five.counted(2)["tcp DROP"];
    let ended = run(&mut five.on(3, &size));
    assert_eq!(ended.status.code(), Some(124), "{}", ended.text());
    assert!(five.counted(2)["tcp DROP"] > before, "nothing was kept out");
}

/// A start that fails, and one whose owner is killed in its middle.
pub fn a_start_that_fails_leaves_nothing() {
    let mut five = FiveHosts::begin();
    five.wait_until_there_is("hosts/1/log/evenkeel-coordinator.log");
    assert!(!five.leftovers().is_empty(), "what it has started isn't found");
    let mut owner = five.script.take().expect("it runs");
    owner.kill().expect("it runs");
    owner.wait().expect("waits");
    wait_for("everything ends with its owner", || five.leftovers().is_empty().then_some(()));

    // On what that has left, and in vain: `down` is for a start that nobody owns.
    let ended = run(script(&["up"], &five.dir()).env("EVENKEEL_BIN", "/bin/false"));
    assert_eq!(ended.status.code(), Some(1), "{}", ended.text());
    assert!(ended.stderr.contains("the start failed"), "{}", ended.text());
    assert_eq!(five.leftovers(), Vec::<String>::new(), "{}", ended.text());
    let down = run_ok(&mut script(&["down"], &five.dir()));
    assert!(down.contains("down already"), "{down}");
}
