//! What a guest may try and must not get: other calls, other requests in one, other names, more than its share.

use std::time::Instant;

use mesh_proto::door::{DoorPolicy, Limit};
use mesh_proto::share::Audience;
use serde_json::json;

use super::*;

const ASK: &str = r#"{"model":"tiny","prompt":"hi"}"#;
const SMUGGLED: &str =
    "POST /api/pull HTTP/1.1\r\nHost: a\r\nContent-Length: 16\r\n\r\n{\"name\":\"stolen\"}";

/// All calls of Ollama that are not shared, and some of other servers.
const CLOSED: [(&str, &str); 25] = [
    ("POST", "/api/pull"),
    ("POST", "/api/push"),
    ("POST", "/api/create"),
    ("POST", "/api/copy"),
    ("DELETE", "/api/delete"),
    ("POST", "/api/blobs/sha256:00"),
    ("HEAD", "/api/blobs/sha256:00"),
    ("POST", "/api/me"),
    ("POST", "/api/signout"),
    ("DELETE", "/api/user/keys/k"),
    ("POST", "/api/experimental/web_search"),
    ("POST", "/api/experimental/web_fetch"),
    ("POST", "/v1/audio/transcriptions"),
    ("POST", "/v1/messages/count_tokens"),
    ("POST", "/models/load"),
    ("POST", "/tokenize"),
    ("POST", "/slots/0?action=save"),
    ("GET", "/slots"),
    ("GET", "/props"),
    ("GET", "/metrics"),
    ("GET", "/debug/pprof/"),
    ("POST", "/v1/load_lora_adapter"),
    ("POST", "/invocations"),
    ("POST", "/pause"),
    ("TRACE", "/api/tags"),
];

/// Spellings that some server, proxy or framework takes for the path.
fn spellings(path: &str) -> Vec<String> {
    let tail = path.trim_start_matches('/');
    let (head, last) = path.rsplit_once('/').unwrap_or(("", path));
    let encoded = format!(
        "{head}/%{:02x}{}",
        last.bytes().next().unwrap_or(b'x'),
        last.get(1..).unwrap_or("")
    );
    vec![
        path.to_owned(),
        format!("//{tail}"),
        format!("/{tail}/"),
        format!("/./{tail}"),
        format!("/v1/../{tail}"),
        format!("/api/chat/../../{tail}"),
        format!("/api/chat/..%2f..%2f{tail}"),
        format!("/api/chat;/../../{tail}"),
        format!("/{tail}?model=tiny"),
        format!("/{tail}#chat"),
        format!("/{tail}%00"),
        format!("/{tail}%20"),
        format!("/{tail};a=b"),
        encoded,
        path.to_ascii_uppercase(),
        format!("http://127.0.0.1:11434{path}"),
        format!("http://tiny.proxima{path}"),
        path.replace('/', "%2f"),
        path.replace("/api", "\\api"),
    ]
}

#[tokio::test]
async fn what_is_not_shared_reaches_no_backend_however_it_is_written() {
    let backend = Backend::start().await;
    let node = Node::sharing(vec![(ollama("tiny"), &backend)]);
    for (method, path) in CLOSED {
        for spelling in spellings(path) {
            for headers in [
                "",
                "X-HTTP-Method-Override: POST\r\nX-Original-URL: /api/pull\r\nX-Rewrite-URL: /api/pull\r\n",
            ] {
                let ask = format!(
                    "{method} {spelling} HTTP/1.1\r\nHost: tiny.proxima\r\n{headers}Connection: close\r\nContent-Length: {}\r\n\r\n{ASK}",
                    ASK.len()
                );
                let status = node.door(2, &ask).await.reply().await.status;
                assert!(
                    (400..500).contains(&status),
                    "{method} {spelling}: {status}"
                );
            }
        }
    }
    assert!(backend.is_untouched().await);
}

#[tokio::test]
async fn two_requests_in_one_are_never_two() {
    let backend = Backend::start().await;
    let node = Node::sharing(vec![(ollama("tiny"), &backend)]);
    let n = SMUGGLED.len();
    let head = "POST /api/generate HTTP/1.1\r\nHost: a\r\n";
    for (what, rest) in [
        ("two lengths", format!("Content-Length: 0\r\nContent-Length: {n}\r\n\r\n{SMUGGLED}")),
        ("two lengths, the other way", format!("Content-Length: {n}\r\nContent-Length: 0\r\n\r\n{SMUGGLED}")),
        ("a list of lengths", format!("Content-Length: 0, {n}\r\n\r\n{SMUGGLED}")),
        ("a length with a sign", format!("Content-Length: +{n}\r\n\r\n{SMUGGLED}")),
        ("a length below nothing", format!("Content-Length: -1\r\n\r\n{SMUGGLED}")),
        ("a length in hexadecimal", format!("Content-Length: 0x{n:x}\r\n\r\n{SMUGGLED}")),
        ("a length beyond numbers", format!("Content-Length: 99999999999999999999\r\n\r\n{SMUGGLED}")),
        ("a blank before the colon", format!("Content-Length : {n}\r\n\r\n{SMUGGLED}")),
        ("a folded line", format!("X-A: b\r\n Content-Length: {n}\r\n\r\n{SMUGGLED}")),
        ("a length and chunks", format!("Content-Length: {n}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{SMUGGLED}")),
        ("chunks and a length", format!("Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n{SMUGGLED}")),
        ("chunks that are none", format!("Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n{SMUGGLED}")),
        ("chunks and something after", format!("Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n{SMUGGLED}")),
        ("chunks by a tab", format!("Transfer-Encoding:\tchunked\x0b\r\n\r\n0\r\n\r\n{SMUGGLED}")),
        ("a chunk size in another form", format!("Transfer-Encoding: chunked\r\n\r\n0x2\r\n{{}}\r\n0\r\n\r\n{SMUGGLED}")),
        ("a chunk size with a sign", format!("Transfer-Encoding: chunked\r\n\r\n+2\r\n{{}}\r\n0\r\n\r\n{SMUGGLED}")),
        ("a chunk size beyond numbers", format!("Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff2\r\n{{}}\r\n0\r\n\r\n{SMUGGLED}")),
        ("a chunk that is longer than told", format!("Transfer-Encoding: chunked\r\n\r\n1\r\n{{}}\r\n0\r\n\r\n{SMUGGLED}")),
        ("a chunk with a bare line feed", format!("Transfer-Encoding: chunked\r\n\r\n2\n{{}}\n0\n\n{SMUGGLED}")),
        ("a chunk extension with a line in it", format!("Transfer-Encoding: chunked\r\n\r\n2;a=\"\n{{}}\r\n0\r\n\r\n{SMUGGLED}")),
        ("a trailer that is a head", "Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nContent-Length: 9\r\nHost: evil.example\r\n\r\n".to_owned()),
        ("a carriage return in a value", format!("X-A: b\rContent-Length: {n}\r\n\r\n{SMUGGLED}")),
        ("a zero in a value", format!("X-A: b\0\r\nContent-Length: {n}\r\n\r\n{SMUGGLED}")),
        ("another protocol", format!("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\nContent-Length: 0\r\n\r\n{SMUGGLED}")),
    ] {
        let mut client = node.door(2, &format!("{head}{rest}")).await;
        // What is after the request, if anything is taken for one, comes to its end by this.
        let _ = client.stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
        let reply = client.reply().await;
        assert!((400..500).contains(&reply.status), "{what}: {}", reply.status);
        assert!(!reply.body.contains("stolen"), "{what}");
    }
    for (what, ask) in [
        (
            "chunks in HTTP/1.0",
            format!(
                "POST /api/generate HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{SMUGGLED}"
            ),
        ),
        (
            "HTTP/2 at once",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
        ),
        (
            "no version",
            format!("POST /api/generate\r\n\r\n{SMUGGLED}"),
        ),
        (
            "another version",
            format!("POST /api/generate HTTP/1.7\r\nHost: a\r\n\r\n{SMUGGLED}"),
        ),
        (
            "a tunnel",
            "CONNECT 127.0.0.1:11434 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".to_owned(),
        ),
    ] {
        let mut client = node.door(2, &ask).await;
        let mut seen = Vec::new();
        let _ = soon(client.stream.read_to_end(&mut seen)).await;
        let text = String::from_utf8_lossy(&seen);
        assert!(
            text.is_empty() || text.starts_with("HTTP/1.1 4"),
            "{what}: {text}"
        );
    }
    assert!(backend.is_untouched().await);
}

#[tokio::test]
async fn the_body_of_one_call_is_no_other_call() {
    let backend = Backend::start().await;
    let node = Node::sharing(vec![(ollama("tiny"), &backend)]);
    let inner = post("/api/generate", ASK);
    for call in ["GET /api/tags", "POST /api/pull", "GET /nothing", "HEAD /"] {
        let ask = format!(
            "{call} HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{inner}",
            inner.len()
        );
        let mut client = node.door(2, &ask).await;
        let last = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        let _ = client.stream.write_all(last.as_bytes()).await;
        let mut seen = Vec::new();
        let _ = soon(client.stream.read_to_end(&mut seen)).await;
        let text = String::from_utf8_lossy(&seen);
        // The last one is answered where the body was skipped, not where it closed the connection.
        let n_replies = text.matches("HTTP/1.1 ").count();
        assert!((1..=2).contains(&n_replies), "{call}: {text}");
    }
    assert!(backend.is_untouched().await);
}

#[tokio::test]
async fn what_reaches_the_backend_is_written_anew() {
    let backend = Backend::start().await;
    let node = Node::sharing(vec![(ollama("tiny"), &backend)]);
    let chunked = "POST /api/generate HTTP/1.1\r\nHost: tiny.proxima\r\nTransfer-Encoding: chunked\r\nTE: trailers\r\n\
        X-Evil: 1\r\nConnection: close, X-Evil\r\n\r\n\
        10;ext=\"a\"\r\n{\"model\":\"tiny\",\r\n0000e;b\r\n\"prompt\":\"hi\"}\r\n0\r\nX-Trailer: 1\r\n\r\n";
    let client = node.door(2, chunked).await;
    let seen = backend.accept().await;
    let head = seen.head.to_ascii_lowercase();
    for absent in [
        "evil",
        "trailer",
        "chunked",
        "te:",
        "tiny.proxima",
        "127.0.0.2",
    ] {
        assert!(!head.contains(absent), "{absent}: {head}");
    }
    assert_eq!(head.matches("content-length").count(), 1, "{head}");
    assert_eq!(seen.body["prompt"], "hi");
    seen.reply("200 OK", "application/x-ndjson", "{\"done\":true}\n")
        .await;
    assert_eq!(client.reply().await.status, 200);
}

#[tokio::test]
async fn a_name_that_a_caller_gives_itself_is_not_believed() {
    let backend = Backend::start().await;
    let config = ShareConfig {
        audience: Audience::Users(vec!["user2".parse().unwrap()]),
        ..on()
    };
    let peers = vec![peer(2, Vec::new()), peer(3, Vec::new())];
    let node = Node::start(peers, config, vec![(ollama("tiny"), &backend)], None);
    let own = node_id(1);
    for header in [
        "X-Forwarded-For: 127.0.0.2".to_owned(),
        "X-Forwarded-For: 127.0.0.1, 127.0.0.2".to_owned(),
        "Forwarded: for=127.0.0.2;by=127.0.0.1".to_owned(),
        "X-Real-IP: 127.0.0.2".to_owned(),
        "X-Client-IP: 127.0.0.2".to_owned(),
        "True-Client-IP: 127.0.0.2".to_owned(),
        "CF-Connecting-IP: 127.0.0.2".to_owned(),
        "Via: 1.1 127.0.0.2".to_owned(),
        "X-Proxima-Node: peer2".to_owned(),
        "X-Proxima-User: user2".to_owned(),
        format!("X-Proxima-Host: {own}"),
        "Tailscale-User-Login: user2".to_owned(),
        "X-Remote-User: user2".to_owned(),
        "Authorization: Bearer user2".to_owned(),
        "Authorization: Basic dXNlcjI6".to_owned(),
        "Cookie: user=user2".to_owned(),
        "From: user2".to_owned(),
        "User-Agent: user2".to_owned(),
        "X-Api-Key: user2".to_owned(),
    ] {
        for path in ["/api/generate", "/v1/chat/completions", "/v1/messages"] {
            let ask = format!(
                "POST {path} HTTP/1.1\r\nHost: own.node.proxima\r\n{header}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{ASK}",
                ASK.len()
            );
            for from in [3, 9] {
                let reply = node.door(from, &ask).await.reply().await;
                assert_eq!(reply.status, 403, "{header} from {from}");
                for secret in ["user1", "user2", &own.to_string()] {
                    assert!(!reply.body.contains(secret), "{}", reply.body);
                }
            }
        }
    }
    // A line before the request, as proxies send it, is no name either.
    for line in [
        "PROXY TCP4 127.0.0.2 127.0.0.1 1 11434\r\n",
        "\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c",
    ] {
        let mut client = node.door(3, &format!("{line}{}", get("/api/tags"))).await;
        let mut seen = Vec::new();
        let _ = soon(client.stream.read_to_end(&mut seen)).await;
        let text = String::from_utf8_lossy(&seen);
        assert!(
            text.is_empty() || text.starts_with("HTTP/1.1 4"),
            "{line:?}: {text}"
        );
    }
    assert!(backend.is_untouched().await);
}

#[tokio::test]
async fn bodies_without_end_are_cut_at_their_bound() {
    let backend = Backend::start().await;
    let node = Node::sharing(vec![(ollama("tiny"), &backend)]);
    let text = "x".repeat(1 << 20);
    let large = format!(
        "{{\"model\":\"tiny\",\"prompt\":\"{}\"}}",
        "x".repeat(9 << 20)
    );
    assert_eq!(
        node.door(2, &post("/api/generate", &large))
            .await
            .reply()
            .await
            .status,
        413,
        "9 MiB without a picture"
    );
    for (what, head, chunk) in [
        (
            "chunks",
            "Transfer-Encoding: chunked\r\n\r\n",
            format!("100000\r\n{text}\r\n"),
        ),
        (
            "small chunks",
            "Transfer-Encoding: chunked\r\n\r\n",
            format!("400\r\n{}\r\n", "x".repeat(1_024)).repeat(1_024),
        ),
    ] {
        let mut client = node
            .door(
                2,
                &format!("POST /api/generate HTTP/1.1\r\nHost: a\r\n{head}"),
            )
            .await;
        let mut n_sent = 0;
        // The door answers and closes while we still send.
        while n_sent < 64 && client.stream.write_all(chunk.as_bytes()).await.is_ok() {
            n_sent += 1;
        }
        assert!(n_sent < 64, "{what}: the door took {n_sent} MiB");
    }
    let deep = format!("{{\"model\":\"tiny\",\"prompt\":{}", "[".repeat(1 << 20));
    assert_eq!(
        node.door(2, &post("/api/generate", &deep))
            .await
            .reply()
            .await
            .status,
        400
    );
    let heads = format!(
        "GET / HTTP/1.1\r\nHost: a\r\nX-A: {}\r\n\r\n",
        "x".repeat(1 << 20)
    );
    let mut client = Client::send(2, node.gateway.door_ports().model, "").await;
    let _ = client.stream.write_all(heads.as_bytes()).await;
    let mut seen = Vec::new();
    let _ = soon(client.stream.read_to_end(&mut seen)).await;
    let text = String::from_utf8_lossy(&seen);
    assert!(text.is_empty() || text.starts_with("HTTP/1.1 4"), "{text}");
    assert!(backend.is_untouched().await);
}

fn with(policy: DoorPolicy, config: ShareConfig) -> ShareConfig {
    ShareConfig {
        door: policy,
        ..config
    }
}

fn limits(limits: Vec<Limit>) -> DoorPolicy {
    DoorPolicy {
        limits,
        ..DoorPolicy::default()
    }
}

fn limit() -> Limit {
    Limit {
        who: "each".parse().unwrap(),
        models: "*".to_owned(),
        concurrent: None,
        per_minute: None,
        tokens_per_day: None,
    }
}

async fn serve(backend: &Backend, client: Client) -> Reply {
    let seen = backend.accept().await;
    let whole =
        r#"{"model":"tiny","response":" t1","done":true,"prompt_eval_count":23,"eval_count":40}"#;
    seen.reply("200 OK", "application/json", whole).await;
    client.reply().await
}

#[tokio::test]
async fn a_guest_over_its_limit_is_told_so_in_its_dialect_and_the_owner_is_not_bound() {
    let backend = Backend::start().await;
    let ask = r#"{"model":"tiny","prompt":"hi","stream":false}"#;
    for limit in [
        Limit {
            per_minute: Some(1),
            ..limit()
        },
        Limit {
            tokens_per_day: Some(60),
            ..limit()
        },
    ] {
        let config = with(limits(vec![limit]), on());
        let mut own_too = peer(4, Vec::new());
        own_too.1.user = UserId(1);
        let peers = vec![peer(2, Vec::new()), peer(3, Vec::new()), own_too];
        let mut node = Node::start(peers, config, vec![(ollama("tiny"), &backend)], None);
        let reply = serve(&backend, node.door(2, &post("/api/generate", ask)).await).await;
        assert_eq!(reply.status, 200);
        let usage = soon(node.usage.recv()).await.unwrap();
        assert_eq!(usage.tokens(), 63);
        for (path, body) in [
            ("/api/generate", ask),
            ("/api/chat", r#"{"model":"tiny","messages":[]}"#),
            ("/v1/chat/completions", r#"{"model":"tiny","messages":[]}"#),
            (
                "/v1/messages",
                r#"{"model":"tiny","max_tokens":9,"messages":[]}"#,
            ),
        ] {
            let reply = node.door(2, &post(path, body)).await.reply().await;
            assert_eq!(reply.status, 429, "{path}");
            let secs = reply
                .head
                .lines()
                .find_map(|line| line.strip_prefix("retry-after: "));
            let secs: u32 = secs.expect("a time").parse().unwrap();
            assert!((1..=86_400).contains(&secs), "{secs}");
            let error = &reply.json()["error"];
            match path {
                "/v1/chat/completions" => assert_eq!(error["type"], "rate_limit_error"),
                "/v1/messages" => assert_eq!(
                    (&reply.json()["type"], &error["type"]),
                    (&json!("error"), &json!("rate_limit_error"))
                ),
                _ => assert!(error.is_string(), "{}", reply.body),
            }
        }
        assert!(backend.is_untouched().await);
        for from in [3, 4, 1] {
            let reply = serve(&backend, node.door(from, &post("/api/generate", ask)).await).await;
            assert_eq!(reply.status, 200, "from {from}");
        }
        for from in [4, 1] {
            let reply = serve(&backend, node.door(from, &post("/api/generate", ask)).await).await;
            assert_eq!(reply.status, 200, "the owner again, from {from}");
        }
    }
}

#[tokio::test]
async fn more_than_a_guest_may_have_at_once_waits() {
    let backend = Backend::start().await;
    let bound = Limit {
        concurrent: Some(1),
        ..limit()
    };
    let config = ShareConfig {
        n_slots: 4,
        ..with(limits(vec![bound]), on())
    };
    let peers = vec![peer(2, Vec::new()), peer(3, Vec::new())];
    let node = Node::start(peers, config, vec![(ollama("tiny"), &backend)], None);
    let ask = post(
        "/api/generate",
        r#"{"model":"tiny","prompt":"hi","stream":false}"#,
    );
    let first = node.door(2, &ask).await;
    let working = backend.accept().await;
    let second = node.door(2, &ask).await;
    soon(async {
        while node.gateway.load() != (1, 1) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let guests = node.gateway.guests();
    assert_eq!(
        (guests[0].guest.as_str(), guests[0].position),
        ("user2", Some(1))
    );
    let other = serve(&backend, node.door(3, &ask).await).await;
    assert_eq!(other.status, 200, "a slot was free for others");
    working.reply("200 OK", "application/json", "{}").await;
    assert_eq!(first.reply().await.status, 200);
    assert_eq!(serve(&backend, second).await.status, 200);
}

#[tokio::test]
async fn a_door_that_closes_while_a_body_is_on_its_way_lets_it_reach_nobody() {
    let backend = Backend::start().await;
    let node = Node::sharing(vec![(ollama("tiny"), &backend)]);
    let request = post("/v1/chat/completions", ASK);
    let (head, body) = request.split_once("\r\n\r\n").unwrap();
    let head = head.replace(
        "\r\nContent-Length",
        "\r\nExpect: 100-continue\r\nContent-Length",
    );
    let mut client = node.door(2, &format!("{head}\r\n\r\n")).await;
    // Only one who was let in is asked for its body.
    client.until("100 Continue").await;
    node.share.send_modify(|status| {
        *status = Arc::new(InventoryStatus {
            closed: Some(mesh_proto::door::Closed::GpuInUse),
            ..InventoryStatus::clone(status)
        });
    });
    client.stream.write_all(body.as_bytes()).await.unwrap();
    client.until("HTTP/1.1 503 ").await;
    assert!(backend.is_untouched().await);
}

#[tokio::test]
async fn a_closed_door_opens_for_the_owner_alone() {
    let backend = Backend::start().await;
    let node = Node::sharing(vec![(ollama("tiny"), &backend)]);
    let until_ms = u64::try_from(
        std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap()
            .as_millis(),
    )
    .unwrap()
        + 3_600_000;
    for (closed, least, most) in [
        (mesh_proto::door::Closed::Quiet { until_ms }, 3_500, 3_600),
        (mesh_proto::door::Closed::GpuInUse, 60, 60),
    ] {
        node.share.send_modify(|status| {
            *status = Arc::new(InventoryStatus {
                closed: Some(closed),
                ..InventoryStatus::clone(status)
            });
        });
        let reply = node
            .door(2, &post("/v1/chat/completions", ASK))
            .await
            .reply()
            .await;
        assert_eq!(
            (reply.status, &reply.json()["error"]["type"]),
            (503, &json!("api_error"))
        );
        let secs = reply
            .head
            .lines()
            .find_map(|line| line.strip_prefix("retry-after: "));
        let secs: u32 = secs.expect("a time").parse().unwrap();
        assert!((least..=most).contains(&secs), "{secs}");
        assert_eq!(
            node.door(1, &get("/api/tags")).await.reply().await.status,
            200
        );
    }
    assert!(backend.is_untouched().await);
}

#[tokio::test]
async fn a_backend_that_dies_in_one_stream_hurts_that_one_alone() {
    let backend = Backend::start().await;
    let config = ShareConfig { n_slots: 8, ..on() };
    let peers = vec![peer(2, Vec::new()), peer(3, Vec::new())];
    let node = Node::start(peers, config, vec![(ollama("tiny"), &backend)], None);
    let ask = post("/api/generate", ASK);
    let mut streams = Vec::new();
    for from in [2, 3, 2, 3] {
        let mut client = node.door(from, &ask).await;
        let mut seen = backend.accept().await;
        seen.begin("application/x-ndjson").await;
        seen.chunk("{\"response\":\" t1\",\"done\":false}\n").await;
        client.until("t1").await;
        streams.push((client, seen));
    }
    let (broken, seen) = streams.remove(1);
    drop(seen);
    let reply = broken.reply().await;
    assert!(
        !reply.is_whole && reply.lines()[1]["error"].is_string(),
        "{}",
        reply.body
    );
    for (client, mut seen) in streams {
        seen.chunk("{\"response\":\" t2\",\"done\":false}\n{\"response\":\"\",\"done\":true,\"eval_count\":2}\n").await;
        seen.end().await;
        drop(seen);
        let reply = client.reply().await;
        assert!(reply.is_whole, "{}", reply.body);
        assert_eq!(reply.lines().len(), 3);
    }
    assert_eq!(node.gateway.load(), (0, 0));
}

#[tokio::test]
async fn what_a_backend_says_of_its_machine_stays_there() {
    let backend = Backend::start().await;
    let node = Node::sharing(vec![(ollama("tiny"), &backend)]);
    let text = "unable to load model: /usr/share/ollama/.ollama/models/blobs/sha256-00aa (anna@example.com, \
        C:\\\\Users\\\\anna\\\\x.gguf, file:///home/anna/x, http://127.0.0.1:39211/completion)";
    for (path, status, body) in [
        (
            "/api/generate",
            "500 Internal Server Error",
            format!(r#"{{"error":"{text}"}}"#),
        ),
        (
            "/v1/chat/completions",
            "400 Bad Request",
            format!(r#"{{"error":{{"message":"{text}","type":"x","code":null}}}}"#),
        ),
        (
            "/v1/messages",
            "502 Bad Gateway",
            format!("<html>{text}</html>"),
        ),
        ("/api/chat", "500 Internal Server Error", text.to_owned()),
    ] {
        let client = node
            .door(
                2,
                &post(path, r#"{"model":"tiny","messages":[],"stream":false}"#),
            )
            .await;
        backend
            .accept()
            .await
            .reply(status, "application/json", &body)
            .await;
        let reply = client.reply().await;
        assert!(reply.status >= 400);
        for secret in ["/usr", "blobs", "anna", "39211", "127.0.0.1", "C:", "home"] {
            assert!(
                !reply.body.contains(secret),
                "{path} {secret}: {}",
                reply.body
            );
        }
    }
    // The same in the middle of a stream.
    let client = node.door(2, &post("/api/generate", ASK)).await;
    let mut seen = backend.accept().await;
    seen.begin("application/x-ndjson").await;
    seen.chunk(&format!(
        "{{\"response\":\" t1\",\"done\":false}}\n{{\"error\":\"{text}\"}}\n"
    ))
    .await;
    seen.end().await;
    let reply = client.reply().await;
    assert!(
        reply.lines()[1]["error"]
            .as_str()
            .unwrap()
            .contains("unable to load model"),
        "{}",
        reply.body
    );
    assert!(
        !reply.body.contains("anna") && !reply.body.contains("/usr"),
        "{}",
        reply.body
    );
}

/// The time until the first line of an answer, from a backend that thinks for a while.
async fn first_line(node: &Node, backend: &Backend) -> Duration {
    let begun = Instant::now();
    let mut client = node.door(3, &post("/api/generate", ASK)).await;
    let mut seen = backend.accept().await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    seen.begin("application/x-ndjson").await;
    seen.chunk("{\"response\":\" t1\",\"done\":false}\n").await;
    client.until("t1").await;
    let took = begun.elapsed();
    seen.chunk("{\"done\":true}\n").await;
    seen.end().await;
    drop(seen);
    assert_eq!(client.reply().await.status, 200);
    took
}

async fn median(node: &Node, backend: &Backend) -> Duration {
    let mut times = Vec::new();
    for _ in 0..11 {
        times.push(first_line(node, backend).await);
    }
    times.sort_unstable();
    times[5]
}

/// Whether the door has closed a connection, with an answer or without.
async fn is_cut(client: &mut Client) -> bool {
    let mut rest = Vec::new();
    let read = tokio::time::timeout(
        Duration::from_secs(15),
        client.stream.read_to_end(&mut rest),
    )
    .await;
    read.is_ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_slow_clients_are_cut_and_slow_nobody_down() {
    let backend = Backend::start().await;
    let mut numbers = vec![3];
    numbers.extend(10..20);
    let peers = numbers.iter().map(|n| peer(*n, Vec::new())).collect();
    let node = Node::start(peers, on(), vec![(ollama("tiny"), &backend)], None);
    let before = median(&node, &backend).await;
    let begun = Instant::now();
    let mut slow = Vec::new();
    for n in 0..1_000_u32 {
        let from = 10 + u8::try_from(n % 10).unwrap();
        let part = match n % 3 {
            0 => "POST /api/gen",
            1 => "POST /api/generate HTTP/1.1\r\nHost: a\r\nX-A: b\r\n",
            _ => "POST /api/generate HTTP/1.1\r\nHost: a\r\nContent-Length: 30\r\n\r\n{\"model",
        };
        slow.push(Client::send(from, node.gateway.door_ports().model, part).await);
    }
    let during = median(&node, &backend).await;
    assert!(
        during <= before + before / 10,
        "{during:?} beside slow clients, {before:?} without"
    );
    let mut n_cut = 0;
    for client in &mut slow {
        if is_cut(client).await {
            n_cut += 1;
        }
    }
    assert_eq!(n_cut, 1_000, "cut");
    assert!(
        begun.elapsed() < Duration::from_secs(20),
        "{:?}",
        begun.elapsed()
    );
    assert!(slow.len() == 1_000 && backend.is_untouched().await);
}
