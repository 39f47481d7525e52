//! The described interface and the real one: what a live cluster answers and prints, held against the OpenAPI document and
//! the schemas of `evenkeel schema`, strictly: a field that isn't described is an error.

use std::collections::BTreeSet;

use evenkeel::net::identity::PendingIdentity;
use serde_json::{Value, json};

use crate::dev::Dev;
use crate::tools::wait_for;

/// Objects have the fields that are described, and no others. Clients of the document must take more.
fn forbid_others(schema: &mut Value) {
    match schema {
        Value::Object(keys) => {
            if keys.get("properties").is_some_and(Value::is_object) && !keys.contains_key("additionalProperties") {
                keys.insert("additionalProperties".to_owned(), json!(false));
            }
            keys.values_mut().for_each(forbid_others);
        }
        Value::Array(items) => items.iter_mut().for_each(forbid_others),
        _ => {}
    }
}

fn check(schema: &Value, value: &Value, what: &str) {
    let validator = jsonschema::validator_for(schema).unwrap_or_else(|e| panic!("{what}: the schema is wrong: {e}"));
    let wrong: Vec<String> = validator.iter_errors(value).map(|e| format!("{}: {e}", e.instance_path())).collect();
    assert!(wrong.is_empty(), "{what} is not as described:\n{}\n{value:#}", wrong.join("\n"));
}

/// A client that knows the document.
struct Api {
    base: String,
    agent: ureq::Agent,
    document: Value,
    /// Operations that succeeded.
    done: BTreeSet<String>,
}

impl Api {
    fn new(dev: &Dev) -> Api {
        let base = dev.cluster()["api"].as_str().expect("an URL").trim_end_matches('/').to_owned();
        let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
        // It is no secret: no token.
        let mut answer = agent.get(format!("{base}/v1/openapi.json")).call().expect("answers");
        assert_eq!(answer.status().as_u16(), 200);
        let mut document: Value = answer.body_mut().read_json().expect("JSON");
        let printed: Value = serde_json::from_str(&dev.cli(&["openapi"])).expect("JSON");
        assert_eq!(document, printed, "served and printed are one");
        forbid_others(&mut document["components"]["schemas"]);
        Api { base, agent, document, done: BTreeSet::new() }
    }

    /// A schema within the document, with what it refers to.
    fn schema(&self, pointer: &Value) -> Value {
        let mut schema = pointer.clone();
        schema["components"] = json!({ "schemas": self.document["components"]["schemas"] });
        schema
    }

    /// Asks, and holds question and answer against the document.
    fn ask(&mut self, token: Option<&str>, method: &str, path: &str, name: &str, body: Option<&Value>) -> (u16, Value) {
        let what = format!("{method} {path} ({name})");
        let operation = self.document["paths"][path][method].clone();
        assert!(operation.is_object(), "{what} isn't described");
        let place = path.find('{').map(|at| &path[at..=path.find('}').expect("a closing brace")]);
        let real = place.map_or(path.to_owned(), |place| path.replace(place, name));
        let mut request =
            ureq::http::Request::builder().method(method.to_uppercase().as_str()).uri(format!("{}{real}", self.base));
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let text = body.map(Value::to_string).unwrap_or_default();
        let mut answer =
            self.agent.run(request.body(text).expect("a request")).unwrap_or_else(|e| panic!("{what}: {e}"));
        let status = answer.status().as_u16();
        let text = answer.body_mut().read_to_string().expect("text");
        let kind = answer.headers()["content-type"].to_str().expect("a type").to_owned();
        let described = &operation["responses"][status.to_string()];
        assert!(described.is_object(), "{what}: {status} isn't described: {text}");
        if status == 200 {
            if let Some(body) = body {
                let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
                check(&self.schema(schema), body, &format!("the request of {what}"));
            }
            self.done.insert(format!("{method} {path}"));
        }
        if described["content"]["text/plain"].is_object() {
            assert!(kind.starts_with("text/plain"), "{what}: {kind}");
            return (status, Value::String(text));
        }
        assert_eq!(kind, "application/json", "{what}: {text}");
        let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{what}: {e}: {text}"));
        let schema = &described["content"]["application/json"]["schema"];
        assert!(schema.is_object(), "{what}: {status} has no schema");
        check(&self.schema(schema), &value, &format!("the answer {status} of {what}"));
        (status, value)
    }
}

pub fn every_answer_is_as_the_document_says() {
    let mut dev = Dev::start();
    dev.create_volume("vm", "64MiB");
    let mut gateway = dev.start_gateway("vm", &[]);
    gateway.wait_serving();
    let operator = std::fs::read_to_string(dev.cluster()["token_file"].as_str().expect("a path")).expect("the token");
    let operator = operator.trim().to_owned();
    let viewer_file = dev.dir().join("coordinator/viewer.token");
    let viewer = std::fs::read_to_string(&viewer_file).expect("the viewer's token").trim().to_owned();
    let mut api = Api::new(&dev);

    // Something to tell of: a drain makes a job, and pools, volumes, nodes and classes get something of their own.
    let mut ok = |method: &str, path: &str, name: &str, body: Option<Value>| {
        let (status, value) = api.ask(Some(&operator), method, path, name, body.as_ref());
        assert_eq!(status, 200, "{method} {path}: {value}");
        value
    };
    ok("post", "/v1/pools", "", Some(json!({"name": "p", "replicas": 2, "pg_count": 8, "failure_domain": "node"})));
    ok("patch", "/v1/pools/{name}", "p", Some(json!({"min_replicas": 1, "durability": "write"})));
    let volume = json!({"name": "v", "size_bytes": 8 << 20, "pool": "p", "iops_limit": 500, "iops_burst": 2000,
            "bandwidth_limit": "50MiB/s", "bandwidth_burst": "1GiB", "share": 300});
    ok("post", "/v1/volumes", "", Some(volume));
    ok("patch", "/v1/volumes/{name}", "v", Some(json!({"size_bytes": 16 << 20, "priority": -3, "iops_limit": "none"})));
    for change in [
        json!({"cap": "60MiB/s", "floor": "1MiB/s", "windows": ["Sat 02:00-06:00 recovery"], "deadline": "20h"}),
        json!({"node": "n1", "target_inflation": 2.5}),
        json!({"pool": "p", "target_p99_us": 5000}),
        json!({"volume": "vm", "target_p99_us": 8000}),
        json!({"class": "rebalance", "weight": 4, "paused": true}),
        json!({"class": "rebalance", "paused": false}),
    ] {
        ok("patch", "/v1/resync", "", Some(change));
    }
    ok("post", "/v1/nodes/{name}/state", "n1", Some(json!({"state": "maintenance"})));
    ok("post", "/v1/nodes/{name}/state", "n1", Some(json!({"state": "active"})));
    ok("post", "/v1/ok-to-stop", "", Some(json!({"nodes": ["n1", "n2", "n3"]})));
    ok("post", "/v1/plan", "", None);
    let question =
        json!({"add_node": ["name=n9,disks=2x1GiB"], "replicas": ["p=3"], "write_map": true, "foreground_share": 0.5});
    ok("post", "/v1/plan", "", Some(question));
    let token = ok("post", "/v1/tokens", "", Some(json!({"role": "gateway", "ttl_seconds": 60})))["token"].clone();
    let csr = PendingIdentity::generate().expect("a key").request_pem().to_owned();
    ok("post", "/v1/certificates", "", Some(json!({"role": "viewer", "name": "reader", "csr_pem": csr})));
    let join =
        json!({"token": token, "name": "g", "csr_pem": PendingIdentity::generate().expect("a key").request_pem()});
    ok("post", "/v1/join", "", Some(join));

    // A third node's worth of data moves: there is a job.
    ok("patch", "/v1/pools/{name}", "p", Some(json!({"replicas": 3})));
    let job = wait_for("a job", || dev.json(&["resync", "jobs"])[0]["id"].as_u64()).to_string();
    for verb in ["pause", "resume", "cancel", "resume"] {
        // One that has ended in the meantime can't be changed: that answer is described too.
        api.ask(Some(&operator), "post", &format!("/v1/jobs/{{id}}/{verb}"), &job, None);
    }

    let paths: Vec<String> = api.document["paths"].as_object().expect("paths").keys().cloned().collect();
    for path in &paths {
        if !api.document["paths"][path]["get"].is_object() {
            continue;
        }
        let name = match path.split('/').nth(2) {
            Some("nodes") => "n1",
            Some("pools") => "p",
            Some("volumes") => "v",
            Some("pgs") => "1.0",
            Some("jobs") => &job,
            _ => "",
        };
        for token in [&operator, &viewer] {
            let (status, value) = api.ask(Some(token), "get", path, name, None);
            assert_eq!(status, 200, "{path}: {value}");
        }
        if path.contains('{') {
            let (status, _) = api.ask(Some(&operator), "get", path, "9.999", None);
            assert!([400, 404].contains(&status), "{path}: {status}");
        }
    }
    errors(&mut api, &paths, &operator, &viewer);

    for (path, name) in [("/v1/volumes/{name}", "v"), ("/v1/pools/{name}", "p")] {
        wait_for(path, || (api.ask(Some(&operator), "delete", path, name, None).0 == 200).then_some(()));
    }
    let lost = lost_pg(&dev);
    let question = json!({"accept_data_loss": false});
    let (status, value) = api.ask(Some(&operator), "post", "/v1/pgs/{id}/force-promote", &lost, Some(&question));
    assert_eq!(status, 200, "{value}");
    let jobs = ["pause", "resume", "cancel"].map(|verb| format!("post /v1/jobs/{{id}}/{verb}"));
    for path in &paths {
        for method in api.document["paths"][path].as_object().expect("methods").keys() {
            let operation = format!("{method} {path}");
            assert!(api.done.contains(&operation) || jobs.contains(&operation), "{operation} was never done");
        }
    }
    dev.finish();
}

/// Two of three nodes end: a PG that an operator could force.
fn lost_pg(dev: &Dev) -> String {
    ["n2", "n3"].into_iter().for_each(|node| dev.kill_node(node));
    wait_for("a PG is unavailable", || {
        let pgs = dev.json(&["pg", "list", "--state", "unavailable"]);
        // Known to be lost, not merely silent.
        let known = |pg: &&serde_json::Value| pg["reason"].as_str().is_some_and(|r| r.contains("copies answer"));
        pgs.as_array()?.iter().find(known)?["id"].as_str().map(str::to_owned)
    })
}

/// Every operation refuses strangers, and viewers where it says so; what makes no sense is refused in the same form.
fn errors(api: &mut Api, paths: &[String], operator: &str, viewer: &str) {
    for path in paths {
        let methods = api.document["paths"][path].clone();
        for (method, operation) in methods.as_object().expect("methods") {
            let security = operation["security"].as_array().expect("requirements");
            if security.is_empty() || security.contains(&json!({})) {
                continue;
            }
            let body = needed_body(path, method);
            assert_eq!(api.ask(None, method, path, "x", body.as_ref()).0, 401, "{method} {path}");
            assert_eq!(api.ask(Some("wrong"), method, path, "x", body.as_ref()).0, 401, "{method} {path}");
            if security.contains(&json!({"token": ["operator"]})) {
                assert_eq!(api.ask(Some(viewer), method, path, "x", body.as_ref()).0, 403, "{method} {path}");
            }
            if operation["requestBody"].is_object() {
                let (status, _) = api.ask(Some(operator), method, path, "x", Some(&json!([17, "no object"])));
                assert_eq!(status, 400, "{method} {path}");
            }
        }
    }
    let long = json!({ "name": "x".repeat(300 << 10) });
    assert_eq!(api.ask(Some(operator), "post", "/v1/pools", "", Some(&long)).0, 413);
    assert_eq!(api.ask(Some(operator), "patch", "/v1/resync", "", Some(&json!({"profile": "quick"}))).0, 400);
    assert_eq!(api.ask(Some(operator), "delete", "/v1/volumes/{name}", "nothing", None).0, 404);
    assert_eq!(api.ask(Some(operator), "post", "/v1/pools", "", Some(&json!({"name": "default"}))).0, 409);
}

/// Bodies that are read before a caller is refused.
fn needed_body(path: &str, method: &str) -> Option<Value> {
    Some(match (path, method) {
        ("/v1/nodes/{name}/state", _) => json!({"state": "active"}),
        ("/v1/ok-to-stop", _) => json!({"nodes": []}),
        ("/v1/pools", "post") => json!({"name": "x"}),
        ("/v1/volumes", "post") => json!({"name": "x", "size_bytes": 512}),
        ("/v1/tokens", _) => json!({"role": "node"}),
        ("/v1/certificates", _) => json!({"role": "viewer", "name": "x", "csr_pem": ""}),
        _ => return None,
    })
}

pub fn every_command_prints_what_its_schema_says() {
    let mut dev = Dev::start();
    dev.create_volume("v", "16MiB");
    let mut gateway = dev.start_gateway("v", &[]);
    gateway.wait_serving();
    let all: Value = serde_json::from_str(&dev.cli(&["schema"])).expect("JSON");
    let mut left: BTreeSet<String> = all.as_object().expect("schemas by command").keys().cloned().collect();
    let image = dev.path("image");
    std::fs::write(&image, vec![7; 10_000]).expect("writes");
    let image = image.display().to_string();
    let map = dev.path("map.json").display().to_string();
    std::fs::write(&map, dev.cli(&["meta", "export"])).expect("writes");
    let certificates = dev.path("certificate").display().to_string();
    let dir = dev.dir().display().to_string();
    let disk = dev.json(&["disk", "list"])[0]["id"].to_string();

    let mut printed = |command: &str, args: &[&str]| {
        let name: Vec<&str> = command.split(' ').collect();
        let mut schema: Value = serde_json::from_str(&dev.cli(&[&["schema"], &name[..]].concat())).expect("JSON");
        assert_eq!(schema, all[command]);
        forbid_others(&mut schema);
        // `health`, `ok-to-stop` and `force-promote` say no by their exit code, and print their answer all the same.
        let ended = dev.try_cli(&[&name[..], args, &["-o", "json"]].concat());
        let values: Vec<Value> = serde_json::Deserializer::from_str(&ended.stdout)
            .into_iter()
            .collect::<Result<_, _>>()
            .unwrap_or_else(|e| panic!("{command}: {e}: {}", ended.text()));
        assert!(!values.is_empty(), "{command}: {}", ended.text());
        values.iter().for_each(|value| check(&schema, value, command));
        left.remove(command);
        values
    };
    for command in
        ["status", "health", "events", "meta export", "metrics", "plan", "resync status", "resync watch", "resync jobs"]
    {
        printed(command, &[]);
    }
    for command in ["node list", "disk list", "pg list", "pool list", "volume list"] {
        printed(command, &[]);
    }
    printed("health", &["--explain"]);
    printed("pg list", &["--state", "clean"]);
    printed("pg show", &["1.0"]);
    printed("node show", &["n1"]);
    printed("node ok-to-stop", &["n1", "n2", "n3"]);
    let version = || dev.status()["map_version"].as_u64().expect("a version");
    let before = version();
    for (command, args) in [
        ("node drain", ["n1"].as_slice()),
        ("node maintenance", &["n1"]),
        ("node undrain", &["n1"]),
        ("pool set", &["default", "--replicas", "2", "--min-replicas", "1"]),
        ("pool delete", &["default"]),
        ("volume resize", &["v", "--size", "32MiB"]),
        ("volume delete", &["v"]),
        ("resync set", &["--cap", "100MiB/s", "--node", "n1"]),
    ] {
        let answer = printed(command, &[args, &["--dry-run"]].concat());
        assert_eq!(version(), before, "{command} --dry-run changed the map: {answer:?}");
    }
    printed("node maintenance", &["n1"]);
    printed("node undrain", &["n1"]);
    printed("disk show", &[&disk]);
    printed("pool create", &["p", "--replicas", "2", "--pg-count", "8"]);
    printed("pool set", &["p", "--min-replicas", "1"]);
    printed("pool show", &["p"]);
    printed("volume create", &["w", "--size", "8MiB", "--pool", "p"]);
    printed("volume set", &["w", "--priority", "3", "--iops-limit", "100"]);
    printed("volume resize", &["w", "--size", "16MiB"]);
    printed("volume show", &["w"]);
    printed("volume hash", &["v"]);
    printed("volume delete", &["w", "--yes"]);
    wait_for("the pool is empty", || {
        dev.json(&["volume", "list"]).as_array().is_some_and(|v| v.len() == 1).then_some(())
    });
    printed("pool delete", &["p", "--yes"]);
    printed("resync set", &["--cap", "100MiB/s", "--deadline", "20h"]);
    printed("resync pause", &["--node", "n1"]);
    printed("resync resume", &["--node", "n1"]);
    printed("hash", &[&image]);
    printed("token create", &[]);
    printed("certificate", &["--name", "reader", "--out", &certificates]);
    printed("plan", &["--map", &map, "--add-node", "name=n9,disks=1x1GiB"]);
    printed("simulate", &["--map", &map, "--at", "0s", "lose-node:n3"]);
    printed("dev add-node", &["--dir", &dir]);
    let job = wait_for("the newcomer's job", || dev.json(&["resync", "jobs"])[0]["id"].as_u64()).to_string();
    printed("resync jobs", &["--job", &job]);
    let cancelled = dev.try_cli(&["resync", "cancel", "--job", &job, "-o", "json"]);
    if cancelled.status.success() {
        printed("resync resume", &["--job", &job]);
    }
    printed("node drain", &["n4"]);
    wait_for("nothing is left on it", || {
        dev.try_cli(&["node", "remove", "n4", "--dry-run"]).status.success().then_some(())
    });
    printed("node remove", &["n4", "--yes"]);
    wait_for("the removed node ends", || {
        dev.logs().iter().any(|(path, text)| path.ends_with("n4.log") && text.contains("was removed")).then_some(())
    });
    printed("pg force-promote", &[&lost_pg(&dev)]);
    left.remove("resync cancel");
    assert!(left.is_empty(), "{left:?} weren't run");
    dev.finish();
}
