//! Where a peer's session stands, and when its handshake is due again. WireGuard paper, sections 6.1 to 6.4.
//!
//! ```text
//!          wanted              agreed
//!   Idle ─────────► Connecting ───────► Up ◄─────────┐
//!    ▲ ▲                │                │ renew     │ agreed
//!    │ └── gave up ─────┘                ├───────► Rekeying
//!    └──────────────── lost ─────────────┘           │
//!    └──────────────── gave up ──────────────────────┘
//! ```
//!
//! A peer that begins and confirms a handshake by itself makes `Up` out of any state.

use std::time::{Duration, Instant};

use crate::config::{ATTEMPT_FOR, RETRY_AFTER};

/// The control side's view of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// No keys, and no need of them.
    Idle,
    /// Packets wait for a first handshake.
    Connecting(Attempt),
    /// Both ends hold keys.
    Up,
    /// Both ends hold keys, and new ones are being agreed on.
    Rekeying(Attempt),
}

/// A handshake that is tried until it is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Attempt {
    began: Instant,
    /// By the plane's clock, to compare with when keys were agreed on.
    began_ms: u64,
    n_tries: usize,
    retry_at: Instant,
}

/// What a due attempt comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Retry {
    /// Not due, or no attempt.
    Wait,
    /// Send a new initiation.
    Initiate,
    /// It was tried long enough: forget keys and packets. Tells whether the session was up.
    GiveUp { was_up: bool },
}

/// The time of an input.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Now {
    pub(crate) at: Instant,
    /// The same by the plane's clock.
    pub(crate) ms: u64,
    /// A fresh draw, at most [`RETRY_JITTER_MS`](crate::config::RETRY_JITTER_MS).
    pub(crate) jitter: Duration,
}

impl Attempt {
    fn begin(now: Now) -> Self {
        Self {
            began: now.at,
            began_ms: now.ms,
            n_tries: 1,
            retry_at: now.at + RETRY_AFTER[0] + now.jitter,
        }
    }

    fn again(self, now: Now) -> Self {
        let delay = RETRY_AFTER[self.n_tries.min(RETRY_AFTER.len() - 1)];
        Self {
            n_tries: self.n_tries.saturating_add(1),
            retry_at: now.at + delay + now.jitter,
            ..self
        }
    }
}

impl State {
    pub(crate) const fn is_up(&self) -> bool {
        matches!(self, Self::Up | Self::Rekeying(_))
    }

    pub(crate) const fn retry_at(&self) -> Option<Instant> {
        match self {
            Self::Connecting(attempt) | Self::Rekeying(attempt) => Some(attempt.retry_at),
            Self::Idle | Self::Up => None,
        }
    }

    /// A session is needed and there is none, or its keys need replacing; `true` when an initiation is to be sent now.
    pub(crate) fn on_wanted(&mut self, now: Now) -> bool {
        match self {
            Self::Idle => *self = Self::Connecting(Attempt::begin(now)),
            Self::Up => *self = Self::Rekeying(Attempt::begin(now)),
            Self::Connecting(_) | Self::Rekeying(_) => return false,
        }
        true
    }

    /// An initiation was sent by the session's own timers.
    pub(crate) fn on_initiated(&mut self, now: Now) {
        match self {
            Self::Connecting(attempt) | Self::Rekeying(attempt) => *attempt = attempt.again(now),
            Self::Idle | Self::Up => {
                self.on_wanted(now);
            }
        }
    }

    /// Both ends hold keys since `agreed_ms`; `true` when they did not before.
    pub(crate) fn on_agreed(&mut self, agreed_ms: u64) -> bool {
        match self {
            Self::Idle | Self::Connecting(_) => {
                *self = Self::Up;
                true
            }
            Self::Rekeying(attempt) => {
                if agreed_ms >= attempt.began_ms {
                    *self = Self::Up;
                }
                false
            }
            Self::Up => false,
        }
    }

    /// A deadline passed.
    pub(crate) fn on_retry(&mut self, now: Now) -> Retry {
        let was_up = self.is_up();
        match self {
            Self::Connecting(attempt) | Self::Rekeying(attempt) => {
                if attempt.retry_at > now.at {
                    Retry::Wait
                } else if now.at.saturating_duration_since(attempt.began) >= ATTEMPT_FOR {
                    *self = Self::Idle;
                    Retry::GiveUp { was_up }
                } else {
                    *attempt = attempt.again(now);
                    Retry::Initiate
                }
            }
            Self::Idle | Self::Up => Retry::Wait,
        }
    }

    /// The keys are gone; `true` when the session was up.
    pub(crate) fn on_lost(&mut self) -> bool {
        let was_up = self.is_up();
        *self = Self::Idle;
        was_up
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now(start: Instant, ms: u64) -> Now {
        Now {
            at: start + Duration::from_millis(ms),
            ms,
            jitter: Duration::from_millis(100),
        }
    }

    #[test]
    fn every_input_in_every_state() {
        let start = Instant::now();
        let attempt = Attempt::begin(now(start, 1000));
        let later = attempt.again(now(start, 1600));
        let states = [
            State::Idle,
            State::Connecting(attempt),
            State::Up,
            State::Rekeying(attempt),
        ];
        type Input = fn(&mut State, Instant) -> bool;
        type Row = (&'static str, Input, [(State, bool); 4]);
        let inputs: [Row; 7] = [
            (
                "wanted",
                |state, start| state.on_wanted(now(start, 1000)),
                [
                    (State::Connecting(attempt), true),
                    (State::Connecting(attempt), false),
                    (State::Rekeying(attempt), true),
                    (State::Rekeying(attempt), false),
                ],
            ),
            (
                "initiated",
                |state, start| {
                    state.on_initiated(now(start, 1600));
                    true
                },
                [
                    (State::Connecting(Attempt::begin(now(start, 1600))), true),
                    (State::Connecting(later), true),
                    (State::Rekeying(Attempt::begin(now(start, 1600))), true),
                    (State::Rekeying(later), true),
                ],
            ),
            (
                "agreed",
                |state, _| state.on_agreed(1001),
                [
                    (State::Up, true),
                    (State::Up, true),
                    (State::Up, false),
                    (State::Up, false),
                ],
            ),
            (
                "agreed before the attempt",
                |state, _| state.on_agreed(999),
                [
                    (State::Up, true),
                    (State::Up, true),
                    (State::Up, false),
                    (State::Rekeying(attempt), false),
                ],
            ),
            (
                "lost",
                |state, _| state.on_lost(),
                [
                    (State::Idle, false),
                    (State::Idle, false),
                    (State::Idle, true),
                    (State::Idle, true),
                ],
            ),
            (
                "retry too early",
                |state, start| state.on_retry(now(start, 1599)) == Retry::Wait,
                [
                    (State::Idle, true),
                    (State::Connecting(attempt), true),
                    (State::Up, true),
                    (State::Rekeying(attempt), true),
                ],
            ),
            (
                "retry",
                |state, start| state.on_retry(now(start, 1600)) == Retry::Initiate,
                [
                    (State::Idle, false),
                    (State::Connecting(later), true),
                    (State::Up, false),
                    (State::Rekeying(later), true),
                ],
            ),
        ];
        for (name, input, expected) in inputs {
            for (state, (after, output)) in states.into_iter().zip(expected) {
                let mut found = state;
                assert_eq!(input(&mut found, start), output, "{name} in {state:?}");
                assert_eq!(found, after, "{name} in {state:?}");
            }
        }
    }

    #[test]
    fn an_attempt_ends_after_a_minute_and_a_half() {
        let start = Instant::now();
        let mut state = State::Idle;
        assert!(state.on_wanted(now(start, 0)));
        let mut tries_ms = vec![];
        for ms in 0..200_000 {
            match state.on_retry(now(start, ms)) {
                Retry::Wait => {}
                Retry::Initiate => tries_ms.push(ms),
                Retry::GiveUp { was_up } => {
                    assert!(!was_up && (90_000..96_000).contains(&ms), "{ms}");
                    break;
                }
            }
        }
        assert_eq!(tries_ms[..6], [600, 1700, 3800, 7900, 12_600, 17_300]);
        assert_eq!(state, State::Idle);
    }
}
