//! A disk that stops answering while its node goes on: its file system is frozen under load.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::dev::Dev;
use crate::nbd::Load;
use crate::tools::{MIB, run, run_ok, wait_for};

/// The whole volume, so that the load touches each of its PGs.
const LOAD_BLOCKS: u64 = 16_384;
/// A guest waits at most this long: 5 s until the disk counts as hanging, as long again until the new primary of its PGs
/// goes on without it, and what a loaded machine adds.
const STALL_MAX: Duration = Duration::from_secs(30);

/// An ext4 file system in a file, mounted where a node will have its disk.
struct FileSystem {
    mounted_at: PathBuf,
    frozen: bool,
}

impl FileSystem {
    fn mount(image: &Path, at: PathBuf) -> FileSystem {
        let file = fs::File::create(image).expect("creates the image");
        // Sparse. Room for a disk of the usual size, so that it gets the usual share.
        file.set_len(6 << 30).expect("sizes it");
        run_ok(Command::new("mkfs.ext4").arg("-q").arg(image));
        fs::create_dir_all(&at).expect("creates the directory");
        run_ok(Command::new("mount").args(["-o", "loop"]).arg(image).arg(&at));
        let mounted = FileSystem { mounted_at: at, frozen: false };
        fs::remove_dir(mounted.mounted_at.join("lost+found")).expect("an empty directory for the disk");
        mounted
    }

    fn freeze(&mut self) {
        run_ok(Command::new("fsfreeze").arg("-f").arg(&self.mounted_at));
        self.frozen = true;
    }

    fn thaw(&mut self) {
        run_ok(Command::new("fsfreeze").arg("-u").arg(&self.mounted_at));
        self.frozen = false;
    }
}

impl Drop for FileSystem {
    fn drop(&mut self) {
        if self.frozen {
            run(Command::new("fsfreeze").arg("-u").arg(&self.mounted_at));
        }
        // Lazily: after a failure the node still has files open there.
        run(Command::new("umount").arg("-l").arg(&self.mounted_at));
    }
}

/// PGs of the volume that the disk leads, and others of which it is a member.
fn roles(dev: &Dev, volume: &str, disk: &str) -> (usize, usize) {
    let stripes = dev.json(&["volume", "show", volume])["stripes"].clone();
    let indexes = stripes[0]["pgs"].as_array().expect("PGs").clone();
    let (mut leads, mut follows) = (0, 0);
    for pg in dev.json(&["pg", "list"]).as_array().expect("a list") {
        if !indexes.iter().any(|i| pg["id"] == format!("1.{i}")) {
            continue;
        }
        let at = pg["members"].as_array().expect("members").iter().position(|m| format!("d{}", m["disk"]) == disk);
        leads += usize::from(at == Some(0));
        follows += usize::from(at.is_some_and(|at| at > 0));
    }
    (leads, follows)
}

/// Makes volumes until one lies on PGs that the disk leads and on others where it follows.
fn volume_of_both_roles(dev: &Dev, disk: &str) -> String {
    wait_for("the disk leads its share", || {
        let disks = dev.status()["disks"].as_array().expect("disks").clone();
        disks.iter().any(|d| format!("d{}", d["id"]) == disk && d["primaries"].as_u64() > Some(15)).then_some(())
    });
    let mut names = (1..=16).map(|i| format!("v{i}"));
    let found = names.find(|name| {
        dev.create_volume(name, "64MiB");
        let (leads, follows) = roles(dev, name, disk);
        leads > 0 && follows > 0
    });
    found.expect("all PGs are used")
}

/// Freezes, sees IO go on and the disk named, thaws, and waits until all is well.
fn freeze_and_thaw(dev: &Dev, fs: &mut FileSystem, load: &Load, volume: &str, disk: &str) {
    let (leads, follows) = roles(dev, volume, disk);
    println!("    {disk} leads {leads} PGs of the volume and follows in {follows}");
    assert!(leads + follows > 0, "the frozen disk has nothing of the volume");
    let begin = Instant::now();
    fs.freeze();
    wait_for("health names the slow disk", || {
        let health = dev.try_cli(&["health"]).stdout;
        health.contains(&format!("Disk {disk} of node n4")).then_some(())
    });
    let named = begin.elapsed();
    wait_for("health says that the disk hangs", || {
        dev.try_cli(&["health"]).stdout.contains(&format!("Disk {disk} of node n4 hangs")).then_some(())
    });
    // Each worker has blocks on several PGs and waits for each answer: so many come only if all are served.
    load.wait_for_more(1000);
    let stalled = begin.elapsed();
    println!("    named after {:.1} s, 1,000 answers after {:.1} s", named.as_secs_f64(), stalled.as_secs_f64());
    assert!(stalled < STALL_MAX, "IO went on only after {stalled:?}");
    let status = dev.status();
    assert!(
        status["nodes"].as_array().expect("nodes").iter().all(|n| n["state"] == "up"),
        "a hanging disk is no dead node"
    );
    let disks = status["disks"].as_array().expect("disks").clone();
    assert!(disks.iter().any(|d| d["node"] == "n4" && d["state"] == "hung"), "{disks:?}");
    assert_eq!(roles(dev, volume, disk).0, 0, "a disk that hangs leads nothing");

    fs.thaw();
    wait_for("the disk works again", || {
        (!dev.try_cli(&["health"]).stdout.contains(&format!("Disk {disk} of node n4"))).then_some(())
    });
    dev.wait_clean();
    load.wait_for_more(300);
}

pub fn io_goes_on_without_a_disk_that_hangs() {
    let mut dev = Dev::start();
    let mut fs = FileSystem::mount(&dev.path("n4.img"), dev.dir().join("nodes/n4-disk1"));
    let node = dev.add_node();
    assert_eq!(node["name"], "n4");
    dev.wait_clean();
    let disk = format!("d{}", node["disks"][0]["id"]);
    let volume = volume_of_both_roles(&dev, &disk);
    let gateway = dev.gateway(&volume);
    let load = gateway.load(LOAD_BLOCKS);
    load.wait_for_more(300);
    // It leads some PGs and follows in others, also after its return.
    freeze_and_thaw(&dev, &mut fs, &load, &volume, &disk);
    freeze_and_thaw(&dev, &mut fs, &load, &volume, &disk);

    load.stop_and_verify(&gateway.socket, &volume);
    dev.wait_clean();
    // The copies agree: the hash is the same whoever is asked.
    let hash = dev.hash(&volume);
    dev.kill_node("n1");
    let mut client = gateway.client();
    for at in 0..4 {
        client.read(16 * at * MIB, 16 * MIB).expect("reads");
    }
    assert_eq!(dev.hash(&volume), hash, "another primary has other content");
    drop((client, gateway));
    dev.finish();
    drop(fs);
}
