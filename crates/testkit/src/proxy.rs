//! A TCP proxy that breaks on demand, on a port that stays the same.
//!
//! Put it between a client and its server, and the server's address can be cut off, frozen or moved without
//! touching either. At most one buffer of 16 KiB is held for each direction of a connection.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// The proxy; it and its connections end when this is dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    rule: watch::Sender<Rule>,
    connections: Arc<AtomicUsize>,
    accepting: JoinHandle<()>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Network {
    Up,
    Broken,
    Paused,
}

#[derive(Debug, Clone, Copy)]
struct Rule {
    network: Network,
    target: SocketAddr,
    /// Connections made under an earlier number are to be reset.
    epoch: u64,
}

impl Proxy {
    /// Listens on a free port of 127.0.0.1 and passes everything on to `target`.
    ///
    /// # Errors
    /// The socket cannot be opened.
    pub async fn start(target: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .context("cannot listen")?;
        let address = listener.local_addr()?;
        let (rule, watcher) = watch::channel(Rule {
            network: Network::Up,
            target,
            epoch: 0,
        });
        let connections = Arc::new(AtomicUsize::new(0));
        let accepting = tokio::spawn(accept(listener, watcher, connections.clone()));
        Ok(Self {
            address,
            rule,
            connections,
            accepting,
        })
    }

    /// Where it listens, always the same.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Resets all connections, and each new one as it comes.
    pub fn break_networking(&self) {
        self.rule.send_modify(|rule| {
            rule.network = Network::Broken;
            rule.epoch += 1;
        });
    }

    /// Keeps connections open and takes new ones, but passes nothing in either direction.
    pub fn pause(&self) {
        self.rule.send_modify(|rule| rule.network = Network::Paused);
    }

    /// Ends [`Proxy::break_networking`] and [`Proxy::pause`]; what was held back flows on.
    pub fn restore(&self) {
        self.rule.send_modify(|rule| rule.network = Network::Up);
    }

    /// Resets the connections that are open now; new ones are served.
    pub fn reset_connections(&self) {
        self.rule.send_modify(|rule| rule.epoch += 1);
    }

    /// Where new connections go from now on; open ones stay where they are.
    pub fn retarget(&self, target: SocketAddr) {
        self.rule.send_modify(|rule| rule.target = target);
    }

    /// How many connections are open now.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, rule: watch::Receiver<Rule>, connections: Arc<AtomicUsize>) {
    let mut open = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((client, _)) = accepted else { continue };
                // Closing without lingering sends a reset instead of an orderly end.
                let _ = client.set_zero_linger();
                if rule.borrow().network != Network::Broken {
                    let count = Counted::new(connections.clone());
                    let rule = rule.clone();
                    open.spawn(async move {
                        let _count = count;
                        connection(client, rule).await;
                    });
                }
            }
            Some(_) = open.join_next() => {}
        }
    }
}

async fn connection(client: TcpStream, mut rule: watch::Receiver<Rule>) {
    let Rule { target, epoch, .. } = *rule.borrow_and_update();
    let mut watcher = rule.clone();
    let passing = async {
        let Ok(server) = TcpStream::connect(target).await else {
            return;
        };
        let _ = (
            server.set_zero_linger(),
            server.set_nodelay(true),
            client.set_nodelay(true),
        );
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        tokio::join!(
            pump(from_client, to_server, rule.clone()),
            pump(from_server, to_client, rule)
        );
    };
    tokio::select! {
        () = passing => {}
        _ = watcher.wait_for(|rule| rule.epoch != epoch) => {}
    }
}

/// Passes bytes one way until the sender ends or either side fails, while the network is up.
async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut rule: watch::Receiver<Rule>) {
    let mut buffer = vec![0; 16_384];
    loop {
        let read = from.read(&mut buffer).await.unwrap_or(0);
        if rule.wait_for(|rule| rule.network == Network::Up).await.is_err() {
            return;
        }
        if read == 0 {
            let _ = to.shutdown().await;
            return;
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}

struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(count: Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}
