//! The mesh in memory: users, nodes, presence, and the log of what changed. Pure: it never asks the store or a clock.
//!
//! The store is the truth for what outlives a restart; presence lives here alone. Every change raises the version and
//! goes into a bounded log, from which each map stream builds its own delta.

pub(crate) mod log;
pub(crate) mod presence;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use mesh_proto::auth_key::pin_of;
use mesh_proto::id::{NodeId, NodeName, RelayId, UserId, UserName};
use mesh_proto::key::{CoordinatorKey, DiscoKey, MachineKey};
use mesh_proto::netmap::{NetworkInfo, Revision};
use mesh_proto::relay::{Pin, RelayEntry};
use mesh_relay::Members;

use self::log::ChangeLog;
use self::presence::Presence;
use crate::store::{NodeRecord, PresenceRecord, RelayRecord, UserRecord};

/// A node with its presence.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) record: NodeRecord,
    pub(crate) presence: Presence,
    pub(crate) told: Told,
}

/// What a node tells of its present run. Kept in memory alone: a node tells it again after a restart of either end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) disco_key: Option<DiscoKey>,
    pub(crate) home_relay: Option<RelayId>,
}

/// The mesh in memory.
#[derive(Debug)]
pub(crate) struct State {
    network: NetworkInfo,
    users: BTreeMap<UserId, UserRecord>,
    nodes: BTreeMap<NodeId, Node>,
    relays: BTreeMap<NodeName, RelayRecord>,
    /// The relay of the coordinator itself, as the map names it.
    own_relays: Vec<RelayEntry>,
    /// The relays that nodes offer, each with the number of the stream that holds it.
    offers: BTreeMap<NodeId, (u64, RelayEntry)>,
    log: ChangeLog,
    /// The version at which the mesh as a whole changed last.
    network_version: u64,
    /// Until then every node that was online before the start counts as online.
    grace_until: Instant,
}

/// What became due with time.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Due {
    /// Nodes whose key expired while they were connected.
    pub(crate) expired: Vec<NodeId>,
    /// Ephemeral nodes that were away for too long.
    pub(crate) forgotten: Vec<NodeId>,
}

impl State {
    pub(crate) fn new(network: NetworkInfo, epoch: u64, grace_until: Instant) -> Self {
        Self {
            own_relays: network.relays.clone(),
            network,
            users: BTreeMap::new(),
            nodes: BTreeMap::new(),
            relays: BTreeMap::new(),
            offers: BTreeMap::new(),
            log: ChangeLog::new(epoch),
            network_version: 0,
            grace_until,
        }
    }

    pub(crate) const fn network(&self) -> &NetworkInfo {
        &self.network
    }

    /// Whether the mesh as a whole changed after a version of this run.
    pub(crate) const fn is_network_newer(&self, since: u64) -> bool {
        self.network_version > since
    }

    pub(crate) const fn revision(&self) -> Revision {
        self.log.revision()
    }

    pub(crate) const fn log(&self) -> &ChangeLog {
        &self.log
    }

    pub(crate) fn node(&self, id: &NodeId) -> Option<&Node> {
        self.nodes.get(id)
    }

    pub(crate) fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    /// The node keys that relays serve, each with its expiry.
    pub(crate) fn members(&self) -> Members {
        let keys = self.nodes.values();
        Members::new(keys.map(|node| (node.record.node_key, node.record.expires_at_ms)))
    }

    pub(crate) fn node_by_name(&self, name: &NodeName) -> Option<&Node> {
        self.nodes.values().find(|node| node.record.name == *name)
    }

    pub(crate) fn n_nodes(&self) -> usize {
        self.nodes.len()
    }

    pub(crate) fn n_online(&self) -> usize {
        self.nodes
            .values()
            .filter(|node| node.presence.is_online())
            .count()
    }

    pub(crate) fn users(&self) -> impl Iterator<Item = &UserRecord> {
        self.users.values()
    }

    pub(crate) fn user_name(&self, id: UserId) -> Option<&UserName> {
        self.users.get(&id).map(|user| &user.name)
    }

    pub(crate) fn n_nodes_of(&self, user: UserId) -> usize {
        self.nodes
            .values()
            .filter(|node| node.record.user == user)
            .count()
    }

    /// Takes in a user; a new name changes all its nodes.
    pub(crate) fn put_user(&mut self, user: UserRecord) {
        let id = user.id;
        if self
            .users
            .insert(id, user.clone())
            .is_some_and(|old| old != user)
        {
            let owned: Vec<_> = self
                .nodes
                .values()
                .filter(|node| node.record.user == id)
                .collect();
            let owned: Vec<_> = owned.into_iter().map(|node| node.record.id).collect();
            for node in owned {
                self.log.push(node);
            }
        }
    }

    pub(crate) fn remove_user(&mut self, id: UserId) {
        self.users.remove(&id);
    }

    /// Takes in what the store has of a node. What nobody can see the difference of is no change.
    pub(crate) fn put_node(&mut self, record: NodeRecord, now: Instant, now_ms: u64) {
        let id = record.id;
        let grace_until = self.grace_until;
        match self.nodes.get_mut(&id) {
            Some(node) => {
                if node.record == record {
                    return;
                }
                let gained_offers =
                    node.record.offers.models.is_empty() && !record.offers.models.is_empty();
                if gained_offers {
                    node.presence.on_beat(now, now_ms);
                }
                node.record = record;
                node.presence.settle(&node.record, now, now_ms, grace_until);
            }
            None => {
                let mut presence = Presence::new(&record);
                presence.settle(&record, now, now_ms, grace_until);
                let node = Node {
                    record,
                    presence,
                    told: Told::default(),
                };
                self.nodes.insert(id, node);
            }
        }
        self.log.push(id);
    }

    pub(crate) fn relays(&self) -> impl Iterator<Item = &RelayRecord> {
        self.relays.values()
    }

    /// Whether a machine is a relay of this mesh.
    pub(crate) fn is_relay(&self, machine_key: &MachineKey) -> bool {
        self.relays
            .values()
            .any(|relay| relay.machine_key.as_ref() == Some(machine_key))
    }

    /// Whether a node offers a relay and is in, at a time in Unix milliseconds.
    pub(crate) fn is_offering(&self, node: &NodeId, now_ms: u64) -> bool {
        let node_is_in = self
            .node(node)
            .is_some_and(|node| !node.record.is_expired(now_ms));
        node_is_in && self.offers.contains_key(node)
    }

    /// Relays in the map that are not this node's.
    pub(crate) fn n_other_relays(&self, node: &NodeId) -> usize {
        let own = usize::from(self.offers.contains_key(node));
        self.network.relays.len().saturating_sub(own)
    }

    /// Takes the relay that a node offers, in place of the one that it may have offered before.
    pub(crate) fn put_offer(&mut self, node: NodeId, stream: u64, relay: RelayEntry) {
        self.offers.insert(node, (stream, relay));
        self.renew_relays();
    }

    /// The stream that held an offer is over.
    pub(crate) fn end_offer(&mut self, node: &NodeId, stream: u64) {
        if self
            .offers
            .get(node)
            .is_some_and(|(holder, _)| *holder == stream)
        {
            self.offers.remove(node);
            self.renew_relays();
        }
    }

    /// Takes in what the store has of a relay.
    pub(crate) fn put_relay(&mut self, relay: RelayRecord) {
        self.relays.insert(relay.name.clone(), relay);
        self.renew_relays();
    }

    pub(crate) fn remove_relay(&mut self, name: &NodeName) {
        self.relays.remove(name);
        self.renew_relays();
    }

    /// Makes the map name the relays that have come.
    fn renew_relays(&mut self) {
        let others = self.relays.values().filter_map(relay_entry);
        let offered = self.offers.values().map(|(_, relay)| relay.clone());
        let own = self.own_relays.iter().cloned();
        let relays: Vec<RelayEntry> = own.chain(others).chain(offered).collect();
        if relays != self.network.relays {
            self.network.relays = relays;
            self.log.push_other();
            self.network_version = self.log.revision().version;
        }
    }

    pub(crate) fn remove_node(&mut self, id: NodeId) -> bool {
        let was_there = self.nodes.remove(&id).is_some();
        if was_there {
            self.log.push(id);
        }
        was_there
    }

    /// Makes nodes and users equal to what the store holds, after a write whose end is not known.
    pub(crate) fn reload(
        &mut self,
        users: Vec<UserRecord>,
        nodes: Vec<NodeRecord>,
        relays: Vec<RelayRecord>,
        now: Instant,
        now_ms: u64,
    ) {
        for user in users {
            self.put_user(user);
        }
        self.relays = relays
            .into_iter()
            .map(|relay| (relay.name.clone(), relay))
            .collect();
        self.renew_relays();
        let kept: BTreeSet<_> = nodes.iter().map(|node| node.id).collect();
        let gone: Vec<_> = self
            .nodes
            .keys()
            .filter(|id| !kept.contains(id))
            .copied()
            .collect();
        for id in gone {
            self.remove_node(id);
        }
        for node in nodes {
            self.put_node(node, now, now_ms);
        }
    }

    /// A node opened its map stream.
    pub(crate) fn on_stream_opened(&mut self, id: &NodeId, now: Instant, now_ms: u64) {
        self.with_presence(id, now, now_ms, |presence| {
            presence.on_stream_opened(now, now_ms)
        });
    }

    /// A node told of its present run; what it left out stays.
    pub(crate) fn on_told(&mut self, id: &NodeId, told: Told) {
        let Some(node) = self.nodes.get_mut(id) else {
            return;
        };
        let newest = Told {
            disco_key: told.disco_key.or(node.told.disco_key),
            home_relay: told.home_relay.or(node.told.home_relay),
        };
        if node.told != newest {
            node.told = newest;
            self.log.push(*id);
        }
    }

    /// A node's map stream ended.
    pub(crate) fn on_stream_closed(&mut self, id: &NodeId, now: Instant, now_ms: u64) {
        self.with_presence(id, now, now_ms, |presence| {
            presence.on_stream_closed(now_ms)
        });
    }

    /// A node beat.
    pub(crate) fn on_beat(&mut self, id: &NodeId, now: Instant, now_ms: u64) {
        self.with_presence(id, now, now_ms, |presence| presence.on_beat(now, now_ms));
    }

    /// Time passed: hosts without beats go offline, expired nodes and ephemeral nodes that stay away are told.
    pub(crate) fn on_tick(&mut self, now: Instant, now_ms: u64, ephemeral_ttl_ms: u64) -> Due {
        let mut due = Due::default();
        for (id, node) in &mut self.nodes {
            if node
                .presence
                .settle(&node.record, now, now_ms, self.grace_until)
            {
                self.log.push(*id);
            }
            if node.presence.is_streaming() && node.record.is_expired(now_ms) {
                due.expired.push(*id);
            }
            let seen_ms = node
                .presence
                .last_seen_ms()
                .unwrap_or(node.record.created_at_ms);
            if node.record.is_ephemeral
                && !node.presence.is_streaming()
                && now >= self.grace_until
                && now_ms.saturating_sub(seen_ms) >= ephemeral_ttl_ms
            {
                due.forgotten.push(*id);
            }
        }
        due
    }

    /// The presence of nodes that differs from what the store was last told.
    pub(crate) fn take_presence_to_keep(&mut self) -> Vec<PresenceRecord> {
        let mut records = Vec::new();
        for node in self.nodes.values_mut() {
            if node.presence.take_is_unkept() {
                records.push(PresenceRecord {
                    id: node.record.id,
                    last_seen_ms: node.presence.last_seen_ms(),
                    was_online: node.presence.is_online(),
                });
            }
        }
        records
    }

    fn with_presence(
        &mut self,
        id: &NodeId,
        now: Instant,
        now_ms: u64,
        change: impl FnOnce(&mut Presence),
    ) {
        let Some(node) = self.nodes.get_mut(id) else {
            return;
        };
        change(&mut node.presence);
        if node
            .presence
            .settle(&node.record, now, now_ms, self.grace_until)
        {
            self.log.push(*id);
        }
    }
}

/// A relay as the map names it; `None` until it has come.
pub(crate) fn relay_entry(relay: &RelayRecord) -> Option<RelayEntry> {
    let key = relay.machine_key?;
    let pin = Pin::from_bytes(pin_of(&CoordinatorKey::from_bytes(*key.as_bytes())));
    Some(RelayEntry {
        id: RelayId::of(pin.as_bytes(), relay.urls.first()?),
        name: relay.name.to_string(),
        urls: relay.urls.clone(),
        pin,
        udp: vec![],
        stun: relay.stun.clone(),
    })
}

#[cfg(test)]
pub(crate) mod tests;
