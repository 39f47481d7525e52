//! Beyond loopback a node's and a gateway's pages are for those whose certificate says that they may read.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use evenkeel::api::types::JoinReply;
use evenkeel::net::identity::PendingIdentity;
use serde_json::json;

use crate::dev::{Daemon, Dev, New};
use crate::tools::{run, run_ok, tail, wait_for};

/// An address that is not loopback, on the loopback interface of the test's own network.
const ADDRESS: &str = "10.9.9.9";

/// Status and body of a request from within the network.
fn curl(dev: &Dev, url: &str, extra: &[&str]) -> (String, String) {
    let mut command = dev.network().command(Path::new("curl"));
    // The cluster's CA names roles, not hosts: what is tested is what the server asks for.
    let ended = run(command.args(["-sk", "--max-time", "20", "-w", "\n%{http_code}", url]).args(extra));
    let (body, status) = ended.stdout.rsplit_once('\n').unwrap_or_else(|| panic!("{url}: {}", ended.text()));
    (status.to_owned(), body.to_owned())
}

/// Trades the operator's token for a certificate of a role; gives where it is kept.
fn certificate(dev: &Dev, role: &str) -> PathBuf {
    let pending = PendingIdentity::generate().expect("a key");
    let request = json!({ "role": role, "name": "reader", "csr_pem": pending.request_pem() }).to_string();
    let cluster = dev.cluster();
    let token = std::fs::read_to_string(cluster["token_file"].as_str().expect("a path")).expect("the token");
    let url = format!("{}/v1/certificates", cluster["api"].as_str().expect("an URL").trim_end_matches('/'));
    let bearer = format!("Authorization: Bearer {}", token.trim());
    let (status, body) = curl(dev, &url, &["-H", &bearer, "-H", "Content-Type: application/json", "-d", &request]);
    assert_eq!(status, "200", "{body}");
    let reply: JoinReply = serde_json::from_str(&body).expect("a reply");
    let identity = pending.complete(&reply.certificate_pem, &reply.ca_pem, None).expect("an identity");
    let folder = dev.path(&format!("identity-{role}"));
    identity.save(&folder).expect("saves");
    folder
}

pub fn beyond_loopback_only_known_readers_read() {
    let mut dev = Dev::start_with(New { own_network: true, ..New::default() });
    run_ok(dev.network().command(Path::new("ip")).args(["addr", "add", &format!("{ADDRESS}/32"), "dev", "lo"]));
    dev.create_volume("v", "64MiB");
    let mut gateway = dev.start_gateway("v", &["--admin", &format!("{ADDRESS}:7420")]);
    gateway.wait_serving();
    let mut node = other_node(&dev);

    let stranger = certificate(&dev, "gateway");
    let [operator, viewer] = ["operator", "viewer"].map(|role| certificate_files(&dev, role));
    let with = |folder: &Path| {
        let file = |name: &str| folder.join(name).display().to_string();
        let [cert, key] = if folder == stranger { ["identity.crt", "identity.key"] } else { ["cert.pem", "key.pem"] };
        vec!["--cert".to_owned(), file(cert), "--key".to_owned(), file(key)]
    };
    let urls = ["7411/", "7411/metrics", "7411/debug/pg/1.0", "7411/console/stream", "7420/metrics"];
    for url in urls.map(|rest| format!("https://{ADDRESS}:{rest}")) {
        for (who, args) in [("nobody", Vec::new()), ("a gateway", with(&stranger))] {
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            let (status, body) = curl(&dev, &url, &args);
            assert!(status == "401" && body.contains("client certificate"), "{who} at {url}: {status} {body}");
        }
        // Without an end; what it begins with is in the browser's tests.
        if url.ends_with("/stream") {
            continue;
        }
        for (who, folder) in [("an operator", &operator), ("a viewer", &viewer)] {
            let args = with(folder);
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            let (status, body) = curl(&dev, &url, &args);
            assert!(status == "200" && !body.is_empty(), "{who} at {url}: {status} {body}");
        }
    }
    for port in [7411, 7420] {
        a_scraper_that_trusts_only_the_ca_reads(&dev, &viewer, port);
    }
    let (status, body) = curl(&dev, &format!("http://{ADDRESS}:7411/metrics"), &[]);
    assert!(status == "400" && body.contains("https://"), "{status} {body}");
    node.stop();
    drop(gateway);
    dev.finish();
}

/// `evenkeel certificate`, twice: the second keeps what the first made.
fn certificate_files(dev: &Dev, role: &str) -> PathBuf {
    let folder = dev.path(&format!("certificate-{role}"));
    let out = folder.display().to_string();
    let ask =
        |role: &str| dev.try_cli(&["certificate", "--role", role, "--name", "reader", "--out", &out, "-o", "json"]);
    let [first, second] = [ask(role), ask(role)].map(|ended| {
        assert!(ended.status.success(), "{}", ended.text());
        serde_json::from_str::<serde_json::Value>(&ended.stdout).expect("JSON")
    });
    assert_eq!([&first["renewed"], &second["renewed"]], [true, false], "{first} {second}");
    assert_eq!(first["expires_unix_seconds"], second["expires_unix_seconds"]);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let end = first["expires_unix_seconds"].as_u64().expect("a time");
    assert!(end > now && end <= now + 86_400, "it lasts until {end}, now it is {now}");
    let mode = std::fs::metadata(folder.join("key.pem")).expect("a key").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let other = ask(if role == "viewer" { "operator" } else { "viewer" });
    assert!(!other.status.success() && other.stderr.contains("choose another directory"), "{}", other.text());
    let events = dev.cli(&["events"]);
    assert!(events.contains(&format!("{role} reader got a short-lived certificate")), "{events}");
    folder
}

/// As Prometheus does it: the certificate, the cluster's CA, and the name that all daemons have.
fn a_scraper_that_trusts_only_the_ca_reads(dev: &Dev, folder: &Path, port: u16) {
    let file = |name: &str| folder.join(name).display().to_string();
    let name = format!("{}.evenkeel", dev.status()["cluster"].as_str().expect("an id"));
    let url = format!("https://{name}:{port}/metrics");
    let mut command = dev.network().command(Path::new("curl"));
    command.args(["-sS", "--fail", "--max-time", "20", "--connect-to", &format!("::{ADDRESS}:{port}"), &url]);
    command.args(["--cacert", &file("ca.pem"), "--cert", &file("cert.pem"), "--key", &file("key.pem")]);
    let metrics = run_ok(&mut command);
    assert!(metrics.contains("evenkeel_build_info"), "{metrics}");
}

/// A fourth node whose admin address others could reach.
fn other_node(dev: &Dev) -> Daemon {
    let token = dev.cli(&["token", "create", "--role", "node"]);
    let (folder, disk) = (dev.path("n9"), dev.path("n9-disk"));
    let api = dev.cluster()["api"].as_str().expect("an URL").to_owned();
    let disk = format!("{},size=1GiB", disk.display());
    let admin = format!("{ADDRESS}:7411");
    let mut command = dev.command();
    command.args(["node", "run", "--name", "n9", "--listen", "127.0.1.9:0", "--api", &api, "--admin", &admin]);
    command.args(["--disk", &disk, "--join-token", token.trim(), "--dir"]).arg(&folder);
    let mut node = Daemon::spawn(&mut command, &dev.path("n9.log"));
    wait_for("the node serves", || {
        let ended = node.ended();
        assert!(ended.is_none(), "the node ended: {}", tail(&node.log_text(), 20));
        folder.join("run.json").exists().then_some(())
    });
    node
}
