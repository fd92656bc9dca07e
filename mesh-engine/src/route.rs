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
