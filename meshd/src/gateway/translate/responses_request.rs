//! From a request of OpenAI's responses, cleaned already, to chat completions.

use serde_json::{Value, json};

use super::{Translated, copy, copy_stream, text};
use crate::gateway::admit::Infer;
use crate::gateway::dialect::Refusal;
use crate::gateway::json::Object;

pub(super) fn chat(body: &Object) -> Result<Translated, Refusal> {
    let mut messages = Vec::new();
    if let Some(instructions) = body.get("instructions").and_then(Value::as_str)
        && !instructions.is_empty()
    {
        messages.push(json!({ "role": "system", "content": instructions }));
    }
    match body.get("input") {
        Some(Value::String(text)) => messages.push(json!({ "role": "user", "content": text })),
        Some(Value::Array(items)) if !items.is_empty() => {
            for item in items {
                add_item(item, &mut messages)?;
            }
        }
        Some(_) | None => {
            return Err(Refusal::bad_request(
                "\"input\" must be a text or a list of items",
            ));
        }
    }
    let mut sent = Object::new();
    copy_stream(body, &mut sent);
    copy(
        body,
        &mut sent,
        &["temperature", "top_p", "parallel_tool_calls"],
    );
    if let Some(n) = body.get("max_output_tokens") {
        sent.insert("max_tokens".to_owned(), n.clone());
    }
    sent.insert("messages".to_owned(), Value::Array(messages));
    if let Some(tools) = body.get("tools").and_then(Value::as_array) {
        let tools = tools.iter().map(tool).collect::<Result<Vec<_>, _>>()?;
        sent.insert("tools".to_owned(), Value::Array(tools));
    }
    if let Some(choice) = body.get("tool_choice") {
        sent.insert("tool_choice".to_owned(), tool_choice(choice)?);
    }
    if let Some(format) = body.get("text").and_then(|text| text.get("format")) {
        add_format(format, &mut sent)?;
    }
    if let Some(effort) = body.get("reasoning").and_then(|it| it.get("effort"))
        && !effort.is_null()
    {
        sent.insert("reasoning_effort".to_owned(), effort.clone());
    }
    Ok(Translated::Send(Infer::V1Chat, sent))
}

fn add_item(item: &Value, messages: &mut Vec<Value>) -> Result<(), Refusal> {
    match text(item, "type") {
        "" | "message" => {
            let role = match text(item, "role") {
                role @ ("user" | "assistant" | "system") => role,
                "developer" => "system",
                _ => {
                    return Err(Refusal::bad_request(
                        "input: \"role\" must be \"user\", \"assistant\", \"system\" or \"developer\"",
                    ));
                }
            };
            messages.push(json!({ "role": role, "content": content(item.get("content"))? }));
        }
        "function_call" => add_call(item, messages),
        "function_call_output" => messages.push(json!({
            "role": "tool",
            "tool_call_id": text(item, "call_id"),
            "content": content(item.get("output"))?,
        })),
        // What a model thought is not read again by those behind this API.
        "reasoning" => {}
        other => return Err(unknown(other)),
    }
    Ok(())
}

/// Calls of one turn belong into one message.
fn add_call(item: &Value, messages: &mut Vec<Value>) {
    let call = json!({
        "id": text(item, "call_id"),
        "type": "function",
        "function": { "name": text(item, "name"), "arguments": text(item, "arguments") },
    });
    if let Some(last) = messages.last_mut().and_then(Value::as_object_mut)
        && last.get("role").and_then(Value::as_str) == Some("assistant")
    {
        let calls = last
            .entry("tool_calls")
            .or_insert_with(|| Value::Array(Vec::new()));
        if let Some(calls) = calls.as_array_mut() {
            calls.push(call);
        }
        return;
    }
    messages.push(json!({ "role": "assistant", "content": "", "tool_calls": [call] }));
}

fn content(content: Option<&Value>) -> Result<Value, Refusal> {
    let parts = match content {
        Some(Value::String(text)) => return Ok(text.as_str().into()),
        Some(Value::Array(parts)) => parts,
        Some(_) | None => {
            return Err(Refusal::bad_request(
                "input: \"content\" must be a text or a list of parts",
            ));
        }
    };
    let mut sent = Vec::with_capacity(parts.len());
    let mut texts = Vec::with_capacity(parts.len());
    for part in parts {
        match text(part, "type") {
            "input_text" | "output_text" | "text" => {
                texts.push(text(part, "text"));
                sent.push(json!({ "type": "text", "text": text(part, "text") }));
            }
            "refusal" => {
                texts.push(text(part, "refusal"));
                sent.push(json!({ "type": "text", "text": text(part, "refusal") }));
            }
            "input_image" => {
                let url = text(part, "image_url");
                if url.is_empty() {
                    return Err(Refusal::bad_request(
                        "input_image: send it in the request, as a data: URL in \"image_url\"",
                    ));
                }
                sent.push(json!({ "type": "image_url", "image_url": { "url": url } }));
            }
            other => return Err(unknown(other)),
        }
    }
    // Templates of models without pictures take a text alone.
    if texts.len() == sent.len() {
        return Ok(texts.join("\n").into());
    }
    Ok(Value::Array(sent))
}

fn tool(tool: &Value) -> Result<Value, Refusal> {
    if !matches!(text(tool, "type"), "" | "function") {
        return Err(Refusal::bad_request(
            "this host's model server takes tools of type \"function\" alone",
        ));
    }
    let mut function = Object::new();
    let Some(tool) = tool.as_object() else {
        return Err(Refusal::bad_request("each of \"tools\" must be an object"));
    };
    copy(
        tool,
        &mut function,
        &["name", "description", "parameters", "strict"],
    );
    Ok(json!({ "type": "function", "function": function }))
}

fn tool_choice(choice: &Value) -> Result<Value, Refusal> {
    match choice {
        Value::String(_) => Ok(choice.clone()),
        Value::Object(_) if text(choice, "type") == "function" => {
            Ok(json!({ "type": "function", "function": { "name": text(choice, "name") } }))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            Err(Refusal::bad_request(
                "this host's model server takes as \"tool_choice\" \"auto\", \"none\", \"required\" or one function",
            ))
        }
    }
}

fn add_format(format: &Value, sent: &mut Object) -> Result<(), Refusal> {
    let asked = match text(format, "type") {
        "text" => return Ok(()),
        "json_object" => json!({ "type": "json_object" }),
        "json_schema" => {
            let mut schema = Object::new();
            if let Some(format) = format.as_object() {
                copy(
                    format,
                    &mut schema,
                    &["name", "description", "schema", "strict"],
                );
            }
            json!({ "type": "json_schema", "json_schema": schema })
        }
        other => return Err(unknown(other)),
    };
    sent.insert("response_format".to_owned(), asked);
    Ok(())
}

fn unknown(kind: &str) -> Refusal {
    let kind: String = kind.chars().take(64).collect();
    Refusal::bad_request(format!(
        "this host's model server has nothing like {kind:?}; send text, images as data: URLs, function calls and their outputs"
    ))
}
