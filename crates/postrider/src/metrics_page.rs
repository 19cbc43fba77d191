//! The reference of metrics, `docs/metrics.md`: made from what the code registers, and proven fresh here.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use postrider_telemetry::{DOCS, Doc, Metrics};

const WRITE: &str = "POSTRIDER_WRITE_DOCS";

/// A process with every metric.
fn exposition() -> String {
    let gateway = Arc::new(postrider_gateway::Metrics::default());
    Metrics::with(|registry| gateway.register(registry)).render()
}

/// Label names and their values by metric, where every series exists from the start.
fn labels(exposition: &str) -> BTreeMap<String, BTreeMap<String, BTreeSet<String>>> {
    let mut found: BTreeMap<String, BTreeMap<String, BTreeSet<String>>> = BTreeMap::new();
    for line in exposition.lines() {
        let Some((name, rest)) = line.split_once('{') else {
            continue;
        };
        let Some((labels, _)) = rest.split_once('}') else {
            continue;
        };
        for label in labels.split(',') {
            let Some((label, value)) = label.split_once('=') else {
                continue;
            };
            let values = found.entry(name.to_owned()).or_default();
            let values = values.entry(label.to_owned()).or_default();
            values.insert(value.trim_matches('"').to_owned());
        }
    }
    found
}

fn reference() -> String {
    let exposition = exposition();
    let labels = labels(&exposition);
    let mut text = postrider_telemetry::docs_table(DOCS);
    text.push_str("\n### Labels\n\n| Metric | Label | Values |\n|---|---|---|\n");
    for doc in DOCS {
        for (label, values) in labels.get(doc.name).into_iter().flatten() {
            let values: Vec<String> = values.iter().map(|value| format!("`{value}`")).collect();
            if doc.name != "postrider_build_info" {
                let _ = writeln!(text, "| `{}` | `{label}` | {} |", doc.name, values.join(" "));
            }
        }
    }
    text.push_str("\n### Counted by gateways\n\n");
    text.push_str(&postrider_telemetry::docs_table(postrider_gateway::DOCS));
    text
}

#[test]
fn the_page_is_fresh() {
    const BEGIN: &str = "<!-- begin reference -->\n";
    const END: &str = "<!-- end reference -->";
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/metrics.md"));
    let page = std::fs::read_to_string(&path).expect("the page can be read");
    let (head, rest) = page.split_once(BEGIN).expect("a begin mark");
    let (written, tail) = rest.split_once(END).expect("an end mark");
    let reference = reference();
    if written != reference && std::env::var_os(WRITE).is_some() {
        std::fs::write(&path, format!("{head}{BEGIN}{reference}{END}{tail}"))
            .expect("the page can be written");
        return;
    }
    assert!(
        written == reference,
        "docs/metrics.md is stale; run this test with {WRITE}=1 to write it anew"
    );
}

#[test]
fn every_exported_metric_is_documented_with_its_type() {
    let exposition = exposition();
    let types = exposition.lines().filter_map(|line| {
        let (name, kind) = line.strip_prefix("# TYPE ")?.split_once(' ')?;
        let suffix = match kind {
            "counter" => "_total",
            "info" => "_info",
            _ => "",
        };
        Some((format!("{name}{suffix}"), kind.to_owned()))
    });
    let entry = |doc: &Doc| (doc.name.to_owned(), doc.kind.as_str().to_owned());
    let mut documented: BTreeMap<_, _> = DOCS.iter().chain(postrider_gateway::DOCS).map(entry).collect();
    for only_with_traffic in [
        "http_server_request_duration_seconds",
        "postrider_gateway_messages_refused_total",
    ] {
        assert!(documented.remove(only_with_traffic).is_some());
    }
    assert_eq!(types.collect::<BTreeMap<_, _>>(), documented);
}
