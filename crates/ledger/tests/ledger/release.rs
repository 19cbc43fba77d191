//! What the scheduler hands out, and when.

use std::collections::HashSet;
use std::time::Duration;

use postrider_broker::{GatherSettings, InProcessSettings, Queue};
use postrider_ledger::Settings;
use postrider_limits::{FinishReport, GateRequest, Signal, Verdict};
use postrider_model::{DeferReason, DeliveryId, Disposition, MessageId, Next, Record, UnixMillis};

use crate::world::{World, next_jobs, until};

/// Far less than a lost probe's lease.
const SOON: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_probe_without_a_delivery_is_given_back() {
    let world = World::new(Settings::default()).await;
    let failed = FinishReport {
        app: world.app,
        endpoint: world.endpoint,
        delivery: DeliveryId::derive(MessageId::floor(UnixMillis(0)), world.endpoint),
        run: 0,
        probe: false,
        mark: None,
        signal: Signal::Failure,
    };
    world.limits.finish(&[failed]).await.unwrap();
    let mut released = world.released().await;
    let message = world.message(Duration::ZERO, "a");
    world
        .journal
        .publish(vec![world.deferred(&message)])
        .await
        .unwrap();
    let sql = world.sql();
    until(
        "the probe was granted, and its row lacks its message",
        async || {
            let orphan: bool = sql
                .query_row("SELECT orphan FROM waiting", [], |row| row.get(0))
                .unwrap();
            orphan.then_some(())
        },
    )
    .await;
    let accepted = world.accepted(&message, Disposition::Queued);
    world.journal.publish(vec![accepted]).await.unwrap();
    let jobs = tokio::time::timeout(SOON, next_jobs(&mut released)).await;
    let jobs = jobs.expect("the probe's lease is not waited for");
    assert!(jobs.len() == 1 && jobs[0].probe, "{jobs:?}");
}

#[tokio::test]
async fn a_full_endpoint_goes_on_when_a_lease_ends() {
    const DELIVERIES: usize = 40;
    let settings = Settings {
        out_per_endpoint: 1,
        ..Settings::default()
    };
    let world = World::new(settings).await;
    let mut released = world.released().await;
    let waiting = Disposition::Waiting(DeferReason::Backlog);
    let batch = (0..DELIVERIES)
        .map(|_| world.accepted(&world.message(Duration::ZERO, "a"), waiting))
        .collect();
    world.journal.publish(batch).await.unwrap();
    let all = async {
        for done in 0..DELIVERIES {
            let jobs = next_jobs(&mut released).await;
            assert_eq!(jobs.len(), 1, "after {done}: one may be out");
            let outcome = world.outcome(&jobs[0].message, jobs[0].run, Next::Delivered);
            let outcome = Record::Outcome(Box::new(outcome));
            world.journal.publish(vec![outcome]).await.unwrap();
        }
    };
    let done = tokio::time::timeout(SOON, all).await;
    done.expect("it does not wait for the next look, a second each time");
}

#[tokio::test]
async fn no_more_is_out_than_may_be() {
    const OUT_MAX: u32 = 1_500;
    let settings = Settings {
        out_per_endpoint: OUT_MAX,
        ..Settings::default()
    };
    let world = World::new(settings).await;
    let waiting = Disposition::Waiting(DeferReason::Backlog);
    let batch = (0..4_000)
        .map(|_| world.accepted(&world.message(Duration::ZERO, "a"), waiting))
        .collect();
    world.journal.publish(batch).await.unwrap();
    let sql = world.sql();
    let out = || -> u32 {
        let count = "SELECT count(*) FROM waiting WHERE leased = 1";
        sql.query_row(count, [], |row| row.get(0)).unwrap()
    };
    until("as many are out as may be", async || {
        (out() >= OUT_MAX).then_some(())
    })
    .await;
    // Two looks at an endpoint that is full.
    tokio::time::sleep(Duration::from_millis(2_200)).await;
    assert_eq!(out(), OUT_MAX);
    let message = world.message(Duration::ZERO, "a");
    let fresh = GateRequest {
        app: world.app,
        endpoint: world.endpoint,
        delivery: DeliveryId::derive(message.id, world.endpoint),
        run: 0,
        rate: None,
        released: false,
    };
    let gates = world.limits.gate(&[fresh]).await.unwrap();
    assert_eq!(
        gates[0].verdict,
        Verdict::Backlog,
        "what comes now is behind the others"
    );
}

#[tokio::test]
async fn of_what_a_full_queue_takes_in_part_the_rest_is_given_back() {
    const DELIVERIES: usize = 12;
    const FRAMES_MAX: usize = 3;
    let queues = InProcessSettings {
        max_frames: FRAMES_MAX,
        ..InProcessSettings::default()
    };
    let gather = GatherSettings {
        max_items: 2,
        ..GatherSettings::default()
    };
    let world = World::with_queues(Settings::default(), queues, gather).await;
    let waiting = Disposition::Waiting(DeferReason::Backlog);
    let batch = (0..DELIVERIES)
        .map(|_| world.accepted(&world.message(Duration::ZERO, "a"), waiting))
        .collect();
    world.journal.publish(batch).await.unwrap();
    until("the queue is full", async || {
        let depth = world.broker.depth(Queue::Retry(0)).await.unwrap();
        (depth == FRAMES_MAX as u64).then_some(())
    })
    .await;
    let told = format!("postrider_queue_frames{{queue=\"retry\"}} {FRAMES_MAX}");
    until("the metrics tell", async || {
        let page = world.metrics.render();
        page.lines().any(|line| line == told).then_some(())
    })
    .await;
    let mut released = world.released().await;
    let mut seen = HashSet::new();
    let all = async {
        while seen.len() < DELIVERIES {
            for job in next_jobs(&mut released).await {
                assert!(seen.insert(job.delivery), "{} came twice", job.delivery);
            }
            // Slower than what could not be published is tried again.
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    };
    let done = tokio::time::timeout(SOON, all).await;
    done.expect("the leases are not waited for");
}

#[tokio::test]
async fn an_expired_lease_waits_for_a_journal_that_is_behind() {
    const LATE: Duration = Duration::from_secs(100);
    let settings = Settings {
        lease: Duration::from_secs(1),
        ..Settings::default()
    };
    let world = World::new(settings).await;
    let mut released = world.released().await;
    let catch_up = async || {
        let old = world.accepted(&world.message(LATE, "a"), Disposition::Queued);
        world.journal.publish(vec![old]).await.unwrap();
    };
    until("the journal is known to be late", async || {
        catch_up().await;
        (world.metric("postrider_journal_lag_seconds") >= LATE.as_secs_f64()).then_some(())
    })
    .await;
    let waiting = Disposition::Waiting(DeferReason::Backlog);
    let accepted = world.accepted(&world.message(Duration::ZERO, "a"), waiting);
    world.journal.publish(vec![accepted]).await.unwrap();
    let first = next_jobs(&mut released).await;
    for _ in 0..20 {
        catch_up().await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(released.try_next().is_none(), "its outcome may be on the way");
    }
    let again = tokio::time::timeout(SOON, next_jobs(&mut released)).await;
    let again = again.expect("the journal has caught up");
    assert_eq!((first[0].run, again[0].run), (1, 2));
}
