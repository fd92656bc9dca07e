//! Reads IP packets: addresses, transport ports, fragments and extension headers. Never trusts a length in a packet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMP: u8 = 1;
pub(crate) const ICMPV6: u8 = 58;

const HOP_BY_HOP: u8 = 0;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;
const ROUTING: u8 = 43;
const AUTHENTICATION: u8 = 51;

/// Extension headers that are walked before a packet is given up.
const N_EXTENSIONS_MAX: usize = 4;

/// What is known of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Headers {
    pub(crate) src: IpAddr,
    pub(crate) dst: IpAddr,
    pub(crate) upper: Upper,
    /// Where the transport header is.
    pub(crate) upper_at: usize,
    pub(crate) fragment: Option<Fragment>,
}

/// The transport header, as far as anyone asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Upper {
    Tcp {
        src_port: u16,
        dst_port: u16,
    },
    Udp {
        src_port: u16,
        dst_port: u16,
    },
    EchoRequest {
        ident: u16,
    },
    EchoReply {
        ident: u16,
    },
    /// An ICMP message about another packet, which it quotes from `upper_at + 8` on.
    IcmpError,
    /// Anything else; also what lies behind the first fragment.
    Other(u8),
}

/// Which part of a packet a fragment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fragment {
    pub(crate) id: u32,
    pub(crate) is_first: bool,
}

impl Headers {
    /// Reads a packet's headers; `None` when they are cut short, nonsense or of a kind that hides what follows.
    pub(crate) fn parse(packet: &[u8]) -> Option<Self> {
        Self::parse_upper(packet, true)
    }

    /// Reads a packet that an ICMP error quotes, of which only 8 transport bytes are sure to be there.
    pub(crate) fn parse_quoted(packet: &[u8]) -> Option<Self> {
        Self::parse_upper(packet, false)
    }

    fn parse_upper(packet: &[u8], is_whole: bool) -> Option<Self> {
        let (src, dst, protocol, upper_at, fragment) = match packet.first()? >> 4 {
            4 => parse_ipv4(packet)?,
            6 => parse_ipv6(packet)?,
            _ => return None,
        };
        // Nobody fragments TCP who does not mean to hide its ports.
        if fragment.is_some() && protocol == TCP {
            return None;
        }
        let upper = if fragment.is_some_and(|fragment| !fragment.is_first) {
            Upper::Other(protocol)
        } else {
            Upper::parse(packet.get(upper_at..)?, protocol, src.is_ipv4(), is_whole)?
        };
        Some(Self {
            src,
            dst,
            upper,
            upper_at,
            fragment,
        })
    }
}

impl Upper {
    fn parse(bytes: &[u8], protocol: u8, is_ipv4: bool, is_whole: bool) -> Option<Self> {
        match protocol {
            TCP => {
                if is_whole && bytes.len() < 20 {
                    return None;
                }
                Some(Self::Tcp {
                    src_port: be16(bytes, 0)?,
                    dst_port: be16(bytes, 2)?,
                })
            }
            UDP => {
                bytes.get(..8)?;
                Some(Self::Udp {
                    src_port: be16(bytes, 0)?,
                    dst_port: be16(bytes, 2)?,
                })
            }
            ICMP if is_ipv4 => {
                let ident = be16(bytes.get(..8)?, 4)?;
                Some(match bytes[0] {
                    8 => Self::EchoRequest { ident },
                    0 => Self::EchoReply { ident },
                    3 | 11 | 12 => Self::IcmpError,
                    _ => Self::Other(ICMP),
                })
            }
            ICMPV6 if !is_ipv4 => {
                let ident = be16(bytes.get(..8)?, 4)?;
                Some(match bytes[0] {
                    128 => Self::EchoRequest { ident },
                    129 => Self::EchoReply { ident },
                    1..=4 => Self::IcmpError,
                    _ => Self::Other(ICMPV6),
                })
            }
            other => Some(Self::Other(other)),
        }
    }
}

type Network = (IpAddr, IpAddr, u8, usize, Option<Fragment>);

fn parse_ipv4(packet: &[u8]) -> Option<Network> {
    let header: &[u8; 20] = packet.first_chunk()?;
    let header_len = usize::from(header[0] & 0x0f) * 4;
    if header_len < 20 || packet.len() < header_len {
        return None;
    }
    let flags_offset = u16::from_be_bytes([header[6], header[7]]);
    let (more, offset) = (flags_offset & 0x2000 != 0, flags_offset & 0x1fff);
    let fragment = (more || offset != 0).then(|| Fragment {
        id: u32::from(u16::from_be_bytes([header[4], header[5]])),
        is_first: offset == 0,
    });
    let src = Ipv4Addr::new(header[12], header[13], header[14], header[15]);
    let dst = Ipv4Addr::new(header[16], header[17], header[18], header[19]);
    Some((src.into(), dst.into(), header[9], header_len, fragment))
}

fn parse_ipv6(packet: &[u8]) -> Option<Network> {
    let header: &[u8; 40] = packet.first_chunk()?;
    let src = Ipv6Addr::from(<[u8; 16]>::try_from(header.get(8..24)?).ok()?);
    let dst = Ipv6Addr::from(<[u8; 16]>::try_from(header.get(24..40)?).ok()?);
    let (mut next, mut at, mut fragment) = (header[6], 40, None);
    for _ in 0..=N_EXTENSIONS_MAX {
        match next {
            HOP_BY_HOP | DESTINATION_OPTIONS => {
                let [kind, len] = *packet.get(at..)?.first_chunk()?;
                (next, at) = (kind, at + 8 + usize::from(len) * 8);
            }
            FRAGMENT => {
                let head: &[u8; 8] = packet.get(at..)?.first_chunk()?;
                if fragment.is_some() {
                    return None;
                }
                let offset_flags = u16::from_be_bytes([head[2], head[3]]);
                // An atomic fragment (RFC 6946) is a whole packet.
                if offset_flags & 0xfff9 != 0 {
                    let is_first = offset_flags & 0xfff8 == 0;
                    let id = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
                    fragment = Some(Fragment { id, is_first });
                    if !is_first {
                        return Some((src.into(), dst.into(), head[0], at + 8, fragment));
                    }
                }
                (next, at) = (head[0], at + 8);
            }
            ROUTING | AUTHENTICATION => return None,
            protocol => return Some((src.into(), dst.into(), protocol, at, fragment)),
        }
    }
    None
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    let pair = bytes.get(at..at.checked_add(2)?)?;
    Some(u16::from_be_bytes([*pair.first()?, *pair.get(1)?]))
}

/// The Internet checksum (RFC 1071).
pub(crate) fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u64 = 0;
    for pair in bytes.chunks(2) {
        let low = pair.get(1).copied().unwrap_or(0);
        sum += u64::from(u16::from_be_bytes([pair[0], low]));
    }
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    !(u16::try_from(sum).unwrap_or(u16::MAX))
}

/// The checksum of an IPv6 upper-layer message with its field at zero (RFC 8200, section 8.1); `addrs` are source and
/// destination.
pub(crate) fn checksum_of_upper(addrs: &[u8], protocol: u8, message: &[u8]) -> u16 {
    let [a, b] = u16::try_from(message.len())
        .unwrap_or(u16::MAX)
        .to_be_bytes();
    let parts = [
        !checksum(addrs),
        !checksum(&[a, b, 0, protocol]),
        !checksum(message),
    ];
    let sum: u32 = parts.into_iter().map(u32::from).sum();
    // Three words have at most one carry each time.
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    !(u16::try_from(folded).unwrap_or(u16::MAX))
}

/// A checksum after one 16-bit word that it covers went from `old` to `new` (RFC 1624, equation 3).
pub(crate) fn checksum_after(checksum: u16, old: u16, new: u16) -> u16 {
    let mut sum = u32::from(!checksum) + u32::from(!old) + u32::from(new);
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    !(u16::try_from(sum).unwrap_or(u16::MAX))
}

#[cfg(test)]
mod tests;
