//! A node's netmap and the changes of it, out of the mesh in memory. Pure.

use mesh_proto::filter::Filter;
use mesh_proto::id::NodeId;
use mesh_proto::netmap::{Netmap, NetmapDelta, PeerEntry, Revision, SelfNode};

use crate::policy;
use crate::state::{Node, State};

/// The whole map of a node; `None` when there is no such node.
pub(crate) fn full(state: &State, to: &NodeId) -> Option<Netmap> {
    let viewer = state.node(to)?;
    let peers = state
        .nodes()
        .filter_map(|peer| Some((peer.record.id, entry(state, viewer, peer)?)))
        .collect();
    let (node, filter) = self_part(state, viewer)?;
    Some(Netmap {
        network: state.network().clone(),
        node,
        filter,
        peers,
    })
}

/// What changed for a node after a revision; `None` when there is no such node, or the log does not reach back.
///
/// Costs what the changes cost, however large the mesh is.
pub(crate) fn delta(state: &State, to: &NodeId, since: Revision) -> Option<NetmapDelta> {
    let viewer = state.node(to)?;
    let mut delta = NetmapDelta::default();
    if state.is_network_newer(since.version) {
        delta.network = Some(state.network().clone());
    }
    for id in state.log().since(since)? {
        if id == *to {
            let (node, filter) = self_part(state, viewer)?;
            delta.node = Some(node);
            delta.filter = Some(filter);
            continue;
        }
        match state.node(&id).and_then(|peer| entry(state, viewer, peer)) {
            Some(entry) => {
                delta.peers.insert(id, entry);
            }
            None => delta.removed.push(id),
        }
    }
    Some(delta)
}

fn self_part(state: &State, node: &Node) -> Option<(SelfNode, Filter)> {
    let record = &node.record;
    let own = SelfNode {
        id: record.id,
        name: record.name.clone(),
        user: record.user,
        user_name: state.user_name(record.user)?.clone(),
        tags: record.tags.clone(),
        node_key: record.node_key,
        ipv4: record.ipv4,
        ipv6: state.network().id.ipv6_of(&record.id),
        expires_at_ms: record.expires_at_ms,
    };
    Some((own, policy::filter_for(record)))
}

/// What a viewer is told of a peer; `None` when it may not know of it.
fn entry(state: &State, viewer: &Node, peer: &Node) -> Option<PeerEntry> {
    let (viewer, record) = (&viewer.record, &peer.record);
    if !policy::sees(viewer, record) {
        return None;
    }
    let (is_online, last_seen_ms) = peer.presence.as_told();
    Some(PeerEntry {
        name: record.name.clone(),
        user: record.user,
        user_name: state.user_name(record.user)?.clone(),
        tags: record.tags.clone(),
        machine_key: record.machine_key,
        node_key: record.node_key,
        node_key_signature: record.node_key_signature,
        ipv4: record.ipv4,
        ipv6: state.network().id.ipv6_of(&record.id),
        endpoints: record.endpoints.clone(),
        disco_key: peer.told.disco_key,
        home_relay: peer.told.home_relay,
        expires_at_ms: record.expires_at_ms,
        is_online,
        last_seen_ms,
        offers: policy::offers_for(viewer, state.user_name(viewer.user)?, record),
    })
}

#[cfg(test)]
mod tests;
