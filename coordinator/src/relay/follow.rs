//! A relay's talk with its coordinator: tells where it is reached, then hears whom it serves, for as long as it runs.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, USER_AGENT};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use mesh_proto::control::{ErrorBody, HEARTBEAT_MS, PATH_IDENTITY, code};
use mesh_proto::key::{CoordinatorKey, MachinePrivateKey};
use mesh_proto::netmap::Revision;
use mesh_proto::relay::{
    MembersBody, MembersFrame, PATH_RELAY_MEMBERS, PATH_RELAY_REGISTER, RelayRegistered,
    RelayRegistration,
};
use mesh_proto::request::{NONCE_HEADER, RequestProof};
use mesh_relay::Members;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use crate::config::unbracketed;
use crate::tls::pin::client_config;

const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
const ANSWER_DEADLINE: Duration = Duration::from_secs(15);
const ANSWER_LEN_MAX: usize = 1 << 20;
/// Two missed heartbeats and some slack: then the stream is dead.
const SILENCE_MAX: Duration = Duration::from_millis(2 * HEARTBEAT_MS + 3_000);
/// No list of members is longer.
const LINE_LEN_MAX: usize = 64 << 20;
const RETRY_FIRST: Duration = Duration::from_millis(250);
const RETRY_LONGEST: Duration = Duration::from_secs(20);

/// Why the coordinator did not do as asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TalkError {
    /// None of the coordinators answers, or not as one.
    #[error("cannot reach the coordinator at {url}: {reason}")]
    Unreachable {
        /// The URL that was tried last.
        url: String,
        /// What happened.
        reason: String,
    },
    /// It says no.
    #[error("{message}")]
    Refused {
        /// Stable, one of [`mesh_proto::control::code`].
        code: String,
        /// For people.
        message: String,
    },
}

/// What it takes to speak to the coordinators of a mesh.
#[derive(Debug, Clone)]
pub(crate) struct Talk {
    urls: Vec<String>,
    tls: Arc<ClientConfig>,
    key: MachinePrivateKey,
}

/// An answer, and the connection that it comes by.
struct Answer {
    response: Response<Incoming>,
    _driver: Driver,
}

struct Driver(JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Talk {
    /// Speaks to the coordinators at these URLs that have this pin, as the relay with this key.
    pub(crate) fn new(
        urls: Vec<String>,
        pin: [u8; 32],
        key: MachinePrivateKey,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            urls,
            tls: Arc::new(client_config(pin)?),
            key,
        })
    }

    /// Tells where the relay is reached.
    pub(crate) async fn register(
        &self,
        registration: &RelayRegistration,
    ) -> Result<RelayRegistered, TalkError> {
        let body = serde_json::to_vec(registration).unwrap_or_default();
        let answer = self.ask(Method::POST, PATH_RELAY_REGISTER, body).await?;
        let unreadable = |reason: String| TalkError::Unreachable {
            url: String::new(),
            reason,
        };
        let body = collect(answer.response).await.map_err(unreadable)?;
        serde_json::from_slice(&body).map_err(|err| unreadable(err.to_string()))
    }

    /// Asks the first coordinator that answers, with a proof for this request alone.
    async fn ask(&self, method: Method, path: &str, body: Vec<u8>) -> Result<Answer, TalkError> {
        let mut error = TalkError::Unreachable {
            url: String::new(),
            reason: "no coordinator is known".to_owned(),
        };
        for url in &self.urls {
            let asked = self.ask_at(url, &method, path, &body).await;
            let answer = match asked {
                Ok(answer) => answer,
                Err(reason) => {
                    let url = url.clone();
                    error = TalkError::Unreachable { url, reason };
                    continue;
                }
            };
            if answer.response.status().is_success() {
                return Ok(answer);
            }
            let status = answer.response.status();
            let body = collect(answer.response).await.unwrap_or_default();
            return Err(refusal(status, &body));
        }
        Err(error)
    }

    async fn ask_at(
        &self,
        url: &str,
        method: &Method,
        path: &str,
        body: &[u8],
    ) -> Result<Answer, String> {
        let uri: hyper::Uri = url.parse().map_err(|_| "not a URL".to_owned())?;
        let host = uri.host().ok_or("the URL has no host")?;
        let host = unbracketed(host).to_owned();
        let port = uri.port_u16().unwrap_or(443);
        let connect = async {
            let name = ServerName::try_from(host.clone()).map_err(|err| err.to_string())?;
            let stream = TcpStream::connect((host.as_str(), port))
                .await
                .map_err(|err| err.to_string())?;
            stream.set_nodelay(true).map_err(|err| err.to_string())?;
            TlsConnector::from(Arc::clone(&self.tls))
                .connect(name, stream)
                .await
                .map_err(|err| err.to_string())
        };
        let stream = timeout(CONNECT_DEADLINE, connect)
            .await
            .map_err(|_| "no connection in time".to_owned())??;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|err| err.to_string())?;
        let driver = Driver(tokio::spawn(async move {
            // Its end shows at the answer.
            drop(connection.await);
        }));
        let exchange = async {
            let request = |method: &Method, path: &str, proof: Option<String>, body: &[u8]| {
                let mut request = Request::builder()
                    .method(method)
                    .uri(path)
                    .header(HOST, host.as_str())
                    .header(CONTENT_TYPE, "application/json")
                    .header(
                        USER_AGENT,
                        concat!("coordinator-relay/", env!("CARGO_PKG_VERSION")),
                    );
                if let Some(proof) = proof {
                    request = request.header(AUTHORIZATION, proof);
                }
                request
                    .body(Full::new(Bytes::copy_from_slice(body)))
                    .map_err(|err| err.to_string())
            };
            let first = request(&Method::GET, PATH_IDENTITY, None, &[])?;
            let answer = sender
                .send_request(first)
                .await
                .map_err(|err| err.to_string())?;
            let nonce = answer
                .headers()
                .get(NONCE_HEADER)
                .and_then(|nonce| nonce.to_str().ok())
                .ok_or("it gave no nonce")?
                .to_owned();
            collect(answer).await?;
            let proof = RequestProof::sign(&self.key, method.as_str(), path, body, &nonce);
            sender.ready().await.map_err(|err| err.to_string())?;
            sender
                .send_request(request(method, path, Some(proof.to_header()), body)?)
                .await
                .map_err(|err| err.to_string())
        };
        let response = timeout(ANSWER_DEADLINE, exchange)
            .await
            .map_err(|_| "no answer in time".to_owned())??;
        Ok(Answer {
            response,
            _driver: driver,
        })
    }
}

async fn collect(response: Response<Incoming>) -> Result<Bytes, String> {
    let body = Limited::new(response.into_body(), ANSWER_LEN_MAX).collect();
    let body = timeout(ANSWER_DEADLINE, body)
        .await
        .map_err(|_| "its answer does not end".to_owned())?;
    Ok(body.map_err(|err| err.to_string())?.to_bytes())
}

fn refusal(status: StatusCode, body: &[u8]) -> TalkError {
    let ErrorBody { error } = ErrorBody::from_answer(body, status);
    TalkError::Refused {
        code: error.code,
        message: error.message,
    }
}

/// Follows the members of a mesh.
pub(crate) struct Follower {
    pub(crate) talk: Talk,
    pub(crate) coordinator: CoordinatorKey,
    pub(crate) registration: RelayRegistration,
    pub(crate) members: watch::Sender<Arc<Members>>,
}

impl Follower {
    /// Runs until told to stop. What is known stays while no coordinator is reached.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let mut pause = RETRY_FIRST;
        loop {
            let since = tokio::time::Instant::now();
            let outcome = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                outcome = self.follow() => outcome,
            };
            match outcome {
                Err(TalkError::Refused { code, message }) => {
                    tracing::error!(code, message, "the coordinator refuses this relay");
                    if code == code::NOT_REGISTERED {
                        // Removed: it serves nobody any more.
                        self.members.send_replace(Arc::default());
                    }
                }
                Err(err) => tracing::warn!(%err, "no word of members; the known ones stay"),
                Ok(()) => tracing::info!("the stream of members ended"),
            }
            if since.elapsed() > RETRY_LONGEST {
                pause = RETRY_FIRST;
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(jittered(pause)) => {}
            }
            pause = (pause * 2).min(RETRY_LONGEST);
        }
    }

    /// One stream, to its end.
    async fn follow(&self) -> Result<(), TalkError> {
        self.talk.register(&self.registration).await?;
        let answer = self
            .talk
            .ask(Method::GET, PATH_RELAY_MEMBERS, Vec::new())
            .await?;
        tracing::info!("hearing of members");
        let mut body = answer.response.into_body();
        let mut read: Vec<u8> = Vec::new();
        let mut stands = Revision::default();
        let broken = |reason: String| TalkError::Unreachable {
            url: String::new(),
            reason,
        };
        loop {
            while let Some(end) = read.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = read.drain(..=end).collect();
                let line = String::from_utf8(line).map_err(|err| broken(err.to_string()))?;
                let own = self.talk.key.public();
                let frame = MembersFrame::from_line(&line, &self.coordinator, &own)
                    .map_err(|err| broken(err.to_string()))?;
                if frame.revision < stands {
                    return Err(broken("it went back to an older mesh".to_owned()));
                }
                stands = frame.revision;
                self.take(frame.body);
            }
            if read.len() > LINE_LEN_MAX {
                return Err(broken("a line without an end".to_owned()));
            }
            let frame = timeout(SILENCE_MAX, body.frame())
                .await
                .map_err(|_| broken("silent for too long".to_owned()))?;
            match frame {
                None => return Ok(()),
                Some(Err(err)) => return Err(broken(err.to_string())),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        read.extend_from_slice(&data);
                    }
                }
            }
        }
    }

    fn take(&self, body: MembersBody) {
        match body {
            MembersBody::Full(members) => {
                let members = members
                    .iter()
                    .map(|member| (member.node_key, member.expires_at_ms));
                let members = Members::new(members);
                self.members.send_if_modified(|known| {
                    let is_changed = **known != members;
                    *known = Arc::new(members);
                    is_changed
                });
            }
            MembersBody::Delta { added, removed } => self.members.send_modify(|known| {
                Arc::make_mut(known).apply(&added, &removed);
            }),
            MembersBody::Heartbeat {} => {}
        }
    }
}

/// Between half and the whole of a time, so that many relays do not come back at once.
fn jittered(pause: Duration) -> Duration {
    let share = getrandom::u32().map_or(0.5, |random| f64::from(random) / f64::from(u32::MAX));
    pause.mul_f64(0.5 + share / 2.0)
}
