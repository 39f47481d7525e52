//! The coordinator's admin HTTP API: routes, who may call them, and errors as JSON.
//!
//! Every request needs the bearer token or an operator's certificate (viewers may read), except `POST /v1/join`, whose
//! proof is the join token, and the console, `GET /metrics` and `GET /v1/prometheus/targets` from loopback. Bodies are bounded. The router only translates; the
//! daemon that owns the state answers [`AdminMessage`]s.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, patch, post};
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, oneshot};

use super::calls::{Access, AdminCall, AdminMessage, CallFailed, Caller, JobChange};
use super::types::ApiError;

/// Signing requests are the largest bodies, at a few hundred bytes; what-if plans list nodes.
const BODY_BYTES_MAX: usize = 256 << 10;

/// Decides who a caller is, from its headers and the connection.
pub type Authorise = dyn Fn(&axum::http::Extensions, &HeaderMap) -> Access + Send + Sync;

#[derive(Clone)]
struct App {
    calls: mpsc::Sender<AdminMessage>,
    authorise: Arc<Authorise>,
}

/// The routes of `/v1` and `/metrics`, and the console's. `authorise` says who calls.
pub fn router(calls: mpsc::Sender<AdminMessage>, authorise: Arc<Authorise>, console: Router) -> Router {
    let app = App { calls, authorise };
    let console = console.layer(from_fn_with_state(app.clone(), readers_only));
    Router::new()
        .route("/metrics", get(|s: Ctx| s.call(AdminCall::Metrics)))
        .route("/v1/prometheus/targets", get(|s: Ctx| s.call(AdminCall::ScrapeTargets)))
        .route("/v1/status", get(|s: Ctx| s.call(AdminCall::Status)))
        .route("/v1/nodes", get(|s: Ctx| s.call(AdminCall::Nodes)))
        .route("/v1/nodes/{name}", get(|Path(n): Path<String>, s: Ctx| s.call(AdminCall::Node(n))))
        .route(
            "/v1/nodes/{name}/state",
            post(|Path(n): Path<String>, s: Ctx, b: Bytes| s.call_with(b, |r| AdminCall::NodeState(n, r))),
        )
        .route("/v1/ok-to-stop", post(|s: Ctx, b: Bytes| s.call_with(b, AdminCall::OkToStop)))
        .route("/v1/disks", get(|s: Ctx| s.call(AdminCall::Disks)))
        .route("/v1/pools", get(|s: Ctx| s.call(AdminCall::Pools)))
        .route("/v1/pools", post(|s: Ctx, b: Bytes| s.call_with(b, AdminCall::PoolCreate)))
        .route("/v1/pools/{name}", get(|Path(n): Path<String>, s: Ctx| s.call(AdminCall::Pool(n))))
        .route(
            "/v1/pools/{name}",
            patch(|Path(n): Path<String>, s: Ctx, b: Bytes| s.call_with(b, |r| AdminCall::PoolSet(n, r))),
        )
        .route("/v1/pools/{name}", delete(|Path(n): Path<String>, s: Ctx| s.call(AdminCall::PoolDelete(n))))
        .route("/v1/volumes", get(|s: Ctx| s.call(AdminCall::Volumes)))
        .route("/v1/volumes", post(|s: Ctx, b: Bytes| s.call_with(b, AdminCall::VolumeCreate)))
        .route("/v1/volumes/{name}", get(|Path(n): Path<String>, s: Ctx| s.call(AdminCall::Volume(n))))
        .route(
            "/v1/volumes/{name}",
            patch(|Path(n): Path<String>, s: Ctx, b: Bytes| s.call_with(b, |r| AdminCall::VolumeSet(n, r))),
        )
        .route("/v1/volumes/{name}", delete(|Path(n): Path<String>, s: Ctx| s.call(AdminCall::VolumeDelete(n))))
        .route("/v1/pgs", get(|s: Ctx| s.call(AdminCall::Pgs)))
        .route("/v1/pgs/{id}", get(|Path(n): Path<String>, s: Ctx| s.call(AdminCall::Pg(n))))
        .route(
            "/v1/pgs/{id}/force-promote",
            post(|Path(n): Path<String>, s: Ctx, b: Bytes| s.call_with(b, |r| AdminCall::ForcePromote(n, r))),
        )
        .route("/v1/map", get(|s: Ctx| s.call(AdminCall::Map)))
        .route("/v1/map/export", get(|s: Ctx| s.call(AdminCall::MapExport)))
        .route("/v1/plan", post(|s: Ctx, b: Bytes| s.call_with(b, AdminCall::Plan)))
        .route("/v1/resync", get(|s: Ctx| s.call(AdminCall::Resync)))
        .route("/v1/resync", patch(|s: Ctx, b: Bytes| s.call_with(b, AdminCall::ResyncSet)))
        .route("/v1/jobs", get(|s: Ctx| s.call(AdminCall::Jobs)))
        .route("/v1/jobs/{id}", get(|Path(n): Path<String>, s: Ctx| s.call(AdminCall::Job(n))))
        .route("/v1/jobs/{id}/pause", job_change(JobChange::Pause))
        .route("/v1/jobs/{id}/resume", job_change(JobChange::Resume))
        .route("/v1/jobs/{id}/cancel", job_change(JobChange::Cancel))
        .route("/v1/events", get(events))
        .route("/v1/tokens", post(|s: Ctx, b: Bytes| s.call_with(b, AdminCall::TokenCreate)))
        .route("/v1/join", post(|s: Ctx, b: Bytes| s.call_with(b, AdminCall::Join)))
        .route("/v1/certificates", post(|s: Ctx, b: Bytes| s.call_with(b, AdminCall::Certificate)))
        .fallback(async || failed(CallFailed::new(404, "there is nothing at this path: the API is under /v1")))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(app)
        .merge(console)
}

fn job_change(change: JobChange) -> axum::routing::MethodRouter<App> {
    post(move |Path(n): Path<String>, s: Ctx| s.call(AdminCall::JobChange(n, change)))
}

#[derive(serde::Deserialize)]
struct EventsQuery {
    #[serde(default)]
    after: u64,
}

async fn events(query: Result<Query<EventsQuery>, axum::extract::rejection::QueryRejection>, ctx: Ctx) -> Response {
    match query {
        Ok(Query(q)) => ctx.call(AdminCall::Events { after: q.after }).await,
        Err(_) => failed(CallFailed::new(400, "`after` must be an event's number, as in /v1/events?after=17")),
    }
}

/// The console is for whoever is on this host, or is known.
async fn readers_only(ctx: Ctx, request: Request, next: Next) -> Response {
    if ctx.access.loopback || ctx.access.caller != Caller::Anyone {
        return next.run(request).await;
    }
    let text = "beyond the coordinator's host the console needs a client certificate of an operator or a viewer, or a token in \
                `Authorization: Bearer`: give the browser the certificate, or come through a tunnel to the host's loopback address";
    failed(CallFailed::new(401, text))
}

/// The app and who asks.
struct Ctx {
    app: App,
    access: Access,
}

impl axum::extract::FromRequestParts<App> for Ctx {
    type Rejection = std::convert::Infallible;
    async fn from_request_parts(parts: &mut axum::http::request::Parts, app: &App) -> Result<Self, Self::Rejection> {
        let State(app) = State::<App>(app.clone());
        let access = (app.authorise)(&parts.extensions, &parts.headers);
        Ok(Ctx { app, access })
    }
}

impl Ctx {
    async fn call(self, call: AdminCall) -> Response {
        let open = match &call {
            AdminCall::Join(_) => true,
            AdminCall::Metrics | AdminCall::ScrapeTargets => self.access.loopback,
            _ => false,
        };
        match self.access.caller {
            Caller::Operator => {}
            Caller::Viewer if call.is_read() || open => {}
            Caller::Viewer => {
                return failed(CallFailed::new(403, "a viewer may only read: use an operator's token or certificate"));
            }
            Caller::Anyone if open => {}
            Caller::Anyone => return failed(unauthorised()),
        }
        let is_text = matches!(call, AdminCall::Metrics);
        let (reply, answer) = oneshot::channel();
        let stopping = || failed(CallFailed::new(503, "the coordinator is stopping: try again when it is back"));
        if self.app.calls.send(AdminMessage { call, asker: self.access.asker, reply }).await.is_err() {
            return stopping();
        }
        match answer.await {
            Ok(Ok(body)) => {
                let kind = if is_text { "text/plain; version=0.0.4" } else { "application/json" };
                ([(header::CONTENT_TYPE, kind)], body).into_response()
            }
            Ok(Err(failure)) => failed(failure),
            Err(_) => stopping(),
        }
    }

    async fn call_with<T: DeserializeOwned>(self, body: Bytes, make: impl FnOnce(T) -> AdminCall) -> Response {
        // An empty body is an empty request: `POST /v1/plan` without a question asks about now.
        let text: &[u8] = if body.is_empty() { b"{}" } else { &body };
        match serde_json::from_slice(text) {
            Ok(request) => self.call(make(request)).await,
            // A stranger learns nothing of the request's form.
            Err(_) if self.access.caller == Caller::Anyone && !body.starts_with(b"{") => failed(unauthorised()),
            Err(e) => failed(CallFailed::new(400, format!("the request's body is not what this path takes: {e}"))),
        }
    }
}

fn unauthorised() -> CallFailed {
    CallFailed::new(401, "this needs `Authorization: Bearer` with the text of the coordinator's api.token")
}

fn failed(failure: CallFailed) -> Response {
    let status = StatusCode::from_u16(failure.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let body = serde_json::to_vec(&ApiError { error: failure.message }).unwrap_or_default();
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}
