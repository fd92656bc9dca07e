//! Packets of a peer at the receiver, judged as a batch and one by one.

use std::time::Duration;

use mesh_engine::{Admit, ChecksumState, DropReason, Outbound};

use super::admit::hostile_packet;
use super::fragment::fragment;
use crate::Target;
use crate::mutate::mutate;
use crate::pair::Pair;
use crate::tape::Tape;
use crate::{corpus, packet};

/// Longer than a fragment waits for the others.
const MUCH_LATER: Duration = Duration::from_secs(31);

/// The flow tables' clock comes round after six days, and nobody sweeps them here.
const N_CASES: u32 = 10_000;

/// Two meshes that have seen the same: one judges batches, the other each packet by itself.
#[derive(Default)]
pub(crate) struct Bursts {
    batched: Pair,
    single: Pair,
    n_cases: u32,
}

/// A verdict that can be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Deliver,
    Consumed,
    Drop(DropReason),
}

impl From<Admit> for Verdict {
    fn from(admit: Admit) -> Self {
        match admit {
            Admit::Deliver => Self::Deliver,
            Admit::Consumed(_) => Self::Consumed,
            Admit::Drop(reason) => Self::Drop(reason),
        }
    }
}

impl Target for Bursts {
    fn case(&mut self, tape: &mut Tape<'_>) {
        self.n_cases += 1;
        if self.n_cases == N_CASES {
            *self = Self::default();
        }
        for pair in [&mut self.batched, &mut self.single] {
            pair.now += MUCH_LATER;
        }
        self.open_own_flow(tape);
        let before = burst(tape);
        let (mut batched, mut single) = (before.clone(), before.clone());
        let node = &self.batched;
        let mut admitter = node.planes[1].admitter(node.now, &node.peers[1]);
        for (idx, packet) in before.iter().enumerate() {
            let verdict = Verdict::from(admitter.admit(&mut batched[idx]));
            let expected = Verdict::from(self.single.admit(&mut single[idx]));
            assert_eq!(verdict, expected, "packet {idx}: {packet:02x?}");
            assert_eq!(batched[idx], single[idx], "packet {idx}: {packet:02x?}");
        }
    }
}

impl Bursts {
    /// Now and then node 2 sent something before, and answers to it may come in.
    fn open_own_flow(&self, tape: &mut Tape<'_>) {
        if !tape.chance(3) {
            return;
        }
        let packet = hostile_packet(tape, (2, 1));
        let [batched, single] = [&self.batched, &self.single].map(|pair| {
            let mut packet = packet.clone();
            let outbound = pair.planes[1].outbound(pair.now, &mut packet, ChecksumState::Complete);
            (matches!(outbound, Outbound::Peer(_)), packet)
        });
        assert_eq!(batched, single);
    }
}

/// Packets of a few flows mixed, most of them like the one before but for a little.
fn burst(tape: &mut Tape<'_>) -> Vec<Vec<u8>> {
    let n_flows = 1 + tape.below(3);
    let flows: Vec<Vec<u8>> = (0..n_flows).map(|_| hostile_packet(tape, (1, 2))).collect();
    (0..2 + tape.below(14))
        .map(|_| next_packet(tape, &flows))
        .collect()
}

fn next_packet(tape: &mut Tape<'_>, flows: &[Vec<u8>]) -> Vec<u8> {
    if tape.chance(12) {
        return hostile_packet(tape, (1, 2));
    }
    if tape.chance(12) {
        let (is_v4, id) = (!tape.chance(2), u32::from(tape.u8() % 4));
        let (is_first, port) = (tape.chance(2), *tape.pick(&[53, 54, 41_000]));
        return fragment(tape, is_v4, id, is_first, port);
    }
    let mut packet = tape.pick(flows).clone();
    let is_v4 = packet.first().is_some_and(|byte| byte >> 4 == 4);
    match tape.below(16) {
        15 => mutate(tape, &mut packet, 3, corpus::packets()),
        14 => {
            let len = tape.below(packet.len() + 1);
            packet.truncate(len);
        }
        13 => {
            let more = tape.below(60);
            packet.extend(tape.bytes(more));
        }
        // A bit of the headers, lengths, fragments, addresses and ports among them.
        9..=12 if !packet.is_empty() => {
            let at = tape.below(packet.len().min(64));
            packet[at] ^= 1 << (tape.u8() % 8);
        }
        // Another place in a fragmented packet.
        8 if is_v4 && packet.len() >= 20 => {
            let place = *tape.pick(&[0x2000_u16, 1, 0x4000, 0x8000]);
            packet[6..8].copy_from_slice(&place.to_be_bytes());
        }
        // Options, which move the ports.
        7 if is_v4 && packet.len() >= 20 => {
            let n_words = 1 + tape.u8() % 10;
            packet[0] = 0x45 + n_words;
            let options = tape.bytes(usize::from(n_words) * 4);
            packet.splice(20..20, options);
        }
        6 => {
            let at = if is_v4 { 9 } else { 6 };
            if let Some(protocol) = packet.get_mut(at) {
                *protocol = *tape.pick(&[packet::TCP, packet::UDP, 1, 58, 0, 44, 60]);
            }
        }
        _ => {}
    }
    packet
}
