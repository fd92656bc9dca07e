//! The control socket between `meshctl` and `meshd`: HTTP/1.1 and JSON over a Unix socket.
//!
//! Errors are [`crate::control::ErrorBody`] with a matching HTTP status. Reading calls (`GET`) are open to the socket's
//! group; the others to root, to the daemon's own user and to the configured operator.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::disco::Mapping;
use crate::id::{NetworkId, NodeId, NodeName, RelayId, Tag, UserName};
use crate::netmap::Revision;
use crate::share::{Audience, BackendApi, Digest, Gpu, HostOffers};

/// The version of the JSON that `meshctl --json` prints; it rises when a field changes its meaning or goes away.
pub const SCHEMA_VERSION: u32 = 1;

/// Where the daemon listens when nothing else is set.
pub const SOCKET_PATH: &str = "/run/proxima/meshd.sock";

/// `GET ?wait=running|ready&timeout_ms=N` → [`Status`]. With `wait`, answers once that state is reached.
pub const PATH_STATUS: &str = "/v1/status";
/// `POST` [`UpRequest`] → [`Status`] once the node is up, or an error that says what to do.
pub const PATH_UP: &str = "/v1/up";
/// `POST` → 204: stops the data plane and undoes names and routes; the identity stays.
pub const PATH_DOWN: &str = "/v1/down";
/// `POST` → 204: leaves the mesh and forgets the identity.
pub const PATH_LOGOUT: &str = "/v1/logout";
/// `POST` → 204: makes a new node key.
pub const PATH_ROTATE: &str = "/v1/rotate";
/// `POST` [`PingRequest`] → [`PingReply`].
pub const PATH_PING: &str = "/v1/ping";
/// `GET` → [`NetCheck`], after the network was looked at anew.
pub const PATH_NETCHECK: &str = "/v1/netcheck";
/// `GET` → [`Models`].
pub const PATH_MODELS: &str = "/v1/models";
/// `GET` → [`ShareStatus`]; `POST` [`ShareRequest`] → [`ShareStatus`].
pub const PATH_SHARE: &str = "/v1/share";
/// `GET` → [`Settings`]; `POST` [`SetRequest`] → [`Settings`].
pub const PATH_SETTINGS: &str = "/v1/settings";
/// `GET` → [`DnsStatus`].
pub const PATH_DNS: &str = "/v1/dns";
/// `GET` → Prometheus text.
pub const PATH_METRICS: &str = "/v1/metrics";
/// `GET` → a JSON object with all that helps to find a fault, without secrets.
pub const PATH_BUGREPORT: &str = "/v1/bugreport";

/// What the daemon is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// No identity: `meshctl up --auth-key …`.
    NeedsLogin,
    /// An identity, and switched off: `meshctl up`.
    Stopped,
    /// Switched on and without a map yet.
    Starting,
    /// The coordinator no longer knows this node, or its key expired: it needs a new auth key.
    Refused,
    /// The overlay works.
    Running,
}

/// Everything about the node at a glance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// What the daemon is doing.
    pub state: RunState,
    /// Program version.
    pub version: String,
    /// This node; absent before it has joined.
    #[serde(default)]
    pub node: Option<NodeStatus>,
    /// How the control plane fares; absent before it has joined.
    #[serde(default)]
    pub coordinator: Option<CoordinatorStatus>,
    /// The peers, sorted by name.
    #[serde(default)]
    pub peers: Vec<PeerStatus>,
    /// What is wrong and what to do about it; empty when all is well.
    #[serde(default)]
    pub problems: Vec<Problem>,
}

/// Something that an owner should look at.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Problem {
    /// Stable, for programs: `coordinator_unreachable`, `dns_unmanaged`, `clock_wrong`…
    pub code: String,
    /// What is wrong, for people.
    pub message: String,
    /// The command that mends it, when there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

/// This node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its id.
    pub id: NodeId,
    /// Its name.
    pub name: NodeName,
    /// Its full DNS name.
    pub dns_name: String,
    /// Its owner.
    pub user: UserName,
    /// Its tags.
    pub tags: Vec<Tag>,
    /// The mesh.
    pub network_id: NetworkId,
    /// Its IPv4 overlay address.
    pub ipv4: Ipv4Addr,
    /// Its IPv6 overlay address.
    pub ipv6: Ipv6Addr,
    /// The URL of the gateway to all models.
    pub gateway_url: String,
    /// The service address, for those who set their resolver by hand.
    pub service_ipv4: Ipv4Addr,
    /// The mesh's DNS suffix.
    pub suffix: String,
    /// Where it may be reached on the underlay.
    pub endpoints: Vec<SocketAddr>,
    /// The name of the overlay interface.
    pub interface: String,
    /// Whether it shares models.
    pub is_sharing: bool,
    /// When its key expires, Unix milliseconds.
    #[serde(default)]
    pub expires_at_ms: Option<u64>,
}

/// How the control plane fares.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoordinatorStatus {
    /// Which one.
    pub url: String,
    /// Whether the map stream is up.
    pub is_connected: bool,
    /// Milliseconds since its last word; absent when it said nothing since the daemon started.
    #[serde(default)]
    pub last_heard_ms_ago: Option<u64>,
    /// Where the map stands.
    pub revision: Revision,
    /// Why it is not connected.
    #[serde(default)]
    pub error: Option<String>,
}

/// A peer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Its id.
    pub id: NodeId,
    /// Its name.
    pub name: NodeName,
    /// Its owner.
    pub user: UserName,
    /// Its tags.
    pub tags: Vec<Tag>,
    /// Its IPv4 overlay address.
    pub ipv4: Ipv4Addr,
    /// Its IPv6 overlay address.
    pub ipv6: Ipv6Addr,
    /// Whether the coordinator hears from it.
    pub is_online: bool,
    /// When it was heard last, Unix milliseconds.
    #[serde(default)]
    pub last_seen_ms: Option<u64>,
    /// How it is reached.
    pub path: PathStatus,
    /// Milliseconds that a direct path takes for an answer, once it was asked.
    #[serde(default)]
    pub rtt_ms: Option<f64>,
    /// Bytes of packets received from it.
    pub rx_bytes: u64,
    /// Bytes of packets sent to it.
    pub tx_bytes: u64,
    /// Milliseconds since the last handshake.
    #[serde(default)]
    pub last_handshake_ms_ago: Option<u64>,
    /// How many models it shares with this node.
    pub n_models: usize,
}

/// How a peer is reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum PathStatus {
    /// No session, none wanted.
    Idle,
    /// A handshake is under way.
    Connecting,
    /// By this endpoint.
    Direct {
        /// The underlay endpoint in use.
        endpoint: SocketAddr,
    },
    /// By a relay.
    Relayed {
        /// Which.
        relay: RelayId,
        /// Its name; empty when the map does not name it any more.
        #[serde(default)]
        name: String,
    },
}

/// Switches the node on.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpRequest {
    /// The whole auth key; absent when the node has an identity.
    #[serde(default)]
    pub auth_key: Option<String>,
    /// The name to ask for; the machine's host name when absent.
    #[serde(default)]
    pub hostname: Option<String>,
    /// How long to wait for the mesh, milliseconds; 30,000 when absent.
    #[serde(default)]
    pub timeout_ms: Option<u64>,
}

impl std::fmt::Debug for UpRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UpRequest")
            .field("auth_key", &self.auth_key.as_ref().map(|_| "[redacted]"))
            .field("hostname", &self.hostname)
            .finish_non_exhaustive()
    }
}

/// Sends one probe to a peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PingRequest {
    /// A node's name, DNS name, id or overlay address.
    pub target: String,
    /// How long to wait, milliseconds; 5,000 when absent.
    #[serde(default)]
    pub timeout_ms: Option<u64>,
}

/// The probe came back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PingReply {
    /// Who answered.
    pub id: NodeId,
    /// Its name.
    pub name: NodeName,
    /// Its overlay address.
    pub ip: IpAddr,
    /// The way that the probe took.
    pub path: PathStatus,
    /// Round trip, milliseconds.
    pub rtt_ms: f64,
}

/// What the network around the node looks like.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NetCheck {
    /// Whether UDP passes over IPv4: a STUN server answered.
    pub has_udp_ipv4: bool,
    /// And over IPv6.
    pub has_udp_ipv6: bool,
    /// Where servers see this node.
    pub reflexive: Vec<SocketAddr>,
    /// How the NAT maps, if there is one.
    pub mapping: Mapping,
    /// What the gateway forwards to this node.
    #[serde(default)]
    pub port_mapping: Option<PortMapping>,
    /// The relays of the mesh, best first.
    pub relays: Vec<RelayCheck>,
}

/// A port that the gateway forwards.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    /// Where from.
    pub endpoint: SocketAddr,
    /// How it was asked: `PCP` or `NAT-PMP`.
    pub protocol: String,
}

/// A relay, seen from this node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RelayCheck {
    /// Its id.
    pub id: RelayId,
    /// Its name.
    pub name: String,
    /// Milliseconds that its STUN takes to answer; absent when it does not.
    #[serde(default)]
    pub rtt_ms: Option<f64>,
    /// Whether there is a link to it.
    pub is_connected: bool,
    /// Whether this node listens there.
    pub is_home: bool,
}

/// The catalogue.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Models {
    /// One entry a distinct model, sorted by name.
    pub models: Vec<ModelStatus>,
}

/// A model and who serves it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelStatus {
    /// Its normalised name.
    pub model: String,
    /// Its full DNS name; absent when the name is ambiguous or reserved.
    #[serde(default)]
    pub dns_name: Option<String>,
    /// Its digest.
    #[serde(default)]
    pub digest: Option<Digest>,
    /// Bytes of its files.
    pub size_bytes: u64,
    /// Such as `1.2B`.
    pub parameter_size: String,
    /// Such as `Q4_K_M`.
    pub quantization: String,
    /// Tokens.
    pub context_length: u64,
    /// Such as `completion`.
    pub capabilities: Vec<String>,
    /// Who serves it.
    pub hosts: Vec<ModelHost>,
}

/// A host of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelHost {
    /// The node.
    pub id: NodeId,
    /// Its name.
    pub name: NodeName,
    /// Whether it is this node.
    pub is_self: bool,
    /// Whether requests may be sent to it.
    pub is_healthy: bool,
    /// Whether the model is in memory there.
    pub is_loaded: bool,
    /// What its backend speaks.
    pub api: BackendApi,
}

/// Changes what the node shares. What is absent stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShareRequest {
    /// Sharing on or off.
    #[serde(default)]
    pub is_on: Option<bool>,
    /// Patterns of model names to share (`llama3*`); an empty list shares all.
    #[serde(default)]
    pub models: Option<Vec<String>>,
    /// With whom.
    #[serde(default)]
    pub audience: Option<Audience>,
    /// How many requests to work on at once.
    #[serde(default)]
    pub n_slots: Option<u32>,
    /// Backends by URL; an empty list finds them by itself.
    #[serde(default)]
    pub backends: Option<Vec<String>>,
}

/// What the node shares.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ShareStatus {
    /// Whether sharing is on.
    pub is_on: bool,
    /// Patterns of model names; all when empty.
    pub models: Vec<String>,
    /// What is offered to the mesh.
    pub offers: HostOffers,
    /// The backends, found or set.
    pub backends: Vec<BackendStatus>,
    /// Requests being worked on.
    pub n_active: u32,
    /// Requests waiting.
    pub n_queued: u32,
    /// The GPUs of this machine.
    pub gpus: Vec<Gpu>,
}

/// A model server on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendStatus {
    /// Where it listens.
    pub url: String,
    /// What it speaks.
    pub api: BackendApi,
    /// How many models it has.
    pub n_models: usize,
    /// Why it cannot be used.
    #[serde(default)]
    pub error: Option<String>,
    /// What its owner should know, such as that it listens on all addresses.
    #[serde(default)]
    pub warning: Option<String>,
}

/// Changes settings: each key is one of [`Settings`]' fields.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetRequest {
    /// New values by key, as text.
    pub values: BTreeMap<String, String>,
}

/// What `meshctl set` can change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// How model names are answered.
    #[serde(default)]
    pub names: NameMode,
    /// Whether the system's resolver is pointed at the mesh's names.
    #[serde(default = "yes")]
    pub dns: bool,
    /// Uid that may control the daemon beside root; none when absent.
    #[serde(default)]
    pub operator_uid: Option<u32>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            names: NameMode::default(),
            dns: true,
            operator_uid: None,
        }
    }
}

const fn yes() -> bool {
    true
}

/// How model names are answered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NameMode {
    /// With the overlay addresses of hosts.
    #[default]
    Direct,
    /// With the service address: this node's own gateway chooses.
    Gateway,
}

/// How names are wired into the system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsStatus {
    /// The suffix.
    pub suffix: String,
    /// The alias suffix that is served beside it.
    pub alias: String,
    /// Where the resolver listens.
    pub servers: Vec<IpAddr>,
    /// Who was told: `systemd-resolved`, `NetworkManager`, `resolvconf`, or `none`.
    pub manager: String,
    /// Whether plain programs resolve the suffix.
    pub is_wired: bool,
    /// What to do by hand when it is not.
    #[serde(default)]
    pub hint: Option<String>,
    /// Where names outside the suffix are forwarded, when the system sends them here.
    pub upstreams: Vec<SocketAddr>,
    /// How many model names are served.
    pub n_models: usize,
}
