//! Small pieces that every section uses: numbers in words, states, bars.

use maud::{Markup, html};

pub use crate::core::units::HumanBytes;
pub use crate::core::words::{human_seconds as seconds, human_us as micros, thousands as count, utc};

/// `1 node`, `2 nodes`.
pub fn plural(n: u64, one: &str, many: &str) -> String {
    format!("{} {}", count(n), if n == 1 { one } else { many })
}

/// A rate.
pub fn rate(bytes_per_sec: u64) -> String {
    format!("{}/s", HumanBytes(bytes_per_sec))
}

/// The day's time in UTC, with the whole moment for machines.
pub fn time(unix_ms: u64, now_unix_ms: u64) -> Markup {
    let (date, clock) = utc(unix_ms);
    let same_day = date == utc(now_unix_ms).0;
    html! { time datetime={ (date) "T" (clock) "Z" } { @if !same_day { (date) " " } (clock) } }
}

/// How bad a state's word is.
pub fn level(state: &str) -> &'static str {
    match state {
        "ok" | "up" | "done" | "running" => "ok",
        "warn" | "suspect" | "draining" | "maintenance" | "degraded" | "paused" | "deleting" => "warn",
        "error" | "down" | "failed" | "hung" | "full" | "unavailable" => "error",
        _ => "quiet",
    }
}

/// A state's word with its mark; the word says it to those who don't see colours.
pub fn state(word: &str) -> Markup {
    html! { span class={ "state " (level(word)) } { (word) } }
}

/// How full something is: a bar with its text.
pub fn fill(used: u64, capacity: u64) -> Markup {
    let percent = percent(used, capacity);
    let grade = if percent >= 85 { "fill near" } else { "fill" };
    html! {
        span class=(grade) {
            svg.bar aria-hidden="true" viewBox="0 0 100 6" preserveAspectRatio="none" {
                rect.empty width="100" height="6" {}
                rect.used width=(percent) height="6" {}
            }
            span.num { (percent) " %" }
        }
    }
}

/// A share of a whole in percent, rounded down: 100 is all of it.
pub fn percent(part: u64, whole: u64) -> u64 {
    (u128::from(part) * 100 / u128::from(whole.max(1))).min(100) as u64
}

/// A sentence; what stands between backticks is a command.
pub fn words(text: &str) -> Markup {
    html! { @for (at, part) in text.split('`').enumerate() { @if at % 2 == 1 { code { (part) } } @else { (part) } } }
}

/// A progress bar with its text.
pub fn progress(done: u64, total: u64, what: &str) -> Markup {
    let percent = percent(done, total);
    html! {
        span.progress {
            progress max="100" value=(percent) aria-label={ "progress of " (what) } { (percent) " %" }
            span.num { (percent) " %" }
        }
    }
}

/// A section's title.
pub fn title(id: &str, text: &str, aside: Markup) -> Markup {
    html! { div.head { h2 id={ (id) "-title" } { (text) } p.aside { (aside) } } }
}

/// The start of a daemon's page, if what it says of itself is a plain HTTP address: nothing else may become a link.
pub fn link_to(url: &str) -> Option<String> {
    let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"))?.trim_end_matches('/');
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | ':' | '-' | '[' | ']');
    (!rest.is_empty() && rest.len() <= 255 && rest.chars().all(plain))
        .then(|| format!("{}/", url.trim_end_matches('/')))
}
