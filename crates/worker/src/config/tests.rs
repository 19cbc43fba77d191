//! The cache before a store that answers, hangs or fails. Time is tokio's, paused.

use std::sync::atomic::{AtomicU64, AtomicUsize};

use postrider_limits::{BreakerSettings, InProcess};

use super::*;

/// What the store does with a look.
#[derive(Clone, Copy, Debug)]
enum Answer {
    Version,
    Hang,
    Fail,
}

struct World {
    cache: Arc<ConfigCache>,
    answer: Arc<Mutex<Answer>>,
    version: Arc<AtomicU64>,
    looks: Arc<AtomicUsize>,
}

fn app() -> AppId {
    AppId::generate(UnixMillis(1), &mut rand::rng())
}

fn snapshot(app: AppId, version: u64) -> AppSnapshot {
    AppSnapshot {
        version,
        application: crate::tests::application(app),
        endpoints: Vec::new(),
    }
}

impl World {
    fn new() -> Self {
        let (answer, version, looks) = (
            Arc::new(Mutex::new(Answer::Version)),
            Arc::new(AtomicU64::new(1)),
            Arc::new(AtomicUsize::new(0)),
        );
        let shared = (answer.clone(), version.clone(), looks.clone());
        let read: Read = Box::new(move |app| {
            let (answer, version, looks) = shared.clone();
            async move {
                looks.fetch_add(1, Ordering::Relaxed);
                let answer = *answer.lock();
                match answer {
                    Answer::Version => Ok(Some(snapshot(app, version.load(Ordering::Relaxed)))),
                    Answer::Fail => Err(StoreError::Unavailable("away".into())),
                    Answer::Hang => {
                        // As long as a store's own bound.
                        tokio::time::sleep(Duration::from_secs(5)).await;
                        Err(StoreError::Unavailable("away".into()))
                    }
                }
            }
            .boxed()
        });
        let cache = ConfigCache::new(
            read,
            Arc::new(InProcess::new(BreakerSettings::default())),
            Policy::new(Vec::new(), false),
            Metrics::new(),
        );
        Self {
            cache: Arc::new(cache),
            answer,
            version,
            looks,
        }
    }

    fn will(&self, answer: Answer) {
        *self.answer.lock() = answer;
    }

    fn looks(&self) -> usize {
        self.looks.load(Ordering::Relaxed)
    }

    /// The version that a delivery gets, if any, and how long it waited.
    async fn ask(&self, app: AppId, version: Option<u64>) -> (Option<u64>, Duration) {
        let began = Instant::now();
        let found = self.cache.snapshot(app, version).await;
        let found = found.ok().flatten().map(|snapshot| snapshot.version);
        (found, began.elapsed())
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_holds_nobody_up_who_has_a_snapshot() {
    let (world, app) = (World::new(), app());
    assert_eq!(world.ask(app, Some(0)).await, (Some(1), Duration::ZERO));
    world.will(Answer::Hang);
    // Another version than the cached one: the first to ask waits its second, all others not at all.
    assert_eq!(world.ask(app, Some(2)).await, (Some(1), LOOK_MAX));
    for _ in 0..1_000 {
        assert_eq!(world.ask(app, Some(2)).await, (Some(1), Duration::ZERO));
        tokio::time::advance(Duration::from_millis(20)).await;
    }
    assert!(
        (4..8).contains(&world.looks()),
        "a look at a time, for twenty seconds: {}",
        world.looks()
    );
    world.will(Answer::Version);
    world.version.store(2, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(7)).await;
    world.ask(app, Some(2)).await;
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(
        world.ask(app, Some(2)).await,
        (Some(2), Duration::ZERO),
        "it is back"
    );
}

#[tokio::test(start_paused = true)]
async fn applications_without_a_snapshot_wait_a_second_together_and_then_not_at_all() {
    let world = World::new();
    world.will(Answer::Hang);
    let apps: Vec<AppId> = (0..50).map(|_| app()).collect();
    let began = Instant::now();
    let asked = apps.iter().chain(&apps).map(|app| world.ask(*app, None));
    let answers = futures_util::future::join_all(asked).await;
    assert!(answers.iter().all(|(found, _)| found.is_none()));
    assert_eq!(began.elapsed(), LOOK_MAX);
    assert_eq!(world.looks(), 50, "one look for each application");
    assert_eq!(
        world.ask(apps[0], None).await,
        (None, Duration::ZERO),
        "it is known to fail"
    );

    world.will(Answer::Fail);
    let other = app();
    assert_eq!(world.ask(other, None).await, (None, Duration::ZERO));
    for _ in 0..100 {
        assert_eq!(world.ask(other, None).await, (None, Duration::ZERO));
    }
    assert_eq!(world.looks(), 51, "a failure stands for a second");
    world.will(Answer::Version);
    tokio::time::sleep(TRUST_WITHOUT_STORE).await;
    assert_eq!(world.ask(other, None).await, (Some(1), Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn a_change_is_seen_at_once_while_the_store_answers() {
    let (world, app) = (World::new(), app());
    world.ask(app, Some(0)).await;
    world.version.store(2, Ordering::Relaxed);
    assert_eq!(
        world.ask(app, Some(1)).await,
        (Some(1), Duration::ZERO),
        "current"
    );
    assert_eq!(world.ask(app, Some(2)).await, (Some(2), Duration::ZERO));
    world.version.store(3, Ordering::Relaxed);
    world.cache.invalidate(app);
    assert_eq!(world.ask(app, None).await, (Some(3), Duration::ZERO));
    assert_eq!(world.looks(), 3);
}
