//! The parts of the slots, and of a host, that endpoints not known to be fast share.

use super::*;

const FAST: Duration = Duration::from_millis(1);
const SLOW: Duration = Duration::from_secs(2);

/// A new endpoint whose first attempt took so long.
fn known(world: &mut World, board: &mut Board<u64>, app: AppId, host: u64, took: Duration) -> EndpointId {
    let endpoint = world.endpoint();
    board.push(app, endpoint, host, 0, world.now).unwrap();
    let first = board.start(world.now).unwrap().slot;
    board.done(&first, Verdict::Fine, world.now + took);
    endpoint
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
fn slow_endpoints_that_wait_for_slots_do_not_stand_before_new_ones() {
    let mut world = World::new();
    let mut board = Board::new(SETTINGS);
    let app = world.app();
    let slow: Vec<_> = (0..40)
        .map(|host| known(&mut world, &mut board, app, host, SLOW))
        .collect();
    for (host, endpoint) in (0..).zip(slow) {
        board.push(app, endpoint, host, 1, world.now).unwrap();
    }
    assert_eq!(
        std::iter::from_fn(|| board.start(world.now)).count(),
        16,
        "a quarter"
    );
    for host in 100..117 {
        let new = world.endpoint();
        board.push(app, new, host, host, world.now).unwrap();
    }
    let new: Vec<_> = std::iter::from_fn(|| board.start(world.now)).collect();
    assert_eq!(new.len(), 16, "together half");
    board.done(&new[0].slot, Verdict::Fine, world.now);
    assert_eq!(board.start(world.now).map(|started| started.unit), Some(116));
}

#[test]
fn endpoints_that_were_new_when_they_began_to_wait_and_hang_do_not_stand_before_new_ones() {
    let mut world = World::new();
    let mut board = Board::new(SETTINGS);
    let app = world.app();
    let hung: Vec<_> = (0..32).map(|_| world.endpoint()).collect();
    let mut started = Vec::new();
    for _ in 0..2 {
        for (host, endpoint) in (0..).zip(&hung) {
            board.push(app, *endpoint, host, host, world.now).unwrap();
        }
        started.extend(std::iter::from_fn(|| board.start(world.now)));
    }
    assert_eq!(started.len(), 32, "half");
    let new = world.endpoint();
    board.push(app, new, 100, 100, world.now).unwrap();
    assert!(board.start(world.now).is_none());
    for started in &mut started {
        board.mark_slow(&mut started.slot);
    }
    board.done(&started[0].slot, Verdict::Overload, world.now + SLOW);
    assert_eq!(board.start(world.now).map(|started| started.unit), Some(100));
}

#[test]
fn fast_endpoints_that_fill_their_host_do_not_stand_before_new_ones() {
    let mut world = World::new();
    let mut board = Board::new(SETTINGS);
    let app = world.app();
    let fast: Vec<_> = (0..3)
        .map(|_| known(&mut world, &mut board, app, 1, FAST))
        .collect();
    let mut started = VecDeque::new();
    for round in 0..20 {
        for endpoint in &fast {
            board.push(app, *endpoint, 1, round, world.now).unwrap();
        }
        started.extend(std::iter::from_fn(|| board.start(world.now)));
        if started.len() < SETTINGS.host_slots {
            let ended = started.pop_front().unwrap();
            board.done(&ended.slot, Verdict::Fine, world.now);
        }
    }
    started.extend(std::iter::from_fn(|| board.start(world.now)));
    assert_eq!(
        started.len(),
        SETTINGS.host_slots,
        "the host is full, and more waits"
    );
    let new = world.endpoint();
    board.push(app, new, 1, 100, world.now).unwrap();
    assert!(board.start(world.now).is_none());
    let ends = (1..=20).find(|_| {
        let ended = started.pop_front().unwrap();
        board.done(&ended.slot, Verdict::Fine, world.now);
        let next = board.start(world.now).unwrap();
        let is_new = next.unit == 100;
        started.push_back(next);
        is_new
    });
    assert!(ends.is_some_and(|ends| ends <= 3), "{ends:?}");
}

#[test]
fn slow_endpoints_that_wait_for_their_host_do_not_stand_before_fast_ones() {
    let mut world = World::new();
    let mut board = Board::new(SETTINGS);
    let app = world.app();
    let [slow, fast] = [(14, SLOW), (13, FAST)].map(|(count, took)| {
        let endpoints = (0..count).map(|_| known(&mut world, &mut board, app, 1, took));
        endpoints.collect::<Vec<_>>()
    });
    for endpoint in slow {
        board.push(app, endpoint, 1, 1, world.now).unwrap();
    }
    assert_eq!(
        std::iter::from_fn(|| board.start(world.now)).count(),
        4,
        "a quarter of 16"
    );
    for (unit, endpoint) in (100..).zip(fast) {
        board.push(app, endpoint, 1, unit, world.now).unwrap();
    }
    let started: Vec<_> = std::iter::from_fn(|| board.start(world.now)).collect();
    assert_eq!(started.len(), 12, "the host is full");
    board.done(&started[0].slot, Verdict::Fine, world.now);
    assert_eq!(board.start(world.now).map(|started| started.unit), Some(112));
}
