//! What operators look at: every panel of every dashboard against a real Prometheus while data moves and a node dies; the
//! form of the dashboards; the rules; the runbooks.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::dev::Dev;
use crate::prometheus::{Prometheus, get, shipped, shipped_text};
use crate::tools::{MIB, missing, pattern, run, run_ok, wait_for};

const BOARDS: [&str; 5] = ["overview", "resync", "foreground", "nodes", "volumes"];
/// What panels may use of Grafana's units.
const UNITS: [&str; 11] =
    ["none", "short", "bytes", "binBps", "iops", "ops", "cps", "s", "percentunit", "dtdurations", "bool_yes_no"];
/// Grafana's grid is so wide.
const COLUMNS: u64 = 24;
const SCHEMA_VERSION_MIN: u64 = 39;

fn board(name: &str) -> Value {
    serde_json::from_str(&shipped_text(&format!("dashboards/{name}.json"))).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn list(value: &Value) -> Vec<Value> {
    value.as_array().cloned().unwrap_or_default()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// Panels that ask something.
fn panels(board: &Value) -> Vec<Value> {
    list(&board["panels"]).into_iter().filter(|p| p["type"] != "row").collect()
}

/// An expression as Grafana would send it, with everything chosen.
fn filled(expression: &str, cluster: &str) -> String {
    let filled = expression
        .replace("$__rate_interval", "10s")
        .replace("$cluster", cluster)
        .replace("$node", ".*")
        .replace("$volume", ".*");
    assert!(!filled.contains('$'), "a variable is unknown: {expression}");
    filled
}

/// Names of metrics in an expression or a rule.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'));
    words.filter(|w| w.starts_with("evenkeel_")).map(str::to_owned).collect()
}

/// Names in `evenkeel metrics`; those of a histogram's series too.
fn table(dev: &Dev) -> BTreeSet<String> {
    let rows = list(&dev.json(&["metrics"]));
    assert!(rows.len() > 40, "a table of {} rows", rows.len());
    let mut names = BTreeSet::new();
    for row in rows {
        let name = text(&row["name"]);
        if row["kind"] == "histogram" {
            names.extend(["_bucket", "_sum", "_count"].map(|suffix| format!("{name}{suffix}")));
        } else {
            names.insert(name);
        }
    }
    names
}

/// Every expression of every panel, with where it stands.
fn expressions() -> Vec<(String, String)> {
    let mut out = Vec::new();
    for name in BOARDS {
        for panel in panels(&board(name)) {
            for target in list(&panel["targets"]) {
                out.push((format!("{name}, {}", panel["title"]), text(&target["expr"])));
            }
        }
    }
    out
}

/// All expressions give something, sooner or later (a rate needs two scrapes); an error fails at once.
fn all_show_something(prometheus: &Prometheus, cluster: &str, when: &str) {
    let mut open = expressions();
    let count = open.len();
    assert!(count > 80, "only {count} expressions were found");
    let deadline = std::time::Instant::now() + crate::tools::PATIENCE;
    while !open.is_empty() {
        open.retain(|(at, expression)| {
            let samples = prometheus.query(&filled(expression, cluster));
            samples.unwrap_or_else(|error| panic!("{at}: {expression}: {error}")).is_empty()
        });
        assert!(std::time::Instant::now() < deadline, "{when}, these panels are empty: {open:#?}");
    }
    println!("    {when}: {count} expressions of {} dashboards show something", BOARDS.len());
}

/// Annotations of all dashboards by name.
fn annotations() -> BTreeMap<String, String> {
    let of = |name: &&str| list(&board(name)["annotations"]["list"]);
    let all = BOARDS.iter().flat_map(of).filter(|a| a["builtIn"] != 1);
    all.map(|a| (text(&a["name"]), text(&a["expr"]))).collect()
}

/// `promtool check metrics` has nothing to say about a daemon's text.
fn check_metrics(dev: &Dev, who: &str, metrics: &str) {
    let file = dev.path("metrics.txt");
    fs::write(&file, metrics).expect("writes");
    let mut command = Command::new("promtool");
    command.args(["check", "metrics"]).stdin(Stdio::from(File::open(&file).expect("opens")));
    let done = command.output().unwrap_or_else(|error| panic!("{}", missing(&command, &error)));
    let said = String::from_utf8_lossy(&done.stderr).into_owned() + &String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success() && said.trim().is_empty(), "metrics of {who}: {said}");
    println!("    metrics of {who}: {} bytes", metrics.len());
}

pub fn every_panel_shows_something() {
    let mut dev = Dev::start();
    dev.create_volume("v", "128MiB");
    let mut gateway = dev.start_gateway("v", &["--admin", "127.0.0.1:0"]);
    gateway.wait_serving();
    let mut client = gateway.client();
    // The first 8 MiB are the load's.
    for at in 1..16 {
        client.write(8 * at * MIB, &pattern(8 * MIB, at)).expect("writes");
    }
    client.flush().expect("flushes");
    drop(client);
    let load = gateway.load(8 * MIB / 4096);
    let prometheus = Prometheus::start(&dev);
    let cluster = text(&dev.status()["cluster"]);
    let all_up = |nodes: usize| {
        let count = |role| prometheus.targets_up(role).len();
        (count("coordinator") == 1 && count("node") == nodes && count("gateway") == 1).then_some(())
    };
    wait_for("Prometheus finds the coordinator, the nodes and the gateway", || all_up(3));

    // A rebalance that lasts.
    dev.cli(&["resync", "set", "--cap", "2MiB/s"]);
    dev.add_node();
    wait_for("copies run", || (dev.status()["resync"]["active_moves"] != 0).then_some(()));
    wait_for("Prometheus finds the new node", || all_up(4));
    all_show_something(&prometheus, &cluster, "during a rebalance");
    assert!(dev.status()["resync"]["pending_moves"].as_u64() > Some(0), "the rebalance was over too soon");
    let shown = |what: &str| {
        let expression = filled(&annotations()[what], &cluster);
        let samples = prometheus.query(&expression).unwrap_or_else(|error| panic!("{what}: {expression}: {error}"));
        (!samples.is_empty()).then_some(())
    };
    for what in ["Joins", "Plans", "Knob changes"] {
        wait_for(what, || shown(what));
    }
    variables_have_values(&prometheus, &cluster);
    check_all_metrics(&dev, &prometheus);

    // A loss in the middle of it.
    dev.kill_node("n2");
    let down = format!("evenkeel_node_up{{cluster=\"{cluster}\",node=\"n2\"}}");
    wait_for("Prometheus sees the loss", || (prometheus.value(&down) == Some(0.0)).then_some(()));
    wait_for("and the missing copies", || {
        (prometheus.value("evenkeel_pgs{state=\"degraded\"}") > Some(0.0)).then_some(())
    });
    all_show_something(&prometheus, &cluster, "after a node's loss");
    wait_for("Losses", || shown("Losses"));

    names_are_known(&dev, &prometheus);
    rules_evaluate(&prometheus);
    events_have_actors(&dev);
    load.stop_and_verify(&gateway.socket, "v");
    prometheus.stop();
    drop(gateway);
    dev.finish();
}

/// The lists of nodes and volumes from which an operator chooses.
fn variables_have_values(prometheus: &Prometheus, cluster: &str) {
    for name in BOARDS {
        for variable in list(&board(name)["templating"]["list"]) {
            let definition = text(&variable["definition"]);
            let Some(inner) = definition.strip_prefix("label_values(").and_then(|d| d.strip_suffix(')')) else {
                assert_eq!(variable["type"], "datasource", "{name}: {variable}");
                continue;
            };
            let (series, label) = inner.rsplit_once(", ").expect("a metric and a label");
            let values = prometheus.api(&format!("label/{label}/values"), &[("match[]", &filled(series, cluster))]);
            assert!(!list(&values.expect("an answer")).is_empty(), "{name}: {definition} has no values");
        }
    }
}

fn check_all_metrics(dev: &Dev, prometheus: &Prometheus) {
    check_metrics(dev, "the coordinator", &dev.cli(&["metrics", "--coordinator"]));
    for role in ["node", "gateway"] {
        for url in prometheus.targets_up(role) {
            let (status, body) = get(&url, &[]);
            assert_eq!(status, 200, "{url}: {body}");
            check_metrics(dev, &format!("{role} {url}"), &body);
        }
    }
}

/// Dashboards and rules name only what the table has, and Prometheus has seen all that the table has.
fn names_are_known(dev: &Dev, prometheus: &Prometheus) {
    let table = table(dev);
    let rules = ["recording", "alerts"].map(|name| shipped_text(&format!("deploy/prometheus/{name}.yml")));
    let texts = expressions().into_iter().map(|(_, e)| e).chain(annotations().into_values()).chain(rules);
    let used: BTreeSet<String> = texts.flat_map(|text| metrics_in(&text)).collect();
    let unknown: Vec<&String> = used.difference(&table).collect();
    assert!(unknown.is_empty(), "metrics that are in no table: {unknown:?}");
    let seen = prometheus.api("label/__name__/values", &[]).expect("an answer");
    let seen: BTreeSet<String> = list(&seen).iter().map(text).collect();
    let never: Vec<&String> = table.difference(&seen).collect();
    assert!(never.is_empty(), "in the table, but no daemon reports them: {never:?}");
}

/// Prometheus has loaded all rules, and none fails.
fn rules_evaluate(prometheus: &Prometheus) {
    let groups = list(&prometheus.api("rules", &[]).expect("an answer")["groups"]);
    let rules: Vec<Value> = groups.iter().flat_map(|g| list(&g["rules"])).collect();
    assert!(rules.len() > 20, "only {} rules", rules.len());
    for rule in &rules {
        assert!(rule["health"] != "err", "{} fails: {}", rule["name"], rule["lastError"]);
    }
}

fn events_have_actors(dev: &Dev) {
    let events = list(&dev.json(&["events"]));
    for event in &events {
        assert!(!text(&event["actor"]).is_empty(), "nobody did this: {event}");
    }
    let actor = |kind: &str| {
        let found = events.iter().find(|e| e["kind"] == kind).unwrap_or_else(|| panic!("no {kind} in {events:?}"));
        text(&found["actor"])
    };
    assert_eq!(actor("resync-set"), "operator (api.token, from 127.0.0.1)");
    assert_eq!(actor("plan"), "coordinator");
    assert_eq!(actor("disk-added"), "n1");
}

/// Importable: ids and refIds unique, panels side by side, units and schema that Grafana knows, a data source to choose.
pub fn dashboards_are_well_formed() {
    let files: BTreeSet<String> = fs::read_dir(shipped("dashboards"))
        .expect("dashboards")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    assert_eq!(files, BOARDS.iter().map(|name| format!("{name}.json")).collect());
    let mut uids = BTreeSet::new();
    for name in BOARDS {
        let board = board(name);
        assert!(board["schemaVersion"].as_u64() >= Some(SCHEMA_VERSION_MIN), "{name}: schemaVersion");
        assert!(uids.insert(text(&board["uid"])) && !text(&board["uid"]).is_empty(), "{name}: uid");
        assert!(board["id"].is_null(), "{name}: an id of its own keeps it from being imported");
        assert!(!text(&board["title"]).is_empty() && !text(&board["description"]).is_empty(), "{name}: title");
        let variables: Vec<String> = list(&board["templating"]["list"]).iter().map(|v| text(&v["type"])).collect();
        assert_eq!(variables.first().map(String::as_str), Some("datasource"), "{name}: variables");
        let mut ids = BTreeSet::new();
        let mut taken = BTreeSet::new();
        for panel in list(&board["panels"]) {
            let at = format!("{name}, {}", panel["title"]);
            assert!(ids.insert(panel["id"].as_u64().expect("an id")), "{at}: its id stands twice");
            let side = |key: &str| panel["gridPos"][key].as_u64().unwrap_or_else(|| panic!("{at}: gridPos.{key}"));
            let (x, y, w, h) = (side("x"), side("y"), side("w"), side("h"));
            assert!(w > 0 && h > 0 && x + w <= COLUMNS, "{at}: it does not fit the grid");
            for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
                assert!(taken.insert(cell), "{at}: it lies on another");
            }
        }
        for panel in panels(&board) {
            check_panel(&format!("{name}, {}", panel["title"]), &panel);
        }
    }
}

fn check_panel(at: &str, panel: &Value) {
    assert!(!text(&panel["description"]).is_empty(), "{at}: no description");
    assert_eq!(panel["datasource"]["uid"], "${datasource}", "{at}");
    let defaults = &panel["fieldConfig"]["defaults"];
    assert!(UNITS.contains(&text(&defaults["unit"]).as_str()), "{at}: unit {}", defaults["unit"]);
    let steps = list(&defaults["thresholds"]["steps"]);
    assert!(steps.first().is_some_and(|s| s["value"].is_null()), "{at}: thresholds begin with null");
    let values: Vec<f64> = steps.iter().filter_map(|s| s["value"].as_f64()).collect();
    assert!(values.is_sorted() && values.len() + 1 == steps.len(), "{at}: thresholds rise");
    let mut refs = BTreeSet::new();
    let targets = list(&panel["targets"]);
    assert!(!targets.is_empty(), "{at}: it asks nothing");
    for target in targets {
        assert!(refs.insert(text(&target["refId"])) && !text(&target["refId"]).is_empty(), "{at}: refIds");
        assert_eq!(target["datasource"]["uid"], "${datasource}", "{at}");
        assert!(text(&target["expr"]).contains("cluster=\"$cluster\""), "{at}: it mixes clusters");
    }
}

/// The rules load, and each alert fires when it should and not before.
pub fn the_rules_hold() {
    let promtool =
        |args: &[&str]| run_ok(Command::new("promtool").args(args).current_dir(shipped("deploy/prometheus")));
    promtool(&["check", "rules", "alerts.yml", "recording.yml"]);
    // The certificate that it names is made on the host; a real one is read in `every_panel_shows_something`.
    promtool(&["check", "config", "--syntax-only", "config/prometheus.yml"]);
    promtool(&["test", "rules", "alerts.test.yml", "recording.test.yml"]);
    let tests = shipped_text("deploy/prometheus/alerts.test.yml");
    for alert in alerts() {
        assert!(tests.contains(&format!("        alertname: {alert}\n")), "{alert} has no test that it fires");
    }
}

fn alerts() -> Vec<String> {
    let rules = shipped_text("deploy/prometheus/alerts.yml");
    let names = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ").map(str::to_owned));
    let names: Vec<String> = names.collect();
    assert!(names.len() > 12, "{names:?}");
    names
}

/// One page an alert, and its commands exist with the options that it gives them.
pub fn runbooks_name_commands_that_exist() {
    let folder = fs::read_dir(shipped("deploy/runbooks")).expect("runbooks");
    let pages: BTreeSet<String> =
        folder.map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    assert_eq!(pages, alerts().iter().map(|alert| format!("{alert}.md")).collect());
    let rules = shipped_text("deploy/prometheus/alerts.yml");
    let mut commands = BTreeSet::new();
    for page in pages {
        assert!(rules.contains(&format!("/{page}'")), "no alert leads to {page}");
        let text = shipped_text(&format!("deploy/runbooks/{page}"));
        commands.extend(text.lines().filter_map(|l| l.trim().strip_prefix("evenkeel ").map(str::to_owned)));
    }
    assert!(commands.len() > 30, "{commands:?}");
    for command in commands {
        let words: Vec<&str> = command.split(' ').collect();
        // What follows the subcommands are names and options; only subcommands are bare words that help knows.
        let is_nested = ["node", "disk", "pg", "pool", "volume", "resync", "token"].contains(&words[0]);
        let subcommand = &words[..if is_nested { 2 } else { 1 }];
        let help = run(Command::new(crate::dev::binary()).args(subcommand).arg("--help"));
        assert!(help.status.success(), "evenkeel {command}: {}", help.text());
        for option in words.iter().filter(|word| word.starts_with('-')) {
            assert!(help.stdout.contains(option), "evenkeel {command}: there is no {option}");
        }
    }
}
