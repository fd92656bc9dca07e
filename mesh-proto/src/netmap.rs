//! The netmap: all that a node should know of its mesh, how it changes, and how it is signed.
//!
//! A map stream is a sequence of lines. Each is `signature SP json LF`: the coordinator's signature covers the JSON bytes
//! as they are on the line, and the JSON says for which node and at which `(epoch, version)` it holds. A node keeps the
//! lines it was sent, so that it can start from them with no coordinator in reach and still verify every word.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::filter::Filter;
use crate::id::{NetworkId, NodeId, NodeName, RelayId, Tag, UserId, UserName};
use crate::key::{
    CoordinatorKey, CoordinatorPrivateKey, DiscoKey, KeyError, MachineKey, NodeKey, Purpose,
    Signature,
};
use crate::relay::RelayEntry;
use crate::share::HostOffers;
use crate::signed_line;

/// Where a map stands. Compared as a pair: a restart of the coordinator raises the epoch, a change the version.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Revision {
    /// Rises with each start of the coordinator; versions of different epochs do not compare.
    pub epoch: u64,
    /// Rises with each change in the mesh.
    pub version: u64,
}

/// All that a node should know.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Netmap {
    /// The mesh.
    pub network: NetworkInfo,
    /// This node itself.
    pub node: SelfNode,
    /// Who may open flows to this node.
    pub filter: Filter,
    /// Every node that this one may see, itself not among them.
    pub peers: BTreeMap<NodeId, PeerEntry>,
}

/// What holds for the whole mesh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkInfo {
    /// The mesh's id.
    pub id: NetworkId,
    /// The DNS suffix without dots at its ends, `proxima`.
    pub suffix: String,
    /// The IPv4 pool of overlay addresses.
    pub ipv4_pool: Ipv4Net,
    /// The IPv6 prefix of overlay addresses.
    pub ipv6_prefix: Ipv6Net,
    /// The IPv4 service address: exists on each node and never leaves it.
    pub service_ipv4: Ipv4Addr,
    /// The IPv6 service address.
    pub service_ipv6: Ipv6Addr,
    /// Where nodes learn their server-reflexive address (STUN over UDP).
    pub stun: Vec<SocketAddr>,
    /// The coordinators of this mesh, best first.
    pub coordinator_urls: Vec<String>,
    /// What carries packets between nodes that have no direct path, best first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub relays: Vec<RelayEntry>,
}

/// What a node is told of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SelfNode {
    /// Its id.
    pub id: NodeId,
    /// Its name.
    pub name: NodeName,
    /// Its owner.
    pub user: UserId,
    /// Its owner's name.
    pub user_name: UserName,
    /// Its tags.
    #[serde(default)]
    pub tags: Vec<Tag>,
    /// The node key that the coordinator has of it.
    pub node_key: NodeKey,
    /// Its IPv4 overlay address.
    pub ipv4: Ipv4Addr,
    /// Its IPv6 overlay address.
    pub ipv6: Ipv6Addr,
    /// When its node key expires, Unix milliseconds; never when absent.
    #[serde(default)]
    pub expires_at_ms: Option<u64>,
}

/// What a node is told of a peer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PeerEntry {
    /// Its name.
    pub name: NodeName,
    /// Its owner.
    pub user: UserId,
    /// Its owner's name.
    pub user_name: UserName,
    /// Its tags.
    #[serde(default)]
    pub tags: Vec<Tag>,
    /// Its identity.
    pub machine_key: MachineKey,
    /// Its tunnel end.
    pub node_key: NodeKey,
    /// The machine key's signature over the node key.
    pub node_key_signature: Signature,
    /// Its IPv4 overlay address.
    pub ipv4: Ipv4Addr,
    /// Its IPv6 overlay address.
    pub ipv6: Ipv6Addr,
    /// Where it may be reached on the underlay.
    #[serde(default)]
    pub endpoints: Vec<SocketAddr>,
    /// What its path discovery is sealed to; absent when it knows none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disco_key: Option<DiscoKey>,
    /// The relay that it listens on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub home_relay: Option<RelayId>,
    /// When its node key expires, Unix milliseconds; each peer enforces it by its own clock.
    #[serde(default)]
    pub expires_at_ms: Option<u64>,
    /// Whether the coordinator hears from it.
    pub is_online: bool,
    /// When the coordinator heard from it last, Unix milliseconds; meaningful while it is not online.
    #[serde(default)]
    pub last_seen_ms: Option<u64>,
    /// What it shares with this node's user.
    #[serde(default)]
    pub offers: HostOffers,
}

impl PeerEntry {
    /// Whether the key has expired at a time, Unix milliseconds.
    #[must_use]
    pub fn is_expired(&self, now_ms: u64) -> bool {
        self.expires_at_ms.is_some_and(|at| at <= now_ms)
    }

    /// Whether the entry is what its machine key says: id and key belong together, and the node key is vouched for.
    ///
    /// # Errors
    /// [`KeyError`] when they do not.
    pub fn verify(&self, id: &NodeId) -> Result<(), KeyError> {
        if NodeId::of(&self.machine_key) != *id {
            return Err(KeyError::Invalid);
        }
        self.machine_key.verify(
            Purpose::NodeKey,
            self.node_key.as_bytes(),
            &self.node_key_signature,
        )
    }
}

/// A change of a netmap. What is absent stays.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct NetmapDelta {
    /// The mesh, when that changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkInfo>,
    /// This node, when that changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<SelfNode>,
    /// The filter, when that changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<Filter>,
    /// Peers that are new or changed, whole.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub peers: BTreeMap<NodeId, PeerEntry>,
    /// Peers that this node sees no longer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub removed: Vec<NodeId>,
}

impl NetmapDelta {
    /// Whether applying it changes nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Netmap {
    /// Carries a change out.
    pub fn apply(&mut self, delta: NetmapDelta) {
        if let Some(network) = delta.network {
            self.network = network;
        }
        if let Some(node) = delta.node {
            self.node = node;
        }
        if let Some(filter) = delta.filter {
            self.filter = filter;
        }
        for id in &delta.removed {
            self.peers.remove(id);
        }
        self.peers.extend(delta.peers);
    }

    /// The change that makes `newer` out of this map.
    #[must_use]
    pub fn diff(&self, newer: &Self) -> NetmapDelta {
        let changed = newer
            .peers
            .iter()
            .filter(|(id, peer)| self.peers.get(id) != Some(peer));
        NetmapDelta {
            network: (self.network != newer.network).then(|| newer.network.clone()),
            node: (self.node != newer.node).then(|| newer.node.clone()),
            filter: (self.filter != newer.filter).then(|| newer.filter.clone()),
            peers: changed.map(|(id, peer)| (*id, peer.clone())).collect(),
            removed: self
                .peers
                .keys()
                .filter(|id| !newer.peers.contains_key(id))
                .copied()
                .collect(),
        }
    }
}

/// One line of a map stream, before signing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MapFrame {
    /// The node that this is for; another node refuses it.
    pub to: NodeId,
    /// Where the map stands after this frame.
    pub revision: Revision,
    /// The coordinator's clock, Unix milliseconds; for finding a wrong clock, never for trust.
    pub sent_at_ms: u64,
    /// What is said.
    #[serde(flatten)]
    pub body: MapBody,
}

/// What a frame says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MapBody {
    /// The whole map; what was known before is void.
    Full(Box<Netmap>),
    /// A change of the map at `since`.
    Delta {
        /// The version, of the same epoch, that the change starts from.
        since: u64,
        /// The change.
        #[serde(flatten)]
        delta: Box<NetmapDelta>,
    },
    /// Nothing new; the stream lives.
    Heartbeat {},
}

/// Why a line was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Not `signature SP json`.
    #[error("the line is not a map frame")]
    Malformed,
    /// Signed by another key, or changed on the way.
    #[error("the map is not signed by this mesh's coordinator")]
    BadSignature,
    /// Signed for another node.
    #[error("the map is for another node")]
    WrongNode,
}

impl MapFrame {
    /// Signs the frame: one line with its line feed.
    #[must_use]
    pub fn to_line(&self, key: &CoordinatorPrivateKey) -> String {
        signed_line::write(self, Purpose::MapFrame, key)
    }

    /// Verifies and reads one line, with or without its line feed.
    ///
    /// # Errors
    /// [`FrameError`] when the line is not for this node from this coordinator.
    pub fn from_line(
        line: &str,
        coordinator: &CoordinatorKey,
        node: &NodeId,
    ) -> Result<Self, FrameError> {
        let frame: Self = signed_line::read(line, Purpose::MapFrame, coordinator)?;
        if frame.to == *node {
            Ok(frame)
        } else {
            Err(FrameError::WrongNode)
        }
    }
}

#[cfg(test)]
mod tests;
