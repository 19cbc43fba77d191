//! Several recorders and schedulers at once.

use std::collections::HashSet;
use std::time::Duration;

use postrider_model::{DeferReason, DeliveryState, Disposition, Next, Record, UnixMillis};
use postrider_store::{
    AppRef, ConfigStore, Grant, LogStore, MessageFilter, Page, RecordStore, StoreError, TimeRange,
    UpkeepStore, WaitingStore,
};
use postrider_store_postgres::{PostgresStore, Settings};
use postrider_testkit::wait::{Poll, wait_for};

use crate::world::{World, endpoint, page};

const LEASE: Duration = Duration::from_secs(60);

fn grant(world: &World, count: u32, ordered: bool) -> Grant {
    Grant {
        endpoint: world.endpoint,
        count,
        probe: false,
        has_token: false,
        ordered,
        not_before: Duration::ZERO,
        is_full: false,
    }
}

async fn record_waiting(world: &World, count: usize) -> Vec<postrider_model::MessageId> {
    let messages: Vec<_> = (0..count).map(|_| world.message(UnixMillis::now())).collect();
    let batch: Vec<Record> = messages
        .iter()
        .map(|message| world.accepted(message, Disposition::Waiting(DeferReason::Backlog)))
        .collect();
    world.store.record(&batch).await.unwrap();
    messages.iter().map(|message| message.id).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_schedulers_never_hand_out_the_same_run() {
    let world = World::new().await;
    record_waiting(&world, 300).await;
    let mut schedulers = Vec::new();
    for _ in 0..4 {
        let store = world.again();
        let grant = grant(&world, 7, false);
        schedulers.push(tokio::spawn(async move {
            let mut runs = Vec::new();
            loop {
                // Also without a claim: the rows' locks alone must keep schedulers apart.
                let jobs = store.lease(&[grant], LEASE, Duration::ZERO).await.unwrap();
                if jobs.is_empty() {
                    return runs;
                }
                runs.extend(
                    jobs.into_iter()
                        .map(|leased| (leased.job.delivery, leased.job.run)),
                );
            }
        }));
    }
    let mut seen = HashSet::new();
    for scheduler in schedulers {
        for run in scheduler.await.unwrap() {
            assert_eq!(run.1, 1);
            assert!(seen.insert(run), "{run:?} was handed out twice");
        }
    }
    assert_eq!(seen.len(), 300);
}

#[tokio::test]
async fn a_claimed_endpoint_is_not_offered_to_another_scheduler() {
    let world = World::new().await;
    record_waiting(&world, 3).await;
    let (one, two) = (world.again(), world.again());
    let (first, second) = tokio::join!(
        one.claim_due(10, 100, LEASE, Duration::ZERO),
        two.claim_due(10, 100, LEASE, Duration::ZERO)
    );
    let claimed: Vec<_> = first.unwrap().into_iter().chain(second.unwrap()).collect();
    assert_eq!(claimed.len(), 1);
    assert_eq!((claimed[0].due, claimed[0].out), (3, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_same_batch_by_several_recorders_is_recorded_once() {
    let world = World::new().await;
    let mut batch = Vec::new();
    for n in 0..200 {
        let message = world.message(UnixMillis::now());
        batch.push(world.accepted(&message, Disposition::Queued));
        let next = if n % 2 == 0 {
            Next::Delivered
        } else {
            Next::Retry { delay: LEASE }
        };
        batch.push(world.outcome(&message, 0, 1, next));
    }
    let mut recorders = Vec::new();
    for _ in 0..4 {
        let (store, batch) = (world.again(), batch.clone());
        recorders.push(tokio::spawn(async move {
            for part in batch.chunks(80) {
                loop {
                    match store.record(part).await {
                        Ok(_) => break,
                        Err(StoreError::Unavailable(_)) => {}
                        Err(error) => panic!("{error:?}"),
                    }
                }
            }
        }));
    }
    for recorder in recorders {
        recorder.await.unwrap();
    }
    let counts = world
        .store
        .endpoint_counts(world.endpoint, TimeRange::default())
        .await
        .unwrap();
    assert_eq!((counts.success, counts.sending, counts.pending), (100, 100, 0));
    assert_eq!(world.number("SELECT count(*) FROM waiting").await, 100);
    assert_eq!(world.number("SELECT count(*) FROM attempts").await, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_resume_amid_recording_leaves_nothing_asleep() {
    let mut world = World::new().await;
    for round in 0..15 {
        let mut paused = endpoint(world.app);
        paused.paused = true;
        world.store.create_endpoint(&paused).await.unwrap().unwrap();
        world.endpoint = paused.id;
        let message = world.message(UnixMillis::now());
        let accepted = [world.accepted(&message, Disposition::Waiting(DeferReason::Paused))];
        let (recorder, gateway, scheduler) = (world.again(), world.again(), world.again());
        paused.paused = false;
        let (recorded, resumed, claimed) = tokio::join!(
            recorder.record(&accepted),
            gateway.update_endpoint(&paused, paused.updated_at),
            scheduler.claim_due(10, 10, Duration::ZERO, Duration::ZERO)
        );
        recorded.unwrap();
        resumed.unwrap();
        claimed.unwrap();
        let due = world
            .store
            .claim_due(10, 10, Duration::ZERO, Duration::ZERO)
            .await
            .unwrap();
        assert!(
            due.iter()
                .any(|due| due.endpoint == world.endpoint && due.due == 1),
            "round {round}: {due:?}"
        );
        let leased = world
            .store
            .lease(&[grant(&world, 5, false)], LEASE, Duration::ZERO)
            .await
            .unwrap();
        assert_eq!(leased.len(), 1);
    }
}

#[tokio::test]
async fn an_ordered_run_goes_out_in_sequence_and_one_at_a_time() {
    let mut world = World::new().await;
    let mut fifo = endpoint(world.app);
    fifo.ordered = true;
    world.store.create_endpoint(&fifo).await.unwrap().unwrap();
    world.endpoint = fifo.id;
    let messages: Vec<_> = (0..5).map(|_| world.message(UnixMillis::now())).collect();
    let batch: Vec<Record> = messages
        .iter()
        .map(|message| world.accepted(message, Disposition::Ordered))
        .collect();
    world.store.record(&batch).await.unwrap();

    let due = world
        .store
        .claim_due(10, 100, Duration::ZERO, Duration::ZERO)
        .await
        .unwrap();
    assert_eq!((due.len(), due[0].due, due[0].ordered), (1, 5, true));
    let run = world
        .store
        .lease(&[grant(&world, 3, true)], LEASE, Duration::ZERO)
        .await
        .unwrap();
    let sent: Vec<_> = run.iter().map(|leased| leased.job.message.id).collect();
    let accepted: Vec<_> = messages.iter().map(|message| message.id).collect();
    assert_eq!(sent, accepted[..3]);
    assert!(
        world
            .store
            .lease(&[grant(&world, 3, true)], LEASE, Duration::ZERO)
            .await
            .unwrap()
            .is_empty()
    );

    let done: Vec<Record> = messages[..3]
        .iter()
        .map(|message| world.outcome(message, 1, 1, Next::Delivered))
        .collect();
    world.store.record(&done).await.unwrap();
    let due = world
        .store
        .claim_due(10, 100, Duration::ZERO, Duration::ZERO)
        .await
        .unwrap();
    assert_eq!(due.len(), 1, "the end of a run wakes the endpoint");
    let run = world
        .store
        .lease(&[grant(&world, 3, true)], LEASE, Duration::ZERO)
        .await
        .unwrap();
    let sent: Vec<_> = run.iter().map(|leased| leased.job.message.id).collect();
    assert_eq!(sent, accepted[3..]);
}

#[tokio::test]
async fn sweeps_cancel_what_waits_for_a_disabled_endpoint() {
    let mut world = World::new().await;
    let mut off = endpoint(world.app);
    world.store.create_endpoint(&off).await.unwrap().unwrap();
    world.endpoint = off.id;
    record_waiting(&world, 25).await;
    off.disabled = true;
    world
        .store
        .update_endpoint(&off, off.updated_at)
        .await
        .unwrap()
        .unwrap();
    assert!(
        world
            .store
            .claim_due(10, 10, LEASE, Duration::ZERO)
            .await
            .unwrap()
            .is_empty()
    );
    let mut cancelled = 0;
    loop {
        let report = world.store.sweep(10).await.unwrap();
        if report.cancelled == 0 {
            break;
        }
        cancelled += report.cancelled;
    }
    assert_eq!(cancelled, 25);
    let page = Page {
        after: None,
        backwards: false,
        descending: false,
        limit: 50,
    };
    let listed = world
        .store
        .deliveries_of_endpoint(world.app, world.endpoint, &Default::default(), &page, true)
        .await
        .unwrap();
    assert!(
        listed
            .rows
            .iter()
            .all(|(row, _)| row.state == DeliveryState::Cancelled)
    );
    assert_eq!(world.number("SELECT count(*) FROM backlog WHERE sweep").await, 0);
}

#[tokio::test]
async fn a_run_does_not_start_behind_a_head_that_somebody_holds() {
    let mut world = World::new().await;
    let mut fifo = endpoint(world.app);
    fifo.ordered = true;
    world.store.create_endpoint(&fifo).await.unwrap().unwrap();
    world.endpoint = fifo.id;
    let messages: Vec<_> = (0..3).map(|_| world.message(UnixMillis::now())).collect();
    for message in &messages {
        world
            .store
            .record(&[world.accepted(message, Disposition::Ordered)])
            .await
            .unwrap();
    }
    let pool = sqlx::PgPool::connect(world.database.url()).await.unwrap();
    let mut recorder = pool.begin().await.unwrap();
    sqlx::query("SELECT 1 FROM waiting ORDER BY seq LIMIT 1 FOR UPDATE")
        .execute(&mut *recorder)
        .await
        .unwrap();
    let behind = world
        .store
        .lease(&[grant(&world, 3, true)], LEASE, Duration::ZERO)
        .await
        .unwrap();
    assert!(behind.is_empty(), "{behind:?}");
    recorder.rollback().await.unwrap();
    let run = world
        .store
        .lease(&[grant(&world, 3, true)], LEASE, Duration::ZERO)
        .await
        .unwrap();
    let sent: Vec<_> = run.iter().map(|leased| leased.job.message.id).collect();
    let accepted: Vec<_> = messages.iter().map(|message| message.id).collect();
    assert_eq!(sent, accepted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_wake_is_lost_between_recorder_and_scheduler() {
    const MESSAGES: usize = 150;
    let world = World::new().await;
    let (recorder, scheduler) = (world.again(), world.again());
    let batches: Vec<Record> = (0..MESSAGES)
        .map(|_| {
            let message = world.message(UnixMillis::now());
            world.accepted(&message, Disposition::Waiting(DeferReason::Backlog))
        })
        .collect();
    let recording = tokio::spawn(async move {
        for record in batches {
            recorder.record(&[record]).await.unwrap();
        }
    });
    let grant = grant(&world, 10, false);
    let mut leased = 0;
    while !recording.is_finished() {
        if !scheduler
            .claim_due(10, 10, Duration::ZERO, Duration::ZERO)
            .await
            .unwrap()
            .is_empty()
        {
            leased += scheduler
                .lease(&[grant], LEASE, Duration::ZERO)
                .await
                .unwrap()
                .len();
        }
    }
    recording.await.unwrap();
    wait_for("what waits to be leased", Duration::from_secs(20), async || {
        if !scheduler
            .claim_due(10, 10, Duration::ZERO, Duration::ZERO)
            .await?
            .is_empty()
        {
            leased += scheduler.lease(&[grant], LEASE, Duration::ZERO).await?.len();
        }
        Ok(if leased == MESSAGES {
            Poll::Ready(())
        } else {
            Poll::NotYet(format!(
                "{leased} leased, next due {:?}",
                scheduler.next_due().await?
            ))
        })
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn what_all_traffic_leans_on_stands_behind_no_list() {
    let world = World::new().await;
    let one_read = Settings {
        read_connections: 1,
        ..Settings::new(world.database.url().into(), world.keyring.clone())
    };
    let store = PostgresStore::connect(one_read).unwrap();
    let pool = sqlx::PgPool::connect(world.database.url()).await.unwrap();
    let mut long = pool.begin().await.unwrap();
    sqlx::raw_sql("LOCK TABLE messages IN ACCESS EXCLUSIVE MODE")
        .execute(&mut *long)
        .await
        .unwrap();
    let (lists, app) = (store.clone(), world.app);
    let list = tokio::spawn(async move {
        let newest = page(None, false, true, 10);
        lists.messages(app, &MessageFilter::default(), &newest).await
    });
    let waits = "SELECT count(*) FROM pg_locks WHERE relation = 'messages'::regclass AND NOT granted";
    wait_for("the list to wait", Duration::from_secs(20), async || {
        Ok(match world.number(waits).await {
            0 => Poll::NotYet("it does not".to_owned()),
            _ => Poll::Ready(()),
        })
    })
    .await
    .unwrap();
    assert!(store.snapshot(&AppRef::Id(app)).await.unwrap().is_some());
    assert!(store.key_by_hash(&[7; 32]).await.unwrap().is_none());
    store.changed_apps(None, 10).await.unwrap();
    assert!(!list.is_finished(), "it has the only connection for lists");
    long.rollback().await.unwrap();
    list.await.unwrap().unwrap();
}
