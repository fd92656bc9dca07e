//! STUN binding requests and answers (RFC 8489), as far as finding one's server-reflexive address needs them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

const BINDING_REQUEST: u16 = 0x0001;
const BINDING_SUCCESS: u16 = 0x0101;
const MAGIC_COOKIE: u32 = 0x2112_a442;
const XOR_MAPPED_ADDRESS: u16 = 0x0020;
const HEADER_LEN: usize = 20;

/// A transaction id (RFC 8489, section 5): 96 random bits that an answer must repeat.
pub type TransactionId = [u8; 12];

/// Whether a datagram is STUN and not WireGuard: the magic cookie, and two zero bits in front.
#[must_use]
pub fn is_stun(datagram: &[u8]) -> bool {
    datagram.len() >= HEADER_LEN
        && datagram[0] & 0xc0 == 0
        && datagram[4..8] == MAGIC_COOKIE.to_be_bytes()
}

/// A binding request without attributes.
#[must_use]
pub fn binding_request(id: &TransactionId) -> [u8; HEADER_LEN] {
    let mut datagram = [0; HEADER_LEN];
    datagram[..2].copy_from_slice(&BINDING_REQUEST.to_be_bytes());
    datagram[4..8].copy_from_slice(&MAGIC_COOKIE.to_be_bytes());
    datagram[8..].copy_from_slice(id);
    datagram
}

/// The transaction id of a binding request; `None` for anything else.
#[must_use]
pub fn parse_request(datagram: &[u8]) -> Option<TransactionId> {
    let (kind, id, _) = parse_header(datagram)?;
    (kind == BINDING_REQUEST).then_some(id)
}

/// The success answer that tells `seen` to the asker.
#[must_use]
pub fn binding_success(id: &TransactionId, seen: SocketAddr) -> Vec<u8> {
    let mut value = vec![0, if seen.is_ipv4() { 1 } else { 2 }];
    value.extend((seen.port() ^ (MAGIC_COOKIE >> 16) as u16).to_be_bytes());
    match seen.ip() {
        IpAddr::V4(ip) => value.extend((u32::from(ip) ^ MAGIC_COOKIE).to_be_bytes()),
        IpAddr::V6(ip) => value.extend((u128::from(ip) ^ ipv6_mask(id)).to_be_bytes()),
    }
    let mut datagram = Vec::with_capacity(HEADER_LEN + 4 + value.len());
    datagram.extend(BINDING_SUCCESS.to_be_bytes());
    datagram.extend(u16::try_from(value.len() + 4).unwrap_or(0).to_be_bytes());
    datagram.extend(MAGIC_COOKIE.to_be_bytes());
    datagram.extend(id);
    datagram.extend(XOR_MAPPED_ADDRESS.to_be_bytes());
    datagram.extend(u16::try_from(value.len()).unwrap_or(0).to_be_bytes());
    datagram.extend(value);
    datagram
}

/// The transaction id and the reflexive address of a success answer; `None` for anything else.
#[must_use]
pub fn parse_success(datagram: &[u8]) -> Option<(TransactionId, SocketAddr)> {
    let (kind, id, mut rest) = parse_header(datagram)?;
    if kind != BINDING_SUCCESS {
        return None;
    }
    while let Some((head, tail)) = rest.split_first_chunk::<4>() {
        let kind = u16::from_be_bytes([head[0], head[1]]);
        let len = usize::from(u16::from_be_bytes([head[2], head[3]]));
        let value = tail.get(..len)?;
        if kind == XOR_MAPPED_ADDRESS {
            return Some((id, parse_xor_address(value, &id)?));
        }
        rest = tail.get(len.next_multiple_of(4)..)?;
    }
    None
}

fn parse_header(datagram: &[u8]) -> Option<(u16, TransactionId, &[u8])> {
    if !is_stun(datagram) {
        return None;
    }
    let (head, body) = datagram.split_first_chunk::<HEADER_LEN>()?;
    let len = usize::from(u16::from_be_bytes([head[2], head[3]]));
    let mut id = [0; 12];
    id.copy_from_slice(&head[8..]);
    (len == body.len()).then_some((u16::from_be_bytes([head[0], head[1]]), id, body))
}

fn parse_xor_address(value: &[u8], id: &TransactionId) -> Option<SocketAddr> {
    let (head, address) = value.split_first_chunk::<4>()?;
    let port = u16::from_be_bytes([head[2], head[3]]) ^ (MAGIC_COOKIE >> 16) as u16;
    let ip = match head[1] {
        1 => IpAddr::V4(Ipv4Addr::from(
            u32::from_be_bytes(address.try_into().ok()?) ^ MAGIC_COOKIE,
        )),
        2 => IpAddr::V6(Ipv6Addr::from(
            u128::from_be_bytes(address.try_into().ok()?) ^ ipv6_mask(id),
        )),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

fn ipv6_mask(id: &TransactionId) -> u128 {
    let mut mask = [0; 16];
    mask[..4].copy_from_slice(&MAGIC_COOKIE.to_be_bytes());
    mask[4..].copy_from_slice(id);
    u128::from_be_bytes(mask)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn agrees_with_the_test_vector_of_rfc_5769() {
        // RFC 5769, section 2.2: only the header and XOR-MAPPED-ADDRESS of the sample answer.
        let id = *b"\xb7\xe7\xa7\x01\xbc\x34\xd6\x86\xfa\x87\xdf\xae";
        let attribute = b"\x00\x20\x00\x08\x00\x01\xa1\x47\xe1\x12\xa6\x43";
        let seen: SocketAddr = "192.0.2.1:32853".parse().unwrap();
        let answer = binding_success(&id, seen);
        assert_eq!(&answer[20..], attribute);
        assert_eq!(parse_success(&answer), Some((id, seen)));
    }

    #[test]
    fn a_request_is_told_from_wireguard() {
        let request = binding_request(&[7; 12]);
        assert_eq!(parse_request(&request), Some([7; 12]));
        assert!(!is_stun(&[
            1, 0, 0, 0, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20
        ]));
        assert_eq!(parse_success(&request), None);
    }

    proptest! {
        #[test]
        fn any_address_survives(ip: IpAddr, port: u16, id: [u8; 12]) {
            let seen = SocketAddr::new(ip, port);
            prop_assert_eq!(parse_success(&binding_success(&id, seen)), Some((id, seen)));
        }

        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_success(&bytes);
            let mut framed = binding_success(&[1; 12], "192.0.2.1:1".parse().unwrap());
            for (at, byte) in bytes.iter().enumerate().take(framed.len()) {
                if byte & 3 == 0 { framed[at] = *byte; }
            }
            let _ = (parse_success(&framed), parse_request(&framed));
        }
    }
}
