//! Thousands of TLS hosts on loopback: each has an address of its own in 127.1.0.0/16 and a certificate for it.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::{Shared, connection};

/// The address of a host.
pub(crate) fn address(host: u16) -> Ipv4Addr {
    let [high, low] = host.to_be_bytes();
    Ipv4Addr::new(127, 1, high, low)
}

/// Starts to serve `hosts` hosts and writes the certificate of their authority to `ca`.
pub(crate) async fn serve(hosts: u16, port: u16, ca: &Path, tally: &Shared) -> Result<()> {
    let mut params = CertificateParams::new(Vec::new())?;
    // Another name than the hosts', whose certificates would pass for self-signed.
    params
        .distinguished_name
        .push(DnType::CommonName, "bench authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    let key = KeyPair::generate()?;
    for host in 0..hosts {
        let acceptor = acceptor(host, &key, &issuer)?;
        let listener = TcpListener::bind((address(host), port))
            .await
            .with_context(|| format!("cannot listen on {}:{port}", address(host)))?;
        tokio::spawn(accept(listener, acceptor, Arc::clone(tally)));
    }
    std::fs::write(ca, issuer.pem()).context("cannot write the certificate of the authority")?;
    Ok(())
}

fn acceptor(host: u16, key: &KeyPair, issuer: &CertifiedIssuer<'_, KeyPair>) -> Result<TlsAcceptor> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name.push(DnType::CommonName, "bench host");
    params.subject_alt_names = vec![SanType::IpAddress(IpAddr::V4(address(host)))];
    let certificate = params.signed_by(key, issuer)?;
    let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], private)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, tally: Shared) {
    while let Ok((stream, _)) = listener.accept().await {
        let (acceptor, tally) = (acceptor.clone(), Arc::clone(&tally));
        tokio::spawn(async move {
            if stream.set_nodelay(true).is_ok()
                && let Ok(stream) = acceptor.accept(stream).await
            {
                connection(stream, tally).await;
            }
        });
    }
}
