//! What private servers of every kind have in common: they are stopped, killed, frozen and started again, and keep their
//! port.

use std::marker::PhantomData;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;
use tempfile::TempDir;

use super::{Launch, Running, probe};

/// A kind of server.
pub trait Kind: std::fmt::Debug {
    #[doc(hidden)]
    const NAME: &'static str;
    #[doc(hidden)]
    const LIMIT: Duration;
    #[doc(hidden)]
    /// The signal that ends it in good order.
    const STOP: Signal;

    #[doc(hidden)]
    fn url(port: u16) -> String;

    #[doc(hidden)]
    /// The environment that is new at each start.
    fn fresh_environment() -> Result<Vec<(String, std::ffi::OsString)>> {
        Ok(Vec::new())
    }
}

/// A server of the test's own, on a port that it keeps over restarts. It ends with its value, and with the test process.
#[derive(Debug)]
pub struct Server<K: Kind> {
    running: Option<Running>,
    launch: Launch,
    port: u16,
    _dir: TempDir,
    kind: PhantomData<K>,
}

impl<K: Kind> Server<K> {
    pub(super) async fn launched(launch: Launch, port: u16, dir: TempDir) -> Result<Self> {
        let mut server = Self {
            running: None,
            launch,
            port,
            _dir: dir,
            kind: PhantomData,
        };
        server.start_again().await?;
        Ok(server)
    }

    /// Where it answers, with user and password where the kind has them.
    pub fn url(&self) -> String {
        K::url(self.port)
    }

    /// The port, the same over restarts.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Ends it in good order. Does nothing if it is down.
    ///
    /// # Errors
    /// It still runs after the time that its start may take.
    pub async fn stop(&mut self) -> Result<()> {
        if let Some(mut running) = self.running.take() {
            running.stop(K::STOP, K::LIMIT).await?;
        }
        Ok(())
    }

    /// Ends it at once: what it has not written is gone.
    pub fn kill9(&mut self) {
        self.running = None;
    }

    /// Starts it on the same port with the data that it wrote. Does nothing if it is up.
    ///
    /// # Errors
    /// It does not answer within 20 s (Redis), 60 s (Postgres) or 90 s (RabbitMQ).
    pub async fn start_again(&mut self) -> Result<()> {
        if self.running.is_none() {
            for (name, value) in K::fresh_environment()? {
                self.launch.env.retain(|(known, _)| *known != name);
                self.launch.env.push((name, value));
            }
            let mut running = self.launch.start()?;
            probe::ready(&self.url(), &mut running, K::LIMIT).await?;
            self.running = Some(running);
        }
        Ok(())
    }

    /// Freezes the process: connections stay open and nothing answers.
    ///
    /// # Errors
    /// It is not running, or does not stop within 10 s.
    pub fn pause(&self) -> Result<()> {
        self.running()?.pause()
    }

    /// Ends [`Server::pause`].
    ///
    /// # Errors
    /// It is not running.
    pub fn resume(&self) -> Result<()> {
        self.running()?.signal(Signal::CONT)
    }

    pub(super) fn launch(&self) -> &Launch {
        &self.launch
    }

    pub(super) fn running(&self) -> Result<&Running> {
        self.running
            .as_ref()
            .with_context(|| format!("{} is down", K::NAME))
    }
}
