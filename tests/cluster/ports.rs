//! A node's UDP ports, as a firewall's rules name them.

use std::collections::BTreeSet;
use std::fs;
use std::net::UdpSocket;
use std::process::Command;

use crate::dev::{Daemon, Dev};
use crate::tools::{run, run_ok, tail, wait_for};

const ADDRESS: &str = "127.0.1.9";

/// UDP ports in use at [`ADDRESS`], from the kernel's table: hexadecimal, the address's bytes in the host's order.
fn bound() -> BTreeSet<u16> {
    let table = fs::read_to_string("/proc/net/udp").expect("the kernel's table");
    let local = table.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1));
    let here = local.filter_map(|local| local.strip_prefix("0901007F:"));
    here.filter_map(|port| u16::from_str_radix(port, 16).ok()).collect()
}

pub fn a_node_uses_the_ports_it_was_given_and_no_others() {
    let mut dev = Dev::start();
    dev.create_volume("v", "64MiB");
    let gateway = dev.gateway("v");
    run_ok(Command::new("qemu-io").args(["-f", "raw", &gateway.uri(), "-c", "write -P 7 0 64M", "-c", "flush"]));
    let before = bound();
    let free: Vec<UdpSocket> = (0..3).map(|_| UdpSocket::bind((ADDRESS, 0)).expect("a free port")).collect();
    let ports: Vec<u16> = free.iter().map(|s| s.local_addr().expect("an address").port()).collect();
    drop(free);
    let listen = format!("{ADDRESS}:{}", ports[0]);
    let (lease, bulk) = (ports[1].to_string(), ports[2].to_string());
    let (dir, disk) = (dev.path("n9"), format!("{},size=1GiB", dev.path("n9-disk").display()));
    let token = dev.cli(&["token", "create"]);
    let api = dev.cluster()["api"].as_str().expect("a URL").to_owned();
    let command = || {
        let mut command = dev.command();
        command.args(["node", "run", "--name", "n9", "--listen", &listen, "--api", &api, "--disk", &disk]);
        command.args(["--lease-port", &lease, "--bulk-port", &bulk, "--join-token", token.trim(), "--dir"]).arg(&dir);
        command
    };
    let mut node = Daemon::spawn(&mut command(), &dev.path("n9.log"));
    wait_for("the node holds copies", || {
        let ended = node.ended();
        assert!(ended.is_none(), "the node ended: {}", tail(&node.log_text(), 20));
        let disks = dev.status()["disks"].as_array().cloned().unwrap_or_default();
        disks.iter().any(|disk| disk["node"] == "n9" && disk["used_bytes"].as_u64() > Some(0)).then_some(())
    });
    let new: BTreeSet<u16> = bound().difference(&before).copied().collect();
    assert_eq!(new, ports.iter().copied().collect(), "nothing but what a firewall lets in");
    node.stop();

    for (port, key) in [(&ports[1], "lease_port"), (&ports[2], "bulk_port")] {
        let _taken = UdpSocket::bind((ADDRESS, *port)).expect("the node has left it");
        let ended = run(&mut command());
        assert!(!ended.status.success(), "it started at a port of another process: {}", ended.text());
        let lines: Vec<&str> = ended.stderr.lines().filter(|line| line.starts_with("evenkeel: ")).collect();
        assert!(lines.len() == 1 && lines[0].contains(key) && lines[0].contains(&format!(":{port}")), "{lines:?}");
    }
    dev.finish();
}
