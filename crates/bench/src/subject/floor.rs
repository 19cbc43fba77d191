//! The floors as processes.

use anyhow::Result;
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

pub(crate) struct Floor {
    pub(crate) target: Target,
    gateway: Process,
    worker: Process,
    queue: String,
    broker: String,
}

impl Floor {
    pub(crate) async fn start(lab: &Lab, shape: Shape) -> Result<Self> {
        let name = if shape.batch == 1 {
            "bare loop".to_owned()
        } else {
            format!("bare loop × {}", shape.batch)
        };
        let [gateway_name, worker_name] =
            ["gateway", "worker"].map(|role| format!("bare×{} {role}", shape.batch));
        let address = loopback()?;
        let queue_name = unique_name("bench_floor");
        let broker = format!("--broker={}", lab.services.rabbit.url());
        let queue = format!("--queue={queue_name}");
        let mut gateway = lab.start_own(
            &gateway_name,
            &[
                "floor-gateway".into(),
                format!("--listen={address}"),
                broker.clone(),
                queue.clone(),
                format!("--batch={}", shape.batch),
                format!("--endpoints={}", shape.endpoints),
                format!("--fan-out={}", shape.fan_out),
            ],
        )?;
        gateway.listening(address, START_LIMIT).await?;
        let url = format!("--url={}", lab.receiver.url("ok", 0));
        let worker = lab.start_own(&worker_name, &["floor-worker".into(), broker, queue, url])?;
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
            worker,
            queue: queue_name,
            broker: lab.services.rabbit.url(),
        })
    }

    pub(crate) async fn stop(self) -> Result<()> {
        self.gateway.stop().await?;
        self.worker.stop().await?;
        delete_queues(&self.broker, &[self.queue]).await
    }
}
