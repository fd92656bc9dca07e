//! Offload headers that lie, and packets that are none.

use mesh_io::offload::{
    Gso, Merger, OffloadError, Segments, VIRTIO_HEADER_LEN, VirtioHeader, complete_checksum,
};

use super::merge::{CAPABILITIES, merge};
use crate::mutate::mutate;
use crate::packet::{Flow, Tcp, checksum_at, make_partial};
use crate::reference::transport_sum;
use crate::tape::Tape;
use crate::{Target, corpus};

/// What lies behind a buffer's used part.
const CANARY: u8 = 0xc3;

pub(crate) struct Offload {
    merger: Merger,
    out: Vec<u8>,
}

impl Default for Offload {
    fn default() -> Self {
        Self {
            merger: Merger::new(CAPABILITIES[0], 256),
            out: vec![CANARY; 70_000],
        }
    }
}

impl Target for Offload {
    fn case(&mut self, tape: &mut Tape<'_>) {
        if tape.chance(4) {
            return complete(tape);
        }
        let packet = hostile_packet(tape);
        let header = lying_header(tape, &packet);
        self.split(tape, &header, &packet);
        self.complete_hostile(&header, &packet);
        if tape.chance(4) {
            self.merge_hostile(tape, &packet);
        }
    }
}

impl Offload {
    fn split(&mut self, tape: &mut Tape<'_>, header: &VirtioHeader, packet: &[u8]) {
        let Ok(mut segments) = Segments::new(header, packet) else {
            return;
        };
        let n_expected = segments.n_remaining();
        assert!(header.gso_size > 0 && n_expected <= packet.len());
        let mut n_segments = 0;
        // Not all of 60,000 one-byte segments: the first and what follows from it are enough.
        for _ in 0..100 {
            let most = segments.max_len();
            assert!(most <= packet.len());
            let room = if tape.chance(16) {
                tape.below(most + 1)
            } else {
                most
            };
            let out = &mut self.out[..most + 8];
            match segments.write_next(&mut out[..room]) {
                Ok(Some(len)) => {
                    assert!(len <= room);
                    assert!(out[len..].iter().all(|byte| *byte == CANARY));
                    n_segments += 1;
                }
                Ok(None) => {
                    assert_eq!(n_segments, n_expected);
                    break;
                }
                Err(OffloadError::BufferTooSmall) => assert!(room < most),
                Err(OffloadError::Malformed) => {
                    out.fill(CANARY);
                    break;
                }
                Err(OffloadError::UnknownKind(_)) => panic!("that was decided before"),
            }
            out.fill(CANARY);
        }
    }

    fn complete_hostile(&self, header: &VirtioHeader, packet: &[u8]) {
        let mut completed = packet.to_vec();
        let at = usize::from(header.checksum_start) + usize::from(header.checksum_offset);
        match complete_checksum(header, &mut completed) {
            Ok(()) if header.needs_checksum => {
                assert!(at + 2 <= packet.len());
                assert_eq!(completed[..at], packet[..at]);
                assert_eq!(completed[at + 2..], packet[at + 2..]);
            }
            Ok(()) => assert_eq!(completed, packet),
            Err(err) => {
                assert_eq!(err, OffloadError::Malformed);
                assert!(at + 2 > packet.len());
                assert_eq!(completed, packet);
            }
        }
    }

    fn merge_hostile(&mut self, tape: &mut Tape<'_>, packet: &[u8]) {
        let packets = vec![packet.to_vec(); 1 + tape.below(3)];
        // A range that is not there is no packet.
        self.merger.push(packet, packet.len()..packet.len() + 5);
        self.merger
            .push(packet, std::ops::Range { start: 5, end: 4 });
        let merged = merge(&mut self.merger, &packets);
        let n_bytes: usize = merged.iter().map(|(_, bytes)| bytes.len()).sum();
        assert!(n_bytes <= packet.len() * packets.len());
        if merged.len() < packets.len() {
            // Only UDP datagrams that say the same may follow each other, and only with right checksums.
            assert!(merged.iter().any(|(header, _)| header.gso == Gso::Udp));
        }
    }
}

fn hostile_packet(tape: &mut Tape<'_>) -> Vec<u8> {
    let mut packet = match tape.below(8) {
        7 => {
            let len = tape.below(200);
            tape.bytes(len)
        }
        5 | 6 => tape.pick(corpus::packets()).clone(),
        _ => {
            let flow = Flow::draw(tape);
            let tcp = Tcp {
                seq: tape.u32(),
                flags: tape.u8(),
                ..Tcp::default()
            };
            let len = tape.below(300);
            flow.packet(&tcp, tape.u16(), &tape.bytes(len))
        }
    };
    mutate(tape, &mut packet, 4, corpus::packets());
    packet
}

fn lying_header(tape: &mut Tape<'_>, packet: &[u8]) -> VirtioHeader {
    if tape.chance(8) {
        let mut bytes = [0; VIRTIO_HEADER_LEN];
        tape.fill(&mut bytes);
        // The bits that mean nothing to us.
        bytes[0] &= 3;
        bytes[1] &= 0x87;
        return match VirtioHeader::decode(&bytes) {
            Ok(header) => {
                assert_eq!(header.encode(), bytes);
                header
            }
            Err(err) => {
                assert_eq!(err, OffloadError::UnknownKind(bytes[1] & 0x7f));
                VirtioHeader::default()
            }
        };
    }
    let is_v6 = packet.first().is_some_and(|byte| byte >> 4 == 6);
    VirtioHeader {
        needs_checksum: !tape.chance(8),
        is_checksum_valid: tape.chance(8),
        gso: match tape.below(8) {
            7 => *tape.pick(&[Gso::None, Gso::Tcp4, Gso::Tcp6, Gso::Udp]),
            0..3 => Gso::Udp,
            _ if is_v6 => Gso::Tcp6,
            _ => Gso::Tcp4,
        },
        has_ecn: tape.chance(8),
        header_len: tape.u16(),
        gso_size: *tape.pick(&[50, 1, 0, 1000, 65_535, 8]),
        checksum_start: match tape.below(8) {
            7 => tape.u16(),
            6 => tape.u16() % 100,
            _ if is_v6 => 40,
            _ => 20,
        },
        checksum_offset: match tape.below(8) {
            7 => tape.u16(),
            6 => tape.u16() % 100,
            n => [6, 16][n % 2],
        },
    }
}

/// A single packet's partial checksum is completed to what the sender would have written.
fn complete(tape: &mut Tape<'_>) {
    let flow = Flow::draw(tape);
    let tcp = Tcp {
        seq: tape.u32(),
        flags: tape.u8(),
        ..Tcp::default()
    };
    let len = tape.below(1400);
    let expected = flow.packet(&tcp, tape.u16(), &tape.bytes(len));
    let (start, protocol) = (flow.network_len(), flow.protocol);
    let mut packet = expected.clone();
    make_partial(&mut packet, start, protocol);
    let header = VirtioHeader {
        needs_checksum: true,
        checksum_start: u16::try_from(start).unwrap(),
        checksum_offset: u16::try_from(checksum_at(protocol)).unwrap(),
        ..VirtioHeader::default()
    };
    complete_checksum(&header, &mut packet).unwrap();
    assert_eq!(packet, expected);
    assert_eq!(transport_sum(&packet, start, protocol), 0xffff);
}
