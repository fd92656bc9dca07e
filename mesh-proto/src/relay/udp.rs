//! Sealed packets between a node and a relay by UDP, beside their link. No I/O: bytes in, bytes out.
//!
//! The link is what proves who a node is: over it the relay gives a [`Token`] that nobody else knows. The node binds an
//! endpoint to it, and from then on each datagram of WireGuard data may travel by UDP, behind a header. All else, such as
//! handshakes and path discovery, stays on the link.
//!
//! ```text
//! node                                                   relay
//!   │ Bind (token, cookie), padded to BIND_LEN ──────────► │
//!   │ ◄────────── Cookie (tag, cookie) when it is not that of this endpoint
//!   │ ◄────────── Bound (tag)          when it is
//!   │ Data (tag, alias of the receiver) ‖ datagram ──────► │ ──► Data (tag of the receiver, alias of the sender) ‖ datagram
//! ```
//!
//! - A datagram counts only from the endpoint that was bound by its token, and an endpoint is bound only when the cookie
//!   that was sent there came back: nobody can have packets sent to an endpoint where he does not receive.
//! - An answer is never longer than what it answers, a datagram is forwarded once, and what has no valid token is answered
//!   by nothing: there is nothing to amplify.
//! - What is replayed or changed on the way is at most as harmful as on a direct path: the datagrams inside are sealed by
//!   their sender, with counters, for their receiver.
//!
//! Every datagram begins with a byte that no WireGuard, STUN or disco message begins with.

use std::fmt;

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::Pin;
use crate::key::NodeKey;

/// Bytes before the datagram in a `Data`.
pub const UDP_HEADER_LEN: usize = 20;
/// The longest datagram that goes by UDP. With the header it fits 1,500 bytes under IPv6.
pub const UDP_DATAGRAM_MAX: usize = 1_432;
/// The length of a `Bind`: what comes back proves that the longest `Data` passes too.
pub const BIND_LEN: usize = UDP_HEADER_LEN + UDP_DATAGRAM_MAX;

const MAGIC: [u8; 3] = [0xd6, b'p', 1];
const KIND_AT: usize = MAGIC.len();
const TAG_AT: usize = KIND_AT + 1;
const TAG_LEN: usize = 8;
const ALIAS_AT: usize = TAG_AT + TAG_LEN;
const ALIAS_LEN: usize = 8;
const COOKIE_LEN: usize = 16;
const TOKEN_LEN: usize = 16;
const BIND: u8 = 1;
const COOKIE: u8 = 2;
const BOUND: u8 = 3;
const DATA: u8 = 4;
const ALIAS_CONTEXT: &[u8] = b"proxima relay alias v1\0";

/// What a relay gives a node over its link; whoever knows it may bind an endpoint for that link.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Token([u8; TOKEN_LEN]);

/// The part of a token that each datagram carries.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag([u8; TAG_LEN]);

/// A node as the relay's UDP names it: short, and telling nothing to those who do not know its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Alias([u8; ALIAS_LEN]);

/// What proves to a relay that a node receives at an endpoint.
pub type Cookie = [u8; COOKIE_LEN];

impl Token {
    /// The length in bytes.
    pub const LEN: usize = TOKEN_LEN;

    /// Takes bytes of the system's random source.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        Self(bytes)
    }

    /// The raw bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }

    /// The part that each datagram carries.
    #[must_use]
    pub fn tag(&self) -> Tag {
        let mut tag = [0; TAG_LEN];
        tag.copy_from_slice(self.0.split_at(TAG_LEN).0);
        Tag(tag)
    }

    /// Whether it is the same; takes the same time either way.
    #[must_use]
    pub fn is_same(&self, other: &[u8; Self::LEN]) -> bool {
        self.0[..].ct_eq(&other[..]).into()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token([redacted])")
    }
}

impl fmt::Debug for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tag([redacted])")
    }
}

impl Alias {
    /// The alias of a node at the relay of this pin.
    #[must_use]
    pub fn of(relay: &Pin, node: &NodeKey) -> Self {
        let digest = Sha256::new()
            .chain_update(ALIAS_CONTEXT)
            .chain_update(relay.as_bytes())
            .chain_update(node.as_bytes())
            .finalize();
        let mut alias = [0; ALIAS_LEN];
        alias.copy_from_slice(digest.split_at(ALIAS_LEN).0);
        Self(alias)
    }
}

/// One datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UdpMessage<'a> {
    /// Node to relay: my datagrams come from here.
    Bind {
        /// The whole token.
        token: &'a [u8; Token::LEN],
        /// The last cookie; any bytes at first.
        cookie: &'a Cookie,
    },
    /// Relay to node: bind again with this.
    Cookie {
        /// Of the node's token.
        tag: Tag,
        /// For the endpoint that this is sent to.
        cookie: &'a Cookie,
    },
    /// Relay to node: bound.
    Bound {
        /// Of the node's token.
        tag: Tag,
    },
    /// Either way: sealed data.
    Data {
        /// Of the node's token.
        tag: Tag,
        /// The other node.
        alias: Alias,
        /// What is sealed.
        datagram: &'a [u8],
    },
}

/// Whether a datagram may be one of a relay's UDP: a look at its first bytes.
#[must_use]
pub fn is_relay_udp(datagram: &[u8]) -> bool {
    datagram.starts_with(&MAGIC)
}

impl<'a> UdpMessage<'a> {
    /// Reads a datagram; `None` for all that is not one of these.
    #[must_use]
    pub fn parse(datagram: &'a [u8]) -> Option<Self> {
        let rest = datagram.strip_prefix(&MAGIC)?;
        let (kind, rest) = rest.split_first()?;
        if *kind == BIND {
            let (token, rest) = rest.split_first_chunk()?;
            let cookie = rest.first_chunk()?;
            return (datagram.len() == BIND_LEN).then_some(Self::Bind { token, cookie });
        }
        let (tag, rest) = rest.split_first_chunk()?;
        let tag = Tag(*tag);
        match *kind {
            COOKIE => Some(Self::Cookie {
                tag,
                cookie: rest.first_chunk()?,
            }),
            BOUND => Some(Self::Bound { tag }),
            DATA => {
                let (alias, datagram) = rest.split_first_chunk()?;
                (!datagram.is_empty()).then_some(Self::Data {
                    tag,
                    alias: Alias(*alias),
                    datagram,
                })
            }
            _ => None,
        }
    }
}

/// A whole `Bind`.
#[must_use]
pub fn bind(token: &Token, cookie: &Cookie) -> Vec<u8> {
    let mut datagram = Vec::with_capacity(BIND_LEN);
    datagram.extend(MAGIC);
    datagram.push(BIND);
    datagram.extend(token.as_bytes());
    datagram.extend(cookie);
    datagram.resize(BIND_LEN, 0);
    datagram
}

/// A whole `Cookie`.
#[must_use]
pub fn cookie(tag: Tag, cookie: &Cookie) -> Vec<u8> {
    let mut datagram = headed(COOKIE, tag);
    datagram.extend(cookie);
    datagram
}

/// A whole `Bound`.
#[must_use]
pub fn bound(tag: Tag) -> Vec<u8> {
    headed(BOUND, tag)
}

fn headed(kind: u8, tag: Tag) -> Vec<u8> {
    let mut datagram = Vec::with_capacity(UDP_HEADER_LEN + COOKIE_LEN);
    datagram.extend(MAGIC);
    datagram.push(kind);
    datagram.extend(tag.0);
    datagram
}

/// The header of a `Data`.
#[must_use]
pub fn data_header(tag: Tag, alias: Alias) -> [u8; UDP_HEADER_LEN] {
    let mut header = [0; UDP_HEADER_LEN];
    header[..KIND_AT].copy_from_slice(&MAGIC);
    header[KIND_AT] = DATA;
    header[TAG_AT..ALIAS_AT].copy_from_slice(&tag.0);
    header[ALIAS_AT..].copy_from_slice(&alias.0);
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> Token {
        Token::from_bytes([7; 16])
    }

    #[test]
    fn each_message_is_read_as_it_was_written() {
        let (token, made) = (token(), [9; 16]);
        let tag = token.tag();
        let datagram = bind(&token, &made);
        assert_eq!(datagram.len(), BIND_LEN);
        let read = UdpMessage::parse(&datagram);
        assert_eq!(
            read,
            Some(UdpMessage::Bind {
                token: &[7; 16],
                cookie: &made
            })
        );
        assert!(UdpMessage::parse(&datagram[..BIND_LEN - 1]).is_none());
        let answer = cookie(tag, &made);
        assert_eq!(
            UdpMessage::parse(&answer),
            Some(UdpMessage::Cookie { tag, cookie: &made })
        );
        let last = bound(tag);
        assert_eq!(UdpMessage::parse(&last), Some(UdpMessage::Bound { tag }));
        assert!(answer.len() < BIND_LEN && last.len() < BIND_LEN);
        let alias = Alias::of(&Pin::from_bytes([1; 32]), &NodeKey::from_bytes([2; 32]));
        let mut data = data_header(tag, alias).to_vec();
        assert!(UdpMessage::parse(&data).is_none(), "nothing inside");
        data.extend([4, 0, 0, 0]);
        let read = UdpMessage::parse(&data);
        let datagram = &[4, 0, 0, 0][..];
        assert_eq!(
            read,
            Some(UdpMessage::Data {
                tag,
                alias,
                datagram
            })
        );
    }

    #[test]
    fn no_other_protocol_of_the_socket_is_taken_for_it() {
        let disco = crate::disco::MAGIC;
        for first in [&[1, 0, 0, 0][..], &[4, 0, 0, 0], &[0, 1, 0, 0], &disco, &[]] {
            assert!(!is_relay_udp(first));
            assert!(UdpMessage::parse(first).is_none());
        }
        assert!(is_relay_udp(&bound(token().tag())));
    }

    #[test]
    fn an_alias_is_of_one_node_at_one_relay() {
        let (pin, other) = (Pin::from_bytes([1; 32]), Pin::from_bytes([2; 32]));
        let (a, b) = (NodeKey::from_bytes([3; 32]), NodeKey::from_bytes([4; 32]));
        assert_ne!(Alias::of(&pin, &a), Alias::of(&pin, &b));
        assert_ne!(Alias::of(&pin, &a), Alias::of(&other, &a));
    }

    #[test]
    fn secrets_are_not_printed() {
        let text = format!("{:?} {:?}", token(), token().tag());
        assert_eq!(text, "Token([redacted]) Tag([redacted])");
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read(mut bytes in proptest::collection::vec(proptest::arbitrary::any::<u8>(), 0..60), kind in 0_u8..6) {
            let _ = UdpMessage::parse(&bytes);
            for (byte, magic) in bytes.iter_mut().zip(MAGIC.into_iter().chain([kind])) {
                *byte = magic;
            }
            let _ = UdpMessage::parse(&bytes);
        }
    }
}
