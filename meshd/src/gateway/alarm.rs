//! Deadlines of the many short waits of a connection, by one timer: to set one anew for each costs more than the wait.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

/// How often it is looked at least whether the deadline is over.
const LOOK_EVERY: Duration = Duration::from_secs(8);

/// A timer that stays set from one wait to the next.
#[derive(Default)]
pub(super) struct Alarm(Option<Pin<Box<Sleep>>>);

impl fmt::Debug for Alarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Alarm").finish_non_exhaustive()
    }
}

impl Alarm {
    /// Ready when the deadline is over.
    pub(super) fn poll(&mut self, task: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        let look = || deadline.min(Instant::now() + LOOK_EVERY);
        let sleep = self
            .0
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(look())));
        if sleep.deadline() > deadline {
            sleep.as_mut().reset(deadline);
        }
        loop {
            ready!(sleep.as_mut().poll(task));
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(look());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How long a wait until then takes.
    async fn wait(alarm: &mut Alarm, patience: Duration) -> Duration {
        let began = Instant::now();
        std::future::poll_fn(|task| alarm.poll(task, began + patience)).await;
        began.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn each_wait_ends_at_its_own_deadline() {
        let mut alarm = Alarm::default();
        // A timer that is set far ahead, one that is over, one that is due too late and one that is due too soon.
        for millis in [60_000, 10, 1, 900_000, 20, 7_999, 8_000, 8_001] {
            let patience = Duration::from_millis(millis);
            // What ends before its deadline leaves the timer set.
            let _ = tokio::time::timeout(patience / 2, wait(&mut alarm, patience)).await;
            let took = wait(&mut alarm, patience).await;
            let late = took.checked_sub(patience).unwrap();
            assert!(
                late <= Duration::from_millis(2),
                "{millis} ms took {took:?}"
            );
        }
    }
}
