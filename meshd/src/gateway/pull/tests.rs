//! Names that are pulled and those that are not, budgets, and a whole pull with a server that the test speaks for.

use super::*;
use crate::gateway::tests::{Backend as Server, Node, ollama, on, peer, post, soon};
use crate::inventory::{Backend, ShareConfig};
use mesh_proto::share::{Offer, PullPolicy};

#[test]
fn only_names_of_the_registry_are_pulled() {
    for (asked, want) in [
        ("llama3.2:1b", "llama3.2:1b"),
        ("Library/TINY:latest", "tiny"),
        ("mannix/llama3.1-8b:q4_0", "mannix/llama3.1-8b:q4_0"),
    ] {
        assert_eq!(checked_name(asked).unwrap(), want, "{asked}");
    }
    for asked in [
        "",
        "hf.co/someone/model:Q4",
        "http://evil.example/x",
        "evil.example/ns/x:1",
        "evil.example:80/x",
        "../x",
        "a/b/c",
        "a b",
        "x:",
        "x:y:z",
        "-x",
        "gpt-oss:120b-cloud",
        "x:cloud",
        &"m".repeat(200),
    ] {
        assert!(checked_name(asked).is_err(), "{asked}");
    }
}

#[test]
fn progress_is_summed_over_files() {
    let mut progress = Progress::default();
    for (line, want) in [
        (r#"{"status":"pulling manifest"}"#, Step::Going),
        (
            r#"{"status":"pulling a","digest":"a","total":100,"completed":40}"#,
            Step::Going,
        ),
        (
            r#"{"status":"pulling b","digest":"b","total":10}"#,
            Step::Going,
        ),
        (
            r#"{"status":"pulling a","digest":"a","total":100,"completed":100}"#,
            Step::Going,
        ),
        ("nonsense", Step::Going),
        (
            r#"{"error":"no such model"}"#,
            Step::Failed("no such model".to_owned()),
        ),
        (r#"{"status":"success"}"#, Step::Done),
    ] {
        assert_eq!(progress.take(line.as_bytes()), want, "{line}");
    }
    assert_eq!(
        (progress.total_bytes(), progress.completed_bytes()),
        (110, 100)
    );
}

#[test]
fn the_list_outlives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join(LEDGER_FILE);
    let ledger = Ledger::open(file.clone()).unwrap();
    ledger.add("tiny").unwrap();
    ledger.add("tiny").unwrap();
    let again = Ledger::open(file.clone()).unwrap();
    assert_eq!(again.models().into_iter().collect::<Vec<_>>(), ["tiny"]);
    std::fs::write(&file, "{").unwrap();
    assert!(
        Ledger::open(file).is_err(),
        "what is damaged is no empty list"
    );
}

/// A host that pulls for user2, within so many bytes, of which its models take some.
fn host(server: &Server, budget_bytes: u64) -> Node {
    let config = ShareConfig {
        pulls: PullPolicy {
            users: vec!["user2".parse().unwrap()],
            budget_bytes,
        },
        ..on()
    };
    let node = Node::start(
        vec![peer(2, Vec::new()), peer(3, Vec::new())],
        config,
        vec![(ollama("tiny"), server)],
        None,
    );
    let mut status = InventoryStatus::clone(&node.share.borrow());
    status.backends = vec![Backend {
        url: String::new(),
        authority: server.addr.to_string(),
        api: BackendApi::Ollama,
        models: vec![
            ollama("tiny").into(),
            Offer {
                size_bytes: 900,
                ..ollama("theirs")
            }
            .into(),
        ],
        error: None,
        warning: None,
    }];
    node.share.send_replace(Arc::new(status));
    node
}

async fn ask(node: &Node, from: u8, model: &str) -> (u16, String) {
    let body = format!(r#"{{"model":"{model}"}}"#);
    let reply = node.door(from, &post(PATH, &body)).await.reply().await;
    (reply.status, reply.body)
}

async fn until(node: &Node, model: &str, words: &str) -> String {
    soon(async {
        loop {
            let (_, told) = ask(node, 2, model).await;
            if told.contains(words) {
                return told;
            }
            tokio::task::yield_now().await;
        }
    })
    .await
}

#[tokio::test]
async fn a_named_user_has_a_model_pulled() {
    let server = Server::start().await;
    let node = host(&server, 1_000);
    assert_eq!(ask(&node, 3, "new").await.0, 403, "not named");
    assert_eq!(ask(&node, 2, "hf.co/x/y").await.0, 400);
    let (status, told) = ask(&node, 2, "tiny").await;
    assert!(status == 200 && told.contains("\"done\""), "{told}");
    assert!(server.is_untouched().await);

    let (status, told) = ask(&node, 2, "Library/New:latest").await;
    assert!(status == 200 && told.contains("\"pulling\""), "{told}");
    let mut seen = server.accept().await;
    assert!(seen.head.starts_with("POST /api/pull "), "{}", seen.head);
    assert_eq!(seen.body, json!({ "model": "new", "stream": true }));
    assert_eq!(ask(&node, 2, "another").await.0, 503, "one at a time");
    seen.begin("application/x-ndjson").await;
    seen.chunk("{\"status\":\"pulling a\",\"digest\":\"a\",\"total\":1000,\"completed\":250}\n")
        .await;
    until(&node, "new", "\"completed_bytes\":250").await;
    seen.chunk("{\"status\":\"success\"}\n").await;
    seen.end().await;
    until(&node, "new", "\"done\"").await;
}

#[tokio::test]
async fn a_pull_beyond_the_budget_is_cut() {
    let server = Server::start().await;
    let node = host(&server, 1_000);
    ask(&node, 2, "big").await;
    let mut seen = server.accept().await;
    seen.begin("application/x-ndjson").await;
    seen.chunk("{\"status\":\"pulling a\",\"digest\":\"a\",\"total\":1001,\"completed\":1}\n")
        .await;
    seen.gone().await;
    let told = until(&node, "big", "\"failed\"").await;
    assert!(
        told.contains("are left of what this host's owner grants"),
        "{told}"
    );
    // What it told once is tried again when it is asked for again.
    ask(&node, 2, "big").await;
    server.accept().await;
}

#[tokio::test]
async fn nobody_pulls_where_the_owner_did_not_say_so() {
    let server = Server::start().await;
    let node = Node::sharing(vec![(ollama("tiny"), &server)]);
    let (status, told) = ask(&node, 2, "new").await;
    assert_eq!(status, 403, "{told}");
    let reply = node
        .guest(&post(PATH, r#"{"model":"x"}"#))
        .await
        .reply()
        .await;
    assert_eq!(reply.status, 404);
    assert!(server.is_untouched().await);
}
