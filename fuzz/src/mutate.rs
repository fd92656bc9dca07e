//! Changes bytes as an attacker or a bad cable would: blind, but with a liking for headers and for numbers at edges.

use crate::tape::Tape;

/// Lengths, offsets and counts are often wrong at these.
const EDGES: [u16; 12] = [0, 1, 7, 8, 19, 20, 39, 40, 0x7fff, 0x8000, 0xfffe, 0xffff];

/// Most changes are made within so many bytes from the front.
const HEADERS: usize = 80;

/// Makes up to `n_max` changes.
pub fn mutate(tape: &mut Tape<'_>, bytes: &mut Vec<u8>, n_max: usize, others: &[Vec<u8>]) {
    for _ in 0..tape.below(n_max + 1) {
        mutate_once(tape, bytes, others);
    }
}

fn mutate_once(tape: &mut Tape<'_>, bytes: &mut Vec<u8>, others: &[Vec<u8>]) {
    if bytes.is_empty() {
        bytes.push(tape.u8());
        return;
    }
    let len = bytes.len();
    let at = if tape.chance(8) {
        tape.below(len)
    } else {
        tape.below(len.min(HEADERS))
    };
    match tape.below(10) {
        0 | 1 => bytes[at] ^= 1 << (tape.u8() % 8),
        2 => bytes[at] = tape.u8(),
        3 => {
            let edge = match tape.u8() % 4 {
                0 => u16::try_from(len).unwrap_or(u16::MAX),
                1 => u16::try_from(len).unwrap_or(u16::MAX).wrapping_sub(1),
                _ => *tape.pick(&EDGES),
            };
            put(bytes, at, &edge.to_be_bytes());
        }
        4 => bytes.truncate(at),
        5 => {
            let more = tape.below(64);
            let more = tape.bytes(more);
            bytes.extend(more);
        }
        6 => {
            // Something is missing.
            let end = (at + 1 + tape.below(16)).min(len);
            bytes.drain(at..end);
        }
        7 => {
            // Something is there twice, as with a chain of headers.
            let end = (at + 1 + tape.below(16)).min(len);
            let again = bytes[at..end].to_vec();
            bytes.splice(end..end, again);
        }
        8 if !others.is_empty() => {
            let other = tape.pick(others);
            let from = tape.below(other.len().max(1));
            let part = other.get(from..).unwrap_or_default();
            put(bytes, at, &part[..part.len().min(24)]);
        }
        _ => {
            let other = tape.below(len);
            bytes.swap(at, other);
        }
    }
}

/// Writes as much as fits.
fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    for (to, from) in bytes.iter_mut().skip(at).zip(value) {
        *to = *from;
    }
}
