//! N engines on one clock, with what stands around them: daemons, relays, a coordinator, NATs and links.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_engine::{
    Admit, ChecksumState, Destination, Engine, EngineConfig, Event, Inbound, Opened, Outbound,
    Plane, PlaneEvent, Sealed, Update,
};
use mesh_proto::filter::{Allow, Filter, FilterRule, Source};
use mesh_proto::id::{NetworkId, NodeId, RelayId, UserId};
use mesh_proto::key::{
    CoordinatorPrivateKey, DiscoKey, DiscoPrivateKey, MachinePrivateKey, NodeKey, NodePrivateKey,
    Purpose,
};
use mesh_proto::netmap::{Netmap, NetworkInfo, PeerEntry, SelfNode};
use mesh_proto::relay::{Pin, RelayEntry};
use mesh_proto::share::HostOffers;
use mesh_proto::stun::{binding_success, parse_request};

use crate::ip;
use crate::random::Random;
use crate::underlay::{Owner, Underlay};

/// The UDP socket of each node.
const PORT: u16 = 41_820;
/// The first of its spare sockets.
const SPARE_PORT: u16 = 50_000;
/// How many of those it has.
const N_SPARES: u16 = 256;
/// The port that answers what it is sent.
const ECHO_PORT: u16 = 7;
/// How long the coordinator takes to pass news on.
const NEWS_TAKE: Duration = Duration::from_millis(20);
/// A daemon dials a relay anew after this.
const REDIAL: Duration = Duration::from_millis(500);

#[derive(Debug)]
enum Happening {
    Datagram {
        to: usize,
        from: SocketAddr,
        dst: SocketAddr,
        bytes: Vec<u8>,
    },
    Frame {
        relay: usize,
        from: usize,
        to: usize,
        bytes: Vec<u8>,
    },
    Dialled {
        node: usize,
        relay: usize,
        /// A run of the relay that has ended answers nobody.
        run: u32,
    },
    LinkLost {
        node: usize,
        relay: usize,
    },
    News {
        from: usize,
    },
}

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) id: NodeId,
    machine_key: MachinePrivateKey,
    node_key: NodePrivateKey,
    disco_key: DiscoPrivateKey,
    ipv4: Ipv4Addr,
    pub(crate) engine: Engine,
    plane: Arc<Plane>,
    pub(crate) realm: usize,
    pub(crate) endpoints: Vec<SocketAddr>,
    /// One way, to the middle of everything.
    pub(crate) delay: Duration,
    /// Nothing by UDP leaves or reaches it.
    pub(crate) is_udp_blocked: bool,
    pub(crate) is_suspended: bool,
    reflexive: Vec<SocketAddr>,
    home: Option<RelayId>,
    links: BTreeSet<usize>,
    dialling: BTreeSet<usize>,
    /// What the coordinator knows of it.
    told: Told,
    /// Payloads of overlay packets that came out of the TUN: when, and the first eight bytes.
    pub(crate) received: Vec<(Duration, u64)>,
    pub(crate) n_errors: usize,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Told {
    endpoints: Vec<SocketAddr>,
    home: Option<RelayId>,
    disco_key: Option<DiscoKey>,
    /// Its map stream ended.
    is_away: bool,
}

#[derive(Debug)]
pub(crate) struct Relay {
    pub(crate) entry: RelayEntry,
    pub(crate) delay: Duration,
    pub(crate) is_up: bool,
    run: u32,
    pub(crate) n_frames: u64,
}

#[derive(Debug)]
pub(crate) struct Lab {
    start: Instant,
    pub(crate) now: Duration,
    pub(crate) unix_ms: u64,
    pub(crate) underlay: Underlay,
    pub(crate) nodes: Vec<Node>,
    pub(crate) relays: Vec<Relay>,
    pub(crate) is_coordinator_up: bool,
    /// Pairs of nodes between which no datagram passes, in either direction.
    pub(crate) cut: BTreeSet<(usize, usize)>,
    /// The longest datagram that the underlay passes, with its headers; nobody is told of others.
    pub(crate) link_mtu: usize,
    happenings: BTreeMap<(Duration, u64), Happening>,
    n_happenings: u64,
    trace: DefaultHasher,
    pub(crate) n_datagrams: u64,
    /// Frames for a key that no node has.
    pub(crate) n_astray: u64,
    seed: Random,
}

fn network_id() -> NetworkId {
    NetworkId::of(&CoordinatorPrivateKey::from_bytes(&[9; 32]).public())
}

impl Lab {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        Self {
            start: Instant::now(),
            now: Duration::ZERO,
            unix_ms: 1_800_000_000_000,
            underlay: Underlay::new(random.next()),
            nodes: vec![],
            relays: vec![],
            is_coordinator_up: true,
            cut: BTreeSet::new(),
            link_mtu: 1500,
            happenings: BTreeMap::new(),
            n_happenings: 0,
            trace: DefaultHasher::new(),
            n_datagrams: 0,
            n_astray: 0,
            seed: random,
        }
    }

    /// A relay at 198.51.100.n with two STUN ports.
    pub(crate) fn add_relay(&mut self, delay: Duration) -> usize {
        let idx = self.relays.len();
        let n = u8::try_from(idx + 1).unwrap();
        let ip = IpAddr::from([198, 51, 100, n]);
        let pin = Pin::from_bytes([n; 32]);
        let url = format!("https://{ip}");
        self.underlay
            .own(crate::underlay::INTERNET, ip, Owner::Relay(idx));
        self.relays.push(Relay {
            entry: RelayEntry {
                id: RelayId::of(pin.as_bytes(), &url),
                name: String::new(),
                urls: vec![url],
                pin,
                udp: vec![],
                stun: vec![SocketAddr::new(ip, 3478), SocketAddr::new(ip, 3479)],
            },
            delay,
            is_up: true,
            run: 0,
            n_frames: 0,
        });
        idx
    }

    /// A node with these addresses in a realm; its engine starts with [`Self::begin`].
    pub(crate) fn add_node(&mut self, realm: usize, ips: &[IpAddr], delay: Duration) -> usize {
        let idx = self.nodes.len();
        let n = u8::try_from(idx + 1).unwrap();
        let machine_key = MachinePrivateKey::from_bytes(&[n; 32]);
        let id = NodeId::of(&machine_key.public());
        let node_key = NodePrivateKey::from_bytes([n; 32]);
        let disco_key = DiscoPrivateKey::from_bytes([n + 100; 32]);
        let endpoints: Vec<SocketAddr> = ips.iter().map(|ip| SocketAddr::new(*ip, PORT)).collect();
        for ip in ips {
            let realm = if ip.is_ipv6() {
                crate::underlay::INTERNET
            } else {
                realm
            };
            self.underlay.own(realm, *ip, Owner::Node(idx));
        }
        let engine = self.engine(node_key.clone(), id, disco_key.clone());
        self.nodes.push(Node {
            id,
            machine_key,
            node_key,
            disco_key,
            ipv4: Ipv4Addr::new(10, 77, 1, n),
            plane: engine.plane(),
            engine,
            realm,
            endpoints,
            delay,
            is_udp_blocked: false,
            is_suspended: false,
            reflexive: vec![],
            home: None,
            links: BTreeSet::new(),
            dialling: BTreeSet::new(),
            told: Told::default(),
            received: vec![],
            n_errors: 0,
        });
        idx
    }

    fn engine(
        &mut self,
        node_key: NodePrivateKey,
        node_id: NodeId,
        disco_key: DiscoPrivateKey,
    ) -> Engine {
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&self.seed.next().to_le_bytes());
        let config = EngineConfig {
            node_key,
            node_id,
            disco_key,
            seed,
            stamps_from_ns: 1_800_000_000_000_000_000 + u64::try_from(self.now.as_nanos()).unwrap(),
        };
        Engine::new(self.instant(), config)
    }

    pub(crate) fn instant(&self) -> Instant {
        self.start + self.now
    }

    /// Tells every node where it is and who is there.
    pub(crate) fn begin(&mut self) {
        for idx in 0..self.nodes.len() {
            let node = &mut self.nodes[idx];
            node.told.endpoints = node.endpoints.clone();
            node.told.disco_key = Some(node.disco_key.public());
        }
        for idx in 0..self.nodes.len() {
            let endpoints = self.nodes[idx].endpoints.clone();
            self.control(idx, Update::SpareSockets(N_SPARES));
            self.control(idx, Update::LocalEndpoints(endpoints));
            self.map(idx);
        }
    }

    /// A node's program ends and starts again with its keys and no session. The coordinator tells of both.
    pub(crate) fn restart_node(&mut self, idx: usize) {
        let node = &self.nodes[idx];
        let (node_key, id, disco_key) = (node.node_key.clone(), node.id, node.disco_key.clone());
        let engine = self.engine(node_key, id, disco_key);
        let node = &mut self.nodes[idx];
        node.plane = engine.plane();
        node.engine = engine;
        node.links.clear();
        node.dialling.clear();
        node.home = None;
        node.reflexive.clear();
        let endpoints = node.endpoints.clone();
        if self.is_coordinator_up {
            node.told.is_away = true;
            self.map_others(idx);
        }
        self.control(idx, Update::LocalEndpoints(endpoints));
        self.map(idx);
        self.tell(idx);
    }

    /// A node changes its addresses, as with another network.
    pub(crate) fn move_node(&mut self, idx: usize, realm: usize, ips: &[IpAddr]) {
        let old = self.nodes[idx].endpoints.clone();
        for endpoint in old {
            self.underlay.disown(self.nodes[idx].realm, endpoint.ip());
            self.underlay
                .disown(crate::underlay::INTERNET, endpoint.ip());
        }
        for ip in ips {
            let realm = if ip.is_ipv6() {
                crate::underlay::INTERNET
            } else {
                realm
            };
            self.underlay.own(realm, *ip, Owner::Node(idx));
        }
        let endpoints: Vec<SocketAddr> = ips.iter().map(|ip| SocketAddr::new(*ip, PORT)).collect();
        let node = &mut self.nodes[idx];
        node.realm = realm;
        node.endpoints = endpoints.clone();
        node.reflexive.clear();
        self.control(idx, Update::LocalEndpoints(endpoints));
        self.control(idx, Update::Rebind);
        // A TCP connection does not survive another address.
        let links: Vec<usize> = self.nodes[idx].links.iter().copied().collect();
        for relay in links {
            self.happen(
                Duration::from_millis(1),
                Happening::LinkLost { node: idx, relay },
            );
        }
        self.tell(idx);
    }

    /// The relay's program ends, or starts again.
    pub(crate) fn set_relay(&mut self, relay: usize, is_up: bool) {
        let was_up = std::mem::replace(&mut self.relays[relay].is_up, is_up);
        if was_up && !is_up {
            self.relays[relay].run += 1;
            for node in 0..self.nodes.len() {
                if self.nodes[node].links.contains(&relay) {
                    let delay = self.nodes[node].delay;
                    self.happen(delay, Happening::LinkLost { node, relay });
                }
            }
        }
    }

    pub(crate) fn set_coordinator(&mut self, is_up: bool) {
        self.is_coordinator_up = is_up;
        if is_up {
            for idx in 0..self.nodes.len() {
                self.map(idx);
                self.tell(idx);
            }
        }
    }

    pub(crate) fn resume(&mut self, idx: usize) {
        self.nodes[idx].is_suspended = false;
        let now = self.instant();
        self.nodes[idx].engine.handle_timeout(now);
        self.drain(idx);
    }

    fn netmap_of(&self, idx: usize) -> Netmap {
        let own = &self.nodes[idx];
        let network = network_id();
        let peers: BTreeMap<NodeId, PeerEntry> = self
            .nodes
            .iter()
            .filter(|node| node.id != own.id)
            .map(|node| (node.id, Self::entry(node)))
            .collect();
        Netmap {
            network: NetworkInfo {
                id: network,
                suffix: "proxima".to_owned(),
                ipv4_pool: "10.77.0.0/16".parse().unwrap(),
                ipv6_prefix: network.ipv6_prefix(),
                service_ipv4: Ipv4Addr::new(10, 77, 0, 53),
                service_ipv6: network.service_ipv6(),
                stun: vec![],
                coordinator_urls: vec![],
                relays: self
                    .relays
                    .iter()
                    .map(|relay| relay.entry.clone())
                    .collect(),
            },
            node: SelfNode {
                id: own.id,
                name: "own".parse().unwrap(),
                user: UserId(1),
                user_name: "anna".parse().unwrap(),
                tags: vec![],
                node_key: own.node_key.public(),
                ipv4: own.ipv4,
                ipv6: network.ipv6_of(&own.id),
                expires_at_ms: None,
            },
            filter: Filter {
                rules: vec![FilterRule {
                    src: Source::Any,
                    allow: vec![Allow::All],
                }],
            },
            peers,
        }
    }

    fn entry(node: &Node) -> PeerEntry {
        let node_key = node.node_key.public();
        PeerEntry {
            name: "peer".parse().unwrap(),
            user: UserId(1),
            user_name: "anna".parse().unwrap(),
            tags: vec![],
            machine_key: node.machine_key.public(),
            node_key,
            node_key_signature: node.machine_key.sign(Purpose::NodeKey, node_key.as_bytes()),
            ipv4: node.ipv4,
            ipv6: network_id().ipv6_of(&node.id),
            endpoints: node.told.endpoints.clone(),
            disco_key: node.told.disco_key,
            home_relay: node.told.home,
            expires_at_ms: None,
            is_online: !node.told.is_away,
            last_seen_ms: None,
            offers: HostOffers::default(),
        }
    }

    /// Gives a node the coordinator's newest map.
    fn map(&mut self, idx: usize) {
        let unix_ms = self.unix_ms + u64::try_from(self.now.as_millis()).unwrap();
        let netmap = Arc::new(self.netmap_of(idx));
        self.control(idx, Update::Netmap { netmap, unix_ms });
    }

    pub(crate) fn control(&mut self, idx: usize, update: Update) {
        let now = self.instant();
        self.nodes[idx].engine.handle_control(now, update);
        self.drain(idx);
    }

    fn happen(&mut self, after: Duration, happening: Happening) {
        self.n_happenings += 1;
        self.happenings
            .insert((self.now + after, self.n_happenings), happening);
    }

    /// The daemon tells the coordinator of news.
    fn tell(&mut self, idx: usize) {
        let delay = self.nodes[idx].delay + NEWS_TAKE;
        self.happen(delay, Happening::News { from: idx });
    }

    /// Takes all that an engine wants to say.
    fn drain(&mut self, idx: usize) {
        while let Some(transmit) = self.nodes[idx].engine.poll_transmit() {
            self.transmit(idx, transmit.dst, transmit.bytes);
        }
        while let Some(event) = self.nodes[idx].engine.poll_event() {
            (self.now, idx, format!("{event:?}")).hash(&mut self.trace);
            match event {
                Event::ReflexiveEndpoint(endpoint) => {
                    let node = &mut self.nodes[idx];
                    node.reflexive
                        .retain(|known| known.is_ipv4() != endpoint.is_ipv4());
                    node.reflexive.push(endpoint);
                    self.tell(idx);
                }
                Event::HomeRelay(home) => {
                    self.nodes[idx].home = home;
                    self.tell(idx);
                    self.dial(idx, home);
                }
                Event::NeedRelay(relay) => self.dial(idx, Some(relay)),
                Event::PeerUp { .. }
                | Event::PeerDown { .. }
                | Event::PathChanged { .. }
                | Event::PortMapped(_)
                | Event::Upnp(_)
                | Event::SparesInUse(_)
                | Event::Pong { .. } => {}
            }
        }
    }

    fn relay_idx(&self, id: RelayId) -> Option<usize> {
        self.relays.iter().position(|relay| relay.entry.id == id)
    }

    /// The daemon dials a relay unless it has a link or is at it.
    fn dial(&mut self, node: usize, relay: Option<RelayId>) {
        let Some(relay) = relay.and_then(|id| self.relay_idx(id)) else {
            return;
        };
        if self.nodes[node].links.contains(&relay) || !self.nodes[node].dialling.insert(relay) {
            return;
        }
        // TCP, TLS and the upgrade.
        let run = self.relays[relay].run;
        let took = (self.nodes[node].delay + self.relays[relay].delay) * 6;
        self.happen(took, Happening::Dialled { node, relay, run });
    }

    fn transmit(&mut self, idx: usize, dst: Destination, bytes: Vec<u8>) {
        (self.now, idx, dst, bytes.len(), bytes[0]).hash(&mut self.trace);
        match dst {
            Destination::Udp(dst) => self.send_udp(idx, PORT, dst, bytes),
            Destination::Spare { socket, endpoint } => {
                self.send_udp(idx, SPARE_PORT + socket, endpoint, bytes);
            }
            Destination::Relay { relay, peer } => self.send_frame(idx, relay, peer, bytes),
        }
    }

    fn send_udp(&mut self, idx: usize, port: u16, dst: SocketAddr, bytes: Vec<u8>) {
        self.n_datagrams += 1;
        let node = &self.nodes[idx];
        let own = node
            .endpoints
            .iter()
            .find(|own| own.is_ipv4() == dst.is_ipv4());
        let headers_len = if dst.is_ipv4() { 28 } else { 48 };
        let is_passed = !node.is_udp_blocked && bytes.len() + headers_len <= self.link_mtu;
        let Some(own) = own.filter(|_| is_passed) else {
            return;
        };
        let src = SocketAddr::new(own.ip(), port);
        let Some(arrival) = self.underlay.route(self.now, node.realm, src, dst) else {
            return;
        };
        match arrival.owner {
            Owner::Node(to) => {
                let is_cut = self.cut.contains(&(idx.min(to), idx.max(to)));
                if is_cut || self.nodes[to].is_udp_blocked {
                    return;
                }
                let delay = self.nodes[idx].delay + self.nodes[to].delay;
                for delay in self.underlay.delays(delay) {
                    let (from, dst) = (arrival.from, arrival.dst);
                    let bytes = bytes.clone();
                    self.happen(
                        delay,
                        Happening::Datagram {
                            to,
                            from,
                            dst,
                            bytes,
                        },
                    );
                }
            }
            Owner::Relay(relay) => {
                let relay = &self.relays[relay];
                let Some(id) = parse_request(&bytes).filter(|_| relay.is_up) else {
                    return;
                };
                let delay = (self.nodes[idx].delay + relay.delay) * 2;
                let answer = binding_success(&id, arrival.from);
                for delay in self.underlay.delays(delay) {
                    // The way back is open as long as the way there was: it takes less time than any mapping lives.
                    self.happen(
                        delay,
                        Happening::Datagram {
                            to: idx,
                            from: arrival.dst,
                            dst: src,
                            bytes: answer.clone(),
                        },
                    );
                }
            }
            Owner::Nat(_) => {}
        }
    }

    fn send_frame(&mut self, idx: usize, relay: RelayId, peer: NodeKey, bytes: Vec<u8>) {
        let Some(relay) = self.relay_idx(relay) else {
            return;
        };
        let to = self
            .nodes
            .iter()
            .position(|node| node.node_key.public() == peer);
        let Some(to) = to else {
            self.n_astray += 1;
            return;
        };
        let is_linked = self.nodes[idx].links.contains(&relay) && self.relays[relay].is_up;
        if is_linked {
            let delay = self.nodes[idx].delay + self.relays[relay].delay * 2 + self.nodes[to].delay;
            self.relays[relay].n_frames += 1;
            let from = idx;
            self.happen(
                delay,
                Happening::Frame {
                    relay,
                    from,
                    to,
                    bytes,
                },
            );
        }
    }

    /// A UDP packet from a program of one node to the echo port of another, with a number in it.
    pub(crate) fn send(&mut self, from: usize, to: usize, number: u64) {
        self.send_from_port(from, to, 9, ECHO_PORT, number);
    }

    fn send_from_port(
        &mut self,
        from: usize,
        to: usize,
        src_port: u16,
        dst_port: u16,
        number: u64,
    ) {
        let packet = ip::transport(
            ip::UDP,
            (IpAddr::V4(self.nodes[from].ipv4), src_port),
            (IpAddr::V4(self.nodes[to].ipv4), dst_port),
            &number.to_be_bytes(),
        );
        let now = self.instant();
        let mut packet = packet;
        let outbound = self.nodes[from]
            .plane
            .outbound(now, &mut packet, ChecksumState::Complete);
        let Outbound::Peer(peer) = outbound else {
            self.nodes[from].n_errors += 1;
            return;
        };
        let mut out = vec![0; packet.len() + 200];
        let mut sealer = peer.seal();
        let sealed = sealer.seal(&packet, &mut out);
        let event = sealer.finish();
        if let (Sealed::Datagram(len), Some(dst)) = (sealed, peer.destination()) {
            out.truncate(len);
            self.transmit(from, dst, out);
        }
        self.plane_event(from, event);
    }

    fn plane_event(&mut self, idx: usize, event: Option<PlaneEvent>) {
        let now = self.instant();
        let Some(event) = event else { return };
        self.nodes[idx].engine.handle_plane(now, event);
        self.drain(idx);
    }

    fn receive(&mut self, idx: usize, from: Sender, bytes: &[u8]) {
        let now = self.instant();
        let plane = Arc::clone(&self.nodes[idx].plane);
        match plane.inbound(now, bytes) {
            Inbound::Data(peer) => {
                let mut out = vec![0; bytes.len()];
                let mut opener = peer.open();
                let opened = match from {
                    Sender::Udp(from) => opener.open(from, bytes, &mut out),
                    Sender::Spare(socket, from) => opener.open_spare(socket, from, bytes, &mut out),
                    Sender::Relay(relay, _) => opener.open_relayed(relay, bytes, &mut out),
                };
                let event = opener.finish();
                self.plane_event(idx, event);
                let Opened::Packet(len) = opened else { return };
                match plane.admit(now, &peer, &mut out[..len]) {
                    Admit::Deliver => self.kernel(idx, &out[..len]),
                    Admit::Consumed(event) => self.plane_event(idx, Some(event)),
                    Admit::Drop(_) => self.nodes[idx].n_errors += 1,
                }
            }
            Inbound::Control => {
                let engine = &mut self.nodes[idx].engine;
                match from {
                    Sender::Udp(from) => engine.handle_udp(now, from, bytes),
                    Sender::Spare(socket, from) => engine.handle_spare(now, socket, from, bytes),
                    Sender::Relay(relay, key) => engine.handle_relay(now, relay, key, bytes),
                }
                self.drain(idx);
            }
            Inbound::Drop(_) => {}
        }
    }

    /// Answers on the echo port and keeps what came.
    fn kernel(&mut self, idx: usize, packet: &[u8]) {
        let parts = ip::parts(packet);
        let (src_port, dst_port) = parts.ports();
        let number = u64::from_be_bytes(parts.segment[8..16].try_into().unwrap());
        let src = parts.src;
        self.nodes[idx].received.push((self.now, number));
        (self.now, idx, number).hash(&mut self.trace);
        if dst_port == ECHO_PORT {
            let to = self
                .nodes
                .iter()
                .position(|node| IpAddr::V4(node.ipv4) == src);
            if let Some(to) = to {
                self.send_from_port(idx, to, ECHO_PORT, src_port, number);
            }
        }
    }

    fn step(&mut self, happening: Happening) {
        match happening {
            Happening::Datagram {
                to,
                from,
                dst,
                bytes,
            } => {
                let node = &self.nodes[to];
                // The node may have moved meanwhile.
                let is_here = node.endpoints.iter().any(|own| own.ip() == dst.ip());
                if !node.is_suspended && is_here {
                    let sender = match dst.port().checked_sub(SPARE_PORT) {
                        Some(socket) => Sender::Spare(socket, from),
                        None => Sender::Udp(from),
                    };
                    self.receive(to, sender, &bytes);
                }
            }
            Happening::Frame {
                relay,
                from,
                to,
                bytes,
            } => {
                let is_linked = self.nodes[to].links.contains(&relay) && self.relays[relay].is_up;
                if is_linked && !self.nodes[to].is_suspended {
                    let key = self.nodes[from].node_key.public();
                    let id = self.relays[relay].entry.id;
                    self.receive(to, Sender::Relay(id, key), &bytes);
                }
            }
            Happening::Dialled { node, relay, run } => {
                let id = self.relays[relay].entry.id;
                self.nodes[node].dialling.remove(&relay);
                if self.relays[relay].is_up && self.relays[relay].run == run {
                    self.nodes[node].links.insert(relay);
                    self.control(node, Update::RelayUp(id));
                } else {
                    self.control(node, Update::RelayDown(id));
                    self.redial(node, relay);
                }
            }
            Happening::LinkLost { node, relay } => {
                let id = self.relays[relay].entry.id;
                if self.nodes[node].links.remove(&relay) {
                    self.control(node, Update::RelayDown(id));
                    self.redial(node, relay);
                }
            }
            Happening::News { from } => self.on_news(from),
        }
    }

    /// The home relay is dialled until it answers; others when the engine asks again.
    fn redial(&mut self, node: usize, relay: usize) {
        let id = self.relays[relay].entry.id;
        if self.nodes[node].home == Some(id) && self.nodes[node].dialling.insert(relay) {
            let run = self.relays[relay].run;
            let took = REDIAL + (self.nodes[node].delay + self.relays[relay].delay) * 6;
            self.happen(took, Happening::Dialled { node, relay, run });
        }
    }

    fn on_news(&mut self, from: usize) {
        if !self.is_coordinator_up {
            return;
        }
        let node = &mut self.nodes[from];
        let mut endpoints = node.endpoints.clone();
        endpoints.extend(&node.reflexive);
        node.told = Told {
            endpoints,
            home: node.home,
            disco_key: Some(node.disco_key.public()),
            is_away: false,
        };
        self.map_others(from);
    }

    /// Gives the newest map to all nodes but one.
    fn map_others(&mut self, but: usize) {
        for idx in 0..self.nodes.len() {
            if idx != but && !self.nodes[idx].is_suspended {
                self.map(idx);
            }
        }
    }

    /// Moves the clock on and lets happen what is due, one thing at a time; `check` is asked after each.
    pub(crate) fn run_checked(&mut self, span: Duration, mut check: impl FnMut(&Self)) {
        let end = self.now + span;
        loop {
            let start = self.start;
            let timers = self.nodes.iter().enumerate().filter_map(|(idx, node)| {
                let (at, _) = node.engine.poll_timeout().filter(|_| !node.is_suspended)?;
                Some((at.saturating_duration_since(start), idx))
            });
            let timer = timers.min();
            let next = self.happenings.keys().next().copied();
            let at = timer
                .map(|(at, _)| at)
                .into_iter()
                .chain(next.map(|(at, _)| at))
                .min();
            let Some(at) = at.filter(|at| *at <= end) else {
                break;
            };
            self.now = self.now.max(at);
            match (next, timer) {
                (Some(key), _) if key.0 == at => {
                    if let Some(happening) = self.happenings.remove(&key) {
                        self.step(happening);
                    }
                }
                (_, Some((_, idx))) => {
                    let now = self.instant();
                    self.nodes[idx].engine.handle_timeout(now);
                    self.drain(idx);
                }
                (Some(_) | None, None) => {}
            }
            check(self);
        }
        self.now = end;
    }

    pub(crate) fn run(&mut self, span: Duration) {
        self.run_checked(span, |_| {});
    }

    /// The disco messages that one node sends another in the next seconds, as somebody on the path sees them.
    pub(crate) fn catch_disco(&mut self, from: usize, to: usize) -> Vec<Vec<u8>> {
        let mut caught = vec![];
        self.control(from, Update::Rebind);
        for happening in self.happenings.values() {
            if let Happening::Datagram { to: at, bytes, .. } = happening
                && *at == to
                && mesh_proto::disco::is_disco(bytes)
            {
                caught.push(bytes.clone());
            }
        }
        caught
    }

    /// A datagram out of nowhere.
    pub(crate) fn inject(&mut self, to: usize, from: SocketAddr, bytes: &[u8]) {
        self.receive(to, Sender::Udp(from), bytes);
    }

    /// When a node received a number.
    pub(crate) fn received_at(&self, idx: usize, number: u64) -> Option<Duration> {
        let mut received = self.nodes[idx].received.iter();
        received.find(|(_, got)| *got == number).map(|(at, _)| *at)
    }

    /// How a node sends to a peer.
    pub(crate) fn path(&self, idx: usize, of: usize) -> Option<Destination> {
        let stats = self.nodes[idx].engine.peer_stats(self.instant());
        let id = self.nodes[of].id;
        let found = stats.into_iter().find(|stats| stats.node == id);
        found
            .filter(|stats| stats.is_up)
            .and_then(|stats| stats.path)
    }

    pub(crate) fn is_direct(&self, a: usize, b: usize) -> bool {
        let is_direct = |idx, of| {
            let path = self.path(idx, of);
            path.is_some_and(|path| path.remote().is_some())
        };
        is_direct(a, b) && is_direct(b, a)
    }

    /// What happened, in one number.
    pub(crate) fn fingerprint(&self) -> u64 {
        self.trace.finish()
    }
}

/// Where a datagram comes from.
#[derive(Debug, Clone, Copy)]
enum Sender {
    Udp(SocketAddr),
    Spare(u16, SocketAddr),
    Relay(RelayId, NodeKey),
}

/// An address of a realm.
pub(crate) const fn ipv4(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(a, b, c, d))
}

/// A global IPv6 address.
pub(crate) const fn ipv6(n: u16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, n, 0, 0, 0, 1))
}
