//! Paths to a peer: the selected one, and how others are found and judged.
//!
//! A handshake goes to all candidates and by the relay at once; the first authentic answer selects. From then on a peer
//! that knows disco is *guided*: probes decide, and packets from elsewhere only hint at paths to probe. Any other peer
//! is roamed after, as WireGuard does: authentic packets from elsewhere move the path along.

pub(crate) mod candidate;
pub(crate) mod select;
pub(crate) mod set;

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::AtomicU64;

use crate::event::Destination;

/// A proven way to a peer.
#[derive(Debug)]
pub(crate) struct Path {
    pub(crate) dst: Destination,
    pub(crate) is_lan: bool,
    /// When it was last heard from, by the plane's clock.
    pub(crate) heard_ms: AtomicU64,
}

impl Path {
    pub(crate) const fn new(dst: Destination, is_lan: bool, now_ms: u64) -> Self {
        Self {
            dst,
            is_lan,
            heard_ms: AtomicU64::new(now_ms),
        }
    }
}

/// The same endpoint whatever socket family it was seen on: IPv4-mapped addresses become IPv4.
pub(crate) const fn canonical(endpoint: SocketAddr) -> SocketAddr {
    match endpoint {
        SocketAddr::V4(_) => endpoint,
        SocketAddr::V6(v6) => match v6.ip().to_ipv4_mapped() {
            Some(ip) => SocketAddr::new(IpAddr::V4(ip), v6.port()),
            None => endpoint,
        },
    }
}

/// What limits and cookies go by: a relayed sender has an endpoint made of its key, whose vouching is the relay's.
pub(crate) fn source_addr(from: &Destination) -> SocketAddr {
    match from {
        Destination::Udp(endpoint) => *endpoint,
        Destination::Relay { peer, .. } => {
            let mut octets = [0xfc; 16];
            octets[1..].copy_from_slice(&peer.as_bytes()[..15]);
            SocketAddr::new(IpAddr::from(octets), 0)
        }
    }
}
