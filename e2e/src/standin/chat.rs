//! Ollama's own inference routes, spoken over llama-server's OpenAI ones.

use std::net::SocketAddr;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::body::Loose;
use super::reply::{Reply, json_reply, typed};
use super::tools::{self, Calls};

const DIED: &str = "an error was encountered while running the model: unexpected EOF";

/// Sends one request to a llama-server. Dropping the answer hangs up, which ends the generation.
pub(crate) async fn ask(
    backend: SocketAddr,
    path: &str,
    body: &Value,
) -> Result<Response<Incoming>> {
    let stream = TcpStream::connect(backend).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // Ends when the answer's body is read or dropped.
    tokio::spawn(connection);
    let request = Request::post(path)
        .header("host", backend.to_string())
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body.to_string())))?;
    Ok(sender.send_request(request).await?)
}

/// The events of a stream of `data: …` blocks.
#[derive(Debug)]
pub(crate) struct Events {
    body: Incoming,
    pending: Vec<u8>,
    is_over: bool,
}

impl Events {
    pub(crate) fn new(body: Incoming) -> Self {
        Self {
            body,
            pending: Vec::new(),
            is_over: false,
        }
    }

    /// The next event; none from `[DONE]` on.
    ///
    /// # Errors
    /// When the stream breaks off before that.
    pub(crate) async fn next(&mut self) -> Result<Option<Value>> {
        while !self.is_over {
            if let Some(end) = self.pending.windows(2).position(|two| two == b"\n\n") {
                let block: Vec<u8> = self.pending.drain(..end + 2).collect();
                let text = String::from_utf8_lossy(&block);
                let Some(data) = text.trim().strip_prefix("data: ") else {
                    continue;
                };
                if data == "[DONE]" {
                    self.is_over = true;
                    break;
                }
                return serde_json::from_str(data).map(Some).context("an event");
            }
            let frame = self.body.frame().await.context("the stream broke off")??;
            if let Ok(data) = frame.into_data() {
                self.pending.extend(data);
            }
        }
        Ok(None)
    }
}

/// What has been said so far.
#[derive(Debug, Default)]
pub(crate) struct Said {
    pub(crate) finish_reason: Option<String>,
    pub(crate) calls: Calls,
    pub(crate) usage: Value,
}

impl Said {
    /// Takes one event in; gives the text of a token, if it has one.
    pub(crate) fn take(&mut self, event: &Value) -> Option<String> {
        if event["usage"].is_object() {
            self.usage = event["usage"].clone();
        }
        let choice = &event["choices"][0];
        if let Some(reason) = choice["finish_reason"].as_str() {
            self.finish_reason = Some(reason.to_owned());
        }
        self.calls.take(&choice["delta"]["tool_calls"]);
        choice["delta"]["content"]
            .as_str()
            .filter(|text| !text.is_empty())
            .map(str::to_owned)
    }
}

/// `/api/chat`, and `/api/generate` with its other field names.
pub(crate) async fn chat(
    backend: SocketAddr,
    model: &str,
    request: &Loose,
    is_generate: bool,
) -> Response<Reply> {
    let prompt = request.text("prompt").unwrap_or_default();
    let messages = request
        .value("messages")
        .cloned()
        .unwrap_or_else(|| json!([]));
    let is_empty = if is_generate {
        prompt.is_empty()
    } else {
        messages == json!([])
    };
    let line = Line {
        model: model.to_owned(),
        is_generate,
        start: Instant::now(),
    };
    if is_empty {
        let is_unload = matches!(request.value("keep_alive"), Some(value) if *value == json!(0) || *value == json!("0s"));
        let reason = if is_unload { "unload" } else { "load" };
        let mut reply = line.token("", true);
        reply["done_reason"] = json!(reason);
        return json_reply(StatusCode::OK, &reply);
    }
    let messages = if is_generate {
        json!([{ "role": "user", "content": prompt }])
    } else {
        messages
    };
    let mut body = json!({ "messages": tools::messages(&messages), "stream": true,
                           "stream_options": { "include_usage": true } });
    if let Some(tools) = request.value("tools") {
        body["tools"] = tools.clone();
    }
    match request
        .value("options")
        .and_then(|options| options.get("num_predict"))
    {
        Some(Value::Number(n)) if n.as_i64().is_some_and(|n| n > 0) => {
            body["max_tokens"] = json!(n)
        }
        Some(Value::Number(_)) | None => {}
        Some(_) => {
            let text = "option \"num_predict\" must be of type integer";
            return json_reply(StatusCode::INTERNAL_SERVER_ERROR, &json!({ "error": text }));
        }
    }
    let is_stream = request.value("stream") != Some(&json!(false));
    match converse(backend, &body, line, is_stream).await {
        Ok(reply) => reply,
        Err(_) => json_reply(StatusCode::INTERNAL_SERVER_ERROR, &json!({ "error": DIED })),
    }
}

async fn converse(
    backend: SocketAddr,
    body: &Value,
    line: Line,
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
        return Ok(json_reply(StatusCode::OK, &line.last(&text, &said)));
    }
    // The head of the answer waits for the first token, as the real one's does.
    let first = loop {
        let Some(event) = events.next().await? else {
            break None;
        };
        if let Some(token) = said.take(&event) {
            break Some(token);
        }
    };
    let (chunks, receiver) = mpsc::channel(1);
    // Ends with the stream or when the client goes, which drops the events and so hangs up on the llama-server.
    tokio::spawn(async move {
        let work = stream(&mut events, said, first, &line, &chunks);
        tokio::select! {
            () = work => {}
            () = chunks.closed() => {}
        }
    });
    Ok(typed(
        StatusCode::OK,
        "application/x-ndjson",
        Reply::Stream(receiver),
    ))
}

async fn stream(
    events: &mut Events,
    mut said: Said,
    first: Option<String>,
    line: &Line,
    chunks: &mpsc::Sender<Bytes>,
) {
    let mut token = first;
    loop {
        if let Some(token) = token.take() {
            let chunk = format!("{}\n", line.token(&token, false));
            if chunks.send(Bytes::from(chunk)).await.is_err() {
                return;
            }
        }
        let last = match events.next().await {
            Ok(Some(event)) => {
                token = said.take(&event);
                continue;
            }
            Ok(None) => {
                // Calls are a line of their own, before the last one.
                let calls = std::mem::take(&mut said.calls);
                let mut lines = String::new();
                if !calls.is_empty() {
                    lines = format!("{}\n", with_calls(line.token("", false), &calls));
                }
                format!("{lines}{}", line.last("", &said))
            }
            Err(_) => json!({ "error": DIED }).to_string(),
        };
        // The client may have gone; there is nobody to tell.
        drop(chunks.send(Bytes::from(format!("{last}\n"))).await);
        return;
    }
}

/// What the lines of one reply have in common.
#[derive(Debug)]
struct Line {
    model: String,
    is_generate: bool,
    start: Instant,
}

impl Line {
    fn token(&self, text: &str, is_done: bool) -> Value {
        let mut line = json!({ "model": self.model, "created_at": created_at(), "done": is_done });
        if self.is_generate {
            line["response"] = json!(text);
        } else {
            line["message"] = json!({ "role": "assistant", "content": text });
        }
        line
    }

    fn last(&self, text: &str, said: &Said) -> Value {
        let mut line = self.token(text, true);
        if !said.calls.is_empty() {
            line = with_calls(line, &said.calls);
        }
        let total = u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let n_prompt = said.usage["prompt_tokens"].as_u64().unwrap_or(0);
        let n_said = said.usage["completion_tokens"].as_u64().unwrap_or(0);
        // Calls are no reason of their own there.
        let reason = said.finish_reason.as_deref();
        let reason = reason.filter(|reason| *reason != "tool_calls");
        line["done_reason"] = json!(reason.unwrap_or("stop"));
        line["total_duration"] = json!(total);
        line["load_duration"] = json!(1_601_480);
        line["prompt_eval_count"] = json!(n_prompt);
        line["prompt_eval_duration"] = json!(779_000);
        line["eval_count"] = json!(n_said);
        line["eval_duration"] = json!(total.saturating_sub(2_380_480));
        if self.is_generate {
            let context: Vec<u64> = (0..n_prompt + n_said).map(|n| 259 + n % 100).collect();
            line["context"] = json!(context);
        }
        line
    }
}

fn with_calls(mut line: Value, calls: &Calls) -> Value {
    line["message"]["tool_calls"] = calls.of_ollama();
    line
}

/// `/api/embed` and the older `/api/embeddings`.
pub(crate) async fn embed(
    backend: SocketAddr,
    model: &str,
    request: &Loose,
    is_new: bool,
) -> Response<Reply> {
    let input = request
        .value(if is_new { "input" } else { "prompt" })
        .cloned();
    let body = json!({ "input": input });
    let embedded = async {
        let answer = ask(backend, "/v1/embeddings", &body).await?;
        let status = answer.status();
        let bytes = answer.into_body().collect().await?.to_bytes();
        ensure!(status.is_success(), "{status}");
        let answer: Value = serde_json::from_slice(&bytes)?;
        let data = answer["data"].as_array().cloned().context("no data")?;
        let vectors: Vec<Value> = data
            .into_iter()
            .map(|mut item| item["embedding"].take())
            .collect();
        anyhow::Ok((vectors, answer["usage"]["prompt_tokens"].clone()))
    };
    match embedded.await {
        Ok((vectors, n_prompt)) if is_new => {
            let reply = json!({ "model": model, "embeddings": vectors, "total_duration": 4_000_000,
                                "load_duration": 1_000_000, "prompt_eval_count": n_prompt });
            json_reply(StatusCode::OK, &reply)
        }
        Ok((vectors, _)) => json_reply(StatusCode::OK, &json!({ "embedding": vectors.first() })),
        Err(_) => {
            let text = "This server does not support embeddings. Start it with `--embeddings`";
            json_reply(StatusCode::NOT_IMPLEMENTED, &json!({ "error": text }))
        }
    }
}

/// The time as the real one writes it, RFC 3339 with nanoseconds.
fn created_at() -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    format_time(now.as_secs(), now.subsec_nanos())
}

fn format_time(seconds: u64, nanos: u32) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days to a date in the proleptic Gregorian calendar, counted from 0000-03-01 in eras of 400 years.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3_600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z")
}

#[cfg(test)]
mod tests {
    use super::format_time;

    #[test]
    fn times_are_dates() {
        assert_eq!(format_time(0, 0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(
            format_time(1_795_441_484, 5),
            "2026-11-23T13:44:44.000000005Z"
        );
        assert_eq!(
            format_time(1_709_210_096, 0),
            "2024-02-29T12:34:56.000000000Z"
        );
    }
}
