//! From an OpenAI reply, whole or streamed, to Ollama's.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};

use super::{Frame, calls_of, choice_of, text_of, thinking_of};
use crate::gateway::admit::Infer;
use crate::gateway::count::Counts;
use crate::gateway::listing::rfc3339;

/// How long the parts of an answer took.
#[derive(Debug, Clone, Copy, Default)]
struct Timings {
    prompt: Option<Duration>,
    eval: Option<Duration>,
}

impl Timings {
    /// llama-server tells its own.
    fn observe(&mut self, value: &Value) {
        let ms = |key: &str| {
            let ms = value.get("timings")?.get(key)?.as_f64()?;
            Duration::try_from_secs_f64(ms / 1_000.0).ok()
        };
        self.prompt = ms("prompt_ms").or(self.prompt);
        self.eval = ms("predicted_ms").or(self.eval);
    }
}

/// The answer to a request that only loads the model.
pub(super) fn load(frame: &Frame) -> Value {
    match frame.route {
        Infer::Embed => json!({ "model": frame.model, "embeddings": [] }),
        Infer::Embeddings => json!({ "embedding": [] }),
        Infer::Chat | Infer::Generate => {
            let mut line = frame.line("", "", &[]);
            line["done"] = true.into();
            line["done_reason"] = "load".into();
            line
        }
        Infer::V1Chat
        | Infer::V1Completions
        | Infer::V1Embeddings
        | Infer::V1Responses
        | Infer::V1Messages => Value::Null,
    }
}

impl Frame {
    fn line(&self, text: &str, thinking: &str, calls: &[Value]) -> Value {
        let mut line = json!({
            "model": self.model,
            "created_at": rfc3339(SystemTime::now()),
            "done": false,
        });
        if self.route == Infer::Generate {
            line["response"] = text.into();
            if !thinking.is_empty() {
                line["thinking"] = thinking.into();
            }
        } else {
            let mut message = json!({ "role": "assistant", "content": text });
            if !thinking.is_empty() {
                message["thinking"] = thinking.into();
            }
            if !calls.is_empty() {
                message["tool_calls"] = Value::Array(calls.to_vec());
            }
            line["message"] = message;
        }
        line
    }

    fn close(&self, line: &mut Value, reason: &str, counts: Counts, timings: Timings) {
        let nanos = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let total = self.started.elapsed();
        let eval = timings.eval.unwrap_or_default();
        let prompt = timings.prompt.unwrap_or_else(|| total.saturating_sub(eval));
        line["done"] = true.into();
        line["done_reason"] = if reason == "length" { "length" } else { "stop" }.into();
        line["total_duration"] = nanos(total).into();
        line["load_duration"] = 0.into();
        line["prompt_eval_count"] = counts.n_prompt.unwrap_or(0).into();
        line["prompt_eval_duration"] = nanos(prompt).into();
        line["eval_count"] = counts.n_output.unwrap_or(0).into();
        line["eval_duration"] = nanos(eval).into();
    }
}

/// Translates a whole chat or completion.
pub(super) fn whole(frame: &Frame, reply: &Value) -> Value {
    let choice = choice_of(reply);
    let part = choice.and_then(|choice| choice.get("message").or(Some(choice)));
    let mut calls = Calls::default();
    calls.add(part);
    let mut line = frame.line(text_of(part), thinking_of(part), &calls.finish());
    let mut counts = Counts::default();
    counts.observe(reply);
    let mut timings = Timings::default();
    timings.observe(reply);
    timings.eval = timings.eval.or_else(|| Some(frame.started.elapsed()));
    let reason = choice
        .and_then(|choice| choice.get("finish_reason"))
        .and_then(Value::as_str);
    frame.close(&mut line, reason.unwrap_or("stop"), counts, timings);
    line
}

/// Translates embeddings.
pub(super) fn embeddings(frame: &Frame, reply: &Value) -> Value {
    let mut rows: Vec<(u64, Value)> = reply
        .get("data")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .map(|row| {
            let index = row.get("index").and_then(Value::as_u64).unwrap_or(0);
            (index, row.get("embedding").cloned().unwrap_or(Value::Null))
        })
        .collect();
    rows.sort_by_key(|(index, _)| *index);
    let mut rows = rows.into_iter().map(|(_, row)| row);
    if frame.route == Infer::Embeddings {
        return json!({ "embedding": rows.next().unwrap_or(Value::Array(Vec::new())) });
    }
    let mut counts = Counts::default();
    counts.observe(reply);
    json!({
        "model": frame.model,
        "embeddings": rows.collect::<Vec<_>>(),
        "total_duration": u64::try_from(frame.started.elapsed().as_nanos()).unwrap_or(u64::MAX),
        "load_duration": 0,
        "prompt_eval_count": counts.n_prompt.unwrap_or(0),
    })
}

/// Translates a stream, event by event.
#[derive(Debug)]
pub(crate) struct Lines {
    frame: Frame,
    counts: Counts,
    timings: Timings,
    first_token: Option<Instant>,
    calls: Calls,
    reason: Option<String>,
    is_closed: bool,
}

impl Lines {
    pub(super) fn new(frame: Frame) -> Self {
        Self {
            frame,
            counts: Counts::default(),
            timings: Timings::default(),
            first_token: None,
            calls: Calls::default(),
            reason: None,
            is_closed: false,
        }
    }

    pub(super) fn error(&self, text: &str, out: &mut Vec<u8>) {
        write_line(&json!({ "error": text }), out);
    }

    pub(super) fn event(&mut self, event: &Value, out: &mut Vec<u8>) -> bool {
        self.counts.observe(event);
        self.timings.observe(event);
        let Some(choice) = choice_of(event) else {
            return false;
        };
        let part = choice.get("delta").or(Some(choice));
        let (text, thinking) = (text_of(part), thinking_of(part));
        if !self.calls.add(part) {
            self.error("the model server made a tool call that is too long", out);
            return true;
        }
        if !text.is_empty() || !thinking.is_empty() {
            self.first_token.get_or_insert_with(Instant::now);
            write_line(&self.frame.line(text, thinking, &[]), out);
        }
        if let Some(reason) = choice.get("finish_reason").and_then(Value::as_str) {
            self.reason = Some(reason.to_owned());
        }
        false
    }

    pub(super) fn close(&mut self) {
        self.is_closed = true;
    }

    pub(super) fn finish(&mut self) -> Option<Vec<u8>> {
        let reason = self.reason.take()?;
        if !self.is_closed {
            return None;
        }
        let mut out = Vec::new();
        let calls = std::mem::take(&mut self.calls).finish();
        if !calls.is_empty() {
            write_line(&self.frame.line("", "", &calls), &mut out);
        }
        let mut timings = self.timings;
        timings.eval = timings
            .eval
            .or_else(|| self.first_token.map(|first| first.elapsed()));
        let mut line = self.frame.line("", "", &[]);
        self.frame.close(&mut line, &reason, self.counts, timings);
        write_line(&line, &mut out);
        Some(out)
    }
}

fn write_line(line: &Value, out: &mut Vec<u8>) {
    out.extend_from_slice(line.to_string().as_bytes());
    out.push(b'\n');
}

/// Tool calls, which a stream tells in pieces and Ollama's API whole.
#[derive(Debug, Default)]
struct Calls {
    by_index: BTreeMap<u64, (String, String)>,
    n_bytes: usize,
}

/// The most tool calls in one answer, and the bytes of all their names and arguments.
const N_CALLS_MAX: usize = 128;
const CALLS_MAX: usize = 4 << 20;

impl Calls {
    /// Takes what a message or a delta has of them; whether there was room for it.
    fn add(&mut self, part: Option<&Value>) -> bool {
        for call in calls_of(part) {
            self.n_bytes += call.name.len() + call.arguments.len();
            let is_new = !self.by_index.contains_key(&call.index);
            if self.n_bytes > CALLS_MAX || (is_new && self.by_index.len() >= N_CALLS_MAX) {
                return false;
            }
            let (name, arguments) = self.by_index.entry(call.index).or_default();
            name.push_str(call.name);
            arguments.push_str(call.arguments);
        }
        true
    }

    fn finish(self) -> Vec<Value> {
        self.by_index
            .into_iter()
            .map(|(index, (name, arguments))| {
                let arguments = serde_json::from_str(&arguments).unwrap_or_else(|_| json!({}));
                json!({ "function": { "index": index, "name": name, "arguments": arguments } })
            })
            .collect()
    }
}
