//! No word of a prompt or an answer is logged or stored, whatever happens.

use std::io::Write;
use std::sync::{Mutex, PoisonError};

use tracing_subscriber::fmt::MakeWriter;

use super::*;
use crate::meter::Meter;

/// Words that are in prompts and answers alone.
const PROMPT: &str = "xylophone";
const ANSWER: &str = "quicksilver";

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut log = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        log.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// All bytes of all files below a folder.
fn files(dir: &std::path::Path) -> Vec<u8> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            all.extend(files(&entry.path()));
        } else {
            all.extend(std::fs::read(entry.path()).unwrap());
        }
    }
    all
}

#[tokio::test]
async fn no_word_of_a_prompt_or_an_answer_is_logged_or_stored() {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(log.clone())
        .finish();
    // The tests' runtime has this one thread.
    let _guard = tracing::subscriber::set_default(subscriber);
    let dir = tempfile::tempdir().unwrap();
    let meter = Meter::start(dir.path());
    let backend = Backend::start().await;
    let mut node = Node::sharing(vec![(ollama("tiny"), &backend)]);
    tracing::info!("the log works");

    let line = format!("{{\"response\":\"{ANSWER}\",\"done\":false}}\n");
    for (path, body) in [
        (
            "/api/generate",
            format!(r#"{{"model":"tiny","prompt":"{PROMPT}","system":"{PROMPT}"}}"#),
        ),
        (
            "/api/chat",
            format!(r#"{{"model":"tiny","messages":[{{"role":"user","content":"{PROMPT}"}}]}}"#),
        ),
    ] {
        for ending in ["whole", "broken", "error", "left"] {
            let mut client = node.door(2, &post(path, &body)).await;
            let mut seen = backend.accept().await;
            assert!(seen.body.to_string().contains(PROMPT));
            seen.begin("application/x-ndjson").await;
            seen.chunk(&line).await;
            client.until(ANSWER).await;
            match ending {
                "whole" => {
                    seen.chunk("{\"done\":true,\"prompt_eval_count\":9,\"eval_count\":1}\n")
                        .await;
                    seen.end().await;
                    drop(seen);
                    assert!(client.reply().await.is_whole);
                }
                "broken" => {
                    drop(seen);
                    assert!(!client.reply().await.is_whole);
                }
                "error" => {
                    seen.chunk(&format!("{{\"error\":\"{ANSWER}\"}}\n")).await;
                    seen.end().await;
                    drop(seen);
                    client.reply().await;
                }
                _ => {
                    drop(client);
                    seen.gone().await;
                }
            }
            let usage = soon(node.usage.recv()).await.unwrap();
            meter.inbox().take(&usage);
        }
        let client = node.door(2, &post(path, &body)).await;
        let refused = format!(r#"{{"error":"cannot read {PROMPT}"}}"#);
        backend
            .accept()
            .await
            .reply("400 Bad Request", "application/json", &refused)
            .await;
        assert_eq!(client.reply().await.status, 400);
        let reply = node
            .door(2, &post(path, &format!("{{\"{PROMPT}\":")))
            .await
            .reply()
            .await;
        assert_eq!(reply.status, 400);
        let reply = node
            .door(2, &post(&format!("{path}?q={PROMPT}"), "{}"))
            .await
            .reply()
            .await;
        assert_eq!(reply.status, 400);
    }
    meter.stop().await;

    let stored = files(dir.path());
    let stored = String::from_utf8_lossy(&stored);
    assert_eq!(
        stored.matches("\"rid\"").count(),
        8,
        "the records are there"
    );
    let logged = log.0.lock().unwrap().clone();
    let logged = String::from_utf8_lossy(&logged);
    assert!(logged.contains("the log works"), "{logged}");
    for word in [PROMPT, ANSWER] {
        assert!(!stored.contains(word), "{word} is stored");
        let line = logged.lines().find(|line| line.contains(word));
        assert_eq!(line, None, "{word} is logged");
    }
}
