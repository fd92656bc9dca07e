//! From an OpenAI chat completion, whole or streamed, to OpenAI's responses.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::{Frame, calls_of, choice_of, id_of, text_of, thinking_of, write_event};
use crate::gateway::count::Counts;

/// What the closing event of a stream may hold: it repeats the whole answer.
const ANSWER_MAX: usize = 4 << 20;
/// The most parts of one answer.
const N_ITEMS_MAX: usize = 256;

/// Translates a whole reply.
pub(super) fn whole(frame: &Frame, reply: &Value) -> Value {
    let choice = choice_of(reply);
    let message = choice.and_then(|choice| choice.get("message"));
    let id = id_of("resp", reply);
    let mut items = Vec::new();
    let (thinking, text) = (thinking_of(message), text_of(message));
    if !thinking.is_empty() {
        items.push(Item::new(Kind::Reasoning, thinking));
    }
    if !text.is_empty() {
        items.push(Item::new(Kind::Message, text));
    }
    for call in calls_of(message) {
        items.push(Item::call(call.index, call.id, call.name, call.arguments));
    }
    let items = items.iter().enumerate();
    let output = items.map(|(at, item)| item.value(&id, at, "completed"));
    let mut counts = Counts::default();
    counts.observe(reply);
    let reason = choice.and_then(|choice| choice.get("finish_reason")?.as_str());
    response(frame, &id, output.collect(), End::Finished(reason, counts))
}

/// How a response stands.
#[derive(Debug, Clone, Copy)]
enum End<'a> {
    Not,
    Finished(Option<&'a str>, Counts),
}

fn response(frame: &Frame, id: &str, output: Vec<Value>, end: End<'_>) -> Value {
    let (status, details, usage) = match end {
        End::Not => ("in_progress", Value::Null, Value::Null),
        End::Finished(reason, counts) => {
            let (n_in, n_out) = (counts.n_prompt.unwrap_or(0), counts.n_output.unwrap_or(0));
            let usage = json!({
                "input_tokens": n_in,
                "input_tokens_details": { "cached_tokens": 0 },
                "output_tokens": n_out,
                "output_tokens_details": { "reasoning_tokens": 0 },
                "total_tokens": n_in.saturating_add(n_out),
            });
            match reason {
                Some("length") => (
                    "incomplete",
                    json!({ "reason": "max_output_tokens" }),
                    usage,
                ),
                Some("content_filter") => {
                    ("incomplete", json!({ "reason": "content_filter" }), usage)
                }
                Some(_) | None => ("completed", Value::Null, usage),
            }
        }
    };
    let created = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    json!({
        "id": id,
        "object": "response",
        "created_at": created.saturating_sub(frame.started.elapsed()).as_secs(),
        "status": status,
        "error": null,
        "incomplete_details": details,
        "instructions": null,
        "metadata": {},
        "model": frame.model,
        "output": output,
        "parallel_tool_calls": true,
        "previous_response_id": null,
        "store": false,
        "temperature": null,
        "text": { "format": { "type": "text" } },
        "tool_choice": "auto",
        "tools": [],
        "top_p": null,
        "truncation": "disabled",
        "usage": usage,
    })
}

/// A part of the answer, as far as it has come.
#[derive(Debug)]
struct Item {
    kind: Kind,
    /// What was said, thought, or the arguments of the call.
    text: String,
    call_id: String,
    name: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Reasoning,
    Message,
    /// The tool call with this number in the source.
    Call(u64),
}

impl Item {
    fn new(kind: Kind, text: &str) -> Self {
        Self {
            kind,
            text: text.to_owned(),
            call_id: String::new(),
            name: String::new(),
        }
    }

    fn call(index: u64, id: &str, name: &str, arguments: &str) -> Self {
        let call_id = if id.is_empty() {
            format!("call_{index}")
        } else {
            id.chars().take(256).collect()
        };
        Self {
            call_id,
            name: name.chars().take(256).collect(),
            ..Self::new(Kind::Call(index), arguments)
        }
    }

    fn id(&self, response: &str, at: usize) -> String {
        let tail = response.strip_prefix("resp_").unwrap_or(response);
        let prefix = match self.kind {
            Kind::Reasoning => "rs",
            Kind::Message => "msg",
            Kind::Call(_) => "fc",
        };
        format!("{prefix}_{tail}_{at}")
    }

    fn part(&self) -> Value {
        match self.kind {
            Kind::Reasoning => json!({ "type": "reasoning_text", "text": self.text }),
            Kind::Message | Kind::Call(_) => {
                json!({ "type": "output_text", "text": self.text, "annotations": [], "logprobs": [] })
            }
        }
    }

    fn value(&self, response: &str, at: usize, status: &str) -> Value {
        let id = self.id(response, at);
        let content = if status == "completed" {
            vec![self.part()]
        } else {
            Vec::new()
        };
        match self.kind {
            Kind::Reasoning => json!({
                "type": "reasoning", "id": id, "status": status, "summary": [], "content": content,
            }),
            Kind::Message => json!({
                "type": "message", "id": id, "status": status, "role": "assistant", "content": content,
            }),
            Kind::Call(_) => json!({
                "type": "function_call", "id": id, "status": status, "call_id": self.call_id, "name": self.name,
                "arguments": self.text,
            }),
        }
    }
}

/// Translates a stream. Its closing event repeats the answer, so that much of it is kept, within [`ANSWER_MAX`].
#[derive(Debug)]
pub(crate) struct Events {
    frame: Frame,
    counts: Counts,
    id: Option<String>,
    n_events: u64,
    items: Vec<Item>,
    is_open: bool,
    n_bytes: usize,
    reason: Option<String>,
    is_closed: bool,
}

impl Events {
    pub(super) fn new(frame: Frame) -> Self {
        Self {
            frame,
            counts: Counts::default(),
            id: None,
            n_events: 0,
            items: Vec::new(),
            is_open: false,
            n_bytes: 0,
            reason: None,
            is_closed: false,
        }
    }

    pub(super) fn event(&mut self, event: &Value, out: &mut Vec<u8>) -> bool {
        self.counts.observe(event);
        self.begin(event, out);
        let Some(choice) = choice_of(event) else {
            return false;
        };
        let delta = choice.get("delta");
        for (kind, text) in [
            (Kind::Reasoning, thinking_of(delta)),
            (Kind::Message, text_of(delta)),
        ] {
            if !text.is_empty() && self.add(Item::new(kind, ""), text, out).is_none() {
                return true;
            }
        }
        for call in calls_of(delta) {
            let item = Item::call(call.index, call.id, call.name, "");
            if self.add(item, call.arguments, out).is_none() {
                return true;
            }
        }
        if let Some(reason) = choice.get("finish_reason").and_then(Value::as_str) {
            self.reason = Some(reason.chars().take(64).collect());
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
        self.begin(&Value::Null, &mut out);
        self.shut(&mut out);
        let id = self.id.take().unwrap_or_default();
        let items = std::mem::take(&mut self.items);
        let output = items.iter().enumerate();
        let output = output.map(|(at, item)| item.value(&id, at, "completed"));
        let end = End::Finished(Some(&reason), self.counts);
        let whole = response(&self.frame, &id, output.collect(), end);
        let kind = match reason.as_str() {
            "length" | "content_filter" => "response.incomplete",
            _ => "response.completed",
        };
        self.write(kind, json!({ "response": whole }), &mut out);
        Some(out)
    }

    /// As a client that raises expects it, and one that looks at the type.
    pub(super) fn error(&mut self, text: &str, out: &mut Vec<u8>) {
        let error = json!({
            "code": "server_error", "message": text, "param": null,
            "error": { "type": "api_error", "code": "server_error", "message": text, "param": null },
        });
        self.write("error", error, out);
    }

    fn begin(&mut self, event: &Value, out: &mut Vec<u8>) {
        if self.id.is_some() {
            return;
        }
        let id = id_of("resp", event);
        for kind in ["response.created", "response.in_progress"] {
            let begun = response(&self.frame, &id, Vec::new(), End::Not);
            self.write(kind, json!({ "response": begun }), out);
        }
        self.id = Some(id);
    }

    /// Adds to the open part when it is the same, else opens another; `None` when there is no more room.
    fn add(&mut self, item: Item, text: &str, out: &mut Vec<u8>) -> Option<()> {
        let is_same = self.is_open && self.items.last().is_some_and(|last| last.kind == item.kind);
        self.n_bytes += text.len();
        if self.n_bytes > ANSWER_MAX || (!is_same && self.items.len() >= N_ITEMS_MAX) {
            self.error(
                "the answer is too long for this API; ask by chat completions",
                out,
            );
            return None;
        }
        if !is_same {
            let is_earlier = |last: &Item| match (last.kind, item.kind) {
                (Kind::Call(last), Kind::Call(next)) => next < last,
                _ => false,
            };
            if self.items.last().is_some_and(is_earlier) {
                self.error("the model server mixed up its tool calls", out);
                return None;
            }
            self.open(item, out);
        }
        if text.is_empty() {
            return Some(());
        }
        let (at, id) = self.place();
        let last = self.items.last_mut()?;
        last.text.push_str(text);
        let (kind, mut event) = match last.kind {
            Kind::Reasoning => (
                "response.reasoning_text.delta",
                json!({ "content_index": 0 }),
            ),
            Kind::Message => (
                "response.output_text.delta",
                json!({ "content_index": 0, "logprobs": [] }),
            ),
            Kind::Call(_) => ("response.function_call_arguments.delta", json!({})),
        };
        event["item_id"] = id.into();
        event["output_index"] = at.into();
        event["delta"] = text.into();
        self.write(kind, event, out);
        Some(())
    }

    fn open(&mut self, item: Item, out: &mut Vec<u8>) {
        self.shut(out);
        self.is_open = true;
        let (kind, part) = (item.kind, item.part());
        self.items.push(item);
        let (at, id) = self.place();
        let response = self.id.clone().unwrap_or_default();
        if let Some(item) = self.items.last() {
            let added =
                json!({ "output_index": at, "item": item.value(&response, at, "in_progress") });
            self.write("response.output_item.added", added, out);
        }
        if !matches!(kind, Kind::Call(_)) {
            let added =
                json!({ "item_id": id, "output_index": at, "content_index": 0, "part": part });
            self.write("response.content_part.added", added, out);
        }
    }

    fn shut(&mut self, out: &mut Vec<u8>) {
        if !std::mem::take(&mut self.is_open) {
            return;
        }
        let (at, id) = self.place();
        let response = self.id.clone().unwrap_or_default();
        let Some(item) = self.items.last() else {
            return;
        };
        let (kind, text, part) = (item.kind, item.text.clone(), item.part());
        let done = json!({ "output_index": at, "item": item.value(&response, at, "completed") });
        let place = json!({ "item_id": id, "output_index": at });
        let with = |mut value: Value, fields: Value| {
            if let (Some(value), Value::Object(fields)) = (value.as_object_mut(), fields) {
                value.extend(fields);
            }
            value
        };
        match kind {
            Kind::Reasoning => {
                let fields = json!({ "content_index": 0, "text": text });
                self.write(
                    "response.reasoning_text.done",
                    with(place.clone(), fields),
                    out,
                );
            }
            Kind::Message => {
                let fields = json!({ "content_index": 0, "text": text, "logprobs": [] });
                self.write(
                    "response.output_text.done",
                    with(place.clone(), fields),
                    out,
                );
            }
            Kind::Call(_) => {
                let fields = json!({ "arguments": text });
                let event = with(place.clone(), fields);
                self.write("response.function_call_arguments.done", event, out);
            }
        }
        if !matches!(kind, Kind::Call(_)) {
            let fields = json!({ "content_index": 0, "part": part });
            self.write("response.content_part.done", with(place, fields), out);
        }
        self.write("response.output_item.done", done, out);
    }

    /// The number and the id of the last part.
    fn place(&self) -> (usize, String) {
        let at = self.items.len().saturating_sub(1);
        let response = self.id.as_deref().unwrap_or_default();
        let id = self.items.last().map(|item| item.id(response, at));
        (at, id.unwrap_or_default())
    }

    fn write(&mut self, kind: &str, mut event: Value, out: &mut Vec<u8>) {
        event["type"] = kind.into();
        event["sequence_number"] = self.n_events.into();
        self.n_events += 1;
        write_event(kind, &event, out);
    }
}
