//! What a replica's record on disk may hold is bounded, and a disk that can't keep it loses this PG alone.

use super::test_bed::{Bed, applied, chunk, config, generation, known, learner, member, prepared};
use super::*;

fn open_learner() -> Bed {
    let mut bed = Bed::new(None);
    let config = PgConfig { learners: vec![learner(1)], ..config(4, &[2, 3]) };
    bed.session(2, SessionMessage::Open { config });
    bed.answer_disk();
    bed
}

/// The learner is told that copying of the chunk begins.
fn begins(bed: &mut Bed, index: u32) {
    bed.session(2, SessionMessage::Compare { chunk: chunk(index), windows: Vec::new() });
}

#[test]
fn a_learner_remembers_only_what_is_not_committed() {
    let mut bed = open_learner();
    for sequence in 1..=20_000 {
        let op =
            Operation::Zero { chunk: chunk(sequence as u32 % 900), first_block: sequence as u32 % 512 * 2, count: 1 };
        let committed = sequence - 10_u64.min(sequence);
        let forward = SessionMessage::Forward { generation: generation(4), sequence, committed, durable: false, op };
        bed.session(2, forward);
        bed.answer_disk();
    }
    let state = bed.replica.state();
    assert_eq!(state.uncommitted.len(), 10);
}

#[test]
fn a_learner_with_too_many_half_copied_chunks_trusts_none() {
    let mut bed = open_learner();
    for index in 0..5000 {
        begins(&mut bed, index);
    }
    let state = bed.replica.state();
    assert!(state.unsure_all && state.uncommitted.len() <= RECORD_RANGES_MAX);

    // Also after a restart, until it is a member.
    let mut bed = Bed::new(Some(state));
    bed.table = vec![super::test_bed::entry(7)];
    let opened = PgConfig { learners: vec![learner(1)], ..config(4, &[2, 3]) };
    bed.session(2, SessionMessage::Open { config: opened });
    bed.answer_disk();
    let table = bed.sent(2).into_iter().find_map(|m| match m {
        PeerMessage::Session(SessionMessage::Table { entries, .. }) => Some(entries.clone()),
        _ => None,
    });
    assert!(table.unwrap()[0].unsure);
    bed.session(2, SessionMessage::Finish { sequence: 0, uncommitted: Vec::new() });
    bed.answer_disk();
    bed.peer(2, PeerMessage::NewConfig { config: config(5, &[2, 3, 1]) });
    bed.answer_disk();
    let state = bed.replica.state();
    assert!(state.complete && !state.unsure_all);
}

#[test]
fn ordered_operations_and_with_them_every_record_are_bounded() {
    let mut bed = Bed::serving(&[2]);
    let writes = 3 * IN_FLIGHT_MAX as u64;
    let ordered = |bed: &Bed| {
        bed.sent(2)
            .into_iter()
            .filter(|m| matches!(m, PeerMessage::Replicate { op: Operation::Write { .. }, .. }))
            .count()
    };
    for id in 0..writes {
        bed.write(2 + id, id as u32);
    }
    bed.answer_disk();
    for id in 0..writes {
        bed.peer(2, prepared(id as u32));
    }
    bed.answer_disk();
    assert_eq!(ordered(&bed), IN_FLIGHT_MAX);
    assert!(bed.replica.state().uncommitted.len() <= RECORD_RANGES_MAX);
    // Each that commits lets one more in; nobody is forgotten.
    for sequence in 2..2 + writes {
        bed.peer(2, applied(1, sequence));
        bed.answer_disk();
    }
    assert!((2..2 + writes).all(|id| bed.is_done(id)));
}

/// Its flush ends when another session has begun: that one has copied nothing yet.
#[test]
fn an_earlier_sessions_end_is_not_a_later_ones() {
    let mut bed = open_learner();
    bed.session(2, SessionMessage::Finish { sequence: 0, uncommitted: Vec::new() });
    let (token, op) = bed.disk.pop_front().unwrap();
    assert!(matches!(op, DiskOp::Flush { .. }));
    bed.feed(Input::SessionDown { peer: DiskId(2) });
    bed.out.clear();
    let config = PgConfig { learners: vec![learner(1)], ..config(4, &[2, 3]) };
    bed.session(2, SessionMessage::Open { config });
    bed.feed(Input::Disk { token, result: DiskResult::Done });
    assert!(!bed.replica.is_complete());
    bed.answer_disk();
    assert!(!bed.replica.is_complete());
}

/// The first primary died before it could activate the PG: nothing was ever written.
#[test]
fn a_fresh_member_may_begin_under_a_later_configuration() {
    let mut bed = Bed::new(None);
    bed.feed(Input::Config(config(2, &[1, 3])));
    bed.answer_disk();
    bed.accepts(3, 2);
    assert!(bed.replica.is_serving());
    let mut bed = Bed::new(None);
    bed.peer(2, PeerMessage::NewConfig { config: config(2, &[2, 1]) });
    bed.answer_disk();
    assert!(bed.replica.is_complete());
    // One that learns has a record, and its promotion needs all that it learnt.
    let mut bed = open_learner();
    bed.peer(2, PeerMessage::NewConfig { config: config(5, &[2, 3, 1]) });
    assert!(bed.sent(2).contains(&&PeerMessage::ConfigRefused { generation: generation(5) }));
}

/// What the simulator found: a disk had given its copy up, with the record of what it had accepted; a primary that had been cut
/// off since before then took it for a fresh member of the configuration in which it once was one.
#[test]
fn a_disk_that_gave_its_copy_up_is_no_fresh_member() {
    let mut bed = Bed::new(None);
    bed.feed(Input::Config(config(6, &[2, 3])));
    bed.peer(4, PeerMessage::NewConfig { config: config(3, &[4, 1]) });
    bed.answer_disk();
    assert!(bed.sent(4).contains(&&PeerMessage::Rejected { generation: generation(6), gap: false }));
    assert!(!bed.replica.is_complete(), "it has accepted nothing");
}

#[test]
fn ranges_that_touch_are_one() {
    let (a, b) = (chunk(1), chunk(2));
    let ranges = vec![(b, 0, 4), (a, 8, 8), (a, 0, 8), (a, 4, 2), (b, 5, 1), (b, 5, 1)];
    assert_eq!(joined(ranges), [(a, 0, 16), (b, 0, 4), (b, 5, 1)]);
}

#[test]
fn a_primary_whose_disk_refuses_the_pg_asks_that_another_leads() {
    let mut bed = Bed::serving(&[2, 3]);
    bed.write(2, 0);
    let (token, _) = bed.disk.pop_front().unwrap();
    bed.feed(Input::Disk { token, result: DiskResult::Refused("unreadable".into()) });
    assert!(!bed.replica.is_primary());
    assert_eq!(bed.removal().map(|(_, gone)| gone), Some(vec![1]));
    // Until it is so: below min_replicas, say, the coordinator refuses.
    bed.out.clear();
    bed.pass(1000);
    assert!(bed.replica.needs_ticks() && bed.removal().is_some());
    bed.feed(Input::Config(config(2, &[2, 3])));
    bed.out.clear();
    bed.pass(1000);
    assert!(!bed.replica.needs_ticks() && bed.removal().is_none());
}

#[test]
fn a_member_whose_disk_refuses_the_pg_says_so() {
    let mut bed = Bed::new(Some(known(3, true)));
    bed.peer(2, PeerMessage::NewConfig { config: config(4, &[2, 3, 1]) });
    let (token, _) = bed.disk.pop_front().unwrap();
    bed.feed(Input::Disk { token, result: DiskResult::Refused("too long".into()) });
    assert!(bed.sent(2).contains(&&PeerMessage::ConfigRefused { generation: generation(4) }));
    assert!(!bed.replica.needs_ticks(), "{:?}", member(1));
}
