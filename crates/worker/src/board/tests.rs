use postrider_model::UnixMillis;
use rand::{RngExt, SeedableRng};

use super::pace::Pace;
use super::*;

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
fn a_hung_endpoint_is_refused_what_it_cannot_take_within_the_bound() {
    let mut world = World::new();
    let mut board = Board::new(SETTINGS);
    let (app, endpoint) = (world.app(), world.endpoint());
    for n in 0..4 {
        board.push(app, endpoint, 1, n, world.now).unwrap();
        board.start(world.now).unwrap();
    }
    board.push(app, endpoint, 1, 4, world.now).unwrap();
    let later = world.now + Duration::from_millis(1500);
    assert!(board.push(app, endpoint, 1, 5, later).is_err());
    assert_eq!(board.take_stuck(later), [(4, Duration::from_millis(1500))]);
    assert_eq!(board.queued(), 0);
}

#[test]
fn an_endpoint_that_takes_nothing_is_stalled_and_one_with_room_is_not() {
    let mut world = World::new();
    let mut board = Board::new(SETTINGS);
    let (app, full, roomy) = (world.app(), world.endpoint(), world.endpoint());
    for n in 0..7 {
        let (endpoint, host) = if n < 4 { (full, 1) } else { (roomy, 2) };
        board.push(app, endpoint, host, n, world.now).unwrap();
    }
    let slots: Vec<Slot> =
        std::iter::from_fn(|| board.start(world.now).map(|started| started.slot)).collect();
    assert_eq!(slots.len(), 7);
    let (soon, late) = (Duration::from_millis(900), Duration::from_secs(3));
    assert_eq!(board.stalled(full, world.now + soon), None);
    assert_eq!(board.stalled(full, world.now + late), Some(late));
    assert_eq!(board.stalled(roomy, world.now + late), None, "its fourth is free");
    let ended = slots.iter().find(|slot| slot.endpoint == full).unwrap();
    board.done(ended, Verdict::Fine, world.now + late);
    assert_eq!(
        board.stalled(full, world.now + late + late),
        None,
        "it has room again"
    );
}

#[test]
fn slow_endpoints_share_a_quarter_of_a_host_and_leave_the_rest() {
    let mut world = World::new();
    let mut board = Board::new(SETTINGS);
    let app = world.app();
    let mut slow_started = 0;
    for _ in 0..8 {
        let endpoint = world.endpoint();
        board.push(app, endpoint, 1, 0, world.now).unwrap();
        let mut first = board.start(world.now).unwrap().slot;
        board.mark_slow(&mut first);
        board.done(&first, Verdict::Neutral, world.now + Duration::from_secs(2));
        board.push(app, endpoint, 1, 1, world.now).unwrap();
        slow_started += usize::from(board.start(world.now).is_some());
    }
    assert_eq!(slow_started, 4, "a quarter of 16");
    let healthy = world.endpoint();
    board.push(app, healthy, 1, 2, world.now).unwrap();
    assert_eq!(board.start(world.now).map(|started| started.unit), Some(2));
}

#[test]
fn unknown_endpoints_that_hang_leave_half_of_the_slots_and_of_their_host() {
    let mut world = World::new();
    let mut board = Board::new(SETTINGS);
    let app = world.app();
    let known = world.endpoint();
    board.push(app, known, 1, 0, world.now).unwrap();
    let first = board.start(world.now).unwrap().slot;
    board.done(&first, Verdict::Fine, world.now);
    for round in 0..4_u64 {
        for n in 0..40 {
            let endpoint = world.endpoint();
            let _ = board.push(app, endpoint, 1 + (n % 8), 1, world.now);
        }
        let mut started: Vec<_> = std::iter::from_fn(|| board.start(world.now)).collect();
        for started in &mut started {
            board.mark_slow(&mut started.slot);
        }
        let expected = [32, 0, 0, 0][usize::try_from(round).unwrap()];
        assert_eq!(
            started.len(),
            expected,
            "half of 64, and nothing more once they hang"
        );
    }
    board.push(app, known, 1, 7, world.now).unwrap();
    assert_eq!(board.start(world.now).map(|started| started.unit), Some(7));
}

#[test]
fn what_waited_for_its_turn_for_too_long_is_given_back_however_fast_its_endpoint() {
    let mut world = World::new();
    let mut board = Board::new(BoardSettings { slots: 1, ..SETTINGS });
    let (app, endpoint) = (world.app(), world.endpoint());
    for n in 0..100 {
        board.push(app, endpoint, 1, n, world.now).unwrap();
    }
    let first = board.start(world.now).unwrap().slot;
    world.now += Duration::from_millis(1500);
    board.done(&first, Verdict::Fine, world.now);
    assert!(board.push(app, endpoint, 1, 100, world.now).is_err());
    assert_eq!(board.take_stuck(world.now).len(), 99);
    board.push(app, endpoint, 1, 101, world.now).unwrap();
}

#[test]
fn what_waits_for_slots_comes_back_one_after_the_other_as_fast_as_units_start() {
    let mut world = World::new();
    let mut board = Board::new(BoardSettings { slots: 4, ..SETTINGS });
    let (app, endpoint) = (world.app(), world.endpoint());
    assert_eq!(board.take_stuck(world.now), []);
    board.push(app, endpoint, 1, 0, world.now).unwrap();
    let known = board.start(world.now).unwrap();
    board.done(&known.slot, Verdict::Fine, world.now);
    for n in 1..=14 {
        board.push(app, endpoint, 1, n, world.now).unwrap();
    }
    for _ in 0..4 {
        board.start(world.now).unwrap();
    }
    // Five have started in two seconds. What is left would take their endpoint four, and the slots, one after the other:
    let apart = Duration::from_millis(400);
    let stuck = board.take_stuck(world.now + 5 * apart);
    assert_eq!(stuck.len(), 10);
    for (turn, (_, wait)) in (0..).zip(stuck) {
        assert_eq!(wait, (SETTINGS.queue_max_wait + apart * turn).max(10 * apart));
    }
}

/// Starts what may start of a unit each for many new endpoints on `hosts` hosts; how long the rest is told to wait after two
/// seconds, and again after two more without a start.
fn waits_of_new_endpoints(slots: usize, hosts: u64) -> [Vec<Duration>; 2] {
    let mut world = World::new();
    let mut board = Board::new(BoardSettings { slots, ..SETTINGS });
    let app = world.app();
    board.take_stuck(world.now);
    [0, 1].map(|_| {
        for n in 0..20 {
            let endpoint = world.endpoint();
            board.push(app, endpoint, n % hosts, n, world.now).unwrap();
        }
        while board.start(world.now).is_some() {}
        world.now += Duration::from_secs(2);
        let stuck = board.take_stuck(world.now);
        // Nobody needs a turn now.
        board.take_stuck(world.now);
        stuck.into_iter().map(|(_, wait)| wait).collect()
    })
}

#[test]
fn what_waits_for_the_part_of_the_unknown_comes_back_in_turn_and_turns_begin_anew() {
    // Two of four slots, so the others come back a second apart, but not before they have waited as long again.
    let in_turn = |count: u64| -> Vec<Duration> {
        let seconds = (1..=count).map(|turn| turn.max(2));
        seconds.map(Duration::from_secs).collect()
    };
    assert_eq!(waits_of_new_endpoints(4, 20), [in_turn(18), in_turn(20)]);
}

#[test]
fn what_waits_for_its_host_takes_no_turns() {
    let [first, _] = waits_of_new_endpoints(SETTINGS.slots, 1);
    assert_eq!(first, [Duration::from_secs(2); 12], "half of the host's 16 slots");
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
