//! The session layer: boringtun's `Tunn` behind a small trait, with the guards that it needs.
//!
//! `Tunn` panics on short buffers and, where overflow is checked, on an authentic peer's counter near its end; it queues
//! packets without a common bound, retries without jitter and reads clocks of its own. Here buffers and counters are
//! checked first, packets wait in the peer and handshakes are driven by the engine; `Tunn`'s own timers only back them up.
//!
//! Initiations are stamped by [`stamp`] and not by the system's clock, for which `third-party/boringtun` has a seam of
//! ours. A peer that has none of that, or lost its mark, may still come with an old stamp: an authentic initiation of the
//! kind is told from a forgery ([`Read::Old`]), and the engine then begins a handshake itself, which such a peer accepts.
//!
//! One thing cannot be had from it; [`NewSession`] is the seam for a session layer that has it: a replay window above
//! 1,024. The window is a private constant, it is asked before a datagram is opened, and the keys are private too, so what
//! it refuses nobody else can open. Within it reordering loses nothing.

pub(crate) mod index;
pub(crate) mod limiter;
pub(crate) mod stamp;

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Packet, Tunn, TunnResult};
use mesh_proto::key::{NodeKey, NodePrivateKey};
use sha2::{Digest as _, Sha256};
use x25519_dalek::{PublicKey, StaticSecret};

use crate::config::{PAD_TO, PAD_UP_TO, REJECT_AFTER_MESSAGES};
use crate::event::DropReason;
use crate::noise::stamp::Stamps;

/// Header and tag of a data message.
pub(crate) const DATA_OVERHEAD: u16 = 32;

const DATA_OVERHEAD_LEN: usize = DATA_OVERHEAD as usize;

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
            (4, DATA_OVERHEAD_LEN..) => Some(Self::Data(word(4)?)),
            _ => None,
        }
    }
}

/// Whether two datagrams are data messages of one session, told by type and receiver index alone.
pub(crate) fn is_same_session(first: &[u8], second: &[u8]) -> bool {
    let head = |datagram: &[u8]| -> Option<[u8; 8]> {
        datagram.get(..DATA_OVERHEAD_LEN)?.first_chunk().copied()
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
    /// An authentic message with something in it that is no IP packet.
    Rubbish,
    /// So many bytes of `out` go back to where the message came from.
    Reply(usize),
    /// A cookie for the next handshake.
    Cookie,
    /// An authentic initiation, but not newer than the newest: a copy, a replay, or a peer whose clock was set back.
    Old,
    Refused(DropReason),
}

/// Whether the sender of an initiation proved that it is where it says (mac2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Proof {
    Given,
    /// So many bytes are a cookie reply, with which it can.
    Missing(usize),
    /// It does not even know this node's key.
    Nonsense,
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
    /// Always limits: for the time when [`limiter`] says that there is load.
    cookies: RateLimiter,
    stamps: Arc<Stamps>,
}

impl Identity {
    pub(crate) fn new(key: &NodePrivateKey, stamps: Stamps) -> Self {
        Self::stamped(key, Arc::new(stamps))
    }

    /// The same end with another key.
    pub(crate) fn with_key(&self, key: &NodePrivateKey) -> Self {
        Self::stamped(key, Arc::clone(&self.stamps))
    }

    fn stamped(key: &NodePrivateKey, stamps: Arc<Stamps>) -> Self {
        let secret = key.secret().clone();
        let public = PublicKey::from(&secret);
        let limiter = Arc::new(RateLimiter::new(&public, u64::MAX));
        let cookies = RateLimiter::new(&public, 0);
        Self {
            secret,
            public,
            limiter,
            cookies,
            stamps,
        }
    }

    /// Whether the message was made by someone who knows this node's key (mac1).
    pub(crate) fn is_meant(&self, datagram: &[u8]) -> bool {
        let mut cookie = [0; 64];
        self.limiter
            .verify_packet(None, datagram, &mut cookie)
            .is_ok()
    }

    /// Whether the message carries the cookie of this endpoint; if not, `reply` gets it.
    pub(crate) fn prove(&self, from: SocketAddr, datagram: &[u8], reply: &mut [u8; 64]) -> Proof {
        let bound = IpAddr::V6(bound_to(from));
        match self.cookies.verify_packet(Some(bound), datagram, reply) {
            Ok(_) => Proof::Given,
            Err(TunnResult::WriteToNetwork(reply)) => Proof::Missing(reply.len()),
            Err(
                TunnResult::Done
                | TunnResult::Err(_)
                | TunnResult::WriteToTunnelV4(..)
                | TunnResult::WriteToTunnelV6(..),
            ) => Proof::Nonsense,
        }
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

/// boringtun binds a cookie to an IP address; with this one it is bound to address and port (WireGuard paper, 5.4.7).
fn bound_to(from: SocketAddr) -> Ipv6Addr {
    let hash = Sha256::new().chain_update(b"proxima cookie\0");
    let hash = match from.ip() {
        IpAddr::V4(ip) => hash.chain_update([4]).chain_update(ip.octets()),
        IpAddr::V6(ip) => hash.chain_update([6]).chain_update(ip.octets()),
    };
    let hash = hash.chain_update(from.port().to_be_bytes()).finalize();
    let mut octets = [0; 16];
    octets.copy_from_slice(&hash[..16]);
    Ipv6Addr::from(octets)
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
        let mut tunn = Tunn::new(
            identity.secret.clone(),
            PublicKey::from(*peer.as_bytes()),
            None,
            // Both ends of a persistent keepalive fight over who begins the next handshake.
            None,
            index,
            Some(Arc::clone(&identity.limiter)),
        );
        tunn.set_stamps(Arc::<Stamps>::clone(&identity.stamps));
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
        if out.len() < HANDSHAKE_LEN_MAX.max(packet.len() + DATA_OVERHEAD_LEN) {
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
        let is_data = matches!(kind, Kind::Data(_));
        // `Tunn` adds to the counter of an authentic datagram without a look at how near its end is.
        if is_data && !has_valid_counter(datagram) {
            return Read::Refused(DropReason::NotAuthentic);
        }
        match self.tunn.decapsulate(Some(from), datagram, out) {
            TunnResult::WriteToTunnelV4(packet, _) | TunnResult::WriteToTunnelV6(packet, _) => {
                Read::Packet(packet.len())
            }
            TunnResult::WriteToNetwork(reply) => Read::Reply(reply.len()),
            TunnResult::Done if is_data => Read::Keepalive,
            TunnResult::Done => Read::Cookie,
            // `Kind::of` has let only whole messages through, so this is about what was sealed.
            TunnResult::Err(WireGuardError::InvalidPacket) if is_data => Read::Rubbish,
            TunnResult::Err(WireGuardError::WrongTai64nTimestamp) => Read::Old,
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

/// Whether a data message's counter is one that may be used (WireGuard paper, section 6.1).
fn has_valid_counter(datagram: &[u8]) -> bool {
    let counter = datagram.get(8..).and_then(<[u8]>::first_chunk);
    counter.is_some_and(|counter| u64::from_le_bytes(*counter) < REJECT_AFTER_MESSAGES)
}

#[cfg(test)]
mod tests;
