//! What the nodes ask of the kernel for a FLUSH, by strace: when it is acked, every copy's disk file has had an
//! fdatasync that started after the FLUSH was sent, and after the data was written (R12).

use std::collections::HashMap;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::dev::{Daemon, Dev};
use crate::nbd::BLOCK_BYTES;
use crate::tools::{pattern, wait_for};

const NODES: [&str; 3] = ["n1", "n2", "n3"];
const ROUNDS: u64 = 40;

/// A system call on a node's disk file, in seconds since 1970.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Call {
    is_sync: bool,
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
        command.args(["-f", "-ttt", "-T", "-y", "-e", "trace=fdatasync,fsync,pwrite64,pwritev2", "-p"]);
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
        let mut words = line.splitn(3, ' ').filter(|word| !word.is_empty());
        let (Some(thread), Some(time), Some(rest)) = (words.next(), words.next(), words.next()) else { continue };
        let Ok(time) = time.parse::<f64>() else { continue };
        let failed = rest.contains(" = -1 ");
        if rest.starts_with("<... ") {
            let Some((is_sync, begin)) = begun.remove(thread) else { continue };
            if !failed {
                calls.push(Call { is_sync, begin, end: time });
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
            calls.push(Call { is_sync, begin: time, end: time + took.unwrap_or(0.0) });
        }
    }
    calls
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs_f64()
}

/// A request that makes something stable: when its data was acked or it was sent, and when it was acked.
#[derive(Clone, Copy, Debug)]
struct Request {
    what: &'static str,
    /// When the data's write was sent.
    written: f64,
    sent: f64,
    acked: f64,
}

pub fn an_acked_flush_follows_an_fdatasync_on_every_copy() {
    let mut dev = Dev::start();
    dev.create_volume("v", "64MiB");
    let gateway = dev.gateway("v");
    let traces = NODES.map(|node| Trace::attach(&dev, node));
    let mut client = gateway.client();
    // A second client's flushes at the same time share fdatasyncs with these.
    let other = gateway.client();
    let beside = std::thread::spawn(move || {
        let mut client = other;
        for i in 0..ROUNDS {
            client.write((8192 + i) * BLOCK_BYTES, &pattern(BLOCK_BYTES, i)).expect("writes");
            client.flush().expect("flushes");
        }
    });
    let mut requests = Vec::new();
    for i in 0..ROUNDS {
        // Over several chunks, so over several placement groups; one PG is on every node.
        let (block, data) = ((i * 397) % 8192, pattern(BLOCK_BYTES, i));
        let written = now();
        client.write(block * BLOCK_BYTES, &data).expect("writes");
        let sent = now();
        client.flush().expect("flushes");
        requests.push(Request { what: "FLUSH", written, sent, acked: now() });
        let sent = now();
        client.write_fua((block + 1) * BLOCK_BYTES, &data).expect("writes");
        requests.push(Request { what: "FUA write", written: sent, sent, acked: now() });
    }
    beside.join().expect("no panic");
    let calls = traces.map(Trace::end);
    for (node, calls) in NODES.iter().zip(&calls) {
        let syncs = calls.iter().filter(|call| call.is_sync).count();
        println!("    {node}: {} writes and {syncs} fdatasyncs for {} requests", calls.len() - syncs, requests.len());
        assert!(syncs > 0, "strace saw nothing of {node}");
        for request in &requests {
            let wrote = calls.iter().find(|c| !c.is_sync && c.begin >= request.written && c.end <= request.acked);
            let wrote = wrote.unwrap_or_else(|| panic!("{node} acked {request:?} without writing anything"));
            let covers =
                |c: &&Call| c.is_sync && c.begin >= request.sent && c.begin >= wrote.end && c.end <= request.acked;
            assert!(
                calls.iter().any(|c| covers(&c)),
                "{} was acked before {node} had synced it: {request:?}",
                request.what
            );
        }
    }
    drop((client, gateway));
    dev.finish();
}
