use super::*;
use crate::core::cluster::{Disk, DiskAdminState, Node, NodeAdminState, PgConfig, Replica, Stripe, Volume};
use crate::core::ids::{BootId, ChunkId, Generation, PoolId};

const V: VolumeId = VolumeId(7);

fn pg(index: u32) -> PgId {
    PgId { pool: PoolId(1), index }
}

/// Two PGs; disk 1 of node 1 leads the first, disk 2 of node 2 the second.
fn map(leaders: [u32; 2]) -> ClusterMap {
    let mut map = ClusterMap { epoch: 1, version: 1, ..ClusterMap::default() };
    for n in 1..=3 {
        let node = Node {
            id: NodeId(n),
            name: format!("n{n}"),
            addr: "127.0.0.1:1".parse().unwrap(),
            admin_url: String::new(),
            zone: String::new(),
            rack: String::new(),
            release: String::new(),
            admin_state: NodeAdminState::Active,
        };
        map.nodes.insert(node.id, node);
        let (class, admin_state) = (String::new(), DiskAdminState::Active);
        map.disks.insert(DiskId(n), Disk { id: DiskId(n), node: NodeId(n), class, capacity_bytes: 1, admin_state });
    }
    for (index, leader) in leaders.into_iter().enumerate() {
        let config = PgConfig {
            pg: pg(index as u32),
            generation: Generation { epoch: 1, n: 1 },
            members: vec![Replica { disk: DiskId(leader), boot: BootId(1) }],
            durability_epoch: 1,
            learners: Vec::new(),
            last_proposal: 0,
            forced: false,
            members_min: 0,
        };
        map.pgs.insert(config.pg, config);
    }
    let stripes = vec![Stripe { first_chunk: 0, pgs: vec![0, 1] }];
    let volume = Volume {
        id: V,
        name: "v".into(),
        pool: PoolId(1),
        size_bytes: 1 << 30,
        stripes,
        incarnation: 1,
        attached_to: "g".into(),
        durability: 0,
        priority: 0,
        deleting: false,
        qos: Default::default(),
    };
    map.volumes.insert(V, volume);
    map
}

struct Bed {
    router: Router,
    sent: VecDeque<(PgId, ClientRequest)>,
    answers: Vec<(Token, ClientReply)>,
    told: bool,
}

fn done(durability_epoch: u64) -> ClientReply {
    ClientReply::Done { durability_epoch }
}

fn write(chunk: u32, byte: u8) -> ClientOp {
    let chunk = ChunkId { volume: V, index: chunk };
    ClientOp::Write { chunk, offset: 0, leaves: Vec::new(), data: vec![byte; 512].into(), fua: false }
}

impl Bed {
    /// Both links are up and both PGs are let in at epoch 1.
    fn open() -> Bed {
        let mut bed = Bed { router: Router::new(V, 1), sent: VecDeque::new(), answers: Vec::new(), told: false };
        bed.router.handle_map(&map([1, 2]));
        bed.router.handle_link_up(NodeId(1));
        bed.router.handle_link_up(NodeId(2));
        bed.router.flush(1);
        bed.drain();
        bed.let_in(pg(0), 1);
        bed.let_in(pg(1), 1);
        bed.reply(pg(0), done(1));
        bed.reply(pg(1), done(1));
        assert_eq!(bed.answers, [(1, done(0))]);
        bed.answers.clear();
        bed
    }

    fn drain(&mut self) {
        for action in self.router.take_actions() {
            match action {
                Action::Send { pg, request, .. } => self.sent.push_back((pg, request)),
                Action::Answer { token, reply } => self.answers.push((token, reply)),
                Action::LossTold => self.told = true,
                Action::Dial(_) | Action::Replaying { .. } | Action::Fenced => {}
            }
        }
    }

    /// The oldest request that is on its way to the PG.
    fn next(&mut self, pg: PgId) -> ClientRequest {
        self.drain();
        let at = self.sent.iter().position(|(p, _)| *p == pg).expect("a request is on its way");
        self.sent.remove(at).unwrap().1
    }

    fn let_in(&mut self, pg: PgId, epoch: u64) {
        let open = self.next(pg);
        assert!(matches!(open.op, ClientOp::Open), "{:?} comes before Open", open.op);
        self.router.handle_reply(open.id, done(epoch));
        self.drain();
    }

    fn reply(&mut self, pg: PgId, reply: ClientReply) -> ClientOp {
        let request = self.next(pg);
        self.router.handle_reply(request.id, reply);
        self.drain();
        request.op
    }

    fn nothing_to(&mut self, pg: PgId) -> bool {
        self.drain();
        self.sent.iter().all(|(p, _)| *p != pg)
    }

    fn restart(&mut self, node: u32) {
        let connection = self.router.links[&NodeId(node)];
        self.router.handle_link_down(NodeId(node), connection);
        self.sent.retain(|(p, _)| self.router.routes[p].node != NodeId(node));
        self.router.handle_link_up(NodeId(node));
        self.drain();
    }
}

#[test]
fn a_write_that_is_acked_behind_a_flush_is_covered_by_the_next() {
    let mut bed = Bed::open();
    bed.router.submit(2, pg(0), write(0, 1));
    bed.router.submit(3, pg(0), write(2, 1));
    bed.reply(pg(0), done(1));
    bed.router.flush(4);
    let late = bed.next(pg(0));
    bed.reply(pg(0), done(1));
    bed.router.handle_reply(late.id, done(1));
    bed.router.flush(5);
    bed.drain();
    assert_eq!(bed.answers, [(2, done(1)), (4, done(0)), (3, done(1))], "the second FLUSH asks the PG again (R12)");
    assert!(matches!(bed.reply(pg(0), done(1)), ClientOp::Flush));
    assert_eq!(bed.answers.last(), Some(&(5, done(0))));
    bed.router.flush(6);
    bed.drain();
    assert_eq!(bed.answers.last(), Some(&(6, done(0))), "nothing was written since: nobody is asked");
}

#[test]
fn of_two_flushes_at_once_both_wait() {
    let mut bed = Bed::open();
    bed.router.submit(2, pg(1), write(1, 1));
    bed.reply(pg(1), done(1));
    bed.router.flush(3);
    bed.router.flush(4);
    bed.drain();
    assert_eq!(bed.answers, [(2, done(1))], "neither is done before the PG has answered it");
    bed.reply(pg(1), done(1));
    bed.reply(pg(1), done(1));
    assert_eq!(bed.answers[1..], [(3, done(0)), (4, done(0))]);
}

#[test]
fn a_new_epoch_is_answered_by_a_replay_of_the_newest_values_before_all_else() {
    let mut bed = Bed::open();
    bed.router.submit(2, pg(0), write(0, 1));
    bed.reply(pg(0), done(1));
    bed.router.submit(3, pg(0), write(0, 2));
    bed.reply(pg(0), done(1));
    bed.router.submit(4, pg(0), write(0, 3));
    bed.drain();
    bed.restart(1);
    bed.let_in(pg(0), 2);
    let first = bed.next(pg(0));
    assert_eq!(format!("{:?}", first.op), format!("{:?}", write(0, 2)), "an older value may never come over it");
    // The link breaks before the answer: again.
    bed.restart(1);
    bed.let_in(pg(0), 2);
    assert_eq!(format!("{:?}", bed.reply(pg(0), done(2))), format!("{:?}", write(0, 2)));
    assert_eq!(bed.answers.len(), 2, "a replay answers nobody");
    assert_eq!(format!("{:?}", bed.reply(pg(0), done(2))), format!("{:?}", write(0, 3)), "then what was under way");
    assert_eq!(bed.answers.last(), Some(&(4, done(2))));
}

#[test]
fn a_refused_replay_begins_anew_and_holds_up_flushes() {
    let mut bed = Bed::open();
    bed.router.submit(2, pg(0), write(0, 1));
    bed.reply(pg(0), done(1));
    bed.restart(1);
    bed.router.flush(3);
    bed.let_in(pg(0), 2);
    bed.reply(pg(0), ClientReply::NotPrimary);
    bed.router.handle_tick();
    bed.let_in(pg(0), 2);
    assert!(matches!(bed.reply(pg(0), done(2)), ClientOp::Write { .. }), "the replay comes before the FLUSH");
    assert!(matches!(bed.reply(pg(0), done(2)), ClientOp::Flush));
    assert_eq!(bed.answers.last(), Some(&(3, done(0))));
}

#[test]
fn a_flush_answered_under_another_epoch_does_not_count() {
    let mut bed = Bed::open();
    bed.router.submit(2, pg(0), write(0, 1));
    bed.reply(pg(0), done(1));
    bed.router.flush(3);
    bed.reply(pg(0), done(2));
    assert_eq!(bed.answers.len(), 1, "its writes may be lost: replay first");
    bed.let_in(pg(0), 2);
    assert!(matches!(bed.reply(pg(0), done(2)), ClientOp::Write { .. }));
    assert!(matches!(bed.reply(pg(0), done(2)), ClientOp::Flush));
    assert_eq!(bed.answers.last(), Some(&(3, done(0))));
}

#[test]
fn what_is_kept_is_bounded() {
    let mut bed = Bed::open();
    let big = |chunk: u32| {
        let chunk = ChunkId { volume: V, index: chunk };
        ClientOp::Write { chunk, offset: 0, leaves: Vec::new(), data: vec![1; 4 << 20].into(), fua: false }
    };
    let mut acked = 0;
    for token in 10..60 {
        bed.router.submit(token, pg(0), big(0));
        bed.drain();
        while let Some(at) = bed.sent.iter().position(|(_, r)| matches!(r.op, ClientOp::Write { .. })) {
            let (_, request) = bed.sent.remove(at).unwrap();
            bed.router.handle_reply(request.id, done(1));
            acked += 1;
            bed.drain();
        }
    }
    assert_eq!(acked, UNFLUSHED_BYTES_HARD / (4 << 20), "the others wait");
    assert!(matches!(bed.reply(pg(0), done(1)), ClientOp::Flush), "a FLUSH was made in the background");
    let goes_on = bed.sent.iter().filter(|(_, r)| matches!(r.op, ClientOp::Write { .. })).count();
    assert!(goes_on > 10, "{goes_on} of the others go on");
}

#[test]
fn a_loss_is_told_once() {
    let mut bed = Bed::open();
    bed.router.submit(2, pg(0), write(0, 1));
    bed.reply(pg(0), done(1));
    bed.restart(1);
    bed.router.flush(3);
    bed.let_in(pg(0), 2);
    // The block around it has no good copy: the write can't come back.
    bed.reply(pg(0), ClientReply::IoError);
    bed.reply(pg(0), done(2));
    bed.router.submit(4, pg(0), write(0, 2));
    bed.reply(pg(0), done(2));
    bed.router.flush(5);
    bed.reply(pg(0), done(2));
    assert_eq!(bed.answers, [(2, done(1)), (3, ClientReply::IoError), (4, done(2)), (5, done(0))]);
    assert!(bed.told);
}

#[test]
fn another_primary_is_opened_before_it_gets_anything() {
    let mut bed = Bed::open();
    bed.router.submit(2, pg(0), write(0, 1));
    bed.drain();
    bed.sent.clear();
    bed.router.handle_map(&map([2, 2]));
    bed.let_in(pg(0), 1);
    let again = bed.next(pg(0));
    assert!(matches!(again.op, ClientOp::Write { .. }));
    bed.router.handle_reply(again.id, ClientReply::Fenced);
    bed.drain();
    assert_eq!(bed.answers, [(2, ClientReply::Fenced)]);
    bed.router.submit(3, pg(1), write(1, 1));
    bed.drain();
    assert_eq!(bed.answers.last(), Some(&(3, ClientReply::Fenced)));
    assert!(bed.nothing_to(pg(1)) && bed.router.is_fenced());
}

/// R13: the coordinator may forget the epochs before only when nothing acked can be missing any more.
#[test]
fn a_loss_is_settled_when_everything_is_there_again_or_told() {
    let mut bed = Bed::open();
    let mut lost = map([1, 2]);
    assert_eq!(bed.router.settled(&lost), Some(2));
    bed.router.submit(2, pg(0), write(0, 1));
    bed.reply(pg(0), done(1));
    assert_eq!(bed.router.settled(&lost), Some(2), "nothing has restarted");
    for config in lost.pgs.values_mut() {
        config.durability_epoch = 2;
    }
    bed.router.handle_map(&lost);
    assert_eq!(bed.router.settled(&lost), None, "the write is still to be sent again");
    bed.restart(1);
    bed.router.submit(3, pg(0), write(1, 1));
    bed.let_in(pg(0), 2);
    assert_eq!(bed.router.settled(&lost), None);
    bed.reply(pg(0), done(2));
    assert_eq!(bed.router.settled(&lost), Some(4), "the other PG has nothing to lose");

    // A loss of the gateway before, told by a flush that fails once.
    let mut bed = Bed::open();
    bed.router.tell_loss();
    assert_eq!(bed.router.settled(&lost), None);
    bed.router.flush(4);
    bed.drain();
    assert_eq!((bed.answers.pop(), bed.told), (Some((4, ClientReply::IoError)), true));
    assert_eq!(bed.router.settled(&lost), Some(4));
    bed.router.flush(5);
    bed.drain();
    assert_eq!(bed.answers.pop(), Some((5, done(0))));
}
