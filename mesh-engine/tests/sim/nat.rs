//! NATs as RFC 4787 describes them: how they map, what they let in, and whether they hairpin.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::random::Random;

/// What a mapping or a filter depends on (RFC 4787, sections 4.1 and 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Dependence {
    EndpointIndependent,
    Address,
    AddressAndPort,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Behaviour {
    pub(crate) mapping: Dependence,
    pub(crate) filtering: Dependence,
    pub(crate) hairpins: bool,
}

impl Behaviour {
    /// A home router that is kind to peers: endpoint-independent mapping and filtering.
    pub(crate) const FULL_CONE: Self = Self {
        mapping: Dependence::EndpointIndependent,
        filtering: Dependence::EndpointIndependent,
        hairpins: true,
    };
    /// A usual home router.
    pub(crate) const PORT_RESTRICTED: Self = Self {
        mapping: Dependence::EndpointIndependent,
        filtering: Dependence::AddressAndPort,
        hairpins: true,
    };
    /// Another port for each destination, at random.
    pub(crate) const SYMMETRIC: Self = Self {
        mapping: Dependence::AddressAndPort,
        filtering: Dependence::AddressAndPort,
        hairpins: false,
    };
}

/// The part of a destination that a dependence looks at.
type Part = (Option<IpAddr>, Option<u16>);

fn part(dependence: Dependence, dst: SocketAddr) -> Part {
    match dependence {
        Dependence::EndpointIndependent => (None, None),
        Dependence::Address => (Some(dst.ip()), None),
        Dependence::AddressAndPort => (Some(dst.ip()), Some(dst.port())),
    }
}

#[derive(Debug)]
struct Mapped {
    inside: SocketAddr,
    part: Part,
    used_at: Duration,
    /// Whom the inside sent to, as far as the filter looks.
    contacted: BTreeMap<Part, Duration>,
}

#[derive(Debug)]
pub(crate) struct Nat {
    pub(crate) behaviour: Behaviour,
    pub(crate) outer: IpAddr,
    /// How long an idle mapping lives.
    pub(crate) lifetime: Duration,
    by_port: BTreeMap<u16, Mapped>,
    by_inside: BTreeMap<(SocketAddr, Part), u16>,
    random: Random,
}

impl Nat {
    pub(crate) fn new(behaviour: Behaviour, outer: IpAddr, seed: u64) -> Self {
        Self {
            behaviour,
            outer,
            lifetime: Duration::from_secs(30),
            by_port: BTreeMap::new(),
            by_inside: BTreeMap::new(),
            random: Random::new(seed),
        }
    }

    /// Forgets all, as a restart does.
    pub(crate) fn restart(&mut self) {
        self.by_port.clear();
        self.by_inside.clear();
    }

    /// The outer source of a datagram from the inside.
    pub(crate) fn outward(
        &mut self,
        now: Duration,
        src: SocketAddr,
        dst: SocketAddr,
    ) -> SocketAddr {
        let mapping = part(self.behaviour.mapping, dst);
        let known = self.by_inside.get(&(src, mapping)).copied();
        let port = known
            .filter(|port| self.is_alive(now, *port))
            .unwrap_or_else(|| self.map(src, mapping));
        let filter = part(self.behaviour.filtering, dst);
        if let Some(mapped) = self.by_port.get_mut(&port) {
            mapped.used_at = now;
            mapped.contacted.insert(filter, now);
        }
        SocketAddr::new(self.outer, port)
    }

    fn is_alive(&self, now: Duration, port: u16) -> bool {
        let mapped = self.by_port.get(&port);
        mapped.is_some_and(|mapped| now.saturating_sub(mapped.used_at) < self.lifetime)
    }

    fn map(&mut self, src: SocketAddr, mapping: Part) -> u16 {
        if let Some(old) = self.by_inside.remove(&(src, mapping)) {
            self.by_port.remove(&old);
        }
        let port = loop {
            let port = 1024 + u16::try_from(self.random.below(64_512)).unwrap();
            if !self.by_port.contains_key(&port) {
                break port;
            }
        };
        self.by_inside.insert((src, mapping), port);
        let mapped = Mapped {
            inside: src,
            part: mapping,
            used_at: Duration::ZERO,
            contacted: BTreeMap::new(),
        };
        self.by_port.insert(port, mapped);
        port
    }

    /// The inner destination of a datagram from the outside, when it is let in.
    pub(crate) fn inward(
        &mut self,
        now: Duration,
        from: SocketAddr,
        port: u16,
    ) -> Option<SocketAddr> {
        if !self.is_alive(now, port) {
            return None;
        }
        let filter = part(self.behaviour.filtering, from);
        let lifetime = self.lifetime;
        let mapped = self.by_port.get(&port)?;
        let contacted_at = mapped.contacted.get(&filter)?;
        (now.saturating_sub(*contacted_at) < lifetime).then_some(mapped.inside)
    }

    /// How many mappings one inside endpoint has, for tests of the model itself.
    pub(crate) fn n_mappings(&self, inside: SocketAddr) -> usize {
        let mapped = self.by_port.values();
        mapped
            .filter(|mapped| mapped.inside == inside && mapped.part.0.is_some())
            .count()
    }
}

#[test]
fn the_model_maps_and_filters_as_the_rfc_says() {
    let at = |text: &str| text.parse::<SocketAddr>().unwrap();
    let (inside, a, b, c) = (
        at("192.168.0.2:5"),
        at("198.51.100.1:1"),
        at("198.51.100.1:2"),
        at("198.51.100.2:1"),
    );
    let now = Duration::ZERO;
    let outer = "203.0.113.9".parse().unwrap();
    for (dependence, same_for_b, same_for_c) in [
        (Dependence::EndpointIndependent, true, true),
        (Dependence::Address, true, false),
        (Dependence::AddressAndPort, false, false),
    ] {
        let behaviour = Behaviour {
            mapping: dependence,
            ..Behaviour::FULL_CONE
        };
        let mut nat = Nat::new(behaviour, outer, 1);
        let of_a = nat.outward(now, inside, a);
        assert_eq!(nat.outward(now, inside, b) == of_a, same_for_b);
        assert_eq!(nat.outward(now, inside, c) == of_a, same_for_c);
        let behaviour = Behaviour {
            filtering: dependence,
            ..Behaviour::FULL_CONE
        };
        let mut nat = Nat::new(behaviour, outer, 1);
        let port = nat.outward(now, inside, a).port();
        assert_eq!(nat.inward(now, a, port), Some(inside));
        assert_eq!(nat.inward(now, b, port).is_some(), same_for_b);
        assert_eq!(nat.inward(now, c, port).is_some(), same_for_c);
        assert_eq!(nat.inward(now + nat.lifetime, a, port), None, "it ages");
    }
    let mut symmetric = Nat::new(Behaviour::SYMMETRIC, outer, 1);
    symmetric.outward(now, inside, a);
    symmetric.outward(now, inside, b);
    assert_eq!(symmetric.n_mappings(inside), 2);
}
