//! One writer: a second gateway stands by, or fences the first.

use crate::dev::Dev;
use crate::nbd::Client;
use crate::tools::{MIB, pattern, wait_for};

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
