//! Requests and replies of each API in the words of another, as golden values.

use std::time::Instant;

use serde_json::{Value, json};

use super::*;
use crate::gateway::admit::Infer;

fn sent(route: Infer, body: &Value) -> (Infer, Value) {
    match translate(route, body.as_object().unwrap()).unwrap() {
        Translated::Send(route, body) => (route, Value::Object(body)),
        Translated::Load => panic!("nothing sent"),
    }
}

fn refused(route: Infer, body: &Value) -> String {
    translate(route, body.as_object().unwrap())
        .unwrap_err()
        .message
}

fn frame(route: Infer) -> Frame {
    Frame {
        model: "tiny".to_owned(),
        route,
        started: Instant::now(),
    }
}

/// What a stream becomes; `None` at its end when it said not why it ended.
fn streamed(route: Infer, events: &[Value]) -> (String, Option<String>) {
    let mut translator = StreamTranslator::new(frame(route));
    let mut out = Vec::new();
    for event in events {
        if translator.event(event, &mut out) {
            return (String::from_utf8(out).unwrap(), None);
        }
    }
    translator.close();
    let last = translator
        .finish()
        .map(|last| String::from_utf8(last).unwrap());
    (String::from_utf8(out).unwrap(), last)
}

/// Each event's name and data, of a stream that ended well.
fn events(route: Infer, source: &[Value]) -> Vec<(String, Value)> {
    let (text, last) = streamed(route, source);
    let text = text + &last.expect("a proper end");
    let events = text.split_terminator("\n\n").map(|event| {
        let (name, data) = event.split_once("\ndata: ").unwrap();
        let name = name.strip_prefix("event: ").unwrap().to_owned();
        let data: Value = serde_json::from_str(data).unwrap();
        assert_eq!(data["type"], name);
        (name, data)
    });
    events.collect()
}

fn delta(delta: &Value) -> Value {
    json!({ "id": "chatcmpl-Ab1", "choices": [{ "index": 0, "delta": delta, "finish_reason": null }] })
}

fn end(reason: &str) -> [Value; 2] {
    [
        json!({ "id": "chatcmpl-Ab1", "choices": [{ "index": 0, "delta": {}, "finish_reason": reason }] }),
        json!({ "id": "chatcmpl-Ab1", "choices": [], "usage": { "prompt_tokens": 23, "completion_tokens": 5 } }),
    ]
}

/// A thought, a text in two pieces and two calls, each in pieces.
fn talk() -> Vec<Value> {
    let mut source = vec![
        delta(&json!({ "role": "assistant", "content": null })),
        delta(&json!({ "reasoning_content": "hm" })),
        delta(&json!({ "content": "a" })),
        delta(&json!({ "content": "b" })),
        delta(
            &json!({ "tool_calls": [{ "index": 0, "id": "c0", "function": { "name": "f", "arguments": "{\"x\"" } }] }),
        ),
        delta(&json!({ "tool_calls": [{ "index": 0, "function": { "arguments": ":1}" } }] })),
        delta(
            &json!({ "tool_calls": [{ "index": 1, "id": "c1", "function": { "name": "g", "arguments": "{}" } }] }),
        ),
    ];
    source.extend(end("tool_calls"));
    source
}

#[test]
fn a_prompt_becomes_a_conversation() {
    let body = json!({ "model": "m", "stream": false, "prompt": "hi", "system": "be brief", "format": "json", "think": false,
        "images": ["iVBORw0"], "options": { "num_predict": 32768, "top_k": 5, "mirostat": 1 } });
    let want = json!({
        "model": "m", "stream": false, "top_k": 5, "response_format": { "type": "json_object" },
        "chat_template_kwargs": { "enable_thinking": false },
        "messages": [
            { "role": "system", "content": "be brief" },
            { "role": "user", "content": [
                { "type": "text", "text": "hi" },
                { "type": "image_url", "image_url": { "url": "data:image/png;base64,iVBORw0" } }
            ] }
        ]
    });
    assert_eq!(sent(Infer::Generate, &body), (Infer::V1Chat, want));
    let raw = json!({ "model": "m", "stream": true, "raw": true, "prompt": "hi", "options": { "num_predict": 3 } });
    let want = json!({ "model": "m", "stream": true, "stream_options": { "include_usage": true }, "prompt": "hi", "max_tokens": 3 });
    assert_eq!(sent(Infer::Generate, &raw), (Infer::V1Completions, want));
}

#[test]
fn tools_keep_their_ties() {
    let body = json!({ "model": "m", "stream": false, "messages": [
        { "role": "assistant", "content": "", "tool_calls": [{ "function": { "name": "f", "arguments": { "a": 1 } } }] },
        { "role": "tool", "content": "2", "tool_name": "f" }
    ] });
    let (_, body) = sent(Infer::Chat, &body);
    assert_eq!(
        body["messages"][0]["tool_calls"][0]["id"],
        body["messages"][1]["tool_call_id"]
    );
    assert_eq!(
        body["messages"][0]["tool_calls"][0]["function"]["arguments"],
        "{\"a\":1}"
    );
    let mut translator = StreamTranslator::new(frame(Infer::Chat));
    let mut out = Vec::new();
    for event in [
        json!({ "choices": [{ "delta": { "tool_calls": [{ "index": 0, "id": "c", "function": { "name": "f", "arguments": "{\"a\"" } }] } }] }),
        json!({ "choices": [{ "delta": { "tool_calls": [{ "index": 0, "function": { "arguments": ":1}" } }] } }] }),
        json!({ "choices": [{ "delta": {}, "finish_reason": "tool_calls" }] }),
    ] {
        assert!(!translator.event(&event, &mut out));
    }
    assert!(out.is_empty());
    translator.close();
    let last = String::from_utf8(translator.finish().unwrap()).unwrap();
    let lines: Vec<Value> = last
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(
        lines[0]["message"]["tool_calls"][0]["function"]["arguments"],
        json!({ "a": 1 })
    );
    assert_eq!(lines[1]["done_reason"], "stop");
}

#[test]
fn whole_replies_and_embeddings_are_translated() {
    let reply = json!({ "choices": [{ "index": 0, "message": { "role": "assistant", "content": " t1 t2", "reasoning_content": "hm" },
        "finish_reason": "length" }], "usage": { "prompt_tokens": 23, "completion_tokens": 2 } });
    let line = whole(&frame(Infer::Generate), &reply);
    assert_eq!(
        (&line["response"], &line["thinking"]),
        (&json!(" t1 t2"), &json!("hm"))
    );
    assert_eq!(
        (&line["done"], &line["done_reason"], &line["eval_count"]),
        (&json!(true), &json!("length"), &json!(2))
    );
    let reply = json!({ "data": [{ "index": 1, "embedding": [2.0] }, { "index": 0, "embedding": [1.0] }], "usage": { "prompt_tokens": 4 } });
    let embed = whole(&frame(Infer::Embed), &reply);
    assert_eq!(
        (&embed["embeddings"], &embed["prompt_eval_count"]),
        (&json!([[1.0], [2.0]]), &json!(4))
    );
    assert_eq!(
        whole(&frame(Infer::Embeddings), &reply),
        json!({ "embedding": [1.0] })
    );
    assert_eq!(
        sent(Infer::Embeddings, &json!({ "model": "m", "prompt": "x" })).1["input"],
        "x"
    );
}

#[test]
fn an_unfinished_stream_has_no_last_line() {
    let mut translator = StreamTranslator::new(frame(Infer::Chat));
    let mut out = Vec::new();
    translator.event(
        &json!({ "choices": [{ "delta": { "content": "x" } }] }),
        &mut out,
    );
    assert_eq!(translator.finish(), None);
    assert!(translator.event(&json!({ "error": { "message": "boom" } }), &mut out));
    assert!(
        String::from_utf8(out)
            .unwrap()
            .ends_with("{\"error\":\"boom\"}\n")
    );
}

#[test]
fn nothing_asked_is_a_load() {
    for (route, body) in [
        (Infer::Chat, json!({ "messages": [] })),
        (Infer::Generate, json!({ "prompt": "" })),
        (Infer::Embed, json!({})),
    ] {
        assert_eq!(
            translate(route, body.as_object().unwrap()),
            Ok(Translated::Load)
        );
    }
    assert_eq!(load(&frame(Infer::Chat))["done_reason"], "load");
}

#[test]
fn tool_calls_beyond_all_bounds_are_an_error() {
    let long = "x".repeat(3 << 20);
    let piece = delta(
        &json!({ "tool_calls": [{ "index": 0, "function": { "name": "f", "arguments": long } }] }),
    );
    let (text, last) = streamed(Infer::Chat, &[piece.clone(), piece]);
    assert_eq!(last, None);
    assert_eq!(
        text,
        "{\"error\":\"the model server made a tool call that is too long\"}\n"
    );
}

#[test]
fn what_a_backend_speaks_is_not_translated() {
    let offer = |api, speaks: &[Protocol]| Offer {
        speaks: speaks.to_vec(),
        ..Offer::new("m", api)
    };
    let old_ollama = offer(BackendApi::Ollama, &[Protocol::Ollama, Protocol::OpenAi]);
    let llama = offer(
        BackendApi::OpenAi,
        &[Protocol::OpenAi, Protocol::Responses, Protocol::Messages],
    );
    let plain = offer(BackendApi::OpenAi, &[]);
    for (route, of_old_ollama, of_llama, of_plain) in [
        (Infer::Chat, true, false, false),
        (Infer::Embed, true, false, false),
        (Infer::V1Chat, true, true, true),
        (Infer::V1Embeddings, true, true, true),
        (Infer::V1Responses, false, true, false),
        (Infer::V1Messages, false, true, false),
    ] {
        assert_eq!(is_spoken(&old_ollama, route), of_old_ollama, "{route:?}");
        assert_eq!(is_spoken(&llama, route), of_llama, "{route:?}");
        assert_eq!(is_spoken(&plain, route), of_plain, "{route:?}");
    }
}

#[test]
fn an_anthropic_conversation_becomes_openai_s() {
    let body = json!({
        "model": "m", "stream": true, "max_tokens": 9, "temperature": 0.5, "top_k": 4, "stop_sequences": ["END"],
        "system": [{ "type": "text", "text": "be" }, { "type": "text", "text": "brief" }],
        "thinking": { "type": "enabled", "budget_tokens": 1024 },
        "tools": [{ "name": "f", "description": "does f", "input_schema": { "type": "object" } }],
        "tool_choice": { "type": "any", "disable_parallel_tool_use": true },
        "messages": [
            { "role": "user", "content": "hi" },
            { "role": "assistant", "content": [
                { "type": "thinking", "thinking": "hm", "signature": "s" },
                { "type": "text", "text": "calling" },
                { "type": "tool_use", "id": "t1", "name": "f", "input": { "x": 1 } }
            ] },
            { "role": "user", "content": [
                { "type": "text", "text": "look" },
                { "type": "image", "source": { "type": "base64", "media_type": "image/png", "data": "iVBO" } },
                { "type": "tool_result", "tool_use_id": "t1", "content": [{ "type": "text", "text": "2" }] }
            ] },
            { "role": "user", "content": [{ "type": "text", "text": "a" }, { "type": "text", "text": "b" }] }
        ]
    });
    let want = json!({
        "model": "m", "stream": true, "stream_options": { "include_usage": true }, "max_tokens": 9, "temperature": 0.5, "top_k": 4,
        "stop": ["END"], "chat_template_kwargs": { "enable_thinking": true }, "tool_choice": "required", "parallel_tool_calls": false,
        "tools": [{ "type": "function", "function": { "name": "f", "description": "does f", "parameters": { "type": "object" } } }],
        "messages": [
            { "role": "system", "content": "be\nbrief" },
            { "role": "user", "content": "hi" },
            { "role": "assistant", "content": "calling", "tool_calls": [
                { "id": "t1", "type": "function", "function": { "name": "f", "arguments": "{\"x\":1}" } }
            ] },
            { "role": "tool", "tool_call_id": "t1", "content": "2" },
            { "role": "user", "content": [
                { "type": "text", "text": "look" },
                { "type": "image_url", "image_url": { "url": "data:image/png;base64,iVBO" } }
            ] },
            { "role": "user", "content": "a\nb" }
        ]
    });
    assert_eq!(sent(Infer::V1Messages, &body), (Infer::V1Chat, want));
}

#[test]
fn what_openai_has_no_words_for_is_refused() {
    let user = |content: Value| json!({ "model": "m", "messages": [{ "role": "user", "content": content }] });
    for (body, why) in [
        (
            json!({ "model": "m", "messages": [] }),
            "at least one message",
        ),
        (
            user(json!([{ "type": "document", "source": { "type": "base64", "data": "" } }])),
            "\"document\"",
        ),
        (
            user(json!([{ "type": "image", "source": { "type": "file", "file_id": "f" } }])),
            "base64",
        ),
        (user(json!(7)), "\"content\" must be"),
        (
            json!({ "model": "m", "messages": [{ "role": "tool", "content": "x" }] }),
            "\"role\" must be",
        ),
        (
            json!({ "model": "m", "messages": [{ "role": "user", "content": "x" }], "tools": [{}] }),
            "\"name\"",
        ),
        (
            json!({ "model": "m", "messages": [{ "role": "user", "content": "x" }], "tool_choice": {} }),
            "tool_choice",
        ),
    ] {
        let told = refused(Infer::V1Messages, &body);
        assert!(told.contains(why), "{body}: {told}");
    }
    for (body, why) in [
        (json!({ "model": "m" }), "\"input\" must be"),
        (json!({ "model": "m", "input": [] }), "\"input\" must be"),
        (
            json!({ "model": "m", "input": [{ "type": "item_reference", "id": "x" }] }),
            "item_reference",
        ),
        (
            json!({ "model": "m", "input": [{ "role": "user", "content": [{ "type": "input_file" }] }] }),
            "input_file",
        ),
        (
            json!({ "model": "m", "input": [{ "role": "robot", "content": "x" }] }),
            "\"role\" must be",
        ),
        (
            json!({ "model": "m", "input": "x", "tools": [{ "type": "custom", "name": "f" }] }),
            "\"function\"",
        ),
        (
            json!({ "model": "m", "input": "x", "tool_choice": { "type": "mcp" } }),
            "tool_choice",
        ),
        (
            json!({ "model": "m", "input": "x", "text": { "format": { "type": "grammar" } } }),
            "grammar",
        ),
    ] {
        let told = refused(Infer::V1Responses, &body);
        assert!(told.contains(why), "{body}: {told}");
    }
}

#[test]
fn an_openai_reply_becomes_anthropic_s() {
    let reply = json!({
        "id": "chatcmpl-Ab1", "choices": [{ "index": 0, "finish_reason": "tool_calls", "message": {
            "role": "assistant", "content": "ab", "reasoning_content": "hm",
            "tool_calls": [{ "id": "c0", "type": "function", "function": { "name": "f", "arguments": "{\"x\":1}" } }]
        } }],
        "usage": { "prompt_tokens": 23, "completion_tokens": 5 }
    });
    let want = json!({
        "id": "msg_Ab1", "type": "message", "role": "assistant", "model": "tiny",
        "content": [
            { "type": "thinking", "thinking": "hm", "signature": "" },
            { "type": "text", "text": "ab" },
            { "type": "tool_use", "id": "c0", "name": "f", "input": { "x": 1 } }
        ],
        "stop_reason": "tool_use", "stop_sequence": null, "usage": { "input_tokens": 23, "output_tokens": 5 }
    });
    assert_eq!(whole(&frame(Infer::V1Messages), &reply), want);
    for (finish, stop, reason, sequence) in [
        ("stop", Value::Null, "end_turn", Value::Null),
        ("stop", json!("END"), "stop_sequence", json!("END")),
        ("length", Value::Null, "max_tokens", Value::Null),
    ] {
        let reply = json!({ "choices": [{ "finish_reason": finish, "stop_reason": stop, "message": { "content": "" } }] });
        let message = whole(&frame(Infer::V1Messages), &reply);
        assert_eq!(
            (&message["stop_reason"], &message["stop_sequence"]),
            (&json!(reason), &sequence)
        );
    }
}

#[test]
fn an_openai_stream_becomes_anthropic_s() {
    let usage = json!({ "input_tokens": 0, "output_tokens": 0 });
    let block = |index: u64, block: Value| {
        (
            "content_block_start",
            json!({ "index": index, "content_block": block }),
        )
    };
    let piece = |index: u64, delta: Value| {
        (
            "content_block_delta",
            json!({ "index": index, "delta": delta }),
        )
    };
    let stop = |index: u64| ("content_block_stop", json!({ "index": index }));
    let want = [
        (
            "message_start",
            json!({ "message": { "id": "msg_Ab1", "type": "message", "role": "assistant", "model": "tiny", "content": [],
            "stop_reason": null, "stop_sequence": null, "usage": usage } }),
        ),
        block(
            0,
            json!({ "type": "thinking", "thinking": "", "signature": "" }),
        ),
        piece(0, json!({ "type": "thinking_delta", "thinking": "hm" })),
        stop(0),
        block(1, json!({ "type": "text", "text": "" })),
        piece(1, json!({ "type": "text_delta", "text": "a" })),
        piece(1, json!({ "type": "text_delta", "text": "b" })),
        stop(1),
        block(
            2,
            json!({ "type": "tool_use", "id": "c0", "name": "f", "input": {} }),
        ),
        piece(
            2,
            json!({ "type": "input_json_delta", "partial_json": "{\"x\"" }),
        ),
        piece(
            2,
            json!({ "type": "input_json_delta", "partial_json": ":1}" }),
        ),
        stop(2),
        block(
            3,
            json!({ "type": "tool_use", "id": "c1", "name": "g", "input": {} }),
        ),
        piece(
            3,
            json!({ "type": "input_json_delta", "partial_json": "{}" }),
        ),
        stop(3),
        (
            "message_delta",
            json!({ "delta": { "stop_reason": "tool_use", "stop_sequence": null },
            "usage": { "input_tokens": 23, "output_tokens": 5 } }),
        ),
        ("message_stop", json!({})),
    ];
    let want = want.map(|(name, mut data)| {
        data["type"] = name.into();
        (name.to_owned(), data)
    });
    assert_eq!(events(Infer::V1Messages, &talk()), want);
}

#[test]
fn a_responses_request_becomes_a_chat() {
    let body = json!({
        "model": "m", "stream": false, "instructions": "be brief", "max_output_tokens": 7, "top_p": 0.9, "parallel_tool_calls": true,
        "reasoning": { "effort": "low", "summary": "auto" }, "truncation": "auto",
        "text": { "format": { "type": "json_schema", "name": "n", "schema": { "type": "object" }, "strict": true } },
        "tools": [{ "type": "function", "name": "f", "description": "d", "parameters": {}, "strict": false }],
        "tool_choice": { "type": "function", "name": "f" },
        "input": [
            { "role": "developer", "content": "rules" },
            { "type": "message", "role": "user", "content": [
                { "type": "input_text", "text": "look" }, { "type": "input_image", "detail": "auto", "image_url": "data:image/png;base64,iVBO" }
            ] },
            { "type": "reasoning", "id": "rs", "summary": [] },
            { "type": "message", "role": "assistant", "content": [{ "type": "output_text", "text": "calling" }] },
            { "type": "function_call", "call_id": "c0", "name": "f", "arguments": "{}" },
            { "type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}" },
            { "type": "function_call_output", "call_id": "c0", "output": "1" },
            { "type": "function_call", "call_id": "c2", "name": "f", "arguments": "{}" }
        ]
    });
    let call = |id: &str| json!({ "id": id, "type": "function", "function": { "name": "f", "arguments": "{}" } });
    let want = json!({
        "model": "m", "stream": false, "max_tokens": 7, "top_p": 0.9, "parallel_tool_calls": true, "reasoning_effort": "low",
        "response_format": { "type": "json_schema", "json_schema": { "name": "n", "schema": { "type": "object" }, "strict": true } },
        "tools": [{ "type": "function", "function": { "name": "f", "description": "d", "parameters": {}, "strict": false } }],
        "tool_choice": { "type": "function", "function": { "name": "f" } },
        "messages": [
            { "role": "system", "content": "be brief" },
            { "role": "system", "content": "rules" },
            { "role": "user", "content": [
                { "type": "text", "text": "look" }, { "type": "image_url", "image_url": { "url": "data:image/png;base64,iVBO" } }
            ] },
            { "role": "assistant", "content": "calling", "tool_calls": [call("c0"), call("c1")] },
            { "role": "tool", "tool_call_id": "c0", "content": "1" },
            { "role": "assistant", "content": "", "tool_calls": [call("c2")] }
        ]
    });
    assert_eq!(sent(Infer::V1Responses, &body), (Infer::V1Chat, want));
    let (_, plain) = sent(Infer::V1Responses, &json!({ "model": "m", "input": "hi" }));
    assert_eq!(
        plain["messages"],
        json!([{ "role": "user", "content": "hi" }])
    );
}

#[test]
fn an_openai_reply_becomes_a_response() {
    let reply = json!({
        "id": "chatcmpl-Ab1", "choices": [{ "index": 0, "finish_reason": "length", "message": {
            "role": "assistant", "content": "ab",
            "tool_calls": [{ "id": "c0", "type": "function", "function": { "name": "f", "arguments": "{}" } }]
        } }],
        "usage": { "prompt_tokens": 23, "completion_tokens": 5 }
    });
    let response = whole(&frame(Infer::V1Responses), &reply);
    for (key, want) in [
        ("id", json!("resp_Ab1")),
        ("object", json!("response")),
        ("model", json!("tiny")),
        ("status", json!("incomplete")),
        (
            "incomplete_details",
            json!({ "reason": "max_output_tokens" }),
        ),
        (
            "output",
            json!([
                { "type": "message", "id": "msg_Ab1_0", "status": "completed", "role": "assistant",
                  "content": [{ "type": "output_text", "text": "ab", "annotations": [], "logprobs": [] }] },
                { "type": "function_call", "id": "fc_Ab1_1", "status": "completed", "call_id": "c0", "name": "f", "arguments": "{}" }
            ]),
        ),
        (
            "usage",
            json!({ "input_tokens": 23, "input_tokens_details": { "cached_tokens": 0 }, "output_tokens": 5,
            "output_tokens_details": { "reasoning_tokens": 0 }, "total_tokens": 28 }),
        ),
    ] {
        assert_eq!(response[key], want, "{key}");
    }
}

#[test]
fn an_openai_stream_becomes_a_response() {
    let events = events(Infer::V1Responses, &talk());
    for (at, (_, data)) in events.iter().enumerate() {
        assert_eq!(data["sequence_number"], at);
    }
    let told: Vec<String> = events
        .iter()
        .map(|(name, data)| {
            let name = name.strip_prefix("response.").unwrap();
            let text = ["delta", "text", "arguments"]
                .iter()
                .find_map(|key| data[*key].as_str());
            format!(
                "{name} {} {}",
                data["output_index"],
                text.unwrap_or_default()
            )
        })
        .collect();
    let want = [
        "created null ",
        "in_progress null ",
        "output_item.added 0 ",
        "content_part.added 0 ",
        "reasoning_text.delta 0 hm",
        "reasoning_text.done 0 hm",
        "content_part.done 0 ",
        "output_item.done 0 ",
        "output_item.added 1 ",
        "content_part.added 1 ",
        "output_text.delta 1 a",
        "output_text.delta 1 b",
        "output_text.done 1 ab",
        "content_part.done 1 ",
        "output_item.done 1 ",
        "output_item.added 2 ",
        "function_call_arguments.delta 2 {\"x\"",
        "function_call_arguments.delta 2 :1}",
        "function_call_arguments.done 2 {\"x\":1}",
        "output_item.done 2 ",
        "output_item.added 3 ",
        "function_call_arguments.delta 3 {}",
        "function_call_arguments.done 3 {}",
        "output_item.done 3 ",
        "completed null ",
    ];
    assert_eq!(told, want);
    let (_, last) = events.last().unwrap();
    let output = &last["response"]["output"];
    assert_eq!(output[1]["content"][0]["text"], "ab");
    assert_eq!(output[2]["arguments"], "{\"x\":1}");
    assert_eq!(last["response"]["usage"]["total_tokens"], 28);
    assert_eq!(last["response"]["status"], "completed");
    let (_, added) = &events[8];
    assert_eq!(
        added["item"],
        json!({ "type": "message", "id": "msg_Ab1_1", "status": "in_progress", "role": "assistant", "content": [] })
    );
}

#[test]
fn an_empty_stream_is_told_whole() {
    let names = |route| -> Vec<String> {
        let events = events(route, &end("stop"));
        events.into_iter().map(|(name, _)| name).collect()
    };
    assert_eq!(
        names(Infer::V1Messages),
        ["message_start", "message_delta", "message_stop"]
    );
    assert_eq!(
        names(Infer::V1Responses),
        [
            "response.created",
            "response.in_progress",
            "response.completed"
        ]
    );
}

#[test]
fn a_stream_that_breaks_has_no_proper_end() {
    for route in [Infer::V1Messages, Infer::V1Responses] {
        let begun = delta(&json!({ "content": "a" }));
        assert_eq!(streamed(route, std::slice::from_ref(&begun)).1, None);
        let mut translator = StreamTranslator::new(frame(route));
        let mut out = Vec::new();
        let [reason, _] = end("stop");
        assert!(!translator.event(&reason, &mut out));
        assert_eq!(translator.finish(), None, "the closing mark is missing");

        let failed = [begun, json!({ "error": { "message": "boom" } })];
        let (text, last) = streamed(route, &failed);
        assert_eq!(last, None);
        let error = text
            .split("\n\n")
            .find(|event| event.starts_with("event: error"))
            .unwrap();
        assert!(error.contains("\"message\":\"boom\""), "{error}");

        let mixed = [
            delta(
                &json!({ "tool_calls": [{ "index": 1, "id": "c1", "function": { "name": "g", "arguments": "" } }] }),
            ),
            delta(
                &json!({ "tool_calls": [{ "index": 0, "id": "c0", "function": { "name": "f", "arguments": "" } }] }),
            ),
        ];
        assert!(streamed(route, &mixed).0.contains("mixed up"));
    }
}

#[test]
fn a_response_keeps_within_its_bound() {
    let long = "x".repeat(3 << 20);
    let piece = delta(&json!({ "content": long }));
    let (text, last) = streamed(Infer::V1Responses, &[piece.clone(), piece.clone(), piece]);
    assert_eq!(last, None);
    assert!(text.contains("too long for this API") && text.len() < 4 << 20);
}
