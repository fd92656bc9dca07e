//! A mesh of six for tests: this node `desk` shares one model; `gpu1` to `gpu3` share more; `off` is not online.

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh_proto::filter::Filter;
use mesh_proto::id::{NetworkId, NodeId, UserId, service_ipv4};
use mesh_proto::key::{MachinePrivateKey, NodeKey, Purpose};
use mesh_proto::local::Settings;
use mesh_proto::netmap::{Netmap, NetworkInfo, PeerEntry, Revision, SelfNode};
use mesh_proto::share::{Audience, BackendApi, Digest, HostOffers, Offer};

use crate::view::{ByIpv4, View};

pub(crate) fn digest(n: u8) -> Digest {
    Digest::from_bytes([n; 32])
}

pub(crate) fn offer(model: &str, n: u8) -> Offer {
    Offer {
        digest: (n > 0).then(|| digest(n)),
        size_bytes: 7,
        family: "llama".to_owned(),
        parameter_size: "1B".to_owned(),
        quantization: "Q4_K_M".to_owned(),
        context_length: 2048,
        capabilities: vec!["completion".to_owned()],
        ..Offer::new(model, BackendApi::Ollama)
    }
}

pub(crate) fn offers(models: &[(&str, u8)]) -> HostOffers {
    HostOffers {
        models: models
            .iter()
            .map(|(model, n)| Arc::new(offer(model, *n)))
            .collect(),
        gpus: vec![],
        audience: Audience::Everyone,
        n_slots: 1,
    }
}

/// A peer with its number in its addresses, `10.77.1.<n>`.
pub(crate) fn peer(n: u8, name: &str, offers: HostOffers) -> (NodeId, PeerEntry) {
    let machine = MachinePrivateKey::from_bytes(&[n; 32]);
    let node_key = NodeKey::from_bytes([n; 32]);
    let id = NodeId::of(&machine.public());
    let entry = PeerEntry {
        name: name.parse().unwrap(),
        user: UserId(i64::from(n)),
        user_name: "anna".parse().unwrap(),
        tags: vec![],
        machine_key: machine.public(),
        node_key,
        node_key_signature: machine.sign(Purpose::NodeKey, node_key.as_bytes()),
        ipv4: [10, 77, 1, n].into(),
        ipv6: network().ipv6_of(&id),
        endpoints: vec![],
        disco_key: None,
        home_relay: None,
        expires_at_ms: None,
        is_online: true,
        last_seen_ms: None,
        offers,
    };
    (id, entry)
}

fn network() -> NetworkId {
    NetworkId::from_bytes([0xab; 16])
}

/// A view of node `desk` (`10.77.1.9`) with these peers.
pub(crate) fn view_of(own: HostOffers, peers: Vec<(NodeId, PeerEntry)>) -> View {
    let pool = "10.77.0.0/16".parse().unwrap();
    let (id, me) = peer(9, "desk", HostOffers::default());
    let netmap = Netmap {
        network: NetworkInfo {
            id: network(),
            suffix: "proxima".to_owned(),
            ipv4_pool: pool,
            ipv6_prefix: network().ipv6_prefix(),
            service_ipv4: service_ipv4(pool),
            service_ipv6: network().service_ipv6(),
            stun: vec![],
            coordinator_urls: vec![],
            relays: vec![],
        },
        node: SelfNode {
            id,
            name: me.name,
            user: me.user,
            user_name: me.user_name,
            tags: vec![],
            node_key: me.node_key,
            ipv4: me.ipv4,
            ipv6: me.ipv6,
            expires_at_ms: None,
        },
        filter: Filter::default(),
        peers: peers.into_iter().collect::<BTreeMap<_, _>>(),
    };
    let revision = Revision {
        epoch: 1,
        version: 7,
    };
    let by_ipv4 = Arc::new(ByIpv4::of(&netmap));
    View::new(
        revision,
        Arc::new(netmap),
        by_ipv4,
        Arc::new(own),
        Settings::default(),
    )
}

pub(crate) fn view() -> View {
    let gpu1 = offers(&[
        ("llama3.2:1b", 1),
        ("llama3", 2),
        ("hf.co/bartowski/Llama-3.2-1B-Instruct-GGUF:Q4_K_M", 3),
    ]);
    let gpu2 = offers(&[
        ("llama3.2:1b", 1),
        ("nomic-embed-text:v1.5", 4),
        ("twin", 5),
    ]);
    let gpu3 = offers(&[("qwen2.5-coder:7b-instruct-q4_K_M", 6), ("twin", 7)]);
    let mut off = peer(4, "off", offers(&[("gone", 8), ("llama3", 9)]));
    off.1.is_online = false;
    let mut private = peer(5, "private", offers(&[("secret", 10)]));
    private.1.offers.audience = Audience::Mine;
    let peers = vec![
        peer(1, "gpu1", gpu1),
        peer(2, "gpu2", gpu2),
        peer(3, "gpu3", gpu3),
        off,
        private,
    ];
    view_of(offers(&[("smollm2", 11)]), peers)
}
