//! Every metric of the coordinator, defined once. Labels take their values from small fixed sets.

use std::sync::OnceLock;

use mesh_proto::relay::Denial;
use metrics::{counter, describe_counter, describe_gauge, gauge};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

const NODES: &str = "coordinator_nodes";
const NODES_ONLINE: &str = "coordinator_nodes_online";
const MAP_STREAMS: &str = "coordinator_map_streams";
const MAP_FRAMES: &str = "coordinator_map_frames_total";
const REGISTRATIONS: &str = "coordinator_registrations_total";
const REQUESTS: &str = "coordinator_requests_total";
const STORE_ERRORS: &str = "coordinator_store_errors_total";
const STUN_ANSWERS: &str = "coordinator_stun_answers_total";
const CONNECTIONS: &str = "coordinator_connections";
const RELAY_CLIENTS: &str = "coordinator_relay_clients";
const RELAY_QUEUED_BYTES: &str = "coordinator_relay_queued_bytes";
const RELAY_BYTES: &str = "coordinator_relay_bytes_total";
const RELAY_DATAGRAMS: &str = "coordinator_relay_datagrams_total";
const RELAY_UDP_DATAGRAMS: &str = "coordinator_relay_udp_datagrams_total";
const RELAY_DROPS: &str = "coordinator_relay_drops_total";
const RELAY_REFUSED: &str = "coordinator_relay_refused_total";

static HANDLE: OnceLock<Option<PrometheusHandle>> = OnceLock::new();

/// Installs the recorder of this process, once.
pub(crate) fn init() {
    HANDLE.get_or_init(|| {
        let handle = PrometheusBuilder::new().install_recorder().ok();
        describe_gauge!(NODES, "Nodes that are registered.");
        describe_gauge!(NODES_ONLINE, "Nodes that are online.");
        describe_gauge!(MAP_STREAMS, "Open map streams.");
        describe_counter!(
            MAP_FRAMES,
            "Map frames sent, by kind: full, delta, heartbeat."
        );
        describe_counter!(
            REGISTRATIONS,
            "Registrations, by outcome: ok or the error code."
        );
        describe_counter!(REQUESTS, "Requests answered, by class of status.");
        describe_counter!(
            STORE_ERRORS,
            "Writes and reads that the store could not do."
        );
        describe_counter!(STUN_ANSWERS, "STUN binding requests answered.");
        describe_gauge!(CONNECTIONS, "Open connections.");
        describe_gauge!(RELAY_CLIENTS, "Connections of nodes to the relay.");
        describe_gauge!(RELAY_QUEUED_BYTES, "Bytes that wait in the relay.");
        describe_counter!(
            RELAY_BYTES,
            "Bytes of sealed datagrams that the relay took in."
        );
        describe_counter!(RELAY_DATAGRAMS, "Sealed datagrams that the relay took in.");
        describe_counter!(RELAY_UDP_DATAGRAMS, "Those of them that went on by UDP.");
        describe_counter!(
            RELAY_DROPS,
            "Datagrams that the relay dropped, by reason: full, not_here, rate."
        );
        describe_counter!(
            RELAY_REFUSED,
            "Nodes that the relay turned away, by reason: not_registered, bad_proof, version, full."
        );
        counter!(RELAY_BYTES).increment(0);
        counter!(RELAY_DATAGRAMS).increment(0);
        counter!(RELAY_UDP_DATAGRAMS).increment(0);
        gauge!(RELAY_CLIENTS).increment(0.0);
        counter!(STORE_ERRORS).increment(0);
        counter!(STUN_ANSWERS).increment(0);
        gauge!(MAP_STREAMS).increment(0.0);
        gauge!(CONNECTIONS).increment(0.0);
        handle
    });
}

/// All metrics in Prometheus' text format.
pub(crate) fn render() -> String {
    HANDLE
        .get()
        .and_then(Option::as_ref)
        .map(PrometheusHandle::render)
        .unwrap_or_default()
}

pub(crate) fn nodes(n_nodes: usize, n_online: usize) {
    gauge!(NODES).set(n_nodes as f64);
    gauge!(NODES_ONLINE).set(n_online as f64);
}

pub(crate) fn map_stream_opened() {
    gauge!(MAP_STREAMS).increment(1.0);
}

pub(crate) fn map_stream_closed() {
    gauge!(MAP_STREAMS).decrement(1.0);
}

pub(crate) fn map_frame(kind: &'static str) {
    counter!(MAP_FRAMES, "kind" => kind).increment(1);
}

pub(crate) fn registration(outcome: &'static str) {
    counter!(REGISTRATIONS, "outcome" => outcome).increment(1);
}

pub(crate) fn request(status: u16) {
    let class = match status {
        200..=299 => "2xx",
        400..=499 => "4xx",
        500..=599 => "5xx",
        _ => "other",
    };
    counter!(REQUESTS, "class" => class).increment(1);
}

pub(crate) fn store_error() {
    counter!(STORE_ERRORS).increment(1);
}

pub(crate) fn stun_answer() {
    counter!(STUN_ANSWERS).increment(1);
}

pub(crate) fn connection_opened() {
    gauge!(CONNECTIONS).increment(1.0);
}

pub(crate) fn connection_closed() {
    gauge!(CONNECTIONS).decrement(1.0);
}

pub(crate) fn relay_client_entered() {
    gauge!(RELAY_CLIENTS).increment(1.0);
}

pub(crate) fn relay_client_left() {
    gauge!(RELAY_CLIENTS).decrement(1.0);
}

pub(crate) fn relay_queued(n_bytes: usize) {
    gauge!(RELAY_QUEUED_BYTES).set(n_bytes as f64);
}

pub(crate) fn relay_forwarded(n_datagrams: usize, n_bytes: usize) {
    counter!(RELAY_DATAGRAMS).increment(n_datagrams as u64);
    counter!(RELAY_BYTES).increment(n_bytes as u64);
}

pub(crate) fn relay_forwarded_by_udp(n_datagrams: usize) {
    counter!(RELAY_UDP_DATAGRAMS).increment(n_datagrams as u64);
}

pub(crate) fn relay_dropped(reason: &'static str, n_datagrams: usize) {
    counter!(RELAY_DROPS, "reason" => reason).increment(n_datagrams as u64);
}

pub(crate) fn relay_refused(reason: Denial) {
    let reason = match reason {
        Denial::NotRegistered => "not_registered",
        Denial::BadProof => "bad_proof",
        Denial::Version => "version",
        Denial::Full => "full",
        Denial::Other(_) => "other",
    };
    counter!(RELAY_REFUSED, "reason" => reason).increment(1);
}
