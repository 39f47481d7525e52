//! `evenkeel dev`: a local cluster of real processes, for people and for tests.
//!
//! `dev` runs in the foreground, owns every daemon as a child, and takes changes over a socket in D. It ends by
//! SIGINT, SIGTERM or SIGHUP, within 15 s, children first.

mod children;
mod control;
mod files;
mod local;

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use clap::CommandFactory;

use super::args::{Cli, DevArgs, DevCommand, DevRunArgs};
use super::signals::Stop;
use super::{one_sentence, out};

use control::{Request, ask, serve};
pub use local::{LocalCluster, NewCluster};

/// Requests at once: tests send a few; more is a runaway script.
const REQUESTS_MAX: usize = 16;

/// `dev …`.
pub fn run(args: DevArgs) -> anyhow::Result<ExitCode> {
    match (args.command, args.run) {
        (None, Some(run)) | (Some(DevCommand::Run(run)), _) => foreground(run),
        (Some(DevCommand::AddNode { dir, disk_size, disks, class }), _) => {
            let node = ask(&dir, &Request::Add { disk_size_bytes: disk_size, disks, class })?;
            out::line(node.to_string())?;
            Ok(ExitCode::SUCCESS)
        }
        (Some(DevCommand::KillNode { dir, name, signal }), _) => tell(&dir, &Request::Kill { name, signal }),
        (Some(DevCommand::StartNode { dir, name }), _) => tell(&dir, &Request::Start { name }),
        (None, None) => {
            let missing = clap::error::ErrorKind::MissingRequiredArgument;
            let _ = Cli::command().error(missing, "`dev` needs --dir D, the cluster's directory").print();
            Ok(ExitCode::from(2))
        }
    }
}

fn tell(dir: &Path, request: &Request) -> anyhow::Result<ExitCode> {
    let said = ask(dir, request)?;
    out::line(said.as_str().unwrap_or_default())?;
    Ok(ExitCode::SUCCESS)
}

fn foreground(args: DevRunArgs) -> anyhow::Result<ExitCode> {
    let stop = Stop::on_signals()?;
    let new = NewCluster { nodes: args.nodes, disks_per_node: args.disks_per_node, disk_size_bytes: args.disk_size };
    let cluster = Arc::new(LocalCluster::start(&args.dir, new, stop.clone(), report)?);
    let outcome = serve_until(&cluster, &stop, || {
        report(&format!(
            "ready; in another terminal: export EVENKEEL_CLUSTER={} && evenkeel status",
            cluster.cluster_file().display()
        ));
        if let Some(url) = cluster.console_url() {
            report(&format!("the console is at {url}"));
        }
    });
    report("stopping");
    cluster.shut_down();
    outcome.map(|()| ExitCode::SUCCESS)
}

/// Makes the cluster known, and takes requests in D until a signal comes.
pub fn serve_until(cluster: &Arc<LocalCluster>, stop: &Stop, serving: impl FnOnce()) -> anyhow::Result<()> {
    // The socket first: who sees cluster.json may ask at once.
    let listener = control::listen(cluster.dir()).context("making the socket in D")?;
    let for_thread = Arc::clone(cluster);
    std::thread::Builder::new()
        .name("control".to_owned())
        .spawn(move || accept(&listener, &for_thread))
        .context("starting a thread")?;
    cluster.announce()?;
    serving();
    while !stop.sleep(Duration::from_secs(3600)) {}
    Ok(())
}

fn accept(listener: &UnixListener, cluster: &Arc<LocalCluster>) {
    let running = Arc::new(AtomicUsize::new(0));
    for stream in listener.incoming() {
        let Ok(stream) = stream else {
            // Out of file descriptors or memory; a moment later there may be some again.
            std::thread::sleep(Duration::from_millis(100));
            continue;
        };
        if running.fetch_add(1, Ordering::SeqCst) >= REQUESTS_MAX {
            running.fetch_sub(1, Ordering::SeqCst);
            serve(stream, |_| Err(format!("{REQUESTS_MAX} requests run already; wait for them")));
            continue;
        }
        let (cluster, running) = (Arc::clone(cluster), Arc::clone(&running));
        std::thread::spawn(move || {
            serve(stream, |request| answer(&cluster, request).map_err(|e| one_sentence(&e)));
            running.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

fn answer(cluster: &LocalCluster, request: Request) -> anyhow::Result<serde_json::Value> {
    match request {
        Request::Add { disk_size_bytes, disks, class } => {
            let node = cluster.add_node(disk_size_bytes, disks, &class)?;
            report(&format!("{} has joined", node.name));
            Ok(serde_json::to_value(node)?)
        }
        Request::Kill { name, signal } => Ok(cluster.kill(&name, signal)?.into()),
        Request::Start { name } => {
            let said = cluster.start_again(&name)?;
            report(&said);
            Ok(said.into())
        }
    }
}

/// One line on stdout; nobody reading it is no reason to end the cluster.
fn report(text: &str) {
    let _ = out::line(format!("evenkeel dev: {text}"));
}
