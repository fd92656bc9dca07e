//! Tool calls as Ollama's own API has them and as OpenAI's has them.

use serde_json::{Value, json};

/// The calls of one answer, put together from the pieces of a stream.
#[derive(Debug, Default)]
pub(crate) struct Calls(Vec<Call>);

#[derive(Debug, Default)]
struct Call {
    id: String,
    name: String,
    /// JSON in a text.
    arguments: String,
}

impl Calls {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes in `tool_calls` of one event.
    pub(crate) fn take(&mut self, pieces: &Value) {
        for piece in pieces.as_array().into_iter().flatten() {
            let index = piece["index"].as_u64().unwrap_or(0);
            let index = usize::try_from(index)
                .unwrap_or(usize::MAX)
                .min(self.0.len());
            if index == self.0.len() {
                self.0.push(Call::default());
            }
            let Some(call) = self.0.get_mut(index) else {
                continue;
            };
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            call.id += &text(&piece["id"]);
            call.name += &text(&piece["function"]["name"]);
            call.arguments += &text(&piece["function"]["arguments"]);
        }
    }

    /// As `/api/chat` tells them: the arguments are an object.
    pub(crate) fn of_ollama(&self) -> Value {
        let calls = self.0.iter().enumerate().map(|(index, call)| {
            let arguments: Value = serde_json::from_str(&call.arguments).unwrap_or_else(|_| json!({}));
            json!({ "id": call.id, "function": { "index": index, "name": call.name, "arguments": arguments } })
        });
        calls.collect()
    }

    /// As `/v1/chat/completions` tells them: the arguments are a text.
    pub(crate) fn of_openai(&self) -> Value {
        let calls = self.0.iter().enumerate().map(|(index, call)| {
            json!({ "id": call.id, "index": index, "type": "function",
                    "function": { "name": call.name, "arguments": call.arguments } })
        });
        calls.collect()
    }
}

/// The messages of `/api/chat` for a server that speaks OpenAI's API: calls have names there, by which results are told.
pub(crate) fn messages(messages: &Value) -> Value {
    let mut n_calls = 0;
    let mut last = Vec::new();
    let told = messages.as_array().into_iter().flatten().map(|message| {
        let mut message = message.clone();
        if let Some(calls) = message["tool_calls"].as_array() {
            last.clear();
            let calls = calls.iter().map(|call| {
                let id = format!("call_{n_calls}");
                n_calls += 1;
                last.push(id.clone());
                let function = &call["function"];
                json!({ "id": id, "type": "function",
                        "function": { "name": function["name"], "arguments": function["arguments"].to_string() } })
            });
            message["tool_calls"] = calls.collect();
        }
        if message["role"] == "tool" && !last.is_empty() {
            message["tool_call_id"] = json!(last.remove(0));
        }
        message
    });
    told.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_come_in_pieces_and_are_told_in_both_forms() {
        let mut calls = Calls::default();
        calls.take(&json!([{ "index": 0, "id": "a", "function": { "name": "weather", "arguments": "{\"city\":" } }]));
        calls.take(&json!([{ "index": 0, "function": { "arguments": "\"Bern\"}" } }]));
        assert_eq!(
            calls.of_ollama(),
            json!([{ "id": "a", "function": { "index": 0, "name": "weather", "arguments": { "city": "Bern" } } }])
        );
        assert_eq!(
            calls.of_openai()[0]["function"]["arguments"],
            "{\"city\":\"Bern\"}"
        );
    }

    #[test]
    fn results_find_their_calls() {
        let told = messages(&json!([
            { "role": "user", "content": "hi" },
            { "role": "assistant", "content": "", "tool_calls": [{ "function": { "name": "weather", "arguments": { "city": "Bern" } } }] },
            { "role": "tool", "tool_name": "weather", "content": "rain" },
        ]));
        assert_eq!(told[1]["tool_calls"][0]["id"], "call_0");
        assert_eq!(
            told[1]["tool_calls"][0]["function"]["arguments"],
            "{\"city\":\"Bern\"}"
        );
        assert_eq!(told[2]["tool_call_id"], "call_0");
    }
}
