//! What is done with a packet that is longer than its path takes, and how TCP is kept from making such. Pure.
//!
//! This end is the packet's source host, so it may do what a router must not: cut TCP segments, and fragment IPv6.
//! Programs that set don't-fragment are told the path's MTU as a router would (RFC 1191, RFC 8201), once it is settled.

use std::net::IpAddr;

use crate::event::{ChecksumState, Way};
use crate::packet::{Headers, ICMP, ICMPV6, Upper, checksum, checksum_after, checksum_of_upper};

const IPV6_MIN_MTU: u16 = 1280;
const IPV6_HEADER: usize = 40;
const FRAGMENT_HEADER: usize = 8;
const FRAGMENT: u8 = 44;
/// Extension headers that stay in front of a fragment header; who sends them with long packets is told to send less.
const UNFRAGMENTABLE: [u8; 4] = [0, 43, 51, 60];

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
/// The least payload that it is worth to cut TCP for.
const SEGMENT_MIN: u16 = 64;

/// What to do with one packet.
#[expect(
    clippy::large_enum_variant,
    reason = "it lives for a moment, and a box would be an allocation per packet"
)]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fit<'a> {
    /// Cut its payload into TCP segments of so many bytes, as segmentation offload does. Its checksum may be partial.
    Segments {
        /// Where the TCP header is.
        transport_at: u16,
        /// Payload bytes of each segment but the last.
        segment_size: u16,
    },
    /// Send these instead. The packet's checksums must be complete.
    Fragments(Fragments<'a>),
    /// Forget it, and give this machine the message.
    TooBig(TooBig),
    /// Forget it: nobody can be told.
    Drop,
}

/// The fragments of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fragments<'a> {
    is_ipv4: bool,
    header: &'a [u8],
    /// What is divided.
    body: &'a [u8],
    /// What the body is, for IPv6.
    next_header: u8,
    id: u32,
    /// Where the body began before, when the packet is itself a fragment, in units of 8 bytes.
    offset: usize,
    has_more: bool,
    /// Bytes of the body in each fragment but the last.
    share: usize,
    n_done: usize,
}

/// An ICMP message for this machine: fragmentation needed, or packet too big.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TooBig {
    bytes: [u8; TOO_BIG_MAX],
    len: usize,
}

/// Both kinds quote as much of the packet as fits into 576 bytes (RFC 1812, section 4.3.2.3).
const TOO_BIG_MAX: usize = 576;

impl TooBig {
    /// The packet, with right checksums.
    #[must_use]
    pub fn packet(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

/// Decides; `fresh_id` names the fragments where the packet has no name of its own.
pub(crate) fn fit<'a>(packet: &'a [u8], way: &Way, fresh_id: u32) -> Fit<'a> {
    let Some(headers) = Headers::parse(packet) else {
        return Fit::Drop;
    };
    if let Upper::Tcp { .. } = headers.upper {
        return segments(packet, &headers, way.mtu)
            .unwrap_or_else(|| too_big(packet, &headers, way.mtu));
    }
    let is_error = headers.upper == Upper::IcmpError;
    let wants_whole = match headers.src {
        IpAddr::V4(_) => packet.get(6).is_some_and(|flags| flags & 0x40 != 0),
        IpAddr::V6(_) => packet.len() > usize::from(IPV6_MIN_MTU),
    };
    if wants_whole && way.is_settled && !is_error {
        return too_big(packet, &headers, way.mtu);
    }
    match Fragments::new(packet, way.mtu.into(), fresh_id) {
        Some(fragments) => Fit::Fragments(fragments),
        None if is_error => Fit::Drop,
        None => too_big(packet, &headers, way.mtu),
    }
}

/// TCP that is nothing but payload can be cut; `None` for all else.
fn segments<'a>(packet: &[u8], headers: &Headers, mtu: u16) -> Option<Fit<'a>> {
    let flags = *packet.get(headers.upper_at + 13)?;
    let tcp_len = u16::from(*packet.get(headers.upper_at + 12)? >> 4) * 4;
    let transport_at = u16::try_from(headers.upper_at).ok()?;
    let segment_size = mtu.checked_sub(transport_at.checked_add(tcp_len)?)?;
    let is_plain = flags & !(FIN | PSH | ACK | 0xc0) == 0 && headers.fragment.is_none();
    (is_plain && segment_size >= SEGMENT_MIN).then_some(Fit::Segments {
        transport_at,
        segment_size,
    })
}

fn too_big<'a>(packet: &'a [u8], headers: &Headers, mtu: u16) -> Fit<'a> {
    let mut message = TooBig {
        bytes: [0; TOO_BIG_MAX],
        len: 0,
    };
    let ip_len = if headers.src.is_ipv4() {
        20
    } else {
        IPV6_HEADER
    };
    let quoted = packet
        .get(..packet.len().min(TOO_BIG_MAX - ip_len - 8))
        .unwrap_or_default();
    message.len = ip_len + 8 + quoted.len();
    // The length is at most TOO_BIG_MAX.
    let total = u16::try_from(message.len).unwrap_or(u16::MAX);
    let (ip, icmp) = message.bytes.split_at_mut(ip_len);
    icmp[8..8 + quoted.len()].copy_from_slice(quoted);
    let icmp = &mut icmp[..8 + quoted.len()];
    // It comes from where the packet was going, and goes to where it came from.
    match (headers.src, headers.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            icmp[..2].copy_from_slice(&[3, 4]);
            icmp[6..8].copy_from_slice(&mtu.to_be_bytes());
            let sum = checksum(icmp);
            icmp[2..4].copy_from_slice(&sum.to_be_bytes());
            ip[0] = 0x45;
            ip[2..4].copy_from_slice(&total.to_be_bytes());
            ip[8..10].copy_from_slice(&[64, ICMP]);
            ip[12..16].copy_from_slice(&dst.octets());
            ip[16..20].copy_from_slice(&src.octets());
            let sum = checksum(ip);
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            icmp[0] = 2;
            let mtu = mtu.max(IPV6_MIN_MTU);
            icmp[4..8].copy_from_slice(&u32::from(mtu).to_be_bytes());
            ip[0] = 0x60;
            ip[4..6].copy_from_slice(&(total - 40).to_be_bytes());
            ip[6..8].copy_from_slice(&[ICMPV6, 64]);
            ip[8..24].copy_from_slice(&dst.octets());
            ip[24..40].copy_from_slice(&src.octets());
            let sum = checksum_of_upper(&ip[8..40], ICMPV6, icmp);
            icmp[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return Fit::Drop,
    }
    Fit::TooBig(message)
}

impl<'a> Fragments<'a> {
    fn new(packet: &'a [u8], mtu: usize, fresh_id: u32) -> Option<Self> {
        let fragments = match packet.first()? >> 4 {
            4 => Self::of_ipv4(packet, mtu, fresh_id)?,
            _ => Self::of_ipv6(packet, mtu, fresh_id)?,
        };
        // A fragment but the last must end at a multiple of 8 bytes, and its place fit the header's field.
        let end = fragments.offset * 8 + fragments.body.len();
        let is_even = !fragments.has_more || fragments.body.len().is_multiple_of(8);
        (fragments.share >= 8 && is_even && end <= usize::from(u16::MAX)).then_some(fragments)
    }

    fn of_ipv4(packet: &'a [u8], mtu: usize, fresh_id: u32) -> Option<Self> {
        let header_len = usize::from(packet.first()? & 0x0f) * 4;
        let (header, body) = packet.split_at_checked(header_len)?;
        let fixed: &[u8; 20] = header.first_chunk()?;
        let flags_offset = u16::from_be_bytes([fixed[6], fixed[7]]);
        // Who forbids fragments need not number its packets.
        let id = if flags_offset & 0x4000 != 0 {
            fresh_id & 0xffff
        } else {
            u32::from(u16::from_be_bytes([fixed[4], fixed[5]]))
        };
        Some(Self {
            is_ipv4: true,
            header,
            body,
            next_header: 0,
            id,
            offset: usize::from(flags_offset & 0x1fff),
            has_more: flags_offset & 0x2000 != 0,
            share: mtu.checked_sub(header_len)? & !7,
            n_done: 0,
        })
    }

    fn of_ipv6(packet: &'a [u8], mtu: usize, fresh_id: u32) -> Option<Self> {
        let (header, rest) = packet.split_at_checked(IPV6_HEADER)?;
        let next_header = *header.get(6)?;
        if UNFRAGMENTABLE.contains(&next_header) {
            return None;
        }
        let share = mtu.checked_sub(IPV6_HEADER + FRAGMENT_HEADER)? & !7;
        if next_header != FRAGMENT {
            return Some(Self {
                is_ipv4: false,
                header,
                body: rest,
                next_header,
                id: fresh_id,
                offset: 0,
                has_more: false,
                share,
                n_done: 0,
            });
        }
        let (fragment, body) = rest.split_first_chunk::<FRAGMENT_HEADER>()?;
        let offset_flags = u16::from_be_bytes([fragment[2], fragment[3]]);
        Some(Self {
            is_ipv4: false,
            header,
            body,
            next_header: fragment[0],
            id: u32::from_be_bytes([fragment[4], fragment[5], fragment[6], fragment[7]]),
            offset: usize::from(offset_flags >> 3),
            has_more: offset_flags & 1 != 0,
            share,
            n_done: 0,
        })
    }

    /// Writes the next fragment to the front of `out`, which should hold as many bytes as the packet and 8 more; `None`
    /// after the last, or when it does not.
    pub fn write_next(&mut self, out: &mut [u8]) -> Option<usize> {
        let left = self
            .body
            .get(self.n_done..)
            .filter(|left| !left.is_empty())?;
        let body = left.get(..left.len().min(self.share))?;
        let is_last = body.len() == left.len() && !self.has_more;
        let offset = u16::try_from(self.offset + self.n_done / 8).ok()?;
        let head_len = self.header.len() + if self.is_ipv4 { 0 } else { FRAGMENT_HEADER };
        let len = head_len + body.len();
        let out = out.get_mut(..len)?;
        out.get_mut(..self.header.len())?
            .copy_from_slice(self.header);
        out.get_mut(head_len..)?.copy_from_slice(body);
        let [id_a, id_b, id_c, id_d] = self.id.to_be_bytes();
        if self.is_ipv4 {
            let ip = out.get_mut(..head_len)?;
            ip[2..4].copy_from_slice(&u16::try_from(len).ok()?.to_be_bytes());
            ip[4..6].copy_from_slice(&[id_c, id_d]);
            let more = if is_last { 0 } else { 0x2000 };
            ip[6..8].copy_from_slice(&(offset | more).to_be_bytes());
            ip[10..12].fill(0);
            let sum = checksum(ip);
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
        } else {
            let payload_len = u16::try_from(len - IPV6_HEADER).ok()?;
            out[4..6].copy_from_slice(&payload_len.to_be_bytes());
            out[6] = FRAGMENT;
            let [place_a, place_b] = (offset << 3 | u16::from(!is_last)).to_be_bytes();
            out[IPV6_HEADER..head_len].copy_from_slice(&[
                self.next_header,
                0,
                place_a,
                place_b,
                id_a,
                id_b,
                id_c,
                id_d,
            ]);
        }
        self.n_done += body.len();
        Some(len)
    }
}

/// Whether a packet begins a TCP connection.
pub(crate) fn is_syn(packet: &[u8], headers: &Headers) -> bool {
    matches!(headers.upper, Upper::Tcp { .. })
        && packet
            .get(headers.upper_at + 13)
            .is_some_and(|flags| flags & SYN != 0)
}

/// Lowers the MSS that a SYN names to what a path takes (RFC 9293, section 3.7.1), and its checksum along.
pub(crate) fn clamp_mss(
    packet: &mut [u8],
    headers: &Headers,
    mtu: u16,
    state: ChecksumState,
) -> Option<()> {
    let transport = packet.get_mut(headers.upper_at..)?;
    let headers_len = u16::try_from(headers.upper_at).ok()?.checked_add(20)?;
    let most = mtu.checked_sub(headers_len)?;
    let tcp_len = usize::from(*transport.get(12)? >> 4) * 4;
    let mut at = 20;
    while at < tcp_len {
        match *transport.get(at)? {
            0 => return None,
            1 => at += 1,
            2 => break,
            _ => at += usize::from(*transport.get(at + 1)?).max(2),
        }
    }
    let option: &mut [u8; 4] = transport.get_mut(at..tcp_len)?.first_chunk_mut()?;
    let [2, 4, high, low] = *option else {
        return None;
    };
    let told = u16::from_be_bytes([high, low]);
    if told <= most {
        return None;
    }
    option[2..].copy_from_slice(&most.to_be_bytes());
    if state == ChecksumState::Complete {
        let field: &mut [u8; 2] = transport.get_mut(16..)?.first_chunk_mut()?;
        // At an odd place both bytes lie in other words, each swapped (RFC 1071, section 2.B).
        let (old, new) = if at.is_multiple_of(2) {
            (told, most)
        } else {
            (told.swap_bytes(), most.swap_bytes())
        };
        *field = checksum_after(u16::from_be_bytes(*field), old, new).to_be_bytes();
    }
    Some(())
}

#[cfg(test)]
mod tests;
