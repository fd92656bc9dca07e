//! Judges endpoints that may lead to a peer: which are worth a datagram, and in which order. Pure.

use std::net::{IpAddr, SocketAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::config::{N_CANDIDATES_MAX, N_ENDPOINTS_MAX};
use crate::path::canonical;

/// Where this node is, as far as it matters for judging.
#[derive(Debug, Clone, Default)]
pub(crate) struct Surroundings {
    /// The own networks on the underlay.
    pub(crate) lans: Vec<IpNet>,
    /// The overlay's prefixes: a tunnel through the tunnel would eat itself.
    pub(crate) overlay: Vec<IpNet>,
}

impl Surroundings {
    /// Takes the networks of this machine's addresses: interfaces' masks are unknown, so a /24 and a /64 stand in.
    pub(crate) fn set_local(&mut self, endpoints: &[SocketAddr]) {
        self.lans = endpoints
            .iter()
            .filter_map(|endpoint| match canonical(*endpoint).ip() {
                IpAddr::V4(ip) => Some(IpNet::V4(Ipv4Net::new(ip, 24).ok()?.trunc())),
                IpAddr::V6(ip) => Some(IpNet::V6(Ipv6Net::new(ip, 64).ok()?.trunc())),
            })
            .collect();
        self.lans.sort_unstable();
        self.lans.dedup();
    }

    pub(crate) fn is_lan(&self, ip: IpAddr) -> bool {
        self.lans.iter().any(|lan| lan.contains(&ip))
    }

    /// Whether a datagram may be sent there on a peer's word.
    pub(crate) fn is_usable(&self, endpoint: SocketAddr) -> bool {
        let ip = endpoint.ip();
        let is_overlay = self.overlay.iter().any(|prefix| prefix.contains(&ip));
        let is_special = match ip {
            IpAddr::V4(ip) => {
                ip.is_unspecified()
                    || ip.is_multicast()
                    || ip.is_broadcast()
                    || (ip.is_loopback() && !self.is_lan(ip.into()))
            }
            // Link-local addresses mean nothing without an interface.
            IpAddr::V6(ip) => {
                ip.is_unspecified()
                    || ip.is_multicast()
                    || ip.is_unicast_link_local()
                    || (ip.is_loopback() && !self.is_lan(ip.into()))
            }
        };
        endpoint.port() != 0 && !is_overlay && !is_special
    }

    /// Which endpoints a handshake goes to, best first: where the peer was last, then the LAN, then addresses that NAT
    /// cannot be in the way of, then the rest.
    pub(crate) fn candidates(
        &self,
        selected: Option<SocketAddr>,
        endpoints: &[SocketAddr],
    ) -> Vec<SocketAddr> {
        let mut ranked: Vec<(u8, SocketAddr)> = endpoints
            .iter()
            .take(N_ENDPOINTS_MAX)
            .map(|endpoint| canonical(*endpoint))
            .filter(|endpoint| self.is_usable(*endpoint))
            .map(|endpoint| (self.rank(endpoint.ip()), endpoint))
            .collect();
        // Stable: within a rank the peer's own order holds.
        ranked.sort_by_key(|(rank, _)| *rank);
        let mut candidates: Vec<SocketAddr> = selected.into_iter().collect();
        for (_, endpoint) in ranked {
            if candidates.len() >= N_CANDIDATES_MAX {
                break;
            }
            if !candidates.contains(&endpoint) {
                candidates.push(endpoint);
            }
        }
        candidates
    }

    fn rank(&self, ip: IpAddr) -> u8 {
        if self.is_lan(ip) {
            return 0;
        }
        match ip {
            IpAddr::V6(ip) if !ip.is_unique_local() => 1,
            IpAddr::V4(ip) if !ip.is_private() => 2,
            IpAddr::V4(_) | IpAddr::V6(_) => 3,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn surroundings() -> Surroundings {
        let mut surroundings = Surroundings {
            overlay: vec![
                "10.77.0.0/16".parse().unwrap(),
                "fdab::/48".parse().unwrap(),
            ],
            ..Surroundings::default()
        };
        surroundings.set_local(&endpoints(&["192.168.1.4:1", "[2001:db8:1::4]:1"]));
        surroundings
    }

    #[test]
    fn the_best_come_first() {
        let found = surroundings().candidates(
            Some("203.0.113.9:7".parse().unwrap()),
            &endpoints(&[
                "172.16.0.1:5",
                "203.0.113.1:5",
                "[2001:db8:2::1]:5",
                "[::ffff:192.168.1.9]:5",
                "203.0.113.9:7",
            ]),
        );
        let expected = [
            "203.0.113.9:7",
            "192.168.1.9:5",
            "[2001:db8:2::1]:5",
            "203.0.113.1:5",
            "172.16.0.1:5",
        ];
        assert_eq!(found, endpoints(&expected));
    }

    #[test]
    fn a_peer_cannot_send_us_astray() {
        let bad = [
            "127.0.0.1:5",
            "0.0.0.0:5",
            "255.255.255.255:5",
            "224.0.0.1:5",
            "10.77.3.4:5",
            "192.168.1.9:0",
            "[::1]:5",
            "[fe80::1]:5",
            "[ff02::1]:5",
            "[fdab::9]:5",
            "[::ffff:127.0.0.1]:5",
        ];
        assert_eq!(surroundings().candidates(None, &endpoints(&bad)), []);
    }

    #[test]
    fn there_are_never_too_many() {
        let many: Vec<SocketAddr> = (1..200u16)
            .map(|port| SocketAddr::new("203.0.113.1".parse().unwrap(), port))
            .collect();
        assert_eq!(
            surroundings().candidates(None, &many).len(),
            N_CANDIDATES_MAX
        );
    }
}
