//! `postrider healthcheck`: for container health checks, which have no shell and no curl.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, ensure};

/// Whom to ask.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Address that the process listens on.
    #[arg(long, env = "POSTRIDER_LISTEN", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Time to wait for the answer, in milliseconds.
    #[arg(long, default_value_t = 2_000)]
    timeout_ms: u64,
}

/// Asks; an error when it is not ready.
pub(crate) async fn run(options: Options) -> anyhow::Result<()> {
    let address = reachable(options.listen);
    let client = reqwest::Client::builder()
        .timeout(Duration::from_millis(options.timeout_ms))
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .build()?;
    let url = format!("http://{address}/health/ready");
    let response = client
        .get(&url)
        .send()
        .await
        .with_context(|| format!("no answer from {url}"))?;
    let status = response.status();
    ensure!(
        status.is_success(),
        "not ready: {status} {}",
        response.text().await.unwrap_or_default()
    );
    Ok(())
}

/// Where to reach what listens there: a process that listens everywhere is asked on loopback.
pub(crate) fn reachable(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}
