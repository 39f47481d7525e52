//! One writer: a second gateway stands by, or fences the first.

use crate::dev::Dev;
use crate::nbd::{Breaks, Client, Load, WORKERS};
use crate::tools::{MIB, pattern, wait_for};

/// The load's part of a volume: its first 8 MiB.
const LOAD_BLOCKS: u64 = 2048;

pub fn the_second_stands_by_until_the_first_stops() {
    let mut dev = Dev::start();
    dev.create_volume("v", "16MiB");
    let mut first = dev.gateway("v");
    let data = pattern(4 * MIB, 5);
    let mut client = first.client();
    client.write(0, &data).expect("writes");

    let mut second = dev.start_gateway("v", &[]);
    wait_for("the second says that it stands by", || second.daemon.log_text().contains("standing by").then_some(()));
    assert!(!second.socket.exists(), "it serves already");
    client.write(4 * MIB, &data).expect("the first still writes");
    drop(client);

    first.daemon.stop();
    second.wait_serving();
    let mut client = second.client();
    assert!(client.read(0, 4 * MIB).expect("reads") == data, "what was acked before the hand-over is lost");
    assert!(client.read(4 * MIB, 4 * MIB).expect("reads") == data, "what was acked last is lost");
    client.write(8 * MIB, &data).expect("the second writes");
    client.flush().expect("flushes");
    drop((client, second));
    dev.finish();
}

pub fn take_over_fences_the_first() {
    let mut dev = Dev::start();
    dev.create_volume("v", "16MiB");
    let mut first = dev.gateway("v");
    let mut client = first.client();
    client.write(0, &pattern(MIB, 1)).expect("writes");
    client.flush().expect("flushes");

    let mut second = dev.start_gateway("v", &["--take-over"]);
    second.wait_serving();
    let mut owner: Client = second.client();
    owner.write(0, &pattern(MIB, 2)).expect("the new owner writes");
    owner.flush().expect("flushes");
    assert!(client.write(0, &pattern(MIB, 3)).is_err(), "a fenced gateway acked a write");
    let status = first.daemon.wait();
    assert!(!status.success(), "a fenced gateway ended with {status}");
    let log = first.daemon.log_text();
    let last = log.lines().last().unwrap_or_default();
    assert!(last.starts_with("evenkeel: ") && last.contains("\"v\""), "its last words are no sentence: {last}");
    assert!(owner.read(0, MIB).expect("reads") == pattern(MIB, 2), "the fenced gateway's write is there");
    drop((client, owner, first, second));
    dev.finish();
}

/// A host that goes down ends its nodes and its gateways together: a gateway must not wait for ever for what has gone.
pub fn a_gateway_stops_without_its_cluster() {
    let mut dev = Dev::start();
    dev.create_volume("v", "16MiB");
    let mut gateway = dev.gateway("v");
    let mut client = gateway.client();
    client.write(0, &pattern(MIB, 1)).expect("writes");
    drop(client);
    dev.kill();
    gateway.daemon.signal("TERM");
    let status = gateway.daemon.wait();
    let log = gateway.daemon.log_text();
    assert!(status.success(), "it ended with {status}");
    assert!(
        log.contains("the last flush waits for nodes that don't answer"),
        "it doesn't say what it waits for:\n{log}"
    );
    assert!(log.contains("gave up the last flush"), "it doesn't say what it left undone:\n{log}");
}

/// As at a live migration: the client's requests end at one gateway and go on at the other.
pub fn a_load_moves_to_the_standby() {
    let mut dev = Dev::start();
    dev.create_volume("v", "64MiB");
    let mut first = dev.gateway("v");
    let mut second = dev.start_gateway("v", &[]);
    wait_for("the second says that it stands by", || second.daemon.log_text().contains("standing by").then_some(()));
    let sockets = [&*first.socket, &*second.socket];
    let load = Load::start_over(&sockets, "v", LOAD_BLOCKS, Breaks::KeepAcked);
    load.wait_for_more(500);
    assert_eq!(load.breaks(), 0, "a connection broke before the hand-over");
    first.daemon.stop();
    second.wait_serving();
    load.wait_for_more(500);
    assert!(load.breaks() >= WORKERS, "some of the load did not move");
    load.stop_and_verify(&second.socket, "v");
    drop((first, second));
    dev.finish();
}
