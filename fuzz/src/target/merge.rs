//! Merging packets and splitting them again.

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::ops::Range;

use mesh_io::TunCapabilities;
use mesh_io::offload::{Gso, MAX_PARTS, Merger, Segments, VirtioHeader};

use crate::mutate::mutate;
use crate::packet::{ACK, Flow, TCP, Tcp, UDP};
use crate::reference::sum16;
use crate::tape::Tape;
use crate::{Target, corpus, reference};

/// What the kernel can do decides what is merged.
pub(crate) const CAPABILITIES: [TunCapabilities; 4] = [ALL, ALL, TCP_ALONE, NONE];

const ALL: TunCapabilities = TunCapabilities {
    has_header: true,
    has_tcp: true,
    has_udp: true,
};
const TCP_ALONE: TunCapabilities = TunCapabilities {
    has_udp: false,
    ..ALL
};
const NONE: TunCapabilities = TunCapabilities {
    has_header: false,
    has_tcp: false,
    has_udp: false,
};

pub(crate) struct Merge {
    mergers: [Merger; 4],
}

impl Default for Merge {
    fn default() -> Self {
        Self {
            mergers: CAPABILITIES.map(|capabilities| Merger::new(capabilities, 256)),
        }
    }
}

impl Target for Merge {
    fn case(&mut self, tape: &mut Tape<'_>) {
        let idx = tape.below(4);
        let packets = batch(tape);
        let merged = merge(&mut self.mergers[idx], &packets);
        let mut back = vec![];
        for (header, packet) in &merged {
            assert!(packet.len() <= 65_535 + 40);
            if header.gso == Gso::None {
                // Nothing is said about a packet that was not looked at.
                assert_eq!(*header, VirtioHeader::default());
                back.push(packet.clone());
                continue;
            }
            let takes = CAPABILITIES[idx];
            assert!(if header.gso == Gso::Udp {
                takes.has_udp
            } else {
                takes.has_tcp
            });
            assert!(header.needs_checksum);
            let segments = reference::segments(header, packet);
            assert!((2..=MAX_PARTS).contains(&segments.len()));
            assert_eq!(split(header, packet), segments);
            back.extend(segments);
        }
        // Segments carry right checksums, so a broken packet cannot be among those that come back the same.
        assert_eq!(back.len(), packets.len());
        assert_eq!(by_flow(&back), by_flow(&packets));
    }
}

/// Merges a batch.
pub(crate) fn merge(merger: &mut Merger, packets: &[Vec<u8>]) -> Vec<(VirtioHeader, Vec<u8>)> {
    let mut arena = Vec::new();
    let ranges: Vec<Range<usize>> = packets
        .iter()
        .map(|packet| {
            let start = arena.len();
            arena.extend(packet);
            start..arena.len()
        })
        .collect();
    for range in ranges {
        merger.push(&arena, range);
    }
    let mut merged = vec![];
    merger.flush(&mut arena, |header, parts: &[IoSlice<'_>]| {
        let parts: Vec<&[u8]> = parts.iter().map(|part| &**part).collect();
        merged.push((*header, parts.concat()));
    });
    assert!(merger.is_empty());
    merged
}

/// Splits by the code under test.
pub(crate) fn split(header: &VirtioHeader, packet: &[u8]) -> Vec<Vec<u8>> {
    let mut segments = Segments::new(header, packet).unwrap();
    let (n_expected, mut all) = (segments.n_remaining(), vec![]);
    let mut out = vec![0; segments.max_len()];
    while let Some(len) = segments.write_next(&mut out).unwrap() {
        all.push(out[..len].to_vec());
    }
    assert_eq!(all.len(), n_expected);
    all
}

/// Packets in the order of their flow. What is no whole, plain TCP or UDP packet is never merged and counts as one flow.
fn by_flow(packets: &[Vec<u8>]) -> BTreeMap<(u8, &[u8]), Vec<Vec<u8>>> {
    let mut flows: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for packet in packets {
        let key = flow_of(packet).unwrap_or_default();
        flows.entry(key).or_default().push(comparable(packet));
    }
    flows
}

fn flow_of(packet: &[u8]) -> Option<(u8, &[u8])> {
    let be16 = |at: usize| {
        Some(usize::from(u16::from_be_bytes([
            *packet.get(at)?,
            *packet.get(at + 1)?,
        ])))
    };
    let (protocol, addrs_at, transport) = match packet.first()? {
        0x45 if be16(2)? == packet.len() && be16(6)? & 0x3fff == 0 => (*packet.get(9)?, 12, 20),
        0x60..=0x6f if be16(4)? + 40 == packet.len() => (*packet.get(6)?, 8, 40),
        _ => return None,
    };
    let header_len = match protocol {
        TCP => usize::from(*packet.get(transport + 12)? >> 4) * 4,
        UDP => 8,
        _ => return None,
    };
    let least = if protocol == TCP { 20 } else { 8 };
    let is_whole = header_len >= least && transport + header_len <= packet.len();
    is_whole.then(|| (protocol, &packet[addrs_at..transport + 4]))
}

/// A packet as its receiver sees it: where an IPv4 packet must not be fragmented its id means nothing (RFC 6864), and
/// merging does not keep it.
fn comparable(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if packet.len() >= 20
        && packet[0] == 0x45
        && packet[6] & 0x40 != 0
        && sum16(0, &packet[..20]) == 0xffff
    {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    }
    packet
}

/// A batch of a few flows mixed, each with what senders and networks do, and with what attackers do.
fn batch(tape: &mut Tape<'_>) -> Vec<Vec<u8>> {
    let n_packets = if tape.chance(64) {
        60 + tape.below(140)
    } else {
        1 + tape.below(10)
    };
    let n_flows = 1 + tape.below(3);
    let mss = *tape.pick(&[8, 33, 100, 7, 1, 500, 1208, 2]);
    let mut flows: Vec<(Flow, Tcp, u16)> = (0..n_flows)
        .map(|_| {
            let tcp = Tcp {
                seq: tape.u32(),
                ack: tape.u32(),
                flags: ACK,
                window: 500,
                ..Tcp::default()
            };
            (Flow::draw(tape), tcp, tape.u16())
        })
        .collect();
    (0..n_packets)
        .map(|_| {
            let flow_idx = tape.below(n_flows);
            let (flow, tcp, id) = &mut flows[flow_idx];
            next_packet(tape, flow, tcp, id, mss)
        })
        .collect()
}

fn next_packet(
    tape: &mut Tape<'_>,
    flow: &mut Flow,
    tcp: &mut Tcp,
    id: &mut u16,
    mss: usize,
) -> Vec<u8> {
    let len = match tape.below(12) {
        10 => 0,
        11 => tape.below(mss + 2),
        _ => mss,
    };
    // Something happens in one of four packets.
    match tape.below(64) {
        63 => tcp.seq = tcp.seq.wrapping_add(1200),
        62 => tcp.seq = tcp.seq.wrapping_sub(u32::try_from(mss).unwrap()),
        61 => tcp.ack = tcp.ack.wrapping_add(7),
        60 => tcp.window ^= 1,
        59 => *id = id.wrapping_add(5),
        58 => *id = id.wrapping_sub(1),
        57 => flow.tos ^= 1 << (tape.u8() % 8),
        56 => flow.ttl = flow.ttl.wrapping_sub(1),
        55 => flow.label ^= 1,
        54 => flow.has_df = !flow.has_df,
        53 => tcp.urgent = tape.u16(),
        52 => tcp.reserved = tape.u8() % 16,
        51 => {
            let n = flow.options.len();
            flow.options = tape.bytes(n);
        }
        50 => flow.options.truncate(4),
        _ => {}
    }
    tcp.flags = match tape.below(32) {
        31 => ACK | 0x08,
        30 => ACK | 0x01,
        29 => 0x04,
        28 => ACK | 0x40,
        27 => ACK | 0x80,
        26 => 0x02,
        25 => tape.u8(),
        _ => ACK,
    };
    let mut packet = flow.packet(tcp, *id, &tape.bytes(len));
    tcp.seq = tcp.seq.wrapping_add(u32::try_from(len).unwrap());
    *id = id.wrapping_add(1);
    match tape.below(64) {
        63 => {
            let at = tape.below(packet.len());
            packet[at] ^= 1 << (tape.u8() % 8);
        }
        62 => mutate(tape, &mut packet, 4, corpus::packets()),
        61 => {
            let more = 1 + tape.below(9);
            packet.extend(tape.bytes(more));
        }
        60 => packet.truncate(packet.len() - 1),
        // As UDP over IPv4 may go.
        59 if flow.protocol == UDP => {
            let at = flow.network_len() + 6;
            packet[at..at + 2].fill(0);
        }
        58 => packet.clone_from(tape.pick(corpus::packets())),
        _ => {}
    }
    packet
}
