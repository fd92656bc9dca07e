//! The session layer: boringtun's `Tunn` behind a small trait, with the guards that it needs.
//!
//! `Tunn` panics on short buffers, queues packets without a common bound, retries without jitter and reads clocks of
//! its own. Here buffers are checked first, packets wait in the peer and handshakes are driven by the engine; `Tunn`'s
//! own timers only back them up. Its handshake timestamp comes from the system clock and cannot be given: when it is to
//! survive a clock that went back, [`NewSession`] is the seam for a session layer that takes one.

pub(crate) mod index;
pub(crate) mod limiter;

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Packet, Tunn, TunnResult};
use mesh_proto::key::{NodeKey, NodePrivateKey};
use x25519_dalek::{PublicKey, StaticSecret};

use crate::config::{PAD_TO, PAD_UP_TO};
use crate::event::DropReason;

/// Header and tag of a data message.
pub(crate) const DATA_OVERHEAD: usize = 32;

/// The longest handshake message, an initiation.
pub(crate) const HANDSHAKE_LEN_MAX: usize = 148;

/// What kind of WireGuard message a datagram is, by its first four bytes and its length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Initiation,
    /// With the receiver's index.
    Response(u32),
    /// With the receiver's index.
    CookieReply(u32),
    /// With the receiver's index.
    Data(u32),
}

impl Kind {
    pub(crate) fn of(datagram: &[u8]) -> Option<Self> {
        let word = |at: usize| {
            let bytes = datagram.get(at..at + 4)?;
            Some(u32::from_le_bytes(bytes.try_into().ok()?))
        };
        match (word(0)?, datagram.len()) {
            (1, 148) => Some(Self::Initiation),
            (2, 92) => Some(Self::Response(word(8)?)),
            (3, 64) => Some(Self::CookieReply(word(4)?)),
            (4, DATA_OVERHEAD..) => Some(Self::Data(word(4)?)),
            _ => None,
        }
    }
}

/// Whether two datagrams are data messages of one session, told by type and receiver index alone.
pub(crate) fn is_same_session(first: &[u8], second: &[u8]) -> bool {
    let head = |datagram: &[u8]| -> Option<[u8; 8]> {
        datagram.get(..DATA_OVERHEAD)?.first_chunk().copied()
    };
    head(first).is_some_and(|[kind @ .., _, _, _, _]| kind == [4, 0, 0, 0])
        && head(first) == head(second)
}

/// What came out of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Read {
    /// An IP packet of this length, padding removed.
    Packet(usize),
    /// An authentic message without a packet.
    Keepalive,
    /// So many bytes of `out` go back to where the message came from.
    Reply(usize),
    /// A cookie for the next handshake.
    Cookie,
    Refused(DropReason),
}

/// What a session's own timers want.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tick {
    Nothing,
    Initiation(usize),
    Keepalive(usize),
    /// It has given up and forgotten its keys.
    Expired,
}

/// One peer's keys and handshake state.
pub(crate) trait Session: Send {
    /// Whether there are keys to seal with.
    fn is_ready(&self) -> bool;
    /// Seals a packet, empty for a keepalive, into `out`. There must be keys.
    fn seal(&mut self, packet: &[u8], out: &mut [u8]) -> Result<usize, DropReason>;
    /// Reads any message of the peer.
    fn open(&mut self, from: IpAddr, datagram: &[u8], out: &mut [u8]) -> Read;
    /// Begins a handshake, or begins it anew.
    fn initiate(&mut self, out: &mut [u8]) -> Option<usize>;
    /// To be called each [`TICK`](crate::config::TICK).
    fn tick(&mut self, out: &mut [u8]) -> Tick;
}

/// Makes a session with a peer under a random index.
pub(crate) type NewSession = fn(&Identity, &NodeKey, u32) -> Box<dyn Session>;

/// This node's end of all handshakes.
pub(crate) struct Identity {
    secret: StaticSecret,
    public: PublicKey,
    /// `Tunn` and the check in front both count a message, so it must never limit; [`limiter`] does.
    limiter: Arc<RateLimiter>,
}

impl Identity {
    pub(crate) fn new(key: &NodePrivateKey) -> Self {
        let secret = key.secret().clone();
        let public = PublicKey::from(&secret);
        let limiter = Arc::new(RateLimiter::new(&public, u64::MAX));
        Self {
            secret,
            public,
            limiter,
        }
    }

    /// Whether the message was made by someone who knows this node's key (mac1).
    pub(crate) fn is_meant(&self, datagram: &[u8]) -> bool {
        let mut cookie = [0; 64];
        self.limiter
            .verify_packet(None, datagram, &mut cookie)
            .is_ok()
    }

    /// Who sends an initiation. The claim is not proven before the session takes the message.
    pub(crate) fn initiator(&self, datagram: &[u8]) -> Option<NodeKey> {
        let Ok(Packet::HandshakeInit(initiation)) = Tunn::parse_incoming_packet(datagram) else {
            return None;
        };
        let half = parse_handshake_anon(&self.secret, &self.public, &initiation).ok()?;
        Some(NodeKey::from_bytes(half.peer_static_public))
    }

    /// To be called each second.
    pub(crate) fn reset(&self) {
        self.limiter.reset_count();
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity([redacted])")
    }
}

/// A [`Session`] by boringtun.
pub(crate) struct NoiseSession {
    tunn: Tunn,
    padded: [u8; PAD_UP_TO],
}

impl NoiseSession {
    pub(crate) fn boxed(identity: &Identity, peer: &NodeKey, index: u32) -> Box<dyn Session> {
        let tunn = Tunn::new(
            identity.secret.clone(),
            PublicKey::from(*peer.as_bytes()),
            None,
            // Both ends of a persistent keepalive fight over who begins the next handshake.
            None,
            index,
            Some(Arc::clone(&identity.limiter)),
        );
        Box::new(Self {
            tunn,
            padded: [0; PAD_UP_TO],
        })
    }
}

impl Session for NoiseSession {
    fn is_ready(&self) -> bool {
        self.tunn.time_since_last_handshake().is_some()
    }

    fn seal(&mut self, packet: &[u8], out: &mut [u8]) -> Result<usize, DropReason> {
        let padded_len = packet.len().next_multiple_of(PAD_TO);
        let packet = if padded_len != packet.len() && padded_len <= PAD_UP_TO {
            self.padded[..packet.len()].copy_from_slice(packet);
            self.padded[packet.len()..padded_len].fill(0);
            &self.padded[..padded_len]
        } else {
            packet
        };
        if out.len() < HANDSHAKE_LEN_MAX.max(packet.len() + DATA_OVERHEAD) {
            return Err(DropReason::BufferTooSmall);
        }
        match self.tunn.encapsulate(packet, out) {
            TunnResult::WriteToNetwork(datagram) => Ok(datagram.len()),
            TunnResult::Done
            | TunnResult::Err(_)
            | TunnResult::WriteToTunnelV4(..)
            | TunnResult::WriteToTunnelV6(..) => Err(DropReason::PeerGone),
        }
    }

    fn open(&mut self, from: IpAddr, datagram: &[u8], out: &mut [u8]) -> Read {
        let Some(kind) = Kind::of(datagram) else {
            return Read::Refused(DropReason::NotOurs);
        };
        let needed = match kind {
            Kind::Data(_) => datagram.len(),
            Kind::Initiation | Kind::Response(_) | Kind::CookieReply(_) => HANDSHAKE_LEN_MAX,
        };
        if out.len() < needed {
            return Read::Refused(DropReason::BufferTooSmall);
        }
        match self.tunn.decapsulate(Some(from), datagram, out) {
            TunnResult::WriteToTunnelV4(packet, _) | TunnResult::WriteToTunnelV6(packet, _) => {
                Read::Packet(packet.len())
            }
            TunnResult::WriteToNetwork(reply) => Read::Reply(reply.len()),
            TunnResult::Done if matches!(kind, Kind::Data(_)) => Read::Keepalive,
            TunnResult::Done => Read::Cookie,
            TunnResult::Err(_) => Read::Refused(DropReason::NotAuthentic),
        }
    }

    fn initiate(&mut self, out: &mut [u8]) -> Option<usize> {
        if out.len() < HANDSHAKE_LEN_MAX {
            return None;
        }
        match self.tunn.format_handshake_initiation(out, true) {
            TunnResult::WriteToNetwork(datagram) => Some(datagram.len()),
            TunnResult::Done
            | TunnResult::Err(_)
            | TunnResult::WriteToTunnelV4(..)
            | TunnResult::WriteToTunnelV6(..) => None,
        }
    }

    fn tick(&mut self, out: &mut [u8]) -> Tick {
        if out.len() < HANDSHAKE_LEN_MAX {
            return Tick::Nothing;
        }
        match self.tunn.update_timers(out) {
            TunnResult::WriteToNetwork(datagram) => match Kind::of(datagram) {
                Some(Kind::Initiation) => Tick::Initiation(datagram.len()),
                Some(Kind::Data(_)) => Tick::Keepalive(datagram.len()),
                Some(Kind::Response(_) | Kind::CookieReply(_)) | None => Tick::Nothing,
            },
            TunnResult::Err(_) => Tick::Expired,
            TunnResult::Done
            | TunnResult::WriteToTunnelV4(..)
            | TunnResult::WriteToTunnelV6(..) => Tick::Nothing,
        }
    }
}

#[cfg(test)]
mod tests;
