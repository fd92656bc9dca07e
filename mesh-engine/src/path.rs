//! Paths to a peer: the selected one, and how others are found and judged.
//!
//! A handshake goes to all candidates and by the relay at once; the first authentic answer selects. From then on a peer
//! that knows disco is *guided*: probes decide, and packets from elsewhere only hint at paths to probe. Any other peer
//! is roamed after, as WireGuard does: authentic packets from elsewhere move the path along.

pub(crate) mod candidate;
pub(crate) mod guess;
pub(crate) mod mtu;
pub(crate) mod select;
pub(crate) mod set;

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};

use crate::config::MTU_BASE;
use crate::event::{Destination, Way};

/// A proven way to a peer.
#[derive(Debug)]
pub(crate) struct Path {
    pub(crate) dst: Destination,
    pub(crate) is_lan: bool,
    /// When it was last heard from, by the plane's clock.
    pub(crate) heard_ms: AtomicU64,
    /// The longest overlay packet that it takes.
    mtu: AtomicU16,
    /// Whether that is known well enough to refuse longer ones.
    is_settled: AtomicBool,
    /// Whether it loses so many packets that sparse ones are sent twice.
    is_lossy: AtomicBool,
}

impl Path {
    pub(crate) const fn new(dst: Destination, is_lan: bool, now_ms: u64) -> Self {
        let mtu = match dst {
            Destination::Udp(_) | Destination::Spare { .. } => MTU_BASE,
            // A relay is reached by TCP, which cuts as it likes.
            Destination::Relay { .. } => u16::MAX,
        };
        Self {
            dst,
            is_lan,
            heard_ms: AtomicU64::new(now_ms),
            mtu: AtomicU16::new(mtu),
            is_settled: AtomicBool::new(false),
            is_lossy: AtomicBool::new(false),
        }
    }

    pub(crate) fn set_lossy(&self, is_lossy: bool) {
        self.is_lossy.store(is_lossy, Ordering::Relaxed);
    }

    pub(crate) fn set_mtu(&self, mtu: u16, is_settled: bool) {
        self.mtu.store(mtu, Ordering::Relaxed);
        self.is_settled.store(is_settled, Ordering::Relaxed);
    }

    pub(crate) fn mtu(&self) -> u16 {
        self.mtu.load(Ordering::Relaxed)
    }

    pub(crate) fn settled_mtu(&self) -> Option<u16> {
        self.is_settled.load(Ordering::Relaxed).then(|| self.mtu())
    }

    pub(crate) fn way(&self) -> Way {
        Way {
            dst: Some(self.dst),
            mtu: self.mtu(),
            is_settled: self.is_settled.load(Ordering::Relaxed),
            is_lossy: self.is_lossy.load(Ordering::Relaxed),
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
        Destination::Udp(endpoint) | Destination::Spare { endpoint, .. } => *endpoint,
        Destination::Relay { peer, .. } => {
            let mut octets = [0xfc; 16];
            octets[1..].copy_from_slice(&peer.as_bytes()[..15]);
            SocketAddr::new(IpAddr::from(octets), 0)
        }
    }
}
