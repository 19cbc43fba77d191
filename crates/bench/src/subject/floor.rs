//! The floors as processes.

use anyhow::{Context, Result};
use postrider_testkit::services::unique_name;

use super::{Record, Target};
use crate::generate::plan::Route;
use crate::lab::{Lab, START_LIMIT, loopback};
use crate::process::Process;
use crate::services::delete_queues;

/// What floor, and for which load.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// Messages in a broker message.
    pub(crate) batch: usize,
    pub(crate) endpoints: u16,
    pub(crate) fan_out: u16,
}

impl Shape {
    /// The bare loop to one endpoint.
    pub(crate) const BARE: Self = Self {
        batch: 1,
        endpoints: 1,
        fan_out: 1,
    };
    /// With 32 messages a broker message.
    pub(crate) const BATCHED: Self = Self {
        batch: 32,
        ..Self::BARE
    };
}

/// Both floors under the same load.
pub(crate) struct Floors {
    pub(crate) bare: Floor,
    pub(crate) batched: Floor,
}

impl Floors {
    /// Starts both for so many endpoints, with each message to `fan_out` of them.
    pub(crate) async fn start(lab: &Lab, endpoints: usize, fan_out: u64) -> Result<Self> {
        let shape = |shape| {
            anyhow::Ok(Shape {
                endpoints: u16::try_from(endpoints)?,
                fan_out: u16::try_from(fan_out)?,
                ..shape
            })
        };
        Ok(Self {
            bare: Floor::start(lab, shape(Shape::BARE)?).await?,
            batched: Floor::start(lab, shape(Shape::BATCHED)?).await?,
        })
    }

    pub(crate) async fn stop(self) -> Result<()> {
        self.bare.stop().await?;
        self.batched.stop().await
    }
}

pub(crate) struct Floor {
    pub(crate) target: Target,
    gateway: Process,
    worker: Option<Process>,
    queue: String,
    broker: String,
}

impl Floor {
    /// Starts the bare loop for so many endpoints, each message to one of them.
    pub(crate) async fn bare(lab: &Lab, endpoints: u16) -> Result<Self> {
        let shape = Shape {
            endpoints,
            ..Shape::BARE
        };
        Self::start(lab, shape).await
    }

    /// Starts its gateway and its worker.
    pub(crate) async fn start(lab: &Lab, shape: Shape) -> Result<Self> {
        let mut new = Self::start_idle(lab, shape).await?;
        new.add_worker(lab)?;
        Ok(new)
    }

    /// Starts its gateway alone: what it takes waits in the queue.
    pub(crate) async fn start_idle(lab: &Lab, shape: Shape) -> Result<Self> {
        let name = if shape.batch == 1 {
            "bare loop".to_owned()
        } else {
            format!("bare loop × {}", shape.batch)
        };
        let [gateway_name, worker_name] =
            ["gateway", "worker"].map(|role| format!("bare×{} {role}", shape.batch));
        let address = loopback()?;
        let queue = unique_name("bench_floor");
        let broker = lab.services.rabbit.url();
        let mut gateway = lab.start_own(
            &gateway_name,
            &[
                "floor-gateway".into(),
                format!("--listen={address}"),
                format!("--broker={broker}"),
                format!("--queue={queue}"),
                format!("--batch={}", shape.batch),
                format!("--endpoints={}", shape.endpoints),
                format!("--fan-out={}", shape.fan_out),
            ],
        )?;
        gateway.listening(address, START_LIMIT).await?;
        let target = Target {
            name,
            processes: vec![gateway_name, worker_name],
            addresses: vec![address],
            route: Route::Floor,
            fan_out: shape.fan_out.into(),
            record: Record::None,
        };
        Ok(Self {
            target,
            gateway,
            worker: None,
            queue,
            broker,
        })
    }

    /// Starts its worker.
    pub(crate) fn add_worker(&mut self, lab: &Lab) -> Result<()> {
        let name = self.target.processes.last().context("a floor has a worker")?;
        let args = [
            "floor-worker".into(),
            format!("--broker={}", self.broker),
            format!("--queue={}", self.queue),
            format!("--url={}", lab.receiver.url("ok", 0)),
        ];
        self.worker = Some(lab.start_own(name, &args)?);
        Ok(())
    }

    pub(crate) async fn stop(self) -> Result<()> {
        self.gateway.stop().await?;
        if let Some(worker) = self.worker {
            worker.stop().await?;
        }
        delete_queues(&self.broker, &[self.queue]).await
    }
}
