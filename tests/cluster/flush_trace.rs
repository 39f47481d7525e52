//! What the nodes ask of the kernel for a FLUSH, by strace: when it is acked, every copy's disk file has had an
//! fdatasync that started after the FLUSH was sent, and after the data was written (R12).

use std::collections::HashMap;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::dev::{Daemon, Dev};
use crate::nbd::{BLOCK_BYTES, Client};
use crate::tools::{pattern, wait_for};

const NODES: [&str; 3] = ["n1", "n2", "n3"];
const ROUNDS: u64 = 40;

/// A system call on a node's disk file, in seconds since 1970.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Call {
    is_sync: bool,
    /// What it gave: for a write its length.
    bytes: u64,
    begin: f64,
    end: f64,
}

/// What strace has to say of one process.
struct Trace {
    strace: Daemon,
    output: std::path::PathBuf,
    file: String,
}

impl Trace {
    fn attach(dev: &Dev, node: &str) -> Trace {
        let output = dev.path(&format!("{node}.strace"));
        let mut command = Command::new("strace");
        command.args(["-f", "-ttt", "-T", "-y", "-e", "trace=fdatasync,fsync,pwrite64", "-p"]);
        command.arg(dev.pid_of(node).to_string()).arg("-o").arg(&output);
        let strace = Daemon::spawn(&mut command, &dev.path(&format!("{node}.strace.log")));
        wait_for("strace is attached", || strace.log_text().contains("attached").then_some(()));
        let file = dev.disk_path(node).join("data").canonicalize().expect("the disk's file").display().to_string();
        Trace { strace, output, file }
    }

    /// Detaches; gives the successful calls on the disk's file.
    fn end(mut self) -> Vec<Call> {
        self.strace.signal("INT");
        self.strace.wait();
        let text = std::fs::read_to_string(&self.output).expect("strace's output");
        parse(&text, &self.file)
    }
}

/// A line is `PID TIME call(fd<path>, …) = result <duration>`, or that in two parts: `… <unfinished ...>` and, later,
/// `PID TIME <... call resumed>…`.
fn parse(text: &str, file: &str) -> Vec<Call> {
    let mut begun: HashMap<&str, (bool, f64)> = HashMap::new();
    let mut calls = Vec::new();
    for line in text.lines() {
        // The process id is padded.
        let Some((thread, rest)) = line.trim_start().split_once(' ') else { continue };
        let Some((time, rest)) = rest.trim_start().split_once(' ') else { continue };
        let Ok(time) = time.parse::<f64>() else { continue };
        let failed = rest.contains(" = -1 ");
        if rest.starts_with("<... ") {
            let Some((is_sync, begin)) = begun.remove(thread) else { continue };
            if !failed {
                calls.push(Call { is_sync, bytes: result(rest), begin, end: time });
            }
            continue;
        }
        let is_sync = rest.starts_with("fdatasync(") || rest.starts_with("fsync(");
        if !rest.contains(&format!("<{file}>")) {
            continue;
        }
        if rest.ends_with("<unfinished ...>") {
            begun.insert(thread, (is_sync, time));
        } else if !failed {
            let took = rest.rsplit('<').next().and_then(|t| t.trim_end_matches('>').parse().ok());
            calls.push(Call { is_sync, bytes: result(rest), begin: time, end: time + took.unwrap_or(0.0) });
        }
    }
    calls
}

/// The number behind the last ` = `.
fn result(line: &str) -> u64 {
    line.rsplit(" = ").next().and_then(|r| r.split(' ').next()?.parse().ok()).unwrap_or_default()
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs_f64()
}

/// A request that makes something stable: the length of its data's write, when that was sent, since when an fdatasync
/// counts, and when the request was acked.
#[derive(Clone, Copy, Debug)]
struct Request {
    what: &'static str,
    len: u64,
    written: f64,
    counts_from: f64,
    acked: f64,
}

/// One after the other, by one client, over several chunks and so over several placement groups; each is on every node.
/// `alone`: nobody else's flush can have done the work of one of these before it was sent.
fn requests(client: &mut Client, first: u64, len: u64, alone: bool) -> Vec<Request> {
    let mut out = Vec::new();
    for i in 0..ROUNDS {
        let (block, data) = (first + (i * 398) % 6000, pattern(len, i));
        let written = now();
        client.write(block * BLOCK_BYTES, &data).expect("writes");
        let counts_from = if alone { now() } else { written };
        client.flush().expect("flushes");
        let what = if alone { "FLUSH" } else { "FLUSH among others" };
        out.push(Request { what, len, written, counts_from, acked: now() });
        let sent = now();
        client.write_fua((block + 2) * BLOCK_BYTES, &data).expect("writes");
        out.push(Request { what: "FUA write", len, written: sent, counts_from: sent, acked: now() });
    }
    out
}

pub fn an_acked_flush_follows_an_fdatasync_on_every_copy() {
    let mut dev = Dev::start();
    dev.create_volume("v", "64MiB");
    let gateway = dev.gateway("v");
    let traces = NODES.map(|node| Trace::attach(&dev, node));
    let mut client = gateway.client();
    let mut all = requests(&mut client, 0, BLOCK_BYTES, true);
    // Two at once share fdatasyncs: a flush of one may cover what the other has written by then, never more. Their writes
    // are told apart by their lengths.
    let mut second = gateway.client();
    let beside = std::thread::spawn(move || requests(&mut second, 8192, 2 * BLOCK_BYTES, false));
    all.extend(requests(&mut client, 0, BLOCK_BYTES, false));
    all.extend(beside.join().expect("no panic"));
    let calls = traces.map(Trace::end);
    for (node, calls) in NODES.iter().zip(&calls) {
        let syncs = calls.iter().filter(|call| call.is_sync).count();
        println!("    {node}: {} writes and {syncs} fdatasyncs for {} requests", calls.len() - syncs, all.len());
        assert!(syncs > 0, "strace saw nothing of {node}");
        for request in &all {
            let within = |c: &&Call| c.begin >= request.written && c.end <= request.acked;
            let wrote = calls.iter().filter(within).find(|c| !c.is_sync && c.bytes == request.len);
            let wrote = wrote.unwrap_or_else(|| panic!("{request:?} was acked before {node} had written anything"));
            let from = request.counts_from.max(wrote.end);
            let synced = calls.iter().filter(within).any(|c| c.is_sync && c.begin >= from);
            let near: Vec<&Call> =
                calls.iter().filter(|c| c.end >= request.written && c.begin <= request.acked).collect();
            assert!(synced, "{} was acked before {node} had synced it: {request:?} {near:#?}", request.what);
        }
    }
    drop((client, gateway));
    dev.finish();
}
