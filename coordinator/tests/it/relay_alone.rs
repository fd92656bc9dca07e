//! A relay that stands alone: it comes by a key, hears whom it serves, and goes on without the coordinator.

use std::net::SocketAddr;
use std::path::Path;

use coordinator::{RelayServer, RelaySettings};
use hyper::{Method, StatusCode};
use mesh_proto::auth_key::{AuthKey, pin_of};
use mesh_proto::key::CoordinatorKey;
use mesh_proto::relay::{Denial, RelayEntry};
use serde_json::{Value, json};

use crate::client::{Mesh, Node};
use crate::relay::{Heard, Link, Place};

async fn add(mesh: &Mesh, name: &str) -> AuthKey {
    let (status, created) = mesh
        .operator()
        .ask(
            Method::POST,
            "/api/v1/relays",
            Some(json!({ "name": name })),
        )
        .await;
    assert_eq!(status, StatusCode::CREATED, "{created}");
    created["key"].as_str().unwrap().parse().unwrap()
}

async fn try_start(dir: &Path, key: Option<AuthKey>) -> anyhow::Result<RelayServer> {
    let local: SocketAddr = "127.0.0.1:0".parse().unwrap();
    RelayServer::start(RelaySettings {
        auth_key: key,
        listen: vec![local],
        is_listen_default: false,
        stun: None,
        urls: vec![],
        state_dir: dir.to_owned(),
        bytes_per_second: 0,
    })
    .await
}

/// The relay as a node's map names it.
async fn told(mesh: &Mesh, node: &Node, name: &str) -> RelayEntry {
    let mut stream = node.listen(None).await.unwrap();
    let named = |relay: &RelayEntry| relay.name == name;
    stream
        .until(|netmap| netmap.network.relays.iter().any(named))
        .await;
    let relays = stream.netmap.unwrap().network.relays;
    assert_eq!(relays.len(), 2, "the coordinator's own is there too");
    assert_eq!(relays[0].urls, mesh.server().urls());
    relays.into_iter().find(named).unwrap()
}

fn place(relay: &RelayEntry) -> Place {
    let address = relay.urls[0].trim_start_matches("https://");
    Place {
        address: address.parse().unwrap(),
        pin: relay.pin,
    }
}

#[tokio::test]
async fn it_comes_by_its_key_and_serves_the_mesh() {
    let mesh = Mesh::start().await;
    let (a, b) = (mesh.join(1).await, mesh.join(2).await);
    let mut stream = a.listen(None).await.unwrap();
    stream.next().await;
    let dir = tempfile::tempdir().unwrap();
    let relay = try_start(dir.path(), Some(add(&mesh, "tokyo").await))
        .await
        .unwrap();
    // It reaches nodes that listen as a delta.
    stream
        .until(|netmap| netmap.network.relays.len() == 2)
        .await;
    let entry = told(&mesh, &a, "tokyo").await;
    assert_eq!(entry.urls, relay.urls());
    assert!(!entry.stun.is_empty());
    let place = place(&entry);
    let mut of_a = Link::of(&place, &a).await;
    let mut of_b = Link::of(&place, &b).await;
    of_a.send_to(b.node_key.public(), &[1; 148], 148).await;
    let expected = Heard::Received(a.node_key.public(), vec![vec![1; 148]]);
    assert_eq!(of_b.next().await, expected);
    // A node that joins later is let in, and a stranger is not.
    let c = mesh.join(3).await;
    Link::of(&place, &c).await;
    let stranger = mesh.machine(9);
    let (_, answer) = Link::hello(&place, stranger.node_key.public(), &stranger.node_key).await;
    assert_eq!(answer, Heard::Denied(Denial::NotRegistered));
    // One that is deleted is put out.
    let gone = mesh
        .operator()
        .ask(Method::DELETE, "/api/v1/nodes/host2", None)
        .await;
    assert_eq!(gone.0, StatusCode::NO_CONTENT);
    while of_b.next().await != Heard::Ended {}
    relay.stop().await;
    // Who had sent to the one that was put out may hear of that first.
    let mut heard = of_a.next().await;
    if heard == Heard::Gone(b.node_key.public()) {
        heard = of_a.next().await;
    }
    assert_eq!(heard, Heard::Restarting);
}

#[tokio::test]
async fn it_starts_and_serves_with_no_coordinator_in_reach() {
    let mut mesh = Mesh::start().await;
    let a = mesh.join(1).await;
    let dir = tempfile::tempdir().unwrap();
    let relay = try_start(dir.path(), Some(add(&mesh, "tokyo").await))
        .await
        .unwrap();
    let entry = told(&mesh, &a, "tokyo").await;
    Link::of(&place(&entry), &a).await;
    mesh.stop().await;
    relay.stop().await;
    let relay = try_start(dir.path(), None).await.unwrap();
    let place = Place {
        address: relay.addresses()[0],
        pin: entry.pin,
    };
    Link::of(&place, &a).await;
    relay.stop().await;
}

#[tokio::test]
async fn a_key_lets_one_relay_in_and_a_removed_relay_serves_nobody() {
    let mesh = Mesh::start().await;
    let a = mesh.join(1).await;
    let key = add(&mesh, "tokyo").await;
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let relay = try_start(dir.path(), Some(key.clone())).await.unwrap();
    let refused = try_start(other.path(), Some(key)).await.unwrap_err();
    assert!(refused.to_string().contains("auth key"), "{refused:#}");
    let none = try_start(other.path(), None).await.unwrap_err();
    assert!(
        none.to_string().contains("coordinator relay add"),
        "{none:#}"
    );
    // A node's auth key is none for a relay.
    let of_a_node = mesh.key(json!({})).await;
    assert!(try_start(other.path(), Some(of_a_node)).await.is_err());

    let mut link = Link::of(&place(&told(&mesh, &a, "tokyo").await), &a).await;
    let (status, list) = mesh
        .operator()
        .ask(Method::GET, "/api/v1/relays", None)
        .await;
    assert_eq!(
        (status, list[0]["name"].as_str()),
        (StatusCode::OK, Some("tokyo"))
    );
    assert_eq!(list[0]["key_expires_at_ms"], Value::Null);
    let removed = mesh
        .operator()
        .ask(Method::DELETE, "/api/v1/relays/tokyo", None)
        .await;
    assert_eq!(removed.0, StatusCode::NO_CONTENT);
    while link.next().await != Heard::Ended {}
    let mut stream = a.listen(None).await.unwrap();
    stream
        .until(|netmap| netmap.network.relays.len() == 1)
        .await;
    let again = mesh
        .operator()
        .ask(Method::DELETE, "/api/v1/relays/tokyo", None)
        .await;
    assert_eq!(again.0, StatusCode::NOT_FOUND);
    relay.stop().await;
}

#[tokio::test]
async fn a_relay_is_known_by_its_own_key() {
    let mesh = Mesh::start().await;
    let a = mesh.join(1).await;
    let dir = tempfile::tempdir().unwrap();
    let relay = try_start(dir.path(), Some(add(&mesh, "tokyo").await))
        .await
        .unwrap();
    let entry = told(&mesh, &a, "tokyo").await;
    let coordinators: CoordinatorKey = mesh.server().coordinator_key();
    assert_ne!(entry.pin.as_bytes(), &pin_of(&coordinators));
    // The coordinator's pin does not open the relay's TLS.
    let wrong = coordinator::client_config(pin_of(&coordinators)).unwrap();
    let stream = tokio::net::TcpStream::connect(relay.addresses()[0])
        .await
        .unwrap();
    let name = rustls::pki_types::ServerName::try_from("relay.example").unwrap();
    let connected = tokio_rustls::TlsConnector::from(std::sync::Arc::new(wrong))
        .connect(name, stream)
        .await;
    assert!(connected.is_err());
    relay.stop().await;
}
