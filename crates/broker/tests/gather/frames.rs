//! What goes into a frame of jobs, and to which queue.

use super::*;

#[tokio::test]
async fn frames_are_bounded_in_items_and_bytes() {
    let settings = GatherSettings {
        max_items: 4,
        max_bytes: 2_000,
        ..one_at_a_time()
    };
    let (broker, publisher) = with(settings);
    let many = (0..10).map(|n| job(&message(n, 1), 1, false)).collect();
    let fan_out: Vec<Job> = (0..4)
        .map(|n| job(&Arc::clone(&message(50, 5_000)), n, false))
        .collect();
    let large = vec![
        job(&message(60, 1_500), 1, false),
        job(&message(61, 1_500), 1, false),
    ];
    let calls = [
        call(&publisher, many).await,
        call(&publisher, fan_out).await,
        call(&publisher, large).await,
    ];
    let mut sizes = Vec::new();
    for _ in 0..6 {
        let (jobs, confirm) = broker.next_jobs().await;
        sizes.push(jobs.len());
        confirm.send(Ok(())).unwrap();
    }
    assert_eq!(
        sizes,
        [4, 4, 2, 4, 1, 1],
        "a body above the limit goes once, with all of its deliveries"
    );
    for call in calls {
        assert_eq!(call.await.unwrap(), Ok(()));
    }
}

#[tokio::test]
async fn a_shared_body_counts_once() {
    let settings = GatherSettings {
        max_bytes: 2_000,
        ..one_at_a_time()
    };
    let (broker, publisher) = with(settings);
    let body = message(1, 1_000);
    let fan_out = (0..10).map(|n| job(&body, n, false)).collect();
    let fan_out = call(&publisher, fan_out).await;
    let (jobs, confirm) = broker.next_jobs().await;
    assert_eq!(jobs.len(), 10);
    confirm.send(Ok(())).unwrap();
    assert_eq!(fan_out.await.unwrap(), Ok(()));
}

#[tokio::test]
async fn an_ordered_run_stays_whole_and_in_order() {
    let settings = GatherSettings {
        max_items: 3,
        max_bytes: 1_000,
        ..one_at_a_time()
    };
    let (broker, publisher) = with(settings);
    // Two endpoints' runs, interleaved, and a stranger between them.
    let mut jobs: Vec<Job> = (0..12)
        .map(|n| job(&message(n, 200), if n % 2 == 0 { 7 } else { 8 }, true))
        .collect();
    jobs.insert(5, job(&message(99, 10), 9, false));
    let published = call(&publisher, jobs).await;
    let mut runs = Vec::new();
    for _ in 0..3 {
        let (jobs, confirm) = broker.next_jobs().await;
        runs.push(
            jobs.iter()
                .map(|job| job.message.id.as_uuid().as_u128())
                .collect::<Vec<_>>(),
        );
        confirm.send(Ok(())).unwrap();
    }
    assert_eq!(runs, [vec![0, 2, 4, 6, 8, 10], vec![1, 3, 5, 7, 9, 11], vec![99]]);
    assert_eq!(published.await.unwrap(), Ok(()));
}

#[tokio::test(start_paused = true)]
async fn shards_take_turns() {
    let publisher = JobPublisher::new(Held::new(), GatherSettings::default(), 3);
    let turn = Duration::from_millis(50);
    for shard in [0, 1, 2, 0] {
        for _ in 0..2 {
            let queues = publisher.deliver_queues(small(1));
            assert_eq!(queues, [(Queue::Deliver(shard), small(1))]);
            assert_eq!(publisher.retry_queue(), Queue::Retry(shard));
            tokio::time::advance(turn / 2).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_makes_several_frames_goes_to_all_shards() {
    let settings = GatherSettings {
        max_items: 2,
        max_bytes: 1_000,
        ..GatherSettings::default()
    };
    let publisher = JobPublisher::new(Held::new(), settings, 3);
    tokio::time::advance(Duration::from_millis(50)).await;
    let sizes = |jobs: Vec<Job>| -> Vec<(Queue, usize)> {
        let queues = publisher.deliver_queues(jobs).into_iter();
        queues.map(|(queue, jobs)| (queue, jobs.len())).collect()
    };
    let [first, second, third] = [0, 1, 2].map(Queue::Deliver);
    let shared = message(1, 10);
    let fan_out = |count: u128| (0..count).map(|to| job(&shared, to, false)).collect();
    assert_eq!(sizes(fan_out(2)), [(second, 2)]);
    assert_eq!(sizes(fan_out(7)), [(first, 2), (second, 3), (third, 2)]);
    let large = [1, 2].map(|number| job(&message(number, 900), 1, false));
    assert_eq!(sizes(large.into()), [(second, 1), (third, 1)]);
}
