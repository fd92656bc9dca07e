//! What an authentic peer may seal: anything.

use mesh_engine::{Admit, DropReason, Opened};

use super::admit::{Verdict, hostile_packet, judge};
use crate::Target;
use crate::pair::Pair;
use crate::tape::Tape;

/// Packets up to what Ethernet carries under the tunnel's headers are padded to a multiple of 16.
const PADDED_MAX: usize = 1440;

pub(crate) struct Rubbish {
    pair: Pair,
    out: Vec<u8>,
}

impl Default for Rubbish {
    fn default() -> Self {
        Self {
            pair: Pair::new(),
            out: vec![0; 70_000],
        }
    }
}

impl Target for Rubbish {
    fn case(&mut self, tape: &mut Tape<'_>) {
        let mut content = hostile_packet(tape, (1, 2));
        if tape.chance(8) {
            let len = tape.below(1400);
            content.resize(len, 0);
        }
        if tape.chance(2) {
            set_length(&mut content, tape);
        }
        let sealed = self.pair.seal(&content);
        let opened = self.pair.open(&sealed, &mut self.out).unwrap();
        let padded_len = content.len().next_multiple_of(16);
        if padded_len <= PADDED_MAX {
            content.resize(padded_len, 0);
        }
        let expected = packet_in(&content);
        match (opened, expected) {
            (Opened::Keepalive, _) => assert!(content.is_empty()),
            (Opened::Packet(len), Some(packet)) => {
                assert_eq!(self.out[..len], *packet);
                let verdict = judge(packet);
                let admit = self.pair.admit(&mut self.out[..len]);
                match verdict {
                    Verdict::Deliver { .. } => assert!(matches!(admit, Admit::Deliver)),
                    Verdict::Drop => assert!(matches!(admit, Admit::Drop(_)), "{admit:?}"),
                    Verdict::Behind => assert!(!matches!(admit, Admit::Consumed(_))),
                }
            }
            (Opened::Dropped(reason), None) => assert_eq!(reason, DropReason::Malformed),
            (Opened::Packet(_) | Opened::Dropped(_), _) => {
                panic!("{opened:?} but {expected:02x?}")
            }
        }
    }
}

/// The IP packet at the beginning of what was sealed, by its own length.
fn packet_in(content: &[u8]) -> Option<&[u8]> {
    let be16 = |at: usize| usize::from(u16::from_be_bytes([content[at], content[at + 1]]));
    let len = match content.first()? >> 4 {
        4 if content.len() >= 20 => be16(2),
        6 if content.len() >= 40 => 40 + be16(4),
        _ => return None,
    };
    content.get(..len)
}

/// The right length, so that more than a few get through.
fn set_length(content: &mut [u8], tape: &mut Tape<'_>) {
    let short = usize::from(tape.u8() % 4);
    let len = content.len().saturating_sub(short);
    match content.first().map(|byte| byte >> 4) {
        Some(4) if content.len() >= 4 => {
            let len = u16::try_from(len).unwrap();
            content[2..4].copy_from_slice(&len.to_be_bytes());
        }
        Some(6) if content.len() >= 40 => {
            let len = u16::try_from(len.saturating_sub(40)).unwrap();
            content[4..6].copy_from_slice(&len.to_be_bytes());
        }
        _ => {}
    }
}
