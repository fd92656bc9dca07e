//! Whether a model on a host may be used: failures in a row open the breaker, a trial after a rest closes it again.
//!
//! Pure: time is an argument.

use std::time::{Duration, Instant};

/// How often in a row a host may fail with a model.
const N_FAILURES_MAX: u32 = 3;
/// How long it rests at first, and at most when trial after trial fails.
const REST_FIRST: Duration = Duration::from_secs(1);
const REST_LONGEST: Duration = Duration::from_secs(30);
/// A trial that says nothing for so long stands in nobody's way any more.
const TRIAL_MAX: Duration = Duration::from_secs(60);

/// What may be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// All.
    Use,
    /// One request, to see whether it is well again.
    Try,
    /// Nothing, where there is somebody else.
    Avoid,
}

/// ```text
///   Closed ──3 failures──▶ Open ──a rest, then a request──▶ Trial
///     ▲                     ▲ └────────── failure ───────────┘ │
///     └─────────────────────┼─────────── success ──────────────┘
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Breaker {
    Closed { n_failures: u32 },
    Open { until: Instant, rest: Duration },
    Trial { since: Instant, rest: Duration },
}

impl Default for Breaker {
    fn default() -> Self {
        Self::Closed { n_failures: 0 }
    }
}

impl Breaker {
    pub(crate) fn verdict(&self, now: Instant) -> Verdict {
        match self {
            Self::Closed { .. } => Verdict::Use,
            Self::Open { until, .. } if now >= *until => Verdict::Try,
            Self::Trial { since, .. } if now >= *since + TRIAL_MAX => Verdict::Try,
            Self::Open { .. } | Self::Trial { .. } => Verdict::Avoid,
        }
    }

    /// A request is sent; true when it is the trial.
    pub(crate) fn on_sent(&mut self, now: Instant) -> bool {
        let rest = match *self {
            Self::Open { rest, .. } | Self::Trial { rest, .. } => rest,
            Self::Closed { .. } => return false,
        };
        let is_trial = self.verdict(now) == Verdict::Try;
        if is_trial {
            *self = Self::Trial { since: now, rest };
        }
        is_trial
    }

    pub(crate) fn on_success(&mut self) {
        *self = Self::default();
    }

    pub(crate) fn on_failure(&mut self, now: Instant) {
        *self = match *self {
            Self::Closed { n_failures } if n_failures + 1 < N_FAILURES_MAX => Self::Closed {
                n_failures: n_failures + 1,
            },
            Self::Closed { .. } => Self::Open {
                until: now + REST_FIRST,
                rest: REST_FIRST,
            },
            Self::Trial { rest, .. } => {
                let rest = (rest * 2).min(REST_LONGEST);
                Self::Open {
                    until: now + rest,
                    rest,
                }
            }
            // What was sent before it opened says nothing new.
            open @ Self::Open { .. } => open,
        };
    }

    /// The one whose request was the trial left: nothing is known, and the next request is one.
    pub(crate) fn on_left(&mut self, now: Instant) {
        if let Self::Trial { rest, .. } = *self {
            *self = Self::Open { until: now, rest };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn three_failures_in_a_row_open_it_and_one_success_between_them_does_not() {
        let now = Instant::now();
        let mut breaker = Breaker::default();
        for _ in 0..2 {
            breaker.on_failure(now);
        }
        breaker.on_success();
        for _ in 0..2 {
            breaker.on_failure(now);
            assert_eq!(breaker.verdict(now), Verdict::Use);
        }
        breaker.on_failure(now);
        assert_eq!(breaker.verdict(now), Verdict::Avoid);
    }

    fn open(now: Instant) -> Breaker {
        let mut breaker = Breaker::default();
        for _ in 0..N_FAILURES_MAX {
            breaker.on_failure(now);
        }
        breaker
    }

    #[test]
    fn one_request_at_a_time_tries_it_after_each_rest_and_rests_grow() {
        let mut now = Instant::now();
        let mut breaker = open(now);
        let mut rest = REST_FIRST;
        for _ in 0..8 {
            assert_eq!(breaker.verdict(now), Verdict::Avoid);
            assert!(!breaker.on_sent(now), "too early for a trial");
            now += rest;
            assert_eq!(breaker.verdict(now), Verdict::Try);
            assert!(breaker.on_sent(now));
            assert_eq!(breaker.verdict(now), Verdict::Avoid, "two trials at once");
            breaker.on_failure(now);
            rest = (rest * 2).min(REST_LONGEST);
        }
        now += REST_LONGEST;
        assert!(breaker.on_sent(now));
        breaker.on_success();
        assert_eq!(breaker, Breaker::default());
    }

    #[test]
    fn a_trial_whose_client_left_leaves_room_for_the_next_at_once() {
        let now = Instant::now();
        let mut breaker = open(now);
        assert!(breaker.on_sent(now + SECOND));
        breaker.on_left(now + SECOND);
        assert_eq!(breaker.verdict(now + SECOND), Verdict::Try);
        let mut closed = Breaker::default();
        closed.on_left(now);
        assert_eq!(closed, Breaker::default());
    }

    #[test]
    fn a_trial_that_never_ends_blocks_no_other_for_ever() {
        let now = Instant::now();
        let mut breaker = open(now);
        assert!(breaker.on_sent(now + SECOND));
        assert_eq!(breaker.verdict(now + SECOND + TRIAL_MAX), Verdict::Try);
    }
}
