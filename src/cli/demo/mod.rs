//! `evenkeel demo`: the main job in one command. A node joins and another one dies while a guest works; every byte is
//! verified.
//!
//! Invariants: exit code 0 only if every byte that was ever written is read back right, and the cluster's volume hash
//! is the one that the demo computes from its own model; nothing is left behind, whatever ends the demo; no program
//! but this one runs, no network but loopback.
//!
//! Layout: `home` is the directory, `content` knows what the volume must hold, `load` is the guest, `volume_io` fills and reads back, `show`
//! narrates, `report` prints the table.

mod content;
mod home;
mod load;
mod report;
mod show;
#[cfg(test)]
mod tests_nbd;
mod volume_io;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use tokio::runtime::Runtime;

use crate::api::types::{PlanReply, PlanRequest, Status, VolumeCreate, VolumeQosSet};
use crate::core::hashtree::Hash;
use crate::core::units::{BLOCK_BYTES, HumanBytes};
use crate::gateway::nbd::client::{Address, Client as NbdClient};

use super::args::{DemoArgs, DevSignal, WaitFor};
use super::dev::{LocalCluster, NewCluster, serve_until};
use super::signals::Stop;
use super::status::{missing_for, resync_line};
use super::{daemons, out};

use content::Model;
use home::Home;
use load::{Load, Phase};
use report::{Compared, Job, Outcome};
use show::{Progress, report, say};

const VOLUME: &str = "demo";
const GATEWAY: &str = "gateway";
/// Smaller volumes move in less time than the phases need to show anything.
const SIZE_BYTES_MIN: u64 = 64 << 20;
/// How long the load runs as fast as it can, to know what 40 % of it is.
const CALIBRATION: Duration = Duration::from_secs(3);
/// The share of its own best that the steady load asks for.
const LOAD_SHARE: f64 = 0.4;
/// How long the quiet phases before and after are measured.
const QUIET: Duration = Duration::from_secs(6);
/// Nothing about the cluster changed for so long: it hangs.
const STUCK_AFTER: Duration = Duration::from_secs(90);
const POLL_EVERY: Duration = Duration::from_millis(200);

/// `demo`.
pub fn run(args: &DemoArgs) -> anyhow::Result<ExitCode> {
    check_size(args.size)?;
    let stop = Stop::on_signals()?;
    let home = Home::make(args)?;
    home.check_space(args.size)?;
    let seed = rand::random();
    let started = Instant::now();
    say(format!(
        "A cluster of {} nodes on this machine, one volume of {}, and a guest that works on it.\n\
         Everything lives in {} and talks over loopback only. (seed {seed})",
        args.nodes,
        HumanBytes(args.size),
        home.path.display()
    ))?;
    let new = NewCluster {
        nodes: Some(args.nodes),
        disks_per_node: Some(1),
        // Room for every copy when a node is missing, twice.
        disk_size_bytes: Some((4 * args.size).max(4 << 30)),
    };
    step(1, &format!("{} nodes and a coordinator start, each a process of its own.", args.nodes))?;
    let cluster = Arc::new(LocalCluster::start(&home.path, new, stop.clone(), report)?);
    let demo = Demo { cluster, stop, runtime: runtime()?, size: args.size, seed };
    let outcome = demo.main_job(args.nodes);
    let ended = outcome.and_then(|outcome| demo.finish(&outcome, started, args.keep));
    if demo.stop.requested() {
        let _ = say("interrupted; cleaning up");
    }
    demo.cluster.shut_down();
    let interrupted = demo.stop.requested();
    drop(demo);
    home.clear()?;
    match ended {
        Err(_) if interrupted => Ok(ExitCode::from(130)),
        // Nobody listens any more, and not every byte is verified: no success.
        Err(e) if e.downcast_ref::<out::StdoutClosed>().is_some() => Ok(ExitCode::FAILURE),
        other => other,
    }
}

/// The demo while its cluster runs.
struct Demo {
    cluster: Arc<LocalCluster>,
    stop: Stop,
    runtime: Runtime,
    size: u64,
    seed: u64,
}

impl Demo {
    fn main_job(&self, nodes: u32) -> anyhow::Result<Outcome> {
        step(2, &format!("A volume of {} is made and filled over NBD.", HumanBytes(self.size)))?;
        let guest = self.attach()?;
        let model = Arc::new(Model::new(self.seed, self.size));
        self.whole_volume("written", |progress| self.block_on(volume_io::fill(&guest, &model, progress)))?;
        let hash_before = self.compare_hash(&model)?;

        let best = self.calibrate(&guest, &model)?;
        let rate = (best * LOAD_SHARE).max(10.0);
        step(
            3,
            &format!(
                "The guest works: 4 KiB, 70 % reads, random, {} operations a second, {:.0} % of what it can. Each \
                 read is verified.",
                out::thousands(rate as u64),
                LOAD_SHARE * 100.0
            ),
        )?;
        let load = {
            let _inside = self.runtime.enter();
            Load::start(guest.clone(), Arc::clone(&model), Some(rate), self.seed)
        };
        load.enter(Phase::Before);
        self.quiet(&load)?;

        let joining = format!("n{}", nodes + 1);
        step(4, &format!("Node {joining} joins; its share of the data moves to it, verified on arrival."))?;
        let join = self.join(&load, &joining)?;
        let dying = "n2";
        step(5, &format!("Node {dying} is killed; after 10 s of grace its copies are made anew elsewhere."))?;
        let repair = self.kill(&load, dying)?;
        step(6, "All copies are there again; the guest works on.")?;
        load.enter(Phase::After);
        self.quiet(&load)?;

        step(7, "The guest stops; the whole volume is read back and compared.")?;
        load.enter(Phase::Between);
        let foreground = [Phase::Before, Phase::Joining, Phase::Repairing, Phase::After].map(|p| load.figures(p));
        let ended = self.end_load(load)?;
        self.block_on(async { guest.flush().await.context("flushing") })?;
        self.whole_volume("right", |progress| self.block_on(volume_io::verify(&guest, &model, progress)))?;
        let hash_after = self.compare_hash(&model)?;
        Ok(Outcome {
            join,
            repair,
            offered_iops: rate.round() as u64,
            foreground,
            hash_before,
            hash_after,
            read_back_bytes: self.size,
            reads_under_load: ended.reads_verified(),
        })
    }

    /// Makes the volume, starts a gateway for it, and connects as a guest does.
    fn attach(&self) -> anyhow::Result<NbdClient> {
        let client = self.cluster.client()?;
        let request = VolumeCreate {
            name: VOLUME.to_owned(),
            size_bytes: self.size,
            pool: None,
            priority: None,
            qos: VolumeQosSet::default(),
        };
        client.post_text("/v1/volumes", &request)?;
        let socket = self.socket();
        self.cluster.announce()?;
        let args = [
            "gateway",
            "--cluster",
            &self.cluster.cluster_file().display().to_string(),
            "--volume",
            VOLUME,
            "--socket",
            &socket.display().to_string(),
            "--name",
            "demo-gateway",
        ];
        let pid = self.cluster.start_program(GATEWAY, &args)?;
        let deadline = Instant::now() + STUCK_AFTER;
        loop {
            let connected = self.runtime.block_on(NbdClient::connect(&Address::Unix(socket.clone()), VOLUME));
            let error = match connected {
                Ok(guest) => {
                    anyhow::ensure!(guest.size_bytes() == self.size, "the export has {} bytes", guest.size_bytes());
                    return Ok(guest);
                }
                Err(e) => e,
            };
            if let Some(exit) = self.cluster.exit_of(GATEWAY, pid) {
                bail!("the gateway ended ({exit}): {}", self.cluster.last_words(GATEWAY));
            }
            self.pause(POLL_EVERY)?;
            anyhow::ensure!(Instant::now() < deadline, "the gateway does not serve: {error}");
        }
    }

    fn socket(&self) -> PathBuf {
        self.cluster.dir().join("demo.sock")
    }

    fn end_load(&self, load: Load) -> anyhow::Result<load::Ended> {
        self.block_on(async { load.stop().await.map_err(|e| anyhow::anyhow!("the guest met an error: {e}")) })
    }

    /// Runs to the end, or until a signal comes.
    fn block_on<T>(&self, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        self.runtime.block_on(async {
            tokio::select! {
                outcome = work => outcome,
                () = self.stop.clone().wait() => Err(anyhow::anyhow!("interrupted")),
            }
        })
    }

    /// How many operations a second the guest can do.
    fn calibrate(&self, guest: &NbdClient, model: &Arc<Model>) -> anyhow::Result<f64> {
        let load = {
            let _inside = self.runtime.enter();
            Load::start(guest.clone(), Arc::clone(model), None, self.seed ^ 1)
        };
        let waited = self.pause(CALIBRATION);
        let figures = load.figures(Phase::Before);
        waited?;
        self.end_load(load)?;
        Ok(figures.operations as f64 / figures.seconds.max(0.001))
    }

    fn quiet(&self, load: &Load) -> anyhow::Result<()> {
        let end = Instant::now() + QUIET;
        while Instant::now() < end {
            self.pause(POLL_EVERY)?;
            check_load(load)?;
        }
        Ok(())
    }

    fn join(&self, load: &Load, name: &str) -> anyhow::Result<Job> {
        let disk_bytes = (4 * self.size).max(4 << 30);
        let question = PlanRequest {
            add_node: vec![format!("name={name},disks=1x{}MiB:ssd", disk_bytes >> 20)],
            ..PlanRequest::default()
        };
        let plan = self.ask_plan(&question)?;
        let before = self.cluster.client()?.status()?;
        load.enter(Phase::Joining);
        let start = Instant::now();
        let node = self.cluster.add_node(disk_bytes, 1, "")?;
        let has_copies =
            move |status: &Status| status.disks.iter().filter(|d| d.node == node.name).any(|d| d.pg_replicas > 0);
        self.follow(load, plan, &before, start, has_copies)
    }

    fn kill(&self, load: &Load, name: &str) -> anyhow::Result<Job> {
        let question = PlanRequest { remove_node: vec![name.to_owned()], ..PlanRequest::default() };
        let plan = self.ask_plan(&question)?;
        let before = self.cluster.client()?.status()?;
        load.enter(Phase::Repairing);
        let start = Instant::now();
        self.cluster.kill(name, DevSignal::Kill)?;
        let is_replaced = |status: &Status| {
            let mut disks = status.disks.iter().filter(|d| d.node == name);
            disks.all(|d| d.pg_replicas == 0)
                && status.nodes.iter().all(|n| n.name != name || matches!(n.state.as_str(), "down" | "removed"))
        };
        self.follow(load, plan, &before, start, is_replaced)
    }

    /// What the cluster would do; says it.
    fn ask_plan(&self, question: &PlanRequest) -> anyhow::Result<Option<PlanReply>> {
        match self.cluster.client()?.post::<PlanReply>("/v1/plan", question) {
            Ok(plan) => {
                say(format!(
                    "    the plan: {} moves, {}, about {}",
                    plan.totals.moves,
                    HumanBytes(plan.totals.bytes),
                    out::human_seconds(plan.eta_seconds.balanced.likely.max(plan.eta_seconds.redundant.likely))
                ))?;
                Ok(Some(plan))
            }
            // The demo is about the move; a missing forecast shows as a dash in the table.
            Err(e) => say(format!("    no plan beforehand: {e}")).map(|()| None),
        }
    }

    /// Shows a resync's progress until the cluster is clean and `done` holds.
    fn follow(
        &self,
        load: &Load,
        plan: Option<PlanReply>,
        before: &Status,
        start: Instant,
        done: impl Fn(&Status) -> bool,
    ) -> anyhow::Result<Job> {
        let client = self.cluster.client()?;
        let expected = plan.as_ref().map_or(0, |p| p.totals.bytes);
        let mut progress = Progress::new(expected);
        let mut job = Job { plan, ..Job::default() };
        let mut first_byte: Option<Instant> = None;
        // The first one, and the one when a tenth was there.
        let mut etas: [Option<(f64, Instant)>; 2] = [None; 2];
        let mut last_change = Instant::now();
        let mut last_seen = String::new();
        loop {
            check_load(load)?;
            let status = client.status()?;
            job.moved_bytes = status.resync.bytes_done.saturating_sub(before.resync.bytes_done);
            if job.moved_bytes > 0 {
                first_byte.get_or_insert_with(Instant::now);
            }
            let is_under_way = job.moved_bytes * 10 >= expected.max(job.moved_bytes + status.resync.bytes_left);
            if let Some(eta) = status.resync.eta_seconds {
                for (told, due) in etas.iter_mut().zip([status.resync.active_moves > 0, is_under_way]) {
                    if due {
                        told.get_or_insert((eta, Instant::now()));
                    }
                }
            }
            let missing = missing_for(WaitFor::Clean, &status);
            if missing.is_none() && done(&status) {
                break;
            }
            let f = &status.foreground;
            let text =
                format!("{}; guest {} IOPS", resync_line(&status.resync), out::thousands(f.read_iops + f.write_iops));
            let whole = expected.max(job.moved_bytes + status.resync.bytes_left);
            progress.show(job.moved_bytes, whole, &text)?;
            let seen = format!("{missing:?} {:?} {}", status.pgs, status.resync.bytes_done);
            if seen != last_seen {
                (last_seen, last_change) = (seen, Instant::now());
            }
            anyhow::ensure!(
                last_change.elapsed() < STUCK_AFTER,
                "nothing has changed for {} s: {}",
                STUCK_AFTER.as_secs(),
                missing.unwrap_or_else(|| "the map does not show the change".to_owned())
            );
            self.pause(POLL_EVERY)?;
        }
        drop(progress);
        let end = Instant::now();
        load.enter(Phase::Between);
        job.moved_bytes = self.settled_bytes_done()?.saturating_sub(before.resync.bytes_done);
        job.took = end - start;
        job.copying = first_byte.map_or(Duration::ZERO, |first| end - first);
        [job.first_eta, job.eta_at_tenth] = etas.map(|told| told.map(|(eta, given)| (eta, end - given)));
        let took = out::human_seconds(job.took.as_secs_f64());
        say(format!("    done: {} moved, clean after {took}", HumanBytes(job.moved_bytes)))?;
        Ok(job)
    }

    /// The bytes moved so far, once every node has reported its last ones.
    fn settled_bytes_done(&self) -> anyhow::Result<u64> {
        /// Nodes report each second; two reports that say the same are the end.
        const QUIET_REPORTS: Duration = Duration::from_millis(2500);
        let client = self.cluster.client()?;
        let (mut bytes, mut since) = (client.status()?.resync.bytes_done, Instant::now());
        // Nothing moves any more, so this ends; the bound is for a cluster that surprises.
        let deadline = Instant::now() + Duration::from_secs(15);
        while since.elapsed() < QUIET_REPORTS && Instant::now() < deadline {
            self.pause(POLL_EVERY)?;
            let now = client.status()?.resync.bytes_done;
            if now != bytes {
                (bytes, since) = (now, Instant::now());
            }
        }
        Ok(bytes)
    }

    /// Fills or reads back, with progress; ends early on a signal.
    fn whole_volume(
        &self,
        word: &str,
        work: impl FnOnce(&mut dyn FnMut(u64) -> anyhow::Result<()>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let start = Instant::now();
        let mut progress = Progress::new(self.size);
        let mut hear = |done: u64| {
            self.check_stop()?;
            let rate = done as f64 / 1e6 / start.elapsed().as_secs_f64().max(0.001);
            progress.show(done, self.size, &format!("{} {word}, {rate:.0} MB/s", HumanBytes(done)))
        };
        work(&mut hear)?;
        drop(progress);
        let seconds = start.elapsed().as_secs_f64();
        let rate = self.size as f64 / 1e6 / seconds.max(0.001);
        say(format!("    {} {word} in {seconds:.1} s, {rate:.0} MB/s", HumanBytes(self.size)))
    }

    /// Asks the cluster for the volume's hash and computes what it must be.
    fn compare_hash(&self, model: &Arc<Model>) -> anyhow::Result<Compared> {
        let expected: Hash = model.hash();
        let cluster = daemons::volume_hash(self.cluster.client()?.access(), VOLUME)?;
        let compared = Compared { cluster, expected };
        let verdict = if compared.is_right() { "as the demo's own model says" } else { "NOT what it must be" };
        say(format!("    volume hash {}…, {verdict}", &hex::encode(cluster)[..16]))?;
        Ok(compared)
    }

    fn finish(&self, outcome: &Outcome, started: Instant, keep: bool) -> anyhow::Result<ExitCode> {
        say(format!("\n{}", outcome.render()))?;
        let right = outcome.hash_before.is_right() && outcome.hash_after.is_right();
        let took = out::human_seconds(started.elapsed().as_secs_f64());
        if right {
            say(format!("Every byte verified. The guest never saw an error. ({took})"))?;
        }
        if keep {
            let cluster_file = self.cluster.cluster_file();
            let look_around = format!(
                "\nThe cluster runs on; Ctrl-C ends it. In another terminal:\n  \
                 export EVENKEEL_CLUSTER={}\n  evenkeel status\n  evenkeel plan\n  evenkeel volume show {VOLUME}\n  \
                 evenkeel dev kill-node --dir {} n1\n  nbd://  the volume is at nbd+unix:///{VOLUME}?socket={}",
                cluster_file.display(),
                self.cluster.dir().display(),
                self.socket().display()
            );
            let mut said = Ok(());
            serve_until(&self.cluster, &self.stop, || said = say(look_around))?;
            said?;
        }
        anyhow::ensure!(right, "the cluster's volume hash is not that of what was written");
        Ok(ExitCode::SUCCESS)
    }

    /// Sleeps; an error if a signal came.
    fn pause(&self, time: Duration) -> anyhow::Result<()> {
        self.stop.sleep(time);
        self.check_stop()
    }

    fn check_stop(&self) -> anyhow::Result<()> {
        anyhow::ensure!(!self.stop.requested(), "interrupted");
        Ok(())
    }
}

fn runtime() -> anyhow::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().context("starting a runtime")
}

fn step(number: u32, text: &str) -> anyhow::Result<()> {
    say(format!("\n{number}. {text}"))
}

fn check_load(load: &Load) -> anyhow::Result<()> {
    match load.failure() {
        Some(reason) => bail!("the guest met an error: {reason}"),
        None => Ok(()),
    }
}

fn check_size(size: u64) -> anyhow::Result<()> {
    anyhow::ensure!(
        size >= SIZE_BYTES_MIN && size.is_multiple_of(BLOCK_BYTES) && size <= 1 << 40,
        "the demo's --size is a multiple of 4 KiB between {} and 1 TiB",
        HumanBytes(SIZE_BYTES_MIN)
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_make_no_sense_are_refused() {
        assert!(check_size(1 << 30).is_ok());
        for size in [0, 4096, (1 << 30) + 512, 1 << 41] {
            assert!(check_size(size).is_err(), "{size}");
        }
    }
}
