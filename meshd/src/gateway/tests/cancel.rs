//! A caller that goes away stops the work, before and after the first byte, streamed or not, translated or not.

use mesh_proto::usage::Outcome;

use super::*;

async fn cut(api: BackendApi, path: &str, body: &str, kind: &str, first: Option<&str>) {
    let backend = Backend::start().await;
    let mut node = Node::sharing(vec![(offer("tiny", api), &backend)]);
    let mut client = node.door(2, &post(path, body)).await;
    let mut seen = backend.accept().await;
    if let Some(first) = first {
        seen.begin(kind).await;
        seen.chunk(first).await;
        client.until("t1").await;
    }
    assert_eq!(node.gateway.load(), (1, 0));
    drop(client);
    seen.gone().await;
    let usage = soon(node.usage.recv()).await.unwrap();
    assert_eq!(usage.outcome, Outcome::ClientAbort);
    assert_eq!(usage.client.node, node_id(2));
    assert_eq!(node.gateway.load(), (0, 0));
}

const NDJSON: &str = "application/x-ndjson";
const SSE: &str = "text/event-stream";
const LINE: &str = "{\"model\":\"tiny\",\"response\":\" t1\",\"done\":false}\n";
const EVENT: &str = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\" t1\"}}]}\n\n";

#[tokio::test]
async fn a_stream_is_cut_before_its_first_byte() {
    cut(
        BackendApi::Ollama,
        "/api/generate",
        r#"{"model":"tiny","prompt":"hi"}"#,
        NDJSON,
        None,
    )
    .await;
}

#[tokio::test]
async fn a_stream_is_cut_after_its_first_byte() {
    cut(
        BackendApi::Ollama,
        "/api/generate",
        r#"{"model":"tiny","prompt":"hi"}"#,
        NDJSON,
        Some(LINE),
    )
    .await;
}

#[tokio::test]
async fn a_whole_reply_is_cut_before_its_first_byte() {
    let body = r#"{"model":"tiny","prompt":"hi","stream":false}"#;
    cut(BackendApi::Ollama, "/api/generate", body, NDJSON, None).await;
}

#[tokio::test]
async fn a_whole_reply_is_cut_after_its_first_byte() {
    let body = r#"{"model":"tiny","prompt":"hi","stream":false}"#;
    cut(
        BackendApi::Ollama,
        "/api/generate",
        body,
        "application/json",
        Some("{\"response\":\" t1"),
    )
    .await;
}

#[tokio::test]
async fn an_event_stream_is_cut() {
    let body = r#"{"model":"tiny","stream":true,"messages":[{"role":"user","content":"hi"}]}"#;
    cut(
        BackendApi::OpenAi,
        "/v1/chat/completions",
        body,
        SSE,
        Some(EVENT),
    )
    .await;
}

#[tokio::test]
async fn a_translated_stream_is_cut() {
    cut(
        BackendApi::OpenAi,
        "/api/generate",
        r#"{"model":"tiny","prompt":"hi"}"#,
        SSE,
        Some(EVENT),
    )
    .await;
}

#[tokio::test]
async fn a_waiting_request_leaves_the_queue() {
    let backend = Backend::start().await;
    let mut config = on();
    config.n_slots = 1;
    let node = Node::start(
        vec![peer(2, Vec::new())],
        config,
        vec![(ollama("tiny"), &backend)],
        None,
    );
    let ask = post("/api/generate", r#"{"model":"tiny","prompt":"hi"}"#);
    let first = node.door(2, &ask).await;
    let mut working = backend.accept().await;
    let second = node.door(2, &ask).await;
    while node.gateway.load() != (1, 1) {
        tokio::task::yield_now().await;
    }
    drop(second);
    soon(async {
        while node.gateway.load() != (1, 0) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    drop(first);
    working.gone().await;
    assert!(backend.is_untouched().await);
}

#[tokio::test]
async fn a_guest_that_goes_cuts_the_host() {
    let host = Backend::at(Ipv4Addr::new(127, 0, 0, 4), 0).await;
    let node = Node::start(
        vec![peer(4, vec![ollama("tiny")])],
        ShareConfig::default(),
        Vec::new(),
        Some(host.addr.port()),
    );
    let ask = post("/api/generate", r#"{"model":"tiny","prompt":"hi"}"#);
    let waiting = node.guest(&ask).await;
    let mut seen = host.accept().await;
    drop(waiting);
    seen.gone().await;
    let mut streaming = node.guest(&ask).await;
    let mut seen = host.accept().await;
    seen.begin(NDJSON).await;
    seen.chunk(LINE).await;
    streaming.until("t1").await;
    drop(streaming);
    seen.gone().await;
}

#[tokio::test]
async fn a_request_that_waited_while_sharing_was_turned_off_reaches_nothing() {
    let backend = Backend::start().await;
    let config = ShareConfig { n_slots: 1, ..on() };
    let peers = vec![peer(2, Vec::new())];
    let node = Node::start(peers, config, vec![(ollama("tiny"), &backend)], None);
    let ask = post("/api/generate", r#"{"model":"tiny","prompt":"hi"}"#);
    let first = node.door(2, &ask).await;
    let mut working = backend.accept().await;
    let second = node.door(2, &ask).await;
    soon(async {
        while node.gateway.load() != (1, 1) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    node.share
        .send_replace(Arc::new(InventoryStatus::default()));
    drop(first);
    working.gone().await;
    assert_eq!(second.reply().await.status, 503);
    assert!(backend.is_untouched().await);
}

#[tokio::test]
async fn a_gateway_that_ends_cuts_what_is_in_work() {
    let backend = Backend::start().await;
    let node = Node::sharing(vec![(ollama("tiny"), &backend)]);
    let body = r#"{"model":"tiny","prompt":"hi"}"#;
    let mut client = node.door(2, &post("/api/generate", body)).await;
    let mut seen = backend.accept().await;
    drop(node);
    seen.gone().await;
    let mut byte = [0];
    let read = soon(client.stream.read(&mut byte)).await;
    assert!(matches!(read, Ok(0) | Err(_)), "it was answered");
}
