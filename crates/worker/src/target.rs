//! An endpoint made ready for the hot path: its URL judged by the policy, its secrets and headers parsed.

use std::sync::Arc;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use postrider_egress::{BlockedReason, Policy};
use postrider_model::{Endpoint, HeaderNames, UnixMillis};
use postrider_signature::{HeaderStyle, Signer, SigningSecret};
use secrecy::ExposeSecret;

/// An endpoint made ready for the hot path.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) endpoint: Arc<Endpoint>,
    /// Where to, or why the policy forbids it now: then every attempt is a blocked one, on record.
    pub(crate) url: Result<postrider_egress::Target, BlockedReason>,
    /// Of the headers with the message's id, the attempt's time and the signatures.
    pub(crate) names: [HeaderName; 3],
    pub(crate) signer: Signer,
    pub(crate) headers: HeaderMap,
    /// Groups endpoints by destination for the per-host limits.
    pub(crate) host: u64,
    /// When the next secret expires.
    pub(crate) valid_until: Option<UnixMillis>,
}

/// Why an endpoint cannot be made ready. A failure of ours: it was checked when it was written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PrepareError {
    #[error("the endpoint's URL does not parse")]
    Url(#[source] url::ParseError),
    #[error("a signing secret is not usable")]
    Secret(#[source] postrider_signature::SecretError),
    #[error("too many signing secrets")]
    Secrets(#[source] postrider_signature::TooManyKeys),
}

pub(crate) fn prepare(
    endpoint: &Arc<Endpoint>,
    policy: &Policy,
    now: UnixMillis,
) -> Result<Target, PrepareError> {
    let url = url::Url::parse(&endpoint.url).map_err(PrepareError::Url)?;
    let unexpired = endpoint
        .secrets
        .iter()
        .filter(|secret| secret.expires_at.is_none_or(|at| at > now));
    let keys = unexpired
        .clone()
        .map(|secret| SigningSecret::parse(secret.text.expose_secret()).map_err(PrepareError::Secret))
        .collect::<Result<Vec<_>, _>>()?;
    let mut headers = HeaderMap::with_capacity(endpoint.headers.len() + 4);
    for (name, value) in &endpoint.headers {
        // Checked when they were written; one that does not parse now is left out rather than stopping deliveries.
        if let (Ok(name), Ok(mut value)) = (
            HeaderName::try_from(name.as_str()),
            HeaderValue::try_from(value.expose_secret()),
        ) {
            value.set_sensitive(true);
            headers.insert(name, value);
        }
    }
    let style = match endpoint.header_names {
        HeaderNames::Standard => HeaderStyle::Standard,
        HeaderNames::Svix => HeaderStyle::Svix,
    };
    Ok(Target {
        host: host_of(&url),
        url: postrider_egress::Target::new(&url, policy),
        names: [style.id(), style.timestamp(), style.signature()].map(HeaderName::from_static),
        signer: Signer::new(keys).map_err(PrepareError::Secrets)?,
        headers,
        valid_until: unexpired.filter_map(|secret| secret.expires_at).min(),
        endpoint: endpoint.clone(),
    })
}

/// A number for the URL's scheme, host and port.
fn host_of(url: &url::Url) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    (url.scheme(), url.host_str(), url.port_or_known_default()).hash(&mut hasher);
    hasher.finish()
}
