//! Every operation of the admin API: one table, from which both the routes and the OpenAPI document are made.
//!
//! Invariant: a route exists only as an [`Operation`], so each has its words, its role and its schemas. The role that stands
//! here is the one that is enforced.

use axum::routing::{MethodFilter, MethodRouter, get, on};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::DeserializeOwned;

use super::calls::{AdminCall, JobChange};
use super::router::{After, App, Body, Ctx, Name, document};
use super::types;

/// Who may ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Everyone; what is asked carries its own proof, or is no secret.
    Anyone,
    /// Everyone on the coordinator's host, viewers from elsewhere.
    Loopback,
    /// Viewers and operators.
    Viewer,
    /// Operators.
    Operator,
}

/// HTTP method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Reads.
    Get,
    /// Makes or asks.
    Post,
    /// Changes what is given.
    Patch,
    /// Removes.
    Delete,
}

impl Method {
    /// As OpenAPI names it.
    pub fn word(self) -> &'static str {
        match self {
            Method::Get => "get",
            Method::Post => "post",
            Method::Patch => "patch",
            Method::Delete => "delete",
        }
    }

    fn filter(self) -> MethodFilter {
        match self {
            Method::Get => MethodFilter::GET,
            Method::Post => MethodFilter::POST,
            Method::Patch => MethodFilter::PATCH,
            Method::Delete => MethodFilter::DELETE,
        }
    }
}

/// Describes a type.
pub type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// What a success carries.
#[derive(Clone, Copy)]
pub enum Content {
    /// JSON of this form.
    Json(SchemaOf),
    /// Prometheus text.
    Text,
}

/// A method at a path.
pub struct Operation {
    /// Method.
    pub method: Method,
    /// Path; a part in braces is the operation's one parameter.
    pub path: &'static str,
    /// Unique, for code generators.
    pub id: &'static str,
    /// One sentence.
    pub summary: &'static str,
    /// Who may ask.
    pub role: Role,
    /// The body that it takes.
    pub request: Option<SchemaOf>,
    /// A query parameter: its name, and what it means; an unsigned number.
    pub query: Option<(&'static str, &'static str)>,
    /// The answer.
    pub answer: Content,
    /// What serves it.
    pub(super) route: MethodRouter<App>,
}

/// What every operation needs, however it is called: method, path, id, role, summary.
#[derive(Clone, Copy)]
struct Head(Method, &'static str, &'static str, Role, &'static str);

impl Head {
    fn make(self, request: Option<SchemaOf>, answer: Content, route: MethodRouter<App>) -> Operation {
        let Head(method, path, id, role, summary) = self;
        Operation { method, path, id, summary, role, request, query: None, answer, route }
    }
}

fn of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

/// Neither a parameter nor a body.
fn plain<A: JsonSchema>(head: Head, call: AdminCall) -> Operation {
    let Head(method, _, _, role, _) = head;
    head.make(None, Content::Json(of::<A>), on(method.filter(), move |s: Ctx| s.call(role, call)))
}

/// Prometheus text.
fn text(head: Head, call: AdminCall) -> Operation {
    let Head(method, _, _, role, _) = head;
    head.make(None, Content::Text, on(method.filter(), move |s: Ctx| s.call(role, call)))
}

/// What came after a number.
fn after<A: JsonSchema>(head: Head, words: &'static str, call: fn(u64) -> AdminCall) -> Operation {
    let Head(method, _, _, role, _) = head;
    let route = on(method.filter(), async move |after: After, s: Ctx| s.call_after(role, after, call).await);
    Operation { query: Some(("after", words)), ..head.make(None, Content::Json(of::<A>), route) }
}

/// A thing by its name.
fn named<A: JsonSchema, F>(head: Head, call: F) -> Operation
where
    F: Fn(String) -> AdminCall + Clone + Send + Sync + 'static,
{
    let Head(method, _, _, role, _) = head;
    let route = on(method.filter(), async move |name: Name, s: Ctx| s.call_named(role, name, call).await);
    head.make(None, Content::Json(of::<A>), route)
}

/// A body.
fn asked<R, A, F>(head: Head, call: F) -> Operation
where
    R: DeserializeOwned + JsonSchema + Send + 'static,
    A: JsonSchema,
    F: Fn(R) -> AdminCall + Clone + Send + Sync + 'static,
{
    let Head(method, _, _, role, _) = head;
    let route = on(method.filter(), async move |s: Ctx, body: Body| s.call_with(role, body, call).await);
    head.make(Some(of::<R>), Content::Json(of::<A>), route)
}

/// A body for a thing by its name.
fn named_asked<R, A, F>(head: Head, call: F) -> Operation
where
    R: DeserializeOwned + JsonSchema + Send + 'static,
    A: JsonSchema,
    F: Fn(String, R) -> AdminCall + Clone + Send + Sync + 'static,
{
    let Head(method, _, _, role, _) = head;
    let route = on(method.filter(), async move |name: Name, s: Ctx, body: Body| {
        s.call_named_with(role, name, body, call).await
    });
    head.make(Some(of::<R>), Content::Json(of::<A>), route)
}

/// All of them, in the document's order.
#[rustfmt::skip]
pub fn operations() -> Vec<Operation> {
    use Method::{Delete, Get, Patch, Post};
    use Role::{Anyone, Loopback, Operator, Viewer};
    use types::*;
    vec![
        plain::<Status>(Head(Get, "/v1/status", "getStatus", Viewer,
            "The cluster's health, counts and background copies"), AdminCall::Status),
        plain::<Vec<NodeInfo>>(Head(Get, "/v1/nodes", "listNodes", Viewer, "All nodes and their disks"), AdminCall::Nodes),
        named::<NodeInfo, _>(Head(Get, "/v1/nodes/{name}", "getNode", Viewer, "One node and its disks"), AdminCall::Node),
        named_asked::<NodeStateSet, NodeInfo, _>(Head(Post, "/v1/nodes/{name}/state", "setNodeState", Operator,
            "Drains a node, takes it into maintenance or back, or removes it for good"), AdminCall::NodeState),
        asked::<OkToStopRequest, OkToStop, _>(Head(Post, "/v1/ok-to-stop", "okToStop", Viewer,
            "Whether nodes may be stopped together; changes nothing"), AdminCall::OkToStop),
        plain::<Vec<DiskInfo>>(Head(Get, "/v1/disks", "listDisks", Viewer, "All disks"), AdminCall::Disks),
        plain::<Vec<PoolInfo>>(Head(Get, "/v1/pools", "listPools", Viewer, "All pools"), AdminCall::Pools),
        asked::<PoolCreate, PoolInfo, _>(Head(Post, "/v1/pools", "createPool", Operator, "Makes a pool"), AdminCall::PoolCreate),
        named::<PoolInfo, _>(Head(Get, "/v1/pools/{name}", "getPool", Viewer, "One pool"), AdminCall::Pool),
        named_asked::<PoolSet, PoolInfo, _>(Head(Patch, "/v1/pools/{name}", "setPool", Operator,
            "Changes a pool; what is absent stays"), AdminCall::PoolSet),
        named::<Done, _>(Head(Delete, "/v1/pools/{name}", "deletePool", Operator, "Deletes an empty pool"), AdminCall::PoolDelete),
        plain::<Vec<VolumeInfo>>(Head(Get, "/v1/volumes", "listVolumes", Viewer, "All volumes"), AdminCall::Volumes),
        asked::<VolumeCreate, VolumeInfo, _>(Head(Post, "/v1/volumes", "createVolume", Operator, "Makes a volume"),
            AdminCall::VolumeCreate),
        named::<VolumeInfo, _>(Head(Get, "/v1/volumes/{name}", "getVolume", Viewer,
            "One volume, with how safe its chunks are"), AdminCall::Volume),
        named_asked::<VolumeSet, VolumeInfo, _>(Head(Patch, "/v1/volumes/{name}", "setVolume", Operator,
            "Changes a volume's size, priority or limits; what is absent stays"), AdminCall::VolumeSet),
        named::<Done, _>(Head(Delete, "/v1/volumes/{name}", "deleteVolume", Operator, "Deletes a volume and its data"),
            AdminCall::VolumeDelete),
        plain::<Vec<PgInfo>>(Head(Get, "/v1/pgs", "listPgs", Viewer, "All placement groups"), AdminCall::Pgs),
        named::<PgInfo, _>(Head(Get, "/v1/pgs/{id}", "getPg", Viewer, "One placement group"), AdminCall::Pg),
        named_asked::<ForcePromoteRequest, ForcePromoteReply, _>(Head(Post, "/v1/pgs/{id}/force-promote", "forcePromote", Operator,
            "The last resort for an unavailable placement group: one copy leads; without `accept_data_loss` it only says what would be lost"),
            AdminCall::ForcePromote),
        plain::<MapSummary>(Head(Get, "/v1/map", "getMap", Viewer, "The whole map"), AdminCall::Map),
        plain::<crate::core::placement::MapFile>(Head(Get, "/v1/map/export", "exportMap", Viewer,
            "The map file that `evenkeel plan --map` reads"), AdminCall::MapExport),
        asked::<PlanRequest, PlanReply, _>(Head(Post, "/v1/plan", "plan", Viewer,
            "What would move, how much and how long; changes nothing"), AdminCall::Plan),
        plain::<ResyncInfo>(Head(Get, "/v1/resync", "getResync", Viewer,
            "The throttle as it is in effect, and the copies that run"), AdminCall::Resync),
        asked::<ResyncSet, ResyncInfo, _>(Head(Patch, "/v1/resync", "setResync", Operator,
            "Changes the throttle; what is absent stays"), AdminCall::ResyncSet),
        plain::<Vec<JobInfo>>(Head(Get, "/v1/jobs", "listJobs", Viewer, "The last 100 jobs, newest first"), AdminCall::Jobs),
        named::<JobInfo, _>(Head(Get, "/v1/jobs/{id}", "getJob", Viewer, "One job"), AdminCall::Job),
        named::<JobChanged, _>(Head(Post, "/v1/jobs/{id}/pause", "pauseJob", Operator, "Holds a job back"),
            |id| AdminCall::JobChange(id, JobChange::Pause)),
        named::<JobChanged, _>(Head(Post, "/v1/jobs/{id}/resume", "resumeJob", Operator,
            "Lets a job go on; a cancelled one is planned anew"), |id| AdminCall::JobChange(id, JobChange::Resume)),
        named::<JobChanged, _>(Head(Post, "/v1/jobs/{id}/cancel", "cancelJob", Operator,
            "Gives up a job's drains and rebalances"), |id| AdminCall::JobChange(id, JobChange::Cancel)),
        after::<Vec<Event>>(Head(Get, "/v1/events", "listEvents", Viewer, "What happened, oldest first"),
            "Only events with a higher id; default 0", |after| AdminCall::Events { after }),
        asked::<TokenCreate, TokenCreated, _>(Head(Post, "/v1/tokens", "createToken", Operator,
            "Makes a single-use join token"), AdminCall::TokenCreate),
        asked::<JoinRequest, JoinReply, _>(Head(Post, "/v1/join", "join", Anyone,
            "A process trades a join token, which is its proof, for a certificate"), AdminCall::Join),
        asked::<CertificateRequest, JoinReply, _>(Head(Post, "/v1/certificates", "createCertificate", Operator,
            "A gateway or a command trades the operator's token for a short-lived certificate"), AdminCall::Certificate),
        plain::<Vec<ScrapeTarget>>(Head(Get, "/v1/prometheus/targets", "listScrapeTargets", Loopback,
            "Where all daemons' metrics are, for Prometheus' HTTP service discovery"), AdminCall::ScrapeTargets),
        Head(Get, "/v1/openapi.json", "getOpenApi", Anyone, "This document")
            .make(None, Content::Json(of::<serde_json::Map<String, serde_json::Value>>), get(document)),
        text(Head(Get, "/metrics", "getMetrics", Loopback, "The coordinator's metrics"), AdminCall::Metrics),
    ]
}
