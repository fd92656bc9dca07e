//! What is kept for ever: the store as verbs of the domain. No SQL above this line.

mod sqlite;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use ipnet::Ipv4Net;
use mesh_proto::admin::{ApiKeyInfo, AuthKeyInfo};
use mesh_proto::control::WantedModel;
use mesh_proto::id::{NetworkId, NodeId, NodeName, Tag, UserId, UserName};
use mesh_proto::key::{MachineKey, NodeKey, Signature};
use mesh_proto::share::HostOffers;

use self::sqlite::SqliteStore;

/// Why the store did not do as told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StoreError {
    /// There is none.
    #[error("no such {0}")]
    NotFound(&'static str),
    /// It exists already, or something hangs on it. The words are for the caller.
    #[error("{0}")]
    Conflict(String),
    /// The machine is not let in.
    #[error("the machine is not let in: {0:?}")]
    Refused(JoinRefusal),
    /// The disk is full, busy or failing; nothing was written, and trying again may work.
    #[error("the store cannot be used at the moment: {0}")]
    Unavailable(String),
    /// What is stored makes no sense to this program.
    #[error("the store holds what this program does not understand: {0}")]
    Broken(String),
}

/// Why a machine is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum JoinRefusal {
    /// It is unknown and brought no auth key.
    NotRegistered,
    /// Its node expired and it brought no auth key.
    NodeExpired,
    /// No such auth key, or a wrong secret.
    KeyUnknown,
    /// The auth key was for one use.
    KeySpent,
    /// The auth key's time is over.
    KeyExpired,
    /// The auth key was withdrawn.
    KeyRevoked,
    /// The node key belongs to another node.
    NodeKeyTaken,
    /// No IPv4 address is left.
    PoolExhausted,
}

/// What holds for the whole mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MeshRecord {
    pub(crate) network_id: NetworkId,
    pub(crate) ipv4_pool: Ipv4Net,
    /// Of this start: Unix milliseconds, or one more than the last one where the clock went back.
    pub(crate) epoch: u64,
    /// Whether this start founded the mesh.
    pub(crate) is_new: bool,
}

/// A user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UserRecord {
    pub(crate) id: UserId,
    pub(crate) name: UserName,
    pub(crate) created_at_ms: u64,
}

/// A node, as far as it outlives a restart.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct NodeRecord {
    pub(crate) id: NodeId,
    pub(crate) name: NodeName,
    pub(crate) user: UserId,
    pub(crate) tags: Vec<Tag>,
    pub(crate) machine_key: MachineKey,
    pub(crate) node_key: NodeKey,
    pub(crate) node_key_signature: Signature,
    pub(crate) ipv4: Ipv4Addr,
    pub(crate) os: String,
    pub(crate) version: String,
    pub(crate) is_ephemeral: bool,
    pub(crate) created_at_ms: u64,
    pub(crate) expires_at_ms: Option<u64>,
    pub(crate) last_seen_ms: Option<u64>,
    pub(crate) was_online: bool,
    pub(crate) endpoints: Vec<SocketAddr>,
    pub(crate) offers: Arc<HostOffers>,
}

impl NodeRecord {
    pub(crate) fn is_expired(&self, now_ms: u64) -> bool {
        self.expires_at_ms.is_some_and(|at| at <= now_ms)
    }
}

/// A machine asks to be let in. Its proof is checked by the caller.
#[derive(Debug, Clone)]
pub(crate) struct Registration {
    pub(crate) machine_key: MachineKey,
    pub(crate) node_key: NodeKey,
    pub(crate) node_key_signature: Signature,
    pub(crate) hostname: String,
    pub(crate) os: String,
    pub(crate) version: String,
    /// Prefix and hash of the auth key's secret.
    pub(crate) auth_key: Option<(String, [u8; 32])>,
    pub(crate) now_ms: u64,
    /// When a node that joins at `now_ms` expires; tagged nodes do not.
    pub(crate) expires_at_ms: Option<u64>,
}

/// A new auth key, hashed.
#[derive(Debug, Clone)]
pub(crate) struct NewAuthKeyRecord {
    pub(crate) prefix: String,
    pub(crate) hash: [u8; 32],
    pub(crate) user: Option<UserName>,
    pub(crate) is_reusable: bool,
    pub(crate) is_ephemeral: bool,
    pub(crate) tags: Vec<Tag>,
    pub(crate) created_at_ms: u64,
    pub(crate) expires_at_ms: u64,
}

/// What of presence outlives a restart.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PresenceRecord {
    pub(crate) id: NodeId,
    pub(crate) last_seen_ms: Option<u64>,
    pub(crate) was_online: bool,
}

/// A relay that may come, with its key hashed.
#[derive(Debug, Clone)]
pub(crate) struct NewRelayRecord {
    pub(crate) name: NodeName,
    pub(crate) prefix: String,
    pub(crate) hash: [u8; 32],
    pub(crate) created_at_ms: u64,
    pub(crate) expires_at_ms: u64,
}

/// A relay that stands alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RelayRecord {
    pub(crate) name: NodeName,
    /// Absent until it has come.
    pub(crate) machine_key: Option<MachineKey>,
    pub(crate) urls: Vec<String>,
    pub(crate) stun: Vec<SocketAddr>,
    pub(crate) created_at_ms: u64,
    /// Until when it may come by its key.
    pub(crate) key_expires_at_ms: Option<u64>,
}

/// A relay tells where it is. Its proof is checked by the caller.
#[derive(Debug, Clone)]
pub(crate) struct RelayAnswer {
    pub(crate) machine_key: MachineKey,
    pub(crate) urls: Vec<String>,
    pub(crate) stun: Vec<SocketAddr>,
    /// Prefix and hash of its key's secret.
    pub(crate) auth_key: Option<(String, [u8; 32])>,
    pub(crate) now_ms: u64,
}

/// A change of one node.
#[derive(Debug, Clone)]
pub(crate) enum NodeChange {
    Name(NodeName),
    ExpireAt(u64),
    Key {
        node_key: NodeKey,
        signature: Signature,
    },
    Told {
        endpoints: Option<Vec<SocketAddr>>,
        offers: Option<Arc<HostOffers>>,
    },
}

/// The store. One variant a database; each verb is one transaction.
#[derive(Debug)]
pub(crate) enum Store {
    Sqlite(SqliteStore),
}

macro_rules! verbs {
    ($($(#[$doc:meta])* $name:ident($($arg:ident: $kind:ty),*) -> $out:ty;)*) => {
        impl Store {
            $(
                $(#[$doc])*
                pub(crate) async fn $name(&self, $($arg: $kind),*) -> Result<$out, StoreError> {
                    match self {
                        Self::Sqlite(store) => store.$name($($arg),*).await,
                    }
                }
            )*
        }
    };
}

verbs! {
    /// Founds the mesh or takes it up again, with an epoch higher than any before.
    open_mesh(network_id: NetworkId, pool: Ipv4Net, now_ms: u64) -> MeshRecord;
    /// Writes something that changes nothing, to learn whether writing works.
    probe() -> ();
    /// Lets a machine in, or back in; spends its auth key when it needs one. Asking twice changes nothing.
    register(registration: &Registration) -> NodeRecord;
    /// Changes one node.
    change_node(id: NodeId, change: &NodeChange) -> NodeRecord;
    /// Deletes a node. Its address is never given out again.
    delete_node(id: NodeId) -> ();
    /// All nodes.
    list_nodes() -> Vec<NodeRecord>;
    /// Keeps a relay that may come.
    insert_relay(relay: &NewRelayRecord) -> RelayRecord;
    /// Lets a relay in by its key, or takes in where a known one is.
    register_relay(answer: &RelayAnswer) -> RelayRecord;
    /// Forgets a relay.
    delete_relay(name: &NodeName) -> ();
    /// All relays, by name.
    list_relays() -> Vec<RelayRecord>;
    /// Keeps that a user wants a model; forgets what was asked before a time.
    put_want(user: UserId, model: &str, now_ms: u64, forgotten_before_ms: u64) -> ();
    /// Forgets that a user wants a model.
    delete_want(user: UserId, model: &str) -> ();
    /// The models that are wanted since a time, most wanted first.
    list_wanted(forgotten_before_ms: u64) -> Vec<WantedModel>;
    /// Keeps who was heard when.
    keep_presence(records: &[PresenceRecord]) -> ();
    /// Makes a user.
    insert_user(name: &UserName, now_ms: u64) -> UserRecord;
    /// Renames a user.
    rename_user(name: &UserName, new_name: &UserName) -> UserRecord;
    /// Deletes a user that owns no nodes.
    delete_user(name: &UserName) -> UserId;
    /// All users, oldest first.
    list_users() -> Vec<UserRecord>;
    /// Keeps a new auth key; without a user it is the first one's.
    insert_auth_key(key: &NewAuthKeyRecord) -> AuthKeyInfo;
    /// All auth keys, newest first.
    list_auth_keys() -> Vec<AuthKeyInfo>;
    /// Withdraws an auth key.
    revoke_auth_key(prefix: &str) -> ();
    /// Forgets auth and API keys that ended before a time.
    forget_keys(ended_before_ms: u64) -> ();
    /// Keeps a new API key.
    insert_api_key(info: &ApiKeyInfo, hash: &[u8; 32]) -> ();
    /// All API keys, newest first.
    list_api_keys() -> Vec<ApiKeyInfo>;
    /// Deletes an API key.
    delete_api_key(prefix: &str) -> ();
    /// An API key and its hash.
    find_api_key(prefix: &str) -> Option<([u8; 32], ApiKeyInfo)>;
    /// Keeps when an API key was used.
    touch_api_key(prefix: &str, now_ms: u64) -> ();
}

impl Store {
    /// Opens the SQLite database of a file, making or migrating it.
    pub(crate) async fn open_sqlite(file: &Path) -> Result<Self, StoreError> {
        Ok(Self::Sqlite(SqliteStore::open(file).await?))
    }
}

#[cfg(test)]
mod tests;
