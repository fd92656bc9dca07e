//! Every metric of the daemon, defined once. Labels are few and never name a peer.

use std::sync::OnceLock;

use mesh_proto::local::{PathStatus, RunState, Status};
use metrics::{describe_counter, describe_gauge, gauge};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

/// 1 while the overlay works.
pub const UP: &str = "meshd_up";
/// 1 while the map stream is open.
pub const COORDINATOR_CONNECTED: &str = "meshd_coordinator_connected";
/// Peers in the map, by `state`: `online` or `offline`.
pub const PEERS: &str = "meshd_peers";
/// Peers with a session.
pub const SESSIONS: &str = "meshd_sessions";
/// Bytes of overlay packets, by `direction`: `rx` or `tx`.
pub const OVERLAY_BYTES: &str = "meshd_overlay_bytes_total";
/// Overlay packets, by `direction`.
pub const OVERLAY_PACKETS: &str = "meshd_overlay_packets_total";
/// Packets and datagrams that went no further, by `reason`.
pub const DROPS: &str = "meshd_drops_total";
/// Requests at the door and the gateway, by `side`, `api` and `outcome`.
pub const REQUESTS: &str = "meshd_requests_total";
/// Tokens of answers, by `side` and `kind`: `prompt` or `completion`.
pub const TOKENS: &str = "meshd_tokens_total";

static HANDLE: OnceLock<Option<PrometheusHandle>> = OnceLock::new();

/// Installs the recorder; later calls do nothing.
pub fn install() {
    HANDLE.get_or_init(|| {
        let handle = PrometheusBuilder::new().install_recorder().ok()?;
        describe_gauge!(UP, "1 while the overlay works");
        describe_gauge!(COORDINATOR_CONNECTED, "1 while the map stream is open");
        describe_gauge!(PEERS, "Peers in the map");
        describe_gauge!(SESSIONS, "Peers with a session");
        describe_counter!(OVERLAY_BYTES, "Bytes of overlay packets");
        describe_counter!(OVERLAY_PACKETS, "Overlay packets");
        describe_counter!(DROPS, "Packets and datagrams that went no further");
        describe_counter!(REQUESTS, "Model requests");
        describe_counter!(TOKENS, "Tokens of answers");
        Some(handle)
    });
}

/// Takes the gauges from a status.
pub fn observe(status: &Status) {
    gauge!(UP).set(f64::from(u8::from(status.state == RunState::Running)));
    let is_connected = status
        .coordinator
        .as_ref()
        .is_some_and(|coordinator| coordinator.is_connected);
    gauge!(COORDINATOR_CONNECTED).set(f64::from(u8::from(is_connected)));
    let n_online = status.peers.iter().filter(|peer| peer.is_online).count();
    gauge!(PEERS, "state" => "online").set(count(n_online));
    gauge!(PEERS, "state" => "offline").set(count(status.peers.len() - n_online));
    let n_sessions = status
        .peers
        .iter()
        .filter(|peer| matches!(peer.path, PathStatus::Direct { .. }))
        .count();
    gauge!(SESSIONS).set(count(n_sessions));
}

/// All metrics as Prometheus text.
#[must_use]
pub fn render() -> String {
    HANDLE
        .get()
        .and_then(Option::as_ref)
        .map_or_else(String::new, PrometheusHandle::render)
}

fn count(n: usize) -> f64 {
    f64::from(u32::try_from(n).unwrap_or(u32::MAX))
}
