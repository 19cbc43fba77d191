//! Rates, done marks, breakers, pauses, backlogs.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::sleep;

use super::{Fixture, SETTINGS};
use crate::{
    BACKLOG_TTL, BreakerChange, GateRequest, Limits, RESTART, RESTART_REST, Rate, Release, Signal, Verdict,
};

/// Added to a wait, since servers and this process do not tick together.
const SLACK: Duration = Duration::from_millis(20);

fn granted(count: u32) -> Release {
    Release::Granted {
        count,
        next: Duration::ZERO,
    }
}

pub(super) async fn rate(limits: &dyn Limits) {
    let fixture = Fixture {
        rate: Some(Rate {
            per_second: 1,
            burst: 2,
        }),
        ..Fixture::new(limits)
    };
    let batch = [fixture.request(), fixture.request(), fixture.request()];
    let answers = limits.gate(&batch).await.expect("gate");
    assert_eq!(
        (&answers[0].verdict, &answers[1].verdict),
        (&Verdict::Go, &Verdict::Go)
    );
    let Verdict::Rate(wait) = answers[2].verdict else {
        panic!("{:?}", answers[2])
    };
    assert!(!wait.is_zero() && wait <= Duration::from_secs(1), "{wait:?}");
    assert_eq!(
        fixture.gate_released().await,
        Verdict::Go,
        "the scheduler took its token"
    );
    sleep(wait + SLACK).await;
    assert_eq!(fixture.gate().await, Verdict::Go);
    assert!(matches!(fixture.gate().await, Verdict::Rate(_)));
    assert_eq!(Fixture::new(limits).gate().await, Verdict::Go, "another endpoint");
}

pub(super) async fn done_marks(limits: &dyn Limits) {
    let fixture = Fixture::new(limits);
    let first = fixture.request();
    let second = GateRequest { run: 1, ..first };
    assert_eq!(fixture.gate_of(first).await, Verdict::Go);
    let mark = Bytes::from_static(b"\0\xff\r\nmark");
    fixture.mark(&first, mark.clone()).await;
    fixture.finish(Signal::Backlogged, false).await;
    assert_eq!(
        fixture.gate_of(first).await,
        Verdict::Done(mark.clone()),
        "before the backlog"
    );
    assert_eq!(
        fixture
            .gate_of(GateRequest {
                released: true,
                ..first
            })
            .await,
        Verdict::Done(mark)
    );
    let second_released = GateRequest {
        released: true,
        ..second
    };
    assert_eq!(fixture.gate_of(second_released).await, Verdict::Go, "another run");
    fixture.mark(&second, Bytes::new()).await;
    assert_eq!(
        fixture.gate_of(second_released).await,
        Verdict::Done(Bytes::new())
    );
}

pub(super) async fn breaker_opens_probes_and_closes(limits: &dyn Limits) {
    let fixture = Fixture::new(limits);
    assert_eq!(fixture.finish(Signal::Failure, false).await, BreakerChange::None);
    assert_eq!(fixture.finish(Signal::Failure, false).await, BreakerChange::None);
    let open_for = SETTINGS.open_for;
    assert_eq!(
        fixture.finish(Signal::Failure, false).await,
        BreakerChange::Opened(open_for)
    );
    assert_eq!(
        fixture.finish(Signal::Failure, false).await,
        BreakerChange::None,
        "began before"
    );
    let Verdict::Breaker(wait) = fixture.gate().await else {
        panic!("the breaker is open")
    };
    assert!(wait <= open_for, "{wait:?}");
    assert!(limits.open_breakers().await.expect("open_breakers") >= 1);
    assert_eq!(fixture.gate_released().await, Verdict::Go);
    probe_after_wait(&fixture).await;
    assert!(
        matches!(fixture.release(1, false).await, Release::Wait(_)),
        "one probe at a time"
    );
    assert_eq!(fixture.finish(Signal::Neutral, true).await, BreakerChange::None);
    assert_eq!(
        fixture.release(1, false).await,
        Release::Probe,
        "a probe that was given back"
    );
    assert_eq!(
        fixture.finish(Signal::Failure, true).await,
        BreakerChange::Opened(SETTINGS.open_for_max)
    );
    probe_after_wait(&fixture).await;
    assert!(matches!(fixture.gate().await, Verdict::Breaker(_)));
    assert_eq!(fixture.finish(Signal::Success, true).await, BreakerChange::Closed);
    assert_eq!(fixture.gate().await, Verdict::Go);
    assert_eq!(fixture.release(4, false).await, granted(4));
    assert_eq!(
        fixture.finish(Signal::Failure, false).await,
        BreakerChange::None,
        "counts from zero"
    );
}

async fn probe_after_wait(fixture: &Fixture<'_>) {
    let Release::Wait(wait) = fixture.release(1, false).await else {
        panic!("the breaker is open")
    };
    assert!(!wait.is_zero() && wait <= SETTINGS.open_for_max, "{wait:?}");
    sleep(wait + SLACK).await;
    assert_eq!(fixture.release(1, false).await, Release::Probe);
}

pub(super) async fn a_success_resets_the_count(limits: &dyn Limits) {
    let fixture = Fixture::new(limits);
    for _ in 0..3 {
        assert_eq!(fixture.finish(Signal::Failure, false).await, BreakerChange::None);
        assert_eq!(fixture.finish(Signal::Failure, false).await, BreakerChange::None);
        assert_eq!(fixture.finish(Signal::Neutral, false).await, BreakerChange::None);
        assert_eq!(fixture.finish(Signal::Success, false).await, BreakerChange::None);
    }
    assert_eq!(fixture.gate().await, Verdict::Go);
}

pub(super) async fn push_back(limits: &dyn Limits) {
    let fixture = Fixture::new(limits);
    let pause = Duration::from_secs(2);
    for _ in 0..5 {
        let change = fixture.finish(Signal::PushBack(pause), false).await;
        assert_eq!(change, BreakerChange::None, "no failure");
    }
    fixture
        .finish(Signal::PushBack(Duration::from_millis(1)), false)
        .await;
    for verdict in [fixture.gate().await, fixture.gate_released().await] {
        let Verdict::Rate(wait) = verdict else {
            panic!("{verdict:?}")
        };
        assert!(
            wait <= pause && wait > Duration::from_millis(500),
            "the longer pause counts: {wait:?}"
        );
    }
    let Release::Wait(wait) = fixture.release(1, false).await else {
        panic!("paused")
    };
    sleep(wait + SLACK).await;
    assert_eq!(fixture.gate_released().await, Verdict::Go);
    assert_eq!(fixture.release(1, false).await, granted(1));

    let signal = Signal::FailureWithPushBack(Duration::from_millis(1));
    fixture.finish(signal, false).await;
    fixture.finish(signal, false).await;
    assert_eq!(
        fixture.finish(signal, false).await,
        BreakerChange::Opened(SETTINGS.open_for)
    );
}

pub(super) async fn a_stall(limits: &dyn Limits) {
    let fixture = Fixture::new(limits);
    let pause = Duration::from_secs(1);
    for _ in 0..SETTINGS.failures {
        let change = fixture.finish(Signal::Stalled(pause), false).await;
        assert_eq!(change, BreakerChange::None, "no failure");
    }
    assert_eq!(
        fixture.gate().await,
        Verdict::Backlog,
        "what comes joins what waits"
    );
    assert!(matches!(fixture.gate_released().await, Verdict::Rate(wait) if wait <= pause));
    let Release::Wait(wait) = fixture.release(1, false).await else {
        panic!("nothing passes")
    };
    sleep(wait + SLACK).await;
    assert_eq!(fixture.gate_released().await, Verdict::Go);
}

pub(super) async fn after_a_pause_little_goes_until_a_success(limits: &dyn Limits) {
    let pause = Duration::from_millis(1);
    let little = |count| Release::Granted {
        count,
        next: RESTART_REST,
    };
    for paused in [Signal::Stalled(pause), Signal::PushBack(pause)] {
        let fixture = Fixture::new(limits);
        assert_eq!(fixture.release(100, false).await, granted(100));
        fixture.finish(paused, false).await;
        sleep(pause + SLACK).await;
        for signal in [Signal::Failure, Signal::Neutral, Signal::Backlogged] {
            assert_eq!(fixture.release(100, false).await, little(RESTART));
            assert_eq!(fixture.gate().await, Verdict::Backlog, "the rest still waits");
            fixture.finish(signal, false).await;
        }
        assert_eq!(fixture.release(3, true).await, little(3));
        assert_eq!(fixture.release(RESTART, false).await, granted(RESTART));
        fixture.finish(Signal::Success, false).await;
        assert_eq!(fixture.release(100, false).await, granted(100));
    }
}

pub(super) async fn backlog(limits: &dyn Limits) {
    let fixture = Fixture::new(limits);
    fixture.finish(Signal::Backlogged, false).await;
    assert_eq!(fixture.gate().await, Verdict::Backlog);
    assert_eq!(fixture.gate_released().await, Verdict::Go);
    assert_eq!(fixture.release(3, true).await, granted(3));
    assert_eq!(fixture.gate().await, Verdict::Backlog, "more is waiting");
    assert_eq!(fixture.release(3, false).await, granted(3));
    assert_eq!(fixture.gate().await, Verdict::Go, "that was all");
    fixture.release(3, true).await;
    sleep(BACKLOG_TTL + SLACK).await;
    assert_eq!(fixture.gate().await, Verdict::Go, "nobody renewed it");
}

pub(super) async fn release_takes_tokens(limits: &dyn Limits) {
    let fixture = Fixture {
        rate: Some(Rate {
            per_second: 1,
            burst: 3,
        }),
        ..Fixture::new(limits)
    };
    assert_eq!(fixture.release(2, false).await, granted(2));
    let Release::Granted { count: 1, next } = fixture.release(5, false).await else {
        panic!("one is left")
    };
    assert!(!next.is_zero() && next <= Duration::from_secs(1), "{next:?}");
    assert_eq!(fixture.gate().await, Verdict::Backlog, "four wait for tokens");
    let Release::Wait(wait) = fixture.release(1, false).await else {
        panic!("no token")
    };
    assert!(!wait.is_zero() && wait <= next, "{wait:?}");
    sleep(wait + SLACK).await;
    assert!(matches!(
        fixture.release(1, false).await,
        Release::Granted { count: 1, .. }
    ));
    assert!(
        matches!(fixture.gate().await, Verdict::Rate(_)),
        "workers and scheduler share the tokens"
    );
}

pub(super) async fn answers_are_in_order(limits: &dyn Limits) {
    let fixtures: Vec<_> = (0..40).map(|_| Fixture::new(limits)).collect();
    let mut batch = Vec::new();
    for (number, fixture) in fixtures.iter().enumerate() {
        limits
            .publish_version(fixture.app, number as u64 + 1)
            .await
            .expect("publish");
        let request = fixture.request();
        if number % 3 == 0 {
            fixture.mark(&request, Bytes::from(number.to_string())).await;
        } else if number % 3 == 1 {
            fixture.finish(Signal::Backlogged, false).await;
        }
        batch.push(request);
    }
    let answers = limits.gate(&batch).await.expect("gate");
    assert_eq!(answers.len(), batch.len());
    for (number, answer) in answers.iter().enumerate() {
        let expected = match number % 3 {
            0 => Verdict::Done(Bytes::from(number.to_string())),
            1 => Verdict::Backlog,
            _ => Verdict::Go,
        };
        assert_eq!(answer.verdict, expected);
        assert_eq!(answer.version, Some(number as u64 + 1));
    }
    let reports: Vec<_> = fixtures
        .iter()
        .map(|fixture| fixture.report(Signal::Failure, false))
        .collect();
    let reports: Vec<_> = reports[..4]
        .iter()
        .chain(&reports[..2])
        .chain(&reports[..1])
        .cloned()
        .collect();
    let changes = limits.finish(&reports).await.expect("finish");
    let opened: Vec<_> = changes
        .iter()
        .map(|change| *change != BreakerChange::None)
        .collect();
    assert_eq!(opened, [false, false, false, false, false, false, true]);
    // What a batch changed is kept, also of an endpoint that it names more than once.
    assert!(matches!(fixtures[0].gate().await, Verdict::Breaker(_)));
}
