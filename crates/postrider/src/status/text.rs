//! A report for people: a line a subject, then the queues that hold something and the endpoints that wait most.

use std::fmt::Write as _;

use postrider_gateway::{QueueStatus, WaitingStatus};

use super::Report;
use super::process::Process;

/// The report; every line ends with a line feed. Writing to a string does not fail.
pub(crate) fn render(report: &Report) -> String {
    let mut out = String::new();
    let status = &report.status;
    let _ = writeln!(out, "postrider {}   {}", status.version, status.at);
    let services = &status.services;
    let _ = writeln!(
        out,
        "services   broker {}, store {}, limits {}",
        services.broker, services.store, services.limits
    );
    let roles = &report.roles;
    let _ = writeln!(
        out,
        "roles      gateway {}, workers {}, ledgers {}",
        roles.gateways.map_or("not reached", |_| "answers"),
        known(roles.workers),
        known(roles.ledgers)
    );
    let _ = writeln!(out, "process    {}", process(report.process.as_ref()));
    let lag = report.journal.lag_seconds.map(|lag| format!("{lag:.1} s behind"));
    let _ = writeln!(
        out,
        "journal    {}{}",
        counted(report.journal.frames, " frames"),
        lag.map(|lag| format!(", {lag}")).unwrap_or_default()
    );
    let waits = status
        .waiting
        .as_ref()
        .map_or_else(|| "unknown".to_owned(), waiting);
    let _ = writeln!(out, "waiting    {waits}");
    let _ = writeln!(out, "breakers   {}", counted(status.open_breakers, " open"));
    let parked = known(status.parked);
    let hint = if status.parked.is_some_and(|parked| parked > 0) {
        " (see `postrider poison list`)"
    } else {
        ""
    };
    let _ = writeln!(out, "parked     {parked}{hint}");
    queues(&mut out, &status.queues);
    if let Some(waiting) = status
        .waiting
        .as_ref()
        .filter(|waiting| !waiting.endpoints.is_empty())
    {
        endpoints(&mut out, waiting);
    }
    out
}

fn known(number: Option<impl ToString>) -> String {
    number.map_or_else(|| "unknown".to_owned(), |number| number.to_string())
}

/// What is inside an embedded process comes with `--url`.
fn counted(number: Option<u64>, of: &str) -> String {
    number.map_or_else(|| "unknown".to_owned(), |number| format!("{number}{of}"))
}

fn process(process: Option<&Process>) -> String {
    let Some(process) = process else {
        return "nothing answers at the configured address".to_owned();
    };
    let mut text = format!(
        "{} is {}",
        process.address,
        if process.ready { "ready" } else { "not ready" }
    );
    let missing = process.dependencies.iter().filter(|(_, state)| *state != "up");
    for (name, state) in missing {
        let _ = write!(text, ", {name} {state}");
    }
    if let (Some(in_flight), Some(queued)) = (process.attempts_in_flight, process.deliveries_queued) {
        let _ = write!(
            text,
            ", {in_flight} attempts in flight, {queued} deliveries queued"
        );
    }
    text
}

fn waiting(waiting: &WaitingStatus) -> String {
    let mut text = waiting.total.to_string();
    for (number, (reason, count)) in waiting.by_reason.iter().enumerate() {
        let _ = write!(text, "{} {reason} {count}", if number == 0 { ":" } else { "," });
    }
    if waiting.ready_age_seconds > 0.0 {
        let _ = write!(
            text,
            "; the oldest ready one for {:.1} s",
            waiting.ready_age_seconds
        );
    }
    text
}

fn queues(out: &mut String, queues: &[QueueStatus]) {
    if queues.is_empty() {
        return;
    }
    let _ = writeln!(out, "\n{:<28} {:>10} {:>10}", "queue", "frames", "consumers");
    for queue in queues {
        let _ = writeln!(
            out,
            "{:<28} {:>10} {:>10}",
            queue.name, queue.frames, queue.consumers
        );
    }
}

fn endpoints(out: &mut String, waiting: &WaitingStatus) {
    let _ = writeln!(
        out,
        "\n{:<31} {:<30} {:>8}  first due",
        "application", "endpoint", "waiting"
    );
    for endpoint in &waiting.endpoints {
        let _ = writeln!(
            out,
            "{:<31} {:<30} {:>8}  {}",
            endpoint.app_id, endpoint.endpoint_id, endpoint.waiting, endpoint.due_at
        );
    }
}
