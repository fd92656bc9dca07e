//! One API in the words of another, for hosts whose server does not speak it: Ollama's, Anthropic's and OpenAI's responses, in
//! front of OpenAI's chat completions.
//!
//! Pure: values in, values out; the clock is read for the times that an answer tells, and nothing else.

mod anthropic_reply;
mod anthropic_request;
mod ollama_reply;
mod ollama_request;
mod responses_reply;
mod responses_request;

use std::time::Instant;

use mesh_proto::share::{BackendApi, Offer, Protocol};
use serde_json::Value;

use super::admit::Infer;
use super::dialect::Refusal;
use super::json::Object;

/// What to do for a request in another API than the backend's.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Translated {
    /// Send this to the backend.
    Send(Infer, Object),
    /// Nothing was asked: the request only loads the model, and an OpenAI server has it loaded.
    Load,
}

/// What every part of a reply has in common.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    /// The model, as it is called on this host.
    pub(crate) model: String,
    /// The call that is answered.
    pub(crate) route: Infer,
    /// When the request came.
    pub(crate) started: Instant,
}

/// Whether the backend of an offer has a call by itself.
pub(crate) fn is_spoken(offer: &Offer, route: Infer) -> bool {
    let is_openai = offer.api == BackendApi::OpenAi;
    match route {
        Infer::Chat | Infer::Generate | Infer::Embed | Infer::Embeddings => !is_openai,
        Infer::V1Chat | Infer::V1Completions | Infer::V1Embeddings => true,
        Infer::V1Responses => offer.speaks.contains(&Protocol::Responses),
        Infer::V1Messages => offer.speaks.contains(&Protocol::Messages),
    }
}

/// Translates a cleaned request for a backend that has no such call.
///
/// # Errors
/// A refusal for what OpenAI's chat completions have no words for.
pub(crate) fn translate(route: Infer, body: &Object) -> Result<Translated, Refusal> {
    match route {
        Infer::Chat => Ok(ollama_request::chat(body)),
        Infer::Generate => Ok(ollama_request::generate(body)),
        Infer::Embed => Ok(ollama_request::embed(body, "input")),
        Infer::Embeddings => Ok(ollama_request::embed(body, "prompt")),
        Infer::V1Chat | Infer::V1Completions | Infer::V1Embeddings => {
            Ok(Translated::Send(route, body.clone()))
        }
        Infer::V1Responses => responses_request::chat(body),
        Infer::V1Messages => anthropic_request::chat(body),
    }
}

/// The answer to a request that only loads the model.
pub(crate) fn load(frame: &Frame) -> Value {
    ollama_reply::load(frame)
}

/// Translates a whole reply.
pub(crate) fn whole(frame: &Frame, reply: &Value) -> Value {
    match frame.route {
        Infer::Chat | Infer::Generate => ollama_reply::whole(frame, reply),
        Infer::Embed | Infer::Embeddings => ollama_reply::embeddings(frame, reply),
        Infer::V1Chat | Infer::V1Completions | Infer::V1Embeddings => reply.clone(),
        Infer::V1Responses => responses_reply::whole(frame, reply),
        Infer::V1Messages => anthropic_reply::whole(frame, reply),
    }
}

/// The text of an error, whatever its form.
pub(crate) fn error_message(body: &[u8]) -> Option<String> {
    let value: Value = serde_json::from_slice(body).ok()?;
    let error = value.get("error").unwrap_or(&value);
    let text = error
        .as_str()
        .or_else(|| error.get("message")?.as_str())
        .or_else(|| error.get("detail")?.as_str())?;
    Some(text.chars().take(2_000).collect())
}

/// Translates a stream, event by event.
#[derive(Debug)]
pub(crate) enum StreamTranslator {
    Ollama(ollama_reply::Lines),
    Responses(responses_reply::Events),
    Messages(anthropic_reply::Events),
}

impl StreamTranslator {
    pub(crate) fn new(frame: Frame) -> Self {
        match frame.route {
            Infer::V1Responses => Self::Responses(responses_reply::Events::new(frame)),
            Infer::V1Messages => Self::Messages(anthropic_reply::Events::new(frame)),
            Infer::Chat
            | Infer::Generate
            | Infer::Embed
            | Infer::Embeddings
            | Infer::V1Chat
            | Infer::V1Completions
            | Infer::V1Embeddings => Self::Ollama(ollama_reply::Lines::new(frame)),
        }
    }

    /// The content type of what it makes.
    pub(crate) const fn content_type(&self) -> &'static str {
        match self {
            Self::Ollama(_) => "application/x-ndjson",
            Self::Responses(_) | Self::Messages(_) => "text/event-stream",
        }
    }

    /// Takes one event; says whether it was an error.
    pub(crate) fn event(&mut self, event: &Value, out: &mut Vec<u8>) -> bool {
        if let Some(error) = event.get("error").filter(|error| !error.is_null()) {
            let text = error.as_str().or_else(|| error.get("message")?.as_str());
            let text = text.unwrap_or("the model server reported an error");
            match self {
                Self::Ollama(lines) => lines.error(text, out),
                Self::Responses(events) => events.error(text, out),
                Self::Messages(events) => events.error(text, out),
            }
            return true;
        }
        match self {
            Self::Ollama(lines) => lines.event(event, out),
            Self::Responses(events) => events.event(event, out),
            Self::Messages(events) => events.event(event, out),
        }
    }

    /// The stream said that it is over.
    pub(crate) fn close(&mut self) {
        match self {
            Self::Ollama(lines) => lines.close(),
            Self::Responses(events) => events.close(),
            Self::Messages(events) => events.close(),
        }
    }

    /// The last words; `None` when the stream ended without saying why.
    pub(crate) fn finish(&mut self) -> Option<Vec<u8>> {
        match self {
            Self::Ollama(lines) => lines.finish(),
            Self::Responses(events) => events.finish(),
            Self::Messages(events) => events.finish(),
        }
    }
}

/// The first choice of a reply or an event.
fn choice_of(reply: &Value) -> Option<&Value> {
    reply.get("choices").and_then(|choices| choices.get(0))
}

/// The text of a message or a delta.
fn text_of(part: Option<&Value>) -> &str {
    let text = part.and_then(|part| part.get("content").or_else(|| part.get("text")));
    text.and_then(Value::as_str).unwrap_or_default()
}

/// What a model thought, as llama-server and vLLM tell it.
fn thinking_of(part: Option<&Value>) -> &str {
    let text = part.and_then(|part| {
        part.get("reasoning_content")
            .or_else(|| part.get("reasoning"))
    });
    text.and_then(Value::as_str).unwrap_or_default()
}

/// The tool calls of a message, or the pieces of some in a delta.
fn calls_of(part: Option<&Value>) -> impl Iterator<Item = Call<'_>> {
    let calls = part.and_then(|part| part.get("tool_calls")?.as_array());
    calls.into_iter().flatten().enumerate().map(|(at, call)| {
        let function = call.get("function").unwrap_or(&Value::Null);
        Call {
            index: call
                .get("index")
                .and_then(Value::as_u64)
                .unwrap_or(at as u64),
            id: text(call, "id"),
            name: text(function, "name"),
            arguments: text(function, "arguments"),
        }
    })
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// A tool call, or a piece of one.
#[derive(Debug, Clone, Copy)]
struct Call<'a> {
    index: u64,
    id: &'a str,
    name: &'a str,
    arguments: &'a str,
}

/// An id of the caller's API out of the backend's: of the same length bound and alphabet, whatever that one sent.
fn id_of(prefix: &str, reply: &Value) -> String {
    let id = reply.get("id").and_then(Value::as_str).unwrap_or_default();
    let id = id.rsplit(['-', '_']).next().unwrap_or_default();
    let id: String = id
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .take(64)
        .collect();
    format!("{prefix}_{id}")
}

/// Writes an event with its name, as Anthropic's API and OpenAI's responses have it.
fn write_event(kind: &str, data: &Value, out: &mut Vec<u8>) {
    out.extend_from_slice(b"event: ");
    out.extend_from_slice(kind.as_bytes());
    out.extend_from_slice(b"\ndata: ");
    out.extend_from_slice(data.to_string().as_bytes());
    out.extend_from_slice(b"\n\n");
}

/// Copies keys that are there.
fn copy(from: &Object, to: &mut Object, keys: &[&str]) {
    for key in keys {
        if let Some(value) = from.get(*key) {
            to.insert((*key).to_owned(), value.clone());
        }
    }
}

/// Asks for the counts of a stream, which OpenAI's API keeps back otherwise.
fn copy_stream(from: &Object, to: &mut Object) {
    copy(from, to, &["model", "stream"]);
    if from.get("stream") == Some(&Value::Bool(true)) {
        to.insert(
            "stream_options".to_owned(),
            serde_json::json!({ "include_usage": true }),
        );
    }
}

#[cfg(test)]
mod tests;
