//! A guest: qemu boots Debian's cloud kernel, mounts ext4 on a virtio disk that a gateway serves, writes, syncs and reads
//! back, while a node joins and another one dies.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::dev::{Daemon, Dev, Gateway};
use crate::real_input::{export, import};
use crate::tools::{hold, missing, run_ok, tail, wait_for};

/// In an order in which each finds what it needs.
const MODULES: [&str; 6] = [
    "drivers/virtio/virtio_ring",
    "drivers/virtio/virtio",
    "drivers/virtio/virtio_pci_legacy_dev",
    "drivers/virtio/virtio_pci_modern_dev",
    "drivers/virtio/virtio_pci",
    "drivers/block/virtio_blk",
];

const INIT: &str = r#"#!/bin/busybox sh
export PATH=/bin
busybox mount -t proc proc /proc
busybox --install -s /bin
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for m in MODULES; do insmod /modules/$m.ko || echo "GUEST: can't load $m"; done
i=0
while [ ! -b /dev/vda ] && [ $i -lt 100 ]; do sleep 0.1; i=$((i+1)); done
mount -t ext4 /dev/vda /mnt || echo "GUEST: can't mount"
echo "GUEST: hello is $(cat /mnt/hello)"
round=0
while [ $round -lt 12 ]; do
  dd if=/dev/urandom of=/mnt/data$round bs=64k count=32 2>/dev/null || echo "GUEST: can't write"
  sync
  echo "GUEST: round $round"
  round=$((round+1))
done
sha256sum /mnt/data* > /mnt/sums
sync
umount /mnt
echo 3 > /proc/sys/vm/drop_caches
mount -t ext4 /dev/vda /mnt
sha256sum -c /mnt/sums > /dev/null && echo "GUEST: read back well"
umount /mnt
dmesg | grep -i error | sed 's/^/GUEST: /'
echo "GUEST: end"
poweroff -f
"#;

/// Debian's cloud kernel, unpacked below the build's folder once; gives that folder.
fn kernel() -> PathBuf {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guest-kernel");
    if cache.join("boot").is_dir() {
        return cache;
    }
    let depends = run_ok(Command::new("apt-cache").args(["depends", "linux-image-cloud-amd64"]));
    let package = depends.lines().find_map(|line| line.trim().strip_prefix("Depends: linux-image"));
    let package = format!("linux-image{}", package.unwrap_or_else(|| panic!("apt knows no cloud kernel: {depends}")));
    fs::create_dir_all(cache.parent().expect("a parent")).expect("makes the folder");
    let work = tempfile::tempdir_in(cache.parent().expect("a parent")).expect("a temporary folder");
    run_ok(Command::new("apt-get").args(["-q", "download", &package]).current_dir(work.path()));
    let deb = files_in(work.path()).pop().expect("the package");
    let unpacked = work.path().join("unpacked");
    run_ok(Command::new("dpkg-deb").arg("-x").arg(deb).arg(&unpacked));
    fs::rename(unpacked, &cache).expect("moves the kernel to its place");
    cache
}

fn files_in(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()).collect()
}

fn make_initramfs(kernel: &Path, to: &Path) {
    let modules = files_in(&kernel.join("lib/modules")).pop().expect("the modules");
    let names: Vec<&str> = MODULES.iter().map(|path| path.rsplit('/').next().expect("a name")).collect();
    let mut archive = Vec::new();
    for folder in ["bin", "proc", "sys", "dev", "mnt", "modules"] {
        entry(&mut archive, folder, 0o040_755, &[]);
    }
    let busybox =
        fs::read("/bin/busybox").unwrap_or_else(|e| panic!("no busybox ({e}): apt-get install busybox-static"));
    entry(&mut archive, "bin/busybox", 0o100_755, &busybox);
    entry(&mut archive, "init", 0o100_755, INIT.replace("MODULES", &names.join(" ")).as_bytes());
    for (path, name) in MODULES.iter().zip(&names) {
        let module = fs::read(modules.join("kernel").join(path).with_extension("ko")).expect("a module");
        entry(&mut archive, &format!("modules/{name}.ko"), 0o100_644, &module);
    }
    entry(&mut archive, "TRAILER!!!", 0, &[]);
    fs::write(to, archive).expect("writes the initramfs");
}

/// One member of a cpio archive in the kernel's format, "newc".
fn entry(archive: &mut Vec<u8>, name: &str, mode: u32, data: &[u8]) {
    let number = archive.len();
    // Inode, mode, owner, group, links, time, size, four device numbers, name's length, checksum.
    let fields = [number, mode as usize, 0, 0, 1, 0, data.len(), 0, 0, 0, 0, name.len() + 1, 0];
    archive.extend_from_slice(b"070701");
    for field in fields {
        write!(archive, "{field:08x}").expect("writes to memory");
    }
    archive.extend_from_slice(name.as_bytes());
    archive.push(0);
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend_from_slice(data);
    archive.resize(archive.len().next_multiple_of(4), 0);
}

/// A guest that writes to the volume `root`.
struct Guest {
    qemu: Daemon,
    gateway: Gateway,
}

impl Guest {
    /// Makes the volume, with a file system on it, and boots.
    fn boot(dev: &mut Dev) -> Guest {
        dev.create_volume("root", "64MiB");
        let gateway = dev.gateway("root");
        let tree = dev.path("tree");
        fs::create_dir(&tree).expect("makes a folder");
        fs::write(tree.join("hello"), "from outside").expect("writes");
        let image = dev.path("image");
        run_ok(Command::new("mkfs.ext4").args(["-q", "-F", "-d"]).arg(&tree).arg(&image).arg("64M"));
        import(&image, &gateway);

        let kernel = kernel();
        let initramfs = dev.path("initramfs");
        make_initramfs(&kernel, &initramfs);
        let boot = files_in(&kernel.join("boot"));
        let linux = boot.iter().find(|path| path.display().to_string().contains("/vmlinuz")).expect("a kernel");
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args([
            "-accel",
            "tcg",
            "-cpu",
            "max",
            "-m",
            "256",
            "-nographic",
            "-nodefaults",
            "-no-user-config",
            "-no-reboot",
        ]);
        qemu.args(["-serial", "stdio", "-append", "console=ttyS0 quiet panic=-1", "-kernel"]).arg(linux);
        qemu.arg("-initrd").arg(&initramfs);
        qemu.args(["-drive", &format!("file={},format=raw,if=virtio,cache=none", gateway.uri())]);
        if let Err(error) = Command::new("qemu-system-x86_64").arg("--version").output() {
            panic!("{}", missing(&qemu, &error));
        }
        let mut guest = Guest { qemu: Daemon::spawn(&mut qemu, &dev.path("guest.log")), gateway };
        guest.wait_to_say("hello is from outside");
        guest
    }

    fn wait_to_say(&mut self, words: &str) {
        let line = format!("GUEST: {words}");
        wait_for(&line, || {
            let (log, ended) = (self.qemu.log_text(), self.qemu.ended());
            let found = log.contains(&line);
            assert!(found || ended.is_none(), "the guest ended before {line:?}:\n{}", tail(&log, 30));
            found.then_some(())
        });
    }

    /// Rounds of writing that it has begun to finish.
    fn rounds(&self) -> usize {
        self.qemu.log_text().matches("GUEST: round ").count()
    }

    /// It comes to its end by itself, without an error, and the volume holds a sound file system.
    fn end(mut self, dev: &Dev) {
        self.wait_to_say("end");
        let status = self.qemu.wait();
        let log = self.qemu.log_text();
        assert!(status.success(), "qemu ended with {status}");
        assert!(log.contains("GUEST: read back well") && !log.contains("GUEST: can't"), "{}", tail(&log, 30));
        // Its kernel prints errors to the console as they come, and all of its log's words on errors at the end.
        let error = log.lines().find(|line| line.to_lowercase().contains("error"));
        assert!(error.is_none(), "the guest's kernel says: {}", error.unwrap_or_default());

        dev.wait_clean();
        let copy = dev.path("copy");
        export(&self.gateway, &copy);
        run_ok(Command::new("e2fsck").arg("-fn").arg(&copy));
        assert_eq!(dev.hash("root"), dev.hash_file(&copy));
    }
}

pub fn a_guest_writes_while_nodes_come_and_go() {
    let mut dev = Dev::start();
    let mut guest = Guest::boot(&mut dev);
    guest.wait_to_say("round 1");
    dev.add_node();
    guest.wait_to_say("round 4");
    dev.kill_node(&dev.primary_of("root"));
    guest.end(&dev);
    dev.finish();
}

/// Everything that holds its disk freezes for a minute, and then a primary dies: to the guest one long wait.
pub fn a_guest_lives_through_a_long_stall() {
    let mut dev = Dev::start();
    let mut guest = Guest::boot(&mut dev);
    guest.wait_to_say("round 1");
    let nodes = dev.node_names();
    nodes.iter().for_each(|node| dev.signal_node(node, "STOP"));
    let before = guest.rounds();
    hold(60);
    assert!(nodes.iter().all(|node| dev.is_frozen(node)), "not all nodes were frozen all the time");
    assert!(guest.rounds() <= before + 1, "the guest wrote without its disk");
    nodes.iter().for_each(|node| dev.signal_node(node, "CONT"));
    let resumed = guest.rounds() + 1;
    guest.wait_to_say(&format!("round {resumed}"));
    let victim = dev.primary_of("root");
    dev.kill_node(&victim);
    let failed_over = guest.rounds() + 1;
    guest.wait_to_say(&format!("round {failed_over}"));
    assert_ne!(dev.primary_of("root"), victim, "nothing failed over");
    dev.start_node(&victim);
    guest.end(&dev);
    dev.finish();
}
