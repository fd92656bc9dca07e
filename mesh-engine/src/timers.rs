//! Deadlines keyed by their reason.

use std::time::Instant;

use crate::event::TimerReason;

const N_REASONS: usize = 6;

/// At most one deadline a reason.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    deadlines: [Option<Instant>; N_REASONS],
}

const REASONS: [TimerReason; N_REASONS] = [
    TimerReason::Sessions,
    TimerReason::Handshake,
    TimerReason::Stun,
    TimerReason::Expiry,
    TimerReason::Relay,
    TimerReason::PortMap,
];

impl Timers {
    pub(crate) const fn set(&mut self, reason: TimerReason, at: Option<Instant>) {
        self.deadlines[reason as usize] = at;
    }

    pub(crate) const fn get(&self, reason: TimerReason) -> Option<Instant> {
        self.deadlines[reason as usize]
    }

    pub(crate) fn is_due(&self, reason: TimerReason, now: Instant) -> bool {
        self.get(reason).is_some_and(|at| at <= now)
    }

    pub(crate) fn next(&self) -> Option<(Instant, TimerReason)> {
        let deadlines = REASONS.into_iter();
        deadlines
            .filter_map(|reason| Some((self.get(reason)?, reason)))
            .min()
    }
}
