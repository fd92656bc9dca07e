//! Chats with a model through this node's own gateway, by Ollama's streaming chat call.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use http::header::{ACCEPT, CONTENT_TYPE, HOST, USER_AGENT};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use mesh_proto::MODEL_PORT;
use mesh_proto::control::code;
use mesh_proto::local::NodeStatus;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::exit::{Exit, Failure};

const CHAT_PATH: &str = "/api/chat";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// No line of an answer is longer; a host that sends one is not well.
const LINE_LEN_MAX: usize = 8 * 1024 * 1024;
const REFUSAL_LEN_MAX: usize = 64 * 1024;
/// By this header the gateway tells which host answers.
const HOST_HEADER: &str = "x-proxima-host";

/// One turn of a conversation.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Message {
    pub(crate) role: &'static str,
    pub(crate) content: String,
}

impl Message {
    pub(crate) fn system(content: impl Into<String>) -> Self {
        Self {
            role: "system",
            content: content.into(),
        }
    }

    pub(crate) fn user(content: impl Into<String>) -> Self {
        Self {
            role: "user",
            content: content.into(),
        }
    }

    pub(crate) fn assistant(content: impl Into<String>) -> Self {
        Self {
            role: "assistant",
            content: content.into(),
        }
    }
}

#[derive(Serialize)]
struct ChatRequest<'a> {
    model: &'a str,
    messages: &'a [Message],
    stream: bool,
}

/// A piece of an answer as it comes.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Chunk {
    #[serde(default)]
    message: ChunkMessage,
    #[serde(default)]
    pub(crate) done: bool,
    #[serde(default)]
    pub(crate) done_reason: Option<String>,
    #[serde(default)]
    pub(crate) prompt_eval_count: Option<u64>,
    #[serde(default)]
    pub(crate) eval_count: Option<u64>,
    #[serde(default)]
    error: Option<Value>,
}

#[derive(Debug, Default, Deserialize)]
struct ChunkMessage {
    #[serde(default)]
    content: String,
    #[serde(default)]
    thinking: Option<String>,
}

impl Chunk {
    pub(crate) fn text(&self) -> &str {
        &self.message.content
    }

    pub(crate) fn thinking(&self) -> &str {
        self.message.thinking.as_deref().unwrap_or_default()
    }
}

/// This node's gateway.
#[derive(Debug)]
pub(crate) struct Gateway {
    addr: SocketAddr,
    authority: String,
}

impl Gateway {
    /// Goes by address, so that it also works where the system does not resolve the mesh's names.
    pub(crate) fn of(node: &NodeStatus) -> Self {
        if let Some(userspace) = &node.userspace {
            return Self {
                addr: userspace.gateway,
                authority: userspace.gateway.to_string(),
            };
        }
        let uri = node.gateway_url.parse::<http::Uri>().ok();
        let authority = uri.and_then(|uri| uri.authority().map(ToString::to_string));
        Self::new(node.service_ipv4, authority)
    }

    fn new(ip: Ipv4Addr, authority: Option<String>) -> Self {
        let addr = SocketAddr::from((ip, MODEL_PORT));
        Self {
            addr,
            authority: authority.unwrap_or_else(|| addr.to_string()),
        }
    }

    /// Sends a conversation; returns once the answer begins.
    pub(crate) async fn chat(&self, model: &str, messages: &[Message]) -> Result<Reply, Failure> {
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(self.addr))
            .await
            .map_err(|_| self.unreachable("it does not answer"))?
            .map_err(|err| self.unreachable(&err.to_string()))?;
        let broken = |err: hyper::Error| {
            Failure::failed(format!("the gateway broke off the call: {err}"))
                .with_fix("meshctl status")
        };
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        // The reply owns the task and ends it.
        let connection = Connection(tokio::spawn(async move {
            let _ = connection.await;
        }));
        let body = serde_json::to_vec(&ChatRequest {
            model,
            messages,
            stream: true,
        })
        .map_err(|err| Failure::failed(err.to_string()))?;
        let request = Request::builder()
            .method(Method::POST)
            .uri(CHAT_PATH)
            .header(HOST, &self.authority)
            .header(CONTENT_TYPE, "application/json")
            .header(ACCEPT, "application/x-ndjson")
            .header(USER_AGENT, concat!("meshctl/", env!("CARGO_PKG_VERSION")))
            .body(Full::new(Bytes::from(body)))
            .map_err(|err| Failure::failed(err.to_string()))?;
        let answer = sender.send_request(request).await.map_err(broken)?;
        let status = answer.status();
        let host = answer
            .headers()
            .get(HOST_HEADER)
            .and_then(|host| host.to_str().ok())
            .map(str::to_owned);
        if !status.is_success() {
            return Err(refusal(status, answer.into_body()).await);
        }
        Ok(Reply {
            body: answer.into_body(),
            buffer: BytesMut::new(),
            host,
            is_done: false,
            _connection: connection,
        })
    }

    fn unreachable(&self, reason: &str) -> Failure {
        Failure::failed(format!(
            "this node's gateway at {} cannot be reached: {reason}",
            self.addr
        ))
        .with_fix("meshctl status")
    }
}

#[derive(Debug)]
struct Connection(JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// An answer under way. Dropping it stops the generation.
#[derive(Debug)]
pub(crate) struct Reply {
    body: Incoming,
    buffer: BytesMut,
    host: Option<String>,
    is_done: bool,
    _connection: Connection,
}

impl Reply {
    /// The node that answers.
    pub(crate) fn host(&self) -> Option<&str> {
        self.host.as_deref()
    }

    /// The next piece; `None` after the last. Nothing is lost when the future is dropped.
    pub(crate) async fn next(&mut self) -> Result<Option<Chunk>, Failure> {
        loop {
            if self.is_done {
                return Ok(None);
            }
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(end);
                self.buffer.advance(1);
                if !line.trim_ascii().is_empty() {
                    return self.take(&line).map(Some);
                }
                continue;
            }
            if self.buffer.len() > LINE_LEN_MAX {
                return Err(Failure::failed(
                    "the host sends an answer that makes no sense (an endless line)",
                ));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
                Some(Err(err)) => return Err(broken_off(&err.to_string())),
                // A server may leave out the last line end.
                None if !self.buffer.trim_ascii().is_empty() => {
                    let line = self.buffer.split();
                    return self.take(&line).map(Some);
                }
                None => return Err(broken_off("it ended before its end")),
            }
        }
    }

    fn take(&mut self, line: &[u8]) -> Result<Chunk, Failure> {
        let chunk: Chunk = serde_json::from_slice(line).map_err(|err| {
            Failure::failed(format!("the host's answer is not understood: {err}"))
        })?;
        if let Some(error) = &chunk.error {
            return Err(Failure::failed(format!(
                "the host could not go on: {}",
                error_words(error)
            )));
        }
        self.is_done = chunk.done;
        Ok(chunk)
    }
}

fn broken_off(reason: &str) -> Failure {
    Failure::failed(format!("the answer broke off: {reason}"))
        .with_fix_note("meshctl models", "whether a host still serves it")
}

async fn refusal(status: StatusCode, body: Incoming) -> Failure {
    let bytes = Limited::new(body, REFUSAL_LEN_MAX)
        .collect()
        .await
        .map(|body| body.to_bytes())
        .unwrap_or_default();
    let words = serde_json::from_slice::<Value>(&bytes)
        .ok()
        .and_then(|body| body.get("error").map(error_words))
        .unwrap_or_else(|| format!("the gateway answered {status}"));
    let (exit, error_code) = match status {
        StatusCode::NOT_FOUND => (Exit::NotFound, code::NOT_FOUND),
        StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => (Exit::Refused, code::REFUSED),
        StatusCode::TOO_MANY_REQUESTS => (Exit::Failed, code::RATE_LIMITED),
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
            (Exit::Failed, code::UNAVAILABLE)
        }
        _ => (Exit::Failed, "failed"),
    };
    Failure::new(exit, error_code, words)
}

/// Ollama's errors are a string, OpenAI's an object with a message.
fn error_words(error: &Value) -> String {
    match (error.as_str(), error.get("message").and_then(Value::as_str)) {
        (Some(words), _) | (None, Some(words)) => words.to_owned(),
        (None, None) => error.to_string(),
    }
}
