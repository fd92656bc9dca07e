//! What the parts of the daemon read in common: an immutable snapshot of the mesh, replaced on each change.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

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
            IpAddr::V4(ip) => self.netmap.peers.iter().find(|(_, peer)| peer.ipv4 == ip),
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

/// How long a host stays out of use after a connection to it failed, unless it is proven well before.
const DOWN_FOR: Duration = Duration::from_secs(5);

/// Hosts that this node found unreachable by itself, sooner than the coordinator can know.
#[derive(Debug, Default)]
pub struct Liveness {
    down_until: Mutex<BTreeMap<NodeId, Instant>>,
}

impl Liveness {
    /// A connection to the host failed.
    pub fn mark_down(&self, node: NodeId, now: Instant) {
        let mut down = self
            .down_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        down.retain(|_, until| *until > now);
        down.insert(node, now + DOWN_FOR);
    }

    /// The host answered.
    pub fn mark_up(&self, node: &NodeId) {
        self.down_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(node);
    }

    /// Whether the host is out of use.
    #[must_use]
    pub fn is_down(&self, node: &NodeId, now: Instant) -> bool {
        self.down_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(node)
            .is_some_and(|until| *until > now)
    }
}
