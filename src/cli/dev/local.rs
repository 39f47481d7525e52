//! A local cluster: a coordinator and nodes as child processes of this one, in a `dev` directory.
//!
//! Node n listens on and sends from 127.0.1.n, the coordinator 127.0.0.1, so that tests can cut a node off by address.
//! Invariants: `cluster.json` says what is true when it is written (a daemon that doesn't run has pid 0); it is there
//! only while the cluster is ready; nothing that was killed is started unless someone asks.

use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use parking_lot::Mutex;
use rustix::process::Signal;
use serde::Deserialize;

use crate::api::types::{
    ClusterFile, ClusterFileDaemon, ClusterFileDisk, ClusterFileNode, NodeInfo, PoolCreate, PoolInfo, TokenCreate,
    TokenCreated,
};
use crate::cli::args::{DevSignal, WaitFor};
use crate::cli::client::{Access, Client};
use crate::cli::signals::Stop;
use crate::cli::{daemons, status};
use crate::core::cluster::FailureDomain;

use super::children::{Children, RunChild};
use super::files::{DevDir, DevNode, DevState, Ports, address, write_json};

/// The coordinator's name among the children and on the command line.
pub const COORDINATOR: &str = "coordinator";
/// `dev` reacts to joins and losses fast, so that people and tests needn't wait.
const DEBOUNCE_SECONDS: f64 = 1.0;
const GRACE_SECONDS: f64 = 10.0;
/// A daemon serves within a second; a machine under heavy load may need longer.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// A clean stop flushes; KILL is immediate.
const EXIT_TIMEOUT: Duration = Duration::from_secs(30);
/// Nodes get this long to stop cleanly, then the coordinator; together below the promised 15 s.
const NODES_STOP_PATIENCE: Duration = Duration::from_secs(10);
const COORDINATOR_STOP_PATIENCE: Duration = Duration::from_secs(2);
const POLL_EVERY: Duration = Duration::from_millis(50);

/// Where a daemon says that it serves: `run.json` in its directory.
#[derive(Clone, Debug, Deserialize)]
struct RunFile {
    pid: u32,
    addr: String,
    admin_url: String,
}

/// A running local cluster.
pub struct LocalCluster {
    // Before the directory, so that children end before its lock is released.
    children: Children,
    dir: DevDir,
    program: PathBuf,
    stop: Stop,
    state: Mutex<Live>,
}

struct Live {
    kept: DevState,
    client: Option<Client>,
    /// `cluster.json` is kept.
    ready: bool,
}

/// A cluster to be made, with defaults for what isn't said; ignored for one that exists.
#[derive(Clone, Copy, Debug, Default)]
pub struct NewCluster {
    pub nodes: Option<u32>,
    pub disks_per_node: Option<u32>,
    pub disk_size_bytes: Option<u64>,
}

impl NewCluster {
    fn state(self) -> DevState {
        let disk_size_bytes = self.disk_size_bytes.unwrap_or(4 << 30);
        DevState::new(self.nodes.unwrap_or(3), self.disks_per_node.unwrap_or(1), disk_size_bytes)
    }
}

impl LocalCluster {
    /// Opens D and starts what is in it, or a new cluster. Returns when it serves; [`LocalCluster::announce`] then
    /// makes it known.
    pub fn start(dir: &Path, new: NewCluster, stop: Stop, report: fn(&str)) -> anyhow::Result<LocalCluster> {
        let (dir, state) = DevDir::open(dir)?;
        let children = Children::new(report).context("starting a thread")?;
        if let (Some(there), Some(wanted)) = (&state, new.nodes) {
            let nodes = there.nodes.len();
            if nodes != wanted as usize {
                report(&format!("{} holds a cluster of {nodes} nodes; starting those", dir.path().display()));
            }
        }
        let kept = state.unwrap_or_else(|| new.state());
        let program = std::env::current_exe().context("finding this program's file")?;
        let state = Mutex::new(Live { kept, client: None, ready: false });
        let cluster = LocalCluster { children, dir, program, stop, state };
        remove_if_there(&cluster.dir.cluster_file())?;
        match cluster.bring_up(report) {
            Ok(()) => Ok(cluster),
            Err(e) => {
                cluster.shut_down();
                Err(e)
            }
        }
    }

    fn bring_up(&self, report: fn(&str)) -> anyhow::Result<()> {
        fs::create_dir_all(self.dir.path().join("logs")).context("making the log directory")?;
        self.save()?;
        if !self.state.lock().kept.initialised {
            // What an interrupted start left of the coordinator was never in use.
            match fs::remove_dir_all(self.dir.coordinator()) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e).context("clearing an unfinished init"),
                _ => {}
            }
            daemons::make_cluster(&self.dir.coordinator())?;
            self.state.lock().kept.initialised = true;
            self.save()?;
        }
        self.start_coordinator()?;
        let client = self.client()?;
        let removed: Vec<String> =
            client.nodes()?.into_iter().filter(|n| n.state == "removed").map(|n| n.name).collect();
        let nodes: Vec<DevNode> = self.state.lock().kept.nodes.clone();
        let nodes: Vec<DevNode> = nodes.into_iter().filter(|n| !removed.contains(&n.name)).collect();
        let mut started = Vec::new();
        for node in &nodes {
            let pid = self.spawn_node(node)?;
            if node.id.is_none() {
                // New nodes join one after the other, so that ids and names count alike.
                self.await_node(node, pid)?;
            }
            started.push((node, pid));
        }
        for (node, pid) in started {
            self.await_node(node, pid)?;
            report(&format!("{} is up", node.name));
        }
        self.make_default_pool(&client, nodes.len())?;
        let deadline = Instant::now() + START_TIMEOUT;
        let served = status::wait_until(
            &client,
            deadline,
            |_| self.stop.requested(),
            |s| {
                if self.stop.requested() { None } else { status::missing_for(WaitFor::Ready, s) }
            },
        );
        self.check_stop()?;
        if let Err(missing) = served {
            bail!("the cluster is not ready after {} s: {missing}", START_TIMEOUT.as_secs());
        }
        Ok(())
    }

    /// Writes `cluster.json`: from now on others find this cluster, and each change is written.
    pub fn announce(&self) -> anyhow::Result<()> {
        self.state.lock().ready = true;
        self.write_cluster_file()
    }

    /// D, absolute.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The file by which commands find this cluster.
    pub fn cluster_file(&self) -> PathBuf {
        self.dir.cluster_file()
    }

    /// Where a browser finds the coordinator's page.
    pub fn console_url(&self) -> Option<String> {
        let file = std::fs::read(self.cluster_file()).ok()?;
        let cluster: ClusterFile = serde_json::from_slice(&file).ok()?;
        Some(format!("{}/", cluster.api.trim_end_matches('/')))
    }

    /// The coordinator's API.
    pub fn client(&self) -> anyhow::Result<Client> {
        self.state.lock().client.clone().context("the coordinator has not started yet")
    }

    /// This program with arguments, as a child under `name`, logging to D/logs/NAME.log; it ends before the nodes.
    pub fn start_program(&self, name: &str, args: &[&str]) -> anyhow::Result<u32> {
        self.spawn(name, |command| {
            command.args(args);
        })
    }

    /// How a child ended, if it has.
    pub fn exit_of(&self, name: &str, pid: u32) -> Option<String> {
        self.children.exit_of(name, pid)
    }

    /// What a child said last.
    pub fn last_words(&self, name: &str) -> String {
        last_line(&self.dir.log(name))
    }

    /// Adds a node; returns once its disks are in the map.
    pub fn add_node(&self, disk_size_bytes: u64, disks: u32, class: &str) -> anyhow::Result<ClusterFileNode> {
        self.client()?.status().context("a node can't join now")?;
        let node = self.state.lock().kept.add_node(disks, disk_size_bytes, class);
        let joined = self.save().and_then(|()| self.spawn_node(&node)).and_then(|pid| self.await_node(&node, pid));
        if let Err(e) = joined {
            self.forget_unless_joined(&node.name);
            return Err(e);
        }
        self.write_cluster_file()?;
        let file = self.describe();
        file.nodes.into_iter().find(|n| n.name == node.name).context("the node has gone again")
    }

    /// Sends a signal; KILL and TERM return after the exit. Says what it did.
    pub fn kill(&self, name: &str, signal: DevSignal) -> anyhow::Result<String> {
        self.check_name(name)?;
        let (raw, word) = match signal {
            DevSignal::Kill => (Signal::KILL, "killed"),
            DevSignal::Term => (Signal::TERM, "stopped"),
            DevSignal::Stop => (Signal::STOP, "frozen"),
            DevSignal::Cont => (Signal::CONT, "thawed"),
        };
        let ends = matches!(signal, DevSignal::Kill | DevSignal::Term);
        let pid = match self.children.signal(name, raw) {
            Ok(pid) => pid,
            // Who wants it gone has what they want.
            Err(RunChild::NotRunning(_)) if ends => return Ok(format!("{name} did not run")),
            Err(e) => return Err(e.into()),
        };
        if ends {
            self.children.wait_exit(name, EXIT_TIMEOUT).with_context(|| {
                format!("{name} (pid {pid}) got the signal but goes on; a frozen one needs --signal CONT, or KILL")
            })?;
            self.write_cluster_file()?;
        }
        Ok(format!("{name} (pid {pid}) is {word}"))
    }

    /// Starts a daemon that doesn't run; returns once it is back in the cluster. Says what it did.
    pub fn start_again(&self, name: &str) -> anyhow::Result<String> {
        self.check_name(name)?;
        if let Some(pid) = self.children.pid(name) {
            return Ok(format!("{name} runs already (pid {pid})"));
        }
        if name == COORDINATOR {
            self.start_coordinator()?;
        } else {
            let node = self.state.lock().kept.node_mut(name).cloned().context("the node has gone")?;
            let pid = self.spawn_node(&node)?;
            self.await_node(&node, pid)?;
        }
        self.write_cluster_file()?;
        let pid = self.children.pid(name).with_context(|| format!("{name} has ended again"))?;
        Ok(format!("{name} runs (pid {pid})"))
    }

    /// Ends all children: helpers first, then nodes, then the coordinator.
    pub fn shut_down(&self) {
        self.children.close();
        // A file that is left names processes that are gone; whoever reads it will be told that nobody answers.
        let _ = remove_if_there(&self.dir.cluster_file());
        let nodes: Vec<String> = self.state.lock().kept.nodes.iter().map(|n| n.name.clone()).collect();
        let is_node = |name: &str| nodes.iter().any(|n| n == name);
        self.children.stop(|name| name != COORDINATOR && !is_node(name), Duration::from_secs(2));
        self.children.stop(is_node, NODES_STOP_PATIENCE);
        self.children.stop(|_| true, COORDINATOR_STOP_PATIENCE);
    }

    fn start_coordinator(&self) -> anyhow::Result<()> {
        let dir = self.dir.coordinator();
        let ports = self.state.lock().kept.coordinator;
        let ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let (listen, admin) = (address(ip, ports.listen, true), address(ip, ports.admin, false));
        remove_if_there(&dir.join("run.json"))?;
        let pid = self.spawn(COORDINATOR, |command| {
            command.args(["coordinator", "run", "--dir"]).arg(&dir);
            command.args(["--listen", &listen.to_string(), "--admin", &admin.to_string()]);
            command.args(["--debounce-seconds", &DEBOUNCE_SECONDS.to_string()]);
            command.args(["--grace-seconds", &GRACE_SECONDS.to_string()]);
        })?;
        let run = self.await_run_file(COORDINATOR, pid, &dir)?;
        let token_file = dir.join(daemons::OPERATOR_TOKEN_FILE);
        let token = fs::read_to_string(&token_file).with_context(|| format!("reading {}", token_file.display()))?;
        let client = Client::new(Access { api: run.admin_url.clone(), token: token.trim().to_owned() });
        self.await_true(COORDINATOR, pid, "answers", || client.status().is_ok())?;
        let mut live = self.state.lock();
        live.kept.coordinator = ports_of(&run);
        live.client = Some(client);
        drop(live);
        self.save()
    }

    fn spawn_node(&self, node: &DevNode) -> anyhow::Result<u32> {
        let dir = self.dir.node(&node.name);
        fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        remove_if_there(&dir.join("run.json"))?;
        let client = self.client()?;
        let token = match node.id {
            Some(_) => None,
            None => {
                let wanted = TokenCreate { role: "node".to_owned(), ttl_seconds: Some(600) };
                Some(client.post::<TokenCreated>("/v1/tokens", &wanted)?.token)
            }
        };
        let last_byte = u8::try_from(node.index).context("a dev cluster has at most 255 nodes over its life")?;
        let ip = IpAddr::from([127, 0, 1, last_byte]);
        let (listen, admin) = (address(ip, node.ports.listen, true), address(ip, node.ports.admin, false));
        self.spawn(&node.name, |command| {
            command.args(["node", "run", "--name", &node.name, "--api", &client.access().api, "--dir"]).arg(&dir);
            command.args(["--listen", &listen.to_string(), "--admin", &admin.to_string()]);
            let class = match node.disk_class.as_str() {
                "" => String::new(),
                class => format!(",class={class}"),
            };
            let disks: Vec<String> = (0..node.disks.len())
                .map(|i| format!("{},size={}{class}", self.dir.disk(&node.name, i).display(), node.disk_size_bytes))
                .collect();
            for disk in disks {
                command.args(["--disk", &disk]);
            }
            if let Some(token) = token {
                // Not as an argument: every user sees those.
                command.env("EVENKEEL_JOIN_TOKEN", token);
            }
        })
    }

    /// Waits until the node serves and the map has its disks, under this very process.
    fn await_node(&self, node: &DevNode, pid: u32) -> anyhow::Result<()> {
        let run = self.await_run_file(&node.name, pid, &self.dir.node(&node.name))?;
        let client = self.client()?;
        let mut seen: Option<NodeInfo> = None;
        self.await_true(&node.name, pid, "is in the map with its disks", || {
            seen = client.nodes().ok().and_then(|nodes| nodes.into_iter().find(|n| n.name == node.name));
            seen.as_ref().is_some_and(|n| {
                let up = !matches!(n.state.as_str(), "down" | "suspect" | "removed");
                n.pid == pid && up && n.disks.iter().filter(|d| d.state != "down").count() >= node.disks.len()
            })
        })?;
        let Some(info) = seen else { return Ok(()) };
        let mut live = self.state.lock();
        if let Some(kept) = live.kept.node_mut(&node.name) {
            kept.id = Some(info.id);
            kept.ports = ports_of(&run);
            for (i, slot) in kept.disks.iter_mut().enumerate() {
                let path = self.dir.disk(&node.name, i);
                let found = info.disks.iter().find(|d| Path::new(&d.path).starts_with(&path));
                *slot = found.map(|d| d.id).or(*slot);
            }
        }
        drop(live);
        self.save()
    }

    fn await_run_file(&self, name: &str, pid: u32, dir: &Path) -> anyhow::Result<RunFile> {
        let mut run = None;
        self.await_true(name, pid, "serves", || {
            run = read_run_file(dir).filter(|r| r.pid == pid);
            run.is_some()
        })?;
        run.with_context(|| format!("{name} does not serve"))
    }

    /// Polls until `ready`, the child's end, a stop, or the timeout.
    fn await_true(&self, name: &str, pid: u32, what: &str, mut ready: impl FnMut() -> bool) -> anyhow::Result<()> {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            if ready() {
                return Ok(());
            }
            self.check_stop()?;
            let log = self.dir.log(name);
            if let Some(exit) = self.children.exit_of(name, pid) {
                bail!("{name} ended while starting ({exit}): {}; its log is {}", last_line(&log), log.display());
            }
            if Instant::now() >= deadline {
                bail!("waited {} s until {name} {what}; its log is {}", START_TIMEOUT.as_secs(), log.display());
            }
            std::thread::sleep(POLL_EVERY);
        }
    }

    fn make_default_pool(&self, client: &Client, nodes: usize) -> anyhow::Result<()> {
        if client.get::<Vec<PoolInfo>>("/v1/pools")?.iter().any(|p| p.name == "default") {
            return Ok(());
        }
        let replicas = u32::try_from(nodes).unwrap_or(3).clamp(1, 3);
        let pool = PoolCreate {
            name: "default".to_owned(),
            replicas: Some(replicas),
            min_replicas: Some((replicas - 1).max(1)),
            failure_domain: Some(FailureDomain::Node),
            class: None,
            pg_count: None,
            durability: None,
        };
        client.post_text("/v1/pools", &pool).context("making the default pool")?;
        Ok(())
    }

    fn spawn(&self, name: &str, fill: impl FnOnce(&mut Command)) -> anyhow::Result<u32> {
        let path = self.dir.log(name);
        let log = File::options().create(true).append(true).open(&path);
        let log = log.with_context(|| format!("opening {}", path.display()))?;
        let mut command = Command::new(&self.program);
        fill(&mut command);
        command.stdout(log.try_clone().context("opening the log twice")?).stderr(log);
        Ok(self.children.start(name, command)?)
    }

    /// A node that failed to join leaves no trace; its number isn't used again.
    fn forget_unless_joined(&self, name: &str) {
        let _ = self.children.signal(name, Signal::KILL);
        let _ = self.children.wait_exit(name, EXIT_TIMEOUT);
        let in_map = self.client().and_then(|c| Ok(c.nodes()?)).is_ok_and(|nodes| nodes.iter().any(|n| n.name == name));
        if !in_map {
            self.state.lock().kept.nodes.retain(|n| n.name != name);
        }
        // The error that is being reported matters more than this file; the next change writes it again.
        let _ = self.save();
    }

    fn check_name(&self, name: &str) -> anyhow::Result<()> {
        let mut names = vec![COORDINATOR.to_owned()];
        names.extend(self.state.lock().kept.nodes.iter().map(|n| n.name.clone()));
        anyhow::ensure!(
            names.iter().any(|n| n == name),
            "no daemon is named {name:?}; there are: {}",
            names.join(", ")
        );
        Ok(())
    }

    fn check_stop(&self) -> anyhow::Result<()> {
        anyhow::ensure!(!self.stop.requested(), "stopped before the cluster was ready");
        Ok(())
    }

    fn save(&self) -> anyhow::Result<()> {
        let live = self.state.lock();
        self.dir.save(&live.kept).context("writing dev.json")
    }

    fn write_cluster_file(&self) -> anyhow::Result<()> {
        // Described and written under one lock, so that the last write is the newest.
        let live = self.state.lock();
        if live.ready {
            write_json(&self.dir.cluster_file(), &self.describe_live(&live)).context("writing cluster.json")?;
        }
        Ok(())
    }

    fn describe(&self) -> ClusterFile {
        self.describe_live(&self.state.lock())
    }

    fn describe_live(&self, live: &Live) -> ClusterFile {
        let daemon = |name: &str, dir: &Path, ip: IpAddr, ports: Ports| ClusterFileDaemon {
            pid: self.children.pid(name).unwrap_or(0),
            addr: read_run_file(dir).map_or_else(|| format!("{ip}:{}", ports.listen), |r| r.addr),
            admin_url: read_run_file(dir).map_or_else(|| format!("http://{ip}:{}", ports.admin), |r| r.admin_url),
        };
        let nodes = live.kept.nodes.iter().filter_map(|node| {
            let dir = self.dir.node(&node.name);
            let ip = IpAddr::from([127, 0, 1, u8::try_from(node.index).ok()?]);
            let run = daemon(&node.name, &dir, ip, node.ports);
            let disk = |(i, id): (usize, &Option<_>)| {
                Some(ClusterFileDisk { id: (*id)?, path: self.dir.disk(&node.name, i).display().to_string() })
            };
            Some(ClusterFileNode {
                id: node.id?,
                name: node.name.clone(),
                pid: run.pid,
                addr: run.addr,
                admin_url: run.admin_url,
                dir: dir.display().to_string(),
                disks: node.disks.iter().enumerate().filter_map(disk).collect(),
            })
        });
        let dir = self.dir.coordinator();
        let coordinator = daemon(COORDINATOR, &dir, IpAddr::V4(Ipv4Addr::LOCALHOST), live.kept.coordinator);
        ClusterFile {
            api: coordinator.admin_url.clone(),
            token_file: dir.join(daemons::OPERATOR_TOKEN_FILE).display().to_string(),
            nodes: nodes.collect(),
            coordinator,
        }
    }
}

fn read_run_file(dir: &Path) -> Option<RunFile> {
    serde_json::from_slice(&fs::read(dir.join("run.json")).ok()?).ok()
}

fn ports_of(run: &RunFile) -> Ports {
    let port = |text: &str| text.trim_end_matches('/').rsplit(':').next().and_then(|p| p.parse().ok()).unwrap_or(0);
    Ports { listen: port(&run.addr), admin: port(&run.admin_url) }
}

fn remove_if_there(path: &Path) -> anyhow::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("removing the old {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// What a daemon said last, without its prefix.
fn last_line(log: &Path) -> String {
    use std::io::{Read, Seek, SeekFrom};
    /// The end of a log: enough for any line worth repeating.
    const TAIL_BYTES: u64 = 8 << 10;
    let tail = || -> io::Result<String> {
        let mut file = File::open(log)?;
        let len = file.metadata()?.len();
        file.seek(SeekFrom::Start(len.saturating_sub(TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = tail().unwrap_or_default();
    let line = text.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or("it said nothing");
    line.trim().trim_start_matches("evenkeel: ").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_that_ends_while_starting_ends_the_start_and_leaves_nothing_running() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().join("d");
        // Here "this program" is the test binary, which knows no subcommand `coordinator`.
        let stop = Stop::on_signals().unwrap();
        let error = LocalCluster::start(&dir, NewCluster::default(), stop, |_| {}).err().unwrap();
        let text = format!("{error:#}");
        assert!(text.starts_with("coordinator ended while starting (exit code "), "{text}");
        assert!(
            text.contains(&dir.join("logs/coordinator.log").canonicalize().unwrap().display().to_string()),
            "{text}"
        );
        assert!(!dir.join("cluster.json").exists());
        let (_, state) = DevDir::open(&dir).unwrap();
        assert_eq!(state.unwrap().nodes.len(), 3, "what was made is kept, so that the start can be repeated");
    }

    #[test]
    fn ports_come_from_what_a_daemon_says() {
        let run = RunFile { pid: 1, addr: "127.0.1.2:4001".into(), admin_url: "http://127.0.1.2:4002/".into() };
        assert_eq!(ports_of(&run), Ports { listen: 4001, admin: 4002 });
    }

    #[test]
    fn the_last_line_of_a_log_is_its_reason() {
        let tmp = tempfile::tempdir().unwrap();
        let log = tmp.path().join("n1.log");
        assert_eq!(last_line(&log), "it said nothing");
        fs::write(&log, format!("{}\nevenkeel: the token is used\n\n", "x".repeat(20_000))).unwrap();
        assert_eq!(last_line(&log), "the token is used");
    }
}
