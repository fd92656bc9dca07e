//! The frames between a node and a relay. No I/O: bytes in, frames out.
//!
//! A node reaches a relay by an HTTP upgrade to [`UPGRADE`] at [`PATH`]. From then on both ends send frames:
//!
//! ```text
//! kind (1) ‖ length of the payload, big-endian (3) ‖ payload
//! ```
//!
//! The numbers of kinds are never given to another frame. A kind that an end does not know is skipped, and so is what
//! follows the known fields of a payload that may grow.
//!
//! ```text
//! node                                  relay
//!   │ ◄──────────────────────── Challenge │  a fresh X25519 key
//!   │ Hello (node key, proof) ──────────► │  is the key one of the mesh, does the proof hold?
//!   │ ◄───────────────── Welcome | Denied │
//!   │ Send (to) ────────────────────────► │ ──► Received (from) at the other node
//! ```
//!
//! Datagrams of one length travel as one frame, as UDP segmentation offload takes and gives them: [`Datagrams`]. What a
//! relay forwards it does not copy: [`turn_round`] makes a `Received` out of a `Send` in place.

use super::proof::Proof;
use super::udp::Token;
use crate::key::NodeKey;

/// The route of the upgrade.
pub const PATH: &str = "/relay/v1";
/// The protocol of the upgrade (`upgrade:` header).
pub const UPGRADE: &str = "proxima-relay";
/// The version that a challenge and a hello carry.
pub const VERSION: u8 = 1;

/// Bytes before a payload.
pub const HEADER_LEN: usize = 4;
/// Bytes of a `Send` or `Received` before its datagrams, the header included.
pub const DATAGRAMS_AT: usize = HEADER_LEN + KEY_LEN + 2;
/// The most bytes of datagrams in one frame.
pub const CONTENTS_MAX: usize = 65_535;
/// The most datagrams in one frame.
pub const N_DATAGRAMS_MAX: usize = 256;
/// No frame is longer, its header included.
pub const FRAME_MAX: usize = DATAGRAMS_AT + CONTENTS_MAX;
/// No frame of the handshake is longer, its header included: what a relay takes from somebody unknown.
pub const HELLO_MAX: usize = 512;

/// A node pings when it heard nothing for this long.
pub const PING_EVERY_MS: u64 = 10_000;
/// A ping that is not answered by then is missed; two in a row and the link is dead.
pub const PONG_DEADLINE_MS: u64 = 2_500;
/// A relay ends a connection from which it heard nothing for this long.
pub const SILENCE_MAX_MS: u64 = 45_000;

const KEY_LEN: usize = 32;
const PING_LEN: usize = 8;

/// Data of at most this length per datagram goes before larger ones: pings, acknowledgements, questions to a resolver.
const SMALL_MAX: usize = 256;
/// The first byte of WireGuard's data messages; all else on a path is handshake or path discovery.
const WIREGUARD_DATA: u8 = 4;
/// Handshakes and path discovery are never longer.
const CONTROL_MAX: usize = 1024;

/// Why bytes are not a frame. Whoever reads them from a stream cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Longer than any frame.
    #[error("a frame of {0} bytes is longer than any")]
    TooLong(usize),
    /// A known kind whose payload is not as it must be.
    #[error("a frame of kind {0} has a wrong payload")]
    Malformed(u8),
}

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// Relay to node, first.
    Challenge = 1,
    /// Node to relay, second.
    Hello = 2,
    /// Relay to node: it is in.
    Welcome = 3,
    /// Relay to node: it is not in, and the connection ends.
    Denied = 4,
    /// Node to relay: datagrams for another node.
    Send = 5,
    /// Relay to node: datagrams of another node.
    Received = 6,
    /// Relay to node: another node is not here.
    PeerGone = 7,
    /// Either way.
    Ping = 8,
    /// Either way.
    Pong = 9,
    /// Relay to node: how the connection is.
    Health = 10,
    /// Relay to node: it stops, and comes back.
    Restarting = 11,
    /// Relay to node: it reads no more for a time.
    RateLimited = 12,
    /// Relay to node: sealed data may go by UDP too.
    UdpOffer = 13,
    /// Node to relay: send nothing by UDP any more.
    UdpOff = 14,
}

impl Kind {
    const ALL: [Self; 14] = [
        Self::Challenge,
        Self::Hello,
        Self::Welcome,
        Self::Denied,
        Self::Send,
        Self::Received,
        Self::PeerGone,
        Self::Ping,
        Self::Pong,
        Self::Health,
        Self::Restarting,
        Self::RateLimited,
        Self::UdpOffer,
        Self::UdpOff,
    ];

    fn of(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == number)
    }
}

/// Why a node is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denial {
    /// The node key is not one of the mesh, as far as the relay knows.
    NotRegistered,
    /// The proof does not hold.
    BadProof,
    /// The relay speaks another version.
    Version,
    /// The relay is full.
    Full,
    /// One that this build does not know.
    Other(u8),
}

impl Denial {
    const fn number(self) -> u8 {
        match self {
            Self::NotRegistered => 1,
            Self::BadProof => 2,
            Self::Version => 3,
            Self::Full => 4,
            Self::Other(number) => number,
        }
    }

    const fn of(number: u8) -> Self {
        match number {
            1 => Self::NotRegistered,
            2 => Self::BadProof,
            3 => Self::Version,
            4 => Self::Full,
            number => Self::Other(number),
        }
    }
}

/// How a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// As it should be.
    Well,
    /// A newer connection has the same node key: this one receives nothing while that lasts.
    Duplicate,
    /// The node key is not one of the mesh any more; the connection ends.
    Removed,
    /// One that this build does not know.
    Other(u8),
}

impl Health {
    const fn number(self) -> u8 {
        match self {
            Self::Well => 0,
            Self::Duplicate => 1,
            Self::Removed => 2,
            Self::Other(number) => number,
        }
    }

    const fn of(number: u8) -> Self {
        match number {
            0 => Self::Well,
            1 => Self::Duplicate,
            2 => Self::Removed,
            number => Self::Other(number),
        }
    }
}

/// Datagrams of one length in a row; the last may be shorter. Never empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Datagrams<'a> {
    stride: u16,
    contents: &'a [u8],
}

impl<'a> Datagrams<'a> {
    /// Takes datagrams of `stride` bytes each; `None` when there are none, too many or too long ones.
    #[must_use]
    pub fn new(contents: &'a [u8], stride: usize) -> Option<Self> {
        let stride = u16::try_from(stride).ok().filter(|stride| *stride > 0)?;
        let n = contents.len().div_ceil(usize::from(stride));
        (n > 0 && n <= N_DATAGRAMS_MAX && contents.len() <= CONTENTS_MAX)
            .then_some(Self { stride, contents })
    }

    /// All bytes in a row.
    #[must_use]
    pub const fn contents(&self) -> &'a [u8] {
        self.contents
    }

    /// The length of each datagram but the last.
    #[must_use]
    pub fn stride(&self) -> usize {
        usize::from(self.stride)
    }

    /// How many there are.
    #[must_use]
    pub fn n_datagrams(&self) -> usize {
        self.contents.len().div_ceil(self.stride())
    }

    /// Each datagram.
    pub fn iter(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        self.contents.chunks(self.stride())
    }

    /// Whether they go before bulk where something must wait: handshakes, path discovery and small packets.
    #[must_use]
    pub fn is_urgent(&self) -> bool {
        let longest = self.stride().min(self.contents.len());
        let is_data = self.contents.first() == Some(&WIREGUARD_DATA);
        longest <= if is_data { SMALL_MAX } else { CONTROL_MAX }
    }
}

/// One frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame<'a> {
    /// The relay's fresh public key, to prove the node key with.
    Challenge {
        /// The version it speaks.
        version: u8,
        /// An X25519 public key for this connection alone.
        challenge: [u8; KEY_LEN],
    },
    /// Who the node is.
    Hello {
        /// The version it speaks.
        version: u8,
        /// Its node key.
        node: NodeKey,
        /// That it holds it ([`super::prove`]).
        proof: Proof,
    },
    /// The node is in.
    Welcome {
        /// How many bytes a second the relay takes from it; 0 for any.
        bytes_per_second: u64,
    },
    /// The node is not in.
    Denied {
        /// Why.
        reason: Denial,
        /// When to try again at the earliest.
        retry_after_ms: u32,
    },
    /// Datagrams for another node.
    Send {
        /// Whose.
        to: NodeKey,
        /// What.
        datagrams: Datagrams<'a>,
    },
    /// Datagrams of another node.
    Received {
        /// Who sent them, as the relay knows it.
        from: NodeKey,
        /// What.
        datagrams: Datagrams<'a>,
    },
    /// Another node is not connected to this relay: what was sent to it is lost.
    PeerGone {
        /// Who.
        node: NodeKey,
    },
    /// To be answered by a pong with the same bytes.
    Ping([u8; PING_LEN]),
    /// The answer to a ping.
    Pong([u8; PING_LEN]),
    /// How the connection is, told when that changes.
    Health(Health),
    /// The relay stops.
    Restarting {
        /// When to come back at the earliest.
        reconnect_in_ms: u32,
        /// How long to try before looking elsewhere.
        try_for_ms: u32,
    },
    /// The node sent more than it may: the relay reads nothing of it for a time.
    RateLimited {
        /// How long.
        pause_ms: u32,
    },
    /// Sealed data may go by UDP too ([`super::UdpMessage`]).
    UdpOffer {
        /// To one of the relay's STUN endpoints, the one of this port.
        port: u16,
        /// What binds an endpoint to this connection.
        token: Token,
    },
    /// What the node bound receives nothing any more.
    UdpOff,
    /// A kind that this build does not know.
    Unknown(u8),
}

/// Looks for a frame at the start of what was read: its whole length when it is all there.
///
/// # Errors
/// [`FrameError::TooLong`] when it announces more than `max` bytes: what follows is not understood either.
pub fn frame_len(read: &[u8], max: usize) -> Result<Option<usize>, FrameError> {
    let Some(header) = read.first_chunk::<HEADER_LEN>() else {
        return Ok(None);
    };
    let [_, a, b, c] = *header;
    let len = HEADER_LEN + u32::from_be_bytes([0, a, b, c]) as usize;
    if len > max.min(FRAME_MAX) {
        return Err(FrameError::TooLong(len));
    }
    Ok((read.len() >= len).then_some(len))
}

/// Makes a whole `Send` frame the `Received` frame of its sender, in place.
///
/// `false`, and nothing changed, when it is no `Send`.
#[must_use]
pub fn turn_round(frame: &mut [u8], from: &NodeKey) -> bool {
    let Some((head, _)) = frame.split_first_chunk_mut::<DATAGRAMS_AT>() else {
        return false;
    };
    if head[0] != Kind::Send as u8 {
        return false;
    }
    head[0] = Kind::Received as u8;
    head[HEADER_LEN..HEADER_LEN + KEY_LEN].copy_from_slice(from.as_bytes());
    true
}

impl<'a> Frame<'a> {
    /// Reads one whole frame, as [`frame_len`] found it.
    ///
    /// # Errors
    /// [`FrameError`] when it is of a known kind and not as that must be.
    pub fn parse(frame: &'a [u8]) -> Result<Self, FrameError> {
        let (header, payload) = frame
            .split_first_chunk::<HEADER_LEN>()
            .ok_or(FrameError::Malformed(0))?;
        let number = header[0];
        let Some(kind) = Kind::of(number) else {
            return Ok(Self::Unknown(number));
        };
        Self::read(kind, payload).ok_or(FrameError::Malformed(number))
    }

    fn read(kind: Kind, mut payload: &'a [u8]) -> Option<Self> {
        let rest = &mut payload;
        Some(match kind {
            Kind::Challenge => Self::Challenge {
                version: u8::from_be_bytes(take(rest)?),
                challenge: take(rest)?,
            },
            Kind::Hello => Self::Hello {
                version: u8::from_be_bytes(take(rest)?),
                node: NodeKey::from_bytes(take(rest)?),
                proof: Proof(take(rest)?),
            },
            Kind::Welcome => Self::Welcome {
                bytes_per_second: u64::from_be_bytes(take(rest)?),
            },
            Kind::Denied => Self::Denied {
                reason: Denial::of(u8::from_be_bytes(take(rest)?)),
                retry_after_ms: u32::from_be_bytes(take(rest)?),
            },
            Kind::Send | Kind::Received => {
                let node = NodeKey::from_bytes(take(rest)?);
                let stride = u16::from_be_bytes(take(rest)?);
                let datagrams = Datagrams::new(rest, usize::from(stride))?;
                if kind == Kind::Send {
                    Self::Send {
                        to: node,
                        datagrams,
                    }
                } else {
                    Self::Received {
                        from: node,
                        datagrams,
                    }
                }
            }
            Kind::PeerGone => Self::PeerGone {
                node: NodeKey::from_bytes(take(rest)?),
            },
            Kind::Ping => Self::Ping(take(rest)?),
            Kind::Pong => Self::Pong(take(rest)?),
            Kind::Health => Self::Health(Health::of(u8::from_be_bytes(take(rest)?))),
            Kind::Restarting => Self::Restarting {
                reconnect_in_ms: u32::from_be_bytes(take(rest)?),
                try_for_ms: u32::from_be_bytes(take(rest)?),
            },
            Kind::RateLimited => Self::RateLimited {
                pause_ms: u32::from_be_bytes(take(rest)?),
            },
            Kind::UdpOffer => Self::UdpOffer {
                port: u16::from_be_bytes(take(rest)?),
                token: Token::from_bytes(take(rest)?),
            },
            Kind::UdpOff => Self::UdpOff,
        })
    }

    /// Writes the frame behind what `out` holds.
    pub fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Challenge { version, challenge } => {
                put(out, Kind::Challenge as u8, &[&[*version], challenge]);
            }
            Self::Hello {
                version,
                node,
                proof,
            } => put(
                out,
                Kind::Hello as u8,
                &[&[*version], node.as_bytes(), &proof.0],
            ),
            Self::Welcome { bytes_per_second } => {
                put(out, Kind::Welcome as u8, &[&bytes_per_second.to_be_bytes()]);
            }
            Self::Denied {
                reason,
                retry_after_ms,
            } => put(
                out,
                Kind::Denied as u8,
                &[&[reason.number()], &retry_after_ms.to_be_bytes()],
            ),
            Self::Send { to, datagrams } => put_datagrams(out, Kind::Send, to, *datagrams),
            Self::Received { from, datagrams } => {
                put_datagrams(out, Kind::Received, from, *datagrams);
            }
            Self::PeerGone { node } => put(out, Kind::PeerGone as u8, &[node.as_bytes()]),
            Self::Ping(bytes) => put(out, Kind::Ping as u8, &[bytes]),
            Self::Pong(bytes) => put(out, Kind::Pong as u8, &[bytes]),
            Self::Health(health) => put(out, Kind::Health as u8, &[&[health.number()]]),
            Self::Restarting {
                reconnect_in_ms,
                try_for_ms,
            } => put(
                out,
                Kind::Restarting as u8,
                &[&reconnect_in_ms.to_be_bytes(), &try_for_ms.to_be_bytes()],
            ),
            Self::RateLimited { pause_ms } => {
                put(out, Kind::RateLimited as u8, &[&pause_ms.to_be_bytes()]);
            }
            Self::UdpOffer { port, token } => {
                put(
                    out,
                    Kind::UdpOffer as u8,
                    &[&port.to_be_bytes(), token.as_bytes()],
                );
            }
            Self::UdpOff => put(out, Kind::UdpOff as u8, &[]),
            Self::Unknown(kind) => put(out, *kind, &[]),
        }
    }

    /// The frame alone.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.write(&mut out);
        out
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk::<N>()?;
    *rest = tail;
    Some(*head)
}

fn put(out: &mut Vec<u8>, kind: u8, parts: &[&[u8]]) {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    // Nothing that this build writes comes near 2^24 bytes.
    let [_, a, b, c] = u32::try_from(len).unwrap_or(0).to_be_bytes();
    out.extend([kind, a, b, c]);
    for part in parts {
        out.extend_from_slice(part);
    }
}

fn put_datagrams(out: &mut Vec<u8>, kind: Kind, node: &NodeKey, datagrams: Datagrams<'_>) {
    put(
        out,
        kind as u8,
        &[
            node.as_bytes(),
            &datagrams.stride.to_be_bytes(),
            datagrams.contents,
        ],
    );
}

#[cfg(test)]
mod tests;
