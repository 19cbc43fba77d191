//! The HTTP/1.1 listener of the API and of the health checks: connections bounded in number, TLS by setting, graceful
//! stop. A client that sends nothing, or reads nothing, loses its place.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_io_timeout::TimeoutWriter;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// Time that a client has to finish the TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may take nothing of its answer.
const STILL_MAX: Duration = Duration::from_secs(30);
/// Bytes of a request's head, and of a body that are read at once.
const READ_MAX: usize = 64 * 1024;
/// How long requests under way may take once the listener stops.
const GRACE: Duration = Duration::from_secs(30);

/// A bound listener.
pub(crate) struct ApiServer {
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    connections_max: usize,
    idle_timeout: Duration,
}

impl ApiServer {
    /// Binds the address. `tls` names the certificate chain and the key, both PEM. `idle_timeout` is how long a connection
    /// may wait for the whole head of its first or next request. A client's pool, or a load balancer's, may open
    /// connections before it needs them, so the first is not hurried.
    pub(crate) async fn bind(
        address: SocketAddr,
        tls: Option<(&Path, &Path)>,
        connections_max: usize,
        idle_timeout: Duration,
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
            idle_timeout,
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
                    let (watcher, idle_timeout) = (graceful.watcher(), self.idle_timeout);
                    tokio::spawn(async move {
                        let _permit = permit;
                        serve(stream, tls, router, watcher, idle_timeout).await;
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

async fn serve(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    router: Router,
    watcher: Watcher,
    idle_timeout: Duration,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY could not be set");
    }
    match tls {
        None => speak(stream, router, watcher, idle_timeout).await,
        Some(tls) => match tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await {
            Ok(Ok(stream)) => speak(stream, router, watcher, idle_timeout).await,
            Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
            Err(_) => tracing::debug!("a TLS handshake took too long"),
        },
    }
}

async fn speak(
    stream: impl AsyncRead + AsyncWrite + Send + 'static,
    router: Router,
    watcher: Watcher,
    idle_timeout: Duration,
) {
    let mut stream = TimeoutWriter::new(stream);
    stream.set_timeout(Some(STILL_MAX));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(idle_timeout)
        .max_buf_size(READ_MAX)
        .serve_connection(TokioIo::new(Box::pin(stream)), TowerToHyperService::new(router));
    if let Err(error) = watcher.watch(connection).await {
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
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

#[cfg(test)]
mod tests {
    use anyhow::Result;
    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::task::JoinHandle;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    async fn serving(idle_timeout: Duration) -> Result<(SocketAddr, CancellationToken, JoinHandle<()>)> {
        let server = ApiServer::bind(([127, 0, 0, 1], 0).into(), None, 1, idle_timeout).await?;
        let (address, stop) = (server.address()?, CancellationToken::new());
        let large = get(async || vec![b'x'; 64 * 1024 * 1024]);
        let running = tokio::spawn(server.run(Router::new().route("/large", large), stop.clone()));
        Ok((address, stop, running))
    }

    async fn ends(client: &mut TcpStream) -> bool {
        let all = &mut Vec::new();
        tokio::time::timeout(PATIENCE, client.read_to_end(all))
            .await
            .is_ok()
    }

    #[tokio::test]
    async fn a_client_that_sends_nothing_loses_its_place() -> Result<()> {
        let (address, stop, running) = serving(Duration::from_millis(200)).await?;
        let mut silent = TcpStream::connect(address).await?;
        assert!(ends(&mut silent).await, "the connection is still there");
        stop.cancel();
        Ok(running.await?)
    }

    #[tokio::test]
    async fn a_connection_may_be_idle_for_so_long_and_no_longer() -> Result<()> {
        let (address, stop, running) = serving(Duration::from_secs(4)).await?;
        let mut client = TcpStream::connect(address).await?;
        for _ in 0..2 {
            tokio::time::sleep(Duration::from_secs(2)).await;
            client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await?;
            let mut answer = [0; 1024];
            let read = client.read(&mut answer).await?;
            assert!(answer[..read].starts_with(b"HTTP/1.1 404"), "{read} bytes");
        }
        assert!(ends(&mut client).await, "the connection is still there");
        stop.cancel();
        Ok(running.await?)
    }

    #[tokio::test]
    async fn a_client_that_reads_nothing_loses_its_place() -> Result<()> {
        let hour = Duration::from_secs(3_600);
        let (address, stop, running) = serving(2 * hour).await?;
        let mut reads_nothing = TcpStream::connect(address).await?;
        reads_nothing
            .write_all(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n")
            .await?;
        let mut next = TcpStream::connect(address).await?;
        next.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            .await?;
        // From here on time passes when nothing else can.
        tokio::time::pause();
        let began = tokio::time::Instant::now();
        let mut answer = String::new();
        tokio::time::timeout(hour, next.read_to_string(&mut answer)).await??;
        assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
        assert!(began.elapsed() >= STILL_MAX);
        stop.cancel();
        Ok(running.await?)
    }

    #[tokio::test]
    async fn a_head_that_is_too_long_is_refused() -> Result<()> {
        let (address, stop, running) = serving(PATIENCE).await?;
        let mut client = TcpStream::connect(address).await?;
        let head = format!("GET / HTTP/1.1\r\nhost: x\r\nx: {}", "x".repeat(READ_MAX));
        // No byte more than is read: one that is left when the server closes would reset the connection.
        client.write_all(&head.as_bytes()[..READ_MAX]).await?;
        let mut answer = [0; 64];
        let read = client.read(&mut answer).await?;
        assert!(answer[..read].starts_with(b"HTTP/1.1 431"), "{read} bytes");
        stop.cancel();
        Ok(running.await?)
    }

    #[tokio::test]
    async fn a_silent_client_does_not_hold_the_end_up() -> Result<()> {
        let (address, stop, running) = serving(Duration::from_secs(3_600)).await?;
        let mut silent = TcpStream::connect(address).await?;
        // By then it is accepted, most likely; it ends in either case.
        tokio::time::sleep(Duration::from_millis(100)).await;
        stop.cancel();
        assert!(ends(&mut silent).await, "the connection is still there");
        tokio::time::timeout(PATIENCE, running).await??;
        Ok(())
    }
}
