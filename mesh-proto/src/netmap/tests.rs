//! Tests of the netmap: diff and apply are inverse, frames hold for one node and one key.

use super::*;
use crate::key::MachinePrivateKey;

fn peer(n: u8) -> (NodeId, PeerEntry) {
    let machine = MachinePrivateKey::from_bytes(&[n; 32]);
    let node_key = NodeKey::from_bytes([n; 32]);
    let id = NodeId::of(&machine.public());
    let entry = PeerEntry {
        name: format!("node-{n}").parse().unwrap(),
        user: UserId(i64::from(n)),
        user_name: "anna".parse().unwrap(),
        tags: vec![],
        machine_key: machine.public(),
        node_key,
        node_key_signature: machine.sign(Purpose::NodeKey, node_key.as_bytes()),
        ipv4: Ipv4Addr::new(10, 77, 1, n),
        ipv6: Ipv6Addr::LOCALHOST,
        endpoints: vec![],
        disco_key: None,
        home_relay: None,
        expires_at_ms: None,
        is_online: true,
        last_seen_ms: None,
        offers: HostOffers::default(),
    };
    (id, entry)
}

fn map(peers: &[u8]) -> Netmap {
    let network = NetworkId::from_bytes([0xab; 16]);
    let pool = network.default_ipv4_pool();
    let (id, entry) = peer(200);
    Netmap {
        network: NetworkInfo {
            id: network,
            suffix: "proxima".to_owned(),
            ipv4_pool: pool,
            ipv6_prefix: network.ipv6_prefix(),
            service_ipv4: crate::id::service_ipv4(pool),
            service_ipv6: network.service_ipv6(),
            stun: vec!["192.0.2.1:3478".parse().unwrap()],
            coordinator_urls: vec!["https://192.0.2.1:7443".to_owned()],
            relays: vec![],
        },
        node: SelfNode {
            id,
            name: entry.name,
            user: entry.user,
            user_name: entry.user_name,
            tags: vec![],
            node_key: entry.node_key,
            ipv4: entry.ipv4,
            ipv6: network.ipv6_of(&id),
            expires_at_ms: None,
        },
        filter: Filter::default(),
        peers: peers.iter().map(|n| peer(*n)).collect(),
    }
}

#[test]
fn applying_a_diff_gives_the_newer_map() {
    let old = map(&[1, 2, 3]);
    let mut newer = map(&[2, 3, 4]);
    newer.peers.get_mut(&peer(3).0).unwrap().is_online = false;
    let delta = old.diff(&newer);
    assert_eq!((delta.peers.len(), delta.removed.len()), (2, 1));
    let mut applied = old;
    applied.apply(delta);
    assert_eq!(applied, newer);
    assert!(newer.diff(&newer).is_empty());
}

#[test]
fn a_frame_holds_for_its_node_and_key_alone() {
    let key = CoordinatorPrivateKey::from_bytes(&[9; 32]);
    let netmap = map(&[1, 2]);
    let to = netmap.node.id;
    let body = MapBody::Full(Box::new(netmap));
    let frame = MapFrame {
        to,
        revision: Revision {
            epoch: 1,
            version: 7,
        },
        sent_at_ms: 5,
        body,
    };
    let line = frame.to_line(&key);
    assert_eq!(MapFrame::from_line(&line, &key.public(), &to), Ok(frame));
    assert_eq!(
        MapFrame::from_line(&line, &key.public(), &peer(1).0),
        Err(FrameError::WrongNode)
    );
    let other = CoordinatorPrivateKey::from_bytes(&[8; 32]).public();
    assert_eq!(
        MapFrame::from_line(&line, &other, &to),
        Err(FrameError::BadSignature)
    );
    let changed = line.replace("\"version\":7", "\"version\":8");
    assert_eq!(
        MapFrame::from_line(&changed, &key.public(), &to),
        Err(FrameError::BadSignature)
    );
    assert_eq!(
        MapFrame::from_line("nonsense", &key.public(), &to),
        Err(FrameError::Malformed)
    );
}

#[test]
fn deltas_and_heartbeats_survive_their_line() {
    let key = CoordinatorPrivateKey::from_bytes(&[9; 32]);
    let to = peer(1).0;
    let delta = map(&[1, 2]).diff(&map(&[2, 3]));
    for body in [
        MapBody::Delta {
            since: 3,
            delta: Box::new(delta),
        },
        MapBody::Heartbeat {},
    ] {
        let frame = MapFrame {
            to,
            revision: Revision {
                epoch: 1,
                version: 4,
            },
            sent_at_ms: 5,
            body,
        };
        assert_eq!(
            MapFrame::from_line(&frame.to_line(&key), &key.public(), &to),
            Ok(frame)
        );
    }
}

#[test]
fn a_peer_whose_key_was_swapped_is_noticed() {
    let (id, mut entry) = peer(1);
    assert_eq!(entry.verify(&id), Ok(()));
    entry.node_key = NodeKey::from_bytes([99; 32]);
    assert!(entry.verify(&id).is_err());
    let (_, other) = peer(2);
    assert!(other.verify(&id).is_err());
}

#[test]
fn a_map_that_knows_no_relays_is_read() {
    let text = include_str!("../../tests/golden/netmap_without_relays.json");
    let netmap: Netmap = serde_json::from_str(text).unwrap();
    assert_eq!(netmap, map(&[1]));
    assert_eq!(serde_json::to_string(&netmap).unwrap(), text.trim());
}

#[test]
fn disco_keys_and_relays_survive_their_json() {
    let text = include_str!("../../tests/golden/netmap_with_relays.json");
    let netmap: Netmap = serde_json::from_str(text).unwrap();
    let relay = netmap.network.relays[0].clone();
    let entry = &netmap.peers[&peer(1).0];
    assert_eq!(relay.id, RelayId::of(&[7; 32], "https://192.0.2.1:443"));
    assert_eq!(entry.home_relay, Some(relay.id));
    assert_eq!(entry.disco_key, Some(DiscoKey::from_bytes([8; 32])));
    assert_eq!(serde_json::to_string(&netmap).unwrap(), text.trim());
}
