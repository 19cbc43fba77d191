//! The pace of a limited endpoint's backlog.
//!
//! Tokens are taken a fifth of a second ahead, and the deliveries go out one an interval, without the burst that the
//! rate allows: a round that is late, or a process that is busy, then neither loses tokens nor makes up for them in a
//! heap, and what queues and networks push together stays within the rate. The times follow from the shared state
//! alone, so they hold with several schedulers too.

use std::time::Duration;

use postrider_limits::Rate;

/// Looks ahead by so many parts of a second.
const PARTS: u32 = 5;

/// The rate to ask for: with room for what is taken ahead, but for `ordered` endpoints, whose runs go out whole.
pub(crate) fn rate(per_second: u32, ordered: bool) -> Rate {
    let rate = Rate::smooth(per_second);
    if ordered {
        return rate;
    }
    Rate {
        burst: rate.burst + tokens_ahead(rate),
        ..rate
    }
}

/// When each of `count` deliveries that were granted goes out, counted from the grant; `next` is when one more token
/// would be granted.
pub(crate) fn offsets(per_second: u32, count: u32, next: Duration) -> impl Iterator<Item = Duration> {
    let rate = Rate::smooth(per_second);
    let interval = interval(rate);
    let last = next + interval * (tokens_ahead(rate) + rate.burst - 1);
    (0..count).map(move |index| last.saturating_sub(interval * (count - index)))
}

/// How long an endpoint may rest before tokens are lost, with as much in reserve.
pub(crate) fn rest(per_second: u32) -> Duration {
    let rate = Rate::smooth(per_second);
    interval(rate) * tokens_ahead(rate) / 2
}

fn tokens_ahead(rate: Rate) -> u32 {
    rate.per_second / PARTS
}

fn interval(rate: Rate) -> Duration {
    Duration::from_secs(1) / rate.per_second
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(times: impl Iterator<Item = Duration>) -> Vec<u128> {
        times.map(|time| time.as_millis()).collect()
    }

    #[test]
    fn a_full_bucket_goes_out_one_an_interval() {
        // 50 a second: a burst of 5 and 10 ahead. All 15 were taken, so one more comes in 20 ms.
        assert_eq!(rate(50, false).burst, 15);
        let times = ms(offsets(50, 15, Duration::from_millis(20)));
        assert_eq!(times, (0..15).map(|n| n * 20).collect::<Vec<u128>>());
    }

    #[test]
    fn what_is_taken_later_follows_without_a_gap() {
        // 100 ms after the bucket was emptied 5 more are taken, for the times after those that were planned.
        let times = ms(offsets(50, 5, Duration::from_millis(20)));
        assert_eq!(times, [200, 220, 240, 260, 280]);
    }

    #[test]
    fn low_rates_take_nothing_ahead() {
        assert_eq!(rate(2, false).burst, 1);
        assert_eq!(ms(offsets(2, 1, Duration::from_millis(500))), [0]);
        assert_eq!(rest(2), Duration::ZERO);
    }
}
