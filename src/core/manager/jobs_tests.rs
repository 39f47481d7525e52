use std::time::Duration;

use super::*;
use crate::core::cluster::command::{Change, PoolChange};
use crate::core::cluster::job::JOBS_MAX;
use crate::core::cluster::state::ClusterState;
use crate::core::cluster::{Learner, NodeAdminState};
use crate::core::ids::{BootId, ClusterId, DiskId, NodeId, PgId, PoolId};
use crate::core::manager::runtime::{ConnId, Limits};
use crate::core::manager::tests::pool_spec;
use crate::core::manager::{Proposed, RegisteredDisk, Registration, Report, ReportedDisk};
use crate::core::units::Instant;

const PGS: u32 = 8;

fn replica(n: u32) -> Replica {
    Replica { disk: DiskId(n), boot: BootId(u64::from(n)) }
}

/// Four nodes of one disk each; a pool of eight PGs of three on the first three, which is all there is to even out.
struct Bed {
    m: Manager,
    ms: u64,
    silent: Vec<u32>,
    nodes: u32,
    proposals: u64,
}

impl Bed {
    fn new() -> Bed {
        let m = Manager::new(ClusterState::empty(), Instant(1 << 40), Limits::default());
        let mut bed = Bed { m, ms: 0, silent: Vec::new(), nodes: 0, proposals: 0 };
        bed.m.apply("test", Command::Init { cluster: ClusterId([1; 16]), feature_level: 1 }).unwrap();
        let mut settings = bed.m.state.map().settings.clone();
        (settings.debounce_seconds, settings.grace_seconds) = (0.1, 5.0);
        bed.m.apply("test", Command::SetSettings { settings: Box::new(settings) }).unwrap();
        (0..3).for_each(|_| bed.add_node());
        let spec = pool_spec(PGS);
        let members = (0..PGS).map(|pg| (0..3).map(|i| replica(1 + (pg + i) % 3)).collect()).collect();
        bed.m.apply("test", Command::CreatePool { spec, members }).unwrap();
        bed.register_all();
        bed.turns(60);
        assert!(bed.m.state.map().jobs.is_empty(), "nothing had to move");
        let told = bed.m.take_told();
        assert!(told.iter().all(|t| t.kind != "job-ended"), "{told:?}");
        bed.add_node();
        bed.register(4);
        bed.m.planning.touch_for(bed.m.now, "n4", "node n4 added disk d4".into());
        bed
    }

    fn add_node(&mut self) {
        self.nodes += 1;
        let (name, addr) = (format!("n{}", self.nodes), "127.0.0.1:1".parse().unwrap());
        self.m.apply("test", Command::AddNode { name, addr, zone: String::new(), rack: String::new() }).unwrap();
        let (node, class) = (NodeId(self.nodes), String::new());
        self.m.apply("test", Command::AllocDisk { node, class, capacity_bytes: 1 << 40 }).unwrap();
    }

    fn register(&mut self, n: u32) {
        let disk = RegisteredDisk {
            disk: DiskId(n),
            boot: BootId(u64::from(n)),
            capacity_bytes: 1 << 40,
            ..RegisteredDisk::default()
        };
        let registration = Registration { node: NodeId(n), process: 1, disks: vec![disk], ..Registration::default() };
        self.m.handle_registered(ConnId(u64::from(n)), &format!("n{n}"), &registration);
    }

    fn register_all(&mut self) {
        (1..=self.nodes).for_each(|n| self.register(n));
    }

    /// One turn of 100 ms: all that aren't silent are heard and serve what they lead, and what is to be planned is.
    fn turn(&mut self) {
        self.ms += 100;
        let now = Instant((1 << 40) + self.ms * 1_000_000);
        self.m.begin(now);
        self.m.unix_ms = 1_000_000 + self.ms;
        for n in (1..=self.nodes).filter(|n| !self.silent.contains(n)) {
            self.m.runtime.handle_node_heartbeat(NodeId(n), ConnId(u64::from(n)), &[], now);
            let map = self.m.state.map();
            let led = map.pgs.values().filter(|c| c.members[0].disk.0 == n).map(|c| c.pg);
            let disk = ReportedDisk { disk: DiskId(n), capacity_bytes: 1 << 40, ..ReportedDisk::default() };
            let serving: std::collections::BTreeSet<PgId> = led.collect();
            let pg_bytes = serving.iter().map(|pg| (*pg, 100)).collect();
            let report = Report { disks: vec![disk], serving, pg_bytes, ..Report::default() };
            self.m.handle_report(NodeId(n), report);
        }
        self.m.look();
        self.m.judge();
        self.m.decide(Duration::ZERO);
        if let Some(input) = self.m.take_plan_input() {
            let plan = place::plan(&input);
            place::check(&input, &plan).unwrap();
            self.m.handle_planned(plan);
        }
        self.m.state.check().unwrap();
    }

    fn turns(&mut self, n: usize) {
        (0..n).for_each(|_| self.turn());
    }

    /// Every learner of now is complete.
    fn complete(&mut self) {
        let map = self.m.state.map().clone();
        for config in map.pgs.values() {
            for learner in config.learners.iter().filter(|l| !l.paused) {
                self.proposals += 1;
                let change = Some(Change::PromoteLearner(learner.replica));
                let (id, pg, reason) = (self.proposals, config.pg, String::new());
                let base = self.m.state.map().pgs[&pg].generation;
                let from = NodeId(config.members[0].disk.0);
                self.m.handle_proposal(from, Proposed { id, pg, base, change, reason }).0.unwrap();
            }
        }
    }

    /// The coordinator's process ends and starts again with what was stored.
    fn restart(&mut self) {
        let (map, next) = (self.m.state.map().clone(), self.m.state.next_ids());
        let state = ClusterState::restore(map, next, Default::default());
        self.m = Manager::new(state, self.m.now, Limits::default());
        self.register_all();
        self.turns(60);
    }

    fn learners(&self) -> Vec<(u32, bool)> {
        let all = self.m.state.map().pgs.values().flat_map(|c| c.learners.iter());
        all.map(|l| (l.replica.disk.0, l.paused)).collect()
    }

    fn job(&self, id: u64) -> Job {
        self.m.state.map().jobs[&id].clone()
    }

    fn finish(&mut self) {
        for _ in 0..20 {
            self.turns(2);
            self.complete();
        }
        self.turns(2);
        assert!(self.learners().is_empty());
    }

    fn on(&self, n: u32) -> usize {
        self.m.state.map().pgs.values().filter(|c| c.members.iter().any(|m| m.disk.0 == n)).count()
    }
}

#[test]
fn a_join_is_one_job_to_its_end() {
    let mut bed = Bed::new();
    bed.turns(4);
    let job = bed.job(1);
    assert_eq!((job.state, job.moves_total, job.moves_done, job.bytes_total), (JobState::Running, 6, 0, 600));
    assert_eq!((job.reason.as_str(), job.actor.as_str()), ("node n4 added disk d4", "n4"));
    assert_eq!(bed.learners().len(), 2, "two slots of the one target");
    bed.finish();
    let job = bed.job(1);
    assert_eq!((job.state, job.moves_done, job.moves_failed, job.bytes_done), (JobState::Done, 6, 0, 600));
    assert!(job.ended_unix_ms > job.started_unix_ms && bed.on(4) == 6);
    // What needs no move is no job.
    bed.m.planning.touch(bed.m.now);
    bed.turns(10);
    bed.restart();
    assert_eq!(bed.m.state.map().jobs.len(), 1);
}

#[test]
fn a_paused_job_copies_nothing_and_a_restart_changes_nothing_about_it() {
    let mut bed = Bed::new();
    bed.turns(4);
    bed.m.pause_job(1, true, "operator").unwrap();
    let held = bed.learners();
    assert!(held.len() == 2 && held.iter().all(|(_, paused)| *paused), "{held:?}");
    bed.turns(20);
    assert_eq!(bed.learners(), held, "nothing starts");
    bed.restart();
    assert_eq!(bed.m.state.map().jobs.len(), 1, "the same topology is the same job");
    assert_eq!((bed.job(1).state, bed.job(1).moves_total), (JobState::Paused, 6));
    assert_eq!(bed.learners(), held, "still held back");
    bed.m.pause_job(1, false, "operator").unwrap();
    assert!(bed.learners().iter().all(|(_, paused)| !paused));
    bed.finish();
    assert_eq!((bed.job(1).state, bed.job(1).moves_done, bed.on(4)), (JobState::Done, 6, 6));
    let over = bed.m.pause_job(1, true, "operator").unwrap_err();
    assert_eq!(over, Refusal::JobOver { id: 1, state: JobState::Done });
    assert_eq!(bed.m.cancel_job(9, "operator").unwrap_err(), Refusal::JobUnknown(9));
}

#[test]
fn a_cancelled_rebalance_stays_so_until_it_is_asked_for_or_the_topology_changes() {
    let mut bed = Bed::new();
    bed.turns(4);
    bed.complete();
    bed.turns(1);
    let done = bed.on(4);
    assert!(done > 0 && !bed.learners().is_empty());
    assert_eq!(bed.m.cancel_job(1, "operator").unwrap(), (6 - done, 0));
    assert!(bed.learners().is_empty(), "what was half-made is dropped");
    let job = bed.job(1);
    assert_eq!((job.state, job.moves_cancelled, job.moves_left()), (JobState::Cancelled, 6 - done as u64, 0));
    bed.m.planning.touch(bed.m.now);
    bed.turns(20);
    bed.restart();
    bed.turns(40);
    assert_eq!((bed.m.state.map().jobs.len(), bed.on(4)), (1, done), "nothing of it is planned again");
    assert!(bed.learners().is_empty() && bed.m.planning.misplaced().is_empty());

    bed.m.pause_job(1, false, "operator").unwrap();
    bed.finish();
    let again = bed.job(2);
    assert_eq!((again.state, again.moves_done, again.actor.as_str()), (JobState::Done, 6 - done as u64, "operator"));
    assert_eq!(bed.on(4), 6);
    let refused = bed.m.pause_job(1, false, "operator").unwrap_err();
    assert_eq!(refused, Refusal::JobOver { id: 1, state: JobState::Cancelled });

    // Another topology.
    let drain = |bed: &mut Bed, state| {
        bed.m.apply("operator", Command::SetNodeState { node: "n4".into(), state }).unwrap();
        bed.m.planning.touch_for(bed.m.now, "operator", "n4 was set".into());
        bed.turns(4);
    };
    drain(&mut bed, NodeAdminState::Draining);
    assert_eq!(bed.m.cancel_job(3, "operator").unwrap(), (6, 0));
    bed.turns(20);
    assert_eq!((bed.m.state.map().jobs.len(), bed.on(4)), (3, 6), "the drain waits too");
    drain(&mut bed, NodeAdminState::Active);
    drain(&mut bed, NodeAdminState::Draining);
    bed.finish();
    assert_eq!(bed.on(4), 0, "asked for by a change of the node's state");
}

#[test]
fn missing_copies_are_made_whatever_is_cancelled() {
    let mut bed = Bed::new();
    bed.turns(4);
    bed.silent = vec![3];
    bed.turns(80);
    let (id, job) = bed.m.state.map().jobs.last_key_value().map(|(id, j)| (*id, j.clone())).unwrap();
    assert!(id >= 2 && job.reason.contains("node n3 is lost"), "{job:?}");
    assert_eq!(bed.job(1).state, JobState::Superseded);
    let repairs = bed.m.planning.job.moves.iter().filter(|m| m.class.is_repair()).count();
    assert!(repairs > 0);
    match bed.m.cancel_job(id, "operator") {
        Err(Refusal::JobRepairs { moves, .. }) => assert_eq!(moves, repairs),
        Ok((_, left)) => {
            assert_eq!(left, repairs, "what restores copies goes on");
            let again = bed.m.cancel_job(id, "operator").unwrap_err();
            assert_eq!(again, Refusal::JobRepairs { id, moves: repairs });
        }
        Err(other) => panic!("{other}"),
    }
    assert!(bed.learners().iter().any(|(_, paused)| !paused), "repairs run");
    for _ in 0..20 {
        bed.turns(2);
        bed.complete();
    }
    let whole = bed.m.state.map().pgs.values().all(|c| c.members.len() == 3 && c.members.iter().all(|m| m.disk.0 != 3));
    assert!(whole, "every PG has three copies elsewhere");
}

#[test]
fn the_last_hundred_jobs_are_kept_in_order() {
    let mut bed = Bed::new();
    for id in 1..=JOBS_MAX as u64 + 5 {
        let job = Job { id, moves_total: 1, ..Job::default() };
        bed.m.apply("test", Command::PutJob(Box::new(job.clone()))).unwrap();
        bed.m.state.check().unwrap();
        let skipped = Command::PutJob(Box::new(Job { id: id + 2, ..job }));
        assert_eq!(bed.m.apply("test", skipped).unwrap_err(), Refusal::JobOutOfOrder { id: id + 2, last: id });
    }
    let jobs = &bed.m.state.map().jobs;
    assert_eq!((jobs.len(), *jobs.first_key_value().unwrap().0), (JOBS_MAX, 6));
    assert!(jobs.values().filter(|j| j.state.is_open()).count() == 1, "the last one");
    let old = jobs[&50].clone();
    assert_eq!(old.state, JobState::Superseded, "one move was left");
    let back = Command::PutJob(Box::new(Job { state: JobState::Running, ..old }));
    assert!(matches!(bed.m.apply("test", back).unwrap_err(), Refusal::JobOver { id: 50, .. }));
}

#[test]
fn the_topology_is_what_a_target_depends_on() {
    let mut bed = Bed::new();
    bed.turns(4);
    let name = |bed: &Bed| topology_of(&bed.m.plan_input());
    let before = name(&bed);
    bed.complete();
    bed.silent = vec![1];
    bed.turns(20);
    assert_eq!(name(&bed), before, "neither where copies are nor who answers for a moment");
    bed.silent.clear();
    bed.turns(10);
    bed.add_node();
    let joined = name(&bed);
    assert_ne!(joined, before);
    let fewer = PoolChange { pool: "p".into(), replicas: Some(2), ..PoolChange::default() };
    bed.m.apply("test", Command::SetPool(fewer)).unwrap();
    assert_ne!(name(&bed), joined);
    assert_eq!(bed.m.state.map().pools[&PoolId(1)].replicas, 2);
}

impl Manager {
    fn pause_resync_for_test(&mut self, paused: bool) {
        let mut settings = self.state.map().settings.clone();
        settings.resync.paused = paused;
        self.apply("test", Command::SetSettings { settings: Box::new(settings) }).unwrap();
    }
}

fn keep_copies(bed: &mut Bed, replicas: u32) {
    let change = PoolChange { pool: "p".into(), replicas: Some(replicas), ..PoolChange::default() };
    bed.m.apply("test", Command::SetPool(change)).unwrap();
    bed.m.planning.touch_for(bed.m.now, "operator (a token, from here)", "pool p was changed".into());
}

fn members(bed: &Bed) -> Vec<usize> {
    bed.m.state.map().pgs.values().map(|c| c.members.len()).collect()
}

/// Each PG's disks, the primary first.
fn rows(bed: &Bed) -> Vec<Vec<u32>> {
    bed.m.state.map().pgs.values().map(|c| c.members.iter().map(|m| m.disk.0).collect()).collect()
}

#[test]
fn fewer_copies_are_a_job_that_gives_the_surplus_up() {
    let mut bed = Bed::new();
    bed.turns(4);
    bed.finish();
    assert_eq!(members(&bed), [3; 8]);
    let before = rows(&bed);
    keep_copies(&mut bed, 2);
    bed.turn();
    assert_eq!(members(&bed), [3; 8], "not before there is a plan");
    bed.finish();
    assert_eq!(members(&bed), [2; 8]);
    assert!((1..=4).all(|n| bed.on(n) == 4), "they are even without a move");
    assert!(before.iter().zip(rows(&bed)).all(|(had, has)| has.iter().all(|d| had.contains(d))), "nothing was copied");
    let job = bed.job(2);
    assert_eq!((job.state, job.moves_total, job.moves_done, job.bytes_total), (JobState::Done, 8, 8, 0));
    assert_eq!(job.actor, "operator (a token, from here)");
    assert!(bed.m.planning.misplaced().is_empty());
    assert_eq!(bed.m.state.map().jobs.len(), 2);
}

/// Three copies are there, two are wanted, and resync is paused.
fn with_surplus_copies() -> Bed {
    let mut bed = Bed::new();
    bed.turns(4);
    bed.finish();
    keep_copies(&mut bed, 2);
    bed.m.pause_resync_for_test(true);
    bed.turns(5);
    bed
}

#[test]
fn a_surplus_copy_waits_for_the_others() {
    let mut bed = with_surplus_copies();
    assert_eq!(members(&bed), [3; 8], "resync is paused");
    assert_eq!(bed.m.planning.misplaced().len(), 8);
    // One node is away: its PGs keep what they have.
    bed.silent = vec![2];
    bed.turns(25);
    bed.m.pause_resync_for_test(false);
    bed.turns(10);
    let with: Vec<Vec<u32>> = rows(&bed).into_iter().filter(|row| row.contains(&2)).collect();
    assert!(with.iter().all(|row| row.len() == 3), "{with:?}");
    bed.silent.clear();
    bed.finish();
    assert_eq!(members(&bed), [2; 8]);
}

#[test]
fn a_surplus_copy_that_became_needed_stays() {
    let mut bed = with_surplus_copies();
    // A member leaves, by its primary's word, before the surplus one could.
    let removal = bed.m.planning.job.removals[0];
    let config = bed.m.state.map().pgs[&removal.pg].clone();
    let other = *config.members[1..].iter().find(|m| m.disk != removal.disk).unwrap();
    bed.silent = vec![other.disk.0];
    bed.turns(25);
    let (base, change) = (bed.m.state.map().pgs[&removal.pg].generation, Some(Change::RemoveMembers(vec![other])));
    let from = NodeId(bed.m.state.map().pgs[&removal.pg].members[0].disk.0);
    let proposed = Proposed { id: 77, pg: removal.pg, base, change, reason: String::new() };
    bed.m.handle_proposal(from, proposed).0.unwrap();
    bed.silent.clear();
    bed.turns(3);
    bed.m.pause_resync_for_test(false);
    bed.finish();
    assert_eq!(members(&bed), [2; 8], "none has fewer");
    assert!(bed.m.planning.job.is_empty() && !bed.m.planning.is_pending());
    assert!(bed.m.state.map().jobs.values().all(|j| !j.state.is_open()));
}

/// A move that was under way when the pool was changed ended first, with three copies left for good (simulation, seed 35603).
#[test]
fn a_surplus_copy_that_was_moved_is_given_up_where_it_is_now() {
    let mut bed = with_surplus_copies();
    let removal = bed.m.planning.job.removals[0];
    let config = bed.m.state.map().pgs[&removal.pg].clone();
    let to = (1..=4).find(|d| config.members.iter().all(|m| m.disk.0 != *d)).unwrap();
    let learner = Learner { replica: replica(to), replaces: Some(removal.disk), ..Learner::default() };
    bed.m.apply("test", Command::AddLearner { pg: removal.pg, learner }).unwrap();
    bed.complete();
    assert!(bed.on(to) > 0 && members(&bed) == [3; 8]);
    bed.m.pause_resync_for_test(false);
    bed.finish();
    assert_eq!(members(&bed), [2; 8]);
}

#[test]
fn a_cancelled_job_leaves_surplus_copies_where_they_are() {
    let mut bed = Bed::new();
    bed.turns(4);
    bed.finish();
    keep_copies(&mut bed, 2);
    bed.m.pause_resync_for_test(true);
    bed.turns(4);
    let (given_up, repairs) = bed.m.cancel_job(2, "operator").unwrap();
    assert_eq!((given_up, repairs), (8, 0));
    bed.m.pause_resync_for_test(false);
    bed.finish();
    assert_eq!(members(&bed), [3; 8]);
    bed.m.pause_job(2, false, "operator").unwrap();
    bed.finish();
    assert_eq!(members(&bed), [2; 8], "asked for again");
}

/// What the simulator found: a member that restarted while its disk was drained came back after its successor had taken
/// another member's place, and stayed for good.
#[test]
fn a_copy_that_comes_back_to_a_drained_disk_leaves_it_again() {
    let mut bed = Bed::new();
    bed.m.apply("operator", Command::SetNodeState { node: "n4".into(), state: NodeAdminState::Draining }).unwrap();
    bed.turns(20);
    assert!(bed.learners().is_empty() && bed.on(4) == 0);
    let config = bed.m.state.map().pgs.values().next().unwrap().clone();
    let learner = Learner { replica: replica(4), replaces: Some(config.members[2].disk), ..Learner::default() };
    bed.m.apply("test", Command::AddLearner { pg: config.pg, learner }).unwrap();
    bed.complete();
    assert_eq!(bed.on(4), 1);
    bed.finish();
    assert_eq!(bed.on(4), 0);
}
