//! Map streams: a full map, then deltas; resuming; who may listen.

use hyper::{Method, StatusCode};
use mesh_proto::control::{self, NodeUpdate, RotateRequest, code};
use mesh_proto::filter::{Allow, Source};
use mesh_proto::key::{NodePrivateKey, Purpose};
use mesh_proto::netmap::MapBody;
use mesh_proto::share::{Audience, BackendApi, HostOffers, Offer};
use serde_json::json;

use crate::client::Mesh;

pub(crate) fn offers(audience: Audience) -> HostOffers {
    let offer = Offer {
        size_bytes: 1,
        ..Offer::new("llama3.2:1b", BackendApi::Ollama)
    };
    HostOffers {
        models: vec![offer.into()],
        gpus: vec![],
        audience,
        n_slots: 1,
    }
}

#[tokio::test]
async fn changes_reach_a_listening_node_as_deltas() {
    let mesh = Mesh::start().await;
    let (a, b) = (mesh.join(1).await, mesh.join(2).await);
    let mut stream = a.listen(None).await.unwrap();
    assert!(matches!(stream.next().await, Some(MapBody::Full(_))));
    let netmap = stream.netmap.clone().unwrap();
    assert_eq!(netmap.peers.keys().copied().collect::<Vec<_>>(), [b.id()]);
    netmap.peers[&b.id()].verify(&b.id()).unwrap();
    assert!(
        netmap
            .filter
            .rules
            .iter()
            .any(|rule| rule.src == Source::User(netmap.node.user) && rule.allow == [Allow::All])
    );

    let renamed = json!({ "name": "gpu" });
    let (status, _) = mesh
        .operator()
        .ask(Method::PATCH, "/api/v1/nodes/host2", Some(renamed))
        .await;
    assert_eq!(status, StatusCode::OK);
    let Some(MapBody::Delta { delta, .. }) = stream.next().await else {
        panic!("a delta was due")
    };
    assert_eq!(delta.peers.keys().copied().collect::<Vec<_>>(), [b.id()]);
    assert_eq!(
        stream.netmap.as_ref().unwrap().peers[&b.id()].name.as_str(),
        "gpu"
    );

    let node_key = NodePrivateKey::from_bytes([77; 32]).public();
    let signature = b.machine.sign(Purpose::NodeKey, node_key.as_bytes());
    b.post(
        control::PATH_ROTATE,
        &RotateRequest {
            node_key,
            node_key_signature: signature,
        },
    )
    .await
    .unwrap();
    stream
        .until(|netmap| netmap.peers[&b.id()].node_key == node_key)
        .await;

    let endpoints = vec!["192.0.2.9:41641".parse().unwrap()];
    let update = NodeUpdate {
        endpoints: Some(endpoints.clone()),
        offers: Some(offers(Audience::Everyone)),
        ..NodeUpdate::default()
    };
    b.post(control::PATH_UPDATE, &update).await.unwrap();
    stream
        .until(|netmap| netmap.peers[&b.id()].offers.models.len() == 1)
        .await;
    assert_eq!(
        stream.netmap.as_ref().unwrap().peers[&b.id()].endpoints,
        endpoints
    );

    let (status, _) = mesh
        .operator()
        .ask(Method::DELETE, "/api/v1/nodes/gpu", None)
        .await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    stream.until(|netmap| netmap.peers.is_empty()).await;
}

#[tokio::test]
async fn a_reconnecting_node_gets_only_what_it_missed() {
    let mesh = Mesh::start().await;
    let (a, _b) = (mesh.join(1).await, mesh.join(2).await);
    let mut stream = a.listen(None).await.unwrap();
    stream.next().await.unwrap();
    let (netmap, revision) = (stream.netmap.clone().unwrap(), stream.revision);
    drop(stream);
    let c = mesh.join(3).await;

    let mut resumed = a
        .listen(Some(revision))
        .await
        .unwrap()
        .with_map(netmap, revision);
    let Some(MapBody::Delta { delta, .. }) = resumed.next().await else {
        panic!("a delta was due")
    };
    assert_eq!(delta.peers.keys().copied().collect::<Vec<_>>(), [c.id()]);
    resumed.until(|netmap| netmap.peers.len() == 2).await;
    let mut fresh = a.listen(None).await.unwrap();
    fresh.next().await.unwrap();
    assert_eq!(fresh.netmap, resumed.netmap);
}

#[tokio::test]
async fn a_map_of_another_run_is_replaced_whole() {
    let mut mesh = Mesh::start().await;
    let a = mesh.join(1).await;
    let mut stream = a.listen(None).await.unwrap();
    stream.next().await.unwrap();
    let (netmap, revision) = (stream.netmap.clone().unwrap(), stream.revision);
    drop(stream);
    mesh.restart().await;
    let a = mesh.machine(1);
    let mut stream = a
        .listen(Some(revision))
        .await
        .unwrap()
        .with_map(netmap, revision);
    assert!(matches!(stream.next().await, Some(MapBody::Full(_))));
    assert!(stream.revision.epoch > revision.epoch);
}

#[tokio::test]
async fn a_second_stream_replaces_the_first() {
    let mesh = Mesh::start().await;
    let a = mesh.join(1).await;
    let mut first = a.listen(None).await.unwrap();
    first.next().await.unwrap();
    let mut second = a.listen(None).await.unwrap();
    second.next().await.unwrap();
    while first.next().await.is_some() {}
    let b = mesh.join(2).await;
    second
        .until(|netmap| netmap.peers.contains_key(&b.id()))
        .await;
}

#[tokio::test]
async fn a_node_that_may_not_listen_any_more_is_cut_off() {
    let mesh = Mesh::start().await;
    let (a, b) = (mesh.join(1).await, mesh.join(2).await);
    let mut of_a = a.listen(None).await.unwrap();
    let mut of_b = b.listen(None).await.unwrap();
    of_a.next().await.unwrap();
    of_b.next().await.unwrap();
    let expire = json!({ "expire_now": true });
    mesh.operator()
        .ask(Method::PATCH, "/api/v1/nodes/host1", Some(expire))
        .await;
    while of_a.next().await.is_some() {}
    of_b.until(|netmap| {
        !netmap.peers[&a.id()].is_online && netmap.peers[&a.id()].expires_at_ms.is_some()
    })
    .await;
    assert_eq!(a.listen(None).await.err().unwrap().1, code::NODE_EXPIRED);
    assert_eq!(a.register(None).await.unwrap_err().1, code::NODE_EXPIRED);

    mesh.operator()
        .ask(Method::DELETE, "/api/v1/nodes/host2", None)
        .await;
    while of_b.next().await.is_some() {}
    assert_eq!(b.listen(None).await.err().unwrap().1, code::NOT_REGISTERED);

    let key = mesh.key(json!({})).await;
    a.register(Some(&key)).await.unwrap();
    a.listen(None).await.unwrap().next().await.unwrap();
}

#[tokio::test]
async fn offers_are_shown_to_whom_they_are_for() {
    let mesh = Mesh::start().await;
    mesh.operator()
        .ask(
            Method::POST,
            "/api/v1/users",
            Some(json!({ "name": "bob" })),
        )
        .await;
    let (host, own) = (mesh.join(1).await, mesh.join(2).await);
    let key = mesh.key(json!({ "user": "bob" })).await;
    let guest = mesh.machine(3);
    guest.register(Some(&key)).await.unwrap();
    let mut of_own = own.listen(None).await.unwrap();
    let mut of_guest = guest.listen(None).await.unwrap();
    let n_models =
        |id| move |netmap: &mesh_proto::netmap::Netmap| netmap.peers[&id].offers.models.len();
    for (audience, n_guest) in [
        (Audience::Mine, 0),
        (Audience::Everyone, 1),
        (Audience::Users(vec!["bob".parse().unwrap()]), 1),
    ] {
        let shared = offers(audience.clone());
        let update = NodeUpdate {
            endpoints: None,
            offers: Some(shared.clone()),
            ..NodeUpdate::default()
        };
        host.post(control::PATH_UPDATE, &update).await.unwrap();
        of_own
            .until(|netmap| netmap.peers[&host.id()].offers == shared)
            .await;
        of_guest
            .until(|netmap| n_models(host.id())(netmap) == n_guest)
            .await;
    }
}
