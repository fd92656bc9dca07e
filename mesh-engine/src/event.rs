//! What goes in and comes out of the engine and its plane: plain values, no behaviour.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_proto::id::{NodeId, RelayId};
use mesh_proto::key::{NodeKey, NodePrivateKey};
use mesh_proto::netmap::Netmap;

use crate::peer::PeerHandle;
use crate::service::ServicePorts;

/// Something that the daemon tells the engine.
#[derive(Debug, Clone)]
pub enum Update {
    /// A verified map, whole; the engine finds the changes itself.
    Netmap {
        /// The map.
        netmap: Arc<Netmap>,
        /// The wall clock at `now`, Unix milliseconds; expiry of peers' keys is judged by it.
        unix_ms: u64,
    },
    /// Where this machine is on the underlay: its interfaces' addresses with the UDP port.
    LocalEndpoints(Vec<SocketAddr>),
    /// The gateway towards the internet and this machine's address on its network, for port mappings; `None` when there
    /// is none, or mappings are switched off.
    Gateway(Option<(IpAddr, IpAddr)>),
    /// What became of [`Event::Upnp`]: where the gateway forwards from and for how many seconds, or that it does not.
    UpnpDone {
        /// What was to be done.
        order: UpnpOrder,
        /// `None` when the gateway speaks no UPnP or refuses.
        mapped: Option<(SocketAddr, u32)>,
    },
    /// Where the listeners behind the service ports are.
    Services(ServicePorts),
    /// The longest overlay packet that this machine's interfaces carry, in bytes: paths are not asked for more.
    OverlayMtu(u16),
    /// The underlay changed or the socket was opened anew: ask for the reflexive address again, prove all paths again.
    Rebind,
    /// So many spare UDP sockets may be used, none at first: where a NAT gives each destination another port, many
    /// sockets make it possible that a peer guesses one.
    SpareSockets(u16),
    /// The link to a relay stands: frames that go there are delivered.
    RelayUp(RelayId),
    /// The link to a relay ended, or cannot be made.
    RelayDown(RelayId),
    /// This node's key was rotated: every session ends and is made anew when needed.
    NodeKey(NodePrivateKey),
    /// The node left its mesh: forget every peer.
    Clear,
}

/// Where a datagram goes: a path to a peer, or a server of some kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Destination {
    /// By the UDP socket to this endpoint; never an IPv4-mapped IPv6 address.
    Udp(SocketAddr),
    /// By a spare UDP socket to this endpoint. The daemon opens the socket of that number when it is first used, if it
    /// said that it has some ([`Update::SpareSockets`]).
    Spare {
        /// The socket's number.
        socket: u16,
        /// Where to; never an IPv4-mapped IPv6 address.
        endpoint: SocketAddr,
    },
    /// By the link to a relay, which passes it on to the peer. Without a link it is dropped.
    Relay {
        /// The relay.
        relay: RelayId,
        /// The node that it is for.
        peer: NodeKey,
    },
}

impl Destination {
    /// The endpoint, when the UDP socket sends there.
    #[must_use]
    pub const fn endpoint(&self) -> Option<SocketAddr> {
        match self {
            Self::Udp(endpoint) => Some(*endpoint),
            Self::Spare { .. } | Self::Relay { .. } => None,
        }
    }

    /// The endpoint, by whichever socket.
    #[must_use]
    pub const fn remote(&self) -> Option<SocketAddr> {
        match self {
            Self::Udp(endpoint) | Self::Spare { endpoint, .. } => Some(*endpoint),
            Self::Relay { .. } => None,
        }
    }

    pub(crate) const fn is_ipv6(&self) -> bool {
        match self {
            Self::Udp(endpoint) | Self::Spare { endpoint, .. } => endpoint.is_ipv6(),
            Self::Relay { .. } => false,
        }
    }

    /// The relay, when it is one.
    #[must_use]
    pub const fn relay(&self) -> Option<RelayId> {
        match self {
            Self::Udp(_) | Self::Spare { .. } => None,
            Self::Relay { relay, .. } => Some(*relay),
        }
    }
}

/// Where packets to a peer go, and how long they may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    /// The selected path, if there is one.
    pub dst: Option<Destination>,
    /// The longest overlay packet that it takes, in bytes; [`Plane::fit`](crate::Plane::fit) says what to do with longer
    /// ones.
    pub mtu: u16,
    /// Whether that is final for now, so that programs may be told of it.
    pub is_settled: bool,
    /// Whether it loses packets: [`Sealer::may_repeat`](crate::Sealer::may_repeat) says which to send twice.
    pub is_lossy: bool,
}

/// A datagram to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmit {
    /// Where to.
    pub dst: Destination,
    /// The payload.
    pub bytes: Vec<u8>,
}

/// Why the engine wants to be called at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TimerReason {
    /// Sessions are live and their timers need a look.
    Sessions,
    /// A handshake is due again.
    Handshake,
    /// The reflexive address is due.
    Stun,
    /// A peer's key expires.
    Expiry,
    /// The home relay is to be chosen.
    Relay,
    /// A port mapping is due.
    PortMap,
}

/// A fact for the daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A session with the peer stands.
    PeerUp {
        /// The peer.
        node: NodeId,
    },
    /// The session with the peer is gone and nothing brings it back before there is traffic.
    PeerDown {
        /// The peer.
        node: NodeId,
    },
    /// Packets to the peer go elsewhere.
    PathChanged {
        /// The peer.
        node: NodeId,
        /// The selected path.
        path: Destination,
    },
    /// This node listens on another relay, or on none: tell the coordinator, and hold a link to it.
    HomeRelay(Option<RelayId>),
    /// A link to this relay is wanted. Told anew while there is none and something waits for it; the daemon may close
    /// links that carried nothing for a while, but for the home relay's.
    NeedRelay(RelayId),
    /// Of the spare sockets only these are in use: the others may be closed.
    SparesInUse(Vec<u16>),
    /// How the world outside sees the UDP socket.
    ReflexiveEndpoint(SocketAddr),
    /// The gateway forwards from there to the UDP socket, or does so no longer.
    PortMapped(Option<SocketAddr>),
    /// To be done at the gateway by UPnP; what became of it is told by [`Update::UpnpDone`].
    Upnp(UpnpOrder),
    /// A ping was answered.
    Pong {
        /// The peer.
        node: NodeId,
        /// What [`Engine::ping`](crate::Engine::ping) returned.
        token: PingToken,
        /// How long the answer took.
        rtt: Duration,
        /// Which path was selected when it came.
        path: Option<Destination>,
        /// The longest overlay packet that this path is known to take, in bytes; `None` by a relay, which takes any.
        path_mtu: Option<u16>,
    },
}

/// A port mapping that the daemon is to ask a gateway for by UPnP, or to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UpnpOrder {
    /// The gateway.
    pub gateway: Ipv4Addr,
    /// This machine's address on its network.
    pub client: Ipv4Addr,
    /// The UDP port that is to be reached.
    pub port: u16,
    /// For how long, in seconds; 0 ends the mapping.
    pub lifetime_s: u32,
}

/// Names one ping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PingToken(pub(crate) u64);

/// Something that the plane found and the engine must see: pass it to
/// [`Engine::handle_plane`](crate::Engine::handle_plane). Losing one delays a session, but breaks nothing.
#[derive(Debug, Clone)]
pub enum PlaneEvent {
    /// Packets wait for a session.
    NeedSession(PeerHandle),
    /// The peer proved that it holds the new session: what waited may go.
    SessionReady(PeerHandle),
    /// The peer is heard from elsewhere than the selected path.
    PathMoved {
        /// By whom.
        peer: PeerHandle,
        /// From where.
        from: Destination,
    },
    /// A ping was answered.
    Pong {
        /// By whom.
        peer: PeerHandle,
        /// Which.
        token: PingToken,
        /// When the answer was seen.
        at: Instant,
    },
}

/// How complete a TUN packet's transport checksum is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChecksumState {
    /// A right checksum.
    Complete,
    /// Only the pseudo-header is summed; the rest is left to offload (`VIRTIO_NET_HDR_F_NEEDS_CSUM`).
    Partial,
}

/// What to do with a packet from the TUN.
#[derive(Debug)]
pub enum Outbound {
    /// Seal it for this peer.
    Peer(PeerHandle),
    /// It was rewritten in place: write it back to the TUN, with the same offload header.
    Reflect,
    /// Forget it.
    Drop(DropReason),
}

/// Where a datagram from the UDP socket belongs.
#[derive(Debug)]
pub enum Inbound {
    /// Sealed packets of this peer's session: open them here.
    Data(PeerHandle),
    /// Handshakes, STUN, and now and then data of a session that is unknown: for [`Engine::handle_udp`](crate::Engine::handle_udp).
    Control,
    /// Forget it.
    Drop(DropReason),
}

/// What to do with an opened packet.
#[derive(Debug)]
pub enum Admit {
    /// Write it to the TUN; it may have been rewritten in place. Its checksums are complete.
    Deliver,
    /// It was for the engine.
    Consumed(PlaneEvent),
    /// Forget it.
    Drop(DropReason),
}

/// What became of a packet that was to be sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sealed {
    /// So many bytes of `out` are a datagram for the peer's endpoint.
    Datagram(usize),
    /// There is no session yet: a copy waits. The engine sends it when the session stands.
    Queued,
    /// Forget it.
    Dropped(DropReason),
}

/// What was in a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opened {
    /// So many bytes of `out` are an IP packet, for [`Plane::admit`](crate::Plane::admit).
    Packet(usize),
    /// An authentic datagram without a packet.
    Keepalive,
    /// Forget it.
    Dropped(DropReason),
}

/// Why a packet or datagram went no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum DropReason {
    /// Not IP, cut short, or with headers that cannot be understood safely.
    Malformed,
    /// No peer has the destination address.
    NoRoute,
    /// The source is not the sender's overlay address.
    WrongSource,
    /// The destination is not this node's overlay address.
    WrongDestination,
    /// No rule allows it and it answers no flow of this node's own.
    Filtered,
    /// The service address has nothing on this port, or the door is shut.
    NoService,
    /// The datagram speaks neither WireGuard nor STUN.
    NotOurs,
    /// The datagram names a session that does not exist.
    UnknownSession,
    /// The datagram does not open: forged, replayed, or from an ended session.
    NotAuthentic,
    /// The caller's buffer is too small.
    BufferTooSmall,
    /// Too many packets wait for sessions.
    QueueFull,
    /// The peer was removed.
    PeerGone,
    /// Longer than the path takes, and its sender wants it whole: it was told so.
    TooBig,
}

impl DropReason {
    /// All reasons, for metrics.
    pub const ALL: [Self; 13] = [
        Self::Malformed,
        Self::NoRoute,
        Self::WrongSource,
        Self::WrongDestination,
        Self::Filtered,
        Self::NoService,
        Self::NotOurs,
        Self::UnknownSession,
        Self::NotAuthentic,
        Self::BufferTooSmall,
        Self::QueueFull,
        Self::PeerGone,
        Self::TooBig,
    ];

    /// A label in snake case.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::NoRoute => "no_route",
            Self::WrongSource => "wrong_source",
            Self::WrongDestination => "wrong_destination",
            Self::Filtered => "filtered",
            Self::NoService => "no_service",
            Self::NotOurs => "not_ours",
            Self::UnknownSession => "unknown_session",
            Self::NotAuthentic => "not_authentic",
            Self::BufferTooSmall => "buffer_too_small",
            Self::QueueFull => "queue_full",
            Self::PeerGone => "peer_gone",
            Self::TooBig => "too_big",
        }
    }
}

/// What is known of the link to a peer.
#[derive(Debug, Clone, PartialEq)]
pub struct PeerStats {
    /// The peer.
    pub node: NodeId,
    /// The selected path.
    pub path: Option<Destination>,
    /// How long the selected path took for an answer, when it was asked.
    pub rtt: Option<Duration>,
    /// The part of questions on the selected path that had no answer, 0 to 1.
    pub loss: f32,
    /// The longest overlay packet that the selected path is known to take, in bytes; `None` by a relay, which takes any.
    pub path_mtu: Option<u16>,
    /// Whether a session stands.
    pub is_up: bool,
    /// Payload bytes opened.
    pub rx_bytes: u64,
    /// Payload bytes sealed.
    pub tx_bytes: u64,
    /// How long ago the session was agreed on.
    pub last_handshake_age: Option<Duration>,
    /// How long ago an authentic datagram came.
    pub last_rx_age: Option<Duration>,
}
