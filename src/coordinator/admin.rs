//! Calls of the admin API: reads from the views, changes as commands, answers once they are durable.

use std::time::Duration;

use serde::Serialize;
use tokio::sync::oneshot;

use super::owner::{Effect, Owner};
use super::resync;
use super::{stop, whatif, wiring};
use crate::api::calls::{AdminCall, AdminMessage, Answer, CallFailed};
use crate::api::types::*;
use crate::core::cluster::command::{
    Command, Context, ForcePromote, Liveness, Outcome, PoolChange, PoolSpec, Refusal, RefusalKind,
};
use crate::core::cluster::state::state_word;
use crate::core::cluster::{NodeAdminState, PgConfig, Replica, VolumeQos};
use crate::core::ids::{PgId, PoolId};
use crate::core::manager::decide::{PgState, state_of};
use crate::core::manager::{force, plan};
use crate::core::placement as place;
use crate::meta::envelope;
use crate::meta::records::{JsonRecord, kind};
use crate::net::ca::CaError;
use crate::net::identity::{Role, RoleKind, cert_pem, is_gateway_name};
use crate::net::token::{JoinToken, TokenRecord};

/// Stands for whoever asks through the API: see `Owner::asker`.
pub(super) const OPERATOR: &str = "operator";
/// What stands for no class in particular.
const ANY_CLASS: &str = "any";
/// A join token lives for an hour unless said otherwise, and never longer than this.
const TOKEN_LIFETIME: Duration = Duration::from_secs(3600);
const TOKEN_LIFETIME_MAX: Duration = Duration::from_secs(30 * 86_400);

impl From<Refusal> for CallFailed {
    fn from(refusal: Refusal) -> Self {
        let status = match refusal.kind() {
            RefusalKind::NotFound => 404,
            RefusalKind::Invalid => 400,
            RefusalKind::Conflict => 409,
        };
        CallFailed::new(status, refusal.to_string())
    }
}

impl Owner {
    pub(super) fn handle_admin(&mut self, message: AdminMessage) {
        let AdminMessage { call, reply, asker } = message;
        self.asker = asker;
        match call {
            AdminCall::Plan(request) => {
                return self.off_turn(reply, move |map, rates| whatif::answer(map, &request, rates));
            }
            AdminCall::MapExport => return self.off_turn(reply, |map, _| Ok(whatif::export(&map))),
            _ => {}
        }
        let answer = self.answer(call);
        self.effects.push(Effect::Answer(reply, answer));
    }

    fn answer(&mut self, call: AdminCall) -> Answer {
        let map = self.manager.state.map();
        match call {
            AdminCall::Status => json(&self.status()),
            AdminCall::Nodes => json(&self.node_infos()),
            AdminCall::Node(name) => self.node(&name),
            AdminCall::Disks => json(&self.disk_infos()),
            AdminCall::Pools => json(&map.pools.values().map(|p| self.pool_info(p)).collect::<Vec<_>>()),
            AdminCall::Pool(name) => self.pool(&name),
            AdminCall::Volumes => json(&map.volumes.values().map(|v| self.volume_info(v)).collect::<Vec<_>>()),
            AdminCall::Volume(name) => self.volume(&name),
            AdminCall::Pgs => json(&self.pg_infos()),
            AdminCall::Pg(id) => {
                let pg: PgId = id.parse().map_err(|e| CallFailed::new(400, format!("{e}")))?;
                let config = map.pgs.get(&pg).ok_or(Refusal::Unknown { what: "pg", name: id })?;
                json(&self.pg_info(config, &self.manager.planning.misplaced()))
            }
            AdminCall::ForcePromote(id, request) => self.force_promote(id, &request),
            AdminCall::Map => json(&MapSummary {
                epoch: map.epoch,
                version: map.version,
                pools: map.pools.values().map(|p| self.pool_info(p)).collect(),
                nodes: self.node_infos(),
                volumes: map.volumes.values().map(|v| self.volume_info(v)).collect(),
                pgs: self.pg_infos(),
            }),
            AdminCall::Resync => json(&self.resync_info()),
            AdminCall::Jobs => json(&self.job_infos()),
            AdminCall::Job(id) => self.job(&id),
            AdminCall::JobChange(id, change) => self.change_job(&id, change),
            AdminCall::Events { after } => json(&self.events.after(after)),
            AdminCall::Metrics => {
                self.show_metrics();
                Ok(self.facts.metrics.text().into_bytes())
            }
            AdminCall::ScrapeTargets => json(&self.scrape_targets()),
            AdminCall::PoolCreate(request) => self.create_pool(request),
            AdminCall::PoolSet(name, request) => self.set_pool(&name, request),
            AdminCall::PoolDelete(name) => {
                self.apply(OPERATOR, Command::DeletePool { pool: name.clone() })?;
                self.plan_for_operator(format!("pool {name} was deleted"));
                json(&Done { message: format!("pool {name} was deleted") })
            }
            AdminCall::VolumeCreate(request) => {
                let pool = request.pool.unwrap_or_else(|| "default".to_owned());
                let (name, size_bytes, priority) = (request.name, request.size_bytes, request.priority);
                let qos = resync::volume_qos(VolumeQos::default(), &request.qos)?;
                self.apply(OPERATOR, Command::CreateVolume { name: name.clone(), pool, size_bytes })?;
                if let Some(priority) = priority {
                    self.apply(OPERATOR, Command::SetVolume { volume: name.clone(), priority })?;
                }
                if qos != VolumeQos::default() {
                    self.apply(OPERATOR, Command::SetVolumeQos { volume: name.clone(), qos })?;
                }
                self.volume(&name)
            }
            AdminCall::VolumeSet(name, request) => {
                let old = map.volumes.values().find(|v| v.name == name).map(|v| v.qos).unwrap_or_default();
                let qos = resync::volume_qos(old, &request.qos)?;
                if let (true, Some(size_bytes)) = (request.dry_run, request.size_bytes) {
                    self.probe(Command::ResizeVolume { volume: name.clone(), size_bytes })?;
                }
                if request.dry_run {
                    return self.volume(&name);
                }
                if let Some(size_bytes) = request.size_bytes {
                    self.apply(OPERATOR, Command::ResizeVolume { volume: name.clone(), size_bytes })?;
                }
                if let Some(priority) = request.priority {
                    self.apply(OPERATOR, Command::SetVolume { volume: name.clone(), priority })?;
                }
                if qos != old {
                    self.apply(OPERATOR, Command::SetVolumeQos { volume: name.clone(), qos })?;
                }
                self.volume(&name)
            }
            AdminCall::VolumeDelete(name) => {
                self.apply(OPERATOR, Command::DeleteVolume { volume: name.clone() })?;
                json(&Done { message: format!("volume {name} is being deleted; its space returns within moments") })
            }
            AdminCall::OkToStop(request) => self.ok_to_stop(&request.nodes),
            AdminCall::NodeState(name, request) => self.set_node_state(&name, &request),
            AdminCall::ResyncSet(request) => self.set_resync(&request),
            AdminCall::TokenCreate(request) => self.create_token(&request),
            AdminCall::Join(request) => self.join(request),
            AdminCall::Certificate(request) => self.certify(&request),
            AdminCall::Plan(_) | AdminCall::MapExport => Err(CallFailed::new(500, "it is answered elsewhere")),
        }
    }

    fn node(&self, name: &str) -> Answer {
        let found = self.node_infos().into_iter().filter(|n| n.name == name || n.id.to_string() == name);
        let unknown = || Refusal::Unknown { what: "node", name: name.to_owned() };
        json(&found.max_by_key(|n| n.id).ok_or_else(unknown)?)
    }

    fn ok_to_stop(&self, names: &[String]) -> Answer {
        let map = self.manager.state.map();
        let mut nodes = std::collections::BTreeSet::new();
        for name in names {
            let in_use = |n: &&crate::core::cluster::Node| n.name == *name && n.admin_state != NodeAdminState::Removed;
            let unknown = || Refusal::Unknown { what: "node", name: name.clone() };
            nodes.insert(map.nodes.values().find(in_use).ok_or_else(unknown)?.id);
        }
        json(&stop::ok_to_stop(map, &|r| self.manager.runtime.is_live(r), &nodes))
    }

    fn pool(&self, name: &str) -> Answer {
        let found = self.manager.state.map().pools.values().find(|p| p.name == name);
        let unknown = || Refusal::Unknown { what: "pool", name: name.to_owned() };
        json(&self.pool_info(found.ok_or_else(unknown)?))
    }

    fn volume(&self, name: &str) -> Answer {
        let found = self.manager.state.map().volumes.values().find(|v| v.name == name);
        let unknown = || Refusal::Unknown { what: "volume", name: name.to_owned() };
        let volume = found.ok_or_else(unknown)?;
        json(&VolumeInfo { redundancy: Some(self.redundancy(volume)), ..self.volume_info(volume) })
    }

    fn create_pool(&mut self, request: PoolCreate) -> Answer {
        let map = self.manager.state.map();
        let replicas = request.replicas.unwrap_or(3);
        let min_replicas = request.min_replicas.unwrap_or(replicas.saturating_sub(1).max(1));
        let class = request.class.unwrap_or_default();
        let default_pgs = || plan::default_pg_count(map, replicas, &class);
        let spec = PoolSpec {
            name: request.name.clone(),
            replicas,
            min_replicas,
            failure_domain: request.failure_domain.unwrap_or_default(),
            pg_count: request.pg_count.unwrap_or_else(default_pgs),
            class,
            durable_writes: durability(request.durability.as_deref())?.unwrap_or(false),
        };
        if spec.pg_count > crate::core::cluster::state::PG_COUNT_MAX {
            return Err(Refusal::PgCountInvalid(spec.pg_count).into());
        }
        let input = plan::input(map, &self.manager.runtime, &self.manager.pg_bytes, self.manager.now);
        let rule = crate::core::cluster::Pool {
            id: PoolId(self.manager.state.next_ids().pool),
            name: spec.name.clone(),
            replicas,
            min_replicas,
            failure_domain: spec.failure_domain,
            class: spec.class.clone(),
            pg_count: spec.pg_count,
            durable_writes: spec.durable_writes,
        };
        let mut rows = place::initial(&input, &plan::pool_spec(&rule));
        rows.sort_by_key(|r| r.pg);
        let boot = |disk: &crate::core::ids::DiskId| self.manager.runtime.live_replica(*disk);
        let members: Vec<Vec<Replica>> = rows.iter().map(|r| r.disks.iter().filter_map(boot).collect()).collect();
        self.apply(OPERATOR, Command::CreatePool { spec, members: members.clone() })?;
        let map = self.manager.state.map().clone();
        for config in map.pgs.values().filter(|c| c.pg.pool == rule.id) {
            for member in &config.members {
                self.manager.runtime.note_copy(*member, config, true);
            }
        }
        self.pool(&request.name)
    }

    fn set_pool(&mut self, name: &str, request: PoolSet) -> Answer {
        let change = PoolChange {
            pool: name.to_owned(),
            replicas: request.replicas,
            min_replicas: request.min_replicas,
            failure_domain: request.failure_domain,
            class: request.class.map(|c| if c == ANY_CLASS { String::new() } else { c }),
            durable_writes: durability(request.durability.as_deref())?,
        };
        if request.dry_run {
            self.probe(Command::SetPool(change))?;
            return self.pool(name);
        }
        let applied = self.apply(OPERATOR, Command::SetPool(change))?;
        if !applied.changed.is_empty() {
            let map = self.manager.state.map();
            let pool = map.pools.values().find(|p| p.name == name).map(|p| p.id);
            let pgs: Vec<PgId> = map.pgs.keys().filter(|pg| Some(pg.pool) == pool).copied().collect();
            self.manager.runtime.no_grace.extend(pgs);
            self.plan_for_operator(format!("pool {name} was changed"));
        }
        self.pool(name)
    }

    fn set_node_state(&mut self, name: &str, request: &NodeStateSet) -> Answer {
        let state = request.state;
        let map = self.manager.state.map();
        let found = map.nodes.values().filter(|n| n.name == name || n.id.to_string() == name).max_by_key(|n| n.id);
        let node = found.map(|n| n.id);
        let name = found.map_or_else(|| name.to_owned(), |n| n.name.clone());
        let name = name.as_str();
        let held = map
            .pgs
            .values()
            .filter(|c| c.members.iter().any(|m| map.disks.get(&m.disk).is_some_and(|d| Some(d.node) == node)));
        let held: Vec<PgId> = held.map(|c| c.pg).collect();
        let removing = state == NodeAdminState::Removed;
        let conn = node.and_then(|n| self.manager.runtime.nodes.get(&n)).and_then(|v| v.conn);
        if removing && conn.is_some() && !held.is_empty() {
            return Err(Refusal::NodeInUse { node: name.to_owned(), replicas: held.len() }.into());
        }
        let command = Command::SetNodeState { node: name.to_owned(), state };
        if request.dry_run {
            self.probe(command)?;
            return self.node(name);
        }
        self.apply(OPERATOR, command)?;
        if removing {
            self.manager.runtime.no_grace.extend(held);
            let short: Vec<PgId> = self.manager.runtime.short_since.keys().copied().collect();
            self.manager.runtime.no_grace.extend(short);
            if let (Some(conn), Some(node)) = (conn, node) {
                // It may end: it learns it now, not from its next registration.
                self.effects.push(Effect::Refuse(conn, Refusal::NodeRemoved(node).to_string()));
            }
        }
        let what = format!("node {name} is {}", state_word(state));
        self.plan_for_operator(what);
        self.node(name)
    }

    /// Without the operator's word it only says what would be done: the same checks, the same words.
    fn force_promote(&mut self, id: String, request: &ForcePromoteRequest) -> Answer {
        let map = self.manager.state.map();
        let pg: PgId = id.parse().map_err(|e| CallFailed::new(400, format!("{e}")))?;
        let config = map.pgs.get(&pg).ok_or(Refusal::Unknown { what: "pg", name: id })?.clone();
        if matches!(state_of(map, &self.manager.runtime, &config), PgState::Clean | PgState::Degraded) {
            let text = format!("PG {pg} is served: force-promote is the last resort for one that is not");
            return Err(CallFailed::new(409, text));
        }
        if !self.manager.runtime.is_settled() {
            let text = "the coordinator has just started and waits for the nodes: ask again in a few seconds";
            return Err(CallFailed::new(409, text));
        }
        let all = force::candidates(map, &self.manager.runtime, &config);
        let chosen = match request.disk {
            Some(disk) => all.iter().find(|c| c.replica.disk == disk).ok_or_else(|| {
                let have: Vec<String> = all.iter().map(|c| c.replica.disk.to_string()).collect();
                let have = if have.is_empty() { "no disk".to_owned() } else { force::listing(&have) };
                format!("{disk} has no copy of PG {pg} that answers and works: {have} has one")
            }),
            None => all.first().filter(|c| c.complete).ok_or_else(|| {
                let back = force::way_back(map, &self.manager.runtime, &config);
                match all.first() {
                    Some(c) => format!("no complete copy of PG {pg} answers: {back}; to lead with an incomplete one name it, as --disk {}", c.replica.disk),
                    None => format!("no copy of PG {pg} answers: {back}"),
                }
            }),
        };
        let chosen = *chosen.map_err(|text| CallFailed::new(409, text))?;
        let command = force::command(map, &config, &chosen, &all);
        self.manager
            .state
            .probe(Command::ForcePromote(command.clone()), &Context { liveness: &self.manager.runtime })?;
        let named =
            |disk| self.manager.state.map().disks.get(&disk).map_or_else(String::new, |d| self.node_name(d.node));
        let mut reply = ForcePromoteReply {
            pg: pg.to_string(),
            done: request.accept_data_loss,
            disk: chosen.replica.disk,
            node: named(chosen.replica.disk),
            lossless: chosen.is_lossless(),
            loss: command.loss.clone(),
            generation_before: config.generation,
            generation: config.generation,
            learners: command.learners.iter().map(|l| l.replica.disk).collect(),
            warnings: self.force_warnings(&config, &command),
            candidates: all
                .iter()
                .map(|c| ForceCandidate {
                    disk: c.replica.disk,
                    node: named(c.replica.disk),
                    generation: c.generation,
                    complete: c.complete,
                    flush_mark: c.flush_mark,
                    loss: force::loss(&config, c),
                })
                .collect(),
        };
        if request.accept_data_loss {
            self.apply(OPERATOR, Command::ForcePromote(command))?;
            if let Some(config) = self.manager.state.map().pgs.get(&pg).cloned() {
                self.manager.runtime.note_copy(chosen.replica, &config, true);
                reply.generation = config.generation;
            }
            // Nobody who left is waited for.
            self.manager.runtime.no_grace.insert(pg);
            self.plan_for_operator(format!("PG {pg} was force-promoted"));
            self.manager.touch_pgs();
        }
        json(&reply)
    }

    fn force_warnings(&self, config: &PgConfig, command: &ForcePromote) -> Vec<String> {
        let leave = config.members.iter().filter(|m| m.disk != command.chosen.disk);
        let warn = |m: &Replica| {
            let name = force::disk_on_node(self.manager.state.map(), m.disk);
            if self.manager.runtime.live_boot(m.disk).is_some() {
                format!("{name} leaves and becomes a copy of {}.", command.chosen.disk)
            } else {
                format!(
                    "{name} does not answer and leaves: be sure that it is stopped, since what it still acks is lost; when it returns, its copy is overwritten."
                )
            }
        };
        leave.map(warn).collect()
    }

    /// Answers from a copy of the map, beside the turn: on a large map this takes seconds.
    fn off_turn(
        &mut self,
        reply: oneshot::Sender<Answer>,
        make: impl FnOnce(place::ClusterMap, place::Rates) -> Answer + Send + 'static,
    ) {
        let map = whatif::named(self.manager.plan_input(), self.manager.state.map());
        let rates = whatif::rates(self.manager.state.map());
        tokio::task::spawn_blocking(move || {
            // The client may have hung up.
            let _ = reply.send(make(map, rates));
        });
    }

    fn create_token(&mut self, request: &TokenCreate) -> Answer {
        let role = match request.role.as_str() {
            "node" => RoleKind::Node,
            "gateway" => RoleKind::Gateway,
            "operator" => RoleKind::Operator,
            "viewer" => RoleKind::Viewer,
            other => {
                let text = format!("{other:?} is no role: choose node, gateway, operator or viewer");
                return Err(CallFailed::new(400, text));
            }
        };
        let lifetime = request.ttl_seconds.map_or(TOKEN_LIFETIME, Duration::from_secs);
        if lifetime.is_zero() || lifetime > TOKEN_LIFETIME_MAX {
            let days = TOKEN_LIFETIME_MAX.as_secs() / 86_400;
            return Err(CallFailed::new(400, format!("a join token lives for 1 second to {days} days")));
        }
        let (token, record) = JoinToken::mint(role, self.facts.ca.fingerprint(), now_seconds(), lifetime);
        self.put_token(&record)?;
        self.tell("token-created", OPERATOR, format!("Join token {} for a {role} was made.", record.id));
        json(&TokenCreated { token: token.reveal(), expires_unix_seconds: record.expires_unix_seconds })
    }

    fn put_token(&mut self, record: &TokenRecord) -> Result<(), CallFailed> {
        let json = serde_json::to_string(record).map_err(|e| CallFailed::new(500, e.to_string()))?;
        let key = token_key(&record.id);
        self.batch.put(&key, envelope::seal(&key, kind::TOKEN, 1, &JsonRecord { json }));
        Ok(())
    }

    /// The token's record; one that this turn has written counts.
    fn token_record(&self, id: &str) -> Result<Option<TokenRecord>, CallFailed> {
        let key = token_key(id);
        let pending = self.batch.writes.iter().rev().find(|(k, _)| *k == key).map(|(_, v)| v.clone());
        let failed = |e: crate::meta::MetaError| CallFailed::new(500, e.to_string());
        let bytes = match pending {
            Some(value) => value,
            None => self.store.get(&key).map_err(failed)?,
        };
        let Some(bytes) = bytes else { return Ok(None) };
        let sealed = envelope::open(&key, &bytes).map_err(failed)?;
        let (record, _) = envelope::decode::<JsonRecord>(&key, &sealed.body).map_err(failed)?;
        Ok(serde_json::from_str(&record.json).ok())
    }

    fn join(&mut self, request: JoinRequest) -> Answer {
        let denied = |e: crate::net::token::TokenError| CallFailed::new(403, e.to_string());
        let token = JoinToken::parse(&request.token).map_err(denied)?;
        let mut record = self.token_record(token.id())?;
        let kind = token.check(record.as_ref(), self.facts.ca.fingerprint(), now_seconds()).map_err(denied)?;
        let (role, node, certificate_pem) = match kind {
            RoleKind::Node => {
                let unspecified = std::net::SocketAddr::from(([0, 0, 0, 0], 0));
                let addr = match &request.addr {
                    Some(text) => text
                        .parse()
                        .map_err(|_| CallFailed::new(400, format!("{text:?} is not an address: give IP:PORT")))?,
                    None => unspecified,
                };
                // A malformed request must not use up an id.
                let probe = Role::Node(crate::core::ids::NodeId(self.manager.state.next_ids().node));
                let pem = self.issue(&request.csr_pem, &probe)?;
                let command = Command::AddNode {
                    name: request.name.clone(),
                    addr,
                    zone: request.zone.clone(),
                    rack: request.rack.clone(),
                };
                let applied = self.apply(&request.name, command)?;
                let Outcome::Node(id) = applied.outcome else {
                    return Err(CallFailed::new(500, "the map gave no node id"));
                };
                (Role::Node(id), Some(id), pem)
            }
            RoleKind::Gateway | RoleKind::Operator | RoleKind::Viewer => {
                let role = role_of(kind, &request.name);
                let pem = self.issue(&request.csr_pem, &role)?;
                (role, None, pem)
            }
            RoleKind::Coordinator => {
                return Err(CallFailed::new(
                    403,
                    "a coordinator does not join by token: run it with its own directory",
                ));
            }
        };
        if let Some(record) = &mut record {
            record.used = true;
            let record = record.clone();
            self.put_token(&record)?;
        }
        self.tell("joined", &request.name, format!("{role} got its certificate with token {}.", token.id()));
        json(&self.join_reply(node, certificate_pem))
    }

    fn certify(&mut self, request: &CertificateRequest) -> Answer {
        let kind = match request.role.as_str() {
            "gateway" => RoleKind::Gateway,
            "operator" => RoleKind::Operator,
            "viewer" => RoleKind::Viewer,
            other => {
                let text = format!(
                    "no certificate for role {other:?} without a join token: choose gateway, operator or viewer"
                );
                return Err(CallFailed::new(400, text));
            }
        };
        let role = role_of(kind, &request.name);
        let pem = self.issue(&request.csr_pem, &role)?;
        // A gateway's name is in its role; the others' are told for the record alone.
        let name = match kind {
            RoleKind::Operator | RoleKind::Viewer if is_gateway_name(&request.name) => format!(" {}", request.name),
            _ => String::new(),
        };
        self.tell("certificate", OPERATOR, format!("{role}{name} got a short-lived certificate."));
        json(&self.join_reply(None, pem))
    }

    fn issue(&self, request_pem: &str, role: &Role) -> Result<String, CallFailed> {
        self.facts.ca.issue(request_pem, role, now_seconds()).map_err(|e| {
            let status = if matches!(e, CaError::Request(_) | CaError::GatewayName(_)) { 400 } else { 500 };
            CallFailed::new(status, e.to_string())
        })
    }

    fn join_reply(&self, node: Option<crate::core::ids::NodeId>, certificate_pem: String) -> JoinReply {
        JoinReply {
            cluster: self.manager.state.map().cluster.to_string(),
            node,
            certificate_pem,
            ca_pem: cert_pem(&self.facts.ca.cert()),
            coordinator_addr: self.facts.coordinator_addr.to_string(),
        }
    }
}

fn role_of(kind: RoleKind, name: &str) -> Role {
    match kind {
        RoleKind::Gateway => Role::Gateway(name.to_owned()),
        RoleKind::Operator => Role::Operator,
        _ => Role::Viewer,
    }
}

fn durability(text: Option<&str>) -> Result<Option<bool>, CallFailed> {
    match text {
        None => Ok(None),
        Some("flush") => Ok(Some(false)),
        Some("write") => Ok(Some(true)),
        Some(other) => Err(CallFailed::new(400, format!("{other:?} is no durability: choose flush or write"))),
    }
}

fn token_key(id: &str) -> String {
    format!("token/{id}")
}

fn now_seconds() -> u64 {
    wiring::unix_ms() / 1000
}

pub(super) fn json(value: &impl Serialize) -> Answer {
    serde_json::to_vec(value).map_err(|e| CallFailed::new(500, format!("the answer can't be written: {e}")))
}
