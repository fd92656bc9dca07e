//! What the keeper takes in, refuses, keeps on disk, and reads again.

use std::collections::BTreeMap;

use mesh_proto::filter::Filter;
use mesh_proto::id::NetworkId;
use mesh_proto::key::{CoordinatorPrivateKey, MachinePrivateKey, NodePrivateKey, Purpose};
use mesh_proto::netmap::{NetmapDelta, NetworkInfo, SelfNode};
use mesh_proto::share::HostOffers;

use super::*;

struct Stage {
    dir: tempfile::TempDir,
    state: Option<StateDir>,
    coordinator: CoordinatorPrivateKey,
    credentials: Credentials,
}

impl Stage {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let machine_key = MachinePrivateKey::from_bytes(&[1; 32]);
        let coordinator = CoordinatorPrivateKey::from_bytes(&[9; 32]);
        Self {
            state: Some(StateDir::open(dir.path()).unwrap()),
            dir,
            credentials: Credentials {
                node_id: NodeId::of(&machine_key.public()),
                machine_key,
                coordinator_key: coordinator.public(),
                urls: Vec::new(),
            },
            coordinator,
        }
    }

    fn load(&self) -> MapKeeper {
        MapKeeper::load(self.state.as_ref().unwrap(), &self.credentials).unwrap()
    }

    fn tell(&self, keeper: &mut MapKeeper, epoch: u64, version: u64, body: MapBody) -> Applied {
        let frame = MapFrame {
            to: self.credentials.node_id,
            revision: Revision { epoch, version },
            sent_at_ms: 0,
            body,
        };
        let line = frame.to_line(&self.coordinator);
        keeper.on_frame(frame, &line, self.state.as_ref().unwrap())
    }

    fn full(&self, peers: &[u8]) -> MapBody {
        let id = NetworkId::of(&self.credentials.coordinator_key);
        let pool = id.default_ipv4_pool();
        MapBody::Full(Box::new(Netmap {
            network: NetworkInfo {
                id,
                suffix: "proxima".to_owned(),
                ipv4_pool: pool,
                ipv6_prefix: id.ipv6_prefix(),
                service_ipv4: mesh_proto::id::service_ipv4(pool),
                service_ipv6: id.service_ipv6(),
                stun: Vec::new(),
                coordinator_urls: Vec::new(),
                relays: vec![],
            },
            node: SelfNode {
                id: self.credentials.node_id,
                name: "own".parse().unwrap(),
                user: mesh_proto::id::UserId(1),
                user_name: "admin".parse().unwrap(),
                tags: Vec::new(),
                node_key: NodePrivateKey::from_bytes([1; 32]).public(),
                ipv4: "10.1.1.0".parse().unwrap(),
                ipv6: id.ipv6_of(&self.credentials.node_id),
                expires_at_ms: None,
            },
            filter: Filter::default(),
            peers: peers.iter().map(|n| peer(*n)).collect(),
        }))
    }

    fn path(&self) -> std::path::PathBuf {
        self.dir.path().join("netmap.log")
    }
}

fn peer(n: u8) -> (NodeId, PeerEntry) {
    let machine_key = MachinePrivateKey::from_bytes(&[n; 32]);
    let node_key = NodePrivateKey::from_bytes([n; 32]).public();
    let id = NodeId::of(&machine_key.public());
    let entry = PeerEntry {
        name: format!("peer{n}").parse().unwrap(),
        user: mesh_proto::id::UserId(1),
        user_name: "admin".parse().unwrap(),
        tags: Vec::new(),
        machine_key: machine_key.public(),
        node_key,
        node_key_signature: machine_key.sign(Purpose::NodeKey, node_key.as_bytes()),
        ipv4: [10, 1, 2, n].into(),
        ipv6: [0xfd00, 0, 0, 0, 0, 0, 0, u16::from(n)].into(),
        endpoints: Vec::new(),
        disco_key: None,
        home_relay: None,
        expires_at_ms: None,
        is_online: true,
        last_seen_ms: None,
        offers: HostOffers::default(),
    };
    (id, entry)
}

fn delta(since: u64, peers: impl IntoIterator<Item = (NodeId, PeerEntry)>) -> MapBody {
    let delta = NetmapDelta {
        peers: peers.into_iter().collect(),
        ..NetmapDelta::default()
    };
    MapBody::Delta {
        since,
        delta: Box::new(delta),
    }
}

fn n_peers(keeper: &MapKeeper) -> usize {
    keeper.netmap().map_or(0, |netmap| netmap.peers.len())
}

#[test]
fn a_full_map_deltas_and_heartbeats_are_taken_in_and_read_again() {
    let stage = Stage::new();
    let mut keeper = stage.load();
    assert_eq!((keeper.revision(), n_peers(&keeper)), (None, 0));
    assert_eq!(
        stage.tell(&mut keeper, 2, 5, stage.full(&[2])),
        Applied::Changed
    );
    assert_eq!(
        stage.tell(&mut keeper, 2, 5, MapBody::Heartbeat {}),
        Applied::Same
    );
    assert_eq!(
        stage.tell(&mut keeper, 2, 7, delta(5, [peer(3)])),
        Applied::Changed
    );
    let again = stage.load();
    assert_eq!(again.netmap(), keeper.netmap());
    assert_eq!(n_peers(&again), 2);
    assert_eq!(
        again.revision(),
        Some(Revision {
            epoch: 2,
            version: 7
        })
    );
}

#[test]
fn a_delta_that_does_not_follow_asks_for_a_full_map() {
    let stage = Stage::new();
    let mut keeper = stage.load();
    assert_eq!(
        stage.tell(&mut keeper, 2, 5, delta(4, [])),
        Applied::NeedsFull
    );
    stage.tell(&mut keeper, 2, 5, stage.full(&[]));
    assert_eq!(
        stage.tell(&mut keeper, 2, 8, delta(6, [])),
        Applied::NeedsFull
    );
    assert_eq!(
        stage.tell(&mut keeper, 3, 8, delta(5, [])),
        Applied::NeedsFull
    );
    assert_eq!(
        keeper.revision(),
        Some(Revision {
            epoch: 2,
            version: 5
        })
    );
}

#[test]
fn an_older_map_is_refused_also_after_a_full_one_was_asked_for_and_after_a_restart() {
    let stage = Stage::new();
    let mut keeper = stage.load();
    stage.tell(&mut keeper, 2, 5, stage.full(&[2]));
    assert_eq!(
        stage.tell(&mut keeper, 2, 4, stage.full(&[])),
        Applied::Older
    );
    assert_eq!(
        stage.tell(&mut keeper, 1, 9, stage.full(&[])),
        Applied::Older
    );
    assert_eq!(stage.tell(&mut keeper, 2, 4, delta(5, [])), Applied::Older);
    keeper.ask_full();
    assert_eq!(keeper.revision(), None);
    assert_eq!(
        stage.tell(&mut keeper, 1, 9, stage.full(&[])),
        Applied::Older
    );
    let mut again = stage.load();
    assert_eq!(
        stage.tell(&mut again, 1, 9, stage.full(&[])),
        Applied::Older
    );
    assert_eq!(n_peers(&again), 1);
    assert_eq!(
        stage.tell(&mut again, 3, 1, stage.full(&[])),
        Applied::Changed
    );
}

#[test]
fn a_peer_whose_key_its_machine_did_not_sign_is_left_out() {
    let stage = Stage::new();
    let mut keeper = stage.load();
    stage.tell(&mut keeper, 1, 1, stage.full(&[2]));
    let (id, mut forged) = peer(3);
    forged.node_key = NodePrivateKey::from_bytes([7; 32]).public();
    let (_, honest) = peer(4);
    let stolen_id = NodeId::from_bytes([5; 10]);
    stage.tell(
        &mut keeper,
        1,
        2,
        delta(1, [(id, forged.clone()), (stolen_id, honest)]),
    );
    assert_eq!(n_peers(&keeper), 1);
    let MapBody::Full(mut netmap) = stage.full(&[]) else {
        unreachable!("it is a full map")
    };
    netmap.peers = BTreeMap::from([(id, forged)]);
    stage.tell(&mut keeper, 1, 3, MapBody::Full(netmap));
    assert_eq!(n_peers(&keeper), 0);
}

#[test]
fn after_many_deltas_a_full_map_is_asked_for_and_the_change_still_counts() {
    let stage = Stage::new();
    let mut keeper = stage.load();
    stage.tell(&mut keeper, 1, 1, stage.full(&[]));
    keeper.n_deltas = N_DELTAS_MAX - 1;
    let applied = stage.tell(&mut keeper, 1, 2, delta(1, [peer(2)]));
    assert!(applied.is_changed() && applied.needs_full());
    assert_eq!(
        stage.tell(&mut keeper, 1, 2, stage.full(&[2])),
        Applied::Changed
    );
    assert_eq!(stage.load().n_deltas, 0);
}

#[test]
fn nothing_is_added_behind_a_cut_or_foreign_line() {
    for damage in ["cut short", "no signature {}\n"] {
        let stage = Stage::new();
        let mut keeper = stage.load();
        stage.tell(&mut keeper, 1, 1, stage.full(&[2]));
        let mut kept = std::fs::read_to_string(stage.path()).unwrap();
        kept.push_str(damage);
        std::fs::write(stage.path(), &kept).unwrap();
        let mut again = stage.load();
        assert_eq!(n_peers(&again), 1, "{damage}");
        assert_eq!(again.revision(), None, "{damage}: a full map must come");
        stage.tell(&mut again, 1, 2, stage.full(&[2, 3]));
        stage.tell(&mut again, 1, 3, delta(2, [peer(4)]));
        assert_eq!(n_peers(&stage.load()), 3, "{damage}");
    }
}

#[test]
fn what_cannot_be_kept_is_used_all_the_same_and_kept_again_later() {
    let stage = Stage::new();
    let mut keeper = stage.load();
    stage.tell(&mut keeper, 1, 1, stage.full(&[2]));
    // A folder in its place stands for a disk that takes nothing, also for root.
    std::fs::remove_file(stage.path()).unwrap();
    std::fs::create_dir(stage.path()).unwrap();
    assert_eq!(
        stage.tell(&mut keeper, 1, 2, delta(1, [peer(3)])),
        Applied::Changed
    );
    assert_eq!(n_peers(&keeper), 2);
    assert!(keeper.trouble().unwrap().contains("netmap.log"));
    std::fs::remove_dir(stage.path()).unwrap();
    std::fs::write(stage.path(), "").unwrap();
    stage.tell(&mut keeper, 1, 3, delta(2, [peer(4)]));
    assert_eq!(
        std::fs::read(stage.path()).unwrap(),
        b"",
        "a delta with no start was kept"
    );
    assert!(keeper.trouble().is_some(), "it is still not kept");
    assert!(keeper.is_mendable(stage.state.as_ref().unwrap()));
    keeper.ask_full();
    stage.tell(&mut keeper, 1, 3, stage.full(&[2, 3, 4]));
    assert_eq!(n_peers(&stage.load()), 3);
    assert_eq!(keeper.trouble(), None);
}
