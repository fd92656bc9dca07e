//! From an OpenAI chat completion, whole or streamed, to an Anthropic message.

use serde_json::{Value, json};

use super::{Frame, calls_of, choice_of, id_of, text_of, thinking_of, write_event};
use crate::gateway::count::Counts;

/// Translates a whole reply.
pub(super) fn whole(frame: &Frame, reply: &Value) -> Value {
    let choice = choice_of(reply);
    let message = choice.and_then(|choice| choice.get("message"));
    let mut content = Vec::new();
    let (thinking, text) = (thinking_of(message), text_of(message));
    if !thinking.is_empty() {
        content.push(json!({ "type": "thinking", "thinking": thinking, "signature": "" }));
    }
    if !text.is_empty() {
        content.push(json!({ "type": "text", "text": text }));
    }
    for call in calls_of(message) {
        let input = serde_json::from_str(call.arguments).unwrap_or_else(|_| json!({}));
        let id = tool_id(call.id, call.index);
        content.push(json!({ "type": "tool_use", "id": id, "name": call.name, "input": input }));
    }
    let mut counts = Counts::default();
    counts.observe(reply);
    let (reason, sequence) = stop_of(choice);
    json!({
        "id": id_of("msg", reply),
        "type": "message",
        "role": "assistant",
        "model": frame.model,
        "content": content,
        "stop_reason": reason.unwrap_or("end_turn"),
        "stop_sequence": sequence,
        "usage": usage(counts),
    })
}

/// Translates a stream. It keeps what the last event was about, and none of what was said.
#[derive(Debug)]
pub(crate) struct Events {
    frame: Frame,
    counts: Counts,
    has_begun: bool,
    block: Block,
    n_blocks: u64,
    stop: Option<(&'static str, Option<String>)>,
    is_closed: bool,
}

/// The content block that is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Block {
    None,
    Thinking,
    Text,
    /// The tool call with this number in the source.
    Tool(u64),
}

impl Events {
    pub(super) fn new(frame: Frame) -> Self {
        Self {
            frame,
            counts: Counts::default(),
            has_begun: false,
            block: Block::None,
            n_blocks: 0,
            stop: None,
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
        for (block, key, text) in [
            (Block::Thinking, "thinking", thinking_of(delta)),
            (Block::Text, "text", text_of(delta)),
        ] {
            if !text.is_empty() {
                let empty = match block {
                    Block::Thinking => {
                        json!({ "type": "thinking", "thinking": "", "signature": "" })
                    }
                    Block::None | Block::Text | Block::Tool(_) => {
                        json!({ "type": "text", "text": "" })
                    }
                };
                self.open(block, &empty, out);
                self.delta(&json!({ "type": format!("{key}_delta"), key: text }), out);
            }
        }
        for call in calls_of(delta) {
            let is_later = match self.block {
                Block::Tool(open) if call.index < open => {
                    self.error("the model server mixed up its tool calls", out);
                    return true;
                }
                Block::Tool(open) => call.index > open,
                Block::None | Block::Thinking | Block::Text => true,
            };
            if is_later {
                let id = tool_id(call.id, call.index);
                let empty = json!({ "type": "tool_use", "id": id, "name": call.name, "input": {} });
                self.open(Block::Tool(call.index), &empty, out);
            }
            if !call.arguments.is_empty() {
                let delta = json!({ "type": "input_json_delta", "partial_json": call.arguments });
                self.delta(&delta, out);
            }
        }
        if let (Some(reason), sequence) = stop_of(Some(choice)) {
            self.stop = Some((
                reason,
                sequence.map(|text| text.chars().take(1_000).collect()),
            ));
        }
        false
    }

    pub(super) fn close(&mut self) {
        self.is_closed = true;
    }

    pub(super) fn finish(&mut self) -> Option<Vec<u8>> {
        let (reason, sequence) = self.stop.take()?;
        if !self.is_closed {
            return None;
        }
        let mut out = Vec::new();
        self.begin(&Value::Null, &mut out);
        self.shut(&mut out);
        let last = json!({
            "type": "message_delta",
            "delta": { "stop_reason": reason, "stop_sequence": sequence },
            "usage": usage(self.counts),
        });
        write_event("message_delta", &last, &mut out);
        write_event("message_stop", &json!({ "type": "message_stop" }), &mut out);
        Some(out)
    }

    pub(super) fn error(&self, text: &str, out: &mut Vec<u8>) {
        let error = json!({ "type": "error", "error": { "type": "api_error", "message": text } });
        write_event("error", &error, out);
    }

    /// The counts of the prompt come with the last event alone, as they do from Ollama.
    fn begin(&mut self, event: &Value, out: &mut Vec<u8>) {
        if self.has_begun {
            return;
        }
        self.has_begun = true;
        let message = json!({
            "id": id_of("msg", event),
            "type": "message",
            "role": "assistant",
            "model": self.frame.model,
            "content": [],
            "stop_reason": null,
            "stop_sequence": null,
            "usage": usage(self.counts),
        });
        let start = json!({ "type": "message_start", "message": message });
        write_event("message_start", &start, out);
    }

    fn open(&mut self, block: Block, empty: &Value, out: &mut Vec<u8>) {
        if self.block == block {
            return;
        }
        self.shut(out);
        self.block = block;
        let start = json!({ "type": "content_block_start", "index": self.n_blocks, "content_block": empty });
        write_event("content_block_start", &start, out);
    }

    fn delta(&self, delta: &Value, out: &mut Vec<u8>) {
        let event =
            json!({ "type": "content_block_delta", "index": self.n_blocks, "delta": delta });
        write_event("content_block_delta", &event, out);
    }

    fn shut(&mut self, out: &mut Vec<u8>) {
        if self.block == Block::None {
            return;
        }
        self.block = Block::None;
        let stop = json!({ "type": "content_block_stop", "index": self.n_blocks });
        write_event("content_block_stop", &stop, out);
        self.n_blocks += 1;
    }
}

fn usage(counts: Counts) -> Value {
    json!({
        "input_tokens": counts.n_prompt.unwrap_or(0),
        "output_tokens": counts.n_output.unwrap_or(0),
    })
}

/// Why it stopped, and at which of the caller's sequences where the backend tells (vLLM does).
fn stop_of(choice: Option<&Value>) -> (Option<&'static str>, Option<&str>) {
    let text = |key: &str| choice.and_then(|choice| choice.get(key)?.as_str());
    let Some(reason) = text("finish_reason") else {
        return (None, None);
    };
    let sequence = text("stop_reason");
    let reason = match reason {
        "length" => "max_tokens",
        "tool_calls" | "function_call" => "tool_use",
        "content_filter" => "refusal",
        _ if sequence.is_some() => "stop_sequence",
        _ => "end_turn",
    };
    (Some(reason), sequence)
}

fn tool_id(id: &str, index: u64) -> String {
    if id.is_empty() {
        return format!("toolu_{index}");
    }
    id.chars().take(256).collect()
}
