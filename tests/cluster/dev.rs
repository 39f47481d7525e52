//! A local cluster of real processes, `evenkeel dev`, in a directory of its own; it ends with its value.

use std::any::Any;
use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::nbd::{Client, Load};
use crate::net::Namespace;
use crate::tools::{Ended, PATIENCE, run, run_ok, tail, wait_for};

/// The daemon under test.
pub fn binary() -> PathBuf {
    std::env::var_os("EVENKEEL_BIN").map_or_else(|| env!("CARGO_BIN_EXE_evenkeel").into(), PathBuf::from)
}

/// A child process that ends with its value, and with this process.
pub struct Daemon {
    child: Child,
    pub log: PathBuf,
}

impl Daemon {
    /// Starts a program, logging to `log`.
    pub fn spawn(command: &mut Command, log: &Path) -> Daemon {
        let out = File::options().create(true).append(true).open(log).expect("opens the log");
        // What daemons log is for who runs a test to say; nothing else of its surroundings reaches them.
        let set = std::env::vars_os().map(|(key, _)| key.to_string_lossy().into_owned());
        for key in set.filter(|key| key.starts_with("EVENKEEL_") && key != "EVENKEEL_LOG") {
            command.env_remove(key);
        }
        command.env("EVENKEEL_PARENT_PID", std::process::id().to_string()).stdin(Stdio::null());
        let child = command.stdout(out.try_clone().expect("a handle")).stderr(out).spawn().expect("starts");
        Daemon { child, log: log.to_owned() }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: &str) {
        run_ok(Command::new("kill").args(["-s", signal, &self.pid().to_string()]));
    }

    pub fn log_text(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("waits")
    }

    pub fn wait(&mut self) -> ExitStatus {
        wait_for("a process ends", || self.ended())
    }

    /// Asks it to stop and waits for a clean end.
    pub fn stop(&mut self) {
        self.signal("TERM");
        let status = self.wait();
        assert!(status.success(), "a clean stop ended with {status}:\n{}", tail(&self.log_text(), 20));
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // A clean stop first, so that a supervisor ends its children; KILL after that.
            let _ = Command::new("kill").args(["-s", "TERM", &self.pid().to_string()]).status();
            let deadline = Instant::now() + Duration::from_secs(20);
            while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(20));
            }
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// A gateway that serves one volume.
pub struct Gateway {
    pub daemon: Daemon,
    pub socket: PathBuf,
    pub volume: String,
    args: Vec<String>,
}

impl Gateway {
    pub fn uri(&self) -> String {
        format!("nbd+unix:///{}?socket={}", self.volume, self.socket.display())
    }

    pub fn client(&self) -> Client {
        Client::connect(&self.socket, &self.volume).expect("connects")
    }

    pub fn load(&self, blocks: u64) -> Load {
        Load::start(&self.socket, &self.volume, blocks)
    }

    /// Waits until it serves.
    pub fn wait_serving(&mut self) {
        wait_for("the gateway serves", || {
            if let Some(status) = self.daemon.ended() {
                panic!("the gateway ended with {status}:\n{}", tail(&self.daemon.log_text(), 20));
            }
            self.socket.exists().then_some(())
        });
    }

    /// Waits until a client finds a server behind the socket.
    pub fn wait_connects(&self) -> Client {
        wait_for("the gateway takes a client", || Client::connect(&self.socket, &self.volume).ok())
    }
}

/// What a cluster begins with.
#[derive(Clone, Copy)]
pub struct New {
    pub nodes: u32,
    pub disk_size: &'static str,
    /// It runs in a network of its own, in which packets can be dropped.
    pub own_network: bool,
}

impl Default for New {
    fn default() -> Self {
        New { nodes: 3, disk_size: "4GiB", own_network: false }
    }
}

/// A running `evenkeel dev`.
pub struct Dev {
    // First, so that the processes end before their directory goes, and what is mounted in it.
    supervisor: Option<Daemon>,
    network: Option<Namespace>,
    kept: Vec<Box<dyn Any>>,
    folder: TempDir,
    gateways: u32,
}

impl Dev {
    pub fn start() -> Dev {
        Dev::start_with(New::default())
    }

    pub fn start_with(new: New) -> Dev {
        let folder = tempfile::Builder::new().prefix("evenkeel-cluster-").tempdir().expect("a temporary folder");
        let network = new.own_network.then(Namespace::new);
        let mut dev = Dev { supervisor: None, network, kept: Vec::new(), folder, gateways: 0 };
        dev.run(&["--nodes", &new.nodes.to_string(), "--disk-size", new.disk_size]);
        dev
    }

    /// Starts it again on the same directory.
    pub fn start_again(&mut self) {
        assert!(self.supervisor.is_none(), "it runs");
        self.run(&[]);
    }

    fn run(&mut self, extra: &[&str]) {
        let dir = self.dir().display().to_string();
        let log = self.path("dev.log");
        // One that was left by a killed supervisor says nothing about this start.
        let _ = fs::remove_file(self.path("d/cluster.json"));
        let daemon = Daemon::spawn(self.command().args(["dev", "--dir", &dir]).args(extra), &log);
        let supervisor = self.supervisor.insert(daemon);
        let file = self.folder.path().join("d/cluster.json");
        let pid = supervisor.pid();
        wait_for("the cluster is ready", || {
            if let Some(status) = supervisor.ended() {
                panic!("dev (pid {pid}) ended with {status}:\n{}", tail(&supervisor.log_text(), 20));
            }
            file.exists().then_some(())
        });
    }

    /// The binary, in the network that the cluster runs in.
    pub fn command(&self) -> Command {
        self.network.as_ref().map_or_else(|| Command::new(binary()), |network| network.command(&binary()))
    }

    /// The cluster's own network.
    pub fn network(&self) -> &Namespace {
        self.network.as_ref().expect("it began with a network of its own")
    }

    /// Puts something else below the disk of nodes: `mount` gets where the disk's directory is now and where it is
    /// looked for, an empty directory. What it gives is kept until the daemons have ended.
    pub fn put_below<T: 'static>(&mut self, nodes: &[&str], mount: impl Fn(&Path, &Path) -> T) -> Vec<Arc<T>> {
        self.stop();
        let mounts = nodes.iter().map(|node| self.put_below_folder(&format!("nodes/{node}-disk1"), &mount)).collect();
        self.start_again();
        mounts
    }

    /// The same for the coordinator's directory.
    pub fn put_below_coordinator<T: 'static>(&mut self, mount: impl Fn(&Path, &Path) -> T) -> Arc<T> {
        self.stop();
        let mount = self.put_below_folder("coordinator", &mount);
        self.start_again();
        mount
    }

    fn put_below_folder<T: 'static>(&mut self, folder: &str, mount: &impl Fn(&Path, &Path) -> T) -> Arc<T> {
        let (at, moved) = (self.dir().join(folder), self.path(&folder.replace('/', "-")));
        fs::rename(&at, &moved).expect("moves the directory");
        fs::create_dir(&at).expect("makes a directory");
        let mount = Arc::new(mount(&moved, &at));
        self.kept.push(Box::new(mount.clone()));
        mount
    }

    /// A path outside the cluster's directory that goes with it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn dir(&self) -> PathBuf {
        self.path("d")
    }

    pub fn cluster_file(&self) -> PathBuf {
        self.dir().join("cluster.json")
    }

    /// What `cluster.json` says now.
    pub fn cluster(&self) -> Value {
        let text = fs::read_to_string(self.cluster_file()).expect("cluster.json");
        serde_json::from_str(&text).expect("JSON")
    }

    /// A node as `cluster.json` has it.
    pub fn node(&self, name: &str) -> Value {
        let cluster = self.cluster();
        let nodes = cluster["nodes"].as_array().expect("nodes").clone();
        nodes.into_iter().find(|node| node["name"] == name).unwrap_or_else(|| panic!("no node {name}: {cluster}"))
    }

    pub fn pid_of(&self, node: &str) -> u64 {
        self.node(node)["pid"].as_u64().expect("a process id")
    }

    /// The directory of a node's disk.
    pub fn disk_path(&self, node: &str) -> PathBuf {
        self.node(node)["disks"][0]["path"].as_str().expect("a path").into()
    }

    /// A node's disk as `status` has it.
    pub fn disk_status(&self, node: &str) -> Value {
        let disks = self.status()["disks"].as_array().expect("disks").clone();
        disks.into_iter().find(|disk| disk["node"] == node).unwrap_or_else(|| panic!("{node} has no disk"))
    }

    /// Kills processes with one call, so that none sees another's end first, and waits until all have gone.
    pub fn kill_at_once(&self, pids: &[u64]) {
        let arguments = pids.iter().map(u64::to_string);
        run_ok(Command::new("kill").args(["-s", "KILL"]).args(arguments));
        wait_for("the killed processes end", || pids.iter().all(|pid| !is_evenkeel(*pid)).then_some(()));
    }

    /// Stops it cleanly.
    pub fn stop(&mut self) {
        self.supervisor.take().expect("it runs").stop();
    }

    /// Kills the supervisor, and with it every daemon.
    pub fn kill(&mut self) {
        let pids: Vec<u64> = self.daemon_pids();
        let mut supervisor = self.supervisor.take().expect("it runs");
        supervisor.signal("KILL");
        assert_eq!(supervisor.wait().signal(), Some(9));
        wait_for("the daemons end with their supervisor", || pids.iter().all(|pid| !is_evenkeel(*pid)).then_some(()));
    }

    fn daemon_pids(&self) -> Vec<u64> {
        let cluster = self.cluster();
        let nodes = cluster["nodes"].as_array().expect("nodes").iter().map(|node| &node["pid"]);
        nodes.chain([&cluster["coordinator"]["pid"]]).filter_map(Value::as_u64).filter(|pid| *pid != 0).collect()
    }

    /// Runs a command against this cluster.
    pub fn try_cli(&self, args: &[&str]) -> Ended {
        let mut command = self.command();
        command.env_remove("EVENKEEL_API").env_remove("EVENKEEL_TOKEN_FILE");
        run(command.args(args).env("EVENKEEL_CLUSTER", self.cluster_file()))
    }

    /// Runs a command that must succeed; gives its output.
    pub fn cli(&self, args: &[&str]) -> String {
        let ended = self.try_cli(args);
        assert!(ended.status.success(), "evenkeel {args:?}: {}\n{}", ended.status, ended.text());
        ended.stdout
    }

    /// Runs a reading command; gives its JSON.
    pub fn json(&self, args: &[&str]) -> Value {
        let text = self.cli(&[args, &["-o", "json"]].concat());
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("evenkeel {args:?}: {error}: {text}"))
    }

    pub fn status(&self) -> Value {
        self.json(&["status"])
    }

    /// `resync.bytes_done`.
    pub fn resynced_bytes(&self) -> u64 {
        self.status()["resync"]["bytes_done"].as_u64().expect("a number")
    }

    fn dev_command(&self, command: &str, rest: &[&str]) -> String {
        self.cli(&[&["dev", command, "--dir", &self.dir().display().to_string()], rest].concat())
    }

    /// Adds a node; gives its JSON.
    pub fn add_node(&self) -> Value {
        self.add_node_with(&[])
    }

    /// The same with options.
    pub fn add_node_with(&self, options: &[&str]) -> Value {
        serde_json::from_str(&self.dev_command("add-node", options)).expect("JSON")
    }

    pub fn kill_node(&self, name: &str) {
        self.signal_node(name, "KILL");
    }

    /// Sends a daemon a signal.
    pub fn signal_node(&self, name: &str, signal: &str) {
        self.dev_command("kill-node", &[name, "--signal", signal]);
    }

    /// Is this node's process stopped by a signal?
    pub fn is_frozen(&self, name: &str) -> bool {
        let pid = self.node(name)["pid"].clone();
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process is there");
        // The state is the first word after the command, which stands in brackets.
        stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'))
    }

    /// What the coordinator says of a node: `up`, `suspect`, `down` …
    pub fn node_state(&self, name: &str) -> String {
        let nodes = self.status()["nodes"].as_array().expect("nodes").clone();
        let node = nodes.iter().find(|node| node["name"] == name).unwrap_or_else(|| panic!("no node {name}"));
        node["state"].as_str().expect("a word").to_owned()
    }

    /// Every node's name.
    pub fn node_names(&self) -> Vec<String> {
        let cluster = self.cluster();
        let nodes = cluster["nodes"].as_array().expect("nodes").iter();
        nodes.map(|node| node["name"].as_str().expect("a name").to_owned()).collect()
    }

    /// Stops a node cleanly.
    pub fn stop_node(&self, name: &str) {
        self.dev_command("kill-node", &[name, "--signal", "TERM"]);
    }

    pub fn start_node(&self, name: &str) {
        self.dev_command("start-node", &[name]);
    }

    pub fn wait_clean(&self) {
        self.cli(&["wait", "clean", "--timeout", &PATIENCE.as_secs().to_string()]);
    }

    pub fn create_volume(&self, name: &str, size: &str) {
        self.cli(&["volume", "create", name, "--size", size]);
    }

    /// The volume's hash.
    pub fn hash(&self, volume: &str) -> String {
        first_word(&self.cli(&["volume", "hash", volume]))
    }

    /// The same for a file.
    pub fn hash_file(&self, file: &Path) -> String {
        first_word(&self.cli(&["hash", &file.display().to_string()]))
    }

    /// Starts a gateway; it may have to stand by first.
    pub fn start_gateway(&mut self, volume: &str, extra: &[&str]) -> Gateway {
        self.gateways += 1;
        let socket = self.path(&format!("s{}", self.gateways));
        let log = self.path(&format!("gateway{}.log", self.gateways));
        let (cluster, at) = (self.cluster_file().display().to_string(), socket.display().to_string());
        let args = ["gateway", "--cluster", &cluster, "--volume", volume, "--socket", &at];
        let args: Vec<String> = args.iter().chain(extra).map(|&arg| arg.to_owned()).collect();
        let daemon = Daemon::spawn(self.command().args(&args), &log);
        Gateway { daemon, socket, volume: volume.to_owned(), args }
    }

    /// Starts a gateway that has ended once more, on the same socket.
    pub fn start_gateway_again(&self, gateway: &mut Gateway) {
        assert!(gateway.daemon.ended().is_some(), "it runs");
        gateway.daemon = Daemon::spawn(self.command().args(&gateway.args), &gateway.daemon.log);
    }

    /// Starts a gateway and waits until it serves.
    pub fn gateway(&mut self, volume: &str) -> Gateway {
        let mut gateway = self.start_gateway(volume, &[]);
        gateway.wait_serving();
        gateway
    }

    /// The node that is primary of the PG that has this volume's first chunk.
    pub fn primary_of(&self, volume: &str) -> String {
        self.members_of(volume).swap_remove(0)
    }

    /// The nodes of the PG that has this volume's first chunk, its primary first.
    pub fn members_of(&self, volume: &str) -> Vec<String> {
        let index = self.json(&["volume", "show", volume])["stripes"][0]["pgs"][0].clone();
        let pool = 1;
        let pg = self.json(&["pg", "show", &format!("{pool}.{index}")]);
        let disks = self.status()["disks"].as_array().expect("disks").clone();
        let node_of = |member: &Value| {
            let found = disks.iter().find(|d| d["id"] == member["disk"]).expect("the member's disk");
            found["node"].as_str().expect("a name").to_owned()
        };
        pg["members"].as_array().expect("members").iter().map(node_of).collect()
    }

    /// A metric of every daemon whose URL is in `cluster.json`, summed over its labels.
    pub fn metric_of_nodes(&self, name: &str) -> f64 {
        let cluster = self.cluster();
        let nodes = cluster["nodes"].as_array().expect("nodes").clone();
        let running = nodes.iter().filter(|node| node["pid"] != 0);
        running
            .map(|node| sum_of(&self.cli(&["metrics", "--node", node["name"].as_str().expect("a name")]), name))
            .sum()
    }

    /// Every log of this cluster, by name.
    pub fn logs(&self) -> Vec<(PathBuf, String)> {
        let folders = [self.folder.path().to_owned(), self.dir().join("logs")];
        let files = folders.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten();
        let logs = files.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "log"));
        logs.map(|path| (path.clone(), String::from_utf8_lossy(&fs::read(&path).unwrap_or_default()).into_owned()))
            .collect()
    }

    /// Nothing has panicked so far.
    pub fn check_logs(&self) {
        for (path, text) in self.logs() {
            let line = text.lines().find(|line| line.contains("panicked"));
            assert!(line.is_none(), "{}: {}", path.display(), line.unwrap_or_default());
        }
    }

    /// The end of every passing test: nothing has panicked, and everything stops cleanly. Mounts below it ([`Dev::put_below`]) are
    /// dropped before: they would keep its folder.
    pub fn finish(mut self) {
        self.check_logs();
        if self.supervisor.is_some() {
            self.stop();
        }
        self.check_logs();
        self.kept.clear();
        let mounts = fs::read_to_string("/proc/self/mounts").expect("the mounts");
        let here = self.folder.path().to_str().expect("a path in UTF-8");
        assert!(!mounts.contains(here), "the test still holds a mount below its cluster's folder");
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The state at the failure, as far as it can still be had.
            if self.supervisor.is_some() {
                let status = self.command().args(["status", "--cluster"]).arg(self.cluster_file()).output();
                eprintln!(
                    "{}",
                    status.map_or_else(|e| e.to_string(), |o| String::from_utf8_lossy(&o.stdout).into_owned())
                );
            }
            for (path, text) in self.logs() {
                eprintln!("--- {} ---\n{}", path.display(), tail(&text, 25));
            }
            if std::env::var_os("EVENKEEL_KEEP").is_some() {
                self.folder.disable_cleanup(true);
                eprintln!("kept {}", self.folder.path().display());
            }
        }
    }
}

pub fn is_evenkeel(pid: u64) -> bool {
    // A zombie, or another process under the same number, has another command line.
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| String::from_utf8_lossy(&line).contains("evenkeel"))
}

pub fn first_word(text: &str) -> String {
    text.split_whitespace().next().unwrap_or_default().to_owned()
}

/// The sum of a metric over its labels.
pub fn sum_of(metrics: &str, name: &str) -> f64 {
    let lines = metrics.lines().filter(|line| line.split(['{', ' ']).next() == Some(name));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}
