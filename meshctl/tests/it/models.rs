//! Using models: the catalogue and the chat.

use std::time::Duration;

use insta::assert_snapshot;
use mesh_proto::local::*;
use mesh_proto::share::{BackendApi, Digest, Gpu, HostLive, Protocol, Speed};

use crate::fake::{Fake, FakeBuilder, Terminal, node_id, status_of};

fn host(n: u8, name: &str) -> ModelHost {
    ModelHost {
        id: node_id(n),
        name: name.parse().unwrap(),
        is_self: false,
        is_healthy: true,
        is_loaded: false,
        api: BackendApi::Ollama,
        speaks: vec![Protocol::Ollama, Protocol::OpenAi],
        n_slots: 2,
        speed: None,
        gpus: Vec::new(),
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
        capabilities: vec!["completion".to_owned(), "tools".to_owned()],
        price_class_milli: Some(3_200),
        hosts: vec![
            ModelHost {
                is_loaded: true,
                speed: Some(Speed {
                    tokens_per_second: 71.0,
                    first_token_ms: 120,
                }),
                gpus: vec![Gpu {
                    name: "NVIDIA GeForce RTX 4090".to_owned(),
                    memory_total_bytes: Some(24 << 30),
                    driver: Some("570.86".to_owned()),
                    is_mig: Some(false),
                    ..Gpu::default()
                }],
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
        capabilities: vec!["completion".to_owned()],
        price_class_milli: None,
        hosts: vec![ModelHost {
            is_healthy: false,
            api: BackendApi::OpenAi,
            speaks: vec![Protocol::OpenAi],
            ..host(4, "lab")
        }],
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
fn models_are_filtered_by_host_and_by_what_they_can() {
    let fake = Fake::running()
        .json("GET", PATH_MODELS, &catalogue())
        .start();
    for (args, llama, smol) in [
        (&["--host", "GPU1"][..], true, false),
        (&["--host", "lab"], false, true),
        (&["--can", "tools"], true, false),
        (&["--can", "completion"], true, true),
        (&["--loaded"], true, false),
        (
            &["smol", "--can", "completion", "--host", "lab"],
            false,
            true,
        ),
    ] {
        let said = fake.meshctl(&[&["models"], args].concat());
        assert!(said.contains("[exit 0]"), "{said}");
        assert_eq!(said.contains("llama3.2"), llama, "{said}");
        assert_eq!(said.contains("smollm2"), smol, "{said}");
    }
    for (args, why) in [
        (&["--can", "vision"][..], "no model fits these conditions"),
        (
            &["smol", "--can", "tools"],
            "no model fits `smol` and the other conditions",
        ),
    ] {
        let said = fake.meshctl(&[&["models"], args].concat());
        assert!(said.contains("[exit 5]") && said.contains(why), "{said}");
    }
}

#[test]
fn a_wish_is_told_and_taken_back() {
    let fake = Fake::running().done(PATH_WANTS).start();
    assert_snapshot!(
        "models_want",
        fake.both(&["models", "want", "llama3.3:70b"])
    );
    assert_snapshot!(
        "models_want_not",
        fake.meshctl(&["models", "want", "llama3.3:70b", "--not"])
    );
    assert_eq!(
        fake.asked().last().unwrap(),
        r#"POST /v1/wants {"model":"llama3.3:70b","is_over":true}"#
    );
    let many = Fake::running()
        .error(
            "POST",
            PATH_WANTS,
            409,
            "conflict",
            "you want 20 models already",
        )
        .start();
    let said = many.meshctl(&["models", "want", "x"]);
    assert!(
        said.contains("[exit 1]") && said.contains("20 models"),
        "{said}"
    );
}

#[test]
fn a_host_is_asked_to_pull_until_it_is_done_or_says_no() {
    let done = PullStatus::of("llama3.2:1b", PullState::Done);
    let fake = Fake::running().json("POST", PATH_PULL, &done).start();
    let args = ["models", "pull", "llama3.2:1b", "--on", "gpu1"];
    assert_snapshot!("models_pull", fake.both(&args));
    assert_eq!(
        fake.asked().last().unwrap(),
        r#"POST /v1/pull {"model":"llama3.2:1b","host":"gpu1"}"#
    );
    let failed = PullStatus {
        message: Some("the model takes 5000 MiB, and 9 MiB are left".to_owned()),
        ..PullStatus::of("llama3.2:1b", PullState::Failed)
    };
    let fake = Fake::running().json("POST", PATH_PULL, &failed).start();
    assert_snapshot!("models_pull_failed", fake.both(&args));
    let refused = Fake::running()
        .error(
            "POST",
            PATH_PULL,
            403,
            "refused",
            "its owner does not let you",
        )
        .start();
    let said = refused.meshctl(&args);
    assert!(said.contains("[exit 6]"), "{said}");
}

#[test]
fn top_shows_the_hosts_as_text_and_as_json() {
    let host = |n: u8, name: &str, live: Option<HostLive>| TopHost {
        id: node_id(n),
        name: name.parse().unwrap(),
        user: "anna".parse().unwrap(),
        is_self: n == 2,
        is_online: live.is_some(),
        n_models: 3,
        live,
    };
    let live = HostLive {
        n_slots: 4,
        n_active: 1,
        n_queued: 2,
        n_output_tokens: 77,
        loaded: vec!["llama3.2:latest".to_owned()],
        gpus: vec![Gpu {
            name: "NVIDIA GeForce RTX 4090".to_owned(),
            utilization_percent: Some(97),
            ..Gpu::default()
        }],
    };
    let top = Top {
        hosts: vec![host(3, "gpu1", Some(live)), host(2, "laptop", None)],
    };
    let fake = Fake::running().json("GET", PATH_TOP, &top).start();
    assert_snapshot!("top_once", fake.both(&["top", "--once"]));
    assert_snapshot!("top_no_terminal", fake.meshctl(&["top"]));
    let fast = fake.meshctl(&["top", "--interval", "10ms"]);
    assert!(fast.contains("[exit 2]"), "{fast}");
    let nobody = Fake::running()
        .json("GET", PATH_TOP, &Top::default())
        .start();
    let said = nobody.meshctl(&["top", "--once"]);
    assert!(said.contains("Nobody shares a model"), "{said}");
}

#[test]
fn top_draws_on_a_terminal_and_ends_with_q() {
    let fake = Fake::running()
        .json("GET", PATH_TOP, &Top::default())
        .start();
    let mut terminal = Terminal::open(&fake, "top --interval 200ms");
    terminal.await_text("q quit", 1);
    terminal.press("q");
    let (code, _) = terminal.close();
    assert_eq!(code, Some(0));
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
    Fake::bare()
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
        let fake = Fake::bare()
            .json("GET", PATH_STATUS, &status_of(state))
            .start();
        all.push_str(&fake.meshctl(&["run", "llama3.2", "hi"]));
    }
    assert_snapshot!("run_not_up", all);
}

const PROMPT: &str = ">>> ";

#[test]
fn a_conversation_keeps_its_history_until_it_is_cleared() {
    let fake = chatting(200, STREAM).start();
    let mut terminal = Terminal::open(&fake, "run llama3.2");
    for (n, keys) in ["hello\n", "and then?\n", "/clear\n", "again\n", "/bye\n"]
        .into_iter()
        .enumerate()
    {
        terminal.await_text(PROMPT, n + 1);
        terminal.press(keys);
    }
    let (code, shown) = terminal.close();
    assert_eq!(code, Some(0), "{shown}");
    assert_eq!(
        shown.matches("It is scattered light.").count(),
        3,
        "{shown}"
    );
    assert!(
        shown.contains("easy"),
        "thoughts are shown on a terminal: {shown}"
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
fn ctrl_c_stops_the_answer_and_not_the_conversation_and_ctrl_d_ends_it() {
    let (sender, hung_up) = std::sync::mpsc::channel();
    let half: String = STREAM.split_inclusive('\n').take(2).collect();
    let fake = chatting(200, &half).endless(sender).start();
    let mut terminal = Terminal::open(&fake, "run llama3.2");
    terminal.await_text(PROMPT, 1);
    terminal.press("hello\n");
    terminal.await_text("It is ", 1);
    terminal.press("\u{3}");
    hung_up.recv_timeout(Duration::from_secs(20)).unwrap();
    terminal.await_text(PROMPT, 2);
    terminal.press("\u{3}");
    terminal.await_text("Ctrl-D or /bye", 1);
    terminal.press("\u{4}");
    let (code, shown) = terminal.close();
    assert_eq!(code, Some(0), "{shown}");
}

#[test]
fn a_conversation_with_an_unknown_model_does_not_begin() {
    let fake = chatting(200, STREAM).start();
    let (code, shown) = Terminal::open(&fake, "run lama3.2").close();
    assert_eq!(code, Some(5), "{shown}");
    assert!(shown.contains("did you mean llama3.2?"), "{shown}");
}

#[test]
fn a_model_cannot_steer_the_terminal() {
    let answer = STREAM.replace("scattered light", "\\u001b[2Jscattered");
    let fake = chatting(200, &answer).start();
    let mut terminal = Terminal::open(&fake, "run llama3.2");
    terminal.await_text(PROMPT, 1);
    terminal.press("hello\n");
    terminal.await_text(PROMPT, 2);
    let (_, shown) = terminal.close();
    assert!(
        shown.contains("[2Jscattered") && !shown.contains("\u{1b}[2J"),
        "{shown:?}"
    );
}
