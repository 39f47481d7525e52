//! A disk that isn't what its node left behind: slots swapped, an old copy put back, or everything gone.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use evenkeel::core::units::CHUNK_BYTES;
use evenkeel::disk::layout::{
    Copy, Geometry, HEADER_BYTES, Header, SLOT_BYTES, SUPERBLOCK_OFFSETS, SlotUse, Superblock,
};

use crate::copies::agree;
use crate::dev::Dev;
use crate::refusals::copy;
use crate::tools::{MIB, pattern, wait_for};

/// A disk's file, by its layout.
struct RawDisk {
    file: File,
    superblock: Superblock,
}

impl RawDisk {
    fn open(folder: &Path) -> RawDisk {
        let file = File::options().read(true).write(true).open(folder.join("data")).expect("the disk's file");
        let copies = SUPERBLOCK_OFFSETS.map(|offset| Superblock::decode(&read(&file, offset, 4096)).expect("sound"));
        let superblock = copies.into_iter().max_by_key(|s| s.version).expect("two");
        RawDisk { file, superblock }
    }

    fn geometry(&self) -> Geometry {
        self.superblock.geometry
    }

    /// Slots with a chunk, each with its newest header.
    fn chunks(&self) -> Vec<(u32, Header)> {
        let g = self.geometry();
        let tables = [0, 1].map(|table| read(&self.file, g.headers(table), g.headers_bytes()));
        let newest = |slot: u32| {
            let at = slot as usize * HEADER_BYTES;
            let copies =
                tables.iter().map(|t| Header::decode(&t[at..at + HEADER_BYTES], slot, &self.superblock.cluster));
            let valid = copies.filter_map(|c| if let Copy::Valid(header) = c { Some(header) } else { None });
            Some((slot, valid.max_by_key(|header| header.version)?))
        };
        (0..g.slots).filter_map(newest).filter(|(_, header)| header.slot_use == SlotUse::Chunk).collect()
    }

    /// Exchanges two ranges.
    fn swap(&self, a: u64, b: u64, len: u64) {
        let (at_a, at_b) = (read(&self.file, a, len), read(&self.file, b, len));
        assert!(at_a != at_b, "there is nothing to swap");
        self.file.write_all_at(&at_b, a).expect("writes");
        self.file.write_all_at(&at_a, b).expect("writes");
    }
}

fn read(file: &File, offset: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(len).expect("fits")];
    file.read_exact_at(&mut bytes, offset).expect("reads");
    bytes
}

/// Chunks of the volume.
const CHUNKS: u64 = 4;

/// The cluster stops, `damage` changes two slots of a primary's disk, and it starts again.
fn swapped(damage: impl Fn(&RawDisk, u32, u32), counter: &str) {
    let mut dev = Dev::start();
    dev.create_volume("v", "16MiB");
    let gateway = dev.gateway("v");
    let mut client = gateway.client();
    for chunk in 0..CHUNKS {
        client.write(chunk * CHUNK_BYTES, &pattern(CHUNK_BYTES, chunk)).expect("writes");
    }
    client.flush().expect("flushes");
    let hash = dev.hash("v");
    let folder = dev.disk_path(&dev.primary_of("v"));
    drop((client, gateway));
    dev.stop();
    let disk = RawDisk::open(&folder);
    assert!(disk.superblock.clean, "it was no clean stop");
    let chunks = disk.chunks();
    assert_eq!(chunks.len() as u64, CHUNKS);
    let slot_of = |index| chunks.iter().find(|(_, header)| header.chunk.index == index).expect("the chunk").0;
    damage(&disk, slot_of(0), slot_of(1));

    dev.start_again();
    let gateway = dev.gateway("v");
    let mut client = gateway.client();
    for chunk in 0..CHUNKS {
        let found = client.read(chunk * CHUNK_BYTES, CHUNK_BYTES).expect("reads");
        assert!(found == pattern(CHUNK_BYTES, chunk), "chunk {chunk} was served wrong");
    }
    if !counter.is_empty() {
        wait_for("the damage is counted", || (dev.metric_of_nodes(counter) > 0.0).then_some(()));
    }
    wait_for("the chunks are repaired on the disk", || {
        let disk = RawDisk::open(&folder);
        let is_good = |(slot, header): &(u32, Header)| {
            let data = read(&disk.file, disk.geometry().slot(*slot), CHUNK_BYTES);
            data == pattern(CHUNK_BYTES, u64::from(header.chunk.index))
        };
        let chunks = disk.chunks();
        (chunks.len() as u64 == CHUNKS && chunks.iter().all(is_good)).then_some(())
    });
    assert_eq!(dev.hash("v"), hash);
    // Those whose slots were swapped.
    agree(&dev, &gateway, 2);
    assert_eq!(dev.hash("v"), hash);
    drop((client, gateway));
    dev.finish();
}

/// Data and leaves: each block matches its leaf, but they belong to another chunk.
pub fn swapped_slots_are_never_served() {
    swapped(
        |disk, a, b| disk.swap(disk.geometry().slot(a), disk.geometry().slot(b), SLOT_BYTES),
        "evenkeel_hash_mismatches_total",
    );
}

pub fn swapped_data_is_never_served() {
    swapped(
        |disk, a, b| disk.swap(disk.geometry().slot(a), disk.geometry().slot(b), CHUNK_BYTES),
        "evenkeel_hash_mismatches_total",
    );
}

pub fn swapped_headers_are_never_served() {
    let damage = |disk: &RawDisk, a: u32, b: u32| {
        let g = disk.geometry();
        for table in 0..2 {
            let at = |slot: u32| g.headers(table) + u64::from(slot) * HEADER_BYTES as u64;
            // A table that was never written for either has nothing to swap.
            let len = HEADER_BYTES as u64;
            if read(&disk.file, at(a), len) != read(&disk.file, at(b), len) {
                disk.swap(at(a), at(b), len);
            }
        }
    };
    swapped(damage, "");
}

fn put_back(saved: &Path, folder: &Path) {
    fs::remove_dir_all(folder).expect("removes");
    copy(saved, folder);
}

/// Old content, an old copy of one node's disk, new content.
struct Story {
    dev: Dev,
    saved: std::path::PathBuf,
}

impl Story {
    /// Writes version `version` of everything; every third block keeps its first version.
    fn write(&mut self, version: u64) {
        let gateway = self.dev.gateway("v");
        let mut client = gateway.client();
        for at in (0..16).filter(|at| version == 1 || at % 3 != 0) {
            client.write(at * MIB, &pattern(MIB, at + 100 * version)).expect("writes");
        }
        client.flush().expect("flushes");
    }

    fn check(&mut self) {
        let gateway = self.dev.gateway("v");
        let mut client = gateway.client();
        for at in 0..16 {
            let version = if at % 3 == 0 { 1 } else { 2 };
            let found = client.read(at * MIB, MIB).expect("reads");
            assert!(found != pattern(MIB, at + 100) || version == 1, "MiB {at}: old data was served as current");
            assert!(found == pattern(MIB, at + 100 * version), "MiB {at} differs");
        }
        drop(client);
        agree(&self.dev, &gateway, CHUNKS as usize);
    }
}

fn story() -> Story {
    let dev = Dev::start();
    dev.create_volume("v", "16MiB");
    let saved = dev.path("saved");
    let mut story = Story { dev, saved };
    story.write(1);
    story
}

/// One node is away while the rest goes on: its old copy is as that of a node that was away longer.
pub fn an_old_copy_of_one_node_catches_up() {
    let mut story = story();
    let folder = story.dev.disk_path("n2");
    story.dev.stop_node("n2");
    copy(&folder, &story.saved);
    story.dev.start_node("n2");
    story.dev.wait_clean();
    story.write(2);
    story.dev.stop_node("n2");
    put_back(&story.saved, &folder);
    story.dev.start_node("n2");
    story.dev.wait_clean();
    story.check();
    story.dev.finish();
}

/// The whole cluster stops cleanly before the copy is made and before it is put back: its boot id is the one that the
/// configuration names (R1), but it lacks what was written since.
fn old_copy_in_a_stopped_cluster(victim: impl Fn(&Dev) -> String) {
    let mut story = story();
    let node = victim(&story.dev);
    let folder = story.dev.disk_path(&node);
    story.dev.stop();
    copy(&folder, &story.saved);
    story.dev.start_again();
    story.dev.wait_clean();
    story.write(2);
    story.dev.stop();
    put_back(&story.saved, &folder);
    story.dev.start_again();
    story.dev.wait_clean();
    story.check();
    story.dev.finish();
}

pub fn an_old_copy_of_a_primary_is_not_taken_for_current() {
    old_copy_in_a_stopped_cluster(|dev| dev.primary_of("v"));
}

pub fn an_old_copy_of_a_secondary_is_not_taken_for_current() {
    old_copy_in_a_stopped_cluster(|dev| {
        let primary = dev.primary_of("v");
        ["n1", "n2", "n3"].into_iter().find(|node| *node != primary).expect("another node").to_owned()
    });
}

/// The disk's content is gone, the node's identity is not: a new, empty disk, that counts only once it has everything.
pub fn a_wiped_disk_is_never_counted() {
    let mut dev = Dev::start();
    dev.create_volume("v", "8MiB");
    let gateway = dev.gateway("v");
    let load = gateway.load(2048);
    load.wait_for_more(300);
    let node = dev.primary_of("v");
    let (folder, old) = (dev.disk_path(&node), dev.disk_status(&node)["id"].clone());
    dev.kill_node(&node);
    for entry in fs::read_dir(&folder).expect("the disk's folder") {
        fs::remove_file(entry.expect("an entry").path()).expect("removes");
    }
    load.wait_for_more(300);
    dev.start_node(&node);
    load.wait_for_more(300);
    let disks = dev.status()["disks"].as_array().expect("disks").clone();
    let new = disks.iter().find(|disk| disk["node"] == node.as_str() && disk["id"] != old).expect("a new disk");
    println!("    the disk was {old}, now there is {new}");
    assert!(new["used_bytes"] != serde_json::Value::Null);
    // The old one's PGs are made anew after the grace; then all is well without it.
    dev.wait_clean();
    load.wait_for_more(300);
    load.stop_and_verify(&gateway.socket, "v");
    agree(&dev, &gateway, 2);
    drop(gateway);
    dev.finish();
}
