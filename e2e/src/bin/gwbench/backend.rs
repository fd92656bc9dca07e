//! The stand-in: answers at once or after a delay, streams at a pace, breaks off, and notes who left too early.
//!
//! `POST /ctl` takes a JSON object that changes what is done from then on; `GET /stats` tells what happened since.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use anyhow::Result;
use http_body_util::BodyExt as _;
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::time::Sleep;

use crate::{MODEL, now_ns};

/// What is done with the next requests.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Behaviour {
    /// Before the first byte of an answer.
    delay_ms: u64,
    /// Between two chunks.
    pace_ms: u64,
    n_chunks: usize,
    /// After so many chunks the connection breaks.
    die_after: Option<usize>,
    /// Whether a whole answer comes in chunks too.
    in_pieces: bool,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            delay_ms: 0,
            pace_ms: 2,
            n_chunks: 64,
            die_after: None,
            in_pieces: false,
        }
    }
}

#[derive(Debug, Default)]
struct Notes {
    behaviour: Behaviour,
    n_active: usize,
    n_served: usize,
    /// When requests were given up by whoever asked, in nanoseconds since 1970.
    left_at_ns: Vec<u64>,
}

#[derive(Debug)]
struct Standin {
    name: String,
    notes: Mutex<Notes>,
}

impl Standin {
    fn note<T>(&self, what: impl FnOnce(&mut Notes) -> T) -> T {
        what(&mut self.notes.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// One request in work; dropped before its end it was given up.
#[derive(Debug)]
struct Work {
    standin: Arc<Standin>,
    is_done: bool,
}

impl Work {
    fn begin(standin: &Arc<Standin>) -> Self {
        standin.note(|notes| notes.n_active += 1);
        Self {
            standin: Arc::clone(standin),
            is_done: false,
        }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let at = u64::try_from(now_ns()).unwrap_or(u64::MAX);
        self.standin.note(|notes| {
            notes.n_active -= 1;
            if self.is_done {
                notes.n_served += 1;
            } else {
                notes.left_at_ns.push(at);
            }
        });
    }
}

/// An answer's body.
#[derive(Debug)]
enum Answer {
    Whole(Option<Bytes>),
    Stream(Box<Chunks>),
}

#[derive(Debug)]
struct Chunks {
    work: Work,
    behaviour: Behaviour,
    is_stream: bool,
    n_sent: usize,
    pause: Pin<Box<Sleep>>,
}

impl Chunks {
    fn poll_next(&mut self, task: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if self.work.is_done {
            return Poll::Ready(None);
        }
        if self.behaviour.pace_ms > 0 {
            ready!(self.pause.as_mut().poll(task));
            let next = self.pause.deadline() + Duration::from_millis(self.behaviour.pace_ms);
            self.pause.as_mut().reset(next);
        }
        if self.behaviour.die_after == Some(self.n_sent) {
            self.work.is_done = true;
            return Poll::Ready(Some(Err(io::ErrorKind::ConnectionAborted.into())));
        }
        let is_last = self.n_sent == self.behaviour.n_chunks;
        self.work.is_done = is_last;
        // The time of sending travels inside the text, so a gateway that writes the JSON anew keeps it.
        let chunk = match (self.is_stream, is_last) {
            (true, false) => format!(
                "data: {{\"id\":\"c\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"{MODEL}\",\"choices\":[{{\"index\":0,\"delta\":{{\"role\":\"assistant\",\"content\":\"@{}@\"}},\"finish_reason\":null}}]}}\n\n",
                now_ns()
            ),
            (true, true) => format!(
                "data: {{\"id\":\"c\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"{MODEL}\",\"choices\":[{{\"index\":0,\"delta\":{{}},\"finish_reason\":\"stop\"}}]}}\n\ndata: [DONE]\n\n"
            ),
            (false, false) if self.n_sent == 0 => {
                format!("{{\"id\":\"c\",\"text\":\"@{}@", now_ns())
            }
            (false, false) => format!("@{}@", now_ns()),
            (false, true) => "\"}\n".to_owned(),
        };
        self.n_sent += 1;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from(chunk)))))
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match &mut *self {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Stream(chunks) => chunks.poll_next(task),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Self::Stream(_) => SizeHint::default(),
        }
    }
}

/// Serves until it is killed.
pub(crate) async fn serve(listen: SocketAddr, name: &str) -> Result<()> {
    let listener = TcpListener::bind(listen).await?;
    let standin = Arc::new(Standin {
        name: name.to_owned(),
        notes: Mutex::default(),
    });
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let standin = Arc::clone(&standin);
        // Each ends with its client.
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(Arc::clone(&standin), request));
            let connection = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service);
            drop(connection.await);
        });
    }
}

async fn answer(
    standin: Arc<Standin>,
    request: Request<Incoming>,
) -> Result<Response<Answer>, Infallible> {
    let path = request.uri().path().to_owned();
    let body = match request.into_body().collect().await {
        Ok(body) => body.to_bytes(),
        Err(_) => Bytes::new(),
    };
    let details = json!({ "format": "gguf", "family": "llama", "parameter_size": "1K", "quantization_level": "F16" });
    let reply = match path.as_str() {
        "/" => return Ok(typed(Bytes::from_static(b"Ollama is running"), "text/plain")),
        "/ctl" => match serde_json::from_slice(&body) {
            Ok(behaviour) => {
                standin.note(|notes| {
                    notes.behaviour = behaviour;
                    notes.left_at_ns.clear();
                });
                json!({})
            }
            Err(err) => json!({ "error": err.to_string() }),
        },
        "/stats" => standin.note(|notes| {
            json!({ "n_active": notes.n_active, "n_served": notes.n_served, "left_at_ns": notes.left_at_ns })
        }),
        "/api/version" => json!({ "version": "0.33.0" }),
        "/api/tags" | "/api/ps" => {
            json!({ "models": [{ "name": "m:latest", "model": "m:latest", "size": 1,
            "modified_at": "2026-01-01T00:00:00Z", "digest": "00".repeat(32), "details": details }] })
        }
        "/api/show" => {
            json!({ "details": details, "model_info": {}, "capabilities": ["completion"] })
        }
        "/v1/models" => {
            json!({ "object": "list", "data": [{ "id": "m:latest", "object": "model", "created": 1, "owned_by": "library" }] })
        }
        "/v1/chat/completions" => return Ok(chat(&standin, &body).await),
        _ => json!({ "error": "no such route" }),
    };
    Ok(typed(Bytes::from(format!("{reply}\n")), "application/json"))
}

async fn chat(standin: &Arc<Standin>, body: &Bytes) -> Response<Answer> {
    let mut work = Work::begin(standin);
    let behaviour = standin.note(|notes| notes.behaviour);
    let asked: Value = serde_json::from_slice(body).unwrap_or_default();
    if behaviour.delay_ms > 0 {
        tokio::time::sleep(Duration::from_millis(behaviour.delay_ms)).await;
    }
    let is_stream = asked["stream"] == true;
    if is_stream || behaviour.in_pieces {
        let chunks = Chunks {
            work,
            behaviour,
            is_stream,
            n_sent: 0,
            // The first chunk comes at once.
            pause: Box::pin(tokio::time::sleep(Duration::ZERO)),
        };
        let kind = if is_stream {
            "text/event-stream"
        } else {
            "application/json"
        };
        return reply(Answer::Stream(Box::new(chunks)), kind);
    }
    work.is_done = true;
    let text = format!(
        "{{\"id\":\"c\",\"object\":\"chat.completion\",\"created\":1,\"model\":\"{MODEL}\",\"choices\":[{{\"index\":0,\"message\":{{\"role\":\"assistant\",\"content\":\"{} got {}\"}},\"finish_reason\":\"stop\"}}],\"usage\":{{\"prompt_tokens\":1,\"completion_tokens\":1,\"total_tokens\":2}}}}\n",
        standin.name,
        body.len()
    );
    typed(Bytes::from(text), "application/json")
}

fn typed(bytes: Bytes, kind: &'static str) -> Response<Answer> {
    reply(Answer::Whole(Some(bytes)), kind)
}

fn reply(body: Answer, kind: &'static str) -> Response<Answer> {
    let mut reply = Response::new(body);
    let kind = HeaderValue::from_static(kind);
    reply.headers_mut().insert(CONTENT_TYPE, kind);
    reply
}
