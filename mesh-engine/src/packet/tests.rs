//! Headers of all shapes.

use proptest::prelude::*;

use super::*;

fn ipv6(next: u8, rest: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, 0, next, 64];
    packet.extend([1; 16]);
    packet.extend([2; 16]);
    packet.extend(rest);
    packet
}

const UDP_HEADER: [u8; 8] = [0, 7, 0, 9, 0, 8, 0, 0];

fn upper(packet: &[u8]) -> Option<(Upper, usize)> {
    Headers::parse(packet).map(|headers| (headers.upper, headers.upper_at))
}

#[test]
fn extension_headers_are_walked_or_refused() {
    let udp = |at| {
        let upper = Upper::Udp {
            src_port: 7,
            dst_port: 9,
        };
        Some((upper, at))
    };
    assert_eq!(upper(&ipv6(UDP, &UDP_HEADER)), udp(40));
    let hop = [&[UDP, 0, 0, 0, 0, 0, 0, 0], &UDP_HEADER[..]].concat();
    assert_eq!(upper(&ipv6(HOP_BY_HOP, &hop)), udp(48));
    let long = [&[UDP, 1], &[0; 14][..], &UDP_HEADER].concat();
    assert_eq!(upper(&ipv6(DESTINATION_OPTIONS, &long)), udp(56));
    let atomic = [&[UDP, 0, 0, 0, 1, 2, 3, 4], &UDP_HEADER[..]].concat();
    assert_eq!(upper(&ipv6(FRAGMENT, &atomic)), udp(48));
    for refused in [ROUTING, AUTHENTICATION] {
        assert_eq!(upper(&ipv6(refused, &hop)), None);
    }
    let many: Vec<u8> = [[DESTINATION_OPTIONS, 0, 0, 0, 0, 0, 0, 0]; 9].concat();
    assert_eq!(upper(&ipv6(DESTINATION_OPTIONS, &many)), None);
    let beyond = [&[UDP, 255, 0, 0, 0, 0, 0, 0], &UDP_HEADER[..]].concat();
    assert_eq!(upper(&ipv6(HOP_BY_HOP, &beyond)), None);
}

#[test]
fn fragments_are_told_apart() {
    let first = [&[UDP, 0, 0, 1, 0, 0, 0, 5], &UDP_HEADER[..]].concat();
    let headers = Headers::parse(&ipv6(FRAGMENT, &first)).unwrap();
    let is_first = true;
    assert_eq!(headers.fragment, Some(Fragment { id: 5, is_first }));
    let later = [&[UDP, 0, 0, 9, 0, 0, 0, 5], &UDP_HEADER[..]].concat();
    let headers = Headers::parse(&ipv6(FRAGMENT, &later)).unwrap();
    let is_first = false;
    assert_eq!(headers.fragment, Some(Fragment { id: 5, is_first }));
    assert_eq!(headers.upper, Upper::Other(UDP));
    for tcp in [[TCP, 0, 0, 1, 0, 0, 0, 5], [TCP, 0, 0, 9, 0, 0, 0, 5]] {
        let packet = ipv6(FRAGMENT, &[&tcp[..], &[0; 40]].concat());
        assert_eq!(Headers::parse(&packet), None);
    }
}

#[test]
fn the_quoted_part_of_a_tcp_header_is_enough() {
    let quoted = ipv6(TCP, &UDP_HEADER);
    assert_eq!(Headers::parse(&quoted), None);
    let headers = Headers::parse_quoted(&quoted).unwrap();
    let (src_port, dst_port) = (7, 9);
    assert_eq!(headers.upper, Upper::Tcp { src_port, dst_port });
}

proptest! {
    #[test]
    fn any_bytes_parse_or_not_and_never_panic(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..120),
        version in prop_oneof![Just(4u8), Just(6), any::<u8>()],
        next in prop_oneof![Just(0u8), Just(44), Just(60), any::<u8>()],
    ) {
        if let Some(first) = bytes.first_mut() {
            *first = version << 4 | *first & 0x0f;
        }
        if version == 6 && bytes.len() > 6 {
            bytes[6] = next;
        }
        for parsed in [Headers::parse(&bytes), Headers::parse_quoted(&bytes)].into_iter().flatten() {
            let has_ports = matches!(parsed.upper, Upper::Tcp { .. } | Upper::Udp { .. });
            prop_assert!(!has_ports || parsed.upper_at + 4 <= bytes.len());
        }
    }

    #[test]
    fn a_followed_checksum_is_the_computed_one(
        mut words in proptest::collection::vec(any::<u16>(), 2..40),
        at: proptest::sample::Index,
        new: u16,
    ) {
        let bytes = |words: &[u16]| words.iter().flat_map(|word| word.to_be_bytes()).collect::<Vec<_>>();
        let before = checksum(&bytes(&words));
        let at = at.index(words.len());
        let old = std::mem::replace(&mut words[at], new);
        let (followed, computed) = (checksum_after(before, old, new), checksum(&bytes(&words)));
        // Zero has two forms in ones' complement; all-zero data is the only one that shows the other.
        let is_zero = |sum: u16| sum == 0 || sum == 0xffff;
        prop_assert!(followed == computed || is_zero(followed) && is_zero(computed));
    }
}
