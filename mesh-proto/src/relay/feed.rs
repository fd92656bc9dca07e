//! What a relay that stands alone and its coordinator tell each other: where it is reached, and whom it serves.
//!
//! A node that offers a relay asks for the same stream with a [`RelayOffer`], signed by its own machine key. The coordinator
//! first comes to the relay itself, at the address that the request came from; the netmap names it as long as the stream is
//! open.
//!
//! A relay has a machine key, as a node has: it signs its requests, vouches for its TLS certificate, and its hash is the
//! relay's pin. The members come as a stream of lines `signature SP json LF` like a node's map, signed by the
//! coordinator key, so that a relay needs to trust nothing on the way and shares no secret with other relays.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::Pin;
use crate::id::{NetworkId, NodeName, RelayId};
use crate::key::{CoordinatorKey, CoordinatorPrivateKey, MachineKey, NodeKey, Purpose};
use crate::netmap::{FrameError, Revision};
use crate::signed_line;

/// `POST` [`RelayRegistration`] → [`RelayRegistered`]; signed by the relay's machine key.
pub const PATH_RELAY_REGISTER: &str = "/api/v1/relay/register";
/// `GET` → a stream of [`MembersFrame`] lines; signed by the relay's machine key.
pub const PATH_RELAY_MEMBERS: &str = "/api/v1/relay/members";
/// The content type of a stream of members.
pub const MEMBERS_CONTENT_TYPE: &str = "application/x-proxima-members";

/// The most URLs, and the most endpoints of each kind, that a relay tells.
pub const N_RELAY_URLS_MAX: usize = 8;

/// A node offers a relay of its own, by opening its stream of members.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayOffer {
    /// The TCP port at which it speaks HTTPS, and the UDP port for STUN and sealed packets.
    pub port: u16,
    /// What vouches for its certificate.
    pub pin: Pin,
}

impl RelayOffer {
    /// What is asked for: [`PATH_RELAY_MEMBERS`] with the offer as its query.
    #[must_use]
    pub fn path(&self) -> String {
        format!("{PATH_RELAY_MEMBERS}?port={}&pin={}", self.port, self.pin)
    }
}

/// A relay tells where it is reached.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RelayRegistration {
    /// The secret of the key that `coordinator relay add` made; absent when the relay is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth_secret: Option<String>,
    /// Where it speaks HTTPS, best first.
    pub urls: Vec<String>,
    /// Where it answers STUN.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub stun: Vec<SocketAddr>,
}

impl std::fmt::Debug for RelayRegistration {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RelayRegistration")
            .field(
                "auth_secret",
                &self.auth_secret.as_ref().map(|_| "[redacted]"),
            )
            .field("urls", &self.urls)
            .field("stun", &self.stun)
            .finish()
    }
}

/// The relay is in the netmap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RelayRegistered {
    /// Its id.
    pub id: RelayId,
    /// Its name.
    pub name: NodeName,
    /// The mesh.
    pub network_id: NetworkId,
    /// The key that signs the members.
    pub coordinator_key: CoordinatorKey,
}

/// A node that may use relays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its node key.
    pub node_key: NodeKey,
    /// When the key expires, Unix milliseconds; each relay enforces it by its own clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at_ms: Option<u64>,
}

/// One line of a stream of members, before signing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MembersFrame {
    /// The relay that this is for; another one refuses it.
    pub to: MachineKey,
    /// Where the mesh stood; never less than before on one relay.
    pub revision: Revision,
    /// What is said.
    #[serde(flatten)]
    pub body: MembersBody,
}

/// What a frame says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MembersBody {
    /// All members; who is not among them is none.
    Full(Vec<Member>),
    /// What changed since the frame before.
    Delta {
        /// Members that are new or expire at another time.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        added: Vec<Member>,
        /// Members no more.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        removed: Vec<NodeKey>,
    },
    /// Nothing new; the stream lives.
    Heartbeat {},
}

impl MembersFrame {
    /// Signs the frame: one line with its line feed.
    #[must_use]
    pub fn to_line(&self, key: &CoordinatorPrivateKey) -> String {
        signed_line::write(self, Purpose::Members, key)
    }

    /// Verifies and reads one line, with or without its line feed.
    ///
    /// # Errors
    /// [`FrameError`] when the line is not for this relay from this coordinator.
    pub fn from_line(
        line: &str,
        coordinator: &CoordinatorKey,
        relay: &MachineKey,
    ) -> Result<Self, FrameError> {
        let frame: Self = signed_line::read(line, Purpose::Members, coordinator)?;
        if frame.to == *relay {
            Ok(frame)
        } else {
            Err(FrameError::WrongNode)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::MachinePrivateKey;

    #[test]
    fn a_line_holds_for_its_relay_and_coordinator_alone() {
        let coordinator = CoordinatorPrivateKey::from_bytes(&[1; 32]);
        let relay = MachinePrivateKey::from_bytes(&[2; 32]).public();
        let member = Member {
            node_key: NodeKey::from_bytes([3; 32]),
            expires_at_ms: None,
        };
        for body in [
            MembersBody::Full(vec![member]),
            MembersBody::Delta {
                added: vec![member],
                removed: vec![member.node_key],
            },
            MembersBody::Heartbeat {},
        ] {
            let frame = MembersFrame {
                to: relay,
                revision: Revision {
                    epoch: 1,
                    version: 2,
                },
                body,
            };
            let line = frame.to_line(&coordinator);
            let read =
                |line: &str, relay| MembersFrame::from_line(line, &coordinator.public(), relay);
            assert_eq!(read(&line, &relay), Ok(frame));
            let other = MachinePrivateKey::from_bytes(&[4; 32]).public();
            assert_eq!(read(&line, &other), Err(FrameError::WrongNode));
            let forged = line.replace("\"epoch\":1", "\"epoch\":9");
            assert_eq!(read(&forged, &relay), Err(FrameError::BadSignature));
        }
    }
}
