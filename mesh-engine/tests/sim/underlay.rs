//! The internet in small: realms of addresses, NATs between them, and links that lose, delay, double and reorder.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::nat::{Behaviour, Nat};
use crate::random::Random;

/// The realm without a NAT above it.
pub(crate) const INTERNET: usize = 0;

/// Who has an address within a realm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner {
    Node(usize),
    /// The outside of this NAT.
    Nat(usize),
    /// The STUN endpoints of this relay.
    Relay(usize),
}

#[derive(Debug)]
struct Realm {
    /// The NAT towards the realm above, and that realm.
    up: Option<(usize, usize)>,
}

/// What a link does to datagrams.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Weather {
    pub(crate) loss_percent: u64,
    pub(crate) dup_percent: u64,
    /// A datagram is late by up to so much, so that later ones overtake it.
    pub(crate) jitter: Duration,
}

impl Weather {
    pub(crate) const FAIR: Self = Self {
        loss_percent: 0,
        dup_percent: 0,
        jitter: Duration::ZERO,
    };
}

#[derive(Debug)]
pub(crate) struct Underlay {
    realms: Vec<Realm>,
    pub(crate) nats: Vec<Nat>,
    /// The realm that each NAT leads into.
    inner: Vec<usize>,
    owners: BTreeMap<(usize, IpAddr), Owner>,
    pub(crate) weather: Weather,
    pub(crate) random: Random,
}

/// Where a datagram ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Arrival {
    pub(crate) owner: Owner,
    pub(crate) from: SocketAddr,
    pub(crate) dst: SocketAddr,
}

impl Underlay {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            realms: vec![Realm { up: None }],
            nats: vec![],
            inner: vec![],
            owners: BTreeMap::new(),
            weather: Weather::FAIR,
            random: Random::new(seed),
        }
    }

    /// A realm behind a new NAT whose outer address is `outer` in the realm `above`.
    pub(crate) fn add_realm(&mut self, above: usize, outer: IpAddr, behaviour: Behaviour) -> usize {
        let (nat, realm) = (self.nats.len(), self.realms.len());
        let seed = self.random.next();
        self.nats.push(Nat::new(behaviour, outer, seed));
        self.inner.push(realm);
        self.realms.push(Realm {
            up: Some((nat, above)),
        });
        self.own(above, outer, Owner::Nat(nat));
        realm
    }

    pub(crate) fn own(&mut self, realm: usize, ip: IpAddr, owner: Owner) {
        self.owners.insert((realm, ip), owner);
    }

    pub(crate) fn disown(&mut self, realm: usize, ip: IpAddr) {
        self.owners.remove(&(realm, ip));
    }

    /// The NAT that a realm is behind.
    pub(crate) fn nat_of(&self, realm: usize) -> Option<usize> {
        self.realms[realm].up.map(|(nat, _)| nat)
    }

    /// Follows a datagram to its end, through all NATs.
    pub(crate) fn route(
        &mut self,
        now: Duration,
        realm: usize,
        src: SocketAddr,
        dst: SocketAddr,
    ) -> Option<Arrival> {
        let (mut realm, mut src, mut dst) = (realm, src, dst);
        let is_ipv6 = dst.is_ipv6();
        for _ in 0..8 {
            match self.owners.get(&(realm, dst.ip())).copied() {
                Some(Owner::Nat(nat)) => {
                    dst = self.nats[nat].inward(now, src, dst.port())?;
                    realm = self.inner[nat];
                    continue;
                }
                Some(owner) => {
                    return Some(Arrival {
                        owner,
                        from: src,
                        dst,
                    });
                }
                None => {}
            }
            if is_ipv6 {
                // No NAT is in the way of IPv6: all realms share it.
                let owner = self.owners.get(&(INTERNET, dst.ip())).copied()?;
                return Some(Arrival {
                    owner,
                    from: src,
                    dst,
                });
            }
            let (nat, above) = self.realms[realm].up?;
            let gateway = &mut self.nats[nat];
            let is_hairpin = gateway.outer == dst.ip();
            if is_hairpin && !gateway.behaviour.hairpins {
                return None;
            }
            src = gateway.outward(now, src, dst);
            realm = above;
        }
        None
    }

    /// When copies of a datagram arrive over a link of this delay; none when it is lost.
    pub(crate) fn delays(&mut self, delay: Duration) -> Vec<Duration> {
        let weather = self.weather;
        let n_copies = 1 + u64::from(self.random.percent(weather.dup_percent));
        let mut delays = vec![];
        for _ in 0..n_copies {
            if self.random.percent(weather.loss_percent) {
                continue;
            }
            let jitter_us = u64::try_from(weather.jitter.as_micros()).unwrap();
            let late = self.random.below(jitter_us + 1);
            delays.push(delay + Duration::from_micros(late));
        }
        delays
    }
}
