use super::*;
use std::os::unix::fs::FileExt;

fn filled(dir: &Path, n: u32) -> SledStore {
    let store = SledStore::create(dir).unwrap();
    for i in 0..n {
        let mut batch = Batch::default();
        batch.put(format!("k/{i:04}"), vec![i as u8; 200]);
        store.commit(&batch).unwrap();
    }
    store
}

#[test]
fn commits_survive_and_compare() {
    let dir = tempfile::tempdir().unwrap();
    let store = filled(dir.path(), 3);
    let mut follower = store.watch();
    let mut batch = Batch { expect: vec![("k/0001".into(), Some(vec![1; 200]))], writes: vec![] };
    batch.delete("k/0001");
    store.commit(&batch).unwrap();
    assert!(follower.has_changed().unwrap());
    follower.mark_unchanged();
    assert!(matches!(store.commit(&batch), Err(MetaError::Conflict { .. })), "the record is gone now");
    assert!(!follower.has_changed().unwrap());
    assert!(matches!(SledStore::create(dir.path()), Err(MetaError::Exists(_))));
    assert!(matches!(SledStore::open(dir.path()), Err(MetaError::Busy(_))), "two processes can't share it");
    drop(store);
    let store = SledStore::open(dir.path()).unwrap();
    let keys: Vec<String> = store.scan("k/").unwrap().into_iter().map(|(k, _)| k).collect();
    assert_eq!(keys, ["k/0000", "k/0002"]);
    assert_eq!(store.get("k/0002").unwrap(), Some(vec![2; 200]));
}

#[test]
fn an_empty_directory_is_no_cluster_and_a_lost_database_is_no_new_one() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(SledStore::open(dir.path()), Err(MetaError::Missing(_))));
    drop(filled(dir.path(), 3));
    std::fs::remove_dir_all(dir.path().join("meta")).unwrap();
    assert!(matches!(SledStore::open(dir.path()), Err(MetaError::Damaged { .. })));
    assert!(matches!(SledStore::create(dir.path()), Err(MetaError::Exists(_))));
    let dir = tempfile::tempdir().unwrap();
    drop(filled(dir.path(), 3));
    std::fs::remove_file(dir.path().join("meta.marker")).unwrap();
    assert!(matches!(SledStore::open(dir.path()), Err(MetaError::Damaged { .. })));
}

/// Every kind of damage gives an error or, if it hit nothing that matters, the whole content; never a panic, never less.
#[test]
fn damage_is_an_error_and_never_a_smaller_database() {
    let whole = tempfile::tempdir().unwrap();
    drop(filled(whole.path(), 40));
    let size = std::fs::metadata(whole.path().join("meta/db")).unwrap().len();
    let damage = |what: &str, change: &dyn Fn(&File)| {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("meta")).unwrap();
        for file in ["meta.marker", "meta/db", "meta/conf"] {
            std::fs::copy(whole.path().join(file), dir.path().join(file)).unwrap();
        }
        change(&File::options().read(true).write(true).open(dir.path().join("meta/db")).unwrap());
        match SledStore::open(dir.path()) {
            Ok(store) => {
                assert_eq!(store.scan("k/").unwrap().len(), 40, "{what}: records were lost in silence");
                false
            }
            Err(MetaError::Damaged { .. } | MetaError::Io { .. }) => true,
            Err(other) => panic!("{what}: {other}"),
        }
    };
    assert!(damage("emptied", &|f| f.set_len(0).unwrap()));
    for part in [1, size / 8, size / 4, size / 2, size - size / 16] {
        damage(&format!("truncated to {part}"), &|f| f.set_len(part).unwrap());
    }
    let mut noticed = 0;
    for i in 0..24 {
        let at = (i * 2_654_435_761) % 24_000 % size;
        noticed += u32::from(damage(&format!("garbage at {at}"), &|f| f.write_all_at(&[0xa5; 64], at).unwrap()));
    }
    assert!(noticed > 0, "garbage within the records shows");
    assert!(damage("all garbage", &|f| f.write_all_at(&vec![0x5a; size as usize], 0).unwrap()));
}

const CHILD_DIR: &str = "EVENKEEL_TEST_STORE_DIR";

/// Not a test by itself: the process that the next test kills. Prints each commit that is done.
#[test]
fn child_commits_until_killed() {
    use std::io::Write;
    let Some(dir) = std::env::var_os(CHILD_DIR) else { return };
    let store = SledStore::open(Path::new(&dir)).unwrap();
    let first = store.scan("n/").unwrap().len() as u64;
    for n in first.. {
        let mut batch = Batch::default();
        batch.put(format!("n/{n:08}"), n.to_le_bytes().repeat(8));
        // Several records that must agree, some replaced each time, some removed.
        for i in 0..8 {
            batch.put(format!("same/{i}"), n.to_le_bytes().repeat(16 + i));
        }
        batch.put(format!("odd/{n}"), vec![7; 100]);
        batch.delete(format!("odd/{}", n.saturating_sub(3)));
        store.commit(&batch).unwrap();
        println!("done {n}");
        std::io::stdout().flush().unwrap();
    }
}

#[test]
fn a_killed_process_leaves_a_whole_store_with_all_that_it_had_acked() {
    use std::io::{BufRead, BufReader};
    let dir = tempfile::tempdir().unwrap();
    drop(SledStore::create(dir.path()).unwrap());
    for round in 0..12 {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture", "meta::sled_store::tests::child_commits_until_killed"])
            .env(CHILD_DIR, dir.path())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut acked = None;
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut seen = 0;
        for line in lines {
            let line = line.unwrap();
            // The harness prints its own words before the first one.
            if let Some((_, n)) = line.split_once("done ") {
                acked = n.parse::<u64>().ok();
                seen += 1;
                if seen == 3 + round * 2 {
                    child.kill().unwrap();
                }
            }
        }
        child.wait().unwrap();
        let store = SledStore::open(dir.path()).unwrap();
        let rows = store.scan("n/").unwrap().len() as u64;
        assert!(rows > acked.unwrap(), "round {round}: {rows} rows, but {acked:?} was acked");
        for (key, value) in store.scan("same/").unwrap() {
            assert_eq!(value[..8], (rows - 1).to_le_bytes(), "round {round}: {key} is of another batch");
        }
    }
}
