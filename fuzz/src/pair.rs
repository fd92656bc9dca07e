//! Two nodes that hold a session with each other: node 1, who attacks or is impersonated, and node 2, who is under test.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use mesh_engine::{
    Admit, ChecksumState, Destination, Engine, EngineConfig, Inbound, Opened, Outbound, PeerHandle,
    Plane, Sealed, ServicePort, ServicePorts, Transport, Update,
};
use mesh_proto::filter::{Allow, Filter, FilterRule, PortRange, Source};
use mesh_proto::id::{NetworkId, NodeId, UserId};
use mesh_proto::key::{DiscoPrivateKey, MachinePrivateKey, NodeKey, NodePrivateKey, Purpose};
use mesh_proto::netmap::{Netmap, NetworkInfo, PeerEntry, SelfNode};
use mesh_proto::share::HostOffers;

use crate::reference::Upper;

/// The STUN server of the mesh.
pub const STUN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 250)), 3478);

const NETWORK: NetworkId = NetworkId::from_bytes([0xab; 16]);
const SERVICE: (Ipv4Addr, Ipv6Addr) = (
    Ipv4Addr::new(10, 77, 0, 53),
    Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 0x53),
);

/// Where the local services are.
pub const LOCAL: [(Transport, u16, u16); 4] = [
    (Transport::Udp, 53, 40_053),
    (Transport::Tcp, 53, 40_054),
    (Transport::Tcp, 11_434, 40_434),
    (Transport::Tcp, 80, 40_080),
];

/// Where the doors are.
pub const DOOR: [(u16, u16); 2] = [(11_434, 41_434), (80, 41_080)];

/// What the path between them takes, in bytes of the overlay.
pub const PATH_MTU: u16 = 1440;

/// The addresses of a node: as on the machines where the corpus was captured.
#[must_use]
pub fn overlay(n: u8) -> (Ipv4Addr, Ipv6Addr) {
    (
        Ipv4Addr::new(10, 77, 1, n),
        Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, n.into()),
    )
}

/// The service addresses.
#[must_use]
pub const fn service() -> (Ipv4Addr, Ipv6Addr) {
    SERVICE
}

/// Whether node 2's rules let node 1 in there. They are careless about the ports that only translation may reach.
#[must_use]
pub const fn is_allowed(upper: Upper) -> bool {
    match upper {
        Upper::Tcp(port) => matches!(port, 80 | 11_434 | 1000..=1010 | 40_000..=42_000),
        Upper::Udp(port) => matches!(port, 53 | 40_000..=42_000),
        Upper::EchoRequest => true,
        Upper::EchoReply | Upper::IcmpError | Upper::Other(_) => false,
    }
}

fn filter() -> Filter {
    let tcp = |first, last| Allow::Tcp(PortRange { first, last });
    Filter {
        rules: vec![FilterRule {
            src: Source::Any,
            allow: vec![
                Allow::Ping,
                tcp(80, 80),
                tcp(11_434, 11_434),
                tcp(1000, 1010),
                tcp(40_000, 42_000),
                Allow::Udp(PortRange::one(53)),
                Allow::Udp(PortRange {
                    first: 40_000,
                    last: 42_000,
                }),
            ],
        }],
    }
}

fn machine(n: u8) -> MachinePrivateKey {
    MachinePrivateKey::from_bytes(&[n; 32])
}

fn id(n: u8) -> NodeId {
    NodeId::of(&machine(n).public())
}

fn node_key(n: u8) -> NodePrivateKey {
    NodePrivateKey::from_bytes([n; 32])
}

fn disco_key(n: u8) -> DiscoPrivateKey {
    DiscoPrivateKey::from_bytes([n + 10; 32])
}

/// Where a node is on the underlay.
#[must_use]
pub const fn endpoint(n: u8) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(203, 0, 113, n)), 1000)
}

fn peer(n: u8) -> PeerEntry {
    let node_key = node_key(n).public();
    let (ipv4, ipv6) = overlay(n);
    PeerEntry {
        name: format!("node{n}").parse().unwrap(),
        user: UserId(n.into()),
        user_name: "anna".parse().unwrap(),
        tags: vec![],
        machine_key: machine(n).public(),
        node_key,
        node_key_signature: machine(n).sign(Purpose::NodeKey, node_key.as_bytes()),
        ipv4,
        ipv6,
        endpoints: vec![endpoint(n)],
        disco_key: Some(disco_key(n).public()),
        home_relay: None,
        expires_at_ms: None,
        is_online: true,
        last_seen_ms: None,
        offers: HostOffers::default(),
    }
}

fn netmap(own: u8, other: u8) -> Netmap {
    let entry = peer(own);
    Netmap {
        network: NetworkInfo {
            id: NETWORK,
            suffix: "proxima".to_owned(),
            ipv4_pool: "10.77.0.0/16".parse().unwrap(),
            ipv6_prefix: "fd00:1::/48".parse().unwrap(),
            service_ipv4: SERVICE.0,
            service_ipv6: SERVICE.1,
            stun: vec![STUN],
            coordinator_urls: vec![],
            relays: vec![],
        },
        node: SelfNode {
            id: id(own),
            name: entry.name,
            user: entry.user,
            user_name: entry.user_name,
            tags: vec![],
            node_key: entry.node_key,
            ipv4: entry.ipv4,
            ipv6: entry.ipv6,
            expires_at_ms: None,
        },
        filter: filter(),
        peers: BTreeMap::from([(id(other), peer(other))]),
    }
}

fn services() -> ServicePorts {
    let port = |(transport, port, hidden): &(Transport, u16, u16)| ServicePort {
        transport: *transport,
        port: *port,
        hidden: *hidden,
    };
    let door = DOOR.map(|(port, hidden)| (Transport::Tcp, port, hidden));
    ServicePorts {
        local: LOCAL.iter().map(port).collect(),
        door: door.iter().map(port).collect(),
    }
}

/// The two nodes.
#[derive(Debug)]
pub struct Pair {
    /// The time at both, which stands still unless a target moves it.
    pub now: Instant,
    /// Node 1 and node 2.
    pub engines: [Engine; 2],
    /// Their planes.
    pub planes: [Arc<Plane>; 2],
    /// Node 2 as node 1 sees it, and node 1 as node 2 does.
    pub peers: [PeerHandle; 2],
    /// The messages of their handshake: initiation, response, and the first data both ways.
    pub handshake: Vec<Vec<u8>>,
}

impl Default for Pair {
    fn default() -> Self {
        Self::new()
    }
}

impl Pair {
    /// Makes them and lets them agree on keys.
    #[must_use]
    pub fn new() -> Self {
        let now = Instant::now();
        let mut engines = [(1, 2), (2, 1)].map(|(own, other)| {
            let config = EngineConfig {
                node_key: node_key(own),
                node_id: id(own),
                disco_key: disco_key(own),
                seed: [own; 32],
                stamps_from_ns: 1_800_000_000_000_000_000,
            };
            let mut engine = Engine::new(now, config);
            let netmap = Arc::new(netmap(own, other));
            engine.handle_control(now, Update::Netmap { netmap, unix_ms: 1 });
            engine.handle_control(now, Update::Services(services()));
            engine
        });
        let planes = engines.each_ref().map(Engine::plane);
        // Closed ports, so that nothing is noted in the flow tables that lets answers in.
        let peers = [0, 1].map(|idx| {
            let (own, other) = if idx == 0 { (1, 2) } else { (2, 1) };
            let mut packet = icmp_reply(overlay(own).0, overlay(other).0);
            let plane: &Plane = &planes[idx];
            let Outbound::Peer(peer) = plane.outbound(now, &mut packet, ChecksumState::Complete)
            else {
                panic!("there is a peer");
            };
            peer
        });
        let first = engines[0].ping(now, &id(2));
        assert!(first.is_some(), "there is a peer");
        let mut pair = Self {
            now,
            engines,
            planes,
            peers,
            handshake: vec![],
        };
        pair.carry();
        pair
    }

    /// Carries what the engines say until they are silent, and keeps it.
    fn carry(&mut self) {
        loop {
            let sent = (0..2).find_map(|idx| Some((idx, self.engines[idx].poll_transmit()?)));
            let Some((idx, transmit)) = sent else { return };
            if transmit.dst == Destination::Udp(STUN) {
                continue;
            }
            let (to, from) = (1 - idx, endpoint([1, 2][idx]));
            self.handshake.push(transmit.bytes.clone());
            match self.planes[to].inbound(self.now, &transmit.bytes) {
                Inbound::Control => self.engines[to].handle_udp(self.now, from, &transmit.bytes),
                Inbound::Data(peer) => {
                    let mut opener = peer.open();
                    opener.open(from, &transmit.bytes, &mut vec![0; transmit.bytes.len()]);
                    if let Some(event) = opener.finish() {
                        self.engines[to].handle_plane(self.now, event);
                    }
                }
                Inbound::Drop(reason) => panic!("dropped for {reason:?}"),
            }
        }
    }

    /// The key of a node, which every node of the mesh knows.
    #[must_use]
    pub fn key(n: u8) -> NodeKey {
        node_key(n).public()
    }

    /// Seals any bytes as node 1 would a packet for node 2.
    #[must_use]
    pub fn seal(&self, content: &[u8]) -> Vec<u8> {
        let mut out = vec![0; (content.len() + mesh_engine::SEAL_OVERHEAD).max(200)];
        match self.peers[0].seal().seal(content, &mut out) {
            Sealed::Datagram(len) => out.truncate(len),
            other @ (Sealed::Queued | Sealed::Dropped(_)) => panic!("not sealed: {other:?}"),
        }
        out
    }

    /// Opens a datagram at node 2 as its packet threads do: only what names a session gets so far.
    #[must_use]
    pub fn open(&self, datagram: &[u8], out: &mut [u8]) -> Option<Opened> {
        match self.planes[1].inbound(self.now, datagram) {
            Inbound::Data(peer) => Some(peer.open().open(endpoint(1), datagram, out)),
            Inbound::Control | Inbound::Drop(_) => None,
        }
    }

    /// Lets node 2 judge a packet that node 1 sent.
    pub fn admit(&self, packet: &mut [u8]) -> Admit {
        self.planes[1].admit(self.now, &self.peers[1], packet)
    }
}

/// An ICMP echo reply, which no filter remembers.
fn icmp_reply(src: Ipv4Addr, dst: Ipv4Addr) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, 1, 0, 0];
    packet.extend(src.octets());
    packet.extend(dst.octets());
    packet.extend([0; 8]);
    packet
}
