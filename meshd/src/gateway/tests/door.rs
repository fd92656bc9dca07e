//! The host side: who comes in, what reaches the backend, what comes back.

use mesh_proto::share::Audience;
use mesh_proto::usage::Outcome;
use serde_json::json;

use super::*;

const ASK: &str = r#"{"model":"tiny","prompt":"hi"}"#;

#[tokio::test]
async fn a_stream_is_passed_line_by_line_and_counted() {
    let backend = Backend::start().await;
    let mut node = Node::sharing(vec![(ollama("tiny:latest"), &backend)]);
    let body = r#"{"model":"TINY","prompt":"hi","keep_alive":-1,"options":{"num_ctx":9,"seed":1}}"#;
    let ask = format!(
        "POST /api/generate?x=1 HTTP/1.1\r\nHost: tiny.proxima\r\nOrigin: http://ollama.proxima\r\n\
        Authorization: Bearer x\r\nCookie: a=b\r\nX-Forwarded-For: 1.2.3.4\r\nConnection: close\r\n\
        Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut client = node.door(2, &ask).await;
    let mut seen = backend.accept().await;
    let want = json!({
        "model": "tiny:latest", "prompt": "hi", "stream": true, "options": { "seed": 1, "num_predict": 32768 }
    });
    assert_eq!(seen.body, want);
    let head = seen.head.to_ascii_lowercase();
    assert!(head.starts_with("post /api/generate http/1.1"), "{head}");
    assert!(head.contains(&format!("host: {}", backend.addr)), "{head}");
    for unwanted in [
        "origin",
        "authorization",
        "cookie",
        "x-forwarded-for",
        "expect",
        "proxima",
    ] {
        assert!(!head.contains(unwanted), "{unwanted} in {head}");
    }
    seen.begin("application/x-ndjson").await;
    seen.chunk("{\"model\":\"tiny:latest\",\"response\":\" t1\",\"done\":false}\n")
        .await;
    client.until("t1").await;
    let last = "{\"model\":\"tiny:latest\",\"response\":\"\",\"done\":true,\"done_reason\":\"stop\",\
        \"context\":[259,318],\"prompt_eval_count\":23,\"eval_count\":513}\n";
    seen.chunk(last).await;
    seen.end().await;
    let reply = client.reply().await;
    assert!(reply.is_whole);
    assert_eq!(reply.lines().len(), 2);
    assert!(reply.head.contains("content-type: application/x-ndjson"));
    assert!(reply.head.contains("x-proxima-host: own"), "{}", reply.head);
    let usage = soon(node.usage.recv()).await.unwrap();
    assert_eq!(
        (usage.prompt_tokens, usage.output_tokens),
        (Some(23), Some(513))
    );
    assert_eq!(usage.outcome, Outcome::Ok);
    assert_eq!(usage.model, "tiny:latest");
}

#[tokio::test]
async fn a_usage_event_is_asked_for_and_kept_from_those_who_did_not_ask() {
    let backend = Backend::start().await;
    let mut node = Node::sharing(vec![(ollama("tiny"), &backend)]);
    for (options, is_kept) in [
        ("", false),
        (r#","stream_options":{"include_usage":true}"#, true),
    ] {
        let ask = format!(
            r#"{{"model":"tiny","stream":true,"messages":[{{"role":"user","content":"hi"}}]{options}}}"#
        );
        let client = node.door(2, &post("/v1/chat/completions", &ask)).await;
        let mut seen = backend.accept().await;
        assert_eq!(
            seen.body["stream_options"],
            json!({ "include_usage": true })
        );
        seen.begin("text/event-stream").await;
        seen.chunk("data: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\" t1\"}}]}\n\n").await;
        seen.chunk(
            "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n\
             data: {\"choices\":[],\"usage\":{\"prompt_tokens\":23,\"completion_tokens\":3,\"total_tokens\":26}}\n\n\
             data: [DONE]\n\n",
        )
        .await;
        seen.end().await;
        let reply = client.reply().await;
        assert!(reply.is_whole);
        assert_eq!(reply.body.contains("\"usage\""), is_kept, "{}", reply.body);
        assert!(reply.body.ends_with("data: [DONE]\n\n"), "{}", reply.body);
        assert!(!reply.body.contains("\n\n\n"), "{}", reply.body);
        let usage = soon(node.usage.recv()).await.unwrap();
        assert_eq!(
            (usage.prompt_tokens, usage.output_tokens),
            (Some(23), Some(3))
        );
    }
}

#[tokio::test]
async fn anthropic_streams_are_passed_and_counted() {
    let backend = Backend::start().await;
    let mut node = Node::sharing(vec![(ollama("tiny"), &backend)]);
    let ask = r#"{"model":"tiny","max_tokens":9,"stream":true,"messages":[{"role":"user","content":"hi"}]}"#;
    let client = node.door(2, &post("/v1/messages", ask)).await;
    let mut seen = backend.accept().await;
    let whole = "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":1,\"output_tokens\":0}}}\n\n\
        event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{},\"usage\":{\"input_tokens\":22,\"output_tokens\":2}}\n\n\
        event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n";
    seen.begin("text/event-stream").await;
    seen.chunk(whole).await;
    seen.end().await;
    let reply = client.reply().await;
    assert!(reply.is_whole);
    assert_eq!(reply.body, whole);
    let usage = soon(node.usage.recv()).await.unwrap();
    assert_eq!(
        (usage.prompt_tokens, usage.output_tokens),
        (Some(22), Some(2))
    );
}

#[tokio::test]
async fn a_broken_stream_says_so_and_never_ends_cleanly() {
    let backend = Backend::start().await;
    let mut node = Node::sharing(vec![(ollama("tiny"), &backend)]);
    // The socket dies in the middle.
    let client = node.door(2, &post("/api/generate", ASK)).await;
    let mut seen = backend.accept().await;
    seen.begin("application/x-ndjson").await;
    seen.chunk("{\"response\":\" t1\",\"done\":false}\n").await;
    drop(seen);
    let reply = client.reply().await;
    assert!(!reply.is_whole);
    assert_eq!(reply.lines().len(), 2, "{}", reply.body);
    assert!(reply.lines()[1]["error"].is_string());
    let usage = soon(node.usage.recv()).await.unwrap();
    assert_eq!(usage.outcome, Outcome::HostError);
    // Ollama's child dies: its own error line is passed on, and no other is added.
    let client = node.door(2, &post("/api/generate", ASK)).await;
    let mut seen = backend.accept().await;
    seen.begin("application/x-ndjson").await;
    let error =
        "{\"error\":\"an error was encountered while running the model: unexpected EOF\"}\n";
    seen.chunk(error).await;
    seen.end().await;
    drop(seen);
    let reply = client.reply().await;
    assert!(!reply.is_whole);
    assert_eq!(reply.body, error);
    // The same on OpenAI's side: a clean end of body without [DONE].
    let ask = r#"{"model":"tiny","stream":true,"messages":[]}"#;
    let client = node.door(2, &post("/v1/chat/completions", ask)).await;
    let mut seen = backend.accept().await;
    seen.begin("text/event-stream").await;
    seen.chunk("data: {\"model\":\"\",\"choices\":[{\"index\":0,\"delta\":{}}]}\n\n")
        .await;
    seen.end().await;
    let reply = client.reply().await;
    assert!(!reply.is_whole);
    assert!(reply.body.contains("data: {\"error\":{"), "{}", reply.body);
}

#[tokio::test]
async fn errors_of_the_backend_are_passed_on() {
    let backend = Backend::start().await;
    let node = Node::sharing(vec![(ollama("tiny"), &backend)]);
    let client = node.door(2, &post("/api/generate", ASK)).await;
    let body = r#"{"error":"server busy, please try again.  maximum pending requests exceeded"}"#;
    backend
        .accept()
        .await
        .reply("503 Service Unavailable", "application/json", body)
        .await;
    let reply = client.reply().await;
    assert_eq!((reply.status, reply.body.as_str()), (503, body));
    assert!(
        !reply.head.contains("server:") && !reply.head.contains("set-cookie"),
        "{}",
        reply.head
    );
    let port = backend.addr.port();
    drop(backend);
    let reply = node
        .door(
            2,
            &post("/v1/messages", r#"{"model":"tiny","messages":[]}"#),
        )
        .await
        .reply()
        .await;
    assert_eq!(reply.status, 503);
    assert_eq!(reply.json()["type"], "error");
    assert!(!reply.body.contains(&port.to_string()));
}

#[tokio::test]
async fn only_the_audience_comes_in() {
    let backend = Backend::start().await;
    let node = Node::sharing(vec![(ollama("tiny"), &backend)]);
    let mut cases = Vec::new();
    for (audience, allows_2) in [
        (Audience::Everyone, true),
        (Audience::Mine, false),
        (Audience::Users(vec!["user2".parse().unwrap()]), true),
        (Audience::Users(vec!["user3".parse().unwrap()]), false),
    ] {
        cases.push((ShareConfig { audience, ..on() }, allows_2));
    }
    cases.push((ShareConfig::default(), false));
    for (config, allows_2) in cases {
        node.share.send_modify(|status| {
            *status = Arc::new(InventoryStatus {
                config: config.clone(),
                ..InventoryStatus::clone(status)
            });
        });
        let status = node.door(2, &get("/api/tags")).await.reply().await.status;
        assert_eq!(status, if allows_2 { 200 } else { 403 }, "{config:?}");
        let own = node.door(1, &get("/api/tags")).await.reply().await.status;
        assert_eq!(own == 200, config.is_on);
        let stranger = node.door(9, &get("/")).await.reply().await.status;
        assert_eq!(stranger, 403);
    }
    assert!(backend.is_untouched().await);
}

#[tokio::test]
async fn nothing_but_shared_models_reaches_the_backend() {
    let backend = Backend::start().await;
    let node = Node::sharing(vec![(ollama("tiny:latest"), &backend)]);
    for path in [
        "/api/generate",
        "/api/chat",
        "/api/embed",
        "/api/show",
        "/v1/chat/completions",
        "/v1/messages",
        "/v1/responses",
    ] {
        for body in [
            r#"{"model":"other"}"#,
            r#"{"model":"tiny","Model":"other"}"#,
            r#"{"model":"tiny","model":"other"}"#,
            r#"{"MODEL":"other"}"#,
            r#"{"model":"tiny","ſtream":true,"modeL":"x"}"#,
            r#"{"model":"tiny:local"}"#,
            r#"{"model":"tiny@sha256:00"}"#,
            r#"{"model":"gpt-oss:120b-cloud"}"#,
            r#"{"model":"tiny:cloud"}"#,
            r#"{"model":"Tiny-CLOUD "}"#,
            r#"{"name":"other"}"#,
            r#"{"model":"","name":"other"}"#,
            r#"{"model":["tiny"]}"#,
            r#"{"model":"tiny"} {"model":"other"}"#,
            r#"{"model":"other/../tiny"}"#,
            "",
            "[]",
        ] {
            let reply = node.door(2, &post(path, body)).await.reply().await;
            assert!(
                (400..500).contains(&reply.status),
                "{path} {body} {}",
                reply.status
            );
            assert!(!reply.json()["error"].is_null(), "{}", reply.body);
        }
    }
    for encoding in ["zstd", "gzip", "Zstd", "identity, zstd"] {
        let ask = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Encoding: {encoding}\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{{}}"
        );
        assert_eq!(
            node.door(2, &ask).await.reply().await.status,
            415,
            "{encoding}"
        );
    }
    assert!(backend.is_untouched().await);
}

#[tokio::test]
async fn lists_show_shared_models_alone_and_nothing_of_the_owner() {
    let backend = Backend::start().await;
    let node = Node::sharing(vec![(ollama("tiny:latest"), &backend)]);
    let tags = node.door(2, &get("/api/tags")).await.reply().await.json();
    assert_eq!(tags["models"][0]["name"], "tiny:latest");
    assert_eq!(tags["models"].as_array().unwrap().len(), 1);
    let ps = node.door(2, &get("/api/ps")).await.reply().await.json();
    assert_eq!(ps["models"][0]["context_length"], 4_096);
    let v1 = node.door(2, &get("/v1/models")).await.reply().await.json();
    assert_eq!(v1["data"][0]["id"], "tiny:latest");
    assert_eq!(
        node.door(2, &get("/v1/models/tiny"))
            .await
            .reply()
            .await
            .status,
        200
    );
    assert_eq!(
        node.door(2, &get("/v1/models/other"))
            .await
            .reply()
            .await
            .status,
        404
    );
    let status = node.door(2, &get("/api/status")).await.reply().await.json();
    assert_eq!(status["cloud"]["disabled"], true);
    let root = node
        .door(
            2,
            "HEAD / HTTP/1.1\r\nHost: tiny.proxima:11434\r\nConnection: close\r\n\r\n",
        )
        .await;
    let root = root.reply().await;
    assert_eq!(root.status, 200);
    assert!(root.head.contains("content-length: 17"), "{}", root.head);
    assert!(backend.is_untouched().await);

    let ask =
        r#"{"model":"","system":"","template":"","verbose":true,"options":null,"name":"tiny"}"#;
    let client = node.door(2, &post("/api/show", ask)).await;
    let seen = backend.accept().await;
    assert_eq!(
        seen.body,
        json!({ "model": "tiny:latest", "verbose": false })
    );
    let told = r#"{"modelfile":"FROM /home/anna/blobs/sha256-1","system":"secret","messages":[],"tensors":[1],
        "template":"{{.Prompt}}","details":{"family":"llama","parent_model":"/home/anna/x.gguf"},"capabilities":["completion"]}"#;
    seen.reply("200 OK", "application/json", told).await;
    let reply = client.reply().await;
    assert!(
        !reply.body.contains("anna")
            && !reply.body.contains("secret")
            && !reply.body.contains("tensors"),
        "{}",
        reply.body
    );
    assert_eq!(reply.json()["details"]["family"], "llama");
}

#[tokio::test]
async fn a_host_name_fills_in_the_model() {
    let backend = Backend::start().await;
    let node = Node::sharing(vec![
        (ollama("llama3.2:1b"), &backend),
        (ollama("other"), &backend),
    ]);
    for (host, body) in [
        (
            "llama3.2.proxima:11434",
            r#"{"prompt":"hi","stream":false}"#,
        ),
        (
            "llama3.2.proxima",
            r#"{"model":"llama3.2","prompt":"hi","stream":false}"#,
        ),
        (
            "llama3-2-1b.proxima",
            r#"{"model":"","prompt":"hi","stream":false}"#,
        ),
        (
            "llama3.2.own.node.proxima",
            r#"{"prompt":"hi","stream":false}"#,
        ),
        (
            "own.node.proxima",
            r#"{"model":"LLAMA3.2:1B","prompt":"hi","stream":false}"#,
        ),
    ] {
        let client = node.door(2, &post_to(host, "/api/generate", body)).await;
        let seen = backend.accept().await;
        assert_eq!(seen.body["model"], "llama3.2:1b", "{host} {body}");
        seen.reply("200 OK", "application/json", "{}").await;
        assert_eq!(client.reply().await.status, 200);
    }
    for host in ["10.1.1.1", "own.node.proxima"] {
        let reply = node
            .door(2, &post_to(host, "/api/generate", "{\"prompt\":\"hi\"}"))
            .await
            .reply()
            .await;
        assert_eq!(reply.status, 400, "{host}");
    }
}

#[tokio::test]
async fn pages_of_other_sites_are_refused() {
    let backend = Backend::start().await;
    let node = Node::sharing(vec![(ollama("tiny"), &backend)]);
    for (headers, want) in [
        ("Host: ollama.proxima\r\nOrigin: https://evil.example", 403),
        ("Host: ollama.proxima\r\nOrigin: null", 403),
        ("Host: evil.example", 403),
        ("Host: evilproxima.example.com", 403),
        (
            "Host: tiny.proxima:11434\r\nOrigin: http://tiny.proxima",
            200,
        ),
        ("Host: [fd00::1]:11434", 200),
        (
            "Host: 10.77.0.9:11434\r\nOrigin: http://localhost:3000",
            200,
        ),
        ("Host: gpu1", 200),
    ] {
        let ask = format!("GET /api/tags HTTP/1.1\r\n{headers}\r\nConnection: close\r\n\r\n");
        assert_eq!(
            node.door(2, &ask).await.reply().await.status,
            want,
            "{headers}"
        );
    }
}

#[tokio::test]
async fn the_queue_has_an_end() {
    let backend = Backend::start().await;
    let config = ShareConfig { n_slots: 1, ..on() };
    let peers = vec![
        peer(2, Vec::new()),
        peer(3, Vec::new()),
        peer(4, Vec::new()),
    ];
    let node = Node::start(peers, config, vec![(ollama("tiny"), &backend)], None);
    let ask = post("/api/generate", ASK);
    let mut held = vec![node.door(2, &ask).await];
    let _working = backend.accept().await;
    for from in [2, 3] {
        for _ in 0..32 {
            held.push(node.door(from, &ask).await);
        }
    }
    soon(async {
        while node.gateway.load() != (1, 64) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let reply = node.door(4, &ask).await.reply().await;
    assert_eq!(reply.status, 503);
    assert!(reply.head.contains("retry-after: 60"), "{}", reply.head);
    assert!(backend.is_untouched().await);
}

#[tokio::test]
async fn a_body_beyond_the_bound_is_refused() {
    let backend = Backend::start().await;
    let node = Node::sharing(vec![(ollama("tiny"), &backend)]);
    let ask = "POST /api/generate HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 99999999\r\n\r\n";
    assert_eq!(node.door(2, ask).await.reply().await.status, 413);
    assert!(backend.is_untouched().await);
}

#[tokio::test]
async fn an_openai_server_speaks_ollama() {
    let backend = Backend::start().await;
    let mut node = Node::sharing(vec![(offer("tiny", BackendApi::OpenAi), &backend)]);
    let ask = r#"{"model":"tiny","messages":[{"role":"user","content":"hi"}],"options":{"num_predict":2,"temperature":0}}"#;
    let client = node.door(2, &post("/api/chat", ask)).await;
    let mut seen = backend.accept().await;
    assert!(
        seen.head.starts_with("POST /v1/chat/completions "),
        "{}",
        seen.head
    );
    assert_eq!(
        seen.body,
        json!({
            "model": "tiny", "stream": true, "stream_options": { "include_usage": true }, "max_tokens": 2, "temperature": 0,
            "messages": [{ "role": "user", "content": "hi" }]
        })
    );
    seen.begin("text/event-stream").await;
    for event in [
        r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":null},"finish_reason":null}]}"#,
        r#"{"choices":[{"index":0,"delta":{"content":" t1"},"finish_reason":null}]}"#,
        r#"{"choices":[{"index":0,"delta":{"content":" t2"},"finish_reason":null}]}"#,
        r#"{"choices":[{"index":0,"delta":{},"finish_reason":"length"}]}"#,
        r#"{"choices":[],"usage":{"prompt_tokens":23,"completion_tokens":2},"timings":{"prompt_ms":1.5,"predicted_ms":2.0}}"#,
        "[DONE]",
    ] {
        seen.chunk(&format!("data: {event}\n\n")).await;
    }
    seen.end().await;
    drop(seen);
    let reply = client.reply().await;
    assert!(reply.is_whole && reply.head.contains("application/x-ndjson"));
    let lines = reply.lines();
    assert_eq!(lines.len(), 3, "{}", reply.body);
    assert_eq!(
        lines[0]["message"],
        json!({ "role": "assistant", "content": " t1" })
    );
    let last = &lines[2];
    assert_eq!(last["done_reason"], "length");
    assert_eq!(
        (&last["prompt_eval_count"], &last["eval_count"]),
        (&json!(23), &json!(2))
    );
    assert_eq!(
        (&last["prompt_eval_duration"], &last["eval_duration"]),
        (&json!(1_500_000), &json!(2_000_000))
    );
    assert_eq!(
        soon(node.usage.recv()).await.unwrap().output_tokens,
        Some(2)
    );

    let reply = node
        .door(2, &post("/api/generate", r#"{"model":"tiny","prompt":""}"#))
        .await
        .reply()
        .await;
    assert_eq!(reply.json()["done_reason"], "load");
    let tags = node.door(2, &get("/api/tags")).await.reply().await.json();
    assert_eq!(tags["models"][0]["digest"].as_str().unwrap().len(), 64);
    let show = node
        .door(2, &post("/api/show", r#"{"name":"tiny"}"#))
        .await
        .reply()
        .await;
    assert_eq!(show.json()["capabilities"], json!(["completion"]));
    assert!(backend.is_untouched().await);

    let client = node
        .door(
            2,
            &post(
                "/api/generate",
                r#"{"model":"tiny","prompt":"hi","stream":false}"#,
            ),
        )
        .await;
    let seen = backend.accept().await;
    seen.reply(
        "400 Bad Request",
        "application/json",
        r#"{"error":{"code":400,"message":"too long","type":"exceed_context_size_error"}}"#,
    )
    .await;
    let reply = client.reply().await;
    assert_eq!(
        (reply.status, reply.json()),
        (400, json!({ "error": "too long" }))
    );
}

#[tokio::test]
async fn a_tagged_guest_has_no_rights_of_its_user() {
    let backend = Backend::start().await;
    let mut tagged = peer(2, Vec::new());
    tagged.1.user = UserId(1);
    tagged.1.tags = vec!["tag:ci".parse().unwrap()];
    for (audience, want) in [
        (Audience::Everyone, 200),
        (Audience::Mine, 403),
        (Audience::Users(vec!["user2".parse().unwrap()]), 403),
    ] {
        let config = ShareConfig { audience, ..on() };
        let shared = vec![(ollama("tiny"), &backend)];
        let node = Node::start(vec![tagged.clone()], config, shared, None);
        let status = node.door(2, &get("/api/tags")).await.reply().await.status;
        assert_eq!(status, want);
    }
}

#[tokio::test]
async fn a_text_of_untold_length_is_refused_at_the_bound_for_texts() {
    let backend = Backend::start().await;
    let node = Node::sharing(vec![(ollama("tiny"), &backend)]);
    let n = (8 << 20) + 1;
    let ask = "POST /api/generate HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n";
    let endless = format!("{ask}{n:x}\r\n{{\"prompt\":\"{}", "a".repeat(n - 11));
    assert_eq!(node.door(2, &endless).await.reply().await.status, 413);
    assert!(backend.is_untouched().await);
}

#[tokio::test]
async fn callers_that_promise_large_bodies_keep_nobody_out() {
    let backend = Backend::start().await;
    let node = Node::sharing(vec![(ollama("tiny"), &backend)]);
    let mut stuck = Vec::new();
    for _ in 0..10 {
        let ask = "POST /api/generate HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n";
        stuck.push(node.door(2, ask).await);
        let ask = "POST /api/generate HTTP/1.1\r\nHost: a\r\nContent-Length: 33000000\r\n\r\n{";
        stuck.push(node.door(2, ask).await);
    }
    let client = node.door(3, &post("/api/generate", ASK)).await;
    let seen = backend.accept().await;
    seen.reply("200 OK", "application/x-ndjson", "{\"done\":true}\n")
        .await;
    assert_eq!(client.reply().await.status, 200);
}

#[tokio::test]
async fn a_caller_that_fills_its_share_of_memory_keeps_nobody_else_out() {
    let backend = Backend::start().await;
    let node = Node::sharing(vec![(ollama("tiny"), &backend)]);
    // Five bodies that do not end, of which four have room.
    let head =
        "POST /api/generate HTTP/1.1\r\nHost: a\r\nContent-Length: 33000000\r\n\r\n{\"images\"";
    let large = format!("{head}{}", " ".repeat(32_400_000));
    let mut stuck = tokio::task::JoinSet::new();
    for _ in 0..5 {
        let (large, port) = (large.clone(), node.gateway.door_ports().model);
        stuck.spawn(async move {
            let mut client = Client::send(2, port, "").await;
            // The door may answer and close in the middle of it.
            let _ = client.stream.write_all(large.as_bytes()).await;
            let mut reply = [0; 12];
            let _ = client.stream.read_exact(&mut reply).await;
            reply
        });
    }
    let first = soon(stuck.join_next()).await.unwrap().unwrap();
    assert!(first == *b"HTTP/1.1 503" || first == [0; 12], "{first:?}");
    let client = node.door(3, &post("/api/generate", ASK)).await;
    let seen = backend.accept().await;
    seen.reply("200 OK", "application/x-ndjson", "{\"done\":true}\n")
        .await;
    assert_eq!(client.reply().await.status, 200);
}
