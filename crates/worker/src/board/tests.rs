use postrider_model::UnixMillis;
use rand::{RngExt, SeedableRng};

use super::pace::Pace;
use super::*;

mod shares;
mod stuck;

const SETTINGS: BoardSettings = BoardSettings {
    slots: 64,
    host_slots: 16,
    endpoint_slots: 8,
    slow_after: Duration::from_secs(1),
    queue_max_wait: Duration::from_secs(1),
    queued_max: 10_000,
};

struct World {
    rng: rand::rngs::StdRng,
    now: Instant,
}

impl World {
    fn new() -> Self {
        Self {
            rng: rand::rngs::StdRng::seed_from_u64(5),
            now: Instant::now(),
        }
    }
    fn app(&mut self) -> AppId {
        AppId::generate(UnixMillis(1), &mut self.rng)
    }
    fn endpoint(&mut self) -> EndpointId {
        EndpointId::generate(UnixMillis(1), &mut self.rng)
    }
}

#[test]
fn applications_take_turns_however_much_one_of_them_queues() {
    let mut world = World::new();
    let mut board = Board::new(BoardSettings { slots: 1, ..SETTINGS });
    let (flood, quiet) = (world.app(), world.app());
    let (flooded, calm) = (world.endpoint(), world.endpoint());
    for n in 0..100 {
        board.push(flood, flooded, 1, n, world.now).unwrap();
    }
    for n in 1000..1003 {
        board.push(quiet, calm, 2, n, world.now).unwrap();
    }
    let mut order = vec![];
    for _ in 0..6 {
        let started = board.start(world.now).unwrap();
        order.push(started.unit);
        board.done(&started.slot, Verdict::Neutral, world.now);
    }
    assert_eq!(order, [0, 1000, 1, 1001, 2, 1002]);
}

#[test]
fn an_endpoint_has_no_more_in_flight_than_its_pace() {
    let mut world = World::new();
    let mut board = Board::new(SETTINGS);
    let (app, endpoint) = (world.app(), world.endpoint());
    for n in 0..20 {
        board.push(app, endpoint, 1, n, world.now).unwrap();
    }
    let mut slots = vec![];
    while let Some(started) = board.start(world.now) {
        slots.push(started.slot);
    }
    assert_eq!(slots.len(), 4);
    board.done(&slots[0], Verdict::Fine, world.now);
    let again: Vec<_> = std::iter::from_fn(|| board.start(world.now)).collect();
    assert_eq!(again.len(), 2, "the freed slot and one gained by the success");
}

#[test]
fn overload_halves_once_a_window_and_never_below_one() {
    let mut pace = Pace::new(256);
    let start = Instant::now();
    for n in 1..=40 {
        pace.learn(
            Verdict::Overload,
            Duration::from_millis(10),
            start + Duration::from_secs(n),
        );
    }
    assert_eq!(pace.limit(), 1);
    let mut pace = Pace::new(256);
    pace.learn(Verdict::Overload, Duration::from_millis(10), start);
    pace.learn(Verdict::Overload, Duration::from_millis(10), start);
    assert_eq!(pace.limit(), 2);
}

#[test]
fn fast_is_remembered_longer_than_how_much_and_than_slow() {
    let (mut world, bound) = (World::new(), Duration::from_secs(1));
    for (took, known, after_minutes) in [
        (1, Speed::Fast, Speed::Fast),
        (5_000, Speed::Slow, Speed::Unknown),
    ] {
        let mut pace = Pace::new(256);
        for _ in 0..20 {
            pace.learn(Verdict::Fine, Duration::from_millis(took), world.now);
        }
        pace.begin_again(bound, world.now + Duration::from_secs(59));
        assert_eq!((pace.limit(), pace.speed(bound)), (24, known));
        world.now += Duration::from_secs(10 * 60);
        pace.begin_again(bound, world.now);
        assert_eq!((pace.limit(), pace.speed(bound)), (4, after_minutes));
        pace.begin_again(bound, world.now + Duration::from_secs(6 * 60));
        assert_eq!(pace.speed(bound), Speed::Unknown);
    }
}

#[test]
fn what_is_not_tried_or_fails_through_our_fault_tells_nothing() {
    let (world, bound) = (World::new(), Duration::from_secs(1));
    let mut pace = Pace::new(256);
    pace.learn(Verdict::Untried, Duration::ZERO, world.now);
    assert_eq!(pace.speed(bound), Speed::Unknown, "no attempt has ended");
    pace.learn(Verdict::Fine, Duration::from_millis(10), world.now);
    for _ in 0..20 {
        pace.learn(Verdict::Untried, Duration::from_secs(3), world.now);
    }
    assert_eq!(
        (pace.speed(bound), pace.latency()),
        (Speed::Fast, Duration::from_millis(10))
    );
}

#[test]
fn endpoints_that_are_not_tried_are_forgotten() {
    let mut world = World::new();
    let mut board = Board::new(SETTINGS);
    let (app, fast, waiting) = (world.app(), world.endpoint(), world.endpoint());
    board.push(app, fast, 1, 0, world.now).unwrap();
    let started = board.start(world.now).unwrap();
    board.done(&started.slot, Verdict::Fine, world.now);
    for (minutes, left) in [(10, 1), (10, 0)] {
        world.now += Duration::from_secs(60 * minutes);
        board.take_stuck(world.now);
        assert_eq!(board.lanes.len(), left);
    }
    board.push(app, waiting, 1, 1, world.now).unwrap();
    board.take_stuck(world.now);
    assert_eq!(board.lanes.len(), 1, "it has something to do");
}

#[test]
fn nothing_is_lost_or_started_twice_under_random_use() {
    let mut world = World::new();
    let mut board = Board::new(SETTINGS);
    let apps: Vec<AppId> = (0..5).map(|_| world.app()).collect();
    let endpoints: Vec<(AppId, EndpointId)> = (0..40).map(|n| (apps[n % 5], world.endpoint())).collect();
    let mut flying: Vec<Started<u32>> = vec![];
    let (mut pushed, mut seen) = (0_u32, std::collections::HashSet::new());
    for _ in 0..20_000 {
        world.now += Duration::from_millis(world.rng.random_range(0..40));
        match world.rng.random_range(0..3) {
            0 => {
                let (app, endpoint) = endpoints[world.rng.random_range(0..40)];
                let refused = board
                    .push(app, endpoint, u64::from(pushed % 3), pushed, world.now)
                    .err();
                if let Some((unit, _)) = refused {
                    assert!(seen.insert(unit));
                }
                pushed += 1;
            }
            1 => flying.extend(board.start(world.now)),
            _ if !flying.is_empty() => {
                let index = world.rng.random_range(0..flying.len());
                let mut started = flying.swap_remove(index);
                if world.rng.random_bool(0.2) {
                    board.mark_slow(&mut started.slot);
                }
                let verdict = if world.rng.random_bool(0.3) {
                    Verdict::Overload
                } else {
                    Verdict::Fine
                };
                board.done(&started.slot, verdict, world.now);
                assert!(seen.insert(started.unit));
            }
            _ => {}
        }
        assert!(board.in_flight() <= SETTINGS.slots);
        if world.rng.random_bool(0.01) {
            for (unit, _) in board.take_stuck(world.now) {
                assert!(seen.insert(unit));
            }
        }
    }
    loop {
        while let Some(started) = board.start(world.now) {
            flying.push(started);
        }
        let Some(started) = flying.pop() else { break };
        board.done(&started.slot, Verdict::Fine, world.now);
        assert!(seen.insert(started.unit));
    }
    assert_eq!(board.queued(), 0, "nothing is stuck once all is idle");
    assert_eq!(seen.len(), pushed as usize);
    assert_eq!(
        (board.in_flight(), board.held.slow, board.held.unknown),
        (0, 0, 0)
    );
}

#[test]
fn a_long_run_of_quick_attempts_is_not_slow() {
    let mut world = World::new();
    let mut board = Board::new(SETTINGS);
    let (app, endpoint) = (world.app(), world.endpoint());
    board.push(app, endpoint, 1, 0, world.now).unwrap();
    let mut slot = board.start(world.now).unwrap().slot;
    for _ in 0..100 {
        slot.begin(world.now);
        world.now += Duration::from_millis(50);
    }
    board.done(&slot, Verdict::Fine, world.now);
    assert_eq!(board.lanes[&endpoint].pace.latency(), Duration::from_millis(50));
}

#[test]
fn a_place_that_is_kept_counts_until_it_is_used_or_released() {
    let mut world = World::new();
    let mut board = Board::new(BoardSettings {
        queued_max: 3,
        ..SETTINGS
    });
    let (app, endpoint, other) = (world.app(), world.endpoint(), world.endpoint());
    for _ in 0..2 {
        board.reserve(endpoint, world.now).unwrap();
    }
    board.push(app, other, 1, 1, world.now).unwrap();
    assert!(board.reserve(other, world.now).is_err(), "the board is full");
    assert!(board.push(app, other, 1, 2, world.now).is_err());
    board.release(endpoint);
    board.push(app, other, 1, 3, world.now).unwrap();
    // The place is there however full the board is.
    board.push_kept(app, endpoint, 1, 4, world.now);
    assert_eq!(board.queued(), 3);
    board.release(endpoint);
    assert_eq!(board.queued(), 3, "none is kept any more");
    assert_eq!(board.take_all().len(), 3);
    assert_eq!(board.queued(), 0);
}

#[test]
fn places_kept_for_an_endpoint_make_the_next_one_wait() {
    let mut world = World::new();
    let mut board = Board::new(SETTINGS);
    let (app, endpoint) = (world.app(), world.endpoint());
    // Half a second an attempt, four at once.
    board.push(app, endpoint, 1, 0, world.now).unwrap();
    let started = board.start(world.now).unwrap();
    world.now += Duration::from_millis(500);
    board.done(&started.slot, Verdict::Neutral, world.now);
    let kept = (0..100)
        .take_while(|_| board.reserve(endpoint, world.now).is_ok())
        .count();
    assert_eq!(kept, 12, "a second's worth, and what starts at once");
}
