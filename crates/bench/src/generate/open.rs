//! At a fixed rate. A thread of its own keeps the pace, because the runtime's timer counts whole milliseconds.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;

use super::Run;
use super::client::Client;
use crate::clock::now_ns;
use crate::figures::figure;
use crate::payload::Stamp;

/// Messages that may be late before the pace itself waits: minutes of any rate used here.
const LATE_MAX: usize = 1_000_000;

pub(super) async fn run(run: &Arc<Run>, per_second: f64) -> Result<()> {
    let (due, messages) = mpsc::channel::<Stamp>(LATE_MAX);
    let messages = Arc::new(Mutex::new(messages));
    let mut connections = JoinSet::new();
    for index in 0..run.plan.connections {
        let mut client = Client::new(run.plan.targets[index % run.plan.targets.len()]);
        client.connect().await?;
        connections.spawn(sender(Arc::clone(run), client, Arc::clone(&messages)));
    }
    let pace = {
        let run = Arc::clone(run);
        std::thread::spawn(move || keep_pace(&run, per_second, &due))
    };
    while let Some(ended) = connections.join_next().await {
        ended??;
    }
    pace.join().map_err(|_| anyhow::anyhow!("the pace broke"))
}

/// Sends each message's stamp when it is due; a message that is late keeps the time it should have had.
fn keep_pace(run: &Run, per_second: f64, due: &mpsc::Sender<Stamp>) {
    let start = now_ns();
    let end = start + nanos(run.plan.seconds);
    let mut sent = 0;
    while let Some(number) = run.next_number() {
        let sent_ns = start + nanos(figure(sent) / per_second);
        if sent_ns >= end {
            return;
        }
        let wait = sent_ns.saturating_sub(now_ns());
        if wait > 0 {
            std::thread::sleep(Duration::from_nanos(wait));
        }
        if due.blocking_send(Stamp { sent_ns, number }).is_err() {
            return;
        }
        sent += 1;
    }
}

async fn sender(run: Arc<Run>, mut client: Client, due: Arc<Mutex<mpsc::Receiver<Stamp>>>) -> Result<()> {
    loop {
        let Some(stamp) = due.lock().await.recv().await else {
            return Ok(());
        };
        let answer = client.send(run.requests.request(stamp)?).await;
        run.answered(stamp.sent_ns, &answer);
    }
}

fn nanos(seconds: f64) -> u64 {
    u64::try_from(Duration::from_secs_f64(seconds).as_nanos()).unwrap_or(u64::MAX)
}
