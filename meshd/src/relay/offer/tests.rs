//! A relay at loopback, whose coordinator is away.

use mesh_proto::key::{CoordinatorPrivateKey, MachinePrivateKey, NodeKey};
use mesh_proto::relay::Member;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsConnector;

use super::*;
use crate::control::tls_config as client_config;

fn key(n: u8) -> CoordinatorPrivateKey {
    CoordinatorPrivateKey::from_bytes(&[n; 32])
}

fn config(port: u16) -> OfferConfig {
    let machine = MachinePrivateKey::from_bytes(&[2; 32]);
    // Nobody listens there.
    let urls = vec!["https://127.0.0.1:1".to_owned()];
    let tls = client_config(pin_of(&key(1).public())).unwrap();
    OfferConfig {
        link: Link::new(urls, tls, machine.clone()),
        coordinator: key(1).public(),
        node: machine.public(),
        key: key(3),
        port,
    }
}

/// A port that was free a moment ago, with what holds it.
fn port() -> (std::net::TcpListener, u16) {
    let listener = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// What the relay answers to a request, by TLS of the key's pin.
async fn said(port: u16, key: &CoordinatorPrivateKey, request: &str) -> io::Result<String> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let tls = client_config(pin_of(&key.public())).unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let mut stream = TlsConnector::from(tls).connect(name, stream).await?;
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
}

#[tokio::test]
async fn it_is_a_relay_and_nothing_else_and_ends_when_it_is_taken_back() {
    let (held, port) = port();
    drop(held);
    let offer = Offer::start(config(port));
    let limit = tokio::time::Instant::now() + Duration::from_secs(10);
    let path = get(relay::PATH);
    let answer = loop {
        match said(port, &key(3), &path).await {
            Ok(answer) => break answer,
            Err(err) => assert!(tokio::time::Instant::now() < limit, "{err}"),
        }
        tokio::task::yield_now().await;
    };
    assert!(answer.starts_with("HTTP/1.1 426 "), "{answer}");
    let other = said(port, &key(3), &get("/api/v1/identity")).await.unwrap();
    assert!(other.starts_with("HTTP/1.1 404 "), "{other}");
    assert!(said(port, &key(4), &path).await.is_err(), "another pin");
    assert_eq!(
        offer.trouble(),
        None,
        "that no coordinator answers is told elsewhere"
    );
    offer.stop().await;
    assert!(said(port, &key(3), &path).await.is_err());
}

#[tokio::test]
async fn a_port_that_is_taken_is_told() {
    let (_held, port) = port();
    let offer = Offer::start(config(port));
    let told = async {
        loop {
            if let Some(message) = offer.trouble() {
                return message;
            }
            tokio::task::yield_now().await;
        }
    };
    let message = timeout(Duration::from_secs(10), told).await.unwrap();
    assert!(
        message.contains(&port.to_string()) && message.contains("relay_port"),
        "{message}"
    );
    offer.stop().await;
}

#[test]
fn members_follow_what_the_coordinator_says() {
    let (members, heard) = watch::channel(Arc::default());
    let member = |n| Member {
        node_key: NodeKey::from_bytes([n; 32]),
        expires_at_ms: None,
    };
    take(&members, MembersBody::Full(vec![member(1), member(2)]));
    let added = vec![member(3)];
    let removed = vec![member(1).node_key];
    take(&members, MembersBody::Delta { added, removed });
    take(&members, MembersBody::Heartbeat {});
    assert_eq!(heard.borrow().list(), [member(2), member(3)]);
    take(&members, MembersBody::Full(vec![]));
    assert!(heard.borrow().list().is_empty());
}
