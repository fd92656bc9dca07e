//! A small node and a small operator.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use coordinator::config::ConfigFile;
use coordinator::serve::Server;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use mesh_proto::auth_key::{AuthKey, pin_of};
use mesh_proto::control::{self, ErrorBody, RegisterRequest, RegisterResponse};
use mesh_proto::id::NodeId;
use mesh_proto::key::{CoordinatorKey, MachinePrivateKey, NodePrivateKey, Purpose};
use mesh_proto::netmap::{MapBody, MapFrame, Netmap, Revision};
use mesh_proto::request::{NONCE_HEADER, RequestProof};
use rustls::pki_types::ServerName;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::client::TlsStream;

/// Nothing in these tests takes nearly as long on an idle machine; a busy one gets its time.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A coordinator in a directory of its own.
pub(crate) struct Mesh {
    server: Option<Server>,
    pub(crate) dir: tempfile::TempDir,
}

impl Mesh {
    pub(crate) async fn start() -> Self {
        Self::start_with(ConfigFile::default()).await
    }

    pub(crate) async fn start_with(file: ConfigFile) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut mesh = Self { server: None, dir };
        mesh.launch(file).await;
        mesh
    }

    async fn launch(&mut self, file: ConfigFile) {
        let local: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let own = ConfigFile {
            listen: Some(vec![local]),
            state_dir: Some(self.dir.path().join("state")),
            ..ConfigFile::default()
        };
        let mut settings = own.over(file).into_settings().unwrap();
        settings.start_grace = Duration::from_secs(3);
        self.server = Some(Server::start(settings).await.unwrap());
    }

    /// Stops the coordinator and starts it again on the same state.
    pub(crate) async fn restart(&mut self) {
        self.server.take().unwrap().stop().await;
        self.launch(ConfigFile::default()).await;
    }

    /// Stops the coordinator and leaves its state.
    pub(crate) async fn stop(&mut self) {
        self.server.take().unwrap().stop().await;
    }

    pub(crate) fn server(&self) -> &Server {
        self.server.as_ref().unwrap()
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.server().addresses()[0]
    }

    pub(crate) fn first_key(&self) -> AuthKey {
        self.server().first_key().unwrap().key.parse().unwrap()
    }

    pub(crate) fn operator(&self) -> Operator {
        Operator {
            socket: self.server().socket().to_owned(),
        }
    }

    /// A new auth key by these options.
    pub(crate) async fn key(&self, options: Value) -> AuthKey {
        let (status, created) = self
            .operator()
            .ask(Method::POST, "/api/v1/auth-keys", Some(options))
            .await;
        assert_eq!(status, StatusCode::CREATED, "{created}");
        created["key"].as_str().unwrap().parse().unwrap()
    }

    /// A machine with a key out of this number, not joined yet.
    pub(crate) fn machine(&self, n: u32) -> Node {
        let mut seed = [7; 32];
        seed[..4].copy_from_slice(&n.to_be_bytes());
        Node {
            machine: MachinePrivateKey::from_bytes(&seed),
            node_key: NodePrivateKey::from_bytes(seed),
            address: self.address(),
            coordinator: self.server().coordinator_key(),
            hostname: format!("host{n}"),
        }
    }

    /// A node that joined by a key of its own.
    pub(crate) async fn join(&self, n: u32) -> Node {
        let key = self.key(serde_json::json!({})).await;
        let node = self.machine(n);
        node.register(Some(&key)).await.unwrap();
        node
    }
}

/// A node, as far as its coordinator sees it.
#[derive(Clone)]
pub(crate) struct Node {
    pub(crate) machine: MachinePrivateKey,
    pub(crate) node_key: NodePrivateKey,
    pub(crate) address: SocketAddr,
    pub(crate) coordinator: CoordinatorKey,
    pub(crate) hostname: String,
}

/// What came back: the status and the parsed error.
pub(crate) type Refusal = (StatusCode, String);

impl Node {
    pub(crate) fn id(&self) -> NodeId {
        NodeId::of(&self.machine.public())
    }

    /// A connection to the coordinator, verified by the pin.
    pub(crate) async fn connect(&self) -> http1::SendRequest<Full<Bytes>> {
        connect(self.address, self.coordinator).await
    }

    pub(crate) async fn nonce(&self) -> String {
        let mut sender = self.connect().await;
        let answer = sender
            .send_request(request(
                Method::GET,
                control::PATH_IDENTITY,
                None,
                Vec::new(),
            ))
            .await
            .unwrap();
        nonce_of(&answer)
    }

    pub(crate) async fn signed(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Response<Incoming> {
        let mut sender = self.connect().await;
        let first = request(Method::GET, control::PATH_IDENTITY, None, Vec::new());
        let answer = sender.send_request(first).await.unwrap();
        let nonce = nonce_of(&answer);
        answer.into_body().collect().await.unwrap();
        let proof = RequestProof::sign(&self.machine, method.as_str(), path, &body, &nonce);
        sender.ready().await.unwrap();
        sender
            .send_request(request(method, path, Some(&proof.to_header()), body))
            .await
            .unwrap()
    }

    pub(crate) async fn post(&self, path: &str, body: &impl Serialize) -> Result<(), Refusal> {
        let answer = self
            .signed(Method::POST, path, serde_json::to_vec(body).unwrap())
            .await;
        if answer.status() == StatusCode::NO_CONTENT {
            Ok(())
        } else {
            Err(refusal(answer).await)
        }
    }

    pub(crate) fn registration(&self, key: Option<&AuthKey>) -> RegisterRequest {
        let node_key = self.node_key.public();
        RegisterRequest {
            auth_secret: key.map(AuthKey::secret_text),
            node_key,
            node_key_signature: self.machine.sign(Purpose::NodeKey, node_key.as_bytes()),
            hostname: self.hostname.clone(),
            os: "linux".to_owned(),
            version: "0.1.0".to_owned(),
        }
    }

    pub(crate) async fn register(
        &self,
        key: Option<&AuthKey>,
    ) -> Result<RegisterResponse, Refusal> {
        let body = serde_json::to_vec(&self.registration(key)).unwrap();
        let answer = self
            .signed(Method::POST, control::PATH_REGISTER, body)
            .await;
        if answer.status() == StatusCode::OK {
            Ok(json(answer).await)
        } else {
            Err(refusal(answer).await)
        }
    }

    /// Opens the map stream, from a revision on.
    pub(crate) async fn listen(&self, resume: Option<Revision>) -> Result<MapStream, Refusal> {
        let path = match resume {
            Some(at) => format!(
                "{}?epoch={}&version={}",
                control::PATH_MAP,
                at.epoch,
                at.version
            ),
            None => control::PATH_MAP.to_owned(),
        };
        let answer = self.signed(Method::GET, &path, Vec::new()).await;
        if answer.status() != StatusCode::OK {
            return Err(refusal(answer).await);
        }
        assert_eq!(answer.headers()["content-type"], control::MAP_CONTENT_TYPE);
        Ok(MapStream {
            body: answer.into_body(),
            rest: Vec::new(),
            node: self.id(),
            coordinator: self.coordinator,
            netmap: None,
            revision: Revision::default(),
        })
    }
}

/// A map stream that applies what it hears.
pub(crate) struct MapStream {
    body: Incoming,
    rest: Vec<u8>,
    node: NodeId,
    coordinator: CoordinatorKey,
    pub(crate) netmap: Option<Netmap>,
    pub(crate) revision: Revision,
}

impl MapStream {
    /// Takes up a map from an earlier stream.
    pub(crate) fn with_map(mut self, netmap: Netmap, revision: Revision) -> Self {
        (self.netmap, self.revision) = (Some(netmap), revision);
        self
    }

    /// The next frame, verified and applied; `None` when the stream ended.
    pub(crate) async fn next(&mut self) -> Option<MapBody> {
        let line = tokio::time::timeout(PATIENCE, self.line())
            .await
            .expect("a frame in time")?;
        let frame = MapFrame::from_line(&line, &self.coordinator, &self.node).unwrap();
        match frame.body.clone() {
            MapBody::Full(netmap) => self.netmap = Some(*netmap),
            MapBody::Delta { since, delta } => {
                assert_eq!(
                    since, self.revision.version,
                    "a delta starts where the map stands"
                );
                assert_eq!(frame.revision.epoch, self.revision.epoch);
                self.netmap.as_mut().unwrap().apply(*delta);
            }
            MapBody::Heartbeat {} => assert_eq!(frame.revision, self.revision),
        }
        self.revision = frame.revision;
        Some(frame.body)
    }

    /// Listens until the map is as wished.
    pub(crate) async fn until(&mut self, wish: impl Fn(&Netmap) -> bool) {
        while !self.netmap.as_ref().is_some_and(&wish) {
            assert!(self.next().await.is_some(), "the stream ended");
        }
    }

    async fn line(&mut self) -> Option<String> {
        loop {
            if let Some(at) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line = self.rest.drain(..=at).collect();
                return Some(String::from_utf8(line).unwrap());
            }
            let frame = self.body.frame().await?.ok()?;
            self.rest.extend(frame.into_data().unwrap());
        }
    }
}

/// An operator on the local socket.
pub(crate) struct Operator {
    socket: PathBuf,
}

impl Operator {
    pub(crate) async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> (StatusCode, Value) {
        let body = body
            .map(|body| body.to_string().into_bytes())
            .unwrap_or_default();
        let answer = send_unix(&self.socket, request(method, path, None, body)).await;
        let status = answer.status();
        let bytes = answer.into_body().collect().await.unwrap().to_bytes();
        let value = if bytes.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&bytes)
                .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into()))
        };
        (status, value)
    }
}

pub(crate) async fn send_unix(socket: &Path, request: Request<Full<Bytes>>) -> Response<Incoming> {
    let stream = UnixStream::connect(socket).await.unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender.send_request(request).await.unwrap()
}

pub(crate) async fn connect(
    address: SocketAddr,
    key: CoordinatorKey,
) -> http1::SendRequest<Full<Bytes>> {
    let stream = connect_tls(address, pin_of(&key)).await;
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

pub(crate) async fn connect_tls(address: SocketAddr, pin: [u8; 32]) -> TlsStream<TcpStream> {
    let config = coordinator::client_config(pin).unwrap();
    let name = ServerName::try_from("anything.example").unwrap();
    let stream = TcpStream::connect(address).await.unwrap();
    tokio_rustls::TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
        .unwrap()
}

pub(crate) fn request(
    method: Method,
    path: &str,
    authorization: Option<&str>,
    body: Vec<u8>,
) -> Request<Full<Bytes>> {
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "localhost");
    if let Some(authorization) = authorization {
        request = request.header("authorization", authorization);
    }
    request.body(Full::from(body)).unwrap()
}

pub(crate) fn nonce_of(answer: &Response<Incoming>) -> String {
    answer.headers()[NONCE_HEADER].to_str().unwrap().to_owned()
}

pub(crate) async fn json<T: DeserializeOwned>(answer: Response<Incoming>) -> T {
    serde_json::from_slice(&answer.into_body().collect().await.unwrap().to_bytes()).unwrap()
}

pub(crate) async fn refusal(answer: Response<Incoming>) -> Refusal {
    let status = answer.status();
    (status, json::<ErrorBody>(answer).await.error.code)
}
