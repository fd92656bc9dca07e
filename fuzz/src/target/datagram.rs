//! Datagrams at the UDP port that name a session, or seem to.

use mesh_engine::{DropReason, Opened};

use crate::mutate::mutate;
use crate::pair::Pair;
use crate::tape::Tape;
use crate::{Target, corpus};

pub(crate) struct Datagrams {
    pair: Pair,
    out: Vec<u8>,
}

impl Default for Datagrams {
    fn default() -> Self {
        Self {
            pair: Pair::new(),
            out: vec![0; 70_000],
        }
    }
}

impl Target for Datagrams {
    fn case(&mut self, tape: &mut Tape<'_>) {
        let packet = tape.pick(corpus::packets());
        let true_one = self.pair.seal(packet);
        for _ in 0..tape.below(4) {
            let forged = self.forge(tape, &true_one);
            if forged == true_one {
                continue;
            }
            let opened = self.open(tape, &forged);
            assert!(
                matches!(opened, None | Some(Opened::Dropped(_))),
                "{opened:?}: {forged:02x?}"
            );
        }
        // What went before did no harm, and a short buffer does none.
        let short = tape.below(true_one.len());
        let opened = self.pair.open(&true_one, &mut self.out[..short]);
        assert_eq!(opened, Some(Opened::Dropped(DropReason::BufferTooSmall)));
        let opened = self.pair.open(&true_one, &mut self.out);
        assert_eq!(opened, Some(Opened::Packet(packet.len())));
        assert_eq!(self.out[..packet.len()], packet[..]);
        let again = self.pair.open(&true_one, &mut self.out);
        assert_eq!(again, Some(Opened::Dropped(DropReason::NotAuthentic)));
    }
}

impl Datagrams {
    /// Opens it as a packet thread does, or past the look at its index, into a buffer of any size.
    fn open(&mut self, tape: &mut Tape<'_>, datagram: &[u8]) -> Option<Opened> {
        let len = if tape.chance(4) {
            tape.below(datagram.len() + 40)
        } else {
            self.out.len()
        };
        let out = &mut self.out[..len];
        if tape.chance(4) {
            let from = crate::pair::endpoint(9);
            return Some(self.pair.peers[1].open().open(from, datagram, out));
        }
        self.pair.open(datagram, out)
    }

    fn forge(&self, tape: &mut Tape<'_>, true_one: &[u8]) -> Vec<u8> {
        let mut forged = match tape.below(8) {
            7 => {
                let len = tape.below(200);
                tape.bytes(len)
            }
            6 => tape.pick(&self.pair.handshake).clone(),
            5 => {
                // The session and the next counters are known to whoever looks on.
                let mut forged = true_one[..16].to_vec();
                let len = 16 + tape.below(200);
                forged.extend(tape.bytes(len));
                forged
            }
            _ => true_one.to_vec(),
        };
        if tape.chance(8) {
            let len = tape.below(2000);
            forged.resize(len, 0x5a);
        }
        if tape.chance(16)
            && let Some(counter) = forged.get_mut(8..16)
        {
            let at_edge = *tape.pick(&[u64::MAX, u64::MAX - 1024, u64::MAX - (1 << 13), 1 << 63]);
            counter.copy_from_slice(&at_edge.to_le_bytes());
        }
        mutate(tape, &mut forged, 3, &self.pair.handshake);
        if tape.chance(2)
            && let Some(kind) = forged.get_mut(..4)
        {
            kind.copy_from_slice(&[4, 0, 0, 0]);
        }
        forged
    }
}
