//! Engines on one virtual clock and one network, with a kernel of sorts behind each.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_engine::{
    Admit, ChecksumState, Engine, EngineConfig, Event, Inbound, Opened, Outbound, Plane,
    PlaneEvent, Sealed, Update,
};
use mesh_proto::filter::{Allow, Filter, FilterRule, PortRange, Source};
use mesh_proto::id::{NodeId, Tag, UserId};
use mesh_proto::key::{
    CoordinatorPrivateKey, DiscoPrivateKey, MachinePrivateKey, NodePrivateKey, Purpose,
};
use mesh_proto::netmap::{Netmap, NetworkInfo, PeerEntry, SelfNode};
use mesh_proto::share::HostOffers;

use crate::ip;
use crate::net::{InFlight, Net};

pub(crate) struct Node {
    pub(crate) n: u8,
    pub(crate) id: NodeId,
    pub(crate) machine_key: MachinePrivateKey,
    pub(crate) node_key: NodePrivateKey,
    pub(crate) user: UserId,
    pub(crate) tags: Vec<Tag>,
    pub(crate) ipv4: Ipv4Addr,
    pub(crate) ipv6: Ipv6Addr,
    pub(crate) engine: Engine,
    pub(crate) plane: Arc<Plane>,
    /// Where it is on the underlay.
    pub(crate) endpoints: Vec<SocketAddr>,
    /// Where the netmap says that it is, if not there.
    pub(crate) told_endpoints: Option<Vec<SocketAddr>>,
    pub(crate) events: Vec<Event>,
    /// What came out of the TUN.
    pub(crate) received: Vec<Vec<u8>>,
    pub(crate) filter: Filter,
    pub(crate) n_plane_events: usize,
    /// Drops what the plane has to say to the engine.
    pub(crate) is_plane_mute: bool,
}

pub(crate) struct World {
    pub(crate) start: Instant,
    pub(crate) now: Duration,
    pub(crate) unix_ms: u64,
    pub(crate) net: Net,
    pub(crate) nodes: Vec<Node>,
    pub(crate) network: NetworkInfo,
    /// Time, destination, length and first byte of each datagram; and each event.
    pub(crate) trace: Vec<String>,
}

pub(crate) fn default_filter(user: UserId) -> Filter {
    let rule = |src, allow| FilterRule { src, allow };
    Filter {
        rules: vec![
            rule(Source::User(user), vec![Allow::All]),
            rule(Source::Any, vec![Allow::Ping]),
            rule(
                Source::Any,
                vec![
                    Allow::Tcp(PortRange::one(11434)),
                    Allow::Tcp(PortRange::one(80)),
                ],
            ),
        ],
    }
}

fn network() -> NetworkInfo {
    let key = CoordinatorPrivateKey::from_bytes(&[9; 32]).public();
    let id = mesh_proto::id::NetworkId::of(&key);
    NetworkInfo {
        id,
        suffix: "proxima".to_owned(),
        ipv4_pool: "10.77.0.0/16".parse().unwrap(),
        ipv6_prefix: id.ipv6_prefix(),
        service_ipv4: Ipv4Addr::new(10, 77, 0, 53),
        service_ipv6: id.service_ipv6(),
        stun: vec![],
        coordinator_urls: vec![],
        relays: vec![],
    }
}

impl World {
    /// Nodes of one user each, all on the segment 203.0.113.0/24.
    pub(crate) fn new(n_nodes: u8, seed: u64) -> Self {
        let mut world = Self {
            start: Instant::now(),
            now: Duration::ZERO,
            unix_ms: 1_800_000_000_000,
            net: Net::new(seed),
            nodes: vec![],
            network: network(),
            trace: vec![],
        };
        for n in 1..=n_nodes {
            let machine_key = MachinePrivateKey::from_bytes(&[n; 32]);
            let id = NodeId::of(&machine_key.public());
            let node_key = NodePrivateKey::from_bytes([n; 32]);
            let mut key = [n; 32];
            key[..8].copy_from_slice(&seed.to_le_bytes());
            let engine = Engine::new(
                world.start,
                EngineConfig {
                    node_key: node_key.clone(),
                    node_id: id,
                    disco_key: DiscoPrivateKey::from_bytes([n; 32]),
                    seed: key,
                    stamps_from_ns: 1_800_000_000_000_000_000,
                },
            );
            let user = UserId(i64::from(n));
            world.nodes.push(Node {
                n,
                id,
                machine_key,
                node_key,
                user,
                tags: vec![],
                ipv4: Ipv4Addr::new(10, 77, 1, n),
                ipv6: world.network.id.ipv6_of(&id),
                plane: engine.plane(),
                engine,
                endpoints: vec![SocketAddr::new(
                    [203, 0, 113, n].into(),
                    1000 + u16::from(n),
                )],
                told_endpoints: None,
                events: vec![],
                received: vec![],
                filter: default_filter(user),
                n_plane_events: 0,
                is_plane_mute: false,
            });
        }
        world
    }

    pub(crate) fn instant(&self) -> Instant {
        self.start + self.now
    }

    pub(crate) fn netmap_of(&self, idx: usize) -> Netmap {
        let own = &self.nodes[idx];
        let peers = self.nodes.iter().filter(|node| node.id != own.id);
        let peers: BTreeMap<NodeId, PeerEntry> = peers
            .map(|node| {
                let node_key = node.node_key.public();
                let entry = PeerEntry {
                    name: format!("node{}", node.n).parse().unwrap(),
                    user: node.user,
                    user_name: format!("user{}", node.user.0).parse().unwrap(),
                    tags: node.tags.clone(),
                    machine_key: node.machine_key.public(),
                    node_key,
                    node_key_signature: node
                        .machine_key
                        .sign(Purpose::NodeKey, node_key.as_bytes()),
                    ipv4: node.ipv4,
                    ipv6: node.ipv6,
                    endpoints: node
                        .told_endpoints
                        .clone()
                        .unwrap_or_else(|| node.endpoints.clone()),
                    disco_key: None,
                    home_relay: None,
                    expires_at_ms: None,
                    is_online: true,
                    last_seen_ms: None,
                    offers: HostOffers::default(),
                };
                (node.id, entry)
            })
            .collect();
        Netmap {
            network: self.network.clone(),
            node: SelfNode {
                id: own.id,
                name: format!("node{}", own.n).parse().unwrap(),
                user: own.user,
                user_name: format!("user{}", own.user.0).parse().unwrap(),
                tags: own.tags.clone(),
                node_key: own.node_key.public(),
                ipv4: own.ipv4,
                ipv6: own.ipv6,
                expires_at_ms: None,
            },
            filter: own.filter.clone(),
            peers,
        }
    }

    pub(crate) fn control(&mut self, idx: usize, update: Update) {
        let now = self.instant();
        self.nodes[idx].engine.handle_control(now, update);
        self.drain(idx);
    }

    pub(crate) fn set_netmap(&mut self, idx: usize, netmap: Netmap) {
        let unix_ms = self.unix_ms + u64::try_from(self.now.as_millis()).unwrap();
        let netmap = Arc::new(netmap);
        self.control(idx, Update::Netmap { netmap, unix_ms });
    }

    /// Tells every node where it is and who is there.
    pub(crate) fn tell_all(&mut self) {
        for idx in 0..self.nodes.len() {
            let endpoints = self.nodes[idx].endpoints.clone();
            self.control(idx, Update::LocalEndpoints(endpoints));
            self.set_netmap(idx, self.netmap_of(idx));
        }
    }

    /// Takes all that an engine wants to say.
    pub(crate) fn drain(&mut self, idx: usize) {
        while let Some(transmit) = self.nodes[idx].engine.poll_transmit() {
            if let Some(dst) = transmit.dst.endpoint() {
                self.transmit(idx, dst, transmit.bytes);
            }
        }
        while let Some(event) = self.nodes[idx].engine.poll_event() {
            self.trace.push(format!("{:?} {idx} {event:?}", self.now));
            self.nodes[idx].events.push(event);
        }
    }

    pub(crate) fn transmit(&mut self, idx: usize, dst: SocketAddr, bytes: Vec<u8>) {
        self.trace.push(format!(
            "{:?} {idx} -> {dst} {} {}",
            self.now,
            bytes[0],
            bytes.len()
        ));
        let Some(from) = Net::source(&self.nodes[idx].endpoints, dst) else {
            return;
        };
        self.net.send(self.now, InFlight { from, dst, bytes });
    }

    /// A packet from a node's programs.
    pub(crate) fn send(&mut self, idx: usize, packet: &[u8]) -> Option<Outbound> {
        let now = self.instant();
        let node = &mut self.nodes[idx];
        let mut packet = packet.to_vec();
        match node
            .plane
            .outbound(now, &mut packet, ChecksumState::Complete)
        {
            Outbound::Peer(peer) => {
                let mut out = vec![0xaa; packet.len() + 200];
                let mut sealer = peer.seal();
                let sealed = sealer.seal(&packet, &mut out);
                let event = sealer.finish();
                if let (Sealed::Datagram(len), Some(dst)) = (sealed, peer.endpoint()) {
                    out.truncate(len);
                    self.transmit(idx, dst, out);
                }
                self.plane_event(idx, event);
                None
            }
            Outbound::Reflect => {
                node.received.push(packet);
                None
            }
            other => Some(other),
        }
    }

    fn plane_event(&mut self, idx: usize, event: Option<PlaneEvent>) {
        let now = self.instant();
        let Some(event) = event else { return };
        self.nodes[idx].n_plane_events += 1;
        if self.nodes[idx].is_plane_mute {
            return;
        }
        self.nodes[idx].engine.handle_plane(now, event);
        self.drain(idx);
    }

    /// A datagram reaches a node.
    pub(crate) fn receive(&mut self, idx: usize, from: SocketAddr, datagram: &[u8]) {
        let now = self.instant();
        let node = &mut self.nodes[idx];
        let plane = Arc::clone(&node.plane);
        match plane.inbound(now, datagram) {
            Inbound::Data(peer) => {
                let mut out = vec![0; datagram.len()];
                let mut opener = peer.open();
                let opened = opener.open(from, datagram, &mut out);
                let event = opener.finish();
                self.plane_event(idx, event);
                if let Opened::Packet(len) = opened {
                    match plane.admit(now, &peer, &mut out[..len]) {
                        Admit::Deliver => {
                            let packet = out[..len].to_vec();
                            self.nodes[idx].received.push(packet.clone());
                            self.kernel(idx, &packet);
                        }
                        Admit::Consumed(event) => self.plane_event(idx, Some(event)),
                        Admit::Drop(_) => {}
                    }
                }
            }
            Inbound::Control => {
                node.engine.handle_udp(now, from, datagram);
                self.drain(idx);
            }
            Inbound::Drop(_) => {}
        }
    }

    /// Answers echo requests.
    fn kernel(&mut self, idx: usize, packet: &[u8]) {
        let parts = ip::parts(packet);
        let is_echo = matches!((parts.protocol, parts.segment[0]), (1, 8) | (58, 128));
        if is_echo {
            let ident = u16::from_be_bytes([parts.segment[4], parts.segment[5]]);
            let mut reply = ip::echo(parts.dst, parts.src, false, ident, &parts.segment[8..]);
            let at = reply.len() - parts.segment.len();
            // The sequence number is the asker's, and so the sum follows.
            reply[at + 4..].copy_from_slice(&parts.segment[4..]);
            reply[at + 2..at + 4].fill(0);
            let check = !ip::fold(ip::sum(0, &reply[at..]));
            reply[at + 2..at + 4].copy_from_slice(&check.to_be_bytes());
            self.send(idx, &reply);
        }
    }

    /// Moves the clock on and lets happen what is due.
    pub(crate) fn run(&mut self, span: Duration) {
        let end = self.now + span;
        loop {
            let start = self.start;
            let timers = self.nodes.iter().enumerate().filter_map(|(idx, node)| {
                let (at, _) = node.engine.poll_timeout()?;
                Some((at.saturating_duration_since(start), idx))
            });
            let timer = timers.min();
            let next_net = self.net.next_at();
            let next = timer.map(|(at, _)| at).into_iter().chain(next_net).min();
            let Some(at) = next.filter(|at| *at <= end) else {
                break;
            };
            self.now = self.now.max(at);
            if next_net == Some(at) {
                let Some(datagram) = self.net.receive(self.now) else {
                    continue;
                };
                let owner = self
                    .nodes
                    .iter()
                    .position(|node| node.endpoints.contains(&datagram.dst));
                if let Some(idx) = owner {
                    self.receive(idx, datagram.from, &datagram.bytes);
                }
            } else if let Some((_, idx)) = timer {
                let now = self.instant();
                self.nodes[idx].engine.handle_timeout(now);
                self.drain(idx);
            }
        }
        self.now = end;
    }

    pub(crate) fn udp(&self, from: usize, to: usize, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
        let (from, to) = (&self.nodes[from], &self.nodes[to]);
        ip::transport(
            ip::UDP,
            (IpAddr::V4(from.ipv4), ports.0),
            (IpAddr::V4(to.ipv4), ports.1),
            payload,
        )
    }

    pub(crate) fn tcp6(
        &self,
        from: usize,
        to: usize,
        ports: (u16, u16),
        payload: &[u8],
    ) -> Vec<u8> {
        let (from, to) = (&self.nodes[from], &self.nodes[to]);
        ip::transport(
            ip::TCP,
            (IpAddr::V6(from.ipv6), ports.0),
            (IpAddr::V6(to.ipv6), ports.1),
            payload,
        )
    }

    pub(crate) fn n_received(&self, idx: usize) -> usize {
        self.nodes[idx].received.len()
    }

    pub(crate) fn endpoint(&self, idx: usize, of: usize) -> Option<SocketAddr> {
        let stats = self.nodes[idx].engine.peer_stats(self.instant());
        let id = self.nodes[of].id;
        stats
            .into_iter()
            .find(|stats| stats.node == id)
            .and_then(|stats| stats.path)
            .and_then(|path| path.endpoint())
    }

    pub(crate) fn has_event(&self, idx: usize, wanted: impl Fn(&Event) -> bool) -> bool {
        self.nodes[idx].events.iter().any(wanted)
    }
}
