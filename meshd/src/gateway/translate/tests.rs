//! Requests and replies of one API in the words of the other.

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

fn frame(route: Infer) -> Frame {
    Frame {
        model: "tiny".to_owned(),
        route,
        started: Instant::now(),
    }
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
    let embed = embeddings(&frame(Infer::Embed), &reply);
    assert_eq!(
        (&embed["embeddings"], &embed["prompt_eval_count"]),
        (&json!([[1.0], [2.0]]), &json!(4))
    );
    assert_eq!(
        embeddings(&frame(Infer::Embeddings), &reply),
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
            Some(Translated::Load)
        );
    }
    assert_eq!(frame(Infer::Chat).load()["done_reason"], "load");
    assert_eq!(
        translate(Infer::V1Chat, &crate::gateway::json::Object::new()),
        None
    );
}
