//! A real Prometheus that finds the daemons as an operator's does: with the shipped configuration, but for its address and
//! its pace.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::dev::{Daemon, Dev};
use crate::tools::{missing, tail, wait_for};

/// A file of this repository.
pub fn shipped(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The text of one.
pub fn shipped_text(path: &str) -> String {
    fs::read_to_string(shipped(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// A GET; gives the status and the body.
pub fn get(url: &str, query: &[(&str, &str)]) -> (u16, String) {
    let config =
        ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(Duration::from_secs(20)));
    let mut request = ureq::Agent::new_with_config(config.build()).get(url);
    for (key, value) in query {
        request = request.query(key, value);
    }
    match request.call() {
        Ok(mut answer) => (answer.status().as_u16(), answer.body_mut().read_to_string().unwrap_or_default()),
        Err(error) => (0, error.to_string()),
    }
}

/// Replaces what must be there.
fn replaced(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "the configuration has no {from:?}");
    text.replace(from, to)
}

pub struct Prometheus {
    daemon: Daemon,
    url: String,
}

impl Prometheus {
    /// Starts one on a cluster; it scrapes each second.
    pub fn start(dev: &Dev) -> Prometheus {
        let text = shipped_text("deploy/prometheus/config/prometheus.yml");
        let api = dev.cluster()["api"].as_str().expect("a URL").to_owned();
        let text = replaced(&text, "http://127.0.0.1:7400", api.trim_end_matches('/'));
        let text = replaced(&text, "interval: 15s", "interval: 1s");
        let text = replaced(&text, "interval: 30s", "interval: 1s");
        let certificate = dev.path("prometheus-certificate").display().to_string();
        dev.cli(&["certificate", "--name", "prometheus", "--out", &certificate]);
        let text = replaced(&text, "/var/lib/evenkeel-certificate/prometheus", &certificate);
        let text = replaced(
            &text,
            "CLUSTER.evenkeel",
            &format!("{}.evenkeel", dev.status()["cluster"].as_str().expect("an id")),
        );
        let rules = shipped("deploy/prometheus");
        let text = replaced(&text, "- ../", &format!("- {}/", rules.display()));
        let config = dev.path("prometheus.yml");
        fs::write(&config, text).expect("writes the configuration");
        let log = dev.path("prometheus.log");
        // The port may be taken between the look and the start: then another.
        wait_for("prometheus serves", || {
            let free = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port");
            let mut command = Command::new("prometheus");
            command.arg("--config.file").arg(&config).arg("--storage.tsdb.path").arg(dev.path("prometheus"));
            command.arg(format!("--web.listen-address={free}")).arg("--log.level=warn");
            let found = Command::new("prometheus").arg("--version").output();
            if let Err(error) = found {
                panic!("{}", missing(&command, &error));
            }
            let mut daemon = Daemon::spawn(&mut command, &log);
            let url = format!("http://{free}");
            let is_ready = wait_for("prometheus is ready or ends", || match daemon.ended() {
                Some(_) => Some(false),
                None => (get(&format!("{url}/-/ready"), &[]).0 == 200).then_some(true),
            });
            if !is_ready {
                let log = daemon.log_text();
                assert!(log.contains("address already in use"), "prometheus ended: {}", tail(&log, 10));
            }
            is_ready.then_some(Prometheus { daemon, url })
        })
    }

    /// A call of its API: the `data` of the answer, or the error.
    pub fn api(&self, path: &str, query: &[(&str, &str)]) -> Result<Value, String> {
        let (status, body) = get(&format!("{}/api/v1/{path}", self.url), query);
        let answer: Value = serde_json::from_str(&body).map_err(|_| format!("{status}: {body}"))?;
        if answer["status"] == "success" { Ok(answer["data"].clone()) } else { Err(answer["error"].to_string()) }
    }

    /// The samples of an expression now.
    pub fn query(&self, expression: &str) -> Result<Vec<Value>, String> {
        let data = self.api("query", &[("query", expression)])?;
        match data["resultType"].as_str() {
            Some("vector") => Ok(data["result"].as_array().cloned().unwrap_or_default()),
            _ => Ok(vec![data["result"].clone()]),
        }
    }

    /// The one value of an expression; none: it has no samples.
    pub fn value(&self, expression: &str) -> Option<f64> {
        let samples = self.query(expression).unwrap_or_else(|error| panic!("{expression}: {error}"));
        samples.first()?["value"][1].as_str()?.parse().ok()
    }

    /// Scrape URLs of the daemons that are up, by role.
    pub fn targets_up(&self, role: &str) -> Vec<String> {
        let data = self.api("targets", &[]).unwrap_or_default();
        let targets = data["activeTargets"].as_array().cloned().unwrap_or_default();
        let up = targets.iter().filter(|t| t["labels"]["role"] == role && t["health"] == "up");
        up.filter_map(|t| t["scrapeUrl"].as_str().map(str::to_owned)).collect()
    }

    /// Stops it; a clean end.
    pub fn stop(mut self) {
        self.daemon.stop();
    }
}
