//! How the engine finds and keeps paths to guided peers: disco messages, probes, and the relay until one is proven.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mesh_proto::control::{Candidate, CandidateKind};
use mesh_proto::disco::{self, DiscoSeal, Mapping, Message, NONCE_LEN, PONG_LEN};
use mesh_proto::id::{NodeId, RelayId};

use super::Engine;
use crate::config::{
    BUSY_FOR, CALL_EVERY, N_CALLED_MAX, N_PINGS_ANSWERED_MAX, RELAY_HEARD_FOR, TICK,
    UNCONFIRMED_FOR,
};
use crate::event::{Destination, Event};
use crate::netcheck::NetReport;
use crate::noise::DATA_OVERHEAD;
use crate::path::set::{PathSet, Use, Watched};
use crate::peer::PeerHandle;

impl Engine {
    /// A disco message came.
    pub(super) fn on_disco(&mut self, now: Instant, from: Destination, datagram: &[u8]) {
        let Some(key) = disco::sender(datagram) else {
            return;
        };
        for id in self.peers.by_disco(&key) {
            let Some(seal) = self.seal_of(&id) else {
                continue;
            };
            match seal.open(datagram) {
                Ok(message) => self.on_message(now, &id, from, message),
                Err(err) => tracing::debug!(peer = %id, %err, "disco message refused"),
            }
        }
    }

    fn on_message(&mut self, now: Instant, id: &NodeId, from: Destination, message: Message) {
        match (message, from) {
            (
                Message::Ping {
                    id: ping,
                    datagram_len,
                },
                Destination::Udp(endpoint) | Destination::Spare { endpoint, .. },
            ) => {
                // Nobody gets more than he sends, not even by a replay.
                if datagram_len >= PONG_LEN {
                    self.on_ping(now, id, from, endpoint, ping);
                }
            }
            (Message::Pong { id: ping, .. }, Destination::Udp(_) | Destination::Spare { .. }) => {
                let now_ms = self.plane.shared.now_ms();
                let Some(set) = self.sets.get_mut(id) else {
                    return;
                };
                if set.on_pong(&ping, from, now_ms) {
                    self.reselect(id);
                    self.resend(id);
                    self.look_mtu(id);
                }
            }
            (Message::CallMeMaybe { mapping, endpoints }, Destination::Relay { .. }) => {
                tracing::debug!(peer = %id, ?mapping, "asked to ping");
                self.on_called(id, mapping, &endpoints);
            }
            // Direct paths are what pings are about, and what is said openly cannot ask for pings elsewhere.
            (Message::Ping { .. } | Message::Pong { .. }, Destination::Relay { .. })
            | (Message::CallMeMaybe { .. }, Destination::Udp(_) | Destination::Spare { .. }) => {}
        }
    }

    fn on_ping(
        &mut self,
        now: Instant,
        id: &NodeId,
        from: Destination,
        seen: SocketAddr,
        ping: disco::PingId,
    ) {
        let window_ms = self.plane.shared.ms_of(now) / u64::from(TICK.subsec_millis());
        let Some(control) = self.peers.get_mut(id) else {
            return;
        };
        if control.pings_answered.0 != window_ms {
            control.pings_answered = (window_ms, 0);
        }
        if control.pings_answered.1 >= N_PINGS_ANSWERED_MAX {
            return;
        }
        control.pings_answered.1 += 1;
        let pong = Message::Pong { id: ping, seen };
        self.send_disco(id, from, &pong);
        self.on_seen(now, id, from);
    }

    /// A guided peer was heard from where there may be a path.
    pub(super) fn on_seen(&mut self, now: Instant, id: &NodeId, from: Destination) {
        let Some(endpoint) = from.remote() else {
            return;
        };
        let surroundings = self.plane.shared.surroundings();
        let now_ms = self.plane.shared.ms_of(now);
        let is_worth = surroundings.is_usable(endpoint)
            && self
                .sets
                .get_mut(id)
                .is_some_and(|set| set.see(from, surroundings.is_lan(endpoint.ip()), now_ms));
        if is_worth {
            self.ping_path(id, from);
        }
    }

    fn on_called(&mut self, id: &NodeId, mapping: Mapping, endpoints: &[Candidate]) {
        let endpoints: Vec<SocketAddr> = endpoints
            .iter()
            .map(|candidate| candidate.endpoint)
            .collect();
        let told = self.judged(&endpoints);
        let now_ms = self.plane.shared.now_ms();
        let Some(set) = self.sets.get_mut(id) else {
            return;
        };
        set.mapping = mapping;
        for way in set.on_called(&told, now_ms) {
            self.ping_path(id, way);
        }
    }

    /// Usable endpoints and whether each is within the LAN.
    pub(super) fn judged(&self, endpoints: &[SocketAddr]) -> Vec<(Destination, bool)> {
        let surroundings = self.plane.shared.surroundings();
        let usable = endpoints
            .iter()
            .map(|endpoint| crate::path::canonical(*endpoint))
            .filter(|endpoint| surroundings.is_usable(*endpoint));
        usable
            .map(|endpoint| {
                let is_lan = surroundings.is_lan(endpoint.ip());
                (Destination::Udp(endpoint), is_lan)
            })
            .collect()
    }

    /// Begins to look for direct paths to a peer that is guided.
    pub(super) fn begin_paths(&mut self, id: &NodeId) {
        let Some(control) = self.peers.get(id) else {
            return;
        };
        if !control.handle.is_guided() || self.sets.contains_key(id) {
            return;
        }
        let selected = control.handle.endpoint();
        let endpoints: Vec<SocketAddr> = selected
            .iter()
            .chain(&control.last_direct)
            .chain(&control.endpoints)
            .copied()
            .collect();
        let mut set = PathSet::new(self.plane.shared.now_ms());
        set.tell(&self.judged(&endpoints));
        self.sets.insert(*id, set);
    }

    /// This node is seen from elsewhere: peers without a direct path hear of it at once.
    pub(super) fn on_reflexive(&mut self, now: Instant) {
        let now_ms = self.plane.shared.now_ms();
        let live: Vec<NodeId> = self.peers.live().iter().copied().collect();
        for id in live {
            let path = self
                .peers
                .get(&id)
                .and_then(|peer| peer.handle.destination());
            let is_direct = path.is_some_and(|path| path.remote().is_some());
            if let Some(set) = self.sets.get_mut(&id).filter(|_| !is_direct) {
                set.explore(now_ms);
                self.look(now, &id);
            }
        }
    }

    /// Stops looking, and remembers where the peer was.
    pub(super) fn end_paths(&mut self, id: &NodeId) {
        if self.sets.remove(id).is_none() {
            return;
        }
        if let Some(control) = self.peers.get_mut(id) {
            control.last_direct = control.handle.endpoint().or(control.last_direct);
            // A path that nobody looks after may be gone when it is needed again.
            control.handle.forget_path();
        }
    }

    /// Looks after the paths of one peer.
    pub(super) fn look(&mut self, now: Instant, id: &NodeId) {
        let Some(control) = self.peers.get(id) else {
            return;
        };
        let handle = control.handle.clone();
        let is_attempting = control.state().retry_at().is_some();
        // The peer began, and its first packet is on its way.
        let is_young = control
            .live
            .is_some_and(|live| now.saturating_duration_since(live.touched_at) < UNCONFIRMED_FOR);
        let now_ms = self.plane.shared.now_ms();
        let traffic = handle.traffic();
        let last_data_tx_ms = traffic.last_data_tx_ms.load(Ordering::Relaxed);
        let last_data_rx_ms = traffic.last_data_rx_ms.load(Ordering::Relaxed);
        let last_ms = last_data_tx_ms.max(last_data_rx_ms);
        let is_recent = u128::from(now_ms.saturating_sub(last_ms)) < BUSY_FOR.as_millis();
        let usage = Use {
            now_ms,
            last_data_tx_ms,
            last_data_rx_ms,
            is_busy: is_attempting || is_young || (last_ms != 0 && is_recent),
        };
        let path = handle.path();
        let selected = path.as_ref().and_then(|path| {
            path.dst.remote()?;
            Some(Watched {
                endpoint: path.dst,
                heard_ms: path.heard_ms.load(Ordering::Relaxed),
            })
        });
        let may_guess = self.may_guess(id);
        let Some(set) = self.sets.get_mut(id) else {
            return;
        };
        let look = set.look(usage, selected);
        let guess = set.guess(now_ms, may_guess && usage.is_busy && selected.is_none());
        if let (true, Some(selected)) = (look.is_dead, selected) {
            self.on_dead(now, id, &handle, selected.endpoint);
        } else if selected.is_none() {
            self.keep_relay(now, id, &handle);
        } else {
            self.reselect(id);
        }
        for endpoint in look.probe {
            self.ping_path(id, endpoint);
        }
        if usage.is_busy {
            self.look_mtu(id);
        }
        if look.call {
            self.call(now, id);
        }
        if let Some(step) = guess {
            self.guess(now, id, step);
        }
    }

    /// The direct path carries nothing: another proven one, else the relay, else hope.
    fn on_dead(&mut self, now: Instant, id: &NodeId, handle: &PeerHandle, endpoint: Destination) {
        let now_ms = self.plane.shared.now_ms();
        let Some(set) = self.sets.get_mut(id) else {
            return;
        };
        let other = set
            .choose(now_ms, Some(endpoint))
            .filter(|other| *other != endpoint);
        set.on_death(endpoint, now_ms);
        let any = set.choose(now_ms, None);
        self.stun.doubt(now);
        let Some(dst) = other.or_else(|| self.relay_path(now, id)).or(any) else {
            return;
        };
        tracing::debug!(peer = %id, path = ?endpoint, "path fell silent");
        handle.select(dst, now_ms);
        self.tell_path(id);
        self.resend(id);
    }

    /// A relayed peer is sent to where it listens.
    fn keep_relay(&mut self, now: Instant, id: &NodeId, handle: &PeerHandle) {
        let wanted = self.relay_path(now, id);
        let current = handle.destination();
        if let (Some(wanted), Some(current)) = (wanted, current)
            && wanted != current
        {
            handle.select(wanted, self.plane.shared.now_ms());
            self.tell_path(id);
        }
    }

    /// Uses the best of the proven direct paths.
    pub(super) fn reselect(&mut self, id: &NodeId) {
        let now_ms = self.plane.shared.now_ms();
        let (Some(control), Some(set)) = (self.peers.get(id), self.sets.get(id)) else {
            return;
        };
        let current = control.handle.destination();
        let selected = current.filter(|path| path.remote().is_some());
        let chosen = set.choose(now_ms, selected);
        if let Some(path) = chosen.filter(|_| chosen != selected) {
            control.handle.select(path, now_ms);
            self.tell_path(id);
        }
    }

    /// A handshake went through: that way is proven. A path that was only supposed gives way to it.
    pub(super) fn on_proven(&mut self, id: &NodeId, from: Destination) {
        let now_ms = self.plane.shared.now_ms();
        let (Some(control), Some(set)) = (self.peers.get(id), self.sets.get_mut(id)) else {
            return;
        };
        if let Some(endpoint) = from.remote() {
            set.prove(from, self.plane.shared.is_lan(endpoint.ip()), now_ms);
        }
        let current = control.handle.destination();
        let is_supposed = current
            .is_some_and(|path| path.remote().is_some() && path != from && !set.is_proven(&path));
        if is_supposed {
            control.handle.select(from, now_ms);
            self.tell_path(id);
        } else {
            self.reselect(id);
        }
    }

    /// The relay by which a peer is reached now; asks for a link where one is wanted.
    pub(super) fn relay_path(&mut self, now: Instant, id: &NodeId) -> Option<Destination> {
        let control = self.peers.get(id)?;
        let peer = control.handle.identity().node_key;
        let heard = control
            .relay_heard
            .filter(|(_, at)| now.saturating_duration_since(*at) < RELAY_HEARD_FOR)
            .map(|(relay, _)| relay);
        let listens = control.home_relay;
        if let Some(relay) = listens {
            self.want_relay(now, &relay);
        }
        // The peer holds a link to this node's home while it talks to this node.
        let ways = [listens, heard, listens.and_then(|_| self.relays.home())];
        let relay = ways
            .into_iter()
            .flatten()
            .find(|relay| self.relays.is_up(relay))?;
        Some(Destination::Relay { relay, peer })
    }

    fn want_relay(&mut self, now: Instant, relay: &RelayId) {
        if self.relays.need(now, relay) {
            self.out.events.push_back(Event::NeedRelay(*relay));
        }
    }

    /// A link to a relay stands: who waits for it goes on.
    pub(super) fn on_relay_up(&mut self, now: Instant, relay: &RelayId) {
        if self.relays.on_up(now, relay) {
            self.tell_home();
        }
        let live: Vec<NodeId> = self.peers.live().iter().copied().collect();
        for id in live {
            let Some(control) = self.peers.get(&id) else {
                continue;
            };
            let is_attempting = control.state().retry_at().is_some();
            if control.handle.destination().is_none() && is_attempting {
                self.initiate(now, &id);
            }
            self.look(now, &id);
        }
    }

    pub(super) fn tell_home(&mut self) {
        let home = self.relays.home();
        if home != self.told_home {
            self.told_home = home;
            self.out.events.push_back(Event::HomeRelay(home));
        }
    }

    /// Notes where a peer can be answered.
    pub(super) fn on_relay_heard(&mut self, now: Instant, id: &NodeId, relay: RelayId) {
        if let Some(control) = self.peers.get_mut(id) {
            control.relay_heard = Some((relay, now));
        }
    }

    fn ping_path(&mut self, id: &NodeId, to: Destination) {
        self.send_ping(id, to, None);
    }

    /// Sends a ping as short as can be, or as long as the datagram of an overlay packet.
    pub(super) fn send_ping(&mut self, id: &NodeId, to: Destination, length: Option<u16>) {
        let mut ping = [0; 12];
        ping.copy_from_slice(&self.seed.block()[..12]);
        let now_ms = self.plane.shared.now_ms();
        let Some(set) = self.sets.get_mut(id) else {
            return;
        };
        set.on_ping_sent(ping, to, now_ms, length);
        let message = Message::Ping {
            id: ping,
            datagram_len: length.map_or(PONG_LEN, |length| length.saturating_add(DATA_OVERHEAD)),
        };
        self.send_disco(id, to, &message);
    }

    /// Asks a peer to ping this node, by the relay.
    fn call(&mut self, now: Instant, id: &NodeId) {
        let now_ms = self.plane.shared.now_ms();
        let Some(relay) = self.relay_path(now, id) else {
            return;
        };
        let endpoints = self.candidates();
        let Some(set) = self.sets.get_mut(id) else {
            return;
        };
        let since = Duration::from_millis(now_ms.saturating_sub(set.called_ms));
        if endpoints.is_empty() || (set.called_ms != 0 && since < CALL_EVERY) {
            return;
        }
        set.called_ms = now_ms;
        let mapping = self.stun.mapping();
        self.send_disco(id, relay, &Message::CallMeMaybe { mapping, endpoints });
    }

    /// Asks STUN servers anew, unless that was done just before.
    pub fn look_around(&mut self, now: Instant) {
        self.plane.shared.set_clock(now);
        self.stun.doubt(now);
        self.refresh_timers(now);
    }

    /// What the network around this node looks like.
    #[must_use]
    pub fn net_report(&self, now: Instant) -> NetReport {
        NetReport {
            has_udp_ipv4: self.stun.works(false),
            has_udp_ipv6: self.stun.works(true),
            reflexive: self.stun.reflexive(),
            mapping: self.stun.mapping(),
            port_mapping: self.port_map.outer().zip(self.port_map.protocol()),
            is_settled: self.stun.is_settled(now),
            home_relay: self.relays.home(),
            relays: self.relays.reports(),
        }
    }

    /// The relay that this node listens on.
    #[must_use]
    pub const fn home_relay(&self) -> Option<RelayId> {
        self.relays.home()
    }

    /// Where this node may be reached, best first, without repetition.
    #[must_use]
    pub fn candidates(&self) -> Vec<Candidate> {
        let of = |endpoints: Vec<SocketAddr>, kind| {
            let candidates = endpoints.into_iter();
            candidates.map(move |endpoint| Candidate { endpoint, kind })
        };
        let mapped = self.port_map.outer().into_iter().collect();
        let mut own: Vec<Candidate> = of(mapped, CandidateKind::PortMapped)
            .chain(of(self.stun.reflexive(), CandidateKind::ServerReflexive))
            .collect();
        for candidate in of(self.local_endpoints.clone(), CandidateKind::Interface) {
            if own.iter().all(|known| known.endpoint != candidate.endpoint) {
                own.push(candidate);
            }
        }
        own.truncate(N_CALLED_MAX);
        own
    }

    pub(super) fn send_disco(&mut self, id: &NodeId, dst: Destination, message: &Message) {
        let mut nonce = [0; NONCE_LEN];
        nonce.copy_from_slice(&self.seed.block()[..NONCE_LEN]);
        if let Some(seal) = self.seal_of(id) {
            let datagram = seal.seal(&nonce, message);
            self.out.transmit(dst, &datagram);
        }
    }

    /// The peer's seal; made when first needed, for the arithmetic costs more than a message does.
    fn seal_of(&mut self, id: &NodeId) -> Option<DiscoSeal> {
        let control = self.peers.get_mut(id)?;
        let key = control.disco_key?;
        if control.seal.is_none() {
            control.seal = DiscoSeal::new(&self.disco_key, &key);
        }
        control.seal.clone()
    }
}
