//! Splitting super-packets and merging them again.

use mesh_io::offload::{Gso, Merger, OffloadError, Segments, VirtioHeader};

use super::merge::{CAPABILITIES, merge, split};
use crate::packet::{ACK, Flow, TCP, Tcp, checksum_at, make_partial};
use crate::tape::Tape;
use crate::{Target, reference};

/// Only these flags stand in segments that are merged.
const PLAIN_FLAGS: u8 = ACK | 0x08 | 0x40;

pub(crate) struct Split {
    merger: Merger,
}

impl Default for Split {
    fn default() -> Self {
        Self {
            merger: Merger::new(CAPABILITIES[0], 256),
        }
    }
}

impl Target for Split {
    fn case(&mut self, tape: &mut Tape<'_>) {
        let (header, packet) = super_packet(tape);
        let expected = reference::segments(&header, &packet);
        let found = if tape.chance(2) {
            split(&header, &packet)
        } else {
            split_with_short_buffers(tape, &header, &packet)
        };
        assert_eq!(found, expected);
        let transport = usize::from(header.checksum_start);
        let protocol = if header.gso == Gso::Udp { 17 } else { TCP };
        for segment in &found {
            assert_eq!(
                reference::transport_sum(segment, transport, protocol),
                0xffff
            );
            assert!(packet[0] >> 4 == 6 || reference::sum16(0, &segment[..transport]) == 0xffff);
        }
        if found.len() > 200 {
            return;
        }
        let merged = merge(&mut self.merger, &found);
        if is_plain(&header, &packet, found.len()) {
            let [(merged_header, merged_packet)] = &merged[..] else {
                panic!("{} items of {} segments", merged.len(), found.len());
            };
            assert_eq!(merged_packet, &packet);
            assert_eq!(merged_header, &header);
        } else {
            let back: Vec<Vec<u8>> = merged
                .iter()
                .flat_map(|(header, packet)| match header.gso {
                    Gso::None => vec![packet.clone()],
                    Gso::Tcp4 | Gso::Tcp6 | Gso::Udp => split(header, packet),
                })
                .collect();
            assert_eq!(back, found);
        }
    }
}

/// Whether it is the kind of super-packet that merging makes.
fn is_plain(header: &VirtioHeader, packet: &[u8], n_segments: usize) -> bool {
    let transport = usize::from(header.checksum_start);
    let is_plain_tcp = header.gso == Gso::Udp
        || packet[transport + 13] & !PLAIN_FLAGS == 0
            && packet[transport + 13] & ACK != 0
            && packet[transport + 12] & 0xf == 0;
    is_plain_tcp && (2..=64).contains(&n_segments)
}

/// A super-packet as the kernel gives it: partial checksum, and all lengths of the whole.
fn super_packet(tape: &mut Tape<'_>) -> (VirtioHeader, Vec<u8>) {
    let flow = Flow::draw(tape);
    let tcp = Tcp {
        seq: tape.u32(),
        ack: tape.u32(),
        flags: match tape.below(8) {
            7 => tape.u8(),
            6 => ACK | 0x80 | 0x08,
            5 => ACK | 0x01,
            4 => ACK | 0x48,
            _ => ACK | 0x08 & tape.u8(),
        },
        reserved: if tape.chance(16) { tape.u8() } else { 0 },
        window: tape.u16(),
        urgent: if tape.chance(16) { tape.u16() } else { 0 },
    };
    let len = match tape.below(64) {
        63 => 60_000 + tape.below(5400),
        62 => 1 + tape.below(20_000),
        _ => 1 + tape.below(1500),
    };
    let gso_size = match tape.below(8) {
        7 => 1 + tape.u16() % 0xfffe,
        6 => 1 + tape.u16() % 20,
        5 => u16::try_from(len).unwrap(),
        _ => 20 + tape.u16() % 1200,
    };
    // So many are never made, and take long.
    let gso_size = gso_size.max(u16::try_from(len / 300).unwrap());
    let mut packet = flow.packet(&tcp, tape.u16(), &tape.bytes(len));
    let transport = flow.network_len();
    make_partial(&mut packet, transport, flow.protocol);
    let gso = match (flow.protocol == TCP, flow.is_v4()) {
        (true, true) => Gso::Tcp4,
        (true, false) => Gso::Tcp6,
        (false, _) => Gso::Udp,
    };
    let header = VirtioHeader {
        needs_checksum: true,
        gso,
        header_len: u16::try_from(packet.len() - len).unwrap(),
        gso_size,
        checksum_start: u16::try_from(transport).unwrap(),
        checksum_offset: u16::try_from(checksum_at(flow.protocol)).unwrap(),
        ..VirtioHeader::default()
    };
    (header, packet)
}

/// A buffer that is too small costs nothing but the call.
fn split_with_short_buffers(
    tape: &mut Tape<'_>,
    header: &VirtioHeader,
    packet: &[u8],
) -> Vec<Vec<u8>> {
    let mut segments = Segments::new(header, packet).unwrap();
    let mut all = vec![];
    while segments.n_remaining() > 0 {
        let len = segments.max_len();
        let short = tape.below(len);
        assert_eq!(
            segments.write_next(&mut vec![0; short]),
            Err(OffloadError::BufferTooSmall)
        );
        let mut out = vec![0xaa; len + 5];
        let written = segments.write_next(&mut out).unwrap().unwrap();
        assert!(written <= len && out[written..].iter().all(|byte| *byte == 0xaa));
        out.truncate(written);
        all.push(out);
    }
    assert_eq!(segments.write_next(&mut []), Ok(None));
    all
}
