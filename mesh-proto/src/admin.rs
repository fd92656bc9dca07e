//! The operator's API: auth keys, users, nodes and API keys, as JSON under `/api/v1`.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::id::{NodeId, NodeName, RelayId, Tag, UserId, UserName};
use crate::key::{MachineKey, NodeKey};
use crate::share::HostOffers;

/// How to make an auth key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct NewAuthKey {
    /// Whose the nodes become; the first user when absent.
    #[serde(default)]
    pub user: Option<UserName>,
    /// Lets more than one node join.
    #[serde(default)]
    pub is_reusable: bool,
    /// Nodes that join by it are deleted some time after they disconnect.
    #[serde(default)]
    pub is_ephemeral: bool,
    /// Tags that nodes get in place of the user's rights.
    #[serde(default)]
    pub tags: Vec<Tag>,
    /// How long it is valid, seconds; an hour when absent.
    #[serde(default)]
    pub ttl_seconds: Option<u64>,
}

/// A new auth key. The only time that the whole key is told.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CreatedAuthKey {
    /// The string to paste.
    pub key: String,
    /// What lists show of it.
    #[serde(flatten)]
    pub info: AuthKeyInfo,
}

impl std::fmt::Debug for CreatedAuthKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CreatedAuthKey")
            .field("info", &self.info)
            .finish_non_exhaustive()
    }
}

/// What is known of an auth key without its secret. All times are Unix milliseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AuthKeyInfo {
    /// The public part, by which it is named.
    pub prefix: String,
    /// Whose nodes it makes.
    pub user: UserName,
    /// Whether it may be used more than once.
    pub is_reusable: bool,
    /// Whether its nodes are ephemeral.
    pub is_ephemeral: bool,
    /// Tags of its nodes.
    pub tags: Vec<Tag>,
    /// How many nodes joined by it.
    pub n_uses: u64,
    /// When it was made.
    pub created_at_ms: u64,
    /// When it ends.
    pub expires_at_ms: u64,
    /// Whether it was withdrawn.
    pub is_revoked: bool,
}

/// A user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct UserInfo {
    /// Its number.
    pub id: UserId,
    /// Its name.
    pub name: UserName,
    /// When it was made, Unix milliseconds.
    pub created_at_ms: u64,
    /// How many nodes it owns.
    pub n_nodes: u64,
}

/// Makes or renames a user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct UserSpec {
    /// The name.
    pub name: UserName,
}

/// A node, as its operator sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NodeInfo {
    /// Its id.
    pub id: NodeId,
    /// Its name.
    pub name: NodeName,
    /// Its owner's name.
    pub user: UserName,
    /// Its tags.
    pub tags: Vec<Tag>,
    /// Its IPv4 overlay address.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub ipv4: Ipv4Addr,
    /// Its IPv6 overlay address.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub ipv6: Ipv6Addr,
    /// Its identity.
    pub machine_key: MachineKey,
    /// Its tunnel key.
    pub node_key: NodeKey,
    /// Its operating system.
    pub os: String,
    /// Its program version.
    pub version: String,
    /// Whether it goes away by itself after it disconnects.
    pub is_ephemeral: bool,
    /// When it joined, Unix milliseconds.
    pub created_at_ms: u64,
    /// When its key expires, Unix milliseconds.
    #[serde(default)]
    pub expires_at_ms: Option<u64>,
    /// Whether it is connected.
    pub is_online: bool,
    /// When it was heard last, Unix milliseconds.
    #[serde(default)]
    pub last_seen_ms: Option<u64>,
    /// Where it may be reached on the underlay.
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub endpoints: Vec<SocketAddr>,
    /// What it shares.
    pub offers: HostOffers,
}

/// Changes a node. What is absent stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct NodePatch {
    /// A new name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<NodeName>,
    /// Expires the node's key now: peers drop it, and it must log in again.
    #[serde(default)]
    pub expire_now: bool,
}

/// Makes an API key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct NewApiKey {
    /// How long it is valid, seconds; 90 days when absent.
    #[serde(default)]
    pub ttl_seconds: Option<u64>,
}

/// A new API key. The only time that the whole key is told.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CreatedApiKey {
    /// The bearer token, `pxa_…`.
    pub key: String,
    /// What lists show of it.
    #[serde(flatten)]
    pub info: ApiKeyInfo,
}

impl std::fmt::Debug for CreatedApiKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CreatedApiKey")
            .field("info", &self.info)
            .finish_non_exhaustive()
    }
}

/// What is known of an API key without its secret. All times are Unix milliseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ApiKeyInfo {
    /// The public part, by which it is named.
    pub prefix: String,
    /// When it was made.
    pub created_at_ms: u64,
    /// When it ends.
    pub expires_at_ms: u64,
    /// When it was used last.
    #[serde(default)]
    pub last_used_ms: Option<u64>,
}

/// How a coordinator fares.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Health {
    /// `ok`, or what is wrong.
    pub status: String,
    /// Program version.
    pub version: String,
    /// Whether the store takes writes.
    pub is_store_writable: bool,
    /// Nodes known.
    pub n_nodes: u64,
    /// Nodes connected.
    pub n_online: u64,
    /// Seconds since the start.
    pub uptime_seconds: u64,
}

/// How to let a relay in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct NewRelay {
    /// What people call it.
    pub name: NodeName,
    /// How long its key is valid, seconds; an hour when absent.
    #[serde(default)]
    pub ttl_seconds: Option<u64>,
}

/// A relay that may come. The only time that its key is told.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CreatedRelay {
    /// The string to paste: `coordinator relay --auth-key KEY`.
    pub key: String,
    /// What lists show of it.
    #[serde(flatten)]
    pub info: RelayInfo,
}

impl std::fmt::Debug for CreatedRelay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CreatedRelay")
            .field("info", &self.info)
            .finish_non_exhaustive()
    }
}

/// A relay that stands alone, as its operator sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RelayInfo {
    /// Its name.
    pub name: NodeName,
    /// Its id in the netmap; absent until it has come.
    #[serde(default)]
    pub id: Option<RelayId>,
    /// Its identity; absent until it has come.
    #[serde(default)]
    pub machine_key: Option<MachineKey>,
    /// Where it is reached.
    pub urls: Vec<String>,
    /// When it was added, Unix milliseconds.
    pub created_at_ms: u64,
    /// Until when it may come by its key, Unix milliseconds; absent when it has.
    #[serde(default)]
    pub key_expires_at_ms: Option<u64>,
}
