//! How hosts stand at the moment: what this one tells those who may use it, and what all the others tell.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::StatusCode;
use mesh_proto::id::NodeId;
use mesh_proto::local::{Top, TopHost};
use mesh_proto::netmap::PeerEntry;
use mesh_proto::share::{Gpu, HostLive};

use super::upstream::{Patience, Target};
use super::{Core, upstream};
use crate::view::View;

/// Where a door tells it; not a path of any model server.
pub(crate) const PATH: &str = "/proxima/live";
/// The longest answer that is read.
const ANSWER_MAX: usize = 256 << 10;
/// How long a host may take: the others' answers wait for it.
const PATIENCE: Patience = Patience {
    head: Duration::from_millis(1_500),
    idle: Duration::from_millis(500),
};
/// How many hosts are asked at once, and how many at all.
const N_AT_ONCE: usize = 32;
const N_HOSTS_MAX: usize = 256;

/// How this host stands.
pub(crate) fn own(core: &Core) -> HostLive {
    let share = core.share();
    let (n_active, n_queued) = core.queue.load();
    let loaded = share.shared.iter().filter(|it| it.offer.is_loaded);
    HostLive {
        n_slots: share.config.n_slots.max(1),
        n_active,
        n_queued,
        n_output_tokens: core.pace.n_output(),
        loaded: loaded.map(|it| it.offer.model.clone()).take(64).collect(),
        gpus: share.gpus.iter().map(without_id).collect(),
    }
}

fn without_id(gpu: &Gpu) -> Gpu {
    Gpu {
        uuid: None,
        ..gpu.clone()
    }
}

/// Asks all hosts that this node may use.
pub(crate) async fn top(core: &Core, view: &Arc<View>) -> Top {
    let own_node = &view.netmap.node;
    let share = core.share();
    let mut hosts = Vec::new();
    if share.config.is_on {
        hosts.push(TopHost {
            id: own_node.id,
            name: own_node.name.clone(),
            user: own_node.user_name.clone(),
            is_self: true,
            is_online: true,
            n_models: share.shared.len(),
            live: Some(own(core)),
        });
    }
    let peers = view.netmap.peers.iter().filter(|(_, peer)| {
        let offers = &peer.offers;
        let is_host = !offers.models.is_empty();
        is_host
            && offers
                .audience
                .admits(peer.user, own_node.user, &own_node.user_name)
    });
    let mut asked = Vec::new();
    for (id, peer) in peers.take(N_HOSTS_MAX) {
        asked.push(ask(core, *id, peer));
    }
    let mut asked = futures_util::stream::iter(asked).buffered(N_AT_ONCE);
    while let Some(host) = asked.next().await {
        hosts.push(host);
    }
    hosts.sort_by(|a, b| a.name.cmp(&b.name));
    Top { hosts }
}

async fn ask(core: &Core, id: NodeId, peer: &PeerEntry) -> TopHost {
    let live = if peer.is_online {
        live_of(core, peer).await
    } else {
        None
    };
    TopHost {
        id,
        name: peer.name.clone(),
        user: peer.user_name.clone(),
        is_self: false,
        is_online: peer.is_online && live.is_some(),
        n_models: peer.offers.models.len(),
        live,
    }
}

async fn live_of(core: &Core, peer: &PeerEntry) -> Option<HostLive> {
    let addr = SocketAddr::new(IpAddr::V4(peer.ipv4), core.peer_port);
    let target = Target::Host(addr, core.outward.clone());
    let asked = upstream::post(
        &core.pool,
        &target,
        PATH,
        Bytes::from_static(b"{}"),
        PATIENCE,
    );
    let reply = asked.await.ok()?;
    if reply.status() != StatusCode::OK {
        return None;
    }
    let body = reply.into_body().collect(ANSWER_MAX).await.ok()?;
    serde_json::from_slice(&body).ok()
}
