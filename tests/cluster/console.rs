//! The console in a real browser: live during a rebalance and a loss, whole without JavaScript, and what it refuses.

use serde_json::json;

use crate::browser::{Browser, DESK, Look, PHONE};
use crate::dev::Dev;
use crate::tools::{MIB, pattern, wait_for};

const PAGE_BYTES_MAX: usize = 200 << 10;

/// An answer: status, headers in lower case, body.
pub struct Got {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Got {
    fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(n, _)| n == name).map_or("", |(_, value)| value)
    }
}

/// One request without a browser.
pub fn ask(method: &str, url: &str, headers: &[(&str, &str)], body: &str) -> Got {
    let mut request = axum::http::Request::builder().method(method).uri(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
    let mut reply =
        agent.run(request.body(body.to_owned()).expect("a request")).unwrap_or_else(|e| panic!("{url}: {e}"));
    let header = |(n, v): (&axum::http::HeaderName, &axum::http::HeaderValue)| {
        (n.as_str().to_owned(), v.to_str().unwrap_or_default().to_owned())
    };
    Got {
        status: reply.status().as_u16(),
        headers: reply.headers().iter().map(header).collect(),
        body: reply.body_mut().read_to_string().expect("a text"),
    }
}

fn url(dev: &Dev) -> String {
    dev.cluster()["api"].as_str().expect("an URL").trim_end_matches('/').to_owned()
}

fn token(dev: &Dev, name: &str) -> String {
    let path = dev.dir().join("coordinator").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).trim().to_owned()
}

/// The percent that the bar of a job shows; `None`: there is none.
fn job_percent(browser: &Browser) -> Option<u64> {
    browser.run("return document.querySelector('#resync .job progress')?.value ?? null").as_f64().map(|v| v as u64)
}

/// Nothing but this daemon was asked, and the browser has nothing to say against the page.
fn check_quiet(browser: &Browser, own: &str) {
    let strangers: Vec<String> =
        browser.requests().into_iter().filter(|u| !u.starts_with(&format!("{own}/"))).collect();
    assert!(strangers.is_empty(), "the page asked elsewhere: {strangers:?}");
    let complaints = browser.complaints();
    assert!(complaints.is_empty(), "the browser complains: {complaints:#?}");
}

/// A browser with a page that follows.
fn live(own: &str) -> Browser {
    let browser = Browser::start();
    browser.requests();
    browser.open(own);
    browser.wait_text("#link", "live");
    browser
}

fn filled() -> (Dev, crate::dev::Gateway) {
    let mut dev = Dev::start();
    dev.create_volume("v", "256MiB");
    let gateway = dev.gateway("v");
    let mut client = gateway.client();
    for at in 1..32 {
        client.write(8 * at * MIB, &pattern(8 * MIB, at)).expect("writes");
    }
    client.flush().expect("flushes");
    (dev, gateway)
}

pub fn an_operator_watches_a_rebalance_and_a_loss() {
    let (dev, gateway) = filled();
    let load = gateway.load(8 * MIB / 4096);
    let own = url(&dev);
    let browser = live(&own);
    browser.wait_text("#health", "OK");
    for (selector, part) in [
        ("#redundancy", "whole"),
        ("#topology", "n3"),
        ("#volumes", "64 of 64"),
        ("#events", "Volume v"),
        ("#foreground", "p99"),
    ] {
        browser.wait_text(selector, part);
    }
    browser.picture("desk-quiet");

    // A viewer is refused in words; nothing has changed.
    browser.type_into("#token", &token(&dev, "viewer.token"));
    browser.click("[data-act=pause]");
    let said = browser.wait_text("#said", "Refused");
    assert!(said.contains("a viewer may only read"), "{said}");
    assert_eq!(dev.status()["resync"]["paused"], false);
    assert!(browser.complaints().iter().all(|c| c.contains("403")), "the refusal alone is in the browser's log");

    // An operator's word holds.
    browser.type_into("#token", &token(&dev, "api.token"));
    browser.type_into("#cap", "6MiB/s");
    browser.click("[data-act=cap]");
    browser.wait_text("#said", "a cap of 6144 KiB/s");
    browser.run("document.querySelector('#profile').value = 'recovery'");
    browser.click("[data-act=profile]");
    browser.wait_text("#said", "profile recovery");
    let resync = dev.json(&["resync", "status"]);
    assert_eq!((&resync["profile"], &resync["cap_bytes_per_sec"]), (&json!("recovery"), &json!(6 * MIB)), "{resync}");
    check_quiet(&browser, &own);

    // A rebalance: the bar moves by itself, and stands while it is paused.
    dev.add_node();
    let begun = wait_for("the page shows the job", || job_percent(&browser));
    let moved = wait_for("its bar moves", || job_percent(&browser).filter(|now| *now > begun && *now >= 5));
    assert!(moved < 100, "the rebalance was over too soon");
    browser.wait_text("#resync", "limited by");
    browser.wait_text("#topology", "n4");
    pictures(&browser, "rebalance");
    browser.click("[data-act=job-pause]");
    browser.wait_text("#said", "paused");
    browser.wait_text("#resync .job", "paused");
    browser.click("[data-act=job-resume]");
    browser.wait_text("#resync .job", "running");
    browser.click("[data-act=pause]");
    browser.wait_text("#said", "Resync is paused");
    browser.wait_text("#health", "Resync is paused");
    assert_eq!(dev.status()["resync"]["paused"], true);
    plain_page_says_the_same(&browser, &dev, &own);

    // A loss.
    dev.kill_node("n2");
    browser.wait_text("#health", "Node n2 does not answer");
    browser.wait_text("[data-node=n2]", "down");
    browser.wait_text("#events", "Node n2 does not answer");
    pictures(&browser, "loss");
    browser.click("[data-act=resume]");
    browser.wait_text("#said", "Resync is running");
    check_quiet(&browser, &own);

    nodes_live_on(&browser, &dev, &own);
    load.stop_and_verify(&gateway.socket, "v");
    drop((browser, gateway));
    dev.finish();
}

pub fn an_operator_drains_a_node() {
    let (dev, gateway) = filled();
    dev.cli(&["resync", "set", "--cap", "6MiB/s"]);
    dev.add_node();
    dev.wait_clean();
    let load = gateway.load(8 * MIB / 4096);
    let own = url(&dev);
    let browser = live(&own);
    let act = |act: &str, said: &str| {
        browser.click(&format!("[data-act={act}]"));
        browser.wait_text("#said", said);
    };
    let ask = || {
        browser.click("[data-act=drain]");
        browser.wait_text("#ask-text", "Drain n4? About ")
    };
    let do_it = |said: &str| {
        ask();
        browser.click("#ask button[value=yes]");
        browser.wait_text("#said", said);
    };

    // Without a name, or with a wrong one, there is nothing to ask. What it costs is for those who may read.
    browser.type_into("#token", &token(&dev, "viewer.token"));
    act("drain", "Refused: name the node first.");
    browser.type_into("#node", "n44");
    act("drain", "Refused: there is no node n44");
    browser.complaints();

    // The question says what it costs; whoever leaves it, by a button or a key, changes nothing.
    browser.type_into("#node", "n4");
    for leave in ["#ask button[value=no]", "Escape"] {
        let asked = ask();
        assert!(asked.contains(" copies, 0.") && asked.contains(" GiB, move to other nodes"), "{asked}");
        if leave == "Escape" {
            browser.picture("desk-drain");
            browser.press_escape();
        } else {
            browser.click(leave);
        }
        browser.wait_text("#said", "Nothing was changed.");
        assert_eq!(dev.node_state("n4"), "up");
    }

    // A viewer may ask what it costs, but not do it.
    do_it("a viewer may only read");
    assert_eq!(dev.node_state("n4"), "up");
    browser.complaints();

    // An operator does it, and takes it back.
    browser.type_into("#token", &token(&dev, "api.token"));
    do_it("Node n4 is draining.");
    browser.wait_text("[data-node=n4]", "draining");
    wait_for("the drain's bar moves", || job_percent(&browser).filter(|now| *now >= 5));
    act("undrain", "Node n4 is up.");
    dev.wait_clean();
    browser.wait_text("#redundancy", "whole");
    check_quiet(&browser, &own);
    load.stop_and_verify(&gateway.socket, "v");
    drop((browser, gateway));
    dev.finish();
}

fn pictures(browser: &Browser, name: &str) {
    for (kind, look) in [("desk", DESK), ("dark", Look { dark: true, ..DESK }), ("phone", PHONE)] {
        browser.look(look);
        let wide = browser.run("return document.documentElement.scrollWidth - document.documentElement.clientWidth");
        assert_eq!(wide, 0, "{kind}: the page is wider than its window");
        browser.picture(&format!("{kind}-{name}"));
    }
    browser.look(DESK);
}

/// Without JavaScript the page has the same facts, small, and under headers that allow nothing else.
fn plain_page_says_the_same(browser: &Browser, dev: &Dev, own: &str) {
    browser.devtools("Emulation.setScriptExecutionDisabled", json!({ "value": true }));
    browser.open(own);
    let document = browser.devtools("DOM.getDocument", json!({ "depth": 0 }));
    let shown =
        browser.devtools("DOM.getOuterHTML", json!({ "nodeId": document["root"]["nodeId"] }))["outerHTML"].clone();
    let shown = shown.as_str().expect("HTML");
    // The script shows the actions: where it ran, this isn't the page without it.
    let actions = shown.split("id=\"actions\"").nth(1).and_then(|rest| rest.split('>').next()).expect("the actions");
    assert!(actions.contains("hidden"), "the script ran: {actions}");
    let status = dev.status();
    let first = status["health_reasons"][0].as_str().expect("a reason").to_owned();
    // A command in it is marked as one.
    for part in [
        first.split('`').next().expect("a part"),
        "data-node=\"n4\"",
        "64 of 64",
        "Node n4 joined",
        "Job 1",
        "Actions need JavaScript",
    ] {
        assert!(shown.contains(part), "the page without JavaScript lacks {part:?}");
    }
    browser.picture("desk-plain");
    browser.devtools("Emulation.setScriptExecutionDisabled", json!({ "value": false }));
    browser.open(own);
    browser.wait_text("#link", "live");

    let page = ask("GET", &format!("{own}/"), &[], "");
    let asset = |name: &str| ask("GET", &format!("{own}/console/{name}"), &[], "").body.len();
    let whole = page.body.len() + asset("console.css") + asset("console.js") + asset("icon.svg");
    println!("    the page: {} bytes, with all it needs {whole}", page.body.len());
    assert!(whole <= PAGE_BYTES_MAX, "{whole} bytes");
    let policy = page.header("content-security-policy");
    assert!(policy.starts_with("default-src 'none'; script-src 'self'") && !policy.contains("unsafe"), "{policy}");
    for (name, value) in
        [("x-content-type-options", "nosniff"), ("referrer-policy", "no-referrer"), ("cache-control", "no-store")]
    {
        assert_eq!(page.header(name), value, "{name}");
    }
    let inline = |word: &str| word.starts_with("style=") || word.starts_with("on") && word.contains("=\"");
    assert!(!page.body.contains("<script>") && !page.body.split_whitespace().any(inline), "nothing inline");
}

/// A node's page needs nobody: neither the coordinator nor a token.
fn nodes_live_on(browser: &Browser, dev: &Dev, own: &str) {
    browser.run("location.href = document.querySelector('[data-node=n1] a').href");
    browser.wait_text("#who", "n1");
    let node = dev.node("n1")["admin_url"].as_str().expect("an URL").to_owned();
    browser.wait_text("#health", "Node n1 serves");
    browser.wait_text("#link", "live");
    for (selector, part) in [("#disks", "up"), ("#throttle", "d1"), ("#peers", "n3"), ("#node", "epoch 1")] {
        browser.wait_text(selector, part);
    }
    assert_eq!(browser.run("return document.querySelectorAll('form, button, input').length"), 0, "it only reads");
    browser.picture("desk-node");
    browser.complaints();
    browser.requests();

    dev.kill_node("coordinator");
    browser.wait_text("#health", "The coordinator has not answered");
    browser.open(&node);
    browser.wait_text("#health", "The coordinator has not answered");
    browser.wait_text("#link", "live");
    pictures(browser, "node-alone");
    check_quiet(browser, &node);

    dev.start_node("coordinator");
    browser.wait_text("#health", "the coordinator answers");
    browser.open(own);
    browser.wait_text("#link", "live");
    // The coordinator goes under an open page: the page says that it is old, and finds it again.
    dev.kill_node("coordinator");
    browser.wait_text("#lost", "not live");
    browser.picture("desk-lost");
    dev.start_node("coordinator");
    browser.wait_text("#link", "live");
    let hidden = || browser.run("return document.getElementById('lost').hidden");
    wait_for("the page is current again", || (hidden() == true).then_some(()));
}

pub fn what_foreign_pages_ask_for_is_refused() {
    let dev = Dev::start();
    let (own, node) = (url(&dev), dev.node("n1")["admin_url"].as_str().expect("an URL").to_owned());
    let bearer = format!("Bearer {}", token(&dev, "api.token"));
    // A name that somebody else made point here.
    for (daemon, path) in
        [(&own, "/"), (&own, "/console/stream"), (&own, "/metrics"), (&node, "/"), (&node, "/metrics")]
    {
        let got = ask("GET", &format!("{daemon}{path}"), &[("host", "evil.example:7400")], "");
        assert_eq!(got.status, 421, "{daemon}{path}: {}", got.body);
    }
    // A page of another origin, even with the token.
    let pause = json!({ "paused": true }).to_string();
    let change = |extra: &[(&str, &str)]| {
        let headers = [&[("authorization", bearer.as_str()), ("content-type", "application/json")], extra].concat();
        ask("PATCH", &format!("{own}/v1/resync"), &headers, &pause)
    };
    for foreign in [("origin", "https://evil.example"), ("origin", "null"), ("sec-fetch-site", "cross-site")] {
        let got = change(&[foreign]);
        assert_eq!(got.status, 403, "{foreign:?}: {}", got.body);
    }
    assert_eq!(dev.status()["resync"]["paused"], false);
    assert_eq!(change(&[("origin", &own)]).status, 200);
    assert_eq!(dev.status()["resync"]["paused"], true);
    // Reading needs no token here, changing does; a join token is none.
    let got = ask("PATCH", &format!("{own}/v1/resync"), &[("content-type", "application/json")], &pause);
    assert_eq!(got.status, 401, "{}", got.body);
    // What others named is text on the page.
    let made = ask(
        "POST",
        &format!("{own}/v1/join"),
        &[("content-type", "application/json")],
        &json!({ "token": dev.cli(&["token", "create", "--role", "node"]).trim(), "name": "<img src=x>", "csr_pem": "no" }).to_string(),
    );
    assert!(made.status >= 400, "{}", made.body);
    assert!(!ask("GET", &format!("{own}/"), &[], "").body.contains("<img"), "names are escaped");
    streams_are_bounded(&own);
    dev.finish();
}

/// The stream after the last one that is served is refused, and the page still answers.
fn streams_are_bounded(own: &str) {
    use std::io::{BufRead, BufReader, Write};
    let address = own.strip_prefix("http://").expect("plain");
    let open = || {
        let mut stream = std::net::TcpStream::connect(address).expect("connects");
        write!(stream, "GET /console/stream HTTP/1.1\r\nHost: {address}\r\n\r\n").expect("writes");
        let mut line = String::new();
        BufReader::new(stream.try_clone().expect("a handle")).read_line(&mut line).expect("reads");
        (stream, line)
    };
    let mut held: Vec<std::net::TcpStream> = Vec::new();
    let refused = (0..200).find_map(|_| {
        let (stream, line) = open();
        let refused = line.contains("503").then_some(line.clone());
        assert!(line.contains("200") || refused.is_some(), "{line}");
        held.push(stream);
        refused
    });
    assert!(refused.is_some() && held.len() == 65, "{} streams were served", held.len());
    assert_eq!(ask("GET", &format!("{own}/"), &[], "").status, 200);
    drop(held);
    wait_for("a place is free again", || open().1.contains("200").then_some(()));
}
