//! Sharing this machine's models.

use insta::assert_snapshot;
use mesh_proto::local::*;
use mesh_proto::share::{Audience, BackendApi, Gpu, HostOffers, Offer};

use crate::fake::Fake;

fn offer() -> Offer {
    Offer {
        model: "llama3.2:latest".to_owned(),
        digest: None,
        api: BackendApi::Ollama,
        size_bytes: 2_019_393_189,
        family: "llama".to_owned(),
        parameter_size: "3.2B".to_owned(),
        quantization: "Q4_K_M".to_owned(),
        context_length: 131_072,
        capabilities: vec!["completion".to_owned()],
        is_loaded: true,
        modified_at: String::new(),
    }
}

fn sharing() -> ShareStatus {
    ShareStatus {
        is_on: true,
        models: vec!["llama3*".to_owned()],
        offers: HostOffers {
            models: vec![offer()],
            gpus: Vec::new(),
            audience: Audience::Users(vec!["bob".parse().unwrap()]),
            n_slots: 2,
        },
        backends: vec![
            BackendStatus {
                url: "http://127.0.0.1:11434".to_owned(),
                api: BackendApi::Ollama,
                n_models: 3,
                error: None,
                warning: Some("Ollama listens on all addresses: everybody in your network reaches it around the mesh; to mend it, set OLLAMA_HOST=127.0.0.1 and restart it".to_owned()),
            },
            BackendStatus {
                url: "http://127.0.0.1:8080".to_owned(),
                api: BackendApi::OpenAi,
                n_models: 0,
                error: Some("connection refused".to_owned()),
                warning: None,
            },
        ],
        n_active: 1,
        n_queued: 0,
        gpus: vec![Gpu {
            name: "NVIDIA GeForce RTX 4090".to_owned(),
            memory_total_bytes: Some(25_757_220_864),
            memory_used_bytes: Some(4_294_967_296),
            utilization_percent: Some(37),
            ..Gpu::default()
        }],
    }
}

#[test]
fn sharing_shows_what_with_whom_and_what_to_look_at() {
    let fake = Fake::running()
        .json("GET", PATH_SHARE, &sharing())
        .json("POST", PATH_SHARE, &sharing())
        .start();
    assert_snapshot!("share_on", fake.both(&["share", "on"]));
    assert_eq!(
        fake.asked()[0],
        r#"POST /v1/share {"is_on":true,"models":null,"audience":null,"n_slots":null,"backends":null}"#
    );
    let status = fake.meshctl(&["share"]);
    assert_eq!(
        status.lines().skip(1).collect::<Vec<_>>(),
        fake.meshctl(&["share", "status"])
            .lines()
            .skip(1)
            .collect::<Vec<_>>()
    );
}

#[test]
fn nothing_shared_says_so() {
    let off = ShareStatus::default();
    let fake = Fake::running()
        .json("GET", PATH_SHARE, &off)
        .json("POST", PATH_SHARE, &off)
        .start();
    assert_snapshot!("share_off", fake.both(&["share", "off"]));
    let empty = ShareStatus {
        is_on: true,
        ..ShareStatus::default()
    };
    let fake = Fake::running().json("POST", PATH_SHARE, &empty).start();
    assert_snapshot!("share_nothing_found", fake.meshctl(&["share", "on"]));
}

#[test]
fn options_become_one_request() {
    let fake = Fake::running().json("POST", PATH_SHARE, &sharing()).start();
    let cases: [(&[&str], &str); 4] = [
        (
            &[
                "share",
                "set",
                "--models",
                "llama3*,qwen3:8b",
                "--audience",
                "users:anna,bob",
                "--slots",
                "4",
            ],
            r#"{"is_on":null,"models":["llama3*","qwen3:8b"],"audience":{"users":["anna","bob"]},"n_slots":4,"backends":null}"#,
        ),
        (
            &[
                "share",
                "set",
                "--models",
                "all",
                "--audience",
                "mine",
                "--backend",
                "auto",
            ],
            r#"{"is_on":null,"models":[],"audience":"mine","n_slots":null,"backends":[]}"#,
        ),
        (
            &[
                "share",
                "on",
                "--backend",
                "http://127.0.0.1:8080",
                "--backend",
                "http://127.0.0.1:8000",
            ],
            r#"{"is_on":true,"models":null,"audience":null,"n_slots":null,"backends":["http://127.0.0.1:8080","http://127.0.0.1:8000"]}"#,
        ),
        (
            &["share", "off"],
            r#"{"is_on":false,"models":null,"audience":null,"n_slots":null,"backends":null}"#,
        ),
    ];
    for (args, expected) in cases {
        let text = fake.meshctl(args);
        assert!(text.contains("[exit 0]"), "{text}");
        assert_eq!(
            fake.asked().last().unwrap(),
            &format!("POST /v1/share {expected}")
        );
    }
}

#[test]
fn wrong_options_are_caught_before_they_are_sent() {
    let fake = Fake::running().start();
    let mut all = String::new();
    for args in [
        &["share", "set"][..],
        &["share", "set", "--audience", "friends"],
        &["share", "set", "--audience", "users:An na"],
        &["share", "set", "--backend", "127.0.0.1:8080"],
    ] {
        all.push_str(&fake.meshctl(args));
    }
    assert_snapshot!("share_wrong", all);
    assert!(fake.asked().is_empty());
}
