//! What gets through, what is dropped, what is refused.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::gateway::json::parse_object;

fn cleaned(route: Infer, body: &Value) -> Result<Value, Refusal> {
    let object = parse_object(body.to_string().as_bytes()).map_err(Refusal::bad_request)?;
    clean(route, object, "exact", 4_096).map(|cleaned| Value::Object(cleaned.body))
}

#[test]
fn only_known_keys_get_through() {
    let body = json!({
        "model": "x", "prompt": "hi", "keep_alive": 0, "_debug_render_only": true, "template": "", "suffix": null,
        "options": { "num_ctx": 4096, "num_gpu": 0, "num_thread": 64, "use_mmap": false, "num_batch": 1, "main_gpu": 1,
            "draft_num_predict": 3, "temperature": 0.5, "stop": ["x"], "num_predict": 7, "top_k": null }
    });
    let want = json!({
        "model": "exact", "prompt": "hi", "stream": true,
        "options": { "temperature": 0.5, "stop": ["x"], "num_predict": 7 }
    });
    assert_eq!(cleaned(Infer::Generate, &body).unwrap(), want);
    let body = json!({
        "model": "x", "messages": [], "user": "anna", "metadata": {}, "store": true, "grammar": "root ::= x",
        "id_slot": 0, "max_tokens": 1_000_000, "cache_prompt": false, "lora": []
    });
    let want = json!({ "model": "exact", "messages": [], "max_tokens": 32768, "stream": false });
    assert_eq!(cleaned(Infer::V1Chat, &body).unwrap(), want);
    let body = json!({ "model": "x", "input": "a", "previous_response_id": null, "store": true });
    let want = json!({ "model": "exact", "input": "a", "stream": false });
    assert_eq!(cleaned(Infer::V1Responses, &body).unwrap(), want);
    // Without what went before, the answer would be to another question.
    let body = json!({ "model": "x", "input": "a", "previous_response_id": "resp_1" });
    let refusal = cleaned(Infer::V1Responses, &body).unwrap_err();
    assert!(refusal.message.contains("hosts keep no conversations"));
}

#[test]
fn generation_always_has_an_end() {
    for (asked, want) in [
        (json!(null), 32_768),
        (json!(0), 32_768),
        (json!(-1), 32_768),
        (json!(-2), 32_768),
        (json!(1e18), 32_768),
        (json!(12), 12),
        (json!(12.7), 12),
    ] {
        let body = json!({ "prompt": "x", "options": { "num_predict": asked } });
        let body = cleaned(Infer::Generate, &body).unwrap();
        assert_eq!(body["options"]["num_predict"], json!(want), "{asked}");
    }
}

#[test]
fn what_the_host_does_not_do_is_said() {
    let picture = |url: &str| json!({ "messages": [{ "role": "user", "content": [{ "type": "image_url", "image_url": { "url": url } }] }] });
    for (route, body) in [
        (Infer::Generate, json!({ "options": { "num_ctx": 8192 } })),
        (Infer::Generate, json!({ "options": { "Num_Ctx": 8192 } })),
        (
            Infer::Generate,
            json!({ "options": { "num_predict": "many" } }),
        ),
        (Infer::Generate, json!({ "options": [] })),
        (Infer::Generate, json!({ "Options": { "num_ctx": 1 } })),
        (Infer::Generate, json!({ "template": "{{ .Prompt }}" })),
        (Infer::Generate, json!({ "Keep_Alive": -1 })),
        (Infer::Generate, json!({ "\u{212A}eep_alive": -1 })),
        (Infer::Generate, json!({ "stream": "yes" })),
        (Infer::V1Chat, json!({ "n": 8 })),
        (Infer::V1Chat, json!({ "max_tokens": "all" })),
        (Infer::V1Chat, json!({ "Stream": true })),
        (Infer::V1Chat, picture("http://169.254.169.254/latest")),
        (Infer::V1Chat, picture("file:///etc/passwd")),
        (
            Infer::V1Chat,
            json!({ "messages": [{ "content": [{ "type": "image_url", "Image_URL": { "URL": "http://x" } }] }] }),
        ),
        (
            Infer::V1Chat,
            json!({ "messages": [{ "content": [{ "type": "video_url", "video_url": "http://x" }] }] }),
        ),
        (
            Infer::V1Responses,
            json!({ "input": [{ "content": [{ "type": "input_image", "image_url": "http://x" }] }] }),
        ),
        (
            Infer::V1Messages,
            json!({ "messages": [{ "content": [{ "type": "image", "source": { "type": "url", "url": "http://x" } }] }] }),
        ),
        (
            Infer::V1Messages,
            json!({ "tools": [{ "Type": "web_search_20250305", "name": "web_search" }] }),
        ),
        (Infer::Chat, json!({ "tools": "all" })),
        (Infer::Chat, json!({ "messages": vec![json!({}); 5_000] })),
        (
            Infer::Chat,
            json!({ "messages": [{ "images": vec!["x"; 33] }] }),
        ),
    ] {
        let refusal = cleaned(route, &body).unwrap_err();
        assert_eq!(refusal.status, http::StatusCode::BAD_REQUEST, "{body}");
    }
    assert!(cleaned(Infer::V1Chat, &picture("data:image/png;base64,iVBO")).is_ok());
    let fetch = json!({ "messages": [{ "role": "assistant", "tool_calls": [{ "function": { "name": "get", "arguments": { "url": "http://x" } } }] }] });
    assert!(cleaned(Infer::Chat, &fetch).is_ok());
}

#[test]
fn tools_that_a_server_would_run_are_dropped() {
    let own = json!({ "type": "function", "function": { "name": "f", "parameters": { "Type": "object" } } });
    let body = json!({ "tools": [own, { "type": "web_search" }, { "type": "web_search_preview" }, { "type": "mcp" }] });
    assert_eq!(
        cleaned(Infer::V1Responses, &body).unwrap()["tools"],
        json!([own])
    );
    let body = json!({ "messages": [], "tools": [{ "type": "web_search_20250305", "name": "web_search" }], "tool_choice": { "type": "any" } });
    let body = cleaned(Infer::V1Messages, &body).unwrap();
    assert_eq!((body.get("tools"), body.get("tool_choice")), (None, None));
}

#[test]
fn strict_json_alone_is_read() {
    for body in [
        "",
        "   ",
        "null",
        "[]",
        "\"x\"",
        "{",
        "{bad}",
        r#"{"a":1,"a":2}"#,
        r#"{"a":{"b":1,"b":2}}"#,
        r#"{"a":[{"b":1,"\u0062":2}]}"#,
        r#"{"a":1}{"b":2}"#,
        r#"{"a":1} x"#,
        r#"{"a":1e999}"#,
        "\u{feff}{}",
    ] {
        assert!(parse_object(body.as_bytes()).is_err(), "{body}");
    }
    assert!(parse_object(b"{\"a\":\"\xff\"}").is_err());
    assert!(parse_object("[".repeat(100_000).as_bytes()).is_err());
    assert!(parse_object(b" {\"a\":[1,-2,1.5,true,null,\"\\ud83d\\ude00\"]}\n").is_ok());
}

#[test]
fn name_stands_in_for_an_empty_model() {
    for (body, want) in [
        (json!({ "model": "a", "name": "b" }), Some("a")),
        (json!({ "model": "", "name": "b" }), Some("b")),
        (json!({ "name": "b" }), Some("b")),
        (json!({ "model": null }), None),
        (json!({}), None),
    ] {
        assert_eq!(model_of(body.as_object().unwrap()).unwrap(), want, "{body}");
    }
    assert!(model_of(json!({ "mOdel": "a" }).as_object().unwrap()).is_err());
    assert!(model_of(json!({ "model": 1 }).as_object().unwrap()).is_err());
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[ -~]{0,12}".prop_map(Value::from),
        Just(Value::from("secret")),
    ];
    leaf.prop_recursive(3, 24, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(any_key(), inner, 0..5)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// Keys that mean something, in all kinds of letters.
fn any_key() -> impl Strategy<Value = String> {
    let known = prop_oneof![
        Just("model"),
        Just("name"),
        Just("stream"),
        Just("options"),
        Just("messages"),
        Just("tools"),
        Just("prompt"),
        Just("keep_alive"),
        Just("num_ctx"),
        Just("template"),
        Just("x"),
    ];
    (known, any::<u16>()).prop_map(|(key, mask)| {
        key.chars()
            .enumerate()
            .map(|(at, c)| match (mask >> (at % 16) & 1, c) {
                (1, 's') if mask & 1 == 0 => 'ſ',
                (1, 'k') if mask & 1 == 0 => '\u{212A}',
                (1, c) => c.to_ascii_uppercase(),
                (_, c) => c,
            })
            .collect()
    })
}

proptest! {
    /// Whatever is sent, the backend gets the exact model, in one spelling of the key, and only keys of the list.
    #[test]
    fn no_spelling_changes_the_model(
        body in prop::collection::btree_map(any_key(), any_json(), 0..8),
        route in prop::sample::select(Infer::ALL.to_vec()),
    ) {
        let body: Object = body.into_iter().collect();
        if let Ok(cleaned) = clean(route, body, "exact", 4_096) {
            prop_assert_eq!(&cleaned.body["model"], "exact");
            for key in cleaned.body.keys() {
                let is_known = ["model", "stream", "stream_options"].contains(&key.as_str())
                    || allowed(route).contains(&key.as_str());
                prop_assert!(is_known, "{}", key);
                prop_assert!(fold_key(key) == *key);
            }
            if let Some(options) = cleaned.body.get("options") {
                prop_assert!(options.as_object().unwrap().keys().all(|key| SAMPLING.contains(&key.as_str())));
            }
        }
    }

    /// A parsed body is written and read back as the same one.
    #[test]
    fn parsing_is_exact(value in any_json()) {
        let object = json!({ "a": value });
        let parsed = parse_object(object.to_string().as_bytes()).unwrap();
        prop_assert_eq!(Value::Object(parsed), object);
    }

    /// No bytes make the parser panic.
    #[test]
    fn hostile_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse_object(&bytes);
    }
}

#[test]
fn what_a_server_would_allocate_or_repeat_without_end_is_capped() {
    let body = json!({ "prompt": "x", "options": { "repeat_last_n": 2_000_000_000u64 } });
    let body = cleaned(Infer::Generate, &body).unwrap();
    assert_eq!(body["options"]["repeat_last_n"], 32_768);
    let body = json!({ "options": { "repeat_last_n": -1 } });
    let body = cleaned(Infer::Generate, &body).unwrap();
    assert_eq!(body["options"]["repeat_last_n"], -1);
    let body = json!({ "messages": [], "logprobs": true, "top_logprobs": 100_000 });
    let body = cleaned(Infer::V1Chat, &body).unwrap();
    assert_eq!(
        (&body["logprobs"], &body["top_logprobs"]),
        (&json!(true), &json!(20))
    );
    for (route, given, key, want) in [
        (Infer::V1Chat, json!({}), "max_tokens", Some(32_768)),
        (
            Infer::V1Chat,
            json!({ "max_completion_tokens": 5 }),
            "max_tokens",
            None,
        ),
        (
            Infer::V1Completions,
            json!({ "max_tokens": 5 }),
            "max_tokens",
            Some(5),
        ),
        (
            Infer::V1Responses,
            json!({}),
            "max_output_tokens",
            Some(32_768),
        ),
        (Infer::V1Embeddings, json!({}), "max_tokens", None),
    ] {
        let mut body = given.as_object().unwrap().clone();
        bound_tokens(route, &mut body);
        assert_eq!(body.get(key).and_then(Value::as_u64), want, "{route:?}");
    }
}
