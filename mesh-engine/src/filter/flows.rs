//! The flows that passed lately: a fixed, set-associative table of atomics that all packet threads share.
//!
//! It holds keyed fingerprints, not flows, so nobody outside can aim for a collision; a full set forgets its oldest
//! entry. An entry tells who opened the flow: only flows of this node's own let answers in.

use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::config::{OTHER_FLOW_S, TCP_FLOW_S, UDP_FLOW_S};
use crate::packet;

const N_WAYS: usize = 8;
const N_SETS: usize = 8192;

/// The pseudo protocol of fragments behind an admitted first one; 255 is reserved (RFC 3692).
pub(crate) const FRAGMENTS: u8 = 255;

/// One flow, from this node's side. The own address follows from the family of the peer's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Flow {
    pub(crate) protocol: u8,
    pub(crate) peer: IpAddr,
    pub(crate) own_port: u16,
    pub(crate) peer_port: u16,
}

impl Flow {
    const fn lifetime_s(&self) -> u32 {
        match self.protocol {
            packet::TCP => TCP_FLOW_S,
            packet::UDP => UDP_FLOW_S,
            _ => OTHER_FLOW_S,
        }
    }
}

/// Who sent the first packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Opener {
    Own,
    Peer,
}

// An entry: 44 bits of fingerprint, 19 bits of seconds, 1 bit for an own flow. 0 is empty, which a fingerprint never is.
const FINGERPRINT: u64 = !0 << 20;
const SECONDS_MASK: u32 = (1 << 19) - 1;

const fn entry(fingerprint: u64, opener: Opener, now_s: u32) -> u64 {
    (fingerprint & FINGERPRINT)
        | ((now_s & SECONDS_MASK) as u64) << 1
        | matches!(opener, Opener::Own) as u64
}

const fn opener_of(entry: u64) -> Opener {
    if entry & 1 == 1 {
        Opener::Own
    } else {
        Opener::Peer
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "masked to the 19 bits that are meant"
)]
const fn age_s(entry: u64, now_s: u32) -> u32 {
    now_s.wrapping_sub((entry >> 1) as u32 & SECONDS_MASK) & SECONDS_MASK
}

/// The table; 512 KiB.
pub(crate) struct Flows {
    sets: Box<[[AtomicU64; N_WAYS]]>,
    key: [u64; 2],
}

impl Flows {
    pub(crate) fn new(key: [u64; 2]) -> Self {
        let sets = (0..N_SETS)
            .map(|_| std::array::from_fn(|_| AtomicU64::new(0)))
            .collect();
        Self { sets, key }
    }

    /// Notes that a packet of the flow passed. A flow that is already known keeps who opened it.
    pub(crate) fn note(&self, flow: &Flow, opener: Opener, now_s: u32) {
        let (set, fingerprint) = self.find(flow);
        let (mut victim, mut victim_age) = (&set[0], 0);
        for way in set {
            let seen = way.load(Ordering::Relaxed);
            if seen & FINGERPRINT == fingerprint {
                let age = age_s(seen, now_s);
                if age <= flow.lifetime_s() {
                    if age != 0 {
                        way.store(
                            entry(fingerprint, opener_of(seen), now_s),
                            Ordering::Relaxed,
                        );
                    }
                    return;
                }
                victim = way;
                break;
            }
            let age = if seen == 0 {
                u32::MAX
            } else {
                age_s(seen, now_s)
            };
            if age >= victim_age {
                (victim, victim_age) = (way, age);
            }
        }
        // Two threads may pick one victim; the loser's flow is noted again by its next packet.
        victim.store(entry(fingerprint, opener, now_s), Ordering::Relaxed);
    }

    /// Whether this node opened the flow and it is alive; keeps it alive if so.
    pub(crate) fn is_own(&self, flow: &Flow, now_s: u32) -> bool {
        let (set, fingerprint) = self.find(flow);
        for way in set {
            let seen = way.load(Ordering::Relaxed);
            if seen & FINGERPRINT == fingerprint {
                let age = age_s(seen, now_s);
                let is_own = opener_of(seen) == Opener::Own && age <= flow.lifetime_s();
                if is_own && age != 0 {
                    way.store(entry(fingerprint, Opener::Own, now_s), Ordering::Relaxed);
                }
                return is_own;
            }
        }
        false
    }

    /// Forgets what is too old, before the clock of 19 bits comes round and makes it young again.
    pub(crate) fn sweep(&self, now_s: u32) {
        for way in self.sets.iter().flatten() {
            let seen = way.load(Ordering::Relaxed);
            if seen != 0 && age_s(seen, now_s) > TCP_FLOW_S {
                let _ = way.compare_exchange(seen, 0, Ordering::Relaxed, Ordering::Relaxed);
            }
        }
    }

    fn find(&self, flow: &Flow) -> (&[AtomicU64; N_WAYS], u64) {
        let (high, low) = match flow.peer {
            IpAddr::V4(ip) => (0, u64::from(u32::from(ip))),
            IpAddr::V6(ip) => {
                let [high, low] = [u128::from(ip) >> 64, u128::from(ip) & u128::from(u64::MAX)];
                (
                    u64::try_from(high).unwrap_or(0),
                    u64::try_from(low).unwrap_or(0),
                )
            }
        };
        let rest = u64::from(flow.protocol)
            | u64::from(flow.own_port) << 8
            | u64::from(flow.peer_port) << 24
            | u64::from(flow.peer.is_ipv4()) << 40;
        let hash = siphash(self.key, [high, low, rest]);
        // The set comes from the low 13 bits, the fingerprint from the high 44: they share nothing.
        let set = usize::try_from(hash % N_SETS as u64).unwrap_or(0);
        (&self.sets[set], hash & FINGERPRINT | 1 << 63)
    }
}

impl fmt::Debug for Flows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Flows")
    }
}

/// SipHash-1-3 over three words (Aumasson and Bernstein, 2012).
fn siphash(key: [u64; 2], words: [u64; 3]) -> u64 {
    let mut v = [
        key[0] ^ 0x736f_6d65_7073_6575,
        key[1] ^ 0x646f_7261_6e64_6f6d,
        key[0] ^ 0x6c79_6765_6e65_7261,
        key[1] ^ 0x7465_6462_7974_6573,
    ];
    for word in words.into_iter().chain([24 << 56]) {
        v[3] ^= word;
        sip_round(&mut v);
        v[0] ^= word;
    }
    v[2] ^= 0xff;
    for _ in 0..3 {
        sip_round(&mut v);
    }
    v[0] ^ v[1] ^ v[2] ^ v[3]
}

const fn sip_round(v: &mut [u64; 4]) {
    v[0] = v[0].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(13) ^ v[0];
    v[0] = v[0].rotate_left(32);
    v[2] = v[2].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(16) ^ v[2];
    v[0] = v[0].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(21) ^ v[0];
    v[2] = v[2].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(17) ^ v[2];
    v[2] = v[2].rotate_left(32);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(own_port: u16) -> Flow {
        Flow {
            protocol: packet::UDP,
            peer: "10.1.0.9".parse().unwrap(),
            own_port,
            peer_port: 53,
        }
    }

    #[test]
    fn the_opener_of_a_flow_stays_and_only_own_flows_let_answers_in() {
        let flows = Flows::new([1, 2]);
        flows.note(&flow(1), Opener::Own, 10);
        flows.note(&flow(1), Opener::Peer, 11);
        assert!(flows.is_own(&flow(1), 12));
        flows.note(&flow(2), Opener::Peer, 10);
        flows.note(&flow(2), Opener::Own, 11);
        assert!(!flows.is_own(&flow(2), 12));
        assert!(!flows.is_own(&flow(3), 12));
    }

    #[test]
    fn a_flow_ends_when_idle_and_lives_while_used() {
        let flows = Flows::new([1, 2]);
        flows.note(&flow(1), Opener::Own, 0);
        assert!(flows.is_own(&flow(1), UDP_FLOW_S));
        assert!(flows.is_own(&flow(1), 2 * UDP_FLOW_S));
        assert!(!flows.is_own(&flow(1), 3 * UDP_FLOW_S + 1));
        flows.note(&flow(1), Opener::Peer, 4 * UDP_FLOW_S);
        assert!(!flows.is_own(&flow(1), 4 * UDP_FLOW_S));
    }

    #[test]
    fn the_clock_may_come_round_between_sweeps() {
        let flows = Flows::new([1, 2]);
        flows.note(&flow(1), Opener::Own, 5);
        flows.sweep(5 + TCP_FLOW_S + 1);
        assert!(!flows.is_own(&flow(1), 5 + SECONDS_MASK + 1));
        flows.note(&flow(1), Opener::Own, SECONDS_MASK);
        assert!(flows.is_own(&flow(1), SECONDS_MASK + 2));
    }

    #[test]
    fn an_overfull_table_keeps_the_newest() {
        let flows = Flows::new([3, 4]);
        for now_s in 0..2u32 {
            for port in 0..=u16::MAX {
                for peer_port in [1, 2] {
                    flows.note(
                        &Flow {
                            peer_port,
                            ..flow(port)
                        },
                        Opener::Own,
                        now_s,
                    );
                }
            }
        }
        flows.note(&flow(7), Opener::Own, 3);
        assert!(flows.is_own(&flow(7), 3));
    }

    #[test]
    fn siphash_spreads() {
        let mut seen = std::collections::BTreeSet::new();
        for n in 0..10_000 {
            seen.insert(siphash([1, 2], [0, 0, n]) >> 20);
        }
        assert_eq!(seen.len(), 10_000);
    }
}
