//! How the engine follows the netmap: changes what changed and nothing else.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use mesh_proto::id::NodeId;
use mesh_proto::netmap::{Netmap, PeerEntry};

use super::Engine;
use crate::event::Event;
use crate::filter::Rules;
use crate::path::candidate::Surroundings;
use crate::peer::table::Control;
use crate::peer::{Identity, PeerHandle};
use crate::plane::Local;

impl Engine {
    pub(super) fn apply_netmap(&mut self, now: Instant, netmap: Arc<Netmap>) {
        let before = self.netmap.replace(Arc::clone(&netmap));
        let before = before.as_deref();
        if before.is_none_or(|before| before.network != netmap.network) {
            let surroundings = Surroundings {
                lans: self.plane.shared.surroundings().lans.clone(),
                overlay: vec![
                    netmap.network.ipv4_pool.into(),
                    netmap.network.ipv6_prefix.into(),
                ],
            };
            self.plane.shared.set_surroundings(surroundings);
            let network = &netmap.network;
            let of_relays = network.relays.iter().flat_map(|relay| &relay.stun);
            let servers: BTreeSet<SocketAddr> =
                network.stun.iter().chain(of_relays).copied().collect();
            let servers: Vec<SocketAddr> = servers.into_iter().collect();
            self.stun.set_servers(now, &servers);
            self.relays.set_entries(now, &network.relays);
            self.tell_home();
        }
        self.apply_local();
        for id in self.peers.ids() {
            if !netmap.peers.contains_key(&id) {
                self.remove_peer(&id);
            }
        }
        let has_new_filter = before.is_none_or(|before| before.filter != netmap.filter);
        let unix_ms = self.wall_clock.map_or(0, |clock| clock.unix_ms_at(now));
        for (id, entry) in &netmap.peers {
            let is_known = self.peers.get(id).is_some();
            if entry.is_expired(unix_ms) || *id == self.node_id {
                if is_known {
                    self.remove_peer(id);
                }
                continue;
            }
            let is_same = before.is_some_and(|before| before.peers.get(id) == Some(entry));
            if is_same && is_known && !has_new_filter {
                continue;
            }
            self.apply_peer(now, &netmap, id, entry);
            let was_away =
                before.is_some_and(|before| before.peers.get(id).is_some_and(|it| !it.is_online));
            if was_away && entry.is_online {
                self.on_back(now, id);
            }
        }
    }

    /// A peer was away from the coordinator. Where its program was started anew it has no session any more, and would
    /// lose what it is sent until it said so.
    fn on_back(&mut self, now: Instant, id: &NodeId) {
        let is_up = self
            .peers
            .get(id)
            .is_some_and(|control| control.state().is_up());
        if is_up {
            self.renew_session(now, id);
        }
    }

    /// Tells the plane who this node is.
    pub(super) fn apply_local(&mut self) {
        let Some(netmap) = &self.netmap else { return };
        self.plane.set_local(Some(Local {
            ipv4: netmap.node.ipv4,
            ipv6: netmap.node.ipv6,
            service_ipv4: netmap.network.service_ipv4,
            service_ipv6: netmap.network.service_ipv6,
            services: self.services.clone(),
        }));
    }

    pub(super) fn forget_mesh(&mut self) {
        for id in self.peers.ids() {
            self.remove_peer(&id);
        }
        (self.netmap, self.wall_clock) = (None, None);
        self.plane.set_local(None);
        self.pings.clear();
        self.stun = crate::nat::stun::Stun::default();
        self.relays = crate::relay::Relays::default();
        self.tell_home();
    }

    pub(super) fn remove_peer(&mut self, id: &NodeId) {
        let was_up = self.end_session_silently(id);
        let Some(control) = self.peers.remove(id) else {
            return;
        };
        for net in allowed_ips(control.handle.identity()) {
            self.plane.routes.remove(net, &control.handle);
        }
        control.handle.remove();
        if was_up {
            self.out.events.push_back(Event::PeerDown { node: *id });
        }
    }

    fn apply_peer(&mut self, now: Instant, netmap: &Netmap, id: &NodeId, entry: &PeerEntry) {
        let identity = Identity {
            node: *id,
            node_key: entry.node_key,
            ipv4: entry.ipv4,
            ipv6: entry.ipv6,
            wins_ties: self.node_id < *id,
        };
        let rules = Rules::compile(&netmap.filter, id, entry);
        match self.peers.get(id) {
            Some(control) if *control.handle.identity() == identity => {
                if **control.handle.rules() != rules {
                    control.handle.set_rules(Arc::new(rules));
                }
                if control.expires_at_ms != entry.expires_at_ms {
                    self.peers.set_expiry(id, entry.expires_at_ms);
                }
                let is_moved = self
                    .peers
                    .get(id)
                    .is_some_and(|control| control.endpoints != entry.endpoints);
                if is_moved {
                    self.peers.set_endpoints(id, entry.endpoints.clone());
                }
                self.apply_disco(now, id, entry);
                if is_moved {
                    self.on_new_candidates(now, id);
                }
            }
            Some(_) => {
                // Another key or address is another peer: nothing of the old session may live on.
                self.remove_peer(id);
                self.add_peer(identity, rules, entry);
            }
            None => self.add_peer(identity, rules, entry),
        }
    }

    fn add_peer(&mut self, identity: Identity, rules: Rules, entry: &PeerEntry) {
        let shared = Arc::clone(&self.plane.shared);
        let handle = PeerHandle::new(shared, identity, Arc::new(rules));
        for net in allowed_ips(&identity) {
            self.plane.routes.insert(net, &handle);
        }
        handle.set_guided(entry.disco_key.is_some());
        let mut control = Control::new(handle, entry.endpoints.clone(), entry.expires_at_ms);
        control.home_relay = entry.home_relay;
        self.peers.insert(control);
        self.peers.set_disco_key(&identity.node, entry.disco_key);
    }

    /// Follows a known peer's disco key and home relay.
    fn apply_disco(&mut self, now: Instant, id: &NodeId, entry: &PeerEntry) {
        let Some(control) = self.peers.get_mut(id) else {
            return;
        };
        control.home_relay = entry.home_relay;
        if control.disco_key == entry.disco_key {
            return;
        }
        let was_known = control.disco_key.is_some();
        let handle = control.handle.clone();
        let (is_up, is_live) = (control.state().is_up(), control.live.is_some());
        self.peers.set_disco_key(id, entry.disco_key);
        handle.set_guided(entry.disco_key.is_some());
        self.sets.remove(id);
        if is_live {
            self.begin_paths(id);
            self.look(now, id);
        }
        if was_known && is_up {
            // The peer's state directory is another: it has no session any more.
            self.renew_session(now, id);
        }
    }
}

/// The overlay addresses that a peer may speak from.
fn allowed_ips(identity: &Identity) -> [IpNet; 2] {
    [
        IpNet::V4(Ipv4Net::from(identity.ipv4)),
        IpNet::V6(Ipv6Net::from(identity.ipv6)),
    ]
}
