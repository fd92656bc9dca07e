//! The control side: dispatches inputs to the parts and drains their outputs.

mod guess;
mod mtu;
mod netmap;
mod paths;
mod session;
mod tick;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mesh_proto::id::{NodeId, RelayId};
use mesh_proto::key::{DiscoPrivateKey, NodeKey, NodePrivateKey};
use mesh_proto::netmap::Netmap;
use mesh_proto::stun::is_stun;

use crate::config::{
    MTU_MOST, N_CALLED_MAX, N_PINGS_MAX, N_SPARES_MAX, PING_FOR, RETRY_JITTER_MS, SLEPT,
    SWEEP_EVERY, TICK,
};
use crate::event::{
    Destination, Event, PeerStats, PingToken, PlaneEvent, TimerReason, Transmit, Update,
};
use crate::nat::portmap::{Gateway, PortMap};
use crate::nat::stun::Stun;
use crate::nat::wire;
use crate::noise::limiter::Limiter;
use crate::noise::stamp::Stamps;
use crate::noise::{Identity, Kind, NewSession, NoiseSession};
use crate::path::canonical;
use crate::path::set::PathSet;
use crate::peer::PeerHandle;
use crate::peer::state::Now;
use crate::peer::table::Peers;
use crate::plane::Plane;
use crate::relay::Relays;
use crate::seed::Seed;
use crate::service::ServicePorts;
use crate::timers::Timers;

/// What an engine starts from.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// This node's private key.
    pub node_key: NodePrivateKey,
    /// This node.
    pub node_id: NodeId,
    /// What path discovery is sealed with; new with each start.
    pub disco_key: DiscoPrivateKey,
    /// All that the engine itself draws comes from here; fill it from the system's random source.
    pub seed: [u8; 32],
    /// The first timestamp of this node's handshakes, nanoseconds since 1970; each handshake takes the next. Peers refuse
    /// one that is not newer than all of earlier runs, so it must be past them whatever the clock says.
    pub stamps_from_ns: u64,
}

/// The mesh as this node sees it.
#[derive(Debug)]
pub struct Engine {
    plane: Arc<Plane>,
    node_id: NodeId,
    identity: Identity,
    new_session: NewSession,
    seed: Seed,
    peers: Peers,
    netmap: Option<Arc<Netmap>>,
    services: ServicePorts,
    wall_clock: Option<WallClock>,
    /// Bounds what initiations cost, and [`Self::answers`] what responses and cookies do.
    limiter: Limiter,
    answers: Limiter,
    stun: Stun,
    disco_key: DiscoPrivateKey,
    relays: Relays,
    port_map: PortMap,
    gateway: Option<(IpAddr, IpAddr)>,
    told_home: Option<RelayId>,
    spares: Spares,
    /// The paths of peers that have a session or want one.
    sets: BTreeMap<NodeId, PathSet>,
    local_endpoints: Vec<SocketAddr>,
    /// The longest overlay packet that this machine's interfaces carry.
    overlay_mtu: u16,
    pings: BTreeMap<PingToken, (NodeId, Instant)>,
    timers: Timers,
    reset_at: Instant,
    sweep_at: Instant,
    out: Out,
}

/// The MTU of the selected path, when it is a direct one.
fn path_mtu(peer: &PeerHandle) -> Option<u16> {
    let path = peer.path()?;
    path.dst.remote().map(|_| path.mtu())
}

/// The spare sockets.
#[derive(Debug, Default)]
struct Spares {
    /// How many the daemon has.
    n_usable: u16,
    /// Until when those without a use are kept, while any may be open.
    kept_until: Option<Instant>,
    /// Those that the daemon was told to keep.
    told: BTreeSet<u16>,
}

/// The wall clock as it was told last.
#[derive(Debug, Clone, Copy)]
struct WallClock {
    at: Instant,
    unix_ms: u64,
}

impl WallClock {
    fn unix_ms_at(self, now: Instant) -> u64 {
        let elapsed = now.saturating_duration_since(self.at).as_millis();
        self.unix_ms
            .saturating_add(u64::try_from(elapsed).unwrap_or(u64::MAX))
    }
}

/// What the parts put out.
#[derive(Debug, Default)]
struct Out {
    transmits: VecDeque<Transmit>,
    events: VecDeque<Event>,
}

impl Out {
    fn transmit(&mut self, dst: Destination, bytes: &[u8]) {
        let bytes = bytes.to_vec();
        self.transmits.push_back(Transmit { dst, bytes });
    }
}

impl Engine {
    /// An engine without peers.
    #[must_use]
    pub fn new(now: Instant, config: EngineConfig) -> Self {
        let mut seed = Seed::new(config.seed);
        Self {
            plane: Arc::new(Plane::new(now, &mut seed)),
            node_id: config.node_id,
            identity: Identity::new(&config.node_key, Stamps::new(config.stamps_from_ns)),
            new_session: NoiseSession::boxed,
            seed,
            peers: Peers::default(),
            netmap: None,
            services: ServicePorts::default(),
            wall_clock: None,
            limiter: Limiter::new(now),
            answers: Limiter::new(now),
            stun: Stun::default(),
            disco_key: config.disco_key,
            relays: Relays::default(),
            port_map: PortMap::default(),
            gateway: None,
            told_home: None,
            spares: Spares::default(),
            sets: BTreeMap::new(),
            local_endpoints: Vec::new(),
            overlay_mtu: MTU_MOST,
            pings: BTreeMap::new(),
            timers: Timers::default(),
            reset_at: now,
            sweep_at: now + SWEEP_EVERY,
            out: Out::default(),
        }
    }

    /// The data side, for the packet threads.
    #[must_use]
    pub fn plane(&self) -> Arc<Plane> {
        Arc::clone(&self.plane)
    }

    /// The daemon said something.
    pub fn handle_control(&mut self, now: Instant, update: Update) {
        self.plane.shared.set_clock(now);
        match update {
            Update::Netmap { netmap, unix_ms } => {
                self.wall_clock = Some(WallClock { at: now, unix_ms });
                self.apply_netmap(now, netmap);
            }
            Update::LocalEndpoints(endpoints) => {
                let mut surroundings = (*self.plane.shared.surroundings()).clone();
                surroundings.set_local(&endpoints);
                self.local_endpoints = endpoints.into_iter().map(canonical).collect();
                self.local_endpoints.truncate(N_CALLED_MAX);
                self.apply_gateway(now);
                self.plane.shared.set_surroundings(surroundings);
            }
            Update::Services(services) => {
                self.services = services;
                self.apply_local();
            }
            Update::OverlayMtu(mtu) => {
                self.overlay_mtu = mtu;
                let live: Vec<NodeId> = self.peers.live().iter().copied().collect();
                for id in live {
                    self.look_mtu(&id);
                }
            }
            Update::Rebind => self.on_rebind(now),
            Update::NodeKey(key) => {
                self.identity = self.identity.with_key(&key);
                for id in self.peers.ids() {
                    self.end_session(&id);
                }
            }
            Update::Gateway(gateway) => {
                self.gateway = gateway;
                self.apply_gateway(now);
            }
            Update::UpnpDone { order, mapped } => {
                if self.port_map.handle_upnp(now, &order, mapped) {
                    self.tell_mapped();
                }
            }
            Update::SpareSockets(n) => self.spares.n_usable = n.min(N_SPARES_MAX),
            Update::RelayUp(relay) => self.on_relay_up(now, &relay),
            Update::RelayDown(relay) => self.relays.on_down(now, &relay),
            Update::Clear => self.forget_mesh(),
        }
        self.refresh_timers(now);
    }

    /// A datagram that the plane called [`Inbound::Control`](crate::Inbound::Control).
    pub fn handle_udp(&mut self, now: Instant, from: SocketAddr, datagram: &[u8]) {
        self.plane.shared.set_clock(now);
        let endpoint = canonical(from);
        let is_foreign = Kind::of(datagram).is_none();
        if is_foreign && is_stun(datagram) {
            self.on_stun(now, endpoint, datagram);
        } else if is_foreign && wire::is_answer(datagram) {
            if self.port_map.handle_udp(now, endpoint, datagram) {
                self.tell_mapped();
            }
        } else {
            self.on_datagram(now, Destination::Udp(endpoint), datagram);
        }
        self.refresh_timers(now);
    }

    /// A datagram of a spare socket, that the plane called [`Inbound::Control`](crate::Inbound::Control).
    pub fn handle_spare(&mut self, now: Instant, socket: u16, from: SocketAddr, datagram: &[u8]) {
        self.plane.shared.set_clock(now);
        let endpoint = canonical(from);
        self.on_datagram(now, Destination::Spare { socket, endpoint }, datagram);
        self.refresh_timers(now);
    }

    /// A datagram out of a relay's frame, that the plane called [`Inbound::Control`](crate::Inbound::Control). The relay
    /// vouches for its sender.
    pub fn handle_relay(&mut self, now: Instant, relay: RelayId, from: NodeKey, datagram: &[u8]) {
        self.plane.shared.set_clock(now);
        let Some(id) = self.peers.by_key(&from) else {
            return;
        };
        self.on_relay_heard(now, &id, relay);
        self.on_datagram(now, Destination::Relay { relay, peer: from }, datagram);
        self.refresh_timers(now);
    }

    fn on_datagram(&mut self, now: Instant, from: Destination, datagram: &[u8]) {
        match Kind::of(datagram) {
            Some(Kind::Initiation) => self.on_initiation(now, from, datagram),
            Some(Kind::Response(receiver)) => self.on_response(now, from, datagram, receiver),
            Some(Kind::CookieReply(receiver)) => self.on_cookie(now, from, datagram, receiver),
            Some(Kind::Data(_)) => self.on_unknown_session(now, from),
            None => self.on_disco(now, from, datagram),
        }
    }

    /// Follows the gateway, and the port that it is to map.
    fn apply_gateway(&mut self, now: Instant) {
        let port = self.local_endpoints.first().map(SocketAddr::port);
        let gateway = self.gateway.zip(port).map(|((ip, client), port)| Gateway {
            ip: ip.to_canonical(),
            client: client.to_canonical(),
            port,
        });
        let before = self.port_map.outer();
        let farewell = self.port_map.set_gateway(now, gateway, &mut self.seed);
        self.out.transmits.extend(farewell);
        self.give_orders();
        if self.port_map.outer() != before {
            self.tell_mapped();
        }
    }

    fn give_orders(&mut self) {
        let order = self.port_map.take_order();
        self.out.events.extend(order.map(Event::Upnp));
    }

    fn tell_mapped(&mut self) {
        let outer = self.port_map.outer();
        tracing::debug!(?outer, "port mapping");
        self.out.events.push_back(Event::PortMapped(outer));
    }

    fn on_stun(&mut self, now: Instant, from: SocketAddr, datagram: &[u8]) {
        let Some(answer) = self.stun.handle_udp(now, from, datagram) else {
            return;
        };
        if let Some(rtt) = answer.rtt
            && self.relays.on_latency(now, from, rtt)
        {
            self.tell_home();
        }
        if answer.is_news {
            let seen = answer.seen;
            tracing::debug!(endpoint = %seen, "reflexive address");
            self.out.events.push_back(Event::ReflexiveEndpoint(seen));
            self.on_reflexive(now);
        }
    }

    /// The plane found something.
    pub fn handle_plane(&mut self, now: Instant, event: PlaneEvent) {
        self.plane.shared.set_clock(now);
        self.on_plane(now, event);
        self.refresh_timers(now);
    }

    fn on_plane(&mut self, now: Instant, event: PlaneEvent) {
        match event {
            PlaneEvent::NeedSession(peer) => {
                if self.is_current(&peer) {
                    self.want_session(now, &peer.node());
                }
            }
            PlaneEvent::SessionReady(peer) => {
                if self.is_current(&peer) {
                    self.attend(now, &peer.node());
                }
            }
            PlaneEvent::PathMoved { peer, from } => {
                if self.is_current(&peer) {
                    self.on_moved(now, &peer, from);
                }
            }
            PlaneEvent::Pong { peer, token, at } => {
                let node = peer.node();
                // The token came back through the tunnel, but any peer may have learned of any token.
                if self.pings.get(&token).is_some_and(|(to, _)| *to == node)
                    && let Some((_, sent_at)) = self.pings.remove(&token)
                {
                    let rtt = at.saturating_duration_since(sent_at);
                    let path = peer.destination();
                    let path_mtu = path_mtu(&peer);
                    self.out.events.push_back(Event::Pong {
                        node,
                        token,
                        rtt,
                        path,
                        path_mtu,
                    });
                }
            }
        }
    }

    /// A deadline passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.plane.shared.set_clock(now);
        if self.timers.is_due(TimerReason::Expiry, now)
            && let Some(clock) = self.wall_clock
        {
            for id in self.peers.expired(clock.unix_ms_at(now)) {
                self.remove_peer(&id);
            }
        }
        for id in self.peers.due_retries(now) {
            self.retry(now, &id);
        }
        if let Some(due_at) = self.timers.get(TimerReason::Sessions)
            && due_at <= now
        {
            self.tick(now, now.saturating_duration_since(due_at) >= SLEPT);
            self.timers.set(TimerReason::Sessions, None);
        }
        if self.relays.handle_timeout(now) {
            self.tell_home();
        }
        let mapped = self.port_map.outer();
        let requests = self.port_map.handle_timeout(now);
        self.out.transmits.extend(requests);
        self.give_orders();
        if self.port_map.outer() != mapped {
            self.tell_mapped();
        }
        let requests = self.stun.handle_timeout(now, &mut self.seed);
        self.out.transmits.extend(requests);
        self.refresh_timers(now);
    }

    /// When to call [`Self::handle_timeout`] next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Instant, TimerReason)> {
        self.timers.next()
    }

    /// A datagram to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.out.transmits.pop_front()
    }

    /// A fact for the daemon.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.out.events.pop_front()
    }

    /// Asks a peer for an answer through the tunnel; `None` when there is no such peer or too many answers are due.
    /// The answer comes as [`Event::Pong`]; when none comes, nothing does.
    pub fn ping(&mut self, now: Instant, node: &NodeId) -> Option<PingToken> {
        self.plane.shared.set_clock(now);
        self.pings
            .retain(|_, (_, sent_at)| now.saturating_duration_since(*sent_at) < PING_FOR);
        let local = self.plane.local()?;
        let peer = self.peers.get(node)?.handle.clone();
        if self.pings.len() >= N_PINGS_MAX {
            return None;
        }
        let token = PingToken(self.seed.u64());
        let packet = self
            .plane
            .echo
            .request(local.ipv4, peer.identity().ipv4, token);
        self.pings.insert(token, (*node, now));
        self.send_packet(now, &peer, &packet);
        self.refresh_timers(now);
        Some(token)
    }

    /// What is known of the links to all peers, in the order of their ids.
    #[must_use]
    pub fn peer_stats(&self, now: Instant) -> Vec<PeerStats> {
        let now_ms = self.plane.shared.ms_of(now);
        let age =
            |at_ms: u64| (at_ms != 0).then(|| Duration::from_millis(now_ms.saturating_sub(at_ms)));
        let stats = self.peers.iter().map(|(node, control)| {
            let traffic = control.handle.traffic();
            let agreed = control.live.and_then(|_| control.handle.slot().agreed);
            let path = control.handle.destination();
            let (rtt, loss) = path
                .zip(self.sets.get(node))
                .map_or((None, 0.0), |(path, set)| set.measures(&path));
            PeerStats {
                node: *node,
                path,
                rtt,
                loss,
                path_mtu: path_mtu(&control.handle),
                is_up: control.state().is_up(),
                rx_bytes: traffic.rx_bytes.load(Ordering::Relaxed),
                tx_bytes: traffic.tx_bytes.load(Ordering::Relaxed),
                last_handshake_age: agreed.and_then(|agreed| age(agreed.at_ms)),
                last_rx_age: age(traffic.last_rx_ms.load(Ordering::Relaxed)),
            }
        });
        stats.collect()
    }

    /// How many things the engine remembers beyond its peers: each kind has its bound.
    #[must_use]
    pub fn n_held(&self) -> usize {
        let paths: usize = self.sets.values().map(PathSet::size).sum();
        paths + self.pings.len() + self.out.transmits.len() + self.out.events.len()
    }

    /// Whether an event speaks of a peer that is still the one of that id.
    fn is_current(&self, peer: &PeerHandle) -> bool {
        let control = self.peers.get(&peer.node());
        control.is_some_and(|control| control.handle == *peer)
    }

    fn now(&mut self, at: Instant) -> Now {
        Now {
            at,
            ms: self.plane.shared.now_ms(),
            jitter: Duration::from_millis(self.seed.below(RETRY_JITTER_MS)),
        }
    }

    fn refresh_timers(&mut self, now: Instant) {
        if self.peers.live().is_empty() {
            self.timers.set(TimerReason::Sessions, None);
        } else if self.timers.get(TimerReason::Sessions).is_none() {
            self.timers.set(TimerReason::Sessions, Some(now + TICK));
        }
        self.timers
            .set(TimerReason::Handshake, self.peers.next_retry());
        self.timers.set(TimerReason::Stun, self.stun.poll_timeout());
        self.timers
            .set(TimerReason::Relay, self.relays.poll_timeout());
        self.timers
            .set(TimerReason::PortMap, self.port_map.poll_timeout());
        let expiry = self
            .peers
            .next_expiry_ms()
            .zip(self.wall_clock)
            .map(|(at_ms, clock)| {
                let left = Duration::from_millis(at_ms.saturating_sub(clock.unix_ms_at(now)));
                // A far future may not fit the clock; a look each day is enough then.
                now + left.min(Duration::from_secs(24 * 3600))
            });
        self.timers.set(TimerReason::Expiry, expiry);
    }
}

#[cfg(test)]
mod tests;
