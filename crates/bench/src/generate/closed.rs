//! As fast as the answers come.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::client::Client;
use super::{Run, back_off};
use crate::clock::now_ns;
use crate::payload::Stamp;

pub(super) async fn run(run: &Arc<Run>) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs_f64(run.plan.seconds);
    let mut connections = JoinSet::new();
    for index in 0..run.plan.connections {
        let target = run.plan.targets[index % run.plan.targets.len()];
        let run = Arc::clone(run);
        connections.spawn(producer(run, Client::new(target), deadline));
    }
    while let Some(ended) = connections.join_next().await {
        ended??;
    }
    Ok(())
}

async fn producer(run: Arc<Run>, mut client: Client, deadline: Instant) -> Result<()> {
    while Instant::now() < deadline
        && let Some(number) = run.next_number()
    {
        let sent_ns = now_ns();
        let request = run.requests.request(Stamp { sent_ns, number })?;
        let answer = client.send(request).await;
        run.answered(sent_ns, &answer);
        back_off(&answer).await;
    }
    Ok(())
}
