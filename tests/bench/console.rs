//! What an operator waits for at the console, in headless Chromium. `cargo bench --bench console --profile release [-- RUNS]`.
//! The figures to reach: 3 s until a lost node shows, no external request, 200 KiB.

#[allow(dead_code, reason = "shared with the tests, which use the rest")]
#[path = "../cluster/browser.rs"]
mod browser;
#[allow(dead_code, reason = "shared with the tests, which use the rest")]
#[path = "../cluster/dev.rs"]
mod dev;
#[allow(dead_code, reason = "shared with the tests, which use the rest")]
#[path = "../cluster/nbd.rs"]
mod nbd;
#[allow(dead_code, reason = "shared with the tests, which use the rest")]
#[path = "../cluster/net.rs"]
mod net;
#[allow(dead_code, reason = "shared with the tests, which use the rest")]
#[path = "../cluster/tools.rs"]
mod tools;

use std::time::{SystemTime, UNIX_EPOCH};

use browser::Browser;
use dev::Dev;
use tools::{hold, wait_for};

/// Notes when the page first shows that n2 isn't up, and when its first sentence names it.
const WATCH: &str = "
    window.seen = {};
    const look = () => {
        const row = document.querySelector('[data-node=n2] .state').textContent;
        if (row !== 'up') seen.row ??= Date.now();
        if (document.getElementById('health').textContent.includes('Node n2')) seen.sentence ??= Date.now();
    };
    new MutationObserver(look).observe(document.body, { subtree: true, childList: true, characterData: true, attributes: true });
";

fn now_ms() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs_f64() * 1000.0
}

fn report(what: &str, mut values: Vec<f64>, unit: &str, goal: &str) {
    values.sort_by(f64::total_cmp);
    println!(
        "| {what} | {:.0} {unit} | {:.0} {unit} | {goal} | {} |",
        values[values.len() / 2],
        values[values.len() - 1],
        values.len()
    );
}

fn main() {
    let runs: u64 = std::env::args().skip(1).find_map(|a| a.parse().ok()).unwrap_or(5);
    let dev = Dev::start();
    dev.create_volume("v", "256MiB");
    let own = dev.cluster()["api"].as_str().expect("an URL").trim_end_matches('/').to_owned();
    let browser = Browser::start();
    let (mut paints, mut bytes, mut rows, mut sentences) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    browser.requests();
    for _ in 0..runs {
        browser.open("about:blank");
        browser.open(&own);
        browser.wait_text("#link", "live");
        let paint = wait_for("the first paint", || {
            browser.run("return performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? null").as_f64()
        });
        paints.push(paint);
        let moved =
            "const all = [...performance.getEntriesByType('navigation'), ...performance.getEntriesByType('resource')];
            return all.filter((e) => !e.name.endsWith('/stream')).reduce((sum, e) => sum + e.decodedBodySize, 0)";
        bytes.push(browser.run(moved).as_f64().expect("bytes") / 1024.0);
        browser.wait_text("#health", "OK");
        browser.run(WATCH);
        let killed_at = now_ms();
        dev.kill_node("n2");
        let seen = |what: &str| browser.run(&format!("return window.seen.{what} ?? null")).as_f64();
        rows.push(wait_for("the row shows it", || seen("row")) - killed_at);
        sentences.push(wait_for("the sentence shows it", || seen("sentence")) - killed_at);
        dev.start_node("n2");
        dev.wait_clean();
        hold(1);
    }
    let strangers = browser.requests().into_iter().filter(|u| !u.starts_with(&own) && u != "about:blank").count();
    println!();
    println!("| at the console | median | worst | goal | runs |");
    println!("|---|---|---|---|---|");
    report("a killed node's row shows it after", rows, "ms", "≤ 3000 ms");
    report("the first sentence names it after", sentences, "ms", "≤ 3000 ms");
    report("first contentful paint after", paints, "ms", "-");
    report("the page with all it needs", bytes, "KiB", "≤ 200 KiB");
    println!("requests to others: {strangers}");
    drop(browser);
    dev.finish();
}
