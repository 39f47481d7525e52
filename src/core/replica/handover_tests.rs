//! How one primary makes room for the next without waiting out its lease (R7).

use super::test_bed::*;
use super::*;

/// A secondary of d2 that has granted it a lease, about to lead.
fn heir() -> Bed {
    let known = PgState { config: config(1, &[2, 1, 3]), ..known(1, true) };
    let mut bed = Bed::new(Some(known));
    bed.granted = Duration::from_millis(600);
    bed
}

fn leads(bed: &mut Bed) {
    bed.feed(Input::Config(config(2, &[1, 2, 3])));
    bed.answer_disk();
    bed.accepts(2, 2);
    bed.accepts(3, 2);
    bed.answer_disk();
}

/// Guests' IO stood still for the rest of the lease when the old primary heard of the change before the new one did.
#[test]
fn a_yield_that_comes_before_the_configuration_counts() {
    let to_two = || PeerMessage::Yield { generation: generation(2) };
    let mut bed = heir();
    bed.peer(2, to_two());
    leads(&mut bed);
    assert!(bed.replica.is_serving(), "nobody else serves");

    let mut bed = heir();
    leads(&mut bed);
    assert!(!bed.replica.is_serving(), "the old primary's lease may still hold");
    bed.peer(3, to_two());
    assert!(!bed.replica.is_serving(), "d3 didn't lead: it can't say");
    bed.peer(2, to_two());
    assert!(bed.replica.is_serving());

    for (from, n) in [(3, 2), (2, 3)] {
        let mut bed = heir();
        bed.peer(from, PeerMessage::Yield { generation: generation(n) });
        leads(&mut bed);
        assert!(!bed.replica.is_serving(), "a yield of d{from} to {n} says nothing of this one");
        bed.pass(700);
        assert!(bed.replica.is_serving(), "the lease has run out");
    }
}

/// Half of all changes of the primary stood still for a lease: those where the new primary's word came before the map's.
#[test]
fn an_old_primary_yields_whoever_brings_the_news() {
    let new = || config(2, &[2, 1, 3]);
    let yields = |bed: &Bed, to| {
        bed.sent(to).iter().filter(|m| matches!(m, PeerMessage::Yield { generation: g } if *g == generation(2))).count()
    };
    let mut bed = Bed::serving(&[2, 3]);
    bed.out.clear();
    bed.peer(2, PeerMessage::NewConfig { config: new() });
    assert_eq!(yields(&bed, 2), 1, "its successor");
    bed.answer_disk();
    bed.feed(Input::Config(new()));
    assert_eq!((yields(&bed, 2), yields(&bed, 3)), (1, 0), "once");

    let mut bed = Bed::serving(&[2, 3]);
    bed.out.clear();
    bed.peer(3, PeerMessage::Rejected { generation: generation(2), gap: false });
    assert!(!bed.replica.is_serving() && yields(&bed, 2) == 0, "a member knows that another leads, not who");
    bed.feed(Input::Config(new()));
    assert_eq!(yields(&bed, 2), 1, "the map says who");

    let mut bed = Bed::serving(&[2, 3]);
    bed.out.clear();
    let as_learner = PgConfig { learners: vec![learner(1)], ..config(2, &[2, 3]) };
    bed.peer(2, PeerMessage::Session(SessionMessage::Open { config: as_learner }));
    assert_eq!(yields(&bed, 2), 1, "who teaches it leads");

    // It never served: the primary before it may still believe in its lease.
    let mut bed = heir();
    bed.feed(Input::Config(config(2, &[1, 2, 3])));
    bed.out.clear();
    bed.peer(3, PeerMessage::NewConfig { config: config(3, &[3, 1, 2]) });
    assert!(!bed.sent(3).iter().any(|m| matches!(m, PeerMessage::Yield { .. })));
}

/// A drain's end brings two configurations at once; the word that was said of the first holds for the second.
#[test]
fn a_yield_counts_for_the_very_next_configuration_too() {
    let leads_three = |bed: &mut Bed, members: &[u32], n: u64| {
        bed.feed(Input::Config(config(n, members)));
        bed.answer_disk();
        members[1..].iter().for_each(|d| bed.accepts(*d, n));
        bed.answer_disk();
    };
    let to_two = || PeerMessage::Yield { generation: generation(2) };

    let mut bed = heir();
    bed.feed(Input::Config(config(2, &[1, 2, 3])));
    bed.peer(2, to_two());
    leads_three(&mut bed, &[1, 3], 3);
    assert!(bed.replica.is_serving(), "it had yielded before the second came");

    let mut bed = heir();
    bed.feed(Input::Config(config(2, &[1, 2, 3])));
    leads_three(&mut bed, &[1, 3], 3);
    assert!(!bed.replica.is_serving(), "its lease may still hold");
    bed.peer(2, to_two());
    assert!(bed.replica.is_serving(), "it yields after the second came");

    let mut bed = heir();
    bed.peer(2, to_two());
    leads_three(&mut bed, &[1, 3], 3);
    assert!(bed.replica.is_serving(), "the first was never heard of");

    // With a gap between, another one may have led meanwhile.
    let mut bed = heir();
    bed.peer(2, to_two());
    leads_three(&mut bed, &[1, 3], 4);
    assert!(!bed.replica.is_serving());
    let mut bed = heir();
    bed.feed(Input::Config(config(2, &[1, 2, 3])));
    bed.peer(2, to_two());
    leads_three(&mut bed, &[1, 3], 4);
    assert!(!bed.replica.is_serving());
    bed.peer(2, to_two());
    assert!(!bed.replica.is_serving(), "said of the time before the gap");
    bed.pass(700);
    assert!(bed.replica.is_serving(), "the lease has run out");
}
