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
/// How often an HTTP/2 client is asked whether it is still there; without an answer the connection ends.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
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
        None => speak(stream, Version::Http1, router, watcher).await,
        Some(tls) => match tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await {
            Ok(Ok(stream)) => {
                let version = match stream.get_ref().1.alpn_protocol() {
                    Some(b"h2") => Version::Http2,
                    _ => Version::Http1,
                };
                speak(stream, version, router, watcher).await;
            }
            Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
            Err(_) => tracing::debug!("a TLS handshake took too long"),
        },
    }
}

/// What a connection speaks: as agreed in the TLS handshake, HTTP/1.1 without one. Finding it out from the first bytes
/// would let clients that send none keep their place among the connections for ever.
#[derive(Clone, Copy)]
enum Version {
    Http1,
    Http2,
}

async fn speak(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    version: Version,
    router: Router,
    watcher: Watcher,
) {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder = match version {
        Version::Http1 => builder.http1_only(),
        Version::Http2 => builder.http2_only(),
    };
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HANDSHAKE_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE);
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

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[tokio::test]
    async fn a_client_that_sends_nothing_loses_its_place() {
        let server = ApiServer::bind(([127, 0, 0, 1], 0).into(), None, 1).await;
        let server = server.unwrap_or_else(|error| panic!("{error}"));
        let address = server.address().unwrap_or_else(|error| panic!("{error}"));
        let stop = CancellationToken::new();
        let running = tokio::spawn(server.run(Router::new(), stop.clone()));
        let mut silent = TcpStream::connect(address)
            .await
            .unwrap_or_else(|error| panic!("{error}"));
        let mut answer = Vec::new();
        let patience = HANDSHAKE_TIMEOUT * 3;
        let ended = tokio::time::timeout(patience, silent.read_to_end(&mut answer)).await;
        assert!(ended.is_ok(), "the connection is still there");
        stop.cancel();
        assert!(running.await.is_ok());
    }
}
