use super::*;
use crate::core::cluster::NodeAdminState;
use crate::core::cluster::command::{Command, Context, Nobody, Refusal};
use crate::meta::migrate;
use crate::meta::sled_store::SledStore;

fn apply(state: &mut ClusterState, store: &dyn MetaStore, command: Command) -> Result<(), Refusal> {
    let applied = state.apply(command, &Context { liveness: &Nobody })?;
    let mut batch = Batch::default();
    put_changes(state, &applied.changed.into_iter().collect(), &mut batch);
    store.commit(&batch).unwrap();
    Ok(())
}

fn add_node(name: &str) -> Command {
    let addr = "127.0.0.1:1".parse().unwrap();
    Command::AddNode { name: name.into(), addr, zone: String::new(), rack: String::new() }
}

fn cluster() -> (tempfile::TempDir, SledStore, ClusterState) {
    let dir = tempfile::tempdir().unwrap();
    let store = SledStore::create(dir.path()).unwrap();
    migrate::migrate(&store, false).unwrap();
    let mut state = ClusterState::empty();
    apply(&mut state, &store, Command::Init { cluster: ClusterId([7; 16]), feature_level: 1 }).unwrap();
    apply(&mut state, &store, add_node("a")).unwrap();
    apply(&mut state, &store, add_node("b")).unwrap();
    (dir, store, state)
}

#[test]
fn the_map_comes_back_as_it_was() {
    let (dir, store, state) = cluster();
    drop(store);
    let store = SledStore::open(dir.path()).unwrap();
    let back = load(&store).unwrap();
    assert_eq!((back.map(), back.next_ids()), (state.map(), state.next_ids()));
    assert_eq!(migrate::migrate(&store, true).unwrap(), Vec::<&str>::new(), "steps run once");
}

#[test]
fn unknown_records_are_kept_and_unknown_fields_make_a_record_read_only() {
    let (_dir, store, state) = cluster();
    let strange = envelope::seal("map/zonefile/1", 4711, 3, &JsonRecord { json: "new".into() });
    let node = map::Node::from(&state.map().nodes[&crate::core::ids::NodeId(1)]);
    // Field 99, a varint that this release doesn't know.
    let key = key_of(RecordKey::Node(crate::core::ids::NodeId(1)));
    let mut body = node.encode_to_vec();
    body.extend([0x98, 0x06, 0x05]);
    #[derive(Clone, PartialEq, Message)]
    struct Raw {}
    let sealed = {
        let empty = envelope::open(&key, &envelope::seal(&key, kind::NODE, 2, &Raw {})).unwrap();
        let crc = [key.as_bytes(), &kind::NODE.to_le_bytes(), &2u32.to_le_bytes(), &body].concat();
        envelope::Envelope { body: body.clone(), crc: crc32c::crc32c(&crc), ..empty }.encode_to_vec()
    };
    let mut batch = Batch::default();
    batch.put("map/zonefile/1", strange.clone());
    batch.put(&key, sealed.clone());
    store.commit(&batch).unwrap();

    let mut state = load(&store).unwrap();
    let set = |node: &str| Command::SetNodeState { node: node.into(), state: NodeAdminState::Draining };
    let refused = apply(&mut state, &store, set("a")).unwrap_err();
    assert!(matches!(refused, Refusal::ReadOnly(RecordKey::Node(_))), "{refused}");
    apply(&mut state, &store, set("b")).unwrap();
    assert_eq!(store.get("map/zonefile/1").unwrap(), Some(strange));
    assert_eq!(store.get(&key).unwrap(), Some(sealed), "its unknown field is still there");
}

#[test]
fn damaged_and_foreign_records_are_named() {
    let (_dir, store, _) = cluster();
    let key = key_of(RecordKey::Node(crate::core::ids::NodeId(1)));
    let other = store.get(&key_of(RecordKey::Node(crate::core::ids::NodeId(2)))).unwrap().unwrap();
    for value in [vec![0xff; 9], Vec::new(), other] {
        let mut batch = Batch::default();
        batch.put(&key, value);
        store.commit(&batch).unwrap();
        let Err(MetaError::Record { key: named, .. }) = load(&store) else { panic!("it was taken") };
        assert_eq!(named, key);
    }
    let mut batch = Batch::default();
    batch.put(SCHEMA_KEY, envelope::seal(SCHEMA_KEY, kind::SCHEMA, 1, &migrate::Schema { number: 99, names: vec![] }));
    store.commit(&batch).unwrap();
    assert!(matches!(migrate::migrate(&store, false), Err(MetaError::SchemaTooNew { found: 99, .. })));
}
