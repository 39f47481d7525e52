//! A network of a test's own: a namespace in which only loopback exists, and in which packets can be dropped by address.
//!
//! It lives as long as one process in it, which ends when this one does, so that nothing is left behind. Packets are
//! dropped where they arrive, so that their sender notices nothing, as with a cable that is cut.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::tools::{missing, run_ok};

pub struct Namespace {
    /// Holds it: reads from a pipe of this process until that ends.
    holder: Child,
}

impl Namespace {
    pub fn new() -> Namespace {
        let mut command = Command::new("unshare");
        command.args(as_root(&["--map-root-user"])).args(["--net", "sh", "-c"]);
        command.arg("ip link set lo up && iptables -w -S >&2 && echo ready && exec cat");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut holder = command.spawn().unwrap_or_else(|error| panic!("{}", missing(&command, &error)));
        let mut line = String::new();
        let read = BufReader::new(holder.stdout.take().expect("a pipe")).read_line(&mut line);
        if read.is_err() || line != "ready\n" {
            let ended = holder.wait_with_output().expect("waits");
            panic!(
                "a network namespace can't be made; it needs root or user namespaces, and apt-get install iproute2 \
                 iptables: {}",
                String::from_utf8_lossy(&ended.stderr)
            );
        }
        Namespace { holder }
    }

    /// A program inside; its process is the one that is started, so that signals and parents are as outside.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command.args(as_root(&["--user", "--preserve-credentials"])).args(["--net", "--target"]);
        command.arg(self.holder.id().to_string()).arg("--").arg(program);
        command
    }

    fn iptables(&self, args: &[&str]) -> String {
        run_ok(self.command(Path::new("iptables")).arg("-w").args(args))
    }

    /// From now on packets that match are dropped.
    pub fn cut(&self, matching: &[&str]) {
        self.iptables(&[&["-A", "INPUT"], matching, &["-j", "DROP"]].concat());
    }

    /// Cuts an address off from all others, both ways.
    pub fn cut_off(&self, ip: &str) {
        self.cut(&["-s", ip, "!", "-d", ip]);
        self.cut(&["-d", ip, "!", "-s", ip]);
    }

    /// Cuts a daemon's QUIC address, `IP:PORT`, off from all others, both ways.
    pub fn cut_off_port(&self, address: &str) {
        self.cut_off_port_for(address, "127.0.0.0/8");
    }

    /// Cuts it off from these addresses alone.
    pub fn cut_off_port_for(&self, address: &str, from: &str) {
        let (ip, port) = address.rsplit_once(':').expect("an address with a port");
        self.cut(&["-p", "udp", "-s", ip, "--sport", port, "-d", from]);
        self.cut(&["-p", "udp", "-d", ip, "--dport", port, "-s", from]);
    }

    /// Packets dropped since the last `heal`.
    pub fn dropped(&self) -> u64 {
        let rules = self.iptables(&["-L", "INPUT", "-v", "-x", "-n"]);
        let counts = rules.lines().filter(|line| line.contains("DROP"));
        counts.map(|line| line.split_whitespace().next().and_then(|n| n.parse::<u64>().ok()).expect("a count")).sum()
    }

    /// Drops nothing any more.
    pub fn heal(&self) {
        assert!(self.dropped() > 0, "the cut dropped nothing");
        self.iptables(&["-F", "INPUT"]);
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Its pipe ends, and with it `cat`.
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
    }
}

/// Without root, a user namespace makes this user root inside.
fn as_root<'a>(args: &[&'a str]) -> Vec<&'a str> {
    if rustix::process::geteuid().is_root() { Vec::new() } else { args.to_vec() }
}
