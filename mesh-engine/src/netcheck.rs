//! What the network around this node looks like, for people.

use std::net::SocketAddr;
use std::time::Duration;

use mesh_proto::disco::Mapping;
use mesh_proto::id::RelayId;

/// The network as the engine knows it from what it does anyway; [`Engine::look_around`](crate::Engine::look_around) asks anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetReport {
    /// Whether STUN was answered over IPv4.
    pub has_udp_ipv4: bool,
    /// Whether STUN was answered over IPv6.
    pub has_udp_ipv6: bool,
    /// Where servers see this node.
    pub reflexive: Vec<SocketAddr>,
    /// How the IPv4 NAT maps.
    pub mapping: Mapping,
    /// Where the gateway forwards from, and by which protocol it was asked.
    pub port_mapping: Option<(SocketAddr, &'static str)>,
    /// Whether no answer is waited for: the report is as new as it gets.
    pub is_settled: bool,
    /// The relay that this node listens on.
    pub home_relay: Option<RelayId>,
    /// All relays, in the netmap's order.
    pub relays: Vec<RelayReport>,
}

/// One relay, seen from here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelayReport {
    /// Which.
    pub id: RelayId,
    /// How long its STUN takes to answer; unknown when it does not.
    pub rtt: Option<Duration>,
    /// Whether there is a link.
    pub is_up: bool,
}
