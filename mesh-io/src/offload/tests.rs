//! Split and merge against each other, and against hostile headers.

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::ops::Range;

use super::*;
use crate::TunCapabilities;

const ALL: TunCapabilities = TunCapabilities {
    has_header: true,
    has_tcp: true,
    has_udp: true,
};

/// A small generator of test input; the seed is the test's.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| (self.next() >> 24) as u8).collect()
    }
}

/// The checksum as the RFC writes it, one big-endian word after the other.
fn plain_sum(parts: &[&[u8]]) -> u16 {
    let mut acc = 0_u32;
    for part in parts {
        for pair in part.chunks(2) {
            acc += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            acc = (acc & 0xffff) + (acc >> 16);
        }
    }
    acc as u16
}

fn pseudo(packet: &[u8], transport: usize) -> Vec<u8> {
    let len = (packet.len() - transport) as u32;
    let (addrs, protocol) = match packet[0] >> 4 {
        4 => (&packet[12..20], packet[9]),
        _ => (&packet[8..40], packet[6]),
    };
    [addrs, &len.to_be_bytes(), &[0, 0, 0, protocol]].concat()
}

fn assert_checksums(packet: &[u8]) {
    let transport = if packet[0] >> 4 == 4 {
        assert_eq!(plain_sum(&[&packet[..20]]), 0xffff, "IP checksum");
        assert_eq!(
            usize::from(u16::from_be_bytes([packet[2], packet[3]])),
            packet.len()
        );
        20
    } else {
        assert_eq!(
            usize::from(u16::from_be_bytes([packet[4], packet[5]])) + 40,
            packet.len()
        );
        40
    };
    let sum = plain_sum(&[&pseudo(packet, transport), &packet[transport..]]);
    assert_eq!(sum, 0xffff, "transport checksum");
}

#[derive(Clone, Copy)]
struct Flow {
    is_v4: bool,
    is_tcp: bool,
    port: u16,
    has_options: bool,
}

#[derive(Clone, Copy)]
struct Tcp {
    seq: u32,
    ack: u32,
    flags: u8,
    window: u16,
}

/// A packet as a sender would put it on the wire.
fn packet(flow: Flow, tcp: Tcp, id: u16, payload: &[u8]) -> Vec<u8> {
    let mut transport = [flow.port.to_be_bytes(), 443_u16.to_be_bytes()].concat();
    if flow.is_tcp {
        transport.extend(tcp.seq.to_be_bytes());
        transport.extend(tcp.ack.to_be_bytes());
        let n_words = if flow.has_options { 8 } else { 5 };
        transport.extend([n_words << 4, tcp.flags]);
        transport.extend(tcp.window.to_be_bytes());
        transport.extend([0; 4]);
        if flow.has_options {
            transport.extend([1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
        }
    } else {
        transport.extend(((payload.len() + 8) as u16).to_be_bytes());
        transport.extend([0, 0]);
    }
    transport.extend(payload);
    let protocol = if flow.is_tcp { 6 } else { 17 };
    let mut packet = if flow.is_v4 {
        let mut ip = vec![0x45, 2];
        ip.extend(((transport.len() + 20) as u16).to_be_bytes());
        ip.extend(id.to_be_bytes());
        ip.extend([0, 0, 64, protocol, 0, 0, 10, 1, 0, 1, 10, 1, 0, 2]);
        let sum = !plain_sum(&[&ip]);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        ip
    } else {
        let mut ip = vec![0x60, 0x20, 3, 4];
        ip.extend((transport.len() as u16).to_be_bytes());
        ip.extend([protocol, 64]);
        ip.extend([0xfd; 16]);
        ip.extend([0xfc; 16]);
        ip
    };
    let at = packet.len() + if flow.is_tcp { 16 } else { 6 };
    let transport_at = packet.len();
    packet.extend(transport);
    let sum = !plain_sum(&[&pseudo(&packet, transport_at), &packet[transport_at..]]);
    let sum = if sum == 0 { 0xffff } else { sum };
    packet[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    packet
}

fn lay(packets: &[Vec<u8>]) -> (Vec<u8>, Vec<Range<usize>>) {
    let mut arena = Vec::new();
    let ranges = packets.iter().map(|packet| {
        let start = arena.len();
        arena.extend(packet);
        start..arena.len()
    });
    let ranges = ranges.collect();
    (arena, ranges)
}

fn merge(merger: &mut Merger, packets: &[Vec<u8>]) -> Vec<(VirtioHeader, Vec<u8>)> {
    let (mut arena, ranges) = lay(packets);
    for range in ranges {
        merger.push(&arena, range);
    }
    let mut out = Vec::new();
    merger.flush(&mut arena, |header, parts: &[IoSlice<'_>]| {
        let bytes = parts.iter().flat_map(|part| part.to_vec()).collect();
        out.push((*header, bytes));
    });
    assert!(merger.is_empty());
    out
}

fn split(header: &VirtioHeader, packet: &[u8]) -> Vec<Vec<u8>> {
    if header.gso == Gso::None {
        let mut packet = packet.to_vec();
        complete_checksum(header, &mut packet).unwrap();
        return vec![packet];
    }
    let mut segments = Segments::new(header, packet).unwrap();
    let mut out = Vec::new();
    let mut buffer = [0; 2048];
    let n_expected = segments.n_remaining();
    while let Some(len) = segments.write_next(&mut buffer).unwrap() {
        out.push(buffer[..len].to_vec());
    }
    assert_eq!(out.len(), n_expected);
    out
}

fn key(packet: &[u8]) -> Vec<u8> {
    match packet[0] >> 4 {
        4 => [&packet[9..10], &packet[12..24]].concat(),
        _ => [&packet[6..7], &packet[8..44]].concat(),
    }
}

fn by_flow(packets: &[Vec<u8>]) -> BTreeMap<Vec<u8>, Vec<Vec<u8>>> {
    let mut flows: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for packet in packets {
        flows.entry(key(packet)).or_default().push(packet.clone());
    }
    flows
}

/// A batch of several flows mixed, each with what TCP does: full segments, short ones, pushes, bare ACKs, losses.
fn batch(rng: &mut Rng) -> Vec<Vec<u8>> {
    let n_flows = 1 + rng.below(5);
    let mut flows: Vec<(Flow, Tcp, u16)> = (0..n_flows)
        .map(|i| {
            let flow = Flow {
                is_v4: rng.below(2) == 0,
                is_tcp: rng.below(3) > 0,
                port: 1000 + i as u16,
                has_options: rng.below(2) == 0,
            };
            let tcp = Tcp {
                seq: rng.next() as u32,
                ack: rng.next() as u32,
                flags: 0x10,
                window: 500,
            };
            (flow, tcp, rng.next() as u16)
        })
        .collect();
    (0..rng.below(100))
        .map(|_| {
            let (flow, tcp, id) = &mut flows[rng.below(n_flows)];
            let len = match rng.below(12) {
                0 => 0,
                1 => rng.below(1200),
                _ => 1200,
            };
            let payload = rng.bytes(len);
            match rng.below(30) {
                0 => tcp.seq = tcp.seq.wrapping_add(1200),
                1 => tcp.ack = tcp.ack.wrapping_add(7),
                2 => tcp.window += 1,
                3 => *id = id.wrapping_add(5),
                _ => {}
            }
            tcp.flags = match rng.below(25) {
                0 => 0x18,
                1 => 0x11,
                2 => 0x04,
                3 => 0x50,
                4 => 0x90,
                5 => 0x02,
                _ => 0x10,
            };
            let packet = packet(*flow, *tcp, *id, &payload);
            tcp.seq = tcp.seq.wrapping_add(len as u32);
            *id = id.wrapping_add(1);
            packet
        })
        .collect()
}

#[test]
fn split_undoes_merge_byte_for_byte_and_keeps_each_flow_in_order() {
    let mut rng = Rng(0x9e37_79b9_7f4a_7c15);
    let mut merger = Merger::new(ALL, 128);
    let (mut n_packets, mut n_items) = (0, 0);
    for _ in 0..3000 {
        let packets = batch(&mut rng);
        let merged = merge(&mut merger, &packets);
        n_packets += packets.len();
        n_items += merged.len();
        let back: Vec<_> = merged
            .iter()
            .flat_map(|(header, packet)| split(header, packet))
            .collect();
        assert_eq!(by_flow(&back), by_flow(&packets));
        back.iter().for_each(|packet| assert_checksums(packet));
    }
    assert!(
        n_items * 3 < n_packets * 2,
        "{n_items} of {n_packets}: not merged"
    );
}

#[test]
fn a_run_of_segments_becomes_one_super_packet_and_ends_with_push() {
    for (is_v4, gso) in [(true, Gso::Tcp4), (false, Gso::Tcp6)] {
        let flow = Flow {
            is_v4,
            is_tcp: true,
            port: 1,
            has_options: true,
        };
        let packets: Vec<_> = (0..10_u32)
            .map(|i| {
                let tcp = Tcp {
                    seq: (u32::MAX - 3000).wrapping_add(i * 1000),
                    ack: 9,
                    flags: if i == 7 { 0x18 } else { 0x10 },
                    window: 1,
                };
                packet(flow, tcp, i as u16, &[i as u8; 1000])
            })
            .collect();
        let merged = merge(&mut Merger::new(ALL, 16), &packets);
        assert_eq!(merged.len(), 2, "push ends the first");
        let (header, first) = &merged[0];
        let header_len = packets[0].len() - 1000;
        assert_eq!(first.len(), header_len + 8000);
        assert_eq!((header.gso, header.gso_size), (gso, 1000));
        assert_eq!(usize::from(header.header_len), header_len);
        assert!(header.needs_checksum);
    }
}

#[test]
fn udp_is_merged_only_when_the_tun_takes_it() {
    let flow = Flow {
        is_v4: true,
        is_tcp: false,
        port: 1,
        has_options: false,
    };
    let tcp = Tcp {
        seq: 0,
        ack: 0,
        flags: 0,
        window: 0,
    };
    let packets: Vec<_> = (0..4).map(|i| packet(flow, tcp, i, &[1; 500])).collect();
    assert_eq!(merge(&mut Merger::new(ALL, 4), &packets).len(), 1);
    let capabilities = TunCapabilities {
        has_udp: false,
        ..ALL
    };
    assert_eq!(merge(&mut Merger::new(capabilities, 4), &packets).len(), 4);
    assert_eq!(
        merge(&mut Merger::new(TunCapabilities::default(), 4), &packets).len(),
        4
    );
}

#[test]
fn a_broken_checksum_is_passed_on_broken() {
    let flow = Flow {
        is_v4: true,
        is_tcp: true,
        port: 1,
        has_options: false,
    };
    for broken in 0..3 {
        let mut packets: Vec<_> = (0..3_u32)
            .map(|i| {
                let tcp = Tcp {
                    seq: i * 100,
                    ack: 9,
                    flags: 0x10,
                    window: 1,
                };
                packet(flow, tcp, i as u16, &[3; 100])
            })
            .collect();
        *packets[broken].last_mut().unwrap() ^= 1;
        let merged = merge(&mut Merger::new(ALL, 4), &packets);
        let single = merged.iter().find(|(_, packet)| *packet == packets[broken]);
        assert_eq!(single.unwrap().0, VirtioHeader::default());
    }
}

#[test]
fn the_first_segment_keeps_cwr_and_the_last_fin_and_push() {
    for is_v4 in [true, false] {
        let flow = Flow {
            is_v4,
            is_tcp: true,
            port: 1,
            has_options: true,
        };
        let tcp = Tcp {
            seq: 77,
            ack: 9,
            flags: 0x10 | 0x80 | 0x40 | 0x01 | 0x08,
            window: 1,
        };
        let whole = packet(flow, tcp, 0xffff, &[5; 2500]);
        let header = VirtioHeader {
            needs_checksum: true,
            gso: if is_v4 { Gso::Tcp4 } else { Gso::Tcp6 },
            has_ecn: true,
            gso_size: 1000,
            checksum_start: if is_v4 { 20 } else { 40 },
            checksum_offset: 16,
            ..VirtioHeader::default()
        };
        let at = usize::from(header.checksum_start) + 13;
        let segments = split(&header, &whole);
        segments
            .iter()
            .for_each(|segment| assert_checksums(segment));
        let flags: Vec<u8> = segments.iter().map(|segment| segment[at]).collect();
        assert_eq!(flags, [0xd0, 0x50, 0x59]);
        if is_v4 {
            let ids: Vec<_> = segments.iter().map(|s| [s[4], s[5]]).collect();
            assert_eq!(ids, [[0xff, 0xff], [0, 0], [0, 1]]);
        }
    }
}

#[test]
fn a_partial_checksum_is_completed() {
    let mut rng = Rng(7);
    for round in 0..500 {
        let flow = Flow {
            is_v4: round % 2 == 0,
            is_tcp: round % 3 == 0,
            port: 1,
            has_options: false,
        };
        let tcp = Tcp {
            seq: 1,
            ack: 2,
            flags: 2,
            window: 3,
        };
        let len = rng.below(1200);
        let expected = packet(flow, tcp, 1, &rng.bytes(len));
        let start = if flow.is_v4 { 20 } else { 40 };
        let offset = if flow.is_tcp { 16 } else { 6 };
        let mut partial = expected.clone();
        let sum = plain_sum(&[&pseudo(&partial, start)]);
        partial[start + offset..start + offset + 2].copy_from_slice(&sum.to_be_bytes());
        let header = VirtioHeader {
            needs_checksum: true,
            checksum_start: start as u16,
            checksum_offset: offset as u16,
            ..VirtioHeader::default()
        };
        complete_checksum(&header, &mut partial).unwrap();
        assert_eq!(partial, expected);
    }
}

#[test]
fn headers_survive_their_bytes() {
    let mut rng = Rng(3);
    let mut n_known = 0;
    for _ in 0..10_000 {
        let mut bytes: [u8; VIRTIO_HEADER_LEN] = rng.bytes(10).try_into().unwrap();
        bytes[0] &= 3;
        bytes[1] &= 0x87;
        if let Ok(header) = VirtioHeader::decode(&bytes) {
            assert_eq!(header.encode(), bytes);
            n_known += 1;
        }
    }
    assert!(n_known > 1000);
    assert_eq!(
        VirtioHeader::decode(&[0, 3, 0, 0, 0, 0, 0, 0, 0, 0]),
        Err(OffloadError::UnknownKind(3)),
        "fragment offload was never asked for"
    );
}

#[test]
fn hostile_headers_neither_panic_nor_make_longer_packets() {
    let mut rng = Rng(0xdead_beef);
    let mut merger = Merger::new(ALL, 64);
    let mut n_split = 0;
    for round in 0..100_000 {
        let flow = Flow {
            is_v4: rng.below(2) == 0,
            is_tcp: rng.below(2) == 0,
            port: 1,
            has_options: rng.below(2) == 0,
        };
        let tcp = Tcp {
            seq: u32::MAX,
            ack: 0,
            flags: 0x10,
            window: 0,
        };
        let len = rng.below(200);
        let mut bytes = packet(flow, tcp, 0, &rng.bytes(len));
        for _ in 0..rng.below(4) {
            let at = rng.below(bytes.len().min(64));
            bytes[at] = rng.next() as u8;
        }
        bytes.truncate(rng.below(bytes.len() + 40));
        let header = VirtioHeader {
            needs_checksum: rng.below(2) == 0,
            gso: [Gso::Tcp4, Gso::Tcp6, Gso::Udp, Gso::None][rng.below(4)],
            gso_size: [0, 1, 50, 65_535][rng.below(4)],
            checksum_start: [20, 40, rng.below(300) as u16, 65_535][rng.below(4)],
            checksum_offset: [6, 16, rng.below(300) as u16, 65_535][rng.below(4)],
            ..VirtioHeader::default()
        };
        if let Ok(mut segments) = Segments::new(&header, &bytes) {
            let mut out = vec![0; segments.max_len()];
            let mut n_payload = 0;
            while let Ok(Some(len)) = segments.write_next(&mut out) {
                assert!(len <= bytes.len());
                n_payload += 1;
            }
            assert!(n_payload <= bytes.len());
            n_split += 1;
        }
        let mut copy = bytes.clone();
        let _ = complete_checksum(&header, &mut copy);
        let (mut arena, ranges) = lay(&[bytes.clone(), bytes.clone(), bytes.clone()]);
        for range in ranges {
            merger.push(&arena, range);
        }
        if round % 7 == 0 {
            merger.push(&arena, 5..100_000);
        }
        let mut n_bytes = 0;
        merger.flush(&mut arena, |_, parts| {
            n_bytes += parts.iter().map(|part| part.len()).sum::<usize>();
        });
        assert!(n_bytes <= 3 * bytes.len());
    }
    assert!(
        n_split > 1000,
        "{n_split}: the cases do not reach the splitter"
    );
}

#[test]
fn tcp_is_cut_to_a_limit_and_datagrams_are_not() {
    for is_v4 in [true, false] {
        for is_tcp in [true, false] {
            let flow = Flow {
                is_v4,
                is_tcp,
                port: 7,
                has_options: is_tcp,
            };
            let tcp = Tcp {
                seq: u32::MAX - 700,
                ack: 2,
                flags: 0x18,
                window: 9,
            };
            let payload = Rng(5).bytes(1380);
            let whole = packet(flow, tcp, 3, &payload);
            let transport_at = if is_v4 { 20 } else { 40 };
            if !is_tcp {
                let header = VirtioHeader {
                    gso: Gso::Udp,
                    gso_size: 690,
                    checksum_start: transport_at,
                    checksum_offset: 6,
                    ..VirtioHeader::default()
                };
                let mut segments = Segments::new(&header, &whole).unwrap();
                segments.limit(300);
                assert_eq!(segments.n_remaining(), 2);
                continue;
            }
            let header = VirtioHeader::tcp(is_v4, transport_at, 1200);
            let mut segments = Segments::new(&header, &whole).unwrap();
            segments.limit(600);
            let (mut buffer, mut got) = ([0; 2048], Vec::<u8>::new());
            while let Some(len) = segments.write_next(&mut buffer).unwrap() {
                assert!(len <= 600);
                assert_checksums(&buffer[..len]);
                got.extend(&buffer[usize::from(transport_at) + 32..len]);
            }
            assert_eq!(got, payload);
        }
    }
}
