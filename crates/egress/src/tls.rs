//! TLS for receivers: the system's root certificates, plus the operator's.

use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls_platform_verifier::Verifier;
use tokio_rustls::TlsConnector;

use crate::settings::SettingsError;

/// Receivers whose TLS session is remembered, so that a new connection costs one round trip less.
const SESSIONS_MAX: usize = 4096;

/// Makes the connector; `None` when this machine has no root certificates at all. Plain `http` then still works,
/// and `https` fails as our fault, which is better than not starting.
pub(crate) fn connector(extra_roots_pem: &[u8]) -> Result<Option<TlsConnector>, SettingsError> {
    let extra_roots = parse_roots(extra_roots_pem)?;
    let has_extra_roots = !extra_roots.is_empty();
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = match Verifier::new_with_extra_roots(extra_roots, Arc::clone(&provider)) {
        Ok(verifier) => verifier,
        // With roots of the operator's own it is their certificates that cannot be used.
        Err(error) if has_extra_roots => return Err(SettingsError::Tls(error)),
        Err(error) => {
            tracing::warn!(%error, "no root certificates: deliveries to https endpoints will fail");
            return Ok(None);
        }
    };
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(SettingsError::Tls)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.resumption = Resumption::in_memory_sessions(SESSIONS_MAX);
    Ok(Some(TlsConnector::from(Arc::new(config))))
}

fn parse_roots(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, SettingsError> {
    let roots = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| SettingsError::ExtraRoots(Some(error)))?;
    if roots.is_empty() && !pem.is_empty() {
        return Err(SettingsError::ExtraRoots(None));
    }
    Ok(roots)
}
