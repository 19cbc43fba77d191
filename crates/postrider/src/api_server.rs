//! The HTTP listener of the API and of the health checks: connections bounded in number, TLS by setting, graceful stop.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// Time that a client has to finish the TLS handshake, and to send the head of a request.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long requests under way may take once the listener stops.
const GRACE: Duration = Duration::from_secs(30);

/// A bound listener.
pub(crate) struct ApiServer {
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    connections_max: usize,
}

impl ApiServer {
    /// Binds the address. `tls` names the certificate chain and the key, both PEM.
    pub(crate) async fn bind(
        address: SocketAddr,
        tls: Option<(&Path, &Path)>,
        connections_max: usize,
    ) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot listen on {address}; choose another address with --listen"))?;
        let tls = tls
            .map(|(certificate, key)| acceptor(certificate, key))
            .transpose()?;
        Ok(Self {
            listener,
            tls,
            connections_max,
        })
    }

    /// The address that it got.
    pub(crate) fn address(&self) -> anyhow::Result<SocketAddr> {
        Ok(self.listener.local_addr()?)
    }

    /// Serves until `stop`, then lets requests under way finish.
    pub(crate) async fn run(self, router: Router, stop: CancellationToken) {
        let room = Arc::new(Semaphore::new(self.connections_max));
        let graceful = GracefulShutdown::new();
        loop {
            let next = async {
                // The room comes first: what cannot be served waits in the kernel's queue.
                let permit = room.clone().acquire_owned().await;
                (permit, self.listener.accept().await)
            };
            let Some((permit, accepted)) = stop.run_until_cancelled(next).await else {
                break;
            };
            match accepted {
                Ok((stream, _)) => {
                    let (tls, router) = (self.tls.clone(), router.clone());
                    let watcher = graceful.watcher();
                    tokio::spawn(async move {
                        let _permit = permit;
                        serve(stream, tls, router, watcher).await;
                    });
                }
                Err(error) => {
                    // Out of sockets, mostly: waiting is all that helps.
                    tracing::warn!(%error, "a connection was not accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        drop(self.listener);
        if tokio::time::timeout(GRACE, graceful.shutdown()).await.is_err() {
            tracing::warn!("requests were still under way when the listener ended");
        }
    }
}

type Watcher = hyper_util::server::graceful::Watcher;

async fn serve(stream: TcpStream, tls: Option<TlsAcceptor>, router: Router, watcher: Watcher) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY could not be set");
    }
    match tls {
        None => speak(stream, router, watcher).await,
        Some(tls) => match tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await {
            Ok(Ok(stream)) => speak(stream, router, watcher).await,
            Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
            Err(_) => tracing::debug!("a TLS handshake took too long"),
        },
    }
}

async fn speak(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    watcher: Watcher,
) {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HANDSHAKE_TIMEOUT);
    builder.http2().timer(TokioTimer::new());
    let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    if let Err(error) = watcher.watch(connection.into_owned()).await {
        tracing::debug!(%error, "a connection broke");
    }
}

fn acceptor(certificate: &Path, key: &Path) -> anyhow::Result<TlsAcceptor> {
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .with_context(|| {
            format!(
                "server.tls_cert: {} holds no certificate chain",
                certificate.display()
            )
        })?;
    let key = PrivateKeyDer::from_pem_file(key)
        .with_context(|| format!("server.tls_key: {} holds no private key", key.display()))?;
    let mut config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .context("server.tls_cert and server.tls_key do not belong together")?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
