//! From an OpenAI reply, whole or streamed, to Ollama's.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};

use crate::gateway::admit::Infer;
use crate::gateway::count::Counts;
use crate::gateway::listing::rfc3339;

/// What every line of a reply has in common.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    /// The model, as it is called on this host.
    pub(crate) model: String,
    /// The Ollama call that is answered.
    pub(crate) route: Infer,
    /// When the request came.
    pub(crate) started: Instant,
}

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

impl Frame {
    /// The answer to a request that only loads the model.
    pub(crate) fn load(&self) -> Value {
        match self.route {
            Infer::Embed => json!({ "model": self.model, "embeddings": [] }),
            Infer::Embeddings => json!({ "embedding": [] }),
            Infer::Chat | Infer::Generate => {
                let mut line = self.line("", "", &[]);
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
pub(crate) fn whole(frame: &Frame, reply: &Value) -> Value {
    let choice = reply.get("choices").and_then(|choices| choices.get(0));
    let part = choice.and_then(|choice| choice.get("message").or(Some(choice)));
    let mut calls = Calls::default();
    if let Some(part) = part {
        calls.add(part);
    }
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
pub(crate) fn embeddings(frame: &Frame, reply: &Value) -> Value {
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

/// The text of an error, whatever its form.
pub(crate) fn error_message(body: &[u8]) -> Option<String> {
    let value: Value = serde_json::from_slice(body).ok()?;
    let error = value.get("error").unwrap_or(&value);
    let text = error.as_str().or_else(|| error.get("message")?.as_str())?;
    Some(text.chars().take(2_000).collect())
}

/// Translates a stream, event by event.
#[derive(Debug)]
pub(crate) struct StreamTranslator {
    frame: Frame,
    counts: Counts,
    timings: Timings,
    first_token: Option<Instant>,
    calls: Calls,
    reason: Option<String>,
    is_closed: bool,
}

impl StreamTranslator {
    pub(crate) fn new(frame: Frame) -> Self {
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

    /// Takes one event; says whether it was an error.
    pub(crate) fn event(&mut self, event: &Value, out: &mut Vec<u8>) -> bool {
        if let Some(error) = event.get("error").filter(|error| !error.is_null()) {
            let text = error.as_str().or_else(|| error.get("message")?.as_str());
            let line = json!({ "error": text.unwrap_or("the model server reported an error") });
            write_line(&line, out);
            return true;
        }
        self.counts.observe(event);
        self.timings.observe(event);
        let Some(choice) = event.get("choices").and_then(|choices| choices.get(0)) else {
            return false;
        };
        let part = choice.get("delta").or(Some(choice));
        let (text, thinking) = (text_of(part), thinking_of(part));
        if let Some(part) = part {
            self.calls.add(part);
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

    /// The stream said that it is over.
    pub(crate) fn close(&mut self) {
        self.is_closed = true;
    }

    /// The last lines; `None` when the stream ended without saying why.
    pub(crate) fn finish(&mut self) -> Option<Vec<u8>> {
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

fn text_of(part: Option<&Value>) -> &str {
    let text = part.and_then(|part| part.get("content").or_else(|| part.get("text")));
    text.and_then(Value::as_str).unwrap_or_default()
}

fn thinking_of(part: Option<&Value>) -> &str {
    let text = part.and_then(|part| {
        part.get("reasoning_content")
            .or_else(|| part.get("reasoning"))
    });
    text.and_then(Value::as_str).unwrap_or_default()
}

/// Tool calls, which a stream tells in pieces.
#[derive(Debug, Default)]
struct Calls {
    by_index: BTreeMap<u64, (String, String)>,
}

/// The most tool calls in one answer, and the longest arguments of one.
const N_CALLS_MAX: usize = 128;
const ARGUMENTS_MAX: usize = 1 << 20;

impl Calls {
    fn add(&mut self, part: &Value) {
        let calls = part.get("tool_calls").and_then(Value::as_array);
        for (at, call) in calls.into_iter().flatten().enumerate() {
            let index = call
                .get("index")
                .and_then(Value::as_u64)
                .unwrap_or(at as u64);
            if self.by_index.len() >= N_CALLS_MAX && !self.by_index.contains_key(&index) {
                continue;
            }
            let (name, arguments) = self.by_index.entry(index).or_default();
            let function = call.get("function");
            let text = |key: &str| {
                function
                    .and_then(|f| f.get(key))
                    .and_then(Value::as_str)
                    .unwrap_or_default()
            };
            if name.len() < 256 {
                name.push_str(text("name"));
            }
            if arguments.len() < ARGUMENTS_MAX {
                arguments.push_str(text("arguments"));
            }
        }
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
