//! Every API against every kind of backend: passed where it is spoken, translated where it is not, errors in the caller's words.

use mesh_proto::share::Protocol;
use mesh_proto::usage::Outcome;
use serde_json::json;

use super::*;

/// An OpenAI server without its newer calls.
fn plain(model: &str) -> Offer {
    Offer {
        speaks: vec![Protocol::OpenAi],
        ..offer(model, BackendApi::OpenAi)
    }
}

const MESSAGES: &str =
    r#"{"model":"tiny","max_tokens":9,"messages":[{"role":"user","content":"hi"}]}"#;
const RESPONSES: &str = r#"{"model":"tiny","input":"hi"}"#;

fn streamed(body: &str) -> String {
    body.replacen('{', "{\"stream\":true,", 1)
}

async fn chat_stream(mut seen: Seen, reason: &str) {
    seen.begin("text/event-stream").await;
    for event in [
        r#"{"id":"chatcmpl-7","choices":[{"index":0,"delta":{"role":"assistant","content":null},"finish_reason":null}]}"#.to_owned(),
        r#"{"id":"chatcmpl-7","choices":[{"index":0,"delta":{"content":" t1"},"finish_reason":null}]}"#.to_owned(),
        r#"{"id":"chatcmpl-7","choices":[{"index":0,"delta":{"content":" t2"},"finish_reason":null}]}"#.to_owned(),
        format!(r#"{{"id":"chatcmpl-7","choices":[{{"index":0,"delta":{{}},"finish_reason":"{reason}"}}]}}"#),
        r#"{"id":"chatcmpl-7","choices":[],"usage":{"prompt_tokens":23,"completion_tokens":2}}"#.to_owned(),
        "[DONE]".to_owned(),
    ] {
        seen.chunk(&format!("data: {event}\n\n")).await;
    }
    seen.end().await;
}

const COMPLETION: &str = r#"{"id":"chatcmpl-7","choices":[{"index":0,"message":{"role":"assistant","content":" t1 t2"},"finish_reason":"stop"}],"usage":{"prompt_tokens":23,"completion_tokens":2}}"#;

#[tokio::test]
async fn what_a_backend_speaks_is_passed_as_it_is() {
    let backend = Backend::start().await;
    let node = Node::sharing(vec![(ollama("tiny"), &backend)]);
    for (path, body, reply) in [
        (
            "/v1/messages",
            MESSAGES,
            r#"{"type":"message","content":[],"usage":{"input_tokens":1,"cache_read_input_tokens":22,"output_tokens":2}}"#,
        ),
        (
            "/v1/responses",
            RESPONSES,
            r#"{"object":"response","output":[],"usage":{"input_tokens":23,"output_tokens":2}}"#,
        ),
    ] {
        let client = node.door(2, &post(path, body)).await;
        let seen = backend.accept().await;
        assert!(
            seen.head.starts_with(&format!("POST {path} ")),
            "{}",
            seen.head
        );
        seen.reply("200 OK", "application/json", reply).await;
        assert_eq!(client.reply().await.body, reply);
    }
    let mut node = node;
    for _ in 0..2 {
        let usage = soon(node.usage.recv()).await.unwrap();
        assert_eq!(
            (usage.prompt_tokens, usage.output_tokens),
            (Some(23), Some(2)),
            "{:?}: what was in a cache is counted too",
            usage.endpoint
        );
    }
}

#[tokio::test]
async fn an_openai_server_speaks_anthropic() {
    let backend = Backend::start().await;
    let mut node = Node::sharing(vec![(plain("tiny"), &backend)]);
    let client = node.door(2, &post("/v1/messages", MESSAGES)).await;
    let seen = backend.accept().await;
    assert!(
        seen.head.starts_with("POST /v1/chat/completions "),
        "{}",
        seen.head
    );
    assert_eq!(
        seen.body,
        json!({ "model": "tiny", "max_tokens": 9, "stream": false, "messages": [{ "role": "user", "content": "hi" }] })
    );
    seen.reply("200 OK", "application/json", COMPLETION).await;
    let reply = client.reply().await.json();
    assert_eq!(
        reply["content"],
        json!([{ "type": "text", "text": " t1 t2" }])
    );
    assert_eq!(
        reply["usage"],
        json!({ "input_tokens": 23, "output_tokens": 2 })
    );

    let client = node
        .door(2, &post("/v1/messages", &streamed(MESSAGES)))
        .await;
    chat_stream(backend.accept().await, "stop").await;
    let reply = client.reply().await;
    assert!(reply.is_whole && reply.head.contains("content-type: text/event-stream"));
    assert!(
        reply.body.starts_with("event: message_start\ndata: "),
        "{}",
        reply.body
    );
    assert!(
        reply
            .body
            .ends_with("event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n")
    );
    assert_eq!(reply.body.matches("text_delta").count(), 2);
    for _ in 0..2 {
        let usage = soon(node.usage.recv()).await.unwrap();
        assert_eq!(
            (usage.prompt_tokens, usage.output_tokens, usage.outcome),
            (Some(23), Some(2), Outcome::Ok)
        );
    }
}

#[tokio::test]
async fn a_server_without_responses_answers_them() {
    let backend = Backend::start().await;
    let old = Offer {
        speaks: vec![Protocol::Ollama, Protocol::OpenAi],
        ..ollama("tiny")
    };
    let node = Node::sharing(vec![(old, &backend)]);
    let client = node.door(2, &post("/v1/responses", RESPONSES)).await;
    let seen = backend.accept().await;
    assert!(
        seen.head.starts_with("POST /v1/chat/completions "),
        "{}",
        seen.head
    );
    assert_eq!(
        seen.body["messages"],
        json!([{ "role": "user", "content": "hi" }])
    );
    assert_eq!(seen.body["max_tokens"], 32_768, "Ollama needs a bound");
    seen.reply("200 OK", "application/json", COMPLETION).await;
    let reply = client.reply().await.json();
    assert_eq!(reply["output"][0]["content"][0]["text"], " t1 t2");

    let client = node
        .door(2, &post("/v1/responses", &streamed(RESPONSES)))
        .await;
    chat_stream(backend.accept().await, "length").await;
    let reply = client.reply().await;
    assert!(reply.is_whole, "{}", reply.body);
    assert!(
        reply.body.contains("event: response.incomplete\n"),
        "{}",
        reply.body
    );
}

#[tokio::test]
async fn a_translated_stream_that_breaks_says_so() {
    for (path, body, mark) in [
        ("/v1/messages", MESSAGES, "event: error\ndata: "),
        ("/v1/responses", RESPONSES, "data: {\"error\":"),
    ] {
        let backend = Backend::start().await;
        let node = Node::sharing(vec![(plain("tiny"), &backend)]);
        let client = node.door(2, &post(path, &streamed(body))).await;
        let mut seen = backend.accept().await;
        seen.begin("text/event-stream").await;
        seen.chunk("data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\" t1\"}}]}\n\n")
            .await;
        drop(seen);
        let reply = client.reply().await;
        assert!(!reply.is_whole, "{path}: a clean end");
        assert!(
            reply.body.contains(" t1") && reply.body.contains(mark),
            "{}",
            reply.body
        );
    }
}

#[tokio::test]
async fn errors_of_a_backend_come_in_the_words_of_the_caller() {
    let openai = r#"{"error":{"code":400,"message":"too long","type":"invalid_request_error"}}"#;
    let anthropic =
        r#"{"type":"error","error":{"type":"invalid_request_error","message":"too long"}}"#;
    for (offer, path, body, told, want) in [
        (ollama("tiny"), "/v1/messages", MESSAGES, openai, anthropic),
        (plain("tiny"), "/v1/messages", MESSAGES, openai, anthropic),
        (
            ollama("tiny"),
            "/v1/messages",
            MESSAGES,
            anthropic,
            anthropic,
        ),
        (plain("tiny"), "/v1/responses", RESPONSES, openai, openai),
        (ollama("tiny"), "/v1/responses", RESPONSES, openai, openai),
        (
            plain("tiny"),
            "/api/chat",
            r#"{"model":"tiny","messages":[{"role":"user","content":"hi"}]}"#,
            openai,
            r#"{"error":"too long"}"#,
        ),
    ] {
        let backend = Backend::start().await;
        let node = Node::sharing(vec![(offer, &backend)]);
        let client = node.door(2, &post(path, body)).await;
        let seen = backend.accept().await;
        seen.reply("400 Bad Request", "application/json", told)
            .await;
        let reply = client.reply().await;
        assert_eq!(reply.status, 400, "{path}");
        let want: Value = serde_json::from_str(want).unwrap();
        assert_eq!(reply.json(), want, "{path}");
    }
}

#[tokio::test]
async fn what_cannot_be_translated_never_reaches_the_backend() {
    let backend = Backend::start().await;
    let node = Node::sharing(vec![(plain("tiny"), &backend)]);
    for (path, body) in [
        (
            "/v1/messages",
            r#"{"model":"tiny","max_tokens":9,"messages":[{"role":"user","content":[{"type":"document","source":{"type":"base64","data":""}}]}]}"#,
        ),
        (
            "/v1/responses",
            r#"{"model":"tiny","input":[{"type":"item_reference","id":"x"}]}"#,
        ),
        (
            "/v1/responses",
            r#"{"model":"tiny","input":"x","previous_response_id":"resp_1"}"#,
        ),
    ] {
        let reply = node.door(2, &post(path, body)).await.reply().await;
        assert_eq!(reply.status, 400, "{}", reply.body);
    }
    assert!(backend.is_untouched().await);
}

#[tokio::test]
async fn a_host_tells_how_it_stands_to_those_who_may_use_it() {
    let backend = Backend::start().await;
    let node = Node::sharing(vec![(ollama("tiny"), &backend)]);
    let live = node
        .door(2, &post("/proxima/live", "{}"))
        .await
        .reply()
        .await
        .json();
    assert_eq!(
        live,
        json!({ "n_slots": 2, "n_active": 0, "n_queued": 0, "n_output_tokens": 0, "loaded": ["tiny"], "gpus": [] })
    );
    let mine = ShareConfig {
        audience: mesh_proto::share::Audience::Mine,
        ..on()
    };
    let node = Node::start(
        vec![peer(2, Vec::new())],
        mine,
        vec![(ollama("tiny"), &backend)],
        None,
    );
    let refused = node
        .door(2, &post("/proxima/live", "{}"))
        .await
        .reply()
        .await;
    assert_eq!(refused.status, 403);
    let unknown = node.guest(&post("/proxima/live", "{}")).await.reply().await;
    assert_eq!(unknown.status, 404);
}
