//! What becomes of a delivery before it has its turn.

use std::time::{Duration, Instant};

use postrider_broker::Queue;
use postrider_limits::{GateRequest, Limits as _, Rate, Signal, Verdict};
use postrider_model::{DeferReason, EndpointId, Job, Next, Outcome, UnixMillis};
use postrider_store::AppRef;
use postrider_testkit::receiver::{Reply, Script};
use tokio_util::sync::CancellationToken;

use super::{PATIENCE, World};
use crate::Settings;
use crate::classify::LEASE_OVER_DELAY;
use crate::run::Context;

#[tokio::test(flavor = "multi_thread")]
async fn of_several_copies_only_the_one_with_a_lease_is_sent() {
    let world = World::new().await;
    let endpoint = world.endpoint("/hook", |_| {}).await;
    let context = world.context(World::settings());
    let first = world.job(endpoint);
    let now = UnixMillis::now();
    let copies: Vec<Job> = (1..=4)
        .map(|run| Job {
            run,
            // Away for three leases: the last one holds.
            lease_until: Some(
                now.plus(Duration::from_secs(90 * u64::from(run)))
                    .minus(Duration::from_secs(300)),
            ),
            ..first.clone()
        })
        .collect();
    world.dispatch(&context, copies).await;
    let mut outcomes = world.outcomes(4).await;
    outcomes.sort_unstable_by_key(|outcome| outcome.run);
    let again = Next::Deferred {
        reason: DeferReason::Ours,
        delay: LEASE_OVER_DELAY,
    };
    let next: Vec<Next> = outcomes.iter().map(|outcome| outcome.next).collect();
    assert_eq!(next, [again, again, again, Next::Delivered]);
    assert_eq!(world.receiver.count("/hook"), 1);
    world.all_settled(&context).await;
}

/// A producer that got no confirm repeats its message, while the first frame's delivery has gone through the store.
#[tokio::test(flavor = "multi_thread")]
async fn the_first_runs_frame_comes_again_after_a_later_run_was_made() {
    let world = World::new().await;
    let endpoint = world.endpoint("/hook", |_| {}).await;
    let context = world.context(World::settings());
    let first = world.job(endpoint);
    let second = Job {
        run: 1,
        ..first.clone()
    };
    for (made, job) in [second, first].into_iter().enumerate() {
        world.dispatch(&context, vec![job]).await;
        let outcomes = world.outcomes(made + 1).await;
        assert!(outcomes.iter().all(|outcome| outcome.next == Next::Delivered));
        world.all_settled(&context).await;
    }
    assert_eq!(world.receiver.count("/hook"), 1);
}

/// Sends a run of three on whose lease ends in `left`, by a store's clock that is five minutes behind; its outcomes.
async fn ordered_run(left: Duration) -> (World, Vec<Outcome>) {
    let world = World::new().await;
    let endpoint = world
        .endpoint("/ordered", |endpoint| endpoint.ordered = true)
        .await;
    let context = world.context(World::settings());
    let behind = UnixMillis::now().minus(Duration::from_secs(300));
    let at = Instant::now();
    context.clock.learn(behind, at, at);
    let jobs = (1..=3)
        .map(|run| Job {
            run,
            ordered: true,
            lease_until: Some(behind.plus(left)),
            ..world.job(endpoint)
        })
        .collect();
    world.dispatch(&context, jobs).await;
    let mut outcomes = world.outcomes(3).await;
    outcomes.sort_unstable_by_key(|outcome| outcome.run);
    (world, outcomes)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ordered_run_goes_by_the_stores_clock() {
    let (world, outcomes) = ordered_run(Duration::from_secs(90)).await;
    assert!(
        outcomes.iter().all(|outcome| outcome.next == Next::Delivered),
        "{outcomes:?}"
    );
    assert_eq!(world.receiver.count("/ordered"), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ordered_run_whose_lease_is_too_short_rests() {
    // Less than an attempt may take.
    let (world, outcomes) = ordered_run(Duration::from_secs(10)).await;
    let rests = Next::Deferred {
        reason: DeferReason::Ordered,
        delay: LEASE_OVER_DELAY,
    };
    assert!(
        outcomes.iter().all(|outcome| outcome.next == rests),
        "{outcomes:?}"
    );
    assert_eq!(world.receiver.count("/ordered"), 0);
}

/// What it holds is room that others wait for.
#[tokio::test(flavor = "multi_thread")]
async fn an_ordered_run_is_short_while_room_is() {
    let world = World::new().await;
    let endpoint = world
        .endpoint("/ordered", |endpoint| endpoint.ordered = true)
        .await;
    // The second one begins within a second, and the third one would not.
    let slowly = Script::always(Reply::Status(200)).delay(Duration::from_millis(600));
    world.receiver.on("/ordered", slowly);
    let context = world.context(Settings {
        held_jobs_max: 4,
        ..World::settings()
    });
    let _taken = context.room.take(Queue::Retry(0), 3, 1).await;
    let run = |run| Job {
        run,
        ordered: true,
        ..world.job(endpoint)
    };
    world.dispatch(&context, (1..=3).map(run).collect()).await;
    let mut outcomes = world.outcomes(3).await;
    outcomes.sort_unstable_by_key(|outcome| outcome.run);
    let next: Vec<Next> = outcomes.iter().map(|outcome| outcome.next).collect();
    let waits = Next::Deferred {
        reason: DeferReason::Ordered,
        delay: Duration::ZERO,
    };
    assert_eq!(next, [Next::Delivered, Next::Delivered, waits]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_takes_nothing_rests_for_half_as_long() {
    let world = World::new().await;
    let endpoint = world.endpoint("/hang", |_| {}).await;
    world.receiver.on("/hang", Script::always(Reply::Hang));
    let slow_after = Duration::from_millis(100);
    let context = world.context(Settings {
        slow_after,
        queue_max_wait: slow_after,
        ..World::settings()
    });
    // As many as it gets at once; then one more, for which there is no room.
    let first = (0..4).map(|_| world.job(endpoint)).collect();
    world.dispatch(&context, first).await;
    let began = Instant::now();
    // Twice what is slow: an attempt that is then counted as slow raises the bound to that.
    let is_stuck = |stalled: Duration| stalled >= slow_after * 2;
    while !context
        .board
        .lock()
        .stalled(endpoint, Instant::now())
        .is_some_and(is_stuck)
    {
        assert!(began.elapsed() < PATIENCE, "it is not stalled");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    world.dispatch(&context, vec![world.job(endpoint)]).await;
    loop {
        if let Some(Signal::Stalled(pause)) = world.limits.signals.lock().first() {
            assert!((slow_after / 2..began.elapsed()).contains(pause), "{pause:?}");
            return;
        }
        assert!(began.elapsed() < PATIENCE, "nobody heard of it");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_delivery_costs_no_token() {
    let world = World::new().await;
    // A token a second.
    let limited = world
        .endpoint("/limited", |endpoint| endpoint.throttle_rate = Some(1))
        .await;
    let (context, queue) = Context::new(
        Settings {
            held_jobs_max: 1,
            ..World::settings()
        },
        world.deps(),
    );
    context
        .board
        .lock()
        .reserve(limited, Instant::now())
        .expect("a place, the only one");
    let refused = world.job(limited);
    world.dispatch(&context, vec![refused.clone()]).await;
    // Before the limits hear of the refusal, with which a backlog begins.
    let ask = GateRequest {
        app: world.app,
        endpoint: limited,
        delivery: refused.delivery,
        run: 0,
        rate: Some(Rate::smooth(1)),
        released: false,
    };
    let gates = world.limits.gate(&[ask]).await.expect("in process");
    assert_eq!(gates[0].verdict, Verdict::Go, "its token is still there");
    tokio::spawn(crate::finish::batch::run(
        context,
        queue,
        CancellationToken::new(),
    ));
    let outcomes = world.outcomes(1).await;
    assert!(
        matches!(
            outcomes[0].next,
            Next::Deferred {
                reason: DeferReason::Queue,
                ..
            }
        ),
        "{outcomes:?}"
    );
}

/// The limits may have missed the version in which the endpoint was made or enabled.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_configuration_lacks_waits_in_the_store_which_knows() {
    let world = World::new().await;
    let disabled = world.endpoint("/off", |endpoint| endpoint.disabled = true).await;
    let app = world.store.snapshot(&AppRef::Id(world.app)).await;
    let known = app.expect("the store").expect("the application").version;
    let made_elsewhere = EndpointId::generate(UnixMillis::now(), &mut rand::rng());
    // As it is known here, and one that the store does not have, as it looks to a worker that cannot read it just now.
    for (looked, version) in [known, 1_000].into_iter().enumerate() {
        let published = world.limits.publish_version(world.app, version);
        published.await.expect("published");
        let context = world.context(World::settings());
        let jobs = vec![world.job(made_elsewhere), world.job(disabled)];
        world.dispatch(&context, jobs).await;
        let outcomes = world.outcomes(2 * (looked + 1)).await;
        let waits = |outcome: &Outcome| {
            let next = outcome.next;
            matches!(
                next,
                Next::Deferred {
                    reason: DeferReason::Ours,
                    ..
                }
            )
        };
        assert!(outcomes.iter().all(waits), "{outcomes:?}");
        world.all_settled(&context).await;
    }
}
