//! What a node says to its coordinator and what it is answered. All paths are under `/api/v1`.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::filter::Allow;
use crate::id::{NetworkId, NodeId, NodeName, RelayId, Tag, UserId, UserName};
use crate::key::{CoordinatorKey, DiscoKey, MachineKey, NodeKey, Signature};
use crate::netmap::Revision;
use crate::share::HostOffers;

/// `GET`, no proof: who this coordinator is and a first nonce (in the [`crate::request::NONCE_HEADER`]).
pub const PATH_IDENTITY: &str = "/api/v1/identity";
/// `POST` [`RegisterRequest`] → [`RegisterResponse`]; signed by the machine key, which need not be known yet.
pub const PATH_REGISTER: &str = "/api/v1/register";
/// `GET ?epoch=E&version=V` → a stream of map lines ([`crate::netmap::MapFrame`]); signed.
pub const PATH_MAP: &str = "/api/v1/map";
/// `POST` [`NodeUpdate`] → 204; signed.
pub const PATH_UPDATE: &str = "/api/v1/node/update";
/// `POST` [`Beat`] → 204; signed. Hosts send it each second, so that a silently dead one is noticed.
pub const PATH_BEAT: &str = "/api/v1/node/beat";
/// `POST` [`RotateRequest`] → 204; signed.
pub const PATH_ROTATE: &str = "/api/v1/node/rotate";
/// `POST` [`AllowedRequest`] → [`AllowedReply`]; signed. Of the node itself, or of another of its user.
pub const PATH_ALLOWED: &str = "/api/v1/node/allowed";
/// `POST`, no body → 204; signed: the node leaves for good and its address is retired.
pub const PATH_LOGOUT: &str = "/api/v1/node/logout";

/// `POST` [`WantRequest`] → 204; signed.
pub const PATH_WANT: &str = "/api/v1/node/want";
/// `POST`, no body → [`Wanted`]; signed.
pub const PATH_WANTED: &str = "/api/v1/node/wanted";

/// The content type of a map stream.
pub const MAP_CONTENT_TYPE: &str = "application/x-proxima-map";

/// A heartbeat frame is sent when nothing else was for this long; two missed ones mean that the stream is dead.
pub const HEARTBEAT_MS: u64 = 15_000;
/// A host sends a beat this often while it shares.
pub const BEAT_MS: u64 = 1_000;
/// A host without a beat for this long is offline.
pub const BEAT_DEADLINE_MS: u64 = 3_000;

/// Who a coordinator is. A node believes it for the pin, and then only what the key signs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Identity {
    /// The key that signs maps.
    pub coordinator_key: CoordinatorKey,
    /// The mesh that it coordinates.
    pub network_id: NetworkId,
    /// The protocol version it speaks ([`crate::PROTOCOL_VERSION`]).
    pub protocol_version: u32,
    /// Its program version.
    pub version: String,
}

/// A node asks to be let in, or back in.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RegisterRequest {
    /// The secret of the auth key ([`crate::auth_key::AuthKey::secret_text`]); absent when the machine is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth_secret: Option<String>,
    /// The node's tunnel key.
    pub node_key: NodeKey,
    /// The machine key's signature over it.
    pub node_key_signature: Signature,
    /// The machine's host name; the coordinator makes a free node name out of it.
    pub hostname: String,
    /// Such as `linux`.
    pub os: String,
    /// Program version of the node.
    pub version: String,
}

impl std::fmt::Debug for RegisterRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegisterRequest")
            .field(
                "auth_secret",
                &self.auth_secret.as_ref().map(|_| "[redacted]"),
            )
            .field("node_key", &self.node_key)
            .field("hostname", &self.hostname)
            .finish_non_exhaustive()
    }
}

/// A node is in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RegisterResponse {
    /// Its id.
    pub node_id: NodeId,
    /// Its name.
    pub name: NodeName,
    /// Its owner.
    pub user: UserId,
    /// Its owner's name.
    pub user_name: UserName,
    /// Its tags.
    #[serde(default)]
    pub tags: Vec<Tag>,
    /// The mesh.
    pub network_id: NetworkId,
    /// The key that signs the mesh's maps.
    pub coordinator_key: CoordinatorKey,
}

/// What changed at a node. What is absent stays.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NodeUpdate {
    /// Where it may be reached on the underlay, best first, at most [`N_ENDPOINTS_MAX`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Vec<String>>))]
    pub endpoints: Option<Vec<SocketAddr>>,
    /// The same, with how each is known; when present it stands and `endpoints` does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidates: Option<Vec<Candidate>>,
    /// What peers seal path discovery to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disco_key: Option<DiscoKey>,
    /// The relay that it listens on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub home_relay: Option<RelayId>,
    /// What it shares.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offers: Option<HostOffers>,
}

impl NodeUpdate {
    /// Where the node may be reached, by whichever field says so.
    #[must_use]
    pub fn told_endpoints(&self) -> Option<Vec<SocketAddr>> {
        let candidates = self.candidates.as_ref().map(|candidates| {
            let endpoints = candidates.iter().map(|candidate| candidate.endpoint);
            endpoints.collect()
        });
        candidates.or_else(|| self.endpoints.clone())
    }
}

/// An endpoint where a node may be reached, not yet proven.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Candidate {
    /// The endpoint.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub endpoint: SocketAddr,
    /// How the node knows of it.
    pub kind: CandidateKind,
}

/// How a node knows that it may be reached somewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum CandidateKind {
    /// An address of one of its interfaces.
    Interface,
    /// A port that its gateway forwards to it.
    PortMapped,
    /// What a STUN server saw (RFC 8489).
    ServerReflexive,
    /// In some way that this program does not know.
    #[serde(other)]
    Other,
}

/// The most endpoints of a node that are kept.
pub const N_ENDPOINTS_MAX: usize = 16;

/// A host lives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Beat {
    /// The map revision that the host has, for seeing how far nodes are behind.
    pub revision: Revision,
}

/// A node changes its tunnel key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RotateRequest {
    /// The new key.
    pub node_key: NodeKey,
    /// The machine key's signature over it.
    pub node_key_signature: Signature,
}

/// Asks what one node may open on another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AllowedRequest {
    /// Who opens.
    pub from: NodeId,
    /// Where.
    pub to: NodeId,
}

/// What the policy of the mesh allows one node on another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AllowedReply {
    /// What it may open; nothing when it may not even know of the other.
    pub allow: Vec<Allow>,
}

/// A node's user would like somebody to share a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WantRequest {
    /// Its name, as Ollama has it.
    pub model: String,
    /// Whether the wish is taken back.
    #[serde(default)]
    pub is_over: bool,
}

/// The most models that one user may want at a time.
pub const N_WANTS_MAX: usize = 20;
/// The most wanted models that are told.
pub const N_WANTED_MAX: usize = 100;
/// A wish that is not repeated is forgotten after this long: 14 days.
pub const WANT_TTL_MS: u64 = 14 * 24 * 3_600_000;

/// What the users of the mesh would like somebody to share, most wanted first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Wanted {
    /// The models, at most [`N_WANTED_MAX`].
    pub models: Vec<WantedModel>,
}

/// A model that somebody wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WantedModel {
    /// Its normalised name.
    pub model: String,
    /// How many users want it.
    pub n_users: u32,
    /// When one of them asked last, Unix milliseconds.
    pub asked_at_ms: u64,
}

/// The body of every error answer of the coordinator and of `meshd`'s control socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ErrorBody {
    /// What went wrong.
    pub error: ErrorDetail,
}

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ErrorDetail {
    /// Stable and documented, for programs: one of [`code`].
    pub code: String,
    /// For people: what happened and what to do.
    pub message: String,
}

impl ErrorBody {
    /// Builds the body.
    #[must_use]
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Self {
            error: ErrorDetail {
                code: code.to_owned(),
                message: message.into(),
            },
        }
    }

    /// Reads what a coordinator answered with an error `status`; what is not of this shape came from something in between,
    /// and is told by the status alone.
    #[must_use]
    pub fn from_answer(body: &[u8], status: impl std::fmt::Display) -> Self {
        serde_json::from_slice(body)
            .unwrap_or_else(|_| Self::new(code::INTERNAL, format!("the coordinator says {status}")))
    }
}

/// The stable error codes.
pub mod code {
    /// The body or a parameter is not what the route takes.
    pub const BAD_REQUEST: &str = "bad_request";
    /// The auth key is not one of this coordinator's.
    pub const AUTH_KEY_UNKNOWN: &str = "auth_key_unknown";
    /// The auth key was for one use, and was used.
    pub const AUTH_KEY_SPENT: &str = "auth_key_spent";
    /// The auth key's time is over.
    pub const AUTH_KEY_EXPIRED: &str = "auth_key_expired";
    /// The auth key was withdrawn.
    pub const AUTH_KEY_REVOKED: &str = "auth_key_revoked";
    /// The machine is not registered (any more): it needs an auth key.
    pub const NOT_REGISTERED: &str = "not_registered";
    /// The node's key expired: it must log in again or rotate.
    pub const NODE_EXPIRED: &str = "node_expired";
    /// The proof of a request is missing, wrong or made with an old nonce; the answer carries a fresh one.
    pub const BAD_PROOF: &str = "bad_proof";
    /// The nonce is unknown or used; sign again with the one in this answer.
    pub const BAD_NONCE: &str = "bad_nonce";
    /// An API key is missing or wrong.
    pub const UNAUTHORIZED: &str = "unauthorized";
    /// Not allowed to this caller.
    pub const FORBIDDEN: &str = "forbidden";
    /// No such thing.
    pub const NOT_FOUND: &str = "not_found";
    /// The name or thing exists already.
    pub const CONFLICT: &str = "conflict";
    /// Too many requests or failed attempts; wait.
    pub const RATE_LIMITED: &str = "rate_limited";
    /// The address pool is used up.
    pub const POOL_EXHAUSTED: &str = "pool_exhausted";
    /// The store cannot write (disk full, unreachable); nothing was lost, try again.
    pub const UNAVAILABLE: &str = "unavailable";
    /// A fault of the program.
    pub const INTERNAL: &str = "internal";
    /// The daemon is not joined to a mesh.
    pub const NEEDS_LOGIN: &str = "needs_login";
    /// The relay that a node offers is not reached from outside.
    pub const RELAY_UNREACHABLE: &str = "relay_unreachable";
    /// Waited as long as asked, and it did not come.
    pub const TIMEOUT: &str = "timeout";
    /// Policy forbids it.
    pub const REFUSED: &str = "refused";
}

/// What binds a node key to its machine: the message is the raw node key ([`crate::key::Purpose::NodeKey`]).
///
/// # Errors
/// [`crate::key::KeyError`] when the machine key did not sign this node key.
pub fn verify_node_key(
    machine_key: &MachineKey,
    node_key: &NodeKey,
    signature: &Signature,
) -> Result<(), crate::key::KeyError> {
    machine_key.verify(crate::key::Purpose::NodeKey, node_key.as_bytes(), signature)
}
