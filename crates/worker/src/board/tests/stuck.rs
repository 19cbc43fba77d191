//! What cannot start in time goes back to the store: when, and how long it is told to wait.

use super::*;

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
fn one_that_answers_slowly_is_given_its_time_and_one_that_times_out_is_not() {
    let took = Duration::from_secs(15);
    for (verdict, stalled) in [
        (Verdict::Fine, None),
        (Verdict::Overload, Some(Duration::from_secs(2))),
        (Verdict::Neutral, Some(Duration::from_secs(2))),
    ] {
        let mut world = World::new();
        let mut board = Board::new(BoardSettings {
            slots: 100,
            host_slots: 100,
            ..SETTINGS
        });
        let (app, endpoint) = (world.app(), world.endpoint());
        board.push(app, endpoint, 1, 0, world.now).unwrap();
        let slot = board.start(world.now).unwrap().slot;
        world.now += took;
        board.done(&slot, verdict, world.now);
        let mut n = 1;
        while board.push(app, endpoint, 1, n, world.now).is_ok() {
            assert!(board.start(world.now).is_some());
            n += 1;
        }
        let later = world.now + Duration::from_secs(2);
        assert_eq!(board.stalled(endpoint, later), stalled, "{verdict:?}");
        assert_eq!(
            board.stalled(endpoint, later + took * 2),
            Some(later + took * 2 - world.now)
        );
    }
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
    // Nothing to do for a while, which does not count.
    for _ in 0..100 {
        world.now += Duration::from_secs(1);
        assert_eq!(board.take_stuck(world.now), []);
    }
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
