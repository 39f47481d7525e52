//! Changes of one PG's configuration.

use super::*;

#[test]
fn only_the_serving_primary_proposes_and_only_for_the_present() {
    let mut bed = Bed::new();
    let drop3 = || Change::RemoveMembers(vec![replica(3, 1)]);
    bed.dies(replica(3, 1));
    assert!(matches!(bed.propose(0, 1, drop3()), Err(Refusal::ProposalZero)));
    assert!(matches!(bed.propose(1, 2, drop3()), Err(Refusal::NotPrimary { .. })));
    let old = bed.config().generation;
    bed.propose(1, 1, drop3()).unwrap();
    assert_eq!(bed.config().generation, old.next());
    let stale = |id| Proposal { id, pg: PG, base: old, from: NodeId(1), change: drop3(), reason: String::new() };
    assert!(matches!(bed.try_apply(Command::Propose(stale(2))), Err(Refusal::GenerationMoved { .. })));
    let again = bed.try_apply(Command::Propose(stale(1))).unwrap();
    assert!(again.changed.is_empty(), "the same proposal reads its outcome");
    let nowhere = Proposal { pg: PgId { pool: PoolId(9), index: 0 }, ..stale(3) };
    assert!(matches!(bed.try_apply(Command::Propose(nowhere)), Err(Refusal::Unknown { .. })));
}

/// A pool keeps fewer copies: only a copy beyond the count goes, and only while all others are there.
#[test]
fn a_surplus_copy_goes_only_while_the_others_are_there() {
    let mut bed = Bed::new();
    let remove = |bed: &Bed, disk| {
        let base = bed.config().generation;
        Command::RemoveSurplus { pg: PG, base, replica: replica(disk, 1) }
    };
    let why = |refusal: Refusal| match refusal {
        Refusal::NotSurplus { why, .. } => why,
        other => panic!("{other}"),
    };
    let command = remove(&bed, 3);
    assert_eq!(why(bed.no(command)), "its pool asks for it");
    bed.ok(Command::SetPool(PoolChange { pool: "p".into(), replicas: Some(2), ..PoolChange::default() }));
    let command = remove(&bed, 1);
    assert!(why(bed.no(command)).contains("primary"));
    let command = remove(&bed, 4);
    assert!(matches!(bed.no(command), Refusal::NotMember { .. }));
    let stale = remove(&bed, 3);
    bed.dies(replica(2, 1));
    let command = remove(&bed, 3);
    assert!(why(bed.no(command)).contains("not there"));
    bed.world.live.borrow_mut().insert(replica(2, 1));
    bed.world.damaged.borrow_mut().insert(replica(2, 1));
    let command = remove(&bed, 3);
    assert!(why(bed.no(command)).contains("not whole"), "R21");
    bed.world.damaged.borrow_mut().clear();
    bed.learner(replica(4, 1), Some(3)).unwrap();
    let command = remove(&bed, 3);
    assert!(why(bed.no(command)).contains("on its way"));
    bed.ok(Command::DropLearner { pg: PG, replica: replica(4, 1) });
    let before = bed.config();
    let command = remove(&bed, 3);
    bed.ok(command);
    assert_eq!(bed.config().members, [replica(1, 1), replica(2, 1)]);
    assert_eq!(bed.config().generation, before.generation.next());
    assert!(matches!(bed.no(stale), Refusal::GenerationMoved { .. }));
    let command = remove(&bed, 2);
    assert_eq!(why(bed.no(command)), "its pool asks for it");
}

/// R5, R8: who may be removed when.
#[test]
fn removals_keep_the_minimum_and_hear_both_sides() {
    let mut bed = Bed::new();
    let remove = |disks: &[u32]| Change::RemoveMembers(disks.iter().map(|d| replica(*d, 1)).collect());
    assert!(matches!(bed.propose(1, 1, remove(&[3])), Err(Refusal::OthersReachIt { .. })));
    assert!(matches!(bed.propose(1, 1, remove(&[4])), Err(Refusal::NotMember { .. })));
    assert!(matches!(bed.propose(1, 1, remove(&[2, 3])), Err(Refusal::BelowMinimum { rest: 1, .. })));
    bed.world.stands.borrow_mut().insert(replica(3, 1));
    bed.propose(2, 1, remove(&[3])).unwrap();
    bed.dies(replica(2, 1));
    assert!(matches!(bed.propose(3, 1, remove(&[2])), Err(Refusal::BelowMinimum { rest: 1, .. })), "dead or not");
    // A complete learner takes the dead one's place in one step.
    bed.learner(replica(4, 1), Some(2)).unwrap();
    let before = bed.config().generation;
    bed.propose(4, 1, Change::PromoteLearner(replica(4, 1))).unwrap();
    assert_eq!(bed.config().members, [replica(1, 1), replica(4, 1)]);
    assert_eq!(bed.config().generation, before.next());
    // A primary whose own disk fails may leave.
    bed.learner(replica(3, 1), None).unwrap();
    bed.propose(5, 1, Change::PromoteLearner(replica(3, 1))).unwrap();
    bed.propose(6, 1, remove(&[1])).unwrap();
    assert_eq!(bed.config().primary(), Some(replica(4, 1)));
}

#[test]
fn learners_come_and_go_without_a_generation() {
    let mut bed = Bed::new();
    let before = bed.config().generation;
    assert!(matches!(bed.learner(replica(2, 1), None), Err(Refusal::AlreadyThere { .. })));
    assert!(
        matches!(bed.learner(replica(2, 7), None), Err(Refusal::AlreadyThere { .. })),
        "a member's disk, elsewhere"
    );
    assert!(matches!(bed.learner(replica(4, 9), None), Err(Refusal::NotLive { .. })));
    assert!(matches!(bed.learner(replica(4, 1), Some(9)), Err(Refusal::NotMember { .. })));
    bed.learner(replica(4, 1), Some(3)).unwrap();
    assert!(matches!(bed.learner(replica(4, 1), None), Err(Refusal::AlreadyThere { .. })));
    assert_eq!(bed.config().generation, before);
    let promote = |r| Change::PromoteLearner(r);
    assert!(matches!(bed.propose(1, 1, promote(replica(4, 2))), Err(Refusal::NotLearner { .. })), "at another boot");
    bed.dies(replica(4, 1));
    assert!(matches!(bed.propose(1, 1, promote(replica(4, 1))), Err(Refusal::NotLive { .. })));
    bed.propose(2, 1, Change::DropLearner(replica(4, 1))).unwrap();
    assert!(matches!(bed.propose(3, 1, Change::DropLearner(replica(4, 1))), Err(Refusal::NotLearner { .. })));
    assert_eq!(bed.config().generation, before);
    bed.comes(replica(4, 1));
    bed.learner(replica(4, 1), None).unwrap();
    assert!(matches!(bed.propose(4, 1, promote(replica(4, 1))), Err(Refusal::NotNeeded { .. })), "three live ones");
    let drop = Command::DropLearner { pg: PG, replica: replica(4, 1) };
    bed.ok(drop.clone());
    assert!(matches!(bed.no(drop), Refusal::NotLearner { .. }));
    // A returning member replaces its own stale entry.
    bed.dies(replica(3, 1));
    bed.comes(replica(3, 2));
    bed.learner(replica(3, 2), Some(3)).unwrap();
    bed.propose(5, 1, promote(replica(3, 2))).unwrap();
    assert_eq!(bed.config().members, [replica(1, 1), replica(2, 1), replica(3, 2)]);
}

#[test]
fn the_coordinator_promotes_members_only() {
    let mut bed = Bed::new();
    let base = bed.config().generation;
    let promote =
        |members: &[u32]| Command::Promote { pg: PG, base, members: members.iter().map(|d| replica(*d, 1)).collect() };
    assert!(matches!(bed.no(promote(&[4, 2, 3])), Refusal::NotMember { .. }));
    assert!(matches!(bed.no(promote(&[])), Refusal::BelowMinimum { .. }));
    assert!(matches!(bed.no(promote(&[2, 3])), Refusal::MemberAlive { .. }), "a live member isn't left out");
    assert!(matches!(bed.no(promote(&[2, 2, 1, 3])), Refusal::BelowMinimum { .. }), "nobody twice");
    assert!(bed.try_apply(promote(&[1, 2, 3])).unwrap().changed.is_empty(), "as it is");
    bed.dies(replica(1, 1));
    assert!(matches!(bed.no(promote(&[1, 2, 3])), Refusal::NotLive { .. }));
    bed.dies(replica(3, 1));
    assert!(matches!(bed.no(promote(&[2])), Refusal::BelowMinimum { rest: 1, .. }), "R5");
    bed.ok(promote(&[2, 3]));
    assert_eq!((bed.config().members.len(), bed.config().generation), (2, base.next()));
    assert!(matches!(bed.no(promote(&[3, 2])), Refusal::GenerationMoved { .. }));
}

/// R2: the table of who may be taken as the truth.
#[test]
fn all_restarted_takes_one_member_at_its_new_boot() {
    let mut bed = Bed::new();
    let base = bed.config().generation;
    let learner =
        |d| Learner { replica: replica(d, 2), replaces: None, class: ResyncClass::RepairCritical, paused: false };
    let set = |truth, learners: Vec<Learner>| Command::SetMembers { pg: PG, base, truth, learners };
    for d in 1..=3 {
        bed.comes(replica(d, 2));
    }
    assert!(matches!(bed.no(set(replica(1, 2), vec![])), Refusal::MemberAlive { .. }), "recorded boots live");
    for d in 1..=2 {
        bed.dies(replica(d, 1));
    }
    assert!(matches!(bed.no(set(replica(1, 2), vec![])), Refusal::MemberAlive { .. }), "one recorded boot lives");
    bed.world.damaged.borrow_mut().insert(replica(3, 1));
    assert!(matches!(bed.no(set(replica(4, 1), vec![])), Refusal::NotMember { .. }));
    assert!(matches!(bed.no(set(replica(1, 9), vec![])), Refusal::NotLive { .. }));
    let mut gone = learner(2);
    gone.replica.boot = BootId(9);
    assert!(matches!(bed.no(set(replica(1, 2), vec![gone])), Refusal::NotLive { .. }));
    let before = bed.config();
    bed.ok(set(replica(2, 2), vec![learner(1), learner(3)]));
    let now = bed.config();
    assert_eq!((now.generation, now.durability_epoch), (base.next(), before.durability_epoch + 1));
    assert_eq!((now.members.len(), now.learners.len()), (1, 2));
    assert!(matches!(bed.no(set(replica(1, 2), vec![])), Refusal::GenerationMoved { .. }));
}

fn force(bed: &Bed, chosen: Replica, learners: &[Replica], lossless: bool) -> Command {
    let learner =
        |r: &Replica| Learner { replica: *r, replaces: None, class: ResyncClass::RepairCritical, paused: false };
    Command::ForcePromote(crate::core::cluster::command::ForcePromote {
        pg: PG,
        base: bed.config().generation,
        chosen,
        learners: learners.iter().map(learner).collect(),
        lossless,
        loss: "something may be lost".into(),
    })
}

/// R5: the only way below min_replicas, and only for a PG that too few members hold.
#[test]
fn an_operator_forces_a_copy_of_an_unavailable_pg_to_lead() {
    let mut bed = Bed::new();
    let before = bed.config();
    let one = replica(1, 1);
    assert!(matches!(bed.no(force(&bed, one, &[], true)), Refusal::StillServed { live: 3, .. }));
    bed.dies(replica(3, 1));
    assert!(matches!(bed.no(force(&bed, one, &[], true)), Refusal::StillServed { live: 2, .. }));
    bed.dies(replica(2, 1));
    assert!(matches!(bed.no(force(&bed, replica(4, 1), &[], false)), Refusal::MemberAlive { .. }), "one has it all");
    assert!(matches!(bed.no(force(&bed, replica(2, 1), &[], false)), Refusal::MemberAlive { .. }));
    assert!(matches!(bed.no(force(&bed, one, &[replica(2, 1)], true)), Refusal::NotLive { .. }));
    assert!(matches!(bed.no(force(&bed, one, &[one], true)), Refusal::AlreadyThere { .. }));

    let stale = force(&bed, one, &[], true);
    bed.ok(force(&bed, one, &[replica(4, 1)], true));
    assert!(matches!(bed.no(stale), Refusal::GenerationMoved { .. }));
    let now = bed.config();
    assert!(now.forced && now.is_forced_on(one) && now.learners.len() == 1);
    assert_eq!((now.generation, now.durability_epoch), (before.generation.next(), before.durability_epoch));
    assert!(matches!(bed.no(force(&bed, one, &[], true)), Refusal::ForcedAlready { .. }));

    // A second copy ends the exception; from then on the rule holds as ever.
    bed.propose(7, 1, Change::PromoteLearner(replica(4, 1))).unwrap();
    let now = bed.config();
    assert_eq!((now.members.clone(), now.forced), (vec![one, replica(4, 1)], false));
    bed.dies(replica(4, 1));
    let refused = bed.propose(8, 1, Change::RemoveMembers(vec![replica(4, 1)])).unwrap_err();
    assert!(matches!(refused, Refusal::BelowMinimum { .. }));
    bed.ok(force(&bed, one, &[], true));
    assert_eq!(bed.config().members, [one], "and the operator may decide again");
}

#[test]
fn what_may_be_lost_raises_the_durability_epoch() {
    let mut bed = Bed::new();
    for disk in 1..=3 {
        bed.dies(replica(disk, 1));
    }
    let before = bed.config();
    // A disk that was no member, or one that restarted: acked writes may be missing (R13).
    bed.ok(force(&bed, replica(4, 1), &[], true));
    assert_eq!(bed.config().durability_epoch, before.durability_epoch + 1);
    bed.dies(replica(4, 1));
    bed.comes(replica(4, 2));
    bed.ok(Command::SetMembers { pg: PG, base: bed.config().generation, truth: replica(4, 2), learners: vec![] });
    assert!(bed.config().is_forced_on(replica(4, 2)), "the decision survives a restart of its disk (R2)");
    let mut bed = Bed::new();
    bed.dies(replica(2, 1));
    bed.dies(replica(3, 1));
    bed.ok(force(&bed, replica(1, 1), &[], false));
    assert_eq!(bed.config().durability_epoch, 2, "a member that lost its table");
}
