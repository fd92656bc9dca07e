//! Datagrams for the engine: handshakes, cookies, path discovery and STUN, from anybody.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use blake2::digest::consts::U16;
use blake2::digest::{Digest as _, FixedOutput as _, KeyInit as _, Update as _};
use blake2::{Blake2s256, Blake2sMac};
use mesh_engine::{Destination, Inbound};
use mesh_proto::disco::is_disco;
use mesh_proto::stun;

use crate::Target;
use crate::mutate::mutate;
use crate::pair::{self, Pair};
use crate::tape::Tape;

/// Every so many cases the pair is made anew, so that sessions and limits are fresh.
const N_CASES: u32 = 50_000;

pub(crate) struct Control {
    pair: Pair,
    mac1_key: [u8; 32],
    seeds: Vec<Vec<u8>>,
    /// Where authentic messages came from.
    heard: BTreeSet<SocketAddr>,
    n_cases: u32,
}

impl Default for Control {
    fn default() -> Self {
        let pair = Pair::new();
        let mac1_key = Blake2s256::new()
            .chain_update(b"mac1----")
            .chain_update(Pair::key(2).as_bytes())
            .finalize()
            .into();
        let mut seeds = pair.handshake.clone();
        let id = [7; 12];
        seeds.push(stun::binding_request(&id).to_vec());
        for seen in [pair::STUN, "[2001:db8::1]:9".parse().unwrap()] {
            seeds.push(stun::binding_success(&id, seen));
        }
        // A cookie reply is as long as this.
        seeds.push([&[3, 0, 0, 0], &[1; 60][..]].concat());
        Self {
            pair,
            mac1_key,
            seeds,
            heard: BTreeSet::from([pair::endpoint(1)]),
            n_cases: 0,
        }
    }
}

impl Target for Control {
    fn case(&mut self, tape: &mut Tape<'_>) {
        self.n_cases += 1;
        if self.n_cases == N_CASES {
            *self = Self::default();
        }
        let from = sender(tape);
        let datagram = self.datagram(tape);
        if self.seeds.contains(&datagram) {
            self.heard.insert(from);
        }
        // Slowly, so that at times there are more handshakes a second than a node bears without asking for proof.
        if tape.chance(1024) {
            self.pair.now += Duration::from_millis(u64::from(tape.u8()));
        }
        let now = self.pair.now;
        let is_control = matches!(
            self.pair.planes[1].inbound(now, &datagram),
            Inbound::Control
        );
        // The engine does not lean on the plane's judgement.
        if is_control || tape.chance(4) {
            self.pair.engines[1].handle_udp(now, from, &datagram);
        }
        while let Some(transmit) = self.pair.engines[1].poll_transmit() {
            if is_disco(&transmit.bytes) {
                // Nobody is pinged or answered whom no authentic message named.
                let to = transmit.dst.endpoint();
                assert!(
                    to.is_some_and(|to| self.heard.contains(&to)),
                    "{transmit:?}"
                );
            } else if transmit.dst == Destination::Udp(from) && from != pair::endpoint(1) {
                // To a stranger there is one thing to say: prove that you are there.
                assert!(self.is_meant(&datagram), "answered: {datagram:02x?}");
                assert_eq!(transmit.bytes[..4], [3, 0, 0, 0]);
                assert_eq!(transmit.bytes.len(), 64);
            } else {
                let known = [pair::endpoint(1), pair::STUN].map(Destination::Udp);
                assert!(known.contains(&transmit.dst), "{transmit:?}");
            }
        }
        while self.pair.engines[1].poll_event().is_some() {}
        assert!(self.pair.engines[1].peer_stats(now).len() == 1);
    }
}

impl Control {
    fn datagram(&self, tape: &mut Tape<'_>) -> Vec<u8> {
        let mut datagram = match tape.below(8) {
            7 => {
                let len = *tape.pick(&[148, 92, 64, 32, 20, 0, 1, 200]);
                let mut bytes = tape.bytes(len);
                if let Some(kind) = bytes.get_mut(..4) {
                    kind.copy_from_slice(&[1 + tape.u8() % 5, 0, 0, 0]);
                }
                bytes
            }
            _ => tape.pick(&self.seeds).clone(),
        };
        mutate(tape, &mut datagram, 3, &self.seeds);
        // A Diffie-Hellman takes as long as a thousand other cases.
        if tape.chance(if datagram.first() == Some(&1) {
            512
        } else {
            16
        }) {
            self.bless(&mut datagram);
        }
        datagram
    }

    fn mac1(&self, message: &[u8]) -> [u8; 16] {
        let mut mac = Blake2sMac::<U16>::new_from_slice(&self.mac1_key).unwrap();
        mac.update(message);
        mac.finalize_fixed().into()
    }

    /// Makes a message of one who knows node 2's key.
    fn bless(&self, datagram: &mut [u8]) {
        if let Some(at) = datagram.len().checked_sub(32) {
            let mac1 = self.mac1(&datagram[..at]);
            datagram[at..at + 16].copy_from_slice(&mac1);
        }
    }

    fn is_meant(&self, datagram: &[u8]) -> bool {
        datagram.len() == 148
            && datagram[..4] == [1, 0, 0, 0]
            && self.mac1(&datagram[..116]) == datagram[116..132]
    }
}

fn sender(tape: &mut Tape<'_>) -> SocketAddr {
    match tape.below(4) {
        3 => pair::endpoint(1),
        2 => pair::STUN,
        1 => {
            let mut octets = [0; 16];
            tape.fill(&mut octets);
            octets[..2].copy_from_slice(&[0x20, 1]);
            SocketAddr::new(IpAddr::V6(octets.into()), tape.u16())
        }
        _ => SocketAddr::new([198, 51, tape.u8(), tape.u8()].into(), tape.u16()),
    }
}
