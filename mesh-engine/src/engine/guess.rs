//! How the engine guesses ports where a NAT gives each destination another one, and which spare sockets it keeps for that.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use mesh_proto::disco::{Mapping, Message, PONG_LEN};
use mesh_proto::id::NodeId;

use super::Engine;
use crate::config::{
    N_GUESSES_A_STEP, N_GUESSING_MAX, N_SPARES_A_STEP, SPARES_AGAIN, SPARES_KEPT_FOR,
};
use crate::event::{Destination, Event};

impl Engine {
    /// Whether guessing may help with a peer, and its turn has come.
    pub(super) fn may_guess(&self, id: &NodeId) -> bool {
        let Some(set) = self.sets.get(id) else {
            return false;
        };
        let is_hopeful = matches!(
            (self.stun.mapping(), set.mapping),
            (Mapping::EndpointDependent, Mapping::EndpointIndependent)
                | (Mapping::EndpointIndependent, Mapping::EndpointDependent)
        );
        let mut guessing = self.sets.iter().filter(|(_, set)| set.is_guessing());
        is_hopeful && (set.is_guessing() || guessing.nth(N_GUESSING_MAX - 1).is_none())
    }

    /// One step of guessing.
    pub(super) fn guess(&mut self, now: Instant, id: &NodeId, step: u32) {
        let Some(set) = self.sets.get(id) else {
            return;
        };
        let targets = set.public_endpoints();
        if self.stun.mapping() == Mapping::EndpointDependent {
            self.open_ports(now, id, &targets, step);
        } else {
            self.try_ports(id, &targets);
        }
    }

    /// Opens many ports of this node's NAT towards a peer whose endpoint is known.
    fn open_ports(&mut self, now: Instant, id: &NodeId, targets: &[SocketAddr], step: u32) {
        self.spares.kept_until = Some(now + SPARES_KEPT_FOR);
        let first = (step % SPARES_AGAIN).saturating_mul(N_SPARES_A_STEP);
        let last = (first + N_SPARES_A_STEP).min(self.spares.n_usable.into());
        for socket in first..last {
            let Ok(socket) = u16::try_from(socket) else {
                return;
            };
            for endpoint in targets {
                let endpoint = *endpoint;
                self.ping_blindly(id, Destination::Spare { socket, endpoint });
            }
        }
    }

    /// Tries random ports of a peer's NAT. It may show several ports at one address.
    fn try_ports(&mut self, id: &NodeId, targets: &[SocketAddr]) {
        let ips: BTreeSet<IpAddr> = targets.iter().map(SocketAddr::ip).collect();
        for ip in ips {
            for _ in 0..N_GUESSES_A_STEP {
                let port = 1024 + self.seed.below(64_512);
                let port = u16::try_from(port).unwrap_or(u16::MAX);
                self.ping_blindly(id, Destination::Udp(SocketAddr::new(ip, port)));
            }
        }
    }

    /// A ping whose pong is not waited for: when it comes through, the peer's own ping follows.
    fn ping_blindly(&mut self, id: &NodeId, to: Destination) {
        let mut ping = [0; 12];
        ping.copy_from_slice(&self.seed.block()[..12]);
        let message = Message::Ping {
            id: ping,
            datagram_len: PONG_LEN,
        };
        self.send_disco(id, to, &message);
    }

    /// Tells which spare sockets are paths, once that changes and once nobody guesses any more.
    pub(super) fn tell_spares(&mut self, now: Instant) {
        let mut in_use = BTreeSet::new();
        for id in self.peers.live() {
            let control = self.peers.get(id);
            let path = control.and_then(|control| control.handle.destination());
            if let Some(Destination::Spare { socket, .. }) = path {
                in_use.insert(socket);
            }
        }
        let is_over = self.spares.kept_until.is_some_and(|until| now >= until);
        // While there are guesses, all are kept.
        let is_freed = self.spares.kept_until.is_none() && in_use != self.spares.told;
        if is_over || is_freed {
            self.spares.kept_until = None;
            let told = in_use.iter().copied().collect();
            self.out.events.push_back(Event::SparesInUse(told));
            self.spares.told = in_use;
        }
    }
}
