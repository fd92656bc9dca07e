//! Builds TCP and UDP packets of all shapes that senders make, with right checksums.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::reference::{pseudo_sum, sum16};
use crate::tape::Tape;

/// TCP's number.
pub const TCP: u8 = 6;
/// UDP's number.
pub const UDP: u8 = 17;

/// Where a protocol's checksum is in its header.
#[must_use]
pub const fn checksum_at(protocol: u8) -> usize {
    match protocol {
        TCP => 16,
        UDP => 6,
        _ => 2,
    }
}

/// What the packets of a flow have in common.
#[derive(Debug, Clone)]
pub struct Flow {
    /// Both of one family.
    pub src: IpAddr,
    /// Both of one family.
    pub dst: IpAddr,
    /// TCP or UDP.
    pub protocol: u8,
    /// Source and destination.
    pub ports: (u16, u16),
    /// Type of service or traffic class, ECN included.
    pub tos: u8,
    /// Time to live or hop limit.
    pub ttl: u8,
    /// Low 20 bits, IPv6 only.
    pub label: u32,
    /// Don't fragment, IPv4 only.
    pub has_df: bool,
    /// A multiple of 4, at most 40.
    pub options: Vec<u8>,
}

/// What changes from packet to packet of TCP.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tcp {
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement.
    pub ack: u32,
    /// From FIN (1) to CWR (0x80).
    pub flags: u8,
    /// The low nibble of the byte with the header's length.
    pub reserved: u8,
    /// Window.
    pub window: u16,
    /// Urgent pointer.
    pub urgent: u16,
}

/// ACK alone.
pub const ACK: u8 = 0x10;

impl Flow {
    /// A flow between two of a few addresses and ports, so that flows are often alike.
    pub fn draw(tape: &mut Tape<'_>) -> Self {
        let is_v4 = !tape.chance(2);
        let n = tape.u8() % 4;
        let (src, dst): (IpAddr, IpAddr) = if is_v4 {
            (
                Ipv4Addr::new(10, 77, 1, n).into(),
                Ipv4Addr::new(10, 77, 1, 9).into(),
            )
        } else {
            (
                Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, n.into()).into(),
                Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 9).into(),
            )
        };
        let n_words = *tape.pick(&[0_usize, 3, 0, 3, 1, 5, 10]);
        Self {
            src,
            dst,
            protocol: if tape.chance(3) { UDP } else { TCP },
            ports: (1000 + u16::from(tape.u8() % 3), 443),
            tos: *tape.pick(&[0, 2, 0, 3, 1, 0xb8]),
            ttl: *tape.pick(&[64, 64, 1, 255]),
            label: tape.u32() & 0xf_ffff,
            has_df: !tape.chance(3),
            options: tape.bytes(n_words * 4),
        }
    }

    /// Whether it is IPv4.
    #[must_use]
    pub const fn is_v4(&self) -> bool {
        self.src.is_ipv4()
    }

    /// The length of the network header.
    #[must_use]
    pub const fn network_len(&self) -> usize {
        if self.is_v4() { 20 } else { 40 }
    }

    /// One packet. `payload` must leave room for the headers within 65,535 bytes.
    #[must_use]
    pub fn packet(&self, tcp: &Tcp, id: u16, payload: &[u8]) -> Vec<u8> {
        let transport_len = match self.protocol {
            TCP => 20 + self.options.len(),
            _ => 8,
        } + payload.len();
        let mut packet = Vec::with_capacity(self.network_len() + transport_len);
        self.put_network(&mut packet, id, transport_len);
        packet.extend(self.ports.0.to_be_bytes());
        packet.extend(self.ports.1.to_be_bytes());
        if self.protocol == TCP {
            packet.extend(tcp.seq.to_be_bytes());
            packet.extend(tcp.ack.to_be_bytes());
            let n_words = 5 + self.options.len() / 4;
            packet.push(u8::try_from(n_words << 4).unwrap() | tcp.reserved & 0xf);
            packet.push(tcp.flags);
            packet.extend(tcp.window.to_be_bytes());
            packet.extend([0, 0]);
            packet.extend(tcp.urgent.to_be_bytes());
            packet.extend(&self.options);
        } else {
            packet.extend(u16::try_from(transport_len).unwrap().to_be_bytes());
            packet.extend([0, 0]);
        }
        packet.extend(payload);
        self.put_checksum(&mut packet);
        packet
    }

    fn put_network(&self, packet: &mut Vec<u8>, id: u16, transport_len: usize) {
        match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let len = u16::try_from(20 + transport_len).unwrap();
                packet.extend([0x45, self.tos]);
                packet.extend(len.to_be_bytes());
                packet.extend(id.to_be_bytes());
                packet.extend([u8::from(self.has_df) << 6, 0, self.ttl, self.protocol, 0, 0]);
                packet.extend(src.octets());
                packet.extend(dst.octets());
                let check = !sum16(0, packet);
                packet[10..12].copy_from_slice(&check.to_be_bytes());
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let word = 6 << 28 | u32::from(self.tos) << 20 | self.label;
                packet.extend(word.to_be_bytes());
                packet.extend(u16::try_from(transport_len).unwrap().to_be_bytes());
                packet.extend([self.protocol, self.ttl]);
                packet.extend(src.octets());
                packet.extend(dst.octets());
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {
                panic!("a flow has one family")
            }
        }
    }

    fn put_checksum(&self, packet: &mut [u8]) {
        let at = self.network_len();
        let sum = pseudo_sum(packet, self.protocol, packet.len() - at);
        let check = match !sum16(u32::from(sum), &packet[at..]) {
            0 => 0xffff,
            check => check,
        };
        let at = at + checksum_at(self.protocol);
        packet[at..at + 2].copy_from_slice(&check.to_be_bytes());
    }
}

/// Leaves only the pseudo-header's sum where the transport checksum is, as the kernel does before offload.
pub fn make_partial(packet: &mut [u8], transport_at: usize, protocol: u8) {
    let sum = pseudo_sum(packet, protocol, packet.len() - transport_at);
    let at = transport_at + checksum_at(protocol);
    packet[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}
