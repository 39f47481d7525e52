//! The file system below a disk runs out of space although the disk itself has free slots: writes wait, health names
//! the disk and why, no error reaches a client, and all goes on when there is space again.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::copies::agree;
use crate::dev::{Dev, New};
use crate::faultfs::unmount;
use crate::space::{Filler, verify, wait_stalled};
use crate::tools::{MIB, run_ok};

/// Tables take 33 MiB of it, the ballast more than half.
const FS_BYTES: u64 = 320 * MIB;
const BALLAST_BYTES: u64 = 192 * MIB;
/// More than fits beside the ballast, less than fits without.
const DATA_MIB: u64 = 160;

/// A small file system in a file, with a ballast that can be thrown off.
struct SmallFs {
    at: PathBuf,
}

impl SmallFs {
    /// Makes one, with a copy of what is in `from`, sparse as it was, and mounts it at `at`.
    fn mount(from: &Path, at: &Path) -> SmallFs {
        let image = from.with_extension("image");
        File::create(&image).and_then(|file| file.set_len(FS_BYTES)).expect("makes an image");
        // No space is kept back for root, so that what is free is what the daemon finds.
        run_ok(Command::new("mkfs.ext4").args(["-q", "-m", "0"]).arg(&image));
        run_ok(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(at));
        let fs = SmallFs { at: at.to_owned() };
        run_ok(Command::new("cp").args(["-a", "--sparse=always"]).arg(from.join("data")).arg(at));
        let ballast = File::create(at.join("ballast")).expect("creates");
        rustix::fs::fallocate(&ballast, rustix::fs::FallocateFlags::empty(), 0, BALLAST_BYTES).expect("fills up");
        fs
    }

    fn free_bytes(&self) -> u64 {
        let stat = rustix::fs::statvfs(&self.at).expect("a file system");
        stat.f_bavail * stat.f_frsize
    }

    fn throw_off_ballast(&self) {
        fs::remove_file(self.at.join("ballast")).expect("removes");
    }
}

impl Drop for SmallFs {
    fn drop(&mut self) {
        unmount(&self.at);
    }
}

fn fill_up(nodes: &[&str]) {
    let mut dev = Dev::start_with(New { disk_size: "1GiB", ..New::default() });
    let mounts = dev.put_below(nodes, SmallFs::mount);
    dev.create_volume("v", &format!("{DATA_MIB}MiB"));
    let gateway = dev.gateway("v");
    let filler = Filler::start(&gateway, DATA_MIB);
    wait_stalled(&dev, std::slice::from_ref(&filler));
    let reasons = dev.status()["health_reasons"].to_string();
    for (node, fs) in nodes.iter().zip(&mounts) {
        let disk = dev.disk_status(node);
        let free = fs.free_bytes();
        println!("    {node}: {free} bytes free below; {disk}");
        let (used, capacity) = (disk["used_bytes"].as_u64(), disk["capacity_bytes"].as_u64());
        assert!(used < capacity.map(|bytes| bytes / 2), "the disk's own accounting is full: {disk}");
        if nodes.len() == 1 {
            assert!(free < 8 * MIB, "the file system is not full: {free} bytes");
            let id = disk["id"].as_str().map_or_else(|| format!("d{}", disk["id"]), str::to_owned);
            assert!(reasons.contains(&format!("space on disk {id} ")), "{id}: {reasons}");
        }
    }
    let health = dev.try_cli(&["health"]);
    assert!(health.status.code() == Some(2) && health.text().contains("Writes wait for space"), "{}", health.text());
    // Nothing of what was acked is lost, and reads go on.
    let mut client = gateway.client();
    assert!(client.read(0, MIB).expect("reads") == crate::tools::pattern(MIB, 0));

    mounts.iter().for_each(|fs| fs.throw_off_ballast());
    filler.finish();
    verify(&gateway, DATA_MIB);
    dev.wait_clean();
    let health = dev.status()["health_reasons"].to_string();
    assert!(!health.contains("Writes wait for space"), "{health}");
    agree(&dev, &gateway, 2);
    verify(&gateway, DATA_MIB);
    drop((client, gateway, mounts));
    dev.finish();
}

pub fn one_full_file_system_stalls_writes_until_there_is_space() {
    fill_up(&["n2"]);
}

pub fn full_file_systems_stall_writes_until_there_is_space() {
    fill_up(&["n1", "n2", "n3"]);
}
