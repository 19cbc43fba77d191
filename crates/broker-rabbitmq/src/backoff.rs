//! Delays with full jitter: a random part of a bound that doubles, so that a fleet does not come back in step.

use std::time::Duration;

pub(crate) struct Backoff {
    min: Duration,
    max: Duration,
    bound: Duration,
}

impl Backoff {
    pub(crate) fn new(min: Duration, max: Duration) -> Self {
        Self {
            min,
            max: max.max(min),
            bound: min,
        }
    }

    pub(crate) fn reset(&mut self) {
        self.bound = self.min;
    }

    /// The next delay for `roll`, uniform in `0.0..1.0`.
    pub(crate) fn next(&mut self, roll: f64) -> Duration {
        let delay = self.bound.mul_f64(roll.clamp(0.0, 1.0));
        self.bound = self.bound.saturating_mul(2).min(self.max);
        delay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_doubles_up_to_the_maximum_and_starts_again() {
        let ms = Duration::from_millis;
        let mut backoff = Backoff::new(ms(100), ms(350));
        let bounds = [(); 4].map(|()| backoff.next(1.0));
        assert_eq!(bounds, [ms(100), ms(200), ms(350), ms(350)]);
        assert_eq!(backoff.next(0.0), ms(0));
        backoff.reset();
        assert_eq!(backoff.next(0.5), ms(50));
    }
}
