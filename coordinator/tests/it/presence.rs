//! Who is online: streams, beats, ephemeral nodes, restarts.

use coordinator::config::ConfigFile;
use hyper::{Method, StatusCode};
use mesh_proto::control::{self, Beat, NodeUpdate};
use mesh_proto::share::Audience;
use serde_json::json;

use crate::client::Mesh;
use crate::map::offers;

#[tokio::test]
async fn a_node_is_online_while_its_stream_is_open() {
    let mesh = Mesh::start().await;
    let (a, b) = (mesh.join(1).await, mesh.join(2).await);
    let mut of_a = a.listen(None).await.unwrap();
    of_a.until(|netmap| !netmap.peers[&b.id()].is_online).await;
    let mut of_b = b.listen(None).await.unwrap();
    of_b.next().await.unwrap();
    of_a.until(|netmap| netmap.peers[&b.id()].is_online).await;
    drop(of_b);
    of_a.until(|netmap| {
        !netmap.peers[&b.id()].is_online && netmap.peers[&b.id()].last_seen_ms.is_some()
    })
    .await;
}

#[tokio::test]
async fn a_silent_host_goes_offline_and_a_beat_brings_it_back() {
    let mesh = Mesh::start().await;
    let (a, host) = (mesh.join(1).await, mesh.join(2).await);
    let mut of_a = a.listen(None).await.unwrap();
    let mut of_host = host.listen(None).await.unwrap();
    of_host.next().await.unwrap();
    let update = NodeUpdate {
        endpoints: None,
        offers: Some(offers(Audience::Everyone)),
        ..NodeUpdate::default()
    };
    host.post(control::PATH_UPDATE, &update).await.unwrap();
    of_a.until(|netmap| {
        netmap.peers[&host.id()].is_online && !netmap.peers[&host.id()].offers.models.is_empty()
    })
    .await;
    of_a.until(|netmap| !netmap.peers[&host.id()].is_online)
        .await;
    host.post(control::PATH_BEAT, &Beat::default())
        .await
        .unwrap();
    of_a.until(|netmap| netmap.peers[&host.id()].is_online)
        .await;
}

#[tokio::test]
async fn a_restart_takes_nobody_offline_and_keeps_offers() {
    let mut mesh = Mesh::start().await;
    let (a, host) = (mesh.join(1).await, mesh.join(2).await);
    let update = NodeUpdate {
        endpoints: None,
        offers: Some(offers(Audience::Everyone)),
        ..NodeUpdate::default()
    };
    host.post(control::PATH_UPDATE, &update).await.unwrap();
    let mut of_a = a.listen(None).await.unwrap();
    let of_host = host.listen(None).await.unwrap();
    of_a.until(|netmap| netmap.peers[&host.id()].is_online)
        .await;
    mesh.restart().await;
    drop(of_host);
    let mut of_a = mesh.machine(1).listen(None).await.unwrap();
    of_a.next().await.unwrap();
    let seen = &of_a.netmap.as_ref().unwrap().peers[&host.id()];
    assert!(seen.is_online);
    assert_eq!(seen.offers.models.len(), 1);
    of_a.until(|netmap| !netmap.peers[&host.id()].is_online)
        .await;
}

#[tokio::test]
async fn an_ephemeral_node_goes_away_by_itself() {
    let file = ConfigFile {
        ephemeral_timeout_seconds: Some(2),
        ..ConfigFile::default()
    };
    let mesh = Mesh::start_with(file).await;
    let a = mesh.join(1).await;
    let key = mesh.key(json!({ "is_ephemeral": true })).await;
    let brief = mesh.machine(2);
    brief.register(Some(&key)).await.unwrap();
    let of_brief = brief.listen(None).await.unwrap();
    let mut of_a = a.listen(None).await.unwrap();
    of_a.until(|netmap| netmap.peers.contains_key(&brief.id()))
        .await;
    drop(of_brief);
    of_a.until(|netmap| netmap.peers.is_empty()).await;
    let (status, _) = mesh
        .operator()
        .ask(Method::GET, "/api/v1/nodes/host2", None)
        .await;
    assert_eq!(status, StatusCode::NOT_FOUND);
}
