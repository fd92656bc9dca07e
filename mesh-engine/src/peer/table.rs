//! All peers of the control side: by id and by key, with what is due when.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Instant;

use mesh_proto::id::NodeId;
use mesh_proto::key::NodeKey;

use crate::peer::PeerHandle;
use crate::peer::state::State;

/// One peer of the control side.
#[derive(Debug)]
pub(crate) struct Control {
    pub(crate) handle: PeerHandle,
    /// Where the netmap says that it may be reached.
    pub(crate) endpoints: Vec<SocketAddr>,
    pub(crate) expires_at_ms: Option<u64>,
    /// The path that the daemon was told last.
    pub(crate) told_endpoint: Option<SocketAddr>,
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
            told_endpoint: None,
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

    pub(crate) fn set_told_endpoint(&mut self, id: &NodeId, endpoint: Option<SocketAddr>) {
        if let Some(control) = self.by_id.get_mut(id) {
            control.told_endpoint = endpoint;
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
