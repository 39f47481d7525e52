//! One replica, fed by hand: what it sends, and what it asks of its disk and of the coordinator.

use super::test_bed::*;
use super::*;
use crate::core::units::BLOCK_BYTES;

#[test]
fn an_old_copy_leads_alone_when_it_is_forced_to() {
    let mut bed = Bed::new(Some(known(3, true)));
    bed.feed(Input::Config(PgConfig { forced: true, ..config(9, &[1]) }));
    let asked = bed.answer_disk();
    assert!(!asked.iter().any(|op| matches!(op, DiskOp::SetVersion { .. })), "its versions are honest");
    assert!(bed.replica.is_serving());
    bed.ask(1, ClientOp::Open);
    bed.answer_disk();
    bed.write(2, 0);
    bed.answer_disk();
    assert!(bed.is_done(1) && bed.is_done(2), "IO flows with one copy: {:?}", bed.out);
}

#[test]
fn an_incomplete_copy_leads_only_by_a_record_that_says_so() {
    let mut bed = Bed::new(Some(known(3, false)));
    bed.table = vec![entry(0), entry(4)];
    bed.feed(Input::Config(config(8, &[1])));
    bed.answer_disk();
    assert!(!bed.replica.is_primary(), "no configuration makes an incomplete copy lead (I5)");
    bed.feed(Input::Config(PgConfig { forced: true, ..config(8, &[1, 2]) }));
    assert!(!bed.replica.is_primary(), "nor with other members, from whom it could learn");

    bed.feed(Input::Config(PgConfig { forced: true, ..config(9, &[1]) }));
    assert!(bed.replica.is_primary() && !bed.replica.is_complete());
    bed.ask(1, ClientOp::Open);
    let asked = bed.answer_disk();
    // Versions first, then their flush, then the record that calls the copy complete.
    let at = |what: &dyn Fn(&DiskOp) -> bool| asked.iter().position(what).unwrap();
    for index in [0, 4] {
        let set = DiskOp::SetVersion { chunk: chunk(index), generation: generation(9), sequence: 0 };
        assert!(at(&|op| *op == set) < at(&|op| matches!(op, DiskOp::Flush { .. })));
    }
    let record = |op: &DiskOp| matches!(op, DiskOp::Persist(state) if state.complete);
    assert!(at(&|op| matches!(op, DiskOp::Flush { .. })) < at(&record));
    assert!(
        !asked.iter().any(|op| matches!(op, DiskOp::Persist(s) if s.config.generation == generation(9) && !s.complete))
    );
    assert!(bed.replica.is_serving() && bed.is_done(1));
}

#[test]
fn a_forced_copy_that_stays_alone_takes_learners_as_members() {
    let mut bed = Bed::new(Some(known(3, true)));
    bed.feed(Input::Config(PgConfig { forced: true, learners: vec![learner(2)], ..config(9, &[1]) }));
    bed.answer_disk();
    assert!(bed.out.iter().any(|a| matches!(a, Action::OpenSession { learner } if *learner == member(2))));
    bed.feed(Input::SessionUp { learner: DiskId(2) });
    bed.session(2, SessionMessage::Table { entries: Vec::new(), last: true });
    bed.answer_disk();
    bed.session(2, SessionMessage::Finished);
    let promoted = |a: &Action| matches!(a, Action::Propose { change: Change::Promote(m), .. } if *m == member(2));
    assert!(bed.out.iter().any(promoted), "{:?}", bed.out);
}

/// A serving primary with members d2 and d3 and a write of which d3 has acked nothing but the reservation.
fn waiting_for_three() -> Bed {
    let mut bed = Bed::serving(&[2, 3]);
    bed.write(2, 0);
    bed.answer_disk();
    bed.peer(2, prepared(0));
    bed.peer(3, prepared(0));
    bed.answer_disk();
    bed.peer(2, applied(1, 2));
    bed
}

#[test]
fn a_slow_member_is_named_and_one_that_acks_nothing_is_proposed_for_removal() {
    let mut bed = waiting_for_three();
    bed.pass(500);
    assert!(bed.replica.lagging(bed.now).is_empty());
    bed.pass(100);
    assert_eq!(bed.replica.lagging(bed.now).keys().copied().collect::<Vec<_>>(), [DiskId(3)]);
    bed.pass(4000);
    assert_eq!(bed.removal(), None, "slow is not dead");
    bed.pass(1000);
    let (proposal, gone) = bed.removal().unwrap();
    assert_eq!(gone, [3]);
    // Refused: the accusation must stand. It is repeated.
    bed.out.clear();
    bed.feed(Input::Outcome { proposal, accepted: false, config: None });
    bed.pass(1000);
    let (proposal, gone) = bed.removal().unwrap();
    assert_eq!(gone, [3]);
    // It acks after all: nobody is accused any more.
    bed.feed(Input::Outcome { proposal, accepted: false, config: None });
    bed.out.clear();
    bed.peer(3, applied(1, 2));
    bed.pass(3000);
    assert!(bed.is_done(2) && bed.removal().is_none() && bed.replica.lagging(bed.now).is_empty());
}

#[test]
fn a_member_that_acks_now_and_then_stays() {
    let mut bed = waiting_for_three();
    for id in 3..8 {
        bed.write(id, 0);
    }
    bed.pass(4000);
    bed.peer(3, prepared(9));
    bed.pass(4000);
    assert_eq!(bed.removal(), None, "it did something within 5 s");
    bed.pass(1200);
    assert_eq!(bed.removal().unwrap().1, [3]);
}

#[test]
fn nobody_is_accused_of_what_nobody_has_done() {
    let mut bed = Bed::serving(&[2]);
    bed.write(2, 0);
    bed.peer(2, prepared(0));
    bed.pass(20_000);
    assert_eq!(bed.removal(), None, "this disk hangs, not the other");
    assert_eq!(bed.replica.lagging(bed.now).keys().copied().collect::<Vec<_>>(), [DiskId(1)]);
    // Nor of operations that never came: an idle PG.
    let mut bed = Bed::serving(&[2, 3]);
    bed.pass(20_000);
    assert!(bed.removal().is_none() && bed.replica.lagging(bed.now).is_empty());
}

#[test]
fn a_flush_may_take_longer_than_a_write() {
    let mut bed = Bed::serving(&[2, 3]);
    bed.ask(2, ClientOp::Flush);
    bed.answer_disk();
    let flush = bed.sent(2).iter().find_map(|m| match m {
        PeerMessage::Flush { id, .. } => Some(*id),
        _ => None,
    });
    bed.peer(2, PeerMessage::Flushed { generation: generation(1), id: flush.unwrap() });
    bed.pass(14_000);
    assert_eq!(bed.replica.lagging(bed.now).keys().copied().collect::<Vec<_>>(), [DiskId(3)]);
    assert_eq!(bed.removal(), None);
    bed.pass(1500);
    assert_eq!(bed.removal().unwrap().1, [3]);
}

/// The old primary's disk hangs: it can't accept the new configuration before what it admitted has drained (R6).
#[test]
fn a_new_primary_does_not_wait_for_ever_for_a_member_that_does_not_accept() {
    let mut bed = Bed::new(Some(PgState { config: config(1, &[3, 1, 2]), ..known(1, true) }));
    bed.feed(Input::Config(config(2, &[1, 2, 3])));
    bed.answer_disk();
    bed.accepts(2, 2);
    bed.pass(4900);
    assert!(!bed.replica.is_serving() && bed.removal().is_none());
    bed.pass(400);
    assert_eq!(bed.removal().unwrap().1, [3]);
    bed.feed(Input::Config(config(3, &[1, 2])));
    bed.answer_disk();
    bed.accepts(2, 3);
    bed.answer_disk();
    assert!(bed.replica.is_serving(), "IO goes on without it");
}

/// A simulated guest's read waited for ever (seed 20321).
#[test]
fn a_block_asked_of_a_member_under_a_new_link_is_asked_for_again() {
    let fetches = |bed: &Bed| bed.sent(2).iter().filter(|m| matches!(m, PeerMessage::Fetch { .. })).count();
    let mut bed = Bed::serving(&[2]);
    bed.bad_reads = true;
    bed.feed(Input::LinkReset { disk: DiskId(2) });
    bed.ask(5, ClientOp::Read { chunk: chunk(0), offset: 0, len: BLOCK_BYTES as u32 });
    bed.answer_disk();
    assert_eq!(fetches(&bed), 1, "its own block is damaged");
    // It is busy with the configuration that the new link brought: it answers nothing.
    let (generation, uncommitted, fences) = (generation(1), Vec::new(), Vec::new());
    bed.peer(2, PeerMessage::ConfigAccepted { generation, last_sequence: 1, uncommitted, fences });
    bed.answer_disk();
    assert_eq!(fetches(&bed), 2);
}

/// The other side: a secondary whose disk hangs accepts once it has drained, and only then.
#[test]
fn a_hanging_secondary_accepts_when_its_disk_answers() {
    let mut bed = Bed::new(Some(PgState { config: config(1, &[2, 1, 3]), ..known(1, true) }));
    bed.peer(2, PeerMessage::NewConfig { config: config(1, &[2, 1, 3]) });
    bed.answer_disk();
    let data = vec![7; BLOCK_BYTES as usize];
    let leaves = Arc::new(crate::core::hashtree::leaves_of(0, &data));
    let op = Operation::Write { chunk: chunk(0), first_block: 0, leaves, data: data.into() };
    bed.peer(2, PeerMessage::Replicate { generation: generation(1), sequence: 1, committed: 0, durable: false, op });
    bed.out.clear();
    bed.peer(3, PeerMessage::NewConfig { config: config(2, &[3, 1, 2]) });
    bed.pass(1000);
    let accepted = |bed: &Bed| bed.sent(3).iter().any(|m| matches!(m, PeerMessage::ConfigAccepted { .. }));
    assert!(!accepted(&bed), "a write of the old generation is still on its way to the disk");
    bed.answer_disk();
    assert!(accepted(&bed));
}

/// A serving primary alone, with a learner d2 whose session is up.
fn teaching(table: &[u32]) -> Bed {
    let mut bed = Bed::serving(&[]);
    bed.table = table.iter().map(|i| entry(*i)).collect();
    bed.feed(Input::Config(PgConfig { learners: vec![learner(2)], ..config(1, &[1]) }));
    bed
}

fn stalled(bed: &Bed) -> Option<(Option<ChunkId>, StallReason)> {
    bed.replica.stalled(DiskId(2), bed.now).map(|s| (s.chunk, s.reason))
}

#[test]
fn a_session_without_progress_names_what_it_waits_for() {
    let mut bed = teaching(&[0]);
    bed.pass(9900);
    assert_eq!(stalled(&bed), None, "ten seconds are given");
    bed.pass(200);
    assert_eq!(stalled(&bed), Some((None, StallReason::StreamDown)));
    bed.feed(Input::SessionUp { learner: DiskId(2) });
    assert_eq!(stalled(&bed), None);
    bed.pass(10_000);
    assert_eq!(stalled(&bed), Some((None, StallReason::Learner)), "no table");
    bed.session(2, SessionMessage::Table { entries: Vec::new(), last: false });
    assert_eq!(stalled(&bed), None, "a part of the table is progress");
    bed.session(2, SessionMessage::Table { entries: Vec::new(), last: true });
    bed.pass(10_000);
    assert_eq!(stalled(&bed), Some((None, StallReason::Disk)), "its own table");

    // The snapshot of the chunk, then its windows.
    let (token, op) = bed.disk.pop_front().unwrap();
    let result = bed.result(&op);
    bed.feed(Input::Disk { token, result });
    bed.pass(10_000);
    assert_eq!(stalled(&bed), Some((Some(chunk(0)), StallReason::Disk)));
    bed.answer_disk();
    let sent = |bed: &Bed| {
        bed.sent(2).iter().filter(|m| matches!(m, PeerMessage::Session(SessionMessage::Copy { .. }))).count()
    };
    assert_eq!(sent(&bed), 4, "what a session begins with (R18)");
    bed.session(2, SessionMessage::Copied { chunk: chunk(0), window: 0, bytes: 262_144 });
    assert_eq!(stalled(&bed), None);
    bed.answer_disk();
    bed.pass(10_000);
    assert_eq!(stalled(&bed), Some((Some(chunk(0)), StallReason::Learner)));
    for window in 1..16 {
        bed.answer_disk();
        bed.session(2, SessionMessage::Copied { chunk: chunk(0), window, bytes: 262_144 });
    }
    assert_eq!(sent(&bed), 16, "all its windows");
    bed.pass(10_000);
    assert_eq!(stalled(&bed), Some((None, StallReason::Learner)), "it makes everything stable");
    bed.session(2, SessionMessage::Finished);
    bed.pass(10_000);
    assert_eq!(stalled(&bed), Some((None, StallReason::Promotion)));
}

/// After a power cut a disk had the later of two writes without the earlier one, under the version of both (seed 31735).
#[test]
fn copies_of_one_version_are_equal_by_their_content_alone() {
    let is_compared = |mine: Option<u8>, theirs: Option<u8>| {
        let with = |root: Option<u8>| TableEntry { root: root.map(|b| [b; 32]), ..entry(0) };
        let mut bed = teaching(&[0]);
        bed.table = vec![with(mine)];
        bed.feed(Input::SessionUp { learner: DiskId(2) });
        bed.session(2, SessionMessage::Table { entries: vec![with(theirs)], last: true });
        bed.answer_disk();
        bed.sent(2).iter().any(|m| matches!(m, PeerMessage::Session(SessionMessage::Compare { .. })))
    };
    assert!(!is_compared(Some(1), Some(1)));
    for (mine, theirs) in [(Some(1), Some(2)), (None, Some(1)), (Some(1), None), (None, None)] {
        assert!(is_compared(mine, theirs), "{mine:?} and {theirs:?}");
    }
}

#[test]
fn a_chunk_that_a_write_holds_is_named_whatever_is_written_elsewhere() {
    let mut bed = teaching(&[0, 1]);
    // A write that this disk doesn't finish holds chunk 0.
    bed.write(2, 0);
    bed.answer_disk_but(|op| matches!(op, DiskOp::Apply { .. }));
    bed.feed(Input::SessionUp { learner: DiskId(2) });
    bed.session(2, SessionMessage::Table { entries: Vec::new(), last: true });
    bed.answer_disk_but(|op| matches!(op, DiskOp::Apply { .. }));
    for window in 0..16 {
        bed.session(2, SessionMessage::Copied { chunk: chunk(1), window, bytes: 262_144 });
    }
    bed.pass(9000);
    bed.session(2, SessionMessage::Forwarded { sequence: 3 });
    bed.pass(1000);
    assert_eq!(stalled(&bed), Some((Some(chunk(0)), StallReason::Locked)));
}

#[test]
fn blocks_that_no_replica_has_are_named_and_a_throttled_session_is_not_stalled() {
    let mut bed = teaching(&[0]);
    bed.feed(Input::SessionUp { learner: DiskId(2) });
    bed.session(2, SessionMessage::Table { entries: Vec::new(), last: true });
    bed.env.tokens = false;
    bed.answer_disk();
    bed.pass(30_000);
    assert_eq!(stalled(&bed), None, "it waits for tokens: the throttle says why");
    bed.env.tokens = true;
    bed.bad_reads = true;
    bed.pass(100);
    bed.answer_disk();
    bed.pass(10_000);
    assert_eq!(stalled(&bed), Some((Some(chunk(0)), StallReason::NoGoodCopy)));
}

#[test]
fn every_reason_has_a_number_of_its_own() {
    for code in 1..=8 {
        let reason = StallReason::from_code(code).unwrap();
        assert_eq!(reason.code(), code);
        assert!(!reason.text().is_empty() && !reason.advice().is_empty());
    }
    assert_eq!(StallReason::from_code(9), None);
}

/// A serving primary alone, with learners d2 and d3 that have finished; the promotion of d2 is proposed.
fn two_ready_learners() -> (Bed, u64) {
    let mut bed = Bed::serving(&[]);
    bed.feed(Input::Config(PgConfig { learners: vec![learner(2), learner(3)], ..config(1, &[1]) }));
    for disk in [2, 3] {
        bed.feed(Input::SessionUp { learner: DiskId(disk) });
        bed.session(disk, SessionMessage::Table { entries: Vec::new(), last: true });
        bed.answer_disk();
        bed.session(disk, SessionMessage::Forwarded { sequence: 0 });
        bed.session(disk, SessionMessage::Finished);
    }
    let proposal = bed.out.iter().find_map(|a| match a {
        Action::Propose { proposal, change: Change::Promote(m), .. } if m.disk == DiskId(2) => Some(*proposal),
        _ => None,
    });
    (bed, proposal.unwrap())
}

fn promoted(bed: &mut Bed, proposal: u64) {
    let config = PgConfig { learners: vec![learner(3)], ..config(2, &[1, 2]) };
    bed.feed(Input::Outcome { proposal, accepted: true, config: Some(config.clone()) });
    bed.feed(Input::Config(config));
    bed.answer_disk();
}

/// R3, R18: what the simulator found. The second learner is proposed next, and may lead at once.
#[test]
fn a_write_waits_for_a_second_learner_across_the_promotion_of_the_first() {
    let (mut bed, proposal) = two_ready_learners();
    bed.write(2, 0);
    bed.answer_disk();
    bed.session(2, SessionMessage::Forwarded { sequence: 2 });
    assert!(!bed.is_done(2));
    promoted(&mut bed, proposal);
    bed.accepts(2, 2);
    bed.answer_disk();
    bed.peer(2, applied(2, 2));
    assert!(bed.replica.is_serving());
    assert!(!bed.is_done(2), "the second learner is in its last phase and doesn't have it");
    bed.session(3, SessionMessage::Forwarded { sequence: 2 });
    assert!(bed.is_done(2));
}

/// R9: what the simulator found. A member that was promoted knows no sequence before it is told where they begin.
#[test]
fn a_new_member_whose_link_is_reset_has_lost_nothing() {
    let (mut bed, proposal) = two_ready_learners();
    bed.write(2, 0);
    bed.answer_disk();
    [2, 3].into_iter().for_each(|d| bed.session(d, SessionMessage::Forwarded { sequence: 2 }));
    assert!(bed.is_done(2), "sequence 2 is committed");
    promoted(&mut bed, proposal);
    bed.accepts(2, 2);
    bed.out.clear();
    // The word where sequences begin is lost with the link.
    bed.feed(Input::LinkReset { disk: DiskId(2) });
    bed.accepts(2, 2);
    bed.pass(1000);
    assert_eq!(bed.removal(), None);
    let last = bed.sent(2).into_iter().rfind(|m| !matches!(m, PeerMessage::Flush { .. }));
    assert!(matches!(last, Some(PeerMessage::Activate { base_sequence: 2, .. })), "{last:?}");
}

/// R5: what the simulator found. Two members at once may be too many where one may go.
#[test]
fn removals_that_are_refused_together_are_tried_one_by_one() {
    let mut bed = Bed::serving(&[2, 3]);
    [2, 3].into_iter().for_each(|d| bed.feed(Input::Reachable { disk: DiskId(d), yes: false }));
    let mut tried = Vec::new();
    for _ in 0..6 {
        bed.pass(250);
        let Some((proposal, gone)) = bed.removal() else { panic!("after {tried:?}") };
        tried.push(gone);
        bed.out.clear();
        bed.feed(Input::Outcome { proposal, accepted: false, config: None });
    }
    assert!(tried.contains(&vec![2, 3]) && tried.contains(&vec![2]) && tried.contains(&vec![3]), "{tried:?}");
}

/// What the simulator found: the end of a dead primary's stream may never be heard, and a copy that "learns" is never purged.
#[test]
fn a_learner_that_a_later_configuration_leaves_out_learns_no_more() {
    let mut bed = Bed::new(None);
    bed.session(2, SessionMessage::Open { config: PgConfig { learners: vec![learner(1)], ..config(3, &[2]) } });
    bed.answer_disk();
    bed.feed(Input::Config(PgConfig { learners: vec![learner(1)], ..config(3, &[2]) }));
    assert!(bed.replica.is_learning());
    // The map that has it as a learner may come after the session; one of the same generation that lacks it is older.
    bed.feed(Input::Config(config(3, &[2])));
    assert!(bed.replica.is_learning());
    bed.feed(Input::Config(config(4, &[3])));
    assert!(!bed.replica.is_learning() && bed.replica.is_outside());
}
