//! How many bytes a client may send: a token bucket. Pure.

use std::time::{Duration, Instant};

/// So much may come at once after a pause, as a share of a second.
const BURST: u64 = 4;

/// The bucket of one client. It may go below zero by one read; the client then waits until it is filled again.
#[derive(Debug)]
pub(crate) struct Bucket {
    bytes_per_second: u64,
    /// Millionths of a byte, so that small limits fill smoothly.
    level: i128,
    filled_at: Instant,
}

impl Bucket {
    /// A full bucket; 0 bytes a second for one that never empties.
    pub(crate) fn new(bytes_per_second: u64, now: Instant) -> Self {
        Self {
            bytes_per_second,
            level: capacity(bytes_per_second),
            filled_at: now,
        }
    }

    /// Takes bytes that have come; tells how long nothing more may come.
    pub(crate) fn take(&mut self, n_bytes: usize, now: Instant) -> Option<Duration> {
        if self.bytes_per_second == 0 {
            return None;
        }
        self.fill(now);
        self.level -= n_bytes as i128 * 1_000_000;
        let missing = u128::try_from(-self.level).unwrap_or(0);
        let wait = missing.div_ceil(u128::from(self.bytes_per_second));
        (wait > 0).then(|| Duration::from_micros(u64::try_from(wait).unwrap_or(u64::MAX)))
    }

    /// Takes bytes if any may come now, where nobody can be asked to wait.
    pub(crate) fn admit(&mut self, n_bytes: usize, now: Instant) -> bool {
        if self.bytes_per_second == 0 {
            return true;
        }
        self.fill(now);
        if self.level <= 0 {
            return false;
        }
        self.level -= n_bytes as i128 * 1_000_000;
        true
    }

    fn fill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.filled_at);
        self.filled_at = now;
        let gained = elapsed.as_micros().min(60_000_000) * u128::from(self.bytes_per_second);
        self.level = (self.level + gained.cast_signed()).min(capacity(self.bytes_per_second));
    }
}

fn capacity(bytes_per_second: u64) -> i128 {
    i128::from(bytes_per_second / BURST) * 1_000_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_limit_never_pauses() {
        let now = Instant::now();
        let mut bucket = Bucket::new(0, now);
        assert_eq!(bucket.take(usize::MAX, now), None);
    }

    #[test]
    fn what_exceeds_the_limit_waits_and_the_rate_holds() {
        let start = Instant::now();
        let mut bucket = Bucket::new(1_000_000, start);
        assert_eq!(bucket.take(250_000, start), None);
        let mut now = start;
        let mut n_bytes = 250_000;
        while now < start + Duration::from_secs(10) {
            if let Some(pause) = bucket.take(50_000, now) {
                now += pause;
            }
            n_bytes += 50_000;
        }
        assert!((9_900_000..10_400_000).contains(&n_bytes), "{n_bytes}");
    }
}
