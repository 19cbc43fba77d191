//! The receiver: the endpoints of all scenarios, in one process.
//!
//! `POST /<behaviour>/<group>/<endpoint>` answers as the behaviour says: `ok` at once, `slow` after 200 ms, `hang` after
//! 15 s, `storm` with 500 while the switch is on. Deliveries are told apart by the number in their body and the
//! endpoint's number; a group (0 to 3) has its own counts and latencies. Under `/_/` the bench resets, switches and asks.

mod tally;
mod tls;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;

use crate::clock::now_ns;
use crate::payload::stamp_of;

use tally::Tally;
pub(crate) use tls::address as tls_address;

/// Longest body that is taken.
const BODY_MAX: usize = 2 * 1024 * 1024;
/// How long a `slow` endpoint takes.
const SLOW: Duration = Duration::from_millis(200);
/// How long a `hang` endpoint takes.
const HANG: Duration = Duration::from_secs(15);

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    #[arg(long)]
    listen: SocketAddr,
    /// Hosts to serve over TLS, each at an address of its own from 127.1.0.0 on, all at one port.
    #[arg(long, default_value_t = 0)]
    tls_hosts: u16,
    /// The port of these hosts.
    #[arg(long, default_value_t = 0, requires = "tls_hosts")]
    tls_port: u16,
    /// Where the certificate authority of these hosts is written.
    #[arg(long, requires = "tls_hosts")]
    tls_ca: Option<PathBuf>,
}

type Shared = Arc<Mutex<Tally>>;
type Answer = Response<Full<Bytes>>;

/// Serves until killed.
pub(crate) async fn run(options: Options) -> Result<()> {
    let tally = Shared::default();
    if let Some(ca) = &options.tls_ca {
        tls::serve(options.tls_hosts, options.tls_port, ca, &tally).await?;
    }
    let listener = TcpListener::bind(options.listen).await.context("cannot listen")?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(connection(stream, Arc::clone(&tally)));
    }
}

async fn connection(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, tally: Shared) {
    let service = service_fn(move |request| handle(request, Arc::clone(&tally)));
    // A sender that goes away is its own affair.
    let _ = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn handle(request: Request<Incoming>, tally: Shared) -> Result<Answer, hyper::Error> {
    let path = request.uri().path();
    if let Some(order) = path.strip_prefix("/_/") {
        let order = order.to_owned();
        return Ok(control(request.method(), &order, &tally));
    }
    let Some(place) = Place::parse(path) else {
        return Ok(answer(StatusCode::NOT_FOUND, Bytes::new()));
    };
    let arrived = now_ns();
    let is_signed = request.headers().contains_key("webhook-signature");
    let Ok(body) = Limited::new(request.into_body(), BODY_MAX).collect().await else {
        return Ok(answer(StatusCode::BAD_REQUEST, Bytes::new()));
    };
    let stamp = stamp_of(&body.to_bytes());
    let fails = {
        let mut tally = tally.lock();
        let fails = match place.behaviour {
            Behaviour::Storm => tally.storm,
            Behaviour::Ok | Behaviour::Slow | Behaviour::Hang => false,
        };
        tally.count(place.group, place.endpoint, stamp, arrived, !fails);
        if !is_signed {
            tally.unsigned(place.group);
        }
        fails
    };
    match place.behaviour {
        Behaviour::Slow => tokio::time::sleep(SLOW).await,
        Behaviour::Hang => tokio::time::sleep(HANG).await,
        Behaviour::Ok | Behaviour::Storm => {}
    }
    let status = if fails {
        StatusCode::INTERNAL_SERVER_ERROR
    } else {
        StatusCode::NO_CONTENT
    };
    Ok(answer(status, Bytes::new()))
}

/// `reset/<endpoints>`, `storm/on`, `storm/off`, `counts` (cheap), `stats` (with latencies).
fn control(method: &Method, order: &str, tally: &Shared) -> Answer {
    let mut tally = tally.lock();
    match (method, order) {
        (&Method::POST, "storm/on") => tally.storm = true,
        (&Method::POST, "storm/off") => tally.storm = false,
        (&Method::GET, "counts") => return json(&tally.counts()),
        (&Method::GET, "stats") => return json(&tally.stats()),
        _ => match order.strip_prefix("reset/").and_then(|text| text.parse().ok()) {
            Some(endpoints) => tally.reset(endpoints),
            None => return answer(StatusCode::NOT_FOUND, Bytes::new()),
        },
    }
    answer(StatusCode::NO_CONTENT, Bytes::new())
}

fn json(value: &impl serde::Serialize) -> Answer {
    match serde_json::to_vec(value) {
        Ok(bytes) => answer(StatusCode::OK, bytes.into()),
        Err(_) => answer(StatusCode::INTERNAL_SERVER_ERROR, Bytes::new()),
    }
}

fn answer(status: StatusCode, body: Bytes) -> Answer {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Behaviour {
    Ok,
    Slow,
    Hang,
    Storm,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    behaviour: Behaviour,
    group: usize,
    endpoint: u64,
}

impl Place {
    fn parse(path: &str) -> Option<Self> {
        let mut parts = path.strip_prefix('/')?.split('/');
        let behaviour = match parts.next()? {
            "ok" => Behaviour::Ok,
            "slow" => Behaviour::Slow,
            "hang" => Behaviour::Hang,
            "storm" => Behaviour::Storm,
            _ => return None,
        };
        let group = parts
            .next()?
            .parse()
            .ok()
            .filter(|group| *group < tally::GROUPS)?;
        let endpoint = parts.next()?.parse().ok()?;
        Some(Self {
            behaviour,
            group,
            endpoint,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_names_behaviour_group_and_endpoint() {
        let place = Place::parse("/hang/1/17").unwrap();
        assert_eq!(
            place,
            Place {
                behaviour: Behaviour::Hang,
                group: 1,
                endpoint: 17
            }
        );
        for wrong in ["/", "/ok", "/ok/9/1", "/what/0/1", "/ok/0/x"] {
            assert_eq!(Place::parse(wrong), None, "{wrong}");
        }
    }
}
