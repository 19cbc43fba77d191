//! The first start on an embedded store: it prints what a newcomer needs, once.

use std::net::SocketAddr;

use postrider_config::{Config, LogFormat};
use postrider_secrets::Scope;
use postrider_signature::SigningSecret;
use postrider_store::{Page, SharedStore};
use secrecy::ExposeSecret as _;

use crate::out::say;

/// Where `postrider sink` listens, and the one private address that an embedded Postrider delivers to by default.
pub(crate) const SINK: &str = "127.0.0.1:9595";

/// The sink's address, which is exempt from the SSRF guard unless the operator set an allow-list.
pub(crate) fn sink_exemption(config: &Config) -> Option<SocketAddr> {
    let untouched = !config.is_scaled_out() && config.egress.allow.0.is_empty();
    untouched.then(|| SINK.parse().ok()).flatten()
}

/// On the very first start makes the admin key and prints it, with three lines to paste.
pub(crate) async fn greet(config: &Config, store: &SharedStore, listen: SocketAddr) -> anyhow::Result<()> {
    let scheme = if config.server.tls_cert.is_some() {
        "https"
    } else {
        "http"
    };
    let base = format!("{scheme}://{listen}");
    // Who reads JSON finds it in the log.
    if config.log.format == LogFormat::Text {
        say(format_args!(
            "postrider: listening on {base}, API documentation at {base}/docs"
        ))?;
    }
    let any_key = Page {
        after: None,
        backwards: false,
        descending: false,
        limit: 1,
    };
    if config.auth.admin_key.is_some() || !store.keys(&any_key).await?.is_empty() {
        return Ok(());
    }
    let key = crate::keys::create(store, &Scope::Admin, "made at the first start").await?;
    let key = key.expose();
    say(format_args!("\nAdmin key, shown this once: {key}"))?;
    if sink_exemption(config).is_none() {
        return Ok(());
    }
    let secret = SigningSecret::generate_symmetric(&mut rand::rng()).to_text();
    let secret = secret.expose_secret();
    let program = program();
    say(format_args!(
        "\nTry it. In a second terminal, a receiver; in a third, an application with that receiver as its endpoint, \
         and a message:\n\n  \
         {program} sink --secret {secret}\n\n  \
         curl -sS {base}/api/v1/app -H 'authorization: Bearer {key}' -H 'content-type: application/json' \
         -d '{{\"name\":\"Demo\",\"uid\":\"demo\"}}' && curl -sS {base}/api/v1/app/demo/endpoint \
         -H 'authorization: Bearer {key}' -H 'content-type: application/json' \
         -d '{{\"url\":\"http://{SINK}/\",\"secret\":\"{secret}\"}}'\n\n  \
         curl -sS {base}/api/v1/app/demo/msg -H 'authorization: Bearer {key}' \
         -H 'content-type: application/json' \
         -d '{{\"eventType\":\"invoice.paid\",\"payload\":{{\"amount\":42}}}}'\n"
    ))?;
    Ok(())
}

/// How to call this program again from the same directory.
fn program() -> String {
    let Ok(path) = std::env::current_exe() else {
        return "postrider".to_owned();
    };
    let here = std::env::current_dir().ok();
    let short = here
        .as_ref()
        .and_then(|here| path.strip_prefix(here).ok())
        .unwrap_or(&path);
    short.display().to_string()
}
