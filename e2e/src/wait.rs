//! Waiting for a condition with a deadline.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

const PAUSE: Duration = Duration::from_millis(20);

/// Tries until it succeeds or the time is over; then the last error is the reason.
///
/// # Errors
/// The last error of `attempt`, with what was awaited and for how long.
pub fn wait_until<T>(
    what: &str,
    limit: Duration,
    mut attempt: impl FnMut() -> Result<T>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        let last = match attempt() {
            Ok(value) => return Ok(value),
            Err(err) => err,
        };
        if start.elapsed() >= limit {
            return Err(last).with_context(|| format!("{what}: not within {limit:?}"));
        }
        std::thread::sleep(PAUSE);
    }
}

/// As [`wait_until`], and says how long it took.
///
/// # Errors
/// As [`wait_until`].
pub fn time_until<T>(
    what: &str,
    limit: Duration,
    attempt: impl FnMut() -> Result<T>,
) -> Result<(T, Duration)> {
    let start = Instant::now();
    wait_until(what, limit, attempt).map(|value| (value, start.elapsed()))
}

/// Checks a condition again and again for a while; it must hold each time.
///
/// # Errors
/// The first failure, with how far into the time it came.
pub fn holds_for(what: &str, time: Duration, mut check: impl FnMut() -> Result<()>) -> Result<()> {
    let start = Instant::now();
    while start.elapsed() < time {
        check().with_context(|| format!("{what}: failed after {:?}", start.elapsed()))?;
        std::thread::sleep(PAUSE);
    }
    Ok(())
}
