//! From an Ollama request, cleaned already, to an OpenAI one.

use serde_json::{Value, json};

use super::{Translated, copy, copy_stream};
use crate::gateway::admit::Infer;
use crate::gateway::json::Object;

pub(super) fn chat(body: &Object) -> Translated {
    let messages = body.get("messages").and_then(Value::as_array);
    let Some(messages) = messages.filter(|messages| !messages.is_empty()) else {
        return Translated::Load;
    };
    let mut ids = CallIds::default();
    let messages: Vec<Value> = messages
        .iter()
        .map(|message| ids.message(message))
        .collect();
    let mut sent = common(body);
    sent.insert("messages".to_owned(), Value::Array(messages));
    if let Some(tools) = body.get("tools") {
        sent.insert("tools".to_owned(), tools.clone());
    }
    chat_only(body, &mut sent);
    Translated::Send(Infer::V1Chat, sent)
}

pub(super) fn generate(body: &Object) -> Translated {
    let text = |key: &str| body.get(key).and_then(Value::as_str).unwrap_or_default();
    let prompt = text("prompt");
    let has_images = body
        .get("images")
        .and_then(Value::as_array)
        .is_some_and(|images| !images.is_empty());
    if prompt.is_empty() && text("suffix").is_empty() && !has_images {
        return Translated::Load;
    }
    let mut sent = common(body);
    let is_raw = body.get("raw") == Some(&Value::Bool(true));
    if is_raw || !text("suffix").is_empty() {
        sent.insert("prompt".to_owned(), prompt.into());
        if !text("suffix").is_empty() {
            sent.insert("suffix".to_owned(), text("suffix").into());
        }
        return Translated::Send(Infer::V1Completions, sent);
    }
    let mut messages = Vec::new();
    if !text("system").is_empty() {
        messages.push(json!({ "role": "system", "content": text("system") }));
    }
    messages.push(json!({ "role": "user", "content": content(prompt, body.get("images")) }));
    sent.insert("messages".to_owned(), Value::Array(messages));
    chat_only(body, &mut sent);
    Translated::Send(Infer::V1Chat, sent)
}

pub(super) fn embed(body: &Object, key: &str) -> Translated {
    let input = body.get(key).cloned().unwrap_or(Value::Null);
    let is_empty = match &input {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(texts) => texts.is_empty(),
        Value::Bool(_) | Value::Number(_) | Value::Object(_) => false,
    };
    if is_empty {
        return Translated::Load;
    }
    let mut sent = Object::new();
    copy(body, &mut sent, &["model", "dimensions"]);
    sent.insert("input".to_owned(), input);
    sent.insert("encoding_format".to_owned(), "float".into());
    Translated::Send(Infer::V1Embeddings, sent)
}

/// Model, stream and sampling.
fn common(body: &Object) -> Object {
    let mut sent = Object::new();
    copy_stream(body, &mut sent);
    if let Some(Value::Object(options)) = body.get("options") {
        copy(
            options,
            &mut sent,
            &[
                "seed",
                "temperature",
                "top_k",
                "top_p",
                "min_p",
                "repeat_penalty",
                "presence_penalty",
                "frequency_penalty",
                "stop",
            ],
        );
        // The cap that cleaning sets would be refused by servers whose context is smaller than it.
        if let Some(n) = options.get("num_predict").and_then(Value::as_u64)
            && n < 32_768
        {
            sent.insert("max_tokens".to_owned(), n.into());
        }
    }
    sent
}

/// What only chat completions have: the format of the answer, and thinking.
fn chat_only(body: &Object, sent: &mut Object) {
    match body.get("format") {
        Some(Value::String(format)) if format == "json" => {
            sent.insert(
                "response_format".to_owned(),
                json!({ "type": "json_object" }),
            );
        }
        Some(schema @ Value::Object(_)) => {
            let format = json!({
                "type": "json_schema",
                "json_schema": { "name": "answer", "strict": true, "schema": schema },
            });
            sent.insert("response_format".to_owned(), format);
        }
        Some(_) | None => {}
    }
    match body.get("think") {
        Some(Value::Bool(thinks)) => {
            sent.insert(
                "chat_template_kwargs".to_owned(),
                json!({ "enable_thinking": thinks }),
            );
        }
        Some(Value::String(effort)) => {
            sent.insert("reasoning_effort".to_owned(), effort.as_str().into());
        }
        Some(_) | None => {}
    }
}

/// Gives tool calls the ids that OpenAI's API ties results to, in order.
#[derive(Default)]
struct CallIds {
    n_calls: usize,
    n_results: usize,
}

impl CallIds {
    fn message(&mut self, message: &Value) -> Value {
        let text = |key: &str| message.get(key).and_then(Value::as_str).unwrap_or_default();
        let role = text("role");
        let mut sent =
            json!({ "role": role, "content": content(text("content"), message.get("images")) });
        if role == "tool" {
            let id = message
                .get("tool_call_id")
                .and_then(Value::as_str)
                .map(str::to_owned);
            let id = id.unwrap_or_else(|| format!("call_{}", self.n_results));
            self.n_results += 1;
            sent["tool_call_id"] = id.into();
        }
        let calls = message.get("tool_calls").and_then(Value::as_array);
        if let Some(calls) = calls.filter(|calls| !calls.is_empty()) {
            let calls = calls.iter().map(|call| self.call(call)).collect();
            sent["tool_calls"] = Value::Array(calls);
        }
        sent
    }

    fn call(&mut self, call: &Value) -> Value {
        let id = call
            .get("id")
            .and_then(Value::as_str)
            .filter(|id| !id.is_empty());
        let id = id.map_or_else(|| format!("call_{}", self.n_calls), str::to_owned);
        self.n_calls += 1;
        let function = call.get("function").cloned().unwrap_or(Value::Null);
        let arguments = match function.get("arguments") {
            Some(Value::String(text)) => text.clone(),
            Some(value) => value.to_string(),
            None => "{}".to_owned(),
        };
        json!({
            "id": id,
            "type": "function",
            "function": { "name": function.get("name").cloned().unwrap_or(Value::Null), "arguments": arguments },
        })
    }
}

fn content(text: &str, images: Option<&Value>) -> Value {
    let images: Vec<&str> = images
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    if images.is_empty() {
        return text.into();
    }
    let mut parts = vec![json!({ "type": "text", "text": text })];
    for image in images {
        let url = format!("data:{};base64,{image}", media_type(image));
        parts.push(json!({ "type": "image_url", "image_url": { "url": url } }));
    }
    Value::Array(parts)
}

/// The kind of picture by its first bytes, in base64.
fn media_type(base64: &str) -> &'static str {
    match base64.get(..4) {
        Some("iVBO") => "image/png",
        Some("R0lG") => "image/gif",
        Some("UklG") => "image/webp",
        Some(_) | None => "image/jpeg",
    }
}
