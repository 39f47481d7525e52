//! What an admin listener refuses before any route sees it: requests that a foreign page makes a browser send, and readers
//! without a right to read.
//!
//! A daemon answers some paths on loopback without a token, and a browser shows its certificate to every page that asks. So
//! a page from elsewhere could read or change things through the browser of somebody on this host. Two checks stop that:
//! plain HTTP is answered only under a name that no stranger can point at this host (DNS rebinding), and a request that
//! changes something must not come from a page of another origin.
//!
//! Non-goals: roles of the coordinator's API (its router's business).

use axum::Router;
use axum::extract::{ConnectInfo, Request};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};

use super::admin::AdminPeer;
use super::identity::RoleKind;

const FOREIGN_HOST: &str = "this address answers under its IP address, as localhost or under a name without dots: the name in the URL \
                            could be made to point here by anybody";
const FOREIGN_ORIGIN: &str = "the request comes from a page of another origin: changes are made from this daemon's own console or \
                              without a browser";
const NO_READER: &str = "beyond this host, this needs a client certificate of an operator or a viewer: give it to the client, or come \
                         through a tunnel to this host's loopback address";

/// Refuses what browsers are tricked into. `check_host`: TLS isn't there to check the name.
pub fn same_site(router: Router, check_host: bool) -> Router {
    router.layer(from_fn(move |request: Request, next: Next| async move {
        if check_host && !is_own_name(host_of(&request)) {
            return refused(StatusCode::MISDIRECTED_REQUEST, FOREIGN_HOST);
        }
        let changes = !matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
        if changes && is_foreign(request.headers(), host_of(&request)) {
            return refused(StatusCode::FORBIDDEN, FOREIGN_ORIGIN);
        }
        next.run(request).await
    }))
}

/// Lets through whoever is on this host, or holds a certificate of an operator or a viewer.
pub fn readers_only(router: Router) -> Router {
    router.layer(from_fn(|request: Request, next: Next| async move {
        let peer = request.extensions().get::<ConnectInfo<AdminPeer>>().map(|c| &c.0);
        if peer.is_some_and(AdminPeer::may_read) {
            return next.run(request).await;
        }
        refused(StatusCode::UNAUTHORIZED, NO_READER)
    }))
}

impl AdminPeer {
    /// It is on this host.
    pub fn is_loopback(&self) -> bool {
        self.addr.ip().to_canonical().is_loopback()
    }

    /// On this host, or a known reader.
    pub fn may_read(&self) -> bool {
        let role = self.identity.as_ref().map(|i| i.role.kind());
        self.is_loopback() || matches!(role, Some(RoleKind::Operator | RoleKind::Viewer))
    }
}

fn host_of(request: &Request) -> Option<&str> {
    let header = request.headers().get(header::HOST).and_then(|h| h.to_str().ok());
    request.uri().authority().map(|a| a.as_str()).or(header)
}

/// A name that only this host's own side can give: an address, `localhost`, or a name that no public zone holds.
fn is_own_name(host: Option<&str>) -> bool {
    // HTTP/1.0 clients send none, browsers always do.
    let Some(host) = host else { return true };
    if host.starts_with('[') {
        return true;
    }
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name).trim_end_matches('.');
    name.parse::<std::net::IpAddr>().is_ok() || !name.contains('.') || name.ends_with(".localhost")
}

/// A browser says where the page is from; other clients say nothing.
fn is_foreign(headers: &HeaderMap, host: Option<&str>) -> bool {
    let text = |v: &HeaderValue| v.to_str().unwrap_or("null").to_owned();
    let Some(origin) = headers.get(header::ORIGIN).map(text) else {
        return headers.get("sec-fetch-site").is_some_and(|v| !matches!(v.to_str(), Ok("same-origin" | "none")));
    };
    let authority = origin.split_once("://").map(|(_, authority)| authority);
    authority.is_none() || authority != host
}

fn refused(status: StatusCode, why: &str) -> Response {
    let body = serde_json::json!({ "error": why }).to_string();
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_strangers_can_give_are_not_own() {
        let own =
            ["127.0.0.1:7400", "localhost:7400", "localhost", "[::1]:7400", "host1:7400", "a.localhost:1", "10.0.0.7"];
        for name in own {
            assert!(is_own_name(Some(name)), "{name}");
        }
        for name in ["evil.example", "evil.example:7400", "127.0.0.1.evil.example:7400", "localhost.evil.example."] {
            assert!(!is_own_name(Some(name)), "{name}");
        }
        assert!(is_own_name(None));
    }

    #[test]
    fn a_page_of_another_origin_is_foreign() {
        let with = |name: &'static str, value: &'static str| {
            HeaderMap::from_iter([(name.parse().unwrap(), value.parse().unwrap())])
        };
        let host = Some("127.0.0.1:7400");
        assert!(!is_foreign(&HeaderMap::new(), host));
        assert!(!is_foreign(&with("origin", "http://127.0.0.1:7400"), host));
        assert!(is_foreign(&with("origin", "http://127.0.0.1:7401"), host));
        assert!(is_foreign(&with("origin", "https://evil.example"), host));
        assert!(is_foreign(&with("origin", "null"), host));
        assert!(is_foreign(&with("sec-fetch-site", "cross-site"), host));
        assert!(!is_foreign(&with("sec-fetch-site", "same-origin"), host));
    }
}
