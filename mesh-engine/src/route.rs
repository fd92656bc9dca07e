//! Cryptokey routing: which peer an overlay address belongs to, by the longest of the allowed IPs that hold it.

use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use ipnet::IpNet;

use crate::peer::PeerHandle;
use crate::shard::ShardMap;

/// Host routes, which is all that peers have today, are looked up exactly; shorter prefixes come after them.
#[derive(Debug)]
pub(crate) struct Routes {
    ipv4: ShardMap<std::net::Ipv4Addr, PeerHandle>,
    ipv6: ShardMap<std::net::Ipv6Addr, PeerHandle>,
    /// Longest first.
    prefixes: ArcSwap<Vec<(IpNet, PeerHandle)>>,
}

impl Routes {
    pub(crate) fn new() -> Self {
        Self {
            ipv4: ShardMap::new(),
            ipv6: ShardMap::new(),
            prefixes: ArcSwap::default(),
        }
    }

    /// The peer that the address belongs to; lock-free.
    pub(crate) fn lookup(&self, ip: IpAddr) -> Option<PeerHandle> {
        let exact = match ip {
            IpAddr::V4(ip) => self.ipv4.get(&ip),
            IpAddr::V6(ip) => self.ipv6.get(&ip),
        };
        exact.or_else(|| {
            let prefixes = self.prefixes.load();
            let found = prefixes.iter().find(|(net, _)| net.contains(&ip));
            found.map(|(_, peer)| peer.clone())
        })
    }

    /// Gives allowed IPs to a peer. There must be only one writer.
    pub(crate) fn insert(&self, net: IpNet, peer: &PeerHandle) {
        match net {
            IpNet::V4(net) if net.prefix_len() == 32 => self.ipv4.insert(net.addr(), peer.clone()),
            IpNet::V6(net) if net.prefix_len() == 128 => self.ipv6.insert(net.addr(), peer.clone()),
            IpNet::V4(_) | IpNet::V6(_) => self.edit(|prefixes| {
                prefixes.retain(|(other, _)| *other != net.trunc());
                prefixes.push((net.trunc(), peer.clone()));
                prefixes.sort_by_key(|(net, _)| std::cmp::Reverse(net.prefix_len()));
            }),
        }
    }

    /// Takes allowed IPs away, if they are still this peer's. There must be only one writer.
    pub(crate) fn remove(&self, net: IpNet, peer: &PeerHandle) {
        match net {
            IpNet::V4(net) if net.prefix_len() == 32 => {
                if self.ipv4.get(&net.addr()).as_ref() == Some(peer) {
                    self.ipv4.remove(&net.addr());
                }
            }
            IpNet::V6(net) if net.prefix_len() == 128 => {
                if self.ipv6.get(&net.addr()).as_ref() == Some(peer) {
                    self.ipv6.remove(&net.addr());
                }
            }
            IpNet::V4(_) | IpNet::V6(_) => {
                self.edit(|prefixes| {
                    prefixes.retain(|(other, owner)| *other != net.trunc() || owner != peer);
                });
            }
        }
    }

    fn edit(&self, change: impl FnOnce(&mut Vec<(IpNet, PeerHandle)>)) {
        let mut prefixes = Vec::clone(&self.prefixes.load());
        change(&mut prefixes);
        self.prefixes.store(Arc::new(prefixes));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use mesh_proto::id::NodeId;
    use mesh_proto::key::NodeKey;
    use proptest::prelude::*;

    use super::*;
    use crate::filter::Rules;
    use crate::peer::Identity;
    use crate::plane::Shared;

    fn peers<const N: usize>() -> [PeerHandle; N] {
        let shared = Arc::new(Shared::new(Instant::now()));
        std::array::from_fn(|n| {
            let n = u8::try_from(n).unwrap();
            let identity = Identity {
                node: NodeId::from_bytes([n; 10]),
                node_key: NodeKey::from_bytes([n; 32]),
                ipv4: [10, 0, 0, n].into(),
                ipv6: u128::from(n).into(),
                wins_ties: false,
            };
            PeerHandle::new(Arc::clone(&shared), identity, Arc::new(Rules::default()))
        })
    }

    #[test]
    fn a_prefix_inside_anothers_is_its_own_peers() {
        let routes = Routes::new();
        let [wide, inner, host] = &peers();
        let nets = [
            ("10.0.0.0/8", wide),
            ("10.1.0.0/16", inner),
            ("10.1.2.3/32", host),
            ("fd00::/8", wide),
            ("fd00:1::/32", inner),
            ("fd00:1::9/128", host),
        ];
        for order in [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [1, 0, 2, 4, 3, 5]] {
            for (net, peer) in order.map(|n| nets[n]) {
                routes.insert(net.parse().unwrap(), peer);
            }
            let owner = |ip: &str| routes.lookup(ip.parse().unwrap());
            for (ip, expected) in [
                ("10.2.0.1", Some(wide)),
                ("10.1.2.4", Some(inner)),
                ("10.1.2.3", Some(host)),
                ("11.0.0.1", None),
                ("fd99::1", Some(wide)),
                ("fd00:1::8", Some(inner)),
                ("fd00:1::9", Some(host)),
                ("fe00::1", None),
            ] {
                assert_eq!(owner(ip).as_ref(), expected, "{ip}");
            }
            // Only the owner can give a prefix back, and then the next longer one counts.
            routes.remove("10.1.2.3/32".parse().unwrap(), wide);
            assert_eq!(owner("10.1.2.3").as_ref(), Some(host));
            routes.remove("10.1.2.3/32".parse().unwrap(), host);
            assert_eq!(owner("10.1.2.3").as_ref(), Some(inner));
            routes.remove("10.1.0.0/16".parse().unwrap(), wide);
            assert_eq!(owner("10.1.2.3").as_ref(), Some(inner));
            routes.remove("10.1.0.0/16".parse().unwrap(), inner);
            assert_eq!(owner("10.1.2.3").as_ref(), Some(wide));
        }
    }

    proptest! {
        #[test]
        fn the_longest_prefix_wins_whatever_the_order(
            nets in proptest::collection::vec((0..8u32, 0..=32u8, 0..4usize), 1..40),
            ips in proptest::collection::vec(any::<u32>(), 20),
        ) {
            let (routes, peers) = (Routes::new(), peers::<4>());
            let mut model: Vec<(ipnet::Ipv4Net, usize)> = vec![];
            for (high, len, peer_idx) in nets {
                // Few different addresses, so that prefixes lie inside each other.
                let ip = (high << 29 | high << 3).into();
                let net = ipnet::Ipv4Net::new(ip, len).unwrap().trunc();
                model.retain(|(other, _)| *other != net);
                model.push((net, peer_idx));
                routes.insert(net.into(), &peers[peer_idx]);
            }
            let near = model.iter().map(|(net, _)| u32::from(net.addr())).collect::<Vec<_>>();
            for ip in ips.into_iter().chain(near) {
                let holders = model.iter().filter(|(net, _)| net.contains(&std::net::Ipv4Addr::from(ip)));
                let best = holders.max_by_key(|(net, _)| net.prefix_len());
                let found = routes.lookup(IpAddr::V4(ip.into()));
                prop_assert_eq!(found.as_ref(), best.map(|(_, idx)| &peers[*idx]));
            }
        }
    }
}
