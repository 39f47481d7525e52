//! A real browser: headless Chromium behind chromedriver, spoken to over HTTP (W3C WebDriver).

use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::dev::Daemon;
use crate::tools::{missing, wait_for};

/// What W3C WebDriver calls an element in JSON.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";
/// A command takes no longer, even on a loaded machine.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A window of a browser that has never been anywhere.
pub struct Browser {
    session: String,
    agent: ureq::Agent,
    _driver: Daemon,
    _folder: TempDir,
}

/// How the page is looked at.
#[derive(Clone, Copy)]
pub struct Look {
    pub width: u32,
    pub height: u32,
    pub dark: bool,
}

pub const DESK: Look = Look { width: 1280, height: 900, dark: false };
pub const PHONE: Look = Look { width: 390, height: 844, dark: false };

impl Browser {
    pub fn start() -> Browser {
        let folder = tempfile::Builder::new().prefix("evenkeel-browser-").tempdir().expect("a temporary folder");
        let log = folder.path().join("chromedriver.log");
        for tool in ["chromium", "chromedriver"] {
            let mut command = Command::new(tool);
            let ran = command.arg("--version").output();
            ran.unwrap_or_else(|error| panic!("{}", missing(&command, &error)));
        }
        let driver = Daemon::spawn(Command::new("chromedriver").arg("--port=0"), &log);
        let port = wait_for("chromedriver listens", || {
            let text = driver.log_text();
            let rest = text.split("successfully on port ").nth(1)?;
            rest.split_once('.').map(|(port, _)| port.to_owned())
        });
        let config = ureq::Agent::config_builder().timeout_global(Some(TIMEOUT)).http_status_as_error(false).build();
        let agent = ureq::Agent::new_with_config(config);
        let profile = format!("--user-data-dir={}", folder.path().join("profile").display());
        let options = json!({ "args": [
            "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
            "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars", profile,
        ]});
        let wanted = json!({ "capabilities": { "alwaysMatch": {
            "goog:chromeOptions": options, "goog:loggingPrefs": { "browser": "ALL", "performance": "ALL" },
        }}});
        let mut browser =
            Browser { session: format!("http://127.0.0.1:{port}/session"), agent, _driver: driver, _folder: folder };
        let id = browser.post("", &wanted)["sessionId"].as_str().expect("a session").to_owned();
        browser.session = format!("{}/{id}", browser.session);
        browser.look(DESK);
        browser
    }

    fn post(&self, path: &str, body: &Value) -> Value {
        self.try_post(path, body).unwrap_or_else(|error| panic!("{path} {body}: {error}"))
    }

    fn try_post(&self, path: &str, body: &Value) -> Result<Value, String> {
        let url = format!("{}{path}", self.session);
        let mut reply = self.agent.post(&url).send_json(body).map_err(|e| e.to_string())?;
        let text = reply.body_mut().with_config().limit(64 << 20).read_to_string().map_err(|e| e.to_string())?;
        let answer: Value = serde_json::from_str(&text).map_err(|e| format!("{e}: {text}"))?;
        if reply.status().is_success() {
            Ok(answer["value"].clone())
        } else {
            Err(answer["value"]["message"].to_string())
        }
    }

    /// A command of the DevTools protocol.
    pub fn devtools(&self, command: &str, parameters: Value) -> Value {
        self.post("/goog/cdp/execute", &json!({ "cmd": command, "params": parameters }))
    }

    pub fn look(&self, look: Look) {
        let Look { width, height, dark } = look;
        let metrics = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.devtools("Emulation.setDeviceMetricsOverride", metrics);
        let scheme = if dark { "dark" } else { "light" };
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.devtools("Emulation.setEmulatedMedia", features);
    }

    pub fn open(&self, url: &str) {
        self.post("/url", &json!({ "url": url }));
    }

    /// What a function's body returns in the page.
    pub fn run(&self, script: &str) -> Value {
        self.post("/execute/sync", &json!({ "script": script, "args": [] }))
    }

    /// What is read of an element; empty if it isn't there.
    pub fn text(&self, selector: &str) -> String {
        let script = format!("return document.querySelector({})?.innerText ?? ''", json!(selector));
        self.run(&script).as_str().unwrap_or_default().to_owned()
    }

    pub fn wait_text(&self, selector: &str, part: &str) -> String {
        wait_for(&format!("{selector} says {part:?}; it says {:?}", self.text(selector)), || {
            Some(self.text(selector)).filter(|text| text.contains(part))
        })
    }

    fn element(&self, selector: &str) -> String {
        let found = self.post("/element", &json!({ "using": "css selector", "value": selector }));
        found[ELEMENT].as_str().unwrap_or_else(|| panic!("{selector}: {found}")).to_owned()
    }

    pub fn click(&self, selector: &str) {
        self.post(&format!("/element/{}/click", self.element(selector)), &json!({}));
    }

    pub fn press_escape(&self) {
        let key = |kind: &str| json!({ "type": kind, "value": "\u{e00c}" });
        let keys = [key("keyDown"), key("keyUp")];
        self.post("/actions", &json!({ "actions": [{ "type": "key", "id": "keys", "actions": keys }] }));
    }

    /// Types over what is there.
    pub fn type_into(&self, selector: &str, text: &str) {
        let element = self.element(selector);
        self.post(&format!("/element/{element}/clear"), &json!({}));
        self.post(&format!("/element/{element}/value"), &json!({ "text": text }));
    }

    /// What the console of the browser has shown since the last call: errors of scripts and of the content security policy.
    pub fn complaints(&self) -> Vec<String> {
        let entries = self.post("/se/log", &json!({ "type": "browser" }));
        let entries = entries.as_array().expect("entries").iter();
        entries.map(|e| format!("{} {}", e["level"], e["message"])).collect()
    }

    /// Every URL that was asked for since the last call.
    pub fn requests(&self) -> Vec<String> {
        let entries = self.post("/se/log", &json!({ "type": "performance" }));
        let messages =
            entries.as_array().expect("entries").iter().filter_map(|e| e["message"].as_str()?.parse::<Value>().ok());
        let sent = messages.filter(|m| m["message"]["method"] == "Network.requestWillBeSent");
        sent.filter_map(|m| m["message"]["params"]["request"]["url"].as_str().map(str::to_owned)).collect()
    }

    /// A picture of the whole page, where `EVENKEEL_SCREENSHOTS` names a folder for them.
    pub fn picture(&self, name: &str) {
        use base64::Engine;
        let Some(folder) = std::env::var_os("EVENKEEL_SCREENSHOTS") else { return };
        let taken = self.devtools("Page.captureScreenshot", json!({ "format": "png", "captureBeyondViewport": true }));
        let data = taken["data"].as_str().expect("a picture");
        let bytes = base64::engine::general_purpose::STANDARD.decode(data).expect("base64");
        std::fs::create_dir_all(&folder).expect("a folder");
        std::fs::write(std::path::Path::new(&folder).join(format!("{name}.png")), bytes).expect("writes");
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The browser ends with its session; chromedriver with its value.
        let _ = self.agent.delete(&self.session).call();
    }
}
