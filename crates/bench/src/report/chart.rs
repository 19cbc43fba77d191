//! The findings that have an aim, as bars: how far each is towards it.

use std::fmt::Write as _;

use super::Report;
use crate::scenario::{Aim, Finding};

const LABEL: f64 = 500.0;
const BAR: f64 = 300.0;
const ROW: f64 = 26.0;
/// Bars end at this multiple of the aim.
const MOST: f64 = 2.0;

/// The chart. A bar that reaches the line meets its aim, whichever way the aim counts.
pub(super) fn svg(report: &Report) -> String {
    let findings: Vec<(&str, &Finding, Aim)> = report
        .outcomes
        .iter()
        .flat_map(|outcome| {
            outcome
                .findings
                .iter()
                .map(|finding| (outcome.scenario.as_str(), finding))
        })
        .filter_map(|(scenario, finding)| Some((scenario, finding, finding.aim?)))
        .collect();
    let rows: f64 = findings.iter().map(|_| ROW).sum();
    let (width, height) = (LABEL + BAR + 170.0, rows + 70.0);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"10\" y=\"22\" font-size=\"15\">Postrider: figures against their aims</text>\n\
         <text x=\"10\" y=\"40\" fill=\"#666\">{}</text>\n",
        escape(&format!(
            "{}, {} cores, median of {} rounds",
            report.machine.date, report.machine.cores, report.rounds
        )),
    );
    let mut y = 52.0;
    for (scenario, finding, aim) in findings {
        let value = finding.spread.median;
        let reached = match aim {
            Aim::AtLeast(least) => value / least,
            Aim::AtMost(most) => most / value.max(1e-9),
        };
        let length = (reached / MOST).clamp(0.005, 1.0) * BAR;
        let colour = if aim.is_met(value) { "#2a7f4f" } else { "#c2552d" };
        let aim = match aim {
            Aim::AtLeast(value) => format!("≥ {value}"),
            Aim::AtMost(value) => format!("≤ {value}"),
        };
        // Writing to a string cannot fail.
        let _ = writeln!(
            out,
            "<text x=\"10\" y=\"{:.0}\">{}</text><rect x=\"{LABEL}\" y=\"{y:.0}\" width=\"{length:.1}\" height=\"16\" \
             fill=\"{colour}\"/><text x=\"{:.0}\" y=\"{:.0}\">{value:.2} (aim {})</text>",
            y + 13.0,
            escape(&format!("{scenario}: {}", finding.what)),
            LABEL + BAR + 8.0,
            y + 13.0,
            escape(&aim),
        );
        y += ROW;
    }
    let line = LABEL + BAR / MOST;
    let _ = writeln!(
        out,
        "<line x1=\"{line}\" x2=\"{line}\" y1=\"48\" y2=\"{y:.0}\" stroke=\"#333\" stroke-dasharray=\"4 3\"/>\n</svg>"
    );
    out
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_break_the_markup() {
        assert_eq!(escape("a < b & c > d"), "a &lt; b &amp; c &gt; d");
    }
}
