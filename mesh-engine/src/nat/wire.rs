//! What is said to a gateway about port mappings: PCP (RFC 6887) and NAT-PMP (RFC 6886), as far as one UDP port needs
//! them. The gateway is anybody who sits at its address: its answers are bytes from outside.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The port on which a gateway listens for both.
pub(crate) const GATEWAY_PORT: u16 = 5351;

/// What a PCP answer must repeat.
pub(crate) type Nonce = [u8; 12];

const PCP_VERSION: u8 = 2;
const PMP_VERSION: u8 = 0;
const OPCODE_MAP: u8 = 1;
const PMP_OPCODE_ADDRESS: u8 = 0;
const PMP_OPCODE_MAP_UDP: u8 = 1;
const RESPONSE: u8 = 0x80;
const PROTOCOL_UDP: u8 = 17;
const PCP_MAP_LEN: usize = 60;
const UNSUPPORTED_VERSION: u8 = 1;

/// An answer of the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// A mapping by PCP.
    Pcp {
        nonce: Nonce,
        inner_port: u16,
        outer: SocketAddr,
        lifetime_s: u32,
        epoch_s: u32,
    },
    /// The outer address by NAT-PMP.
    PmpAddress { ip: Ipv4Addr, epoch_s: u32 },
    /// A mapping by NAT-PMP.
    PmpMap {
        inner_port: u16,
        outer_port: u16,
        lifetime_s: u32,
        epoch_s: u32,
    },
    /// It speaks the other protocol.
    OtherVersion,
    /// It will not.
    Refused(u16),
}

/// Whether a datagram may be an answer of a gateway: neither WireGuard nor STUN looks like that.
pub(crate) fn is_answer(datagram: &[u8]) -> bool {
    matches!(datagram, [PMP_VERSION | PCP_VERSION, opcode, ..] if opcode & RESPONSE != 0)
        && (8..=1100).contains(&datagram.len())
}

/// Asks by PCP for a mapping of a UDP port, or with no lifetime to end it (RFC 6887, sections 7.1 and 11.1).
pub(crate) fn pcp_map(client: IpAddr, port: u16, nonce: &Nonce, lifetime_s: u32) -> Vec<u8> {
    let client = match client {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    let any = if client.to_ipv4_mapped().is_some() {
        Ipv4Addr::UNSPECIFIED.to_ipv6_mapped()
    } else {
        Ipv6Addr::UNSPECIFIED
    };
    let mut request = vec![PCP_VERSION, OPCODE_MAP, 0, 0];
    request.extend(lifetime_s.to_be_bytes());
    request.extend(client.octets());
    request.extend(nonce);
    request.extend([PROTOCOL_UDP, 0, 0, 0]);
    request.extend(port.to_be_bytes());
    request.extend(port.to_be_bytes());
    request.extend(any.octets());
    request
}

/// Asks by NAT-PMP for the outer address (RFC 6886, section 3.2).
pub(crate) fn pmp_address() -> Vec<u8> {
    vec![PMP_VERSION, PMP_OPCODE_ADDRESS]
}

/// Asks by NAT-PMP for a mapping of a UDP port, or with no lifetime to end it (RFC 6886, section 3.3).
pub(crate) fn pmp_map(port: u16, lifetime_s: u32) -> Vec<u8> {
    let mut request = vec![PMP_VERSION, PMP_OPCODE_MAP_UDP, 0, 0];
    request.extend(port.to_be_bytes());
    let outer = if lifetime_s == 0 { 0 } else { port };
    request.extend(outer.to_be_bytes());
    request.extend(lifetime_s.to_be_bytes());
    request
}

/// Reads an answer; `None` for what is none.
pub(crate) fn parse(datagram: &[u8]) -> Option<Answer> {
    let word = |at: usize| Some(u16::from_be_bytes(*datagram.get(at..)?.first_chunk()?));
    let long = |at: usize| Some(u32::from_be_bytes(*datagram.get(at..)?.first_chunk()?));
    match datagram {
        [PMP_VERSION, opcode, ..] if opcode & RESPONSE != 0 => {
            let (result, epoch_s) = (word(2)?, long(4)?);
            match (result, opcode & !RESPONSE) {
                (0, PMP_OPCODE_ADDRESS) => {
                    let ip = Ipv4Addr::from(long(8)?);
                    Some(Answer::PmpAddress { ip, epoch_s })
                }
                (0, PMP_OPCODE_MAP_UDP) => Some(Answer::PmpMap {
                    inner_port: word(8)?,
                    outer_port: word(10)?,
                    lifetime_s: long(12)?,
                    epoch_s,
                }),
                (0, _) => None,
                (result, _) if result == u16::from(UNSUPPORTED_VERSION) => {
                    Some(Answer::OtherVersion)
                }
                (result, _) => Some(Answer::Refused(result)),
            }
        }
        [PCP_VERSION, opcode, _, result, ..] if *opcode == OPCODE_MAP | RESPONSE => {
            match *result {
                0 => {}
                UNSUPPORTED_VERSION => return Some(Answer::OtherVersion),
                result => return Some(Answer::Refused(u16::from(result))),
            }
            if datagram.len() < PCP_MAP_LEN || datagram.get(36) != Some(&PROTOCOL_UDP) {
                return None;
            }
            let ip: [u8; 16] = *datagram.get(44..)?.first_chunk()?;
            let ip = Ipv6Addr::from(ip).to_canonical();
            Some(Answer::Pcp {
                nonce: *datagram.get(24..)?.first_chunk()?,
                inner_port: word(40)?,
                outer: SocketAddr::new(ip, word(42)?),
                lifetime_s: long(4)?,
                epoch_s: long(8)?,
            })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn requests_are_as_the_rfcs_draw_them() {
        let request = pcp_map("192.168.1.4".parse().unwrap(), 41_820, &[7; 12], 7200);
        assert_eq!(request.len(), PCP_MAP_LEN);
        assert_eq!(request[..8], [2, 1, 0, 0, 0, 0, 0x1c, 0x20]);
        assert_eq!(request[18..24], [0xff, 0xff, 192, 168, 1, 4]);
        assert_eq!(request[36..40], [17, 0, 0, 0]);
        assert_eq!(request[40..44], [0xa3, 0x5c, 0xa3, 0x5c]);
        assert_eq!(pmp_address(), [0, 0]);
        let map = [0, 1, 0, 0, 0xa3, 0x5c, 0xa3, 0x5c, 0, 0, 0x1c, 0x20];
        assert_eq!(pmp_map(41_820, 7200), map);
    }

    #[test]
    fn answers_are_read() {
        let mut pcp = vec![2, 0x81, 0, 0, 0, 0, 0, 120, 0, 0, 0, 9];
        pcp.extend([0; 12]);
        pcp.extend([7; 12]);
        pcp.extend([17, 0, 0, 0, 0xa3, 0x5c, 0, 99]);
        pcp.extend(Ipv4Addr::new(198, 51, 100, 7).to_ipv6_mapped().octets());
        let expected = Answer::Pcp {
            nonce: [7; 12],
            inner_port: 41_820,
            outer: "198.51.100.7:99".parse().unwrap(),
            lifetime_s: 120,
            epoch_s: 9,
        };
        assert!(is_answer(&pcp));
        assert_eq!(parse(&pcp), Some(expected));
        pcp[3] = 8;
        assert_eq!(parse(&pcp), Some(Answer::Refused(8)));
        let ip = Ipv4Addr::new(198, 51, 100, 7);
        let address = [0, 0x80, 0, 0, 0, 0, 0, 9, 198, 51, 100, 7];
        assert_eq!(parse(&address), Some(Answer::PmpAddress { ip, epoch_s: 9 }));
        let map = [0, 0x81, 0, 0, 0, 0, 0, 9, 0xa3, 0x5c, 0, 99, 0, 0, 0, 120];
        let expected = Answer::PmpMap {
            inner_port: 41_820,
            outer_port: 99,
            lifetime_s: 120,
            epoch_s: 9,
        };
        assert_eq!(parse(&map), Some(expected));
        let other = [0, 0x81, 0, 1, 0, 0, 0, 9];
        assert_eq!(parse(&other), Some(Answer::OtherVersion));
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80), version in 0..3u8) {
            let _ = parse(&bytes);
            let mut framed = bytes;
            if framed.len() > 1 {
                framed[0] = version;
                framed[1] |= RESPONSE;
            }
            let _ = (parse(&framed), is_answer(&framed));
        }
    }
}
