//! Service ports: how the service address and the door answer without any listener on a well-known port.
//!
//! ```text
//! this machine   own:c → service:P   becomes   service:c → own:H      (from the TUN, back to the TUN)
//!                own:H → service:c   becomes   service:P → own:c
//! a peer         peer:c → own:P      becomes   peer:c → own:H         (from the peer, to the TUN)
//!                own:H → peer:c      becomes   own:P → peer:c
//! ```
//!
//! Reflection only swaps the addresses, which no checksum notices; so one port is all that a checksum must follow
//! (RFC 1624), and where offload has left only the pseudo-header sum there is nothing to follow.

use std::net::IpAddr;

use mesh_proto::{MODEL_PORT, WEB_PORT};

use crate::event::{ChecksumState, DropReason};
use crate::packet::{Headers, Upper, checksum_after};

/// TCP or UDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// One well-known port and the listener behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServicePort {
    /// TCP or UDP.
    pub transport: Transport,
    /// The port that clients use.
    pub port: u16,
    /// The port on the own overlay addresses where the listener is; each entry needs one of its own.
    pub hidden: u16,
}

/// All of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServicePorts {
    /// On the service addresses, for this machine's own programs.
    pub local: Vec<ServicePort>,
    /// On the own overlay addresses, for peers.
    pub door: Vec<ServicePort>,
}

/// Ports that lead peers to the door or nowhere, so that a model server listening on all addresses is out of reach.
const DOOR_PORTS: [u16; 2] = [MODEL_PORT, WEB_PORT];

impl ServicePorts {
    /// Turns a packet to the service address around.
    pub(crate) fn reflect(
        &self,
        packet: &mut [u8],
        headers: &Headers,
        checksum: ChecksumState,
    ) -> Result<(), DropReason> {
        if headers.fragment.is_some() {
            return Err(DropReason::NoService);
        }
        match headers.upper {
            // The kernel answers it on the own address, and the answer comes through here again.
            Upper::EchoRequest { .. } | Upper::EchoReply { .. } => {}
            Upper::Tcp { src_port, dst_port } | Upper::Udp { src_port, dst_port } => {
                let transport = transport_of(headers.upper);
                let by_hidden = self
                    .local
                    .iter()
                    .find(|entry| entry.transport == transport && entry.hidden == src_port);
                let by_port = self
                    .local
                    .iter()
                    .find(|entry| entry.transport == transport && entry.port == dst_port);
                match (by_hidden, by_port) {
                    (Some(entry), _) => {
                        set_port(packet, headers, Side::Source, entry.port, checksum);
                    }
                    (None, Some(entry)) => {
                        set_port(packet, headers, Side::Destination, entry.hidden, checksum);
                    }
                    (None, None) => return Err(DropReason::NoService),
                }
            }
            Upper::IcmpError | Upper::Other(_) => return Err(DropReason::NoService),
        }
        swap_addresses(packet, headers);
        Ok(())
    }

    /// Gives an answer of the door its well-known port back; what is not from a hidden port stays as it is. Tells whether it
    /// changed anything.
    pub(crate) fn mask(
        &self,
        packet: &mut [u8],
        headers: &Headers,
        checksum: ChecksumState,
    ) -> Result<bool, DropReason> {
        let (Upper::Tcp { src_port, .. } | Upper::Udp { src_port, .. }) = headers.upper else {
            return Ok(false);
        };
        let transport = transport_of(headers.upper);
        let is_hidden =
            |entry: &&ServicePort| entry.transport == transport && entry.hidden == src_port;
        if let Some(entry) = self.door.iter().find(is_hidden) {
            set_port(packet, headers, Side::Source, entry.port, checksum);
            return Ok(true);
        }
        // A listener for this machine alone has nothing to say to a peer.
        if self.local.iter().any(|entry| is_hidden(&entry)) {
            return Err(DropReason::NoService);
        }
        Ok(false)
    }

    /// Whether a peer's packet aims at a port where only this node's own translation may lead.
    pub(crate) fn is_hidden(&self, headers: &Headers) -> bool {
        let (Upper::Tcp { dst_port, .. } | Upper::Udp { dst_port, .. }) = headers.upper else {
            return false;
        };
        let transport = transport_of(headers.upper);
        let mut entries = self.local.iter().chain(&self.door);
        entries.any(|entry| entry.transport == transport && entry.hidden == dst_port)
    }

    /// Leads a peer's packet to the door, when it knocks there.
    pub(crate) fn unmask(&self, packet: &mut [u8], headers: &Headers) -> Result<(), DropReason> {
        let (Upper::Tcp { dst_port, .. } | Upper::Udp { dst_port, .. }) = headers.upper else {
            return Ok(());
        };
        let transport = transport_of(headers.upper);
        let mut door = self.door.iter();
        if let Some(entry) =
            door.find(|entry| entry.transport == transport && entry.port == dst_port)
        {
            set_port(
                packet,
                headers,
                Side::Destination,
                entry.hidden,
                ChecksumState::Complete,
            );
        } else if transport == Transport::Tcp && DOOR_PORTS.contains(&dst_port) {
            return Err(DropReason::NoService);
        }
        Ok(())
    }
}

const fn transport_of(upper: Upper) -> Transport {
    if matches!(upper, Upper::Udp { .. }) {
        Transport::Udp
    } else {
        Transport::Tcp
    }
}

#[derive(Clone, Copy)]
enum Side {
    Source,
    Destination,
}

/// Rewrites one port and the checksum that covers it. `headers` must be of this packet and say TCP or UDP.
fn set_port(packet: &mut [u8], headers: &Headers, side: Side, port: u16, checksum: ChecksumState) {
    let Some(transport) = packet.get_mut(headers.upper_at..) else {
        return;
    };
    let is_udp = matches!(headers.upper, Upper::Udp { .. });
    let port_at = match side {
        Side::Source => 0,
        Side::Destination => 2,
    };
    let checksum_at = if is_udp { 6 } else { 16 };
    let Some(&[a, b]) = transport.get(port_at..port_at + 2) else {
        return;
    };
    let old = u16::from_be_bytes([a, b]);
    transport[port_at..port_at + 2].copy_from_slice(&port.to_be_bytes());
    if checksum == ChecksumState::Partial {
        return;
    }
    let Some(field) = transport.get_mut(checksum_at..checksum_at + 2) else {
        return;
    };
    let before = u16::from_be_bytes([field[0], field[1]]);
    // UDP over IPv4 may go without a checksum; a computed 0 is sent as 0xffff (RFC 768).
    if is_udp && before == 0 {
        return;
    }
    let after = match checksum_after(before, old, port) {
        0 if is_udp => 0xffff,
        after => after,
    };
    field.copy_from_slice(&after.to_be_bytes());
}

fn swap_addresses(packet: &mut [u8], headers: &Headers) {
    let (at, len) = match headers.src {
        IpAddr::V4(_) => (12, 4),
        IpAddr::V6(_) => (8, 16),
    };
    if let Some(addresses) = packet.get_mut(at..at + 2 * len) {
        let (src, dst) = addresses.split_at_mut(len);
        src.swap_with_slice(dst);
    }
}
