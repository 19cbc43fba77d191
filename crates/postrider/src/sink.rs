//! `postrider sink`: a receiver to try Postrider with. It verifies the signature of what it gets and prints it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::Response;
use postrider_model::UnixMillis;
use postrider_signature::{HeaderStyle, SigningSecret, TOLERANCE_S_DEFAULT, Verifier};
use tokio::sync::mpsc;

use crate::out::say;

/// Longest body that the sink takes.
const BODY_MAX: usize = 16 * 1024 * 1024;
/// Characters of a body that are printed.
const SHOWN_MAX: usize = 2_000;

/// What the sink is told.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Address to listen on.
    #[arg(long, default_value = crate::quickstart::SINK)]
    listen: SocketAddr,
    /// Endpoint secret (whsec_… or whsk_…) to verify with; may be given again during a rotation. Without one,
    /// signatures are shown and not verified.
    #[arg(
        long = "secret",
        value_name = "SECRET",
        env = "POSTRIDER_SINK_SECRET",
        hide_env_values = true
    )]
    secrets: Vec<String>,
    /// Status to answer with.
    #[arg(long, default_value_t = 204)]
    status: u16,
    /// Time to wait before answering, in milliseconds.
    #[arg(long, default_value_t = 0)]
    delay_ms: u64,
}

struct Sink {
    verifier: Option<Verifier>,
    status: StatusCode,
    delay: Duration,
    /// Takes why a line could not be printed.
    failed: mpsc::Sender<anyhow::Error>,
}

/// Listens until interrupted, or until nobody reads what it prints.
pub(crate) async fn run(options: Options) -> anyhow::Result<()> {
    let keys = options
        .secrets
        .iter()
        .map(|text| SigningSecret::parse(text))
        .collect::<Result<Vec<_>, _>>()
        .context(
            "--secret is not a signing secret; copy it from GET /api/v1/app/{app}/endpoint/{endpoint}/secret",
        )?;
    let (failed, mut failures) = mpsc::channel(1);
    let sink = Arc::new(Sink {
        failed,
        verifier: (!keys.is_empty()).then(|| Verifier::new(keys.clone())),
        status: StatusCode::from_u16(options.status)
            .context("--status is not an HTTP status (100 to 999)")?,
        delay: Duration::from_millis(options.delay_ms),
    });
    let listener = tokio::net::TcpListener::bind(options.listen)
        .await
        .with_context(|| {
            format!(
                "cannot listen on {}; choose another address with --listen",
                options.listen
            )
        })?;
    say(format_args!(
        "sink: listening on http://{}/",
        listener.local_addr()?
    ))?;
    let app = Router::new()
        .fallback(receive)
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .with_state(sink);
    let served = axum::serve(listener, app).with_graceful_shutdown(crate::shutdown::signalled());
    tokio::select! {
        served = served => served.context("the sink failed"),
        Some(error) = failures.recv() => Err(error),
    }
}

async fn receive(
    State(sink): State<Arc<Sink>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    tokio::time::sleep(sink.delay).await;
    let verdict = verdict(&sink, &headers, &body);
    let refused = sink.verifier.is_some() && verdict.is_err();
    let (Ok(words) | Err(words)) = verdict;
    if let Err(error) = say(format_args!("{method} {uri}  {words}\n{}", shown(&body))) {
        // One is enough to end the sink.
        let _ = sink.failed.try_send(error);
    }
    let mut response = Response::new(Body::empty());
    *response.status_mut() = if refused {
        StatusCode::UNAUTHORIZED
    } else {
        sink.status
    };
    response
}

/// What is to be said of the signature.
fn verdict(sink: &Sink, headers: &HeaderMap, body: &[u8]) -> Result<String, String> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let style = HeaderStyle::ALL
        .into_iter()
        .find(|style| headers.contains_key(style.id()));
    let Some(style) = style else {
        return Err("no webhook headers".to_owned());
    };
    let (Some(id), Some(timestamp), Some(signature)) =
        (text(style.id()), text(style.timestamp()), text(style.signature()))
    else {
        return Err("incomplete webhook headers".to_owned());
    };
    let Some(verifier) = &sink.verifier else {
        return Ok(format!("{id}  signature not verified (no --secret)"));
    };
    let now_s = UnixMillis::now().as_secs();
    let Ok(timestamp_s) = timestamp.parse() else {
        return Err(format!("{id}  the timestamp is not a number"));
    };
    match verifier.verify(id, timestamp_s, signature, body, now_s, TOLERANCE_S_DEFAULT) {
        Ok(_) => Ok(format!("{id}  signature ok")),
        Err(error) => Err(format!("{id}  SIGNATURE REFUSED: {error}")),
    }
}

fn shown(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    match text.char_indices().nth(SHOWN_MAX) {
        Some((end, _)) => format!("  {} … ({} bytes)", &text[..end], body.len()),
        None => format!("  {text}"),
    }
}
