//! The daemon in this process, over real QUIC and HTTP.

mod harness;

use harness::{Cluster, Node, until};

use crate::api::types::*;
use crate::core::cluster::{PgConfig, Replica};
use crate::core::ids::PgId;
use crate::wire::control::{self, AttachOutcome, ProposeKind, kind};
use crate::wire::stats;

async fn three_nodes(cluster: &Cluster, pgs: u32) -> Vec<Node> {
    let mut nodes = Vec::new();
    for name in ["a", "b", "c"] {
        nodes.push(cluster.node(name).await);
    }
    let pool = serde_json::json!({ "name": "default", "pg_count": pgs });
    let info: PoolInfo = cluster.send("POST", "/v1/pools", &pool).await.unwrap();
    assert_eq!((info.replicas, info.min_replicas, info.pg_count), (3, 2, pgs));
    for node in &nodes {
        // What a node brings after a restart is what it had heard of.
        node.peer.map_until("the pool", |m| m.pgs.len() == pgs as usize).await;
    }
    nodes
}

fn config(node: &Node, pg: PgId) -> PgConfig {
    node.peer.map.lock().pgs[&pg].clone()
}

fn node_of(nodes: &[Node], replica: Replica) -> &Node {
    nodes.iter().find(|n| n.disk == replica.disk).unwrap()
}

fn proposal(config: &PgConfig, id: u64, what: ProposeKind, who: &[Replica]) -> control::Propose {
    control::Propose {
        proposal: id,
        pg: config.pg.to_u64(),
        base_epoch: config.generation.epoch,
        base_n: config.generation.n,
        kind: what as i32,
        replicas: who.iter().map(|r| (*r).into()).collect(),
        reason: "test".into(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_register_and_a_pool_gets_clean() {
    let cluster = Cluster::start().await;
    let nodes = three_nodes(&cluster, 8).await;
    let status = cluster.status_until("clean", |s| s.pgs.clean == 8 && !s.plan_pending).await;
    assert_eq!(status.health, "ok", "{:?}", status.health_reasons);
    assert_eq!(status.disks.iter().map(|d| d.pg_replicas).collect::<Vec<_>>(), [8, 8, 8]);
    let map = nodes[0].peer.map_until("eight PGs", |m| m.pgs.len() == 8).await;
    assert!(map.pgs.values().all(|c| c.members.len() == 3));
    until("heartbeats are answered", || {
        (nodes[1].peer.acks.load(std::sync::atomic::Ordering::Relaxed) > 3).then_some(())
    })
    .await;

    let denied = cluster.request::<Status>("GET", "/v1/status", None::<&()>, "wrong").await.unwrap_err();
    assert_eq!(denied.0, 401);
    let volume = serde_json::json!({ "name": "v", "size_bytes": 1u64 << 30 });
    let made: VolumeInfo = cluster.send("POST", "/v1/volumes", &volume).await.unwrap();
    assert_eq!(made.stripes[0].pgs.len(), 8);
    nodes[2].peer.map_until("the volume", |m| m.volumes.len() == 1).await;
    for (body, status, text) in [
        (serde_json::json!({ "name": "v", "size_bytes": 512 }), 409, "exists already"),
        (serde_json::json!({ "name": "w", "size_bytes": 100 }), 400, "multiple of 512"),
        (serde_json::json!({ "name": "w", "size_bytes": 512, "pool": "x" }), 404, "no pool \"x\""),
        (serde_json::json!({ "nonsense": 1 }), 400, "body"),
    ] {
        let refused = cluster.send::<VolumeInfo>("POST", "/v1/volumes", &body).await.unwrap_err();
        assert!(refused.0 == status && refused.1.contains(text), "{refused:?}");
    }
    let few = serde_json::json!({ "name": "wide", "replicas": 4, "pg_count": 4 });
    let refused = cluster.send::<PoolInfo>("POST", "/v1/pools", &few).await.unwrap_err();
    assert!(refused.1.contains("only 3 could be placed"), "{refused:?}");
    let set: ResyncInfo = cluster.send("PATCH", "/v1/resync", &serde_json::json!({ "cap": "4MiB/s" })).await.unwrap();
    assert_eq!((set.cap_bytes_per_sec, set.floor_bytes_per_sec), (Some(4 << 20), 4 << 20));
    nodes[0].peer.map_until("the cap", |m| m.settings.resync.cap_bytes_per_sec == Some(4 << 20)).await;
    let events: Vec<Event> = cluster.get("/v1/events?after=1").await;
    assert!(events.iter().any(|e| e.kind == "resync-set" && e.actor == "operator (api.token, from 127.0.0.1)"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_primary_is_followed_and_its_return_is_a_learner() {
    let cluster = Cluster::start().await;
    let mut nodes = three_nodes(&cluster, 1).await;
    let pg = nodes[0].peer.map_until("a PG", |m| m.pgs.len() == 1).await.pgs.keys().next().copied().unwrap();
    let before = config(&nodes[0], pg);
    let primary = before.primary().unwrap();
    let at = nodes.iter().position(|n| n.disk == primary.disk).unwrap();
    nodes[at].peer.beats.store(false, std::sync::atomic::Ordering::Relaxed);
    let witness = &nodes[(at + 1) % 3];
    let map =
        witness.peer.map_until("a new primary", |m| m.pgs.get(&pg).is_some_and(|c| c.primary() != Some(primary))).await;
    let after = map.pgs[&pg].clone();
    assert_eq!(after.generation, before.generation.next());
    assert_eq!(after.members.len(), 2, "two are enough without the dead one");
    assert!(!after.is_member(primary));
    cluster.status_until("degraded", |s| s.pgs.degraded == 1 && s.nodes[at].state == "down").await;

    // It returns with a new boot: its old copy makes it a learner at once, and the primary's proposal a member.
    nodes[at].restart(&cluster, false).await;
    let returned = Replica { disk: primary.disk, boot: nodes[at].boot };
    let map = nodes[at]
        .peer
        .map_until("a learner", |m| m.pgs.get(&pg).is_some_and(|c| c.learners.iter().any(|l| l.replica == returned)))
        .await;
    let now = map.pgs[&pg].clone();
    assert_eq!(now.generation, after.generation, "a learner is no new configuration");
    let server = node_of(&nodes, now.primary().unwrap());
    let stranger = node_of(&nodes, now.members[1]);
    stranger.peer.say(kind::PROPOSE, &proposal(&now, 5, ProposeKind::PromoteLearner, &[returned]));
    let reply: control::ProposeReply = stranger.peer.hear(kind::PROPOSE_REPLY).await;
    assert!(!reply.accepted && reply.reason.contains("not the primary"), "{}", reply.reason);
    for _ in 0..2 {
        server.peer.say(kind::PROPOSE, &proposal(&now, 7, ProposeKind::PromoteLearner, &[returned]));
        let reply: control::ProposeReply = server.peer.hear(kind::PROPOSE_REPLY).await;
        assert!(reply.accepted, "{}", reply.reason);
        assert_eq!(reply.config.unwrap().generation_n, now.generation.n + 1, "twice asked, once done");
    }
    cluster.status_until("clean", |s| s.pgs.clean == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removal_needs_silence_or_patience() {
    let cluster = Cluster::start().await;
    let nodes = three_nodes(&cluster, 1).await;
    let pg = nodes[0].peer.map_until("a PG", |m| m.pgs.len() == 1).await.pgs.keys().next().copied().unwrap();
    let now = config(&nodes[0], pg);
    let server = node_of(&nodes, now.primary().unwrap());
    let accused = now.members[1];
    server.peer.say(kind::PROPOSE, &proposal(&now, 1, ProposeKind::RemoveMembers, &now.members[1..]));
    let reply: control::ProposeReply = server.peer.hear(kind::PROPOSE_REPLY).await;
    assert!(!reply.accepted && reply.reason.contains("at least 2"), "{}", reply.reason);
    let mut refusals = 0;
    for id in 2.. {
        server.peer.say(kind::PROPOSE, &proposal(&now, id, ProposeKind::RemoveMembers, &[accused]));
        let reply: control::ProposeReply = server.peer.hear(kind::PROPOSE_REPLY).await;
        if reply.accepted {
            break;
        }
        assert!(reply.reason.contains("others: they reach it; repeat"), "{}", reply.reason);
        refusals += 1;
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert!(refusals > 1, "a word against heartbeats counts only after a while");
    // It was reachable all along: it comes back as a learner, since its disk holds an old copy.
    let witness = node_of(&nodes, now.members[2]);
    witness
        .peer
        .map_until("the accused learns", |m| {
            m.pgs.get(&pg).is_some_and(|c| c.learners.iter().any(|l| l.replica == accused))
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_restarted_takes_the_highest_flush_mark() {
    let mut cluster = Cluster::start().await;
    let mut nodes = three_nodes(&cluster, 1).await;
    let pg = nodes[0].peer.map_until("a PG", |m| m.pgs.len() == 1).await.pgs.keys().next().copied().unwrap();
    let before = config(&nodes[0], pg);
    // Everything stops at once; the coordinator's restart must not matter.
    cluster.stop().await;
    let addr = cluster.run.addr.clone();
    cluster.resume().await;
    assert_eq!(cluster.run.addr, addr, "nodes keep its address");
    for (i, node) in nodes.iter_mut().enumerate() {
        node.restart(&cluster, false).await;
        node.pgs[0].flush_mark = [5, 9, 7][i];
        node.register();
        let _: control::Registered = node.peer.hear(kind::REGISTERED).await;
        if i < 2 {
            let status: Status = cluster.get("/v1/status").await;
            assert_eq!(status.pgs.unavailable, 1, "one may hold what the others lost");
        }
    }
    let map = nodes[2].peer.map_until("a truth", |m| m.pgs.get(&pg).is_some_and(|c| c.durability_epoch == 2)).await;
    let now = map.pgs[&pg].clone();
    // The third registers with 0 first: the decision may fall then; never for the lower of the two others.
    assert_eq!(now.members, [Replica { disk: nodes[1].disk, boot: nodes[1].boot }]);
    assert_eq!(now.generation, before.generation.next());
    assert_eq!(now.learners.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_gateway_writes_another_stands_by() {
    let cluster = Cluster::start().await;
    let nodes = three_nodes(&cluster, 2).await;
    let volume = serde_json::json!({ "name": "v", "size_bytes": 1u64 << 30 });
    let _: VolumeInfo = cluster.send("POST", "/v1/volumes", &volume).await.unwrap();
    let (one, two, three) = (cluster.gateway("g1").await, cluster.gateway("g2").await, cluster.gateway("g3").await);
    let attach = |take_over, had_incarnation| control::Attach { volume: "v".into(), take_over, had_incarnation };
    one.say(kind::ATTACH, &attach(false, 0));
    let granted: control::AttachReply = one.hear(kind::ATTACH_REPLY).await;
    assert_eq!((granted.outcome(), granted.incarnation), (AttachOutcome::Granted, 1));
    one.say(kind::ATTACH, &attach(false, 1));
    let again: control::AttachReply = one.hear(kind::ATTACH_REPLY).await;
    assert_eq!((again.outcome(), again.incarnation), (AttachOutcome::Granted, 1));
    two.say(kind::ATTACH, &attach(false, 0));
    let waits: control::AttachReply = two.hear(kind::ATTACH_REPLY).await;
    assert_eq!(waits.outcome(), AttachOutcome::Standby);
    assert!(waits.reason.contains("g1"));
    let busy = cluster.request::<Done>("DELETE", "/v1/volumes/v", None::<&()>, &cluster.token).await.unwrap_err();
    assert!(busy.1.contains("attached to gateway \"g1\""), "{busy:?}");
    one.say(kind::RELEASE, &control::Release { id: granted.id, incarnation: 1, reason: String::new(), untold: false });
    let turn: control::AttachReply = two.hear(kind::ATTACH_REPLY).await;
    assert_eq!((turn.outcome(), turn.incarnation), (AttachOutcome::Granted, 2));
    three.say(kind::ATTACH, &attach(true, 0));
    let taken: control::AttachReply = three.hear(kind::ATTACH_REPLY).await;
    assert_eq!((taken.outcome(), taken.incarnation), (AttachOutcome::Granted, 3));
    let fenced: control::Release = two.hear(kind::FENCED).await;
    assert_eq!(fenced.incarnation, 2);
    three
        .say(kind::RELEASE, &control::Release { id: granted.id, incarnation: 3, reason: String::new(), untold: false });
    nodes[0].peer.map_until("released", |m| m.volumes.values().all(|v| v.attached_to.is_empty())).await;

    let _: Done = cluster.request("DELETE", "/v1/volumes/v", None::<&()>, &cluster.token).await.unwrap();
    let map = nodes[0].peer.map_until("deleting", |m| m.volumes.values().all(|v| v.deleting)).await;
    for config in map.pgs.values() {
        let dropped = control::VolumeDropped { id: granted.id, pg: config.pg.to_u64() };
        node_of(&nodes, config.primary().unwrap()).peer.say(kind::VOLUME_DROPPED, &dropped);
    }
    nodes[0].peer.map_until("gone", |m| m.volumes.is_empty()).await;
    let made: VolumeInfo = cluster.send("POST", "/v1/volumes", &volume).await.unwrap();
    assert_eq!(made.id.0, granted.id + 1, "an id is never used twice");
}

/// Plays the primaries until `done`: complete learners are proposed, purges are carried out. `dead` says nothing.
/// Gives what was purged: node's index and PG.
async fn play(
    nodes: &[Node],
    dead: &[usize],
    what: &str,
    done: impl Fn(&crate::core::cluster::ClusterMap) -> bool,
) -> std::collections::BTreeSet<(usize, u64)> {
    let mut purged = std::collections::BTreeSet::new();
    let alive = || nodes.iter().enumerate().filter(|(i, _)| !dead.contains(i)).map(|(_, n)| n);
    let mut next = 1;
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(60);
    loop {
        let map = alive().next().unwrap().peer.map.lock().clone();
        if done(&map) {
            return purged;
        }
        assert!(tokio::time::Instant::now() < deadline, "never happened: {what}");
        for config in map.pgs.values() {
            let Some(server) = alive().find(|n| Some(n.disk) == config.primary().map(|p| p.disk)) else { continue };
            for learner in &config.learners {
                next += 1;
                let who = [learner.replica];
                server.peer.say(kind::PROPOSE, &proposal(config, next, ProposeKind::PromoteLearner, &who));
            }
        }
        for (at, node) in nodes.iter().enumerate().filter(|(i, _)| !dead.contains(i)) {
            while let Some(purge) = node.peer.try_hear::<control::Purge>(kind::PURGE) {
                let config = &map.pgs[&PgId::from_u64(purge.pg)];
                assert!(config.members.iter().all(|m| m.disk != node.disk), "a member is never purged");
                node.peer.say(kind::PURGED, &purge);
                purged.insert((at, purge.pg));
            }
        }
        tokio::time::sleep(std::time::Duration::from_millis(30)).await;
    }
}

fn replicas_on(map: &crate::core::cluster::ClusterMap, node: &Node) -> usize {
    map.pgs.values().filter(|c| c.members.iter().any(|m| m.disk == node.disk)).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_joins_and_another_is_lost() {
    let cluster = Cluster::start().await;
    let mut nodes = three_nodes(&cluster, 16).await;
    cluster.status_until("clean", |s| s.pgs.clean == 16 && !s.plan_pending).await;
    let dry: PlanReply =
        cluster.send("POST", "/v1/plan", &serde_json::json!({ "add_node": ["name=d,disks=1x1GiB"] })).await.unwrap();
    assert_eq!(dry.totals.moves, dry.totals.lower_bound_moves);
    assert_eq!(dry.totals.moves, 12, "a quarter of 48 replicas");
    assert!(dry.moves.iter().all(|m| m.to.to_string() == "d/1"));

    nodes.push(cluster.node("d").await);
    play(&nodes, &[], "the new node has its share", |m| {
        m.nodes.len() == 4 && replicas_on(m, &nodes[3]) == 12 && m.pgs.values().all(|c| c.learners.is_empty())
    })
    .await;
    let status = cluster.status_until("clean", |s| s.pgs.clean == 16 && s.pgs.misplaced == 0 && !s.plan_pending).await;
    assert!(status.disks.iter().all(|d| d.pg_replicas == 12), "{:?}", status.disks);
    play(&nodes, &[], "primaries are even", |m| {
        let mut counts = std::collections::BTreeMap::<_, usize>::new();
        m.pgs.values().for_each(|c| *counts.entry(c.members[0].disk).or_default() += 1);
        counts.len() == 4 && counts.values().all(|n| *n == 4)
    })
    .await;

    nodes[1].peer.beats.store(false, std::sync::atomic::Ordering::Relaxed);
    play(&nodes, &[1], "every PG has three other copies", |m| {
        replicas_on(m, &nodes[1]) == 0 && m.pgs.values().all(|c| c.members.len() == 3)
    })
    .await;
    let status = cluster.status_until("clean again", |s| s.pgs.clean == 16 && s.resync.active_moves == 0).await;
    assert_eq!(status.health, "warn");
    assert!(status.health_reasons.iter().any(|r| r.contains("Node b does not answer")), "{:?}", status.health_reasons);
    let dead = cluster.send::<NodeInfo>("POST", "/v1/nodes/b/state", &serde_json::json!({ "state": "removed" })).await;
    assert_eq!(dead.unwrap().state, "removed");
    cluster.status_until("well", |s| s.health == "ok").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_node_is_emptied_and_its_copies_purged() {
    let cluster = Cluster::start().await;
    let mut nodes = three_nodes(&cluster, 8).await;
    nodes.push(cluster.node("d").await);
    let _: NodeInfo =
        cluster.send("POST", "/v1/nodes/a/state", &serde_json::json!({ "state": "draining" })).await.unwrap();
    let done = |m: &crate::core::cluster::ClusterMap| m.pgs.len() == 8 && replicas_on(m, &nodes[0]) == 0;
    let early = play(&nodes, &[], "nothing is left on a", done).await;
    let map = nodes[1].peer.map.lock().clone();
    assert!(map.pgs.values().all(|c| c.members.len() == 3));
    let mut purged: std::collections::BTreeSet<u64> =
        early.into_iter().filter(|(node, _)| *node == 0).map(|(_, pg)| pg).collect();
    while purged.len() < 8 {
        let purge: control::Purge = nodes[0].peer.hear(kind::PURGE).await;
        nodes[0].peer.say(kind::PURGED, &purge);
        purged.insert(purge.pg);
    }
}

/// R4: whoever comes after one that has seen a newer map is refused rather than told the old one; a refused attach would fence it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_map_takes_nobody() {
    const SAYS: &str = "runs on an old copy of its map";
    let cluster = Cluster::start().await;
    let nodes = three_nodes(&cluster, 1).await;
    for (node, newer_by) in [(0, 1000), (1, 0)] {
        let peer = harness::Peer::connect(&cluster, nodes[node].identity.clone()).await;
        let mut registration = nodes[node].registration();
        registration.map_version += newer_by;
        peer.say(kind::REGISTER, &registration);
        let refused: control::Refused = peer.hear(kind::REFUSED).await;
        assert!(refused.reason.contains(SAYS) && !refused.removed, "{refused:?}");
    }
    let gateway = cluster.gateway("g").await;
    let refused: control::Refused = gateway.hear(kind::REFUSED).await;
    assert!(refused.reason.contains(SAYS), "{refused:?}");
    cluster.status_until("health says so", |s| s.health_reasons.first().is_some_and(|says| says.contains(SAYS))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_and_liars_are_refused() {
    let cluster = Cluster::start().await;
    let nodes = three_nodes(&cluster, 1).await;
    type Lie = fn(&mut control::Register);
    let lies: [(Lie, &str); 4] = [
        (|r| r.node = 2, "the certificate says node"),
        (|r| r.feature_min = 7, "feature levels 7 to"),
        (|r| r.addr = "here".into(), "must be IP:PORT"),
        (|r| r.disks[0].disk = 2, "belongs to node n2"),
    ];
    for (lie, text) in lies {
        let peer = harness::Peer::connect(&cluster, nodes[0].identity.clone()).await;
        let mut registration = nodes[0].registration();
        registration.feature_max = 9;
        lie(&mut registration);
        peer.say(kind::REGISTER, &registration);
        let refused: control::Refused = peer.hear(kind::REFUSED).await;
        assert!(refused.reason.contains(text), "{}", refused.reason);
    }
    let peer = harness::Peer::connect(&cluster, nodes[0].identity.clone()).await;
    peer.sender.send(crate::wire::frame::Frame::new(kind::REGISTER, vec![0xff; 40])).unwrap();
    let refused: control::Refused = peer.hear(kind::REFUSED).await;
    assert!(refused.reason.contains("malformed"), "{}", refused.reason);
    let gateway = cluster.gateway("g").await;
    gateway.say(kind::PROPOSE, &control::Propose::default());
    let refused: control::Refused = gateway.hear(kind::REFUSED).await;
    assert!(refused.reason.contains("wrong kind of peer"), "{}", refused.reason);
    cluster.status_until("unimpressed", |s| s.pgs.clean == 1 && s.health == "ok").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_witness_shortens_the_wait_for_a_silent_node() {
    let cluster = Cluster::start().await;
    let nodes = three_nodes(&cluster, 1).await;
    nodes[2].peer.map_until("a PG", |m| m.pgs.len() == 1).await;
    *nodes[0].peer.unreachable.lock() = vec![nodes[2].id.0];
    *nodes[1].peer.unreachable.lock() = vec![nodes[2].id.0];
    cluster.status_until("heard, so up", |s| s.nodes[2].state == "up").await;
    nodes[2].peer.beats.store(false, std::sync::atomic::Ordering::Relaxed);
    cluster.status_until("silent, so down", |s| s.nodes[2].state == "down").await;
    nodes[2].peer.beats.store(true, std::sync::atomic::Ordering::Relaxed);
    cluster.status_until("thawed", |s| s.nodes[2].state == "up").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_hear_what_guests_have_on_an_ordinary_disk() {
    let cluster = Cluster::start().await;
    let nodes = three_nodes(&cluster, 1).await;
    let stats_of = |node: &Node, us: u64| {
        let found_rate_bytes_per_sec = us << 20;
        let quiet_p99_us = vec![us, 0];
        let disk = stats::DiskStats { disk: node.disk.0, quiet_p99_us, found_rate_bytes_per_sec, ..Default::default() };
        stats::Stats { disks: vec![disk], ..Default::default() }
    };
    let report = |node: &Node, us: u64| node.peer.say(kind::STATS, &stats_of(node, us));
    nodes.iter().zip([1_700, 2_100, 2_700]).for_each(|(node, us)| report(node, us));
    let median = until("the median of three", || {
        report(&nodes[0], 1_700);
        let heard: stats::ClassBaselines = nodes[0].peer.try_hear(kind::CLASS_BASELINES)?;
        assert!(!heard.copies_run);
        // Until three have reported there is none.
        let disk = heard.disks.first()?;
        assert_eq!((disk.disk, heard.disks.len()), (nodes[0].disk.0, 1), "its one disk");
        Some(disk.clone()).filter(|disk| disk.quiet_p99_us[0] > 0)
    });
    let median = median.await;
    assert_eq!((&median.quiet_p99_us[..2], median.usual_rate_bytes_per_sec), (&[2_100, 0][..], 2_100 << 20));
    // One node's copies are told to all.
    until("copies run", || {
        let sessions = vec![stats::SessionStats::default()];
        nodes[1].peer.say(kind::STATS, &stats::Stats { sessions, ..stats_of(&nodes[1], 2_100) });
        report(&nodes[0], 1_700);
        let heard: stats::ClassBaselines = nodes[0].peer.try_hear(kind::CLASS_BASELINES)?;
        heard.copies_run.then_some(())
    })
    .await;
    // A release that reports none is told none. Answers come in order: that to a proposal is the last.
    let silent = &nodes[2].peer;
    let told_after = async |stats: stats::Stats| {
        silent.say(kind::STATS, &stats);
        silent.say(kind::PROPOSE, &control::Propose::default());
        let _: control::ProposeReply = silent.hear(kind::PROPOSE_REPLY).await;
        std::iter::from_fn(|| silent.try_hear::<stats::ClassBaselines>(kind::CLASS_BASELINES)).count()
    };
    assert!(told_after(stats_of(&nodes[2], 2_700)).await > 0);
    assert_eq!(told_after(stats::Stats::default()).await, 0);
}
