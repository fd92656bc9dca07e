//! Paths to a peer: the selected one, and which candidates a handshake is sent to.
//!
//! There is no probing beside the handshake: it goes to all candidates at once, the first authentic answer selects, and
//! later authentic packets from elsewhere move the path along (roaming).

pub(crate) mod candidate;

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::AtomicU64;

/// A proven endpoint of a peer.
#[derive(Debug)]
pub(crate) struct Path {
    pub(crate) endpoint: SocketAddr,
    pub(crate) is_lan: bool,
    /// When it was last heard from, by the plane's clock.
    pub(crate) heard_ms: AtomicU64,
}

impl Path {
    pub(crate) const fn new(endpoint: SocketAddr, is_lan: bool, now_ms: u64) -> Self {
        Self {
            endpoint,
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
