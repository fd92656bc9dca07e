//! The control socket between `meshctl` and `meshd`: HTTP/1.1 and JSON over a Unix socket.
//!
//! Errors are [`crate::control::ErrorBody`] with a matching HTTP status. Reading calls (`GET`) are open to the socket's
//! group; the others to root, to the daemon's own user and to the configured operator.

mod catalog;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::disco::Mapping;
use crate::door::{DoorChange, DoorStatus};
use crate::id::{NetworkId, NodeId, NodeName, RelayId, Tag, UserName};
use crate::netmap::Revision;
use crate::share::{Audience, BackendApi, Gpu, HostOffers, PullPolicy};

pub use catalog::{
    ModelHost, ModelStatus, Models, PullChange, PullRequest, PullState, PullStatus, Suggestion,
    Suggestions, Top, TopHost,
};

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
/// `POST` [`WhyRequest`] → [`Why`].
pub const PATH_WHY: &str = "/v1/why";
/// `GET` → [`NetCheck`], after the network was looked at anew.
pub const PATH_NETCHECK: &str = "/v1/netcheck";
/// `GET` → [`Models`].
pub const PATH_MODELS: &str = "/v1/models";
/// `GET` → [`Top`], after all hosts were asked.
pub const PATH_TOP: &str = "/v1/top";
/// `GET` → [`ShareStatus`]; `POST` [`ShareRequest`] → [`ShareStatus`].
pub const PATH_SHARE: &str = "/v1/share";
/// `GET ?days=N` → [`crate::usage::UsageReport`].
pub const PATH_USAGE: &str = "/v1/usage";
/// `POST` [`PullRequest`] → [`PullStatus`]: has a host pull a model, or tells how that stands.
pub const PATH_PULL: &str = "/v1/pull";
/// `GET` → [`Suggestions`]; `POST` [`crate::control::WantRequest`] → 204. Both ask the coordinator.
pub const PATH_WANTS: &str = "/v1/wants";
/// `GET` → [`Settings`]; `POST` [`SetRequest`] → [`Settings`].
pub const PATH_SETTINGS: &str = "/v1/settings";
/// `GET` → [`DnsStatus`].
pub const PATH_DNS: &str = "/v1/dns";
/// `GET ?name=NAME&type=TYPE`, a [`DnsQuery`] → [`DnsAnswer`].
pub const PATH_DNS_QUERY: &str = "/v1/dns/query";
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

/// Where this machine's programs find the mesh in userspace mode.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserspaceStatus {
    /// The SOCKS5 proxy, unless it is switched off.
    #[serde(default)]
    pub socks5: Option<SocketAddr>,
    /// The HTTP proxy, unless it is switched off.
    #[serde(default)]
    pub http_proxy: Option<SocketAddr>,
    /// The gateway to all models.
    pub gateway: SocketAddr,
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
    /// The name of the overlay interface; empty in userspace mode.
    pub interface: String,
    /// How this machine's programs reach the mesh without an interface; absent where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub userspace: Option<UserspaceStatus>,
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
    /// How many of the probes of that path are lost lately, in percent, once it was asked.
    #[serde(default)]
    pub loss_percent: Option<f64>,
    /// The longest packet that a direct path is known to take, in bytes of the overlay.
    #[serde(default)]
    pub path_mtu: Option<u16>,
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
    /// Whether to go into userspace mode, now and for good; as before when absent.
    #[serde(default)]
    pub userspace: bool,
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
    /// The longest packet that a direct path is known to take, in bytes of the overlay.
    #[serde(default)]
    pub path_mtu: Option<u16>,
}

/// Asks why one node reaches a port of another, or does not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WhyRequest {
    /// Who wants to reach it: a node's name, DNS name, id or overlay address, or `self`.
    pub from: String,
    /// What it wants to reach: a node alike, or a model.
    pub to: String,
    /// At which TCP port.
    pub port: u16,
}

/// What lies between a node and a port of another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Why {
    /// Who wants to reach it: a node's name.
    pub from: String,
    /// Whom it comes to; as it was asked when there is no such thing.
    pub to: String,
    /// At which TCP port.
    pub port: u16,
    /// What was looked at, in the order in which it matters.
    pub steps: Vec<WhyStep>,
}

/// One thing that must be right.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhyStep {
    /// What was looked at.
    pub subject: WhySubject,
    /// How it stands.
    pub verdict: Verdict,
    /// Why, for people.
    pub message: String,
    /// The command that mends it, when there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

/// What one step of an answer to "why" speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhySubject {
    /// What the mesh's policy allows.
    Policy,
    /// What the name stands for.
    Name,
    /// Whether a model is shared.
    Offer,
    /// How packets get there.
    Path,
}

/// How a step stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It is right.
    Yes,
    /// It works, but not as well as it could.
    Degraded,
    /// It fails.
    No,
    /// This node cannot tell.
    Unknown,
}

/// What the network around the node looks like.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NetCheck {
    /// Whether UDP passes over IPv4: a STUN server answered.
    pub has_udp_ipv4: bool,
    /// And over IPv6.
    pub has_udp_ipv6: bool,
    /// Why not over IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_ipv6: Option<NoIpv6>,
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

/// Why UDP does not pass over IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NoIpv6 {
    /// This machine has no IPv6 address that leads anywhere.
    NoAddress,
    /// No server of the mesh has one to ask by.
    NoServer,
    /// The servers that were asked do not answer.
    NoAnswer,
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
    /// Changes what guests are granted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub door: Option<DoorChange>,
    /// Changes who may have this machine pull models.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pulls: Option<PullChange>,
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
    /// What guests are granted, and how the door stands.
    #[serde(default)]
    pub door: DoorStatus,
    /// Who may have this machine pull models, and how much of its disk they may take.
    #[serde(default)]
    pub pulls: PullPolicy,
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
    /// Whether the node does without an overlay interface.
    #[serde(default)]
    pub userspace: UserspaceMode,
    /// Where the SOCKS5 proxy of userspace mode listens; nowhere when absent.
    #[serde(default = "socks5_default")]
    pub socks5: Option<SocketAddr>,
    /// Where the HTTP proxy of userspace mode listens; nowhere when absent.
    #[serde(default = "http_proxy_default")]
    pub http_proxy: Option<SocketAddr>,
    /// Where the gateway of userspace mode listens.
    #[serde(default = "gateway_default")]
    pub gateway: SocketAddr,
    /// Whether the node offers a relay to its mesh.
    #[serde(default)]
    pub relay: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            names: NameMode::default(),
            dns: true,
            operator_uid: None,
            userspace: UserspaceMode::default(),
            socks5: socks5_default(),
            http_proxy: http_proxy_default(),
            gateway: gateway_default(),
            relay: false,
        }
    }
}

const fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

const fn socks5_default() -> Option<SocketAddr> {
    Some(loopback(1055))
}

const fn http_proxy_default() -> Option<SocketAddr> {
    Some(loopback(1056))
}

/// One above Ollama's own port, which the machine's own Ollama has.
const fn gateway_default() -> SocketAddr {
    loopback(11_435)
}

/// Whether a node does without an overlay interface.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UserspaceMode {
    /// Where the machine gives it none.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never: without an interface the node is not up.
    Off,
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

/// Asks this node's own zone, whatever the system's resolver does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsQuery {
    /// The name.
    pub name: String,
    /// The record type, such as `A`.
    pub kind: String,
}

/// What the zone answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsAnswer {
    /// The name, absolute.
    pub name: String,
    /// The record type.
    pub kind: String,
    /// `NOERROR` or `NXDOMAIN`.
    pub code: String,
    /// What was asked for; empty when the name has none of that type.
    pub answers: Vec<DnsRecord>,
    /// Addresses of names in the answers.
    #[serde(default)]
    pub additionals: Vec<DnsRecord>,
}

/// A resource record, as text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsRecord {
    /// Whose it is.
    pub name: String,
    /// How long it may be kept, seconds.
    pub ttl: u32,
    /// The record type.
    pub kind: String,
    /// What it says.
    pub data: String,
}
