//! From an Anthropic messages request, cleaned already, to OpenAI chat completions.

use serde_json::{Value, json};

use super::{Translated, copy, copy_stream, text};
use crate::gateway::admit::Infer;
use crate::gateway::dialect::Refusal;
use crate::gateway::json::Object;

pub(super) fn chat(body: &Object) -> Result<Translated, Refusal> {
    let mut messages = Vec::new();
    if let Some(system) = body.get("system") {
        let text = plain_text(system, "system")?;
        if !text.is_empty() {
            messages.push(json!({ "role": "system", "content": text }));
        }
    }
    let asked = body.get("messages").and_then(Value::as_array);
    let Some(asked) = asked.filter(|asked| !asked.is_empty()) else {
        return Err(Refusal::bad_request(
            "messages: at least one message is required",
        ));
    };
    for message in asked {
        add_message(message, &mut messages)?;
    }
    let mut sent = Object::new();
    copy_stream(body, &mut sent);
    copy(
        body,
        &mut sent,
        &["max_tokens", "temperature", "top_p", "top_k"],
    );
    if let Some(stop) = body.get("stop_sequences") {
        sent.insert("stop".to_owned(), stop.clone());
    }
    sent.insert("messages".to_owned(), Value::Array(messages));
    if let Some(tools) = body.get("tools").and_then(Value::as_array) {
        let tools = tools.iter().map(tool).collect::<Result<Vec<_>, _>>()?;
        sent.insert("tools".to_owned(), Value::Array(tools));
    }
    if let Some(choice) = body.get("tool_choice") {
        add_tool_choice(choice, &mut sent)?;
    }
    if let Some(kind) = body.get("thinking").and_then(|it| it.get("type")?.as_str()) {
        sent.insert(
            "chat_template_kwargs".to_owned(),
            json!({ "enable_thinking": kind != "disabled" }),
        );
    }
    Ok(Translated::Send(Infer::V1Chat, sent))
}

fn add_message(message: &Value, messages: &mut Vec<Value>) -> Result<(), Refusal> {
    let role = message.get("role").and_then(Value::as_str);
    match (role, message.get("content")) {
        (Some(role @ ("user" | "assistant" | "system")), Some(Value::String(text))) => {
            messages.push(json!({ "role": role, "content": text }));
            Ok(())
        }
        (Some("user"), Some(Value::Array(blocks))) => add_user(blocks, messages),
        (Some("assistant"), Some(Value::Array(blocks))) => add_assistant(blocks, messages),
        (Some("system"), Some(content @ Value::Array(_))) => {
            messages.push(json!({ "role": "system", "content": plain_text(content, "system")? }));
            Ok(())
        }
        (Some("user" | "assistant" | "system"), _) => Err(Refusal::bad_request(
            "messages: \"content\" must be a text or a list of blocks",
        )),
        (Some(_) | None, _) => Err(Refusal::bad_request(
            "messages: \"role\" must be \"user\" or \"assistant\"",
        )),
    }
}

/// Results of tools become messages of their own, which must follow their calls directly; the rest of the turn comes after.
fn add_user(blocks: &[Value], messages: &mut Vec<Value>) -> Result<(), Refusal> {
    let mut parts = Vec::new();
    for block in blocks {
        match kind_of(block) {
            "tool_result" => {
                let id = text(block, "tool_use_id");
                let mut said = Vec::new();
                match block.get("content") {
                    None | Some(Value::Null) => {}
                    Some(Value::String(text)) => said.push(text.as_str()),
                    Some(Value::Array(inner)) => {
                        for block in inner {
                            match kind_of(block) {
                                "text" => said.push(text(block, "text")),
                                "image" => parts.push(image(block)?),
                                other => return Err(unknown(other)),
                            }
                        }
                    }
                    Some(_) => {
                        return Err(Refusal::bad_request(
                            "tool_result: \"content\" must be a text or a list of blocks",
                        ));
                    }
                }
                messages.push(
                    json!({ "role": "tool", "tool_call_id": id, "content": said.join("\n") }),
                );
            }
            "text" => parts.push(json!({ "type": "text", "text": text(block, "text") })),
            "image" => parts.push(image(block)?),
            "document" if source(block, "type") == "text" => {
                parts.push(json!({ "type": "text", "text": source(block, "data") }));
            }
            other => return Err(unknown(other)),
        }
    }
    let only_text = |part: &Value| kind_of(part) == "text";
    if parts.iter().all(only_text) {
        // Templates of models without pictures take a text alone.
        let texts: Vec<&str> = parts.iter().map(|part| text(part, "text")).collect();
        if !texts.is_empty() {
            messages.push(json!({ "role": "user", "content": texts.join("\n") }));
        }
    } else {
        messages.push(json!({ "role": "user", "content": parts }));
    }
    Ok(())
}

fn add_assistant(blocks: &[Value], messages: &mut Vec<Value>) -> Result<(), Refusal> {
    let mut said = String::new();
    let mut calls = Vec::new();
    for block in blocks {
        match kind_of(block) {
            "text" => said.push_str(text(block, "text")),
            "tool_use" => {
                let arguments = block
                    .get("input")
                    .map_or_else(|| "{}".to_owned(), Value::to_string);
                calls.push(json!({
                    "id": text(block, "id"),
                    "type": "function",
                    "function": { "name": text(block, "name"), "arguments": arguments },
                }));
            }
            // What a model thought is not read again by those behind this API.
            "thinking" | "redacted_thinking" => {}
            other => return Err(unknown(other)),
        }
    }
    let mut message = json!({ "role": "assistant", "content": said });
    if !calls.is_empty() {
        message["tool_calls"] = Value::Array(calls);
    }
    messages.push(message);
    Ok(())
}

fn image(block: &Value) -> Result<Value, Refusal> {
    let url = match source(block, "type") {
        "base64" => format!(
            "data:{};base64,{}",
            source(block, "media_type"),
            source(block, "data")
        ),
        "url" => source(block, "url").to_owned(),
        _ => {
            return Err(Refusal::bad_request(
                "image: send it in the request, as a source of type \"base64\"",
            ));
        }
    };
    Ok(json!({ "type": "image_url", "image_url": { "url": url } }))
}

fn tool(tool: &Value) -> Result<Value, Refusal> {
    let name = tool.get("name").and_then(Value::as_str);
    let name = name.ok_or_else(|| Refusal::bad_request("tools: each needs a \"name\""))?;
    let mut function = json!({ "name": name });
    for (from, to) in [
        ("description", "description"),
        ("input_schema", "parameters"),
    ] {
        if let Some(value) = tool.get(from) {
            function[to] = value.clone();
        }
    }
    Ok(json!({ "type": "function", "function": function }))
}

fn add_tool_choice(choice: &Value, sent: &mut Object) -> Result<(), Refusal> {
    let chosen = match kind_of(choice) {
        "auto" => json!("auto"),
        "any" => json!("required"),
        "none" => json!("none"),
        "tool" => json!({ "type": "function", "function": { "name": text(choice, "name") } }),
        _ => {
            return Err(Refusal::bad_request(
                "tool_choice: \"type\" must be \"auto\", \"any\", \"tool\" or \"none\"",
            ));
        }
    };
    sent.insert("tool_choice".to_owned(), chosen);
    if choice.get("disable_parallel_tool_use") == Some(&Value::Bool(true)) {
        sent.insert("parallel_tool_calls".to_owned(), false.into());
    }
    Ok(())
}

/// A text, or the texts of blocks.
fn plain_text(content: &Value, what: &str) -> Result<String, Refusal> {
    match content {
        Value::String(text) => Ok(text.clone()),
        Value::Array(blocks) => {
            let texts: Vec<&str> = blocks.iter().map(|block| text(block, "text")).collect();
            Ok(texts.join("\n"))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => {
            Err(Refusal::bad_request(format!(
                "{what}: it must be a text or a list of text blocks"
            )))
        }
    }
}

fn kind_of(block: &Value) -> &str {
    text(block, "type")
}

fn source<'a>(block: &'a Value, key: &str) -> &'a str {
    let value = block.get("source").and_then(|source| source.get(key));
    value.and_then(Value::as_str).unwrap_or_default()
}

fn unknown(kind: &str) -> Refusal {
    let kind: String = kind.chars().take(64).collect();
    Refusal::bad_request(format!(
        "this host's model server takes no content of type {kind:?}; send text, images as base64, tool_use or tool_result"
    ))
}
