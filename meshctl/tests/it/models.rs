//! Using models: the catalogue and the chat.

use insta::assert_snapshot;
use mesh_proto::local::*;
use mesh_proto::share::{BackendApi, Digest};

use crate::fake::{Fake, FakeBuilder, Meshctl, node_id, status_of};

fn host(n: u8, name: &str) -> ModelHost {
    ModelHost {
        id: node_id(n),
        name: name.parse().unwrap(),
        is_self: false,
        is_healthy: true,
        is_loaded: false,
        api: BackendApi::Ollama,
    }
}

fn catalogue() -> Models {
    let llama = ModelStatus {
        model: "llama3.2".to_owned(),
        dns_name: Some("llama3.2.proxima".to_owned()),
        digest: Some(Digest::from_bytes([0xcd; 32])),
        size_bytes: 2_019_393_189,
        parameter_size: "3.2B".to_owned(),
        quantization: "Q4_K_M".to_owned(),
        context_length: 131_072,
        capabilities: vec!["completion".to_owned()],
        hosts: vec![
            ModelHost {
                is_loaded: true,
                ..host(3, "gpu1")
            },
            ModelHost {
                is_self: true,
                ..host(2, "laptop")
            },
        ],
    };
    let smol = ModelStatus {
        model: "smollm2:135m".to_owned(),
        dns_name: None,
        digest: None,
        size_bytes: 0,
        parameter_size: String::new(),
        quantization: String::new(),
        context_length: 0,
        hosts: vec![ModelHost {
            is_healthy: false,
            api: BackendApi::OpenAi,
            ..host(4, "lab")
        }],
        ..llama.clone()
    };
    Models {
        models: vec![llama, smol],
    }
}

#[test]
fn models_lists_the_catalogue_and_filters_it() {
    let fake = Fake::running()
        .json("GET", PATH_MODELS, &catalogue())
        .start();
    assert_snapshot!("models", fake.both(&["models"]));
    assert_snapshot!("models_filtered", fake.meshctl(&["models", "smol*"]));
    assert_snapshot!("models_unknown", fake.both(&["models", "lamma3.2"]));
}

#[test]
fn an_empty_catalogue_says_what_to_do() {
    let fake = Fake::running()
        .json("GET", PATH_MODELS, &Models::default())
        .start();
    assert_snapshot!("models_empty", fake.both(&["models"]));
}

const STREAM: &str = concat!(
    r#"{"model":"llama3.2","created_at":"2026-11-23T13:44:44Z","message":{"role":"assistant","content":"","thinking":"easy"},"done":false}"#,
    "\n",
    r#"{"model":"llama3.2","created_at":"2026-11-23T13:44:44Z","message":{"role":"assistant","content":"It is "},"done":false}"#,
    "\n",
    r#"{"model":"llama3.2","created_at":"2026-11-23T13:44:44Z","message":{"role":"assistant","content":"scattered light."},"done":false}"#,
    "\n",
    r#"{"model":"llama3.2","created_at":"2026-11-23T13:44:44Z","message":{"role":"assistant","content":""},"done":true,"done_reason":"stop","total_duration":6010627,"prompt_eval_count":23,"eval_count":5}"#,
    "\n",
);

fn chatting(status: u16, body: &str) -> FakeBuilder {
    Fake::new()
        .json("GET", PATH_MODELS, &catalogue())
        .gateway(status, body)
}

/// How long a chat took differs from run to run.
fn still(text: &str) -> String {
    let mut out: Vec<String> = Vec::new();
    for line in text.lines() {
        out.push(match line.split_once("\"duration_ms\": ") {
            Some((head, _)) => format!("{head}\"duration_ms\": [TIME]"),
            None => line.to_owned(),
        });
    }
    out.join("\n")
}

#[test]
fn run_answers_a_prompt_as_text_and_as_json() {
    let fake = chatting(200, STREAM).start();
    assert_snapshot!(
        "run",
        still(&fake.both(&["run", "llama3.2", "why is the sky blue?"]))
    );
    assert_eq!(
        fake.asked()[1],
        r#"POST /api/chat {"model":"llama3.2","messages":[{"role":"user","content":"why is the sky blue?"}],"stream":true}"#
    );
}

#[test]
fn run_takes_a_prompt_from_standard_input_and_a_system_text() {
    let fake = chatting(200, STREAM).start();
    let text = fake.meshctl_with(
        &[
            "run",
            "llama3.2",
            "sum up:",
            "--system",
            "be brief",
            "--no-stream",
        ],
        "a long text\n",
    );
    assert!(
        text.contains("[stdout]\nIt is scattered light.\n[stderr]\n"),
        "{text}"
    );
    assert!(
        fake.asked()[1].contains(
            r#"[{"role":"system","content":"be brief"},{"role":"user","content":"sum up:\n\na long text"}]"#
        ),
        "{:?}",
        fake.asked()
    );
}

#[test]
fn run_with_nothing_to_ask_is_wrong_usage() {
    let fake = chatting(200, STREAM).start();
    assert_snapshot!("run_nothing", fake.meshctl(&["run", "llama3.2"]));
}

#[test]
fn run_of_an_unknown_model_names_near_ones() {
    let fake = chatting(404, r#"{"error":"model 'lama3.2' not found"}"#).start();
    assert_snapshot!("run_unknown", fake.both(&["run", "lama3.2", "hi"]));
}

#[test]
fn run_tells_refusals_and_failures_of_hosts() {
    let fake = chatting(
        403,
        r#"{"error":{"message":"this host does not share with you","type":"refused"}}"#,
    )
    .start();
    assert_snapshot!("run_refused", fake.meshctl(&["run", "llama3.2", "hi"]));
    let fake = chatting(
        503,
        r#"{"error":"all hosts of llama3.2 are busy: try again soon"}"#,
    )
    .start();
    assert_snapshot!("run_busy", fake.meshctl(&["run", "llama3.2", "hi"]));
}

#[test]
fn run_prints_what_came_and_then_why_it_broke_off() {
    let half: String = STREAM.split_inclusive('\n').take(2).collect();
    let fake = chatting(200, &half).start();
    assert_snapshot!("run_broken_off", fake.meshctl(&["run", "llama3.2", "hi"]));
    let fake = chatting(
        200,
        &format!("{half}{{\"error\":\"host gpu1 went away\"}}\n"),
    )
    .start();
    assert_snapshot!("run_error_line", fake.meshctl(&["run", "llama3.2", "hi"]));
    let fake = chatting(200, "this is no JSON\n").start();
    assert!(
        fake.meshctl(&["run", "llama3.2", "hi"])
            .contains("[exit 1]")
    );
}

#[test]
fn run_needs_a_mesh() {
    let mut all = String::new();
    for state in [RunState::NeedsLogin, RunState::Stopped, RunState::Starting] {
        let fake = Fake::new()
            .json("GET", PATH_STATUS, &status_of(state))
            .start();
        all.push_str(&fake.meshctl(&["run", "llama3.2", "hi"]));
    }
    assert_snapshot!("run_not_up", all);
}

/// On a terminal of its own, by util-linux's `script`.
fn on_terminal(fake: &Fake, args: &str, keys: &str) -> String {
    let command = format!("{} {args}", env!("CARGO_BIN_EXE_meshctl"));
    let text = Meshctl::new(&fake.socket())
        .program("/usr/bin/script".into())
        .env("TERM", "dumb")
        .stdin(keys)
        .run(&["-qec", &command, "/dev/null"]);
    text.replace('\r', "")
}

#[test]
fn a_conversation_keeps_its_history_until_it_is_cleared() {
    let fake = chatting(200, STREAM).start();
    let text = on_terminal(
        &fake,
        "run llama3.2",
        "hello\nand then?\n/clear\nagain\n/bye\n",
    );
    assert!(text.contains("[exit 0]"), "{text}");
    assert_eq!(text.matches("It is scattered light.").count(), 3, "{text}");
    assert!(
        text.contains("easy"),
        "thoughts are shown on a terminal: {text}"
    );
    let chats: Vec<String> = fake
        .asked()
        .into_iter()
        .filter(|asked| asked.contains("/api/chat"))
        .collect();
    assert_eq!(chats.len(), 3);
    assert!(
        chats[1].contains(
            r#"[{"role":"user","content":"hello"},{"role":"assistant","content":"It is scattered light."},{"role":"user","content":"and then?"}]"#
        ),
        "{}",
        chats[1]
    );
    assert!(
        chats[2].contains(r#"[{"role":"user","content":"again"}]"#),
        "{}",
        chats[2]
    );
}

#[test]
fn a_conversation_with_an_unknown_model_does_not_begin() {
    let fake = chatting(200, STREAM).start();
    let text = on_terminal(&fake, "run lama3.2", "hello\n");
    assert!(
        text.contains("[exit 5]") && text.contains("did you mean llama3.2?"),
        "{text}"
    );
}
