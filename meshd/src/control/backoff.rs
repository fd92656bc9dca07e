//! How long to wait before the next try: doubling with jitter, so that a thousand nodes do not come back at once.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(20);

/// The waiting times of one row of tries.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    n_failures: u32,
}

impl Backoff {
    /// The next waiting time. `random` is any 32 random bits.
    pub(crate) fn next(&mut self, random: u32) -> Duration {
        let whole = FIRST
            .saturating_mul(1 << self.n_failures.min(10))
            .min(LONGEST);
        self.n_failures = self.n_failures.saturating_add(1);
        let share = f64::from(random) / f64::from(u32::MAX);
        whole.mul_f64(0.5 + share / 2.0)
    }

    /// A try worked.
    pub(crate) fn reset(&mut self) {
        self.n_failures = 0;
    }
}

/// 32 random bits; the middle when the system has none, which only costs the jitter.
pub(crate) fn random() -> u32 {
    getrandom::u32().unwrap_or(u32::MAX / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_a_limit_and_starts_over() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.next(u32::MAX), FIRST);
        assert_eq!(backoff.next(u32::MAX), FIRST * 2);
        assert_eq!(backoff.next(0), FIRST * 2);
        for _ in 0..50 {
            backoff.next(0);
        }
        assert_eq!(backoff.next(u32::MAX), LONGEST);
        backoff.reset();
        assert_eq!(backoff.next(u32::MAX), FIRST);
    }
}
