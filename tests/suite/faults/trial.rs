//! One process of each role on servers of the test's own, under load: from its beginning to the oracle's verdict.

use anyhow::{Result, ensure};
use postrider_testkit::oracle::Verdict;

use super::load::Load;
use super::{Scene, Servers, pids};
use crate::api::Api;
use crate::stack::{SOON, Stack};

pub(super) struct Trial {
    pub(super) servers: Servers,
    pub(super) stack: Stack,
    pub(super) api: Api,
    pub(super) scene: Scene,
    pub(super) load: Load,
    pids: Vec<Option<u32>>,
}

impl Trial {
    /// Starts everything and waits until so many messages are accepted.
    pub(super) async fn begin(accepted: usize) -> Result<Self> {
        let servers = Servers::start().await?;
        let mut stack = servers.stack().await?;
        let (pids, api) = (pids(&mut stack), stack.api());
        let scene = Scene::new(&api).await?;
        let load = scene.load(std::slice::from_ref(&api));
        load.progress(accepted, SOON).await?;
        Ok(Self {
            servers,
            stack,
            api,
            scene,
            load,
            pids,
        })
    }

    /// Ends the load. Every delivery is made and on record, no repeat made another message, and all healed without a
    /// restart.
    pub(super) async fn end(mut self, what: &str) -> Result<Verdict> {
        self.load.finish().await?;
        let verdict = self.scene.settle(&self.api, what).await?;
        ensure!(
            verdict.unacknowledged == 0,
            "a repeat made another message: {verdict}"
        );
        ensure!(pids(&mut self.stack) == self.pids, "a process was restarted");
        Ok(verdict)
    }
}
