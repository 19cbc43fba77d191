//! What the on-call does from the command line: `postrider status`, `top`, `poison`; on both set-ups.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use postrider_model::{CancelReason, DeliveryId, EndpointId, Next, Outcome, Record, Trigger, UnixMillis};
use postrider_store::SharedStore;
use postrider_testkit::process::{Postrider, binary};
use postrider_testkit::receiver::Receiver;
use postrider_testkit::wait::{Poll, wait_for};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::cli;
use crate::stack::{SOON, Shape, Stack, embedded_store};

/// How the command line reaches a stack: the environment that its processes have.
struct Operator {
    env: Vec<(&'static str, String)>,
    store: Option<SharedStore>,
}

impl Operator {
    fn embedded(stack: &Stack, data: &Path) -> Result<Self> {
        let store = embedded_store(data)?;
        let data = data.display().to_string();
        Ok(Self {
            env: vec![("POSTRIDER_LISTEN", address(stack)), ("POSTRIDER_DATA_DIR", data)],
            store: Some(store),
        })
    }

    fn scaled(stack: &Stack) -> Result<Self> {
        let shared = stack.shared.as_ref().context("a scaled-out stack")?;
        let store = shared.store()?;
        let settings = shared.settings().into_iter();
        let mut env: Vec<_> = settings.map(|(name, value)| (name, value.to_owned())).collect();
        env.push(("POSTRIDER_LISTEN", address(stack)));
        Ok(Self {
            env,
            store: Some(store),
        })
    }

    fn command(&self, args: &[&str]) -> Result<Command> {
        let mut command = Command::new(binary()?);
        command.args(args).stdin(Stdio::null()).kill_on_drop(true);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("POSTRIDER_") {
                command.env_remove(name);
            }
        }
        command.envs(self.env.iter().cloned());
        Ok(command)
    }

    /// What the command prints; it must succeed.
    async fn run(&self, args: &[&str]) -> Result<String> {
        let output = self.command(args)?.output().await?;
        let (said, failed) = (
            String::from_utf8(output.stdout)?,
            String::from_utf8_lossy(&output.stderr),
        );
        ensure!(output.status.success(), "{args:?} failed: {said}{failed}");
        Ok(said)
    }

    async fn status(&self) -> Result<Value> {
        Ok(serde_json::from_str(&self.run(&["status", "--json"]).await?)?)
    }

    /// What is parked, oldest first.
    async fn parked(&self) -> Result<Vec<Value>> {
        let list: Value = serde_json::from_str(&self.run(&["poison", "list", "--json"]).await?)?;
        let mut rows = list["data"].as_array().context("a list")?.clone();
        rows.reverse();
        Ok(rows)
    }
}

fn address(stack: &Stack) -> String {
    stack.gateways[0].url().replace("http://", "")
}

#[tokio::test]
async fn the_on_call_sees_and_clears_an_embedded_stack() -> Result<()> {
    let data = tempfile::tempdir()?;
    let stack = Stack::embedded_with(|builder| builder.data_dir(data.path())).await?;
    let operator = Operator::embedded(&stack, data.path())?;
    on_call(&stack, &operator, Inside::Embedded).await?;

    // What only the process knows comes over its API.
    wait_for("the status over the API", SOON, async || {
        let mut remote = operator.command(&["status", "--json", "--url", &stack.gateways[0].url()])?;
        let output = remote
            .env("POSTRIDER_AUTH__ADMIN_KEY", stack.key())
            .output()
            .await?;
        let status: Value = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("it said {}", String::from_utf8_lossy(&output.stderr)))?;
        let seen = status["services"] == json!({"broker": "up", "store": "up", "limits": "up"})
            && status["queues"]
                .as_array()
                .is_some_and(|queues| queues.len() == 10)
            && status["openBreakers"] == 0;
        Ok(if seen {
            Poll::Ready(())
        } else {
            Poll::NotYet(format!("{status:#}"))
        })
    })
    .await
}

#[tokio::test]
async fn the_on_call_sees_and_clears_a_scaled_out_stack() -> Result<()> {
    let shape = Shape {
        workers: 2,
        ..Shape::SMALL
    };
    let stack = Stack::scaled(shape).await?;
    let operator = Operator::scaled(&stack)?;
    on_call(&stack, &operator, Inside::Services).await
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Inside {
    Embedded,
    Services,
}

async fn on_call(stack: &Stack, operator: &Operator, inside: Inside) -> Result<()> {
    let (api, receiver) = (stack.api(), Receiver::start().await?);
    let app = api.app().await?;
    let endpoint = api.endpoint(&app, &receiver.url("/hook")).await?;
    let path = format!("/app/{app}/endpoint/{endpoint}");
    api.patch(&path, &json!({"paused": true})).await?;
    for n in 0..3 {
        api.send(&app, json!({ "n": n })).await?;
    }
    let services = json!({"broker": "up", "store": "up", "limits": "up"});
    let roles = json!({"gateways": 1, "workers": 2, "ledgers": 1});
    // All of it in one look: a service may be asked just when it is slow.
    wait_for("three paused deliveries in the status", SOON, async || {
        let status = operator.status().await?;
        let seen = status["waiting"]["byReason"]["paused"] == 3
            && status["waiting"]["endpoints"][0]["endpointId"] == endpoint
            && status["waiting"]["endpoints"][0]["waiting"] == 3
            && status["services"]["store"] == "up"
            && status["process"]["ready"] == true
            && status["roles"]["gateways"] == 1;
        let inside_seen = inside == Inside::Embedded
            || status["services"] == services
                && status["roles"] == roles
                && status["journal"]["frames"].is_u64();
        Ok(if seen && inside_seen {
            Poll::Ready(())
        } else {
            Poll::NotYet(format!("{status:#}"))
        })
    })
    .await?;
    let text = operator.run(&["status"]).await?;
    ensure!(text.contains("paused 3") && text.contains(&endpoint), "{text}");
    // Standard output is no terminal here: once, and no control characters.
    let text = operator.run(&["top"]).await?;
    ensure!(text.contains("paused 3") && !text.contains('\x1b'), "{text}");

    poison(stack, operator, &app, &endpoint, &receiver).await
}

/// A parked job becomes a manual delivery, a parked record a recorded one, and what nobody can read stays until dropped.
async fn poison(
    stack: &Stack,
    operator: &Operator,
    app: &str,
    endpoint: &str,
    receiver: &Receiver,
) -> Result<()> {
    let api = stack.api();
    api.patch(
        &format!("/app/{app}/endpoint/{endpoint}"),
        &json!({"paused": false}),
    )
    .await?;
    let message = api.send(app, json!({"n": 3})).await?;
    receiver
        .wait_for("/hook", SOON, |requests| requests.len() == 4)
        .await?;
    api.wait_status(app, &message, "success").await?;

    let job = Outcome {
        delivery: DeliveryId::derive(message.parse()?, endpoint.parse()?),
        message: message.parse()?,
        endpoint: endpoint.parse::<EndpointId>()?,
        app: app.parse()?,
        run: 0,
        attempts: 0,
        trigger: Trigger::Scheduled,
        at: UnixMillis::now(),
        attempt: None,
        next: Next::Cancelled(CancelReason::Parked),
    };
    let journal = postrider_wire::encode_journal(&[Record::Outcome(Box::new(job.clone()))]);
    let store = operator.store.as_ref().context("a store")?;
    store
        .park(
            "job",
            "came back too often",
            &postrider_wire::encode_outcome(&job),
        )
        .await?;
    store.park("record", "refused by the store", &journal).await?;
    store
        .park("frame", "not a frame", &b"\xff\xff"[..].into())
        .await?;
    let rows = operator.parked().await?;
    let kinds: Vec<_> = rows
        .iter()
        .map(|row| row["kind"].as_str().unwrap_or_default())
        .collect();
    ensure!(kinds == ["job", "record", "frame"], "{rows:?}");
    ensure!(
        rows[0]["holds"]
            .as_str()
            .is_some_and(|holds| holds.contains(&message)),
        "{rows:?}"
    );
    ensure!(operator.status().await?["parked"] == 3);
    let id = |row: usize| rows[row]["id"].to_string();

    let output = operator.command(&["poison", "replay", "--all"])?.output().await?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines: Vec<&str> = said.lines().collect();
    ensure!(
        lines.len() == 3
            && lines[0].contains("as manual delivery dlv_")
            && lines[1].contains("1 records went back")
            && lines[2].starts_with(&format!("kept {}", id(2)))
            && !output.status.success(),
        "oldest first: {said}"
    );
    let requests = receiver
        .wait_for("/hook", SOON, |requests| requests.len() == 5)
        .await?;
    ensure!(requests[4].webhook_id() == message, "another message was sent");

    let said = operator.run(&["poison", "drop", "--all"]).await?;
    ensure!(said.contains(&format!("dropped {}", id(2))), "{said}");
    ensure!(operator.parked().await?.is_empty());
    ensure!(
        operator
            .run(&["poison", "list"])
            .await?
            .contains("nothing is parked")
    );
    Ok(())
}

#[tokio::test]
async fn looking_makes_no_store() -> Result<()> {
    let empty = tempfile::tempdir()?;
    let operator = Operator {
        env: vec![("POSTRIDER_DATA_DIR", empty.path().display().to_string())],
        store: None,
    };
    let looks = [
        &["status"][..],
        &["poison", "list"],
        &["top"],
        &["key", "list"],
        &["key", "create", "--scope", "admin"],
    ];
    for args in looks {
        let output = operator.command(args)?.output().await?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            !output.status.success() && said.contains("--data-dir"),
            "{args:?}: {said}"
        );
    }
    ensure!(
        std::fs::read_dir(empty.path())?.next().is_none(),
        "it left something behind"
    );
    Ok(())
}

#[tokio::test]
async fn looking_changes_no_schema() -> Result<()> {
    let data = tempfile::tempdir()?;
    let operator = Operator {
        env: vec![("POSTRIDER_DATA_DIR", data.path().display().to_string())],
        store: None,
    };
    let said = operator.run(&["migrate"]).await?;
    ensure!(said.contains("went from version 0 to"), "{said}");
    let said = operator.run(&["migrate"]).await?;
    ensure!(said.contains("nothing to do"), "{said}");
    let file = rusqlite::Connection::open(data.path().join("postrider.db"))?;
    let version = |file: &rusqlite::Connection| file.query_row("PRAGMA user_version", [], |row| row.get(0));
    let current: u32 = version(&file)?;
    for (other, advice) in [
        (current - 1, "postrider migrate"),
        (current + 1, "newer Postrider"),
    ] {
        file.pragma_update(None, "user_version", other)?;
        for args in [&["status"][..], &["poison", "list"], &["key", "list"]] {
            let output = operator.command(args)?.output().await?;
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(
                !output.status.success() && said.contains(advice),
                "{args:?}: {said}"
            );
        }
        let found: u32 = version(&file)?;
        ensure!(found == other, "version {other} became {found}");
    }
    Ok(())
}

#[tokio::test]
async fn a_second_process_on_an_embedded_store_is_refused() -> Result<()> {
    let data = tempfile::tempdir()?;
    let mut first = Postrider::builder().data_dir(data.path()).start().await?;
    let mut second = Postrider::builder().data_dir(data.path()).spawn()?;
    let status = second.wait_exit(SOON).await?;
    let said = second.log();
    ensure!(
        !status.success() && said.contains("another Postrider serves") && said.contains("--data-dir"),
        "{status}: {said}"
    );
    let env = [("POSTRIDER_DATA_DIR", data.path().to_str().context("a path")?)];
    let said = cli::refused(&["migrate"], &env).await?;
    ensure!(said.contains("another Postrider serves"), "{said}");
    first.kill9();
    second.start_again().await
}

#[tokio::test]
async fn a_process_may_open_as_many_files_as_the_system_lets_it() -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let few = Rlimit {
        current: Some(512),
        ..limit
    };
    // The process inherits it, and each test has a process of its own.
    setrlimit(Resource::Nofile, few)?;
    let process = Postrider::builder().start().await?;
    let pid = process.pid().context("it ended")?;
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits"))?;
    let files = limits.lines().find(|line| line.starts_with("Max open files"));
    let files: Vec<&str> = files.unwrap_or_default().split_whitespace().collect();
    ensure!(files[3] == files[4] && files[3] != "512", "{files:?}");
    Ok(())
}

#[tokio::test]
async fn a_command_whose_output_nobody_reads_ends_without_a_word() -> Result<()> {
    let (nobody, output) = std::io::pipe()?;
    drop(nobody);
    let mut command = Command::new(binary()?);
    command.args(["check-config", "--reference"]).stdout(output);
    let ended = command.stderr(Stdio::piped()).spawn()?.wait_with_output().await?;
    let said = String::from_utf8_lossy(&ended.stderr);
    ensure!(said.is_empty(), "it said: {said}");
    // As a shell tells it of a program that SIGPIPE ended.
    ensure!(ended.status.code() == Some(141), "{}", ended.status);
    Ok(())
}
