//! A network that loses, doubles and delays datagrams as its seed says.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// One datagram on its way.
#[derive(Debug, Clone)]
pub(crate) struct InFlight {
    pub(crate) from: SocketAddr,
    pub(crate) dst: SocketAddr,
    pub(crate) bytes: Vec<u8>,
}

/// Where a datagram can go: an address reaches the others of its own /24.
#[derive(Debug)]
pub(crate) struct Net {
    pub(crate) loss_percent: u64,
    pub(crate) dup_percent: u64,
    pub(crate) delay: Duration,
    pub(crate) delay_spread_ms: u64,
    /// Addresses that neither send nor receive.
    pub(crate) dead: BTreeSet<IpAddr>,
    random: u64,
    n_sent: u64,
    in_flight: BTreeMap<(Duration, u64), InFlight>,
}

impl Net {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            loss_percent: 0,
            dup_percent: 0,
            delay: Duration::from_millis(10),
            delay_spread_ms: 0,
            dead: BTreeSet::new(),
            random: seed,
            n_sent: 0,
            in_flight: BTreeMap::new(),
        }
    }

    /// splitmix64.
    pub(crate) fn draw(&mut self, bound: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }

    /// The address of a sender that reaches a destination.
    pub(crate) fn source(own: &[SocketAddr], dst: SocketAddr) -> Option<SocketAddr> {
        let segment = |ip: IpAddr| match ip {
            IpAddr::V4(ip) => Some(u32::from(ip) >> 8),
            IpAddr::V6(_) => None,
        };
        let wanted = segment(dst.ip())?;
        own.iter()
            .find(|own| segment(own.ip()) == Some(wanted))
            .copied()
    }

    pub(crate) fn send(&mut self, now: Duration, datagram: InFlight) {
        if self.dead.contains(&datagram.from.ip()) || self.dead.contains(&datagram.dst.ip()) {
            return;
        }
        let n_copies = 1 + u64::from(self.draw(100) < self.dup_percent);
        for _ in 0..n_copies {
            if self.draw(100) < self.loss_percent {
                continue;
            }
            let spread = Duration::from_millis(match self.delay_spread_ms {
                0 => 0,
                spread => self.draw(spread),
            });
            self.n_sent += 1;
            self.in_flight
                .insert((now + self.delay + spread, self.n_sent), datagram.clone());
        }
    }

    pub(crate) fn next_at(&self) -> Option<Duration> {
        self.in_flight.keys().next().map(|(at, _)| *at)
    }

    pub(crate) fn receive(&mut self, now: Duration) -> Option<InFlight> {
        let entry = self.in_flight.first_entry()?;
        (entry.key().0 <= now).then(|| entry.remove())
    }
}
