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

/// Lines over one scale from 0, with a legend of their last values; `show` writes a value.
pub fn chart(what: &str, lines: &[Line<'_>], show: impl Fn(u64) -> String) -> Markup {
    let highest = lines.iter().flat_map(|l| &l.values).copied().max().unwrap_or(0);
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
                line.grid x1="0" x2=(WIDTH) y1=(HEIGHT / 2.0) y2=(HEIGHT / 2.0) {}
                @for l in lines { polyline class=(l.class) points=(points(&l.values, scale(highest))) {} }
            }
            p.axis { span { (minutes) " min ago" } span { "top " (show(scale(highest))) } span { "now" } }
        }
    }
}

/// The next of 1, 2, 5 × 10^n: the scale stands still while values move.
fn scale(highest: u64) -> u64 {
    let mut step = 1u64;
    loop {
        for factor in [1, 2, 5] {
            let top = step.saturating_mul(factor);
            if top >= highest || top == u64::MAX {
                return top;
            }
        }
        step = step.saturating_mul(10);
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
        assert_eq!([0, 1, 2, 3, 5, 6, 10, 11, 499, 501].map(scale), [1, 1, 2, 5, 5, 10, 10, 20, 500, 1000]);
        assert_eq!(scale(u64::MAX), u64::MAX);
    }

    #[test]
    fn lines_end_at_the_right_edge_inside_the_picture() {
        assert_eq!(points(&[0, 10], 10), "300.0,2.0 298.0,55.0");
        assert_eq!(points(&[], 10), "");
    }
}
