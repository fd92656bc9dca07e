//! A stand-in for `meshd`: canned answers on a real Unix socket and a real gateway address, and a runner for `meshctl`.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io::{Read as _, Write as _};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use mesh_proto::control::ErrorBody;
use mesh_proto::id::{NetworkId, NodeId, RelayId};
use mesh_proto::local::*;
use mesh_proto::netmap::Revision;
use serde::Serialize;
use tempfile::TempDir;

/// What was asked, as `METHOD path body`.
type Asked = Arc<Mutex<Vec<String>>>;
type Canned = BTreeMap<String, (u16, Vec<u8>)>;

/// Canned answers being served. What is not canned is answered 404.
pub(crate) struct Fake {
    pub(crate) dir: TempDir,
    canned: Canned,
    asked: Asked,
    _runtime: tokio::runtime::Runtime,
    gateway: Option<Ipv4Addr>,
}

pub(crate) struct FakeBuilder {
    canned: Canned,
    gateway: Option<(u16, Vec<u8>)>,
    hangs_up: Option<mpsc::Sender<()>>,
    socket_name: &'static str,
}

impl FakeBuilder {
    pub(crate) fn json<T: Serialize>(mut self, method: &str, path: &str, body: &T) -> Self {
        let body = serde_json::to_vec(body).unwrap();
        self.canned.insert(format!("{method} {path}"), (200, body));
        self
    }

    pub(crate) fn done(mut self, path: &str) -> Self {
        self.canned
            .insert(format!("POST {path}"), (204, Vec::new()));
        self
    }

    pub(crate) fn text(mut self, path: &str, body: &str) -> Self {
        self.canned
            .insert(format!("GET {path}"), (200, body.into()));
        self
    }

    pub(crate) fn error(
        mut self,
        method: &str,
        path: &str,
        status: u16,
        code: &str,
        message: &str,
    ) -> Self {
        let body = serde_json::to_vec(&ErrorBody::new(code, message)).unwrap();
        self.canned
            .insert(format!("{method} {path}"), (status, body));
        self
    }

    /// A gateway that answers every chat so.
    pub(crate) fn gateway(mut self, status: u16, body: &str) -> Self {
        self.gateway = Some((status, body.into()));
        self
    }

    /// The gateway's answers never end; a caller that goes away is told to `sender`.
    pub(crate) fn endless(mut self, sender: mpsc::Sender<()>) -> Self {
        self.hangs_up = Some(sender);
        self
    }

    /// Listens under another name than `meshctl` looks for.
    pub(crate) fn hidden(mut self) -> Self {
        self.socket_name = "hidden.sock";
        self
    }

    pub(crate) fn start(mut self) -> Fake {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let asked = Asked::default();
        let mut gateway = None;
        if let Some((status, body)) = self.gateway.take() {
            let ip = own_ip();
            let listener = runtime
                .block_on(tokio::net::TcpListener::bind((ip, 11434)))
                .unwrap();
            gateway = Some(ip);
            let canned: Canned = [("POST /api/chat".to_owned(), (status, body))].into();
            let asked = Arc::clone(&asked);
            let hangs_up = self.hangs_up.take();
            runtime.spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(serve(
                        TokioIo::new(stream),
                        canned.clone(),
                        Arc::clone(&asked),
                        hangs_up.clone(),
                    ));
                }
            });
            if !self.canned.contains_key("GET /v1/status") {
                let mut status = status_running();
                if let Some(node) = &mut status.node {
                    node.service_ipv4 = ip;
                }
                self = self.json("GET", PATH_STATUS, &status);
            }
        }
        let path = dir.path().join(self.socket_name);
        let guard = runtime.enter();
        let listener = tokio::net::UnixListener::bind(path).unwrap();
        drop(guard);
        let (canned, seen) = (self.canned.clone(), Arc::clone(&asked));
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(
                    TokioIo::new(stream),
                    canned.clone(),
                    Arc::clone(&seen),
                    None,
                ));
            }
        });
        Fake {
            dir,
            canned: self.canned,
            asked,
            _runtime: runtime,
            gateway,
        }
    }
}

/// An address of this machine's own that no other test has.
fn own_ip() -> Ipv4Addr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(
        127,
        64 | (high & 63),
        low.max(1),
        NEXT.fetch_add(1, Ordering::Relaxed),
    )
}

/// A canned body; one with `hold` never ends, and tells when it is dropped.
struct CannedBody {
    bytes: Option<Bytes>,
    hold: Option<mpsc::Sender<()>>,
}

impl hyper::body::Body for CannedBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match (self.bytes.take(), &self.hold) {
            (Some(bytes), _) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
            (None, Some(_)) => Poll::Pending,
            (None, None) => Poll::Ready(None),
        }
    }
}

impl Drop for CannedBody {
    fn drop(&mut self) {
        if let Some(hold) = self.hold.take() {
            let _ = hold.send(());
        }
    }
}

async fn serve<S>(stream: TokioIo<S>, canned: Canned, asked: Asked, hold: Option<mpsc::Sender<()>>)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let (canned, asked, hold) = (canned.clone(), Arc::clone(&asked), hold.clone());
        async move {
            let key = format!("{} {}", request.method(), request.uri().path());
            let full = format!("{} {}", request.method(), request.uri());
            let body = request
                .into_body()
                .collect()
                .await
                .map(|body| body.to_bytes())
                .unwrap_or_default();
            let words = format!("{full} {}", String::from_utf8_lossy(&body));
            asked.lock().unwrap().push(words.trim_end().to_owned());
            let (status, body) = canned.get(&key).cloned().unwrap_or_else(|| {
                (
                    404,
                    serde_json::to_vec(&ErrorBody::new(
                        "not_found",
                        format!("nothing canned for {key}"),
                    ))
                    .unwrap(),
                )
            });
            let bytes = (!body.is_empty()).then(|| Bytes::from(body));
            let mut answer = Response::new(CannedBody { bytes, hold });
            *answer.status_mut() = http::StatusCode::from_u16(status).unwrap();
            answer
                .headers_mut()
                .insert("x-proxima-host", "gpu1".parse().unwrap());
            Ok::<_, Infallible>(answer)
        }
    });
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(stream, service)
        .await;
}

impl Fake {
    pub(crate) fn bare() -> FakeBuilder {
        FakeBuilder {
            canned: Canned::new(),
            gateway: None,
            hangs_up: None,
            socket_name: "meshd.sock",
        }
    }

    /// A daemon that runs, with the usual peers and problems.
    pub(crate) fn running() -> FakeBuilder {
        Self::bare().json("GET", PATH_STATUS, &status_running())
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("meshd.sock")
    }

    /// What `meshctl` asked so far.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    /// Runs `meshctl` and renders all that it did.
    pub(crate) fn meshctl(&self, args: &[&str]) -> String {
        self.meshctl_with(args, "")
    }

    pub(crate) fn meshctl_with(&self, args: &[&str], stdin: &str) -> String {
        let text = Meshctl::new(&self.socket()).stdin(stdin).run(args);
        let text = text.replace(&self.dir.path().display().to_string(), "[DIR]");
        match self.gateway {
            Some(ip) => text.replace(&ip.to_string(), "[GATEWAY]"),
            None => text,
        }
    }

    /// Human and JSON output of the same call, one after the other.
    pub(crate) fn both(&self, args: &[&str]) -> String {
        assert!(!self.canned.is_empty());
        let mut with_json = args.to_vec();
        with_json.push("--json");
        format!("{}\n{}", self.meshctl(args), self.meshctl(&with_json))
    }
}

/// One call of the binary, in an environment of its own.
pub(crate) struct Meshctl {
    program: PathBuf,
    socket: PathBuf,
    stdin: String,
    env: Vec<(String, String)>,
}

impl Meshctl {
    pub(crate) fn new(socket: &Path) -> Self {
        Self {
            program: PathBuf::from(env!("CARGO_BIN_EXE_meshctl")),
            socket: socket.to_owned(),
            stdin: String::new(),
            env: Vec::new(),
        }
    }

    pub(crate) fn program(mut self, program: PathBuf) -> Self {
        self.program = program;
        self
    }

    pub(crate) fn stdin(mut self, text: &str) -> Self {
        text.clone_into(&mut self.stdin);
        self
    }

    pub(crate) fn env(mut self, key: &str, value: &str) -> Self {
        self.env.push((key.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn run(self, args: &[&str]) -> String {
        let mut command = Command::new(&self.program);
        command
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("MESHD_SOCKET", &self.socket)
            .args(args);
        command.envs(self.env.iter().map(|(key, value)| (key, value)));
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.stdin(if self.stdin.is_empty() {
            Stdio::null()
        } else {
            Stdio::piped()
        });
        let mut child = command.spawn().unwrap();
        if let Some(mut pipe) = child.stdin.take() {
            pipe.write_all(self.stdin.as_bytes()).unwrap();
        }
        let output = child.wait_with_output().unwrap();
        let (stdout, stderr) = (
            String::from_utf8(output.stdout).unwrap(),
            String::from_utf8(output.stderr).unwrap(),
        );
        if args.contains(&"--json") && !stdout.is_empty() {
            assert!(stdout.starts_with("{\n  \"schema_version\": 1"), "{stdout}");
            serde_json::from_str::<serde_json::Value>(&stdout).unwrap();
        }
        assert!(!stderr.contains("panicked"), "{stderr}");
        let text = format!(
            "$ meshctl {}\n[exit {}]\n[stdout]\n{stdout}[stderr]\n{stderr}",
            args.join(" "),
            output.status.code().unwrap_or(-1)
        );
        // Which command starts the daemon depends on the machine.
        text.replace("sudo systemctl start meshd", "[START]")
            .replace("sudo meshctl up\n", "[START]\n")
    }
}

/// `meshctl` on a terminal of its own, by util-linux's `script`.
pub(crate) struct Terminal {
    child: Child,
    keys: ChildStdin,
    seen: Arc<(Mutex<String>, Condvar)>,
}

impl Terminal {
    pub(crate) fn open(fake: &Fake, args: &str) -> Self {
        let mut child = Command::new("/usr/bin/script")
            .args([
                "-qec",
                // Without a terminal of its own to copy from, `script` makes one of no size.
                &format!(
                    "stty rows 24 cols 100; exec {} {args}",
                    env!("CARGO_BIN_EXE_meshctl")
                ),
                "/dev/null",
            ])
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("TERM", "dumb")
            .env("MESHD_SOCKET", fake.socket())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let keys = child.stdin.take().unwrap();
        let mut screen = child.stdout.take().unwrap();
        let seen = Arc::new((Mutex::new(String::new()), Condvar::new()));
        let shown = Arc::clone(&seen);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = screen.read(&mut buffer) {
                let text = String::from_utf8_lossy(&buffer[..n]).replace('\r', "");
                shown.0.lock().unwrap().push_str(&text);
                shown.1.notify_all();
            }
        });
        Self { child, keys, seen }
    }

    pub(crate) fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
        self.keys.flush().unwrap();
    }

    /// Waits until `text` was shown `n` times.
    pub(crate) fn await_text(&self, text: &str, n: usize) {
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut seen = self.seen.0.lock().unwrap();
        while seen.matches(text).count() < n {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "`{text}` did not come {n} times: {seen}");
            seen = self.seen.1.wait_timeout(seen, left).unwrap().0;
        }
    }

    /// Waits for the end; gives the exit code and all that was shown.
    pub(crate) fn close(mut self) -> (Option<i32>, String) {
        drop(self.keys);
        let code = self.child.wait().unwrap().code();
        let seen = self.seen.0.lock().unwrap().clone();
        (code, seen)
    }
}

pub(crate) fn node_id(n: u8) -> NodeId {
    NodeId::from_bytes([n; 10])
}

/// Three hours ago, and a little, so that a slow test still says three hours.
fn long_ago_ms() -> u64 {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    u64::try_from(now.as_millis()).unwrap() - 3 * 3_600_000 - 60_000
}

pub(crate) fn status_of(state: RunState) -> Status {
    Status {
        state,
        node: None,
        coordinator: None,
        peers: Vec::new(),
        problems: Vec::new(),
        ..status_running()
    }
}

fn peer(n: u8, name: &str, user: &str) -> PeerStatus {
    PeerStatus {
        id: node_id(n),
        name: name.parse().unwrap(),
        user: user.parse().unwrap(),
        tags: Vec::new(),
        ipv4: Ipv4Addr::new(10, 171, 1, n),
        ipv6: NetworkId::from_bytes([0xab; 16]).ipv6_of(&node_id(n)),
        is_online: true,
        last_seen_ms: None,
        path: PathStatus::Idle,
        rtt_ms: None,
        loss_percent: None,
        path_mtu: None,
        rx_bytes: 0,
        tx_bytes: 0,
        last_handshake_ms_ago: None,
        n_models: 0,
    }
}

pub(crate) fn status_running() -> Status {
    let network_id = NetworkId::from_bytes([0xab; 16]);
    let gpu1 = PeerStatus {
        path: PathStatus::Direct {
            endpoint: "192.0.2.7:41641".parse().unwrap(),
        },
        rtt_ms: Some(12.34),
        loss_percent: Some(2.6),
        path_mtu: Some(1440),
        rx_bytes: 3_565_158,
        tx_bytes: 1_234,
        last_handshake_ms_ago: Some(12_000),
        n_models: 3,
        ..peer(3, "gpu1", "anna")
    };
    let lab = PeerStatus {
        tags: vec!["tag:lab".parse().unwrap()],
        path: PathStatus::Relayed {
            relay: RelayId::from_bytes([7; 10]),
            name: "tokyo".to_owned(),
        },
        n_models: 1,
        ..peer(4, "lab", "anna")
    };
    let old = PeerStatus {
        is_online: false,
        last_seen_ms: Some(long_ago_ms()),
        ..peer(5, "old-pc", "bob")
    };
    Status {
        state: RunState::Running,
        version: "0.1.0".to_owned(),
        node: Some(NodeStatus {
            id: node_id(2),
            name: "laptop".parse().unwrap(),
            dns_name: "laptop.node.proxima".to_owned(),
            user: "anna".parse().unwrap(),
            tags: Vec::new(),
            network_id,
            ipv4: Ipv4Addr::new(10, 171, 1, 2),
            ipv6: network_id.ipv6_of(&node_id(2)),
            gateway_url: "http://ollama.proxima:11434".to_owned(),
            service_ipv4: Ipv4Addr::new(127, 171, 0, 53),
            suffix: "proxima".to_owned(),
            endpoints: vec!["192.0.2.2:41641".parse().unwrap()],
            interface: "proxima0".to_owned(),
            userspace: None,
            is_sharing: false,
            expires_at_ms: None,
        }),
        coordinator: Some(CoordinatorStatus {
            url: "https://192.0.2.1:7443".to_owned(),
            is_connected: true,
            last_heard_ms_ago: Some(2_500),
            revision: Revision {
                epoch: 7,
                version: 42,
            },
            error: None,
        }),
        peers: vec![gpu1, lab, old],
        problems: Vec::new(),
    }
}
