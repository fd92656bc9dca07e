//! Chooses the TUN queue that a packet is given to this machine by. Pure.
//!
//! The kernel sends a flow's answers to the queue that its packets were last written to, so this choice says which worker
//! deals with them: the one that just opened the packet, who finds them without being woken. Only where this machine
//! sends much and hears bare acknowledgements is another worker better: then sealing and opening go on side by side.

/// Where answers to a packet are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// The worker that opened it.
    Own,
    /// The next worker.
    Next,
}

/// Judges a packet by its headers.
pub(super) fn side(packet: &[u8]) -> Side {
    if is_bare_ack(packet).unwrap_or(false) {
        Side::Next
    } else {
        Side::Own
    }
}

/// Tells flows apart well enough to spread them: addresses and ports of TCP and UDP, addresses of all else.
pub(crate) fn flow_hash(packet: &[u8]) -> usize {
    let (protocol_at, addrs, ports) = match packet.first() {
        Some(byte) if byte >> 4 == 4 => (9, 12..20, 20..24),
        _ => (6, 8..40, 40..44),
    };
    let has_ports = matches!(packet.get(protocol_at), Some(&(TCP | UDP)));
    let addrs = packet.get(addrs).unwrap_or_default();
    let ports = packet.get(ports).filter(|_| has_ports);
    let words = addrs.as_chunks::<4>().0.iter();
    let words = words.chain(ports.unwrap_or_default().as_chunks::<4>().0);
    let hash = words.fold(0_u32, |hash, word| {
        (hash.rotate_left(5) ^ u32::from_ne_bytes(*word)).wrapping_mul(0x9e37_79b9)
    });
    (hash >> 16) as usize
}

const TCP: u8 = 6;
const UDP: u8 = 17;
/// The flags of a TCP header that say more than "I have this": FIN, SYN and RST.
const SPEAKING: u8 = 0x01 | 0x02 | 0x04;

fn is_bare_ack(packet: &[u8]) -> Option<bool> {
    let (len, protocol, tcp_at) = match *packet.first()? {
        0x45 => (be16(packet, 2)?, *packet.get(9)?, 20),
        byte if byte >> 4 == 6 => (be16(packet, 4)?.checked_add(40)?, *packet.get(6)?, 40),
        _ => return None,
    };
    let tcp_len = usize::from(packet.get(tcp_at + 12)? >> 4) * 4;
    let flags = *packet.get(tcp_at + 13)?;
    Some(protocol == TCP && usize::from(len) == tcp_at + tcp_len && flags & SPEAKING == 0)
}

fn be16(packet: &[u8], at: usize) -> Option<u16> {
    let pair = packet.get(at..)?.first_chunk()?;
    Some(u16::from_be_bytes(*pair))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tcp(is_v4: bool, flags: u8, payload_len: u16) -> Vec<u8> {
        let header_len = if is_v4 { 20 } else { 40 };
        let mut packet = vec![0; header_len + 32 + usize::from(payload_len)];
        if is_v4 {
            packet[0] = 0x45;
            packet[2..4].copy_from_slice(&(52 + payload_len).to_be_bytes());
            packet[9] = TCP;
        } else {
            packet[0] = 0x60;
            packet[4..6].copy_from_slice(&(32 + payload_len).to_be_bytes());
            packet[6] = TCP;
        }
        packet[header_len + 12] = 8 << 4;
        packet[header_len + 13] = flags;
        packet
    }

    #[test]
    fn only_bare_acknowledgements_go_to_the_next_worker() {
        for is_v4 in [true, false] {
            assert_eq!(side(&tcp(is_v4, 0x10, 0)), Side::Next);
            assert_eq!(side(&tcp(is_v4, 0x10, 1)), Side::Own);
            for flags in [0x11, 0x12, 0x14] {
                assert_eq!(side(&tcp(is_v4, flags, 0)), Side::Own);
            }
            let mut udp = tcp(is_v4, 0x10, 0);
            udp[if is_v4 { 9 } else { 6 }] = UDP;
            assert_eq!(side(&udp), Side::Own);
            for len in 0..tcp(is_v4, 0x10, 0).len() {
                let _ = side(&tcp(is_v4, 0x10, 0)[..len]);
            }
        }
        assert_eq!(side(&[]), Side::Own);
    }

    proptest! {
        #[test]
        fn any_bytes_are_steered(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..120),
            first in prop_oneof![Just(0x45_u8), Just(0x60), any::<u8>()],
            protocol in prop_oneof![Just(TCP), Just(UDP), any::<u8>()],
        ) {
            if let Some(byte) = bytes.first_mut() {
                *byte = first;
            }
            if let Some(byte) = bytes.get_mut(if first >> 4 == 4 { 9 } else { 6 }) {
                *byte = protocol;
            }
            let (judged, hash) = (side(&bytes), flow_hash(&bytes));
            prop_assert!(judged == Side::Own || protocol == TCP && bytes.len() >= 34);
            // What lies behind the headers says nothing about the flow.
            let headers_len = if first >> 4 == 4 { 24 } else { 44 };
            if bytes.len() > headers_len {
                bytes.truncate(headers_len);
                prop_assert_eq!(flow_hash(&bytes), hash);
            }
        }
    }

    #[test]
    fn flows_are_spread_and_stay_where_they_are() {
        let mut seen = [0; 4];
        for port in 0..400_u16 {
            let mut packet = tcp(true, 0x10, 5);
            packet[20..22].copy_from_slice(&port.to_be_bytes());
            let queue = flow_hash(&packet) % 4;
            packet[52] = 77;
            assert_eq!(flow_hash(&packet) % 4, queue);
            seen[queue] += 1;
        }
        assert!(seen.iter().all(|n| (60..140).contains(n)), "{seen:?}");
    }
}
