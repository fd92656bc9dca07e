//! Ollama's OpenAI and Anthropic routes, in its own shapes.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};
use http_body_util::BodyExt as _;
use hyper::body::Bytes;
use hyper::{Response, StatusCode};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::body::Loose;
use super::chat::{Events, Said, ask};
use super::reply::{Reply, typed};

static N_CHATS: AtomicU32 = AtomicU32::new(0);

fn whole(status: StatusCode, body: &Value) -> Response<Reply> {
    let body = Reply::Whole(Some(Bytes::from(format!("{body}\n"))));
    typed(status, "application/json", body)
}

/// An error in OpenAI's envelope.
pub(crate) fn error(status: StatusCode, text: &str, kind: &str) -> Response<Reply> {
    let error = json!({ "message": text, "type": kind, "param": null, "code": null });
    whole(status, &json!({ "error": error }))
}

fn created() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

fn entry(model: &str) -> Value {
    json!({ "id": model, "object": "model", "created": created(), "owned_by": "library" })
}

/// `GET /v1/models`.
pub(crate) fn models(names: &[String]) -> Response<Reply> {
    let data: Vec<Value> = names.iter().map(|name| entry(name)).collect();
    whole(StatusCode::OK, &json!({ "object": "list", "data": data }))
}

/// `GET /v1/models/:model`.
pub(crate) fn model(is_known: bool, name: &str) -> Response<Reply> {
    if is_known {
        return whole(StatusCode::OK, &entry(name));
    }
    error(
        StatusCode::NOT_FOUND,
        &format!("model '{name}' not found"),
        "not_found_error",
    )
}

/// `/v1/chat/completions`.
pub(crate) async fn chat(backend: SocketAddr, model: &str, request: &Loose) -> Response<Reply> {
    if request
        .value("messages")
        .and_then(Value::as_array)
        .is_none_or(Vec::is_empty)
    {
        let text = "[] is too short - 'messages'";
        return error(StatusCode::BAD_REQUEST, text, "invalid_request_error");
    }
    let is_stream = request.value("stream") == Some(&json!(true));
    let has_usage = request
        .value("stream_options")
        .is_some_and(|options| options["include_usage"] == true);
    let mut body = request.to_object();
    body.insert("stream".to_owned(), json!(true));
    body.insert(
        "stream_options".to_owned(),
        json!({ "include_usage": true }),
    );
    let id = format!("chatcmpl-{}", N_CHATS.fetch_add(1, Ordering::Relaxed) + 1);
    let chat = Chat {
        id,
        model: model.to_owned(),
        has_usage,
    };
    match chat.run(backend, &Value::Object(body), is_stream).await {
        Ok(reply) => reply,
        Err(_) => error(
            StatusCode::INTERNAL_SERVER_ERROR,
            "an error was encountered while running the model: unexpected EOF",
            "api_error",
        ),
    }
}

#[derive(Debug)]
struct Chat {
    id: String,
    model: String,
    has_usage: bool,
}

impl Chat {
    async fn run(
        self,
        backend: SocketAddr,
        body: &Value,
        is_stream: bool,
    ) -> Result<Response<Reply>> {
        let answer = ask(backend, "/v1/chat/completions", body).await?;
        ensure!(answer.status().is_success(), "{}", answer.status());
        let mut events = Events::new(answer.into_body());
        let mut said = Said::default();
        if !is_stream {
            let mut text = String::new();
            while let Some(event) = events.next().await? {
                text.extend(said.take(&event));
            }
            return Ok(whole(StatusCode::OK, &self.completion(&text, &said)));
        }
        let first = loop {
            let Some(event) = events.next().await? else {
                break None;
            };
            if let Some(token) = said.take(&event) {
                break Some(token);
            }
        };
        let (chunks, receiver) = mpsc::channel(1);
        // Ends with the stream or when the client goes.
        tokio::spawn(async move {
            tokio::select! {
                () = self.stream(&mut events, said, first, &chunks) => {}
                () = chunks.closed() => {}
            }
        });
        Ok(typed(
            StatusCode::OK,
            "text/event-stream",
            Reply::Stream(receiver),
        ))
    }

    async fn stream(
        &self,
        events: &mut Events,
        mut said: Said,
        first: Option<String>,
        chunks: &mpsc::Sender<Bytes>,
    ) {
        let mut token = first;
        loop {
            if let Some(token) = token.take() {
                let delta = json!({ "role": "assistant", "content": token });
                let chunk = format!("data: {}\n\n", self.event(&delta, None));
                if chunks.send(Bytes::from(chunk)).await.is_err() {
                    return;
                }
            }
            let last = match events.next().await {
                Ok(Some(event)) => {
                    token = said.take(&event);
                    continue;
                }
                Ok(None) => self.closing(&said),
                Err(_) => {
                    let mut event =
                        self.event(&json!({ "role": "assistant", "content": "" }), None);
                    event["model"] = json!("");
                    format!("data: {event}\n\n")
                }
            };
            // The client may have gone; there is nobody to tell.
            drop(chunks.send(Bytes::from(last)).await);
            return;
        }
    }

    fn event(&self, delta: &Value, finish_reason: Option<&str>) -> Value {
        json!({ "id": self.id, "object": "chat.completion.chunk", "created": created(), "model": self.model,
                "system_fingerprint": "fp_ollama",
                "choices": [{ "index": 0, "delta": delta, "finish_reason": finish_reason }] })
    }

    /// The closing events, which share one chunk.
    fn closing(&self, said: &Said) -> String {
        let reason = said.finish_reason.as_deref().unwrap_or("stop");
        let mut text = format!("data: {}\n\n", self.event(&message("", said), Some(reason)));
        if self.has_usage {
            let mut usage = self.event(&json!({}), None);
            usage["choices"] = json!([]);
            usage["usage"] = self.usage(said);
            text += &format!("data: {usage}\n\n");
        }
        text + "data: [DONE]\n\n"
    }

    fn usage(&self, said: &Said) -> Value {
        json!({ "prompt_tokens": said.usage["prompt_tokens"], "completion_tokens": said.usage["completion_tokens"],
                "total_tokens": said.usage["total_tokens"] })
    }

    fn completion(&self, text: &str, said: &Said) -> Value {
        let reason = said.finish_reason.as_deref().unwrap_or("stop");
        json!({ "id": self.id, "object": "chat.completion", "created": created(), "model": self.model,
                "system_fingerprint": "fp_ollama",
                "choices": [{ "index": 0, "message": message(text, said), "finish_reason": reason }],
                "usage": self.usage(said) })
    }
}

/// A message, or the last piece of one, with the calls if there are any.
fn message(text: &str, said: &Said) -> Value {
    let mut message = json!({ "role": "assistant", "content": text });
    if !said.calls.is_empty() {
        message["tool_calls"] = said.calls.of_openai();
    }
    message
}

/// Routes whose shapes llama-server shares.
pub(crate) async fn pass(
    backend: SocketAddr,
    path: &str,
    model: &str,
    request: &Loose,
) -> Response<Reply> {
    let mut body = request.to_object();
    body.insert("model".to_owned(), json!(model));
    let Ok(answer) = ask(backend, path, &Value::Object(body)).await else {
        return error(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the runner is gone",
            "api_error",
        );
    };
    let (head, mut upstream) = answer.into_parts();
    let (chunks, receiver) = mpsc::channel(1);
    // Ends with the answer or when the client goes.
    tokio::spawn(async move {
        loop {
            let frame = tokio::select! {
                frame = upstream.frame() => frame,
                () = chunks.closed() => None,
            };
            let Some(Ok(frame)) = frame else { return };
            if let Ok(data) = frame.into_data()
                && chunks.send(data).await.is_err()
            {
                return;
            }
        }
    });
    let mut reply = Response::new(Reply::Stream(receiver));
    *reply.status_mut() = head.status;
    if let Some(kind) = head.headers.get("content-type") {
        reply.headers_mut().insert("content-type", kind.clone());
    }
    reply
}
