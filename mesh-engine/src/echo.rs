//! Pings through the tunnel: builds ICMP echo requests from the own overlay address and knows their answers again.

use std::net::Ipv4Addr;

use crate::event::PingToken;
use crate::packet::{Headers, checksum};
use crate::seed::Seed;

const LEN: usize = 20 + 8 + 16;

/// What marks this engine's requests. The peer's kernel copies it into the answer.
#[derive(Debug)]
pub(crate) struct Echo {
    ident: u16,
    mark: [u8; 8],
}

impl Echo {
    pub(crate) fn new(seed: &mut Seed) -> Self {
        let [a, b, ..] = seed.block();
        Self {
            ident: u16::from_be_bytes([a, b]),
            mark: seed.u64().to_be_bytes(),
        }
    }

    /// An IP packet that asks for an answer.
    pub(crate) fn request(&self, src: Ipv4Addr, dst: Ipv4Addr, token: PingToken) -> [u8; LEN] {
        let mut packet = [0; LEN];
        packet[0] = 0x45;
        packet[3] = LEN as u8;
        packet[6] = 0x40;
        packet[8] = 64;
        packet[9] = crate::packet::ICMP;
        packet[12..16].copy_from_slice(&src.octets());
        packet[16..20].copy_from_slice(&dst.octets());
        let sum = checksum(&packet[..20]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        packet[20] = 8;
        packet[24..26].copy_from_slice(&self.ident.to_be_bytes());
        let token = token.0.to_be_bytes();
        packet[26..28].copy_from_slice(&token[6..]);
        packet[28..36].copy_from_slice(&self.mark);
        packet[36..].copy_from_slice(&token);
        let sum = checksum(&packet[20..]);
        packet[22..24].copy_from_slice(&sum.to_be_bytes());
        packet
    }

    /// Which ping an echo reply answers; `None` when it answers another program's.
    pub(crate) fn token_of(
        &self,
        ident: u16,
        packet: &[u8],
        headers: &Headers,
    ) -> Option<PingToken> {
        if ident != self.ident || headers.src.is_ipv6() {
            return None;
        }
        let payload = packet.get(headers.upper_at.checked_add(8)?..)?;
        let (mark, rest) = payload.split_first_chunk::<8>()?;
        let (token, _) = rest.split_first_chunk::<8>()?;
        (*mark == self.mark).then(|| PingToken(u64::from_be_bytes(*token)))
    }
}
