//! Traces, as a collector gets them from whole processes.

use anyhow::{Context, Result, ensure};
use postrider_testkit::collector::{Collector, Span};
use postrider_testkit::process::{Builder, Postrider};
use postrider_testkit::receiver::{Receiver, Reply, Script};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::api::{Api, id_of};
use crate::stack::{SOON, Shape, Shared, Stack};
use crate::watch::Watched;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PRODUCER: &str = "b7ad6b7169203331";
const ROUTE: &str = "POST /api/v1/app/{app_id}/msg";
const MARKER: &str = "payload-marker";

/// The producer's header.
fn traceparent(sampled: bool) -> String {
    format!("00-{TRACE}-{PRODUCER}-0{}", u8::from(sampled))
}

/// Turns traces on, for `ratio` of the requests without a header.
fn traced(builder: Builder, collector: &Collector, ratio: &str) -> Builder {
    builder
        .env("POSTRIDER_TRACES__ENDPOINT", collector.url())
        .env("POSTRIDER_TRACES__SAMPLE_RATIO", ratio)
}

/// Sends a message with this header, or without one.
async fn send(api: &Api, app: &str, traceparent: Option<&str>) -> Result<String> {
    let headers: Vec<(&str, &str)> = traceparent
        .map(|text| ("traceparent", text))
        .into_iter()
        .collect();
    let body = json!({"eventType": "test.event", "payload": {"marker": MARKER}});
    let path = format!("/app/{app}/msg");
    let answer = api.call_with(Method::POST, &path, Some(&body), &headers).await?;
    ensure!(answer.status == StatusCode::ACCEPTED, "{answer:?}");
    id_of(&answer.body)
}

fn of_kind<'a>(spans: &'a [Span], kind: &str) -> Vec<&'a Span> {
    spans.iter().filter(|span| span.kind == kind).collect()
}

fn the_one<'a>(spans: &'a [Span], kind: &str) -> Result<&'a Span> {
    match of_kind(spans, kind).as_slice() {
        [one] => Ok(*one),
        other => anyhow::bail!("one {kind} span was expected: {other:#?}"),
    }
}

fn attribute<'a>(span: &'a Span, name: &str) -> &'a str {
    span.attributes.get(name).map_or("", String::as_str)
}

#[tokio::test]
async fn a_message_is_traced_from_its_producer_to_each_attempt() -> Result<()> {
    let collector = Collector::start().await?;
    let stack = Stack::embedded_with(|builder| traced(builder, &collector, "0")).await?;
    let roles = ["gateway,worker,ledger"; 2];
    to_each_attempt(&stack, &collector, roles, "in_process").await
}

#[tokio::test]
async fn a_message_is_traced_over_processes_and_the_broker() -> Result<()> {
    let collector = Collector::start().await?;
    let shared = Shared::on_shared_services().await?;
    let stack = Stack::scaled_on(shared, Shape::SMALL, |builder| traced(builder, &collector, "0")).await?;
    to_each_attempt(&stack, &collector, ["gateway", "worker"], "rabbitmq").await
}

async fn to_each_attempt(stack: &Stack, collector: &Collector, roles: [&str; 2], system: &str) -> Result<()> {
    let (api, receiver) = (stack.api(), Receiver::start().await?);
    receiver.on(
        "/flaky",
        Script::sequence([Reply::Status(503)]).then(Reply::Status(200)),
    );
    let app = api.app().await?;
    let body = json!({"url": receiver.url("/flaky"), "retrySchedule": [1, 1, 1]});
    let endpoint = api.endpoint_with(&app, body).await?;
    let message = send(&api, &app, Some(&traceparent(true))).await?;
    api.wait_status(&app, &message, "success").await?;
    let spans = collector
        .wait_for(SOON, |spans| {
            of_kind(spans, "consumer").len() == 2 && spans.len() == 6
        })
        .await?;

    let ingest = the_one(&spans, "server")?;
    ensure!(
        ingest.name == ROUTE
            && (ingest.trace.as_str(), ingest.parent.as_str()) == (TRACE, PRODUCER)
            && attribute(ingest, "http.response.status_code") == "202"
            && !ingest.failed,
        "{ingest:#?}"
    );
    let publish = the_one(&spans, "producer")?;
    ensure!(
        publish.name == "publish deliver"
            && (publish.trace.as_str(), &publish.parent) == (TRACE, &ingest.id)
            && attribute(publish, "messaging.system") == system
            && attribute(publish, "messaging.operation.type") == "send"
            && attribute(publish, "messaging.message.id") == message,
        "{publish:#?}"
    );
    let link = (publish.trace.clone(), publish.id.clone());
    for (number, consume) in of_kind(&spans, "consumer").into_iter().enumerate() {
        ensure!(
            consume.parent.is_empty()
                && consume.trace != TRACE
                && consume.links == [link.clone()]
                && consume.name == ["consume deliver", "consume retry"][number]
                && attribute(consume, "messaging.operation.type") == "process"
                && attribute(consume, "messaging.message.id") == message
                && attribute(consume, "postrider.endpoint.id") == endpoint,
            "{consume:#?}"
        );
        let attempt = spans
            .iter()
            .find(|span| span.parent == consume.id)
            .context("no attempt")?;
        let (status, next, resends) = [("503", "retry", ""), ("200", "delivered", "1")][number];
        ensure!(
            (attempt.kind, attempt.name.as_str(), &attempt.trace) == ("client", "POST", &consume.trace)
                && attribute(attempt, "http.response.status_code") == status
                && attribute(attempt, "postrider.delivery.next") == next
                && attribute(attempt, "http.request.resend_count") == resends
                && attribute(attempt, "server.address") == "127.0.0.1"
                && attempt.failed == (number == 0)
                && attempt.duration <= consume.duration,
            "{attempt:#?}"
        );
    }
    for span in &spans {
        let role = roles[usize::from(matches!(span.kind, "consumer" | "client"))];
        ensure!(
            span.sampled
                && span.resource.get("service.name").map(String::as_str) == Some("postrider")
                && span.resource.get("postrider.roles").map(String::as_str) == Some(role)
                && span.resource.contains_key("service.version"),
            "{span:#?}"
        );
        let shown = format!("{span:?}");
        ensure!(!shown.contains(MARKER) && !shown.contains("/flaky"), "{shown}");
    }
    let headers = receiver.requests("/flaky");
    ensure!(
        headers
            .iter()
            .all(|request| request.header("traceparent").is_none())
    );
    Ok(())
}

#[tokio::test]
async fn the_producers_flag_decides_before_the_ratio() -> Result<()> {
    let receiver = Receiver::start().await?;
    for (ratio, headerless_too) in [("0", false), ("1", true)] {
        let collector = Collector::start().await?;
        let stack = Stack::embedded_with(|builder| traced(builder, &collector, ratio)).await?;
        let api = stack.api();
        let app = api.app().await?;
        api.endpoint(&app, &receiver.url("/hook")).await?;
        let unsampled = send(&api, &app, Some(&traceparent(false))).await?;
        let headerless = send(&api, &app, None).await?;
        let malformed = send(&api, &app, Some("00-nonsense")).await?;
        for message in [&unsampled, &headerless, &malformed] {
            api.wait_status(&app, message, "success").await?;
        }
        // Comes last, so what the others make is there before it.
        let last = send(&api, &app, Some(&traceparent(true))).await?;
        let expected = if headerless_too {
            vec![&headerless, &malformed, &last]
        } else {
            vec![&last]
        };
        let spans = collector
            .wait_for(SOON, |spans| spans.len() >= expected.len() * 4)
            .await?;
        ensure!(spans.len() == expected.len() * 4, "{spans:#?}");
        let attempts = of_kind(&spans, "client");
        ensure!(
            expected.iter().all(|message| attempts
                .iter()
                .any(|span| attribute(span, "messaging.message.id") == **message)),
            "{attempts:#?}"
        );
        let roots = of_kind(&spans, "server")
            .into_iter()
            .filter(|span| span.parent.is_empty());
        ensure!(roots.count() == expected.len() - 1);
    }
    Ok(())
}

#[tokio::test]
async fn receivers_get_a_traceparent_where_the_application_wants_it() -> Result<()> {
    let collector = Collector::start().await?;
    for on in [false, true] {
        let receiver = Receiver::start().await?;
        let stack = Stack::embedded_with(|builder| {
            if on {
                traced(builder, &collector, "0")
            } else {
                builder
            }
        })
        .await?;
        let api = stack.api();
        let created = api.post("/app", &json!({"name": "silent"})).await?;
        ensure!(created["propagateTraceparent"] == false, "{created}");
        let silent = id_of(&created)?;
        let telling = id_of(
            &api.post("/app", &json!({"name": "a", "propagateTraceparent": true}))
                .await?,
        )?;
        api.endpoint(&silent, &receiver.url("/silent")).await?;
        api.endpoint(&telling, &receiver.url("/telling")).await?;
        for app in [&silent, &telling] {
            send(&api, app, Some(&traceparent(true))).await?;
        }
        let first = |path: &'static str| receiver.wait_for(path, SOON, |requests| requests.len() == 1);
        ensure!(first("/silent").await?[0].header("traceparent").is_none());
        let told = first("/telling").await?[0]
            .header("traceparent")
            .map(str::to_owned);
        let told = told.context("the receiver was not told")?;
        if on {
            let spans = collector
                .wait_for(SOON, |spans| of_kind(spans, "client").len() == 2)
                .await?;
            let own = |span: &&Span| told == format!("00-{}-{}-01", span.trace, span.id);
            ensure!(
                of_kind(&spans, "client").iter().any(own),
                "{told} is none of {spans:#?}"
            );
        } else {
            ensure!(told == traceparent(true), "{told}");
            ensure!(collector.spans()?.is_empty(), "spans without traces");
        }
        // A replacement by a client that does not know the field changes nothing; an explicit false does.
        let path = format!("/app/{telling}");
        let put = api.call(Method::PUT, &path, Some(&json!({"name": "b"}))).await?;
        ensure!(put.body["propagateTraceparent"] == true, "{put:?}");
        api.patch(&path, &json!({"propagateTraceparent": false})).await?;
        send(&api, &telling, Some(&traceparent(true))).await?;
        let requests = receiver
            .wait_for("/telling", SOON, |requests| requests.len() == 2)
            .await?;
        ensure!(requests[1].header("traceparent").is_none());
    }
    Ok(())
}

#[tokio::test]
async fn a_collector_that_is_away_or_refuses_slows_nothing_and_is_told_once() -> Result<()> {
    let collector = Collector::start().await?;
    // Its errors are not retried, so the loss shows at once.
    collector.on(Script::always(Reply::Status(400)));
    let url = collector
        .url()
        .replace("http://", "http://spans:span%26password@");
    let builder = Postrider::builder()
        .env("POSTRIDER_TRACES__ENDPOINT", url)
        .env("POSTRIDER_TRACES__SAMPLE_RATIO", "1");
    let (process, watched) = Watched::start(builder).await?;
    let (api, receiver) = (
        Api::new(&process.url(), &process.admin_key().await?),
        Receiver::start().await?,
    );
    let app = api.app().await?;
    api.endpoint(&app, &receiver.url("/hook")).await?;
    for lost in [4.0, 8.0] {
        let message = send(&api, &app, None).await?;
        api.wait_status(&app, &message, "success").await?;
        let failed = r#"postrider_trace_spans_total{result="failed"}"#;
        watched.reaches(failed, lost).await?;
    }
    let said = process.log();
    let lines = said
        .lines()
        .filter(|line| line.contains("spans were not exported"))
        .count();
    ensure!(lines == 1 && said.contains("answered 400"), "{said}");
    ensure!(!said.contains("password"), "{said}");
    let request = collector.requests().into_iter().next().context("a request")?;
    // `spans:span&password` in base 64.
    let login = request.header("authorization") == Some("Basic c3BhbnM6c3BhbiZwYXNzd29yZA==");
    ensure!(login, "{request:?}");

    collector.on(Script::always(Reply::Status(200)));
    let message = send(&api, &app, None).await?;
    api.wait_status(&app, &message, "success").await?;
    watched
        .reaches(r#"postrider_trace_spans_total{result="exported"}"#, 4.0)
        .await?;
    Ok(())
}

#[tokio::test]
async fn a_batch_is_one_publication_and_the_last_spans_leave_with_the_process() -> Result<()> {
    let collector = Collector::start().await?;
    let mut stack = Stack::embedded_with(|builder| traced(builder, &collector, "1")).await?;
    let (api, receiver) = (stack.api(), Receiver::start().await?);
    let app = api.app().await?;
    api.endpoint(&app, &receiver.url("/hook")).await?;
    let payloads: Vec<Value> = (0..3).map(|n| json!({ "n": n })).collect();
    api.batch(&app, &payloads).await?;
    receiver
        .wait_for("/hook", SOON, |requests| requests.len() == 3)
        .await?;
    stack.of_role("gateway").terminate(SOON).await?;
    let spans = collector.spans()?;
    let publish = the_one(&spans, "producer")?;
    ensure!(
        attribute(publish, "messaging.batch.message_count") == "3",
        "{publish:#?}"
    );
    let link = [(publish.trace.clone(), publish.id.clone())];
    let consumed = of_kind(&spans, "consumer");
    ensure!(
        consumed.len() == 3 && consumed.iter().all(|span| span.links == link),
        "{spans:#?}"
    );
    Ok(())
}
