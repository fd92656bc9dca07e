//! Every metric of the daemon, defined once. Labels are few and never name a peer.

use std::sync::OnceLock;

use mesh_proto::local::{PathStatus, RunState, Status};
use mesh_proto::relay::Denial;
use mesh_relay::Meter;
use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

use crate::dataplane::DataplaneStats;

/// 1 while the overlay works.
pub const UP: &str = "meshd_up";
/// 1 while the map stream is open.
pub const COORDINATOR_CONNECTED: &str = "meshd_coordinator_connected";
/// Peers in the map, by `state`: `online` or `offline`.
pub const PEERS: &str = "meshd_peers";
/// Peers with a session.
pub const SESSIONS: &str = "meshd_sessions";
/// Peers with a session that are reached by a relay.
pub const RELAYED: &str = "meshd_relayed_sessions";
/// Datagrams by relays, by `direction`.
pub const RELAY_DATAGRAMS: &str = "meshd_relay_datagrams_total";
/// Those of them that went by UDP, by `direction`.
pub const RELAY_UDP_DATAGRAMS: &str = "meshd_relay_udp_datagrams_total";
/// Datagrams for a relay without a link, or whose link was full.
pub const RELAY_LOST: &str = "meshd_relay_datagrams_lost_total";
/// Datagrams that went twice, over a path that loses packets.
pub const REPEATED: &str = "meshd_datagrams_repeated_total";
/// Connections of nodes to the relay that this node offers.
pub const OFFERED_CLIENTS: &str = "meshd_offered_relay_clients";
/// Sealed datagrams that it took in.
pub const OFFERED_DATAGRAMS: &str = "meshd_offered_relay_datagrams_total";
/// Their bytes.
pub const OFFERED_BYTES: &str = "meshd_offered_relay_bytes_total";
/// Datagrams that it dropped, by `reason`.
pub const OFFERED_DROPS: &str = "meshd_offered_relay_drops_total";
/// Bytes of overlay packets, by `direction`: `rx` or `tx`.
pub const OVERLAY_BYTES: &str = "meshd_overlay_bytes_total";
/// Overlay packets, by `direction`.
pub const OVERLAY_PACKETS: &str = "meshd_overlay_packets_total";
/// Packets and datagrams that went no further, by `reason`.
pub const DROPS: &str = "meshd_drops_total";
/// Requests that the door passed to a backend, by `path` and `outcome`.
pub const DOOR_REQUESTS: &str = "meshd_door_requests_total";
/// Tokens of prompts that backends read.
pub const DOOR_PROMPT_TOKENS: &str = "meshd_door_prompt_tokens_total";
/// Tokens that backends generated.
pub const DOOR_OUTPUT_TOKENS: &str = "meshd_door_output_tokens_total";
/// Seconds from a request's arrival at the door to the end of its reply, by `path`.
pub const DOOR_DURATION: &str = "meshd_door_request_duration_seconds";
/// Requests that the door or the own gateway refused, by `status`.
pub const DOOR_REFUSED: &str = "meshd_door_refused_total";
/// Requests of guests that a limit, the queue or the owner's hours turned away, by `reason`.
pub const DOOR_LIMITED: &str = "meshd_door_limited_total";
/// Seconds that requests waited for their turn.
pub const DOOR_WAIT: &str = "meshd_door_wait_seconds";
/// Requests in work at the door.
pub const DOOR_ACTIVE: &str = "meshd_door_active";
/// Requests that wait at the door.
pub const DOOR_WAITING: &str = "meshd_door_waiting";
/// 1 while the door is closed to guests.
pub const DOOR_CLOSED: &str = "meshd_door_closed";
/// Replies whose figures do not agree with what was delivered.
pub const DOOR_DOUBTFUL: &str = "meshd_door_doubtful_counts_total";
/// Usage records that are on disk.
pub const USAGE_WRITTEN: &str = "meshd_usage_written_total";
/// Usage records that were lost for want of room.
pub const USAGE_LOST: &str = "meshd_usage_lost_total";
/// Requests of this machine to the mesh's models, by `outcome`.
pub const GUEST_REQUESTS: &str = "meshd_guest_requests_total";

/// Bounds of the duration histogram, seconds: from a cached answer to a long generation.
const SECONDS: [f64; 10] = [0.01, 0.05, 0.25, 1.0, 2.5, 5.0, 15.0, 60.0, 240.0, 900.0];

static HANDLE: OnceLock<Option<PrometheusHandle>> = OnceLock::new();

/// Installs the recorder; later calls do nothing.
pub fn install() {
    HANDLE.get_or_init(|| {
        let handle = PrometheusBuilder::new()
            .set_buckets(&SECONDS)
            .ok()?
            .install_recorder()
            .ok()?;
        describe_gauge!(UP, "1 while the overlay works");
        describe_gauge!(COORDINATOR_CONNECTED, "1 while the map stream is open");
        describe_gauge!(PEERS, "Peers in the map");
        describe_gauge!(SESSIONS, "Peers with a session");
        describe_gauge!(RELAYED, "Peers with a session that are reached by a relay");
        describe_counter!(RELAY_DATAGRAMS, "Datagrams by relays");
        describe_counter!(RELAY_UDP_DATAGRAMS, "Those of them that went by UDP");
        describe_counter!(
            RELAY_LOST,
            "Datagrams for a relay without a link, or whose link was full"
        );
        describe_counter!(
            REPEATED,
            "Datagrams that went twice, over a path that loses packets"
        );
        describe_gauge!(
            OFFERED_CLIENTS,
            "Connections of nodes to the relay that this node offers"
        );
        describe_counter!(OFFERED_DATAGRAMS, "Sealed datagrams that it took in");
        describe_counter!(OFFERED_BYTES, "Their bytes");
        describe_counter!(OFFERED_DROPS, "Datagrams that it dropped");
        describe_counter!(OVERLAY_BYTES, "Bytes of overlay packets");
        describe_counter!(OVERLAY_PACKETS, "Overlay packets");
        describe_counter!(DROPS, "Packets and datagrams that went no further");
        describe_counter!(DOOR_REQUESTS, "Requests that the door passed to a backend");
        describe_counter!(DOOR_PROMPT_TOKENS, "Prompt tokens that backends counted");
        describe_counter!(DOOR_OUTPUT_TOKENS, "Output tokens that backends counted");
        describe_counter!(
            DOOR_REFUSED,
            "Requests that the door or the own gateway refused"
        );
        describe_counter!(DOOR_LIMITED, "Requests of guests that were turned away");
        describe_histogram!(DOOR_WAIT, "Waits for a turn at the door, seconds");
        describe_gauge!(DOOR_ACTIVE, "Requests in work at the door");
        describe_gauge!(DOOR_WAITING, "Requests that wait at the door");
        describe_gauge!(DOOR_CLOSED, "1 while the door is closed to guests");
        describe_counter!(
            DOOR_DOUBTFUL,
            "Replies whose figures do not agree with what was delivered"
        );
        describe_counter!(USAGE_WRITTEN, "Usage records that are on disk");
        describe_counter!(USAGE_LOST, "Usage records that were lost for want of room");
        describe_counter!(
            GUEST_REQUESTS,
            "Requests of this machine to the mesh's models"
        );
        describe_histogram!(DOOR_DURATION, "Duration of requests at the door, seconds");
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
        .filter(|peer| {
            matches!(
                peer.path,
                PathStatus::Direct { .. } | PathStatus::Relayed { .. }
            )
        })
        .count();
    gauge!(SESSIONS).set(count(n_sessions));
    let n_relayed = status
        .peers
        .iter()
        .filter(|peer| matches!(peer.path, PathStatus::Relayed { .. }))
        .count();
    gauge!(RELAYED).set(count(n_relayed));
}

/// Takes the gauges of the door.
pub fn observe_door(n_active: u32, n_waiting: u32, is_closed: bool) {
    gauge!(DOOR_ACTIVE).set(f64::from(n_active));
    gauge!(DOOR_WAITING).set(f64::from(n_waiting));
    gauge!(DOOR_CLOSED).set(f64::from(u8::from(is_closed)));
}

/// Takes the counters of the data plane.
pub fn observe_dataplane(stats: &DataplaneStats) {
    for (direction, bytes, packets) in [
        ("rx", stats.rx_bytes, stats.rx_packets),
        ("tx", stats.tx_bytes, stats.tx_packets),
    ] {
        counter!(OVERLAY_BYTES, "direction" => direction).absolute(bytes);
        counter!(OVERLAY_PACKETS, "direction" => direction).absolute(packets);
    }
    counter!(RELAY_DATAGRAMS, "direction" => "rx").absolute(stats.rx_relayed);
    counter!(RELAY_DATAGRAMS, "direction" => "tx").absolute(stats.tx_relayed);
    counter!(RELAY_UDP_DATAGRAMS, "direction" => "rx").absolute(stats.rx_relayed_udp);
    counter!(RELAY_UDP_DATAGRAMS, "direction" => "tx").absolute(stats.tx_relayed_udp);
    counter!(RELAY_LOST).absolute(stats.relay_lost);
    counter!(REPEATED).absolute(stats.repeated);
    for (reason, n) in stats.drops() {
        counter!(DROPS, "reason" => reason.label()).absolute(n);
    }
}

/// Counts for the relay that this node offers.
#[derive(Debug)]
pub struct OfferedRelay;

impl Meter for OfferedRelay {
    fn entered(&self) {
        gauge!(OFFERED_CLIENTS).increment(1.0);
    }

    fn left(&self) {
        gauge!(OFFERED_CLIENTS).decrement(1.0);
    }

    fn refused(&self, _reason: Denial) {}

    fn queued(&self, _n_bytes: usize) {}

    fn forwarded(&self, n_datagrams: usize, n_bytes: usize) {
        counter!(OFFERED_DATAGRAMS).increment(n_datagrams as u64);
        counter!(OFFERED_BYTES).increment(n_bytes as u64);
    }

    fn forwarded_by_udp(&self, _n_datagrams: usize) {}

    fn dropped(&self, reason: &'static str, n_datagrams: usize) {
        counter!(OFFERED_DROPS, "reason" => reason).increment(n_datagrams as u64);
    }

    fn stun_answered(&self) {}
}

/// Folds recorded durations into their histograms; without it they would pile up until somebody looks.
pub fn upkeep() {
    if let Some(handle) = HANDLE.get().and_then(Option::as_ref) {
        handle.run_upkeep();
    }
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
