//! The underlay's socket: many datagrams a call, in both directions.
//!
//! Datagrams are never fragmented: one that is too long for its path is lost, or refused with `EMSGSIZE` when the interface
//! says so. The choice of the source address is the kernel's.

#[cfg(any(test, not(target_os = "linux")))]
#[cfg_attr(
    target_os = "linux",
    expect(unreachable_pub, reason = "public where there is nothing better")
)]
mod fallback;
#[cfg(target_os = "linux")]
mod linux;
#[cfg(test)]
mod tests;

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use socket2::{Domain, Protocol, Socket, Type};

#[cfg(not(target_os = "linux"))]
pub use fallback::{RecvBatch, UdpSocket};
#[cfg(target_os = "linux")]
pub use linux::{RecvBatch, UdpSocket};

/// Room for this much in the kernel's queue of datagrams to send.
const SEND_QUEUE_BYTES: usize = 7 << 20;
/// And of datagrams received, of which the kernel takes twice as much for its own records: a burst must not drown while a
/// worker works, and a bulk stream fills whatever there is, so that all others wait for it. This is some milliseconds.
const RECV_QUEUE_BYTES: usize = 1 << 20;

/// How to open a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct UdpConfig {
    /// The port; zero lets the kernel choose.
    pub port: u16,
    /// Whether other sockets of this process share the port, each serving a part of the peers.
    pub is_shared: bool,
}

/// Datagrams from one sender, all of length `stride` but the last, which may be shorter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Datagrams<'a> {
    /// The sender; never an IPv4-mapped IPv6 address.
    pub from: SocketAddr,
    /// Their bytes, one after the other.
    pub bytes: &'a [u8],
    /// The length of each.
    pub stride: usize,
}

impl<'a> Datagrams<'a> {
    /// One after the other.
    pub fn iter(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        self.bytes.chunks(self.stride.max(1))
    }
}

/// As [`Datagrams`], to be changed in place.
#[derive(Debug, PartialEq, Eq)]
pub struct DatagramsMut<'a> {
    /// The sender; never an IPv4-mapped IPv6 address.
    pub from: SocketAddr,
    /// Their bytes, one after the other.
    pub bytes: &'a mut [u8],
    /// The length of each.
    pub stride: usize,
}

/// Opens a socket on all addresses: IPv6 that takes IPv4 too, or IPv4 alone where there is no IPv6.
fn bind(config: UdpConfig) -> io::Result<(Socket, bool)> {
    let open = |domain| {
        let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_nonblocking(true)?;
        #[cfg(unix)]
        if config.is_shared {
            socket.set_reuse_port(true)?;
        }
        Ok::<_, io::Error>(socket)
    };
    let open_v6 = || {
        let socket = open(Domain::IPV6)?;
        socket.set_only_v6(false)?;
        let any = SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, config.port, 0, 0);
        socket.bind(&SocketAddr::V6(any).into())?;
        Ok::<_, io::Error>(socket)
    };
    match open_v6() {
        Ok(socket) => Ok((socket, true)),
        Err(err) if err.kind() == io::ErrorKind::AddrInUse => Err(err),
        Err(_) => {
            let socket = open(Domain::IPV4)?;
            let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, config.port);
            socket.bind(&SocketAddr::V4(any).into())?;
            Ok((socket, false))
        }
    }
}

/// An address as the socket's family wants it.
fn to_family(addr: SocketAddr, is_v6: bool) -> SocketAddr {
    match addr {
        SocketAddr::V4(v4) if is_v6 => {
            SocketAddr::V6(SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0))
        }
        SocketAddr::V4(_) | SocketAddr::V6(_) => addr,
    }
}

/// An address as everybody else wants it.
fn canonical(addr: SocketAddr) -> SocketAddr {
    match addr {
        SocketAddr::V6(v6) => match v6.ip().to_ipv4_mapped() {
            Some(ip) => SocketAddr::V4(SocketAddrV4::new(ip, v6.port())),
            None => addr,
        },
        SocketAddr::V4(_) => addr,
    }
}
