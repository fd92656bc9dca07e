//! The relay on the coordinator's own port: who is let in, what is carried, and who is not harmed.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use coordinator::config::ConfigFile;
use hyper::{Method, StatusCode};
use mesh_proto::auth_key::pin_of;
use mesh_proto::control::{self, NodeUpdate};
use mesh_proto::id::RelayId;
use mesh_proto::key::{NodeKey, NodePrivateKey};
use mesh_proto::relay::{
    self, Datagrams, Denial, FRAME_MAX, Frame, Health, Pin, VERSION, frame_len, prove,
};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::client::{Mesh, Node, PATIENCE, connect_tls};

/// Where a relay is, and what vouches for it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) address: SocketAddr,
    pub(crate) pin: Pin,
}

/// The relay of the coordinator itself.
fn own(mesh: &Mesh) -> Place {
    Place {
        address: mesh.address(),
        pin: Pin::from_bytes(pin_of(&mesh.server().coordinator_key())),
    }
}

/// A node's end of a relay connection.
pub(crate) struct Link {
    stream: TlsStream<TcpStream>,
    read: Vec<u8>,
}

/// A frame that a test looks at, with bytes of its own.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    Received(NodeKey, Vec<Vec<u8>>),
    Gone(NodeKey),
    Pong([u8; 8]),
    Health(Health),
    Denied(Denial),
    Welcome,
    Restarting,
    Ended,
    Other(String),
}

impl Link {
    /// Asks for the upgrade and reads the challenge.
    pub(crate) async fn open(place: &Place) -> (Self, [u8; 32]) {
        let mut stream = connect_tls(place.address, *place.pin.as_bytes()).await;
        let request = format!(
            "GET {} HTTP/1.1\r\nhost: relay\r\nconnection: Upgrade\r\nupgrade: {}\r\n\r\n",
            relay::PATH,
            relay::UPGRADE
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap();
        assert!(head.starts_with("HTTP/1.1 101"), "{head}");
        let mut link = Self {
            stream,
            read: Vec::new(),
        };
        let frame = link.frame().await.unwrap();
        let Frame::Challenge { version, challenge } = Frame::parse(&frame).unwrap() else {
            panic!("a challenge was due")
        };
        assert_eq!(version, VERSION);
        (link, challenge)
    }

    /// Says to be `node`, with a proof by `with`; gives the relay's answer.
    pub(crate) async fn hello(
        place: &Place,
        node: NodeKey,
        with: &NodePrivateKey,
    ) -> (Self, Heard) {
        let (mut link, challenge) = Self::open(place).await;
        let proof = prove(with, &place.pin, &challenge).unwrap();
        link.send(&Frame::Hello {
            version: VERSION,
            node,
            proof,
        })
        .await;
        let answer = link.next().await;
        (link, answer)
    }

    pub(crate) async fn of(place: &Place, node: &Node) -> Self {
        let (link, answer) = Self::hello(place, node.node_key.public(), &node.node_key).await;
        assert_eq!(answer, Heard::Welcome);
        link
    }

    async fn send(&mut self, frame: &Frame<'_>) {
        self.stream.write_all(&frame.to_vec()).await.unwrap();
    }

    pub(crate) async fn send_to(&mut self, to: NodeKey, contents: &[u8], stride: usize) {
        let datagrams = Datagrams::new(contents, stride).unwrap();
        self.send(&Frame::Send { to, datagrams }).await;
    }

    /// One whole frame; `None` when the connection ended.
    async fn frame(&mut self) -> Option<Vec<u8>> {
        let read = async {
            loop {
                if let Some(len) = frame_len(&self.read, FRAME_MAX).unwrap() {
                    return Some(self.read.drain(..len).collect());
                }
                if self.stream.read_buf(&mut self.read).await.unwrap_or(0) == 0 {
                    return None;
                }
            }
        };
        tokio::time::timeout(PATIENCE, read)
            .await
            .expect("a frame in time")
    }

    pub(crate) async fn next(&mut self) -> Heard {
        let mut frame = self.frame().await;
        while frame.as_ref().is_some_and(|frame| is_offer(frame)) {
            frame = self.frame().await;
        }
        let Some(frame) = frame else {
            return Heard::Ended;
        };
        match Frame::parse(&frame).unwrap() {
            Frame::Received { from, datagrams } => {
                Heard::Received(from, datagrams.iter().map(<[u8]>::to_vec).collect())
            }
            Frame::PeerGone { node } => Heard::Gone(node),
            Frame::Pong(bytes) => Heard::Pong(bytes),
            Frame::Health(health) => Heard::Health(health),
            Frame::Denied { reason, .. } => Heard::Denied(reason),
            Frame::Welcome { .. } => Heard::Welcome,
            Frame::Restarting { .. } => Heard::Restarting,
            other @ (Frame::Challenge { .. }
            | Frame::Hello { .. }
            | Frame::Send { .. }
            | Frame::Ping(_)
            | Frame::RateLimited { .. }
            | Frame::UdpOffer { .. }
            | Frame::UdpOff
            | Frame::Unknown(_)) => Heard::Other(format!("{other:?}")),
        }
    }

    /// Waits until all that was sent so far has been taken in.
    async fn settle(&mut self) {
        self.send(&Frame::Ping(*b"settled?")).await;
        assert_eq!(self.next().await, Heard::Pong(*b"settled?"));
    }
}

/// The offer of UDP, which each node is told and these use not.
fn is_offer(frame: &[u8]) -> bool {
    matches!(Frame::parse(frame), Ok(Frame::UdpOffer { .. }))
}

#[tokio::test]
async fn what_a_node_sends_the_other_receives_byte_for_byte() {
    let mesh = Mesh::start().await;
    let (a, b) = (mesh.join(1).await, mesh.join(2).await);
    let mut of_a = Link::of(&own(&mesh), &a).await;
    let mut of_b = Link::of(&own(&mesh), &b).await;
    let long: Vec<u8> = (0..60_000_u32).map(|n| (n % 251) as u8).collect();
    let to = b.node_key.public();
    of_a.send_to(to, &long, 1_400).await;
    of_a.send_to(to, b"\x04short", 1_400).await;
    let from = a.node_key.public();
    let datagrams: Vec<Vec<u8>> = long.chunks(1_400).map(<[u8]>::to_vec).collect();
    let short = vec![b"\x04short".to_vec()];
    // The short one may pass the long ones.
    let heard = [of_b.next().await, of_b.next().await];
    assert!(heard.contains(&Heard::Received(from, datagrams)));
    assert!(heard.contains(&Heard::Received(from, short)));
    of_b.send_to(from, &[1; 148], 148).await;
    assert_eq!(of_a.next().await, Heard::Received(to, vec![vec![1; 148]]));
}

#[tokio::test]
async fn only_registered_nodes_that_hold_their_key_are_let_in() {
    let mesh = Mesh::start().await;
    let (a, stranger) = (mesh.join(1).await, mesh.machine(9));
    let key = stranger.node_key.public();
    let (mut link, answer) = Link::hello(&own(&mesh), key, &stranger.node_key).await;
    assert_eq!(answer, Heard::Denied(Denial::NotRegistered));
    assert_eq!(link.next().await, Heard::Ended);
    // A registered key, proven by another one.
    let (mut link, answer) =
        Link::hello(&own(&mesh), a.node_key.public(), &stranger.node_key).await;
    assert_eq!(answer, Heard::Denied(Denial::BadProof));
    assert_eq!(link.next().await, Heard::Ended);
    // A proof for one connection is worth nothing on another.
    let (_first, challenge) = Link::open(&own(&mesh)).await;
    let (mut second, _) = Link::open(&own(&mesh)).await;
    let pin = Pin::from_bytes(pin_of(&mesh.server().coordinator_key()));
    second
        .send(&Frame::Hello {
            version: VERSION,
            node: a.node_key.public(),
            proof: prove(&a.node_key, &pin, &challenge).unwrap(),
        })
        .await;
    assert_eq!(second.next().await, Heard::Denied(Denial::BadProof));
    let (mut link, _) = Link::open(&own(&mesh)).await;
    link.send(&Frame::Ping(*b"let me i")).await;
    assert_eq!(link.next().await, Heard::Ended);
    let metrics = mesh.operator().ask(Method::GET, "/metrics", None).await.1;
    let metrics = metrics.as_str().unwrap();
    for metric in [
        "coordinator_relay_refused_total{reason=\"bad_proof\"}",
        "coordinator_relay_refused_total{reason=\"not_registered\"}",
    ] {
        assert!(metrics.contains(metric), "{metrics}");
    }
}

#[tokio::test]
async fn a_node_that_is_deleted_or_changes_its_key_is_put_out() {
    let mesh = Mesh::start().await;
    let a = mesh.join(1).await;
    let mut link = Link::of(&own(&mesh), &a).await;
    let (status, _) = mesh
        .operator()
        .ask(Method::DELETE, "/api/v1/nodes/host1", None)
        .await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    assert_eq!(link.next().await, Heard::Health(Health::Removed));
    assert_eq!(link.next().await, Heard::Ended);
    let (_, answer) = Link::hello(&own(&mesh), a.node_key.public(), &a.node_key).await;
    assert_eq!(answer, Heard::Denied(Denial::NotRegistered));
}

#[tokio::test]
async fn a_missing_or_leaving_peer_is_told_of() {
    let mesh = Mesh::start().await;
    let (a, b) = (mesh.join(1).await, mesh.join(2).await);
    let mut of_a = Link::of(&own(&mesh), &a).await;
    let to = b.node_key.public();
    of_a.send_to(to, &[1; 148], 148).await;
    assert_eq!(of_a.next().await, Heard::Gone(to));
    let of_b = Link::of(&own(&mesh), &b).await;
    of_a.send_to(to, &[1; 148], 148).await;
    of_a.settle().await;
    drop(of_b);
    assert_eq!(of_a.next().await, Heard::Gone(to));
}

#[tokio::test]
async fn the_newest_connection_of_a_node_receives() {
    let mesh = Mesh::start().await;
    let (a, b) = (mesh.join(1).await, mesh.join(2).await);
    let mut of_a = Link::of(&own(&mesh), &a).await;
    let mut old = Link::of(&own(&mesh), &b).await;
    let mut new = Link::of(&own(&mesh), &b).await;
    assert_eq!(old.next().await, Heard::Health(Health::Duplicate));
    let (from, to) = (a.node_key.public(), b.node_key.public());
    of_a.send_to(to, &[1; 148], 148).await;
    assert_eq!(new.next().await, Heard::Received(from, vec![vec![1; 148]]));
    drop(new);
    assert_eq!(old.next().await, Heard::Health(Health::Well));
    of_a.send_to(to, &[2; 148], 148).await;
    assert_eq!(old.next().await, Heard::Received(from, vec![vec![2; 148]]));
}

#[tokio::test]
async fn a_slow_reader_harms_nobody() {
    let mesh = Mesh::start().await;
    let (a, slow, fast) = (mesh.join(1).await, mesh.join(2).await, mesh.join(3).await);
    let mut of_a = Link::of(&own(&mesh), &a).await;
    let _never_reads = Link::of(&own(&mesh), &slow).await;
    let mut of_fast = Link::of(&own(&mesh), &fast).await;
    let bulk = vec![4; 60_000];
    let started = Instant::now();
    // More than all buffers on the way to the slow one hold.
    for n in 0..1_000_u32 {
        of_a.send_to(slow.node_key.public(), &bulk, 1_400).await;
        if n % 100 == 0 {
            let mark = n.to_be_bytes();
            of_a.send_to(fast.node_key.public(), &mark, 4).await;
            let expected = Heard::Received(a.node_key.public(), vec![mark.to_vec()]);
            assert_eq!(of_fast.next().await, expected);
        }
    }
    of_a.settle().await;
    assert!(started.elapsed() < PATIENCE);
    let metrics = mesh.operator().ask(Method::GET, "/metrics", None).await.1;
    let metrics = metrics.as_str().unwrap();
    assert!(
        metrics.contains("coordinator_relay_drops_total{reason=\"full\"}"),
        "{metrics}"
    );
}

#[tokio::test]
async fn a_node_that_sends_more_than_it_may_is_slowed_down() {
    let file = ConfigFile {
        relay_rate_mbit: Some(8),
        ..ConfigFile::default()
    };
    let mesh = Mesh::start_with(file).await;
    let (a, b) = (mesh.join(1).await, mesh.join(2).await);
    let mut of_a = Link::of(&own(&mesh), &a).await;
    let mut of_b = Link::of(&own(&mesh), &b).await;
    let started = Instant::now();
    for _ in 0..20 {
        of_a.send_to(b.node_key.public(), &[4; 60_000], 1_400).await;
    }
    for _ in 0..20 {
        assert!(matches!(of_b.next().await, Heard::Received(..)));
    }
    // 1.2 MB at 1 MB/s, after a burst of a quarter of a second.
    assert!(
        started.elapsed() > Duration::from_millis(500),
        "{:?}",
        started.elapsed()
    );
    assert!(matches!(of_a.next().await, Heard::Other(limited) if limited.contains("RateLimited")));
}

#[tokio::test]
async fn a_relay_that_stops_says_so_and_serves_again_after_a_restart() {
    let mut mesh = Mesh::start().await;
    let (a, b) = (mesh.join(1).await, mesh.join(2).await);
    let mut of_a = Link::of(&own(&mesh), &a).await;
    let restarted = async {
        mesh.restart().await;
        mesh
    };
    let (mesh, heard) = tokio::join!(restarted, of_a.next());
    assert_eq!(heard, Heard::Restarting);
    assert_eq!(of_a.next().await, Heard::Ended);
    let mut of_a = Link::of(&own(&mesh), &a).await;
    let mut of_b = Link::of(&own(&mesh), &b).await;
    of_a.send_to(b.node_key.public(), &[1; 148], 148).await;
    let expected = Heard::Received(a.node_key.public(), vec![vec![1; 148]]);
    assert_eq!(of_b.next().await, expected);
}

#[tokio::test]
async fn the_map_names_the_relay_and_where_peers_listen() {
    let mesh = Mesh::start().await;
    let (a, b) = (mesh.join(1).await, mesh.join(2).await);
    let mut stream = a.listen(None).await.unwrap();
    stream.next().await;
    let network = stream.netmap.clone().unwrap().network;
    let [relay] = &network.relays[..] else {
        panic!("{network:?}")
    };
    let pin = pin_of(&mesh.server().coordinator_key());
    assert_eq!(relay.pin.as_bytes(), &pin);
    assert_eq!(relay.urls, mesh.server().urls());
    assert_eq!(relay.id, RelayId::of(&pin, &relay.urls[0]));
    assert_eq!(relay.stun, network.stun);
    let update = NodeUpdate {
        home_relay: Some(relay.id),
        ..NodeUpdate::default()
    };
    b.post(control::PATH_UPDATE, &update).await.unwrap();
    stream
        .until(|netmap| netmap.peers[&b.id()].home_relay == Some(relay.id))
        .await;
}

#[tokio::test]
async fn a_coordinator_may_leave_relaying_to_others() {
    let file = ConfigFile {
        relay: Some(false),
        ..ConfigFile::default()
    };
    let mesh = Mesh::start_with(file).await;
    let a = mesh.join(1).await;
    let mut stream = a.listen(None).await.unwrap();
    stream.next().await;
    assert_eq!(stream.netmap.unwrap().network.relays, []);
    let (status, _) = mesh.operator().ask(Method::GET, relay::PATH, None).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_plain_request_is_told_to_upgrade() {
    let mesh = Mesh::start().await;
    let (status, body) = mesh.operator().ask(Method::GET, relay::PATH, None).await;
    assert_eq!(status, StatusCode::UPGRADE_REQUIRED);
    assert_ne!(body, json!(null));
}
