//! The control socket: what `meshctl` may ask of the daemon, and who may ask it.
//!
//! The daemon implements [`LocalApi`]; [`LocalServer`] speaks HTTP/1.1 and JSON over a Unix socket on its behalf, as
//! [`mesh_proto::local`] lays down.

mod auth;
mod server;
mod settings;

use std::future::Future;
use std::time::Duration;

use mesh_proto::control::{WantRequest, code};
use mesh_proto::local::{
    DnsAnswer, DnsQuery, DnsStatus, Models, NetCheck, PingReply, PingRequest, PullRequest,
    PullStatus, SetRequest, Settings, ShareRequest, ShareStatus, Status, Suggestions, Top,
    UpRequest, Why, WhyRequest,
};
use mesh_proto::usage::UsageReport;

pub use server::{BindError, LocalServer};
pub use settings::apply_settings;

/// The state that a caller of `status` wants to see first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitFor {
    /// The overlay works, if need be from the last map on disk.
    Running,
    /// The overlay works, the coordinator is heard, and names are served.
    Ready,
}

/// What the daemon does on behalf of the control socket.
///
/// A caller that hangs up drops the future at its next `.await`: whatever must be finished belongs to the daemon's own
/// loop, not to the future.
pub trait LocalApi: Send + Sync + 'static {
    /// Everything at a glance; with `wait`, once that state is reached, or [`code::TIMEOUT`] after `timeout`.
    fn status(
        &self,
        wait: Option<WaitFor>,
        timeout: Duration,
    ) -> impl Future<Output = Result<Status, LocalError>> + Send;

    /// Switches the node on, and joins with an auth key where one is given.
    fn up(&self, request: UpRequest) -> impl Future<Output = Result<Status, LocalError>> + Send;

    /// Switches the node off; the identity stays.
    fn down(&self) -> impl Future<Output = Result<(), LocalError>> + Send;

    /// Leaves the mesh and forgets the identity.
    fn logout(&self) -> impl Future<Output = Result<(), LocalError>> + Send;

    /// Makes a new node key.
    fn rotate(&self) -> impl Future<Output = Result<(), LocalError>> + Send;

    /// Sends one probe to a peer.
    fn ping(
        &self,
        request: PingRequest,
    ) -> impl Future<Output = Result<PingReply, LocalError>> + Send;

    /// Why one node reaches a port of another, or does not.
    fn why(&self, request: WhyRequest) -> impl Future<Output = Result<Why, LocalError>> + Send;

    /// The catalogue as this node sees it.
    fn models(&self) -> impl Future<Output = Result<Models, LocalError>> + Send;

    /// How all hosts stand that this node may use.
    fn top(&self) -> impl Future<Output = Result<Top, LocalError>> + Send;

    /// Has a host pull a model, or tells how that stands.
    fn pull(
        &self,
        request: PullRequest,
    ) -> impl Future<Output = Result<PullStatus, LocalError>> + Send;

    /// Tells the coordinator that this node's user would like a model, or no longer.
    fn want(&self, request: WantRequest) -> impl Future<Output = Result<(), LocalError>> + Send;

    /// What the mesh would like to have shared.
    fn suggestions(&self) -> impl Future<Output = Result<Suggestions, LocalError>> + Send;

    /// What this node shares.
    fn share_status(&self) -> impl Future<Output = Result<ShareStatus, LocalError>> + Send;

    /// Changes what this node shares.
    fn share(
        &self,
        request: ShareRequest,
    ) -> impl Future<Output = Result<ShareStatus, LocalError>> + Send;

    /// What was used of this node as a host in the last so many days, today included.
    fn usage(&self, n_days: u32) -> impl Future<Output = Result<UsageReport, LocalError>> + Send;

    /// The settings. Also read to learn the operator whenever a caller wants to change something.
    fn settings(&self) -> impl Future<Output = Result<Settings, LocalError>> + Send;

    /// Changes settings; [`apply_settings`] does the reading.
    fn set(&self, request: SetRequest)
    -> impl Future<Output = Result<Settings, LocalError>> + Send;

    /// What the network around this node looks like.
    fn netcheck(&self) -> impl Future<Output = Result<NetCheck, LocalError>> + Send;

    /// How names are wired into the system.
    fn dns(&self) -> impl Future<Output = Result<DnsStatus, LocalError>> + Send;

    /// What this node's zone says of a name.
    fn dns_query(
        &self,
        query: DnsQuery,
    ) -> impl Future<Output = Result<DnsAnswer, LocalError>> + Send;

    /// Prometheus text.
    fn metrics(&self) -> impl Future<Output = Result<String, LocalError>> + Send;

    /// All that helps to find a fault, without secrets.
    fn bugreport(&self) -> impl Future<Output = Result<serde_json::Value, LocalError>> + Send;
}

/// Why a call was not done. The message is for people and says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct LocalError {
    /// One of [`mesh_proto::control::code`].
    pub code: &'static str,
    /// What happened and what to do.
    pub message: String,
}

/// Every code that crosses the control socket; the coordinator's own pass through it.
const CODES: [&str; 20] = [
    code::BAD_REQUEST,
    code::AUTH_KEY_UNKNOWN,
    code::AUTH_KEY_SPENT,
    code::AUTH_KEY_EXPIRED,
    code::AUTH_KEY_REVOKED,
    code::NOT_REGISTERED,
    code::NODE_EXPIRED,
    code::BAD_PROOF,
    code::BAD_NONCE,
    code::UNAUTHORIZED,
    code::FORBIDDEN,
    code::NOT_FOUND,
    code::CONFLICT,
    code::RATE_LIMITED,
    code::POOL_EXHAUSTED,
    code::UNAVAILABLE,
    code::INTERNAL,
    code::NEEDS_LOGIN,
    code::TIMEOUT,
    code::REFUSED,
];

impl LocalError {
    /// Builds the error.
    #[must_use]
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }

    /// Passes on an error whose code came over the wire; a code that nobody knows becomes [`code::INTERNAL`].
    #[must_use]
    pub fn from_wire(wire_code: &str, message: impl Into<String>) -> Self {
        let known = CODES.into_iter().find(|known| *known == wire_code);
        Self::new(known.unwrap_or(code::INTERNAL), message)
    }
}

#[cfg(test)]
mod tests;
