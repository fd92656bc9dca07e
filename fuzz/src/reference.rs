//! What the code under test must agree with, written a second time and in another way: checksums as RFC 1071 has them,
//! segmentation as the kernel does it, and what the kernel of a receiver makes of a packet's headers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use mesh_io::offload::{Gso, VirtioHeader};

use crate::packet::{TCP, UDP, checksum_at};

/// A ones' complement sum, one big-endian word after the other.
#[must_use]
pub fn sum16(seed: u32, bytes: &[u8]) -> u16 {
    let mut sum = u64::from(seed);
    let (words, odd) = bytes.as_chunks::<2>();
    for word in words {
        sum += u64::from(u16::from_be_bytes(*word));
    }
    if let [last] = odd {
        sum += u64::from(*last) << 8;
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap()
}

/// The pseudo-header's part of a transport checksum.
#[must_use]
pub fn pseudo_sum(packet: &[u8], protocol: u8, transport_len: usize) -> u16 {
    let addrs = if packet[0] >> 4 == 4 {
        &packet[12..20]
    } else {
        &packet[8..40]
    };
    let len = u32::try_from(transport_len).unwrap();
    let sum = sum16(u32::from(protocol), addrs);
    sum16(u32::from(sum), &len.to_be_bytes())
}

/// The sum over a whole transport segment: 0xffff when its checksum is right.
#[must_use]
pub fn transport_sum(packet: &[u8], at: usize, protocol: u8) -> u16 {
    let pseudo = pseudo_sum(packet, protocol, packet.len() - at);
    sum16(u32::from(pseudo), &packet[at..])
}

/// The segments that a super-packet stands for, by what the kernel's `tcp_gso_segment` and `__udp_gso_segment` do.
#[must_use]
pub fn segments(header: &VirtioHeader, packet: &[u8]) -> Vec<Vec<u8>> {
    let transport = usize::from(header.checksum_start);
    let protocol = if header.gso == Gso::Udp { UDP } else { TCP };
    let header_len = transport
        + if protocol == UDP {
            8
        } else {
            usize::from(packet[transport + 12] >> 4) * 4
        };
    let (head, payload) = packet.split_at(header_len);
    let chunks: Vec<&[u8]> = payload.chunks(usize::from(header.gso_size)).collect();
    let mut seq_offset = 0;
    (0..)
        .zip(&chunks)
        .map(|(n, chunk)| {
            let mut segment = [head, chunk].concat();
            let transport_len = segment.len() - transport;
            if segment[0] >> 4 == 4 {
                let len = u16::try_from(segment.len()).unwrap();
                let id = u16::from_be_bytes([head[4], head[5]]).wrapping_add(n);
                segment[2..4].copy_from_slice(&len.to_be_bytes());
                segment[4..6].copy_from_slice(&id.to_be_bytes());
                segment[10..12].fill(0);
                let check = !sum16(0, &segment[..transport]);
                segment[10..12].copy_from_slice(&check.to_be_bytes());
            } else {
                let len = u16::try_from(segment.len() - 40).unwrap();
                segment[4..6].copy_from_slice(&len.to_be_bytes());
            }
            if protocol == UDP {
                let len = u16::try_from(transport_len).unwrap();
                segment[transport + 4..transport + 6].copy_from_slice(&len.to_be_bytes());
            } else {
                let seq = &mut segment[transport + 4..transport + 8];
                let first = u32::from_be_bytes(seq.try_into().unwrap());
                seq.copy_from_slice(&first.wrapping_add(seq_offset).to_be_bytes());
                let is_last = usize::from(n) + 1 == chunks.len();
                let flags = &mut segment[transport + 13];
                *flags &= if is_last { 0xff } else { !0x09 };
                *flags &= if n == 0 { 0xff } else { !0x80 };
            }
            let at = transport + checksum_at(protocol);
            segment[at..at + 2].fill(0);
            let check = match !transport_sum(&segment, transport, protocol) {
                0 => 0xffff,
                check => check,
            };
            segment[at..at + 2].copy_from_slice(&check.to_be_bytes());
            seq_offset += u32::try_from(chunk.len()).unwrap();
            segment
        })
        .collect()
}

/// The packet, with the MSS that a SYN names held down to what a path takes (RFC 9293, section 3.7.1); its checksum is left.
#[must_use]
pub fn clamped(packet: &[u8], mtu: u16) -> Vec<u8> {
    let mut clamped = packet.to_vec();
    if let Some((at, headers_len)) = mss_at(packet) {
        let told = u16::from_be_bytes([packet[at], packet[at + 1]]);
        let most = mtu - headers_len;
        clamped[at..at + 2].copy_from_slice(&told.min(most).to_be_bytes());
    }
    clamped
}

/// Where a SYN names its MSS, and how long its headers are without options of TCP.
fn mss_at(packet: &[u8]) -> Option<(usize, u16)> {
    let View {
        part: Part::Whole(Upper::Tcp(_)),
        transport_at,
        ..
    } = view(packet)?
    else {
        return None;
    };
    let tcp = &packet[transport_at..];
    if tcp.get(13)? & 2 == 0 {
        return None;
    }
    let options = tcp.get(20..usize::from(tcp[12] / 16) * 4)?;
    let mut rest = options;
    loop {
        rest = match rest {
            [2, 4, _, _, ..] => {
                let at = transport_at + 20 + options.len() - rest.len() + 2;
                return Some((at, u16::try_from(transport_at).unwrap() + 20));
            }
            [0 | 2, ..] | [] => return None,
            [1, rest @ ..] => rest,
            [_, len, ..] => rest.get(usize::from(*len).max(2)..)?,
            [_] => return None,
        };
    }
}

/// What a receiver's kernel would do with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    /// Who seems to have sent it.
    pub src: IpAddr,
    /// Whom it is for.
    pub dst: IpAddr,
    /// Who gets it.
    pub part: Part,
    /// Where the transport header is.
    pub transport_at: usize,
}

/// Which part of a packet it is, and for whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    Whole(Upper),
    /// The beginning of the fragmented packet with this id.
    First(u32, Upper),
    /// More of it.
    Later(u32),
}

/// Who gets a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Upper {
    /// A TCP port.
    Tcp(u16),
    /// A UDP port.
    Udp(u16),
    /// Whoever answers pings.
    EchoRequest,
    /// Whoever sent one.
    EchoReply,
    /// Whoever sent the packet that it quotes.
    IcmpError,
    /// Some other protocol.
    Other(u8),
}

/// Reads headers as RFC 791 and RFC 8200 have them. `None` for what cannot be read, and for what this overlay never lets
/// through: routing and authentication headers, fragmented TCP, more than four extension headers.
#[must_use]
pub fn view(packet: &[u8]) -> Option<View> {
    match packet.first()? >> 4 {
        4 => view_ipv4(packet),
        6 => view_ipv6(packet),
        _ => None,
    }
}

fn word(packet: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(packet.get(at..at + 2)?.try_into().ok()?))
}

fn view_ipv4(packet: &[u8]) -> Option<View> {
    packet.get(..20)?;
    let transport_at = usize::from(packet[0] % 16) * 4;
    if transport_at < 20 || transport_at > packet.len() {
        return None;
    }
    let octets = |at: usize| [packet[at], packet[at + 1], packet[at + 2], packet[at + 3]];
    let place = word(packet, 6)?;
    let (has_more, offset) = (place >> 13 & 1 == 1, place % 8192);
    let id = u32::from(word(packet, 4)?);
    let protocol = packet[9];
    let is_fragment = has_more || offset > 0;
    if is_fragment && protocol == TCP {
        return None;
    }
    let part = if offset > 0 {
        Part::Later(id)
    } else {
        let upper = upper(&packet[transport_at..], protocol, true)?;
        if has_more {
            Part::First(id, upper)
        } else {
            Part::Whole(upper)
        }
    };
    Some(View {
        src: Ipv4Addr::from(octets(12)).into(),
        dst: Ipv4Addr::from(octets(16)).into(),
        part,
        transport_at,
    })
}

fn view_ipv6(packet: &[u8]) -> Option<View> {
    packet.get(..40)?;
    let ip = |at: usize| {
        let octets: [u8; 16] = packet[at..at + 16].try_into().unwrap_or_default();
        IpAddr::V6(Ipv6Addr::from(octets))
    };
    let (mut next, mut rest) = (packet[6], &packet[40..]);
    let (mut n_extensions, mut fragment_id) = (0, None);
    let at = |rest: &[u8]| packet.len() - rest.len();
    loop {
        let len = match next {
            0 | 60 => 8 * (1 + usize::from(*rest.get(1)?)),
            44 => 8,
            43 | 51 => return None,
            _ => break,
        };
        if next == 44 {
            let head = rest.get(..8)?;
            let place = word(head, 2)?;
            let id = u32::from_be_bytes(head[4..8].try_into().ok()?);
            if fragment_id.is_some() {
                return None;
            }
            let (offset, has_more) = (place >> 3, place & 1 == 1);
            if offset > 0 {
                // What its next header says is not looked at by anyone but the reassembly.
                return (head[0] != TCP).then_some(View {
                    src: ip(8),
                    dst: ip(24),
                    part: Part::Later(id),
                    transport_at: at(rest) + 8,
                });
            }
            if has_more {
                fragment_id = Some(id);
            }
        }
        n_extensions += 1;
        if n_extensions > 4 {
            return None;
        }
        next = *rest.first()?;
        rest = rest.get(len..)?;
    }
    if fragment_id.is_some() && next == TCP {
        return None;
    }
    let upper = upper(rest, next, false)?;
    Some(View {
        src: ip(8),
        dst: ip(24),
        part: fragment_id.map_or(Part::Whole(upper), |id| Part::First(id, upper)),
        transport_at: at(rest),
    })
}

fn upper(transport: &[u8], protocol: u8, is_v4: bool) -> Option<Upper> {
    let port = || word(transport, 2);
    match (protocol, is_v4) {
        (TCP, _) => transport.get(..20).and_then(|_| port()).map(Upper::Tcp),
        (UDP, _) => transport.get(..8).and_then(|_| port()).map(Upper::Udp),
        (1, true) => {
            transport.get(..8)?;
            Some(match transport[0] {
                8 => Upper::EchoRequest,
                0 => Upper::EchoReply,
                3 | 11 | 12 => Upper::IcmpError,
                _ => Upper::Other(1),
            })
        }
        (58, false) => {
            transport.get(..8)?;
            Some(match transport[0] {
                128 => Upper::EchoRequest,
                129 => Upper::EchoReply,
                1..=4 => Upper::IcmpError,
                _ => Upper::Other(58),
            })
        }
        (other, _) => Some(Upper::Other(other)),
    }
}
