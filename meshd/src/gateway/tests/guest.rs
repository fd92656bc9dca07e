//! The guest side: one catalogue, the right host, another one when that fails in time.

use serde_json::json;

use super::*;

const ASK: &str = r#"{"model":"tiny","prompt":"hi"}"#;

/// Hosts at 127.0.0.`n` with one port; the last value is the port.
pub(super) async fn hosts(ns: &[u8]) -> (Vec<Backend>, u16) {
    'tries: for _ in 0..16 {
        let mut hosts = Vec::new();
        let mut port = 0;
        for n in ns {
            let ip = Ipv4Addr::new(127, 0, 0, *n);
            let Ok(listener) = TcpListener::bind((ip, port)).await else {
                continue 'tries;
            };
            let addr = listener.local_addr().unwrap();
            port = addr.port();
            hosts.push(Backend { listener, addr });
        }
        return (hosts, port);
    }
    panic!("no port that is free on all addresses");
}

fn node(peers: Vec<(NodeId, PeerEntry)>, port: u16) -> Node {
    Node::start(peers, ShareConfig::default(), Vec::new(), Some(port))
}

#[tokio::test]
async fn lists_merge_all_hosts() {
    let peers = vec![
        peer(4, vec![ollama("tiny"), ollama("other:1b")]),
        peer(5, vec![ollama("tiny")]),
    ];
    let node = node(peers, 1);
    let tags = node.guest(&get("/api/tags")).await.reply().await.json();
    let names: Vec<&str> = tags["models"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| m["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["other:1b", "tiny:latest"]);
    let v1 = node.guest(&get("/v1/models")).await.reply().await.json();
    assert_eq!(v1["data"].as_array().unwrap().len(), 2);
    let ps = node.guest(&get("/api/ps")).await.reply().await.json();
    assert_eq!(ps["models"].as_array().unwrap().len(), 2);
    let version = node.guest(&get("/api/version")).await.reply().await;
    assert!(version.json()["version"].is_string());
    assert!(version.head.contains("x-proxima-door"));
    // The same text to a peer is refused: this is no door.
    let stranger = Client::send(
        4,
        node.gateway.guest_ports().unwrap().model,
        &get("/api/tags"),
    )
    .await;
    assert_eq!(stranger.reply().await.status, 403);
}

#[tokio::test]
async fn a_request_goes_to_a_host_under_its_exact_name() {
    let (hosts, port) = hosts(&[4]).await;
    let node = node(vec![peer(4, vec![ollama("llama3.2:1b")])], port);
    let ask = r#"{"model":"llama3.2","prompt":"hi","keep_alive":"0s"}"#;
    let client = node.guest(&post("/api/generate", ask)).await;
    let mut seen = hosts[0].accept().await;
    assert_eq!(seen.body["model"], "llama3.2:1b");
    seen.begin("application/x-ndjson").await;
    seen.chunk("{\"response\":\" t1\",\"done\":false}\n").await;
    seen.chunk("{\"response\":\"\",\"done\":true}\n").await;
    seen.end().await;
    let reply = client.reply().await;
    assert!(reply.is_whole);
    assert_eq!(reply.lines().len(), 2);
    assert!(
        reply.head.contains("x-proxima-host: peer4"),
        "{}",
        reply.head
    );
    assert!(
        reply.head.contains("x-proxima-attempts: 1"),
        "{}",
        reply.head
    );
}

#[tokio::test]
async fn another_host_takes_over_before_the_first_byte_only() {
    let (mut hosts, port) = hosts(&[4, 5]).await;
    let node = node(
        vec![peer(4, vec![ollama("tiny")]), peer(5, vec![ollama("tiny")])],
        port,
    );
    // One is busy: whichever was asked first, the other answers.
    let client = node.guest(&post("/api/generate", ASK)).await;
    let (first, second) = tokio::select! {
        seen = hosts[0].accept() => (seen, 1),
        seen = hosts[1].accept() => (seen, 0),
    };
    first
        .reply(
            "503 Service Unavailable",
            "application/json",
            r#"{"error":"busy"}"#,
        )
        .await;
    let seen = hosts[second].accept().await;
    let mut seen = { seen };
    seen.begin("application/x-ndjson").await;
    seen.chunk("{\"response\":\" t1\",\"done\":false}\n").await;
    drop(seen);
    // It dies after its first byte: the caller is told, and nobody else is asked.
    let reply = client.reply().await;
    assert!(!reply.is_whole);
    assert!(
        reply.head.contains("x-proxima-attempts: 2"),
        "{}",
        reply.head
    );
    assert_eq!(reply.lines().len(), 2);
    assert!(
        reply.lines()[1]["error"]
            .as_str()
            .unwrap()
            .contains("incomplete")
    );
    assert!(hosts[0].is_untouched().await && hosts[1].is_untouched().await);
    // One is gone: connections to it are refused, and it is marked down.
    let gone = hosts.remove(0);
    drop(gone);
    let client = node
        .guest(&post("/api/generate", r#"{"model":"tiny","stream":false}"#))
        .await;
    hosts[0]
        .accept()
        .await
        .reply("200 OK", "application/json", "{\"done\":true}")
        .await;
    assert_eq!(client.reply().await.status, 200);
    // Both are gone.
    drop(hosts);
    let reply = node
        .guest(&post(
            "/v1/chat/completions",
            r#"{"model":"tiny","messages":[]}"#,
        ))
        .await
        .reply()
        .await;
    assert_eq!(reply.status, 502);
    assert!(reply.json()["error"]["message"].is_string());
    assert!(node.hosts.is_down(&node_id(4), Instant::now()));
    assert!(node.hosts.is_down(&node_id(5), Instant::now()));
}

#[tokio::test]
async fn a_reply_that_breaks_before_its_first_byte_is_tried_elsewhere() {
    let (hosts, port) = hosts(&[4, 5]).await;
    let node = node(
        vec![peer(4, vec![ollama("tiny")]), peer(5, vec![ollama("tiny")])],
        port,
    );
    let client = node.guest(&post("/api/generate", ASK)).await;
    let (mut first, second) = tokio::select! {
        seen = hosts[0].accept() => (seen, 1),
        seen = hosts[1].accept() => (seen, 0),
    };
    first.begin("application/x-ndjson").await;
    drop(first);
    let mut seen = hosts[second].accept().await;
    seen.begin("application/x-ndjson").await;
    seen.chunk("{\"response\":\"\",\"done\":true}\n").await;
    seen.end().await;
    assert!(client.reply().await.is_whole);
}

#[tokio::test]
async fn unknown_and_ambiguous_names_are_told_with_candidates() {
    let mut twin = ollama("tiny");
    twin.digest = Some(mesh_proto::share::Digest::from_bytes([9; 32]));
    let peers = vec![
        peer(4, vec![ollama("tiny"), ollama("llama3.2:1b")]),
        peer(5, vec![twin]),
    ];
    let node = node(peers, 1);
    let reply = node
        .guest(&post(
            "/api/generate",
            r#"{"model":"lama3.2:1b","prompt":"x"}"#,
        ))
        .await
        .reply()
        .await;
    assert_eq!(reply.status, 404);
    assert!(reply.body.contains("llama3.2:1b"), "{}", reply.body);
    let reply = node.guest(&post("/api/generate", ASK)).await.reply().await;
    assert_eq!(reply.status, 409);
    assert!(
        reply.body.contains("090909090909") && reply.body.contains("peer5"),
        "{}",
        reply.body
    );
    let ask = post("/v1/chat/completions", r#"{"model":"zzzzzzzzzzzz"}"#);
    let reply = node.guest(&ask).await.reply().await;
    assert!(reply.body.contains("llama3.2:1b"), "{}", reply.body);
    let reply = node
        .guest(&post("/api/pull", r#"{"name":"missing"}"#))
        .await
        .reply()
        .await;
    assert_eq!(reply.status, 403);
    assert!(
        reply.json()["error"]
            .as_str()
            .unwrap()
            .contains("llama3.2:1b")
    );
}

#[tokio::test]
async fn own_models_are_served_without_a_detour() {
    let backend = Backend::start().await;
    let node = Node::start(
        vec![peer(4, vec![ollama("other")])],
        on(),
        vec![(ollama("tiny:latest"), &backend)],
        Some(1),
    );
    let tags = node.guest(&get("/api/tags")).await.reply().await.json();
    assert_eq!(tags["models"].as_array().unwrap().len(), 2);
    let ask = post_to(
        "tiny.proxima:11434",
        "/api/chat",
        r#"{"messages":[],"stream":false}"#,
    );
    let client = node.guest(&ask).await;
    let seen = backend.accept().await;
    assert_eq!(
        seen.body,
        json!({ "model": "tiny:latest", "messages": [], "stream": false, "options": { "num_predict": 32768 } })
    );
    seen.reply(
        "200 OK",
        "application/json",
        "{\"done\":true,\"done_reason\":\"load\"}",
    )
    .await;
    let reply = client.reply().await;
    assert_eq!(reply.status, 200);
    assert!(reply.head.contains("x-proxima-host: own"));
}

#[tokio::test]
async fn a_host_cannot_redirect_or_switch_protocols() {
    let (hosts, port) = hosts(&[4]).await;
    let node = node(vec![peer(4, vec![ollama("tiny")])], port);
    for status in ["302 Found", "101 Switching Protocols", "204 No Content"] {
        let client = node.guest(&post("/api/generate", ASK)).await;
        let seen = hosts[0].accept().await;
        seen.reply(status, "application/json", "{}").await;
        assert_eq!(client.reply().await.status, 502, "{status}");
    }
}
