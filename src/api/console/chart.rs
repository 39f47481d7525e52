//! Lines over the last minutes as inline SVG: no script, no style attribute.

use maud::{Markup, html};

use super::facts::{HISTORY_INTERVAL, History};

const WIDTH: f64 = 300.0;
const HEIGHT: f64 = 56.0;

/// One line of a chart.
pub struct Line<'a> {
    /// What it shows.
    pub name: &'a str,
    /// Its class: `a` or `b`.
    pub class: &'static str,
    /// Oldest first.
    pub values: Vec<u64>,
}

/// Lines over one scale from 0, with a legend of their last values; `show` writes a value, whose units go up by `thousand`;
/// the scale is never below `least`.
pub fn chart(what: &str, lines: &[Line<'_>], (thousand, least): (u64, u64), show: impl Fn(u64) -> String) -> Markup {
    let highest = lines.iter().flat_map(|l| &l.values).copied().max().unwrap_or(0);
    let top = scale(highest.max(least), thousand);
    let minutes = HISTORY_INTERVAL.as_secs() * History::len_max() as u64 / 60;
    let last = |l: &Line<'_>| show(l.values.last().copied().unwrap_or(0));
    let said: Vec<String> = lines.iter().map(|l| format!("{} {}", l.name, last(l))).collect();
    let label = format!("{what} over the last {minutes} minutes: now {}; highest {}", said.join(", "), show(highest));
    html! {
        figure.chart {
            figcaption {
                span.what { (what) }
                @for l in lines { span class={ "key " (l.class) } { (l.name) " " strong { (last(l)) } } }
            }
            svg role="img" aria-label=(label) viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } preserveAspectRatio="none" {
                line.base x1="0" x2=(WIDTH) y1=(HEIGHT) y2=(HEIGHT) {}
                line.grid x1="0" x2=(WIDTH) y1="1" y2="1" {}
                @for l in lines { polyline class=(l.class) points=(points(&l.values, top)) {} }
            }
            p.axis { span { (minutes) " min ago" } span { "now" } span.top-value { (show(top)) } }
        }
    }
}

/// The next round number in its unit: the scale stands still while values move.
fn scale(highest: u64, thousand: u64) -> u64 {
    let mut unit = 1u64;
    loop {
        for factor in [1, 2, 5, 10, 20, 50, 100, 200, 500] {
            let top = unit.saturating_mul(factor);
            if top >= highest || top == u64::MAX {
                return top;
            }
        }
        unit = unit.saturating_mul(thousand);
    }
}

/// The newest at the right edge.
fn points(values: &[u64], top: u64) -> String {
    let step = WIDTH / (History::len_max() - 1) as f64;
    let point = |(age, value): (usize, &u64)| {
        let y = HEIGHT - 1.0 - (*value as f64 / top as f64) * (HEIGHT - 3.0);
        format!("{:.1},{y:.1}", WIDTH - age as f64 * step)
    };
    values.iter().rev().enumerate().map(point).collect::<Vec<String>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_stands_still() {
        let decimal = [0, 1, 3, 6, 11, 499, 501].map(|n| scale(n, 1000));
        assert_eq!(decimal, [1, 1, 5, 10, 20, 500, 1000]);
        assert_eq!([501, 7 << 20, 600 << 20].map(|n| scale(n, 1024)), [1024, 10 << 20, 1 << 30]);
        assert_eq!(scale(u64::MAX, 1000), u64::MAX);
    }

    #[test]
    fn lines_end_at_the_right_edge_inside_the_picture() {
        assert_eq!(points(&[0, 10], 10), "300.0,2.0 298.0,55.0");
        assert_eq!(points(&[], 10), "");
    }
}
