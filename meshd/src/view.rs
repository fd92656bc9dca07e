//! What the parts of the daemon read in common: an immutable snapshot of the mesh, replaced on each change.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use mesh_proto::id::NodeId;
use mesh_proto::local::Settings;
use mesh_proto::netmap::{Netmap, PeerEntry, Revision};
use mesh_proto::share::HostOffers;
use tokio::sync::watch;

/// The current view; `None` until a first map is known and after a logout.
pub type ViewReceiver = watch::Receiver<Option<Arc<View>>>;

/// One snapshot of everything that names, gateway and status are made from.
#[derive(Debug, Clone)]
pub struct View {
    /// Where the map stands.
    pub revision: Revision,
    /// The verified map. Expired peers are not in it.
    pub netmap: Arc<Netmap>,
    /// What this node shares itself, as last told to the coordinator.
    pub own_offers: Arc<HostOffers>,
    /// The settings of `meshctl set`.
    pub settings: Settings,
    by_ipv4: Arc<ByIpv4>,
}

/// Which peer has which IPv4 overlay address; an IPv6 one holds the peer's id itself.
#[derive(Debug, Default)]
pub struct ByIpv4(BTreeMap<Ipv4Addr, NodeId>);

impl ByIpv4 {
    /// Reads the addresses of a map. Should two peers have one, the first by id has it.
    #[must_use]
    pub fn of(netmap: &Netmap) -> Self {
        let mut by_ipv4 = BTreeMap::new();
        for (id, peer) in &netmap.peers {
            by_ipv4.entry(peer.ipv4).or_insert(*id);
        }
        Self(by_ipv4)
    }
}

/// Who is behind an overlay address.
#[derive(Debug, Clone, Copy)]
pub enum Caller<'a> {
    /// This machine itself.
    Own,
    /// A peer; the tunnel proved the address.
    Peer(NodeId, &'a PeerEntry),
}

impl View {
    /// Puts a snapshot together. `by_ipv4` is of this very map; it is given, as many snapshots are of one map.
    #[must_use]
    pub fn new(
        revision: Revision,
        netmap: Arc<Netmap>,
        by_ipv4: Arc<ByIpv4>,
        own_offers: Arc<HostOffers>,
        settings: Settings,
    ) -> Self {
        Self {
            revision,
            netmap,
            own_offers,
            settings,
            by_ipv4,
        }
    }

    /// The same with other offers of this node.
    #[must_use]
    pub fn with_own_offers(&self, own_offers: Arc<HostOffers>) -> Self {
        Self {
            own_offers,
            ..self.clone()
        }
    }

    /// This node's overlay addresses.
    #[must_use]
    pub fn own_addrs(&self) -> (Ipv4Addr, Ipv6Addr) {
        (self.netmap.node.ipv4, self.netmap.node.ipv6)
    }

    /// The service addresses.
    #[must_use]
    pub fn service_addrs(&self) -> (Ipv4Addr, Ipv6Addr) {
        (
            self.netmap.network.service_ipv4,
            self.netmap.network.service_ipv6,
        )
    }

    /// Who has an overlay address. The service addresses stand for this machine: its own programs come from them.
    #[must_use]
    pub fn caller(&self, ip: IpAddr) -> Option<Caller<'_>> {
        let (own4, own6) = self.own_addrs();
        let (service4, service6) = self.service_addrs();
        if [
            IpAddr::V4(own4),
            IpAddr::V6(own6),
            IpAddr::V4(service4),
            IpAddr::V6(service6),
        ]
        .contains(&ip)
        {
            return Some(Caller::Own);
        }
        let found = match ip {
            IpAddr::V4(ip) => {
                let id = self.by_ipv4.0.get(&ip);
                id.and_then(|id| self.netmap.peers.get_key_value(id))
            }
            IpAddr::V6(ip) => {
                let mut id = [0; 10];
                id.copy_from_slice(&ip.octets()[6..]);
                self.netmap
                    .peers
                    .get_key_value(&NodeId::from_bytes(id))
                    .filter(|(_, peer)| peer.ipv6 == ip)
            }
        };
        found.map(|(id, peer)| Caller::Peer(*id, peer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::fixture::{peer, view_of};

    #[test]
    fn every_caller_is_known_by_each_of_its_addresses_and_nobody_else_is() {
        let peers = (1..=200).filter(|n| *n != 9).map(|n| {
            let (id, mut entry) = peer(n, &format!("peer{n}"), HostOffers::default());
            entry.ipv4 = Ipv4Addr::new(10, 77, 9, n);
            (id, entry)
        });
        let view = view_of(HostOffers::default(), peers.collect());
        for (id, entry) in &view.netmap.peers {
            for ip in [IpAddr::V4(entry.ipv4), IpAddr::V6(entry.ipv6)] {
                let caller = view.caller(ip);
                let is_right = matches!(caller, Some(Caller::Peer(found, with)) if found == *id && with == entry);
                assert!(is_right, "{ip}: {caller:?}");
            }
        }
        let (own4, own6) = view.own_addrs();
        let (service4, service6) = view.service_addrs();
        for ip in [own4.into(), own6.into(), service4.into(), service6.into()] {
            assert!(matches!(view.caller(ip), Some(Caller::Own)), "{ip}");
        }
        for ip in ["10.77.9.201", "10.77.8.1", "192.0.2.1", "2001:db8::1"] {
            assert!(view.caller(ip.parse().unwrap()).is_none(), "{ip}");
        }
    }
}
