//! Serves the page: rendered once for all viewers, only while there are any.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderName, StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::sse::{Event, Sse};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use futures_util::stream;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use tokio::sync::{Mutex, Semaphore};

use super::Page;

/// Streams at a time: a few operators with a few windows each; a stream costs a connection and a task.
pub const STREAMS_MAX: usize = 64;
/// A stream looks for news this often.
const STREAM_INTERVAL: Duration = Duration::from_millis(1000);
/// A rendering younger than this is taken again. Below the interval, so that no stream shows the last one twice.
const FRESH: Duration = Duration::from_millis(700);
/// On a large map rendering takes at most this part of the time.
const COST_SHARE: u32 = 10;
/// A daemon that takes longer doesn't answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Only this daemon's files: nothing inline, no other host, no frame around it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
                      base-uri 'none'; form-action 'self'; frame-ancestors 'none'";
const STYLE: &str = include_str!("console.css");
const SCRIPT: &str = include_str!("console.js");
const ICON: &str = include_str!("icon.svg");

/// Gives the facts of this moment, rendered; nothing if the daemon is stopping.
pub type Source = dyn Fn() -> Pin<Box<dyn Future<Output = Option<Page>> + Send>> + Send + Sync;

/// A rendering.
pub(super) struct Frame {
    page: Page,
    /// Of each section, as a JSON member.
    members: Vec<String>,
    made: Instant,
    cost: Duration,
}

/// What all viewers share.
#[derive(Clone)]
pub struct Hub {
    source: Arc<Source>,
    // Held while one is made: whoever asks meanwhile gets that one.
    last: Arc<Mutex<Option<Arc<Frame>>>>,
    streams: Arc<Semaphore>,
    has_actions: bool,
}

impl Hub {
    /// `has_actions`: the page lets an operator change things, through `/v1`.
    pub fn new(source: Arc<Source>, has_actions: bool) -> Hub {
        Hub { source, last: Arc::default(), streams: Arc::new(Semaphore::new(STREAMS_MAX)), has_actions }
    }

    /// `/` and `/console/…`.
    pub fn routes(&self) -> Router {
        let (page, live) = (self.clone(), self.clone());
        Router::new()
            .route("/", get(move || async move { page.page().await }))
            .route("/console/stream", get(move || async move { live.stream() }))
            .route("/console/console.css", get(async || asset("text/css; charset=utf-8", STYLE)))
            .route("/console/console.js", get(async || asset("text/javascript; charset=utf-8", SCRIPT)))
            .route("/console/icon.svg", get(async || asset("image/svg+xml", ICON)))
            .layer(from_fn(with_headers))
    }

    async fn page(&self) -> Response {
        match self.frame().await {
            Some(frame) => Html(shell(&frame.page, self.has_actions).into_string()).into_response(),
            None => silent(),
        }
    }

    fn stream(&self) -> Response {
        let Ok(permit) = self.streams.clone().try_acquire_owned() else {
            let text =
                format!("{STREAMS_MAX} windows watch this console already: close one, or reload the page by hand\n");
            return (StatusCode::SERVICE_UNAVAILABLE, text).into_response();
        };
        let hub = self.clone();
        // The permit goes with the stream.
        let state = (hub, permit, None::<Arc<Frame>>);
        let events = stream::unfold(state, |(hub, permit, sent)| async move {
            if sent.is_some() {
                tokio::time::sleep(STREAM_INTERVAL).await;
            }
            let frame = hub.frame().await?;
            let event = Event::default().data(news(&frame, sent.as_deref()));
            Some((Ok::<_, std::convert::Infallible>(event), (hub, permit, Some(frame))))
        });
        Sse::new(events).into_response()
    }

    /// The next look renders anew.
    #[cfg(test)]
    pub(super) async fn forget(&self) {
        *self.last.lock().await = None;
    }

    /// The last rendering, or a new one.
    pub(super) async fn frame(&self) -> Option<Arc<Frame>> {
        let mut last = self.last.lock().await;
        if let Some(frame) = last.as_ref()
            && frame.made.elapsed() < FRESH.max(frame.cost * COST_SHARE)
        {
            return Some(frame.clone());
        }
        let began = Instant::now();
        let page = tokio::time::timeout(PATIENCE, (self.source)()).await.ok()??;
        let quoted = |text: &str| serde_json::Value::from(text).to_string();
        let members = page.sections.iter().map(|s| format!("{}:{}", quoted(s.id), quoted(&s.html))).collect();
        let frame = Arc::new(Frame { page, members, made: Instant::now(), cost: began.elapsed() });
        *last = Some(frame.clone());
        Some(frame)
    }
}

/// The sections that differ from those sent before, as one JSON object.
pub(super) fn news(frame: &Frame, sent: Option<&Frame>) -> String {
    let is_new = |at: usize| sent.is_none_or(|s| s.page.sections.get(at) != frame.page.sections.get(at));
    let changed: Vec<&str> =
        (0..frame.members.len()).filter(|at| is_new(*at)).map(|at| frame.members[at].as_str()).collect();
    format!("{{{}}}", changed.join(","))
}

/// What a browser gets at `/`.
#[cfg(test)]
pub(super) fn whole(page: &Page, has_actions: bool) -> String {
    shell(page, has_actions).into_string()
}

/// What the page needs beside itself.
#[cfg(test)]
pub(super) const ASSETS_BYTES: usize = STYLE.len() + SCRIPT.len() + ICON.len();

fn silent() -> Response {
    let text =
        "the daemon does not answer: it is stopping, or has too much to do; the other nodes' pages may tell more\n";
    (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
}

fn asset(kind: &'static str, content: &'static str) -> Response {
    ([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "no-cache")], content).into_response()
}

async fn with_headers(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    let fixed = [
        ("content-security-policy", POLICY),
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "DENY"),
        ("referrer-policy", "no-referrer"),
        ("cross-origin-opener-policy", "same-origin"),
        ("cross-origin-resource-policy", "same-origin"),
    ];
    for (name, value) in fixed {
        headers.insert(HeaderName::from_static(name), header::HeaderValue::from_static(value));
    }
    headers.entry(header::CACHE_CONTROL).or_insert(header::HeaderValue::from_static("no-store"));
    response
}

/// The document around the sections.
fn shell(page: &Page, has_actions: bool) -> Markup {
    let section = |id: &str| page.sections.iter().find(|s| s.id == id).map(|s| PreEscaped(s.html.as_str()));
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                title { (page.title) }
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                link rel="icon" type="image/svg+xml" href="/console/icon.svg";
                link rel="stylesheet" href="/console/console.css";
                script src="/console/console.js" defer {}
                noscript { meta http-equiv="refresh" content="5"; }
            }
            body {
                a.skip href="#main" { "Skip to the content" }
                header.top {
                    div.brand { (PreEscaped(ICON)) span { "Evenkeel" } }
                    div.who #who { @if let Some(html) = section("who") { (html) } }
                    p.link #link data-live="off" { noscript { "reloads each 5 s" } }
                }
                main #main tabindex="-1" {
                    div.health aria-live="polite" {
                        p.lost #lost hidden {}
                        div #health { @if let Some(html) = section("health") { (html) } }
                    }
                    @for s in page.sections.iter().filter(|s| !matches!(s.id, "who" | "health" | "title")) {
                        section.card #(s.id) aria-labelledby={ (s.id) "-title" } { (PreEscaped(s.html.as_str())) }
                    }
                    @if has_actions { (super::cluster::actions()) }
                }
            }
        }
    }
}
