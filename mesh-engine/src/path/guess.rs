//! Port guessing for a NAT that gives each destination another port (RFC 4787, section 4.1), by the birthday paradox.
//!
//! The node behind such a NAT pings the peer from many spare sockets, so that its NAT holds many ports open towards the
//! peer. The peer, whose own port is known, pings random ports at the NAT's address. With 256 open ports of 64,512, a
//! thousand pings find one with a probability of 98 %. What is found is a path like any other: the ping that comes
//! through is answered and probed the way it came.

use crate::config::{GUESS_AGAIN, GUESS_FOR, GUESS_PAUSE_MAX};

/// When attempts are made.
#[derive(Debug)]
pub(crate) struct Guess {
    n_attempts: u32,
    n_steps: u32,
    until_ms: u64,
    again_ms: u64,
}

impl Guess {
    pub(crate) const fn new() -> Self {
        Self {
            n_attempts: 0,
            n_steps: 0,
            until_ms: 0,
            again_ms: 0,
        }
    }

    /// Whether an attempt is under way.
    pub(crate) const fn is_under_way(&self) -> bool {
        self.until_ms != 0
    }

    /// The number of this step when an attempt is under way, or begins because nothing else helped.
    pub(crate) fn step(&mut self, now_ms: u64, is_stuck: bool) -> Option<u32> {
        if !is_stuck {
            // Found, or no longer wanted.
            self.until_ms = 0;
            return None;
        }
        if now_ms >= self.until_ms {
            self.until_ms = 0;
            if now_ms < self.again_ms {
                return None;
            }
            let pause = GUESS_AGAIN.saturating_mul(1 << self.n_attempts.min(8));
            let pause_ms =
                u64::try_from(pause.min(GUESS_PAUSE_MAX).as_millis()).unwrap_or(u64::MAX);
            self.until_ms =
                now_ms.saturating_add(u64::try_from(GUESS_FOR.as_millis()).unwrap_or(0));
            self.again_ms = self.until_ms.saturating_add(pause_ms);
            self.n_attempts = self.n_attempts.saturating_add(1);
            self.n_steps = 0;
        }
        let step = self.n_steps;
        self.n_steps = self.n_steps.saturating_add(1);
        Some(step)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_end_and_grow_rare() {
        let mut guess = Guess::new();
        let mut began = vec![];
        let mut n_steps = 0;
        for now_ms in (0..600_000).step_by(250) {
            match guess.step(now_ms, true) {
                Some(0) => began.push(now_ms),
                Some(_) => n_steps += 1,
                None => {}
            }
        }
        let for_ms = u64::try_from(GUESS_FOR.as_millis()).unwrap();
        let again_ms = u64::try_from(GUESS_AGAIN.as_millis()).unwrap();
        let second = for_ms + again_ms;
        assert_eq!(began[..3], [0, second, second + for_ms + 2 * again_ms]);
        assert!(n_steps < 5 * 60, "{n_steps}");
        assert_eq!(guess.step(700_000, false), None);
    }
}
