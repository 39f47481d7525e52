//! What must hold of all copies of a volume.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::dev::{Dev, Gateway};
use crate::nbd::{BLOCK_BYTES, Client, stamp};

/// More rounds than a primary's role needs to go around.
const ROUNDS: usize = 40;

/// The copies agree: the volume's hash is the same whoever is primary. Kills nodes in turn until each disk has served
/// each of the volume's first `chunks` chunks.
pub fn agree(dev: &Dev, gateway: &Gateway, chunks: usize) {
    let volume = gateway.volume.as_str();
    dev.wait_clean();
    let hash = dev.hash(volume);
    let mut missing: BTreeSet<(String, u64)> = BTreeSet::new();
    for (pg, disks) in members(dev, volume, chunks) {
        missing.extend(disks.iter().map(|disk| (pg.clone(), *disk)));
    }
    for _ in 0..ROUNDS {
        let members = members(dev, volume, chunks);
        for (pg, disks) in &members {
            missing.remove(&(pg.clone(), disks[0]));
        }
        assert_eq!(dev.hash(volume), hash, "another primary has other content: {members:?}");
        let Some((pg, wanted)) = missing.first() else { return };
        let disks = &members.iter().find(|(known, _)| known == pg).expect("the volume's PGs stay").1;
        assert!(disks.contains(wanted), "a copy moved away meanwhile: {missing:?}, {members:?}");
        // The one with the fewest primaries follows a dead one; who comes back has none.
        let follows = disks[1..].iter().min_by_key(|disk| (primaries(dev, **disk), **disk)).expect("a secondary");
        let node = node_of(dev, if follows == wanted { disks[0] } else { *wanted });
        dev.kill_node(&node);
        // Reading waits until another one serves.
        let mut client = gateway.client();
        for chunk in 0..chunks as u64 {
            client.read(chunk * (4 << 20), BLOCK_BYTES).expect("reads");
        }
        assert_eq!(dev.hash(volume), hash, "without {node} the content is another");
        dev.start_node(&node);
        dev.wait_clean();
    }
    panic!("after {ROUNDS} rounds some copies have never been primary: {missing:?}");
}

/// The PGs of the first chunks, each with its disks, the primary first.
fn members(dev: &Dev, volume: &str, chunks: usize) -> Vec<(String, Vec<u64>)> {
    let pgs = dev.json(&["volume", "show", volume])["stripes"][0]["pgs"].as_array().expect("PGs").clone();
    let names: BTreeSet<String> = pgs.iter().take(chunks).map(|index| format!("1.{index}")).collect();
    let disks = |pg: &String| {
        let members = dev.json(&["pg", "show", pg])["members"].as_array().expect("members").clone();
        members.iter().map(|member| member["disk"].as_u64().expect("an id")).collect()
    };
    names.into_iter().map(|pg| (pg.clone(), disks(&pg))).collect()
}

fn disk(dev: &Dev, id: u64) -> Value {
    let disks = dev.status()["disks"].as_array().expect("disks").clone();
    disks.into_iter().find(|disk| disk["id"] == id).expect("the disk")
}

fn node_of(dev: &Dev, id: u64) -> String {
    disk(dev, id)["node"].as_str().expect("a name").to_owned()
}

fn primaries(dev: &Dev, id: u64) -> u64 {
    disk(dev, id)["primaries"].as_u64().expect("a number")
}

/// What became of a block: its versions count from 1.
#[derive(Clone, Copy, Default, Debug)]
pub struct History {
    /// Acked before a flush that was acked.
    pub flushed: u64,
    /// Acked.
    pub acked: u64,
    /// Sent, perhaps without an answer.
    pub sent: u64,
}

/// Writes stamped blocks from `first` on, with a flush now and then, until an error ends it; gives what it knows of
/// each block.
pub fn write_until_cut(mut client: Client, first: u64, blocks: u64) -> Vec<History> {
    let mut known = vec![History::default(); usize::try_from(blocks).expect("fits")];
    let mut random = first + 1;
    for step in 1_u64.. {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let i = usize::try_from((random >> 33) % blocks).expect("fits");
        known[i].sent += 1;
        let block = first + i as u64;
        if client.write(block * BLOCK_BYTES, &stamp(block, known[i].sent)).is_err() {
            break;
        }
        known[i].acked = known[i].sent;
        if step % 200 == 0 {
            if client.flush().is_err() {
                break;
            }
            known.iter_mut().for_each(|block| block.flushed = block.acked);
        }
    }
    known
}

/// Every block holds its flushed version or a newer one that was written.
pub fn check_history(client: &mut Client, first: u64, known: &[History]) {
    for (i, history) in known.iter().enumerate() {
        let block = first + i as u64;
        let found = client.read(block * BLOCK_BYTES, BLOCK_BYTES).expect("reads");
        let version = u64::from_le_bytes(found[8..16].try_into().expect("eight bytes"));
        assert!(found == stamp(block, version), "block {block} holds no version: {:02x?}", &found[..32]);
        assert!((history.flushed..=history.sent).contains(&version), "block {block} holds {version}: {history:?}");
    }
}
