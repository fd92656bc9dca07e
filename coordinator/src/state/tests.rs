//! Tests of the mesh in memory, and the records they are made of.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use mesh_proto::id::{NetworkId, service_ipv4};
use mesh_proto::key::{MachinePrivateKey, NodeKey, Purpose};
use mesh_proto::share::{BackendApi, HostOffers, Offer};

use super::*;

pub(crate) fn record(n: u8) -> NodeRecord {
    let machine = MachinePrivateKey::from_bytes(&[n; 32]);
    let node_key = NodeKey::from_bytes([n; 32]);
    NodeRecord {
        id: NodeId::of(&machine.public()),
        name: format!("node-{n}").parse().unwrap(),
        user: UserId(1),
        tags: vec![],
        machine_key: machine.public(),
        node_key,
        node_key_signature: machine.sign(Purpose::NodeKey, node_key.as_bytes()),
        ipv4: Ipv4Addr::new(10, 77, 1, n),
        os: "linux".to_owned(),
        version: "0.1.0".to_owned(),
        is_ephemeral: false,
        created_at_ms: 1,
        expires_at_ms: None,
        last_seen_ms: None,
        was_online: false,
        endpoints: vec![],
        offers: Arc::default(),
    }
}

pub(crate) fn hosting(n: u8) -> NodeRecord {
    let offer = Offer::new("llama3", BackendApi::Ollama);
    NodeRecord {
        offers: Arc::new(HostOffers {
            models: vec![offer.into()],
            ..HostOffers::default()
        }),
        ..record(n)
    }
}

pub(crate) fn user(id: i64, name: &str) -> UserRecord {
    UserRecord {
        id: UserId(id),
        name: name.parse().unwrap(),
        created_at_ms: 1,
    }
}

/// A mesh of two users whose grace is over.
pub(crate) fn state(now: Instant) -> State {
    let id = NetworkId::from_bytes([0xab; 16]);
    let network = NetworkInfo {
        id,
        suffix: "proxima".to_owned(),
        ipv4_pool: id.default_ipv4_pool(),
        ipv6_prefix: id.ipv6_prefix(),
        service_ipv4: service_ipv4(id.default_ipv4_pool()),
        service_ipv6: id.service_ipv6(),
        stun: vec![],
        coordinator_urls: vec![],
        relays: vec![],
    };
    let mut state = State::new(network, 3, now);
    state.put_user(user(1, "anna"));
    state.put_user(user(2, "bob"));
    state
}

fn is_online(state: &State, record: &NodeRecord) -> bool {
    state.node(&record.id).unwrap().presence.is_online()
}

#[test]
fn what_changes_nothing_raises_no_version() {
    let now = Instant::now();
    let mut state = state(now);
    state.put_node(record(1), now, 10);
    let before = state.revision();
    state.put_node(record(1), now, 20);
    state.put_user(user(1, "anna"));
    state.on_tick(now, 20, 1000);
    state.on_beat(&record(9).id, now, 20);
    assert_eq!(state.revision(), before);
    state.put_user(user(1, "hanna"));
    assert_eq!(state.revision().version, before.version + 1);
}

#[test]
fn a_host_must_beat_and_a_guest_need_not() {
    let now = Instant::now();
    let mut state = state(now);
    let (guest, host) = (record(1), hosting(2));
    for node in [&guest, &host] {
        state.put_node(node.clone(), now, 10);
        assert!(!is_online(&state, node));
        state.on_stream_opened(&node.id, now, 10);
        assert!(is_online(&state, node));
    }
    let silent = now + Duration::from_millis(3000);
    state.on_tick(silent, 3010, 1000);
    assert!(is_online(&state, &guest) && !is_online(&state, &host));
    state.on_beat(&host.id, silent, 3010);
    assert!(is_online(&state, &host));
    state.on_stream_closed(&host.id, silent, 3011);
    state.on_beat(&host.id, silent, 3012);
    assert!(
        !is_online(&state, &host),
        "beats without a stream are not enough"
    );
}

#[test]
fn those_online_before_a_start_stay_so_for_the_grace() {
    let start = Instant::now();
    let mut state = state(start + Duration::from_secs(10));
    let before = NodeRecord {
        was_online: true,
        ..hosting(1)
    };
    state.put_node(before.clone(), start, 10);
    state.put_node(record(2), start, 10);
    state.on_tick(start + Duration::from_secs(9), 9010, 1000);
    assert!(is_online(&state, &before) && !is_online(&state, &record(2)));
    state.on_tick(start + Duration::from_secs(10), 10_010, 1000);
    assert!(!is_online(&state, &before));
}

#[test]
fn expiry_and_absence_become_due() {
    let now = Instant::now();
    let mut state = state(now);
    let expiring = NodeRecord {
        expires_at_ms: Some(1000),
        ..record(1)
    };
    let brief = NodeRecord {
        is_ephemeral: true,
        ..record(2)
    };
    for node in [&expiring, &brief] {
        state.put_node(node.clone(), now, 10);
        state.on_stream_opened(&node.id, now, 10);
    }
    assert_eq!(state.on_tick(now, 999, 500), Due::default());
    assert_eq!(
        state.on_tick(now, 1000, 500),
        Due {
            expired: vec![expiring.id],
            forgotten: vec![]
        }
    );
    assert!(!is_online(&state, &expiring));
    state.on_stream_closed(&expiring.id, now, 1000);
    state.on_stream_closed(&brief.id, now, 1000);
    assert_eq!(state.on_tick(now, 1499, 500), Due::default());
    assert_eq!(
        state.on_tick(now, 1500, 500),
        Due {
            expired: vec![],
            forgotten: vec![brief.id]
        }
    );
}

#[test]
fn presence_is_kept_when_it_changed() {
    let now = Instant::now();
    let mut state = state(now);
    state.put_node(record(1), now, 10);
    assert!(state.take_presence_to_keep().is_empty());
    state.on_stream_opened(&record(1).id, now, 20);
    let kept = state.take_presence_to_keep();
    assert_eq!(
        (kept.len(), kept[0].was_online, kept[0].last_seen_ms),
        (1, true, Some(20))
    );
    assert!(state.take_presence_to_keep().is_empty());
}

#[test]
fn a_reload_makes_memory_what_the_store_is() {
    let now = Instant::now();
    let mut state = state(now);
    state.put_node(record(1), now, 10);
    state.put_node(record(2), now, 10);
    let renamed = NodeRecord {
        name: "new".parse().unwrap(),
        ..record(2)
    };
    state.reload(
        vec![user(1, "anna")],
        vec![renamed.clone(), record(3)],
        vec![],
        now,
        20,
    );
    let known: BTreeSet<_> = state.nodes().map(|node| node.record.id).collect();
    assert_eq!(known, [renamed.id, record(3).id].into());
    assert_eq!(state.node(&renamed.id).unwrap().record, renamed);
}

#[test]
fn a_nodes_relay_is_named_while_its_newest_stream_holds_it() {
    let now = Instant::now();
    let mut state = state(now);
    let node = record(1);
    let entry = |port: u16| RelayEntry {
        id: RelayId::of(&[7; 32], &format!("https://192.0.2.1:{port}")),
        name: "node-1".to_owned(),
        urls: vec![format!("https://192.0.2.1:{port}")],
        pin: Pin::from_bytes([7; 32]),
        udp: vec![],
        stun: vec![],
    };
    let named = |state: &State| state.network().relays.clone();
    state.put_offer(node.id, 1, entry(1));
    assert!(!state.is_offering(&node.id, 10), "it is not in the mesh");
    state.end_offer(&node.id, 1);
    state.put_node(node.clone(), now, 10);
    let before = state.revision().version;
    state.put_offer(node.id, 2, entry(1));
    assert!(state.is_offering(&node.id, 10) && state.is_network_newer(before));
    assert_eq!(
        (named(&state), state.n_other_relays(&node.id)),
        (vec![entry(1)], 0)
    );
    assert_eq!(state.n_other_relays(&record(2).id), 1);
    // The node comes anew, and the end of the stream that it left is noticed late.
    state.put_offer(node.id, 3, entry(2));
    state.end_offer(&node.id, 2);
    assert_eq!(named(&state), [entry(2)]);
    state.end_offer(&node.id, 3);
    assert!(named(&state).is_empty() && !state.is_offering(&node.id, 10));
}
