//! Relays as the netmap names them, and what passes between a node and a relay.

mod feed;
mod frame;
mod proof;
mod udp;

use std::net::SocketAddr;

use data_encoding::BASE64URL_NOPAD;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::id::{IdError, RelayId, text_form};

pub use feed::{
    MEMBERS_CONTENT_TYPE, Member, MembersBody, MembersFrame, N_RELAY_URLS_MAX, PATH_RELAY_MEMBERS,
    PATH_RELAY_REGISTER, RelayOffer, RelayRegistered, RelayRegistration,
};
pub use frame::{
    CONTENTS_MAX, DATAGRAMS_AT, Datagrams, Denial, FRAME_MAX, Frame, FrameError, HEADER_LEN,
    HELLO_MAX, Health, N_DATAGRAMS_MAX, PATH, PING_EVERY_MS, PONG_DEADLINE_MS, SILENCE_MAX_MS,
    UPGRADE, VERSION, frame_len, turn_round,
};
pub use proof::{ChallengeSecret, PROOF_LEN, Proof, prove};
pub use udp::{
    Alias, BIND_LEN, Cookie, Tag, Token, UDP_DATAGRAM_MAX, UDP_HEADER_LEN, UdpMessage, bind, bound,
    cookie, data_header, is_relay_udp,
};

/// The most relays of a mesh that a node looks at.
pub const N_RELAYS_MAX: usize = 16;

/// The hash of the key that vouches for a relay's TLS certificate, 43 characters of base64url.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(value_type = String))]
pub struct Pin([u8; 32]);

impl Pin {
    /// Takes the raw hash.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The raw hash.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl std::fmt::Display for Pin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&BASE64URL_NOPAD.encode(&self.0))
    }
}

impl std::fmt::Debug for Pin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

impl std::str::FromStr for Pin {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let malformed = || IdError::Malformed {
            what: "a pin",
            expected: "43 characters of base64url",
        };
        let bytes = BASE64URL_NOPAD
            .decode(text.as_bytes())
            .map_err(|_| malformed())?;
        Ok(Self(bytes.try_into().map_err(|_| malformed())?))
    }
}

text_form!(Pin);

/// A relay of the mesh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RelayEntry {
    /// Its id.
    pub id: RelayId,
    /// What people call it, such as the name of its host; may be empty.
    #[serde(default)]
    pub name: String,
    /// Where it speaks HTTPS, best first.
    pub urls: Vec<String>,
    /// What vouches for its certificate.
    pub pin: Pin,
    /// Where it takes sealed packets by UDP, if it does.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub udp: Vec<SocketAddr>,
    /// Where it answers STUN: IPv4 and IPv6, and two ports of one address, so that a node finds out how its NAT maps.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub stun: Vec<SocketAddr>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_survives_its_json_and_needs_no_more_than_it_must() {
        let pin = Pin::from_bytes([7; 32]);
        let url = "https://192.0.2.1:443";
        let id = RelayId::of(pin.as_bytes(), url);
        assert_ne!(id, RelayId::of(pin.as_bytes(), "https://192.0.2.2:443"));
        let text = format!(r#"{{"id":"{id}","urls":["{url}"],"pin":"{pin}"}}"#);
        let entry: RelayEntry = serde_json::from_str(&text).unwrap();
        assert_eq!((entry.id, entry.pin), (id, pin));
        let again = serde_json::to_string(&entry).unwrap();
        assert_eq!(serde_json::from_str::<RelayEntry>(&again).unwrap(), entry);
        assert!("short".parse::<Pin>().is_err());
    }
}
