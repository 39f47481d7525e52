//! The main job on real input: a file system image moves in and out while a node joins and another one dies.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::dev::{Dev, Gateway};
use crate::tools::{MIB, run_ok, wait_for};

/// fio writes and verifies the whole volume, again and again, until told to stop.
pub struct Fio {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<()>,
}

impl Fio {
    pub fn start(gateway: &Gateway) -> Fio {
        let (stop, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let uri = gateway.uri();
        let thread = {
            let (stop, rounds) = (stop.clone(), rounds.clone());
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    verify_round(&uri, rounds.fetch_add(1, Ordering::Relaxed));
                }
            })
        };
        Fio { stop, rounds, thread }
    }

    /// Waits until a round that began after this call is over.
    pub fn wait_for_whole_round(&self) {
        let from = self.rounds.load(Ordering::Relaxed);
        wait_for("fio verifies another round", || {
            assert!(!self.thread.is_finished(), "fio has failed: see above");
            (self.rounds.load(Ordering::Relaxed) >= from + 2).then_some(())
        });
    }

    pub fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("fio verifies what it wrote");
    }
}

fn verify_round(uri: &str, seed: u64) {
    let (uri, seed) = (format!("--uri={uri}"), format!("--randseed={}", seed + 1));
    let printed = run_ok(Command::new("fio").current_dir(std::env::temp_dir()).args([
        "--name=verify",
        "--ioengine=nbd",
        &uri,
        &seed,
        "--rw=randwrite",
        "--bs=4k",
        "--iodepth=8",
        "--size=64m",
        "--io_size=8m",
        // A steady guest: the copies must share the machine with it.
        "--rate_iops=400",
        "--verify=crc32c",
        "--do_verify=1",
        "--verify_fatal=1",
        "--verify_state_save=0",
        "--fsync=200",
    ]));
    assert!(printed.contains("err= 0"), "{printed}");
}

/// An ext4 image of the documentation that every Debian system has.
pub fn make_image(dev: &Dev, size_mib: u64) -> std::path::PathBuf {
    let image = dev.path("image");
    let size = format!("{size_mib}M");
    run_ok(Command::new("mkfs.ext4").args(["-q", "-F", "-d", "/usr/share/doc"]).arg(&image).arg(size));
    assert_eq!(image.metadata().expect("the image").len(), size_mib * MIB);
    image
}

pub fn import(image: &std::path::Path, gateway: &Gateway) {
    run_ok(Command::new("nbdcopy").args(["--connections=4", "--requests=16", "--flush"]).arg(image).arg(gateway.uri()));
}

pub fn export(gateway: &Gateway, to: &std::path::Path) {
    run_ok(Command::new("nbdcopy").args(["--connections=4", "--requests=16"]).arg(gateway.uri()).arg(to));
}

pub fn a_file_system_survives_a_join_and_a_kill() {
    let mut dev = Dev::start();
    dev.create_volume("image", "512MiB");
    dev.create_volume("scratch", "64MiB");
    let image = make_image(&dev, 512);
    let (to_image, to_scratch) = (dev.gateway("image"), dev.gateway("scratch"));
    let fio = Fio::start(&to_scratch);
    import(&image, &to_image);
    let hash = dev.hash("image");
    assert_eq!(hash, dev.hash_file(&image), "after the import");

    let joined = dev.add_node();
    assert_eq!(joined["name"], "n4");
    assert_eq!(joined["disks"].as_array().map(Vec::len), Some(1), "{joined}");
    fio.wait_for_whole_round();
    dev.wait_clean();
    assert_eq!(dev.hash("image"), hash, "after the join");
    assert!(dev.resynced_bytes() > 0, "nothing was copied to the new node");

    let victim = dev.primary_of("image");
    dev.kill_node(&victim);
    fio.wait_for_whole_round();
    dev.wait_clean();
    fio.wait_for_whole_round();

    let copy = dev.path("copy");
    export(&to_image, &copy);
    run_ok(Command::new("cmp").arg(&image).arg(&copy));
    run_ok(Command::new("e2fsck").arg("-fn").arg(&copy));
    assert_eq!(dev.hash("image"), hash, "after the kill");
    fio.finish();
    drop((to_image, to_scratch));
    dev.finish();
}
