//! Waits until the machine wakes from a sleep, or this process goes on after it was stopped.

use std::io;
use std::time::Duration;

use mesh_io::stall::StallTimer;
use tokio::io::unix::AsyncFd;

/// How often it is looked. Only a sleep that outlasts the rest of a period is noticed, and that at once.
const PERIOD: Duration = Duration::from_secs(5);
/// By how much a look must be late; a busy machine is late by less. Peers are given up after about as long.
const SLEPT_MIN: Duration = Duration::from_secs(5);

/// Tells of each sleep.
#[derive(Debug)]
pub struct Stalls {
    timer: AsyncFd<StallTimer>,
}

impl Stalls {
    /// Begins to watch. Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// When the process has no descriptor left, or the kernel has no clock that goes on in sleep.
    pub fn watch() -> io::Result<Self> {
        #[expect(
            deprecated,
            reason = "what replaces it is unsafe, for types that change their descriptor; this one never does"
        )]
        let timer = AsyncFd::new(StallTimer::start(PERIOD)?)?;
        Ok(Self { timer })
    }

    /// Waits for the end of a sleep; how long it was, less what was left of a period. Nothing is lost when this is dropped
    /// before it ends.
    ///
    /// # Errors
    /// When the timer breaks: nothing more will be told.
    pub async fn next(&mut self) -> io::Result<Duration> {
        loop {
            let mut guard = self.timer.readable_mut().await?;
            let late = guard.get_inner_mut().take()?;
            guard.clear_ready();
            if let Some(late) = late.filter(|late| *late >= SLEPT_MIN) {
                return Ok(late);
            }
        }
    }
}
