//! How long a packet a path takes: found by probes of several lengths and watched while it is used (RFC 8899). Pure.
//!
//! Lengths are those of overlay packets; a probe is as long as the datagram of such a packet. Nothing is learned from
//! ICMP: networks drop it, and anybody can forge it. Until a length is confirmed packets are cut to [`MTU_BASE`], which
//! each link passes that IPv6 may use.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::config::{
    MTU_BASE, MTU_CHECK_EVERY, MTU_MIN, MTU_PATIENCE_MS, MTU_RAISE_AFTER, N_MTU_CHECKS,
    N_MTU_PROBES, N_MTU_TRIES,
};

/// Lengths below [`MTU_BASE`] and above what Ethernet carries; all are multiples of 16, so that padding adds nothing.
const SHORT: [u16; 4] = [MTU_MIN, 768, 976, 1104];
const LONG: [u16; 3] = [3936, 8912, 8928];
/// What Ethernet carries under the headers of IPv4 and of IPv6, and what jumbo frames carry under those of IPv6.
const FULL: [u16; 3] = [1440, 1408, 8912];
const STEP: usize = 16;

/// What is known of one path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PathMtu {
    /// The longest that passed, or is taken to pass.
    confirmed: u16,
    /// The shortest that is taken not to pass.
    limit: u16,
    tries: BTreeMap<u16, Try>,
    /// When the search begins again; 0 while it goes on.
    raise_ms: u64,
    n_raises: u32,
    check: Check,
}

/// A length that is being asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Try {
    n_sent: u32,
    sent_ms: u64,
}

/// Whether the confirmed length still passes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Check {
    n_sent: u32,
    sent_ms: u64,
    /// When the first of these probes went.
    since_ms: u64,
    answered_ms: u64,
    /// Whether [`MTU_BASE`] passes, which is asked for beside a longer one that was not answered at once.
    is_base_answered: bool,
}

/// How the path fares.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fare {
    pub(crate) now_ms: u64,
    /// Zero while it is not known.
    pub(crate) rtt_ms: u64,
    /// When anything authentic came by it.
    pub(crate) heard_ms: u64,
    /// When data was sent last.
    pub(crate) last_data_tx_ms: u64,
    /// The longest packet that this machine's interfaces let through.
    pub(crate) most: u16,
}

impl Default for PathMtu {
    fn default() -> Self {
        Self {
            confirmed: MTU_BASE,
            limit: u16::MAX,
            tries: BTreeMap::new(),
            raise_ms: 0,
            n_raises: 0,
            check: Check::default(),
        }
    }
}

impl PathMtu {
    /// The longest packet that may be sent now.
    pub(crate) const fn confirmed(&self) -> u16 {
        self.confirmed
    }

    /// Whether the search is over, so that longer packets may be refused.
    pub(crate) const fn is_settled(&self) -> bool {
        self.raise_ms != 0
    }

    /// How many probes were lost before this answer: those of a length that passes, and so not for their length.
    pub(crate) fn n_lost_before(&self, answered: u16) -> u32 {
        if answered == self.confirmed {
            self.check.n_sent.saturating_sub(1)
        } else {
            0
        }
    }

    /// The lengths to ask for now.
    pub(crate) fn look(&mut self, fare: &Fare) -> Vec<u16> {
        self.hold(fare.most);
        let patience_ms = patience_ms(fare.rtt_ms);
        let mut due = self.repeat(fare.now_ms, patience_ms);
        if self.tries.is_empty() {
            let planned = self.plan(fare);
            for length in planned {
                let sent_ms = fare.now_ms;
                self.tries.insert(length, Try { n_sent: 1, sent_ms });
                due.push(length);
            }
        }
        due.extend(self.check(fare, patience_ms));
        due
    }

    /// Interfaces that let less through than the path was found to take: it takes as much as they do.
    fn hold(&mut self, most: u16) {
        let least = MTU_MIN.min(most);
        if self.confirmed > most {
            let fits = lengths().filter(|length| *length <= most);
            *self = Self {
                confirmed: fits.max().unwrap_or(least),
                ..Self::default()
            };
        }
    }

    /// A packet of this length passed.
    pub(crate) fn on_answer(&mut self, length: u16, now_ms: u64) {
        if length >= self.confirmed {
            self.confirmed = length;
            self.check = Check {
                answered_ms: now_ms,
                ..Check::default()
            };
        } else if length >= MTU_BASE {
            self.check.is_base_answered = true;
        }
        if length >= self.limit {
            self.limit = length.saturating_add(1);
        }
        self.tries.retain(|tried, _| *tried > length);
    }

    /// Asks anew for what was not answered, and gives up what was asked for often.
    fn repeat(&mut self, now_ms: u64, patience_ms: u64) -> Vec<u16> {
        let mut due = Vec::new();
        for (length, tried) in &mut self.tries {
            if now_ms.saturating_sub(tried.sent_ms) < patience_ms {
                continue;
            }
            if tried.n_sent < N_MTU_TRIES {
                (tried.n_sent, tried.sent_ms) = (tried.n_sent + 1, now_ms);
                due.push(*length);
            } else {
                self.limit = self.limit.min(*length);
            }
        }
        let limit = self.limit;
        self.tries.retain(|length, _| *length < limit);
        due.retain(|length| *length < limit);
        due
    }

    /// What to ask for next; nothing when the search is over.
    fn plan(&mut self, fare: &Fare) -> Vec<u16> {
        if self.is_settled() {
            if fare.now_ms < self.raise_ms {
                return Vec::new();
            }
            (self.raise_ms, self.limit) = (0, u16::MAX);
        }
        let open: Vec<u16> = lengths()
            .filter(|length| {
                (self.confirmed.saturating_add(1)..self.limit).contains(length)
                    && *length <= fare.most
            })
            .collect();
        let Some(longest) = open.last().copied() else {
            let pause = MTU_RAISE_AFTER.saturating_mul(1 << self.n_raises.min(4));
            self.n_raises = self.n_raises.saturating_add(1);
            self.raise_ms = fare.now_ms.saturating_add(ms(pause)).max(1);
            return Vec::new();
        };
        if self.limit == u16::MAX {
            // Most paths take what Ethernet carries.
            let likely = |length: &u16| *length == longest || FULL.contains(length);
            return open.into_iter().filter(likely).collect();
        }
        let stride = open.len().div_ceil(N_MTU_PROBES);
        open.into_iter().step_by(stride).collect()
    }

    /// Makes sure of the confirmed length while data is sent: what passed once may pass no longer, on another route.
    fn check(&mut self, fare: &Fare, patience_ms: u64) -> Vec<u16> {
        let now_ms = fare.now_ms;
        if self.check.n_sent == 0 {
            let is_due = now_ms.saturating_sub(self.check.answered_ms) >= ms(MTU_CHECK_EVERY);
            if !is_due || fare.last_data_tx_ms <= self.check.answered_ms {
                return Vec::new();
            }
            (self.check.since_ms, self.check.is_base_answered) = (now_ms, false);
        } else if now_ms.saturating_sub(self.check.sent_ms) < patience_ms {
            return Vec::new();
        } else if self.check.n_sent >= N_MTU_CHECKS {
            if fare.heard_ms > self.check.since_ms {
                self.on_black_hole();
            } else {
                // Nothing passes, and that is not a matter of length.
                self.check = Check {
                    answered_ms: now_ms,
                    ..Check::default()
                };
            }
            return Vec::new();
        }
        self.check.n_sent += 1;
        self.check.sent_ms = now_ms;
        let mut lengths = vec![self.confirmed];
        if self.check.n_sent > 1 && self.confirmed > MTU_BASE {
            lengths.push(MTU_BASE);
        }
        lengths
    }

    /// The peer is heard, and packets of the confirmed length are not.
    fn on_black_hole(&mut self) {
        let shorter = if self.confirmed > MTU_BASE && self.check.is_base_answered {
            MTU_BASE
        } else {
            MTU_MIN
        };
        *self = Self {
            limit: self.confirmed.max(MTU_MIN + 1),
            confirmed: shorter,
            ..Self::default()
        };
    }
}

/// How long an answer is waited for.
fn patience_ms(rtt_ms: u64) -> u64 {
    let (least, most) = MTU_PATIENCE_MS;
    rtt_ms
        .saturating_mul(2)
        .saturating_add(200)
        .clamp(least, most)
}

/// All that are asked for, in order.
fn lengths() -> impl Iterator<Item = u16> {
    let fine = (MTU_BASE..=FULL[0]).step_by(STEP);
    SHORT.into_iter().chain(fine).chain(LONG)
}

fn ms(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
