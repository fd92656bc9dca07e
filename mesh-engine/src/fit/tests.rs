//! Packets longer than their path takes, and what becomes of them.

use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;
use crate::event::Way;
use crate::packet::{TCP, UDP};

fn way(mtu: u16, is_settled: bool) -> Way {
    Way {
        dst: None,
        mtu,
        is_settled,
        is_lossy: false,
    }
}

/// A packet with a payload of some length; IPv4 forbids fragments when `is_whole`.
fn packet(is_ipv4: bool, protocol: u8, len: usize, is_whole: bool) -> Vec<u8> {
    let ip_len = if is_ipv4 { 20 } else { 40 };
    let mut packet = vec![0; len];
    for (n, byte) in packet.iter_mut().enumerate().skip(ip_len) {
        *byte = u8::try_from(n % 251).unwrap();
    }
    let upper = &mut packet[ip_len..];
    if protocol == TCP {
        upper[12..14].copy_from_slice(&[5 << 4, ACK]);
    } else if protocol != UDP {
        // An echo request.
        upper[0] = if is_ipv4 { 8 } else { 128 };
    }
    let total = u16::try_from(len).unwrap();
    if is_ipv4 {
        packet[0] = 0x45;
        packet[2..4].copy_from_slice(&total.to_be_bytes());
        packet[4..6].copy_from_slice(&[7, 9]);
        packet[6] = if is_whole { 0x40 } else { 0 };
        packet[8..10].copy_from_slice(&[64, protocol]);
        packet[12..16].copy_from_slice(&Ipv4Addr::new(10, 1, 0, 1).octets());
        packet[16..20].copy_from_slice(&Ipv4Addr::new(10, 1, 0, 2).octets());
    } else {
        packet[0] = 0x60;
        packet[4..6].copy_from_slice(&(total - 40).to_be_bytes());
        packet[6..8].copy_from_slice(&[protocol, 64]);
        packet[8..24].copy_from_slice(&Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1).octets());
        packet[24..40].copy_from_slice(&Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2).octets());
    }
    packet
}

fn fragments(packet: &[u8], mtu: u16, is_settled: bool) -> Vec<Vec<u8>> {
    let Fit::Fragments(mut fragments) = fit(packet, &way(mtu, is_settled), 0x1234_5678) else {
        panic!("{:?}", fit(packet, &way(mtu, is_settled), 0));
    };
    let mut out = vec![0; packet.len() + 8];
    std::iter::from_fn(|| {
        let len = fragments.write_next(&mut out)?;
        Some(out[..len].to_vec())
    })
    .collect()
}

/// What the receiver puts together, and the ids it saw.
fn reassembled(fragments: &[Vec<u8>]) -> Vec<u8> {
    let mut body = Vec::new();
    for (n, fragment) in fragments.iter().enumerate() {
        let (head_len, offset, has_more) = if fragment[0] >> 4 == 4 {
            assert_eq!(checksum(&fragment[..20]), 0);
            assert_eq!(
                usize::from(u16::from_be_bytes([fragment[2], fragment[3]])),
                fragment.len()
            );
            let place = u16::from_be_bytes([fragment[6], fragment[7]]);
            (20, place & 0x1fff, place & 0x2000 != 0)
        } else {
            assert_eq!(fragment[6], FRAGMENT);
            assert_eq!(
                usize::from(u16::from_be_bytes([fragment[4], fragment[5]])) + 40,
                fragment.len()
            );
            let place = u16::from_be_bytes([fragment[42], fragment[43]]);
            (48, place >> 3, place & 1 != 0)
        };
        assert_eq!(usize::from(offset) * 8, body.len());
        assert_eq!(has_more, n + 1 < fragments.len());
        body.extend_from_slice(&fragment[head_len..]);
    }
    body
}

#[test]
fn fragments_come_together_to_the_packet() {
    for is_ipv4 in [true, false] {
        for len in [1201, 1240, 1280, 1440, 3000] {
            for mtu in [512, 1200, 1216] {
                let is_settled = len <= 1280;
                if mtu >= len {
                    continue;
                }
                let packet = packet(is_ipv4, UDP, len.into(), false);
                let sent = fragments(&packet, mtu, is_settled && len <= 1280);
                assert!(
                    sent.iter()
                        .all(|fragment| fragment.len() <= usize::from(mtu))
                );
                let head_len = if is_ipv4 { 20 } else { 40 };
                assert_eq!(reassembled(&sent), packet[head_len..]);
                let parsed = sent
                    .iter()
                    .map(|fragment| Headers::parse(fragment).unwrap());
                let ids: Vec<u32> = parsed.map(|headers| headers.fragment.unwrap().id).collect();
                let id = if is_ipv4 { 0x0709 } else { 0x1234_5678 };
                assert!(ids.iter().all(|other| *other == id), "{ids:x?}");
            }
        }
    }
}

#[test]
fn a_fragment_is_divided_further() {
    for is_ipv4 in [true, false] {
        let packet = packet(is_ipv4, UDP, 3000, false);
        let sent = fragments(&packet, 1200, false);
        let twice: Vec<Vec<u8>> = sent
            .iter()
            .flat_map(|fragment| fragments(fragment, 512, false))
            .collect();
        assert!(twice.iter().all(|fragment| fragment.len() <= 512));
        assert_eq!(reassembled(&twice), reassembled(&sent));
    }
}

#[test]
fn who_wants_packets_whole_is_told_once_the_path_is_known() {
    let whole = packet(true, UDP, 1400, true);
    assert_eq!(reassembled(&fragments(&whole, 1200, false)), whole[20..]);
    let Fit::TooBig(message) = fit(&whole, &way(1200, true), 0) else {
        panic!("not told");
    };
    let told = message.packet();
    assert_eq!(checksum(&told[..20]), 0);
    assert_eq!(checksum(&told[20..]), 0);
    assert_eq!((told[20], told[21]), (3, 4));
    assert_eq!(u16::from_be_bytes([told[26], told[27]]), 1200);
    assert_eq!(
        (&told[12..16], &told[16..20]),
        (&whole[16..20], &whole[12..16])
    );
    assert_eq!(told[28..], whole[..told.len() - 28]);

    let long = packet(false, UDP, 1400, false);
    let Fit::TooBig(message) = fit(&long, &way(1200, true), 0) else {
        panic!("not told");
    };
    let told = message.packet();
    assert_eq!(checksum_of_upper(&told[8..40], ICMPV6, &told[40..]), 0);
    assert_eq!(told[40], 2);
    // No host heeds less than 1,280; what is no longer than that is fragmented.
    assert_eq!(told[44..48], 1280_u32.to_be_bytes());
    let short = packet(false, UDP, 1280, false);
    assert_eq!(reassembled(&fragments(&short, 1200, true)), short[40..]);
}

#[test]
fn tcp_is_cut_and_never_fragmented() {
    for (is_ipv4, at) in [(true, 20_u16), (false, 40)] {
        let data = packet(is_ipv4, TCP, 1400, true);
        for is_settled in [false, true] {
            let wanted = Fit::Segments {
                transport_at: at,
                segment_size: 1200 - at - 20,
            };
            assert_eq!(fit(&data, &way(1200, is_settled), 0), wanted);
        }
        for flags in [SYN | ACK, 0x04, 0x20] {
            let mut other = data.clone();
            other[usize::from(at) + 13] = flags;
            assert!(matches!(fit(&other, &way(1200, false), 0), Fit::TooBig(_)));
        }
    }
}

/// A SYN with these options and a right checksum, but for the pseudo-header.
fn syn(options: &[u8]) -> Vec<u8> {
    let mut syn = packet(true, TCP, 40 + options.len(), true);
    syn[32] = u8::try_from(5 + options.len() / 4).unwrap() << 4;
    syn[33] = SYN;
    syn[36..38].fill(0);
    syn[40..].copy_from_slice(options);
    let sum = checksum(&syn[20..]);
    syn[36..38].copy_from_slice(&sum.to_be_bytes());
    syn
}

#[test]
fn the_mss_of_a_syn_is_lowered_wherever_it_stands() {
    for options in [
        vec![2, 4, 0x05, 0xb4],
        vec![1, 2, 4, 0x05, 0xb4, 1, 1, 0],
        vec![4, 2, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8, 2, 4, 0x05, 0xb4],
        vec![3, 3, 7, 2, 4, 0x05, 0xb4, 0],
    ] {
        let mut syn = syn(&options);
        let headers = Headers::parse(&syn).unwrap();
        assert!(is_syn(&syn, &headers));
        let before = syn.clone();
        assert_eq!(
            clamp_mss(&mut syn, &headers, 1500, ChecksumState::Complete),
            None
        );
        assert_eq!(syn, before);
        clamp_mss(&mut syn, &headers, 1300, ChecksumState::Complete).unwrap();
        assert!(
            syn.windows(4).any(|bytes| bytes == [2, 4, 0x04, 0xec]),
            "{options:?}"
        );
        assert_eq!(checksum(&syn[20..]), 0, "{options:?}");
        clamp_mss(&mut syn, &headers, 1200, ChecksumState::Partial).unwrap();
        assert_ne!(checksum(&syn[20..]), 0);
    }
    for options in [vec![], vec![0, 2, 4, 9], vec![2, 2, 1, 1], vec![9, 0, 9, 0]] {
        let mut syn = syn(&options);
        let headers = Headers::parse(&syn).unwrap();
        assert_eq!(
            clamp_mss(&mut syn, &headers, 100, ChecksumState::Complete),
            None
        );
    }
}

proptest! {
    #[test]
    fn any_bytes_are_fitted(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..200),
        first in prop_oneof![Just(0x45_u8), Just(0x60), any::<u8>()],
        protocol in prop_oneof![Just(TCP), Just(UDP), Just(FRAGMENT), any::<u8>()],
        mtu in 0..300_u16,
        is_settled in any::<bool>(),
    ) {
        if let Some(byte) = bytes.first_mut() {
            *byte = first;
        }
        if let Some(byte) = bytes.get_mut(if first >> 4 == 4 { 9 } else { 6 }) {
            *byte = protocol;
        }
        if let Fit::Fragments(mut fragments) = fit(&bytes, &way(mtu, is_settled), 1) {
            let mut out = vec![0; bytes.len() + 8];
            let mut n = 0;
            while let Some(len) = fragments.write_next(&mut out) {
                prop_assert!(len <= usize::from(mtu));
                n += 1;
                prop_assert!(n <= bytes.len());
            }
        }
        if let Some(headers) = Headers::parse(&bytes) {
            clamp_mss(&mut bytes, &headers, mtu, ChecksumState::Complete);
        }
    }
}
