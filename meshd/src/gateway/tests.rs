//! Whole gateways on loopback addresses, with model servers that the tests speak for byte by byte.

mod abuse;
mod cancel;
mod choice;
mod connection;
mod door;
mod guest;
mod protocol;
mod silence;
mod streams;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use mesh_proto::filter::Filter;
use mesh_proto::id::{NetworkId, NodeId, UserId, UserName};
use mesh_proto::key::{MachinePrivateKey, NodePrivateKey, Purpose};
use mesh_proto::local::Settings;
use mesh_proto::netmap::{Netmap, NetworkInfo, PeerEntry, Revision, SelfNode};
use mesh_proto::share::{BackendApi, HostOffers, Offer, Protocol};
use mesh_proto::usage::UsageRecord;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::*;
use crate::inventory::{InventoryStatus, ShareConfig, Shared};
use crate::view::ByIpv4;

/// The own address of the node under test; peers are 127.0.0.2 and up.
const OWN: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 1);
/// Nothing here takes as long when it works.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("in time")
}

pub(super) fn offer(model: &str, api: BackendApi) -> Offer {
    Offer {
        size_bytes: 1_057_622,
        family: "llama".to_owned(),
        parameter_size: "517K".to_owned(),
        quantization: "F16".to_owned(),
        context_length: 4_096,
        capabilities: vec!["completion".to_owned()],
        is_loaded: true,
        modified_at: "2026-11-23T13:00:00Z".to_owned(),
        ..Offer::new(model, api)
    }
}

pub(super) fn ollama(model: &str) -> Offer {
    let mut bytes = [0; 32];
    for (at, b) in model.bytes().enumerate() {
        bytes[at % 32] ^= b;
    }
    Offer {
        digest: Some(mesh_proto::share::Digest::from_bytes(bytes)),
        speaks: vec![
            Protocol::Ollama,
            Protocol::OpenAi,
            Protocol::Responses,
            Protocol::Messages,
        ],
        ..offer(model, BackendApi::Ollama)
    }
}

pub(super) fn node_id(n: u8) -> NodeId {
    NodeId::of(&MachinePrivateKey::from_bytes(&[n; 32]).public())
}

/// The peer at 127.0.0.`n`, of user `n`.
pub(super) fn peer(n: u8, models: Vec<Offer>) -> (NodeId, PeerEntry) {
    let machine = MachinePrivateKey::from_bytes(&[n; 32]);
    let node_key = NodePrivateKey::from_bytes([n; 32]).public();
    let entry = PeerEntry {
        name: format!("peer{n}").parse().unwrap(),
        user: UserId(i64::from(n)),
        user_name: format!("user{n}").parse().unwrap(),
        tags: Vec::new(),
        machine_key: machine.public(),
        node_key_signature: machine.sign(Purpose::NodeKey, node_key.as_bytes()),
        node_key,
        ipv4: Ipv4Addr::new(127, 0, 0, n),
        ipv6: Ipv6Addr::from([n; 16]),
        endpoints: Vec::new(),
        disco_key: None,
        home_relay: None,
        expires_at_ms: None,
        is_online: true,
        last_seen_ms: None,
        offers: HostOffers {
            models: models.into_iter().map(Arc::new).collect(),
            ..HostOffers::default()
        },
    };
    (node_id(n), entry)
}

pub(super) fn view(peers: Vec<(NodeId, PeerEntry)>) -> Arc<View> {
    let id = NetworkId::from_bytes([5; 16]);
    let machine = MachinePrivateKey::from_bytes(&[1; 32]);
    let netmap = Arc::new(Netmap {
        network: NetworkInfo {
            id,
            suffix: "proxima".to_owned(),
            ipv4_pool: "127.0.0.0/16".parse().unwrap(),
            ipv6_prefix: id.ipv6_prefix(),
            service_ipv4: Ipv4Addr::new(127, 0, 0, 53),
            service_ipv6: id.service_ipv6(),
            stun: Vec::new(),
            coordinator_urls: Vec::new(),
            relays: Vec::new(),
        },
        node: SelfNode {
            id: NodeId::of(&machine.public()),
            name: "own".parse().unwrap(),
            user: UserId(1),
            user_name: "user1".parse::<UserName>().unwrap(),
            tags: Vec::new(),
            node_key: NodePrivateKey::from_bytes([1; 32]).public(),
            ipv4: OWN,
            ipv6: Ipv6Addr::LOCALHOST,
            expires_at_ms: None,
        },
        filter: Filter::default(),
        peers: peers.into_iter().collect::<BTreeMap<_, _>>(),
    });
    let by_ipv4 = Arc::new(ByIpv4::of(&netmap));
    Arc::new(View::new(
        Revision::default(),
        netmap,
        by_ipv4,
        Arc::default(),
        Settings::default(),
    ))
}

impl UsageSink for mpsc::Sender<UsageRecord> {
    fn take(&self, record: &UsageRecord) {
        // Where nobody looks at them, it fills up.
        let _ = self.try_send(record.clone());
    }
}

/// A node under test.
pub(super) struct Node {
    pub(super) gateway: Arc<Gateway>,
    pub(super) hosts: Arc<Hosts>,
    pub(super) usage: mpsc::Receiver<UsageRecord>,
    pub(super) share: watch::Sender<Arc<InventoryStatus>>,
    _view: watch::Sender<Option<Arc<View>>>,
    _task: AbortOnDropHandle<()>,
}

impl Node {
    pub(super) fn start(
        peers: Vec<(NodeId, PeerEntry)>,
        config: ShareConfig,
        shared: Vec<(Offer, &Backend)>,
        door_port: Option<u16>,
    ) -> Self {
        let status = InventoryStatus {
            config,
            shared: shared
                .into_iter()
                .map(|(offer, backend)| Shared {
                    offer: offer.into(),
                    authority: backend.addr.to_string(),
                })
                .collect(),
            ..InventoryStatus::default()
        };
        let (view_tx, view) = watch::channel(Some(view(peers)));
        let (share_tx, share) = watch::channel(Arc::new(status));
        let (meter, usage) = mpsc::channel::<UsageRecord>(64);
        let hosts = Arc::new(Hosts::default());
        let gateway = Gateway::bind(GatewayConfig {
            reach: Reach::Interface {
                ipv4: OWN,
                ipv6: None,
                device: None,
            },
            view,
            hosts: Arc::clone(&hosts),
            share,
            pace: Arc::default(),
            pulled: Arc::default(),
            meter: Some(Arc::new(meter)),
            spending: Arc::default(),
            occupancy: Arc::default(),
            door_port,
        });
        let gateway = Arc::new(gateway.unwrap());
        let running = Arc::clone(&gateway);
        let task = tokio::spawn(async move { running.run(CancellationToken::new()).await });
        Self {
            gateway,
            hosts,
            usage,
            share: share_tx,
            _view: view_tx,
            _task: AbortOnDropHandle::new(task),
        }
    }

    /// A node that shares with everybody.
    pub(super) fn sharing(shared: Vec<(Offer, &Backend)>) -> Self {
        Self::start(
            vec![peer(2, Vec::new()), peer(3, Vec::new())],
            on(),
            shared,
            None,
        )
    }

    pub(super) async fn door(&self, from: u8, request: &str) -> Client {
        Client::send(from, self.gateway.door_ports().model, request).await
    }

    pub(super) async fn guest(&self, request: &str) -> Client {
        Client::send(1, self.gateway.guest_ports().unwrap().model, request).await
    }
}

pub(super) fn on() -> ShareConfig {
    ShareConfig {
        is_on: true,
        ..ShareConfig::default()
    }
}

pub(super) fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: 10.1.2.3:11434\r\nConnection: close\r\n\r\n")
}

pub(super) fn post(path: &str, body: &str) -> String {
    post_to("10.1.2.3:11434", path, body)
}

pub(super) fn post_to(host: &str, path: &str, body: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// A caller that sees every byte.
pub(super) struct Client {
    pub(super) stream: TcpStream,
    seen: Vec<u8>,
}

pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) head: String,
    pub(super) body: String,
    /// Whether the body came to the end that its framing promised.
    pub(super) is_whole: bool,
}

impl Reply {
    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("no JSON: {}", self.body))
    }

    pub(super) fn lines(&self) -> Vec<Value> {
        let lines = self.body.lines().filter(|line| !line.is_empty());
        lines
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

impl Client {
    pub(super) async fn send(from: u8, port: u16, request: &str) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        let source = IpAddr::V4(Ipv4Addr::new(127, 0, 0, from));
        socket.bind(SocketAddr::new(source, 0)).unwrap();
        let addr = SocketAddr::new(IpAddr::V4(OWN), port);
        let mut stream = soon(socket.connect(addr)).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        Self {
            stream,
            seen: Vec::new(),
        }
    }

    /// Waits until the caller has seen a text.
    pub(super) async fn until(&mut self, text: &str) {
        soon(async {
            while !String::from_utf8_lossy(&self.seen).contains(text) {
                let n = self.stream.read_buf(&mut self.seen).await.unwrap();
                assert!(
                    n > 0,
                    "ended before {text:?}: {}",
                    String::from_utf8_lossy(&self.seen)
                );
            }
        })
        .await;
    }

    /// Reads to the end of the connection.
    pub(super) async fn reply(mut self) -> Reply {
        // A cut connection may be told as a reset.
        let _ = soon(self.stream.read_to_end(&mut self.seen)).await;
        let text = String::from_utf8(self.seen).unwrap();
        let (head, raw) = text
            .split_once("\r\n\r\n")
            .unwrap_or_else(|| panic!("no head: {text:?}"));
        let status = head[9..12].parse().unwrap();
        let lower = head.to_ascii_lowercase();
        let (body, is_whole) = if lower.contains("transfer-encoding: chunked") {
            unchunk(raw)
        } else {
            let told = lower
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "));
            let told: Option<usize> = told.map(|n| n.parse().unwrap());
            (raw.to_owned(), told.is_none_or(|n| n == raw.len()))
        };
        Reply {
            status,
            head: lower,
            body,
            is_whole,
        }
    }
}

fn unchunk(mut raw: &str) -> (String, bool) {
    let mut body = String::new();
    loop {
        let Some((size, rest)) = raw.split_once("\r\n") else {
            return (body, false);
        };
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            return (body, true);
        }
        body.push_str(&rest[..size.min(rest.len())]);
        raw = rest.get(size + 2..).unwrap_or_default();
    }
}

/// A model server that the test speaks for.
pub(super) struct Backend {
    listener: TcpListener,
    pub(super) addr: SocketAddr,
}

/// One request at a backend.
pub(super) struct Seen {
    pub(super) head: String,
    pub(super) body: Value,
    pub(super) stream: TcpStream,
}

impl Backend {
    pub(super) async fn start() -> Self {
        Self::at(Ipv4Addr::LOCALHOST, 0).await
    }

    pub(super) async fn at(ip: Ipv4Addr, port: u16) -> Self {
        let listener = TcpListener::bind((ip, port)).await.unwrap();
        let addr = listener.local_addr().unwrap();
        Self { listener, addr }
    }

    pub(super) async fn accept(&self) -> Seen {
        soon(async {
            let (mut stream, _) = self.listener.accept().await.unwrap();
            let mut bytes = Vec::new();
            loop {
                let n = stream.read_buf(&mut bytes).await.unwrap();
                assert!(n > 0, "no request");
                let text = String::from_utf8_lossy(&bytes).into_owned();
                let Some((head, body)) = text.split_once("\r\n\r\n") else {
                    continue;
                };
                let head = head.to_owned();
                let told = head.to_ascii_lowercase().lines().find_map(|line| {
                    Some(
                        line.strip_prefix("content-length: ")?
                            .parse::<usize>()
                            .unwrap(),
                    )
                });
                if body.len() == told.unwrap_or(0) {
                    let body = serde_json::from_str(body).unwrap_or_default();
                    return Seen { head, body, stream };
                }
            }
        })
        .await
    }

    /// Whether nobody has connected.
    pub(super) async fn is_untouched(&self) -> bool {
        tokio::select! {
            biased;
            _ = self.listener.accept() => false,
            () = std::future::ready(()) => true,
        }
    }
}

impl Seen {
    pub(super) async fn reply(mut self, status: &str, kind: &str, body: &str) {
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nServer: secret\r\nSet-Cookie: a=b\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        self.stream.write_all(head.as_bytes()).await.unwrap();
        self.stream.write_all(body.as_bytes()).await.unwrap();
    }

    pub(super) async fn begin(&mut self, kind: &str) {
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n"
        );
        self.stream.write_all(head.as_bytes()).await.unwrap();
    }

    pub(super) async fn chunk(&mut self, text: &str) {
        let chunk = format!("{:x}\r\n{text}\r\n", text.len());
        self.stream.write_all(chunk.as_bytes()).await.unwrap();
    }

    pub(super) async fn end(&mut self) {
        self.stream.write_all(b"0\r\n\r\n").await.unwrap();
    }

    /// Waits for another request on the same connection.
    pub(super) async fn read(&mut self) {
        let mut bytes = [0; 4096];
        assert!(soon(self.stream.read(&mut bytes)).await.unwrap() > 0, "cut");
    }

    /// Waits until the gateway cuts the connection.
    pub(super) async fn gone(&mut self) {
        let mut byte = [0];
        let read = soon(self.stream.read(&mut byte)).await;
        assert!(matches!(read, Ok(0) | Err(_)), "the gateway sent more");
    }
}
