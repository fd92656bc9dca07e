//! Relays: which are there, which links stand, and which one this node listens on.
//!
//! ```text
//!   latencies known, or waited for long enough ─► home
//!   home without a link for a while ────────────► the next best
//!   another one clearly nearer ─────────────────► that one
//! ```

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mesh_proto::id::RelayId;
use mesh_proto::relay::RelayEntry;

use crate::config::{HOME_GRACE, HOME_WITHIN, N_RELAYS_MAX, NEED_RELAY_EVERY, RELAY_SHUNNED_FOR};
use crate::netcheck::RelayReport;
use crate::path::canonical;

/// A relay must be nearer than the home relay by this factor and this much to replace it.
const NEARER: (f64, Duration) = (0.67, Duration::from_millis(10));

#[derive(Debug)]
struct Relay {
    order: usize,
    stun: Vec<SocketAddr>,
    rtt: Option<Duration>,
    is_up: bool,
    /// When its link ended or could not be made.
    failed_at: Option<Instant>,
    needed_at: Option<Instant>,
}

/// All relays of the mesh.
#[derive(Debug, Default)]
pub(crate) struct Relays {
    relays: BTreeMap<RelayId, Relay>,
    home: Option<RelayId>,
    decide_at: Option<Instant>,
}

impl Relays {
    /// Takes what the netmap names; `true` when the home relay changed.
    pub(crate) fn set_entries(&mut self, now: Instant, entries: &[RelayEntry]) -> bool {
        let mut before = std::mem::take(&mut self.relays);
        for (order, entry) in entries.iter().take(N_RELAYS_MAX).enumerate() {
            let stun = entry.stun.iter().map(|s| canonical(*s)).collect();
            let relay = match before.remove(&entry.id) {
                Some(known) => Relay {
                    order,
                    stun,
                    ..known
                },
                None => Relay {
                    order,
                    stun,
                    rtt: None,
                    is_up: false,
                    failed_at: None,
                    needed_at: None,
                },
            };
            self.relays.insert(entry.id, relay);
        }
        let is_gone = self
            .home
            .is_some_and(|home| !self.relays.contains_key(&home));
        if is_gone {
            self.home = None;
        }
        if self.home.is_none() && !self.relays.is_empty() {
            // One relay needs no comparison.
            let wait = if self.relays.len() == 1 || is_gone {
                Duration::ZERO
            } else {
                HOME_WITHIN
            };
            let at = now + wait;
            self.decide_at = Some(self.decide_at.map_or(at, |due| due.min(at)));
        }
        let is_changed = self.handle_timeout(now);
        is_gone || is_changed
    }

    pub(crate) const fn home(&self) -> Option<RelayId> {
        self.home
    }

    pub(crate) fn is_up(&self, id: &RelayId) -> bool {
        self.relays.get(id).is_some_and(|relay| relay.is_up)
    }

    /// Whether a link to it is to be asked for now.
    pub(crate) fn need(&mut self, now: Instant, id: &RelayId) -> bool {
        let Some(relay) = self.relays.get_mut(id) else {
            return false;
        };
        let is_due = relay
            .needed_at
            .is_none_or(|at| now.saturating_duration_since(at) >= NEED_RELAY_EVERY);
        if relay.is_up || !is_due {
            return false;
        }
        relay.needed_at = Some(now);
        true
    }

    /// `true` when the home relay changed.
    pub(crate) fn on_up(&mut self, now: Instant, id: &RelayId) -> bool {
        if let Some(relay) = self.relays.get_mut(id) {
            relay.is_up = true;
            relay.failed_at = None;
            relay.needed_at = None;
        }
        self.decide_at.is_none() && self.decide(now)
    }

    pub(crate) fn on_down(&mut self, now: Instant, id: &RelayId) {
        if let Some(relay) = self.relays.get_mut(id) {
            relay.is_up = false;
            relay.failed_at.get_or_insert(now);
            if self.home == Some(*id) {
                let at = now + HOME_GRACE;
                self.decide_at = Some(self.decide_at.map_or(at, |due| due.min(at)));
            }
        }
    }

    /// A STUN server answered after so long. `true` when the home relay changed.
    pub(crate) fn on_latency(&mut self, now: Instant, server: SocketAddr, rtt: Duration) -> bool {
        let mut is_known = false;
        for relay in self.relays.values_mut() {
            if relay.stun.contains(&server) {
                is_known = true;
                relay.rtt = Some(match relay.rtt {
                    Some(known) if rtt > known => (known * 3 + rtt) / 4,
                    Some(_) | None => rtt,
                });
            }
        }
        let all_known = self.relays.values().all(|relay| relay.rtt.is_some());
        if is_known && (self.home.is_some() || all_known) {
            return self.decide(now);
        }
        false
    }

    /// The network is another one: latencies are.
    pub(crate) fn forget_latencies(&mut self) {
        for relay in self.relays.values_mut() {
            relay.rtt = None;
        }
    }

    /// All of them, in the netmap's order.
    pub(crate) fn reports(&self) -> Vec<RelayReport> {
        let mut reports: Vec<(usize, RelayReport)> = self
            .relays
            .iter()
            .map(|(id, relay)| {
                let (rtt, is_up) = (relay.rtt, relay.is_up);
                (
                    relay.order,
                    RelayReport {
                        id: *id,
                        rtt,
                        is_up,
                    },
                )
            })
            .collect();
        reports.sort_unstable_by_key(|(order, _)| *order);
        reports.into_iter().map(|(_, report)| report).collect()
    }

    pub(crate) const fn poll_timeout(&self) -> Option<Instant> {
        self.decide_at
    }

    /// `true` when the home relay changed.
    pub(crate) fn handle_timeout(&mut self, now: Instant) -> bool {
        if self.decide_at.is_none_or(|at| now < at) {
            return false;
        }
        self.decide_at = None;
        self.decide(now)
    }

    fn decide(&mut self, now: Instant) -> bool {
        let before = self.home;
        let cost = |relay: &Relay| (relay.rtt.unwrap_or(Duration::MAX), relay.order);
        let is_well = |relay: &Relay| {
            relay.is_up
                || relay
                    .failed_at
                    .is_none_or(|at| now.saturating_duration_since(at) >= RELAY_SHUNNED_FOR)
        };
        let best = self
            .relays
            .iter()
            .filter(|(_, relay)| is_well(relay))
            .min_by_key(|(_, relay)| cost(relay))
            .map(|(id, relay)| (*id, relay.rtt));
        let home = self.home.and_then(|id| self.relays.get(&id));
        match (home, best) {
            (None, best) => {
                let first = self.relays.iter().min_by_key(|(_, relay)| cost(relay));
                self.home = best.map(|(id, _)| id).or_else(|| first.map(|(id, _)| *id));
            }
            (Some(home), Some((id, rtt))) if self.home != Some(id) => {
                let is_dead = !home.is_up
                    && home
                        .failed_at
                        .is_some_and(|at| now.saturating_duration_since(at) >= HOME_GRACE);
                let is_nearer = home.rtt.zip(rtt).is_some_and(|(home, other)| {
                    other < home.mul_f64(NEARER.0) && other + NEARER.1 <= home
                });
                if is_dead || is_nearer {
                    self.home = Some(id);
                }
            }
            (Some(_), _) => {}
        }
        let home = self.home.and_then(|id| self.relays.get(&id));
        if self.relays.len() > 1 && home.is_some_and(|home| home.failed_at.is_some()) {
            // Those that are shunned now may serve then.
            self.decide_at = Some(now + RELAY_SHUNNED_FOR);
        }
        self.home != before
    }
}

#[cfg(test)]
mod tests {
    use mesh_proto::relay::Pin;

    use super::*;

    fn entry(n: u8) -> RelayEntry {
        RelayEntry {
            id: RelayId::from_bytes([n; 10]),
            name: String::new(),
            urls: vec![],
            pin: Pin::from_bytes([n; 32]),
            udp: vec![],
            stun: vec![SocketAddr::from(([192, 0, 2, n], 3478))],
        }
    }

    fn server(n: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, n], 3478))
    }

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn the_nearest_becomes_home_and_stays_while_it_is_about_as_near() {
        let start = Instant::now();
        let mut relays = Relays::default();
        assert!(!relays.set_entries(start, &[entry(1), entry(2)]));
        assert!(!relays.on_latency(start, server(1), ms(50)));
        assert!(relays.on_latency(start, server(2), ms(20)));
        assert_eq!(relays.home(), Some(entry(2).id));
        assert!(
            !relays.on_latency(start, server(1), ms(15)),
            "not by enough"
        );
        assert!(relays.set_entries(start, &[entry(1)]), "it is gone");
        assert_eq!(relays.home(), Some(entry(1).id));
    }

    #[test]
    fn without_latencies_the_first_is_taken_in_time() {
        let start = Instant::now();
        let mut relays = Relays::default();
        assert!(!relays.set_entries(start, &[entry(2), entry(1)]));
        let at = relays.poll_timeout().unwrap();
        assert!(at <= start + HOME_WITHIN && relays.handle_timeout(at));
        assert_eq!(relays.home(), Some(entry(2).id));
        let mut alone = Relays::default();
        assert!(alone.set_entries(start, &[entry(1)]), "nothing to compare");
    }

    #[test]
    fn a_home_that_fails_is_left_but_not_for_nothing() {
        let start = Instant::now();
        let mut relays = Relays::default();
        relays.set_entries(start, &[entry(1), entry(2)]);
        relays.handle_timeout(start + HOME_WITHIN);
        relays.on_up(start, &entry(1).id);
        relays.on_down(start, &entry(1).id);
        relays.on_up(start, &entry(1).id);
        assert!(!relays.handle_timeout(start + HOME_GRACE), "it came back");
        relays.on_down(start, &entry(1).id);
        assert!(relays.handle_timeout(start + HOME_GRACE));
        assert_eq!(relays.home(), Some(entry(2).id));
        relays.on_down(start, &entry(2).id);
        assert!(!relays.handle_timeout(start + HOME_GRACE), "no better one");
    }

    #[test]
    fn a_link_is_asked_for_now_and_then() {
        let start = Instant::now();
        let mut relays = Relays::default();
        relays.set_entries(start, &[entry(1)]);
        let id = entry(1).id;
        assert!(relays.need(start, &id) && !relays.need(start, &id));
        assert!(relays.need(start + NEED_RELAY_EVERY, &id));
        relays.on_up(start, &id);
        assert!(!relays.need(start + NEED_RELAY_EVERY * 2, &id));
        assert!(!relays.need(start, &RelayId::from_bytes([9; 10])));
    }
}
