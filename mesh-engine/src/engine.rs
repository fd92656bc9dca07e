//! The control side: dispatches inputs to the parts and drains their outputs.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use mesh_proto::id::NodeId;
use mesh_proto::key::NodePrivateKey;

use crate::event::{Event, PeerStats, PingToken, PlaneEvent, TimerReason, Transmit, Update};
use crate::plane::Plane;

/// What an engine starts from.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// This node's private key.
    pub node_key: NodePrivateKey,
    /// This node.
    pub node_id: NodeId,
    /// All that the engine itself draws comes from here; fill it from the system's random source.
    pub seed: [u8; 32],
}

/// The mesh as this node sees it.
#[derive(Debug)]
pub struct Engine {
    plane: Arc<Plane>,
    transmits: VecDeque<Transmit>,
    events: VecDeque<Event>,
}

impl Engine {
    /// An engine without peers.
    #[must_use]
    pub fn new(_now: Instant, _config: EngineConfig) -> Self {
        Self {
            plane: Arc::new(Plane {}),
            transmits: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    /// The data side, for the packet threads.
    #[must_use]
    pub fn plane(&self) -> Arc<Plane> {
        Arc::clone(&self.plane)
    }

    /// The daemon said something.
    pub fn handle_control(&mut self, _now: Instant, _update: Update) {}

    /// A datagram that the plane called [`Inbound::Control`](crate::Inbound::Control).
    pub fn handle_udp(&mut self, _now: Instant, _from: SocketAddr, _datagram: &[u8]) {}

    /// The plane found something.
    pub fn handle_plane(&mut self, _now: Instant, _event: PlaneEvent) {}

    /// A deadline passed.
    pub fn handle_timeout(&mut self, _now: Instant) {}

    /// When to call [`Self::handle_timeout`] next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Instant, TimerReason)> {
        None
    }

    /// A datagram to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    /// A fact for the daemon.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Asks a peer for an answer through the tunnel; `None` when there is no such peer.
    pub fn ping(&mut self, _now: Instant, _node: &NodeId) -> Option<PingToken> {
        None
    }

    /// What is known of the links to all peers, in the order of their ids.
    #[must_use]
    pub fn peer_stats(&self, _now: Instant) -> Vec<PeerStats> {
        Vec::new()
    }
}
