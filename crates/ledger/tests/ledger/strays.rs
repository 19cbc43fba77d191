//! What the broker could not place.

use std::time::Duration;

use postrider_broker::Queue;
use postrider_ledger::Settings;
use postrider_model::{DeliveryId, Disposition, Job, Trigger};

use crate::world::{World, next_jobs, until};

#[tokio::test]
async fn of_a_stray_frame_one_bad_job_costs_one_job() {
    let world = World::new(Settings::default()).await;
    let messages = [(); 2].map(|()| world.message(Duration::ZERO, "a"));
    let accepted = messages
        .iter()
        .map(|message| world.accepted(message, Disposition::Queued));
    world.journal.publish(accepted.collect()).await.unwrap();
    let jobs = messages.each_ref().map(|message| Job {
        delivery: DeliveryId::derive(message.id, world.endpoint),
        endpoint: world.endpoint,
        message: message.clone(),
        run: 0,
        attempts: 0,
        trigger: Trigger::Scheduled,
        probe: false,
        has_token: false,
        ordered: false,
        lease_until: None,
    });
    let mut frame = postrider_wire::encode_jobs(&jobs).to_vec();
    // Field 3 of the second job, its message: there is no ninth one.
    let second = frame.windows(2).rposition(|bytes| bytes == [0x18, 1]).unwrap();
    frame[second + 1] = 9;
    world.broker.publish(Queue::Stray, frame.into()).await.unwrap();

    let mut released = world.released().await;
    let jobs = next_jobs(&mut released).await;
    assert_eq!(jobs.len(), 1, "{jobs:?}");
    assert_eq!(jobs[0].message.id, messages[0].id);
    until("the frame is parked", async || {
        (world.store.parked_count().await.unwrap() == 1).then_some(())
    })
    .await;
    until("the metrics tell", async || {
        let page = world.metrics.render();
        page.lines()
            .any(|line| line == "postrider_parked_items 1")
            .then_some(())
    })
    .await;
}
