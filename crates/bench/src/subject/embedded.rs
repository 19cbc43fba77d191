//! Postrider as one process on its embedded store.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Result;
use postrider_testkit::services::unique_name;

use super::postrider::{common_environment, key, ready};
use super::tenants::{Made, Tenants};
use super::{Record, Target};
use crate::generate::plan::Route;
use crate::http_client::Http;
use crate::lab::{Lab, loopback};
use crate::process::Process;

pub(crate) struct Embedded {
    pub(crate) http: Http,
    pub(crate) address: SocketAddr,
    data: PathBuf,
    process: Process,
}

impl Embedded {
    /// Starts it on an empty data directory and waits until it is ready.
    pub(crate) async fn start(lab: &Lab) -> Result<Self> {
        let data = lab.file("data");
        std::fs::create_dir(&data)?;
        Self::start_on(lab, data).await
    }

    /// Starts it again on the data that it left.
    pub(crate) async fn restart(self, lab: &Lab) -> Result<Self> {
        let Self { data, process, .. } = self;
        process.stop().await?;
        Self::start_on(lab, data).await
    }

    /// Starts the process and returns at once, the moment and the new instance.
    pub(crate) async fn restart_at_once(self, lab: &Lab) -> Result<(u64, Self)> {
        let Self { data, process, .. } = self;
        process.stop().await?;
        let started_ns = crate::clock::now_ns();
        Ok((started_ns, Self::spawn(lab, data)?))
    }

    async fn start_on(lab: &Lab, data: PathBuf) -> Result<Self> {
        let mut new = Self::spawn(lab, data)?;
        ready(&mut new.process, new.address).await?;
        Ok(new)
    }

    fn spawn(lab: &Lab, data: PathBuf) -> Result<Self> {
        let address = loopback()?;
        let args = [
            "serve".into(),
            format!("--listen={address}"),
            format!("--data-dir={}", data.display()),
        ];
        let process = lab.start_postrider("postrider", &args, common_environment(None))?;
        let http = Http::new(format!("http://{address}"), Some(key().to_owned()));
        Ok(Self {
            http,
            address,
            data,
            process,
        })
    }

    /// Makes applications and endpoints, and says how to send to them.
    pub(crate) async fn target(
        &self,
        tenants: &Tenants,
        url: impl Fn(usize) -> String,
    ) -> Result<(Made, Target)> {
        let made = tenants.make(&self.http, url).await?;
        let target = Target {
            name: "postrider embedded".into(),
            processes: vec!["postrider".into()],
            addresses: vec![self.address],
            route: Route::Postrider {
                apps: made.apps.clone(),
                key: key().to_owned(),
                every_type: tenants.one_type_each && tenants.endpoints > 1,
                run: unique_name("r"),
            },
            fan_out: tenants.fan_out(),
            record: Record::Api {
                http: self.http.clone(),
                endpoints: made.endpoints.clone(),
            },
        };
        Ok((made, target))
    }

    pub(crate) async fn stop(self) -> Result<()> {
        self.process.stop().await
    }
}
