//! Path discovery between two nodes: ping, pong and call-me-maybe, sealed to disco keys, on the WireGuard socket.
//!
//! A message is `magic (6) ‖ sender's disco key (32) ‖ nonce (24) ‖ sealed`, where `sealed` is XChaCha20-Poly1305 over
//! `type (1) ‖ body` under a key of its own for each direction: SHA-256 over a context, the X25519 secret of the two disco
//! keys, the sender's and the receiver's key. Nonces are random. The sender's key stands in the open, so that a receiver
//! looks it up before it does any arithmetic. The magic begins with a byte above 0x7f: WireGuard's messages begin with 1
//! to 4, STUN's with a byte below 0x40.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use chacha20poly1305::aead::Aead as _;
use chacha20poly1305::{Key, KeyInit as _, XChaCha20Poly1305, XNonce};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use x25519_dalek::PublicKey;

use crate::control::{Candidate, CandidateKind};
use crate::key::{DiscoKey, DiscoPrivateKey};

/// What each message begins with; its last byte is the version.
pub const MAGIC: [u8; 6] = [0xd5, b'p', b'r', b'o', b'x', 1];

/// The most endpoints in one call-me-maybe.
pub const N_ENDPOINTS_MAX: usize = 24;

/// The longest message: a ping that probes the path MTU.
pub const MESSAGE_LEN_MAX: usize = 9000;

const KEY_AT: usize = MAGIC.len();
const NONCE_AT: usize = KEY_AT + 32;
const SEALED_AT: usize = NONCE_AT + NONCE_LEN;
const TAG_LEN: usize = 16;
const ENDPOINT_LEN: usize = 18;

/// The length of a pong. A shorter ping is not answered: nobody gets more than he sends.
pub const PONG_LEN: u16 = 109;

/// Random bytes that each message needs.
pub const NONCE_LEN: usize = 24;

/// What a pong repeats of its ping.
pub type PingId = [u8; 12];

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Asks for a pong, along the way that it came.
    Ping {
        /// What the pong must repeat.
        id: PingId,
        /// The datagram is padded to this length; shorter than the ping itself pads nothing.
        datagram_len: u16,
    },
    /// Answers a ping.
    Pong {
        /// The ping's.
        id: PingId,
        /// Where the ping came from.
        seen: SocketAddr,
    },
    /// Asks the receiver to ping the sender at these endpoints, for the sender is pinging too. Sent by a relay.
    CallMeMaybe {
        /// How the sender's NAT maps.
        mapping: Mapping,
        /// Where it may be, best first.
        endpoints: Vec<Candidate>,
    },
}

/// How a NAT picks the outer endpoint of a flow (RFC 4787, section 4.1).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mapping {
    /// Not found out.
    #[default]
    Unknown,
    /// There is no NAT, or it takes one endpoint for all destinations.
    EndpointIndependent,
    /// Another destination gets another endpoint, so that no peer can be told where to send.
    EndpointDependent,
}

/// Why a datagram was not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DiscoError {
    /// Not a message, or from another sender.
    #[error("not a disco message of this sender")]
    NotOurs,
    /// Forged, changed on the way, or sealed to another key.
    #[error("the disco message does not open")]
    NotAuthentic,
    /// Sealed by the sender, and yet of a kind or form that this program does not know.
    #[error("the disco message is of a form that is not known")]
    Unknown,
}

/// Whether a datagram is meant to be a disco message.
#[must_use]
pub fn is_disco(datagram: &[u8]) -> bool {
    datagram.len() > SEALED_AT + TAG_LEN && datagram.starts_with(&MAGIC)
}

/// Who says that it sent a message.
#[must_use]
pub fn sender(datagram: &[u8]) -> Option<DiscoKey> {
    if !is_disco(datagram) {
        return None;
    }
    let key = datagram.get(KEY_AT..NONCE_AT)?.try_into().ok()?;
    Some(DiscoKey::from_bytes(key))
}

/// What two nodes seal their messages with.
#[derive(Clone)]
pub struct DiscoSeal {
    own: DiscoKey,
    peer: DiscoKey,
    tx: XChaCha20Poly1305,
    rx: XChaCha20Poly1305,
}

impl DiscoSeal {
    /// Agrees on the keys; `None` when the peer's is not a key that anybody can hold.
    #[must_use]
    pub fn new(own: &DiscoPrivateKey, peer: &DiscoKey) -> Option<Self> {
        let secret = own
            .secret()
            .diffie_hellman(&PublicKey::from(*peer.as_bytes()));
        if !secret.was_contributory() {
            return None;
        }
        let own = own.public();
        let cipher = |from: &DiscoKey, to: &DiscoKey| {
            let key: [u8; 32] = Sha256::new()
                .chain_update(b"proxima disco v1\0")
                .chain_update(secret.as_bytes())
                .chain_update(from.as_bytes())
                .chain_update(to.as_bytes())
                .finalize()
                .into();
            XChaCha20Poly1305::new(Key::from_slice(&key))
        };
        Some(Self {
            own,
            peer: *peer,
            tx: cipher(&own, peer),
            rx: cipher(peer, &own),
        })
    }

    /// The datagram of a message. The nonce must be random.
    #[must_use]
    pub fn seal(&self, nonce: &[u8; NONCE_LEN], message: &Message) -> Vec<u8> {
        let body = message.encode();
        let sealed = self
            .tx
            .encrypt(XNonce::from_slice(nonce), body.as_slice())
            .expect("a message is far shorter than what the cipher takes");
        let mut datagram = Vec::with_capacity(SEALED_AT + sealed.len());
        datagram.extend(MAGIC);
        datagram.extend(self.own.as_bytes());
        datagram.extend(nonce);
        datagram.extend(sealed);
        datagram
    }

    /// Reads a datagram of the peer.
    ///
    /// # Errors
    /// [`DiscoError`] when it is not one, or says nothing that is understood.
    pub fn open(&self, datagram: &[u8]) -> Result<Message, DiscoError> {
        if sender(datagram) != Some(self.peer) || datagram.len() > MESSAGE_LEN_MAX {
            return Err(DiscoError::NotOurs);
        }
        let (nonce, sealed) = datagram
            .get(NONCE_AT..)
            .and_then(|rest| rest.split_at_checked(NONCE_LEN))
            .ok_or(DiscoError::NotOurs)?;
        let body = self
            .rx
            .decrypt(XNonce::from_slice(nonce), sealed)
            .map_err(|_| DiscoError::NotAuthentic)?;
        Message::decode(&body, datagram.len()).ok_or(DiscoError::Unknown)
    }
}

impl fmt::Debug for DiscoSeal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiscoSeal")
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}

impl Message {
    fn encode(&self) -> Vec<u8> {
        match self {
            Self::Ping { id, datagram_len } => {
                let mut body = vec![1];
                body.extend(id);
                let wanted = usize::from(*datagram_len).min(MESSAGE_LEN_MAX);
                let padded = wanted.saturating_sub(SEALED_AT + TAG_LEN);
                body.resize(body.len().max(padded), 0);
                body
            }
            Self::Pong { id, seen } => {
                let mut body = vec![2];
                body.extend(id);
                put_endpoint(&mut body, *seen);
                body
            }
            Self::CallMeMaybe { mapping, endpoints } => {
                let mut body = vec![3, mapping.to_byte()];
                for candidate in endpoints.iter().take(N_ENDPOINTS_MAX) {
                    body.push(kind_to_byte(candidate.kind));
                    put_endpoint(&mut body, candidate.endpoint);
                }
                body
            }
        }
    }

    fn decode(body: &[u8], datagram_len: usize) -> Option<Self> {
        let (kind, rest) = body.split_first()?;
        match kind {
            1 => Some(Self::Ping {
                id: *rest.first_chunk()?,
                datagram_len: u16::try_from(datagram_len).ok()?,
            }),
            2 => {
                let (id, seen) = rest.split_first_chunk()?;
                let seen = take_endpoint(seen.first_chunk()?);
                Some(Self::Pong { id: *id, seen })
            }
            3 => {
                let (mapping, list) = rest.split_first()?;
                let mut endpoints = Vec::new();
                // A sender of a later version may tell more than this one keeps.
                for entry in list.chunks_exact(1 + ENDPOINT_LEN).take(N_ENDPOINTS_MAX) {
                    let (kind, endpoint) = entry.split_first()?;
                    endpoints.push(Candidate {
                        kind: kind_of_byte(*kind),
                        endpoint: take_endpoint(endpoint.first_chunk()?),
                    });
                }
                let mapping = Mapping::of_byte(*mapping);
                Some(Self::CallMeMaybe { mapping, endpoints })
            }
            _ => None,
        }
    }
}

impl Mapping {
    const fn to_byte(self) -> u8 {
        match self {
            Self::Unknown => 0,
            Self::EndpointIndependent => 1,
            Self::EndpointDependent => 2,
        }
    }

    const fn of_byte(byte: u8) -> Self {
        match byte {
            1 => Self::EndpointIndependent,
            2 => Self::EndpointDependent,
            _ => Self::Unknown,
        }
    }
}

const fn kind_to_byte(kind: CandidateKind) -> u8 {
    match kind {
        CandidateKind::Other => 0,
        CandidateKind::Interface => 1,
        CandidateKind::PortMapped => 2,
        CandidateKind::ServerReflexive => 3,
    }
}

const fn kind_of_byte(byte: u8) -> CandidateKind {
    match byte {
        1 => CandidateKind::Interface,
        2 => CandidateKind::PortMapped,
        3 => CandidateKind::ServerReflexive,
        _ => CandidateKind::Other,
    }
}

/// IPv4 goes as an IPv4-mapped IPv6 address.
fn put_endpoint(body: &mut Vec<u8>, endpoint: SocketAddr) {
    let ip = match endpoint.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    body.extend(ip.octets());
    body.extend(endpoint.port().to_be_bytes());
}

fn take_endpoint(bytes: &[u8; ENDPOINT_LEN]) -> SocketAddr {
    let mut octets = [0; 16];
    octets.copy_from_slice(&bytes[..16]);
    let ip = Ipv6Addr::from(octets).to_canonical();
    SocketAddr::new(ip, u16::from_be_bytes([bytes[16], bytes[17]]))
}

#[cfg(test)]
mod tests;
