//! Builds and checks IP packets for tests.

use std::net::IpAddr;

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;

pub(crate) fn sum(seed: u32, bytes: &[u8]) -> u32 {
    let words = bytes.chunks(2).map(|pair| {
        u32::from(u16::from_be_bytes([
            pair[0],
            pair.get(1).copied().unwrap_or(0),
        ]))
    });
    words.fold(seed, |sum, word| sum + word)
}

pub(crate) fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    u16::try_from(sum).unwrap()
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

pub(crate) fn pseudo_sum(src: IpAddr, dst: IpAddr, protocol: u8, len: usize) -> u32 {
    let len = u32::try_from(len).unwrap();
    sum(sum(len + u32::from(protocol), &octets(src)), &octets(dst))
}

/// An IP packet around a transport segment.
pub(crate) fn ip(src: IpAddr, dst: IpAddr, protocol: u8, segment: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    if src.is_ipv4() {
        let len = u16::try_from(20 + segment.len()).unwrap();
        packet.extend([0x45, 0]);
        packet.extend(len.to_be_bytes());
        packet.extend([0, 0, 0, 0, 64, protocol, 0, 0]);
        packet.extend(octets(src));
        packet.extend(octets(dst));
        let check = !fold(sum(0, &packet));
        packet[10..12].copy_from_slice(&check.to_be_bytes());
    } else {
        packet.extend([0x60, 0, 0, 0]);
        packet.extend(u16::try_from(segment.len()).unwrap().to_be_bytes());
        packet.extend([protocol, 64]);
        packet.extend(octets(src));
        packet.extend(octets(dst));
    }
    packet.extend(segment);
    packet
}

const fn checksum_at(protocol: u8) -> usize {
    match protocol {
        TCP => 16,
        UDP => 6,
        _ => 2,
    }
}

/// A TCP or UDP packet with right checksums.
pub(crate) fn transport(
    protocol: u8,
    src: (IpAddr, u16),
    dst: (IpAddr, u16),
    payload: &[u8],
) -> Vec<u8> {
    let mut segment = vec![];
    segment.extend(src.1.to_be_bytes());
    segment.extend(dst.1.to_be_bytes());
    if protocol == TCP {
        segment.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
    } else {
        segment.extend(u16::try_from(8 + payload.len()).unwrap().to_be_bytes());
        segment.extend([0, 0]);
    }
    segment.extend(payload);
    let sum = sum(pseudo_sum(src.0, dst.0, protocol, segment.len()), &segment);
    let check = match !fold(sum) {
        0 if protocol == UDP => 0xffff,
        check => check,
    };
    let at = checksum_at(protocol);
    segment[at..at + 2].copy_from_slice(&check.to_be_bytes());
    ip(src.0, dst.0, protocol, &segment)
}

/// An echo request or reply with right checksums.
pub(crate) fn echo(
    src: IpAddr,
    dst: IpAddr,
    is_request: bool,
    ident: u16,
    payload: &[u8],
) -> Vec<u8> {
    let (kind, protocol) = match (src.is_ipv4(), is_request) {
        (true, true) => (8, 1),
        (true, false) => (0, 1),
        (false, true) => (128, 58),
        (false, false) => (129, 58),
    };
    let mut segment = vec![kind, 0, 0, 0];
    segment.extend(ident.to_be_bytes());
    segment.extend([0, 1]);
    segment.extend(payload);
    let seed = if src.is_ipv4() {
        0
    } else {
        pseudo_sum(src, dst, protocol, segment.len())
    };
    let check = !fold(sum(seed, &segment));
    segment[2..4].copy_from_slice(&check.to_be_bytes());
    ip(src, dst, protocol, &segment)
}

pub(crate) struct Parts<'a> {
    pub(crate) src: IpAddr,
    pub(crate) dst: IpAddr,
    pub(crate) protocol: u8,
    pub(crate) segment: &'a [u8],
}

impl Parts<'_> {
    pub(crate) fn ports(&self) -> (u16, u16) {
        (
            u16::from_be_bytes([self.segment[0], self.segment[1]]),
            u16::from_be_bytes([self.segment[2], self.segment[3]]),
        )
    }
}

pub(crate) fn parts(packet: &[u8]) -> Parts<'_> {
    if packet[0] >> 4 == 4 {
        Parts {
            src: IpAddr::from(<[u8; 4]>::try_from(&packet[12..16]).unwrap()),
            dst: IpAddr::from(<[u8; 4]>::try_from(&packet[16..20]).unwrap()),
            protocol: packet[9],
            segment: &packet[20..],
        }
    } else {
        Parts {
            src: IpAddr::from(<[u8; 16]>::try_from(&packet[8..24]).unwrap()),
            dst: IpAddr::from(<[u8; 16]>::try_from(&packet[24..40]).unwrap()),
            protocol: packet[6],
            segment: &packet[40..],
        }
    }
}

/// Whether header and transport checksum are right.
pub(crate) fn is_valid(packet: &[u8]) -> bool {
    let parts = parts(packet);
    let is_header_valid = parts.src.is_ipv6() || fold(sum(0, &packet[..20])) == 0xffff;
    let seed = if parts.protocol == 1 {
        0
    } else {
        pseudo_sum(parts.src, parts.dst, parts.protocol, parts.segment.len())
    };
    is_header_valid && fold(sum(seed, parts.segment)) == 0xffff
}

/// Leaves only the pseudo-header's sum in the checksum, as the kernel does for offload.
pub(crate) fn make_partial(packet: &mut [u8]) {
    let parts = parts(packet);
    let sum = fold(pseudo_sum(
        parts.src,
        parts.dst,
        parts.protocol,
        parts.segment.len(),
    ));
    let at = packet.len() - parts.segment.len() + checksum_at(parts.protocol);
    packet[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

/// Finishes a partial checksum, as a device does.
pub(crate) fn complete(packet: &mut [u8]) {
    let parts = parts(packet);
    let check = match !fold(sum(0, parts.segment)) {
        0 if parts.protocol == UDP => 0xffff,
        check => check,
    };
    let at = packet.len() - parts.segment.len() + checksum_at(parts.protocol);
    packet[at..at + 2].copy_from_slice(&check.to_be_bytes());
}
