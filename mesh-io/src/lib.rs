//! TUN and UDP with segmentation offload: the one crate that speaks to the kernel by hand.
//!
//! Reading order: [`tun`] (the overlay's network interface), [`offload`] (super-packets split and merged, pure),
//! [`udp`] (the underlay's socket), [`wait`] (how a packet thread sleeps), [`stall`] (whether all slept), [`buf`] (where packets lie meanwhile),
//! [`code`] (what the start leaves in memory), [`heap`] (what a burst does), [`thread`] (what part of a core a thread has).
#![allow(
    unsafe_code,
    reason = "ioctl, recvmmsg, sendmmsg and poll have no safe wrapper; this crate is that wrapper"
)]

pub mod buf;
#[cfg(target_os = "linux")]
pub mod code;
#[cfg(target_os = "linux")]
pub mod heap;
pub mod offload;
#[cfg(target_os = "linux")]
pub mod stall;
#[cfg(target_os = "linux")]
pub mod thread;
#[cfg(target_os = "linux")]
pub mod tun;
pub mod udp;
#[cfg(unix)]
pub mod wait;

/// What this kernel does for the data plane, found out by trying.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Capabilities {
    /// What the TUN takes and gives.
    pub tun: TunCapabilities,
    /// What the UDP socket takes and gives.
    pub udp: UdpCapabilities,
}

/// What the kernel's TUN driver does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TunCapabilities {
    /// Each packet comes and goes with a virtio header.
    pub has_header: bool,
    /// TCP segments come and go merged (TSO).
    pub has_tcp: bool,
    /// UDP datagrams come and go merged (USO, Linux 6.2 and later).
    pub has_udp: bool,
}

/// What the kernel's UDP sockets do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct UdpCapabilities {
    /// One call sends many datagrams (UDP_SEGMENT).
    pub has_gso: bool,
    /// One buffer receives many datagrams (UDP_GRO).
    pub has_gro: bool,
    /// The socket speaks IPv6 besides IPv4.
    pub has_v6: bool,
}
