//! The admin API's client: finds the cluster, sends requests, turns failures into one sentence.
//!
//! Invariants: every request has a deadline; every answer has a bound; the token is sent to loopback addresses only,
//! because this release's admin API is plain HTTP.
//!
//! Non-goals: retrying. Who waits (`wait`, `watch`, `dev`) does so itself and says so.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::api::types::{ApiError, ClusterFile, NodeInfo, Status};

use super::args::GlobalArgs;

/// Connecting on loopback takes microseconds; a coordinator that hasn't accepted after this is frozen.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// The coordinator answers from memory, in milliseconds.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// A plan over the whole map takes a few seconds for 10,000 disks; a loaded machine may need longer.
pub const PLAN_TIMEOUT: Duration = Duration::from_secs(60);
/// A map of 2^20 PG replicas is about 200 MB of JSON.
const ANSWER_BYTES_MAX: u64 = 512 << 20;
/// Cluster and token files are tiny; more than this is another file.
const SMALL_FILE_BYTES_MAX: u64 = 1 << 20;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum RequestApi {
    /// Neither options nor variables say which cluster.
    #[error(
        "which cluster? give --cluster D/cluster.json (or set EVENKEEL_CLUSTER), or --api URL with --token-file FILE"
    )]
    NoCluster,
    /// A file that the options name can't be read.
    #[error("can't read the {what} {path}: {source}")]
    ReadFile { what: &'static str, path: PathBuf, source: io::Error },
    /// A file that the options name has other content.
    #[error("{path} is not a {what}: {problem}")]
    FileMalformed { what: &'static str, path: PathBuf, problem: String },
    /// The URL isn't one that this client may use.
    #[error("{url:?} is not a usable admin URL: {problem}")]
    UrlMalformed { url: String, problem: &'static str },
    /// Nobody answers.
    #[error(
        "the coordinator at {url} does not answer ({problem}); check that `evenkeel coordinator run` (or `evenkeel dev`) \
         is up there and that the address is right"
    )]
    Unreachable { url: String, problem: String },
    /// The coordinator says no.
    #[error("{message}")]
    Refused { status: u16, message: String },
    /// Something answers, but not as the API does.
    #[error("{url} answered something that is not the admin API's: {problem}")]
    AnswerMalformed { url: String, problem: String },
}

impl RequestApi {
    /// True if trying again later can help without anyone changing the request.
    pub fn is_transient(&self) -> bool {
        matches!(self, RequestApi::Unreachable { .. } | RequestApi::Refused { status: 502..=504, .. })
    }

    /// True if the named thing isn't there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, RequestApi::Refused { status: 404, .. })
    }

    /// True if the named thing is there already.
    pub fn is_conflict(&self) -> bool {
        matches!(self, RequestApi::Refused { status: 409, .. })
    }
}

/// Where a cluster's API is and what opens it.
#[derive(Clone, PartialEq, Eq)]
pub struct Access {
    /// Base URL without a slash at its end.
    pub api: String,
    /// Bearer token.
    pub token: String,
}

impl std::fmt::Debug for Access {
    /// Without the token, which must not reach a log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Access").field("api", &self.api).finish_non_exhaustive()
    }
}

impl Access {
    /// From the options: `--api` with `--token-file` wins over `--cluster`, as the more explicit one.
    ///
    /// # Errors
    /// No cluster is named, or a named file can't be read or has other content.
    pub fn find(global: &GlobalArgs) -> Result<Access, RequestApi> {
        // An empty variable is as good as none.
        let path = |p: &Option<PathBuf>| p.clone().filter(|p| !p.as_os_str().is_empty());
        let named = global.api.clone().filter(|a| !a.is_empty());
        let (api, token_file) = match (&named, &path(&global.token_file), &path(&global.cluster)) {
            (Some(api), Some(token_file), _) => (api.clone(), token_file.clone()),
            (None, None, Some(cluster)) => {
                let file = read_cluster_file(cluster)?;
                (file.api, resolve(cluster, &file.token_file))
            }
            (Some(api), None, Some(cluster)) => {
                (api.clone(), resolve(cluster, &read_cluster_file(cluster)?.token_file))
            }
            (None, Some(token_file), Some(cluster)) => (read_cluster_file(cluster)?.api, token_file.clone()),
            _ => return Err(RequestApi::NoCluster),
        };
        let token = read_small(&token_file, "token file")?.trim().to_owned();
        if token.is_empty() || !token.chars().all(|c| c.is_ascii_graphic()) {
            return Err(RequestApi::FileMalformed {
                what: "token file",
                path: token_file,
                problem: "it must hold one line with the token".to_owned(),
            });
        }
        Ok(Access { api: checked_url(&api)?, token })
    }
}

/// A path in a cluster file is absolute, or relative to the file.
fn resolve(cluster: &Path, named: &str) -> PathBuf {
    cluster.parent().unwrap_or(Path::new("")).join(named)
}

/// Reads a cluster file.
///
/// # Errors
/// It can't be read, or is no cluster file.
pub fn read_cluster_file(path: &Path) -> Result<ClusterFile, RequestApi> {
    let text = read_small(path, "cluster file")?;
    serde_json::from_str(&text).map_err(|e| RequestApi::FileMalformed {
        what: "cluster file",
        path: path.to_owned(),
        problem: e.to_string(),
    })
}

fn read_small(path: &Path, what: &'static str) -> Result<String, RequestApi> {
    let fail = |source| RequestApi::ReadFile { what, path: path.to_owned(), source };
    let size = std::fs::metadata(path).map_err(fail)?.len();
    if size > SMALL_FILE_BYTES_MAX {
        return Err(RequestApi::FileMalformed { what, path: path.to_owned(), problem: format!("it has {size} bytes") });
    }
    std::fs::read_to_string(path).map_err(fail)
}

/// The URL without a trailing slash, if the token may be sent there.
fn checked_url(url: &str) -> Result<String, RequestApi> {
    let bad = |problem| RequestApi::UrlMalformed { url: url.to_owned(), problem };
    let trimmed = url.trim_end_matches('/');
    let authority = match trimmed.split_once("://") {
        Some(("http", rest)) => rest,
        Some(("https", _)) => {
            return Err(bad(
                "this release's admin API is plain HTTP on loopback; reach a distant one through a tunnel",
            ));
        }
        _ => return Err(bad("it must begin with http://, as in http://127.0.0.1:7400")),
    };
    if authority.is_empty() || authority.contains(['/', '@', '?', '#', ' ']) {
        return Err(bad("write http://ADDRESS:PORT and nothing after it"));
    }
    let host = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((v6, _)) => v6,
        None => authority.rsplit_once(':').map_or(authority, |(host, _)| host),
    };
    let loopback = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    if !loopback {
        return Err(bad("the token travels over loopback only; reach a distant coordinator through a tunnel (ssh -L)"));
    }
    Ok(trimmed.to_owned())
}

/// A cluster's API.
#[derive(Clone, Debug)]
pub struct Client {
    agent: ureq::Agent,
    access: Access,
    timeout: Duration,
}

impl Client {
    /// A client; connects at the first request.
    pub fn new(access: Access) -> Self {
        let config = ureq::Agent::config_builder()
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .http_status_as_error(false)
            // A proxy from the environment must not see the token.
            .proxy(None)
            .max_redirects(0)
            .build();
        Client { agent: config.into(), access, timeout: REQUEST_TIMEOUT }
    }

    /// The same client with another deadline for each request.
    pub fn within(&self, timeout: Duration) -> Client {
        Client { timeout, ..self.clone() }
    }

    /// Base URL and token.
    pub fn access(&self) -> &Access {
        &self.access
    }

    /// GET; the answer's text as it is.
    ///
    /// # Errors
    /// See [`RequestApi`]; so for all methods.
    pub fn get_text(&self, path: &str) -> Result<String, RequestApi> {
        let request = self.agent.get(self.url(path)).header("Authorization", self.bearer());
        self.finish(request.config().timeout_global(Some(self.timeout)).build().call())
    }

    /// GET; decoded.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, RequestApi> {
        self.decode(&self.get_text(path)?)
    }

    /// POST; the answer's text.
    pub fn post_text(&self, path: &str, body: &impl Serialize) -> Result<String, RequestApi> {
        let request = self.agent.post(self.url(path)).header("Authorization", self.bearer());
        self.finish(request.config().timeout_global(Some(self.timeout)).build().send_json(body))
    }

    /// POST; decoded.
    pub fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, RequestApi> {
        self.decode(&self.post_text(path, body)?)
    }

    /// PATCH; the answer's text.
    pub fn patch_text(&self, path: &str, body: &impl Serialize) -> Result<String, RequestApi> {
        let request = self.agent.patch(self.url(path)).header("Authorization", self.bearer());
        self.finish(request.config().timeout_global(Some(self.timeout)).build().send_json(body))
    }

    /// PATCH; decoded.
    pub fn patch<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, RequestApi> {
        self.decode(&self.patch_text(path, body)?)
    }

    /// DELETE; the answer's text.
    pub fn delete_text(&self, path: &str) -> Result<String, RequestApi> {
        let request = self.agent.delete(self.url(path)).header("Authorization", self.bearer());
        self.finish(request.config().timeout_global(Some(self.timeout)).build().call())
    }

    /// The cluster's status.
    pub fn status(&self) -> Result<Status, RequestApi> {
        self.get("/v1/status")
    }

    /// All nodes.
    pub fn nodes(&self) -> Result<Vec<NodeInfo>, RequestApi> {
        self.get("/v1/nodes")
    }

    /// An answer's text, decoded.
    pub fn decode<T: DeserializeOwned>(&self, text: &str) -> Result<T, RequestApi> {
        serde_json::from_str(text)
            .map_err(|e| RequestApi::AnswerMalformed { url: self.access.api.clone(), problem: e.to_string() })
    }

    /// Text of another daemon's page that needs no token, such as a node's `/metrics`.
    pub fn get_open(&self, base: &str, path: &str) -> Result<String, RequestApi> {
        let base = checked_url(base)?;
        let request = self.agent.get(format!("{base}{path}"));
        self.finish(request.config().timeout_global(Some(self.timeout)).build().call())
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.access.api)
    }

    fn bearer(&self) -> String {
        format!("Bearer {}", self.access.token)
    }

    fn finish(&self, outcome: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Result<String, RequestApi> {
        let mut response = outcome.map_err(|e| self.unreachable(&e))?;
        let status = response.status().as_u16();
        let text = response
            .body_mut()
            .with_config()
            .limit(ANSWER_BYTES_MAX)
            .lossy_utf8(true)
            .read_to_string()
            .map_err(|e| self.unreachable(&e))?;
        if (200..300).contains(&status) {
            return Ok(text);
        }
        let message = match serde_json::from_str::<ApiError>(&text) {
            Ok(error) => error.error,
            Err(_) => {
                let excerpt: String = text.chars().filter(|c| !c.is_control()).take(200).collect();
                format!("{} refused the request with status {status} {excerpt}", self.access.api).trim_end().to_owned()
            }
        };
        Err(RequestApi::Refused { status, message })
    }

    fn unreachable(&self, error: &ureq::Error) -> RequestApi {
        let problem = match error {
            ureq::Error::Io(e) if e.kind() == io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
            ureq::Error::Timeout(_) => "no answer in time".to_owned(),
            other => other.to_string(),
        };
        RequestApi::Unreachable { url: self.access.api.clone(), problem }
    }
}

/// One path segment: what isn't plain is percent-encoded, so that no name can reach another endpoint.
pub fn segment(name: &str) -> String {
    use std::fmt::Write;
    let mut out = String::new();
    let only_dots = name.chars().all(|c| c == '.');
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => out.push(char::from(byte)),
            b'.' if !only_dots => out.push('.'),
            _ => {
                let _ = write!(out, "%{byte:02X}");
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn the_token_goes_to_loopback_only() {
        for good in ["http://127.0.0.1:7400", "http://127.0.0.1:7400/", "http://[::1]:7400", "http://localhost:1"] {
            assert!(checked_url(good).is_ok(), "{good}");
        }
        for bad in [
            "127.0.0.1:7400",
            "https://127.0.0.1:7400",
            "http://10.0.0.1:7400",
            "http://example.org",
            "http://127.0.0.1.example.org:80",
            "http://user@127.0.0.1:7400",
            "http://127.0.0.1:7400/v1",
            "http://",
            "",
        ] {
            assert!(checked_url(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_cannot_leave_their_segment() {
        assert_eq!(segment("vm-1_a.raw"), "vm-1_a.raw");
        assert_eq!(segment("a/b?c d"), "a%2Fb%3Fc%20d");
        assert_eq!(segment(".."), "%2E%2E");
    }

    #[test]
    fn a_cluster_file_names_the_api_and_the_token() {
        let dir = tempfile::tempdir().unwrap();
        let cluster = dir.path().join("cluster.json");
        let daemon = serde_json::json!({"pid": 1, "addr": "127.0.0.1:2", "admin_url": "http://127.0.0.1:3"});
        let file = serde_json::json!({
            "api": "http://127.0.0.1:3", "token_file": "token", "coordinator": daemon, "nodes": []
        });
        std::fs::write(&cluster, file.to_string()).unwrap();
        let global = GlobalArgs { cluster: Some(cluster.clone()), ..GlobalArgs::default() };
        assert!(matches!(Access::find(&global), Err(RequestApi::ReadFile { what: "token file", .. })));
        std::fs::write(dir.path().join("token"), "secret\n").unwrap();
        let access = Access::find(&global).unwrap();
        assert_eq!((access.api.as_str(), access.token.as_str()), ("http://127.0.0.1:3", "secret"));
        assert!(!format!("{access:?}").contains("secret"));
        std::fs::write(&cluster, "{}").unwrap();
        assert!(matches!(Access::find(&global), Err(RequestApi::FileMalformed { .. })));
        assert!(matches!(Access::find(&GlobalArgs::default()), Err(RequestApi::NoCluster)));
    }

    /// Answers one request with the given bytes, and returns what was asked.
    fn serve_once(answer: &'static str) -> (String, std::thread::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut seen = Vec::new();
            let mut buffer = [0; 4096];
            while !seen.windows(4).any(|w| w == b"\r\n\r\n") {
                let n = stream.read(&mut buffer).unwrap();
                assert_ne!(n, 0, "the client closed before its request was complete");
                seen.extend_from_slice(&buffer[..n]);
            }
            stream.write_all(answer.as_bytes()).unwrap();
            String::from_utf8_lossy(&seen).into_owned()
        });
        (url, thread)
    }

    fn client(api: String) -> Client {
        Client::new(Access { api, token: "secret".to_owned() })
    }

    #[test]
    fn the_api_s_own_sentence_is_the_error() {
        let (url, thread) = serve_once(
            "HTTP/1.1 404 Not Found\r\ncontent-length: 23\r\nconnection: close\r\n\r\n{\"error\":\"no volume x\"}\n",
        );
        let error = client(url).get_text("/v1/volumes/x").unwrap_err();
        assert_eq!(error.to_string(), "no volume x");
        assert!(error.is_not_found() && !error.is_transient());
        let request = thread.join().unwrap().to_ascii_lowercase();
        assert!(request.starts_with("get /v1/volumes/x ") && request.contains("authorization: bearer secret"));
    }

    #[test]
    fn nobody_there_is_said_with_the_address() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        let error = client(url.clone()).status().unwrap_err();
        assert!(error.is_transient());
        assert!(error.to_string().contains(&url) && error.to_string().contains("connection refused"), "{error}");
    }

    #[test]
    fn garbage_is_not_taken_for_an_answer() {
        let (url, thread) = serve_once("HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello");
        assert!(matches!(client(url).status(), Err(RequestApi::AnswerMalformed { .. })));
        thread.join().unwrap();
    }
}
