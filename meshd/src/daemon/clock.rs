//! The time by which keys expire: this machine's clock, set right by what the coordinator signs. Pure.
//!
//! A machine may start with its clock years off. It joins all the same, and from the first word of its coordinator on it
//! takes the coordinator's time where the two are far apart; no older word moves that time back. Without a word in this run,
//! a clock that is more than a year past the last kept one is taken to be wrong rather than all peers to have expired.

use std::time::Instant;

/// How far the clocks may be apart before this machine's is taken to be wrong.
const SKEW_MAX_MS: u64 = 300_000;
/// No machine is expected to have been without a coordinator for so long.
const ALONE_MAX_MS: u64 = 366 * 24 * 3_600_000;

/// The time of the mesh.
#[derive(Debug, Default)]
pub(super) struct MeshClock {
    heard: Option<Heard>,
    /// When the newest kept word was said: it is later than that.
    floor_ms: u64,
}

/// The coordinator's last word on the time.
#[derive(Debug, Clone, Copy)]
struct Heard {
    at: Instant,
    epoch: u64,
    sent_at_ms: u64,
    /// By how much this machine's clock is ahead; 0 when that is not worth a correction.
    ahead_ms: i64,
}

impl Heard {
    /// The coordinator's time by now, or somewhat less: the way of its word is not counted.
    fn time_ms(&self, now: Instant) -> u64 {
        let elapsed = now.saturating_duration_since(self.at).as_millis();
        self.sent_at_ms
            .saturating_add(u64::try_from(elapsed).unwrap_or(u64::MAX))
    }
}

impl MeshClock {
    /// Takes a word that was kept since an earlier run.
    pub(super) fn on_kept(&mut self, sent_at_ms: u64) {
        self.floor_ms = self.floor_ms.max(sent_at_ms);
    }

    /// Takes a word that just came, of a coordinator's epoch; true when the time made a leap by it.
    pub(super) fn on_heard(
        &mut self,
        now: Instant,
        wall_ms: u64,
        epoch: u64,
        sent_at_ms: u64,
    ) -> bool {
        // Whoever carries the words may repeat old ones. Only a coordinator that was started anew may have gone back.
        let is_old = self.heard.is_some_and(|heard| {
            epoch <= heard.epoch && sent_at_ms.saturating_add(SKEW_MAX_MS) < heard.time_ms(now)
        });
        if is_old {
            return false;
        }
        let before = self.unix_ms(now, wall_ms);
        let ahead_ms = i64::try_from(i128::from(wall_ms) - i128::from(sent_at_ms));
        let ahead_ms = ahead_ms.unwrap_or(i64::MAX);
        self.heard = Some(Heard {
            at: now,
            epoch,
            sent_at_ms,
            ahead_ms: if ahead_ms.unsigned_abs() > SKEW_MAX_MS {
                ahead_ms
            } else {
                0
            },
        });
        self.unix_ms(now, wall_ms).abs_diff(before) > SKEW_MAX_MS
    }

    /// Unix milliseconds.
    pub(super) fn unix_ms(&self, now: Instant, wall_ms: u64) -> u64 {
        let Some(heard) = self.heard else {
            let is_wrong =
                self.floor_ms != 0 && wall_ms > self.floor_ms.saturating_add(ALONE_MAX_MS);
            return if is_wrong {
                self.floor_ms
            } else {
                wall_ms.max(self.floor_ms)
            };
        };
        // The machine's own clock also goes while it sleeps; the other one stays right when somebody sets the first. One
        // that is behind needs no correction then, and gets none that would outlast its being set right.
        let ahead_ms = u64::try_from(heard.ahead_ms).unwrap_or(0);
        wall_ms.saturating_sub(ahead_ms).max(heard.time_ms(now))
    }

    /// By how much this machine's clock is ahead of the coordinator's, when it is much.
    pub(super) fn ahead_ms(&self) -> Option<i64> {
        self.heard
            .map(|heard| heard.ahead_ms)
            .filter(|ahead| *ahead != 0)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const DAY_MS: u64 = 24 * 3_600_000;
    const TRUE_MS: u64 = 1_800_000_000_000;
    /// Two heartbeats.
    const LATER: Duration = Duration::from_secs(30);

    #[test]
    fn a_clock_that_is_days_or_years_off_is_set_right_by_the_first_word() {
        let start = Instant::now();
        for wall_ms in [
            TRUE_MS - 3_650 * DAY_MS,
            TRUE_MS - DAY_MS,
            TRUE_MS + DAY_MS,
            TRUE_MS + 3_650 * DAY_MS,
            0,
        ] {
            let mut clock = MeshClock::default();
            assert_eq!(clock.unix_ms(start, wall_ms), wall_ms);
            assert!(clock.on_heard(start, wall_ms, 1, TRUE_MS), "{wall_ms}");
            assert!(clock.ahead_ms().is_some(), "{wall_ms}");
            let (later, wall_ms) = (start + LATER, wall_ms + 30_000);
            let true_ms = TRUE_MS + 30_000;
            assert_eq!(clock.unix_ms(later, wall_ms), true_ms, "{wall_ms}");
            assert!(!clock.on_heard(later, wall_ms, 1, true_ms), "no leap");
            // Somebody sets the clock.
            assert_eq!(clock.unix_ms(later, true_ms), true_ms, "{wall_ms}");
        }
    }

    #[test]
    fn a_clock_that_is_nearly_right_is_believed_also_after_a_sleep() {
        let start = Instant::now();
        let mut clock = MeshClock::default();
        assert!(!clock.on_heard(start, TRUE_MS + 60_000, 1, TRUE_MS));
        assert_eq!(clock.ahead_ms(), None);
        // A sleep of a day does not show in the monotonic clock.
        let awake = TRUE_MS + DAY_MS;
        assert_eq!(clock.unix_ms(start, awake), awake);
        // A clock that is set back does not make expired keys good again.
        assert_eq!(clock.unix_ms(start + LATER, 0), TRUE_MS + 30_000);
    }

    #[test]
    fn a_repeated_old_word_does_not_turn_the_time_back_and_a_new_start_does() {
        let start = Instant::now();
        let mut clock = MeshClock::default();
        clock.on_heard(start, TRUE_MS, 1, TRUE_MS);
        assert!(!clock.on_heard(start, TRUE_MS, 1, TRUE_MS - DAY_MS));
        assert_eq!(clock.unix_ms(start, TRUE_MS), TRUE_MS);
        assert!(clock.on_heard(start, TRUE_MS, 2, TRUE_MS - DAY_MS));
        assert_eq!(clock.unix_ms(start, TRUE_MS), TRUE_MS - DAY_MS);
    }

    #[test]
    fn without_a_word_it_is_at_least_as_late_as_what_was_kept() {
        let now = Instant::now();
        let mut clock = MeshClock::default();
        clock.on_kept(TRUE_MS);
        clock.on_kept(TRUE_MS - DAY_MS);
        assert_eq!(clock.unix_ms(now, 0), TRUE_MS);
        assert_eq!(clock.unix_ms(now, TRUE_MS + DAY_MS), TRUE_MS + DAY_MS);
        assert_eq!(clock.unix_ms(now, TRUE_MS + 3_650 * DAY_MS), TRUE_MS);
    }
}
