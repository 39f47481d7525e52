//! The coordinator's admin HTTP API: routes, who may call them, and errors as JSON.
//!
//! Every request needs the bearer token or an operator's certificate (viewers may read), except `POST /v1/join`, whose
//! proof is the join token, and the console, `GET /metrics` and `GET /v1/prometheus/targets` from loopback. Bodies are bounded. The router only translates; the
//! daemon that owns the state answers [`AdminMessage`]s.

use std::sync::{Arc, LazyLock};

use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Path, Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, oneshot};

use super::calls::{Access, AdminCall, AdminMessage, CallFailed, Caller};
use super::operations::{Role, operations};
use super::types::ApiError;

/// Signing requests are the largest bodies, at a few hundred bytes; what-if plans list nodes.
const BODY_BYTES_MAX: usize = 256 << 10;

/// Decides who a caller is, from its headers and the connection.
pub type Authorise = dyn Fn(&axum::http::Extensions, &HeaderMap) -> Access + Send + Sync;

/// What every route shares.
#[derive(Clone)]
pub(super) struct App {
    calls: mpsc::Sender<AdminMessage>,
    authorise: Arc<Authorise>,
}

/// The routes of `/v1` and `/metrics`, and the console's. `authorise` says who calls.
pub fn router(calls: mpsc::Sender<AdminMessage>, authorise: Arc<Authorise>, console: Router) -> Router {
    let app = App { calls, authorise };
    let console = console.layer(from_fn_with_state(app.clone(), readers_only));
    let routes = operations().into_iter().fold(Router::new(), |router, o| router.route(o.path, o.route));
    routes
        .fallback(async || failed(CallFailed::new(404, "there is nothing at this path: the API is under /v1")))
        .method_not_allowed_fallback(async || {
            failed(CallFailed::new(405, "this path takes other methods: /v1/openapi.json has them"))
        })
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(app)
        .merge(console)
}

/// GET /v1/openapi.json
pub(super) async fn document() -> Response {
    static TEXT: LazyLock<String> = LazyLock::new(|| super::openapi::document().to_string());
    ([(header::CONTENT_TYPE, "application/json")], TEXT.as_str()).into_response()
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

/// A query's `after`.
#[derive(serde::Deserialize)]
pub(super) struct AfterQuery {
    #[serde(default)]
    after: u64,
}

/// The number after which what is asked for begins.
pub(super) type After = Result<Query<AfterQuery>, QueryRejection>;
/// The path's parameter.
pub(super) type Name = Result<Path<String>, PathRejection>;
/// The request's body.
pub(super) type Body = Result<Bytes, BytesRejection>;

/// The app and who asks.
pub(super) struct Ctx {
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
    /// Asks, if the caller has the role.
    pub(super) async fn call(self, role: Role, call: AdminCall) -> Response {
        let open = role == Role::Anyone || (role == Role::Loopback && self.access.loopback);
        match self.access.caller {
            Caller::Operator => {}
            Caller::Viewer if role != Role::Operator => {}
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

    pub(super) async fn call_after(self, role: Role, after: After, call: fn(u64) -> AdminCall) -> Response {
        match after {
            Ok(Query(query)) => self.call(role, call(query.after)).await,
            Err(_) => failed(CallFailed::new(400, "`after` must be an event's number, as in /v1/events?after=17")),
        }
    }

    pub(super) async fn call_named(self, role: Role, name: Name, call: impl FnOnce(String) -> AdminCall) -> Response {
        match name {
            Ok(Path(name)) => self.call(role, call(name)).await,
            Err(e) => failed(CallFailed::new(e.status().as_u16(), e.body_text())),
        }
    }

    pub(super) async fn call_named_with<T: DeserializeOwned>(
        self,
        role: Role,
        name: Name,
        body: Body,
        make: impl FnOnce(String, T) -> AdminCall,
    ) -> Response {
        match name {
            Ok(Path(name)) => self.call_with(role, body, |request| make(name, request)).await,
            Err(e) => failed(CallFailed::new(e.status().as_u16(), e.body_text())),
        }
    }

    pub(super) async fn call_with<T: DeserializeOwned>(
        self,
        role: Role,
        body: Body,
        make: impl FnOnce(T) -> AdminCall,
    ) -> Response {
        let body = match body {
            Ok(body) => body,
            Err(e) => return failed(CallFailed::new(e.status().as_u16(), e.body_text())),
        };
        // An empty body is an empty request: `POST /v1/plan` without a question asks about now.
        let text: &[u8] = if body.is_empty() { b"{}" } else { &body };
        match serde_json::from_slice(text) {
            Ok(request) => self.call(role, make(request)).await,
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
