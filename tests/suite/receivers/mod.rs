//! The examples of `docs/receivers.md`, run as they are on the page: each takes a real delivery, and no forged one.

mod example;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use axum::body::Bytes;
use axum::http::HeaderValue;
use axum::routing::post;
use postrider_testkit::services::{find_binary, free_port, target_dir};
use postrider_testkit::wait::{Poll, wait_for};
use reqwest::StatusCode;
use serde_json::json;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::sdk::{node_dir, python};
use crate::stack::{SOON, Stack};

const PAGE: &str = include_str!("../../../docs/receivers.md");
const SECRET: &str = "whsec_c2VjcmV0IG9mIHRoZSByZWNlaXZlciBleGFtcGxlcw==";
/// What the page says where the public module is.
const GO_MODULE: &str = "github.com/standard-webhooks/standard-webhooks/libraries";
/// A compiler may be at work at first.
const STARTS: Duration = Duration::from_secs(120);

/// What the Rust example is given.
#[derive(Clone)]
struct App {
    webhook: Arc<standardwebhooks::Webhook>,
    queue: mpsc::Sender<(HeaderValue, Bytes)>,
}

/// The page's only example in a language.
fn example(language: &str) -> Result<&'static str> {
    let (_, rest) = PAGE
        .split_once(&format!("```{language}\n"))
        .with_context(|| format!("no example in {language}"))?;
    let (code, _) = rest.split_once("```\n").context("the example has no end")?;
    Ok(code)
}

/// Gives the receiver at this port a forged delivery, which it must refuse, and a real one; returns the id of the latter.
async fn deliver(port: u16) -> Result<String> {
    let stack = Stack::embedded().await?;
    let api = stack.api();
    let app = api.app().await?;
    let url = format!("http://127.0.0.1:{port}/webhooks");
    let endpoint = json!({"url": url, "secret": SECRET, "retrySchedule": []});
    api.endpoint_with(&app, endpoint).await?;
    let message = api.send(&app, json!({"n": 1})).await?;
    api.wait_status(&app, &message, "success").await?;
    let seconds = std::time::UNIX_EPOCH.elapsed()?.as_secs();
    let forged = reqwest::Client::builder()
        .timeout(Duration::from_secs(10))
        .redirect(reqwest::redirect::Policy::none())
        .build()?
        .post(url)
        .header("webhook-id", "msg_forged")
        .header("webhook-timestamp", seconds)
        .header(
            "webhook-signature",
            "v1,Zm9yZ2VkIGZvcmdlZCBmb3JnZWQgZm9yZ2VkIGZvcmdlZA==",
        )
        .body(r#"{"n":1}"#)
        .send()
        .await?;
    ensure!(
        forged.status() == StatusCode::UNAUTHORIZED,
        "a forged delivery was answered with {}",
        forged.status()
    );
    Ok(message)
}

#[tokio::test]
async fn the_rust_example_takes_a_real_delivery() -> Result<()> {
    let code = include_str!("example.rs").replace("pub(super) ", "");
    ensure!(
        code.ends_with(&format!("\n\n{}", example("rust")?)),
        "docs/receivers.md and tests/suite/receivers/example.rs differ"
    );
    let (queue, mut received) = mpsc::channel(8);
    let webhook = Arc::new(standardwebhooks::Webhook::new(SECRET)?);
    let routes = axum::Router::new().route("/webhooks", post(example::receive));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let serving =
        tokio::spawn(axum::serve(listener, routes.with_state(App { webhook, queue })).into_future());
    let message = deliver(port).await?;
    let (id, body) = received.recv().await.context("nothing in the queue")?;
    ensure!(
        id == message.as_str() && body.as_ref() == br#"{"n":1}"#,
        "{id:?} {body:?}"
    );
    ensure!(received.is_empty(), "the forged delivery is in the queue, too");
    serving.abort();
    Ok(())
}

/// An example as a program, which prints the ids of what its queue gets.
struct Program {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    port: u16,
    _dir: TempDir,
}

impl Program {
    async fn start(mut command: Command, dir: TempDir) -> Result<Self> {
        let port = free_port()?;
        command
            .env("SECRET", SECRET)
            .env("PORT", port.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().context("the example cannot be run")?;
        let lines = BufReader::new(child.stdout.take().context("no output")?).lines();
        wait_for("the example to listen", STARTS, async || {
            if let Some(status) = child.try_wait()? {
                anyhow::bail!("the example ended with {status}");
            }
            Ok(match TcpStream::connect(("127.0.0.1", port)).await {
                Ok(_) => Poll::Ready(()),
                Err(error) => Poll::NotYet(error.to_string()),
            })
        })
        .await?;
        Ok(Self {
            child,
            lines,
            port,
            _dir: dir,
        })
    }

    /// Puts the real delivery into its queue, and nothing else.
    async fn takes_a_real_delivery(mut self) -> Result<()> {
        let message = deliver(self.port).await?;
        while let Some(line) = timeout(SOON, self.lines.next_line()).await?? {
            ensure!(
                !line.contains("msg_forged"),
                "the forged delivery is in the queue"
            );
            if line == message {
                return Ok(self.child.kill().await?);
            }
        }
        anyhow::bail!("{message} did not come into the queue")
    }
}

fn program(name: &str, text: &str) -> Result<(TempDir, PathBuf)> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join(name);
    std::fs::write(&path, text)?;
    Ok((dir, path))
}

#[tokio::test]
async fn the_python_example_takes_a_real_delivery() -> Result<()> {
    let text = format!(
        "import os\n\n\
         class Queue:\n    def put(self, item):\n        print(item[0], flush=True)\n\n\
         secret, queue = os.environ['SECRET'], Queue()\n\n\
         {}\n\
         app.run(port=int(os.environ['PORT']))\n",
        example("python")?
    );
    let (dir, path) = program("receiver.py", &text)?;
    let mut command = python();
    command.arg(path);
    Program::start(command, dir).await?.takes_a_real_delivery().await
}

#[tokio::test]
async fn the_javascript_example_takes_a_real_delivery() -> Result<()> {
    // Modules are found from where the program lies.
    let dir = tempfile::tempdir_in(node_dir())?;
    let given = "globalThis.secret = process.env.SECRET;\n\
                 globalThis.queue = { push: (id, event) => console.log(id) };\n";
    std::fs::write(dir.path().join("given.mjs"), given)?;
    let text = format!(
        "import \"./given.mjs\";\n{}\napp.listen(process.env.PORT, \"127.0.0.1\");\n",
        example("js")?
    );
    let path = dir.path().join("receiver.mjs");
    std::fs::write(&path, text)?;
    let mut command = Command::new("node");
    command.arg(path);
    Program::start(command, dir).await?.takes_a_real_delivery().await
}

/// Compiles the example against a stand-in for the public module; see `tests/sdk/go`.
#[tokio::test]
async fn the_go_example_takes_a_real_delivery() -> Result<()> {
    let text = format!(
        "package main\n\n\
         import (\n\t\"fmt\"\n\t\"io\"\n\t\"log\"\n\t\"net/http\"\n\t\"os\"\n\n\
         \tstandardwebhooks \"{GO_MODULE}/go\"\n)\n\n\
         type Event struct {{\n\tID   string\n\tBody []byte\n}}\n\n\
         func main() {{\n\
         \tsecret, queue := os.Getenv(\"SECRET\"), make(chan Event)\n\
         \tgo func() {{\n\t\tfor event := range queue {{\n\t\t\tfmt.Println(event.ID)\n\t\t}}\n\t}}()\n\
         {}\
         \tlog.Fatal(http.ListenAndServe(\"127.0.0.1:\"+os.Getenv(\"PORT\"), nil))\n}}\n",
        example("go")?
    );
    let (dir, path) = program("main.go", &text)?;
    let binary = compile_go(path.parent().context("a file has a parent")?).await?;
    Program::start(Command::new(binary), dir)
        .await?
        .takes_a_real_delivery()
        .await
}

/// Compiles the program in this directory, without a network.
async fn compile_go(dir: &Path) -> Result<PathBuf> {
    let go = find_binary("go").context("`go` is not installed; `cargo xtask test` installs it")?;
    let module = dir.join("module");
    std::fs::create_dir_all(module.join("go"))?;
    std::fs::write(module.join("go.mod"), format!("module {GO_MODULE}\n\ngo 1.19\n"))?;
    std::fs::copy(
        concat!(env!("CARGO_MANIFEST_DIR"), "/sdk/go/verify.go"),
        module.join("go/verify.go"),
    )?;
    let requires = format!(
        "module receiver\n\ngo 1.19\n\nrequire {GO_MODULE} v0.0.0\n\nreplace {GO_MODULE} => ./module\n"
    );
    std::fs::write(dir.join("go.mod"), requires)?;
    let binary = dir.join("receiver");
    let output = Command::new(go)
        .args(["build", "-o"])
        .arg(&binary)
        .arg(".")
        .current_dir(dir)
        .env("GOCACHE", target_dir().join("testkit/go"))
        .env("GOPROXY", "off")
        .kill_on_drop(true)
        .output()
        .await?;
    ensure!(
        output.status.success(),
        "the example does not compile: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(binary)
}
