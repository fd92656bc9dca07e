//! A connection as its client sees it: bodies that are asked for, requests behind one another, and clients of older versions.

use super::*;

/// A request of which nothing but the head is sent.
fn expecting(path: &str, body: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nHost: 10.1.2.3:11434\r\nConnection: close\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n",
        body.len()
    )
}

#[tokio::test]
async fn a_body_is_asked_for_where_it_is_wanted() {
    let backend = Backend::start().await;
    let node = Node::sharing(vec![(ollama("tiny"), &backend)]);
    let body = r#"{"model":"tiny","prompt":"hi","stream":false}"#;

    let mut client = node.door(2, &expecting("/api/generate", body)).await;
    client.until("HTTP/1.1 100 Continue\r\n\r\n").await;
    assert!(
        backend.is_untouched().await,
        "what has not come is passed to nobody"
    );
    client.stream.write_all(body.as_bytes()).await.unwrap();
    let seen = backend.accept().await;
    assert!(!seen.head.to_ascii_lowercase().contains("expect:"));
    seen.reply("200 OK", "application/json", r#"{"response":"ho"}"#)
        .await;
    client.until("HTTP/1.1 200 OK\r\n").await;
    client.until("ho").await;

    // What is refused by its head alone asks for nothing.
    let reply = node
        .door(2, &expecting("/api/create", body))
        .await
        .reply()
        .await;
    assert_eq!(reply.status, 403, "{}", reply.head);
}

#[tokio::test]
async fn requests_behind_one_another_are_answered_in_their_order() {
    let backend = Backend::start().await;
    let node = Node::sharing(vec![(ollama("tiny"), &backend)]);
    let body = r#"{"model":"tiny","prompt":"hi","stream":false}"#;
    let kept = |request: String| request.replace("Connection: close\r\n", "");
    let requests = [
        kept(get("/api/version")),
        kept(post("/api/generate", body)),
        get("/api/tags"),
    ];
    let mut client = node.door(2, &requests.concat()).await;
    let seen = backend.accept().await;
    // The next one is not answered before this one is.
    client.until("\"version\"").await;
    seen.reply("200 OK", "application/json", r#"{"response":"ho"}"#)
        .await;
    let mut text = Vec::new();
    soon(client.stream.read_to_end(&mut text)).await.unwrap();
    let text = String::from_utf8(text).unwrap();
    assert_eq!(text.matches("HTTP/1.1 200 OK\r\n").count(), 2, "{text}");
    let at = |what: &str| {
        text.find(what)
            .unwrap_or_else(|| panic!("no {what}: {text}"))
    };
    assert!(at("\"ho\"") < at("\"models\""), "{text}");
}

#[tokio::test]
async fn a_client_of_the_older_version_keeps_its_connection_when_it_asks() {
    let backend = Backend::start().await;
    let node = Node::sharing(vec![(ollama("tiny"), &backend)]);
    let old = |connection: &str| {
        format!("GET /api/version HTTP/1.0\r\nHost: 10.1.2.3:11434\r\n{connection}\r\n")
    };
    let mut client = node.door(2, &old("Connection: keep-alive\r\n")).await;
    client.until("connection: keep-alive\r\n").await;
    client.until("\"version\"").await;
    client.stream.write_all(old("").as_bytes()).await.unwrap();
    let reply = client.reply().await;
    assert!(reply.head.starts_with("http/1.0 200"), "{}", reply.head);
    assert_eq!(reply.body.matches("HTTP/1.0 200 OK").count(), 1);
    assert_eq!(reply.body.matches("\"version\"").count(), 2);
    assert!(reply.body.contains("connection: close"), "{}", reply.body);
}
