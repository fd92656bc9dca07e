//! Fragments at the receiver.

use std::collections::BTreeSet;
use std::time::Duration;

use mesh_engine::Admit;

use super::admit::{Verdict, judge};
use crate::Target;
use crate::packet::UDP;
use crate::pair::{self, Pair};
use crate::tape::Tape;

/// Longer than a fragment waits for the others.
const MUCH_LATER: Duration = Duration::from_secs(31);

/// The table's clock comes round after six days, and nobody sweeps it here.
const N_CASES: u32 = 10_000;

#[derive(Default)]
pub(crate) struct Fragments {
    pair: Pair,
    n_cases: u32,
}

impl Target for Fragments {
    fn case(&mut self, tape: &mut Tape<'_>) {
        self.n_cases += 1;
        if self.n_cases == N_CASES {
            *self = Self::default();
        }
        self.pair.now += MUCH_LATER;
        let mut passed = BTreeSet::new();
        for _ in 0..=tape.below(8) {
            let (is_v4, id) = (!tape.chance(2), u32::from(tape.u8() % 4));
            let is_first = tape.chance(2);
            let port = *tape.pick(&[53, 54, 40_053, 41_000]);
            let mut packet = fragment(tape, is_v4, id, is_first, port);
            let admit = self.pair.admit(&mut packet);
            let is_expected = match judge(&packet) {
                Verdict::Deliver { .. } => {
                    passed.insert((is_v4, id));
                    true
                }
                Verdict::Drop => false,
                Verdict::Behind => passed.contains(&(is_v4, id)),
            };
            assert_eq!(
                matches!(admit, Admit::Deliver),
                is_expected,
                "{packet:02x?}"
            );
        }
    }
}

pub(crate) fn fragment(
    tape: &mut Tape<'_>,
    is_v4: bool,
    id: u32,
    is_first: bool,
    port: u16,
) -> Vec<u8> {
    let offset = if is_first { 0 } else { 1 + tape.u16() % 0x1fff };
    let has_more = is_first || tape.chance(2);
    let mut payload = vec![0, 7];
    payload.extend(port.to_be_bytes());
    payload.extend([0, 200, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
    let (from, to) = (pair::overlay(1), pair::overlay(2));
    let mut packet;
    if is_v4 {
        let place = offset | u16::from(has_more) << 13;
        packet = vec![0x45, 0, 0, 36];
        packet.extend(u16::try_from(id).unwrap().to_be_bytes());
        packet.extend(place.to_be_bytes());
        packet.extend([64, UDP, 0, 0]);
        packet.extend(from.0.octets());
        packet.extend(to.0.octets());
    } else {
        let place = offset << 3 | u16::from(has_more);
        packet = vec![0x60, 0, 0, 0, 0, 24, 44, 64];
        packet.extend(from.1.octets());
        packet.extend(to.1.octets());
        packet.extend([UDP, 0]);
        packet.extend(place.to_be_bytes());
        packet.extend(id.to_be_bytes());
    }
    packet.extend(payload);
    packet
}
