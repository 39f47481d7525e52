//! A byte changes on a disk behind a node's back: it is never served, but repaired from another copy and counted.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use crate::dev::Dev;
use crate::tools::{KIB, MIB, pattern, wait_for};

/// Where a block lies in a disk's file. Data begins at whole pages; holes of the sparse file are read as zeros.
fn find(file: &File, block: &[u8]) -> Option<u64> {
    let len = file.metadata().expect("metadata").len();
    let mut buffer = vec![0; MIB as usize];
    let mut offset = 0;
    while offset < len {
        let n = file.read_at(&mut buffer, offset).expect("reads");
        if let Some(at) = buffer[..n].chunks(4096).position(|page| page == block) {
            return Some(offset + at as u64 * 4096);
        }
        offset += n as u64;
    }
    None
}

fn disk_file(dev: &Dev, node: &str) -> File {
    let path = dev.node(node)["disks"][0]["path"].as_str().expect("a path").to_owned();
    let file = File::options().read(true).write(true).open(Path::new(&path).join("data")).expect("the disk's file");
    assert!(file.metadata().expect("metadata").size() > 0);
    file
}

pub fn a_flipped_byte_is_repaired_and_counted() {
    let mut dev = Dev::start();
    dev.create_volume("v", "8MiB");
    let gateway = dev.gateway("v");
    let mut client = gateway.client();
    let data = pattern(256 * KIB, 77);
    client.write(0, &data).expect("writes");
    client.flush().expect("flushes");
    let hash = dev.hash("v");
    let file = disk_file(&dev, &dev.primary_of("v"));
    let block = &data[64 * 1024..][..4096];
    let offset = find(&file, block).expect("the block is on its primary's disk");
    let before = dev.metric_of_nodes("evenkeel_hash_mismatches_total");

    let mut byte = [0];
    file.read_exact_at(&mut byte, offset + 100).expect("reads");
    file.write_all_at(&[byte[0] ^ 0x10], offset + 100).expect("writes");
    assert!(client.read(0, 256 * KIB).expect("reads") == data, "a flipped byte was served");
    // Figures are reported once a second.
    wait_for("the mismatch is counted", || {
        (dev.metric_of_nodes("evenkeel_hash_mismatches_total") > before).then_some(())
    });
    wait_for("the block is repaired on the disk", || {
        let mut now = vec![0; 4096];
        file.read_exact_at(&mut now, offset).expect("reads");
        // Repaired in place, or written elsewhere.
        (now == block || find(&file, block).is_some()).then_some(())
    });
    assert!(client.read(0, 256 * KIB).expect("reads") == data);
    assert_eq!(dev.hash("v"), hash);
    drop((client, gateway));
    dev.finish();
}
