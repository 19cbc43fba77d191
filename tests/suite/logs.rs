//! Log lines: what they look like, and what must never be in them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use postrider_testkit::process::{Builder, Postrider};
use postrider_testkit::receiver::{Receiver, Reply, Script};
use postrider_testkit::wait::{Poll, wait_for};
use reqwest::Method;
use serde_json::{Map, Value, json};

use crate::api::Api;
use crate::stack::{ADMIN_KEY, SECRETS_KEY, SOON, Shape, Shared, Stack};

const MARKER: &str = "payload-marker-4711";
const HEADER: &str = "header-value-4712";
const URL_PASSWORD: &str = "url-password-4713";
const STORE_PASSWORD: &str = "store-password-4714";
const BROKER_PASSWORD: &str = "broker-password-4715";
const REDIS_PASSWORD: &str = "redis-password-4716";
const SPANS_PASSWORD: &str = "spans-password-4717";
const WRONG_KEY: &str = "prk_wrong-key-4718";
const PATH: &str = "secret-path-4719";
/// `log-test-signing-secret-32-bytes`.
const SECRET: &str = "whsec_bG9nLXRlc3Qtc2lnbmluZy1zZWNyZXQtMzItYnl0ZXM=";

/// Everything said, by everybody, in JSON.
fn loud(builder: Builder) -> Builder {
    builder
        .env("POSTRIDER_LOG__FORMAT", "json")
        .env("POSTRIDER_LOG__LEVEL", "debug")
        .env(
            "POSTRIDER_TRACES__ENDPOINT",
            format!("http://spans:{SPANS_PASSWORD}@127.0.0.1:1"),
        )
        .env("POSTRIDER_TRACES__SAMPLE_RATIO", "1")
}

#[tokio::test]
async fn embedded_lines_are_json_and_hold_no_secret() -> Result<()> {
    let builder = loud(Postrider::builder())
        .env("POSTRIDER_AUTH__ADMIN_KEY", ADMIN_KEY)
        .env("POSTRIDER_SECRETS__KEY", SECRETS_KEY);
    let mut process = builder.start().await?;
    let secrets = live(&Api::new(&process.url(), ADMIN_KEY)).await?;
    process.terminate(SOON).await?;
    judge(&process.log(), &secrets)
}

#[tokio::test]
async fn scaled_out_lines_are_json_and_hold_no_secret() -> Result<()> {
    let mut shared = Shared::on_shared_services().await?;
    // The server trusts this machine, whatever the password is.
    shared.postgres = shared.postgres.replacen('@', &format!(":{STORE_PASSWORD}@"), 1);
    let mut stack = Stack::scaled_on(shared, Shape::SMALL, loud).await?;
    let secrets = live(&stack.api()).await?;
    for process in stack.processes_mut() {
        process.terminate(SOON).await?;
        judge(&process.log(), &secrets)?;
    }
    Ok(())
}

#[tokio::test]
async fn services_that_refuse_are_told_of_without_their_passwords() -> Result<()> {
    let mut shared = Shared::on_shared_services().await?;
    shared.amqp = shared
        .amqp
        .replacen("guest:guest", &format!("guest:{BROKER_PASSWORD}"), 1);
    shared.redis = shared.redis.replacen("://", &format!("://:{REDIS_PASSWORD}@"), 1);
    shared.postgres = format!("postgres://nobody:{STORE_PASSWORD}@127.0.0.1:1/none");
    let mut worker = loud(shared.builder("gateway")).spawn()?;
    wait_for("every service to be told of", SOON, async || {
        let log = worker.log();
        let told = ["RabbitMQ is out of reach", "redis", "the store is"].map(|words| log.contains(words));
        Ok(if told == [true; 3] {
            Poll::Ready(())
        } else {
            Poll::NotYet(log)
        })
    })
    .await?;
    worker.terminate(SOON).await?;
    judge(&worker.log(), &[])
}

/// Success, failure, refusals, a secret's rotation; what is secret of it.
async fn live(api: &Api) -> Result<Vec<String>> {
    let receiver = Receiver::start().await?;
    let path = format!("/{PATH}");
    receiver.on(&path, Script::sequence([Reply::Status(503), Reply::Close]));
    let app = api.app().await?;
    let headers = json!({"authorization": format!("Bearer {HEADER}")});
    let body =
        json!({"url": receiver.url(&path), "secret": SECRET, "headers": headers, "retrySchedule": [1, 1, 1]});
    let endpoint = api.endpoint_with(&app, body).await?;
    let gone = json!({"url": format!("http://127.0.0.1:1/{PATH}"), "retrySchedule": [1]});
    api.endpoint_with(&app, gone).await?;

    let with_password = receiver
        .url(&path)
        .replace("http://", &format!("http://user:{URL_PASSWORD}@"));
    let answer = api
        .call(
            Method::POST,
            &format!("/app/{app}/endpoint"),
            Some(&json!({"url": with_password})),
        )
        .await?;
    ensure!(answer.status == 422, "{answer:?}");
    let wrong = Api::new(api.base(), WRONG_KEY);
    let answer = wrong.call(Method::GET, &format!("/app/{app}"), None).await?;
    ensure!(answer.status == 401, "{answer:?}");
    let malformed = json!({"eventType": MARKER.repeat(100), "payload": {"marker": MARKER}});
    let answer = api
        .call(Method::POST, &format!("/app/{app}/msg"), Some(&malformed))
        .await?;
    ensure!(answer.status == 422, "{answer:?}");

    let key = api
        .post("/auth/key", &json!({"name": "log", "scope": "ingest"}))
        .await?;
    let key = key["key"]
        .as_str()
        .with_context(|| format!("no key in {key}"))?
        .to_owned();
    let sent = Api::new(api.base(), &key)
        .send(&app, json!({"marker": MARKER}))
        .await?;
    receiver
        .wait_for(&path, SOON, |requests| requests.len() == 3)
        .await?;
    let secret = format!("/app/{app}/endpoint/{endpoint}/secret");
    api.post(&format!("{secret}/rotate"), &json!({})).await?;
    let rotated = api.get(&secret).await?;
    let rotated = rotated["key"]
        .as_str()
        .with_context(|| format!("no key in {rotated}"))?
        .to_owned();
    ensure!(rotated != SECRET, "it was not rotated");
    api.send(&app, json!({"marker": MARKER})).await?;
    let requests = receiver
        .wait_for(&path, SOON, |requests| requests.len() == 4)
        .await?;
    let signature = requests[3].header("webhook-signature").unwrap_or_default();
    ensure!(!sent.is_empty() && signature.len() > 60, "{signature}");
    Ok([&key, &rotated]
        .into_iter()
        .cloned()
        .chain(signature.split(' ').map(str::to_owned))
        .collect())
}

fn judge(log: &str, secrets: &[String]) -> Result<()> {
    let fixed = [
        ADMIN_KEY,
        SECRETS_KEY,
        MARKER,
        HEADER,
        URL_PASSWORD,
        STORE_PASSWORD,
        BROKER_PASSWORD,
        REDIS_PASSWORD,
        SPANS_PASSWORD,
        WRONG_KEY,
        PATH,
        SECRET,
    ];
    ensure!(log.lines().count() > 5, "it says nothing: {log}");
    for line in log.lines() {
        let found = fixed.iter().copied().chain(secrets.iter().map(String::as_str));
        for secret in found {
            // As text, and as the bytes that a careless `Debug` prints.
            let bytes = format!("{:?}", secret.as_bytes());
            let bytes = bytes.trim_matches(['[', ']']);
            ensure!(
                !line.contains(secret) && !line.contains(bytes),
                "`{secret}` is in: {line}"
            );
        }
        let parsed: Map<String, Value> =
            serde_json::from_str(line).with_context(|| format!("not a JSON object: {line}"))?;
        let is_text = |name: &str| parsed.get(name).is_some_and(Value::is_string);
        ensure!(
            ["timestamp", "level", "target"].into_iter().all(is_text),
            "something is missing: {line}"
        );
        // What libraries say has fields as they like, and may have no message.
        if parsed["target"]
            .as_str()
            .is_some_and(|target| target.starts_with("postrider"))
        {
            ensure!(is_text("message"), "no message: {line}");
            judge_fields(&parsed).with_context(|| line.to_owned())?;
        }
    }
    Ok(())
}

fn judge_fields(line: &Map<String, Value>) -> Result<()> {
    for (name, value) in line {
        if let ("span", Value::Object(span)) = (name.as_str(), value) {
            judge_fields(span)?;
            continue;
        }
        judge_name(name)?;
        let text = value.as_str().unwrap_or_default();
        let number = text.trim_end_matches(['n', 'µ', 'm', 's', 'h', 'i', 'B', 'K', 'M', 'G']);
        ensure!(
            name == "message" || number == text || number.parse::<f64>().is_err(),
            "`{name}` has its unit in the value: {text}"
        );
    }
    Ok(())
}

/// Lower case, words joined by `_`, what they belong to before a dot, and the unit at the end.
fn judge_name(name: &str) -> Result<()> {
    const UNITS: [&str; 4] = ["_seconds", "_ms", "_bytes", "_percent"];
    const MEASURES: [&str; 10] = [
        "duration", "delay", "elapsed", "wait", "timeout", "latency", "lag", "offset", "size", "lateness",
    ];
    // Whose? Such a name alone does not tell.
    const BARE: [&str; 12] = [
        "id",
        "app",
        "endpoint",
        "delivery",
        "application",
        "key",
        "name",
        "kind",
        "version",
        "bytes",
        "seconds",
        "ms",
    ];
    let is_word = |word: &str| {
        word.starts_with(|first: char| first.is_ascii_lowercase())
            && word
                .chars()
                .all(|char| char.is_ascii_lowercase() || char.is_ascii_digit() || char == '_')
    };
    ensure!(name.split('.').all(is_word), "`{name}` is no dotted name");
    // A span's own name comes from the library.
    ensure!(
        name == "name" || !BARE.contains(&name),
        "`{name}` does not tell whose it is"
    );
    let last = name.rsplit('.').next().unwrap_or(name);
    ensure!(
        !MEASURES.iter().any(|measure| last.contains(measure))
            || UNITS.iter().any(|unit| last.ends_with(unit)),
        "`{name}` has no unit"
    );
    Ok(())
}

#[test]
fn every_field_in_the_sources_is_named_by_the_rule() -> Result<()> {
    let crates = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../crates"));
    let mut found = 0;
    for entry in std::fs::read_dir(&crates)? {
        let entry = entry?;
        let tool = ["testkit", "bench", "xtask"]
            .iter()
            .any(|name| entry.file_name() == *name);
        if !tool {
            found += judge_sources(&entry.path().join("src"))?;
        }
    }
    ensure!(found > 50, "only {found} log lines were found");
    Ok(())
}

fn judge_sources(folder: &Path) -> Result<usize> {
    let mut found = 0;
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            found += judge_sources(&path)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let source = std::fs::read_to_string(&path)?;
            for arguments in log_lines(&source) {
                for field in fields(arguments) {
                    judge_field(&field).with_context(|| format!("{}: {arguments}", path.display()))?;
                }
                found += 1;
            }
        }
    }
    Ok(found)
}

/// The arguments of each `tracing` macro.
fn log_lines(source: &str) -> impl Iterator<Item = &str> {
    let macros = [
        "error!(",
        "warn!(",
        "info!(",
        "debug!(",
        "info_span!(",
        "debug_span!(",
    ];
    source.split("tracing::").skip(1).filter_map(move |rest| {
        let start = macros.iter().find(|name| rest.starts_with(*name))?.len();
        let mut depth = 1_usize;
        let end = rest[start..].find(|char| {
            match char {
                '(' => depth += 1,
                ')' => depth -= 1,
                _ => {}
            }
            depth == 0
        })?;
        Some(&rest[start..start + end])
    })
}

/// What stands before the message, split at the commas that are in no brackets.
fn fields(arguments: &str) -> Vec<String> {
    let mut depth = 0_usize;
    let mut quoted = false;
    let mut parts = arguments.split(|char| {
        match char {
            '"' => quoted = !quoted,
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        char == ',' && depth == 0 && !quoted
    });
    // A span has its name first, a line its message last.
    let first = parts.next().filter(|first| !first.trim_start().starts_with('"'));
    first
        .into_iter()
        .chain(parts)
        .map(|part| part.split_whitespace().collect::<Vec<_>>().join(" "))
        .take_while(|part| !part.starts_with('"'))
        .filter(|part| !part.is_empty() && !part.starts_with("target:") && !part.starts_with("parent:"))
        .collect()
}

fn judge_field(field: &str) -> Result<()> {
    let (name, value) = field.split_once('=').unwrap_or((field, ""));
    let name = name.trim().trim_start_matches(['%', '?']);
    judge_name(name)?;
    let unit = |call: &str, suffix: &str| !value.contains(call) || name.ends_with(suffix);
    ensure!(
        unit("as_secs", "_seconds") && unit("as_millis", "_ms"),
        "`{name}` has no unit"
    );
    Ok(())
}
