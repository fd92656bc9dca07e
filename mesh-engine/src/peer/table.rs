//! All peers of the control side: by id and by key, with what is due when.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Instant;

use mesh_proto::disco::DiscoSeal;
use mesh_proto::id::{NodeId, RelayId};
use mesh_proto::key::{DiscoKey, NodeKey};

use crate::event::Destination;
use crate::peer::PeerHandle;
use crate::peer::state::State;

/// Peers that may claim one disco key and still be heard.
const N_SAME_DISCO_KEY_MAX: usize = 4;

/// One peer of the control side.
#[derive(Debug)]
pub(crate) struct Control {
    pub(crate) handle: PeerHandle,
    /// Where the netmap says that it may be reached.
    pub(crate) endpoints: Vec<SocketAddr>,
    pub(crate) expires_at_ms: Option<u64>,
    /// The path that the daemon was told last.
    pub(crate) told_path: Option<Destination>,
    /// What its path discovery is sealed to.
    pub(crate) disco_key: Option<DiscoKey>,
    pub(crate) seal: Option<DiscoSeal>,
    /// The relay that it listens on.
    pub(crate) home_relay: Option<RelayId>,
    /// The relay that it was heard by, and when.
    pub(crate) relay_heard: Option<(RelayId, Instant)>,
    /// Where it was when the last session ended.
    pub(crate) last_direct: Option<SocketAddr>,
    /// When and where TCP's last packets were last sent again.
    pub(crate) resent: Option<(u64, Destination)>,
    /// Pings answered in a stretch of time.
    pub(crate) pings_answered: (u64, u32),
    /// Set while there is a session.
    pub(crate) live: Option<Live>,
    state: State,
}

/// A session that exists, be it with keys or without.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Live {
    pub(crate) index: u32,
    /// When it was made, or last answered an initiation.
    pub(crate) touched_at: Instant,
    /// When a peer that sent an old initiation was last met half way.
    pub(crate) met_at: Option<Instant>,
}

impl Control {
    pub(crate) fn new(
        handle: PeerHandle,
        endpoints: Vec<SocketAddr>,
        expires_at_ms: Option<u64>,
    ) -> Self {
        Self {
            handle,
            endpoints,
            expires_at_ms,
            told_path: None,
            disco_key: None,
            seal: None,
            home_relay: None,
            relay_heard: None,
            last_direct: None,
            resent: None,
            pings_answered: (0, 0),
            live: None,
            state: State::Idle,
        }
    }

    pub(crate) const fn state(&self) -> &State {
        &self.state
    }
}

/// The table.
#[derive(Debug, Default)]
pub(crate) struct Peers {
    by_id: BTreeMap<NodeId, Control>,
    by_key: BTreeMap<NodeKey, NodeId>,
    live: BTreeSet<NodeId>,
    retries: BTreeSet<(Instant, NodeId)>,
    expiries: BTreeSet<(u64, NodeId)>,
    by_disco: BTreeSet<(DiscoKey, NodeId)>,
}

impl Peers {
    pub(crate) fn get(&self, id: &NodeId) -> Option<&Control> {
        self.by_id.get(id)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&NodeId, &Control)> {
        self.by_id.iter()
    }

    pub(crate) fn ids(&self) -> Vec<NodeId> {
        self.by_id.keys().copied().collect()
    }

    pub(crate) fn by_key(&self, key: &NodeKey) -> Option<NodeId> {
        self.by_key.get(key).copied()
    }

    /// Adds a peer that is not there yet.
    pub(crate) fn insert(&mut self, control: Control) {
        let identity = *control.handle.identity();
        self.by_key.insert(identity.node_key, identity.node);
        self.expiries
            .extend(control.expires_at_ms.map(|at| (at, identity.node)));
        self.by_id.insert(identity.node, control);
    }

    pub(crate) fn remove(&mut self, id: &NodeId) -> Option<Control> {
        let control = self.by_id.remove(id)?;
        let node_key = control.handle.identity().node_key;
        if self.by_key.get(&node_key) == Some(id) {
            self.by_key.remove(&node_key);
        }
        if let Some(key) = control.disco_key {
            self.by_disco.remove(&(key, *id));
        }
        self.live.remove(id);
        if let Some(at) = control.state.retry_at() {
            self.retries.remove(&(at, *id));
        }
        if let Some(at) = control.expires_at_ms {
            self.expiries.remove(&(at, *id));
        }
        Some(control)
    }

    pub(crate) fn set_endpoints(&mut self, id: &NodeId, endpoints: Vec<SocketAddr>) {
        if let Some(control) = self.by_id.get_mut(id) {
            control.endpoints = endpoints;
        }
    }

    pub(crate) fn set_expiry(&mut self, id: &NodeId, expires_at_ms: Option<u64>) {
        if let Some(control) = self.by_id.get_mut(id) {
            if let Some(at) = control.expires_at_ms {
                self.expiries.remove(&(at, *id));
            }
            control.expires_at_ms = expires_at_ms;
            self.expiries.extend(expires_at_ms.map(|at| (at, *id)));
        }
    }

    pub(crate) fn set_live(&mut self, id: &NodeId, live: Option<Live>) {
        if let Some(control) = self.by_id.get_mut(id) {
            control.live = live;
            if live.is_some() {
                self.live.insert(*id);
            } else {
                self.live.remove(id);
            }
        }
    }

    pub(crate) fn set_told_path(&mut self, id: &NodeId, path: Option<Destination>) {
        if let Some(control) = self.by_id.get_mut(id) {
            control.told_path = path;
        }
    }

    /// For what no index depends on.
    pub(crate) fn get_mut(&mut self, id: &NodeId) -> Option<&mut Control> {
        self.by_id.get_mut(id)
    }

    /// The peers that say that a disco key is theirs, a few at most: only one of them can hold it.
    pub(crate) fn by_disco(&self, key: &DiscoKey) -> Vec<NodeId> {
        let (least, most) = ([0; 10], [0xff; 10]);
        let range = (*key, NodeId::from_bytes(least))..=(*key, NodeId::from_bytes(most));
        let found = self.by_disco.range(range).map(|(_, id)| *id);
        found.take(N_SAME_DISCO_KEY_MAX).collect()
    }

    /// Another disco key is another run of the peer.
    pub(crate) fn set_disco_key(&mut self, id: &NodeId, key: Option<DiscoKey>) {
        if let Some(control) = self.by_id.get_mut(id) {
            if let Some(old) = control.disco_key {
                self.by_disco.remove(&(old, *id));
            }
            self.by_disco.extend(key.map(|key| (key, *id)));
            control.disco_key = key;
            control.seal = None;
        }
    }

    /// Puts a peer's state through a transition and keeps the retries in step.
    pub(crate) fn change<R>(
        &mut self,
        id: &NodeId,
        transition: impl FnOnce(&mut State) -> R,
    ) -> Option<R> {
        let control = self.by_id.get_mut(id)?;
        let before = control.state.retry_at();
        let result = transition(&mut control.state);
        let after = control.state.retry_at();
        if before != after {
            if let Some(at) = before {
                self.retries.remove(&(at, *id));
            }
            self.retries.extend(after.map(|at| (at, *id)));
        }
        Some(result)
    }

    /// Peers with a session.
    pub(crate) const fn live(&self) -> &BTreeSet<NodeId> {
        &self.live
    }

    pub(crate) fn next_retry(&self) -> Option<Instant> {
        self.retries.first().map(|(at, _)| *at)
    }

    /// Peers whose handshake is due.
    pub(crate) fn due_retries(&self, now: Instant) -> Vec<NodeId> {
        let due = self.retries.iter().take_while(|(at, _)| *at <= now);
        due.map(|(_, id)| *id).collect()
    }

    pub(crate) fn next_expiry_ms(&self) -> Option<u64> {
        self.expiries.first().map(|(at, _)| *at)
    }

    /// Peers whose key has expired.
    pub(crate) fn expired(&self, unix_ms: u64) -> Vec<NodeId> {
        let due = self.expiries.iter().take_while(|(at, _)| *at <= unix_ms);
        due.map(|(_, id)| *id).collect()
    }
}
